"""What a deployment to AWS is told, looks at first and prints: for deploy.py and teardown.py."""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from sentiment_engine.commands import profile, region
from sentiment_engine.deploy.account import (
    Finding,
    check_account,
    check_credentials,
    find_stack,
    find_zone,
    mask_accounts,
    tags_of,
)
from sentiment_engine.deploy.endpoint import model_version
from sentiment_engine.deploy.foundation import foundation_parameters, site_parameters
from sentiment_engine.deploy.packaging import monitoring_parameters, package_keys, stack_parameters
from sentiment_engine.deploy.plan import Plan, Work, bill, describe_plan, plan_of, unchecked
from sentiment_engine.deploy.stacks import stack_outputs
from sentiment_engine.deploy.training import LATEST, s3_place
from sentiment_engine.model.artifact import artifact_hash, unpack
from sentiment_engine.settings import (
    Settings,
    connect,
    engine_stack,
    environment_of,
    foundation_stack,
    monitoring_stack,
    settings_from,
    site_stack,
)

ROOT = Path(__file__).resolve().parent.parent
PRICED_REGION = "us-east-1"  # of the price table, and what a plan is made for if no region is chosen
# Options that are settings, by the setting's name. They are handed on as SENTIMENT_… variables.
SETTINGS = ("endpoint", "instance_types", "idle_minutes", "sms_provider", "sms_countries", "textbelt_url")
SETTINGS += ("alarm_email", "sms_link")
ONLY_AWS = ("profile", "region", "domain", "dry_run", "firewall", "reserved_concurrency", "permissions_boundary")
# What boto3 would take before a profile that is only named in AWS_PROFILE.
BEFORE_A_PROFILE = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
BEFORE_A_PROFILE += ("AWS_DEFAULT_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE")
# What is remembered of a deployment beside the settings, so that the next one need not be told again.
REVIEWS, MODELS = ("data", "categories", "rows", "source"), ("model", "model_data")
TRAINING = ("base_model", "sample_rows", "training_instance")
REMEMBERED = ("domain", "permissions_boundary", *MODELS, *REVIEWS, *TRAINING)
CHOICES = "deployments/choices.json"  # key in the artifacts bucket
BEFORE = "as before"  # what the finding about them is called
GLUE_WORKERS = 10  # the default of infra_scripts/templates/foundation.yaml


def add_account_options(parser: argparse.ArgumentParser):
    "Add the options that say which account is meant, and which engine in it."
    parser.add_argument("--profile", type=profile, metavar="NAME", help="profile of the AWS command line")
    parser.add_argument("--region", type=region, metavar="NAME", help="AWS region, such as us-east-1")
    parser.add_argument("--stack-prefix", metavar="NAME", help="starts the name of all that is made, and tags it")


def add_variant_options(parser: argparse.ArgumentParser):
    "Add the options that say what kind of engine it becomes."
    add = parser.add_argument
    dry = "only say what would be done, what it costs and what is in the way"
    add("--dry-run", action="store_true", default=None, help=dry)
    add("--domain", metavar="NAME", help="a domain of your own for the page; its zone must be in Route 53 (us-east-1)")
    add("--permissions-boundary", metavar="ARN", help="a policy that no role of the engine may go beyond")
    add("--endpoint", choices=("realtime", "serverless"), help="an instance that is started, or paid by the request")
    add("--instance-types", metavar="NAMES", help="of the endpoint, in order of preference, with commas")
    add("--model-data", metavar="PLACE", help="a model.tar.gz, here or s3://…: nothing is cleaned or trained")
    add("--sms-provider", choices=("textbelt", "sns"), help="who sends the SMS")
    add("--sms-countries", metavar="CODES", help="countries whose numbers may get one, with commas")
    add("--textbelt-url", metavar="URL", help="Textbelt, or a server that speaks like it")
    add("--alarm-email", metavar="ADDRESS", help="who is written to when an alarm rings")
    switch = argparse.BooleanOptionalAction
    add(
        "--sms-link",
        action=switch,
        help="whether the SMS holds the page's address; Textbelt wants a cleared key for it",
    )
    add("--firewall", action=switch, help="let a firewall count each address's requests to the page ($6 a month)")
    add("--reserved-concurrency", action=switch, help="a share for each function; a new account has no room")


def chosen_environment(options: argparse.Namespace) -> dict[str, str]:
    "Turn the options into environment variables, which the notebooks read. Raises ValueError for a nonsense setting."
    given = {"SENTIMENT_" + name.upper(): getattr(options, name, None) for name in SETTINGS}
    given["SENTIMENT_PREFIX"] = options.stack_prefix
    if options.stack_prefix not in (None, Settings().prefix) and "SENTIMENT_TABLE" not in os.environ:
        given["SENTIMENT_TABLE"] = f"{options.stack_prefix}-state"  # two engines in one account share no table
    given["SENTIMENT_FIREWALL"] = getattr(options, "firewall", None)
    given["SENTIMENT_RESERVE_CONCURRENCY"] = getattr(options, "reserved_concurrency", None)
    given["AWS_PROFILE"] = options.profile
    given |= dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), options.region)
    given = {name: str(value).lower() if isinstance(value, bool) else value for name, value in given.items()}
    chosen = {name: str(value) for name, value in given.items() if value is not None}
    settings_from(os.environ | chosen)
    return chosen


def enter(chosen: Mapping[str, str]):
    "Lead boto3 and the settings, here and in the notebooks, to what was chosen: to the profile, if one was named."
    if "AWS_PROFILE" in chosen:
        for name in BEFORE_A_PROFILE:
            os.environ.pop(name, None)
    os.environ.update(chosen)


def whose() -> str:
    "Say who would act, in which account and where. Raises ValueError, ClientError or BotoCoreError if nobody can."
    session = connect("aws")
    if not session.region_name:
        raise ValueError("no region is chosen: give --region, such as us-east-1")
    return f"{check_credentials(session).text}, region {session.region_name}"


def _kept(session: boto3.Session, settings: Settings) -> dict:  # options and settings; empty: nothing is known
    "Read how the engine that stands was asked for."
    found = find_stack(session.client("cloudformation"), foundation_stack(settings))
    if not found or tags_of(found).get("Project") != settings.prefix:
        return {}
    outputs = {o["OutputKey"]: o["OutputValue"] for o in found.get("Outputs", [])}
    try:
        return json.load(session.client("s3").get_object(Bucket=outputs["ArtifactsBucket"], Key=CHOICES)["Body"])
    except KeyError:
        return {}  # the foundation never came up
    except ClientError as e:
        if e.response["Error"]["Code"] in ("NoSuchKey", "NoSuchBucket", "404"):
            return {}
        raise


def _fitting(options: argparse.Namespace, kept: Mapping[str, object]) -> dict[str, object]:
    "Leave out what was said anew and what does not go with it: a model that is given is not trained."
    anew = {name for name in REMEMBERED if getattr(options, name, None) is not None}
    for group in (REVIEWS, MODELS):
        anew |= set(group) if anew & set(group) else set()
    left = {name: value for name, value in kept.items() if name in REMEMBERED and name not in anew}
    of_training = {*REVIEWS, *TRAINING}
    if options.model == "released" or options.model_data:
        return {name: value for name, value in left.items() if name not in of_training}
    if anew & of_training:
        return {n: value for n, value in left.items() if n != "model_data" and (n, value) != ("model", "released")}
    return left


def recall(options: argparse.Namespace) -> Finding:
    "Complete options and environment by what the engine that stands was asked for; what is said now wins."
    try:
        kept = _kept(connect("aws"), settings_from(os.environ))
    except (ClientError, BotoCoreError) as e:
        return Finding(BEFORE, None, str(e))
    settings = {name: value for name, value in kept.get("settings", {}).items() if _silent(name, value)}
    chosen = _fitting(options, kept.get("options", {}))
    for name, value in chosen.items():
        setattr(options, name, value)
    os.environ.update(settings)
    said = [f"--{name.replace('_', '-')} {value}" for name, value in chosen.items()]
    said += [f"{name}={value}" for name, value in settings.items()]
    if not said:
        return Finding(BEFORE, True, "nothing was chosen earlier that is not said now")
    return Finding(BEFORE, True, f"{', '.join(said)} (say it anew to change it; --domain '' takes a domain back)")


def _silent(name: str, value: str) -> bool:
    "Tell whether nothing is said now about a setting that was `value`."
    # A table's name that only follows from the prefix was not said.
    derived = f"{os.environ.get('SENTIMENT_PREFIX')}-state" if name == "SENTIMENT_TABLE" else None
    return os.environ.get(name) in (None, derived) and os.environ.get(name) != value


def asked_for(options: argparse.Namespace) -> dict:
    "Say what is to be remembered of a deployment."
    chosen = {name: getattr(options, name, None) for name in REMEMBERED}
    for name in ("data", "model_data"):  # wherever the next one is asked for
        if chosen[name] and not chosen[name].startswith("s3://"):
            chosen[name] = str(Path(chosen[name]).expanduser().resolve())
    settings = environment_of(settings_from(os.environ))
    settings.pop("SENTIMENT_PREFIX", None)  # by which it is found
    return {"options": {name: value for name, value in chosen.items() if value}, "settings": settings}


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace):
    "End the program if an option was given that means nothing on this machine, or an artifact that is not there."
    place = getattr(options, "model_data", None) or "s3://"
    if not place.startswith("s3://") and not Path(place).is_file():
        parser.error(f"--model-data: {place} is no file")
    if getattr(options, "model_data", None) and getattr(options, "model", None):
        parser.error("--model-data says what to deploy: leave --model out")
    for name in ONLY_AWS:
        if options.target == "local" and getattr(options, name, None) is not None:
            parser.error(f"--{name.replace('_', '-')} is for --target aws")


def planned(options: argparse.Namespace, settings: Settings, session: boto3.Session, asked: bool) -> Plan:
    "Plan the deployment; ask AWS what stands if it can be asked."
    domain, boundary = options.domain or "", options.permissions_boundary or ""
    bucket, zone, unknown = "", "", "" if asked else "needs credentials; everything counts as new"
    cloudformation = session.client("cloudformation") if asked else None
    if asked:
        try:
            bucket = stack_outputs(cloudformation, foundation_stack(settings))["ArtifactsBucket"]
        except LookupError:
            cloudformation = None  # without a foundation there is no engine either
    if domain:
        zone = (find_zone(session.client("route53"), domain) if asked else None) or "Z-of-the-domain"
    packages, site = package_keys(ROOT / "lambdas"), _site_origins(cloudformation, settings, domain)
    more = {"PermissionsBoundary": boundary}
    given = {
        foundation_stack(settings): foundation_parameters(settings, boundary),
        site_stack(settings): site_parameters(settings, domain, zone),
        engine_stack(settings): stack_parameters(settings, bucket, packages, site, **more),
        monitoring_stack(settings): _monitoring(cloudformation, settings, session.region_name),
    }
    return plan_of(settings, ROOT / "infra_scripts/templates", given, cloudformation, session.region_name, unknown)


def _outputs(cloudformation, stack: str) -> dict[str, str]:  # cloudformation: None: not asked
    "Read what a stack tells of itself; nothing if it does not stand."
    try:
        return stack_outputs(cloudformation, stack) if cloudformation else {}
    except LookupError:
        return {}


def _monitoring(cloudformation, settings: Settings, region: str) -> dict[str, str]:
    "Say what the alarms' template is told; what watches the engine is known once the engine stands."
    api = _outputs(cloudformation, engine_stack(settings)).get("ApiId", "the-api")
    distribution = _outputs(cloudformation, site_stack(settings)).get("DistributionId", "the-page")
    return monitoring_parameters(settings, f"{settings.prefix}-dead-letters", api, distribution, region)


def _site_origins(cloudformation, settings: Settings, domain: str) -> dict[str, str]:  # cloudformation: None: not asked
    "Read where the page is or will be; the address at CloudFront is known once the site stands."
    found = _outputs(cloudformation, site_stack(settings))
    at_cloudfront = found.get("DistributionOrigin", "https://the-page.cloudfront.net")
    return {"DistributionOrigin": at_cloudfront, "SiteOrigin": f"https://{domain}" if domain else at_cloudfront}


def _look(
    options: argparse.Namespace, settings: Settings, training: str, trial: bool
) -> tuple[boto3.Session, list[Finding]]:
    "Look at the account; a plan without a region is one for the region of the price table."
    session, chosen = connect("aws"), True
    if options.dry_run and not session.region_name:
        session, chosen = boto3.Session(region_name=PRICED_REGION), False
    found = check_account(session, settings, training, options.domain or "", options.model_data or "", trial)
    if not chosen:
        found[0] = Finding("region", None, f"none is chosen, so the plan is for {PRICED_REGION}: give --region")
    return session, found


def places(options: argparse.Namespace, asked: bool = True) -> dict[str, str]:  # asked: whether AWS can be asked
    "Return the notebooks' parameters of domain and boundary; those that were not chosen are left out."
    found = {"permissions_boundary": options.permissions_boundary} if options.permissions_boundary else {}
    if options.domain and asked and (zone := find_zone(connect("aws").client("route53"), options.domain)):
        found |= {"domain_name": options.domain, "hosted_zone_id": zone}
    return found


def _upcoming(phases: Callable[[bool], list[str]], asked: bool) -> tuple[list[str], str]:
    "Name the notebooks that are to run; where nobody can be asked, all, and why."
    if asked:
        try:
            return phases(True), ""
        except (ClientError, BotoCoreError) as e:
            return phases(False), str(e)
    return phases(False), "needs credentials; all count as new"


def before(
    options: argparse.Namespace,
    training: str,  # instance type of the training job
    known: Finding,  # from `recall`
    phases: Callable[[bool], list[str]],  # whether AWS can be asked → titles of the notebooks that are to run
):
    "Print what is found and planned. Ends the program after a dry run, and where something is in the way."
    settings = settings_from(os.environ)
    titles, unseen = _upcoming(phases, known.fine is not None)
    numbers = {title[:2] for title in titles}
    training = training if "03" in numbers else ""
    session, findings = _look(options, settings, training, "04" in numbers)
    findings += [known, Finding("notebooks", None, unseen)] if unseen else [known]
    told = [f for f in findings if f.fine is not None or not options.dry_run]  # the rest ends the plan of a dry run
    if told:
        print(*told, "", sep="\n")
    print(f"Notebooks that {'would' if options.dry_run else 'will'} run: {', '.join(titles) or 'none'}")
    problems = [f for f in findings if f.fine is False]
    if options.dry_run:
        asked = any(f.what == "credentials" and f.fine for f in findings)
        work = Work(GLUE_WORKERS if "01" in numbers else 0, training, "04" in numbers)
        _print_plan(options, settings, session, findings, asked, work)
        raise SystemExit(1 if problems else 0)
    missing = [f for f in findings if f.fine is None and f.what in ("credentials", BEFORE)]
    if problems or missing:
        raise SystemExit("nothing was changed: " + "; ".join(f"{f.what}: {f.text}" for f in problems + missing))


def _print_plan(options, settings: Settings, session, findings: list[Finding], asked: bool, work: Work):
    "Print what would be done, what it costs and what nobody could look at."
    try:
        plan = planned(options, settings, session, asked)
    except (ClientError, BotoCoreError, RuntimeError) as e:
        plan = replace(planned(options, settings, session, False), unknown=mask_accounts(str(e)))
    print(f"\nWhat would be done in {session.region_name}, by a change set where a stack stands:")
    print(*describe_plan(plan), sep="\n")
    print(f"\nWhat it costs, by the price table of nbs/costs.ipynb ({PRICED_REGION}):")
    print(*bill(plan, settings, work), sep="\n")
    print("\nWhat could not be checked:")
    print(*(unchecked(plan, findings) or ["nothing: everything was looked at"]), sep="\n")
    print("\nNothing was changed.")


def is_adopted(place: str) -> bool:
    "Tell whether a model that is given has been taken already: it is where `adopt_model` puts one."
    return place.startswith("s3://") and "/models/given-" in place


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
        with tempfile.TemporaryDirectory() as work:
            return json.loads((unpack(archive, Path(work)) / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ValueError(f"{archive.name} is no artifact with a metrics.json: {e}") from None
