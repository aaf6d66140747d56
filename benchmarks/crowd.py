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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

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
REVIEW = {"inputs": "Warm and lovely, but the handle wobbles."}


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


async def request(client: httpx.AsyncClient, seen: Seen, path: str):
    "Make one request and note its time or its error."
    seen.asked += 1
    answered, began = "none", time.perf_counter()
    try:
        body = REVIEW if path == "/predict" else None
        reply = await client.request("POST" if body else "GET", path, json=body)
        answered = "" if reply.status_code == 200 else str(reply.status_code)
    except httpx.HTTPError:
        pass
    finally:
        seen.errors.update([answered] if answered else [])
    if not answered:
        seen.seconds[path].append(time.perf_counter() - began)
        seen.hits += reply.headers.get("x-cache") == "Hit from cloudfront"
        seen.standby += path == "/predict" and reply.json()["answeredBy"] == "standby"


async def visit(client: httpx.AsyncClient, seen: Seen, chance: random.Random):
    "Arrive, poll, request a prediction at some time, and poll again."
    reading, arrival = chance.uniform(1, PACE), chance.uniform(0, ARRIVAL)
    await asyncio.sleep(arrival)
    await request(client, seen, "/status")
    await asyncio.sleep(reading)
    await request(client, seen, "/predict")
    await asyncio.sleep(max(0.0, PACE - reading))
    await request(client, seen, "/status")


async def crowd(api: str, visitors: int) -> Seen:
    "Let visitors use an API at the same time."
    seen, chance = Seen(), random.Random(visitors)  # the same crowd each time
    limits = httpx.Limits(max_connections=visitors, max_keepalive_connections=visitors)
    async with httpx.AsyncClient(base_url=api, timeout=PATIENCE, limits=limits, trust_env=False) as client:
        visits = [asyncio.create_task(visit(client, seen, chance)) for _ in range(visitors)]
        _, late = await asyncio.wait(visits, timeout=MOST)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    return seen


async def warm(api: str):
    "Start the functions that the local cloud runs at a time."
    async with httpx.AsyncClient(base_url=api, timeout=60, trust_env=False) as client:
        await asyncio.gather(*(request(client, Seen(), path) for path in ("/status", "/predict") * 4))


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


def say(rows: list[Mapping[str, float]]) -> str:
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
    described = begin(("httpx",))
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
