"What a teardown deletes while resources still change, and what an interrupted deployment leaves behind."

import os
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from types import SimpleNamespace

import jmespath
import pytest
from botocore.exceptions import ClientError, NoCredentialsError

from infra_scripts import deploy as deploy_command
from infra_scripts import teardown as teardown_command
from sentiment_engine.deploy import loose_ends, phases, teardown
from sentiment_engine.deploy.acceptance_record import InProgress, Memory
from sentiment_engine.deploy.foundation import origin_secret, site_parameters
from sentiment_engine.deploy.stacks import deploy_stack, upload_template
from sentiment_engine.s3 import empty_bucket
from sentiment_engine.settings import Settings
from tests import ROOT

OURS = Settings()
MADE = datetime(2026, 11, 30, tzinfo=UTC)


class PageIterator(list):
    "Pages that can be searched like boto3's."

    def search(self, expression: str):
        return (found for page in self for found in jmespath.search(expression, page))


class SageMaker:
    "Contains endpoints, their configs and models by name; an endpoint cannot be deleted during its creation."

    def __init__(self):
        self.things = {"Endpoint": {}, "EndpointConfig": {}, "Model": {}}
        self.jobs, self.looks = {}, {}  # name: status, and requests during which it writes after a stop
        self.foreign = set()  # resources with another engine's tag

    def wake(self, run_id: str, looks: int = 0):
        "Let a visitor start a run whose endpoint stays Creating for some requests."
        self.things["Endpoint"][f"{OURS.prefix}-{run_id}"] = looks
        self.things["EndpointConfig"][f"{OURS.prefix}-{run_id}"] = 0

    def get_paginator(self, operation: str):
        if operation == "list_training_jobs":
            return SimpleNamespace(paginate=self._list_jobs)
        kind = {"endpoints": "Endpoint", "endpoint_configs": "EndpointConfig", "models": "Model"}[operation[5:]]
        found = [{f"{kind}Name": n, f"{kind}Arn": f"{kind}/{n}", "CreationTime": MADE} for n in self.things[kind]]
        return SimpleNamespace(paginate=lambda NameContains: PageIterator([{f"{kind}s": found}]))

    def _list_jobs(self, NameContains: str, StatusEquals: str):
        for name in [n for n, status in self.jobs.items() if status == "Stopping"]:
            self.looks[name] = self.looks.get(name, 0) - 1
            if self.looks[name] < 0:
                self.jobs[name] = "Stopped"
        found = [n for n, status in self.jobs.items() if NameContains in n and status == StatusEquals]
        jobs = [{"TrainingJobName": n, "TrainingJobArn": f"Job/{n}", "CreationTime": MADE} for n in found]
        return PageIterator([{"TrainingJobSummaries": jobs}])

    def stop_training_job(self, TrainingJobName: str):
        self.jobs[TrainingJobName] = "Stopping"

    def list_tags(self, ResourceArn: str):
        theirs = ResourceArn.partition("/")[2] in self.foreign
        return {"Tags": [{"Key": "Project", "Value": "shop" if theirs else OURS.prefix}]}

    def describe_endpoint(self, EndpointName: str):
        looks = self._there("Endpoint", EndpointName)
        self.things["Endpoint"][EndpointName] = max(0, looks - 1)
        return {"EndpointStatus": "Creating" if looks else "InService", "EndpointConfigName": EndpointName}

    def describe_endpoint_config(self, EndpointConfigName: str):
        serverless = {"ServerlessConfig": {"MemorySizeInMB": 3072}}
        variant = serverless if "serverless" in EndpointConfigName else {"InstanceType": "ml.m5.large"}
        return {"ProductionVariants": [variant]}

    def describe_training_job(self, TrainingJobName: str):
        return {"ResourceConfig": {"InstanceType": "ml.g4dn.xlarge"}}

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
    "A SageMaker to tear down, without stacks."
    found = SageMaker()
    monkeypatch.setattr(teardown, "connect", lambda target: SimpleNamespace(client=lambda service: found))
    clock = SimpleNamespace(sleep=lambda _: None, monotonic=lambda: 0.0)
    monkeypatch.setattr("sentiment_engine.polling.time", clock)
    monkeypatch.setattr(loose_ends, "find_stack", lambda *_: {})
    monkeypatch.setattr(teardown, "delete_stack", lambda *_: False)
    monkeypatch.setattr(teardown, "find_stack", lambda _, name: {"Tags": [{"Key": "Project", "Value": OURS.prefix}]})
    monkeypatch.setattr(teardown, "_buckets", lambda *_: [])
    for step in ("delete_leftovers", "look_at_rest"):
        monkeypatch.setattr(teardown, step, lambda *_: ())
    return found


def test_a_teardown_waits_for_an_endpoint_in_creation(sagemaker):
    sagemaker.wake("0123456789ab", looks=2)
    teardown.teardown("aws")
    assert not any(sagemaker.things.values())


def test_a_start_during_the_teardown_leaves_no_endpoint(sagemaker, monkeypatch):
    monkeypatch.setattr(teardown, "delete_stack", lambda _, name: name.endswith("-engine") and sagemaker.wake("0" * 12))
    teardown.teardown("aws")
    assert not any(sagemaker.things.values())


@pytest.mark.parametrize("error", [NoCredentialsError(), RuntimeError("stack engine: delete ended as DELETE_FAILED")])
def test_a_failure_is_reported_in_one_line(monkeypatch, error):
    def fail(target):
        raise error

    monkeypatch.setattr(teardown_command, "teardown", fail)
    monkeypatch.setattr(teardown_command, "whose", lambda: "user/ada in an account that ends in 9012, region us-east-1")
    monkeypatch.setattr("sys.argv", ["teardown.py", "--target", "aws", "--yes"])
    with pytest.raises(SystemExit) as ended:
        teardown_command.main()
    assert str(error) in str(ended.value)


def test_it_shows_the_account_before_asking(monkeypatch, capsys):
    monkeypatch.setattr(teardown_command, "whose", lambda: "user/ada in an account that ends in 9012, region us-east-1")
    monkeypatch.setattr(teardown_command, "_typed", lambda _: "no")
    monkeypatch.setattr("sys.argv", ["teardown.py", "--target", "aws"])
    with pytest.raises(SystemExit, match="nothing was deleted"):
        teardown_command.main()
    assert "as user/ada in an account that ends in 9012, region us-east-1." in capsys.readouterr().out


def test_only_the_engines_training_jobs_are_stopped(sagemaker):
    ours, ended, foreign = f"{OURS.prefix}-training-1", f"{OURS.prefix}-training-0", f"my-{OURS.prefix}-training-1"
    neighbours = f"{OURS.prefix}-training-training-1"  # of an engine whose prefix starts with ours
    sagemaker.foreign = {neighbours}
    sagemaker.jobs = {ours: "InProgress", ended: "Completed", foreign: "InProgress", neighbours: "InProgress"}
    assert teardown.teardown("aws") == [("running training jobs", ours)]
    assert sagemaker.jobs == {ours: "Stopped", ended: "Completed", foreign: "InProgress", neighbours: "InProgress"}


class Writing:
    "CloudFormation, Glue and S3 of a foundation in which a Glue run still writes during some requests."

    def __init__(self, looks: int):
        self.looks, self.stopped, self.emptied = looks, [], []

    def get_paginator(self, operation: str):
        return SimpleNamespace(paginate=self._runs)

    def _runs(self, JobName: str):
        old = [{"Id": f"jr_{n}", "JobRunState": "SUCCEEDED"} for n in range(200)]
        if self.stopped:
            self.looks -= 1
        state = "STOPPED" if self.looks < 0 else "STOPPING" if self.stopped else "RUNNING"
        return PageIterator([{"JobRuns": old}, {"JobRuns": [{"Id": "jr_now", "JobRunState": state}]}])

    def batch_stop_job_run(self, JobName: str, JobRunIds: list[str]):
        self.stopped += JobRunIds

    def head_bucket(self, Bucket: str):
        pass

    def empty(self, s3, bucket: str) -> int:
        assert self.looks < 0, "something was still written there"
        self.emptied.append(bucket)
        return 7


def test_a_bucket_is_emptied_after_its_last_writer_stops(sagemaker, monkeypatch):
    writing = Writing(looks=3)
    services = {"sagemaker": sagemaker}
    session = SimpleNamespace(client=lambda service: services.get(service, writing))
    monkeypatch.setattr(teardown, "connect", lambda target: session)
    tags = {"Tags": [{"Key": "Project", "Value": OURS.prefix}]}
    outputs = {"Outputs": [{"OutputKey": "GlueJob", "OutputValue": "clean-reviews"}]}
    for module in (teardown, loose_ends):
        monkeypatch.setattr(module, "find_stack", lambda _, name: tags | outputs if "foundation" in name else {})
    monkeypatch.setattr(teardown, "_buckets", lambda *_: ["lake"])
    monkeypatch.setattr(teardown, "empty_bucket", writing.empty)
    sagemaker.jobs, name = {f"{OURS.prefix}-training-1": "InProgress"}, f"{OURS.prefix}-training-1"
    sagemaker.looks = {name: 5}
    deleted = teardown.teardown("aws")
    assert ("running Glue jobs", "jr_now") in deleted and writing.stopped == ["jr_now"]
    assert writing.emptied == ["lake"] and sagemaker.jobs[name] == "Stopped"


def test_a_job_that_does_not_stop_is_reported(sagemaker, monkeypatch):
    name = f"{OURS.prefix}-training-1"
    sagemaker.jobs, sagemaker.looks, ticks = {name: "InProgress"}, {name: 10**6}, iter(range(0, 10**6, 600))
    clock = SimpleNamespace(sleep=lambda _: None, monotonic=lambda: next(ticks))
    monkeypatch.setattr("sentiment_engine.polling.time", clock)
    with pytest.raises(TimeoutError, match=f"{name} has not stopped after 1800 s"):
        teardown.teardown("aws")


def test_objects_that_s3_keeps_are_not_counted_as_deleted():
    def delete_objects(Bucket, Delete):
        return {"Errors": [{"Key": "b", "Code": "AccessDenied", "Message": "Access Denied"}]}

    page = {"Versions": [{"Key": key, "VersionId": "1"} for key in "abc"]}
    s3 = SimpleNamespace(
        get_paginator=lambda _: SimpleNamespace(paginate=lambda Bucket: [page]), delete_objects=delete_objects
    )
    with pytest.raises(RuntimeError, match="S3 did not delete 1 objects of lake, such as b: Access Denied"):
        empty_bucket(s3, "lake")


def test_an_interrupted_teardown_ends_in_one_line(monkeypatch):
    def interrupt(target):
        raise KeyboardInterrupt

    monkeypatch.setattr(teardown_command, "teardown", interrupt)
    monkeypatch.setattr(teardown_command, "whose", lambda: "user/ada in an account that ends in 9012, region us-east-1")
    monkeypatch.setattr("sys.argv", ["teardown.py", "--target", "aws", "--yes"])
    with pytest.raises(SystemExit, match="Interrupted"):
        teardown_command.main()


def test_a_foreign_stack_is_kept_and_reported(sagemaker, monkeypatch, capsys):
    deleted = []
    monkeypatch.setattr(teardown, "delete_stack", lambda _, name: deleted.append(name) or True)
    foreign = {"Tags": [{"Key": "Project", "Value": "shop"}]}
    monkeypatch.setattr(teardown, "find_stack", lambda _, name: foreign if name.endswith("-engine") else {})
    assert teardown.teardown("aws") == [] == deleted
    assert "kept     stack sentiment-engine-engine: it has no tag Project=sentiment-engine" in capsys.readouterr().out


TRIAL, RUN, JOB = (f"{OURS.prefix}-{name}" for name in ("trial-0123456789ab", "0123456789ab", "training-1"))


@pytest.fixture
def cut_off(sagemaker, monkeypatch, capsys):
    "Interrupt a deployment to AWS while a trial is being created; return the output and the last line."
    sagemaker.things["Endpoint"] = {TRIAL: 2, RUN: 0, f"{OURS.prefix}-serverless": 0}
    sagemaker.things["EndpointConfig"], sagemaker.jobs = {TRIAL: 0}, {JOB: "InProgress"}
    writing = Writing(looks=0)
    session = SimpleNamespace(client=lambda s: writing if s == "glue" else sagemaker, region_name="eu-west-1")
    monkeypatch.setattr(loose_ends, "connect", lambda target: session)
    monkeypatch.setattr(loose_ends, "_glue_job", lambda *_: "clean-reviews")
    monkeypatch.setattr(phases, "recall", lambda _: None)
    monkeypatch.setattr(phases, "before", lambda *_: None)
    monkeypatch.setattr(phases, "connect", lambda target: session)
    monkeypatch.setattr(phases.Stamps, "read", lambda _: {})  # nothing exists yet
    monkeypatch.setattr(phases, "fetch_wheels", lambda **_: None)
    monkeypatch.setattr("sys.argv", ["deploy.py", "--target", "aws"])
    monkeypatch.delenv("AWS_PROFILE", raising=False)

    def run(error: BaseException) -> SimpleNamespace:
        def work(*_, **__):
            raise error

        monkeypatch.setattr(phases, "deploy", work)
        with pytest.raises(SystemExit) as ended:
            deploy_command.main()
        return SimpleNamespace(printed=capsys.readouterr().out, said=str(ended.value), glue=writing.stopped)

    return run


@pytest.mark.parametrize(
    ("error", "said", "stopped"),
    [
        (KeyboardInterrupt(), "Interrupted.", ["jr_now"]),
        (RuntimeError("stack: ROLLBACK_COMPLETE"), "stack: ROLLBACK", []),
        (BrokenPipeError(32, "Broken pipe"), "Broken pipe", ["jr_now"]),
        (OSError(28, "No space left on device"), "No space left on device", ["jr_now"]),
        (SystemExit("stopped"), "stopped", ["jr_now"]),
    ],
)
def test_an_interrupted_deployment_deletes_its_trial_and_lists_running_costs(sagemaker, cut_off, error, said, stopped):
    left = cut_off(error)
    assert said in left.said and left.glue == stopped
    assert TRIAL not in sagemaker.things["Endpoint"] and not sagemaker.things["EndpointConfig"]
    assert f"deleting  trial endpoint {TRIAL}" in left.printed
    assert f"still up  endpoint {RUN} (ml.m5.large, $0.115 an hour)" in left.printed
    assert (
        f"still up  training job {JOB} (ml.g4dn.xlarge, $0.736 an hour): the next run continues with it" in left.printed
    )
    assert f"aws sagemaker stop-training-job --training-job-name {JOB} --region eu-west-1" in left.printed
    assert "serverless" not in left.printed and ("aws glue batch-stop-job-run" in left.printed) is not bool(stopped)


PRINTING = [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device"), ValueError("closed file")]


@pytest.mark.parametrize("error", PRINTING, ids=str)
def test_a_trial_is_deleted_even_with_a_closed_terminal(sagemaker, cut_off, monkeypatch, error):
    def gone(*_, **__):
        raise error

    monkeypatch.setattr("builtins.print", gone)
    assert cut_off(KeyboardInterrupt()).glue == ["jr_now"]
    assert TRIAL not in sagemaker.things["Endpoint"] and not sagemaker.things["EndpointConfig"]


@pytest.mark.parametrize("error", PRINTING, ids=str)
def test_a_teardown_continues_with_a_closed_terminal(sagemaker, monkeypatch, error):
    def gone(*_, **__):
        raise error

    sagemaker.wake("0123456789ab", looks=2)
    monkeypatch.setattr(teardown_command, "whose", lambda: "user/ada in an account that ends in 9012, region us-east-1")
    monkeypatch.setattr("sys.argv", ["teardown.py", "--target", "aws", "--yes"])
    monkeypatch.setattr("builtins.print", gone)
    teardown_command.main()
    assert not any(sagemaker.things.values())


def test_interrupting_the_wait_explains_how_to_delete_the_trial(sagemaker, cut_off, monkeypatch):
    def impatient(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sentiment_engine.polling.time", SimpleNamespace(sleep=impatient, monotonic=lambda: 0.0))
    left = cut_off(KeyboardInterrupt())
    wait = f"aws sagemaker wait endpoint-in-service --endpoint-name {TRIAL} --region eu-west-1; "
    assert "left as it is" in left.printed and f"{wait}aws sagemaker delete-endpoint" in left.printed
    assert "Interrupted." in left.said and TRIAL in sagemaker.things["Endpoint"]


def test_the_first_error_is_reported_even_if_later_lookups_fail(sagemaker, cut_off, monkeypatch):
    def expired(**_):
        raise ClientError({"Error": {"Code": "ExpiredToken", "Message": "The token has expired"}}, "ListEndpoints")

    monkeypatch.setattr(sagemaker, "get_paginator", lambda _: SimpleNamespace(paginate=expired))
    left = cut_off(RuntimeError("the training has failed"))
    assert (
        left.said == "the training has failed"
        and "unknown   the list of what is still up is incomplete" in left.printed
    )


def test_log_groups_of_an_engine_with_a_longer_prefix_are_kept():
    ours = ["/aws/lambda/sentiment-engine-shutdown-endpoint", "/aws/sagemaker/Endpoints/sentiment-engine-0f3c5a7e9b1d"]
    foreign = [name.replace("sentiment-engine", "sentiment-engine-two") for name in ours]
    foreign += ["/aws/lambda/sentiment-engine-mine", "/aws/sagemaker/Endpoints/sentiment-engine-two"]
    assert teardown.our_log_groups(OURS, [*ours, *foreign]) == ours


@pytest.fixture
def standing(cloud, monkeypatch):
    "A foundation on the local cloud with an object in each bucket, next to other users' resources."
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SENTIMENT_PREFIX", "tear")
    cloudformation, s3 = cloud.client("cloudformation"), cloud.client("s3")
    template = ROOT / "infra_scripts/templates/foundation.yaml"
    made = deploy_stack(cloudformation, "tear-foundation", template, {"Prefix": "tear"}, {"Project": "tear"})
    template = upload_template(s3, made["ArtifactsBucket"], ROOT / "infra_scripts/templates/site.yaml")
    ours = Settings(prefix="tear")
    given = site_parameters(ours, origin_secret(cloud.client("ssm"), ours))
    made |= deploy_stack(cloudformation, "tear-site", template, given, {"Project": "tear"})
    for bucket in (made["LakeBucket"], made["ArtifactsBucket"], made["SiteBucket"]):
        for body in (b"old", b"new"):
            s3.put_object(Bucket=bucket, Key="models/latest.json", Body=body)
    cloud.client("ssm").put_parameter(Name="/tear/model", Value="{}", Type="String", Overwrite=True)
    cloud.client("ssm").put_parameter(Name="/tear/notes", Value="mine", Type="String", Overwrite=True)
    yield made
    cloud.client("ssm").delete_parameter(Name="/tear/notes")


def test_a_teardown_deletes_only_the_engine_and_can_be_repeated(cloud, standing, capsys):
    deleted = teardown.teardown("local")
    assert [name for kind, name in deleted if kind == "stacks"] == ["tear-site", "tear-foundation"]
    assert {("parameters", "/tear/model"), ("parameters", "/tear/origin-secret")} <= set(deleted)
    left = [b["Name"] for b in cloud.client("s3").list_buckets()["Buckets"]]
    assert not {standing["LakeBucket"], standing["ArtifactsBucket"], standing["SiteBucket"]} & set(left)
    assert "kept     parameter /tear/notes: no deployment has made it" in capsys.readouterr().out
    assert teardown.teardown("local") == []


TEARING = """
import os, time
from sentiment_engine.deploy.teardown import teardown
parent = os.getppid()
print("at work", flush=True)
while os.getppid() == parent:
    time.sleep(0.05)
teardown("local")
"""
PARENT = """
import os, sys
from pathlib import Path
from sentiment_engine.deploy.acceptance_record import Memory
from sentiment_engine.deploy.child_program import Interrupts, run_program
with Memory(Path(sys.argv[2])).locked() as lock, Interrupts("") as interrupts:
    run_program([sys.argv[1]], os.environ, 60, interrupts, lambda line: print(line, flush=True), held=[lock])
"""


def test_a_teardown_outlives_the_acceptance_that_started_it(cloud, standing, tmp_path):
    "The acceptance is killed, so no process reads the teardown's output."
    (tmp_path / "tearing.py").write_text(TEARING)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PARENT, str(tmp_path / "tearing.py"), str(tmp_path / "state")]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "at work\n"
        parent.kill()
    deadline, memory = time.monotonic() + 60, Memory(tmp_path / "state")
    while time.monotonic() < deadline:
        with suppress(InProgress), memory.locked():  # free once the teardown has ended
            break
        time.sleep(0.1)
    stacks = cloud.client("cloudformation").list_stacks()["StackSummaries"]
    left = {s["StackName"] for s in stacks if s["StackStatus"] != "DELETE_COMPLETE"}
    assert not {"tear-site", "tear-foundation"} & left
    assert teardown.teardown("local") == []
