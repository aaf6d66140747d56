"The API's description is complete, answers match it, and no request breaks the API."

import ast
import base64
import collections
import json
import re
from urllib.parse import urljoin

import httpx
import pytest
import schemathesis
from hypothesis import example, given, settings
from hypothesis import strategies as st
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import from_schema
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished

from sentiment_engine.service.api import BODY_LIMIT, ROUTES
from sentiment_engine.service.openapi import CODES, openapi
from tests import ROOT
from tests.doubles import clients, contract, odd_json
from tests.doubles.engine_double import ADA, World

FUNCTIONS = {
    "/start": "start-model-service",
    "/predict": "invoke-sagemaker-endpoint",
    "/extend": "extend-shutdown-timer",
    "/sleep": "shutdown-endpoint",
}
READABLE = re.compile(r"(text/|application/(json|javascript|xml))")  # passed on unchanged by API Gateway
FREE = {"number_cooldown_minutes": 0, "address_cooldown_seconds": 0, "daily_starts": 10**7, "daily_messages": 10**7}
FREE |= {"daily_messages_per_number": 10**7, "monthly_budget": 10**7}


class Gateway:
    "API Gateway as a WSGI application. It converts requests to events and counts the answers by status."

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
        "Send a request to the function of its route, and check the answer against the description."
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
        "Pass on a body unchanged if it is text with a text content type, otherwise in base64."
        try:
            text = raw.decode() if READABLE.match(kind) else None
        except UnicodeDecodeError:
            text = None
        whole = base64.b64encode(raw).decode() if text is None else text
        return {"body": whole, "isBase64Encoded": text is None} if raw else {}


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch, **FREE)


@pytest.fixture(scope="module")
def shared():
    "The engine, awake and behind its gateway, for many requests that should change nothing."
    with pytest.MonkeyPatch.context() as patch:
        world = World(patch, **FREE)
        world.in_service()
        yield Gateway(world)


# ---- the document


def test_the_document_is_valid_openapi_and_lists_every_route():
    schema = schemathesis.openapi.from_dict(contract.DOCUMENT)
    schema.validate()
    found = {operation.ok().label for operation in schema.get_all_operations()}
    assert found == {f"{method} {path}" for path, method in ROUTES.items()}


def test_the_document_is_served_with_a_cache_lifetime(world):
    assert world.request("GET", "/openapi.json") == (200, openapi(world.settings, ROUTES))
    status, headers, _ = Gateway(world).ask("GET", "/openapi.json")
    assert (status, headers["cache-control"]) == (200, "public, max-age=300")
    assert Gateway(world).ask("GET", "/status")[1]["cache-control"] == "max-age=0, s-maxage=2, stale-if-error=0"
    for path in ("/nothing", "/start"):
        assert Gateway(world).ask("GET", path)[1]["cache-control"] == "no-store"


def test_a_405_names_the_allowed_method(world):
    for path, method in ROUTES.items():
        for other in {"GET", "POST", "PUT", "TRACE", "BREW"} - {method}:
            status, headers, _ = Gateway(world).ask(other, path)
            assert (status, headers["allow"]) == (405, method)


def raised(module: str, name: str) -> set[tuple]:
    "Find the constants among the first arguments of every call of `name` in a module of the package."
    tree = ast.parse((ROOT / "sentiment_engine" / f"{module}.py").read_text(encoding="utf-8"))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == name]
    return {tuple(a.value for a in call.args[:2] if isinstance(a, ast.Constant)) for call in calls}


def test_every_raised_code_is_described_with_its_status():
    ours = {found for found in raised("service/api", "ApiError") if len(found) == 2}
    assert len(ours) > 15 and ours <= {(status, code) for code, (status, _) in CODES.items()}
    container = {code for code, *_ in raised("model/inference", "InputError")}
    assert len(container) > 5 and container <= set(CODES)


MODULES = ("service/api", "service/guards", "service/model_state", "service/lifecycle", "model/inference")


def test_every_described_code_is_raised_somewhere():
    sources = [(ROOT / "sentiment_engine" / f"{name}.py").read_text() for name in MODULES]
    assert [code for code in CODES if not any(f'"{code}"' in source for source in sources)] == []


# ---- unusual requests


def fuzz(schema) -> str:  # failures
    "Let schemathesis try every kind of request: edge cases, wrong methods and random ones, valid and invalid."
    wrong = {}
    for event in from_schema(schema).execute():
        if isinstance(event, NonFatalError | FatalError):
            wrong[str(event.info if isinstance(event, NonFatalError) else event.exception)] = ""
        if isinstance(event, ScenarioFinished):
            for check in (c for checks in event.recorder.checks.values() for c in checks if c.failure_info):
                failure = check.failure_info
                wrong[f"{event.label}: {failure.failure.title}"] = f"{failure.failure.message}\n{failure.code_sample}"
    return "\n\n".join(f"{what}\n{how}" for what, how in wrong.items())


def plan(examples: int, address: str = "http://localhost") -> SchemathesisConfig:
    "Describe the request. A number can match its schema without existing, so valid requests may be refused."
    checks = {"positive_data_acceptance": {"enabled": False}}
    generation = {"max-examples": examples, "database": "none", "deterministic": True}
    tried = {"continue-on-failure": True, "generation": generation, "checks": checks, "base-url": address}
    return SchemathesisConfig.from_dict(tried)


def asleep(world: World):
    "Return the value unchanged."


def awake(world: World):
    world.in_service()


def waking(world: World):
    world.start(ADA)


@pytest.mark.parametrize("state", [asleep, waking, awake])
def test_schemathesis_finds_no_undescribed_answer(world, state):
    state(world)
    gateway = Gateway(world, sleepy=state is asleep)
    assert fuzz(schemathesis.openapi.from_wsgi("/openapi.json", gateway, config=plan(100))) == ""
    assert gateway.answers.total() > 250 and not [code for code in gateway.answers if code >= 500]
    assert {200, 202 if state is not awake else 200, 400, 405} <= set(gateway.answers)


@pytest.mark.parametrize(("limits", "status"), [({}, 429), ({"monthly_budget": 0.01}, 402)])
def test_schemathesis_finds_no_undescribed_refusal(monkeypatch, limits, status):
    gateway = Gateway(World(monkeypatch, **limits), sleepy=True)
    assert fuzz(schemathesis.openapi.from_wsgi("/openapi.json", gateway, config=plan(30))) == ""
    assert gateway.answers[status] > 10 and max(gateway.answers) < 500


DEEP = b'{"inputs": ' + b"[" * 90_000 + b"]" * 90_000 + b"}"
GARBAGE = {
    "nothing": (b"", "application/json"),
    "not a number": (b'{"inputs": NaN}', "application/json"),
    "infinity as a name": (b'{"name": -Infinity, "inputs": Infinity}', "application/json"),
    "a number of 4,300 digits": (b'{"inputs": ' + b"9" * 4301 + b"}", "application/json"),
    "a large exponent": (b'{"inputs": 1e999999, "name": 1e999999}', "application/json"),
    "deep": (DEEP, "application/json"),
    "the same field twice": (b'{"inputs": "a", "inputs": 5, "name": "a", "name": 5}', "application/json"),
    "a byte order mark": (b'\xef\xbb\xbf{"inputs": "a"}', "application/json"),
    "UTF-16": ('{"inputs": "a"}'.encode("utf-16"), "application/json; charset=utf-16"),
    "broken UTF-8": (b'{"inputs": "\xff\xfe", "name": "\xff"}', "application/json"),
    "half a character": (b'{"inputs": ["\\ud83d"], "name": "\\ud83d", "phone": "\\udc00"}', "application/json"),
    "a null character": (b'{"inputs": "\\u0000", "name": "\\u0000", "phone": "\\u0000"}', "application/json"),
    "digits of another script": ('{"phone": "+١٢٠٢٥٥٥٠١٢٣"}'.encode(), "application/json"),
    "a form": (b"inputs=a&name=b", "application/x-www-form-urlencoded"),
    "a file": (b'--x\r\ncontent-disposition: form-data; name="inputs"\r\n\r\na\r\n--x--', "multipart/form-data"),
    "an archive": (b"\x1f\x8b\x08\x00" + bytes(64), "application/gzip"),
    "no type": (b'{"inputs": 5, "name": 5}', ""),
    "too large": (b'{"name": 5, "inputs": "' + b"x" * BODY_LIMIT + b'"}', "application/json"),
    "too large, in base64": (b"\xff" * (BODY_LIMIT + 1), "application/octet-stream"),
}


@pytest.mark.parametrize("what", GARBAGE)
@pytest.mark.parametrize("path", ["/start", "/predict", "/extend"])
def test_garbage_gets_a_described_answer(world, path, what):
    world.in_service()
    raw, kind = GARBAGE[what]
    status = Gateway(world).ask("POST", path, raw, kind)[0]
    assert status == 200 or 400 <= status < 500
    if what.startswith("too large"):
        assert status == (200 if path == "/extend" else 413)


def is_object(raw: bytes) -> bool:
    try:
        return isinstance(json.loads(raw.decode()), dict)
    except ValueError:
        return False


@given(st.binary(max_size=80), st.sampled_from(["/start", "/predict"]), st.sampled_from(["text/plain", "image/png"]))
@example(b"{}", "/start", "image/png")
@settings(max_examples=400, derandomize=True, database=None)
def test_random_bytes_are_refused(shared, raw, path, kind):
    status = shared.ask("POST", path, raw, kind)[0]
    if is_object(raw):  # bytes that form a request are answered as one
        assert status < 500
    else:
        assert status in (400, 413) or not raw


@given(odd_json.BODIES, st.sampled_from(["/start", "/predict"]), st.sampled_from(["application/json", "image/png"]))
@settings(max_examples=400, deadline=None, derandomize=True, database=None)
def test_odd_json_is_answered_or_refused(shared, raw, path, kind):
    assert shared.ask("POST", path, raw, kind)[0] in (200, 400, 413)


ODD = ["/STATUS", "/status/", "//status", "/./status", "/status%00", "/é", "/\ud800", "/" + "x" * 9000, "", "status"]


@pytest.mark.parametrize("path", ODD)
def test_odd_addresses_get_a_404(world, path):
    for method in ("GET", "POST", "get", "", "GET /status"):
        assert Gateway(world).ask(method, path)[0] == 404


# ---- over HTTP, against the deployed engine


def test_schemathesis_finds_no_undescribed_answer_over_http(engine):
    engine.use("good")
    engine.wake()
    engine.call("POST", "/extend")
    address = engine.api_url + "/openapi.json"
    document = httpx.get(address, timeout=60)
    assert document.json() == openapi(engine.settings, ROUTES) and "max-age" in document.headers["cache-control"]
    server = urljoin(address, document.json()["servers"][0]["url"])
    assert server == engine.api_url + "/"
    assert fuzz(schemathesis.openapi.from_url(address, config=plan(15, engine.api_url))) == ""
    assert engine.state() == "IN_SERVICE"


@pytest.mark.parametrize("ask", clients.PYTHON_AND_NODE)
def test_python_and_javascript_clients_are_answered(engine, ask):
    engine.use("good")
    engine.wake()
    assert json.loads(ask("GET", engine.api_url + "/status", "")[1])["state"] == "IN_SERVICE"
    assert json.loads(ask("POST", engine.api_url + "/start", "{}")[1])["outcome"] == "already-in-service"
    status, said = ask("POST", engine.api_url + "/predict", json.dumps({"inputs": ["lovely " * 1000] * 9}))
    assert status == 200 and len(json.loads(said)["predictions"]) == 9


def test_java_clients_are_answered(engine):
    engine.use("good")
    engine.wake()
    with clients.running_java() as java:
        for _ in range(2):
            assert json.loads(java.ask("GET", engine.api_url + "/status", "")[1])["state"] == "IN_SERVICE"
            for in_pieces in (False, True):
                status, said = java.ask("POST", engine.api_url + "/predict", '{"text": "lovely"}', in_pieces)
                assert status == 200 and json.loads(said)["predictions"][0]["label"] == "POSITIVE"
                assert java.ask("POST", engine.api_url + "/start", "{", in_pieces)[0] == 400


@pytest.mark.parametrize("what", sorted(clients.BYTES.keys() - {"a length and chunks"}))  # the gateway may parse it
def test_a_request_can_arrive_in_any_pieces(engine, what):
    engine.use("good")
    engine.wake()
    pieces, statuses = clients.BYTES[what]
    assert clients.talk(engine.api_url + "/predict", pieces, len(statuses)) == statuses


ODDITIES = {
    "no body": ("POST", "/predict", {}, b"", 400),
    "bytes": ("POST", "/predict", {"content-type": "image/png"}, b"\x89PNG\xff\x00", 400),
    "zipped text": ("POST", "/predict", {"content-encoding": "gzip", "content-type": "text/plain"}, b"\x1f\x8b", 415),
    "zipped": ("POST", "/predict", {"content-encoding": "gzip"}, b"\x1f\x8b\x08\x00\xff", 400),
    "a type of nonsense": ("POST", "/predict", {"content-type": ";;=,\x7f"}, b"{", 400),
    "very deep": ("POST", "/predict", {"content-type": "application/json"}, DEEP, 400),
    "too much": ("POST", "/predict", {"content-type": "application/json"}, b"x" * (BODY_LIMIT + 1), 413),
    "too much to start": ("POST", "/start", {"content-type": "application/json"}, b"x" * 10_241, 413),
    "another method": ("DELETE", "/status", {}, b"", 405),
    "an invented method": ("BREW", "/openapi.json", {}, b"", 405),
    "forged addresses": ("GET", "/status", {"x-forwarded-for": "'; DROP TABLE", "forwarded": "for=\xff"}, b"", 200),
    "a method in a header": ("GET", "/status", {"x-http-method-override": "DELETE"}, b"", 200),
    "another host": ("GET", "/nothing", {"x-forwarded-host": "evil.example"}, b"", 404),
    "an escaped address": ("GET", "/%2e%2e/status", {}, b"", 404),
}


@pytest.mark.parametrize("what", ODDITIES)
def test_odd_requests_over_http_get_described_answers(engine, what):
    method, path, headers, body, status = ODDITIES[what]
    with httpx.Client(timeout=60) as client:
        given = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        got = client.request(method, engine.api_url + path, headers=given, content=body)
    contract.check(method, path, got.status_code, got.headers, got.json())
    assert got.status_code == status


def test_the_api_guide_lists_every_field_of_the_status():
    told = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    fields = contract.DOCUMENT["components"]["schemas"]["Status"]["properties"]
    section = told[told.index("## Fields of /status") : told.index("## Phone numbers")]
    assert set(re.findall(r"`(\w+)`", section)) - set(fields["state"]["enum"] + fields["endpoint"]["enum"]) == set(
        fields
    )
    assert "is_running" in told and "is_running" in contract.DOCUMENT["components"]["schemas"]["Status"]["description"]
