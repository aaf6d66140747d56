"""Programs name the cause of a system error, and the local cloud's memory is never ahead of its disk."""

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import nbformat
import psutil
import pytest
from botocore.exceptions import ClientError

from infra_scripts.make import book
from sentiment_engine.causes import CURES, cause, with_cause
from sentiment_engine.deploy import phases
from sentiment_engine.local.cloud import LocalCloud
from tests import ROOT
from tests.doubles.local_models import ROLE, register, settled, until

MEBIBYTE = 2**20

# The messages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", CURES)
def test_each_error_message_names_the_path_and_the_remedy(number, tmp_path):
    told = cause(OSError(number, os.strerror(number), str(tmp_path / "folder" / "file")))
    assert str(tmp_path / "folder" / "file") in told and os.strerror(number) in told and "Errno" not in told
    assert told.endswith(".") and told.count(". ") >= 1


@pytest.mark.parametrize("text", ["[Errno 28] No space left on device: '/a/b'", "IOException: Disk quota exceeded"])
def test_an_error_text_of_another_process_gets_its_cause(text):
    assert with_cause(text).startswith(text) and "isk" in with_cause(text)[len(text) :]


# Programs -----------------------------------------------------------------------------------------------------------


def as_anybody():
    "Respect file modes even as root: drop the capabilities that override them."
    if os.geteuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            ctypes.CDLL(None).prctl(24, capability)  # PR_CAPBSET_DROP


def tiny_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def few_files():
    resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))


def full_disk(state: Path):
    state.mkdir()
    (state / "cloud.log").symlink_to("/dev/full")


def unreadable_lock(state: Path):
    state.mkdir()
    (state / "lock").touch(0)


def read_only(state: Path):
    state.mkdir(0o500)


def unreadable_state(state: Path):
    (state / "aws").mkdir(parents=True)
    (state / "aws/ssm.json").touch(0)


def a_file(state: Path):
    state.touch()


def a_folder_for_the_log(state: Path):
    (state / "cloud.log").mkdir(parents=True)


def a_folder_for_the_next_state(state: Path):
    (state / "glue.new").mkdir(parents=True)


CAUSES = {  # fault of the state folder, limits of the program, expected message
    "full disk": (full_disk, None, "cloud.log: No space left on device. The disk is full"),
    "read-only": (read_only, as_anybody, "Permission denied. You own"),
    "unreadable lock": (unreadable_lock, as_anybody, "lock: Permission denied. You own"),
    "unreadable state": (unreadable_state, as_anybody, "aws/ssm.json: Permission denied. You own"),
    "a file in the way": (a_file, None, "File exists. Something else is there"),
    "a folder in the way": (a_folder_for_the_log, None, "Is a directory. A folder is where a file is needed"),
    "a state that cannot be replaced": (a_folder_for_the_next_state, None, "glue.new: Is a directory. A folder is"),
    "file size limit": (Path.mkdir, tiny_files, "File too large. The file is larger than this shell or disk allows"),
    "open files": (Path.mkdir, few_files, "Too many open files. This program has too many files open"),
}
PROGRAMS = {
    "local_cloud": ["start", "--state", ".local-cloud", "--port", "0", "--site-port", "0"],
    "demo": ["--model", "released"],
    "smoke": [],
    "teardown": [],
    "lab": [],
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory) -> Path:
    "A separate checkout with its own local cloud."
    folder = tmp_path_factory.mktemp("scripts")
    for part in ("infra_scripts", "sentiment_engine"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(folder: Path, words: list, before=None, **variables: str) -> subprocess.CompletedProcess:
    "Run a script of `folder` like a person."
    env = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"} | variables
    command = [sys.executable, f"infra_scripts/{words[0]}.py", *words[1:]]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, preexec_fn=before)


def assert_told(done: subprocess.CompletedProcess, words: str):
    "Assert that a program ended with status 1 and a sentence instead of a traceback."
    assert done.returncode == 1 and "Traceback" not in done.stderr and words in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("program", "reason"),
    [("local_cloud", reason) for reason in CAUSES]
    + [(name, "full disk") for name in PROGRAMS if name != "local_cloud"],
)
def test_a_program_prints_the_cause_of_an_error(scripts, program, reason):
    spoil, before, words = CAUSES[reason]
    state = scripts / ".local-cloud"
    spoil(state)
    try:
        assert_told(run(scripts, [program, *PROGRAMS[program]], before), words)
    finally:
        state.unlink() if state.is_file() else shutil.rmtree(state)


@pytest.mark.parametrize("command", ["stop", "status"])
def test_no_command_mistakes_an_unreadable_lock_for_a_missing_cloud(scripts, command):
    unreadable_lock(scripts / "other")
    try:
        assert_told(run(scripts, ["local_cloud", command, "--state", "other"], as_anybody), "lock: Permission denied")
    finally:
        shutil.rmtree(scripts / "other")


# Notebooks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stale_kernel(tmp_path, monkeypatch) -> Path:
    "A kernelspec of an environment that was deleted; Jupyter finds it first."
    gone = tmp_path / "deleted/bin/python"
    spec = {"argv": [str(gone), "-m", "ipykernel_launcher"], "display_name": "Python 3", "language": "python"}
    folder = tmp_path / "jupyter/kernels/python3"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    return gone


def test_a_kernelspec_of_a_deleted_environment_is_ignored(stale_kernel, tmp_path):
    path = tmp_path / "small.ipynb"
    cell = nbformat.v4.new_code_cell("import sys\nprint(sys.executable)")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    book.run(path)
    assert nbformat.read(path, as_version=4).cells[0].outputs[0].text.strip() == sys.executable
    phases.run_phases([phases.Phase(path, {})], SimpleNamespace(write=lambda phase: None), tmp_path / "runs")


def test_jupyterlab_does_not_offer_a_kernel_that_cannot_start(stale_kernel, scripts):
    assert_told(run(scripts, ["lab"]), f"starts {stale_kernel}, which does not exist. Remove it: ")


# The local cloud with a failing disk --- ----------------------------------------------------------------------------


class Cloud(LocalCloud):
    "A cloud whose server may temporarily write only small files."

    def client(self, service: str):
        return self.root_client(service)

    @contextmanager
    def limited(self, size: int):
        "Limit the server's files to `size` bytes."
        server = psutil.Process(self.place["pid"])
        server.rlimit(psutil.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            yield
        finally:
            server.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    "A cloud with one resource of each kind."
    with Cloud(tmp_path_factory.mktemp("refusing"), port=0, site_port=0) as running:
        register(running, "kept")
        running.client("iam").create_role(RoleName="kept", AssumeRolePolicyDocument="{}")
        schedule(running, "kept")
        yield running


def schedule(cloud, name: str):
    target = {"Arn": "arn:aws:lambda:us-east-1:000000000000:function:kept", "RoleArn": ROLE}
    when = {"ScheduleExpression": "at(2099-01-01T00:00:00)", "FlexibleTimeWindow": {"Mode": "OFF"}}
    cloud.client("scheduler").create_schedule(Name=name, Target=target, **when)


def send(cloud, path: str, body: dict):
    request = Request(f"{cloud.url}{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    urlopen(request, timeout=60).read()


def sagemaker(call: str, **params):
    return lambda cloud: getattr(cloud.client("sagemaker"), call)(**params)


ARN = "arn:aws:sagemaker:us-east-1:000000000000:model/kept"
CHANGES = {
    "create a model": sagemaker(
        "create_model", ModelName="new", ExecutionRoleArn=ROLE, PrimaryContainer={"Image": "i"}
    ),
    "tag a model": sagemaker("add_tags", ResourceArn=ARN, Tags=[{"Key": "new", "Value": "1"}]),
    "delete a model": sagemaker("delete_model", ModelName="kept"),
    "create an endpoint": sagemaker("create_endpoint", EndpointName="new", EndpointConfigName="kept"),
    "put a parameter": lambda c: c.client("ssm").put_parameter(Name="/new", Value="1", Type="String"),
    "put an object": lambda c: c.client("s3").put_object(Bucket="test-models", Key="new", Body=b"1"),
    "create a role": lambda c: c.client("iam").create_role(RoleName="new", AssumeRolePolicyDocument="{}"),
    "create a schedule": lambda c: schedule(c, "new"),
    "send a message": lambda c: send(c, "/_textbelt/text", {"phone": "+15005550006", "message": "m", "key": "k"}),
    "set the clock": lambda c: c.advance_clock(1000),
}


def known(cloud) -> dict:
    "Return everything that the changes could affect."
    sagemaker, names = cloud.client("sagemaker"), lambda found, field: sorted(each[field] for each in found)
    return {
        "models": names(sagemaker.list_models()["Models"], "ModelName"),
        "tags": sagemaker.list_tags(ResourceArn=ARN)["Tags"],
        "endpoints": sagemaker.list_endpoints()["Endpoints"],
        "parameters": cloud.client("ssm").describe_parameters()["Parameters"],
        "objects": names(cloud.client("s3").list_objects_v2(Bucket="test-models")["Contents"], "Key"),
        "roles": names(cloud.client("iam").list_roles()["Roles"], "RoleName"),
        "schedules": names(cloud.client("scheduler").list_schedules()["Schedules"], "Name"),
        "messages": json.load(urlopen(f"{cloud.inbox_url}.json", timeout=60)),
        "clock": json.load(urlopen(f"{cloud.url}/_local/clock", timeout=60)),
    }


def test_a_change_that_cannot_be_written_has_no_effect(cloud):
    before = known(cloud)
    with cloud.limited(0):
        for change in CHANGES.values():
            with pytest.raises((ClientError, HTTPError)) as refused:
                change(cloud)
            told = refused.value.read().decode() if isinstance(refused.value, HTTPError) else str(refused.value)
            assert "File too large. The file is larger than" in told and str(cloud.state) in told
    assert known(cloud) == before
    os.kill(cloud.place["pid"], signal.SIGKILL)
    cloud.start(detached=False)
    assert known(cloud) == before
    until(lambda: schedule(cloud, "new") is None)  # now it succeeds


BIG = os.urandom(2 * MEBIBYTE)  # larger than the limit, and not compressible


def test_an_endpoint_reports_a_model_that_does_not_fit_on_the_disk(cloud):
    register(cloud, "large")
    cloud.client("s3").put_object(Bucket="test-models", Key="large/model.tar.gz", Body=BIG)
    with cloud.limited(MEBIBYTE):
        cloud.client("sagemaker").create_endpoint(EndpointName="large", EndpointConfigName="large")
        failed = settled(cloud, "large")
    assert failed["EndpointStatus"] == "Failed" and "File too large. The file is" in failed["FailureReason"]
    assert "Could not find" not in failed["FailureReason"]
    cloud.client("sagemaker").delete_endpoint(EndpointName="large")


def test_an_endpoint_fails_once_its_failure_can_be_written(cloud):
    register(cloud, "late", "raise RuntimeError('spoiled')")
    cloud.client("sagemaker").create_endpoint(EndpointName="late", EndpointConfigName="late")
    with cloud.limited(0):
        time.sleep(4)
        assert cloud.client("sagemaker").describe_endpoint(EndpointName="late")["EndpointStatus"] == "Creating"
    assert settled(cloud, "late")["EndpointStatus"] == "Failed"


def test_a_training_job_reports_data_that_do_not_fit_on_the_disk(cloud):
    cloud.client("s3").put_object(Bucket="test-models", Key="data/big", Body=BIG)
    source = {"S3DataType": "S3Prefix", "S3Uri": "s3://test-models/data/"}
    with cloud.limited(MEBIBYTE):
        cloud.client("sagemaker").create_training_job(
            TrainingJobName="large",
            RoleArn=ROLE,
            AlgorithmSpecification={"TrainingImage": "t", "TrainingInputMode": "File", "ContainerEntrypoint": ["true"]},
            InputDataConfig=[{"ChannelName": "data", "DataSource": {"S3DataSource": source}}],
            OutputDataConfig={"S3OutputPath": "s3://test-models/out"},
            ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 5},
            StoppingCondition={"MaxRuntimeInSeconds": 600},
        )
        describe = cloud.client("sagemaker").describe_training_job
        job = until(lambda: (j := describe(TrainingJobName="large"))["TrainingJobStatus"] == "Failed" and j)
    assert "File too large. The file is" in job["FailureReason"]


def test_a_glue_run_reports_data_that_do_not_fit_on_the_disk(cloud):
    glue = cloud.client("glue")
    cloud.client("s3").put_object(Bucket="test-models", Key="lake/big", Body=BIG)
    command = {"Name": "glueetl", "ScriptLocation": "s3://test-models/job.py"}
    glue.create_job(Name="large", Role=ROLE, Command=command)
    with cloud.limited(MEBIBYTE):
        run_id = glue.start_job_run(JobName="large", Arguments={"--lake": "s3://test-models/lake/"})["JobRunId"]
        get = lambda: glue.get_job_run(JobName="large", RunId=run_id)["JobRun"]  # noqa: E731
        ended = until(lambda: (r := get())["JobRunState"] == "FAILED" and r)
    assert "File too large. The file is" in ended["ErrorMessage"]


def test_an_unreadable_object_is_not_treated_as_empty(cloud):
    s3 = cloud.client("s3")
    s3.put_object(Bucket="test-models", Key="lost", Body=b"full")
    (lost,) = cloud.state.glob("s3/**/lost")
    lost.unlink()
    with pytest.raises(ClientError):
        s3.get_object(Bucket="test-models", Key="lost")["Body"].read()
