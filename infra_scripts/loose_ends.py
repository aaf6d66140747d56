"""What a deployment that was cut off leaves up, what that costs and how to end it: for deploy.py and teardown.py.

Whoever presses Ctrl-C ends this program, not what it has asked AWS for. The kernel of the notebook is killed within
seconds, and SageMaker lets nobody delete an endpoint that is being created; so it is waited for here.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from sentiment_engine.aws_errors import is_missing
from sentiment_engine.costs import GLUE_DPU_HOUR, price_per_hour
from sentiment_engine.deploy.account import mask_accounts
from sentiment_engine.deploy.endpoint import delete_trials
from sentiment_engine.deploy.stacks import find_stack, is_our_stack, outputs_of
from sentiment_engine.sagemaker import our_names
from sentiment_engine.service.lifecycle import run_of
from sentiment_engine.settings import Settings, connect, foundation_stack, settings_from, trial_name

GOING = ("STARTING", "RUNNING", "WAITING", "STOPPING")  # states of a Glue run that is not over
UNKNOWN = (ClientError, BotoCoreError, RuntimeError, TimeoutError, LookupError)


@dataclass(frozen=True)
class Up:
    "Something of ours that is paid for as long as it is up."

    what: str
    price: str
    then: str  # what becomes of it if nobody does anything
    end: str  # the command that ends it

    def __str__(self) -> str:
        return f"still up  {self.what} ({self.price}): {self.then}. To end it:\n          {self.end}"


def training_jobs(sagemaker, settings: Settings, status: str = "InProgress") -> list[str]:
    "Name our training jobs of a status."
    return our_names(sagemaker, settings, "training_job", f"{settings.prefix}-training-", StatusEquals=status)


def _glue_job(session: boto3.Session, settings: Settings) -> str:  # empty: none of ours stands
    "Find the name of our Glue job."
    stack = find_stack(session.client("cloudformation"), foundation_stack(settings))
    return outputs_of(stack).get("GlueJob", "") if is_our_stack(stack, settings) else ""


def glue_runs(session: boto3.Session, settings: Settings) -> tuple[str, dict[str, dict]]:  # job, and its runs by id
    "Find the runs of our Glue job that are not over."
    if not (job := _glue_job(session, settings)):
        return "", {}
    pages = session.client("glue").get_paginator("get_job_runs").paginate(JobName=job)
    try:
        return job, {run["Id"]: run for run in pages.search("JobRuns[]") if run and run["JobRunState"] in GOING}
    except ClientError as e:
        if is_missing(e):  # the stack is being deleted
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
    return f"{kind}, ${price} an hour" if price else f"{kind}, which the price table does not know"


def _flags(session: boto3.Session) -> str:
    "Write the options by which the command line of AWS reaches the same account and region."
    profile = os.environ.get("AWS_PROFILE")
    return f" --region {session.region_name}" + (f" --profile {profile}" if profile else "")


def _end_of(name: str, status: str, flags: str) -> str:
    "Write the command that deletes an endpoint; SageMaker refuses while it is at work on it."
    delete = f"aws sagemaker delete-endpoint --endpoint-name {name}{flags}"
    if status == "InService":
        return delete
    return f"aws sagemaker wait endpoint-in-service --endpoint-name {name}{flags}; {delete}"


def endpoints_up(session: boto3.Session, settings: Settings) -> Iterator[Up]:
    "Find our endpoints that are paid by the hour."
    sagemaker = session.client("sagemaker")
    for name in our_names(sagemaker, settings, "endpoint", f"{settings.prefix}-"):
        found = sagemaker.describe_endpoint(EndpointName=name)
        config = sagemaker.describe_endpoint_config(EndpointConfigName=found["EndpointConfigName"])
        kind, status = config["ProductionVariants"][0].get("InstanceType"), found["EndpointStatus"]
        then = "a visitor's, which the engine ends" if run_of(settings, name) else "only an engine that stands ends it"
        if kind and status != "Deleting":  # a serverless one is paid by the request
            yield Up(f"endpoint {name}", _hourly(kind), then, _end_of(name, status, _flags(session)))


def jobs_up(session: boto3.Session, settings: Settings) -> Iterator[Up]:
    "Find our training jobs and Glue runs."
    sagemaker = session.client("sagemaker")
    for name in training_jobs(sagemaker, settings):
        kind = sagemaker.describe_training_job(TrainingJobName=name)["ResourceConfig"]["InstanceType"]
        end = f"aws sagemaker stop-training-job --training-job-name {name}{_flags(session)}"
        yield Up(f"training job {name}", _hourly(kind), "the next run goes on with it", end)
    job, runs = glue_runs(session, settings)
    for name, run in runs.items():
        price = f"${GLUE_DPU_HOUR} an hour for each of at most {run.get('NumberOfWorkers', 'its')} workers"
        end = f"aws glue batch-stop-job-run --job-name {job} --job-run-ids {name}{_flags(session)}"
        yield Up(f"Glue run {name}", price, "the next run cannot clean reviews meanwhile", end)


def _end_trials(session: boto3.Session, settings: Settings) -> Iterator[str]:
    "Delete the trial endpoint; one that is being created, as soon as it is up."
    sagemaker = session.client("sagemaker")
    for name in our_names(sagemaker, settings, "endpoint", trial_name(settings, "")):
        yield f"deleting  trial endpoint {name}: if it is being created, once it is up (minutes; Ctrl-C leaves it)"
    delete_trials(sagemaker, settings)


def _stop_cleaning(session: boto3.Session, settings: Settings) -> Iterator[str]:
    "Stop what nobody will read: a Glue run whose notebook is gone."
    for name in stop_glue(session, settings):
        yield f"stopped   Glue run {name}"


def _say_rest(session: boto3.Session, settings: Settings) -> Iterator[str]:
    "Name what is still up."
    for find in (endpoints_up, jobs_up):
        yield from map(str, find(session, settings))


def say(text: str = ""):
    "Print a line. A reader or a disk that is gone must end neither a teardown nor the tidying up."
    with suppress(OSError, ValueError):
        print(text, flush=True)


def tie_up(target: str, interrupted: bool):
    "End what the deployment would have ended, and say what else is up. Raises nothing: there is an error to be told."
    steps = [_end_trials] + [_stop_cleaning] * interrupted + [_say_rest] * (target == "aws")
    try:
        session, settings = connect(target), settings_from(os.environ)
    except ValueError:
        return  # then nothing can have been started either
    for step in steps:
        _take(step(session, settings))


def _take(lines: Iterator[str]):
    "Print lines as they come; a second Ctrl-C leaves the rest."
    try:
        for line in lines:
            say(line)
    except KeyboardInterrupt:
        say("          left as it is")
    except UNKNOWN as e:
        where = "look at endpoints and training jobs in SageMaker's console"
        say(f"unknown   what is still up could not be found out, {where}: {mask_accounts(str(e))}")
