"""Copying categories into the lake from a real HTTP server that fails, disconnects, changes and damages its files."""

import gzip
import hashlib
import io
import json
import random
from itertools import pairwise

import pytest
import urllib3
from botocore.exceptions import ReadTimeoutError

from sentiment_engine.data import ingest
from sentiment_engine.data.ingest import (
    PART,
    IngestError,
    category_addresses,
    fetch,
    fetch_all,
    look,
    progress_bars,
    upload_reviews,
)
from sentiment_engine.data.reviews import DataError, find_files
from tests.doubles.file_server import serving

LAKE = "ingest-lake"
QUICK = urllib3.PoolManager(
    timeout=5, retries=urllib3.Retry(2, backoff_factor=0, status_forcelist=ingest.AGAIN, raise_on_status=False)
)


def packed(size: int, seed: int = 1) -> bytes:
    "Make a .gz file of about `size` bytes with 1,000 lines; hex compresses to 0.58 of its length."
    rng = random.Random(seed)
    lines = [json.dumps({"rating": 5.0, "text": rng.randbytes(size // 1_170).hex()}) for _ in range(1_000)]
    return gzip.compress("\n".join([*lines, ""]).encode(), 1)


@pytest.fixture
def source():
    with serving() as server:
        yield server


@pytest.fixture
def s3(cloud):
    "A client, with an empty lake."
    client = cloud.client("s3")
    client.create_bucket(Bucket=LAKE)
    for item in client.list_objects_v2(Bucket=LAKE).get("Contents", []):
        client.delete_object(Bucket=LAKE, Key=item["Key"])
    return client


def held(s3, key: str) -> bytes:
    return s3.get_object(Bucket=LAKE, Key=key)["Body"].read()


def keys(s3) -> set[str]:
    return {item["Key"] for item in s3.list_objects_v2(Bucket=LAKE).get("Contents", [])}


def test_selected_categories_are_copied_completely_and_others_removed(s3, source):
    source.files = {"Books.jsonl.gz": packed(5 * PART // 2), "Gift_Cards.jsonl.gz": packed(10_000, 2)}
    s3.put_object(Bucket=LAKE, Key="raw/Old.jsonl", Body=b"old")
    seen = []
    addresses = category_addresses("Books, Gift_Cards", source.address)
    copies = fetch_all(s3, LAKE, addresses, lambda *told: seen.append(told), QUICK)
    for copy in copies:
        body = source.files[copy.name]
        assert held(s3, f"raw/{copy.name}") == body
        assert (copy.size, copy.sha256, copy.lines) == (len(body), hashlib.sha256(body).hexdigest(), 1_000)
    assert keys(s3) == {
        f"{where}/{name}{end}" for name in source.files for where, end in (("raw", ""), ("ingest", ".json"))
    }
    size = len(source.files["Books.jsonl.gz"])
    assert [told[1] for told in seen if told[0] == "Books.jsonl.gz"] == [PART, 2 * PART, size]
    assert len(source.asked) == 4


def test_a_second_run_copies_only_changed_files(s3, source):
    source.files = {"Books.jsonl.gz": packed(20_000)}
    (address,) = category_addresses("Books", source.address)
    first = fetch(s3, LAKE, address, web=QUICK)
    assert fetch(s3, LAKE, address, web=QUICK) == first and len(source.asked) == 1
    source.files = {"Books.jsonl.gz": packed(20_000, seed=5)}
    assert fetch(s3, LAKE, address, web=QUICK).sha256 != first.sha256 and len(source.asked) == 2
    s3.delete_object(Bucket=LAKE, Key="raw/Books.jsonl.gz")
    fetch(s3, LAKE, address, web=QUICK)
    assert held(s3, "raw/Books.jsonl.gz") == source.files["Books.jsonl.gz"]


@pytest.mark.parametrize("tags", [True, False], ids=["by ETag", "by time"])
def test_an_interrupted_copy_resumes(s3, source, tags):
    source.tags, source.gone_after = tags, 2
    source.files = {"Books.jsonl.gz": packed(9 * PART // 2)}
    s3.put_object(Bucket=LAKE, Key="raw/Books.jsonl.gz", Body=b"old")
    (address,) = category_addresses("Books", source.address)
    with pytest.raises(IngestError, match="HTTP 503"):
        fetch(s3, LAKE, address, web=QUICK)
    assert held(s3, "raw/Books.jsonl.gz") == b"old"
    source.gone_after, source.asked = None, []
    fetch(s3, LAKE, address, web=QUICK)
    assert [start for start, _ in source.asked] == [n * PART for n in range(2, 5)]
    assert held(s3, "raw/Books.jsonl.gz") == source.files["Books.jsonl.gz"]


def test_a_file_that_changes_between_two_tries_is_copied_from_the_start(s3, source):
    source.gone_after, source.files = 1, {"Books.jsonl.gz": packed(5 * PART // 2)}
    (address,) = category_addresses("Books", source.address)
    with pytest.raises(IngestError):
        fetch(s3, LAKE, address, web=QUICK)
    source.gone_after, source.asked, source.files = None, [], {"Books.jsonl.gz": packed(5 * PART // 2, seed=9)}
    fetch(s3, LAKE, address, web=QUICK)
    assert source.asked[0][0] == 0 and held(s3, "raw/Books.jsonl.gz") == source.files["Books.jsonl.gz"]


def test_a_file_that_changes_during_the_copy_is_not_mixed(s3, source):
    source.files = {"Books.jsonl.gz": packed(5 * PART // 2)}
    (address,) = category_addresses("Books", source.address)

    def change(done, size):
        source.files = {"Books.jsonl.gz": packed(5 * PART // 2, seed=9)}

    with pytest.raises(IngestError, match="has changed during the copy"):
        fetch(s3, LAKE, address, change, QUICK)
    assert "raw/Books.jsonl.gz" not in keys(s3)


@pytest.mark.parametrize("fault", ["503", "cut", "drop"])
def test_a_transient_fault_is_retried(s3, source, fault):
    source.files, source.faults = {"Books.jsonl.gz": packed(5 * PART // 2)}, [None, fault, fault]
    (address,) = category_addresses("Books", source.address)
    fetch(s3, LAKE, address, web=QUICK)
    assert held(s3, "raw/Books.jsonl.gz") == source.files["Books.jsonl.gz"] and len(source.asked) == 5


def test_an_unchecked_copy_is_checked_without_copying_again(s3, source, monkeypatch):
    source.files = {"Books.jsonl.gz": packed(5 * PART // 2)}
    (address,) = category_addresses("Books", source.address)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ingest, "examine", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        fetch(s3, LAKE, address, web=QUICK)
    source.asked = []
    fetch(s3, LAKE, address, web=QUICK)
    assert source.asked == [] and held(s3, "raw/Books.jsonl.gz") == source.files["Books.jsonl.gz"]


def test_a_damaged_file_does_not_replace_a_good_one(s3, source):
    body = bytearray(packed(20_000))
    body[len(body) // 2] ^= 255
    source.files = {"Books.jsonl.gz": bytes(body), "Toys_and_Games.jsonl.gz": packed(20_000)[:-500]}
    for category in ("Books", "Toys_and_Games"):
        s3.put_object(Bucket=LAKE, Key=f"raw/{category}.jsonl.gz", Body=b"old")
        with pytest.raises(IngestError, match=r"is damaged \(.*The lake still contains the earlier data"):
            fetch(s3, LAKE, *category_addresses(category, source.address), web=QUICK)
    assert keys(s3) == {"raw/Books.jsonl.gz", "raw/Toys_and_Games.jsonl.gz"}
    assert held(s3, "raw/Books.jsonl.gz") == b"old"


def test_s3_copies_from_s3_in_parts(s3, source):
    body = packed(5 * PART // 2)
    s3.put_object(Bucket=LAKE, Key="mirror/Books.jsonl.gz", Body=body)
    s3.put_object(Bucket=LAKE, Key="mirror/Empty.jsonl", Body=b"")
    copy = fetch(s3, LAKE, f"s3://{LAKE}/mirror/Books.jsonl.gz")
    assert held(s3, "raw/Books.jsonl.gz") == body and copy.lines == 1_000
    with pytest.raises(IngestError, match="cannot be read: 404"):
        fetch(s3, LAKE, f"s3://{LAKE}/mirror/None.jsonl")
    with pytest.raises(IngestError, match="the file is empty"):
        fetch(s3, LAKE, f"s3://{LAKE}/mirror/Empty.jsonl")


def test_a_small_object_is_copied_without_a_range(s3):
    body, asked = packed(20_000), []
    s3.put_object(Bucket=LAKE, Key="mirror/Books.jsonl.gz", Body=body)
    s3.meta.events.register("before-parameter-build.s3.UploadPartCopy", lambda params, **_: asked.append(dict(params)))
    fetch(s3, LAKE, f"s3://{LAKE}/mirror/Books.jsonl.gz")
    assert len(asked) == 1 and "CopySourceRange" not in asked[0]  # S3 refuses ranges of less than 5 MB
    assert held(s3, "raw/Books.jsonl.gz") == body


def test_a_copy_whose_check_fails_is_kept(s3, source, monkeypatch):
    def stalled(*_):
        raise ReadTimeoutError(endpoint_url="s3")

    source.files = {"Books.jsonl.gz": packed(20_000)}
    (address,) = category_addresses("Books", source.address)
    with monkeypatch.context() as patch, pytest.raises(IngestError, match="checking it failed"):
        patch.setattr(ingest, "examine", stalled)
        fetch(s3, LAKE, address, web=QUICK)
    fetch(s3, LAKE, address, web=QUICK)
    assert len(source.asked) == 1 and held(s3, "raw/Books.jsonl.gz") == source.files["Books.jsonl.gz"]


def test_a_copy_that_did_not_reach_its_final_key_is_not_complete(s3, source, monkeypatch):
    source.files = {"Books.jsonl.gz": packed(20_000)}
    s3.put_object(Bucket=LAKE, Key="raw/Books.jsonl.gz", Body=bytes(len(source.files["Books.jsonl.gz"])))
    (address,) = category_addresses("Books", source.address)

    def refuse(*_, **__):
        raise ConnectionError("S3 is gone")

    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(s3, "copy", refuse)
        fetch(s3, LAKE, address, web=QUICK)
    fetch(s3, LAKE, address, web=QUICK)
    assert held(s3, "raw/Books.jsonl.gz") == source.files["Books.jsonl.gz"]


def test_a_copy_that_was_truncated_later_is_replaced(s3, source):
    source.files = {"Books.jsonl.gz": packed(20_000)}
    (address,) = category_addresses("Books", source.address)
    fetch(s3, LAKE, address, web=QUICK)
    s3.put_object(Bucket=LAKE, Key="raw/Books.jsonl.gz", Body=source.files["Books.jsonl.gz"][:-1])
    fetch(s3, LAKE, address, web=QUICK)
    assert held(s3, "raw/Books.jsonl.gz") == source.files["Books.jsonl.gz"]


def test_a_part_of_the_wrong_size_is_uploaded_again(s3, source):
    source.gone_after, source.files = 1, {"Books.jsonl.gz": packed(5 * PART // 2)}
    (address,) = category_addresses("Books", source.address)
    with pytest.raises(IngestError, match="HTTP 503"):
        fetch(s3, LAKE, address, web=QUICK)
    upload = json.loads(held(s3, "ingest/Books.jsonl.gz.json"))["upload"]
    target = {"Bucket": LAKE, "Key": "ingest/Books.jsonl.gz", "UploadId": upload}
    s3.upload_part(**target, PartNumber=1, Body=bytes(PART - 1))
    source.gone_after = None
    fetch(s3, LAKE, address, web=QUICK)
    assert held(s3, "raw/Books.jsonl.gz") == source.files["Books.jsonl.gz"]


@pytest.mark.parametrize("size", [1, PART, PART + 1, 10_000 * PART, 10_000 * PART + 1, 10**12])
def test_parts_cover_any_file_size_within_the_limits_of_s3(size):
    found = list(ingest.parts(size))
    assert len(found) <= 10_000 and (found[0][1], found[-1][2]) == (0, size)
    assert all(one[2] == other[1] and one[0] + 1 == other[0] for one, other in pairwise(found))


@pytest.mark.parametrize(("body", "lines"), [(b"", 0), (b"a\n", 1), (b"a\nb", 2), (b"a\n\nb\n", 3)])
def test_a_last_line_without_a_newline_is_counted(body, lines):
    assert ingest.examine(io.BytesIO(body), False) == (hashlib.sha256(body).hexdigest(), lines)


def test_errors_name_a_missing_source(s3, source):
    source.files = {"Books.jsonl.gz": packed(20_000), "Software.jsonl.gz": b""}
    with pytest.raises(IngestError, match=r"Unknown\.jsonl\.gz: the file does not exist"):
        look(source.address.format(category="Unknown"), s3, QUICK)
    with pytest.raises(IngestError, match="the file is empty"):
        look(source.address.format(category="Software"), s3, QUICK)
    source.versions = False
    with pytest.raises(IngestError, match="neither ETag nor Last-Modified"):
        look(source.address.format(category="Books"), s3, QUICK)
    source.versions, source.parts = True, False
    with pytest.raises(IngestError, match=r"whole files only\. Download the file"):
        look(source.address.format(category="Books"), s3, QUICK)
    with pytest.raises(IngestError, match="does not answer"):
        look("http://127.0.0.1:9/Books.jsonl.gz", s3, QUICK)
    with pytest.raises(DataError, match=r"no such category: Boks\. The categories are All_Beauty"):
        category_addresses("Boks")
    with pytest.raises(DataError, match="name at least one category"):
        category_addresses(" , ")


@pytest.mark.parametrize(
    "wrong",
    [
        *("https://somewhere/else.jsonl", "https://m/{category}/reviews.jsonl.gz", "https://m/{category}.csv"),
        *("https://m/{category}.jsonl.gz?download=true", "ftp://m/{category}.jsonl"),
    ],
)
def test_a_source_without_a_category_in_its_last_part_is_refused(wrong):
    with pytest.raises(DataError, match=r"whose last part contains \{category\}"):
        category_addresses("Books", wrong)


def test_progress_bars_show_the_progress_of_each_file(capsys):
    with progress_bars() as show:
        show("Books.jsonl.gz", 5_000_000, 10_000_000)
        show("Books.jsonl.gz", 10_000_000, 10_000_000)
    assert "Books.jsonl.gz: 100%" in capsys.readouterr().out


def test_two_files_with_the_same_name_are_not_mixed_up(s3, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "Books.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="two files have the same name"):
        upload_reviews(s3, LAKE, find_files(tmp_path))
