"Packing, opening and preflight: what must not be deployed is found before it is paid for."

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from shutil import copytree

import pytest
from tiny_model import CONFIG, METRICS, WEIGHTS, write_tiny_model

from sentiment_engine import artifact, inference
from sentiment_engine.artifact import PreflightError, add_inference_code, artifact_hash, pack, preflight, unpack


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    "An artifact that passes, unpacked."
    folder = write_tiny_model(tmp_path_factory.mktemp("good"))
    add_inference_code(folder)
    return folder


@pytest.fixture
def own(good, tmp_path):
    "A copy of it that a test may break."
    return copytree(good, tmp_path / "own")


def failed(folder: Path, **options) -> dict[str, str]:
    "Return what preflight found wrong: name of the check → what it saw."
    with pytest.raises(PreflightError) as error:
        preflight(folder, **options)
    wrong = {check.name: check.saw for check in error.value.checks if not check.passed}
    assert all(f"{name}: {saw}" in str(error.value) for name, saw in wrong.items())
    return wrong


# Packing


def test_the_code_in_the_artifact_is_the_code_here(good):
    assert (good / "code" / "inference.py").read_bytes() == Path(inference.__file__).read_bytes()
    wanted = (good / "code" / "requirements.txt").read_text().split()
    assert [line.split("=")[0].split(">")[0] for line in wanted] == ["onnxruntime", "tokenizers", "numpy"]


def test_adding_the_code_loads_no_runtime():
    "A training job packs on a machine that serves nothing."
    code = "import sys, sentiment_engine.artifact; sys.exit('onnxruntime' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_same_files_give_the_same_bytes(good, tmp_path):
    first = pack(good, tmp_path / "first.tar.gz")
    copy = copytree(good, tmp_path / "copy")
    (copy / "code" / "__pycache__").mkdir(exist_ok=True)
    (copy / "code" / "__pycache__" / "inference.pyc").write_bytes(b"made by running it")
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    (copy / "model.onnx").chmod(0o600)
    assert pack(copy, tmp_path / "new" / "second.tar.gz") == first == artifact_hash(tmp_path / "first.tar.gz")
    assert (tmp_path / "first.tar.gz").read_bytes() == (tmp_path / "new" / "second.tar.gz").read_bytes()
    (copy / "README.md").write_text("# Another model")
    assert pack(copy, tmp_path / "third.tar.gz") != first


def test_a_link_is_not_packed(own, tmp_path):
    (own / "secret").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="secret is a link"):
        pack(own, tmp_path / "model.tar.gz")


def test_what_is_packed_comes_out(good, tmp_path):
    pack(good, tmp_path / "model.tar.gz")
    opened = unpack(tmp_path / "model.tar.gz", tmp_path / "a" / "b")
    assert pack(opened, tmp_path / "again.tar.gz") == artifact_hash(tmp_path / "model.tar.gz")


# Opening


def archive(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, 1 if kind == tarfile.REGTYPE else 0
    return info


@pytest.mark.parametrize(
    "bad",
    [
        member("../outside"),
        member("code/../../outside"),
        member("/tmp/outside"),
        member("..\\outside"),
        member("link", tarfile.SYMTYPE, "../outside"),
        member("link", tarfile.SYMTYPE, "config.json"),
        member("link", tarfile.LNKTYPE, "/etc/passwd"),
        member("pipe", tarfile.FIFOTYPE),
        member("disk", tarfile.BLKTYPE),
        member("tty", tarfile.CHRTYPE),
    ],
    ids=lambda info: f"{info.name} {info.type.decode()}",
)
def test_an_archive_that_reaches_out_writes_nothing(tmp_path, bad):
    path = archive(tmp_path / "model.tar.gz", member("config.json"), bad)
    with pytest.raises(ValueError, match=r"model\.tar\.gz is refused"):
        unpack(path, tmp_path / "folder")
    assert not list((tmp_path / "folder").iterdir()) and not (tmp_path / "outside").exists()


def test_an_archive_that_grows_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "MAX_UNPACKED", 1)
    with pytest.raises(ValueError, match="unpacks to"):
        unpack(archive(tmp_path / "model.tar.gz", member("a"), member("b")), tmp_path / "folder")
    assert not list((tmp_path / "folder").iterdir())


def test_one_wrong_byte_anywhere_is_found(good, tmp_path):
    "Some of them unpack: only the checksum at the end of the archive tells."
    path = tmp_path / "model.tar.gz"
    pack(good, path)
    content = path.read_bytes()
    for place in range(20, len(content), len(content) // 40):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        with pytest.raises(ValueError, match=r"model\.tar\.gz"):
            unpack(path, tmp_path / str(place))


def test_an_archive_as_tar_makes_it_is_read(good, tmp_path):
    "SageMaker packs the folder itself: names start with ./ and folders are members."
    subprocess.run(["tar", "-czf", tmp_path / "model.tar.gz", "-C", good, "."], check=True)
    assert {check.name for check in preflight(tmp_path / "model.tar.gz")} >= {"opens", "loads"}


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut off", "flipped"])
def test_a_damaged_archive_is_refused(good, tmp_path, damage):
    path = tmp_path / "model.tar.gz"
    pack(good, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    cut = path.read_bytes()[: len(content) // 2]
    path.write_bytes({"empty": b"", "text": b"no archive", "cut off": cut, "flipped": content}.get(damage, b""))
    if damage == "missing":
        path.unlink()
    assert set(failed(path)) == {"opens"}


# Preflight


def test_a_good_artifact_passes(good, tmp_path):
    pack(good, tmp_path / "model.tar.gz")
    names = [check.name for check in preflight(tmp_path / "model.tar.gz")]
    asked = ["loads", "stands alone", "probes", "long review", "shares", "calibration"]
    assert names == ["opens", "files", "packages", "labels", *asked, "score"]
    assert [check.name for check in preflight(good)] == names[1:]
    assert not list(good.rglob("*.tar.gz"))


def test_a_tokenizer_that_does_not_load_is_found(own):
    "Its endpoint would be up, paid for, and useless."
    whole = (own / "tokenizer.json").read_text()
    (own / "tokenizer.json").write_text(whole[: len(whole) // 2])
    wrong = failed(own)
    assert set(wrong) == {"loads"} and "tokenizer.json" in wrong["loads"]


REFUSES_LONG = """

whole = _readings

def _readings(model, texts, offsets=False):
    readings = whole(model, texts, offsets)
    if any(len(reading.windows) > 1 for reading in readings):
        raise InputError("too_long", "The text has more than 512 tokens.")
    return readings
"""


def test_a_long_review_that_is_not_answered_is_found(own):
    code = own / "code" / "inference.py"
    code.write_text(code.read_text() + REFUSES_LONG)
    assert "more than 512 tokens" in failed(own)["loads"]


LONG_FAULTS = {
    "cut in silence": ('"truncated": reading.truncated', '"truncated": False', "without saying that it was cut"),
    "not read to its end": ("MAX_WINDOWS = 8", "MAX_WINDOWS = 1", "not read to its end"),
    "counted wrong": ('"weight": round(weight, 6)', '"weight": 1.0', "do not count for one"),
}


@pytest.mark.parametrize("fault", LONG_FAULTS)
def test_a_long_review_that_is_read_wrong_is_found(own, fault):
    right, wrong, says = LONG_FAULTS[fault]
    code = own / "code" / "inference.py"
    assert right in code.read_text()
    code.write_text(code.read_text().replace(right, wrong))
    found = failed(own)
    assert set(found) == {"long review"} and says in found["long review"]


def test_a_calibration_is_looked_at(own):
    (own / "calibration.json").write_text('{"temperature": 1.5, "sure_from": 0.93}')
    (seen,) = [check.saw for check in preflight(own) if check.name == "calibration"]
    assert "sure from 0.93" in seen
    (own / "calibration.json").write_text('{"temperature": 1.5')
    assert "calibration.json" in failed(own)["loads"]


def test_an_answer_that_is_not_as_sure_as_the_calibration_says_is_found(own):
    code = own / "code" / "inference.py"
    bold = code.read_text().replace("None if model.sure_from is None", "True if model.sure_from is None")
    code.write_text(bold)
    assert set(failed(own)) == {"calibration"}
    (own / "calibration.json").write_text('{"temperature": 1, "sure_from": 1.0}')
    code.write_text(re.sub(r">= model.sure_from and 2 .*", "< model.sure_from", bold))
    assert set(failed(own)) == {"calibration"}


@pytest.mark.parametrize("name", ["model.onnx", "config.json", "metrics.json", "code/inference.py"])
def test_a_missing_file_is_named(own, name):
    (own / name).unlink()
    assert name in failed(own)["files"]


def test_labels_the_wrong_way_round_are_found(own):
    (own / "config.json").write_text(json.dumps(CONFIG | {"id2label": {"0": "POSITIVE", "1": "NEGATIVE"}}))
    assert set(failed(own)) == {"labels", "probes"}


def test_a_model_that_learnt_the_opposite_is_found(own):
    write_tiny_model(own, {word: -weight for word, weight in WEIGHTS.items()})
    assert set(failed(own)) == {"probes"}


def test_code_that_needs_this_project_is_found(own):
    code = own / "code" / "inference.py"
    code.write_text("import sentiment_engine\n" + code.read_text())
    assert set(failed(own)) == {"stands alone"}


def test_code_that_hangs_is_given_up(own):
    (own / "code" / "inference.py").write_text("import time\ntime.sleep(60)\n")
    with pytest.raises(ValueError, match="no answer within 1 second"):
        artifact._ask(own, ["love"], timeout=1)


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        (METRICS | {"macro_f1": 0.74}, "below the floor of 0.75"),
        (METRICS | {"macro_f1": 0.9, "majority": {"macro_f1": 0.95}}, "not above the majority"),
        ({"accuracy": 0.99}, "gives no macro_f1"),
        (METRICS | {"macro_f1": None}, "gives no macro_f1"),
        (METRICS | {"macro_f1": float("nan")}, "below the floor"),
        ([], "no JSON object"),
    ],
)
def test_a_score_that_is_not_good_enough_is_found(own, metrics, says):
    (own / "metrics.json").write_text(json.dumps(metrics))
    wrong = failed(own)
    assert set(wrong) == {"score"} and says in wrong["score"]


def test_the_floor_can_be_set(own):
    assert set(failed(own, macro_f1_floor=0.91)) == {"score"}
    (own / "metrics.json").write_text(json.dumps(METRICS | {"macro_f1": 0.6}))
    assert preflight(own, macro_f1_floor=0.5)


def test_every_fault_is_reported_at_once(own):
    (own / "tokenizer.json").write_text("{")
    (own / "metrics.json").write_text("{}")
    (own / "config.json").write_text(json.dumps(CONFIG | {"id2label": {"0": "BAD", "1": "GOOD"}}))
    assert set(failed(own)) == {"labels", "loads", "score"}
