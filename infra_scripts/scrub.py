"""Take out of a text what identifies an account, a person or a machine, so that the text can be published."""

import getpass
import re
from collections.abc import Iterable
from pathlib import Path

from sentiment_engine.deploy.account import ACCOUNT_ID

# In order: a longer form comes before a shorter one that it contains. Each pattern takes too much rather than too
# little, and no replacement matches a pattern, so that scrubbing twice changes nothing.
PATTERNS: tuple[tuple[str, str], ...] = (
    (r"(https?://[^\s?#'\"<>]+)\?[^\s'\"<>]*[^\s'\"<>.]", r"\1?<query>"),  # presigned URLs carry keys
    (r"(?i)(encoded authorization failure message: *)[^\s<]\S*", r"\1<encoded>"),
    (r"(?i)(\b(?:aws_)?(?:secret_access_key|session_token|security-token)\b\W{1,4})[^\s<'\"]+", r"\1<secret>"),
    # Who acts: arn:aws:iam::…:user/path/ada, arn:aws:sts::…:assumed-role/Admin/ada, or the same without the ARN.
    (r"\b(user|assumed-role|federated-user)/[^\s'\",;:()<>\]]+", r"\1/<name>"),
    (r"[^\s@<>()\[\]\",;:]+@[^\s@<>()\[\]\",;:/]+\.[^\s@<>()\[\]\",;:/.]+", "<e-mail>"),
    # A role's id may be followed by the session's name, which is often a person's: AROA…:ada.lovelace.
    (r"\b(?:AKIA|ASIA|ABIA|ACCA|AGPA|AIDA|AIPA|ANPA|ANVA|APKA|AROA|ASCA)[A-Z0-9]{8,}(?::[\w+=,.@-]+)?", "<key-id>"),
    (r"(?<![A-Za-z0-9/+])(?=[A-Za-z0-9/+]*[a-z])(?=[A-Za-z0-9/+]*[A-Z])[A-Za-z0-9/+]{40,}={0,2}", "<secret>"),
    (r"\b[A-Za-z0-9-]+(\.execute-api\b)", r"<api>\1"),
    (r"\b((?:execute-api|apis|restapis)/)[A-Za-z0-9]{6,}", r"\1<api>"),
    (r"\b[A-Za-z0-9]+(\.cloudfront\.net\b)", r"<distribution>\1"),
    (r"(?<![A-Za-z0-9])E[A-Z0-9]{11,}(?![A-Za-z0-9])", "<distribution>"),
    (r"(?<![A-Za-z0-9])Z[A-Z0-9]{9,}(?![A-Za-z0-9])", "<zone>"),
    (r"\+[\s(]*\d(?:[\s().-]{0,3}\d){6,14}", "<phone>"),
    (r"(?<!\d)\d{4}-\d{4}-\d{4}(?!\d)", "<account>"),  # as the console writes it
    (r"(?<!\d)\(?\d{3}\)?[ .-]{1,2}\d{3}[ .-]\d{4}(?!\d)", "<phone>"),
    (ACCOUNT_ID, "<account>"),
    (r"\d{9,}", "<number>"),  # a national phone number, or an account id beside other digits
    (r"(?<![\d.])(?!127\.)\d{1,3}(?:\.\d{1,3}){3}(?![\d.])", "<address>"),
    # IPv6: in full, perhaps with IPv4 at its end; shortened; shortened at the beginning. ::1 stays.
    (r"(?<![0-9A-Za-z])(?:[0-9A-Fa-f]{1,4}:){6,}(?:[0-9A-Fa-f]{1,4}|<[a-z-]+>)(?![0-9A-Za-z])", "<address>"),
    (r"(?<![0-9A-Za-z])(?:[0-9A-Fa-f]{1,4}:)+:(?:[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4})*)?(?![0-9A-Za-z])", "<address>"),
    (r"(?<![0-9A-Za-z])::[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4})+(?![0-9A-Za-z])", "<address>"),
    (r"(?:/(?:home|Users)/|[A-Za-z]:\\Users\\)[^\s/\\'\":<>]+", "~"),
)
_COMPILED = [(re.compile(pattern), replacement) for pattern, replacement in PATTERNS]
LEAST_KNOWN = 5  # characters: a shorter value, such as a user called "me", is part of too many words


def places() -> dict[str, str]:  # path or name: replacement
    "Name the folders and the user of this machine."
    root, home = Path(__file__).resolve().parent.parent, Path.home()
    found = {str(root): "."} | ({str(home): "~"} if home != Path(home.anchor) else {})
    try:
        return found | {getpass.getuser(): "<user>"}
    except (OSError, KeyError):  # a container's user without a name
        return found


def scrub(
    text: str,
    known: Iterable[str] = (),  # values that are known to identify, such as the API's id
) -> str:
    "Replace whatever identifies an account, a person or a machine. Scrubbing twice changes nothing."
    told = dict.fromkeys(known, "<removed>") | places()
    for value in sorted(told, key=len, reverse=True):
        if len(value) >= LEAST_KNOWN:
            text = text.replace(value, told[value])
    for pattern, replacement in _COMPILED:
        text = pattern.sub(replacement, text)
    return text
