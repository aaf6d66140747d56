"The page against a simulated service: the fixture `service`. It needs no engine, so each test takes a second or two."

import pytest
from playwright.sync_api import Page, expect

from tests import ROOT
from tests.doubles.visitor import PATIENCE, STATUS

SITE = ROOT / "website"
HOME = "http://127.0.0.1:9/"  # nothing listens there: every request is answered below
ASLEEP = STATUS | {
    "state": "STOPPED",
    "endpoint": "realtime",
    "modelVersion": "7",
    "subscribers": 0,
    "longerThanUsual": False,
}
ASLEEP |= {"idleMinutes": 30, "maxRunMinutes": 120, "pricePerHour": 0.056, "savedThisMonth": 0, "textLimit": 50}
ASLEEP |= {"batchLimit": 120, "typicalSeconds": {"p50": 200, "p90": 300, "starts": 5}, "costSoFar": None}
ASLEEP |= {"standby": None, "spentThisMonth": 0.5, "monthlyBudget": 10, "countedSince": "2026-01-01T00:00:00Z"}
ASLEEP |= {"at": 1767225660.0}
ASLEEP |= dict.fromkeys(("runId", "startedAt", "instanceType", "elapsedSeconds"))
ASLEEP |= dict.fromkeys(("shutdownAt", "secondsLeft", "etaSeconds"))
AWAKE = ASLEEP | STATUS | {"state": "IN_SERVICE", "etaSeconds": None}
WAKING = ASLEEP | STATUS | {"state": "CREATING", "shutdownAt": None, "secondsLeft": None}
STOPPING = AWAKE | {"state": "STOPPING", "shutdownAt": None, "secondsLeft": None}
STANDBY = {"modelVersion": "6", "textLimit": 3, "characterLimit": 60, "explainLimit": 20, "dailyTexts": 5000}
STANDBY |= {"leftToday": 4000, "memoryMb": 1769}
NEVER_ASLEEP = ASLEEP | {"state": "IN_SERVICE", "endpoint": "lambda", "standby": STANDBY}
TOKEN = "the token of whoever started it"
HIDING = "Object.defineProperty(document, 'hidden', {get: () => window.away === true});"


def answer(text: str, score: float = 0.9, **more) -> dict:
    scores = {"NEGATIVE": round(1 - score, 6), "POSITIVE": score}
    label = max(scores, key=scores.__getitem__)
    return {
        "label": label,
        "score": scores[label],
        "scores": scores,
        "sure": True,
        "tokens": 3,
        "windows": 1,
        "truncated": False,
    } | more


def refusal(message: str) -> tuple[int, dict]:
    return 409, {"error": {"code": "not_in_service", "message": message}}


class Service:
    """A page and its service. /status answers `status`, and /predict first each of `replies`, then `predict`'s results.

    /start and /sleep change the state as the engine does. The standby refuses what is beyond its limits.
    """

    def __init__(self, page: Page):
        self.page, self.status, self.replies, self.config = page, ASLEEP, [], {}
        self.predict, self.after = answer, {}  # after: more fields of the answer to /start
        self.looks, self.asked = 0, []  # requests of /status, and the bodies of /predict
        self.starts, self.slept = 0, []  # requests of /start, and the tokens of /sleep
        page.add_init_script(HIDING)
        page.route("**/*", self.serve)

    def serve(self, route):
        name = route.request.url.removeprefix(HOME).partition("#")[0] or "sentiment.html"
        if name == "api/status":
            self.looks += 1
            failing = isinstance(self.status, int)
            route.fulfill(status=self.status if failing else 200, json={} if failing else self.status)
        elif name == "api/predict":
            self.asked.append(route.request.post_data_json)
            status, body = self.replies.pop(0) if self.replies else self.answered(self.asked[-1])
            route.fulfill(status=status, json=body)
        elif name == "api/start":
            self.starts += 1
            self.status = WAKING | {each: self.status[each] for each in ("endpoint", "standby")} | self.after
            route.fulfill(status=202, json=self.status | {"outcome": "started", "sleepToken": TOKEN})
        elif name == "api/sleep":
            self.slept.append(route.request.post_data_json["token"])
            status, body = self.sleep(self.slept[-1])
            route.fulfill(status=status, json=body)
        elif name == "config.json":
            route.fulfill(json={"provider": "Textbelt"} | self.config)
        else:
            route.fulfill(path=SITE / name)

    @property
    def small(self) -> dict | None:
        "Return the standby's limits if the standby answers."
        endpoint = self.status["state"] == "IN_SERVICE" and self.status["endpoint"] != "lambda"
        return None if endpoint else self.status["standby"]

    def answered(self, body: dict) -> tuple[int, dict]:
        "Answer a request, or refuse it as the engine does."
        texts = [body["inputs"]] if isinstance(body["inputs"], str) else body["inputs"]
        small, total = self.small, sum(map(len, texts))
        if not small:
            awake = self.status["state"] == "IN_SERVICE"
            return (200, self.predictions(texts)) if awake else refusal("It is asleep.")
        most = small["explainLimit"] if body.get("explain") else small["characterLimit"]
        if len(texts) > small["textLimit"] or total > most:
            return refusal("This is too much for the small model.")
        return 200, self.predictions(texts) | {"answeredBy": "standby"}

    def sleep(self, token: str) -> tuple[int, dict]:
        "End the run for the visitor who started it."
        if token != TOKEN:
            return 409, {"error": {"code": "wrong_token", "message": "This token did not start this run."}}
        self.status = ASLEEP | {each: self.status[each] for each in ("endpoint", "standby")}
        return 202, self.status | {"outcome": "sleeping"}

    def predictions(self, inputs: str | list[str]) -> dict:
        texts = [inputs] if isinstance(inputs, str) else inputs
        reply = {"predictions": [self.predict(text) for text in texts], "latencyMs": 5, "modelVersion": "7"}
        reply |= {"answeredBy": "endpoint"}
        return reply | {"secondsLeft": 1800, "shutdownAt": "2026-01-01T00:30:00Z"}

    def arrive(self, status: dict | None = None, clock: bool = False) -> Page:
        "Open the page; with `clock`, its time stops until a test advances it."
        self.status = status or self.status
        if clock:
            self.page.clock.install(time=0)
            self.page.clock.pause_at(1000)
        self.page.goto(HOME)
        expect(self.page.locator("html")).not_to_have_attribute("data-view", "loading")
        return self.page

    def gap(self, step: float = 1) -> float:  # seconds, to within a step; above 100 if it no longer polls
        "Advance the page's clock until it polls the service."
        before, waited = self.looks, 0.0
        while self.looks == before and waited < 100:
            self.page.clock.run_for(1000 * step)
            self.page.evaluate("() => fetch('config.json')")  # earlier requests are served first
            waited += step
        return waited


@pytest.fixture
def service(browser):
    context = browser.new_context()
    context.set_default_timeout(20_000)
    expect.set_options(timeout=10_000)  # no Lambda has to start
    yield Service(context.new_page())
    expect.set_options(timeout=PATIENCE)
    context.close()


def read(page: Page, text: str, lines: bool = False):
    page.locator("#lines").set_checked(lines)
    page.locator("#review").fill(text)
    page.locator("#read").click()
