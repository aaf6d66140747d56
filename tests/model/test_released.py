"The released model is complete, small enough, deployable, and as good as its card says."

import itertools
import json
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sentiment_engine.data.reviews import read_reviews, write_reviews
from sentiment_engine.model.artifact import preflight, unpack
from sentiment_engine.model.behaviour import load_suite, score_suite, served
from sentiment_engine.model.inference import Reviews, model_fn, predict_fn
from sentiment_engine.model.monitoring import mixes
from sentiment_engine.model.released import (
    FIELDS,
    balance_stars,
    check_sums,
    one_or_two_sentences,
    pack_released,
    released_folder,
    side_of,
    split_texts,
)
from tests import ROOT


@pytest.fixture(scope="module")
def metrics() -> dict:
    return json.loads((released_folder() / "metrics.json").read_text())


def test_every_file_matches_its_released_hash():
    check_sums(released_folder())
    assert sum(path.stat().st_size for path in released_folder().iterdir()) <= 16_000_000


@pytest.fixture(scope="module")
def archive(tmp_path_factory, metrics) -> Path:
    "The model in its deployed form."
    path = tmp_path_factory.mktemp("archive") / "model.tar.gz"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert pack_released(path) == metrics
    return path


@pytest.fixture(scope="module")
def packed(archive) -> Path:
    return unpack(archive, archive.with_name("model"))


def test_the_released_model_passes_the_preflight(archive):
    assert all(check.passed for check in preflight(archive, 0.9))


def test_the_packed_and_the_stored_model_give_the_same_answers(packed):
    "The served graph rounds at different points than the stored one, so an undecided label may change."
    import onnx

    texts = list(load_suite()["text"][:100])
    graph = onnx.load(packed / "model.onnx", load_external_data=False).graph
    assert sum(node.op_type == "QAttention" for node in graph.node) == 5  # of six layers: it is the served one
    pairs = zip(predict_fn(texts, model_fn(packed)), predict_fn(texts, model_fn(released_folder())), strict=True)
    for text, (sent, kept) in zip(texts, pairs, strict=True):
        assert sent["score"] == pytest.approx(kept["score"], abs=0.02), text
        assert sent["label"] == kept["label"] or kept["score"] < 0.52, text


def test_a_changed_file_is_not_packed(tmp_path):
    for path in released_folder().iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json of the released model"):
        pack_released(tmp_path / "model.tar.gz", tmp_path)


def test_its_suite_scores_match_its_model_card(packed, metrics):
    found, card = score_suite(served(packed)), (released_folder() / "README.md").read_text()
    for name, row in found.iterrows():  # processors round differently, so a sentence or two may change
        assert abs(row["accuracy"] - metrics["suite"][name]) <= (0.01 if name == "all" else 2.01 / row["rows"]), name
    assert set(found.index) == set(metrics["suite"])
    for part in (metrics, *metrics["by"]["part"].values()):
        assert f"{part['rows']:,} | {part['accuracy']:.3f} |" in card and f"| {part['macro_f1']:.3f} |" in card
    calibration = json.loads((released_folder() / "calibration.json").read_text())
    assert f"{calibration['sure_from']:.3f}" in card and f"Temperature {calibration['temperature']}" in card


def test_batching_changes_an_answer_only_slightly():
    model, texts = model_fn(released_folder()), list(load_suite()["text"][:200])
    alone = [predict_fn([text], model)[0] for text in texts]
    moved = [abs(a["score"] - b["score"]) for a, b in zip(alone, predict_fn(texts, model), strict=True)]
    other = sum(a["label"] != b["label"] for a, b in zip(alone, predict_fn(texts, model), strict=True))
    assert sum(moved) / len(moved) < 0.03 and other <= 6, "8-bit activations are scaled over a batch"
    sure = [(a, b) for a, b in zip(alone, predict_fn(texts, model), strict=True) if a["sure"] and b["sure"]]
    assert all(a["label"] == b["label"] for a, b in sure) and len(sure) > 100


def test_batching_changes_only_undecided_labels(packed):
    model, texts = model_fn(packed), list(load_suite()["text"][:200])
    moved = []
    for text, together in zip(texts, predict_fn(texts, model), strict=True):
        (alone,) = predict_fn([text], model)
        moved.append(abs(alone["score"] - together["score"]))
        assert alone["label"] == together["label"] or (alone["score"] < 0.6 and not alone["sure"]), text
    assert sum(moved) / len(moved) < 0.03


def test_an_explanation_does_not_change_the_answer(packed):
    model, texts = (
        model_fn(packed),
        [*load_suite()["text"][::60], "a" * 200, "\u8d28\u91cf\u5f88\u5dee " * 30],
    )
    plain = [predict_fn([text], model)[0] for text in texts]
    for text, one in zip(texts, plain, strict=True):
        why = Reviews([text])
        why.explain = True
        (explained,) = predict_fn(why, model)
        assert {k: v for k, v in explained.items() if k != "explanation"} == one


def test_answers_to_unreadable_texts_are_never_sure(packed):
    texts = ["\U0001f92e\U0001f92e\U0001f92e \U0001f4a9", "\U0001f621" * 3, "\u8d28\u91cf\u5f88\u5dee", "\u200b"]
    told = predict_fn(texts, model_fn(packed))
    assert [one["sure"] for one in told] == [False] * 4 and told[3]["tokens"] == 0


def test_the_release_contains_the_reference_for_monitoring(metrics):
    reference = metrics["reference"]
    assert all(sum(mix.values()) == metrics["rows"] for mix in reference.values())
    assert {"label", "score", "sure", "tokens", "windows", "read"} == set(reference)
    answers = predict_fn(["I love it.", "Broken after a day."] * 2, model_fn(released_folder()))
    assert all(set(mix) <= set(reference[name]) for name, mix in mixes(answers).items())


def labelled_texts(*rows: tuple) -> pd.DataFrame:
    "Write texts and labels in the format of a release's files."
    given = [(text, label, 0, "Books", "plain", "", "") for text, label in rows]
    return pd.DataFrame(given, columns=FIELDS)


def texts_of(side: str, count: int) -> list[str]:
    "Make texts that the hash assigns to one side."
    made = (
        " ".join(f"{word}{n}" for word in "no other text has one of these ten words".split()) for n in itertools.count()
    )
    return list(itertools.islice((text for text in made if side_of(text) == side), count))


def test_the_hash_assigns_four_percent_of_the_texts_to_each_held_out_split():
    sides = Counter(side_of(f"text {n}") for n in range(20_000))
    assert all(0.035 < sides[side] / 20_000 < 0.045 for side in ("validation", "test"))
    assert {side_of(" Text 1 "), side_of("text 1")} == {side_of("TEXT 1")}


def test_training_texts_are_unique_consistent_and_not_held_out():
    (held,), (theirs,) = texts_of("test", 1), texts_of("validation", 1)
    mine = texts_of("train", 4)
    rows = [
        (held, 1),
        (theirs, 0),
        (mine[0], 1),
        (mine[1], 1),
        (mine[1].upper() + "!", 1),
        (mine[2], 0),
        (mine[2] + ".", 1),
    ]
    quoting = f"{held} indeed"
    while side_of(quoting) != "train":
        quoting += " indeed"
    parts = split_texts(labelled_texts(*rows, (quoting, 1)))
    assert {side: part["text"].tolist() for side, part in parts.items()} == {
        "train": mine[:2],
        "validation": [theirs],
        "test": [held],
    }


def test_all_negative_and_the_requested_number_of_positive_reviews_are_used():
    stars = [1, 2, 3, 4, 4, 4, 5, 5]
    rows = [
        (f"Title. body {n}", int(star >= 4), star, "Books", "reviews", "Title.", f"body {n}")
        for n, star in enumerate(stars)
    ]
    drawn = balance_stars(pd.DataFrame(rows, columns=FIELDS), np.random.default_rng(0), {4: 2, 5: 1}, untitled=0)
    assert Counter(drawn["stars"]) == {1: 1, 2: 1, 3: 1, 4: 2, 5: 1} and drawn["text"].str.startswith("Title. ").all()


@pytest.mark.parametrize(
    ("text", "cut"),
    [("It broke twice. It came back late.", False), ("It is so good. I love it. Buy it now please.", True)],
)
def test_only_texts_of_three_or_more_sentences_are_cut(text, cut):
    found = {one_or_two_sentences(text, np.random.default_rng(seed)) for seed in range(20)}
    assert all(part in text and part != text for part in found) and ("" not in found) is cut


@pytest.mark.slow
def test_the_release_can_be_rebuilt_from_other_reviews(tmp_path):
    "The whole process on generated reviews: choose, teach, train, quantize, calibrate, measure, write."
    write_reviews(tmp_path / "data/reviews", 2_500, seed=5)
    plain = [{"text": f"Said a friend: {r['text']}", "label": int(r["rating"] >= 4)} for r in read_reviews(tmp_path)]
    (tmp_path / "data/plain.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in plain[:400]))
    command = [sys.executable, ROOT / "infra_scripts/make/release_model.py", "--data", tmp_path / "data"]
    command += ["--work", tmp_path / "work", "--out", tmp_path / "out", "--teachers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    made = pack_released(tmp_path / "model.tar.gz", tmp_path / "out")
    assert made["train_rows"] > 500 and made["accuracy"] > made["majority"]["accuracy"]
    assert made["teachers"] == 2 and made["more"]["cuts"] > 100
    assert all(check.passed for check in preflight(tmp_path / "model.tar.gz", 0.5))
