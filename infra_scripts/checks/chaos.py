"""Kill parts of the engine at random while visitors use it, and check its promises.

A separate local cloud, with a model of a few words, receives random traffic. Meanwhile, kill -9 hits Lambda workers,
the endpoint's process and the cloud itself, which then restarts on the same folder, and the clock jumps. At the end the
traffic stops, the reconciler runs twice, and the script checks the promises:

- no endpoint and no endpoint config is left, and the row's state says that the model is asleep;
- at no moment were two endpoints in service;
- no prediction was refused because the model was asleep: the standby answered;
- no number is stored any more, and no number got two messages;
- no process of the engine is left when the cloud has stopped.

It does not check that every number gets its message. If a Lambda is killed while it sends one, the message counts as
failed, because a duplicate would be worse. The table shows how many of the promised messages arrived.
"""

import contextlib
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil
from botocore.exceptions import BotoCoreError, ClientError

from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser, at_least
from sentiment_engine.service.model_state import FAILED, STOPPED, StateTable, read_row

# The engine of the tests, deployed from the real templates, with a model that needs no training.
from tests.doubles.engine import Engine, running_engine
from tests.doubles.local_models import until

KINDS = {"a Lambda worker": 7, "the endpoint": 3, "the cloud": 1}  # target of a kill: relative frequency
REQUESTS = {"status": 4, "start": 3, "predict": 4, "extend": 1}  # path: relative frequency


class Chaos:
    "One run: the traffic, the kills and the observations."

    def __init__(self, engine: Engine, seed: int):
        self.engine, self.cloud, self.api = engine, engine.cloud, engine.api_url
        self.random, self.stop = random.Random(seed), threading.Event()
        self.kills: Counter[str] = Counter()
        self.answers: Counter[tuple[str, str]] = Counter()
        self.promised: list[str] = []
        self.broken: list[str] = []
        self.runs: set[str] = set()
        self.numbers, self.most, self.restarting = iter(range(10_000)), 0, threading.Lock()

    def visit(self, seed: int):
        "Send random requests until the end."
        dice = random.Random(seed)
        while not self.stop.is_set():
            path = dice.choices(list(REQUESTS), list(REQUESTS.values()))[0]
            self.ask(path, dice)
            self.stop.wait(dice.uniform(0.05, 0.4))

    def ask(self, path: str, dice: random.Random):
        "Send one request and record the result."
        number, body = None, {"inputs": "warm and lovely"} if path == "predict" else {}
        if path == "start" and dice.random() < 0.7:
            n = next(self.numbers)
            number = f"+1{(202, 203, 205, 206)[n // 100 % 4]}555{n % 100 + 100:04}" if n < 400 else None
            body = {"phone": number} if number else {}
        try:
            method, sent = ("GET", None) if path == "status" else ("POST", body)
            answer = httpx.request(method, f"{self.api}/{path}", json=sent, timeout=40, trust_env=False)
            known = answer.json()
        except (httpx.HTTPError, ValueError) as e:
            self.answers[path, type(e).__name__] += 1
            return
        self.answers[path, str(answer.status_code)] += 1
        if answer.status_code == 202:
            self.runs.add(known["runId"])
            if number:
                self.promised.append(number)

    def watch(self):
        "Count the endpoints in service, of which there must never be two."
        sagemaker = self.cloud.client("sagemaker")
        while not self.stop.wait(0.5):
            with contextlib.suppress(ClientError, BotoCoreError):
                found = sagemaker.list_endpoints(StatusEquals="InService")["Endpoints"]
                self.most = max(self.most, len(found))

    def victims(self, kind: str) -> list[psutil.Process]:
        "List the processes that a kill of this kind may hit."
        with contextlib.suppress(psutil.Error, RuntimeError):
            server = psutil.Process(self.cloud.place["pid"])
            if kind == "the cloud":
                return [server]
            children = {p: p.cmdline() for p in server.children(recursive=True)}
            serving = [p for p, command in children.items() if "sentiment_engine.model.serving" in command[1:3]]
            guards = [p for p, command in children.items() if "sentiment_engine.model.serving" in command[3:]]
            return serving if kind == "the endpoint" else [p for p in children if p not in serving + guards]
        return []

    def kill(self):
        "Kill a process; restart the cloud if it was the cloud."
        kind = self.random.choices(list(KINDS), list(KINDS.values()))[0]
        if not (victims := self.victims(kind)):
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            self.random.choice(victims).kill()
            self.kills[kind] += 1
        if kind == "the cloud":
            time.sleep(0.5)
            self.cloud.start(detached=False)

    def storm(self, seconds: float):
        "Run the traffic and the kills for `seconds`."
        threads = [threading.Thread(target=self.visit, args=(self.random.random(),), daemon=True) for _ in range(4)]
        threads.append(threading.Thread(target=self.watch, daemon=True))
        for thread in threads:
            thread.start()
        self.ask("start", self.random)
        began = time.monotonic()
        try:
            while (passed := time.monotonic() - began) < seconds:
                print(f"\r{passed:3.0f} of {seconds:g} s, {sum(self.kills.values())} kills", end="", flush=True)
                time.sleep(self.random.uniform(1, 3))
                self.kill()
                if self.random.random() < 0.25:
                    with contextlib.suppress(OSError):
                        self.cloud.advance_clock(self.random.choice([120, 600, 2000]))
        finally:
            self.stop.set()
            print()
        for thread in threads:
            thread.join(60)

    def reconciled(self) -> bool:
        "Run the reconciler, unless its schedule is running it at this moment."
        functions, name = self.cloud.client("lambda"), f"{self.engine.settings.prefix}-reconcile-model-service"
        with contextlib.suppress(functions.exceptions.TooManyRequestsException):
            functions.invoke(FunctionName=name, Payload=b"{}")
            return True
        return False

    def settle(self):
        "Let every deadline pass and the reconciler run."
        self.cloud.advance_clock(self.engine.settings.max_run_minutes * 60 + 3600)
        for _ in range(2):
            until(self.reconciled)
            time.sleep(3)  # an endpoint disappears a moment after its deletion

    def check(self):
        "Record every broken promise."
        sagemaker, settings = self.cloud.client("sagemaker"), self.engine.settings
        row = read_row(StateTable(self.cloud.client("dynamodb"), settings.table, settings.model_id))
        told = Counter(message["to"] for message in self.engine.messages())
        left = [e["EndpointName"] for e in sagemaker.list_endpoints()["Endpoints"]]
        left += [c["EndpointConfigName"] for c in sagemaker.list_endpoint_configs()["EndpointConfigs"]]
        refused = self.answers["predict", "409"]
        self.told = sum(number in told for number in self.promised)
        promises = {
            f"the model is asleep (state {row.state})": row.state in (STOPPED, FAILED),
            f"no endpoint or config is left ({len(left)} are)": not left,
            f"never two endpoints in service (at most {self.most})": self.most <= 1,
            f"no prediction waits for the endpoint ({refused} were refused)": not refused,
            f"no number is stored ({len(row.subscribers)} are)": not row.subscribers,
            "no number gets two messages": max(told.values(), default=0) <= 1,
        }
        self.broken += [promise for promise, kept in promises.items() if not kept]

    def report(self):
        "Print the counts and the verdict."
        print("\nkills      ", dict(self.kills))
        for path in REQUESTS:
            print(f"{'/' + path:11}", {how: n for (p, how), n in sorted(self.answers.items()) if p == path})
        print(f"runs        {len(self.runs)}")
        print(f"messages    {len(self.promised)} promised, {self.told} sent")
        print("verdict    ", "; ".join(f"BROKEN: {b}" for b in self.broken) or "every promise was kept")


def left_behind(folder: Path) -> list[str]:
    "List the processes that still run in `folder`."
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(folder) in " ".join(process.cmdline()) + " " + json.dumps(process.environ()):
                found.append(" ".join(process.cmdline())[:100])
    return found


@tells_cause
def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--seconds", type=at_least(1, float), default=60, help="duration of the run (60)")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="seed of the random choices, for a similar run"
    )
    given = parser.parse_args(argv)
    print(f"seed {given.seed}: deploying the engine", flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        with running_engine(Path(folder), waking_seconds=1, standby=True) as engine:
            chaos = Chaos(engine, given.seed)
            chaos.storm(given.seconds)
            chaos.settle()
            chaos.check()
        time.sleep(1)
        if left := left_behind(Path(folder)):
            chaos.broken.append(f"no process is left behind ({len(left)} are: {left[0]} …)")
        chaos.report()
    return 1 if chaos.broken else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped; nothing is left running")
