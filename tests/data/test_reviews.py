"""The review generator and the readers of files, folders and S3."""

import gzip
import hashlib
import io
import json
import random
import re
import tracemalloc
from collections import Counter

import boto3
import pytest
from botocore.response import StreamingBody
from botocore.stub import Stubber

from sentiment_engine.data.reviews import (
    FAULTS,
    LABELS,
    ODDITIES,
    SCHEMA,
    STARS,
    DataError,
    check_reviews,
    expand,
    find_files,
    generate_reviews,
    label_of,
    load_grammar,
    make_odd,
    make_review,
    parse_review,
    read_lines,
    read_reviews,
    review_text,
    tidy,
    with_product,
    write_reviews,
)

LINE = '{"rating": 5.0, "title": "Nice", "text": "Love it", "timestamp": 1588687728923}\n'
BAD = '{"rating": 1.0, "title": "No", "text": "Broke at once"}\n'


@pytest.fixture(scope="module")
def lines() -> list[tuple[str, str]]:
    return list(generate_reviews(8_000, seed=7))


@pytest.fixture(scope="module")
def reviews(lines) -> list[dict]:
    return [review for _, line in lines if (review := parse_review(line))]


def digest(folder) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def near(count: int, of: int, share: float) -> bool:
    "Check that a count is within five standard deviations of its expected value."
    return abs(count - of * share) <= 5 * (of * share * (1 - share)) ** 0.5


# --- the generator ---------------------------------------------------------------------------------------------------


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    one = write_reviews(tmp_path / "one", 400, seed=3)
    two = write_reviews(tmp_path / "two", 400, seed=3)
    write_reviews(tmp_path / "three", 400, seed=4)
    assert one == two and sum(one.values()) == 400
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert not set(digest(tmp_path / "one").values()) & set(digest(tmp_path / "three").values())


def test_a_larger_sample_starts_with_the_same_reviews():
    assert list(generate_reviews(50, 1)) == list(generate_reviews(80, 1))[:50]


def test_every_record_has_the_schema(reviews):
    for review in reviews:
        assert list(review) == list(SCHEMA)
        types = {field: type(value) for field, value in review.items()}
        assert types == SCHEMA
        assert review["rating"] in (1, 2, 3, 4, 5) and review["helpful_vote"] >= 0
        assert 1_262_304_000_000 <= review["timestamp"] < 1_693_526_400_000


def test_stars_have_the_requested_frequencies(reviews):
    stars = Counter(int(review["rating"]) for review in reviews)
    assert all(near(stars[star], len(reviews), share) for star, share in STARS.items())
    labels = Counter(LABELS[label_of(review["rating"])] for review in reviews)
    assert 0.4 < labels["POSITIVE"] / len(reviews) < 0.6


def test_stars_can_be_skewed_as_in_real_data():
    stars = {1: 0.09, 2: 0.04, 3: 0.07, 4: 0.13, 5: 0.67}
    made = [parse_review(line) for _, line in generate_reviews(2_000, 1, stars)]
    assert near(sum(review["rating"] == 5 for review in made if review), 2_000, 0.67)


def test_all_categories_are_equally_frequent(lines):
    counts = Counter(category for category, _ in lines)
    assert set(counts) == set(load_grammar()) and len(counts) >= 15
    assert all(near(count, len(lines), 1 / len(counts)) for count in counts.values())


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_occur_at_their_rates(lines, fault):
    whole = [json.loads(line) for _, line in lines if line.endswith("}")]
    found = {
        "repeat": len(lines) - len({line for _, line in lines}),
        "null": sum(review["text"] is None for review in whole),
        "blank": sum(review["text"] is not None and review["text"].strip() in ("", "<br />") for review in whole),
        "malformed": len(lines) - len(whole),
    }
    assert found[fault] > 0 and near(found[fault], len(lines), FAULTS[fault])


def test_oddities_of_real_texts_occur_at_their_rates(reviews):
    texts = [review["text"] for review in reviews if review["text"]]
    emoji = sum(bool(re.search("[👍❤😍😀🎉⭐🙌😊💯👎😡😞🤬💔🙄😤🗑]", text)) for text in texts)
    entities = sum("&nbsp;" in text for text in texts)
    long = sum(len(text.split()) > 400 for text in texts)
    foreign = sum(bool(re.search("[。ßüéêóñ]|Finger|soldi|funziona", text)) for text in texts)
    assert near(emoji, len(texts), ODDITIES["emoji"])
    assert near(entities, len(texts), ODDITIES["entities"])
    assert near(long, len(texts), ODDITIES["very_long"])
    assert 0 < foreign < 3 * ODDITIES["foreign"] * len(texts)


def test_a_very_long_review_has_more_than_600_tokens():
    rng = random.Random(1)
    grammar = with_product(load_grammar()["Gift_Cards"], rng)
    for _ in range(20):
        _, body = make_odd("very_long", "", "Fine.", 5, grammar, rng)
        assert len(re.findall(r"\w+|[^\w\s]", body)) > 600


@pytest.mark.parametrize("kind", ODDITIES)
@pytest.mark.parametrize("stars", [1, 5])
def test_oddities_change_the_review_and_keep_it_readable(kind, stars):
    rng = random.Random(2)
    grammar = with_product(load_grammar()["Electronics"], rng)
    before = ("Hm", "It's here. It works as it should. I have it on my desk.")
    after = make_odd(kind, *before, stars, grammar, rng)
    assert (after == before) == (kind == "sarcasm" and stars == 5)
    assert after[1].strip()


def test_reviews_include_contrast_negation_and_delayed_failure(reviews):
    negative = [review["text"].lower() for review in reviews if review["text"] and review["rating"] <= 2]
    positive = [review["text"].lower() for review in reviews if review["text"] and review["rating"] >= 4]
    for texts in (negative, positive):
        assert sum(", but " in text for text in texts) > 0.05 * len(texts)
        assert sum(bool(re.search(r"\bnot\b|n't\b", text)) for text in texts) > 0.1 * len(texts)
    delayed = re.compile(r"(broke|stopped|died|fell apart|quit|gave out|failed)[^.]* after|for [^.]* then")
    assert sum(bool(delayed.search(text)) for text in negative) > 0.02 * len(negative)


def test_review_lengths_are_realistic(reviews):
    words = sorted(len(review["text"].split()) for review in reviews if review["text"])
    assert words[len(words) // 10] <= 12 and words[len(words) // 2] >= 20 and words[-len(words) // 10] >= 50
    assert len({review["text"] for review in reviews}) > 0.95 * len(reviews)


def test_every_grammar_rule_is_fully_expanded():
    rng = random.Random(5)
    for category, rules in load_grammar().items():
        for rule in rules:
            if re.match(r"review_|family$|consume", rule):
                continue
            text = expand(rule, rules, rng)
            assert not re.search(r"[{}\[\]|]", text), (category, rule, text)


@pytest.mark.parametrize("stars", STARS)
def test_reviews_contain_no_grammar_syntax(stars):
    for seed, category in enumerate(load_grammar()):
        for n in range(10):
            review = make_review(category, random.Random(100 * seed + n), {stars: 1})
            assert not re.search(r"[{}\[\]|]", review["title"] + review["text"])
            assert not re.search(r"\b(\w+ and) and\b|  ", review["text"])


def test_memory_does_not_grow_with_the_rows():
    for _ in generate_reviews(200, 1):
        pass
    peaks = []
    for rows in (300, 1_200):
        tracemalloc.start()
        for _ in generate_reviews(rows, 1):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000


def test_requesting_no_rows_is_an_error():
    with pytest.raises(ValueError, match="at least 1"):
        next(generate_reviews(0, 1))


# --- what a model receives -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "text", "expected"),
    [
        ("Nice", "Love it", "Nice. Love it"),
        ("Nice.", "Love it", "Nice. Love it"),
        ("Nice?!", "Love it", "Nice?! Love it"),
        ("Nice?", "Love it", "Nice? Love it"),
        ("Nice…", "Love it", "Nice… Love it"),
        ("", "Love it", "Love it"),
        (None, " Love it ", "Love it"),
        ("Nice", "", "Nice"),
        ("Nice", None, "Nice"),
        (None, None, ""),
    ],
)
def test_title_and_body_are_joined(title, text, expected):
    assert review_text(title, text) == expected


def test_three_stars_are_negative():
    assert [label_of(stars) for stars in (1, 2, 3, 4, 5)] == [0, 0, 0, 1, 1]


def test_sentences_are_cleaned_up():
    assert tidy("i got a  ukulele , an useful one") == "I got a ukulele, an useful one."
    assert tidy("wait... what ?.") == "Wait... what?"


# --- readers ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_recursively_and_malformed_lines_are_counted(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "Books.jsonl").write_text(LINE + '{"rating": 5.0, "te\n' + "\n[1, 2]\n" + '{"stars": 1}\n')
    with gzip.open(tmp_path / "deep" / "Toys.jsonl.gz", "wt") as file:
        file.write(BAD)
    (tmp_path / "notes.txt").write_text("not read")
    counts = Counter()
    read = list(read_reviews(tmp_path, counts=counts))
    assert [(review["category"], review["rating"]) for review in read] == [("Books", 5.0), ("Toys", 1.0)]
    assert counts == {"reviews": 2, "malformed": 2, "no_text": 1, "blank": 1}


def test_written_reviews_can_be_read_back(tmp_path):
    written = write_reviews(tmp_path, 500, seed=1)
    counts = Counter()
    read = list(read_reviews(tmp_path, counts=counts))
    assert sum(counts.values()) == 500 and counts["malformed"] > 0 and counts["no_text"] > 0
    assert {review["category"] for review in read} == set(written)


def test_invalid_utf8_does_not_stop_the_reader(tmp_path):
    (tmp_path / "Books.jsonl").write_bytes(b'\xff\xfe{"rating"\n' + LINE.encode())
    counts = Counter()
    assert len(list(read_reviews(tmp_path, counts=counts))) == 1 and counts["malformed"] == 1


def test_errors_name_a_damaged_archive(tmp_path):
    path = tmp_path / "Books.jsonl.gz"
    path.write_bytes(gzip.compress(LINE.encode() * 500)[:-20])
    with pytest.raises(DataError, match=r"Books\.jsonl\.gz is damaged \("):
        list(read_lines(str(path)))


@pytest.mark.parametrize("content", [{}, {"a.csv": "1"}])
def test_a_folder_without_review_files_is_an_error(tmp_path, content):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"has {len(content)} files, none of them .* Expected <Category>\.jsonl"):
        find_files(tmp_path)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        list(read_reviews(tmp_path / "gone"))


def test_files_without_reviews_are_an_error(tmp_path):
    (tmp_path / "Books.jsonl").write_text('{"stars": 5, "review": "another schema"}\n\n')
    with pytest.raises(DataError, match="contains no review"):
        list(read_reviews(tmp_path))


def test_a_missing_label_is_reported(tmp_path):
    (tmp_path / "Books.jsonl").write_text(LINE * 3)
    with pytest.raises(DataError, match=r"no usable NEGATIVE reviews \(3 usable"):
        check_reviews(tmp_path)
    (tmp_path / "Toys.jsonl").write_text(BAD + '{"rating": "five", "text": "?"}\n{"rating": 1, "text": null}\n')
    assert check_reviews(tmp_path) == {"POSITIVE": 3, "NEGATIVE": 1}


def test_a_late_label_is_found_without_reading_more_than_needed(tmp_path):
    (tmp_path / "Books.jsonl").write_text(LINE * 8 + BAD + "\n" + LINE * 5)
    assert check_reviews(tmp_path, lines=3) == {"POSITIVE": 8, "NEGATIVE": 1}
    assert check_reviews(tmp_path, lines=9) == {"POSITIVE": 9, "NEGATIVE": 1}
    assert check_reviews(tmp_path) == {"POSITIVE": 13, "NEGATIVE": 1}


def s3_with(pages: list[list[str]], bodies: dict[str, bytes]):
    "Return a stubbed client that lists `pages` of keys and then gives `bodies`."
    s3 = boto3.client("s3", region_name="us-east-1", aws_access_key_id="none", aws_secret_access_key="none")
    stub = Stubber(s3)
    for number, keys in enumerate(pages):
        more = {"IsTruncated": number + 1 < len(pages), "NextContinuationToken": str(number)}
        reply = {"Contents": [{"Key": key} for key in keys]} | (more if more["IsTruncated"] else {})
        token = {"ContinuationToken": str(number - 1)} if number else {}
        stub.add_response("list_objects_v2", reply, {"Bucket": "lake", "Prefix": "raw/", **token})
    for key, body in bodies.items():
        held = {"Body": StreamingBody(io.BytesIO(body), len(body))}
        stub.add_response("get_object", held, {"Bucket": "lake", "Key": key})
    stub.activate()
    return s3


def test_a_prefix_in_s3_is_read_page_by_page():
    bodies = {"raw/Books.jsonl": (LINE + "{cut\n").encode(), "raw/Toys.jsonl.gz": gzip.compress(BAD.encode() * 2)}
    s3 = s3_with([["raw/Toys.jsonl.gz", "raw/README"], ["raw/Books.jsonl"]], bodies)
    counts = Counter()
    read = list(read_reviews("s3://lake/raw/", s3, counts))
    assert [review["category"] for review in read] == ["Books", "Toys", "Toys"]
    assert counts == {"reviews": 3, "malformed": 1}


def test_an_empty_prefix_is_an_error():
    with pytest.raises(DataError, match="s3://lake/raw/ has 0 files"):
        find_files("s3://lake/raw/", s3_with([[]], {}))


def test_s3_needs_a_client():
    with pytest.raises(ValueError, match="Pass s3="):
        find_files("s3://lake/raw/")


def test_a_prefix_in_the_local_cloud_is_read(cloud, tmp_path):
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="reviews-reader")
    written = write_reviews(tmp_path, 60, seed=2)
    for path in tmp_path.iterdir():
        s3.upload_file(str(path), "reviews-reader", f"raw/{path.name}")
    counts = Counter()
    here = [json.dumps(review) for review in read_reviews(tmp_path)]
    there = [json.dumps(review) for review in read_reviews("s3://reviews-reader/raw/", s3, counts)]
    assert here == there and sum(counts.values()) == sum(written.values())
