"""Measure the released model in a Lambda's place, and price each memory setting.

A fresh process imports the inference code, loads the model and warms it up, as the standby's function does at its
start. Then it answers texts of several lengths, one at a time. It has one core for one thread, and two for two.

AWS gives a function CPU time in proportion to its memory: one vCPU at 1,769 MB. Nothing here throttles a process as AWS
does, so the times of all settings are computed from the CPU time. Below one vCPU, a call takes its CPU time divided by
the share of a vCPU. Above, it takes as long as with one, until there are two vCPUs for two threads. Neither the network
nor AWS's own part of a cold start is included.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.inference import cut_texts, load_texts
from benchmarks.report import CACHE, ROOT, begin, busy, in_process, medians, table, write_json
from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser, folder
from sentiment_engine.costs import lambda_call

RESULT = ROOT / "benchmarks/results/standby.json"
MODEL = ROOT / "models/released"
TOKENS = (20, 60, 200)  # of a text
MEMORY = (512, 1024, 1769, 3008, 3538)  # MB
VCPU = 1769  # MB that come with one vCPU
MOST_INIT, MOST_RSS = 0.6, 220  # seconds and MB, promised at one vCPU
PACKAGES = ("onnxruntime", "tokenizers", "numpy")


def measure(texts: Mapping[int, list[str]], rounds: int) -> dict[str, dict[str, float]]:
    "Return the medians for one thread and for two; each round starts new processes."
    found: dict[str, list] = {"1": [], "2": []}
    for _ in range(rounds):
        for threads, each in found.items():
            job = {"model": str(MODEL), "threads": int(threads), "texts": texts}
            each.append(in_process("benchmarks.standby_init", job))
    return {threads: medians(each) for threads, each in found.items()}


def setting(
    memory_mb: int,
    measured: Mapping[str, Mapping[str, float]],  # from `measure`
) -> dict[str, float]:
    "Compute what calls take and cost with a memory setting."
    share, threads = memory_mb / VCPU, min(2, max(1, memory_mb // VCPU))  # as the function's handler chooses them
    one, used = measured["1"], measured[str(threads)]
    row = {"memory_mb": memory_mb, "vcpus": share, "init": one["init"] / min(1.0, share)}
    for tokens in TOKENS:
        row[f"ms {tokens}"] = used[f"ms wall {tokens}"] if threads > 1 else one[f"ms {tokens}"] / min(1.0, share)
        row[f"dollars {tokens}"] = 1000 * lambda_call(row[f"ms {tokens}"] / 1000, memory_mb)
    return row


def say(settings: list[dict[str, float]], measured: Mapping[str, Mapping[str, float]]) -> str:
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
    one = measured["1"]
    init, rss = one["init"], one["rss"]
    goals = [
        f"init {init:.2f} s, at most {MOST_INIT} s: {'met' if init <= MOST_INIT else 'NOT MET'}",
        f"memory {rss:.0f} MB, at most {MOST_RSS} MB: {'met' if rss <= MOST_RSS else 'NOT MET'}",
    ]
    return "\n".join([table(head, rows), "", *goals])


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
    print(say(settings, measured))
    if warning := busy(described):
        print(warning)
    result: Path = CACHE / RESULT.name if args.quick else RESULT
    write_json({"machine": described, "measured": measured, "settings": settings}, result)
    print(f"Written: {result.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
