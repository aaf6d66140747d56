"Messages: what the provider is asked, and what becomes of its answers."

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from engine_double import ADA, World

from sentiment_engine.notifications import Textbelt


@contextmanager
def provider(answer: bytes):  # (URL, paths that were asked for)
    "A provider that answers every request alike."
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_a_key_that_is_used_up_takes_no_number(monkeypatch):
    world = World(monkeypatch)
    world.phone.left = 0
    status, body = world.start(ADA)
    assert (status, body["error"]["code"]) == (503, "no_sms_quota") and world.row.state == "STOPPED"
    assert world.start()[0] == 202
    world.phone.left = 1
    assert world.start(ADA)[0] == 202


def test_the_quota_is_asked_of_the_provider_and_the_key_is_in_no_error():
    with provider(b'{"success": true, "quotaRemaining": 7}') as (url, asked):
        assert Textbelt(url, "k/e?y").quota() == 7 and asked == ["/quota/k%2Fe%3Fy"]
    assert Textbelt(url, "secret-key").quota() is None  # nobody listens any more


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
