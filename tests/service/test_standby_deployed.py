"The deployed standby: every request gets an answer at once, even if the endpoint is killed under load."

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from sentiment_engine.local.server import AT_ONCE
from tests.doubles.engine import Engine, running_engine
from tests.doubles.local_models import until

TEXT = {"inputs": "A lovely and warm lamp."}
CLIENTS = 16


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Iterator[Engine]:
    "The deployed engine with its standby, asleep."
    with running_engine(tmp_path_factory.mktemp("engine"), standby=True) as running:
        yield running


def ask(engine: Engine, body: dict = TEXT) -> tuple[int, dict]:
    answer = httpx.post(f"{engine.api_url}/predict", json=body, timeout=60, trust_env=False)
    return answer.status_code, answer.json()


def by(engine: Engine) -> str:
    "Return who answers."
    status, told = ask(engine)
    assert status == 200 and told["predictions"][0]["label"] == "POSITIVE", told
    return told["answeredBy"]


def kill_endpoint(engine: Engine) -> int:  # number of killed processes
    "Kill the processes of the endpoint."
    children = psutil.Process(engine.cloud.place["pid"]).children(recursive=True)
    serving = [each for each in children if "sentiment_engine.model.serving" in each.cmdline()[1:3]]
    for each in serving:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    return len(serving)


def test_a_visitor_gets_answers_before_during_and_after_a_run(engine):
    before = engine.call("GET", "/status")["standby"]
    assert (before["textLimit"], before["dailyTexts"], len(before["modelVersion"])) == (25, 5000, 12)
    assert by(engine) == "standby" and ask(engine, {"inputs": ["warm"] * 26})[0] == 409
    engine.call("POST", "/start", {})
    seen = []
    while engine.state() != "IN_SERVICE":
        seen.append(by(engine))
    assert "endpoint" not in seen[:-1], "it came up before the last one at the earliest"
    assert by(engine) == "endpoint"
    after = engine.call("GET", "/status")["standby"]  # the clock moves in `sleep`, perhaps to the next day
    assert before["leftToday"] - after["leftToday"] == 1 + seen.count("standby")
    engine.sleep()
    assert by(engine) == "standby"
    (explained,) = ask(engine, TEXT | {"explain": True})[1]["predictions"]
    assert {"lovely", "warm"} <= {word["text"] for word in explained["explanation"]}


def warm_up(engine: Engine):
    "Wait until as many instances of the standby run as the local cloud asks at once, however busy the machine is."
    long = {
        "inputs": 40 * TEXT["inputs"],
        "explain": True,
    }  # takes so long that each request needs a separate instance
    with ThreadPoolExecutor(AT_ONCE) as pool:
        until(lambda: {status for status, _ in pool.map(lambda _: ask(engine, long), range(AT_ONCE))} == {200})


def test_killing_the_endpoint_under_load_loses_no_request(engine):
    warm_up(engine)
    engine.wake()
    stop, answers = threading.Event(), []

    def visit():
        while not stop.is_set():
            begun = time.monotonic()
            status, told = ask(engine)
            answers.append((status, told.get("answeredBy") or told["error"]["code"], time.monotonic() - begun))

    with ThreadPoolExecutor(CLIENTS) as pool:
        visits = [pool.submit(visit) for _ in range(CLIENTS)]
        try:
            time.sleep(1)
            assert kill_endpoint(engine)
            time.sleep(3)
        finally:
            stop.set()
        for each in visits:
            each.result(300)
    seen = Counter((status, who) for status, who, _ in answers)
    assert set(seen) == {(200, "endpoint"), (200, "standby")}, (seen, max(seconds for *_, seconds in answers))
