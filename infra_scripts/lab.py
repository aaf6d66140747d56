"""Open the notebooks in JupyterLab, with the local cloud behind them.

A cloud that runs already, such as that of a demo, is used and goes on afterwards.
"""

import argparse
import os
import subprocess
import sys

from deploy import FAILURES, ROOT, add_ports, explain, local_cloud


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_ports(parser)
    options, words = parser.parse_known_args()  # what is not ours is for JupyterLab
    if os.geteuid() == 0:
        words.append("--allow-root")  # as in most containers: it listens on this machine only, and asks for its token
    command = [sys.executable, "-m", "jupyterlab", str(ROOT / "nbs/index.ipynb"), *words]
    try:
        with local_cloud(ports=options) as cloud:
            print(f"the local cloud is at {cloud.url}, the page at {cloud.site_url}", flush=True)
            sys.exit(subprocess.run(command, cwd=ROOT).returncode)
    except FAILURES as e:
        sys.exit(f"lab: {explain(e)}")
    except KeyboardInterrupt:
        print("\nStopped.")


if __name__ == "__main__":
    main()
