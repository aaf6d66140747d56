"`make status`, `make open` and `make logs` show what is running, on this machine and in an account."

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from sentiment_engine import __version__
from sentiment_engine.local.cloud import LocalCloud
from tests import ROOT

STATUS, LOGS = ROOT / "infra_scripts/status.py", ROOT / "infra_scripts/logs.py"
SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")


def run(script: Path, *words: object, **env: str) -> subprocess.CompletedProcess:
    "Run a script on a machine without a screen."
    kept = {name: value for name, value in os.environ.items() if name not in SCREENS}
    command = [sys.executable, str(script), *map(str, words)]
    return subprocess.run(command, env=kept | env, capture_output=True, text=True, timeout=120)


def rows(done: subprocess.CompletedProcess) -> dict[str, str]:
    "Return the output of status.py."
    assert done.returncode == 0, done.stderr
    return {line[:13].strip(): line[13:] for line in done.stdout.splitlines()}


def test_without_a_cloud_the_status_says_what_to_do(tmp_path):
    told = run(STATUS, "--state", tmp_path)
    assert told.returncode == 0 and "Nothing is running" in told.stdout and "make demo" in told.stdout
    for words in ((STATUS, "--open"), (LOGS,)):
        done = run(*words, "--state", tmp_path)
        assert done.returncode == 1 and "make demo" in done.stderr and not done.stdout


def test_without_an_engine_the_status_says_what_to_do(tmp_path):
    with LocalCloud(tmp_path, port=0, site_port=0) as cloud:
        told = rows(run(STATUS, "--state", tmp_path))
        assert told["local cloud"] == cloud.url and "make demo" in told["model"] and "page" not in told
        assert run(STATUS, "--state", tmp_path, "--open").returncode == 1


def test_the_status_shows_the_state_of_the_model(engine):
    engine.use("good")
    engine.sleep()
    told = rows(run(STATUS, "--state", engine.cloud.state))
    assert (told["page"], told["API"], told["model"]) == (engine.site_url, f"{engine.site_url}api", "asleep")
    assert told["local cloud"] == engine.cloud.url and told["version"] == __version__ and "runs" not in told
    engine.call("POST", "/start", {"phone": "+12025550123"})
    engine.wait("IN_SERVICE")
    awake = run(STATUS, "--state", engine.cloud.state)
    assert re.match(r"awake until \d\d:\d\d, for (29|30) minutes", rows(awake)["model"]) and "555" not in awake.stdout
    assert re.match(r"version \S+ on ml\.", rows(awake)["runs"]) and rows(awake)["cost"].startswith("$0.")


def test_the_status_of_an_engine_on_aws_is_shown(engine):
    there = engine.cloud.account_environment()
    told = rows(run(STATUS, "--region", "us-east-1", **there))
    assert told["API"] == f"{engine.site_url}api" and told["model"] and "local cloud" not in told
    nowhere = run(STATUS, "--region", "us-east-1", **there, SENTIMENT_PREFIX="nobody")
    assert nowhere.returncode == 1 and "nobody" in nowhere.stderr and "Traceback" not in nowhere.stderr


def test_the_page_opens_in_a_browser_if_available(engine, tmp_path):
    words = STATUS, "--state", engine.cloud.state, "--open"
    assert run(*words).stdout == f"{engine.site_url}\n"
    browser = tmp_path / "browser"
    browser.write_text(f"#!/bin/sh\necho \"$1\" >'{tmp_path / 'opened'}'\n")
    browser.chmod(0o755)
    assert run(*words, BROWSER=str(browser)).stdout == f"{engine.site_url}\n"
    assert (tmp_path / "opened").read_text() == f"{engine.site_url}\n"


@pytest.fixture
def asked(engine):
    "An engine that was just asked for its status."
    assert httpx.get(f"{engine.api_url}/status").status_code == 200
    return engine


def test_logs_from_all_sources_are_shown_newest_first(asked):
    few = run(LOGS, "--state", asked.cloud.state, "--lines", 5).stdout.splitlines()
    every = run(LOGS, "--state", asked.cloud.state, "--lines", 100_000).stdout
    assert len(few) == 5 and all(re.match(r"\d\d:\d\d:\d\d  \S", line) for line in few)
    assert every.find(few[0]) < every.find(few[-1])
    assert "  cloud  " in every and "  is-model-service-running  " in every


def test_logs_can_be_limited_to_one_function(asked):
    text = run(LOGS, "--state", asked.cloud.state, "--function", "is-model").stdout
    assert text and all("  is-model-service-running  " in line for line in text.splitlines())
    assert run(LOGS, "--state", asked.cloud.state, "--function", "nothing").stdout == ""


def test_logs_can_be_followed(asked):
    words = [sys.executable, LOGS, "--state", asked.cloud.state, "--follow", "--function", "is-model", "--lines", "1"]
    with subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, text=True) as following:
        limit = threading.Timer(60, following.kill)
        limit.start()
        following.stdout.readline()  # the last line so far
        httpx.get(f"{asked.api_url}/status")
        assert "is-model-service-running" in following.stdout.readline()
        limit.cancel()
        following.kill()
