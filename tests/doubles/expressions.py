"Every regular expression of the product, and texts designed to slow one down."

import ast
import gc
import re
import re._constants as kinds
import re._parser as parser
from collections.abc import Callable, Iterator
from itertools import islice, product
from time import thread_time

CALLS = {"compile", "sub", "subn", "match", "search", "fullmatch", "finditer", "findall", "split"}
SPARK = {"regexp_replace", "regexp_extract", "regexp_extract_all", "regexp_count", "regexp_like", "rlike", "split"}
LITERAL = re.compile(  # of JavaScript, where a value may occur
    r"(?:(?<=[(,=:;!&|?{}\[>]) ?|\breturn )/(?![/*])((?:[^/\\\[\n]|\\.|\[(?:[^\]\\\n]|\\.)*\])+)/[gimsuy]*"
)


def in_python(source: str, names: dict) -> Iterator[tuple[str, str, str | None]]:
    "Yield each expression: re or java, its source, and its value (None: known only at run time)."
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner, name = ast.unparse(node.func.value), node.func.attr
        if owner == "re" and name in CALLS:
            kind, place = "re", 0
        elif name in SPARK and (owner == "F" or name in ("rlike", "regexp_like")):
            kind, place = "java", int(owner == "F")
        else:
            continue
        written = ast.unparse(node.args[place])
        try:
            yield kind, written, eval(written, dict(names))
        except NameError:
            yield kind, written, None


def in_javascript(source: str) -> Iterator[tuple[str, str | None]]:
    "Yield each expression: its source, and its value (None: known only at run time)."
    yield from ((found[1], found[1]) for found in LITERAL.finditer(source))
    yield from ((found[1], None) for found in re.finditer(r"new RegExp\((.*?), '\w+'\)", source))


def _one_of(items: list) -> str:
    "Return a character of a set."
    inside = parser.SubPattern(parser.State())
    inside.append((kinds.IN, items))
    from re import _compiler

    tells = _compiler.compile(inside)
    return next(filter(tells.fullmatch, map(chr, (97, 48, 32, *range(33, 127), 10, 0xE9, *range(0x2FF, 0x3100)))))


def _paths(nodes) -> list[str]:
    "Return texts that reach each part of an expression; the last one matches all of it."
    done, found = "", []
    for kind, value in nodes:
        inner: list[list[str]] = []
        if kind in (kinds.LITERAL, kinds.NOT_LITERAL):
            inner = [[chr(value) if kind is kinds.LITERAL else "ab"[value == ord("a")]]]
        elif kind is kinds.IN:
            inner = [[_one_of(value)]]
        elif kind is kinds.ANY:
            inner = [["a"]]
        elif kind in (kinds.MAX_REPEAT, kinds.MIN_REPEAT, kinds.POSSESSIVE_REPEAT):
            inner = [_paths(value[2])]
            found += [done, *inner[0]]
            inner[0][-1] *= max(value[0], 1)
        elif kind in (kinds.SUBPATTERN, kinds.ATOMIC_GROUP):
            inner = [_paths(value[-1] if kind is kinds.SUBPATTERN else value)]
        elif kind is kinds.BRANCH:
            inner = [_paths(branch) for branch in value[1]]
        found += [done + text for branch in inner for text in branch]
        done += inner[0][-1] if inner else ""
    return [*found, done]


MEMBERS = {r"\p{Nd}": "٣", r"\p{Cf}": "\u200b", r"\p{Pd}": "–", r"\p{Z}": "\u00a0"}  # the page's classes


def pieces(pattern: str) -> list[str]:
    "Return the literal texts of an expression, and a few that match nothing."
    for written, member in MEMBERS.items():
        pattern = pattern.replace(written, member)  # Python's parser does not support such classes
    found = dict.fromkeys([" ", "a", "0", "!", "\n", *_paths(parser.parse(pattern))])
    found |= dict.fromkeys(char for text in list(found) for char in text)
    return sorted(filter(None, found), key=len)


def attacks(parts: list[str], size: int) -> Iterator[str]:
    "Yield texts of about `size` characters: one or two repeated parts after a third."
    pumps = [*parts[:14], *parts[-4:]]
    for head, first, second in product(["", *parts[-10:]], pumps, ["", *pumps]):
        half = size // (2 if second else 1)
        yield head + first * (half // len(first)) + (second and second * (half // len(second)))
    for first, second in product(pumps, pumps):
        yield (first + second) * (size // len(first + second)) + "\0"


def seconds(run: Callable[[str], object], text: str) -> float:
    "Return the processor time that `run` takes in this thread, the minimum of three tries."
    took = []
    gc.disable()  # its time grows with other tests' leftovers
    for _ in range(3):
        start = thread_time()
        run(text)
        took.append(thread_time() - start)
    gc.enable()
    return max(min(took), 20e-6)


LIMIT = 64  # of growth
SIZES = (750, 3_000, 12_000, 48_000)


def growth(run: Callable[[str], object], parts: list[str]) -> tuple[float, str]:
    "Return the worst slowdown for 16 times the text (linear: 16, quadratic: 256), and the text that caused it."
    suspects, worst = {}, (0.0, "")
    for size in (24, 120, 600):
        for place, text in enumerate(attacks(parts, size)):
            start = thread_time()
            run(text)
            suspects[place] = (thread_time() - start) / size
            if suspects[place] * size > 0.2:
                return float("inf"), text[:80]
    for place in sorted(suspects, key=suspects.get)[-4:]:
        texts = [next(islice(attacks(parts, size), place, None)) for size in SIZES]
        for shorter, longer in zip(texts, texts[2:], strict=False):
            took = [(seconds(run, shorter), seconds(run, longer))]
            # Other programs may slow a measurement down, but not every time.
            while took[-1][1] / took[-1][0] > LIMIT and len(took) < 5:
                took.append((seconds(run, shorter), seconds(run, longer)))
            worst = max(worst, (min(b / a for a, b in took), longer[:80]))
            if worst[0] > LIMIT:
                return worst
    return worst
