"The model's server as a process: its answers, counts and logs, and how it ends."

import asyncio
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from hypothesis import given, settings

from sentiment_engine.model.artifact import add_inference_code
from sentiment_engine.model.serving import CONTAINER_BODY_LIMIT, Predictor, serving_app
from tests import ROOT
from tests.doubles import clients, odd_json
from tests.doubles.tiny_model import write_tiny_model

SLOW = """
import inference_of_the_model as inference
from inference_of_the_model import counters, input_fn, model_fn, output_fn
import os, time

def predict_fn(data, model):
    if "slow" in data[0]:
        end = time.monotonic() + 120
        while not os.path.exists(data[0].split()[1]) and time.monotonic() < end:
            time.sleep(0.01)
    if "wrong" in data[0]:
        raise ValueError("zip() argument 2 is shorter than argument 1")
    if "fault" in data[0]:
        raise RuntimeError(f"cannot read {data[0]}")
    return inference.predict_fn(data, model)
"""


@pytest.fixture
def artifact(tmp_path) -> Path:
    "A model that answers `slow FILE` once that file exists, and fails on `fault`."
    folder = write_tiny_model(tmp_path / "model")
    code = add_inference_code(folder)
    (code / "inference.py").rename(code / "inference_of_the_model.py")
    (code / "inference.py").write_text(SLOW)
    return folder


class Server:
    "A running server."

    def __init__(self, process: subprocess.Popen, port_file: Path):
        self.process = process
        wait_for(lambda: port_file.exists() and port_file.read_text())
        self.port = int(port_file.read_text())
        self.url = f"http://127.0.0.1:{self.port}"

    def ask(self, inputs, **more) -> httpx.Response:
        return httpx.post(f"{self.url}/invocations", json={"inputs": inputs} | more, timeout=180)

    def metrics(self) -> dict:
        return httpx.get(f"{self.url}/metrics", timeout=60).json()

    def end(self, seconds: float = 120) -> list[dict]:  # its log
        said = self.process.communicate(timeout=seconds)[1]
        return [json.loads(line) for line in said.splitlines()]


def wait_for(holds, seconds: float = 120):
    "Wait until `holds()`."
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@contextmanager
def running(folder: Path, *options: str):
    "Start a server and wait until it is ready."
    port_file = folder / "port"
    command = [sys.executable, "-m", "sentiment_engine.model.serving", "--model-dir", folder, "--port", "0"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*command, "--port-file", port_file, *options], env=env, stderr=subprocess.PIPE, text=True
    )
    try:
        server = Server(process, port_file)
        wait_for(lambda: httpx.get(f"{server.url}/ping", timeout=60).status_code == 200)
        yield server
    finally:
        process.kill()
        process.wait(60)


def test_requests_in_progress_are_answered_before_shutdown(artifact):
    with running(artifact) as server, ThreadPoolExecutor(3) as pool:
        slow = [pool.submit(server.ask, [f"slow {artifact / 'go'} love"]) for _ in range(3)]
        wait_for(lambda: server.metrics()["under_way"] == 3)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not listens(server.port))
        time.sleep(0.5)  # longer than an idle server takes to end
        assert server.process.poll() is None and not any(one.done() for one in slow)
        (artifact / "go").touch()
        assert [one.result(60).json()[0]["label"] for one in slow] == ["POSITIVE"] * 3
        log = server.end()
    assert server.process.returncode == 0
    assert [(e["event"], e.get("under_way"), e.get("dropped")) for e in log[-2:]] == [
        ("draining", 3, None),
        ("drained", None, 0),
    ]


def listens(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def test_a_draining_server_accepts_no_new_request_on_an_open_connection(artifact):
    "Right after the signal, a client gets a 503 or a closed connection."
    with running(artifact) as server, httpx.Client(timeout=60) as client, ThreadPoolExecutor(1) as pool:
        client.get(f"{server.url}/ping")
        slow = pool.submit(server.ask, [f"slow {artifact / 'go'} love"])
        wait_for(lambda: server.metrics()["under_way"] == 1)
        server.process.send_signal(signal.SIGTERM)
        try:
            reply = client.post(f"{server.url}/invocations", json={"inputs": "good"})
            assert reply.status_code == 503 and reply.headers["retry-after"] == "1"
            assert reply.json()["error"]["code"] == "draining"
        except httpx.TransportError:
            assert not listens(server.port)
        (artifact / "go").touch()
        assert slow.result(60).status_code == 200
        server.end()
    assert server.process.returncode == 0


def test_the_drain_limit_ends_the_server_with_status_1(artifact):
    with running(artifact, "--drain-seconds", "0.3") as server, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(server.ask, [f"slow {artifact / 'go'} love"])
        wait_for(lambda: server.metrics()["under_way"] == 1)
        server.process.send_signal(signal.SIGTERM)
        assert slow.result(60).status_code == 503 and slow.result(60).json()["error"]["code"] == "draining"
        log = server.end()
    assert server.process.returncode == 1 and log[-1]["dropped"] == 1


@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)])
def test_a_second_signal_ends_the_server_at_once(artifact, numbers):
    with running(artifact, "--drain-seconds", "1000") as server, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(server.ask, [f"slow {artifact / 'go'} love"])
        wait_for(lambda: server.metrics()["under_way"] == 1)
        server.process.send_signal(numbers[0])
        wait_for(lambda: not listens(server.port))
        assert server.process.poll() is None and not slow.done()
        server.process.send_signal(numbers[1])
        log = server.end(60)
        with suppress(httpx.HTTPError):  # there may be no time for an answer
            assert slow.result(60).status_code == 503
    assert [entry["signal"] for entry in log if entry["event"] == "draining"] == [number.name for number in numbers]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_shuts_down_at_once(artifact, number):
    with running(artifact, "--drain-seconds", "1000") as server:
        server.process.send_signal(number)
        server.end()
    assert server.process.returncode == 0


def test_a_server_whose_model_does_not_load_ends_with_the_reason(artifact):
    "The local cloud shows the last log line to the user."
    (artifact / "tokenizer.json").write_text("{")
    command = [sys.executable, "-m", "sentiment_engine.model.serving", "--model-dir", artifact, "--port", "0"]
    ended = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1
    *log, last = ended.stderr.splitlines()
    assert last.startswith("ValueError: tokenizer.json of the artifact cannot be loaded")
    assert json.loads(log[-1])["event"] == "the model does not load"


def test_the_model_is_loaded_before_the_web_server_is_imported(artifact):
    "Other imports happen while the model loads, so they do not delay the start."
    said = "import sys\nassert not {'asyncio', 'uvicorn'} & set(sys.modules), 'imported too early'\n"
    (artifact / "code" / "inference.py").write_text(said + SLOW)
    with running(artifact) as server:
        assert server.ask("good").status_code == 200


def test_a_server_whose_code_cannot_be_imported_ends_with_the_reason(artifact):
    (artifact / "code" / "inference.py").write_text("import nothing_of_that_name")
    command = [sys.executable, "-m", "sentiment_engine.model.serving", "--model-dir", artifact, "--port", "0"]
    ended = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1 and "nothing_of_that_name" in ended.stderr.splitlines()[-1]


def test_answered_requests_are_counted(artifact):
    with running(artifact) as server:
        before = server.metrics()
        server.ask(["good", "love " * 600])
        server.ask("good", explain=True)
        server.ask("good", explain="yes")
        server.ask("fault")
        now = server.metrics()
    assert before["ready"] and 0 < before["load_seconds"] < 10 and before["answers"] == {}
    assert now["answers"] == {"200": 2, "400": 1, "500": 1} and now["under_way"] == 0
    grown = {k: now["model"][k] - before["model"][k] for k in ("requests", "texts", "explained", "windows")}
    assert grown == {"requests": 2, "texts": 3, "explained": 1, "windows": 5}


def test_a_fault_after_parsing_is_not_a_client_error(artifact):
    with running(artifact) as server:
        told = server.ask("wrong")
        assert told.status_code == 500 and "zip" not in told.text and told.json()["error"]["code"] == "model_error"


def test_a_closed_connection_is_not_a_model_error(artifact):
    with running(artifact) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as caller:
            caller.sendall(b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhalf of it")
        wait_for(lambda: server.metrics()["answers"])
        assert server.metrics()["answers"] == {"499": 1}
        server.process.send_signal(signal.SIGTERM)
        assert not [e for e in server.end() if e["level"] == "error"]


def test_the_log_is_json_lines_without_review_texts(artifact):
    with running(artifact) as server:
        server.ask("fault of my private review")
        server.ask({"my private": "review"})
        httpx.post(f"{server.url}/invocations", content=b"my private review")
        server.process.send_signal(signal.SIGTERM)
        log = server.end()
    assert log[0]["event"].startswith("answering with Python") and log[0]["logger"] == "inference"
    assert log[1]["event"] == "ready" and log[1]["load_seconds"] > 0
    failed = [e for e in log if e["event"] == "request failed"]
    assert len(failed) == 1 and failed[0]["error"] == "RuntimeError" and failed[0]["level"] == "error"
    assert any("predict_fn" in place for place in failed[0]["at"])
    assert [e["code"] for e in log if e["event"] == "request refused"] == ["invalid_inputs", "invalid_json"]
    assert "private" not in json.dumps(log)


def test_a_short_review_is_answered_while_many_lists_are_read(artifact):
    "The number of lists equals the threads of a default pool."
    with running(artifact) as server, ThreadPoolExecutor(20) as pool:
        lists = [pool.submit(server.ask, [f"slow {artifact / 'go'} love"] * 50) for _ in range(20)]
        wait_for(lambda: server.metrics()["under_way"] == 20)
        assert server.ask("good").json()[0]["label"] == "POSITIVE"
        assert not any(one.done() for one in lists)
        (artifact / "go").touch()


def test_the_answer_has_its_content_type(artifact):
    "The sender's preferred content type does not matter."
    with running(artifact) as server:
        for accept in ("application/json", "text/html, application/*", "application/json, text/plain, */*", "*/*"):
            given = httpx.post(f"{server.url}/invocations", json={"inputs": "love"}, headers={"accept": accept})
            assert (given.status_code, given.headers["content-type"]) == (200, "application/json"), accept


# Clients


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    "A server for read-only requests."
    folder = write_tiny_model(tmp_path_factory.mktemp("served") / "model")
    add_inference_code(folder)
    with running(folder) as server, httpx.Client(timeout=30) as server.client:
        yield server


LONG = json.dumps({"inputs": "love " * 20_000})


@pytest.mark.parametrize("ask", clients.PYTHON_AND_NODE)
def test_python_and_javascript_clients_are_answered(served, ask):
    for body in ('{"inputs": "love"}', LONG):
        status, said = ask("POST", f"{served.url}/invocations", body)
        assert status == 200 and json.loads(said)[0]["label"] == "POSITIVE"
    assert ask("POST", f"{served.url}/invocations", "{")[0] == 400
    assert ask("GET", f"{served.url}/ping", "")[0] == 200


def test_java_clients_are_answered(served):
    "Its HttpClient offers HTTP/2 with each request, and keeps the connection open."
    with clients.running_java() as java:
        for body in ('{"inputs": "love"}', "{", LONG, '{"inputs": "love"}'):
            for in_pieces in (False, True):
                status, said = java.ask("POST", f"{served.url}/invocations", body, in_pieces)
                assert (status, "POSITIVE" in said) == ((400, False) if body == "{" else (200, True))
        assert java.ask("GET", f"{served.url}/ping", "")[0] == 200


@pytest.mark.parametrize("what", clients.BYTES)
def test_a_request_can_arrive_in_any_pieces(served, what):
    pieces, statuses = clients.BYTES[what]
    assert clients.talk(f"{served.url}/invocations", pieces, len(statuses)) == statuses


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"{", {}),
        (b"{}", {"accept": "text/html"}),
        (b"", {}),
        (b" " * (CONTAINER_BODY_LIMIT + 1), {}),
        (b"x", {"content-encoding": "br"}),
        (b"x", {"content-type": "image/png"}),
    ],
)
def test_a_connection_works_after_a_refused_request(served, body, headers):
    assert clients.keeps_open(f"{served.url}/invocations", body, headers) == 200


def test_a_client_that_expects_100_continue_gets_413_before_sending(served):
    pieces = [b"Content-Length: 99000000000\r\nExpect: 100-continue\r\n\r\n"]
    assert clients.talk(f"{served.url}/invocations", pieces, 1) == [413]


@pytest.mark.parametrize(("method", "path"), [("POST", "/nothing"), ("PUT", "/ping"), ("GET", "/invocations")])
def test_a_refusal_before_the_body_closes_the_connection(served, method, path):
    "The sender skips the body, so the server would mistake the next request for it."
    pieces = [clients.LENGTH + b"Expect: 100-continue\r\n\r\n", b"NEXT" + clients.WHOLE]
    assert len(clients.talk(served.url + path, pieces, 2, method)) == 1


def test_head_requests_are_answered(served):
    for path in ("/ping", "/metrics"):
        head, whole = httpx.head(served.url + path), httpx.get(served.url + path)
        assert head.status_code == whole.status_code == 200 and head.content == b""
    refused = httpx.head(f"{served.url}/invocations")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")


GOOD = b'{"inputs": "love"}'
PACKED = {
    "gzip": (gzip.compress(GOOD), "gzip", 200),
    "gzip in two parts": (gzip.compress(GOOD[:9]) + gzip.compress(GOOD[9:]), "GZIP", 200),
    "not at all": (GOOD, "identity", 200),
    "cut off": (gzip.compress(GOOD)[:-4], "gzip", 400),
    "not as it says": (GOOD, "gzip", 400),
    "200 MB in 200 KB": (gzip.compress(bytes(200 * 2**20)), "gzip", 413),
    "in another way": (GOOD, "br", 415),
    "twice": (gzip.compress(gzip.compress(GOOD)), "gzip, gzip", 415),
}


@pytest.mark.parametrize("how", PACKED)
def test_a_compressed_body_is_decompressed_or_refused(served, how):
    body, coding, status = PACKED[how]
    sent = {"content-type": "application/json", "content-encoding": coding}
    got = httpx.post(f"{served.url}/invocations", content=body, headers=sent, timeout=30)
    assert got.status_code == status and (got.json()[0]["label"] if status == 200 else got.json()["error"]["message"])
    assert status != 415 or got.headers["accept-encoding"] == "gzip, identity"


def test_the_hugging_face_client_parses_the_answers(served):
    client = InferenceClient(f"{served.url}/invocations")
    both, best = client.text_classification("love"), client.text_classification("love", top_k=1)
    assert [each.label for each in both] == ["POSITIVE", "NEGATIVE"] and 0.9 < both[0].score <= 1
    assert [each.label for each in best] == ["POSITIVE"]
    assert client.text_classification("love", function_to_apply="softmax") == both
    with pytest.raises(HfHubHTTPError) as refused:
        client.text_classification("love", function_to_apply="sigmoid")
    assert refused.value.response.status_code == 400 and "function_to_apply" in refused.value.response.text


@given(odd_json.BODIES)
@settings(max_examples=400, deadline=None, derandomize=True, database=None)
def test_odd_json_is_answered_or_refused(served, body):
    got = served.client.post(f"{served.url}/invocations", content=body, headers=clients.JSON)
    assert got.status_code in (200, 400), got.text
    assert got.json() if got.status_code == 200 else got.json()["error"]["message"]


# Disconnecting clients


COSTLY = """
import time
import inference_of_the_model as inference
from inference_of_the_model import counters, input_fn, model_fn, output_fn, predict_fn
compute = inference._batch_shares

def slowly(model, windows):
    time.sleep(0.05)
    return compute(model, windows)

inference._batch_shares = slowly
"""


@pytest.mark.parametrize("explain", [False, True])
def test_abandoned_requests_are_cancelled(artifact, explain):
    (artifact / "code" / "inference.py").write_text(COSTLY)
    inputs = ["love it " * (150 + i) for i in range(10 if explain else 200)]
    with running(artifact) as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/invocations", json={"inputs": inputs, "explain": explain}, timeout=1)
        wait_for(lambda: server.metrics()["model"]["gone"] == 1, 3)
        told = server.metrics()
        assert told["answers"] == {"499": 1} and told["under_way"] == 0 and told["model"]["failed"] == 0
        begun = told["model"]["batches"]
        assert server.ask("good").status_code == 200
        assert begun > 2 and server.metrics()["model"]["batches"] == begun + 1


def test_queued_requests_are_dropped_with_their_client(tmp_path):
    asked, free = [], threading.Event()

    class Slow(Predictor):
        def read(self, body, content_type):
            asked.append(body)
            return body

        def answer(self, data, *_):
            free.wait(10)
            return b"[]", "application/json"

    predictor = Slow(tmp_path)
    predictor.ready = True
    app = serving_app(predictor, threads=1)

    async def ask(body: bytes, stays: bool) -> int:
        came, sent = [{"type": "http.request", "body": body}], []

        async def receive():
            return came.pop() if came else await asyncio.sleep(10 if stays else 0.05) or {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        await app({"path": "/invocations", "method": "POST", "headers": []}, receive, send)
        return sent[0]["status"]

    async def three() -> list[int]:
        first = asyncio.create_task(ask(b"first", stays=True))
        await asyncio.sleep(0.05)
        left = await ask(b"second", stays=False)
        free.set()
        return [await first, left, await ask(b"third", stays=True)]

    assert asyncio.run(three()) == [200, 499, 200] and asked == [b"first", b"third"]
