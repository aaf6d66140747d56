"""Let 100, 500 and 2,000 visitors use the engine at once, with CloudFront's cache and without it.

The engine runs on a local cloud, with the large model awake and the small one as its standby. Each visitor arrives
within five seconds, polls /status as the page does, and requests one prediction. With the cache, the requests go to the
page's address. Without it, they go to the API itself. Every crowd gets the same time. A request without an answer
counts as an error.

One machine runs the visitors, the cloud, the functions and the models. The local cloud runs four calls of a function at
a time, so these are the times of this machine. The reads of the table are the same on AWS, except that CloudFront has
several caches there.
"""

import argparse
import asyncio
import math
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from benchmarks.load import split_answer
from benchmarks.report import CACHE, ROOT, begin, busy, table, write_json
from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser
from sentiment_engine.local.requests import read_recording

# The engine of the tests, deployed from the real templates; its standby has the released model.
from tests.doubles.engine import Engine, running_engine

RESULT = ROOT / "benchmarks/results/crowd.json"
CROWDS = (100, 500, 2000)  # visitors
ARRIVAL, PACE = 5.0, 20.0  # seconds: in which all arrive, and between two polls of the page
MOST = 38.0  # seconds for one crowd
PATIENCE = 15.0  # seconds after which the page gives up
REVIEW = b'{"inputs": "Warm and lovely, but the handle wobbles."}'


@dataclass
class Seen:
    "What a crowd of visitors saw."

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"/status": [], "/predict": []})
    errors: Counter = field(default_factory=Counter)  # by HTTP status, or "none" without an answer
    standby: int = 0  # predictions of the small model
    hits: int = 0  # answers from the cache
    asked: int = 0  # requests

    def p95(self, path: str) -> float:  # seconds; infinite if nobody got an answer
        "Return the time within which 95 % of the answers came."
        times = sorted(self.seconds[path])
        return times[math.ceil(0.95 * len(times)) - 1] if times else math.inf


class Visitor:
    "One browser with its connection. Plain sockets use little of the machine that runs everything else."

    def __init__(self, api: str, seen: Seen):
        self.place, self.seen = urlsplit(api), seen
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def question(self, path: str) -> bytes:
        "Build a request for a connection that stays open."
        body = REVIEW if path == "/predict" else b""
        head = f"{'POST' if body else 'GET'} {self.place.path}{path} HTTP/1.1\r\nHost: {self.place.netloc}\r\n"
        kind = "Content-Type: application/json\r\n" if body else ""
        return f"{head}{kind}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def answer(self, path: str) -> tuple[int, bytes]:  # status, and the whole answer
        "Send a request and read its answer. Raises OSError or ValueError if there is none."
        if not self.streams:
            self.streams = await asyncio.open_connection(self.place.hostname, self.place.port)
        reader, writer = self.streams
        writer.write(self.question(path))
        received = b""
        while not (found := split_answer(received)):
            if not (more := await reader.read(65_536)):
                raise ConnectionError("the server hung up")
            received += more
        return found[0], received

    async def ask(self, path: str):
        "Make one request and note its time or its error."
        self.seen.asked += 1
        error, began = "none", time.perf_counter()
        try:
            async with asyncio.timeout(PATIENCE):
                status, received = await self.answer(path)
            error = "" if status == 200 else str(status)
        except (OSError, ValueError):
            self.streams = None
        finally:
            self.seen.errors.update([error] if error else [])
        if not error:
            self.seen.seconds[path].append(time.perf_counter() - began)
            self.seen.hits += b"Hit from cloudfront" in received
            self.seen.standby += b'"answeredBy": "standby"' in received

    async def visit(self, chance: random.Random):
        "Arrive, poll, request a prediction at some time, and poll again."
        arrival, reading = chance.uniform(0, ARRIVAL), chance.uniform(1, PACE)
        await asyncio.sleep(arrival)
        await self.ask("/status")
        await asyncio.sleep(reading)
        await self.ask("/predict")
        await asyncio.sleep(max(0.0, PACE - reading))
        await self.ask("/status")


async def crowd(api: str, visitors: int) -> Seen:
    "Let visitors use an API at the same time."
    seen, chance = Seen(), random.Random(visitors)  # the same crowd each time
    guests = [Visitor(api, seen) for _ in range(visitors)]
    visits = [asyncio.create_task(guest.visit(chance)) for guest in guests]
    _, late = await asyncio.wait(visits, timeout=MOST)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    for guest in guests:
        if guest.streams:
            guest.streams[1].close()
    return seen


async def warm(api: str):
    "Start the functions that the local cloud runs at a time."
    await asyncio.gather(*(Visitor(api, Seen()).ask(path) for path in ("/status", "/predict") * 4))


def reads_of(recording: Path, name: str) -> int:
    "Count the reads of a table."
    calls = [line for line in read_recording(recording) if line["operation"] == "GetItem"]
    return sum(call["params"]["TableName"] == name for call in calls)


def measure(engine: Engine, recording: Path, visitors: int, cache: bool) -> dict[str, float]:
    "Let one crowd come, and count."
    engine.call("POST", "/extend")
    before = reads_of(recording, engine.settings.table)
    seen = asyncio.run(crowd(f"{engine.site_url}api" if cache else engine.api_url, visitors))
    done = len(seen.seconds["/predict"])
    return {
        "visitors": visitors,
        "cache": cache,
        "status p95": seen.p95("/status"),
        "predict p95": seen.p95("/predict"),
        "requests": seen.asked,
        "errors": sum(seen.errors.values()),
        "hits": seen.hits,
        "standby": seen.standby / done if done else 0.0,
        "reads": (reads_of(recording, engine.settings.table) - before) / visitors,
    }


def say(rows: Sequence[Mapping[str, float]]) -> str:
    "Write the report."
    head = ["visitors", "cache", "/status p95", "/predict p95", "errors", "by the standby", "reads per visitor"]
    lines = [
        [
            f"{row['visitors']:,}",
            "with" if row["cache"] else "without",
            f"{1000 * row['status p95']:,.0f} ms",
            f"{1000 * row['predict p95']:,.0f} ms",
            f"{row['errors'] / row['requests']:.1%}",
            f"{row['standby']:.0%}",
            f"{row['reads']:.2f}",
        ]
        for row in rows
    ]
    return table(head, lines)


def parse() -> argparse.Namespace:
    parser = Parser("python -m benchmarks.crowd", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest crowd only; its file goes to .bench/")
    return parser.parse_args()


@tells_cause
def main() -> int:
    args = parse()
    described = begin(("ministack", "hypercorn"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # each visitor has a connection
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 20_000)), hard))
    with TemporaryDirectory(dir=CACHE) as folder:
        recording = Path(folder) / "calls"
        with running_engine(Path(folder), 0, standby=True, record=recording) as engine:
            engine.wake()
            asyncio.run(warm(engine.api_url))
            sizes = CROWDS[:1] if args.quick else CROWDS
            rows = [measure(engine, recording, size, cache) for size in sizes for cache in (False, True)]
    print(say(rows))
    if warning := busy(described):
        print(warning)
    result: Path = CACHE / RESULT.name if args.quick else RESULT
    write_json({"machine": described, "rows": rows}, result)
    print(f"Written: {result.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
