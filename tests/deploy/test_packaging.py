"The Lambdas' zips: their content, that they are reproducible, and that each imports little and needs nothing else."

import io
import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from sentiment_engine.deploy.packaging import (
    STANDBY,
    package_files,
    package_function,
    package_keys,
    parameter_of,
    zip_bytes,
)
from tests import ROOT

LAMBDAS = ROOT / "lambdas"
FOLDERS = sorted(path.parent.name for path in LAMBDAS.glob("*/handler.py") if path.parent.name != STANDBY)
HEAVY = {"torch", "transformers", "pandas", "pyspark", "sagemaker", "numpy", "onnxruntime", "fastcore", "IPython"}
RUNTIME = ("boto3", "botocore", "s3transfer", "dateutil", "urllib3", "six.py")  # included in AWS's runtime


def imported_by(paths: list[str]) -> dict:
    "Import handler.py in a bare interpreter with only `paths`, and return the loaded modules."
    code = (
        "import sys, json; sys.path[:0] = sys.argv[1:]; import handler;"
        "print(json.dumps({'modules': sorted(sys.modules), 'callable': callable(handler.handler)}))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory) -> str:
    "A folder that contains only the packages of the Lambda runtime."
    folder = tmp_path_factory.mktemp("runtime")
    for name in RUNTIME:
        (folder / name).symlink_to(Path(sysconfig.get_path("purelib")) / name)
    return str(folder)


def test_there_are_seven_functions_besides_the_standby():
    api = {"is-model-service-running", "start-model-service", "invoke-sagemaker-endpoint", "extend-shutdown-timer"}
    events = {"notification-and-shutdown-scheduler", "shutdown-endpoint", "reconcile-model-service"}
    assert set(FOLDERS) == api | events


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_zip_needs_nothing_else_and_loads_no_heavy_modules(folder, runtime, tmp_path):
    package = package_function(LAMBDAS / folder)
    assert len(package) < 3_000_000
    zipfile.ZipFile(io.BytesIO(package)).extractall(tmp_path)
    loaded = imported_by([str(tmp_path), runtime])
    assert loaded["callable"] and not HEAVY & {name.split(".")[0] for name in loaded["modules"]}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_handler_loads_no_heavy_modules_in_the_full_environment(folder):
    loaded = imported_by([str(LAMBDAS / folder), str(ROOT), sysconfig.get_path("purelib")])
    assert not HEAVY & {name.split(".")[0] for name in loaded["modules"]}


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_zip_contains_every_supported_country(folder):
    names = zipfile.ZipFile(io.BytesIO(package_function(LAMBDAS / folder))).namelist()
    assert {f"phonenumbers/data/region_{c}.py" for c in ("US", "GB", "IN")} <= set(names)
    assert not any(name.startswith(("boto", "phonenumbers/geodata", "torch", "tests")) for name in names)


def test_the_same_input_makes_the_same_zip(tmp_path):
    first = package_function(LAMBDAS / "start-model-service")
    copy = tmp_path / "start-model-service"
    copy.mkdir()
    (copy / "handler.py").write_bytes((LAMBDAS / "start-model-service" / "handler.py").read_bytes())  # a newer mtime
    assert package_function(copy) == first
    assert zip_bytes({"b": b"2", "a": b"1"}) == zip_bytes({"a": b"1", "b": b"2"}) != zip_bytes({"a": b"1"})


def test_a_zip_contains_only_imported_modules():
    package, settings = "sentiment_engine/__init__.py", "sentiment_engine/settings.py"
    assert list(package_files("from sentiment_engine.settings import Settings")) == [package, settings]
    nested = "sentiment_engine/data/__init__.py", "sentiment_engine/data/stability.py"
    assert list(package_files("from sentiment_engine.data.stability import stability")) == [package, *nested]
    needed = package_files((LAMBDAS / "reconcile-model-service" / "handler.py").read_text())
    assert "sentiment_engine/service/__init__.py" in needed and "sentiment_engine/service/lifecycle.py" in needed
    assert not {name for name in needed if "openapi" in name or "/local/" in name or "/deploy/" in name}


def test_every_function_has_its_own_zip():
    keys = package_keys(LAMBDAS)
    assert set(keys) == {parameter_of(folder) for folder in FOLDERS}
    assert all(key.startswith("lambdas/") and key.endswith(".zip") for key in keys.values())


def test_the_readme_links_to_every_notebook():
    "It lists walkthroughs by name and others by folder; the local cloud's walkthrough lists that folder's notebooks."
    readme, notebooks = (ROOT / "README.md").read_text(encoding="utf-8"), ROOT / "nbs"
    for path in notebooks.glob("[0-9]*.ipynb"):
        assert f"](nbs/{path.name})" in readme
    for folder in {path.parent for path in notebooks.glob("*/*.ipynb")}:
        assert f"](nbs/{folder.name})" in readme
    local = json.loads((notebooks / "08_local_cloud.ipynb").read_text(encoding="utf-8"))["cells"]
    told = "".join("".join(cell["source"]) for cell in local if cell["cell_type"] == "markdown")
    assert [p.name for p in (notebooks / "local").glob("*.ipynb") if f"](local/{p.name})" not in told] == []
