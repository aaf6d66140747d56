"The engine's template is valid, grants few permissions, and deploys, updates and deletes on the local cloud."

import base64
import hashlib
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest
import yaml
from botocore.stub import Stubber
from ministack.core.iam_evaluator import EvalContext, evaluate, parse_policy_document

from sentiment_engine.deploy.account import SHARES
from sentiment_engine.deploy.foundation import foundation_parameters, site_parameters
from sentiment_engine.deploy.packaging import parameter_of, stack_parameters, upload_packages
from sentiment_engine.deploy.plan import read_template, resources_of
from sentiment_engine.deploy.policies import BOUNDARY, LAB, NOTHING, filled
from sentiment_engine.deploy.stacks import INLINE_LIMIT, delete_stack, deploy_stack, template_argument, upload_template
from sentiment_engine.deploy.standby import upload_standby
from sentiment_engine.service.metrics import METRICS, NAMESPACE
from sentiment_engine.settings import PREFIX, Settings
from tests import ROOT

TEMPLATE = ROOT / "infra_scripts/templates/backend.yaml"
TEMPLATES = ("foundation.yaml", "site.yaml", "backend.yaml", "monitoring.yaml", "deployer.yaml")
PAGE = "http://127.0.0.1:8080"
SECRET = "a secret between CloudFront and the API"
OURS = Settings(prefix="template-test", table="TemplateTest", idle_minutes=5.0, site_origin=PAGE)
HOLDS = {"Realtime", "HasEndpoint", "HasStandby", "CountsUsage"}  # the conditions that hold for a default deployment


class Loader(yaml.SafeLoader):
    "Reads CloudFormation's short forms (!Ref, !Sub …) as their arguments."


def _short_form(loader, tag, node):
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    return loader.construct_sequence(node, deep=True)


Loader.add_multi_constructor("!", _short_form)
template = yaml.load(TEMPLATE.read_text(), Loader)  # derives from SafeLoader
resources = template["Resources"]
site_resources = yaml.load((ROOT / "infra_scripts/templates/site.yaml").read_text(), Loader)["Resources"]


def of_type(kind: str) -> dict:
    return {name: r.get("Properties", {}) for name, r in resources.items() if r["Type"] == kind}


def statements() -> list[tuple[str, dict]]:
    "List the statements of every role's inline policies, including both sides of a condition."
    roles = of_type("AWS::IAM::Role")
    found = [(n, s) for n, r in roles.items() for p in r["Policies"] for s in p["PolicyDocument"]["Statement"]]
    sides = [(n, side) for n, s in found if isinstance(s, list) for side in s[1:] if isinstance(side, dict)]
    return [(n, s) for n, s in found if isinstance(s, dict)] + sides


def test_the_templates_pass_cfn_lint():
    lint = [sys.executable, "-c", "import cfnlint.runner, sys; sys.exit(cfnlint.runner.main())"]
    templates = [str(ROOT / "infra_scripts/templates" / name) for name in TEMPLATES]
    done = subprocess.run([*lint, *templates], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_function_has_its_own_role_and_log_group():
    functions = of_type("AWS::Lambda::Function")
    assert len(functions) == 8 == len({f["Role"] for f in functions.values()})
    assert len({f["LoggingConfig"]["LogGroup"] for f in functions.values()}) == 8
    assert all(group["RetentionInDays"] for group in of_type("AWS::Logs::LogGroup").values())


def test_the_table_expires_numbers_and_is_billed_on_demand():
    table = resources["Table"]["Properties"]
    assert table["TimeToLiveSpecification"] == {"AttributeName": "expiresAt", "Enabled": True}
    assert table["BillingMode"] == "PAY_PER_REQUEST"


# Actions without resources in IAM, the list of log groups, which takes all or none, and phone numbers without an ARN.
WITHOUT_RESOURCE = {
    "logs:DescribeLogGroups",
    "scheduler:ListSchedules",
    "sagemaker:ListEndpoints",
    "sagemaker:ListEndpointConfigs",
    "sns:Publish",
}


def test_no_role_has_full_access():
    for role, statement in statements():
        assert not [a for a in statement["Action"] if "*" in a], role
        if statement["Resource"] == "*":
            assert set(statement["Action"]) <= WITHOUT_RESOURCE, role


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_wildcard_resource_has_a_comment_with_the_reason(name):
    lines = (ROOT / "infra_scripts/templates" / name).read_text().splitlines()
    for i, line in enumerate(lines):
        if re.search(r'Resource: "\*"', line):
            before = lines[max(0, i - 4) : i]
            assert any(part.lstrip().startswith("#") for part in before), f"{name}:{i + 1} gives no reason"


def test_reserved_concurrency_matches_the_requested_quota():
    functions = of_type("AWS::Lambda::Function").values()
    shares = {f["FunctionName"].removeprefix("${Prefix}-"): f["ReservedConcurrentExecutions"][1] for f in functions}
    assert shares == SHARES


@pytest.mark.parametrize("name", ["site.yaml", "foundation.yaml"])
def test_buckets_are_private_encrypted_tls_only_and_expire_objects(name):
    found = yaml.load((ROOT / "infra_scripts/templates" / name).read_text(), Loader)["Resources"]
    policies = [r["Properties"] for r in found.values() if r["Type"] == "AWS::S3::BucketPolicy"]
    for bucket, resource in found.items():
        if resource["Type"] == "AWS::S3::Bucket":
            properties = resource["Properties"]
            assert "BucketName" not in properties  # CloudFormation's own names cannot be taken
            assert all(properties["PublicAccessBlockConfiguration"].values()) and properties["BucketEncryption"]
            assert properties["LifecycleConfiguration"]["Rules"]
            (policy,) = [p["PolicyDocument"]["Statement"] for p in policies if p["Bucket"] == bucket]
            denied = [s for s in policy if s["Effect"] == "Deny"]
            assert denied[0]["Condition"]["Bool"] == {"aws:SecureTransport": "false"}


def test_delete_invoke_and_send_are_limited_to_roles_that_need_them():
    allowed = {}
    for role, statement in statements():
        for action in statement["Action"]:
            allowed.setdefault(action, set()).add(role.removesuffix("Role"))
    busy = {"NotificationAndShutdownScheduler", "ReconcileModelService"}
    assert allowed["sns:Publish"] == busy  # only if SNS sends
    assert allowed["sagemaker:CreateEndpoint"] == busy | {"StartModelService"}
    assert allowed["sagemaker:DeleteEndpoint"] == busy | {"StartModelService", "ShutdownEndpoint"}
    assert allowed["sagemaker:InvokeEndpoint"] == busy | {"InvokeSagemakerEndpoint"}
    assert "dynamodb:PutItem" not in allowed


def test_only_names_with_our_prefix_can_be_created_or_deleted():
    for role, statement in statements():
        if any(a.startswith("sagemaker:") and a not in WITHOUT_RESOURCE for a in statement["Action"]):
            named = statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]
            assert all(re.search(r"/\$\{Prefix\}-\*$", r) for r in named), role


def call(url: str, method: str = "GET", body=None, **headers: str) -> tuple[int, dict, str]:
    "Make an HTTP request and return status, headers and body."
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} | headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, {k.lower(): v for k, v in response.headers.items()}, response.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, {k.lower(): v for k, v in e.headers.items()}, e.read().decode()


@pytest.fixture(scope="module")
def artifacts(cloud):
    "The bucket of the templates and the zips."
    cloud.client("s3").create_bucket(Bucket="template-test-artifacts")
    return "template-test-artifacts"


@pytest.fixture(scope="module")
def site(cloud, artifacts):
    "The site's stack, deployed."
    cloudformation, s3 = cloud.client("cloudformation"), cloud.client("s3")
    stored = upload_template(s3, artifacts, ROOT / "infra_scripts/templates/site.yaml")
    given = site_parameters(OURS, SECRET)
    yield deploy_stack(cloudformation, "template-test-site", stored, given, {"Project": OURS.prefix})
    delete_stack(cloudformation, "template-test-site")


@pytest.fixture(scope="module")
def deployed(cloud, artifacts, site):
    "The outputs of the site's and the engine's stack, which is deployed and then updated."
    s3, cloudformation = cloud.client("s3"), cloud.client("cloudformation")
    keys = upload_packages(s3, artifacts, ROOT / "lambdas")
    keys |= upload_standby(s3, artifacts, ROOT / "lambdas", None, locked=False)
    tags, stored = {"Project": OURS.prefix}, upload_template(s3, artifacts, TEMPLATE)
    foundation = ROOT / "infra_scripts/templates/foundation.yaml"
    deploy_stack(cloudformation, "template-test-foundation", foundation, foundation_parameters(OURS), tags)
    plain = stack_parameters(OURS, artifacts, keys, site, SECRET)
    first = deploy_stack(cloudformation, "template-test-engine", stored, plain | {"IdleMinutes": "6"}, tags)
    second = deploy_stack(cloudformation, "template-test-engine", stored, plain, tags)
    assert first == second
    _update_that_fails(cloudformation, stored, plain, tags)
    yield site | second
    delete_stack(cloudformation, "template-test-engine")
    delete_stack(cloudformation, "template-test-foundation")


def _update_that_fails(cloudformation, stored: str, given: dict, tags: dict):
    "Update with a missing zip; everything is rolled back."
    wrong = given | {parameter_of("reconcile-model-service"): "lambdas/nothing.zip", "IdleMinutes": "7"}
    with pytest.raises(RuntimeError, match=r"UPDATE_ROLLBACK_COMPLETE.*ReconcileModelService"):
        deploy_stack(cloudformation, "template-test-engine", stored, wrong, tags)


def told(*events: tuple[str, str, str]) -> list[dict]:
    "Make events of the stack `reasons` like CloudFormation's, newest first."
    fixed = {"StackId": "arn:reasons", "StackName": "reasons", "EventId": "1", "Timestamp": "2026-01-01T00:00:00Z"}
    return [
        fixed
        | {"LogicalResourceId": name, "PhysicalResourceId": f"arn:{name}"}
        | {"ResourceStatus": status, "ResourceStatusReason": why}
        for name, status, why in events
    ]


@contextmanager
def rolled_back(cloudformation) -> Iterator[Stubber]:
    "Answer as CloudFormation does when the creation of the stack `reasons` is rolled back."
    stack = {"StackName": "reasons", "CreationTime": "2026-01-01T00:00:00Z", "StackStatus": "ROLLBACK_COMPLETE"}
    with Stubber(cloudformation) as stub:
        for _ in range(2):
            stub.add_client_error("describe_stacks", "ValidationError", "Stack reasons does not exist")
        stub.add_response("create_stack", {"StackId": "arn:reasons"})
        stub.add_response("describe_stacks", {"Stacks": [stack]})
        yield stub


def test_a_failure_reports_its_cause_without_cancelled_or_older_events():
    cloudformation = boto3.client("cloudformation", "us-east-1")
    cancelled = [(f"Function{n}", "CREATE_FAILED", "Resource creation cancelled") for n in range(6)]
    earlier = [("Table", "DELETE_FAILED", "of last week"), ("reasons", "DELETE_IN_PROGRESS", "User Initiated")]
    newest = told(("reasons", "ROLLBACK_IN_PROGRESS", "The following resource(s) failed"), *cancelled[:4])
    begun = ("reasons", "CREATE_IN_PROGRESS", "User Initiated")
    oldest = told(
        *cancelled[4:], ("Role", "CREATE_FAILED", "second"), ("Api", "CREATE_FAILED", "first"), begun, *earlier
    )
    with rolled_back(cloudformation) as stub:
        stub.add_response("describe_stack_events", {"StackEvents": newest, "NextToken": "2"})
        stub.add_response("describe_stack_events", {"StackEvents": oldest})
        with pytest.raises(RuntimeError, match=r"ROLLBACK_COMPLETE. Api: first; Role: second$"):
            deploy_stack(cloudformation, "reasons", ROOT / "infra_scripts/templates/foundation.yaml")


@pytest.mark.parametrize("form", ["{}", "Resource handler returned message: \"Access denied for operation '{}'.\""])
@pytest.mark.parametrize("resource", ["Distribution", "SiteAccess", "SiteHeaders"])
def test_an_account_without_cloudfront_access_gets_instructions(resource, form):
    refusal = (
        "Your account must be verified before you can add new CloudFront resources. To verify your account, please "
        "contact AWS Support (https://console.aws.amazon.com/support/home#/) and include this error message. "
        "(Service: AmazonCloudFront; Status Code: 403; Error Code: AccessDenied)"
    )
    cloudformation = boto3.client("cloudformation", "us-east-1")
    begun = ("reasons", "CREATE_IN_PROGRESS", "User Initiated")
    with rolled_back(cloudformation) as stub:
        refused = told((resource, "CREATE_FAILED", form.format(refusal)), begun)
        stub.add_response("describe_stack_events", {"StackEvents": refused})
        with pytest.raises(RuntimeError, match=rf"{resource}: .*must be verified") as failed:
            deploy_stack(cloudformation, "reasons", ROOT / "infra_scripts/templates/site.yaml")
    for words in ("only AWS Support can", "Account and billing", "nothing was charged", "the same command again"):
        assert words in str(failed.value)


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-1"])
def test_a_template_url_uses_the_regional_s3_address(region):
    s3 = boto3.client("s3", region, aws_access_key_id="test", aws_secret_access_key="test")
    body = (ROOT / "infra_scripts/templates/site.yaml").read_bytes()
    checksum = base64.b64encode(hashlib.sha256(body).digest()).decode()
    with Stubber(s3) as stub:
        stub.add_response("head_object", {"ChecksumSHA256": checksum})  # it exists: nothing is sent
        address = upload_template(s3, "artifacts", ROOT / "infra_scripts/templates/site.yaml")
    assert address == f"https://s3.{region}.amazonaws.com/artifacts/templates/site-{_mark(body)}.yaml"


def _mark(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:16]


def test_a_foreign_object_with_the_name_of_a_template_is_not_deployed(cloud):
    s3, template = cloud.client("s3"), ROOT / "infra_scripts/templates/site.yaml"
    s3.create_bucket(Bucket="template-tampered")
    key = upload_template(s3, "template-tampered", template).partition("template-tampered/")[2]
    first = s3.head_object(Bucket="template-tampered", Key=key)["LastModified"]
    upload_template(s3, "template-tampered", template)
    assert s3.head_object(Bucket="template-tampered", Key=key)["LastModified"] == first
    s3.put_object(Bucket="template-tampered", Key=key, Body=b"Resources: {}")
    upload_template(s3, "template-tampered", template)
    assert s3.get_object(Bucket="template-tampered", Key=key)["Body"].read() == template.read_bytes()


NAMES_OF_THE_ACCOUNT = {  # types whose names are unique across regions, and the property with the name
    "AWS::Budgets::Budget": "BudgetName",
    "AWS::CloudWatch::Dashboard": "DashboardName",
    "AWS::CloudFront::OriginAccessControl": "Name",
    "AWS::CloudFront::ResponseHeadersPolicy": "Name",
    "AWS::IAM::ManagedPolicy": "ManagedPolicyName",
    "AWS::IAM::Role": "RoleName",
    "AWS::S3::Bucket": "BucketName",
}


def _named(value, name: str) -> list:
    "Find the values of a key at any depth."
    if isinstance(value, list):
        return [found for each in value for found in _named(each, name)]
    if not isinstance(value, dict):
        return []
    return [v for k, v in value.items() if k == name] + _named(list(value.values()), name)


@pytest.mark.parametrize("name", TEMPLATES)
def test_names_in_two_regions_of_one_account_do_not_collide(name):
    "A firewall needs no region: CloudFront's is made in us-east-1 only."
    found = read_template(ROOT / "infra_scripts/templates" / name)["Resources"].values()
    for kind, key in NAMES_OF_THE_ACCOUNT.items():
        for resource in (r["Properties"] for r in found if r["Type"] == kind):
            top = {k: v for k, v in resource.items() if k not in ("Policies", "Tags")}
            assert all("${AWS::Region}" in str(value) for value in _named(top, key)), kind


def test_a_failed_update_changes_nothing(cloud, deployed):
    for name in ("is-model-service-running", "reconcile-model-service"):
        function = cloud.client("lambda").get_function_configuration(FunctionName=f"template-test-{name}")
        assert function["Environment"]["Variables"]["SENTIMENT_IDLE_MINUTES"] == "5"
    stack = cloud.client("cloudformation").describe_stacks(StackName="template-test-engine")["Stacks"][0]
    given = {p["ParameterKey"]: p["ParameterValue"] for p in stack["Parameters"]}
    assert given["IdleMinutes"] == "5"


def test_stacks_do_not_show_the_secret(cloud, deployed):
    for name in ("template-test-site", "template-test-engine"):
        (stack,) = cloud.client("cloudformation").describe_stacks(StackName=name)["Stacks"]
        assert "OriginSecret" in {p["ParameterKey"] for p in stack["Parameters"]} and SECRET not in str(stack)


def test_a_stack_without_our_tag_is_not_changed(cloud, deployed):
    with pytest.raises(RuntimeError, match="is not ours, because it lacks the tag Project=other"):
        deploy_stack(cloud.client("cloudformation"), "template-test-engine", TEMPLATE, {}, {"Project": "other"})


def test_the_stack_has_the_expected_outputs(deployed):
    of_site = {"ApiId", "ApiUrl", "SiteBucket", "DistributionId", "SiteOrigin"}
    assert set(deployed) == of_site | {"SiteUrl", "Table", "DeadLetters"}
    assert deployed["SiteUrl"] == PAGE and deployed["Table"] == "TemplateTest" and not deployed["ApiUrl"].endswith("/")


def test_functions_that_create_endpoints_get_the_capture_settings(cloud, deployed):
    makers = {"start-model-service", "notification-and-shutdown-scheduler", "reconcile-model-service"}
    for name in makers:
        function = cloud.client("lambda").get_function_configuration(FunctionName=f"template-test-{name}")
        told = function["Environment"]["Variables"]
        assert told["CAPTURES_ADDRESS"] == "s3://template-test-artifacts/captures"
        assert told["SENTIMENT_CAPTURE_PERCENT"] == "20" and told["SENTIMENT_CAPTURE_TEXT"] == "false"


def test_the_deployed_api_answers_status_requests(deployed):
    status, _, body = call(deployed["ApiUrl"] + "/status")
    assert status == 200 and json.loads(body)["state"] == "STOPPED" and json.loads(body)["idleMinutes"] == 5


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", "/predict", {"inputs": ["Great."] * 26}, (409, "not_in_service")),
        ("POST", "/predict", {"inputs": ""}, (400, "empty_text")),
        ("POST", "/start", {"phone": "12345"}, (400, "invalid_phone")),
        ("POST", "/start", {}, (503, "no_model")),
        ("POST", "/extend", None, (409, "not_in_service")),
        ("DELETE", "/status", None, (405, "method_not_allowed")),
        ("GET", "/predict", None, (405, "method_not_allowed")),
        ("GET", "/nothing", None, (404, "not_found")),
    ],
)
def test_all_errors_have_the_same_format(deployed, method, path, body, expected):
    status, _, text = call(deployed["ApiUrl"] + path, method, body)
    error = json.loads(text)["error"]
    assert (status, error["code"]) == expected and error["message"]


def _physical(cloud, stack: str = "template-test-engine") -> dict[str, str]:
    "Map the names in the template to the cloud's names."
    pages = cloud.client("cloudformation").get_paginator("list_stack_resources").paginate(StackName=stack)
    found = pages.search("StackResourceSummaries[]")
    return {r["LogicalResourceId"]: r["PhysicalResourceId"] for r in found}


def test_the_cloud_contains_the_resources_of_the_templates(cloud, deployed, site):
    assert _physical(cloud).keys() == resources_of(read_template(TEMPLATE), {"StandbyModelKey": "a.zip"}).keys()
    of_site = resources_of(read_template(ROOT / "infra_scripts/templates/site.yaml"), {})
    assert _physical(cloud, "template-test-site").keys() == of_site.keys()


def test_deployed_functions_match_the_template(cloud, deployed):
    client, physical = cloud.client("lambda"), _physical(cloud)
    for name, wanted in of_type("AWS::Lambda::Function").items():
        found = client.get_function_configuration(FunctionName=physical[name])
        for field in ("MemorySize", "Timeout", "Handler", "Architectures", "Description"):
            given = template["Parameters"].get(str(wanted[field]), {"Default": wanted[field]})
            assert found[field] == given["Default"], (name, field)
        variables = found.get("Environment", {}).get("Variables", {})
        assert variables.keys() == wanted.get("Environment", {}).get("Variables", {}).keys()
        assert found["Role"].endswith("/" + physical[wanted["Role"].removesuffix(".Arn")])
        assert found["LoggingConfig"]["LogGroup"] == physical[wanted["LoggingConfig"]["LogGroup"]]
        share = client.get_function_concurrency(FunctionName=physical[name])["ReservedConcurrentExecutions"]
        assert share == wanted["ReservedConcurrentExecutions"][1]
    for name, wanted in of_type("AWS::Lambda::EventInvokeConfig").items():
        found = client.get_function_event_invoke_config(
            FunctionName=physical[wanted["FunctionName"]], Qualifier="$LATEST"
        )
        assert found["DestinationConfig"]["OnFailure"]["Destination"].endswith("template-test-dead-letters"), name


def test_deployed_tables_and_logs_match_the_template(cloud, deployed, site):
    dynamodb, physical = cloud.client("dynamodb"), _physical(cloud)
    numbers, money = ("TemplateTest", "DISABLED"), ("TemplateTest-usage", "ENABLED")  # no number outlives its deletion
    for table, backed_up in (numbers, money):
        mode = dynamodb.describe_table(TableName=table)["Table"]["BillingModeSummary"]["BillingMode"]
        backups = dynamodb.describe_continuous_backups(TableName=table)["ContinuousBackupsDescription"]
        recovery = backups["PointInTimeRecoveryDescription"]["PointInTimeRecoveryStatus"]
        assert (mode, recovery) == ("PAY_PER_REQUEST", backed_up)
    ttl = dynamodb.describe_time_to_live(TableName="TemplateTest")["TimeToLiveDescription"]
    assert ttl == {"TimeToLiveStatus": "ENABLED", "AttributeName": "expiresAt"}
    for name in of_type("AWS::Logs::LogGroup"):
        groups = cloud.client("logs").describe_log_groups(logGroupNamePrefix=physical[name])["logGroups"]
        assert groups[0]["retentionInDays"] == 14
    queue = cloud.client("sqs").get_queue_attributes(QueueUrl=physical["DeadLetters"], AttributeNames=["All"])
    assert queue["Attributes"]["MessageRetentionPeriod"] == "1209600"
    s3, bucket = cloud.client("s3"), site["SiteBucket"]
    assert all(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values())
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    rules = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    wanted = site_resources["SiteBucket"]["Properties"]["LifecycleConfiguration"]["Rules"]
    assert {r["ID"] for r in rules} == {r["Id"] for r in wanted}
    assert [r["NoncurrentVersionExpiration"] for r in rules[1:]] == [{"NoncurrentDays": 30}]
    policy = json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])
    assert {s["Sid"] for s in policy["Statement"]} == {"ReadByTheDistribution", "TlsOnly"}


def test_the_deployed_api_matches_the_template(cloud, deployed):
    physical, gateway = _physical(cloud), cloud.client("apigatewayv2")
    routes = {r["RouteKey"] for r in gateway.get_routes(ApiId=deployed["ApiId"])["Items"]}
    assert routes == {r["RouteKey"] for r in of_type("AWS::ApiGatewayV2::Route").values()}
    (stage,) = gateway.get_stages(ApiId=deployed["ApiId"])["Items"]
    wanted = resources["ApiStage"]["Properties"]
    for name, value in wanted["DefaultRouteSettings"].items():
        assert stage["DefaultRouteSettings"][name] == value
    assert stage["AccessLogSettings"]["DestinationArn"].rstrip(":*").endswith(physical["ApiLogs"])


def test_the_deployed_site_matches_the_template(cloud, site):
    physical, cdn = _physical(cloud, "template-test-site"), cloud.client("cloudfront")
    config = cdn.get_distribution_config(Id=physical["Distribution"])["DistributionConfig"]
    bucket, api = config["Origins"]["Items"]
    assert bucket["OriginAccessControlId"] == physical["SiteAccess"] and not config.get("WebACLId")
    assert api["DomainName"] == f"{physical['Api']}.execute-api.us-east-1.amazonaws.com"
    assert api["CustomHeaders"]["Items"] == [{"HeaderName": "x-origin-secret", "HeaderValue": SECRET}]
    assert config["DefaultCacheBehavior"]["ResponseHeadersPolicyId"] == physical["SiteHeaders"]
    errors = {e["ErrorCode"]: e for e in config["CustomErrorResponses"]["Items"]}
    for status in (403, 404):
        assert (errors[status]["ResponseCode"], errors[status]["ResponsePagePath"]) == ("404", "/404.html")
    for status in (500, 502, 503, 504):
        assert errors[status]["ErrorCachingMinTTL"] == 2 and not errors[status].get("ResponsePagePath")
    address = f"https://{cdn.get_distribution(Id=site['DistributionId'])['Distribution']['DomainName']}"
    assert site["SiteOrigin"] == address
    policy = cdn.get_response_headers_policy_config(Id=physical["SiteHeaders"])["ResponseHeadersPolicyConfig"]
    assert policy["CustomHeadersConfig"]["Items"][0]["Header"] == "permissions-policy"
    said = policy["SecurityHeadersConfig"]["ContentSecurityPolicy"]["ContentSecurityPolicy"]
    assert "connect-src 'self';" in said
    assert said.startswith("default-src 'none';")


def test_deployed_roles_and_rules_match_the_template(cloud, deployed):
    iam, events, physical = cloud.client("iam"), cloud.client("events"), _physical(cloud)
    for name, wanted in of_type("AWS::IAM::Role").items():
        (policy,) = wanted["Policies"]
        found = iam.get_role_policy(RoleName=physical[name], PolicyName=policy["PolicyName"])["PolicyDocument"]
        each = policy["PolicyDocument"]["Statement"]
        sent = [s if isinstance(s, dict) else s[1 if s[0] in HOLDS else 2] for s in each]
        sent = [s["Action"] for s in sent if isinstance(s, dict)]
        assert [s["Action"] for s in found["Statement"]] == sent, name
    pattern = json.loads(events.describe_rule(Name="template-test-endpoint-changed")["EventPattern"])
    assert pattern["detail"]["EndpointName"] == [{"prefix": "template-test-"}]
    assert events.describe_rule(Name="template-test-every-five-minutes")["ScheduleExpression"] == "rate(5 minutes)"
    assert cloud.client("scheduler").get_schedule_group(Name="template-test")["State"] == "ACTIVE"


def test_the_domain_and_the_firewall_are_optional(cloud):
    with_domain = {"DomainName": "mood.example.com", "HostedZoneId": "Z1"}
    read = read_template(ROOT / "infra_scripts/templates/site.yaml")
    plain, domain = resources_of(read, {}), resources_of(read, with_domain)
    assert domain.keys() - plain.keys() == {"Certificate", "SiteAddressV4", "SiteAddressV6"}
    assert resources_of(read, {"Firewall": "true"}).keys() - plain.keys() == {"FirewallRules"}


def test_nothing_is_left_after_deletion(cloud, deployed, site):
    cloudformation = cloud.client("cloudformation")
    for stack in ("template-test-engine", "template-test-site", "template-test-foundation"):
        assert delete_stack(cloudformation, stack)
        assert not delete_stack(cloudformation, stack)

    def ours(names):
        return [name for name in names if "template-test" in name]

    assert not ours(f["FunctionName"] for f in cloud.client("lambda").list_functions()["Functions"])
    assert not ours(r["RoleName"] for r in cloud.client("iam").list_roles()["Roles"])
    assert not ours(r["Name"] for r in cloud.client("events").list_rules()["Rules"])
    assert not ours(g["Name"] for g in cloud.client("scheduler").list_schedule_groups()["ScheduleGroups"])
    assert not ours(g["logGroupName"] for g in cloud.client("logs").describe_log_groups()["logGroups"])
    assert not {"TemplateTest", "TemplateTest-usage"} & set(cloud.client("dynamodb").list_tables()["TableNames"])
    assert not cloud.client("cloudfront").list_distributions()["DistributionList"].get("Items")
    assert site["SiteBucket"] not in [b["Name"] for b in cloud.client("s3").list_buckets()["Buckets"]]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prefix_too_long_for_the_engine_is_refused_before_training(name):
    assert read_template(ROOT / "infra_scripts/templates" / name)["Parameters"]["Prefix"]["AllowedPattern"] == PREFIX
    assert re.fullmatch(PREFIX, "sentiment-engine") and not re.fullmatch(PREFIX, "a" * 18)


def test_the_hsts_header_does_not_include_subdomains():
    policy = site_resources["SiteHeaders"]["Properties"]["ResponseHeadersPolicyConfig"]["SecurityHeadersConfig"]
    assert policy["StrictTransportSecurity"]["IncludeSubdomains"] is False


monitoring = yaml.load((ROOT / "infra_scripts/templates/monitoring.yaml").read_text(), Loader)["Resources"]
FAILURES = {
    "StuckRuns",
    "OrphansDeleted",
    "NotDeleted",
    "Reconciled",
    "BudgetShare",
    "SmsFailed",
    "SmsQuota",
    "SmsSent",
    "StandbyPredictions",
}


def _dashboard() -> dict:
    return json.loads(monitoring["Dashboard"]["Properties"]["DashboardBody"])


def test_alarms_and_dashboard_use_only_reported_metrics():
    alarms = [r["Properties"] for r in monitoring.values() if r["Type"] == "AWS::CloudWatch::Alarm"]
    watched = {a["MetricName"] for a in alarms if a.get("Namespace") == NAMESPACE}
    assert watched == FAILURES <= set(METRICS)
    lines = [m for widget in _dashboard()["widgets"] for m in widget["properties"]["metrics"]]
    assert {line[0] for line in lines} == {NAMESPACE} and {line[1] for line in lines} <= set(METRICS)
    (both,) = [r["Properties"] for r in monitoring.values() if r["Type"] == "AWS::CloudWatch::CompositeAlarm"]
    quiet = {name for name, r in monitoring.items() if r["Type"].endswith("Alarm") and not _rings(r)}
    assert _rings({"Properties": both}) and quiet == set(re.findall(r"\$\{(\w+)\}", both["AlarmRule"]))


def _rings(alarm: dict) -> bool:
    return bool(alarm["Properties"].get("AlarmActions"))


def _judged(alarm: dict, before: str, runs: list[int], minute: int) -> str:
    "Compute an alarm's state in each minute like CloudWatch, from the minutes of the reconciler's runs."
    size, count = alarm["Period"] // 60, alarm["EvaluationPeriods"]
    sums = [sum(minute - size * (n + 1) < run <= minute - size * n for run in runs) for n in range(count)]
    over = alarm["ComparisonOperator"] == "GreaterThanOrEqualToThreshold"
    missing = {"breaching": True, "notBreaching": False, "ignore": None}[alarm["TreatMissingData"]]
    points = [(n >= alarm["Threshold"]) is over if n else missing for n in sums]  # no run, no data
    if points.count(True) >= alarm.get("DatapointsToAlarm", count):
        return "ALARM"
    return "OK" if False in points else before


def _rung(runs: list[int], until: int, late: int = 0) -> list[int]:
    "List the minutes at which reconciler-silent rings; late: how many minutes the first alarm lags behind the second."
    quiet, seen = (monitoring[name]["Properties"] for name in ("ReconcilerQuiet", "ReconcilerSeen"))
    states, rung = ["INSUFFICIENT_DATA"] * 2, [False]
    for minute in range(until):
        states = [_judged(quiet, states[0], runs, minute - late), _judged(seen, states[1], runs, minute)]
        rung.append(states == ["ALARM", "ALARM"])
    return [minute for minute in range(until) if rung[minute + 1] and not rung[minute]]


def test_the_silence_alarm_rings_only_after_the_first_run():
    assert _rung([], 600) == []  # like a new reconciler, one that has never run does not ring
    for first in (1, 5, 12, 40):  # minutes from the alarm's creation to the first run
        for late in (0, 1, 2):
            (rung,) = _rung([*range(first, first + 60, 5)], 600, late)
            assert rung == first + 55 + 15 + late, "fifteen minutes after the last run"
    again = [*range(5, 60, 5), *range(120, 180, 5)]
    assert _rung(again, 600) == [70, 190]


def test_the_composite_alarm_rings_only_when_both_alarms_ring(cloud):
    cloudformation, watch, name = cloud.client("cloudformation"), cloud.client("cloudwatch"), "silent-monitoring"
    given = {"Prefix": "silent", "DeadLetters": "silent-dead-letters", "ApiId": "a1", "DistributionId": "E1"}
    deploy_stack(cloudformation, name, ROOT / "infra_scripts/templates/monitoring.yaml", given)

    def state_after(**states: str) -> str:
        for alarm, state in states.items():
            watch.set_alarm_state(AlarmName=f"silent-reconciler-{alarm}", StateValue=state, StateReason="a test")
        (both,) = watch.describe_alarms(AlarmTypes=["CompositeAlarm"], AlarmNamePrefix="silent-")["CompositeAlarms"]
        assert both["AlarmName"] == "silent-reconciler-silent" and both["AlarmActions"][0].endswith(":silent-alarms")
        return both["StateValue"]

    assert state_after(quiet="ALARM") == "OK" == state_after(quiet="OK", seen="ALARM")
    assert state_after(quiet="ALARM") == "ALARM"
    delete_stack(cloudformation, name)
    assert not watch.describe_alarms(AlarmNamePrefix="silent-").get("CompositeAlarms")


def test_every_function_has_an_error_alarm():
    alarms = [r["Properties"] for r in monitoring.values() if r["Type"] == "AWS::CloudWatch::Alarm"]
    watched = {a["Dimensions"][0]["Value"] for a in alarms if a["MetricName"] == "Errors"}
    assert watched == {f["FunctionName"] for f in of_type("AWS::Lambda::Function").values()}


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_inline_template_fits_into_a_request(name):
    "A plan sends all of them inline, the foundation creates the others' bucket, and you send the deployer's by hand."
    body = template_argument(ROOT / "infra_scripts/templates" / name)["TemplateBody"]
    assert len(body.encode()) <= INLINE_LIMIT


def test_a_template_too_large_for_a_request_is_refused_before_sending(tmp_path):
    large = tmp_path / "large.yaml"
    large.write_text("# a comment does not count\nA: é" + "x" * (INLINE_LIMIT - 5))
    assert template_argument(large) == {"TemplateBody": "A: é" + "x" * (INLINE_LIMIT - 5)}
    large.write_text("A: é" + "x" * (INLINE_LIMIT - 4))
    with pytest.raises(RuntimeError, match=r"large\.yaml has 51201 bytes"):
        template_argument(large)


def test_alarms_can_be_deployed_and_deleted(cloud):
    cloudformation, watch = cloud.client("cloudformation"), cloud.client("cloudwatch")
    given = {"Prefix": "watched", "DeadLetters": "watched-dead-letters", "AlarmEmail": "ops@example.com"}
    given |= {"ApiId": "a1", "DistributionId": "E1"}
    deploy_stack(cloudformation, "watched-monitoring", ROOT / "infra_scripts/templates/monitoring.yaml", given)
    names = {a["AlarmName"] for a in watch.describe_alarms(AlarmNamePrefix="watched-")["MetricAlarms"]}
    assert len(names) == 23 and "watched-reconciler-quiet" in names
    body = json.loads(watch.get_dashboard(DashboardName="watched-us-east-1")["DashboardBody"])
    assert body["widgets"][0]["properties"]["metrics"][0][3] == "watched"
    delete_stack(cloudformation, "watched-monitoring")
    assert not watch.describe_alarms(AlarmNamePrefix="watched-")["MetricAlarms"]


def test_the_endpoint_may_store_only_captures_and_they_expire():
    foundation = yaml.load((ROOT / "infra_scripts/templates/foundation.yaml").read_text(), Loader)["Resources"]
    policies = foundation["EndpointRole"]["Properties"]["Policies"]
    writes = [s for p in policies for s in p["PolicyDocument"]["Statement"] if "s3:PutObject" in s["Action"]]
    assert [s["Resource"] for s in writes] == ["${ArtifactsBucket.Arn}/captures/*"]
    rules = foundation["ArtifactsBucket"]["Properties"]["LifecycleConfiguration"]["Rules"]
    assert [r["ExpirationInDays"] for r in rules if r.get("Prefix") == "captures/"] == [90]


# GitHub's deployment role, evaluated like the local cloud does, with an engine's names filled in.
CASES = {"UsesSns": True, "Bounded": True, "HasAwakeHours": True} | dict.fromkeys(HOLDS, True)


def deployer(name: str) -> dict:
    "Read one of the policies of deployer.yaml."
    found = read_template(ROOT / "infra_scripts/templates/deployer.yaml")["Resources"][name]["Properties"]
    (policy,) = found.get("Policies", [found])
    return filled(policy["PolicyDocument"], LAB, CASES)


def may(policy: dict, action: str, on: str, **context: str) -> bool:
    known = {name.replace("_", ":").lower(): value for name, value in context.items()}
    who = EvalContext("arn", "AssumedRole", LAB["AWS::AccountId"], action, on, "us-east-1", service_context=known)
    return evaluate(who, [parse_policy_document(policy)]).decision == "Allow"


def role(name: str) -> str:
    return f"arn:aws:iam::{LAB['AWS::AccountId']}:role/{name}"


def test_the_deployer_may_create_only_bounded_roles():
    policy = deployer("DeployRole")
    for action in ("CreateRole", "PutRolePolicy", "PutRolePermissionsBoundary"):
        for on in (role("lab-engine-ApiRole-1"), role("lab-foundation-GlueRole-1")):
            assert may(policy, f"iam:{action}", on, iam_PermissionsBoundary=BOUNDARY), action
            assert not may(policy, f"iam:{action}", on), action
            assert not may(policy, f"iam:{action}", on, iam_PermissionsBoundary=BOUNDARY + "-two"), action
        assert not may(policy, f"iam:{action}", role("lab-deployer"), iam_PermissionsBoundary=BOUNDARY), action


def test_the_deployer_cannot_widen_the_boundary_or_itself():
    policy = deployer("DeployRole")
    for action in ("CreatePolicyVersion", "SetDefaultPolicyVersion", "DeletePolicy"):
        assert not may(policy, f"iam:{action}", BOUNDARY), action
    for action in ("DeleteRolePermissionsBoundary", "AttachRolePolicy"):
        assert not may(policy, f"iam:{action}", role("lab-engine-ApiRole-1"), iam_PermissionsBoundary=BOUNDARY), action
    itself, service = role("lab-deployer"), "lambda.amazonaws.com"
    for action in ("PassRole", "UpdateAssumeRolePolicy", "DeleteRolePolicy"):
        assert not may(policy, f"iam:{action}", itself, iam_PassedToService=service), action
    stacks = f"arn:aws:cloudformation:us-east-1:{LAB['AWS::AccountId']}:stack/"
    assert may(policy, "cloudformation:UpdateStack", f"{stacks}lab-engine/1")
    for other in ("lab-deployer", "lab-two-engine"):
        assert not may(policy, "cloudformation:UpdateStack", f"{stacks}{other}/1")


def test_the_deployer_may_pass_roles_only_to_three_services():
    policy, on = deployer("DeployRole"), role("lab-engine-ApiRole-1")
    for service in ("lambda", "glue", "sagemaker"):
        assert may(policy, "iam:PassRole", on, iam_PassedToService=f"{service}.amazonaws.com")
    for service in ("ec2", "cloudformation", "codebuild"):
        assert not may(policy, "iam:PassRole", on, iam_PassedToService=f"{service}.amazonaws.com")
    assert not may(policy, "iam:PassRole", on)


def test_the_deployer_may_change_records_in_one_zone_only():
    zone, action = "arn:aws:route53:::hostedzone/", "route53:ChangeResourceRecordSets"
    records = deployer("RecordsOfThePage")
    assert may(records, action, f"{zone}Z1") and not may(records, action, f"{zone}Z2")
    assert not may(deployer("DeployRole"), action, f"{zone}Z1")
    kept = resources_of(read_template(ROOT / "infra_scripts/templates/deployer.yaml"), {"HostedZoneId": ""})
    assert "RecordsOfThePage" not in kept


@pytest.mark.parametrize(
    "action_and_resource",
    [
        ("lambda:CreateFunction", "lambda:us-east-1:{}:function:lab-shutdown-endpoint"),
        ("dynamodb:CreateTable", "dynamodb:us-east-1:{}:table/lab-state"),
        ("sqs:CreateQueue", "sqs:us-east-1:{}:lab-dead-letters"),
        ("s3:CreateBucket", "s3:::lab-foundation-lakebucket-1x2y"),
        ("s3:PutObject", "s3:::lab-site-sitebucket-1x2y/sentiment.html"),
        ("glue:CreateJob", "glue:us-east-1:{}:job/lab-clean-reviews"),
        ("events:PutRule", "events:us-east-1:{}:rule/lab-every-five-minutes"),
        ("scheduler:CreateScheduleGroup", "scheduler:us-east-1:{}:schedule-group/lab"),
        ("logs:CreateLogGroup", "logs:us-east-1:{}:log-group:/aws/apigateway/lab"),
        ("logs:CreateLogGroup", "logs:us-east-1:{}:log-group:/aws/lambda/lab-shutdown-endpoint"),
        ("cloudwatch:PutMetricAlarm", "cloudwatch:us-east-1:{}:alarm:lab-orphan"),
        ("cloudwatch:PutDashboard", "cloudwatch::{}:dashboard/lab-us-east-1"),
        ("sns:CreateTopic", "sns:us-east-1:{}:lab-alarms"),
        ("ssm:PutParameter", "ssm:us-east-1:{}:parameter/lab/model"),
        ("sagemaker:CreateTrainingJob", "sagemaker:us-east-1:{}:training-job/lab-training-1"),
        ("budgets:ModifyBudget", "budgets::{}:budget/lab-us-east-1"),
        ("wafv2:CreateWebACL", "wafv2:us-east-1:{}:global/webacl/lab/1"),
    ],
)
def test_the_deployer_may_create_only_this_engine(action_and_resource):
    action, on = action_and_resource
    on = f"arn:aws:{on.format(LAB['AWS::AccountId'])}"
    assert may(deployer("DeployRole"), action, on)
    assert not may(deployer("DeployRole"), action, on.replace("lab", "shop"))


@pytest.mark.parametrize("cases", [CASES, CASES | {"UsesSns": False, "Snapshots": True}, CASES | {"Realtime": False}])
@pytest.mark.parametrize("name", ["backend.yaml", "foundation.yaml"])
def test_every_role_has_the_boundary_and_stays_within_it(name, cases):
    roles = read_template(ROOT / "infra_scripts/templates" / name)["Resources"]
    roles = {n: r["Properties"] for n, r in roles.items() if r["Type"] == "AWS::IAM::Role"}
    boundary, known = deployer("Boundary"), LAB | {"PermissionsBoundary": BOUNDARY}
    assert len(roles) in (3, 9)
    for who, properties in roles.items():
        bound = filled(properties["PermissionsBoundary"], known, cases)
        assert bound == BOUNDARY and filled(properties["PermissionsBoundary"], known, {"Bounded": False}) is NOTHING
        for statement in filled(properties["Policies"], known, cases)[0]["PolicyDocument"]["Statement"]:
            for action, on in asked(statement) if statement["Effect"] == "Allow" else ():
                assert may(boundary, action, on, iam_PassedToService="scheduler.amazonaws.com"), (who, action, on)


def asked(statement: dict) -> list[tuple[str, str]]:
    "List what a statement allows, with a name in place of each star within a name."
    named = statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]
    return [(a, on if on == "*" else on.replace("*", "1x")) for a in statement["Action"] for on in named]


def test_the_boundary_denies_administrator_access():
    boundary = deployer("Boundary")
    for action, on in (
        ("iam:CreateRole", role("lab-engine-1")),
        ("iam:PutRolePolicy", role("lab-engine-1")),
        ("sts:AssumeRole", role("admin")),
        ("lambda:UpdateFunctionCode", "arn:aws:lambda:us-east-1:1:function:lab-shutdown-endpoint"),
        ("s3:GetObject", "arn:aws:s3:::somebodys/file"),
        ("sagemaker:CreateTrainingJob", "arn:aws:sagemaker:us-east-1:1:training-job/lab-training-1"),
    ):
        assert not may(boundary, action, on), action
    assert not may(boundary, "iam:PassRole", role("lab-engine-1"), iam_PassedToService="lambda.amazonaws.com")


def test_the_policies_of_the_deployer_fit_into_the_limits_of_iam():
    "A managed policy may have 6,144 characters, and all policies of a role together 10,240; spaces do not count."
    most = {"Prefix": "a" * 17, "TableName": "a" * 17 + "-state", "HostedZoneId": "Z" * 32}
    most |= {"AWS::Region": "ap-southeast-2"}
    found = read_template(ROOT / "infra_scripts/templates/deployer.yaml")["Resources"]
    boundary, records = found["Boundary"]["Properties"], found["RecordsOfThePage"]["Properties"]

    def size(policy: dict) -> int:
        return len(json.dumps(filled(policy["PolicyDocument"], LAB | most, CASES), separators=(",", ":")))

    assert size(boundary) < 6_144
    assert size(records) + sum(map(size, found["DeployRole"]["Properties"]["Policies"])) < 10_240
