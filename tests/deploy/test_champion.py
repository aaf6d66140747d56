"Champion and challenger: the order of models, their tests and the winner."

from shutil import copytree

import numpy as np
import pandas as pd
import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from sentiment_engine.deploy.champion import contest, plot_contest, upload_released, winner
from sentiment_engine.model.artifact import preflight
from sentiment_engine.model.behaviour import load_suite, served
from sentiment_engine.model.released import released_folder
from sentiment_engine.s3 import s3_place

BUCKET = "champion-tests-artifacts"


@pytest.fixture(scope="module")
def s3(cloud):
    client = cloud.client("s3")
    client.create_bucket(Bucket=BUCKET)
    return client


def keys(s3) -> list[str]:
    return [item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])]


def test_the_champion_is_uploaded_once_and_answers_requests(s3, tmp_path):
    champion = upload_released(s3, BUCKET)
    written = s3.head_object(Bucket=BUCKET, Key=s3_place(champion.artifact)[1])["LastModified"]
    assert upload_released(s3, BUCKET) == champion and len(keys(s3)) == 1
    assert s3.head_object(Bucket=BUCKET, Key=s3_place(champion.artifact)[1])["LastModified"] == written
    s3.put_object(Bucket=BUCKET, Key=s3_place(champion.artifact)[1], Body=b"somebody else's")
    assert upload_released(s3, BUCKET) == champion
    s3.download_file(*s3_place(champion.artifact), str(tmp_path / "model.tar.gz"))
    assert all(check.passed for check in preflight(tmp_path / "model.tar.gz", 0.75))


def test_a_changed_release_is_not_uploaded(s3, tmp_path):
    folder = copytree(released_folder(), tmp_path / "released")
    (folder / "calibration.json").write_text("{}")
    before = keys(s3)
    with pytest.raises(ValueError, match=r"calibration\.json of the released model"):
        upload_released(s3, BUCKET, folder)
    assert keys(s3) == before


def test_a_denied_lookup_is_not_hidden():
    class Forbidden:
        def head_object(self, **_):
            raise ClientError({"Error": {"Code": "403"}}, "HeadObject")

    with pytest.raises(ClientError, match="403"):
        upload_released(Forbidden(), BUCKET)


# The winner

SUITE = load_suite()
VALIDATION = pd.DataFrame({"text": [f"review {i}" for i in range(400)], "label": [i % 2 for i in range(400)]})
TRUTH = dict(zip([*VALIDATION["text"], *SUITE["text"]], [*VALIDATION["label"], *SUITE["label"]], strict=True))


def student(reviews: float, suite: float):
    "Make a model that is right on the first part of each test."
    known = {*VALIDATION["text"][: round(reviews * len(VALIDATION))], *SUITE["text"][: round(suite * len(SUITE))]}
    return lambda texts: np.array([float(TRUTH[t]) if t in known else 1.0 - TRUTH[t] for t in texts])


@pytest.mark.parametrize(
    ("champion", "challenger", "wins"),
    [
        ((0.9, 0.8), (1.0, 0.6), "released"),  # has memorised the reviews and understands less
        ((0.9, 0.8), (0.95, 0.8), "candidate"),
        ((0.9, 0.8), (0.6, 0.9), "released"),
        ((0.9, 0.8), (0.9, 0.8), "released"),  # a tie: a change needs a reason
        ((0.9, 0.8), (0.905, 0.8), "released"),  # two more reviews may be chance
        ((0.2, 0.5), (0.9, 0.5), "candidate"),
    ],
)
def test_reviews_and_suite_both_decide_the_winner(champion, challenger, wins):
    table = contest({"released": student(*champion), "candidate": student(*challenger)}, VALIDATION)
    assert winner(table) == wins
    for name, (reviews, suite) in (("released", champion), ("candidate", challenger)):
        assert table.loc[name, "accuracy"] == pytest.approx(reviews) and abs(table.loc[name, "suite"] - suite) < 0.001
        assert table.loc[name, "mean"] == pytest.approx((table.loc[name, "macro-F1"] + table.loc[name, "suite"]) / 2)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5))
def test_no_model_significantly_beats_the_winner(rows):
    table = pd.DataFrame(rows, columns=["mean", "ahead"], index=[f"model {i}" for i in range(len(rows))])
    won, ahead = winner(table), table[table["ahead"] >= 0.95]
    assert won == "model 0" if ahead.empty else table.loc[won, "mean"] == ahead["mean"].max() and won in ahead.index


def test_the_plot_has_a_bar_for_each_number():
    table = contest({"released": student(0.9, 0.8), "candidate": student(0.8, 0.9)}, VALIDATION)
    ax = plot_contest(table)
    assert [round(bar.get_height(), 2) for bar in ax.patches[:3]] == [0.9, 0.8, 0.85] and len(ax.patches) == 6
    assert [text.get_text() for text in ax.figure.legends[0].get_texts()] == ["released", "candidate"]


def test_the_released_model_is_scored_as_it_is_served():
    answers = served(released_folder())
    assert (answers(["I love it, it works perfectly.", "Terrible. It broke after one day."]) > 0.5).tolist() == [
        True,
        False,
    ]
    table = contest({"released": answers, "coin": lambda texts: np.full(len(texts), 0.5)}, VALIDATION)
    assert table.loc["released", "suite"] > 0.75 > table.loc["coin", "suite"]
