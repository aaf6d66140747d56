"The standby model's packages: what they contain, that they run alone, and that the deployed function answers."

import io
import json
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

from sentiment_engine.costs import standby_worst_day
from sentiment_engine.deploy import standby
from sentiment_engine.deploy.endpoint import RegisteredModel
from sentiment_engine.deploy.packaging import STANDBY, parameter_of, stack_parameters
from sentiment_engine.deploy.plan import Plan, Work, bill, read_template
from sentiment_engine.deploy.stacks import delete_stack, deploy_stack
from sentiment_engine.deploy.standby import pack_layer, pack_standby, read_standby_lock, standby_keys, upload_standby
from sentiment_engine.model.artifact import artifact_hash, pack, unpack
from sentiment_engine.model.behaviour import load_suite
from sentiment_engine.model.inference import model_fn, predict_fn
from sentiment_engine.model.released import pack_released, released_folder
from sentiment_engine.model.wheels import WheelError
from sentiment_engine.settings import Settings
from tests import ROOT
from tests.doubles.tiny_model import write_tiny_model

LAMBDAS, BUCKET = ROOT / "lambdas", "standby-artifacts"
TEMPLATE = read_template(ROOT / "infra_scripts/templates/backend.yaml")["Resources"]
PROBE = """
import json, resource, sys
sys.path[:0] = sys.argv[1:]
import handler
if sys.platform == "linux":  # where getrusage counts this process's parent
    (memory,) = [int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")]
else:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({
    "memory": memory,
    "modules": sorted(sys.modules),
    "answers": [handler.handler(event, None) for event in json.load(sys.stdin)],
}))
"""


def unpacked(package: bytes) -> int:
    return sum(each.file_size for each in zipfile.ZipFile(io.BytesIO(package)).infolist())


@pytest.fixture(scope="module")
def packages() -> tuple[bytes, bytes]:
    "The layer for this machine, and the function with the released model."
    return pack_layer(False), pack_standby(LAMBDAS / STANDBY, released_folder(), "0f3c5a7e9b1d")


@pytest.fixture(scope="module")
def alone(packages, tmp_path_factory) -> dict:
    "What the function does in an interpreter that has nothing but the two packages."
    folders = []
    for package, inside in zip(packages, ("python", ""), strict=True):
        folders.append(tmp_path_factory.mktemp("package") / inside)
        zipfile.ZipFile(io.BytesIO(package)).extractall(folders[-1].parent if inside else folders[-1])
    events = [
        {"inputs": ["I love it.", "It broke after a day."], "explain": False},
        {"inputs": ["I love it."], "explain": True},
        {"inputs": ["I love it.", " "]},
        {"inputs": "x", "explain": "yes"},
        ["no object"],
    ]
    command = [sys.executable, "-I", "-S", "-c", PROBE, *map(str, folders)]
    done = subprocess.run(command, input=json.dumps(events), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_packages_fit_into_a_lambda(packages):
    layer, function = packages
    assert len(layer) <= 60_000_000 and unpacked(layer) + unpacked(function) <= 160_000_000
    assert unpacked(layer) + standby.MODEL_LIMIT < 262_144_000  # AWS's limit, however large the registered model is


def test_the_same_files_give_the_same_packages(packages, tmp_path):
    copy = tmp_path / STANDBY
    copy.mkdir()
    (copy / "handler.py").write_bytes((LAMBDAS / STANDBY / "handler.py").read_bytes())  # a newer mtime
    assert packages == (pack_layer.__wrapped__(False), pack_standby(copy, released_folder(), "0f3c5a7e9b1d"))


def test_it_needs_nothing_else_and_loads_no_aws_client(alone):
    loaded = {name.split(".")[0] for name in alone["modules"]}
    assert not loaded & {"boto3", "botocore", "aws_lambda_powertools", "pandas", "torch", "transformers"}
    assert {name for name in alone["modules"] if name.startswith("sentiment_engine.")} == {
        "sentiment_engine.data",
        "sentiment_engine.data.cleaning",
        "sentiment_engine.model",
        "sentiment_engine.model.inference",
    }
    assert 10_000_000 < alone["memory"] <= 220_000_000


def test_it_answers_like_the_container_and_names_its_model(alone):
    answered, explained, *_ = alone["answers"]
    model = model_fn(released_folder())
    assert [each["label"] for each in answered["predictions"]] == ["POSITIVE", "NEGATIVE"]
    assert answered["predictions"][0].keys() == predict_fn(["I love it."], model)[0].keys()
    assert answered["modelVersion"] == explained["modelVersion"] == "0f3c5a7e9b1d"
    assert "love" in ["I love it."[e["start"] : e["end"]] for e in explained["predictions"][0]["explanation"]]


def test_the_error_for_a_wrong_request_comes_from_the_model(alone):
    errors = [answer["error"] for answer in alone["answers"][2:]]
    assert [(e["code"], e["status"]) for e in errors] == [
        ("empty_input", 400),
        ("invalid_explain", 400),
        ("missing_inputs", 400),
    ]
    assert errors[0]["message"] == "inputs[1] is blank. Send a text with at least one word."


# The layer for AWS


def write_wheel(path: Path, names: list[str]) -> str:  # SHA-256
    name, number = path.name.split("-")[:2]
    about = f"{name}-{number}.dist-info/"
    held = dict.fromkeys(names, "") | {f"{about}RECORD": "", f"{about}WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n"}
    held[f"{about}METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n"
    with zipfile.ZipFile(path, "w") as wheel:
        for each, content in held.items():
            wheel.writestr(zipfile.ZipInfo(each), content)
    return artifact_hash(path)


@pytest.fixture
def index(tmp_path, monkeypatch):
    "A package index with one wheel, and a lock that names it. Returns the lock."
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = ["numpy/core.py", "numpy/tests/test_core.py", "numpy/f2py/it.py", "numpy/core.pyi", "numpy.libs/blas.so"]
    names += ["numpy-1.0.data/scripts/f2py"]
    sha256 = write_wheel(tmp_path / "numpy-1.0-py3-none-any.whl", names)
    lock = tmp_path / "lock.toml"
    lock.write_text(f'python = "3.13"\nplatforms = ["any"]\n[sha256]\n"numpy-1.0-py3-none-any.whl" = "{sha256}"\n')
    monkeypatch.setattr(standby, "STANDBY_LOCK", lock)
    pack_layer.cache_clear()
    yield lock
    pack_layer.cache_clear()


def test_the_layer_for_aws_contains_the_needed_files_of_the_locked_wheels(index):
    names = zipfile.ZipFile(io.BytesIO(pack_layer(True))).namelist()
    about = [f"python/numpy-1.0.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL")]
    assert names == [*about, "python/numpy.libs/blas.so", "python/numpy/core.py"]


def test_a_wheel_with_the_wrong_hash_is_refused(index):
    index.write_text(index.read_text().replace('= "', '= "0', 3).replace('"03.13"', '"3.13"'))
    with pytest.raises(WheelError, match="numpy"):
        pack_layer(True)


def test_the_lock_matches_the_tested_versions_and_the_template_platform():
    lock, function, layer = read_standby_lock(), TEMPLATE["StandbyModel"], TEMPLATE["StandbyLayer"]
    assert {name: version(name) for name in lock.pins} == lock.pins, "run python -m sentiment_engine.model.wheels"
    assert set(lock.pins) == set(standby.SERVING)
    python = tuple(map(int, lock.python.split(".")))
    taken = {*cpython_tags(python, platforms=lock.platforms), *compatible_tags(python, platforms=lock.platforms)}
    assert all(parse_wheel_filename(name)[3] & taken for name in lock.sha256)
    assert all(platform.endswith("_aarch64") for platform in lock.platforms)
    fits = (["arm64"], [f"python{lock.python}"])
    assert (function["Properties"]["Architectures"], [function["Properties"]["Runtime"]]) == fits
    assert (layer["Properties"]["CompatibleArchitectures"], layer["Properties"]["CompatibleRuntimes"]) == fits


def test_a_modified_installed_library_is_not_packed(monkeypatch, tmp_path):
    recorded = tmp_path / "numpy-2.dist-info"
    recorded.mkdir()
    (recorded / "METADATA").write_text("Name: numpy\n")
    (recorded / "RECORD").write_text(f"numpy.py,sha256={'A' * 43},9\n")
    (tmp_path / "numpy.py").write_text("import os")
    found = standby.importlib.metadata.Distribution.at(recorded)
    monkeypatch.setattr(standby.importlib.metadata, "distribution", lambda name: found)
    with pytest.raises(RuntimeError, match="differs from the file that pip installed"):
        standby.installed_files()


# Which model


@pytest.fixture
def s3(cloud):
    client = cloud.client("s3")
    client.create_bucket(Bucket=BUCKET)
    return client


def registered(s3, folder: Path) -> RegisteredModel:
    "Register a model of a few words."
    pack(write_tiny_model(folder), folder.with_suffix(".tar.gz"))
    s3.upload_file(str(folder.with_suffix(".tar.gz")), BUCKET, "models/tiny.tar.gz")
    return RegisteredModel("model", "aaaabbbbcccc", 0.9, 0.9, f"s3://{BUCKET}/models/tiny.tar.gz")


def model_in(s3, key: str) -> tuple[bytes, str]:
    with zipfile.ZipFile(io.BytesIO(s3.get_object(Bucket=BUCKET, Key=key)["Body"].read())) as package:
        return package.read("model/model.onnx"), package.read("model/VERSION").decode()


def test_it_contains_the_registered_or_the_released_model(s3, tmp_path, monkeypatch, capsys):
    model, own = registered(s3, tmp_path / "tiny"), (released_folder() / "model.onnx").read_bytes()

    def sent(given) -> tuple[dict, bytes, str]:
        keys = upload_standby(s3, BUCKET, LAMBDAS, given, locked=False)
        return keys, *model_in(s3, keys[parameter_of(STANDBY)])

    keys, held, number = sent(model)
    assert (held, number) == ((tmp_path / "tiny/model.onnx").read_bytes(), "aaaabbbbcccc")
    assert keys == standby_keys(LAMBDAS, "aaaabbbbcccc", locked=False)
    first, released, other = sent(None)
    assert released == own and len(other) == 12 != number
    assert first.items() - keys.items() and first["StandbyLayerKey"] == keys["StandbyLayerKey"]
    assert "layer: 3" in (said := capsys.readouterr().out) and "MB, unchanged" in said  # the second layer
    monkeypatch.setattr(standby, "MODEL_LIMIT", 100)
    assert sent(model) == (first, own, other) and "aaaabbbbcccc is too large" in capsys.readouterr().out


def test_the_plan_prices_the_standby_and_no_trial_without_an_endpoint():
    work, most = Work(trial=True), f"{standby_worst_day(5000, 1769):.2f} a day at most: 5,000 texts"
    with_endpoint, without = ("\n".join(bill(Plan([], []), Settings(endpoint=e), work)) for e in ("realtime", "lambda"))
    assert most in with_endpoint and most in without
    assert "a trial" in with_endpoint and "a trial" not in without and "ml." not in without
    assert most not in "\n".join(bill(Plan([], []), Settings(standby=False), work))


def test_every_function_that_answers_a_status_knows_the_standby():
    "POST /start, /extend and /sleep answer with the status, too."
    answering = {name.removesuffix("Integration") for name, r in TEMPLATE.items() if "Integration" in r["Type"]}
    known = [TEMPLATE[name]["Properties"]["Environment"]["Variables"] for name in sorted(answering)]
    for name in (
        "STANDBY_FUNCTION",
        "STANDBY_MODEL_VERSION",
        "SENTIMENT_STANDBY_MEMORY_MB",
        "SENTIMENT_DAILY_STANDBY_TEXTS",
    ):
        assert len({json.dumps(variables[name]) for variables in known}) == 1 and len(known) == 5


# Deployed


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Path:
    "The part of the engine's template that deploys the function."
    whole = read_template(ROOT / "infra_scripts/templates/backend.yaml")
    wanted = {name: each for name, each in whole["Resources"].items() if name.startswith("Standby")}
    conditions = {name: whole["Conditions"][name] for name in ("Bounded", "Reserves", "HasStandby", "Snapshots")}
    parameters = {name: {"Default": "none"} | each for name, each in whole["Parameters"].items()}
    part = {"Resources": wanted, "Conditions": conditions, "Parameters": parameters, "Outputs": {}}
    path = tmp_path_factory.mktemp("stack") / "standby.json"
    path.write_text(json.dumps(whole | part))
    return path


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    "The released model in the form that an endpoint serves."
    path = tmp_path_factory.mktemp("artifact") / "model.tar.gz"
    pack_released(path)
    return path


@pytest.fixture(scope="module")
def deploy(cloud, stack, artifact):
    "Deploy the function, with snapshots by default. The result maps logical ids to names."
    s3, cloudformation, site = (
        cloud.client("s3"),
        cloud.client("cloudformation"),
        {"ApiId": "a1", "SiteOrigin": "https://d1.example"},
    )
    s3.create_bucket(Bucket=BUCKET)
    s3.upload_file(str(artifact), BUCKET, "models/model.tar.gz")
    model = RegisteredModel("model", artifact_hash(artifact)[:12], 0.9, 0.9, f"s3://{BUCKET}/models/model.tar.gz")
    keys = upload_standby(s3, BUCKET, LAMBDAS, model, locked=False)

    def deployed(more: dict | None = None, **changed) -> dict[str, str]:
        own = Settings(prefix="stand-by", **{"standby_snapshots": True} | changed)
        given = stack_parameters(own, BUCKET, keys | (more or {}), site, "secret")
        deploy_stack(cloudformation, "stand-by-engine", stack, given, {"Project": "stand-by"})
        found = cloudformation.get_paginator("list_stack_resources").paginate(StackName="stand-by-engine")
        return {r["LogicalResourceId"]: r["PhysicalResourceId"] for r in found.search("StackResourceSummaries[]")}

    yield deployed
    delete_stack(cloudformation, "stand-by-engine")


def ask(cloud, function: str, event: object) -> dict:
    name, _, number = function.rpartition(":")
    cloud.client("lambda").get_waiter("published_version_active").wait(
        FunctionName=name, Qualifier=number, WaiterConfig={"Delay": 1, "MaxAttempts": 120}
    )
    reply = cloud.client("lambda").invoke(FunctionName=function, Payload=json.dumps(event))
    assert "FunctionError" not in reply, reply["Payload"].read()
    return json.load(reply["Payload"])


def test_the_function_gives_the_same_labels_as_the_artifact_and_logs_no_text(cloud, deploy, artifact, tmp_path):
    function, texts = deploy()["StandbyModelPublished"], list(load_suite()["text"][:200])
    found = [ask(cloud, function, {"inputs": texts[i : i + 25], "explain": False}) for i in range(0, 200, 25)]
    labels = [each["label"] for answer in found for each in answer["predictions"]]
    assert labels == [each["label"] for each in predict_fn(texts, model_fn(unpack(artifact, tmp_path / "model")))]
    assert {answer["modelVersion"] for answer in found} == {artifact_hash(artifact)[:12]}
    assert ask(cloud, function, {"inputs": [" "]})["error"]["code"] == "empty_input"
    pages = cloud.client("logs").get_paginator("filter_log_events")
    logged = list(pages.paginate(logGroupName="/aws/lambda/stand-by-standby-model").search("events[].message"))
    assert logged and not [line for line in logged for text in texts if text in line]


def test_a_memory_change_publishes_a_version_and_deletes_the_old_one(cloud, deploy):
    client, before = cloud.client("lambda"), deploy()
    after = deploy(standby_memory_mb=2048)
    assert after["StandbyModelPublished"] != before["StandbyModelPublished"]
    found = client.list_versions_by_function(FunctionName=after["StandbyModel"])["Versions"]
    assert [v["Version"] for v in found] == ["$LATEST", after["StandbyModelPublished"].rsplit(":", 1)[-1]]
    assert client.get_function_configuration(FunctionName=after["StandbyModelPublished"])["MemorySize"] == 2048
    assert "StandbyModelPublished" not in deploy(standby_snapshots=False)


def test_a_new_layer_replaces_the_old_one_and_disabling_removes_all(cloud, deploy):
    client, s3 = cloud.client("lambda"), cloud.client("s3")
    layer = deploy()["StandbyLayer"]
    s3.put_object(Bucket=BUCKET, Key="lambdas/other.zip", Body=standby.zip_bytes({"python/nothing.py": b""}))
    other = deploy({"StandbyLayerKey": "lambdas/other.zip"})["StandbyLayer"]
    (name,) = [each["LayerName"] for each in client.list_layers()["Layers"] if "stand-by" in each["LayerName"]]
    versions = client.list_layer_versions(LayerName=name)["LayerVersions"]
    assert other != layer and [v["LayerVersionArn"] for v in versions] == [other]
    cloud.client("cloudformation").delete_stack(StackName="stand-by-engine")
    delete_stack(cloud.client("cloudformation"), "stand-by-engine")
    assert not [each for each in client.list_layers()["Layers"] if "stand-by" in each["LayerName"]]
