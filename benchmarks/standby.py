"""Measure the released model as a Lambda would run it, and price each memory setting.

A fresh process imports the inference code from the function's packages, loads the model and warms it up, as the
standby's function does at its start. Then it answers texts of several lengths, one at a time. It has one core for one
thread, and two for two.

AWS gives a function CPU time in proportion to its memory: one vCPU at 1,769 MB. Nothing here throttles a process as AWS
does, so the times of all settings are computed from the CPU time. Below one vCPU, a call takes its CPU time divided by
the share of a vCPU. Above, it takes as long as with one, until there are two vCPUs for two threads, which take at least
half of their CPU time. Neither the network nor AWS's own part of a cold start is included.

Then the script times a visitor's click: it deploys the engine to a local cloud, leaves it asleep, and requests a
prediction from its API. Before a cold click, the standby's function restarts. Before an all-cold click, the API's
function restarts too.

Finally, it wakes the engine, whose endpoint has the same model, and counts the texts that both give the same label:
first for the same requests of 25 texts, then for lists of 500. In 8 bits, the other texts of a batch change a score a
little.
"""

import argparse
import io
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from operator import eq
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import httpx
from tokenizers import Tokenizer

from benchmarks.inference import cut_texts, load_texts
from benchmarks.report import CACHE, ROOT, begin, busy, in_process, medians, table, write_json
from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser, folder
from sentiment_engine.costs import lambda_call
from sentiment_engine.deploy.packaging import STANDBY
from sentiment_engine.deploy.standby import pack_layer, pack_standby, released_version

# The engine of the tests, deployed from the real templates; its standby has the released model.
from tests.doubles.engine import Engine, running_engine

RESULT = ROOT / "benchmarks/results/standby.json"
MODEL = ROOT / "models/released"
TOKENS = (20, 60, 200)  # of a text
MEMORY = (512, 1024, 1769, 3008, 3538)  # MB
VCPU = 1769  # MB for one vCPU
GOALS = (("init", 0.6, "s"), ("rss", 220, "MB"), ("cold click", 1.5, "s"), ("warm click", 0.1, "s"))  # at most
COLD = {  # kind of click: functions that restart before it
    "cold click": ("standby-model",),
    "all cold": ("standby-model", "invoke-sagemaker-endpoint"),
}
SETTLES = 3  # seconds for the local cloud to store a changed function, with its layer
PACKAGES = ("onnxruntime", "tokenizers", "numpy")


def unpacked(folder: Path) -> list[str]:  # folders of the function and the layer
    "Pack the function and its layer as a deployment does, and unpack them as Lambda does."
    function = pack_standby(ROOT / "lambdas" / STANDBY, MODEL, released_version())
    for name, package in (("function", function), ("layer", pack_layer(False))):
        with zipfile.ZipFile(io.BytesIO(package)) as packed:
            packed.extractall(folder / name)
    return [str(folder / "function"), str(folder / "layer/python")]


def measure(texts: Mapping[int, list[str]], rounds: int) -> dict[str, dict[str, float]]:
    "Return the medians for one thread and for two; each round starts new processes."
    found: dict[str, list] = {"1": [], "2": []}
    with TemporaryDirectory(dir=CACHE) as folder:
        packages = unpacked(Path(folder))
        for _ in range(rounds):
            for threads, each in found.items():
                job = {"packages": packages, "threads": int(threads), "texts": texts}
                each.append(in_process("benchmarks.standby_init", job))
    return {threads: medians(each) for threads, each in found.items()}


def setting(
    memory_mb: int,
    measured: Mapping[str, Mapping[str, float]],  # from `measure`
) -> dict[str, float]:
    "Compute the time and the cost of calls with a memory setting."
    share, threads = memory_mb / VCPU, min(2, max(1, memory_mb // VCPU))  # like the function's handler
    one, used = measured["1"], measured[str(threads)]
    row = {"memory_mb": memory_mb, "vcpus": share, "init": one["init"] / min(1.0, share)}
    for tokens in TOKENS:
        row[f"ms {tokens}"] = used[f"ms {tokens}"] / min(threads, share)
        row[f"dollars {tokens}"] = 1000 * lambda_call(row[f"ms {tokens}"] / 1000, memory_mb)
    return row


def labels(engine: Engine, texts: list[str], size: int, by: str) -> Iterator[str]:
    "Request predictions like the page, `size` texts at a time. Raises RuntimeError unless `by` answers."
    for start in range(0, len(texts), size):
        given = {"inputs": texts[start : start + size]}
        reply = httpx.post(f"{engine.api_url}/predict", json=given, timeout=60, trust_env=False)
        if reply.status_code != 200 or reply.json()["answeredBy"] != by:
            raise RuntimeError(f"the {by} did not answer: {reply.status_code} {reply.text[:200]}")
        yield from (each["label"] for each in reply.json()["predictions"])


def click(engine: Engine, text: str) -> float:  # seconds
    "Request one prediction of a sleeping engine."
    began = time.perf_counter()
    list(labels(engine, [text], 1, "standby"))
    return time.perf_counter() - began


def clicks(engine: Engine, texts: list[str], rounds: int) -> dict[str, float]:  # seconds
    "Return the medians of warm and cold clicks on a sleeping engine."
    took: dict[str, list[float]] = {"warm click": [], **{kind: [] for kind in COLD}}
    for number in range(rounds):
        for kind, functions in COLD.items():
            with ExitStack() as changed:  # AWS and the local cloud restart a changed function
                for name in functions:
                    changed.enter_context(engine.environment(name, ROUND=str(number)))
                time.sleep(SETTLES)
                took[kind].append(click(engine, texts[0]))
                took["warm click"] += [click(engine, text) for text in texts[1:]]
    return {kind: median(seconds) for kind, seconds in took.items()}


def agreement(engine: Engine, texts: list[str]) -> dict[str, int]:
    "Count the texts that get the same label from the standby and the endpoint, alike and in longer lists."
    asleep = list(labels(engine, texts, 25, "standby"))
    engine.wake()
    alike, longer = (list(labels(engine, texts, size, "endpoint")) for size in (25, 500))
    same = {name: sum(map(eq, asleep, awake)) for name, awake in (("equal", alike), ("equal in lists", longer))}
    return {"texts": len(texts)} | same


def say(
    settings: list[dict[str, float]],
    measured: dict[str, dict[str, float]],
    clicked: dict[str, float],
    agreed: dict[str, int],
) -> str:
    "Write the report."
    head = ["MB", "vCPUs", *(f"{n} tokens, ms" for n in TOKENS), *(f"{n} tokens, $/1,000" for n in TOKENS), "init, s"]
    rows = [
        [
            f"{row['memory_mb']}",
            f"{row['vcpus']:.2f}",
            *(f"{row[f'ms {n}']:.1f}" for n in TOKENS),
            *(f"{row[f'dollars {n}']:.5f}" for n in TOKENS),
            f"{row['init']:.2f}",
        ]
        for row in settings
    ]
    found = measured["1"] | clicked
    goals = [
        f"{name + ':':11} {found[name]:6.2f} {unit}, at most {most}: {'met' if found[name] <= most else 'NOT MET'}"
        for name, most, unit in GOALS
    ]
    said = f"same label from standby and endpoint: {agreed['equal']:,} of {agreed['texts']:,} texts, and "
    said += f"{agreed['equal in lists']:,} if the endpoint gets longer lists"
    return "\n".join([table(head, rows), "", *goals, said])


def parse() -> argparse.Namespace:
    parser = Parser("python -m benchmarks.standby", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test of seconds; its file goes to .bench/")
    parser.add_argument("--data", type=folder, help="a folder of real reviews, instead of made-up ones")
    return parser.parse_args()


@tells_cause
def main() -> int:
    args = parse()
    described = begin(PACKAGES)
    tokenizer, reviews = Tokenizer.from_file(str(MODEL / "tokenizer.json")), load_texts(args.data)
    texts = {n: cut_texts(tokenizer, reviews, n, 15 if args.quick else 65) for n in TOKENS}
    measured = measure(texts, 1 if args.quick else 5)
    settings = [setting(memory, measured) for memory in MEMORY]
    with TemporaryDirectory(dir=CACHE) as place, running_engine(Path(place), weights=MODEL, standby=True) as engine:
        clicked = clicks(engine, texts[60][:10], 1 if args.quick else 5)
        agreed = agreement(engine, reviews[: 100 if args.quick else 2_000])
    print(say(settings, measured, clicked, agreed))
    if warning := busy(described):
        print(warning)
    result: Path = CACHE / RESULT.name if args.quick else RESULT
    found = {"measured": measured, "settings": settings, "clicks": clicked, "agreement": agreed}
    write_json({"machine": described, **found}, result)
    print(f"Written: {result.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
