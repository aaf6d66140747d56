"The row: every action in every state, as one conditional write that requires the old state and run."

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from sentiment_engine.deploy.plan import read_template
from sentiment_engine.service import model_state as states
from sentiment_engine.service.api import subscriber_of
from sentiment_engine.service.guards import Refused, mark_of
from sentiment_engine.service.model_state import STATES, TRANSITIONS, Row, StartRequest, Subscriber
from sentiment_engine.settings import Settings
from tests import ROOT
from tests.doubles.engine_double import ADA, BOB, CAROL, World, aws_error
from tests.doubles.memory_dynamodb import ITEM_LIMIT, MemoryDynamoDB, item_bytes

RUN, OTHER = "0f3c5a7e9b1d", "aaaaaaaaaaaa"


@pytest.fixture
def table(monkeypatch):
    return World(monkeypatch).engine.table


def put(table, state: str, run_id: str = RUN):
    "Write a state into the row directly."
    item = {"modelId": {"S": table.model_id}, "state": {"S": state}, "runId": {"S": run_id}, "subscribers": {"M": {}}}
    table.dynamodb.put_item(TableName=table.name, Item=item | {"shutdownAt": {"N": "100"}, "startedAt": {"N": "50"}})


@pytest.mark.parametrize("action", TRANSITIONS)
def test_every_action_behaves_as_documented_in_every_state(table, action):
    leaves, leads_to = TRANSITIONS[action]
    for state in STATES:
        put(table, state)
        before = states.read_row(table)
        after = states.apply(table, action, RUN, values={"reason": "why"})
        if state in leaves:
            assert after == states.read_row(table) and (after.state, after.reason) == (leads_to, "why")
        else:
            assert after is None and states.read_row(table) == before


@pytest.mark.parametrize("action", TRANSITIONS)
def test_no_action_changes_another_run(table, action):
    for state in STATES:
        put(table, state)
        before = states.read_row(table)
        assert states.apply(table, action, OTHER, values={"reason": "why"}) is None
        assert states.read_row(table) == before


def test_the_diagram_shows_every_transition():
    drawn = states.transition_diagram()
    for action, (leaves, leads_to) in TRANSITIONS.items():
        for state in leaves:
            line = next(x for x in drawn.splitlines() if x.split()[0] == state and x.split()[-1] == leads_to)
            assert action in line


def test_a_model_that_was_never_started_is_stopped(table):
    assert states.read_row(table) == Row("amazon-reviews")


def test_the_deadline_never_moves_backwards(table):
    put(table, "IN_SERVICE")
    assert states.touch(table, RUN, 99) is None
    assert states.touch(table, RUN, 101).shutdownAt == 101


def test_stopping_checks_the_deadline_in_the_same_write(table):
    put(table, "IN_SERVICE")
    assert states.begin_stopping(table, RUN, 99) is None and states.read_row(table).state == "IN_SERVICE"
    assert states.begin_stopping(table, RUN, 100).state == "STOPPING"


def test_of_simultaneous_stopping_and_touching_only_one_succeeds(table):
    for _ in range(20):
        put(table, "IN_SERVICE")
        with ThreadPoolExecutor(2) as pool:
            stopping = pool.submit(states.begin_stopping, table, RUN, 100)
            touched = pool.submit(states.touch, table, RUN, 200)
        assert (stopping.result(60) is None) != (touched.result(60) is None)


def start(table, run_id, phone=None, name="", **settings):
    "Press Start as run `run_id`."
    subscriber = Subscriber(phone, name) if phone else None
    return states.start_or_join(table, Settings(table=table.name, **settings), StartRequest(run_id, subscriber))


def test_a_start_whose_answer_was_lost_recognizes_its_success(table):
    assert start(table, RUN, ADA)[0] == "started"
    assert start(table, RUN, ADA)[0] == "started"  # the same run id: the same start
    assert start(table, OTHER, BOB)[0] == "joined"


def test_a_start_keeps_the_subscribers_of_a_failed_run(table):
    start(table, RUN, ADA)
    states.fail(table, states.read_row(table), "no")
    outcome, row = start(table, OTHER, BOB)
    assert outcome == "started" and {e["to"] for e in row.subscribers.values()} == {ADA, BOB}


def test_the_waiting_list_has_a_limit(table, monkeypatch):
    start(table, RUN, ADA)
    row = states.read_row(table)
    monkeypatch.setattr(states, "ROW_LIMIT", states.row_size(row) + states.RESERVE)  # no byte is left
    with pytest.raises(Refused, match="waiting list is full"):
        start(table, OTHER, BOB)
    assert start(table, OTHER)[0] == "joined"


def test_a_subscriber_is_claimed_once(table):
    _, row = start(table, RUN, ADA, "Ada")
    (key,) = states.waiting(row)
    assert states.claim(table, RUN, key) is None  # still starting: no message is due
    states.ready(table, row, 1000)
    assert states.claim(table, OTHER, key) is None  # a sender of an earlier run
    with ThreadPoolExecutor(8) as pool:
        claims = [c for c in pool.map(lambda _: states.claim(table, RUN, key), range(8)) if c]
    ((token, subscriber),) = claims
    assert subscriber == Subscriber(ADA, "Ada")
    assert states.settle(table, key, "another token", sent=True) is None
    assert states.settle(table, key, token, sent=True).smsSent == 1
    assert states.read_row(table).subscribers == {}


def test_the_claims_of_a_dead_sender_are_counted_and_erased(table, monkeypatch):
    _, row = start(table, RUN, ADA)
    (key,) = states.waiting(row)
    claimed = states.ready(table, row, 1000) and states.claim(table, RUN, key)
    assert claimed and states.settle_abandoned(table, states.read_row(table)) == 0  # its sender may still be running
    later = states.read_row(table).subscribers[key]["claimedAt"] + states.ABANDONED + 1
    monkeypatch.setattr(states, "time", SimpleNamespace(time=lambda: later))
    assert states.settle_abandoned(table, states.read_row(table)) == 1
    now = states.read_row(table)
    assert (now.smsSent, now.smsFailed, now.subscribers) == (0, 1, {})


@pytest.mark.parametrize("sent", [True, False])
def test_the_end_includes_a_message_that_was_counted_meanwhile(table, sent):
    _, row = start(table, RUN, ADA)
    (key,) = states.waiting(row)
    states.ready(table, row, 1000)
    stopping = states.begin_stopping(table, RUN, 1000)
    token, _ = states.claim(table, RUN, key)
    settled = states.settle(table, key, token, sent)
    assert states.stopped(table, stopping) is None
    now = states.stopped(table, settled)
    assert (now.smsSent, now.smsFailed) == ((1, 0) if sent else (0, 1))


def test_history_keeps_the_newest_starts(table):
    for n in range(states.HISTORY + 3):
        run = f"{n:012x}"
        _, row = start(table, run, daily_starts=100)
        states.ready(table, row, 100)
        states.begin_stopping(table, run, 100)
        states.stopped(table, row)
    assert len(states.read_row(table).history) == states.HISTORY


def test_estimates_prefer_the_same_instance_type():
    history = tuple({"instanceType": t, "seconds": s, "at": 0} for t, s in [("a", 100), ("a", 120), ("b", 900)])
    assert states.typical_seconds(Row("m", history=history), "a") == {"p50": 100, "p90": 120, "starts": 2}
    assert states.typical_seconds(Row("m", history=history), "c")["starts"] == 3


def test_other_errors_are_not_mistaken_for_a_lost_race(table, monkeypatch):
    def throttled(**_):
        raise aws_error("ProvisionedThroughputExceededException")

    monkeypatch.setattr(table.dynamodb, "update_item", throttled)
    with pytest.raises(Exception, match="ProvisionedThroughput"):
        states.apply(table, "ready", RUN)


@pytest.mark.parametrize("settings", [{"daily_messages": 1}, {"address_cooldown_seconds": 60}])
def test_a_guard_holds_for_two_simultaneous_readers(table, monkeypatch, settings):
    guarded = Settings(table=table.name, **{"number_cooldown_minutes": 0, "address_cooldown_seconds": 0} | settings)
    _, stale = start(table, RUN)
    states.start_or_join(table, guarded, StartRequest(OTHER, Subscriber(ADA), "192.0.2.7"))
    reads, read = iter([stale]), states.whole_row
    monkeypatch.setattr(states, "whole_row", lambda table: next(reads, None) or read(table))
    with pytest.raises(Refused):
        states.start_or_join(table, guarded, StartRequest(OTHER[::-1], Subscriber(BOB), "192.0.2.7"))
    assert len(read(table).subscribers) == 1


# --- a full row


ROOMY = {"number_cooldown_minutes": 15, "address_cooldown_seconds": 60, "daily_messages": 100_000}
KEY = "f" * 64
KINDS = {  # the longest and the shortest that the API admits
    "long names": lambda n: {"phone": f"+1202555{n:04}", "name": "𝒜" * 80},
    "umlauts": lambda n: {"phone": f"+1202555{n:04}", "name": "ÄöÜß" * 20},
    "no names": lambda n: {"phone": f"+1202555{n:04}"},
}


@pytest.fixture
def roomy(monkeypatch):
    "An engine that could notify everybody, with a table in memory."
    world = World(monkeypatch, **ROOMY)
    world.dynamodb = world.clients["dynamodb"] = MemoryDynamoDB(table=world.settings.table)
    return world


def ask(world, kind: str, n: int) -> tuple[int, dict]:
    return world.request("POST", "/start", KINDS[kind](n), address=f"192.0.2.{n % 256}")


def fill(world, kind: str) -> int:  # subscribers
    "Fill the row until the next subscriber is refused: write most directly, and add the last ones through the API."
    assert ask(world, kind, 0)[0] == 202
    item, numbers = world.dynamodb.items[world.settings.model_id], itertools.count(1)
    now, more = {"N": str(int(world.clock.now))}, subscriber_of(KINDS[kind](0), world.settings)

    def room() -> int:
        return (states.ROW_LIMIT - states.RESERVE - states.row_size(world.row)) // states.entry_size(more) - 3

    while (fit := room()) > 0:
        for n in itertools.islice(numbers, fit):
            whom = subscriber_of(KINDS[kind](n), world.settings)
            entry = {"to": {"S": whom.to}, "name": {"S": whom.name}, "at": now}
            item["subscribers"]["M"][whom.key] = {"M": entry}
            item["told"]["M"][mark_of(whom.to, KEY)] = item["seen"]["M"][f"{n:06x}"] = {"L": [now]}
    for n in numbers:
        status, body = ask(world, kind, n)
        if status != 202 and "cooldown" not in body["error"]["code"]:  # among so many, two sometimes have the same mark
            assert (status, body["error"]["code"]) == (429, "too_many_waiting")
            return len(world.row.subscribers)
    raise AssertionError("the list is never full")


def bytes_now(world) -> int:
    return item_bytes(world.dynamodb.items[world.settings.model_id])


@pytest.mark.parametrize("kind", KINDS)
def test_the_row_size_limits_the_subscribers_and_a_full_row_survives_a_run(roomy, kind):
    waiting = fill(roomy, kind)
    size = states.row_size(roomy.row)  # with all claims
    assert states.ROW_LIMIT - states.RESERVE - states.ENTRY_LIMIT < size <= states.ROW_LIMIT - states.RESERVE
    assert roomy.start()[0] == 202 and ask(roomy, kind, 0)[0] == 202  # no subscriber is added
    long = "x" * 400
    for reason in (long, long):  # another instance type, and a failed start, with every field that a row can have
        row = states.retry(roomy.engine.table, roomy.row, "b" * 12, "ml.m5.large", reason)
        assert row and states.clear(roomy.engine.table, row, "7")
    history = [{"instanceType": "ml.g4dn.12xlarge", "seconds": 2700, "at": int(roomy.clock.now)}] * states.HISTORY
    roomy.dynamodb.items[roomy.settings.model_id]["history"] = states.TypeSerializer().serialize(history)
    row = states.ready(roomy.engine.table, roomy.row, int(roomy.clock.now) + 1800)
    assert row and len(row.subscribers) == waiting
    first, *others = states.waiting(row)
    claim = {"claim": {"S": "0" * 32}, "claimedAt": {"N": str(int(roomy.clock.now))}}
    for key in others:  # claimed, and not settled yet
        roomy.dynamodb.items[roomy.settings.model_id]["subscribers"]["M"][key]["M"] |= claim
    token, _ = states.claim(roomy.engine.table, row.runId, first)
    assert bytes_now(roomy) <= states.ROW_LIMIT < ITEM_LIMIT and states.settle(roomy.engine.table, first, token, True)
    stopping = states.begin_stopping(roomy.engine.table, row.runId, row.shutdownAt)
    ended = states.stopped(roomy.engine.table, states.read_row(roomy.engine.table))
    assert stopping and (ended.smsSent, ended.smsFailed) == (1, waiting - 1)


PARTITION = {"read": 3000, "write": 1000}  # units per second that DynamoDB allows per partition, and so per row


@pytest.mark.parametrize("kind", KINDS)
def test_the_subscribers_of_a_full_row_are_notified_within_the_time_limit(roomy, kind):
    waiting = fill(roomy, kind)
    template = read_template(ROOT / "infra_scripts/templates/backend.yaml")["Resources"]
    looks = template["ApiStage"]["Properties"]["DefaultRouteSettings"]["ThrottlingRateLimit"]  # a second
    assert math.ceil(bytes_now(roomy) / 4096) * looks <= PARTITION["read"]
    sizes = [bytes_now(roomy)]
    roomy.dynamodb.watch = lambda before, after: sizes.append(item_bytes(after))
    assert roomy.endpoint_becomes("InService") == "ready"
    units = [
        math.ceil(max(change) / 1024) for change in itertools.pairwise(sizes)
    ]  # a write costs the larger size of the two
    time = template["NotificationAndShutdownScheduler"]["Properties"]["Timeout"]
    assert len(units) >= 2 * waiting and sum(units) / PARTITION["write"] <= 0.75 * time
    assert roomy.row.smsSent == waiting == len(set(roomy.phone.tried)) and not roomy.row.subscribers
    roomy.pass_time(1900)
    assert roomy.status()["state"] == "STOPPED" and roomy.nothing_left()


def test_a_full_row_refuses_with_a_retry_time(roomy):
    fill(roomy, "long names")
    roomy.clock.now += 60
    error = ask(roomy, "long names", 9999)[1]["error"]
    assert "today" not in error["message"] and "list is full" in error["message"]
    assert 0 < error["retryAfterSeconds"] <= 600
    assert roomy.endpoint_becomes("InService") == "ready"
    roomy.pass_time(1900)
    assert ask(roomy, "long names", 9999)[1]["outcome"] == "started"


def test_a_failed_start_with_a_full_row_can_be_repeated_without_a_number(roomy):
    waiting = fill(roomy, "long names")
    states.fail(roomy.engine.table, roomy.row, "𝒜" * 10_000)
    roomy.sagemaker.endpoints.clear()
    roomy.clock.now += 3600
    assert ask(roomy, "long names", 9999)[1]["error"]["code"] == "too_many_waiting"
    assert roomy.start()[1]["outcome"] == "started" and len(roomy.row.subscribers) == waiting


@pytest.mark.parametrize("left", [0, 1, 500, 900, 3000, 6000])
def test_simultaneous_subscribers_never_overfill_a_nearly_full_row(roomy, monkeypatch, left):
    "All callers read the row before the first write."
    ask(roomy, "long names", 0)
    stale, table = roomy.row, roomy.engine.table
    limit = states.row_size(stale) + states.RESERVE + left
    monkeypatch.setattr(states, "ROW_LIMIT", limit)
    read, joined = states.whole_row, 0
    for n in range(1, 12):
        reads = iter([stale])
        monkeypatch.setattr(states, "whole_row", lambda table, reads=reads: next(reads, None) or read(table))
        whom = Subscriber(f"+1202555{n:04}", "𝒜" * 80 if n % 2 else "")
        try:
            outcome, row = states.start_or_join(table, roomy.settings, StartRequest(OTHER, whom, f"192.0.2.{n}"))
        except Refused as e:
            assert e.code == "too_many_waiting"
            continue
        joined += outcome == "joined"
        assert states.row_size(row) <= limit - states.RESERVE
    assert len(read(table).subscribers) == 1 + joined


def test_an_entry_replaced_after_the_read_is_detected(table):
    "A settled subscriber makes room for another one in the count, but perhaps not in bytes."
    start(table, RUN, ADA)
    start(table, OTHER, BOB)
    stale = states.read_row(table)
    table.dynamodb.update_item(
        TableName=table.name,
        Key=table.key,
        UpdateExpression="REMOVE subscribers.#k ADD smsFailed :one",
        ExpressionAttributeNames={"#k": states.key_for(stale, BOB)},
        ExpressionAttributeValues={":one": {"N": "1"}},
    )
    with pytest.MonkeyPatch.context() as patch:
        reads, read, seen = iter([stale]), states.whole_row, []
        patch.setattr(states, "whole_row", lambda table: seen.append(1) or next(reads, None) or read(table))
        assert start(table, OTHER, CAROL)[0] == "joined"
    assert len(seen) == 2  # the first write was refused, the row was read again


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_never_underestimated(roomy, kind):
    for n in range(3):
        ask(roomy, kind, n)
        row = roomy.row
        assert bytes_now(roomy) <= states.row_size(row)
    before = states.row_size(row)
    entry = subscriber_of(KINDS[kind](7), roomy.settings)
    ask(roomy, kind, 7)
    assert before < states.row_size(roomy.row) <= before + states.entry_size(entry) <= before + states.ENTRY_LIMIT
