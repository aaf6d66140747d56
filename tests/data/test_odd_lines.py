"""Odd lines, files and names: every reader keeps the same reviews and rejects all others for the same reasons."""

import gzip
import io
import json
import warnings
from collections import Counter
from pathlib import Path

import boto3
import numpy as np
import pandas as pd
import pytest
from botocore.response import StreamingBody
from botocore.stub import Stubber
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pyarrow.fs import LocalFileSystem

from sentiment_engine.data import etl
from sentiment_engine.data.etl import REASONS, clean_reviews, transform
from sentiment_engine.data.exploration import count_reviews, newest_reviews, open_newest
from sentiment_engine.data.quality import Expectations, QualityError
from sentiment_engine.data.reviews import DataError, check_reviews, find_files, parse_review, read_reviews
from sentiment_engine.model.released import read_texts
from sentiment_engine.model.training_job import UnusableData, load_reviews, places_from, read_channel

MS = 1_588_687_728_923
ANY = Expectations(rows=0, rejected=1, repeats=1, untimed=1, label=0, median=(0, 10**6), longest=10**6, drift=10**6)


def line(**fields) -> bytes:
    "Write a review; fields that are `...` are left out."
    review = {"rating": 5.0, "title": "T", "text": "Fine", "timestamp": MS, "verified_purchase": True} | fields
    return json.dumps({name: value for name, value in review.items() if value is not ...}).encode()


def written(**texts: str) -> bytes:
    "Write a review with some values as they are given."
    values = {"rating": "5.0", "text": '"Fine"'} | texts
    return ("{" + ", ".join(f'"{name}": {value}' for name, value in values.items()) + "}").encode()


ODD = {
    "malformed": [
        *(b"not json", b"{", b"}", b"{}{}", b"null", b"true", b"12", b'"text"', b"[]", b"[1, 2]", b'{"rating": 5'),
        *(line() + line(), line() + b" " + line(), line() + b"x", line() + b",", line() + b"\0", line()[:-9]),
        *(b"[" + line() + b"]", line().replace(b'"', b"'"), b'{"rating": 5, "text": "raw\ttab"}'),
        *(written(rating="NaN"), written(rating="Infinity"), written(n="-Infinity"), written(rating="05")),
        *(written(rating="0x5"), written(rating="5d"), written(rating="5."), written(rating="+5"), written(n="")),
        *(b'{"rating": 5, "rating": 1, "text": "Fine"}', b'{"rating": 5, "text": "a", "text": "a"}'),
        *(b'{"rating": 5, "text": "a", "more": {"a": 1, "a": 2}}', b'{"rating": 5, "text": "a",}', b"// a comment"),
        *(written(n="[" * n + "]" * n) for n in (150, 1_200, 100_000)),
        *(written(n='{"a":' * 5_000 + "1" + "}" * 5_000), b"[" * 5_000, b"\0" * 40, b"\xff\xfe\x00", b"a\x85b"),
    ],
    "no_text": [b"{}", b'{"rating": 5}', b'{"rating": 9}', line(text=None), line(text=..., title="Only a title")],
    "bad_text": [*(line(text=odd) for odd in (5, 4.5, True, [], ["a"], {}, {"a": "b"})), line(title=5), line(title=[])],
    "too_long": [
        line(more="m" * 2_000_000),
        b"[]" * 600_000,
        line(text="long " * 20_000),
        line(title="t" * 60_000),
        line(text="x" * 10_000_000),
    ],
    "blank_text": [*(line(text=odd) for odd in ("", "  ", "\t\n", "\u3000", "<br />", "&nbsp;\u200b", "\ufeff", "\0"))],
    "bad_rating": [
        *(line(rating=odd) for odd in (0, 6, -1, 4.5, 10**400, True, False, None, [5], {"stars": 5}, ..., 1e-320)),
        *(line(rating=odd) for odd in ("", "good", "5d", "5f", "0x5", "0x1p2", "5_0", "NaN", "Infinity", "٥", "true")),
        *(written(rating="1e400"), written(rating="-1e400"), written(rating="9" * 5_000), line(rating="9" * 5_000)),
    ],
    "blank": [b"", b" ", b"\t", b" \t ", b"\r", b"\xef\xbb\xbf", b"\x0b\x0c"],
}
FINE = [  # a line, and the review that it contains
    (line(text="plain 0"), ("plain 0", 5, MS, True)),
    *(
        (line(text=f"rating {odd!r}", rating=odd), (f"rating {odd!r}", 4, MS, True))
        for odd in (4, "4", "4.0", " 4 ", "4e0")
    ),
    *(
        (line(text=f"time {odd}", timestamp=odd), (f"time {odd}", 5, MS, True))
        for odd in (str(MS), MS / 1000, MS * 1000)
    ),
    (line(text="in seconds", timestamp=1_588_687_728), ("in seconds", 5, 1_588_687_728_000, True)),
    (line(text="in nanoseconds", timestamp=MS * 10**6), ("in nanoseconds", 5, MS, True)),
    (line(text="early seconds", timestamp=10**8), ("early seconds", 5, 10**11, True)),
    (line(text="late milliseconds", timestamp=10**11), ("late milliseconds", 5, 10**11, True)),
    *(
        (line(text=f"untimed {odd!r}", timestamp=odd), (f"untimed {odd!r}", 5, None, True))
        for odd in (-1, 10**30, None, "May 2020", True, [MS])
    ),
    (line(text="timed never", timestamp=...), ("timed never", 5, None, True)),
    (written(text='"time 1e400"', timestamp="1e400"), ("time 1e400", 5, None, False)),
    *(
        (line(text=f"bought {odd!r}", verified_purchase=odd), (f"bought {odd!r}", 5, MS, told))
        for odd, told in {
            "true": True,
            "False": False,
            1: True,
            0: False,
            "no": False,
            "maybe": False,
            None: False,
        }.items()
    ),
    (line(text="no title", title=None), ("no title", 5, MS, True)),
    (line(text="no title at all", title=...), ("no title at all", 5, MS, True)),
    (line(text="nul\0inside"), ("nul inside", 5, MS, True)),
    (line(text="half an emoji \ud83d!"), ("half an emoji \ufffd!", 5, MS, True)),
    (line(text="other half \udc4d\ud83d"), ("other half \ufffd\ufffd", 5, MS, True)),
    (line(text="whole \U0001f44d"), ("whole \U0001f44d", 5, MS, True)),
    (b'{"rating": 2, "text": "not \xe9 UTF-8"}', ("not \ufffd UTF-8", 2, None, False)),
    (b'{"rating": 2, "text": "cut \xf0\x9f\x91"}', ("cut \ufffd", 2, None, False)),
    ('{"rating": 2, "text": "a\u2028line\u0085end"}'.encode(), ("a line end", 2, None, False)),
    (b'{"rating": 2,\r"text": "a lone CR"}', ("a lone CR", 2, None, False)),
    (b'\xef\xbb\xbf{"rating": 2, "text": "a mark"}', ("a mark", 2, None, False)),
    (b'  {"rating": 2, "text": "ends as on Windows"}\t\r', ("ends as on Windows", 2, None, False)),
    (written(rating="2", text='"big number"', helpful_vote="9" * 5_000), ("big number", 2, None, False)),
    (written(rating="2", text='"bigger number"', helpful_vote="1e400"), ("bigger number", 2, None, False)),
    (written(rating="2", text='"nested"', images="[" * 50 + "]" * 50), ("nested", 2, None, False)),
    (written(rating="2", text='"many"', images="[" + "{}, " * 5_000 + "{}]"), ("many", 2, None, False)),
    (written(rating="2", text='"' + "[" * 300 + '"'), ("[" * 300, 2, None, False)),
]
LINES = [odd for lines in ODD.values() for odd in lines] + [good for good, _ in FINE]
WANTED = Counter({reason: len(lines) for reason, lines in ODD.items()})


def put(root: Path, files: dict[str, bytes]) -> str:
    "Write files, and return their folder."
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


def run(spark, raw: str, out: Path, expected: Expectations = ANY) -> dict:
    "Clean a folder, with a gate that any data passes."
    return clean_reviews(
        spark, raw, *(str(out / name) for name in ("processed", "rejected", "etl.json")), expected=expected
    )


def enough(start: int = 0) -> bytes:
    "Write so many good reviews that each side has both labels."
    return b"".join(line(text=f"enough {start + i}", rating=1 + 4 * (i % 2)) + b"\n" for i in range(120))


@pytest.mark.parametrize("reason", [reason for reason in ODD if reason != "blank"])
def test_an_odd_line_is_not_parsed_as_a_review(reason):
    assert all(parse_review(odd.decode("utf-8", "replace")) is None for odd in ODD[reason])


def test_a_line_is_accepted_up_to_each_limit():
    deep = [written(n="[" * depth + "]" * depth, m="[]") for depth in (99, 100)]  # in the line's own object
    long = line(more="").decode()
    long = [long.replace('"more": ""', f'"more": "{"m" * (size - len(long))}"') for size in (10**6, 10**6 + 1)]
    pairs = [
        (line(text="x" * 50_000).decode(), line(text="x" * 50_001).decode()),
        (line(title="x" * 50_000).decode(), line(title="x" * 50_001).decode()),
        tuple(each.decode() for each in deep),
        tuple(long),
    ]
    assert [(parse_review(most) is None, parse_review(more) is None) for most, more in pairs] == [(False, True)] * 4


@pytest.mark.parametrize("name", ["Odd.jsonl", "Odd.jsonl.gz"])
def test_python_counts_each_odd_line_by_its_reason(tmp_path, name):
    data = line(text="first") + b"\n" + b"\n".join(LINES)
    put(tmp_path, {name: gzip.compress(data) if name.endswith("gz") else data})
    counts = Counter()
    read = [(r["rating"], r["timestamp"], r["verified_purchase"]) for r in read_reviews(tmp_path, counts=counts)]
    assert counts == WANTED + Counter(reviews=len(FINE) + 1)
    assert read[1:] == [said[1:] for _, said in FINE]


def test_s3_and_folders_are_read_alike():
    data = line(text="first") + b"\n" + b"\n".join(LINES)
    s3 = boto3.client("s3", region_name="us-east-1", aws_access_key_id="none", aws_secret_access_key="none")
    with Stubber(s3) as stub:
        stub.add_response("list_objects_v2", {"Contents": [{"Key": "raw/Odd.jsonl"}, {"Key": "raw/._Odd.jsonl"}]})
        stub.add_response("get_object", {"Body": StreamingBody(io.BytesIO(data), len(data))})
        counts = Counter()
        with pytest.warns(UserWarning, match=r"not read: \._Odd\.jsonl"):
            list(read_reviews("s3://lake/raw/", s3, counts))
    assert counts == WANTED + Counter(reviews=len(FINE) + 1)


def test_the_release_counts_the_same_lines(tmp_path):
    plain = [line(text="Starred blame", rating=1, title="", label=1)]
    plain += [b'{"label": 1, "text": "Plain praise"}', b'{"label": "0", "text": "Plain blame", "category": "Books"}']
    wrong = [b'{"label": 2, "text": "a"}', b'{"label": true, "text": "a"}', b'{"label": [1], "text": "a"}']
    data = line(text="first") + b"\n" + b"\n".join([*LINES, *plain, *wrong, b'{"label": 1, "text": 5}'])
    put(tmp_path, {"Odd.jsonl": data})
    counts = Counter()
    texts = read_texts(str(tmp_path / "Odd.jsonl"), counts)
    assert +counts == WANTED + Counter(texts=len(FINE) + 4, bad_label=3, bad_text=1)
    assert [text.removeprefix("T. ") for text in texts["text"][1 : len(FINE) + 1]] == [said[0] for _, said in FINE]
    assert texts["label"][-3:].tolist() == [0, 1, 0]  # stars count before a label


def test_spark_counts_each_odd_line_by_its_reason(spark, tmp_path):
    raw = put(
        tmp_path / "raw", {"Odd.jsonl": enough() + b"\n".join(LINES), "More.jsonl.gz": gzip.compress(enough(200))}
    )
    report = run(spark, raw, tmp_path)
    assert report["rejected"] == {reason: rows for reason, rows in WANTED.items() if reason != "blank"}
    assert (report["kept"], report["repeats"]) == (240 + len(FINE), 0)
    assert report["read"] == report["kept"] + report["repeats"] + sum(report["rejected"].values())
    assert set(report["rejected"]) <= set(REASONS)
    rows = pd.read_parquet(tmp_path / "processed" / report["run"]).astype(object)
    rows = rows.where(rows.notna(), None)
    kept = {row.text: (row.stars, row.timestamp, row.verified) for row in rows.itertuples()}
    assert {text: told for text, told in kept.items() if not text.startswith("enough")} == {
        said[0]: said[1:] for _, said in FINE
    }
    aside = [json.loads(text) for path in (tmp_path / "rejected").rglob("*.json") for text in path.open()]
    put_aside = sorted(
        odd.decode("utf-8", "replace") for reason, lines in ODD.items() if reason != "blank" for odd in lines
    )
    assert sorted(row["line"] for row in aside) == put_aside


values = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.integers(-1, 7)),
        st.sampled_from(["5", "5.0", "5d", "0x5", " 4 ", "Fine", "Fine.", "<br>", "", 10**400, MS, -MS, MS // 1000]),
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
names = st.sampled_from(["rating", "title", "text", "timestamp", "verified_purchase", "label", "more"])
objects = st.fixed_dictionaries({"rating": st.integers(1, 5) | values, "text": values}) | st.dictionaries(names, values)
pieces = st.one_of(
    objects.map(lambda row: json.dumps(row).encode()), st.sampled_from(LINES[:90]), st.binary(max_size=9)
)
odd_lines = st.lists(st.lists(pieces, min_size=1, max_size=2).map(b"".join), max_size=60)


def sorted_out(folder: Path, lines: list[bytes]) -> tuple[Counter, list[tuple]]:
    "Read lines with Python: return the counts and the reviews."
    (folder / "Odd.jsonl").write_bytes(b"\n".join([line(text="first"), *lines]))
    counts = Counter()
    told = [(r["rating"], r["timestamp"], r["verified_purchase"]) for r in read_reviews(folder, counts=counts)]
    return counts, told


@given(lines=odd_lines)
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_every_line_is_counted_once(tmp_path_factory, lines):
    counts, _ = sorted_out(tmp_path_factory.mktemp("any"), lines)
    assert counts.total() == 1 + b"\n".join(lines).count(b"\n") + bool(lines and lines[-1])


@given(lines=odd_lines)
@settings(max_examples=6, phases=[Phase.generate], deadline=None, derandomize=True, database=None)
def test_spark_and_python_agree_on_any_line(spark, tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("any")
    counts, told = sorted_out(folder, lines)
    data = (folder / "Odd.jsonl").read_bytes().split(b"\n")
    lines = [odd for odd in data if odd.decode("utf-8", "replace").strip(" \t\r\n\v\f\ufeff")]
    rows = transform(spark.createDataFrame([(odd, "B") for odd in lines], "line binary, category string")).collect()
    found = Counter(row.reason or "reviews" for row in rows)
    found["reviews"] += found.pop("repeat", 0) + found.pop("conflicting", 0)
    assert found == +(counts - Counter(blank=counts["blank"]))
    fine = [row for row in rows if row.reason in (None, "repeat", "conflicting")]
    assert Counter((row.stars, row.timestamp, row.verified) for row in fine) == Counter(told)


ROWS = b"".join(line(text=f"row {i}", rating=1 + i % 5) + b"\n" for i in range(30))
OTHER_KINDS = {
    "rows.jsonl": [
        (b"[" + ROWS.strip().replace(b"\n", b", ") + b"]", "one JSON array"),
        (b"[\n" + ROWS.strip().replace(b"\n", b",\n") + b"\n]", "one JSON array"),
        (json.dumps([json.loads(row) for row in ROWS.splitlines()], indent=2).encode(), "one JSON array"),
        (b"\n".join(json.dumps(json.loads(row), indent=2).encode() for row in ROWS.splitlines()), "several lines"),
        (b"rating,title,text\n5,T,Fine\n1,T,Bad\n", "a table"),
        (b'\xef\xbb\xbf"text";"rating"\r\n"Fine";5\r\n', "a table"),
        (b"rating\ttext\n5\tFine\n", "a table"),
        (b"Rating, Review Title, Text\n5, T, Fine\n", "a table"),
        ("stars;größe;text\n5;9;Fine\n".encode(), "a table"),
        ("rating,text\n5,Fine\n".encode("utf-16"), "UTF-16"),
        *((ROWS.decode().encode(encoding), "UTF-16") for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32")),
        *(
            (gzip.compress(ROWS), "gzip"),
            (b"BZh91AY&SY" + b"\x11" * 99, "bzip2"),
            (b"\x28\xb5\x2f\xfd" + b"\1" * 99, "Zstandard"),
        ),
        *(
            (b"PK\x03\x04" + b"\1" * 99, "zip"),
            (b"PAR1" + b"\1" * 99, "Parquet"),
            (b"<!DOCTYPE html><title>404", "web page"),
        ),
    ],
    "rows.jsonl.gz": [
        *(
            (ROWS, "not a gzip file"),
            (gzip.compress(gzip.compress(ROWS)), "gzip"),
            (b"\x1f\x8bnothing", "not a gzip file"),
        ),
        (gzip.compress(b"[" + ROWS.strip().replace(b"\n", b",\n") + b"]"), "one JSON array"),
        (gzip.compress(ROWS.decode().encode("utf-16")), "UTF-16"),
    ],
}


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_every_reader_names_a_file_of_the_wrong_kind(spark, tmp_path, name):
    for number, (data, said) in enumerate(OTHER_KINDS[name]):
        folder = put(tmp_path / str(number), {"Good.jsonl": ROWS, name: data})
        for reader in (
            check_reviews,
            lambda folder: list(read_reviews(folder)),
            lambda folder: run(spark, folder, tmp_path),
        ):
            with pytest.raises(DataError, match=rf"{name} is .*{said}"):
                reader(folder)
    assert not (tmp_path / "etl.json").exists()


@pytest.mark.parametrize(
    "odd",
    [
        *(b"[1, 2]", b'[{"rating": 5}]', b"{", b'{"rating": 5, "te', b"[" * 9_000 + b"]" * 9_000, b"rating,text"),
        *(b"\0" * 40, b"\xff\xfe{", b"<p>", b'{"rating": 5,', b'"text"', b"BZ", b"P"),
    ],
)
def test_an_odd_first_line_counts_as_one_malformed_line(tmp_path, odd):
    counts = Counter()
    list(read_reviews(put(tmp_path, {"A.jsonl": odd + b"\n" + ROWS}), counts=counts))
    assert counts == {"malformed": 1, "reviews": 30}


def test_a_run_that_loses_a_line_fails(spark, tmp_path, monkeypatch):
    raw = put(tmp_path / "raw", {"A.jsonl": enough()})
    monkeypatch.setattr(etl, "transform", lambda lines, rules: transform(lines.limit(119), rules))
    with pytest.raises(QualityError, match="has 120 lines, but 119 were counted"):
        run(spark, raw, tmp_path)
    assert not (tmp_path / "etl.json").exists()


@pytest.mark.parametrize("cut", [lambda data: data[:-900], lambda data: data[:-4], lambda data: data + b"more"])
def test_a_damaged_archive_stops_every_reader(spark, tmp_path, cut):
    folder = put(tmp_path / "raw", {"A.jsonl.gz": cut(gzip.compress(ROWS * 50))})
    with pytest.raises(DataError, match=r"A\.jsonl\.gz is damaged \("):
        list(read_reviews(folder))
    with pytest.raises(RuntimeError, match=r"\.gz file is cut off or damaged"):
        run(spark, folder, tmp_path)


READ = {
    **{"a b.jsonl": "a b", "100%.jsonl": "100%", "a%20b.jsonl": "a%20b", "ü ñ.jsonl.gz": "ü ñ", "a+b.jsonl": "a+b"},
    **{"[1].jsonl": "[1]", "x{y}.jsonl": "x{y}", "_a=b.jsonl": "_a=b", "q?*.jsonl": "q?*", "a#b.jsonl": "a#b"},
    **{
        "deep/er/z.jsonl": "z",
        "deep/_x=1/y.jsonl": "y",
        "e.gz/f.jsonl": "f",
        "two.jsonl.gz": "two",
        "Empty.jsonl": None,
    },
    **{"Packed.jsonl.gz": None, "_metadata/w.jsonl": "w", "no-end.jsonl": "no-end", "crlf.jsonl": "crlf"},
}
NOT_READ = """
_h.jsonl ._h.jsonl .jsonl _metadata.jsonl .ipynb_checkpoints/z.jsonl _deep/z.jsonl __MACOSX/deep/._z.jsonl
deep/.git/z.jsonl.gz d._COPYING_/a.jsonl A.JSONL Pets.csv Pets.json Pets.jsonl.bz2 Pets.jsonl.zst Pets.parquet
""".split()


def test_every_reader_reads_the_same_files_and_names_the_others(spark, tmp_path):
    texts = {name: ROWS.replace(b"row", b"row %d of" % number) for number, name in enumerate(READ)}
    files = {name: gzip.compress(text) if name.endswith("gz") else text for name, text in texts.items()}
    files |= {"two.jsonl.gz": gzip.compress(b"") + gzip.compress(ROWS[:100]) + gzip.compress(ROWS[100:].rstrip())}
    files |= {"Empty.jsonl": b"", "Packed.jsonl.gz": gzip.compress(b""), "no-end.jsonl": texts["no-end.jsonl"].rstrip()}
    files |= {"crlf.jsonl": texts["crlf.jsonl"].replace(b"\n", b"\r\n")}
    files |= dict.fromkeys([*NOT_READ, "README.md"], b"no review\n")
    raw = put(tmp_path / "raw", files)
    with pytest.warns(UserWarning) as warned:
        found = find_files(raw)
        read = Counter(review["category"] for review in read_reviews(raw))
    assert {Path(name).relative_to(raw).as_posix() for name in found} == set(READ)
    assert read == {category: 30 for category in READ.values() if category}
    assert all(f"{name}" in str(warned[0].message) for name in NOT_READ) and "README" not in str(warned[0].message)
    report = run(spark, raw, tmp_path)
    assert sorted(report["not_read"]) == sorted(NOT_READ)
    assert report["read"] == read.total() == report["kept"] and report["by_category"] == dict(sorted(read.items()))


def test_the_error_for_a_folder_without_reviews_lists_its_content(spark, tmp_path):
    raw = put(tmp_path / "raw", {"._Books.jsonl": ROWS, "Books.csv": b"rating,text\n"})
    with pytest.raises(DataError, match=r"not read: \._Books\.jsonl, Books\.csv"):
        find_files(raw)
    with pytest.raises(DataError, match=r"no raw reviews in .*not read: \._Books\.jsonl, Books\.csv"):
        run(spark, raw, tmp_path)


# ---- Parquet files of other programs

GOOD = pd.DataFrame(
    {
        **{"review_id": [f"{i:032x}" for i in range(20)], "title": "", "text": [f"row {i}" for i in range(20)]},
        **{"stars": [1, 5] * 10, "label": [0, 1] * 10, "category": "Books", "timestamp": MS},
    }
)
ODD_PARQUET = {  # fault of one of two files, and the expected message
    "no text": (GOOD.drop(columns="text"), "no column text"),
    "no label": (GOOD.drop(columns="label"), "no column label"),
    "numbers for text": (GOOD.assign(text=range(20)), "text"),
    "lists for text": (GOOD.assign(text=[["a"]] * 20), "text"),
    "bytes for text": (GOOD.assign(text=b"a"), "text"),
    "words for labels": (GOOD.assign(label=["NEGATIVE", "POSITIVE"] * 10), "label"),
    "lists for labels": (GOOD.assign(label=[[1]] * 20), "label"),
    "halves for labels": (GOOD.assign(label=0.5), "label"),
    "no labels": (GOOD.assign(label=np.nan), "label"),
    "no Parquet": (None, "Parquet"),
}


@pytest.mark.parametrize("kind", ODD_PARQUET)
def test_errors_name_invalid_parquet_files(tmp_path, kind):
    frame, said = ODD_PARQUET[kind]
    for place in ("train", "lake/processed/20260101T000000-0123abcd/split=train"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        GOOD.to_parquet(folder / "a.parquet")
        frame.to_parquet(folder / "b.parquet") if frame is not None else (folder / "b.parquet").write_bytes(b"PAR1 no")
    put(tmp_path, {"lake/reports/etl.json": b'{"run": "20260101T000000-0123abcd"}'})
    with pytest.raises(UnusableData, match=rf"train/b\.parquet .*{said}|{said}.* train/b\.parquet"):
        read_channel(tmp_path / "train")
    with pytest.raises(DataError, match=rf"b\.parquet.*{said}"):
        count_reviews(open_newest(LocalFileSystem(), str(tmp_path / "lake")))


LABEL_TYPES = [
    "int8",
    "float32",
    "bool",
    "Int64",
    "UInt8",
    "Float64",
    "boolean",
    "category",
    "int64[pyarrow]",
    "bool[pyarrow]",
]


@pytest.mark.parametrize("kind", LABEL_TYPES)
def test_a_label_may_have_any_type_that_contains_0_and_1(tmp_path, kind):
    typed = GOOD.assign(label=GOOD.label.astype(kind), text=GOOD.text.astype("string"))
    typed.to_parquet(tmp_path / "a.parquet")
    assert read_channel(tmp_path).label.tolist() == GOOD.label.tolist()
    typed.assign(label=typed.label.where(typed.index > 0)).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UnusableData, match="labels must be 0 or 1"):
        read_channel(tmp_path)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_third_label_is_refused(tmp_path, label):
    odd = GOOD.assign(label=[0, 1, label, 1] * 5)
    odd.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UnusableData, match=rf"labels must be 0 or 1, but .*\[{label}, {label}"):
        read_channel(tmp_path)


@pytest.mark.parametrize("label", [-1, 2, None])
def test_a_third_label_in_the_lake_is_refused(tmp_path, label):
    folder = tmp_path / "lake/processed/20260101T000000-0123abcd/split=train"
    folder.mkdir(parents=True)
    GOOD.to_parquet(folder / "a.parquet")
    GOOD.assign(label=pd.array([0, 1, label, 1] * 5, "Int64")).to_parquet(folder / "b.parquet")
    put(tmp_path, {"lake/reports/etl.json": b'{"run": "20260101T000000-0123abcd"}'})
    with pytest.raises(DataError, match=r"labels must be 0 or 1, but .*b\.parquet has 5 others"):
        count_reviews(open_newest(LocalFileSystem(), str(tmp_path / "lake")))


def test_a_job_without_a_test_or_validation_channel_fails_clearly(tmp_path):
    (tmp_path / "train").mkdir()
    GOOD.to_parquet(tmp_path / "train/a.parquet")
    places = places_from({"SM_CHANNEL_TRAIN": str(tmp_path / "train"), "SM_MODEL_DIR": str(tmp_path / "model")})
    with pytest.raises(UnusableData, match="`test` or `validation`"):
        load_reviews(places)


def test_rows_that_training_skips_are_counted(tmp_path):
    (tmp_path / "train").mkdir()
    GOOD.assign(text=[None, "", " <br>", *GOOD.text[3:]]).to_parquet(tmp_path / "train/a.parquet")
    put(tmp_path, {f"train/{name}": b"no Parquet" for name in ("._a.parquet", "_b.parquet", "_temporary/0/c.parquet")})
    with pytest.warns(UserWarning, match="3 of 20 rows of train have no text"):
        assert len(read_channel(tmp_path / "train")) == 17


def test_training_reads_every_folder_of_a_channel(tmp_path):
    for folder in ("train", "train/a=b", "train/a=b/c"):
        (tmp_path / folder).mkdir()
        GOOD.to_parquet(tmp_path / folder / "part_0.parquet")
    assert len(read_channel(tmp_path / "train")) == 60


def test_every_reader_reads_the_output_of_the_job(spark, tmp_path):
    raw = put(tmp_path / "lake/raw", {"Odd.jsonl": enough() + b"\n".join(LINES)})
    places = [str(tmp_path / "lake" / name) for name in ("processed", "rejected", "reports/etl.json")]
    report = clean_reviews(spark, raw, *places, expected=ANY)
    files, lake = LocalFileSystem(), str(tmp_path / "lake")
    assert count_reviews(open_newest(files, lake)).reviews.sum() == report["kept"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = sum(
            len(read_channel(Path(newest_reviews(files, lake)) / f"split={side}")) for side in report["by_split"]
        )
    assert rows == report["kept"]
