"""The kernels of the notebooks: this Python, whatever kernelspecs the machine has, and each one is started early."""

import ast
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from traitlets import List

from sentiment_engine.causes import Refused

# What the functions of a notebook load when they are called, as code that loads it. The SDK and Java take seconds.
LATER = {
    "01": "from sentiment_engine.data.etl import start_spark\nstart_spark()",  # its own call gets the same session
    "03": "import sagemaker.train.model_trainer",
    "04": "import sagemaker.core.image_uris",
}


class OwnKernel(AsyncKernelManager):
    "A kernel in the present environment. A kernelspec may be of another environment, or of a deleted one."

    clients = List()

    @property
    def kernel_spec(self) -> KernelSpec:
        "Describe how the kernel starts."
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")

    def client(self, **given) -> AsyncKernelClient:
        "Make a client, and remember it: nbclient closes none of a kernel that it did not start."
        self.clients.append(client := super().client(**given))
        return client

    def forget_clients(self):
        "Close the connections of all clients."
        while self.clients:
            self.clients.pop().stop_channels()


def imported_by(notebook: Path) -> list[str]:
    "List the modules that the cells of a notebook import."
    nodes = []
    for cell in nbformat.read(notebook, as_version=4).cells:
        with suppress(SyntaxError):  # words, or one of IPython's commands
            nodes += ast.walk(ast.parse(cell.source))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return list(dict.fromkeys(names + [node.module for node in nodes if isinstance(node, ast.ImportFrom)]))


class EarlyKernels:
    "The kernels of notebooks that run one after another: the next one starts, and the last one ends, meanwhile."

    def __init__(self, notebooks: Iterable[Path], folder: Path):  # folder: where they run
        self.waiting, self.folder, self.started, self.used = list(notebooks), folder, [], 0

    def _start(self, notebook: Path):
        "Start the kernel of a notebook and let it load what the notebook needs."
        ahead = "\n".join([*(f"import {name}" for name in imported_by(notebook)), LATER.get(notebook.stem[:2], "")])
        loading = f"--IPKernelApp.exec_lines=exec({ahead!r}, {{}})"  # names nothing in the notebook
        quiet = "--IPKernelApp.log_level=50"  # a kernel that is told to stop is no news
        self.started.append(kernel := OwnKernel())
        run_sync(kernel.start_kernel)(cwd=str(self.folder), extra_arguments=[quiet, loading])

    @contextmanager
    def next(self) -> Iterator[OwnKernel]:
        "Lend the kernel of the next notebook, and then tell it to end."
        while self.waiting and len(self.started) < self.used + 2:
            self._start(self.waiting.pop(0))
        kernel, self.used = self.started[self.used], self.used + 1
        try:
            yield kernel
        except BaseException:
            run_sync(kernel.shutdown_kernel)()  # interrupts the cell, which may have to tidy up
            raise
        finally:
            kernel.forget_clients()
        run_sync(kernel.request_shutdown)()

    def close(self):
        "Wait for the kernels that were used, and kill the others."
        for kernel in self.started[self.used :]:
            run_sync(kernel.shutdown_kernel)(now=True)
        for kernel in self.started[: self.used]:
            run_sync(kernel.finish_shutdown)()
            run_sync(kernel.cleanup_resources)()


def check_kernelspec(name: str = "python3"):
    "Check that the kernelspec that JupyterLab finds starts a program. Raises Refused if the program is gone."
    spec = KernelSpecManager().get_kernel_spec(name)
    if not shutil.which(spec.argv[0]):
        gone = f"The Jupyter kernel in {spec.resource_dir} starts {spec.argv[0]}, which does not exist."
        raise Refused(f"{gone} Remove it: {sys.executable} -m jupyter kernelspec remove {name}")
