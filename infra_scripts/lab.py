"""Open the notebooks in JupyterLab, with the local cloud behind them.

If a cloud already runs, such as that of a demo, it is used and keeps running.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser
from sentiment_engine.deploy.kernels import check_kernelspec
from sentiment_engine.deploy.phases import (
    FAILURES,
    add_ports,
    explain_failure,
    local_cloud,
    stop_on_signals,
)
from sentiment_engine.local.processes import ROOT


def open_lab(
    command: Sequence[str],
    patience: float = 30,  # seconds until it must have ended
) -> int:  # exit status
    "Run JupyterLab until it ends. If this program is interrupted, JupyterLab ends its kernels first."
    # Only this program receives Ctrl-C: JupyterLab would ask for confirmation, and repeated signals confuse it.
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, process_group=0) as lab:
        try:
            return lab.wait()
        except KeyboardInterrupt:
            lab.terminate()
            with suppress(subprocess.TimeoutExpired):
                lab.wait(patience)
            lab.kill()  # a kernel that was just starting may block it for ever; kernels end with it
            raise


@tells_cause
def main():
    parser = Parser(description=__doc__)
    add_ports(parser)
    options, words = parser.parse_known_args()  # other options go to JupyterLab
    if os.geteuid() == 0:
        words.append("--allow-root")  # usual in containers; it listens on this machine only and requires its token
    # The printed address opens the index too, and the notebooks' links and pictures stay below its root.
    first = f"--ServerApp.root_dir={ROOT}", "--LabApp.default_url=/lab/tree/nbs/index.ipynb"
    command = [sys.executable, "-m", "jupyterlab", *first, *words]
    stop_on_signals()
    check_kernelspec()
    signal.signal(signal.SIGHUP, signal.default_int_handler)  # the terminal is closed
    try:
        with local_cloud(ports=options) as cloud:
            print(f"the local cloud is at {cloud.url}, the page at {cloud.site_url}", flush=True)
            sys.exit(open_lab(command))
    except FAILURES as e:
        sys.exit(f"lab: {explain_failure(e)}")
    except KeyboardInterrupt:
        print("\nStopped.")


if __name__ == "__main__":
    main()
