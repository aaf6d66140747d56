"The cleaning rule: what it keeps, where it applies, and how it maps characters to their origins."

import json
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sentiment_engine.data import etl, language, near_repeats
from sentiment_engine.data.cleaning import INVISIBLE, MAX_CHARACTERS, SPACES, clean, trace
from sentiment_engine.data.etl import judge, parse_lines
from sentiment_engine.data.reviews import review_text
from sentiment_engine.model import inference
from sentiment_engine.model.released import read_texts, released_folder
from sentiment_engine.model.training_job import read_channel
from tests.doubles.expressions import in_python
from tests.doubles.tiny_model import write_tiny_model

KEPT = [  # looks like markup but is not
    *(
        "good",
        "<3",
        "a<b",
        "b>a",
        "a < b",
        "<but awful battery>",
        "<over 13>",
        "<",
        "<<>>",
        "<b and c>",
        "</>",
        "<brx>",
    ),
    *("<i really = mean it>", "<br", "br>", "< br>", "<3>", "<!-- no -->", "<![CDATA[x]]>", '<a href="x>', "<b a='<'>"),
    *(
        "<video on>",
        "<a controls freak>",
        "<i checked it>",
        "<br //>",
        "<hr no shade>",
        "<scripted>",
        "<body and soul>",
    ),
    *("R&D", "AT&T;", "&notgood", "&;", "&#;", "&#x;", "&unheard;", "&copying", "a&b=c", "&", "50&#37", "&lt=1"),
    *("[[VIDEOID:it broke]]", "[[VIDEOID:", "[[", "so x]]", "[[NOTE: terrible]]", "[VIDEOID:x]", "[[ASIN:-]]"),
    *("don't", "naïve", "一般", "👩\u200d🔬", "❤\ufe0f"),
]
GONE = [
    *(
        "<br>",
        "<br/>",
        "<BR >",
        "<br  />",
        "</p>",
        "<a href=x>",
        "<h1 class='a' id = \"b\">",
        "<i\n>",
        "<p a=\"1\" b='2'/>",
    ),
    *(
        "<br / >",
        "<video controls>",
        "</video>",
        "<input type=radio checked disabled />",
        "<TD nowrap width=5>",
        "<hr noshade>",
    ),
    *("<html>", "<body>", "<script src='x'>", "</style>", "<section>", "<nobr>", "<kbd>", "<abbr title='x'>", "<wbr/>"),
    *("[[VIDEOID:5aE]]", "[[IMAGE:81x.jpg]]", "[[VIDEOID: 7]]", "[[ASIN:B00X]]", "[[ASIN:B00X ]]"),
    *("\u200b", "\xa0", "\t", "\x9f", "\x00", "&nbsp;", "&nbsp", "&#160;", "&#xA0;", "&shy;", "&amp;nbsp;"),
    *(
        "&lt;br&gt;",
        "&amp;lt;br /&amp;gt;",
        "&amp;amp;lt;br&amp;amp;gt;",
        "&#60;br&#62;",
        "&lt;a href=&quot;x&quot;&gt;",
    ),
]
READ = {
    **{
        "&amp;": "&",
        "&lt;3": "<3",
        "&#39;": "'",
        "&amp;#39;": "'",
        "&amp;amp;quot;": '"',
        "&quot": '"',
        "&#x1F600;": "😀",
    },
    **{
        "&#146;": "’",
        "&#159;": "Ÿ",
        "&#0;": "\ufffd",
        "&#xD800;": "\ufffd",
        "&#38;lt;": "<",
        "&#x26;lt;": "<",
        "&amp;unheard;": "&unheard;",
    },
    **{"na&iuml;ve": "naïve", "nai\u0308ve": "naïve", "e&#769;": "é", "soft\u00adware": "software", "a<br>b": "a b"},
    **{"<b>bold</b>": "bold", "[[ASIN:B00X My Lamp]]": "My Lamp", '<a title="5&quot;" href="/x?a=1&b=2">it</a>': "it"},
}
SAID = dict.fromkeys(GONE, "") | {text: text for text in KEPT} | READ  # the expected text


@given(st.lists(st.sampled_from(sorted(SAID)), max_size=12))
@settings(deadline=None, max_examples=500)
def test_only_markup_is_removed(pieces):
    assert clean(" ".join(pieces)) == " ".join(filter(None, (SAID[piece] for piece in pieces)))


@pytest.mark.parametrize("piece", SAID)
def test_each_piece_is_cleaned_as_a_person_reads_it(piece):
    assert clean(f"x {piece} y") == " ".join(f"x {SAID[piece]} y".split())


def test_spaces_and_control_characters_become_a_single_space():
    kinds = ("Cc", "Zs", "Zl", "Zp")
    spaces = [char for char in map(chr, range(0x110000)) if unicodedata.category(char) in kinds]
    assert len(spaces) == 84 and not [char for char in spaces if clean(f"x{char}y é") != "x y é"]


def test_invisible_formatting_characters_are_removed():
    "The rule keeps Unicode format characters that join letters, form flags or mark numbers."
    hidden = [0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2065), 0xFEFF]
    hidden += range(0x2066, 0x206A)
    assert [clean(f"x{chr(code)}y") for code in hidden] == ["xy"] * len(hidden)
    assert all(unicodedata.category(chr(code)) == "Cf" for code in hidden)


@pytest.mark.parametrize("text", ["two  spaces", "[[ASIN:B00X My Lamp]]", "R&amp;D", "a<br>b", " ends "])
def test_plain_ascii_text_is_cleaned_like_any_other(text):
    assert clean(text) == clean(f"{text} é").removesuffix(" é").rstrip() != text


@given(st.text())
@settings(deadline=None, max_examples=500)
def test_a_text_without_markup_keeps_every_visible_character(text):
    "Only complete tags, entities and double-bracket links count as markup."
    text = re.sub(r"[>&]|\[\[", "", text)
    seen = SPACES.sub("", INVISIBLE.sub("", unicodedata.normalize("NFC", text))).replace(" ", "")
    assert clean(text).replace(" ", "") == seen


PARTS = [*SAID, *"<>/&;#[]=\"' ax1!", "amp;", "lt;", "#x9F", "b ", "/b", "VIDEOID:", "ASIN:", "]]", "&amp", "\u0338"]
PARTS += [
    "\x85",
    "\u2028",
    "\u3000",
    "\ufeff",
    "\u0327\u0301",
    "\u1112\u1161\u11ab",
    "\u0958",
    "\U0002f800",
    "\U000e0041",
]
TEXTS = st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=9).map("".join)


HIDING = [*"< b > = & amp; lt; &nbsp [[ASIN:B00X]] <br>".split(), " ", "\u200b", "\u0338", "\u0307"]
WHOLE = [text for text in SAID if text.count("[[") == text.count("]]")]  # links do not nest
SEVERAL = [st.lists(st.sampled_from(parts), max_size=9).map("".join) for parts in (HIDING, WHOLE)]


@given(st.one_of(st.text().map(lambda text: text.replace("[[", "")), *SEVERAL))
@settings(deadline=None, max_examples=1_000)
def test_cleaning_a_clean_text_changes_nothing(text):
    "The Glue job cleans a text, training cleans it again, and serving cleans it once."
    assert clean(clean(text)) == clean(text)


@pytest.fixture(scope="module")
def generated() -> list[str]:
    "10,000 texts."
    found, quiet = [], {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}

    @settings(max_examples=10_000, phases=[Phase.generate], **quiet)
    @given(TEXTS)
    def collect(text):
        found.append(text)

    collect()
    return found


def test_spark_and_python_clean_alike(spark, generated):
    assert len(set(generated)) > 8_000
    lines = [(str(i), json.dumps({"rating": 5, "text": text, "title": text})) for i, text in enumerate(generated)]
    judged = judge(parse_lines(spark.createDataFrame(lines, "category string, line string")))
    read = {int(row.category): row for row in judged.select("category", "title", "text", "reason").collect()}
    blank = {i for i, text in enumerate(generated) if not clean(text)}
    assert blank and {read[i].reason for i in blank} == {"blank_text"}
    kept = [(text, read[i]) for i, text in enumerate(generated) if i not in blank]
    assert not [(text, row) for text, row in kept if (row.title, row.text) != (clean(text),) * 2][:3]


def test_spark_handles_lone_surrogates(spark):
    lines = [('{"rating": 5, "text": "<br>half \\ud83d", "title": "\\udc00é"}', "x")]
    (row,) = judge(parse_lines(spark.createDataFrame(lines, "line string, category string"))).collect()
    assert row.text.startswith("half ") and row.title.endswith("é") and row.reason is None


def test_java_expressions_are_fast(spark):
    java, clock = (
        spark._jvm.java.util.regex.Pattern,
        spark._jvm.java.lang.management.ManagementFactory.getThreadMXBean(),
    )

    def seconds(pattern: str, text: str) -> float:
        matcher, took = java.compile(pattern).matcher(text), []
        for _ in range(3):
            start = clock.getCurrentThreadCpuTime()
            matcher.replaceAll("")
            took.append((clock.getCurrentThreadCpuTime() - start) / 1e9)
        return max(min(took), 0.005)

    def grown(pattern: str, piece: str, most: int = 48_000) -> float:
        short, long = (seconds(pattern, piece * (size // len(piece)) + "\0") for size in (most // 4, most))
        return long / short

    sources = [(Path(module.__file__).read_text(), vars(module)) for module in (etl, language, near_repeats)]
    patterns = {pattern for source in sources for kind, _, pattern in in_python(*source) if kind == "java"}
    assert len(patterns) == 5 and None not in patterns and grown(r"\s+!", " ", 6_000) > 10  # linear: 4, quadratic: 16
    pieces = (" ", "a", "'", "é", "<a ", "a.jsonl", "\n", "a ")
    assert not [(pattern, piece) for pattern in patterns for piece in pieces if grown(pattern, piece) > 10]


# Origins of characters


@given(TEXTS)
@settings(deadline=None, max_examples=500)
def test_tracing_cleans_the_text_and_maps_each_character_to_its_origin(text):
    traced = trace(text)
    assert traced.text == clean(text) and len(traced.starts) == len(traced.ends) == len(traced.text)
    assert list(traced.starts) == sorted(traced.starts) and list(traced.ends) == sorted(traced.ends)
    for char, start, end in zip(*traced, strict=True):
        origin = text[start:end].replace("]]", "")  # an accent may join the last letter of a name in a link
        assert 0 <= start < end <= len(text) and (char == " " or char in clean(origin))


# Where the rule applies


MESSY = "I don&#39;t <b>love</b> it&amp;nbsp;<but cafe\u0301 did>\u200b [[VIDEOID:x1]]"
PLAIN = "I don't love it <but café did>"


def test_training_and_the_release_use_clean_texts(tmp_path):
    pd.DataFrame({"text": [MESSY, "<br>"], "label": [1, 0]}).to_parquet(tmp_path / "a.parquet")
    assert read_channel(tmp_path)["text"].tolist() == [PLAIN]
    lines = [{"rating": 5, "title": MESSY, "text": MESSY}, {"label": 1, "text": MESSY + " long" * 100}]
    lines.append({"label": 1, "text": MESSY + " long" * MAX_CHARACTERS})
    (tmp_path / "Toys.jsonl").write_text("\n".join(map(json.dumps, lines)))
    counts = Counter()
    starred, plain = read_texts(str(tmp_path / "Toys.jsonl"), counts).itertuples()
    assert counts == {"texts": 2, "too_short": 0, "too_long": 1}
    assert starred.title == starred.body == PLAIN
    assert plain.text.startswith(PLAIN) and len(plain.text) <= MAX_CHARACTERS


@pytest.mark.parametrize(
    "title", ["<br />", "&nbsp;", "Great!<br>", "Great&nbsp;", "Wow &#33;", "[[VIDEOID:x]]", "<b>Fine</b>"]
)
def test_the_release_and_the_samples_join_title_and_body_alike(tmp_path, title):
    (tmp_path / "Toys.jsonl").write_text(json.dumps({"rating": 5, "title": title, "text": "<p>Works."}))
    (row,) = read_texts(str(tmp_path / "Toys.jsonl")).itertuples()
    assert row.text == review_text(row.title, row.body) == review_text(clean(title), "Works.")


@pytest.fixture(scope="module")
def model():
    return inference.model_fn(released_folder())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return inference.model_fn(write_tiny_model(tmp_path_factory.mktemp("tiny")))


def ask(model, text: str, **more) -> dict:
    data = inference.input_fn(json.dumps({"inputs": text} | more))
    return json.loads(inference.output_fn(inference.predict_fn(data, model)))[0]


@pytest.mark.parametrize(
    ("sent", "read"), [(MESSY, PLAIN), ("na&iuml;ve", "naïve"), ("Tre\u0300s bon<br>", "Très bon")]
)
def test_a_messy_text_and_its_clean_version_get_the_same_answer(model, sent, read):
    assert ask(model, sent) == ask(model, read)


def test_text_between_angle_brackets_affects_the_answer(model):
    told = ask(model, "Great sound<but awful battery, it died>", explain=True)
    assert told["tokens"] >= 9 and len(told["explanation"]) >= 7
    assert told["scores"]["POSITIVE"] < ask(model, "Great sound")["scores"]["POSITIVE"]


WORDS = [
    *(
        "good",
        "don't",
        "isn\u2019t",
        "na&iuml;ve",
        "don&#39;t",
        "Tre\u0300s",
        "Très",
        "q\u0303ue",
        "stra\u00dfe",
        "ﬁne",
    ),
    *("\u0130stanbul", "नमस्ते", "สวัสดี", "\u1112\u1161\u11ab\u1100\u1173\u11af", "한글", "質量很差", "がっかり"),
    *("می\u200cخواهم", "soft\u00adware", "zero\u200bwidth", "\U0001d400bold", "e&#769;te&#769;", "5&frac12;"),
    *("👍", "👍🏽", "👩\u200d🔬", "❤\ufe0f", "🇫🇷", "1\ufe0f\u20e3", "!!!", "&hearts;", "&#128512;"),
]
GAPS = [" ", ", ", ". ", "<br>", "&nbsp;", " (", ") ", "\u3000", "\n", " <b>", "</b> ", "\t", " \u200b", "&lt;br /&gt;"]
SENT = st.tuples(st.sampled_from(WORDS), st.sampled_from([*GAPS, "[[VIDEOID:a1]]"]))


def words_said(text: str, told: dict) -> list[str]:
    "Return the words of an explanation as they are in the text."
    return [text[word["start"] : word["end"]] for word in told["explanation"]]


@pytest.mark.parametrize("which", ["model", "tiny"])
@given(sent=st.lists(SENT, min_size=1, max_size=10), before=st.sampled_from(["", *GAPS]))
@settings(deadline=None, max_examples=100)
def test_an_explanation_quotes_the_words_as_sent(request, which, sent, before):
    text = before + "".join(word + gap for word, gap in sent)
    told = ask(request.getfixturevalue(which), text, explain=True)
    assert words_said(text, told) == [word for word, _ in sent]


def test_each_word_of_a_link_text_has_its_own_position(model):
    text = "See [[ASIN:B00X My caf\u00e9 lamp]], it broke"
    assert words_said(text, ask(model, text, explain=True)) == ["See", "My", "caf\u00e9", "lamp", "it", "broke"]


@given(st.lists(SENT, min_size=20, max_size=40), st.integers(1, 100))
@settings(deadline=None, max_examples=20)
def test_word_groups_in_a_long_review_start_and_end_at_word_boundaries(tiny, sent, times):
    sent = sent * times
    text, starts, ends = "", set(), set()
    for word, gap in sent:
        starts.add(len(text))
        ends.add(len(text + word))
        text += word + gap
    told = ask(tiny, text, explain=True)
    assert all(word["start"] in starts and word["end"] in ends for word in told["explanation"])
    assert all(0 <= part["start"] < part["end"] <= len(text) for part in told.get("parts", []))


@pytest.mark.parametrize("word", ["good", "na&iuml;ve", "Tre\u0300s", "質量"])
@pytest.mark.parametrize("gap", ["&nbsp;", "<br>", " "])
def test_a_truncated_review_is_flagged_and_ends_at_a_word_boundary(tiny, word, gap):
    text = (word + gap * 40) * 1_500
    told = ask(tiny, text, explain=True)
    assert told["truncated"] and len(text) > MAX_CHARACTERS
    assert all(said.startswith(word) and said.endswith(word) for said in words_said(text, told))
