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

import boto3
import httpx
from deploy import FAILURES, add_options, chosen_parameters, deploy, explain, local_cloud

from sentiment_engine.local.cloud import LocalCloud
from sentiment_engine.settings import engine_stack, settings_from
from sentiment_engine.stacks import stack_outputs

PHONE = "+12025550123"  # of the range that is kept free for fiction
PRAISE = "Five weeks in and it still delights me every single day. Best purchase I have made this year!"
COMPLAINT = "Broke after two days and the seller refused a refund. A complete waste of money, avoid it."


class Visit:
    "One visit to the page, without the page."

    def __init__(self, cloud: LocalCloud, api: str):
        self.cloud, self.http, self.step_number = cloud, httpx.Client(base_url=api, timeout=60), 0
        self.start = time.monotonic()

    def step(self, title: str, passed: bool, seen: object):
        "Print a step. Ends the program with what was seen if it did not pass."
        self.step_number += 1
        mark = "ok  " if passed else "FAIL"
        print(f"{mark} {self.step_number:2}. {title:44} {time.monotonic() - self.start:7.2f} s   {seen}", flush=True)
        if not passed:
            raise SystemExit(f"smoke: step {self.step_number} failed; the local cloud's log is {self.cloud.log}")

    def call(self, method: str, path: str, body: dict | None = None) -> tuple[int, dict]:
        "Call the API and return the status code and the JSON."
        reply = self.http.request(method, path, json=body)
        return reply.status_code, reply.json()

    def state(self) -> str:
        return self.call("GET", "/status")[1]["state"]

    def wait(self, until: Callable[[], object], seconds: float = 120) -> object:
        "Poll until `until()` is true, and return that; the last answer if time runs out."
        end = time.monotonic() + seconds
        while not (answer := until()) and time.monotonic() < end:
            time.sleep(0.3)
        return answer

    def messages(self) -> list[dict]:
        return [m for m in httpx.get(f"{self.cloud.inbox_url}.json").json() if m["to"] == PHONE]


def wake(visit: Visit):
    "From asleep to awake, with the SMS."
    code, status = visit.call("GET", "/status")
    if status.get("state") in ("CREATING", "IN_SERVICE", "STOPPING"):
        raise RuntimeError(f"the model is {status['state']}: somebody uses it. Try again when it sleeps")
    visit.step("status: asleep", code == 200 and status["state"] == "STOPPED", status.get("state", status))
    before = len(visit.messages())
    code, reply = visit.call("POST", "/start", {"name": "Smoke", "phone": PHONE})
    visit.step("start: the run is won", code == 202 and reply.get("outcome") == "started", reply.get("outcome", reply))
    visit.step("start: waking", reply["state"] == "CREATING", f"{reply['state']} on {reply['instanceType']}")
    visit.step("awake: the model answered", visit.wait(lambda: visit.state() == "IN_SERVICE"), visit.state())
    visit.wait(lambda: len(visit.messages()) > before, 20)
    texts = [m["text"] for m in visit.messages()[before:]]
    visit.step("one SMS in the inbox", len(texts) == 1, texts)


def use(visit: Visit):
    "Two predictions and a keep-alive."
    for text, expected in ((PRAISE, "POSITIVE"), (COMPLAINT, "NEGATIVE")):
        code, reply = visit.call("POST", "/predict", {"inputs": text})
        answer = reply["predictions"][0] if code == 200 else reply
        visit.step(f"predict: {text[:32]}…", code == 200 and answer["label"] == expected, answer)
    before = datetime.fromisoformat(visit.call("GET", "/status")[1]["shutdownAt"])
    visit.cloud.advance_clock(90)
    code, status = visit.call("POST", "/extend")
    moved = (datetime.fromisoformat(status["shutdownAt"]) - before).total_seconds() if code == 200 else 0
    visit.step("extend: the deadline moved", code == 200 and moved > 60, f"by {moved:.0f} s")


def sleep(visit: Visit):
    "The idle shutdown, and a look at what is left."
    left = visit.call("GET", "/status")[1]["secondsLeft"]
    visit.cloud.advance_clock(left + 5)
    visit.step("idle: asleep again", visit.wait(lambda: visit.state() == "STOPPED", 60), visit.state())
    sagemaker, prefix = boto3.client("sagemaker"), settings_from(os.environ).prefix
    ours = {"NameContains": prefix}
    visit.wait(lambda: not sagemaker.list_endpoints(**ours)["Endpoints"], 30)  # deleting takes a moment
    endpoints = [e["EndpointName"] for e in sagemaker.list_endpoints(**ours)["Endpoints"]]
    visit.step("no endpoint left", not endpoints, endpoints)
    configs = [c["EndpointConfigName"] for c in sagemaker.list_endpoint_configs(**ours)["EndpointConfigs"]]
    visit.step("no endpoint config left", not configs, configs)
    code, reply = visit.call("POST", "/predict", {"inputs": PRAISE})
    visit.step("predict asleep: a clear no", code == 409, reply["error"]["code"] if "error" in reply else reply)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parser.parse_args()
    try:
        with local_cloud() as cloud:
            try:
                outputs = stack_outputs(boto3.client("cloudformation"), engine_stack(settings_from(os.environ)))
            except LookupError:  # nothing deployed yet
                outputs = deploy("local", **chosen_parameters(options))
            visit = Visit(cloud, outputs["ApiUrl"])
            for act in (wake, use, sleep):
                act(visit)
            print(f"smoke: {visit.step_number} passed, 0 failed")
    except (*FAILURES, httpx.HTTPError) as e:
        sys.exit(f"smoke: {explain(e)}")
    except KeyboardInterrupt:
        sys.exit("\nsmoke: interrupted")


if __name__ == "__main__":
    main()
