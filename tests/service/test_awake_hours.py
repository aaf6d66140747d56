"Awake hours: a schedule keeps the model awake, failures are repaired, and the budget and the promises hold."

import dataclasses
import json
import time

import pytest

from sentiment_engine.service import lifecycle
from sentiment_engine.service.usage import spent_in_month
from tests.doubles.engine_double import ADA, World, aws_error
from tests.doubles.local_models import until
from tests.doubles.memory_dynamodb import MemoryDynamoDB

HOURS = 480  # minutes
RICH = {"monthly_budget": 1000.0, "address_cooldown_seconds": 0, "number_cooldown_minutes": 0}


class Days(World):
    "An engine in memory, because its tests pass days."

    def __init__(self, monkeypatch, **given):
        super().__init__(monkeypatch, **RICH | given)
        self.dynamodb = self.clients["dynamodb"] = MemoryDynamoDB(table=self.settings.table)


@pytest.fixture
def world(monkeypatch):
    return Days(monkeypatch)


def wake(world: World, minutes: int = HOURS) -> float:  # when the hours end
    "Begin awake hours and let the endpoint become ready."
    assert world.wake(minutes) == "started"
    ends = world.clock.now + minutes * 60
    world.clock.now += 300
    assert world.endpoint_becomes("InService") == "ready"
    return ends


def states_until(world: World, end: float) -> set[str]:
    "Pass the time until `end`, and return the states after each five minutes."
    seen = set()
    while world.clock.now < end - 1:
        world.pass_time(min(300, end - 1 - world.clock.now), reconcile=True)
        seen.add(world.row.state)
    return seen


def test_the_model_is_awake_only_during_the_hours_without_visitors(world):
    ends = wake(world)
    assert world.status()["secondsLeft"] == ends - world.clock.now
    assert states_until(world, ends) == {"IN_SERVICE"}
    world.pass_time(360, reconcile=True)
    assert world.row.state == "STOPPED" and world.nothing_left() and len(world.usage.starts) >= 1


def test_a_late_visitor_cannot_extend_the_hours_beyond_the_longest_run(world):
    ends = wake(world)
    states_until(world, ends - 60)
    assert world.request("POST", "/predict", {"inputs": "ok"})[1]["secondsLeft"] <= 62
    world.pass_time(240)
    assert world.row.state == "STOPPED" and world.nothing_left()


def test_short_hours_do_not_shorten_a_run(world):
    wake(world, 1)
    assert world.status()["secondsLeft"] == world.settings.idle_minutes * 60


@pytest.mark.parametrize("state", ["CREATING", "IN_SERVICE", "STOPPING", "FAILED"])
def test_hours_begin_in_any_state(world, state):
    if state == "IN_SERVICE":
        world.in_service(ADA)
    else:
        world.start(ADA)
    if state == "STOPPING":
        world.endpoint_becomes("InService")
        world.sagemaker.deaf = True
        world.pass_time(1900)
        assert world.row.state == "STOPPING"
    if state == "FAILED":
        world.endpoint_becomes("Failed", "The image does not exist.")
    ends = world.clock.now + HOURS * 60
    world.wake(HOURS)
    world.sagemaker.deaf = False
    if world.row.state != "IN_SERVICE":
        world.reconcile()
        world.clock.now += 300
        world.endpoint_becomes("InService")
    assert states_until(world, ends) == {"IN_SERVICE"}
    world.pass_time(400, reconcile=True)
    assert world.row.state == "STOPPED" and world.nothing_left()
    assert len([to for to, _ in world.phone.sent if to == ADA]) == 1


def test_a_visitor_cannot_end_the_hours(world):
    token = world.start()[1]["sleepToken"]
    world.endpoint_becomes("InService")
    world.wake(HOURS)
    code, body = world.sleep(token)
    assert (code, body["error"]["code"]) == (409, "not_yet") and "keeps the model awake" in body["error"]["message"]
    assert world.row.state == "IN_SERVICE"


def test_a_failed_or_missing_endpoint_is_restarted(world):
    ends = wake(world)
    world.pass_time(3600, reconcile=True)
    world.sagemaker.endpoints.clear()
    world.pass_time(300, reconcile=True)
    assert world.row.state == "CREATING"
    world.endpoint_becomes("Failed", "The image does not exist.")
    world.pass_time(lifecycle.RESTART_PAUSE - 400, reconcile=True)
    assert world.row.state == "FAILED"  # not at once: a failure may last
    world.pass_time(600, reconcile=True)
    world.endpoint_becomes("InService")
    assert states_until(world, ends) == {"IN_SERVICE"}


def test_failing_hours_leave_visitors_some_of_the_daily_starts(world):
    world.sagemaker.errors["create_endpoint"] = [aws_error("InternalFailure")] * 999
    assert world.wake(HOURS) == "failed"
    world.pass_time(HOURS * 60, reconcile=True)
    tries = sum(name == "create_endpoint" for name, _ in world.sagemaker.calls)
    assert 10 < tries <= HOURS / 20 + 1 < world.settings.daily_starts
    world.pass_time(86_400, reconcile=True)
    assert sum(name == "create_endpoint" for name, _ in world.sagemaker.calls) == tries and world.nothing_left()


def test_an_engine_that_is_now_serverless_starts_nothing(world):
    wake(world)
    world.sagemaker.endpoints.clear()
    settings = dataclasses.replace(world.settings, endpoint="serverless")
    for handler in world.handlers.values():
        handler.engine = dataclasses.replace(world.engine, settings=settings)
    world.pass_time(2 * 3600, reconcile=True)
    assert world.row.state == "FAILED" and not world.sagemaker.endpoints


def test_hours_without_a_model_are_retried(world):
    model, world.model = world.model, None
    assert world.wake(HOURS) == "failed"
    world.model = model
    world.pass_time(360, reconcile=True)
    assert world.row.state == "CREATING"


@pytest.mark.parametrize("budget", [0.5, 0.94])  # too little at first; too little after spending
def test_the_budget_refuses_the_hours_once_and_notifies_the_owner(monkeypatch, capsys, budget):
    world = Days(monkeypatch, monthly_budget=budget)
    if budget == 0.94:
        world.in_service()
        world.pass_time(4 * 3600)
    before, out = len(world.sagemaker.calls), capsys.readouterr().out
    assert world.wake(HOURS) == "over_budget"
    out = capsys.readouterr().out.replace(" ", "")
    assert '"Code":"over_budget"' in out and '"Refusals":[1.0]' in out
    world.pass_time(HOURS * 60, reconcile=True)
    assert "create_endpoint" not in [name for name, _ in world.sagemaker.calls[before:]]
    assert "over_budget" not in capsys.readouterr().out


def test_refused_hours_do_not_change_the_deadline_of_a_visitor(monkeypatch):
    world = Days(monkeypatch, monthly_budget=0.5)
    world.in_service()
    assert world.wake(HOURS) == "over_budget"
    assert world.status()["secondsLeft"] <= world.settings.idle_minutes * 60
    world.pass_time(1900)
    assert world.row.state == "STOPPED" and world.nothing_left()


def test_refused_longer_hours_keep_the_allowed_ones(monkeypatch):
    world = Days(monkeypatch, monthly_budget=1.0)
    ends = wake(world)
    assert world.wake(1440) == "over_budget"
    assert world.row.awakeUntil == ends and world.status()["secondsLeft"] == ends - world.clock.now
    assert states_until(world, ends) == {"IN_SERVICE"}
    world.pass_time(360, reconcile=True)
    assert world.row.state == "STOPPED" and world.nothing_left()


def test_a_refused_restart_ends_the_hours(monkeypatch, capsys):
    world = Days(monkeypatch, daily_starts=1)
    wake(world)
    world.sagemaker.endpoints.clear()
    world.pass_time(2 * 3600, reconcile=True)
    assert world.row.state == "FAILED" and world.row.awakeUntil == 0
    assert capsys.readouterr().out.replace(" ", "").count('"Code":"too_many_starts"') == 1


def test_the_hours_stay_within_the_monthly_budget(monkeypatch):
    world = Days(monkeypatch, monthly_budget=3.0)
    outcomes = []
    for _ in range(12):
        outcomes.append(world.wake(HOURS))
        if outcomes[-1] == "started":
            world.endpoint_becomes("InService")
        world.pass_time(HOURS * 60 + 600, reconcile=True)
        world.clock.now += 86_400 - HOURS * 60 - 600
    assert outcomes.count("started") >= 4 and outcomes[-1] == "over_budget"
    assert spent_in_month(world.usage, world.clock.now) <= 3.0


def test_a_start_during_the_hours_reserves_their_whole_cost(monkeypatch):
    world = Days(monkeypatch, monthly_budget=1.0)
    wake(world)
    world.sagemaker.endpoints.clear()
    world.request("POST", "/predict", {"inputs": "ok"})
    world.reconcile()
    world.engine.usage.dynamodb.tables[world.engine.usage.name][world.settings.model_id]["spent"] = {
        "M": {"2027-01": {"N": "300000"}}
    }  # dollars: 0.3 are spent, and 0.46 are enough for a usual run
    code, body = world.start()
    assert (code, body["error"]["code"]) == (402, "over_budget")


def test_a_repeated_event_changes_nothing(world):
    wake(world)
    before, calls = world.row, world.sagemaker.calls.copy()
    world.clock.now += 300
    assert world.wake(HOURS) == "already-in-service"
    assert world.row.awakeUntil == before.awakeUntil
    assert [c for c in world.sagemaker.calls[len(calls) :] if c[0].startswith("create")] == []


@pytest.mark.parametrize("minutes", [0, -5, 1441, 1.5, "60", None, True])
def test_a_wrong_event_raises_an_error(world, minutes):
    with pytest.raises(ValueError, match="1 to 1440 minutes"):
        world.wake(minutes)
    assert world.row.state == "STOPPED"


def edit(world: World, name: str, value: dict | None):
    "Edit the row as a person might; None removes the attribute."
    row = world.dynamodb.items[world.settings.model_id]
    row.pop(name)
    row |= {name: value} if value else {}


@pytest.mark.parametrize("value", [None, {"S": "x"}, {"N": "-1"}, {"N": "253402300799"}, {"BOOL": True}])
def test_an_edited_end_does_not_keep_an_endpoint_awake(world, value):
    world.in_service()
    edit(world, "awakeUntil", value)
    world.pass_time(world.settings.max_run_minutes * 60, reconcile=True)
    assert world.row.state == "STOPPED" and world.nothing_left()
    assert wake(world) and world.row.state == "IN_SERVICE"


@pytest.mark.parametrize("minutes", [10, 200, 300])
def test_the_owner_can_end_the_hours_of_today(world, minutes):
    "As the guide to operations says."
    wake(world)
    while minutes > 0:
        world.pass_time(600, reconcile=True)
        minutes -= 10
    edit(world, "awakeUntil", {"N": "0"})
    world.pass_time(world.settings.idle_minutes * 60, reconcile=True)
    assert world.row.state == "STOPPED" and world.nothing_left()


def test_a_run_of_an_earlier_version_ends_at_its_deadline(world):
    world.in_service()
    edit(world, "awakeUntil", None)
    edit(world, "sleepHash", None)
    world.pass_time(1900)
    assert world.row.state == "STOPPED" and world.nothing_left()


def test_awake_hours_work_in_the_local_cloud(engine):
    engine.use("good")
    engine.sleep()
    functions, name = engine.cloud.client("lambda"), f"{engine.settings.prefix}-start-model-service"
    told = functions.invoke(FunctionName=name, Payload=json.dumps({"awakeMinutes": 60}))
    assert json.load(told["Payload"]) == {"outcome": "started"}
    engine.wait("IN_SERVICE")
    engine.cloud.advance_clock(engine.settings.idle_minutes * 60 + 60)  # the reconciler runs too
    time.sleep(3)
    assert engine.state() == "IN_SERVICE" and engine.call("GET", "/status")["secondsLeft"] > 1000
    engine.cloud.advance_clock(1800)
    engine.wait("STOPPED")
    until(lambda: engine.cloud.client("sagemaker").list_endpoints()["Endpoints"] == [])
