"Packing, opening and preflight: a bad artifact is found before it costs money."

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tracemalloc
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra_scripts.checks import container_test
from sentiment_engine.model import artifact, inference
from sentiment_engine.model.artifact import (
    PreflightError,
    add_inference_code,
    artifact_hash,
    ask_artifact,
    pack,
    preflight,
    unpack,
)
from sentiment_engine.model.behaviour import served
from tests.doubles.tiny_model import CONFIG, METRICS, WEIGHTS, write_tiny_model


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    "An artifact that passes, unpacked."
    folder = write_tiny_model(tmp_path_factory.mktemp("good"))
    add_inference_code(folder)
    return folder


@pytest.fixture
def own(good, tmp_path):
    "A copy of the artifact that a test may break."
    return copytree(good, tmp_path / "own")


def failed(folder: Path, **options) -> dict[str, str]:
    "Return the preflight's findings: name of the check → what it found."
    with pytest.raises(PreflightError) as error:
        preflight(folder, **options)
    wrong = {check.name: check.saw for check in error.value.checks if not check.passed}
    assert all(f"{name}: {saw}" in str(error.value) for name, saw in wrong.items())
    return wrong


# Packing


def test_the_artifact_contains_the_current_code(good):
    assert (good / "code" / "inference.py").read_bytes() == Path(inference.__file__).read_bytes()
    wanted = (good / "code" / "requirements.txt").read_text().split()
    assert [line.split("=")[0].split(">")[0] for line in wanted] == ["onnxruntime", "tokenizers", "numpy"]


def test_adding_the_code_imports_no_model_runtime():
    "A training job packs on a machine that is not a server."
    code = (
        "import sys, sentiment_engine.model.artifact; sys.exit('onnxruntime' in sys.modules or 'numpy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_same_files_give_the_same_bytes(good, tmp_path, monkeypatch):
    first = pack(good, tmp_path / "first.tar.gz")
    copy = copytree(good, tmp_path / "copy")
    (copy / "code" / "__pycache__").mkdir(exist_ok=True)
    (copy / "code" / "__pycache__" / "inference.pyc").write_bytes(b"made by running it")
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    (copy / "model.onnx").chmod(0o600)
    monkeypatch.setattr("time.time", lambda: 86_400.0)  # another day
    assert pack(copy, tmp_path / "new" / "second.tar.gz") == first == artifact_hash(tmp_path / "first.tar.gz")
    assert (tmp_path / "first.tar.gz").read_bytes() == (tmp_path / "new" / "second.tar.gz").read_bytes()
    (copy / "README.md").write_text("# Another model")
    assert pack(copy, tmp_path / "third.tar.gz") != first


def test_a_highly_compressed_archive_is_unpacked(own, tmp_path):
    (own / "zeros").write_bytes(bytes(2**24))
    (own / "model.onnx").unlink()
    pack(own, tmp_path / "model.tar.gz")
    assert (tmp_path / "model.tar.gz").stat().st_size * 100 < 2**24
    assert (unpack(tmp_path / "model.tar.gz", tmp_path / "folder") / "zeros").stat().st_size == 2**24


def test_a_link_is_not_packed(own, tmp_path):
    (own / "secret").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="secret is a link"):
        pack(own, tmp_path / "model.tar.gz")


def test_an_unpacked_artifact_equals_the_packed_one(good, tmp_path):
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


def packed(path: Path, *parts: bytes | int) -> Path:
    "Write a .tar.gz of raw bytes; a number means that many zero bytes."
    zeros = bytes(2**20)
    with gzip.open(path, "wb", compresslevel=1) as file:
        for part in parts:
            for start in range(0, part if isinstance(part, int) else 0, len(zeros)):
                file.write(zeros[: part - start])
            file.write(b"" if isinstance(part, int) else part)
    return path


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, target: str = "") -> bytes:
    "Return a member's header of 512 bytes."
    info = member(name, kind, target)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def summed(block: bytes) -> bytes:
    "Correct the checksum of a header."
    total = sum(block[:148]) + sum(block[156:]) + 8 * ord(" ")
    return block[:148] + b"%06o\0 " % total + block[156:]


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def pax(**records: str) -> bytes:
    "Return an extended header in POSIX format."
    return header("pax", len(body := pax_body(records)), tarfile.XHDTYPE) + padded(body)


def pax_body(records: dict[str, str]) -> bytes:
    lines = b""
    for key, value in records.items():
        rest = f" {key}={value}\n".encode()
        length = next(n for n in range(len(rest), len(rest) + 9) if n == len(rest) + len(str(n)))
        lines += str(length).encode() + rest
    return lines


END, ONE = bytes(1024), padded(b"x")
FILE = header("config.json", 1) + ONE
SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "model.onnx"}
SPARSE |= {"GNU.sparse.realsize": "4096"}
REACHING_OUT = {
    "parent": [header("../outside", 1), ONE],
    "parent further down": [header("code/../../outside", 1), ONE],
    "absolute": [header("/tmp/outside", 1), ONE],
    "backslash": [header("..\\outside", 1), ONE],
    "parent in an extended header": [pax(path="../outside"), header("harmless", 1), ONE],
    "absolute folder": [header("/tmp/outside", kind=tarfile.DIRTYPE)],
    "link out": [header("link", kind=tarfile.SYMTYPE, target="../outside")],
    "link within": [header("link", kind=tarfile.SYMTYPE, target="config.json")],
    "hard link": [header("link", kind=tarfile.LNKTYPE, target="config.json")],
    "hard link out": [header("link", kind=tarfile.LNKTYPE, target="/etc/passwd")],
    "pipe": [header("pipe", kind=tarfile.FIFOTYPE)],
    "disk": [header("disk", kind=tarfile.BLKTYPE)],
    "terminal": [header("tty", kind=tarfile.CHRTYPE)],
    "unknown type": [header("odd", 1, b"Z"), ONE],
    "old file with holes": [header("model.onnx", 1, tarfile.GNUTYPE_SPARSE), ONE],
    "file with holes": [pax(**SPARSE), header("model.onnx", 512), padded(b"0\n")],
    "same file twice": [FILE],
    "folder in the place of a file": [header("config.json", kind=tarfile.DIRTYPE)],
    "file in a file": [header("config.json/more", 1), ONE],
    "file in the place of a folder": [header("code/a", 1), ONE, header("code", 1), ONE],
    "other case": [header("CONFIG.json", 1), ONE],
    "folder in other case": [header("code/a", 1), ONE, header("Code/b", 1), ONE],
    "sharp s": [header("STRASSE", 1), ONE, pax(path="straße"), header("x", 1), ONE],
    "other composition": [
        *(part for name in ("caf\u00e9", "cafe\u0301") for part in (pax(path=name), header("x", 1), ONE))
    ],
    "line break": [header("a\nb", 1), ONE],
    "control character": [pax(path="a\x1b[2J"), header("x", 1), ONE],
    "reversed writing": [pax(path="a\u202egnp.exe"), header("x", 1), ONE],
    "no text": [summed(header("x", 1).replace(b"x", b"\xff", 1)), ONE],
    "folder itself": [header(".", 1), ONE],
    "headers for all": [header("pax", 20, tarfile.XGLTYPE), padded(b"20 path=../outside\n"), header("x", 1), ONE],
}


@pytest.mark.parametrize("kind", REACHING_OUT)
def test_an_archive_with_foreign_members_writes_nothing(tmp_path, kind):
    path = packed(tmp_path / "model.tar.gz", FILE, *REACHING_OUT[kind], END)
    with pytest.raises(ValueError, match=r"model\.tar\.gz (is refused|cannot be unpacked): .") as refused:
        unpack(path, tmp_path / "a" / "folder")
    assert os.listdir(tmp_path) == ["model.tar.gz"] and not Path("/tmp/outside").exists()
    assert len(str(refused.value)) < 400


OLD_MAP = header("m", 0, tarfile.GNUTYPE_SPARSE)[:482] + b"\1" + bytes(29)  # more of the map follows
MANY = 200_000  # lines of a sparse map
GREEDY = {
    "extended header": [header("pax", 2**26, tarfile.XHDTYPE), 2**26],
    "extended header for all": [header("pax", 2**26, tarfile.XGLTYPE), 2**26],
    "long name": [header("name", 2**26, tarfile.GNUTYPE_LONGNAME), 2**26],
    "long target": [header("name", 2**26, tarfile.GNUTYPE_LONGLINK), 2**26],
    "many records": [pax(**{f"comment{i}": "x" for i in range(50_000)}), FILE],
    "many extended headers": [pax(comment="x") * 10_000, FILE],
    "map of holes": [pax(**SPARSE), header("model.onnx", 2 * MANY + 512), padded(b"99999999\n" + b"0\n" * MANY)],
    "old map of holes": [summed(OLD_MAP), (bytes(504) + b"\1" * 8) * 20_000],
    "many members": [header("code", kind=tarfile.DIRTYPE) * 12_000],
    "large member": [header("model.onnx", 2**29), 2**29],
    "much after the end": [END, 2**29],
}


@pytest.mark.parametrize("kind", GREEDY)
def test_an_oversized_archive_is_refused_in_little_memory(tmp_path, kind):
    path = packed(tmp_path / "model.tar.gz", *GREEDY[kind], END)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"model\.tar\.gz (is refused|cannot be unpacked)"):
            unpack(path, tmp_path / "folder")
        assert tracemalloc.get_traced_memory()[1] < 12 * 2**20
    finally:
        tracemalloc.stop()
    assert os.listdir(tmp_path) == ["model.tar.gz"]


def test_an_artifact_with_long_names_and_a_comment_is_unpacked(tmp_path):
    "git and tar write such archives."
    long = "code/wheels/" + "a" * 150 + ".whl"
    old = header("name", len(long) + 1, tarfile.GNUTYPE_LONGNAME) + padded(long.encode() + b"\0") + header("x", 1) + ONE
    comment = header("pax", 16, tarfile.XGLTYPE) + padded(b"16 comment=0123\n")
    new = pax(path="code/überall.txt", mtime="1.5") + header("x", 1) + ONE
    folders = header("./", kind=tarfile.DIRTYPE) + header("./code/", kind=tarfile.DIRTYPE)
    folder = unpack(packed(tmp_path / "model.tar.gz", comment, folders * 2, old, new, FILE, END), tmp_path / "folder")
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files == dict.fromkeys([long, "code/überall.txt", "config.json"], b"x")


def test_memory_is_freed_after_each_member(tmp_path):
    members = [pax(comment="x" * 60_000) + header(f"{i}", 1) + ONE for i in range(400)]
    tracemalloc.start()
    unpack(packed(tmp_path / "model.tar.gz", *members, END), tmp_path / "folder")
    assert tracemalloc.get_traced_memory()[1] < 12 * 2**20
    tracemalloc.stop()
    assert len(os.listdir(tmp_path / "folder")) == 400


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "MAX_UNPACKED", 2000)
    with pytest.raises(ValueError, match="unpacks to more than"):
        unpack(archive(tmp_path / "model.tar.gz", member("a"), member("b")), tmp_path / "folder")
    assert os.listdir(tmp_path) == ["model.tar.gz"]


WITHOUT_ROOM = """
import resource, sys
from pathlib import Path
from sentiment_engine.model.artifact import unpack
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
try:
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
except ValueError as e:
    print(e)
"""


def test_a_full_disk_leaves_no_partial_files(tmp_path, monkeypatch):
    path = packed(tmp_path / "model.tar.gz", FILE, header("model.onnx", 2**20), os.urandom(2**20), END)
    command = [sys.executable, "-c", WITHOUT_ROOM, path, tmp_path / "folder"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "cannot be unpacked" in done.stdout and os.listdir(tmp_path) == ["model.tar.gz"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**16))
    with pytest.raises(ValueError, match="more than the 0 MB of free disk space"):
        unpack(path, tmp_path / "folder")
    assert os.listdir(tmp_path) == ["model.tar.gz"]


def test_a_folder_that_is_not_empty_is_left_unchanged(good, tmp_path):
    pack(good, tmp_path / "model.tar.gz")
    folder = tmp_path / "folder"
    folder.mkdir()
    assert unpack(tmp_path / "model.tar.gz", folder) == folder and (folder / "code/inference.py").is_file()
    for path in folder.rglob("*.*"):
        path.write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        unpack(tmp_path / "model.tar.gz", folder)
    assert {path.read_text() for path in folder.rglob("*.*")} == {"mine"}
    assert sorted(os.listdir(tmp_path)) == ["folder", "model.tar.gz"]


@pytest.mark.parametrize("end", [b"", bytes(512)[:-1], b"rubbish" * 100])
def test_a_truncated_archive_is_refused(tmp_path, end):
    "The gzip is complete, but contains half an archive."
    with pytest.raises(ValueError, match="cut off"):
        unpack(packed(tmp_path / "model.tar.gz", FILE, header("model.onnx", 1), ONE, end), tmp_path / "folder")


@settings(max_examples=150)
@given(st.data())
def test_any_archive_is_unpacked_or_refused(data):
    "Bytes of a good archive change before it is compressed, so that no gzip checksum reveals it."
    content = bytearray(pax(path="code/überall.txt") + header("x", 1) + ONE + FILE + header("name", 9, b"L"))
    content += padded(b"metrics.\0") + header("x", 1) + ONE + END
    for place in data.draw(st.lists(st.integers(0, len(content) - 1025), min_size=1, max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        for start in range(0, len(content) - 1024, 512):  # the headers' own checksums are corrected
            content[start : start + 512] = summed(bytes(content[start : start + 512]))
    with tempfile.TemporaryDirectory() as folder:
        path, target = packed(Path(folder) / "model.tar.gz", bytes(content)), Path(folder) / "folder"
        try:
            unpack(path, target)
        except ValueError as e:
            assert str(e).startswith("model.tar.gz ") and os.listdir(folder) == ["model.tar.gz"]
        else:
            assert all(path.is_relative_to(target) and not path.is_symlink() for path in target.rglob("*"))


def test_a_single_wrong_byte_is_detected(good, tmp_path):
    "Some damaged archives can be unpacked; only the checksum at the end reveals the damage."
    path = tmp_path / "model.tar.gz"
    pack(good, path)
    content = path.read_bytes()
    for place in range(20, len(content), len(content) // 40):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        with pytest.raises(ValueError, match=r"model\.tar\.gz"):
            unpack(path, tmp_path / str(place))


def test_an_archive_made_by_tar_is_unpacked(good, tmp_path):
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
    "Its endpoint would cost money and be useless."
    whole = (own / "tokenizer.json").read_text()
    (own / "tokenizer.json").write_text(whole[: len(whole) // 2])
    wrong = failed(own)
    assert set(wrong) == {"loads"} and "tokenizer.json" in wrong["loads"]


REFUSES_LONG = """

whole = _readings

def _readings(model, texts, **how):
    readings = whole(model, texts, **how)
    if any(len(reading.windows) > 1 for reading in readings):
        raise InputError("too_long", "The text has more than 512 tokens.")
    return readings
"""


def test_a_failure_on_a_long_review_is_found(own):
    code = own / "code" / "inference.py"
    code.write_text(code.read_text() + REFUSES_LONG)
    assert "more than 512 tokens" in failed(own)["loads"]


CODE_FAULTS = {  # fault: the check that finds it, the right code, the wrong code, and the check's message
    "cut in silence": (
        "long review",
        '"truncated": reading.truncated',
        '"truncated": False',
        "does not mention that the text was cut",
    ),
    "not read to its end": ("long review", "MAX_WINDOWS = 8", "MAX_WINDOWS = 1", "not read to its end"),
    "counted wrong": ("long review", '"weight": round(weight, 6)', '"weight": 1.0', "do not add up to 1"),
    "percent": ("shares", "round(float(share), 6)", "round(100 * float(share), 6)", "scores add up to 100.000"),
    "other label's": (
        "shares",
        '"score": scores[label]',
        '"score": min(scores.values())',
        "the score is not the label's",
    ),
    "one label": (
        "shares",
        '"scores": scores, "sure"',
        '"scores": {label: scores[label]}, "sure"',
        "the scores are for",
    ),
}


@pytest.mark.parametrize("fault", CODE_FAULTS)
def test_a_fault_in_the_code_is_found(own, fault):
    check, right, wrong, says = CODE_FAULTS[fault]
    code = own / "code" / "inference.py"
    assert code.read_text().count(right) == 1
    code.write_text(code.read_text().replace(right, wrong))
    found = failed(own)
    assert set(found) == {check} and says in found[check]


def test_the_calibration_is_checked(own):
    (own / "calibration.json").write_text('{"temperature": 1.5, "sure_from": 0.93}')
    (seen,) = [check.saw for check in preflight(own) if check.name == "calibration"]
    assert "sure from 0.93" in seen
    (own / "calibration.json").write_text('{"temperature": 1.5')
    assert "calibration.json" in failed(own)["loads"]


def test_an_answer_that_contradicts_the_calibration_is_found(own):
    code = own / "code" / "inference.py"
    bold = code.read_text().replace("None if model.sure_from is None", "True if model.sure_from is None")
    code.write_text(bold)
    assert set(failed(own)) == {"calibration"}
    (own / "calibration.json").write_text('{"temperature": 1, "sure_from": 1.0}')
    code.write_text(re.sub(r">= model.sure_from and 2 .*", "< model.sure_from", bold))
    assert set(failed(own)) == {"calibration"}


@pytest.mark.parametrize("name", ["model.onnx", "config.json", "metrics.json", "code/inference.py"])
def test_a_missing_file_is_reported(own, name):
    (own / name).unlink()
    assert name in failed(own)["files"]


def test_swapped_labels_are_found(own):
    (own / "config.json").write_text(json.dumps(CONFIG | {"id2label": {"0": "POSITIVE", "1": "NEGATIVE"}}))
    assert set(failed(own)) == {"labels", "probes"}


def test_a_model_that_gives_opposite_answers_is_found(own):
    write_tiny_model(own, {word: -weight for word, weight in WEIGHTS.items()})
    assert set(failed(own)) == {"probes"}


def test_code_that_imports_this_project_is_found(own):
    code = own / "code" / "inference.py"
    code.write_text("import sentiment_engine\n" + code.read_text())
    assert set(failed(own)) == {"stands alone"}


def test_code_that_hangs_is_stopped(own):
    (own / "code" / "inference.py").write_text("import time\ntime.sleep(60)\n")
    with pytest.raises(ValueError, match="no answer within 1 second"):
        ask_artifact(own, ["love"], timeout=1)


NOSY = """
import os, pathlib
pathlib.Path(__file__).with_name("seen").write_text(json.dumps(dict(os.environ)))
"""
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL")
SECRETS += ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "SENTIMENT_PREFIX", "SENTIMENT_TEXTBELT_URL", "GITHUB_TOKEN")
SECRETS += (
    "HF_TOKEN",
    "PIP_INDEX_URL",
    "SM_MODEL_DIR",
    "NO_PROXY",
    "HTTPS_PROXY",
    "SSH_AUTH_SOCK",
    "PYTHONPATH",
    "NEW",
)


def asked_by_the_suite(folder: Path):
    served(folder)(["I love it", "It broke"])


def served_beside_the_container(folder: Path):
    with container_test.local_server(folder.parent) as address:
        status, answer = container_test.ask(address, "application/json", None, b'{"inputs": "I love it"}')
        assert status == 200 and json.loads(answer)[0]["label"] == "POSITIVE"


@pytest.mark.parametrize("ask", [preflight, asked_by_the_suite, served_beside_the_container])
def test_the_code_of_an_artifact_cannot_read_keys_tokens_or_settings(good, tmp_path, monkeypatch, ask):
    folder = copytree(good, tmp_path / "model")
    code = folder / "code" / "inference.py"
    code.write_text(code.read_text() + NOSY)
    for name in SECRETS:
        monkeypatch.setenv(name, f"a secret in {name}")
    ask(folder)
    seen = json.loads((folder / "code" / "seen").read_text())
    assert {"PATH"} <= set(seen) <= {*artifact.SEEN, "PYTHONPATH", "OPENBLAS_NUM_THREADS", "LC_CTYPE"}
    assert "a secret" not in str(seen)


def test_many_texts_are_answered_in_order(good, own):
    texts = ["I love it", "It broke", "terrible", "excellent"] * 120
    assert served(good)(texts).round().tolist() == [1, 0, 0, 1] * 120
    (own / "model.onnx").unlink()
    with pytest.raises(ValueError, match=r"inference\.py ended with 1"):
        served(own)


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        (METRICS | {"macro_f1": 0.74}, "below the floor of 0.75"),
        (METRICS | {"macro_f1": 0.9, "majority": {"macro_f1": 0.95}}, "not above the majority"),
        ({"accuracy": 0.99}, "has no macro_f1"),
        (METRICS | {"macro_f1": None}, "has no macro_f1"),
        (METRICS | {"macro_f1": float("nan")}, "below the floor"),
        (METRICS | {"macro_f1": 0.9, "served": {"macro_f1": 0.74}}, "macro-F1 0.740 is below the floor"),
        (METRICS | {"macro_f1": 0.9, "served": {}}, "has no macro_f1"),
        (METRICS | {"macro_f1": 0.9, "served": None}, "has no macro_f1"),
        ([], "no JSON object"),
    ],
)
def test_a_score_below_the_minimum_is_found(own, metrics, says):
    (own / "metrics.json").write_text(json.dumps(metrics))
    wrong = failed(own)
    assert set(wrong) == {"score"} and says in wrong["score"]


def test_the_minimum_score_can_be_set(own):
    assert set(failed(own, macro_f1_floor=0.91)) == {"score"}
    (own / "metrics.json").write_text(json.dumps(METRICS | {"macro_f1": 0.6}))
    assert preflight(own, macro_f1_floor=0.5) and preflight(own, macro_f1_floor=0.6)


def test_a_model_must_beat_the_majority_baseline(own):
    (own / "metrics.json").write_text(json.dumps(METRICS | {"macro_f1": 0.9, "majority": {"macro_f1": 0.9}}))
    assert set(failed(own)) == {"score"}


def test_every_fault_is_reported_at_once(own):
    (own / "tokenizer.json").write_text("{")
    (own / "metrics.json").write_text("{}")
    (own / "config.json").write_text(json.dumps(CONFIG | {"id2label": {"0": "BAD", "1": "GOOD"}}))
    assert set(failed(own)) == {"labels", "loads", "score"}
