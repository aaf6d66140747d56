"The model's lifecycle through the Lambdas' own handlers: in order, late, twice, out of order and with AWS errors."

import io
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ReadTimeoutError

from sentiment_engine.deploy.plan import read_template
from sentiment_engine.service import lifecycle, model_state
from sentiment_engine.service.model_state import StartRequest, Subscriber
from sentiment_engine.settings import endpoint_name
from tests import ROOT
from tests.doubles.engine_double import ADA, BOB, CAROL, World, aws_error, logged


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


def test_a_visit_from_start_to_shutdown(world):
    assert world.status()["state"] == "STOPPED"
    code, body = world.start(ADA, "Ada")
    assert (code, body["outcome"], body["state"], body["subscribers"]) == (202, "started", "CREATING", 1)
    assert body["instanceType"] == "ml.t2.medium" and body["modelVersion"] == "7" and body["etaSeconds"] == 420
    code, body = world.start(BOB, "Bob")
    assert (code, body["outcome"], body["subscribers"]) == (202, "joined", 2)
    world.clock.now += 312
    assert world.endpoint_becomes("InService") == "ready"
    status = world.status()
    assert (status["state"], status["secondsLeft"], status["subscribers"]) == ("IN_SERVICE", 1800, 0)
    assert status["typicalSeconds"] == {"p50": 312, "p90": 312, "starts": 1}
    assert status["costSoFar"] == round(0.056 * 312 / 3600, 4)
    assert sorted(world.phone.sent) == [
        (ADA, "Hi Ada, the sentiment model is ready for 30 minutes: https://site.example"),
        (BOB, "Hi Bob, the sentiment model is ready for 30 minutes: https://site.example"),
    ]
    code, body = world.request("POST", "/predict", {"inputs": ["Great.", "Bad."]})
    assert code == 200 and len(body["predictions"]) == 2 and body["modelVersion"] == "7"
    assert world.start()[1]["outcome"] == "already-in-service"
    world.pass_time(1900)
    assert world.status()["state"] == "STOPPED" and world.nothing_left()
    assert world.status()["etaSeconds"] == 312


def test_created_resources_have_the_name_and_tags_of_the_run(world):
    world.start()
    run_id = world.row.runId
    tags = [{"Key": "Project", "Value": "sentiment-engine"}, {"Key": "RunId", "Value": run_id}]
    for kind in (world.sagemaker.endpoints, world.sagemaker.configs):
        assert list(kind) == [f"sentiment-engine-{run_id}"] and kind[f"sentiment-engine-{run_id}"]["tags"] == tags


def test_fifty_simultaneous_starts_create_one_run_with_fifty_subscribers(world):
    numbers = [f"+1202555{n:04}" for n in range(100, 150)]
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(world.start, numbers))
    assert [code for code, _ in answers] == [202] * 50
    assert sorted(body["outcome"] for _, body in answers) == ["joined"] * 49 + ["started"]
    assert len(world.sagemaker.endpoints) == 1 and world.status()["subscribers"] == 50
    world.endpoint_becomes("InService")
    assert sorted(phone for phone, _ in world.phone.sent) == numbers and world.row.smsSent == 50


def test_the_same_number_twice_gets_one_message(world):
    world.in_service(ADA, ADA)
    assert world.phone.tried == [ADA]


def test_repeated_events_change_nothing(world):
    world.in_service(ADA)
    before = world.row
    world.clock.now += 30
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda _: world.event("IN_SERVICE"), range(5)))
    assert world.row == before and world.phone.tried == [ADA] and len(world.scheduler.schedules) == 1


def test_a_late_event_of_an_earlier_run_changes_nothing(world):
    first = world.in_service()
    world.pass_time(1900)
    world.start(BOB)
    before = world.row
    for status in ("FAILED", "IN_SERVICE"):
        assert world.event(status, first) == "ignored"
    assert world.row == before and not world.phone.tried


EARLY = [("IN_SERVICE", "InService", "ready"), ("FAILED", "Failed", "failed")]


@pytest.mark.parametrize(("told", "status", "outcome"), EARLY)
def test_an_event_ahead_of_the_sagemaker_description_is_retried(world, told, status, outcome):
    world.start(ADA)
    sent = world.clock.now
    with pytest.raises(lifecycle.TooEarly):
        world.event(told)  # SageMaker still reports Creating
    assert world.status()["state"] == "CREATING" and not world.phone.tried
    world.clock.now = sent + 75
    world.endpoint_becomes(status, "no capacity", event=False)
    assert world.event(told, at=sent) == outcome and world.clock.now == sent + 75


@pytest.mark.parametrize(("told", "status", "outcome"), EARLY)
def test_an_event_waits_for_a_description_that_is_seconds_late(world, monkeypatch, told, status, outcome):
    world.start(ADA)
    sleep = world.clock.sleep

    def become(seconds):
        sleep(seconds)
        world.endpoint_becomes(status, event=False)

    monkeypatch.setattr(world.clock, "sleep", become)
    assert world.event(told) == outcome


@pytest.mark.parametrize(("told", "status"), [each[:2] for each in EARLY])
@pytest.mark.parametrize("types", [("ml.t2.medium", "ml.m5.large"), ("ml.t2.medium",)])
def test_an_early_event_of_a_leftover_endpoint_is_retried(monkeypatch, types, told, status):
    world = World(monkeypatch, instance_types=types)
    world.start(ADA)
    first = world.row.runId
    world.clock.now += 46 * 60
    world.reconcile()  # it takes too long, but SageMaker cannot delete an endpoint in creation
    assert world.row.leftover == first
    sent = world.clock.now
    with pytest.raises(lifecycle.TooEarly):
        world.event(told, first)
    world.clock.now = sent + 75
    world.sagemaker.endpoints[endpoint_name(world.settings, first)]["status"] = status
    assert world.event(told, first, at=sent) == "deleted"
    assert [n for n in alive(world) if n == endpoint_name(world.settings, first)] == []
    assert len(alive(world)) == len(types) - 1  # continues with the next type, if there is one


def test_the_last_retry_of_an_early_event_leaves_it_to_the_reconciler(world):
    "A third error would become a dead letter, and an alarm would ring for a problem that is about to be repaired."
    world.start(ADA)
    sent, errors = world.clock.now, 0
    for wait in (0, 60, 120):  # Lambda's retries of an asynchronous event
        world.clock.now += wait
        try:
            assert world.event("IN_SERVICE", at=sent) == "ignored"
        except lifecycle.TooEarly:
            errors += 1
    alarms = read_template(ROOT / "infra_scripts/templates/monitoring.yaml")["Resources"]
    assert errors == 2 < alarms["NotificationAndShutdownSchedulerErrors"]["Properties"]["Threshold"]
    world.endpoint_becomes("InService", event=False)
    assert world.reconcile()["repair"] == "ready" and len(world.phone.sent) == 1


def test_a_stale_early_event_changes_nothing(world):
    first = world.in_service()
    world.pass_time(1900)
    world.start(BOB)
    world.sagemaker.endpoints[endpoint_name(world.settings, first)] = {"status": "Creating", "reason": "", "tags": []}
    before, now = world.row, world.clock.now
    assert world.event("IN_SERVICE", first) == "ignored" and (world.row, world.clock.now) == (before, now)
    world.endpoint_becomes("InService")
    open_row = world.row
    world.sagemaker.endpoints[endpoint_name(world.settings, open_row.runId)]["status"] = "Creating"
    assert world.event("IN_SERVICE") == "ignored" and world.row == open_row


def test_a_foreign_endpoint_is_ignored(world):
    for name in ("sentiment-engine-production", "other-0f3c5a7e9b1d", "sentiment-engine-0f3c5a7e9b1d-x"):
        event = {"detail": {"EndpointName": name, "EndpointStatus": "FAILED"}}
        assert world.handlers["notification-and-shutdown-scheduler"].handler(event, None) == {"outcome": "ignored"}
    assert not world.sagemaker.calls


def test_an_endpoint_that_cannot_answer_is_not_ready(world):
    world.sagemaker.answer = [{"label": "LABEL_1", "score": 0.9}]
    world.start(ADA, "Ada")
    world.endpoint_becomes("InService")
    status = world.status()
    assert status["state"] == "FAILED" and "test prediction failed" in status["reason"] and world.nothing_left()
    assert [text.split(":")[0] for _, text in world.phone.sent] == ["Hi Ada, sorry"]


@pytest.mark.parametrize("body", [b"", b"[" * 90_000, b"[]", b"[[]]", b"{}", b"null", b"[null]", b"\xff", b"9" * 9_000])
def test_an_unreadable_answer_ends_the_start(monkeypatch, body):
    world = World(monkeypatch)
    monkeypatch.setattr(world.sagemaker, "do_invoke_endpoint", lambda **_: {"Body": io.BytesIO(body)}, raising=False)
    world.start(ADA)
    world.endpoint_becomes("InService")
    status = world.status()
    assert status["state"] == "FAILED" and "test prediction failed" in status["reason"] and world.nothing_left()


@pytest.mark.parametrize("way", ["refused create", "refused canary", "wrong answer"])
def test_a_truncated_reason_contains_no_part_of_a_phone_number(monkeypatch, caplog, way):
    world, told = World(monkeypatch, instance_types=("ml.m5.large",)), []
    for length in range(170, 310, 2):  # so that truncation cuts the number
        reason = f"{'x' * length} {ADA} and more"
        operation = {"refused create": "create_endpoint", "refused canary": "invoke_endpoint"}.get(way)
        world.sagemaker.errors = {operation: [aws_error("InternalFailure", reason)] * 3}
        world.sagemaker.answer = [{"label": reason, "score": 0.9}]
        if world.start()[0] == 202:
            world.endpoint_becomes("InService")
        told.append(world.status()["reason"])
        world.clock.now += 86_400
    assert all(told) and ADA[:5] not in " ".join(told) + logged(caplog)


@pytest.mark.parametrize("prefix", ["permission-demo", "conflictexception", "instancetype", "slowdown", "throttle"])
def test_a_prefix_that_looks_like_an_error_code_is_harmless(monkeypatch, prefix):
    world = World(monkeypatch, prefix=prefix)
    world.in_service(ADA)
    world.pass_time(2000)
    assert world.row.state == "STOPPED" and world.nothing_left() and not world.usage.open
    world.sagemaker.errors["create_endpoint"] = [aws_error("InternalFailure", f"no luck with {prefix}-0f3c5a7e9b1d")]
    assert world.start()[1]["error"]["code"] == "start_failed" and world.nothing_left()


def test_a_test_prediction_that_fails_once_is_retried(world):
    world.start()
    world.sagemaker.errors["invoke_endpoint"] = [aws_error("ModelError", "warming up")]
    world.endpoint_becomes("InService")
    assert world.status()["state"] == "IN_SERVICE"


def test_a_failed_endpoint_is_reported_and_deleted_and_start_works_again(monkeypatch):
    world = World(monkeypatch, instance_types=("ml.m5.large",))
    world.start(ADA)
    assert world.endpoint_becomes("Failed", "The container did not pass the ping health check.") == "failed"
    status = world.status()
    assert (status["state"], status["runId"]) == ("FAILED", None) and "ping" in status["reason"]
    assert world.nothing_left() and len(world.phone.sent) == 1
    assert world.start()[1]["outcome"] == "started" and world.status()["reason"] is None


CAPACITY = "Unable to provision requested ML compute capacity due to InsufficientInstanceCapacity error."
UNHEALTHY = "The primary container for production variant AllTraffic did not pass the ping health check."
NO_TYPE = (  # errors of a create for an instance type that this region or account lacks
    ("ResourceLimitExceeded", "The account-level service limit 'ml.t2.medium for endpoint usage' is 0 Instances"),
    (
        "ValidationException",
        "1 validation error detected: Value 'ml.t2.medium' at 'productionVariants.1.member.instanceType' failed to "
        "satisfy constraint: Member must satisfy enum value set: [ml.m5.large, ml.c5.large]",
    ),
    ("ValidationException", "The requested instance type ml.t2.medium is not supported in region eu-south-2."),
)


def alive(world) -> list[str]:
    "List the endpoints that cost money or are about to."
    return [n for n, e in world.sagemaker.endpoints.items() if e["status"] in ("Creating", "InService")]


def types_tried(world) -> list[str]:
    "List the instance types of all configs that were created, in order."
    made = [given for call, given in world.sagemaker.calls if call == "create_endpoint_config"]
    return [given["ProductionVariants"][0]["InstanceType"] for given in made]


@pytest.mark.parametrize("operation", ["create_endpoint_config", "create_endpoint"])
@pytest.mark.parametrize(("code", "message"), NO_TYPE)
def test_a_refused_instance_type_is_replaced_by_the_next(world, operation, code, message):
    world.sagemaker.errors[operation] = [aws_error(code, message)]
    status, body = world.start(ADA)
    assert status == 202 and body["instanceType"] == "ml.m5.large"
    assert [c["type"] for c in world.sagemaker.configs.values()] == ["ml.m5.large"]
    assert len(world.sagemaker.endpoints) == 1 and world.status()["subscribers"] == 1


def test_a_start_whose_instance_types_are_all_refused_fails_with_every_reason(world):
    world.sagemaker.errors["create_endpoint_config"] = [aws_error(*NO_TYPE[0]), aws_error(*NO_TYPE[2])]
    code, body = world.start(ADA)
    assert (code, body["error"]["code"]) == (503, "start_failed")
    for said in (body["error"]["message"], world.status()["reason"]):
        assert "ml.t2.medium: The account-level" in said and "ml.m5.large: The endpoint could not be created" in said
    assert types_tried(world) == ["ml.t2.medium", "ml.m5.large"] and world.nothing_left()


def comes_up_and_does_not_answer(world):
    world.sagemaker.errors["invoke_endpoint"] = [aws_error("ModelError", "Received server error (0)")] * 3
    world.endpoint_becomes("InService")


def is_not_ready_in_time(world):
    world.clock.now += world.settings.creating_minutes * 60 + 1
    assert world.reconcile()["repair"] == "failed"
    if left := world.row.leftover:  # SageMaker deletes no endpoint that it is creating
        world.sagemaker.endpoints[endpoint_name(world.settings, left)]["status"] = "Failed"
        world.reconcile()


NOT_UP = {  # reason for a failed start: how to cause it
    CAPACITY: lambda world: world.endpoint_becomes("Failed", CAPACITY),
    UNHEALTHY: lambda world: world.endpoint_becomes("Failed", UNHEALTHY),
    "CannotStartContainerError": lambda world: (
        world.endpoint_becomes("Failed", "CannotStartContainerError", event=False),
        world.reconcile(),
    ),
    "SageMaker gave no reason": lambda world: world.endpoint_becomes("Failed"),
    "test prediction failed": comes_up_and_does_not_answer,
    "not ready within 45 minutes": is_not_ready_in_time,
}


@pytest.mark.parametrize("reason", NOT_UP)
def test_an_endpoint_that_does_not_come_up_is_tried_once_on_each_instance_type(world, reason):
    world.start(ADA)
    first = world.row.runId
    NOT_UP[reason](world)
    status = world.status()
    assert (status["state"], status["instanceType"], status["subscribers"]) == ("CREATING", "ml.m5.large", 1)
    assert status["reason"].startswith("ml.t2.medium: ") and reason in status["reason"]
    assert alive(world) == [endpoint_name(world.settings, world.row.runId)] and world.row.runId != first
    NOT_UP[reason](world)
    world.reconcile()
    assert world.status()["state"] == "FAILED" and world.nothing_left() and len(world.phone.sent) == 1
    assert types_tried(world) == ["ml.t2.medium", "ml.m5.large"]
    told = world.status()["reason"]
    assert told.count(reason) == 2 and "ml.t2.medium: " in told and "ml.m5.large: " in told


@pytest.mark.parametrize("reason", NOT_UP)
def test_the_next_instance_type_becomes_ready_like_the_first(world, reason):
    world.start(ADA)
    NOT_UP[reason](world)
    world.clock.now += 250
    assert world.endpoint_becomes("InService") == "ready" and len(world.phone.sent) == 1
    status = world.status()
    assert (status["state"], status["reason"]) == ("IN_SERVICE", None)
    assert status["typicalSeconds"] == {"p50": 250, "p90": 250, "starts": 1}  # of this instance type


HOPELESS = (
    "Failed to download model data for container. Please ensure that there is an object located at the URL and that "
    "the role passed to CreateModel has permissions to download the model.",
    "AccessDeniedException: User is not authorized to perform ecr:BatchGetImage",
    'Could not find model "sentiment-engine-model".',
    "The image 'pytorch-inference:2.6' does not exist.",
)


@pytest.mark.parametrize("reason", HOPELESS)
def test_a_failure_independent_of_the_machine_ends_the_run_at_once(world, reason):
    world.start(ADA)
    world.endpoint_becomes("Failed", reason)
    status = world.status()
    assert (status["state"], status["reason"]) == ("FAILED", reason) and world.nothing_left()
    assert types_tried(world) == ["ml.t2.medium"] and len(world.phone.sent) == 1


def test_an_instance_type_listed_twice_is_tried_once(monkeypatch):
    world = World(monkeypatch, instance_types=("ml.t2.medium", "ml.t2.medium"))
    world.start()
    world.endpoint_becomes("Failed", CAPACITY)
    assert world.status()["state"] == "FAILED" and types_tried(world) == ["ml.t2.medium"]


@pytest.mark.parametrize("way", ["event", "reconciler"])
def test_no_second_endpoint_is_created_before_the_first_is_deleted(world, way):
    world.start(ADA)
    first = world.row.runId
    world.clock.now += 46 * 60
    world.reconcile()
    stuck = endpoint_name(world.settings, first)
    for _ in range(3):  # SageMaker does not delete it yet
        world.clock.now += 300
        world.reconcile()
        assert alive(world) == [stuck] and world.status()["state"] == "CREATING"
    world.sagemaker.endpoints[stuck]["status"] = "InService"
    if way == "event":
        assert world.event("IN_SERVICE", first) == "deleted"
    else:
        assert world.reconcile()["repair"] == "created"
    row = world.row
    assert alive(world) == [endpoint_name(world.settings, row.runId)] and row.runId != first
    assert (row.state, row.instanceType, row.since) == ("CREATING", "ml.m5.large", int(world.clock.now))
    assert world.endpoint_becomes("InService") == "ready" and len(world.phone.sent) == 1


def test_an_endpoint_that_is_never_deleted_ends_the_run(world):
    world.start(ADA)
    world.clock.now += 46 * 60
    world.reconcile()
    world.clock.now += 46 * 60
    world.reconcile()
    status = world.status()
    assert status["state"] == "FAILED" and "not deleted the endpoint of an earlier attempt" in status["reason"]
    assert len(world.phone.sent) == 1


@pytest.mark.parametrize("operation", ["delete_endpoint", "delete_endpoint_config"])
def test_a_start_is_refused_until_an_earlier_endpoint_is_deleted(monkeypatch, operation):
    world = World(monkeypatch, instance_types=("ml.m5.large",))
    world.start()
    first = world.row.runId
    world.sagemaker.errors[operation] = [aws_error("InternalFailure")]
    world.endpoint_becomes("Failed", UNHEALTHY)
    assert world.status()["state"] == "FAILED"
    world.sagemaker.errors[operation] = [aws_error("InternalFailure")]
    code, body = world.start(ADA)
    assert (code, body["error"]["code"]) == (409, "stopping") and "not deleted yet" in body["error"]["message"]
    assert not alive(world) and world.row.runId == first
    assert (first in world.usage.open) == bool(world.sagemaker.endpoints)  # a leftover config costs nothing
    assert world.start(ADA)[1]["outcome"] == "started" and len(alive(world)) == 1
    assert world.endpoint_becomes("InService") == "ready" and len(world.phone.sent) == 1


def goes_on_after_a_failure(world):
    world.sagemaker.answer = [{"label": "LABEL_1", "score": 0.9}]  # no other instance type would help
    world.endpoint_becomes("InService")
    world.sagemaker.answer[0] |= {"label": "POSITIVE"}
    assert world.status()["state"] == "FAILED"


def goes_on_with_another_type(world):
    world.sagemaker.errors["invoke_endpoint"] = [aws_error("ModelError", "Received server error (0)")] * 3
    world.endpoint_becomes("InService")
    assert world.status()["instanceType"] == "ml.m5.large"


def goes_on_after_sleep(world):
    world.endpoint_becomes("InService")
    world.clock.now = world.row.shutdownAt + 1
    outcome = world.handlers["shutdown-endpoint"].handler({"runId": world.row.runId}, None)
    assert outcome == {"outcome": "stopping"} and world.status()["state"] == "STOPPING"


@pytest.mark.parametrize("go_on", [goes_on_after_a_failure, goes_on_with_another_type, goes_on_after_sleep])
def test_no_second_endpoint_is_created_while_an_accepted_deletion_has_no_effect(world, go_on):
    "AWS may accept a deletion without carrying it out, for example during an update of the endpoint."
    world.start(ADA)
    first = endpoint_name(world.settings, world.row.runId)
    world.sagemaker.deaf = True
    go_on(world)
    for _ in range(3):
        world.clock.now += 300
        world.start(BOB)
        try:
            world.reconcile()
        finally:
            assert alive(world) == [first]
    world.sagemaker.deaf = False
    world.reconcile()
    world.start(CAROL)
    (second,) = alive(world)
    assert second == endpoint_name(world.settings, world.row.runId) != first
    assert world.endpoint_becomes("InService") == "ready"


def waits_for_the_first(world):
    "Let the first instance type take too long; SageMaker can delete it from now on."
    world.start(ADA)
    world.clock.now += 46 * 60
    world.reconcile()
    world.sagemaker.endpoints[endpoint_name(world.settings, world.row.leftover)]["status"] = "Failed"


def test_the_reconciler_reports_the_result_of_a_waiting_run(world):
    waits_for_the_first(world)
    world.sagemaker.deaf = True
    assert world.reconcile()["repair"] == "waiting" and world.status()["state"] == "CREATING"
    world.sagemaker.deaf = False
    assert world.reconcile()["repair"] == "created" and len(alive(world)) == 1


def test_the_reconciler_reports_that_a_waiting_run_has_failed(world):
    waits_for_the_first(world)
    world.sagemaker.errors["create_endpoint"] = [aws_error("InternalFailure")]
    assert world.reconcile()["repair"] == "failed" and world.status()["state"] == "FAILED"


def test_the_reconciler_reports_that_a_waiting_run_has_no_model(world):
    waits_for_the_first(world)
    world.model = None
    assert world.reconcile()["repair"] == "failed" and world.status()["state"] == "FAILED"


def test_two_concurrent_repairs_create_one_endpoint(world, monkeypatch):
    world.start(ADA)
    world.clock.now += 46 * 60
    world.reconcile()
    next(iter(world.sagemaker.endpoints.values()))["status"] = "Failed"
    clear, others = model_state.clear, []

    def clear_after_somebody_else(table, row, version):
        if not others:
            others.append(1)
            world.reconcile()
        return clear(table, row, version)

    monkeypatch.setattr(model_state, "clear", clear_after_somebody_else)
    world.reconcile()
    assert types_tried(world) == ["ml.t2.medium", "ml.m5.large"] and len(alive(world)) == 1


def test_a_late_lack_of_capacity_tries_the_next_type_and_keeps_subscribers(world):
    world.start(ADA)
    first = world.row.runId
    world.clock.now += 200
    world.endpoint_becomes("Failed", CAPACITY)
    assert world.event("FAILED", first) == "ignored"  # the same event again
    status = world.status()
    assert (status["state"], status["instanceType"], status["subscribers"]) == ("CREATING", "ml.m5.large", 1)
    assert status["elapsedSeconds"] == 200 and list(world.sagemaker.endpoints) == [
        f"sentiment-engine-{world.row.runId}"
    ]
    world.endpoint_becomes("InService")
    assert len(world.phone.sent) == 1 and world.status()["state"] == "IN_SERVICE"


def test_a_start_without_capacity_and_without_a_model_fails(world):
    world.start(ADA)
    world.model = None
    assert world.endpoint_becomes("Failed", CAPACITY) == "failed"
    assert "No model is registered" in world.status()["reason"] and world.nothing_left()
    assert len(world.phone.sent) == 1


def test_a_start_without_any_capacity_fails(world):
    world.start(ADA)
    world.endpoint_becomes("Failed", CAPACITY)
    world.endpoint_becomes("Failed", CAPACITY)
    assert world.status()["state"] == "FAILED" and "capacity" in world.status()["reason"]
    assert world.nothing_left() and len(world.phone.sent) == 1


def test_a_creation_whose_answer_was_lost_is_recognized(world):
    for operation in ("create_endpoint_config", "create_endpoint"):
        lost = aws_error("ValidationException", "Cannot create already existing endpoint")
        lost.after = True  # the answer to the SDK's own retry
        world.sagemaker.errors[operation] = [lost]
    assert world.start()[0] == 202 and len(world.sagemaker.endpoints) == 1


def test_the_endpoint_of_an_abandoned_start_is_deleted_once_it_is_ready(world):
    lost = ReadTimeoutError(endpoint_url="sagemaker")
    lost.after = True
    world.sagemaker.errors["create_endpoint"] = [lost]
    code, body = world.start(ADA)
    assert (code, body["error"]["code"]) == (503, "start_failed") and world.status()["state"] == "STOPPED"
    assert len(world.sagemaker.endpoints) == 1  # SageMaker deletes no endpoint that is being created
    assert world.endpoint_becomes("InService") == "deleted" and world.nothing_left()
    assert not world.phone.tried  # the visitor has seen it on the page


def test_subscribers_of_a_failed_start_get_a_message(world):
    world.start(ADA)
    world.start(BOB)
    model_state.roll_back(world.engine.table, world.row, "no", Subscriber(ADA))
    world.sagemaker.endpoints.clear()
    world.reconcile()
    assert world.phone.tried == [BOB] and world.nothing_left()


def test_a_start_finishes_an_unfinished_shutdown(world):
    first = world.in_service()
    world.clock.now += 1801
    assert model_state.begin_stopping(world.engine.table, first, int(world.clock.now))
    code, body = world.start(BOB)
    assert (code, body["outcome"]) == (202, "started")
    assert list(world.sagemaker.endpoints) == [f"sentiment-engine-{body['runId']}"] and body["runId"] != first


def test_a_start_is_refused_while_the_shutdown_cannot_finish(world):
    first = world.in_service()
    world.clock.now += 1801
    model_state.begin_stopping(world.engine.table, first, int(world.clock.now))
    world.sagemaker.errors["delete_endpoint"] = [aws_error("InternalFailure")] * 2
    code, body = world.start(BOB)
    assert (code, body["error"]["code"], body["error"]["state"]) == (409, "stopping", "STOPPING")
    world.reconcile()
    assert world.status()["state"] == "STOPPED" and world.nothing_left()


def test_predictions_move_the_deadline_at_most_once_a_minute(world):
    world.in_service()
    first = world.row.shutdownAt
    world.clock.now += 30
    assert world.request("POST", "/predict", {"inputs": "ok"})[0] == 200 and world.row.shutdownAt == first
    world.clock.now += 600
    body = world.request("POST", "/predict", {"inputs": "ok"})[1]
    assert world.row.shutdownAt == first + 630 and body["secondsLeft"] == 1800


@pytest.mark.parametrize(
    ("idle", "path", "passed", "moved"),
    [
        (30, "/predict", 59, 0),
        (30, "/predict", 60, 60),
        (1, "/predict", 14, 0),  # a short service moves after a quarter of it
        (1, "/predict", 15, 15),
        (30, "/extend", 1, 1),
    ],
)
def test_small_changes_of_the_deadline_are_not_written(monkeypatch, idle, path, passed, moved):
    world = World(monkeypatch, idle_minutes=idle)
    world.in_service()
    first = world.row.shutdownAt
    world.clock.now += passed
    assert world.request("POST", path, {"inputs": "ok"})[0] == 200
    assert world.row.shutdownAt == first + moved


def test_a_request_of_an_earlier_run_does_not_move_a_later_deadline(world):
    world.in_service()
    earlier = world.row
    world.pass_time(world.settings.idle_minutes * 60 + 90)
    world.in_service()
    world.clock.now += 100
    later = world.row
    assert lifecycle.extend(world.engine, earlier) is None and world.row == later


def test_an_extension_moves_the_deadline_and_schedules_another_wake_up(world):
    world.in_service()
    world.clock.now += 1000
    code, body = world.request("POST", "/extend")
    assert code == 200 and body["secondsLeft"] == 1800
    world.pass_time(900)  # the first wake-up is within
    assert world.status()["state"] == "IN_SERVICE" and len(world.scheduler.schedules) == 1
    world.pass_time(1000)
    assert world.status()["state"] == "STOPPED" and world.nothing_left()


def test_a_busy_run_ends_at_its_maximum_lifetime(world):
    world.in_service()
    for _ in range(30):
        world.pass_time(600)
        world.request("POST", "/extend")
    assert world.status()["state"] == "STOPPED" and world.nothing_left()
    stopped = next(c for c in world.sagemaker.calls if c[0] == "delete_endpoint")
    assert stopped[1]["EndpointName"].startswith("sentiment-engine-")


def test_a_wake_up_of_another_run_changes_nothing(world):
    world.in_service()
    before = world.row
    world.clock.now += 5000
    shutdown = world.handlers["shutdown-endpoint"].handler
    assert shutdown({"runId": "0f3c5a7e9b1d"}, None) == {"outcome": "ignored"} and world.row == before


def test_a_duplicate_wake_up_is_ignored(world):
    run_id = world.in_service()
    world.clock.now += 1801
    shutdown = world.handlers["shutdown-endpoint"].handler
    assert [shutdown({"runId": run_id}, None)["outcome"] for _ in range(2)] == ["stopped", "ignored"]


def test_predictions_during_the_shutdown_get_a_409(world):
    world.in_service()
    world.clock.now += 1801

    def sleep(_):
        return world.handlers["shutdown-endpoint"].handler({"runId": world.row.runId}, None)

    def predict(_):
        return world.request("POST", "/predict", {"inputs": "ok"})

    with ThreadPoolExecutor(12) as pool:
        slept, answers = pool.map(sleep, range(4)), list(pool.map(predict, range(20)))
        list(slept)
    codes = {code for code, _ in answers}
    assert codes <= {200, 409} and all("state" in body["error"] for code, body in answers if code == 409)
    assert bool(world.sagemaker.endpoints) == (world.status()["state"] == "IN_SERVICE")


def test_one_failing_number_does_not_affect_other_messages(world):
    world.phone.broken = {ADA}
    world.in_service(ADA, BOB, CAROL)
    assert sorted(phone for phone, _ in world.phone.sent) == [BOB, CAROL]
    assert (world.row.smsSent, world.row.smsFailed) == (2, 1) and not world.row.subscribers


def test_a_killed_sender_causes_no_second_message(world):
    world.start(ADA)
    world.start(BOB)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.phone, "send", lambda *_: (_ for _ in ()).throw(SystemExit("killed")))
        with pytest.raises(SystemExit):
            world.endpoint_becomes("InService")
    world.clock.now += 400
    world.reconcile()
    assert len(world.phone.tried) == len(set(world.phone.tried))
    assert world.row.smsSent + world.row.smsFailed == 2 and not world.row.subscribers
    item = world.dynamodb.get_item(TableName=world.settings.table, Key=world.engine.table.key)["Item"]
    assert "expiresAt" not in item  # otherwise the row, with the month's costs, is deleted a day later


def test_a_slow_sender_is_not_mistaken_for_a_killed_one(world, monkeypatch):
    send = world.phone.send

    def slowly(*message):
        world.clock.now += 20
        world.reconcile()
        send(*message)

    monkeypatch.setattr(world.phone, "send", slowly)
    world.in_service(ADA)
    assert world.phone.tried == [ADA] and (world.row.smsSent, world.row.smsFailed) == (1, 0)


def test_numbers_are_deleted_after_use_and_expire_otherwise(world):
    def expires():
        item = world.dynamodb.get_item(TableName=world.settings.table, Key=world.engine.table.key)["Item"]
        return "expiresAt" in item

    world.start(ADA)
    assert expires()
    world.endpoint_becomes("InService")
    assert not expires() and ADA not in json.dumps(world.row.__dict__, default=str)


# --- the reconciler


def test_the_reconciler_replaces_lost_events(world):
    world.start(ADA)
    world.endpoint_becomes("InService", event=False)
    assert world.reconcile()["repair"] == "ready" and len(world.phone.sent) == 1


def test_the_reconciler_replaces_a_lost_failure_event(monkeypatch):
    world = World(monkeypatch, instance_types=("ml.m5.large",))
    world.start(ADA)
    world.endpoint_becomes("Failed", "no", event=False)
    assert world.reconcile()["repair"] == "failed" and world.nothing_left()


def test_a_start_killed_before_creating_anything_is_cleaned_up(world):
    request = StartRequest("0f3c5a7e9b1d", Subscriber(ADA))
    model_state.start_or_join(world.engine.table, world.settings, request)
    assert world.reconcile()["repair"] == "waiting"
    world.clock.now += 121
    assert world.reconcile()["repair"] == "failed" and "interrupted" in world.status()["reason"]
    assert world.phone.tried == [ADA] and world.nothing_left()


def test_a_start_that_never_finishes_fails_and_is_deleted(monkeypatch):
    world = World(monkeypatch, instance_types=("ml.m5.large",))
    world.start(ADA)
    world.clock.now += 46 * 60
    assert world.reconcile()["repair"] == "failed" and "45 minutes" in world.status()["reason"]
    assert world.sagemaker.endpoints  # still creating: SageMaker cannot delete it earlier
    next(iter(world.sagemaker.endpoints.values()))["status"] = "InService"
    world.reconcile()
    assert world.nothing_left() and world.phone.tried == [ADA]


def test_a_lost_schedule_is_created_again(world):
    world.in_service()
    world.scheduler.schedules.clear()
    assert world.reconcile()["repair"] == "rearmed" and len(world.scheduler.schedules) == 1
    assert world.reconcile()["repair"] == "fine"


def test_an_overdue_run_is_stopped_without_a_schedule(world):
    world.in_service()
    world.scheduler.schedules.clear()
    world.clock.now += 1801
    assert world.reconcile()["repair"] == "stopped" and world.nothing_left()


def test_a_shutdown_killed_halfway_is_finished(world):
    world.in_service()
    world.clock.now += 1802
    world.sagemaker.errors["delete_endpoint_config"] = [aws_error("ThrottlingException")]
    assert world.handlers["shutdown-endpoint"].handler({"runId": world.row.runId}, None) == {"outcome": "stopping"}
    assert world.status()["state"] == "STOPPING"
    assert world.reconcile()["repair"] == "stopped" and world.nothing_left()


def test_an_endpoint_deleted_by_hand_ends_the_run(world):
    world.in_service()
    world.sagemaker.endpoints.clear()
    assert world.reconcile()["repair"] == "failed" and world.status()["state"] == "FAILED" and world.nothing_left()


def test_only_orphaned_endpoints_of_the_engine_are_deleted(world):
    run_id = world.in_service()
    tags = [{"Key": "Project", "Value": "sentiment-engine"}, {"Key": "RunId", "Value": "aaaaaaaaaaaa"}]
    orphan = {"status": "InService", "reason": "", "tags": tags, "type": "ml.t2.medium"}
    untagged, foreign = orphan | {"tags": []}, orphan | {"tags": [{"Key": "Project", "Value": "other"}]}
    for kind in (world.sagemaker.endpoints, world.sagemaker.configs):
        kind["sentiment-engine-aaaaaaaaaaaa"] = orphan
        kind["sentiment-engine-bbbbbbbbbbbb"] = untagged
        kind["sentiment-engine-cccccccccccc"] = foreign
        kind["sentiment-engine-production"] = orphan
        kind["my-sentiment-engine-aaaaaaaaaaaa"] = orphan
    assert world.reconcile()["delete_orphans"] == ["aaaaaaaaaaaa"]
    kept = {f"sentiment-engine-{x}" for x in (run_id, "bbbbbbbbbbbb", "cccccccccccc", "production")}
    kept |= {"my-sentiment-engine-aaaaaaaaaaaa"}
    assert set(world.sagemaker.endpoints) == set(world.sagemaker.configs) == kept


def test_a_run_that_begins_during_the_search_for_orphans_is_kept(world):
    read = model_state.read_row
    with pytest.MonkeyPatch.context() as patch:

        def read_before_a_start(table):
            row = read(table)
            patch.undo()
            world.start()
            world.endpoint_becomes("InService", event=False)
            return row

        patch.setattr(model_state, "read_row", read_before_a_start)
        assert lifecycle.delete_orphans(world.engine) == []
    assert world.row.state == "CREATING" and len(world.sagemaker.endpoints) == 1


def test_a_forgotten_trial_is_deleted_and_a_recent_one_is_kept(world):
    tags = [{"Key": "Project", "Value": "sentiment-engine"}, {"Key": "Purpose", "Value": "trial"}]
    fresh = {"status": "InService", "reason": "", "tags": tags, "made": world.clock.time()}
    old = fresh | {"made": world.clock.time() - world.settings.creating_minutes * 60 - 1}
    names = {x: f"sentiment-engine-trial-{x * 12}" for x in "abc"}
    for kind in (world.sagemaker.endpoints, world.sagemaker.configs):
        kind |= {names["a"]: old, names["b"]: fresh, names["c"]: old | {"tags": []}}
    assert world.reconcile()["delete_forgotten_trials"] == [names["a"]]
    assert set(world.sagemaker.endpoints) == set(world.sagemaker.configs) == {names["b"], names["c"]}


def test_a_failure_in_one_part_of_the_reconciler_does_not_stop_the_others(world):
    run_id = world.in_service()
    name = endpoint_name(world.settings, "aaaaaaaaaaaa")
    tags = [{"Key": "Project", "Value": "sentiment-engine"}, {"Key": "RunId", "Value": "aaaaaaaaaaaa"}]
    world.sagemaker.endpoints[name] = {"status": "InService", "reason": "", "tags": tags}
    world.sagemaker.errors["describe_endpoint"] = [aws_error("InternalFailure")]
    with pytest.raises(RuntimeError, match="reconciler"):
        world.reconcile()
    assert list(world.sagemaker.endpoints) == [endpoint_name(world.settings, run_id)]


def test_unsent_messages_are_counted(world):
    world.start(ADA)
    world.endpoint_becomes("InService", event=False)
    row = world.row
    model_state.ready(world.engine.table, row, int(world.clock.now) + 60)  # killed before it sends a message
    world.clock.now += 61
    assert world.handlers["shutdown-endpoint"].handler({"runId": row.runId}, None) == {"outcome": "stopped"}
    assert not world.phone.tried and (world.row.smsSent, world.row.smsFailed) == (0, 1) and world.nothing_left()


def test_an_endpoint_captures_a_sample_of_its_answers_and_no_text(world):
    world.start()
    (config,) = world.sagemaker.configs.values()
    assert config["capture"]["InitialSamplingPercentage"] == 20
    place = f"s3://artifacts/captures/{config['model']}"
    assert config["capture"]["DestinationS3Uri"] == place, "a new model's answers are not compared with another's"
    assert config["capture"]["CaptureOptions"] == [{"CaptureMode": "Output"}]


# --- the hard limit


def refuse_to(operation: str):
    def break_it(world, monkeypatch):
        def refuse(**_):
            raise aws_error("ValidationException", "Item size to update has exceeded the maximum allowed size")

        monkeypatch.setattr(world.dynamodb if operation == "update_item" else world.sagemaker, operation, refuse)

    return break_it


TROUBLES = {
    "the row cannot be written": refuse_to("update_item"),
    "SageMaker describes nothing": refuse_to("describe_endpoint"),
    "nobody can be told": lambda world, monkeypatch: monkeypatch.setattr(
        model_state, "claim", lambda *_: (_ for _ in ()).throw(aws_error("ValidationException"))
    ),
}


@pytest.mark.parametrize("state", ["CREATING", "IN_SERVICE"])
@pytest.mark.parametrize("trouble", TROUBLES)
def test_no_fault_keeps_an_endpoint_beyond_the_hard_limit(world, monkeypatch, trouble, state):
    world.start(ADA)
    if state == "IN_SERVICE":
        world.endpoint_becomes("InService", event=False)
        model_state.ready(world.engine.table, world.row, int(world.clock.now) + 1800)
    else:
        world.sagemaker.endpoints[endpoint_name(world.settings, world.row.runId)]["status"] = "InService"
    with monkeypatch.context() as patch:
        TROUBLES[trouble](world, patch)
        world.clock.now = world.row.startedAt + world.settings.max_run_minutes * 60
        try:
            world.reconcile()
        except RuntimeError as e:
            assert "reconciler" in str(e)
        assert not world.sagemaker.endpoints and not world.sagemaker.configs
    world.reconcile()
    assert world.status()["state"] in ("STOPPED", "FAILED") and world.nothing_left()


# --- the logs of endpoints


DAY = 86_400


def test_logs_of_endpoints_expire_and_those_of_old_runs_are_deleted(world):
    now, run = world.clock.now, endpoint_name(world.settings, world.in_service())
    gone, old = f"sentiment-engine-{'a' * 12}", f"sentiment-engine-{'b' * 12}"
    trial, old_trial = f"sentiment-engine-trial-{'c' * 12}", f"sentiment-engine-trial-{'d' * 12}"
    for name in (run, gone, trial):
        world.logs.write(name, now)
    for name in (old, old_trial):
        world.logs.write(name, now - 16 * DAY, retentionInDays=14)
    foreign = ["sentiment-engine-production", "sentiment-engine-two", f"sentiment-engine-two-{'e' * 12}"]
    foreign += [f"my-sentiment-engine-{'f' * 12}", f"sentiment-engine-{'a' * 12}-x"]
    for name in foreign:
        world.logs.write(name, now - 99 * DAY)
    assert world.reconcile()["expire_endpoint_logs"] == {"limited": 3, "deleted": 2}
    kept = {name.rpartition("/")[2]: group.get("retentionInDays") for name, group in world.logs.groups.items()}
    assert kept == dict.fromkeys((run, gone, trial), 14) | dict.fromkeys(foreign)
    assert world.reconcile()["expire_endpoint_logs"] == {"limited": 0, "deleted": 0}


def test_the_log_of_an_existing_endpoint_is_never_deleted(world):
    run = endpoint_name(world.settings, world.in_service())
    world.logs.write(run, world.clock.now - 99 * DAY)
    assert world.reconcile()["expire_endpoint_logs"] == {"limited": 1, "deleted": 0}


@pytest.mark.parametrize(("stored", "deleted"), [(5, 0), (0, 1)])
def test_the_empty_log_of_a_deleted_serverless_endpoint_is_deleted(world, stored, deleted):
    world.logs.write("sentiment-engine-serverless", world.clock.now - 99 * DAY, storedBytes=stored, retentionInDays=14)
    assert world.reconcile()["expire_endpoint_logs"] == {"limited": 0, "deleted": deleted}


def test_many_old_logs_are_deleted_a_few_at_a_time(world):
    world.logs.page = 7
    for n in range(45):
        world.logs.write(f"sentiment-engine-{n:012x}", world.clock.now - 16 * DAY)
    rounds = [world.reconcile()["expire_endpoint_logs"]["deleted"] for _ in range(4)]
    assert rounds == [20, 20, 5, 0] and not world.logs.groups


def test_a_log_deleted_by_another_process_is_no_error(world, monkeypatch):
    world.logs.write(f"sentiment-engine-{'a' * 12}", world.clock.now - 16 * DAY)
    listed = world.logs.describe_log_groups(logGroupNamePrefix="/")
    monkeypatch.setattr(world.logs, "describe_log_groups", lambda **_: listed)
    assert [world.reconcile()["expire_endpoint_logs"]["deleted"] for _ in range(2)] == [1, 1]


@pytest.mark.parametrize("to", ["https://hook.example/x", "+1", "+1202555012x", "12025550123", "+" + "1" * 16, ""])
def test_an_invalid_number_gets_no_message(world, to):
    "Earlier versions stored webhook URLs in the list."
    world.start(ADA)
    entry = {"M": {"to": {"S": to}, "name": {"S": ""}, "secret": {"S": "s"}}}
    world.dynamodb.update_item(
        TableName=world.settings.table,
        Key=world.engine.table.key,
        UpdateExpression="SET subscribers.k = :entry",
        ExpressionAttributeValues={":entry": entry},
    )
    world.endpoint_becomes("InService")
    world.reconcile()
    assert world.phone.tried == [ADA]
    assert world.engine.table.item()["subscribers"] == {"M": {}}
