"The installation picks a working Python, repairs a broken environment, and leaves a good one unchanged."

import configparser
import importlib.metadata
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from sentiment_engine.deploy.packaging import LIBRARIES
from tests import ROOT

INPUTS = ("settings.ini", "setup.py", "pyproject.toml", "constraints.txt", "lambdas/requirements.txt")
SETTINGS = configparser.ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini")
REQUIREMENTS = [
    each for key, value in SETTINGS["DEFAULT"].items() if key.endswith("requirements") for each in value.split()
]
# A fake Python of any version: it logs its arguments, creates environments from itself, and really runs code.
FAKE = """#!/bin/sh
here=$(dirname "$0")
echo "$0 $*" >>"$LOG"
env | grep -E '^(PIP_|PYTHON[A-Z])' >>"$LOG"
case "$1 $2" in
"-c "*) exec {real} -c "import sys; sys.version_info = {version}
$2" ;;
"-m venv") [ -z "${{NO_VENV:-}}" ] && mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo 1 >"$3/pip" ;;
"-m uv") [ -z "${{UV_FAILS:-}}" ] && env | grep -E '^(UV_|SSL_)' >>"$LOG" ;;
"-m pip") case "$3 $*" in
    --version*) [ -e "$here/../pip" ] && [ -z "${{NO_PIP:-}}" ] ;;
    config*) printf '%s\\n' "${{SETTINGS:-}}" ;;
    install*uv==*) [ -z "${{NO_UV:-}}" ] ;;
    install*) [ -z "${{PIP_FAILS:-}}" ] ;;
    esac ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    "A checkout with only the files that the installation reads, in a folder with a space in its name."
    folder = tmp_path / "a checkout"
    for part in ("infra_scripts/make", "lambdas"):
        (folder / part).mkdir(parents=True)
    shutil.copy(ROOT / "infra_scripts/make/install.sh", folder / "infra_scripts/make")
    for name in INPUTS:
        (folder / name).touch()
    return folder


def python_of(folder: Path, version: tuple[int, ...], name: str = "python3.11") -> Path:
    "Put a Python of `version` into `folder`."
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / name
    path.write_text(FAKE.format(real=sys.executable, version=version))
    path.chmod(0o755)
    return path


def install(checkout: Path, python: Path | None = None, before=None, **env: str) -> tuple[int, str, str]:
    "Run the installation; return its exit status, its output, and the Pythons' arguments."
    log = checkout.parent / "log"
    log.write_text("")
    run = subprocess.run(
        [checkout / "infra_scripts/make/install.sh"],
        env={"PATH": os.environ["PATH"], "LOG": str(log)} | ({"PYTHON": str(python)} if python else {}) | env,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=before,
    )
    return run.returncode, run.stdout + run.stderr, log.read_text()


@pytest.mark.parametrize(
    "version", [(3, 9, 18), (3, 10, 14), (3, 11, 0), (3, 11, 2), (3, 11, 4), (3, 14, 0), (4, 0, 0)]
)
def test_an_unsupported_python_is_refused_before_anything_is_created(checkout, tmp_path, version):
    status, words, asked = install(checkout, python_of(tmp_path / "bin", version))
    assert status == 1 and "3.11.5" in words and "PYTHON=" in words
    assert "venv" not in asked.replace(str(checkout), "") and not (checkout / ".venv").exists()


@pytest.mark.parametrize("version", [(3, 11, 5), (3, 11, 14), (3, 12, 0), (3, 13, 9)])
def test_a_supported_python_is_used(checkout, tmp_path, version):
    status, words, asked = install(checkout, python_of(tmp_path / "bin", version))
    assert status == 0, words
    assert "-m pip install" in asked


def test_the_package_refuses_the_same_python_versions():
    floor = tuple(int(part) for part in SETTINGS["DEFAULT"]["min_python"].split("."))
    assert str(floor) in (ROOT / "infra_scripts/make/install.sh").read_text()
    assert SETTINGS["DEFAULT"]["min_python"] in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("python", [SETTINGS["DEFAULT"]["min_python"], "3.12.0", "3.13.0"])
def test_every_pinned_package_supports_every_accepted_python(python):
    wanted = {each.name: each.metadata["Requires-Python"] for each in importlib.metadata.distributions()}
    assert not [name for name, versions in wanted.items() if versions and python not in SpecifierSet(versions)]


@pytest.mark.parametrize("broken", ["NO_VENV", "NO_PIP"])
def test_a_full_disk_is_reported_instead_of_a_missing_package(checkout, tmp_path, broken):
    python = python_of(tmp_path / "bin", (3, 11, 9))
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))  # noqa: E731
    status, words, _ = install(checkout, python, limit, **{broken: "1"})
    assert status == 1 and "takes no more" in words and "apt-get" not in words
    assert install(checkout, python, **{broken: "1"})[1].count("apt-get") == 1
    assert not (checkout / ".venv-room").exists()


def test_a_good_environment_is_left_unchanged(checkout, tmp_path):
    python = python_of(tmp_path / "bin", (3, 11, 9))
    install(checkout, python)
    status, words, asked = install(checkout, python)
    assert (status, words) == (0, "") and "pip" not in asked and "-m venv" not in asked


def _no_pip(checkout: Path):
    (checkout / ".venv/pip").unlink()
    (checkout / ".venv/installed").unlink()


def _python_gone(checkout: Path):
    (checkout / ".venv/bin/python").unlink()
    (checkout / ".venv/bin/python").symlink_to("/nowhere/python3.11")


def _python_of_other_version(checkout: Path):
    python_of(checkout / ".venv/bin", (3, 10, 1), "python")


def _copied(checkout: Path):
    (checkout / ".venv/installed").write_text("/somewhere/else\n")
    (checkout / ".venv/made-for").write_text("/somewhere/else\n")


def _empty(checkout: Path):
    shutil.rmtree(checkout / ".venv")
    (checkout / ".venv").mkdir()


@pytest.mark.parametrize("harm", [_no_pip, _python_gone, _python_of_other_version, _copied, _empty])
def test_a_broken_copied_or_moved_environment_is_recreated(checkout, tmp_path, harm):
    python = python_of(tmp_path / "bin", (3, 11, 9))
    install(checkout, python)
    (checkout / ".venv/leftover").touch()
    harm(checkout)
    status, words, asked = install(checkout, python)
    assert status == 0, words
    assert "-m venv" in asked and "-m pip install" in asked
    assert not (checkout / ".venv/leftover").exists()
    assert (checkout / ".venv/installed").read_text().strip() == str(checkout)


def test_a_moved_checkout_gets_its_own_environment(checkout, tmp_path):
    python = python_of(tmp_path / "bin", (3, 11, 9))
    install(checkout, python)
    moved = checkout.rename(tmp_path / "moved")
    assert "-m venv" in install(moved, python)[2]


def test_an_interrupted_download_resumes(checkout, tmp_path):
    python = python_of(tmp_path / "bin", (3, 11, 9))
    install(checkout, python)
    (checkout / ".venv/installed").unlink()
    asked = install(checkout, python)[2]
    assert "-m venv" not in asked and "-m pip install" in asked


def test_changed_requirements_are_installed(checkout, tmp_path):
    python = python_of(tmp_path / "bin", (3, 11, 9))
    install(checkout, python)
    later = (checkout / ".venv/installed").stat().st_mtime + 5
    os.utime(checkout / "constraints.txt", (later, later))
    assert "-m pip install" in install(checkout, python)[2]


EVERYTHING = ("--no-deps --require-hashes -r lambdas/requirements.txt", "-c constraints.txt -e .[etl,train,local,dev]")


def installed_by(tool: str, asked: str) -> list[str]:
    "Return which of the two parts `tool` (pip or uv) installed."
    lines = [line for line in asked.splitlines() if f"-m {tool} " in line]
    return [part for part in EVERYTHING if any(line.endswith(part) for line in lines)]


def test_the_pinned_uv_installs_everything(checkout, tmp_path):
    status, words, asked = install(checkout, python_of(tmp_path / "bin", (3, 11, 9)))
    assert status == 0 and "uv" not in words
    assert re.search(r"-m pip install .*uv==\d+\.\d+\.\d+$", asked, re.M)
    assert installed_by("uv", asked) == list(EVERYTHING) and not installed_by("pip", asked)


@pytest.mark.parametrize("lack", ["NO_UV", "UV_FAILS"])
def test_without_uv_pip_installs_everything(checkout, tmp_path, lack):
    status, words, asked = install(checkout, python_of(tmp_path / "bin", (3, 11, 9)), **{lack: "1"})
    assert status == 0 and "without uv" in words
    assert installed_by("pip", asked) == list(EVERYTHING)
    assert (checkout / ".venv/installed").exists()


@pytest.mark.parametrize("lack", ["NO_UV", "UV_FAILS"])
def test_a_failed_installation_is_not_marked_as_installed(checkout, tmp_path, lack):
    python = python_of(tmp_path / "bin", (3, 11, 9))
    status, words, _ = install(checkout, python, **{lack: "1", "PIP_FAILS": "1"})
    assert status == 1 and "Run the same command again" in words and not (checkout / ".venv/installed").exists()
    status, _, asked = install(checkout, python)
    assert status == 0 and "-m venv" not in asked


def test_uv_uses_the_package_index_of_pip(checkout, tmp_path):
    settings = (
        ":env:.find-links='/my wheels'",
        "global.cert='/etc/authority.pem'",
        "global.extra-index-url='https://one.example/simple\\nhttps://two.example/simple'",
        "global.find-links='/other'",
        "global.index-url='https://mirror.example/simple'",
    )
    asked = install(checkout, python_of(tmp_path / "bin", (3, 11, 9)), SETTINGS="\n".join(settings))[2]
    told = {
        "UV_INDEX_URL=https://mirror.example/simple",
        "UV_EXTRA_INDEX_URL=https://one.example/simple https://two.example/simple",
        "UV_FIND_LINKS=/my wheels",
        "SSL_CERT_FILE=/etc/authority.pem",
        "UV_INDEX_STRATEGY=unsafe-best-match",
    }
    assert told <= set(asked.splitlines())


def test_variables_for_other_pythons_have_no_effect(checkout, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "infra_scripts/make").mkdir(parents=True)
    names = "TARGET PREFIX ROOT USER NO_DEPS REQUIRE_HASHES DRY_RUN CONSTRAINT".split()
    stray = {f"PIP_{name}": "1" for name in names} | dict.fromkeys(("PYTHONHOME", "PYTHONPATH"), str(elsewhere))
    stray |= {f"UV_{name}": "1" for name in "REQUIRE_HASHES SYSTEM_PYTHON CONSTRAINT NO_EDITABLE PROJECT".split()}
    kept = {"PIP_INDEX_URL": "https://mirror.example/simple"}
    python, log = python_of(tmp_path / "bin", (3, 11, 9)), tmp_path / "log"
    env = {"PATH": os.environ["PATH"], "LOG": str(log), "PYTHON": str(python), "CDPATH": str(elsewhere)}
    run = subprocess.run(["infra_scripts/make/install.sh"], cwd=checkout, env=env | stray | kept, timeout=60)
    assert run.returncode == 0 and (checkout / ".venv/installed").exists() and not (elsewhere / ".venv").exists()
    asked = log.read_text()
    assert "PIP_INDEX_URL=" in asked and "--no-user" in asked
    assert not [name for name in stray if f"{name}=" in asked]


@pytest.mark.parametrize("lack", ["NO_VENV", "NO_PIP"])
def test_a_python_without_venv_leaves_nothing_and_names_the_missing_package(checkout, tmp_path, lack):
    status, words, _ = install(checkout, python_of(tmp_path / "bin", (3, 11, 9)), **{lack: "1"})
    assert status == 1 and "python3.11-venv" in words
    assert not (checkout / ".venv").exists()


def test_the_packages_of_the_functions_are_pinned_with_hashes():
    locked = [line for line in (ROOT / "lambdas/requirements.txt").read_text().splitlines() if line[0] != "#"]
    parts = [re.fullmatch(r"([a-z_]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line).groups() for line in locked]
    assert {name for name, _ in parts} == set(LIBRARIES)
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    for name, version in parts:
        assert f"{name}=={version}" in constraints and importlib.metadata.version(name) == version


def test_the_pinned_jsonschema_loads_quickly():
    "The newest jsonschema compiles grammars for seconds in each kernel, test worker and script."
    code = "import sys, jsonschema; print('lark' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("workflow", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda path: path.name)
def test_workflows_pin_actions_by_commit_with_a_version_comment(workflow):
    used = re.findall(r"uses: (.+)", workflow.read_text())
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


def workflow_job(name: str) -> dict:
    (job,) = yaml.safe_load((ROOT / ".github/workflows" / name).read_text())["jobs"].values()
    return job


def test_every_supported_python_and_system_is_tested():
    tried = workflow_job("ci.yml")["strategy"]["matrix"]["include"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    promised = re.search(r"Python (3\.\d+)\S* or later, up to (3\.\d+), and `make` on Linux or macOS", readme)
    first, last = (int(version.split(".")[1]) for version in promised.groups())
    assert {case["python"] for case in tried} == {f"3.{minor}" for minor in range(first, last + 1)}
    assert {case["system"] for case in tried} == {"ubuntu-latest", "macos-latest"}


def test_slow_checks_run_every_week():
    targets = workflow_job("weekly.yml")["strategy"]["matrix"]["target"]
    assert set(targets) <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {"test-slow", "rehearsal", "mutants", "container-test", "lighthouse", "audit"} <= set(targets)


@pytest.mark.parametrize(("package", "fixed"), [("pyspark", "3.5.7"), ("jupyterlab", "4.6.2")])
def test_versions_with_known_faults_are_not_accepted(package, fixed):
    wanted = next(each for each in map(Requirement, REQUIREMENTS) if each.name == package)
    before = Version(fixed).release
    assert fixed in wanted.specifier and f"{before[0]}.{before[1]}.{before[2] - 1}" not in wanted.specifier
