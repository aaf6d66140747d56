"An interrupted training job ends with the same weights as an uninterrupted one."

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sentiment_engine.deploy.training import training_source
from sentiment_engine.model.base_model import minilm_folder
from sentiment_engine.model.training_job import SEAL, Checkpoints
from tests.model.test_training import ROOT, prepare_job

SECONDS = 300  # limit of a job on a busy machine
WORDS = ("sound", "broke", "lovely", "refund", "strings", "tuner", "hum", "cable", "warm", "cheap", "crisp", "dead")
TWO_EPOCHS = (
    "--epochs",
    "2",
    "--max-length",
    "32",
    "--dropout",
    "0.2",
    "--checkpoints",
    "1",
    "--learning_rate",
    "1e-3",
)
LAST = 8  # steps: 64 reviews, 16 at a time, twice


def reviews(rows: int, seed: int = 0) -> pd.DataFrame:
    "Make reviews of many lengths, each of them different."
    draw = np.random.default_rng(seed)
    texts = [" ".join(draw.choice(WORDS, draw.integers(2, 24))) for _ in range(rows)]
    return pd.DataFrame({"text": texts, "label": np.arange(rows) % 2})


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    "A DistilBERT of two narrow layers."
    from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel, set_seed

    folder = tmp_path_factory.mktemp("base")
    set_seed(0)
    shape = DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=512)
    DistilBertModel(shape).save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm_folder()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return training_source(ROOT / "infra_scripts/train.py", tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def prepare(source, base) -> Callable[..., dict]:
    "Write a job's files under a root and return how to start it."

    def lay_out(root: Path, *more: str, rows: pd.DataFrame | None = None) -> dict:
        job = prepare_job(source, root, base, reviews(64) if rows is None else rows, *TWO_EPOCHS, *more)
        job["env"] |= {"OMP_NUM_THREADS": "1"}  # the same number in each run, so that sums round equally
        return job

    return lay_out


def finish(job: dict) -> str:
    "Run a job to its end and return its output."
    done = subprocess.run(**job, capture_output=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def interrupt(job: dict, root: Path, step: int) -> str:
    "Run a job until it has its checkpoint of `step`, end it like spot capacity, and return its output."
    printed = []
    with subprocess.Popen(**job, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        for line in process.stdout:
            printed.append(line)
            if f"checkpoint={step}\n" in line or f"step={step + 1}/" in line:
                process.send_signal(signal.SIGTERM)
                break
        assert process.wait(timeout=SECONDS) != 0, f"ended by itself:\n{''.join(printed)}"
    for later in (root / "checkpoints").glob("checkpoint-*"):
        if number(later) > step:  # that it started before the signal
            shutil.rmtree(later)
    return "".join(printed)


def number(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def resumed_at(printed: str) -> list[int]:
    "Return the step at which a job resumed."
    return [int(step) for step in re.findall(r"resumed=(\d+)/", printed)]


def flat(state: object, name: str = "") -> dict[str, object]:
    "Name every value in nested lists and dictionaries."
    if isinstance(state, dict | list | tuple):
        pairs = state.items() if isinstance(state, dict) else enumerate(state)
        return {key: value for k, v in pairs for key, value in flat(v, f"{name}/{k}").items()}
    return {name: state}


def left_behind(root: Path) -> dict[str, object]:
    "Return a job's complete final state: weights, optimizer, schedule, random states and the served model."
    import torch
    from safetensors.torch import load_file

    end = root / f"checkpoints/checkpoint-{LAST}"
    found = flat(load_file(end / "model.safetensors"), "weights")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        found |= flat(torch.load(end / name, weights_only=False), name)
    found |= flat(load_file(root / "model/model.safetensors"), "artifact")
    return found | {"model.onnx": (root / "model/model.onnx.data").read_bytes()}


def differences(one: Path, other: Path) -> list[str]:
    "List the differences between two jobs, to the last bit."
    first, second = left_behind(one), left_behind(other)
    assert first.keys() == second.keys() and len(first) > 100
    return [name for name, value in first.items() if not np.array_equal(np.asarray(value), np.asarray(second[name]))]


@pytest.fixture(scope="module")
def uninterrupted(prepare, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("uninterrupted")
    assert not resumed_at(finish(prepare(root)))
    return root


@pytest.mark.parametrize(
    "steps",
    [[2], [4], [6], [LAST], [1, 3, 5]],
    ids=["in the first epoch", "between epochs", "in the second epoch", "after the last step", "three times"],
)
def test_an_interrupted_job_gives_the_same_result_as_an_uninterrupted_one(prepare, uninterrupted, tmp_path, steps):
    job = prepare(tmp_path)
    printed = [*(interrupt(job, tmp_path, step) for step in steps), finish(job)]
    assert differences(uninterrupted, tmp_path) == []
    assert [resumed_at(each) for each in printed] == [[], *([step] for step in steps)]


def with_checkpoints_of(other: Path, root: Path) -> Path:
    "Give a new job another job's checkpoints."
    shutil.copytree(other / "checkpoints", root / "checkpoints")
    return root / "checkpoints"


@pytest.mark.parametrize("differs", ["recipe", "data", "base"])
def test_a_checkpoint_of_another_training_is_reported_and_not_used(prepare, uninterrupted, base, tmp_path, differs):
    with_checkpoints_of(uninterrupted, tmp_path)
    rows = reviews(64)
    if differs == "data":
        rows.loc[63, "text"] += " and more"
    job = prepare(tmp_path, *(["--learning_rate", "2e-3"] if differs == "recipe" else []), rows=rows)
    if differs == "base":
        job["env"]["SM_CHANNEL_BASE"] = str(retouched(base, tmp_path / "base"))
    printed = finish(job)
    assert not resumed_at(printed) and f"[train] step=1/{LAST}" in printed
    for step in (LAST - 1, LAST):
        assert f"passed_over=checkpoint-{step} because=it has another recipe, other data" in printed


def retouched(base: Path, folder: Path) -> Path:
    "Copy a base model and change one of its weights by one bit."
    shutil.copytree(base, folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-3] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    return folder


DAMAGES = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),  # its length was written, its content not
}


def test_a_job_resumes_from_the_last_complete_checkpoint(prepare, uninterrupted, tmp_path):
    kept = with_checkpoints_of(uninterrupted, tmp_path)
    DAMAGES["zeros"](kept / f"checkpoint-{LAST}/optimizer.pt")
    shutil.copytree(kept / f"checkpoint-{LAST}", kept / "checkpoint-old")  # without a step number: a manual copy
    printed = finish(prepare(tmp_path))
    assert f"passed_over=checkpoint-{LAST} because=optimizer.pt has changed" in printed
    assert resumed_at(printed) == [LAST - 1] and differences(uninterrupted, tmp_path) == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_with_any_damaged_file_is_not_used(uninterrupted, tmp_path, damage, capsys):
    mark = json.loads((uninterrupted / f"checkpoints/checkpoint-{LAST}/{SEAL}").read_text())["training"]
    names = sorted(path.name for path in (uninterrupted / f"checkpoints/checkpoint-{LAST}").iterdir())
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} < set(names)
    for name in names:
        kept = with_checkpoints_of(uninterrupted, tmp_path / name)
        assert Checkpoints(kept, mark).last() == LAST
        DAMAGES[damage](kept / f"checkpoint-{LAST}" / name)
        assert Checkpoints(kept, mark).last() == LAST - 1, name
        assert f"passed_over=checkpoint-{LAST}" in capsys.readouterr().out
        DAMAGES[damage](kept / f"checkpoint-{LAST - 1}" / name)
        assert Checkpoints(kept, mark).last() == 0, name


HOPELESS = "--early_stopping 2 --evaluations 2 --epochs 4 --learning_rate 1e-9".split()


def test_an_interrupted_job_stops_early_at_the_same_step(prepare, tmp_path):
    "At this learning rate the model learns nothing, so the first evaluation stays the best."
    printed = finish(prepare(tmp_path / "whole", *HOPELESS))
    assert "step=6/16" in printed and "step=7/16" not in printed
    root = tmp_path / "interrupted"
    job = prepare(root, *HOPELESS)
    told = [interrupt(job, root, 4)]
    moved = root.rename(tmp_path / "elsewhere")  # a restarted job may find its checkpoints in another place
    job = prepare(moved, *HOPELESS)
    told += [interrupt(job, moved, 6), finish(job)]
    assert [resumed_at(each) for each in told] == [[], [4], [6]] and "step=7/16" not in "".join(told)
    for name in ("model/model.safetensors", "model/model.onnx.data"):
        assert (moved / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_checkpoint_without_its_best_predecessor_is_not_used(prepare, tmp_path):
    job = prepare(tmp_path, *HOPELESS)
    interrupt(job, tmp_path, 4)
    (tmp_path / "checkpoints/checkpoint-2/model.safetensors").unlink()
    printed = finish(job)
    assert not resumed_at(printed) and "its best predecessor, checkpoint-2, is unusable" in printed


def test_the_time_before_an_interruption_counts_towards_the_budget(prepare, tmp_path):
    job = prepare(tmp_path, "--time_budget", "10000")
    interrupt(job, tmp_path, 4)
    seal = tmp_path / f"checkpoints/checkpoint-4/{SEAL}"
    sealed = json.loads(seal.read_text())
    assert 0 < sealed["seconds"] < 10_000
    seal.write_text(json.dumps(sealed | {"seconds": 10_000}))
    printed = finish(job)
    assert resumed_at(printed) == [4] and "step=5/8" in printed and "step=6/8" not in printed
    assert "time budget of 10000s is used up" in printed
    assert resumed_at(finish(job)) == [5], "it was at its end"


@pytest.mark.slow
def test_an_interrupted_job_on_several_gpus_gives_the_same_result(prepare, tmp_path):
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    jobs = [prepare(tmp_path / name, "--epochs", "4") for name in ("whole", "interrupted")]
    for job in jobs:
        job["args"][:1] = several
    finish(jobs[0])
    interrupt(jobs[1], tmp_path / "interrupted", 5)
    assert resumed_at(finish(jobs[1])) == [5]
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("whole", "interrupted")]
    assert weights[0] == weights[1]
