"""The local cloud answers only its own programs and pages, and refuses other web pages and programs."""

import contextlib
import hashlib
import http.client
import io
import json
import re
import threading
import time
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlencode, urlsplit

import boto3
import botocore.session
import pytest
from botocore import UNSIGNED
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError
from playwright.sync_api import sync_playwright

from sentiment_engine.local.aws import read_keys
from tests.doubles.chromium import find_chromium
from tests.doubles.local_models import ROLE, deploy, predict, until

JSON, FORM, TEXT = "application/json", "application/x-www-form-urlencoded", "text/plain"


def send(url: str, method: str = "GET", body: bytes = b"", headers: dict | None = None) -> tuple[int, dict, bytes]:
    "Send exactly these headers, and return status, headers and body."
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    connection.putrequest(method, parts.path + (f"?{parts.query}" if parts.query else ""), skip_host=True)
    given = {"Host": parts.netloc, "Content-Length": str(len(body))} | (headers or {})
    for name, value in given.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    reply = connection.getresponse()
    read = reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read()
    connection.close()
    return read


def keys_of(cloud) -> Credentials:
    "Return the key of the root user."
    return Credentials(*read_keys(cloud.state).values())


def signed(cloud, body: bytes = b"{}", target: str = "DynamoDB_20120810.ListTables", service: str = "dynamodb") -> dict:
    "Sign a call, and return its headers."
    headers = {"X-Amz-Target": target, "Content-Type": "application/x-amz-json-1.0"}
    request = AWSRequest("POST", cloud.url + "/", headers, body)
    SigV4Auth(keys_of(cloud), service, "us-east-1").add_auth(request)
    return dict(request.headers.items())


API = """
Resources:
  Api:
    Type: AWS::ApiGatewayV2::Api
    Properties:
      Name: door
      ProtocolType: HTTP
      CorsConfiguration: {AllowOrigins: ["%s"], AllowMethods: [GET, POST], AllowHeaders: [content-type]}
  Stage: {Type: AWS::ApiGatewayV2::Stage, Properties: {ApiId: !Ref Api, StageName: $default, AutoDeploy: true}}
  Role:
    Type: AWS::IAM::Role
    Properties:
      RoleName: door
      AssumeRolePolicyDocument:
        Statement: [{Effect: Allow, Principal: {Service: lambda.amazonaws.com}, Action: sts:AssumeRole}]
  Function:
    Type: AWS::Lambda::Function
    Properties:
      FunctionName: door
      Runtime: python3.13
      Handler: app.handler
      Role: !GetAtt Role.Arn
      Code: {S3Bucket: door, S3Key: code.zip}
  Integration:
    Type: AWS::ApiGatewayV2::Integration
    Properties:
      ApiId: !Ref Api
      IntegrationType: AWS_PROXY
      IntegrationUri: !GetAtt Function.Arn
      PayloadFormatVersion: "2.0"
  Route: {Type: AWS::ApiGatewayV2::Route, Properties: {ApiId: !Ref Api, RouteKey: $default,
    Target: !Sub "integrations/${Integration}"}}
  Allowed:
    Type: AWS::Lambda::Permission
    Properties: {FunctionName: !Ref Function, Action: lambda:InvokeFunction, Principal: apigateway.amazonaws.com}
Outputs: {Url: {Value: !GetAtt Api.ApiEndpoint}}
"""


@pytest.fixture(scope="module")
def api(cloud) -> str:  # URL
    "An HTTP API for the site, whose function always agrees."
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("app.py", "def handler(event, context): return {'statusCode': 200, 'body': 'yes'}")
    cloud.client("s3").create_bucket(Bucket="door")
    cloud.client("s3").put_object(Bucket="door", Key="code.zip", Body=code.getvalue())
    cloudformation = cloud.client("cloudformation")
    cloudformation.create_stack(
        StackName="door", TemplateBody=API % cloud.site_url[:-1], Capabilities=["CAPABILITY_NAMED_IAM"]
    )
    cloudformation.get_waiter("stack_create_complete").wait(StackName="door", WaiterConfig={"Delay": 1})
    return cloudformation.describe_stacks(StackName="door")["Stacks"][0]["Outputs"][0]["OutputValue"]


# Names and origins ---------------------------------------------------------------------------------------------------

FOREIGN_HOSTS = ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example:{port}", "localhost.evil.example"]
FOREIGN_HOSTS += [
    "evil.example#localhost",
    "0.0.0.0:{port}",
    "192.168.0.1:{port}",
    "[::2]:{port}",
    "localhost@evil",
    "",
]
OWN_HOSTS = ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST:{port}", "[::1]:{port}", "127.0.0.1"]


def pages(cloud, api: str) -> list[str]:
    "List addresses of each kind of page."
    own = [f"{cloud.url}/_local/{page}" for page in ("health", "clock", "inbox", "inbox.json")]
    return [*own, f"{api}/status", f"{cloud.url}/", f"{cloud.url}/door/code.zip", cloud.site_url]


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_requests_with_a_foreign_host_name_are_refused(cloud, api, host):
    for url in pages(cloud, api):
        status, _, body = send(url, headers={"Host": host.format(port=urlsplit(url).port)})
        assert status in (400, 403) and b"yes" not in body, url


@pytest.mark.parametrize("host", OWN_HOSTS)
def test_requests_with_a_local_host_name_are_answered(cloud, api, host):
    port = cloud.place["port"]
    assert send(f"{cloud.url}/_local/clock", headers={"Host": host.format(port=port)})[0] == 200
    assert send(f"{api}/status", headers={"Host": host.format(port=port)})[2] == b"yes"


def test_a_bucket_name_may_be_part_of_the_host_name(cloud, api):
    address = cloud.client("s3").generate_presigned_url("head_bucket", Params={"Bucket": "door"})
    assert send(address, "HEAD")[0] == 200
    config = Config(signature_version="s3v4", s3={"addressing_style": "virtual"})
    keys = {name.lower(): value for name, value in read_keys(cloud.state).items()}
    s3 = boto3.client("s3", endpoint_url=f"http://localhost:{cloud.place['port']}", config=config, **keys)
    url = s3.generate_presigned_url("get_object", Params={"Bucket": "door", "Key": "code.zip"})
    assert urlsplit(url).hostname == "door.localhost"
    asked = f"{cloud.url}{urlsplit(url).path}?{urlsplit(url).query}"
    assert send(asked, headers={"Host": urlsplit(url).netloc})[2][:2] == b"PK"


@pytest.mark.parametrize("name", ["localhost", "LocalHost", "[::1]"])
def test_an_alias_of_the_site_redirects_to_its_address(cloud, name):
    port = cloud.place["site_port"]
    for method in ("GET", "HEAD"):
        status, headers, _ = send(f"{cloud.site_url}a?b=c", method, headers={"Host": f"{name}:{port}"})
        assert status == 307 and headers["location"] == f"{cloud.site_url}a?b=c"


ORIGINS = ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:1", ""]
FOREIGN = [{"Origin": origin} for origin in ORIGINS]
FOREIGN += [{"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"} for site in ("cross-site", "same-site")]
FOREIGN += [{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}]


def writes(cloud, api: str) -> list[tuple[str, bytes, dict]]:
    "List requests that would change something: address, body and headers."
    message = {"phone": "+15005550006", "message": "from a page", "key": "k"}
    clock, textbelt, simple = f"{cloud.url}/_local/clock", f"{cloud.textbelt_url}/text", {"Content-Type": TEXT}
    found = [(clock, b'{"advance": 1}', {"Content-Type": kind}) for kind in (JSON, TEXT, FORM)]
    found += [(textbelt, urlencode(message).encode(), {"Content-Type": FORM})]
    found += [(textbelt, json.dumps(message).encode(), {"Content-Type": kind}) for kind in (JSON, TEXT)]
    found += [(f"{cloud.url}/_ministack/reset", b"", simple), (f"{cloud.url}/_ministack/config", b"{}", simple)]
    found += [(f"{cloud.url}/2015-03-31/functions", b"{}", simple), (f"{api}/start", b"{}", simple)]
    found += [(f"{cloud.url}/", b"Action=CreateUser&UserName=evil&Version=2010-05-08", {"Content-Type": FORM})]
    body = b'{"TableName": "evil"}'
    return [*found, (f"{cloud.url}/", body, signed(cloud, body, "DynamoDB_20120810.DeleteTable"))]


@pytest.mark.parametrize("page", FOREIGN, ids=str)
def test_a_page_of_another_origin_can_neither_change_nor_read_anything(cloud, api, page):
    inbox = lambda: json.loads(send(f"{cloud.inbox_url}.json")[2])  # noqa: E731
    clock = lambda: json.loads(send(f"{cloud.url}/_local/clock")[2])["ahead"]  # noqa: E731
    before = inbox(), clock()
    asked = [(url, "GET", b"", {}) for url in pages(cloud, api)]
    asked += [(url, "POST", body, headers) for url, body, headers in writes(cloud, api)]
    for url, method, body, headers in asked:
        status, given, answer = send(url, method, body, headers | page)
        assert status == 403 and b"yes" not in answer and "access-control-allow-origin" not in given, (url, headers)
    assert (inbox(), clock()) == before


def test_cors_preflights_follow_only_the_rules_of_the_api(cloud, api):
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    site, evil = {"Origin": cloud.site_url[:-1]}, {"Origin": "http://evil.example"}
    status, given, _ = send(f"{api}/start", "OPTIONS", headers=asks | site)
    assert status == 204 and given["access-control-allow-origin"] == site["Origin"]
    assert send(f"{api}/start", "POST", b"{}", site | {"Content-Type": JSON})[2] == b"yes"
    others = [f"{cloud.url}/", f"{cloud.url}/_local/clock", f"{cloud.textbelt_url}/text", cloud.site_url]
    for url in (f"{api}/start", *others):
        for origin in (evil, site) if not url.startswith(api) else (evil,):
            status, given, _ = send(url, "OPTIONS", headers=asks | origin)
            assert status >= 300 and "access-control-allow-origin" not in given


def test_a_bucket_answers_pages_that_its_cors_rules_allow(cloud, api):
    s3, page = cloud.client("s3"), {"Origin": "http://uploads.example"}
    rules = [{"AllowedOrigins": [page["Origin"]], "AllowedMethods": ["GET"]}]
    s3.create_bucket(Bucket="door-cors")
    s3.put_object(Bucket="door-cors", Key="a", Body=b"a")
    url = s3.generate_presigned_url("get_object", Params={"Bucket": "door-cors", "Key": "a"})
    assert send(url, headers=page)[0] == 403
    s3.put_bucket_cors(Bucket="door-cors", CORSConfiguration={"CORSRules": rules})
    status, given, body = send(url, headers=page)
    assert (status, body, given["access-control-allow-origin"]) == (200, b"a", page["Origin"])
    assert send(url, headers={"Origin": "http://evil.example"})[0] == 403
    assert send(f"{cloud.url}/door-cors/a", headers=page)[0] == 403  # allowed, but not signed


def test_pages_can_be_opened_in_a_tab(cloud, api):
    tab = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert send(cloud.inbox_url, headers=tab)[0] == 200
    assert send(cloud.inbox_url, headers=tab | {"Sec-Fetch-Site": "none"})[0] == 200
    assert send(f"{cloud.url}/_local/inbox.json", headers={"Sec-Fetch-Site": "same-origin"})[0] == 200
    assert send(f"{cloud.url}/_local/clock", "POST", b'{"advance": 1}', tab | {"Content-Type": JSON})[0] == 403


# Our own pages -------------------------------------------------------------------------------------------------------

NO_JSON = [b"", b"{", b"[]", b"null", b'"1"', b"1", b"\xff\xfe", b"[" * 50_000, b'{"advance": NaN}']
NO_TIMES = ["NaN", "Infinity", "-Infinity", "-1", "-0.5", "1e999", "1e300", "1e10", "9" * 400, '"60"', '""']
NO_TIMES += ["null", "true", "[]", "[1]", "{}", '{"advance": 1}']


@pytest.mark.parametrize("body", [*NO_JSON, b"{}", *(b'{"advance": %s}' % n.encode() for n in NO_TIMES)], ids=repr)
def test_the_clock_rejects_nonsense_and_keeps_running(cloud, body):
    before = json.loads(send(f"{cloud.url}/_local/clock")[2])
    status, _, answer = send(f"{cloud.url}/_local/clock", "POST", body, {"Content-Type": JSON})
    assert status == 400 and "error" in json.loads(answer)
    assert json.loads(send(f"{cloud.url}/_local/clock")[2]) == before
    assert cloud.client("ssm").describe_parameters()["ResponseMetadata"]["HTTPStatusCode"] == 200


@pytest.mark.parametrize("kind", ["", TEXT, FORM, "multipart/form-data; boundary=x", "application/jsonp", "text/json"])
def test_a_body_of_another_type_is_refused(cloud, kind):
    headers = {"Content-Type": kind} if kind else {}
    assert send(f"{cloud.url}/_local/clock", "POST", b'{"advance": 1}', headers)[0] == 415
    if kind != FORM:
        assert send(f"{cloud.textbelt_url}/text", "POST", b"phone=1&message=m&key=k", headers)[0] == 415


@pytest.mark.parametrize("body", NO_JSON)
def test_the_textbelt_stand_in_refuses_invalid_json(cloud, body):
    assert send(f"{cloud.textbelt_url}/text", "POST", body, {"Content-Type": JSON})[0] == 400


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_the_local_pages_are_read_only(cloud, method):
    for page in ("health", "inbox", "inbox.json", "clock"):
        if (page, method) != ("clock", "POST"):
            assert send(f"{cloud.url}/_local/{page}", method)[0] == 405
    assert send(f"{cloud.url}/_local/faults", method)[0] == 404


# Signatures ----------------------------------------------------------------------------------------------------------


def first_calls(cloud) -> Iterator[tuple[str, str]]:
    "Return an operation without required parameters for each service of the emulator."
    from ministack.app import SERVICE_REGISTRY

    session = botocore.session.get_session()
    own = {*SERVICE_REGISTRY, *(part for entry in SERVICE_REGISTRY.values() for part in entry.get("aliases", ()))}
    for service in session.get_available_services():
        model = session.get_service_model(service) if service in own | {"sagemaker", "apigatewayv2"} else None
        for name in model.operation_names if model else ():
            operation = model.operation_model(name)
            if name.startswith(("List", "Describe", "Get")) and not (
                operation.input_shape and operation.input_shape.required_members
            ):
                yield service, name
                break


def outcome(cloud, service: str, operation: str, keys: dict, **config) -> str:  # error code; "": success
    "Make a call with a key."
    options = Config(retries={"max_attempts": 0}, parameter_validation=False, inject_host_prefix=False, **config)
    client = boto3.client(service, endpoint_url=cloud.url, region_name="us-east-1", config=options, **keys)
    try:
        client._make_api_call(operation, {})
    except ClientError as e:
        return e.response["Error"]["Code"]
    except ResponseParserError as e:  # an unsigned request does not show its service's protocol
        return str(e)
    return ""


def test_every_service_refuses_calls_with_an_unknown_key(cloud):
    calls = list(first_calls(cloud))
    assert len(calls) > 50
    root = keys_of(cloud)
    wrong = [("test", "test"), ("local", "local"), ("000000000000", root.secret_key), (root.access_key, "guessed")]
    for number, (service, operation) in enumerate(calls):
        access, secret = wrong[number % len(wrong)]
        keys = {"aws_access_key_id": access, "aws_secret_access_key": secret}
        assert re.search(
            "Token|Key|Signature|Denied|Client|Auth|Forbidden", outcome(cloud, service, operation, keys)
        ), service
        code = outcome(cloud, service, operation, {}, signature_version=UNSIGNED)
        assert re.search("Token|Denied|Auth|Parameter|Client|403", code), service
        protocol = botocore.session.get_session().get_service_model(service).resolved_protocol
        if protocol in ("json", "query"):  # for the others, only a signature names the service
            assert re.fullmatch(r"\w*(Token|Denied)\w*", code), (service, code)


OLD = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y%m%dT%H%M%SZ")
TAMPERED = {
    "another body": ({}, b'{"Limit": 1}'),
    "another target": ({"X-Amz-Target": "DynamoDB_20120810.DescribeLimits"}, b"{}"),
    "an unsigned header that counts": ({"X-Amz-Security-Token": "t"}, b"{}"),
    "an old date": ({"X-Amz-Date": OLD}, b"{}"),
    "no date": ({"X-Amz-Date": ""}, b"{}"),
    "a date that is none": ({"X-Amz-Date": "now"}, b"{}"),
    "a body that nobody signed": ({"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"}, b"{}"),
    "no signature": ({"Authorization": "AWS4-HMAC-SHA256 Credential=a/b/c/d/aws4_request"}, b"{}"),
    "another algorithm": ({"Authorization": "AWS4-NONE Credential=a, SignedHeaders=host, Signature=0"}, b"{}"),
    "a bearer": ({"Authorization": "Bearer token"}, b"{}"),
    "an old signature": ({"Authorization": "AWS test:c2ln"}, b"{}"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_signature_is_valid_for_one_request_only(cloud, what):
    headers = signed(cloud)
    assert send(f"{cloud.url}/", "POST", b"{}", headers)[0] == 200
    changes, body = TAMPERED[what]
    kept = {name: value for name, value in headers.items() if name.lower() not in map(str.lower, changes)}
    status, _, answer = send(f"{cloud.url}/", "POST", body, kept | changes)
    assert status in (400, 403) and b"TableNames" not in answer and b"__type" in answer


def test_a_forged_key_is_refused_even_where_none_is_needed(cloud, api):
    scope = f"{keys_of(cloud).access_key}/{datetime.now(UTC):%Y%m%d}/us-east-1/sagemaker/aws4_request"
    forged = f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host;x-amz-date;x-amz-target, Signature={'0' * 64}"
    names = {"X-Amz-Target": "SageMaker.ListModels", "X-Amz-Date": f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"}
    query = {"X-Amz-Algorithm": "AWS4-HMAC-SHA256", "X-Amz-Credential": scope, "X-Amz-Date": names["X-Amz-Date"]}
    query |= {"X-Amz-Expires": "60", "X-Amz-SignedHeaders": "host;x-amz-target", "X-Amz-Signature": "0" * 64}
    free = [("POST", f"{api}/x"), ("PUT", f"{cloud.url}/_ministack/cfn-response/x"), ("POST", f"{cloud.url}/")]
    free += [("POST", f"{cloud.url}/restapis/a/b/_user_request_/c"), ("OPTIONS", f"{api}/x")]
    for method, url in free:
        for more, headers in (("", names | {"Authorization": forged}), (f"?{urlencode(query)}", names)):
            status, _, answer = send(url + more, method, b"{}", headers)
            assert status in (400, 403) and b"Models" not in answer, (method, url)
    exchange = b"Action=AssumeRoleWithWebIdentity&Version=2011-06-15"
    status, _, answer = send(f"{cloud.url}/", "POST", exchange, {"Content-Type": FORM, "Authorization": forged})
    assert status in (400, 403) and b"sagemaker" not in answer.lower()


def test_a_signature_is_valid_for_one_path_query_and_method(cloud):
    headers = signed(cloud)
    for method, path in (("PUT", "/"), ("POST", "/x"), ("POST", "/?a=b"), ("POST", "/?X-Amz-Signature=1")):
        assert send(cloud.url + path, method, b"{}", headers)[0] in (400, 403)


def test_the_hash_of_the_body_is_checked(cloud, api):
    url, text = f"{cloud.url}/door/hashed", hashlib.sha256(b"told").hexdigest()
    request = AWSRequest("PUT", url, {"X-Amz-Content-SHA256": text}, b"told")
    SigV4Auth(keys_of(cloud), "s3", "us-east-1").add_auth(request)
    headers = dict(request.headers.items())
    assert send(url, "PUT", b"sent", headers)[0] in (400, 403)
    assert send(url, "PUT", b"told", headers)[0] == 200


VERSIONS = ["s3", "s3v4"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_presigned_url_is_valid_for_its_object_and_duration(cloud, api, version):
    keys = {name.lower(): value for name, value in read_keys(cloud.state).items()}
    s3 = boto3.client(
        "s3", endpoint_url=cloud.url, region_name="us-east-1", config=Config(signature_version=version), **keys
    )
    place = {"Bucket": "door", "Key": "a key/with ä+&=.txt"}
    put = s3.generate_presigned_url("put_object", Params=place)
    get = s3.generate_presigned_url("get_object", Params=place, ExpiresIn=2)
    assert send(put, "PUT", b"presigned")[0] == 200 and send(get)[2] == b"presigned"
    wrong = get.replace("/door/", "/deer/"), get.replace("Signature=", "Signature=0"), re.sub("AKIA.", "AKIA", get)
    for changed in wrong:
        assert send(changed)[0] in (400, 403)
    assert send(get, "DELETE")[0] == 403
    assert send(get, headers={"X-Amz-Target": "DynamoDB_20120810.ListTables"})[0] in (400, 403)
    time.sleep(3.1)
    assert send(get)[0] == 403
    if version == "s3v4":
        forever = s3.generate_presigned_url("get_object", Params=place, ExpiresIn=700_000)
        assert send(forever)[0] == 403


def chunked(cloud, parts: list[bytes], trailer: bytes = b"") -> tuple[dict, bytes]:
    "Write a body in signed chunks, with its headers."
    name = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" + "-TRAILER" * bool(trailer)
    size = sum(map(len, parts))
    headers = {
        "X-Amz-Content-SHA256": name,
        "X-Amz-Decoded-Content-Length": str(size),
        "Content-Encoding": "aws-chunked",
    }
    headers |= {"X-Amz-Trailer": trailer.partition(b":")[0].decode()} if trailer else {}
    request = AWSRequest("PUT", f"{cloud.url}/door/chunks", headers)
    auth = SigV4Auth(keys_of(cloud), "s3", "us-east-1")
    auth.add_auth(request)
    date, empty = request.context["timestamp"], hashlib.sha256(b"").hexdigest()
    scope, previous = auth.credential_scope(request), request.headers["Authorization"].rpartition("Signature=")[2]

    def sign(kind: str, *texts: str) -> str:
        return auth.signature("\n".join([f"AWS4-HMAC-SHA256-{kind}", date, scope, previous, *texts]), request)

    body = b""
    for part in [*parts, b""]:
        previous = sign("PAYLOAD", empty, hashlib.sha256(part).hexdigest())
        body += b"%x;chunk-signature=%s\r\n" % (len(part), previous.encode()) + (part + b"\r\n" if part else b"")
    if trailer:
        last = sign("TRAILER", hashlib.sha256(trailer + b"\n").hexdigest())
        body += trailer + b"\r\nx-amz-trailer-signature:" + last.encode() + b"\r\n"
    return dict(request.headers.items()), body + b"\r\n"


@pytest.mark.parametrize("trailer", [b"", b"x-amz-checksum-crc32:hv4uIQ=="])
def test_every_chunk_of_a_stream_needs_a_valid_signature(cloud, api, trailer):
    headers, body = chunked(cloud, [b"first " * 2000, b"second"], trailer)
    url = f"{cloud.url}/door/chunks"
    for changed in (body.replace(b"second", b"seconD"), body.replace(b"first", b"First", 1), body[: len(body) // 2]):
        assert send(url, "PUT", changed, headers)[0] in (400, 403)
    if trailer:
        assert send(url, "PUT", body.replace(b"hv4uIQ==", b"AAAAAA=="), headers)[0] in (400, 403)
        return  # the checksum does not match the body
    assert send(url, "PUT", body, headers)[0] == 200
    assert cloud.client("s3").get_object(Bucket="door", Key="chunks")["Body"].read() == b"first " * 2000 + b"second"


def test_large_bodies_are_checked_too(cloud, api):
    cloud.client("s3").put_object(Bucket="door", Key="large", Body=b"x" * 3_000_000)
    s3 = boto3.client(
        "s3", endpoint_url=cloud.url, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        s3.put_object(Bucket="door", Key="large", Body=b"y" * 3_000_000)


def test_role_keys_cannot_be_derived_from_names(cloud, api):
    assert send(f"{api}/", "POST", b"")[2] == b"yes"  # the function has run, so its session exists
    deploy(cloud, "keyed")
    account = "000000000000"
    lambdas = f"arn:aws:lambda:us-east-1:{account}:function:door:arn:aws:iam::{account}:role/door"
    digest = hashlib.sha256(lambdas.encode()).hexdigest()
    guesses = [(digest[:16], f"secret:{digest}", f"token:{digest}")]
    for service, role in (("sagemaker", "tests"), ("glue", "tests"), ("sagemaker", "door")):
        token = hashlib.sha256(f"token:{service}:{role}".encode()).hexdigest()
        guesses.append((token[:16], f"secret:{service}:{role}", f"token:{service}:{role}"))
    for access, *texts in guesses:
        secret, token = (hashlib.sha256(text.encode()).hexdigest() for text in texts)
        keys = {
            "aws_access_key_id": f"ASIA{access.upper()}",
            "aws_secret_access_key": secret,
            "aws_session_token": token,
        }
        assert outcome(cloud, "sts", "GetCallerIdentity", keys) == "InvalidClientTokenId"


def test_each_cloud_has_its_own_key_and_keeps_it(cloud, tmp_path):
    from sentiment_engine.local.cloud import LocalCloud

    with LocalCloud(tmp_path / "other", port=0, site_port=0) as other:
        keys = read_keys(other.state)
        assert not set(keys.values()) & set(read_keys(cloud.state).values())
        assert other.root_client("sts").get_caller_identity()["Arn"].endswith(":root")
        wrong = {name.lower(): value for name, value in read_keys(cloud.state).items()}
        assert outcome(other, "sts", "GetCallerIdentity", wrong) == "InvalidClientTokenId"
    with LocalCloud(tmp_path / "other", port=0, site_port=0) as other:
        assert read_keys(other.state) == keys


# Files and ports -----------------------------------------------------------------------------------------------------


def test_the_files_of_the_cloud_are_private_to_the_user(cloud, api):
    deploy(cloud, "private")
    assert "POSITIVE" in predict(cloud, "private", "lovely")
    send(
        f"{cloud.textbelt_url}/text",
        "POST",
        b'{"phone": "+15005550006", "message": "m", "key": "k"}',
        {"Content-Type": JSON},
    )
    assert send(f"{api}/", "POST", b"")[2] == b"yes"
    cloud.advance_clock(1)
    cloud.account_environment()
    found = [cloud.state, *cloud.state.rglob("*")]
    assert {"keys.json", "cloud.log", "sms.json", "clock", "cloud.json", "lock"} <= {path.name for path in found}
    assert [path for path in found if not path.is_symlink() and path.stat().st_mode & 0o077] == []


def test_model_servers_refuse_requests_from_pages(cloud):
    deploy(cloud, "shut")
    port = int((cloud.state / "endpoints/shut/AllTraffic/port").read_text())
    here, body = f"http://127.0.0.1:{port}", b'{"inputs": "lovely"}'
    assert send(f"{here}/invocations", "POST", body, {"Content-Type": JSON})[0] == 200
    for page in (*FOREIGN, {"Host": "evil.example"}, {"Host": f"evil.example:{port}"}):
        assert send(f"{here}/invocations", "POST", body, {"Content-Type": TEXT} | page)[0] == 403
        assert send(f"{here}/metrics", headers=page)[0] == send(f"{here}/ping", headers=page)[0] == 403


def test_no_server_accepts_websockets(cloud, api):
    ask = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    ask |= {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Content-Length": "0"}
    for url in (f"{cloud.url}/", f"{api}/", f"{cloud.url}/_local/clock", cloud.site_url):
        assert send(url, headers=ask)[0] in (400, 403)


# A real browser ------------------------------------------------------------------------------------------------------

ATTACK = """
async ({cloud, textbelt, api, site, model, lambda}) => {
  const read = [], types = ['text/plain', 'application/x-www-form-urlencoded', 'application/json'];
  const modes = ['no-cors', 'cors'], message = {phone: '+15005550006', message: 'evil', key: 'k'};
  const posts = [[cloud + '/_local/clock', '{"advance": 86400}'], [textbelt + '/text', JSON.stringify(message)],
    [textbelt + '/text', new URLSearchParams(message).toString()], [cloud + '/_ministack/reset', ''],
    [cloud + '/2015-03-31/functions', lambda], [api + '/start', '{}'], [model + '/invocations', '{"inputs": "lovely"}'],
    [cloud + '/', 'Action=CreateUser&UserName=evil&Version=2010-05-08']];
  const call = {'x-amz-target': 'DynamoDB_20120810.ListTables', authorization: 'AWS4-HMAC-SHA256 Credential=test/x'};
  const ask = async (url, given) => { try { read.push(await (await fetch(url, given)).text()); } catch {} };
  for (const [url, body] of posts) for (const mode of modes) for (const type of types) {
    await ask(url, {method: 'POST', mode, headers: {'content-type': type}, body});
    await ask(url, {method: 'POST', mode, headers: {'content-type': type, ...call}, body});
  }
  const gets = ['/_local/inbox.json', '/_local/clock', '/', '/door/code.zip'].map((path) => cloud + path);
  gets.push(api + '/status', model + '/metrics', site);
  for (const url of gets) for (const mode of modes) await ask(url, {mode});
  const wait = (start) => new Promise((done) => { start(done); setTimeout(done, 1000); });
  for (const url of gets) for (const tag of ['img', 'script', 'iframe']) await wait((done) => {
    const element = document.createElement(tag);
    [element.onload, element.onerror, element.src] = [done, done, url];
    document.body.append(element);
  });
  for (const [url, body] of posts) {
    const [frame, form, field] = ['iframe', 'form', 'input'].map((tag) => document.createElement(tag));
    frame.name = 'f' + Math.random();
    [form.method, form.action, form.target, form.enctype] = ['POST', url, frame.name, 'text/plain'];
    [field.name, field.value] = [body, ''];
    form.append(field);
    document.body.append(frame, form);
    form.submit();
    navigator.sendBeacon(url, body);
  }
  for (const url of [cloud, site, model]) await wait((done) => {
    const socket = new WebSocket(url.replace('http', 'ws') + '/');
    socket.onopen = () => { read.push('open'); done(); };
    socket.onerror = socket.onclose = done;
  });
  await new Promise((done) => setTimeout(done, 500));
  return read.filter(Boolean);
}
"""


class Quiet(BaseHTTPRequestHandler):
    "An empty page, and one that frames itself without an origin."

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        frame = '<iframe id="s" sandbox="allow-scripts allow-forms" srcdoc="<body>"></iframe>'
        self.wfile.write(f"<body>{frame if self.path == '/sandbox' else ''}".encode())

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served() -> Iterator[int]:  # port
    "Serve an attacker's pages on this machine."
    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture(scope="module")
def rebound():
    "A browser that resolves all of the attacker's names to this machine."
    rules = "--host-resolver-rules=MAP *.example 127.0.0.1"
    flags = ["--no-sandbox", "--disable-gpu", "--no-proxy-server", rules, "--allow-file-access-from-files"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=flags)
        yield browser
        browser.close()


PLACES = ["another port", "another name", "a sandbox", "a file"]


@pytest.mark.parametrize("place", PLACES)
def test_a_foreign_page_in_a_browser_cannot_affect_the_cloud(cloud, api, rebound, place, tmp_path):
    deploy(cloud, f"page-{PLACES.index(place)}")
    model = (cloud.state / f"endpoints/page-{PLACES.index(place)}/AllTraffic/port").read_text()
    code = {"FunctionName": "evil", "Runtime": "python3.13", "Role": ROLE, "Handler": "a.b", "Code": {"ZipFile": ""}}
    given = {"cloud": cloud.url, "textbelt": cloud.textbelt_url, "api": api, "site": cloud.site_url[:-1]}
    given |= {"model": f"http://127.0.0.1:{model}", "lambda": json.dumps(code)}
    before = json.loads(send(f"{cloud.url}/_local/clock")[2]), json.loads(send(f"{cloud.inbox_url}.json")[2])
    counted = json.loads(send(f"{given['model']}/metrics")[2])["answers"]
    (tmp_path / "page.html").write_text("<body>")
    with served() as port:
        page = rebound.new_page()
        urls = [f"http://127.0.0.1:{port}/", f"http://evil.example:{port}/", f"http://127.0.0.1:{port}/sandbox"]
        page.goto([*urls, f"file://{tmp_path}/page.html"][PLACES.index(place)])
        frame = page.frames[-1] if place == "a sandbox" else page.main_frame
        assert frame.evaluate(ATTACK, given) == []
        page.close()
    assert (json.loads(send(f"{cloud.url}/_local/clock")[2]), json.loads(send(f"{cloud.inbox_url}.json")[2])) == before
    assert "evil" not in [f["FunctionName"] for f in cloud.client("lambda").list_functions()["Functions"]]
    assert "evil" not in [user["UserName"] for user in cloud.client("iam").list_users()["Users"]]
    assert cloud.client("s3").head_object(Bucket="door", Key="code.zip")  # it has not been wiped
    assert json.loads(send(f"{given['model']}/metrics")[2])["answers"] == counted


def test_a_host_name_rebound_to_this_machine_shows_nothing(cloud, api, rebound):
    page = rebound.new_page()
    for url in (*pages(cloud, api), f"http://127.0.0.1:{cloud.place['site_port']}/config.json"):
        there = page.goto(url.replace("127.0.0.1", "evil.example"))
        assert there.status in (400, 403) and "yes" not in page.content()
        asked = page.evaluate("fetch(location.href).then((a) => a.status)")
        assert asked in (400, 403)
    page.close()


def test_localhost_shows_the_site_in_a_browser(cloud, rebound):
    page = rebound.new_page()
    page.goto(cloud.site_url.replace("127.0.0.1", "localhost"))
    assert page.url == cloud.site_url
    page.goto(cloud.inbox_url.replace("127.0.0.1", "localhost"))
    until(lambda: page.get_by_text("Text messages").count())
    assert page.evaluate("fetch('inbox.json').then((a) => a.status)") == 200
    page.close()
