"No test waits for ever or depends on the machine's speed; conftest.py ends waits that this does not find."

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parents[1].rglob("*.py"))
ENDLESS = {"wait", "join", "result", "communicate"}  # methods that wait for ever without a limit
CLOCKS = {"monotonic", "perf_counter"}


def calls(tree: ast.AST, *names: str) -> bool:
    "Check for a call of a function of the module `time`, or of a method, with one of these names."
    found = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return any(ast.unparse(function) == f"time.{name}" for function in found for name in names)


def faults(tree: ast.AST) -> Iterator[tuple[int, str]]:
    "Yield the line of each wait without a limit and of each assertion on elapsed time."
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ENDLESS:
            limits = [*node.args, *(word for word in node.keywords if word.arg in ("timeout", "WaiterConfig"))]
            if not limits and not isinstance(node.func.value, ast.Constant):
                yield node.lineno, f"{node.func.attr}() has no limit"
        elif isinstance(node, ast.While) and calls(node, "sleep") and not calls(node, *CLOCKS):
            yield node.lineno, "a loop that sleeps has no limit"
        elif isinstance(node, ast.Assert) and isinstance(node.test, ast.Compare | ast.BoolOp):
            spans = [each for each in ast.walk(node.test) if isinstance(each, ast.BinOp) and calls(each.left, *CLOCKS)]
            if any(isinstance(span.op, ast.Sub) for span in spans):
                yield node.lineno, "an assertion on how long something took"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_wait_has_a_limit(file):
    assert list(faults(ast.parse(file.read_text(encoding="utf-8")))) == []


WRONG = """
process.wait()
thread.join()
asked.result()
process.communicate("input", 5) or other.communicate()
while not found(): time.sleep(1)
assert time.monotonic() - begun < 3
"""
RIGHT = """
process.wait(5), thread.join(timeout=5), asked.result(5), ", ".join(words), engine.wait("STOPPED")
while not found():
    assert time.monotonic() < end
    time.sleep(1)
"""


def test_waits_with_and_without_a_limit_are_distinguished():
    assert [line for line, _ in sorted(faults(ast.parse(WRONG)))] == [2, 3, 4, 5, 6, 7]
    assert list(faults(ast.parse(RIGHT))) == []
