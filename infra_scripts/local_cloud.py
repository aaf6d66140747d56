"""Start, stop and inspect the local cloud: the AWS of this project on one machine.

python infra_scripts/local_cloud.py start         # usually http://127.0.0.1:4566, the site on :8080
eval "$(python infra_scripts/local_cloud.py env)" # point boto3 and the AWS CLI to it
python infra_scripts/local_cloud.py stop
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# These work before the package is installed, too.
from sentiment_engine.causes import tells_cause  # noqa: E402
from sentiment_engine.commands import Parser, port  # noqa: E402
from sentiment_engine.local.aws import stray_variables  # noqa: E402
from sentiment_engine.local.cloud import USUAL_PORTS, LocalCloud  # noqa: E402


def parser() -> Parser:
    "Describe the command line."
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--state", type=Path, default=ROOT / ".local-cloud", help="folder that everything is kept in (%(default)s)"
    )
    main = Parser(description=__doc__)
    commands = main.add_subparsers(dest="command", required=True, metavar="start|stop|status|env|reset")
    start = commands.add_parser("start", parents=[shared], help="start the cloud, unless it runs, and wait for it")
    free = "without it %d, or a free one if that is taken; 0 takes a free one"
    for name, usual, of in (("--port", USUAL_PORTS[0], "AWS"), ("--site-port", USUAL_PORTS[1], "the web site")):
        start.add_argument(name, type=port, metavar="N", help=f"port of {of}; {free % usual}")
    start.add_argument(
        "--endpoint-delay",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="time that each endpoint takes longer to start, to see a waiting page (%(default)s)",
    )
    start.add_argument("--record", type=Path, metavar="FILE", help="add a line about each call to this file")
    commands.add_parser("stop", parents=[shared], help="stop the cloud and all its processes; its state is kept")
    commands.add_parser("status", parents=[shared], help="say whether and where it runs; exit status 1 if not")
    commands.add_parser("env", parents=[shared], help="print lines for a shell: they replace its AWS variables")
    commands.add_parser("reset", parents=[shared], help="stop the cloud and delete everything in it")
    return main


def describe(cloud: LocalCloud) -> str:
    "Say where the cloud is."
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
        print(("The local cloud runs already.\n" if ran else "The local cloud runs.\n") + describe(cloud))
        return 0
    cloud = LocalCloud(options.state)
    if options.command in ("stop", "reset"):
        ran = cloud.running
        cloud.stop() if options.command == "stop" else cloud.reset()
        done = "stopped" if options.command == "stop" else "empty: its state is deleted"
        print(f"The local cloud is {done}." if ran or options.command == "reset" else "The local cloud did not run.")
        return 0
    if not cloud.running:
        print("The local cloud does not run: python infra_scripts/local_cloud.py start", file=sys.stderr)
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
