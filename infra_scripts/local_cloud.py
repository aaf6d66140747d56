"""Start, stop and inspect the local cloud: the AWS of this project on one machine.

python infra_scripts/local_cloud.py start         # usually http://127.0.0.1:4566, the site on :8080
eval "$(python infra_scripts/local_cloud.py env)" # point boto3 and the AWS CLI at it
python infra_scripts/local_cloud.py stop
"""

import os
import shlex
import sys
from pathlib import Path

from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser, port
from sentiment_engine.local.aws import stray_variables
from sentiment_engine.local.cloud import USUAL_PORTS, LocalCloud
from sentiment_engine.local.processes import ROOT

COMMANDS = {
    "start": "start the cloud unless it is running, and wait until it is ready",
    "stop": "stop the cloud and all its processes; its state is kept",
    "status": "print where it is running; exit status 1 if it is not",
    "env": "print shell commands that replace the AWS variables",
    "reset": "stop the cloud and delete everything in it",
}


def parser() -> Parser:
    "Describe the command line."
    main = Parser(description=__doc__)
    commands = main.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))
    for name, does in COMMANDS.items():
        command = commands.add_parser(name, help=does)
        command.add_argument(
            "--state", type=Path, default=ROOT / ".local-cloud", help="folder for all state (%(default)s)"
        )
    start = commands.choices["start"]
    free = "default: %d, or a free one if that is taken; 0: a free one"
    for name, usual, of in (("--port", USUAL_PORTS[0], "AWS"), ("--site-port", USUAL_PORTS[1], "the web site")):
        start.add_argument(name, type=port, metavar="N", help=f"port of {of}; {free % usual}")
    start.add_argument(
        "--endpoint-delay",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="extra seconds for each endpoint's start, to show the waiting page (%(default)s)",
    )
    start.add_argument("--record", type=Path, metavar="FILE", help="append one line per call to this file")
    return main


def describe(cloud: LocalCloud) -> str:
    "Print the addresses of the cloud."
    rows = {"AWS": cloud.url, "site": cloud.site_url, "text messages": cloud.inbox_url, "log": cloud.log}
    return "\n".join(f"{name + ':':<15}{value}" for name, value in rows.items())


@tells_cause
def main(argv: list[str] | None = None) -> int:
    "Run one command and return the exit status."
    options = parser().parse_args(argv)
    if options.command == "start":
        places = options.state, options.port, options.site_port
        cloud = LocalCloud(*places, options.endpoint_delay, record=options.record)
        ran = cloud.running
        cloud.start()
        print(("The local cloud is already running.\n" if ran else "The local cloud is running.\n") + describe(cloud))
        return 0
    cloud = LocalCloud(options.state)
    if options.command in ("stop", "reset"):
        ran = cloud.running
        cloud.stop() if options.command == "stop" else cloud.reset()
        done = "stopped" if options.command == "stop" else "empty: its state is deleted"
        print(f"The local cloud is {done}." if ran or options.command == "reset" else "The local cloud was not up.")
        return 0
    if not cloud.running:
        print("The local cloud is not running. Start it: python infra_scripts/local_cloud.py start", file=sys.stderr)
        return 1
    if options.command == "env":
        own = cloud.environment
        stray = [f"unset {shlex.quote(name)}" for name in stray_variables(os.environ, own)]
        # Each line ends with a semicolon, so `eval $(…)` works without quotes too.
        print(*stray, *(f"export {name}={shlex.quote(value)}" for name, value in own.items()), sep=";\n", end=";\n")
    else:
        print(describe(cloud))
    return 0


if __name__ == "__main__":
    sys.exit(main())
