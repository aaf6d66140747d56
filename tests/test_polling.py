"Every wait for AWS, with failing polls."

import json
import math
import time
from collections import Counter
from types import SimpleNamespace

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ReadTimeoutError,
)

from sentiment_engine.deploy.glue import run_glue_job
from sentiment_engine.deploy.plan import change_set
from sentiment_engine.deploy.stacks import delete_stack
from sentiment_engine.deploy.training import wait_for_training
from sentiment_engine.polling import ask
from sentiment_engine.sagemaker import remove_endpoint, wait_until_in_service
from sentiment_engine.service.serverless import serverless_config, wait_for_serverless
from sentiment_engine.settings import Settings

FAULTS = {
    "503 and no body": (503, b""),
    "502 and a page": (502, b"<html><body>Bad Gateway</body></html>"),
    "503 and a text": (503, b"no healthy upstream"),
    "500 of the service": (500, b'{"__type": "InternalFailure"}'),
    "429 and no body": (429, b""),
    **{
        kind.__name__: kind(endpoint_url="https://aws", error="reset")
        for kind in (EndpointConnectionError, ConnectTimeoutError, ReadTimeoutError, ConnectionClosedError)
    },
}
MODEL = {"modelName": "words", "version": "one"}
CONFIG = serverless_config(Settings(), MODEL)["EndpointConfigName"]


class Body(SimpleNamespace):
    def stream(self, **_):
        yield self.content


def xml(operation: str, inside: str = "") -> str:
    "Make an answer of CloudFormation."
    return f"<{operation}Response><{operation}Result>{inside}</{operation}Result></{operation}Response>"


def stack(status: str) -> str:
    about = f"<StackName>lake</StackName><StackStatus>{status}</StackStatus>"
    return xml("DescribeStacks", f"<Stacks><member>{about}</member></Stacks>")


def endpoint(status: str) -> str:
    return json.dumps({"EndpointName": "x", "EndpointStatus": status, "EndpointConfigName": CONFIG})


def refusal(code: str, message: str) -> str:
    "Make an error of CloudFormation."
    return f"<ErrorResponse><Error><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"


NO_STACK = refusal("ValidationError", "lake does not exist")
NO_ENDPOINT = json.dumps({"__type": "ValidationException", "message": "Could not find endpoint."})
ANSWERS = {  # by operation, in order; the last one is repeated
    "StartJobRun": ['{"JobRunId": "jr_1"}'],
    "GetJobRun": [json.dumps({"JobRun": {"Id": "jr_1", "JobRunState": state}}) for state in ("RUNNING", "SUCCEEDED")],
    "DescribeTrainingJob": [json.dumps({"TrainingJobStatus": status}) for status in ("InProgress", "Completed")],
    "FilterLogEvents": ['{"events": []}'],
    "DescribeStacks": [*map(stack, ("CREATE_IN_PROGRESS", "CREATE_COMPLETE", "DELETE_IN_PROGRESS")), NO_STACK],
    "DeleteStack": [xml("DeleteStack")],
    "CreateChangeSet": [xml("CreateChangeSet")],
    "DescribeChangeSet": [xml("DescribeChangeSet", f"<Status>CREATE_{s}</Status>") for s in ("PENDING", "COMPLETE")],
    "DeleteChangeSet": [xml("DeleteChangeSet")],
    "DeleteEndpoint": ["{}"],
    "DeleteEndpointConfig": ["{}"],
}
POLLS = ("Get", "Describe", "Filter")


class Aws:
    "Real clients whose requests are answered here: each poll fails `times` times, then gets its answer."

    def __init__(self, fault: Exception | tuple[int, bytes], times: float = 2):
        self.fault, self.times, self.failed = fault, times, Counter()
        self.answers = {operation: list(bodies) for operation, bodies in ANSWERS.items()}

    def client(self, service: str):
        key = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
        client = boto3.client(service, **key, config=Config(retries={"total_max_attempts": 1}))
        client.meta.events.register("before-send", self.send)
        return client

    def send(self, request, event_name: str, **_):
        operation = event_name.split(".")[-1]
        if operation.startswith(POLLS) and self.failed[operation] < self.times:
            self.failed[operation] += 1
            if isinstance(self.fault, Exception):
                raise self.fault
            return self.answer(request, *self.fault)
        self.failed[operation] = 0
        bodies = self.answers[operation]
        body = bodies.pop(0) if len(bodies) > 1 else bodies[0]
        return self.answer(request, 400 if body in (NO_STACK, NO_ENDPOINT) else 200, body.encode())

    def answer(self, request, status: int, body: bytes) -> AWSResponse:
        return AWSResponse(request.url, status, {}, Body(content=body))


def follow_a_glue_run(aws: Aws):
    assert run_glue_job(aws.client("glue"), "clean", {}, lambda _: None)["JobRunState"] == "SUCCEEDED"


def follow_a_training_job(aws: Aws):
    found = wait_for_training(aws.client("sagemaker"), aws.client("logs"), "reviews")
    assert found["TrainingJobStatus"] == "Completed"


def wait_for_a_stack(aws: Aws):
    assert delete_stack(aws.client("cloudformation"), "lake")


def compare_a_stack(aws: Aws):
    assert change_set(aws.client("cloudformation"), "lake", "https://template", {}) == []


def wait_for_an_endpoint(aws: Aws):
    aws.answers["DescribeEndpoint"] = [endpoint("Creating"), endpoint("InService")]
    assert wait_until_in_service(aws.client("sagemaker"), "x")["EndpointStatus"] == "InService"


def wait_for_an_endpoint_to_go(aws: Aws):
    aws.answers["DescribeEndpoint"] = [endpoint("InService"), endpoint("Deleting"), NO_ENDPOINT]
    assert remove_endpoint(aws.client("sagemaker"), "x")


def wait_for_a_serverless_endpoint(aws: Aws):
    aws.answers["DescribeEndpoint"] = [endpoint("Updating"), endpoint("InService")]
    assert wait_for_serverless(aws.client("sagemaker"), Settings(), MODEL) >= 0


WAITS = [
    *(follow_a_glue_run, follow_a_training_job, wait_for_a_stack, compare_a_stack, wait_for_an_endpoint),
    *(wait_for_an_endpoint_to_go, wait_for_a_serverless_endpoint),
]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("wait", WAITS, ids=lambda wait: wait.__name__)
def test_a_wait_survives_unanswered_polls(wait, fault, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    wait(Aws(FAULTS[fault]))


@pytest.mark.parametrize("wait", WAITS, ids=lambda wait: wait.__name__)
def test_a_wait_ends_at_once_if_aws_refuses_the_poll(wait, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits"))
    of_a_stack = wait in (wait_for_a_stack, compare_a_stack)
    body = refusal("AccessDenied", "no") if of_a_stack else json.dumps({"__type": "AccessDenied"})
    with pytest.raises((ClientError, RuntimeError), match="AccessDenied"):
        wait(Aws((403, body.encode())))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wait_gives_up_if_aws_never_answers(fault, monkeypatch):
    slept = []
    clock = SimpleNamespace(monotonic=lambda: sum(slept), sleep=slept.append)
    monkeypatch.setattr("sentiment_engine.polling.time", clock)
    glue = Aws(FAULTS[fault], times=math.inf).client("glue")
    with pytest.raises(ClientError if isinstance(FAULTS[fault], tuple) else type(FAULTS[fault])):
        ask(glue.get_job_run, JobName="clean", RunId="jr_1")
    assert 300 <= sum(slept) < 320 and max(slept) == 10
