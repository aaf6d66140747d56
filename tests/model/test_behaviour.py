"The behavioural suite: its content, and its figures for models with known answers."

import numpy as np
import pandas as pd
import pytest

from sentiment_engine.data.reviews import load_grammar
from sentiment_engine.model.behaviour import (
    ask_suite,
    broken_pairs,
    check_suite,
    describe_capabilities,
    failures,
    load_suite,
    near_repeats,
    plot_capabilities,
    score_suite,
)


@pytest.fixture(scope="module")
def suite() -> pd.DataFrame:
    return load_suite()


@pytest.fixture(scope="module")
def truth(suite) -> dict[str, int]:
    return dict(zip(suite["text"], suite["label"], strict=True))


def always_positive(texts: list[str]) -> np.ndarray:
    return np.ones(len(texts))


def test_the_suite_is_large_balanced_and_varied(suite):
    sizes = suite.groupby("capability").size()
    assert len(suite) >= 440 and sizes.min() >= 24 and set(sizes.index) == set(describe_capabilities())
    assert suite.groupby("capability")["label"].mean().between(0.45, 0.55).all()
    assert near_repeats(suite).empty and suite["text"].is_unique
    assert suite.loc[suite["capability"] == "long", "text"].str.split().str.len().between(150, 400).all()
    assert suite[suite["pair"] != ""].groupby("pair").size().ge(2).all() and (suite["pair"] != "").sum() >= 40


def test_generated_reviews_contain_no_sentence_from_the_suite(suite):
    lines = {line.casefold() for rules in load_grammar().values() for lines in rules.values() for line in lines}
    assert not lines & set(suite["text"].str.casefold())


def test_an_always_positive_model_scores_half_everywhere(suite):
    table = score_suite(always_positive)
    assert table["accuracy"].between(0.45, 0.55).all() and table.loc["all", "rows"] == len(suite)
    assert table.loc["entities", "agree"] == 1 and np.isnan(table.loc["plain", "agree"])
    assert set(failures(always_positive)["true"]) == {"NEGATIVE"}


def test_a_perfect_model_has_no_failures(truth):
    def perfect(texts: list[str]) -> np.ndarray:
        return np.array([truth[text] for text in texts], float)

    assert score_suite(perfect)["accuracy"].eq(1).all()
    assert failures(perfect).empty and broken_pairs(perfect).empty


def test_an_answer_that_depends_on_a_name_is_found(truth):
    def prejudiced(texts: list[str]) -> np.ndarray:
        return np.array([0.2 if "Fatima" in text else truth[text] for text in texts])

    table = score_suite(prejudiced)
    assert table.loc["entities", "agree"] == 1 - 1 / table.loc["entities", "pairs"]
    assert table["accuracy"].drop(["entities", "all"]).eq(1).all() and table.loc["entities", "accuracy"] < 1
    assert broken_pairs(prejudiced)["positive"].tolist() == [0.2, 1]
    wrong = failures(prejudiced)
    assert len(wrong) == 1 and "Fatima" in wrong.loc[0, "text"] and wrong.loc[0, "sure"] == 0.8


@pytest.mark.parametrize("given", [[0.5], [0.5, 1.2], [0.5, np.nan], [[0.1, 0.9]] * 2])
def test_answers_that_are_not_probabilities_are_refused(given):
    two = pd.DataFrame({"capability": "plain", "text": ["Good.", "Bad."], "label": [1, 0], "pair": ""})
    with pytest.raises(ValueError, match="one probability from 0 to 1"):
        ask_suite(lambda texts: np.array(given), two)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"text": ["Good.", "good."]}, "repeat"),
        ({"text": ["Good.", " "]}, "blank"),
        ({"label": [1, 1]}, "labels are unbalanced"),
        ({"label": [0, 2]}, "labels must be"),
        ({"pair": ["a", "a"]}, "the same label"),
    ],
)
def test_a_faulty_suite_is_refused(change, reason):
    two = pd.DataFrame({"capability": "plain", "text": ["Good.", "Bad."], "label": [1, 0], "pair": ""})
    assert check_suite(two) is two
    with pytest.raises(ValueError, match=reason):
        check_suite(two.assign(**change))


def test_the_plot_has_a_bar_for_each_model_and_capability():
    table = score_suite(always_positive)
    ax = plot_capabilities({"one": table, "two": table})
    assert len(ax.patches) == 2 * len(table) and len(ax.get_yticks()) == len(table)
