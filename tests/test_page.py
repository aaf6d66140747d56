"The page in headless Chromium, against the engine in a local cloud. Only failures of the network are made up."

import json
import re
import time
from contextlib import contextmanager
from itertools import pairwise
from urllib.parse import urlsplit

import pytest
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
    assert re.search(r"\d+ ms · model 20260101-good", text_of(page, "#answer .meta"))
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
    assert "the model gave it earlier" in text_of(page, "#answer .meta")
    assert page.locator("#review").input_value().startswith("The charging cable")
    assert not any("/predict" in url for url in visitor.asked)


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
    page = visitor.arrive("asleep")
    page.get_by_role("button", name="Wake the model").click()
    visitor.see("waking")
    late = engine.call("GET", "/status") | {"state": "CREATING", "longerThanUsual": True, "etaSeconds": 0}
    page.route("**/status", lambda route: route.fulfill(json=late))
    expect(page.locator("#longer")).to_be_visible()
    expect(page.locator("#eta")).to_have_text("any moment now")
    page.unroute_all(behavior="wait")
    visitor.see("awake")


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
    assert table.splitlines()[0] == '"review","label","score","NEGATIVE","POSITIVE"'
    assert '"\'=1+1 good"' in table  # no spreadsheet takes it for a formula


def test_a_long_list_is_read_in_parts(visitor, awake):
    page = visitor.arrive("awake")
    page.locator("#lines").check()
    page.locator("#review").fill("\n".join(f"number {i} is good" for i in range(120)))
    page.get_by_role("button", name="Read them").click()
    expect(page.locator("#answer tbody tr")).to_have_count(120)
    assert len([url for url in visitor.asked if url.endswith("/predict")]) == 3


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
    assert not any("/predict" in url for url in visitor.asked)


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


@contextmanager
def guarded(engine, **limits: str):
    "Let the engine refuse starts beyond `limits` for a while; here it has none."
    functions, name = engine.cloud.client("lambda"), f"{engine.settings.prefix}-start-model-service"
    before = functions.get_function_configuration(FunctionName=name)["Environment"]["Variables"]
    given = {f"SENTIMENT_{limit.upper()}": value for limit, value in limits.items()}
    functions.update_function_configuration(FunctionName=name, Environment={"Variables": before | given})
    yield
    functions.update_function_configuration(FunctionName=name, Environment={"Variables": before})


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


@pytest.mark.parametrize("width", [320, 768, 1440])
def test_no_sideways_scrolling(visitor, awake, width):
    page = visitor.page
    page.set_viewport_size({"width": width, "height": 700})
    visitor.arrive("awake")
    page.locator("#lines").check()
    page.locator("#review").fill(f"{PRAISE}\n{'long' * 80}")
    page.get_by_role("button", name="Read them").click()
    expect(page.locator("#answer tbody tr")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_keyboard_only(visitor, asleep):
    page = visitor.arrive("asleep")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    reached = []
    for _ in range(13):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", f"{reached[-1]} does not show that it has the focus"
    assert reached[:7] == ["name", "phone", "consent", "start", "review", "lines", "read"]
    assert reached[7:] == ["example"] * 6
    page.locator("#start").focus()
    page.keyboard.press("Enter")
    visitor.see("waking")


def test_every_control_has_a_name_and_every_heading_its_place(visitor, awake):
    page = visitor.arrive("awake")
    ask(page, PRAISE)
    expect(page.locator("#answer .verdict")).to_be_visible()
    nameless = page.evaluate("""() => [...document.querySelectorAll('input, textarea, button, progress, [role]')]
        .filter((n) => n.id !== 'announce' && !n.matches('[role=alert], :has(> [role=alert])'))
        .filter((n) => !n.labels?.length && !n.getAttribute('aria-label') && !n.textContent.trim())
        .map((n) => n.outerHTML)""")
    assert nameless == [] and page.locator("h1").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"


def test_reduced_motion(browser, engine, asleep):
    calm = Visitor(browser, engine.site_url, reduced_motion="reduce")
    page = calm.arrive("asleep")
    names = page.evaluate("[...document.querySelectorAll('*')].map((n) => getComputedStyle(n).animationName)")
    calm.context.close()
    assert set(names) == {"none"}


def test_nothing_jumps_while_it_loads(visitor, asleep):
    page = visitor.page
    page.add_init_script("""window.shift = 0; new PerformanceObserver((list) => { for (const e of list.getEntries())
        if (!e.hadRecentInput) shift += e.value; }).observe({type: 'layout-shift', buffered: true});""")
    visitor.arrive("asleep")
    page.wait_for_timeout(1500)
    assert page.evaluate("shift") < 0.05
