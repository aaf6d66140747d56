"""Photograph every state of the real page, light and dark, into images/.

The script deploys the engine of the browser tests, with the released model, to a separate local cloud and goes through
a visit, so images/ shows what a visitor sees. It simulates only network faults, gateway errors and an endpoint that
cannot be deleted.
"""

import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, expect

from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser
from tests.doubles.chromium import open_browser
from tests.doubles.engine import Engine, running_engine

ROOT = Path(__file__).resolve().parents[2]


RELEASED = ROOT / "models" / "released"
WIDE, PHONE = ViewportSize(width=1200, height=1080), ViewportSize(width=390, height=844)
REVIEW = "Lovely case and a warm sound, but the strings went dead after a week."
REVIEWS = (
    "I love it. Excellent!\nIt broke after two days, terrible\nArrived on a Tuesday\nA warm and lovely little lamp"
)


class Camera:
    "Two tabs, one light and one dark, that go through the same visit."

    def __init__(self, browser: Browser, engine: Engine, folder: Path, viewport: ViewportSize, suffix: str = ""):
        self.engine, self.folder, self.suffix = engine, folder, suffix
        contexts = {s: browser.new_context(viewport=viewport, color_scheme=s) for s in ("light", "dark")}
        self.tabs = {scheme: context.new_page() for scheme, context in contexts.items()}

    def each(self, act):
        "Do something in both tabs."
        for page in self.tabs.values():
            act(page)

    def arrive(self, view: str):
        "Reload the page and wait for a view."
        self.each(lambda page: page.goto(self.engine.site_url))
        self.each(lambda page: expect(page.locator("html")).to_have_attribute("data-view", view))

    def hears(self, **answer):
        "Answer the status requests of both tabs with a fixed response."
        self.each(lambda page: page.route("**/status", lambda route: route.fulfill(**answer)))

    def hears_the_engine(self):
        "Let the engine answer both tabs again."
        self.each(lambda page: page.unroute("**/status"))

    def take(self, name: str, top: str | None = None):  # a selector; none: the top of the page
        "Photograph both tabs from `top` down, once all animations have ended."
        for scheme, page in self.tabs.items():
            page.evaluate("(top) => scrollTo(0, top && document.querySelector(top).offsetTop - 24)", top)
            page.wait_for_timeout(2_000)
            path = self.folder / f"page-{name}{self.suffix}-{scheme}.webp"
            save(Image.open(BytesIO(page.screenshot())), path)
            print(path.name, f"{path.stat().st_size / 1000:.0f} kB", flush=True)


def save(picture: Image.Image, path: Path):
    "Save a picture as WebP: a third of the size without a visible difference."
    picture.convert("RGB").save(path, quality=88, method=6)


def read(page: Page, text: str, lines: bool = False):
    "Submit a review and wait for the answer."
    page.locator("#lines").set_checked(lines)
    page.locator("#review").fill(text)
    page.locator("#read").click()
    expect(page.locator("#answer .verdict")).to_be_visible()
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "false")


def read_why(page: Page):
    "Submit a review, and mark the words that decide the answer."
    read(page, REVIEW)
    page.get_by_role("button", name="Which words count?").click()
    expect(page.locator("#words mark").first).to_be_visible()


def look_at_stored(page: Page):
    "Click an example while the model sleeps."
    page.locator("#examples button", has_text="Mixed").click()
    expect(page.locator("#answer .stored")).to_be_visible()


def write_too_much(page: Page):
    "Write a list that is too long for the small model."
    page.locator("#lines").set_checked(True)
    page.locator("#review").fill("\n".join([*REVIEWS.splitlines()] * 10))
    expect(page.locator("#beyond")).to_be_visible()


def start(camera: Camera):
    "Press Start in one tab. Both tabs can end the run."
    one = camera.tabs["light"]
    one.locator("#start").click()
    expect(one.locator("html")).to_have_attribute("data-view", "waking")
    run = one.evaluate("localStorage.run")
    camera.each(lambda page: page.evaluate("(run) => localStorage.setItem('run', run)", run))


def visit(camera: Camera):
    "Take the engine through all its states."
    engine = camera.engine
    engine.sleep()
    camera.arrive("asleep")
    camera.take("asleep")
    camera.each(lambda page: read(page, REVIEW))
    camera.take("small", "#compose")
    camera.each(write_too_much)
    camera.take("much", "#compose")
    camera.each(look_at_stored)
    camera.take("stored", "#compose")
    camera.each(lambda page: page.evaluate("localStorage.clear()"))
    camera.arrive("asleep")
    start(camera)
    camera.arrive("waking")
    camera.take("waking")
    engine.wait("IN_SERVICE")
    camera.arrive("awake")
    camera.take("awake")
    camera.each(read_why)
    camera.take("words", "#compose")
    camera.each(lambda page: read(page, REVIEWS, lines=True))
    camera.take("several", "#compose")
    engine.cloud.advance_clock(engine.settings.idle_minutes * 60 - 75)
    camera.arrive("awake")
    camera.take("late")
    with engine.slow_to_sleep():
        camera.arrive("stopping")
        camera.take("stopping")


def longer_than_usual(camera: Camera):
    "A long start, held in one state until the second picture is taken."
    engine = camera.engine
    engine.call("POST", "/start", {})
    engine.cloud.advance_clock(300)
    camera.hears(json=engine.call("GET", "/status"))
    camera.arrive("waking")
    camera.each(lambda page: expect(page.locator("#longer")).to_be_visible())
    camera.take("longer")
    camera.hears_the_engine()
    engine.wait("IN_SERVICE")
    engine.sleep()


def refused(camera: Camera):
    "A start beyond the month's budget."
    camera.arrive("asleep")
    with camera.engine.environment("start-model-service", SENTIMENT_MONTHLY_BUDGET="0.01"):
        camera.each(lambda page: page.locator("#start").click())
        camera.each(lambda page: expect(page.locator("#start-error")).to_contain_text("budget"))
    camera.take("budget", "#starting")


def wrong_answers(camera: Camera):
    "Answers of the gateway instead of the engine."
    answers: dict[str, dict] = {
        "throttled": {"status": 429, "json": {"message": "Too Many Requests"}},
        "gateway": {"status": 502},
    }
    for name, answer in answers.items():
        camera.hears(**answer)
        camera.each(lambda page: page.goto(camera.engine.site_url))
        camera.each(lambda page: expect(page.locator("#trouble")).to_be_visible())
        camera.take(name)
        camera.hears_the_engine()


def mishaps(camera: Camera):
    "States after a failure."
    engine = camera.engine
    engine.sleep()
    longer_than_usual(camera)
    refused(camera)
    wrong_answers(camera)
    engine.use("broken")
    engine.call("POST", "/start", {})
    engine.wait("FAILED")
    camera.arrive("failed")
    camera.take("failed")
    engine.use("good")
    engine.call("POST", "/start", {})
    engine.wait("IN_SERVICE")
    camera.arrive("awake")
    camera.each(lambda page: page.context.set_offline(True))
    camera.each(lambda page: expect(page.locator("#trouble")).to_be_visible())
    camera.take("offline")
    camera.each(lambda page: page.context.set_offline(False))


def side_by_side(folder: Path, names: list[str], into: str):
    "Put pictures of one height next to each other."
    pictures = [Image.open(folder / name).convert("RGB") for name in names]
    whole = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)), "white")
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width
    save(whole.resize((whole.width * 2 // 3, whole.height * 2 // 3), Image.Resampling.LANCZOS), folder / into)


@tells_cause
def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path, default=ROOT / "images", help="folder of the pictures (images/)")
    folder = parser.parse_args().into
    folder.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=40_000)  # milliseconds: the first call of a function takes seconds on a busy machine
    with (
        tempfile.TemporaryDirectory() as state,
        running_engine(Path(state), weights=RELEASED, standby=True) as engine,
        open_browser() as browser,
    ):
        camera = Camera(browser, engine, folder, WIDE)
        visit(camera)
        mishaps(camera)
        phone = Camera(browser, engine, folder, PHONE, "-phone")
        phone.arrive("awake")
        phone.each(read_why)
        phone.take("awake")
        engine.sleep()
        phone.arrive("asleep")
        phone.take("asleep")
    side_by_side(folder, ["page-asleep-light.webp", "page-words-dark.webp"], "page.webp")


if __name__ == "__main__":
    main()
