"The changes of `make mutants`: each fits the current code, and the test that must notice it exists."

import ast
import subprocess
from collections import Counter
from functools import cache

import pytest

from infra_scripts.checks import mutants
from infra_scripts.checks.mutants import MODEL, Mutant, patched, read_mutants, verdict
from tests.doubles.clients import NODE

FOUND = read_mutants()


@cache
def named_in(file: str) -> set[str]:
    "Return the names of the tests in a file."
    return {
        part.name for part in ast.parse((mutants.ROOT / file).read_text()).body if isinstance(part, ast.FunctionDef)
    }


def test_every_area_has_mutants_with_unique_names():
    counts = Counter(mutant.area for mutant in FOUND)
    assert set(counts) == {"api", "data", "lifecycle", "model", "page", "publishing"} and min(counts.values()) > 5
    assert len({mutant.name for mutant in FOUND}) == len(FOUND)


@pytest.mark.parametrize("mutant", FOUND, ids=lambda mutant: mutant.name)
def test_a_mutant_applies_and_its_test_exists(mutant):
    assert patched(mutant) and mutant.new != mutant.old
    file, _, test = (mutant.by or MODEL).partition("::")
    assert (mutants.ROOT / file).is_file() and (not test or test.partition("[")[0] in named_in(file))


def test_every_mutant_of_a_script_is_valid_javascript():
    for mutant in (each for each in FOUND if each.file.endswith(".js")):
        checked = subprocess.run([NODE, "--check", "-"], input=patched(mutant), capture_output=True, text=True)
        assert checked.returncode == 0, f"{mutant.name}: {checked.stderr}"


def test_a_mutant_that_does_not_apply_is_reported():
    mutant = Mutant("data", "gone", "sentiment_engine/data/etl.py", "this text is not there", "")
    with pytest.raises(ValueError, match=r"gone: its text occurs 0 times in sentiment_engine/data/etl\.py"):
        patched(mutant)


@pytest.mark.parametrize(
    ("area", "survived", "fine"),
    [("data", 1, True), ("data", 2, False), ("lifecycle", 0, True), ("lifecycle", 1, False)],
)
def test_too_many_survivors_in_any_area_fail_the_run(area, survived, fine):
    lines, well = verdict({area: [True] * survived + [False] * (10 - survived), "page": [False] * 3})
    assert well is fine and lines[1].split()[:4] == [area, "10", str(survived), f"{survived}0%" if survived else "0%"]
