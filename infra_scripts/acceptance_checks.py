"""What has to hold of an engine in an account, from its page to its bill: for acceptance.py."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import boto3
import httpx
from aws_target import planned
from botocore.exceptions import BotoCoreError, ClientError
from smoke import PRAISE, StepFailed, Visit, is_loopback, sleep, use, wake
from standing import by_tag

from sentiment_engine.costs import PRICES
from sentiment_engine.deploy.endpoint import our_names
from sentiment_engine.service.model_state import StateTable, read_row
from sentiment_engine.settings import connect, endpoint_name

if TYPE_CHECKING:
    from acceptance import Acceptance

# Seconds. A start in AWS takes 5 to 15 minutes; the engine itself gives up after 45.
START_LIMIT, SITE_LIMIT, GONE_LIMIT, MESSAGE_LIMIT = 3000.0, 600.0, 180.0, 60.0
PREDICTIONS = 20  # that are timed
ERROR = re.compile(r'"level": ?"(ERROR|CRITICAL)"|\bTask timed out\b|\bTraceback\b|\[ERROR\]')  # in a function's log
# What carries the tag and is in none of the stacks: the stacks, what notebooks and the engine make in SageMaker, and
# what lets GitHub deploy.
OUTSIDE = re.compile(r":cloudformation:|:sagemaker:.*:(model|endpoint(-config)?|training-job)/|-(deployer|boundary)$")


# The page


def fetch(at: Acceptance, path: str) -> httpx.Response:
    "Get a file of the page: from its domain, or from the address that --site-address says stands for it."
    site = at.outputs["SiteUrl"]
    headers = {"host": urlsplit(site).netloc, "x-forwarded-proto": "https", "accept-encoding": "identity"}
    address = (at.options.site_address or site).rstrip("/")
    return httpx.get(f"{address}/{path}", headers=headers, timeout=30, trust_env=not is_loopback(address))


def first_answer(at: Acceptance) -> httpx.Response:
    "Get the page, once its new domain name is known everywhere. Raises TransportError if it never is."
    start = time.monotonic()
    while True:
        passed = time.monotonic() - start
        try:
            if (reply := fetch(at, "")).status_code == 200 or passed > SITE_LIMIT:
                return reply
        except httpx.TransportError:
            if passed > SITE_LIMIT:
                raise
        at.now_and_then("the page does not answer yet", passed)
        time.sleep(5)


def check_page(at: Acceptance):
    "Check that the page is published over HTTPS, is closed to others and knows its API."
    site, api, reply = at.outputs["SiteUrl"], at.outputs["ApiUrl"], first_answer(at)
    at.check("page: its address is HTTPS", site.startswith("https://"), site)
    kind = reply.headers.get("content-type", "")
    at.check("page: it is there", reply.status_code == 200 and "text/html" in kind, f"{reply.status_code} {kind}")
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', reply.text)
    policy, origin = found[1] if found else "", "{0.scheme}://{0.netloc}".format(urlsplit(api))
    closed = f"connect-src 'self' {origin};" in policy and "unsafe" not in policy and "*" not in policy
    at.check("page: its policy lets it talk to the API only", closed, policy)
    missing = {"strict-transport-security", "x-content-type-options"} - set(reply.headers)
    at.check("page: its headers guard it", not missing, ", ".join(sorted(missing)))
    told = fetch(at, "config.json").json()
    at.check("page: it knows the API's address", told.get("apiUrl") == api, told.get("apiUrl"))
    files = set(re.findall(r'(?:src|href)="([^":#]+\.(?:js|css|svg))"', reply.text))
    broken = [name for name in sorted(files) if fetch(at, name).status_code != 200]
    at.check("page: every file that it asks for is there", files and not broken, ", ".join(broken) or len(files))
    if at.options.site_address:
        at.record.unknown.append("whether HTTP leads to HTTPS, because --site-address stands for the domain")
    else:
        plain = httpx.get(site.replace("https://", "http://", 1), timeout=30)
        leads = plain.headers.get("location", "")
        at.check("page: HTTP leads to HTTPS", plain.is_redirect and leads.startswith(site), leads)
    check_origins(at, site, api)


def check_origins(at: Acceptance, site: str, api: str):
    "Check whose requests the API takes."
    for origin, expected in ((site, site), ("https://example.com", None)):
        asked = {"origin": origin, "access-control-request-method": "POST"}
        asked |= {"access-control-request-headers": "content-type"}
        allowed = httpx.options(f"{api}/start", headers=asked, timeout=30).headers.get("access-control-allow-origin")
        title = "API: it takes requests from the page" if expected else "API: and from no other page"
        at.check(title, allowed == expected, allowed or "")


# The visit


class RealVisit(Visit):
    "The visit of `make smoke`, in real time and noted by an acceptance."

    def __init__(self, at: Acceptance):
        self.at, self.run_id, self.instance_type = at, "", ""
        self.pressed = self.awake = 0.0  # when Start was pressed, and when the model was in service
        super().__init__(at.outputs["ApiUrl"], self.wait_out, phone=at.options.phone or "", patience=START_LIMIT)

    def step(self, title: str, passed: bool, seen: object):
        "Note a step. Raises StepFailed if it did not pass."
        now, record = time.monotonic(), self.at.record
        if title.startswith("predict: ") and isinstance(seen, dict) and "score" in seen:
            if not record.answers:
                record.figures.append(f"the first answer came {now - self.awake:.1f} s after the model was in service")
            seen = f"{seen['label']} {seen['score']:.3f}"
            record.answers.append(f"{title.removeprefix('predict: ')} {seen}")
        self.at.check(title, passed, seen)
        if not passed:
            raise StepFailed(title)
        if title.startswith("start: the run"):
            self.pressed = now
        if title.startswith("awake"):
            self.awake = now
            record.figures.append(f"from Start to in service: {now - self.pressed:.0f} s")

    def look(self, seen: str, passed: float):
        "Say once a minute what is waited for."
        self.at.now_and_then(seen, passed)

    def wait_out(self, seconds: float):
        "Let time pass, and say so."
        start = time.monotonic()
        while (passed := time.monotonic() - start) < seconds:
            self.at.now_and_then(f"waiting for {seconds:.0f} s", passed)
            time.sleep(min(1.0, seconds - passed))


def visit(at: Acceptance):
    "Play the visit of `make smoke`, and look behind it."
    guest = RealVisit(at)
    if not at.attempt("start to in service", lambda: wake(guest)):
        return  # the teardown ends whatever is being created
    at.attempt("the run", lambda: know_run(guest))
    if at.options.phone:
        at.attempt("SMS", lambda: check_message(at))
    at.attempt("predictions and extend", lambda: use(guest))
    at.attempt(f"{PREDICTIONS} predictions", lambda: check_speed(at, guest))
    if at.attempt("idle shutdown", lambda: sleep(guest)):
        asleep = time.monotonic()
        at.attempt("cost of the run", lambda: check_costs(at, guest, asleep - guest.pressed))
        at.attempt("what the run has left", lambda: check_run(at, guest.run_id))


def know_run(guest: RealVisit):
    "Learn which run it is, and on which machine, while the API says so."
    status = guest.call("GET", "/status")[1]
    guest.run_id, guest.instance_type = status["runId"], status["instanceType"]


def check_message(at: Acceptance):
    "Check that the SMS provider took one message."
    settings, start = at.settings, time.monotonic()
    table = StateTable(boto3.client("dynamodb"), settings.table, settings.model_id)
    while not (row := read_row(table)).smsSent + row.smsFailed and time.monotonic() - start < MESSAGE_LIMIT:
        time.sleep(1)
    at.check("SMS: the provider took one", row.smsSent == 1, f"sent {row.smsSent}, refused {row.smsFailed}")
    at.check("SMS: the number is forgotten", not row.subscribers, f"{len(row.subscribers)} left")


def check_speed(at: Acceptance, guest: Visit):
    "Measure predictions from here, and within the service."
    outside, inside = [], []
    for _ in range(PREDICTIONS):
        start = time.monotonic()
        code, reply = guest.call("POST", "/predict", {"inputs": PRAISE})
        if code == 200:
            outside.append(1000 * (time.monotonic() - start))
            inside.append(reply["latencyMs"])
    at.check("predictions: all are answered", len(outside) == PREDICTIONS, f"{len(outside)} of {PREDICTIONS}")
    if outside:
        said = f"{median(outside):.0f} ms from here, of which {median(inside):.0f} ms from the function to the endpoint"
        at.record.figures.append(f"a prediction, median of {len(outside)}: {said}")


# Behind the page


def check_costs(at: Acceptance, guest: RealVisit, seconds: float):
    "Compare what the engine says it has spent with instance seconds times price."
    spent, hourly = guest.call("GET", "/status")[1]["spentThisMonth"], PRICES[guest.instance_type]
    expected = hourly * seconds / 3600
    said = f"${spent:.4f} by its count, ${expected:.4f} by the clock ({seconds:.0f} s on {guest.instance_type})"
    # The two clocks see start and end at other moments: a minute, and a tenth for a slow network.
    at.check("cost: the engine counts what it uses", abs(spent - expected) <= hourly / 60 + 0.1 * expected, said)
    at.record.figures.append(f"the run: {said}")
    at.record.figures.append("Cost Explorer was not asked: a question costs $0.01, and the answer lags by a day")


def endpoint_status(sagemaker, name: str) -> str:  # empty: SageMaker does not know it
    "Describe an endpoint by name."
    try:
        return sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"]
    except ClientError as e:
        if "could not find" in str(e).lower():
            return ""
        raise


Left = TypeVar("Left")


def emptied(at: Acceptance, what: str, left: Callable[[], Left]) -> Left:  # what is left; empty: nothing
    "Wait until nothing is left of something that is being deleted."
    start = time.monotonic()
    while (found := left()) and (passed := time.monotonic() - start) < GONE_LIMIT:
        at.now_and_then(f"{what} is still there", passed)
        time.sleep(min(5, max(0.3, passed / 20)))
    return found


def check_run(at: Acceptance, run_id: str):
    "Check that the run left neither an endpoint nor a schedule, and that nothing failed on the way."
    sagemaker, scheduler, prefix = boto3.client("sagemaker"), boto3.client("scheduler"), at.record.prefix
    name = endpoint_name(at.settings, run_id)
    left = emptied(at, "the endpoint", lambda: endpoint_status(sagemaker, name))
    at.check("endpoint: SageMaker does not know it any more", not left, left)
    tagged = our_names(sagemaker, at.settings, "endpoint", f"{prefix}-")
    at.check("endpoint: none carries the engine's tag", not tagged, ", ".join(tagged))

    def schedules() -> list[str]:
        return [s["Name"] for s in scheduler.list_schedules(GroupName=prefix)["Schedules"]]

    standing = emptied(at, "a schedule", schedules)
    at.check("schedules: none is left", not standing, ", ".join(standing))
    sqs = boto3.client("sqs")
    queue = sqs.get_queue_url(QueueName=at.outputs["DeadLetters"])["QueueUrl"]
    told = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["ApproximateNumberOfMessages"])["Attributes"]
    waiting = told["ApproximateNumberOfMessages"]
    at.check("events: all were delivered", waiting == "0", f"{waiting} in the queue of undeliverable ones")
    errors = logged_errors(prefix)
    at.check("functions: none logged an error", not errors, "; ".join(errors[:3]))


def logged_errors(prefix: str) -> list[str]:
    "Find what the functions logged as errors, which a retry or the reconciler may have mended meanwhile."
    logs, start, found = boto3.client("logs"), f"/aws/lambda/{prefix}-", []
    groups = logs.get_paginator("describe_log_groups").paginate(logGroupNamePrefix=start)
    for group in groups.search("logGroups[].logGroupName"):
        for page in logs.get_paginator("filter_log_events").paginate(logGroupName=group):
            lines = [event["message"] for event in page["events"]]
            found += [f"{group.removeprefix(start)}: {line.strip()}" for line in lines if ERROR.search(line)]
    return found


# The plan


def check_plan(at: Acceptance):
    "Compare what the plan said would be made with what stands there, by stack and by tag."
    plan = planned(at.options, at.settings, connect("aws"), False)
    announced = Counter((change.stack, change.kind) for change in plan.changes)
    held = {stack: at.resources(stack) for stack in at.stacks()}
    standing = Counter((stack, each["ResourceType"]) for stack, found in held.items() for each in found)
    for stack in dict.fromkeys([*(stack for stack, _ in announced), *held]):
        less = [kind for (of, kind) in (announced - standing).elements() if of == stack]
        more = [kind for (of, kind) in (standing - announced).elements() if of == stack]
        said = [f"{len(held.get(stack, ()))} resources"] + [f"missing: {', '.join(less)}"] * bool(less)
        said += [f"not announced: {', '.join(more)}"] * bool(more)
        at.check(f"plan: {stack} is what was announced", not less and not more, "; ".join(said))
    try:
        arns = by_tag(connect("aws"), at.record.prefix)
    except (ClientError, BotoCoreError) as e:
        at.record.unknown.append(f"what carries the engine's tag, so names were all there was to go by: {e}")
        return
    names = {each["PhysicalResourceId"].split("/")[-1] for found in held.values() for each in found}
    beside = [arn for arn in arns if not any(name in arn for name in names) and not OUTSIDE.search(arn)]
    at.check("tag: all that carries it is in a stack", not beside, ", ".join(beside) or f"{len(arns)} things")
