"""SageMaker of the local cloud, through real boto3 calls: states, errors, lists, events and predictions."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from sentiment_engine.local.aws import isolated_session, read_keys
from sentiment_engine.local.sagemaker import SUPPORTED
from sentiment_engine.service.api import BODY_LIMIT
from tests.doubles.local_models import ROLE, archive, bucket, deploy, predict, register, settled, until


@pytest.fixture(scope="module")
def sagemaker(cloud):
    return cloud.client("sagemaker")


@pytest.fixture(scope="module")
def endpoint(cloud) -> str:
    "An endpoint in service."
    assert deploy(cloud, "shared")["EndpointStatus"] == "InService"
    return "shared"


def error(call, **params) -> tuple[str, str]:
    "Return code and message of a call's error."
    with pytest.raises(ClientError) as raised:
        call(**params)
    return raised.value.response["Error"]["Code"], raised.value.response["Error"]["Message"]


def test_an_endpoint_answers_predictions(cloud, endpoint):
    assert predict(cloud, endpoint, "A lovely lamp") == '[{"label": "POSITIVE"}]'
    assert predict(cloud, endpoint, "Broken") == '[{"label": "NEGATIVE"}]'


def test_a_bad_request_returns_the_models_answer_inside_a_424(cloud, endpoint):
    with pytest.raises(ClientError) as raised:
        predict(cloud, endpoint, "")
    answer = raised.value.response
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 424 and answer["Error"]["Code"] == "ModelError"
    assert answer["OriginalStatusCode"] == 400
    assert json.loads(answer["OriginalMessage"]) == {"error": {"code": "bad_request", "message": "inputs is empty"}}


def test_a_model_error_is_a_500_without_the_error_text(cloud, endpoint):
    with pytest.raises(ClientError) as raised:
        predict(cloud, endpoint, "fail")
    assert raised.value.response["OriginalStatusCode"] == 500
    assert "secret" not in raised.value.response["OriginalMessage"]


def test_the_log_of_an_endpoint_appears_in_cloudwatch(cloud, endpoint):
    with pytest.raises(ClientError):
        predict(cloud, endpoint, "fail")
    logs = cloud.client("logs")
    group = f"/aws/sagemaker/Endpoints/{endpoint}"
    until(lambda: "RuntimeError" in str(logs.filter_log_events(logGroupName=group)["events"]))
    assert "secret" not in str(logs.filter_log_events(logGroupName=group)["events"])  # it may quote a review


def test_a_process_that_dies_is_restarted(cloud, endpoint, sagemaker):
    with pytest.raises(ClientError) as raised:
        predict(cloud, endpoint, "crash")
    assert raised.value.response["OriginalStatusCode"] == 503
    until(lambda: sagemaker.describe_endpoint(EndpointName=endpoint)["EndpointStatus"] != "InService", 5)
    assert settled(cloud, endpoint)["EndpointStatus"] == "InService"
    assert "POSITIVE" in predict(cloud, endpoint, "lovely")


def test_a_process_that_keeps_dying_fails_the_endpoint(cloud, sagemaker):
    name = "mortal"
    deploy(cloud, name)
    for _ in range(4):
        if settled(cloud, name)["EndpointStatus"] == "InService":
            with pytest.raises(ClientError):
                predict(cloud, name, "crash")
            until(lambda: sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"] != "InService", 5)
    described = settled(cloud, name)
    assert described["EndpointStatus"] == "Failed" and "ended 4 times" in described["FailureReason"]
    sagemaker.delete_endpoint(EndpointName=name)


SLOW = """
import time
def model_fn(folder): return None
def input_fn(body, kind): return body.decode()
def predict_fn(text, model):
    if "slow" in text:
        open("begun", "w").close()
        time.sleep(7)
    return text
def output_fn(answer, kind): return '"answered"'
"""


def test_requests_in_progress_are_answered_when_an_endpoint_is_deleted(cloud, sagemaker):
    deploy(cloud, "unhurried", SLOW)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(predict, cloud, "unhurried", "slow")
        until((cloud.state / "endpoints/unhurried/AllTraffic/begun").exists)
        sagemaker.delete_endpoint(EndpointName="unhurried")
        assert asked.result(120) == '"answered"'


@pytest.mark.parametrize(
    ("name", "handlers", "reason"),
    [
        ("no-import", "import not_installed_anywhere", "No module named 'not_installed_anywhere'"),
        ("no-handler", "def model_fn(d): pass", "defines no input_fn, predict_fn, output_fn"),
        (
            "no-answer",
            "def model_fn(d): pass\ninput_fn = predict_fn = output_fn = lambda *a: 1 / 0",
            "division by zero",
        ),
    ],
)
def test_an_artifact_that_cannot_serve_fails_with_its_reason(cloud, sagemaker, name, handlers, reason):
    described = deploy(cloud, name, handlers)
    assert described["EndpointStatus"] == "Failed"
    assert "did not pass the ping health check" in described["FailureReason"] and reason in described["FailureReason"]
    sagemaker.delete_endpoint(EndpointName=name)


def test_missing_and_broken_model_data_fail_the_endpoint(cloud, sagemaker):
    for name, body in (("no-data", None), ("no-archive", b"no archive")):
        register(cloud, name)
        s3, place = cloud.client("s3"), {"Bucket": "test-models", "Key": f"{name}/model.tar.gz"}
        s3.delete_object(**place) if body is None else s3.put_object(**place, Body=body)
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        described = settled(cloud, name)
        assert described["EndpointStatus"] == "Failed"
        expected = "Could not find model data at s3://" if body is None else "Failed to extract model data"
        assert described["FailureReason"].startswith(expected)
        assert error(sagemaker.update_endpoint, EndpointName=name, EndpointConfigName=name)[0] == "ValidationException"
        sagemaker.delete_endpoint(EndpointName=name)


def test_an_archive_that_writes_outside_its_folder_is_refused(cloud, sagemaker):
    from tests.doubles.local_models import archive

    register(cloud, "evil")
    body = archive({"../../evil.py": "", "code/inference.py": ""})
    cloud.client("s3").put_object(Bucket="test-models", Key="evil/model.tar.gz", Body=body)
    sagemaker.create_endpoint(EndpointName="evil", EndpointConfigName="evil")
    assert "is outside the artifact" in settled(cloud, "evil")["FailureReason"]
    assert not list(cloud.state.rglob("evil.py"))


def test_unknown_names_are_reported_as_by_aws(cloud, sagemaker, endpoint):
    config = 'Could not find endpoint configuration "arn:aws:sagemaker:us-east-1:000000000000:endpoint-config/none".'
    found = 'Could not find endpoint "arn:aws:sagemaker:us-east-1:000000000000:endpoint/none".'
    model = 'Could not find model "arn:aws:sagemaker:us-east-1:000000000000:model/none".'
    variant = {"VariantName": "v", "ModelName": "none", "InstanceType": "ml.t2.medium", "InitialInstanceCount": 1}
    for call, params, message in [
        (sagemaker.describe_endpoint, {"EndpointName": "none"}, found),
        (sagemaker.delete_endpoint, {"EndpointName": "none"}, found),
        (sagemaker.describe_endpoint_config, {"EndpointConfigName": "none"}, config),
        (sagemaker.delete_endpoint_config, {"EndpointConfigName": "none"}, config),
        (sagemaker.create_endpoint, {"EndpointName": "e", "EndpointConfigName": "none"}, config),
        (sagemaker.describe_model, {"ModelName": "none"}, model),
        (sagemaker.delete_model, {"ModelName": "none"}, model),
        (sagemaker.create_endpoint_config, {"EndpointConfigName": "c", "ProductionVariants": [variant]}, model),
        (sagemaker.describe_training_job, {"TrainingJobName": "none"}, "Requested resource not found."),
    ]:
        assert error(call, **params) == ("ValidationException", message)


def test_existing_names_are_refused_as_by_aws(cloud, sagemaker, endpoint):
    arn = "arn:aws:sagemaker:us-east-1:000000000000:"
    variants = sagemaker.describe_endpoint_config(EndpointConfigName=endpoint)["ProductionVariants"]
    for call, params, message in [
        (
            sagemaker.create_model,
            {"ModelName": endpoint, "ExecutionRoleArn": ROLE, "PrimaryContainer": {"Image": "inference"}},
            f'model "{arn}model/shared"',
        ),
        (
            sagemaker.create_endpoint_config,
            {"EndpointConfigName": endpoint, "ProductionVariants": variants},
            f'endpoint configuration "{arn}endpoint-config/shared"',
        ),
        (
            sagemaker.create_endpoint,
            {"EndpointName": endpoint, "EndpointConfigName": endpoint},
            f'endpoint "{arn}endpoint/shared"',
        ),
    ]:
        assert error(call, **params) == ("ValidationException", f"Cannot create already existing {message}.")


def test_an_endpoint_in_creation_cannot_be_deleted(cloud, sagemaker):
    slow = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.02)\n"
    from tests.doubles.local_models import HANDLERS

    register(cloud, "slow", slow + HANDLERS)
    sagemaker.create_endpoint(EndpointName="slow", EndpointConfigName="slow")
    assert error(sagemaker.delete_endpoint, EndpointName="slow") == (
        "ValidationException",
        'Cannot update in-progress endpoint "arn:aws:sagemaker:us-east-1:000000000000:endpoint/slow".',
    )
    runtime = cloud.client("sagemaker-runtime")
    code, message = error(runtime.invoke_endpoint, EndpointName="slow", Body=b"{}")
    assert (code, message) == ("ValidationError", "Endpoint slow of account 000000000000 not found.")
    folder = cloud.state / "endpoints/slow/AllTraffic"
    until((folder / "port").exists)
    (folder / "go").touch()
    assert settled(cloud, "slow")["EndpointStatus"] == "InService"
    sagemaker.delete_endpoint(EndpointName="slow")
    sagemaker.get_waiter("endpoint_deleted").wait(EndpointName="slow", WaiterConfig={"Delay": 1})
    assert not (cloud.state / "endpoints/slow").exists()


def test_calls_are_checked_against_the_rules_of_aws(cloud, sagemaker):
    _, message = error(sagemaker.create_endpoint, EndpointName="no spaces", EndpointConfigName="c")
    assert message.startswith("1 validation error detected: Value 'no spaces' at 'endpointName' failed to satisfy")
    variant = {"VariantName": "v", "ModelName": "m", "InstanceType": "ml.tiny", "InitialInstanceCount": 1}
    _, message = error(sagemaker.create_endpoint_config, EndpointConfigName="c", ProductionVariants=[variant])
    assert "enum value set" in message and "productionVariants.1.member.instanceType" in message
    code, message = error(sagemaker.list_auto_ml_jobs)
    assert code == "UnknownOperationException" and "not part of the local cloud" in message


def test_lists_can_be_filtered_sorted_and_paginated(cloud, sagemaker):
    for number in range(3):
        register(cloud, f"listed-{number}")
    pages = sagemaker.get_paginator("list_models").paginate(
        NameContains="LISTED", SortBy="Name", SortOrder="Ascending", PaginationConfig={"PageSize": 2}
    )
    pages = [[model["ModelName"] for model in page["Models"]] for page in pages]
    assert pages == [["listed-0", "listed-1"], ["listed-2"]]
    configs = sagemaker.list_endpoint_configs(NameContains="listed-1")["EndpointConfigs"]
    assert [c["EndpointConfigName"] for c in configs] == ["listed-1"]
    assert sagemaker.list_endpoints(StatusEquals="Creating")["Endpoints"] == []
    for number in range(3):
        sagemaker.delete_endpoint_config(EndpointConfigName=f"listed-{number}")
        sagemaker.delete_model(ModelName=f"listed-{number}")
    assert sagemaker.list_models(NameContains="listed")["Models"] == []


def test_tags_can_be_added_listed_and_removed(cloud, sagemaker, endpoint):
    arn = sagemaker.describe_endpoint(EndpointName=endpoint)["EndpointArn"]
    sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "Project", "Value": "tests"}, {"Key": "RunId", "Value": "1"}])
    sagemaker.delete_tags(ResourceArn=arn, TagKeys=["RunId"])
    assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "Project", "Value": "tests"}]


def test_state_changes_reach_an_event_rule(cloud, sagemaker):
    sqs, events = cloud.client("sqs"), cloud.client("events")
    queue = sqs.create_queue(QueueName="endpoint-events")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    pattern = {"source": ["aws.sagemaker"], "detail": {"EndpointStatus": ["IN_SERVICE", "FAILED"]}}
    pattern |= {"detail-type": ["SageMaker Endpoint State Change"]}
    events.put_rule(Name="endpoints", EventPattern=json.dumps(pattern))
    events.put_targets(Rule="endpoints", Targets=[{"Id": "queue", "Arn": arn}])
    register(cloud, "told")
    tags = [{"Key": "RunId", "Value": "0f3c"}]
    sagemaker.create_endpoint(EndpointName="told", EndpointConfigName="told", Tags=tags)
    received = until(lambda: sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=1).get("Messages"))
    event = json.loads(received[0]["Body"])
    described = sagemaker.describe_endpoint(EndpointName="told")
    detail = event["detail"]
    assert event["resources"] == [described["EndpointArn"]] == [detail["EndpointArn"]]
    assert (detail["EndpointName"], detail["EndpointStatus"]) == ("told", "IN_SERVICE")
    assert detail["Tags"] == {"RunId": "0f3c"} and detail["EndpointConfigName"] == "told"
    assert detail["CreationTime"] == int(described["CreationTime"].timestamp() * 1000)
    sagemaker.delete_endpoint(EndpointName="told")
    events.remove_targets(Rule="endpoints", Ids=["queue"])
    events.delete_rule(Name="endpoints")


# Training jobs -------------------------------------------------------------------------------------------------------


def training_job(cloud, name: str, script: str, **more) -> dict:
    "Run `script` as a training job and return the job when it has ended."
    s3 = cloud.client("s3")
    bucket(cloud, "test-training")
    s3.put_object(Bucket="test-training", Key="data/train/a.txt", Body=b"two words")
    channel = {"S3DataType": "S3Prefix", "S3Uri": "s3://test-training/data/train/"}
    channels = [{"ChannelName": "train", "DataSource": {"S3DataSource": channel}}]
    command = {"ContainerEntrypoint": ["/bin/bash", "-c"], "ContainerArguments": [script]}
    params = {
        "TrainingJobName": name,
        "RoleArn": ROLE,
        "AlgorithmSpecification": {"TrainingImage": "training", "TrainingInputMode": "File", **command},
        "HyperParameters": {"epochs": "2"},
        "InputDataConfig": channels,
        "OutputDataConfig": {"S3OutputPath": "s3://test-training/models"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 5},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
    }
    cloud.client("sagemaker").create_training_job(**params | more)
    return ended(cloud, name)


def ended(cloud, name: str) -> dict:
    describe = cloud.client("sagemaker").describe_training_job
    return until(lambda: (j := describe(TrainingJobName=name))["TrainingJobStatus"] not in _WORKING and j, 30)


_WORKING = ("InProgress", "Stopping")


def test_a_training_job_produces_a_model(cloud, sagemaker):
    script = (
        "echo training on $(cat /opt/ml/input/data/train/a.txt); cp /opt/ml/input/config/hyperparameters.json "
        "/opt/ml/model/; echo log > /opt/ml/output/data/log; echo $STEP $TRAINING_JOB_NAME"
    )
    job = training_job(cloud, "good", script, Environment={"STEP": "first"})
    assert job["TrainingJobStatus"] == job["SecondaryStatus"] == "Completed", job
    steps = [step["Status"] for step in job["SecondaryStatusTransitions"]]
    assert steps == ["Downloading", "Training", "Uploading", "Completed"]
    assert job["ModelArtifacts"]["S3ModelArtifacts"] == "s3://test-training/models/good/output/model.tar.gz"
    import io
    import tarfile

    s3 = cloud.client("s3")
    packed = s3.get_object(Bucket="test-training", Key="models/good/output/model.tar.gz")["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert json.load(tar.extractfile("hyperparameters.json")) == {"epochs": "2"}
    s3.head_object(Bucket="test-training", Key="models/good/output/output.tar.gz")
    logs = cloud.client("logs")
    stream = logs.describe_log_streams(logGroupName="/aws/sagemaker/TrainingJobs", logStreamNamePrefix="good/")
    name = stream["logStreams"][0]["logStreamName"]
    events = logs.get_log_events(logGroupName="/aws/sagemaker/TrainingJobs", logStreamName=name)["events"]
    assert [e["message"] for e in events] == ["training on two words", "first good"]
    summary = sagemaker.list_training_jobs(NameContains="good")["TrainingJobSummaries"][0]
    assert summary["TrainingJobStatus"] == "Completed" and "TrainingEndTime" in summary
    assert error(lambda: training_job(cloud, "good", "true"))[0] == "ResourceInUse"
    assert error(sagemaker.stop_training_job, TrainingJobName="good")[0] == "ValidationException"


@pytest.mark.parametrize(
    ("name", "script", "reason"),
    [
        ("bad-words", "echo 'learning rate is 0' > /opt/ml/output/failure; exit 3", "ExitCode 3.*learning rate is 0"),
        ("bad-log", "python -c 'raise ValueError(\"no labels\")'", "ExitCode 1.*ValueError: no labels"),
    ],
)
def test_a_failed_training_job_reports_why(cloud, name, script, reason):
    import re

    job = training_job(cloud, name, script)
    assert job["TrainingJobStatus"] == "Failed"
    assert re.search(reason, job["FailureReason"], re.S), job["FailureReason"]


def test_a_training_job_without_data_fails_before_it_starts(cloud):
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://test-training/nothing/"}}
    job = training_job(cloud, "no-data", "true", InputDataConfig=[{"ChannelName": "train", "DataSource": source}])
    assert job["TrainingJobStatus"] == "Failed" and "no S3 objects found under" in job["FailureReason"]


def test_a_training_job_stops_at_its_time_limit(cloud, sagemaker):
    script = "echo half > /opt/ml/model/weights; sleep 60"
    job = training_job(cloud, "late", script, StoppingCondition={"MaxRuntimeInSeconds": 1})
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    cloud.client("s3").head_object(Bucket="test-training", Key="models/late/output/model.tar.gz")


def test_a_training_job_can_be_stopped(cloud, sagemaker):
    import threading

    threading.Timer(1.0, lambda: sagemaker.stop_training_job(TrainingJobName="stopped")).start()
    job = training_job(cloud, "stopped", "sleep 60")
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "Stopped")


SDK = """
import logging, pathlib, sys, tempfile
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
import boto3
from sagemaker.core.helper.session_helper import Session
from sagemaker.core.shapes import OutputDataConfig
from sagemaker.train import ModelTrainer
from sagemaker.train.configs import Compute, InputData, SourceCode, StoppingCondition

boto3.client("s3").create_bucket(Bucket="test-sdk")
boto3.client("s3").put_object(Bucket="test-sdk", Key="sample/train/a.txt", Body=b"two words")
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "train.py").write_text('''
import json, os, pathlib, sys
text = pathlib.Path(os.environ["SM_CHANNEL_TRAIN"], "a.txt").read_text()
print("training on", text, json.loads(os.environ["SM_HPS"]), sys.argv[1:])
pathlib.Path(os.environ["SM_MODEL_DIR"], "weights").write_text(text)
''')
trainer = ModelTrainer(
    training_image="111122223333.dkr.ecr.us-east-1.amazonaws.com/training:1",
    source_code=SourceCode(source_dir=str(folder), entry_script="train.py"),
    compute=Compute(instance_type="ml.m5.large", instance_count=1),
    role="arn:aws:iam::000000000000:role/tests",
    base_job_name="sdk",
    hyperparameters={"epochs": 2},
    output_data_config=OutputDataConfig(s3_output_path="s3://test-sdk/models"),
    stopping_condition=StoppingCondition(max_runtime_in_seconds=120),
    sagemaker_session=Session(default_bucket="test-sdk"),
)
trainer.train(input_data_config=[InputData(channel_name="train", data_source="s3://test-sdk/sample/train/")], wait=True)
print(f"ARTIFACT {trainer._latest_training_job.model_artifacts.s3_model_artifacts}")  # whole, for the log is a thread
"""


def test_the_sdks_model_trainer_trains_and_shows_the_log(cloud, tmp_path):
    import os
    import subprocess
    import sys

    env = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")} | cloud.environment
    env |= {"SAGEMAKER_VALIDATE_ROLE": "false"}  # this script's role has only a job's permissions, on AWS as well
    trained = subprocess.run(
        [sys.executable, "-c", SDK], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    output = trained.stdout + trained.stderr
    assert trained.returncode == 0, output[-3000:]
    assert "training on two words {'epochs': 2} ['--epochs', '2']" in output, output[-3000:]
    assert "ARTIFACT s3://test-sdk/models/sdk-" in output


ECHO = """
def model_fn(folder): pass
def input_fn(body, kind): return len(body)
def predict_fn(size, model): return "x" * (size + 1)
def output_fn(text, kind): return text
"""


def test_requests_and_answers_are_limited_to_25_mb(cloud):
    deploy(cloud, "echo", ECHO)
    ask = partial(cloud.client("sagemaker-runtime").invoke_endpoint, EndpointName="echo")
    most = 25 * 2**20
    assert len(ask(Body=b"x" * (most - 1))["Body"].read()) == most
    assert error(ask, Body=b"x" * most)[0] == "ModelError"  # its answer is too large
    assert error(ask, Body=b"x" * (most + 1))[0] == "ValidationError"


# Unsupported operations and missing resources ------------------------------------------------------------------------


def answer_to(client, operation: str, params: dict) -> dict:  # Error in the answer; empty: none
    "Make a call without client-side checks."
    try:
        client._make_api_call(operation, params)
    except ClientError as e:
        return e.response["Error"]
    return {}


@pytest.mark.parametrize("service", ["sagemaker", "sagemaker-runtime"])
def test_every_unsupported_operation_returns_an_aws_error(cloud, endpoint, service):
    config = Config(parameter_validation=False, retries={"max_attempts": 0})
    client = isolated_session(read_keys(cloud.state)).client(service, endpoint_url=cloud.url, config=config)
    operations = client.meta.service_model.operation_names
    assert len(operations) >= 3
    for operation in operations:
        given = {"EndpointName": endpoint, "Body": b'{"inputs": "lovely"}'} if service == "sagemaker-runtime" else {}
        error = answer_to(client, operation, given)
        if operation in (*SUPPORTED, "InvokeEndpoint"):
            assert error.get("Code", "ValidationException") == "ValidationException", operation
        else:
            assert error["Code"] == "UnknownOperationException" and operation in error["Message"]


@pytest.mark.parametrize(
    ("service", "operation"),
    [
        ("application-autoscaling", "DescribeScalableTargets"),
        ("application-autoscaling", "RegisterScalableTarget"),
        ("service-quotas", "ListServices"),
        ("sagemaker-featurestore-runtime", "GetRecord"),
        ("sagemaker-a2i-runtime", "ListHumanLoops"),
        ("sagemaker-geospatial", "ListEarthObservationJobs"),
        ("sagemaker-metrics", "BatchPutMetrics"),
        ("comprehend", "ListEndpoints"),
        ("polly", "ListLexicons"),
        ("elasticbeanstalk", "DescribeApplications"),
        ("compute-optimizer", "DescribeRecommendationExportJobs"),
        ("workspaces-instances", "ListInstanceTypes"),
    ],
)
def test_an_unsupported_service_returns_an_error_in_its_own_format(cloud, service, operation):
    config = Config(parameter_validation=False, retries={"max_attempts": 0}, inject_host_prefix=False)
    client = isolated_session(read_keys(cloud.state)).client(service, endpoint_url=cloud.url, config=config)
    given = {"FeatureGroupName": "f"} if operation == "GetRecord" else {}
    error = answer_to(client, operation, given)
    assert error["Code"] in ("UnknownOperationException", "InvalidAction")
    assert "is not part of the local cloud" in error["Message"]


NO_CALLS = [b"[]", b"null", b'"text"', b"1", b"{", b"\x00", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000]
NO_CALLS += [b'{"NameContains": "\\ud800"}', b'{"MaxResults": NaN}', b'{"MaxResults": 1e999}', b"\xef\xbb\xbf{}"]


@pytest.mark.parametrize(
    ("service", "operation", "given"),
    [
        ("sagemaker", "list_models", {}),
        ("glue", "get_job_runs", {"JobName": "none"}),
        ("glue", "list_jobs", {}),
        ("dynamodb", "list_tables", {}),
        ("ssm", "describe_parameters", {}),
        ("logs", "describe_log_groups", {}),
        ("scheduler", "create_schedule", {"Name": "s", "ScheduleExpression": "rate(1 day)"}),
    ],
)
def test_a_malformed_request_is_refused(cloud, service, operation, given):
    config = Config(retries={"max_attempts": 0}, parameter_validation=False)
    client = isolated_session(read_keys(cloud.state)).client(service, endpoint_url=cloud.url, config=config)
    body: list[bytes] = []

    def replace(request, **_):
        request.data = body[0]

    client.meta.events.register("before-sign", replace)
    for body[:] in ([each] for each in NO_CALLS):
        assert error(getattr(client, operation), **given)[0] == "SerializationException", body[0][:20]


NAMED = {
    "create_model": {"ModelName": "null", "PrimaryContainer": {"Image": "a"}},
    "create_endpoint_config": {"EndpointConfigName": "null"},
    "list_models": {},
    "list_endpoints": {},
    "list_training_jobs": {},
}
NAMED["create_endpoint_config"]["ProductionVariants"] = [
    {"VariantName": "v", "ModelName": "shared", "ServerlessConfig": {"MemorySizeInMB": 1024, "MaxConcurrency": 1}}
]


@pytest.mark.parametrize("operation", NAMED)
def test_a_null_parameter_counts_as_missing(cloud, endpoint, operation):
    client = isolated_session(read_keys(cloud.state)).client("sagemaker", endpoint_url=cloud.url)
    shape = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[operation]).input_shape

    def replace(request, **_):
        given = json.loads(request.data)
        for variant in given.get("ProductionVariants", []):
            variant["ServerlessConfig"]["ProvisionedConcurrency"] = variant["InstanceType"] = None
        request.data = json.dumps(dict.fromkeys(shape.members) | given).encode()

    client.meta.events.register("before-sign", replace)
    assert getattr(client, operation)(**NAMED[operation])["ResponseMetadata"]["HTTPStatusCode"] == 200


def test_an_operation_with_the_wrong_service_prefix_is_refused(cloud):
    client = isolated_session(read_keys(cloud.state)).client("sagemaker", endpoint_url=cloud.url)

    def rename(request, **_):
        request.headers.replace_header("X-Amz-Target", "Other.ListModels")

    client.meta.events.register("before-sign", rename)
    assert error(client.list_models)[0] == "UnknownOperationException"


@pytest.mark.parametrize("when", ["yesterday", "", True, [], {}])
def test_a_time_that_is_not_a_number_is_refused(cloud, endpoint, when):
    config = Config(parameter_validation=False)
    client = isolated_session(read_keys(cloud.state)).client("sagemaker", endpoint_url=cloud.url, config=config)

    def replace(request, **_):
        request.data = json.dumps({"CreationTimeAfter": when}).encode()

    client.meta.events.register("before-sign", replace)
    assert error(client.list_models)[0] == "ValidationException"


@pytest.mark.parametrize("token", ["", "0", "1", "-1", "1e3", "\u0663", "page-after--1", "page-after-", "x" * 8000])
def test_an_unknown_pagination_token_is_refused(cloud, sagemaker, token):
    for call in (sagemaker.list_models, sagemaker.list_endpoints, sagemaker.list_training_jobs):
        assert error(call, NextToken=token)[0] == "ValidationException"
    assert error(cloud.client("glue").get_job_runs, JobName="none", NextToken="7")[0] != "500"


@pytest.mark.parametrize("number", [0, -1, 101, 10**12, "5", True])
def test_a_page_size_outside_the_limits_of_aws_is_refused(cloud, number):
    config = Config(parameter_validation=False)
    client = isolated_session(read_keys(cloud.state)).client("sagemaker", endpoint_url=cloud.url, config=config)
    for operation in ("ListModels", "ListEndpointConfigs", "ListEndpoints", "ListTrainingJobs"):
        assert answer_to(client, operation, {"MaxResults": number})["Code"] == "ValidationException"


def test_tags_of_a_missing_resource_are_refused(sagemaker, endpoint):
    arn = "arn:aws:sagemaker:us-east-1:000000000000:"
    others = [f"{arn}{kind}/none" for kind in ("model", "endpoint", "endpoint-config", "training-job", "pipeline")]
    others += [f"arn:aws:sagemaker:us-east-1:111122223333:endpoint/{endpoint}"]
    others += [f"arn:aws:sagemaker:eu-west-1:000000000000:endpoint/{endpoint}", f"{arn}endpoint/"]
    for other in others:
        tag = [{"Key": "a", "Value": "b"}]
        assert error(sagemaker.add_tags, ResourceArn=other, Tags=tag)[0] == "ValidationException"
        assert error(sagemaker.list_tags, ResourceArn=other)[0] == "ValidationException"
        assert error(sagemaker.delete_tags, ResourceArn=other, TagKeys=["a"])[0] == "ValidationException"


MACHINE = {"InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
SIZE = {"MemorySizeInMB": 2048, "MaxConcurrency": 3}
CAPTURE = {
    "EnableCapture": True,
    "InitialSamplingPercentage": 10,
    "DestinationS3Uri": "s3://a/b",
    "CaptureOptions": [{"CaptureMode": "Input"}],
}
WRONG_CONFIGS = {
    "no machine": ([{}], {}),
    "no count": ([{"InstanceType": "ml.m5.large"}], {}),
    "no type": ([{"InitialInstanceCount": 1}], {}),
    "both kinds": ([MACHINE | {"ServerlessConfig": SIZE}], {}),
    "a count of serverless ones": ([{"InitialInstanceCount": 1, "ServerlessConfig": SIZE}], {}),
    "an odd size": ([{"ServerlessConfig": SIZE | {"MemorySizeInMB": 3000}}], {}),
    "more provisioned than allowed": ([{"ServerlessConfig": SIZE | {"ProvisionedConcurrency": 4}}], {}),
    "two serverless variants": ([{"ServerlessConfig": SIZE}] * 2, {}),
    "one of each": ([{"ServerlessConfig": SIZE}, MACHINE], {}),
    "serverless capture": ([{"ServerlessConfig": SIZE}], {"DataCaptureConfig": CAPTURE}),
}


@pytest.mark.parametrize("what", WRONG_CONFIGS)
def test_a_contradictory_config_is_refused(sagemaker, endpoint, what):
    variants, more = WRONG_CONFIGS[what]
    variants = [{"VariantName": f"v{n}", "ModelName": endpoint} | each for n, each in enumerate(variants)]
    config = {"EndpointConfigName": what.replace(" ", "-"), "ProductionVariants": variants}
    assert error(sagemaker.create_endpoint_config, **config, **more)[0] == "ValidationException"


@pytest.mark.parametrize(
    "containers",
    [
        {},
        {"PrimaryContainer": {"Image": "a"}, "Containers": [{"Image": "a"}]},
        {"PrimaryContainer": {}},
        {"PrimaryContainer": {"ModelDataUrl": "s3://a/b.tar.gz"}},
        {"Containers": []},
        {"Containers": [{"Image": "a"}, {"ModelDataUrl": "s3://a/b.tar.gz"}]},
    ],
    ids=str,
)
def test_a_model_with_ambiguous_containers_is_refused(sagemaker, containers):
    name = f"wrong-{abs(hash(str(containers)))}"
    code, _ = error(sagemaker.create_model, ModelName=name, ExecutionRoleArn=ROLE, **containers)
    assert code == "ValidationException"


# Variants and updates -------------------------------------------------------------------------------------------------

SAYS = """
import os
def model_fn(folder): return os.environ["WORD"]
def input_fn(body, kind): return body.decode()
def predict_fn(text, word): return word
def output_fn(word, kind): return word
"""


def model_that_says(cloud, word: str, **variant) -> dict:  # a production variant
    "Register a model that always answers one word."
    data = {"Bucket": bucket(cloud, "test-models"), "Key": "says/model.tar.gz"}
    cloud.client("s3").put_object(**data, Body=archive({"code/inference.py": SAYS}))
    container = {"Image": "inference", "ModelDataUrl": "s3://test-models/says/model.tar.gz"}
    container |= {"Environment": {"WORD": word}} if word else {}
    cloud.client("sagemaker").create_model(
        ModelName=f"says-{word or 'nothing'}", ExecutionRoleArn=ROLE, PrimaryContainer=container
    )
    own = {"VariantName": f"v-{word}", "ModelName": f"says-{word or 'nothing'}", "InstanceType": "ml.m5.large"}
    return own | {"InitialInstanceCount": 1} | variant


def said(cloud, name: str, **more) -> tuple[str, str]:  # variant and word
    answer = cloud.client("sagemaker-runtime").invoke_endpoint(EndpointName=name, Body=b"x", **more)
    return answer["InvokedProductionVariant"], answer["Body"].read().decode()


def test_each_variant_has_its_own_name_model_and_weight(cloud, sagemaker):
    heavy = model_that_says(cloud, "heavy", InitialVariantWeight=3.0, InitialInstanceCount=2)
    idle = model_that_says(cloud, "idle", InitialVariantWeight=0.0)
    sagemaker.create_endpoint_config(EndpointConfigName="two", ProductionVariants=[heavy, idle])
    sagemaker.create_endpoint(EndpointName="two", EndpointConfigName="two")
    described = settled(cloud, "two")
    told = [(v["VariantName"], v["CurrentWeight"], v["DesiredWeight"]) for v in described["ProductionVariants"]]
    assert told == [("v-heavy", 3.0, 3.0), ("v-idle", 0.0, 0.0)]
    assert described["ProductionVariants"][0]["CurrentInstanceCount"] == 2
    assert {said(cloud, "two") for _ in range(20)} == {("v-heavy", "heavy")}
    assert said(cloud, "two", TargetVariant="v-idle") == ("v-idle", "idle")
    refused = error(cloud.client("sagemaker-runtime").invoke_endpoint, EndpointName="two", Body=b"", TargetVariant="v")
    assert refused == ("ValidationError", "Variant v of endpoint two not found.")
    for other in ({"TargetModel": "m.tar.gz"}, {"TargetContainerHostname": "c"}, {"InferenceComponentName": "i"}):
        code, _ = error(cloud.client("sagemaker-runtime").invoke_endpoint, EndpointName="two", Body=b"", **other)
        assert code == "ValidationError"
    same = error(sagemaker.create_endpoint_config, EndpointConfigName="same", ProductionVariants=[heavy, heavy])
    assert same[0] == "ValidationException"
    sagemaker.delete_endpoint(EndpointName="two")


def test_a_serverless_variant_is_described_by_its_size(cloud, sagemaker):
    size = {"MemorySizeInMB": 2048, "MaxConcurrency": 3}
    variant = model_that_says(cloud, "serverless", ServerlessConfig=size)
    del variant["InstanceType"], variant["InitialInstanceCount"]
    sagemaker.create_endpoint_config(EndpointConfigName="serverless", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName="serverless", EndpointConfigName="serverless")
    (told,) = settled(cloud, "serverless")["ProductionVariants"]
    assert told["CurrentServerlessConfig"] == size and "CurrentInstanceCount" not in told
    ask = partial(cloud.client("sagemaker-runtime").invoke_endpoint, EndpointName="serverless")
    assert ask(Body=b"x" * BODY_LIMIT)["Body"].read() == b"serverless"  # headers that our own API passes on
    assert error(ask, Body=b"x" * (4 * 2**20 + 1))[0] == "ValidationError"
    sagemaker.delete_endpoint(EndpointName="serverless")


def test_during_an_update_the_old_fleet_answers_until_the_new_one_is_ready(cloud, sagemaker):
    variants = {word: model_that_says(cloud, word) for word in ("first", "second")}
    variants["broken"] = variants["first"] | {"ModelName": model_that_says(cloud, "")["ModelName"]}
    for word, variant in variants.items():
        sagemaker.create_endpoint_config(EndpointConfigName=f"says-{word}", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName="says", EndpointConfigName="says-first")
    settled(cloud, "says")
    seen = []

    def update(config: str) -> dict:
        "Change the config while predictions continue."
        sagemaker.update_endpoint(EndpointName="says", EndpointConfigName=config)
        for call in (sagemaker.delete_endpoint, partial(sagemaker.update_endpoint, EndpointConfigName=config)):
            assert error(call, EndpointName="says")[1].startswith("Cannot update in-progress endpoint")
        while (told := sagemaker.describe_endpoint(EndpointName="says"))["EndpointStatus"] != "InService":
            assert told["EndpointStatus"] in ("Updating", "RollingBack")
            seen.append(said(cloud, "says"))
        return told

    told = update("says-second")
    assert ("v-first", "first") in seen and set(seen) <= {("v-first", "first"), ("v-second", "second")}
    assert told["EndpointConfigName"] == "says-second" and "PendingDeploymentSummary" not in told
    assert said(cloud, "says") == ("v-second", "second")
    seen.clear()
    told = update("says-broken")
    assert set(seen) == {("v-second", "second")} and told["EndpointConfigName"] == "says-second"
    assert "did not pass the ping health check" in told["FailureReason"] and "v-first" in told["FailureReason"]
    told = update("says-first")
    assert said(cloud, "says") == ("v-first", "first") and "FailureReason" not in told
    until(lambda: len(list((cloud.state / "endpoints").glob("says*"))) == 1)
    sagemaker.delete_endpoint(EndpointName="says")
    until(lambda: not list((cloud.state / "endpoints").glob("says*")))
