"Registering, trying, publishing and deleting a model, against the local cloud: its endpoints are real processes."

import json
import re
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from sentiment_engine.deploy import endpoint as ep
from sentiment_engine.model.artifact import add_inference_code, artifact_hash, pack
from sentiment_engine.s3 import s3_place
from sentiment_engine.sagemaker import (
    EndpointFailed,
    create_endpoint,
    our_names,
    remove_endpoint,
    wait_until_in_service,
)
from sentiment_engine.settings import Settings, endpoint_name, new_run_id, trial_name
from tests.doubles.tiny_model import write_tiny_model

SETTINGS = Settings(prefix="endpoint-tests")
BUCKET = "endpoint-tests-artifacts"
ROLE = "arn:aws:iam::111122223333:role/endpoint"
MACHINE = {"InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
IMAGE = "registry/huggingface-pytorch-inference:cpu"


@pytest.fixture(scope="module")
def aws(cloud):
    "boto3 clients of the local cloud by attribute: aws.s3, aws.sagemaker …"
    names = {"s3": "s3", "ssm": "ssm", "sagemaker": "sagemaker", "runtime": "sagemaker-runtime"}
    clients = SimpleNamespace(**{name: cloud.client(service) for name, service in names.items()})
    clients.s3.create_bucket(Bucket=BUCKET)
    return clients


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = write_tiny_model(tmp_path_factory.mktemp("artifact") / "model")
    add_inference_code(folder)
    return folder


def register(aws, folder: Path, job: str) -> str:  # name of the model
    "Pack, upload and register an artifact."
    archive = folder.parent / f"{job}.tar.gz"
    version = ep.model_version(pack(folder, archive))
    key = f"models/{job}/output/model.tar.gz"
    aws.s3.upload_file(str(archive), BUCKET, key)
    definition = ep.model_definition(ep.model_name(SETTINGS, version), f"s3://{BUCKET}/{key}", IMAGE, ROLE)
    ep.register_model(aws.sagemaker, SETTINGS, definition)
    return definition["ModelName"]


@pytest.fixture(scope="module")
def model(aws, model_dir):
    return register(aws, model_dir, "good")


@pytest.fixture(scope="module")
def running(aws, model):
    "A trial endpoint that is in service."
    name = trial_name(SETTINGS, new_run_id())
    create_endpoint(aws.sagemaker, name, model, MACHINE, tagged(SETTINGS))
    wait_until_in_service(aws.sagemaker, name, timeout=60)
    yield name
    remove_endpoint(aws.sagemaker, name, timeout=60)


def left(aws, name: str) -> list[str]:
    "List which of endpoint and endpoint config still exist."
    found = []
    for kind, describe in (("endpoint", "describe_endpoint"), ("config", "describe_endpoint_config")):
        key = "EndpointName" if kind == "endpoint" else "EndpointConfigName"
        try:
            getattr(aws.sagemaker, describe)(**{key: name})
            found.append(kind)
        except ClientError as e:
            assert "Could not find" in str(e)
    return found


# The newest model


def test_without_training_there_is_no_newest_model(aws):
    for bucket in (BUCKET, "endpoint-tests-no-such-bucket"):
        with pytest.raises(LookupError, match="run the notebook 03_model_training first"):
            ep.newest_model(aws.s3, bucket)


def test_the_pointer_names_the_newest_model(aws):
    pointer = {"job": "job-2", "artifact": "s3://b/k", "metrics": {"accuracy": 0.9, "macro_f1": 0.8}, "other": 1}
    aws.s3.put_object(Bucket=BUCKET, Key=ep.LATEST, Body=json.dumps(pointer).encode())
    assert ep.newest_model(aws.s3, BUCKET) == ep.TrainedModel("job-2", "s3://b/k", pointer["metrics"])
    aws.s3.delete_object(Bucket=BUCKET, Key=ep.LATEST)


@pytest.mark.parametrize("address", ["", "model.tar.gz", "s3://", "s3://bucket", "s3://bucket/", "https://b/k"])
def test_an_invalid_s3_address_is_refused(address):
    with pytest.raises(ValueError, match="is not an s3://"):
        s3_place(address)


# Registering


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1", "ap-southeast-2"])
def test_the_image_is_the_cpu_image_of_the_region(region):
    image = ep.serving_image(region)
    assert f".dkr.ecr.{region}.amazonaws.com/huggingface-pytorch-inference:" in image and "-cpu-" in image
    assert "-gpu-" in ep.serving_image(region, "ml.g4dn.xlarge")


def test_registering_a_model_twice_creates_it_once(aws, model):
    definition = aws.sagemaker.describe_model(ModelName=model)
    again = ep.model_definition(model, definition["PrimaryContainer"]["ModelDataUrl"], IMAGE, ROLE)
    assert ep.register_model(aws.sagemaker, SETTINGS, again) is False


def test_a_model_whose_artifact_moved_is_registered_again(aws):
    name = ep.model_name(SETTINGS, "moved")
    for place in ("s3://b/old", "s3://b/new"):
        assert ep.register_model(aws.sagemaker, SETTINGS, ep.model_definition(name, place, IMAGE, ROLE)) is True
    described = aws.sagemaker.describe_model(ModelName=name)
    assert described["PrimaryContainer"]["ModelDataUrl"] == "s3://b/new"
    tags = aws.sagemaker.list_tags(ResourceArn=described["ModelArn"])["Tags"]
    assert {"Key": "Project", "Value": SETTINGS.prefix} in tags
    aws.sagemaker.delete_model(ModelName=name)


def test_identical_artifacts_have_the_same_version(model_dir, tmp_path):
    pack(model_dir, tmp_path / "a.tar.gz")
    pack(model_dir, tmp_path / "b.tar.gz")
    assert len({ep.model_version(artifact_hash(tmp_path / name)) for name in ("a.tar.gz", "b.tar.gz")}) == 1


# Requests


def test_reviews_are_answered_in_order(aws, running):
    answers = ep.predict(aws.runtime, running, ["I love it", "terrible", "love " * 5000])
    assert [a.label for a in answers] == ["POSITIVE", "NEGATIVE", "POSITIVE"]
    assert [a.truncated for a in answers] == [False, False, True]
    assert all(a.score == a.scores[a.label] and sum(a.scores.values()) == pytest.approx(1) for a in answers)


def test_a_single_review_is_sent_as_a_list(aws, running):
    assert len(ep.predict(aws.runtime, running, "I love it")) == 1


def test_a_thousand_reviews_are_answered(aws, running):
    answers = ep.predict(aws.runtime, running, ["good", "terrible"] * 500)
    assert [a.label for a in answers] == ["POSITIVE", "NEGATIVE"] * 500


@pytest.mark.parametrize(
    ("reviews", "says"),
    [
        (["fine", " "], r"^inputs\[1\] is blank"),
        ([], "at least one text"),
        (["x"] * 1001, "at most 1000"),
        ("", r"^inputs\[0\] is blank"),
    ],
)
def test_a_refusal_includes_the_reason_of_the_model(aws, running, reviews, says):
    with pytest.raises(ep.PredictionFailed, match=says):
        ep.predict(aws.runtime, running, reviews)


def test_a_missing_endpoint_is_reported(aws):
    with pytest.raises(ep.PredictionFailed, match="not found"):
        ep.predict(aws.runtime, "endpoint-tests-nothing", "fine")


# Starting


def test_waiting_reports_each_status():
    looks = iter(["Creating", "Updating", "InService"])
    client = SimpleNamespace(describe_endpoint=lambda EndpointName: {"EndpointStatus": next(looks)})
    seen = []
    assert wait_until_in_service(client, "x", report=seen.append)["EndpointStatus"] == "InService"
    assert seen == ["Creating", "Updating", "InService"]


def test_waiting_times_out():
    client = SimpleNamespace(describe_endpoint=lambda EndpointName: {"EndpointStatus": "Creating"})
    with pytest.raises(TimeoutError, match="still Creating"):
        wait_until_in_service(client, "x", timeout=0)


def test_a_failed_endpoint_reports_its_reason_and_can_be_deleted(aws, model_dir, tmp_path):
    broken = copytree(model_dir, tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{")
    name = trial_name(SETTINGS, new_run_id())
    create_endpoint(aws.sagemaker, name, register(aws, broken, "broken"), MACHINE, [])
    with pytest.raises(EndpointFailed, match="is Failed: "):
        wait_until_in_service(aws.sagemaker, name, timeout=60)
    assert remove_endpoint(aws.sagemaker, name, timeout=60) and not left(aws, name)


# Trials


class Refusing:
    "SageMaker that refuses or fails endpoints on some machines."

    def __init__(self, real, refused=(), failed=(), model: str = "", error: Exception | None = None):
        self.real, self.refused, self.failed, self.model, self.asked = real, refused, failed, model, []
        self.error = error  # of CreateEndpoint

    def __getattr__(self, name: str):
        return getattr(self.real, name)

    def create_endpoint_config(self, ProductionVariants, **more):
        (variant,) = ProductionVariants
        kind = variant.get("InstanceType", "serverless")
        self.asked.append(kind)
        if kind in self.refused:
            said = f"Value '{kind}' at 'productionVariants.1.member.instanceType' failed to satisfy constraint"
            raise ClientError({"Error": {"Code": "ValidationException", "Message": said}}, "CreateEndpointConfig")
        broken = {"ModelName": self.model} if kind in self.failed else {}
        return self.real.create_endpoint_config(ProductionVariants=[variant | broken], **more)

    def create_endpoint(self, **given):
        if self.error:
            raise self.error
        return self.real.create_endpoint(**given)


@pytest.fixture(scope="module")
def broken(aws, model_dir, tmp_path_factory) -> str:
    "The name of a model that does not start."
    folder = copytree(model_dir, tmp_path_factory.mktemp("broken") / "model")
    (folder / "tokenizer.json").write_text("{")
    return register(aws, folder, "broken-trial")


def trials(aws, settings: Settings) -> set[str]:
    kinds = ("endpoint", "endpoint_config")
    return {name for kind in kinds for name in our_names(aws.sagemaker, settings, kind, trial_name(settings, ""))}


def test_a_trial_uses_the_instance_type_of_visitors(aws, model):
    for kind, settings in {
        "ml.t2.medium": Settings(prefix="endpoint-tests-trying"),
        "ml.c5.large": Settings(prefix="endpoint-tests-trying", instance_types=("ml.c5.large", "ml.m5.large")),
        "serverless": Settings(prefix="endpoint-tests-trying", endpoint="serverless"),
    }.items():
        sagemaker, told = Refusing(aws.sagemaker), []
        name = ep.start_trial(sagemaker, settings, model, told.append, timeout=60)
        assert sagemaker.asked == [kind] and len(told) == 1 and told[0].startswith("in service on ")
        assert ep.predict(aws.runtime, name, "I love it")[0].label == "POSITIVE"
        assert trials(aws, settings) == {name} and ep.delete_trials(aws.sagemaker, settings) == 1


@pytest.mark.parametrize("trouble", ["refused", "failed"])
def test_a_failed_trial_is_deleted_and_retried_once_on_the_next_machine(aws, model, broken, trouble):
    settings = Settings(prefix="endpoint-tests-next", instance_types=("ml.t2.medium", "ml.m5.large", "ml.c5.large"))
    sagemaker, told = Refusing(aws.sagemaker, **{trouble: ["ml.t2.medium"]}, model=broken), []
    name = ep.start_trial(sagemaker, settings, model, told.append, timeout=60)
    assert sagemaker.asked == ["ml.t2.medium", "ml.m5.large"] and trials(aws, settings) == {name}
    assert told[0].startswith("on ml.t2.medium the model did not start: ")
    assert told[1].startswith("in service on ml.m5.large") and told[2].endswith(
        "--instance-types ml.m5.large,ml.t2.medium"
    )
    ep.delete_trials(aws.sagemaker, settings)


def test_a_model_that_fails_on_every_machine_reports_why_and_leaves_nothing(aws, model, broken):
    settings = Settings(prefix="endpoint-tests-nowhere")
    sagemaker = Refusing(aws.sagemaker, refused=["ml.t2.medium"], failed=["ml.m5.large"], model=broken)
    with pytest.raises(EndpointFailed, match=r"on ml\.t2\.medium .*constraint; on ml\.m5\.large .*is Failed"):
        ep.start_trial(sagemaker, settings, model, lambda line: None, timeout=60)
    assert sagemaker.asked == ["ml.t2.medium", "ml.m5.large"] and not trials(aws, settings)


NO_QUOTA = ClientError({"Error": {"Code": "ResourceLimitExceeded", "Message": "no quota"}}, "CreateEndpoint")


@pytest.mark.parametrize("error", [NO_QUOTA, ReadTimeoutError(endpoint_url="https://sagemaker")], ids=type)
def test_a_refused_endpoint_leaves_no_config(aws, model, error):
    settings = Settings(prefix="endpoint-tests-refuse")
    with pytest.raises(EndpointFailed, match=re.escape(f"on ml.m5.large the model did not start: {error}")):
        ep.start_trial(Refusing(aws.sagemaker, error=error), settings, model, lambda line: None, timeout=60)
    assert not trials(aws, settings)


# Deleting


def test_a_deletion_can_be_repeated(aws, model):
    name = trial_name(SETTINGS, new_run_id())
    create_endpoint(aws.sagemaker, name, model, MACHINE, [])
    assert remove_endpoint(aws.sagemaker, name, timeout=60) is True  # even while it is being created
    assert not left(aws, name)
    assert remove_endpoint(aws.sagemaker, name) is False


def test_a_deletion_waits_until_the_endpoint_is_created():
    looks, calls = iter(["Creating", "Creating", "InService", "Deleting", None]), []

    def describe(EndpointName):
        status = next(looks)
        if status is None:
            raise ClientError({"Error": {"Code": "ValidationException", "Message": 'Could not find endpoint "x".'}}, "")
        return {"EndpointStatus": status}

    client = SimpleNamespace(
        describe_endpoint=describe,
        delete_endpoint=lambda EndpointName: calls.append("endpoint"),
        delete_endpoint_config=lambda EndpointConfigName: calls.append("config"),
    )
    assert remove_endpoint(client, "x") and calls == ["endpoint", "config"]


def test_other_aws_errors_are_raised():
    def refuse(EndpointName):
        raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "not authorized"}}, "DescribeEndpoint")

    with pytest.raises(ClientError, match="not authorized"):
        remove_endpoint(SimpleNamespace(describe_endpoint=refuse), "x")


def tagged(settings: Settings) -> list[dict[str, str]]:
    return [{"Key": "Project", "Value": settings.prefix}]


def test_deleting_trials_deletes_only_trials(aws, model):
    settings = Settings(prefix="endpoint-tests-trials")
    neighbour = Settings(prefix=f"{settings.prefix}-trial")  # its visitors' endpoints have names like our trials'
    kept = {endpoint_name(settings, new_run_id()): settings, f"x-{trial_name(settings, new_run_id())}": settings}
    kept[endpoint_name(neighbour, new_run_id())] = neighbour
    variant = {"VariantName": "A", "ModelName": model, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    trials = [trial_name(settings, new_run_id()) for _ in range(2)]
    for name, owner in (kept | dict.fromkeys(trials, settings)).items():
        config = {"EndpointConfigName": name, "ProductionVariants": [variant], "Tags": tagged(owner)}
        aws.sagemaker.create_endpoint_config(**config)
    aws.sagemaker.create_endpoint(EndpointName=trials[0], EndpointConfigName=trials[0], Tags=tagged(settings))
    assert ep.delete_trials(aws.sagemaker, Settings(prefix="endpoint")) == 0  # a prefix of other names
    assert ep.delete_trials(aws.sagemaker, settings) == 2
    assert not left(aws, trials[0]) and not left(aws, trials[1])
    for name in kept:
        assert left(aws, name) == ["config"]
        aws.sagemaker.delete_endpoint_config(EndpointConfigName=name)


def test_old_models_are_deleted_and_needed_ones_kept(aws):
    settings = Settings(prefix="endpoint-tests-old")
    names = [ep.model_name(settings, f"{i:012x}") for i in range(30)]  # more than one page of ListModels
    neighbour = Settings(prefix=f"{settings.prefix}-model")
    strangers = [f"x-{names[0]}", "endpoint-tests-older-model-1", ep.model_name(neighbour, "0" * 12)]
    for name in (*names, *strangers):
        tags = tagged(neighbour if name == strangers[-1] else settings)
        aws.sagemaker.create_model(**ep.model_definition(name, "s3://b/k", IMAGE, ROLE), Tags=tags)
    variant = {"VariantName": "A", "ModelName": names[3], "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    config = endpoint_name(settings, new_run_id())
    aws.sagemaker.create_endpoint_config(EndpointConfigName=config, ProductionVariants=[variant], Tags=tagged(settings))
    gone = ep.delete_old_models(aws.sagemaker, settings, keep=names[7])
    assert sorted(gone) == sorted(set(names) - {names[3], names[7]})
    listed = aws.sagemaker.get_paginator("list_models").paginate(NameContains="endpoint-tests-old")
    assert set(listed.search("Models[].ModelName")) == {names[3], names[7], *strangers}
    assert ep.delete_old_models(aws.sagemaker, settings, keep=names[7]) == []


# Publishing


def test_a_start_reads_the_published_model(aws):
    assert ep.current_model(aws.ssm, SETTINGS) is None
    for version in ("a", "b"):
        model = ep.RegisteredModel(ep.model_name(SETTINGS, version), version, 0.91, 0.9, "s3://b/k")
        ep.publish_model(aws.ssm, SETTINGS, model)
        assert ep.current_model(aws.ssm, SETTINGS) == model
    stored = json.loads(aws.ssm.get_parameter(Name="/endpoint-tests/model")["Parameter"]["Value"])
    assert set(stored) == {"modelName", "version", "accuracy", "macroF1", "artifact"}
