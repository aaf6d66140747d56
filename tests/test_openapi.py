"The API's description: it is whole, answers keep to it, and no request whatever breaks the API."

import ast
import base64
import collections
import json
import re

import contract
import pytest
import schemathesis
from engine_double import ADA, ROOT, World
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import from_schema
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished

from sentiment_engine.api import ROUTES
from sentiment_engine.openapi import CODES, openapi

FUNCTIONS = {
    "/start": "start-model-service",
    "/predict": "invoke-sagemaker-endpoint",
    "/extend": "extend-shutdown-timer",
}
READABLE = re.compile(r"(text/|application/(json|javascript|xml))")  # what API Gateway hands on as it came
FREE = {"number_cooldown_minutes": 0, "address_cooldown_seconds": 0, "daily_starts": 10**9, "daily_messages": 10**9}
FREE |= {"monthly_budget": 10**9}


class Gateway:
    "API Gateway as a WSGI application. It makes events of requests and counts the answers by status."

    def __init__(self, world: World, sleepy: bool = False):
        self.world, self.sleepy = world, sleepy  # sleepy: every start fails, so that the model stays asleep
        self.answers = collections.Counter()

    def __call__(self, environ, start_response) -> list[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        path = environ["PATH_INFO"].encode("latin-1").decode("utf-8", "replace")
        status, headers, body = self.ask(
            environ["REQUEST_METHOD"], path, environ["wsgi.input"].read(length), environ.get("CONTENT_TYPE", "")
        )
        start_response(f"{status} -", list(headers.items()))
        return [body.encode()]

    def ask(self, method: str, path: str, raw: bytes = b"", kind: str = "application/json") -> tuple[int, dict, str]:
        "Send a request to the function of its route, and hold the answer against the description."
        routed = ROUTES.get(path) == method and path != "/openapi.json"
        event = {"version": "2.0", "routeKey": f"{method} {path}" if routed else "$default", "rawPath": path}
        event["requestContext"] = {"requestId": "1", "http": {"method": method, "path": path, "sourceIp": "192.0.2.1"}}
        event |= self.body(raw, kind)
        folder = FUNCTIONS.get(path) if routed else None
        got = self.world.handlers[folder or "is-model-service-running"].handler(event, None)
        contract.check(method, path, got["statusCode"], got["headers"], json.loads(got["body"]))
        self.answers[got["statusCode"]] += 1
        if self.sleepy and got["statusCode"] == 202:
            self.world.endpoint_becomes("Failed")
        return got["statusCode"], got["headers"], got["body"]

    @staticmethod
    def body(raw: bytes, kind: str) -> dict:
        "Hand a body on as it came if it is text and says so; else in base64."
        try:
            text = raw.decode() if READABLE.match(kind) else None
        except UnicodeDecodeError:
            text = None
        whole = base64.b64encode(raw).decode() if text is None else text
        return {"body": whole, "isBase64Encoded": text is None} if raw else {}


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch, **FREE)


# ---- the document


def test_the_document_is_valid_openapi_and_names_every_route():
    schema = schemathesis.openapi.from_dict(contract.DOCUMENT)
    schema.validate()
    found = {operation.ok().label for operation in schema.get_all_operations()}
    assert found == {f"{method} {path}" for path, method in ROUTES.items()}


def test_it_is_served_and_may_be_kept_for_a_while(world):
    assert world.request("GET", "/openapi.json") == (200, openapi(world.settings, ROUTES))
    status, headers, _ = Gateway(world).ask("GET", "/openapi.json")
    assert (status, headers["cache-control"]) == (200, "public, max-age=300")
    for path in ("/status", "/nothing", "/start"):
        assert Gateway(world).ask("GET", path)[1]["cache-control"] == "no-store"


def test_a_405_names_the_method_that_is_allowed(world):
    for path, method in ROUTES.items():
        for other in {"GET", "POST", "PUT", "TRACE", "BREW"} - {method}:
            status, headers, _ = Gateway(world).ask(other, path)
            assert (status, headers["allow"]) == (405, method)


def raised(module: str, name: str) -> set[tuple]:
    "Find the constants among the first arguments of every call of `name` in a module of the package."
    tree = ast.parse((ROOT / "sentiment_engine" / f"{module}.py").read_text(encoding="utf-8"))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == name]
    return {tuple(a.value for a in call.args[:2] if isinstance(a, ast.Constant)) for call in calls}


def test_every_code_that_is_raised_is_described_with_its_status():
    ours = {found for found in raised("api", "ApiError") if len(found) == 2}
    assert len(ours) > 15 and ours <= {(status, code) for code, (status, _) in CODES.items()}
    container = {code for code, *_ in raised("inference", "InputError")}
    assert len(container) > 5 and container <= set(CODES)


MODULES = ("api", "guards", "model_state", "lifecycle", "inference")


def test_no_code_is_described_that_nothing_raises():
    sources = [(ROOT / "sentiment_engine" / f"{name}.py").read_text() for name in MODULES]
    assert [code for code in CODES if not any(f'"{code}"' in source for source in sources)] == []


# ---- requests that nobody would think of


def fuzz(schema) -> str:  # what went wrong
    "Let schemathesis try every kind of request: edge cases, wrong methods and random ones, valid and not."
    wrong = {}
    for event in from_schema(schema).execute():
        if isinstance(event, NonFatalError | FatalError):
            wrong[str(event.info if isinstance(event, NonFatalError) else event.exception)] = ""
        if isinstance(event, ScenarioFinished):
            for check in (c for checks in event.recorder.checks.values() for c in checks if c.failure_info):
                failure = check.failure_info
                wrong[f"{event.label}: {failure.failure.title}"] = f"{failure.failure.message}\n{failure.code_sample}"
    return "\n\n".join(f"{what}\n{how}" for what, how in wrong.items())


def plan(examples: int) -> SchemathesisConfig:
    "Say what is tried. A number can fit its schema and still be nobody's, so good requests may be refused."
    checks = {"positive_data_acceptance": {"enabled": False}}
    generation = {"max-examples": examples, "database": "none", "deterministic": True}
    return SchemathesisConfig.from_dict({"continue-on-failure": True, "generation": generation, "checks": checks})


def asleep(world: World):
    "Leave it as it is."


def awake(world: World):
    world.in_service()


def waking(world: World):
    world.start(ADA)


@pytest.mark.parametrize("state", [asleep, waking, awake])
def test_schemathesis_finds_no_answer_that_is_not_described(world, state):
    state(world)
    gateway = Gateway(world, sleepy=state is asleep)
    assert fuzz(schemathesis.openapi.from_wsgi("/openapi.json", gateway, config=plan(100))) == ""
    assert gateway.answers.total() > 250 and not [code for code in gateway.answers if code >= 500]
    assert {200, 202 if state is not awake else 200, 400, 405} <= set(gateway.answers)


@pytest.mark.parametrize(("limits", "status"), [({}, 429), ({"monthly_budget": 0.01}, 402)])
def test_schemathesis_against_the_guards(monkeypatch, limits, status):
    gateway = Gateway(World(monkeypatch, **limits), sleepy=True)
    assert fuzz(schemathesis.openapi.from_wsgi("/openapi.json", gateway, config=plan(30))) == ""
    assert gateway.answers[status] > 10 and max(gateway.answers) < 500
