"The developer's page, run by Streamlit's own test harness against the engine, and against what is no engine."

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

APP = Path(__file__).resolve().parent.parent / "website" / "app.py"


@pytest.fixture
def open_app(monkeypatch):
    "Open the page for an API; none: SENTIMENT_API_URL is not set."

    def opened(api: str | None) -> AppTest:
        monkeypatch.delenv("SENTIMENT_API_URL", raising=False)
        if api is not None:
            monkeypatch.setenv("SENTIMENT_API_URL", api)
        return checked(AppTest.from_file(str(APP), default_timeout=60).run())

    return opened


def checked(app: AppTest) -> AppTest:
    "Fail if the page has raised."
    assert not app.exception, app.exception[0].value
    return app


def press(app: AppTest, label: str) -> AppTest:
    return checked(next(button for button in app.button if button.label == label).click().run())


def headings(app: AppTest) -> str:
    return " ".join(heading.value for heading in app.subheader)


def log(app: AppTest) -> list[dict]:
    "Return the calls whose raw JSON the page shows, newest first."
    return [json.loads(block.value) for block in app.code]


def last(app: AppTest, path: str) -> dict:
    return next(call for call in log(app) if call["path"] == path)


@pytest.fixture
def impostor() -> Iterator[tuple[str, list]]:
    "A server that is not the engine: (address, [status, body] to answer with)."
    says = [200, b"{}"]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(says[0])
            self.send_header("content-length", str(len(says[1])))
            self.end_headers()
            self.wfile.write(says[1])

        def log_message(self, *_):
            "Be quiet."

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", says
        server.shutdown()


def test_a_visit(open_app, engine):
    engine.use("good")
    engine.sleep()
    app = open_app(engine.api_url)
    assert headings(app) == "Stopped: asleep: it costs nothing"

    app.text_input(key="name").input("Ada")
    app = press(app, "Wake the model")
    assert headings(app).startswith("Creating: waking up") and app.info[0].value == "Outcome: started"
    assert [call["path"] for call in log(app)] == ["/status", "/start", "/status"]
    assert log(app)[1]["sent"] == {"name": "Ada"} and log(app)[1]["code"] == 202

    engine.wait("IN_SERVICE")
    app = press(app, "Look again")
    assert headings(app).startswith("In service")
    app.text_area(key="text").input("I love it, excellent")
    app = press(app, "Read")
    assert "POSITIVE" in [metric.label for metric in app.metric]
    app.text_area(key="text").input("I love it, excellent\n\nIt broke, terrible")
    app.checkbox(key="lines").check()
    app = press(app, "Read")
    assert list(app.dataframe[0].value["label"]) == ["POSITIVE", "NEGATIVE"]
    assert last(app, "/predict")["sent"] == {"inputs": ["I love it, excellent", "It broke, terrible"]}

    app = press(app, "Keep it awake")
    assert app.info[0].value.startswith("It sleeps at 20")
    assert any(caption.value.startswith("this month: spent $0.") for caption in app.caption)
    states = list(app.dataframe[-1].value["state"])
    assert states == ["IN_SERVICE", "CREATING", "STOPPED"]


def test_mistakes_are_told(open_app, engine):
    engine.use("good")
    engine.sleep()
    app = open_app(engine.api_url)
    app.text_input(key="phone").input("12345")
    app = press(app, "Wake the model")
    assert len(app.error) == 1 and "country code" in app.error[0].value
    assert engine.state() == "STOPPED"
    engine.wake()
    app = press(app, "Look again")
    app = press(app, "Read")
    assert app.error[0].value == "Write or paste a review first."
    app.text_area(key="text").input("x" * 10_001)
    app = press(app, "Read")
    assert "10,000" in app.error[0].value and last(app, "/predict")["code"] == 400


def test_asleep_between_look_and_press(open_app, engine):
    engine.wake()
    app = open_app(engine.api_url)
    engine.sleep()
    app = press(app, "Keep it awake")
    assert headings(app).startswith("Stopped") and "not in service" in app.error[0].value


def test_without_an_address(open_app):
    app = open_app(None)
    assert "Set SENTIMENT_API_URL" in app.info[0].value and not app.error


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "nonsense", "http://[", "https://"])
def test_an_address_where_nobody_answers(open_app, address):
    app = open_app(address)
    assert f"The API at {address} cannot be reached" in app.error[0].value
    assert log(app)[0]["code"] == 0


@pytest.mark.parametrize(
    "status, body, said",
    [
        (200, b"<html>hello", "no explanation"),
        (200, b"{}", "names no state that is known"),
        (404, b'{"message": "Not Found"}', "HTTP 404"),
        (429, b'{"message": "Too Many Requests"}', "asks for patience"),
        (503, b'{"error": {"code": "unavailable", "message": "Try again soon."}}', "Try again soon."),
        (500, b'{"error": "text"}', "HTTP 500"),
    ],
)
def test_an_address_where_somebody_else_answers(open_app, impostor, status, body, said):
    address, says = impostor
    says[:] = [status, body]
    app = open_app(address)
    assert said in app.error[0].value


def test_the_address_can_be_changed(open_app, impostor, engine):
    app = open_app(impostor[0])
    assert app.error
    app = checked(app.text_input(key="api").set_value(engine.api_url + "/").run())
    assert not app.error and headings(app)
