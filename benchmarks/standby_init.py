"""Load the model like the standby's function, then predict one text at a time, and time both.

This program imports nothing else, because its imports count as the function's.
"""

import json
import os
import re
import sys
import time
from pathlib import Path
from statistics import median

CALLS = 5  # untimed calls before the first timed one


class Timer:
    "Measure wall seconds and CPU seconds of all threads since its creation."

    def __init__(self):
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.wall, time.process_time() - self.cpu


def most_memory() -> float:  # MB
    "Return the peak memory of this program. getrusage would include the program that started it."
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


def main(
    job: dict,  # packages: folders of the unpacked function and layer; threads: number; texts: by number of tokens
) -> dict[str, float]:  # seconds of init, MB of memory, and milliseconds by number of tokens
    "Load, predict and return the medians."
    os.environ["INFERENCE_THREADS"] = str(job["threads"])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job["threads"]])
    sys.path[:0], sys.dont_write_bytecode = job["packages"], True  # as in Lambda, whose packages have no bytecode
    timer = Timer()
    from sentiment_engine.model.inference import input_fn, model_fn, predict_fn

    model = model_fn(Path(job["packages"][0]) / "model")
    found = {}
    found["init wall"], found["init"] = timer.read()
    found["rss"] = most_memory()
    for tokens, texts in job["texts"].items():
        times = []
        for text in texts:
            timer = Timer()
            predict_fn(input_fn(json.dumps({"inputs": [text], "explain": False})), model)
            times.append(timer.read())
        walls, cpus = zip(*times[CALLS:], strict=True)
        found[f"ms wall {tokens}"], found[f"ms {tokens}"] = 1000 * median(walls), 1000 * median(cpus)
    return found


if __name__ == "__main__":
    _, given, result = sys.argv[1:]
    Path(result).write_text(json.dumps(main(json.loads(Path(given).read_text()))))
