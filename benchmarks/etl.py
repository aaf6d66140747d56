"""Clean the same reviews in five ways, and compare time, CPU and memory. Only the figures are committed.

ours      the Glue job's plan, `sentiment_engine.data.etl.clean_reviews`, on one machine
original  Spark as in the first version of this project: it infers the types and collects all distinct values of each
          column to find out whether it is empty (Glue Studio's "Drop Null Fields"). Then it does the same cleaning, and
          computes each output (clean rows, rejected lines, counts) in a separate action without caching
rows      like original, but it writes only the clean rows, so it does less than the others
pandas    the same cleaning in pandas
polars    the same cleaning in lazy polars, and in Python where polars has no expression (texts to clean, SHA-256)

Each way runs in separate processes. The benchmark fails unless ours, pandas and polars write the same rows.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
from tqdm import tqdm

from benchmarks.report import CACHE, ROOT, begin, busy, pyplot, save, write_json
from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser, at_least, folder
from sentiment_engine.data.cleaning import UNTIDY, clean
from sentiment_engine.data.reviews import generate_reviews, parse_review, read_reviews

RESULT = ROOT / "benchmarks/results/etl.json"
PLOT = ROOT / "images/etl-benchmark.svg"
PACKAGES = ("pyspark", "pandas", "polars", "pyarrow")
SIZES = (100_000, 300_000, 1_000_000, 3_000_000)
POOL = 20_000  # different reviews
PATIENCE = 1_200  # seconds for one run
CARRIED = ["review_id", "title", "text", "stars", "label", "timestamp", "split"]


# ---- the data


def make_lines(rows: int, data: Path | None):
    """Write `rows` raw reviews from a pool, each with a unique number.

    One review in twenty repeats the previous text, and one in two hundred does so with the opposite stars.
    """
    made = (parse_review(line) for _, line in generate_reviews(POOL, seed=1))
    pool = [r for r in islice(read_reviews(data) if data else made, POOL) if r]
    for i in range(rows):
        n = i - 1 if i % 20 == 10 else i
        review = pool[n % len(pool)]
        opposite = i % 200 == 110
        text = f"{review['text']} No. {n}." if review["text"].strip() else review["text"]
        rating = float(6 - review["rating"] if opposite else review["rating"])
        new = {"text": text, "timestamp": 1_500_000_000_000 + i, "rating": rating, "title": review.get("title") or ""}
        yield json.dumps({k: v for k, v in review.items() if k != "category"} | new)


def make_data(rows: int, data: Path | None) -> Path:
    "Return a folder with `rows` raw reviews in four files, made once."
    key = hashlib.sha256(f"5 {rows} {data}".encode()).hexdigest()[:8]
    folder = CACHE / f"raw-{rows}-{key}"
    if not folder.exists():
        if (free := shutil.disk_usage(ROOT).free) < rows * 3_000:
            raise SystemExit(f"{rows:,} reviews need {rows * 3_000 / 1e9:.0f} GB of disk, {free / 1e9:.0f} are free")
        half = CACHE / f"{folder.name}.part"
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        files = [(half / f"Part_{i}.jsonl").open("w") for i in range(4)]
        for i, line in enumerate(tqdm(make_lines(rows, data), total=rows, desc=f"{rows:,} reviews", unit_scale=True)):
            files[i * 4 // rows].write(line + "\n")
        for file in files:
            file.close()
        half.rename(folder)
    return folder


# ---- the five ways, each in a separate process


def run_ours(raw: str, out: str) -> dict:
    from sentiment_engine.data.etl import clean_reviews, start_spark

    report = clean_reviews(start_spark(), raw, f"{out}/processed", f"{out}/rejected", f"{out}/report.json")
    return {"kept": report["kept"], "repeats": report["repeats"], **report["rejected"]}


def _marked_as_once(raw: str):
    "Read and judge the reviews as the first version did."
    from pyspark.sql import functions as F

    from sentiment_engine.data.etl import judge, mark_repeats, split_of, start_spark

    reviews = start_spark().read.json(raw)
    for column in reviews.columns:
        values = {str(row[0]) for row in reviews.select(column).distinct().collect()}
        if values <= {"None", "", "null"}:
            reviews = reviews.drop(column)
    cleaned = [F.udf(clean)(name).alias(name) for name in ("title", "text")]
    fields = [*cleaned, F.col("rating"), F.col("timestamp"), F.col("verified_purchase")]
    nothing = [F.lit(None).cast("string").alias("fault"), F.lit("Part").alias("category")]
    marked = mark_repeats(judge(reviews.select(*fields, *nothing, F.to_json(F.struct("*")).alias("line"))))
    return marked.withColumn("split", split_of(F.col("review_id")))


def _write_as_once(marked, out: str) -> None:
    from sentiment_engine.data.etl import CLEAN_COLUMNS

    kept = marked.where("reason is null").select(*CLEAN_COLUMNS)
    kept.write.mode("overwrite").partitionBy("split").parquet(f"{out}/processed")


def run_rows(raw: str, out: str) -> dict:
    _write_as_once(_marked_as_once(raw), out)
    return {}


def run_original(raw: str, out: str) -> dict:
    from sentiment_engine.data.quality import measure_quality

    marked = _marked_as_once(raw)
    _write_as_once(marked, out)
    marked.where("reason <> 'repeat'").select("reason", "category", "line").write.json(f"{out}/rejected")
    report = measure_quality(marked)
    return {"kept": report["kept"], "repeats": report["repeats"], **report["rejected"]}


def identity(text: str) -> str:
    return hashlib.sha256(text.lower().encode()).hexdigest()[:32]


def run_pandas(raw: str, out: str) -> dict:
    import pandas as pd

    used = ["rating", "title", "text", "timestamp", "verified_purchase"]
    rows = pd.concat(
        pd.read_json(path, lines=True, dtype=False)[used].assign(category=path.stem)
        for path in sorted(Path(raw).iterdir())
    )
    read = len(rows)
    rows["text"], rows["title"] = rows.text.map(clean), rows.title.map(clean)
    blank, bad = rows.text == "", ~rows.rating.isin([1, 2, 3, 4, 5])
    rows = rows[~blank & ~bad]
    rows["stars"], rows["label"] = rows.rating.astype("int32"), (rows.rating >= 4).astype("int32")
    rows["review_id"] = rows.text.map(identity)
    labels = rows.groupby("review_id").label
    both = labels.transform("min") != labels.transform("max")
    kept = rows[~both].sort_values("timestamp", kind="stable").drop_duplicates("review_id")
    place = kept.review_id.str.slice(0, 8).map(lambda digits: int(digits, 16)) % 100
    kept["split"] = np.select([place < 80, place < 90], ["train", "validation"], "test")
    kept = kept.drop(columns="rating").rename(columns={"verified_purchase": "verified"})
    kept.sort_values(["split", "review_id"]).to_parquet(f"{out}/processed", partition_cols=["split"], index=False)
    rejected = {"blank_text": int(blank.sum()), "bad_rating": int((bad & ~blank).sum()), "conflicting": int(both.sum())}
    repeats = read - len(kept) - sum(rejected.values())
    return {"kept": len(kept), "repeats": repeats, **rejected}


def run_polars(raw: str, out: str) -> dict:
    import polars as pl

    schema = {"rating": pl.Float64, "title": pl.String, "text": pl.String, "timestamp": pl.Int64}
    schema |= {"verified_purchase": pl.Boolean}

    def cleaned(column: str) -> pl.Expr:
        untidy, text = pl.col(column).str.contains(UNTIDY), pl.col(column)
        cleaned = text.map_elements(clean, return_dtype=pl.String)
        return pl.when(untidy).then(cleaned).otherwise(text.str.strip_chars(" "))

    place = pl.col("review_id").str.slice(0, 8).str.to_integer(base=16, dtype=pl.Int64) % 100
    early = pl.when(place < 80).then(pl.lit("train")).when(place < 90).then(pl.lit("validation"))
    side = early.otherwise(pl.lit("test"))
    rows = (
        pl.concat(
            pl.scan_ndjson(path, schema=schema).with_columns(category=pl.lit(path.stem))
            for path in sorted(Path(raw).iterdir())
        )
        .with_columns(text=cleaned("text"), title=cleaned("title"))
        .collect()
    )
    read, blank = rows.height, pl.col("text") == ""
    bad = ~pl.col("rating").is_in([1.0, 2.0, 3.0, 4.0, 5.0])
    rejected = {"blank_text": rows.filter(blank).height, "bad_rating": rows.filter(~blank & bad).height}
    rows = rows.filter(~blank & ~bad).with_columns(
        stars=pl.col("rating").cast(pl.Int32),
        label=(pl.col("rating") >= 4).cast(pl.Int32),
        review_id=pl.col("text").map_elements(identity, return_dtype=pl.String),
    )
    both = pl.col("label").min().over("review_id") != pl.col("label").max().over("review_id")
    fine = rows.filter(~both)
    rejected["conflicting"] = rows.height - fine.height
    kept = (
        fine.sort("timestamp")
        .unique("review_id", keep="first", maintain_order=True)
        .with_columns(split=side)
        .sort("split", "review_id")
        .rename({"verified_purchase": "verified"})
        .drop("rating")
    )
    for (side,), part in kept.group_by("split"):
        folder = Path(out) / f"processed/split={side}"
        folder.mkdir(parents=True)
        part.drop("split").write_parquet(folder / "part-0.parquet", compression="snappy")
    return {"kept": kept.height, "repeats": read - kept.height - sum(rejected.values()), **rejected}


RUNNERS = {"ours": run_ours, "original": run_original, "rows": run_rows, "pandas": run_pandas, "polars": run_polars}


def same_rows(processed: Path) -> str:
    "Return a hash of the rows in a Parquet folder that does not depend on their order."
    import pyarrow.dataset as ds

    total = 0
    for batch in ds.dataset(processed, format="parquet", partitioning="hive").to_batches(columns=CARRIED):
        for row in zip(*(batch[name].to_pylist() for name in CARRIED), strict=True):
            total += int.from_bytes(hashlib.blake2b(repr(row).encode(), digest_size=8).digest(), "big")
    return f"{total % 2**64:016x}"


# ---- measuring


def measure(runner: str, raw: Path) -> dict:
    "Run one way in a separate process. Return wall seconds, CPU seconds, peak memory, counts and the rows' hash."
    with tempfile.TemporaryDirectory(dir=CACHE) as out:
        words = [sys.executable, "-m", "benchmarks.etl", "--run", runner, str(raw), out]
        cpu: dict[int, float] = {}  # seconds by process
        start, peak, said = time.monotonic(), 0, Path(out) / "said"
        with said.open("w") as errors:
            process = subprocess.Popen(words, start_new_session=True, stderr=errors, cwd=ROOT)
        try:
            while process.poll() is None:
                peak = max(peak, _sample(process.pid, cpu))
                if time.monotonic() - start > PATIENCE:
                    return {"failed": f"stopped after {PATIENCE} s"}
                time.sleep(0.1)
            seconds = time.monotonic() - start
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the JVM, too
        result = Path(out) / "result.json"
        if process.returncode or not result.exists():
            reason = re.findall(r"^(?:Caused by: )?[\w.]*(?:Error|Exception)\b.*", said.read_text(), re.M)
            return {"failed": (reason[-1] if reason else f"exit code {process.returncode}")[:120]}
        found = json.loads(result.read_text())
        rows = same_rows(Path(out) / "processed")
    return {"seconds": seconds, "cpu": sum(cpu.values()), "peak": peak, "counts": found, "hash": rows}


def _sample(pid: int, cpu: dict[int, float]) -> int:  # bytes in use by the process and its children
    memory = 0
    try:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            times = process.cpu_times()
            cpu[process.pid] = times.user + times.system
            memory += process.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return memory


def linear(sizes: list[int], seconds: list[float]) -> tuple[float, float, float]:
    "Fit seconds = start + rows * slope. Return start, slope and r²."
    slope, start = np.polyfit(sizes, seconds, 1)
    left = np.sum((np.array(seconds) - (start + slope * np.array(sizes))) ** 2)
    return start, slope, 1 - left / np.sum((np.array(seconds) - np.mean(seconds)) ** 2)


def table(results: dict[str, dict[str, dict]]) -> str:
    "Write the results as a table."
    head = ("seconds", 8), ("CPU s", 7), ("rows/s", 9), ("rows/CPU s", 11), ("vs original", 12), ("peak MB", 8)
    out = [f"{'rows':>10} {'way':<9} " + " ".join(f"{name:>{width}}" for name, width in head)]
    for size, ways in results.items():
        base = ways.get("original", {}).get("seconds")
        for way, r in ways.items():
            if "failed" in r:
                out.append(f"{int(size):>10,} {way:<9} {r['failed']}")
                continue
            ratio = f"{base / r['seconds']:.1f} x" if base else ""
            speed, per_cpu = int(size) / r["seconds"], int(size) / r["cpu"]
            out.append(
                f"{int(size):>10,} {way:<9} {r['seconds']:>8.1f} {r['cpu']:>7.1f} {speed:>9,.0f} {per_cpu:>11,.0f} "
                f"{ratio:>12} {r['peak'] / 1e6:>8,.0f}"
            )
    return "\n".join(out)


def verdict(results: dict[str, dict[str, dict]]) -> tuple[list[str], bool]:
    "Report which goals are met, and whether the ways agree."
    said, agree = [], True
    for size, ways in results.items():
        same = {
            way: (r["hash"], r["counts"]) for way, r in ways.items() if way not in ("original", "rows") and "hash" in r
        }
        if len(same) > 1:
            fine = len({h for h, _ in same.values()}) == 1 and len({_known(c) for _, c in same.values()}) == 1
            agree &= fine
            said.append(f"{int(size):,} rows: {', '.join(same)} leave {'the same' if fine else 'DIFFERENT'} rows")
    ours = {int(size): ways["ours"] for size, ways in results.items() if "seconds" in ways.get("ours", {})}
    if len(ours) > 2:
        start, slope, r2 = linear(list(ours), [r["seconds"] for r in ours.values()])
        said.append(f"ours takes {start:.1f} s and {slope * 1e6:.1f} s a million rows, r² {r2:.4f} (aim: above 0.98)")
    if {300_000, 3_000_000} <= ours.keys():
        grown = ours[3_000_000]["peak"] / ours[300_000]["peak"]
        said.append(f"memory of ours at 3 million rows: {grown:.2f} times that at 0.3 million (aim: flat)")
    million = {way: r for way, r in results.get("1000000", {}).items() if "seconds" in r}
    for way, aim in (("original", " (aim: 3)"), ("rows", "")):
        if {"ours", way} <= million.keys():
            ratio = million[way]["seconds"] / million["ours"]["seconds"]
            said.append(f"ours is {ratio:.1f} times as fast as {way} at a million rows{aim}")
    return said, agree


def _known(counts: dict) -> tuple:
    return tuple(sorted((name, count) for name, count in counts.items() if count))


def plot(results: dict[str, dict[str, dict]], path: Path):
    "Plot seconds and memory over rows, readable on light and dark backgrounds."
    plt = pyplot()
    colours = {"ours": "#2a9d8f", "original": "#e76f51", "rows": "#f2b5a0", "pandas": "#9d7bd8", "polars": "#d49a1f"}
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for ax, key, scale, name in ((axes[0], "seconds", 1, "seconds"), (axes[1], "peak", 1e9, "peak memory, GB")):
        for way, colour in colours.items():
            points = [(int(s) / 1e6, w[way][key] / scale) for s, w in results.items() if key in w.get(way, {})]
            if points:
                ax.plot(*zip(*points, strict=True), marker="o", color=colour)
                ax.annotate(way, points[-1], xytext=(5, 3), textcoords="offset points", color=colour)
        ax.set(xlabel="million reviews", ylabel=name)
        ax.spines[["top", "right"]].set_visible(False)
        ax.margins(x=0.18)
        ax.set_ylim(bottom=0)
    save(fig, path)


@tells_cause
def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--sizes", type=at_least(1), nargs="+", default=SIZES, metavar="ROWS")
    parser.add_argument("--runners", nargs="+", choices=RUNNERS, default=list(RUNNERS))
    parser.add_argument("--data", type=folder, help="a folder of real reviews to vary, instead of made-up ones")
    parser.add_argument("--no-files", action="store_true", help="write neither the JSON nor the plot")
    parser.add_argument("--run", nargs=3, metavar=("RUNNER", "RAW", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        found = RUNNERS[args.run[0]](*args.run[1:])
        (Path(args.run[2]) / "result.json").write_text(json.dumps(found))
        os._exit(0)  # pandas and its threads do not always exit cleanly
    described = begin(PACKAGES)
    results: dict[str, dict[str, dict]] = {}
    for size in args.sizes:
        raw = make_data(size, args.data)
        for runner in args.runners:
            print(f"{size:>10,} {runner:<9} ", end="", flush=True)
            found = results.setdefault(str(size), {})[runner] = measure(runner, raw)
            print(found.get("failed") or f"{found['seconds']:.1f} s, {found['peak'] / 1e6:,.0f} MB", flush=True)
    said, agree = verdict(results)
    print("\n" + table(results) + "\n\n" + "\n".join(said) + "\n" + busy(described))
    if not args.no_files:
        write_json({"machine": described, "sizes": results}, RESULT)
        plot(results, PLOT)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
