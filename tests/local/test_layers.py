"A function uses a layer's libraries if this machine can load them, and this machine's own otherwise."

import io
import json
import sys
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

HEAD = Path(sys.executable).read_bytes()[:64]  # of a program for this machine
OTHER = HEAD[:18] + bytes([HEAD[18] ^ 0xFF]) + HEAD[19:]  # the same for another processor
FOREIGN_TAG = ".cpython-399-aarch64-linux-gnu.so"
LAYERS = {  # name: compiled libraries, and whether the function gets the layer
    "only Python": ({}, True),
    "this Python": ({f"core{EXTENSION_SUFFIXES[0]}": HEAD}, True),
    "any Python": ({"core.abi3.so": HEAD, "libs/libdeep.so": HEAD}, True),
    "another Python": ({f"core{FOREIGN_TAG}": HEAD}, False),
    "another processor": ({"libs/libdeep.so": OTHER}, False),
    "another processor, any Python": ({"core.abi3.so": OTHER}, False),
    "another system": ({"core.abi3.so": b"\xcf\xfa\xed\xfe" + HEAD[4:]}, False),
    "a truncated library": ({"core.so": HEAD[:10]}, False),
}


def pack(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


@pytest.fixture(scope="module")
def role(cloud) -> str:
    trust = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "lambda.amazonaws.com"}}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    return cloud.client("iam").create_role(RoleName="layers", AssumeRolePolicyDocument=policy)["Role"]["Arn"]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_for_another_machine_is_replaced_by_own_libraries(cloud, role, name):
    functions, (libraries, used) = cloud.client("lambda"), LAYERS[name]
    own = "layer-" + name.replace(" ", "-").replace(",", "")
    files = {"python/numpy/__init__.py": b"__file__ = 'the layer'"}
    files |= {f"python/numpy/{path}": content for path, content in libraries.items()}
    layer = functions.publish_layer_version(LayerName=own, Content={"ZipFile": pack(files)})["LayerVersionArn"]
    code = b"import numpy\ndef handler(event, context): return numpy.__file__\n"
    given = {
        "Runtime": "python3.13",
        "Role": role,
        "Handler": "look.handler",
        "Code": {"ZipFile": pack({"look.py": code})},
    }
    functions.create_function(FunctionName=own, Layers=[layer], **given)
    said = functions.invoke(FunctionName=own, Payload=b"{}")
    assert (json.load(said["Payload"]) == "the layer") is used and "FunctionError" not in said
