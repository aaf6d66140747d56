"""Neither a shell's AWS settings nor its proxies redirect the local cloud's programs."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import botocore
import botocore.session
import pytest

from tests import ROOT

CONFIG = """
[default]
region = eu-north-1
endpoint_url = http://127.0.0.1:9
services = elsewhere
credential_process = /bin/false
sso_start_url = https://sso.example
s3 =
    addressing_style = virtual
    use_dualstack_endpoint = true
use_fips_endpoint = true
ca_bundle = /nowhere
[services elsewhere]
s3 =
  endpoint_url = http://127.0.0.1:9
"""


def variables() -> set[str]:
    "Name every variable that botocore and boto3 read, and one for each service's endpoint."
    files = [path for package in (botocore, boto3) for path in Path(package.__file__).parent.glob("*.py")]
    found = {name for path in files for name in re.findall(r"['\"]((?:AWS|BOTO)_[A-Z0-9_]+)['\"]", path.read_text())}
    session = botocore.session.get_session()
    ids = [
        session.get_service_model(name).service_id for name in ("s3", "sagemaker", "lambda", "sts", "cloudformation")
    ]
    return found | {f"AWS_ENDPOINT_URL_{name.replace(' ', '_').upper()}" for name in ids}


def hostile(name: str) -> str:
    "Return a misleading value."
    if "ENDPOINT_URL" in name and "IGNORE" not in name:
        return "http://127.0.0.1:9"
    if re.search("URI|FILE|BUNDLE|CONFIG|PATH", name):
        return "/nowhere"
    if re.search("USE|IGNORE|DISABLE|ENABLED", name):
        return "false" if name == "AWS_EC2_METADATA_DISABLED" else "true"
    if re.search("ATTEMPTS|TIMEOUT|PORT", name):
        return "1"
    return "eu-north-1" if "REGION" in name else "work"


@contextmanager
def listening() -> Iterator[tuple[int, list[bytes]]]:  # port; the first line of each connection
    "A stand-in for a proxy that never answers."
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(2)
                    heard.append(connection.recv(4096).partition(b"\r\n")[0])
                    connection.sendall(b"HTTP/1.1 418 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        threading.Thread(target=listen, daemon=True).start()
        yield server.getsockname()[1], heard
        server.close()


@pytest.fixture
def shell(tmp_path) -> dict[str, str]:
    "The environment of an AWS user."
    (tmp_path / "home/.aws").mkdir(parents=True)
    (tmp_path / "home/.aws/config").write_text(CONFIG)
    names = variables()
    assert len(names) > 40 and {"AWS_PROFILE", "AWS_CA_BUNDLE", "AWS_ROLE_ARN", "BOTO_CONFIG"} <= names
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return kept | {name: hostile(name) for name in names} | {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}


def run(words: list[str], environment: dict[str, str]) -> str:
    "Run a program and return what it prints."
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# The shortest complete path: a cloud, one notebook, and the clients of the visit, the page and a Lambda.
PLAY = """
import functools, json, os, sys, urllib.request
sys.path[:0] = ["website", "."]
from pathlib import Path
import boto3
from sentiment_engine.deploy import phases
from sentiment_engine.deploy.visit import local_visit
from sentiment_engine.local.cloud import LocalCloud
phases.LocalCloud = functools.partial(LocalCloud, port=0, site_port=0)
phases.ROOT = Path(sys.argv[1])
phases.RUNS = phases.ROOT / "runs"
with phases.local_cloud() as cloud:
    if sys.argv[2] == "deploy":
        phases.deploy("local", only="00")
    print(*[name for name in os.environ if name.startswith(("AWS_", "BOTO_"))])
    for service in ("s3", "sagemaker", "sts", "cloudformation"):
        assert boto3.client(service).meta.endpoint_url == cloud.url
    assert boto3.client("sagemaker").list_endpoints()["Endpoints"] == []
    print(boto3.client("sts").get_caller_identity()["Arn"])
    visit = local_visit(cloud, cloud.url + "/_local")
    print(visit.call("GET", "/health")[0], visit.inbox())
    cloud.client = cloud.root_client
    import app
    from tests.local.test_cloud import function, invoke
    print(app.request(cloud.url + "/_local", "GET", "/health").code, app.published())
    outside = "import urllib.request, urllib.error"
    outside += "\\n    try: urllib.request.urlopen('http://lambda.example/', timeout=5)"
    outside += "\\n    except urllib.error.HTTPError as e: seen = e.code\\n    boto3.client('s3').list_buckets()"
    outside += "\\n    return [seen, {k: v for k, v in os.environ.items() if k.startswith('AWS_')}]"
    function(cloud, "outside", outside)
    seen, there = invoke(cloud, "outside")
    print(seen, there["AWS_ENDPOINT_URL"] == cloud.url, set(there.values()) & {"work", "eu-north-1"})
    try:
        urllib.request.urlopen("http://textbelt.example/", timeout=5)
    except urllib.error.HTTPError as e:
        print(e.code)
"""
PLAYED = ["arn:aws:iam::000000000000:root", "200 []", "200 {}", "418 True set()", "418"]


NO_PROXIES = [("http", "intranet.example,10.0.0.1", "deploy"), ("socks5", "", "")]


@pytest.mark.parametrize(("scheme", "spared", "more"), NO_PROXIES)
def test_a_deployment_and_a_visit_never_leave_this_machine(shell, tmp_path, scheme, spared, more):
    with listening() as (port, heard):
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), f"http://127.0.0.1:{port}")
        proxies |= dict.fromkeys(("all_proxy", "ALL_PROXY"), f"{scheme}://127.0.0.1:{port}")
        proxies |= {} if spared is None else {"no_proxy": spared, "NO_PROXY": spared}
        told = run([sys.executable, "-c", PLAY, str(tmp_path), more], shell | proxies).splitlines()
    assert [line for line in PLAYED if line not in told] == []
    assert set(told[-6].split()) <= {
        *("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION"),
        *("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_EC2_METADATA_DISABLED"),
    }
    assert [line.split()[1] for line in heard] == [b"http://lambda.example/", b"http://textbelt.example/"]


@pytest.mark.parametrize("quote", ['"', ""])
def test_a_shell_with_the_printed_environment_reaches_the_cloud(shell, tmp_path, quote):
    script = f"{shlex.quote(sys.executable)} infra_scripts/local_cloud.py"
    state = f"--state {shlex.quote(str(tmp_path / 'state'))}"
    ask = 'import boto3, json, os; print(json.dumps([boto3.client("s3").list_buckets()["Buckets"], dict(os.environ)]))'
    lines = f"""
set -e
{script} start {state} --port 0 --site-port 0 >/dev/null
eval {quote}$({script} env {state}){quote}
{shlex.quote(sys.executable)} -c {shlex.quote(ask)}
{script} stop {state} >/dev/null
"""
    buckets, environment = json.loads(run(["sh", "-c", lines], shell))
    assert buckets == [] and "work" not in environment.values()
    assert not [name for name in environment if name.startswith("AWS_") and environment[name] == hostile(name)]


def test_the_clients_of_the_cloud_ignore_the_shell_environment(cloud, shell, monkeypatch):
    for name, value in shell.items():
        monkeypatch.setenv(name, value)
    assert cloud.root_client("s3").list_buckets()["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert cloud.root_client("sagemaker").list_endpoints()["Endpoints"] is not None
