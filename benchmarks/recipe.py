"""Change one setting of the training recipe at a time, on the same reviews, and record the effect on the scores.

Each training is a separate process. The default is trained with several seeds, which shows the random variation.
Every other variant uses the first seed, or as many as --seeds says.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from benchmarks.inference import load_raw
from benchmarks.report import CACHE, ROOT, begin, busy, in_process, table, write_json
from benchmarks.training import base_model
from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser, at_least, folder
from sentiment_engine.data.quoting import quoting
from sentiment_engine.data.reviews import label_of, review_text

RESULT = ROOT / "benchmarks/results/recipe.json"
PACKAGES = ("torch", "transformers", "accelerate")
DEFAULT = "nothing"
WAYS = {  # the change: hyperparameters, and how the reviews are drawn
    DEFAULT: ({}, "balanced"),
    "learning rate 5e-5": ({"learning_rate": 5e-5}, "balanced"),
    "learning rate 2e-4": ({"learning_rate": 2e-4}, "balanced"),
    "2 epochs": ({"epochs": 2.0}, "balanced"),
    "layer decay 0.9": ({"layer_decay": 0.9}, "balanced"),
    "layer decay 0.8": ({"layer_decay": 0.8}, "balanced"),
    "label smoothing 0.05": ({"label_smoothing": 0.05}, "balanced"),
    "label smoothing 0.1": ({"label_smoothing": 0.1}, "balanced"),
    "96 tokens": ({"max_length": 96}, "balanced"),
    "256 tokens": ({"max_length": 256}, "balanced"),
    "dropout 0.1": ({"dropout": 0.1}, "balanced"),
    "word vectors trained too": ({"freeze_embeddings": False}, "balanced"),
    "stars as they come": ({}, "as they come"),
    "no three stars": ({}, "without threes"),
}
SHARES = {  # of the stars, by how the reviews are drawn; "as they come" keeps the original shares
    "balanced": {1: 1 / 6, 2: 1 / 6, 3: 1 / 6, 4: 1 / 4, 5: 1 / 4},
    "without threes": {1: 1 / 4, 2: 1 / 4, 4: 1 / 4, 5: 1 / 4},
}


# ---- the reviews


def rated(data: Path | None, count: int) -> pd.DataFrame:  # text, label, stars
    "Return different reviews with their stars, in random order."
    found = [(review_text(r.get("title"), r["text"]), r["rating"]) for r in load_raw(data, count)]
    rows = pd.DataFrame([f for f in found if f[0].strip() and f[1] in SHARES["balanced"]], columns=["text", "stars"])
    rows = rows.drop_duplicates("text").sample(frac=1, random_state=3, ignore_index=True)
    return rows.assign(label=rows["stars"].map(label_of), stars=rows["stars"].astype(int))


def draw(rows: pd.DataFrame, how: str, count: int) -> pd.DataFrame:
    "Draw reviews by their stars. Raises SystemExit if there are too few."
    if how == "as they come":
        return rows.head(count)
    wanted = {stars: round(count * share) for stars, share in SHARES[how].items()}
    there = rows["stars"].value_counts()
    if few := {stars: int(there.get(stars, 0)) for stars, n in wanted.items() if there.get(stars, 0) < n}:
        raise SystemExit(f"too few reviews to draw {count} from: {few} by stars; name a larger folder with --data")
    drawn = pd.concat([rows[rows["stars"] == stars].head(n) for stars, n in wanted.items()])
    return drawn.sample(frac=1, random_state=0)


def halves(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    "Split reviews into a training and a test half, and drop training reviews that quote test reviews."
    train, test = rows.iloc[: len(rows) // 2], rows.iloc[len(rows) // 2 :]
    return train[~quoting(train["text"], test["text"])], test


# ---- one training, in a separate process


def run(job: dict) -> dict:  # macro_f1, accuracy, no_threes (accuracy without three stars), seconds
    "Train once and test."
    import torch
    from transformers import AutoTokenizer, set_seed

    from sentiment_engine.model.evaluation import scores
    from sentiment_engine.model.training_job import Recipe, encode, fit, load_model, predict_rows

    torch.set_flush_denormal(True)
    recipe = Recipe(**job["options"], seed=job["seed"])
    set_seed(recipe.seed)
    tokenizer, train, test = AutoTokenizer.from_pretrained(job["base"]), pd.DataFrame(job["train"]), job["test"]
    model, began = load_model(job["base"], recipe), time.monotonic()
    with TemporaryDirectory() as folder:
        trainer = fit(model, tokenizer, encode(tokenizer, train, recipe.max_length), recipe, Path(folder))
    seconds, said = time.monotonic() - began, predict_rows(trainer, tokenizer, pd.DataFrame(test))
    found, clear = scores(said["label"], said["predicted"]), said[said["stars"] != 3]
    named = {"macro_f1": found["macro_f1"], "accuracy": found["accuracy"], "seconds": round(seconds, 1)}
    return named | {"no_threes": round(float((clear["label"] == clear["predicted"]).mean()), 4)}


# ---- all trainings


def sweep(ways: list[str], seeds: int, default_seeds: int, rows: tuple, base: str, train_rows: int) -> list[dict]:
    "Train every variant. The seeds are the outer loop, so an interruption leaves complete rounds."
    train, test = rows
    found: dict[str, list[dict]] = {way: [] for way in ways}
    for seed in range(max(seeds, default_seeds)):
        for way in ways:
            if seed >= (default_seeds if way == DEFAULT else seeds):
                continue
            options, how = WAYS[way]
            sample = draw(train, how, train_rows)[["text", "label"]].to_dict("records")
            job = {"options": options, "seed": seed, "base": base, "train": sample, "test": test.to_dict("records")}
            found[way].append(in_process("benchmarks.recipe", job))
            print(f"seed {seed}  {way:<26} macro-F1 {found[way][-1]['macro_f1']:.3f}", flush=True)
    return [{"changed": way, "seeds": len(done), **mean(done)} for way, done in found.items()]


def mean(done: list[dict]) -> dict:
    "Average the results of several seeds."
    return {name: round(float(np.mean([one[name] for one in done])), 4) for name in done[0]} | {
        "each_macro_f1": [one["macro_f1"] for one in done]
    }


def parse() -> argparse.Namespace:
    parser = Parser("python -m benchmarks.recipe", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test of a minute; its file goes to .bench/")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    parser.add_argument("--seeds", type=at_least(1), default=1, help="of each way; default: 1")
    parser.add_argument("--default-seeds", type=int, default=3, help="of the default; default: 3")
    parser.add_argument("--train-rows", type=int, default=2_000)
    parser.add_argument("--test-rows", type=int, default=1_500)
    parser.add_argument("--data", type=folder, help="a folder of real reviews, instead of made-up ones")
    parser.add_argument("--run", nargs=2, type=Path, metavar=("JOB", "RESULT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.train_rows, args.test_rows, args.default_seeds, args.ways = 48, 48, 1, [DEFAULT, "2 epochs"]
    return args


@tells_cause
def main() -> int:
    args = parse()
    if args.run:
        args.run[1].write_text(json.dumps(run(json.loads(args.run[0].read_text()))))
        return 0
    described = begin(PACKAGES)
    train, held_out = halves(rated(args.data, 30 * (args.train_rows + args.test_rows)))
    rows = train, draw(held_out, "balanced", args.test_rows)
    ways = sweep(args.ways, args.seeds, args.default_seeds, rows, base_model(None), args.train_rows)
    default: list[float] = next((way["each_macro_f1"] for way in ways if way["changed"] == DEFAULT), [])
    error = float(np.std(default, ddof=1)) if len(default) > 1 else None
    result = CACHE / RESULT.name if args.quick else RESULT
    sizes = {"train_rows": args.train_rows, "test_rows": len(rows[1]), "error": error}
    write_json({"machine": described, "reviews": "real" if args.data else "made up", **sizes, "ways": ways}, result)
    shown = [[w["changed"], *(f"{w[name]:.3f}" for name in ("macro_f1", "accuracy", "no_threes"))] for w in ways]
    print("\n" + table(["changed", "macro-F1", "accuracy", "without 3 stars"], shown))
    print(busy(described), f"Written: {result.relative_to(ROOT)}", sep="\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
