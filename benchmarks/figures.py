"""Write the tables of docs/benchmarks.md from the committed results; each names its processor, date and command.

Each table is between two comments. `make docs` runs this.
"""

import json
import re
from collections.abc import Mapping

from benchmarks.report import ROOT, busy
from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser

RESULTS = ROOT / "benchmarks/results"
PAGE = ROOT / "docs/benchmarks.md"
SERVERS = {  # ways of benchmarks/inference.py
    "ours": "**this server, 8 bits**",
    "ours-fp32": "**this server, 32 bits**",
    "stock": "`transformers` pipeline, 32 bits",
    "litserve": "the same in LitServe",
    "bentoml": "the same in BentoML",
}
MODELS = {"minilm": "MiniLM", "distilbert": "DistilBERT"}
TRAININGS = {  # cases of benchmarks/training.py
    "ours": "**this recipe**: 192 tokens, lengths together",
    "ours-512": "**this recipe** at 512 tokens",
    "original": "the first version: each review padded to 512 tokens",
}
CLEANERS = {  # runners of benchmarks/etl.py
    "ours": "**this job**, Spark",
    "original": "Spark as in the first version",
    "pandas": "pandas",
    "polars": "polars",
}


def number(value: float) -> str:
    "Format a figure with one decimal place, with two below 1, and as a whole number from 10 on."
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 0.995 else f"{value:.2f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    "Format a Markdown table with the first column left-aligned and the others right-aligned."
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def source(machine: Mapping, command: str) -> str:
    "Describe where, when and how the figures were measured."
    best = [name.replace("_", " ").upper() for name in ("amx_int8", "avx512_vnni") if name in machine["instructions"]]
    extra = f" with {best[0]}" if best else ""
    cores = machine["cores"]
    return f"*{cores} cores of one {machine['cpu']}{extra}, {machine['date']}: `{command}` repeats the measurement.*"


def inference(result: Mapping) -> str:
    "Compare the servers, one table for each model."
    parts = []
    for name, title in MODELS.items():
        model = result["models"][name]
        millions = f"{model['parameters'] / 1e6:.0f} million"
        head = [f"{title}, {millions} parameters", "answer of 60 tokens", "16 clients", "first answer", "memory"]
        rows = []
        for way, label in SERVERS.items():
            m = model["medians"][way]
            units = (("p50 60", "ms"), ("texts/s 16", "texts/s"), ("cold start", "s"), ("rss", "MB"))
            rows.append([label, *(f"{number(m[measure])} {unit}" for measure, unit in units)])
        parts.append(table(head, rows))
    agree = {MODELS[name]: result["models"][name]["medians"]["ours"]["agree"] for name in MODELS}
    same = " and ".join(f"{share:.0%} of the texts ({name})" for name, share in agree.items())
    said = f"All weights are the base model's, without any training; in 8 bits they give the same label for {same}."
    return "\n\n".join(
        [*parts, f"{said} *First answer*: from the start of the server. *Memory*: of all its processes."]
    )


def training(result: Mapping) -> str:
    "Compare the ways to train."
    rows = [[label, number(result["medians"][case]["samples/s"])] for case, label in TRAININGS.items()]
    return table(["Training", "reviews a second"], rows)


def etl(result: Mapping) -> str:
    "Compare the ways to clean, at each size."
    sizes = result["sizes"]

    def cell(found: Mapping) -> str:
        return f"{number(found['seconds'])} s, {found['peak'] / 1e9:.1f} GB" if "seconds" in found else "failed"

    rows = [[label, *(cell(ways[way]) for ways in sizes.values())] for way, label in CLEANERS.items()]
    return table(["Cleaning", *(f"{int(size):,}" for size in sizes)], rows)


def standby(result: Mapping) -> str:
    "Show the time and price of predictions by a Lambda's memory."
    one = result["measured"]["1"]
    head = ["Memory", "vCPU", *(f"{n} tokens" for n in (20, 60, 200)), "1,000 of 60 tokens", "load and warm up"]
    rows = []
    for row in result["settings"]:
        times = [f"{number(row[f'ms {n}'])} ms" for n in (20, 60, 200)]
        price = f"{100 * row['dollars 60']:.3f} cents"
        rows.append([f"{row['memory_mb']:,} MB", f"{row['vcpus']:.2f}", *times, price, f"{number(row['init'])} s"])
    said = f"The process used {one['rss']:.0f} MB."
    if busy(result["machine"]):  # the table has CPU time, which other programs hardly change
        return f"{table(head, rows)}\n\n{said} Other programs ran at the same time, so the local cloud was not timed."
    seconds = {kind: f"{number(found)} s" for kind, found in result["clicks"].items()}
    said += f" On the local cloud, a sleeping engine answers a prediction after {seconds['warm click']}, or "
    said += f"{seconds['cold click']} if the standby's function has to start, or {seconds['all cold']} if the API's "
    agreed = result["agreement"]
    said += "function has to start, too. The standby and an endpoint with the same model gave the same label to "
    said += f"{agreed['equal']:,} of {agreed['texts']:,} reviews. In longer lists, {agreed['equal in lists']:,} kept "
    said += "their label, because in 8 bits the other texts of a batch change a score a little."
    return f"{table(head, rows)}\n\n{said}"


def crowd(result: Mapping) -> str:
    "Compare crowds with the cache and without it."
    head = ["Visitors", "cache", "`/status`, 95 %", "`/predict`, 95 %", "errors", "reads per visitor"]
    rows = []
    for row in result["rows"]:
        times = [f"{1000 * row[name]:,.0f} ms" for name in ("status p95", "predict p95")]
        cache = "with" if row["cache"] else "without"
        rows.append(
            [f"{row['visitors']:,}", cache, *times, f"{row['errors'] / row['requests']:.1%}", f"{row['reads']:.2f}"]
        )
    return f"{table(head, rows)}\n\n*Reads per visitor*: of the table with the model's state."


BLOCKS = {  # name of the result: function that writes its table, and the command that measures it
    "etl": (etl, "make bench-etl"),
    "inference": (inference, "make bench-inference"),
    "standby": (standby, "make bench-standby"),
    "crowd": (crowd, "make bench-crowd"),
    "training": (training, "make bench-training"),
}


def block(name: str) -> str:
    "Return the Markdown of one result."
    result = json.loads((RESULTS / f"{name}.json").read_text())
    write, command = BLOCKS[name]
    return f"{write(result)}\n\n{source(result['machine'], command)}"


def filled(text: str) -> str:
    "Insert the figures between their comments. Raises ValueError if a block is missing."
    for name in BLOCKS:
        begin, end = f"<!-- figures: {name} -->", f"<!-- end: {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{PAGE.name} needs {begin} and {end}, once each")
        text = re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{block(name)}\n{end}", text, flags=re.DOTALL)  # noqa: B023
    return text


@tells_cause
def main():
    Parser(description=__doc__.splitlines()[0]).parse_args()
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
