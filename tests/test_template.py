"The engine's template: it is valid, it grants little, and it deploys, updates and deletes on the local cloud."

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
import yaml
from engine_double import ROOT

from sentiment_engine.metrics import METRICS, NAMESPACE
from sentiment_engine.packaging import stack_parameters, upload_packages
from sentiment_engine.settings import Settings
from sentiment_engine.stacks import delete_stack, deploy_stack, empty_bucket

TEMPLATE = ROOT / "infra_scripts" / "template.yaml"
PAGE, EXTRA = "http://127.0.0.1:8080", "http://127.0.0.1:8501"
OURS = Settings(prefix="template-test", table="TemplateTest", idle_minutes=5.0, site_origin=PAGE)


class Loader(yaml.SafeLoader):
    "Reads CloudFormation's short forms (!Ref, !Sub …) as their arguments."


def _short_form(loader, tag, node):
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    return loader.construct_sequence(node, deep=True)


Loader.add_multi_constructor("!", _short_form)
template = yaml.load(TEMPLATE.read_text(), Loader)  # derives from SafeLoader
resources = template["Resources"]


def of_type(kind: str) -> dict:
    return {name: r.get("Properties", {}) for name, r in resources.items() if r["Type"] == kind}


def statements() -> list[tuple[str, dict]]:
    "List the statements of every role's own policies."
    roles = of_type("AWS::IAM::Role")
    return [(n, s) for n, r in roles.items() for p in r["Policies"] for s in p["PolicyDocument"]["Statement"]]


def test_cfn_lint():
    lint = [sys.executable, "-c", "import cfnlint.runner, sys; sys.exit(cfnlint.runner.main())"]
    templates = [str(path) for path in sorted((ROOT / "infra_scripts").glob("*.yaml"))]
    done = subprocess.run([*lint, *templates], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_function_has_a_role_and_a_log_group_of_its_own():
    functions = of_type("AWS::Lambda::Function")
    assert len(functions) == 7 == len({f["Role"] for f in functions.values()})
    assert len({f["LoggingConfig"]["LogGroup"] for f in functions.values()}) == 7
    assert all(group["RetentionInDays"] for group in of_type("AWS::Logs::LogGroup").values())


def test_the_table_expires_numbers_and_is_paid_by_use():
    table = resources["Table"]["Properties"]
    assert table["TimeToLiveSpecification"] == {"AttributeName": "expiresAt", "Enabled": True}
    assert table["BillingMode"] == "PAY_PER_REQUEST"


# What knows no resources in IAM, and a phone number, which has no ARN.
WITHOUT_RESOURCE = {
    "scheduler:ListSchedules",
    "sagemaker:ListEndpoints",
    "sagemaker:ListEndpointConfigs",
    "sns:Publish",
}


def test_no_role_may_do_everything():
    for role, statement in statements():
        assert not [a for a in statement["Action"] if "*" in a], role
        if statement["Resource"] == "*":
            assert set(statement["Action"]) <= WITHOUT_RESOURCE, role


def test_only_who_needs_to_may_delete_invoke_or_send():
    allowed = {}
    for role, statement in statements():
        for action in statement["Action"]:
            allowed.setdefault(action, set()).add(role.removesuffix("Role"))
    busy = {"NotificationAndShutdownScheduler", "ReconcileModelService"}
    assert allowed["sns:Publish"] == busy
    assert allowed["sagemaker:CreateEndpoint"] == busy | {"StartModelService"}
    assert allowed["sagemaker:DeleteEndpoint"] == busy | {"StartModelService", "ShutdownEndpoint"}
    assert allowed["sagemaker:InvokeEndpoint"] == busy | {"InvokeSagemakerEndpoint"}
    assert allowed["dynamodb:PutItem"] == {"StartModelService"}


def test_only_names_with_our_prefix_can_be_created_or_deleted():
    for role, statement in statements():
        if any(a.startswith("sagemaker:") and a not in WITHOUT_RESOURCE for a in statement["Action"]):
            named = statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]
            assert all(re.search(r"/\$\{Prefix\}-\*$", r) for r in named), role


def call(url: str, method: str = "GET", body=None, origin: str = "") -> tuple[int, dict, str]:
    "Make an HTTP request and return status, headers and body."
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Origin": origin} if origin else {})
    headers |= {"Access-Control-Request-Method": "POST"} if method == "OPTIONS" else {}
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, {k.lower(): v for k, v in response.headers.items()}, response.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, {k.lower(): v for k, v in e.headers.items()}, e.read().decode()


@pytest.fixture(scope="module")
def deployed(cloud):
    "The engine's stack, deployed, and deployed once more with a change."
    s3, cloudformation = cloud.client("s3"), cloud.client("cloudformation")
    s3.create_bucket(Bucket="template-test-artifacts")
    keys = upload_packages(s3, "template-test-artifacts", ROOT / "lambdas")
    tags = {"Project": OURS.prefix}
    plain = stack_parameters(OURS, "template-test-artifacts", keys, ExtraConnect=cloud.url)
    first = deploy_stack(cloudformation, "template-test-engine", TEMPLATE, plain, tags)
    second = deploy_stack(cloudformation, "template-test-engine", TEMPLATE, plain | {"ExtraOrigin": EXTRA}, tags)
    assert first == second
    yield second
    if second["SiteBucket"] in [b["Name"] for b in s3.list_buckets()["Buckets"]]:
        empty_bucket(s3, second["SiteBucket"])
    delete_stack(cloudformation, "template-test-engine")


def test_outputs(deployed):
    assert set(deployed) == {"ApiUrl", "SiteBucket", "SiteUrl", "DistributionId", "Table", "DeadLetters"}
    assert deployed["SiteUrl"] == PAGE and deployed["Table"] == "TemplateTest" and not deployed["ApiUrl"].endswith("/")


def test_whoever_creates_endpoints_is_told_what_they_keep(cloud, deployed):
    makers = {"start-model-service", "notification-and-shutdown-scheduler", "reconcile-model-service"}
    for name in makers:
        function = cloud.client("lambda").get_function_configuration(FunctionName=f"template-test-{name}")
        told = function["Environment"]["Variables"]
        assert told["CAPTURES_ADDRESS"] == "s3://template-test-artifacts/captures"
        assert told["SENTIMENT_CAPTURE_PERCENT"] == "20" and told["SENTIMENT_CAPTURE_TEXT"] == "false"


def test_the_api_answers(deployed):
    status, _, body = call(deployed["ApiUrl"] + "/status")
    assert status == 200 and json.loads(body)["state"] == "STOPPED" and json.loads(body)["idleMinutes"] == 5


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", "/predict", {"inputs": "Great."}, (409, "not_in_service")),
        ("POST", "/predict", {"inputs": ""}, (400, "empty_text")),
        ("POST", "/start", {"phone": "12345"}, (400, "invalid_phone")),
        ("POST", "/start", {}, (503, "no_model")),
        ("POST", "/extend", None, (409, "not_in_service")),
        ("DELETE", "/status", None, (405, "method_not_allowed")),
        ("GET", "/predict", None, (405, "method_not_allowed")),
        ("GET", "/nothing", None, (404, "not_found")),
    ],
)
def test_errors_have_one_form(deployed, method, path, body, expected):
    status, _, text = call(deployed["ApiUrl"] + path, method, body)
    error = json.loads(text)["error"]
    assert (status, error["code"]) == expected and error["message"]


def test_fault_6_the_gateway_answers_cors_and_so_do_its_errors(deployed):
    "CORS headers came from the Lambdas only, so that every error of the gateway looked like a CORS error."
    for origin in (PAGE, EXTRA):
        status, headers, _ = call(deployed["ApiUrl"] + "/start", "OPTIONS", origin=origin)
        assert status in (200, 204) and headers["access-control-allow-origin"] == origin
        for method, path in (("GET", "/status"), ("GET", "/nothing"), ("POST", "/predict")):
            assert call(deployed["ApiUrl"] + path, method, origin=origin)[1]["access-control-allow-origin"] == origin
    _, headers, _ = call(deployed["ApiUrl"] + "/status", origin="https://evil.example")
    assert headers.get("access-control-allow-origin") not in ("*", "https://evil.example")


def test_nothing_is_left_after_deletion(cloud, deployed):
    cloudformation = cloud.client("cloudformation")
    empty_bucket(cloud.client("s3"), deployed["SiteBucket"])
    assert delete_stack(cloudformation, "template-test-engine")
    assert not delete_stack(cloudformation, "template-test-engine")

    def ours(names):
        return [name for name in names if "template-test" in name]

    assert not ours(f["FunctionName"] for f in cloud.client("lambda").list_functions()["Functions"])
    assert not ours(r["RoleName"] for r in cloud.client("iam").list_roles()["Roles"])
    assert not ours(r["Name"] for r in cloud.client("events").list_rules()["Rules"])
    assert not ours(g["Name"] for g in cloud.client("scheduler").list_schedule_groups()["ScheduleGroups"])
    assert not ours(g["logGroupName"] for g in cloud.client("logs").describe_log_groups()["logGroups"])
    assert "TemplateTest" not in cloud.client("dynamodb").list_tables()["TableNames"]
    assert deployed["SiteBucket"] not in [b["Name"] for b in cloud.client("s3").list_buckets()["Buckets"]]


def test_a_prefix_too_long_for_the_engine_is_refused_before_anything_is_trained():
    foundation = yaml.load((ROOT / "infra_scripts" / "foundation.yaml").read_text(), Loader)
    assert foundation["Parameters"]["Prefix"]["AllowedPattern"] == template["Parameters"]["Prefix"]["AllowedPattern"]


monitoring = yaml.load((ROOT / "infra_scripts" / "monitoring.yaml").read_text(), Loader)["Resources"]
FAILURES = {"StuckRuns", "OrphansDeleted", "Reconciled", "BudgetShare", "SmsFailed", "SmsQuota"}


def _dashboard() -> dict:
    return json.loads(monitoring["Dashboard"]["Properties"]["DashboardBody"])


def test_alarms_and_dashboard_name_only_metrics_that_are_reported():
    alarms = [r["Properties"] for r in monitoring.values() if r["Type"] == "AWS::CloudWatch::Alarm"]
    watched = {a["MetricName"] for a in alarms if a.get("Namespace") == NAMESPACE}
    assert watched == FAILURES <= set(METRICS)
    lines = [m for widget in _dashboard()["widgets"] for m in widget["properties"]["metrics"]]
    assert {line[0] for line in lines} == {NAMESPACE} and {line[1] for line in lines} <= set(METRICS)
    assert all(alarm["AlarmActions"] for alarm in alarms)


def test_every_function_has_an_alarm_for_errors():
    alarms = [r["Properties"] for r in monitoring.values() if r["Type"] == "AWS::CloudWatch::Alarm"]
    watched = {a["Dimensions"][0]["Value"] for a in alarms if a["MetricName"] == "Errors"}
    assert watched == {f["FunctionName"] for f in of_type("AWS::Lambda::Function").values()}


@pytest.mark.parametrize("name", ["template.yaml", "monitoring.yaml", "foundation.yaml"])
def test_a_template_is_small_enough_for_cloudformation(name):
    assert len((ROOT / "infra_scripts" / name).read_bytes()) <= 51_200


def test_alarms_deploy_and_go(cloud):
    cloudformation, watch = cloud.client("cloudformation"), cloud.client("cloudwatch")
    given = {"Prefix": "watched", "DeadLetters": "watched-dead-letters", "AlarmEmail": "ops@example.com"}
    deploy_stack(cloudformation, "watched-monitoring", ROOT / "infra_scripts" / "monitoring.yaml", given)
    names = {a["AlarmName"] for a in watch.describe_alarms(AlarmNamePrefix="watched-")["MetricAlarms"]}
    assert len(names) == 14 and "watched-reconciler-silent" in names
    body = json.loads(watch.get_dashboard(DashboardName="watched")["DashboardBody"])
    assert body["widgets"][0]["properties"]["metrics"][0][3] == "watched"
    delete_stack(cloudformation, "watched-monitoring")
    assert not watch.describe_alarms(AlarmNamePrefix="watched-")["MetricAlarms"]


def test_the_endpoint_may_keep_answers_and_nothing_else_and_they_expire():
    foundation = yaml.load((ROOT / "infra_scripts" / "foundation.yaml").read_text(), Loader)["Resources"]
    policies = foundation["EndpointRole"]["Properties"]["Policies"]
    writes = [s for p in policies for s in p["PolicyDocument"]["Statement"] if "s3:PutObject" in s["Action"]]
    assert [s["Resource"] for s in writes] == ["${ArtifactsBucket.Arn}/captures/*"]
    rules = foundation["ArtifactsBucket"]["Properties"]["LifecycleConfiguration"]["Rules"]
    assert [r["ExpirationInDays"] for r in rules if r.get("Prefix") == "captures/"] == [90]
