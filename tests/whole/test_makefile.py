"`make` lists its commands, refuses misspelt variables, and names the variable in errors."

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sentiment_engine import __version__
from sentiment_engine.causes import MAKE_NAMES
from sentiment_engine.settings import settings_from
from tests import ROOT

SCRIPTS = sorted(p for p in (ROOT / "infra_scripts").rglob("*.py") if "__main__" in p.read_text(encoding="utf-8"))
JOBS = {"clean_reviews.py", "train.py"}  # Glue and SageMaker run them, with their own options
QUICK = ("local_cloud.py", "logs.py", "checks/mutants.py", "checks/check_generated.py", "make/build_docs.py")


def make(*words: str) -> subprocess.CompletedProcess:
    "Run make with a clean environment; nothing is installed."
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    kept = () if "-n" in words else ("-o", "install")
    return subprocess.run(("make", *words, *kept), cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


HELP = make("help").stdout
PARTS = re.split(r"^  make ([a-z-]+)", HELP, flags=re.M)[1:]
TAKEN = {name: re.findall(r"([A-Z]+)=", about) for name, about in zip(PARTS[::2], PARTS[1::2], strict=True)}


def told(monkeypatch, capsys, script: Path | str, words: list[str], names: str = "") -> str:
    "Run a script or a module in this process until it ends; return its last message."
    monkeypatch.setattr(sys, "argv", [str(script), *words])
    monkeypatch.setenv(MAKE_NAMES, names)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__") if isinstance(script, Path) else runpy.run_module(
            script, run_name="__main__", alter_sys=False
        )
    said = capsys.readouterr()
    return end.value.code if isinstance(end.value.code, str) else said.out + said.err


# ---- the list


def test_the_command_list_is_grouped_and_fits_80_columns():
    groups = ["Use it on this machine", "Develop", "Check", "Deploy to AWS", "Measure"]
    assert [line for line in HELP.splitlines() if line[:1].strip()] == groups
    assert max(map(len, HELP.splitlines())) <= 80
    assert make().stdout == HELP


def test_the_command_list_is_complete():
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert set(TAKEN) == targets - {"help"}


@pytest.mark.parametrize("name", TAKEN)
def test_a_command_uses_its_listed_variables(name):
    for variable in set(TAKEN[name]):
        without = ("DATA=x",) if name == "release" and variable != "DATA" else ()
        plain = make("-n", name, *without).stdout
        assert make("-n", name, *without, f"{variable}=1x1").stdout != plain, variable


def test_a_value_reaches_the_script_unchanged():
    name = """two words, "quotes", it's $HOME; `true`"""
    command = make("-n", "demo", f"DATA={name.replace('$', '$$')}").stdout.splitlines()[-1]
    assert shlex.split(command)[-2:] == ["--data", name]


def test_a_switch_can_be_off():
    assert "--follow" in make("-n", "logs", "FOLLOW=1").stdout.split()
    assert "--follow" not in make("-n", "logs", "FOLLOW=0").stdout.split()


def test_the_variable_for_make_names_is_not_a_setting():
    name, _, value = shlex.split(make("-n", "demo").stdout.splitlines()[-1])[0].partition("=")
    assert name == MAKE_NAMES and settings_from({name: value}) == settings_from({})


# ---- misspelt names


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["demo", "ROW=5"], "make demo takes no ROW; perhaps you mean ROWS"),
        (["smoke", "CATEGORYS=Books"], "perhaps you mean CATEGORIES"),
        (["status", "REGON=eu-west-1"], "perhaps you mean REGION"),
        (["demo", "SEED=1"], "make demo takes no SEED, only "),
        (["check", "ROWS=1"], "make check takes no ROWS."),
        (["demo", "rows=5"], "make demo takes no rows, only "),
    ],
)
def test_an_unknown_variable_ends_a_command(words, said):
    done = make(*words)
    assert done.returncode and said in done.stderr and not done.stdout


def test_general_environment_variables_are_accepted():
    words = "PYTHON=python3", "CHROMIUM=chrome", "PIP_INDEX_URL=x", "AWS_PROFILE=x", "SENTIMENT_PREFIX=x"
    words += "PYTEST_ADDOPTS=-x", "UV_CACHE_DIR=x", "RUFF_NO_CACHE=1", "https_proxy=x", "NO_PROXY=x", "JAVA_HOME=x"
    assert make("-n", "check", "notebooks", *words).returncode == 0


# ---- wrong values


WRONG = {
    ("demo", "ROWS=abc"): "ROWS must be a whole number of at least 100, not abc",
    ("demo", "ROWS=3"): "ROWS must be a whole number of at least 100, not 3",
    ("pipeline", "IDLE=soon"): "IDLE must be a number of at least 0.1, not soon",
    ("demo", "PORT=99999"): "PORT must be a port between 0 and 65535, not 99999",
    ("smoke", "MODEL=newest"): "MODEL must be one of better, candidate, released, not newest",
    ("smoke", "ENDPOINT=none"): "ENDPOINT must be one of realtime, serverless, lambda, not none",
    ("demo", "STANDBY=maybe"): "STANDBY must be one of on, off, not maybe",
    ("pipeline", "ENDPOINT=lambda", "STANDBY=off"): "standby must not be off with the endpoint lambda",
    ("demo", "CATEGORIES=Bookz"): "CATEGORIES: no such category: Bookz",
    ("demo", "DATA=nowhere"): "DATA must be a folder that exists, not nowhere",
    ("demo", "DATA=nbs", "ROWS=500"): "ROWS excludes DATA",
    ("demo", "MODEL=released", "ROWS=500"): "MODEL=released is not trained: leave ROWS out",
    ("status", "REGION=Paris"): "REGION must be an AWS region such as us-east-1, not Paris",
    ("open", "PROFILE=nobody"): "PROFILE must be a profile of the AWS command line, not nobody",
    ("chaos", "SECONDS=long"): "SECONDS must be a number of at least 1, not long",
    ("chaos", "SEED=six"): "SEED must be a whole number, not six",
    ("bench-etl", "SIZES=10 many"): "SIZES must be a whole number of at least 1, not many",
    ("bench-training", "DATA=nowhere"): "DATA must be a folder that exists, not nowhere",
    ("bench-recipe", "SEEDS=0"): "SEEDS must be a whole number of at least 1, not 0",
    ("release", "DATA=nbs", "TEACHERS=1"): "TEACHERS must be 0 or at least 2",
    ("aws-acceptance", "PHONE=12"): "PHONE: ",
    ("aws-acceptance", "ROWS=500"): "ROWS needs SERIES",
}


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_an_error_names_the_variable_as_typed(monkeypatch, capsys, words):
    command = shlex.split(make("-n", *words).stdout.splitlines()[-1])
    names, (script, *options) = command[0].partition("=")[2], command[2:]
    script, options = (options[0], options[1:]) if script == "-m" else (ROOT / script, options)
    said = told(monkeypatch, capsys, script, options, names)
    assert said.startswith(WRONG[words]) and "--" not in said


def test_make_fails_with_the_error_message():
    done = make("chaos", "SEED=six")
    assert done.returncode and done.stderr.startswith("SEED must be a whole number, not six\nmake: ***")


def test_an_error_of_a_script_run_directly_names_the_option(monkeypatch, capsys):
    said = told(monkeypatch, capsys, ROOT / "infra_scripts/logs.py", ["--lines", "0"])
    assert said.startswith("usage: logs.py")
    assert said.endswith("logs.py: error: --lines must be a whole number of at least 1, not 0\n")


# ---- the version


@pytest.mark.parametrize("script", [p for p in SCRIPTS if p.name not in JOBS], ids=lambda p: p.name)
def test_every_script_has_the_shared_command_line(script):
    source = script.read_text(encoding="utf-8")
    assert re.search(r"(?<!Argument)Parser\(", source) and "description=" in source


@pytest.mark.parametrize("name", QUICK)
def test_a_script_prints_the_version_from_settings_ini(monkeypatch, capsys, name):
    (version,) = re.findall(r"^version = (.+)$", (ROOT / "settings.ini").read_text(encoding="utf-8"), re.M)
    assert version == __version__
    assert told(monkeypatch, capsys, ROOT / "infra_scripts" / name, ["--version"]) == f"sentiment-engine {version}\n"


# ---- the page's script and style


@pytest.fixture
def biome(monkeypatch, capfd, tmp_path):
    "Lint a page in a folder with our rules."
    from infra_scripts.checks import biome

    monkeypatch.setattr(biome, "ROOT", tmp_path)
    (tmp_path / "biome.json").write_text((ROOT / "biome.json").read_text())
    (tmp_path / "website").mkdir()

    def linted(name: str, text: str, *words: str) -> tuple[bool, str]:  # whether it passes, and the output
        path = tmp_path / "website" / name
        path.write_text(text)
        monkeypatch.setattr(sys, "argv", ["biome.py", *words])
        with pytest.raises(SystemExit) as end:
            biome.main()
        return not end.value.code, path.read_text() if words else "".join(capfd.readouterr())

    return linted


def test_javascript_and_css_are_linted_and_javascript_is_formatted(biome):
    assert biome("a.js", "export const a = (b) => ({b});\n")[0]
    assert biome("a.js", "export const a = b => { return { b } }\n")[1].count("format")
    assert biome("a.js", "export const a = b => ({ b })\n", "--fix") == (True, "export const a = (b) => ({b});\n")
    assert "noUnusedVariables" in biome("a.js", "const a = 1;\n")[1]
    fine, said = biome("a.css", "p{color:red;color:blue}\n")
    assert not fine and "noDuplicateProperties" in said


def test_without_a_network_the_first_check_fails_with_an_explanation(monkeypatch, capfd, tmp_path):
    from infra_scripts.checks import biome
    from sentiment_engine.deploy import node_packages

    monkeypatch.setattr(node_packages, "NODE_HOME", tmp_path)
    monkeypatch.setattr(sys, "argv", ["biome.py"])
    for name, value in {"PIP_INDEX_URL": "http://127.0.0.1:9", "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        biome.main()
    assert "Node could not be installed. Only the first installation needs the network" in end.value.code
