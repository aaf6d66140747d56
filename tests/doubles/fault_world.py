"An in-memory AWS around the real handlers that fails, stalls, loses answers and kills Lambdas on command."

import functools
import hashlib
import io
import itertools
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import fields
from datetime import UTC, datetime
from types import SimpleNamespace
from unittest.mock import patch

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ReadTimeoutError,
)

from sentiment_engine.service import guards, lifecycle, metrics, model_state, notifications
from sentiment_engine.service.lifecycle import Engine
from sentiment_engine.service.model_state import CREATING, FAILED, IN_SERVICE, STOPPED, STOPPING, Row, row_from
from sentiment_engine.service.usage import Usage, day_of, plain_item, sound_usage, spent_in_month
from sentiment_engine.settings import Settings, endpoint_name, usage_table
from tests.doubles.engine_double import ADA, BOB, CAROL, Clock, aws_error, load_handlers
from tests.doubles.memory_dynamodb import MemoryDynamoDB

PHONES = (ADA, BOB, CAROL)
LIVE = (CREATING, IN_SERVICE, STOPPING)
CHANGING = ("Updating", "SystemUpdating", "RollingBack")  # an endpoint that answers and cannot be deleted at this time
PAID = ("Creating", "InService", "OutOfService", *CHANGING)
EDGES = {  # repeated on purpose, so that a change of TRANSITIONS is noticed
    (STOPPED, CREATING),
    (FAILED, CREATING),
    (CREATING, STOPPED),
    (CREATING, IN_SERVICE),
    (CREATING, FAILED),
    (IN_SERVICE, FAILED),
    (IN_SERVICE, STOPPING),
    (STOPPING, STOPPED),
}
CAPACITY = "Unable to provision requested ML compute capacity due to InsufficientInstanceCapacity error."
FOREIGN = "sentiment-engine-aaaaaaaaaaaa"  # named like ours, but without our tags
OTHERS = {"Key": "Project", "Value": "other"}

ERRORS: dict[str, Callable[[], Exception]] = {
    "throttling": lambda: aws_error("ThrottlingException", "Rate exceeded"),
    "denied": lambda: aws_error("AccessDeniedException", "not authorized to perform this"),
    "internal": lambda: aws_error("InternalFailure", "An internal error has occurred"),
    "validation": lambda: aws_error("ValidationException", "One or more parameters failed to pass"),
    "capacity": lambda: aws_error("ResourceLimitExceeded", "The account-level service limit is 0 Instances"),
    "connect": lambda: ConnectTimeoutError(endpoint_url="https://aws"),
    "read": lambda: ReadTimeoutError(endpoint_url="https://aws"),
    "unreachable": lambda: EndpointConnectionError(endpoint_url="https://aws"),
}
LOST = ("internal", "read")  # what a caller may see although the call took effect


class Dead(BaseException):
    "The Lambda was killed here: none of our code runs any more."


class Broken(BaseException):
    "An invariant is violated; the message starts with its name. Our code must not catch it; `shown` reports it."


def shown(method: Callable) -> Callable:
    "Turn a violated invariant in `method` into an AssertionError."

    @functools.wraps(method)
    def call(self, *arguments):
        try:
            return method(self, *arguments)
        except Broken as e:
            if self.depth:
                raise
            raise AssertionError(str(e)) from None

    return call


def usage_in(item: dict | None) -> Usage:
    "Read the spending record."
    return Usage(**sound_usage(plain_item(item or {})))


def must(true: object, name: str, what: object = ""):
    "Raise Broken unless `true`."
    if not true:
        raise Broken(f"{name}: {what}")


class Serial:
    "A pool with no threads: like a real one, it runs everything before it raises."

    def __init__(self, max_workers: int):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False

    def map(self, function, items):
        results, errors = [], []
        for item in items:
            try:
                results.append(function(item))
            except Exception as e:
                errors.append(e)
        if errors:
            raise errors[0]
        return results


class Log:
    "A logger that keeps nothing, but checks that no phone number is logged."

    digits = re.compile("|".join(phone[-7:] for phone in PHONES))

    def _write(self, *words, **more):
        text = f"{words} {more}"
        must(not self.digits.search(text), "no number in a log", text)

    last = ""
    debug = info = warning = error = critical = append_keys = _write

    def exception(self, *words, **more):
        Log.last = repr(sys.exc_info()[1])
        self._write(*words, repr(sys.exc_info()[1]), **more)

    def set_correlation_id(self, value):
        pass


class SageMaker:
    """Endpoints and configs. An endpoint cannot be deleted while it is created, and its deletion takes a while.

    A description shows a new state of an endpoint `lag` seconds later, and a deletion at once. While
    SageMaker is `deaf`, it accepts a deletion and deletes nothing.
    """

    def __init__(self, world: "FaultWorld", page: int, deleting: float, lag: float):
        self.world, self.page, self.deleting, self.lag = world, page, deleting, lag
        self.endpoints, self.configs, self.rubbish, self.deaf = {}, {}, False, False
        self.endpoints[FOREIGN] = {"status": "InService", "reason": "", "tags": [OTHERS], "until": 0}
        self.configs[FOREIGN] = {"tags": [OTHERS]}

    def settle_deleting(self):
        now = self.world.clock.now
        self.endpoints = {n: e for n, e in self.endpoints.items() if e["status"] != "Deleting" or e["until"] > now}

    def _find(self, kind: str, name: str) -> dict:
        self.settle_deleting()
        found = getattr(self, kind)
        if name not in found:
            raise aws_error("ValidationException", f'Could not find {kind} "{name}".')
        return found[name]

    def create_endpoint_config(self, EndpointConfigName, ProductionVariants, Tags):
        if EndpointConfigName in self.configs:
            raise aws_error("ValidationException", "Cannot create already existing endpoint configuration")
        self.configs[EndpointConfigName] = {"tags": list(Tags), "type": ProductionVariants[0]["InstanceType"]}

    def create_endpoint(self, EndpointName, EndpointConfigName, Tags):
        self._find("configs", EndpointConfigName)
        self.settle_deleting()
        if EndpointName in self.endpoints:
            raise aws_error("ValidationException", "Cannot create already existing endpoint")
        made = {"made": self.world.clock.now}
        self.endpoints[EndpointName] = {"status": "Creating", "reason": "", "tags": list(Tags), "until": 0} | made

    def describe_endpoint(self, EndpointName):
        found = self._find("endpoints", EndpointName)
        arn = f"arn:aws:sagemaker:us-east-1:1:endpoint/{EndpointName}"
        if found.get("at", -1e12) + self.lag > self.world.clock.now:
            return {"EndpointStatus": "Creating", "EndpointArn": arn}
        return {"EndpointStatus": found["status"], "FailureReason": found["reason"], "EndpointArn": arn}

    def become(self, name: str, status: str, reason: str = ""):
        "Let an endpoint change its state; report it in an event."
        found = self.endpoints[name]
        late = {"at": self.world.clock.now} if found["status"] == "Creating" else {}
        found.update(status=status, reason=reason, **late)
        told = {"InService": "IN_SERVICE", "Failed": "FAILED"}[status]
        self.world.events.append((name, told, lifecycle.instant(self.world.clock.now)))

    def settle_changing(self):
        "End all maintenance."
        for found in self.endpoints.values():
            found["status"] = "InService" if found["status"] in CHANGING else found["status"]

    def delete_endpoint(self, EndpointName):
        found = self._find("endpoints", EndpointName)
        must(EndpointName != FOREIGN, "foreign endpoints are left alone")
        if found["status"] in ("Creating", "Deleting", *CHANGING):
            self.world.excused.add(EndpointName)
            raise aws_error("ValidationException", "Cannot update in-progress endpoint")
        self.world.on_delete(EndpointName)
        if self.deaf:
            self.world.excused.add(EndpointName)
            return
        found.update(status="Deleting", until=self.world.clock.now + self.deleting, at=-1e12)
        self.settle_deleting()

    def delete_endpoint_config(self, EndpointConfigName):
        must(EndpointConfigName != FOREIGN, "foreign configs are left alone")
        self._find("configs", EndpointConfigName)
        del self.configs[EndpointConfigName]

    def list_tags(self, ResourceArn):
        kind, name = ResourceArn.split(":")[-1].split("/")
        return {"Tags": self._find("endpoints" if kind == "endpoint" else "configs", name)["tags"]}

    def list_endpoints(self, NameContains, after=""):
        self.settle_deleting()
        return self._listed("Endpoint", self.endpoints, NameContains, after)

    def list_endpoint_configs(self, NameContains, after=""):
        return self._listed("EndpointConfig", self.configs, NameContains, after)

    def _listed(self, kind: str, found: dict, part: str, after: str) -> dict:
        arn = f"arn:aws:sagemaker:us-east-1:1:{'endpoint' if kind == 'Endpoint' else 'endpoint-config'}/"
        made = {n: datetime.fromtimestamp(e.get("made", self.world.clock.now), UTC) for n, e in found.items()}
        names = sorted(n for n in found if part in n and n > after)
        page = [
            {f"{kind}Name": n, f"{kind}Arn": arn + n, "CreationTime": made[n], "EndpointStatus": found[n].get("status")}
            for n in names[: self.page]
        ]
        return {f"{kind}s": page, "next": names[self.page - 1] if len(names) > self.page else ""}

    def invoke_endpoint(self, EndpointName, Body, ContentType, Accept, InferenceId=""):
        if self.endpoints.get(EndpointName, {}).get("status") not in ("InService", *CHANGING):
            raise aws_error("ValidationError", f"Endpoint {EndpointName} of account 1 not found.")
        inputs = json.loads(Body)["inputs"]
        if self.rubbish:
            return {"Body": io.BytesIO(b'[{"label": "LABEL_1", "score": 0.9}]')}
        self.world.answered.add(EndpointName)
        answer = [{"label": "POSITIVE", "score": 0.9}] * (len(inputs) if isinstance(inputs, list) else 1)
        return {"Body": io.BytesIO(json.dumps(answer).encode())}


class Standby:
    "The standby's function. Its mood is works, down, busy, slow or rubbish."

    def __init__(self, world: "FaultWorld"):
        self.world, self.mood, self.given = world, "works", {}  # given: texts by day

    def invoke(self, FunctionName, Payload):
        day, texts = day_of(self.world.clock.now), len(json.loads(Payload)["inputs"])
        if self.mood == "busy":
            raise aws_error("TooManyRequestsException", "Rate Exceeded.")
        self.given[day] = self.given.get(day, 0) + texts
        most = self.world.settings.daily_standby_texts
        must(self.given[day] <= most, "the standby gets no more texts a day than allowed", self.given)
        if self.mood == "slow":
            raise ERRORS["read"]()
        if self.mood == "down":
            return {"FunctionError": "Unhandled", "Payload": io.BytesIO(b'{"errorMessage": "no"}')}
        label = "LABEL_1" if self.mood == "rubbish" else "POSITIVE"
        told = {"predictions": [{"label": label, "score": 0.9}] * texts, "modelVersion": "7"}
        return {"Payload": io.BytesIO(json.dumps(told).encode())}


class Scheduler:
    "One-time schedules."

    def __init__(self):
        self.schedules: dict[str, tuple[float, dict]] = {}

    def create_schedule(self, Name, ScheduleExpression, Target, **rest):
        if Name in self.schedules:
            raise aws_error("ConflictException", f"Schedule {Name} already exists.")
        at = datetime.fromisoformat(ScheduleExpression[3:-1] + "+00:00").timestamp()
        self.schedules[Name] = at, json.loads(Target["Input"])

    def list_schedules(self, GroupName, NamePrefix):
        return {"Schedules": [{"Name": n} for n in self.schedules if n.startswith(NamePrefix)]}

    def delete_schedule(self, GroupName, Name):
        if self.schedules.pop(Name, None) is None:
            raise aws_error("ResourceNotFoundException", f"Schedule {Name} does not exist.")


class Gate:
    "A boto3 client that injects the planned fault into a call."

    def __init__(self, world: "FaultWorld", service: str, behind: object):
        self.world, self.service, self.behind = world, service, behind

    def __getattr__(self, operation: str):
        if operation == "get_paginator":
            return self._paginator
        return functools.partial(self.world.hit, self.service, getattr(self.behind, operation))

    def _paginator(self, operation: str):
        def paginate(**arguments):
            after = None
            while after != "":
                call = functools.partial(getattr(self.behind, operation), after=after or "")
                page = self.world.hit(self.service, call, **arguments)
                yield page
                after = page["next"]

        return SimpleNamespace(paginate=paginate)


# Faults of an invocation's n-th call: an error before or after it took effect, a kill, or another Lambda's run.
NESTED = (
    *(("start", phone) for phone in (None, ADA, BOB)),
    ("reconcile",),
    ("deliver", 0, True),
    ("wake", 0, True),
    ("predict",),
    ("extend",),
    ("sleep", 0),
    ("awake", 60),
    ("lose_row",),
    ("up", 0),
    ("down", 0, CAPACITY),
    ("down", 0, "The container did not answer /ping."),
    ("clock", 10),
    ("many", ("down", -1, "The container did not answer /ping."), ("deliver", -1, False)),
    ("many", ("down", -1, "The container died."), ("deliver", -1, False), ("start", BOB)),
    ("many", ("down", -1, CAPACITY), ("deliver", -1, True)),
    ("many", ("up", -1), ("deliver", -1, True)),
)
FAULTS = (
    *(("before", name) for name in ERRORS),
    *(("after", name) for name in LOST),
    ("die", "before"),
    ("die", "after"),
    *(("nest", action) for action in NESTED),
)

LAMBDAS = {
    "status": ("GET /status", "is-model-service-running"),
    "start": ("POST /start", "start-model-service"),
    "predict": ("POST /predict", "invoke-sagemaker-endpoint"),
    "extend": ("POST /extend", "extend-shutdown-timer"),
    "sleep": ("POST /sleep", "shutdown-endpoint"),
}


@functools.cache
def handlers() -> dict:
    "Load the seven handlers once."
    return load_handlers()


class FaultWorld:
    "The engine in a hostile AWS. `do` runs one action; every write and call is checked."

    def __init__(self, page: int = 100, deleting: float = 0, lag: float = 0, twice: bool = False, **given):
        self.clock, self.ids = Clock(), itertools.count()
        known = {f.name for f in fields(Settings)}
        self.settings = Settings(
            table="states", site_origin="https://site.example", **{k: v for k, v in given.items() if k in known}
        )
        self.dynamodb = MemoryDynamoDB(self.watch, self.settings.table, self.watch_usage)
        self.sagemaker, self.scheduler = SageMaker(self, page, deleting, lag), Scheduler()
        self.model, self.sms, self.calm = True, "works", False
        self.plan, self.count, self.depth, self.current = {}, 0, 0, ""
        self.events: list[tuple[str, str, str]] = []  # endpoint, state and instant
        self.excused: set[str] = set()  # endpoints that could not be deleted because of AWS or a fault
        self.answered: set[str] = set()  # endpoints that gave a valid answer
        self.hurt = False  # whether a fault occurred during this start's life
        self.starts = 0  # number of the last start that won
        self.tried: list[str] = []  # instance types of this start
        self.claimed = 0  # the start whose subscriber this invocation claimed last
        self.opened: set[int] = set()  # starts that became ready
        self.delivered: list[tuple[int, str]] = []  # (start, number) of each message that may have arrived
        self.promised: set[tuple[int, str]] = set()  # (start, number) that got a 202
        self.accounts: list[tuple[int, str, str]] = []  # (start, number, how it left the row)
        self.booked: set[str] = set()  # runs whose costs were booked
        self.losses = 0  # number of times that the row was lost
        self.twice = twice  # whether every write is repeated, as after a lost answer
        self.accepted = 0  # subscribers of the last start
        self.listed_at: dict[str, list[int]] = {}  # number: when it was put on a list
        self.struck: list[tuple[str, str]] = []  # (kind of fault, operation) of this invocation
        self.tokens: list[tuple[int, str]] = []  # (start, token that may end it), the last one first
        self.asked = 0  # the start that the token of this request may end
        clients = {"dynamodb": self.dynamodb, "sagemaker": self.sagemaker, "sagemaker-runtime": self.sagemaker}
        clients |= {"scheduler": self.scheduler, "ssm": SimpleNamespace(get_parameter=self._parameter)}
        self.standby, self.moved = Standby(self), False  # moved: whether this prediction has moved the deadline
        clients |= dict.fromkeys(("lambda", lifecycle.AFTER_ENDPOINT), self.standby)
        clients |= {lifecycle.BEFORE_STANDBY: self.sagemaker}
        self.clients = {name: Gate(self, name, behind) for name, behind in clients.items()}
        self.warm: dict[str, Engine] = {}
        self.patches = ExitStack()

    def __enter__(self):
        fake_uuid = SimpleNamespace(uuid4=lambda: uuid.UUID(hashlib.sha256(b"%d" % next(self.ids)).hexdigest()[:32]))
        modules = [m for n, m in sys.modules.items() if n.startswith("sentiment_engine.") and ".local" not in n]
        for module in modules:
            for name, double in (("time", self.clock), ("uuid", fake_uuid), ("logger", Log())):
                real = vars(module).get(name)
                if real is time or real is uuid or (name == "logger" and real is not None):
                    self.patches.enter_context(patch.object(module, name, double))
            if vars(module).get("emit") is metrics.emit and module is not metrics:
                self.patches.enter_context(patch.object(module, "emit", Log()._write))
        self.patches.enter_context(patch.object(lifecycle, "ThreadPoolExecutor", Serial))
        self.patches.enter_context(patch.object(notifications.urllib.request, "urlopen", self._provider))
        return self

    def __exit__(self, *error):
        self.patches.close()

    # ---- checks

    @property
    def row(self) -> Row:
        found = self.dynamodb.items.get(self.settings.model_id)
        return row_from(found) if found else Row(self.settings.model_id)

    def name(self, run_id: str) -> str:
        return endpoint_name(self.settings, run_id)

    def watch(self, before: dict | None, after: dict):
        "Check one write of the row."
        if before is None or after["modelId"]["S"] != self.settings.model_id:
            return
        was, now = row_from(before), row_from(after)
        must(self.current != "status", "a status poll writes nothing", self.current)
        if was.state != now.state:
            must((was.state, now.state) in EDGES, "states follow their transitions", (was.state, now.state))
        won = now.state == CREATING and was.state in (STOPPED, FAILED)
        if won:
            self.tried = []
        if was.runId != now.runId:
            self.tried.append(now.instanceType)
            must(len(set(self.tried)) == len(self.tried), "each instance type is tried once", self.tried)
            must(won or was.state == now.state == CREATING, "a run id changes on start and retry only", (was, now))
        else:
            must(not won, "every start has a run id of its own", now.runId)
        if won:
            self.starts, self.hurt = self.starts + 1, False
            self._check_caps(now)
        elif now.state != was.state:
            self._check_entry(was, now)
        if was.state == now.state == IN_SERVICE:
            must(now.shutdownAt >= was.shutdownAt, "a deadline never moves back", (was.shutdownAt, now.shutdownAt))
            self.moved |= now.shutdownAt > was.shutdownAt and self.current == LAMBDAS["predict"][1]
        if now.state == IN_SERVICE:
            end = max(now.startedAt + self.settings.max_run_minutes * 60, now.awakeUntil)
            must(now.shutdownAt <= end, "no deadline after the longest life", now.shutdownAt - end)
        self._account(was, now)
        self._check_count(was, now, won)
        self._check_cooldown(was, now)

    def _check_count(self, was: Row, now: Row, won: bool):
        "Check that every accepted subscriber is waiting, has a message or counts as failed."
        gone, new = was.subscribers.keys() - now.subscribers.keys(), now.subscribers.keys() - was.subscribers.keys()
        self.accepted = len(now.subscribers) if won else self.accepted + len(new)
        if (was.state, now.state) == (CREATING, STOPPED):
            self.accepted -= len(gone)
        found = now.smsSent + now.smsFailed + len(now.subscribers)
        must(found == self.accepted, "everybody is counted exactly once", (found, self.accepted, now.state))

    def _check_cooldown(self, was: Row, now: Row):
        "Check that no number is accepted again within the cool-down, unless its own start was undone."
        must(
            len({e["to"] for e in now.subscribers.values()}) == len(now.subscribers),
            "a number is on the list once",
            now,
        )
        for key, entry in now.subscribers.items():
            before = was.subscribers.get(key)
            if before is None or before["at"] != entry["at"]:
                uses = self.listed_at.setdefault(entry["to"], [])
                rest = (uses or [-1e12])[-1] + self.settings.number_cooldown_minutes * 60 - entry["at"]
                must(rest <= 1, "a number waits out its cool-down", rest)
                uses.append(entry["at"])
                recent = [at for at in uses if at > entry["at"] - 86_400]
                most = self.settings.daily_messages_per_number
                must(len(recent) <= most, "a number is promised so many messages in 24 hours", recent)
        if (was.state, now.state) == (CREATING, STOPPED):
            for key in was.subscribers.keys() - now.subscribers.keys():
                self.listed_at[was.subscribers[key]["to"]].pop()

    def _check_entry(self, was: Row, now: Row):
        name = self.name(now.runId)
        endpoint = self.sagemaker.endpoints.get(name, {}).get("status")
        if now.state == IN_SERVICE:
            must(name in self.answered, "ready means that this run's endpoint has answered", name)
            self.opened.add(self.starts)
        if now.state == STOPPING:
            self._check_end(was)
        if now.state == STOPPED and was.state == STOPPING:
            must(endpoint in (None, "Deleting"), "stopped means that the endpoint is deleted", endpoint)
            must(name not in self.sagemaker.configs, "stopped means that the config is deleted", name)

    def _check_end(self, row: Row):
        "Check that a run stops at its deadline, or because the visitor who began it asked for that."
        must(row.awakeUntil <= self.clock.now, "nothing is stopped in awake hours", row.awakeUntil - self.clock.now)
        due = min(row.shutdownAt, row.startedAt + self.settings.max_run_minutes * 60)
        done = self.asked == self.starts and not row.subscribers
        must(due <= self.clock.now or done, "nothing is stopped before its deadline", due - self.clock.now)

    def _check_caps(self, row: Row):
        "Check the possible cost of a start that has just won."
        begun = self.usage.starts.get(day_of(self.clock.now), 0)
        must(begun < self.settings.daily_starts, "no more starts a day than allowed", begun)
        left = self.settings.monthly_budget - spent_in_month(self.usage, self.clock.now)
        hours = model_state.awake_minutes(row, self.clock.now)
        must(left >= guards.longest_run_cost(self.settings, hours), "no start beyond the month's budget", left)

    @property
    def usage(self) -> Usage:
        return usage_in(self.dynamodb.tables[usage_table(self.settings)].get(self.settings.model_id))

    def watch_usage(self, before: dict | None, after: dict):
        "Check one write of the spending record."
        was, now = map(usage_in, (before, after))
        must(self.current != "status", "a status poll writes nothing", self.current)
        must(all(now.spent.get(m, 0) >= n for m, n in was.spent.items()), "no booking is lost", (was, now))
        for run_id in was.open.keys() - now.open.keys():
            must(self.name(run_id) not in self.sagemaker.endpoints, "a run is booked once its endpoint is gone", run_id)
            must(run_id not in self.booked, "a run is booked once", run_id)
            self.booked.add(run_id)

    def _account(self, was: Row, now: Row):
        sent, failed = now.smsSent - was.smsSent, now.smsFailed - was.smsFailed
        if any("claim" in e and e != was.subscribers.get(k) for k, e in now.subscribers.items()):
            self.claimed = self.starts
        gone = [k for k in was.subscribers if k not in now.subscribers]
        if was.runId != now.runId:
            must(not gone, "nobody is lost when a run begins", gone)
            return
        for key in gone:
            how = "sent" if sent else "failed" if failed else f"{was.state}->{now.state}"
            self.accounts.append((self.starts, was.subscribers[key]["to"], how))
        if sent or failed:
            must(len(gone) == sent + failed, "every count is a number that is erased", (gone, sent, failed))
        elif gone:
            forgotten = (was.state, now.state) in ((CREATING, STOPPED), (STOPPING, STOPPED))
            must(forgotten, "no number vanishes uncounted", (was.state, now.state))

    def on_delete(self, name: str):
        "Check a deletion when it happens."
        row = self.row
        wrong = self.name(row.runId) == name and row.state in (CREATING, IN_SERVICE)
        must(not wrong or self.hurt or row.state == CREATING, "the open run's endpoint is not deleted", name)

    @shown
    def check(self):
        "Check what must hold after every step."
        self.sagemaker.settle_deleting()
        must(
            FOREIGN in self.sagemaker.endpoints and FOREIGN in self.sagemaker.configs,
            "foreign endpoints are left alone",
        )
        row, ours = self.row, [(n, e) for n, e in self.sagemaker.endpoints.items() if n != FOREIGN]
        mine = self.name(row.runId) if row.state in LIVE else None
        paid = [n for n, e in ours if e["status"] in PAID]
        must(len(paid) <= 1, "never two paid endpoints", paid)
        stray = [n for n, e in ours if e["status"] in PAID and n != mine and n not in self.excused]
        must(not stray, "nobody pays for an endpoint of no run", (stray, row.state))
        twice = {x for x in self.delivered if self.delivered.count(x) > 1}
        must(not twice, "nobody is told twice", len(twice))

    # ---- AWS and the SMS provider

    def hit(self, service: str, call: Callable, /, **arguments):
        "Run one call with its planned fault."
        if self.twice and getattr(call, "__name__", "") == "update_item":
            call = self._sent_twice
        fault = None if self.calm else self.plan.pop(self.count, None)
        self.count += 1
        if fault is None:
            return call(**arguments)
        kind, what = fault
        self.struck.append((kind, getattr(call, "__name__", "")))
        if kind == "nest":
            self.nested(what)
            return call(**arguments)
        if what == "capacity" and "create_endpoint" not in getattr(call, "__name__", ""):
            return call(**arguments)
        self.excuse()
        if kind == "before":
            raise ERRORS[what]()
        if (kind, what) == ("die", "before"):
            raise Dead
        call(**arguments)
        self.excuse()
        raise Dead if kind == "die" else ERRORS[what]()

    def _sent_twice(self, **arguments):
        "Write, lose the answer and write again; return the second answer."
        with suppress(ClientError):
            self.dynamodb.update_item(**arguments)
        return self.dynamodb.update_item(**arguments)

    def excuse(self):
        "Record a fault: resources that exist now may be left for the reconciler."
        self.hurt = True
        self.excused |= self.sagemaker.endpoints.keys() | {self.name(self.row.runId)}

    def nested(self, action: tuple):
        "Run another complete invocation in the middle of this one."
        if self.depth > 2:
            return
        saved = self.plan, self.count, self.current, self.claimed, self.struck, self.moved
        self.plan, self.depth = {}, self.depth + 1
        try:
            self.do(action)
        finally:
            self.plan, self.count, self.current, self.claimed, self.struck, self.moved = saved
            self.depth -= 1

    def _parameter(self, Name: str, WithDecryption: bool = False) -> dict:
        if not Name.endswith("/model") or not self.model:
            raise aws_error("ParameterNotFound")
        return {"Parameter": {"Value": json.dumps({"modelName": "m", "version": "7"})}}

    def _provider(self, request, timeout: float):
        return self.hit("sms", self._sms, request=request)

    def _sms(self, request):
        "Answer like Textbelt in its current mode."
        if request.data is None:  # number of messages left
            if self.sms == "down":
                raise urllib.error.URLError(ConnectionRefusedError(111, "no way"))
            return io.BytesIO(b'{"success": true, "quotaRemaining": 40}')
        phone = urllib.parse.parse_qs(request.data.decode())["phone"][0]
        if self.sms == "down":
            raise urllib.error.URLError(ConnectionRefusedError(111, f"no way to {phone}"))
        if self.sms == "refuses":
            return io.BytesIO(json.dumps({"success": False, "error": f"no credit for {phone}"}).encode())
        self.delivered.append((self.claimed, phone))
        if self.sms == "slow":
            raise TimeoutError(f"no answer about {phone}")
        return io.BytesIO(b'{"success": true, "textId": "1"}')

    # ---- actions

    @shown
    def do(self, action: tuple, plan: dict | None = None):
        "Run one action, with the fault `plan[n]` in its n-th call to AWS."
        what, *more = action
        if plan is not None:
            self.plan = dict(plan)
        self.count = 0
        getattr(self, f"do_{what}")(*more)

    def invoke(self, folder: str, event: dict):
        "Run a Lambda. Returns None if it was killed or raised an error that its caller would retry."
        module = handlers()[folder]
        if folder not in self.warm:
            self.warm[folder] = Engine(
                self.settings, self.clients.__getitem__, "shutdown", "role", "group", standby="standby-model"
            )
        before, outer = vars(module).get("engine"), self.current
        module.engine, self.current = self.warm[folder], "status" if folder == "is-model-service-running" else folder
        try:
            return module.handler(event, SimpleNamespace(aws_request_id="r", function_name=folder))
        except Dead:
            self.warm.pop(folder, None)
        except (ClientError, BotoCoreError, OSError):
            must(not self.calm, "nothing is raised in a calm AWS", repr(sys.exc_info()[1]))
        except lifecycle.TooEarly as e:
            must(self.sagemaker.lag and folder.startswith("notification"), "an event is early only if it is", repr(e))
        except RuntimeError as e:
            must("reconciler" in str(e), "only the reconciler reports what failed", repr(e))
            must(not self.calm, "the reconciler fails in no calm AWS", repr(e))
        finally:
            module.engine, self.current = before, outer
        return None

    def request(self, what: str, body: dict | None = None) -> tuple[int, dict]:
        key, folder = LAMBDAS[what]
        method, path = key.split()
        event = {"version": "2.0", "routeKey": key, "rawPath": path, "body": json.dumps(body or {})}
        event |= {"isBase64Encoded": False, "headers": {}}
        event["requestContext"] = {"requestId": "r", "http": {"method": method, "path": path, "sourceIp": "192.0.2.7"}}
        got = self.invoke(folder, event)
        if got is None:
            return 0, {}
        must(got["statusCode"] != 500, "no request ends in an unexpected error", Log.last)
        if self.calm:
            must(got["statusCode"] < 500 or not self.model, "a calm AWS answers", got)
        return got["statusCode"], json.loads(got["body"])

    def do_status(self):
        code, body = self.request("status")
        must(code in (0, 200, 503), "status answers", code)
        must(not Log.digits.search(json.dumps(body)), "no number in an answer", body)

    def do_start(self, phone: str | None):
        self.struck, losses = [], self.losses
        code, body = self.request("start", {"phone": phone, "name": "Ada"} if phone else {})
        if code == 503 and body["error"]["code"] == "start_failed":
            self._check_undone()
        if code in (200, 202):
            must(bool(body["sleepToken"]) == (body["outcome"] == "started"), "a token is for who begins a run", body)
        if code == 202 and body["sleepToken"]:
            self.tokens.insert(0, (self.starts, body["sleepToken"]))
        if code == 202 and phone and body["outcome"] in ("started", "joined") and losses == self.losses:
            self.promised.add((self.starts, phone))

    def _check_undone(self):
        "Check that a start leaves nothing behind if its only fault is that the endpoint was not created."
        if any(kind != "before" or not name.startswith("create_endpoint") for kind, name in self.struck):
            return
        row, name = self.row, self.name(self.row.runId)
        must(row.state != CREATING, "a failed start is rolled back", row.state)
        left = name in self.sagemaker.endpoints or name in self.sagemaker.configs
        must(not left, "a failed start leaves no endpoint and no config", name)

    def do_predict(self):
        "Ask for a prediction, which the endpoint or the standby must give."
        self.struck, self.moved = [], False
        code, body = self.request("predict", {"inputs": "Great."})
        must(not (self.moved and body.get("answeredBy") == "standby"), "the standby keeps nothing awake", body)
        left = self.settings.daily_standby_texts - self.usage.standby.get(day_of(self.clock.now), 0)
        elsewhere = any(kind != "nest" and operation != "invoke_endpoint" for kind, operation in self.struck)
        if self.standby.mood == "works" and left > 0 and not elsewhere:  # regardless of the endpoint
            killed = code == 0 and any(kind == "die" for kind, _ in self.struck)  # the API's own function
            must(code == 200 or killed, "every valid request is answered", (code, body))

    def do_standby(self, mood: str):
        self.standby.mood = mood

    def do_extend(self):
        self.request("extend")

    def do_sleep(self, i: int):
        "End a run with the last token, with an earlier one, or with none."
        self.struck, outer, (start, token) = [], self.asked, (self.tokens[i] if i < len(self.tokens) else (-1, ""))
        self.asked, before, last = start, self.row, self.starts
        code, _ = self.request("sleep", {"token": token})
        self.asked = outer
        must(code not in (200, 202) or start == last, "a token ends its own run only", (start, last))
        nested = any(kind == "nest" for kind, _ in self.struck)  # another function may have changed the row
        if code == 200 and before.state == STOPPED and not nested:
            must(self.row == before, "a repeated end changes nothing", before)

    def do_awake(self, minutes: int):
        "Begin awake hours, as their schedule does."
        self.invoke("start-model-service", {"awakeMinutes": minutes})

    def do_reconcile(self):
        self.invoke("reconcile-model-service", {})

    def _pick(self, found: list, i: int):
        return found[i % len(found)] if found else None

    def do_deliver(self, i: int, again: bool):
        "Deliver an event; `again` keeps it for another delivery."
        if picked := self._pick(self.events, i):
            if not again:
                self.events.remove(picked)
            name, status, at = picked
            event = {"source": "aws.sagemaker", "time": at, "detail": {"EndpointName": name, "EndpointStatus": status}}
            self.invoke("notification-and-shutdown-scheduler", event)

    def do_drop(self, i: int):
        if picked := self._pick(self.events, i):
            self.events.remove(picked)

    def _due(self) -> list[str]:
        return [n for n, (at, _) in self.scheduler.schedules.items() if at <= self.clock.now]

    def do_wake(self, i: int, again: bool):
        "Fire a due schedule, perhaps late."
        if name := self._pick(self._due(), i):
            event = self.scheduler.schedules[name][1]
            if not again:
                del self.scheduler.schedules[name]
            self.invoke("shutdown-endpoint", event)

    def do_forget(self, i: int):
        if name := self._pick(list(self.scheduler.schedules), i):
            del self.scheduler.schedules[name]

    def _ours(self, *statuses: str) -> list[str]:
        found = self.sagemaker.endpoints.items()
        return [n for n, e in found if n != FOREIGN and e["status"] in statuses]

    def do_up(self, i: int):
        if name := self._pick(self._ours("Creating"), i):
            self.sagemaker.become(name, "InService")

    def do_down(self, i: int, reason: str):
        "Make an endpoint fail while it is created or in service."
        if name := self._pick(self._ours("Creating", "InService", *CHANGING), i):
            self.hurt = True
            self.sagemaker.become(name, "Failed", reason)

    def do_change(self, i: int, status: str):
        "Let AWS or a person change an endpoint in service. No event reports it."
        if name := self._pick(self._ours("InService"), i):
            self.sagemaker.endpoints[name]["status"] = status
            if status == "OutOfService":  # the run ends when a function notices, and the reconciler deletes the rest
                self.hurt = True
                self.excused.add(name)

    def do_changed(self, i: int):
        "End a change."
        if name := self._pick(self._ours(*CHANGING), i):
            self.sagemaker.become(name, "InService")

    def do_vanish(self, i: int):
        if name := self._pick(self._ours("InService", "OutOfService", "Failed", *CHANGING), i):
            self.hurt = True
            del self.sagemaker.endpoints[name]

    def do_lose_row(self):
        "Delete the row, as a person or DynamoDB might."
        if self.dynamodb.items.pop(self.settings.model_id, None):
            self._lost()

    def do_expire(self):
        "Let DynamoDB delete expired items, which exist until then."
        there = self.settings.model_id in self.dynamodb.items
        self.dynamodb.expire(self.clock.now)
        if there and self.settings.model_id not in self.dynamodb.items:
            self._lost()

    def _lost(self):
        "Record that the row is gone."
        self.losses += 1
        self.excuse()
        self.promised.clear()
        self.listed_at.clear()
        self.tried, self.accepted = [], 0

    def do_many(self, *actions: tuple):
        "Run several actions in a row."
        for action in actions:
            self.do(action)

    def do_rubbish(self, yes: bool):
        self.sagemaker.rubbish = yes

    def do_deaf(self, yes: bool):
        self.sagemaker.deaf = yes

    def do_clock(self, seconds: float):
        self.clock.now += seconds

    def do_sms(self, mood: str):
        self.sms = mood

    def do_model(self, there: bool):
        self.model = there

    # ---- the end

    def settle(self, seconds: float):
        "Advance to a quiet state `seconds` later: no faults, nothing in transition, all events and wake-ups lost."
        self.calm, self.plan, self.sagemaker.deaf = True, {}, False
        self.standby.mood = "works"
        self.sagemaker.settle_changing()
        for i in range(len(self._ours("Creating"))):
            self.do_up(i * 0)
        self.events.clear()
        self.scheduler.schedules.clear()
        self.clock.now += seconds
        self.sagemaker.settle_deleting()

    @shown
    def check_repaired(self):
        "Check what must be true after quiescence and one run of the reconciler."
        row, mine = self.row, self.name(self.row.runId)
        ours = {
            n: e["status"] for n, e in self.sagemaker.endpoints.items() if n != FOREIGN and e["status"] != "Deleting"
        }
        alive = {mine} if row.state in LIVE else set()
        must(set(ours) <= alive, "no endpoint of a dead run", (ours, row.state, row.runId))
        must(set(self.sagemaker.configs) - {FOREIGN} <= alive, "no config of a dead run", (row.state, row.runId))
        expected = {CREATING: "Creating", IN_SERVICE: "InService"}.get(row.state)
        if row.state == CREATING and self.name(row.leftover) in self.sagemaker.endpoints:
            expected = None  # it is created after the previous one is gone
        must(ours.get(mine) == expected, "the row says what SageMaker says", (row.state, ours))
        must(row.state != STOPPING, "a stop is finished", row)
        running = {row.runId} if row.state in LIVE else set()
        running |= {run_id for run_id in self.usage.open if self.name(run_id) in self.sagemaker.endpoints}  # Deleting
        must(set(self.usage.open) <= running, "no run stays open whose endpoint is gone", (self.usage, row.state))
        if row.state != CREATING:
            must(not row.subscribers, "no number of a run that is open or over", row)
        if row.state == IN_SERVICE:
            armed = any(event["runId"] == row.runId for _, event in self.scheduler.schedules.values())
            must(armed, "an open run has a wake-up", row.runId)
        if not row.subscribers and row.state in (CREATING, IN_SERVICE):
            item = self.dynamodb.items[self.settings.model_id]
            must("expiresAt" not in item, "a live row without numbers does not expire", row.state)
        for start, phone in self.promised & {(s, p) for s in self.opened for p in PHONES}:
            ends = [how for s, number, how in self.accounts if number == phone and s >= start]
            waits = model_state.key_for(row, phone)
            must(ends or waits, "everybody who was promised a message is accounted for", (start, phone, self.accounts))
