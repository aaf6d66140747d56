"The developers' page in Streamlit's own test harness, against the engine and against other servers."

import dataclasses
import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
from streamlit.delta_generator import DeltaGenerator
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.local_script_runner import LocalScriptRunner

from sentiment_engine import __version__
from tests import ROOT
from tests.doubles.engine_double import free_port
from tests.doubles.local_models import until

APP = ROOT / "website" / "app.py"


@pytest.fixture
def open_app(monkeypatch):
    "Open the page for an API; none: SENTIMENT_API_URL is not set. Other variables have their full names."
    for name in ("SENTIMENT_API_URL", "SENTIMENT_SITE_ORIGIN", "SENTIMENT_INBOX_URL"):
        monkeypatch.delenv(name, raising=False)

    def opened(api: str | None, **variables: str) -> AppTest:
        for name, value in (variables | ({} if api is None else {"SENTIMENT_API_URL": api})).items():
            monkeypatch.setenv(name, value)
        return checked(AppTest.from_file(str(APP), default_timeout=60).run())

    return opened


def checked(app: AppTest) -> AppTest:
    "Fail if the page raised an exception."
    assert not app.exception, app.exception[0].value
    return app


def press(app: AppTest, label: str) -> AppTest:
    return checked(next(button for button in app.button if button.label == label).click().run())


def headings(app: AppTest) -> str:
    return " ".join(heading.value for heading in app.subheader)


def log(app: AppTest) -> list[dict]:
    "Return the calls whose raw JSON the page shows, newest first."
    return [json.loads(block.value) for block in app.code if block.language == "json"]


def last(app: AppTest, path: str) -> dict:
    return next(call for call in log(app) if call["path"] == path)


def tab(app: AppTest, label: str):
    return next(each for each in app.tabs if each.label == label)


def ask(app: AppTest, text: str) -> AppTest:
    app.text_area(key="text").input(text)
    return press(app, "Read")


@pytest.fixture
def impostor() -> Iterator[tuple[str, list]]:
    "A server that is not the engine: (address, [status, body] to answer with, and a list of such for each POST)."
    says = [200, b"{}"]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(says[0])
            self.send_header("content-length", str(len(says[1])))
            self.end_headers()
            self.wfile.write(says[1])

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            usual, says[:2] = says[:2], says[2].pop(0)
            self.do_GET()
            says[:2] = usual

        def log_message(self, *_):
            "Log nothing."

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", says
        server.shutdown()


def test_a_visit_wakes_the_model_and_classifies_reviews(open_app, engine):
    engine.use("good")
    engine.sleep()
    app = open_app(engine.api_url)
    assert headings(app) == "Stopped: asleep: no machine is running"
    assert f"Engine {__version__}" in [caption.value for caption in app.sidebar.caption]

    app.text_input(key="name").input("Ada")
    app = press(app, "Wake the model")
    assert headings(app).startswith("Creating: waking up") and app.info[0].value == "Outcome: started"
    assert [call["path"] for call in log(app)] == ["/status", "/start", "/status"]
    assert log(app)[1]["sent"] == {"name": "Ada"} and log(app)[1]["code"] == 202

    engine.wait("IN_SERVICE")
    app = press(app, "Refresh")
    assert headings(app).startswith("In service")
    app.text_area(key="text").input("I love it, excellent")
    app = press(app, "Read")
    assert "POSITIVE" in [metric.label for metric in app.metric]
    app.text_area(key="text").input("I love it, excellent\n\nIt broke, terrible")
    app.checkbox(key="lines").check()
    app = press(app, "Read")
    assert list(app.dataframe[0].value["label"]) == ["POSITIVE", "NEGATIVE"]
    assert list(tab(app, "Answers").dataframe[0].value["label"]) == ["POSITIVE", "NEGATIVE", "POSITIVE"]
    assert last(app, "/predict")["sent"] == {"inputs": ["I love it, excellent", "It broke, terrible"]}

    app = press(app, "Keep it awake")
    assert app.info[0].value.startswith("It sleeps at 20")
    assert any(caption.value.startswith("this month: spent $0.") for caption in app.caption)
    assert list(tab(app, "States").dataframe[0].value["state"]) == ["IN_SERVICE", "CREATING", "STOPPED"]


def test_invalid_input_is_reported(open_app, engine):
    engine.use("good")
    engine.sleep()
    app = open_app(engine.api_url)
    app.text_input(key="phone").input("12345")
    app = press(app, "Wake the model")
    assert len(app.error) == 1 and "country code" in app.error[0].value
    assert engine.state() == "STOPPED"
    engine.wake()
    app = press(app, "Refresh")
    app = press(app, "Read")
    assert app.error[0].value == "Write or paste a review first, or choose a file."
    app.text_area(key="text").input("x" * 10_001)
    app = press(app, "Read")
    assert "10,000" in app.error[0].value and last(app, "/predict")["code"] == 400


def test_influential_words_are_shown_on_request(open_app, engine):
    engine.use("good")
    engine.wake()
    app = open_app(engine.api_url)
    app.checkbox(key="explain").check()
    app = ask(app, "🎸 A good sound, a bad case.")
    table = app.dataframe[0].value.set_index("text")
    assert table.loc["good", "supports"] == "POSITIVE" and table.loc["good", "influence"] > 0.3
    assert table.loc["bad", "supports"] == "NEGATIVE" and table.loc["bad", "influence"] < -0.3
    assert last(app, "/predict")["sent"] == {"inputs": "🎸 A good sound, a bad case.", "explain": True}
    app.checkbox(key="lines").check()
    app = ask(app, "\n".join(["good"] * 11 + ["bad"]))
    assert len(app.dataframe[0].value) == 12 and "bad -" in app.dataframe[0].value["why"].iloc[-1]
    sent = [call["sent"]["inputs"] for call in log(app) if call["path"] == "/predict"]
    assert [len(inputs) for inputs in sent[:2]] == [2, 10]  # as many at a time as the API may explain
    app.checkbox(key="explain").uncheck()
    app = ask(app, "good")
    assert "explanation" not in last(app, "/predict")["reply"]["predictions"][0]


TABLE = b'stars;text;note\n5;"Lovely; warm";x\n1;It broke. Terrible.;y\n3;;z\n'


def read_table(app: AppTest, table: bytes, column: str = "") -> AppTest:
    "Upload a file, because the harness forgets it with every run."
    app.file_uploader(key="table").set_value(("mine.csv", table, "text/csv"))
    app.text_input(key="column").input(column)
    return press(app, "Read")


def test_reviews_can_come_from_a_file_or_an_example(open_app, engine):
    engine.use("good")
    engine.wake()
    app = open_app(engine.api_url)
    app = checked(app.selectbox(key="example").set_value("Complaint").run())
    assert app.text_area(key="text").value.startswith("The charging cable")
    app = read_table(app, TABLE)
    assert last(app, "/predict")["sent"] == {"inputs": ["Lovely; warm", "It broke. Terrible."]}
    assert list(app.dataframe[0].value["label"]) == ["POSITIVE", "NEGATIVE"]
    app = read_table(app, TABLE, "note")
    assert last(app, "/predict")["sent"] == {"inputs": ["x", "y", "z"]}
    app = read_table(app, TABLE, "nothing")
    assert app.error[0].value == "The file has no column nothing; it has stars, text, note."
    app = read_table(app, b"")
    assert app.error[0].value == "No reviews were found in this file."
    app = read_table(app, b"text\n\xff\xfe broken")
    assert app.error[0].value.startswith("The file is not in UTF-8")
    app = read_table(app, b"text\r\r\nIt broke, terrible\r\r\n=so good")
    assert last(app, "/predict")["sent"] == {"inputs": ["It broke, terrible", "=so good"]} and not app.warning
    app = read_table(app, b"stars,text\n5,It broke, terrible")
    assert app.warning[0].value.startswith("1 rows have more cells than the first")


def test_a_button_press_updates_the_log(open_app, impostor, monkeypatch):
    "A press runs only the fragment, which the harness never does by itself."
    address, says = impostor
    says[:] = [200, json.dumps({"state": "IN_SERVICE"}).encode()]
    app = open_app(address)
    (fragment,) = app._fragment_storage._fragments

    def only_the_fragment(runner, data):
        runner._requests._rerun_data = dataclasses.replace(data, fragment_id_queue=[fragment])

    monkeypatch.setattr(LocalScriptRunner, "request_rerun", only_the_fragment)
    checked(app.run())
    assert [call["path"] for call in log(app)] == ["/status", "/status"]
    assert list(tab(app, "States").dataframe[0].value["state"]) == ["IN_SERVICE"]


PREDICTION = {"label": "POSITIVE", "score": 0.9, "scores": {"NEGATIVE": 0.1, "POSITIVE": 0.9}, "sure": True}
BUSY = [503, b'{"error": {"code": "busy", "message": "The model is busy."}}']


def test_a_busy_model_is_retried_and_earlier_answers_are_kept(open_app, impostor, monkeypatch):
    address, says = impostor
    says[:] = [200, json.dumps({"state": "IN_SERVICE"}).encode()]
    part = {"predictions": [PREDICTION] * 50, "latencyMs": 5, "modelVersion": "7"}
    answers, waits = [BUSY, [200, json.dumps(part).encode()], *[BUSY] * 4], []
    says.append(answers)
    app, saved = open_app(address), []
    monkeypatch.setattr("streamlit.download_button", lambda label, data, *_: saved.append(data))
    sleep = time.sleep

    def waited(seconds):  # only the app's own pauses are skipped: the other threads would spin
        of_app = sys._getframe(1).f_code.co_filename.endswith("app.py")
        return waits.append(seconds) if of_app else sleep(seconds)

    monkeypatch.setattr("time.sleep", waited)
    app.checkbox(key="lines").check()
    app = ask(app, "\n".join(["=1+1", *["good"] * 59]))
    assert "The model is busy. 50 of 60 were read." in app.error[0].value and len(app.dataframe[0].value) == 50
    assert len(waits) == 4 and min(waits) >= 0.8 and answers == []
    assert saved[-1].splitlines()[1].startswith("'=1+1,")  # no spreadsheet takes it for a formula


@pytest.mark.parametrize("reviews", [1, 2])
def test_a_partial_explanation_is_labelled(open_app, impostor, reviews):
    address, says = impostor
    says[:] = [200, json.dumps({"state": "IN_SERVICE", "endpoint": "serverless"}).encode()]
    late = PREDICTION | {"explanation": [], "partial": True, "explained": 0.2999}
    answered = {"predictions": [late] * reviews, "latencyMs": 5, "modelVersion": "7"}
    says.append([[200, json.dumps(answered).encode()]])
    app = open_app(address)
    app.checkbox(key="explain").check()
    app.checkbox(key="lines").check()
    app = ask(app, "\n".join(["Great value."] * reviews))
    assert [info.value for info in app.info] == ["Time ran out: 29 % of the words were tried."]


WAKING = {"code": "waking", "message": "The model is waking up after a pause.", "retryAfterSeconds": 5}


@pytest.mark.parametrize("wakes", [True, False])
def test_a_waking_serverless_model_is_retried_for_a_limited_time(open_app, impostor, monkeypatch, wakes):
    address, says = impostor
    says[:] = [200, json.dumps({"state": "IN_SERVICE", "endpoint": "serverless"}).encode()]
    answered = {"predictions": [PREDICTION], "latencyMs": 5, "modelVersion": "7"}
    refused = [503, json.dumps({"error": WAKING}).encode()]
    answers = [*[refused] * (7 if wakes else 99), [200, json.dumps(answered).encode()]]
    says.append(answers)
    app, waits, told, sleep = open_app(address), [], [], time.sleep

    def waited(seconds):
        of_app = sys._getframe(1).f_code.co_filename.endswith("app.py")
        return waits.append(seconds) if of_app else sleep(seconds)

    monkeypatch.setattr("time.sleep", waited)
    info = DeltaGenerator.info
    monkeypatch.setattr(DeltaGenerator, "info", lambda self, said: told.append(said) or info(self, said))
    app = ask(app, "Great value.")
    assert set(waits) == {5.0} and told[1].startswith("The model is waking up after a pause. Waiting for 0:0")
    assert app.text_area(key="text").value == "Great value."
    if wakes:
        assert len(waits) == 7 and not app.error and "POSITIVE" in [metric.label for metric in app.metric]
    else:
        assert 34 <= len(waits) <= 36 and "did not wake up within 3 minutes" in app.error[0].value


def test_a_timeout_of_a_warm_serverless_model_is_not_a_cold_start(open_app, impostor, monkeypatch):
    address, says = impostor
    says[:] = [200, json.dumps({"state": "IN_SERVICE", "endpoint": "serverless"}).encode()]
    answered = [200, json.dumps({"predictions": [PREDICTION], "latencyMs": 5, "modelVersion": "7"}).encode()]
    refused, now = [503, json.dumps({"error": WAKING}).encode()], time.monotonic
    answers = [answered, refused, answered, *[refused] * 2, *[refused] * 3, answered]
    says.append(answers)
    app, waits, sleep = open_app(address), [], time.sleep

    def waited(seconds):
        of_app = sys._getframe(1).f_code.co_filename.endswith("app.py")
        return waits.append(seconds) if of_app else sleep(seconds)

    monkeypatch.setattr("time.sleep", waited)
    for _ in range(2):  # the second is refused once
        app = ask(app, "Great value.")
        assert not app.error
    app = ask(app, "Great value.")
    assert [each.value for each in app.error] == ["The model did not answer in time. Send fewer or shorter texts."]
    assert len(waits) == 2
    monkeypatch.setattr("time.monotonic", lambda: now() + 600)  # after a pause it may sleep
    app = ask(app, "Great value.")
    assert not app.error and len(waits) == 5 and not answers


def test_a_serverless_model_has_no_start_button(open_app, impostor):
    address, says = impostor
    says[:] = [200, json.dumps({"state": "IN_SERVICE", "endpoint": "serverless"}).encode()]
    app = open_app(address)
    assert any("never sleeps" in caption.value for caption in app.caption)
    assert "Keep it awake" not in [button.label for button in app.button]


SMALL = {"modelVersion": "6", "textLimit": 2, "characterLimit": 20_000, "explainLimit": 1000, "dailyTexts": 5000}
SMALL |= {"leftToday": 4000, "memoryMb": 1769}


def replies(*answers: dict) -> list:
    "Return what the impostor answers to each POST."
    return [[200, json.dumps(answer).encode()] for answer in answers]


def test_the_small_model_answers_while_the_large_one_sleeps(open_app, impostor):
    address, says = impostor
    says[:] = [200, json.dumps({"state": "STOPPED", "endpoint": "realtime", "standby": SMALL}).encode()]
    answered = {"predictions": [PREDICTION], "latencyMs": 5, "modelVersion": "6", "answeredBy": "standby"}
    refused = {"error": {"code": "not_in_service", "message": "It is asleep: send 2 texts at most, or start it."}}
    says.append([*replies(answered), [409, json.dumps(refused).encode()]])
    app = open_app(address)
    assert any("takes 2 reviews or 20,000 characters at once" in caption.value for caption in app.caption)
    app = ask(app, "Great value.")
    assert "5 ms · model 6 · answered by the small model" in [caption.value for caption in app.caption]
    app.checkbox(key="lines").check()
    app = ask(app, "a\nb\nc")
    assert app.error[0].value == refused["error"]["message"]


EARLY, LATE = "2026-01-01T00:00:00Z", "2026-01-01T02:00:00Z"


def test_the_user_who_started_a_run_can_end_it(open_app, impostor):
    address, says = impostor
    asleep = {"state": "STOPPED", "endpoint": "realtime", "standby": SMALL}
    says[:] = [200, json.dumps(asleep).encode()]
    begun = asleep | {
        "state": "CREATING",
        "startedAt": "2026-01-01T00:00:00Z",
        "outcome": "started",
        "sleepToken": "secret",
    }
    says.append(replies(begun, asleep | {"outcome": "sleeping"}))
    app = press(open_app(address), "Start the large model")
    says[1] = json.dumps(asleep | {"state": "IN_SERVICE", "startedAt": LATE}).encode()  # another user's run
    app = press(app, "Refresh")
    assert "I am done" not in [button.label for button in app.button]
    says[1] = json.dumps(asleep | {"state": "IN_SERVICE", "startedAt": EARLY}).encode()
    app = press(press(app, "Refresh"), "I am done")
    assert last(app, "/sleep")["sent"] == {"token": "secret"} and app.info[0].value == "Outcome: sleeping"


def test_without_an_endpoint_a_list_is_sent_in_small_parts(open_app, impostor):
    address, says = impostor
    says[:] = [200, json.dumps({"state": "IN_SERVICE", "endpoint": "lambda", "standby": SMALL}).encode()]
    answered = {"predictions": [PREDICTION] * 2, "latencyMs": 5, "modelVersion": "6", "answeredBy": "standby"}
    says.append(replies(answered, answered | {"predictions": [PREDICTION]}))
    app = open_app(address)
    app.checkbox(key="lines").check()
    app = ask(app, "a\nb\nc")
    assert not app.error and len(app.dataframe[0].value) == 3
    assert any(caption.value.startswith("Lambda: it needs no start") for caption in app.caption)
    assert not {"Keep it awake", "Start the large model", "Wake the model"} & {button.label for button in app.button}


def test_the_shown_commands_repeat_a_call(open_app, engine):
    engine.use("good")
    engine.wake()
    app = ask(open_app(engine.api_url), """It's "good" — $HOME `ls` 🎸""")
    score = last(app, "/predict")["reply"]["predictions"][0]["score"]
    curl = next(b.value for b in app.code if b.language == "shell" and "/predict" in b.value)
    python = next(b.value for b in app.code if b.language == "python" and "/predict" in b.value)
    for command in (["bash", "-c", curl], [sys.executable, "-c", python]):
        assert str(score) in subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_the_inbox_and_the_costs_are_shown(open_app, engine):
    engine.use("good")
    engine.sleep()
    app = open_app(None, SENTIMENT_SITE_ORIGIN=engine.site_url)  # the published page has the addresses
    assert app.text_input(key="api").value == f"{engine.site_url}api"
    app.text_input(key="name").input("Grace")
    app.text_input(key="phone").input("+1 202 555 0188")  # of this test: the engine is shared
    app = press(app, "Wake the model")
    engine.wait("IN_SERVICE")
    until(lambda: any(message["to"] == "+12025550188" for message in engine.messages()))
    app = press(app, "Refresh")
    inbox = tab(app, "Inbox").dataframe[0].value
    assert inbox[inbox["to"] == "+12025550188"]["text"].iloc[0].startswith("Hi Grace,")
    costs = {metric.label: metric.value for metric in tab(app, "Costs").metric}
    assert costs["Awake all month"] == "$40.88" and costs["This run"].startswith("$0.0")
    app = checked(app.slider(key="sessions").set_value(1000).run())
    more = {metric.label: metric.value for metric in tab(app, "Costs").metric}
    assert float(more["Cost of such a month"][1:]) > float(costs["Cost of such a month"][1:]) > 1
    app = checked(app.text_input(key="inbox").set_value("http://127.0.0.1:1/inbox").run())
    assert "There is no inbox at http://127.0.0.1:1/inbox" in tab(app, "Inbox").error[0].value


def test_a_missing_inbox_is_explained(open_app, engine):
    engine.sleep()
    app = open_app(engine.api_url)
    assert tab(app, "Inbox").caption[0].value.startswith("Only the local cloud has an inbox")


def test_a_button_press_after_the_model_fell_asleep_is_explained(open_app, engine):
    engine.wake()
    app = open_app(engine.api_url)
    engine.sleep()
    app = press(app, "Keep it awake")
    assert headings(app).startswith("Stopped") and "not in service" in app.error[0].value


def test_a_missing_address_is_explained(open_app):
    app = open_app(None)
    assert "Set SENTIMENT_API_URL" in app.info[0].value and not app.error


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "nonsense", "http://[", "https://"])
def test_an_unreachable_address_is_reported(open_app, address):
    app = open_app(address)
    assert f"The API at {address} cannot be reached" in app.error[0].value
    assert log(app)[0]["code"] == 0


@pytest.mark.parametrize(
    "status, body, said",
    [
        (200, b"<html>hello", "no explanation"),
        (200, b"{}", "has no known state"),
        (404, b'{"message": "Not Found"}', "HTTP 404"),
        (429, b'{"message": "Too Many Requests"}', "Too many requests"),
        (503, b'{"error": {"code": "unavailable", "message": "Try again soon."}}', "Try again soon."),
        (500, b'{"error": "text"}', "HTTP 500"),
    ],
)
def test_the_address_of_another_service_is_reported(open_app, impostor, status, body, said):
    address, says = impostor
    says[:] = [status, body]
    app = open_app(address)
    assert said in app.error[0].value


def test_the_address_can_be_changed(open_app, impostor, engine):
    app = open_app(impostor[0])
    assert app.error
    app = checked(app.text_input(key="api").set_value(engine.api_url + "/").run())
    assert not app.error and headings(app)


def test_the_first_start_in_a_terminal_asks_no_questions(tmp_path):
    "A new user of Streamlit has no file with an e-mail address in the home folder."
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("STREAMLIT_", "SENTIMENT_"))}
    command, port = [sys.executable, "-m", "streamlit", "run", "website/app.py"], free_port()
    with subprocess.Popen(
        [*command, "--server.port", str(port)],
        cwd=APP.parent.parent,
        env=environment | {"HOME": str(tmp_path)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as server:
        os.close(theirs)
        try:
            healthy = ""
            for _ in range(150):
                try:
                    healthy = requests.get(f"http://127.0.0.1:{port}/_stcore/health", timeout=5).text
                    break
                except OSError:
                    time.sleep(0.2)
            said = os.read(ours, 100_000).decode().lower()
            assert healthy == "ok" and f"127.0.0.1:{port}" in said and "email" not in said and "0.0.0.0" not in said
        finally:
            server.kill()
            os.close(ours)
