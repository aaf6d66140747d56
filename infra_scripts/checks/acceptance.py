"""Test the whole engine once in a real AWS account: deploy it, visit it, check it, delete it, and write a report.

The engine has its own random prefix, such as accept-1a2b, and cheap settings. Nothing else in the account changes. The
engine is always deleted, even after a failure or Ctrl-C. If this program is killed, its next run finds what was left
and deletes it. The report names no account, person or address, so you can attach it to an issue.
"""

import argparse
import os
import platform
import re
import shlex
import subprocess
import sys
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import phonenumbers
from botocore.exceptions import BotoCoreError, ClientError

from sentiment_engine import __version__
from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser, at_least, profile, region
from sentiment_engine.costs import GLUE_DPU_HOUR, HOURS_PER_MONTH, price_per_hour, resting_cost, standing_cost
from sentiment_engine.deploy.acceptance_checks import GONE_LIMIT, READY_LIMIT, check_page, check_plan, visit
from sentiment_engine.deploy.acceptance_record import CheckResult, Failure, InProgress, Memory, Record, report, verdict
from sentiment_engine.deploy.account import Finding, check_account, stack_names
from sentiment_engine.deploy.child_program import Abandoned, Interrupts, run_program
from sentiment_engine.deploy.endpoint import trial_machines
from sentiment_engine.deploy.loose_ends import tell
from sentiment_engine.deploy.phases import stop_on_signals
from sentiment_engine.deploy.plan import Plan
from sentiment_engine.deploy.stacks import find_stack
from sentiment_engine.deploy.standing import by_name, by_tag
from sentiment_engine.deploy.target import GLUE_WORKERS, chosen_environment, enter, planned
from sentiment_engine.deploy.visit import StepFailed
from sentiment_engine.local.processes import ROOT
from sentiment_engine.service.notifications import FREE_KEY, BadPhone, Textbelt, e164
from sentiment_engine.settings import Settings, connect, settings_from, textbelt_key_parameter

# deploy.py and teardown.py run as programs, because this tests the command lines that people use. A program can also be
# stopped and waited for, and if it crashes, this one can still tear down.
DEPLOY, TEARDOWN = "infra_scripts/deploy.py", "infra_scripts/teardown.py"
MEMORY = ROOT / ".acceptance"
MINUTE = 60.0
# How long each part may take, in seconds. CloudFront alone may take 15 minutes to create and 15 to delete.
DEPLOY_LIMIT, SERIES_LIMIT, TEARDOWN_LIMIT = 90 * MINUTE, 150 * MINUTE, 120 * MINUTE
# Even if this program is killed and never runs again, the endpoint is deleted on time, and no other one starts.
SAFETY = {"SENTIMENT_MAX_RUN_MINUTES": "75", "SENTIMENT_MONTHLY_BUDGET": "1"}
SERIES_ROWS, SERIES_INSTANCE = 10_000, "ml.m5.xlarge"


# The plan


@dataclass(frozen=True)
class Cost:
    "One part of the bill, in dollars."

    what: str
    usual: float
    most: float


def costs(plan: Plan, settings: Settings, series: bool) -> Iterator[Cost]:
    "Price the acceptance from the price table. Raises ValueError for an instance type that is not in it."

    def hourly(kind: str) -> float:
        if (price := price_per_hour(kind)) is None:
            raise ValueError(f"{kind} is not in the price table of nbs/costs.ipynb: add its price there")
        return price

    _, month = standing_cost(Counter(plan.resources))
    standing, limit = (month + resting_cost()) / HOURS_PER_MONTH, (SERIES_LIMIT if series else DEPLOY_LIMIT) / 3600
    yield Cost(f"{len(plan.resources)} resources at rest", standing, standing * (limit + 4))
    tried, dearest = list(trial_machines(settings)), max(map(hourly, settings.instance_types))
    yield Cost(f"a trial of the model on {' or '.join(tried)}", hourly(tried[0]) / 5, sum(map(hourly, tried)) * 0.75)
    cheapest, minutes = hourly(settings.instance_types[0]), settings.max_run_minutes
    yield Cost(f"a visit on {' or '.join(settings.instance_types)}", cheapest / 3, dearest * (minutes + 15) / 60)
    if series:
        yield Cost("Glue", GLUE_DPU_HOUR * 2 / 6, GLUE_DPU_HOUR * GLUE_WORKERS * limit)
        training = hourly(SERIES_INSTANCE)
        yield Cost(f"training on {SERIES_INSTANCE}", training / 3, training * limit)


def explain(options: argparse.Namespace, settings: Settings, plan: Plan, whose: str, region: str):
    "Print the steps, the account and region, the duration and the costs."
    parts = list(costs(plan, settings, options.series))
    stacks = len({change.stack for change in plan.changes})
    hours = (SERIES_LIMIT if options.series else DEPLOY_LIMIT) / 3600 + READY_LIMIT / 3600 + TEARDOWN_LIMIT / 3600
    tell(f"This tests the whole engine once in AWS, as {whose}, region {region}.\n")
    tell(f"  makes    an engine {settings.prefix!r} of its own: {stacks} stacks with {len(plan.resources)} resources")
    work = f"cleans {options.rows:,} generated reviews, trains on {SERIES_INSTANCE}" if options.series else ""
    tell(f"  does     {work or 'deploys the released model'}, wakes it, asks it, lets it fall asleep")
    if options.phone:
        tell("  sends    one SMS to the number that you gave")
    tell("  deletes  everything again, also after a failure or Ctrl-C, and lists leftovers")
    tell(f"  takes    {'about 90' if options.series else '40 to 60'} minutes; {hours:.0f} hours at most")
    usual, most = sum(part.usual for part in parts), sum(part.most for part in parts)
    tell(f"  costs    about ${usual:.2f}, at most ${most:.2f}, by the price table of nbs/costs.ipynb (us-east-1):")
    for part in parts:
        tell(f"             {part.what}: ${part.usual:.3f}, at most ${part.most:.2f}")
    tell(f"  writes   {options.report}, without account ids, addresses or names\n")


def phone_forms(number: str) -> tuple[str, ...]:  # number: E.164
    "List the ways to write a phone number, so that none of them is printed."
    parsed, forms = phonenumbers.parse(number), phonenumbers.PhoneNumberFormat
    ways = [phonenumbers.format_number(parsed, way) for way in (forms.INTERNATIONAL, forms.NATIONAL, forms.RFC3966)]
    return (number, number.lstrip("+"), str(parsed.national_number), *ways)


# One acceptance


class Broken(RuntimeError):
    "Raised for a failed program; its last lines explain why."

    def __init__(self, text: str, lines: list[str]):
        super().__init__(text)
        self.lines = lines


class Acceptance:
    "A running acceptance: it runs programs, measures, checks and records."

    def __init__(self, record: Record, memory: Memory, lock: int, options: argparse.Namespace):
        self.record, self.memory, self.lock, self.options = record, memory, lock, options
        self.secrets = phone_forms(options.phone) if options.phone else ()
        self.begun, self._said = time.monotonic(), 0.0
        self.settings = settings_from(os.environ)
        self.outputs: dict[str, str] = {}
        self.interrupts = Interrupts(
            f"Wait. The teardown of {record.prefix} is at work. A forgotten endpoint costs money every hour.\n"
            f"Let it finish, which takes minutes. Press Ctrl-C again only if you will then run:\n  {self.by_hand}"
        )

    @property
    def by_hand(self) -> str:
        "The command with which a person deletes this engine."
        return f".venv/bin/python {shlex.join([TEARDOWN, *self.place])}"

    @property
    def place(self) -> list[str]:
        "The options that point deploy.py and teardown.py at this engine."
        words = ["--target", "aws", "--region", self.record.region, "--stack-prefix", self.record.prefix]
        return words + (["--profile", self.record.profile] if self.record.profile else [])

    # Output and memory

    def say(self, text: str):
        "Print a line without the phone number."
        for secret in self.secrets:
            text = text.replace(secret, "<phone>")
        tell(text)

    def now_and_then(self, text: str, passed: float):
        "Print a line once a minute; `passed` is how long this wait has lasted, in seconds."
        if passed < 1:
            self._said = 0.0
        if passed - self._said >= MINUTE:
            self._said = passed
            self.say(f"     … {text}, for {passed / MINUTE:.0f} minutes now")

    def remember(self):
        "Keep the record on disk. A full disk must not end a teardown."
        try:
            self.memory.write(self.record)
        except Exception as e:  # noqa: BLE001 -- a teardown continues even if its record fails
            self.say(f"     … {self.memory.file.name} could not be written: {e}")

    def check(self, title: str, passed: object, seen: object = ""):
        "Record whether a check passes."
        at = time.monotonic() - self.begun
        self.record.checks.append(CheckResult(title, bool(passed), str(seen), round(at, 1)))
        self.remember()
        self.say(f"{'ok  ' if passed else 'FAIL'} {title:52} {at:7.0f} s   {seen}")

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        "Measure a phase, and record it as the current one."
        start, self.record.phase = time.monotonic(), phase
        self.remember()
        try:
            yield
        finally:
            self.record.seconds[phase] = time.monotonic() - start

    def attempt(self, phase: str, act: Callable[[], object]) -> bool:
        "Run one phase. A failure is recorded and does not end the acceptance."
        try:
            with self.timed(phase):
                act()
            return True
        except StepFailed:
            return False  # noted as a check
        except Exception as e:  # noqa: BLE001 -- every failure is reported, then torn down
            self.failed(phase, e)
            return False

    def failed(self, phase: str, error: BaseException):
        "Record why a phase failed."
        lines = getattr(error, "lines", None) or "".join(traceback.format_exception(error)).splitlines()
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        if isinstance(error, KeyboardInterrupt):
            lines = [said := "It was interrupted: Ctrl-C, SIGTERM or a closed terminal."]
        self.record.failures.append(Failure(phase, lines[-15:]))
        self.remember()
        self.say(f"FAIL {phase} broke off. {said}")

    # Programs

    def run(self, script: str, words: list[str], limit: float) -> list[str]:  # what it printed
        "Run one of our programs. Raises Broken if it fails, Late if it takes too long."
        printed: list[str] = []

        def hear(line: str):
            printed.append(line)
            self.say(f"   | {line}")
            self._said = time.monotonic() - start
            if found := re.match(r"\s+done\s+(.+?)\s+([\d.]+) s$", line):
                self.record.seconds[f"{self.record.phase}: {found[1]}"] = float(found[2])

        start, self._said = time.monotonic(), 0.0
        status = run_program(
            [str(ROOT / script), *self.place, *words],
            os.environ,
            limit,
            self.interrupts,
            hear,
            lambda passed: self.now_and_then(f"{Path(script).name} is at work", passed),
            [self.lock],  # the next acceptance sees that it still runs, even if this process was killed
        )
        if status:
            raise Broken(f"{Path(script).name} ended with status {status}", printed)
        return printed

    def deploy(self):
        "Deploy the engine with the command line."
        options, words = self.options, ["--idle-minutes", str(self.options.idle_minutes)]
        words += ["--instance-types", options.instance_types] if options.instance_types else []
        words += ["--textbelt-url", options.textbelt_url] if options.textbelt_url else []
        words += ["--sms-provider", options.sms_provider] if options.sms_provider else []
        words += [] if self.settings.reserve_concurrency else ["--no-reserved-concurrency"]
        words += ["--permissions-boundary", options.permissions_boundary] if options.permissions_boundary else []
        if self.record.series:
            rows, kind = str(options.rows), SERIES_INSTANCE
            words += ["--rows", rows, "--base-model", "minilm", "--sample-rows", rows, "--training-instance", kind]
        else:
            words += ["--model", "released"]
        self.run(DEPLOY, words, SERIES_LIMIT if self.record.series else DEPLOY_LIMIT)
        self.read_stacks()

    def client(self, service: str):
        "Return a boto3 client for a service."
        return boto3.client(service)

    def stacks(self) -> dict[str, dict]:  # name: its description, as from describe_stacks
        "Describe the engine's existing stacks."
        cloudformation = self.client("cloudformation")
        found = {name: find_stack(cloudformation, name) for name in stack_names(self.settings)}
        return {name: stack for name, stack in found.items() if stack}

    def resources(self, stack: str) -> list[dict]:
        "List the resources of a stack."
        return self.client("cloudformation").describe_stack_resources(StackName=stack)["StackResources"]

    def read_stacks(self):
        "Read the addresses of the page and the API, and the ids that the report must not contain."
        outputs = [o for stack in self.stacks().values() for o in stack.get("Outputs", [])]
        self.outputs = {output["OutputKey"]: output["OutputValue"] for output in outputs}
        identify = ("AWS::ApiGatewayV2::Api", "AWS::CloudFront::Distribution", "AWS::CloudFront::OriginAccessControl")
        held = [resource for stack in self.stacks() for resource in self.resources(stack)]
        ids = {r.get("PhysicalResourceId", "") for r in held if r["ResourceType"] in identify}
        ids |= {urlsplit(self.outputs.get(name, "")).hostname or "" for name in ("SiteUrl", "ApiUrl")}
        self.record.known = sorted(ids - {""})

    # The phases of an acceptance

    def work(self):
        "Run everything up to the teardown."
        if self.attempt("deploy", self.deploy):
            self.attempt("page", lambda: check_page(self))
            visit(self)
            self.attempt("plan and reality", self.compare_plan)

    def compare_plan(self):
        "Compare the engine with its plan."
        session = connect("aws")
        check_plan(self, planned(self.options, self.settings, session, False), session)

    def tear_down(self):
        "Delete the engine; try again if it took too long."
        for last in (False, True):
            try:
                printed = self.run(TEARDOWN, ["--yes"], TEARDOWN_LIMIT)
                self.record.gone = True
                kept = [line.removeprefix("kept").strip() for line in printed if line.startswith("kept")]
                shared = [line for line in kept if line.startswith("log group ")]  # named by others, too
                self.record.kept = [line for line in kept if line not in shared]
                self.record.kept += [f"{len(shared)} log groups that all jobs of the account share"] * bool(shared)
                return
            except Broken:
                if last:
                    raise
                self.say("     … the teardown failed and is repeated once")

    def leftovers(self):
        "List what still has the engine's name or tag."
        start = time.monotonic()
        while True:  # some lists contain deleted resources for a minute
            found, unseen = by_name(connect("aws"), self.record.prefix)
            left = [str(thing) for thing in found if not thing.kept]
            blind = [f"not looked at: {each}" for each in unseen if each.essential]
            if not left + blind or (passed := time.monotonic() - start) > GONE_LIMIT:
                break
            self.now_and_then(f"{len(left)} resources are still listed, {len(blind)} lists got no answer", passed)
            time.sleep(5)
        self.record.left, self.record.gone = left, self.record.gone and not left + blind
        self.record.kept += [str(thing) for thing in found if thing.kept]
        self.record.unseen = [str(each) for each in unseen]
        self.check("teardown: only what AWS keeps is left", not left + blind, ", ".join(left + blind))
        try:
            tagged = by_tag(connect("aws"), self.record.prefix)
        except (ClientError, BotoCoreError) as e:
            self.record.unseen.append(f"what carries the engine's tag: {e}")
        else:
            # The tag index lists deleted resources for hours, so this is not a check.
            self.record.kept += [f"in the index of tags, which lags behind: {arn}" for arn in tagged]

    def write_report(self) -> Path:
        "Write the report."
        path = Path(self.options.report)
        path.write_text(report(self.record, self.secrets), encoding="utf-8")
        return path

    def end(self):
        "Tear down, check what is left, and report. Run every step, even after a failure."
        self.interrupts.ending = True
        self.say("\nDeleting everything now.")
        try:
            self.attempt("teardown", self.tear_down)
            self.attempt("leftovers", self.leftovers)
        finally:
            if self.attempt("report", self.write_report):
                self.say(f"\nThe report is in {self.options.report}.")
        self.say(verdict(self.record))
        if self.record.gone:
            self.memory.forget()
        else:
            self.say("Parts of the engine are left. Run `make aws-acceptance` again, or by hand:\n  " + self.by_hand)
            if self.record.left:  # another user may have created something with such a name in the meantime
                self.say(f"If everything that is left belongs to another user, delete {self.memory.file} instead.")

    def accept(self) -> bool:
        "Run the acceptance, and leave nothing behind."
        with self.interrupts:
            try:
                try:
                    self.memory.write(self.record)  # before anything is made
                    self.work()
                finally:
                    self.interrupts.ending = True  # from here on, a signal prints an explanation and ends nothing
            except Abandoned:
                self.attempt("report", self.write_report)
                raise
            except BaseException as e:  # noqa: BLE001 -- Ctrl-C too must lead to the teardown; it is raised again
                with suppress(Exception):
                    self.failed(self.record.phase, e)
            self.end()
        return self.record.passed

    def finish(self) -> bool:
        "Finish an acceptance that an earlier process left behind."
        with self.interrupts:
            self.record.failures.append(Failure(self.record.phase, ["The process ended here for an unknown reason."]))
            self.end()
        return self.record.gone


# The command


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    "Read the command line."
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--profile", type=profile, metavar="NAME", help="profile of the AWS command line")
    add("--region", type=region, metavar="NAME", help="AWS region, such as us-east-1")
    add("--stack-prefix", metavar="NAME", help="name of the engine, which must be unused (random by default)")
    add("--permissions-boundary", metavar="ARN", help="a policy that limits every role of the engine")
    add("--yes", action="store_true", help="do not ask")
    add("--dry-run", action="store_true", help="only print the plan and its costs; needs no account")
    add("--finish", action="store_true", help="only tear down what an earlier acceptance left")
    add("--series", action="store_true", help="the whole series: clean generated reviews and train on them first")
    add("--rows", type=at_least(100), metavar="N", help=f"number of generated reviews for --series ({SERIES_ROWS:,})")
    add("--phone", metavar="NUMBER", help="send one SMS to this number; it is written nowhere")
    minutes = at_least(0.1, float)
    add("--idle-minutes", type=minutes, default=3, metavar="M", help="minutes until the model falls asleep (3)")
    add("--instance-types", metavar="NAMES", help="of the endpoint, in order of preference, with commas")
    add("--sms-provider", choices=("textbelt", "sns"), help="the provider of the SMS")
    add("--textbelt-url", metavar="URL", help="address of a server that is compatible with Textbelt")
    add("--site-address", metavar="URL", help="where the page's domain is served, if not at the domain itself")
    add("--state", type=Path, default=MEMORY, metavar="DIR", help="where an unfinished acceptance is recorded")
    add("--report", default="acceptance-report.md", metavar="FILE", help="where to write the report (%(default)s)")
    options = parser.parse_args(words)
    if options.rows and not options.series:
        parser.error("--rows needs --series")
    options.rows = options.rows or SERIES_ROWS
    try:
        options.phone = options.phone and e164(options.phone, Settings().sms_countries)
    except BadPhone as e:
        parser.error(f"--phone: {e}")
    # Options of deploy.py that the plan reads but an acceptance never uses.
    options.domain = options.reserved_concurrency = None
    return options


def lead(options: argparse.Namespace, prefix: str):
    "Point boto3, the settings and the programs at one engine. Settings of another engine in the shell are dropped."
    for name in [name for name in os.environ if name.startswith("SENTIMENT_")]:
        del os.environ[name]
    options.stack_prefix = prefix
    enter(chosen_environment(options) | SAFETY)


def caller(session: boto3.Session) -> tuple[str, str]:  # caller and account, and the account's last four digits
    "Describe the caller. Raises ValueError with advice if AWS does not know one."
    if not session.region_name:
        raise ValueError("no region is set: use --region, such as us-east-1")
    try:
        found = session.client("sts").get_caller_identity()
    except (ClientError, BotoCoreError) as e:
        advice = "Configure the AWS command line (aws configure, or aws sso login), or name a profile with --profile."
        raise ValueError(f"AWS does not know who you are: {e}\n{advice}") from None
    last = found["Account"][-4:]
    return f"{found['Arn'].split(':', 5)[5]} in an account that ends in {last}", last


def effective_profile(options: argparse.Namespace) -> str:
    "Return the profile in use; empty if keys or a role are used instead."
    by_keys = "AWS_ACCESS_KEY_ID" in os.environ
    return options.profile or ("" if by_keys else os.environ.get("AWS_PROFILE", ""))


def new_prefix(session: boto3.Session, wanted: str = "") -> str:
    "Choose a prefix that no stack uses, unless one was requested, and list other acceptances."
    pages = session.client("cloudformation").get_paginator("list_stacks").paginate()
    names = set(pages.search("StackSummaries[?StackStatus!='DELETE_COMPLETE'].StackName"))
    for other in sorted({found[1] for name in names if (found := re.match(r"(accept-[0-9a-f]{4})-", name))}):
        tell(f"Another acceptance, {other}, exists in this account. If no process works on it, delete it:")
        tell(f"  .venv/bin/python {TEARDOWN} --target aws --region {session.region_name} --stack-prefix {other}\n")
    while not wanted:
        prefix = f"accept-{uuid.uuid4().hex[:4]}"
        if not any(name.startswith(prefix) for name in names):
            return prefix
    return wanted


def check_prefix(session: boto3.Session, prefix: str):
    "Check that nothing has the prefix yet. Raises ValueError, also if AWS does not answer an essential call."
    found, unseen = by_name(session, prefix)
    key = textbelt_key_parameter(settings_from(os.environ, prefix=prefix))  # may exist already; goes with the engine
    if taken := [str(thing) for thing in found if not thing.kept and thing.name != key]:
        said = f"{prefix} is taken. An acceptance could not tell its own leftovers from existing resources"
        raise ValueError(f"{said}: {', '.join(taken)}. Choose another --stack-prefix, or none")
    if blind := [str(each) for each in unseen if each.essential]:
        raise ValueError(f"an acceptance could not see whether everything is deleted: {'; '.join(blind)}")


def look_at_account(options: argparse.Namespace) -> list[Finding]:  # problems
    "List the problems of the account. Print those that the acceptance can work around, and leave them out."
    settings = settings_from(os.environ)
    findings = check_account(connect("aws"), settings, SERIES_INSTANCE if options.series else "", trial=True)
    problems = {finding.what: finding for finding in findings if finding.fine is False}
    if problems.pop("Lambda concurrency", None):
        options.reserved_concurrency = False
        tell("The account has no room for reserved concurrency, so the engine is deployed without it.\n")
    if not options.phone and "SMS" in problems:
        del problems["SMS"]
        options.sms_provider = "textbelt"  # deploy.py accepts this and checks only the public key
        tell("The SMS provider is not ready. This run sends no SMS, so the engine gets Textbelt's public key.\n")
    if options.phone and settings.sms_provider == "textbelt" and no_message_left(settings):
        advice = "try tomorrow, leave --phone out, or use --sms-provider sns"
        problems["SMS"] = Finding("SMS", False, f"Textbelt's public key has already sent today's message: {advice}")
    lead(options, options.stack_prefix)
    return list(problems.values())


def no_message_left(settings: Settings) -> bool:
    "Check whether Textbelt's public key, which a new engine uses, has no message left today."
    return Textbelt(settings.textbelt_url, FREE_KEY).quota() == 0


def versions() -> dict[str, str]:
    "Return the versions of everything that takes part."
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = ""
    with suppress(OSError):
        commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    engine = f"{__version__}, commit {commit}" if commit else __version__
    return {
        "sentiment-engine": engine,
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "boto3": boto3.__version__,
    }


def agreed(options: argparse.Namespace, prefix: str) -> bool:
    "Ask for the prefix, unless --yes was given."
    if options.yes:
        return True
    try:
        return input(f"Type {prefix} to go on: ").strip() == prefix
    except EOFError:
        return False


def dry_run(options: argparse.Namespace) -> int:  # exit status
    "Print the plan and the price. Works without credentials, for us-east-1 unless a region is given."
    lead(options, options.stack_prefix or f"accept-{uuid.uuid4().hex[:4]}")
    session = connect("aws")
    try:
        whose = caller(session)[0]
    except ValueError as e:
        whose = "the credentials that you will have"
        tell(f"{e}\n")
        options.region = session.region_name or "us-east-1"
        lead(options, options.stack_prefix)
    settings = settings_from(os.environ)
    region = connect("aws").region_name
    explain(options, settings, planned(options, settings, connect("aws"), False), whose, region)
    tell("The deployment would print:\n")
    words = ["--target", "aws", "--dry-run", "--stack-prefix", settings.prefix, "--region", region]
    words += ["--profile", options.profile] if options.profile else []
    words += [] if options.series else ["--model", "released"]
    return subprocess.run([sys.executable, str(ROOT / DEPLOY), *words], check=False).returncode


def finish_earlier(options: argparse.Namespace, memory: Memory, lock: int, record: Record):
    "Offer to tear down what an earlier acceptance left. Ends the program if the user declines or the teardown fails."
    hours = (time.time() - record.started) / 3600
    tell(
        f"An earlier acceptance, {record.prefix} in {record.region}, was not torn down. It broke off {hours:.1f} hours"
    )
    tell(f"ago during {record.phase!r}, and its resources cost money. It must be deleted before a new one starts.\n")
    given, shell = vars(options).copy(), dict(os.environ)
    options.region, options.profile = record.region, options.profile or record.profile or None
    lead(options, record.prefix)
    whose, last = caller(connect("aws"))
    if last != record.account:
        raise ValueError(f"it is in an account that ends in {record.account}, and you act as {whose}")
    tell(f"This deletes everything of {record.prefix}, as {whose}.")
    if not agreed(options, record.prefix):
        raise ValueError(f"{record.prefix} still stands")
    path, record.process = Path(options.report), os.getpid()
    options.report = str(path.with_stem(f"{path.stem}-{record.prefix}"))
    done = Acceptance(record, memory, lock, options).finish()
    if not done:
        raise SystemExit(1)
    vars(options).update(given)
    os.environ.clear()  # the new acceptance may be in another account
    os.environ.update(shell)


def begin(options: argparse.Namespace, memory: Memory, lock: int) -> bool:  # whether every check passed
    "Explain, ask and accept."
    wanted = options.stack_prefix
    lead(options, "accept")  # for the first questions only
    session = connect("aws")
    whose, last = caller(session)
    prefix, region = new_prefix(session, wanted or ""), session.region_name
    lead(options, prefix)
    check_prefix(session, prefix)
    problems = look_at_account(options)
    settings = settings_from(os.environ)
    explain(options, settings, planned(options, settings, connect("aws"), False), whose, region)
    if problems:
        raise ValueError("\n".join(map(str, ("there are problems:", *problems))))
    if not agreed(options, prefix):
        raise ValueError("the prefix was not typed")
    record = Record(prefix, region, last, effective_profile(options), time.time(), os.getpid(), series=options.series)
    record.versions = versions()
    return Acceptance(record, memory, lock, options).accept()


@tells_cause
def main():
    options, unchanged = parsed(), "Nothing was changed"
    stop_on_signals()
    try:
        if options.dry_run:
            sys.exit(dry_run(options))
        memory = Memory(options.state)
        with memory.locked() as lock:
            if earlier := memory.read():
                finish_earlier(options, memory, lock, earlier)
                unchanged = f"{earlier.prefix} was deleted, and nothing else was changed"
            elif options.finish:
                tell("There is no unfinished acceptance.")
            sys.exit(0 if options.finish or begin(options, memory, lock) else 1)
    except InProgress as e:
        sys.exit(f"An acceptance is already running: {e}. Wait until it ends.")
    except Abandoned:
        sys.exit("\nThe teardown was left. `make aws-acceptance` offers to finish it.")
    except KeyboardInterrupt:
        sys.exit(f"\nInterrupted. {unchanged}.")
    except (ValueError, KeyError, TypeError, RuntimeError, ClientError, BotoCoreError) as e:
        sys.exit(f"{unchanged}: {e}")


if __name__ == "__main__":
    main()
