"Where things are: notebooks and modules have the same path, dependencies point one way, and walkthroughs walk."

import json
import re
from pathlib import Path

import pytest

from sentiment_engine.deploy.packaging import modules_imported
from tests import ROOT

NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
WALKTHROUGHS = [path for path in NOTEBOOKS if path.parent.name == "nbs" and path.name[0].isdigit()]
SHARED = {"settings", "polling", "plots", "causes", "commands"}
MAY_USE = {  # folder: what its modules may import, besides each other
    "data": SHARED,
    "model": SHARED | {"data"},
    "service": SHARED | {"costs"},
    "deploy": SHARED | {"costs", "data", "model", "service"},
    "local": {"settings", "causes", "model"},
    "costs": set(),
    **{name: set() for name in SHARED},
    "commands": {"causes"},
}


def cells(path: Path) -> list[tuple[str, str]]:  # kind and source
    held = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in held]


def modules() -> list[str]:
    package = ROOT / "sentiment_engine"
    found = sorted(path.relative_to(package).with_suffix("").as_posix() for path in package.rglob("*.py"))
    return [name for name in found if not name.endswith(("__init__", "_modidx"))]


def part(name: str) -> str:
    "Name the folder of a module, or the module if it is shared by all."
    return name.removeprefix("sentiment_engine").strip(".").split(".")[0]


def imported_parts(name: str) -> set[str]:
    source = (ROOT / "sentiment_engine" / f"{name}.py").read_text(encoding="utf-8")
    package = ".".join(["sentiment_engine", *name.split("/")[:-1]])
    return {part(module) for module in modules_imported(source, package)} - {""}


@pytest.mark.parametrize("name", modules())
def test_dependencies_point_one_way(name):
    own = name.split("/")[0]
    assert imported_parts(name) - {own} <= MAY_USE[own]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(ROOT / "nbs").as_posix())
def test_a_notebook_has_the_path_of_its_module(path):
    exports = re.findall(r"^#\| default_exp (\S+)$", "\n".join(source for _, source in cells(path)), re.M)
    place = path.relative_to(ROOT / "nbs").with_suffix("")
    assert exports == ([] if path in WALKTHROUGHS or path.name == "index.ipynb" else [".".join(place.parts)])


def test_every_module_has_a_notebook():
    assert {f"{name}.ipynb" for name in modules()} == {
        path.relative_to(ROOT / "nbs").as_posix()
        for path in NOTEBOOKS
        if path not in WALKTHROUGHS and path.name != "index.ipynb"
    }


@pytest.mark.parametrize("path", WALKTHROUGHS, ids=lambda path: path.stem)
def test_a_walkthrough_walks(path):
    held = cells(path)
    assert 20 <= len(held) <= 30
    assert not [source for _, source in held if source.startswith("#| export")]
    titles = re.findall(r"^## (.+)$", "\n".join(source for kind, source in held if kind == "markdown"), re.M)
    assert [title for title in titles if title in ENDING] == list(ENDING)
    assert "<details>" in "\n".join(source for _, source in held)


ENDING = ("What could go wrong", "Summary", "Exercises", "Clean up")
