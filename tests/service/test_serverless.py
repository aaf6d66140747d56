"The serverless variant: its endpoint exists from the deployment on, and Start answers at once."

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError

from sentiment_engine.costs import SERVERLESS_GB_SECOND
from sentiment_engine.deploy.packaging import stack_parameters
from sentiment_engine.deploy.plan import read_template
from sentiment_engine.deploy.policies import LAB, filled
from sentiment_engine.service.api import WAKE_SECONDS
from sentiment_engine.service.lifecycle import client_of
from sentiment_engine.service.serverless import (
    STANDING,
    delete_serverless,
    deploy_serverless,
    prediction_cost,
    serverless_config,
    wait_for_serverless,
)
from sentiment_engine.service.usage import MICRO, month_of, read_usage, spend
from sentiment_engine.settings import Settings, endpoint_name
from tests import ROOT
from tests.conftest import TestCloud
from tests.doubles.engine_double import ADA, World, aws_error
from tests.doubles.local_models import HANDLERS, predict, register, until

OWN = Settings(endpoint="serverless", prefix="paid-by-use")
NAME = endpoint_name(OWN, STANDING)
MADE = datetime(2026, 11, 30, tzinfo=UTC)
SITE = {"ApiId": "a1", "SiteOrigin": "https://d1.cloudfront.net"}


@pytest.fixture
def world(monkeypatch):
    "A serverless engine, whose row must never be read."
    world = engine_of(monkeypatch)
    monkeypatch.setattr("sentiment_engine.service.model_state.read_row", lambda _: pytest.fail("the row was read"))
    return world


class Stopwatch:
    "A clock that each prediction advances by some seconds."

    def __init__(self, world, monkeypatch):
        self.now, self.seconds, invoke = 0.0, 0.0, world.sagemaker.do_invoke_endpoint

        def slowly(**given):
            self.now += self.seconds
            return invoke(**given)

        monkeypatch.setattr(world.sagemaker, "do_invoke_endpoint", slowly, raising=False)
        monkeypatch.setattr("sentiment_engine.service.serverless.time", SimpleNamespace(perf_counter=lambda: self.now))


def engine_of(monkeypatch, **settings) -> World:
    "Return a serverless engine with its endpoint in service."
    world = World(monkeypatch, endpoint="serverless", **settings)
    world.watch = Stopwatch(world, monkeypatch)
    world.sagemaker.endpoints[endpoint_name(world.settings, STANDING)] = {"status": "InService", "reason": ""}
    return world


def test_the_status_says_that_no_start_is_needed_and_has_no_deadline(world):
    told = world.status()
    assert told["state"] == "IN_SERVICE" and told["endpoint"] == "serverless"
    nothing = ("shutdownAt", "secondsLeft", "runId", "instanceType", "pricePerHour", "costSoFar", "elapsedSeconds")
    assert {told[name] for name in nothing} == {None}


def test_a_start_answers_at_once_and_starts_nothing(world):
    code, body = world.start(ADA)
    assert code == 200 and body["outcome"] == "already-in-service" and body["state"] == "IN_SERVICE"
    assert not world.sagemaker.calls and not world.phone.sent and not world.scheduler.schedules


def test_a_wrong_number_is_still_refused(world):
    assert world.start("12345")[1]["error"]["code"] == "invalid_phone"


def test_a_prediction_is_answered_and_changes_no_deadline(world):
    code, body = world.request("POST", "/predict", {"inputs": "Great value."})
    assert code == 200 and body["predictions"] and body["shutdownAt"] is None is body["secondsLeft"]
    asked = [given["EndpointName"] for call, given in world.sagemaker.calls if call == "invoke_endpoint"]
    assert asked == [endpoint_name(world.settings, STANDING)] and not world.scheduler.schedules
    assert world.request("POST", "/extend")[1]["state"] == "IN_SERVICE"


def test_without_a_deployed_model_the_error_explains_it(world):
    world.sagemaker.errors["invoke_endpoint"] = [aws_error("ValidationError", "Endpoint x not found.")]
    code, body = world.request("POST", "/predict", {"inputs": "Great value."})
    assert (code, body["error"]["code"]) == (503, "no_model")


# ---- costs

ONE = prediction_cost(OWN)  # microdollars of a typical prediction


def ask(world, times: int = 1, **more) -> list[int]:  # statuses
    return [world.request("POST", "/predict", {"inputs": "Great value."} | more)[0] for _ in range(times)]


def test_predictions_beyond_the_budget_are_refused_and_the_status_shows_spending(monkeypatch):
    world = engine_of(monkeypatch, monthly_budget=30.5 * ONE / MICRO)
    assert world.status()["spentThisMonth"] == 0 and world.status()["monthlyBudget"] == world.settings.monthly_budget
    assert ask(world, 40) == [200] * 30 + [402] * 10
    invoked = [call for call, _ in world.sagemaker.calls if call == "invoke_endpoint"]
    assert len(invoked) == 30, "a refused request costs nothing"
    status, told = world.request("POST", "/predict", {"inputs": "Great value."})
    error = told["error"]
    assert (status, error["code"]) == (402, "over_budget") and "The model answers again from 1 " in error["message"]
    now = datetime.fromtimestamp(world.clock.now, UTC)
    month = (now.replace(day=1, hour=0, minute=0, second=0) + timedelta(days=32)).replace(day=1)
    assert error["retryAfterSeconds"] == pytest.approx(month.timestamp() - world.clock.now, abs=2)
    assert world.status()["spentThisMonth"] == pytest.approx(30 * ONE / MICRO, abs=1e-4)
    world.clock.now += error["retryAfterSeconds"]
    assert ask(world) == [200], "a new month, a new budget"


def test_the_budget_holds_for_simultaneous_requests(monkeypatch):
    world = engine_of(monkeypatch, monthly_budget=10 * ONE / MICRO)
    Stopwatch(world, monkeypatch)  # a busy machine makes no prediction more expensive
    with ThreadPoolExecutor(8) as pool:
        statuses = [status for each in pool.map(lambda _: ask(world, 5), range(8)) for status in each]
    assert statuses.count(200) == 10 and statuses.count(402) == 30


def test_the_cost_of_a_prediction_depends_on_time_and_memory(monkeypatch):
    for memory in (1024, 3072, 6144):
        world = engine_of(monkeypatch, serverless_memory_mb=memory)
        total, own = 0, world.settings
        for world.watch.seconds in (0.01, 0.12, 1.5, 20):
            assert ask(world) == [200]
            total += prediction_cost(own, world.watch.seconds)
        assert read_usage(world.engine.usage).spent == {month_of(world.clock.now): total}
        assert prediction_cost(own, 20) == round(20 * memory / 1024 * SERVERLESS_GB_SECOND * MICRO)
        assert prediction_cost(own, 0.01) == prediction_cost(own) >= 0.12 * memory / 1024 * SERVERLESS_GB_SECOND * MICRO


def test_only_the_last_accepted_prediction_can_exceed_the_budget(monkeypatch):
    world = engine_of(monkeypatch, monthly_budget=ONE / MICRO)
    world.watch.seconds = 24
    assert ask(world, 5) == [200, 402, 402, 402, 402]
    assert read_usage(world.engine.usage).spent == {month_of(world.clock.now): prediction_cost(OWN, 24)}


UNBILLED = [
    aws_error("ThrottlingException"),
    aws_error("ServiceUnavailable"),
    aws_error("ValidationError", "not found"),
]


@pytest.mark.parametrize("error", UNBILLED, ids=lambda e: e.response["Error"]["Code"])
def test_requests_refused_by_sagemaker_cost_nothing(world, error):
    world.sagemaker.errors["invoke_endpoint"] = [error]
    assert ask(world) == [503]
    assert not any(read_usage(world.engine.usage).spent.values())


def test_failed_and_late_predictions_are_booked(world):
    told = ReadTimeoutError(endpoint_url="https://x")
    world.sagemaker.errors["invoke_endpoint"] = [model_error(OriginalStatusCode=500, OriginalMessage="x"), told]
    world.watch.seconds = 24
    assert ask(world) == [502]
    assert sum(read_usage(world.engine.usage).spent.values()) == ONE
    assert ask(world) == [503]  # the container may continue for a minute after the client has stopped waiting
    assert sum(read_usage(world.engine.usage).spent.values()) == ONE + prediction_cost(OWN, 60)


def test_a_failed_booking_stops_the_request_and_a_failed_correction_does_not(monkeypatch):
    world = engine_of(monkeypatch)
    update, calls = world.dynamodb.update_item, []

    class Broken:
        def __getattr__(self, name):
            return getattr(world.dynamodb, name)

        def update_item(self, **given):
            calls.append(given)
            if len(calls) in broken:
                raise aws_error("InternalServerError")
            return update(**given)

    usage = replace(world.engine.usage, dynamodb=Broken())
    monkeypatch.setattr(world.engine.__class__, "usage", property(lambda _: usage))
    broken = ()
    assert ask(world) == [200]
    calls.clear()
    broken, world.watch.seconds = (1,), 10
    assert ask(world) == [503] and len(calls) == 1
    calls.clear()
    broken = (2,)
    assert ask(world) == [200] and len(calls) == 2


@pytest.mark.parametrize("item", [{}, {"spent": {"S": "nothing"}}, {"since": {"N": "5"}}, {"open": {"M": {}}}])
def test_an_edited_item_is_repaired_and_counts(world, item):
    table = world.engine.usage
    world.dynamodb.put_item(TableName=table.name, Item=table.key | item)
    assert ask(world, 3) == [200] * 3
    assert read_usage(table).spent == {month_of(world.clock.now): 3 * ONE}
    assert read_usage(table).since == (5 if "since" in item else int(world.clock.now))


def test_a_typical_prediction_takes_two_writes_and_no_read(world, monkeypatch):
    assert ask(world) == [200]
    calls = []

    class Counted:
        def __getattr__(self, name):
            return lambda **given: calls.append(name) or getattr(world.dynamodb, name)(**given)

    usage = replace(world.engine.usage, dynamodb=Counted())
    monkeypatch.setattr(world.engine.__class__, "usage", property(lambda _: usage))
    assert ask(world, 4) == [200] * 4 and calls == ["update_item"] * 8


def model_error(**more) -> ClientError:
    "Make SageMaker's ModelError with the container's answer."
    error = {"Code": "ModelError", "Message": "Received server error"}
    return ClientError({"Error": error, **more}, "InvokeEndpoint")


TIMED_OUT = "Your invocation timed out while waiting for a response from container primary."
COLD = {
    "no answer in time": ReadTimeoutError(endpoint_url="https://x"),
    "ModelNotReadyException": aws_error("ModelNotReadyException"),
    "ServiceUnavailable": aws_error("ServiceUnavailable"),
    "InternalDependencyException": aws_error("InternalDependencyException"),
    "ModelError of SageMaker": model_error(OriginalStatusCode=0, OriginalMessage=TIMED_OUT),
    "ModelError without a word": model_error(),
    "no worker yet": model_error(OriginalStatusCode=503, OriginalMessage='{"code": 503, "message": "no worker"}'),
}


@pytest.mark.parametrize("cold", COLD)
def test_a_cold_endpoint_returns_waking_and_a_retry_time(world, cold):
    world.sagemaker.errors["invoke_endpoint"] = [COLD[cold]]
    code, body = world.request("POST", "/predict", {"inputs": "Great value."})  # the contract checks headers
    assert (code, body["error"]["code"], body["error"]["retryAfterSeconds"]) == (503, "waking", WAKE_SECONDS)
    assert world.request("POST", "/predict", {"inputs": "Great value."})[0] == 200


@pytest.mark.parametrize("cold", COLD)
def test_an_instance_endpoint_never_returns_waking(monkeypatch, cold):
    world = World(monkeypatch)
    world.in_service()
    world.sagemaker.errors["invoke_endpoint"] = [COLD[cold]]
    code, body = world.request("POST", "/predict", {"inputs": "Great value."})
    assert code in (502, 503, 504) and body["error"]["code"] in ("busy", "model_error", "model_timeout")


COMPLAINT = '{"error": {"code": "empty_input", "message": "Text 1 is empty."}}'
WARM = [  # errors of a running container, of a busy one, and of one that cannot be reached
    (aws_error("ThrottlingException", "Rate exceeded"), 503, "busy"),
    (aws_error("Throttling", "Rate exceeded"), 503, "busy"),
    (model_error(OriginalStatusCode=429, OriginalMessage='{"error": {"code": "busy", "message": "x"}}'), 503, "busy"),
    (model_error(OriginalStatusCode=400, OriginalMessage=COMPLAINT), 400, "empty_input"),
    (model_error(OriginalStatusCode=500, OriginalMessage="Traceback"), 502, "model_error"),
    (EndpointConnectionError(endpoint_url="https://x"), 504, "model_timeout"),
    (aws_error("AccessDeniedException"), 502, "model_error"),
]


@pytest.mark.parametrize(("error", "status", "code"), WARM)
def test_other_errors_are_not_reported_as_a_cold_start(world, error, status, code):
    world.sagemaker.errors["invoke_endpoint"] = [error]
    got, body = world.request("POST", "/predict", {"inputs": "Great value."})
    assert (got, body["error"]["code"]) == (status, code) and "retryAfterSeconds" not in body["error"]


def test_a_cold_start_is_answered_before_the_gateway_times_out(monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    resources = read_template(ROOT / "infra_scripts/templates/backend.yaml")["Resources"]
    config = client_of("sagemaker-runtime").meta.config
    assert config.retries["total_max_attempts"] == 1
    assert (
        config.connect_timeout + config.read_timeout
        <= resources["InvokeSagemakerEndpoint"]["Properties"]["Timeout"] - 3
    )


def test_the_reconciler_keeps_a_serverless_endpoint(monkeypatch):
    world = World(monkeypatch, endpoint="serverless")
    tags = [{"Key": "Project", "Value": world.settings.prefix}]
    name = endpoint_name(world.settings, STANDING)
    world.sagemaker.do_create_endpoint_config(
        EndpointConfigName=name, ProductionVariants=[{"ModelName": "words", "InstanceType": ""}], Tags=tags
    )
    world.sagemaker.do_create_endpoint(EndpointName=name, EndpointConfigName=name, Tags=tags)
    world.clock.now += 86_400
    assert world.reconcile()["delete_orphans"] == [] and name in world.sagemaker.endpoints


def test_the_template_gets_the_endpoint_kind_and_memory():
    told = stack_parameters(replace(OWN, serverless_memory_mb=6144), "artifacts", {}, SITE, "secret")
    assert (told["EndpointKind"], told["ServerlessMemoryMb"]) == ("serverless", "6144")
    with pytest.raises(ValueError, match="realtime, serverless or lambda"):
        Settings(endpoint="sometimes")


def test_the_local_cloud_creates_updates_and_deletes_a_serverless_endpoint(cloud: TestCloud):
    sagemaker = cloud.client("sagemaker")
    register(cloud, "first-words")
    register(cloud, "other-words", HANDLERS.replace("lovely", "grand"))
    models = [{"modelName": name, "version": name[:5]} for name in ("first-words", "other-words")]
    assert deploy_serverless(sagemaker, OWN, models[0]) == "made"
    wait_for_serverless(sagemaker, OWN, models[0])
    assert "POSITIVE" in predict(cloud, NAME, "lovely") and "NEGATIVE" in predict(cloud, NAME, "grand")
    assert [deploy_serverless(sagemaker, OWN, model) for model in (models[0], models[1])] == ["there", "moved"]
    wait_for_serverless(sagemaker, OWN, models[1])
    assert "POSITIVE" in predict(cloud, NAME, "grand")
    config = sagemaker.describe_endpoint(EndpointName=NAME)["EndpointConfigName"]
    variant = sagemaker.describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"][0]
    assert variant["ServerlessConfig"] == {"MemorySizeInMB": 3072, "MaxConcurrency": 5}
    assert len(delete_serverless(sagemaker, OWN, keep=config)) == 1
    assert delete_serverless(sagemaker, OWN) == [NAME, config]
    until(lambda: not sagemaker.list_endpoints(NameContains=NAME)["Endpoints"])


class Account:
    """SageMaker in an account.

    A change lasts until the next description, and SageMaker refuses others meanwhile. A failed update leaves the old
    config in service, and an endpoint that never came up can only be deleted.
    """

    def __init__(self):
        self.configs, self.endpoint, self.next, self.reason = {}, None, None, ""

    def _found(self, thing: dict | None) -> dict:
        if thing is None:
            raise aws_error("ValidationException", "Could not find it.")
        return thing

    def _at_rest(self) -> dict:
        if self.next is not None:
            raise aws_error("ValidationException", "Cannot update in-progress endpoint.")
        return self._found(self.endpoint)

    def describe_endpoint(self, EndpointName):
        told = self._found(self.endpoint)
        if self.next is not None:  # empty: it succeeds
            self.endpoint, self.next = self.next or None, None
        return told

    def describe_endpoint_config(self, EndpointConfigName):
        return self._found(self.configs.get(EndpointConfigName))

    def create_endpoint_config(self, **config):
        self.configs[config["EndpointConfigName"]] = config

    def create_endpoint(self, EndpointName, EndpointConfigName, Tags):
        assert self.endpoint is None and EndpointConfigName in self.configs
        self.endpoint = {"EndpointArn": EndpointName, "EndpointConfigName": EndpointConfigName, "Tags": Tags}
        ended = {"EndpointStatus": "Failed", "FailureReason": self.reason} if self.reason else {}
        self.next = self.endpoint | ({"EndpointStatus": "InService"} | ended)
        self.endpoint["EndpointStatus"] = "Creating"

    def update_endpoint(self, EndpointName, EndpointConfigName):
        assert self._at_rest()["EndpointStatus"] == "InService"
        old = {"FailureReason": self.reason} if self.reason else {}
        self.next = self.endpoint | (old or {"EndpointConfigName": EndpointConfigName})
        self.endpoint = self.endpoint | {"EndpointStatus": "Updating"}

    def delete_endpoint(self, EndpointName):
        self.endpoint, self.next = self._at_rest() | {"EndpointStatus": "Deleting"}, {}

    def list_tags(self, ResourceArn):
        return {"Tags": (self.configs.get(ResourceArn) or self.endpoint)["Tags"]}

    def get_paginator(self, _):
        found = [{"EndpointConfigName": name, "EndpointConfigArn": name, "CreationTime": MADE} for name in self.configs]
        return SimpleNamespace(paginate=lambda NameContains: [{"EndpointConfigs": found}])

    def delete_endpoint_config(self, EndpointConfigName):
        assert not self.endpoint or self.endpoint["EndpointConfigName"] != EndpointConfigName, "it is in use"
        self._found(self.configs.pop(EndpointConfigName, None))


MODELS = [{"modelName": f"model-{version}", "version": version} for version in ("one", "two")]


@pytest.fixture
def account(monkeypatch):
    clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: None)
    monkeypatch.setattr("sentiment_engine.polling.time", clock)
    return Account()


def test_an_endpoint_that_never_became_ready_is_created_again(account):
    account.reason = "no memory left"
    assert deploy_serverless(account, OWN, MODELS[0]) == "made"
    with pytest.raises(RuntimeError, match="is Failed: no memory left"):
        wait_for_serverless(account, OWN, MODELS[0])
    account.reason = ""
    assert deploy_serverless(account, OWN, MODELS[0]) == "made"
    wait_for_serverless(account, OWN, MODELS[0])
    assert deploy_serverless(account, OWN, MODELS[0]) == "there"


def test_a_failed_update_is_reported_and_can_be_repeated(account):
    first, second = (serverless_config(OWN, model)["EndpointConfigName"] for model in MODELS)
    deploy_serverless(account, OWN, MODELS[0])
    account.reason = "the model does not load"
    assert deploy_serverless(account, OWN, MODELS[1]) == "moved"  # after the creation
    with pytest.raises(RuntimeError, match="still serves the previous model instead of two: the model does not load"):
        wait_for_serverless(account, OWN, MODELS[1])
    assert account.endpoint["EndpointConfigName"] == first
    account.reason = ""
    assert deploy_serverless(account, OWN, MODELS[1]) == "moved"
    wait_for_serverless(account, OWN, MODELS[1])
    assert delete_serverless(account, OWN, keep=second) == [first]
    assert delete_serverless(account, OWN) == [NAME, second] and account.endpoint is None


def test_an_endpoint_in_creation_is_deleted_after_its_creation(account):
    deploy_serverless(account, OWN, MODELS[0])
    assert NAME in delete_serverless(account, OWN) and not account.configs


def test_resources_of_an_engine_with_a_longer_prefix_are_kept(account):
    other = Settings(endpoint="serverless", prefix=f"{OWN.prefix}-serverless")
    deploy_serverless(account, other, MODELS[0])
    account.endpoint["EndpointStatus"], account.next = "InService", None
    assert delete_serverless(account, OWN) == [] and account.endpoint and len(account.configs) == 1
    with pytest.raises(RuntimeError, match="does not belong to this engine"):
        deploy_serverless(account, OWN, MODELS[0])


LAMBDAS = {
    "IsModelServiceRunning": ("GET", "/status", None),
    "StartModelService": ("POST", "/start", {}),
    "InvokeSagemakerEndpoint": ("POST", "/predict", {"inputs": "Great value."}),
    "ExtendShutdownTimer": ("POST", "/extend", None),
}


def statements(function: str, kind: str, standby: bool = False) -> list[dict]:
    "Return what a function's role may do, for the tables of an engine named lab."
    found = read_template(ROOT / "infra_scripts/templates/backend.yaml")["Resources"][f"{function}Role"]["Properties"]
    sides = {"Realtime": kind == "realtime", "HasEndpoint": kind != "lambda", "HasStandby": standby}
    sides |= {"CountsUsage": standby or kind == "serverless", "Snapshots": False, "Bounded": False, "UsesSns": False}
    return filled(found, LAB, sides)["Policies"][0]["PolicyDocument"]["Statement"]


class ForRole:
    "DynamoDB as seen by a role."

    def __init__(self, world, role: list[dict]):
        self.world, self.role = world, role

    def __getattr__(self, operation):
        call, action = getattr(self.world.dynamodb, operation), operation.title().replace("_", "")

        def checked(TableName, **given):
            table = TableName.replace(self.world.settings.table, LAB["TableName"])
            on = f"arn:aws:dynamodb:us-east-1:{LAB['AWS::AccountId']}:table/{table}"
            for each in self.role:
                named = each["Resource"] if isinstance(each["Resource"], list) else [each["Resource"]]
                if f"dynamodb:{action}" in each["Action"] and on in named:
                    return call(TableName=TableName, **given)
            raise aws_error("AccessDeniedException", f"not authorized to perform {action} on {on}")

        return checked


@pytest.mark.parametrize("counted", [False, True], ids=["nothing counted yet", "counted"])
@pytest.mark.parametrize("kind", ["serverless", "realtime", "realtime, asleep, with a standby", "lambda"])
@pytest.mark.parametrize("function", LAMBDAS)
def test_each_function_may_access_what_it_reads_and_writes(monkeypatch, function, kind, counted):
    endpoint, _, standby = kind.partition(", asleep, with a ")
    world = engine_of(monkeypatch) if endpoint == "serverless" else World(monkeypatch, endpoint=endpoint)
    if kind == "realtime" or (function == "ExtendShutdownTimer" and endpoint == "realtime"):
        world.in_service()
    if counted:
        spend(world.engine.usage, 1, world.clock.now)
    if standby or endpoint == "lambda":
        world.with_standby()
    role = statements(function, endpoint, bool(world.engine.standby))
    world.clients["dynamodb"] = ForRole(world, role)
    assert world.request(*LAMBDAS[function])[0] in (200, 202)


def test_the_predict_function_writes_to_one_table_only():
    table = f"arn:aws:dynamodb:us-east-1:{LAB['AWS::AccountId']}:table/{LAB['TableName']}"
    for kind, wanted in (("serverless", f"{table}-usage"), ("lambda", f"{table}-usage"), ("realtime", table)):
        role = statements("InvokeSagemakerEndpoint", kind, standby=kind == "lambda")
        assert [each["Resource"] for each in role if "dynamodb:UpdateItem" in each["Action"]] == [wanted]
    told = read_template(ROOT / "infra_scripts/templates/backend.yaml")["Resources"]["InvokeSagemakerEndpoint"][
        "Properties"
    ]
    assert {"SENTIMENT_MONTHLY_BUDGET", "SENTIMENT_SERVERLESS_MEMORY_MB"} <= told["Environment"]["Variables"].keys()
