"Messages: the requests to the provider, and how its answers are handled."

import contextlib
import json
import math
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import boto3
import pytest
from botocore.config import Config

from sentiment_engine.deploy.plan import read_template
from sentiment_engine.service import lifecycle, notifications
from sentiment_engine.service.notifications import Notice, NotSent, Sns, Textbelt, deliver
from tests import ROOT
from tests.doubles.engine_double import ADA, BOB, CAROL, World, aws_error


@contextlib.contextmanager
def provider(answer: bytes):  # (URL, requested paths)
    "A provider that answers every request in the same way."
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_a_start_with_a_number_is_refused_if_the_key_has_no_messages_left(monkeypatch):
    world = World(monkeypatch)
    world.phone.left = 0
    status, body = world.start(ADA)
    assert (status, body["error"]["code"]) == (503, "no_sms_quota") and world.row.state == "STOPPED"
    assert world.start()[0] == 202
    world.phone.left = 1
    assert world.start(ADA)[0] == 202


def test_the_quota_comes_from_the_provider_and_no_error_contains_the_key():
    with provider(b'{"success": true, "quotaRemaining": 7}') as (url, asked):
        assert Textbelt(url, "k/e?y").quota() == 7 and asked == ["/quota/k%2Fe%3Fy"]
    assert Textbelt(url, "secret-key").quota() is None  # nothing listens any more


def test_the_quota_of_a_used_up_key_is_queried_once():
    with provider(b'{"success": true, "quotaRemaining": 0}') as (url, asked):
        sender = Textbelt(url, "key")
        assert [sender.quota() for _ in range(200)] == [0] * 200 and len(asked) == 1


ANSWERS = [b"[" * 90_000, b'{"quotaRemaining": Infinity}', b'{"quotaRemaining": "many"}', b"\xff", b"null", b"{}"]


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_invalid_answer_counts_as_no_answer(answer):
    with provider(answer) as (url, _):
        assert Textbelt(url, "key").quota() is None
        with pytest.raises(NotSent):
            deliver(Textbelt(url, "key"), ADA, Notice("ready", "0f3c5a7e9b1d"))


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


# --- links


@contextlib.contextmanager
def no_links(error: str):  # (URL, sent texts, refused texts)
    "A provider that refuses texts with a link in them."
    sent, refused = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404)
            self.end_headers()

        def do_POST(self):
            form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
            has_link = re.search(r"https?:|www|\w\.\w", form["message"][0])
            (refused if has_link else sent).append(form["message"][0])
            self.send_response(200)
            self.end_headers()
            answer = {"success": False, "error": error} if has_link else {"success": True, "textId": "7"}
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", sent, refused
        server.shutdown()


OBJECTIONS = ["Sending URLs is not enabled. Visit https://textbelt.com/whitelist", "Your text contains a link."]


@pytest.mark.parametrize("error", OBJECTIONS)
@pytest.mark.parametrize("becomes", ["InService", "Failed"])
@pytest.mark.parametrize("link", [True, False])
def test_a_key_that_may_not_send_links_sends_the_text_without_one(monkeypatch, error, becomes, link):
    world = World(monkeypatch, sms_link=link, instance_types=("ml.m5.large",))
    with no_links(error) as (url, sent, refused):
        world.engine.__dict__["sender"] = Textbelt(url, "key")
        world.start(ADA, "Ada")
        world.endpoint_becomes(becomes, "no luck")
    assert len(sent) == 1 and sent[0].startswith("Hi Ada, ") and len(refused) == link
    assert (world.row.smsSent, world.row.smsFailed) == (1, 0)


def test_other_refusals_are_not_retried():
    with no_links("Out of quota") as (url, sent, refused), pytest.raises(NotSent, match="Out of quota"):
        deliver(Textbelt(url, "key"), ADA, Notice("ready", "0f3c5a7e9b1d", site_url="https://site.example"))
    assert not sent and len(refused) == 1


# --- time


def drip(connection: socket.socket, answer: bytes):
    "Answer with a byte now and then, so that no single read takes long."
    for byte in answer:
        connection.sendall(bytes([byte]))
        time.sleep(0.1)


HEADERS = b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n"
SLOW = {
    "accepts and is silent": lambda connection: time.sleep(20),
    "drips its headers": lambda connection: drip(connection, b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 50),
    "drips its body": lambda connection: (connection.sendall(HEADERS), drip(connection, b" " * 200)),
    "promises to go on": lambda connection: drip(connection, b"HTTP/1.1 100 Continue\r\n\r\n" * 20),
}


@contextlib.contextmanager
def slow_server(behave):  # its URL
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=lambda c=connection: suppressed(behave, c), daemon=True).start()

        def suppressed(behave, connection):
            with connection, contextlib.suppress(OSError):  # the client has disconnected
                behave(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def sns(url: str) -> Sns:
    config = Config(connect_timeout=3, read_timeout=10, retries={"total_max_attempts": 1})
    keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
    return Sns(boto3.client("sns", endpoint_url=url, config=config, **keys))


@pytest.mark.parametrize("make", [lambda url: Textbelt(url, "key"), sns], ids=["textbelt", "sns"])
@pytest.mark.parametrize("behaviour", SLOW)
def test_a_slow_provider_is_cut_off_at_our_time_limit(monkeypatch, behaviour, make):
    monkeypatch.setattr(notifications, "MESSAGE_SECONDS", 0.6)
    with slow_server(SLOW[behaviour]) as url:
        sent = ThreadPoolExecutor(1).submit(deliver, make(url), ADA, Notice("ready", "0f3c5a7e9b1d"))
        with pytest.raises(NotSent, match=r"no answer|[Tt]ime"):
            sent.result(timeout=2)


@pytest.mark.parametrize("behaviour", SLOW)
def test_a_slow_quota_answer_does_not_delay_a_start(behaviour):
    with slow_server(SLOW[behaviour]) as url:
        assert ThreadPoolExecutor(1).submit(Textbelt(url, "key").quota).result(timeout=4) is None


FUNCTIONS = ("NotificationAndShutdownScheduler", "ReconcileModelService")


def test_the_time_limit_for_messages_is_below_the_function_timeouts():
    resources = read_template(ROOT / "infra_scripts/templates/backend.yaml")["Resources"]
    longest = lifecycle.TELL_SECONDS + notifications.MESSAGE_SECONDS
    assert all(longest + 15 <= resources[name]["Properties"]["Timeout"] for name in FUNCTIONS)
    rounds = math.ceil(100 / lifecycle.SENDERS)
    assert rounds * notifications.MESSAGE_SECONDS <= lifecycle.TELL_SECONDS  # one call sends a hundred messages


@pytest.fixture
def crowd(monkeypatch):
    "A world with a hundred waiting subscribers and a slow provider."
    limits = {"address_cooldown_seconds": 0, "daily_messages": 1000}
    world = World(monkeypatch, **limits)
    world.numbers = [f"+1202555{n:04}" for n in range(100, 200)]
    with ThreadPoolExecutor(16) as pool:
        assert {code for code, _ in pool.map(world.start, world.numbers)} == {202}
    send, lock = world.phone.send, threading.Lock()

    def slowly(*message):
        with lock:  # senders wait in parallel
            world.clock.now += world.seconds / lifecycle.SENDERS
            return send(*message)

    monkeypatch.setattr(world.phone, "send", slowly)
    return world


@pytest.mark.parametrize("seconds", [0.1, 8, 25, 80])
def test_every_subscriber_gets_one_message_from_a_slow_provider(crowd, seconds):
    crowd.seconds = seconds
    crowd.clock.now += 300
    calls = [lambda: crowd.endpoint_becomes("InService"), *[crowd.reconcile] * 200]
    for call in calls:
        begun, before = crowd.clock.now, len(crowd.phone.tried)
        call()
        assert crowd.clock.now - begun <= lifecycle.TELL_SECONDS + 2 * seconds
        if not crowd.row.subscribers:
            break
        assert len(crowd.phone.tried) > before  # each call continues where the last one stopped
        crowd.request("POST", "/predict", {"inputs": "keeps it awake"})
        crowd.clock.now = max(begun + 300, crowd.clock.now)
    assert sorted(crowd.phone.tried) == crowd.numbers and crowd.row.smsSent == 100
    assert seconds > 8 or call is calls[0]


def test_remaining_subscribers_are_told_about_a_failed_start(crowd):
    crowd.seconds = 20
    types = len(crowd.settings.instance_types)
    for _ in range(types):
        crowd.endpoint_becomes("Failed", "no luck")
        crowd.pass_time(300, reconcile=True)
    crowd.pass_time(3600, reconcile=True)
    assert crowd.row.state == "FAILED" and sorted(crowd.phone.tried) == crowd.numbers and crowd.nothing_left()


def test_the_reconciler_stops_costs_before_it_sends_messages(monkeypatch):
    "The reconciler has finished all deletions and bookings of a round before it sends the first message."
    world = World(monkeypatch)
    world.start(ADA)
    orphan = "sentiment-engine-" + "a" * 12
    tags = [{"Key": "Project", "Value": "sentiment-engine"}, {"Key": "RunId", "Value": "a" * 12}]
    world.sagemaker.configs[orphan] = {"tags": tags}
    world.sagemaker.endpoints[orphan] = {"status": "InService", "reason": "", "tags": tags}
    world.endpoint_becomes("Failed", "no luck", event=False)
    world.sagemaker.errors["create_endpoint"] = [aws_error("AccessDenied", "no")] * 9
    seen = []

    def look(to, notice):
        seen.append((world.row.state, sum(world.usage.spent.values()) > 0, dict(world.sagemaker.endpoints)))
        raise SystemExit("the Lambda dies while it sends")

    monkeypatch.setattr(world.phone, "send", look)
    world.clock.now += 46 * 60
    for _ in range(3):
        with contextlib.suppress(SystemExit, RuntimeError):
            world.reconcile()
    assert seen and seen[0] == ("FAILED", True, {}) and not world.sagemaker.configs


def test_a_message_beyond_its_time_limit_is_counted_and_never_repeated(monkeypatch):
    monkeypatch.setattr(notifications, "MESSAGE_SECONDS", 0.2)
    world, released = World(monkeypatch), threading.Event()
    send = world.phone.send
    monkeypatch.setattr(world.phone, "send", lambda to, n: (to == BOB and released.wait(20), send(to, n)))
    world.in_service(ADA, BOB, CAROL)
    assert sorted(world.phone.tried) == [ADA, CAROL] and (world.row.smsSent, world.row.smsFailed) == (2, 1)
    released.set()
    world.clock.now += 400
    world.reconcile()
    assert world.phone.tried.count(BOB) <= 1 and not world.row.subscribers
