"The released model: whole, small enough, deployable, and as good as its card says."

import json

import numpy as np
import pytest

from sentiment_engine.artifact import preflight
from sentiment_engine.behaviour import score_suite
from sentiment_engine.inference import model_fn, predict_fn
from sentiment_engine.released import check_sums, pack_released, released_folder


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
    model = model_fn(released_folder())
    found = score_suite(lambda texts: np.array([a["scores"]["POSITIVE"] for a in predict_fn(texts, model)]))
    assert abs(found.loc["all", "accuracy"] - metrics["suite"]["all"]) <= 0.01  # processors round differently
    assert f"{metrics['accuracy']:.3f}" in (released_folder() / "README.md").read_text()
