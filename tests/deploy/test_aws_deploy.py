"A deployment to AWS before it starts: what it prints, refuses and checks, without an account and with the local one."

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from inspect import signature
from types import SimpleNamespace
from unittest.mock import patch

import boto3
import pytest
from botocore.exceptions import ClientError
from papermill.exceptions import PapermillExecutionError

from infra_scripts import deploy as deploy_command
from infra_scripts import teardown as teardown_command
from infra_scripts.make import render_regions
from sentiment_engine.costs import RESTING_METRICS, Visit, run_cost, standing_cost
from sentiment_engine.deploy import loose_ends, phases, target, teardown
from sentiment_engine.deploy.account import (
    SHARES,
    Finding,
    account_checks,
    check_account,
    check_messages,
    check_region,
    missing_images,
    regions_for,
)
from sentiment_engine.deploy.endpoint import newest_model, serving_image, trial_machines
from sentiment_engine.deploy.foundation import site_parameters
from sentiment_engine.deploy.packaging import monitoring_parameters
from sentiment_engine.deploy.plan import plan_of, read_template, resources_of
from sentiment_engine.deploy.stacks import delete_stack, deploy_stack
from sentiment_engine.deploy.training import training_image
from sentiment_engine.model.artifact import add_inference_code, pack
from sentiment_engine.s3 import empty_bucket
from sentiment_engine.settings import Settings, monitoring_stack, site_stack
from tests import ROOT
from tests.doubles.tiny_model import write_tiny_model

SCRIPTS = ROOT / "infra_scripts"
TEMPLATES = SCRIPTS / "templates"


NOBODY = {"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
NOBODY |= {"AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture
def environment():
    "A mutable environment without variables of AWS or the engine, as for a user without an account."
    with patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith(("AWS_", "SENTIMENT_"))]:
            del os.environ[name]
        os.environ.update(NOBODY)
        yield os.environ


@pytest.fixture
def main(environment, monkeypatch, capsys):
    "The result of deploy.py run in this process: its output and its end."

    def call(*words: str) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["deploy.py", *words])
        with pytest.raises(SystemExit) as ended:
            deploy_command.main()
        said = capsys.readouterr()
        return said.out, said.err + str(ended.value.code or "")

    return call


def bare(**env: str) -> dict[str, str]:
    "The environment of a user without an account, plus the given variables."
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "SENTIMENT_"))}
    return kept | NOBODY | {"PYTHONPATH": str(ROOT)} | env


def run(*words: str, **env: str) -> subprocess.CompletedProcess:
    "Run deploy.py as a user without an account."
    command = [sys.executable, str(SCRIPTS / "deploy.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, env=bare(**env), check=False, timeout=300)


@pytest.mark.parametrize("script", ["deploy.py", "teardown.py"])
def test_a_cancelled_workflow_stops_like_ctrl_c(script):
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # calls to AWS, which take time
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
        env = bare(HTTPS_PROXY=f"http://127.0.0.1:{deaf.getsockname()[1]}", NO_PROXY="", no_proxy="", **keys)
        command = [sys.executable, str(SCRIPTS / script), "--target", "aws", "--region", "us-east-1"]
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            deaf.settimeout(60)
            with deaf.accept()[0]:
                process.send_signal(signal.SIGTERM)
                told = process.communicate(timeout=120)[1]
    assert process.returncode == 1 and "Interrupted." in told and "Traceback" not in told


@pytest.fixture(scope="module")
def dry() -> str:
    "What a dry run without credentials prints."
    done = run("--target", "aws", "--dry-run")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_dry_run_needs_no_credentials_and_lists_unchecked_items(dry):
    _, unchecked = dry.split("What could not be checked:")
    for what in (
        "region",
        "credentials",
        "endpoint quota",
        "training quota",
        "Lambda concurrency",
        "SMS",
        "stacks",
        "neighbours",
        "table",
        "as before",
        "notebooks",
    ):
        assert f"\n{what}: " in unchecked
    assert unchecked.rstrip().endswith("Nothing was changed.")


PAGE_WATCHED = {"DistributionId": "E1", "StandbyModelKey": "a.zip"}  # us-east-1, where CloudFront reports


def test_a_dry_run_lists_the_resources_of_the_templates(dry):
    for file in ("foundation.yaml", "site.yaml", "backend.yaml", "monitoring.yaml"):
        for kind, count in Counter(resources_of(read_template(TEMPLATES / file), PAGE_WATCHED).values()).items():
            assert f"Add     {count:3}  {kind.removeprefix('AWS::')}\n" in dry


def test_a_dry_run_uses_the_price_table(dry):
    visit = Visit(idle=Settings().idle_minutes)
    assert f"${run_cost('ml.t2.medium', visit.minutes * 60):.3f} for {visit.minutes:g} minutes on ml.t2.medium" in dry
    kinds = Counter()
    for file in ("foundation.yaml", "site.yaml", "backend.yaml", "monitoring.yaml"):
        kinds += Counter(resources_of(read_template(TEMPLATES / file), PAGE_WATCHED).values())
    within, beside = standing_cost(kinds)
    assert f"other resources ${within:.2f} to ${beside:.2f}" in dry


def test_a_dry_run_lists_the_notebooks_and_prices_each_item_once(dry, main):
    assert dry.startswith(
        "Notebooks that would run: 00 settings, 01 glue etl, 02 data exploration, 03 model training, 04 "
    )
    assert "once         Glue, $0.44 an hour for each of at most 10 workers\n" in dry
    assert "training on ml.g4dn.xlarge, $0.736 an hour\n" in dry
    assert "a trial of the model for some ten minutes on ml.t2.medium, $0.056 an hour\n" in dry  # as for visitors
    said, _ = main("--target", "aws", "--dry-run", "--model", "released")
    assert "would run: 00 settings, 04 " in said and "Glue, $" not in said and "training quota" not in said
    said, _ = main("--target", "aws", "--dry-run", "--only", "06")
    assert "would run: 06 website\n" in said and "training quota" not in said and "once         nothing" in said


def test_the_plan_shows_optional_features(main, environment):
    before = dict(environment)
    said, _ = main(
        *("--target", "aws", "--dry-run", "--region", "us-east-1", "--stack-prefix", "lab"),
        *("--endpoint", "serverless", "--domain", "mood.example.com", "--firewall", "--alarm-email", "me@example.com"),
    )
    for line in (
        "lab-engine",
        "CertificateManager::Certificate",
        "WAFv2::WebACL",
        "SNS::Subscription",
        "a prediction $",
    ):
        assert line in said
    assert "ok       region" in said and "a visit" not in said
    assert "\nserverless quota: needs credentials" in said and "endpoint quota" not in said
    assert "a trial of the model on a serverless endpoint" in said
    for name in environment.keys() - before.keys():
        del environment[name]
    said, _ = main("--target", "aws", "--dry-run", "--idle-minutes", "5", "--instance-types", "ml.c5.large")
    assert "for 15 minutes on ml.c5.large" in said and "ten minutes on ml.c5.large, " in said


def test_training_uses_the_requested_instance_type(main):
    said, _ = main("--target", "aws", "--dry-run", "--training-instance", "ml.m5.large")
    assert "training on ml.m5.large, $0.115 an hour\n" in said and "ml.g4dn.xlarge" not in said
    for option, value in (("--training-instance", "g4dn.xlarge"), ("--sample-rows", "5")):
        assert f"error: {option} must be" in main("--target", "aws", "--dry-run", option, value)[1]


SESSION = boto3.Session()
EVERYWHERE = {p: SESSION.get_available_regions("sagemaker", p) for p in SESSION.get_available_partitions()}
GPU = phases.TARGET_PARAMETERS["aws"]["training_instance"]


@pytest.mark.parametrize("training", [GPU, ""])
def test_a_region_without_images_is_refused_and_another_suggested(training):
    foundation = (TEMPLATES / "foundation.yaml").read_text(encoding="utf-8")
    fine = regions_for(SESSION, training)
    for region in itertools.chain(*EVERYWHERE.values()):
        session = boto3.Session(region_name=region)
        found = check_region(session, Settings(), training)
        assert found.fine is (region in fine), region
        if found.fine:
            for image in [serving_image(region), *([training_image(region, training)] if training else [])]:
                registry, repository = image.partition(":")[0].split("/")
                assert registry.split(".", 1)[1] == f"dkr.ecr.{region}.amazonaws.com"
                assert f':ecr:${{AWS::Region}}:*:repository/{repository}"' in foundation
        elif region in EVERYWHERE["aws"]:
            named = found.text.partition("--region ")[2].partition(" (")[0].split(", ")
            assert set(named) <= set(fine) and ("--model released" in found.text) is (not missing_images(region))


def test_a_region_without_images_is_refused_before_any_cost(main):
    said, _ = main("--target", "aws", "--region", "eu-central-2", "--dry-run")
    assert (
        "PROBLEM  region               AWS has no container image for training on ml.g4dn.xlarge in eu-central-2"
        in said
    )
    assert "eu-central-1" in said
    said, _ = main("--target", "aws", "--region", "us-east-1", "--dry-run", "--training-instance", "ml.trn1.2xlarge")
    assert "ml.trn1.2xlarge in us-east-1, nor in any other region: choose another --training-instance" in said
    _, end = main("--target", "aws", "--region", "ap-east-2", "--model", "released")
    assert "nothing was changed: region: AWS has no container image for the endpoint in ap-east-2" in end


def test_the_regions_page_matches_the_checks():
    assert render_regions.PAGE.read_text(encoding="utf-8") == render_regions.page()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--target", "aws"), "nothing was changed: region: none is chosen"),
        (
            ("--target", "aws", "--region", "us-east-1"),
            "nothing was changed: credentials: Unable to locate credentials",
        ),
        (("--target", "aws", "--region", "mars-north-1", "--dry-run"), ""),
        (("--target", "local", "--region", "us-east-1"), "--region is for --target aws"),
        (("--target", "local", "--dry-run"), "--dry-run is for --target aws"),
        (
            ("--target", "aws", "--endpoint", "sometimes"),
            "--endpoint must be one of realtime, serverless, lambda, not sometimes",
        ),
        (("--target", "aws", "--dry-run", "--model-data", "nothing.tar.gz"), "nothing.tar.gz is no file"),
        (("--target", "aws", "--model-data", "s3://b/m.tar.gz", "--model", "released"), "leave --model out"),
        (("--target", "aws", "--instance-types", "", "--dry-run"), "instance_types must name at least one"),
        (
            ("--target", "aws", "--stack-prefix", "engine-of-the-whole-lab"),
            "the prefix must be 3 to 17 of a-z",
        ),
        (("--target", "aws", "--stack-prefix", "lab-trial"), "the prefix must not end in -trial"),
        (("--target", "local", "--no-reserved-concurrency"), "--reserved-concurrency is for --target aws"),
        (("--model", "released", "--sample-rows", "500"), "--model=released is not trained: leave --sample-rows out"),
    ],
)
def test_an_impossible_deployment_is_refused_before_any_change(main, words, why):
    _, end = main(*words)
    assert end and why in end


def test_a_local_endpoint_is_never_mistaken_for_aws():
    done = run("--target", "aws", "--dry-run", AWS_ENDPOINT_URL="http://127.0.0.1:1")
    assert done.returncode != 0 and "target is aws, but AWS_ENDPOINT_URL is" in done.stderr


def test_another_prefix_has_its_own_table():
    options = parsed("--stack-prefix", "lab", "--endpoint", "serverless", "--no-reserved-concurrency")
    chosen = target.chosen_environment(options)
    assert chosen["SENTIMENT_TABLE"] == "lab-state" and chosen["SENTIMENT_RESERVE_CONCURRENCY"] == "false"
    assert "SENTIMENT_FIREWALL" not in chosen and "AWS_PROFILE" not in chosen
    assert "SENTIMENT_TABLE" not in target.chosen_environment(parsed("--stack-prefix", "sentiment-engine"))


def parsed(*words: str):
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("--target", default="aws")
    target.add_account_options(parser)
    target.add_variant_options(parser)
    phases.add_options(parser)
    return parser.parse_args(words)


def test_the_named_profile_overrides_the_environment(environment, tmp_path):
    "Keys in the environment, and AWS_DEFAULT_PROFILE, would win over AWS_PROFILE."
    lines = [f"[{name}]\naws_access_key_id = {name}\naws_secret_access_key = x\n" for name in ("meant", "other")]
    (tmp_path / "credentials").write_text("".join(lines))
    environment |= {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"), "AWS_DEFAULT_PROFILE": "other"}
    environment |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"), "of the shell")
    target.enter(target.chosen_environment(parsed("--profile", "meant")))
    assert boto3.Session().get_credentials().access_key == "meant"


KNOWN = Finding("as before", True, "nothing")


@pytest.mark.parametrize(("fine", "status"), [(True, 0), (False, 1)])
def test_a_problem_ends_a_dry_run_with_status_1(monkeypatch, fine, status, capsys):
    found = [Finding("region", True, "us-east-1"), Finding("endpoint quota", fine, "0")]
    monkeypatch.setattr(target, "check_account", lambda *_: found)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with pytest.raises(SystemExit) as ended:
        target.before(parsed("--dry-run"), "ml.g4dn.xlarge", KNOWN, lambda asked: ["04 endpoint deployment"])
    assert ended.value.code == status and ("PROBLEM  endpoint quota" in capsys.readouterr().out) is not fine


def deploy_to(monkeypatch, *found: Finding):
    "Prepare the command that deploys to an account with these findings, in which no deployment may begin."
    monkeypatch.setattr(target, "check_account", lambda *_: list(found))
    monkeypatch.setattr(phases, "recall", lambda _: KNOWN)
    monkeypatch.setattr(phases.Stamps, "read", lambda _: {})
    monkeypatch.setattr(phases, "deploy", lambda *_, **__: pytest.fail("something was deployed"))
    monkeypatch.setattr("sys.argv", ["deploy.py", "--target", "aws", "--region", "us-east-1"])
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)


def test_a_problem_stops_a_deployment_before_any_call(monkeypatch):
    deploy_to(monkeypatch, Finding("region", True, "us-east-1"), Finding("table", False, "it is not ours"))
    with pytest.raises(SystemExit, match="nothing was changed: table: it is not ours"):
        deploy_command.main()


def test_the_checks_work_against_the_local_cloud(cloud, monkeypatch):
    "The local cloud acts as the account. What it does not support counts as unknown and not as a problem."
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    own = Settings(prefix="nobody", table="NobodysState", textbelt_url=cloud.textbelt_url)
    found = {f.what: f for f in check_account(boto3.Session(), own)}
    assert found["credentials"].fine and found["region"].fine and found["table"].fine
    assert found["stacks"].text == "none of ours exists yet" and found["neighbours"].fine
    assert found["SMS"].fine and "more messages" in found["SMS"].text


class Answers:
    "A session of an account with these quotas and this Textbelt key; None: no key is stored."

    region_name = "us-east-1"

    def __init__(self, quotas: dict | None = None, key: str | None = None):
        self.quotas, self.key = quotas or {}, key

    def client(self, service: str):
        client = boto3.client(service, "us-east-1", aws_access_key_id="test", aws_secret_access_key="test")
        client.meta.events.register(f"before-call.{service}", self._answer)
        return client

    def _answer(self, model, **_):
        "Answer instead of AWS."
        listed = [{"QuotaName": f"{kind} for endpoint usage", "Value": value} for kind, value in self.quotas.items()]
        answer = {"Parameter": {"Value": self.key}} if model.name == "GetParameter" else {"Quotas": listed}
        if model.name == "GetParameter" and self.key is None:
            return SimpleNamespace(status_code=400), {"Error": {"Code": "ParameterNotFound", "Message": ""}}
        return SimpleNamespace(status_code=200), answer


@pytest.mark.parametrize("values", list(itertools.product([0, 1], repeat=3)))
def test_an_endpoint_quota_passes_if_one_type_has_quota(values):
    own = Settings(instance_types=("ml.m5.large", "ml.c5.large", "ml.t2.medium"))
    quotas = dict(zip(own.instance_types, values, strict=True))
    for trial in (True, False):
        found = dict(account_checks(Answers(quotas), own, trial=trial))["endpoint quota"]()
        tried = trial_machines(own) if trial else own.instance_types
        assert found.fine is any(quotas[kind] for kind in tried)
        assert found.fine or "put a type with a quota first" in found.text


@pytest.mark.parametrize("titles", [["04 endpoint deployment"], ["06 website"]])
def test_the_trial_quota_is_checked_only_for_a_deployment_with_a_trial(monkeypatch, titles):
    asked = []
    monkeypatch.setattr(target, "check_account", lambda *given: asked.append(given) or [KNOWN])
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    target.before(parsed(), "ml.g4dn.xlarge", KNOWN, lambda _: titles)
    assert signature(check_account).bind(*asked[0]).arguments["trial"] is (titles[0].startswith("04"))


@pytest.mark.parametrize("key", [None, "a-key"])
@pytest.mark.parametrize("left", [0, None, 1])
def test_missing_sms_credit_does_not_stop_a_deployment(key, left):
    found = check_messages(Answers(key=key), Settings(), lambda *_: SimpleNamespace(quota=lambda: left))
    assert found.fine is (True if left else None)
    if left == 0:
        for said in ("Start works without a number", "buy a key", "--name /sentiment-engine/textbelt-key"):
            assert said in found.text


REFUSED = "User: arn:aws:iam::123456789012:user/ada is not authorized on arn:aws:s3:::lab-123456789012-x"


class Refused(boto3.Session):
    "A session of a user who may only call GetCallerIdentity."

    def client(self, service, *_, **__):
        if service != "sts":
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": REFUSED}}, "Operation")
        caller = {"Arn": "arn:aws:iam::123456789012:user/ada", "Account": "123456789012"}
        return SimpleNamespace(get_caller_identity=lambda: caller)


@pytest.fixture
def refused(monkeypatch):
    "Programs run by a user without permissions."
    for module in (target, phases, loose_ends, teardown):
        monkeypatch.setattr(module, "connect", lambda _: Refused(region_name="us-east-1"))


def masked(said: str) -> bool:
    "Check that a text repeats AWS's message without the account id."
    return "arn:aws:iam::…9012:user/ada is not authorized" in said and "123456789012" not in said


@pytest.mark.parametrize("more", [("--dry-run",), ("--model-data", "s3://b-123456789012/m.tar.gz", "--dry-run"), ()])
def test_a_deployment_prints_no_account_id(refused, main, more):
    said, end = main("--target", "aws", "--region", "us-east-1", *more)
    assert masked(said + end)


@pytest.mark.parametrize("where", ["AWS", "here", "a cell"])
def test_error_explanations_contain_no_account_id(where, tmp_path, monkeypatch):
    (tmp_path / "runs/first").mkdir(parents=True)
    monkeypatch.setattr(phases, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(phases, "ROOT", tmp_path)
    error = ClientError({"Error": {"Code": "AccessDenied", "Message": REFUSED}}, "GetObject")
    cell = PapermillExecutionError(3, 3, "", "ClientError", str(error), [])
    assert masked(phases.explain_failure({"AWS": error, "here": ValueError(REFUSED), "a cell": cell}[where]))


def test_a_teardown_and_its_leftovers_print_no_account_id(refused, environment, monkeypatch, capsys):
    loose_ends.tie_up("aws", interrupted=True)
    assert masked(capsys.readouterr().out)
    monkeypatch.setattr("sys.argv", ["teardown.py", "--target", "aws", "--region", "us-east-1", "--yes"])
    with pytest.raises(SystemExit) as ended:
        teardown_command.main()
    assert masked(str(ended.value))

    def nobody():
        raise ValueError(REFUSED)

    monkeypatch.setattr(teardown_command, "whose", nobody)
    with pytest.raises(SystemExit) as ended:
        teardown_command.main()
    assert masked(str(ended.value))


@pytest.fixture
def standing(cloud, environment, monkeypatch):
    "A foundation on the local cloud, which acts as the account; it can record the requested options."
    monkeypatch.setattr(target, "connect", lambda _: boto3.Session())
    environment.update(cloud.environment)
    cloudformation = cloud.client("cloudformation")
    deploy_stack(
        cloudformation, "again-foundation", TEMPLATES / "foundation.yaml", {"Prefix": "again"}, {"Project": "again"}
    )

    def ask(*words: str, **env: str) -> tuple:
        "Request a deployment in a new shell: return the options that it inherits and the resulting settings."
        for name in [name for name in environment if name.startswith("SENTIMENT_")]:
            del environment[name]
        environment.update(env)
        options = parsed("--stack-prefix", "again", *words)
        target.enter(target.chosen_environment(options))
        known = target.recall(options)
        phases.Stamps(boto3.Session(), "again-foundation", target.asked_for(options)).note()
        return known, options, target.settings_from(environment)

    return ask


def test_a_choice_is_kept_until_it_is_revoked(standing):
    known, options, settings = standing("--domain", "mood.example.com", "--endpoint", "serverless", "--firewall")
    assert known.fine and "nothing was chosen earlier" in known.text
    standing("--alarm-email", "me@example.com", "--idle-minutes", "5", SENTIMENT_MONTHLY_BUDGET="20")
    known, options, settings = standing("--endpoint", "realtime", "--no-firewall")
    for said in ("--domain mood.example.com", "SENTIMENT_ALARM_EMAIL=me@example.com", "SENTIMENT_MONTHLY_BUDGET=20"):
        assert said in known.text
    assert "ENDPOINT" not in known.text and settings.endpoint == "realtime" and not settings.firewall
    assert (options.domain, settings.alarm_email, settings.idle_minutes) == ("mood.example.com", "me@example.com", 5)
    known, options, settings = standing("--domain", "", "--alarm-email", "")
    assert not options.domain and not settings.alarm_email and settings.monthly_budget == 20
    known, options, settings = standing()
    assert options.domain is None and not settings.alarm_email and settings.table == "again-state"


@pytest.mark.parametrize(
    ("kept", "words", "taken"),
    [
        ({"model": "released"}, (), {"model": "released"}),
        ({"model": "released"}, ("--categories", "Books"), {"categories": "Books"}),
        ({"model": "candidate"}, ("--categories", "Books"), {"model": "candidate", "categories": "Books"}),
        ({"categories": "Books", "source": "s3://{category}"}, ("--rows", "500"), {"rows": 500}),
        ({"categories": "Books"}, ("--model", "released"), {"model": "released"}),
        ({"categories": "Books"}, ("--model", "better"), {"model": "better", "categories": "Books"}),
        ({"model_data": "s3://b/m.tar.gz"}, ("--model", "better"), {"model": "better"}),
        ({"model_data": "s3://b/m.tar.gz"}, ("--domain", "example.com"), {"model_data": "s3://b/m.tar.gz"}),
        ({"model_data": "s3://b/m.tar.gz"}, ("--rows", "500"), {"rows": 500}),
        (
            {"base_model": "minilm", "sample_rows": 900},
            ("--sample-rows", "500"),
            {"base_model": "minilm", "sample_rows": 500},
        ),
        ({"training_instance": "ml.m5.large"}, ("--rows", "500"), {"training_instance": "ml.m5.large", "rows": 500}),
        ({"sample_rows": 900, "categories": "Books"}, ("--model", "released"), {"model": "released"}),
        ({"model": "released"}, ("--base-model", "minilm"), {"base_model": "minilm"}),
        ({"model_data": "s3://b/m.tar.gz"}, ("--sample-rows", "500"), {"sample_rows": 500}),
    ],
)
def test_stored_choices_combine_with_new_ones(environment, monkeypatch, kept, words, taken):
    "A released or given model is not trained; a trained one needs its reviews and recipe."
    monkeypatch.setattr(target, "_kept", lambda *_: {"options": kept})
    target.recall(options := parsed(*words))
    kinds = (*target.MODELS, *target.REVIEWS, *target.TRAINING)
    found = {name: getattr(options, name) for name in kinds if getattr(options, name)}
    assert found == taken


def test_unreadable_stored_choices_stop_the_deployment(environment, monkeypatch):
    def denied(*_):
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "not yours"}}, "GetObject")

    monkeypatch.setattr(target, "_kept", denied)
    monkeypatch.setattr(target, "check_account", lambda *_: [Finding("credentials", True, "ada")])
    environment["AWS_DEFAULT_REGION"] = "us-east-1"
    known = target.recall(options := parsed())
    with pytest.raises(SystemExit, match=r"nothing was changed: as before: .*not yours"):
        target.before(options, "", known, lambda asked: [])


def test_an_existing_stack_gets_a_change_set(cloud):
    own = Settings(prefix="planned")
    name, file = monitoring_stack(own), TEMPLATES / "monitoring.yaml"
    given, cloudformation = (
        monitoring_parameters(own, "planned-dead-letters", "a1", "E1", "us-east-1"),
        cloud.client("cloudformation"),
    )
    deploy_stack(cloudformation, name, file, given, {"Project": "planned"})
    before = cloudformation.describe_stacks(StackName=name)["Stacks"][0]
    plan = plan_of(own, TEMPLATES, {name: given | {"AlarmEmail": "me@example.com"}}, cloudformation)
    changed = {c.name for c in plan.changes if c.stack == name}
    assert changed == {"AlarmSubscription", "AccountBudgetAlert"}  # only what needs the address
    assert {c.action for c in plan.changes if c.stack == "planned-foundation"} == {"Add"}
    assert not cloudformation.list_change_sets(StackName=name)["Summaries"]
    assert cloudformation.describe_stacks(StackName=name)["Stacks"][0] == before
    delete_stack(cloudformation, name)


def test_a_plan_creates_only_change_sets(standing):
    _, options, settings = standing()
    session, made = boto3.Session(), []
    cloudformation, tags = session.client("cloudformation"), {"Project": "again"}
    files = {site_stack(settings): ("site.yaml", site_parameters(settings, "secret"))}
    files[monitoring_stack(settings)] = (
        "monitoring.yaml",
        monitoring_parameters(settings, "again-dead-letters", "a1", "E1", "us-east-1"),
    )
    for name, (file, given) in files.items():
        deploy_stack(cloudformation, name, TEMPLATES / file, given, tags)
    session.events.register("before-call", lambda model, **_: made.append(model.name))
    plan = target.planned(options, settings, session, asked=True)
    writing = [name for name in made if not name.startswith(("Describe", "Get", "Head", "List"))]
    assert writing == ["CreateChangeSet", "DeleteChangeSet"] * 3 and not plan.unknown
    for name in files:
        delete_stack(cloudformation, name)


def test_no_change_set_is_created_for_a_foreign_stack(cloud):
    own, cloudformation = Settings(prefix="theirs"), cloud.client("cloudformation")
    name, file = monitoring_stack(own), TEMPLATES / "monitoring.yaml"
    given = monitoring_parameters(own, "theirs-dead-letters", "a1", "E1", "us-east-1")
    deploy_stack(cloudformation, name, file, given, {"Project": "shop"})
    asked = []
    cloudformation.meta.events.register("before-call.cloudformation.CreateChangeSet", lambda **_: asked.append(1))
    plan = plan_of(own, TEMPLATES, {name: given | {"AlarmEmail": "me@example.com"}}, cloudformation)
    assert not asked and {c.action for c in plan.changes} == {"Add"}
    delete_stack(cloudformation, name)


def test_a_given_model_becomes_the_newest(cloud, tmp_path, monkeypatch):
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    own, cloudformation = Settings(prefix="given"), cloud.client("cloudformation")
    made = deploy_stack(cloudformation, "given-foundation", TEMPLATES / "foundation.yaml", {"Prefix": "given"})
    folder = write_tiny_model(tmp_path / "model", {"good": 2, "bad": -2})
    add_inference_code(folder)
    (folder / "metrics.json").write_text(json.dumps({"accuracy": 0.9, "macro_f1": 0.9}))
    pack(folder, tmp_path / "model.tar.gz")
    address = str(tmp_path / "model.tar.gz")
    for _ in range(2):  # a file, then its address in S3
        address = target.adopt_model(boto3.Session(), own, address)
        newest = newest_model(cloud.client("s3"), made["ArtifactsBucket"])
        assert newest.artifact == address and newest.metrics["accuracy"] == 0.9 and newest.job.startswith("given-")
    (tmp_path / "no.tar.gz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"no.tar.gz is no artifact"):
        target.adopt_model(boto3.Session(), own, str(tmp_path / "no.tar.gz"))


def test_a_changed_setting_redeploys_the_backend_and_later_phases(monkeypatch):
    "A new e-mail address for alarms must not train the model again."
    before = phases.plan({})
    monkeypatch.setenv("SENTIMENT_ALARM_EMAIL", "me@example.com")
    after = phases.plan({})
    same = [a.fingerprint == b.fingerprint for a, b in zip(before, after, strict=True)]
    assert same == [True] * 5 + [False] * 3


@pytest.mark.parametrize("name", ["SENTIMENT_INSTANCE_TYPES", "SENTIMENT_ENDPOINT"])
def test_a_new_instance_type_repeats_the_trial(monkeypatch, name):
    before = phases.plan({})
    monkeypatch.setenv(name, "serverless" if name == "SENTIMENT_ENDPOINT" else "ml.c5.large")
    after = phases.plan({})
    same = [a.fingerprint == b.fingerprint for a, b in zip(before, after, strict=True)]
    assert same == [True] * 4 + [False] * 4


@pytest.mark.parametrize(
    ("parameters", "settings"),
    [({"domain_name": "mood.example.com", "hosted_zone_id": "Z1"}, {}), ({}, {"SENTIMENT_FIREWALL": "true"})],
)
def test_a_changed_site_redeploys_its_dependents_without_training(standing, environment, parameters, settings):
    stamps = phases.Stamps(target.connect("aws"), "again-foundation")
    for phase in phases.plan({}):
        stamps.write(phase)
    assert phases.outdated(phases.plan({}), stamps.read()) == []
    environment.update(settings)
    changed = phases.plan(parameters)
    assert [p.title[:2] for p in phases.outdated(changed, stamps.read())] == ["00", "05", "06", "07"]
    stamps.write(changed[0])
    assert [p.title[:2] for p in phases.outdated(changed, stamps.read())] == ["05", "06", "07"]


def test_a_changed_foundation_invalidates_all_stamps(standing, monkeypatch):
    stamps = phases.Stamps(target.connect("aws"), "again-foundation")
    for phase in phases.plan({}):
        stamps.write(phase)
    monkeypatch.setattr(phases, "sources_fingerprint", lambda: "other sources")
    stamps.write(phases.plan({})[0])
    assert list(stamps.read()) == ["00_settings"]


def test_the_site_is_deployed_before_any_cost(cloud, environment, tmp_path, monkeypatch):
    "AWS may refuse a new account its CloudFront distribution."
    environment |= cloud.environment | {"SENTIMENT_PREFIX": "early"}
    monkeypatch.setattr(phases, "RUNS", tmp_path)
    phases.deploy("local", only="00")
    pages = cloud.client("cloudformation").get_paginator("list_stacks").paginate().search("StackSummaries[].StackName")
    assert {name for name in pages if name.startswith("early-")} == {"early-foundation", "early-site"}
    first = phases.plan({})[0].notebook.name
    assert first.startswith("00") and all("site_stack" not in p.notebook.read_text() for p in phases.plan({})[1:5])
    for name in ("early-site", "early-foundation"):
        for bucket in teardown._buckets(cloud.client("cloudformation"), name):
            empty_bucket(cloud.client("s3"), bucket)
        delete_stack(cloud.client("cloudformation"), name)


def test_a_deployment_resumes_where_it_failed():
    planned = phases.plan({})
    stamps = {p.notebook.stem: p.fingerprint for p in planned[:4]}
    assert [p.notebook.name[:2] for p in phases.outdated(planned, stamps)] == ["04", "05", "06", "07"]


def test_a_given_model_is_deployed_once():
    planned = phases.plan({"model_data": "m.tar.gz"})
    assert [p.title[:2] for p in planned] == ["00", "04", "05", "06", "07"]
    assert planned == phases.plan({"model_data": "s3://b/models/given-1/output/model.tar.gz"})  # its new place
    stamps = {p.notebook.stem: p.fingerprint for p in planned}
    assert phases.upcoming(planned, stamps) == [] and phases.upcoming(planned, stamps, given=True) == planned


def test_the_resting_cost_counts_every_metric_of_the_reconciler(monkeypatch):
    from sentiment_engine.service import lifecycle
    from tests.doubles.engine_double import World

    reported = []
    world = World(monkeypatch)
    monkeypatch.setattr(lifecycle, "emit", lambda prefix, **values: reported.append(values))
    lifecycle.reconcile(world.engine)
    names = {name for values in reported for name in values} - {"by"}
    assert len(names) + 1 == RESTING_METRICS  # and DeadLetters, if there is a queue


def test_the_runbook_explains_every_alarm():
    book = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    alarms = read_template(TEMPLATES / "monitoring.yaml")["Resources"].values()
    names = [a["Properties"]["AlarmName"]["Fn::Sub"] for a in alarms if a["Type"].endswith("Alarm")]
    assert len(names) == 24  # including the composite alarm
    for name in names:
        short = name.removeprefix("${Prefix}-")
        assert f"**{short}**" in book or (short.endswith("-errors") and "**…-errors**" in book), short


def test_the_deploy_workflow_stores_no_key_and_runs_only_manually():
    import yaml

    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "deploy.yml").read_text())
    assert list(workflow[True]) == ["workflow_dispatch"]  # YAML parses `on` as true
    (job,) = workflow["jobs"].values()
    assert sorted(job["permissions"].items()) == [("contents", "read"), ("id-token", "write")]
    assert job["environment"] == "production"
    text = json.dumps(workflow)
    assert "secrets." not in text and "aws-access-key-id" not in text and "role-to-assume" in text
    steps = [step["run"] for step in job["steps"] if "infra_scripts" in step.get("run", "")]
    assert len(steps) == 2 and not any("${{" in step for step in steps)  # input never becomes part of a script
    inputs = workflow[True]["workflow_dispatch"]["inputs"]
    assert len(inputs) <= 10  # GitHub's maximum
    assert {name.upper() for name in inputs} <= set(job["env"])


def test_the_workflow_passes_only_the_chosen_options(tmp_path):
    "Its script runs, with a python that prints its arguments."
    import yaml

    (job,) = yaml.safe_load((ROOT / ".github" / "workflows" / "deploy.yml").read_text())["jobs"].values()
    (script,) = [step["run"] for step in job["steps"] if "deploy.py" in step.get("run", "")]
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text('#!/bin/bash\nprintf "%s|" "${@:2}"; echo\n')
    python.chmod(0o755)
    env = dict.fromkeys(job["env"], "as before") | {"WHAT": "deploy", "REGION": "us-east-1", "PREFIX": "lab"}
    env |= {"PATH": os.environ["PATH"], "DOMAIN": "none", "FIREWALL": "yes", "RESERVED_CONCURRENCY": "no"}
    env |= {"BOUNDARY": "", "MODEL": "released"}
    said = subprocess.check_output(["bash", "-e", "-c", script], cwd=tmp_path, env=env, text=True).splitlines()
    given = "--target|aws|--region|us-east-1|--stack-prefix|lab|--domain||--model|released|--firewall|"
    given += "--no-reserved-concurrency|"
    assert said == [f"{given}--dry-run|", given]
    words = given.split("|")[2:-1]
    assert parsed(*words).domain == "" and parsed(*words).reserved_concurrency is False


def test_the_runbook_stops_only_resources_of_the_engine():
    import re

    from sentiment_engine.settings import endpoint_name, new_run_id, trial_name

    book = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    (pattern,) = re.findall(r'grep -E "(.+)"', book)
    ours, other = Settings(prefix="lab"), Settings(prefix="lab-two")
    pattern = pattern.replace("$P", ours.prefix)
    assert all(re.search(pattern, name(ours, new_run_id())) for name in (endpoint_name, trial_name))
    foreign = [name(other, new_run_id()) for name in (endpoint_name, trial_name)]
    assert not any(re.search(pattern, name) for name in (*foreign, f"my-{endpoint_name(ours, new_run_id())}"))
    again = dict(re.findall(r"again ([a-z-]+) ([0-9]+)", book))
    assert {name: int(share) for name, share in again.items()}.items() <= SHARES.items()
    (stopped,) = re.findall(r"for f in (.+); do", book)
    assert again.keys() == set(stopped.split())
