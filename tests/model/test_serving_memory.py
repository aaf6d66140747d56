"The model server's memory and waiting time are bounded, regardless of what clients send and how often."

import gzip
import json
import random
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from shutil import copy

import httpx
import psutil
import pytest

from sentiment_engine.model.artifact import add_inference_code
from sentiment_engine.model.released import released_folder
from tests.doubles.tiny_model import write_tiny_model
from tests.model.test_serving import Server, running, wait_for

LIMIT = 50_000  # characters that are read from a text
AT_ONCE = 4
ALLOWED = 400 * 2**20  # bytes over idle


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    "The real server with the released model's tokenizer and a model that answers at once."
    folder = tmp_path_factory.mktemp("memory") / "model"
    vocabulary = json.loads((released_folder() / "tokenizer.json").read_text())["model"]["vocab"]
    write_tiny_model(folder, weights=dict.fromkeys(sorted(vocabulary, key=vocabulary.get), 0))
    copy(released_folder() / "tokenizer.json", folder)
    add_inference_code(folder)
    with running(folder) as started:
        assert started.ask("one to warm up " * 400).status_code == 200
        started.idle = psutil.Process(started.process.pid).memory_info().rss
        yield started


@contextmanager
def watched(server: Server) -> Iterator[list[int]]:
    "Record the server's peak memory above idle, in bytes."
    peak, ended, process = [0], threading.Event(), psutil.Process(server.process.pid)

    def watch():
        while not ended.wait(0.01):
            peak[0] = max(peak[0], process.memory_info().rss - server.idle)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield peak
    finally:
        ended.set()
        watching.join(60)


def prose(characters: int) -> str:
    "Return English of a length."
    words = Path(__file__).read_text().split()
    return " ".join(random.Random(1).choices(words, k=characters))[:characters]


SHORT_WORDS, CJK = "a " * (LIMIT // 2), "\u597d\u7684\u7535\u5f71" * (LIMIT // 4)
KINDS = {  # name: texts, further fields, whether each end was omitted
    "long texts": ([prose(LIMIT)] * 50, {}, True),
    "one text at the limit": ([prose(LIMIT)], {}, True),
    "words of one character": ([SHORT_WORDS] * 20, {}, True),
    "punctuation": (["!?" * (LIMIT // 2)] * 20, {}, True),
    "Chinese": ([CJK] * 50, {}, True),
    "emoji": (["\U0001f600\U0001f44d\U0001f3fd" * (LIMIT // 3)] * 20, {}, False),
    "emoji in words": (["\U0001f600 " * (LIMIT // 2)] * 20, {}, True),
    "accents": (["e\u0301\u0302\u0303" * (LIMIT // 4)] * 20, {}, False),
    "entities": (["&amp;amp;lt;" * (LIMIT // 12)] * 20, {}, True),
    "one word": (["x" * LIMIT] * 20, {}, False),
    "one text of 24 MB": (["\U0001f600" + "a b" * 8_000_000], {}, True),
    "tiny texts": (["ok"] * 1000, {}, False),
    "explained long texts": ([prose(LIMIT)] * 10, {"explain": True}, True),
    "explained Chinese": ([CJK] * 10, {"explain": True}, True),
    "explained word": (["x" * LIMIT] * 10, {"explain": True}, False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow_with_the_requests(server, kind):
    texts, more, truncated = KINDS[kind]
    body = json.dumps({"inputs": texts} | more, ensure_ascii=False).encode()
    url, headers = f"{server.url}/invocations", {"content-type": "application/json"}
    with watched(server) as peak, ThreadPoolExecutor(AT_ONCE) as pool:
        asked = [pool.submit(httpx.post, url, content=body, headers=headers, timeout=120) for _ in range(AT_ONCE)]
        replies = [each.result(timeout=60) for each in asked]
    assert peak[0] < ALLOWED, f"{peak[0] / 2**20:.0f} MB"
    answered = [reply for reply in replies if reply.status_code == 200]
    assert answered and all(reply.status_code == 429 for reply in replies if reply not in answered)
    for reply in answered:
        assert [each["truncated"] for each in reply.json()] == [truncated] * len(texts)


def test_compressed_bodies_count_with_their_unpacked_size(server):
    "Each is a few kilobytes that unpack to ten megabytes."
    body = gzip.compress(json.dumps({"inputs": ["\U0001f600" * LIMIT] * 50}, ensure_ascii=False).encode())
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    with watched(server) as peak, ThreadPoolExecutor(30) as pool:
        for _ in range(2):  # the memory that one wave frees serves the next
            asked = [
                pool.submit(httpx.post, f"{server.url}/invocations", content=body, headers=headers, timeout=120)
                for _ in range(30)
            ]
            statuses = [each.result(timeout=60).status_code for each in asked]
            assert set(statuses) <= {200, 429} and 200 in statuses
    assert peak[0] < ALLOWED, f"{peak[0] / 2**20:.0f} MB"
    assert server.ask("good").status_code == 200


MOST = 128  # requests in progress or waiting
WAITING = """
import json, threading
from inference_of_the_model import Busy

class Texts(list): pass

def model_fn(folder): return threading.Event()
def input_fn(body, kind): return Texts(json.loads(body)["inputs"])
def output_fn(answers, accept): return json.dumps(answers)
def predict_fn(texts, released):
    if texts[0] == "wait": released.wait(600)
    if texts[0] == "busy": raise Busy()
    return len(texts)
"""


@pytest.fixture
def crowded(tmp_path) -> Iterator[Server]:
    "A server whose model lets requests wait for ever."
    folder = write_tiny_model(tmp_path / "model")
    code = add_inference_code(folder)
    (code / "inference.py").rename(code / "inference_of_the_model.py")
    (code / "inference.py").write_text(WAITING)
    with running(folder) as started:
        yield started


def test_a_request_beyond_the_queue_limit_gets_a_retry_time(crowded):
    with ThreadPoolExecutor(MOST + 12) as pool:
        ask = partial(httpx.post, f"{crowded.url}/invocations", json={"inputs": ["wait"]}, timeout=300)
        waiting = [pool.submit(ask) for _ in range(MOST + 12)]
        wait_for(lambda: crowded.metrics()["answers"].get("429", 0) == 12, 120)
        assert crowded.metrics()["under_way"] == MOST
        refused = crowded.ask(["wait"])
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
        assert refused.json()["error"]["code"] == "busy"
        assert httpx.get(f"{crowded.url}/ping").status_code == 200, "it is busy, not broken"
        assert sum(each.done() for each in waiting) == 12, "the others still wait"
        crowded.process.kill()


def test_requests_that_arrive_together_take_one_free_place(crowded):
    "Each begins while a place is free. The bodies follow later."
    url, body = httpx.URL(crowded.url), b'{"inputs": ["wait"]}'
    head = f"POST /invocations HTTP/1.1\r\nHost: {url.host}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with ThreadPoolExecutor(MOST) as pool, ExitStack() as stack:
        stack.callback(crowded.process.kill)  # ends the pool, even if an assertion fails
        for _ in range(MOST - 1):
            pool.submit(httpx.post, f"{crowded.url}/invocations", json={"inputs": ["wait"]}, timeout=300)
        wait_for(lambda: crowded.metrics()["under_way"] == MOST - 1)
        begun = [stack.enter_context(socket.create_connection((url.host, url.port), timeout=60)) for _ in range(10)]
        for each in begun:
            each.sendall(head)
        wait_for(lambda: crowded.metrics()["under_way"] == MOST + 9)
        for each in begun:
            each.sendall(body)
        wait_for(lambda: crowded.metrics()["answers"].get("429", 0) == 9, 20)
        assert crowded.metrics()["under_way"] == MOST


def test_a_busy_model_returns_when_to_retry(crowded):
    refused = crowded.ask(["busy"])
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
    assert refused.json()["error"]["code"] == "busy"
