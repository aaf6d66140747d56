"""The strict local cloud refuses what a new AWS account refuses, and the environment does not reveal it."""

import io
import json
import os
import re
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import boto3
import pytest
from botocore.exceptions import ClientError

from sentiment_engine.data.exploration import lake_files
from sentiment_engine.local.aws import ACCOUNT, REGION
from sentiment_engine.local.strict import workflow_environment
from sentiment_engine.settings import connect
from tests.conftest import TestCloud
from tests.doubles.local_models import HANDLERS, archive, settled, until

SAGEMAKER, GLUE = "sagemaker.amazonaws.com", "glue.amazonaws.com"
LOGS = {"Effect": "Allow", "Action": "logs:*", "Resource": "*"}


@pytest.fixture(scope="module")
def strict(tmp_path_factory) -> Iterator[TestCloud]:
    "A strict cloud with a bucket."
    with TestCloud(tmp_path_factory.mktemp("strict"), port=0, site_port=0, strict=True) as running:
        running.client("s3").create_bucket(Bucket="lab")
        yield running


def role(cloud, name: str, principal: dict, *statements: dict, boundary: list[dict] | None = None) -> str:  # ARN
    "Create a role that `principal` may assume, with these statements."
    iam = cloud.client("iam")
    trust = {"Version": "2012-10-17"}
    trust["Statement"] = [{"Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole"}]
    given = {}
    if boundary is not None:
        document = json.dumps({"Version": "2012-10-17", "Statement": boundary})
        policy = iam.create_policy(PolicyName=f"{name}-boundary", PolicyDocument=document)
        given["PermissionsBoundary"] = policy["Policy"]["Arn"]
    made = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust), **given)
    document = json.dumps({"Version": "2012-10-17", "Statement": [LOGS, *statements]})
    iam.put_role_policy(RoleName=name, PolicyName="own", PolicyDocument=document)
    return made["Role"]["Arn"]


def on_s3(*actions: str, keys: str = "*") -> dict:
    actions = [f"s3:{action}" for action in actions]
    return {"Effect": "Allow", "Action": actions, "Resource": ["arn:aws:s3:::lab", f"arn:aws:s3:::lab/{keys}"]}


def refused(call, **arguments) -> tuple[str, str]:
    "Return code and message of a call's error."
    with pytest.raises(ClientError) as raised:
        call(**arguments)
    return raised.value.response["Error"]["Code"], raised.value.response["Error"]["Message"]


@pytest.fixture
def administrator(strict) -> Iterator[dict[str, str]]:
    "This process with the environment of an administrator, with only the variables of an AWS user."
    with patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith(("AWS_", "SENTIMENT_", "SAGEMAKER_"))]:
            del os.environ[name]
        given = strict.account_environment()
        os.environ.update(given)
        yield given


def test_an_administrator_has_only_a_profile(strict, administrator):
    assert set(administrator) == {"AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"}
    caller = connect("aws").client("sts").get_caller_identity()
    assert ":user/" in caller["Arn"] and caller["Account"] == ACCOUNT
    assert strict.account_environment() == administrator  # the same user, the second time
    for name in ("config", "credentials"):
        assert (strict.state / "administrator" / name).stat().st_mode & 0o077 == 0


def test_a_new_account_has_a_concurrency_limit_of_ten(administrator):
    limits = connect("aws").client("lambda").get_account_settings()["AccountLimit"]
    assert limits["ConcurrentExecutions"] == limits["UnreservedConcurrentExecutions"] == 10


def test_arrow_reads_and_writes_s3_as_the_administrator(administrator):
    "Arrow has its own S3 client, in C++, which writes some headers differently."
    import pandas as pd

    frame, files = pd.DataFrame({"text": ["a", "b"], "label": [0, 1]}), lake_files(connect("aws"))
    frame.to_parquet("lab/frames/reviews.parquet", filesystem=files)
    assert pd.read_parquet("lab/frames/reviews.parquet", filesystem=files).equals(frame)


def test_an_unknown_key_is_refused(strict):
    stranger = boto3.client(
        "s3", endpoint_url=strict.url, region_name=REGION, aws_access_key_id="AKIAX", aws_secret_access_key="x"
    )
    assert refused(stranger.list_buckets)[0] == "InvalidAccessKeyId"


@pytest.mark.parametrize(("environment", "allowed"), [("production", True), ("staging", False)])
def test_a_workflow_gets_the_deployer_role_only_for_its_environment(strict, tmp_path, environment, allowed):
    host = "token.actions.githubusercontent.com"
    provider = f"arn:aws:iam::{ACCOUNT}:oidc-provider/{host}"
    wanted = {f"{host}:aud": "sts.amazonaws.com", f"{host}:sub": "repo:me/lab:environment:production"}
    trust = {"Effect": "Allow", "Principal": {"Federated": provider}, "Action": "sts:AssumeRoleWithWebIdentity"}
    name, iam = f"deployer-{environment}", strict.client("iam")
    document = {"Version": "2012-10-17", "Statement": [trust | {"Condition": {"StringEquals": wanted}}]}
    arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(document))["Role"]["Arn"]
    given = workflow_environment(arn, strict.url, tmp_path, "me/lab", environment)
    with patch.dict(os.environ, given):
        session = boto3.Session()
        if not allowed:
            assert refused(session.client("sts").get_caller_identity)[0] == "AccessDenied"
            return
        assert f"assumed-role/{name}/" in session.client("sts").get_caller_identity()["Arn"]
        assert refused(session.client("s3").list_buckets)[0] == "AccessDenied"


def model(cloud, name: str, arn: str, key: str = "models/model.tar.gz") -> dict:
    "Return the arguments of CreateModel for an artifact in the bucket."
    cloud.client("s3").put_object(
        Bucket="lab", Key="models/model.tar.gz", Body=archive({"code/inference.py": HANDLERS})
    )
    container = {"Image": "inference", "ModelDataUrl": f"s3://lab/{key}"}
    return {"ModelName": name, "ExecutionRoleArn": arn, "PrimaryContainer": container}


@pytest.mark.parametrize(
    ("name", "principal", "actions", "key"),
    [
        ("of-glue", {"Service": GLUE}, ("GetObject", "ListBucket"), "models/model.tar.gz"),
        ("no-reader", {"Service": SAGEMAKER}, ("PutObject",), "models/model.tar.gz"),
        ("no-object", {"Service": SAGEMAKER}, ("GetObject", "ListBucket"), "models/other.tar.gz"),
    ],
)
def test_a_model_whose_data_its_role_cannot_read_is_refused(strict, name, principal, actions, key):
    arn = role(strict, name, principal, on_s3(*actions))
    code, text = refused(strict.client("sagemaker").create_model, **model(strict, name, arn, key))
    assert code == "ValidationException" and text.startswith(f"Could not access model data at s3://lab/{key}.")


def test_a_model_with_a_role_that_does_not_exist_is_refused(strict):
    nobody = f"arn:aws:iam::{ACCOUNT}:role/nobody"
    assert refused(strict.client("sagemaker").create_model, **model(strict, "m", nobody))[0] == "ValidationException"


def job(name: str, arn: str) -> dict:
    "Return the arguments of a training job that reads in/ and writes out/."
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://lab/in/"}}
    script = 'echo $AWS_ACCESS_KEY_ID > "$SM_OUTPUT_DIR/data/key"; echo done > /opt/ml/model/done'
    image = {"TrainingImage": "training", "TrainingInputMode": "File"}
    return {
        "TrainingJobName": name,
        "RoleArn": arn,
        "AlgorithmSpecification": image | {"ContainerEntrypoint": ["/bin/sh", "-c", script]},
        "InputDataConfig": [{"ChannelName": "in", "DataSource": source}],
        "OutputDataConfig": {"S3OutputPath": "s3://lab/out"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
    }


READS, WRITES = on_s3("GetObject", "ListBucket", keys="in/*"), on_s3("PutObject", keys="out/*")


@pytest.mark.parametrize(
    ("name", "statements", "reason"),
    [
        ("reads-nothing", [WRITES], "ClientError: Data download failed"),
        ("writes-elsewhere", [READS, on_s3("PutObject", keys="models/*")], "AccessDenied"),
        ("does-all", [READS, WRITES], ""),
    ],
)
def test_a_training_job_has_only_the_permissions_of_its_role(strict, name, statements, reason):
    strict.client("s3").put_object(Bucket="lab", Key="in/a.txt", Body=b"a")
    sagemaker = strict.client("sagemaker")
    sagemaker.create_training_job(**job(name, role(strict, name, {"Service": SAGEMAKER}, *statements)))
    ended = ("Completed", "Failed", "Stopped")
    described = until(
        lambda: (d := sagemaker.describe_training_job(TrainingJobName=name))["TrainingJobStatus"] in ended and d
    )
    assert described["TrainingJobStatus"] == ("Failed" if reason else "Completed")
    assert reason in described.get("FailureReason", "")


def test_a_training_job_with_a_role_for_another_service_is_refused(strict):
    arn = role(strict, "glues-own", {"Service": GLUE}, READS, WRITES)
    code, text = refused(strict.client("sagemaker").create_training_job, **job("not-ours", arn))
    assert code == "ValidationException" and text.startswith(f"Could not assume role {arn}.")


def test_an_event_precedes_the_new_status_in_describe_and_is_repeated(strict):
    sqs, events, sagemaker = strict.client("sqs"), strict.client("events"), strict.client("sagemaker")
    queue = sqs.create_queue(QueueName="endpoint-events")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    events.put_rule(Name="early", EventPattern=json.dumps({"detail": {"EndpointStatus": ["IN_SERVICE"]}}))
    events.put_targets(Rule="early", Targets=[{"Id": "queue", "Arn": arn}])
    name, own = "early", role(strict, "hosting", {"Service": SAGEMAKER}, on_s3("GetObject", keys="models/*"))
    sagemaker.create_model(**model(strict, name, own))
    variant = {"VariantName": "AllTraffic", "ModelName": name, "InstanceType": "ml.t2.medium"}
    variants = [variant | {"InitialInstanceCount": 1}]
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=variants)
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    assert until(lambda: sqs.receive_message(QueueUrl=queue).get("Messages"))
    assert sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"] == "Creating"
    assert settled(strict, name)["EndpointStatus"] == "InService"
    assert until(lambda: sqs.receive_message(QueueUrl=queue).get("Messages"))
    sagemaker.delete_endpoint(EndpointName=name)


READ_PARAMETERS = {"Effect": "Allow", "Action": "ssm:GetParameter", "Resource": "*"}
DECRYPT = {"Effect": "Allow", "Action": "kms:Decrypt", "Resource": "*"}
VIA_SSM = {"StringEquals": {"kms:ViaService": f"ssm.{REGION}.amazonaws.com"}}
VIA_S3 = {"StringEquals": {"kms:ViaService": f"s3.{REGION}.amazonaws.com"}}


@pytest.mark.parametrize(
    ("name", "boundary", "allowed"),
    [
        ("unbound", None, True),
        ("bound", [READ_PARAMETERS], False),
        ("bound-elsewhere", [READ_PARAMETERS, DECRYPT | {"Condition": VIA_S3}], False),
        ("bound-with-kms", [READ_PARAMETERS, DECRYPT | {"Condition": VIA_SSM}], True),
    ],
)
def test_a_boundary_without_kms_denies_reading_a_secure_string(strict, name, boundary, allowed):
    strict.client("ssm").put_parameter(Name="/lab/key", Value="secret", Type="SecureString", Overwrite=True)
    strict.client("ssm").put_parameter(Name="/lab/plain", Value="open", Type="String", Overwrite=True)
    arn = role(strict, name, {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, READ_PARAMETERS, boundary=boundary)
    keys = strict.client("sts").assume_role(RoleArn=arn, RoleSessionName="lab")["Credentials"]
    ssm = boto3.client(
        "ssm",
        endpoint_url=strict.url,
        region_name=REGION,
        aws_access_key_id=keys["AccessKeyId"],
        aws_secret_access_key=keys["SecretAccessKey"],
        aws_session_token=keys["SessionToken"],
    )
    assert ssm.get_parameter(Name="/lab/plain", WithDecryption=True)["Parameter"]["Value"] == "open"
    if allowed:
        assert ssm.get_parameter(Name="/lab/key", WithDecryption=True)["Parameter"]["Value"] == "secret"
    else:
        code, text = refused(ssm.get_parameter, Name="/lab/key", WithDecryption=True)
        assert code == "AccessDeniedException" and "kms:Decrypt" in text


JSON, BINARY = "application/json", "application/octet-stream"


def post(url: str, kind: str, body: bytes, **headers: str) -> tuple[int, bytes]:  # status, body
    "Send a body of a content type to an HTTP API."
    request = urllib.request.Request(url, body, {"Content-Type": kind, **headers})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as e:
        return e.code, e.read()


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        (JSON, b"x" * 11_000_000, 413),
        (JSON, b"x" * 7_000_000, 413),
        (JSON, b"x" * 6_291_400, 413),  # fits alone, but not with the rest of the event
        (JSON, b"x" * 6_200_000, 404),
        (JSON, b'"' * 3_200_000, 413),  # JSON writes two characters for each
        (BINARY, b"x" * 4_800_000, 413),  # the event has it as base64
        (BINARY, b"x" * 4_600_000, 404),
        ("", b"x" * 4_800_000, 413),
        (JSON, b"x" * 1_000, 404),
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else None,
)
def test_the_gateway_refuses_requests_too_large_for_a_function(strict, kind, body, status):
    found, told = post(f"{strict.url}/_aws/execute-api/none/$default/predict", kind, body)
    assert found == status and "message" in json.loads(told)


def test_headers_count_towards_the_size_of_an_event(strict):
    url, body = f"{strict.url}/_aws/execute-api/none/$default/predict", b"x" * 6_280_000
    assert post(url, JSON, body)[0] == 404
    assert post(url, JSON, body, **{"X-Long": "y" * 8_000})[0] == 413


@pytest.fixture(scope="module")
def answering(strict) -> str:  # URL
    "An HTTP API whose function answers with the requested number of bytes."
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as file:
        answer = "{'statusCode': 200, 'body': 'x' * int(event['body'])}"
        file.writestr("long.py", f"def handler(event, context): return {answer}")
    arn = role(strict, "answering", {"Service": "lambda.amazonaws.com"})
    function = strict.client("lambda").create_function(
        FunctionName="long", Runtime="python3.13", Role=arn, Handler="long.handler", Code={"ZipFile": code.getvalue()}
    )["FunctionArn"]
    gateway = strict.client("apigatewayv2")
    api = gateway.create_api(Name="long", ProtocolType="HTTP")["ApiId"]
    made = {"IntegrationType": "AWS_PROXY", "IntegrationUri": function, "PayloadFormatVersion": "2.0"}
    target = f"integrations/{gateway.create_integration(ApiId=api, **made)['IntegrationId']}"
    gateway.create_route(ApiId=api, RouteKey="POST /long", Target=target)
    gateway.create_stage(ApiId=api, StageName="$default", AutoDeploy=True)
    statement = {"StatementId": "api", "Action": "lambda:InvokeFunction", "Principal": "apigateway.amazonaws.com"}
    strict.client("lambda").add_permission(FunctionName="long", **statement)
    return f"{strict.url}/_aws/execute-api/{api}/$default/long"


@pytest.mark.parametrize(("size", "status"), [(1_000, 200), (6_200_000, 200), (6_300_000, 500)])
def test_a_function_cannot_answer_more_than_the_limit_of_lambda(answering, size, status):
    found, told = post(answering, JSON, str(size).encode())
    assert found == status and (len(told) == size if status == 200 else json.loads(told)["message"])


def test_a_function_cannot_be_called_with_more_than_the_limit_of_lambda(strict, answering):
    payload = b'"' + b"x" * 6_300_000 + b'"'
    _, text = refused(strict.client("lambda").invoke, FunctionName="long", Payload=payload)
    assert "less than or equal to 6291456" in text and "xxx" not in text


def test_a_restarted_cloud_still_accepts_its_administrator(tmp_path):
    first = TestCloud(tmp_path / "cloud", port=0, site_port=0, strict=True)
    with first:
        given = first.account_environment()
        key = re.search(r"aws_access_key_id = (\S+)", Path(given["AWS_SHARED_CREDENTIALS_FILE"]).read_text())[1]
        saved = tmp_path / "cloud/aws/iam.json"
        until(lambda: saved.exists() and key in saved.read_text())
    with first, patch.dict(os.environ, given):
        assert first.account_environment() == given
        session = boto3.Session()
        sts = session.client("sts", endpoint_url=first.url)
        assert ":user/" in sts.get_caller_identity()["Arn"]
