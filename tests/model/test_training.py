"The training job as a process under SageMaker's contract, and the base model it starts from."

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import boto3
import numpy as np
import pandas as pd
import papermill
import pytest
from botocore.exceptions import ClientError
from papermill.exceptions import PapermillExecutionError

from sentiment_engine.deploy.training import (
    TrainingFailed,
    TrainingJob,
    base_model_address,
    check_request,
    job_left,
    job_start,
    record_key,
    start_training,
    training_source,
    wait_for_training,
)
from sentiment_engine.model.base_model import build_base_model, minilm_folder
from sentiment_engine.model.training_job import COMPAT, UnusableData, check_sample, recipe_from, restart_with_compat
from sentiment_engine.settings import Settings, connect
from tests import ROOT

KIND = ("I love this microphone.", "Works perfectly and feels solid.", "Great sound, great price!")
HARSH = ("Terrible sound, I want my money back.", "Stopped working after two days.", "A waste of money.")


def reviews(rows: int) -> pd.DataFrame:
    "Make a sample of both labels."
    texts = [(KIND if i % 2 else HARSH)[i // 2 % 3] for i in range(rows)]
    labels = [i % 2 for i in range(rows)]
    given = {"text": texts, "label": labels, "stars": [1 + 4 * label for label in labels]}
    return pd.DataFrame(given).assign(category="Musical_Instruments")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return build_base_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    "The container's code: nothing else of the project is imported."
    return training_source(ROOT / "infra_scripts/train.py", tmp_path_factory.mktemp("source"))


def prepare_job(source: Path, root: Path, base: Path, train: pd.DataFrame, *arguments: str) -> dict:
    "Write the files that SageMaker gives a job, with `root` as /opt/ml; return how to start it."
    env = {"SM_CHANNEL_BASE": base, "SM_MODEL_DIR": root / "model", "SM_OUTPUT_DATA_DIR": root / "output/data"}
    for name, rows in {"train": train, "validation": reviews(12), "test": reviews(12)}.items():
        env[f"SM_CHANNEL_{name.upper()}"] = folder = root / "input/data" / name
        folder.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(folder / f"{name}.parquet")
    env = {k: v for k, v in os.environ.items() if not k.startswith("SM_")} | {k: str(v) for k, v in env.items()}
    env["SM_HPS"] = json.dumps({"epochs": "1"})
    return {"args": [sys.executable, "train.py", *arguments], "cwd": source, "env": env, "text": True}


def run_job(source: Path, root: Path, base: Path, train: pd.DataFrame, *arguments: str) -> subprocess.CompletedProcess:
    "Run train.py like SageMaker."
    return subprocess.run(**prepare_job(source, root, base, train, *arguments), capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, source, base) -> tuple[Path, str]:
    "A model trained for a few steps: its /opt/ml and the job's output."
    root = tmp_path_factory.mktemp("job")
    done = run_job(source, root, base, reviews(64), "--max_steps", "6", "--max-length", "32")
    assert done.returncode == 0, done.stderr[-2000:]
    return root, done.stdout


def test_hidden_states_equal_the_original(base):
    import torch
    from transformers import BertModel, DistilBertModel

    ids = torch.randint(1000, 30_000, (3, 64), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 40:] = mask[2, 7:] = 0
    with torch.inference_mode():
        original = BertModel.from_pretrained(minilm_folder()).eval()(ids, mask).last_hidden_state
        ours = DistilBertModel.from_pretrained(base).eval()(ids, mask).last_hidden_state
    assert (original - ours).abs()[mask.bool()].max() < 1e-5


def test_building_the_base_model_is_reproducible(base, tmp_path):
    again = build_base_model(tmp_path / "again")
    assert all((again / file.name).read_bytes() == file.read_bytes() for file in base.iterdir())
    other = build_base_model(tmp_path / "other", seed=1)
    assert (other / "model.safetensors").read_bytes() != (base / "model.safetensors").read_bytes()


def test_a_model_learns_soft_targets(base, tmp_path):
    from transformers import AutoTokenizer, set_seed

    from sentiment_engine.model.training_job import Recipe, encode, fit, load_model, predict_rows

    set_seed(0)
    rows, recipe = reviews(64).iloc[:, :2], Recipe(epochs=8, learning_rate=3e-4, max_length=16)
    taught = rows.assign(target=np.where(rows["label"] == 1, 0.8, 0.4))
    tokenizer = AutoTokenizer.from_pretrained(base)
    trainer = fit(load_model(str(base), recipe), tokenizer, encode(tokenizer, taught, 16), recipe, tmp_path)
    said = predict_rows(trainer, tokenizer, rows)["positive"]
    assert (said - taught["target"]).abs().max() < 0.1, "a hard label would have made it sure"


def test_the_artifact_is_complete(trained):
    root, _ = trained
    files = {path.relative_to(root / "model").as_posix() for path in (root / "model").rglob("*") if path.is_file()}
    weights = {"model.onnx", "model.onnx.data", "model.safetensors"}
    beside = {"config.json", "tokenizer.json", "tokenizer_config.json", "metrics.json", "README.md"}
    assert files >= weights | beside | {"code/inference.py", "code/requirements.txt"}
    assert {path.name for path in (root / "output/data").iterdir()} == {"metrics.json", "predictions.parquet"}


def test_the_metrics_contain_the_measurements(trained):
    root, printed = trained
    metrics = json.loads((root / "model/metrics.json").read_text())
    assert metrics["rows"] == 12 and np.sum(metrics["confusion"]) == 12 and metrics["train_rows"] == 64
    assert metrics["majority"]["accuracy"] == 0.5 and metrics["recipe"]["max_steps"] == 6
    assert metrics["onnx"]["largest_logit_gap"]["fp32"] < 1e-3 and metrics["onnx"]["graph_of_its_own"] is True
    assert "[train] step=6/6" in printed and "[done] accuracy=" in printed
    assert f"{metrics['accuracy']:.3f}" in (root / "model/README.md").read_text()


def test_plain_transformers_loads_the_artifact(trained):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from sentiment_engine.model.inference import model_fn, predict_fn

    folder = trained[0] / "model"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float32 and model.config.id2label == {0: "NEGATIVE", 1: "POSITIVE"}
    with torch.inference_mode():
        logits = model.eval()(**tokenizer([KIND[0]], return_tensors="pt")).logits[0]
    shares = (logits / json.loads((folder / "calibration.json").read_text())["temperature"]).softmax(-1)
    served = predict_fn([KIND[0]], model_fn(str(folder)))[0]["scores"]
    assert abs(float(shares[1]) - served["POSITIVE"]) < 0.05, "rounding to 8 bits moves it a little, no more"


def test_the_job_calibrates_on_validation_and_the_server_uses_the_result(trained):
    from sentiment_engine.model.inference import model_fn, predict_fn

    folder = trained[0] / "model"
    found = json.loads((folder / "calibration.json").read_text())
    assert found["rows"] == 12 and not found["reached"], "twelve answers prove nothing, even if all are right"
    assert json.loads((folder / "metrics.json").read_text())["calibration"] == found
    assert "no answer is called sure" in (folder / "README.md").read_text()
    assert predict_fn([KIND[0]], model_fn(folder))[0]["sure"] is False


def test_torchrun_trains_one_model_in_two_processes(source, base, tmp_path):
    "This is like a machine with several GPUs: both processes train, and only the first one writes."
    job = prepare_job(source, tmp_path, base, reviews(64), "--max-length", "16", "--time-budget", "600")
    job["args"][:1] = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(**job, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "step=2/2" in done.stdout, "four batches of 16, two at a time"
    metrics = json.loads((tmp_path / "model/metrics.json").read_text())
    assert metrics["rows"] == 12 and done.stdout.count("[done]") == 1 and (tmp_path / "model/model.onnx").exists()


CLOCKS = """
import os, time, torch
from sentiment_engine.model.training_job import Clock, first_process, say
torch.distributed.init_process_group("gloo")
time.sleep(0.5 * int(os.environ["RANK"]))  # the second starts later
clock = Clock()
with open(f"{os.environ['RANK']}.seconds", "w") as file:
    print(*[clock.seconds() for _ in range(3)], file=file)
say("train", only="once")
torch.distributed.barrier()  # whoever leaves first must not take the connection along
torch.distributed.destroy_process_group()
"""


def test_all_processes_of_a_training_share_one_clock(tmp_path):
    "With a time budget on separate clocks, processes would stop at different steps, and some would wait for ever."
    (tmp_path / "clocks.py").write_text(CLOCKS)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*start, tmp_path / "clocks.py"], capture_output=True, text=True, timeout=120, env=env, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = ((tmp_path / f"{rank}.seconds").read_text().split() for rank in range(2))
    assert len(first) == 3 and first == second and done.stdout.count("only=once") == 1


MARK = "0f3c5a7e9b1d2a4c"
MADE = datetime(2026, 11, 30, tzinfo=UTC)


def test_a_job_on_gpus_uses_torchrun_and_can_use_spot_capacity(cloud, source, monkeypatch):
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    sagemaker, s3 = cloud.client("sagemaker"), cloud.client("s3")
    s3.create_bucket(Bucket="training-tests")
    s3.put_object(Bucket="training-tests", Key="sample/train.parquet", Body=b"no Parquet")
    role, place = "arn:aws:iam::111122223333:role/training", "s3://training-tests"
    asked = {"source": source, "channels": {"train": f"{place}/sample"}, "recipe": {"epochs": 1}, "role": role}
    asked |= {"bucket": "training-tests", "max_hours": 0.5}
    several = TrainingJob(
        **asked, instance_type="ml.g5.12xlarge", spot=True, checkpoints=f"{place}/checkpoints/", mark=MARK
    )
    single = TrainingJob(**asked, instance_type="ml.m5.large")
    found = {}
    for job in (several, single):
        prefix = f"on-{job.instance_type.split('.')[1]}"  # the SDK names jobs after the second
        name = start_training(connect("local"), Settings(prefix=prefix), job)
        assert name.startswith(job_start(Settings(prefix=prefix), job.mark))
        found[job.instance_type] = described = sagemaker.describe_training_job(TrainingJobName=name)
        (drivers,) = (c for c in described["InputDataConfig"] if c["ChannelName"] == "sm_drivers")
        bucket, _, prefix = drivers["DataSource"]["S3DataSource"]["S3Uri"].removeprefix("s3://").partition("/")
        keys = [item["Key"] for item in s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]]
        (started,) = (s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys if "sm_train.sh" in key)
        assert (b"torchrun_driver.py" in started) is (job is several)
    spot = found["ml.g5.12xlarge"]
    assert spot["EnableManagedSpotTraining"] and spot["CheckpointConfig"]["S3Uri"] == f"{place}/checkpoints/"
    assert spot["StoppingCondition"] == {"MaxRuntimeInSeconds": 1800, "MaxWaitTimeInSeconds": 3600}
    assert not found["ml.m5.large"].get("EnableManagedSpotTraining")


class Aws:
    "AWS for an administrator with credentials and a region: it records every call, and IAM denies."

    def __init__(self, refusal: ClientError | None = None):
        self.session = boto3.Session("id", "key", region_name="eu-central-1")
        self.session.events.register("before-call", self._answer)
        self.called, self.keys, self.created, self.refusal = set(), set(), {}, refusal

    def _answer(self, model, params, **_):
        service = str(model.service_model.service_id)
        self.called.add((service, model.name))
        said = {"TrainingJobArn": "arn:aws:sagemaker:eu-central-1:111122223333:training-job/x"}
        if service == "S3":
            self.keys.add(params["url_path"])
        elif service == "IAM":
            denied = [{"EvalActionName": "ec2:DescribeVpcs", "EvalDecision": "implicitDeny"}]
            said = {"EvaluationResults": denied, "IsTruncated": False}
        elif model.name == "CreateTrainingJob":
            if self.refusal:
                raise self.refusal
            self.created = json.loads(params["body"])
        else:
            said |= {"TrainingJobName": "x", "TrainingJobStatus": "InProgress", "SecondaryStatus": "Starting"}
        return SimpleNamespace(status_code=200), said


@pytest.fixture
def no_settings(monkeypatch):
    "An environment without variables for the SDK or boto3; telemetry fails the test."
    for name in [name for name in os.environ if name.startswith(("SAGEMAKER_", "AWS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("requests.get", lambda *given, **_: pytest.fail(f"something was reported to {given}"))
    monkeypatch.setattr("threading.Thread.start", lambda self, start=threading.Thread.start: sent(self) or start(self))


def sent(thread: threading.Thread):
    assert thread.name != "sagemaker-telemetry", "the SDK reports its use to AWS"


def wanted(source: Path, kind: str = "ml.g4dn.xlarge", **more) -> TrainingJob:
    "Request a job like the notebook."
    place = {"role": "arn:aws:iam::111122223333:role/training", "bucket": "artifacts"}
    return TrainingJob(
        source, {"train": "s3://lake/sample/train.parquet"}, {"epochs": 1}, kind, **place, mark=MARK, **more
    )


def test_a_job_starts_even_if_iam_denies_reading_the_role(source, no_settings):
    aws = Aws()
    start_training(aws.session, Settings(), wanted(source))
    assert {service for service, _ in aws.called} == {"S3", "SageMaker"}
    assert {name for service, name in aws.called if service == "S3"} == {"PutObject"}
    addresses = [c["DataSource"]["S3DataSource"]["S3Uri"] for c in aws.created["InputDataConfig"]]
    assert addresses[0] == "s3://lake/sample/train.parquet" and len(addresses) == 3
    assert all(address.startswith("s3://artifacts/training-code/") for address in addresses[1:])
    assert aws.keys and all(key.startswith("/training-code/") for key in aws.keys)
    assert not [name for name in os.environ if name.startswith("SAGEMAKER_")], "the setting is restored"


def test_user_settings_of_the_sdk_are_restored(source, no_settings, monkeypatch):
    monkeypatch.setenv("SAGEMAKER_VALIDATE_ROLE", "true")
    start_training(Aws().session, Settings(), wanted(source, "ml.m5.large"))
    assert os.environ["SAGEMAKER_VALIDATE_ROLE"] == "true"


@pytest.mark.parametrize(
    ("code", "message", "about_the_machine"),
    [
        ("ResourceLimitExceeded", "The account-level service limit 'ml.g4dn.xlarge for training job usage' is 0", True),
        ("ValidationException", "Value 'ml.g4dn.xlarge' at 'resourceConfig.instanceType' failed to satisfy", True),
        ("ValidationException", "Requested instance type is not supported in this region", True),
        ("AccessDeniedException", "User: ada is not authorized to perform: sagemaker:CreateTrainingJob", False),
    ],
)
def test_an_unavailable_machine_is_reported_with_a_remedy(source, no_settings, code, message, about_the_machine):
    refusal = ClientError({"Error": {"Code": code, "Message": message}}, "CreateTrainingJob")
    with pytest.raises(TrainingFailed if about_the_machine else ClientError, match=message) as raised:
        start_training(Aws(refusal).session, Settings(), wanted(source))
    assert ("--training-instance" in str(raised.value)) is about_the_machine


def test_a_job_on_a_gpu_instance_without_a_gpu_fails_before_reading_data(source, tmp_path):
    job = prepare_job(source, tmp_path, tmp_path / "no base", reviews(64))
    job["env"] |= {"SM_CURRENT_INSTANCE_TYPE": "ml.g4dn.xlarge", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(**job, capture_output=True, timeout=300)
    reason = (tmp_path / "output/failure").read_text()
    assert done.returncode == 1 and "[data]" not in done.stdout
    assert reason.startswith("the job runs on ml.g4dn.xlarge, which has a GPU, but torch sees none")


def test_the_local_cloud_has_a_gpu_only_if_this_machine_has_one(cloud, source, monkeypatch):
    import torch

    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    s3, sagemaker = cloud.client("s3"), cloud.client("sagemaker")
    s3.create_bucket(Bucket="gpu-tests")
    s3.put_object(Bucket="gpu-tests", Key="sample/train.parquet", Body=b"no Parquet")
    place = {"role": "arn:aws:iam::111122223333:role/training", "bucket": "gpu-tests"}
    job = TrainingJob(
        source, {"train": "s3://gpu-tests/sample/train.parquet"}, {"epochs": 1}, "ml.g4dn.xlarge", **place
    )
    name = start_training(connect("local"), Settings(prefix="gpu-tests"), job)
    with pytest.raises(TrainingFailed) as failed:
        wait_for_training(sagemaker, cloud.client("logs"), name)
    assert (
        "ml.g4dn.xlarge, which has a GPU, but torch sees none" in str(failed.value)
    ) is not torch.cuda.is_available()


def machine(root: Path, driver: str) -> Path:
    "Simulate an image with CUDA's compatibility libraries on a machine with a driver."
    (root / COMPAT).mkdir(parents=True)
    (root / COMPAT / "libcuda.so.580.65.06").touch()
    (root / COMPAT / "libcuda.so.1").symlink_to("libcuda.so.580.65.06")
    (root / "proc/driver/nvidia").mkdir(parents=True)
    (root / "proc/driver/nvidia/version").write_text(f"NVRM version: NVIDIA UNIX {driver}  Tue Jan  1 2026\n")
    return root


@pytest.mark.parametrize(
    ("driver", "kind", "before", "after"),
    [
        ("x86_64 Kernel Module  550.163.01", "ml.g4dn.xlarge", "/lib", "{compat}:/lib"),
        ("Open Kernel Module for x86_64  570.9", "ml.g6.xlarge", "", "{compat}"),
        ("x86_64 Kernel Module  580.65.06", "ml.g4dn.xlarge", "/lib", None),  # equally new
        ("x86_64 Kernel Module  1000.1", "ml.g4dn.xlarge", "/lib", None),
        ("x86_64 Kernel Module  550.163.01", "ml.m5.large", "/lib", None),
        ("x86_64 Kernel Module  550.163.01", "ml.g4dn.xlarge", "{compat}:/lib", None),  # already restarted this way
    ],
)
def test_compatibility_libraries_are_used_as_in_the_image_entrypoint(
    tmp_path, monkeypatch, driver, kind, before, after
):
    root, started = machine(tmp_path, driver), []
    compat = str(root / COMPAT)
    monkeypatch.setattr("os.execve", lambda *given: started.append(given))
    env = {"SM_CURRENT_INSTANCE_TYPE": kind, "LD_LIBRARY_PATH": before.format(compat=compat), "RANK": "1"}
    restart_with_compat(env, root)
    if after is None:
        assert not started
    else:
        ((program, words, given),) = started
        assert program == sys.executable and words == sys.orig_argv
        assert given == env | {"LD_LIBRARY_PATH": after.format(compat=compat)}


def test_a_tampered_base_model_is_replaced(cloud, base, monkeypatch):
    monkeypatch.setattr("sentiment_engine.model.base_model.build_base_model", lambda folder: base)
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="base-tests")
    bucket, _, prefix = base_model_address(s3, "base-tests").removeprefix("s3://").partition("/")
    s3.put_object(Bucket=bucket, Key=f"{prefix}model.safetensors", Body=b"somebody else's")
    base_model_address(s3, bucket)
    for file in base.iterdir():
        assert s3.get_object(Bucket=bucket, Key=prefix + file.name)["Body"].read() == file.read_bytes()


class Account:
    "SageMaker, its logs and S3, with known jobs; they first raise the errors in `faults`."

    def __init__(self, *jobs: dict):
        self.jobs, self.faults, self.asked, self.objects = {j["TrainingJobName"]: j for j in jobs}, [], [], {}
        self.lines, self.meta = [], None

    def get_paginator(self, operation: str):
        if operation == "filter_log_events":
            return SimpleNamespace(paginate=self._events)
        found = [
            {"TrainingJobName": name, "TrainingJobArn": name, "CreationTime": MADE} for name in reversed(self.jobs)
        ]
        return SimpleNamespace(paginate=lambda **_: [{"TrainingJobSummaries": found}])

    def _events(self, startTime: int, **_):
        self.asked.append(startTime)
        events = [{"timestamp": at, "message": line, "logStreamName": f"{of}/algo-1"} for of, at, line in self.lines]
        return [{"events": [e for e in events if e["timestamp"] >= startTime]}]

    def describe_training_job(self, TrainingJobName: str):
        if self.faults:
            raise self.faults.pop()
        job = self.jobs[TrainingJobName]
        return job | {"TrainingJobStatus": job["then"].pop(0)} if job.get("then") else job

    def get_object(self, Bucket: str, Key: str):
        if (Bucket, Key) not in self.objects:
            raise ClientError({"Error": {"Code": "404", "Message": "Not Found"}}, "HeadObject")
        return {"Body": io.BytesIO(self.objects[Bucket, Key])}

    head_object = get_object


def job(status: str, number: int = 1, bucket: str = "artifacts", mark: str = MARK, **more) -> dict:
    "Describe a training job like SageMaker."
    name, place = f"{job_start(Settings(), mark)}{number}", f"s3://{bucket}/models"
    found = {"TrainingJobName": name, "TrainingJobStatus": status, "OutputDataConfig": {"S3OutputPath": place}}
    return found | {"ModelArtifacts": {"S3ModelArtifacts": f"{place}/{name}/output/model.tar.gz"}} | more


@pytest.mark.parametrize(
    ("jobs", "followed"),
    [
        ([], None),
        ([job("InProgress")], 1),
        ([job("Completed")], 1),  # while it was not watched
        ([job("Failed")], None),
        ([job("Stopping")], None),
        ([job("Failed", 1), job("InProgress", 2)], 2),
        ([job("InProgress", bucket="of-an-engine-that-is-gone")], None),
        ([job("Completed", bucket="of-an-engine-that-is-gone")], None),
        ([job("InProgress", mark="another model's")], None),
    ],
)
def test_a_job_of_an_interrupted_run_is_continued(jobs, followed):
    account = Account(*jobs)
    account.objects = {("artifacts", f"models/{name}/output/model.tar.gz"): b"" for name in account.jobs}
    found = job_left(account, account, Settings(), "artifacts", MARK)
    assert found == (followed and job("", followed)["TrainingJobName"])


def test_a_job_with_a_record_or_without_a_model_is_not_continued():
    done = job("Completed")
    account = Account(done)
    assert job_left(account, account, Settings(), "artifacts", MARK) is None  # its model was deleted
    record = {"job": done["TrainingJobName"], "artifact": done["ModelArtifacts"]["S3ModelArtifacts"]}
    account.objects["artifacts", f"models/{record['job']}/output/model.tar.gz"] = b""
    account.objects["artifacts", record_key(MARK)] = json.dumps(record).encode()
    assert job_left(account, account, Settings(), "artifacts", MARK) is None


def test_waiting_reads_each_log_line_once_and_tolerates_throttling(monkeypatch):
    ours = job("Completed", then=["InProgress", "InProgress", "InProgress"])
    account, name, told = Account(ours), ours["TrainingJobName"], []
    account.faults = [ClientError({"Error": {"Code": "ThrottlingException", "Message": "Rate exceeded"}}, "Describe")]
    script = iter(([(name, 5, "[train] step=1"), ("another", 6, "[train] step=9")], [(name, 5, "[train] step=2")]))

    def sleep(seconds):
        account.lines += next(script, [])

    monkeypatch.setattr("sentiment_engine.polling.time", SimpleNamespace(monotonic=lambda: 0.0, sleep=sleep))
    assert wait_for_training(account, account, name, told.append)["TrainingJobStatus"] == "Completed"
    assert told == ["[train] step=1", "[train] step=2"]
    assert account.asked[0] == 0 and account.asked[-1] == 5  # not from the start each time


def test_a_long_wait_polls_less_often(monkeypatch):
    slept = []
    clock = SimpleNamespace(monotonic=lambda: sum(slept), sleep=slept.append)
    monkeypatch.setattr("sentiment_engine.polling.time", clock)
    ended = job("Failed", FailureReason="CapacityError")
    account = Account(ended | {"then": ["InProgress"] * 440})
    with pytest.raises(TrainingFailed, match="CapacityError"):
        wait_for_training(account, account, ended["TrainingJobName"])
    assert sum(slept) > 3 * 3600 and max(slept) == 30 and min(slept) == 1


def test_without_validation_the_model_is_not_calibrated(tmp_path, source, base):
    job = prepare_job(source, tmp_path, base, reviews(32), "--max_steps", "1", "--max-length", "16")
    del job["env"]["SM_CHANNEL_VALIDATION"]
    assert subprocess.run(**job, timeout=300).returncode == 0
    assert not (tmp_path / "model/calibration.json").exists()
    assert "no validation reviews to calibrate on" in (tmp_path / "model/README.md").read_text()


@pytest.mark.parametrize(
    ("train", "arguments", "reason"),
    [
        (reviews(64).assign(label=1), [], "all 64 reviews are POSITIVE"),
        (reviews(4), [], "4 reviews are too few"),
        (reviews(64).drop(columns="label"), [], "no column label"),
        (reviews(64), ["--learningrate", "1"], "unknown hyperparameters: learningrate"),
        (reviews(64), ["--epochs", "many"], "epochs='many' cannot be read"),
    ],
    ids=["one label", "too few", "no labels", "unknown name", "no number"],
)
def test_bad_input_fails_with_a_clear_reason(source, base, tmp_path, train, arguments, reason):
    done = run_job(source, tmp_path, base, train, *arguments)
    assert done.returncode == 1 and not (tmp_path / "model").exists()
    failure = (tmp_path / "output/failure").read_text()
    assert reason in failure and "Traceback" not in failure


def test_values_exactly_at_a_limit_are_accepted():
    check_sample(reviews(16))
    with pytest.raises(UnusableData, match="15 reviews are too few"):
        check_sample(reviews(16).head(15))
    assert [recipe_from(["--max_length", str(size)], {}).max_length for size in (8, 512)] == [8, 512]
    for size in (7, 513):
        with pytest.raises(ValueError, match=f"max_length is {size}"):
            recipe_from(["--max_length", str(size)], {})


def test_arguments_override_sagemaker_hyperparameters_and_need_a_value():
    assert recipe_from(["--epochs", "3"], {"SM_HPS": '{"epochs": 1, "seed": 7}'}).epochs == 3
    with pytest.raises(ValueError, match="arguments must come as --key value"):
        recipe_from(["--epochs", "3", "--seed"], {})


GOOD = {"recipe": {"epochs": 1.0}, "instance_type": "ml.m5.large", "max_hours": 3.0}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"recipe": {name: value}}, name)
        for name, value in (
            ("epochs", 0),
            ("epochs", float("inf")),
            ("epochs", "many"),
            ("learning_rate", -1e-4),
            ("batch_size", 0),
            ("batch_size", 1.5),
            ("max_length", 7),
            ("max_length", 513),
            ("seed", -1),
            ("layer_decay", 1.1),
            ("label_smoothing", 1),
            ("early_stopping", -1),
            ("max_steps", -1),
            ("time_budget", float("nan")),
            ("checkpoints", "perhaps"),
            ("epoch", 1),
        )
    ]
    + [({"instance_type": kind}, "training_instance") for kind in ("m5.large", "", "ml.m5", None)]
    + [({"max_hours": hours}, "max_hours") for hours in (0, -1, 673, float("nan"), "3")],
)
def test_the_error_names_a_wrong_parameter(given, named):
    check_request(**GOOD)
    with pytest.raises(ValueError, match=rf"\b{named}\b"):
        check_request(**GOOD | given)


@pytest.mark.parametrize(
    ("notebook", "given"),
    [("03_model_training", {"epochs": -1.0}), ("04_endpoint_deployment", {"macro_f1_floor": 75.0})],
)
def test_a_walkthrough_rejects_a_wrong_parameter_before_calling_any_cloud(notebook, given, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nothing answers there
    with pytest.raises(
        PapermillExecutionError, match=rf"{next(iter(given))} must be .*, not {next(iter(given.values()))}"
    ):
        papermill.execute_notebook(
            ROOT / f"nbs/{notebook}.ipynb", tmp_path / "run.ipynb", given, cwd=ROOT / "nbs", progress_bar=False
        )


def steps_told(printed: str) -> list[int]:
    "Read the step numbers in a job's output."
    return [int(step) for step in re.findall(r"step=(\d+)/", printed)]


def test_a_killed_job_resumes_at_its_checkpoint(source, base, tmp_path):
    job = prepare_job(
        source, tmp_path, base, reviews(64), "--max_steps", "40", "--max-length", "32", "--checkpoints", "1"
    )
    with subprocess.Popen(**job, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        for line in process.stdout:
            if any(step >= 12 for step in steps_told(line)):
                process.kill()  # like lost spare capacity: without a warning
                break
    assert not (tmp_path / "model/model.onnx").exists()
    whole = (tmp_path / "checkpoints").glob("checkpoint-*/trainer_state.json")  # the file that is written last
    newest = max((state.parent for state in whole), key=lambda path: int(path.name.split("-")[1]))
    shutil.copytree(newest, tmp_path / "checkpoints/checkpoint-36")  # whose state arrived before its weights
    (tmp_path / "checkpoints/checkpoint-36/model.safetensors").write_bytes(b"killed while it was writ")
    shutil.copytree(newest, tmp_path / "checkpoints/checkpoint-37")
    (tmp_path / "checkpoints/checkpoint-37/optimizer.pt").unlink()
    done = subprocess.run(**job, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    told = steps_told(done.stdout)
    assert told[0] > 4 and told[-1] == 40 and (tmp_path / "model/model.onnx").is_file()


def test_training_stops_when_validation_no_longer_improves(source, base, tmp_path):
    arguments = (
        "--epochs",
        "30",
        "--max-length",
        "32",
        "--early_stopping",
        "2",
        "--evaluations",
        "2",
        "--learning_rate",
        "1e-9",
    )
    done = run_job(source, tmp_path, base, reviews(64), *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    assert steps_told(done.stdout)[-1] < 20, (
        "nothing is learnt at such a rate, so the third evaluation of 120 steps is the last"
    )


def test_a_job_needs_no_validation_unless_it_may_stop_early(source, base, tmp_path):
    for root, extra, status in ((tmp_path / "a", [], 0), (tmp_path / "b", ["--early_stopping", "1"], 1)):
        job = prepare_job(source, root, base, reviews(64), "--max_steps", "2", "--max-length", "32", *extra)
        del job["env"]["SM_CHANNEL_VALIDATION"]
        done = subprocess.run(**job, capture_output=True, timeout=300)
        assert done.returncode == status, done.stderr[-2000:]
    assert "early_stopping needs the channel `validation`" in (tmp_path / "b/output/failure").read_text()


def test_a_time_budget_ends_with_a_finished_model(source, base, tmp_path):
    arguments = ("--epochs", "1000", "--max-length", "32", "--time_budget", "3")
    done = run_job(source, tmp_path, base, reviews(64), *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "time budget of 3s is used up" in done.stdout and (tmp_path / "model/model.onnx").is_file()


def test_the_source_folder_needs_no_other_module(source):
    imports = "import sentiment_engine.model.training_job as t; print(t.__file__)"
    found = subprocess.run([sys.executable, "-c", imports], cwd=source, capture_output=True, text=True)
    assert Path(found.stdout.strip()).is_relative_to(source), found.stderr


def test_launching_imports_no_heavy_modules():
    heavy = "{'torch', 'transformers', 'sagemaker', 'pandas', 'sklearn', 'matplotlib'}"
    code = f"import sys, sentiment_engine.deploy.training; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
