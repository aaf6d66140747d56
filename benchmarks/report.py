"""Shared code of the benchmarks: medians, goals, a description of the machine, and the style of plots."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".bench"  # git ignores it
GREY = "#808893"  # readable on light and dark backgrounds


def medians(rounds: Iterable[Mapping[str, float]]) -> dict[str, float]:
    "Return the median of each measure over the rounds that have it."
    values: dict[str, list[float]] = {}
    for measured in rounds:
        for name, value in measured.items():
            values.setdefault(name, []).append(value)
    return {name: median(found) for name, found in values.items()}


@dataclass(frozen=True)
class Goal:
    "The goal for one measure."

    what: str
    measure: str
    kind: str  # "faster": base / ours; "more": ours / base; "share": ours / base, at most; "at most": ours itself
    aim: float


def judge(goal: Goal, ours: Mapping[str, float], base: Mapping[str, float]) -> dict | None:
    "Compare a goal with the measured values. Returns None if they are missing."
    mine, other = ours.get(goal.measure), base.get(goal.measure)
    if mine is None:
        return None
    found = mine
    if goal.kind != "at most":
        if other is None:
            return None
        found = other / mine if goal.kind == "faster" else mine / other
    met = found <= goal.aim if goal.kind in ("share", "at most") else found >= goal.aim
    return {"what": goal.what, "kind": goal.kind, "aim": goal.aim, "found": found, "met": bool(met)}


def goal_line(judged: dict) -> str:
    "Format a judged goal as a sentence."
    number = {"share": "{:.0%}", "at most": "{:.2f} s"}.get(judged["kind"], "{:.1f} x").format
    sign = "at most" if judged["kind"] in ("share", "at most") else "at least"
    met = "met" if judged["met"] else "NOT MET"
    return f"{judged['what']:<46} {number(judged['found']):>8}  {sign + ' ' + number(judged['aim']):<16} {met}"


def table(head: list[str], rows: list[list[str]]) -> str:
    "Format rows below a heading, with the first column left-aligned and the others right-aligned."
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [[*row[:1], *row[1:]] for row in [head, *rows]]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in lines
    )


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", path.read_text(errors="replace"), re.M) if path.exists() else None
    return found[1].strip() if found else platform.processor()


def _instructions() -> list[str]:
    "List the CPU's instructions that speed up 8 and 16 bits."
    path = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:(.+)$", path.read_text(errors="replace"), re.M) if path.exists() else None
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    return [name for name in wanted if found and name in found[1].split()]


def machine(packages: Iterable[str]) -> dict:
    "Describe where and when a benchmark runs, and how busy the machine is before it begins."
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "cpu": _cpu(),
        "instructions": _instructions(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": round(os.getloadavg()[0], 2),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions,
    }


def begin(packages: Iterable[str]) -> dict:  # from `machine`
    "Make SIGTERM end a benchmark like Ctrl-C, create its folder, and describe the machine."
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    CACHE.mkdir(exist_ok=True)
    return machine(packages)


def busy(described: dict) -> str:
    "Return a warning if other programs were busy before the benchmark began."
    if described["load_before"] < 0.3 * described["cores"]:
        return ""
    return f"The machine was busy before this began (load {described['load_before']}): the figures are not to be kept."


def write_json(result: dict, path: Path):
    "Write a result as JSON, with floats rounded to five digits."
    path.parent.mkdir(parents=True, exist_ok=True)
    short = json.loads(json.dumps(result), parse_float=lambda digits: float(f"{float(digits):.5g}"))
    path.write_text(json.dumps(short, indent=1) + "\n")


def in_process(
    module: str,  # it accepts --run JOB RESULT
    job: dict,
) -> dict:  # its result
    "Run one job in a separate process. Raises RuntimeError with the end of its output."
    with TemporaryDirectory(dir=CACHE) as folder:
        given, result, log = (Path(folder) / name for name in ("job.json", "result.json", "log"))
        given.write_text(json.dumps(job))
        env = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)}  # idle threads sleep
        words = [sys.executable, "-m", module, "--run", str(given), str(result)]
        with log.open("w") as said:
            process = subprocess.Popen(words, stdout=said, stderr=said, env=env, cwd=ROOT, start_new_session=True)
        try:
            process.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if not result.exists():
            raise RuntimeError(f"{module} failed: {log.read_text(errors='replace').strip()[-500:]}")
        return json.loads(result.read_text())


def pyplot():
    "Return matplotlib's pyplot, with colours that are readable on light and dark backgrounds."
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"text.color": GREY, "axes.labelcolor": GREY, "xtick.color": GREY, "ytick.color": GREY}
    plt.rcParams |= {"axes.edgecolor": GREY, "axes.titlecolor": GREY, "svg.hashsalt": "bench"}
    return plt


def save(
    figure,
    path: Path,
    head: float = 0.0,  # share of the height for a legend
):
    "Write a figure without a background and without a date."
    figure.tight_layout(rect=(0, 0, 1, 1 - head))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, transparent=True, metadata={"Date": None})
