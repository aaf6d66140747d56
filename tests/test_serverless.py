"The serverless variant: its endpoint stands from the deployment on, and Start answers at once."

import pytest
from conftest import TestCloud
from engine_double import ADA, World, aws_error
from local_models import HANDLERS, predict, register, until

from sentiment_engine.packaging import stack_parameters
from sentiment_engine.serverless import STANDING, delete_serverless, deploy_serverless, wait_for_serverless
from sentiment_engine.settings import Settings, endpoint_name

OWN = Settings(endpoint="serverless", prefix="paid-by-use")
NAME = endpoint_name(OWN, STANDING)


@pytest.fixture
def world(monkeypatch):
    "An engine of the serverless kind, whose table must never be asked."
    world = World(monkeypatch, endpoint="serverless")
    world.sagemaker.endpoints[endpoint_name(world.settings, STANDING)] = {"status": "InService", "reason": ""}
    monkeypatch.setattr(
        world.engine.settings.__class__, "table", property(lambda _: pytest.fail("the table was asked"))
    )
    return world


def test_status_says_that_it_needs_no_start_and_has_no_deadline(world):
    told = world.status()
    assert told["state"] == "IN_SERVICE" and told["endpoint"] == "serverless"
    nothing = ("shutdownAt", "secondsLeft", "runId", "instanceType", "pricePerHour", "costSoFar", "elapsedSeconds")
    assert {told[name] for name in nothing} == {None}


def test_start_answers_at_once_and_starts_nothing(world):
    code, body = world.start(ADA)
    assert code == 200 and body["outcome"] == "already-in-service" and body["state"] == "IN_SERVICE"
    assert not world.sagemaker.calls and not world.phone.sent and not world.scheduler.schedules


def test_a_wrong_number_is_still_refused(world):
    assert world.start("12345")[1]["error"]["code"] == "invalid_phone"


def test_a_prediction_is_answered_and_moves_no_deadline(world):
    code, body = world.request("POST", "/predict", {"inputs": "Great value."})
    assert code == 200 and body["predictions"] and body["shutdownAt"] is None is body["secondsLeft"]
    asked = [given["EndpointName"] for call, given in world.sagemaker.calls if call == "invoke_endpoint"]
    assert asked == [endpoint_name(world.settings, STANDING)] and not world.scheduler.schedules
    assert world.request("POST", "/extend")[1]["state"] == "IN_SERVICE"


def test_without_a_deployed_model_the_answer_says_so(world):
    world.sagemaker.errors["invoke_endpoint"] = [aws_error("ValidationError", "Endpoint x not found.")]
    code, body = world.request("POST", "/predict", {"inputs": "Great value."})
    assert (code, body["error"]["code"]) == (503, "no_model")


def test_the_reconciler_leaves_it_alone(monkeypatch):
    world = World(monkeypatch, endpoint="serverless")
    tags = [{"Key": "Project", "Value": world.settings.prefix}]
    name = endpoint_name(world.settings, STANDING)
    world.sagemaker.do_create_endpoint_config(
        EndpointConfigName=name, ProductionVariants=[{"InstanceType": ""}], Tags=tags
    )
    world.sagemaker.do_create_endpoint(EndpointName=name, EndpointConfigName=name, Tags=tags)
    world.clock.now += 86_400
    assert world.reconcile()["delete_orphans"] == [] and name in world.sagemaker.endpoints


def test_the_template_is_told():
    assert stack_parameters(OWN, "artifacts", {})["EndpointKind"] == "serverless"
    with pytest.raises(ValueError, match="realtime or serverless"):
        Settings(endpoint="sometimes")


def test_on_the_local_cloud_it_is_made_moved_to_another_model_and_deleted(cloud: TestCloud):
    sagemaker = cloud.client("sagemaker")
    register(cloud, "first-words")
    register(cloud, "other-words", HANDLERS.replace("lovely", "grand"))
    models = [{"modelName": name, "version": name[:5]} for name in ("first-words", "other-words")]
    assert deploy_serverless(sagemaker, OWN, models[0]) == "made"
    wait_for_serverless(sagemaker, OWN)
    assert "POSITIVE" in predict(cloud, NAME, "lovely") and "NEGATIVE" in predict(cloud, NAME, "grand")
    assert [deploy_serverless(sagemaker, OWN, model) for model in (models[0], models[1])] == ["there", "moved"]
    wait_for_serverless(sagemaker, OWN)
    assert "POSITIVE" in predict(cloud, NAME, "grand")
    config = sagemaker.describe_endpoint(EndpointName=NAME)["EndpointConfigName"]
    variant = sagemaker.describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"][0]
    assert variant["ServerlessConfig"] == {"MemorySizeInMB": 3072, "MaxConcurrency": 5}
    assert len(delete_serverless(sagemaker, OWN, keep=config)) == 1
    assert delete_serverless(sagemaker, OWN) == [NAME, config]
    until(lambda: not sagemaker.list_endpoints(NameContains=NAME)["Endpoints"])
