"""The gate parses requests of real clients, names what AWS would refuse, and stores no secrets."""

import asyncio
import copy
import functools
import random
import string
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ParamValidationError
from botocore.model import Shape, StructureShape
from hypothesis import given, settings
from hypothesis import strategies as st

from infra_scripts.checks.rehearsal import print_calls
from sentiment_engine.local.api import compiled, service_description
from sentiment_engine.local.requests import (
    Call,
    Gate,
    again,
    answer_of,
    complaints,
    model_of,
    parse,
    read_body,
    read_recording,
    respond,
)
from tests.conftest import TestCloud
from tests.deploy.test_boto3_calls import FOUND, OF_EVERY_CLIENT, SERVICES, operations

ALL = [*SERVICES.split(), "application-autoscaling", "budgets", "wafv2", "acm", "ecr"]
# Made by methods passed as arguments, by boto3's transfers, by waiters or by the SageMaker SDK.
HIDDEN = {
    "sagemaker": ["CreateTrainingJob", "AddTags", "DeleteTags", "ListModels", "DescribeModel"],
    "s3": ["CopyObject", "AbortMultipartUpload", "GetBucketLocation", "ListMultipartUploads", "DeleteBucket"],
    "scheduler": ["CreateSchedule", "UpdateSchedule", "GetSchedule", "DeleteSchedule"],
    "dynamodb": ["Query", "Scan", "DeleteItem"],
    "iam": ["GetRole", "SimulatePrincipalPolicy"],
    "cloudwatch": ["PutMetricData", "GetMetricData"],
    "lambda": ["Invoke", "GetFunction"],
    "logs": ["CreateLogGroup", "CreateLogStream", "DescribeLogStreams"],
    "sts": ["AssumeRole"],
}


def used() -> list[tuple[str, str]]:
    "List the operations that the project uses."
    found = {(service, name) for service, names in HIDDEN.items() for name in names}
    for _, _, service, method, *_ in FOUND:
        for name in [service] if service else SERVICES.split():
            if method in operations(name) and method not in OF_EVERY_CLIENT:
                found.add((name, operations(name)[method]))
    return sorted(found)


class Sent(Exception):
    "Carries a request instead of sending it."


@functools.cache
def client(service: str):
    "Return a client that sends nothing: its calls raise Sent."
    keys = {"aws_access_key_id": "local", "aws_secret_access_key": "local", "region_name": "us-east-1"}
    config = Config(inject_host_prefix=False, retries={"max_attempts": 0}, request_min_compression_size_bytes=200)
    made = boto3.Session(**keys).client(service, endpoint_url="http://127.0.0.1:1", config=config)

    def hold(request, **_):
        raise Sent(request)

    made.meta.events.register("before-send", hold)
    return made


def sent(service: str, operation: str, params: dict):
    "Return boto3's request for a call."
    try:
        client(service)._make_api_call(operation, copy.deepcopy(params))
    except Sent as held:
        return held.args[0]
    raise AssertionError("nothing was sent")


def read_back(request) -> Call | None:
    "Parse a request as the gate does."
    url = urlsplit(request.url)
    headers = {name.lower(): v.decode("latin-1") if isinstance(v, bytes) else v for name, v in request.headers.items()}
    body = request.body or b""
    body = body.read() if hasattr(body, "read") else body
    return parse(request.method, url.path, url.query, headers, body.encode() if isinstance(body, str) else body)


def text_for(shape: Shape, rng: random.Random, where: str | None) -> str:
    "Make a text that a shape allows; its pattern is ignored."
    if shape.enum:
        return rng.choice(shape.enum)
    least, most = shape.metadata.get("min", 0), min(shape.metadata.get("max", 30), 30)
    letters = string.ascii_letters + string.digits
    if where not in ("header", "headers"):
        letters += "-_. +&=%/äß€" + "\U0001f600"
    size = max(rng.randint(min(least, most), most), least, 1)
    return "x" + "".join(rng.choice(letters) for _ in range(size - 1))


def value_for(shape: Shape, rng: random.Random, where: str | None = None, depth: int = 0):
    "Make a value that a shape allows."
    kind, rules = shape.type_name, shape.metadata
    if kind == "structure":
        return structure_for(shape, rng, depth)
    if kind in ("list", "map"):
        count = max(rules.get("min", 1), rng.randint(1, 2), 1)
        if kind == "list":
            return [value_for(shape.member, rng, where, depth + 1) for _ in range(count)]
        keys = {value_for(shape.key, rng, where, depth + 1).lower() for _ in range(count)}
        return {key: value_for(shape.value, rng, where, depth + 1) for key in sorted(keys)}
    if kind in ("integer", "long"):
        return rng.randint(rules.get("min", 0), max(rules.get("min", 0), min(rules.get("max", 99), 99)))
    if kind in ("float", "double"):
        return max(rules.get("min", 0), min(rules.get("max", 99), 1.5))
    made = {"boolean": rng.random() < 0.5, "blob": rng.randbytes(max(rules.get("min", 1), 7))}
    made["timestamp"] = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=rng.randint(0, 10**7))
    return made[kind] if kind in made else text_for(shape, rng, where)


def reach(shape: Shape, depth: int = 0) -> int:
    "Return the depth of a shape, up to 5."
    inner = list(shape.members.values()) if isinstance(shape, StructureShape) else []
    inner += [getattr(shape, name) for name in ("member", "value") if hasattr(shape, name)]
    return depth if depth == 5 else max((reach(each, depth + 1) for each in inner), default=depth)


def structure_for(shape: StructureShape, rng: random.Random, depth: int) -> dict:
    "Make a structure: the required members, and some of the rest."
    if getattr(shape, "is_document_type", False):
        return {"any": ["thing"]}
    names = list(shape.members)
    if shape.metadata.get("union") or getattr(shape, "is_tagged_union", False):
        chosen = [min(names, key=lambda n: (reach(shape.members[n]), n))]
    else:
        chosen = [n for n in names if n in shape.required_members or (depth < 3 and rng.random() < 0.5)]
        chosen = chosen or names[:1]
    members = [(n, shape.members[n]) for n in chosen]
    return {
        n: value_for(m, rng, m.serialization.get("location"), depth + 1)
        for n, m in members
        if n in shape.required_members or depth < 6 or m.type_name not in ("structure", "list", "map")
    }


def fitted(service: str, operation: str, params: dict) -> dict:
    "Change values that boto3 itself would change or refuse."
    if service == "s3":
        params |= {"Bucket": "lake"} if "Bucket" in params else {}
        params |= {"CopySource": "lake/key"} if "CopySource" in params else {}
        params |= {"Metadata": {"made-by": "test"}} if "Metadata" in params else {}
        # boto3 derives some of these from others, and checks them.
        made = ("SSECustomer", "CopySourceSSECustomer", "Checksum", "ContentMD5", "ContentLength", "EncodingType")
        params = {k: v for k, v in params.items() if not k.startswith(made) or k in needed(service, operation)}
    if service == "route53":
        params = {k: v.replace("/", "-") if isinstance(v, str) else v for k, v in params.items()}
    return {k: v for k, v in params.items() if k != "EndpointId"}  # a global endpoint of EventBridge has its own host


def needed(service: str, operation: str) -> list[str]:
    return model_of(service).operation_model(operation).input_shape.required_members


ADDED = {"ChecksumAlgorithm", "ChecksumCRC32", "ContentMD5", "ContentType", "Accept", "EncodingType", "ChecksumMode"}


def check_round_trip(service: str, operation: str, rng: random.Random):
    "Send a call that its shapes allow; the gate must parse the same."
    model = model_of(service).operation_model(operation)
    params = fitted(service, operation, structure_for(model.input_shape, rng, 0)) if model.input_shape else {}
    call = read_back(sent(service, operation, params))
    assert call is not None, (service, operation, params)
    assert (call.service, call.operation) == (service, operation)
    tokens = {n for n, m in (model.input_shape.members if params else {}).items() if m.metadata.get("idempotencyToken")}
    assert {k: v for k, v in call.params.items() if k in params or k not in ADDED | tokens} == params


@pytest.mark.parametrize(("service", "operation"), used())
@settings(max_examples=5)
@given(seed=st.integers(0, 10**6))
def test_a_client_request_is_parsed_as_the_same_call(service, operation, seed):
    check_round_trip(service, operation, random.Random(seed))


ELSEWHERE = {"ListDirectoryBuckets", "WriteGetObjectResponse"}  # signed for other services than S3


def readable(service: str) -> list[str]:
    "List the operations of a service whose requests are signed and have an unstreamed body."
    model = model_of(service)
    found = [model.operation_model(name) for name in model.operation_names if name not in ELSEWHERE]
    return [o.name for o in found if not (o.has_event_stream_input or o.deprecated or o.auth_type == "none")]


@pytest.mark.parametrize("service", ALL)
def test_every_operation_of_a_service_is_parsed_correctly(service):
    for operation in readable(service):
        check_round_trip(service, operation, random.Random(operation))


@pytest.mark.parametrize("service", ALL)
def test_every_pattern_of_a_service_can_be_parsed(service):
    shapes = service_description(service)["shapes"].values()
    for pattern in {shape["pattern"] for shape in shapes if "pattern" in shape}:
        compiled(pattern)


@pytest.mark.parametrize("service", ALL)
def test_the_name_in_a_signature_determines_the_service(service):
    operation = readable(service)[0]
    shape = model_of(service).operation_model(operation).input_shape
    needs = {n: value_for(shape.members[n], random.Random(0)) for n in shape.required_members} if shape else {}
    assert read_back(sent(service, operation, fitted(service, operation, needs))).service == service


ROLE = "arn:aws:iam::111122223333:role/lab"
VARIANT = {"VariantName": "AllTraffic", "ModelName": "m", "InstanceType": "ml.t2.medium", "InitialInstanceCount": 1}
TARGET = {"Arn": "arn:aws:lambda:us-east-1:111122223333:function:lab", "RoleArn": ROLE}
SCHEDULE = {"ScheduleExpression": "at(2026-01-01T00:00:00)", "FlexibleTimeWindow": {"Mode": "OFF"}, "Target": TARGET}
UPDATE = {"TableName": "State", "Key": {"model": {"S": "m"}}, "ExpressionAttributeValues": {":a": {"S": "1"}}}
MODEL = {"ModelName": "m", "ExecutionRoleArn": ROLE, "PrimaryContainer": {"Image": "i", "ModelDataUrl": "s3://b/k"}}
ALARM = {"AlarmName": "a", "MetricName": "m", "Namespace": "n", "Period": 60, "EvaluationPeriods": 1, "Threshold": 1.0}
# A valid call, and a change that makes it invalid: its place, and the limit that AWS names.
BAD = [
    (
        *("sagemaker", "CreateEndpoint", {"EndpointName": "e", "EndpointConfigName": "c"}),
        ({"EndpointName": "e" * 64}, "endpointName", "less than or equal to 63"),
        ({"EndpointName": "no_underscores"}, "endpointName", "regular expression"),
        ({"EndpointName": "-e"}, "endpointName", "regular expression"),
        ({"Tags": [{"Key": "Project", "Value": "v" * 257}]}, "tags.1.member.value", "less than or equal to 256"),
        ({"Tags": [{"Key": "Project", "Value": "a*b"}]}, "tags.1.member.value", "regular expression"),
        ({"Tags": [{"Key": f"k{i}", "Value": "v"} for i in range(51)]}, "tags", "less than or equal to 50"),
    ),
    (
        *("sagemaker", "CreateEndpointConfig", {"EndpointConfigName": "c", "ProductionVariants": [VARIANT]}),
        ({"ProductionVariants": [VARIANT | {"InstanceType": "ml.tiny"}]}, "instanceType", "enum value set"),
        ({"ProductionVariants": [VARIANT] * 11}, "productionVariants", "less than or equal to 10"),
        ({"ProductionVariants": [VARIANT | {"InitialVariantWeight": -1.0}]}, "initialVariantWeight", "greater than"),
    ),
    (
        *("sagemaker", "CreateModel", MODEL),
        ({"ExecutionRoleArn": "a role without an ARN"}, "executionRoleArn", "regular expression"),
        ({"PrimaryContainer": {"Environment": {"A B": "x"}}}, "environment.key", "regular expression"),
        (
            {"PrimaryContainer": {"Environment": {"A": "é" * 1025}}},
            "environment.A.value",
            "less than or equal to 1024",
        ),
    ),
    (
        *("sagemaker-runtime", "InvokeEndpoint", {"EndpointName": "e", "Body": b"x"}),
        ({"EndpointName": "e" * 64}, "endpointName", "less than or equal to 63"),
    ),
    (
        *("scheduler", "CreateSchedule", {"Name": "wake", **SCHEDULE}),
        ({"Name": "s" * 65}, "name", "less than or equal to 64"),
        ({"Name": "with space"}, "name", "regular expression"),
        ({"Target": TARGET | {"RoleArn": "role"}}, "target.roleArn", "regular expression"),
        ({"FlexibleTimeWindow": {"Mode": "SOMETIMES"}}, "flexibleTimeWindow.mode", "enum value set"),
    ),
    (
        *("ssm", "PutParameter", {"Name": "/lab/model", "Value": "v", "Type": "String"}),
        ({"Name": "/lab/" + "n" * 1010}, "name", "less than or equal to 1011"),
        ({"Name": "/lab/mödel"}, "name", "regular expression"),
        ({"Name": "/aws-lab/model"}, "name", "regular expression"),
        ({"Type": "Text"}, "type", "enum value set"),
    ),
    (
        *("dynamodb", "UpdateItem", {**UPDATE, "UpdateExpression": "SET a = :a"}),
        ({"UpdateExpression": "SET " + "a" * 4096 + " = :a"}, "updateExpression", "less than or equal to 4096"),
        ({"ConditionExpression": "a = :a OR " * 500 + "a = :a"}, "conditionExpression", "less than or equal to 4096"),
        ({"TableName": "no spaces"}, "tableName", "regular expression"),
        ({"ReturnValues": "EVERYTHING"}, "returnValues", "enum value set"),
    ),
    (
        *("s3", "PutObject", {"Bucket": "lake", "Key": "raw/a", "Body": b"x"}),
        ({"Bucket": "Lake"}, "bucket", "regular expression"),
        ({"Bucket": "lake..raw"}, "bucket", "regular expression"),
        ({"Key": "ä" * 513}, "key", "less than or equal to 1024"),
        ({"StorageClass": "CHEAP"}, "storageClass", "enum value set"),
    ),
    (
        *("sns", "Publish", {"PhoneNumber": "+12025550123", "Message": "ready"}),
        ({"PhoneNumber": "12025550123"}, "phoneNumber", "regular expression"),
    ),
    (
        *("sqs", "CreateQueue", {"QueueName": "dead-letters"}),
        ({"QueueName": "q" * 81}, "queueName", "regular expression"),
    ),
    (
        *("iam", "CreateRole", {"RoleName": "r", "AssumeRolePolicyDocument": "{}"}),
        ({"RoleName": "r" * 65}, "roleName", "less than or equal to 64"),
        ({"Tags": [{"Key": "a*b", "Value": "v"}]}, "tags.1.member.key", "regular expression"),
    ),
    (
        *("cloudformation", "CreateChangeSet", {"StackName": "lab", "ChangeSetName": "plan-1", "TemplateBody": "{}"}),
        ({"ChangeSetName": "1-plan"}, "changeSetName", "regular expression"),
        ({"TemplateBody": "x" * 51201}, "templateBody", "less than or equal to 51200"),
    ),
    (
        *("logs", "PutRetentionPolicy", {"logGroupName": "/aws/lambda/lab", "retentionInDays": 30}),
        ({"logGroupName": "/aws/lambda/lab*"}, "logGroupName", "regular expression"),
    ),
    (
        *("glue", "StartJobRun", {"JobName": "clean"}),
        ({"JobName": "n" * 256}, "jobName", "less than or equal to 255"),
    ),
    (*("events", "PutRule", {"Name": "rule"}), ({"Name": "no spaces"}, "name", "regular expression")),
    (
        *("lambda", "GetFunction", {"FunctionName": "lab"}),
        ({"FunctionName": "l b"}, "functionName", "regular expression"),
    ),
    (
        *("cloudwatch", "PutMetricAlarm", ALARM | {"ComparisonOperator": "GreaterThanThreshold"}),
        ({"ComparisonOperator": "More"}, "comparisonOperator", "enum value set"),
        ({"AlarmName": "a" * 256}, "alarmName", "less than or equal to 255"),
    ),
    (
        *("service-quotas", "ListServiceQuotas", {"ServiceCode": "sagemaker"}),
        ({"MaxResults": 101}, "maxResults", "less than or equal to 100"),
    ),
    (*("route53", "GetHostedZone", {"Id": "Z1"}), ({"Id": "Z" * 33}, "id", "less than or equal to 32")),
    (
        *("budgets", "DescribeBudget", {"AccountId": "111122223333", "BudgetName": "b"}),
        ({"AccountId": "1" * 13}, "accountId", "less than or equal to 12"),
        ({"BudgetName": "a:b"}, "budgetName", "regular expression"),
    ),
]
GOOD = [(service, operation, good) for service, operation, good, *_ in BAD]
TABLE = [(service, operation, good, *change) for service, operation, good, *changes in BAD for change in changes]


@pytest.mark.parametrize(("service", "operation", "good"), GOOD)
def test_a_valid_call_causes_no_complaint(service, operation, good):
    assert complaints(service, operation, good) == []


@pytest.mark.parametrize(("service", "operation", "good", "change", "where", "limit"), TABLE)
def test_a_complaint_names_the_location_and_the_limit_of_a_wrong_value(service, operation, good, change, where, limit):
    told = "; ".join(complaints(service, operation, good | change))
    assert where in told and limit in told and "failed to satisfy constraint: Member must" in told


@pytest.mark.parametrize(("service", "operation", "good"), GOOD)
def test_missing_and_unknown_members_are_reported(service, operation, good):
    for name in set(needed(service, operation)) & set(good):
        assert "must not be null" in complaints(service, operation, {k: v for k, v in good.items() if k != name})[0]
    assert "is not known" in complaints(service, operation, good | {"Unheard": "of"})[0]


def pass_through(gate: Gate, method: str, url: str, headers: dict, body: bytes) -> tuple[int, bytes, dict]:
    "Send a request through a gate; return status, body and headers of the answer."
    parts, answer = urlsplit(url), []
    scope = {"type": "http", "method": method, "path": parts.path, "raw_path": parts.path.encode()}
    pairs = [(k.lower().encode(), v if isinstance(v, bytes) else v.encode()) for k, v in headers.items()]
    scope |= {"query_string": parts.query.encode(), "headers": pairs}

    async def send(message):
        answer.append(message)

    asyncio.run(gate(scope, again(body, None), send))
    headers = {k.decode(): v.decode() for k, v in answer[0]["headers"]}
    return answer[0]["status"], b"".join(m.get("body", b"") for m in answer[1:]), headers


def through(gate: Gate, service: str, operation: str, params: dict) -> tuple[int, bytes, dict]:
    "Send boto3's request for a call through a gate; return status, body and headers of the answer."
    request = sent(service, operation, params)
    body = request.body or b""
    body = body.read() if hasattr(body, "read") else body
    body = body.encode() if isinstance(body, str) else body
    return pass_through(gate, request.method, request.url, dict(request.headers), body)


def content(asked: list):
    "Return a cloud that accepts every request and records its path."

    async def app(scope, receive, send):
        await read_body(receive)
        asked.append(scope["path"])
        await respond(send, 200, {}, b"")

    return app


@pytest.mark.parametrize(("service", "operation", "good", "change", "where", "limit"), TABLE)
def test_a_strict_gate_refuses_in_the_protocol_of_the_service(service, operation, good, change, where, limit, tmp_path):
    asked = []
    gate = Gate(content(asked), tmp_path / "calls", strict=True)
    through(gate, service, operation, good)
    try:
        status, body, headers = through(gate, service, operation, good | change)
    except ParamValidationError:  # boto3 itself refuses some
        assert limit != "less than or equal to 63"
        return
    told = answer_of(Call(service, operation, good), status, headers, body)["Error"]
    assert status == 400 and len(asked) == 1
    assert told["Code"].startswith(("Validation", "Invalid")) and "validation error" in told["Message"]
    first, second = read_recording(tmp_path / "calls")
    assert (first["complaints"], first["error"]) == ([], "")
    assert limit in "; ".join(second["complaints"]) and second["error"] == told["Code"]


def test_a_lenient_gate_refuses_nothing(tmp_path):
    asked = []
    gate = Gate(content(asked), tmp_path / "calls")
    status, *_ = through(gate, "sagemaker", "DeleteEndpoint", {"EndpointName": "e" * 64})
    assert gate.file.stat().st_mode & 0o077 == 0
    assert status == 200 and len(asked) == 1 and read_recording(tmp_path / "calls")[0]["complaints"]


def signed(service: str, **more: str) -> dict[str, str]:
    "Return the headers of a signed request."
    scope = f"Credential=AKIDEXAMPLE/20260101/us-east-1/{service}/aws4_request"
    return {"Authorization": f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0"} | more


DESCRIBE = {"X-Amz-Target": "SageMaker.DescribeEndpoint"}
GET_PARAMETER = {"X-Amz-Target": "AmazonSSM.GetParameter"}
PRESIGNED = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=0&X-Amz-Credential="
# Signed requests that cannot be parsed: service, method, path and query, headers, body.
UNREADABLE = {
    "unknown service": ("unheard", "POST", "/", signed("unheard"), b"{}"),
    "a service that botocore does not sign for": ("execute-api", "GET", "/predict", signed("execute-api"), b""),
    "unknown operation in JSON": ("ssm", "POST", "/", signed("ssm", **{"X-Amz-Target": "AmazonSSM.Read"}), b"{}"),
    "target of another service": ("ssm", "POST", "/", signed("ssm", **DESCRIBE), b"{}"),
    "no target": ("sagemaker", "POST", "/", signed("sagemaker"), b"{}"),
    "unknown action in a form": ("iam", "POST", "/", signed("iam"), b"Action=MakeRole&Version=2010-05-08"),
    "no form": ("sns", "POST", "/", signed("sns"), b""),
    "unknown path": ("scheduler", "POST", "/alarms/wake", signed("scheduler"), b"{}"),
    "unknown method": ("lambda", "PATCH", "/2015-03-31/functions/lab", signed("lambda"), b"{}"),
    "unknown parameter of a query": ("s3", "GET", "/lake?list-type=2&colour=red", signed("s3"), b""),
    "unknown presigned parameter": (
        *("s3", "GET", f"/lake/key?colour=red&{PRESIGNED}AKIDEXAMPLE/20260101/us-east-1/s3/aws4_request"),
        *({}, b""),
    ),
    "presigned for an unknown service": (
        *("unheard", "GET", f"/lake/key?{PRESIGNED}AKIDEXAMPLE/20260101/us-east-1/unheard/aws4_request"),
        *({}, b""),
    ),
    "signature without a scope": ("?", "GET", "/lake", {"Authorization": "AWS4-HMAC-SHA256 Signature=0"}, b""),
    "presigned without a scope": ("?", "GET", f"/lake/key?{PRESIGNED}nothing", {}, b""),
    "broken JSON": ("ssm", "POST", "/", signed("ssm", **GET_PARAMETER), b'{"Name": "hush-hush'),
    "JSON without names": ("ssm", "POST", "/", signed("ssm", **GET_PARAMETER), b'["hush-hush"]'),
    "JSON in another encoding": ("ssm", "POST", "/", signed("ssm", **GET_PARAMETER), b'{"Name": "\xff"}'),
    "a list instead of parameters": ("scheduler", "POST", "/schedules/wake", signed("scheduler"), b'["hush-hush"]'),
    "pairs instead of parameters": (
        *("scheduler", "POST", "/schedules/wake", signed("scheduler")),
        b'[["GroupName", "hush-hush"]]',
    ),
    "an empty list instead of parameters": ("scheduler", "POST", "/schedules/wake", signed("scheduler"), b"[]"),
    "an impossible time": (
        *("logs", "POST", "/", signed("sagemaker", **{"X-Amz-Target": "SageMaker.ListModels"})),
        b'{"CreationTimeBefore": 1e300}',
    ),
    "broken XML": ("s3", "PUT", "/lake?tagging", signed("s3"), b"<Tagging><TagSet>hush-hush"),
    "broken pieces": ("s3", "PUT", "/lake/key", signed("s3", **{"X-Amz-Content-Sha256": "STREAMING-X"}), b"hush-hush"),
    "broken compression": (
        *("monitoring", "POST", "/", signed("monitoring", **{"Content-Encoding": "gzip"})),
        b"hush-hush",
    ),
    "a form in another encoding": ("iam", "POST", "/", signed("iam"), b"Action=\xff"),
}
UNREADABLE["an impossible time"] = ("sagemaker", *UNREADABLE["an impossible time"][1:])
UNREADABLE["broken compression"] = ("cloudwatch", *UNREADABLE["broken compression"][1:])


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_unparsable_signed_request_is_recorded_and_strictly_refused(kind, tmp_path):
    service, method, url, headers, body = UNREADABLE[kind]
    asked = []
    for strict in (True, False):
        status, told, answered = pass_through(
            Gate(content(asked), tmp_path / "calls", strict), method, url, headers, body
        )
        assert (status, len(asked)) == ((400, 0) if strict else (200, 1))
        line = read_recording(tmp_path / "calls")[-1]
        assert (line["service"], line["operation"], line["params"]) == (service, "?", {}) and line["complaints"]
        if strict:
            error = answer_of(Call(service, "?", {}), status, answered, told)["Error"]
            assert error["Code"] == line["error"] != "" and error["Message"] == line["complaints"][0]
    assert "hush-hush" not in (tmp_path / "calls").read_text()


@pytest.mark.parametrize(
    ("service", "url", "headers", "body"),
    [
        ("iam", "/", signed("iam"), b"Action=GetRole&Version=2010-05-08&RoleName=r&Colour=red"),
        ("iam", "/", signed("iam"), b"Action=CreateRole&RoleName=r&AssumeRolePolicyDocument=x&Tags.member.1.Hue=red"),
        (
            "s3",
            "/lake?versioning",
            signed("s3"),
            b"<VersioningConfiguration><Colour>red</Colour></VersioningConfiguration>",
        ),
        ("s3", "/lake?tagging", signed("s3"), b"<Tagging><TagSet><Tag><Hue>red</Hue></Tag></TagSet></Tagging>"),
        ("ssm", "/", signed("ssm", **GET_PARAMETER), b'{"Name": "/lab/key", "Colour": "red"}'),
    ],
)
def test_an_unknown_member_of_a_body_causes_a_complaint(service, url, headers, body, tmp_path):
    gate = Gate(content([]), tmp_path / "calls", strict=True)
    status, *_ = pass_through(gate, "PUT" if service == "s3" else "POST", url, headers, body)
    line = read_recording(tmp_path / "calls")[-1]
    assert status == 400 and "is not known" in "; ".join(line["complaints"]) and line["operation"] != "?"


@pytest.mark.parametrize("signature", [None, "s3", "s3v4"])
@pytest.mark.parametrize("operation", ["get_object", "put_object", "head_object", "list_objects_v2"])
def test_a_presigned_url_is_parsed(signature, operation, tmp_path):
    keys = {"aws_access_key_id": "local", "aws_secret_access_key": "local", "aws_session_token": "token"}
    config = Config(signature_version=signature)
    s3 = boto3.client("s3", region_name="us-east-1", endpoint_url="http://127.0.0.1:1", config=config, **keys)
    params = {"Bucket": "lake"} | ({} if operation == "list_objects_v2" else {"Key": "raw/ä b"})
    method = {"put_object": "PUT", "head_object": "HEAD"}.get(operation, "GET")
    gate = Gate(content([]), tmp_path / "calls", strict=True)
    status, *_ = pass_through(gate, method, s3.generate_presigned_url(operation, params), {}, b"")
    (line,) = read_recording(tmp_path / "calls")
    assert status == 200 and operations("s3")[operation] == line["operation"]
    assert params.items() <= line["params"].items() and not line["complaints"]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer token"}, {"Authorization": "Basic bG9jYWw6"}])
def test_an_unsigned_request_is_not_a_call(headers, tmp_path):
    asked = []
    gate = Gate(content(asked), tmp_path / "calls", strict=True)
    for url in ("/index.html?colour=red", "/_local/health", "/_aws/execute-api/api/$default/predict?hours=1"):
        assert pass_through(gate, "GET", url, headers, b"")[0] == 200
    assert len(asked) == 3 and read_recording(tmp_path / "calls") == []


def test_a_rehearsal_counts_unparsable_requests(tmp_path, capsys):
    gate = Gate(content([]), tmp_path / "calls", strict=True)
    for _, method, url, headers, body in UNREADABLE.values():
        pass_through(gate, method, url, headers, body)
    wrong = print_calls(read_recording(tmp_path / "calls"))
    assert len(wrong) == len(UNREADABLE) and all(" ?: " in text for text in wrong)
    shown = capsys.readouterr().out
    assert all(service in shown for service, *_ in UNREADABLE.values())


LINE = {"logGroupName": "g", "logStreamName": "s", "logEvents": [{"timestamp": 1, "message": "+12025550123"}]}
PARAMETER = {"ParameterKey": "OriginSecret", "ParameterValue": "hush-hush"}
SECRETS = [
    ("cloudformation", "CreateStack", {"StackName": "lab", "TemplateBody": "{}", "Parameters": [PARAMETER]}),
    ("cloudformation", "UpdateStack", {"StackName": "lab", "TemplateBody": "{}", "Parameters": [PARAMETER]}),
    ("ssm", "PutParameter", {"Name": "/lab/key", "Type": "SecureString", "Value": "hush-hush"}),
    ("ssm", "PutParameter", {"Name": "/lab/key", "Value": "hush-hush"}),  # of a type that keeps its value
    ("dynamodb", "PutItem", {"TableName": "State", "Item": {"secret": {"S": "hush-hush"}, "b": {"B": b"hush-hush"}}}),
    ("dynamodb", "UpdateItem", UPDATE | {"ExpressionAttributeValues": {":s": {"M": {"secret": {"S": "hush-hush"}}}}}),
    ("s3", "PutObject", {"Bucket": "lake", "Key": "k", "Body": b"hush-hush"}),
    ("sagemaker-runtime", "InvokeEndpoint", {"EndpointName": "e", "Body": b"hush-hush"}),
    ("lambda", "Invoke", {"FunctionName": "lab", "Payload": b'{"to": "hush-hush"}'}),
    ("sns", "Publish", {"PhoneNumber": "+12025550123", "Message": "ready, +12025550123"}),
    ("dynamodb", "PutItem", {"TableName": "State", "Item": {"+12025550123": {"SS": ["a+12025550123"]}}}),
    ("dynamodb", "GetItem", {"TableName": "+12025550123 is no table", "Key": {"a": {"S": "+12025550123"}}}),
    ("logs", "PutLogEvents", LINE),
    ("sqs", "SendMessage", {"QueueUrl": "http://127.0.0.1:1/000000000000/q", "MessageBody": '{"to": "+12025550123"}'}),
]


@pytest.mark.parametrize(("service", "operation", "params"), SECRETS)
def test_a_recording_contains_no_secret_or_phone_number(service, operation, params, tmp_path):
    through(Gate(content([]), tmp_path / "calls"), service, operation, params)
    text = (tmp_path / "calls").read_text()
    assert operation in text and "hush-hush" not in text and "2025550123" not in text


def test_a_recording_replaces_phone_numbers_consistently(tmp_path):
    gate = Gate(content([]), tmp_path / "calls")
    for number in ("+12025550123", "+12025550145", "+12025550123"):
        through(gate, "sns", "Publish", {"PhoneNumber": number, "Message": "ready"})
    first, second, third = (line["params"]["PhoneNumber"] for line in read_recording(tmp_path / "calls"))
    assert first == third != second and complaints("sns", "Publish", {"PhoneNumber": first, "Message": "m"}) == []


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Iterator[TestCloud]:
    "A cloud that records its calls."
    folder = tmp_path_factory.mktemp("recorded")
    with TestCloud(folder / "state", port=0, site_port=0, record=folder / "calls") as cloud:
        yield cloud


def test_a_recording_cloud_records_calls_and_answers(recorded):
    s3, sts, table = recorded.client("s3"), recorded.client("sts"), recorded.client("dynamodb")
    s3.create_bucket(Bucket="lake")
    upload = s3.create_multipart_upload(Bucket="lake", Key="raw/ä b")["UploadId"]
    part = s3.upload_part(Bucket="lake", Key="raw/ä b", UploadId=upload, PartNumber=1, Body=b"x")["ETag"]
    account = sts.get_caller_identity()["Account"]
    with pytest.raises(ClientError):
        table.describe_table(TableName="Nowhere")
    lines = read_recording(recorded.record)[-5:]
    assert [(line["service"], line["operation"], line["error"]) for line in lines] == [
        ("s3", "CreateBucket", ""),
        ("s3", "CreateMultipartUpload", ""),
        ("s3", "UploadPart", ""),
        ("sts", "GetCallerIdentity", ""),
        ("dynamodb", "DescribeTable", "ResourceNotFoundException"),
    ]
    assert lines[1]["params"]["Key"] == "raw/ä b" and not any(line["complaints"] for line in lines)
    assert lines[1]["ids"][".UploadId"] == upload and lines[2]["ids"][".ETag"] == part
    assert lines[3]["ids"][".Account"] == account


def test_calls_by_processes_of_the_cloud_are_recorded_too(recorded):
    recorded.client("s3").create_bucket(Bucket="scripts")
    command = {"Name": "glueetl", "ScriptLocation": "s3://scripts/none.py"}
    recorded.client("glue").create_job(Name="clean", Role=ROLE, Command=command)
    recorded.client("glue").start_job_run(JobName="clean")
    deadline = time.monotonic() + 120
    while not any(line["params"].get("Key") == "none.py" for line in read_recording(recorded.record)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
