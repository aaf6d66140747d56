"Notebooks check their parameters first, never use an AWS account by accident, and can run again."

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest

from sentiment_engine.costs import PRICES
from sentiment_engine.deploy.phases import parameters_of, plan
from tests import ROOT

NBS = ROOT / "nbs"
COSTS, BACKEND, WEBSITE = "07_costs", "05_serverless_backend", "06_website"
NAN = float("nan")


def code_of(name: str) -> list[tuple[bool, str]]:  # whether it is the parameters cell, and the source
    "List a notebook's code cells."
    cells = json.loads((NBS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    return [("parameters" in cell["metadata"].get("tags", ()), "".join(cell["source"])) for cell in code]


def run(name: str, first: int | None = None, **parameters):
    "Run a notebook's first cells here, with parameters that replace those of the parameters cell, as in papermill."
    names = {}
    for tagged, source in code_of(name)[:first]:
        exec(source, names)
        names |= parameters if tagged else {}


@pytest.fixture
def in_nbs(monkeypatch):
    "Work in the notebooks' folder, without windows."
    monkeypatch.chdir(NBS)
    plt.switch_backend("agg")
    yield
    plt.close("all")


WRONG = [
    (COSTS, "instance_type", ["ml.m5.nano", "", "m5.large", None]),
    *((COSTS, f"{part}_minutes", [-1, NAN, float("inf"), "five", None]) for part in ("start", "use", "idle")),
    (COSTS, "idle_minutes", [0, 0.0]),
    (BACKEND, "target", ["AWS", ""]),
    (BACKEND, "idle_minutes", [-5, NAN, "thirty"]),
    (BACKEND, "sms_provider", ["pigeon"]),
    (BACKEND, "textbelt_url", ["textbelt.com"]),
    (BACKEND, "site_address", ["mood.example.com", "https://mood.example.com/page", "*"]),
    (BACKEND, "instance_types", ["m5.large", "ml.t2.medium,large"]),
    (BACKEND, "permissions_boundary", ["boundary", "arn:aws:iam::111122223333:role/boundary"]),
    (WEBSITE, "target", ["cloud"]),
    (WEBSITE, "sms_provider", ["pigeon"]),
]
WRONG = [(notebook, name, value) for notebook, name, values in WRONG for value in values]


@pytest.mark.parametrize(("notebook", "name", "value"), WRONG, ids=lambda value: str(value))
def test_a_wrong_parameter_is_reported_before_anything_happens(in_nbs, notebook, name, value):
    with pytest.raises(ValueError, match=f"^{name} must "):
        run(notebook, 2, **{name: value})


def test_valid_backend_parameters_are_accepted(in_nbs):
    run(BACKEND, 2)
    given = {"idle_minutes": 5, "site_address": "https://mood.example.com/"}
    boundary = "arn:aws-us-gov:iam::111122223333:policy/teams/boundary"
    run(BACKEND, 2, instance_types="ml.m5.large, ml.c5.large", permissions_boundary=boundary, **given)


@pytest.mark.parametrize(
    "parameters",
    [*({"instance_type": kind} for kind in PRICES), {"idle_minutes": 0.5}, {"start_minutes": 0, "use_minutes": 0}],
    ids=str,
)
def test_the_costs_of_every_type_and_visit_are_computed(in_nbs, parameters):
    run(COSTS, **parameters)


@pytest.mark.parametrize("target", ["local", "aws"])
def test_a_deployment_does_not_wake_the_model(target):
    (backend,) = (phase for phase in plan(parameters_of(target, {})) if phase.notebook.stem == BACKEND)
    assert backend.parameters["visit"] is False


# Notebooks that reach a cloud ----------------------------------------------------------------------------------------


def reaching() -> Iterator[tuple[str, list[str]]]:
    "List notebooks with the cells that talk to a cloud."
    for path in sorted(NBS.rglob("*.ipynb")):
        name = path.relative_to(NBS).with_suffix("").as_posix()
        if cells := [source for _, source in code_of(name) if source.startswith("#| aws")]:
            yield name, cells


def test_no_notebook_creates_a_client_for_an_unintended_account():
    "`connect` and the handle of a local cloud determine a client's account; boto3 alone uses the shell's."
    made = ("boto3.client", "boto3.resource", "boto3.Session")
    for name, cells in reaching():
        calls = [node for source in cells for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
        assert not [call for call in calls if ast.unparse(call.func) in made], name


DEMONSTRATIONS = [name for name, cells in reaching() if any("create_table(" in source for source in cells)]


def play(name: str, environment: dict[str, str], but_last: bool = False) -> subprocess.CompletedProcess:
    "Run a notebook in a new process; without its last cell, the result is like an interruption."
    sources = [source for _, source in code_of(name) if "nbdev_export()" not in source]
    script = "\n".join(sources[:-1] if but_last else sources)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "SENTIMENT_"))}
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=(NBS / name).parent,
        env=kept | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_a_demonstration_can_be_run_again_even_after_an_interruption(cloud, name):
    for but_last in (True, False, False):
        done = play(name, cloud.environment, but_last)
        assert done.returncode == 0, done.stderr
    assert [each for each in cloud.client("dynamodb").list_tables()["TableNames"] if "sentiment-engine-" in each] == []


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_without_a_local_cloud_a_demonstration_explains_how_to_start_one(name):
    account = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    nowhere = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY"), "http://127.0.0.1:9")
    done = play(name, account | nowhere)
    assert done.returncode == 1 and "does not point to the local cloud" in done.stderr.splitlines()[-1]
