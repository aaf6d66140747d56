"The four handlers: input, output, refusals, and what they need to load."

import dataclasses
import inspect
import json
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from shutil import copy
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentiment_engine.model import inference
from sentiment_engine.model.artifact import add_inference_code
from sentiment_engine.model.inference import (
    BatchQueue,
    InputError,
    counters,
    input_fn,
    length_batches,
    model_fn,
    output_fn,
    predict_fn,
    softmax,
    word_spans,
)
from sentiment_engine.model.released import released_folder
from tests.doubles.tiny_model import CONFIG, WEIGHTS, write_tiny_model

PATIENCE = 120  # longest wait on a busy machine, in seconds


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(model_dir):
    return model_fn(model_dir)


@pytest.fixture(scope="module")
def real_words(tmp_path_factory):
    "A model with small windows, and the tokenizer of the released one."
    folder = tmp_path_factory.mktemp("real")
    vocabulary = json.loads((released_folder() / "tokenizer.json").read_text())["model"]["vocab"]
    write_tiny_model(folder, weights={word: len(word) % 3 for word in sorted(vocabulary, key=vocabulary.get)})
    copy(released_folder() / "tokenizer.json", folder)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": 128}))
    return model_fn(folder)


def answer(model, inputs, **more) -> list[dict]:
    "Process a request from body to answer."
    data = input_fn(json.dumps({"inputs": inputs} | more).encode(), "application/json")
    return json.loads(output_fn(predict_fn(data, model), "application/json"))


# Input


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
        (b'{"inputs": ["\\udc00 low", "x"]}', "application/json", ["? low", "x"]),
        (b'\xef\xbb\xbf{"inputs": "a byte order mark"}', "application/json", ["a byte order mark"]),
        (b"\xef\xbb\xbfa byte order mark", "text/plain", ["a byte order mark"]),
        (b'{"inputs": "x", "explain": null, "parameters": null, "options": null}', "application/json", ["x"]),
        (b'{"inputs": "x", "options": {"wait_for_model": true, "use_cache": false}}', "application/json", ["x"]),
        (json.dumps({"inputs": ["x"] * 1000}).encode(), "application/json", ["x"] * 1000),
        (json.dumps({"inputs": ["x"] * 10, "explain": True}).encode(), "application/json", ["x"] * 10),
    ],
)
def test_valid_requests_are_parsed(body, kind, texts):
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
        (b'{"inputs": "x", "top_k": 2}', "application/json", 400, "unknown_field"),
        (b'{"inputs": "x", "parameters": [1]}', "application/json", 400, "unsupported_parameter"),
        (b'{"inputs": "x", "options": true}', "application/json", 400, "unsupported_parameter"),
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
        (json.dumps({"inputs": ["word " * 20_000] * 51}).encode(), "application/json", 413, "too_much_text"),
        (b'{"inputs": "x", "explain": 1}', "application/json", 400, "invalid_explain"),
        (b'{"inputs": "x", "explain": "yes"}', "application/json", 400, "invalid_explain"),
        (json.dumps({"inputs": ["x"] * 11, "explain": True}).encode(), "application/json", 400, "too_many_explained"),
        (b"inputs=fine", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b"\x93NUMPY", "application/x-npy", 415, "unsupported_media_type"),
    ],
)
def test_invalid_requests_are_refused(body, kind, status, code):
    with pytest.raises(InputError) as refused:
        input_fn(body, kind)
    assert (refused.value.status, refused.value.code) == (status, code)
    assert isinstance(refused.value, ValueError) and str(refused.value) == refused.value.message
    assert len(refused.value.message) < 300


NULL = {"explain", "parameters", "options"}


@pytest.mark.parametrize("field", sorted(NULL))
def test_a_null_optional_field_counts_as_omitted(model, field):
    assert answer(model, "love", **{field: None}) == answer(model, "love")


# The parameters of Hugging Face's clients


WHOLE, BOTH, BEST = "whole", ["POSITIVE", "NEGATIVE"], ["POSITIVE"]


@pytest.mark.parametrize(
    ("parameters", "shape"),
    [
        ({}, BOTH),
        ({"top_k": None}, BOTH),
        ({"top_k": 1}, BEST),
        ({"top_k": 2, "truncation": True}, BOTH),
        ({"top_k": 99, "function_to_apply": "softmax"}, BOTH),
        ({"function_to_apply": "SOFTMAX"}, BOTH),
        ({"function_to_apply": None, "truncation": None}, BOTH),
        ({"return_all_scores": True}, BOTH),
        ({"return_all_scores": True, "top_k": 1}, BOTH),
        ({"return_all_scores": False}, WHOLE),
        ({"truncation": True}, WHOLE),
        ({"truncation": False, "padding": "max_length"}, WHOLE),
        ({"truncation": "longest_first", "max_length": 512}, WHOLE),
        ({"truncation": True, "temperature": None}, WHOLE),
        ({"batch_size": 8, "num_workers": 0}, WHOLE),
        ({"batch_size": 1, "top_k": None}, BOTH),
    ],
)
@pytest.mark.parametrize("inputs", ["love", ["love", "excellent"], "love " * 600])
def test_accepted_parameters_change_only_the_shape_of_an_answer(model, inputs, parameters, shape):
    plain, told = answer(model, inputs), answer(model, inputs, parameters=parameters)
    if shape is WHOLE:
        assert told == plain
    else:
        assert [[each["label"] for each in one] for one in told] == [shape] * len(plain)
        assert all(
            each["score"] == one["scores"][each["label"]] for one, row in zip(plain, told, strict=True) for each in row
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("top_k", value) for value in (0, -1, True, 1.5, "2", [1])),
        *(("return_all_scores", value) for value in (1.5, "yes", [])),
        *(("function_to_apply", value) for value in ("sigmoid", "none", 5, ["softmax"])),
        *(("truncation", value) for value in ("only_second", [], {})),
        *(("max_length", value) for value in (128, True, "512")),
        *(("batch_size", value) for value in (0, True, "8")),
        *(("num_workers", value) for value in (-1, False)),
        *(("temperature", 0.5), ("candidate_labels", ["a"]), ("\udc00", 1), ("padding", "never")),
    ],
)
def test_the_error_names_a_parameter_that_would_change_the_answer(name, value):
    with pytest.raises(InputError) as refused:
        input_fn(json.dumps({"inputs": "x", "parameters": {"top_k": None, name: value}}))
    assert (refused.value.status, refused.value.code) == (400, "unsupported_parameter")
    assert f"parameters.{name}" in refused.value.message


@pytest.mark.parametrize("parameters", [{}, {"top_k": 1}, {"return_all_scores": True}])
def test_an_explanation_cannot_be_combined_with_a_list_of_labels(model, parameters):
    with pytest.raises(InputError, match="leave parameters out"):
        answer(model, "love", explain=True, parameters=parameters)
    assert "explanation" in answer(model, "love", explain=True, parameters={"truncation": True})[0]


def test_a_list_of_very_long_texts_is_answered(model):
    assert len(answer(model, ["love " * 20_000] * 50)) == 50, "fifty times what is read of a review is not too much"


def test_html_markup_changes_neither_the_answer_nor_word_positions(model):
    plain, marked = "I don't love it, terrible.", "<p>I don&#39;t love it,<br /> terrible.</p>"
    first, second = (answer(model, text, explain=True)[0] for text in (plain, marked))
    assert first["scores"] == second["scores"] and first["tokens"] == second["tokens"]
    words = [
        [text[w["start"] : w["end"]] for w in one["explanation"]] for text, one in ((plain, first), (marked, second))
    ]
    assert words[0] == ["I", "don't", "love", "it", "terrible"] and words[1] == ["I", "don&#39;t", *words[0][2:]]
    assert answer(model, "1 < 2 and 3 > 2, love")[0]["tokens"] == 9, "not everything between angles is a tag"


def test_a_refusal_names_the_position_in_the_list():
    with pytest.raises(InputError, match=r"inputs\[2\]"):
        input_fn(b'{"inputs": ["a", "b", "", "d"]}')


@given(st.binary() | st.text(), st.sampled_from(["application/json", "text/plain", None]))
def test_any_body_is_parsed_or_refused(body, kind):
    try:
        texts = input_fn(body, kind)
    except InputError:
        return
    assert texts and all(isinstance(text, str) and text.strip() for text in texts)


NOTHING = st.sampled_from(
    ["<br />", "&nbsp;", "\u200b", "\0", "&#8203;", "[[VIDEOID:x]]", "\ud83d", "\ufffd", "\u0301", "\u200d"]
)


@given(st.text() | NOTHING, st.booleans())
def test_every_accepted_request_is_answered(model, text, explain):
    try:
        data = input_fn(json.dumps({"inputs": ["love", text], "explain": explain}))
    except InputError:
        return
    first, second = predict_fn(data, model)
    assert second["label"] in ("NEGATIVE", "POSITIVE") and 0.5 <= second["score"] <= 1
    assert ("explanation" in second) is explain and "partial" not in second
    if explain:
        assert [word["end"] for word in first["explanation"]] == [4]
        assert all(0 <= word["start"] < word["end"] <= len(text) for word in second["explanation"])


# Output


def test_every_label_has_its_score(model):
    (only,) = answer(model, "I love it")
    assert only == {
        "label": "POSITIVE",
        "score": pytest.approx(0.9975, abs=1e-4),
        "scores": {"NEGATIVE": pytest.approx(0.0025, abs=1e-4), "POSITIVE": pytest.approx(0.9975, abs=1e-4)},
        "sure": None,
        "tokens": 3,
        "truncated": False,
        "windows": 1,
    }


def test_one_text_and_a_list_of_one_are_answered_alike(model):
    assert answer(model, "terrible") == answer(model, ["terrible"]) and len(answer(model, "terrible")) == 1


def test_a_thousand_reviews_keep_their_order(model):
    words = random.Random(5).choices([w for w in WEIGHTS if w.isalpha()], k=40_000)
    lengths = random.Random(6).choices([1, 2, 5, 20, 60, 300, 700], k=1000)
    texts = [" ".join(words[i : i + n]) for i, n in enumerate(lengths)]
    together = answer(model, texts)
    assert [a["windows"] for a in together] == [2 if n > 510 else 1 for n in lengths]
    for place in range(0, 1000, 37):
        (alone,) = answer(model, texts[place])
        assert alone["scores"] == pytest.approx(together[place]["scores"], abs=1e-6)
        assert alone["label"] == together[place]["label"]


@pytest.mark.parametrize(
    ("words", "windows", "truncated"),
    [
        (1, 1, False),
        (510, 1, False),
        (511, 2, False),
        (956, 2, False),
        (957, 3, False),
        (3632, 8, False),
        (3633, 8, True),
        (50_000, 8, True),
    ],
)
def test_a_long_review_is_read_in_windows_and_reports_truncation(model, words, windows, truncated):
    (only,) = answer(model, "love " * words)
    assert (only["windows"], only["truncated"], only["label"]) == (windows, truncated, "POSITIVE")
    assert ("parts" in only) is (windows > 1)


LIMIT = inference.MAX_CHARACTERS
ENDS = {  # name: a text, whether part of it is not read
    "a word": ("good", False),
    "one word at the limit": ("x" * LIMIT, False),
    "one word beyond it": ("x" * (LIMIT + 1), True),
    "spaces beyond it": ("good" + " " * (2 * LIMIT), False),
    "a word behind many spaces": ("good" + " " * (2 * LIMIT) + "bad", True),
    "a word right at the limit": ("good" + " " * (LIMIT - 7) + "bad", False),
    "a word one too far": ("good" + " " * (LIMIT - 6) + "bad", True),
    "full windows": ("love " * 3632, False),
    "a word more": ("love " * 3633, True),
    "full windows of rare words": (f"{'love' + ' ' * 9}" * 3632, False),
    "full windows and a word beyond the limit": ("love " * 3632 + " " * LIMIT + "bad", True),
    "Chinese": ("\u597d " * 25_000, True),
    "full windows of longer words": ("abcdef " * 3632, False),  # of which the first pass reads eight windows
    "a longer word more": ("abcdef " * 3633, True),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("explain", [False, True])
def test_truncated_reports_whether_part_of_a_text_is_skipped(model, end, explain):
    text, truncated = ENDS[end]
    assert [a["truncated"] for a in answer(model, ["good", text], explain=explain)] == [False, truncated]


LETTERS = ["ab", "love ", "bad! ", "\u597d", "\U0001f600", "e\u0301", " ", "x" * 90, "&amp;", "<br />"]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(LETTERS), st.integers(1, 400)), min_size=1, max_size=8), st.booleans())
def test_partial_tokenization_gives_the_same_answer_as_full_tokenization(real_words, pieces, explain):
    text = "good " + "".join(letters * often for letters, often in pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "BRIEF", 0)
        patch.setattr(inference, "FIRST", 10**9)
        whole = answer(real_words, text, explain=explain)
        patch.setattr(inference, "FIRST", 50)
        assert answer(real_words, text, explain=explain) == whole


def test_a_request_with_too_much_text_is_refused(model):
    with pytest.raises(InputError) as refused:
        answer(model, ["a " * 1250] * 1000)
    assert (refused.value.status, refused.value.code) == (413, "too_much_text")


def test_a_very_long_text_is_answered_quickly(model):
    "Tokenizing all of it would take ten seconds."
    start = time.process_time()
    assert answer(model, ["love " * 2_000_000, "x" * 2_000_000])[1]["truncated"]
    assert time.process_time() - start < 2


def test_the_end_of_a_long_review_affects_the_answer(model):
    "The first 512 tokens alone would give POSITIVE."
    (only,) = answer(model, "love " * 510 + "terrible " * 1500)
    assert only["label"] == "NEGATIVE" and not only["truncated"]


def test_only_text_beyond_the_last_window_is_ignored(model):
    assert answer(model, "love " * 3632 + "terrible " * 5000)[0]["scores"]["POSITIVE"] == 1


def test_the_scores_of_a_long_text_are_the_weighted_mean_of_its_windows(model):
    text = "  Na\u00efve \U0001f600 " + "love it " * 400 + "bad, broken. " * 300 + " \n"
    (only,) = answer(model, text)
    parts = only["parts"]
    assert len(parts) == only["windows"] > 2 and sum(p["weight"] for p in parts) == pytest.approx(1, abs=1e-5)
    for label, share in only["scores"].items():
        assert share == pytest.approx(sum(p["weight"] * p["scores"][label] for p in parts), abs=1e-5)
    assert text[: parts[0]["start"]].isspace() and not text[parts[-1]["end"] :].strip()
    assert all(first["end"] > second["start"] > first["start"] for first, second in pairwise(parts))
    assert parts[0]["scores"]["POSITIVE"] > 0.9 > 0.1 > parts[-1]["scores"]["POSITIVE"]


def test_the_weight_of_a_window_is_its_share_of_new_tokens(model):
    (only,) = answer(model, "love " * 957)
    assert [p["weight"] for p in only["parts"]] == pytest.approx([510 / 957, 446 / 957, 1 / 957], abs=1e-6)


def test_each_window_scores_like_its_text_alone(model):
    text = " ".join(random.Random(3).choices([w for w in WEIGHTS if w.isalpha()], k=1200))
    (only,) = answer(model, text)
    for part in only["parts"]:
        (alone,) = answer(model, text[part["start"] : part["end"]])
        assert alone["scores"] == pytest.approx(part["scores"], abs=1e-6) and alone["windows"] == 1


def test_a_shorter_model_has_shorter_windows(tmp_path):
    write_tiny_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": 128}))
    short = model_fn(tmp_path)
    assert [a["windows"] for a in answer(short, ["love " * 126, "love " * 127])] == [1, 2]


# Calibration


@pytest.fixture
def calibrated(model, tmp_path):
    def load(content: str):
        (write_tiny_model(tmp_path) / "calibration.json").write_text(content)
        return model_fn(tmp_path)

    return load


def test_scores_are_calibrated(model, calibrated):
    mild = calibrated('{"temperature": 2, "sure_from": 0.9, "rows": 4763}')
    plain, softer = (answer(each, "happy not")[0]["scores"]["POSITIVE"] for each in (model, mild))
    assert plain == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-5)
    assert softer == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-5)


def test_an_answer_at_the_threshold_is_sure(calibrated):
    bound = 1 / (1 + np.exp(-2))  # the result for "good"
    model = calibrated(json.dumps({"temperature": 1, "sure_from": round(bound, 6)}))
    sure = [a["sure"] for a in answer(model, ["good", "love", "nothing known", "bad", "terrible"])]
    assert sure == [True, True, False, True, True]
    assert answer(calibrated('{"temperature": 1, "sure_from": 0.9}'), "good")[0]["sure"] is False


def test_texts_outside_the_vocabulary_are_never_sure(calibrated):
    model = calibrated('{"temperature": 1, "sure_from": 0.5}')
    texts = ["love", "love zebra", "love zebra zebra", "zebra zebra", "love " * 600 + "zebra " * 700, "\u200b"]
    assert [a["sure"] for a in answer(model, texts)] == [True, False, False, False, False, False]
    assert all(a["sure"] is False for a in answer(model, ["\U0001f92e" * 3, "\u8d28\u91cf\u5f88\u5dee"]))


def test_a_calibration_may_declare_no_answer_sure(calibrated):
    model = calibrated('{"temperature": 1, "sure_from": 1.001}')
    assert [a["sure"] for a in answer(model, ["love " * 9, "good"])] == [False, False]


def test_tokens_are_counted_once(model):
    assert [a["tokens"] for a in answer(model, ["love", "love it", "love it " * 400])] == [1, 2, 800]


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"temperature": 1}', '{"sure_from": 0.9}', '{"temperature": 0, "sure_from": 0.9}']
    + [f'{{"temperature": {t}, "sure_from": 0.9}}' for t in ("-1", "NaN", "Infinity", "null", '"1"', "true")]
    + [f'{{"temperature": 1, "sure_from": {s}}}' for s in ("0.49", "1.01", "97", "NaN", "null", "true")],
)
def test_an_invalid_calibration_fails_the_load(calibrated, content):
    with pytest.raises(ValueError, match=r"calibration\.json"):
        calibrated(content)


# Explanations


def test_each_word_gets_an_influence(model):
    text = "  I love it\u2026 but, \U0001f600 not the BAD box!!"
    (only,) = answer(model, text, explain=True)
    found = [w | {"text": text[w["start"] : w["end"]]} for w in only["explanation"]]
    assert [w["text"] for w in found] == ["I", "love", "it", "but", "\U0001f600", "not", "the", "BAD", "box", "!!"]
    assert all(w.keys() == {"start", "end", "influence"} for w in only["explanation"]), "no words: answers may be kept"
    for word in found:
        (without,) = answer(model, text[: word["start"]] + text[word["end"] :])
        fall = only["scores"]["POSITIVE"] - without["scores"]["POSITIVE"]
        assert word["influence"] == pytest.approx(fall, abs=2e-6)
    influence = {w["text"]: w["influence"] for w in found}
    assert influence["love"] > 0.5 > 0 == influence["box"] > influence["not"] == influence["BAD"]


def test_hiding_a_word_does_not_affect_its_neighbours(model):
    (only,) = answer(model, "bad!good", explain=True)
    assert [(w["start"], w["end"], w["influence"]) for w in only["explanation"]] == [
        (0, 3, pytest.approx(0.5 - 0.880797, abs=1e-5)),
        (3, 4, 0),
        (4, 8, pytest.approx(0.5 - 0.119203, abs=1e-5)),
    ]


def test_an_explanation_does_not_change_the_answer(model):
    texts = ["I love it", "terrible", "..", "love " * 700]
    explained = answer(model, texts, explain=True)
    assert [{k: v for k, v in a.items() if k != "explanation"} for a in explained] == answer(model, texts)
    assert [len(a["explanation"]) for a in explained[:3]] == [3, 1, 1]
    assert not any("explanation" in a for a in answer(model, texts, explain=False))


def test_a_word_of_a_long_review_is_scored_in_its_window(model):
    text = "it is so " * 250 + "terrible"  # the end of the second window
    (only,) = answer(model, text, explain=True)
    last = only["explanation"][-1]
    assert text[last["start"] :].endswith("terrible") and last["end"] == len(text)
    weight = only["parts"][-1]["weight"]
    assert last["influence"] == pytest.approx(weight * (only["parts"][-1]["scores"]["POSITIVE"] - 0.5), abs=1e-5)
    assert all(w["influence"] == 0 for w in only["explanation"][:-1])


def test_a_word_in_two_windows_is_hidden_in_both(model):
    text = "so " * 480 + "terrible " + "so " * 400
    (only,) = answer(model, text, explain=True)
    (fall,) = [w["influence"] for w in only["explanation"] if "terrible" in text[w["start"] : w["end"]]]
    assert fall == pytest.approx(only["scores"]["POSITIVE"] - 0.5, abs=1e-5) and fall < -0.4


def test_a_long_review_is_explained_in_groups_of_words(model):
    text = " ".join(random.Random(4).choices([w for w in WEIGHTS if w.isalpha()], k=5000))
    before = counters(model)["windows"]
    (only,) = answer(model, text, explain=True)
    found = only["explanation"]
    assert 50 < len(found) <= 128 and counters(model)["windows"] - before < 180
    assert found[0]["start"] == 0 and found[-1]["end"] == only["parts"][-1]["end"] < len(text)
    assert all(len(text[w["start"] : w["end"]].split()) > 20 for w in found[:-1])


def test_the_cost_of_one_request_is_limited(model):
    before = counters(model)["windows"]
    answers = answer(model, ["love it not " * 160] * 10, explain=True)
    assert len(answers) == 10 and all(5 <= len(a["explanation"]) <= 8 for a in answers)
    assert (counters(model)["windows"] - before) * 480 < 1.5 * inference.EXPLAINED_TOKENS


class Clock:
    "A clock that each batch advances by some seconds."

    def __init__(self, model, seconds: float):
        self.now, self.batches, self.seconds, self.compute = 1000.0, 0, seconds, model.queue.compute
        model.clock, model.queue.compute = self, self.slowly

    def __call__(self) -> float:
        return self.now

    def slowly(self, windows):
        self.now, self.batches = self.now + self.seconds, self.batches + 1
        return self.compute(windows)


def late_answer(model_dir, inputs, seconds: float, waited: float = 0.0) -> tuple[list[dict], Clock]:
    "Request an explanation from a model that takes `seconds` per batch, `waited` seconds after the request arrived."
    model = model_fn(model_dir)
    data = input_fn(json.dumps({"inputs": inputs, "explain": True}).encode())
    clock = Clock(model, seconds)
    data.arrived = clock.now - waited
    return predict_fn(data, model), clock


@pytest.mark.parametrize("words", [180, 350, 504, 780, 3000])
@pytest.mark.parametrize("seconds", [0.2, 1.0, 3.0])
def test_an_explanation_ends_in_time_and_reports_its_progress(model_dir, model, words, seconds):
    text = " ".join(random.Random(7).choices([w for w in WEIGHTS if w.isalpha()], k=words))
    (plain,) = answer(model, text)
    (only,), clock = late_answer(model_dir, text, seconds)
    base = plain["windows"] * seconds
    assert clock.now - 1000 < max(inference.EXPLAIN_SECONDS, base) + seconds, "one batch too many at most"
    found, partial = only.pop("explanation"), only.pop("partial", False)
    assert partial is ("explained" in only) and 0 <= only.pop("explained", 1.0) <= 1
    assert only == plain, "the answer itself is whole"
    assert all(w["start"] < w["end"] for w in found) and all(a["end"] <= b["start"] for a, b in pairwise(found))
    assert partial or len(found) > 50


def test_without_a_time_limit_an_explanation_is_complete(model_dir, model):
    texts = ["I love it", "love it not " * 300]
    assert late_answer(model_dir, texts, 0.001)[0] == answer(model, texts, explain=True)


def test_waiting_time_counts_towards_the_time_limit(model_dir, model):
    (late,), clock = late_answer(model_dir, "I love it", 0.1, waited=inference.EXPLAIN_SECONDS)
    assert late == answer(model, "I love it")[0] | {"explanation": [], "partial": True, "explained": 0.0}
    assert clock.batches == 1


@pytest.mark.parametrize("given", [0, 0.5, 3, inference.EXPLAIN_SECONDS])
def test_a_client_may_shorten_the_time_for_explanations(model_dir, given):
    data = input_fn(
        json.dumps({"inputs": "love it not " * 300, "explain": True, "options": {"explain_seconds": given}})
    )
    clock = Clock(loaded := model_fn(model_dir), 0.2)
    data.arrived = clock.now
    (only,) = predict_fn(data, loaded)
    assert clock.now - 1000 < given + 0.2 * (only["windows"] + 1) and only["partial"] is (only["explained"] < 1)


@pytest.mark.parametrize("given", [-1, "3", True, float("nan"), inference.EXPLAIN_SECONDS + 0.1, [], {}])
def test_a_wrong_time_for_explanations_is_refused(given):
    with pytest.raises(InputError, match="explain_seconds must be from 0 to 15") as refused:
        input_fn(json.dumps({"inputs": "I love it", "options": {"explain_seconds": given, "wait_for_model": True}}))
    assert refused.value.status == 400


def test_the_most_influential_words_are_examined_first(model_dir):
    text = "it is so " * 100 + "terrible " + "it is so " * 59
    (only,), _ = late_answer(model_dir, text, 0.9)
    place = text.index("terrible")
    assert only["partial"] and 0 < only["explained"] < 0.5
    lengths = {w["end"] - w["start"]: w["influence"] for w in only["explanation"] if w["start"] <= place < w["end"]}
    (length,) = lengths
    assert length < 100 and lengths[length] < -0.3, "the words around it were examined group by group"
    assert max(w["end"] - w["start"] for w in only["explanation"]) > 150, "the rest is known as a whole"


def test_other_requests_do_not_delay_an_explanation():
    "Both lanes are busy, and the deadline wakes the waiting request."
    gate, begun = threading.Event(), threading.Semaphore(0)

    def compute(windows):
        begun.release()
        gate.wait(20)
        return np.zeros((len(windows), 2))

    queue = BatchQueue(compute)
    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(queue.run, [[1] * 400] * 3) for _ in range(2)]
        assert begun.acquire(timeout=10) and begun.acquire(timeout=10)
        start = time.monotonic()
        assert queue.run([[1] * 400] * 3, until=start + 0.3) == [None] * 3
        assert time.monotonic() >= start + 0.3, "it did not give up early"
        assert not any(each.done() for each in others), "it came back while both lanes were still taken"
        gate.set()
        assert [len(each.result(timeout=60)) for each in others] == [3, 3]


def test_a_long_queue_refuses_a_long_list_and_accepts_a_short_one(monkeypatch):
    monkeypatch.setattr(inference, "MAX_WAITING", 5000)
    gate = threading.Event()

    def compute(windows):
        gate.wait(20 if len(windows[0]) > 100 else 0)
        return np.zeros((len(windows), 2))

    queue = BatchQueue(compute)
    with ThreadPoolExecutor(2) as pool:
        alone = pool.submit(queue.run, [[1] * 500] * 20)  # more than the bound, but no request waits
        wait_for(lambda: queue._turns)
        with pytest.raises(InputError) as refused:
            queue.run([[1] * 500] * 2)
        assert (refused.value.status, refused.value.code) == (429, "busy")
        assert len(queue.run([[1] * 50] * 2)) == 2
        gate.set()
        assert len(alone.result(timeout=60)) == 20 and len(queue.run([[1] * 500] * 2)) == 2


@given(st.text(), st.integers(1, 20))
def test_word_spans_are_valid_for_any_text(text, most):
    spans = word_spans(text, most)
    assert len(spans) <= most and bool(spans) is bool(text.strip())
    places = [place for span in spans for place in span]
    assert places == sorted(places) and all(text[start:end].strip() for start, end in spans)


def test_saved_tokenizer_padding_and_truncation_are_ignored(tmp_path):
    write_tiny_model(tmp_path)
    saved = inference.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    saved.enable_truncation(4)
    saved.enable_padding(length=900)
    saved.save(str(tmp_path / "tokenizer.json"))
    assert answer(model_fn(tmp_path), "love " * 500)[0]["windows"] == 1


@pytest.mark.parametrize("accept", ["application/json", "*/*", "", None, "text/html, application/*;q=0.9"])
def test_answers_are_json(model, accept):
    assert json.loads(output_fn(predict_fn(["good"], model), accept))[0]["label"] == "POSITIVE"


def test_unsupported_answer_formats_are_refused(model):
    with pytest.raises(InputError) as refused:
        output_fn(predict_fn(["good"], model), "text/csv")
    assert (refused.value.status, refused.value.code) == (406, "not_acceptable")


def test_threads_can_share_a_model(model):
    texts = [f"{'love ' * (i % 90)}{'terrible ' * (i % 7)}good" for i in range(200)]
    alone = [predict_fn([text], model)[0] for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: predict_fn([text], model)[0], texts)) == alone


# Concurrent requests


class Slow:
    "A slow session that records the number of texts in each batch."

    def __init__(self, session, seconds: float = 0.01):
        self.session, self.seconds, self.batches = session, seconds, []
        self.get_inputs = session.get_inputs

    def run(self, outputs, given):
        self.batches.append(len(given["input_ids"]))
        time.sleep(self.seconds)
        return self.session.run(outputs, given)


class Held(Slow):
    "Computes short batches at once, and long ones only when `go` is set."

    def __init__(self, session):
        super().__init__(session, 0)
        self.entered, self.go = threading.Event(), threading.Event()

    def run(self, outputs, given):
        if given["input_ids"].shape[1] > 8:
            self.entered.set()
            assert self.go.wait(PATIENCE)
        return super().run(outputs, given)


@pytest.mark.parametrize("lists", [1, 6])
def test_a_single_review_is_answered_during_long_lists(model, lists):
    "It computes only its own batch and waits for no other."
    held = dataclasses.replace(model, session=Held(model.session))
    texts = [f"{'love ' * (10 + i % 90)}good" for i in range(200)]  # about twenty batches
    with ThreadPoolExecutor(lists + 1) as pool:
        whole = [pool.submit(predict_fn, texts, held) for _ in range(lists)]
        try:
            assert held.session.entered.wait(PATIENCE)
            singles = [pool.submit(predict_fn, ["terrible"], held).result(PATIENCE) for _ in range(5)]
            assert held.session.batches == [1] * 5 and not any(one.done() for one in whole)
        finally:
            held.session.go.set()
        assert all(len(one.result(PATIENCE)) == 200 for one in whole)
    assert all(a["label"] == "NEGATIVE" for (a,) in singles)


def wait_for(holds):
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def test_lists_take_turns(model):
    "The last request need not start last, and a short one does not wait for a long one."
    slow = dataclasses.replace(model, session=Slow(model.session, 0.01))
    with ThreadPoolExecutor(5) as pool:
        long = [pool.submit(predict_fn, ["love " * 60] * 800, slow) for _ in range(4)]
        wait_for(lambda: len(slow.session.batches) > 8)
        before = len(slow.session.batches)
        predict_fn(["love " * 60] * 20, slow)
        meanwhile = len(slow.session.batches) - before
        assert not any(one.done() for one in long)
        assert all(len(one.result(PATIENCE)) == 800 for one in long)
    assert meanwhile < len(slow.session.batches) / 4


def test_waiting_requests_are_batched_together(model):
    slow = dataclasses.replace(model, session=Slow(model.session, 0.05))
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda i: predict_fn(["love" if i % 2 else "terrible"], slow)[0], range(32)))
    assert [a["label"] for a in answers] == ["NEGATIVE", "POSITIVE"] * 16
    assert sum(slow.session.batches) == 32 and max(slow.session.batches) > 4


def test_a_single_request_does_not_wait(model, monkeypatch):
    "There is no timer and no second thread."
    threads = threading.active_count()
    for waits in (threading.Event, threading.Condition):
        monkeypatch.setattr(waits, "wait", lambda *_: pytest.fail("it waits"))
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it sleeps"))
    assert all(predict_fn(["I love it"], model) for _ in range(20)) and threading.active_count() == threads


class Fails:
    "Computes the sum of each window, and fails if a 13 is among the tokens."

    def __init__(self):
        self.entered, self.go = threading.Event(), threading.Event()

    def __call__(self, windows):
        self.entered.set()
        assert self.go.wait(PATIENCE)
        if any(13 in window for window in windows):
            raise RuntimeError("thirteen")
        return np.array([[sum(window)] for window in windows])


@pytest.mark.parametrize("lanes", [1, 2])
def test_an_error_affects_only_its_own_request(lanes):
    compute = Fails()
    queue = BatchQueue(compute, lanes)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(queue.run, [[1, 1]])
        assert compute.entered.wait(PATIENCE)
        waiting = [pool.submit(queue.run, [[n, n], [n, n]]) for n in (2, 13, 3, 4, 13)]
        wait_for(lambda: len(queue._turns) == 6)  # all are in the queue with the same length: one batch
        compute.go.set()
        assert first.result(PATIENCE)[0] == [2]
        errors = [f.exception(PATIENCE) for f in waiting]
        sums = [[int(s[0]) for s in f.result(0)] for f, error in zip(waiting, errors, strict=True) if not error]
        assert sums == [[4, 4], [6, 6], [8, 8]] and [str(e) for e in errors if e] == ["thirteen", "thirteen"]
    assert queue.run([[5]])[0] == [5]


def test_an_interrupted_thread_leaves_no_other_request_waiting():
    "The computing thread may fail at any point: other threads then compute the windows that it had taken from them."
    entered, go, interrupted = threading.Event(), threading.Event(), []

    def compute(windows):
        if threading.current_thread().name == "stopped":
            if entered.is_set():
                interrupted.append(len(windows))
                raise KeyboardInterrupt
            entered.set()
            assert go.wait(PATIENCE)
        return np.array([[sum(window)] for window in windows])

    queue = BatchQueue(compute, lanes=1)

    def stopped():
        with pytest.raises(KeyboardInterrupt):
            queue.run([[1], [1] * 40])

    thread = threading.Thread(target=stopped, name="stopped")
    thread.start()
    assert entered.wait(PATIENCE)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(queue.run, [[n] * 40, [n] * 90]) for n in range(3, 7)]
        wait_for(lambda: len(queue._turns) == 5)  # of the same length as the first one's remaining windows
        go.set()
        assert [int(f.result(PATIENCE)[0][0]) for f in waiting] == [120, 160, 200, 240]
    thread.join(PATIENCE)
    assert interrupted == [5] and int(queue.run([[7]])[0][0]) == 7


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_many_threads_get_their_own_answers(lanes):
    "Each thread gets the sums of its own windows, and the queue is idle afterwards."
    queue = BatchQueue(lambda windows: np.array([[sum(window)] for window in windows]), lanes)

    def ask(seed: int) -> bool:
        random_ = random.Random(seed)
        windows = [[random_.randrange(9)] * random_.randrange(1, 600) for _ in range(random_.randrange(0, 40))]
        return [int(s[0]) for s in queue.run(windows)] == [sum(w) for w in windows]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(400)))
    assert int(queue.run([[1]])[0][0]) == 1


def test_a_short_request_never_computes_batches_of_a_list():
    "Other threads may already have its windows; then its thread waits, and its lane stays free."
    computed, stop = [], threading.Event()

    def compute(windows):
        computed.append((threading.current_thread().name, len(windows[0])))
        time.sleep(0.002 if len(windows[0]) < 10 else 0.02)
        return np.array([[sum(window)] for window in windows])

    queue = BatchQueue(compute)

    def ask():
        while not stop.is_set():
            queue.run([[1] * 5])

    threads = [threading.Thread(target=ask, name=f"short {i}") for i in range(16)]
    lists = [threading.Thread(target=lambda: queue.run([[1] * 500] * 20), name=f"list {i}") for i in range(2)]
    for thread in threads + lists:
        thread.start()
    for thread in lists:
        thread.join(PATIENCE)
    stop.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert sum(length == 500 for _, length in computed) == 40
    assert not [name for name, length in computed if name.startswith("short") and length == 500]


@pytest.mark.parametrize("wrong", [np.full((1, 2), np.nan), np.zeros((1, 3)), np.zeros((2, 2))])
def test_an_invalid_model_output_counts_as_a_model_failure(model, wrong):
    class Session:
        get_inputs = staticmethod(lambda: [])
        run = staticmethod(lambda names, given: [wrong])

    broken = dataclasses.replace(model, session=Session())
    with pytest.raises(RuntimeError, match="the model gave"):
        predict_fn(["good"], broken)
    assert counters(broken)["failed"] == 1


def test_finished_requests_are_counted(tmp_path):
    model = model_fn(write_tiny_model(tmp_path))
    start = counters(model)
    predict_fn(["good"] * 40, model)
    answer(model, ["love it"], explain=True)
    broken = dataclasses.replace(model, session=SimpleNamespace(get_inputs=list))  # and no run
    with pytest.raises(AttributeError):
        predict_fn(["good"], broken)
    now = counters(model)
    grown = {
        name: now[name] - start[name] for name in ("requests", "failed", "texts", "explained", "windows", "batches")
    }
    assert grown == {
        "requests": 2,
        "failed": 0,
        "texts": 41,
        "explained": 1,
        "windows": 43,
        "batches": grown["batches"],
    }
    assert 4 <= grown["batches"] <= 6 and now["mean_batch"] == round(now["windows"] / now["batches"], 2)
    assert 0 < now["latency_ms"]["p50"] <= now["latency_ms"]["p95"] and now["latency_ms"]["of_last"] == now["requests"]
    assert counters(broken)["failed"] == 1 and "good" not in json.dumps(now)


# Helper functions


@given(st.lists(st.integers(1, 512), max_size=200))
def test_batches_contain_every_review_once_and_little_padding(lengths):
    batches = length_batches(lengths)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        tokens = [lengths[place] for place in batch]
        assert len(batch) == 1 or (len(batch) <= 16 and len(batch) * max(tokens) <= 512)
        assert max(tokens) - min(tokens) <= 5 + max(tokens) / 20


@given(st.lists(st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=2), min_size=1))
def test_scores_add_up_to_1_for_any_logits(logits):
    shares = softmax(np.array(logits, dtype=np.float32))
    assert np.isfinite(shares).all() and np.allclose(shares.sum(axis=1), 1)


# Loading


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("fault", ["missing", "cut off", "empty"])
def test_the_error_names_a_file_that_does_not_load(tmp_path, name, fault):
    path = write_tiny_model(tmp_path) / name
    content = path.read_bytes()
    path.unlink()
    if fault != "missing":
        path.write_bytes(content[: len(content) // 2] if fault == "cut off" else b"")
    with pytest.raises(ValueError, match=name):
        model_fn(tmp_path)


@pytest.mark.parametrize("labels", [{}, {"0": "ONLY"}, {"1": "A", "2": "B"}, None, {"zero": "A", "one": "B"}])
def test_invalid_labels_are_refused(tmp_path, labels):
    write_tiny_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"id2label": labels}))
    with pytest.raises(ValueError, match=r"config\.json"):
        model_fn(tmp_path)


def test_a_model_whose_outputs_do_not_match_its_labels_fails_to_load(tmp_path):
    write_tiny_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "A", "1": "B", "2": "C"}}))
    with pytest.raises(ValueError, match="does not answer"):
        model_fn(tmp_path)


def test_padding_does_not_affect_an_answer(tmp_path):
    model = model_fn(write_tiny_model(tmp_path, WEIGHTS | {"[PAD]": 9}))
    texts = ["bad", "terrible bad", "good", "happy good good"]
    alone = [answer(model, text)[0]["scores"]["POSITIVE"] for text in texts]
    assert [a["scores"]["POSITIVE"] for a in answer(model, texts)] == pytest.approx(alone, abs=1e-6)


def test_latency_percentiles_are_reported():
    counted = inference.Counters()
    assert counted.report()["latency_ms"] == {"of_last": 0} and counted.report()["mean_batch"] is None
    for milliseconds in range(100, 0, -1):
        counted.count(milliseconds / 1000)
    assert counted.report()["latency_ms"] == {"p50": 50.0, "p95": 95.0, "of_last": 100}


def test_a_model_that_needs_token_types_gets_them(tmp_path):
    assert answer(model_fn(write_tiny_model(tmp_path, types=True)), "love")[0]["label"] == "POSITIVE"


def test_the_number_of_threads_can_be_set(monkeypatch):
    monkeypatch.setenv("INFERENCE_THREADS", "3")
    assert inference.thread_count() == 3
    monkeypatch.setenv("INFERENCE_THREADS", "many")
    with pytest.raises(ValueError, match="INFERENCE_THREADS"):
        inference.thread_count()
    monkeypatch.delenv("INFERENCE_THREADS")
    assert inference.thread_count() >= 1


# Requirements of the container


def test_handlers_have_the_signatures_that_the_container_expects():
    "The container's server counts a handler's parameters to decide whether to pass the context."
    handlers = (model_fn, input_fn, predict_fn, output_fn)
    assert [len(inspect.signature(handler).parameters) for handler in handlers] == [
        2,
        3,
        3,
        3,
    ]  # with a context if there is one
    assert not hasattr(inference, "transform_fn")


def test_the_inference_file_needs_no_other_module(model_dir, tmp_path):
    "In an artifact, in a process without this project, it loads hardly any modules."
    code = add_inference_code(tmp_path)
    assert {path.name for path in code.iterdir()} == {"inference.py", "cleaning.py", "requirements.txt"}
    ask = (
        "import sys, inference; model = inference.model_fn(sys.argv[1], None); "
        "print(inference.output_fn(inference.predict_fn(['love'], model), None)); "
        "print(*sorted({name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))"
    )
    run = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(code)!r}); {ask}", str(model_dir)],
        capture_output=True,
        text=True,
        check=True,
    )
    said, modules = run.stdout.splitlines()
    assert json.loads(said)[0]["label"] == "POSITIVE"
    heavy = {"torch", "transformers", "pandas", "boto3", "botocore", "sagemaker", "onnx", "sentiment_engine", "scipy"}
    assert not heavy & set(modules.split()) and {"onnxruntime", "tokenizers", "numpy"} <= set(modules.split())


# The graph of a trained model


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

    from sentiment_engine.model import base_model, onnx_export

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


def test_answers_match_plain_transformers(trained):
    import torch
    import transformers

    model, folder = trained
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    answers = answer(serve(folder, "fp32.onnx"), TEXTS)
    for text, found in zip(TEXTS, answers, strict=True):
        batch = tokenizer(text, truncation=True, max_length=512, return_tensors="pt")
        with torch.inference_mode():
            shares = model(batch["input_ids"], batch["attention_mask"]).logits.softmax(-1)[0].tolist()
        first = found["parts"][0] if "parts" in found else found
        assert list(first["scores"].values()) == pytest.approx(shares, abs=1e-4)
        assert (found["windows"] > 1) is (len(tokenizer(text)["input_ids"]) > 512)
    assert len({found["score"] for found in answers}) == len(TEXTS)


def fused(trained: tuple, graph: str, folder: Path, **change) -> str | None:
    "Write an artifact like a training job's; `change` changes the model's metadata."
    from sentiment_engine.model.served_graph import fuse

    folder.mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((trained[1] / name).read_bytes())
    return fuse(trained[1] / graph, trained[0].config.to_dict() | change, folder)


def positive(answers: list[dict]) -> list[float]:
    return [found["scores"]["POSITIVE"] for found in answers]


def weights_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("model.onnx*")}


@pytest.mark.parametrize(
    ("graph", "gap"),
    [("fp32.onnx", 2e-6), ("int8.onnx", 0.1)],  # the export's rounding alone changes an answer by 0.06
)
def test_a_fused_graph_gives_the_same_answers(trained, tmp_path, graph, gap):
    "This holds alone and in a batch, within rounding. Fusing the graph again changes nothing."
    exported, kept = serve(trained[1], graph), tmp_path / "model"
    assert fused(trained, graph, kept) is None
    served, weights = model_fn(kept), weights_of(kept)
    assert positive(answer(served, TEXTS)) == pytest.approx(positive(answer(exported, TEXTS)), abs=gap)
    for text in TEXTS:
        assert positive(answer(served, [text])) == pytest.approx(positive(answer(exported, [text])), abs=gap)
    fused(trained, graph, kept)
    assert weights_of(kept) == weights and set(weights) == {"model.onnx", "model.onnx.data"}


def test_a_fused_graph_has_only_the_needed_operators(trained, tmp_path):
    "ONNX Runtime does not replace the written operators with slower ones."
    import onnx

    assert fused(trained, "int8.onnx", tmp_path / "model") is None
    graph = onnx.load(tmp_path / "model/model.onnx", load_external_data=False).graph
    found = [node.op_type for node in graph.node]
    assert found.count("QAttention") == found.count("MultiHeadAttention") == 1  # of two layers
    assert found.count("LayerNormalization") == 5 and "SkipLayerNormalization" not in found
    assert len(found) < 40


@pytest.mark.parametrize("graph", ["fp32.onnx", "int8.onnx"])
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"n_heads": 2}, "its answers differ"),
        ({"n_heads": 5}, "num_heads"),
        ({"activation": "relu"}, "activation is relu"),
    ],
)
def test_a_model_that_cannot_be_fused_is_served_with_its_exported_graph(trained, tmp_path, graph, change, why):
    "Its answers equal those of its export."
    exported, kept = serve(trained[1], graph), tmp_path / "model"
    assert why in fused(trained, graph, kept, **change)
    assert set(weights_of(kept)) == {"model.onnx", "model.onnx.data"}
    assert answer(model_fn(kept), TEXTS) == answer(exported, TEXTS)


def test_the_graph_is_removed_while_its_weights_are_replaced(trained, tmp_path, monkeypatch):
    "One model's weights in another's graph would load, and give meaningless answers."
    import shutil

    kept, moved = tmp_path / "model", shutil.move

    def move(source, target):
        if target.name == "model.onnx":
            raise OSError("no space left on device")
        return moved(source, target)

    fused(trained, "int8.onnx", kept)
    monkeypatch.setattr(shutil, "move", move)
    with pytest.raises(OSError, match="no space left"):
        fused(trained, "fp32.onnx", kept)
    with pytest.raises(ValueError, match=r"the artifact has no model\.onnx"):
        model_fn(kept)


@pytest.mark.parametrize("fault", ["missing", "cut off", "empty"])
def test_incomplete_external_weights_are_detected(trained, tmp_path, fault):
    assert fused(trained, "int8.onnx", tmp_path) is None
    path = tmp_path / "model.onnx.data"
    content = path.read_bytes()
    path.unlink()
    if fault != "missing":
        path.write_bytes(content[: len(content) // 2] if fault == "cut off" else b"")
    with pytest.raises(ValueError, match=r"model\.onnx of the artifact cannot be loaded"):
        model_fn(tmp_path)


@pytest.mark.parametrize(
    ("flags", "asked"), [("sse2 avx2", True), ("avx512f avx512_vnni", False), ("avx2 avx_vnni", False)]
)
def test_exact_sums_are_enabled_only_on_processors_that_overflow(monkeypatch, flags, asked):
    "On other processors, sums are exact anyway, and the option makes answers two to three times slower."
    monkeypatch.setattr(inference.Path, "read_text", lambda *_, **__: f"flags\t\t: {flags}\n")
    assert inference.exact_sums() == ({"session.x64quantprecision": "1"} if asked else {})


def test_exact_sums_are_enabled_without_proc(monkeypatch):
    monkeypatch.setattr(inference.Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    assert inference.exact_sums()


def test_rounded_weights_give_nearly_the_same_answers(trained):
    _, folder = trained
    plain, rounded = (answer(serve(folder, graph), TEXTS) for graph in ("fp32.onnx", "int8.onnx"))
    assert (folder / "int8.onnx").stat().st_size < 0.4 * (folder / "fp32.onnx").stat().st_size
    for one, other in zip(plain, rounded, strict=True):
        assert other["scores"]["POSITIVE"] == pytest.approx(one["scores"]["POSITIVE"], abs=0.1)
