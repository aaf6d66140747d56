"The captures of endpoints in S3, and how the package reads them, through a local cloud."

import json
import random
import re
import time
from datetime import UTC, datetime, timedelta

import pytest
from botocore.exceptions import ClientError

from sentiment_engine.model.monitoring import Captured, advice, drift, line_answers, mixes, read_captures
from sentiment_engine.model.serving import open_model
from sentiment_engine.service.lifecycle import capture_config
from sentiment_engine.settings import PROBE, Settings, environment_of, settings_from
from tests.doubles.local_models import bucket, register, settled, until

NEVER = "a secret about my neighbour"
BUCKET = "test-captures"
ADDRESS = f"s3://{BUCKET}/captures"
HANDLERS = """
import json
def model_fn(folder): return None
def input_fn(body, content_type):
    inputs = json.loads(body)["inputs"]
    if not inputs: raise ValueError("inputs is empty")
    return inputs if isinstance(inputs, list) else [inputs]
def predict_fn(texts, model):
    return [{"label": "POSITIVE" if "good" in t else "NEGATIVE", "score": 0.9, "new": {"field": 1}} for t in texts]
def output_fn(answers, accept): return json.dumps(answers)
"""


def host(cloud, name: str, settings: Settings, address: str = ADDRESS) -> str:
    "Start an endpoint that captures its answers according to the settings."
    bucket(cloud, BUCKET)
    register(cloud, name, HANDLERS)
    sagemaker = cloud.client("sagemaker")
    variant = sagemaker.describe_endpoint_config(EndpointConfigName=name)["ProductionVariants"]
    config, kept = f"{name}-kept", capture_config(settings, address)
    given = {"DataCaptureConfig": kept} if kept else {}
    sagemaker.create_endpoint_config(EndpointConfigName=config, ProductionVariants=variant, **given)
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=config)
    assert settled(cloud, name)["EndpointStatus"] == "InService"
    return name


def ask(cloud, name: str, inputs, **more):
    body = json.dumps({"inputs": inputs})
    given = {"EndpointName": name, "ContentType": "application/json", "Body": body, **more}
    return json.loads(cloud.client("sagemaker-runtime").invoke_endpoint(**given)["Body"].read())


def objects(cloud, name: str) -> dict[str, list[dict]]:
    "Return an endpoint's captured lines, by key."
    s3 = cloud.client("s3")
    found = s3.list_objects_v2(Bucket=BUCKET, Prefix=f"captures/{name}/").get("Contents", [])
    bodies = {item["Key"]: s3.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read() for item in found}
    return {key: [json.loads(line) for line in body.splitlines()] for key, body in bodies.items()}


def lines(cloud, name: str) -> list[dict]:
    return [line for kept in objects(cloud, name).values() for line in kept]


@pytest.fixture(scope="module")
def all_of_it() -> Settings:
    return Settings(capture_percent=100)


def test_answers_are_captured_in_the_sagemaker_layout_without_the_text(cloud, all_of_it):
    name = host(cloud, "kept", all_of_it)
    answers = [ask(cloud, name, [NEVER, "good"]), ask(cloud, name, "good")]
    until(lambda: len(lines(cloud, name)) == 2)
    for key, kept in objects(cloud, name).items():
        layout = r"captures/kept/AllTraffic/\d{4}/\d\d/\d\d/\d\d/\d\d-\d\d-\d{3}-[0-9a-f-]{36}\.jsonl"
        assert re.fullmatch(layout, key)
        for line in kept:
            at = datetime.fromisoformat(line["eventMetadata"]["inferenceTime"])
            assert at.strftime("%Y/%m/%d/%H") == key[25:38] and at.tzinfo == UTC
            assert line["eventVersion"] == "0" and set(line["eventMetadata"]) == {"eventId", "inferenceTime"}
            assert list(line["captureData"]) == ["endpointOutput"] and NEVER not in json.dumps(line)
            side = line["captureData"]["endpointOutput"]
            assert (side["mode"], side["encoding"]) == ("OUTPUT", "JSON")
            assert side["observedContentType"] == "application/json"
    said = [json.loads(line["captureData"]["endpointOutput"]["data"]) for line in lines(cloud, name)]
    assert sorted(map(len, said)) == [1, 2] and all(answer in answers for answer in said)
    summary = cloud.client("sagemaker").describe_endpoint(EndpointName=name)["DataCaptureConfig"]
    assert summary["CurrentSamplingPercentage"] == 100 and summary["DestinationS3Uri"] == ADDRESS


def test_texts_are_captured_only_if_enabled(cloud):
    name = host(cloud, "texts", Settings(capture_percent=100, capture_text=True))
    ask(cloud, name, NEVER)
    (line,) = until(lambda: lines(cloud, name))
    asked = line["captureData"]["endpointInput"]
    assert asked["mode"] == "INPUT" and json.loads(asked["data"]) == {"inputs": NEVER}


def test_buffered_captures_are_written_when_the_endpoint_is_deleted(cloud, all_of_it):
    name = host(cloud, "deleted", all_of_it)
    ask(cloud, name, "good")
    cloud.client("sagemaker").delete_endpoint(EndpointName=name)
    assert len(until(lambda: lines(cloud, name))) == 1


def test_refusals_are_not_captured_and_captures_can_be_disabled(cloud, all_of_it):
    kept, plain = host(cloud, "refusing", all_of_it), host(cloud, "plain", Settings(capture_percent=0))
    with pytest.raises(ClientError):
        ask(cloud, kept, "")
    ask(cloud, plain, "good")
    ask(cloud, kept, "good")
    assert len(until(lambda: lines(cloud, kept))) == 1 and not lines(cloud, plain)
    assert "DataCaptureConfig" not in cloud.client("sagemaker").describe_endpoint(EndpointName=plain)


def test_a_sampled_capture_keeps_only_part_of_the_answers(cloud):
    name = host(cloud, "sampled", Settings(capture_percent=30))
    for _ in range(150):
        ask(cloud, name, "good")
    until(lambda: len(lines(cloud, name)) >= 15)
    time.sleep(3)  # longer than pending lines wait
    assert len(lines(cloud, name)) <= 85


def test_a_missing_bucket_does_not_affect_predictions(cloud, all_of_it):
    name = host(cloud, "nowhere", all_of_it, "s3://there-is-no-such-bucket/captures")
    for _ in range(2):
        assert ask(cloud, name, "good")[0]["label"] == "POSITIVE"
        time.sleep(2.5)
    assert cloud.client("sagemaker").describe_endpoint(EndpointName=name)["EndpointStatus"] == "InService"


def test_monitoring_reads_the_captures_of_an_endpoint(cloud, all_of_it):
    name, begun = host(cloud, "watched", all_of_it), datetime.now(UTC)
    for _ in range(20):
        ask(cloud, name, ["good"] * 12 + ["bad"] * 8)
    ask(cloud, name, "good", InferenceId=PROBE)
    for _ in range(20):
        ask(cloud, name, "good")
    until(lambda: len(lines(cloud, name)) == 41)
    s3, address = cloud.client("s3"), f"{ADDRESS}/{name}"
    s3.put_object(Bucket=BUCKET, Key=f"captures/{name}/AllTraffic/2999/01/01/00/00-00-000-x.jsonl", Body=b'{"cut\n')
    s3.put_object(Bucket=BUCKET, Key=f"captures/{name}/note.txt", Body=b"no capture")
    captured = read_captures(s3, address, begun)
    assert (len(captured.answers), captured.requests, captured.broken) == (420, 40, 1)
    same = [{"label": "POSITIVE", "score": 0.9}] * 130 + [{"label": "NEGATIVE", "score": 0.9}] * 80
    assert advice(mixes(same), captured).startswith("No reason to train again")
    other = [{"label": "NEGATIVE", "score": 0.9}] * 180 + [{"label": "POSITIVE", "score": 0.9}] * 30
    assert advice(mixes(other), captured).startswith("Train again") and "label" in advice(mixes(other), captured)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    assert len(read_captures(s3, address, tomorrow).answers) == 0
    assert advice(mixes(same), read_captures(s3, address, tomorrow)).startswith("Not enough data to judge: 0 answers")


@pytest.mark.parametrize("said", [None, "0.9", True, 1.5, -0.1, float("nan")])
def test_a_line_with_an_invalid_score_is_rejected(said):
    told = json.dumps([{"label": "POSITIVE", "score": said}])
    line = json.dumps({"captureData": {"endpointOutput": {"data": told, "encoding": "JSON"}}})
    with pytest.raises(ValueError, match="no answers"):
        line_answers(line)
    with pytest.raises(ValueError, match="not a line"):
        line_answers("[" * 100_000)


def test_lists_of_labels_count_as_their_first_label():
    best, other = {"label": "NEGATIVE", "score": 0.9}, {"label": "POSITIVE", "score": 0.1}
    told = json.dumps([[best, other], [best], best])
    line = json.dumps({"captureData": {"endpointOutput": {"data": told, "encoding": "JSON"}}})
    assert line_answers(line) == [best] * 3


@pytest.mark.parametrize(("tested", "alarms"), [(2000, 10), (400, 40)])
def test_random_variation_is_not_reported_as_drift(tested, alarms):
    "A thousand simulated months with the minimum number of answers cause almost no alarm."
    random.seed(1)
    kinds = [{"label": label, "score": s} for label in ("NEGATIVE", "POSITIVE") for s in (0.55, 0.7, 0.85, 0.93, 0.98)]
    draws = [Captured(random.choices(kinds, k=300), 300) for _ in range(1000)]
    reference = random.choices(kinds, k=tested)
    said = [advice(mixes(reference), captured) for captured in draws]
    assert sum(not text.startswith("No reason") for text in said) <= alarms
    assert not any(text.startswith("Train") for text in said)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"sure": False}, "sure"),
        ({"tokens": 400}, "tokens"),
        ({"windows": 3}, "windows"),
        ({"truncated": True}, "read"),
    ],
)
def test_drift_is_detected_in_each_property_of_an_answer(changed, name):
    before = {"label": "POSITIVE", "score": 0.97, "sure": True, "tokens": 20, "windows": 1, "truncated": False}
    reference = [before] * 500
    moved = drift(mixes(reference), mixes([before | changed] * 400))
    assert next(iter(moved)) == name and moved[name] > 0.25 and all(v < 0.1 for k, v in moved.items() if k != name)
    assert f"{name} " in advice(mixes(reference), Captured([before | changed] * 400, 400))


def test_the_reference_contains_the_answers_of_the_artifact(tmp_path):
    from sentiment_engine.model.artifact import add_inference_code
    from tests.doubles.tiny_model import write_tiny_model

    model = write_tiny_model(tmp_path / "model")
    add_inference_code(model)
    answers = open_model(model)(["love it", "terrible"] * 60)
    assert len(answers) == 120 and [a["label"] for a in answers[:2]] == ["POSITIVE", "NEGATIVE"]
    assert mixes(answers)["label"] == {"POSITIVE": 60, "NEGATIVE": 60}


def test_capture_settings_pass_through_the_environment_and_are_validated():
    ours = Settings(capture_percent=5, capture_text=True)
    assert settings_from(environment_of(ours)) == ours
    assert settings_from({"SENTIMENT_CAPTURE_TEXT": "false"}) == Settings()
    with pytest.raises(ValueError, match="SENTIMENT_CAPTURE_TEXT"):
        settings_from({"SENTIMENT_CAPTURE_TEXT": "perhaps"})
    with pytest.raises(ValueError, match="capture_percent"):
        Settings(capture_percent=101)
