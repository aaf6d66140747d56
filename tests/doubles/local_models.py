"""Shared helpers of the local cloud's tests: small artifacts, and waiting."""

import io
import tarfile
import time
from collections.abc import Callable

ROLE = "arn:aws:iam::000000000000:role/tests"

# Knows one word; "crash" ends its process, "fail" raises an error.
HANDLERS = """
import json, os
def model_fn(model_dir): return {"lovely"}
def input_fn(body, content_type):
    inputs = json.loads(body)["inputs"]
    if not inputs: raise ValueError("inputs is empty")
    return inputs
def predict_fn(text, words):
    if text == "crash": os._exit(9)
    if text == "fail": raise RuntimeError("a secret detail")
    return ["POSITIVE" if words & set(text.lower().split()) else "NEGATIVE"]
def output_fn(labels, accept): return json.dumps([{"label": label} for label in labels])
"""


def archive(files: dict[str, str]) -> bytes:
    "Return a .tar.gz of `files`, texts by path."
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()


def until(found: Callable[[], object], seconds: float = 120.0):
    "Return the first true result of `found`. Raises TimeoutError after `seconds`."
    deadline = time.monotonic() + seconds
    while not (result := found()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"still {result!r} after {seconds:g} s")
        time.sleep(0.05)
    return result


def bucket(cloud, name: str) -> str:
    "Make a bucket and return its name."
    cloud.client("s3").create_bucket(Bucket=name)
    return name


def register(cloud, name: str, handlers: str = HANDLERS) -> None:
    "Upload an artifact to S3 and create a model and an endpoint config from it, all named `name`."
    data = {"Bucket": bucket(cloud, "test-models"), "Key": f"{name}/model.tar.gz"}
    cloud.client("s3").put_object(**data, Body=archive({"code/inference.py": handlers}))
    container = {"Image": "inference", "ModelDataUrl": f"s3://test-models/{name}/model.tar.gz"}
    sagemaker = cloud.client("sagemaker")
    sagemaker.create_model(ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer=container)
    variant = {"VariantName": "AllTraffic", "ModelName": name, "InstanceType": "ml.t2.medium"}
    sagemaker.create_endpoint_config(
        EndpointConfigName=name, ProductionVariants=[variant | {"InitialInstanceCount": 1}]
    )


def deploy(cloud, name: str, handlers: str = HANDLERS) -> dict:
    "Deploy an artifact and return the endpoint's description once it is in service or has failed."
    register(cloud, name, handlers)
    cloud.client("sagemaker").create_endpoint(EndpointName=name, EndpointConfigName=name)
    return settled(cloud, name)


def settled(cloud, name: str) -> dict:
    "Return the endpoint's description once its state is final."
    describe = cloud.client("sagemaker").describe_endpoint
    return until(lambda: (d := describe(EndpointName=name))["EndpointStatus"] in ("InService", "Failed") and d)


def predict(cloud, name: str, text: str) -> str:
    "Return the endpoint's answer for one text."
    import json

    body = json.dumps({"inputs": text})
    answer = cloud.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=name, ContentType="application/json", Body=body
    )
    assert answer["ContentType"] == "application/json"
    return answer["Body"].read().decode()
