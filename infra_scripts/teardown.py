"""Delete everything a deployment made, endpoints first; safe to repeat. Nothing else is ever touched."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator

import boto3
from botocore.exceptions import ClientError
from deploy import local_cloud

from sentiment_engine.settings import Settings, connect, engine_stack, foundation_stack, settings_from
from sentiment_engine.stacks import delete_stack, empty_bucket, stack_outputs

TAG = {"Key": "Project"}  # what carries it, with the prefix as its value, is ours


def _missing(error: ClientError) -> bool:
    "Tell whether AWS says that the thing is not there, in any of its ways."
    code, text = error.response["Error"]["Code"], str(error)
    return "NotFound" in code or "NoSuch" in code or "Could not find" in text or "does not exist" in text


def _delete_each(names: Iterator[str], delete: Callable[[str], object]) -> list[str]:
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


def _ours(sagemaker, settings: Settings, kind: str, operation: str) -> Iterator[str]:
    "List what starts with the prefix and is tagged as ours."
    for page in sagemaker.get_paginator(f"list_{operation}s").paginate(NameContains=settings.prefix):
        for found in page[f"{kind}s"]:
            tags = sagemaker.list_tags(ResourceArn=found[f"{kind}Arn"])["Tags"]
            if found[f"{kind}Name"].startswith(f"{settings.prefix}-") and TAG | {"Value": settings.prefix} in tags:
                yield found[f"{kind}Name"]


def delete_endpoints(session: boto3.Session, settings: Settings) -> Iterator[tuple[str, list[str]]]:
    "Delete endpoints, endpoint configs and models that are ours by name and tag: what costs goes first."
    sagemaker = session.client("sagemaker")
    for kind, operation in (("Endpoint", "endpoint"), ("EndpointConfig", "endpoint_config"), ("Model", "model")):
        names = list(_ours(sagemaker, settings, kind, operation))
        delete = getattr(sagemaker, f"delete_{operation}")
        yield f"{kind}s", _delete_each(iter(names), lambda n, d=delete, k=kind: d(**{f"{k}Name": n}))


def delete_stacks(session: boto3.Session, settings: Settings) -> Iterator[tuple[str, list[str]]]:
    "Empty the stacks' buckets and delete the stacks, the engine before the foundation it stands on."
    cloudformation, s3 = session.client("cloudformation"), session.client("s3")
    for stack in (engine_stack(settings), foundation_stack(settings)):
        try:
            buckets = [v for k, v in stack_outputs(cloudformation, stack).items() if k.endswith("Bucket")]
        except LookupError:
            buckets = []
        counts = [f"{b}: {empty_bucket(s3, b)} objects" for b in buckets if _bucket_exists(s3, b)]
        yield f"buckets of {stack}", counts
        yield "stacks", [stack] if delete_stack(cloudformation, stack) else []


def _bucket_exists(s3, bucket: str) -> bool:
    try:
        s3.head_bucket(Bucket=bucket)
        return True
    except ClientError:
        return False


def delete_leftovers(session: boto3.Session, settings: Settings) -> Iterator[tuple[str, list[str]]]:
    "Delete what belongs to no stack: the parameters notebooks wrote and the log groups that services made."
    ssm, logs = session.client("ssm"), session.client("logs")
    pages = ssm.get_paginator("describe_parameters").paginate(
        ParameterFilters=[{"Key": "Name", "Option": "BeginsWith", "Values": [f"/{settings.prefix}/"]}]
    )
    yield "parameters", _delete_each(pages.search("Parameters[].Name"), lambda n: ssm.delete_parameter(Name=n))
    for start in (f"/aws/lambda/{settings.prefix}-", f"/aws/sagemaker/Endpoints/{settings.prefix}-"):
        groups = logs.get_paginator("describe_log_groups").paginate(logGroupNamePrefix=start)
        names = list(groups.search("logGroups[].logGroupName"))
        yield "log groups", _delete_each(iter(names), lambda n: logs.delete_log_group(logGroupName=n))


def teardown(target: str) -> list[tuple[str, str]]:  # (kind, name) of what was deleted
    "Delete all of ours in the cloud the environment names."
    session, settings, deleted = connect(target), settings_from(os.environ), []
    for step in (delete_endpoints, delete_stacks, delete_leftovers):
        for kind, names in step(session, settings):
            for name in names:
                print(f"deleted  {kind:24} {name}", flush=True)
                deleted.append((kind, name))
    return deleted


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", choices=("local", "aws"), default="local", help="the cloud to clear")
    parser.add_argument("--yes", action="store_true", help="do not ask before deleting from AWS")
    options = parser.parse_args()
    if options.target == "aws" and not options.yes:
        print(f"This deletes everything whose name starts with {settings_from(os.environ).prefix!r} in your account,")
        if input("the reviews and models included. Type the prefix to go on: ") != settings_from(os.environ).prefix:
            sys.exit("nothing was deleted")
    try:
        if options.target == "local":
            with local_cloud():
                deleted = teardown("local")
        else:
            deleted = teardown("aws")
    except ValueError as e:
        sys.exit(str(e))
    print(f"{len(deleted)} things deleted." if deleted else "Nothing of ours is left.")


if __name__ == "__main__":
    main()
