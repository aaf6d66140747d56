"For every status that SageMaker reports, there is at most one endpoint, and finally it is deleted and booked."

import pytest

from tests.doubles.engine_double import ADA, World

ANSWERS = ("Updating", "SystemUpdating", "RollingBack", "UpdateRollbackFailed")  # these states still predict
CHANGES = ANSWERS[:3]  # and cannot be deleted


@pytest.fixture
def world(monkeypatch) -> World:
    return World(monkeypatch, idle_minutes=30)


def set_status(world: World, status: str):
    "Give the only endpoint a status without an event."
    (endpoint,) = world.sagemaker.endpoints.values()
    endpoint["status"] = status


def at_rest(world: World) -> bool:
    "Check that nothing is left and every run is booked."
    return world.nothing_left() and not world.usage.open


@pytest.mark.parametrize("status", ANSWERS)
def test_an_open_model_stays_open_while_its_endpoint_answers(world, status):
    world.in_service(ADA)
    set_status(world, status)
    world.reconcile()
    assert world.status()["state"] == "IN_SERVICE"
    assert world.request("POST", "/predict", {"inputs": "Great."})[0] == 200


@pytest.mark.parametrize("status", CHANGES)
def test_a_model_that_cannot_be_deleted_at_its_deadline_is_deleted_later(world, status):
    world.in_service(ADA)
    set_status(world, status)
    world.pass_time(2_400, reconcile=True)
    assert world.status()["state"] == "STOPPING" and world.usage.open
    assert world.start()[0] != 202 and len(world.sagemaker.endpoints) == 1
    set_status(world, "InService")
    world.pass_time(600, reconcile=True)
    assert world.status()["state"] == "STOPPED" and at_rest(world)
    assert world.start()[0] == 202


def test_an_endpoint_whose_update_failed_is_deleted_at_its_deadline(world):
    world.in_service(ADA)
    set_status(world, "UpdateRollbackFailed")
    world.pass_time(2_400, reconcile=True)
    assert world.status()["state"] == "STOPPED" and at_rest(world)


@pytest.mark.parametrize("status", CHANGES)
def test_a_start_waits_while_aws_changes_the_endpoint(world, status):
    world.start(ADA)
    set_status(world, status)
    assert world.event("IN_SERVICE") == "ignored"
    world.reconcile()
    assert world.status()["state"] == "CREATING" and not world.phone.sent
    assert world.endpoint_becomes("InService") == "ready"
    assert world.status()["state"] == "IN_SERVICE" and len(world.phone.sent) == 1


@pytest.mark.parametrize("status", ["Failed", "OutOfService"])
@pytest.mark.parametrize("opened", [False, True])
def test_an_endpoint_that_stops_answering_ends_its_attempt(world, status, opened):
    if opened:
        world.in_service(ADA)
    else:
        world.start(ADA)
    (before,) = world.sagemaker.endpoints
    set_status(world, status)
    world.reconcile()
    assert before not in world.sagemaker.endpoints
    assert world.status()["state"] == ("FAILED" if opened else "CREATING")  # on the next instance type


@pytest.mark.parametrize("opened", [False, True])
def test_a_new_endpoint_waits_until_the_old_one_is_deleted(world, opened):
    if opened:
        world.in_service(ADA)
    else:
        world.start(ADA)
    set_status(world, "Deleting")
    world.pass_time(600, reconcile=True)
    assert len(world.sagemaker.endpoints) == 1 and world.usage.open
    if opened:
        assert world.status()["state"] == "FAILED"
        assert world.start()[0] != 202 and len(world.sagemaker.endpoints) == 1
    world.sagemaker.gone()
    world.pass_time(600, reconcile=True)
    assert world.status()["state"] == "FAILED" and at_rest(world)
    assert world.start()[0] == 202


def test_a_config_is_deleted_before_its_endpoint_is_gone(world):
    world.in_service(ADA)
    set_status(world, "Deleting")  # SageMaker refuses a second deletion
    world.pass_time(600, reconcile=True)
    assert world.sagemaker.endpoints and not world.sagemaker.configs


def test_a_slow_deletion_keeps_the_run_open(world):
    world.sagemaker.slow = True
    world.in_service(ADA)
    world.pass_time(2_400, reconcile=True)
    assert world.usage.open and world.start()[0] != 202 and len(world.sagemaker.endpoints) == 1
    world.sagemaker.gone()
    world.pass_time(600, reconcile=True)
    assert at_rest(world) and world.status()["state"] == "STOPPED"
