"""Show the local cloud, the page and the model on this machine, or, with --profile or --region, an engine on AWS.

python infra_scripts/status.py
python infra_scripts/status.py --open            # open the page in the browser
python infra_scripts/status.py --region us-east-1
"""

import argparse
import os
import sys
import webbrowser
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import boto3
import httpx
from botocore.exceptions import BotoCoreError, ClientError

from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser, profile, region
from sentiment_engine.costs import standby_worst_day
from sentiment_engine.deploy.account import mask_accounts
from sentiment_engine.deploy.stacks import stack_outputs
from sentiment_engine.local.cloud import LocalCloud
from sentiment_engine.local.processes import ROOT
from sentiment_engine.settings import connect, engine_stack, settings_from

NOTHING = "Nothing is running on this machine. `make demo` starts the engine, `make lab` the notebooks."
EMPTY = "The local cloud contains no engine yet: `make demo` deploys one."


def fetch(url: str) -> dict:
    "Return the JSON at an address. Raises httpx.HTTPError or ValueError."
    here = httpx.URL(url).host == "127.0.0.1"  # calls within this machine must not go through a proxy
    return httpx.get(url, timeout=30, trust_env=not here).raise_for_status().json()


def minutes(seconds: float) -> str:
    "Format a duration."
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def model_row(status: Mapping) -> str:
    "Describe the model's state and deadline."
    if status["state"] == "CREATING":
        return f"waking up for {minutes(status['elapsedSeconds'])}; about {minutes(status['etaSeconds'])} left"
    if status["state"] == "IN_SERVICE" and status["secondsLeft"] is not None:
        until = datetime.fromisoformat(status["shutdownAt"]).astimezone()
        return f"awake until {until:%H:%M}, for {minutes(status['secondsLeft'])}, or longer if used"
    words = {"STOPPED": "asleep", "IN_SERVICE": "awake", "STOPPING": "going to sleep", "FAILED": "failed"}
    said = words.get(status["state"], status["state"])
    return f"{said}: {status['reason']}" if status["reason"] else said


def model_rows(status: Mapping) -> dict[str, str]:
    "Describe the model: its state, what it runs on, and what it costs."
    rows = {"model": model_row(status)}
    place = "a serverless endpoint" if status["endpoint"] == "serverless" else status["instanceType"]
    if status["state"] == "IN_SERVICE" and place:
        rows["runs"] = f"version {status['modelVersion']} on {place}"
    if small := status.get("standby"):  # earlier versions of the engine have none
        most = standby_worst_day(small["dailyTexts"], small["memoryMb"])
        left = f"{small['leftToday']:,} of {small['dailyTexts']:,} texts left today"
        rows["standby"] = f"version {small['modelVersion']}; {left}; ${most:.2f} a day at most"
    if status["spentThisMonth"] is not None:
        rows["cost"] = f"${status['spentThisMonth']:,.4f} this month"
    return rows


def engine_rows(site: str) -> dict[str, str]:  # site: address of the page
    "Request the status of the engine behind a page. Raises httpx.HTTPError or ValueError if it does not answer."
    config = fetch(f"{site.rstrip('/')}/config.json")
    api = f"{site.rstrip('/')}/api"
    status = fetch(f"{api}/status")
    version = {"version": config["version"]} if "version" in config else {}
    return {"API": api} | version | model_rows(status)


def local_rows(cloud: LocalCloud) -> dict[str, str]:
    "Describe the local cloud and the engine in it."
    rows = {"local cloud": cloud.url, "page": cloud.site_url, "SMS inbox": cloud.inbox_url, "log": str(cloud.log)}
    try:
        return rows | engine_rows(cloud.site_url)
    except (httpx.HTTPError, ValueError):
        rows.pop("page")
        return rows | {"model": EMPTY}


def deployed_rows(options: argparse.Namespace) -> dict[str, str]:
    "Describe the engine in an AWS account. Raises LookupError if it is not deployed there."
    connect("aws")  # not while the environment points at the local cloud
    session = boto3.Session(profile_name=options.profile, region_name=options.region)
    outputs = stack_outputs(session.client("cloudformation"), engine_stack(settings_from(os.environ)))
    return {"page": outputs["SiteUrl"]} | engine_rows(outputs["SiteUrl"])


def open_page(url: str):
    "Print an address, and open it in the browser if this machine has a screen."
    print(url)
    if sys.platform == "darwin" or any(os.environ.get(name) for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")):
        webbrowser.open(url)


@tells_cause
def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--profile", type=profile, metavar="NAME", help="profile of the AWS command line")
    parser.add_argument("--region", type=region, metavar="NAME", help="AWS region, such as us-east-1")
    parser.add_argument("--state", type=Path, default=ROOT / ".local-cloud", help="folder of the local cloud")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    options = parser.parse_args()
    cloud = LocalCloud(options.state)
    remote = options.profile or options.region
    if not remote and not cloud.running:
        sys.exit(NOTHING) if options.open else print(NOTHING)
        return
    try:
        rows = deployed_rows(options) if remote else local_rows(cloud)
    except (ValueError, LookupError, BotoCoreError, ClientError, httpx.HTTPError) as e:
        sys.exit(mask_accounts(str(e)))
    if options.open:
        open_page(rows["page"]) if "page" in rows else sys.exit(rows["model"])
    else:
        print("\n".join(f"{name:<13}{value}" for name, value in rows.items()))


if __name__ == "__main__":
    main()
