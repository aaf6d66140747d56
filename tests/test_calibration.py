"Properties of temperature and threshold on any answers."

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sentiment_engine.calibration import (
    BOUNDS,
    NEVER,
    calibration_of,
    coverage_curve,
    doubt_by_stars,
    fit_temperature,
    nll,
    plot_coverage,
    shares,
    sure_threshold,
    wilson_lower,
)
from sentiment_engine.evaluation import (
    average_precisions,
    comparison_table,
    expected_calibration_error,
    reliability,
    scores,
    share_scores,
)

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
def test_temperature_never_changes_the_label(given_answers, temperature):
    logits, _ = given_answers
    after = shares(logits, temperature)
    assert np.all(after[np.arange(len(logits)), logits.argmax(1)] == after.max(1))
    assert np.allclose(after.sum(1), 1)


@given(answers(), st.floats(*BOUNDS))
def test_no_temperature_within_the_bounds_is_better(given_answers, other):
    found = fit_temperature(*given_answers)
    assert BOUNDS[0] <= found <= BOUNDS[1]
    assert nll(*given_answers, found) <= nll(*given_answers, other) + 1e-4


def test_temperature_is_what_the_logits_were_multiplied_by():
    rng = np.random.default_rng(1)
    honest = rng.normal(0, 2, 5000)
    labels = (rng.random(5000) < 1 / (1 + np.exp(-honest))).astype(int)
    logits = np.column_stack([np.zeros(5000), honest])
    once = fit_temperature(logits, labels)
    assert 0.9 < once < 1.1 and fit_temperature(3 * logits, labels) == pytest.approx(3 * once, rel=1e-3)


@pytest.mark.parametrize("logits", [np.empty((0, 2)), [[np.nan, 1]], [1.0, 2.0]])
def test_no_temperature_without_logits(logits):
    with pytest.raises(ValueError, match="finite logits"):
        fit_temperature(logits, [])


@given(sure_answers())
def test_curve_counts_what_it_says(given_answers):
    confidence, right = given_answers
    curve = coverage_curve(confidence, right)
    assert curve["threshold"].is_monotonic_increasing and curve["coverage"].is_monotonic_decreasing
    assert curve["coverage"][0] == 1 and curve["accuracy"][0] == pytest.approx(right.mean())
    for row in curve.itertuples():
        assert row.accuracy == pytest.approx(right[confidence >= row.threshold].mean())


@given(sure_answers(), WANTED, WANTED, st.sampled_from([0, 1, 1.645]))
def test_threshold_grows_with_what_is_wanted(given_answers, one, other, z):
    low, high = sorted((one, other))
    assert sure_threshold(*given_answers, low, z) <= sure_threshold(*given_answers, high, z)
    assert sure_threshold(*given_answers, low, 0) <= sure_threshold(*given_answers, low, z)


@given(sure_answers(), WANTED, st.sampled_from([0, 1.645]))
def test_threshold_keeps_its_promise_and_is_the_lowest(given_answers, wanted, z):
    confidence, right = given_answers
    found = sure_threshold(confidence, right, wanted, z)

    def enough(threshold: float) -> bool:
        sure = confidence >= threshold
        return bool(wilson_lower(right[sure].sum(), sure.sum(), z) >= wanted)

    assert 0.5 <= found <= 1 or found == NEVER
    assert found == NEVER or enough(found)
    assert not any(enough(lower) for lower in confidence if lower < found)


@given(st.integers(1, 500), st.data())
def test_wilson_lies_below_the_share_and_rises_with_rows(total, data):
    right = data.draw(st.integers(0, total))
    lower = wilson_lower(right, total)
    assert -1e-12 <= lower <= right / total + 1e-12
    assert wilson_lower(10 * right, 10 * total) >= lower - 1e-12
    assert wilson_lower(right, total, z=0) == pytest.approx(right / total)


@given(answers())
def test_calibration_is_json_and_true(given_answers):
    logits, labels = given_answers
    found = json.loads(json.dumps(calibration_of(logits, labels, wanted=0.8, z=0)))
    after = shares(logits, found["temperature"])
    sure = after.max(1) >= found["sure_from"]
    assert found["rows"] == len(labels) and found["coverage"] == pytest.approx(sure.mean(), abs=1e-4)
    assert found["reached"] == bool(sure.any()) == (found["accuracy_sure"] is not None)
    if found["reached"]:
        assert 0.8 <= found["accuracy_sure"] == pytest.approx((after.argmax(1) == labels)[sure].mean(), abs=1e-4)


def test_hopeless_answers_are_never_sure():
    found = calibration_of([[0, 5.0]] * 200, [0, 1] * 100)
    assert found["sure_from"] == NEVER and found["coverage"] == 0 and not found["reached"]
    assert found["accuracy_sure"] is None and found["temperature"] == BOUNDS[1]
    assert found["ece_after"] < found["ece_before"] == pytest.approx(0.4933, abs=1e-4)


def test_doubt_is_counted_by_stars():
    table = doubt_by_stars([1, 3, 3, 5], [0.9, 0.6, 0.9, 0.99], 0.8)
    assert table["not sure"].to_dict() == {1: 0, 3: 0.5, 5: 0} and table["rows"].to_dict() == {1: 1, 3: 2, 5: 1}


def test_plot_marks_the_choice():
    ax = plot_coverage([0.6, 0.9, 0.95], [False, True, True], 0.9)
    assert ax.lines[-1].get_xydata().tolist() == [[2 / 3, 1]]


@given(sure_answers())
def test_calibration_error_is_the_gap_of_the_bins(given_answers):
    confidence, right = given_answers
    table = reliability(confidence, right)
    assert table["answers"].sum() == len(right) and (table["to"] - table["from"]).round(9).eq(round(1 / 15, 9)).all()
    inside = [((confidence > row[1] - 1e-9) & (confidence < row[2] + 1e-9)).sum() for row in table.itertuples()]
    assert all(count >= answers for count, answers in zip(inside, table["answers"], strict=True))
    assert 0 <= expected_calibration_error(confidence, right) <= 1
    one_bin = expected_calibration_error(confidence, right, bins=1)
    assert one_bin == pytest.approx(abs(confidence.mean() - right.mean()))


def test_shares_that_are_right_but_timid_cost_only_calibration():
    labels = [0, 1] * 50
    timid, bold = (share_scores(labels, [1 - s, s] * 50) for s in (0.6, 1.0))
    assert timid["accuracy"] == bold["accuracy"] == bold["average_precision"] == timid["average_precision"] == 1
    assert timid["ece"] == 0.4 and timid["brier"] == 0.16 and bold["ece"] == bold["brier"] == 0
    table = comparison_table({"timid": timid, "labels only": scores(labels, labels)})
    assert table.loc["timid", "ECE"] == 0.4 and table.loc["labels only"].isna().sum() == 2


def test_missing_label_has_no_average_precision():
    assert np.isnan(average_precisions([1, 1], [0.2, 0.9])["NEGATIVE"])
    with pytest.raises(ValueError, match="between 0 and 1"):
        share_scores([0, 1], [-1, 2])
