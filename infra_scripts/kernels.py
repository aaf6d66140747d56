"""The kernel of the notebooks: this Python, whatever kernelspecs the machine has."""

import shutil
import sys

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

from sentiment_engine.causes import ExplainedFailure


class OwnKernel(AsyncKernelManager):
    "A kernel in the present environment. A kernelspec may be of another environment, or of a deleted one."

    @property
    def kernel_spec(self) -> KernelSpec:
        "Describe how the kernel starts."
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")


def check_kernelspec(name: str = "python3"):
    "Check that the kernelspec that JupyterLab finds starts a program. Raises Refused if the program is gone."
    spec = KernelSpecManager().get_kernel_spec(name)
    if not shutil.which(spec.argv[0]):
        gone = f"The Jupyter kernel in {spec.resource_dir} starts {spec.argv[0]}, which does not exist."
        raise ExplainedFailure(f"{gone} Remove it: {sys.executable} -m jupyter kernelspec remove {name}")
