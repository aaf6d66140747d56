"""Print Lighthouse's four scores of the published page, while the model sleeps and while it is awake. Fails below 95.

The script deploys the engine of the browser tests to a separate local cloud. It installs Lighthouse from npm and Node
from PyPI into .node/, so that every machine has the same versions. The page contains neither.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser
from sentiment_engine.deploy.node_packages import node_folder, npm_package
from tests.doubles.chromium import FLAGS, find_chromium
from tests.doubles.engine import running_engine

LIGHTHOUSE = "13.5.0"
CATEGORIES = ("performance", "accessibility", "best-practices", "seo")
WANTED = 95  # of 100


def installed() -> list[str]:  # the command that runs Lighthouse
    "Install Lighthouse, unless it is installed."
    cli = npm_package("lighthouse", LIGHTHOUSE) / "lighthouse" / "cli" / "index.js"
    return [str(node_folder() / "bin" / "node"), str(cli)]


def report_of(
    command: list[str],
    url: str,
    into: Path,  # JSON file to write
    device: str,  # mobile: a simulated slow phone on a slow network; or desktop
) -> dict:  # Lighthouse's report
    "Run Lighthouse on a page."
    flags = " ".join(["--headless=new", *FLAGS])
    given = [
        "--quiet",
        "--output=json",
        f"--output-path={into}",
        f"--chrome-flags={flags}",
        "--no-enable-error-reporting",
    ]
    given += [f"--only-categories={','.join(CATEGORIES)}", *(["--preset=desktop"] if device == "desktop" else [])]
    subprocess.run([*command, url, *given], check=True, env=os.environ | {"CHROME_PATH": find_chromium()})
    return json.loads(into.read_text(encoding="utf-8"))


def faults(report: dict) -> list[str]:
    "List the audits that cost points."
    counted = [ref["id"] for each in report["categories"].values() for ref in each["auditRefs"] if ref["weight"]]
    audits = [report["audits"][name] for name in counted]
    short = [audit for audit in audits if audit["score"] is not None and audit["score"] < 0.9]
    return [f"{audit['id']}: {audit['title']} {audit.get('displayValue', '')}".strip() for audit in short]


def shown(state: str, device: str, report: dict) -> bool:  # whether every score is high enough
    "Print the scores of one visit."
    scores = {name: round(report["categories"][name]["score"] * 100) for name in CATEGORIES}
    print(f"{state:8}{device:9}" + "".join(f"{name} {score:3}   " for name, score in scores.items()), flush=True)
    for fault in faults(report) if min(scores.values()) < 100 else []:
        print(f"    {fault}")
    return min(scores.values()) >= WANTED


@tells_cause
def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="folder for Lighthouse's reports")
    keep = parser.parse_args().keep
    command, well = installed(), []
    with tempfile.TemporaryDirectory() as state, running_engine(Path(state)) as engine:
        folder = keep or Path(state)
        folder.mkdir(parents=True, exist_ok=True)
        for view in ("asleep", "awake"):
            engine.wake() if view == "awake" else engine.sleep()
            for device in ("mobile", "desktop"):
                report = report_of(command, engine.site_url, folder / f"{view}-{device}.json", device)
                well.append(shown(view, device, report))
    if not all(well):
        raise SystemExit(f"a score is below {WANTED}")


if __name__ == "__main__":
    main()
