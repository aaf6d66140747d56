"""What a deployment to AWS is told, looks at first and prints: for deploy.py and teardown.py."""

import argparse
import json
import os
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from sentiment_engine.account import Finding, Machines, check_account, find_zone
from sentiment_engine.artifact import artifact_hash
from sentiment_engine.endpoint import model_version
from sentiment_engine.packaging import monitoring_parameters, package_keys, stack_parameters
from sentiment_engine.plan import Plan, bill, describe_plan, plan_of, unchecked
from sentiment_engine.settings import Settings, connect, engine_stack, foundation_stack, monitoring_stack, settings_from
from sentiment_engine.stacks import stack_outputs
from sentiment_engine.training import LATEST, s3_place

ROOT = Path(__file__).resolve().parent.parent
PRICED_REGION = "us-east-1"  # of the price table, and what a plan is made for if no region is chosen
# Options that are settings, by the setting's name. They are handed on as SENTIMENT_… variables.
SETTINGS = ("endpoint", "instance_types", "idle_minutes", "sms_provider", "sms_countries", "textbelt_url")
SETTINGS += ("alarm_email",)
ONLY_AWS = ("profile", "region", "domain", "dry_run", "firewall", "no_reserved_concurrency")


def add_account_options(parser: argparse.ArgumentParser):
    "Add the options that say which account is meant, and which engine in it."
    parser.add_argument("--profile", metavar="NAME", help="profile of the AWS command line")
    parser.add_argument("--region", metavar="NAME", help="AWS region, such as us-east-1")
    parser.add_argument("--stack-prefix", metavar="NAME", help="starts the name of all that is made, and tags it")


def add_variant_options(parser: argparse.ArgumentParser):
    "Add the options that say what kind of engine it becomes."
    add = parser.add_argument
    add("--dry-run", action="store_true", help="only say what would be made, what it costs and what is in the way")
    add("--domain", metavar="NAME", help="a domain of your own for the page; its zone must be in Route 53 (us-east-1)")
    add("--endpoint", choices=("realtime", "serverless"), help="an instance that is started, or paid by the request")
    add("--instance-types", metavar="NAMES", help="of the endpoint, in order of preference, with commas")
    add("--model-data", metavar="PLACE", help="a model.tar.gz, here or s3://…: nothing is cleaned or trained")
    add("--sms-provider", choices=("textbelt", "sns"), help="who sends the SMS")
    add("--sms-countries", metavar="CODES", help="countries whose numbers may get one, with commas")
    add("--textbelt-url", metavar="URL", help="Textbelt, or a server that speaks like it")
    add("--alarm-email", metavar="ADDRESS", help="who is written to when an alarm rings")
    add("--firewall", action="store_true", help="let a firewall count each address's requests to the page ($6 a month)")
    add("--no-reserved-concurrency", action="store_true", help="for a new account, which has room for nothing else")


def chosen_environment(options: argparse.Namespace) -> dict[str, str]:
    "Turn the options into environment variables, which the notebooks read. Raises ValueError for a nonsense setting."
    given = {"SENTIMENT_" + name.upper(): getattr(options, name, None) for name in SETTINGS}
    given["SENTIMENT_PREFIX"] = options.stack_prefix
    if options.stack_prefix not in (None, Settings().prefix) and "SENTIMENT_TABLE" not in os.environ:
        given["SENTIMENT_TABLE"] = f"{options.stack_prefix}-state"  # two engines in one account share no table
    given["SENTIMENT_FIREWALL"] = "true" if getattr(options, "firewall", False) else None
    given["SENTIMENT_RESERVE_CONCURRENCY"] = "false" if getattr(options, "no_reserved_concurrency", False) else None
    given["AWS_PROFILE"] = options.profile
    given |= dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), options.region)
    chosen = {name: str(value) for name, value in given.items() if value is not None}
    settings_from(os.environ | chosen)
    return chosen


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace):
    "End the program if an option was given that means nothing on this machine, or an artifact that is not there."
    place = getattr(options, "model_data", None) or "s3://"
    if not place.startswith("s3://") and not Path(place).is_file():
        parser.error(f"--model-data: {place} is no file")
    if getattr(options, "model_data", None) and getattr(options, "model", None):
        parser.error("--model-data says what to deploy: leave --model out")
    for name in ONLY_AWS:
        if options.target == "local" and getattr(options, name, None):
            parser.error(f"--{name.replace('_', '-')} is for --target aws")


def _planned(settings: Settings, session: boto3.Session, domain: str, asked: bool) -> Plan:
    "Plan the deployment; ask AWS what stands if it can be asked."
    bucket, zone, unknown = "", "", "" if asked else "needs credentials; everything counts as new"
    cloudformation = session.client("cloudformation") if asked else None
    if asked:
        try:
            bucket = stack_outputs(cloudformation, foundation_stack(settings))["ArtifactsBucket"]
        except LookupError:
            cloudformation = None  # without a foundation there is no engine either
    if domain:
        zone = (find_zone(session.client("route53"), domain) if asked else None) or "Z-of-the-domain"
    packages = package_keys(ROOT / "lambdas")
    more = {"DomainName": domain, "HostedZoneId": zone}
    given = {
        foundation_stack(settings): {"Prefix": settings.prefix},
        engine_stack(settings): stack_parameters(settings, bucket, packages, **more),
        monitoring_stack(settings): monitoring_parameters(settings, f"{settings.prefix}-dead-letters"),
    }
    return plan_of(settings, ROOT / "infra_scripts", given, cloudformation, session.region_name, unknown)


def _look(options: argparse.Namespace, settings: Settings, machines: Machines) -> tuple[boto3.Session, list[Finding]]:
    "Look at the account; a plan without a region is one for the region of the price table."
    session, chosen = connect("aws"), True
    if options.dry_run and not session.region_name:
        session, chosen = boto3.Session(region_name=PRICED_REGION), False
    found = check_account(session, settings, machines, options.domain or "", options.model_data or "")
    if not chosen:
        found[0] = Finding("region", None, f"none is chosen, so the plan is for {PRICED_REGION}: give --region")
    return session, found


def before(options: argparse.Namespace, machines: Machines) -> str:  # id of the domain's zone; empty without one
    "Print what is found and planned. Ends the program after a dry run, and where something is in the way."
    settings = settings_from(os.environ)
    if options.model_data or getattr(options, "model", None) == "released":
        machines = replace(machines, training="")
    session, findings = _look(options, settings, machines)
    print(*findings, sep="\n")
    problems = [f for f in findings if f.fine is False]
    if options.dry_run:
        credentials = any(f.what == "credentials" and f.fine for f in findings)
        _print_plan(options, settings, session, findings, credentials, machines.training)
        raise SystemExit(1 if problems else 0)
    unseen = [f for f in findings if f.fine is None and f.what == "credentials"]
    if problems or unseen:
        raise SystemExit("nothing was changed: " + "; ".join(f"{f.what}: {f.text}" for f in problems + unseen))
    return (find_zone(session.client("route53"), options.domain) or "") if options.domain else ""


def _print_plan(options, settings: Settings, session, findings: list[Finding], credentials: bool, training: str):
    "Print what would be done, what it costs and what nobody could look at."
    try:
        plan = _planned(settings, session, options.domain or "", credentials)
    except (ClientError, BotoCoreError, RuntimeError) as e:
        plan = _planned(settings, session, options.domain or "", False)
        plan = Plan(plan.changes, plan.resources, str(e))
    print(f"\nWhat would be done in {session.region_name}, by a change set where a stack stands:")
    print(*describe_plan(plan), sep="\n")
    print(f"\nWhat it costs, by the price table of nbs/07_costs.ipynb ({PRICED_REGION}):")
    print(*bill(plan, settings, training=training), sep="\n")
    print("\nWhat could not be checked:")
    print(*(unchecked(plan, findings) or ["nothing: everything was looked at"]), sep="\n")
    print("\nNothing was changed.")


def adopt_model(session: boto3.Session, settings: Settings, place: str) -> str:  # s3:// address of the artifact
    "Make an artifact that exists already the newest model. Raises ValueError if it holds no metrics."
    bucket = stack_outputs(session.client("cloudformation"), foundation_stack(settings))["ArtifactsBucket"]
    s3 = session.client("s3")
    with tempfile.TemporaryDirectory() as work:
        archive = Path(place)
        if place.startswith("s3://"):
            archive = Path(work) / "model.tar.gz"
            s3.download_file(*s3_place(place), str(archive))
        metrics, job = _metrics(archive), f"given-{model_version(artifact_hash(archive))}"
        key = f"models/{job}/output/model.tar.gz"
        s3.upload_file(str(archive), bucket, key)
    address = f"s3://{bucket}/{key}"
    pointer = {"job": job, "artifact": address, "metrics": metrics}
    s3.put_object(Bucket=bucket, Key=LATEST, Body=json.dumps(pointer).encode())
    return address


def _metrics(archive: Path) -> dict:
    "Read what an artifact scored."
    try:
        with tarfile.open(archive) as tar:
            return json.load(tar.extractfile("metrics.json"))
    except (OSError, KeyError, tarfile.TarError, ValueError) as e:
        raise ValueError(f"{archive.name} is no artifact with a metrics.json: {e}") from None
