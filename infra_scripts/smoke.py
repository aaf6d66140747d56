"""Play one visit over HTTP against the local cloud, and print each step with its time.

Asleep, Start, waking, awake, the SMS, two predictions, keep alive, idle shutdown, asleep again, and nothing left that
would cost money. Uses the cloud that is running, or starts one and stops it afterwards. The half hour of idleness is
not waited for: the local cloud's clock is put forward.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from urllib.parse import urlsplit

import boto3
import httpx
from deploy import FAILURES, add_options, add_ports, chosen_parameters, deploy, explain, local_cloud, stop_on_signals

from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser
from sentiment_engine.deploy.stacks import stack_outputs
from sentiment_engine.local.cloud import LocalCloud
from sentiment_engine.settings import engine_stack, settings_from

PHONE = "+12025550123"  # of the range that is kept free for fiction
PRAISE = "Five weeks in and it still delights me every single day. Best purchase I have made this year!"
COMPLAINT = "Broke after two days and the seller refused a refund. A complete waste of money, avoid it."


def is_loopback(url: str) -> bool:
    "Tell whether a call stays on this machine. No proxy may see it; httpx loads one even for the hosts of no_proxy."
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


class StepFailed(RuntimeError):
    "A step that did not show what it should."


class Visit:
    "One visit to the page, without the page."

    def __init__(
        self,
        api: str,  # address of the API
        pass_time: Callable[[float], object],  # lets some seconds go by: waits, or puts a clock forward
        inbox: Callable[[], list[dict]] | None = None,  # the messages to `phone`; None: messages cannot be read
        phone: str = "",  # who gets the SMS; empty: nobody
        patience: float = 120,  # seconds that a start may take
    ):
        self.http = httpx.Client(base_url=api, timeout=60, trust_env=not is_loopback(api))
        self.pass_time, self.inbox, self.phone, self.patience = pass_time, inbox, phone, patience
        self.step_number, self.start, self.woken = 0, time.monotonic(), False

    def step(self, title: str, passed: bool, seen: object):
        "Print a step. Raises StepFailed if it did not pass."
        self.step_number += 1
        mark = "ok  " if passed else "FAIL"
        print(f"{mark} {self.step_number:2}. {title:44} {time.monotonic() - self.start:7.2f} s   {seen}", flush=True)
        if not passed:
            raise StepFailed(f"step {self.step_number} failed: {title}")

    def call(self, method: str, path: str, body: dict | None = None) -> tuple[int, dict]:
        "Call the API and return the status code and the JSON; an answer that is no JSON becomes a message."
        reply = self.http.request(method, path, json=body)
        try:
            return reply.status_code, reply.json()
        except ValueError:
            return reply.status_code, {"message": reply.text[:200]}

    def state(self) -> str:
        return self.call("GET", "/status")[1].get("state", "unknown")

    def wait(self, until: Callable[[], object], seconds: float = 120) -> object:
        "Poll until `until()` is true, and return that; the last answer if time runs out."
        start = time.monotonic()
        while True:
            passed = time.monotonic() - start
            try:
                if (answer := until()) or passed > seconds:
                    return answer
            except httpx.TransportError:  # of the network, which may be back the next time
                if passed > seconds:
                    raise
            time.sleep(min(5, max(0.3, passed / 20)))  # a start in AWS takes minutes: no need to ask 3,000 times

    def look(self, seen: str, passed: float):
        "Notice what a wait sees meanwhile; `passed` seconds after its beginning."


def wake(visit: Visit):
    "From asleep to awake, with the SMS if it can be read."
    code, status = visit.call("GET", "/status")
    if status.get("state") in ("CREATING", "IN_SERVICE", "STOPPING"):
        until = f", until {status['shutdownAt']} if nobody goes on" if status.get("shutdownAt") else ""
        raise RuntimeError(f"the model is {status['state']}: somebody uses it{until}. Try again when it sleeps")
    visit.step("status: asleep", code == 200 and status["state"] == "STOPPED", status.get("state", status))
    before = len(visit.inbox()) if visit.inbox else 0
    visit.woken = True
    code, reply = visit.call("POST", "/start", {"name": "Smoke", "phone": visit.phone})
    visit.step("start: the run is won", code == 202 and reply.get("outcome") == "started", reply.get("outcome", reply))
    visit.step("start: waking", reply["state"] == "CREATING", f"{reply['state']} on {reply['instanceType']}")
    waking = time.monotonic()

    def awake() -> bool:
        now = visit.call("GET", "/status")[1]
        visit.look(now.get("state", "unknown"), time.monotonic() - waking)
        if now.get("state") in ("FAILED", "STOPPED"):
            visit.step("awake: the model answered", False, now.get("reason") or now["state"])
        return now.get("state") == "IN_SERVICE"

    visit.step("awake: the model answered", visit.wait(awake, visit.patience), visit.state())
    if visit.inbox:
        visit.wait(lambda: len(visit.inbox()) > before, 20)
        found = visit.inbox()  # the newest first
        texts = [m["text"] for m in found[: len(found) - before]]
        visit.step("one SMS in the inbox", len(texts) == 1, texts)
        visit.step("the SMS says that it is ready", "is ready" in texts[0], texts[0])


def predict(visit: Visit):
    "Two predictions; a model that loads or is busy is asked again."

    def answer(text: str) -> tuple[int, dict] | None:
        code, reply = visit.call("POST", "/predict", {"inputs": text})
        return None if reply.get("error", {}).get("code") in ("waking", "busy") else (code, reply)

    for text, expected in ((PRAISE, "POSITIVE"), (COMPLAINT, "NEGATIVE")):
        code, reply = visit.wait(partial(answer, text), visit.patience) or (503, "the model only ever was busy")
        said = reply["predictions"][0] if code == 200 else reply
        visit.step(f"predict: {text[:32]}…", code == 200 and said["label"] == expected, said)


def use(visit: Visit):
    "Two predictions and a keep-alive."
    predict(visit)
    status = visit.call("GET", "/status")[1]
    pause = min(90, status["idleMinutes"] * 60 / 4)
    visit.pass_time(pause)
    code, reply = visit.call("POST", "/extend")
    times = [datetime.fromisoformat(each["shutdownAt"]) for each in (status, reply) if each.get("shutdownAt")]
    moved = (times[-1] - times[0]).total_seconds()
    visit.step("extend: the deadline moved", code == 200 and moved > pause * 2 / 3, f"by {moved:.0f} s")


def sleep(visit: Visit):
    "The idle shutdown, and a look at what is left."
    left = visit.call("GET", "/status")[1]["secondsLeft"]
    visit.pass_time(left + 5)
    waiting = time.monotonic()

    def asleep() -> bool:
        visit.look(state := visit.state(), time.monotonic() - waiting)
        return state == "STOPPED"

    visit.step("idle: asleep again", visit.wait(asleep, visit.patience / 2), visit.state())
    sagemaker, prefix = boto3.client("sagemaker"), settings_from(os.environ).prefix
    ours = {"NameContains": f"{prefix}-"}
    visit.wait(lambda: not sagemaker.list_endpoints(**ours)["Endpoints"], 30)  # deleting takes a moment
    endpoints = [e["EndpointName"] for e in sagemaker.list_endpoints(**ours)["Endpoints"]]
    visit.step("no endpoint left", not endpoints, endpoints)
    configs = [c["EndpointConfigName"] for c in sagemaker.list_endpoint_configs(**ours)["EndpointConfigs"]]
    visit.step("no endpoint config left", not configs, configs)
    code, reply = visit.call("POST", "/predict", {"inputs": PRAISE})
    visit.step("predict asleep: a clear no", code == 409, reply["error"]["code"] if "error" in reply else reply)
    visit.woken = False


def tidy(visit: Visit):
    "Let the model that this visit has woken fall asleep, in case the visit was cut short."
    if visit.woken:
        print("smoke: putting the model to sleep again", flush=True)
        visit.wait(lambda: visit.state() != "CREATING", visit.patience)
        visit.pass_time((visit.call("GET", "/status")[1].get("secondsLeft") or 0) + 5)
        visit.wait(lambda: visit.state() in ("STOPPED", "FAILED"), visit.patience / 2)


def ask_serverless(visit: Visit):
    "Predictions of a serverless endpoint, which is never started and never deleted."
    code, status = visit.call("GET", "/status")
    awake = code == 200 and status["state"] == "IN_SERVICE"
    visit.step("status: in service, paid by the request", awake, status.get("state", status))
    predict(visit)


def local_visit(cloud: LocalCloud, api: str) -> Visit:
    "Return a visit that reads the local cloud's inbox and puts its clock forward."

    def inbox() -> list[dict]:
        return [m for m in httpx.get(f"{cloud.inbox_url}.json", trust_env=False).json() if m["to"] == PHONE]

    return Visit(api, cloud.advance_clock, inbox, PHONE)


def deployed_api(cloud: LocalCloud, options: argparse.Namespace) -> str:
    "Return the API's address, after a deployment if there is none yet or it was made at another address."
    try:
        outputs = stack_outputs(boto3.client("cloudformation"), engine_stack(settings_from(os.environ)))
    except LookupError:  # nothing deployed yet
        outputs = {"ApiUrl": ""}
    if not outputs["ApiUrl"].startswith(f"{cloud.url}/"):
        outputs = deploy("local", **chosen_parameters(options))
    return outputs["ApiUrl"]


@tells_cause
def main():
    parser = Parser(description=__doc__)
    add_options(parser)
    add_ports(parser)
    options = parser.parse_args()
    stop_on_signals()
    try:
        with local_cloud(ports=options) as cloud:
            visit = local_visit(cloud, deployed_api(cloud, options))
            serverless = visit.call("GET", "/status")[1].get("endpoint") == "serverless"
            try:
                for act in [ask_serverless] if serverless else [wake, use, sleep]:
                    act(visit)
            except StepFailed as e:
                sys.exit(f"smoke: {e}; the local cloud's log is {cloud.log}")
            finally:
                tidy(visit)
            print(f"smoke: {visit.step_number} passed, 0 failed")
    except (*FAILURES, httpx.HTTPError) as e:
        sys.exit(f"smoke: {explain(e)}")
    except KeyboardInterrupt:
        sys.exit("\nsmoke: interrupted")


if __name__ == "__main__":
    main()
