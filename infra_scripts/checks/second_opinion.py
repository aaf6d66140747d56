"""Check whether moto, a second emulator of AWS, accepts the calls that the local cloud accepted.

    .venv/bin/python infra_scripts/checks/second_opinion.py                 # our templates only
    .venv/bin/python infra_scripts/local_cloud.py start --record calls.jsonl
    …                                                                # deploy, visit, tear down
    .venv/bin/python infra_scripts/checks/second_opinion.py calls.jsonl

The script plays a recording (nbs/local/requests.ipynb) in order. When a call creates, updates or deletes a stack,
the calls that CloudFormation would make follow. botocore's description of each service judges all of them too. The exit
status is 1 if moto refuses a call that the local cloud accepted, unless second_opinion_allowed.yaml gives a reason. It
is also 1 if the file gives a reason that matches no refusal.

Some values differ between two clouds, so the script replaces them:
- identifiers that a cloud chooses (upload ids, versions, tokens, receipts): the script compares both answers to a call,
  and from then on replaces the recording's identifier with moto's;
- names that CloudFormation chooses, such as those of buckets and roles: moto uses the recording's;
- the account: moto starts with the recording's;
- the host in the address of a queue;
- an endpoint that is being deleted: AWS describes it for minutes, moto forgets it at once;
- bytes, which a recording does not contain: the script sends as many zeros, without checksums;
- bucket policies: moto ignores their conditions, so the script deletes them once moto has accepted them.

moto runs in a separate environment (.moto) and forgets everything when it ends.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

import boto3
import yaml
from botocore import xform_name
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser
from sentiment_engine.deploy.plan import read_template
from sentiment_engine.deploy.stacks import template_argument
from sentiment_engine.deploy.template_calls import Made, Stack, calls_of, deletions_of, unmade
from sentiment_engine.local.requests import UNREAD, complaints, identifiers, read_recording

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / ".moto"
MOTO = "moto[server]==5.2.5"
TEMPLATES = ROOT / "infra_scripts/templates"
ALLOWED = Path(__file__).with_name("second_opinion_allowed.yaml")
JUDGED: tuple[str, ...]
JUDGED = ("dynamodb", "events", "iam", "logs", "s3", "sagemaker", "sagemaker-runtime", "scheduler", "sns", "sqs", "ssm")
JUDGED += ("sts",)
UNKNOWN = ("UnknownOperationException", "InvalidAction", "NotYetImplemented")  # moto's errors for unknown operations
KEYS = {"aws_access_key_id": "local", "aws_secret_access_key": "local", "region_name": "us-east-1"}


def installed() -> Path:
    "Return moto's server. Installs it first if necessary."
    stamp = PLACE / "installed"
    PLACE.mkdir(exist_ok=True)
    with _locked(PLACE):  # two processes may need it at the same moment
        if not stamp.exists() or stamp.read_text() != MOTO:
            print("Installing moto into .moto (about a minute)", flush=True)
            subprocess.run([sys.executable, "-m", "venv", PLACE], check=True)
            subprocess.run([PLACE / "bin" / "pip", "install", "-qq", "--disable-pip-version-check", MOTO], check=True)
            stamp.write_text(MOTO)
    return PLACE / "bin" / "moto_server"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    "Lock a folder, so that other processes wait for it."
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


@dataclass
class Moto:
    "A running moto."

    url: str
    log: Path  # its log
    read: int = 0  # bytes of the log read so far

    def why(self) -> str:
        "Return the exception behind moto's last answer with status 500."
        with self.log.open("rb") as file:
            file.seek(self.read)
            text = file.read().decode("utf-8", "replace")
            self.read = file.tell()
        return ([line for line in text.splitlines() if re.match(r"[\w.]+(Error|Exception)\b", line)] or [""])[-1]


@contextlib.contextmanager
def moto(account: str) -> Iterator[Moto]:
    "Run moto for a while. Raises RuntimeError if it does not start."
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command, env = [str(installed()), "-H", "127.0.0.1", "-p", str(port)], os.environ | {"MOTO_ACCOUNT_ID": account}
    with tempfile.NamedTemporaryFile(prefix="moto-", suffix=".log") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            _await(port)
            yield Moto(f"http://127.0.0.1:{port}", Path(log.name))
        finally:
            server.terminate()
            server.wait(20)


def _await(port: int):
    "Wait until moto listens."
    for _ in range(300):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise RuntimeError("moto did not start within half a minute")


@dataclass(frozen=True)
class Verdict:
    "moto's verdict on one call."

    service: str
    operation: str
    ours: str  # error code of the local cloud's refusal; empty: it accepted the call
    theirs: str  # likewise for moto
    reason: str = ""
    known: bool = True  # whether moto knows the operation
    derived: bool = False  # whether CloudFormation makes the call

    @property
    def outcome(self) -> str:
        "accepted, agreed (both refuse), refused (only moto does), milder (only the local cloud does) or unknown."
        if not self.known:
            return "unknown"
        if not self.theirs:
            return "milder" if self.ours else "accepted"
        return "refused" if not self.ours else "agreed" if self.ours == self.theirs else "milder"


@dataclass
class Replay:
    "Sends calls to moto."

    moto: Moto
    standing: dict[str, str] = field(default_factory=dict)  # an identifier of the recording → moto's
    clients: dict = field(default_factory=dict)
    going: set[str] = field(default_factory=set)  # endpoints whose deletion moto has accepted

    def ask(self, made: Made, ours: str = "", ids: Mapping[str, str] | None = None, derived: bool = False) -> Verdict:
        "Make a call and record which identifiers correspond."
        service, operation, params = made
        if service not in self.clients:
            config = Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"})
            self.clients[service] = boto3.client(service, endpoint_url=self.moto.url, config=config, **KEYS)
        call = getattr(self.clients[service], xform_name(operation))
        verdict = partial(Verdict, service, operation, ours, derived=derived)
        try:
            answer = call(**self.translated(params))
        except (ClientError, ResponseParserError) as e:
            answer = getattr(e, "response", {})
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
            code, reason = answer.get("Error", {}).get("Code", "500"), answer.get("Error", {}).get("Message", "")
            if status >= 500:
                reason = self.moto.why()
            forgotten = operation == "DescribeEndpoint" and reason.startswith("Could not find endpoint")
            if forgotten and params["EndpointName"] in self.going:
                return verdict(theirs=ours)
            known = code not in UNKNOWN and not reason.startswith("NotImplementedError")
            return verdict(theirs=code, reason=reason, known=known)
        except BotoCoreError as e:  # boto3 did not send it
            return verdict(theirs=type(e).__name__, reason=str(e))
        if operation == "DeleteEndpoint":
            self.going.add(params["EndpointName"])
        if operation == "PutBucketPolicy":
            self.clients[service].delete_bucket_policy(Bucket=params["Bucket"])
        for path, text in identifiers(answer):
            if (old := (ids or {}).get(path)) and old != text:
                self.standing.setdefault(old, text)
        return verdict(theirs="")

    def translated(self, params: dict) -> dict:
        "Return parameters in the form that moto accepts."
        kept = {k: v for k, v in params.items() if not k.startswith("Checksum") and k not in ("ContentMD5", "Accept")}
        return {key: self._value(value, key) for key, value in kept.items()}

    def _value(self, value: object, key: str) -> object:
        if isinstance(value, dict) and "$bytes" in value:
            return bytes(value["$bytes"])
        if isinstance(value, dict) and "$time" in value:
            return datetime.fromisoformat(value["$time"])
        if isinstance(value, dict):
            return self.translated(value)
        if isinstance(value, list):
            return [self._value(item, key) for item in value]
        if key == "QueueUrl" and isinstance(value, str):
            return re.sub(r"^https?://[^/]+", self.moto.url, value)
        return self.standing.get(value, value) if isinstance(value, str) else value


def lines_of_templates() -> list[dict]:
    "Return a recording of a deployment of our templates with defaults, an alarm address and their required parameters."
    lines = []
    for path in (TEMPLATES / f"{name}.yaml" for name in ("deployer", "foundation", "site", "backend", "monitoring")):
        needed = {k: "owner/name" for k, p in read_template(path)["Parameters"].items() if "Default" not in p}
        given = needed | ({"AlarmEmail": "alarms@example.com"} if path.stem == "monitoring" else {})
        parameters = [{"ParameterKey": k, "ParameterValue": v} for k, v in given.items()]
        params = {"StackName": path.stem, **template_argument(path), "Parameters": parameters}
        line = {"service": "cloudformation", "operation": "CreateStack", "params": params, "error": "", "ids": {}}
        lines.append(line | {"complaints": complaints("cloudformation", "CreateStack", params)})
    return lines


def account_of(lines: list[dict]) -> str:
    "Return the account of a recording: the one that its ARNs name most often."
    found = Counter(re.findall(r"arn:aws:\w+:[\w-]*:(\d{12}):", json.dumps(lines)))
    return found.most_common(1)[0][0] if found else "000000000000"


def stored_template(address: str) -> str:  # empty: the address is not the engine's
    "Return the template that a deployment has put into S3. Raises RuntimeError if it has changed since."
    if not (found := re.search(r"/templates/(\w+)-([0-9a-f]{16})\.yaml$", address)):
        return ""
    body = (TEMPLATES / f"{found[1]}.yaml").read_bytes()
    if not hashlib.sha256(body).hexdigest().startswith(found[2]):
        raise RuntimeError(f"{found[1]}.yaml has changed since the recording was made: record again")
    return body.decode()


class Stacks:
    "The stacks of a recording, and the calls that CloudFormation makes for them."

    def __init__(self, lines: list[dict], account: str):
        self.text, self.account = json.dumps(lines), account
        self.made: dict[str, list[Made]] = {}  # by stack
        self.sets: dict[tuple[str, str], dict] = {}  # change sets: parameters of CreateChangeSet
        self.left: list[str] = []  # types without calls

    def calls_after(self, line: dict) -> list[Made]:
        "Return CloudFormation's own calls after a call to it."
        params, operation = line["params"], line["operation"]
        if line["service"] != "cloudformation" or line["error"]:
            return []
        key = (params.get("StackName", ""), params.get("ChangeSetName", "").rpartition("/")[2])
        if operation == "CreateChangeSet":
            self.sets[key] = params
        elif operation in ("CreateStack", "UpdateStack", "ExecuteChangeSet"):
            return self._changes(self.sets.get(key, params))
        elif operation == "DeleteStack":
            return deletions_of(self.made.pop(params["StackName"], []))
        return []

    def _changes(self, params: dict) -> list[Made]:
        "Return the calls that have not been made for the stack yet."
        name, body = params["StackName"], params.get("TemplateBody") or stored_template(params.get("TemplateURL", ""))
        if not body:
            return []
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(body)
            file.flush()
            template = read_template(Path(file.name))
        given = {p["ParameterKey"]: p["ParameterValue"] for p in params.get("Parameters", ()) if "ParameterValue" in p}
        stack = Stack(name, template, given, self.account, names=self._names(name, template))
        before = self.made.get(name, [])
        self.made[name], self.left = calls_of(stack), self.left + (unmade(stack) if not before else [])
        there = [_identity(call) for call in before]
        return [call for call in self.made[name] if call not in before and _identity(call) not in there]

    def _names(self, stack: str, template: Mapping) -> dict[str, str]:
        "Find the names that CloudFormation chose in the recording."
        found = {}
        for logical in template["Resources"]:
            if seen := re.search(rf"{re.escape(stack)}-{logical}-\w+", self.text, re.IGNORECASE):
                found[logical] = seen[0]
        return found


def _identity(call: Made) -> tuple | None:
    "Return what a call creates; None: nothing."
    return (call[1], next(iter(call[2].values()))) if call[1].startswith("Create") else None


def judged(lines: list[dict], judge: Moto, account: str) -> tuple[list[Verdict], list[str], Counter]:
    "Play a recording; return the verdicts, what botocore's description forbids, and the calls that neither judges."
    replay, stacks, verdicts, wrong = Replay(judge), Stacks(lines, account), [], []
    left: Counter[str] = Counter()
    for line in lines:
        made = (line["service"], line["operation"], line["params"])
        wrong += [f"{line['service']} {line['operation']}: {text}" for text in line["complaints"] if not line["error"]]
        if line["operation"] == UNREAD:
            left["requests that the gate could not parse"] += 1
        elif line["service"] in JUDGED:
            verdicts.append(replay.ask(made, line["error"], line["ids"]))
        else:
            left[f"calls of {line['service']}"] += 1
        for service, operation, params in stacks.calls_after(line):
            wrong += [f"{service} {operation} (template): {text}" for text in complaints(service, operation, params)]
            verdicts.append(replay.ask((service, operation, params), derived=True))
    left.update(f"resources {kind}" for kind in stacks.left)
    return verdicts, wrong, left


def table(verdicts: list[Verdict]) -> str:
    "Format the verdicts on the calls as a table, by service."
    names = ("accepted", "agreed", "milder", "refused", "unknown")
    rows: list[tuple[str, ...]] = [("service", "calls", *names)]
    for service in sorted({v.service for v in verdicts}):
        counts = Counter(v.outcome for v in verdicts if v.service == service)
        rows.append((service, str(counts.total()), *(str(counts[name]) for name in names)))
    return "\n".join(f"{row[0]:<12}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in rows)


def findings(verdicts: list[Verdict], allowed: list[dict]) -> tuple[list[str], list[str]]:  # counting, known
    "Return the refusals that count, with the reasons that match none, and the known refusals with reasons."
    refused = {(_call(v), v.theirs) for v in verdicts if v.outcome == "refused"}
    stale = [f"{a['call']}: {a['code']}" for a in allowed if (a["call"], a["code"]) not in refused]
    counting, known = [f"{text}: moto no longer refuses this: remove it from {ALLOWED.name}" for text in stale], []
    for verdict, times in Counter(v for v in verdicts if v.outcome == "refused").items():
        said = f"{verdict.service} {verdict.operation}: {verdict.theirs}: {verdict.reason}"
        said += " (from a template)" * verdict.derived + f" ({times} times)" * (times > 1)
        why = [a["why"] for a in allowed if (a["call"], a["code"]) == (_call(verdict), verdict.theirs)]
        known.append(f"{said}\n    {why[0]}") if why else counting.append(said)
    return counting, known


def asked(verdicts: list[Verdict], allowed: list[dict]) -> list[dict]:
    "Return the reasons whose calls were made: our templates alone make only some of them."
    return [entry for entry in allowed if entry["call"] in {_call(verdict) for verdict in verdicts}]


def _call(verdict: Verdict) -> str:
    return f"{verdict.service} {verdict.operation}"


def report(verdicts: list[Verdict], wrong: list[str], left: Counter, allowed: list[dict]) -> int:  # exit status
    "Print both opinions."
    counting, known = findings(verdicts, allowed)
    print(table(verdicts))
    print("accepted: by both.  agreed: refused by both.  milder: moto accepted, or refused differently, what the local")
    print("cloud refused.  refused: by moto only.  unknown: moto does not know the operation.")
    unknown = sorted({_call(v) for v in verdicts if v.outcome == "unknown"})
    for title, entries in (
        ("Refused by moto only", counting),
        ("Forbidden by botocore's description", sorted(set(wrong))),
        ("Refused by moto only, and known", known),
        ("Unknown to moto", unknown),
        ("Judged by neither", [f"{count:4} {what}" for what, count in sorted(left.items())]),
    ):
        if entries:
            print(f"\n{title}:", *entries, sep="\n  ")
    return 1 if counting or wrong else 0


@tells_cause
def main(argv: list[str] | None = None) -> int:
    "Play a recording to moto and print the report; return the exit status."
    parser = Parser(description=__doc__)
    parser.add_argument("recording", type=Path, nargs="?", help="default: a recording of our templates")
    recording = parser.parse_args(argv).recording
    lines = read_recording(recording) if recording else lines_of_templates()
    account = account_of(lines)
    with moto(account) as judge:
        verdicts, wrong, left = judged(lines, judge, account)
    allowed = yaml.safe_load(ALLOWED.read_text())["refusals"]
    return report(verdicts, wrong, left, allowed if recording else asked(verdicts, allowed))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, subprocess.CalledProcessError) as e:
        sys.exit(f"second opinion: {e}")
