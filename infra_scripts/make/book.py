"""Run every notebook against a fresh local cloud and keep its outputs in nbs/, for readers and for the site."""

import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser
from sentiment_engine.deploy.kernels import OwnKernel
from sentiment_engine.local.cloud import LocalCloud

NOTEBOOKS = Path(__file__).resolve().parents[2] / "nbs"


PROGRESS = 6  # a cell that prints more often than this shows progress


def worth_keeping(outputs: list[dict]) -> list[dict]:
    "Return the outputs to keep: no warnings, only the last line of progress, and printed text in one piece."
    said = [o for o in outputs if not (o["output_type"] == "stream" and o["name"] == "stderr")]
    streams = [o for o in said if o["output_type"] == "stream"]
    dropped = streams[:-1] if len(streams) > PROGRESS else []
    kept: list[dict] = []
    for output in (o for o in said if not any(o is d for d in dropped)):
        if kept and output["output_type"] == "stream" == kept[-1]["output_type"]:
            kept[-1]["text"] += output["text"]
        else:
            kept.append(output)
    return kept


def run(path: Path):
    "Execute one notebook in place. Raises CellExecutionError and leaves the file unchanged if a cell fails."
    notebook = nbformat.read(path, as_version=4)
    quiet = ["--IPKernelApp.log_level=40"]  # 40: errors
    here = {"metadata": {"path": str(path.parent)}}
    NotebookClient(
        notebook, kernel_name="python3", kernel_manager_class=OwnKernel, resources=here, extra_arguments=quiet
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = worth_keeping(cell.outputs)
    nbformat.write(notebook, path)


@tells_cause
def main():
    parser = Parser(description=__doc__)
    parser.add_argument(
        "notebooks", nargs="*", help="paths in nbs/ such as model/inference.ipynb; all if none is given"
    )
    names = parser.parse_args().notebooks or sorted(
        p.relative_to(NOTEBOOKS).as_posix() for p in NOTEBOOKS.rglob("*.ipynb")
    )
    with tempfile.TemporaryDirectory() as state, LocalCloud(Path(state), port=0, site_port=0) as cloud:
        cloud.enter()
        for i, name in enumerate(names, 1):
            print(f"[{i}/{len(names)}] {name}", flush=True)
            try:
                run(NOTEBOOKS / name)
            except CellExecutionError as e:
                sys.exit(f"{name}: {e.ename}: {e.evalue}")
    subprocess.run([str(Path(sys.executable).with_name("nbdev_clean"))], cwd=NOTEBOOKS.parent, check=True)


if __name__ == "__main__":
    main()
