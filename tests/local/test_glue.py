"""Glue runs of the local cloud, through real boto3 calls."""

import io
import json
import os
import time
import zipfile
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from sentiment_engine.local.glue import Stage
from sentiment_engine.local.glue_options import getResolvedOptions
from tests.doubles.local_models import ROLE, bucket, until

LAKE = "test-glue"

# Writes each file of --raw in upper case into --out with a library function, and counts them in --report.
SCRIPT = """
import os, pathlib, sys
from awsglue.utils import getResolvedOptions
from shouting import shout
options = getResolvedOptions(sys.argv, ["JOB_NAME", "raw", "out", "report", "tone"])
out = pathlib.Path(options["out"])
out.mkdir(exist_ok=True)
for old in out.glob("*.txt"):
    old.unlink()
files = sorted(pathlib.Path(options["raw"]).rglob("*.txt"))
for path in files:
    (out / path.name).write_text(shout(path.read_text(), options["tone"]))
if options["tone"] == "wrong":
    raise ValueError("no such tone: wrong")
pathlib.Path(options["report"]).write_text(str(len(files)))
print("cleaned by", options["JOB_NAME"], "with", os.environ["AWS_ENDPOINT_URL"])
"""

SPARK = """
import sys
from awsglue.utils import getResolvedOptions
from pyspark.sql import SparkSession
options = getResolvedOptions(sys.argv, ["raw", "out"])
spark = SparkSession.builder.config("spark.sql.shuffle.partitions", 1).getOrCreate()
rows = spark.read.text(options["raw"])
rows.groupBy("value").count().coalesce(1).write.mode("overwrite").partitionBy("value").json(options["out"])
"""


@pytest.fixture(scope="module")
def glue(cloud):
    s3, client = cloud.client("s3"), cloud.client("glue")
    bucket(cloud, LAKE)
    library = io.BytesIO()
    with zipfile.ZipFile(library, "w") as archive:
        archive.writestr("shouting.py", "def shout(text, tone): return text.upper() + tone")
    for key, body in {"code/clean.py": SCRIPT, "code/spark.py": SPARK, "code/lib.zip": library.getvalue()}.items():
        s3.put_object(Bucket=LAKE, Key=key, Body=body)
    for name, kind, script in (
        ("clean", "pythonshell", "clean"),
        ("etl", "glueetl", "clean"),
        ("spark", "glueetl", "spark"),
    ):
        client.create_job(
            Name=name,
            Role=ROLE,
            Command={"Name": kind, "ScriptLocation": f"s3://{LAKE}/code/{script}.py", "PythonVersion": "3"},
            DefaultArguments={
                "--extra-py-files": f"s3://{LAKE}/code/lib.zip",
                "--tone": "!",
                "--job-language": "python",
            },
            GlueVersion="5.1",
        )
    return client


def objects(cloud, prefix: str) -> dict[str, str]:
    "Return the objects under `prefix` by key."
    s3 = cloud.client("s3")
    keys = [o["Key"] for o in s3.list_objects_v2(Bucket=LAKE, Prefix=prefix).get("Contents", [])]
    return {key: s3.get_object(Bucket=LAKE, Key=key)["Body"].read().decode() for key in keys}


def places(folder: str) -> dict[str, str]:
    start = f"s3://{LAKE}/{folder}"
    return {"--raw": f"{start}/raw/", "--out": f"{start}/out/", "--report": f"{start}/reports/report.json"}


def run(glue, job: str, arguments: dict[str, str], **more) -> dict:
    "Run a job and return the run when it has ended."
    run_id = glue.start_job_run(JobName=job, Arguments=arguments, **more)["JobRunId"]
    return ended(glue, job, run_id)


def ended(glue, job: str, run_id: str) -> dict:
    describe = glue.get_job_run
    working = ("STARTING", "RUNNING", "STOPPING")
    return until(lambda: (r := describe(JobName=job, RunId=run_id)["JobRun"])["JobRunState"] not in working and r, 60)


@pytest.mark.parametrize("job", ["clean", "etl"])
def test_a_run_gets_its_arguments_and_uploads_its_output(cloud, glue, job):
    s3 = cloud.client("s3")
    for key, body in {"raw/a.txt": "a", "raw/deep/b.txt": "b", "out/old.txt": "old", "out-of-reach.txt": "c"}.items():
        s3.put_object(Bucket=LAKE, Key=f"{job}/{key}", Body=body)
    done = run(glue, job, places(job))
    assert done["JobRunState"] == "SUCCEEDED", done
    assert done["CompletedOn"] >= done["StartedOn"] and done["ExecutionTime"] >= 0
    assert objects(cloud, f"{job}/out/") == {f"{job}/out/a.txt": "A!", f"{job}/out/b.txt": "B!"}
    assert objects(cloud, f"{job}/reports/") == {f"{job}/reports/report.json": "2"}
    assert objects(cloud, f"{job}/raw/") == {f"{job}/raw/a.txt": "a", f"{job}/raw/deep/b.txt": "b"}
    logs = cloud.client("logs").filter_log_events(logGroupName="/aws-glue/jobs/output", logStreamNames=[done["Id"]])
    assert logs["events"][-1]["message"] == f"cleaned by {job} with {cloud.url}"


def test_the_files_of_a_run_are_private_to_the_user(cloud, glue):
    run(glue, "clean", places("clean"))
    left = list((cloud.state / "glue").rglob("*"))
    assert "library.py" in {path.name for path in left}
    assert [path for path in left if not path.is_symlink() and path.stat().st_mode & 0o077] == []


def test_a_failed_run_reports_why_and_changes_nothing(cloud, glue):
    s3 = cloud.client("s3")
    for key, body in {"raw/a.txt": "a", "out/old.txt": "old"}.items():
        s3.put_object(Bucket=LAKE, Key=f"bad/{key}", Body=body)
    failed = run(glue, "etl", places("bad") | {"--tone": "wrong"})
    assert (failed["JobRunState"], failed["ErrorMessage"]) == ("FAILED", "ValueError: no such tone: wrong")
    assert objects(cloud, "bad/") == {"bad/raw/a.txt": "a", "bad/out/old.txt": "old"}
    errors = cloud.client("logs").filter_log_events(logGroupName="/aws-glue/jobs/error", logStreamNames=[failed["Id"]])
    assert "Traceback" in str(errors["events"])


def test_a_missing_argument_is_reported(glue):
    failed = run(glue, "etl", {})
    assert failed["ErrorMessage"] == "GlueArgumentError: the following arguments are required: --raw, --out, --report"


def test_a_missing_script_is_reported(glue):
    command = {"Name": "glueetl", "ScriptLocation": f"s3://{LAKE}/code/none.py"}
    glue.create_job(Name="scriptless", Role=ROLE, Command=command)
    assert "code/none.py is not in S3" in run(glue, "scriptless", {})["ErrorMessage"]


def test_runs_are_listed_stopped_and_limited(cloud, glue):
    body = "import time\ntime.sleep(600)"
    cloud.client("s3").put_object(Bucket=LAKE, Key="code/slow.py", Body=body)
    glue.create_job(Name="slow", Role=ROLE, Command={"Name": "glueetl", "ScriptLocation": f"s3://{LAKE}/code/slow.py"})
    run_id = glue.start_job_run(JobName="slow")["JobRunId"]
    with pytest.raises(ClientError, match="ConcurrentRunsExceededException"):
        glue.start_job_run(JobName="slow")
    until(lambda: glue.get_job_run(JobName="slow", RunId=run_id)["JobRun"]["JobRunState"] == "RUNNING")
    stopped = glue.batch_stop_job_run(JobName="slow", JobRunIds=[run_id, "none"])
    assert [r["JobRunId"] for r in stopped["SuccessfulSubmissions"]] == [run_id]
    assert [e["JobRunId"] for e in stopped["Errors"]] == ["none"]
    assert ended(glue, "slow", run_id)["JobRunState"] == "STOPPED"
    assert [r["Id"] for r in glue.get_job_runs(JobName="slow")["JobRuns"]] == [run_id]


def test_unknown_jobs_and_runs_are_reported(glue):
    for call, params in [
        (glue.start_job_run, {"JobName": "none"}),
        (glue.get_job_run, {"JobName": "etl", "RunId": "none"}),
        (glue.get_job_runs, {"JobName": "none"}),
    ]:
        with pytest.raises(ClientError, match="EntityNotFoundException"):
            call(**params)


def test_a_run_can_use_spark(cloud, glue):
    cloud.client("s3").put_object(Bucket=LAKE, Key="spark/raw/a.txt", Body="good\nbad\ngood\n")
    done = run(glue, "spark", {"--raw": f"s3://{LAKE}/spark/raw/", "--out": f"s3://{LAKE}/spark/out"})
    assert done["JobRunState"] == "SUCCEEDED", done
    written = objects(cloud, "spark/out/")
    counts = {k.split("/")[2]: json.loads(v)["count"] for k, v in written.items() if k.endswith(".json")}
    assert counts == {"value=bad": 1, "value=good": 2}
    assert not [key for key in written if key.endswith(".crc")]


class DyingStore(dict):
    "An S3 that stops working after a number of modifying requests."

    def __init__(self, objects: dict[str, str], requests: int):
        super().__init__(objects)
        self.requests = requests

    def get_paginator(self, _):
        return self

    def paginate(self, Bucket, Prefix):
        return [{"Contents": [{"Key": key} for key in sorted(self) if key.startswith(Prefix)]}]

    def download_file(self, bucket, key, path):
        Path(path).write_text(self[key])

    def change(self):
        self.requests -= 1
        if self.requests < 0:
            raise ConnectionError("the store is gone")

    def upload_file(self, path, bucket, key):
        self.change()
        self[key] = Path(path).read_text()

    def delete_object(self, Bucket, Key):
        self.change()
        del self[Key]


@pytest.mark.parametrize("requests", range(6))
def test_objects_are_uploaded_in_the_order_of_writing(tmp_path, requests):
    "A job that commits with its last file does so in S3 too, wherever the transfer stops."
    store = DyingStore({"z/old/1": "old", "z/old/2": "old", "a/current": "old"}, requests)
    stage = Stage(store, tmp_path)
    places = [Path(stage.enter(f"s3://lake/{key}")) for key in ("z/", "a/current")]
    (places[0] / "new").mkdir()
    for at, path in enumerate([places[0] / "new/2", places[0] / "new/1", places[1]], 1):
        path.write_text("new")
        os.utime(path, ns=(time.time_ns() + at, time.time_ns() + at))
    for old in (places[0] / "old").iterdir():
        old.unlink()
    if requests < 5:
        with pytest.raises(ConnectionError):
            stage.leave()
    else:
        stage.leave()
    current = store["a/current"]
    assert current == ("new" if requests >= 3 else "old")
    assert [store[f"z/{current}/{name}"] for name in (1, 2)] == [current] * 2
    assert requests < 5 or not [key for key in store if key.startswith("z/old")]


@pytest.mark.parametrize("key", ["../../outside/", "a/../../../outside/file", "/../../outside/"])
def test_an_address_outside_the_staging_folder_is_refused(tmp_path, key):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("private")
    stage = Stage(DyingStore({}, 9), tmp_path / "stage")
    with pytest.raises(ValueError, match="points outside the target folder"):
        stage.enter(f"s3://lake/{key}")
    assert stage.leave() == (0, 0) and not (tmp_path / "stage").exists()


@pytest.mark.parametrize(
    ("words", "options", "said"),
    [
        (["--a", "1"], ["a", "b"], "the following arguments are required: --b"),
        (["--a", "--b"], ["a"], "argument --a: expected one argument"),
        (["--long=1"], ["longer", "longest"], "ambiguous option: --long=1 could match --longer, --longest"),
        (["--JOB_RUN_ID", "jr"], ["JOB_RUN_ID"], "Using reserved arguments --JOB_RUN_ID"),
        (["--job-bookmark-option", "on"], [], "argument --job-bookmark-option: invalid choice: 'on'"),
    ],
)
def test_argument_errors_match_those_of_glue(words, options, said):
    with pytest.raises(Exception, match=said):
        getResolvedOptions(["script.py", *words], options)


def test_arguments_are_parsed_as_in_glue():
    words = ["x.py", "--a=x=y", "--JOB_NAME", "a", "--b", "1", "--b", "2", "--lon", "short", "--c", "-1", "--d", ""]
    wanted = {"a": "x=y", "b": "2", "long": "short", "c": "-1", "d": "", "TempDir": "s3://tmp"}
    found = getResolvedOptions([*words, "--other", "z", "--TempDir", "s3://tmp"], list(wanted))
    own = ("job_bookmark_from", "job_bookmark_to", "JOB_ID", "JOB_RUN_ID", "SECURITY_CONFIGURATION", "encryption_type")
    beside = {"RedshiftTempDir": "s3://tmp", "job_bookmark_option": "job-bookmark-disable"} | dict.fromkeys(own)
    assert found == wanted | beside  # and no JOB_NAME, because the script did not request it
