"POST /sleep: the visitor whose Start began a run ends it early; no other visitor can, and no endpoint is left behind."

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from sentiment_engine.service import model_state
from sentiment_engine.service.usage import spent_in_month
from tests.doubles.engine_double import ADA, BOB, World, aws_error
from tests.doubles.local_models import until


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch, address_cooldown_seconds=0, number_cooldown_minutes=0)


def awake(world, phone=None) -> str:  # the token
    "Start the model and return the token of the visitor who started it."
    token = world.start(phone)[1]["sleepToken"]
    world.clock.now += 300
    assert world.endpoint_becomes("InService") == "ready"
    return token


def test_the_visitor_who_started_a_run_can_end_it(world):
    token = awake(world, ADA)
    world.clock.now += 60
    code, body = world.sleep(token)
    assert (code, body["outcome"], body["state"]) == (202, "sleeping", "STOPPED")
    assert world.nothing_left() and not world.usage.open
    assert spent_in_month(world.usage, world.clock.now) == pytest.approx(0.056 * 360 / 3600, abs=1e-4)
    assert [to for to, _ in world.phone.sent] == [ADA]


def test_a_repeated_request_changes_nothing(world):
    token = awake(world)
    world.sleep(token)
    before, calls = world.row, len(world.sagemaker.calls)
    for _ in range(2):
        code, body = world.sleep(token)
        assert (code, body["outcome"]) == (200, "already-asleep")
    assert world.row == before and len(world.sagemaker.calls) == calls


def test_only_the_first_visitor_gets_a_token(world):
    assert world.start(ADA)[1]["sleepToken"]
    assert world.start(BOB)[1]["sleepToken"] is None
    world.endpoint_becomes("InService")
    assert world.start()[1]["sleepToken"] is None


@pytest.mark.parametrize("state", ["CREATING", "IN_SERVICE", "STOPPED"])
def test_a_wrong_token_ends_nothing(world, state):
    if state == "CREATING":
        world.start()
    else:
        token = awake(world)
    if state == "STOPPED":
        world.sleep(token)
    before = world.row
    for wrong in ("", "guess", None, 5, ["x"], {"a": 1}, "\ud800", before.sleepHash):
        code, body = world.sleep(wrong)
        assert (code, body["error"]["code"]) == (409, "wrong_token")
    assert world.row == before


def test_a_token_ends_only_its_own_run(world):
    old = awake(world)
    world.sleep(old)
    awake(world)
    assert world.sleep(old)[1]["error"]["code"] == "wrong_token" and world.row.state == "IN_SERVICE"


def test_a_visitor_cannot_end_a_scheduled_run(world):
    world.wake(1)
    world.endpoint_becomes("InService")
    world.clock.now += 120
    assert world.sleep("")[1]["error"]["code"] == "wrong_token" and world.row.state == "IN_SERVICE"


def test_an_early_end_checks_its_conditions_in_the_same_write(world):
    "The row may change between the read and the write: a subscriber waits, hours begin, or a new run has begun."
    awake(world)
    row, table = world.row, world.engine.table
    assert model_state.stop_early(table, dataclasses.replace(row, sleepHash="another")) is None
    assert model_state.stop_early(table, dataclasses.replace(row, awakeUntil=5)) is None
    table.dynamodb.update_item(
        TableName=table.name,
        Key=table.key,
        UpdateExpression="SET subscribers = :s",
        ExpressionAttributeValues={":s": {"M": {"k": {"M": {"to": {"S": ADA}}}}}},
    )
    assert model_state.stop_early(table, row) is None and world.row.state == "IN_SERVICE"


def test_ending_a_starting_run_returns_a_retry_time(world):
    token = world.start(ADA)[1]["sleepToken"]
    code, body = world.sleep(token)
    assert (code, body["error"]["code"], body["error"]["state"]) == (409, "not_yet", "CREATING")
    world.endpoint_becomes("InService")
    assert world.sleep(token)[0] == 202 and world.nothing_left()


def test_the_token_survives_a_change_of_the_instance_type(world):
    "The page recognizes its run by the time of Start."
    begun = world.start()[1]
    token, first = begun["sleepToken"], world.row.runId
    world.clock.now += 60
    world.endpoint_becomes("Failed", "Unable to provision requested ML compute capacity.")
    world.endpoint_becomes("InService")
    assert world.row.runId != first and world.status()["startedAt"] == begun["startedAt"]
    assert world.sleep(token)[0] == 202 and world.nothing_left()


def test_every_subscriber_gets_a_message_despite_an_early_end(world):
    token = world.start(ADA)[1]["sleepToken"]
    world.start(BOB)
    world.endpoint_becomes("InService", event=False)
    told = []
    real = world.phone.send

    def send(to, notice):
        told.append(world.sleep(token)[0])  # the visitor asks while the messages are sent
        return real(to, notice)

    world.phone.send = send
    world.event("IN_SERVICE")
    assert set(told) == {409} and sorted(to for to, _ in world.phone.sent) == sorted([ADA, BOB])
    assert world.sleep(token)[0] == 202 and world.row.smsFailed == 0


@pytest.mark.parametrize("trouble", ["delete_endpoint", "delete_endpoint_config", "describe_endpoint", "deaf", "slow"])
def test_resources_that_aws_fails_to_delete_are_deleted_later(world, trouble):
    token = awake(world)
    if trouble in ("deaf", "slow"):
        setattr(world.sagemaker, trouble, True)
    else:
        world.sagemaker.errors[trouble] = [aws_error("InternalFailure")] * 3
    code, body = world.sleep(token)
    assert (code, body["outcome"]) == (202, "sleeping") and world.sleep(token)[0] in (200, 202)
    world.sagemaker.errors.clear()
    world.sagemaker.deaf = world.sagemaker.slow = False
    world.sagemaker.gone()
    world.reconcile()
    assert world.row.state == "STOPPED" and world.nothing_left() and not world.usage.open


def test_simultaneous_predictions_and_ends_cause_no_internal_error(world):
    token = awake(world)
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(world.request, "POST", "/predict", {"inputs": "ok"}) for _ in range(3)]
        slept = [pool.submit(world.sleep, token) for _ in range(3)]
    assert {f.result(300)[0] for f in slept} <= {200, 202} and {f.result(300)[0] for f in asked} <= {200, 409}
    assert world.row.state == "STOPPED" and world.nothing_left()


def test_the_row_and_the_log_contain_no_token(world, caplog, capsys):
    caplog.set_level("DEBUG")
    token = awake(world)
    world.sleep(token)
    items = world.dynamodb.scan(TableName=world.settings.table)["Items"]
    logged = " ".join(str(vars(record)) for record in caplog.records) + capsys.readouterr().out
    assert len(token) >= 20 and token not in json.dumps(items) + logged
    assert token not in json.dumps(world.status()) and model_state.hash_of(token) not in json.dumps(world.status())


def test_a_requested_end_is_counted_as_requested(world, capsys):
    world.sleep(awake(world))
    assert '"Reason":"asked"' in capsys.readouterr().out.replace(" ", "")


@pytest.mark.parametrize("endpoint", ["serverless", "lambda"])
def test_ending_an_endpoint_that_never_sleeps_is_refused(world, endpoint):
    engine = dataclasses.replace(world.engine, settings=dataclasses.replace(world.settings, endpoint=endpoint))
    world.handlers["shutdown-endpoint"].engine = engine
    code, body = world.sleep("token")
    assert (code, body["error"]["code"]) == (409, "never_sleeps")


def test_a_run_can_end_early_in_the_local_cloud(engine):
    engine.use("good")
    engine.sleep()
    token = engine.call("POST", "/start", {})["sleepToken"]
    engine.wait("IN_SERVICE")
    assert engine.call("POST", "/sleep", {"token": "guess"})["error"]["code"] == "wrong_token"
    assert engine.call("POST", "/sleep", {"token": token})["outcome"] == "sleeping"
    until(lambda: engine.cloud.client("sagemaker").list_endpoints()["Endpoints"] == [])
    until(lambda: engine.call("POST", "/sleep", {"token": token}).get("outcome") == "already-asleep")
    assert engine.state() == "STOPPED"
