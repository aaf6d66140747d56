"The released model: whole, small enough, deployable, and as good as its card says."

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sentiment_engine.artifact import preflight
from sentiment_engine.behaviour import score_suite, served
from sentiment_engine.released import check_sums, pack_released, released_folder
from sentiment_engine.reviews import read_reviews, write_reviews

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def metrics() -> dict:
    return json.loads((released_folder() / "metrics.json").read_text())


def test_every_file_is_the_one_that_was_released():
    check_sums(released_folder())
    assert sum(path.stat().st_size for path in released_folder().iterdir()) <= 16_000_000


def test_it_passes_the_preflight(tmp_path, metrics):
    assert pack_released(tmp_path / "model.tar.gz") == metrics
    assert all(check.passed for check in preflight(tmp_path / "model.tar.gz", 0.9))


def test_a_changed_file_is_not_packed(tmp_path):
    for path in released_folder().iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json of the released model"):
        pack_released(tmp_path / "model.tar.gz", tmp_path)


def test_it_does_on_the_suite_what_its_card_says(metrics):
    found = score_suite(served(released_folder()))
    assert abs(found.loc["all", "accuracy"] - metrics["suite"]["all"]) <= 0.01  # processors round differently
    assert f"{metrics['accuracy']:.3f}" in (released_folder() / "README.md").read_text()


@pytest.mark.slow
def test_it_can_be_made_again_from_other_reviews(tmp_path):
    "The whole way on generated reviews: choose, train, trim, round, calibrate, measure, write."
    write_reviews(tmp_path / "data/reviews", 2_500, seed=5)
    plain = [{"text": f"Said a friend: {r['text']}", "label": int(r["rating"] >= 4)} for r in read_reviews(tmp_path)]
    (tmp_path / "data/plain.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in plain[:400]))
    command = [sys.executable, ROOT / "infra_scripts/release_model.py", "--data", tmp_path / "data"]
    done = subprocess.run(
        [*command, "--work", tmp_path / "work", "--out", tmp_path / "out"], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made = pack_released(tmp_path / "model.tar.gz", tmp_path / "out")
    assert made["train_rows"] > 500 and made["accuracy"] > made["majority"]["accuracy"]
    assert all(check.passed for check in preflight(tmp_path / "model.tar.gz", 0.5))
