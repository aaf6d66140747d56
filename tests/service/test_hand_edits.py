"Manual edits, in either table or in the model parameter, end in a valid state and a correct message."

import json
import threading
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sentiment_engine.service import lifecycle, model_state
from sentiment_engine.service.model_state import STATES, Row
from sentiment_engine.service.usage import Usage, day_of
from sentiment_engine.settings import usage_table
from tests.doubles.engine_double import ADA, BOB, World, aws_error
from tests.doubles.memory_dynamodb import MemoryDynamoDB

CALLS = 150  # calls to AWS that no invocation may exceed
ROW = [name for name in Row.__dataclass_fields__ if name != "modelId"]
RUN = {"M": {"instanceType": {"S": "ml.t2.medium"}, "begunAt": {"N": "1799999000"}}}
WRONG = (
    None,  # missing field
    {"S": ""},
    {"S": "IN_SERVICE"},
    {"S": "0f3c5a7e9b1d"},
    {"N": "-1"},
    {"N": "1.5"},
    {"N": "1800000000"},
    {"N": "90000000000000000000000000000000000000"},
    {"BOOL": False},
    {"NULL": True},
    {"B": b"x"},
    {"SS": ["a"]},
    {"NS": ["1"]},
    {"L": []},
    {"L": [{"S": "x"}, {"M": {"instanceType": {"S": "a"}, "seconds": {"S": "b"}}}]},
    {"M": {}},
    {"M": {"x": {"S": "y"}, "2027-01": {"N": "-5"}}},
    {"M": {"k": {"M": {"to": {"N": "1"}}}, "l": {"M": {"to": {"S": "+12025550199"}, "claimedAt": {"S": "x"}}}}},
    {"M": {"0f3c5a7e9b1d": RUN, "aaaaaaaaaaaa": {"N": "1"}}},
)
LIVES = ("never", "stopped", "creating", "in service", "stopping", "failed", "waiting")


class Counted:
    "A client of AWS that counts its calls."

    def __init__(self, behind, counts: list):
        self.behind, self.counts = behind, counts

    def __getattr__(self, operation):
        call = getattr(self.behind, operation)

        def counted(*words, **arguments):
            self.counts.append(operation)
            assert len(self.counts) <= CALLS, f"{operation} again and again"
            return call(*words, **arguments)

        return counted


class Edited(World):
    "An engine in memory whose calls are counted."

    def __init__(self, monkeypatch, **given):
        super().__init__(monkeypatch, **given)
        self.dynamodb, self.counts, self.token = MemoryDynamoDB(table=self.settings.table), [], ""
        for name, client in (("dynamodb", self.dynamodb), ("sagemaker", self.sagemaker)):
            self.clients[name] = Counted(client, self.counts)

    def live(self, life: str):
        "Put the engine into a state."
        if life == "never":
            return
        self.token = self.start(ADA)[1]["sleepToken"]
        self.clock.now += 300
        if life in ("stopped", "in service", "stopping"):
            self.endpoint_becomes("InService")
        self.sagemaker.deaf = life in ("stopping", "failed", "waiting")
        if life in ("stopped", "stopping"):
            self.pass_time(1900)
        if life in ("failed", "waiting"):
            self.endpoint_becomes("Failed", "does not exist" if life == "failed" else "insufficient capacity")
        self.sagemaker.deaf = False

    def edit(self, table: str, changes: dict):
        item = self.dynamodb.tables[table].setdefault(self.settings.model_id, self.engine.table.key)
        for name, value in changes.items():
            item.pop(name, None) if value is None else item.update({name: value})

    def rest(self):
        "Let SageMaker finish, and run the reconciler for a day."
        for seconds in (301, 301, 86_400, 301):
            self.clock.now += seconds
            for endpoint in self.sagemaker.endpoints.values():
                endpoint["status"] = "InService" if endpoint["status"] == "Creating" else endpoint["status"]
            self.call("reconcile")

    def call(self, what: str):
        "Invoke one function. Every answer must be in the API's description, and none may be an internal error."
        self.counts.clear()
        self.scheduler.due(self.clock.now)
        if what in ("status", "start", "extend", "predict", "with a number"):
            method = "GET" if what == "status" else "POST"
            body = {"predict": {"inputs": "ok"}, "with a number": {"phone": BOB}}.get(what)
            path = {"with a number": "start"}.get(what, what)
            code, answer = self.request(method, f"/{path}", body)
            assert code in (200, 202, 402, 409, 429, 503), (what, code, answer)
            assert code != 503 or answer["error"]["code"] in ("start_failed", "busy"), answer
            return code, answer
        if what == "sleep":
            code, answer = self.sleep(self.token)
            assert code in (200, 202, 409), (code, answer)
            return code, answer
        if what == "awake":
            return self.wake(60)
        if what == "reconcile":
            return self.reconcile()
        if what == "wake":
            return self.handlers["shutdown-endpoint"].handler({"runId": self.row.runId or "0f3c5a7e9b1d"}, None)
        return self.event(what, at=0, run_id=self.row.runId or "0f3c5a7e9b1d")


EVERYTHING = ("status", "start", "with a number", "predict", "extend", "sleep", "awake", "wake", "IN_SERVICE", "FAILED")
EVERYTHING += ("reconcile",)
edits = st.dictionaries(st.sampled_from(ROW), st.sampled_from(WRONG), min_size=1, max_size=len(ROW))
usage_edits = st.dictionaries(st.sampled_from(list(Usage.__dataclass_fields__)), st.sampled_from(WRONG), max_size=4)


@given(
    life=st.sampled_from(LIVES),
    changes=edits,
    more=usage_edits,
    calls=st.lists(st.sampled_from(EVERYTHING), min_size=1, max_size=4),
)
@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_every_function_survives_any_edit_and_the_reconciler_repairs_the_row(life, changes, more, calls):
    with pytest.MonkeyPatch.context() as patch:
        world = Edited(
            patch, number_cooldown_minutes=0, address_cooldown_seconds=0, daily_starts=99, monthly_budget=1e6
        )
        world.live(life)
        world.edit(world.settings.table, changes)
        world.edit(usage_table(world.settings), more)
        for what in calls:
            world.call(what)
            running = [n for n, e in world.sagemaker.endpoints.items() if e["status"] in ("Creating", "InService")]
            assert len(running) <= 1
        world.rest()
        row, item = world.row, world.dynamodb.items[world.settings.model_id]
        assert row.state in ("STOPPED", "FAILED") and item["state"]["S"] == row.state
        assert not world.sagemaker.endpoints and not world.sagemaker.configs and not row.subscribers
        assert {name: item[name] for name in ROW} == {
            name: model_state.TypeSerializer().serialize(value) for name, value in vars(row).items() if name in ROW
        }
        assert world.call("start")[1]["outcome"] == "started"


def test_any_single_field_may_be_missing_while_creating_or_in_service(monkeypatch):
    for life in ("creating", "in service"):
        for name in ROW:
            world = Edited(monkeypatch, number_cooldown_minutes=0, address_cooldown_seconds=0)
            world.live(life)
            world.edit(world.settings.table, {name: None})
            for what in ("status", "with a number", "predict"):
                world.call(what)
            world.call("reconcile")
            assert world.row.state in STATES and set(ROW) <= world.dynamodb.items[world.settings.model_id].keys()


@pytest.mark.parametrize("name", ["day", "today", "yesterday", "expiresAt"])
@pytest.mark.parametrize("value", WRONG)
def test_the_keys_for_marks_may_be_edited(monkeypatch, name, value):
    world = Edited(monkeypatch)
    world.call("with a number")
    marks = world.dynamodb.items[f"{world.settings.model_id}#marks"]
    marks.pop(name) if value is None else marks.update({name: value})
    assert world.call("with a number")[0] in (202, 503)
    world.clock.now += 86_400
    world.call("with a number")


def test_repairs_never_undo_a_concurrent_write(monkeypatch):
    world = Edited(monkeypatch)
    world.live("creating")
    world.edit(world.settings.table, {"history": None, "shutdownAt": None})
    read, table = world.dynamodb.get_item, world.engine.table
    deadline = int(world.clock.now) + 1800

    def read_before_it_opens(**arguments):
        found = read(**arguments)
        monkeypatch.setattr(world.dynamodb, "get_item", read)
        assert model_state.ready(table, world.row, deadline)
        return found

    monkeypatch.setattr(world.dynamodb, "get_item", read_before_it_opens)
    row = model_state.whole_row(table)
    assert (row.state, row.shutdownAt, len(row.history)) == ("IN_SERVICE", deadline, 1)


# --- times in the future


@pytest.mark.parametrize("ahead", [3600, 86_400, 10**9, 253_402_300_799 - 1_800_000_300])
@pytest.mark.parametrize("fields", [["startedAt"], ["shutdownAt"], ["since", "startedAt"], ["startedAt", "shutdownAt"]])
@pytest.mark.parametrize("life", ["creating", "in service"])
def test_a_run_ends_within_its_maximum_lifetime_after_any_edit(monkeypatch, life, fields, ahead):
    world = Edited(monkeypatch)
    world.live(life)
    last = world.clock.now + world.settings.max_run_minutes * 60
    world.edit(world.settings.table, {name: {"N": str(int(world.clock.now) + ahead)} for name in fields})
    while world.clock.now < last:
        world.call("wake")
        world.call("reconcile")
        world.call("predict")
        told = world.call("status")[1]
        assert (told["secondsLeft"] or 0) <= last - world.clock.now
        world.clock.now += 600
    world.rest()
    assert world.row.state in ("STOPPED", "FAILED") and not world.sagemaker.endpoints and not world.usage.open
    assert all(at <= last + 2 for at, _ in world.scheduler.schedules.values())


@pytest.mark.parametrize("told", ["-100000", "-1", "99999999999999999999999999999999999999", "1.5"])
def test_the_daily_message_limit_holds_after_any_edit(monkeypatch, told):
    world = Edited(monkeypatch, daily_messages=3, number_cooldown_minutes=0, address_cooldown_seconds=0)
    world.live("stopped")
    usage = {"day": {"S": day_of(world.clock.now)}, "messages": {"N": told}}
    world.edit(world.settings.table, {"usage": {"M": usage}})
    answers = [world.start(f"+1202555{n:04}")[0] for n in range(110, 120)]
    assert answers.count(202) == 2 and set(answers) == {202, 429}  # ADA was the first


@pytest.mark.parametrize("field", ["startedAt", "since"])
def test_a_run_with_edited_fields_reports_no_excessive_cost(monkeypatch, field):
    world, told = Edited(monkeypatch), {}
    world.live("in service")
    monkeypatch.setattr(lifecycle, "emit", lambda *_, by="", **values: told.update(values))
    world.edit(world.settings.table, {field: None})
    world.clock.now += 2000
    world.call("reconcile")
    assert world.row.state == "STOPPED" and 0 <= told["RunCost"] < 0.1


# --- many subscribers


@pytest.mark.parametrize("refusing", ["every write", "writes of the row"])
def test_a_start_whose_writes_all_fail_gets_a_clear_error(monkeypatch, refusing):
    world = Edited(monkeypatch)
    world.live("stopped")
    update = world.dynamodb.update_item

    def refuse(TableName, **arguments):
        if refusing == "every write" or TableName == world.settings.table:
            raise aws_error("ConditionalCheckFailedException")
        return update(TableName=TableName, **arguments)

    monkeypatch.setattr(world.dynamodb, "update_item", refuse)
    begun = world.clock.now
    code, body = world.call("start")
    assert (code, body["error"]["code"]) == (503, "busy") and "Nothing was started" in body["error"]["message"]
    assert world.clock.now - begun < 15 and not world.sagemaker.endpoints


def test_a_start_queries_an_unresponsive_provider_only_once(monkeypatch):
    world, asked = Edited(monkeypatch), []
    world.live("creating")

    def hangs():
        asked.append(world.clock.now)
        world.clock.now += 3

    def refuse(TableName, **arguments):
        if asked and TableName == world.settings.table:
            raise aws_error("ConditionalCheckFailedException")
        return update(TableName=TableName, **arguments)

    update = world.dynamodb.update_item
    monkeypatch.setattr(world.phone, "quota", hangs)
    monkeypatch.setattr(world.dynamodb, "update_item", refuse)
    begun = world.clock.now
    assert world.call("with a number")[0] == 503
    assert len(asked) == 1 and world.clock.now - begun < 18


# --- the model parameter


GARBAGE = ("", " ", "nothing", "[]", "null", "{}", "7", '"m"', '{"modelName": 5}', '{"modelName": ""}', "{", '{"a": 1}')
GARBAGE += ("[" * 4096, '{"a":' * 800, "9" * 4096, "NaN", '{"modelName": NaN}')  # SSM accepts 4,096 characters
GARBAGE += ('{"modelName": "../x"}', '{"modelName": null}', '{"modelName": "m m"}', '{"modelName": ["m"]}')


def with_parameter(world, text: str):
    world.clients["ssm"] = SimpleNamespace(get_parameter=lambda Name: {"Parameter": {"Value": text}})


@pytest.mark.parametrize("text", GARBAGE, ids=lambda text: text[:20])
def test_an_invalid_model_parameter_starts_nothing_and_is_reported(monkeypatch, text):
    world = World(monkeypatch)
    with_parameter(world, text)
    code, body = world.start(ADA)
    assert (code, body["error"]["code"]) == (503, "no_model") and "names no model" in body["error"]["message"]
    assert world.status()["state"] == "STOPPED" and world.nothing_left() and not world.usage.starts


@pytest.mark.parametrize("text", GARBAGE, ids=lambda text: text[:20])
def test_a_model_parameter_edited_during_a_start_ends_the_run_with_a_reason(monkeypatch, text):
    world = World(monkeypatch)
    world.start(ADA)
    with_parameter(world, text)
    world.endpoint_becomes("Failed", "insufficient capacity")
    status = world.status()
    assert status["state"] == "FAILED" and "names no model" in status["reason"] and world.nothing_left()
    assert len(world.phone.sent) == 1


@pytest.mark.parametrize("version", [None, 7, "7", {"a": 1}, ["7"], "9" * 5000, True, 1.5])
def test_a_version_that_is_not_text_is_tolerated(monkeypatch, version):
    world = World(monkeypatch)
    with_parameter(world, json.dumps({"modelName": "m", "version": version}))
    assert world.start()[0] == 202 and len(world.status()["modelVersion"] or "") <= 63


def test_a_start_with_a_deleted_model_does_not_count_and_names_the_model(monkeypatch):
    world = World(monkeypatch, daily_starts=3)
    for _ in range(5):
        world.sagemaker.errors["create_endpoint_config"] = [
            aws_error("ValidationException", 'Could not find model "m".')
        ]
        code, body = world.start()
        assert (code, body["error"]["code"]) == (503, "start_failed") and 'Could not find model "m"' in str(body)
        assert "Nothing was left running" in body["error"]["message"] and world.nothing_left()
    assert not any(world.usage.starts.values()) and not any(world.usage.spent.values())
    assert world.start()[1]["outcome"] == "started"


def test_failed_starts_count_towards_the_daily_limit(monkeypatch):
    world = World(monkeypatch, daily_starts=3)
    for _ in range(3):
        assert world.start()[0] == 202
        world.endpoint_becomes("Failed", "The image does not exist.")
    code, body = world.start()
    assert (code, body["error"]["code"]) == (429, "too_many_starts")
    assert "limit with 3 starts, including failed ones" in body["error"]["message"]


def test_a_failed_start_reports_an_endpoint_that_was_left_behind(monkeypatch):
    world = World(monkeypatch)
    lost = aws_error("InternalFailure", "no answer")
    lost.after = True
    world.sagemaker.errors["create_endpoint"] = [lost]
    body = world.start()[1]
    assert "Nothing was left" not in body["error"]["message"] and "not deleted" in body["error"]["message"]
    assert world.sagemaker.endpoints and list(world.usage.open) == [world.row.runId]


def test_an_answer_names_the_version_in_service(monkeypatch):
    world = World(monkeypatch)
    world.start()
    world.sagemaker.deaf = True
    world.endpoint_becomes("Failed", "insufficient capacity")  # waits until the first endpoint is deleted
    world.model = {"modelName": "sentiment-engine-model-8", "version": "8"}
    world.sagemaker.deaf = False
    assert world.reconcile()["repair"] == "created" and world.endpoint_becomes("InService") == "ready"
    (config,) = world.sagemaker.configs.values()
    predicted = world.request("POST", "/predict", {"inputs": "ok"})[1]
    assert config["model"] == "sentiment-engine-model-8"
    assert world.status()["modelVersion"] == predicted["modelVersion"] == "8"


# --- two tabs


def test_a_number_entered_in_two_tabs_gets_one_message(monkeypatch):
    world, told = World(monkeypatch), []

    def second_tab(**_):
        told.append(world.start(ADA)[1]["outcome"])
        raise aws_error("AccessDeniedException", "not authorized")

    monkeypatch.setattr(world.sagemaker, "do_create_endpoint", second_tab, raising=False)
    monkeypatch.setattr(world.sagemaker, "lock", threading.RLock())
    code, body = world.start(ADA)
    assert (code, body["error"]["code"], told) == (503, "start_failed", ["joined"])
    assert [e["to"] for e in world.row.subscribers.values()] == [ADA]
    world.reconcile()
    assert [phone for phone, _ in world.phone.sent] == [ADA] and not world.row.subscribers


@pytest.mark.parametrize("comes_up", [True, False])
def test_a_number_in_two_tabs_is_one_subscriber_and_gets_one_message(monkeypatch, comes_up):
    world = World(monkeypatch)
    answers = [world.start(ADA) for _ in range(3)]
    assert [body["outcome"] for _, body in answers] == ["started", "joined", "joined"]
    assert world.status()["subscribers"] == 1
    world.endpoint_becomes(*(("InService",) if comes_up else ("Failed", "The image does not exist.")))
    assert [phone for phone, _ in world.phone.sent] == [ADA]


# --- limits that contradict each other


@pytest.mark.parametrize("minutes", [1, 44, 45])
def test_settings_with_a_run_limit_below_the_start_limit_are_refused(minutes):
    with pytest.raises(ValueError, match="creating_minutes"):
        lifecycle.settings_from({"SENTIMENT_MAX_RUN_MINUTES": str(minutes)})


@pytest.mark.parametrize("late", [-30, 0, 60, 3600])
def test_a_start_longer_than_its_run_fails_and_says_why(monkeypatch, late):
    world = World(monkeypatch, max_run_minutes=50)
    world.start(ADA)
    world.clock.now += 50 * 60 + late
    world.endpoint_becomes("InService")
    status = world.status()
    assert status["state"] == "FAILED" and "longer than a run may last" in status["reason"]
    assert status["secondsLeft"] is None and world.nothing_left()
    assert "could not be started" in world.phone.sent[0][1]


@pytest.mark.parametrize("budget", [0.01, 0.45])
def test_a_budget_below_the_cost_of_one_run_is_not_reported_as_used_up(monkeypatch, budget):
    world = World(monkeypatch, monthly_budget=budget)
    code, body = world.start()
    message = body["error"]["message"]
    assert (code, body["error"]["code"]) == (402, "over_budget")
    assert "used up" not in message and "start it again" not in message and f"${budget:.2f}" in message
