"The local CloudFront serves the page and the API under one address, as the distribution in site.yaml says."

import io
import json
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import pytest

from sentiment_engine.deploy.foundation import site_parameters
from sentiment_engine.deploy.stacks import deploy_stack, upload_template
from sentiment_engine.settings import Settings
from tests import ROOT
from tests.conftest import TestCloud

OURS, SECRET = Settings(prefix="edge"), "a secret between CloudFront and the API"
FUNCTION = """
import json, os

def handler(event, context):
    answer = json.loads(os.environ["ANSWER"])
    body = {"call": context.aws_request_id, "event": event}
    return {"statusCode": answer["status"], "headers": answer["headers"], "body": json.dumps(body)}
"""
STACK = """
Parameters: {ApiId: {Type: String}}
Resources:
  Stage: {Type: AWS::ApiGatewayV2::Stage, Properties: {ApiId: !Ref ApiId, StageName: api, AutoDeploy: true}}
  Role:
    Type: AWS::IAM::Role
    Properties:
      RoleName: edge
      AssumeRolePolicyDocument:
        Statement: [{Effect: Allow, Principal: {Service: lambda.amazonaws.com}, Action: sts:AssumeRole}]
  Function:
    Type: AWS::Lambda::Function
    Properties:
      FunctionName: edge
      Runtime: python3.13
      Handler: app.handler
      Role: !GetAtt Role.Arn
      Code: {S3Bucket: edge, S3Key: code.zip}
      Environment: {Variables: {ANSWER: '{"status": 200, "headers": {}}'}}
  Integration:
    Type: AWS::ApiGatewayV2::Integration
    Properties:
      ApiId: !Ref ApiId
      IntegrationType: AWS_PROXY
      IntegrationUri: !GetAtt Function.Arn
      PayloadFormatVersion: "2.0"
  Route: {Type: AWS::ApiGatewayV2::Route, Properties: {ApiId: !Ref ApiId, RouteKey: $default,
    Target: !Sub "integrations/${Integration}"}}
  Allowed:
    Type: AWS::Lambda::Permission
    Properties: {FunctionName: !Ref Function, Action: lambda:InvokeFunction, Principal: apigateway.amazonaws.com}
"""


@dataclass
class Edge:
    "The site of a local cloud, whose API repeats each request as JSON."

    cloud: TestCloud
    api: str  # address of the API itself

    def answers(self, status: int = 200, control: str = ""):
        "Set the status and the Cache-Control of the function, and forget kept answers."
        headers = {"content-type": "application/json"} | ({"cache-control": control} if control else {})
        variables = {"ANSWER": json.dumps({"status": status, "headers": headers})}
        self.cloud.client("lambda").update_function_configuration(
            FunctionName="edge", Environment={"Variables": variables}
        )
        self.cloud.advance_clock(60)

    def ask(self, path: str, method: str = "GET", **more) -> httpx.Response:
        return httpx.request(method, f"{self.cloud.site_url}{path}", timeout=60, **more)

    def event(self, path: str, method: str = "GET", **more) -> dict:
        return self.ask(path, method, **more).json()["event"]

    def call(self, path: str, method: str = "GET", **more) -> str:
        "Return the id of the function's call that a request got."
        return self.ask(path, method, **more).json()["call"]


@pytest.fixture(scope="module")
def edge(tmp_path_factory) -> Iterator[Edge]:
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("app.py", FUNCTION)
    with TestCloud(tmp_path_factory.mktemp("edge"), port=0, site_port=0) as cloud:
        s3, cloudformation, tags = cloud.client("s3"), cloud.client("cloudformation"), {"Project": "edge"}
        s3.create_bucket(Bucket="edge")
        s3.put_object(Bucket="edge", Key="code.zip", Body=code.getvalue())
        template = upload_template(s3, "edge", ROOT / "infra_scripts/templates/site.yaml")
        site = deploy_stack(cloudformation, "edge-site", template, site_parameters(OURS, SECRET), tags)
        for name in ("sentiment.html", "404.html"):
            s3.put_object(Bucket=site["SiteBucket"], Key=name, Body=name.encode(), ContentType="text/html")
        own = tmp_path_factory.mktemp("stack") / "api.yaml"
        own.write_text(STACK)
        deploy_stack(cloudformation, "edge-api", own, {"ApiId": site["ApiId"]}, tags)
        yield Edge(cloud, site["ApiUrl"])


def test_page_and_api_have_one_address(edge):
    edge.answers()
    assert edge.ask("").text == "sentiment.html"
    through = edge.event("api/status")
    directly = httpx.get(f"{edge.api}/status", timeout=60).json()["event"]
    for event in (through, directly):
        assert event["rawPath"] == event["requestContext"]["http"]["path"] == "/api/status"
        assert event["requestContext"]["stage"] == "api"
    assert edge.ask("api/status").headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_each_method_and_its_body_reach_the_api(edge, method):
    edge.answers()
    body = {"inputs": "Über 5 ★"} if method.startswith("P") else None
    event = edge.event("api/a/b%20c?colour=red", method, json=body)
    assert (event["rawPath"], event["rawQueryString"]) == ("/api/a/b c", "")
    assert event["requestContext"]["http"]["method"] == method
    assert body is None or json.loads(event["body"]) == body


def test_the_status_can_only_be_read(edge):
    edge.answers()
    for method in ("POST", "PUT", "DELETE"):
        assert edge.ask("api/status", method).status_code == 403


def test_only_listed_headers_reach_the_api(edge):
    edge.answers()
    sent = {
        "Cookie": "a=b",
        "Authorization": "Bearer x",
        "X-Other": "y",
        "Content-Type": "text/plain",
        "User-Agent": "z",
    }
    got = edge.event("api/x", "POST", headers=sent, content=b"hello")["headers"]
    assert got["content-type"] == "text/plain" and got["user-agent"] == "Amazon CloudFront"
    assert not {"cookie", "authorization", "x-other"} & got.keys()
    assert got["host"].endswith(".execute-api.us-east-1.amazonaws.com")


def test_a_viewer_cannot_forge_its_address_or_the_secret(edge):
    edge.answers()
    forged = {"CloudFront-Viewer-Address": "203.0.113.9:1", "X-Origin-Secret": "guess"}
    with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.7")) as visitor:
        event = visitor.post(f"{edge.cloud.site_url}api/x", headers=forged, timeout=60).json()["event"]
    address, _, port = event["headers"]["cloudfront-viewer-address"].rpartition(":")
    assert (address, event["headers"]["x-origin-secret"]) == ("127.0.0.7", SECRET) and port.isdigit()
    directly = httpx.post(f"{edge.api}/x", headers=forged, timeout=60).json()["event"]
    assert directly["headers"]["x-origin-secret"] == "guess"


def test_simultaneous_viewers_share_one_answer_for_two_seconds(edge):
    edge.answers(control="max-age=0, s-maxage=2")
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda i: edge.ask(f"api/status?{i}"), range(20)))
    assert len({answer.json()["call"] for answer in answers}) == 1
    results = sorted(answer.headers["x-cache"] for answer in answers)
    assert results == ["Hit from cloudfront"] * 19 + ["Miss from cloudfront"]
    assert {answer.headers["age"] for answer in answers if "age" in answer.headers} <= {"0", "1"}
    before = answers[0].json()["call"]
    edge.cloud.advance_clock(3)
    assert edge.call("api/status") != before


@pytest.mark.parametrize(
    ("path", "method", "status", "control", "seconds"),
    [
        ("api/status", "GET", 200, "max-age=0, s-maxage=2", 2),
        ("api/status", "GET", 200, "max-age=600", 2),  # the policy's maximum
        ("api/status", "GET", 200, "no-store", 0),
        ("api/status", "GET", 200, "", 0),
        ("api/openapi.json", "GET", 200, "public, max-age=300", 0),
        ("api/predict", "POST", 200, "max-age=300", 0),
        ("api/status", "GET", 503, "no-store", 2),
        ("api/openapi.json", "GET", 500, "no-store", 2),
        ("api/predict", "POST", 503, "no-store", 0),
        ("api/status", "GET", 429, "no-store", 0),
    ],
)
def test_answers_are_kept_as_long_as_cloudfront_keeps_them(edge, path, method, status, control, seconds):
    edge.answers(status, control)
    first, second = edge.ask(path, method), edge.ask(path, method)
    assert first.status_code == second.status_code == status
    assert (first.json()["call"] == second.json()["call"]) == bool(seconds)
    edge.cloud.advance_clock(seconds + 1)
    assert edge.call(path, method) != first.json()["call"]


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@pytest.mark.parametrize("control", ["max-age=0, s-maxage=2", "max-age=0, s-maxage=2, stale-if-error=0"])
def test_an_expired_answer_hides_a_failure_unless_it_forbids_that(edge, status, control):
    edge.answers(control=control)
    first = edge.ask("api/status")
    edge.answers(status, "no-store")
    second = edge.ask("api/status")
    assert second.status_code == (status if "stale-if-error" in control else 200)
    assert second.status_code == status or (second.json() == first.json() and int(second.headers["age"]) > 10)
    edge.answers()
    assert edge.call("api/status") != first.json()["call"]


def test_an_unknown_address_of_the_api_gets_the_error_page(edge):
    edge.answers(404, "no-store")
    unknown = edge.ask("api/nothing")
    assert (unknown.status_code, unknown.text) == (404, "404.html")
    edge.answers(409, "no-store")
    assert edge.ask("api/sleep", "POST").json()["event"]
