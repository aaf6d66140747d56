"A deployment's notebooks run in order; their kernels start early and leave nothing behind."

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from papermill.exceptions import PapermillExecutionError

from sentiment_engine.deploy import phases as deployment
from sentiment_engine.deploy.kernels import LATER

LOADED = "import sys\nprint('colorsys' in sys.modules, 'colorsys' in globals(), len(In))"
TIDY = """
import atexit, pathlib, time
atexit.register(lambda: (time.sleep(1), pathlib.Path({file!r}).write_text("tidied up")))
"""


@pytest.fixture
def run(tmp_path):
    "Run notebooks, each a list of cells, and return the output of each."

    def run_all(*notebooks: list[str]) -> list[str]:
        phases = []
        for number, cells in enumerate(notebooks):
            path = tmp_path / f"{number}_notebook.ipynb"
            cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
            nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
            phases.append(deployment.Phase(path, {}))
        deployment.run_phases(phases, SimpleNamespace(write=lambda phase: None), tmp_path / "runs")
        return [printed(tmp_path / "runs" / phase.notebook.name) for phase in phases]

    before = set(psutil.Process().children(recursive=True))
    yield run_all
    assert not set(psutil.Process().children(recursive=True)) - before


def printed(notebook: Path) -> str:
    "Return the printed output of a notebook's cells."
    cells = json.loads(notebook.read_text())["cells"]
    return "".join("".join(output.get("text", "")) for cell in cells for output in cell["outputs"]).strip()


def test_a_kernel_preloads_its_imports_without_defining_names(run):
    assert run(["print('first')"], [LOADED, "import colorsys"]) == ["first", "True False 2"]


def test_preloading_prints_nothing():
    "Any output would appear in the terminal, because no cell is running yet."
    code = "\n".join(LATER.values())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_preloading_tolerates_ipython_commands_and_missing_modules(run):
    cells = ["try:\n    import none_such_either\nexcept ImportError as e:\n    print(e.name)"]
    assert run(["print(1)"], cells, ["%precision 3\nprint(2)"]) == ["1", "none_such_either", "2"]


def test_a_notebook_cleans_up_while_the_next_one_runs(run, tmp_path):
    files = [tmp_path / "one", tmp_path / "two"]
    run(*([TIDY.format(file=str(file))] for file in files))
    assert [file.read_text() for file in files] == ["tidied up"] * 2


def test_after_a_failure_the_notebook_cleans_up_and_the_next_kernel_ends(run, tmp_path):
    with pytest.raises(PapermillExecutionError, match="no luck"):
        run([TIDY.format(file=str(tmp_path / "one")), "raise OSError('no luck')"], ["print('never')"])
    assert (tmp_path / "one").read_text() == "tidied up"
    assert not (tmp_path / "runs/1_notebook.ipynb").exists()
