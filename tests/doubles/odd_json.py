"Unusual JSON: any values in the fields of a request, in any encoding."

import json

from hypothesis import strategies as st

NAMES = [
    "inputs",
    "text",
    "explain",
    "parameters",
    "options",
    "name",
    "phone",
    "top_k",
    "truncation",
    "function_to_apply",
]
TEXTS = st.text(st.characters(exclude_categories=()), max_size=20) | st.sampled_from(
    ["love", "\udc00", "\ud83d", "\x00", "\ufeff", "half \udc00 a character", "+12025550123", "softmax"]
)
NUMBERS = st.sampled_from([0, -1, 2, 10**400, 1.5, float("nan"), float("inf"), -float("inf"), 1e308]) | st.integers()
KEYS = st.sampled_from(NAMES) | TEXTS
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
REQUESTS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4) | VALUES
FIXED = [
    b"",
    b" ",
    b"\xef\xbb\xbf",
    b'\xef\xbb\xbf{"inputs": "love"}',
    b'{"inputs": "love", "inputs": "\\udc00"}',
    b'{"inputs": 1, "inputs": "love"}',
    b'{"inputs": ' + b"9" * 5000 + b"}",
    b'{"inputs": 1e999999, "explain": NaN}',
    b'{"inputs": ' + b"[" * 9_000 + b"]" * 9_000 + b"}",
    b'{"inputs": "love", "parameters": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}",
    '{"inputs": "love"}'.encode("utf-16"),
    '{"inputs": "love"}'.encode("utf-32"),
    b'{"inputs": "\xed\xb0\x80"}',
    b'{"inputs": "love"}\x00',
    b"[1, 2]",
    b"null",
    b'"love"',
    b'{"inputs": ["love", null, "\\udc00"]}',
    b'{"\\udc00": "\\udc00", "inputs": "\\udfff"}',
    b'{"phone": "\\udc00", "name": "\\udc00"}',
]


def _dressed(request: object, before: bytes, after: bytes, encoding: str) -> bytes:
    return before + json.dumps(request).encode(encoding) + after


BODIES = st.sampled_from(FIXED) | st.builds(
    _dressed,
    REQUESTS,
    st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf", b" \n"]),
    st.sampled_from([b"", b"", b"", b"}", b"\x00"]),
    st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16"]),
)
