"A visitor of the page in headless Chromium: fixtures and helpers that the page's tests share."

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.doubles.chromium import open_browser

PATIENCE = 60_000  # milliseconds: the first call of a Lambda takes seconds on a busy machine
expect.set_options(timeout=PATIENCE)

PHONE = "+1 202 555 0123"  # from the range reserved for fiction
PRAISE = "I love it: a warm and lovely sound. Excellent!"
COMPLAINT = "It broke. Terrible."
STATUS = {"runId": "0f3c5a7e9b1d", "instanceType": "ml.t2.medium", "elapsedSeconds": 60, "costSoFar": 0.001}
STATUS |= {"shutdownAt": "2026-01-01T00:30:00Z", "secondsLeft": 1700, "etaSeconds": 200, "reason": None}
STATUS |= {"since": "2026-01-01T00:00:00Z", "now": "2026-01-01T00:01:00Z"}
STATUS |= {"startedAt": "2026-01-01T00:00:00Z"}
WATCH = """
window.seen = {violations: [], ran: []};
addEventListener('securitypolicyviolation', (e) => seen.violations.push(e.violatedDirective + ' ' + e.blockedURI));
"""


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


class Visitor:
    "A tab that records its console output and requests."

    def __init__(self, browser: Browser, url: str, **context):
        self.context = browser.new_context(viewport={"width": 1100, "height": 900}, **context)
        self.context.add_init_script(WATCH)
        self.url, self.said, self.asked = url, [], []
        self.page = self.tab()

    def tab(self) -> Page:
        page = self.context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.said.append(f"pageerror: {error}"))
        page.on("request", lambda request: self.asked.append(request.url))
        return page

    def arrive(self, view: str) -> Page:
        "Open the page and wait for a view."
        self.page.goto(self.url)
        return self.see(view)

    def see(self, view: str, page: Page | None = None) -> Page:
        "Wait until the page shows a view."
        page = page or self.page
        expect(page.locator("html")).to_have_attribute("data-view", view, timeout=120_000)
        return page

    def hear(self, engine, state: str, **status) -> dict:  # answer of /status; may be changed
        "Make the service report a state, regardless of its real one."
        said = engine.call("GET", "/status") | STATUS | {"state": state} | status
        self.page.route("**/status", lambda route: route.fulfill(json=said))
        return said

    def origins(self) -> set[str]:
        return {f"{u.scheme}://{u.netloc}" for u in map(urlsplit, self.asked) if u.scheme in ("http", "https")}


@contextmanager
def visiting(browser: Browser, engine, **context) -> Iterator[Visitor]:
    "Open a tab, and check afterwards: no error, no violation of the policy, no request to another host."
    visitor = Visitor(browser, engine.site_url, **context)
    visitor.tolerated = ()  # console messages that a test with failures expects
    yield visitor
    bad = [line for line in visitor.said if not any(part in line for part in visitor.tolerated)]
    violations = [v for page in visitor.context.pages for v in page.evaluate("window.seen?.violations ?? []")]
    visitor.context.close()
    assert bad == [] and violations == []
    assert visitor.origins() <= {engine.site_url.rstrip("/")}


@pytest.fixture
def visitor(browser, engine):
    "A visitor with a window of 1100 by 900."
    with visiting(browser, engine) as visitor:
        yield visitor


@pytest.fixture
def plain(browser, engine):
    "A visitor with reduced motion, so that nothing is half faded during a check."
    with visiting(browser, engine, reduced_motion="reduce") as visitor:
        yield visitor


@pytest.fixture
def asleep(engine):
    engine.use("good")
    if engine.state() == "FAILED":  # left by an earlier test
        engine.wake()
    engine.sleep()


@pytest.fixture
def awake(engine):
    engine.use("good")
    engine.wake()
    engine.call("POST", "/extend")


def text_of(page: Page, selector: str) -> str:
    return " ".join(page.locator(selector).inner_text().split())


def seconds(clock: str) -> int:
    minutes, rest = clock.split(":")
    return int(minutes) * 60 + int(rest)


def ask(page: Page, text: str):
    page.locator("#review").fill(text)
    page.locator("#read").click()


def predictions(visitor: Visitor) -> int:
    "Count the visitor's requests to the model."
    return len([url for url in visitor.asked if url.endswith("/predict")])


def marks(page: Page) -> dict[str, str]:
    "Return the marked words and their classes."
    found = page.locator("#words mark").all()
    return {mark.inner_text(): mark.get_attribute("data-label") for mark in found}


def guarded(engine, **limits: str):
    "Set limits on starts temporarily; by default this engine has none."
    return engine.environment("start-model-service", **{f"SENTIMENT_{k.upper()}": v for k, v in limits.items()})


def look_again(page: Page, seconds: float = 61):
    "Advance the page's clock until it polls the service; the clock must be installed."
    with page.expect_response("**/status"):
        page.clock.fast_forward(int(seconds * 1000))
