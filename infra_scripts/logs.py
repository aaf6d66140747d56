"""Print the logs of the local cloud and of its Lambdas and endpoints, newest line first.

python infra_scripts/logs.py --function start    # only the Lambdas with this in their name
python infra_scripts/logs.py --follow            # the last lines, then each new one as it arrives
"""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser, at_least
from sentiment_engine.local.cloud import LocalCloud
from sentiment_engine.local.processes import ROOT
from sentiment_engine.settings import settings_from

GROUPS = "/aws/lambda/", "/aws/sagemaker/Endpoints/"
NOISE = "START RequestId", "END RequestId"  # REPORT repeats their content
Line = tuple[float, str, str]  # seconds since the epoch, source, text


def cloud_lines(cloud: LocalCloud) -> Iterator[Line]:
    "Read the log of the cloud itself. A line without a time, as in a traceback, gets the time of the line before it."
    at = 0.0
    for text in cloud.log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            at = datetime.strptime(text[:19], "%Y-%m-%d %H:%M:%S").astimezone().timestamp()
            text = text[20:]
        except ValueError:
            pass
        yield at, "cloud", text


def group_lines(logs, function: str) -> Iterator[Line]:  # logs: boto3 client; function: part of a Lambda's name
    "Read the logs of the Lambdas and endpoints of the engine."
    prefix = settings_from(os.environ).prefix
    for start in GROUPS[:1] if function else GROUPS:
        pages = logs.get_paginator("describe_log_groups").paginate(logGroupNamePrefix=f"{start}{prefix}-")
        for group in pages.search("logGroups[].logGroupName"):
            source = ("endpoint " if "Endpoints" in start else "") + group.removeprefix(f"{start}{prefix}-")
            if function not in source:
                continue
            events = logs.get_paginator("filter_log_events").paginate(logGroupName=group).search("events[]")
            yield from ((e["timestamp"] / 1000, source, e["message"]) for e in events)


def all_lines(cloud: LocalCloud, options: argparse.Namespace) -> list[Line]:  # oldest first
    "Read every log."
    lines = list(group_lines(cloud.root_client("logs"), options.function))
    lines += [] if options.function else cloud_lines(cloud)
    return sorted((line for line in lines if not line[2].startswith(NOISE)), key=lambda line: line[0])


def show(lines: list[Line]):
    "Print lines with their local time and their source."
    for at, source, text in lines:
        print(f"{datetime.fromtimestamp(at).astimezone():%H:%M:%S}  {source}  {text.rstrip()}", flush=True)


def follow(cloud: LocalCloud, options: argparse.Namespace):
    "Print the last lines, then each new one, until Ctrl-C or until the cloud stops."
    shown = all_lines(cloud, options)
    show(shown[-options.lines :])
    while cloud.running:
        time.sleep(1)
        now = all_lines(cloud, options)
        show(list((Counter(now) - Counter(shown)).elements()))
        shown = now
    print("The local cloud has stopped.")


@tells_cause
def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--follow", action="store_true", help="print new lines as they arrive, oldest first")
    parser.add_argument("--function", default="", metavar="NAME", help="a Lambda, or a part of its name")
    parser.add_argument("--lines", type=at_least(1), default=100, metavar="N", help="number of lines (%(default)s)")
    parser.add_argument("--state", type=Path, default=ROOT / ".local-cloud", help="folder of the local cloud")
    options = parser.parse_args()
    cloud = LocalCloud(options.state)
    if not cloud.running:
        sys.exit(f"No local cloud is running: `make demo` starts one. The last one's log is {cloud.log}.")
    with suppress(KeyboardInterrupt):
        follow(cloud, options) if options.follow else show(all_lines(cloud, options)[: -options.lines - 1 : -1])


if __name__ == "__main__":
    main()
