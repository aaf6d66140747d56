"""What an acceptance remembers while it works, and the report that it becomes: for acceptance.py."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from scrub import scrub


@dataclass
class Check:
    "One thing that had to hold."

    title: str
    passed: bool
    seen: str
    at: float  # seconds since the acceptance began


@dataclass
class Failure:
    "A phase that broke off, and the last lines that say why."

    phase: str
    lines: list[str]


@dataclass
class Record:
    "One acceptance, from its first question to its report. It is kept on disk, so it holds no phone number or key."

    prefix: str
    region: str
    account: str  # its last four digits: to know it again
    profile: str = ""  # of the AWS command line; empty: whatever the shell says
    started: float = 0.0  # seconds since 1970
    process: int = 0  # that works on it
    phase: str = "beginning"
    series: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # phase: how long it took
    checks: list[Check] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)  # about costs and times
    failures: list[Failure] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # what a teardown should have deleted
    kept: list[str] = field(default_factory=list)  # what AWS keeps
    unknown: list[str] = field(default_factory=list)  # what could not be looked at while the engine was up
    unseen: list[str] = field(default_factory=list)  # what could not be looked at after the teardown
    gone: bool = False  # whether the teardown has done its work
    known: list[str] = field(default_factory=list)  # ids that must not be in the report

    @property
    def passed(self) -> bool:
        "Whether everything held."
        return bool(self.gone and self.checks) and not self.failures and all(check.passed for check in self.checks)


def record_from(text: str) -> Record:
    "Read a record that was kept. Raises ValueError or TypeError if it is none."
    data = json.loads(text)
    data["checks"] = [Check(**each) for each in data["checks"]]
    data["failures"] = [Failure(**each) for each in data["failures"]]
    return Record(**data)


class Busy(RuntimeError):
    "Another process is at work on the acceptance of this folder."


class Memory:
    "The folder that remembers an unfinished acceptance, also after this process was killed."

    def __init__(self, folder: Path):
        self.folder, self.file = folder, folder / "unfinished.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:  # the lock's file descriptor
        "Hold the folder's lock. Raises Busy. A program that is given the descriptor holds it too, as long as it runs."
        self.folder.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                record = self.read()
                whose = record and f"process {record.process}, or a program that it started, works on {record.prefix}"
                raise Busy(whose or "one begins") from None
            yield lock
        finally:
            os.close(lock)

    def read(self) -> Record | None:
        "Return the unfinished acceptance, if there is one."
        try:
            return record_from(self.file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def write(self, record: Record):
        "Keep the record. A kill leaves either the old or the new one."
        new = self.file.with_suffix(".new")
        with open(new, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            json.dump(asdict(record), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.file)

    def forget(self):
        "Remember nothing more: everything is deleted."
        self.file.unlink(missing_ok=True)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    "Write a table in Markdown."
    lines = [head, tuple("---" for _ in head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in lines]


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", f"## {title}", "", *lines] if lines else []


def verdict(record: Record) -> str:
    "Say in one sentence how it ended."
    wrong = [check for check in record.checks if not check.passed]
    blind = len(record.unknown) + len(record.unseen)
    rest = f" Could not be looked at: {blind}, listed in the report." if blind else ""
    if record.passed:
        return f"Passed: all {len(record.checks)} checks hold, and everything is deleted.{rest}"
    parts = [f"{len(wrong)} of {len(record.checks)} checks failed"] if wrong else []
    parts += [f"{failure.phase} broke off" for failure in record.failures]
    parts += [] if record.gone else ["not everything is deleted"]
    return f"Not passed: {', '.join(parts) or 'it did not get to its end'}.{rest}"


LONGEST = 300  # characters of what a check saw


def report(record: Record, secrets: tuple[str, ...] = ()) -> str:  # Markdown
    "Write the report, without anything that identifies the account or a person."
    known = (*record.known, *secrets)

    def short(seen: str) -> str:
        return scrub(seen, known)[:LONGEST]  # in this order: half an address would not be recognised

    checks = [("yes" if c.passed else "**NO**", c.title, short(c.seen), f"{c.at:.0f} s") for c in record.checks]
    phases = [(name, f"{seconds:.1f} s") for name, seconds in record.seconds.items()]
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(record.started))
    facts = {"prefix": record.prefix, "region": record.region, "begun": when} | record.versions
    lines = ["# Acceptance on AWS", "", verdict(record)]
    lines += _section("Where and with what", [f"- {name}: {value}" for name, value in facts.items()])
    lines += _section("Times", _table(("phase", "time"), phases) if phases else [])
    lines += _section("Checks", _table(("holds", "check", "seen", "after"), checks) if checks else [])
    lines += _section("Answers", [f"- {answer}" for answer in record.answers])
    lines += _section("Figures", [f"- {figure}" for figure in record.figures])
    for failure in record.failures:
        lines += _section(f"Broke off: {failure.phase}", ["```text", *failure.lines, "```"])
    lines += _section("Left, and should not be", [f"- {thing}" for thing in record.left])
    lines += _section("Kept by AWS, free", [f"- {thing}" for thing in record.kept])
    lines += _section("Could not be looked at", [f"- {thing}" for thing in [*record.unknown, *record.unseen]])
    return scrub("\n".join(lines) + "\n", known)
