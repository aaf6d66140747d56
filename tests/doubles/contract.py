"Checks answers of the API against its own description."

import functools
from collections.abc import Mapping

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from sentiment_engine.service.api import ROUTES
from sentiment_engine.service.openapi import openapi
from sentiment_engine.settings import Settings

DOCUMENT = openapi(Settings(), ROUTES)


def described(method: str, path: str, status: int) -> dict:
    "Return the document's entry for an answer. Fails if there is none."
    if path not in DOCUMENT["paths"]:
        answers = {"404": DOCUMENT["components"]["responses"]["NotFound"]}
    elif method.lower() not in DOCUMENT["paths"][path]:
        answers = {"405": DOCUMENT["components"]["responses"]["MethodNotAllowed"]}
    else:
        answers = DOCUMENT["paths"][path][method.lower()]["responses"]
    assert str(status) in answers, f"{method} {path} answered {status}, which its description does not know"
    return answers[str(status)]


@functools.cache
def _validator(method: str, path: str, status: int) -> Draft202012Validator:
    schema = described(method, path, status)["content"]["application/json"]["schema"]
    whole = {"components": DOCUMENT["components"], "allOf": [schema]}
    return Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER)


def check(method: str, path: str, status: int, headers: Mapping[str, str], body: dict):
    "Fail unless the document describes this answer."
    path = path if path in ROUTES else ""  # all unknown ones are the same
    for name, header in described(method, path, status).get("headers", {}).items():
        assert not header.get("required") or name.lower() in headers, f"{status} without the header {name}"
    if wait := body.get("error", {}).get("retryAfterSeconds"):
        assert headers["retry-after"] == str(wait)
    error = best_match(_validator(method, path, status).iter_errors(body))
    assert error is None, f"{method} {path} {status}: {error.message} at {error.json_path}, in {body}"
