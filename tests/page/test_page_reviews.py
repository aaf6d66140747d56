"The page while the model is awake: reviews, files, answers, words, links."

import json
import re
import subprocess
import sys

import pytest
from playwright.sync_api import Page, expect

from tests.doubles.visitor import COMPLAINT, PRAISE, ask, marks, predictions, text_of

pytestmark = pytest.mark.browser


# ---- awake


def test_several_reviews_are_read_one_per_line(visitor, awake, tmp_path):
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


def test_reviews_are_read_from_a_csv_file(visitor, awake):
    page = visitor.arrive("awake")
    page.locator("#file").set_input_files({"name": "mine.csv", "mimeType": "text/csv", "buffer": CSV.encode()})
    expect(page.locator("#file-text")).to_have_text("2 reviews from mine.csv, column 2.")
    assert page.locator("#review").input_value() == 'Lovely; warm, and "fantastic"\nIt broke. Terrible.'
    page.locator("#review").fill("")
    page.locator("#file").set_input_files({"name": "mine.csv", "mimeType": "text/csv", "buffer": CSV.encode()})
    expect(page.locator("#counter")).to_have_text("2 of 1,000 reviews")  # the same file once more
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
        ("stars,text\r\r\n5,so good\r\r\n1,so bad\r\r\n", "so good\nso bad", "2 reviews from x.csv, column 2."),
        ("text\rone\rtwo", "one\ntwo", "2 reviews from x.csv, column 1."),
        ("text\nIt broke, terrible", "It broke, terrible", "1 review from x.csv, column 1."),
        ('"Warm, lovely"\n"It broke, terrible"', "Warm, lovely\nIt broke, terrible", "2 reviews from x.csv, column 1."),
        (
            "stars,text\n5,It broke, terrible",
            "It broke",
            "1 row has more cells than the first: quote text with commas.",
        ),
        ("text\nL\ufffdvely", "L\ufffdvely", "Some letters were lost: save the file as UTF-8."),
        ('text\n"never closed', '"never closed', "1 review from x.csv, column 1."),
        ("text,stars\n", "", "No reviews were found in this file."),
        ("", "", "No reviews were found in this file."),
        ("x" * 5_000_001, "", "This file is too large: 5 MB at most."),
        ("text\n<img src=x onerror=seen.ran.push(1)>", "<img src=x onerror=seen.ran.push(1)>", "1 review from"),
    ],
    ids=[
        "no table",
        "no header",
        "tabs",
        "two returns",
        "old Mac",
        "one column",
        "quoted",
        "too wide",
        "lost",
        "quotes",
        "header only",
        "empty",
        "too large",
        "attack",
    ],
)
def test_any_file_can_be_dropped_safely(visitor, asleep, table, reviews, said):
    page = visitor.arrive("asleep")
    assert page.evaluate(DROP, ["x.csv", table]) is False  # accepted: the browser does not navigate to it
    expect(page.locator("#review-form")).to_contain_text(said)
    assert page.locator("#review").input_value() == reviews
    assert page.evaluate("seen.ran") == [] and page.locator("#review-form img").count() == 0


def test_a_text_file_is_not_split_at_commas_and_a_folder_is_refused(visitor, engine):
    visitor.hear(engine, "STOPPED")
    page = visitor.arrive("asleep")
    page.evaluate(DROP, ["x.txt", "It broke, terrible\nSo good, really"])
    expect(page.locator("#file-text")).to_have_text("2 reviews from x.txt, column 1.")
    assert page.locator("#review").input_value() == "It broke, terrible\nSo good, really"
    page.evaluate("() => { Blob.prototype.text = () => Promise.reject(new DOMException('', 'NotReadableError')); }")
    page.evaluate(DROP, ["x.csv", "a folder, or what was deleted meanwhile"])
    expect(page.locator("#review-error")).to_have_text("This file cannot be read.")


@pytest.mark.parametrize("piece", ["good word ", '"",', '""', '"a""",', "a,", "\r\n,"])
def test_a_large_file_of_any_content_is_read_or_refused(visitor, engine, piece):
    visitor.hear(engine, "STOPPED")
    page = visitor.arrive("asleep")
    page.evaluate(f"([name, text]) => ({DROP})([name, text.repeat(4.8e6 / text.length)])", ["x.csv", piece])
    expect(page.locator("#file-text, #review-error").filter(has_text=" ")).not_to_have_count(0, timeout=20_000)


def test_too_many_reviews_in_a_file_are_reported(visitor, awake):
    page = visitor.arrive("awake")
    page.evaluate(DROP, ["x.csv", "good\n" * 1001])
    expect(page.locator("#review-error")).to_have_text("1,001 reviews are too many at once: 1,000 at most.")
    page.locator("#read").click()
    assert predictions(visitor) == 0


def test_an_interrupted_list_keeps_the_answers_so_far(visitor, awake):
    visitor.tolerated = ("Failed to load resource",)
    page = visitor.arrive("awake")
    page.locator("#lines").check()
    page.locator("#review").fill("\n".join(f"number {i} is good" for i in range(120)))
    page.route("**/predict", lambda route: route.continue_() if predictions(visitor) < 3 else route.fulfill(status=504))
    page.get_by_role("button", name="Read them").click()
    said = "100 of 120 were read, see below. Press again for the rest. Your text is kept."
    expect(page.locator("#review-error")).to_contain_text(said)
    expect(page.locator("#answer tbody tr")).to_have_count(100)
    page.unroute("**/predict")
    page.get_by_role("button", name="Read them").click()
    expect(page.locator("#answer tbody tr")).to_have_count(120)
    assert predictions(visitor) == 4  # only the rest


def test_a_busy_model_is_retried(visitor, awake):
    visitor.tolerated = ("Failed to load resource",)
    page = visitor.arrive("awake")
    busy = {"error": {"code": "busy", "message": "The model is busy.", "retryAfterSeconds": 0.3}}
    page.route("**/predict", lambda route: route.fulfill(status=503, json=busy), times=2)
    ask(page, COMPLAINT)
    expect(page.locator("#read-hint")).to_have_text("It is busy: next try in 1 s.")
    expect(page.locator("#answer .verdict strong")).to_have_text("Negative")
    assert predictions(visitor) == 3 and text_of(page, "#review-error") == ""


SERVERLESS = dict.fromkeys(("runId", "startedAt", "instanceType", "elapsedSeconds", "costSoFar", "pricePerHour"))
SERVERLESS |= {"shutdownAt": None, "secondsLeft": None, "endpoint": "serverless"}


def wakes(seconds: float) -> dict:
    "Return the service's answer while a serverless model is loading."
    return {"error": {"code": "waking", "message": "The model is waking up.", "retryAfterSeconds": seconds}}


def test_a_waking_serverless_model_is_retried_until_it_answers(visitor, engine, awake):
    visitor.tolerated = ("Failed to load resource",)
    page = visitor.arrive("awake")
    visitor.hear(engine, "IN_SERVICE", **SERVERLESS)
    page.reload()
    expect(page.locator("#lead")).to_contain_text("After a pause, the first answer can take a minute.")
    page.route("**/predict", lambda route: route.fulfill(status=503, json=wakes(1.5)), times=6)  # longer than busy may
    ask(page, COMPLAINT)
    hint = "It wakes up after a pause, which can take a minute: next try in 2 s, after 0:00."
    expect(page.locator("#read-hint")).to_have_text(hint)
    expect(page.locator("#announce")).to_contain_text(
        "It wakes up after a pause, which can take a minute. Your text is kept."
    )
    assert page.locator("#review").input_value() == COMPLAINT
    expect(page.locator("#trouble")).to_be_hidden()
    expect(page.locator("#read-hint")).to_have_text(re.compile("after 0:0[1-9]"))
    expect(page.locator("#answer .verdict strong")).to_have_text("Negative")
    expect(page.locator("#read-hint")).to_have_text("or press Ctrl + Enter")
    assert predictions(visitor) == 7 and text_of(page, "#review-error") == ""


def test_retries_of_a_serverless_model_end_and_the_text_is_kept(visitor, engine):
    visitor.tolerated = ("Failed to load resource",)
    visitor.page.clock.install()
    visitor.hear(engine, "IN_SERVICE", **SERVERLESS)
    page = visitor.arrive("awake")
    page.route("**/predict", lambda route: route.fulfill(status=503, json=wakes(50)))
    ask(page, COMPLAINT)
    for n in range(1, 4):
        expect(page.locator("#read-hint")).to_contain_text("next try in 50 s, after")
        assert predictions(visitor) == n and text_of(page, "#review-error") == ""
        page.clock.run_for(51_000)
    expect(page.locator("#review-error")).to_contain_text("did not wake up")
    said = text_of(page, "#review-error")
    assert said == "The model did not wake up within 3 minutes. Try again later. Your text is kept."
    assert page.locator("#review").input_value() == COMPLAINT
    expect(page.locator("#read")).to_have_attribute("aria-disabled", "false")


def test_an_explanation_is_retried_while_a_serverless_model_wakes_up(visitor, awake):
    visitor.tolerated = ("Failed to load resource",)
    visitor.page.clock.install()
    page = visitor.arrive("awake")
    ask(page, "A good sound.")
    why = page.get_by_role("button", name="Which words count?")
    why.wait_for()
    page.clock.fast_forward(240_000)  # after a pause
    page.route("**/predict", lambda route: route.fulfill(status=503, json=wakes(1)), times=1)
    why.click()
    expect(page.locator("#tool-text")).to_contain_text("It wakes up after a pause")
    page.clock.run_for(1100)
    expect(page.locator("#words")).to_be_focused()


def test_a_timeout_of_a_warm_serverless_model_is_not_a_cold_start(visitor, engine, awake):
    "The model is awake, but the request takes too long."
    visitor.tolerated = ("Failed to load resource",)
    page = visitor.arrive("awake")
    visitor.hear(engine, "IN_SERVICE", **SERVERLESS)
    page.reload()
    ask(page, PRAISE)
    expect(page.locator("#answer .verdict strong")).to_have_text("Positive")
    before = predictions(visitor)
    page.route("**/predict", lambda route: route.fulfill(status=503, json=wakes(1)))
    ask(page, COMPLAINT)
    expect(page.locator("#read-hint")).to_have_text("It is busy: next try in 1 s.")
    advice = "The model did not answer in time. Send fewer or shorter texts. Your text is kept."
    expect(page.locator("#review-error")).to_have_text(advice)
    assert predictions(visitor) == before + 2
    page.get_by_role("button", name="Which words count?").click()
    expect(page.locator("#tool-text")).to_have_text(advice.removesuffix(" Your text is kept."))


def test_influential_words_are_marked_on_request(visitor, awake):
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


def test_marked_words_belong_to_the_visible_answer(visitor, awake):
    page, held = visitor.arrive("awake"), []
    ask(page, PRAISE)
    why = page.get_by_role("button", name="Which words count?")
    why.click()
    expect(page.locator("#words")).to_be_visible()
    page.locator("#history button").click()  # the earlier answer
    expect(page.locator("#answer .stored")).to_be_visible()
    before = predictions(visitor)
    why.dblclick()
    expect(page.locator("#words")).to_be_visible()
    expect(page.locator("#answer .stored")).to_have_count(0)  # it was answered again, with its words
    assert predictions(visitor) == before + 1
    ask(page, PRAISE)
    page.route("**/predict", lambda route: held.append(route), times=1)
    why.click()
    ask(page, COMPLAINT)
    expect(page.locator("#answer .verdict strong")).to_have_text("Negative")
    with page.expect_response("**/predict"):
        held.pop().continue_()
    page.wait_for_timeout(200)
    assert page.locator("#words").count() == 0 and text_of(page, "#answer .verdict strong") == "Negative"


def test_an_answer_without_a_decisive_word_is_explained(visitor, awake):
    page = visitor.arrive("awake")
    ask(page, "The thing arrived on a day.")
    page.get_by_role("button", name="Which words count?").click()
    expect(page.locator(".why")).to_contain_text("No single word decides")
    assert marks(page) == {}


@pytest.mark.parametrize("known", [0, 1])
def test_a_partial_explanation_is_labelled(visitor, awake, known):
    page = visitor.arrive("awake")
    ask(page, PRAISE)

    def partly(route):
        reply = route.fetch()
        told = reply.json()
        (prediction,) = told["predictions"]
        prediction |= {"partial": True, "explained": 0.2999, "explanation": prediction["explanation"][:known]}
        route.fulfill(response=reply, json=told)

    page.route("**/predict", partly)
    page.get_by_role("button", name="Which words count?").click()
    expect(page.locator(".why")).to_contain_text("Time ran out: 29 % of the words were tried.")
    expect(page.locator(".why")).not_to_contain_text("no single word")


def test_a_failed_explanation_keeps_the_answer(visitor, engine, awake):
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


def test_copied_code_sends_the_same_request(visitor, engine, awake):
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


def test_a_link_fills_in_the_text_without_sending_it(visitor, engine, awake):
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
    page.locator("#review").fill("a draft")
    page.evaluate("location.hash = '#reviews=one%0Atwo'")
    expect(page.locator("#counter")).to_have_text("2 of 1,000 reviews")
    page.evaluate("location.hash = '#review=%E0%A4%A'")
    expect(page.locator("#review-error")).to_have_text("This link is incomplete.")
    page.evaluate("location.hash = '#main'")
    assert page.locator("#review").input_value() == "one\ntwo" and predictions(visitor) == before
    page.get_by_role("button", name="Back to my text").click()
    assert page.locator("#review").input_value() == "a draft"


def test_a_long_list_is_sent_in_parts(visitor, awake):
    page = visitor.arrive("awake")
    page.locator("#lines").check()
    page.locator("#review").fill("\n".join(f"number {i} is good" for i in range(120)))
    page.get_by_role("button", name="Read them").click()
    expect(page.locator("#answer tbody tr")).to_have_count(120)
    assert predictions(visitor) == 3


def test_an_invalid_answer_is_reported(visitor, awake):
    page = visitor.arrive("awake")
    ask(page, "The thing arrived on a day.")
    expect(page.locator("#answer .verdict strong")).to_contain_text("Not sure, leaning")


def test_the_model_version_and_certainty_are_shown(visitor, awake):
    "The answer states how sure it is and how many parts were read, so the page need not guess from the share."
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


def test_limits_are_shown_before_anything_is_sent(visitor, awake):
    page = visitor.arrive("awake")
    page.locator("#read").click()
    expect(page.locator("#review-error")).to_have_text("Write or paste a review first.")
    page.locator("#review").fill("x" * 10_001)
    expect(page.locator("#counter")).to_have_text("10,001 of 10,000 characters")
    expect(page.locator("#review-error")).to_contain_text("10,000 characters at most")
    page.locator("#read").click()
    page.locator("#review").fill("🎸" * 10_000)  # counted like the service does
    expect(page.locator("#review-error")).to_be_hidden()
    assert predictions(visitor) == 0


def test_polling_does_not_keep_the_model_awake(visitor, engine, awake):
    deadline = engine.call("GET", "/status")["shutdownAt"]
    page = visitor.arrive("awake")
    for _ in range(3):
        page.evaluate("dispatchEvent(new Event('online'))")
        page.wait_for_timeout(300)
    assert engine.call("GET", "/status")["shutdownAt"] == deadline


def test_a_review_sent_after_the_model_fell_asleep_is_kept(visitor, engine, awake):
    visitor.tolerated = ("409 (Conflict)", "status of 409")
    page = visitor.arrive("awake")
    engine.sleep()
    ask(page, COMPLAINT)
    visitor.see("asleep")
    expect(page.locator("#review-error")).to_contain_text("no longer awake. Your text is kept")
    assert page.locator("#review").input_value() == COMPLAINT
    visitor.hear(engine, "IN_SERVICE")
    page.evaluate("dispatchEvent(new Event('online'))")
    visitor.see("awake")
    expect(page.locator("#review-error")).to_have_text("")


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
    assert page.evaluate("localStorage.getItem('past')") == "[]" and PRAISE not in page.evaluate("localStorage.draft")
    assert page.locator("#review").input_value() == "" and PRAISE not in page.content()


def test_a_browser_without_storage_works(visitor, awake):
    refuse = "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError'); }})"
    visitor.context.add_init_script(refuse)
    page = visitor.arrive("awake")
    ask(page, PRAISE)
    expect(page.locator("#answer .verdict strong")).to_have_text("Positive")
    page.reload()
    visitor.see("awake")
    assert page.locator("#review").input_value() == ""
