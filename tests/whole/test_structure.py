"Structure: notebooks and modules have the same paths, dependencies point one way, and walkthroughs are short."

import ast
import json
import pkgutil
import re
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

from sentiment_engine.deploy.packaging import modules_imported, package_files
from tests import ROOT

NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
SCRIPTS = sorted((ROOT / "infra_scripts").rglob("*.py"))
WALKTHROUGHS = [path for path in NOTEBOOKS if path.parent.name == "nbs" and path.name[0].isdigit()]
SHARED = {"settings", "aws_errors", "polling", "s3", "sagemaker", "spark", "plots", "causes", "commands"}
MAY_USE = {  # folder: packages that its modules may import, besides each other
    "data": SHARED,
    "model": SHARED | {"data"},
    "service": SHARED | {"costs"},
    "deploy": SHARED | {"costs", "data", "model", "service", "local"},
    "local": {"settings", "aws_errors", "s3", "spark", "causes", "model"},
    "costs": set(),
    **{name: set() for name in SHARED},
    "s3": {"aws_errors"},
    "sagemaker": {"settings", "aws_errors", "polling"},
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
    "Return the folder of a module, or the module if all folders share it."
    return name.removeprefix("sentiment_engine").strip(".").split(".")[0]


def imported_parts(name: str) -> set[str]:
    source = (ROOT / "sentiment_engine" / f"{name}.py").read_text(encoding="utf-8")
    package = ".".join(["sentiment_engine", *name.split("/")[:-1]])
    return {part(module) for module in modules_imported(source, package)} - {""}


@pytest.mark.parametrize("name", modules())
def test_each_folder_imports_only_its_allowed_dependencies(name):
    own = name.split("/")[0]
    assert imported_parts(name) - {own} <= MAY_USE[own]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(ROOT / "infra_scripts").as_posix())
def test_a_script_imports_no_other_script(path):
    "Code that two scripts need belongs to the package, so a script needs no search path."
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [each.name for node in nodes if isinstance(node, ast.Import) for each in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    first = {name.split(".")[0] for name in names}
    assert not first & {"infra_scripts", *(script.stem for script in SCRIPTS)} and "sys.path" not in path.read_text()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(ROOT / "nbs").as_posix())
def test_a_notebook_and_its_module_have_the_same_path(path):
    exports = re.findall(r"^#\| default_exp (\S+)$", "\n".join(source for _, source in cells(path)), re.M)
    place = path.relative_to(ROOT / "nbs").with_suffix("")
    assert exports == ([] if path in WALKTHROUGHS or path.name == "index.ipynb" else [".".join(place.parts)])


def names_defined(name: str) -> set[str]:
    "Name the functions, classes and constants of a module."
    tree = ast.parse((ROOT / "sentiment_engine" / f"{name}.py").read_text(encoding="utf-8"))
    assigned = [node.targets for node in tree.body if isinstance(node, ast.Assign)]
    names = {each.id for target in chain(*assigned) for each in ast.walk(target) if isinstance(each, ast.Name)}
    return names | {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_each_name_is_defined_once():
    places = Counter(chain(*map(names_defined, modules())))
    assert {name for name, times in places.items() if times > 1} == {"__all__", "main"}


def test_every_module_has_a_notebook():
    assert {f"{name}.ipynb" for name in modules()} == {
        path.relative_to(ROOT / "nbs").as_posix()
        for path in NOTEBOOKS
        if path not in WALKTHROUGHS and path.name != "index.ipynb"
    }


@pytest.mark.parametrize("name", ["target", "loose_ends", "teardown"])
def test_only_the_phases_of_a_deployment_need_papermill(name):
    needed = package_files(f"import sentiment_engine.deploy.{name}")
    assert [path for path in needed.values() if re.search(r"^(import|from) papermill", path.read_text(), re.M)] == []


def named_in(path: Path) -> set[str]:
    "Find the dotted names of the package that a text mentions, such as sentiment_engine.model.released."
    text = path.read_text(encoding="utf-8")
    imports = re.findall(r"from (sentiment_engine[\w.]*) import \(?([\w, ]+)", text)
    names = {f"{module}.{name.split()[0]}" for module, listed in imports for name in listed.split(",") if name.strip()}
    return names | set(re.findall(r"(?<![\w/.-])sentiment_engine(?:\.[a-zA-Z_]\w*)+", text))


TEXTS = [
    path
    for pattern in (
        "*.md",
        "docs/*.md",
        "models/*/*.md",
        "nbs/**/*.ipynb",
        "infra_scripts/**/*.*",
        ".github/workflows/*",
    )
    for path in ROOT.glob(pattern)
    if path.suffix in (".md", ".ipynb", ".py", ".sh", ".toml", ".yaml", ".yml") and path.name != "CHANGELOG.md"
]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documents_name_only_existing_objects(path):
    wrong = [name for name in named_in(path) if not name.endswith((".py", ".toml", ".zip")) and not exists(name)]
    assert wrong == []


def exists(name: str) -> bool:
    "Check whether a dotted name is a module or an object in one."
    try:
        return bool(pkgutil.resolve_name(name)) or True
    except (ImportError, AttributeError):
        return False


@pytest.mark.parametrize("path", WALKTHROUGHS, ids=lambda path: path.stem)
def test_a_walkthrough_follows_the_common_structure(path):
    held = cells(path)
    assert 20 <= len(held) <= 30
    assert not [source for _, source in held if source.startswith("#| export")]
    titles = re.findall(r"^## (.+)$", "\n".join(source for kind, source in held if kind == "markdown"), re.M)
    assert [title for title in titles if title in ENDING] == list(ENDING)
    assert "<details>" in "\n".join(source for _, source in held)


ENDING = ("What could go wrong", "Summary", "Exercises", "Clean up")
