"Visits over HTTP in the local cloud: real Lambdas, events, schedules and messages, and an endpoint that is a process."

import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.doubles.local_models import until

VISITORS = 20  # all cold: a Lambda worker is a process, and API Gateway waits 29 seconds


def left(engine) -> list[str]:
    "List the endpoints, endpoint configs and wake-ups that exist."
    sagemaker, scheduler = engine.cloud.client("sagemaker"), engine.cloud.client("scheduler")
    found = [e["EndpointName"] for e in sagemaker.list_endpoints()["Endpoints"] if e["EndpointStatus"] != "Deleting"]
    found += [c["EndpointConfigName"] for c in sagemaker.list_endpoint_configs()["EndpointConfigs"]]
    return found + [s["Name"] for s in scheduler.list_schedules(GroupName=engine.settings.prefix)["Schedules"]]


def logged(engine) -> list[str]:
    "Return the Lambdas' output so far."
    logs = engine.cloud.client("logs")
    groups = logs.describe_log_groups(logGroupNamePrefix=f"/aws/lambda/{engine.settings.prefix}-")["logGroups"]
    return [e["message"] for g in groups for e in logs.filter_log_events(logGroupName=g["logGroupName"])["events"]]


def errors(lines: list[str]) -> list[str]:
    "Return logged errors and exceptions."
    return [line for line in lines if '"level":"ERROR"' in line or "Traceback" in line]


def texted(engine, numbers: list[str]) -> list[str]:
    "Return the `numbers` that got an SMS, once no subscriber waits."
    told = lambda: sorted(m["to"] for m in engine.messages() if m["to"] in numbers)  # noqa: E731
    until(lambda: len(told()) >= len(numbers))
    return told()


def test_simultaneous_visitors_share_one_endpoint_and_get_one_message_each(engine):
    engine.use("good")
    engine.sleep()
    before = logged(engine)
    numbers = [f"+1202555{n:04}" for n in range(100, 100 + VISITORS)]

    def start(phone: str) -> httpx.Response:
        return httpx.post(engine.api_url + "/start", json={"name": "Ada", "phone": phone}, timeout=60)

    with ThreadPoolExecutor(VISITORS) as pool:
        answers = list(pool.map(start, numbers))
    assert {a.status_code for a in answers} == {202}
    assert sorted(a.json()["outcome"] for a in answers) == ["joined"] * (VISITORS - 1) + ["started"]
    assert len(engine.cloud.client("sagemaker").list_endpoints()["Endpoints"]) == 1
    engine.wait("IN_SERVICE")
    assert texted(engine, numbers) == numbers
    status = engine.call("GET", "/status")
    assert status["subscribers"] == 0 and status["typicalSeconds"]["starts"] >= 1

    prediction = engine.call("POST", "/predict", {"inputs": ["A lovely, fantastic thing.", "It broke, disappointed."]})
    assert [p["label"] for p in prediction["predictions"]] == ["POSITIVE", "NEGATIVE"]
    engine.cloud.advance_clock(engine.settings.idle_minutes * 60 - 60)
    assert engine.call("POST", "/extend")["secondsLeft"] > engine.settings.idle_minutes * 60 - 30
    engine.cloud.advance_clock(90)  # the first wake-up runs and schedules the next one
    time.sleep(3)
    assert engine.state() == "IN_SERVICE"
    engine.cloud.advance_clock(engine.settings.idle_minutes * 60)
    engine.wait("STOPPED")
    since = logged(engine)
    assert left(engine) == [] and errors(since) == errors(before)
    assert sum("start" in line for line in since) > sum("start" in line for line in before)  # or this checked nothing
    assert engine.call("POST", "/predict", {"inputs": "Late."})["error"]["state"] == "STOPPED"


def test_a_model_that_does_not_start_is_reported_and_deleted(engine):
    engine.sleep()
    engine.use("broken")
    number = "+12025550155"
    engine.call("POST", "/start", {"name": "Bob", "phone": number})
    engine.wait("FAILED")
    until(lambda: not left(engine))
    assert engine.call("GET", "/status")["reason"]
    assert texted(engine, [number]) == [number]
    assert "could not be started" in next(m["text"] for m in engine.messages() if m["to"] == number)
    engine.use("good")
