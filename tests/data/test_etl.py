"""The Glue job on real Spark: what it counts, what it keeps, and what it leaves when it fails."""

import gzip
import html
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import permutations
from pathlib import Path
from types import ModuleType, SimpleNamespace

import boto3
import pytest
from botocore.exceptions import ConnectionClosedError, ConnectTimeoutError, EndpointConnectionError, ReadTimeoutError
from botocore.stub import Stubber
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pyarrow.fs import LocalFileSystem

from sentiment_engine.data import etl
from sentiment_engine.data.etl import (
    CLEAN_COLUMNS,
    QualityError,
    Rules,
    clean_reviews,
    transform,
)
from sentiment_engine.data.exploration import newest_reviews, open_newest, open_reviews
from sentiment_engine.data.ingest import upload_reviews
from sentiment_engine.data.quality import SIDES, Expectations
from sentiment_engine.data.reviews import find_files
from sentiment_engine.deploy.glue import job_zip, run_glue_job, upload_job
from sentiment_engine.deploy.stacks import deploy_stack
from sentiment_engine.local import glue_options
from tests import ROOT
from tests.doubles.object_store import WAYS, ObjectStore

FAULTS = {  # each reason and the lines that must get it
    "malformed": ["not json", '{"rating": 5, "text": "cut', "[1, 2]", "null", "12"],
    "too_long": [
        json.dumps({"rating": 5, "text": "long " * 10_001}),
        json.dumps({"rating": 5, "text": "fine", "title": "T" * 50_001}),
        json.dumps({"rating": 9, "text": "<a" + " " * 60_000 + "=" * 60_000}),
    ],
    "no_text": ['{"rating": 5}', '{"rating": 1, "text": null}', "{}"],
    "blank_text": ['{"rating": 5, "text": ""}', '{"rating": 5, "text": " <br /> &nbsp; \\u200b "}'],
    "bad_rating": [
        *('{"rating": 0, "text": "zero"}', '{"rating": 6, "text": "six"}', '{"rating": 4.5, "text": "half"}'),
        *('{"rating": null, "text": "none"}', '{"text": "missing"}', '{"rating": "good", "text": "word"}'),
    ],
}


def line(text: str, rating: float = 5.0, **more) -> str:
    "Write one raw review."
    return json.dumps({"rating": rating, "title": "T", "text": text, "timestamp": 1_600_000_000_000} | more)


def good_lines(count: int = 300) -> list[str]:
    "Write raw reviews that are all different and half of them negative."
    return [line(f"review number {i}", rating=1 + i % 5 if i % 2 else 5, timestamp=10**12 + i) for i in range(count)]


def in_order(reviews) -> list[dict]:
    "Read a dataset, by id."
    return sorted(reviews.to_table().to_pylist(), key=lambda row: row["review_id"])


class Lake:
    "The folders of one job."

    def __init__(self, root: Path, raw: Path | None = None):
        self.root, self.raw = root, raw or root / "raw"
        self.raw.mkdir(exist_ok=True)
        self.places = [str(self.raw), *(str(root / name) for name in ("processed", "rejected", "reports/etl.json"))]

    def put(self, name: str, lines: list[str]):
        "Write a raw file."
        data = "\n".join(lines).encode()
        (self.raw / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)

    def report(self) -> dict:
        "Read the report of the current run."
        return json.loads((self.root / "reports/etl.json").read_text())

    def rows(self) -> list[dict]:
        "Read the clean reviews, by id."
        return in_order(open_newest(LocalFileSystem(), str(self.root)))

    def rejected(self) -> list[dict]:
        "Read the rejected rows."
        folder = self.root / "rejected" / self.report()["run"]
        return [json.loads(text) for path in folder.rglob("*.json") for text in path.open()]

    def seen(self) -> tuple:
        "Return everything that a reader sees, without the parts that differ between runs."
        report = {name: self.report()[name] for name in ("read", "kept", "repeats", "rejected", "by_split")}
        return self.rows(), sorted(row["line"] for row in self.rejected()), report

    def files(self) -> dict[str, bytes]:
        "Read every file that the job has written."
        written = [path for path in self.root.rglob("*") if path.is_file() and self.raw not in path.parents]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in written}


@pytest.fixture
def lake(tmp_path) -> Lake:
    return Lake(tmp_path)


@pytest.fixture(scope="module")
def cleaned(spark, tmp_path_factory) -> tuple[Lake, dict]:
    "A lake with every fault, cleaned once, and its report."
    lake = Lake(tmp_path_factory.mktemp("lake"))
    repeats = [line("Review NUMBER <b>8</b>", rating=4, timestamp=1), line("number eight"), line("number eight")]
    conflict = [line("could be either", rating=5), line("could be either", rating=2)]
    lake.put("Books.jsonl", good_lines() + repeats + ["", "   "])
    lake.put("All Beauty+.jsonl.gz", conflict + [text for lines in FAULTS.values() for text in lines])
    lake.put("notes.txt", ["no review"])
    return lake, clean_reviews(spark, *lake.places)


def test_rejected_rows_are_counted_by_reason_and_stored_separately(cleaned):
    lake, report = cleaned
    expected = {reason: len(lines) for reason, lines in FAULTS.items()} | {"conflicting": 2}
    assert report["rejected"] == expected
    aside = {reason: {row["line"] for row in lake.rejected() if row["reason"] == reason} for reason in FAULTS}
    assert aside == {reason: set(lines) for reason, lines in FAULTS.items()}
    assert {row["category"] for row in lake.rejected()} == {"All Beauty+"}
    assert {row["reason"] for row in lake.rejected()} == {*FAULTS, "conflicting"}  # repeats are only counted


def test_every_line_is_accounted_for(cleaned):
    lake, report = cleaned
    assert report["read"] == 300 + 3 + 2 + sum(map(len, FAULTS.values()))  # blank lines and other files are not rows
    assert report["read"] == report["kept"] + report["repeats"] + sum(report["rejected"].values())
    assert report["kept"] == len(lake.rows()) == sum(report["by_stars"].values()) == sum(report["by_label"].values())
    assert lake.report() == report


def test_the_oldest_of_equal_texts_is_kept(cleaned):
    lake, report = cleaned
    assert report["repeats"] == 2
    eight = [row for row in lake.rows() if row["text"].lower() == "review number 8"]
    assert [(row["stars"], row["timestamp"]) for row in eight] == [(4, 1)] and eight[0]["text"] == "Review NUMBER 8"
    assert not [row for row in lake.rows() if row["text"] == "could be either"]


def judged(spark, lines: list[str], rules: Rules) -> list[tuple[str, int, str | None]]:
    "Return text, stars and reason of each line, in the order of texts and stars."
    frame = spark.createDataFrame([(text, "B") for text in lines], "line string, category string")
    rows = transform(frame, rules).where("text is not null").collect()
    return sorted((row.text, row.stars, row.reason) for row in rows)


def test_a_review_without_a_time_counts_as_the_newest(spark):
    equal = [line("Fine", rating=5, timestamp=None), line("fine", rating=4, timestamp=5)]
    words = "the strap holds my old guitar well and the leather is soft and strong"
    near = [line(f"{words} now", rating=1, timestamp=None), line(f"{words} too", rating=2, timestamp=5)]
    assert judged(spark, [*equal, *near], Rules(near_repeats=0.5)) == [
        ("Fine", 5, "repeat"),
        ("fine", 4, None),
        (f"{words} now", 1, "near_repeat"),
        (f"{words} too", 2, None),
    ]


def test_near_repeats_reach_the_threshold_and_have_at_least_eight_words(spark):
    ten, seven = "one two three four five six seven eight nine", "red green blue black white grey"
    lines = [line(f"{words} {end}", timestamp=at) for words in (ten, seven) for at, end in ((1, "a"), (2, "b"))]
    reasons = {
        share: [row[2] for row in judged(spark, lines, Rules(near_repeats=share))] for share in (0.5, 7 / 9, 0.8)
    }
    found = [None, "near_repeat", None, None]
    assert reasons == {0.5: found, 7 / 9: found, 0.8: [None] * 4}  # they share 7 of 9 runs of three words


def test_limits_keep_the_configured_number_of_rows(spark):
    bad = [line(f"bad {i}", rating=1) for i in range(3)]
    good = [line(f"good {i}", rating=5) for i in range(9)]
    out = [line(f"so so {i}", rating=3) for i in range(9)] + [line("either", rating=star) for star in (1, 5)]
    for rules, kept in (
        (Rules("dropped", balance=1.5), (3, 4)),  # at most 1.5 times 3
        (Rules("dropped", balance=1), (3, 3)),
        (Rules("dropped", most_per_star=2), (2, 2)),
        (Rules("dropped", most_per_category=4), 4),
    ):
        stars = [star for _, star, reason in judged(spark, bad + good + out, rules) if reason is None]
        counts = (stars.count(1), stars.count(5))
        assert (counts if isinstance(kept, tuple) else sum(counts)) == kept, rules


@pytest.mark.parametrize("name", ["near_repeats", "balance", "most_per_category", "most_per_star"])
def test_rule_values_are_checked_at_their_bounds(name):
    assert Rules(**{name: 0}) and Rules(**{name: 1})
    said = "between 0 and 1" if name == "near_repeats" else r"0 \(no limit\) or more"
    with pytest.raises(ValueError, match=f"{name} must be {said}"):
        Rules(**{name: -0.1})
    for wrong in ({"near_repeats": 1.01}, {"balance": 0.99}, {"balance": 0.01}):
        with pytest.raises(
            ValueError, match=r"near_repeats must be between 0 and 1|balance must be 0 .* or at least 1"
        ):
            Rules(**wrong)


def test_readers_never_see_a_partially_written_report(spark, lake):
    lake.put("Books.jsonl", good_lines())
    clean_reviews(spark, *lake.places)
    path = lake.root / "reports/etl.json"
    before = path.read_text()
    with path.open() as reader:
        clean_reviews(spark, *lake.places)
        assert reader.read() == before != path.read_text()
    assert [each.name for each in path.parent.iterdir()] == ["etl.json"]


def test_a_malformed_line_does_not_reject_a_review_with_the_same_text(spark):
    lines = ["terrible", line("Terrible", rating=1), "fine!", line("Fine!", rating=5, timestamp=None)]
    frame = spark.createDataFrame([(text, "B") for text in lines], "line string, category string")
    reasons = {row.line or row.text: row.reason for row in transform(frame).collect()}
    assert reasons == {"terrible": "malformed", "fine!": "malformed", "Terrible": None, "Fine!": None}


def test_the_output_has_the_expected_columns_labels_and_splits(cleaned):
    rows = cleaned[0].rows()
    assert set(rows[0]) == set(CLEAN_COLUMNS)
    assert all(row["label"] == (row["stars"] >= 4) for row in rows)
    assert len({row["text"].lower() for row in rows}) == len({row["review_id"] for row in rows}) == len(rows)
    sides = [sum(row["split"] == side for row in rows) / len(rows) for side in ("train", "validation", "test")]
    assert abs(sides[0] - 0.8) < 0.08 and min(sides) > 0.03
    places = {side: {int(r["review_id"][:8], 16) % 100 for r in rows if r["split"] == side} for side in SIDES}
    assert max(places["train"]) == 79 and (min(places["validation"]), max(places["validation"])) == (80, 89)
    assert min(places["test"]) == 90


def test_a_run_leaves_only_data_files(cleaned):
    names = list(cleaned[0].files())
    assert all(name.endswith((".parquet", ".json")) and "/_" not in name for name in names)
    assert len([name for name in names if name.endswith(".parquet")]) == 3  # small data, one file for each side


def test_the_order_of_lines_and_files_does_not_matter(spark, cleaned):
    lines = good_lines() + [line(f"review number {i}", rating=5, timestamp=5) for i in range(0, 300, 2)]
    shuffled = random.Random(1).sample(lines, len(lines))
    schema = "line string, category string"
    kept = [
        {tuple(row) for row in transform(spark.createDataFrame([(t, "B") for t in order], schema)).collect()}
        for order in (lines, shuffled)
    ]
    assert kept[0] == kept[1] and len(kept[0]) == 450


def test_a_rerun_gives_the_same_rows_and_older_runs_are_removed(spark, cleaned):
    lake, first = cleaned
    before, files = lake.rows(), len(lake.files())
    reader = open_newest(LocalFileSystem(), str(lake.root))
    again = clean_reviews(spark, *lake.places)
    assert lake.rows() == before and len(lake.files()) == 2 * files - 1  # two runs, one report
    assert in_order(reader) == before
    third = clean_reviews(spark, *lake.places)
    assert len(lake.files()) == 2 * files - 1
    for place in lake.places[1:3]:
        assert {path.name for path in Path(place).iterdir()} == {again["run"], third["run"]}
    assert again["drift"] == 0 and first["drift"] is None
    apart = {"run", "seconds", "finished", "drift", "checks"}
    assert {k: v for k, v in again.items() if k not in apart} == {k: v for k, v in first.items() if k not in apart}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([line(f"fine {i}") for i in range(300)], "sides without a label: NEGATIVE in train"),
        (good_lines(20), "rows kept: 20, expected at least 100"),
        (good_lines(120) + ["oops"] * 200, "share rejected: 0.625, expected at most 0.5"),
        ([], "rows kept: 0,"),
    ],
    ids=["one label", "too few", "mostly rejected", "empty"],
)
def test_a_failed_gate_keeps_the_last_output(spark, cleaned, tmp_path, lines, said):
    lake, _ = cleaned
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/Books.jsonl").write_text("\n".join(lines))
    before = lake.files()
    with pytest.raises(QualityError, match=said):
        clean_reviews(spark, str(tmp_path / "raw"), *lake.places[1:])
    assert lake.files() == before


def test_errors_name_missing_and_damaged_input(spark, cleaned, tmp_path):
    lake, _ = cleaned
    before = lake.files()
    with pytest.raises(ValueError, match=r"there are no raw reviews in .*nowhere"):
        clean_reviews(spark, str(tmp_path / "nowhere"), *lake.places[1:])
    (tmp_path / "Books.jsonl.gz").write_bytes(gzip.compress("\n".join(good_lines(5000)).encode())[:-3000])
    with pytest.raises(RuntimeError, match=r"Spark failed on .*: a \.gz file is cut off"):
        clean_reviews(spark, str(tmp_path), *lake.places[1:])
    assert lake.files() == before


def test_a_changed_star_distribution_fails_unless_allowed(spark, lake):
    lake.put("Books.jsonl", good_lines())
    clean_reviews(spark, *lake.places)
    before = lake.files()
    lake.put("Books.jsonl", [line(f"review number {i}", rating=2 if i % 9 else 5) for i in range(300)])
    with pytest.raises(QualityError, match="drift of the stars"):
        clean_reviews(spark, *lake.places)
    assert lake.files() == before
    assert clean_reviews(spark, *lake.places, expected=Expectations(drift=9))["drift"] > 0.25
    other_rules = clean_reviews(spark, *lake.places, Rules(three_stars="dropped"))
    assert other_rules["drift"] is None and other_rules["rules"]["three_stars"] == "dropped"


def test_each_rule_drops_its_rows(spark, lake):
    spanish = [line(f"No funciona como esperaba, es el número {i} de los malos", rating=1) for i in range(5)]
    near = [
        line(f"The strap number {i} holds my old guitar well and the leather is soft and strong{end}", timestamp=at)
        for i in range(4)
        for at, end in ((1, "."), (2, " too!"))
    ]
    lake.put("Books.jsonl", good_lines() + spanish + near)
    lake.put("Toys.jsonl", [line(f"a toy of kind {i}", rating=1 + i % 5) for i in range(200)])
    rules = Rules("dropped", True, 0.7, most_per_category=120, most_per_star=90, balance=1.5)
    report = clean_reviews(spark, *lake.places, rules)
    rejected, rows = report["rejected"], lake.rows()
    assert rejected["three_stars"] == 30 + 40 and rejected["not_english"] == 5 and rejected["near_repeat"] == 4
    assert report["read"] == report["kept"] + report["repeats"] + sum(rejected.values()) and rejected["over_limit"] > 0
    assert max(report["by_category"].values()) <= 120 and max(report["by_stars"].values()) <= 90
    assert report["by_label"]["POSITIVE"] <= 1.5 * report["by_label"]["NEGATIVE"]
    assert not [row for row in rows if row["stars"] == 3] and len(rows) == report["kept"]


TEXTS = ["Works.", "works.", "Broke <b>at once</b>", "Fine &amp; good", "cafe\u0301", "café", "No!", "Yes it is", " "]
some_lines = st.lists(
    st.one_of(
        st.builds(line, st.sampled_from(TEXTS), st.sampled_from([1, 2, 3, 4, 5, 7]), timestamp=st.integers(0, 3)),
        st.sampled_from([text for lines in FAULTS.values() for text in lines]),
        st.builds(line, st.text(st.characters(codec="utf-8"), max_size=12), st.sampled_from([1, 5])),
    ),
    max_size=40,
)
few = settings(max_examples=8, phases=[Phase.generate], derandomize=True, database=None, print_blob=False)


@given(lines=some_lines, random=st.randoms(use_true_random=False), rules=st.sampled_from([Rules(), Rules("dropped")]))
@few
def test_each_text_is_in_one_split_in_any_row_order(spark, lines, random, rules):
    found = []
    for order in (lines, random.sample(lines, len(lines))):
        frame = spark.createDataFrame([(text, "B") for text in order], "line string, category string")
        found.append([row.asDict() for row in transform(frame.repartition(3), rules).collect()])
    first, second = (sorted(map(str, rows)) for rows in found)
    assert first == second and len(first) == len(lines)
    sides = {}
    for row in found[0]:
        if row["reason"] is None:
            sides.setdefault(row["text"].lower(), set()).add((row["split"], row["label"]))
            assert row["label"] == (row["stars"] >= 4) and row["text"] == html.unescape(row["text"]).strip() != ""
    assert all(len(side) == 1 for side in sides.values())


# ---- a store that behaves like S3, with faults


@pytest.fixture(scope="module")
def store(spark, spark_classes) -> ObjectStore:
    "The store behind every s3:// address of these tests."
    return ObjectStore(spark, spark_classes)


ANCIENT = "20200101T000000-0123abcd"  # a run
REMOVED = {  # what the job may delete, after the commit
    *(f"processed/{ANCIENT}/split={side}/part-0.parquet" for side in ("train", "validation", "test")),
    f"rejected/{ANCIENT}/part-0.json",
    *("processed/split=train/part-0.parquet", "processed/_SUCCESS", "processed/_temporary/0/part-0.parquet"),
}
OTHERS = {  # another program's files beside the output
    *("processed/notes.txt", "processed/photos/split=train/1.jpg", "processed/2019/a.csv", "rejected/_README"),
    *(f"processed/{ANCIENT}.zip", f"processed/copy-of-{ANCIENT}/a.parquet", "processed/20200101/a.parquet"),
}


class World:
    "A lake in the store with the output of one run and the raw reviews of the next."

    places = ("s3://lake/raw", "s3://lake/processed", "s3://lake/rejected", "s3://lake/reports/etl.json")

    def __init__(self, spark, store: ObjectStore, folders):
        self.spark, self.store, self.folders = spark, store, folders
        store.put("raw/Books.jsonl", "\n".join(["oops"] * 2 + good_lines(302)))
        self.run()
        self.old = self.seen()
        store.put("raw/Books.jsonl", "\n".join(["oops"] * 5 + good_lines(305)))
        for key in REMOVED | OTHERS:
            store.put(key, "old")
        self.start, self.before = store.java.snapshot(), store.objects()
        self.run()
        self.new, self.after, self.requests = self.seen(), store.objects(), store.requests
        self.commit = self.requests.index("PUT reports/etl.json") + 1

    def run(self, at: int = 0, way: str = "") -> bool:
        "Run the job and make its request number `at` fail. Return whether the job reports success."
        self.store.fail(at, way)
        try:
            clean_reviews(self.spark, *self.places)
        except (RuntimeError, ValueError, OSError) as error:
            assert at, error
            return False
        finally:
            if at:
                self.store.fail(0, "")
        return True

    def seen(self) -> tuple:
        "Return what a reader sees."
        return Lake(self.store.copy_to(self.folders.mktemp("seen"))).seen()

    def check(self, crashes: list[tuple[int, str]]):
        "Make runs fail one after the other. Readers must see the old or the new output at all times."
        self.store.java.restore(self.start)
        for at, way in crashes:
            done, seen = self.run(at, way), self.seen()
            assert seen in (self.old, self.new), (at, way)
            assert seen == self.new or not done, (at, way)
        self.check_the_next_run()

    def check_the_next_run(self):
        "Run once more. Only runs not older than the previous one, and files of other programs, may remain."
        last = run_of(self.store.objects())
        assert self.run() and self.seen() == self.new
        beside = self.store.objects().keys() - OTHERS - {"raw/Books.jsonl", "reports/etl.json"}
        runs = {key.split("/")[1] for key in beside}
        assert {run_of(self.store.objects())} <= runs and all(etl.RUN_NAME.fullmatch(run) for run in runs)
        assert min(runs) >= last and self.store.objects().keys() >= OTHERS


def run_of(objects: dict[str, bytes]) -> str:  # empty: there is no report
    "Return the run that the report names."
    return json.loads(objects["reports/etl.json"])["run"] if "reports/etl.json" in objects else ""


@pytest.fixture(scope="module")
def world(spark, store, tmp_path_factory) -> World:
    return World(spark, store, tmp_path_factory)


def test_the_report_is_the_only_object_that_is_replaced(world):
    "One request makes a run the current one. Earlier requests only add new files, later ones only delete."
    before, after = world.requests[: world.commit - 1], world.requests[world.commit :]
    assert all(f"/{run_of(world.after)}/" in request for request in before)
    assert sorted(after) == sorted(f"DELETE {key}" for key in REMOVED)


def test_a_run_stays_readable_during_every_request_of_the_next_run(world, tmp_path):
    there = world.before | world.after
    for at, request in enumerate(["", *world.requests[world.commit :]]):
        there.pop(request.removeprefix("DELETE "), None)
        for key, data in there.items():
            (tmp_path / str(at) / key).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / str(at) / key).write_bytes(data)
        for objects, (rows, *_) in ((world.before, world.old), (world.after, world.new)):
            place = tmp_path / str(at) / "processed" / run_of(objects)
            assert in_order(open_reviews(LocalFileSystem(), str(place))) == rows, request


def test_a_run_keeps_the_files_of_a_concurrent_run_and_the_overtaken_run_fails(spark, lake, monkeypatch):
    "The other run starts first and is overtaken by one run or two."
    lake.put("Books.jsonl", good_lines())
    for overtaken in (1, 1, 2):
        measure, ran = etl.measure_quality, []

        def slowly(staged, measure=measure, ran=ran, overtaken=overtaken):
            if not ran:
                ran.append(lake.files())
                ran.extend(clean_reviews(spark, *lake.places)["run"] for _ in range(overtaken))
                missing = ran[0].keys() - lake.files().keys() - {"reports/etl.json"}
                assert overtaken > 1 or not missing
            return measure(staged)

        with monkeypatch.context() as patch:
            patch.setattr(etl, "measure_quality", slowly)
            with pytest.raises(RuntimeError, match=r"another run finished in the meantime|Spark failed"):
                clean_reviews(spark, *lake.places)
        assert lake.report()["run"] == ran[-1] and len(lake.rows()) == 300


@pytest.mark.parametrize(("beside", "way"), [*((0, way) for way in WAYS), (1, WAYS[0])])
def test_a_failure_near_the_commit_leaves_the_old_or_the_new_output(world, beside, way):
    world.check([(world.commit + beside, way)])


@given(crashes=st.lists(st.tuples(st.integers(1, 60), st.sampled_from(WAYS)), min_size=1, max_size=3))
@settings(few, max_examples=4)
def test_repeated_failures_leave_the_old_or_the_new_output(world, crashes):
    world.check(crashes)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_failure_at_any_request_leaves_the_old_or_the_new_output(world, way):
    for at in range(1, len(world.requests) + 2):
        world.check([(at, way)])


def test_a_failed_first_run_leaves_nothing_to_read(world, tmp_path):
    raw = {key: data for key, data in world.store.objects().items() if key.startswith("raw/")}
    world.store.java.restore(world.spark._jvm.java.util.TreeMap(raw))
    assert not world.run(world.commit, "the machine dies")
    with pytest.raises(FileNotFoundError, match=r"there are no cleaned reviews in .*: run 01_glue_etl first"):
        newest_reviews(LocalFileSystem(), str(world.store.copy_to(tmp_path)))
    for key in OTHERS:
        world.store.put(key, "old")
    world.check_the_next_run()


@pytest.mark.parametrize("report", [None, '{"kept": 300}'], ids=["no report", "a report of an older version"])
def test_reviews_of_runs_without_a_report_are_not_read(tmp_path, report):
    if report:
        (tmp_path / "reports").mkdir()
        (tmp_path / "reports/etl.json").write_text(report)
    with pytest.raises(FileNotFoundError, match=r"there are no cleaned reviews in .*: run 01_glue_etl first"):
        newest_reviews(LocalFileSystem(), str(tmp_path))


@pytest.mark.slow
def test_a_killed_job_leaves_the_old_or_the_new_output(lake):
    "Real processes, killed at random moments from their first file on."
    code = "import sys; from sentiment_engine.data.etl import *; clean_reviews(start_spark(), *sys.argv[1:])"
    job, seen, rng = [sys.executable, "-c", code, *lake.places], [], random.Random(5)
    lake.put("Books.jsonl", ["oops"] * 2 + good_lines(302))
    subprocess.run(job, check=True)
    old, runs = lake.seen(), lake.root / "processed"
    lake.put("Books.jsonl", ["oops"] * 5 + good_lines(305))
    for _ in range(5):
        before = set(runs.iterdir())
        running = subprocess.Popen(job, start_new_session=True)
        end = time.monotonic() + 300
        while running.poll() is None and set(runs.iterdir()) == before:
            assert time.monotonic() < end, "it writes nothing"
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 4))
        os.killpg(running.pid, signal.SIGKILL)
        running.wait(60)
        seen.append(lake.seen())
    last = lake.report()["run"]
    subprocess.run(job, check=True)
    assert all(each in (old, lake.seen()) for each in seen) and lake.seen() != old
    assert {last, lake.report()["run"]} <= {run.name for run in runs.iterdir()}
    assert min(run.name for run in runs.iterdir()) == last


# ---- the script in Glue

SCRIPT = ROOT / "infra_scripts/clean_reviews.py"
CONTEXT = """
from pyspark import SparkContext
from pyspark.sql import SparkSession

calls = []


class GlueContext:
    def __init__(self, sparkContext, **options):
        assert isinstance(sparkContext, SparkContext) and not options
        self.spark_session = SparkSession.builder.getOrCreate().newSession()
        self.spark_session.conf.set("spark.sql.parquet.compression.codec", "gzip")
        self.spark_session.conf.set("spark.sql.shuffle.partitions", "2")
        calls.append(("session", self.settings()))

    def settings(self):
        rows = self.spark_session.sql("SET").collect()
        return dict(map(tuple, rows)) | dict(self.spark_session.sparkContext.getConf().getAll())
"""
JOB = """
from awsglue.context import GlueContext, calls


class Job:
    def __init__(self, glue_context):
        assert isinstance(glue_context, GlueContext)
        self.context = glue_context

    def init(self, job_name, args={}):
        calls.append(("init", job_name, args))

    def commit(self):
        calls.append(("commit", self.context.settings()))
"""


def script() -> ModuleType:
    "Reload the job's script at each call."
    spec = importlib.util.spec_from_file_location("clean_reviews_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def awsglue(tmp_path, monkeypatch) -> list[tuple]:
    "Install a package with Glue's documented interface for the script; return the calls to it."
    folder = tmp_path / "glue/awsglue"
    folder.mkdir(parents=True)
    for name, text in {"__init__": "", "context": CONTEXT, "job": JOB}.items():
        (folder / f"{name}.py").write_text(text)
    shutil.copy(glue_options.__file__, folder / "utils.py")
    monkeypatch.syspath_prepend(str(tmp_path / "glue"))
    yield importlib.import_module("awsglue.context").calls
    for name in [name for name in sys.modules if name.partition(".")[0] == "awsglue"]:
        del sys.modules[name]


def glue_arguments(lake: Lake, *more: str) -> list[str]:
    "Return the arguments with which Glue starts the script: its own, the job's and the run's."
    own = ["--job-bookmark-option", "job-bookmark-disable", "--JOB_ID", "j_1", "--enable-metrics", "true"]
    own += ["--TempDir", "s3://lake/tmp/", "--JOB_RUN_ID", "jr_1", "--extra-py-files", "s3://code/sentiment_engine.zip"]
    own += ["--enable-auto-scaling", "true", "--job-language", "python", "--enable-continuous-cloudwatch-log", "true"]
    places = zip(("--raw", "--processed", "--rejected", "--report"), lake.places, strict=True)
    given = [word for name, place in places for word in (name, place)]
    return ["/tmp/clean_reviews.py", *own, *given, *more, "--JOB_NAME", "balance"]  # also the name of an option


def test_the_script_uses_the_session_from_glue_and_leaves_its_settings_unchanged(spark, lake, awsglue):
    lake.put("Books.jsonl", good_lines())
    script().main(glue_arguments(lake, "--three_stars", "dropped", "--drift", "9"))
    assert [call[0] for call in awsglue] == ["session", "init", "commit"]
    assert awsglue[0][1] == awsglue[2][1]  # the settings before and after
    assert awsglue[1][1] == "balance" and awsglue[1][2]["JOB_RUN_ID"] == "jr_1"
    names = [name for name in lake.files() if name.endswith(".parquet")]
    assert names and all(name.endswith(".gz.parquet") for name in names)  # as only that session writes them
    assert lake.report()["rules"]["three_stars"] == "dropped" and lake.report()["rules"]["balance"] == 0


def test_a_failed_run_is_not_committed(spark, lake, awsglue):
    lake.put("Books.jsonl", good_lines(20))
    with pytest.raises(QualityError, match="rows kept: 20"):
        script().main(glue_arguments(lake))
    assert [call[0] for call in awsglue] == ["session", "init"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--balance", "much"], "--balance must be float, not 'much'"),
        (["--balance", "--three_stars"], "argument --balance: expected one argument"),
        (["--three_stars", "positive"], "three_stars must be negative or dropped"),
    ],
)
def test_wrong_arguments_are_reported_before_spark_starts(lake, awsglue, more, said):
    with pytest.raises(Exception, match=said):
        script().main(glue_arguments(lake, *more))
    assert awsglue == []


def test_no_argument_name_is_a_prefix_of_another():
    "Glue completes abbreviated names, so no name may be the start of another one."
    module = script()
    names = (*module.PLACES, *module.CHOICES, *glue_options.RESERVED_OPTIONS, *glue_options.FOLDERS, "JOB_NAME")
    given = [word[2:] for word in glue_arguments(Lake(Path("/tmp"), Path("/tmp"))) if word.startswith("--")]
    mixed_up = [(a, b) for a, b in permutations({*names, *given}, 2) if b.startswith(a)]
    assert mixed_up == []


def test_the_script_imports_only_packages_available_in_glue(tmp_path):
    "The package comes from the zip; the only other imports are Python, Spark and boto3."
    (tmp_path / "sentiment_engine.zip").write_bytes(job_zip(SCRIPT))
    code = """
import sys

sys.path.insert(0, sys.argv[1])
has = {*sys.stdlib_module_names, "sentiment_engine", "pyspark", "py4j", "numpy", "pandas", "pyarrow"}
has |= {"boto3", "botocore", "s3transfer", "jmespath", "dateutil", "six", "urllib3", "clean_reviews", "__mp_main__"}


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in has and not name.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Missing())
sys.path.insert(0, sys.argv[2])
import clean_reviews
import sentiment_engine.data.etl

assert sentiment_engine.data.etl.__file__.startswith(sys.argv[1]), sentiment_engine.data.etl.__file__
assert "awsglue" not in sys.modules
"""
    words = [sys.executable, "-c", code, str(tmp_path / "sentiment_engine.zip"), str(SCRIPT.parent)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


# ---- following a run

ROLE_ERROR = "Role arn:aws:iam::1:role/r should be given assume role permissions for Glue Service."
STATES = boto3.client("glue", region_name="us-east-1").meta.service_model.shape_for("JobRunState").enum


@pytest.fixture
def glue():
    "A Glue client with scripted answers, checked by botocore's own description of Glue."
    client = boto3.client("glue", region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s")
    with Stubber(client) as stub:
        yield SimpleNamespace(client=client, stub=stub)
        stub.assert_no_pending_responses()


def answers(glue, *states: str, **more):
    "Let Glue start a run that goes through `states`; the last answer also contains `more`."
    glue.stub.add_response("start_job_run", {"JobRunId": "jr_1"})
    for place, state in enumerate(states, 1):
        run = {"Id": "jr_1", "JobRunState": state} | (more if place == len(states) else {})
        glue.stub.add_response("get_job_run", {"JobRun": run})


def follow(glue, **options) -> tuple[dict, list[str]]:
    said = []
    return run_glue_job(glue.client, "clean", {"--raw": "s3://lake/raw/"}, said.append, 0.001, **options), said


@pytest.mark.parametrize("state", STATES)
def test_every_run_state_is_followed(glue, state):
    if state in ("STARTING", "RUNNING", "STOPPING", "WAITING"):
        answers(glue, state, "SUCCEEDED")
        assert follow(glue)[1] == [state, "SUCCEEDED"]
    elif state == "SUCCEEDED":
        answers(glue, state)
        assert follow(glue)[0]["JobRunState"] == "SUCCEEDED"
    else:
        answers(glue, "RUNNING", state, ErrorMessage="QualityError: 3 rows", LogGroupName="/aws-glue/jobs/")
        logs = r"\(log: /aws-glue/jobs/output and /aws-glue/jobs/error, stream jr_1\)"
        with pytest.raises(RuntimeError, match=f"clean: {state}. QualityError: 3 rows {logs}"):
            follow(glue)


def test_the_reason_why_a_run_waits_is_reported(glue):
    answers(glue, "WAITING", "SUCCEEDED")
    glue.stub._queue[1]["response"][1]["JobRun"]["StateDetail"] = "no workers are free"
    assert follow(glue)[1][0] == "WAITING (no workers are free)"


@pytest.mark.parametrize(
    "message", [ROLE_ERROR, "Service is unable to assume provided role. Please verify role's TrustPolicy"]
)
@pytest.mark.parametrize("when", ["at the start", "in the run"])
def test_a_start_waits_for_a_new_role(glue, message, when):
    def refuse():
        if when == "at the start":
            glue.stub.add_client_error("start_job_run", "InvalidInputException", message)
        else:
            answers(glue, "FAILED", ErrorMessage=f"JobName:clean failed to execute with exception {message}")

    refuse()
    answers(glue, "RUNNING", "SUCCEEDED")
    found, said = follow(glue)
    assert found["JobRunState"] == "SUCCEEDED" and "Glue cannot assume the role yet, trying again" in said
    refuse()
    with pytest.raises(RuntimeError, match="assume"):
        follow(glue, patience=-1)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("ConcurrentRunsExceededException", "the Glue job clean is already running"),
        ("EntityNotFoundException", "there is no Glue job clean: run 00_settings first"),
        ("ResourceNumberLimitExceededException", r"its limit of Glue runs or workers \(told so\)"),
        ("InvalidInputException", "InvalidInputException.*told so"),
        ("AccessDeniedException", "AccessDeniedException.*told so"),
    ],
)
def test_a_refused_start_reports_its_reason_at_once(glue, code, said):
    glue.stub.add_client_error("start_job_run", code, "told so")
    with pytest.raises(Exception, match=said):
        follow(glue)


@pytest.mark.parametrize("code", ["ThrottlingException", "InternalServiceException", "OperationTimeoutException"])
def test_an_unanswered_poll_does_not_end_the_wait(glue, code):
    answers(glue, "RUNNING")
    glue.stub.add_client_error("get_job_run", code)
    glue.stub.add_response("get_job_run", {"JobRun": {"Id": "jr_1", "JobRunState": "SUCCEEDED"}})
    assert follow(glue)[1] == ["RUNNING", "SUCCEEDED"]
    answers(glue)
    glue.stub.add_client_error("get_job_run", code)
    with pytest.raises(RuntimeError, match="the run jr_1 of clean may continue and cost money"):
        follow(glue, patience=-1)


def test_a_refused_poll_warns_that_the_run_may_continue(glue):
    answers(glue)
    glue.stub.add_client_error("get_job_run", "ExpiredTokenException", "log in again")
    with pytest.raises(RuntimeError, match=r"log in again.*the run jr_1 of clean may continue and cost money"):
        follow(glue)


@pytest.mark.parametrize(
    "fault", [EndpointConnectionError, ConnectTimeoutError, ReadTimeoutError, ConnectionClosedError]
)
def test_a_network_failure_does_not_end_the_wait(fault):
    looks = iter([fault(endpoint_url="https://glue"), {"Id": "jr_1", "JobRunState": "SUCCEEDED"}])

    def look(**_):
        if isinstance(found := next(looks), Exception):
            raise found
        return {"JobRun": found}

    glue = SimpleNamespace(start_job_run=lambda **_: {"JobRunId": "jr_1"}, get_job_run=look)
    assert run_glue_job(glue, "clean", {}, lambda _: None, 0.001)["JobRunState"] == "SUCCEEDED"


def test_interrupting_the_wait_stops_the_run(glue, monkeypatch):
    answers(glue, "RUNNING")
    glue.stub.add_response("batch_stop_job_run", {}, {"JobName": "clean", "JobRunIds": ["jr_1"]})

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        follow(glue)


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        ("Good.<br /><br/>Buy<BR>it", "Good. Buy it"),
        ('I <3 it, a < b and c > d <a href="x">here</a>', "I <3 it, a < b and c > d here"),
        ("tab\tline\r\nnbsp\u00a0\u2003nul\u0000end ", "tab line nbsp nul end"),
        ("zero\u200bwidth \ufeffand 👩\u200d🔬 ❤️", "zerowidth and 👩\u200d🔬 ❤️"),
        ("[[VIDEOID:abc]]See [[ASIN:B00X My Lamp]].", "See My Lamp."),
        ("&lt;br /&gt;twice&amp;nbsp;escaped", "twice escaped"),
        ("a cafe&#769; in Zu\u0308rich ❤\ufe0f", "a café in Zürich ❤\ufe0f"),
    ],
)
def test_titles_and_texts_are_cleaned(spark, raw, read):
    frame = spark.createDataFrame([(line(raw, title=raw), "B")], "line string, category string")
    row = transform(frame).first()
    assert (row.title, row.text) == (read, read)


@pytest.fixture(scope="module")
def foundation(cloud) -> dict[str, str]:
    "The foundation for this file's tests, with the job's code."
    outputs = deploy_stack(
        cloud.client("cloudformation"),
        "etl-test-foundation",
        ROOT / "infra_scripts/templates/foundation.yaml",
        {"Prefix": "etl-test"},
    )
    upload_job(cloud.client("s3"), outputs["ArtifactsBucket"], SCRIPT)
    return outputs


def test_glue_runs_the_script_and_a_failure_leaves_the_lake_unchanged(cloud, foundation, tmp_path):
    s3, bucket = cloud.client("s3"), foundation["LakeBucket"]
    places = {f"--{place}": f"s3://{bucket}/{place}/" for place in ("raw", "processed", "rejected")}
    arguments = places | {"--report": f"s3://{bucket}/reports/etl.json"}

    def job():
        return run_glue_job(cloud.client("glue"), foundation["GlueJob"], arguments, say=lambda _: None)

    def written() -> dict[str, str]:
        found = s3.list_objects_v2(Bucket=bucket)["Contents"]
        return {item["Key"]: item["ETag"] for item in found if not item["Key"].startswith("raw/")}

    (tmp_path / "Books.jsonl").write_text("\n".join([*good_lines(), "oops"]))
    (tmp_path / "Old.jsonl").write_text("\n".join(good_lines()))
    upload_reviews(s3, bucket, find_files(tmp_path))
    (tmp_path / "Old.jsonl").unlink()
    upload_reviews(s3, bucket, find_files(tmp_path))
    assert job()["JobRunState"] == "SUCCEEDED"
    report = json.load(s3.get_object(Bucket=bucket, Key="reports/etl.json")["Body"])
    assert (report["kept"], report["rejected"]) == (300, {"malformed": 1})  # Old.jsonl is gone from the lake
    folders, run = {key.rsplit("/", 1)[0] for key in written()}, report["run"]
    sides = {f"processed/{run}/split={side}" for side in ("train", "validation", "test")}
    assert folders == {*sides, f"rejected/{run}", "reports"}
    before = written()
    (tmp_path / "Books.jsonl").write_text("\n".join(line(f"fine {i}") for i in range(200)))
    upload_reviews(s3, bucket, find_files(tmp_path))
    with pytest.raises(RuntimeError, match=r"FAILED.*did not pass the gate.*NEGATIVE in train"):
        job()
    assert written() == before
