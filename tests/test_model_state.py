"The row: every action in every state, as one conditional write that names the state and the run it leaves."

from concurrent.futures import ThreadPoolExecutor

import pytest
from engine_double import ADA, BOB, World, aws_error

from sentiment_engine import model_state as states
from sentiment_engine.guards import Refused
from sentiment_engine.model_state import STATES, TRANSITIONS, Row, StartRequest, Subscriber
from sentiment_engine.settings import Settings

RUN, OTHER = "0f3c5a7e9b1d", "aaaaaaaaaaaa"


@pytest.fixture
def table(monkeypatch):
    return World(monkeypatch).engine.table


def put(table, state: str, run_id: str = RUN):
    "Put the row into a state by force."
    item = {"modelId": {"S": table.model_id}, "state": {"S": state}, "runId": {"S": run_id}, "subscribers": {"M": {}}}
    table.dynamodb.put_item(TableName=table.name, Item=item | {"shutdownAt": {"N": "100"}, "startedAt": {"N": "50"}})


@pytest.mark.parametrize("action", TRANSITIONS)
def test_every_action_in_every_state(table, action):
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
def test_no_action_touches_another_run(table, action):
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


def test_a_model_never_started_is_stopped(table):
    assert states.read_row(table) == Row("amazon-reviews")


def test_the_deadline_never_moves_back(table):
    put(table, "IN_SERVICE")
    assert states.touch(table, RUN, 99) is None
    assert states.touch(table, RUN, 101).shutdownAt == 101


def test_stopping_checks_the_deadline_in_the_same_write(table):
    put(table, "IN_SERVICE")
    assert states.begin_stopping(table, RUN, 99) is None and states.read_row(table).state == "IN_SERVICE"
    assert states.begin_stopping(table, RUN, 100).state == "STOPPING"


def test_stopping_and_touching_at_once_have_one_winner(table):
    for _ in range(20):
        put(table, "IN_SERVICE")
        with ThreadPoolExecutor(2) as pool:
            stopping = pool.submit(states.begin_stopping, table, RUN, 100)
            touched = pool.submit(states.touch, table, RUN, 200)
        assert (stopping.result() is None) != (touched.result() is None)


def start(table, run_id, phone=None, name="", **settings):
    "Press Start as run `run_id`."
    subscriber = Subscriber(phone, name) if phone else None
    return states.start_or_join(table, Settings(**settings), StartRequest(run_id, subscriber))


def test_a_start_whose_answer_was_lost_knows_that_it_won(table):
    assert start(table, RUN, ADA)[0] == "started"
    assert start(table, RUN, ADA)[0] == "started"  # the same run id: the same start
    assert start(table, OTHER, BOB)[0] == "joined"


def test_start_keeps_who_still_waits_from_a_failed_run(table):
    start(table, RUN, ADA)
    states.fail(table, states.read_row(table), "no")
    outcome, row = start(table, OTHER, BOB)
    assert outcome == "started" and {e["to"] for e in row.subscribers.values()} == {ADA, BOB}


def test_the_list_is_finite(table, monkeypatch):
    monkeypatch.setattr(states, "SUBSCRIBER_LIMIT", 1)
    start(table, RUN, ADA)
    with pytest.raises(Refused, match="No more messages"):
        start(table, OTHER, BOB)
    assert start(table, OTHER)[0] == "joined"


def test_a_subscriber_is_claimed_once(table):
    _, row = start(table, RUN, ADA, "Ada")
    (key,) = states.waiting(row)
    assert states.claim(table, RUN, key) is None  # still starting: there is nothing to tell
    states.ready(table, row, 1000)
    assert states.claim(table, OTHER, key) is None  # a former run's sender
    with ThreadPoolExecutor(8) as pool:
        claims = [c for c in pool.map(lambda _: states.claim(table, RUN, key), range(8)) if c]
    ((token, subscriber),) = claims
    assert subscriber == Subscriber(ADA, "Ada")
    assert states.settle(table, key, "another token", sent=True) is None
    assert states.settle(table, key, token, sent=True).smsSent == 1
    assert states.read_row(table).subscribers == {}


@pytest.mark.parametrize("sent", [True, False])
def test_the_end_waits_for_a_message_that_was_counted_meanwhile(table, sent):
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


def test_other_errors_are_not_taken_for_a_lost_race(table, monkeypatch):
    def throttled(**_):
        raise aws_error("ProvisionedThroughputExceededException")

    monkeypatch.setattr(table.dynamodb, "update_item", throttled)
    with pytest.raises(Exception, match="ProvisionedThroughput"):
        states.apply(table, "ready", RUN)


@pytest.mark.parametrize("settings", [{"daily_messages": 1}, {"address_cooldown_seconds": 60}])
def test_a_guard_holds_for_two_who_read_the_row_at_once(table, monkeypatch, settings):
    guarded = Settings(**{"number_cooldown_minutes": 0, "address_cooldown_seconds": 0} | settings)
    _, stale = start(table, RUN)
    states.start_or_join(table, guarded, StartRequest(OTHER, Subscriber(ADA), "192.0.2.7"))
    reads, read = iter([stale]), states.read_row
    monkeypatch.setattr(states, "read_row", lambda table: next(reads, None) or read(table))
    with pytest.raises(Refused):
        states.start_or_join(table, guarded, StartRequest(OTHER[::-1], Subscriber(BOB), "192.0.2.7"))
    assert len(read(table).subscribers) == 1
