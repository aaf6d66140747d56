"The page with a small model that answers without an endpoint: every state, its limits, and who may end a run."

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.doubles.page_service import ASLEEP, AWAKE, NEVER_ASLEEP, STANDBY, STOPPING, TOKEN, WAKING, answer, read
from tests.doubles.visitor import text_of

pytestmark = pytest.mark.browser
FAILED = ASLEEP | {"state": "FAILED", "reason": "No machine was free.", "costSoFar": 0.01}
STATES = {"asleep": ASLEEP, "waking": WAKING, "awake": AWAKE, "stopping": STOPPING, "failed": FAILED}
SMALL, LARGE = "Answered by the small model", "Answered by the large model"
LIST = "\n".join(f"number {n}" for n in range(4))  # one more than the small model reads at once


def beside(status: dict, **more) -> dict:
    "Return a status with a standby."
    return status | {"standby": STANDBY | more}


# ---- every state, with and without a small model


@pytest.mark.parametrize("view", STATES)
def test_with_a_small_model_every_state_answers_at_once_and_names_the_model(service, view):
    page = service.arrive(beside(STATES[view]))
    expect(page.locator("html")).to_have_attribute("data-view", view)
    assert text_of(page, "#title").startswith("The large model ") and text_of(page, "#sign-model") == "Large model"
    assert text_of(page, "#read") == "Read it" and not page.locator("#beyond").is_visible()
    read(page, "fine")
    label = LARGE if view == "awake" else SMALL
    expect(page.locator("#answer .by")).to_have_text(label)
    expect(page.locator("#announce")).to_have_text(f"Positive, 90.0 %. {label}")
    expect(page.locator("#history .entry")).to_have_count(1)
    page.locator("#history .entry").click()
    who = label.removeprefix("Answered by ")
    expect(page.locator("#answer .stored")).to_have_text(f"Stored: {who} gave this answer earlier")
    assert service.starts == 0 and len(service.asked) == 1


@pytest.mark.parametrize("view", STATES)
def test_without_a_small_model_only_an_awake_model_answers(service, view):
    page = service.arrive(STATES[view])
    expect(page.locator("html")).to_have_attribute("data-view", view)
    assert text_of(page, "#title").startswith("The model ") and text_of(page, "#sign-model") == "Model"
    assert page.locator("#compose").is_visible() == (view in ("asleep", "waking", "awake"))
    assert not page.locator("#offer").is_visible()
    if view == "awake":
        read(page, "fine")
        expect(page.locator("#answer .verdict")).to_be_visible()
        assert page.locator("#answer .by").count() == 0
    else:
        labels = {"asleep": "Wake it to read this", "waking": "Read it once it is awake"}
        assert text_of(page, "#start") == "Wake the model" or view not in ("asleep", "failed")
        assert view not in labels or text_of(page, "#read") == labels[view]
    assert "small" not in text_of(page, "main") and "large" not in text_of(page, "main")


def test_the_review_form_precedes_start_only_with_a_small_model(service):
    page = service.arrive(beside(ASLEEP))
    before = "() => document.querySelector('#read').compareDocumentPosition(document.querySelector('#start')) & 4"
    assert page.evaluate(before)
    page.locator("#review").fill("mine")
    service.status = ASLEEP
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.locator("#offer")).to_be_hidden()
    assert not page.evaluate(before) and page.locator("#review").input_value() == "mine"
    service.status = beside(ASLEEP)
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.locator("#offer")).to_be_visible()
    assert page.evaluate(before)


def test_the_start_offer_shows_its_benefit_and_cost(service):
    page = service.arrive(beside(ASLEEP))
    assert text_of(page, "#lead").startswith("Tells you whether a review is positive or negative. The small model")
    expect(page.get_by_role("heading", name="Get the large model")).to_be_visible()
    said = text_of(page, "#gain")
    assert "lists of up to 120 reviews" in said and "3 reviews or 60 characters at once" in said
    assert "5,000 reviews a day for all visitors" in said and "same version" not in said
    assert "Usually 3 minutes" in text_of(page, "#fact-time") and "$0.056 an hour" in text_of(page, "#fact-cost")
    page.locator("#review-form").get_by_role("button", name="Get the large model").click()
    expect(page.get_by_role("heading", name="Get the large model")).to_be_focused()
    service.status = beside(ASLEEP, modelVersion="7")
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.locator("#gain")).to_contain_text("Here both run the same version of the model.")


def test_the_page_switches_to_the_large_model_automatically(service):
    page = service.arrive(beside(ASLEEP), clock=True)
    page.locator("#start").click()
    expect(page.locator("html")).to_have_attribute("data-view", "waking")
    read(page, "fine")
    expect(page.locator("#answer .by")).to_have_text(SMALL)
    service.status = beside(AWAKE)
    service.gap()
    expect(page.locator("html")).to_have_attribute("data-view", "awake")
    expect(page.locator("#announce")).to_contain_text("The large model is awake")
    read(page, "fine")
    expect(page.locator("#answer .by")).to_have_text(LARGE)


@pytest.mark.parametrize(("before", "after"), [("asleep", "awake"), ("awake", "failed")])
def test_an_answer_of_the_other_model_triggers_a_status_request(service, before, after):
    page = service.arrive(beside(STATES[before]))
    service.status = beside(STATES[after])
    read(page, "fine")
    expect(page.locator("#answer .by")).to_have_text(LARGE if after == "awake" else SMALL)
    expect(page.locator("html")).to_have_attribute("data-view", after)


def test_an_answer_of_the_small_model_does_not_change_the_deadline(service):
    page = service.arrive(beside(AWAKE | {"secondsLeft": 900}), clock=True)
    service.replies = [(200, service.predictions("fine") | {"answeredBy": "standby", "secondsLeft": 1800})]
    read(page, "fine")
    expect(page.locator("#answer .by")).to_have_text(SMALL)
    assert text_of(page, "#countdown") == "15:00"


# ---- the limits of the small model


TOO_MUCH = {
    "texts": (LIST, {}, "The small model reads 3 reviews at once."),
    "characters": ("x" * 45 + "\n" + "y" * 45, {}, "The small model reads 60 characters at once."),
    "one left": ("a\nb", {"leftToday": 1}, "The small model reads only 1 more review today."),
    "none left": ("a", {"leftToday": 0}, "The small model has read all the reviews that it may read today."),
}


@pytest.mark.parametrize("case", TOO_MUCH)
@pytest.mark.parametrize("view", ["asleep", "failed"])
def test_text_beyond_the_small_model_limits_waits_for_a_start(service, view, case):
    text, limits, said = TOO_MUCH[case]
    page = service.arrive(beside(STATES[view], **limits))
    page.locator("#lines").check()
    page.locator("#review").fill(text)
    expect(page.locator("#beyond")).to_have_text(f"{said} Start the large model, and it reads this first.")
    expect(page.locator("#read")).to_have_text("Start the large model to read this")
    page.locator("#read").click()
    expect(page.locator("html")).to_have_attribute("data-view", "waking")
    expect(page.locator("#read")).to_have_text("It will be read first")
    assert service.starts == 1 and service.asked == []
    service.status = beside(AWAKE, **limits)
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.locator("#answer .by")).to_have_text(LARGE)
    assert [body["inputs"] for body in service.asked] == [text.split("\n") if "\n" in text else text]


def test_text_exactly_at_the_small_model_limits_is_sent(service):
    page = service.arrive(beside(ASLEEP, leftToday=3))
    read(page, "\n".join("x" * 20 for _ in range(3)), lines=True)
    expect(page.locator("#answer tbody tr")).to_have_count(3)
    expect(page.locator("#answer .by")).to_have_text(SMALL)
    page.locator("#review").fill("one more")
    expect(page.locator("#beyond")).to_contain_text("all the reviews that it may read today")
    assert len(service.asked) == 1


def test_while_waking_long_lists_wait_and_short_texts_are_read_at_once(service):
    page = service.arrive(beside(WAKING))
    page.locator("#lines").check()
    page.locator("#review").fill(LIST)
    expect(page.locator("#beyond")).to_contain_text("The large model can read this as soon as it is awake.")
    page.locator("#read").click()
    expect(page.locator("#read")).to_have_text("It will be read first")
    page.locator("#review").fill("fine")
    expect(page.locator("#read")).to_have_text("Read them")
    page.locator("#read").click()
    expect(page.locator("#answer .by")).to_have_text(SMALL)
    assert service.starts == 0 and len(service.asked) == 1


def test_while_stopping_long_lists_are_not_sent(service):
    page = service.arrive(beside(STOPPING))
    read(page, LIST, lines=True)
    expect(page.locator("#beyond")).to_contain_text("You can start the large model in a minute.")
    expect(page.locator("#announce")).to_contain_text("You can start the large model in a minute.")
    assert service.asked == [] and service.starts == 0


def test_explaining_a_long_text_needs_the_large_model(service):
    page = service.arrive(beside(ASLEEP))
    read(page, "a text of more than twenty characters")
    page.get_by_role("button", name="Which words count?").click()
    expect(page.locator("#tool-text")).to_contain_text("The small model explains texts of up to 20 characters.")
    page.locator("#tool-text button").click()
    expect(page.get_by_role("heading", name="Get the large model")).to_be_focused()
    assert len(service.asked) == 1
    read(page, "fine as it is")
    expect(page.locator("#answer blockquote")).to_have_text("fine as it is")
    service.predict = lambda text: answer(text, explanation=[{"start": 0, "end": 4, "influence": 0.4}])
    page.get_by_role("button", name="Which words count?").click()
    expect(page.locator("#words mark")).to_have_text("fine")
    expect(page.locator("#answer .by")).to_have_text(SMALL)


def refusal(code: str, message: str, **more) -> dict:
    return {"error": {"code": code, "message": message} | more}


def test_the_daily_limit_of_the_small_model_is_explained(service):
    page = service.arrive(beside(ASLEEP))
    said = "The small model has read 5,000 reviews today. Start the model, or try again in 7 hours."
    service.replies = [(429, refusal("standby_limit", said, retryAfterSeconds=25_200))]
    read(page, "fine")
    expect(page.locator("#review-error")).to_have_text(f"{said} Your text is kept.")
    expect(page.locator("#beyond")).to_contain_text("Start the large model, and it reads this first.")
    expect(page.locator("#read")).to_have_text("Start the large model to read this")
    assert len(service.asked) == 1 and page.locator("#review").input_value() == "fine"


def test_a_refusal_without_an_endpoint_shows_the_message_of_the_service(service):
    page = service.arrive(beside(ASLEEP))
    said = "The model is asleep, and the small model takes 2 texts at most. Send fewer, or press Start."
    service.replies = [(409, refusal("not_in_service", said))]
    read(page, "a\nb\nc", lines=True)
    expect(page.locator("#review-error")).to_have_text(f"{said} Your text is kept.")


def test_a_list_interrupted_by_sleep_can_continue_after_a_start(service):
    page = service.arrive(beside(AWAKE))
    texts = [f"n {n}" for n in range(60)]
    service.replies = [(200, service.predictions(texts[:50]))]
    service.replies += [(409, refusal("not_in_service", "The model is asleep: press Start."))]
    page.route("**/api/status", lambda route: route.fulfill(json=beside(ASLEEP)))
    read(page, "\n".join(texts), lines=True)
    expect(page.locator("#review-error")).to_contain_text("50 of 60 were read, see below.")
    expect(page.locator("html")).to_have_attribute("data-view", "asleep")
    expect(page.locator("#read")).to_have_text("Start the large model to read this")
    expect(page.locator("#answer .by")).to_have_text(LARGE)


# ---- without any endpoint


def test_without_an_endpoint_there_is_no_start_and_no_countdown(service):
    page = service.arrive(NEVER_ASLEEP)
    assert text_of(page, "#title") == "The model is awake" and "never sleeps" in text_of(page, "#lead")
    assert not page.locator("#awake, #starting").evaluate_all("(all) => all.some((n) => !n.hidden)")
    assert text_of(page, "#sign-cost") == "Per request" and "NaN" not in page.content()
    texts = [*("short" for _ in range(4)), *("x" * 40 for _ in range(3))]
    read(page, "\n".join(texts), lines=True)
    expect(page.locator("#answer tbody tr")).to_have_count(7)
    sent = [body["inputs"] for body in service.asked]  # 3 texts, 60 characters at most
    assert sent == [texts[:3], texts[3:5], texts[5], texts[6]]
    expect(page.locator("#answer .by")).to_have_text(SMALL)
    service.status = NEVER_ASLEEP | {"standby": STANDBY | {"leftToday": 0}}
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.locator("#beyond")).to_contain_text("Come back after midnight UTC.")
    page.locator("#read").click()
    expect(page.locator("#review")).to_be_focused()
    assert len(service.asked) == 4 and service.starts == 0


# ---- ending a run


def started(service) -> Page:
    "Start in this browser, and wait until the model is awake."
    page = service.arrive(beside(ASLEEP))
    page.locator("#start").click()
    expect(page.locator("html")).to_have_attribute("data-view", "waking")
    service.status = beside(AWAKE)
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.locator("html")).to_have_attribute("data-view", "awake")
    return page


def test_the_visitor_who_started_a_run_can_end_it(service):
    page = started(service)
    page.reload()  # the browser keeps the token
    done = page.get_by_role("button", name="I am done")
    expect(done).to_have_accessible_description(re.compile("ends it now, for everyone"))
    done.focus()
    page.keyboard.press("Enter")
    expect(page.locator("html")).to_have_attribute("data-view", "asleep")
    expect(page.locator("#title")).to_be_focused()
    expect(page.locator("#announce")).to_contain_text("The large model is asleep")
    assert service.slept == [TOKEN] and TOKEN not in page.evaluate("JSON.stringify(localStorage)")


def test_other_visitors_cannot_end_a_run(service):
    page = service.arrive(beside(AWAKE))
    expect(page.locator("#extend")).to_be_visible()
    expect(page.locator("#done")).to_be_hidden()
    page = started(service)
    expect(page.locator("#done")).to_be_visible()
    service.status = beside(AWAKE | {"runId": "abcdefabcdef"})  # on another instance type
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.locator("#done")).to_be_visible()
    service.status = beside(AWAKE | {"startedAt": "2026-01-01T02:00:00Z"})  # another visitor's later run
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.locator("#done")).to_be_hidden()


def test_a_refused_token_is_deleted(service):
    page = started(service)
    page.evaluate("localStorage.run = JSON.stringify({...JSON.parse(localStorage.run), token: 'of another run'})")
    page.locator("#done").click()
    expect(page.locator("#extend-error")).to_have_text("Only the browser that started this run can end it.")
    expect(page.locator("#done")).to_be_hidden()
    expect(page.locator("html")).to_have_attribute("data-view", "awake")


def test_a_browser_without_storage_can_end_its_run(service):
    refuse = "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError'); }})"
    service.page.add_init_script(refuse)
    page = started(service)
    page.locator("#done").click()
    expect(page.locator("html")).to_have_attribute("data-view", "asleep")


# ---- accessibility


def faults(page: Page) -> list[str]:
    "Return what axe finds in light and in dark, and the widths at which the page scrolls sideways."
    found = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for each in Axe().run(page).response["violations"]:
            found += [f"{scheme}: {each['id']}: {node['html'][:200]}" for node in each["nodes"]]
    for width in (320, 390, 768, 1280, 1920):
        page.set_viewport_size({"width": width, "height": 800})
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            found.append(f"it scrolls sideways at {width} px")
    return found


def test_a_sleeping_page_is_accessible_and_fits_narrow_screens(service):
    page = service.arrive(beside(ASLEEP))
    read(page, "a text of more than twenty characters")
    page.get_by_role("button", name="Which words count?").click()
    expect(page.locator("#tool-text button")).to_have_text("Get the large model")
    page.locator("#lines").check()
    page.locator("#review").fill(LIST)
    expect(page.locator("#beyond")).to_be_visible()
    assert faults(page) == []


def test_a_page_with_the_end_button_is_accessible_and_fits_narrow_screens(service):
    page = started(service)
    expect(page.locator("#done")).to_be_visible()
    assert faults(page) == []
