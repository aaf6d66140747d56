"The browser for the tests and the screenshots."

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--no-proxy-server"]


def find_chromium() -> str:
    "Return the path of Chromium or Chrome. Raises FileNotFoundError with instructions."
    if chosen := os.environ.get("CHROMIUM"):
        if found := shutil.which(chosen):
            return found
        raise FileNotFoundError(f"CHROMIUM is {chosen}, but there is no such program")
    for name in NAMES:
        if found := shutil.which(name):
            return found
    raise FileNotFoundError(
        "there is no Chromium: run infra_scripts/make/install_chromium.sh, which installs it or says how"
    )


@contextmanager
def open_browser() -> Iterator[Browser]:
    "Start headless Chromium and close it afterwards."
    path = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()
