"""The Glue job on real Spark: what it counts, what it keeps, and what is left when it fails."""

import gzip
import html
import json
import random
import shutil
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pyarrow.fs import LocalFileSystem

from sentiment_engine import etl
from sentiment_engine.cleaning import clean, nfc, unescape
from sentiment_engine.etl import (
    COLUMNS,
    QualityError,
    Rules,
    clean_reviews,
    run_glue_job,
    settle,
    start_spark,
    swap,
    transform,
    upload_job,
)
from sentiment_engine.exploration import open_reviews
from sentiment_engine.ingest import upload_reviews
from sentiment_engine.quality import Expectations
from sentiment_engine.reviews import find_files
from sentiment_engine.stacks import deploy_stack

ROOT = Path(__file__).parents[1]
FAULTS = {  # each reason and the lines that must get it
    "malformed": ["not json", '{"rating": 5, "text": "cut', "[1, 2]", "null", "12"],
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


@pytest.fixture(scope="module")
def spark():
    "One Spark for all tests of this file."
    session = start_spark("tests")
    session.conf.set("spark.sql.shuffle.partitions", "3")  # small data, less to wait for
    yield session
    session.stop()


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

    def rows(self) -> list[dict]:
        "Read the clean reviews, by id."
        table = ds.dataset(self.root / "processed", format="parquet", partitioning="hive").to_table()
        return sorted(table.to_pylist(), key=lambda row: row["review_id"])

    def rejected(self) -> list[dict]:
        "Read what was put aside."
        return [json.loads(text) for path in (self.root / "rejected").rglob("*.json") for text in path.open()]

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


def test_faults_are_counted_by_reason_and_put_aside(cleaned):
    lake, report = cleaned
    expected = {reason: len(lines) for reason, lines in FAULTS.items()} | {"conflicting": 2}
    assert report["rejected"] == expected
    aside = {reason: {row["line"] for row in lake.rejected() if row["reason"] == reason} for reason in FAULTS}
    assert aside == {reason: set(lines) for reason, lines in FAULTS.items()}
    assert {row["category"] for row in lake.rejected()} == {"All Beauty+"}


def test_every_line_is_accounted_for(cleaned):
    lake, report = cleaned
    assert report["read"] == 300 + 3 + 2 + sum(map(len, FAULTS.values()))  # blank lines and other files are no rows
    assert report["read"] == report["kept"] + report["repeats"] + sum(report["rejected"].values())
    assert report["kept"] == len(lake.rows()) == sum(report["by_stars"].values()) == sum(report["by_label"].values())
    assert json.loads((lake.root / "reports/etl.json").read_text()) == report


def test_of_equal_texts_the_oldest_stays(cleaned):
    lake, report = cleaned
    assert report["repeats"] == 2
    eight = [row for row in lake.rows() if row["text"].lower() == "review number 8"]
    assert [(row["stars"], row["timestamp"]) for row in eight] == [(4, 1)] and eight[0]["text"] == "Review NUMBER 8"
    assert not [row for row in lake.rows() if row["text"] == "could be either"]


def test_a_line_that_is_no_review_takes_none_with_it(spark):
    lines = ["terrible", line("Terrible", rating=1), "fine!", line("Fine!", rating=5, timestamp=None)]
    frame = spark.createDataFrame([(text, "B") for text in lines], "line string, category string")
    reasons = {row.line or row.text: row.reason for row in transform(frame).collect()}
    assert reasons == {"terrible": "malformed", "fine!": "malformed", "Terrible": None, "Fine!": None}


def test_columns_labels_and_split(cleaned):
    rows = cleaned[0].rows()
    assert set(rows[0]) == set(COLUMNS)
    assert all(row["label"] == (row["stars"] >= 4) for row in rows)
    assert len({row["text"].lower() for row in rows}) == len({row["review_id"] for row in rows}) == len(rows)
    sides = [sum(row["split"] == side for row in rows) / len(rows) for side in ("train", "validation", "test")]
    assert abs(sides[0] - 0.8) < 0.08 and min(sides) > 0.03


def test_nothing_but_data_is_left(cleaned):
    names = list(cleaned[0].files())
    assert all(name.endswith((".parquet", ".json")) and "/_" not in name for name in names)
    assert len([name for name in names if name.endswith(".parquet")]) == 3  # small data, one file for each side


def test_order_of_lines_and_files_changes_nothing(spark, cleaned):
    lines = good_lines() + [line(f"review number {i}", rating=5, timestamp=5) for i in range(0, 300, 2)]
    shuffled = random.Random(1).sample(lines, len(lines))
    schema = "line string, category string"
    kept = [
        {tuple(row) for row in transform(spark.createDataFrame([(t, "B") for t in order], schema)).collect()}
        for order in (lines, shuffled)
    ]
    assert kept[0] == kept[1] and len(kept[0]) == 450


def test_a_rerun_gives_the_same_once(spark, cleaned):
    lake, first = cleaned
    before, contents = lake.rows(), sorted(lake.files().values())
    again = clean_reviews(spark, *lake.places)
    assert lake.rows() == before and len(lake.files()) == len(contents)
    assert again["drift"] == 0 and first["drift"] is None
    apart = {"seconds", "finished", "drift", "checks"}
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


def test_missing_and_damaged_input_is_named(spark, cleaned, tmp_path):
    lake, _ = cleaned
    before = lake.files()
    with pytest.raises(ValueError, match=r"there are no raw reviews in .*nowhere"):
        clean_reviews(spark, str(tmp_path / "nowhere"), *lake.places[1:])
    (tmp_path / "Books.jsonl.gz").write_bytes(gzip.compress("\n".join(good_lines(5000)).encode())[:-3000])
    with pytest.raises(RuntimeError, match=r"Spark failed on .*: a \.gz file there is cut off"):
        clean_reviews(spark, str(tmp_path), *lake.places[1:])
    assert lake.files() == before


def test_another_mix_of_stars_is_stopped_unless_it_is_allowed(spark, lake):
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


def test_rules_leave_out_what_they_say(spark, lake):
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
few = settings(
    max_examples=8, phases=[Phase.generate], deadline=None, derandomize=True, database=None, print_blob=False
)


@given(lines=some_lines, random=st.randoms(use_true_random=False), rules=st.sampled_from([Rules(), Rules("dropped")]))
@few
def test_no_text_is_on_two_sides_whatever_the_order(spark, lines, random, rules):
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


class Failing:
    "A file system that fails at one of its calls, before or after it has done what was asked."

    def __init__(self, files, count, at, after):
        self.files, self.count, self.at, self.after = files, count, at, after

    def __getattr__(self, name):
        def call(*arguments):
            self.count.append(name)
            if len(self.count) == self.at and not self.after:
                raise OSError(f"injected before {name}")
            done = getattr(self.files, name)(*arguments)
            if len(self.count) == self.at:
                raise OSError(f"injected after {name}")
            return done

        return call


@pytest.fixture(scope="module")
def two_runs(spark, tmp_path_factory) -> list[tuple[Lake, list[dict]]]:
    "Two lakes, cleaned, and what their rows are."
    lakes = []
    for name, odd in (("old", 2), ("new", 5)):
        lake = Lake(tmp_path_factory.mktemp(name))
        lake.put("Books.jsonl", ["oops"] * odd + good_lines(300 + odd))
        clean_reviews(spark, *lake.places)
        lakes.append((lake, lake.rows()))
    return lakes


@given(at=st.integers(1, 60), after=st.booleans())
@few
def test_a_run_that_fails_anywhere_mixes_nothing(spark, two_runs, tmp_path_factory, at, after):
    (old, old_rows), (new, new_rows) = two_runs
    root = tmp_path_factory.mktemp("failing")
    shutil.copytree(old.root, root, dirs_exist_ok=True, ignore=shutil.ignore_patterns("raw"))
    lake = Lake(root, new.raw)
    count, path = [], etl._path
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(etl, "_path", lambda *which: (Failing(path(*which)[0], count, at, after), path(*which)[1]))
        try:
            clean_reviews(spark, *lake.places)
        except OSError as error:
            assert "injected" in str(error)
        else:
            assert len(count) < at  # there are fewer calls
    if (root / "processed/_swap").exists():
        with pytest.raises(RuntimeError, match="being replaced"):
            open_reviews(LocalFileSystem(), str(root / "processed"))
    else:
        assert lake.rows() in (old_rows, new_rows)
    clean_reviews(spark, *lake.places)
    assert lake.rows() == new_rows and len(lake.files()) == len(new.files())
    assert len(lake.rejected()) == 5


@pytest.mark.parametrize("after", range(3))
def test_an_interrupted_swap_is_finished_by_the_next_run(spark, tmp_path, monkeypatch, after):
    for name in ("x/1.old", "2.old", "_new/x/1.new", "_new/2.new"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(name)
    moves, move = [], etl._move

    def failing(*paths):
        if len(moves) == after:
            raise OSError("the disk is gone")
        moves.append(move(*paths))

    monkeypatch.setattr(etl, "_move", failing)
    if after < 2:
        with pytest.raises(OSError, match="gone"):
            swap(spark, str(tmp_path))
        assert {"x/1.old", "2.old"} <= {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.old")}
    else:
        swap(spark, str(tmp_path))
    monkeypatch.undo()
    settle(spark, str(tmp_path))
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == ["2.new", "x/1.new"]


def test_a_run_stopped_before_the_swap_changes_nothing(spark, tmp_path):
    for name in ("1.old", "_new/1.new"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    settle(spark, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["1.old"]


def test_entities_are_read_as_browsers_do(spark):
    pieces = [
        "&amp;",
        "&#39;",
        "&#x1F600;",
        "&eacute;",
        "&",
        ";",
        "#",
        "&nope;",
        "a b",
        "&lt;",
        "&#150;",
        "&#0;",
        "&&quot;",
    ]
    rng = random.Random(7)
    texts = ["".join(rng.choices(pieces, k=rng.randint(0, 8))) for _ in range(300)]
    frame = spark.createDataFrame([(text,) for text in texts], "text string")
    read = [row[0] for row in frame.select(unescape(frame.text)).collect()]
    # Python also reads entities that lack their semicolon, as old browsers did; such pieces are made above.
    wanted = [html.unescape(text) for text in texts]
    different = [(t, r, w) for t, r, w in zip(texts, read, wanted, strict=True) if r != w]
    assert not different, different[:3]


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        ("Good.<br /><br/>Buy<BR>it", "Good. Buy it"),
        ('I <3 it, a < b and c > d <a href="x">here</a>', "I <3 it, a < b and c > d here"),
        ("tab\tline\r\nnbsp\u00a0\u2003nul\u0000end ", "tab line nbsp nul end"),
        ("zero\u200bwidth \ufeffand 👩\u200d🔬 ❤️", "zerowidth and 👩\u200d🔬 ❤️"),
        ("[[VIDEOID:abc]]See [[ASIN:B00X My Lamp]].", "See My Lamp."),
        ("&lt;br /&gt;twice&amp;nbsp;", "twice&nbsp;"),
        ("a cafe&#769; in Zu\u0308rich ❤\ufe0f", "a café in Zürich ❤\ufe0f"),
    ],
)
def test_text_is_cleaned(spark, raw, read):
    frame = spark.createDataFrame([(raw,)], "text string")
    assert frame.select(nfc(clean(frame.text))).first()[0] == read


@pytest.fixture(scope="module")
def foundation(cloud) -> dict[str, str]:
    "The foundation of this file's tests, with the job's code in place."
    outputs = deploy_stack(
        cloud.client("cloudformation"),
        "etl-test-foundation",
        ROOT / "infra_scripts/foundation.yaml",
        {"Prefix": "etl-test"},
    )
    upload_job(
        cloud.client("s3"),
        outputs["ArtifactsBucket"],
        ROOT / "infra_scripts/clean_reviews.py",
        ROOT / "sentiment_engine",
    )
    return outputs


def test_glue_runs_the_script_and_a_failure_leaves_the_lake_alone(cloud, foundation, tmp_path):
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
    folders = {key.rsplit("/", 1)[0] for key in written()}
    assert folders == {
        "processed/split=train",
        "processed/split=validation",
        "processed/split=test",
        "rejected",
        "reports",
    }
    before = written()
    (tmp_path / "Books.jsonl").write_text("\n".join(line(f"fine {i}") for i in range(200)))
    upload_reviews(s3, bucket, find_files(tmp_path))
    with pytest.raises(RuntimeError, match=r"FAILED.*did not pass the gate.*NEGATIVE in train"):
        job()
    assert written() == before
