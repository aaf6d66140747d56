"The page's own rules against a simulated service: no engine, so each test takes a second or two."

import json

import pytest
from playwright.sync_api import expect

from tests.doubles import contract
from tests.doubles.page_service import (
    ASLEEP,
    AWAKE,
    HOME,
    NEVER_ASLEEP,
    STANDBY,
    STOPPING,
    WAKING,
    Service,
    answer,
    read,
)
from tests.doubles.visitor import text_of

pytestmark = pytest.mark.browser


def test_the_simulated_service_follows_the_contract(service):
    headers = {"content-type": "application/json"}
    for status in (ASLEEP, WAKING, AWAKE, STOPPING, NEVER_ASLEEP, ASLEEP | {"standby": STANDBY}):
        contract.check("GET", "/status", 200, headers, status)
    contract.check("POST", "/predict", 200, headers, service.predictions(["good", "bad"]))


def test_the_footer_shows_the_version_if_known(service):
    page = service.arrive(ASLEEP)
    assert text_of(page, "footer #version") == ""
    service.config = {"version": "1.2.3"}
    page.reload()
    expect(page.locator("footer #version")).to_have_text("Engine 1.2.3.")


# ---- figures


SHARES = {
    0.9999: ("< 0.1 %", "> 99.9 %"),
    0.99901: ("< 0.1 %", "> 99.9 %"),
    0.999: ("0.1 %", "99.9 %"),
    0.87654: ("12.3 %", "87.7 %"),
    0.5004: ("50.0 %", "50.0 %"),
}


def test_no_answer_is_shown_as_100_percent(service):
    page = service.arrive(AWAKE)
    for score, (negative, positive) in SHARES.items():
        service.predict = lambda text, score=score: answer(text, score)
        read(page, f"score {score}")
        expect(page.locator("#answer blockquote")).to_have_text(f"score {score}")
        assert page.locator("#answer .amount").all_inner_texts() == [negative, positive]
        assert text_of(page, "#answer .verdict .share") == positive


def test_the_duration_of_a_start_is_shown_if_known(service):
    page = service.arrive(ASLEEP)
    for p50, p90, starts, said in (
        (200, 300, 5, "Usually 3 minutes, nine in ten within 5 minutes (the last 5 starts)."),
        (200, 300, 4, "Usually 3 minutes (the last 4 starts)."),
        (200, 300, 1, "Usually 3 minutes (the last start)."),
        (200, 219, 9, "Usually 3 minutes (the last 9 starts)."),
        (80, 89, 9, "Usually 80 seconds, nine in ten within 89 seconds (the last 9 starts)."),
        (240, 240, 0, "About 4 minutes; no start was measured yet."),
        (90, 5400, 9, "Usually 2 minutes, nine in ten within 1.5 hours (the last 9 starts)."),
        (0, 5399, 9, "Usually 1 second, nine in ten within 90 minutes (the last 9 starts)."),
    ):
        service.status = ASLEEP | {"typicalSeconds": {"p50": p50, "p90": p90, "starts": starts}}
        page.evaluate("dispatchEvent(new Event('online'))")
        expect(page.locator("#fact-time")).to_have_text(said)


def test_costs_are_shown_with_suitable_precision(service):
    page = service.arrive(ASLEEP)
    for saved, said in (
        (0.00005, "less than $0.0001"),
        (0.0625, "$0.0625"),
        (0.5, "$0.50"),
        (1, "$1.00"),
        (12.3456, "$12.35"),
    ):
        service.status = ASLEEP | {"savedThisMonth": saved}
        page.evaluate("dispatchEvent(new Event('online'))")
        expect(page.locator("#fact-cost")).to_contain_text(f"Sleep saved {said} this month.")


def test_the_session_cost_grows_by_the_hour_and_stops_at_its_end(service):
    page = service.arrive(AWAKE | {"pricePerHour": 36, "costSoFar": 1, "secondsLeft": 100}, clock=True)
    service.status = 503
    page.clock.run_for(50_500)
    assert text_of(page, "#session-cost").startswith("This session has cost its owner $1.50 so far")
    page.clock.run_for(300_000)
    assert text_of(page, "#session-cost").startswith("This session has cost its owner $2.00 so far")


def test_the_page_announces_the_last_two_minutes(service):
    page = service.arrive(AWAKE | {"secondsLeft": 125}, clock=True)
    service.status = 503
    assert text_of(page, "#countdown") == "2:05" and not page.locator("#soon").is_visible()
    page.clock.run_for(4_000)
    assert text_of(page, "#countdown") == "2:01" and not page.locator("#soon").is_visible()
    page.clock.run_for(2_000)
    assert text_of(page, "#countdown") == "1:59" and page.locator("#soon").is_visible()
    assert "another 30 minutes" in text_of(page, "#soon")


def test_awake_hours_may_last_longer_than_a_run(service):
    page = service.arrive(AWAKE | {"elapsedSeconds": 5 * 3600, "secondsLeft": 3 * 3600})
    assert text_of(page, "#countdown") == "180:00"
    assert text_of(page, "#lead") == "Give it a review. Its owner keeps it awake at this time of day."


@pytest.mark.parametrize(("age", "well"), [("0", True), ("9", True), ("11", False), ("7200", False)])
def test_an_answer_that_cloudfront_repeats_after_a_failure_is_a_failure(service, age, well):
    page = service.arrive(AWAKE)
    page.route("**/api/status", lambda route: route.fulfill(json=AWAKE, headers={"age": age}))
    with page.expect_response("**/api/status"):
        page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.locator("#trouble")).to_be_visible(visible=not well)


def test_the_progress_bar_is_never_full_before_the_model_is_ready(service):
    page = service.arrive(WAKING | {"elapsedSeconds": 9_000, "etaSeconds": 1})
    assert page.locator("#progress").get_attribute("aria-valuenow") == "97"
    assert text_of(page, "#eta") == "any moment now"


# ---- when the page polls the service


@pytest.mark.parametrize(
    ("status", "away", "seconds"),
    [
        (ASLEEP, False, 20),
        (ASLEEP, True, 60),
        (WAKING | {"etaSeconds": 100}, False, 5),
        (WAKING | {"etaSeconds": 100}, True, 15),
        (WAKING | {"etaSeconds": 1}, False, 2),
        (WAKING | {"etaSeconds": 900}, False, 8),
        (STOPPING, True, 4),
        (AWAKE | {"secondsLeft": 10}, False, 11),
        (AWAKE | {"secondsLeft": 0}, False, 3),
        (AWAKE | {"secondsLeft": 1700}, False, 20),
    ],
)
def test_the_polling_interval_depends_on_the_state(service, status, away, seconds):
    service.page.add_init_script(f"window.away = {json.dumps(away)};")
    service.arrive(status, clock=True)
    step = 0.5 if seconds < 10 else 1
    assert service.gap(step) == pytest.approx(seconds, abs=1.1 * step)


def test_polling_backs_off_during_errors_and_recovers(service):
    page = service.page
    page.add_init_script("Math.random = () => 0.5;")
    service.arrive(ASLEEP, clock=True)
    service.status = 503
    service.gap()
    assert [service.gap() for _ in range(3)] == pytest.approx([2, 4, 8], abs=1.1)
    for _ in range(3):
        with page.expect_response("**/api/status"):
            page.clock.fast_forward(60_000)
    assert service.gap() == pytest.approx(60, abs=1.1)
    service.status = ASLEEP
    service.gap()
    expect(page.locator("#trouble")).to_be_hidden()
    assert service.gap() == pytest.approx(20, abs=1.1)
    service.status = 503
    service.gap()
    assert service.gap() == pytest.approx(2, abs=1.1)  # it counts from the start again


def test_an_unknown_state_is_reported(service):
    page = service.arrive(ASLEEP, clock=True)
    service.status = ASLEEP | {"state": "DREAMING"}
    service.gap()
    expect(page.locator("#trouble-text")).to_contain_text("It answered with an unknown state.")
    assert page.locator("html").get_attribute("data-view") == "asleep"


BUSY = {"error": {"code": "busy", "message": "The model is busy."}}


@pytest.mark.parametrize(
    ("waits", "tries"),
    [([7], 2), ([7, 60], 3), ([61], 1), ([None] * 4, 5), ([None] * 9, 5)],
    ids=["as told", "a minute", "more than a minute", "four times", "for ever"],
)
def test_a_busy_model_is_retried_when_it_says_and_not_for_ever(service, waits, tries):
    service.page.add_init_script("Math.random = () => 0.5;")
    page = service.arrive(AWAKE, clock=True)
    told = [{"error": BUSY["error"] | ({"retryAfterSeconds": wait} if wait else {})} for wait in waits]
    service.replies = [(503, reply) for reply in told]
    read(page, "fine")
    for number in range(tries - 1):
        wait = waits[number] or 2 ** (number + 1)
        expect(page.locator("#read-hint")).to_have_text(f"It is busy: next try in {wait} s.")
        page.clock.run_for(wait * 1000 - 500)
        assert len(service.asked) == number + 1
        page.clock.run_for(1_000)
        page.wait_for_function("() => true")
        expect(page.locator("#read-hint")).not_to_have_text(f"It is busy: next try in {wait} s.")
    ended = page.locator("#answer .verdict") if tries > len(waits) else page.locator("#review-error")
    expect(ended).not_to_be_empty()
    assert len(service.asked) == tries


def test_an_older_status_changes_nothing(service):
    page, held = service.arrive(AWAKE), []
    page.route("**/api/status", lambda route: held.append(route))
    for _ in range(2):
        page.evaluate("dispatchEvent(new Event('online'))")
    page.wait_for_function("() => fetch('config.json')")
    held[1].fulfill(json=AWAKE | {"modelVersion": "newer"})
    expect(page.locator("#sign-version")).to_have_text("newer")
    held[0].fulfill(json=ASLEEP | {"modelVersion": "older"})
    page.wait_for_function("() => fetch('config.json')")
    assert text_of(page, "#sign-version") == "newer" and text_of(page, "#sign-state") == "Awake"


def test_tabs_follow_each_other(service):
    page = service.arrive(AWAKE)
    other = Service(page.context.new_page())
    other.arrive(AWAKE)
    before, service.status = service.looks, AWAKE | {"modelVersion": "8"}
    other.page.route("**/api/extend", lambda route: route.fulfill(json=AWAKE | {"modelVersion": "8"}))
    other.page.locator("#extend").click()
    expect(page.locator("#sign-version")).to_have_text("8")
    assert service.looks == before + 1


# ---- answers


def test_the_page_shows_whether_the_model_is_sure(service):
    scores = {"unsure": (0.95, False), "sure": (0.55, True), "old sure": (0.6, None), "old unsure": (0.59, None)}
    service.predict = lambda text: answer(text, scores[text][0], sure=scores[text][1])
    page = service.arrive(AWAKE)
    read(page, "\n".join(scores), lines=True)
    expect(page.locator("#answer tbody tr")).to_have_count(4)
    labels = [tag.get_attribute("data-label") for tag in page.locator("#answer .tag").all()]
    assert labels == ["UNSURE", "POSITIVE", "POSITIVE", "UNSURE"]
    assert text_of(page, "#answer .verdict .share") == "2 positive, 2 not sure"


def test_words_are_marked_at_their_positions_with_their_influence(service):
    text = "😀 good bad weak tiny"
    places = {"good": 0.5, "bad": -0.2, "weak": 0.09, "tiny": 0.011}
    letters = list(text)
    at = {word: "".join(letters).index(word) for word in places}
    why = [{"start": at[word], "end": at[word] + len(word), "influence": value} for word, value in places.items()]
    service.predict = lambda text: answer(text, explanation=why)
    page = service.arrive(AWAKE)
    read(page, text)
    expect(page.locator("#words mark")).to_have_count(2)
    marks = {mark.inner_text(): mark for mark in page.locator("#words mark").all()}
    assert {word: mark.get_attribute("data-label") for word, mark in marks.items()} == {
        "good": "POSITIVE",
        "bad": "NEGATIVE",
    }
    assert [word for word, mark in marks.items() if "strong" in (mark.get_attribute("class") or "")] == ["good"]
    assert text_of(page, "#words") == text
    assert [line.inner_text() for line in page.locator(".why > p").all()[:2]] == [
        "▲ For positive: good +50",
        "▼ For negative: bad −20",
    ]


def test_at_most_ten_words_are_marked(service):
    text = "good " * 12
    why = [{"start": 5 * n, "end": 5 * n + 4, "influence": 0.5} for n in range(12)]
    service.predict = lambda text: answer(text, explanation=why)
    page = service.arrive(AWAKE | {"textLimit": 100})
    read(page, text)
    expect(page.locator("#words mark")).to_have_count(10)


FORMULAS = ["=1+1", "+1", "-1", "@A1", '"quoted", and more', "plain"]


def test_no_table_cell_is_a_formula(service, tmp_path):
    page = service.arrive(AWAKE)
    read(page, "\n".join(FORMULAS), lines=True)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    download.value.save_as(tmp_path / "sentiment.csv")
    rows = (tmp_path / "sentiment.csv").read_bytes().decode("utf-8-sig").split("\r\n")
    assert rows[0] == '"review","label","score","sure","NEGATIVE","POSITIVE"' and rows[-1] == ""
    cells = [row.removesuffix(',"POSITIVE","0.900000","true","0.100000","0.900000"') for row in rows[1:-1]]
    assert cells == ['"\'=1+1"', '"\'+1"', '"\'-1"', '"\'@A1"', '"""quoted"", and more"', '"plain"']


def test_copied_commands_and_links_keep_every_character(service):
    page, text = service.arrive(AWAKE), "It's 100 % #1 & more"
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=HOME)
    read(page, text)
    copied = {}
    for what in ("curl", "link"):
        page.get_by_role("button", name=f"Copy {what}").click()
        expect(page.locator("#tool-text")).to_have_text(f"Copied: {what}.")
        copied[what] = page.evaluate("navigator.clipboard.readText()")
    assert copied["curl"].endswith("""-d '{"inputs": "It'\\''s 100 % #1 & more"}'""")
    page.evaluate("localStorage.clear()")  # the draft, too
    page.goto("about:blank")
    page.goto(copied["link"])
    expect(page.locator("#review")).to_have_value(text)
    assert page.url == HOME and len(service.asked) == 1  # the link is read once and sends nothing


def test_a_link_keeps_the_draft_and_offers_a_way_back(service):
    page = service.arrive(AWAKE)
    page.locator("#review").fill("mine")
    page.evaluate("location.hash = '#review=theirs'")
    expect(page.locator("#review")).to_have_value("theirs")
    page.reload()
    expect(page.locator("#review")).to_have_value("mine")  # the draft was kept
    page.evaluate("location.hash = '#reviews=a%0Ab'")
    expect(page.locator("#counter")).to_have_text("2 of 120 reviews")
    page.get_by_role("button", name="Back to my text").click()
    expect(page.locator("#review")).to_have_value("mine")
    assert not page.locator("#lines").is_checked()


def test_the_history_keeps_thirty_answers_newest_first(service):
    page = service.arrive(AWAKE)
    read(page, "\n".join(f"number {n}" for n in range(35)), lines=True)
    expect(page.locator("#answer tbody tr")).to_have_count(35)
    expect(page.locator("#history li")).to_have_count(30)
    said = page.locator("#history .clamp").all_inner_texts()
    assert (said[0], said[-1]) == ("number 34", "number 5")


# ---- limits


def test_limits_count_visible_characters(service):
    page = service.arrive(AWAKE)
    for text, fault in (
        ("😀" * 50, ""),
        ("😀" * 51, "This is too long: 50 characters at most."),
    ):
        page.locator("#review").fill(text)
        expect(page.locator("#review-error")).to_have_text(fault)
    assert text_of(page, "#counter") == "51 of 50 characters"
    page.locator("#lines").check()
    for count, fault in ((120, ""), (121, "121 reviews are too many at once: 120 at most.")):
        page.locator("#review").fill("x\n" * count)
        expect(page.locator("#review-error")).to_have_text(fault)
    page.locator("#review").fill("fine\n" + "x" * 51)
    expect(page.locator("#review-error")).to_have_text("Line 2 is too long: 50 characters at most.")
    page.locator("#read").click()
    assert service.asked == []


def test_a_long_list_is_sent_in_parts_and_resumes_after_a_failure(service):
    page = service.arrive(AWAKE)
    texts = [f"number {n}" for n in range(120)]
    service.replies = [(200, service.predictions(texts[:50])), (400, {"error": {"code": "odd", "message": "No."}})]
    read(page, "\n".join(texts), lines=True)
    expect(page.locator("#review-error")).to_contain_text("50 of 120 were read, see below. Press again for the rest.")
    page.locator("#read").click()
    expect(page.locator("#answer tbody tr")).to_have_count(120)
    assert [len(body["inputs"]) for body in service.asked] == [50, 50, 50, 20]
    assert [text for body in (service.asked[0], *service.asked[2:]) for text in body["inputs"]] == texts


def test_a_number_of_seven_to_fifteen_digits_needs_consent(service):
    page, consent = service.arrive(ASLEEP), "Please tick this, or remove the number."
    for typed, said in (
        ("+123456", "A few digits are missing."),
        ("+1234567890123456", "That is too long: 15 digits at most."),
        ("1234567890", "Begin with + and the country code, such as +1."),
        *((number, consent) for number in ("+1234567", "+123456789012345", "001 234 567")),
    ):
        page.locator("#phone").fill(typed)
        page.locator("#start").click()
        expect(page.locator("#consent-hint" if said == consent else "#phone-hint")).to_have_text(said)
        assert said == consent or text_of(page, "#consent-hint") == ""


def test_a_status_from_before_the_start_is_ignored_after_a_reload(service):
    page, service.after = service.arrive(ASLEEP | {"at": 1000.0}, clock=True), {"at": 1001.5}
    page.locator("#start").click()
    expect(page.locator("html")).to_have_attribute("data-view", "waking")
    service.status = ASLEEP | {"at": 1000.0}
    page.reload()
    assert service.gap() <= 3
    expect(page.locator("html")).to_have_attribute("data-view", "loading")
    service.status = WAKING | {"at": 1001.6}
    assert service.gap() <= 3
    expect(page.locator("html")).to_have_attribute("data-view", "waking")


@pytest.mark.parametrize("other", [False, True], ids=["the tab that started", "another tab"])
def test_a_status_from_before_the_start_is_ignored(service, other):
    "CloudFront may repeat a status for two seconds after a start."
    page = service.arrive(ASLEEP | {"at": 1000.0}, clock=True)
    if other:
        page.evaluate("() => { const tabs = new BroadcastChannel('model'); tabs.postMessage(1001.5); tabs.close(); }")
    else:
        service.after = {"at": 1001.5}
        page.locator("#start").click()
        expect(page.locator("html")).to_have_attribute("data-view", "waking")
    for at in (1000.0, 1001.4):
        service.status = ASLEEP | {"at": at}
        assert service.gap() < 10
        expect(page.locator("html")).to_have_attribute("data-view", "asleep" if other else "waking")
    service.status = WAKING | {"at": 1001.6}
    assert service.gap() <= 3  # the page asks again soon
    expect(page.locator("html")).to_have_attribute("data-view", "waking")


def test_a_clock_that_was_set_back_does_not_stop_the_page(service):
    page = service.arrive(ASLEEP | {"at": 1_000_000.0}, clock=True)
    service.status = AWAKE | {"at": 1000.0}
    service.gap()
    expect(page.locator("html")).to_have_attribute("data-view", "awake")


TABLES = {
    "x.csv": ("a;b,c;d\n1;so good, really;3\n2;it broke;4", "b,c\nso good, really\nit broke", 2),
    "y.csv": ('text\n"said ""no"""\n', 'said "no"', 1),
    "z.csv": ("stars,comment\n5,ok\n1,a very long other column", "ok\na very long other column", 2),
    "w.csv": ("author,text\nsomebody with a very long name,ok\n", "ok", 2),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_file_is_parsed_with_its_own_separator(service, name):
    content, reviews, column = TABLES[name]
    page = service.arrive(AWAKE)
    page.locator("#file").set_input_files({"name": name, "mimeType": "text/csv", "buffer": content.encode()})
    expect(page.locator("#file-text")).to_contain_text(f"from {name}, column {column}.")
    assert page.locator("#review").input_value() == reviews
