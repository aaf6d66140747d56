"""Break the product on purpose, one change at a time, and list the changes that no test notices.

mutants/<area>.toml lists the changes: a unique name, the file, its text before and after, and the test that must fail.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from sentiment_engine.commands import Parser, at_least

ROOT = Path(__file__).resolve().parents[2]
AREAS = Path(__file__).with_name("mutants")
MODEL = "tests/service/test_model_based.py"
PARTS = ("sentiment_engine", "lambdas", "website", "tests", "infra_scripts", "pyproject.toml", "settings.ini")
LINKED = ("models",)  # large, and never changed
ALLOWED = {"lifecycle": 0.0}  # share of an area's mutants that may survive; other areas: TOLERATED
TOLERATED = 0.1
PATIENCE = {True: 120, False: 900}  # seconds for a named test, for the model-based one; ends endless loops


@dataclass(frozen=True)
class Mutant:
    "One change of a file; `old` must occur exactly once."

    area: str
    name: str
    file: str  # relative to the repository
    old: str
    new: str
    by: str = ""  # the test that must notice it; empty: the model-based one


def read_mutants() -> list[Mutant]:
    "Read the mutants of every area."
    held = {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(AREAS.glob("*.toml"))}
    return [Mutant(area, **row) for area, table in held.items() for row in table["mutant"]]


def patched(mutant: Mutant, root: Path = ROOT) -> str:
    "Return the file's text with the mutant applied. Raises ValueError if the patch no longer fits."
    source = (root / mutant.file).read_text(encoding="utf-8")
    if (count := source.count(mutant.old)) != 1:
        raise ValueError(f"{mutant.name}: its text occurs {count} times in {mutant.file}, not once")
    changed = source.replace(mutant.old, mutant.new)
    if mutant.file.endswith(".py"):
        compile(changed, mutant.file, "exec")
    return changed


def play(tests: Sequence[str], limit: float, mutant: Mutant | None, examples: int) -> tuple[bool, str, float]:
    "Run tests on a copy of the repository. Return whether they passed, what failed, seconds."
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        for part in PARTS:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, Path(folder) / part)
        for part in LINKED:
            (Path(folder) / part).symlink_to(ROOT / part)
        if mutant:
            (Path(folder) / mutant.file).write_text(patched(mutant), encoding="utf-8")
        env = os.environ | {
            "MODEL_EXAMPLES": str(examples),
            "MODEL_NO_SHRINK": "1",
            "CI": "1",
        }  # CI: no random examples
        env |= {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", *tests]
        begun = time.monotonic()
        with subprocess.Popen(
            words, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as test:
            try:
                output = test.communicate(timeout=limit)[0]
            except BaseException as stopped:
                for process in psutil.Process(test.pid).children(recursive=True):  # its servers too
                    process.kill()
                test.kill()
                if not isinstance(stopped, subprocess.TimeoutExpired):
                    raise
                return False, f"the test did not end within {limit} s", limit
    if test.returncode not in (0, 1):
        raise RuntimeError(f"the test could not be run:\n{output[-4000:]}")
    said = re.findall(r"^E\s+(?:\|\s*)?((?:\w+\.)*(?:\w*Error|\w*Exception|Failed|assert)\b.*)$", output, re.M)
    return test.returncode == 0, said[0][:90] if said else "", time.monotonic() - begun


def notice(mutant: Mutant, examples: int) -> tuple[bool, str, float]:
    "Run the mutant's test."
    return play([mutant.by or MODEL], PATIENCE[bool(mutant.by)], mutant, examples)


def verdict(survived: dict[str, list[bool]]) -> tuple[list[str], bool]:  # lines to print, whether all is well
    "Count the survivors of each area."
    lines, fine = [f"{'area':<12}{'mutants':>8}{'survived':>10}{'share':>8}"], True
    for area, those in survived.items():
        share = sum(those) / len(those)
        well = share <= ALLOWED.get(area, TOLERATED)
        lines.append(f"{area:<12}{len(those):>8}{sum(those):>10}{share:>8.0%}{'' if well else '  too many'}")
        fine = fine and well
    return lines, fine


def main() -> int:
    "Run the script."
    mutants = read_mutants()
    areas = list(dict.fromkeys(mutant.area for mutant in mutants))
    parser = Parser(description=__doc__)
    parser.add_argument("--area", action="append", choices=areas, help="the mutants of this area; may be repeated")
    parser.add_argument("--only", action="append", metavar="NAME", help="this mutant; may be repeated")
    parser.add_argument("--examples", type=at_least(1), default=1000, help="lives to play on each of two seeds")
    parser.add_argument("--jobs", type=at_least(1), default=2, help="mutants at a time")
    args = parser.parse_args()
    if unknown := set(args.only or ()) - {mutant.name for mutant in mutants}:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    chosen = [m for m in mutants if (not args.area or m.area in args.area) and (not args.only or m.name in args.only)]
    for mutant in chosen:
        patched(mutant)
    tests = list(dict.fromkeys(mutant.by or MODEL for mutant in chosen))
    passed, said, took = play(tests, 3600, None, args.examples)
    print(f"{'(unchanged)':<50} {'passed' if passed else 'FAILED: ' + said} {took:.0f} s", flush=True)
    if not passed:
        return 1
    survived: dict[str, list[bool]] = {}
    with ThreadPoolExecutor(args.jobs) as pool:
        found = pool.map(lambda mutant: notice(mutant, args.examples), chosen)
        for mutant, (passed, said, took) in zip(chosen, found, strict=True):
            survived.setdefault(mutant.area, []).append(passed)
            by = (mutant.by or MODEL).removeprefix("tests/")
            print(f"{mutant.name:<50} {'SURVIVED' if passed else said} [{by}] {took:.0f} s", flush=True)
    lines, fine = verdict(survived)
    print(*lines, sep="\n")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
