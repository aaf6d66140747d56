"""Rehearse the first deployment to AWS on this machine, free of charge.

A strict local cloud simulates a brand-new AWS account (nbs/local/strict.ipynb). In it, `acceptance.py` deploys the
whole series with --target aws, visits it and tears it down: first as an administrator, then as the role that
deployer.yaml gives to a GitHub workflow. The environment looks like any AWS user's: a profile with credentials and one
address. Every call is checked against AWS's own description of the service, and moto, an independent emulator, gives a
second opinion on the recording. A table lists what neither could check.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

import boto3
import httpx

from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser, at_least
from sentiment_engine.deploy.phases import FAILURES, explain_failure, stop_on_signals
from sentiment_engine.deploy.stacks import deploy_stack
from sentiment_engine.deploy.visit import PHONE
from sentiment_engine.local.cloud import LocalCloud
from sentiment_engine.local.processes import ROOT
from sentiment_engine.local.requests import read_recording
from sentiment_engine.local.strict import workflow_environment
from sentiment_engine.settings import Settings, textbelt_key_parameter

PLACE = ROOT / ".rehearsal"
REPOSITORY = "owner/name"  # of the workflow that deploys
PREFIXES = {"administrator": "rehearse-admin", "deployer": "rehearse-role"}
ROWS = 3000
REFUSED = ("AccessDenied", "UnauthorizedOperation", "AuthorizationError")


def bare(given: Mapping[str, str]) -> dict[str, str]:
    "Return this environment without variables of AWS or the engine, plus the given ones."
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "SENTIMENT_", "SAGEMAKER_"))}
    return {**kept, **given}


@contextmanager
def acting(given: Mapping[str, str]):
    "Yield a session of the person with these environment variables."
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(bare(given))
    try:
        yield boto3.Session()
    finally:
        os.environ.clear()
        os.environ.update(before)


def make_deployer(cloud: LocalCloud, prefix: str) -> tuple[dict[str, str], str]:  # environment; ARN of the boundary
    "Deploy deployer.yaml as the administrator, as in the runbook, and return what a workflow then gets."
    given = {"Prefix": prefix, "TableName": f"{prefix}-state", "Repository": REPOSITORY}
    with acting(cloud.account_environment()) as session:
        cloudformation, template = session.client("cloudformation"), ROOT / "infra_scripts/templates/deployer.yaml"
        outputs = deploy_stack(cloudformation, f"{prefix}-deployer", template, given, {"Project": prefix})
    environment = workflow_environment(outputs["DeployRole"], cloud.url, cloud.state / "deployer", REPOSITORY)
    return environment, outputs["Boundary"]


def store_key(cloud: LocalCloud, prefix: str):
    "Store a Textbelt key as the administrator, as the README describes."
    with acting(cloud.account_environment()) as session:
        name = textbelt_key_parameter(Settings(prefix=prefix))
        session.client("ssm").put_parameter(Name=name, Value="a-key", Type="SecureString", Overwrite=True)


def messages(cloud: LocalCloud) -> int:
    "Count the text messages that the stand-in for Textbelt received."
    found = httpx.get(f"{cloud.inbox_url}.json", trust_env=False).json()
    return sum(message["to"] == PHONE for message in found)


def rehearse(cloud: LocalCloud, who: str, words: list[str]) -> list[str]:  # what went wrong
    "Deploy, visit and tear down as one person."
    prefix, start = PREFIXES[who], time.monotonic()
    store_key(cloud, prefix)
    environment, own = cloud.account_environment(), []
    if who == "deployer":
        environment, boundary = make_deployer(cloud, prefix)
        own = ["--permissions-boundary", boundary]
    print(f"\n== As the {who}, with {', '.join(sorted(environment))}\n", flush=True)
    command = [sys.executable, str(ROOT / "infra_scripts/checks/acceptance.py"), "--yes", "--stack-prefix", prefix]
    command += ["--textbelt-url", cloud.textbelt_url, "--site-address", cloud.site_url, "--phone", PHONE]
    command += ["--state", str(PLACE / who), "--report", str(PLACE / f"{who}.md"), "--idle-minutes", "1"]
    before = messages(cloud)
    status = subprocess.run([*command, *own, *words], env=bare(environment), check=False).returncode
    sent = messages(cloud) - before
    print(f"\nAs the {who}: {time.monotonic() - start:.0f} s, {sent} text message", flush=True)
    wrong = [f"{who}: the acceptance failed, see {PLACE / who}.md"] if status else []
    return wrong + ([f"{who}: {sent} text messages were sent instead of one"] if sent != 1 else [])


def print_calls(lines: list[dict]) -> list[str]:  # what went wrong
    "Print how many calls each service received, and return those that AWS's own rules forbid."
    # A denied call is not a fault by itself: if a deployment needs the call, the denial ends it. The search for
    # leftovers tries to list more than the deployer may, and the report names what it could not see.
    made: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    denied: defaultdict[str, Counter[str]] = defaultdict(Counter)
    wrong = []
    for line in lines:
        made[line["service"]] += 1
        refused[line["service"]] += bool(line["error"])
        wrong += [f"{line['service']} {line['operation']}: {text}" for text in line["complaints"]]
        if line["error"].startswith(REFUSED):
            denied[line["service"]][line["operation"]] += 1
    print("\n== Calls to the strict cloud\n")
    print(f"{'service':22}{'calls':>8}{'refused':>9}{'against the rules':>19}   denied by a policy")
    for service in sorted(made):
        names = ", ".join(f"{name} ({count})" for name, count in sorted(denied[service].items()))
        broken = sum(text.startswith(f"{service} ") for text in wrong)
        print(f"{service:22}{made[service]:>8}{refused[service]:>9}{broken:>19}   {names}")
    return wrong


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    "Read the command line."
    parser = Parser(description=__doc__)
    parser.add_argument("--as", dest="who", choices=list(PREFIXES), help="rehearse as only one of the two")
    parser.add_argument("--quick", action="store_true", help="deploy the released model, without cleaning and training")
    parser.add_argument("--rows", type=at_least(100), default=ROWS, metavar="N", help=f"reviews to make up ({ROWS:,})")
    parser.add_argument("--keep", action="store_true", help=f"keep {PLACE.name}, with the recording and the logs")
    return parser.parse_args(words)


def second_opinion(recording: Path) -> list[str]:  # what went wrong
    "Ask moto about the recording."
    print("\n== A second opinion\n", flush=True)
    script = ROOT / "infra_scripts/checks/second_opinion.py"
    status = subprocess.run([sys.executable, str(script), str(recording)], env=bare({}), check=False).returncode
    return ["moto refuses calls that the strict cloud accepted"] if status else []


@tells_cause
def main() -> int:  # exit status
    options = parsed()
    stop_on_signals()
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir()
    recording, start, wrong = PLACE / "calls.jsonl", time.monotonic(), []
    words = [] if options.quick else ["--series", "--rows", str(options.rows)]
    try:
        with LocalCloud(PLACE / "cloud", port=0, site_port=0, strict=True, record=recording) as cloud:
            for who in [options.who] if options.who else list(PREFIXES):
                wrong += rehearse(cloud, who, words)
            shutil.copy(cloud.log, PLACE / "cloud.log")
        wrong += print_calls(list(read_recording(recording)))
        wrong += second_opinion(recording)
    except FAILURES as e:
        sys.exit(f"rehearsal: {explain_failure(e)}")
    except KeyboardInterrupt:
        sys.exit("\nrehearsal: interrupted. The local cloud is stopped; No call went to AWS.")
    print(
        f"\nRehearsal: {time.monotonic() - start:.0f} s, "
        + ("everything passed." if not wrong else "not everything passed:")
    )
    print(*(f"  {text}" for text in wrong), sep="\n")
    if not wrong and not options.keep:
        shutil.rmtree(PLACE)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
