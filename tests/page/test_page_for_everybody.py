"The page on small screens, by keyboard, without motion, and under the rules of axe."

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Route, expect

from tests.doubles.visitor import COMPLAINT, PRAISE, ask, guarded

pytestmark = pytest.mark.browser


# ---- every visitor


def fits(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("width", [320, 768, 1440])
def test_no_page_scrolls_sideways(visitor, awake, width):
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
    "Return axe's violations, and any sideways scrolling on the narrowest phone."
    found = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for each in Axe().run(page).response["violations"]:
            found += [f"{state}, {scheme}: {each['id']}: {node['html'][:200]}" for node in each["nodes"]]
    page.set_viewport_size({"width": 320, "height": 700})
    found += [] if fits(page) else [f"{state} scrolls sideways at 320 px"]
    page.set_viewport_size({"width": 1100, "height": 900})
    return found


def test_axe_finds_nothing_during_a_visit(plain, engine, asleep):
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


def test_axe_finds_nothing_at_an_unknown_address(browser, engine):
    page = browser.new_page()
    page.goto(f"{engine.site_url}a/page/that/is/not/there")
    expect(page.get_by_role("heading", name="There is no such page")).to_be_visible()
    assert page.evaluate("getComputedStyle(document.body).maxWidth") != "none"  # its style was loaded
    assert violations(page, "unknown address") == []
    page.get_by_role("link").click()
    expect(page).to_have_title(re.compile("The model that sleeps"))
    page.close()


def answering(status: int):
    "Make a route answer with an HTTP status and nothing else."

    def answer(route: Route):
        route.fulfill(status=status, body="")

    return answer


def test_axe_finds_nothing_while_errors_are_shown(plain, engine, asleep):
    plain.tolerated = ("Failed to load resource", "ERR_INTERNET_DISCONNECTED", "402 (Payment Required)")
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
    expect(page.locator("#title")).to_have_text("This page is not set up")
    assert found + violations(page, "not set up") == []


def test_axe_detects_deliberate_violations(plain, asleep):
    "axe finds a missing label and a grey that is too pale; otherwise the tests above prove nothing."
    page = plain.arrive("asleep")
    page.evaluate("document.querySelector('label[for=review]').remove(); lead.style.color = '#bbb'")
    found = violations(page, "broken")
    assert any("color-contrast" in each for each in found) and any("label" in each for each in found)


def tab_to(page: Page, name: str):
    "Press Tab until the control with this name has a visible focus. Fails if it cannot be reached."
    for _ in range(40):
        page.keyboard.press("Tab")
        here = page.evaluate("""(() => { const n = document.activeElement, label = n.labels?.[0]?.textContent;
            return [n.id, n.textContent.trim(), label ?? '', getComputedStyle(n).outlineStyle]; })()""")
        assert here[3] == "solid", f"{here} does not show that it has the focus"
        if name in here[:3] or here[1].startswith(name):
            return
    raise AssertionError(f"{name} cannot be reached with Tab")


def test_the_tab_order_follows_the_page(visitor, asleep):
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


def test_a_visit_needs_only_the_keyboard(visitor, engine, asleep):
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


def test_every_control_has_a_name_and_there_is_one_main_heading(visitor, awake):
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


def test_reduced_motion_disables_animations(plain, visitor, asleep):
    page = plain.arrive("asleep")
    assert page.evaluate(MOVING) == 0 and visitor.arrive("asleep").evaluate(MOVING) > 5
    page.get_by_role("button", name="Wake the model").click()
    plain.see("waking")
    assert page.evaluate(MOVING) == 0
    plain.see("awake")
    assert page.evaluate(MOVING) == 0


def test_the_layout_is_stable_while_the_page_loads(visitor, asleep):
    page = visitor.page
    page.add_init_script("""window.shift = 0; new PerformanceObserver((list) => { for (const e of list.getEntries())
        if (!e.hadRecentInput) shift += e.value; }).observe({type: 'layout-shift', buffered: true});""")
    visitor.arrive("asleep")
    page.wait_for_timeout(1500)
    assert page.evaluate("shift") < 0.05


def test_the_layout_is_stable_when_an_answer_arrives(visitor, awake):
    page = visitor.arrive("awake")
    top = "document.querySelector('#examples-box').getBoundingClientRect().top + scrollY"
    before = page.evaluate(top)
    ask(page, PRAISE)
    expect(page.locator("#answer .verdict")).to_be_visible()
    assert page.evaluate(top) == before
