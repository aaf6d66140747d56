"An acceptance always deletes its engine, and its report names no person. The tests use fakes, and real deployments."

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from ipaddress import IPv6Address
from pathlib import Path

import botocore.session
import httpx
import phonenumbers
import pytest
from botocore.exceptions import ClientError
from botocore.validate import ParamValidator
from hypothesis import assume, given
from hypothesis import strategies as st

from infra_scripts.checks import acceptance
from sentiment_engine.costs import price_per_hour
from sentiment_engine.deploy import acceptance_checks, child_program, standing
from sentiment_engine.deploy.acceptance_record import (
    CheckResult,
    Failure,
    InProgress,
    Memory,
    Record,
    record_from,
    report,
    verdict,
)
from sentiment_engine.deploy.account import Finding
from sentiment_engine.deploy.child_program import Abandoned, Interrupts, Late, run_program
from sentiment_engine.deploy.scrub import scrub
from sentiment_engine.deploy.visit import PHONE
from sentiment_engine.local.cloud import LocalCloud
from sentiment_engine.settings import Settings
from tests import ROOT

SCRIPTS = ROOT / "infra_scripts"
NOBODY = {"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
NOBODY |= {"AWS_EC2_METADATA_DISABLED": "true"}

# What a published report must not contain.

ASCII = st.characters(min_codepoint=32, max_codepoint=126)
AROUND = st.text(ASCII, max_size=30)
BESIDE = st.sampled_from([" ", "\n", "'", '"', " (", "<", ", "])
DIGITS, LOWER = "0123456789", "abcdefghijklmnopqrstuvwxyz0123456789"
UPPER = LOWER.upper()
ACCOUNT = st.text(DIGITS, min_size=12, max_size=12)
NAME = st.from_regex(r"[A-Za-z][A-Za-z0-9_.@-]{4,14}[a-z0-9]", fullmatch=True)


def of(letters: str, least: int, most: int):
    return st.text(letters, min_size=least, max_size=most)


def written(number: str, way: int) -> str:
    return phonenumbers.format_number(phonenumbers.parse(number), way)


EXAMPLES = [phonenumbers.example_number_for_type(country, 1) for country in Settings().sms_countries]
EXAMPLES = [phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164) for number in EXAMPLES]
FORMS = phonenumbers.PhoneNumberFormat
PHONES = st.builds(
    written, st.sampled_from(EXAMPLES), st.sampled_from([FORMS.E164, FORMS.INTERNATIONAL, FORMS.RFC3966])
)
PLACES = [
    "{}",
    "arn:aws:iam::{}:role/x",
    "sagemaker-us-east-1-{}",
    "https://{}.signin.aws.amazon.com/console",
    "bucket{}x",
]


@given(AROUND, ACCOUNT, st.sampled_from(PLACES), AROUND)
def test_an_account_id_is_removed_anywhere(before, account, place, after):
    assert account not in scrub(before + place.format(account) + after)


def ipv6_forms(address: IPv6Address) -> list[str]:
    "Write an address in short and in full, in lower and in upper case."
    groups = ":".join(group.lstrip("0") or "0" for group in address.exploded.split(":"))
    forms = [str(address), address.exploded, groups]
    return [*forms, *map(str.upper, forms)]


PUBLIC = st.builds(  # with zeros, which the short form omits, in any place
    lambda groups: IPv6Address(":".join(groups)),
    st.lists(st.sampled_from(["0", "0", "1", "2a05", "d018", "fe80", "ffff", "9d4"]), min_size=8, max_size=8),
)
LONG = (PUBLIC | st.ip_addresses(v=6)).filter(lambda address: int(address) >= 2**32)  # not ::1
IPV6 = LONG.flatmap(lambda address: st.sampled_from(ipv6_forms(address)))

KINDS = {
    "access key": (st.sampled_from(["AKIA", "ASIA", "AROA", "AIDA"]), of(UPPER, 16, 17), "{0}{1}"),
    "API address": (st.just("x"), of(LOWER, 10, 10), "https://{1}.execute-api.us-east-1.amazonaws.com/status"),
    "API of an error": (st.just("x"), of(LOWER, 10, 10), "arn:aws:apigateway:us-east-1::/apis/{1}/stages/$default"),
    "distribution": (st.just("E"), of(UPPER, 12, 13), "{0}{1}"),
    "distribution's domain": (st.just("d"), of(LOWER, 13, 13), "https://{0}{1}.cloudfront.net/config.json"),
    "zone": (st.just("Z"), of(UPPER, 12, 20), "/hostedzone/{0}{1}"),
    "user": (ACCOUNT, NAME, "arn:aws:iam::{0}:user/{1}"),
    "user in a path": (ACCOUNT, NAME, "arn:aws:iam::{0}:user/team/{1}"),
    "session": (ACCOUNT, NAME, "arn:aws:sts::{0}:assumed-role/AWSReservedSSO_Admin_0a1b/{1}"),
    "session of a role's id": (of(UPPER, 16, 17), NAME, "UserId: AROA{0}:{1}"),
    "session of an instance": (of(UPPER, 16, 17), of("0123456789abcdef", 17, 17), "AROA{0}:i-{1}"),
    "caller": (st.just("x"), NAME, "credentials user/{1} in an account"),
    "home on Linux": (st.just("x"), NAME, 'File "/home/{1}/engine/x.py", line 3'),
    "home on macOS": (st.just("x"), NAME, 'File "/Users/{1}/engine/x.py", line 3'),
    "secret key": (st.just("aA0"), of(LOWER + UPPER + "/+", 37, 37), "{0}{1}"),
    "presigned address": (st.just("x"), of(LOWER, 20, 20), "https://b.s3.amazonaws.com/k?X-Amz-Signature={1}"),
    "IP address": (st.integers(200, 255), st.integers(200, 255).map(lambda n: f"{n}.{n}"), "from {0}.{0}.{1}:443"),
    "IPv6 address": (st.just("x"), IPV6, "from {1}"),
    "IPv6 address with a port": (st.just("x"), IPV6, "https://[{1}]:443/status"),
    "IPv6 address and its interface": (st.just("x"), IPV6, "sourceIp:{1}%eth0"),
    "IPv6 address with IPv4 in it": (st.just("x"), LONG.map(lambda a: a.exploded[:29]), "{1}:203.0.113.9"),
    "IPv6 address that ends in an e-mail": (st.just("x"), LONG.map(lambda a: a.exploded[:29]), "{1}:203.0.113.9'@0.0"),
    "IPv6 network": (st.just("x"), IPV6, "{1}/64"),
}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_no_identifier_remains_in_the_report(kind, data):
    first, second, form = KINDS[kind]
    begins, value = data.draw(first), data.draw(second)
    before, beside, after = data.draw(AROUND), data.draw(BESIDE), data.draw(AROUND)
    assume(value not in before + after + scrub(form.format(begins, "")))
    text = f"{before}{beside}{form.format(begins, value)}{beside}{after}"
    assert value not in scrub(text), text


@given(AROUND, BESIDE, PHONES, AROUND)
def test_phone_numbers_are_removed(before, beside, phone, after):
    digits = re.sub(r"\D", "", phone)[-9:]
    assume(digits not in re.sub(r"\D", "", before + "x" + after))
    assert digits not in re.sub(r"[^\w]", "", scrub(f"{before}{beside}{phone}{beside}{after}"))


@given(AROUND, BESIDE, st.emails(), AROUND)
def test_email_addresses_are_removed(before, beside, address, after):
    assume(address not in before + after)
    assert address not in scrub(f"{before}{beside}{address}{beside}{after}")


@given(st.sampled_from(EXAMPLES), st.sampled_from([0, 1, 2, 3]), AROUND)
def test_a_known_number_is_removed_in_every_form(number, way, around):
    form = written(number, way)
    assume(form not in around)
    assert form not in scrub(f"{around} {form}", acceptance.phone_forms(number))


@given(st.text(max_size=200) | st.builds("".join, st.lists(AROUND | PHONES | ACCOUNT | IPV6 | st.emails(), max_size=5)))
def test_scrubbing_twice_changes_nothing(text):
    assert scrub(scrub(text)) == scrub(text)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-27T21:16:07Z 1.43.106 us-east-1 accept-1a2b-notification-and-shutdown-scheduler",
        'Could not find endpoint "accept-1a2b-0f3c5a7e9b1d"',
        "POSITIVE 0.998 in 107 s, http://127.0.0.1:4566 ml.t2.medium $0.0005 python3.11 AWS::CloudFront::Distribution",
        "accept-1a2b-foundation-TrainingRole-7BC35D0BB26D0 ENDPOINT_STATUS UPDATE_ROLLBACK_COMPLETE",
        "AWS::EC2::SecurityGroup arn:aws:s3:::accept-1a2b-lake test_a.py::test_b std::vector [::2] 21:16:07 ::1",
    ],
)
def test_details_that_explain_a_fault_are_kept(text):
    assert scrub(text) == text


SECRET = (
    "arn:aws:iam::123456789012:user/ada.lovelace ada@example.com AKIAIOSFODNN7EXAMPLE +1 202 555 0123 E04R52WAIX6UXT"
)
WORDS = ("123456789012", "lovelace", "ada@", "AKIA", "555", "E04R52WAIX6UXT", "abcdef0123")


def test_the_report_contains_no_personal_data():
    record = Record("accept-1a2b", "us-east-1", "9012", "ada-s-profile", known=["abcdef0123"])
    told = f"{'x' * 255} {SECRET} abcdef0123"  # truncated in the middle
    record.checks, record.failures = [CheckResult(told, False, told, 1.0)], [Failure("deploy", [told])]
    record.answers = record.figures = record.left = record.kept = record.unknown = [told]
    record.versions, record.seconds = {"boto3": told}, {f"deploy: {told}": 1.0}
    text = report(record)
    assert not [word for word in (*WORDS, "9012", "ada-s-profile") if word in text]
    assert "us-east-1" in text and "accept-1a2b" in text and "Not passed: 1 of 1 checks failed" in text


def test_a_report_row_stays_on_one_line():
    record = Record(
        "accept-1a2b", "us-east-1", "9012", checks=[CheckResult("a | b", True, "two\nlines", 1.0)], gone=True
    )
    assert "| yes | a \\| b | two lines | 1 s |" in report(record) and verdict(record).startswith(
        "Passed: all 1 checks"
    )


# Output before the start.


@pytest.fixture
def shell(monkeypatch):
    "The environment of a user without an account."
    for name in [name for name in os.environ if name.startswith(("AWS_", "SENTIMENT_"))]:
        monkeypatch.delenv(name)
    for name, value in NOBODY.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    yield monkeypatch
    os.environ.clear()
    os.environ.update(before)


def ended(monkeypatch, *words: str) -> str:
    "Call the command and return how it ends."
    monkeypatch.setattr("sys.argv", ["acceptance.py", *words])
    with pytest.raises(SystemExit) as end:
        acceptance.main()
    return str(end.value.code)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no region is set: use --region, such as us-east-1"),
        (("--region", "us-east-1"), "Unable to locate credentials\nConfigure the AWS command line (aws configure"),
    ],
)
def test_without_credentials_it_stops_with_instructions(shell, tmp_path, words, said):
    end = ended(shell, "--state", str(tmp_path), *words)
    assert end.startswith("Nothing was changed: ") and said in end


def test_a_missing_profile_is_refused(shell, capsys):
    assert ended(shell, "--region", "us-east-1", "--profile", "nobody") == "2"
    assert "--profile must be a profile of the AWS command line, not nobody" in capsys.readouterr().err


def test_an_emulator_is_not_mistaken_for_aws(shell, tmp_path):
    shell.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert "target is aws, but AWS_ENDPOINT_URL is" in ended(shell, "--state", str(tmp_path))


@pytest.mark.parametrize("words", [("--phone", "+1202555"), ("--phone", "0777"), ("--rows", "500")])
def test_errors_about_invalid_input_contain_no_phone_number(shell, capsys, words):
    assert ended(shell, *words) == "2"
    assert words[1] not in capsys.readouterr().err


def test_it_prints_the_plan_and_the_maximum_cost(shell, capsys):
    shell.setattr(acceptance.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess((), 0))
    assert ended(shell, "--dry-run", "--instance-types", "ml.m5.large", "--phone", PHONE) == "0"
    said = capsys.readouterr().out
    parts = [float(part) for part in re.findall(r"^ {13}.*at most \$([\d.]+)$", said, re.M)]
    assert len(parts) == 3 and sum(parts) == pytest.approx(
        float(re.search(r"costs .* at most \$([\d.]+)", said)[1]), abs=0.02
    )
    assert parts[2] == pytest.approx(price_per_hour("ml.m5.large") * 1.5, abs=0.01)  # 75 minutes, and 15 to delete it
    assert re.search(r"'accept-[0-9a-f]{4}' of its own: \d stacks with \d+ resources", said)
    assert "one SMS" in said and PHONE[1:] not in said


def test_the_whole_series_is_priced(shell, capsys):
    shell.setattr(acceptance.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess((), 0))
    assert ended(shell, "--dry-run", "--series") == "0"
    said = capsys.readouterr().out
    assert "cleans 10,000 generated reviews, trains on ml.m5.xlarge" in said and "\n             Glue: $" in said


def test_environment_variables_of_another_engine_are_ignored(shell):
    shell.setenv("SENTIMENT_TABLE", "SentimentModelState")
    shell.setenv("SENTIMENT_PREFIX", "sentiment-engine")
    options = acceptance.parsed(["--idle-minutes", "2"])
    acceptance.lead(options, "accept-1a2b")
    settings = acceptance.settings_from(os.environ)
    assert (settings.prefix, settings.table, settings.idle_minutes) == ("accept-1a2b", "accept-1a2b-state", 2)
    assert settings.max_run_minutes <= 75 and settings.monthly_budget <= 1  # even without a user


class Fake:
    "A boto3 session with scripted answers."

    region_name = "us-east-1"

    def __init__(self, stacks: list[str] = ()):
        self.stacks = stacks

    def client(self, service: str):
        return self

    def get_caller_identity(self):
        return {"Account": "123456789012", "Arn": "arn:aws:iam::123456789012:user/ada"}

    def get_paginator(self, operation: str):
        return self

    def paginate(self):
        return self

    def search(self, expression: str):
        return iter(self.stacks)


def test_the_prefix_is_unique_and_earlier_acceptances_are_listed(monkeypatch, capsys):
    ids = iter(["1a2b", "9f9f"])
    monkeypatch.setattr(acceptance.uuid, "uuid4", lambda: type("Id", (), {"hex": next(ids)}))
    assert acceptance.new_prefix(Fake(["shop", "accept-1a2b-engine", "accept-1a2b-foundation"])) == "accept-9f9f"
    assert capsys.readouterr().out.count("--stack-prefix accept-1a2b\n") == 1


# It cleans up after every failure. The programs only change a file here.


class World:
    "An account with or without an engine. Its state is in a folder, so that it survives a killed process."

    def __init__(self, folder: Path):
        self.folder, self.up, self.calls = folder, folder / "up", folder / "calls"
        self.events, self.at, self.act = 0, 0, lambda: None
        self.quiet = False  # whether to ignore printing, which raises nothing
        self.working = False  # whether a step that may fail is running: a deployment or a check
        self.foreign: list[standing.Thing] = []  # other users' resources with the same name
        self.blind: list[str] = []  # the kinds that AWS does not list
        self.blind_from = "teardown.py"  # only after this program has run; empty: always

    def event(self, *_):
        "Count an event; at the chosen one, cause the failure."
        self.events += 1
        if self.events == self.at:
            self.act()

    def note(self, script: str):
        with self.calls.open("a") as file:
            file.write(f"{script}\n")

    def program(self, words, env, limit, interrupts, hear, idle, held):
        "A stand-in for deploy.py and teardown.py."
        script = Path(words[0]).name
        self.note(script)
        self.event()
        if script == "deploy.py":
            self.up.touch()
            hear("  done  00 settings                     1.9 s")
            self.event()
            return 0
        hear("kept     log group /aws-glue/jobs/output: all Glue and training jobs of the account write there")
        self.event()
        self.up.unlink(missing_ok=True)
        return 0

    def things(self, session, prefix):
        self.event()
        backup, ran = standing.Thing("table backup", f"{prefix}-state", "free"), [""]
        ran += self.calls.read_text().split() if self.calls.exists() else []
        unseen = [standing.Unseen(kind, "ExpiredToken") for kind in self.blind if self.blind_from in ran]
        engine = [standing.Thing("stack", f"{prefix}-engine")] if self.up.exists() else []
        return [
            thing for thing in [*engine, *self.foreign, backup] if thing.kind not in {each.kind for each in unseen}
        ], unseen


@pytest.fixture
def world(tmp_path, shell):
    "A world with an account, in which everything slow or real is replaced."
    found, handlers = World(tmp_path), {number: signal.getsignal(number) for number in child_program.SIGNALS}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        shell.setenv(name, "x")
    shell.setattr(acceptance, "run_program", found.program)
    shell.setattr(acceptance, "by_name", found.things)
    shell.setattr(acceptance, "by_tag", lambda *_: [])
    shell.setattr(acceptance, "GONE_LIMIT", -1)
    shell.setattr(acceptance, "caller", lambda _: ("user/ada in an account that ends in 9012", "9012"))
    shell.setattr(acceptance, "new_prefix", lambda *_: "accept-1a2b")
    shell.setattr(acceptance, "check_account", lambda *_, **__: [])
    shell.setattr(acceptance.Textbelt, "quota", lambda _: 1)
    for name in ("planned", "explain"):  # tested above, and half a second each
        shell.setattr(acceptance, name, lambda *_: found.event())
    shell.setattr(acceptance.Acceptance, "read_stacks", lambda at: found.event())
    for name in ("check_page", "check_plan"):
        shell.setattr(acceptance, name, lambda at, *_, name=name: (found.event(), at.check(name, True)))
    shell.setattr(acceptance, "visit", lambda at: at.attempt("idle shutdown", lambda: found.event()))
    shell.setattr(acceptance, "connect", lambda _: Fake())  # slow, and not tested here
    shell.setattr(os, "fsync", lambda _: None)
    told, kept, end, work = acceptance.tell, Memory.write, acceptance.Acceptance.end, acceptance.Acceptance.work
    shell.setattr(acceptance.Acceptance, "work", lambda at: (setattr(found, "working", True), work(at)))
    shell.setattr(acceptance.Acceptance, "end", lambda at: (setattr(found, "working", False), end(at)))
    shell.setattr(acceptance, "tell", lambda text="": (None if found.quiet else found.event(), told(text)))
    shell.setattr(Memory, "write", lambda memory, record: (found.event(), kept(memory, record), found.event()))
    yield found
    for number, handler in handlers.items():
        signal.signal(number, handler)


def begin(world: World, *words: str) -> str:
    "Call the command in the world and return how it ended."
    report, state = str(world.folder / "report.md"), str(world.folder / "state")
    options = ("--yes", "--region", "us-east-1", "--report", report, "--state", state, *words)
    return ended(pytest.MonkeyPatch(), *options)


def unfinished(world: World) -> Record | None:
    return Memory(world.folder / "state").read()


def at_every_step(world: World, act) -> int:  # how many steps there are
    "Cause `act` at each step of an acceptance, one step per run, each in a new world."
    world.at, world.act = 0, lambda: None
    assert begin(world) == "0" and not world.up.exists()
    steps = world.events
    assert steps > 20
    for world.at in range(1, steps + 1):
        world.events, world.act, world.working = 0, act, False
        world.calls.unlink(missing_ok=True)
        yield begin(world)


def test_a_passed_acceptance_is_reported_and_leaves_nothing(world, capsys):
    assert begin(world) == "0"
    assert world.calls.read_text().split() == ["deploy.py", "teardown.py"]
    assert not world.up.exists() and unfinished(world) is None
    text = (world.folder / "report.md").read_text()
    assert "Passed: all 3 checks, and everything is deleted." in text and "deploy: 00 settings | 1.9 s" in text
    assert "table backup accept-1a2b-state (free)" in text and "aws-glue" not in text
    assert "| deploy | " in text and "aws-glue" in capsys.readouterr().out


@pytest.mark.parametrize("number", child_program.SIGNALS)
def test_a_signal_at_any_step_deletes_the_engine(world, number):
    signal.signal(number, signal.default_int_handler)  # if there is nothing to delete yet, it just ends
    for end in at_every_step(world, lambda: signal.raise_signal(number)):
        assert not world.up.exists(), world.at
        asked = world.calls.read_text().split() if world.calls.exists() else []
        assert not asked or asked[-1] == "teardown.py", (world.at, end)
        assert unfinished(world) is None, world.at
        assert end in ("0", "1") or "Nothing was changed" in end, (world.at, end)


@pytest.mark.parametrize(
    "error", [RuntimeError("no"), MemoryError(), SystemExit(3), OSError(28, "No space left on device")]
)
def test_an_error_at_any_step_of_the_work_deletes_the_engine(world, error):
    def act():
        if world.working:
            raise error

    world.quiet = True

    for _ in at_every_step(world, act):
        assert not world.up.exists(), world.at


def test_a_second_ctrl_c_explains_and_a_third_defers_to_the_next_run(world, monkeypatch, capfd):
    monkeypatch.setattr(child_program, "INSIST", -1.0)
    world.act = lambda: signal.raise_signal(signal.SIGINT)

    def impatient(*_):
        world.events += 1
        if world.up.exists() and world.events > 12:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(world, "event", impatient)
    assert "`make aws-acceptance` offers to finish it" in begin(world)
    said = capfd.readouterr().err
    assert said.count("costs money every hour") == 1
    assert "teardown.py --target aws --region us-east-1 --stack-prefix accept-1a2b" in said
    assert world.up.exists() and unfinished(world).prefix == "accept-1a2b"
    monkeypatch.setattr(world, "event", lambda *_: None)
    assert begin(world, "--finish") == "0"
    assert not world.up.exists() and unfinished(world) is None


def test_the_next_run_cleans_up_after_a_kill_at_any_step(world):
    world.act = lambda: None
    assert begin(world) == "0"
    for step in range(1, world.events + 1):
        world.at = step
        if not (process := os.fork()):
            world.events, world.act = 0, lambda: os.kill(os.getpid(), signal.SIGKILL)
            with suppress(BaseException):
                begin(world)
            os._exit(0)
        os.waitpid(process, 0)
        stood, world.act = world.up.exists(), lambda: None
        assert not stood or unfinished(world).prefix == "accept-1a2b", world.at
        assert begin(world, "--finish") == "0"
        assert not world.up.exists() and unfinished(world) is None, world.at


@pytest.fixture
def left(world, monkeypatch):
    "A world with an abandoned acceptance, and its record."
    record = Record("accept-1a2b", "eu-west-1", "9012", "ada", time.time() - 7200, 1, "idle shutdown")
    memory = Memory(world.folder / "state")
    memory.folder.mkdir()
    memory.write(record)
    world.up.touch()
    (world.folder / "config").write_text("[profile ada]\nregion = eu-north-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(world.folder / "config"))
    return world


def test_an_abandoned_acceptance_is_finished_before_a_new_one_begins(left, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(acceptance, "enter", lambda chosen: (seen.append(chosen), os.environ.update(chosen)))
    assert begin(left) == "0"
    assert left.calls.read_text().split() == ["teardown.py", "deploy.py", "teardown.py"]
    assert (seen[0]["AWS_PROFILE"], seen[0]["AWS_REGION"]) == ("ada", "eu-west-1")
    assert (
        seen[-1]["AWS_REGION"] == "us-east-1"
        and os.environ.get("AWS_PROFILE") != "ada"
        and "AWS_PROFILE" not in seen[-1]
    )
    assert "2.0 hours\nago during 'idle shutdown'" in capsys.readouterr().out
    assert "Not passed: idle shutdown broke off" in (left.folder / "report-accept-1a2b.md").read_text()
    assert "Passed" in (left.folder / "report.md").read_text()


def test_an_abandoned_acceptance_is_not_looked_for_in_another_account(left, monkeypatch):
    monkeypatch.setattr(acceptance, "enter", os.environ.update)
    monkeypatch.setattr(acceptance, "caller", lambda _: ("user/bob in an account that ends in 3456", "3456"))
    assert "it is in an account that ends in 9012, and you act as user/bob" in begin(left)
    assert left.up.exists() and unfinished(left) and not left.calls.exists()


def test_declining_changes_nothing(left, monkeypatch):
    monkeypatch.setattr(acceptance, "enter", os.environ.update)
    monkeypatch.setattr(acceptance, "agreed", lambda *_: False)
    assert "accept-1a2b still stands" in begin(left) and not left.calls.exists() and unfinished(left)


def test_a_failed_teardown_is_retried_and_then_recorded(world, monkeypatch, capsys):
    usual = world.program

    def failing(words, *rest):
        if "teardown" in words[0]:
            world.note("failed")
            rest[3]("AccessDenied: arn:aws:iam::123456789012:user/ada may not delete")
            return 1
        return usual(words, *rest)

    monkeypatch.setattr(acceptance, "run_program", failing)
    assert begin(world) == "1"
    assert world.calls.read_text().split() == ["deploy.py", "failed", "failed"]
    text = (world.folder / "report.md").read_text()
    assert "not everything is deleted" in text and "stack accept-1a2b-engine" in text and "may not delete" in text
    assert "123456789012" not in text and "ada" not in text and unfinished(world)
    assert "teardown.py --target aws --region us-east-1 --stack-prefix accept-1a2b" in capsys.readouterr().out


def test_a_full_disk_does_not_end_a_teardown(world, monkeypatch):
    kept, full = Memory.write, []

    def write(memory, record):
        if full:
            raise OSError(28, "No space left on device")
        full.append(kept(memory, record))

    monkeypatch.setattr(Memory, "write", write)
    begin(world)
    assert not world.up.exists() and "teardown.py" in world.calls.read_text()


def test_a_closed_terminal_does_not_end_a_teardown(world, monkeypatch):
    def gone(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", gone)
    assert begin(world) == "0" and not world.up.exists()


def test_the_phone_number_is_never_printed_or_stored(world, capsys):
    usual = world.program

    def talkative(words, env, limit, interrupts, hear, *rest):
        hear(f"sent to {PHONE} and {acceptance.phone_forms(PHONE)[3]}")
        return usual(words, env, limit, interrupts, hear, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(acceptance, "run_program", talkative)
        assert begin(world, "--phone", PHONE) == "0"
    said = capsys.readouterr().out + (world.folder / "report.md").read_text()
    assert "sent to <phone>" in said and "0123" not in said and "202" not in said.replace("2026", "")


NO_SANDBOX = Finding("SMS", False, "it is in its sandbox and has no verified number")
NOT_SAID = Finding("SMS", None, "the public key says nothing")


@pytest.mark.parametrize(
    ("words", "finding", "quota", "provider"),  # provider: option of deploy.py; empty: the default
    [
        ((), NO_SANDBOX, 0, "textbelt"),
        (("--sms-provider", "sns"), NO_SANDBOX, 0, "textbelt"),
        ((), NOT_SAID, 0, ""),
        (("--sms-provider", "sns"), NOT_SAID, 0, "sns"),
        (("--phone", PHONE), NOT_SAID, 1, ""),
        (("--phone", PHONE), NOT_SAID, None, ""),
        (("--phone", PHONE, "--sms-provider", "sns"), NOT_SAID, 0, "sns"),
    ],
)
def test_without_a_phone_number_no_sms_credit_is_needed(world, monkeypatch, words, finding, quota, provider):
    seen, usual = [], world.program
    monkeypatch.setattr(acceptance, "check_account", lambda *_, **__: [finding])
    monkeypatch.setattr(acceptance.Textbelt, "quota", lambda _: quota)
    monkeypatch.setattr(acceptance, "run_program", lambda words, *rest: (seen.append(words), usual(words, *rest))[1])
    assert begin(world, *words) == "0"
    told = seen[0][seen[0].index("--sms-provider") + 1] if "--sms-provider" in seen[0] else ""
    assert told == provider


@pytest.mark.parametrize(
    ("words", "finding", "quota"),
    [((), NOT_SAID, 0), ((), NO_SANDBOX, 0), (("--sms-provider", "sns"), NO_SANDBOX, 1)],
)
def test_without_sms_credit_it_stops_before_creating_anything(world, monkeypatch, words, finding, quota):
    monkeypatch.setattr(acceptance, "check_account", lambda *_, **__: [finding])
    monkeypatch.setattr(acceptance.Textbelt, "quota", lambda _: quota)
    end = begin(world, "--phone", PHONE, *words)
    assert end.startswith("Nothing was changed: ") and end.count("PROBLEM  SMS") == 1
    assert not world.calls.exists() and not unfinished(world)


@pytest.mark.parametrize("kind", [look.kind for look in standing.QUERIES])
def test_a_prefix_in_use_is_refused(world, kind):
    "Otherwise its resources would count as leftovers, and no acceptance could end."
    world.foreign = [standing.Thing(kind, "accept-1a2b-holiday-photos")]
    end = begin(world, "--stack-prefix", "accept-1a2b")
    assert "accept-1a2b is taken" in end and f"{kind} accept-1a2b-holiday-photos. Choose another" in end
    assert end.startswith("Nothing was changed") and not world.calls.exists() and not unfinished(world)


def test_the_textbelt_key_may_exist_already(world, monkeypatch):
    key = standing.Thing("parameter", "/accept-1a2b/textbelt-key")
    monkeypatch.setattr(acceptance, "by_name", lambda *_: ([key], []))
    acceptance.check_prefix(None, "accept-1a2b")
    monkeypatch.setattr(acceptance, "by_name", lambda *_: ([standing.Thing("parameter", "/accept-1a2b/model")], []))
    with pytest.raises(ValueError, match="accept-1a2b is taken"):
        acceptance.check_prefix(None, "accept-1a2b")


def test_foreign_resources_with_the_same_prefix_can_be_dismissed(world, monkeypatch, capsys):
    usual = world.program

    def beside(words, *rest):
        world.foreign = [standing.Thing("bucket", "accept-1a2b-holiday-photos")]
        return usual(words, *rest)

    monkeypatch.setattr(acceptance, "run_program", beside)
    assert begin(world) == "1" and unfinished(world)
    said = capsys.readouterr().out
    assert "bucket accept-1a2b-holiday-photos" in said
    file = re.search(r"belongs to another user, delete (\S+) instead", said)[1]
    Path(file).unlink()
    assert begin(world, "--finish") == "0" and unfinished(world) is None


EVERYTHING = [look.kind for look in standing.QUERIES]


@pytest.mark.parametrize("blind", [*([kind] for kind in sorted(standing.ESSENTIAL)), EVERYTHING], ids=",".join)
def test_a_teardown_that_cannot_be_checked_is_incomplete(world, blind):
    world.blind = blind
    assert begin(world) == "1" and unfinished(world).prefix == "accept-1a2b"
    text = (world.folder / "report.md").read_text()
    assert "| **NO** | teardown: only what AWS keeps is left | not looked at: " in text
    assert "not everything is deleted" in text and f"Could not be checked: {len(blind)}, listed" in text
    assert all(f"- {kind}s: ExpiredToken" in text for kind in blind)
    assert begin(world, "--finish") == "1" and unfinished(world)
    world.blind = []
    assert begin(world, "--finish") == "0" and unfinished(world) is None
    text = (world.folder / "report-accept-1a2b.md").read_text()
    assert "not everything is deleted" not in text and "Could not be checked" not in text


@pytest.mark.parametrize("blind", [*([kind] for kind in sorted(standing.ESSENTIAL)), EVERYTHING], ids=",".join)
def test_without_permission_to_check_nothing_is_created(world, blind):
    world.blind, world.blind_from = blind, ""
    end = begin(world)
    assert end.startswith("Nothing was changed") and all(f"{k}s: " in end for k in standing.ESSENTIAL & {*blind})
    assert not world.calls.exists() and not unfinished(world)


def test_it_waits_for_a_late_answer(world, monkeypatch):
    world.blind = EVERYTHING
    monkeypatch.setattr(acceptance, "GONE_LIMIT", 60)
    monkeypatch.setattr(acceptance.time, "sleep", lambda _: world.blind.clear())
    world.blind = list(EVERYTHING)
    assert begin(world) == "0" and unfinished(world) is None


def test_other_failed_checks_are_counted_and_listed(world, monkeypatch, capsys):
    def denied(*_):
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "GetResources")

    world.blind = sorted({*EVERYTHING} - standing.ESSENTIAL)
    monkeypatch.setattr(acceptance, "by_tag", denied)
    assert begin(world) == "0" and unfinished(world) is None
    text, said = (world.folder / "report.md").read_text(), f"Could not be checked: {len(world.blind) + 1}, listed"
    assert f"Passed: all 3 checks, and everything is deleted. {said}" in text and said in capsys.readouterr().out
    assert all(f"- {kind}s: ExpiredToken" in text for kind in world.blind) and "- what carries the engine's tag" in text


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("what", "stands_for", "said"),
    [
        ("check_account", lambda *_, **__: [Finding("endpoint quota", False, "none may run")], "endpoint quota"),
        ("check_account", lambda *_, **__: interrupt(), "Interrupted"),
        ("by_tag", lambda *_: [], "the prefix was not typed"),
    ],
)
def test_it_reports_the_deletion_of_leftovers_even_without_a_new_acceptance(left, monkeypatch, what, stands_for, said):
    monkeypatch.setattr(acceptance, "enter", os.environ.update)
    monkeypatch.setattr(acceptance, what, stands_for)
    agreed = iter([True, False])
    monkeypatch.setattr(acceptance, "agreed", lambda *_: next(agreed))
    end = begin(left)
    assert "accept-1a2b was deleted, and nothing else was changed" in end and said in end
    assert "Nothing was changed" not in end and left.calls.read_text().split() == ["teardown.py"]


def test_an_account_without_room_gets_no_reserved_concurrency(world, monkeypatch):
    seen, usual = [], world.program
    found = [Finding("Lambda concurrency", False, "10 of 10 are free, 149 are needed")]
    monkeypatch.setattr(acceptance, "check_account", lambda *_, **__: found)
    monkeypatch.setattr(acceptance, "run_program", lambda words, *rest: (seen.append(words), usual(words, *rest))[1])
    assert begin(world) == "0"
    assert "--no-reserved-concurrency" in seen[0] and seen[0][-2:] == ["--model", "released"]


def test_an_account_problem_ends_it_before_anything_is_created(world, monkeypatch):
    found = [Finding("endpoint quota", False, "none may run")]
    monkeypatch.setattr(acceptance, "check_account", lambda *_, **__: found)
    assert "PROBLEM  endpoint quota" in begin(world) and not world.calls.exists() and not unfinished(world)


# The visit.


@pytest.mark.parametrize("state", ["FAILED", "STOPPED"])
def test_it_does_not_wait_for_a_failed_start(world, monkeypatch, state):
    "The report contains the API's reason, and the rest of the visit is skipped."
    waking = {"state": "CREATING", "outcome": "started", "instanceType": "ml.t2.medium"}
    failed = {"state": state, "reason": "no capacity in 123456789012"}
    told = iter([(200, {"state": "STOPPED"}), (202, waking), (200, failed)])
    monkeypatch.setattr(acceptance_checks.RealVisit, "call", lambda *_: next(told))
    monkeypatch.setattr(acceptance, "visit", acceptance_checks.visit)
    monkeypatch.setattr(acceptance.Acceptance, "read_stacks", lambda at: at.outputs.update(ApiUrl="http://127.0.0.1:1"))
    assert begin(world) == "1" and not world.up.exists()
    text = (world.folder / "report.md").read_text()
    assert "| **NO** | awake: the model answered | no capacity in <account>" in text
    assert "1 of 7 checks failed" in text and "predict" not in text


# Programs and the record on disk.

TIDY = """
import signal, sys, time
def stop(*_):
    print("tidying up", flush=True); time.sleep(0.3); print("tidy", flush=True); sys.exit(1)
signal.signal(signal.SIGINT, stop)
print("at work", flush=True)
time.sleep(60)
"""


@pytest.fixture
def tidy(tmp_path) -> list[str]:
    "A program that takes a moment to stop."
    (tmp_path / "tidy.py").write_text(TIDY)
    return [str(tmp_path / "tidy.py")]


def test_an_interrupted_program_may_clean_up(tidy):
    heard = []

    def hear(line: str):
        heard.append(line)
        if line == "at work":
            signal.raise_signal(signal.SIGTERM)

    with Interrupts("wait") as interrupts, pytest.raises(KeyboardInterrupt):
        run_program(tidy, os.environ, 30, interrupts, hear)
    assert heard == ["at work", "tidying up", "tidy"] and interrupts.ending


def test_a_slow_program_is_stopped(tidy):
    heard = []
    with Interrupts("wait") as interrupts, pytest.raises(Late, match="did not end within 0 minutes"):
        run_program(tidy, os.environ, 1.5, interrupts, heard.append)
    assert heard == ["at work", "tidying up", "tidy"]


def test_a_program_that_does_not_stop_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(child_program, "STOP_SECONDS", 0.5)
    (tmp_path / "deaf.py").write_text("import signal, time\nsignal.signal(2, signal.SIG_IGN)\ntime.sleep(6000)")
    with Interrupts("wait") as interrupts, pytest.raises(Late):
        run_program([str(tmp_path / "deaf.py")], os.environ, 1.0, interrupts, print)


def test_a_signal_during_a_program_start_is_delivered_after_the_start(tidy, monkeypatch):
    usual, heard = subprocess.Popen, []

    def signalled(*words, **options):
        signal.raise_signal(signal.SIGINT)
        return usual(*words, **options)

    monkeypatch.setattr(child_program.subprocess, "Popen", signalled)
    with Interrupts("wait") as interrupts, pytest.raises(KeyboardInterrupt):
        run_program(tidy, os.environ, 30, interrupts, heard.append)
    ends = ["tidy"] if "at work" in heard else ["tidy", "KeyboardInterrupt"]  # Python itself may still be starting
    assert heard == [] or heard[-1] in ends


def test_five_ctrl_c_in_a_second_do_not_end_a_teardown(capfd):
    with Interrupts("a teardown is at work") as interrupts:
        interrupts.ending = True
        for _ in range(5):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGHUP)
    assert capfd.readouterr().err.count("a teardown is at work") == 1


def test_repeated_hangups_do_not_end_a_teardown(monkeypatch):
    monkeypatch.setattr(child_program, "INSIST", -1.0)
    with Interrupts("wait") as interrupts:
        interrupts.ending = True
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)


def test_a_repeated_signal_ends_the_program(monkeypatch):
    monkeypatch.setattr(child_program, "INSIST", -1.0)
    with Interrupts("wait") as interrupts, pytest.raises(Abandoned):
        interrupts.ending = True
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)


def test_a_program_of_a_killed_acceptance_keeps_the_lock(tmp_path, tidy):
    "It holds the lock while it runs."
    code = (
        "import os; from sentiment_engine.deploy.acceptance_record import Memory\n"
        "from sentiment_engine.deploy.child_program import Interrupts, run_program\n"
        "from pathlib import Path\n"
        f"with Memory(Path({str(tmp_path)!r})).locked() as lock, Interrupts('') as interrupts:\n"
        f"    run_program({tidy!r}, os.environ, 60, interrupts, lambda line: print(line, flush=True), held=[lock])\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "at work\n"
        orphan = int(subprocess.check_output(["pgrep", "-P", str(process.pid)], text=True))
        process.kill()
    with pytest.raises(InProgress), Memory(tmp_path).locked():
        pass
    os.kill(orphan, signal.SIGINT)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with suppress(InProgress), Memory(tmp_path).locked():
            return
        time.sleep(0.1)
    pytest.fail("the lock was never free")


def test_a_record_survives_a_round_trip(tmp_path):
    record = Record(
        "accept-1a2b", "us-east-1", "9012", checks=[CheckResult("a", True, "b", 1.0)], failures=[Failure("c", ["d"])]
    )
    memory = Memory(tmp_path / "state")
    with memory.locked():
        memory.write(record)
        assert memory.read() == record == record_from(memory.file.read_text())
        assert memory.file.stat().st_mode & 0o077 == 0 and memory.folder.stat().st_mode & 0o077 == 0
        memory.forget()
        assert memory.read() is None


# What exists in an account.


def walk(shape, path: str):
    "Follow a JMESPath through the shape of an answer."
    for part in re.sub(r"\[\?[^]]*\]", "[]", path).replace("[]", ".[]").split("."):
        shape = shape.member if part == "[]" else shape.members[part]
    return shape


@pytest.mark.parametrize("look", standing.QUERIES, ids=lambda look: look.kind)
def test_every_query_matches_the_aws_api(look):
    service = botocore.session.get_session().get_service_model(look.service)
    names = {botocore.xform_name(name): name for name in service.operation_names}
    operation = service.operation_model(names[look.operation])
    if operation.input_shape:
        errors = ParamValidator().validate(look.given, operation.input_shape)
        assert not errors.has_errors(), errors.generate_report()
    assert walk(operation.output_shape, look.names).type_name == "string"


def test_only_resources_with_the_prefix_are_found(cloud):
    made = "accept-0f0f"
    cloud.client("s3").create_bucket(Bucket=f"{made}-lake")
    cloud.client("ssm").put_parameter(Name=f"/{made}/model", Value="x", Type="String")
    cloud.client("ssm").put_parameter(Name="/shop/model", Value="x", Type="String")
    cloud.client("logs").create_log_group(logGroupName=f"/aws/lambda/{made}-start-model-service")
    cloud.client("sqs").create_queue(QueueName=f"{made}-dead-letters")
    found, _ = standing.by_name(cloud, made)
    kinds = {thing.kind: thing.name for thing in found}
    assert kinds.keys() == {"bucket", "parameter", "log group", "queue"} and kinds["parameter"] == f"/{made}/model"
    cloud.client("sqs").create_queue(QueueName=f"my-{made}-dead-letters")  # other engines'
    cloud.client("sqs").create_queue(QueueName=f"{made}0-dead-letters")
    assert standing.by_name(cloud, made)[0] == found and standing.by_name(cloud, "accept-1e1e")[0] == []


def test_denied_lookups_are_reported():
    class Denied(Fake):
        def can_paginate(self, _):
            return False

        def __getattr__(self, _):
            def refuse(**_):
                raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "List")

            return refuse

    found, unseen = standing.by_name(Denied(), "accept-1a2b")
    assert not found and len(unseen) == len(standing.QUERIES) and str(unseen[0]).startswith("stacks: ")
    assert {each.kind for each in unseen if each.essential} == standing.ESSENTIAL


# Real acceptances on the local cloud, which take minutes.


@pytest.fixture
def rehearsal(tmp_path):
    "Start acceptance.py against the local cloud as its account: (cloud, function that starts it)."
    with LocalCloud(tmp_path / "cloud", port=0, site_port=0, strict=True) as cloud:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "SENTIMENT_"))}
        env = kept | cloud.account_environment() | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        words = ["--yes", "--idle-minutes", "0.3", "--textbelt-url", cloud.textbelt_url]
        words += ["--site-address", cloud.site_url]
        words += ["--state", str(tmp_path / "state"), "--report", str(tmp_path / "report.md")]

        def start(*more: str) -> subprocess.Popen:
            command = [sys.executable, str(SCRIPTS / "checks/acceptance.py"), *words, *more]
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            return subprocess.Popen(command, env=env, **streams)

        yield cloud, start


def nothing_is_left(cloud: LocalCloud, folder: Path) -> bool:
    "Check that the cloud contains nothing of an acceptance and that no record of one is left."
    services = {"cloudformation": ("list_stacks", "StackSummaries"), "s3": ("list_buckets", "Buckets")}
    services |= {"sagemaker": ("list_endpoints", "Endpoints")}
    left = []
    for service, (operation, key) in services.items():
        found = getattr(cloud.root_client(service), operation)()[key]
        left += [each for each in found if each.get("StackStatus") != "DELETE_COMPLETE"]
    return not left and not (folder / "state" / "unfinished.json").exists()


@pytest.mark.slow
def test_an_acceptance_passes_on_the_local_cloud(rehearsal, tmp_path):
    cloud, start = rehearsal
    with start("--phone", PHONE) as process:
        said = process.communicate(timeout=900)[0]
    assert process.returncode == 0, said
    text = (tmp_path / "report.md").read_text()
    assert re.search(r"^Passed: all 3\d checks, and everything is deleted\. Could not be .*: \d", text, re.M)
    assert "- from Start to in service: " in text and "of 20: " in text and "POSITIVE 0.9" in text
    assert PHONE[1:] not in said + text and "000000000000" not in text and ".cloudfront.net" not in text
    assert [message["to"] for message in httpx.get(f"{cloud.inbox_url}.json").json()] == [PHONE]
    assert nothing_is_left(cloud, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_acceptance_killed_during_deployment_is_cleaned_up(rehearsal, tmp_path, number):
    cloud, start = rehearsal
    with start() as process:
        for line in process.stdout:
            if "done  00 settings" in line:
                process.send_signal(number)
        process.wait(300)
    assert process.returncode != 0
    if number == signal.SIGKILL:
        assert (tmp_path / "state" / "unfinished.json").exists()
        deadline = time.monotonic() + 300
        while True:  # until the deployment notices that its output is closed
            with start("--finish") as process:
                said = process.communicate(timeout=300)[0]
            if "is already running" not in said or time.monotonic() > deadline:
                break
            time.sleep(2)
        assert process.returncode == 0, said
    assert nothing_is_left(cloud, tmp_path)
