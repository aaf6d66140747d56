"The page in headless Chromium, against the engine in a local cloud. Only failures of the network are made up."

import json
import re
import subprocess
import sys
import time
from itertools import pairwise
from urllib.parse import quote, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from chromium import find_chromium, open_browser
from playwright.sync_api import Browser, Page, Route, expect

from sentiment_engine.local.sms import NO_QUOTA_KEY
from sentiment_engine.settings import textbelt_key_parameter

pytestmark = pytest.mark.browser
expect.set_options(timeout=20_000)  # the first call of a Lambda takes seconds on a busy machine

PHONE = "+1 202 555 0123"  # of the range that is kept free for fiction
PRAISE = "I love it: a warm and lovely sound. Excellent!"
COMPLAINT = "It broke. Terrible."
WATCH = """
window.seen = {violations: [], ran: []};
addEventListener('securitypolicyviolation', (e) => seen.violations.push(e.violatedDirective + ' ' + e.blockedURI));
"""


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


class Visitor:
    "A tab with everything it said and asked for written down."

    def __init__(self, browser: Browser, url: str, **context):
        self.context = browser.new_context(viewport={"width": 1100, "height": 900}, **context)
        self.context.add_init_script(WATCH)
        self.url, self.said, self.asked = url, [], []
        self.page = self.tab()

    def tab(self) -> Page:
        page = self.context.new_page()
        page.set_default_timeout(20_000)
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
        expect(page.locator("html")).to_have_attribute("data-view", view, timeout=40_000)
        return page

    def origins(self) -> set[str]:
        return {f"{u.scheme}://{u.netloc}" for u in map(urlsplit, self.asked) if u.scheme in ("http", "https")}


@pytest.fixture
def visitor(browser, engine):
    "A visitor. At the end nothing may have gone wrong behind the page: no error, no violation, no stranger asked."
    visitor = Visitor(browser, engine.site_url)
    visitor.tolerated = ()  # what a test that provokes failures expects in the console
    yield visitor
    bad = [line for line in visitor.said if not any(part in line for part in visitor.tolerated)]
    violations = [v for page in visitor.context.pages for v in page.evaluate("window.seen?.violations ?? []")]
    visitor.context.close()
    assert bad == [] and violations == []
    own = {engine.site_url.rstrip("/"), "{0.scheme}://{0.netloc}".format(urlsplit(engine.api_url))}
    assert visitor.origins() <= own


@pytest.fixture
def asleep(engine):
    engine.use("good")
    if engine.state() == "FAILED":  # left so by a test before
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
    "Count what the visitor has asked the model."
    return len([url for url in visitor.asked if url.endswith("/predict")])


# ---- finding the browser


def test_a_missing_browser_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setenv("CHROMIUM", "/no/such/browser")
    with pytest.raises(FileNotFoundError, match="/no/such/browser"):
        find_chromium()
    monkeypatch.delenv("CHROMIUM")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match=r"run infra_scripts/install_chromium\.sh"):
        find_chromium()


# ---- a whole visit


def test_one_visit_from_asleep_to_asleep(visitor, engine, asleep):
    page = visitor.arrive("asleep")
    expect(page).to_have_title(re.compile("^Asleep"))
    assert "minute" in text_of(page, "#fact-time") or "second" in text_of(page, "#fact-time")
    assert text_of(page, "#fact-cost").startswith("You: nothing. Its owner: $0.056 an hour")
    assert "30 minutes after the last review" in text_of(page, "#fact-idle")

    before = len(engine.messages())
    page.get_by_label("First name").fill("Ada")
    page.get_by_label("Mobile number").fill(PHONE)
    page.get_by_label("Send me one message").check()
    page.get_by_role("button", name="Wake the model").click()
    visitor.see("waking")
    expect(page.locator("#title")).to_be_focused()
    expect(page.locator("#announce")).to_contain_text("The model is waking up")
    expect(page.locator("#waiting-people")).to_have_text("1 person asked for a message.")
    assert page.locator("#progress").get_attribute("aria-valuenow").isdigit()
    assert page.locator("#phone").input_value() == ""
    first = seconds(text_of(page, "#elapsed"))
    page.wait_for_function("(t) => document.querySelector('#elapsed').textContent !== t", arg=f"0:{first:02d}")

    visitor.see("awake")
    expect(page).to_have_title(re.compile("^Awake"))
    assert re.search(r"awake\.[0-9a-f]{10}\.svg$", page.locator("#icon").get_attribute("href"))
    expect(page.locator("#announce")).to_contain_text("The model is awake")
    sent = engine.messages()[before:]
    assert [m["to"] for m in sent] == ["+12025550123"] and sent[0]["text"].startswith("Hi Ada,")

    ask(page, PRAISE)
    expect(page.locator("#answer .verdict strong")).to_have_text("Positive")
    assert re.fullmatch(r"(> )?\d+\.\d %", text_of(page, "#answer .verdict .share"))
    assert [row.split()[1] for row in page.locator("#answer .bars dt").all_inner_texts()] == ["Negative", "Positive"]
    assert re.search(r"\d+ ms · model 20260101-good", text_of(page, "#meta"))
    page.locator("#review").fill(COMPLAINT)
    page.locator("#review").press("Control+Enter")
    expect(page.locator("#answer .verdict strong")).to_have_text("Negative")
    expect(page.locator("#history li")).to_have_count(2)

    engine.cloud.advance_clock(engine.settings.idle_minutes * 60 - 100)
    page.reload()
    visitor.see("awake")
    expect(page.locator("#soon")).to_be_visible()
    assert seconds(text_of(page, "#countdown")) <= 100
    expect(page).to_have_title(re.compile(r"^[01]:\d\d left"))
    page.get_by_role("button", name="Keep it awake").click()
    expect(page.locator("#soon")).to_be_hidden()
    left = seconds(text_of(page, "#countdown"))
    assert 29 * 60 < left <= 30 * 60
    page.wait_for_function(
        "(t) => document.querySelector('#countdown').textContent !== t", arg=text_of(page, "#countdown")
    )
    assert re.search(r"cost its owner \$0\.\d+ so far", text_of(page, "#session-cost"))

    engine.sleep()
    page.reload()
    visitor.see("asleep")
    assert "20260101-good" in text_of(page, "#sign-version")


# ---- asleep


def test_examples_answer_while_asleep_and_say_that_they_are_stored(visitor, asleep):
    page = visitor.arrive("asleep")
    expect(page.locator("#examples li")).to_have_count(6)
    page.locator("#examples button", has_text="Complaint").click()
    expect(page.locator("#answer .verdict strong")).to_have_text("Negative")
    expect(page.locator("#answer .stored")).to_have_text("Stored")
    assert "the model gave it earlier" in text_of(page, "#meta")
    assert marks(page)["stopped"] == "NEGATIVE"
    assert page.locator("#review").input_value().startswith("The charging cable")
    assert predictions(visitor) == 0


@pytest.mark.parametrize(
    "typed, said",
    [
        ("2025550123", "Begin with +"),
        ("+1 202 abc", "Only digits"),
        ("+0123456789", "does not begin with 0"),
        ("+1 202", "A few digits are missing"),
        ("+12345678901234567", "too long"),
    ],
)
def test_a_bad_number_is_told_while_typing_and_starts_nothing(visitor, engine, asleep, typed, said):
    page = visitor.arrive("asleep")
    page.locator("#phone").press_sequentially(typed)
    if "missing" not in said:  # an unfinished number is no mistake while it is being typed
        expect(page.locator("#phone-hint")).to_contain_text(said)
    page.get_by_role("button", name="Wake the model").click()
    expect(page.locator("#phone-hint")).to_contain_text(said)
    expect(page.locator("#phone")).to_be_focused()
    ask(page, PRAISE)
    expect(page.locator("#read")).to_have_text("Wake it to read this")  # it is not on its way
    expect(page.locator("#phone")).to_be_focused()
    assert page.locator("#phone").get_attribute("aria-invalid") == "true"
    assert engine.state() == "STOPPED" and not any("/start" in url for url in visitor.asked)


def test_a_number_that_only_the_service_can_refuse(visitor, engine, asleep):
    visitor.tolerated = ("400 (Bad Request)", "status of 400")
    page = visitor.arrive("asleep")
    page.locator("#phone").fill("+99 999 999 999")
    page.locator("#consent").check()
    page.get_by_role("button", name="Wake the model").click()
    expect(page.locator("#phone-hint")).to_have_class(re.compile("wrong"))
    assert text_of(page, "#phone-hint") not in ("", "Looks complete.")
    assert engine.state() == "STOPPED"


def test_a_number_needs_consent(visitor, engine, asleep):
    page = visitor.arrive("asleep")
    assert not page.locator("#consent").is_checked()
    page.locator("#phone").fill(PHONE)
    expect(page.locator("#phone-hint")).to_have_text("Looks complete.")
    page.get_by_role("button", name="Wake the model").click()
    expect(page.locator("#consent-hint")).to_contain_text("Please tick this")
    expect(page.locator("#consent")).to_be_focused()
    assert "Textbelt" in text_of(page, "#consent-text") and engine.state() == "STOPPED"


# ---- waking


def test_waking_survives_reload_and_is_seen_in_other_tabs(visitor, engine, asleep):
    page = visitor.arrive("asleep")
    other = visitor.tab()
    other.goto(engine.site_url)
    visitor.see("asleep", other)
    page.get_by_role("button", name="Wake the model").click()
    visitor.see("waking")
    run = engine.call("GET", "/status")["runId"]
    page.reload()
    visitor.see("waking")
    other.evaluate("dispatchEvent(new Event('online'))")  # what a tab does when it comes back
    visitor.see("waking", other)
    visitor.see("awake")
    visitor.see("awake", other)
    assert engine.call("GET", "/status")["runId"] == run


def test_what_is_written_while_it_sleeps_is_read_when_it_wakes(visitor, asleep):
    page = visitor.arrive("asleep")
    ask(page, COMPLAINT)
    visitor.see("waking")
    expect(page.locator("#read")).to_have_text("It will be read first")
    visitor.see("awake")
    expect(page.locator("#answer .verdict strong")).to_have_text("Negative")


def test_longer_than_usual_is_said(visitor, engine, asleep):
    engine.wake()  # so that the usual is known
    engine.sleep()
    page = visitor.arrive("asleep")
    assert re.search(r"^Usually .+ so far\)\.$", text_of(page, "#fact-time"))
    page.get_by_role("button", name="Wake the model").click()
    visitor.see("waking")
    expect(page.locator("#longer")).to_be_hidden()
    engine.cloud.advance_clock(300)
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.locator("#longer")).to_be_visible()
    expect(page.locator("#eta")).to_have_text("longer than usual")
    assert page.locator("#progress").get_attribute("aria-valuetext") == "longer than usual"
    visitor.see("awake")


# A notification is shown by the operating system: what the page asks of the browser is written down here.
NOTICES = """
window.notices = [];
window.Notification = class { static permission = 'default';
    static async requestPermission() { return this.permission = 'granted'; }
    constructor(title) { notices.push(title); } };
Object.defineProperty(document, 'hidden', {get: () => window.away === true});
"""


def test_the_browser_tells_whoever_asked_for_it_and_looks_elsewhere(visitor, asleep):
    visitor.context.add_init_script(NOTICES)
    page = visitor.arrive("asleep")
    page.get_by_role("button", name="Notify me in this browser").focus()
    with page.expect_response("**/status"):
        page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.locator("#notify")).to_be_focused()  # a look at the service moves nothing from under the fingers
    page.keyboard.press("Enter")
    expect(page.locator("#notify")).to_be_hidden()
    expect(page.locator("#start-form")).to_contain_text("This browser will tell you, as long as this tab stays open.")
    page.get_by_role("button", name="Wake the model").click()
    visitor.see("waking")
    expect(page.locator("#waking")).to_contain_text("This browser will tell you")
    page.evaluate("away = true")
    visitor.see("awake")
    assert page.evaluate("notices") == ["The model is awake"]


# ---- awake


def test_several_reviews_one_a_line(visitor, awake, tmp_path):
    page = visitor.arrive("awake")
    page.locator("#lines").check()
    page.locator("#review").fill(f"{PRAISE}\n\n{COMPLAINT}\n=1+1 good\n")
    expect(page.locator("#counter")).to_have_text("3 of 1,000 reviews")
    page.get_by_role("button", name="Read them").click()
    expect(page.locator("#answer tbody tr")).to_have_count(3)
    assert "2 positive, 1 negative" in text_of(page, "#answer .verdict")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    download.value.save_as(tmp_path / "sentiment.csv")
    table = (tmp_path / "sentiment.csv").read_text(encoding="utf-8-sig")
    assert table.splitlines()[0] == '"review","label","score","sure","NEGATIVE","POSITIVE"'
    assert '"\'=1+1 good"' in table  # no spreadsheet takes it for a formula


CSV = '\ufeffid;Review Text;stars\r\n1;"Lovely; warm,\nand ""fantastic""";5\r\n2;It broke. Terrible.;1\r\n3;;2\r\n'


def test_reviews_from_a_csv_file(visitor, awake):
    page = visitor.arrive("awake")
    page.locator("#file").set_input_files({"name": "mine.csv", "mimeType": "text/csv", "buffer": CSV.encode()})
    expect(page.locator("#file-text")).to_have_text("2 reviews from mine.csv, column 2.")
    assert page.locator("#review").input_value() == 'Lovely; warm, and "fantastic"\nIt broke. Terrible.'
    page.get_by_role("button", name="Read them").click()
    expect(page.locator("#answer tbody tr")).to_have_count(2)
    assert [tag.split()[1] for tag in page.locator("#answer .tag").all_inner_texts()] == ["Positive", "Negative"]


DROP = """([name, text]) => { const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([text], name));
    const event = new DragEvent('drop', {dataTransfer, bubbles: true, cancelable: true});
    return document.body.dispatchEvent(event); }"""


@pytest.mark.parametrize(
    "table, reviews, said",
    [
        ("a lovely thing\nit broke", "a lovely thing\nit broke", "2 reviews from x.csv, column 1."),
        ("5,so good it was,nice\n1,it broke,x", "so good it was\nit broke", "2 reviews from x.csv, column 2."),
        ("stars\ttext\n5\tgood, really\n", "good, really", "1 review from x.csv, column 2."),
        ('text\n"never closed', '"never closed', "1 review from x.csv, column 1."),
        ("text,stars\n", "", "No reviews were found in this file."),
        ("", "", "No reviews were found in this file."),
        ("x" * 5_000_001, "", "This file is too large: 5 MB at most."),
        ("text\n<img src=x onerror=seen.ran.push(1)>", "<img src=x onerror=seen.ran.push(1)>", "1 review from"),
    ],
    ids=["no table", "no header", "tabs", "broken quotes", "header only", "empty", "too large", "attack"],
)
def test_a_file_may_be_dropped_and_may_be_anything(visitor, asleep, table, reviews, said):
    page = visitor.arrive("asleep")
    assert page.evaluate(DROP, ["x.csv", table]) is False  # taken: the browser does not leave the page for it
    expect(page.locator("#review-form")).to_contain_text(said)
    assert page.locator("#review").input_value() == reviews
    assert page.evaluate("seen.ran") == [] and page.locator("#review-form img").count() == 0


def test_too_many_reviews_in_a_file_are_told(visitor, awake):
    page = visitor.arrive("awake")
    page.evaluate(DROP, ["x.csv", "good\n" * 1001])
    expect(page.locator("#review-error")).to_have_text("1,001 reviews are too many at once: 1,000 at most.")
    page.locator("#read").click()
    assert predictions(visitor) == 0


def test_a_list_that_breaks_off_keeps_what_was_read(visitor, awake):
    visitor.tolerated = ("Failed to load resource",)
    page = visitor.arrive("awake")
    page.locator("#lines").check()
    page.locator("#review").fill("\n".join(f"number {i} is good" for i in range(120)))
    page.route("**/predict", lambda route: route.continue_() if predictions(visitor) < 3 else route.fulfill(status=504))
    page.get_by_role("button", name="Read them").click()
    expect(page.locator("#review-error")).to_contain_text("100 of 120 were read, see below. Your text is kept.")
    expect(page.locator("#answer tbody tr")).to_have_count(100)


def marks(page: Page) -> dict[str, str]:
    "Return the words that are marked, and for which class."
    found = page.locator("#words mark").all()
    return {mark.inner_text(): mark.get_attribute("data-label") for mark in found}


def test_the_words_that_count_are_marked_when_somebody_asks(visitor, awake):
    page, text = visitor.arrive("awake"), "🎸 A good sound, a bad <b>case</b>."
    sent = []
    page.on("request", lambda r: sent.append(r.post_data_json) if r.url.endswith("/predict") else None)
    ask(page, text)
    expect(page.locator("#answer .verdict strong")).to_contain_text("Not sure")
    assert sent == [{"inputs": text}] and page.locator("mark").count() == 0
    page.get_by_role("button", name="Which words count?").click()
    expect(page.locator("#words")).to_be_focused()
    expect(page.locator("#words")).to_have_text(text)
    assert marks(page) == {"good": "POSITIVE", "bad": "NEGATIVE"} and sent[1:] == [{"inputs": text, "explain": True}]
    assert text_of(page, ".why").count("▲ For positive: good +38") == 1
    assert text_of(page, ".why").count("▼ For negative: bad −38") == 1
    styles = page.locator("#words mark").evaluate_all("(all) => all.map((m) => getComputedStyle(m).borderBottomStyle)")
    assert styles == ["solid", "dotted"]  # not by colour alone
    expect(page.locator("#why")).to_have_count(0)


def test_an_answer_that_hangs_on_no_word_says_so(visitor, awake):
    page = visitor.arrive("awake")
    ask(page, "The thing arrived on a day.")
    page.get_by_role("button", name="Which words count?").click()
    expect(page.locator(".why")).to_contain_text("It hangs on no single word")
    assert marks(page) == {}


def test_a_model_that_cannot_say_why_leaves_the_answer(visitor, engine, awake):
    visitor.tolerated = ("Failed to load resource",)
    page = visitor.arrive("awake")
    ask(page, PRAISE)
    refusal = {"error": {"code": "bad_input", "message": "The model could not read this text."}}
    page.route("**/predict", lambda route: route.fulfill(status=400, json=refusal))
    page.get_by_role("button", name="Which words count?").click()
    expect(page.locator("#tool-text")).to_have_text("The model could not read this text.")
    page.unroute("**/predict")
    engine.sleep()
    page.get_by_role("button", name="Which words count?").click()
    visitor.see("asleep")
    expect(page.locator("#answer .verdict strong")).to_have_text("Positive")
    expect(page.locator("#why")).to_be_hidden()


QUOTES = """It's "good" — 5 $HOME \\n `ls` 🎸 <b>'"""


def copied(page: Page, what: str) -> str:
    page.get_by_role("button", name=f"Copy {what}", exact=True).click()
    expect(page.locator("#tool-text")).to_have_text(f"Copied: {what}.")
    return page.evaluate("navigator.clipboard.readText()")


def test_what_is_copied_asks_the_same_again(visitor, engine, awake):
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = visitor.arrive("awake")
    ask(page, QUOTES)
    expect(page.locator("#answer .verdict strong")).to_have_text("Positive")
    score = engine.call("POST", "/predict", {"inputs": QUOTES})["predictions"][0]["score"]
    run = {"capture_output": True, "text": True, "check": True, "timeout": 60}
    curl = subprocess.run(["bash", "-c", f"curl -sS {copied(page, 'curl').removeprefix('curl ')}"], **run)
    assert json.loads(curl.stdout)["predictions"][0]["score"] == score
    program = subprocess.run([sys.executable, "-c", copied(page, "Python")], **run)
    assert f"'score': {score}" in program.stdout


def test_a_link_carries_the_text_and_asks_nothing(visitor, engine, awake):
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = visitor.arrive("awake")
    ask(page, QUOTES)
    expect(page.locator("#answer .verdict")).to_be_visible()
    link = copied(page, "link")
    assert link.startswith(f"{engine.site_url}#review=")
    before, other = predictions(visitor), visitor.tab()
    other.goto(link)
    visitor.see("awake", other)
    assert other.locator("#review").input_value() == QUOTES and other.url == engine.site_url
    page.evaluate("location.hash = '#reviews=one%0Atwo'")
    expect(page.locator("#counter")).to_have_text("2 of 1,000 reviews")
    page.evaluate("location.hash = '#review=%E0%A4%A'")  # cut off on its way
    page.evaluate("location.hash = '#main'")
    assert page.locator("#review").input_value() == "one\ntwo" and predictions(visitor) == before


def test_a_long_list_is_read_in_parts(visitor, awake):
    page = visitor.arrive("awake")
    page.locator("#lines").check()
    page.locator("#review").fill("\n".join(f"number {i} is good" for i in range(120)))
    page.get_by_role("button", name="Read them").click()
    expect(page.locator("#answer tbody tr")).to_have_count(120)
    assert predictions(visitor) == 3


def test_an_answer_that_is_none_says_so(visitor, awake):
    page = visitor.arrive("awake")
    ask(page, "The thing arrived on a day.")
    expect(page.locator("#answer .verdict strong")).to_contain_text("Not sure, leaning")


def test_what_the_model_says_of_itself_is_shown(visitor, awake):
    "How sure it is and in how many parts a long review was read, instead of our guess from the share."
    page, said = visitor.arrive("awake"), {"sure": False, "windows": 3, "truncated": False}

    def change(route):
        reply = route.fetch()
        body = reply.json()
        body["predictions"][0] |= said
        route.fulfill(response=reply, json=body)

    page.route("**/predict", change)
    ask(page, "Lovely, warm and fantastic.")
    expect(page.locator("#answer .verdict strong")).to_have_text("Not sure, leaning positive")
    expect(page.locator("#answer")).to_contain_text("the model read it in 3 parts")
    said |= {"sure": True, "truncated": True}
    ask(page, "The thing arrived on a day.")
    expect(page.locator("#answer .verdict strong")).not_to_contain_text("Not sure")
    expect(page.locator("#answer")).to_contain_text("the model read its beginning in 3 parts")


def test_limits_are_told_before_anything_is_sent(visitor, awake):
    page = visitor.arrive("awake")
    page.locator("#read").click()
    expect(page.locator("#review-error")).to_have_text("Write or paste a review first.")
    page.locator("#review").fill("x" * 10_001)
    expect(page.locator("#counter")).to_have_text("10,001 of 10,000 characters")
    expect(page.locator("#review-error")).to_contain_text("10,000 characters at most")
    page.locator("#read").click()
    page.locator("#review").fill("🎸" * 10_000)  # counted as the service counts
    expect(page.locator("#review-error")).to_be_hidden()
    assert predictions(visitor) == 0


def test_polling_does_not_keep_it_awake(visitor, engine, awake):
    deadline = engine.call("GET", "/status")["shutdownAt"]
    page = visitor.arrive("awake")
    for _ in range(3):
        page.evaluate("dispatchEvent(new Event('online'))")
        page.wait_for_timeout(300)
    assert engine.call("GET", "/status")["shutdownAt"] == deadline


def test_asleep_before_it_could_read(visitor, engine, awake):
    visitor.tolerated = ("409 (Conflict)", "status of 409")
    page = visitor.arrive("awake")
    engine.sleep()
    ask(page, COMPLAINT)
    visitor.see("asleep")
    expect(page.locator("#review-error")).to_contain_text("not awake any more. Your text is kept")
    assert page.locator("#review").input_value() == COMPLAINT


def test_history_and_draft_stay_in_this_browser(visitor, awake):
    page = visitor.arrive("awake")
    ask(page, PRAISE)
    expect(page.locator("#history li")).to_have_count(1)
    page.locator("#review").fill("a draft")
    page.reload()
    visitor.see("awake")
    assert page.locator("#review").input_value() == "a draft"
    page.locator("#history button").click()
    expect(page.locator("#answer .stored")).to_be_visible()
    assert page.locator("#review").input_value() == PRAISE
    page.get_by_role("button", name="Forget all").click()
    expect(page.locator("#past")).to_be_hidden()
    assert page.evaluate("localStorage.getItem('past')") == "[]"


# ---- attacks

ATTACKS = [
    "<img src=x onerror=seen.ran.push(1)>",
    "<script>seen.ran.push(2)</script>",
    "'\"><svg onload=seen.ran.push(3)>",
]
ATTACKS += ["javascript:seen.ran.push(4)", "{{constructor.constructor('seen.ran.push(5)')()}}", "\u202e\u0000<b>"]


def test_nothing_that_is_typed_becomes_markup(visitor, engine, asleep):
    page = visitor.arrive("asleep")
    page.locator("#name").fill(ATTACKS[0])
    page.locator("#phone").press_sequentially(ATTACKS[2][:20])
    page.locator("#phone").fill("")
    page.get_by_role("button", name="Wake the model").click()
    visitor.see("awake")
    page.locator("#lines").check()
    page.locator("#review").fill("\n".join(ATTACKS))
    page.get_by_role("button", name="Read them").click()
    expect(page.locator("#answer tbody tr")).to_have_count(len(ATTACKS))
    assert page.locator("#answer tbody tr td:first-child").nth(0).text_content() == ATTACKS[0]
    page.locator("#lines").uncheck()
    ask(page, ATTACKS[0])
    expect(page.locator("#answer blockquote")).to_have_text(ATTACKS[0])
    page.reload()
    visitor.see("awake")
    assert page.locator("#history li").count() == len(ATTACKS) + 1
    assert page.evaluate("seen.ran") == []
    assert page.locator("main img, main script, main svg, main b:not(.example b):not(.phases b)").count() == 0


def test_nothing_that_the_service_says_becomes_markup(visitor, engine, asleep):
    evil = engine.call("GET", "/status") | {"state": "FAILED", "reason": ATTACKS[0], "modelVersion": ATTACKS[1]}
    visitor.page.route("**/status", lambda route: route.fulfill(json=evil))
    page = visitor.arrive("failed")
    assert text_of(page, "#failure-reason") == ATTACKS[0] and text_of(page, "#sign-version") == ATTACKS[1]
    evil |= {"state": "IN_SERVICE", "secondsLeft": 900, "shutdownAt": ATTACKS[0]}
    why = [{"text": ATTACKS[2], "start": 0, "end": 37, "influence": 0.5}]
    prediction = {"label": ATTACKS[0], "score": 0.9, "scores": {ATTACKS[0]: 0.9, ATTACKS[1]: 0.1}, "explanation": why}
    reply = {"predictions": [prediction], "modelVersion": ATTACKS[2], "latencyMs": 1, "secondsLeft": 900}
    page.route("**/predict", lambda route: route.fulfill(json=reply))
    page.reload()
    visitor.see("awake")
    ask(page, ATTACKS[0])
    expect(page.locator("#words mark")).to_have_text(ATTACKS[0])
    expect(page.locator("#meta")).to_contain_text(ATTACKS[2])
    assert page.evaluate("seen.ran") == [] and page.locator("main img, main script, main svg").count() == 0


def test_a_link_that_attacks_becomes_no_markup(visitor, engine, asleep):
    page = visitor.page
    for attack in ATTACKS:
        page.goto("about:blank")
        page.goto(f"{engine.site_url}#review={quote(attack)}")
        visitor.see("asleep")
        assert page.locator("#review").input_value() == attack
    assert page.evaluate("seen.ran") == []


def test_memory_that_was_tampered_with_does_no_harm(visitor, asleep):
    page = visitor.arrive("asleep")
    past = [{"text": 5}, None, {"text": "x", "label": "POSITIVE", "score": 2}]
    page.evaluate("(past) => localStorage.setItem('past', past)", json.dumps(past))
    page.evaluate("localStorage.setItem('draft', '{')")
    page.reload()
    visitor.see("asleep")
    assert page.locator("#history li").count() == 1 and page.locator("#review").input_value() == ""


# ---- failures


def test_a_start_that_fails_tells_why_and_can_be_tried_again(visitor, engine, asleep):
    engine.use("broken")
    page = visitor.arrive("asleep")
    page.get_by_role("button", name="Wake the model").click()
    visitor.see("failed")
    assert "tokenizer.json" in text_of(page, "#failure-reason")
    assert "nothing more is charged" in text_of(page, "#failure-money")
    expect(page).to_have_title(re.compile("^Did not wake up"))
    engine.use("good")
    page.get_by_role("button", name="Wake the model").click()
    visitor.see("awake")


def guarded(engine, **limits: str):
    "Let the engine refuse starts beyond `limits` for a while; here it has none."
    return engine.environment("start-model-service", **{f"SENTIMENT_{k.upper()}": v for k, v in limits.items()})


def test_going_to_sleep_is_shown_until_it_sleeps(visitor, engine, awake):
    page = visitor.arrive("awake")
    page.locator("#review").focus()
    with engine.slow_to_sleep():
        page.evaluate("dispatchEvent(new Event('online'))")
        visitor.see("stopping")
        expect(page).to_have_title(re.compile("^Going to sleep"))
        expect(page.locator("#title")).to_be_focused()
        expect(page.locator("#announce")).to_contain_text("The machine is being switched off")
        assert "/h" in text_of(page, "#sign-cost")  # it still costs
        assert page.locator("#starting, #compose, #awake").evaluate_all("(all) => all.every((n) => n.hidden)")
    visitor.see("asleep")
    assert text_of(page, "#sign-cost") == "Nothing"


def test_a_start_beyond_the_budget_says_so_and_what_it_costs(visitor, engine, asleep):
    visitor.tolerated = ("402 (Payment Required)", "status of 402")
    page = visitor.arrive("asleep")
    with guarded(engine, monthly_budget="0.01"):
        page.get_by_role("button", name="Wake the model").click()
        expect(page.locator("#start-error")).to_contain_text("This month's budget of $0.01 is used up")
    assert re.search(r"costs nothing\. It can be started again from 1 \w+\.$", text_of(page, "#start-error"))
    expect(page.locator("#trouble")).to_be_hidden()
    assert engine.state() == "STOPPED"


def test_a_number_that_was_told_a_moment_ago_is_told_when_to_come_back(visitor, engine, asleep):
    visitor.tolerated = ("429 (Too Many Requests)", "status of 429")
    with guarded(engine, number_cooldown_minutes="1440"):
        engine.call("POST", "/start", {"phone": PHONE})
        engine.wait("IN_SERVICE")
        engine.sleep()
        page = visitor.arrive("asleep")
        page.locator("#phone").fill(PHONE)
        page.locator("#consent").check()
        page.get_by_role("button", name="Wake the model").click()
        expect(page.locator("#start-error")).to_contain_text("This number was used a moment ago: try again in 23 hours")
    assert "Nothing was started" in text_of(page, "#start-error") and "may not" not in text_of(page, "#start-error")
    assert page.locator("#phone").input_value() == PHONE and engine.state() == "STOPPED"


def test_a_number_is_not_taken_when_no_message_can_be_sent(visitor, engine, asleep):
    visitor.tolerated = ("503 (Service Unavailable)", "status of 503")
    parameters, name = engine.cloud.client("ssm"), textbelt_key_parameter(engine.settings)
    parameters.put_parameter(Name=name, Value=NO_QUOTA_KEY, Type="SecureString", Overwrite=True)
    page = visitor.arrive("asleep")
    page.locator("#phone").fill(PHONE)
    page.locator("#consent").check()
    try:
        with guarded(engine, daily_messages="99"):  # a change of settings makes the function read its key again
            page.get_by_role("button", name="Wake the model").click()
            expect(page.locator("#phone-hint")).to_contain_text("Start without a number")
    finally:
        parameters.delete_parameter(Name=name)
    expect(page.locator("#phone")).to_be_focused()
    assert text_of(page, "#start-error") == "" and engine.state() == "STOPPED"


def test_what_sleep_has_saved_is_told(visitor, engine, awake):
    engine.sleep()
    engine.cloud.advance_clock(3600)
    visitor.arrive("asleep")
    assert re.search(r"Sleep saved \$[\d.]+ this month\.$", text_of(visitor.page, "#fact-cost"))


SAID = {"error": {"code": "internal", "message": "Try <b>later</b>."}}
PATIENCE = {"status": 429, "json": {"message": "Too Many Requests"}}  # the gateway's own


@pytest.mark.parametrize(
    "answer, title, reason",
    [
        pytest.param({"status": 502, "body": "<html>Bad Gateway</html>"}, "has a problem", "HTTP 502", id="502"),
        pytest.param({"status": 500, "json": SAID}, "has a problem", "Try <b>later</b>.", id="500"),
        pytest.param(PATIENCE, "asks for patience", "Too Many", id="429"),
        pytest.param({"status": 200, "body": "not JSON"}, "has a problem", "not yours", id="no JSON"),
        pytest.param({"status": 200, "json": {"state": "DREAMING"}}, "has a problem", "does not know", id="no state"),
        pytest.param(None, "The service does not answer", "your network", id="no connection"),
    ],
)
def test_trouble_is_explained_and_ends_by_itself(visitor, asleep, answer, title, reason):
    visitor.tolerated = ("Failed to load resource",)
    page = visitor.page
    page.route("**/status", lambda route: route.abort() if answer is None else route.fulfill(**answer))
    page.goto(visitor.url)
    expect(page.locator("#trouble")).to_be_visible()
    expect(page.locator("#trouble-title")).to_contain_text(title)
    expect(page.locator("#trouble-text")).to_contain_text(reason)
    expect(page.locator("#trouble-text")).to_contain_text("No money runs away")
    expect(page.locator("#title")).to_have_text("The model cannot be seen")
    page.unroute("**/status")
    if answer and answer["status"] == 429:
        visitor.see("asleep")  # by itself, after a while
    else:
        page.get_by_role("button", name="Try now").click()
        visitor.see("asleep")
    expect(page.locator("#trouble")).to_be_hidden()


def test_retries_back_off(visitor, asleep):
    visitor.tolerated = ("Failed to load resource",)
    times: list[float] = []

    def refuse(route: Route):
        times.append(time.monotonic())
        route.fulfill(status=503, body="")

    visitor.page.route("**/status", refuse)
    visitor.page.goto(visitor.url)
    visitor.page.wait_for_timeout(9000)
    gaps = [b - a for a, b in pairwise(times)]
    assert 2 <= len(gaps) <= 3 and all(b > a for a, b in pairwise(gaps))


def test_offline_keeps_what_was_known(visitor, awake):
    visitor.tolerated = ("ERR_INTERNET_DISCONNECTED",)
    page = visitor.arrive("awake")
    visitor.context.set_offline(True)
    expect(page.locator("#trouble-title")).to_have_text("You are offline")
    expect(page.locator("#countdown")).to_be_visible()
    ask(page, COMPLAINT)
    expect(page.locator("#review-error")).to_contain_text("You are offline")
    visitor.context.set_offline(False)
    expect(page.locator("#trouble")).to_be_hidden()
    page.locator("#read").click()
    expect(page.locator("#answer .verdict strong")).to_have_text("Negative")


def test_a_start_that_the_service_refuses(visitor, asleep):
    visitor.tolerated = ("Failed to load resource",)
    page = visitor.arrive("asleep")
    refusal = {"error": {"code": "over_budget", "message": "This month's budget is used up. Come back in July."}}
    page.route("**/start", lambda route: route.fulfill(status=403, json=refusal))
    page.get_by_role("button", name="Wake the model").click()
    expect(page.locator("#start-error")).to_have_text(refusal["error"]["message"])
    expect(page.locator("#start")).to_have_text("Wake the model")


def test_a_page_without_configuration_says_so(visitor):
    visitor.tolerated = ("Failed to load resource",)
    page = visitor.page
    page.route("**/config.json", lambda route: route.fulfill(status=404, body=""))
    page.goto(visitor.url)
    expect(page.locator("#title")).to_have_text("This page does not know its service")
    expect(page.locator("#lead")).to_contain_text("There is no config.json beside it")
    page.unroute("**/config.json")
    page.route("**/config.json", lambda route: route.fulfill(body=json.dumps({"apiUrl": "javascript:alert(1)"})))
    page.reload()
    expect(page.locator("#lead")).to_contain_text("apiUrl must be the address")


# ---- for everybody


def fits(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("width", [320, 768, 1440])
def test_no_sideways_scrolling(visitor, awake, width):
    page = visitor.page
    page.set_viewport_size({"width": width, "height": 700})
    visitor.arrive("awake")
    ask(page, f"good {'long' * 80} bad")
    page.get_by_role("button", name="Which words count?").click()
    expect(page.locator("#words mark")).to_have_count(2)
    assert fits(page)
    page.locator("#lines").check()
    page.locator("#review").fill(f"{PRAISE}\n{'long' * 80}")
    page.get_by_role("button", name="Read them").click()
    expect(page.locator("#answer tbody tr")).to_have_count(2)
    assert fits(page)


# ---- no violation of any rule of axe, in any state, in light and in dark


def violations(page: Page, state: str) -> list[str]:
    "Return what axe objects to, and sideways scrolling on the narrowest phone."
    found = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for each in Axe().run(page).response["violations"]:
            found += [f"{state}, {scheme}: {each['id']}: {node['html'][:200]}" for node in each["nodes"]]
    page.set_viewport_size({"width": 320, "height": 700})
    found += [] if fits(page) else [f"{state} scrolls sideways at 320 px"]
    page.set_viewport_size({"width": 1100, "height": 900})
    return found


@pytest.fixture
def plain(browser, engine):
    "A visitor without motion, so that nothing is half faded when it is looked at."
    visitor = Visitor(browser, engine.site_url, reduced_motion="reduce")
    yield visitor
    visitor.context.close()


def test_axe_in_a_visit(plain, engine, asleep):
    page = plain.arrive("asleep")
    found = violations(page, "asleep")
    page.locator("#phone").fill("12")
    page.locator("#examples button", has_text="Complaint").click()
    page.get_by_role("button", name="Wake the model").click()
    expect(page.locator("#phone-hint")).to_have_class(re.compile("wrong"))
    found += violations(page, "asleep with a stored answer and a bad number")
    page.locator("#phone").fill("")
    page.get_by_role("button", name="Wake the model").click()
    plain.see("waking")
    found += violations(page, "waking")
    plain.see("awake")
    ask(page, "A good sound, a bad case.")
    page.get_by_role("button", name="Which words count?").click()
    expect(page.locator("#words mark")).to_have_count(2)
    found += violations(page, "awake with words")
    page.locator("#lines").check()
    page.locator("#review").fill(f"{PRAISE}\n{COMPLAINT}\nIt came on a day")
    page.get_by_role("button", name="Read them").click()
    expect(page.locator("#answer tbody tr")).to_have_count(3)
    found += violations(page, "awake with several answers")
    engine.cloud.advance_clock(engine.settings.idle_minutes * 60 - 100)
    page.reload()
    plain.see("awake")
    expect(page.locator("#soon")).to_be_visible()
    found += violations(page, "awake, two minutes left")
    with engine.slow_to_sleep():
        page.reload()
        plain.see("stopping")
        found += violations(page, "stopping")
    assert found == []


def answering(status: int):
    "Make a route answer with an HTTP status and nothing else."

    def answer(route: Route):
        route.fulfill(status=status, body="")

    return answer


def test_axe_in_trouble(plain, engine, asleep):
    page = plain.arrive("asleep")
    plain.context.set_offline(True)
    expect(page.locator("#trouble")).to_be_visible()
    found = violations(page, "offline")
    plain.context.set_offline(False)
    expect(page.locator("#trouble")).to_be_hidden()
    for state, status in (("gateway error", 502), ("throttled", 429)):
        page.route("**/status", answering(status))
        page.reload()
        expect(page.locator("#trouble")).to_be_visible()
        found += violations(page, state)
        page.unroute("**/status")
    plain.arrive("asleep")
    with guarded(engine, monthly_budget="0.01"):
        page.get_by_role("button", name="Wake the model").click()
        expect(page.locator("#start-error")).to_contain_text("budget")
        found += violations(page, "over budget")
    engine.use("broken")
    page.get_by_role("button", name="Wake the model").click()
    plain.see("failed")
    found += violations(page, "failed")
    engine.use("good")
    page.route("**/config.json", lambda route: route.fulfill(status=404, body=""))
    page.reload()
    expect(page.locator("#title")).to_have_text("This page does not know its service")
    assert found + violations(page, "not set up") == []


def test_axe_would_notice(plain, asleep):
    "A label that is missing and a grey that is too pale are found, or the tests above show nothing."
    page = plain.arrive("asleep")
    page.evaluate("document.querySelector('label[for=review]').remove(); lead.style.color = '#bbb'")
    found = violations(page, "broken")
    assert any("color-contrast" in each for each in found) and any("label" in each for each in found)


def tab_to(page: Page, name: str):
    "Press Tab until the control of this name has the focus, which must be seen. Fails if it cannot be reached."
    for _ in range(40):
        page.keyboard.press("Tab")
        here = page.evaluate("""(() => { const n = document.activeElement, label = n.labels?.[0]?.textContent;
            return [n.id, n.textContent.trim(), label ?? '', getComputedStyle(n).outlineStyle]; })()""")
        assert here[3] == "solid", f"{here} does not show that it has the focus"
        if name in here[:3] or here[1].startswith(name):
            return
    raise AssertionError(f"{name} cannot be reached with Tab")


def test_the_order_of_the_keyboard(visitor, asleep):
    page = visitor.arrive("asleep")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    reached = []
    for _ in range(8 + 6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert [each for each in reached if each != "notify"][:8] == [
        *("name", "phone", "consent", "start", "review", "lines", "file", "read")
    ]
    assert reached[-5:] == ["example"] * 5


def test_keyboard_only(visitor, engine, asleep):
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = visitor.arrive("asleep")
    tab_to(page, "name")
    page.keyboard.type("Ada")
    tab_to(page, "Wake the model")
    page.keyboard.press("Enter")
    visitor.see("waking")
    expect(page.locator("#title")).to_be_focused()
    visitor.see("awake")
    tab_to(page, "Keep it awake")
    page.keyboard.press("Enter")
    expect(page.locator("#announce")).to_contain_text("stays awake for another 30 minutes")
    tab_to(page, "review")
    page.keyboard.type("A good sound, a bad case.")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#answer .verdict")).to_be_visible()
    tab_to(page, "Which words count?")
    page.keyboard.press("Space")
    expect(page.locator("#words")).to_be_focused()
    tab_to(page, "Copy link")
    page.keyboard.press("Enter")
    expect(page.locator("#tool-text")).to_have_text("Copied: link.")
    tab_to(page, "Praise")
    page.keyboard.press("Enter")
    expect(page.locator("#answer .verdict strong")).to_have_text("Positive")
    tab_to(page, "Forget all")
    page.keyboard.press("Enter")
    expect(page.locator("#title")).to_be_focused()


def test_every_control_has_a_name_and_every_heading_its_place(visitor, awake):
    page = visitor.arrive("awake")
    ask(page, PRAISE)
    expect(page.locator("#answer .verdict")).to_be_visible()
    nameless = page.evaluate("""() => [...document.querySelectorAll('input, textarea, button, progress, [role]')]
        .filter((n) => !n.matches('[role=status], [role=alert], :has(> [role=alert])'))
        .filter((n) => !n.labels?.length && !n.getAttribute('aria-label') && !n.textContent.trim())
        .map((n) => n.outerHTML)""")
    assert nameless == [] and page.locator("h1").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"


MOVING = """[...document.querySelectorAll('*')].map((n) => getComputedStyle(n))
    .filter((s) => s.animationName !== 'none' || s.transitionDuration.split(', ').some((d) => d !== '0s')).length"""


def test_reduced_motion(plain, visitor, asleep):
    page = plain.arrive("asleep")
    assert page.evaluate(MOVING) == 0 and visitor.arrive("asleep").evaluate(MOVING) > 5
    page.get_by_role("button", name="Wake the model").click()
    plain.see("waking")
    assert page.evaluate(MOVING) == 0
    plain.see("awake")
    assert page.evaluate(MOVING) == 0


def test_nothing_jumps_while_it_loads(visitor, asleep):
    page = visitor.page
    page.add_init_script("""window.shift = 0; new PerformanceObserver((list) => { for (const e of list.getEntries())
        if (!e.hadRecentInput) shift += e.value; }).observe({type: 'layout-shift', buffered: true});""")
    visitor.arrive("asleep")
    page.wait_for_timeout(1500)
    assert page.evaluate("shift") < 0.05


def test_nothing_jumps_when_the_answer_comes(visitor, awake):
    page = visitor.arrive("awake")
    top = "document.querySelector('#examples-box').getBoundingClientRect().top + scrollY"
    before = page.evaluate(top)
    ask(page, PRAISE)
    expect(page.locator("#answer .verdict")).to_be_visible()
    assert page.evaluate(top) == before
