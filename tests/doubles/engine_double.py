"The AWS of the lifecycle tests: DynamoDB with real conditions, and small scriptable doubles on one clock."

import atexit
import contextlib
import functools
import importlib.util
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import replace
from types import SimpleNamespace

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from sentiment_engine.local.expressions import read_expressions
from sentiment_engine.local.records import AwsError
from sentiment_engine.service import api, lifecycle, model_state, standby
from sentiment_engine.service.lifecycle import Engine
from sentiment_engine.service.model_state import read_row
from sentiment_engine.service.notifications import NotSent
from sentiment_engine.service.usage import Usage, read_usage
from sentiment_engine.settings import Settings, endpoint_name, usage_table
from tests import ROOT
from tests.doubles import contract

ADA, BOB, CAROL = "+12025550123", "+12025550145", "+12025550178"


def free_port() -> int:
    "Return a free port."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@functools.cache
def ministack() -> str:  # its address
    "Start a plain ministack for this test process; it ends with it."
    port, folder = free_port(), tempfile.TemporaryDirectory(prefix="ministack-")
    env = os.environ | {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "IOT_MTLS_ENABLED": "0"}
    env |= {"SFTP_ENABLED": "0", "PERSIST_STATE": "0", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    server = subprocess.Popen(
        [sys.executable, "-m", "ministack"],
        cwd=folder.name,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    atexit.register(_end, server, folder)
    for _ in range(1200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return f"http://127.0.0.1:{port}"
        time.sleep(0.1)
    raise RuntimeError("ministack did not start within 120 seconds")


def _end(server: subprocess.Popen, folder: tempfile.TemporaryDirectory):
    "Stop ministack and its Lambda workers."
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(5)
        os.killpg(server.pid, signal.SIGKILL)
    server.wait(60)
    folder.cleanup()


def session(address: str) -> boto3.Session:
    "Return a session that uses ministack regardless of the environment."
    made = boto3.Session("test", "test", region_name="us-east-1")
    config = Config(max_pool_connections=64, retries={"mode": "standard", "total_max_attempts": 4})
    made.client = functools.partial(made.client, endpoint_url=address, config=config)
    return made


@functools.cache
def dynamodb():
    "Return the client that all tests share, because creating one takes longer than a test."
    client = session(ministack()).client("dynamodb")
    client.meta.events.register("provide-client-params.dynamodb", refuse_wrong_expressions)
    return client


def refuse_wrong_expressions(params: dict, **_):
    "Refuse calls that AWS refuses and ministack accepts, like the local cloud."
    try:
        read_expressions(params)
    except AwsError as e:
        raise aws_error(e.code, e.message) from None


def aws_error(code: str, message: str = "") -> ClientError:
    "Make the exception that boto3 raises."
    return ClientError({"Error": {"Code": code, "Message": message}}, "Operation")


def logged(caplog) -> str:
    "Return all log output, including the fields of the messages."
    return " ".join(str(vars(record)) for record in caplog.records)


class Clock:
    "The clock of the engine's modules."

    perf_counter = staticmethod(time.perf_counter)

    def __init__(self):
        self.now = 1_800_000_000.0

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float):
        self.now += seconds


BUSY = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")  # an endpoint that cannot be deleted now


class SageMaker:
    "Endpoints and endpoint configs in two dictionaries, with SageMaker's own error messages."

    def __init__(self, clock: Clock):
        self.endpoints, self.configs, self.lock, self.clock = {}, {}, threading.Lock(), clock
        self.errors = {}  # operation: exceptions to raise next; after it took effect if .after is set
        self.deaf = False  # whether it accepts deletions without deleting anything
        self.slow = False  # whether a deletion lasts until `gone`
        self.calls = []
        self.answer = [
            {"label": "POSITIVE", "score": 0.9, "scores": {"NEGATIVE": 0.1, "POSITIVE": 0.9}}
            | {"sure": True, "tokens": 5, "truncated": False, "windows": 1}
        ]

    def __getattr__(self, operation):
        def call(**arguments):
            with self.lock:
                self.calls.append((operation, arguments))
                error = self.errors[operation].pop(0) if self.errors.get(operation) else None
                if error is not None and not getattr(error, "after", False):
                    raise error
                result = getattr(self, f"do_{operation}")(**arguments)
                if error is not None:
                    raise error
                return result

        if operation.startswith("do_"):
            raise AttributeError(operation)
        return call

    def _find(self, kind, name):
        if name not in kind:
            raise aws_error("ValidationException", f'Could not find endpoint "{name}".')
        return kind[name]

    def _add(self, kind, name, **fields):
        if name in kind:
            raise aws_error("ValidationException", f'Cannot create already existing endpoint "{name}".')
        kind[name] = fields | {"made": self.clock.now}

    def do_create_endpoint_config(self, EndpointConfigName, ProductionVariants, Tags=(), DataCaptureConfig=None):
        variant = ProductionVariants[0]
        capture = DataCaptureConfig or {}
        self._add(
            self.configs,
            EndpointConfigName,
            type=variant["InstanceType"],
            model=variant["ModelName"],
            tags=list(Tags),
            capture=capture,
        )

    def do_create_endpoint(self, EndpointName, EndpointConfigName, Tags=()):
        self._find(self.configs, EndpointConfigName)
        self._add(self.endpoints, EndpointName, status="Creating", reason="", tags=list(Tags))

    def do_describe_endpoint(self, EndpointName):
        found = self._find(self.endpoints, EndpointName)
        arn = f"arn:aws:sagemaker:us-east-1:1:endpoint/{EndpointName}"
        return {"EndpointStatus": found["status"], "FailureReason": found["reason"], "EndpointArn": arn}

    def do_delete_endpoint(self, EndpointName):
        if self._find(self.endpoints, EndpointName)["status"] in BUSY:
            raise aws_error("ValidationException", f'Cannot update in-progress endpoint "{EndpointName}".')
        if self.slow:
            self.endpoints[EndpointName]["status"] = "Deleting"
        elif not self.deaf:
            del self.endpoints[EndpointName]

    def gone(self):
        "End every deletion."
        self.endpoints = {n: e for n, e in self.endpoints.items() if e["status"] != "Deleting"}

    def do_delete_endpoint_config(self, EndpointConfigName):
        self._find(self.configs, EndpointConfigName)
        del self.configs[EndpointConfigName]

    def do_list_tags(self, ResourceArn):
        kind, name = ResourceArn.split(":")[-1].split("/")
        return {"Tags": self._find(self.endpoints if kind == "endpoint" else self.configs, name)["tags"]}

    def get_paginator(self, operation):
        kind, found = ("EndpointConfig", self.configs) if "config" in operation else ("Endpoint", self.endpoints)

        def paginate(NameContains):
            arn = f"arn:aws:sagemaker:us-east-1:1:{'endpoint-config' if 'config' in operation else 'endpoint'}/"
            names = [n for n in list(found) if NameContains in n]
            status = {n: {} if "config" in operation else {"EndpointStatus": found[n]["status"]} for n in names}
            made = {n: found[n].get("made", self.clock.now) for n in names}
            born = {n: lifecycle.datetime.fromtimestamp(at, lifecycle.UTC) for n, at in made.items()}
            listed = [{f"{kind}Name": n, f"{kind}Arn": arn + n, "CreationTime": born[n], **status[n]} for n in names]
            yield {f"{kind}s": listed}

        return SimpleNamespace(paginate=paginate)

    def do_invoke_endpoint(self, EndpointName, Body, ContentType, Accept, InferenceId=""):
        if EndpointName not in self.endpoints:
            raise aws_error("ValidationError", f"Endpoint {EndpointName} of account 1 not found.")
        request = json.loads(Body)
        count = len(request["inputs"]) if isinstance(request["inputs"], list) else 1
        why = {"explanation": [{"start": 0, "end": 5, "influence": 0.4}]}
        told = [one | why if request.get("explain") else one for one in self.answer]
        return {"Body": io.BytesIO(json.dumps(told * count).encode())}


class Scheduler:
    "One-time schedules in a dictionary; `due` returns those whose time has come."

    def __init__(self):
        self.schedules = {}

    def create_schedule(self, Name, ScheduleExpression, Target, GroupName, **rest):
        assert rest == {"FlexibleTimeWindow": {"Mode": "OFF"}, "ActionAfterCompletion": "DELETE"} | {
            "ScheduleExpressionTimezone": "UTC"
        }
        if Name in self.schedules:
            raise aws_error("ConflictException", f"Schedule {Name} already exists.")
        at = re.fullmatch(r"at\((\S+)\)", ScheduleExpression)[1]
        self.schedules[Name] = lifecycle.datetime.fromisoformat(at + "+00:00").timestamp(), json.loads(Target["Input"])

    def list_schedules(self, GroupName, NamePrefix):
        return {"Schedules": [{"Name": n} for n in list(self.schedules) if n.startswith(NamePrefix)]}

    def delete_schedule(self, GroupName, Name):
        if self.schedules.pop(Name, None) is None:
            raise aws_error("ResourceNotFoundException", f"Schedule {Name} does not exist.")

    def due(self, now: float) -> list[dict]:
        ready = [n for n, (at, _) in self.schedules.items() if at <= now]
        return [self.schedules.pop(n)[1] for n in ready]


class Logs:
    "Log groups in a dictionary; they are listed `page` at a time."

    def __init__(self, page: int = 50):
        self.groups, self.page, self.calls = {}, page, []

    def write(self, endpoint: str, at: float, **more):
        "Let an endpoint write to its log, with the first line at `at`."
        group = {"logGroupName": f"/aws/sagemaker/Endpoints/{endpoint}", "creationTime": int(at * 1000)}
        self.groups[group["logGroupName"]] = group | {"storedBytes": 1} | more

    def describe_log_groups(self, logGroupNamePrefix, after=""):
        names = sorted(n for n in self.groups if n.startswith(logGroupNamePrefix) and n > after)
        more = names[self.page - 1] if len(names) > self.page else ""
        return {"logGroups": [dict(self.groups[n]) for n in names[: self.page]], "next": more}

    def get_paginator(self, operation):
        def paginate(**given):
            page = {"next": ""}
            while page := self.describe_log_groups(**given, after=page["next"]):
                yield page
                if not page["next"]:
                    return

        assert operation == "describe_log_groups"
        return SimpleNamespace(paginate=paginate)

    def _find(self, name):
        if name not in self.groups:
            raise aws_error("ResourceNotFoundException", "The specified log group does not exist.")
        return self.groups[name]

    def put_retention_policy(self, logGroupName, retentionInDays):
        self.calls.append(("limited", logGroupName))
        self._find(logGroupName)["retentionInDays"] = retentionInDays

    def delete_log_group(self, logGroupName):
        self.calls.append(("deleted", logGroupName))
        self._find(logGroupName)
        del self.groups[logGroupName]


class Standby:
    "The standby's function. It answers as the container does, unless `errors` or `payloads` say otherwise."

    def __init__(self):
        self.errors, self.payloads, self.calls, self.lock = [], [], [], threading.Lock()

    def invoke(self, FunctionName, Payload):
        with self.lock:
            self.calls.append((FunctionName, json.loads(Payload)))
            if self.errors:
                raise self.errors.pop(0)
            more, payload = self.payloads.pop(0) if self.payloads else ({}, None)
        return {"StatusCode": 200, "Payload": io.BytesIO(payload or self.answer(json.loads(Payload)))} | more

    def answer(self, request: dict) -> bytes:
        one = {"label": "NEGATIVE", "score": 0.8, "scores": {"NEGATIVE": 0.8, "POSITIVE": 0.2}}
        one |= {"sure": True, "tokens": 5, "truncated": False, "windows": 1}
        one |= {"explanation": [{"start": 0, "end": 5, "influence": -0.4}]} if request["explain"] else {}
        told = {"predictions": [one] * len(request["inputs"]), "modelVersion": "0f3c5a7e9b1d"}
        return json.dumps(told).encode()


class Phone:
    "A sender that records its messages, and fails for the numbers in `broken`."

    def __init__(self):
        self.sent, self.tried, self.broken, self.left = [], [], set(), None

    def send(self, to: str, notice) -> str:
        self.tried.append(to)
        if to in self.broken:
            raise NotSent("refused")
        self.sent.append((to, notice.text))
        return str(len(self.sent))

    def quota(self) -> int | None:
        return self.left


def load_handler(folder: str):
    "Import a Lambda's handler.py under a unique name."
    spec = importlib.util.spec_from_file_location(folder.replace("-", "_"), ROOT / "lambdas" / folder / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_handlers() -> dict:  # by folder
    "Import the Lambdas of the engine. The standby model's needs its model and is no part of them."
    folders = (path.name for path in (ROOT / "lambdas").iterdir() if path.is_dir() and path.name != "standby-model")
    return {folder: load_handler(folder) for folder in folders}


class World:
    "An engine with its surroundings, driven through the Lambdas' own handlers."

    def __init__(self, monkeypatch, **settings):
        self.clock, self.scheduler, self.phone = Clock(), Scheduler(), Phone()
        self.sagemaker = SageMaker(self.clock)
        self.logs = Logs()
        for module in (api, lifecycle, model_state, standby):
            monkeypatch.setattr(module, "time", self.clock)
        name = f"state-{uuid.uuid4().hex[:8]}"
        self.settings = Settings(table=name, site_origin="https://site.example", **settings)
        self.dynamodb = dynamodb()
        for table in (name, usage_table(self.settings)):
            self.dynamodb.create_table(
                TableName=table,
                KeySchema=[{"AttributeName": "modelId", "KeyType": "HASH"}],
                AttributeDefinitions=[{"AttributeName": "modelId", "AttributeType": "S"}],
                BillingMode="PAY_PER_REQUEST",
            )
        self.model = {"modelName": "sentiment-engine-model", "version": "7"}
        clients = {"dynamodb": self.dynamodb, "sagemaker": self.sagemaker, "sagemaker-runtime": self.sagemaker}
        clients |= {"scheduler": self.scheduler, "ssm": SimpleNamespace(get_parameter=self._parameter)}
        clients |= {"logs": self.logs, lifecycle.BEFORE_STANDBY: self.sagemaker}
        self.standby = Standby()
        clients |= dict.fromkeys(("lambda", lifecycle.AFTER_ENDPOINT), self.standby)
        given = {"captures": "s3://artifacts/captures", "log_days": 14}
        self.clients = clients
        self.engine = Engine(self.settings, clients.__getitem__, "shutdown", "role", "group", **given)
        self.handlers = load_handlers()
        self.use(self.engine)

    def use(self, engine: Engine):
        "Let every handler use `engine`."
        self.engine = engine
        engine.__dict__["sender"] = self.phone
        for handler in self.handlers.values():
            handler.engine = engine

    def with_standby(self) -> "World":
        "Deploy the standby."
        self.use(replace(self.engine, standby="standby-model", standby_version="0f3c5a7e9b1d"))
        return self

    def _parameter(self, Name):
        if self.model is None:
            raise aws_error("ParameterNotFound")
        return {"Parameter": {"Value": json.dumps(self.model)}}

    def request(
        self, method: str, path: str, body=None, raw: str | None = None, address="", headers: dict | None = None
    ) -> tuple[int, dict]:
        "Call the API like its gateway."
        routes = {
            "GET /status": "is-model-service-running",
            "POST /start": "start-model-service",
            "POST /predict": "invoke-sagemaker-endpoint",
            "POST /extend": "extend-shutdown-timer",
            "POST /sleep": "shutdown-endpoint",
        }
        key = f"{method} {path}" if f"{method} {path}" in routes else "$default"
        text = raw if raw is not None else None if body is None else json.dumps(body)
        event = {"version": "2.0", "routeKey": key, "rawPath": path, "body": text, "isBase64Encoded": False}
        event["requestContext"] = {"requestId": uuid.uuid4().hex, "http": {"method": method, "path": path}}
        event["requestContext"]["http"]["sourceIp"] = address
        event["headers"] = headers or {}
        got = self.handlers[routes.get(key, "is-model-service-running")].handler(event, None)
        assert got["headers"]["content-type"] == "application/json"
        status, answer = got["statusCode"], json.loads(got["body"])
        contract.check(method, path, status, got["headers"], answer)
        return status, answer

    def start(self, phone: str | None = None, name: str = "", address: str = "") -> tuple[int, dict]:
        return self.request("POST", "/start", {"phone": phone, "name": name}, address=address)

    def wake(self, minutes: int) -> str:
        "Begin awake hours, as their schedule does."
        return self.handlers["start-model-service"].handler({"awakeMinutes": minutes}, None)["outcome"]

    def sleep(self, token: object) -> tuple[int, dict]:
        return self.request("POST", "/sleep", {"token": token})

    def status(self) -> dict:
        code, body = self.request("GET", "/status")
        assert code == 200
        return body

    @property
    def row(self):
        return read_row(self.engine.table)

    @property
    def usage(self) -> Usage:
        return read_usage(self.engine.usage)

    def event(self, status: str, run_id: str | None = None, at: float | None = None) -> str:
        "Deliver an event about an endpoint, by default the current run's, with the current time."
        name = endpoint_name(self.settings, run_id or self.row.runId)
        detail = {"EndpointName": name, "EndpointStatus": status}
        event = {"source": "aws.sagemaker", "detail-type": "SageMaker Endpoint State Change", "detail": detail}
        event["time"] = lifecycle.instant(self.clock.now if at is None else at)
        return self.handlers["notification-and-shutdown-scheduler"].handler(event, None)["outcome"]

    def endpoint_becomes(self, status: str, reason: str = "", event: bool = True) -> str | None:
        "Change the state of the current run's endpoint."
        self.sagemaker.endpoints[endpoint_name(self.settings, self.row.runId)].update(status=status, reason=reason)
        return self.event({"InService": "IN_SERVICE", "Failed": "FAILED"}[status]) if event else None

    def in_service(self, *phones: str) -> str:  # run id
        "Start, and let the endpoint become ready."
        for phone in phones or (None,):
            assert self.start(phone)[0] == 202
        self.clock.now += 300
        assert self.endpoint_becomes("InService") == "ready"
        return self.row.runId

    def pass_time(self, seconds: float, reconcile: bool = False):
        "Advance the clock, deliver due wake-ups, and run the reconciler every five minutes unless it is switched off."
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + 60)
            for event in self.scheduler.due(self.clock.now):
                self.handlers["shutdown-endpoint"].handler(event, None)
            if reconcile and int(self.clock.now) // 60 % 5 == 0:
                self.reconcile()

    def reconcile(self) -> dict:
        return self.handlers["reconcile-model-service"].handler({}, None)

    def nothing_left(self) -> bool:
        "Check that no endpoint, endpoint config or schedule exists and no number is stored."
        left = self.sagemaker.endpoints or self.sagemaker.configs or self.scheduler.schedules or self.row.subscribers
        return not left
