"Properties of temperature and threshold, for any answers."

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sentiment_engine.model.calibration import (
    BOUNDS,
    NEVER,
    PRIOR,
    Z,
    calibration_of,
    coverage_curve,
    doubt_by_stars,
    fit_temperature,
    misfit,
    plot_coverage,
    served_logits,
    shares,
    sure_threshold,
    wilson_lower,
)
from sentiment_engine.model.evaluation import (
    average_precisions,
    comparison_table,
    expected_calibration_error,
    reliability,
    scores,
    share_scores,
)
from sentiment_engine.model.training_job import calibration_line
from tests.doubles.tiny_model import write_tiny_model

ROWS = st.integers(1, 60)
WANTED = st.floats(0.5, 1)


@st.composite
def answers(draw):
    "Logits of two labels and true labels."
    rows = draw(ROWS)
    logits = draw(arrays(float, (rows, 2), elements=st.floats(-30, 30, width=32)))
    return logits, draw(arrays(int, rows, elements=st.integers(0, 1)))


@st.composite
def sure_answers(draw):
    "Confidences, some of them equal, and whether each answer is right."
    rows = draw(ROWS)
    confidence = draw(arrays(float, rows, elements=st.sampled_from(np.linspace(0.5, 1, 21))))
    return confidence, draw(arrays(bool, rows))


@given(answers(), st.floats(*BOUNDS))
def test_the_temperature_never_changes_the_label(given_answers, temperature):
    logits, _ = given_answers
    after = shares(logits, temperature)
    assert np.all(after[np.arange(len(logits)), logits.argmax(1)] == after.max(1))
    assert np.allclose(after.sum(1), 1)


@given(answers(), st.floats(*BOUNDS), st.sampled_from([0, 1, PRIOR]))
def test_the_fitted_temperature_is_optimal_within_the_bounds(given_answers, other, prior):
    found, rows = fit_temperature(*given_answers, prior=prior), len(given_answers[0])
    assert BOUNDS[0] <= found <= BOUNDS[1]
    assert misfit(*given_answers, found, prior) <= misfit(*given_answers, other, prior) + 1e-4 * (rows + prior)


@given(answers())
def test_the_prior_only_pulls_the_temperature_towards_1(given_answers):
    alone, weak, strong = (fit_temperature(*given_answers, prior=prior) for prior in (0, 1, PRIOR))
    distances = [abs(np.log(temperature)) for temperature in (strong, weak, alone)]
    assert distances == pytest.approx(sorted(distances), abs=1e-3)
    assert min(alone, 1) - 1e-3 <= strong <= max(alone, 1) + 1e-3


def test_the_temperature_equals_the_scale_of_the_logits():
    rng = np.random.default_rng(1)
    honest = rng.normal(0, 2, 5000)
    labels = (rng.random(5000) < 1 / (1 + np.exp(-honest))).astype(int)
    logits = np.column_stack([np.zeros(5000), honest])
    once, thrice = (fit_temperature(factor * logits, labels, prior=0) for factor in (1, 3))
    assert 0.9 < once < 1.1 and thrice == pytest.approx(3 * once, rel=1e-3)
    assert fit_temperature(3 * logits, labels) == pytest.approx(thrice, rel=0.05), "many rows outweigh the prior"


@pytest.mark.parametrize("logits", [np.empty((0, 2)), [[np.nan, 1]], [1.0, 2.0]])
def test_fitting_a_temperature_needs_finite_logits(logits):
    with pytest.raises(ValueError, match="finite logits"):
        fit_temperature(logits, [])


@given(sure_answers())
def test_the_coverage_curve_matches_the_answers(given_answers):
    confidence, right = given_answers
    curve = coverage_curve(confidence, right)
    assert curve["threshold"].is_monotonic_increasing and curve["coverage"].is_monotonic_decreasing
    assert curve["coverage"][0] == 1 and curve["accuracy"][0] == pytest.approx(right.mean())
    for row in curve.itertuples():
        assert row.accuracy == pytest.approx(right[confidence >= row.threshold].mean())


@given(sure_answers(), WANTED, WANTED, st.sampled_from([0, 1, 1.645]))
def test_the_threshold_grows_with_the_required_accuracy(given_answers, one, other, z):
    low, high = sorted((one, other))
    assert sure_threshold(*given_answers, low, z) <= sure_threshold(*given_answers, high, z)
    assert sure_threshold(*given_answers, low, 0) <= sure_threshold(*given_answers, low, z)


@given(sure_answers(), WANTED, st.sampled_from([0, 1.645]))
def test_the_threshold_reaches_the_required_accuracy_and_is_the_lowest(given_answers, wanted, z):
    confidence, right = given_answers
    found = sure_threshold(confidence, right, wanted, z)

    def enough(threshold: float) -> bool:
        sure = confidence >= threshold
        return bool(wilson_lower(right[sure].sum(), sure.sum(), z) >= wanted)

    assert 0.5 <= found <= 1 or found == NEVER
    assert found == NEVER or enough(found)
    assert not any(enough(lower) for lower in confidence if lower < found)


@given(st.integers(1, 500), st.data())
def test_the_wilson_bound_is_below_the_share_and_rises_with_the_rows(total, data):
    right = data.draw(st.integers(0, total))
    lower = wilson_lower(right, total)
    assert -1e-12 <= lower <= right / total + 1e-12
    assert wilson_lower(10 * right, 10 * total) >= lower - 1e-12
    assert wilson_lower(right, total, z=0) == pytest.approx(right / total)


@given(answers())
@example((np.array([[12.5, -7], [-7, 13], [-7, -7]]), np.array([1, 1, 0])))  # two scores that differ in digit nine
def test_the_calibration_is_valid_json_with_correct_values(given_answers):
    logits, labels = given_answers
    found = json.loads(json.dumps(calibration_of(logits, labels, wanted=0.8, z=0)))
    after = shares(logits, found["temperature"])
    sure = after.max(1) >= found["sure_from"]
    assert found["rows"] == len(labels) and found["coverage"] == pytest.approx(sure.mean(), abs=1e-4)
    assert found["reached"] == bool(sure.any()) == (found["accuracy_sure"] is not None)
    if found["reached"]:
        assert 0.8 <= found["accuracy_sure"] == pytest.approx((after.argmax(1) == labels)[sure].mean(), abs=1e-4)


def test_answers_of_an_uninformative_model_are_never_sure():
    found = calibration_of([[0, 5.0]] * 200, [0, 1] * 100)
    assert found["sure_from"] == NEVER and found["coverage"] == 0 and not found["reached"]
    assert found["accuracy_sure"] is None and found["temperature"] > 5
    assert fit_temperature([[0, 5.0]] * 20_000, [0, 1] * 10_000) == BOUNDS[1]
    assert found["ece_after"] < found["ece_before"] == pytest.approx(0.4933, abs=1e-4)


@pytest.mark.parametrize(("right", "reached"), [(985, True), (980, True), (975, False), (950, False)])
def test_at_least_97_percent_of_sure_answers_are_right_with_95_percent_confidence(right, reached):
    true, rights = np.arange(1000) % 2, np.arange(1000) < right
    found = calibration_of(with_gaps(np.full(1000, 4.0), rights, true), true)
    assert found["reached"] is reached and found["coverage"] == reached


def test_an_answer_equal_to_the_rounded_threshold_is_sure():
    "Answers have six digits. So has the threshold, and none of the answers that it counted falls below it."
    confidence = np.repeat([0.9123456789, 0.6], [900, 100])
    found = sure_threshold(confidence, np.repeat([True, False], [900, 100]))
    assert found == 0.912345 <= round(0.9123456789, 6)


def test_a_model_is_measured_without_its_existing_calibration(tmp_path):
    texts = ["good", "terrible", "love it, not bad"]
    before = served_logits(write_tiny_model(tmp_path), texts)
    (tmp_path / "calibration.json").write_text('{"temperature": 3, "sure_from": 0.9}')
    assert np.abs(served_logits(tmp_path, texts) - before).max() == 0
    assert before[0, 1] - before[0, 0] == pytest.approx(2, abs=1e-4)  # the result for "good", without a temperature


def with_gaps(gaps: np.ndarray, right: np.ndarray, true: np.ndarray) -> np.ndarray:
    "Make logits with these gaps for these labels, or for the other label where the answer is wrong."
    towards = np.where(right, 2 * true - 1, 1 - 2 * true)
    return np.column_stack([-towards * gaps / 2, towards * gaps / 2])


@pytest.mark.parametrize("size", [0.01, 4, 20, 1e3, 1e300])
@pytest.mark.parametrize("rows", [1, 2, 12, 60])
@pytest.mark.parametrize("right", [True, False])
def test_few_rows_hardly_change_the_temperature_and_mark_it_as_limited(rows, right, size):
    true = np.arange(rows) % 2
    logits = with_gaps(size * np.linspace(1, 1.5, rows), np.full(rows, right), true)
    found = json.loads(json.dumps(calibration_of(logits, true), allow_nan=False))
    away = 1 + 0.6 * rows  # one confident wrong answer weighs most
    assert 0.85 <= found["temperature"] <= 1 if right else 1 <= found["temperature"] <= min(away, BOUNDS[1])
    assert found["limited"] and not found["reached"] and found["sure_from"] == NEVER


def test_perfect_answers_do_not_push_the_temperature_to_its_bound():
    for rows in (100, 1000, 10_000):
        true = np.arange(rows) % 2
        found = calibration_of(with_gaps(np.linspace(2, 6, rows), np.full(rows, True), true), true)
        assert 0.3 < found["temperature"] < 1
        assert "0 of them answered wrong" in found["limited"][0] and "alone would give 0.25" in found["limited"][0]


def test_enough_rows_give_an_unlimited_calibration():
    rng = np.random.default_rng(2)
    for rows in (1500, 10_000):
        honest = rng.normal(0, 4, rows)
        true = (rng.random(rows) < 1 / (1 + np.exp(-honest))).astype(int)
        found = calibration_of(np.column_stack([np.zeros(rows), 1.5 * honest]), true)
        assert found["limited"] == [] and found["reached"] and 0 < found["coverage"] < 1
        assert found["temperature"] == pytest.approx(1.5, abs=0.15)


ROWS_OF = {
    "no rows": ([], [], "there were no rows"),
    "one label": ([[0, 4.0], [0, 5.0]] * 200, [1] * 400, "400 rows of POSITIVE only say nothing about NEGATIVE"),
    "the other label": ([[4.0, 0], [0, 5.0]] * 200, [0] * 400, "400 rows of NEGATIVE only say nothing about POSITIVE"),
    "constant logits": ([[1.0, 1.0]] * 400, [0] * 399 + [1], "answers NEGATIVE to all 400 rows"),
    "constant answers": ([[0, 9.0]] * 400, [1] * 399 + [0], "answers POSITIVE to all 400 rows"),
    "chance": ([[0, 1.0], [1.0, 0]] * 200, [0, 0, 1, 1] * 100, "no confidence has proved right often enough"),
}


@pytest.mark.parametrize("kind", ROWS_OF)
def test_insufficient_rows_make_no_answer_sure_and_explain_why(kind):
    logits, labels, why = ROWS_OF[kind]
    found = json.loads(json.dumps(calibration_of(logits, labels), allow_nan=False))
    assert found["sure_from"] == NEVER and not found["reached"] and found["coverage"] == 0
    assert any(why in reason and "no answer is called sure" in reason for reason in found["limited"])


@given(answers(), st.sampled_from([0, Z]))
def test_an_unreachable_or_trivial_threshold_is_always_reported(given_answers, z):
    found = calibration_of(*given_answers, wanted=0.6, z=z)
    told = " ".join(found["limited"])
    assert (found["coverage"] == 0) == ("no answer is called sure" in told) == (found["sure_from"] == NEVER)
    assert (found["coverage"] == 1) == ("every answer" in told)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_model_whose_logits_are_not_finite_is_not_calibrated(broken):
    with pytest.raises(ValueError, match="finite logits"):
        calibration_of([[0, 1], [broken, 0]] * 50, [0, 1] * 50)


def test_the_model_card_repeats_why_a_calibration_is_limited():
    for logits, labels, why in ROWS_OF.values():
        assert why in calibration_line(calibration_of(logits, labels))


def test_unsure_answers_are_counted_by_stars():
    table = doubt_by_stars([1, 3, 3, 5], [0.9, 0.6, 0.8, 0.99], 0.8)
    assert table["not sure"].to_dict() == {1: 0, 3: 0.5, 5: 0} and table["rows"].to_dict() == {1: 1, 3: 2, 5: 1}


def test_the_plot_marks_the_chosen_threshold():
    ax = plot_coverage([0.6, 0.9, 0.95], [False, True, True], 0.9)
    assert ax.lines[-1].get_xydata().tolist() == [[2 / 3, 1]]


@given(sure_answers())
def test_the_calibration_error_is_the_gap_within_the_bins(given_answers):
    confidence, right = given_answers
    table = reliability(confidence, right)
    assert table["answers"].sum() == len(right) and (table["to"] - table["from"]).round(9).eq(round(1 / 15, 9)).all()
    inside = [((confidence > row[1] - 1e-9) & (confidence < row[2] + 1e-9)).sum() for row in table.itertuples()]
    assert all(count >= answers for count, answers in zip(inside, table["answers"], strict=True))
    assert 0 <= expected_calibration_error(confidence, right) <= 1
    one_bin = expected_calibration_error(confidence, right, bins=1)
    assert one_bin == pytest.approx(abs(confidence.mean() - right.mean()))


def test_correct_but_underconfident_answers_lower_only_the_calibration():
    labels = [0, 1] * 50
    timid, bold = (share_scores(labels, [1 - s, s] * 50) for s in (0.6, 1.0))
    assert timid["accuracy"] == bold["accuracy"] == bold["average_precision"] == timid["average_precision"] == 1
    assert timid["ece"] == 0.4 and timid["brier"] == 0.16 and bold["ece"] == bold["brier"] == 0
    table = comparison_table({"timid": timid, "labels only": scores(labels, labels)})
    assert table.loc["timid", "ECE"] == 0.4 and table.loc["labels only"].isna().sum() == 2


def test_a_missing_label_has_no_average_precision():
    assert np.isnan(average_precisions([1, 1], [0.2, 0.9])["NEGATIVE"])
    with pytest.raises(ValueError, match="between 0 and 1"):
        share_scores([0, 1], [-1, 2])
