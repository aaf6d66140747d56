"The four handlers: what comes in, what goes out, what is refused, and what they need to load."

import inspect
import json
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import CONFIG, WEIGHTS, write_tiny_model

from sentiment_engine import inference
from sentiment_engine.inference import InputError, input_fn, length_batches, model_fn, output_fn, predict_fn, softmax


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(model_dir):
    return model_fn(model_dir)


def answer(model, inputs) -> list[dict]:
    "Go the whole way of a request."
    data = input_fn(json.dumps({"inputs": inputs}).encode(), "application/json")
    return json.loads(output_fn(predict_fn(data, model), "application/json"))


# What comes in


@pytest.mark.parametrize(
    ("body", "kind", "texts"),
    [
        (b'{"inputs": "fine"}', "application/json", ["fine"]),
        ('{"inputs": "fine"}', "application/json", ["fine"]),
        (bytearray(b'{"inputs": ["a", "b"]}'), "Application/JSON; charset=utf-8", ["a", "b"]),
        (b'{"inputs": "fine"}', None, ["fine"]),
        (b'{"inputs": "fine"}', "", ["fine"]),
        ("sch\u00f6n \U0001f600".encode(), "text/plain; charset=utf-8", ["sch\u00f6n \U0001f600"]),
        (b'{"inputs": "half an emoji \\ud83d"}', "application/json", ["half an emoji ?"]),
        (json.dumps({"inputs": ["x"] * 1000}).encode(), "application/json", ["x"] * 1000),
    ],
)
def test_requests_that_are_read(body, kind, texts):
    assert input_fn(body, kind) == texts


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"", "application/json", 400, "invalid_json"),
        (b"{", "application/json", 400, "invalid_json"),
        (b"[" * 200_000, "application/json", 400, "invalid_json"),
        (b'{"inputs": ' + b"9" * 5000 + b"}", "application/json", 400, "invalid_json"),
        (b"\xff\xfe", "application/json", 400, "invalid_encoding"),
        (b"\xff\xfe", "text/plain", 400, "invalid_encoding"),
        (b"[]", "application/json", 400, "missing_inputs"),
        (b'"a review"', "application/json", 400, "missing_inputs"),
        (b"null", "application/json", 400, "missing_inputs"),
        (b"{}", "application/json", 400, "missing_inputs"),
        (b'{"text": "a review"}', "application/json", 400, "missing_inputs"),
        (b'{"inputs": "x", "parameters": {"top_k": 2}}', "application/json", 400, "unknown_field"),
        (b'{"inputs": null}', "application/json", 400, "invalid_inputs"),
        (b'{"inputs": 5}', "application/json", 400, "invalid_inputs"),
        (b'{"inputs": true}', "application/json", 400, "invalid_inputs"),
        (b'{"inputs": {}}', "application/json", 400, "invalid_inputs"),
        (b'{"inputs": []}', "application/json", 400, "invalid_inputs"),
        (b'{"inputs": ["fine", 5]}', "application/json", 400, "invalid_inputs"),
        (b'{"inputs": ["fine", ["nested"]]}', "application/json", 400, "invalid_inputs"),
        (b'{"inputs": ""}', "application/json", 400, "empty_input"),
        (b'{"inputs": ["fine", " \\n\\t"]}', "application/json", 400, "empty_input"),
        (b"   ", "text/plain", 400, "empty_input"),
        (json.dumps({"inputs": ["x"] * 1001}).encode(), "application/json", 400, "too_many_inputs"),
        (b"inputs=fine", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b"\x93NUMPY", "application/x-npy", 415, "unsupported_media_type"),
    ],
)
def test_requests_that_are_refused(body, kind, status, code):
    with pytest.raises(InputError) as refused:
        input_fn(body, kind)
    assert (refused.value.status, refused.value.code) == (status, code)
    assert isinstance(refused.value, ValueError) and str(refused.value) == refused.value.message
    assert len(refused.value.message) < 300


def test_refusal_names_the_place_in_the_list():
    with pytest.raises(InputError, match=r"inputs\[2\]"):
        input_fn(b'{"inputs": ["a", "b", "", "d"]}')


@settings(deadline=None)  # other tests share the cores
@given(st.binary() | st.text(), st.sampled_from(["application/json", "text/plain", None]))
def test_any_body_is_read_or_refused(body, kind):
    try:
        texts = input_fn(body, kind)
    except InputError:
        return
    assert texts and all(isinstance(text, str) and text.strip() for text in texts)


@settings(deadline=None)  # other tests share the cores
@given(st.text())
def test_whatever_is_read_is_answered(model, text):
    try:
        data = input_fn(json.dumps({"inputs": text}))
    except InputError:
        return
    (only,) = predict_fn(data, model)
    assert only["label"] in ("NEGATIVE", "POSITIVE") and 0.5 <= only["score"] <= 1


# What goes out


def test_every_label_has_its_share(model):
    (only,) = answer(model, "I love it")
    assert only == {
        "label": "POSITIVE",
        "score": pytest.approx(0.9975, abs=1e-4),
        "scores": {"NEGATIVE": pytest.approx(0.0025, abs=1e-4), "POSITIVE": pytest.approx(0.9975, abs=1e-4)},
        "truncated": False,
    }


def test_one_text_and_a_list_of_one_are_answered_alike(model):
    assert answer(model, "terrible") == answer(model, ["terrible"]) and len(answer(model, "terrible")) == 1


def test_a_thousand_reviews_keep_their_order(model):
    words = random.Random(5).choices([w for w in WEIGHTS if w.isalpha()], k=40_000)
    lengths = random.Random(6).choices([1, 2, 5, 20, 60, 300, 700], k=1000)
    texts = [" ".join(words[i : i + n]) for i, n in enumerate(lengths)]
    together = answer(model, texts)
    assert [a["truncated"] for a in together] == [n > 510 for n in lengths]
    for place in range(0, 1000, 37):
        (alone,) = answer(model, texts[place])
        assert alone["scores"] == pytest.approx(together[place]["scores"], abs=1e-6)
        assert alone["label"] == together[place]["label"]


@pytest.mark.parametrize(("words", "truncated"), [(1, False), (510, False), (511, True), (600, True), (50_000, True)])
def test_a_long_review_is_answered_and_says_that_it_was_cut(model, words, truncated):
    (only,) = answer(model, "love " * words)
    assert only["truncated"] is truncated and only["label"] == "POSITIVE"


def test_a_book_is_answered_at_once(model):
    "Tokenizing all of it would take ten seconds."
    start = time.process_time()
    assert answer(model, ["love " * 2_000_000, "x" * 2_000_000])[1]["truncated"]
    assert time.process_time() - start < 2


def test_what_is_cut_off_is_the_end(model):
    assert answer(model, "love " * 510 + "terrible " * 5000)[0]["label"] == "POSITIVE"


def test_a_shorter_model_is_cut_shorter(tmp_path):
    write_tiny_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": 128}))
    short = model_fn(tmp_path)
    assert [a["truncated"] for a in answer(short, ["love " * 126, "love " * 127])] == [False, True]


def test_padding_and_truncation_saved_in_the_tokenizer_are_not_used(tmp_path):
    write_tiny_model(tmp_path)
    saved = inference.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    saved.enable_truncation(4)
    saved.enable_padding(length=900)
    saved.save(str(tmp_path / "tokenizer.json"))
    assert not answer(model_fn(tmp_path), "love " * 500)[0]["truncated"]


@pytest.mark.parametrize("accept", ["application/json", "*/*", "", None, "text/html, application/*;q=0.9"])
def test_answers_are_json(model, accept):
    assert json.loads(output_fn(predict_fn(["good"], model), accept))[0]["label"] == "POSITIVE"


def test_other_answers_are_not_made_up(model):
    with pytest.raises(InputError) as refused:
        output_fn(predict_fn(["good"], model), "text/csv")
    assert (refused.value.status, refused.value.code) == (406, "not_acceptable")


def test_threads_share_a_model(model):
    texts = [f"{'love ' * (i % 90)}{'terrible ' * (i % 7)}good" for i in range(200)]
    alone = [predict_fn([text], model)[0] for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: predict_fn([text], model)[0], texts)) == alone


# The parts


@settings(deadline=None)  # other tests share the cores
@given(st.lists(st.integers(1, 512), max_size=200))
def test_batches_hold_every_review_once_and_little_padding(lengths):
    batches = length_batches(lengths)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        tokens = [lengths[place] for place in batch]
        assert len(batch) <= 16 and sum(tokens) >= 0.95 * max(tokens) * len(batch)


@settings(deadline=None)  # other tests share the cores
@given(st.lists(st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=2), min_size=1))
def test_shares_add_up_whatever_the_logits(logits):
    shares = softmax(np.array(logits, dtype=np.float32))
    assert np.isfinite(shares).all() and np.allclose(shares.sum(axis=1), 1)


# Loading


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("fault", ["missing", "cut off", "empty"])
def test_a_file_that_does_not_load_is_named(tmp_path, name, fault):
    path = write_tiny_model(tmp_path) / name
    content = path.read_bytes()
    path.unlink()
    if fault != "missing":
        path.write_bytes(content[: len(content) // 2] if fault == "cut off" else b"")
    with pytest.raises(ValueError, match=name):
        model_fn(tmp_path)


@pytest.mark.parametrize("labels", [{}, {"0": "ONLY"}, {"1": "A", "2": "B"}, None, {"zero": "A", "one": "B"}])
def test_labels_that_make_no_sense_are_refused(tmp_path, labels):
    write_tiny_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"id2label": labels}))
    with pytest.raises(ValueError, match=r"config\.json"):
        model_fn(tmp_path)


def test_a_model_with_other_outputs_than_labels_does_not_come_up(tmp_path):
    write_tiny_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "A", "1": "B", "2": "C"}}))
    with pytest.raises(ValueError, match="does not answer"):
        model_fn(tmp_path)


def test_a_model_that_takes_token_types_is_given_them(tmp_path):
    assert answer(model_fn(write_tiny_model(tmp_path, types=True)), "love")[0]["label"] == "POSITIVE"


def test_threads_can_be_set(monkeypatch):
    monkeypatch.setenv("INFERENCE_THREADS", "3")
    assert inference.thread_count() == 3
    monkeypatch.setenv("INFERENCE_THREADS", "many")
    with pytest.raises(ValueError, match="INFERENCE_THREADS"):
        inference.thread_count()
    monkeypatch.delenv("INFERENCE_THREADS")
    assert inference.thread_count() >= 1


# The container's rules


def test_handlers_take_what_the_container_passes():
    "Its server counts a handler's parameters: all of them with the context, one fewer without."
    handlers = (model_fn, input_fn, predict_fn, output_fn)
    assert [len(inspect.signature(handler).parameters) for handler in handlers] == [
        2,
        3,
        3,
        3,
    ]  # with a context where there is one
    assert not hasattr(inference, "transform_fn")


def test_the_file_stands_alone(model_dir, tmp_path):
    "Copied somewhere else, in a process that knows nothing of this project, it loads next to nothing."
    (tmp_path / "inference.py").write_bytes(Path(inference.__file__).read_bytes())
    code = (
        "import sys, inference; model = inference.model_fn(sys.argv[1], None); "
        "print(inference.output_fn(inference.predict_fn(['love'], model), None)); "
        "print(*sorted({name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))"
    )
    run = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}", str(model_dir)],
        capture_output=True,
        text=True,
        check=True,
    )
    said, modules = run.stdout.splitlines()
    assert json.loads(said)[0]["label"] == "POSITIVE"
    heavy = {"torch", "transformers", "pandas", "boto3", "botocore", "sagemaker", "onnx", "sentiment_engine", "scipy"}
    assert not heavy & set(modules.split()) and {"onnxruntime", "tokenizers", "numpy"} <= set(modules.split())


# The shape of a trained model


TEXTS = [
    "Great cable, works as described.",
    "The box was crushed \u2014 yet na\u00efve me kept it. \U0001f600 10/10?!",
    "Stopped working after two days, and the seller doesn't answer. " * 5,
    "Una porquer\u00eda. \u4e0d\u597d\u7528\u3002",
    "It is long and it says nothing in particular. " * 80,
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A DistilBERT with the real vocabulary and two small random layers: (torch model, its folder)."
    import torch
    import transformers

    from sentiment_engine import base_model, onnx_export

    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(3)
    config = transformers.DistilBertConfig(
        **{"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "initializer_range": 0.5},
        id2label={0: "NEGATIVE", 1: "POSITIVE"},
        label2id={"NEGATIVE": 0, "POSITIVE": 1},
        attn_implementation="eager",
    )
    model = transformers.DistilBertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    base_model.write_tokenizer(base_model.minilm_folder(), folder)
    onnx_export.write_onnx(model, folder / "fp32.onnx")
    onnx_export.quantise(folder / "fp32.onnx", folder / "int8.onnx")
    return model, folder


def serve(folder: Path, graph: str):
    "Load the artifact in `folder` with one of its two graphs."
    (folder / "model.onnx").write_bytes((folder / graph).read_bytes())
    return model_fn(folder)


def test_answers_are_those_of_plain_transformers(trained):
    import torch
    import transformers

    model, folder = trained
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    answers = answer(serve(folder, "fp32.onnx"), TEXTS)
    for text, found in zip(TEXTS, answers, strict=True):
        batch = tokenizer(text, truncation=True, max_length=512, return_tensors="pt")
        with torch.inference_mode():
            shares = model(batch["input_ids"], batch["attention_mask"]).logits.softmax(-1)[0].tolist()
        assert list(found["scores"].values()) == pytest.approx(shares, abs=1e-4)
        assert found["truncated"] is (len(tokenizer(text)["input_ids"]) > 512)
    assert len({found["score"] for found in answers}) == len(TEXTS)


def test_rounded_weights_answer_nearly_alike(trained):
    _, folder = trained
    plain, rounded = (answer(serve(folder, graph), TEXTS) for graph in ("fp32.onnx", "int8.onnx"))
    assert (folder / "int8.onnx").stat().st_size < 0.4 * (folder / "fp32.onnx").stat().st_size
    for one, other in zip(plain, rounded, strict=True):
        assert other["scores"]["POSITIVE"] == pytest.approx(one["scores"]["POSITIVE"], abs=0.1)
