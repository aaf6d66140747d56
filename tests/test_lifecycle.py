"The life of the model through the Lambdas' own handlers: in order, late, twice, out of order and with AWS failing."

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ReadTimeoutError
from engine_double import ADA, BOB, CAROL, World, aws_error

from sentiment_engine import lifecycle, model_state
from sentiment_engine.model_state import StartRequest, Subscriber
from sentiment_engine.settings import endpoint_name


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


def test_a_whole_visit(world):
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


def test_what_is_created_is_named_and_tagged_for_the_run(world):
    world.start()
    run_id = world.row.runId
    tags = [{"Key": "Project", "Value": "sentiment-engine"}, {"Key": "RunId", "Value": run_id}]
    for kind in (world.sagemaker.endpoints, world.sagemaker.configs):
        assert list(kind) == [f"sentiment-engine-{run_id}"] and kind[f"sentiment-engine-{run_id}"]["tags"] == tags


def test_fifty_simultaneous_starts_make_one_run_with_fifty_subscribers(world):
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


def test_an_event_that_was_overtaken_is_checked_against_sagemaker(world):
    world.start(ADA)
    assert world.event("IN_SERVICE") == "ignored"  # SageMaker still says Creating
    assert world.status()["state"] == "CREATING" and not world.phone.tried


def test_a_foreign_endpoint_is_ignored(world):
    for name in ("sentiment-engine-production", "other-0f3c5a7e9b1d", "sentiment-engine-0f3c5a7e9b1d-x"):
        event = {"detail": {"EndpointName": name, "EndpointStatus": "FAILED"}}
        assert world.handlers["notification-and-shutdown-scheduler"].handler(event, None) == {"outcome": "ignored"}
    assert not world.sagemaker.calls


def test_an_endpoint_that_cannot_predict_is_not_ready(world):
    world.sagemaker.answer = [{"label": "LABEL_1", "score": 0.9}]
    world.start(ADA, "Ada")
    world.endpoint_becomes("InService")
    status = world.status()
    assert status["state"] == "FAILED" and "test prediction failed" in status["reason"] and world.nothing_left()
    assert [text.split(":")[0] for _, text in world.phone.sent] == ["Hi Ada, sorry"]


def test_a_canary_that_fails_once_is_tried_again(world):
    world.start()
    world.sagemaker.errors["invoke_endpoint"] = [aws_error("ModelError", "warming up")]
    world.endpoint_becomes("InService")
    assert world.status()["state"] == "IN_SERVICE"


def test_a_failed_endpoint_is_reported_deleted_and_can_be_started_again(world):
    world.start(ADA)
    assert world.endpoint_becomes("Failed", "The container did not pass the ping health check.") == "failed"
    status = world.status()
    assert (status["state"], status["runId"]) == ("FAILED", None) and "ping" in status["reason"]
    assert world.nothing_left() and len(world.phone.sent) == 1
    assert world.start()[1]["outcome"] == "started" and world.status()["reason"] is None


CAPACITY = "Unable to provision requested ML compute capacity due to InsufficientInstanceCapacity error."


@pytest.mark.parametrize("operation", ["create_endpoint_config", "create_endpoint"])
def test_no_quota_for_one_instance_type_takes_the_next(world, operation):
    world.sagemaker.errors[operation] = [aws_error("ResourceLimitExceeded", "The account-level limit is 0")]
    code, body = world.start(ADA)
    assert code == 202 and body["instanceType"] == "ml.m5.large"
    assert [c["type"] for c in world.sagemaker.configs.values()] == ["ml.m5.large"]
    assert len(world.sagemaker.endpoints) == 1 and world.status()["subscribers"] == 1


def test_no_capacity_found_out_later_takes_the_next_and_keeps_who_waits(world):
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


def test_no_capacity_and_no_model_any_more_fails(world):
    world.start(ADA)
    world.model = None
    assert world.endpoint_becomes("Failed", CAPACITY) == "failed"
    assert "No model is registered" in world.status()["reason"] and world.nothing_left()
    assert len(world.phone.sent) == 1


def test_no_capacity_anywhere_fails(world):
    world.start(ADA)
    world.endpoint_becomes("Failed", CAPACITY)
    world.endpoint_becomes("Failed", CAPACITY)
    assert world.status()["state"] == "FAILED" and "capacity" in world.status()["reason"]
    assert world.nothing_left() and len(world.phone.sent) == 1


def test_a_create_that_took_effect_but_whose_answer_was_lost(world):
    for operation in ("create_endpoint_config", "create_endpoint"):
        lost = aws_error("ValidationException", "Cannot create already existing endpoint")
        lost.after = True  # what the SDK's own second try is told
        world.sagemaker.errors[operation] = [lost]
    assert world.start()[0] == 202 and len(world.sagemaker.endpoints) == 1


def test_a_start_given_up_leaves_an_endpoint_that_is_deleted_when_it_comes_up(world):
    lost = ReadTimeoutError(endpoint_url="sagemaker")
    lost.after = True
    world.sagemaker.errors["create_endpoint"] = [lost]
    code, body = world.start(ADA)
    assert (code, body["error"]["code"]) == (503, "start_failed") and world.status()["state"] == "STOPPED"
    assert len(world.sagemaker.endpoints) == 1  # SageMaker deletes no endpoint that is being created
    assert world.endpoint_becomes("InService") == "deleted" and world.nothing_left()
    assert not world.phone.tried  # the visitor read it on the page


def test_who_joined_a_start_that_failed_is_told(world):
    world.start(ADA)
    world.start(BOB)
    model_state.roll_back(world.engine.table, world.row, "no", Subscriber(ADA))
    world.sagemaker.endpoints.clear()
    world.reconcile()
    assert world.phone.tried == [BOB] and world.nothing_left()


def test_start_finishes_a_shutdown_that_somebody_began(world):
    first = world.in_service()
    world.clock.now += 1801
    assert model_state.begin_stopping(world.engine.table, first, int(world.clock.now))
    code, body = world.start(BOB)
    assert (code, body["outcome"]) == (202, "started")
    assert list(world.sagemaker.endpoints) == [f"sentiment-engine-{body['runId']}"] and body["runId"] != first


def test_start_while_the_shutdown_cannot_be_finished(world):
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


def test_extend_moves_the_deadline_and_the_wake_up_comes_back(world):
    world.in_service()
    world.clock.now += 1000
    code, body = world.request("POST", "/extend")
    assert code == 200 and body["secondsLeft"] == 1800
    world.pass_time(900)  # the first wake-up comes within
    assert world.status()["state"] == "IN_SERVICE" and len(world.scheduler.schedules) == 1
    world.pass_time(1000)
    assert world.status()["state"] == "STOPPED" and world.nothing_left()


def test_a_run_ends_at_its_longest_life_however_busy_it_is(world):
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


def test_a_wake_up_that_comes_twice(world):
    run_id = world.in_service()
    world.clock.now += 1801
    shutdown = world.handlers["shutdown-endpoint"].handler
    assert [shutdown({"runId": run_id}, None)["outcome"] for _ in range(2)] == ["stopped", "ignored"]


def test_predictions_while_it_is_put_to_sleep_end_in_a_clean_409(world):
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


def test_one_failing_number_stops_nobody_elses_message(world):
    world.phone.broken = {ADA}
    world.in_service(ADA, BOB, CAROL)
    assert sorted(phone for phone, _ in world.phone.sent) == [BOB, CAROL]
    assert (world.row.smsSent, world.row.smsFailed) == (2, 1) and not world.row.subscribers


def test_a_sender_that_dies_leaves_no_second_message(world):
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
    assert "expiresAt" not in item  # else the row, and the month's bill in it, is gone a day later


def test_a_sender_at_work_is_not_taken_for_dead(world, monkeypatch):
    send = world.phone.send

    def slowly(*message):
        world.clock.now += 20
        world.reconcile()
        send(*message)

    monkeypatch.setattr(world.phone, "send", slowly)
    world.in_service(ADA)
    assert world.phone.tried == [ADA] and (world.row.smsSent, world.row.smsFailed) == (1, 0)


def test_numbers_are_erased_and_expire_anyway(world):
    def expires():
        item = world.dynamodb.get_item(TableName=world.settings.table, Key=world.engine.table.key)["Item"]
        return "expiresAt" in item

    world.start(ADA)
    assert expires()
    world.endpoint_becomes("InService")
    assert not expires() and ADA not in json.dumps(world.row.__dict__, default=str)


# --- the reconciler


def test_lost_events_are_made_up_for(world):
    world.start(ADA)
    world.endpoint_becomes("InService", event=False)
    assert world.reconcile()["repair"] == "ready" and len(world.phone.sent) == 1


def test_a_lost_failure_is_made_up_for(world):
    world.start(ADA)
    world.endpoint_becomes("Failed", "no", event=False)
    assert world.reconcile()["repair"] == "failed" and world.nothing_left()


def test_a_start_that_died_before_it_created_anything(world):
    request = StartRequest("0f3c5a7e9b1d", Subscriber(ADA))
    model_state.start_or_join(world.engine.table, world.settings, request)
    assert world.reconcile()["repair"] == "waiting"
    world.clock.now += 121
    assert world.reconcile()["repair"] == "failed" and "interrupted" in world.status()["reason"]
    assert world.phone.tried == [ADA] and world.nothing_left()


def test_a_start_that_takes_for_ever_is_failed_and_deleted_in_the_end(world):
    world.start(ADA)
    world.clock.now += 46 * 60
    assert world.reconcile()["repair"] == "failed" and "45 minutes" in world.status()["reason"]
    assert world.sagemaker.endpoints  # still creating: SageMaker deletes it no sooner
    next(iter(world.sagemaker.endpoints.values()))["status"] = "InService"
    world.reconcile()
    assert world.nothing_left() and world.phone.tried == [ADA]


def test_a_lost_schedule_is_armed_again(world):
    world.in_service()
    world.scheduler.schedules.clear()
    assert world.reconcile()["repair"] == "rearmed" and len(world.scheduler.schedules) == 1
    assert world.reconcile()["repair"] == "fine"


def test_an_overdue_run_is_stopped_without_a_schedule(world):
    world.in_service()
    world.scheduler.schedules.clear()
    world.clock.now += 1801
    assert world.reconcile()["repair"] == "stopped" and world.nothing_left()


def test_a_shutdown_that_died_halfway_is_finished(world):
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


def test_orphans_of_ours_are_deleted_and_nothing_else(world):
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


def test_a_run_that_begins_while_orphans_are_sought_is_left_alone(world):
    read = model_state.read_row
    with pytest.MonkeyPatch.context() as patch:

        def read_before_a_start(table):
            row = read(table)
            patch.undo()
            world.start()
            return row

        patch.setattr(model_state, "read_row", read_before_a_start)
        assert lifecycle.delete_orphans(world.engine) == []
    assert world.row.state == "CREATING" and len(world.sagemaker.endpoints) == 1


def test_a_forgotten_trial_is_deleted_and_a_fresh_one_is_not(world):
    tags = [{"Key": "Project", "Value": "sentiment-engine"}, {"Key": "Purpose", "Value": "trial"}]
    fresh = {"status": "InService", "reason": "", "tags": tags, "made": world.clock.time()}
    old = fresh | {"made": world.clock.time() - world.settings.creating_minutes * 60 - 1}
    names = {x: f"sentiment-engine-trial-{x * 12}" for x in "abc"}
    for kind in (world.sagemaker.endpoints, world.sagemaker.configs):
        kind |= {names["a"]: old, names["b"]: fresh, names["c"]: old | {"tags": []}}
    assert world.reconcile()["delete_forgotten_trials"] == [names["a"]]
    assert set(world.sagemaker.endpoints) == set(world.sagemaker.configs) == {names["b"], names["c"]}


def test_one_part_of_the_reconciler_failing_does_not_stop_the_other(world):
    run_id = world.in_service()
    name = endpoint_name(world.settings, "aaaaaaaaaaaa")
    tags = [{"Key": "Project", "Value": "sentiment-engine"}, {"Key": "RunId", "Value": "aaaaaaaaaaaa"}]
    world.sagemaker.endpoints[name] = {"status": "InService", "reason": "", "tags": tags}
    world.sagemaker.errors["describe_endpoint"] = [aws_error("InternalFailure")]
    with pytest.raises(RuntimeError, match="reconciler"):
        world.reconcile()
    assert list(world.sagemaker.endpoints) == [endpoint_name(world.settings, run_id)]


def test_whoever_could_not_be_told_before_the_end_is_counted(world):
    world.start(ADA)
    world.endpoint_becomes("InService", event=False)
    row = world.row
    model_state.ready(world.engine.table, row, int(world.clock.now) + 60)  # and the Lambda dies before it tells anybody
    world.clock.now += 61
    assert world.handlers["shutdown-endpoint"].handler({"runId": row.runId}, None) == {"outcome": "stopped"}
    assert not world.phone.tried and (world.row.smsSent, world.row.smsFailed) == (0, 1) and world.nothing_left()


def test_an_endpoint_keeps_a_sample_of_its_answers_and_no_text(world):
    world.start()
    (config,) = world.sagemaker.configs.values()
    assert config["capture"]["InitialSamplingPercentage"] == 20
    place = f"s3://artifacts/captures/{config['model']}"
    assert config["capture"]["DestinationS3Uri"] == place, "answers of one model are not held against another's"
    assert config["capture"]["CaptureOptions"] == [{"CaptureMode": "Output"}]
