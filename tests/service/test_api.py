"The HTTP API's answer to every kind of request, good or bad; a bad one changes nothing."

import base64
import gzip
import io
import json
import logging
import re

import pytest
from botocore.exceptions import EndpointConnectionError, ReadTimeoutError
from hypothesis import given
from hypothesis import strategies as st

from sentiment_engine.model.inference import MAX_EXPLAINED
from sentiment_engine.service import model_state
from sentiment_engine.service.api import BODY_LIMIT, ROUTES
from sentiment_engine.service.notifications import BadPhone, e164
from sentiment_engine.service.openapi import EXPLAIN_LIMIT
from tests.doubles import contract
from tests.doubles.engine_double import ADA, World, aws_error, load_handler, logged
from tests.doubles.phones import ACCEPTED, DASHES, EMPTY, MARKS, NUMBER, OTHERS, REFUSED, SPACES

LONG = "x" * 10_001


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


BAD_TEXTS = [
    ({"text": None}, "missing_inputs"),
    ({"text": ""}, "empty_text"),
    ({"text": ["fine", 5]}, "not_text"),
    ({"text": ["x"] * 11, "explain": True}, "too_many_explained"),
    ({"inputs": "one", "text": "another"}, "two_inputs"),
    ({"inputs": ["one"], "text": 5}, "two_inputs"),
    ({"inputs": "half \udc00 character"}, "invalid_text"),
    ({"text": ["fine", "half \udc00 character"]}, "invalid_text"),
    ({"inputs": "x", "parameters": {"function_to_apply": "sigmoid"}}, "unsupported_parameter"),
    ({"inputs": "x", "parameters": {"temperature": 0.5}}, "unsupported_parameter"),
    ({"inputs": "x", "parameters": {"top_k": 0}}, "unsupported_parameter"),
    ({"inputs": "x", "parameters": {"max_length": 8}}, "unsupported_parameter"),
    ({"inputs": "x", "parameters": [1]}, "unsupported_parameter"),
    ({}, "missing_inputs"),
    ({"inputs": None}, "not_text"),
    ({"inputs": ""}, "empty_text"),
    ({"inputs": " \n\t"}, "empty_text"),
    ({"inputs": 5}, "not_text"),
    ({"inputs": {"text": "x"}}, "not_text"),
    ({"inputs": LONG}, "text_too_long"),
    ({"inputs": []}, "missing_inputs"),
    ({"inputs": ["fine", ""]}, "empty_text"),
    ({"inputs": ["fine", 5]}, "not_text"),
    ({"inputs": ["fine", LONG]}, "text_too_long"),
    ({"inputs": ["x"] * 1001}, "too_many_texts"),
    *(({"inputs": f"half {half} character"}, "invalid_text") for half in ("\ud800", "\udbff", "\udfff")),
    ({"inputs": "x", "explain": 1}, "invalid_explain"),
    ({"inputs": ["x"] * 11, "explain": True}, "too_many_explained"),
]


@pytest.mark.parametrize(("body", "code"), BAD_TEXTS)
def test_invalid_texts_are_refused(world, body, code):
    world.in_service()
    before = world.row
    world.clock.now += 600
    status, got = world.request("POST", "/predict", body)
    assert (status, got["error"]["code"]) == (400, code) and got["error"]["message"]
    assert world.row == before


@pytest.mark.parametrize(
    "body",
    [
        {"text": "Great."},
        {"text": ["Great."], "inputs": None},
        {"inputs": "Great.", "text": None, "explain": None, "parameters": None},
        {"inputs": "Great.", "parameters": {}},
        {"inputs": "Great.", "parameters": {"top_k": 2, "function_to_apply": "softmax", "truncation": True}},
        {"inputs": "Great.", "parameters": {"top_k": None, "function_to_apply": None, "temperature": None}},
        {"text": "Great.", "parameters": {"return_all_scores": True, "padding": "longest"}},
    ],
)
def test_request_formats_of_other_clients_are_accepted(world, body):
    "The first version's, and Hugging Face's."
    world.in_service()
    plain = world.request("POST", "/predict", {"inputs": "Great."})
    status, got = world.request("POST", "/predict", body)
    assert (status, got["predictions"]) == (plain[0], plain[1]["predictions"]) == (200, got["predictions"])
    assert json.loads(world.sagemaker.calls[-1][1]["Body"]) == {"inputs": ["Great."]}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", {"inputs": "x" * 10_000}),
        ("/predict", {"inputs": ["x"] * 1000}),
        ("/predict", {"inputs": ["x"] * EXPLAIN_LIMIT, "explain": True}),
        ("/start", {"name": "n" * 80, "phone": ADA}),
    ],
    ids=["a text", "a list", "a list to explain", "a name"],
)
def test_values_exactly_at_a_limit_are_accepted(world, path, body):
    if path == "/predict":
        world.in_service()
    assert world.request("POST", path, body)[0] in (200, 202)


@pytest.mark.parametrize(("more", "status"), [(0, 200), (1, 413)])
def test_a_body_is_accepted_up_to_its_size_limit(world, more, status):
    world.in_service()
    raw = '{"inputs": "Great."}'
    assert world.request("POST", "/predict", raw=raw + " " * (BODY_LIMIT - len(raw) + more))[0] == status


@pytest.mark.parametrize("name", ["function_to_apply", "temperature", "\udc00"])
def test_the_error_names_a_parameter_that_would_change_the_answer(world, name):
    world.in_service()
    _, got = world.request("POST", "/predict", {"inputs": "x", "parameters": {"top_k": 1, name: "none"}})
    assert got["error"]["code"] == "unsupported_parameter" and f"parameters.{name}" in got["error"]["message"]


GZIP = {"content-encoding": "gzip"}
GREAT = b'{"inputs": "Great."}'
PACKED = {
    "gzip": (gzip.compress(GREAT), GZIP, 200),
    "a byte order mark": (b"\xef\xbb\xbf" + GREAT, {}, 200),
    "nothing": (GREAT, {"content-encoding": "identity"}, 200),
    "not as it says": (GREAT, GZIP, 400),
    "cut off": (gzip.compress(GREAT)[:-4], GZIP, 400),
    "far more than it seems": (gzip.compress(bytes(50_000_000)), GZIP, 413),
    "another coding": (GREAT, {"content-encoding": "br"}, 415),
}


@pytest.mark.parametrize("how", PACKED)
def test_a_compressed_body_is_decompressed_or_refused(world, how):
    world.in_service()
    raw, headers, status = PACKED[how]
    event = {"routeKey": "POST /predict", "headers": headers, "isBase64Encoded": True}
    event["body"] = base64.b64encode(raw).decode()
    got = world.handlers["invoke-sagemaker-endpoint"].handler(event, None)
    assert got["statusCode"] == status
    contract.check("POST", "/predict", status, got["headers"], json.loads(got["body"]))


def test_a_compressed_body_mangled_by_the_gateway_is_refused(world):
    event = {"routeKey": "POST /predict", "headers": GZIP, "isBase64Encoded": False}
    event["body"] = gzip.compress(GREAT).decode("utf-8", "replace")
    got = world.handlers["invoke-sagemaker-endpoint"].handler(event, None)
    assert (got["statusCode"], json.loads(got["body"])["error"]["code"]) == (415, "unsupported_encoding")


NATIONAL = {
    "202 555 0123": "+1 for US",
    "12025550123": "+1 for US",
    "07911 123456": "+44 for GB",
    "01512 3456789": "+49 for DE",
    "06 12 34 56 78": "+33 for FR",
    "98765 43210": "+91 for IN",
    "call me": "+1 202 555 0123",
}


@pytest.mark.parametrize("number", NATIONAL)
def test_a_national_number_gets_a_hint_about_the_country_code(world, number):
    status, got = world.request("POST", "/start", {"phone": number})
    assert (status, got["error"]["code"]) == (400, "invalid_phone") and NATIONAL[number] in got["error"]["message"]
    assert ("Leave out the leading 0" in got["error"]["message"]) is (number[0] == "0" and number[:2] != "00")
    assert not world.sagemaker.calls


BAD_BODIES = [
    "{",
    "[1]",
    '"text"',
    "5",
    "null",
    " \n",
    "[" * 9_000,
    '{"inputs": ' + "1" * 5000 + "}",
    "\ud800",
    "{'inputs': 'x'}",
]


@pytest.mark.parametrize("raw", BAD_BODIES)
@pytest.mark.parametrize("path", ["/predict", "/start"])
def test_invalid_bodies_are_refused(world, path, raw):
    status, got = world.request("POST", path, raw=raw)
    assert (status, got["error"]["code"]) == (400, "invalid_json") and not world.sagemaker.calls


def test_bad_base64_and_an_oversized_body_are_refused(world):
    handler = world.handlers["invoke-sagemaker-endpoint"].handler
    got = handler({"routeKey": "POST /predict", "body": "%%%", "isBase64Encoded": True}, None)
    assert got["statusCode"] == 400 and json.loads(got["body"])["error"]["code"] == "invalid_body"
    status, got = world.request("POST", "/predict", {"inputs": ["x" * 9999] * 600})
    assert (status, got["error"]["code"]) == (413, "body_too_large")


BAD_VISITORS = [
    ({"phone": "12345"}, "invalid_phone"),
    ({"phone": "call me"}, "invalid_phone"),
    ({"phone": "2025550123"}, "invalid_phone"),  # no country code
    ({"phone": "+1 202 555"}, "invalid_phone"),
    ({"phone": "+882 16 5555 0000"}, "invalid_phone"),  # a satellite network
    ({"phone": "+49 900 1234567"}, "invalid_phone"),  # premium rate: its owner earns money with each message
    ({"phone": "+44 20 7946 0000"}, "invalid_phone"),  # a landline
    ({"phone": "+7 912 345-67-89"}, "invalid_phone"),  # a country not on the list
    ({"phone": 12025550123}, "invalid_phone"),
    ({"phone": 0}, "invalid_phone"),
    ({"phone": False}, "invalid_phone"),
    ({"phone": []}, "invalid_phone"),
    ({"name": {}}, "invalid_name"),
    ({"phone": ["+12025550123"]}, "invalid_phone"),
    ({"phone": "+" + "1" * 100}, "invalid_phone"),
    ({"name": "x" * 81}, "invalid_name"),
    ({"name": ["Ada"]}, "invalid_name"),
]


@pytest.mark.parametrize(("body", "code"), BAD_VISITORS)
def test_an_invalid_start_request_starts_nothing(world, body, code):
    status, got = world.request("POST", "/start", body)
    assert (status, got["error"]["code"]) == (400, code)
    assert world.status()["state"] == "STOPPED" and not world.sagemaker.calls


@pytest.mark.parametrize("body", [{}, {"phone": ""}, {"phone": None, "name": None}, {"name": "Ada"}, None])
def test_a_start_needs_neither_name_nor_number(world, body):
    status, got = world.request("POST", "/start", body)
    assert (status, got["outcome"], got["subscribers"]) == (202, "started", 0)


def test_a_number_is_stored_in_one_format(world):
    world.start("+1 (202) 555-0123")
    world.start("+12025550123")
    assert world.status()["subscribers"] == 1


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"])
def test_wrong_methods_get_a_405(world, path, method):
    if ROUTES[path] != method:
        status, got = world.request(method, path)
        assert (status, got["error"]["code"]) == (405, "method_not_allowed") and ROUTES[path] in got["error"]["message"]


@pytest.mark.parametrize("path", ["/", "/nothing", "/status/", "/predict/x", "/../status", "/%00"])
def test_unknown_routes_get_a_404(world, path):
    status, got = world.request("GET", path)
    assert (status, got["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["/predict", "/extend"])
def test_requests_get_a_409_while_the_model_is_not_in_service(world, path):
    body = {"inputs": "Great."}
    status, got = world.request("POST", path, body)
    assert (status, got["error"]["code"], got["error"]["state"]) == (409, "not_in_service", "STOPPED")
    assert got["error"]["etaSeconds"] == 420
    world.start()
    world.clock.now += 100
    got = world.request("POST", path, body)[1]
    assert (got["error"]["state"], got["error"]["etaSeconds"]) == ("CREATING", 320)


def test_a_start_without_a_registered_model_is_refused(world):
    world.model = None
    status, got = world.start(ADA)
    assert (status, got["error"]["code"]) == (503, "no_model") and "04_endpoint_deployment" in got["error"]["message"]
    assert world.status()["subscribers"] == 0


def model_error(status: int, message: str):
    "Make the runtime's exception for an error of the container."
    error = aws_error("ModelError", "Received client error")
    error.response |= {"OriginalStatusCode": status, "OriginalMessage": message}
    return error


@pytest.mark.parametrize("code", ["busy", "loading", "draining", None])
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_container_response_says_when_to_retry(world, code, status):
    world.in_service()
    said = json.dumps(
        {"error": {"code": code, "message": "not now"}} if code else {"code": status, "message": "no worker"}
    )
    world.sagemaker.errors["invoke_endpoint"] = [model_error(status, said)]
    event = {"version": "2.0", "routeKey": "POST /predict", "rawPath": "/predict", "body": '{"inputs": "good"}'}
    got = world.handlers["invoke-sagemaker-endpoint"].handler(event, None)
    assert (got["statusCode"], json.loads(got["body"])["error"]["code"]) == (503, "busy")
    assert int(got["headers"]["retry-after"]) > 0
    assert world.request("POST", "/predict", {"inputs": "good"})[0] == 200, "it stops nothing"


REFUSALS = [
    (model_error(400, '{"error": {"code": "bad_input", "message": "no"}}'), 400, "bad_input"),
    (model_error(400, "plain text"), 400, "bad_input"),
    (model_error(400, "[" * 90_000), 400, "bad_input"),
    (model_error(400, '{"error": [1, 2]}'), 400, "bad_input"),
    (model_error(429, '{"error": {"code": "busy", "message": "too many"}}'), 503, "busy"),
    (model_error(500, "Traceback (most recent call last)"), 502, "model_error"),
    (aws_error("ThrottlingException", "Rate exceeded"), 503, "busy"),
    (aws_error("ModelNotReadyException"), 503, "busy"),
    (aws_error("ServiceUnavailable"), 503, "busy"),
    (aws_error("InternalFailure"), 502, "model_error"),
    (aws_error("AccessDeniedException", "User: arn:aws:… is not authorized"), 502, "model_error"),
    (ReadTimeoutError(endpoint_url="https://x"), 504, "model_timeout"),
    (EndpointConnectionError(endpoint_url="https://x"), 504, "model_timeout"),
]


@pytest.mark.parametrize(("error", "status", "code"), REFUSALS)
def test_every_sagemaker_error_becomes_an_api_error(world, error, status, code):
    world.in_service()
    world.sagemaker.errors["invoke_endpoint"] = [error]
    got = world.request("POST", "/predict", {"inputs": "Great."})
    assert (got[0], got[1]["error"]["code"]) == (status, code)
    assert "Traceback" not in json.dumps(got) and "arn:" not in json.dumps(got)
    assert world.status()["state"] == "IN_SERVICE"


GOOD = {"label": "POSITIVE", "score": 0.9}
NONSENSE = ["no", "[" * 90_000, GOOD, ["POSITIVE"], [], [None], [GOOD, GOOD], [{}], [{"label": "POSITIVE"}], 7, None]
NONSENSE += [[GOOD | {"label": label}] for label in ("LABEL_1", None, ["POSITIVE"], {})]
NONSENSE += [[GOOD | {"score": score}] for score in ("0.9", None, float("nan"), -0.1, 1.1, 10**400)]
NONSENSE += [[GOOD | {"explanation": words}] for words in (None, 5, ["x"], [{"start": 0}], [{"start": "a", "end": 2}])]


@pytest.mark.parametrize("nonsense", NONSENSE, ids=lambda nonsense: str(nonsense)[:40])
def test_an_invalid_model_answer_becomes_a_502(world, monkeypatch, nonsense):
    world.in_service()
    body = nonsense.encode() if isinstance(nonsense, str) else json.dumps(nonsense).encode()
    monkeypatch.setattr(world.sagemaker, "do_invoke_endpoint", lambda **_: {"Body": io.BytesIO(body)}, raising=False)
    status, got = world.request("POST", "/predict", {"inputs": "Great.", "explain": True})
    assert (status, got["error"]["code"]) == (502, "model_error")


def test_an_invalid_model_answer_logs_no_part_of_a_phone_number(world, monkeypatch, caplog):
    world.in_service()
    for length in range(150, 250, 2):  # so that truncation cuts the number
        body = f"{'x' * length} {ADA} and more".encode()
        got = {"Body": io.BytesIO(body)}
        monkeypatch.setattr(world.sagemaker, "do_invoke_endpoint", lambda got=got, **_: got, raising=False)
        assert world.request("POST", "/predict", {"inputs": "Great."})[0] == 502
    assert "not a list" in logged(caplog) and ADA[:5] not in logged(caplog)


def test_a_missing_endpoint_ends_the_run(world):
    world.in_service()
    world.sagemaker.endpoints.clear()
    status, got = world.request("POST", "/predict", {"inputs": "Great."})
    assert (status, got["error"]["code"], got["error"]["state"]) == (409, "not_in_service", "FAILED")
    world.reconcile()
    assert world.nothing_left()


@pytest.mark.parametrize("error", [aws_error("ThrottlingException"), EndpointConnectionError(endpoint_url="https://x")])
def test_an_unavailable_table_becomes_a_503(world, monkeypatch, error):
    def fail(**_):
        raise error

    monkeypatch.setattr(world.dynamodb, "get_item", fail)
    for method, path in (("GET", "/status"), ("POST", "/start"), ("POST", "/extend")):
        status, got = world.request(method, path)
        assert (status, got["error"]["code"]) == (503, "unavailable")


def test_too_many_subscribers_are_refused(world, monkeypatch):
    monkeypatch.setattr(model_state, "ROW_LIMIT", 0)
    status, got = world.start(ADA)
    assert (status, got["error"]["code"]) == (429, "too_many_waiting")
    assert world.start()[0] == 202


@pytest.mark.parametrize("said", ["no luck today", "no luck today.", "x" * 1000])
def test_a_reason_from_aws_ends_with_punctuation(monkeypatch, said):
    world = World(monkeypatch)
    world.sagemaker.errors["create_endpoint"] = [
        aws_error("ResourceLimitExceeded", said),
        aws_error("InternalFailure", said),
    ]
    message = world.start(ADA)[1]["error"]["message"]
    kept = said[:300].rstrip(".")
    assert f"{kept}. ml.m5.large: " in message and f"{kept}. Nothing was left running." in message
    assert f"{kept}. ml.m5.large: " in world.status()["reason"]


def test_a_long_start_is_reported_as_longer_than_usual(world):
    world.start()
    world.clock.now += 901
    status = world.status()
    assert status["longerThanUsual"] and status["etaSeconds"] is None and status["elapsedSeconds"] == 901


def test_an_unknown_price_is_null(monkeypatch):
    world = World(monkeypatch, instance_types=("ml.unknown.large",))
    world.start()
    status = world.status()
    assert status["pricePerHour"] is None and status["costSoFar"] is None


def test_no_log_contains_phone_numbers(world, caplog, capsys):
    with caplog.at_level(logging.INFO):
        world.phone.broken = {ADA}
        world.start("+1 202 555 0123", "Ada")
        world.endpoint_becomes("InService")
        world.request("POST", "/start", {"phone": "+1 202 555 9"})
    told = re.sub(r'"Timestamp":\d+', "", caplog.text + "".join(capsys.readouterr()))  # may contain a 555 too
    assert "notified" in told and "555" not in told and ADA[2:-2] not in logged(caplog)


@pytest.mark.parametrize("folder", ["is-model-service-running", "shutdown-endpoint", "reconcile-model-service"])
def test_a_handler_reads_its_settings_from_the_environment(monkeypatch, folder):
    monkeypatch.setenv("SENTIMENT_IDLE_MINUTES", "5")
    monkeypatch.setenv("SHUTDOWN_FUNCTION_ARN", "arn:shutdown")
    engine = load_handler(folder).engine
    assert engine.settings.idle_minutes == 5 and engine.shutdown_arn == "arn:shutdown"


def test_an_accepted_request_does_not_grow_on_the_way_to_the_endpoint(world, monkeypatch):
    world.in_service()
    sent, ask = [], world.sagemaker.do_invoke_endpoint

    def listen(**request):
        sent.append(request["Body"])
        return ask(**request)

    monkeypatch.setattr(world.sagemaker, "do_invoke_endpoint", listen, raising=False)
    texts = ["Отлично работает 🎸 素晴らしい " * 100] * 20
    assert world.request("POST", "/predict", {"inputs": texts})[0] == 200
    assert json.loads(sent[-1])["inputs"] == texts
    assert len(sent[-1]) <= len(json.dumps({"inputs": texts}, ensure_ascii=False).encode())


def test_an_explanation_is_returned_only_on_request(world):
    world.in_service()
    for asked in ({}, {"explain": False}, {"explain": True}):
        status, got = world.request("POST", "/predict", {"inputs": ["Great.", "Fine."]} | asked)
        sent = json.loads(world.sagemaker.calls[-1][1]["Body"])
        assert status == 200 and sent == {"inputs": ["Great.", "Fine."]} | (
            {"explain": True} if asked.get("explain") else {}
        )
        words = [[w["text"] for w in p["explanation"]] for p in got["predictions"] if "explanation" in p]
        assert words == ([["Great"], ["Fine."]] if asked.get("explain") else [])


def test_the_api_and_the_endpoint_have_the_same_explanation_limit():
    assert EXPLAIN_LIMIT == MAX_EXPLAINED


def test_answers_of_an_older_model_are_still_accepted(world):
    "Its answers lack the certainty and the number of windows."
    world.in_service()
    world.sagemaker.answer = [
        {k: v for k, v in world.sagemaker.answer[0].items() if k not in ("sure", "tokens", "windows")}
    ]
    status, got = world.request("POST", "/predict", {"inputs": "Great."})
    assert status == 200 and (got["predictions"][0]["sure"], got["predictions"][0]["windows"]) == (None, 1)


def test_a_long_answer_matches_its_description(world):
    world.in_service()
    part = {"start": 0, "end": 9, "weight": 0.5, "scores": {"NEGATIVE": 0.1, "POSITIVE": 0.9}}
    world.sagemaker.answer = [world.sagemaker.answer[0] | {"windows": 2, "parts": [part, part]}]
    _, got = world.request("POST", "/predict", {"inputs": "Great."})
    contract.check("POST", "/predict", 200, {}, got)
    for wrong in ({"windows": 1}, {"parts": None}, {"parts": [part | {"more": 1}] * 2}, {"sure": "yes"}):
        with pytest.raises(AssertionError):
            contract.check("POST", "/predict", 200, {}, got | {"predictions": [got["predictions"][0] | wrong]})


@pytest.mark.parametrize("text", ACCEPTED)
def test_every_usual_number_format_is_accepted(monkeypatch, text):
    world = World(monkeypatch, daily_messages_per_number=1000, number_cooldown_minutes=0)
    assert world.start(text)[0] == 202
    assert [entry["to"] for entry in world.row.subscribers.values()] == [NUMBER]


def test_invalid_numbers_are_refused_and_an_empty_one_is_ignored(world):
    for text in REFUSED:
        status, body = world.start(text)
        assert (status, body["error"]["code"]) == (400, "invalid_phone"), text
    assert world.row.state == "STOPPED" and not world.sagemaker.calls
    for text in EMPTY:
        assert world.start(text)[0] == 202
    assert not world.row.subscribers


@given(st.lists(st.text(MARKS + SPACES + DASHES + OTHERS, max_size=3), min_size=12, max_size=12))
def test_separators_between_digits_do_not_matter(between):
    written = "".join(sep + c for sep, c in zip(between, NUMBER, strict=True))
    assert e164(written, ("US",)) == NUMBER


@given(st.text("+0123456789abc;,#*x" + MARKS, max_size=30))
def test_a_parsed_number_keeps_the_typed_digits(text):
    try:
        found = e164(text, ("US", "GB", "DE", "IT", "IN"))
    except BadPhone:
        return
    digits = [c for c in text if c.isdigit()]
    assert "".join(digits).lstrip("0").endswith(found[-7:]) and not set(text) & set("abc;,#*x")
