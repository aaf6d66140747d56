"""Audit templates, files and packages with tools in a separate environment (.audit).

checkov, parliament (the policies, with every value filled in) and detect-secrets need no network once they are
installed, and run in `make test` (--offline). pip-audit asks PyPI for known vulnerabilities of the pinned packages. Its
result can change from one day to the next, so only `make audit` runs it.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import yaml

from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser
from sentiment_engine.deploy.policies import policies_of

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / ".audit"
TOOLS = ("checkov==3.3.30", "parliament==1.6.4", "detect-secrets==1.5.0", "pip-audit==2.10.1")
ALLOWED = Path(__file__).with_name("audit_allowed.yaml")
SOURCES = ("sentiment_engine", "infra_scripts", "lambdas", "website", "tests", "nbs", "docs", "benchmarks", ".github")
# Cell ids, hashes and test data look random, so only patterns of real keys are searched for.
BLIND = ("HexHighEntropyString", "Base64HighEntropyString")


def tool(name: str) -> str:
    "Return the path of a tool. Installs the tools first if necessary."
    stamp = PLACE / "installed"
    if not stamp.exists() or stamp.read_text() != "\n".join(TOOLS):
        print("Installing checkov, parliament, detect-secrets and pip-audit into .audit (about a minute)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", PLACE], check=True)
        pip = ["install", "-qq", "--disable-pip-version-check"]
        subprocess.run([PLACE / "bin" / "pip", *pip, *TOOLS], check=True)
        stamp.write_text("\n".join(TOOLS))
    return str(PLACE / "bin" / name)


def _json(command: list[str], folder: Path = ROOT) -> dict:
    "Run a tool that prints JSON. Raises RuntimeError with its errors if it printed none."
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise RuntimeError(f"{Path(command[0]).name} ended with {done.returncode}: {done.stderr[-800:]}") from None


def template_findings(folder: Path) -> set[tuple[str, str]]:  # (check, name of the resource)
    "Run checkov on the templates in `folder`."
    command = [tool("checkov"), "--framework", "cloudformation", "-d", str(folder)]
    found = _json([*command, "--skip-download", "--compact", "--quiet", "-o", "json"])
    if not found.get("results") and not found.get("passed"):
        raise RuntimeError(f"checkov checked nothing in {folder}")
    failed = found.get("results", {}).get("failed_checks", [])
    return {(f["check_id"], f["resource"].rpartition(".")[2]) for f in failed}


def _of_finding(finding: dict) -> Iterator[str]:
    "Describe a finding of parliament: each of its actions, or its text."
    detail = finding["detail"]
    for each in detail if isinstance(detail, list) else [detail or finding["title"]]:
        yield each["action"] if isinstance(each, dict) else each


def policy_findings(folder: Path) -> set[tuple[str, str, str]]:  # (check, name of the resource, what is wrong)
    "Run parliament on every policy of the templates in `folder`. Raises RuntimeError if there is none."
    with tempfile.TemporaryDirectory() as place:
        for template in (path for path in sorted(folder.glob("*.yaml")) if "Resources:" in path.read_text()):
            for i, (resource, what, document) in enumerate(policies_of(template)):
                (Path(place) / f"{template.stem}.{what}.{i}.{resource}.json").write_text(json.dumps(document))
        if not list(Path(place).iterdir()):
            raise RuntimeError(f"parliament checked nothing in {folder}")
        done = subprocess.run(
            [tool("parliament"), "--directory", place, "--json"], capture_output=True, text=True, check=False
        )
    try:
        found = [json.loads(line) for line in done.stdout.splitlines()]
    except ValueError:
        raise RuntimeError(f"parliament ended with {done.returncode}: {done.stderr[-800:]}") from None
    if done.returncode and not found:
        raise RuntimeError(f"parliament ended with {done.returncode}: {done.stderr[-800:]}")
    names = [(f, Path(f["location"]["filepath"]).stem.rpartition(".")[2]) for f in found]
    return {(f["issue"], name, what) for f, name in names for what in _of_finding(f)}


def policy_complaints(
    found: set[tuple[str, str, str]],  # from `policy_findings`
    known: dict[str, list[dict]],  # by check: `resources`, and patterns of the findings (`what`) that are allowed there
) -> list[str]:
    "List the findings that no pattern allows, and the patterns that match no finding."
    allowed = {
        (check, name, pattern)
        for check, entries in known.items()
        for entry in entries
        for name in entry["resources"]
        for pattern in entry["what"]
    }
    fitting = {f: [a for a in allowed if a[:2] == f[:2] and fnmatch(f[2], a[2])] for f in found}
    needed = {a for fits in fitting.values() for a in fits}
    return complaints({f for f, fits in fitting.items() if not fits} | needed, allowed, "parliament")


def mark_of(text: str) -> str:
    "Hash a text as detect-secrets does, because it prints only hashes of its findings."
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def secret_findings(files: list[str], folder: Path = ROOT) -> set[tuple[str, int, str, str]]:  # file, line, kind, mark
    "Run detect-secrets on `files`, named relative to `folder`."
    blind = [word for plugin in BLIND for word in ("--disable-plugin", plugin)]
    found = _json([tool("detect-secrets"), "scan", *blind, *files], folder)["results"]
    return {(file, s["line_number"], s["type"], s["hashed_secret"]) for file in found for s in found[file]}


def secret_complaints(
    found: set[tuple[str, int, str, str]],  # from `secret_findings`
    known: dict[str, dict],  # by file: its `texts` that are no secrets
) -> list[str]:
    "List texts that look like secrets and are not allowed, and allowed texts that no longer occur."
    allowed = {(file, mark_of(text)): text for file, entry in known.items() for text in entry["texts"]}
    new = [f"secret: {file}:{line} ({kind})" for file, line, kind, mark in sorted(found) if (file, mark) not in allowed]
    there = {(file, mark) for file, _, _, mark in found}
    gone = [(file, text) for (file, mark), text in sorted(allowed.items()) if (file, mark) not in there]
    return new + [f"secret: nothing needs {text!r} of {file} in {ALLOWED.name}" for file, text in gone]


def tracked() -> list[str]:
    "List the files that git tracks or would add; without git, those of the source folders."
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, text=True)
    if done.returncode:
        found = [path for folder in SOURCES for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
        names = [path.relative_to(ROOT).as_posix() for path in [*found, *ROOT.glob("*")]]
    else:
        names = done.stdout.split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


def complaints(found: set, allowed: set, what: str) -> list[str]:
    "List findings that are not allowed, and allowed ones that were not found."
    new = [f"{what}: {' '.join(map(str, f))}" for f in sorted(found - allowed)]
    return new + [f"{what}: nothing needs {' '.join(map(str, f))} in {ALLOWED.name}" for f in sorted(allowed - found)]


def audit_offline() -> list[str]:
    "Check templates and files, and return the problems."
    known = yaml.safe_load(ALLOWED.read_text())
    skipped = {(check, name) for check, entry in known["checkov"].items() for name in entry["resources"]}
    wrong = complaints(template_findings(ROOT / "infra_scripts/templates"), skipped, "checkov")
    wrong += policy_complaints(policy_findings(ROOT / "infra_scripts/templates"), known["parliament"])
    return wrong + secret_complaints(secret_findings(tracked()), known["secrets"])


def package_findings(packages: list[dict]) -> list[str]:  # as in pip-audit's report; empty: no known fault
    "List the packages with known faults, and those that could not be checked."
    known = [(p, fault) for p in packages for fault in p.get("vulns", ())]
    wrong = [
        f"{p['name']} {p['version']}: {fault['id']}, fixed in {', '.join(fault['fix_versions']) or 'no version yet'}"
        for p, fault in known
    ]
    if known:
        wrong.append("Raise the versions in settings.ini and constraints.txt.")
    if unasked := [p for p in packages if "skip_reason" in p]:
        wrong.append(
            f"PyPI has no answer for {len(unasked)} of {len(packages)} packages, so their faults are unknown: "
            f"{unasked[0]['name']} ({unasked[0]['skip_reason']}) …"
        )
    return wrong


def audit_packages() -> list[str]:  # problems
    "Ask PyPI about every pinned package."
    command = [tool("pip-audit"), "--no-deps", "--disable-pip", "--progress-spinner", "off", "-f", "json"]
    return package_findings(_json([*command, "-r", "constraints.txt"])["dependencies"])


@tells_cause
def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--offline", action="store_true", help="skip the check that needs a network")
    options = parser.parse_args()
    try:
        wrong = audit_offline()
    except (RuntimeError, subprocess.CalledProcessError) as e:
        sys.exit(str(e))
    if wrong:
        sys.exit("\n".join(wrong))
    print("checkov, parliament and detect-secrets: nothing beyond infra_scripts/checks/audit_allowed.yaml")
    if options.offline:
        return
    try:
        wrong = audit_packages()
    except RuntimeError as e:
        sys.exit(str(e))
    if wrong:
        sys.exit("pip-audit:\n" + "\n".join(wrong))
    print("pip-audit: the pinned packages have no known faults")


if __name__ == "__main__":
    main()
