"""GitHub's deployment role has every permission that a deployment needs.

The schemas of the resource types list the calls that CloudFormation makes for the role. The sources of notebooks and
scripts show their own calls. AWS's service authorization reference lists the actions that do not support resources.
cfn-lint and parliament include this data, so the tests need no account.
"""

import ast
import functools
import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import cfnlint
import pytest

from infra_scripts.checks import audit
from sentiment_engine.deploy.phases import PHASES
from sentiment_engine.deploy.plan import TEMPLATES as DEPLOYED
from sentiment_engine.deploy.plan import read_template
from sentiment_engine.deploy.policies import BOUNDARY, LAB, filled
from tests import ROOT
from tests.deploy.test_boto3_calls import FOUND, SERVICES, TRANSFERS, operations, service_of, sources
from tests.deploy.test_template import CASES, deployer, may, role

SCHEMAS = Path(cfnlint.__file__).parent / "data" / "schemas"
OF = f"us-east-1:{LAB['AWS::AccountId']}"
KNOWN = LAB | {"PermissionsBoundary": BOUNDARY, "LogDays": "14"}

# ARNs of the engine named lab, by type. In braces: a property that names the resource.
ARNS = {
    "AWS::ApiGatewayV2::*": "apigateway:us-east-1::/apis/1x2y",
    "AWS::Budgets::Budget": "budgets::{A}:budget/{BudgetName}",
    "AWS::CertificateManager::Certificate": "acm:{R}:certificate/1x2y",
    "AWS::CloudFront::*": "cloudfront::{A}:distribution/1X2Y",
    "AWS::CloudWatch::*Alarm": "cloudwatch:{R}:alarm:{AlarmName}",
    "AWS::CloudWatch::Dashboard": "cloudwatch::{A}:dashboard/{DashboardName}",
    "AWS::DynamoDB::Table": "dynamodb:{R}:table/{TableName}",
    "AWS::Events::Rule": "events:{R}:rule/{Name}",
    "AWS::Glue::Job": "glue:{R}:job/{Name}",
    "AWS::IAM::Role": "iam::{A}:role/{stack}-{name}-1X2Y",
    "AWS::Lambda::LayerVersion": "lambda:{R}:layer:{LayerName}:1",
    "AWS::Lambda::[!L]*": "lambda:{R}:function:lab-shutdown-endpoint",
    "AWS::Logs::LogGroup": "logs:{R}:log-group:{LogGroupName}",
    "AWS::Route53::RecordSet": "route53:::hostedzone/Z1",
    "AWS::S3::*": "s3:::{stack}-{name}-1x2y",
    "AWS::SNS::*": "sns:{R}:lab-alarms",
    "AWS::SQS::*": "sqs:{R}:lab-dead-letters",
    "AWS::Scheduler::Schedule": "scheduler:{R}:schedule/lab/{Name}",
    "AWS::Scheduler::ScheduleGroup": "scheduler:{R}:schedule-group/{Name}",
    "AWS::WAFv2::WebACL": "wafv2:us-east-1:{A}:global/webacl/{Name}/1x2y",
}
ELSEWHERE = {  # other resources that a handler needs
    "iam:PassRole": role("lab-engine-Role-1X2Y"),
    "iam:GetRole": role("lab-foundation-GlueRole-1X2Y"),
    "s3:GetObject": "arn:aws:s3:::lab-foundation-artifactsbucket-1x2y/lambdas/shutdown-endpoint.zip",
    "lambda:GetLayerVersion": f"arn:aws:lambda:{OF}:layer:lab-standby-model:1",
    "s3:GetObjectVersion": "arn:aws:s3:::lab-foundation-artifactsbucket-1x2y/lambdas/shutdown-endpoint.zip",
    "route53:ChangeResourceRecordSets": "arn:aws:route53:::hostedzone/Z1",
    "scheduler:DeleteSchedule": f"arn:aws:scheduler:{OF}:schedule/lab/1x2y",
}
PASSED_TO = {"AWS::Glue::Job": "glue.amazonaws.com", "AWS::Lambda::Function": "lambda.amazonaws.com"}
PASSED_TO |= {"AWS::Scheduler::Schedule": "scheduler.amazonaws.com"}
NEEDLESS = {  # permissions that some handlers need but ours do not, and why
    "kms:*": "Nothing is encrypted with our own key.",
    "ec2:*": "No function is in a VPC.",
    "elasticfilesystem:*": "No function mounts a file system.",
    "s3files:*": "No function mounts a file system.",
    "kinesis:*": "The table has no stream.",
    "firehose:*": "Logs are not streamed.",
    "s3tables:*": "No bucket has metadata tables.",
    "acm-pca:*": "The certificate is a public one.",
    "s3:REST.PUT.OBJECT": "It is not an IAM action.",
    "AWS::ApiGatewayV2::Api s3:getObject": "The API is not imported from a file.",
    "AWS::DynamoDB::Table s3:*": "The table is not imported.",
    "AWS::DynamoDB::Table logs:*": "The table is not imported.",
    "AWS::DynamoDB::Table iam:CreateServiceLinkedRole": "The table has no replicas.",
    "AWS::ApiGatewayV2::Integration iam:PassRole": "Separate permissions allow calling the functions.",
    "AWS::Events::Rule iam:PassRole": "Separate permissions allow the rules to call functions.",
    "AWS::S3::Bucket iam:PassRole": "No bucket is replicated.",
    "AWS::SNS::* iam:*": "Deliveries are neither logged nor streamed.",
    "AWS::IAM::Role iam:AttachRolePolicy": "Roles have only inline policies; an attached policy could allow anything.",
    "AWS::IAM::Role iam:DetachRolePolicy": "Roles have only inline policies.",
    "AWS::IAM::Role iam:DeleteRolePermissionsBoundary": "The boundary must not be removed.",
    "AWS::IAM::Role iam:UpdateRole*": "Roles have AWS's default description and session length.",
    "payments:GetConnectedAccount": "The reference lists no such IAM action.",
    "logs:*IndexPolicy": "No log field is indexed.",
    "logs:DeleteResourcePolicy": "The policy that lets AWS write access logs belongs to the account.",
    "AWS::Lambda::Function lambda:PassCapacityProvider": "Functions run on Lambda's own capacity.",
    "AWS::Lambda::Function lambda:GetCodeSigningConfig": "Code is not signed.",
    "AWS::Lambda::Function lambda:AssociateRuntimeAlias": "The reference lists no such IAM action.",
}


@functools.cache
def reference() -> dict[str, dict[str, list[str]]]:
    "Read the resource types of each action: service → action in lower case → types, a required one with *."
    audit.tool("parliament")
    (path,) = audit.PLACE.glob("lib/python3*/site-packages/parliament/iam_definition.json")
    found = {}
    for service in json.loads(path.read_text()):
        actions = found.setdefault(service["prefix"], {})
        for action in service["privileges"]:
            kinds = [kind["resource_type"] for kind in action["resource_types"] if kind["resource_type"]]
            actions[action["privilege"].lower()] = kinds
    return found


def knows_no_resource(action: str) -> bool:
    service, name = action.split(":")
    return reference().get(service, {}).get(name.lower()) == []


@functools.cache
def policy() -> dict:
    "Join the two policies of the role."
    documents = deployer("DeployRole"), deployer("RecordsOfThePage")
    return {"Version": "2012-10-17", "Statement": [s for d in documents for s in d["Statement"]]}


def handlers(kind: str) -> Iterator[str]:
    "List what the handlers of a resource type need."
    files = json.loads((SCHEMAS / "providers" / "us-east-1.json").read_text())
    schema = json.loads((SCHEMAS / "resources" / f"{files[kind]}.json").read_text())
    for what in ("create", "read", "update", "delete"):
        yield from schema["handlers"].get(what, {}).get("permissions", ())


def is_needless(kind: str, action: str) -> bool:
    return any(fnmatch(action, known) or fnmatch(f"{kind} {action}", known) for known in NEEDLESS)


RESOURCES = [
    (file, name, resource)
    for file in DEPLOYED
    for name, resource in read_template(ROOT / "infra_scripts/templates" / file)["Resources"].items()
]
STACKS = dict(zip(DEPLOYED, ("lab-foundation", "lab-site", "lab-engine", "lab-monitoring"), strict=True))


def arn(file: str, name: str, kind: str, properties: dict) -> str:
    (pattern,) = [pattern for known, pattern in ARNS.items() if fnmatch(kind, known)]
    inner = [v for v in properties.values() if isinstance(v, dict)]
    named = {k: v for each in (*inner, properties) for k, v in each.items() if isinstance(v, str)}
    name = name.lower() if kind.startswith("AWS::S3") else name
    return "arn:aws:" + pattern.format(A=LAB["AWS::AccountId"], R=OF, stack=STACKS[file], name=name, **named)


@pytest.mark.parametrize("file", DEPLOYED)
def test_the_deployer_has_the_permissions_that_cloudformation_needs(file):
    cases = CASES | dict.fromkeys(read_template(ROOT / "infra_scripts/templates" / file)["Conditions"], True)
    denied = []
    for name, resource in ((n, r) for f, n, r in RESOURCES if f == file):
        kind, properties = resource["Type"], filled(resource.get("Properties", {}), KNOWN, cases)
        own = arn(file, name, kind, properties)
        for action in dict.fromkeys(a for a in handlers(kind) if not is_needless(kind, a)):
            on = "*" if knows_no_resource(action) else ELSEWHERE.get(action, own)
            context = {"iam_PermissionsBoundary": BOUNDARY, "iam_PassedToService": PASSED_TO.get(kind, "")}
            denied += [] if may(policy(), action, on, **context) else [(name, action, on)]
    assert not denied


def test_every_exception_is_still_needed():
    asked = {(r["Type"], action) for _, _, r in RESOURCES for action in handlers(r["Type"])}
    for known in NEEDLESS:
        assert any(fnmatch(action, known) or fnmatch(f"{kind} {action}", known) for kind, action in asked), known


# Actions that IAM and botocore name differently.
ACTIONS = {
    "s3:HeadObject": ("s3:GetObject",),
    "s3:HeadBucket": ("s3:ListBucket",),
    "s3:ListObjectsV2": ("s3:ListBucket",),
    "s3:ListObjectVersions": ("s3:ListBucketVersions",),
    "s3:DeleteObjects": ("s3:DeleteObject", "s3:DeleteObjectVersion"),
    "s3:upload_file": ("s3:PutObject", "s3:AbortMultipartUpload"),
    "s3:download_file": ("s3:GetObject",),
    "s3:upload_fileobj": ("s3:PutObject", "s3:AbortMultipartUpload"),
    "s3:download_fileobj": ("s3:GetObject",),
    "s3:copy": ("s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"),
    "s3:CreateMultipartUpload": ("s3:PutObject",),
    "s3:UploadPart": ("s3:PutObject",),
    "s3:UploadPartCopy": ("s3:PutObject", "s3:GetObject"),
    "s3:CompleteMultipartUpload": ("s3:PutObject",),
    "s3:ListParts": ("s3:ListMultipartUploadParts",),
    "s3:ListMultipartUploads": ("s3:ListBucketMultipartUploads",),
    "lambda:Invoke": ("lambda:InvokeFunction",),
    "sagemaker-runtime:InvokeEndpoint": ("sagemaker:InvokeEndpoint",),
    "service-quotas:ListServiceQuotas": ("servicequotas:ListServiceQuotas",),
    "service-quotas:ListAWSDefaultServiceQuotas": ("servicequotas:ListAWSDefaultServiceQuotas",),
}
PLACES = {  # our resources of each type
    ("s3", "bucket"): ["s3:::lab-foundation-lakebucket-1x2y", "s3:::lab-site-sitebucket-1x2y"],
    ("s3", "object"): ["s3:::lab-foundation-artifactsbucket-1x2y/x", "s3:::lab-site-sitebucket-1x2y/404.html"],
    ("cloudformation", "stack"): [f"cloudformation:{OF}:stack/{name}/1" for name in STACKS.values()],
    ("cloudfront", "distribution"): [f"cloudfront::{LAB['AWS::AccountId']}:distribution/1X2Y"],
    ("lambda", "function"): [f"lambda:{OF}:function:lab-shutdown-endpoint"],
    ("logs", "log-group"): [
        *(f"logs:{OF}:log-group:/aws/sagemaker/{name}" for name in ("TrainingJobs", "Endpoints/lab-1")),
        f"logs:{OF}:log-group:/aws/lambda/lab-shutdown-endpoint",
    ],
    ("logs", "log-stream"): [f"logs:{OF}:log-group:/aws/sagemaker/TrainingJobs:log-stream:lab-training-1/algo-1"],
    ("glue", "job"): [f"glue:{OF}:job/lab-clean-reviews"],
    ("ssm", "parameter"): [f"ssm:{OF}:parameter/lab/model", f"ssm:{OF}:parameter/lab/textbelt-key"],
    ("dynamodb", "table"): [f"dynamodb:{OF}:table/lab-state"],
    ("scheduler", "schedule"): [f"scheduler:{OF}:schedule/lab/1"],
    ("sqs", "queue"): [f"sqs:{OF}:lab-dead-letters"],
    ("sns", "topic"): [f"sns:{OF}:lab-alarms"],
    ("route53", "hostedzone"): ["route53:::hostedzone/Z1"],
}
BY_OTHERS = {"sns:Publish": "Only functions send messages."}


def is_deployments(where: str) -> bool:
    "Check whether deployment or teardown runs a source; the local cloud does not count."
    if where.startswith("sentiment_engine/"):
        return not where.startswith("sentiment_engine/local/")
    return where[:2] in PHASES


def methods() -> Iterator[tuple[str, str, str]]:  # place, service (empty: unknown there) and method
    "List the client methods that the sources call or pass on."
    yield from ((where, service, method) for where, _, service, method, *_ in FOUND)
    for where, code in sources():
        for node in (n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Attribute)):
            if service := service_of(node.value):
                yield where, service, node.attr


def made() -> Iterator[tuple[str, str]]:
    "List the sources' calls by IAM action, with their places."
    for where, service, method in methods():
        fitting = [service] if service else [s for s in SERVICES.split() if method in operations(s)][:1]
        for name in fitting if is_deployments(where) else ():
            transfer = name == "s3" and method in TRANSFERS
            if operation := method if transfer else operations(name).get(method):
                called = f"{name}:{operation}"
                yield from ((action, where) for action in ACTIONS.get(called, (called,)))


def places(action: str) -> list[str]:
    "List our resources on which an action is allowed or not."
    service, name = action.split(":")
    kinds = reference()[service][name.lower()]
    needed = [kind.rstrip("*") for kind in kinds if kind.endswith("*")] or list(kinds)
    if service == "sagemaker":
        return [f"arn:aws:sagemaker:{OF}:{kind}/lab-x" for kind in needed] or ["*"]
    return [f"arn:aws:{on}" for kind in needed for on in PLACES.get((service, kind), ())] or ["*"]


def test_the_deployer_may_make_every_call_in_notebooks_and_scripts():
    calls = {}
    for action, where in made():
        calls.setdefault(action, where)
    assert len(calls) > 60 and {"cloudformation:CreateStack", "sagemaker:CreateEndpoint"} <= calls.keys()
    denied = [
        (action, on, where)
        for action, where in sorted(calls.items())
        for on in places(action)
        if action not in BY_OTHERS and not action.startswith("sts:") and not may(policy(), action, on)
    ]
    assert not denied


@pytest.mark.parametrize(
    ("service", "may_be_made"),
    [("ops.apigateway.amazonaws.com", True), ("sagemaker.amazonaws.com", False), ("autoscaling.amazonaws.com", False)],
)
def test_the_deployer_may_create_only_one_service_linked_role(service, may_be_made):
    "API Gateway's, by its developer guide. Others belong to unused features: replicas, scaling, streams."
    action, on = "iam:CreateServiceLinkedRole", role(f"aws-service-role/{service}/AWSServiceRoleForSomething")
    assert may(policy(), action, on, iam_AWSServiceName=service) is may_be_made
    assert not may(policy(), action, on, iam_AWSServiceName="elasticmapreduce.amazonaws.com")
    assert not may(policy(), action, role("lab-engine-Role-1X2Y"), iam_AWSServiceName=service)


@pytest.mark.parametrize("name", ["Boundary", "DeployRole"])
def test_a_kms_key_may_be_used_only_through_ssm(name):
    on = f"arn:aws:kms:{OF}:key/1x2y"
    assert may(deployer(name), "kms:Decrypt", on, kms_ViaService="ssm.us-east-1.amazonaws.com")
    for way in ({"kms_ViaService": "s3.us-east-1.amazonaws.com"}, {}):
        assert not may(deployer(name), "kms:Decrypt", on, **way)


def test_the_deployer_may_not_simulate_policies():
    "SageMaker's SDK would then check the training role for permissions that our training does not need."
    for name in ("Boundary", "DeployRole"):
        assert not may(deployer(name), "iam:SimulatePrincipalPolicy", role("lab-foundation-TrainingRole-1X2Y"))
