"""Serve the same weights in five ways, on the same cores, and compare latency, throughput, cold start and memory.

ours       sentiment_engine.model.serving with the artifact's model in 8 bits, as it is deployed
ours-fp32  the same in 32 bits
stock      a transformers pipeline (torch, 32 bits), as in Hugging Face's toolkit, behind our web server
litserve   the same pipeline behind LitServe, with its batching
bentoml    the same pipeline behind BentoML, with its adaptive batching

Each round restarts every server, in a different order; one server runs at a time. The figures are medians.
LitServe and BentoML have separate environments in .bench/, which share torch and transformers with .venv.
"""

import argparse
import compileall
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tokenizers import Tokenizer

from benchmarks.load import ask, drive, request_bytes
from benchmarks.report import (
    CACHE,
    ROOT,
    Goal,
    begin,
    busy,
    goal_line,
    judge,
    medians,
    pyplot,
    save,
    table,
    write_json,
)
from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser, folder
from sentiment_engine.data.reviews import LABELS, generate_reviews, parse_review, read_reviews, review_text

RESULT = ROOT / "benchmarks/results/inference.json"
PLOT = ROOT / "images/bench_inference.svg"
PEERS = ROOT / "benchmarks/peers"
TOKENS = (20, 60, 200)  # of a text
CLIENTS = (1, 4, 16, 64)
POOL = 400  # texts of each length
SIZES = (1, 8, 16, 32, 64)  # batch sizes of the pipeline that are tried
START = 120.0  # seconds until a server must answer
PACKAGES = ("torch", "transformers", "onnxruntime", "tokenizers", "uvicorn")


def goals(latency: tuple, many: float, listed: float, start: float, seconds: float, memory: float) -> list[Goal]:
    "List the goals for one model, relative to the stock server."
    return [
        *(
            Goal(f"p50 of {n} tokens, one client", f"p50 {n}", "faster", x)
            for n, x in zip(TOKENS, latency, strict=True)
        ),
        Goal("texts/s, 16 clients", "texts/s 16", "more", many),
        Goal("texts/s of a list, against the best batch size", "list", "more", listed),
        Goal("cold start against stock", "cold start", "faster", start),
        Goal("cold start", "cold start", "at most", seconds),
        Goal("memory of the processes (RSS)", "rss", "share", memory),
    ]


GOALS = {
    "minilm": goals((6, 4.5, 3.3), 6, 3.5, 18, 0.4, 0.25),
    "distilbert": goals((7, 5.5, 4.2), 6, 4, 12, 0.6, 0.30),
}


# ---- the models


@dataclass(frozen=True)
class Model:
    "One set of weights, in the format that each way needs."

    name: str
    folder: Path  # contains the folders ours, ours-fp32 and stock
    parameters: int
    texts: dict[int, list[str]]  # by number of tokens


def source_model(name: str):
    "Return a classifier and its tokenizer: MiniLM with its weights, or a model of DistilBERT's size with random ones."
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, DistilBertConfig

    from sentiment_engine.model.base_model import build_base_model

    base = build_base_model(CACHE / "base-model")
    tokenizer = AutoTokenizer.from_pretrained(base)
    if name == "minilm":
        return AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32), tokenizer
    torch.manual_seed(0)
    names = dict(enumerate(LABELS))
    config = DistilBertConfig(id2label=names, label2id={label: i for i, label in names.items()})
    return AutoModelForSequenceClassification.from_config(config), tokenizer


def write_stock(name: str, artifact: Path | None, folder: Path):
    "Write model.safetensors, config.json and the tokenizer's files."
    from sentiment_engine.model.training_job import save_weights

    folder.mkdir(parents=True)
    if artifact is None:
        model, tokenizer = source_model(name)
        save_weights(model, tokenizer, folder)
        return
    if missing := [f for f in ("model.onnx", "model.safetensors", "config.json") if not (artifact / f).is_file()]:
        raise SystemExit(f"{artifact} is no artifact to compare with: it has no {', '.join(missing)}")
    for file in artifact.iterdir():
        if file.is_file() and not file.name.startswith("model.onnx"):
            shutil.copy(file, folder / file.name)


def write_ours(stock: Path, artifact: Path | None, folder: Path):
    "Export the weights in `stock` to the folders ours and ours-fp32; an `artifact` provides its own ours."
    import torch
    from transformers import AutoModelForSequenceClassification

    from sentiment_engine.model.onnx_export import export
    from sentiment_engine.model.served_graph import fuse

    model = AutoModelForSequenceClassification.from_pretrained(
        stock, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    export(model, folder)
    for way, exported in (("ours", "int8"), ("ours-fp32", "fp32")):
        (folder / way).mkdir()
        if why := fuse(folder / f"{exported}.onnx", model.config.to_dict(), folder / way):
            raise SystemExit(f"the model has no graph of its own to be measured: {why}")
        (folder / f"{exported}.onnx").unlink()
        for file in stock.iterdir():
            if file.suffix == ".json":
                shutil.copy(file, folder / way / file.name)
    if artifact:
        (folder / "ours/model.onnx.data").unlink()
        for file in artifact.glob("model.onnx*"):
            shutil.copy(file, folder / "ours" / file.name)


def _key(artifact: Path | None) -> str:
    "Return a name that changes with the sources of a model."
    modules = ("base_model", "onnx_export", "served_graph", "training_job", "inference")
    made_by = [ROOT / f"sentiment_engine/model/{name}.py" for name in modules]
    files = [Path(__file__), *made_by, *(sorted(f for f in artifact.iterdir() if f.is_file()) if artifact else [])]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def make_model(name: str, artifact: Path | None, reviews: list[str]) -> Model:
    "Build a model once with the current serving code, and cut texts to size with its tokenizer."
    from safetensors import safe_open
    from transformers.utils.logging import disable_progress_bar

    from sentiment_engine.model.artifact import add_inference_code

    disable_progress_bar()
    folder = CACHE / f"{name}-{_key(artifact)}"
    if not folder.exists():
        print(f"Building {name}", flush=True)
        half = folder.with_suffix(".part")
        shutil.rmtree(half, ignore_errors=True)
        write_stock(name, artifact, half / "stock")
        write_ours(half / "stock", artifact, half)
        half.rename(folder)
    for way in ("ours", "ours-fp32"):
        add_inference_code(folder / way)
    (folder / "stock/code").mkdir(exist_ok=True)
    shutil.copy(PEERS / "stock.py", folder / "stock/code/inference.py")
    for way in ("ours", "ours-fp32", "stock"):  # pip compiles the packages that all of them import, too
        compileall.compile_dir(folder / way / "code", quiet=1)
    with safe_open(folder / "stock/model.safetensors", "np") as weights:
        parameters = sum(int(np.prod(weights.get_slice(k).get_shape())) for k in weights.keys())  # noqa: SIM118
    tokenizer = Tokenizer.from_file(str(folder / "stock/tokenizer.json"))
    tokenizer.no_truncation()  # a trained one may truncate as in training
    return Model(name, folder, parameters, {n: cut_texts(tokenizer, reviews, n, POOL) for n in TOKENS})


# ---- the texts


def load_raw(
    data: Path | None,  # a folder of reviews; None: generated ones
    count: int,
) -> list[dict]:
    "Return up to `count` reviews that have a text, in random order; from a folder, only its first 200,000."
    made = (parse_review(line) for _, line in generate_reviews(2 * count, seed=1))
    found = [r for r in (islice(read_reviews(data), 200_000) if data else made) if r]
    return random.Random(1).sample(found, min(count, len(found)))


def load_texts(data: Path | None, count: int = 4_000) -> list[str]:
    "Return the text of reviews as the model reads it, in random order."
    texts = (review_text(r.get("title"), r["text"]) for r in load_raw(data, count))
    return [text for text in texts if text.strip()]


def cut_texts(tokenizer: Tokenizer, reviews: list[str], tokens: int, count: int) -> list[str]:
    "Join and cut reviews to `count` texts of about `tokens` tokens, [CLS] and [SEP] included."
    texts: list[str] = []
    start = 0
    while len(texts) < count:
        joined = ""
        ends: list[int] = []
        while len(ends) < tokens - 2:
            joined = f"{joined} {reviews[start % len(reviews)]}".strip()
            ends = [end for _, end in tokenizer.encode(joined, add_special_tokens=False).offsets]
            start += 1
        texts.append(joined[: ends[tokens - 3]])
    return texts


def mixed(texts: dict[int, list[str]], count: int) -> list[str]:
    "Return the same number of texts of each length, in random order."
    each = [text for group in texts.values() for text in group[: -(-count // len(texts))]]
    random.Random(2).shuffle(each)
    return each[:count]


# ---- the servers


@dataclass(frozen=True)
class Way:
    "One way to serve a model."

    name: str
    command: Callable[[Path, int], list[str]]  # from the model's folder and the port
    requirements: Path | None = None  # if it needs a separate environment
    lists: bool = True  # whether a request may contain a list
    wrapped: bool = False  # whether a single text must be in a list
    batch_sizes: bool = False  # whether a request may set the batch size


def _served(way: str) -> Callable[[Path, int], list[str]]:
    module = [sys.executable, "-m", "sentiment_engine.model.serving"]
    return lambda folder, port: [*module, "--model-dir", str(folder / way), "--port", str(port)]


LITSERVE = PEERS.parent / "requirements-litserve.txt"
BENTOML = PEERS.parent / "requirements-bentoml.txt"


def _litserve(folder: Path, port: int) -> list[str]:
    return [str(interpreter(LITSERVE)), str(PEERS / "litserve_server.py"), str(folder / "stock"), str(port)]


def _bentoml(folder: Path, port: int) -> list[str]:
    words = ["-m", "bentoml", "serve", "bentoml_service:Sentiment", "--working-dir", str(PEERS)]
    return [str(interpreter(BENTOML)), *words, "--host", "127.0.0.1", "--port", str(port)]


WAYS = {
    way.name: way
    for way in (
        Way("ours", _served("ours")),
        Way("ours-fp32", _served("ours-fp32")),
        Way("stock", _served("stock"), batch_sizes=True),
        Way("litserve", _litserve, LITSERVE, lists=False),
        Way("bentoml", _bentoml, BENTOML, lists=False, wrapped=True),
    )
}


def interpreter(requirements: Path) -> Path:
    "Return the Python of the environment for `requirements`."
    key = hashlib.sha256(requirements.read_bytes() + sys.prefix.encode()).hexdigest()[:8]
    return CACHE / f"env-{requirements.stem.removeprefix('requirements-')}-{key}/bin/python"


def install(requirements: Path) -> str:
    "Create an environment that falls back to this one's packages, once. Return why that failed, or an empty text."
    python = interpreter(requirements)
    folder = python.parent.parent
    if (folder / "installed").exists():
        return ""
    print(f"Installing {requirements.stem.removeprefix('requirements-')} into {folder.relative_to(ROOT)}", flush=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True, text=True)
        for packages in folder.glob("lib/python*/site-packages"):
            (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "-r", str(requirements)]
        subprocess.run(pip, check=True, capture_output=True, text=True, timeout=600)
        (folder / "installed").touch()
        return ""
    except (subprocess.SubprocessError, OSError) as e:
        shutil.rmtree(folder, ignore_errors=True)
        said = (getattr(e, "stderr", "") or str(e)).strip().splitlines()
        return f"cannot be installed here: {said[-1][:200] if said else e}"


class ServerError(RuntimeError):
    "A server that does not answer as it should."


class Server:
    "One running server. `cold_start` is the number of seconds from its start to its first answer."

    def __init__(self, command: list[str], first: bytes, log: Path, env: dict[str, str] | None = None, port: int = 0):
        self.command, self.first, self.log, self.env, self.port = command, first, log, env or {}, port

    def __enter__(self):
        self.log.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=os.environ | self.env, start_new_session=True, cwd=ROOT
            )
        try:
            self._await(began)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _await(self, began: float):
        answer = None
        while time.monotonic() < began + START:
            if self.process.poll() is not None:
                raise ServerError(f"ended with status {self.process.returncode}: {self.last_words()}")
            with suppress(OSError):
                answer = ask(self.port, self.first, START)
                if answer[0] == 200:
                    self.cold_start = time.monotonic() - began
                    return
            time.sleep(0.005)
        raise ServerError(f"no answer after {START:.0f} s, last {answer}: {self.last_words()}")

    def last_words(self) -> str:
        said = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return said[-1].strip()[:200] if said else "it said nothing"

    def tree(self) -> list[psutil.Process]:
        "Return the server's processes."
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.process.pid)
            return [process, *process.children(recursive=True)]
        return []

    def memory(self) -> dict[str, float]:  # MB; shared memory counts in each process for rss, once for pss
        found = {"rss": 0.0, "pss": 0.0}
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):
                held = process.memory_full_info()
                found["rss"] += held.rss / 1e6
                found["pss"] += getattr(held, "pss", held.rss) / 1e6
        return found

    def __exit__(self, *_):
        left = self.tree()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        psutil.wait_procs(left, 10)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def started(way: Way, model: Model) -> Server:
    "Return the server of one way without starting it."
    port, text = free_port(), model.texts[TOKENS[0]][0]
    env = {"MODEL_DIR": str(model.folder / "stock"), "BENTOML_HOME": str(CACHE / "bentoml"), "PYTHONPATH": str(ROOT)}
    env |= {"BENTOML_DO_NOT_TRACK": "True", "HF_HUB_OFFLINE": "1"}
    env["PYTHONDONTWRITEBYTECODE"] = ""  # keeps compiled bytecode, as by default, so a second start compiles nothing
    env["OMP_WAIT_POLICY"] = "PASSIVE"  # idle torch threads sleep and leave the cores to the web server
    log = CACHE / f"logs/{model.name}-{way.name}.log"
    return Server(way.command(model.folder, port), one(way, text), log, env, port)


def one(way: Way, text: str) -> bytes:
    "Write the request that classifies one text."
    return request_bytes([text] if way.wrapped else text)


# ---- measuring


@dataclass
class Plan:
    "The number and duration of the measurements."

    rounds: int = 5
    requests: int = 40  # of each length, one at a time
    seconds: float = 5.0  # of load, for each number of clients
    clients: tuple[int, ...] = CLIENTS
    list_length: int = 1_000
    tried: int = 192  # number of texts for trying the batch sizes
    sizes: tuple[int, ...] = SIZES
    best: dict[str, int] = field(default_factory=dict)  # model: the best batch size of the pipeline


QUICK: dict[str, Any] = {
    "rounds": 1,
    "requests": 8,
    "seconds": 0.5,
    "clients": (1, 16),
    "list_length": 96,
    "tried": 48,
    "sizes": (1, 16),
}


def measure_latency(server: Server, way: Way, texts: list[str], tokens: int) -> Iterator[tuple[str, float]]:
    "Measure requests of one text, one at a time."
    load = drive(server.port, [one(way, text) for text in texts])
    yield "failures", load.failures.total()
    for name, share in (("p50", 50), ("p95", 95)):
        yield f"{name} {tokens}", float(np.percentile(load.latencies, share)) * 1e3


def measure_throughput(
    server: Server, way: Way, texts: list[str], clients: int, seconds: float
) -> Iterator[tuple[str, float]]:
    "Measure several concurrent clients."
    load = drive(server.port, [one(way, text) for text in texts], clients, seconds)
    yield f"texts/s {clients}", load.rate
    yield f"client cpu {clients}", load.client_cpu / load.seconds
    yield "failures", load.failures.total()


def seconds_of_list(server: Server, texts: list[str], **more) -> float:
    "Classify a list in one request."
    load = drive(server.port, [request_bytes(texts, **more)])
    if load.failures:
        raise ServerError(f"a list of {len(texts)} texts was answered with status {next(iter(load.failures))}")
    return load.latencies[0]


def measure_list(server: Server, way: Way, model: Model, plan: Plan) -> Iterator[tuple[str, float]]:
    "Classify a list of texts of all lengths. The pipeline uses its best batch size."
    texts, more = mixed(model.texts, plan.list_length), {}
    if way.batch_sizes:
        if model.name not in plan.best:
            tries = {
                size: seconds_of_list(server, texts[: plan.tried], parameters={"batch_size": size})
                for size in plan.sizes
            }
            plan.best[model.name] = min(tries, key=tries.__getitem__)
        more = {"parameters": {"batch_size": plan.best[model.name]}}
    yield "list", len(texts) / seconds_of_list(server, texts, **more)


def labels_of(server: Server, way: Way, texts: list[str]) -> list[str]:
    "Return the label of each text."
    found = []
    for text in texts:
        status, body = ask(server.port, one(way, text))
        if status != 200:
            raise ServerError(f"answered with status {status}: {body[:200]!r}")
        found.append(json.loads(body)[0]["label"])
    return found


def visit(way: Way, model: Model, plan: Plan, rng: random.Random) -> tuple[dict[str, float], list[str]]:
    "Start a server, take all its measurements, and stop it. Return the measures, and labels to compare."
    with started(way, model) as server:
        found = {"cold start": server.cold_start, **server.memory(), "failures": 0.0}
        labels = labels_of(server, way, mixed(model.texts, 30))  # this also warms it up
        for clients in plan.clients[-1:]:
            drive(server.port, [one(way, text) for text in mixed(model.texts, 30)], clients, 0.2)
        cases: list[Callable[[], Iterator[tuple[str, float]]]] = []
        cases += [partial(measure_latency, server, way, rng.sample(model.texts[n], plan.requests), n) for n in TOKENS]
        both = mixed(model.texts, 3 * POOL)
        cases += [partial(measure_throughput, server, way, both, c, plan.seconds) for c in plan.clients]
        cases += [partial(measure_list, server, way, model, plan)] if way.lists else []
        for case in rng.sample(cases, len(cases)):
            for name, value in case():
                found[name] = found.get(name, 0.0) + value if name == "failures" else value
    return found, labels


Rounds = dict[str, dict[str, list[dict]]]  # by model and way: the measures of each round


def run_rounds(models: list[Model], ways: list[Way], plan: Plan, missing: dict[str, str]) -> Rounds:
    "Measure all ways of all models, round by round. Fills `missing` with the ways that failed, and why."
    rng, began, done = random.Random(7), time.monotonic(), 0
    rounds: dict = {m.name: {w.name: [] for w in ways} for m in models}
    labels: dict = {m.name: {} for m in models}
    total = plan.rounds * len(models) * len(ways)
    for number in range(1, plan.rounds + 1):
        pairs = [(model, way) for model in models for way in ways]
        for model, way in rng.sample(pairs, len(pairs)):
            done += 1
            if way.name in missing:
                continue
            print(f"[{done}/{total}] round {number}: {model.name} {way.name:<9} ", end="", flush=True)
            try:
                found, labels[model.name][way.name] = visit(way, model, plan, rng)
            except (ServerError, OSError, TimeoutError) as e:
                missing[way.name] = str(e)[:300]
                print(f"left out: {missing[way.name]}", flush=True)
                continue
            rounds[model.name][way.name].append(found)
            print(visit_line(found), f"({(time.monotonic() - began) / done * (total - done):.0f} s left)", flush=True)
    for name, by_way in rounds.items():
        base = labels[name].get("stock")
        for way, found in by_way.items():
            if base and found and way in labels[name]:
                found[-1]["agree"] = sum(map(str.__eq__, labels[name][way], base)) / len(base)
    return {m: {w: r for w, r in by_way.items() if r} for m, by_way in rounds.items()}


def visit_line(found: dict[str, float]) -> str:
    latency = "/".join(f"{found[f'p50 {n}']:.1f}" for n in TOKENS)
    return f"start {found['cold start']:.2f} s, p50 {latency} ms, {found['texts/s 16']:.0f} texts/s of 16 clients"


# ---- reporting


def summary(rounds: Rounds) -> dict[str, dict[str, dict[str, float]]]:
    "Take the medians of the rounds, and the sum of the failures."
    return {
        model: {
            way: medians(found) | {"failures": sum(r["failures"] for r in found), "rounds": len(found)}
            for way, found in by_way.items()
        }
        for model, by_way in rounds.items()
    }


COLUMNS = [
    *((f"{n} tok", f"p50 {n}", "{:.1f}", -1) for n in TOKENS),
    *((f"p95 {n}", f"p95 {n}", "{:.1f}", -1) for n in TOKENS),
    *((f"{c} cl", f"texts/s {c}", "{:.0f}", 1) for c in CLIENTS),
    ("list", "list", "{:.0f}", 1),
    ("start s", "cold start", "{:.2f}", -1),
    ("RSS MB", "rss", "{:.0f}", -1),
    ("agree", "agree", "{:.0%}", 0),
]  # heading, measure, format, and whether higher (1) or lower (-1) is better


def model_table(found: dict[str, dict[str, float]], missing: dict[str, str]) -> str:
    "Format the medians of one model, and below them each way's factor relative to stock."
    head = ["p50 ms, texts/s", *(name for name, *_ in COLUMNS)]
    rows = [[way, *(_cell(m, key, form) for _, key, form, _ in COLUMNS)] for way, m in found.items()]
    rows += [[way, "missing", *[""] * (len(COLUMNS) - 1)] for way in missing if way not in found]
    base = found.get("stock", {})
    for way, m in found.items():
        if base and way != "stock":
            rows.append([f"{way} / stock", *(_times(m, base, key, better) for _, key, _, better in COLUMNS)])
    return table(head, rows)


def _cell(measures: dict, key: str, form: str) -> str:
    return form.format(measures[key]) if key in measures else "-"


def _times(mine: dict, base: dict, key: str, better: int) -> str:
    if key not in mine or key not in base or not better:
        return ""
    return f"{mine[key] / base[key] if better > 0 else base[key] / mine[key]:.1f}x"


def verdicts(found: dict[str, dict[str, dict[str, float]]]) -> dict[str, list[dict]]:
    "Judge the goals of each model."
    return {
        model: [j for goal in GOALS[model] if (j := judge(goal, ways.get("ours", {}), ways.get("stock", {})))]
        for model, ways in found.items()
    }


def say(found: dict, missing: dict[str, str], plan: Plan, models: list[Model]) -> str:
    "Format the whole report."
    out = []
    for model in models:
        ways = found[model.name]
        out += [f"\n{model.name}, {model.parameters / 1e6:.1f} million parameters", model_table(ways, missing), ""]
        if size := plan.best.get(model.name):
            out.append(f"The list has {plan.list_length:,} texts; stock's best batch size is {size}.")
        clients = [f"{way} {m[f'client cpu {c}']:.0%}" for way, m in ways.items() for c in plan.clients[-1:]]
        out.append(f"Share of a core that the {plan.clients[-1]} clients took: {', '.join(clients)}")
        out += [f"{way}: {m['failures']:.0f} requests failed" for way, m in ways.items() if m["failures"]]
        out += ["", *map(goal_line, verdicts(found)[model.name])]
    return "\n".join(out + [f"{way} is missing: {why}" for way, why in missing.items()])


COLOURS = {"ours": "#2a9d8f", "ours-fp32": "#7cc5bc", "stock": "#e76f51", "litserve": "#9d7bd8", "bentoml": "#d49a1f"}


def plot(found: dict[str, dict[str, dict]], path: Path):
    "Plot latency over length, throughput over clients, and memory over cold start, with one row for each model."
    plt = pyplot()
    fig, grid = plt.subplots(len(found), 3, figsize=(11, 3.3 * len(found)), squeeze=False)
    for row, (model, ways) in zip(grid, found.items(), strict=True):
        for way, m in ways.items():
            _draw_way(row, way, m)
        for ax in row:
            ax.spines[["top", "right"]].set_visible(False)
            ax.margins(x=0.15, y=0.12)
        row[0].set(xlabel="tokens of a text", ylabel=f"{model}\n\np50, ms (one client)", ylim=(0, None))
        row[1].set(xlabel="clients", ylabel="texts a second", xscale="log", ylim=(0, None))
        row[1].set_xticks(CLIENTS, map(str, CLIENTS))
        row[1].minorticks_off()
        row[2].set(xlabel="cold start, s", ylabel="memory, MB", xlim=(0, None), ylim=(0, None))
    handles = [
        plt.Line2D([], [], marker="o", color=COLOURS[w], label=w)
        for w in COLOURS
        if any(w in f for f in found.values())
    ]
    fig.legend(handles=handles, loc="upper center", ncols=len(handles), frameon=False, bbox_to_anchor=(0.5, 1.0))
    save(fig, path, head=0.3 / fig.get_figheight())


def _draw_way(row, way: str, measures: dict):
    style = {"marker": "o", "color": COLOURS[way]}
    row[0].plot(TOKENS, [measures[f"p50 {n}"] for n in TOKENS], **style)
    row[1].plot(
        *zip(*((c, measures[f"texts/s {c}"]) for c in CLIENTS if f"texts/s {c}" in measures), strict=True), **style
    )
    row[2].plot(measures["cold start"], measures["rss"], **style)


def as_json(found: dict, rounds: dict, missing: dict, plan: Plan, models: list[Model], described: dict) -> dict:
    "Collect all results for the JSON file."
    judged = verdicts(found)
    return {
        "machine": described,
        "texts": {"tokens": TOKENS, "list": plan.list_length, "seconds_of_load": plan.seconds},
        "missing": missing,
        "models": {
            m.name: {
                "parameters": m.parameters,
                "best_batch_of_stock": plan.best.get(m.name),
                "medians": found[m.name],
                "goals": judged[m.name],
                "rounds": rounds[m.name],
            }
            for m in models
        },
    }


def parse() -> argparse.Namespace:
    parser = Parser("python -m benchmarks.inference", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test of about a minute; its files go to .bench/")
    parser.add_argument("--models", nargs="+", choices=GOALS, help="default: both; with --quick only minilm")
    parser.add_argument("--competitors", nargs="+", choices=WAYS, default=list(WAYS), help="ours is always measured")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--artifact", type=Path, help="an unpacked model.tar.gz with its weights, to be minilm's place")
    parser.add_argument("--data", type=folder, help="a folder of real reviews, instead of made-up ones")
    return parser.parse_args()


def prepare(args: argparse.Namespace) -> tuple[list[Model], list[Way], Plan, dict[str, str]]:
    "Install servers, build models and cut texts for the options. The last result is why some ways are missing."
    plan = Plan(**(QUICK if args.quick else {}))
    plan.rounds = args.rounds or plan.rounds
    ways = [way for name, way in WAYS.items() if name in {"ours", *args.competitors}]
    failed = {w.name: why for w in ways if w.requirements and (why := install(w.requirements))}
    for name, why in failed.items():
        print(f"{name} {why}. The others are measured without it.", flush=True)
    names, reviews = args.models or (["minilm"] if args.quick else list(GOALS)), load_texts(args.data)
    models = [make_model(name, args.artifact if name == "minilm" else None, reviews) for name in names]
    return models, ways, plan, failed


@tells_cause
def main() -> int:
    args = parse()
    described = begin(PACKAGES)
    models, ways, plan, missing = prepare(args)
    rounds = run_rounds(models, ways, plan, missing)
    found = summary(rounds)
    print(say(found, missing, plan, models))
    print(busy(described))
    result, picture = (CACHE / RESULT.name, CACHE / PLOT.name) if args.quick else (RESULT, PLOT)
    write_json(as_json(found, rounds, missing, plan, models, described), result)
    plot(found, picture)
    print(f"Written: {result.relative_to(ROOT)}, {picture.relative_to(ROOT)}")
    return 0 if all("ours" in ways and not ways["ours"]["failures"] for ways in found.values()) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
