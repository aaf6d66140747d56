"The packages that the container lacks: downloaded completely or not at all, packed reproducibly, installed offline."

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile, ZipInfo

import pytest
from packaging.requirements import Requirement
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

from infra_scripts import deploy as deploy_command
from sentiment_engine.deploy import phases
from sentiment_engine.deploy.account import Finding
from sentiment_engine.deploy.endpoint import serving_image, upload_artifact
from sentiment_engine.local.hosting import ModelServer
from sentiment_engine.model import wheels
from sentiment_engine.model.artifact import PreflightError, add_inference_code, artifact_hash, pack, preflight, unpack
from sentiment_engine.model.wheels import (
    OtherPackages,
    WheelError,
    add_wheels,
    fetch_wheels,
    read_lock,
    see_wheels,
    with_wheels,
)
from tests import ROOT
from tests.deploy.test_aws_deploy import deploy_to
from tests.doubles.tiny_model import write_tiny_model

NAMES = ("tiny_a-1.0-py3-none-any.whl", "tiny_b-2.0-py3-none-any.whl")


def write_wheel(path: Path, answer: int = 42) -> Path:
    "Write a wheel that pip accepts."
    name, number = path.name.split("-")[:2]
    held = {
        f"{name}.py": f"ANSWER = {answer}",
        f"{name}-{number}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n",
        f"{name}-{number}.dist-info/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n",
        f"{name}-{number}.dist-info/RECORD": "",
    }
    with ZipFile(path, "w") as archive:
        for file, content in held.items():
            archive.writestr(ZipInfo(file), content)
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    "A package index with two wheels, the only one in pip's settings, and a release whose lock names both."
    folder = tmp_path / "index"
    folder.mkdir()
    sums = {name: artifact_hash(write_wheel(folder / name)) for name in NAMES}
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    lock = tmp_path / "lock.toml"
    lines = "".join(f'"{name}" = "{value}"\n' for name, value in sums.items())
    lock.write_text(f'python = "3.12"\nplatforms = ["manylinux2014_x86_64"]\n[sha256]\n{lines}')
    monkeypatch.setattr(wheels, "LOCK", lock)
    return folder


@pytest.fixture
def cache(index, tmp_path):
    "The wheels in the cache after a download."
    return shutil.copytree(index, tmp_path / "cache")


@pytest.fixture
def plain(tmp_path):
    "A small artifact, packed without wheels."
    folder = write_tiny_model(tmp_path / "plain")
    add_inference_code(folder)
    pack(folder, tmp_path / "plain.tar.gz")
    return tmp_path / "plain.tar.gz"


@pytest.fixture
def complete(plain, cache, tmp_path):
    "The same artifact with wheels, unpacked."
    with_wheels(plain, tmp_path / "complete.tar.gz", cache)
    return unpack(tmp_path / "complete.tar.gz", tmp_path / "complete")


def packages(artifact: Path):
    "Return the preflight's check of the packages."
    try:
        checks = preflight(artifact)
    except PreflightError as e:
        checks = e.checks
    return next(check for check in checks if check.name == "packages")


def pip_install(model: Path) -> subprocess.CompletedProcess:
    "Run the toolkit's installation in its folder, without a reachable index."
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "-r", model / "code" / "requirements.txt"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    env |= {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
    return subprocess.run(command, env=env, cwd="/", capture_output=True, text=True)


# The lock


def test_the_lock_has_the_versions_of_the_test_environment():
    lock = read_lock()
    assert {name: version(name) for name in lock.pins} == lock.pins, "run python -m sentiment_engine.model.wheels"
    pinned = dict(line.split("==") for line in wheels.SERVE_REQUIREMENTS if "==" in line)
    assert pinned and pinned.items() <= lock.pins.items()


def test_the_command_locks_the_versions_of_the_constraints(monkeypatch, capsys):
    folder, asked = ROOT / "sentiment_engine", []
    texts = {place: (folder / place).read_text(encoding="utf-8") for place in wheels.LOCKS}

    def again(lock, versions, title):
        asked.append((lock, versions))
        return next(text for text in texts.values() if text.startswith(f"# {title}. "))

    monkeypatch.setattr(wheels, "lock_text", again)
    wheels.main()
    assert list(texts.values()) == [(folder / place).read_text(encoding="utf-8") for place in texts]
    assert len(asked) == 2 and all(
        {name: versions[name] for name in lock.pins} == lock.pins for lock, versions in asked
    )


def test_the_lock_is_complete():
    "Every requirement of a locked package is locked too, or in the container because of transformers."
    lock = read_lock()
    needed = {Requirement(line).name for name in lock.pins for line in requires(name) or () if "extra" not in line}
    assert needed | {Requirement(line).name for line in wheels.SERVE_REQUIREMENTS} <= {
        *lock.pins,
        "numpy",
        "packaging",
        "tokenizers",
    }


@pytest.mark.parametrize("instance_type", ["ml.m5.large", "ml.c5.xlarge", "ml.g4dn.xlarge"])
def test_the_wheels_match_the_platform_of_the_container(instance_type):
    "The images for CPUs and for GPUs have the same Python and the same Ubuntu, whose glibc takes manylinux_2_28."
    lock, image = read_lock(), serving_image("us-east-1", instance_type)
    assert f"-py{lock.python.replace('.', '')}-" in image and image.endswith("ubuntu22.04")
    python = tuple(map(int, lock.python.split(".")))
    taken = {*cpython_tags(python, platforms=lock.platforms), *compatible_tags(python, platforms=lock.platforms)}
    assert all(parse_wheel_filename(name)[3] & taken for name in lock.sha256)


# Fetching


def test_wheels_are_downloaded_once(index, tmp_path):
    cache = fetch_wheels(tmp_path / "cache")
    assert {path.name for path in cache.iterdir()} == set(NAMES)
    shutil.rmtree(index)
    assert fetch_wheels(cache) == cache


@pytest.mark.parametrize("fault", ["missing", "another file", "no index", "cut off"])
def test_a_failed_download_leaves_no_partial_files(index, tmp_path, fault):
    wheel = index / NAMES[1]
    if fault == "missing":
        wheel.unlink()
    elif fault == "another file":
        write_wheel(wheel, answer=43)
    elif fault == "cut off":
        wheel.write_bytes(wheel.read_bytes()[:200])
    else:
        shutil.rmtree(index)
    with pytest.raises(WheelError, match="tiny-b"):
        fetch_wheels(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_wheels_downloaded_before_a_failure_are_kept(index, cache):
    (cache / NAMES[1]).write_bytes(b"half of i")
    (index / NAMES[1]).unlink()
    with pytest.raises(WheelError, match="tiny-b"):
        fetch_wheels(cache)
    write_wheel(index / NAMES[1])
    (index / NAMES[0]).unlink()  # it exists already
    fetch_wheels(cache)
    assert {name: artifact_hash(cache / name) for name in NAMES} == read_lock().sha256


def test_a_damaged_wheel_in_the_cache_is_downloaded_again(index, cache):
    for name in NAMES:
        (cache / name).write_bytes(b"tampered with")
    fetch_wheels(cache)
    assert {name: artifact_hash(cache / name) for name in NAMES} == read_lock().sha256


def test_the_cache_is_in_the_users_cache_folder(index, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "theirs"))
    assert fetch_wheels() == tmp_path / "theirs" / "sentiment-engine" / "wheels"


def test_make_artifact_reports_what_is_missing_and_writes_nothing(tmp_path):
    script = ROOT / "infra_scripts/make/release_model.py"
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    env |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, script, "--pack", tmp_path / "model.tar.gz"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 1 and not (tmp_path / "model.tar.gz").exists()
    assert "nothing was packed: pip cannot fetch" in done.stderr and "onnxruntime" in done.stderr
    assert "Traceback" not in done.stderr


# Packing


def test_the_same_wheels_give_the_same_artifact(plain, cache, tmp_path):
    first = with_wheels(plain, tmp_path / "first.tar.gz", cache)
    for path in cache.iterdir():
        os.utime(path, (1, 1))
    assert with_wheels(plain, tmp_path / "second.tar.gz", cache) == first
    assert with_wheels(tmp_path / "first.tar.gz", tmp_path / "third.tar.gz", cache) == first
    assert artifact_hash(tmp_path / "third.tar.gz") == first != artifact_hash(plain)


def test_wheels_of_an_earlier_release_are_replaced(complete, cache):
    write_wheel(complete / "code/wheels/tiny_old-0.1-py3-none-any.whl")
    add_wheels(complete, cache)
    assert {path.name for path in (complete / "code/wheels").iterdir()} == set(NAMES) and see_wheels(complete)


@pytest.mark.parametrize("asked", ["tiny-a==0.9", "emoji", "tiny-a==1.0\nemoji>=2", "./own.whl", "-e ./own"])
def test_an_artifact_with_other_requirements_is_left_unchanged(plain, cache, tmp_path, asked):
    folder = unpack(plain, tmp_path / "folder")
    (folder / "code/requirements.txt").write_text(f"{asked}\n")
    with pytest.raises(OtherPackages, match=r"own|emoji|tiny-a==0\.9"):
        add_wheels(folder, cache)
    assert not (folder / "code/wheels").exists() and (folder / "code/requirements.txt").read_text() == f"{asked}\n"


def test_a_wheel_that_differs_from_the_lock_is_not_packed(complete, cache):
    before = sorted((complete / "code").rglob("*"))
    write_wheel(cache / NAMES[0], answer=43)
    (cache / NAMES[1]).unlink()
    with pytest.raises(WheelError, match=r"tiny_a.*tiny_b"):
        add_wheels(complete, cache)
    assert sorted((complete / "code").rglob("*")) == before and see_wheels(complete)


# Installing and checking

BREAKS = {
    "tampered": lambda code: write_wheel(code / "wheels" / NAMES[0], answer=43),
    "cut off": lambda code: (code / "wheels" / NAMES[0]).write_bytes(b"PK"),
    "missing": lambda code: (code / "wheels" / NAMES[0]).unlink(),
    "all missing": lambda code: shutil.rmtree(code / "wheels"),
    "another version": lambda code: (code / "wheels" / NAMES[0]).rename(code / "wheels/tiny_a-1.1-py3-none-any.whl"),
}


def test_pip_installs_the_wheels_without_an_index(complete):
    done = pip_install(complete)
    assert done.returncode == 0, done.stderr
    assert "Would install tiny_a-1.0 tiny_b-2.0" in done.stdout.replace("tiny-", "tiny_")
    for name in ("tokenizers", "numpy"):  # the container's own versions stay, because its model server needs them
        assert f"Requirement already satisfied: {name}" in done.stdout


@pytest.mark.parametrize("fault", BREAKS)
def test_wheels_that_pip_refuses_fail_the_preflight_and_the_local_endpoint(complete, tmp_path, fault):
    BREAKS[fault](complete / "code")
    assert pip_install(complete).returncode != 0
    with pytest.raises(ValueError, match="code/wheels"):
        see_wheels(complete)
    with pytest.raises(RuntimeError, match="failed to install required packages"):
        local_endpoint(complete, tmp_path).prepare()


@pytest.mark.parametrize(
    "line",
    ["--extra-index-url https://example.com/simple", "emoji", "--find-links https://example.com", "--no-binary :all:"],
)
def test_an_artifact_that_would_use_an_index_is_found(complete, line):
    path = complete / "code/requirements.txt"
    path.write_text(path.read_text() + f"{line}\n")
    with pytest.raises(ValueError, match="pack the artifact again"):
        see_wheels(complete)


@pytest.mark.parametrize("protection", ["--no-index", "--find-links wheels", " --hash=sha256:"])
def test_a_requirements_file_with_a_missing_protection_is_found(complete, protection):
    path = complete / "code/requirements.txt"
    text = path.read_text()
    assert protection in text
    path.write_text(text.replace(protection, " # "))
    with pytest.raises(ValueError, match="pack the artifact again"):
        see_wheels(complete)


def test_a_wheel_missing_from_the_lock_is_found(complete):
    write_wheel(complete / "code/wheels/more-1.0-py3-none-any.whl")
    found = packages(complete)
    assert not found.passed and str(found).startswith("FAILED") and "more-1.0" in found.saw


def test_an_artifact_without_wheels_passes_with_a_warning(plain):
    found = packages(plain)
    assert found.passed and found.warning and str(found).startswith("WARN")
    assert "asks a package index at every start" in found.saw


def test_an_artifact_with_wheels_passes_without_a_warning(complete):
    found = packages(complete)
    assert found.passed and not found.warning and str(found).startswith("ok") and "no package index" in found.saw


# The local cloud


def local_endpoint(model: Path, tmp_path: Path) -> ModelServer:
    "Return an endpoint of the local cloud that fetches this artifact."
    pack(model, tmp_path / "fetched.tar.gz")
    s3 = SimpleNamespace(download_file=lambda bucket, key, path: shutil.copyfile(tmp_path / "fetched.tar.gz", path))
    aws = SimpleNamespace(client=lambda service: s3, environment={})
    return ModelServer(tmp_path / "endpoint", aws, {"ModelDataUrl": "s3://models/model.tar.gz"})


def test_the_local_cloud_refuses_artifacts_with_versions_it_lacks(plain, tmp_path):
    folder = unpack(plain, tmp_path / "folder")
    for line, says in (("numpy<1", f"this machine has {version('numpy')}"), ("nowhere==1", "does not have")):
        (folder / "code/requirements.txt").write_text(f"{line}\n")
        with pytest.raises(RuntimeError, match=says):
            local_endpoint(folder, tmp_path).prepare()
    (folder / "code/requirements.txt").write_text(f"onnxruntime=={version('onnxruntime')}  # the one here\n")
    local_endpoint(folder, tmp_path).prepare()


def test_the_log_lists_the_running_versions(plain, tmp_path):
    "Nothing else shows what the container has installed."
    said = []
    server = local_endpoint(unpack(plain, tmp_path / "folder"), tmp_path)
    server.on_line = said.append
    server.prepare()
    server.start()
    server.stop()
    (line,) = [json.loads(line)["event"] for line in said if "answering with" in line]
    for name in ("onnxruntime", "tokenizers", "numpy"):
        assert f"{name} {version(name)}" in line
    assert f"Python {sys.version.split()[0]}" in line


# S3


def test_an_artifact_is_uploaded_once_and_completely(cloud, plain, tmp_path):
    s3, sent = cloud.client("s3"), []
    s3.create_bucket(Bucket="wheels-artifacts")

    def put(**options):
        sent.append(options)
        s3.put_object(**options)

    counted = SimpleNamespace(head_object=s3.head_object, put_object=put)
    address = upload_artifact(counted, "wheels-artifacts", plain)
    assert upload_artifact(counted, "wheels-artifacts", plain) == address and len(sent) == 1
    key = address.removeprefix("s3://wheels-artifacts/")
    assert key.startswith("models/")  # what the endpoint's role may read
    s3.put_object(Bucket="wheels-artifacts", Key=key, Body=b"another file")
    upload_artifact(counted, "wheels-artifacts", plain)
    s3.download_file("wheels-artifacts", key, str(tmp_path / "back.tar.gz"))
    assert len(sent) == 2 and artifact_hash(tmp_path / "back.tar.gz") == artifact_hash(plain)


@pytest.mark.parametrize("number", ["04", "05"])  # those of the endpoint's container, and those of the standby model
def test_only_deployments_to_aws_get_the_wheels(number):
    by_target = {
        target: next(p for p in phases.plan(phases.parameters_of(target, {})) if p.title.startswith(number))
        for target in ("aws", "local")
    }
    assert by_target["aws"].parameters["wheels"] is True and "wheels" not in by_target["local"].parameters


def test_unavailable_wheels_stop_a_deployment_before_any_cost(index, tmp_path, monkeypatch):
    "Notebook 04 packs them after cleaning and training, which cost money."
    (index / NAMES[0]).unlink()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    deploy_to(monkeypatch, Finding("region", True, "us-east-1"))
    with pytest.raises(SystemExit, match="pip cannot fetch tiny-a"):
        deploy_command.main()
