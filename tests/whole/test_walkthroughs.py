"A walkthrough names a wrong parameter in its first cells, before it calls a cloud."

import json
import math
import re
from pathlib import Path

import pytest

from tests import ROOT

NOTEBOOKS = ROOT / "nbs"
CHECK = "check_parameters(__annotations__, globals()"
WRONG = {
    str: (5, True, None),
    bool: ("true", 1, None),
    int: (True, 2.5, "3", -1, None),
    float: (True, "2", -0.5, math.nan, math.inf, None),
}


def opening(path: Path) -> tuple[str, str]:  # the parameters, and the code that follows to the end of the check
    "Return the first cells of a notebook."
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    declared = next(i for i, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", []))
    checked = next(i for i, source in enumerate(sources) if CHECK in source)
    return sources[declared], "\n".join(sources[declared + 1 : checked + 1])


def has_parameters(path: Path) -> bool:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return any("parameters" in cell["metadata"].get("tags", []) for cell in cells)


CHECKED = [path for path in sorted(NOTEBOOKS.glob("0*.ipynb")) if has_parameters(path)]


def run(path: Path, **given):
    "Run the first cells of a notebook with parameters injected like papermill's."
    parameters, code = opening(path)
    exec(parameters, values := {})
    exec(code, values | given)


def wrong_parameters() -> list:
    found = []
    for path in CHECKED:
        exec(opening(path)[0], values := {})
        found += [(path, name, wrong) for name, kind in values["__annotations__"].items() for wrong in WRONG[kind]]
    return [pytest.param(*case, id=f"{case[0].stem[:2]}-{case[1]}-{case[2]}") for case in found]


@pytest.mark.parametrize(("path", "name", "wrong"), wrong_parameters())
def test_the_error_names_a_parameter_of_the_wrong_type(path, name, wrong, monkeypatch):
    monkeypatch.setattr("sentiment_engine.settings.connect", pytest.fail)
    with pytest.raises(ValueError, match=f"^{name} must be .*, not {re.escape(repr(wrong))}$"):
        run(path, **{name: wrong})


@pytest.mark.parametrize(
    ("number", "given", "said"),
    [
        ("00", {"domain_name": "mood.example.com"}, "domain_name and hosted_zone_id"),
        ("01", {"rows": 0}, "rows must be a whole number of at least 1"),
        ("01", {"three_stars": "positive"}, "three_stars must be negative or dropped"),
        ("01", {"near_repeats": 1.5}, "near_repeats must be between 0 and 1"),
        ("01", {"balance": 0.5}, "balance must be 0 .* or at least 1"),
        ("01", {"categories": "Musical_Instrument"}, "no such category: Musical_Instrument"),
        ("01", {"categories": "Books", "source": "ftp://here"}, "source must be"),
        ("02", {"sample_rows": 1}, "sample_rows must be a whole number of at least 2"),
    ],
)
def test_the_error_names_a_parameter_with_an_invalid_value(number, given, said, monkeypatch):
    monkeypatch.setattr("sentiment_engine.settings.connect", pytest.fail)
    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    with pytest.raises(ValueError, match=said):
        run(path, **given)


@pytest.mark.parametrize("path", [path for path in CHECKED if "target" in opening(path)[0]], ids=lambda path: path.stem)
@pytest.mark.parametrize("target", ["AWS", "", "cloud"])
def test_an_unknown_target_is_refused(path, target, monkeypatch):
    monkeypatch.setattr("sentiment_engine.settings.connect", pytest.fail)
    with pytest.raises(ValueError, match=f"^target must be local or aws, not {target!r}$"):
        run(path, target=target)
