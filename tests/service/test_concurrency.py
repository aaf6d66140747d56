"Concurrency: many simultaneous starts, starts during the shutdown, and predictions while the model goes to sleep."

import asyncio
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import phonenumbers

from tests.doubles.engine import running_engine
from tests.doubles.engine_double import ADA, World
from tests.doubles.local_models import until

NUMBERS = [f"+1202555{n:04}" for n in range(100, 200)] + [f"+1203555{n:04}" for n in range(100, 200)]


def rush(engine, path: str, bodies: list[dict]) -> list[httpx.Response]:
    "Send all requests at the same moment."

    async def send_all():
        limits = httpx.Limits(max_connections=len(bodies))
        async with httpx.AsyncClient(timeout=120, limits=limits) as client:
            return await asyncio.gather(*(client.post(engine.api_url + path, json=body) for body in bodies))

    return asyncio.run(send_all())


def test_two_hundred_simultaneous_starts_create_one_endpoint(tmp_path):
    assert all(phonenumbers.is_valid_number(phonenumbers.parse(number)) for number in NUMBERS)
    with running_engine(tmp_path, waking_seconds=45) as engine:  # all requests arrive before it is ready
        answers = rush(engine, "/start", [{"phone": number} for number in NUMBERS])
        assert Counter(a.status_code for a in answers) == {202: 200}
        assert Counter(a.json()["outcome"] for a in answers) == {"started": 1, "joined": 199}
        assert len({a.json()["runId"] for a in answers}) == 1 == len(endpoints(engine))
        assert engine.call("GET", "/status")["subscribers"] == 200
        engine.wait("IN_SERVICE")
        until(lambda: not engine.call("GET", "/status")["subscribers"])
        assert Counter(message["to"] for message in engine.messages()) == Counter(NUMBERS)
        engine.sleep()
        until(lambda: not endpoints(engine))  # SageMaker takes a moment to delete one


def endpoints(engine) -> list[str]:
    "List the names of the endpoints that exist."
    return [e["EndpointName"] for e in engine.cloud.client("sagemaker").list_endpoints()["Endpoints"]]


def test_a_start_during_the_shutdown_works_a_hundred_times(monkeypatch):
    limits = dict.fromkeys(("daily_starts", "daily_messages", "daily_messages_per_number"), 1000)
    world = World(monkeypatch, idle_minutes=1, number_cooldown_minutes=0, **limits)
    outcomes = Counter()
    for _ in range(100):
        run_id = world.in_service()
        world.clock.now += 61
        shutdown = world.handlers["shutdown-endpoint"].handler
        with ThreadPoolExecutor(2) as pool:
            stopping = pool.submit(shutdown, {"runId": run_id}, None)
            status, body = pool.submit(world.start, ADA).result(60)
            stopping.result(60)
        outcomes[body.get("outcome") or body["error"]["code"]] += 1
        assert len(world.sagemaker.endpoints) <= 1 and len(world.sagemaker.configs) <= 1
        if status == 202:
            assert world.row.state == "CREATING" and world.row.runId != run_id
            assert [e["to"] for e in world.row.subscribers.values()] == [ADA]
            world.endpoint_becomes("InService")
            assert world.phone.sent.pop()[0] == ADA
            world.clock.now += 61
            shutdown({"runId": world.row.runId}, None)
        else:
            assert (status, world.row.state) in ((200, "STOPPED"), (409, "STOPPED"))
        assert world.row.state == "STOPPED" and not world.sagemaker.endpoints and not world.sagemaker.configs
    assert sum(outcomes.values()) == 100 and outcomes["started"]


def test_predictions_during_a_shutdown_end_cleanly(engine):
    engine.wake()
    stop, answers = threading.Event(), []

    def predict():
        while not stop.is_set():
            answers.append(httpx.post(engine.api_url + "/predict", json={"inputs": "warm and lovely"}, timeout=60))

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(predict)
        try:
            time.sleep(1)
            # Predictions move the deadline, so only the maximum run time ends this run.
            engine.cloud.advance_clock(engine.settings.max_run_minutes * 60 + 60)
            engine.wait("STOPPED")
            time.sleep(1)
        finally:
            stop.set()
    seen = Counter((a.status_code, a.json().get("error", {}).get("code")) for a in answers)
    assert set(seen) == {(200, None), (409, "not_in_service")}, seen
