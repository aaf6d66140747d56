"""Delete everything a deployment made, endpoints first, and say what is kept and why; safe to repeat.

What is ours carries the tag Project with the prefix as its value, or a name that only we give. Nothing else is touched.
"""

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import boto3
from aws_target import ROOT, add_account_options, check_options, chosen_environment, enter, whose
from botocore.exceptions import BotoCoreError, ClientError
from deploy import FAILURES, add_ports, explain, local_cloud, stop_on_signals
from loose_ends import glue_runs, say, stop_glue, training_jobs

from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser
from sentiment_engine.deploy.account import find_stack, mask_accounts, tags_of
from sentiment_engine.deploy.endpoint import delete_endpoint, our_names
from sentiment_engine.deploy.stacks import delete_stack, empty_bucket
from sentiment_engine.polling import ask
from sentiment_engine.settings import (
    Settings,
    connect,
    engine_stack,
    foundation_stack,
    model_parameter,
    monitoring_stack,
    settings_from,
    site_stack,
    textbelt_key_parameter,
)

KEPT = "kept"  # the kind of what is not deleted


def _missing(error: ClientError) -> bool:
    "Tell whether AWS says that the thing is not there, in any of its ways."
    code, text = error.response["Error"]["Code"], str(error)
    return "NotFound" in code or "NoSuch" in code or "Could not find" in text or "does not exist" in text


def _delete_each(names: Iterable[str], delete: Callable[[str], object]) -> list[str]:
    "Delete every one of `names`; one that has gone by itself is fine."
    gone = []
    for name in names:
        try:
            delete(name)
            gone.append(name)
        except ClientError as e:
            if not _missing(e):
                raise
    return gone


def delete_endpoints(session: boto3.Session, settings: Settings) -> Iterator[tuple[str, list[str]]]:
    "Delete endpoints and endpoint configs that are ours by name and tag, and wait until they are gone."
    sagemaker = session.client("sagemaker")
    for title, kind in (("Endpoints", "endpoint"), ("EndpointConfigs", "endpoint_config")):
        names = our_names(sagemaker, settings, kind, f"{settings.prefix}-")
        yield title, _delete_each(iter(names), lambda n: delete_endpoint(sagemaker, n))


def delete_models(session: boto3.Session, settings: Settings) -> Iterator[tuple[str, list[str]]]:
    "Delete registered models that are ours by name and tag."
    sagemaker = session.client("sagemaker")
    names = our_names(sagemaker, settings, "model", f"{settings.prefix}-")
    yield "Models", _delete_each(iter(names), lambda n: sagemaker.delete_model(ModelName=n))


def _buckets(cloudformation, stack: str) -> list[str]:
    "Name the buckets of a stack, also of one that was never finished."
    pages = cloudformation.get_paginator("list_stack_resources").paginate(StackName=stack)
    found = pages.search("StackResourceSummaries[?ResourceType=='AWS::S3::Bucket'].PhysicalResourceId")
    return [name for name in found if name]


def _delete_whole(session: boto3.Session, settings: Settings, stack: str) -> Iterator[tuple[str, list[str]]]:
    "Empty the buckets of a stack and delete it, if its tags say that it is ours."
    cloudformation, s3 = session.client("cloudformation"), session.client("s3")
    if not (found := find_stack(cloudformation, stack)):
        return
    if tags_of(found).get("Project") != settings.prefix:
        yield KEPT, [f"stack {stack}: it has no tag Project={settings.prefix}, so it is somebody else's"]
        return
    there = [b for b in _buckets(cloudformation, stack) if _bucket_exists(s3, b)]
    yield f"buckets of {stack}", [f"{b}: {empty_bucket(s3, b)} objects" for b in there]
    yield "stacks", [stack] if delete_stack(cloudformation, stack) else []


def delete_engine(session: boto3.Session, settings: Settings) -> Iterator[tuple[str, list[str]]]:
    "Delete the engine: from then on nobody can press Start."
    yield from _delete_whole(session, settings, monitoring_stack(settings))
    yield from _delete_whole(session, settings, engine_stack(settings))


def delete_site(session: boto3.Session, settings: Settings) -> Iterator[tuple[str, list[str]]]:
    "Delete the page, its bucket and its CloudFront distribution, which takes minutes."
    return _delete_whole(session, settings, site_stack(settings))


def delete_foundation(session: boto3.Session, settings: Settings) -> Iterator[tuple[str, list[str]]]:
    "Delete what the engine stood on."
    return _delete_whole(session, settings, foundation_stack(settings))


def _bucket_exists(s3, bucket: str) -> bool:
    try:
        s3.head_bucket(Bucket=bucket)
        return True
    except ClientError:
        return False


def our_log_groups(settings: Settings, names: Iterable[str]) -> list[str]:
    "Pick the log groups of our functions and endpoints; another engine's prefix may begin with ours."
    functions = "|".join(re.escape(path.parent.name) for path in ROOT.glob("lambdas/*/handler.py"))
    prefix, run = re.escape(settings.prefix), "(trial-)?[0-9a-f]{12}|serverless"
    ours = re.compile(f"/aws/lambda/{prefix}-({functions})|/aws/sagemaker/Endpoints/{prefix}-({run})")
    return [name for name in names if ours.fullmatch(name)]


def delete_leftovers(session: boto3.Session, settings: Settings) -> Iterator[tuple[str, list[str]]]:
    "Delete what belongs to no stack: our two parameters and the log groups that services made."
    ssm, logs = session.client("ssm"), session.client("logs")
    pages = ssm.get_paginator("describe_parameters").paginate(
        ParameterFilters=[{"Key": "Name", "Option": "BeginsWith", "Values": [f"/{settings.prefix}/"]}]
    )
    found = set(pages.search("Parameters[].Name"))
    ours = found & {model_parameter(settings), textbelt_key_parameter(settings)}
    yield "parameters", _delete_each(sorted(ours), lambda n: ssm.delete_parameter(Name=n))
    yield KEPT, [f"parameter {name}: no deployment has made it" for name in sorted(found - ours)]
    for start in (f"/aws/lambda/{settings.prefix}-", f"/aws/sagemaker/Endpoints/{settings.prefix}-"):
        groups = logs.get_paginator("describe_log_groups").paginate(logGroupNamePrefix=start)
        names = our_log_groups(settings, groups.search("logGroups[].logGroupName"))
        yield "log groups", _delete_each(names, lambda n: logs.delete_log_group(logGroupName=n))


SHARED_LOGS = ("/aws-glue/", "/aws/sagemaker/TrainingJobs")


def look_at_rest(session: boto3.Session, settings: Settings) -> Iterator[tuple[str, list[str]]]:
    "Say what cannot or must not be deleted."
    logs, sagemaker = session.client("logs"), session.client("sagemaker")
    for start in SHARED_LOGS:
        pages = logs.get_paginator("describe_log_groups").paginate(logGroupNamePrefix=start)
        names = list(pages.search("logGroups[].logGroupName"))
        yield KEPT, [f"log group {name}: all Glue and training jobs of the account write there" for name in names]
    pages = sagemaker.get_paginator("list_training_jobs").paginate(NameContains=f"{settings.prefix}-training")
    jobs = [j for j in pages.search("TrainingJobSummaries[]") if j]
    if jobs:
        yield KEPT, [f"the records of {len(jobs)} training jobs: SageMaker lets nobody delete them, and they are free"]


def _stop_training(sagemaker, name: str):
    "Stop a training job, unless it has ended meanwhile."
    try:
        sagemaker.stop_training_job(TrainingJobName=name)
    except ClientError as e:
        if "in status" not in str(e):
            raise


def stop_jobs(session: boto3.Session, settings: Settings) -> Iterator[tuple[str, list[str]]]:
    "Stop what a deployment that was cut off may have left running: training jobs and runs of the Glue job."
    sagemaker = session.client("sagemaker")
    names = training_jobs(sagemaker, settings)
    yield "running training jobs", _delete_each(iter(names), lambda n: _stop_training(sagemaker, n))
    yield "running Glue jobs", stop_glue(session, settings)


def wait_for_jobs(
    session: boto3.Session,
    settings: Settings,
    timeout: float = 1800,  # seconds
) -> Iterator[tuple[str, list[str]]]:  # nothing
    "Wait until no job writes any more: a bucket that is written to cannot be deleted. Raises TimeoutError."
    sagemaker, start, delay = session.client("sagemaker"), time.monotonic(), 0.25

    def working() -> list[str]:
        training = [training_jobs(sagemaker, settings, status) for status in ("InProgress", "Stopping")]
        return [*chain(*training), *glue_runs(session, settings)[1]]

    while left := ask(working):
        if time.monotonic() - start > timeout:
            raise TimeoutError(f"{', '.join(left)} has not stopped after {timeout:.0f} s")
        time.sleep(delay := min(delay * 1.5, 15))
    return iter(())


def teardown(target: str) -> list[tuple[str, str]]:  # (kind, name) of what was deleted
    "Delete all of ours in the cloud the environment names."
    session, settings, deleted = connect(target), settings_from(os.environ), []
    # What costs goes first; and once more when the engine is gone, for somebody may press Start meanwhile.
    steps = (
        stop_jobs,
        delete_endpoints,
        delete_engine,
        delete_endpoints,
        delete_models,
        stop_jobs,
        delete_site,
        wait_for_jobs,
        delete_foundation,
        delete_leftovers,
        look_at_rest,
    )
    for step in steps:
        for kind, names in step(session, settings):
            for name in names:
                say(f"kept     {name}" if kind == KEPT else f"deleted  {kind:24} {name}")
                deleted += [] if kind == KEPT else [(kind, name)]
    return deleted


def _typed(question: str) -> str:
    "Ask; where nobody can answer, or wants to, that is no."
    try:
        return input(question)
    except (EOFError, KeyboardInterrupt):
        return ""


def _make_sure(yes: bool):  # yes: nobody need be asked
    "Say what would be deleted where, and end the program if nobody wants that."
    prefix = settings_from(os.environ).prefix
    try:
        say(f"This deletes everything of the engine {prefix!r}, the reviews and models included, as {whose()}.")
    except (ValueError, ClientError, BotoCoreError) as e:
        sys.exit(f"nothing was deleted: {mask_accounts(str(e))}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Nothing was deleted.")
    if not yes and _typed("Type the prefix to go on: ") != prefix:
        sys.exit("nothing was deleted")


@tells_cause
def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--target", choices=("local", "aws"), default="local", help="the cloud to clear")
    add_account_options(parser)
    add_ports(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask before deleting from AWS")
    options = parser.parse_args()
    check_options(parser, options)
    stop_on_signals()
    try:
        chosen = chosen_environment(options)
    except ValueError as e:
        sys.exit(str(e))
    enter(chosen)
    if options.target == "aws":
        _make_sure(options.yes)
    try:
        if options.target == "local":
            with local_cloud(ports=options):
                os.environ.update(chosen)
                deleted = teardown("local")
        else:
            deleted = teardown("aws")
    except ValueError as e:
        sys.exit(str(e))
    except FAILURES as e:
        sys.exit(f"{explain(e)}\nWhat was deleted is gone; run it again for the rest.")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. What was deleted is gone; run it again for the rest.")
    say(f"{len(deleted)} things deleted." if deleted else "Nothing of ours is left.")


if __name__ == "__main__":
    main()
