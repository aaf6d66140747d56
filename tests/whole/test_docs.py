"The documentation site, built and opened in a browser; a broken link fails the build."

import json
import re
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from infra_scripts.make import build_docs as docs
from tests.doubles.chromium import open_browser


class Quiet(SimpleHTTPRequestHandler):
    "A file server that prints nothing."

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):  # its address
    out = tmp_path_factory.mktemp("docs")
    words = [sys.executable, docs.__file__, "--out", out]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=out / "site"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture
def page(browser):
    page, faults = browser.new_page(), []
    page.on("response", lambda r: faults.append(r.url) if r.status >= 400 and "favicon" not in r.url else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    yield page
    page.close()
    assert faults == []


def pictures_without_a_size(page: Page) -> list[str]:
    return page.eval_on_selector_all("article img", "all => all.filter(i => !i.naturalWidth).map(i => i.src)")


@pytest.mark.browser
def test_the_first_page_is_the_readme_with_a_sidebar_of_every_notebook(site, page):
    page.goto(f"{site}/index.html", wait_until="load")
    expect(page.locator("article h1")).to_contain_text("sentiment-engine")
    assert pictures_without_a_size(page) == []
    for part in ("Walkthroughs", "Data", "Model", "Service", "Deployment", "Local cloud"):
        expect(page.locator(".sidebar-tree .caption", has_text=part).first).to_be_visible()
    linked = page.eval_on_selector_all(".sidebar-tree a.reference", "all => all.map(a => a.getAttribute('href'))")
    assert {f"{path.relative_to(docs.ROOT).with_suffix('')}.html" for path in docs.documents()} == set(linked) - {"#"}


@pytest.mark.browser
def test_the_sidebar_links_to_a_notebook_with_plots_and_without_directives(site, page):
    page.goto(f"{site}/index.html")
    page.locator('.sidebar-tree a[href="nbs/model/evaluation.html"]').click()
    expect(page.locator("article h1")).to_be_visible()
    assert pictures_without_a_size(page) == [] and page.locator("article .cell_output img").count() > 2
    assert "#|" not in page.locator("article").inner_text()
    assert "nbdev_export" not in page.locator("article").inner_text()


@pytest.mark.browser
def test_the_search_finds_a_notebook_by_a_word(site, page):
    page.goto(f"{site}/index.html")
    page.locator("input.sidebar-search").fill("reconciler")
    page.locator("input.sidebar-search").press("Enter")
    found = page.locator("#search-results li a")
    expect(found.first).to_be_visible(timeout=30_000)
    assert any("nbs/service/lifecycle" in (link.get_attribute("href") or "") for link in found.all())


@pytest.mark.parametrize("link", ["gone.ipynb", "../gone.md", "model/gone.ipynb#part", "../images/gone.svg"])
def test_a_broken_link_is_reported(link):
    document = docs.ROOT / "nbs" / "01_glue_etl.ipynb"
    with pytest.raises(FileNotFoundError, match=r"nbs/01_glue_etl\.ipynb links to .*gone"):
        docs.with_links(f"Look [there]({link}).", document, set(docs.documents()), "https://example.com")


def test_links_to_code_point_to_the_repository():
    document = docs.ROOT / "nbs" / "service" / "lifecycle.ipynb"
    text = docs.with_links("[t](../../infra_scripts/demo.py) [b](api.ipynb) [w](https://a.example)", document, *KNOWN)
    assert text == "[t](https://x.example/infra_scripts/demo.py) [b](api.ipynb) [w](https://a.example)"


KNOWN = (set(docs.documents()), "https://x.example")


def test_a_notebook_is_shown_without_nbdev_directives():
    sources = ["#| default_exp a.b", "#| export\nx = 1", "#| hide\nimport nbdev", "y = 2", "#|aws\nz = 3"]
    cells = [{"cell_type": "code", "source": source.splitlines(True)} for source in sources]
    assert [cell["source"] for cell in docs.shown_cells({"cells": cells})] == ["x = 1", "y = 2", "z = 3"]


def test_every_picture_in_a_notebook_has_alt_text():
    silent = []
    for path in (p for p in docs.documents() if p.suffix == ".ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            drawn = any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
            if drawn and not cell["metadata"].get("mystnb", {}).get("image", {}).get("alt"):
                silent.append(f"{path.relative_to(docs.ROOT)}: {''.join(cell['source'])[:60]!r}")
    assert silent == []


def test_the_glossary_is_sorted_and_every_term_links_to_a_notebook():
    _, *entries = (docs.ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").split("\n## ")
    terms = [entry.splitlines()[0] for entry in entries]
    assert terms == sorted(terms, key=str.casefold) and len(terms) == len(set(terms)) > 30
    assert [term for term, entry in zip(terms, entries, strict=True) if ".ipynb)" not in entry] == []


def test_links_into_the_glossary_point_to_a_term():
    terms = re.findall("^## (.+)$", (docs.ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    known = {term.lower().replace(" ", "-") for term in terms}
    texts = [path.read_text(encoding="utf-8") for path in docs.documents()]
    linked = {anchor for text in texts for anchor in re.findall(r"glossary\.md#([^)\s]+)\)", text)}
    assert linked and linked <= known


def test_links_in_the_readme_work():
    docs.rendered(docs.ROOT / "README.md", *KNOWN)
    assert Path(docs.__file__).exists()
