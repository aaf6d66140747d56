"""Run the whole engine on this machine until Ctrl-C: the local cloud, the model's lifecycle and the page."""

import json
import os
import sys
import time

import boto3

from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser
from sentiment_engine.deploy.endpoint import RegisteredModel, current_model
from sentiment_engine.deploy.phases import (
    FAILURES,
    add_options,
    add_ports,
    chosen_parameters,
    deploy,
    explain_failure,
    local_cloud,
    stop_on_signals,
)
from sentiment_engine.deploy.stacks import stack_outputs
from sentiment_engine.deploy.target import add_endpoint_options, chosen_endpoint
from sentiment_engine.local.cloud import LocalCloud
from sentiment_engine.local.processes import ROOT
from sentiment_engine.settings import foundation_stack, settings_from


def told_reviews(lake: str) -> str:
    "Describe how many reviews the model was trained on, and why others were dropped."
    report = json.load(boto3.client("s3").get_object(Bucket=lake, Key="reports/etl.json")["Body"])
    left_out = {"repeats": report["repeats"]} | report["rejected"]
    reasons = ", ".join(f"{rows:,} {reason.replace('_', ' ')}" for reason, rows in left_out.items() if rows)
    return f"{report['kept']:,} of {report['read']:,} reviews kept; left out: {reasons or 'none'}"


def told_model(model: RegisteredModel) -> str:
    "Return which model a start deploys, and its accuracy."
    which = "the released model" if "/models/released/" in model.artifact else "the model trained here"
    return f"you will wake {which}: accuracy {model.accuracy:.3f} on its test reviews"


def tell(taught: bool):
    "Print the parts of the engine."
    settings = settings_from(os.environ)
    if taught:
        print(told_reviews(stack_outputs(boto3.client("cloudformation"), foundation_stack(settings))["LakeBucket"]))
    if model := current_model(boto3.client("ssm"), settings):
        print(told_model(model), flush=True)


def told_state() -> str:
    "Return what a visitor of the page can do first."
    settings = settings_from(os.environ)
    if settings.endpoint != "realtime":
        return "The model is always awake: open the page."
    return f"The model is asleep: open the page and {'ask the small model, or ' if settings.standby else ''}wake it."


def serve(cloud: LocalCloud, started: float, ours: bool):  # ours: whether this program started the cloud
    "Print the addresses and wait for Ctrl-C."
    print(f"\nReady after {time.monotonic() - started:.0f} s. {told_state()}\n")
    print(f"  the page   {cloud.site_url}")
    print(f"  SMS inbox  {cloud.inbox_url}")
    print(f"  the cloud  {cloud.url}   (AWS_ENDPOINT_URL)")
    stops = "stops everything; the model and all data stay for the next run"
    print(f"\nCtrl-C {stops if ours else 'leaves it running, because another program started it'}.", flush=True)
    while cloud.running:
        time.sleep(1)
    raise SystemExit(f"the local cloud stopped by itself; its log is {cloud.log}")


@tells_cause
def main():
    parser = Parser(description=__doc__)
    add_options(parser)
    add_endpoint_options(parser)
    add_ports(parser)
    parser.add_argument("--exit", action="store_true", help="stop as soon as the page is served")
    options = parser.parse_args()
    stop_on_signals()
    started, ours = time.monotonic(), not LocalCloud(ROOT / ".local-cloud").running
    try:
        os.environ.update(chosen_endpoint(options))
        parameters = chosen_parameters(options)
        with local_cloud(ports=options) as cloud:
            since = f"is up at {cloud.url} after {time.monotonic() - started:.1f} s"
            print(f"the local cloud {since if ours else f'is already running at {cloud.url}'}", flush=True)
            deploy("local", **parameters)
            tell(taught=options.model != "released")
            if not options.exit:
                serve(cloud, started, ours)
    except FAILURES as e:
        sys.exit(explain_failure(e))
    except KeyboardInterrupt:
        print("\nStopped; " + ("nothing is running any more." if ours else "the local cloud keeps running."))


if __name__ == "__main__":
    main()
