"A program that waits for the model: what reaches a real HTTP server, and what never leaves."

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from engine_double import ADA, World

from sentiment_engine.notifications import Notice, NotSent, Textbelt
from sentiment_engine.webhooks import Webhook, is_genuine

SECRET = "a secret of sixteen or more"


class Receiver(ThreadingHTTPServer):
    "Remembers the calls, and answers with the statuses in `statuses` first, then with 200."

    daemon_threads = True

    def __init__(self, *statuses: int, answer: bytes = b"", pause: float = 0):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.statuses, self.answer, self.pause, self.calls = list(statuses), answer, pause, []

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.calls.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        time.sleep(self.server.pause)
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        self.send_response(status)
        if status in (301, 302, 307, 308):
            self.send_header("location", "/elsewhere")
        self.send_header("content-length", str(len(self.server.answer)))
        self.end_headers()
        self.wfile.write(self.server.answer)

    def do_GET(self):
        self.server.calls.append((self.path, {}, b""))
        self.send_response(200)
        self.send_header("content-length", str(len(self.server.answer)))
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, *_):
        pass


@contextmanager
def receiving(*statuses: int, **how):
    with Receiver(*statuses, **how) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def subscribe(world, url: str, secret: str = SECRET):
    return world.request("POST", "/start", {"webhook": {"url": url, "secret": secret}})


def test_a_program_is_called_when_the_model_is_ready(monkeypatch):
    with receiving() as server:
        world = World(monkeypatch, webhook_hosts=(server.host,))
        status, body = subscribe(world, f"http://{server.host}/in")
        assert (status, body["outcome"], body["subscribers"]) == (202, "started", 1)
        run_id = world.row.runId
        world.endpoint_becomes("InService")
        world.event("IN_SERVICE")
        ((path, headers, sent),) = server.calls
    assert path == "/in" and is_genuine(SECRET, headers, sent, time.time())
    told = json.loads(sent)
    assert told["type"] == "model.ready" and told["data"]["runId"] == run_id and told["data"]["minutes"] == 30
    assert world.row.smsSent == 1 and not world.row.subscribers and not world.phone.tried


def test_a_program_is_called_when_the_start_has_failed(monkeypatch):
    with receiving() as server:
        world = World(monkeypatch, webhook_hosts=(server.host,), instance_types=("ml.m5.large",))
        subscribe(world, f"http://{server.host}/in")
        world.endpoint_becomes("Failed", "no luck in account 123456789012")
        told = json.loads(server.calls[0][2])
    assert told["type"] == "model.failed" and "no luck" in told["data"]["reason"]
    assert "123456789012" not in json.dumps(told) and world.nothing_left()


def test_a_call_that_fails_is_repeated_with_the_same_id():
    with receiving(500, 503) as server:
        Webhook(pauses=(0, 0)).send(f"http://{server.host}/in", Notice("ready", "0f3c5a7e9b1d"), SECRET)
        ids = [headers["webhook-id"] for _, headers, _ in server.calls]
    assert len(ids) == 3 and len(set(ids)) == 1


def test_a_program_that_never_answers_well_is_given_up(monkeypatch):
    with receiving(500, 500, 500, 500) as server:
        world = World(monkeypatch, webhook_hosts=(server.host,))
        world.engine.__dict__["webhook"] = Webhook(pauses=(0, 0))
        subscribe(world, f"http://{server.host}/in")
        world.start(ADA)
        world.endpoint_becomes("InService")
        assert len(server.calls) == 3
    assert world.row.state == "IN_SERVICE" and world.phone.tried == [ADA]  # nobody else waits for it in vain
    assert (world.row.smsSent, world.row.smsFailed) == (1, 1) and not world.row.subscribers


def test_a_redirect_is_not_followed():
    with receiving(302, 307, 308) as server, pytest.raises(NotSent):
        Webhook(pauses=(0, 0)).send(f"http://{server.host}/in", Notice("ready", "0f3c5a7e9b1d"), SECRET)
    assert {path for path, _, _ in server.calls} == {"/in"}


def test_a_program_that_does_not_answer_in_time():
    with receiving(pause=1.0) as server, pytest.raises(NotSent, match="time"):
        Webhook(timeout=0.1, pauses=()).send(f"http://{server.host}/in", Notice("ready", "0f3c5a7e9b1d"), SECRET)


@pytest.mark.parametrize(
    "webhook",
    [
        "https://hooks.example.com/in",
        {"url": "https://hooks.example.com/in"},
        {"url": "https://hooks.example.com/in", "secret": "short"},
        {"url": "http://hooks.example.com/in", "secret": SECRET},
        {"url": "https://hooks.example.com.evil.example/in", "secret": SECRET},
        {"url": "https://hooks.example.com@evil.example/in", "secret": SECRET},
        {"url": "https://evil.example#@hooks.example.com", "secret": SECRET},
        {"url": "https://evil.example\\@hooks.example.com", "secret": SECRET},
        {"url": "https://hooks.example.com:8443/in", "secret": SECRET},
        {"url": "https://169.254.169.254/latest/meta-data", "secret": SECRET},
        {"url": "https://hooks.example.com/in\r\nX-Evil: 1", "secret": SECRET},
        {"url": "https://[::1", "secret": SECRET},
    ],
)
def test_a_webhook_that_may_not_be_called_is_refused(monkeypatch, webhook):
    world = World(monkeypatch, webhook_hosts=("hooks.example.com",))
    status, body = world.request("POST", "/start", {"webhook": webhook})
    assert (status, body["error"]["code"]) == (400, "invalid_webhook")
    assert world.row.state == "STOPPED" and not world.sagemaker.calls


def test_without_hosts_there_are_no_webhooks(monkeypatch):
    world = World(monkeypatch)
    assert subscribe(world, "https://hooks.example.com/in")[1]["error"]["code"] == "invalid_webhook"


def test_a_number_and_a_webhook_are_not_taken_together(monkeypatch):
    world = World(monkeypatch, webhook_hosts=("hooks.example.com",))
    asked = {"phone": ADA, "webhook": {"url": "https://hooks.example.com/in", "secret": SECRET}}
    assert world.request("POST", "/start", asked)[1]["error"]["code"] == "invalid_webhook"


def test_a_key_that_is_used_up_takes_no_number(monkeypatch):
    world = World(monkeypatch)
    world.phone.left = 0
    status, body = world.start(ADA)
    assert (status, body["error"]["code"]) == (503, "no_sms_quota") and world.row.state == "STOPPED"
    assert world.start()[0] == 202
    world.phone.left = 1
    assert world.start(ADA)[0] == 202


def test_the_quota_is_asked_of_the_provider_and_the_key_is_in_no_error():
    with receiving(answer=b'{"success": true, "quotaRemaining": 7}') as server:
        assert Textbelt(f"http://{server.host}", "k/e?y").quota() == 7
        assert server.calls[0][0] == "/quota/k%2Fe%3Fy"
    assert Textbelt(f"http://{server.host}", "secret-key").quota() is None  # nobody listens any more


def test_messages_and_ends_of_runs_are_reported_as_metrics(monkeypatch, capsys):
    world = World(monkeypatch)
    world.phone.broken.add(ADA)
    world.in_service(ADA)
    world.request("POST", "/predict", {"inputs": ["a", "b"]})
    world.request("POST", "/predict", {"inputs": ""})
    world.pass_time(2000)
    world.reconcile()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"_aws"' in line]
    seen = {k: v for line in lines for k, v in line.items() if isinstance(v, list)}
    assert {"Starts": [1], "SmsFailed": [1], "Predictions": [2], "Refusals": [1], "ReadySeconds": [300]}.items() <= (
        seen.items()
    )
    ended = next(line for line in lines if "Shutdowns" in line)
    assert ended["Reason"] == "idle" and sorted(ended["_aws"]["CloudWatchMetrics"][0]["Dimensions"], key=len) == [
        ["Engine"],
        ["Engine", "Reason"],
    ]
    assert 0.03 < seen["RunCost"][0] < 0.04 and seen["Reconciled"] == [1] and 0 < seen["BudgetShare"][0] < 1
    assert ADA not in json.dumps(lines)
