"No text makes a regular expression slow: matching four times as much text takes about four times as long."

import ast
import importlib
import re
from contextlib import suppress
from functools import partial

import pytest
import regex

from sentiment_engine.data import cleaning, quoting
from sentiment_engine.deploy import scrub
from sentiment_engine.model import inference, released
from sentiment_engine.service import notifications
from tests import ROOT
from tests.doubles.expressions import LIMIT, growth, in_javascript, in_python, pieces

SCRIPTS = [
    ROOT / "website/app.py",
    ROOT / "infra_scripts/make/release_model.py",
    *sorted(ROOT.glob("infra_scripts/*.py")),
    *sorted(ROOT.glob("lambdas/*/handler.py")),
]
PAGE = (ROOT / "website/sentiment.js").read_text()
AT_RUN_TIME = {  # expressions with a value inside: source text → expression
    "pattern": scrub.PATTERNS[0][0],  # the others are in the module's table
    "f\"[\\\\s\\\\S][{''.join(sorted(joins))}]{{0,31}}\"": cleaning._letter().pattern,
    "re.escape(settings.prefix) + '-([0-9a-f]{12})'": "sentiment-([0-9a-f]{12})",
    "f'{prefix}-((trial-)?[0-9a-f]{{12}}|{STANDING})'": "sentiment-((trial-)?[0-9a-f]{12}|serverless)",
    "f'\"(/?)({pattern})\"'": r'"(/?)(a\.js|b\.css)"',
    "f'(?<![A-Za-z0-9-]){re.escape(prefix)}(?![A-Za-z0-9])'": "(?<![A-Za-z0-9-])lab(?![A-Za-z0-9])",
    "f'/aws/lambda/{prefix}-({functions})|/aws/sagemaker/Endpoints/{prefix}-({run})'": (
        "/aws/lambda/lab-(start-model-service|shutdown-endpoint)|/aws/sagemaker/Endpoints/lab-((trial-)?[0-9a-f]{12}|serverless)"
    ),
}
CELL = '(?:"([^"]*(?:""[^"]*)*)"|([^,\\n]*))(,|\\n|%s)'  # of a table, on both pages
AT_RUN_TIME |= {
    "f'" + CELL.replace("\\", "\\\\").replace(",", "{cut}") % r"\\Z" + "'": CELL % r"\Z",
    "`" + CELL.replace("\\", "\\\\").replace(",", "${cut}") % "$" + "`": CELL % "$",
}
NOT_FOR_VISITORS = {  # their input comes from the owner or from the machine
    r"(https?|s3)://.+/[^/?]*\{category\}[^/?]*\.jsonl(\.gz)?": "the address of the raw reviews",
    r"Kernel Module.*?\s([0-9]+(?:\.[0-9]+)+)\s": "what the graphics driver says of itself",
}


def compiled(value: object) -> list[str]:
    "Find the expressions in a value of a module, such as a table of them."
    if isinstance(value, list | tuple):
        return [pattern for each in value for pattern in compiled(each)]
    return [value.pattern] if isinstance(value, re.Pattern) else []


def known_expressions() -> dict[tuple[str, str, str], str]:
    "Find every expression of the package, the scripts and the page: file, kind and source text → expression."
    found = {}
    ours = [p for p in sorted((ROOT / "sentiment_engine").rglob("*.py")) if p.parent.name != "local"]
    for path in [*ours, *SCRIPTS]:
        names = {}
        if path in ours:
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            names = vars(importlib.import_module(module))
        for kind, written, pattern in in_python(path.read_text(), names):
            found[path.name, kind, written] = AT_RUN_TIME.get(written) if pattern is None else pattern
        for name, value in names.items():
            for number, pattern in enumerate(compiled(value)):
                if pattern not in found.values():
                    found[path.name, "re", f"{name} {number}"] = pattern
    for written, pattern in in_javascript(PAGE):
        found["sentiment.js", "re", written] = AT_RUN_TIME.get(written) if pattern is None else pattern
    return found


KNOWN = known_expressions()


def test_every_expression_is_listed():
    unknown = [key for key, pattern in KNOWN.items() if pattern is None]
    assert not unknown, f"add them to AT_RUN_TIME: {unknown}"
    uses = len(
        re.findall(r"\.(?:test|match|matchAll|replace|replaceAll|split|search)\(/|/[gi]?\.(?:test|exec)\(", PAGE)
    )
    assert uses <= sum(name == "sentiment.js" for name, *_ in KNOWN), "an expression of the page is not found"
    assert not set(NOT_FOR_VISITORS) - set(KNOWN.values()) and not set(AT_RUN_TIME.values()) - set(KNOWN.values())


TRIED = {key: pattern for key, pattern in KNOWN.items() if key[1] == "re" and pattern not in NOT_FOR_VISITORS}


@pytest.mark.parametrize(
    ("key", "pattern"), TRIED.items(), ids=[f"{name} {written[:30]}" for name, _, written in TRIED]
)
def test_each_expression_takes_linear_time(key, pattern):
    compiled = (regex if r"\p{" in pattern else re).compile(pattern)  # the page's classes of letters
    grown, text = growth(lambda text: sum(1 for _ in compiled.finditer(text)), pieces(pattern))
    assert grown <= LIMIT, f"{text!r}…"


def of_the_app(name: str):
    "Return a function of the Streamlit page without running the page."
    tree = ast.parse((ROOT / "website/app.py").read_text())
    names = {"re": re}
    wanted = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    exec(compile(ast.Module(wanted, []), "app.py", "exec"), names)
    return names[name]


def phone(text: str):
    with suppress(notifications.BadPhone):
        notifications.e164(text, ("US",))


CLEANING = [part for pattern, _ in cleaning.STEPS for part in pieces(pattern.pattern)]
CLEANING += ["<a", "=", "&amp;", "[[ASIN:", "e\u0301", "\u0301", "\u0327", "\u1161", "\u11a8", "\u200d"]
FUNCTIONS = {
    "clean": (cleaning.clean, CLEANING),
    "trace": (cleaning.trace, CLEANING),
    "word_spans": (inference.word_spans, ["a", "\u0301", "'", "!", " ", "\u4e0d", "\U0001f600", "\u200d", "a'a", "'!"]),
    "runs_of_words": (quoting.runs_of_words, ["a", " ", "a ", "!", "\u0130"]),
    "mask": (notifications.mask, ["1", " ", "(", "+", "1(", "a", "+1", "1 2 3 "]),
    "e164": (phone, ["1", "+", " ", "(", "+1", "x", ";ext=", "\uff11"]),
    "rows_of": (
        partial(of_the_app("rows_of"), cuts=",;\t"),
        ['"', '""', ",", "\n", "a", '"a', 'a"', ',"', "\r", "\t"],
    ),
    "one_or_two_sentences": (released.SENTENCE.split, ["a", ".", " ", ". ", "\n", "! "]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function_takes_linear_time(name):
    run, parts = FUNCTIONS[name]
    grown, text = growth(run, sorted(dict.fromkeys(parts), key=len))
    assert grown <= LIMIT, f"{text!r}…"


@pytest.mark.parametrize("slow", [r"<a(\s+[^<>]*=[^<>]*)?\s*/?>", r"(a+)+b", r"x\s*\d*\s*y", r"\s+$"])
def test_slow_expressions_are_found(slow):
    assert growth(re.compile(slow).search, pieces(slow))[0] > LIMIT
