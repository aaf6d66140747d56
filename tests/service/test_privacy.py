"A phone number leaves no trace: the test searches all logs, metrics, answers and stored data of a whole visit."

import base64
import hashlib
import itertools
import json
import random
import re
import unicodedata
import zlib
from urllib.parse import parse_qs, unquote

import phonenumbers
import pytest

from sentiment_engine.service.notifications import NotSent, Sns, Textbelt, e164
from sentiment_engine.settings import Settings
from tests.doubles.engine_double import World, aws_error, logged

COUNTRIES = {"US": "1", "GB": "44", "DE": "49", "FR": "33", "IN": "91", "IE": "353", "AU": "61"}
FORMS = {  # ways in which a provider may repeat a number
    "E.164": lambda n: n,
    "without +": lambda n: n[1:],
    "national": lambda n: phonenumbers.format_number(phonenumbers.parse(n), phonenumbers.PhoneNumberFormat.NATIONAL),
    "dashes": lambda n: "‑".join(n),
    "slashes": lambda n: re.sub(r"(\d{3})", r"\1/", n),
    "dots and spaces": lambda n: re.sub(r"(\d{2})", "\\1\u00a0. ", n),
    "in a URL": lambda n: "%2B" + n[1:6] + "%20" + n[6:],
    "in JSON": lambda n: json.dumps(list(n[1:])),
    "full width": lambda n: "".join(chr(ord(c) + 0xFEE0) for c in n),
}


def random_number(rng: random.Random) -> str:
    "Make a mobile number that exists."
    while True:
        country = rng.choice(list(COUNTRIES))
        digits = "".join(str(rng.randrange(10)) for _ in range(rng.choice([9, 10, 11])))
        try:
            return e164(f"+{COUNTRIES[country]}{digits}", Settings().sms_countries)
        except ValueError:
            continue


def hashes(number: str) -> set[str]:
    "Return the first and last characters of all usual hashes of a number: more than 24 bits of each."
    parsed = phonenumbers.parse(number)
    national = str(parsed.national_number)
    forms = {number, number[1:], national, f"0{national}", f"00{number[1:]}"}
    found = set()
    for form, name in itertools.product(forms, ("md5", "sha1", "sha224", "sha256", "sha512", "blake2b", "sha3_256")):
        raw = hashlib.new(name, form.encode()).digest()
        for text in (raw.hex(), base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode()):
            found |= {text[:8], text[-8:]}
    for form in forms:
        found |= {f"{check(form.encode()):08x}" for check in (zlib.crc32, zlib.adler32)}
        found |= {str(check(form.encode())) for check in (zlib.crc32, zlib.adler32)}
    return found


def traces(number: str, text: str) -> list[str]:
    "Find traces of a number in `text`: more than seven digits in a row, with any separators, or a hash."
    digits = number[1:]
    windows = {digits[i : i + 8] for i in range(len(digits) - 7)}
    plain = "".join(str(int(c)) if c.isdecimal() else c for c in f"{text} {unquote(text)}")
    return [w for w in windows if re.search(r"[\W_]{0,5}".join(w), plain)] + [h for h in hashes(number) if h in text]


def test_the_search_finds_every_form_of_a_number():
    number = "+12025550123"
    for form, write in FORMS.items():
        assert traces(number, f"no way to {write(number)}!"), form
    for hidden in (hashlib.sha256(number.encode()).hexdigest()[:16], str(zlib.crc32(number.encode()))):
        assert traces(number, f"subscriber {hidden}")
    assert not traces(number, "no way to …23, run 0f3c5a7e9b1d")


class Recorder:
    "A DynamoDB client that records keys, paths and conditions of calls. The tests check values in the table."

    def __init__(self, dynamodb):
        self.dynamodb, self.said = dynamodb, []

    def __getattr__(self, operation):
        def call(**given):
            named = {k: v for k, v in given.items() if k not in ("Item", "ExpressionAttributeValues")}
            self.said.append(json.dumps(named, default=str))
            return getattr(self.dynamodb, operation)(**given)

        return call


def stored(world) -> str:
    "Return the whole table, except the one place that contains a number until its message is sent."
    items = world.dynamodb.scan(TableName=world.settings.table)["Items"]
    for item in items:
        for entry in item.get("subscribers", {}).get("M", {}).values():
            entry["M"].pop("to")
    return json.dumps(items)


class Chatty:
    "A provider that refuses, and repeats the number in every form."

    def __init__(self, rng: random.Random):
        self.rng = rng

    def text(self, to: str) -> str:
        return " | ".join(write(to) for write in FORMS.values())

    def fetch(self, request, timeout):
        if request.data is None:
            return {"quotaRemaining": 7}
        said = self.text(parse_qs(request.data.decode())["phone"][0])
        how = self.rng.randrange(4)
        if how == 0:
            return {"success": False, "error": said}
        raise [OSError(said), ValueError(said), RuntimeError(said)][how - 1]

    def publish(self, PhoneNumber, **_):
        raise aws_error("InvalidParameter", f"Invalid parameter: PhoneNumber Reason: {self.text(PhoneNumber)}")


PARTED = {  # by words, by letters or by more than any expression allows
    "in a sentence": lambda n: f"code {n[1:4]}, area {n[4:7]}, the rest is {n[7:]}",
    "letters between": lambda n: "x".join(n),
    "wide apart": lambda n: " - - - - - ".join(n),
    "as entities": lambda n: "".join(f"&#{ord(c)};" for c in n),
    "in circles": lambda n: "".join("⓪①②③④⑤⑥⑦⑧⑨"[int(c)] for c in n[1:]),
    "above the line": lambda n: "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(c)] for c in n[1:]),
    "halves of a sentence": lambda n: f"{n[:6]} and then {n[6:]}",
}


@pytest.mark.parametrize("way", [*FORMS, *PARTED])
def test_at_most_six_digits_are_logged_with_any_separators(monkeypatch, caplog, way):
    rng, world = random.Random(way), World(monkeypatch)
    number = random_number(rng)
    said = (FORMS | PARTED)[way](number)
    fetch = {"success": False, "error": f"no way to {said}, and secret-key is spent"}
    world.engine.__dict__["sender"] = Textbelt("http://x", "secret-key", pauses=(), fetch=lambda *_: fetch)
    world.in_service(number)
    (record,) = [record for record in caplog.records if record.message == "message not sent"]
    assert sum(unicodedata.numeric(c, -1) >= 0 for c in record.reason) <= 6 and "no way to" in record.reason
    assert "secret-key" not in record.reason


def visit(world, number: str, say):
    "Simulate a whole visit with every possible refusal."
    say(world.start(number[:-4], "Ada"))  # some digits are missing
    say(world.start(number + "55555", "Ada"))
    world.sagemaker.errors["create_endpoint"] = [aws_error("InternalFailure", "no luck")]
    say(world.start(number, "Ada"))
    say(world.start(number, "Ada"))
    say(world.start(number, "Ada"))
    say(stored(world), world.status())
    world.endpoint_becomes("InService")
    say(world.request("POST", "/predict", {"inputs": "ok"}), stored(world))
    world.pass_time(1900, reconcile=True)
    say(world.start(number), world.status(), stored(world))
    world.endpoint_becomes("Failed", "no luck")
    say(world.reconcile(), stored(world))


@pytest.mark.parametrize("provider", ["textbelt", "sns", "takes it"])
def test_a_visit_leaves_no_trace_of_a_number(monkeypatch, caplog, capfd, provider):
    rng = random.Random(f"{provider} 7")
    limits = dict.fromkeys(("daily_starts", "daily_messages", "monthly_budget"), 1000)
    world = World(monkeypatch, address_cooldown_seconds=0, instance_types=("ml.t2.medium",), **limits)
    recorder = world.clients["dynamodb"] = Recorder(world.dynamodb)
    chatty = Chatty(rng)
    senders = {"textbelt": Textbelt("http://x", "key", pauses=(), fetch=chatty.fetch), "sns": Sns(chatty)}
    if provider in senders:
        world.engine.__dict__["sender"] = senders[provider]
    caplog.set_level("INFO")
    for _ in range(8):
        said, number = [], random_number(rng)
        visit(world, number, lambda *what, said=said: said.extend(map(str, what)))
        out, err = capfd.readouterr()
        aws = [str(world.sagemaker.calls), str(world.scheduler.schedules), *recorder.said]
        everything = "\n".join([*said, out, err, logged(caplog), caplog.text, *aws])
        assert ("notified" in everything and "SmsFailed" in everything) or provider == "takes it"
        assert traces(number, everything) == []
        assert number not in json.dumps(world.dynamodb.scan(TableName=world.settings.table)["Items"])
        caplog.clear()
        recorder.said.clear()
        world.sagemaker.calls.clear()


def test_an_unexpected_exception_contains_no_number(monkeypatch, caplog):
    world = World(monkeypatch)

    def breaks(to, notice):
        raise KeyError(to)

    monkeypatch.setattr(world.phone, "send", breaks)
    world.in_service("+12025550123")
    assert "message not sent" in caplog.text and not traces("+12025550123", logged(caplog) + caplog.text)
    assert world.row.smsFailed == 1
    with pytest.raises(NotSent):
        Sns(Chatty(random.Random(1))).send("+12025550123", type("Notice", (), {"text": "x"}))
