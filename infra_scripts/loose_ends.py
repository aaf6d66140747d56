"""Find what an interrupted deployment left running, what it costs and how to end it, for deploy.py and teardown.py.

Ctrl-C ends the program, not the work that it has started in AWS. The kernel of the notebook is killed within seconds,
and SageMaker cannot delete an endpoint during its creation, so this module waits for it.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from sentiment_engine.costs import GLUE_DPU_HOUR, price_per_hour
from sentiment_engine.deploy.account import find_stack, mask_accounts, tags_of
from sentiment_engine.deploy.endpoint import delete_trials, our_names
from sentiment_engine.service.lifecycle import run_of
from sentiment_engine.settings import Settings, connect, foundation_stack, settings_from, trial_name

GOING = ("STARTING", "RUNNING", "WAITING", "STOPPING")  # states of an unfinished Glue run
UNKNOWN = (ClientError, BotoCoreError, RuntimeError, TimeoutError, LookupError)


@dataclass(frozen=True)
class Up:
    "A resource of the engine that costs money while it runs."

    what: str
    price: str
    then: str  # what happens to it without action
    end: str  # the command that ends it

    def __str__(self) -> str:
        return f"still up  {self.what} ({self.price}): {self.then}. To end it:\n          {self.end}"


def training_jobs(sagemaker, settings: Settings, status: str = "InProgress") -> list[str]:
    "List our training jobs with a status."
    return our_names(sagemaker, settings, "training_job", f"{settings.prefix}-training-", StatusEquals=status)


def _glue_job(session: boto3.Session, settings: Settings) -> str:  # empty: there is none
    "Return the name of our Glue job."
    stack = find_stack(session.client("cloudformation"), foundation_stack(settings)) or {}
    ours = tags_of(stack).get("Project") == settings.prefix
    outputs = {o["OutputKey"]: o["OutputValue"] for o in stack.get("Outputs", ())}
    return outputs.get("GlueJob", "") if ours else ""


def glue_runs(session: boto3.Session, settings: Settings) -> tuple[str, dict[str, dict]]:  # job, and its runs by id
    "Return the unfinished runs of our Glue job."
    if not (job := _glue_job(session, settings)):
        return "", {}
    pages = session.client("glue").get_paginator("get_job_runs").paginate(JobName=job)
    try:
        return job, {run["Id"]: run for run in pages.search("JobRuns[]") if run and run["JobRunState"] in GOING}
    except ClientError as e:
        if e.response["Error"]["Code"] == "EntityNotFoundException":  # the stack is being deleted
            return "", {}
        raise


def stop_glue(session: boto3.Session, settings: Settings) -> list[str]:  # ids of the runs
    "Stop the runs of our Glue job."
    job, runs = glue_runs(session, settings)
    stopped = [name for name, run in runs.items() if run["JobRunState"] != "STOPPING"]
    if stopped:
        session.client("glue").batch_stop_job_run(JobName=job, JobRunIds=stopped)
    return stopped


def _hourly(kind: str) -> str:
    price = price_per_hour(kind)
    return f"{kind}, ${price} an hour" if price else f"{kind}, which is not in the price table"


def _flags(session: boto3.Session) -> str:
    "Return the options that point the AWS command line to the same account and region."
    profile = os.environ.get("AWS_PROFILE")
    return f" --region {session.region_name}" + (f" --profile {profile}" if profile else "")


def _end_of(name: str, status: str, flags: str) -> str:
    "Return the command that deletes an endpoint. SageMaker refuses while it changes the endpoint."
    delete = f"aws sagemaker delete-endpoint --endpoint-name {name}{flags}"
    if status == "InService":
        return delete
    return f"aws sagemaker wait endpoint-in-service --endpoint-name {name}{flags}; {delete}"


def endpoints_up(session: boto3.Session, settings: Settings) -> Iterator[Up]:
    "Find our endpoints that cost money by the hour."
    sagemaker = session.client("sagemaker")
    for name in our_names(sagemaker, settings, "endpoint", f"{settings.prefix}-"):
        found = sagemaker.describe_endpoint(EndpointName=name)
        config = sagemaker.describe_endpoint_config(EndpointConfigName=found["EndpointConfigName"])
        kind, status = config["ProductionVariants"][0].get("InstanceType"), found["EndpointStatus"]
        then = "for visitors; the engine deletes it" if run_of(settings, name) else "only a deployed engine deletes it"
        if kind and status != "Deleting":  # a serverless one costs money per request
            yield Up(f"endpoint {name}", _hourly(kind), then, _end_of(name, status, _flags(session)))


def jobs_up(session: boto3.Session, settings: Settings) -> Iterator[Up]:
    "Find our training jobs and Glue runs."
    sagemaker = session.client("sagemaker")
    for name in training_jobs(sagemaker, settings):
        kind = sagemaker.describe_training_job(TrainingJobName=name)["ResourceConfig"]["InstanceType"]
        end = f"aws sagemaker stop-training-job --training-job-name {name}{_flags(session)}"
        yield Up(f"training job {name}", _hourly(kind), "the next run continues it", end)
    job, runs = glue_runs(session, settings)
    for name, run in runs.items():
        price = f"${GLUE_DPU_HOUR} an hour for each of at most {run.get('NumberOfWorkers', 'its')} workers"
        end = f"aws glue batch-stop-job-run --job-name {job} --job-run-ids {name}{_flags(session)}"
        yield Up(f"Glue run {name}", price, "until then, the next run cannot clean reviews", end)


def _end_trials(session: boto3.Session, settings: Settings) -> Iterator[str]:
    "Delete the trial endpoint, after its creation if that is in progress."
    sagemaker = session.client("sagemaker")
    for name in our_names(sagemaker, settings, "endpoint", trial_name(settings, "")):
        yield f"deleting  trial endpoint {name}: if it is being created, once it is up (minutes; Ctrl-C leaves it)"
    delete_trials(sagemaker, settings)


def _stop_cleaning(session: boto3.Session, settings: Settings) -> Iterator[str]:
    "Stop a Glue run whose notebook has ended."
    for name in stop_glue(session, settings):
        yield f"stopped   Glue run {name}"


def _say_rest(session: boto3.Session, settings: Settings) -> Iterator[str]:
    "List what is still running."
    for find in (endpoints_up, jobs_up):
        yield from map(str, find(session, settings))


def say(text: str = ""):
    "Print a line. A closed terminal or a full disk must not stop a teardown or a cleanup."
    with suppress(OSError, ValueError):
        print(text, flush=True)


def tie_up(target: str, interrupted: bool):
    "Delete the trial and list what else is running. Raises nothing, because the first error must be shown."
    steps = [_end_trials] + [_stop_cleaning] * interrupted + [_say_rest] * (target == "aws")
    try:
        session, settings = connect(target), settings_from(os.environ)
    except ValueError:
        return  # then nothing can have been started
    for step in steps:
        _take(step(session, settings))


def _take(lines: Iterator[str]):
    "Print lines as they come; a second Ctrl-C skips the rest."
    try:
        for line in lines:
            say(line)
    except KeyboardInterrupt:
        say("          left as it is")
    except UNKNOWN as e:
        where = "look at endpoints and training jobs in SageMaker's console"
        say(f"unknown   what is still up could not be found out, {where}: {mask_accounts(str(e))}")
