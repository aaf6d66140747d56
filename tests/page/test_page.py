"The page in headless Chromium, against the engine in a local cloud, from asleep to awake."

import re

import pytest
from playwright.sync_api import expect

from sentiment_engine.service.notifications import e164
from tests.doubles.chromium import find_chromium
from tests.doubles.phones import ACCEPTED, EMPTY, NUMBER, REFUSED
from tests.doubles.visitor import COMPLAINT, PHONE, PRAISE, ask, look_again, marks, predictions, seconds, text_of

pytestmark = pytest.mark.browser


# ---- finding the browser


def test_the_error_for_a_missing_browser_explains_the_remedy(monkeypatch):
    monkeypatch.setenv("CHROMIUM", "/no/such/browser")
    with pytest.raises(FileNotFoundError, match="/no/such/browser"):
        find_chromium()
    monkeypatch.delenv("CHROMIUM")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match=r"run infra_scripts/make/install_chromium\.sh"):
        find_chromium()


# ---- a whole visit


def test_a_visit_goes_from_asleep_to_asleep(visitor, engine, asleep):
    page = visitor.arrive("asleep")
    expect(page).to_have_title(re.compile("^Asleep"))
    assert "minute" in text_of(page, "#fact-time") or "second" in text_of(page, "#fact-time")
    assert text_of(page, "#fact-cost").startswith("You pay nothing. Its owner pays $0.056 an hour")
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
    sent = engine.messages()[: -before or None]
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


def test_examples_show_stored_answers_while_asleep(visitor, asleep):
    page = visitor.arrive("asleep")
    expect(page.locator("#examples li")).to_have_count(6)
    page.locator("#examples button", has_text="Complaint").click()
    expect(page.locator("#answer .verdict strong")).to_have_text("Negative")
    expect(page.locator("#answer .stored")).to_have_text("Stored: the model gave this answer earlier")
    assert marks(page)["stopped"] == "NEGATIVE"
    assert page.locator("#review").input_value().startswith("The charging cable")
    assert predictions(visitor) == 0


@pytest.mark.parametrize(
    "typed, said",
    [
        ("2025550123", "Begin with +"),
        ("+1 202 abc", "Use only digits"),
        ("+0123456789", "Begin with +"),
        ("+1 202", "A few digits are missing"),
        ("+12345678901234567", "too long"),
    ],
)
def test_a_bad_number_is_reported_while_typing_and_starts_nothing(visitor, engine, asleep, typed, said):
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


def test_the_page_accepts_every_number_format_that_the_api_accepts(visitor, engine, asleep):
    visitor.tolerated = ("409 (Conflict)", "status of 409")
    page, sent = visitor.arrive("asleep"), []
    error = {"error": {"code": "stopping", "message": "It goes to sleep.", "state": "STOPPING", "etaSeconds": None}}

    def refuse(route):
        sent.append(route.request.post_data_json)
        route.fulfill(status=409, json=error)

    page.route("**/start", refuse)
    for text in (*ACCEPTED, *EMPTY):
        page.locator("#phone").evaluate("(field, text) => { field.value = text; field.oninput(); }", text)
        page.locator("#consent").set_checked(text in ACCEPTED)
        with page.expect_response("**/start"):
            page.get_by_role("button", name="Wake the model").click()
        expect(page.locator("#start")).to_have_attribute("aria-disabled", "false")
    assert {e164(body["phone"], ("US",)) for body in sent[: len(ACCEPTED)]} == {NUMBER}
    assert all(re.fullmatch(r"\+\d+", body["phone"]) for body in sent[: len(ACCEPTED)])
    assert sent[len(ACCEPTED) :] == [{}] * len(EMPTY)
    for text in REFUSED:
        page.locator("#phone").evaluate("(field, text) => { field.value = text; field.oninput(); }", text)
        page.get_by_role("button", name="Wake the model").click()
        expect(page.locator("#phone-hint")).to_have_class(re.compile("wrong"))
    page.locator("#phone").fill("")
    longest = max(ACCEPTED, key=len)
    page.locator("#phone").focus()
    page.keyboard.insert_text(longest)  # as pasted: the field would truncate a longer one
    assert page.locator("#phone").input_value() == longest and len(sent) == len(ACCEPTED) + len(EMPTY)
    kept = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
    assert "2025550123" not in kept


def test_a_number_refused_by_the_service_shows_the_reason(visitor, engine, asleep):
    visitor.tolerated = ("400 (Bad Request)", "status of 400")
    visitor.page.clock.install()
    page = visitor.arrive("asleep")
    page.locator("#phone").fill("+99 999 999 999")
    page.locator("#consent").check()
    page.get_by_role("button", name="Wake the model").click()
    expect(page.locator("#phone-hint")).to_have_class(re.compile("wrong"))
    refusal = text_of(page, "#phone-hint")
    assert refusal not in ("", "Looks complete.")
    look_again(page)
    page.locator("#consent").uncheck()
    assert text_of(page, "#phone-hint") == refusal and page.locator("#phone").get_attribute("aria-invalid") == "true"
    page.locator("#phone").fill(PHONE)
    expect(page.locator("#phone-hint")).to_have_text("Looks complete.")
    assert engine.state() == "STOPPED"


def test_a_number_needs_consent(visitor, engine, asleep):
    visitor.page.clock.install()
    page = visitor.arrive("asleep")
    assert not page.locator("#consent").is_checked()
    page.locator("#phone").fill(PHONE)
    expect(page.locator("#phone-hint")).to_have_text("Looks complete.")
    page.get_by_role("button", name="Wake the model").click()
    expect(page.locator("#consent-hint")).to_contain_text("Please tick this")
    expect(page.locator("#consent")).to_be_focused()
    look_again(page)
    expect(page.locator("#consent-hint")).to_contain_text("Please tick this")
    said = text_of(page, "#consent-text")
    assert "through Textbelt when it is ready, or if it fails" in said and "Textbelt may keep a record" in said
    assert engine.state() == "STOPPED"


def test_a_review_is_read_when_another_visitor_has_woken_the_model(visitor, engine, asleep):
    page = visitor.arrive("asleep")
    engine.wake()  # by another visitor
    ask(page, COMPLAINT)
    visitor.see("awake")
    expect(page.locator("#answer .verdict strong")).to_have_text("Negative")
    ask(page, PRAISE)
    expect(page.locator("#answer .verdict strong")).to_have_text("Positive")


# ---- waking


def test_waking_survives_a_reload_and_shows_in_other_tabs(visitor, engine, asleep):
    page = visitor.arrive("asleep")
    other = visitor.tab()
    other.goto(engine.site_url)
    visitor.see("asleep", other)
    page.get_by_role("button", name="Wake the model").click()
    visitor.see("waking")
    run = engine.call("GET", "/status")["runId"]
    page.reload()
    visitor.see("waking")
    visitor.see("waking", other)  # at once: the tabs notify each other
    visitor.see("awake")
    visitor.see("awake", other)
    assert engine.call("GET", "/status")["runId"] == run


def test_a_review_written_while_asleep_is_read_after_waking(visitor, asleep):
    page = visitor.arrive("asleep")
    ask(page, COMPLAINT)
    visitor.see("waking")
    expect(page.locator("#read")).to_have_text("It will be read first")
    visitor.see("awake")
    expect(page.locator("#answer .verdict strong")).to_have_text("Negative")


def test_a_number_can_be_added_while_it_wakes(visitor, engine, asleep):
    before = len(engine.messages())
    engine.call("POST", "/start", {})
    page = visitor.arrive("waking")
    join = page.get_by_role("button", name="Leave my number")
    join.click()
    expect(page.locator("#phone-hint")).to_have_text("Enter a number first.")
    page.locator("#phone").fill(PHONE)
    page.locator("#consent").check()
    join.click()
    expect(page.locator("#phone-hint")).to_have_text("Noted: you get one message.")
    expect(page.locator("#waiting-people")).to_have_text("1 person asked for a message.")
    assert re.search(r"^A machine \(ml\.t2\.medium\) is switched on, .+ (Usually|About) ", text_of(page, "#phase"))
    visitor.see("awake")
    assert [m["to"] for m in engine.messages()[: -before or None]] == ["+12025550123"]


def test_a_second_attempt_to_start_is_shown(visitor, engine):
    visitor.hear(engine, "CREATING", instanceType="ml.m5.large", reason="ml.t2.medium: no capacity.")
    page = visitor.arrive("waking")
    assert "An earlier machine did not start: ml.t2.medium: no capacity. Another one (ml.m5.large) is" in text_of(
        page, "#phase"
    )


@pytest.mark.parametrize("reason", ["The endpoint could not", "No machine was free.", "Why?", "cut off …"])
def test_every_reason_ends_with_punctuation(visitor, engine, reason):
    visitor.tolerated = ("Failed to load resource",)
    ended = reason if reason[-1] in ".?…" else f"{reason}."
    visitor.hear(engine, "CREATING", reason=reason)
    page = visitor.arrive("waking")
    assert f"did not start: {ended} Another one (ml.t2.medium) is" in text_of(page, "#phase")
    error = {"error": {"code": "unavailable", "message": reason}}
    page.route("**/status", lambda route: route.fulfill(status=503, json=error))
    look_again(page)
    expect(page.locator("#trouble-text")).to_contain_text(f"{ended} Nothing extra is charged")
    visitor.hear(engine, "IN_SERVICE")
    page = visitor.arrive("awake")
    page.route("**/predict", lambda route: route.fulfill(status=502, json=error))
    ask(page, COMPLAINT)
    expect(page.locator("#review-error")).to_contain_text(f"{ended} Your text is kept.")


@pytest.mark.parametrize("end", ["STOPPED", "FAILED"])
def test_a_waiting_review_can_be_edited_after_a_failed_start(visitor, engine, end):
    visitor.context.add_init_script(NOTICES)
    visitor.page.clock.install()
    said = visitor.hear(engine, "CREATING")
    page = visitor.arrive("waking")
    ask(page, COMPLAINT)
    expect(page.locator("#read")).to_have_text("It will be read first")
    page.evaluate("Notification.permission = 'granted'; away = true")
    said |= {"state": end, "reason": "No machine was free."}
    look_again(page)
    visitor.see({"STOPPED": "asleep", "FAILED": "failed"}[end])
    assert page.evaluate("notices") == [{"STOPPED": "The model is asleep", "FAILED": "The model has failed"}[end]]
    said |= {"state": "STOPPED"}
    look_again(page)
    visitor.see("asleep")
    expect(page.locator("#read")).to_have_text("Wake it to read this")
    assert page.locator("#read").get_attribute("aria-disabled") == "false"


def test_a_long_start_is_reported(visitor, engine, asleep):
    engine.wake()  # so that the usual is known
    engine.sleep()
    page = visitor.arrive("asleep")
    assert re.search(r"^Usually .+ \(the last (\d+ starts|start)\)\.$", text_of(page, "#fact-time"))
    page.get_by_role("button", name="Wake the model").click()
    visitor.see("waking")
    expect(page.locator("#longer")).to_be_hidden()
    engine.cloud.advance_clock(300)
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.locator("#longer")).to_be_visible()
    expect(page.locator("#eta")).to_have_text("longer than usual")
    assert page.locator("#progress").get_attribute("aria-valuetext") == "longer than usual"
    visitor.see("awake")


# The operating system shows notifications, so this records the page's calls to the browser.
NOTICES = """
window.notices = [];
window.Notification = class { static permission = 'default';
    static async requestPermission() { return this.permission = 'granted'; }
    constructor(title) { if (this.constructor.permission === 'granted') notices.push(title); } };
Object.defineProperty(document, 'hidden', {get: () => window.away === true});
"""


def test_a_hidden_tab_shows_a_notification_if_allowed(visitor, asleep):
    visitor.context.add_init_script(NOTICES)
    page = visitor.arrive("asleep")
    page.get_by_role("button", name="Notify me in this browser").focus()
    with page.expect_response("**/status"):
        page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.locator("#notify")).to_be_focused()  # a poll moves nothing while a visitor touches the page
    page.keyboard.press("Enter")
    expect(page.locator("#notify")).to_be_hidden()
    expect(page.locator("#start-form")).to_contain_text("This browser notifies you while this tab is open.")
    page.get_by_role("button", name="Wake the model").click()
    visitor.see("waking")
    expect(page.locator("#start-form")).to_contain_text("This browser notifies you")
    page.evaluate("away = true")
    visitor.see("awake")
    assert page.evaluate("notices") == ["The model is awake"]


def test_no_notification_is_offered_where_the_browser_forbids_them(visitor, engine):
    throws = "window.Notification = class { static permission = 'default'; constructor() { throw new TypeError(); } };"
    visitor.context.add_init_script(throws)
    visitor.hear(engine, "STOPPED")
    page = visitor.arrive("asleep")
    expect(page.locator("#start")).to_be_visible()
    expect(page.locator("#notify")).to_be_hidden()
    assert text_of(page, "#notify-text") == ""


# ---- polling the service


def test_an_older_status_does_not_replace_a_newer_one(visitor, engine):
    visitor.tolerated = ("Failed to load resource",)
    said = visitor.hear(engine, "IN_SERVICE")
    page, held = visitor.arrive("awake"), []
    for late in (lambda route: route.fulfill(json=said | {"state": "CREATING"}), lambda route: route.abort()):
        page.route("**/status", lambda route: held.append(route), times=1)
        page.evaluate("dispatchEvent(new Event('online'))")
        page.wait_for_function("() => true")
        with page.expect_response("**/status"):
            page.evaluate("dispatchEvent(new Event('online'))")
        late(held.pop())
        page.wait_for_timeout(200)
        visitor.see("awake")
        expect(page.locator("#trouble")).to_be_hidden()


def test_a_model_billed_per_request_has_no_countdown(visitor, engine):
    nothing = dict.fromkeys(("runId", "startedAt", "instanceType", "elapsedSeconds", "costSoFar", "pricePerHour"))
    nothing |= {"shutdownAt": None, "secondsLeft": None, "endpoint": "serverless"}
    visitor.hear(engine, "IN_SERVICE", **nothing)
    page = visitor.arrive("awake")
    assert "needs no start and never sleeps" in text_of(page, "#lead")
    assert text_of(page, "#sign-cost") == "Per request"
    expect(page.locator("#awake")).to_be_hidden()
    assert "NaN" not in page.content()


def test_the_page_announces_the_end_of_the_longest_run(visitor, engine):
    end = engine.settings.max_run_minutes * 60
    visitor.hear(engine, "IN_SERVICE", elapsedSeconds=end - 100, secondsLeft=100)
    page = visitor.arrive("awake")
    expect(page.locator("#soon")).to_contain_text("a run has a time limit. Then you can wake it again.")
    expect(page.locator("#extend")).to_be_hidden()
    assert re.search(r"sleeps in (99|100|2) \w+ at the latest", text_of(page, "#lead"))
    visitor.hear(engine, "IN_SERVICE", elapsedSeconds=end - 600, secondsLeft=100)
    page.reload()
    expect(page.locator("#soon")).to_contain_text("“Keep it awake” gives it another 10 minutes.")


def test_the_session_cost_stops_at_the_end_of_the_session(visitor, engine):
    visitor.tolerated = ("Failed to load resource",)
    visitor.page.clock.install()
    visitor.hear(engine, "IN_SERVICE", secondsLeft=60, costSoFar=0.01, pricePerHour=0.36)
    page = visitor.arrive("awake")
    page.route("**/status", lambda route: route.abort())
    page.clock.fast_forward(3_600_000)
    expect(page.locator("#countdown")).to_have_text("0:00")
    assert "cost its owner $0.016 so far" in text_of(page, "#session-cost")
