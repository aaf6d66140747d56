"The whole engine in a separate local cloud, with a model of a few words: the session fixture `engine`."

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from sentiment_engine.deploy.endpoint import RegisteredModel, model_definition, publish_model, register_model
from sentiment_engine.deploy.foundation import origin_secret, site_parameters
from sentiment_engine.deploy.packaging import stack_parameters, upload_packages
from sentiment_engine.deploy.stacks import deploy_stack, upload_template
from sentiment_engine.deploy.standby import upload_standby
from sentiment_engine.deploy.website import publish, with_answers
from sentiment_engine.model.artifact import add_inference_code, pack
from sentiment_engine.model.inference import input_fn, model_fn, predict_fn
from sentiment_engine.settings import Settings, engine_stack, foundation_stack, site_stack
from tests import ROOT
from tests.conftest import TestCloud
from tests.doubles.tiny_model import WEIGHTS, write_tiny_model

WAKING_SECONDS = 5.0  # extra seconds for each endpoint's start, so that a test can see the waiting page
WORDS = ("warm", "lovely", "fantastic", "worth", "good", "stopped", "wobbles", "disappointed", "broken", "nothing")
# All visitors of a test come from one address, many times a day.
UNGUARDED = {"number_cooldown_minutes": 0, "address_cooldown_seconds": 0, "daily_starts": 100_000}
UNGUARDED |= {"daily_messages": 100_000, "daily_messages_per_number": 100_000, "monthly_budget": 1_000_000}
LEXICON = WEIGHTS | dict(zip(WORDS, (2, 2, 2, 1, 1, -3, -2, -2, -3, -1), strict=True))


@dataclass
class Engine:
    "The engine as its visitors see it, with control of its clock."

    cloud: TestCloud
    settings: Settings
    outputs: dict[str, str]  # of all stacks
    models: dict[str, RegisteredModel]  # good, and broken: it never starts

    @property
    def api_url(self) -> str:
        return self.outputs["ApiUrl"]

    @property
    def site_url(self) -> str:
        return self.cloud.site_url

    def call(self, method: str, path: str, body: dict | None = None) -> dict:
        reply = httpx.request(method, self.api_url + path, json=body, timeout=60)
        return reply.json()

    def state(self) -> str:
        return self.call("GET", "/status")["state"]

    def wait(self, *states: str, seconds: float = 300) -> str:
        "Wait for one of `states`. Fails if none is reached."
        end = time.monotonic() + seconds
        while (state := self.state()) not in states:
            assert time.monotonic() < end, f"the engine is still {state}, not {states}: see {self.cloud.log}"
            time.sleep(0.2)
        return state

    def wake(self):
        "Wake the model, unless it is awake."
        self.wait("STOPPED", "FAILED", "CREATING", "IN_SERVICE")
        self.call("POST", "/start", {})
        self.wait("IN_SERVICE")

    def sleep(self):
        "Put the model to sleep by letting its time pass."
        if self.wait("STOPPED", "FAILED", "IN_SERVICE") == "IN_SERVICE":
            self.cloud.advance_clock(self.settings.idle_minutes * 60 + 5)
            self.wait("STOPPED")

    @contextmanager
    def environment(self, function: str, **variables: str):
        "Change a Lambda's environment variables temporarily."
        functions, name = self.cloud.client("lambda"), f"{self.settings.prefix}-{function}"
        before = functions.get_function_configuration(FunctionName=name)["Environment"]["Variables"]
        functions.update_function_configuration(FunctionName=name, Environment={"Variables": before | variables})
        try:
            yield
        finally:
            functions.update_function_configuration(FunctionName=name, Environment={"Variables": before})

    @contextmanager
    def slow_to_sleep(self):
        "Let the model's time pass while its endpoint cannot be deleted, so that it stays STOPPING."
        nowhere = {"AWS_ENDPOINT_URL_SAGEMAKER": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
        shutdown, reconcile = (self.environment(f, **nowhere) for f in ("shutdown-endpoint", "reconcile-model-service"))
        with shutdown, reconcile:
            self.cloud.advance_clock(self.settings.idle_minutes * 60 + 5)
            self.wait("STOPPING")
            yield
        self.cloud.advance_clock(600)  # the reconciler runs
        self.wait("STOPPED")

    def use(self, model: str):
        "Choose which model the next start deploys: good or broken."
        publish_model(self.cloud.client("ssm"), self.settings, self.models[model])

    def messages(self) -> list[dict]:
        "Return every SMS that was sent."
        return httpx.get(f"{self.cloud.inbox_url}.json").json()


def _register(cloud: TestCloud, settings: Settings, foundation: dict, folder: Path, name: str) -> RegisteredModel:
    "Pack, upload and register the model in `folder`."
    archive, key = folder.with_suffix(".tar.gz"), f"models/{name}/output/model.tar.gz"
    pack(folder, archive)
    cloud.client("s3").upload_file(str(archive), foundation["ArtifactsBucket"], key)
    address = f"s3://{foundation['ArtifactsBucket']}/{key}"
    definition = model_definition(f"{settings.prefix}-{name}", address, "inference", foundation["EndpointRole"])
    register_model(cloud.client("sagemaker"), settings, definition)
    return RegisteredModel(definition["ModelName"], f"20260101-{name}", 0.91, 0.9, address)


def _models(
    cloud: TestCloud, settings: Settings, foundation: dict, folder: Path, weights: Path | None
) -> dict[str, RegisteredModel]:
    "Register a model that works, and one whose tokenizer file is truncated."
    for name in ("good", "broken"):
        given = weights and shutil.copytree(weights, folder / name)
        add_inference_code(given or write_tiny_model(folder / name, LEXICON))
    (folder / "broken" / "tokenizer.json").write_text('{"version": "1.0", "trunc')
    return {name: _register(cloud, settings, foundation, folder / name, name) for name in ("good", "broken")}


def _deploy(cloud: TestCloud, settings: Settings, standby: bool) -> dict[str, str]:  # the outputs of all stacks
    "Deploy foundation, site and engine, as the notebooks do."
    cloudformation, s3, tags = cloud.client("cloudformation"), cloud.client("s3"), {"Project": settings.prefix}
    templates = ROOT / "infra_scripts/templates"
    given = {"Prefix": settings.prefix}
    base = deploy_stack(cloudformation, foundation_stack(settings), templates / "foundation.yaml", given, tags)
    bucket = base["ArtifactsBucket"]
    template = upload_template(s3, bucket, templates / "site.yaml")
    secret = origin_secret(cloud.client("ssm"), settings)
    given = site_parameters(settings, secret)
    site = deploy_stack(cloudformation, site_stack(settings), template, given, tags)
    template = upload_template(s3, bucket, templates / "backend.yaml")
    packages = upload_packages(s3, bucket, ROOT / "lambdas")
    packages |= upload_standby(s3, bucket, ROOT / "lambdas", None, locked=False) if standby else {}
    given = stack_parameters(settings, bucket, packages, site, secret)
    return base | site | deploy_stack(cloudformation, engine_stack(settings), template, given, tags)


def _publish(engine: Engine, model_folder: Path):
    "Publish the page as the notebook does, with the answers of the model."
    examples = json.loads((ROOT / "website" / "examples.json").read_text(encoding="utf-8"))
    model = model_fn(str(model_folder))
    reviews = input_fn(json.dumps({"inputs": [each["text"] for each in examples["examples"]], "explain": True}))
    stored = with_answers(examples, lambda _: predict_fn(reviews, model), engine.models["good"].version)
    config = {"provider": "Textbelt", "inboxUrl": engine.cloud.inbox_url}
    publish(engine.cloud.client("s3"), engine.outputs["SiteBucket"], ROOT / "website", config, stored)


@contextmanager
def running_engine(
    folder: Path,  # its state is kept below it
    waking_seconds: float = WAKING_SECONDS,
    weights: Path | None = None,  # folder of a model; none: one of a few words, which loads at once
    standby: bool = False,  # whether the released model answers while the endpoint does not
    record: Path | None = None,  # file for one line about each call
) -> Iterator[Engine]:
    "Deploy the engine with its page to a separate local cloud."
    with TestCloud(folder / "cloud", port=0, site_port=0, endpoint_delay=waking_seconds, record=record) as cloud:
        site = cloud.site_url.rstrip("/")
        settings = Settings(textbelt_url=cloud.textbelt_url, site_origin=site, creating_minutes=10, **UNGUARDED)
        outputs = _deploy(cloud, settings, standby)
        running = Engine(cloud, settings, outputs, _models(cloud, settings, outputs, folder, weights))
        running.use("good")
        _publish(running, folder / "good")
        yield running


@pytest.fixture(scope="session")
def engine(tmp_path_factory) -> Iterator[Engine]:
    "The deployed engine with its page, asleep. Tests share it, and each puts it into the state that it needs."
    with running_engine(tmp_path_factory.mktemp("engine")) as running:
        yield running
