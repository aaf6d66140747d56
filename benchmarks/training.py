"""Fine-tune one base model on the same reviews with our recipe and the original one, and compare samples per second.

ours       our training job with its default recipe: bf16 where the processor supports it, reviews of similar length
           in one batch, 192 tokens, frozen word vectors
ours-128   the same with 128 tokens
ours-512   the same with 512 tokens, the model's maximum
original   the first version's recipe: each review padded to 512 tokens, 32 bits, random order, dropout, all weights,
           AdamW at 5e-5

Each training is a separate process, each round has a different order, and the figures are medians. Ours trains on all
the reviews. For the original, whose steps all take the same time, only some steps are timed. --accuracy trains both on
the same number of reviews, completely, and tests them.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from benchmarks.inference import load_raw
from benchmarks.report import (
    CACHE,
    GREY,
    ROOT,
    Goal,
    begin,
    busy,
    goal_line,
    in_process,
    judge,
    medians,
    pyplot,
    save,
    table,
    write_json,
)
from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser, folder
from sentiment_engine.data.reviews import LABELS, label_of, review_text

MODULE = "benchmarks.training"
RESULT = ROOT / "benchmarks/results/training.json"
PLOT = ROOT / "images/bench_training.svg"
CASES: dict[str, dict | None]  # recipes
CASES = {"ours": {}, "ours-128": {"max_length": 128}, "ours-512": {"max_length": 512}, "original": None}
BATCH, PADDED, RATE = 16, 512, 5e-5  # of the original
WARM_UP = 3  # untimed steps
PACKAGES = ("torch", "transformers", "accelerate")
GOALS = (
    ("ours", Goal("samples/s of ours against the original", "samples/s", "more", 20)),
    ("ours-512", Goal("samples/s at the same 512 tokens", "samples/s", "more", 10)),
)
LOSS = 0.3  # percentage points of accuracy that the speed may cost


# ---- one training, in a separate process


def train_ours(rows: pd.DataFrame, base: Path, options: dict, steps: int, whole: bool, folder: Path):
    "Train with our recipe on all rows. Return the Trainer and samples per second."
    from sentiment_engine.model.training_job import Recipe, encode, fit, load_model

    tokenizer = _start(base)
    recipe = Recipe(**options)
    encoded = encode(tokenizer, rows, recipe.max_length)
    warm = Recipe(**options, max_steps=WARM_UP)
    fit(load_model(str(base), warm), tokenizer, encoded[: WARM_UP * recipe.batch_size], warm, folder)
    trainer = fit(load_model(str(base), recipe), tokenizer, encoded, recipe, folder)
    return trainer, len(rows) / trainer.state.log_history[-1]["train_runtime"]


def train_original(rows: pd.DataFrame, base: Path, steps: int, whole: bool, folder: Path):
    "Train with the original recipe for WARM_UP + `steps` steps, or on the `whole` sample. Return the same."
    from torch.cuda import is_available
    from transformers import (
        AutoModelForSequenceClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    tokenizer, ends = _start(base), []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            ends.append(time.monotonic())

    encoded = tokenizer(rows["text"].tolist(), truncation=True, max_length=PADDED, padding="max_length")
    train = [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]
    train = [row | {"labels": int(label)} for row, label in zip(train, rows["label"], strict=True)]
    args = {
        "output_dir": str(folder),
        "per_device_train_batch_size": BATCH,
        "learning_rate": RATE,
        "save_strategy": "no",
    }
    args |= {"logging_strategy": "no", "report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False}
    args |= {"num_train_epochs": 1, "max_steps": -1 if whole else WARM_UP + steps, "use_cpu": not is_available()}
    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(base),
        args=TrainingArguments(**args, per_device_eval_batch_size=32),
        train_dataset=train,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[Clock()],
    )
    trainer.train()
    timed = ends[min(WARM_UP, len(ends) - 1) - 1 :]
    return trainer, (len(timed) - 1) * BATCH / (timed[-1] - timed[0])


def _start(base: Path):
    "Set the seed, and return the tokenizer of the base model."
    import torch
    from transformers import AutoTokenizer, set_seed

    torch.set_flush_denormal(True)
    set_seed(0)
    return AutoTokenizer.from_pretrained(base)


def run(job: dict) -> dict:  # samples/s and, for each row of `test`, whether its prediction is right
    "Run one training."
    from sentiment_engine.model.training_job import device_name, predict_rows

    options, base = CASES[job["case"]], Path(job["base"])
    rows, test = pd.DataFrame(job["train"]), pd.DataFrame(job["test"])
    with TemporaryDirectory() as folder:
        how = job["steps"], bool(len(test)), Path(folder)
        done = train_original(rows, base, *how) if options is None else train_ours(rows, base, options, *how)
        trainer, speed = done
        found = {"samples/s": speed, "device": device_name()}
        if len(test):
            said = predict_rows(trainer, _start(base), test)
            found["right"] = (said["predicted"] == said["label"]).astype(int).tolist()
    return found


# ---- measuring


def labelled(count: int, data: Path | None) -> list[dict]:  # text and label
    "Return reviews in random order, half of them negative; otherwise always answering POSITIVE would score high."
    reviews = [r for r in load_raw(data, 20 * count) if r["rating"] in (1, 2, 3, 4, 5)]
    rows = {review_text(r.get("title"), r["text"]): label_of(r["rating"]) for r in reviews}
    of = {label: [text for text, its in rows.items() if text.strip() and its == label] for label in (0, 1)}
    half = {0: count // 2, 1: count - count // 2}
    if few := [LABELS[label] for label in of if len(of[label]) < half[label]]:
        raise SystemExit(f"too few {' and '.join(few)} reviews: {count} are needed, half of each label")
    found = [{"text": text, "label": label} for label in of for text in of[label][: half[label]]]
    random.Random(3).shuffle(found)
    return found


def measure_speed(cases: list[str], job: dict, rounds: int) -> dict[str, list[dict]]:
    "Time each case once per round."
    found: dict[str, list[dict]] = {case: [] for case in cases}
    rng = random.Random(7)
    for number in range(1, rounds + 1):
        for case in rng.sample(cases, len(cases)):
            print(f"round {number}/{rounds}: {case:<9} ", end="", flush=True)
            done = in_process(MODULE, job | {"case": case, "test": []})
            found[case].append(done)
            print(f"{done['samples/s']:.2f} samples/s", flush=True)
    return found


def measure_accuracy(cases: list[str], job: dict, speeds: dict[str, float]) -> dict[str, dict]:
    "Train each case on the same whole sample, and test it."
    minutes = sum(len(job["train"]) / speeds[case] for case in cases) / 60
    print(
        f"Accuracy: {len(job['train'])} reviews to train on take about {minutes:.0f} minutes, the tests more",
        flush=True,
    )
    right = {case: np.array(in_process(MODULE, job | {"case": case})["right"]) for case in cases}
    base, out = right["original"], {}
    for case, hits in right.items():
        out[case] = {"accuracy": float(hits.mean()), "standard_error": standard_error(hits)}
        if case != "original":
            out[case] |= {
                "points": 100 * float((hits - base).mean()),
                "points_error": 100 * standard_error(hits - base),
            }
    return out


def standard_error(values: np.ndarray) -> float:
    "Return the standard error of a mean. Given paired differences, it is that of two models on the same texts."
    return float(values.std(ddof=1) / np.sqrt(len(values)))


# ---- reporting


def verdicts(found: dict[str, dict[str, float]]) -> list[dict]:
    base = found.get("original", {})
    return [j for case, goal in GOALS if (j := judge(goal, found.get(case, {}), base))]


def accuracy_lines(accuracy: dict[str, dict]) -> list[str]:
    "Report the accuracy of each case, and whether the difference is significant."
    out = []
    for case, m in accuracy.items():
        line = f"{case:<9} accuracy {m['accuracy']:.1%} ± {m['standard_error']:.1%}"
        if "points" in m:
            met = "met" if m["points"] >= -LOSS else "NOT MET"
            sure = "" if abs(m["points"] + LOSS) > 2 * m["points_error"] else "; too few tests to be sure"
            line += f", {m['points']:+.1f} ± {m['points_error']:.1f} points; at most {LOSS} lost: {met}{sure}"
        out.append(line)
    return out


def say(found: dict[str, dict[str, float]], accuracy: dict[str, dict]) -> str:
    "Format the whole report."
    base = found.get("original", {}).get("samples/s")
    rows = [
        [case, f"{m['samples/s']:.2f}", f"{m['samples/s'] / base:.1f}x" if base else "-"] for case, m in found.items()
    ]
    lines = [table(["recipe", "samples/s", "vs original"], rows), "", *map(goal_line, verdicts(found))]
    return "\n".join(lines + accuracy_lines(accuracy))


def plot(found: dict[str, dict[str, float]], path: Path):
    "Plot the samples per second of each case."
    plt = pyplot()
    names, values = list(found), [m["samples/s"] for m in found.values()]
    fig, ax = plt.subplots(figsize=(8, 0.55 * len(names) + 0.9))
    bars = ax.barh(names, values, color=["#e76f51" if name == "original" else "#2a9d8f" for name in names])
    ax.bar_label(bars, [f"{value:.1f}" for value in values], padding=4, color=GREY)
    ax.invert_yaxis()
    ax.set(xlabel="samples a second")
    ax.margins(x=0.12)
    ax.spines[["top", "right"]].set_visible(False)
    save(fig, path)


def parse() -> argparse.Namespace:
    parser = Parser("python -m benchmarks.training", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test of two minutes; its files go to .bench/")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, help="default: 3")
    parser.add_argument("--samples", type=int, help="reviews that ours trains on to be timed; default: 800")
    parser.add_argument("--steps", type=int, help=f"of the original that are timed, after {WARM_UP}; default: 20")
    parser.add_argument("--accuracy", action="store_true", help="also train ours and the original on a whole sample")
    parser.add_argument("--train-rows", type=int, default=600, help="reviews of that sample")
    parser.add_argument("--test-rows", type=int, default=1_000, help="reviews that it is tested on")
    parser.add_argument("--base-model", type=Path, help="a folder; default: the embedded MiniLM")
    parser.add_argument("--data", type=folder, help="a folder of real reviews, instead of made-up ones")
    parser.add_argument("--run", nargs=2, type=Path, metavar=("JOB", "RESULT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    small = (1, 96, 1) if args.quick else (3, 800, 20)
    for name, default in zip(("rounds", "samples", "steps"), small, strict=True):
        setattr(args, name, getattr(args, name) or default)
    return args


def base_model(given: Path | None) -> str:
    from sentiment_engine.model.base_model import build_base_model

    return str(given.resolve() if given else build_base_model(CACHE / "base-model"))


@tells_cause
def main() -> int:
    args = parse()
    if args.run:
        args.run[1].write_text(json.dumps(run(json.loads(args.run[0].read_text()))))
        return 0
    described = begin(PACKAGES)
    job = {"base": base_model(args.base_model), "steps": args.steps, "train": labelled(args.samples, args.data)}
    rounds = measure_speed(args.cases, job, args.rounds)
    found = {case: medians([{"samples/s": r["samples/s"]} for r in done]) for case, done in rounds.items()}
    accuracy = {}
    if args.accuracy and {"ours", "original"} <= found.keys():
        rows = labelled(args.train_rows + args.test_rows, args.data)
        whole = job | {"train": rows[: args.train_rows], "test": rows[args.train_rows :]}
        accuracy = measure_accuracy(list(found), whole, {case: m["samples/s"] for case, m in found.items()})
    print("\n" + say(found, accuracy))
    print(busy(described))
    keep(args, described, rounds, found, accuracy)
    return 0


def keep(args: argparse.Namespace, described: dict, rounds: dict, found: dict, accuracy: dict):
    "Write the figures and the plot."
    described |= {"device": next(iter(rounds.values()))[0]["device"]}
    result, picture = (CACHE / RESULT.name, CACHE / PLOT.name) if args.quick else (RESULT, PLOT)
    sizes = {"samples": args.samples, "timed_steps_of_original": args.steps}
    sizes |= {"train_rows": args.train_rows, "test_rows": args.test_rows} if accuracy else {}
    speeds = {case: [r["samples/s"] for r in done] for case, done in rounds.items()}
    report = {"machine": described, **sizes, "medians": found, "goals": verdicts(found)}
    write_json(report | {"accuracy": accuracy, "rounds": speeds}, result)
    plot(found, picture)
    print(f"Written: {result.relative_to(ROOT)}, {picture.relative_to(ROOT)}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
