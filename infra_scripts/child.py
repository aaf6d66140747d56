"""Run another program to its end, whatever the user presses meanwhile: for acceptance.py."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a cancelled workflow, a closed terminal
INSIST = 2.0  # seconds after the warning from which another Ctrl-C counts: some people press it five times
STOPPING = 2700.0  # seconds that a program may take to stop: deploy.py waits for its trial endpoint


class Abandoned(BaseException):
    "Raised if the user ends the teardown after reading the warning."


class Late(RuntimeError):
    "Raised for a program that did not end in time and was stopped."


class Interrupts:
    """What a signal does: the first ends the work, so that the teardown begins; the next one explains why to wait.

    Only a third one, after the explanation, raises Abandoned.
    """

    def __init__(self, warning: str):
        self.warning = warning  # what to read before leaving a teardown
        self.ending = False  # whether the teardown has begun
        self._warned, self._shielded, self._pending, self._before = None, False, None, {}

    def __enter__(self) -> "Interrupts":
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def shielded(self) -> Iterator[None]:
        "Keep a signal back until the block is over."
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
        if (pending := self._pending) is not None:
            self._pending = None
            self._handle(pending)

    def _handle(self, number: int, frame: object = None):
        if self._shielded:
            self._pending = number
        elif not self.ending:
            self.ending = True
            raise KeyboardInterrupt
        elif number == signal.SIGHUP:
            pass  # a closed terminal cannot show a warning
        elif self._warned is None:
            self._warned = time.monotonic()
            with contextlib.suppress(OSError):
                os.write(2, f"\n{self.warning}\n".encode())  # print may be at work below this handler
        elif time.monotonic() - self._warned > INSIST:
            raise Abandoned


def _read(stream, lines: queue.Queue):
    "Pass lines on as they come, then None."
    with stream:
        for line in stream:
            lines.put(line.rstrip())
    lines.put(None)


def _follow(process: subprocess.Popen, lines: queue.Queue, limit: float, hear: Callable, idle: Callable):
    "Receive every line until the program ends. Raises Late after `limit` seconds."
    start = time.monotonic()
    while (passed := time.monotonic() - start) <= limit:
        try:
            if (line := lines.get(timeout=0.5)) is None:
                return
            hear(line)
        except queue.Empty:
            if process.poll() is not None:  # what it started may hold its output open
                return
            idle(passed)
    raise Late(f"it did not end within {limit / 60:.0f} minutes")


def _stop(process: subprocess.Popen, lines: queue.Queue, hear, idle):
    "Interrupt a program and wait for its cleanup; kill it if that takes too long."
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        _follow(process, lines, STOPPING, hear, idle)
        process.wait(60)
    except (Late, subprocess.TimeoutExpired):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_program(
    words: Sequence[str],  # a Python script and its options
    env: Mapping[str, str],
    limit: float,  # seconds
    interrupts: Interrupts,
    hear: Callable[[str], object],  # gets each line that it prints
    idle: Callable[[float], object] = lambda passed: None,  # called while it prints nothing, with the seconds so far
    held: Sequence[int] = (),  # file descriptors that it keeps open, such as a lock's
) -> int:  # exit status
    "Run a Python program and pass its output on. If this one is interrupted, it is stopped as by Ctrl-C first."
    lines: queue.Queue = queue.Queue()
    process = None
    try:
        with interrupts.shielded():  # a program that runs is always known here
            process = subprocess.Popen(
                [sys.executable, *words],
                env=dict(env) | {"PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                pass_fds=tuple(held),
                start_new_session=True,  # the terminal's Ctrl-C comes here first
            )
            threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
        _follow(process, lines, limit, hear, idle)
        return process.wait()
    except Abandoned:
        raise
    except BaseException:
        if process:
            _stop(process, lines, hear, idle)
        raise
