"boto3 retries a write whose answer was lost, and the retry fails its own condition. Nothing may depend on that."

from contextlib import suppress
from dataclasses import replace

import pytest
from botocore.exceptions import ClientError

from sentiment_engine.service import model_state as states
from tests.doubles.engine_double import ADA, BOB, CAROL, World, aws_error


class Repeats:
    "A DynamoDB client that sends all writes twice; the caller gets the second answer."

    def __init__(self, behind):
        self.behind = behind

    def __getattr__(self, operation):
        call = getattr(self.behind, operation)

        def twice(**arguments):
            if operation != "get_item":
                with suppress(ClientError):
                    call(**arguments)
            return call(**arguments)

        return twice


def visit(world):
    world.in_service(ADA, BOB)
    world.clock.now += 600
    assert world.request("POST", "/predict", {"inputs": "ok"})[0] == world.request("POST", "/extend")[0] == 200
    world.pass_time(2000)


def next_type(world):
    world.start(ADA)
    world.endpoint_becomes("Failed", "Unable to provision requested ML compute capacity.")
    world.start(BOB)
    world.endpoint_becomes("InService")


def next_type_after_a_wait(world):
    world.start(ADA)
    world.sagemaker.deaf = True
    world.endpoint_becomes("Failed", "Unable to provision requested ML compute capacity.")
    assert world.row.leftover
    world.sagemaker.deaf = False
    assert world.reconcile()["repair"] == "created"
    world.endpoint_becomes("InService")


def refused_type(world):
    world.sagemaker.errors["create_endpoint"] = [aws_error("ResourceLimitExceeded", "0 Instances")]
    world.start(ADA)


def rolled_back(world):
    world.sagemaker.errors["create_endpoint"] = [aws_error("AccessDeniedException")]
    assert world.start(ADA)[0] == 503
    world.start(CAROL)


def failed(world):
    world.start(ADA)
    world.start(BOB)
    world.endpoint_becomes("Failed", "The image does not exist.")
    world.clock.now += 1000
    world.start(CAROL)


def disappeared(world):
    world.in_service(ADA)
    world.sagemaker.endpoints.clear()
    world.request("POST", "/predict", {"inputs": "ok"})
    world.clock.now += 300
    world.reconcile()


def late_and_overdue(world):
    world.in_service(ADA)
    world.scheduler.schedules.clear()
    world.clock.now += 5 * 3600
    world.reconcile()


def done_early(world):
    token = world.start(ADA)[1]["sleepToken"]
    world.endpoint_becomes("InService")
    assert world.sleep(token)[0] == 202 and world.sleep(token)[0] == 200


def awake_hours(world):
    assert world.wake(60) == "started"
    world.endpoint_becomes("InService")
    world.pass_time(3700)


LIVES = (visit, next_type, next_type_after_a_wait, refused_type, rolled_back, failed, disappeared, late_and_overdue)
LIVES += (done_early, awake_hours)


def lived(monkeypatch, life, repeats: bool) -> dict:
    "Run a lifecycle; return everything that it produced."
    with monkeypatch.context() as patch:
        world = World(patch)
        if repeats:
            world.clients["dynamodb"] = Repeats(world.dynamodb)
        life(world)
        ids = {run_id: f"run {i}" for i, run_id in enumerate(dict.fromkeys(runs_of(world)))}
        row, usage = world.row, world.usage
        left = [ids[name.rpartition("-")[2]] for name in (*world.sagemaker.endpoints, *world.sagemaker.configs)]
        people = sorted((e["to"], e.get("again")) for e in row.subscribers.values())
        plain = replace(row, token="", sleepHash="", runId=ids.get(row.runId, ""), leftover=ids.get(row.leftover, ""))
        told = {kept: sorted(getattr(row, kept).values()) for kept in ("told", "seen")}
        return {
            "row": replace(plain, subscribers={}, told={}, seen={}),
            "people": people,
            "told": told,
            "usage": replace(usage, open={ids[run_id]: run for run_id, run in usage.open.items()}),
            "left": left,
            "sent": sorted(world.phone.sent),
            "calls": [name for name, _ in world.sagemaker.calls],
        }


def runs_of(world) -> list[str]:
    made = [given["EndpointName"] for call, given in world.sagemaker.calls if call == "create_endpoint"]
    return [name.rpartition("-")[2] for name in made] + [world.row.runId, world.row.leftover]


@pytest.mark.parametrize("life", LIVES)
def test_repeating_every_write_does_not_change_a_lifecycle(monkeypatch, life):
    assert lived(monkeypatch, life, repeats=True) == lived(monkeypatch, life, repeats=False)


LEAVES = {action: leaves[0] for action, (leaves, _) in states.TRANSITIONS.items()}


@pytest.mark.parametrize("action", states.TRANSITIONS)
def test_each_transition_recognizes_only_its_own_write(monkeypatch, action):
    "Join and touch belong to many visitors, so the tests check the row."
    world = World(monkeypatch)
    table = replace(world.engine.table, dynamodb=Repeats(world.dynamodb))
    row = states.whole_row(world.engine.table)
    key, value = {"S": LEAVES[action]}, {"N": "5"}
    world.dynamodb.update_item(
        TableName=table.name,
        Key=table.key,
        UpdateExpression="SET #s = :s, startedAt = :n",
        ExpressionAttributeNames={"#s": "state"},
        ExpressionAttributeValues={":s": key, ":n": value},
    )
    demands = {"startedAt": ("=", 5)}
    mine = states.apply(table, action, row.runId, values={"startedAt": 6}, conditions=demands)
    assert (mine is not None) == (action not in ("join", "touch"))
    assert states.read_row(world.engine.table).startedAt == 6
    assert states.apply(table, action, row.runId, values={"startedAt": 6}, conditions=demands) is None
