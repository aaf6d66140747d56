"The data gate: each bound applies exactly at its documented value."

import pytest

from sentiment_engine.data.quality import EXPECTATIONS, checks, shortcomings, star_drift

SIDE = {"NEGATIVE": 100, "POSITIVE": 300}
GOOD = {
    **{"read": 2_000, "kept": 1_200, "repeats": 300, "rejected": {"malformed": 200, "over_limit": 300}},
    **{"by_label": {"NEGATIVE": 300, "POSITIVE": 900}, "by_split": {"train": SIDE, "validation": SIDE, "test": SIDE}},
    **{"characters": {"p50": 200, "p99": 3_000}, "missing": {"title": 0, "timestamp": 0}, "drift": 0.1},
}
LOW, HIGH = EXPECTATIONS.median


def failed(**changes) -> list[str]:
    "Return which checks fail."
    return [check["check"] for check in checks(GOOD | changes) if not check["passed"]]


@pytest.mark.parametrize(
    ("name", "fine", "beyond"),
    [
        ("rows kept", {"kept": EXPECTATIONS.rows, "by_label": SIDE}, {"kept": EXPECTATIONS.rows - 1, "by_label": SIDE}),
        ("share rejected", {"rejected": {"malformed": 1_000}}, {"rejected": {"malformed": 1_001}}),
        ("share of repeats", {"repeats": 1_200}, {"repeats": 1_201}),
        ("share without a time", {"missing": {"timestamp": 600}}, {"missing": {"timestamp": 601}}),
        ("share of the rarer label", {"by_label": {"POSITIVE": 24}}, {"by_label": {"POSITIVE": 23}}),
        ("share of the rarer label", {"by_label": {"NEGATIVE": 24}}, {"by_label": {"NEGATIVE": 23}}),
        (
            "characters in the middle",
            {"characters": {"p50": LOW, "p99": 1}},
            {"characters": {"p50": LOW - 1, "p99": 1}},
        ),
        (
            "characters in the middle",
            {"characters": {"p50": HIGH, "p99": 1}},
            {"characters": {"p50": HIGH + 1, "p99": 1}},
        ),
        (
            "characters of the longest 1 %",
            {"characters": {"p50": 99, "p99": 20_000}},
            {"characters": {"p50": 99, "p99": 20_001}},
        ),
        ("drift of the stars", {"drift": EXPECTATIONS.drift}, {"drift": EXPECTATIONS.drift + 0.001}),
        ("drift of the stars", {"drift": None}, {"drift": 9}),
        ("sides without a label", {}, {"by_split": GOOD["by_split"] | {"test": {"POSITIVE": 9}}}),
    ],
)
def test_a_value_at_the_bound_passes_and_one_beyond_fails(name, fine, beyond):
    if name == "share of the rarer label":
        fine, beyond = (
            {"by_label": {"NEGATIVE": 1_100, "POSITIVE": 1_100} | each["by_label"]} for each in (fine, beyond)
        )
    assert failed(**fine) == [] and failed(**beyond) == [name]


@pytest.mark.parametrize("reason", ["three_stars", "not_english", "near_repeat", "over_limit"])
def test_rows_that_a_rule_drops_do_not_count_as_rejected(reason):
    assert failed(rejected={reason: 1_999}) == [] and failed(rejected={"conflicting": 1_999}) == ["share rejected"]


def test_a_failed_check_names_the_found_and_the_expected_value():
    assert shortcomings(checks(GOOD)) == []
    assert shortcomings(checks(GOOD | {"repeats": 1_500})) == ["share of repeats: 0.75, expected at most 0.6"]


def test_star_drift_needs_a_run_with_the_same_rules_and_categories():
    report = {"rules": {"balance": 0}, "by_category": {"Books": 9}, "by_stars": {"1": 50, "5": 50}}
    last = report | {"by_stars": {"1": 10, "5": 90}}
    assert star_drift(report, last) > 0.25 and star_drift(report, report) == 0
    for other in (None, {}, last | {"rules": {"balance": 2}}, last | {"by_category": {"Toys": 9}}):
        assert star_drift(report, other) is None
