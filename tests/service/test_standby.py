"The standby answers while the endpoint does not: every failure of the endpoint, its limits, and its own failures."

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from hypothesis import given, settings
from hypothesis import strategies as st

from sentiment_engine.costs import STANDBY_SECONDS, standby_worst_day
from sentiment_engine.deploy.plan import read_template
from sentiment_engine.service import standby
from sentiment_engine.service.lifecycle import AFTER_ENDPOINT, BEFORE_STANDBY, CLIENTS, client_of, engine_from
from sentiment_engine.service.model_state import CREATING, FAILED, IN_SERVICE, STOPPED, STOPPING
from sentiment_engine.service.usage import count_standby, day_of, read_usage
from sentiment_engine.settings import Settings
from tests import ROOT
from tests.doubles.engine_double import ADA, World, aws_error, logged

TEXT = "A secret review."
FUNCTION = "standby-model"


def ask(world: World, inputs=TEXT, **more) -> tuple[int, dict]:
    return world.request("POST", "/predict", {"inputs": inputs} | more)


def code_of(answer: tuple[int, dict]) -> tuple[int, str]:
    return answer[0], answer[1]["error"]["code"]


def model_error(**more) -> ClientError:
    "Make SageMaker's ModelError with the container's answer."
    return ClientError({"Error": {"Code": "ModelError", "Message": "Received an error"}, **more}, "InvokeEndpoint")


# ---- a model that is not in service


def stopping(world: World):
    "Bring the world to a run whose endpoint is being deleted."
    world.in_service()
    world.sagemaker.deaf = True
    world.pass_time(1900)


def failed(world: World):
    world.start()
    world.endpoint_becomes("Failed", "The role has no permission to download the model.")


STATES: dict[str, Callable[[World], object]] = {
    STOPPED: lambda world: None,
    CREATING: lambda world: world.start(ADA),
    STOPPING: stopping,
    FAILED: failed,
}


@pytest.mark.parametrize("state", STATES)
def test_the_standby_answers_in_every_state_and_changes_nothing(monkeypatch, state):
    world = World(monkeypatch).with_standby()
    STATES[state](world)
    before, calls = world.row, len(world.sagemaker.calls)
    status, body = ask(world, [TEXT, "Another."])
    assert (status, body["answeredBy"], body["modelVersion"]) == (200, "standby", "0f3c5a7e9b1d")
    assert len(body["predictions"]) == 2 and body["shutdownAt"] is None is body["secondsLeft"]
    assert world.standby.calls == [
        (FUNCTION, {"inputs": [TEXT, "Another."], "explain": False, "options": {"explain_seconds": 3}})
    ]
    assert world.row == before and before.state == state and len(world.sagemaker.calls) == calls


def test_an_explanation_by_the_standby_lists_its_words(monkeypatch):
    (told,) = ask(World(monkeypatch).with_standby(), explain=True)[1]["predictions"]
    assert [word["text"] for word in told["explanation"]] == [TEXT[:5]]


def test_the_endpoint_answers_while_it_is_in_service(monkeypatch):
    world = World(monkeypatch).with_standby()
    world.in_service()
    status, body = ask(world)
    assert (status, body["answeredBy"], body["modelVersion"]) == (200, "endpoint", "7") and not world.standby.calls


def test_without_a_standby_the_error_of_a_sleeping_model_says_what_to_do(monkeypatch):
    world = World(monkeypatch)
    status, body = ask(world)
    assert (status, body["error"]["code"]) == (409, "not_in_service") and "Press Start" in body["error"]["message"]
    assert world.status()["standby"] is None and not world.standby.calls


# ---- every failure of the endpoint

MISSING = aws_error("ValidationError", "Endpoint x of account 1 not found.")
FAILURES = {
    "throttled": aws_error("ThrottlingException", "Rate exceeded"),
    "not ready": aws_error("ModelNotReadyException"),
    "unavailable": aws_error("ServiceUnavailable"),
    "internal": aws_error("InternalFailure"),
    "denied": aws_error("AccessDeniedException"),
    "missing": MISSING,
    "overloaded container": model_error(OriginalStatusCode=429, OriginalMessage='{"error": {"code": "busy"}}'),
    "stopping container": model_error(OriginalStatusCode=503, OriginalMessage="x"),
    "failing container": model_error(OriginalStatusCode=500, OriginalMessage="Traceback"),
    "dead container": model_error(),
    "no answer in time": ReadTimeoutError(endpoint_url="https://x"),
    "unreachable": EndpointConnectionError(endpoint_url="https://x"),
    "rubbish": [{"label": "LABEL_1", "score": 0.9}],
}
BUSY = aws_error("TooManyRequestsException")
COMPLAINT = json.dumps({"error": {"code": "too_much_text", "message": "Too much text."}})


def failing(world: World, failure: object) -> World:
    "Bring the model into service, with an endpoint that fails next."
    world.in_service()
    world.clock.now += 100
    if isinstance(failure, list):
        world.sagemaker.answer = failure
    else:
        world.sagemaker.errors["invoke_endpoint"] = [failure]
    return world


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_the_standby_answers_for_a_failed_endpoint_without_keeping_it_awake(monkeypatch, caplog, failure):
    world = failing(World(monkeypatch).with_standby(), failure)
    deadline = world.row.shutdownAt
    status, body = ask(world)
    assert (status, body["answeredBy"]) == (200, "standby") and len(body["predictions"]) == 1
    gone = failure is MISSING
    assert (world.row.state, world.row.shutdownAt) == ((FAILED, 0) if gone else (IN_SERVICE, deadline))
    assert (body["secondsLeft"] is None) is gone
    assert TEXT not in logged(caplog)


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_if_both_fail_the_error_comes_from_the_endpoint(monkeypatch, failure):
    alone = failing(World(monkeypatch), failure)
    own = ask(alone)
    world = failing(World(monkeypatch).with_standby(), failure)
    world.standby.errors = [BUSY] * 3
    assert own[0] in (409, 502, 503, 504) and world.row.state == IN_SERVICE
    if failure is MISSING:  # the model does not serve any more, so the standby was the only one
        assert code_of(ask(world)) == (503, "busy")
    else:
        assert ask(world) == own
    assert world.row.state == alone.row.state and len(world.standby.calls) == 3


@pytest.mark.parametrize("status", [400, 413, 422])
def test_requests_refused_by_the_endpoint_are_not_sent_to_the_standby(monkeypatch, status):
    complaint = model_error(OriginalStatusCode=status, OriginalMessage=COMPLAINT)
    world = failing(World(monkeypatch).with_standby(), complaint)
    assert code_of(ask(world)) == (400, "too_much_text") and not world.standby.calls


def test_if_the_standby_is_used_up_the_error_comes_from_the_endpoint(monkeypatch):
    world = failing(World(monkeypatch, daily_standby_texts=1).with_standby(), FAILURES["throttled"])
    assert code_of(ask(world, [TEXT] * 2)) == (503, "busy") and not world.standby.calls


def test_an_endpoint_answer_moves_the_deadline_and_is_returned_even_if_that_fails(monkeypatch):
    world = World(monkeypatch).with_standby()
    world.in_service()
    world.clock.now += 100
    before = world.row.shutdownAt
    assert ask(world)[1]["secondsLeft"] == 1800 and world.row.shutdownAt == before + 100
    world.clock.now += 100
    refuse = aws_error("InternalServerError")
    monkeypatch.setattr("sentiment_engine.service.model_state.touch", lambda *_: (_ for _ in ()).throw(refuse))
    status, body = ask(world)
    assert (status, body["answeredBy"], body["secondsLeft"]) == (200, "endpoint", 1700)


def test_an_answer_during_a_shutdown_has_no_deadline(monkeypatch):
    world = World(monkeypatch).with_standby()
    world.in_service()
    invoke = world.sagemaker.do_invoke_endpoint

    def late(**given):
        answer = invoke(**given)
        monkeypatch.setattr(world.sagemaker, "do_invoke_endpoint", invoke)
        world.sagemaker.lock.release()
        world.pass_time(1900)
        world.sagemaker.lock.acquire()
        return answer

    monkeypatch.setattr(world.sagemaker, "do_invoke_endpoint", late, raising=False)
    status, body = ask(world)
    assert (status, body["answeredBy"], body["shutdownAt"]) == (200, "endpoint", None) and world.row.state == STOPPED


# ---- every failure of the standby

DOWN = {
    "missing": aws_error("ResourceNotFoundException"),
    "denied": aws_error("AccessDeniedException"),
    "internal": aws_error("ServiceException"),
    "no answer in time": ReadTimeoutError(endpoint_url="https://x"),
    "unreachable": EndpointConnectionError(endpoint_url="https://x"),
    "crashed": ({"FunctionError": "Unhandled"}, json.dumps({"errorMessage": TEXT}).encode()),
    "its own fault": ({}, json.dumps({"error": {"code": "x", "message": TEXT, "status": 500}}).encode()),
    "no JSON": ({}, TEXT.encode()),
    "no object": ({}, b"[1]"),
    "nothing": ({}, b"{}"),
    "an odd status": ({}, b'{"error": {"status": "odd"}}'),
    "too few": ({}, b'{"predictions": []}'),
    "no list": ({}, b'{"predictions": 5}'),
    "no scores": ({}, b'{"predictions": [{"label": "LABEL_1"}]}'),
}


def broken(world: World, fault: object) -> World:
    (world.standby.errors if isinstance(fault, Exception) else world.standby.payloads).append(fault)
    return world


@pytest.mark.parametrize("endpoint", ["realtime", "lambda"])
@pytest.mark.parametrize("fault", DOWN.values(), ids=DOWN)
def test_an_unavailable_standby_returns_advice_and_logs_no_text(monkeypatch, caplog, capsys, fault, endpoint):
    world = broken(World(monkeypatch, endpoint=endpoint).with_standby(), fault)
    got = ask(world)
    assert code_of(got) == (503, "standby_down") and "Try again in a few seconds" in got[1]["error"]["message"]
    assert ("start the large model" in got[1]["error"]["message"]) is (endpoint == "realtime")
    assert TEXT not in logged(caplog) + capsys.readouterr().out + str(got)
    assert ask(world)[0] == 200


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_busy_standby_is_retried_before_the_error_is_returned(monkeypatch, times):
    world = World(monkeypatch, daily_standby_texts=1).with_standby()
    world.standby.errors = [BUSY] * times
    status, body = ask(world)
    assert status == 200 if times < 3 else (status, body["error"]["code"]) == (503, "busy")
    assert len(world.standby.calls) == min(3, times + 1) and world.status()["standby"]["leftToday"] == (times == 3)


@pytest.mark.parametrize("endpoint", ["realtime", "lambda"])
def test_requests_that_find_the_standby_busy_do_not_use_up_the_day(monkeypatch, endpoint):
    "A crowd may ask often while all instances are occupied."
    world = World(monkeypatch, endpoint=endpoint, daily_standby_texts=25).with_standby()
    world.standby.errors = [BUSY] * 30
    assert {code_of(ask(world, [TEXT] * 25)) for _ in range(10)} == {(503, "busy")}
    assert ask(world, [TEXT] * 25)[0] == 200 and world.status()["standby"]["leftToday"] == 0


def test_a_count_that_cannot_be_returned_lowers_the_limit_only(monkeypatch):
    world = World(monkeypatch, daily_standby_texts=2).with_standby()
    world.standby.errors = [BUSY] * 3
    refuse = aws_error("ThrottlingException")
    monkeypatch.setattr(standby, "uncount_standby", lambda *given: (_ for _ in ()).throw(refuse))
    assert code_of(ask(world)) == (503, "busy")
    assert ask(world)[0] == 200 and world.status()["standby"]["leftToday"] == 0


@pytest.mark.parametrize("beside", [True, False])
def test_an_explanation_gets_as_much_time_as_its_caller_waits(monkeypatch, beside):
    world = World(monkeypatch)
    world = world.with_standby() if beside else world
    world.in_service()
    ask(world, explain=True)
    sent = [json.loads(given["Body"]) for name, given in world.sagemaker.calls if name == "invoke_endpoint"][-1]
    assert sent.get("options") == ({"explain_seconds": standby.ENDPOINT_EXPLAINS} if beside else None)
    assert CLIENTS[BEFORE_STANDBY][3] > standby.ENDPOINT_EXPLAINS
    assert CLIENTS[AFTER_ENDPOINT][3] > standby.STANDBY_EXPLAINS


def test_a_refusal_by_the_standby_is_a_client_error(monkeypatch):
    told = {"error": {"code": "empty_input", "message": "Text 1 is empty.", "status": 400}}
    world = broken(World(monkeypatch).with_standby(), ({}, json.dumps(told).encode()))
    status, body = ask(world)
    assert (status, body["error"]) == (400, {"code": "empty_input", "message": "Text 1 is empty."})


# ---- the limits of the standby

SHORT = standby.STANDBY_EXPLAINED


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 3_000) | st.sampled_from([1, 999, 1_000, 1_001, 10_000]), min_size=1, max_size=30),
    st.booleans(),
)
def test_the_standby_accepts_requests_exactly_up_to_its_limits(lengths, explain):
    why = standby.why_not(["x" * n for n in lengths], explain)
    within = len(lengths) <= 25 and sum(lengths) <= 20_000 and (not explain or sum(lengths) <= 1_000)
    assert (why == "") is within


EDGES = {
    "25 texts": ([TEXT] * 25, [TEXT] * 26, False),
    "20,000 characters": (["x" * 10_000] * 2, ["x" * 10_000] * 2 + ["x"], False),
    "1,000 characters with explain": (["x" * SHORT], ["x" * (SHORT + 1)], True),
    "1,000 characters with explain, in two texts": (["x" * 500] * 2, ["x" * 500, "x" * 501], True),
}


@pytest.mark.parametrize(("most", "more", "explain"), EDGES.values(), ids=EDGES)
def test_beyond_the_limits_the_error_of_a_sleeping_model_says_what_to_do(monkeypatch, most, more, explain):
    world = World(monkeypatch).with_standby()
    assert ask(world, most, explain=explain)[0] == 200
    status, body = ask(world, more, explain=explain)
    assert (status, body["error"]["code"], body["error"]["state"]) == (409, "not_in_service", STOPPED)
    assert "Press Start" in body["error"]["message"] and "The small model" in body["error"]["message"]
    assert len(world.standby.calls) == 1 and world.status()["standby"]["leftToday"] == 5_000 - len(most)


@pytest.mark.parametrize(("most", "more", "explain"), EDGES.values(), ids=EDGES)
def test_beyond_the_limits_a_failing_endpoint_returns_its_own_error(monkeypatch, most, more, explain):
    world = failing(World(monkeypatch).with_standby(), FAILURES["throttled"])
    assert code_of(ask(world, more, explain=explain)) == (503, "busy") and not world.standby.calls


def test_a_long_list_moves_the_deadline_before_the_endpoint_answers(monkeypatch):
    world = failing(World(monkeypatch).with_standby(), FAILURES["no answer in time"])
    before = world.row.shutdownAt
    assert ask(world, [TEXT] * 26)[0] == 504 and world.row.shutdownAt == before + 100


# ---- the daily limit


def test_the_daily_text_limit_resets_the_next_day(monkeypatch):
    world = World(monkeypatch, daily_standby_texts=10).with_standby()
    assert world.status()["standby"] == {
        **{"modelVersion": "0f3c5a7e9b1d", "textLimit": 25, "characterLimit": 20_000, "explainLimit": 1_000},
        **{"dailyTexts": 10, "leftToday": 10, "memoryMb": 1769},
    }
    assert [ask(world, [TEXT] * n)[0] for n in (7, 4, 3, 1)] == [200, 429, 200, 429]
    assert world.status()["standby"]["leftToday"] == 0 and len(world.standby.calls) == 2
    status, body = ask(world)
    assert (status, body["error"]["code"]) == (429, "standby_limit") and "Start the large model" in body["error"][
        "message"
    ]
    midnight = datetime.fromtimestamp(world.clock.now + body["error"]["retryAfterSeconds"], UTC)
    assert (midnight.hour, midnight.minute) == (0, 0)
    world.clock.now += body["error"]["retryAfterSeconds"]
    assert ask(world)[0] == 200 and world.status()["standby"]["leftToday"] == 9


def test_the_daily_limit_holds_for_simultaneous_requests(monkeypatch):
    world = World(monkeypatch, daily_standby_texts=30).with_standby()
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda n: ask(world, [TEXT] * (1 + n % 2))[0], range(40)))
    answered = sum(len(request["inputs"]) for _, request in world.standby.calls)
    assert answered == 30 == read_usage(world.engine.usage).standby[day_of(world.clock.now)]
    assert set(statuses) == {200, 429}


def test_the_daily_count_survives_the_loss_of_the_row(monkeypatch):
    world = World(monkeypatch, daily_standby_texts=3).with_standby()
    world.in_service()
    world.pass_time(1900)
    assert ask(world, [TEXT] * 2)[0] == 200
    world.dynamodb.delete_item(TableName=world.engine.table.name, Key=world.engine.table.key)
    assert world.status()["standby"]["leftToday"] == 1 and code_of(ask(world, [TEXT] * 2)) == (429, "standby_limit")


TODAY = day_of(1_800_000_000)
ODD = {
    "nothing": {},
    "no map": {"standby": {"S": "many"}},
    "a text": {"standby": {"M": {TODAY: {"S": "many"}}}},
    "below zero": {"standby": {"M": {TODAY: {"N": "-5"}}}},
    "no end": {"standby": {"M": {TODAY: {"N": "1e30"}}}},
    "old days": {"standby": {"M": {f"2020-01-{n:02}": {"N": "5"} for n in range(1, 31)}}},
}


@pytest.mark.parametrize("item", ODD.values(), ids=ODD)
def test_an_edited_item_is_repaired_and_counts(monkeypatch, item):
    world = World(monkeypatch, daily_standby_texts=3).with_standby()
    table = world.engine.usage
    world.dynamodb.put_item(TableName=table.name, Item=table.key | item)
    assert world.status()["standby"]["leftToday"] == 3
    assert [ask(world)[0] for _ in range(4)] == [200, 200, 200, 429]
    assert read_usage(table).standby == {TODAY: 3}


def test_clock_differences_at_midnight_lose_no_count(monkeypatch):
    table, midnight = World(monkeypatch).engine.usage, 1_800_057_600
    assert day_of(midnight - 1) != day_of(midnight)
    for now in (midnight - 1, midnight, midnight - 1, midnight + 1):
        assert count_standby(table, 2, 5, now)
    assert read_usage(table).standby == {day_of(midnight - 1): 4, day_of(midnight): 4}
    assert not count_standby(table, 2, 5, midnight) and not count_standby(table, 2, 5, midnight - 1)
    assert count_standby(table, 1, 5, midnight + 86_400)
    assert read_usage(table).standby == {day_of(midnight): 4, day_of(midnight + 86_400): 1}


def test_a_typical_request_takes_one_write_and_no_usage_read(monkeypatch):
    world = World(monkeypatch).with_standby()
    ask(world)
    calls, real = [], world.dynamodb

    class Counted:
        def __getattr__(self, name):
            return lambda **given: calls.append((name, given["TableName"])) or getattr(real, name)(**given)

    world.clients["dynamodb"] = Counted()
    assert ask(world)[0] == 200
    assert calls == [("get_item", world.engine.table.name), ("update_item", world.engine.usage.name)]


def test_a_count_whose_answer_was_lost_never_raises_the_limit(monkeypatch):
    world = World(monkeypatch, daily_standby_texts=10).with_standby()
    real = world.dynamodb

    class Twice:
        def __getattr__(self, name):
            return getattr(real, name)

        def update_item(self, **given):
            real.update_item(**given)
            return real.update_item(**given)

    ask(world)
    world.clients["dynamodb"] = Twice()
    answered = 1 + sum(ask(world)[0] == 200 for _ in range(9))
    assert answered < 10 and read_usage(replace(world.engine.usage, dynamodb=real)).standby[TODAY] <= 10


# ---- time limits


def test_the_endpoint_and_the_standby_together_answer_within_ten_seconds(monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    configs = [client_of(name).meta.config for name in (BEFORE_STANDBY, AFTER_ENDPOINT, "lambda")]
    assert {each.retries["total_max_attempts"] for each in configs} == {1}
    quick, after, alone = (each.connect_timeout + each.read_timeout for each in configs)
    waits = sum(standby.BUSY_WAITS)
    assert quick + after + waits <= 10 and alone + waits <= 10


def test_the_worst_daily_cost_is_computed_from_the_template(monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    function = read_template(ROOT / "infra_scripts/templates/backend.yaml")["Resources"]["StandbyModel"]["Properties"]
    assert function["Timeout"] == STANDBY_SECONDS == client_of("lambda").meta.config.read_timeout
    most = f"${standby_worst_day(Settings().daily_standby_texts, Settings().standby_memory_mb):.2f}"
    for guide in ("docs/api.md", "docs/operations.md"):
        assert most in (ROOT / guide).read_text(encoding="utf-8"), guide


@pytest.mark.parametrize(
    ("inputs", "names"), [(TEXT, [BEFORE_STANDBY, AFTER_ENDPOINT]), ([TEXT] * 26, ["sagemaker-runtime"])]
)
def test_the_endpoint_timeout_is_short_only_if_the_standby_can_take_over(monkeypatch, inputs, names):
    world = failing(World(monkeypatch).with_standby(), FAILURES["no answer in time"])
    asked = []
    world.use(replace(world.engine, client=lambda name: asked.append(name) or world.clients[name]))
    ask(world, inputs)
    assert [name for name in asked if name != "dynamodb"] == names


def test_while_asleep_the_standby_gets_the_full_time(monkeypatch):
    world, asked = World(monkeypatch).with_standby(), []
    world.use(replace(world.engine, client=lambda name: asked.append(name) or world.clients[name]))
    assert ask(world)[0] == 200 and [name for name in asked if name != "dynamodb"] == ["lambda"]


# ---- other kinds of endpoints


def test_the_standby_answers_for_a_waking_or_over_budget_serverless_endpoint(monkeypatch):
    world = World(monkeypatch, endpoint="serverless").with_standby()
    world.sagemaker.endpoints[f"{world.settings.prefix}-serverless"] = {"status": "InService", "reason": ""}
    assert ask(world)[1]["answeredBy"] == "endpoint"
    world.sagemaker.errors["invoke_endpoint"] = [aws_error("ModelNotReadyException")]
    assert ask(world)[1]["answeredBy"] == "standby"
    world = World(monkeypatch, endpoint="serverless", monthly_budget=1e-9).with_standby()
    assert ask(world)[1]["answeredBy"] == "standby" and not world.sagemaker.calls


@pytest.fixture
def alone(monkeypatch) -> World:
    "An engine without any endpoint, whose row must never be read."
    world = World(monkeypatch, endpoint="lambda", daily_standby_texts=40).with_standby()
    monkeypatch.setattr("sentiment_engine.service.model_state.read_row", lambda _: pytest.fail("the row was read"))
    return world


def test_without_an_endpoint_the_model_is_always_in_service(alone):
    told = alone.status()
    assert (told["state"], told["endpoint"], told["batchLimit"]) == (IN_SERVICE, "lambda", 25)
    nothing = ("shutdownAt", "secondsLeft", "runId", "instanceType", "pricePerHour", "costSoFar", "elapsedSeconds")
    assert {told[name] for name in nothing} == {None} and told["standby"]["leftToday"] == 40
    code, body = alone.start(ADA)
    assert (code, body["outcome"]) == (200, "already-in-service")
    assert alone.request("POST", "/extend")[1]["state"] == IN_SERVICE
    code, body = ask(alone)
    assert (code, body["answeredBy"], body["shutdownAt"]) == (200, "standby", None)
    assert not alone.sagemaker.calls and not alone.phone.sent and not alone.scheduler.schedules


@pytest.mark.parametrize(("most", "more", "explain"), EDGES.values(), ids=EDGES)
def test_without_an_endpoint_an_oversized_request_is_a_client_error(alone, most, more, explain):
    assert ask(alone, most, explain=explain)[0] == 200
    status, body = ask(alone, more, explain=explain)
    assert status == 400 and body["error"]["code"] in ("too_many_texts", "too_much_text")
    assert "Start" not in body["error"]["message"] and len(alone.standby.calls) == 1


def test_without_an_endpoint_the_limit_error_does_not_offer_a_start(alone):
    assert ask(alone, [TEXT] * 25)[0] == 200
    status, body = ask(alone, [TEXT] * 25)
    assert (status, body["error"]["code"]) == (429, "standby_limit") and "Start" not in body["error"]["message"]


def test_a_run_still_ends_after_the_endpoint_setting_is_removed(monkeypatch):
    world = World(monkeypatch)
    world.in_service()
    own = replace(world.settings, endpoint="lambda")
    world.use(replace(world.engine, settings=own, standby=FUNCTION))
    assert ask(world)[1]["answeredBy"] == "standby" and world.sagemaker.endpoints
    world.pass_time(1900, reconcile=True)
    assert world.nothing_left() and world.usage.spent


# ---- reports and configuration


def test_standby_answers_and_failures_are_reported_as_metrics(monkeypatch, capsys):
    world = World(monkeypatch, daily_standby_texts=6).with_standby()
    ask(world, [TEXT] * 3)
    failing(world, FAILURES["throttled"])
    ask(world, [TEXT] * 2)
    world.pass_time(1900)
    ask(world, [TEXT] * 2)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if "SentimentEngine" in line]
    told = [(line["Reason"], line["StandbyPredictions"]) for line in lines if "StandbyPredictions" in line]
    assert told == [("not_in_service", [3.0]), ("busy", [2.0])]
    assert [line["Code"] for line in lines if "Refusals" in line] == ["standby_limit"]
    assert all("StandbyMilliseconds" in line for line in lines if "Predictions" in line)


def test_a_standby_failure_is_counted_as_a_metric(monkeypatch, capsys):
    ask(broken(World(monkeypatch).with_standby(), DOWN["denied"]))
    assert '"StandbyFailures":[1.0]' in capsys.readouterr().out.replace(" ", "")


def test_a_lambda_reads_the_standby_settings_from_its_environment():
    engine = engine_from({"STANDBY_FUNCTION": "arn:f:7", "STANDBY_MODEL_VERSION": "0f3c5a7e9b1d"})
    assert (engine.standby, engine.standby_version, engine_from({}).standby) == ("arn:f:7", "0f3c5a7e9b1d", "")
