"What a teardown deletes when the world does not stand still meanwhile, and what it leaves alone."

from types import SimpleNamespace

import jmespath
import pytest
import teardown
from botocore.exceptions import ClientError, NoCredentialsError
from engine_double import ROOT

from sentiment_engine.settings import Settings
from sentiment_engine.stacks import deploy_stack

OURS = Settings()


class PageIterator(list):
    "Pages that can be searched as boto3's can."

    def search(self, expression: str):
        return (found for page in self for found in jmespath.search(expression, page))


class SageMaker:
    "Holds endpoints, their configs and models by name; an endpoint that is being created cannot be deleted."

    def __init__(self):
        self.things = {"Endpoint": {}, "EndpointConfig": {}, "Model": {}}
        self.jobs = {}  # name: status

    def wake(self, run_id: str, looks: int = 0):
        "Let a visitor start a run whose endpoint is Creating for some looks."
        self.things["Endpoint"][f"{OURS.prefix}-{run_id}"] = looks
        self.things["EndpointConfig"][f"{OURS.prefix}-{run_id}"] = 0

    def get_paginator(self, operation: str):
        if operation == "list_training_jobs":
            return SimpleNamespace(paginate=self._list_jobs)
        kind = {"endpoints": "Endpoint", "endpoint_configs": "EndpointConfig", "models": "Model"}[operation[5:]]
        found = [{f"{kind}Name": n, f"{kind}Arn": f"{kind}/{n}"} for n in self.things[kind]]
        return SimpleNamespace(paginate=lambda NameContains: [{f"{kind}s": found}])

    def _list_jobs(self, NameContains: str):
        jobs = [{"TrainingJobName": n, "TrainingJobStatus": s} for n, s in self.jobs.items() if NameContains in n]
        return PageIterator([{"TrainingJobSummaries": jobs}])

    def stop_training_job(self, TrainingJobName: str):
        self.jobs[TrainingJobName] = "Stopping"

    def list_tags(self, ResourceArn: str):
        return {"Tags": [{"Key": "Project", "Value": OURS.prefix}]}

    def describe_endpoint(self, EndpointName: str):
        looks = self._there("Endpoint", EndpointName)
        self.things["Endpoint"][EndpointName] = max(0, looks - 1)
        return {"EndpointStatus": "Creating" if looks else "InService"}

    def delete_endpoint(self, EndpointName: str):
        if self._there("Endpoint", EndpointName):
            raise ClientError({"Error": {"Code": "ValidationException", "Message": "Cannot update in-progress"}}, "d")
        del self.things["Endpoint"][EndpointName]

    def delete_endpoint_config(self, EndpointConfigName: str):
        self._there("EndpointConfig", EndpointConfigName)
        del self.things["EndpointConfig"][EndpointConfigName]

    def _there(self, kind: str, name: str) -> int:
        if name not in self.things[kind]:
            raise ClientError({"Error": {"Code": "ValidationException", "Message": f"Could not find {kind}"}}, "d")
        return self.things[kind][name]


@pytest.fixture
def sagemaker(monkeypatch):
    "A SageMaker to tear down, with no stacks in the way."
    found = SageMaker()
    monkeypatch.setattr(teardown, "connect", lambda target: SimpleNamespace(client=lambda service: found))
    monkeypatch.setattr(teardown, "stack_outputs", lambda *_: {})
    monkeypatch.setattr(teardown, "delete_stack", lambda *_: False)
    monkeypatch.setattr(teardown, "find_stack", lambda _, name: {"Tags": [{"Key": "Project", "Value": OURS.prefix}]})
    monkeypatch.setattr(teardown, "_buckets", lambda *_: [])
    for step in ("delete_leftovers", "look_at_rest"):
        monkeypatch.setattr(teardown, step, lambda *_: ())
    return found


def test_an_endpoint_that_is_being_created_is_waited_for(sagemaker):
    sagemaker.wake("0123456789ab", looks=2)
    teardown.teardown("aws")
    assert not any(sagemaker.things.values())


def test_a_start_during_the_teardown_leaves_no_endpoint(sagemaker, monkeypatch):
    monkeypatch.setattr(teardown, "delete_stack", lambda _, name: name.endswith("-engine") and sagemaker.wake("0" * 12))
    teardown.teardown("aws")
    assert not any(sagemaker.things.values())


@pytest.mark.parametrize("error", [NoCredentialsError(), RuntimeError("stack engine: delete ended as DELETE_FAILED")])
def test_a_failure_is_said_in_one_line(monkeypatch, error):
    def fail(target):
        raise error

    monkeypatch.setattr(teardown, "teardown", fail)
    monkeypatch.setattr("sys.argv", ["teardown.py", "--target", "aws", "--yes"])
    with pytest.raises(SystemExit) as ended:
        teardown.main()
    assert str(error) in str(ended.value)


def test_a_training_job_that_was_left_running_is_stopped_and_no_other(sagemaker):
    ours, ended, foreign = f"{OURS.prefix}-training-1", f"{OURS.prefix}-training-0", f"my-{OURS.prefix}-training-1"
    sagemaker.jobs = {ours: "InProgress", ended: "Completed", foreign: "InProgress"}
    assert teardown.teardown("aws") == [("running training jobs", ours)]
    assert sagemaker.jobs == {ours: "Stopping", ended: "Completed", foreign: "InProgress"}


def test_a_stack_of_somebody_else_is_kept_and_said(sagemaker, monkeypatch, capsys):
    deleted = []
    monkeypatch.setattr(teardown, "delete_stack", lambda _, name: deleted.append(name) or True)
    foreign = {"Tags": [{"Key": "Project", "Value": "shop"}]}
    monkeypatch.setattr(teardown, "find_stack", lambda _, name: foreign if name.endswith("-engine") else None)
    assert teardown.teardown("aws") == [] == deleted
    assert "kept     stack sentiment-engine-engine: it has no tag Project=sentiment-engine" in capsys.readouterr().out


def test_log_groups_of_an_engine_whose_prefix_begins_with_ours_are_kept():
    ours = ["/aws/lambda/sentiment-engine-shutdown-endpoint", "/aws/sagemaker/Endpoints/sentiment-engine-0f3c5a7e9b1d"]
    foreign = [name.replace("sentiment-engine", "sentiment-engine-two") for name in ours]
    foreign += ["/aws/lambda/sentiment-engine-mine", "/aws/sagemaker/Endpoints/sentiment-engine-two"]
    assert teardown.our_log_groups(OURS, [*ours, *foreign]) == ours


@pytest.fixture
def standing(cloud, monkeypatch):
    "A foundation of ours on the local cloud, with an object in each bucket, and what others have beside it."
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SENTIMENT_PREFIX", "tear")
    cloudformation, s3 = cloud.client("cloudformation"), cloud.client("s3")
    template = ROOT / "infra_scripts" / "foundation.yaml"
    made = deploy_stack(cloudformation, "tear-foundation", template, {"Prefix": "tear"}, {"Project": "tear"})
    for bucket in (made["LakeBucket"], made["ArtifactsBucket"]):
        for body in (b"old", b"new"):
            s3.put_object(Bucket=bucket, Key="models/latest.json", Body=body)
    cloud.client("ssm").put_parameter(Name="/tear/model", Value="{}", Type="String", Overwrite=True)
    cloud.client("ssm").put_parameter(Name="/tear/notes", Value="mine", Type="String", Overwrite=True)
    yield made
    cloud.client("ssm").delete_parameter(Name="/tear/notes")


def test_a_teardown_empties_and_deletes_ours_keeps_the_rest_and_can_be_repeated(cloud, standing, capsys):
    deleted = teardown.teardown("local")
    assert ("stacks", "tear-foundation") in deleted and ("parameters", "/tear/model") in deleted
    left = [b["Name"] for b in cloud.client("s3").list_buckets()["Buckets"]]
    assert not {standing["LakeBucket"], standing["ArtifactsBucket"]} & set(left)
    assert "kept     parameter /tear/notes: no deployment has made it" in capsys.readouterr().out
    assert teardown.teardown("local") == []
