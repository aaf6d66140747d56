"`make lab` opens the notebooks with the local cloud, and leaves no process behind."

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from jupyter_client import BlockingKernelClient
from playwright.sync_api import expect

from tests import ROOT
from tests.doubles.local_models import until

LAB = """
import sys
from pathlib import Path
from infra_scripts import lab
from sentiment_engine.deploy import phases
lab.ROOT = phases.ROOT = Path(sys.argv.pop(1))
lab.main()
"""
ASK = """
import boto3, json, os
from sentiment_engine.settings import connect, settings_from
told = [os.getpid(), connect("local").client("sts").get_caller_identity()["Arn"]]
print(json.dumps([*told, settings_from(os.environ).textbelt_url, os.environ["AWS_ENDPOINT_URL"]]))
"""


def answers(url: str) -> bool:
    "Check whether a server listens."
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except urllib.error.URLError:
        return False


def ask_kernel(address: str, token: str, runtime: Path) -> list:
    "Open a notebook's kernel and return its environment."
    until(lambda: answers(f"{address}/api"))
    about = {"path": "nbs/index.ipynb", "type": "notebook", "name": "", "kernel": {"name": "python3"}}
    request = urllib.request.Request(f"{address}/api/sessions", json.dumps(about).encode())
    request.add_header("Authorization", f"token {token}")
    kernel = json.load(urllib.request.urlopen(request, timeout=30))["kernel"]["id"]
    client, said = BlockingKernelClient(connection_file=str(runtime / f"kernel-{kernel}.json")), []
    client.load_connection_file()
    client.start_channels(hb=False)  # a busy machine misses heartbeats, and the kernel would count as dead
    client.wait_for_ready(timeout=60)
    client.execute_interactive(ASK, timeout=60, output_hook=lambda m: said.append(m["content"].get("text", "")))
    client.stop_channels()
    return json.loads("".join(said))


def lives(pid: int) -> bool:
    "Check whether a process runs."
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


WAYS = {  # the terminal signals every process of the group
    "Ctrl-C": lambda pid: os.killpg(pid, signal.SIGINT),
    "a closed terminal": lambda pid: os.killpg(pid, signal.SIGHUP),
    "a signal to the program": lambda pid: os.kill(pid, signal.SIGTERM),
}


@contextmanager
def running_lab(tmp_path: Path) -> Iterator[tuple[subprocess.Popen, Path, str]]:  # the program, its log, its address
    "Open the notebooks of a checkout that contains only the index, without a browser."
    folder, log = tmp_path / "a folder ä", tmp_path / "log"
    (folder / "nbs").mkdir(parents=True)
    shutil.copy(ROOT / "nbs/index.ipynb", folder / "nbs")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/config").write_text("[profile work]\nendpoint_url = http://127.0.0.1:9\n")
    own = {"JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"), "HOME": str(tmp_path), "AWS_PROFILE": "work"}
    words = [sys.executable, "-c", LAB, str(folder), "--port", "0", "--site-port", "0", "--no-browser"]
    with log.open("wb") as out:
        streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out}
        env = os.environ | own | {"PYTHONPATH": str(ROOT)}
        lab = subprocess.Popen(words, cwd=ROOT, env=env, start_new_session=True, **streams)
    try:
        address = r"(http://127\.0\.0\.1:\d+/lab\S*token=\w+)\s"
        yield lab, log, until(lambda: re.search(address, log.read_text()), 90)[1]
    finally:
        lab.terminate()
        lab.wait(60)


@pytest.mark.parametrize("way", WAYS)
def test_the_lab_opens_the_notebooks_with_a_running_cloud_and_stops_it(tmp_path, way):
    runtime = tmp_path / "runtime"
    with running_lab(tmp_path) as (lab, log, found):
        place = json.loads((tmp_path / "a folder ä/.local-cloud/cloud.json").read_text())
        url = f"http://127.0.0.1:{place['port']}"
        kernel, *told = ask_kernel(found.partition("/lab")[0], found.partition("token=")[2], runtime)
        assert told == ["arn:aws:iam::000000000000:root", f"{url}/_textbelt", url]
        WAYS[way](lab.pid)
        assert lab.wait(30) == 0 and "Stopped." in log.read_text(), log.read_text()
    assert not lives(kernel) and not lives(place["pid"])
    assert not list(runtime.glob("jpserver-*")) and not list(runtime.glob("kernel-*"))


def test_a_jupyterlab_that_does_not_exit_is_killed():
    stubborn = "from signal import *; import time; signal(SIGTERM, SIG_IGN); print(1, flush=True); time.sleep(600)"
    command = f"import sys, lab; lab.open_lab([sys.executable, '-c', {stubborn!r}], patience=0.1)"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "infra_scripts")])}
    words = [sys.executable, "-c", command]
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as program:
        program.stdout.readline()  # it runs
        program.send_signal(signal.SIGINT)
        program.wait(60)
        assert program.stdout.read() == b""  # end of file: no process has it open any more


@pytest.mark.browser
def test_the_address_that_the_lab_prints_opens_the_index(tmp_path, browser):
    with running_lab(tmp_path) as (_, _, address):
        page = browser.new_page()
        page.goto(address)
        expect(page.locator(".jp-NotebookPanel h1").first).to_contain_text("sentiment-engine")
        assert page.title().startswith("index.ipynb")
        expect(page.locator(".jp-Notebook-ExecutionIndicator").first).to_have_attribute("data-status", "idle")
        page.close()
