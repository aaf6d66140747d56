"The page under attack and with faults. Only network failures are simulated."

import json
import re
from itertools import pairwise
from urllib.parse import quote

import pytest
from playwright.sync_api import Route, expect

from sentiment_engine.local.sms import NO_QUOTA_KEY
from sentiment_engine.settings import textbelt_key_parameter, usage_table
from tests.doubles.local_models import until
from tests.doubles.visitor import COMPLAINT, PHONE, ask, guarded, text_of

pytestmark = pytest.mark.browser


# ---- attacks


ATTACKS = [
    "<img src=x onerror=seen.ran.push(1)>",
    "<script>seen.ran.push(2)</script>",
    "'\"><svg onload=seen.ran.push(3)>",
]
ATTACKS += ["javascript:seen.ran.push(4)", "{{constructor.constructor('seen.ran.push(5)')()}}", "\u202e\u0000<b>"]


def test_typed_text_never_becomes_markup(visitor, engine, asleep):
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


def test_text_from_the_service_never_becomes_markup(visitor, engine, asleep):
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


def test_a_malicious_link_never_becomes_markup(visitor, engine, asleep):
    page = visitor.page
    for attack in ATTACKS:
        page.goto("about:blank")
        page.goto(f"{engine.site_url}#review={quote(attack)}")
        visitor.see("asleep")
        assert page.locator("#review").input_value() == attack
    assert page.evaluate("seen.ran") == []


def test_tampered_browser_storage_does_no_harm(visitor, asleep):
    page = visitor.arrive("asleep")
    past = [{"text": 5}, None, {"text": "x", "label": "POSITIVE", "score": 2}]
    page.evaluate("(past) => localStorage.setItem('past', past)", json.dumps(past))
    page.evaluate("localStorage.setItem('draft', '{')")
    page.reload()
    visitor.see("asleep")
    assert page.locator("#history li").count() == 1 and page.locator("#review").input_value() == ""


# ---- failures


def test_a_failed_start_shows_its_reason_and_can_be_repeated(visitor, engine, asleep):
    engine.use("broken")
    page = visitor.arrive("asleep")
    page.get_by_role("button", name="Wake the model").click()
    visitor.see("failed")
    assert "tokenizer.json" in text_of(page, "#failure-reason")
    assert re.search(r"The machine is deleted\. .+ This run cost its owner \$0\.\d+\.", text_of(page, "#failure-money"))
    expect(page).to_have_title(re.compile("^Failed"))
    engine.use("good")
    page.get_by_role("button", name="Wake the model").click()
    visitor.see("awake")


def test_the_stopping_state_is_shown_until_the_model_sleeps(visitor, engine, awake):
    page = visitor.arrive("awake")
    page.locator("#review").focus()
    with engine.slow_to_sleep():
        page.evaluate("dispatchEvent(new Event('online'))")
        visitor.see("stopping")
        expect(page).to_have_title(re.compile("^Going to sleep"))
        expect(page.locator("#title")).to_be_focused()
        expect(page.locator("#announce")).to_contain_text("The machine is being switched off")
        assert "/h" in text_of(page, "#sign-cost")  # it still costs money
        assert page.locator("#starting, #compose, #awake").evaluate_all("(all) => all.every((n) => n.hidden)")
    visitor.see("asleep")
    assert text_of(page, "#sign-cost") == "Next to nothing"


def test_a_start_beyond_the_budget_shows_the_budget(visitor, engine, asleep):
    visitor.tolerated = ("402 (Payment Required)", "status of 402")
    page = visitor.arrive("asleep")
    with guarded(engine, monthly_budget="0.01"):
        page.get_by_role("button", name="Wake the model").click()
        expect(page.locator("#start-error")).to_contain_text("the monthly budget is $0.01")
    assert text_of(page, "#start-error").endswith("The owner can raise the budget or shorten the longest run.")
    expect(page.locator("#trouble")).to_be_hidden()
    assert engine.state() == "STOPPED"


OWN = "+1 202 555 0177"  # only for this test: other tests' starts would count as uses of it


def test_a_number_with_a_recent_message_is_told_when_to_retry(visitor, engine, asleep):
    visitor.tolerated = ("429 (Too Many Requests)", "status of 429")
    with guarded(engine, number_cooldown_minutes="1440"):
        engine.call("POST", "/start", {"phone": OWN})
        engine.wait("IN_SERVICE")
        engine.sleep()
        page = visitor.arrive("asleep")
        page.locator("#phone").fill(OWN)
        page.locator("#consent").check()
        page.get_by_role("button", name="Wake the model").click()
        expect(page.locator("#start-error")).to_contain_text("This number was used recently. Try again in 23 hours")
    assert "Nothing was started" in text_of(page, "#start-error") and "may not" not in text_of(page, "#start-error")
    assert page.locator("#phone").input_value() == OWN and engine.state() == "STOPPED"


def test_a_number_is_refused_when_no_message_can_be_sent(visitor, engine, asleep):
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


def test_the_savings_from_sleeping_are_shown(visitor, engine, awake):
    engine.sleep()
    until(lambda: not engine.cloud.client("sagemaker").list_endpoints()["Endpoints"])
    engine.cloud.advance_clock(301)  # the reconciler books the run, which costs money until its endpoint is gone
    table, items = usage_table(engine.settings), engine.cloud.client("dynamodb").scan
    until(lambda: not items(TableName=table)["Items"][0]["open"]["M"])
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
        pytest.param(PATIENCE, "Too many requests", "wait a moment", id="429"),
        pytest.param({"status": 200, "body": "not JSON"}, "has a problem", "not your fault", id="no JSON"),
        pytest.param({"status": 200, "json": {"state": "DREAMING"}}, "has a problem", "unknown state", id="no state"),
        pytest.param(None, "The service does not answer", "your network", id="no connection"),
    ],
)
def test_an_error_is_explained_and_clears_automatically(visitor, asleep, answer, title, reason):
    visitor.tolerated = ("Failed to load resource",)
    page = visitor.page
    page.route("**/status", lambda route: route.abort() if answer is None else route.fulfill(**answer))
    page.goto(visitor.url)
    expect(page.locator("#trouble")).to_be_visible()
    expect(page.locator("#trouble-title")).to_contain_text(title)
    expect(page.locator("#trouble-text")).to_contain_text(reason)
    expect(page.locator("#trouble-text")).not_to_contain_text("Too Many")  # the gateway's message is not for people
    expect(page.locator("#trouble-text")).to_contain_text("Nothing extra is charged")
    expect(page.locator("#title")).to_have_text("The state is unknown")
    page.unroute("**/status")
    if answer and answer["status"] == 429:
        visitor.see("asleep")  # by itself, after a while
    else:
        page.get_by_role("button", name="Try now").click()
        visitor.see("asleep")
    expect(page.locator("#trouble")).to_be_hidden()


def test_retries_back_off(visitor, asleep):
    visitor.tolerated = ("Failed to load resource",)
    page, tries, gaps = visitor.page, [], []

    def refuse(route: Route):
        tries.append(route.request.url)
        route.fulfill(status=503, body="")

    page.route("**/status", refuse)
    page.clock.install()
    page.goto(visitor.url)
    expect(page.locator("#trouble")).to_be_visible()
    for _ in range(3):
        before, gap = len(tries), 0.0
        while len(tries) == before:
            page.clock.run_for(500)
            page.wait_for_timeout(100)
            gap += 0.5
            assert gap < 120, "it does not try again"
        gaps.append(gap)
    assert all(b > a for a, b in pairwise(gaps)), gaps


def test_an_offline_page_keeps_the_last_status(visitor, awake):
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


def test_a_refused_start_shows_the_message_of_the_service(visitor, asleep):
    visitor.tolerated = ("Failed to load resource",)
    page = visitor.arrive("asleep")
    refusal = {"error": {"code": "over_budget", "message": "This month's budget is used up. Come back in July."}}
    page.route("**/start", lambda route: route.fulfill(status=403, json=refusal))
    page.get_by_role("button", name="Wake the model").click()
    expect(page.locator("#start-error")).to_have_text(refusal["error"]["message"])
    expect(page.locator("#start")).to_have_text("Wake the model")


@pytest.mark.parametrize(
    "answer, said",
    [
        (
            {"code": "start_failed", "message": "Nothing was left running."},
            "Nothing was left running. Nothing is charged.",
        ),
        ({"code": "unavailable", "message": "A service is not answering."}, "It may be starting anyway"),
        (None, "It may be starting anyway, so this page checks again. An unused model falls asleep."),
    ],
)
def test_a_failed_start_request_shows_what_is_known(visitor, engine, answer, said):
    visitor.tolerated = ("Failed to load resource",)
    visitor.hear(engine, "STOPPED")
    page = visitor.arrive("asleep")
    page.route("**/start", lambda route: route.fulfill(status=503, json={"error": answer} if answer else {}))
    page.get_by_role("button", name="Wake the model").click()
    expect(page.locator("#start-error")).to_contain_text(said)
    assert ("may be" in said) == ("may be" in text_of(page, "#start-error"))


def test_a_page_without_configuration_explains_itself(visitor):
    visitor.tolerated = ("Failed to load resource",)
    page = visitor.page
    page.route("**/config.json", lambda route: route.fulfill(status=404, body=""))
    page.goto(visitor.url)
    expect(page.locator("#title")).to_have_text("This page is not set up")
    expect(page.locator("#lead")).to_contain_text("Its config.json is missing or damaged.")
    page.unroute("**/config.json")
    page.route("**/config.json", lambda route: route.fulfill(body='{"provider": "Text'))
    page.reload()
    expect(page.locator("#lead")).to_contain_text("is missing or damaged")
