"""The benchmarks' own code: counting, medians, goals, servers that end. Nothing here is timed."""

import asyncio
import json
import random
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import numpy as np
import pandas as pd
import psutil
import pytest

from benchmarks import inference, recipe, standby, training
from benchmarks.load import ask, drive, request_bytes, split_answer
from benchmarks.report import Goal, goal_line, in_process, judge, medians
from sentiment_engine.model.artifact import add_inference_code
from sentiment_engine.model.training_job import Recipe
from tests.doubles.tiny_model import WEIGHTS, tokenizer, write_tiny_model


@contextmanager
def http_server(answer, held: list):  # answer: bytes for the number of a request; held: number of open ones
    "Serve on a free port, in a thread."
    loop, ready, asked = asyncio.new_event_loop(), threading.Event(), []
    waiting = set()

    async def serve(reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                asked.append(json.loads(await reader.readexactly(size))["inputs"])
                waiting.add(writer)
                await asyncio.sleep(0.005)
                held.append(len(waiting))
                waiting.discard(writer)
                writer.write(answer(len(asked)))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main():
        server.append(await asyncio.start_server(serve, "127.0.0.1", 0))
        ready.set()

    server: list = []
    loop.create_task(main())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    ready.wait(60)
    try:
        yield server[0].sockets[0].getsockname()[1], asked
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def answered(status: int = 200, body: bytes = b"[]") -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


def test_each_request_is_sent_once_and_failures_do_not_count_as_answers():
    held = []
    with http_server(lambda n: answered(503 if n % 5 == 0 else 200), held) as (port, asked):
        load = drive(port, [request_bytes(f"text {i}") for i in range(20)], clients=4)
    assert sorted(asked) == sorted(f"text {i}" for i in range(20))
    assert len(load.latencies) == 16 and load.failures == {503: 4} and max(held) == 4
    assert load.rate == pytest.approx(16 / load.seconds) and load.client_cpu > 0


def test_a_timed_load_counts_every_request_that_it_sent():
    with http_server(lambda n: answered(), []) as (port, asked):
        load = drive(port, [request_bytes("again")], clients=3, seconds=0.05)
    assert len(load.latencies) == len(asked) >= 3 and set(asked) == {"again"}


def test_a_closed_connection_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=lambda: listener.accept()[0].close(), daemon=True).start()
        with pytest.raises(ConnectionError):
            drive(listener.getsockname()[1], [request_bytes("text")])


@pytest.mark.parametrize(
    "whole",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n[\r\n1\r\n]\r\n0\r\n\r\n",
    ],
)
def test_only_a_complete_answer_is_accepted(whole):
    assert split_answer(whole + b"HTTP") == (200, b"[]", b"HTTP")
    assert all(split_answer(whole[:n]) is None for n in range(len(whole)))


def test_medians_ignore_rounds_without_a_measure():
    assert medians([{"a": 1, "b": 5}, {"a": 100}, {"a": 2, "b": 7}]) == {"a": 2, "b": 6}


@pytest.mark.parametrize(
    ("kind", "ours", "stock", "found", "met"),
    [
        ("faster", 2.0, 12.0, 6.0, True),
        ("faster", 3.0, 12.0, 4.0, False),
        ("more", 60.0, 10.0, 6.0, True),
        ("share", 1.0, 10.0, 0.1, True),
        ("at most", 6.5, 1.0, 6.5, False),
    ],
)
def test_each_goal_is_judged_in_its_own_direction(kind, ours, stock, found, met):
    judged = judge(Goal("it", "m", kind, 5.0), {"m": ours}, {"m": stock})
    assert judged["found"] == pytest.approx(found) and judged["met"] is met
    assert goal_line(judged).endswith("NOT MET") is not met


def test_missing_measurements_are_not_judged():
    assert judge(Goal("it", "m", "faster", 5.0), {"m": 1.0}, {}) is None


def test_texts_have_the_requested_number_of_tokens():
    words = list(WEIGHTS)[4:]
    rng = random.Random(0)
    reviews = [" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(50)]
    for tokens in (5, 20, 60):
        texts = inference.cut_texts(tokenizer(WEIGHTS), reviews, tokens, 12)
        assert [len(tokenizer(WEIGHTS).encode(text).ids) for text in texts] == [tokens] * 12
    mix = inference.mixed({5: ["a"] * 9, 20: ["b"] * 9, 60: ["c"] * 9}, 12)
    assert sorted(mix) == ["a"] * 4 + ["b"] * 4 + ["c"] * 4


# ---- servers


@pytest.fixture
def model(tmp_path):
    "A model of a few words, in the folders that the compared servers expect."
    for way in ("ours", "stock"):
        add_inference_code(write_tiny_model(tmp_path / way))
    texts = {n: [f"love number {i}" for i in range(inference.POOL)] for n in inference.TOKENS}
    return inference.Model("minilm", tmp_path, 1, texts)


def test_a_server_answers_reports_its_memory_and_ends_when_interrupted(model):
    with pytest.raises(KeyboardInterrupt), inference.started(inference.WAYS["ours"], model) as server:
        status, body = ask(server.port, request_bytes("love"))
        assert status == 200 and json.loads(body)[0]["label"] == "POSITIVE"
        assert server.cold_start > 0 and server.memory()["rss"] > 20
        raise KeyboardInterrupt
    assert not psutil.pid_exists(server.process.pid)


def test_the_error_for_a_failed_server_shows_why(model):
    broken = inference.Way("broken", lambda folder, port: [sys.executable, "-c", "raise SystemExit('no such engine')"])
    with pytest.raises(inference.ServerError, match="no such engine"), inference.started(broken, model):
        pass


def test_a_failed_installation_is_reported_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "CACHE", inference.ROOT / ".bench/test")
    needs = tmp_path / "requirements-nobody.txt"
    needs.write_text(f"nobody @ file://{tmp_path}/nobody.whl\n")
    assert "cannot be installed here" in inference.install(needs)
    assert not inference.interpreter(needs).parent.exists()


def test_a_run_continues_without_a_server_that_fails_to_start(model, tmp_path):
    broken = inference.Way("broken", lambda folder, port: [sys.executable, "-c", "raise SystemExit('no such engine')"])
    ours, stock = inference.WAYS["ours"], inference.Way("stock", inference.WAYS["ours"].command)
    plan = inference.Plan(2, requests=3, seconds=0.05, clients=(1, 16), list_length=9)
    missing = {}
    rounds = inference.run_rounds([model], [ours, stock, broken], plan, missing)
    found = inference.summary(rounds)
    assert list(missing) == ["broken"] and "no such engine" in missing["broken"]
    assert {way: m["rounds"] for way, m in found["minilm"].items()} == {"ours": 2, "stock": 2}
    assert found["minilm"]["ours"]["failures"] == 0 and found["minilm"]["ours"]["agree"] == 1
    told = inference.say(found, missing, plan, [model])
    assert "broken is missing" in told and "ours / stock" in told
    assert len(inference.verdicts(found)["minilm"]) == len(inference.GOALS["minilm"])
    inference.plot(found, tmp_path / "picture.svg")
    assert "<svg" in (tmp_path / "picture.svg").read_text()
    json.dumps(inference.as_json(found, rounds, missing, plan, [model], {}))


# ---- training


def test_accuracy_is_reported_with_its_error():
    base, better = np.array([1, 0] * 50), np.array([1, 1] * 50)
    assert training.standard_error(better - base) == pytest.approx(0.0503, abs=1e-4)
    accuracy = {"ours": {"accuracy": 0.9, "standard_error": 0.01, "points": -0.9, "points_error": 0.5}}
    assert "NOT MET; too few tests to be sure" in training.accuracy_lines(accuracy)[0]
    accuracy["ours"]["points"] = 3.0
    assert training.accuracy_lines(accuracy)[0].endswith("0.3 lost: met")


def test_training_speeds_are_judged_against_the_original():
    found = {"ours": {"samples/s": 26.0}, "ours-512": {"samples/s": 9.0}, "original": {"samples/s": 1.0}}
    assert [(j["found"], j["met"]) for j in training.verdicts(found)] == [(26.0, True), (9.0, False)]


def test_training_reviews_are_unique_and_have_both_labels():
    rows = training.labelled(60, None)
    assert len({row["label"] for row in rows[:20]}) == 2, "in random order"
    assert len({row["text"] for row in rows}) == 60 and sum(row["label"] for row in rows) == 30


@pytest.mark.slow
@pytest.mark.parametrize("case", ["ours", "original"])
def test_a_case_trains_and_predicts_in_its_own_process(case):
    rows = training.labelled(80, None)
    inference.CACHE.mkdir(exist_ok=True)
    job = {"case": case, "base": training.base_model(None), "steps": 1, "train": rows[:64], "test": rows[64:]}
    done = in_process("benchmarks.training", job)
    assert done["samples/s"] > 0 and len(done["right"]) == 16


# The recipe, one change at a time


def rated(count: int = 600) -> pd.DataFrame:
    stars = [1 + i % 5 for i in range(count)]
    return pd.DataFrame({"text": [f"text {i}" for i in range(count)], "label": [s > 3 for s in stars], "stars": stars})


def test_reviews_are_drawn_as_the_variant_requires():
    balanced = recipe.draw(rated(), "balanced", 120)["stars"].value_counts().to_dict()
    assert balanced == {1: 20, 2: 20, 3: 20, 4: 30, 5: 30}
    assert recipe.draw(rated(), "without threes", 120)["stars"].value_counts().to_dict() == {1: 30, 2: 30, 4: 30, 5: 30}
    assert recipe.draw(rated(), "as they come", 7)["text"].tolist() == [f"text {i}" for i in range(7)]
    with pytest.raises(SystemExit, match="too few"):
        recipe.draw(rated(60), "balanced", 120)


def test_training_and_test_reviews_do_not_overlap():
    train, test = recipe.halves(recipe.rated(None, 400))
    assert len(train) > 100 and not set(train["text"]) & set(test["text"]) and set(train["stars"]) == {1, 2, 3, 4, 5}


def test_each_variant_changes_one_option_of_the_default():
    options = [changed for changed, _ in recipe.WAYS.values()]
    assert all(len(changed) <= 1 for changed in options) and options[0] == {}
    assert all(Recipe(**changed) != Recipe() for changed in options if changed)
    assert all(how == "balanced" for changed, how in recipe.WAYS.values() if changed)


@pytest.mark.slow
def test_a_small_sweep_writes_its_results_and_seeds():
    done = subprocess.run([sys.executable, "-m", "benchmarks.recipe", "--quick"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = json.loads((recipe.CACHE / "recipe.json").read_text())
    assert [way["changed"] for way in written["ways"]] == ["nothing", "2 epochs"] and written["train_rows"] == 48
    assert all(0 <= way["macro_f1"] <= 1 and way["seconds"] > 0 and way["seeds"] == 1 for way in written["ways"])


# The standby ---------------------------------------------------------------------------------------------------------


def test_times_and_prices_follow_from_a_memory_setting():
    one = {"init": 0.2, "rss": 96, **{f"ms {n}": 1.0 * n for n in standby.TOKENS}}
    measured = {"1": one, "2": {f"ms {n}": 1.4 * n for n in standby.TOKENS}}
    half, whole, more, double = (standby.setting(memory, measured) for memory in (1769 / 2, 1769, 3008, 3538))
    assert [row["ms 20"] for row in (half, whole, more, double)] == [40, 20, 20, 14]
    assert [row["init"] for row in (half, whole, more, double)] == [0.4, 0.2, 0.2, 0.2]
    assert half["dollars 200"] == pytest.approx(whole["dollars 200"])
    assert whole["dollars 200"] < double["dollars 200"] < more["dollars 200"]
    assert whole["dollars 200"] == pytest.approx(1000 * (2e-7 + 0.2 * 1769 / 1024 * 0.0000133334))


def test_a_fresh_process_loads_the_released_model_and_times_its_predictions(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.report.CACHE", tmp_path)
    texts = {"3": ["I love it."] * 7}
    job = {"packages": standby.unpacked(tmp_path / "packages"), "threads": 1, "texts": texts}
    found = in_process("benchmarks.standby_init", job)
    assert found.keys() == {"init wall", "init", "rss", "ms wall 3", "ms 3"}
    assert all(value > 0 for value in found.values()) and found["rss"] < 220
