"""Lint the page's JavaScript and CSS, and check its JavaScript's format, with Biome. --fix corrects what it can."""

import subprocess
import sys
from pathlib import Path

from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser
from sentiment_engine.deploy.node_packages import npm_package
from sentiment_engine.local.processes import ROOT

BIOME = "2.6.8"  # as in biome.json


def binary() -> Path:
    "Install Biome, unless it is installed. Its binary for this machine needs no Node."
    modules = npm_package("@biomejs/biome", BIOME)
    return next(modules.glob("@biomejs/cli-*/biome"))


@tells_cause
def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--fix", action="store_true", help="write the corrected files")
    fix = ["--write"] if parser.parse_args().fix else []
    sys.exit(subprocess.run([binary(), "check", "--error-on-warnings", *fix, "website"], cwd=ROOT).returncode)


if __name__ == "__main__":
    main()
