"""The local cloud as a whole: its lifecycle, its processes, its clock, its pages and its command line."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import psutil
import pytest

from sentiment_engine.local.cloud import LocalCloud
from tests import ROOT
from tests.doubles.local_models import ROLE, deploy, predict, settled, until

SCRIPT = ROOT / "infra_scripts/local_cloud.py"


class Cloud(LocalCloud):
    "A cloud that is stopped and started, so it creates new clients each time."

    def client(self, service: str):
        return self.root_client(service)

    def processes(self) -> list[psutil.Process]:
        server = psutil.Process(self.place["pid"])
        return [server, *server.children(recursive=True)]


@pytest.fixture
def own(tmp_path):
    "A cloud for this test alone."
    with Cloud(tmp_path / "state", port=0, site_port=0) as running:
        yield running


def role(cloud):
    "Create the role of this test's functions, unless it exists. It may do everything."
    iam, name = cloud.client("iam"), ROLE.rpartition("/")[2]
    trust = {
        "Effect": "Allow",
        "Principal": {"Service": [f"{name}.amazonaws.com" for name in ("lambda", "sagemaker", "glue")]},
        "Action": "sts:AssumeRole",
    }
    everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    if name not in [r["RoleName"] for r in iam.list_roles()["Roles"]]:
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=_policy(trust))
        iam.put_role_policy(RoleName=name, PolicyName="all", PolicyDocument=_policy(everything))


def _policy(statement: dict) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def function(cloud, name: str, body: str) -> str:
    "Create a Lambda whose handler contains `body`, and return its ARN."
    role(cloud)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("app.py", f"import os, time, boto3\ndef handler(event, context):\n    {body}\n")
    code = {"ZipFile": packed.getvalue()}
    made = cloud.client("lambda").create_function(
        FunctionName=name, Runtime="python3.13", Role=ROLE, Handler="app.handler", Code=code, Timeout=20
    )
    return made["FunctionArn"]


def invoke(cloud, name: str) -> object:
    return json.load(cloud.client("lambda").invoke(FunctionName=name)["Payload"])


def table(cloud, name: str):
    "Make a table with the key `id`."
    cloud.client("dynamodb").create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
    )


def test_every_server_listens_only_on_this_machine(own):
    deploy(own, "quiet")
    function(own, "quiet", "return 1")
    invoke(own, "quiet")
    sockets = [c for p in own.processes() for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert len(sockets) >= 3  # AWS, the site and the endpoint
    assert {c.laddr.ip for c in sockets} == {"127.0.0.1"}


def train(cloud: LocalCloud, name: str, *command: str):
    "Start a training job that runs a command."
    words = {"ContainerEntrypoint": command[:1], "ContainerArguments": command[1:]}
    cloud.client("sagemaker").create_training_job(
        TrainingJobName=name,
        RoleArn=ROLE,
        AlgorithmSpecification={"TrainingImage": "t", "TrainingInputMode": "File", **words},
        OutputDataConfig={"S3OutputPath": "s3://test-models/out"},
        ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 5},
        StoppingCondition={"MaxRuntimeInSeconds": 600},
    )


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_cloud(own, end):
    deploy(own, "mortal")
    function(own, "mortal", "return 1")
    invoke(own, "mortal")
    train(own, "mortal", "/bin/bash", "-c", "sleep 600 & sleep 601")
    until(lambda: any(p.name() == "sleep" for p in own.processes()))
    processes = own.processes()
    assert len(processes) >= 7  # server, Lambda, two guards, endpoint, bash and sleep
    os.kill(own.place["pid"], end)
    left = psutil.wait_procs(processes, timeout=120)[1]
    assert [p.name() for p in left] == []


def test_the_cloud_ends_with_the_process_that_started_it(tmp_path):
    code = f"""
import os, time
from sentiment_engine.local.cloud import LocalCloud
with LocalCloud({str(tmp_path)!r}, port=0, site_port=0) as cloud:
    print(cloud.place["pid"], flush=True)
    time.sleep(600)
"""
    starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=SCRIPT.parents[1])
    server = psutil.Process(int(starter.stdout.readline()))
    starter.kill()
    starter.wait(60)
    assert psutil.wait_procs([server], timeout=120)[1] == []


def test_all_state_survives_kill_9(own):
    dynamodb, sagemaker = own.client("dynamodb"), own.client("sagemaker")
    deploy(own, "kept")
    function(own, "kept", "return time.time()")
    table(own, "kept")
    own.client("ssm").put_parameter(Name="/kept", Value="1", Type="String")
    schedule = {"ScheduleExpression": "at(2099-01-01T00:00:00)", "FlexibleTimeWindow": {"Mode": "OFF"}}
    target = {"Arn": "arn:aws:lambda:us-east-1:000000000000:function:kept", "RoleArn": ROLE}
    own.client("scheduler").create_schedule(Name="kept", Target=target, **schedule)
    own.advance_clock(600)
    dynamodb.put_item(TableName="kept", Item={"id": {"S": "last"}})
    sagemaker.create_endpoint_config(
        EndpointConfigName="last",
        ProductionVariants=sagemaker.describe_endpoint_config(EndpointConfigName="kept")["ProductionVariants"],
    )
    before = own.place
    os.kill(before["pid"], signal.SIGKILL)  # right after the last answer
    own.start(detached=False)
    assert own.place["pid"] != before["pid"] and own.place["port"] == before["port"]
    assert own.client("sagemaker").describe_endpoint(EndpointName="kept")["EndpointStatus"] == "InService"
    assert "POSITIVE" in predict(own, "kept", "lovely")
    assert own.client("sagemaker").describe_endpoint_config(EndpointConfigName="last")
    assert own.client("dynamodb").scan(TableName="kept")["Items"] == [{"id": {"S": "last"}}]
    assert own.client("ssm").get_parameter(Name="/kept")["Parameter"]["Value"] == "1"
    assert own.client("scheduler").get_schedule(Name="kept")["State"] == "ENABLED"
    assert own.client("s3").head_object(Bucket="test-models", Key="kept/model.tar.gz")
    assert invoke(own, "kept") - time.time() > 590


def test_unresumable_work_fails_after_kill_9(own):
    deploy(own, "broken")
    handlers = own.state / "endpoints/broken/AllTraffic/model/code/inference.py"
    train(own, "cut", "sleep", "600")
    os.kill(own.place["pid"], signal.SIGKILL)
    handlers.write_text("raise RuntimeError('spoiled')")
    own.start(detached=False)
    described = settled(own, "broken")
    assert described["EndpointStatus"] == "Failed" and "spoiled" in described["FailureReason"]
    job = own.client("sagemaker").describe_training_job(TrainingJobName="cut")
    assert job["TrainingJobStatus"] == "Failed" and "stopped during the job" in job["FailureReason"]


def test_moving_the_clock_affects_lambdas_and_schedules(cloud):
    table(cloud, "wake-ups")
    put = "boto3.client('dynamodb').put_item(TableName='wake-ups', Item={'id': {'S': str(time.time())}})"
    arn = function(cloud, "wake-up", put)
    function(cloud, "what-time", "return time.time()")
    before = invoke(cloud, "what-time")
    at = datetime.fromtimestamp(before + 1800, UTC).strftime("at(%Y-%m-%dT%H:%M:%S)")
    cloud.client("scheduler").create_schedule(
        Name="wake-up",
        ScheduleExpression=at,
        FlexibleTimeWindow={"Mode": "OFF"},
        ActionAfterCompletion="DELETE",
        Target={"Arn": arn, "RoleArn": ROLE},
    )
    time.sleep(1.5)
    rows = lambda: cloud.client("dynamodb").scan(TableName="wake-ups")["Items"]  # noqa: E731
    assert rows() == []
    cloud.advance_clock(1801)
    assert invoke(cloud, "what-time") - before > 1800
    row = until(rows, 10)
    assert 1800 <= float(row[0]["id"]["S"]) - before < 1840
    with pytest.raises(HTTPError) as refused:
        cloud.advance_clock(-1)
    assert refused.value.code == 400


def test_a_lambda_does_not_inherit_the_shell_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SENTIMENT_PREFIX", "of-an-experiment")
    monkeypatch.setenv("AWS_PROFILE", "production")
    with Cloud(tmp_path / "state", port=0, site_port=0) as cloud:
        monkeypatch.undo()
        function(cloud, "environment", "return dict(os.environ)")
        seen = invoke(cloud, "environment")
    assert "SENTIMENT_PREFIX" not in seen and "AWS_PROFILE" not in seen
    assert seen["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")


# Text messages and the site ------------------------------------------------------------------------------------------


def textbelt(cloud, **fields) -> dict:
    "Send a message as a form."
    return json.load(urlopen(f"{cloud.textbelt_url}/text", urlencode(fields).encode(), timeout=60))


def test_messages_of_textbelt_and_sns_are_in_the_inbox(cloud):
    sent = textbelt(cloud, phone="+15005550006", message="Hi <b>Ada</b> & Bob", key="textbelt")
    assert sent["success"] and sent["quotaRemaining"] < 1000
    status = json.load(urlopen(f"{cloud.textbelt_url}/status/{sent['textId']}", timeout=60))
    assert status["status"] == "DELIVERED"
    assert json.load(urlopen(f"{cloud.textbelt_url}/quota/textbelt", timeout=60))["quotaRemaining"] < 1000
    assert not textbelt(cloud, phone="+15005550000", message="m", key="k")["success"]
    assert textbelt(cloud, phone="+15005550006", message="only a test", key="k_test")["success"]
    cloud.client("sns").publish(PhoneNumber="+15005550007", Message="By SNS")
    shown = json.load(urlopen(f"{cloud.inbox_url}.json", timeout=60))
    assert [(m["to"], m["text"], m["provider"]) for m in shown[:2]] == [  # the newest; other tests send messages too
        ("+15005550007", "By SNS", "sns"),
        ("+15005550006", "Hi <b>Ada</b> & Bob", "textbelt"),
    ]
    assert all(datetime.fromisoformat(m["at"]) for m in shown)
    page = urlopen(cloud.inbox_url, timeout=60)
    assert page.headers["content-type"].startswith("text/html") and "innerHTML" not in page.read().decode()


def test_textbelt_accepts_json_too(cloud):
    body = json.dumps({"phone": "+15005550008", "message": "m", "key": "json_test"}).encode()
    request = Request(f"{cloud.textbelt_url}/text", body, {"content-type": "application/json"})
    assert json.load(urlopen(request, timeout=60))["success"]


SITE = """
Resources:
  Bucket: {Type: AWS::S3::Bucket, Properties: {BucketName: local-site-test}}
  Policy:
    Type: AWS::S3::BucketPolicy
    Properties:
      Bucket: !Ref Bucket
      PolicyDocument:
        Version: "2012-10-17"
        Statement:
          - Effect: Allow
            Principal: {Service: cloudfront.amazonaws.com}
            Action: s3:GetObject
            Resource: !Sub "${Bucket.Arn}/*"
  Access:
    Type: AWS::CloudFront::OriginAccessControl
    Properties:
      OriginAccessControlConfig:
        {Name: local-site-test, OriginAccessControlOriginType: s3, SigningBehavior: always, SigningProtocol: sigv4}
  Site:
    Type: AWS::CloudFront::Distribution
    Properties:
      DistributionConfig:
        Enabled: true
        DefaultRootObject: index.html
        Origins:
          - Id: bucket
            DomainName: !GetAtt Bucket.RegionalDomainName
            OriginAccessControlId: !GetAtt Access.Id
            S3OriginConfig: {OriginAccessIdentity: ""}
        DefaultCacheBehavior:
          TargetOriginId: bucket
          ViewerProtocolPolicy: redirect-to-https
          CachePolicyId: 658327ea-f89d-4fab-a63d-7e88639e58f6
"""


def test_the_site_is_served_like_cloudfront(own):
    with pytest.raises(HTTPError) as empty:
        urlopen(own.site_url, timeout=60)
    assert b"Nothing is published yet" in empty.value.read()
    cloudformation, s3 = own.client("cloudformation"), own.client("s3")
    cloudformation.create_stack(StackName="site", TemplateBody=SITE)
    cloudformation.get_waiter("stack_create_complete").wait(StackName="site", WaiterConfig={"Delay": 1})
    files = {"index.html": ("text/html; charset=utf-8", "<h1>Hello</h1>"), "a/page.js": ("text/javascript", "hello()")}
    for key, (kind, text) in files.items():
        s3.put_object(Bucket="local-site-test", Key=key, Body=text, ContentType=kind, CacheControl="max-age=60")

    def page(path):
        try:
            return urlopen(f"{own.site_url}{path}", timeout=60)
        except HTTPError:
            return None

    home = until(lambda: page(""), 5)
    assert (home.read(), home.headers["content-type"]) == (b"<h1>Hello</h1>", "text/html; charset=utf-8")
    script = page("a/page.js")
    assert (script.read(), script.headers["cache-control"]) == (b"hello()", "max-age=60")
    assert page("none.html") is None
    assert urlopen(f"{own.site_url}inbox", timeout=60).url == own.inbox_url


STACK = """
Resources:
  Api:
    Type: AWS::ApiGatewayV2::Api
    Properties:
      {Name: mended, ProtocolType: HTTP, CorsConfiguration: {AllowOrigins: ["http://site"], AllowMethods: [POST]}}
  Stage: {Type: AWS::ApiGatewayV2::Stage, Properties: {ApiId: !Ref Api, StageName: $default, AutoDeploy: true}}
  Rows:
    Type: AWS::DynamoDB::Table
    Properties:
      TableName: mended-rows
      BillingMode: PAY_PER_REQUEST
      KeySchema: [{AttributeName: id, KeyType: HASH}]
      AttributeDefinitions: [{AttributeName: id, AttributeType: S}]
      TimeToLiveSpecification: {AttributeName: expiresAt, Enabled: true}
  Budget:
    Type: AWS::Budgets::Budget
    Properties: {Budget: {BudgetType: COST, TimeUnit: MONTHLY, BudgetLimit: {Amount: 5, Unit: USD}}}
Outputs: {ApiUrl: {Value: !GetAtt Api.ApiEndpoint}}
"""


def test_cloudformation_supports_our_templates(cloud):
    cloudformation = cloud.client("cloudformation")
    cloudformation.create_stack(StackName="mended", TemplateBody=STACK)
    cloudformation.get_waiter("stack_create_complete").wait(StackName="mended", WaiterConfig={"Delay": 1})
    api = cloudformation.describe_stacks(StackName="mended")["Stacks"][0]["Outputs"][0]["OutputValue"]
    asked = {"Origin": "http://site", "Access-Control-Request-Method": "POST"}
    preflight = urlopen(Request(f"{api}/start", headers=asked, method="OPTIONS"), timeout=60)
    assert preflight.headers["access-control-allow-origin"] == "http://site"
    expiry = cloud.client("dynamodb").describe_time_to_live(TableName="mended-rows")["TimeToLiveDescription"]
    assert (expiry["TimeToLiveStatus"], expiry["AttributeName"]) == ("ENABLED", "expiresAt")
    cloudformation.delete_stack(StackName="mended")
    cloudformation.get_waiter("stack_delete_complete").wait(StackName="mended", WaiterConfig={"Delay": 1})


# The command line ----------------------------------------------------------------------------------------------------


def run(*words: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True, timeout=300)


def test_the_command_line_starts_inspects_and_stops_the_cloud(tmp_path):
    state = ("--state", tmp_path / "state")
    assert (gone := run("status", *state)).returncode == 1 and "local_cloud.py start" in gone.stderr
    started = run("start", *state, "--port", "0", "--site-port", "0")
    try:
        assert started.returncode == 0 and "http://127.0.0.1:" in started.stdout
        again = run("start", *state, "--port", "0", "--site-port", "0")
        assert again.returncode == 0 and "is already running" in again.stdout
        lines = run("env", *state).stdout.replace(";\n", "\n").splitlines()
        exports = dict(line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export "))
        assert exports["AWS_ENDPOINT_URL"] in run("status", *state).stdout
        port = exports["AWS_ENDPOINT_URL"].rpartition(":")[2]
        other = run("start", "--state", tmp_path / "other", "--port", port, "--site-port", "0")
        assert other.returncode == 1 and f"port {port} is in use" in other.stderr
        assert "Traceback" not in other.stderr
        assert "stopped" in run("stop", *state).stdout and "was not up" in run("stop", *state).stdout
    finally:
        assert run("reset", *state).returncode == 0
    assert not (tmp_path / "state").exists()


def test_a_restart_keeps_the_port(tmp_path):
    cloud = Cloud(tmp_path / "state", port=0, site_port=0)
    try:
        ports = [(cloud.start().place["port"], cloud.stop())[0] for _ in range(2)]
    finally:
        cloud.reset()
    assert ports[0] == ports[1]


@pytest.mark.parametrize("left", ["", "[4566", "{}", "[1]", "7"])
def test_a_truncated_ports_file_does_no_harm(tmp_path, left):
    (tmp_path / "ports.json").write_text(left)
    with LocalCloud(tmp_path, port=0, site_port=0) as cloud:
        assert len(json.loads((tmp_path / "ports.json").read_text())) == 2 and cloud.running


def test_two_checkouts_run_at_the_same_time_without_explicit_ports(tmp_path):
    clouds = [LocalCloud(tmp_path / name) for name in ("one", "two", "three")]
    with ThreadPoolExecutor(3) as pool:
        try:
            list(pool.map(lambda cloud: cloud.start(detached=False), clouds))
            ports = [cloud.place[name] for cloud in clouds for name in ("port", "site_port")]
            assert len(set(ports)) == 6 and all(cloud.running for cloud in clouds)
        finally:
            list(pool.map(LocalCloud.reset, clouds))


@pytest.mark.parametrize("name", ["port", "site_port"])
@pytest.mark.parametrize("number", [-1, 65536, 10**6, 2**70])
def test_an_invalid_port_number_is_reported(tmp_path, name, number):
    with pytest.raises(RuntimeError, match=f"did not start: port {number} is invalid: choose one from 1 to 65535"):
        LocalCloud(tmp_path / "state", **{"port": 0, "site_port": 0, name: number}).start(detached=False)


@pytest.mark.parametrize(("name", "option"), [("port", "--port"), ("site_port", "PORT=")])
def test_a_requested_port_is_used_or_the_start_fails(tmp_path, name, option):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(RuntimeError, match=f"port {taken} is in use.*{option}"):
            LocalCloud(tmp_path / "state", **{name: taken}).start(detached=False)
    with LocalCloud(tmp_path / "state", **{name: taken}) as cloud:
        assert cloud.place[name] == taken


def test_an_unusable_folder_is_reported_with_the_reason(tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "sentiment_engine.local.server", "--state", str(tmp_path / "file" / "state")],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and "Not a directory" in done.stderr and "file" in done.stderr
    assert "another" not in done.stderr and "Traceback" not in done.stderr
