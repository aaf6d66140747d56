"The export of a small model with random weights agrees with torch, or is refused."

import numpy as np
import pytest
import torch

from sentiment_engine.model import onnx_export
from sentiment_engine.model.onnx_export import example_batch, export, logit_gap, predict_onnx


def small_model():
    "Make a classifier of two layers whose logits are far apart."
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    torch.manual_seed(3)
    sizes = {"vocab_size": 2100, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    config = DistilBertConfig(**sizes, attn_implementation="eager")
    model = DistilBertForSequenceClassification(config).eval()
    with torch.inference_mode():
        for weights in (model.distilbert.embeddings.word_embeddings.weight, model.classifier.weight):
            weights.mul_(20)
    return model


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return folder, export(model, folder)


def test_an_export_agrees_with_torch_at_any_length(exported):
    _, gaps = exported
    assert set(gaps["fp32"]) == set(gaps["int8"]) == {"1x2", "1x5", "3x40", "2x512"}
    assert max(gaps["fp32"].values()) < 1e-3 < max(gaps["int8"].values())  # rounded weights answer nearly the same


def test_texts_are_answered_in_order_and_padding_has_no_effect(model, exported):
    folder, _ = exported
    rng = np.random.default_rng(1)
    texts = [rng.integers(1000, 1100, length).tolist() for length in (9, 2, 40, 3, 17, 1, 25)]
    with torch.inference_mode():
        alone = [model(input_ids=torch.tensor([ids])).logits[0].numpy() for ids in texts]
    for size in (1, 3, 16):
        found = predict_onnx(folder / "fp32.onnx", texts, pad=5, batch_size=size)
        assert np.abs(found - np.array(alone)).max() < 1e-3
    assert np.ptp(alone) > 0.1  # otherwise any order would pass


def test_an_export_that_differs_is_refused(model, tmp_path, monkeypatch):
    def another(_, path):
        other = small_model()
        with torch.inference_mode():
            other.classifier.bias.add_(torch.tensor([0.0, 0.002]))
        write(other, path)

    write = onnx_export.write_onnx
    monkeypatch.setattr(onnx_export, "write_onnx", another)
    with pytest.raises(RuntimeError, match="the ONNX export does not agree with torch"):
        export(model, tmp_path)
    assert not (tmp_path / "int8.onnx").exists()
    assert logit_gap(model, tmp_path / "fp32.onnx")["1x2"] == pytest.approx(0.002, abs=1e-4)


def test_the_batches_that_check_an_export_have_padding():
    batch = example_batch(3, 40, 1100)
    assert batch["attention_mask"].sum(axis=1).tolist() == [40, 29, 18]
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()
    assert example_batch(9, 5, 1100)["attention_mask"].sum(axis=1).min() == 1
