"""The sample is balanced, diverse and repeatable, and keeps the lake's splits apart."""

import io
import json
from itertools import product
from pathlib import Path

import boto3
import numpy as np
import pandas as pd
import pytest
from fsspec.implementations import local
from hypothesis import given
from hypothesis import strategies as st
from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

from sentiment_engine.data.exploration import (
    CARRIED,
    count_reviews,
    draw_samples,
    lake_files,
    open_newest,
    open_reviews,
    share_out,
    write_samples,
)


def made_up(rows: int = 6_000, positive: float = 0.86) -> pd.DataFrame:
    "Make clean reviews, few of them negative and few of one category."
    rng = np.random.default_rng(3)
    good = rng.random(rows) < positive
    frame = pd.DataFrame({"stars": np.where(good, rng.choice([4, 5], rows, p=[0.2, 0.8]), rng.choice([1, 2, 3], rows))})
    frame["label"] = good.astype(int)
    frame["review_id"] = [f"{i * 2654435761 % 2**32:08x}" * 4 for i in range(rows)]
    frame["title"] = np.where(rng.random(rows) < 0.5, "A title", "")
    frame["text"] = [f"Text of number {i}" for i in range(rows)]
    frame["category"] = rng.choice(["Books", "Toys", "Gift_Cards"], rows, p=[0.7, 0.28, 0.02])
    frame["timestamp"] = pd.array([None if i % 50 == 0 else 10**12 + i for i in range(rows)], dtype="Int64")
    frame["split"] = [("train", "validation", "test")[max(i % 10 - 7, 0)] for i in range(rows)]
    return frame


def stored(frame: pd.DataFrame, folder):
    "Write `frame` as the Glue job does, and open it."
    frame.to_parquet(folder, partition_cols=["split"], index=False)
    return open_reviews(LocalFileSystem(), str(folder))


def draw(reviews, rows: int, seed: int) -> dict[str, pd.DataFrame]:
    return draw_samples(reviews, count_reviews(reviews), rows, seed)


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 500), max_size=8), st.integers(0, 1_000))
def test_shares_add_up_and_never_exceed_what_is_available(available, wanted):
    taken = share_out(available, wanted)
    assert sum(taken.values()) == min(wanted, sum(available.values()))
    assert all(0 <= number <= available[kind] for kind, number in taken.items())


def test_samples_are_balanced_cover_all_stars_and_do_not_overlap(tmp_path):
    frame = made_up()
    reviews = stored(frame, tmp_path)
    samples = draw(reviews, 1_000, 42)
    assert samples["train"].label.value_counts().to_dict() == {0: 500, 1: 500}
    assert {split: list(sample) for split, sample in samples.items()} == dict.fromkeys(samples, CARRIED)
    side = frame.set_index("review_id").split
    for split, sample in samples.items():
        assert set(side[sample.review_id]) == {split}
        assert set(sample.stars) == {1, 2, 3, 4, 5} and set(sample.category) == {"Books", "Toys", "Gift_Cards"}
    texts = pd.concat([sample.text.str.lower() for sample in samples.values()])
    assert texts.is_unique and texts.str.startswith("a title. text").any()


@pytest.mark.parametrize(
    ("quotes", "of", "kept"),
    [
        ("{0}", "{0}", False),  # the same text under two ids
        ("Copied from elsewhere: {0}", "{0}", False),
        ("{0} " + "And now for something of my own that is much longer. " * 8, "{0}", False),  # contains all of it
        ("{0} " + "And now for something of my own that is much longer. " * 8, "{0} but with five more words", True),
        ("Great product, thank you.", "Great product, thank you.", True),  # a common phrase
    ],
)
def test_reviews_that_quote_held_out_ones_are_not_trained_on(tmp_path, quotes, of, kept):
    said = "it stopped on the second day and nobody has answered my letters since"
    frame = made_up(2_000).assign(title="")
    at = {split: frame.index[(frame["split"] == split) & (frame["stars"] == 1)] for split in ("train", "test")}
    frame.loc[at["train"], "text"] = [f"{quotes.format(said)} {'i' * i}" for i in range(len(at["train"]))]
    frame.loc[at["test"][0], "text"] = of.format(said)
    samples = draw(stored(frame, tmp_path), 400, 1)
    assert frame.loc[at["test"][0], "review_id"] in set(samples["test"]["review_id"])
    assert (1 in set(samples["train"]["stars"])) is kept
    assert len(samples["train"]) > 250 and list(samples["train"].index) == list(range(len(samples["train"])))


def test_a_rare_label_makes_up_at_least_a_third(tmp_path):
    samples = draw(stored(made_up(positive=0.95), tmp_path), 3_000, 42)
    counts = samples["train"].label.value_counts()
    assert counts[1] == 2 * counts[0] < 3_000


def test_the_sample_depends_on_the_seed_and_not_on_the_order(tmp_path):
    frame = made_up(3_000)
    first = draw(stored(frame, tmp_path / "a"), 500, 42)
    shuffled = draw(stored(frame.sample(frac=1, random_state=1), tmp_path / "b"), 500, 42)
    other = draw(stored(frame, tmp_path / "c"), 500, 43)
    assert all(first[split].equals(shuffled[split]) for split in first)
    assert not first["train"].equals(other["train"])


def test_a_missing_label_or_an_empty_lake_is_reported(tmp_path):
    frame = made_up(1_000)
    frame = frame[(frame.split != "test") | (frame.label == 1)]
    with pytest.raises(ValueError, match="test has no NEGATIVE reviews"):
        draw(stored(frame, tmp_path / "one"), 100, 42)
    with pytest.raises(FileNotFoundError, match="run 01_glue_etl first"):
        open_reviews(LocalFileSystem(), str(tmp_path / "nowhere"))


SIDES = ("test", "train", "validation")


class BusyLake(local.LocalFileSystem):
    "A lake in which a job writes while a reader reads."

    cachable = False

    def __init__(self, root: Path, pace: list[int]):
        super().__init__()
        self.root, self.pace = root, iter(pace)  # pace: steps of the job before each request of the reader
        (root / "reports").mkdir(parents=True)
        self.write("a")
        self.steps = self.runs()

    def write(self, run: str):
        "Write the reviews of a run, and name it in the report."
        for side in SIDES:
            place = self.root / "processed" / run / f"split={side}"
            place.mkdir(parents=True)
            pd.DataFrame({"text": [run]}).to_parquet(place / "part-0.parquet")
        (self.root / "reports/etl.json").write_text(json.dumps({"run": run}))

    def runs(self):
        "Run three more times. Each run deletes, file by file, everything older than the previous run."
        for before, run in (("", "b"), ("a", "c"), ("b", "d")):
            self.write(run)
            yield
            for side in SIDES if before else ():
                (self.root / "processed" / before / f"split={side}/part-0.parquet").unlink()
                yield

    def goes_on(self):
        for _ in range(next(self.pace, 0)):
            next(self.steps, None)

    def ls(self, path, **options):
        self.goes_on()
        return super().ls(path, **options)

    def info(self, path, **options):
        self.goes_on()
        return super().info(path, **options)

    def _open(self, path, **options):
        self.goes_on()
        return super()._open(path, **options)


def test_a_reader_gets_one_complete_run_while_a_job_writes(tmp_path):
    seen, bursts = set(), [[0] * at + [steps] for at, steps in product(range(30), (1, 2, 3, 4, 6, 20))]
    for number, pace in enumerate([*bursts, [1] * 99, [0, 1] * 99]):
        lake = tmp_path / str(number)
        found = open_newest(PyFileSystem(FSSpecHandler(BusyLake(lake, pace))), str(lake))
        places = [Path(file).relative_to(lake / "processed").parts[:2] for file in found.files]
        runs = {run for run, _ in places}
        assert len(runs) == 1 and [side for _, side in places] == [f"split={side}" for side in SIDES], pace
        seen |= runs
    assert seen == {"a", "b", "c", "d"}


def test_counts_add_up_with_and_without_times(tmp_path):
    frame = made_up(2_000)
    cube = count_reviews(stored(frame, tmp_path))
    assert cube.reviews.sum() == 2_000
    assert cube[cube.month.isna()].reviews.sum() == frame.timestamp.isna().sum()
    assert cube.groupby("stars").reviews.sum().to_dict() == frame.stars.value_counts().to_dict()


def test_the_lake_can_be_read_and_written(cloud, tmp_path, monkeypatch):
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    cloud.advance_clock(1_801)  # Arrow first signs with its own clock, then with the cloud's once it has seen it
    session, bucket = boto3.Session(region_name=cloud.environment["AWS_DEFAULT_REGION"]), "exploration-lake"
    s3 = session.client("s3")
    s3.create_bucket(Bucket=bucket)
    with pytest.raises(FileNotFoundError, match="there are no cleaned reviews in exploration-lake/processed"):
        open_reviews(lake_files(session), f"{bucket}/processed")
    frame = made_up(2_000)
    frame.to_parquet(tmp_path, partition_cols=["split"], index=False)
    for path in tmp_path.rglob("*.parquet"):
        s3.upload_file(str(path), bucket, f"processed/{path.relative_to(tmp_path)}")
    samples = draw(open_reviews(lake_files(session), f"{bucket}/processed"), 300, 42)
    report = write_samples(s3, bucket, samples, seed=42)
    body = s3.get_object(Bucket=bucket, Key="sample/train.parquet")["Body"].read()
    assert pd.read_parquet(io.BytesIO(body)).equals(samples["train"])
    assert json.load(s3.get_object(Bucket=bucket, Key="reports/sample.json")["Body"]) == report
    assert report["train"]["by_label"] == {"NEGATIVE": 150, "POSITIVE": 150} and report["seed"] == 42
