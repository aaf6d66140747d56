"""moto judges recordings: calls that only moto refuses count, inherent differences do not."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from infra_scripts.checks import second_opinion
from infra_scripts.checks.second_opinion import (
    Moto,
    Replay,
    Verdict,
    asked,
    findings,
    judged,
    lines_of_templates,
    moto,
    report,
)
from sentiment_engine.deploy import template_calls
from sentiment_engine.local.requests import complaints

ACCOUNT = "111122223333"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/lab"
KEYS = {"KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}]}
KEYS |= {"AttributeDefinitions": [{"AttributeName": "id", "AttributeType": "S"}], "BillingMode": "PAY_PER_REQUEST"}
TABLE = {"TableName": "State", **KEYS}


def line(service: str, operation: str, params: dict, error: str = "", **ids: str) -> dict:
    "Make a line of a recording."
    found = {f".{name}": text for name, text in ids.items()}
    return {
        "service": service,
        "operation": operation,
        "params": params,
        "error": error,
        "ids": found,
        "complaints": [],
    }


@pytest.fixture(scope="module")
def running() -> Iterator[Moto]:
    with moto(ACCOUNT) as started:
        yield started


@pytest.fixture
def judge(running) -> Callable[..., list[Verdict]]:
    "Return a function that plays lines to an empty moto and returns the verdicts."

    def play(*lines: dict) -> list[Verdict]:
        httpx.post(f"{running.url}/moto-api/reset", trust_env=False)
        return judged(list(lines), running, ACCOUNT)[0]

    return play


@pytest.fixture(scope="module")
def templates(running):
    "Both opinions on our templates."
    return judged(lines_of_templates(), running, ACCOUNT)


def test_moto_accepts_every_call_for_our_templates(templates):
    verdicts, wrong, _ = templates
    assert [v for v in verdicts if v.outcome != "accepted"] == [] and wrong == []
    assert {v.service for v in verdicts} >= {"s3", "dynamodb", "iam", "sns", "sqs", "events", "logs", "scheduler"}


def test_unjudged_calls_are_reported(templates, capsys):
    assert report(*templates, []) == 0
    shown = capsys.readouterr().out
    for kind in ("AWS::CloudFront::Distribution", "AWS::ApiGatewayV2::Api", "AWS::Glue::Job", "AWS::Lambda::Function"):
        assert kind in shown.partition("Judged by neither:")[2]


VARIANT = {"VariantName": "v", "ModelName": "nowhere", "InitialInstanceCount": 1, "InstanceType": "ml.m5.large"}
TARGET = {"Arn": f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:lab", "RoleArn": ROLE}
SCHEDULE = {"ScheduleExpression": "at(2030-01-01T00:00:00)", "FlexibleTimeWindow": {"Mode": "OFF"}, "Target": TARGET}
PUT = {"TableName": "State", "Item": {"id": {"S": "a"}}}
REFUSED = [
    ("dynamodb", "PutItem", PUT | {"TableName": "Nowhere"}, "ResourceNotFoundException"),
    ("dynamodb", "PutItem", PUT | {"Item": {"other": {"S": "a"}}}, "ValidationException"),
    ("dynamodb", "PutItem", PUT | {"ConditionExpression": "id = :a"}, None),
    ("dynamodb", "PutItem", PUT | {"ConditionExpression": "attribute_exists(id)"}, "ConditionalCheckFailedException"),
    ("s3", "PutObject", {"Bucket": "nowhere", "Key": "k", "Body": {"$bytes": 3}}, "NoSuchBucket"),
    ("iam", "PutRolePolicy", {"RoleName": "nowhere", "PolicyName": "p", "PolicyDocument": "{}"}, "NoSuchEntity"),
    ("scheduler", "CreateSchedule", {"Name": "s", "GroupName": "nowhere", **SCHEDULE}, None),
    ("ssm", "GetParameter", {"Name": "/nowhere"}, "ParameterNotFound"),
    ("sagemaker", "DescribeEndpoint", {"EndpointName": "nowhere"}, "ValidationException"),
    ("sqs", "GetQueueAttributes", {"QueueUrl": "http://127.0.0.1:1/000000000000/nowhere"}, None),
]
STANDING = [line("dynamodb", "CreateTable", TABLE), line("s3", "CreateBucket", {"Bucket": "lake"})]


@pytest.mark.parametrize(("service", "operation", "params", "code"), REFUSED)
def test_only_refusals_by_moto_alone_count(judge, service, operation, params, code, capsys):
    verdict = judge(*STANDING, line(service, operation, params))[-1]
    assert verdict.outcome == "refused" and code in (None, verdict.theirs)
    assert report([verdict], [], {}, []) == 1 and f"{service} {operation}" in capsys.readouterr().out
    agreed = judge(*STANDING, line(service, operation, params, verdict.theirs))[-1]
    assert agreed.outcome == "agreed" and report([agreed], [], {}, []) == 0


def test_a_refusal_with_a_reason_does_not_count():
    verdict = Verdict("s3", "PutObject", "", "Teapot", "short and stout")
    counting, known = findings([verdict], [{"call": "s3 PutObject", "code": "Teapot", "why": "moto is a teapot"}])
    assert not counting and "moto is a teapot" in known[0]
    assert findings([verdict], [{"call": "s3 PutObject", "code": "Other", "why": "…"}])[0]


@pytest.mark.parametrize(
    "verdicts",
    [
        [],
        [Verdict("s3", "PutObject", "", "")],
        [Verdict("s3", "PutObject", "Teapot", "Teapot")],
        [Verdict("s3", "PutObject", "", "Other")],
        [Verdict("s3", "GetObject", "", "Teapot")],
    ],
)
def test_an_outdated_exception_fails_the_check(verdicts):
    allowed = [{"call": "s3 PutObject", "code": "Teapot", "why": "moto is a teapot"}]
    assert any("s3 PutObject: Teapot: moto no longer" in text for text in findings(verdicts, allowed)[0])
    assert report(verdicts, [], {}, allowed) == 1
    used = Verdict("s3", "PutObject", "", "Teapot", "short and stout")
    assert findings([used], allowed)[0] == []


def test_exceptions_for_unmade_calls_are_ignored():
    allowed = [{"call": "s3 PutObject", "code": "a", "why": ""}, {"call": "s3 CreateBucket", "code": "b", "why": ""}]
    assert asked([Verdict("s3", "CreateBucket", "", "")], allowed) == allowed[1:]


def test_unreadable_calls_are_reported_and_skipped(running):
    unread = line("s3", "?", {}) | {"complaints": ["no known operation"]}
    verdicts, wrong, left = judged([unread, line("unheard", "?", {}, "Refused")], running, ACCOUNT)
    assert verdicts == [] and wrong == ["s3 ?: no known operation"] and left.total() == 2


def test_every_exception_has_a_reason():
    for entry in yaml.safe_load(second_opinion.ALLOWED.read_text())["refusals"]:
        assert set(entry) == {"call", "code", "why"} and len(entry["why"]) > 20


def test_refusals_by_the_local_cloud_alone_are_reported(judge):
    assert judge(line("s3", "CreateBucket", {"Bucket": "lake"}, "AccessDenied"))[-1].outcome == "milder"


def test_an_endpoint_that_is_being_deleted_may_still_be_described(judge):
    "AWS describes it for minutes; moto forgets it at once. An endpoint that never existed does not count."
    model = {"ModelName": "m", "ExecutionRoleArn": ROLE, "PrimaryContainer": {"Image": "i", "ModelDataUrl": "s3://b/m"}}
    variant = {"VariantName": "v", "ModelName": "m", "InstanceType": "ml.t2.medium", "InitialInstanceCount": 1}
    named = {"EndpointName": "lab-1"}
    *_, going, never = judge(
        line("sagemaker", "CreateModel", model),
        line("sagemaker", "CreateEndpointConfig", {"EndpointConfigName": "c", "ProductionVariants": [variant]}),
        line("sagemaker", "CreateEndpoint", named | {"EndpointConfigName": "c"}),
        line("sagemaker", "DeleteEndpoint", named),
        line("sagemaker", "DescribeEndpoint", named),
        line("sagemaker", "DescribeEndpoint", {"EndpointName": "lab-2"}),
    )
    assert (going.outcome, never.outcome) == ("accepted", "refused")


def test_an_operation_unknown_to_moto_is_not_a_refusal(judge):
    (verdict,) = judge(line("sagemaker", "DescribeSubscribedWorkteam", {"WorkteamArn": ROLE}))
    assert verdict.outcome == "unknown" and report([verdict], [], {}, []) == 0


def test_violations_of_the_api_description_fail_the_check(running):
    bad = line("s3", "CreateBucket", {"Bucket": "lake"}) | {"complaints": ["Member must …"]}
    verdicts, wrong, left = judged([bad], running, ACCOUNT)
    assert wrong and report(verdicts, wrong, left, []) == 1


def test_recorded_identifiers_are_replaced_by_those_of_moto(judge):
    place = {"Bucket": "lake", "Key": "big"}
    upload = place | {"UploadId": "recorded-id"}
    parts = {"Parts": [{"PartNumber": 1, "ETag": '"recorded"', "ChecksumCRC32": "AAAA"}]}
    body = {"Body": {"$bytes": 6, "sha256": "…"}, "PartNumber": 1, "ChecksumCRC32": "AAAA"}
    verdicts = judge(
        line("s3", "CreateBucket", {"Bucket": "lake"}),
        line("s3", "PutBucketVersioning", {"Bucket": "lake", "VersioningConfiguration": {"Status": "Enabled"}}),
        line("s3", "CreateMultipartUpload", place, UploadId="recorded-id"),
        line("s3", "UploadPart", upload | body, ETag='"recorded"'),
        line("s3", "CompleteMultipartUpload", upload | {"MultipartUpload": parts}, VersionId="recorded-version"),
        line("s3", "GetObject", place | {"VersionId": "recorded-version"}),
        line("sqs", "CreateQueue", {"QueueName": "letters"}, QueueUrl="http://127.0.0.1:4566/000000000000/letters"),
        line("sqs", "SendMessage", {"QueueUrl": "http://127.0.0.1:4566/000000000000/letters", "MessageBody": "a"}),
    )
    assert [v.outcome for v in verdicts] == ["accepted"] * len(verdicts)


def stack_line(operation: str, resources: dict | None = None, **more) -> dict:
    "Make a line about the stack lab."
    body = {"TemplateBody": json.dumps({"Resources": resources})} if resources else {}
    return line("cloudformation", operation, {"StackName": "lab", **body, **more})


BUCKET = {"Type": "AWS::S3::Bucket", "Properties": {"Tags": [{"Key": "Project", "Value": "lab"}]}}
STATE = {"Type": "AWS::DynamoDB::Table", "Properties": TABLE}
TOPIC = {"Type": "AWS::SNS::Topic", "Properties": {"TopicName": "bell"}}


def test_a_stack_is_created_changed_deleted_and_created_again(judge):
    both = {"Lake": BUCKET, "State": STATE}
    verdicts = judge(
        stack_line("CreateStack", both),
        line("s3", "PutObject", {"Bucket": "lab-lake-0a1b2c", "Key": "k", "Body": {"$bytes": 1}}),
        line("s3", "DeleteObject", {"Bucket": "lab-lake-0a1b2c", "Key": "k"}),
        stack_line("UpdateStack", both | {"Bell": TOPIC}),
        stack_line("DeleteStack"),
        line("s3", "HeadBucket", {"Bucket": "lab-lake-0a1b2c"}, "404"),
        stack_line("CreateChangeSet", both, ChangeSetName="first"),
        stack_line("ExecuteChangeSet", ChangeSetName="first"),
        line("s3", "HeadBucket", {"Bucket": "lab-lake-0a1b2c"}),
    )
    made = [(v.operation, v.outcome) for v in verdicts]
    assert {outcome for _, outcome in made} == {"accepted", "agreed"}
    assert [operation for operation, _ in made].count("CreateTable") == 2
    assert ("CreateTopic", "accepted") in made and ("DeleteTable", "accepted") in made


def test_an_unexecuted_change_set_changes_nothing(judge):
    looked = [stack_line("CreateChangeSet", {"Lake": BUCKET}, ChangeSetName="x"), stack_line("DeleteChangeSet")]
    assert judge(*looked) == []


LAKE = "arn:aws:s3:::lab-foundation-lake-0123456789abc"


def test_template_expressions_are_evaluated():
    template = {
        "Parameters": {"Prefix": {"Type": "String", "Default": "lab"}},
        "Conditions": {"Yes": {"Fn::Equals": [{"Ref": "Prefix"}, "lab"]}, "No": {"Fn::Not": [{"Condition": "Yes"}]}},
        "Resources": {"Lake": {"Type": "AWS::S3::Bucket"}, "Off": {"Type": "AWS::S3::Bucket", "Condition": "No"}},
    }
    stack = template_calls.Stack("lab-foundation", template, {}, ACCOUNT)
    for expression, worth in [
        ({"Ref": "Prefix"}, "lab"),
        ({"Fn::Sub": "${Prefix}-${AWS::Region}"}, "lab-us-east-1"),
        (
            {"Fn::Sub": ["${Here}${Lake.Arn}", {"Here": {"Ref": "AWS::AccountId"}}]},
            ACCOUNT + LAKE,
        ),
        ({"Fn::If": ["No", 1, {"Fn::Join": ["-", ["a", {"Ref": "Prefix"}]]}]}, "a-lab"),
        ([1, {"Ref": "AWS::NoValue"}], [1]),
        (
            {"a": {"Ref": "AWS::NoValue"}, "b": {"Fn::GetAtt": ["Lake", "Arn"]}},
            {"b": LAKE},
        ),
        ({"Fn::And": [{"Condition": "Yes"}, {"Fn::Or": [{"Condition": "No"}, {"Condition": "Yes"}]}]}, True),
    ]:
        assert stack.worked_out(expression) == worth
    assert [logical for logical, *_ in stack.resources()] == ["Lake"]


@pytest.mark.parametrize("prefix", ["sentiment-engine", "a2345678901234567"])
def test_the_calls_for_our_templates_obey_every_limit(prefix):
    for made in lines_of_templates():
        params = made["params"]
        given = {p["ParameterKey"]: p["ParameterValue"] for p in params["Parameters"]} | {"Prefix": prefix}
        template = second_opinion.read_template(
            second_opinion.ROOT / "infra_scripts/templates" / f"{params['StackName']}.yaml"
        )
        stack = template_calls.Stack(f"{prefix}-{params['StackName']}", template, given, ACCOUNT)
        calls = template_calls.calls_of(stack)
        assert calls and [text for call in calls for text in complaints(*call)] == [] == made["complaints"]


def test_recorded_bytes_and_times_keep_their_types():
    recorded = {"Body": {"$bytes": 2}, "At": {"$time": "2026-01-01T00:00:00+00:00"}}
    sent = Replay(Moto("http://127.0.0.1:1", Path("none"))).translated(recorded)
    assert sent["Body"] == b"\0\0" and sent["At"].year == 2026
