"Regression tests for faults of an earlier version of this engine."

import pytest

from sentiment_engine.service import model_state
from sentiment_engine.service.model_state import StartRequest, Subscriber
from sentiment_engine.settings import endpoint_name
from tests.doubles.engine_double import ADA, BOB, CAROL, World, aws_error


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


def test_fault_1_the_right_endpoint_is_deleted_after_an_extension(world):
    "Extending passed the function's ARN as the endpoint's, so it was never deleted although the state was STOPPED."
    run_id = world.in_service()
    world.clock.now += 600
    assert world.request("POST", "/extend")[0] == 200
    world.pass_time(1900)
    deleted = [arguments["EndpointName"] for call, arguments in world.sagemaker.calls if call == "delete_endpoint"]
    assert deleted == [endpoint_name(world.settings, run_id)]
    assert world.status()["state"] == "STOPPED" and world.nothing_left()


def test_fault_2_a_successful_start_keeps_subscribers_who_joined_meanwhile(world, monkeypatch):
    "The winner wrote the list of subscribers again, without those who had joined since."
    create = world.sagemaker.do_create_endpoint

    def create_while_others_join(**arguments):
        for phone in (BOB, CAROL):
            request = StartRequest("aaaaaaaaaaaa", Subscriber(phone))
            model_state.start_or_join(world.engine.table, world.settings, request)
        return create(**arguments)

    monkeypatch.setattr(world.sagemaker, "do_create_endpoint", create_while_others_join, raising=False)
    world.start(ADA)
    world.endpoint_becomes("InService")
    assert sorted(phone for phone, _ in world.phone.sent) == sorted([ADA, BOB, CAROL])


@pytest.mark.parametrize("operation", ["create_endpoint_config", "create_endpoint"])
@pytest.mark.parametrize("error", ["InternalFailure", "ValidationException", "AccessDeniedException"])
def test_fault_3_a_failed_start_leaves_nothing_behind(world, operation, error):
    "If the endpoint could not be created, the state stayed CREATING for ever."
    world.sagemaker.errors[operation] = [aws_error(error, "no luck today")]
    code, body = world.start(ADA)
    assert (code, body["error"]["code"]) == (503, "start_failed") and "no luck today" in body["error"]["message"]
    status = world.status()
    assert status["state"] == "STOPPED" and "no luck today" in status["reason"] and world.nothing_left()
    assert world.start(ADA)[1]["outcome"] == "started"


def test_fault_3_a_failed_endpoint_is_not_ignored(monkeypatch):
    "FAILED events were ignored."
    world = World(monkeypatch, instance_types=("ml.m5.large",))
    world.start(ADA)
    world.endpoint_becomes("Failed", "The image could not be pulled.")
    status = world.status()
    assert (status["state"], status["reason"]) == ("FAILED", "The image could not be pulled.")
    assert world.nothing_left() and [phone for phone, _ in world.phone.sent] == [ADA]


def test_fault_4_endpoint_configs_are_deleted_too(world):
    "Endpoint configs were never deleted: after a hundred visits there were a hundred."
    for _ in range(3):
        world.in_service()
        world.pass_time(1900)
    assert world.status()["state"] == "STOPPED" and world.sagemaker.configs == {} == world.sagemaker.endpoints


@pytest.mark.parametrize("phone", ["12345", "+1 202 555", "+7 912 345-67-89", "<script>", "+1 202 555 0123; DROP"])
def test_fault_5_the_number_is_checked_on_the_server(world, phone):
    "Only the page checked the number."
    code, body = world.request("POST", "/start", {"phone": phone})
    assert (code, body["error"]["code"]) == (400, "invalid_phone")
    assert world.status()["state"] == "STOPPED" and not world.sagemaker.calls


def test_fault_8_polling_does_not_keep_the_model_awake(world):
    "An open tab's polling kept the endpoint, and the bill, alive."
    world.in_service()
    deadline = world.row.shutdownAt
    for _ in range(30):
        world.pass_time(61)
        world.status()
        assert world.row.shutdownAt in (deadline, 0)
    assert world.status()["state"] == "STOPPED" and world.nothing_left()
