"The page's files in their folder, and publishing them into a real bucket."

import gzip
import json
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import boto3
import httpx
import pytest

from sentiment_engine import __version__
from sentiment_engine.deploy import website
from sentiment_engine.deploy.website import KEEP_LONG, KEEP_SHORT, MARK, publish, site_files, unpublish, with_answers
from tests import ROOT

SITE = ROOT / "website"
CONFIG = {"provider": "Textbelt"}
HTML, SCRIPT, STYLE = ((SITE / f"sentiment.{kind}").read_text(encoding="utf-8") for kind in ("html", "js", "css"))


def answers(texts: list[str]) -> list[dict]:
    "Give the longest possible answer: sure, and with the same influence for every word."
    why = [{"start": i, "end": i + 10, "influence": -0.123456} for i in range(100, 112)]
    shares = {"NEGATIVE": 0.02459, "POSITIVE": 0.97541}
    return [{"label": "POSITIVE", "score": 0.97541, "scores": shares, "sure": True, "explanation": why} for _ in texts]


def examples() -> dict:
    return json.loads((SITE / "examples.json").read_text(encoding="utf-8"))


# ---- the files


def test_a_visit_loads_at_most_40_kb_compressed():
    stored = with_answers(examples(), answers, "20260101-0f3c5a7e")
    loaded = [file for file in site_files(SITE, {"provider": "Amazon SNS"}, stored) if not file.key.startswith("404.")]
    assert sum(len(gzip.compress(file.body)) for file in loaded) <= 40_000


def test_nothing_is_loaded_from_other_hosts():
    own = re.sub(r'xmlns="[^"]+"', "", HTML + STYLE + "".join(p.read_text() for p in SITE.glob("*.svg")))
    assert re.findall(r"(?:https?:)?//[a-z][\w.-]+\.[a-z]+", own) == []
    assert "@import" not in STYLE and "url(" not in STYLE.replace("url(#", "")


def test_the_page_has_no_inline_code():
    assert not re.search(r"\son\w+=|\sstyle=|<style|javascript:", HTML)
    assert re.findall(r"<script[^>]*>", HTML) == ['<script src="sentiment.js" type="module">']


def test_the_script_never_sets_html():
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|srcdoc"
    assert not re.search(forbidden, SCRIPT)


def test_the_script_and_the_page_use_the_same_element_ids():
    known = re.findall(r'\sid="([^"]+)"', HTML)
    assert len(known) == len(set(known))
    made = set(re.findall(r"\{id: '([a-z-]+)'", SCRIPT))  # with an answer
    asked = set(re.findall(r"""(?:\$|text|show|busy|on)\('([a-z-]+)'""", SCRIPT))
    assert asked - set(known) - made == set() and not made & set(known)


def colours(css: str) -> dict[str, str]:
    return dict(re.findall(r"--([a-z-]+):(#[0-9a-f]{3,6})\b", css))


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(c * 2 for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


TEXT = ["ink paper", "ink card", "ink field", "soft paper", "soft card", "soft field", "go-ink go", "go-ink go-over"]
TEXT += ["good card", "bad card", "good good-wash", "bad bad-wash", "unsure unsure-wash", "unsure card"]
TEXT += ["ink bad-wash", "ink unsure-wash", "soft bad-wash", "card good"]
EDGES = ["edge field", "edge card", "edge paper", "focus paper", "focus card", "good line", "bad line"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_edges_have_sufficient_contrast(scheme: str):
    light, dark = STYLE.split("@media(prefers-color-scheme:dark)", 1)
    palette = colours(light) | (colours(dark.split("}}", 1)[0]) if scheme == "dark" else {})
    found = {pair: round(contrast(*(palette[name] for name in pair.split())), 2) for pair in TEXT + EDGES}
    assert {pair: value for pair, value in found.items() if value < (4.5 if pair in TEXT else 3)} == {}


def test_there_are_six_different_examples():
    kinds = examples()["examples"]
    assert len(kinds) == 6 == len({x["name"] for x in kinds})
    assert all(x["text"].strip() and "answer" not in x for x in kinds)


# ---- publishing


class CloudFront:
    "Records its invalidations."

    def __init__(self):
        self.told, self.fails = [], False

    def create_invalidation(self, DistributionId, InvalidationBatch):
        if self.fails:
            raise ConnectionError("CloudFront is not there")
        assert DistributionId == "EDFDVBD6EXAMPLE"
        assert InvalidationBatch["Paths"]["Quantity"] == len(InvalidationBatch["Paths"]["Items"])
        self.told.append((InvalidationBatch["CallerReference"], InvalidationBatch["Paths"]["Items"]))


@pytest.fixture
def s3(cloud):
    given = cloud.environment
    return boto3.client(
        "s3",
        endpoint_url=given["AWS_ENDPOINT_URL"],
        region_name=given["AWS_DEFAULT_REGION"],
        aws_access_key_id=given["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=given["AWS_SECRET_ACCESS_KEY"],
    )


@pytest.fixture
def bucket(s3, request):
    name = "site-" + re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:50].strip("-")
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def folder(tmp_path):
    for path in SITE.glob("*.*"):
        shutil.copy(path, tmp_path)
    return tmp_path


def keys(s3, bucket: str) -> set[str]:
    return {item["Key"] for item in s3.list_objects_v2(Bucket=bucket).get("Contents", [])}


def test_each_file_has_its_content_type_and_cache_headers(s3, bucket):
    publish(s3, bucket, SITE, CONFIG)
    heads = {key: s3.head_object(Bucket=bucket, Key=key) for key in keys(s3, bucket)}
    kinds = {Path(key).suffix: head["ContentType"] for key, head in heads.items()}
    assert kinds == {
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".json": "application/json",
        ".svg": "image/svg+xml",
    }
    for key, head in heads.items():
        hashed = re.search(r"\.[0-9a-f]{10}\.", key)
        assert head["CacheControl"] == (KEEP_LONG if hashed else KEEP_SHORT), key
        assert bool(hashed) == (Path(key).suffix in (".css", ".js", ".svg")), key
        assert head["Metadata"]["published-by"] == MARK


def test_the_published_page_requests_only_existing_files(s3, bucket):
    publish(s3, bucket, SITE, CONFIG)
    html = s3.get_object(Bucket=bucket, Key="sentiment.html")["Body"].read().decode()
    asked = set(re.findall(r'(?:src|href|data-\w+)="([\w.-]+\.(?:css|js|svg))"', html))
    assert len(asked) == 4 and asked <= keys(s3, bucket)
    unknown = s3.get_object(Bucket=bucket, Key="404.html")["Body"].read().decode()
    (style,) = re.findall(r'href="/([^"]+\.css)"', unknown)
    assert style in keys(s3, bucket)
    assert "connect-src 'self';" in html and "app.py" not in keys(s3, bucket)
    assert json.load(s3.get_object(Bucket=bucket, Key="config.json")["Body"]) == CONFIG | {"version": __version__}


def test_publishing_twice_changes_nothing(s3, bucket):
    cloudfront = CloudFront()
    first = publish(s3, bucket, SITE, CONFIG, None, cloudfront, "EDFDVBD6EXAMPLE")
    again = publish(s3, bucket, SITE, CONFIG, None, cloudfront, "EDFDVBD6EXAMPLE")
    assert (again.uploaded, again.deleted, again.invalidated) == ((), (), ())
    assert set(again.unchanged) == set(first.uploaded) and len(cloudfront.told) == 1


def test_only_changed_files_are_uploaded_and_stale_ones_deleted(s3, bucket, folder):
    cloudfront = CloudFront()
    s3.put_object(Bucket=bucket, Key="theirs.svg", Body=b"somebody else's")
    publish(s3, bucket, folder, CONFIG, None, cloudfront, "EDFDVBD6EXAMPLE")
    old = next(key for key in keys(s3, bucket) if re.fullmatch(r"sentiment\..*\.css", key))
    (folder / "sentiment.css").write_text("body{color:teal}")
    change = publish(s3, bucket, folder, CONFIG, None, cloudfront, "EDFDVBD6EXAMPLE")
    assert change.deleted == () and old in keys(s3, bucket)  # a browser may still show the page that uses it
    assert {Path(key).suffix for key in change.uploaded} == {".css", ".html"}
    assert change.invalidated == ("/", "/sentiment.html") == tuple(cloudfront.told[-1][1])
    assert len({reference for reference, _ in cloudfront.told}) == 2
    assert publish(s3, bucket, folder, CONFIG).deleted == ()  # too soon after a change
    assert publish(s3, bucket, folder, CONFIG, patience=0).deleted == (old,)
    assert "theirs.svg" in keys(s3, bucket) and old not in keys(s3, bucket)


def test_files_of_the_previous_page_survive_the_next_publish(s3, bucket, folder):
    publish(s3, bucket, folder, CONFIG)
    old = next(key for key in keys(s3, bucket) if re.fullmatch(r"sentiment\..*\.css", key))
    (folder / "sentiment.css").write_text("body{color:teal}")
    assert publish(s3, bucket, folder, CONFIG, patience=0).deleted == () and old in keys(s3, bucket)


@pytest.mark.parametrize("behind", [-2, 2])
def test_a_wrong_clock_does_not_delay_deletions_for_ever(s3, bucket, folder, monkeypatch, behind):
    for colour in ("teal", "navy"):
        (folder / "sentiment.css").write_text(f"body{{color:{colour}}}")
        publish(s3, bucket, folder, CONFIG)
    for hours, deleted in ((behind / 4, 0), (behind, 1)):
        away = SimpleNamespace(time=lambda hours=hours: time.time() - 3600 * hours)
        monkeypatch.setattr(website, "time", away)
        assert len(publish(s3, bucket, folder, CONFIG).deleted) == deleted


class Watched:
    "A client that records the requested changes."

    def __init__(self, client, log: list):
        self.client, self.log = client, log

    def __getattr__(self, name):
        def call(**given):
            if name in ("put_object", "delete_objects"):
                self.log.append((name, given.get("Key"), given.get("Metadata", {}).get("digest") != ""))
            return getattr(self.client, name)(**given)

        return getattr(self.client, name) if name == "get_paginator" else call


def test_a_change_is_published_in_a_safe_order(s3, bucket, folder):
    publish(s3, bucket, folder, CONFIG)
    for colour in ("teal", "navy"):  # the second time there is something to delete
        (folder / "sentiment.css").write_text(f"body{{color:{colour}}}")
        log, cloudfront = [], CloudFront()
        cloudfront.told = log
        publish(Watched(s3, log), bucket, folder, CONFIG, None, cloudfront, "EDFDVBD6EXAMPLE", patience=0)
    asset, page, told, settled, deleted = log
    assert asset[1].endswith(".css") and page == ("put_object", "sentiment.html", False)
    assert told[1] == ["/", "/sentiment.html"] and settled == ("put_object", "sentiment.html", True)
    assert deleted[0] == "delete_objects"


def test_a_failed_invalidation_is_retried(s3, bucket, folder):
    cloudfront = CloudFront()
    cloudfront.fails = True
    with pytest.raises(ConnectionError):
        publish(s3, bucket, SITE, CONFIG, None, cloudfront, "EDFDVBD6EXAMPLE")
    cloudfront.fails = False
    again = publish(s3, bucket, SITE, CONFIG, None, cloudfront, "EDFDVBD6EXAMPLE")
    assert again.invalidated == ("/", "/404.html", "/config.json", "/examples.json", "/sentiment.html")
    assert publish(s3, bucket, SITE, CONFIG, None, cloudfront, "EDFDVBD6EXAMPLE").invalidated == ()


def test_a_file_that_cannot_be_deleted_is_reported(s3, bucket, folder):
    class Refusing(Watched):
        def delete_objects(self, Bucket, Delete):
            return {"Errors": [{"Key": each["Key"], "Code": "AccessDenied"} for each in Delete["Objects"]]}

    publish(s3, bucket, folder, CONFIG)
    with pytest.raises(RuntimeError, match=r"S3 did not delete \d+ objects of .*, such as \S+: AccessDenied"):
        unpublish(Refusing(s3, []), bucket)


class Large:
    "A bucket with many of our objects that deletes as many per request as S3."

    def __init__(self, size: int):
        self.keys, self.batches = {f"{n:05}.svg" for n in range(size)}, []

    def get_paginator(self, _):
        return SimpleNamespace(paginate=lambda Bucket: [{"Contents": [{"Key": key} for key in sorted(self.keys)]}])

    def head_object(self, Bucket, Key):
        return {"Metadata": {"published-by": MARK}}

    def delete_objects(self, Bucket, Delete):
        self.batches.append(len(Delete["Objects"]))
        assert self.batches[-1] <= 1000, "S3 takes no more"
        self.keys -= {each["Key"] for each in Delete["Objects"]}
        return {}


def test_files_are_deleted_in_batches_of_a_thousand():
    s3 = Large(2_001)
    assert len(unpublish(s3, "site")) == 2_001 and not s3.keys and s3.batches == [1000, 1000, 1]


def test_a_file_with_a_changed_header_is_uploaded_again(s3, bucket, monkeypatch):
    publish(s3, bucket, SITE, CONFIG)
    monkeypatch.setitem(website.CONTENT_TYPES, ".json", "application/json; charset=utf-8")
    assert publish(s3, bucket, SITE, CONFIG).uploaded == ("examples.json", "config.json")
    assert s3.head_object(Bucket=bucket, Key="config.json")["ContentType"] == "application/json; charset=utf-8"


def test_a_new_configuration_changes_only_its_file(s3, bucket):
    publish(s3, bucket, SITE, CONFIG)
    assert publish(s3, bucket, SITE, {"provider": "Amazon SNS"}).uploaded == ("config.json",)


def test_manual_changes_of_headers_or_content_are_corrected(s3, bucket):
    publish(s3, bucket, SITE, CONFIG)
    s3.put_object(Bucket=bucket, Key="config.json", Body=b"{}")
    assert publish(s3, bucket, SITE, CONFIG).uploaded == ("config.json",)


def test_unpublishing_keeps_foreign_files(s3, bucket):
    publish(s3, bucket, SITE, CONFIG)
    s3.put_object(Bucket=bucket, Key="theirs.txt", Body=b"somebody else's")
    assert len(unpublish(s3, bucket)) > 5
    assert keys(s3, bucket) == {"theirs.txt"} and unpublish(s3, bucket) == []


def test_a_folder_without_a_page_is_refused_before_uploading(s3, bucket, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \.html file"):
        publish(s3, bucket, tmp_path, CONFIG)
    assert keys(s3, bucket) == set()


def test_examples_get_the_answers_of_the_model(s3, bucket):
    publish(s3, bucket, SITE, CONFIG, with_answers(examples(), answers, "1"))
    stored = json.load(s3.get_object(Bucket=bucket, Key="examples.json")["Body"])
    assert stored["modelVersion"] == "1"
    assert all(x["answer"]["scores"] == {"NEGATIVE": 0.02459, "POSITIVE": 0.97541} for x in stored["examples"])
    words = [[i, i + 10, -0.123] for i in range(100, 105)]
    assert all(x["answer"]["sure"] is True and x["answer"]["words"] == words for x in stored["examples"])


@pytest.mark.parametrize(
    ("influences", "kept"),
    [
        ([0.09, 0.5, -0.1, 0.2], [0.5, -0.1, 0.2]),  # at least a fifth of the strongest
        ([0.02, -0.01, 0.0099], [0.02, -0.01]),
        ([0.009], []),
        ([0.1, 0.11, -0.12, 0.13, 0.14, 0.15], [0.11, -0.12, 0.13, 0.14, 0.15]),
        ([], []),
    ],
)
def test_the_decisive_words_of_an_answer_are_stored(influences, kept):
    why = [{"start": 9 * n, "end": 9 * n + 5, "influence": value} for n, value in enumerate(influences)]
    given = {"scores": {"NEGATIVE": 0.1, "POSITIVE": 0.9}, "explanation": why}
    (stored,) = with_answers({"examples": [{"text": "x"}]}, lambda _: [given], "1")["examples"]
    assert [word[2] for word in stored["answer"]["words"]] == kept


def test_an_answer_without_an_explanation_is_stored_without_words(s3, bucket):
    plain = [{"label": "POSITIVE", "score": 0.9, "scores": {"NEGATIVE": 0.1, "POSITIVE": 0.9}} for _ in range(6)]
    (first, *_) = with_answers(examples(), lambda _: plain, "1")["examples"]
    assert first["answer"]["sure"] is None and "words" not in first["answer"]


def test_the_site_is_served_with_its_content_types_and_policies(engine):
    page = httpx.get(engine.site_url)
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert "The model that sleeps" in page.text
    script = re.search(r'src="(sentiment\.[0-9a-f]{10}\.js)"', page.text)[1]
    served = httpx.get(engine.site_url + script)
    assert served.headers["content-type"].startswith("text/javascript") and served.headers["cache-control"] == KEEP_LONG
    assert httpx.get(engine.site_url + "config.json").json()["version"] == __version__
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_an_unknown_address_gets_the_error_page_of_the_site(engine):
    for path in ("nothing", "sentiment.htm", "a/b/c?d=e", "old.0123456789.js"):
        page = httpx.get(engine.site_url + path)
        assert page.status_code == 404 and page.headers["content-type"].startswith("text/html"), path
        assert "There is no such page" in page.text and "'none'" in page.headers["content-security-policy"]
    (style,) = re.findall(r'href="(/404\.[0-9a-f]{10}\.css)"', page.text)
    assert httpx.get(engine.site_url.rstrip("/") + style).status_code == 200  # wherever the page is shown


def test_the_site_is_compressed_for_clients_that_accept_it(engine):
    for path in ("", re.search(r'src="(sentiment\.[0-9a-f]{10}\.js)"', httpx.get(engine.site_url).text)[1]):
        plain = httpx.get(engine.site_url + path, headers={"accept-encoding": "identity"})
        packed = httpx.get(engine.site_url + path, headers={"accept-encoding": "gzip"})
        assert packed.headers["content-encoding"] == "gzip" and "content-encoding" not in plain.headers
        assert packed.content == plain.content
        assert int(packed.headers["content-length"]) < len(plain.content) / 2
