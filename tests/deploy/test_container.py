"The artifact outside our own server: in plain transformers, and in the software of the AWS container."

import json
import shutil

import numpy as np
import psutil
import pytest

from infra_scripts.checks import container_test
from sentiment_engine.model.released import pack_released
from sentiment_engine.model.serving import Predictor
from sentiment_engine.model.wheels import add_wheels, fetch_wheels, read_lock

TEXTS = [*container_test.EXAMPLES, container_test.LONG]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    "A complete artifact of the base model."
    return container_test.build_artifact(tmp_path_factory.mktemp("container") / "model")


def test_plain_transformers_gives_the_same_answers_as_the_artifact(artifact):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(artifact)
    model = AutoModelForSequenceClassification.from_pretrained(artifact, dtype=torch.float32).eval()
    predictor = Predictor(artifact)
    predictor.load()
    body = json.dumps({"inputs": TEXTS}).encode()
    answers = json.loads(predictor.predict(body, "application/json", "application/json")[0])
    spread = set()
    for text, answer in zip(TEXTS, answers, strict=True):
        if answer.get("windows", 1) > 1:
            continue  # longer than plain transformers reads
        with torch.inference_mode():
            logits = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=512)).logits[0]
        shares = dict(zip(("NEGATIVE", "POSITIVE"), torch.softmax(logits, 0).tolist(), strict=True))
        assert answer["scores"] == pytest.approx(shares, abs=0.005)  # the weights next to the ONNX have 16 bits
        spread.add(round(shares["POSITIVE"], 2))
    assert len(spread) > 2, "a model with one answer to everything proves nothing"
    assert np.ptp(list(spread)) > 0.02


PINNED = f"onnxruntime {read_lock().pins['onnxruntime']}"


@pytest.mark.parametrize(
    ("lines", "passed"),
    [
        ([f"Python 3.12.3, {PINNED}, tokenizers 0.22.1, numpy 2.3.4"] * 2, True),
        ([f"Python 3.12.3, {PINNED}, numpy 2.3.4", "Python 3.12.3, onnxruntime 1.2.3, numpy 2.3.4"], False),
        ([f"Python 3.11.3, {PINNED}, numpy 2.3.4"], False),
        (["Python 3.12.3, numpy 2.3.4"], False),
        ([], False),
    ],
    ids=["as locked", "another package", "another Python", "no package of the lock", "silence"],
)
def test_versions_that_differ_from_the_lock_are_found(lines, passed):
    log = "".join(f"2026-01-01T12:00:00 [INFO ] W-model-1 - answering with {line}\n" for line in lines)
    assert container_test.check_versions(f"starting\n{log}ready\n", "3.12").passed is passed


@pytest.mark.slow
def test_the_container_and_the_local_server_give_the_same_answers(tmp_path_factory):
    "Installs gigabytes once and keeps them in .container-test."
    found = {check.name: check for check in container_test.checks(None)}
    assert len(found) == len(container_test.REQUESTS) + 5
    assert not [str(check) for check in found.values() if not check.passed]
    assert "no package index in reach" in found["requirements"].saw
    assert f"onnxruntime {read_lock().pins['onnxruntime']}" in found["versions"].saw


@pytest.mark.slow
def test_the_container_rejects_a_tampered_wheel(artifact, tmp_path):
    other = shutil.copytree(artifact, tmp_path / "other", ignore=shutil.ignore_patterns("__pycache__"))
    add_wheels(other, fetch_wheels())
    wheel = next((other / "code" / "wheels").glob("flatbuffers*"))
    wheel.write_bytes(wheel.read_bytes() + b"more")
    *_, last = container_test.checks(other)
    assert not last.passed and last.name in ("wheels", "requirements") and "HASHES" in last.saw.upper()


@pytest.mark.slow
def test_the_container_answers_with_the_released_model(tmp_path):
    pack_released(tmp_path / "model.tar.gz", wheels=fetch_wheels())
    before = set(psutil.pids())
    found = list(container_test.checks(tmp_path / "model.tar.gz"))
    commands = {p.pid: " ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])}
    left = {pid for pid, command in commands.items() if "model_service_worker" in command}
    assert not left - before, "the workers of the server have outlived it"
    assert len(found) == len(container_test.REQUESTS) + 4, "all except plain transformers, for which it has no weights"
    assert not [str(check) for check in found if not check.passed]


@pytest.mark.slow
def test_a_difference_between_container_and_server_is_found(artifact, tmp_path):
    "An artifact whose code takes any content type answers 200 where 415 is due."
    other = shutil.copytree(artifact, tmp_path / "other", ignore=shutil.ignore_patterns("__pycache__"))
    code = other / "code" / "inference.py"
    code.write_text(code.read_text().replace('not in ("application/json", "text/plain")', 'in ("nothing",)'))
    found = {check.name: check for check in container_test.checks(other)}
    assert not found["a picture"].passed and found["one text"].passed
