"The spending record outlives the row, counts each cost once, and knows the run that may still cost money."

import json
import threading
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from boto3.dynamodb.types import TypeSerializer

from sentiment_engine.costs import run_cost
from sentiment_engine.deploy.plan import read_template
from sentiment_engine.service import lifecycle
from sentiment_engine.service.usage import (
    StateTable,
    Usage,
    close_run,
    cost_by_month,
    day_of,
    open_run,
    plain_item,
    read_usage,
    settle_cost,
    spend,
    spent_in_month,
)
from sentiment_engine.settings import endpoint_name
from tests import ROOT
from tests.doubles.engine_double import ADA, BOB, World, aws_error
from tests.doubles.memory_dynamodb import MemoryDynamoDB

HOUR, DAY = 3600, 86_400


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


def lose(world, *tables):
    "Delete the item of each table by hand."
    for table in tables or (world.engine.table,):
        world.dynamodb.delete_item(TableName=table.name, Key=table.key)


def alive(world) -> list[str]:
    return [n for n, e in world.sagemaker.endpoints.items() if e["status"] != "Failed"]


def is_creating(world):
    world.start(ADA)


def is_in_service(world):
    world.in_service(ADA)


def is_stopping(world):
    world.in_service(ADA)
    world.sagemaker.deaf = True
    world.pass_time(world.settings.idle_minutes * 60 + 60)
    assert world.row.state == "STOPPING"


def has_failed(world):
    world.start(ADA)
    world.sagemaker.deaf = True
    world.endpoint_becomes("Failed", "The image does not exist.")
    assert world.row.state == "FAILED" and world.sagemaker.endpoints


def waits_for_the_next_type(world):
    world.start(ADA)
    world.sagemaker.deaf = True
    world.endpoint_becomes("Failed", "no capacity left: insufficient capacity")
    assert world.row.leftover and world.row.state == "CREATING"


STATES = (is_creating, is_in_service, is_stopping, has_failed, waits_for_the_next_type)


@pytest.mark.parametrize("reach", STATES)
@pytest.mark.parametrize("finder", ["start", "reconcile"])
def test_deleting_the_row_causes_no_second_endpoint_and_loses_no_booking(world, reach, finder):
    begun = world.clock.now
    reach(world)
    (first,) = world.sagemaker.endpoints
    lose(world)
    for _ in range(3):
        world.clock.now += 300
        world.start(BOB) if finder == "start" else world.reconcile()
        assert len(world.sagemaker.endpoints) <= 1
        if world.sagemaker.endpoints and first not in world.sagemaker.endpoints:
            break
    world.sagemaker.deaf = False
    for endpoint in world.sagemaker.endpoints.values():  # SageMaker cannot delete an endpoint during its creation
        endpoint["status"] = "InService" if endpoint["status"] == "Creating" else endpoint["status"]
    world.clock.now += 300
    world.reconcile()
    if first in world.sagemaker.endpoints:
        world.reconcile()
    assert first not in world.sagemaker.endpoints
    gone = world.clock.now
    assert 0 < spent_in_month(world.usage, gone) <= 2 * run_cost("ml.m5.large", gone - begun)


@pytest.mark.parametrize("reach", STATES)
def test_the_budget_still_refuses_after_the_row_was_deleted(monkeypatch, reach):
    world = World(monkeypatch, monthly_budget=0.60, number_cooldown_minutes=0, address_cooldown_seconds=0)
    reach(world)
    world.clock.now += 3 * HOUR
    for endpoint in world.sagemaker.endpoints.values():
        endpoint["status"] = "Failed"
    lose(world)
    world.sagemaker.deaf = False
    world.reconcile()
    assert not world.sagemaker.endpoints
    code, body = world.start(BOB)
    assert (code, body["error"]["code"]) == (402, "over_budget") and not world.sagemaker.endpoints
    assert world.status()["spentThisMonth"] == round(run_cost("ml.t2.medium", world.clock.now - 1_800_000_000), 4)


@pytest.mark.parametrize("finder", ["start", "reconcile"])
def test_an_endpoint_missing_from_both_tables_is_found_deleted_and_booked(world, finder):
    run_id = world.in_service()
    begun = world.clock.now
    lose(world, world.engine.table, world.engine.usage)
    world.clock.now += HOUR
    world.sagemaker.deaf = True
    if finder == "start":
        code, body = world.start(ADA)
        assert (code, body["error"]["code"]) == (409, "stopping")
    else:
        world.reconcile()
    assert alive(world) == [endpoint_name(world.settings, run_id)] and list(world.usage.open) == [run_id]
    world.sagemaker.deaf = False
    world.reconcile()
    assert not world.sagemaker.endpoints and not world.usage.open
    dearest = run_cost("ml.m5.large", world.clock.now - begun + 300)
    assert spent_in_month(world.usage, world.clock.now) == pytest.approx(dearest, abs=1e-6)


def test_two_starts_create_one_endpoint_if_the_row_is_lost(world, monkeypatch):
    "The row is deleted after the first start has won but before it recorded anything, so the second one wins too."
    opens, answers = lifecycle.open_run, []

    def open_after_another(*run):
        monkeypatch.setattr(lifecycle, "open_run", opens)
        lose(world)
        answers.append(world.start(BOB))
        return opens(*run)

    monkeypatch.setattr(lifecycle, "open_run", open_after_another)
    code, body = world.start(ADA)
    assert (code, body["error"]["code"]) == (409, "stopping") and answers[0][1]["outcome"] == "started"
    assert alive(world) == [endpoint_name(world.settings, world.row.runId)] and len(world.usage.open) == 1


def test_a_start_waits_for_an_endpoint_whose_row_was_lost(world, monkeypatch):
    "The row is deleted between the record and the endpoint: the next start must not create a second one."
    create, answers = world.sagemaker.do_create_endpoint, []
    monkeypatch.setattr(world.sagemaker, "lock", threading.RLock())

    def create_after_another(**arguments):
        lose(world)
        answers.append(world.start(BOB))
        return create(**arguments)

    monkeypatch.setattr(world.sagemaker, "do_create_endpoint", create_after_another, raising=False)
    world.start(ADA)
    assert [(code, body["error"]["code"]) for code, body in answers] == [(409, "stopping")] and len(alive(world)) == 1
    (run_id,) = world.usage.open
    assert alive(world) == [endpoint_name(world.settings, run_id)]


@pytest.mark.parametrize("tells", ["missing", "no tags"])
@pytest.mark.parametrize("finder", ["start", "reconcile"])
def test_an_unknown_endpoint_that_disappears_during_the_check_is_booked(world, monkeypatch, finder, tells):
    has_failed(world)
    (name,) = world.sagemaker.endpoints
    world.clock.now += HOUR

    def vanished(ResourceArn):
        world.sagemaker.endpoints.pop(name, None)
        world.sagemaker.configs.pop(name, None)
        if tells == "missing":
            raise aws_error("ValidationException", "Could not find it.")
        return {"Tags": []}

    monkeypatch.setattr(world.sagemaker, "do_list_tags", vanished, raising=False)
    assert (world.start()[0] if finder == "start" else world.reconcile()["delete_orphans"]) in (202, [])
    spent = run_cost("ml.t2.medium", world.clock.now - 1_800_000_000)
    assert sum(world.usage.spent.values()) == pytest.approx(spent * 1e6, abs=1)
    assert lifecycle.run_of(world.settings, name) not in world.usage.open


def test_a_refused_endpoint_is_not_booked_even_if_its_config_was_listed(world, monkeypatch):
    "A round lists the config of a start, which then fails and closes its run before the round reads on."
    listed, rolled_back, seen = lifecycle._listed, lifecycle.states.roll_back, []
    monkeypatch.setattr(world.sagemaker, "lock", threading.RLock())

    def refuses(**_):
        seen.extend(listed(world.engine))
        raise aws_error("AccessDeniedException", "not authorized")

    def after_a_round(*given):
        with monkeypatch.context() as patch:
            patch.setattr(lifecycle, "_listed", lambda engine: seen)
            lifecycle.end_strays(world.engine)
        return rolled_back(*given)

    monkeypatch.setattr(world.sagemaker, "do_create_endpoint", refuses, raising=False)
    monkeypatch.setattr(lifecycle.states, "roll_back", after_a_round)
    assert world.start()[1]["error"]["code"] == "start_failed" and seen
    world.clock.now += 300
    world.reconcile()
    assert (world.usage.spent, world.usage.starts, world.usage.open) == ({}, {}, {})


def test_a_record_deleted_by_hand_is_restored_during_the_run(world):
    world.in_service()
    lose(world, world.engine.usage)
    world.reconcile()
    assert list(world.usage.open) == [world.row.runId]
    world.pass_time(1900)
    spent = spent_in_month(world.usage, world.clock.now)
    assert world.row.state == "STOPPED" and spent == pytest.approx(run_cost("ml.t2.medium", 300 + 1860), rel=0.05)


def test_numbers_expire_only_after_their_run_must_have_ended(monkeypatch):
    for minutes in (240, 3000):
        world = World(monkeypatch, max_run_minutes=minutes)
        world.start(ADA)
        item = world.dynamodb.get_item(TableName=world.settings.table, Key=world.engine.table.key)["Item"]
        assert int(item["expiresAt"]["N"]) >= world.row.startedAt + minutes * 60


def test_the_record_contains_no_number_and_the_number_table_has_no_backup(world):
    seen = []
    for step in (is_in_service, lambda w: w.pass_time(1900), has_failed):
        step(world)
        seen.append(world.engine.usage.item())
        world.clock.now += HOUR
    assert all(seen) and ADA not in json.dumps(seen) and ADA[2:] not in json.dumps(seen)
    scripts = ROOT / "infra_scripts/templates"
    state = read_template(scripts / "backend.yaml")["Resources"]["Table"]["Properties"]
    usage = read_template(scripts / "foundation.yaml")["Resources"]["Usage"]["Properties"]
    assert state["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": False}  # even after an upgrade
    assert "TimeToLiveSpecification" not in usage
    assert usage["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}


# --- endpoints that AWS does not delete


def rounds(world, monkeypatch, minutes: int) -> list[int]:
    "Run the reconciler every five minutes; return each round's number of endpoints that are not deleted."
    told = []
    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "emit", lambda *_, **values: told[-1].append(values.get("NotDeleted", 0)))
        for _ in range(0, minutes, 5):
            world.clock.now += 300
            told.append([])
            world.reconcile()
    return [max(values) for values in told]


ALARM = read_template(ROOT / "infra_scripts/templates/monitoring.yaml")["Resources"]["NotDeleted"]["Properties"]


def rings_after(told: list[int]) -> int | None:  # minutes; None: never
    "Return when the template's alarm rings, if each round is in a separate period."
    periods, needed = ALARM["EvaluationPeriods"], ALARM["DatapointsToAlarm"]
    for i in range(1, len(told) + 1):
        if sum(n >= ALARM["Threshold"] for n in told[max(0, i - periods) : i]) >= needed:
            return i * ALARM["Period"] // 60
    return None


@pytest.mark.parametrize("reach", [is_stopping, has_failed, waits_for_the_next_type])
@pytest.mark.parametrize("how", ["accepted", "refused", "deleting for ever"])
def test_an_undeleted_endpoint_triggers_an_alarm_within_15_minutes(world, monkeypatch, reach, how):
    reach(world)
    (name,) = world.sagemaker.endpoints
    if how == "refused":
        world.sagemaker.errors["delete_endpoint"] = [aws_error("InternalFailure")] * 99
    if how == "deleting for ever":
        world.sagemaker.endpoints[name]["status"] = "Deleting"
    told = rounds(world, monkeypatch, 15)
    assert rings_after(told) in (5, 10) and ALARM["AlarmActions"] == [{"Ref": "Alarms"}]
    assert world.start(BOB)[0] in (202, 409) and list(world.sagemaker.endpoints) == [name]  # 202: joined
    run_id = lifecycle.run_of(world.settings, name)
    assert run_id in world.usage.open and world.status()["spentThisMonth"] > 0
    before = world.clock.now
    world.clock.now += 5 * HOUR
    assert world.status()["spentThisMonth"] >= run_cost("ml.t2.medium", world.clock.now - before)
    world.sagemaker.deaf, world.sagemaker.errors = False, {}
    del world.sagemaker.endpoints[name]
    world.sagemaker.configs.pop(name, None)
    world.reconcile()
    assert run_id not in world.usage.open


def test_an_ordinary_deletion_triggers_no_alarm(world, monkeypatch):
    for _ in range(3):
        world.in_service()
        world.pass_time(1900)
        assert rounds(world, monkeypatch, 15) == [0, 0, 0]
        world.clock.now += HOUR
    assert rings_after([0, 1, 0, 0, 1, 0]) is None


def test_a_trial_that_aws_does_not_delete_is_not_reported_as_deleted(world, monkeypatch):
    tags = [{"Key": "Project", "Value": "sentiment-engine"}, {"Key": "Purpose", "Value": "trial"}]
    name = f"sentiment-engine-trial-{'a' * 12}"
    made = world.clock.now - world.settings.creating_minutes * 60 - 1
    world.sagemaker.endpoints[name] = {"status": "InService", "reason": "", "tags": tags, "made": made}
    world.sagemaker.deaf = True
    assert rounds(world, monkeypatch, 10) == [1, 1]
    assert world.reconcile()["delete_forgotten_trials"] == []


# --- months and days


TURN = datetime(2027, 2, 1, tzinfo=UTC).timestamp()


@pytest.mark.parametrize("behind", [0, 1, 3])
def test_a_run_across_two_months_is_booked_in_both(world, behind):
    "The clocks of Lambdas differ by seconds."
    world.clock.now = TURN - 1000
    world.start()
    world.endpoint_becomes("InService")
    world.clock.now = TURN - behind  # the first booking of another run, with a clock that is behind
    assert world.status()["spentThisMonth"] == pytest.approx(
        run_cost("ml.t2.medium", 1000 - behind) if behind else 0, abs=1e-3
    )
    world.pass_time(3600)
    shares = world.usage.spent
    assert set(shares) == {"2027-01", "2027-02"} and world.row.state == "STOPPED"
    assert shares["2027-01"] == cost_by_month("ml.t2.medium", TURN - 1000, TURN)["2027-01"]
    before = world.usage.spent
    world.clock.now = TURN + HOUR
    world.start()
    world.clock.now = TURN - 2  # this Lambda's clock is behind by more than the run has lasted
    world.endpoint_becomes("Failed", "The image does not exist.")
    assert world.usage.spent == before and not world.usage.open


def test_each_month_keeps_its_own_spending():
    usage = Usage(since=1, spent={"2027-01": 5_000_000, "2027-02": 1_000_000})
    assert (spent_in_month(usage, TURN - 1), spent_in_month(usage, TURN + 1)) == (5, 1)


# --- counts of an earlier version in the row


OLD = {"day": "2027-01-01", "starts": 1, "messages": 0, "month": "2027-01", "microdollars": 9_500_000, "since": 5}


def old_row(world, **usage):
    "Change the row, if there is one, to an earlier version's, which counted the month and the day there."
    now = int(world.clock.now)
    item = {"state": "STOPPED", "runId": "a" * 12, "since": now - 9000} | plain_item(world.engine.table.item())
    item |= {"usage": OLD | {"day": day_of(now), "starts": 3, "since": now - DAY} | usage}
    typed = {name: TypeSerializer().serialize(value) for name, value in item.items()}
    world.dynamodb.put_item(TableName=world.settings.table, Item=typed | world.engine.table.key)


def test_an_upgrade_imports_the_counts_of_the_row_once(monkeypatch):
    world = World(monkeypatch, monthly_budget=20, daily_starts=4)
    old_row(world)
    told = world.status()
    assert told["spentThisMonth"] == 9.5 and told["countedSince"] == lifecycle.instant(world.clock.now - DAY)
    for _ in range(2):
        world.reconcile()
        assert world.status()["spentThisMonth"] == 9.5
    world.in_service()
    world.pass_time(1900)
    assert world.row.state == "STOPPED" and sum(world.usage.starts.values()) == 4
    spent = world.status()["spentThisMonth"]
    assert spent == pytest.approx(9.5 + run_cost("ml.t2.medium", 2160), abs=1e-3)
    assert world.usage.since == 1_800_000_000 - DAY
    assert world.start()[1]["error"]["code"] == "too_many_starts"


def test_an_upgrade_keeps_the_spent_budget(monkeypatch):
    world = World(monkeypatch, monthly_budget=10)
    old_row(world, microdollars=9_990_000)
    assert world.start()[1]["error"]["code"] == "over_budget" and not world.sagemaker.endpoints


def test_an_upgrade_to_a_serverless_endpoint_keeps_counting(monkeypatch):
    world = World(monkeypatch, endpoint="serverless")
    old_row(world)
    assert spend(world.engine.usage, 8, world.clock.now) and world.usage.spent == {"2027-01": 9_500_008}


def test_an_upgrade_during_a_run_keeps_counting(world):
    run_id = world.in_service()
    lose(world, world.engine.usage)  # an earlier version had no such table
    old_row(world)
    world.reconcile()
    assert list(world.usage.open) == [run_id] and world.usage.spent == {"2027-01": 9_500_000}


# --- an edited record


def edit(world, **fields):
    "Overwrite fields of the record by hand."
    typed = {name: TypeSerializer().serialize(value) for name, value in fields.items()}
    item = world.engine.usage.key | {"since": {"N": "5"}} | world.engine.usage.item() | typed
    world.dynamodb.put_item(TableName=world.engine.usage.name, Item=item)


@pytest.mark.parametrize("key", ["a_b c", "serverless", "eu-cccccccccccc", "A" * 12, "c" * 13, "trial-cccccccccccc"])
def test_an_invalid_run_id_is_not_an_open_run_and_deletes_nothing(world, key):
    name = f"{world.settings.prefix}-{key}"
    world.sagemaker.endpoints[name] = {"status": "InService", "reason": "", "tags": []}
    edit(world, open={key: {"instanceType": "ml.t2.medium", "begunAt": int(world.clock.now) - 9000}})
    world.reconcile()
    assert world.start()[0] == 202 and list(world.usage.open) == [world.row.runId]
    assert name in world.sagemaker.endpoints


@pytest.mark.parametrize("ahead", [121, 10**9])
def test_an_open_run_dated_in_the_future_is_ended(world, ahead):
    edit(world, open={"b" * 12: {"instanceType": "ml.t2.medium", "begunAt": int(world.clock.now) + ahead}})
    assert world.start()[0] == 202 and list(world.usage.open) == [world.row.runId]
    assert set(world.usage.starts) <= {day_of(world.clock.now)}


def test_a_start_waits_for_an_open_run_from_a_clock_slightly_ahead(world):
    edit(world, open={"b" * 12: {"instanceType": "ml.t2.medium", "begunAt": int(world.clock.now) + 2}})
    assert world.start()[1]["error"]["code"] == "stopping" and list(world.usage.open) == ["b" * 12]


@pytest.mark.parametrize("begun_at", [0, 1000, 1_700_000_000, 253_402_300_799])
def test_closing_a_run_works_with_any_record(begun_at):
    table, now = StateTable(MemoryDynamoDB(), "t", "m"), 1_800_000_000
    days = {day_of(n * DAY): 1 for n in range(1000)}
    open_run(table, "b" * 12, "ml.t2.medium", begun_at)
    table.dynamodb.items["m"]["starts"] = TypeSerializer().serialize(days)
    close_run(table, "b" * 12, now)
    found = read_usage(table)
    assert not found.open and found.starts[day_of(min(now, max(begun_at or now, now - 40 * DAY)))] == 1
    month = cost_by_month("ml.t2.medium", max(begun_at or now, datetime(2027, 1, 1, tzinfo=UTC).timestamp()), now)
    assert found.spent.get("2027-01", 0) == month.get("2027-01", 0)


# --- a booking whose answer is lost


class Repeats:
    "A client that repeats its first write, like boto3 after a lost answer, and runs `meanwhile` in between."

    def __init__(self, behind, meanwhile=lambda: None):
        self.behind, self.meanwhile, self.lost = behind, meanwhile, 0

    def update_item(self, **given):
        if not self.lost:
            self.lost = 1
            self.behind.update_item(**given)
            self.meanwhile()
        return self.behind.update_item(**given)

    def __getattr__(self, name):
        return getattr(self.behind, name)


@pytest.mark.parametrize("most", [47, 1000])
@pytest.mark.parametrize("others", [0, 1, 3])
def test_a_repeated_booking_counts_once_despite_concurrent_bookings(world, most, others):
    usage, now = world.engine.usage, world.clock.now
    mine = spend(usage, 16, now)

    def meanwhile():
        for n in range(others):
            settle_cost(usage, spend(usage, 8, now), n, now)

    repeats = [replace(usage, dynamodb=Repeats(usage.dynamodb, meanwhile)) for _ in range(3)]
    tokens, more = spend(repeats[0], 8, now, most), others * 8 + sum(range(others))
    assert tokens and sum(world.usage.spent.values()) == 24 + more
    settle_cost(repeats[1], tokens, -8, now)
    settle_cost(repeats[2], mine, 5, now)
    assert sum(world.usage.spent.values()) == 21 + 3 * more and not world.usage.asked


def test_the_booking_of_a_killed_prediction_is_kept_without_permanent_leftovers(world):
    usage, now = world.engine.usage, world.clock.now
    for n in range(100):
        spend(usage, 8, now + n)
    for n in range(3):
        settle_cost(usage, spend(usage, 8, now + 1000), 0, now + 1000)
        assert len(world.usage.asked) == max(0, 60 - 40 * n)
    assert sum(world.usage.spent.values()) == 103 * 8
