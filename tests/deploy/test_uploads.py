"Unchanged bytes are not uploaded again, regardless of the encryption in S3 and of the program that wrote them."

import base64
import hashlib
import uuid
from types import SimpleNamespace

import pytest

from sentiment_engine.deploy.champion import upload_released
from sentiment_engine.deploy.endpoint import upload_artifact
from sentiment_engine.deploy.packaging import upload_packages
from sentiment_engine.deploy.stacks import upload_template
from sentiment_engine.deploy.training import base_model_address
from sentiment_engine.s3 import upload_once
from tests import ROOT
from tests.doubles.engine_double import aws_error

BUCKET = "uploads-artifacts"


class Encrypted:
    "S3 with KMS encryption, where an ETag is not a hash of the content. It keeps an object's metadata."

    def __init__(self):
        self.objects, self.puts = {}, 0
        self.meta = SimpleNamespace(region_name="us-east-1", partition="aws")

    def put_object(self, Key, Body, ChecksumSHA256="", Metadata=None, **_):
        body = Body if isinstance(Body, bytes) else Body.read()
        assert ChecksumSHA256 in ("", base64.b64encode(hashlib.sha256(body).digest()).decode())
        self.objects[Key] = (body, ChecksumSHA256, Metadata or {})
        self.puts += 1

    def upload_file(self, path, Bucket, Key, ExtraArgs=None):
        with open(path, "rb") as file:
            self.put_object(Key, file, Metadata=(ExtraArgs or {}).get("Metadata"))

    def head_object(self, Bucket, Key, ChecksumMode=""):
        if Key not in self.objects:
            raise aws_error("404", "Not Found")
        body, checksum, metadata = self.objects[Key]
        found = {"ETag": f'"{uuid.uuid4().hex}"', "ContentLength": len(body), "Metadata": metadata}
        return found | ({"ChecksumSHA256": checksum} if checksum and ChecksumMode else {})

    def tamper(self):
        "Replace every object with one of the same size and metadata; S3 computes its SHA-256 itself."
        for key, (body, checksum, metadata) in self.objects.items():
            other = bytes([body[0] ^ 1]) + body[1:]
            true = base64.b64encode(hashlib.sha256(other).digest()).decode() if checksum else ""
            self.objects[key] = (other, true, metadata)


@pytest.fixture(params=["template", "packages", "artifact", "released", "base model"])
def upload(request, tmp_path, monkeypatch):
    "Each way in which the product uploads files to S3."
    (tmp_path / "model.tar.gz").write_bytes(b"an artifact")

    def build(folder):
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_text(name)
        return folder

    monkeypatch.setattr("sentiment_engine.model.base_model.build_base_model", build)
    return {
        "template": lambda s3: upload_template(s3, BUCKET, ROOT / "infra_scripts/templates/site.yaml"),
        "packages": lambda s3: upload_packages(s3, BUCKET, ROOT / "lambdas"),
        "artifact": lambda s3: upload_artifact(s3, BUCKET, tmp_path / "model.tar.gz"),
        "released": lambda s3: upload_released(s3, BUCKET),
        "base model": lambda s3: base_model_address(s3, BUCKET),
    }[request.param]


def test_unchanged_objects_are_not_uploaded_again_and_tampered_ones_are_replaced(upload):
    s3 = Encrypted()
    where = upload(s3)
    whole, sent = {key: body for key, (body, *_) in s3.objects.items()}, s3.puts
    assert upload(s3) == where and s3.puts == sent == len(whole)
    s3.tamper()
    assert upload(s3) == where and {key: body for key, (body, *_) in s3.objects.items()} == whole


@pytest.mark.parametrize("content", [b"", b"somebody else's"])
@pytest.mark.parametrize("form", ["bytes", "file"])
def test_an_object_with_different_bytes_is_replaced(cloud, tmp_path, content, form):
    s3, place = cloud.client("s3"), {"Bucket": "upload-tests", "Key": f"base-models/{form}{len(content)}"}
    s3.create_bucket(Bucket=place["Bucket"])
    s3.put_object(**place, Body=content)
    whole = b"x" * 9_000_000  # more than boto3 sends in one part
    (tmp_path / "file").write_bytes(whole)
    own = whole if form == "bytes" else tmp_path / "file"
    assert upload_once(s3, place["Bucket"], place["Key"], own) is True
    assert s3.get_object(**place)["Body"].read() == whole
    assert upload_once(s3, place["Bucket"], place["Key"], own) is False
