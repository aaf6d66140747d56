"""Check that no generated file differs from its source: notebooks are clean, package and documents up to date."""

import hashlib
import subprocess
import sys
from pathlib import Path

from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def snapshot() -> dict[str, str]:
    "Hash every notebook and every module of the package."
    files = [
        *ROOT.glob("nbs/**/*.ipynb"),
        *ROOT.glob("sentiment_engine/**/*.py"),
        ROOT / "README.md",
        ROOT / "docs/benchmarks.md",
    ]
    return {str(f.relative_to(ROOT)): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(files)}


@tells_cause
def main():
    Parser(description=__doc__).parse_args()
    before = snapshot()
    figures, readme = ["python", "-m", "benchmarks.figures"], ["python", "infra_scripts/make/render_readme.py"]
    for command in (["nbdev_clean"], ["nbdev_export"], figures, readme):
        subprocess.run([str(BIN / command[0]), *command[1:]], cwd=ROOT, check=True)
    after = snapshot()
    changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    if changed:
        sys.exit(f"nbdev_clean, nbdev_export or make docs changed these; check and commit: {', '.join(changed)}")
    print(f"{len(after)} notebooks, modules and documents: all match their sources")


if __name__ == "__main__":
    main()
