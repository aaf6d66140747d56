"""Least privilege: each function has all permissions that it needs and no others, and every part of a policy is needed.

The tests do not list what a function does. They run its handler through an engine's lifecycle and record every call.
They read its permissions from the roles of a deployed stack, and evaluate them as the local cloud does.
"""

import copy
import functools
import io
import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from ministack.core.iam_evaluator import EvalContext, evaluate, parse_policy_document

from sentiment_engine.deploy.endpoint import serving_image
from sentiment_engine.deploy.foundation import site_parameters
from sentiment_engine.deploy.packaging import stack_parameters, upload_packages
from sentiment_engine.deploy.stacks import delete_stack, deploy_stack, upload_template
from sentiment_engine.deploy.standby import upload_standby
from sentiment_engine.deploy.training import (
    ENDED,
    TRAINING_LOGS,
    TrainingJob,
    job_channels,
    start_training,
    training_source,
)
from sentiment_engine.local.aws import ACCOUNT, REGION
from sentiment_engine.local.permissions import sagemaker_needs
from sentiment_engine.local.sagemaker import ENDPOINT
from sentiment_engine.s3 import empty_bucket
from sentiment_engine.service.lifecycle import CLIENTS, Engine
from sentiment_engine.settings import Settings, captures_address, connect, endpoint_name
from tests import ROOT
from tests.doubles.engine_double import ADA, BOB, Logs
from tests.doubles.fault_world import CAPACITY, FaultWorld, Gate
from tests.doubles.local_models import until

PREFIX = "least"
SITE = {"ApiId": "a1", "SiteOrigin": "https://d1.cloudfront.net"}
ARN = f"arn:aws:{{}}:{REGION}:{ACCOUNT}:{{}}"
WAKE_UP_ROLE, QUEUE = f"arn:aws:iam::{ACCOUNT}:role/wake", ARN.format("sqs", f"{PREFIX}-dead-letters")
STANDBY = ARN.format("lambda", f"function:{PREFIX}-standby-model")
SHUTDOWN, START = (
    ARN.format("lambda", f"function:{PREFIX}-{name}") for name in ("shutdown-endpoint", "start-model-service")
)
GONE = "The container did not answer /ping."
FOLDERS = sorted(path.parent.name for path in ROOT.glob("lambdas/*/handler.py"))
ALONE = {"scheduler": "scheduler.amazonaws.com"}


def camel(words: str, by: str) -> str:
    return "".join(word[:1].upper() + word[1:] for word in words.split(by))


class Watched(FaultWorld):
    "A world that records which function made which call."

    def __init__(self, **given):
        super().__init__(prefix=PREFIX, daily_messages_per_number=100, **given)
        self.folder, self.made = "", defaultdict(list)  # function: (service, operation, arguments)
        self.clients["sns"] = Gate(self, "sns", SimpleNamespace(publish=self.publish))
        self.logs = Logs(page=2)
        self.clients["logs"] = Gate(self, "logs", self.logs)
        self.clients["sqs"] = Gate(self, "sqs", SimpleNamespace(get_queue_attributes=self.depth_of))

    def publish(self, **_):
        return {"MessageId": "1"}

    def depth_of(self, **_):
        return {"Attributes": {"ApproximateNumberOfMessages": "0"}}

    def hit(self, service, call, /, **arguments):
        name = call.func.__name__ if isinstance(call, functools.partial) else call.__name__
        if service != "sms":
            operation = {"_parameter": "get_parameter", "depth_of": "get_queue_attributes"}.get(name, name)
            own = CLIENTS.get(service, (service,))[0]
            self.made[self.folder].append((own, operation, copy.deepcopy(arguments)))
        return super().hit(service, call, **arguments)

    def invoke(self, folder, event):
        self.folder = folder
        places = {"standby": STANDBY, "dead_letters": QUEUE, "dead_letters_url": "https://queue", "log_days": 14}
        self.warm.setdefault(
            folder, Engine(self.settings, self.clients.__getitem__, SHUTDOWN, WAKE_UP_ROLE, PREFIX, **places)
        )
        return super().invoke(folder, event)

    def begin(self, phone=None):
        self.do(("clock", 4000))
        self.do(("start", phone))

    def awake(self, phone=None):
        self.begin(phone)
        self.do(("many", ("up", 0), ("deliver", 0, False)))


def live(world: Watched):
    "Run each function's purpose, and its work when other functions fail."
    do = world.do
    for name in ("trial-aaaaaaaaaaaa", "bbbbbbbbbbbb", "serverless"):
        world.logs.write(f"{PREFIX}-{name}", world.clock.now - 20 * 86_400)
    do(("predict",))  # the standby answers
    world.awake(ADA)
    do(("many", ("status",), ("clock", 600), ("predict",), ("clock", 600), ("extend",)))
    do(("many", ("clock", 700), ("wake", 0, False), ("clock", 1900), ("wake", 0, True)))  # too early, then on time
    world.begin(BOB)
    do(("many", ("down", 0, CAPACITY), ("deliver", 0, False), ("up", 0), ("deliver", 0, False)))  # another type
    do(("many", ("down", 0, GONE), ("deliver", 0, False)))  # it fails while in service
    world.begin()
    do(("many", ("down", 0, CAPACITY), ("drop", 0), ("reconcile",), ("up", 0), ("drop", 0), ("reconcile",)))
    do(("many", ("forget", 0), ("reconcile",), ("clock", 2000), ("reconcile",)))  # a lost wake-up; a missed one
    world.awake()
    do(("sleep", 0))
    do(("awake", 60))
    do(("many", ("up", 0), ("deliver", 0, False), ("vanish", 0), ("clock", 1300), ("reconcile",), ("reconcile",)))
    do(("many", ("up", 0), ("deliver", 0, False), ("clock", 3600), ("wake", 0, False)))
    world.awake(ADA)
    do(("clock", 2000))
    stopped = [n for n in range(4) if not _dies_stopping(world, n)]
    assert stopped, "the wake-up never reached the deletion"
    do(("start", None))  # the next start finishes the shutdown
    world.settle(60)
    do(("reconcile",))
    _late(world)
    for finder in (("start", None), ("reconcile",)):  # finds the endpoint of a lost row
        world.awake()
        do(("many", ("lose_row",), ("clock", 200), finder))


def _dies_stopping(world: Watched, n: int) -> bool:
    "Kill the wake-up at its n-th call; return whether the run is not STOPPING."
    if world.row.state == "IN_SERVICE":
        world.do(("wake", 0, True), {n: ("die", "before")})
    return world.row.state != "STOPPING"


def _late(world: Watched):
    "Start an endpoint that no row records any more, once with an event and once without, and an orphan."
    for way in (("deliver", -1, False), ("reconcile",)):
        world.do(("many", ("clock", 4000), ("reconcile",), ("start", ADA), ("clock", 3000)))
        world.sagemaker.endpoints, kept = {}, dict(world.sagemaker.endpoints)
        world.do(("reconcile",))  # its endpoint is missing: the run has failed
        world.sagemaker.endpoints.update(kept)
        world.booked.clear()  # SageMaker has reported it missing: its further costs are booked as well
        world.do(("many", ("up", 0), way))


def needs_of(service: str, operation: str, given: dict) -> list[tuple[str, str]]:
    "Return the IAM actions of a call, and their resources."
    name = camel(operation, "_")
    if service == "sagemaker":
        return [(action, on.replace(":1:", f":{ACCOUNT}:")) for action, on in sagemaker_needs(name, given)]
    if service == "lambda":
        return [("lambda:InvokeFunction", given["FunctionName"])]
    if service == "sagemaker-runtime":
        return [("sagemaker:InvokeEndpoint", ENDPOINT.arn_of(given["EndpointName"]))]
    if service == "scheduler":
        role = [("iam:PassRole", given["Target"]["RoleArn"])] if "Target" in given else []
        on = ARN.format("scheduler", f"schedule/{given['GroupName']}/{given['Name']}") if "Name" in given else "*"
        return [(f"scheduler:{name}", on), *role]
    group = given.get("logGroupName", given.get("logGroupNamePrefix"))  # the list cannot be limited to a prefix
    on = {"logs": lambda: ARN.format("logs", f"log-group:{group}") if "logGroupName" in given else "*"}
    on |= {"dynamodb": lambda: ARN.format("dynamodb", f"table/{given['TableName']}"), "sqs": lambda: QUEUE}
    on |= {"ssm": lambda: ARN.format("ssm", f"parameter{given['Name']}"), "sns": lambda: "*"}
    return [(f"{service}:{name}", on[service]())]


@pytest.fixture(scope="module", params=["textbelt", "sns"])
def known(request, cloud):
    "The calls of each function in an engine's lifecycle, and the statements of its deployed role."
    hours = "Mon-Fri 09:00-17:00 Europe/Berlin"
    own = Settings(prefix=PREFIX, table="states", sms_provider=request.param, awake_hours=hours)
    s3, cloudformation, name = cloud.client("s3"), cloud.client("cloudformation"), f"{PREFIX}-{request.param}"
    s3.create_bucket(Bucket=f"{name}-artifacts")
    packages = upload_packages(s3, f"{name}-artifacts", ROOT / "lambdas")
    packages |= upload_standby(s3, f"{name}-artifacts", ROOT / "lambdas", None, locked=False)
    given = stack_parameters(own, f"{name}-artifacts", packages, SITE, "secret")
    template = upload_template(s3, f"{name}-artifacts", ROOT / "infra_scripts/templates/backend.yaml")
    deploy_stack(cloudformation, name, template, given, {"Project": PREFIX})
    with Watched(sms_provider=request.param) as world:
        live(world)
    found = {r["LogicalResourceId"]: r["PhysicalResourceId"] for r in _resources(cloudformation, name)}
    roles, needs, documents = _roles(cloud, found), _needs(world, found), _documents(cloud, found)
    told = {"made": world.made, "roles": roles, "needs": needs, "found": found, "documents": documents}
    yield SimpleNamespace(cloud=cloud, **told)
    delete_stack(cloudformation, name)


def _resources(cloudformation, name: str) -> list[dict]:
    return list(
        cloudformation.get_paginator("list_stack_resources").paginate(StackName=name).search("StackResourceSummaries[]")
    )


def _roles(cloud, found: dict) -> dict[str, list[dict]]:
    "Read the statements of each function's role, and of the wake-ups'."
    iam, roles = cloud.client("iam"), {}
    for folder in [*FOLDERS, "wake-up"]:
        role = found[camel(folder, "-") + "Role"]
        (policy,) = iam.list_role_policies(RoleName=role)["PolicyNames"]
        roles[folder] = iam.get_role_policy(RoleName=role, PolicyName=policy)["PolicyDocument"]["Statement"]
    return roles


def _documents(cloud, found: dict[str, str]) -> dict[str, list[dict]]:
    "Read the statements of every policy of a stack, by the name of its resource; a role's trust policy by `… trust`."
    read = {}
    for name, kept_as in found.items():
        if name.endswith("Role"):
            role, iam = {"RoleName": kept_as}, cloud.client("iam")
            read[f"{name} trust"] = iam.get_role(**role)["Role"]["AssumeRolePolicyDocument"]
            (policy,) = iam.list_role_policies(**role)["PolicyNames"]
            read[name] = iam.get_role_policy(**role, PolicyName=policy)["PolicyDocument"]
        elif name.endswith("Bucket"):
            read[name] = json.loads(cloud.client("s3").get_bucket_policy(Bucket=kept_as)["Policy"])
        elif name == "DeadLetters":
            asked = cloud.client("sqs").get_queue_attributes(QueueUrl=kept_as, AttributeNames=["Policy"])
            read[name] = json.loads(asked["Attributes"]["Policy"])
    return {name: document["Statement"] for name, document in read.items()}


def _needs(world: Watched, found: dict) -> dict[str, set[tuple[str, str]]]:
    "List what each role needs: for its own calls, and for AWS's calls under it that the template requires."
    # The wake-ups' real role replaces this world's role.
    real = f"arn:aws:iam::{ACCOUNT}:role/{found['WakeUpRole']}"
    needs = {folder: set() for folder in FOLDERS}
    needs |= {"wake-up": {("lambda:InvokeFunction", SHUTDOWN), ("lambda:InvokeFunction", START)}}
    for folder, calls in world.made.items():
        for call in calls:
            needs[folder] |= {(action, real if on == WAKE_UP_ROLE else on) for action, on in needs_of(*call)}
    for folder in FOLDERS:
        group = ARN.format("logs", f"log-group:/aws/lambda/{PREFIX}-{folder}:log-stream:1")
        needs[folder] |= {(f"logs:{action}", group) for action in ("CreateLogStream", "PutLogEvents")}
        if camel(folder, "-") + "Retries" in found:
            needs[folder].add(("sqs:SendMessage", QUEUE))  # its failure destination
    needs["wake-up"].add(("sqs:SendMessage", QUEUE))  # the schedules name the queue
    return needs


NAMESPACES = {
    "GlueRole": "Glue",
    "TrainingRole": "/aws/sagemaker/TrainingJobs",
    "EndpointRole": "/aws/sagemaker/Endpoints",
}


def verdict(statements: list[dict], action: str, on: str, context: dict[str, str], tls: bool = True) -> str:
    "Evaluate like the local cloud: Allow, Deny, or ImplicitDeny if no statement matches."
    told = {key.lower(): value for key, value in context.items()}
    asked = {"service_context": told, "secure_transport": tls}
    who = EvalContext("arn", "AssumedRole", ACCOUNT, action, on, REGION, **asked)
    return evaluate(who, [parse_policy_document({"Statement": statements})]).decision


def allowed(statements: list[dict], action: str, on: str, namespace: str = "") -> bool:
    "Check whether a role may do something that only it may do."
    context = {"iam:PassedToService": ALONE["scheduler"]} if action == "iam:PassRole" else {}
    context |= {"cloudwatch:namespace": namespace} if namespace else {}
    return verdict(statements, action, on, context) == "Allow"


ELSEWHERE = "111122223333"  # a foreign account


def cases_of(name: str, found: dict[str, str]) -> list[tuple[str, str, dict, bool, str]]:
    "List what a policy with a condition must return for an action on a resource in a context, with or without TLS."
    if name == "WakeUpRole trust":
        who = [(ACCOUNT, "Allow"), (ELSEWHERE, "ImplicitDeny")]
        return [("sts:AssumeRole", "*", {"aws:SourceAccount": account}, True, said) for account, said in who]
    if name == "DeadLetters":
        who = [(ACCOUNT, "Allow"), (ELSEWHERE, "ImplicitDeny")]
        return [("sqs:SendMessage", QUEUE, {"aws:SourceAccount": account}, True, said) for account, said in who]
    if name.endswith("Bucket"):
        return _of_bucket(f"arn:aws:s3:::{found[name]}/x", found.get("Distribution") if name == "SiteBucket" else None)
    if name in NAMESPACES:
        spaces = [(NAMESPACES[name], "Allow"), ("SentimentEngine", "ImplicitDeny")]
        return [("cloudwatch:PutMetricData", "*", {"cloudwatch:namespace": n}, True, said) for n, said in spaces]
    role = f"arn:aws:iam::{ACCOUNT}:role/{found['WakeUpRole']}"
    services = [(ALONE["scheduler"], "Allow"), ("lambda.amazonaws.com", "ImplicitDeny")]
    return [("iam:PassRole", role, {"iam:PassedToService": service}, True, said) for service, said in services]


def _of_bucket(on: str, distribution: str | None) -> list[tuple[str, str, dict, bool, str]]:
    "Access requires TLS; CloudFront, whose requests do not show it, may access as this one distribution only."
    cases = [("s3:GetObject", on, {}, True, "ImplicitDeny"), ("s3:GetObject", on, {}, False, "Deny")]
    for number, said in ((distribution, "Allow"), ("ANOTHER", "Deny")) if distribution else ():
        source = {"aws:SourceArn": f"arn:aws:cloudfront::{ACCOUNT}:distribution/{number}"}
        cases += [("s3:GetObject", on, source, False, said)]
        cases += [("s3:GetObject", on, source, True, said.replace("Deny", "ImplicitDeny"))]
    return cases


def without_each_condition(statements: list[dict]) -> Iterator[tuple[str, list[dict]]]:
    "Yield copies of a policy, each without one of its conditions."
    for i, statement in enumerate(statements):
        for operator, keys in statement.get("Condition", {}).items():
            for key in keys:
                condition = copy.deepcopy(statement["Condition"])
                del condition[operator][key]
                yield f"{operator} {key}", [*statements[:i], statement | {"Condition": condition}, *statements[i + 1 :]]


def spare_conditions(name: str, statements: list[dict], cases: list[tuple]) -> list[str]:
    "List the conditions whose removal changes no result."
    return [
        f"{name}: {what}"
        for what, rest in without_each_condition(statements)
        if all(verdict(rest, action, on, context, tls) == said for action, on, context, tls, said in cases)
    ]


def wrong_answers(name: str, statements: list[dict], cases: list[tuple]) -> list[str]:
    "List the wrong results of a policy."
    answers = [(case, verdict(statements, *case[:4])) for case in cases]
    return [f"{name}: {case[:4]} is {answer}" for case, answer in answers if answer != case[4]]


def spare_in(statements: list[dict], needs: set[tuple[str, str]], namespace: str = "") -> list[tuple]:
    "List the permissions whose removal denies no call."
    spare = []
    for i, statement in enumerate(statements):
        others = statements[:i] + statements[i + 1 :]
        for action in statement["Action"] if statement["Effect"] == "Allow" else ():
            left = [a for a in statement["Action"] if a != action]
            rest = others + ([statement | {"Action": left}] if left else [])
            if all(allowed(rest, *need, namespace) for need in needs):
                spare.append((action, statement["Resource"]))
    return spare


def spare_resources(statements: list[dict], needs: set[tuple[str, str]], namespace: str) -> list[str]:
    "List the resources whose removal denies no call."
    spare = []
    for i, statement in enumerate(statements):
        named = statement["Resource"] if isinstance(statement["Resource"], list) else []
        for resource in named:
            fewer = statement | {"Resource": [r for r in named if r != resource]}
            rest = [*statements[:i], fewer, *statements[i + 1 :]]
            spare += [resource] if all(allowed(rest, *need, namespace) for need in needs) else []
    return spare


def alike(needs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    "Forget which run it was."
    return {(action, re.sub("[0-9a-f]{12}(-[0-9]+)?$", "RUN", on)) for action, on in needs}


def test_each_function_has_all_permissions_that_it_needs(known):
    for folder, needs in known.needs.items():
        assert not [need for need in sorted(needs) if not allowed(known.roles[folder], *need)], folder


def test_every_statement_and_action_is_needed(known):
    spare = {folder: spare_in(statements, known.needs[folder]) for folder, statements in known.roles.items()}
    assert not any(spare.values()), spare


def test_every_condition_is_needed(known):
    guarded = {name: d for name, d in known.documents.items() if any("Condition" in s for s in d)}
    passing = {"NotificationAndShutdownScheduler", "ShutdownEndpoint", "ReconcileModelService"}
    assert set(guarded) == {"WakeUpRole trust", "DeadLetters", *(f"{name}Role" for name in passing)}
    for name, statements in guarded.items():
        cases = cases_of(name, known.found)
        assert not wrong_answers(name, statements, cases) and not spare_conditions(name, statements, cases)


def test_only_the_distribution_may_read_the_page(cloud):
    cloudformation, name, template = (
        cloud.client("cloudformation"),
        "least-site",
        ROOT / "infra_scripts/templates/site.yaml",
    )
    given = site_parameters(Settings(prefix=PREFIX), "secret")
    deploy_stack(cloudformation, name, template, given, {"Project": PREFIX})
    found = {r["LogicalResourceId"]: r["PhysicalResourceId"] for r in _resources(cloudformation, name)}
    ((bucket, statements),) = _documents(cloud, found).items()
    cases = cases_of(bucket, found)
    assert bucket == "SiteBucket" and not wrong_answers(bucket, statements, cases)
    assert not spare_conditions(bucket, statements, cases)
    delete_stack(cloudformation, name)


def test_the_deny_statement_prevents_publishing_to_topics(known):
    topic = ARN.format("sns", "somebodys-topic")
    for statements in known.roles.values():
        allowing = [s for s in statements if s["Effect"] == "Allow"]
        assert not allowed(statements, "sns:Publish", topic)
        assert (len(allowing) < len(statements)) == allowed(allowing, "sns:Publish", topic)


def test_no_function_has_permissions_that_only_another_needs(known):
    for folder in FOLDERS:
        own = alike(known.needs[folder])
        for other in FOLDERS:
            foreign = [n for n in known.needs[other] if not alike({n}) <= own]
            assert not [need for need in foreign if allowed(known.roles[folder], *need)], (folder, other)


def test_no_function_may_access_another_prefix(known):
    for folder, needs in known.needs.items():
        for action, on in needs:
            other = on.replace(f"/{PREFIX}", "/other").replace(f":{PREFIX}", ":other").replace("table/t", "table/other")
            assert other == on or not allowed(known.roles[folder], action, other), (folder, action, other)


PROBE = """
import boto3, botocore.exceptions
def handler(event, context):
    said = []
    for service, operation, given in event:
        try:
            getattr(boto3.client(service), operation)(**given)
            said.append("")
        except botocore.exceptions.ClientError as e:
            said.append(e.response["Error"]["Code"])
        except Exception as e:
            said.append(type(e).__name__ + str(e)[:80])
    return said
"""
DENIED = {"AccessDenied", "AccessDeniedException", "AuthorizationError"}


def probe(cloud, role: str, calls: list) -> list[str]:  # error codes; empty: success
    "Make calls from a Lambda that runs under `role`."
    packed, functions = io.BytesIO(), cloud.client("lambda")
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("app.py", PROBE)
    code, arn = {"ZipFile": packed.getvalue()}, f"arn:aws:iam::{ACCOUNT}:role/{role}"
    functions.create_function(
        FunctionName="probe", Runtime="python3.13", Role=arn, Handler="app.handler", Code=code, Timeout=60
    )
    try:
        return json.load(functions.invoke(FunctionName="probe", Payload=json.dumps(calls, default=str))["Payload"])
    finally:
        functions.delete_function(FunctionName="probe")


def _once(calls: list) -> list:
    "Keep one call of each kind, with boto3's parameters."
    kinds = {}
    for service, operation, given in calls:
        if not operation.startswith(("list_endpoint", "transact")):  # these are paginated
            on = given.get("Name") if operation == "get_parameter" else ""
            kinds.setdefault((service, operation, on), [service, operation, given])
    return list(kinds.values())


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_local_cloud_denies_functions_each_others_calls(known, folder):
    own = alike(known.needs[folder])
    others = _once([call for other in FOLDERS for call in known.made[other]])
    foreign = [c for c in others if not all(alike({n}) <= own for n in needs_of(*c))]
    assert foreign
    role = known.found[camel(folder, "-") + "Role"]
    mine = ["dynamodb", "get_item", {"TableName": "states", "Key": {"modelId": {"S": "x"}}}]
    said = probe(known.cloud, role, [*foreign, mine])
    assert set(said[:-1]) <= DENIED, [(c[:2], s) for c, s in zip(foreign, said, strict=False) if s not in DENIED]
    # A call that all roles but one may make succeeds, so the refusals are about permissions.
    assert said[-1] == "" if folder != "standby-model" else said[-1] in DENIED


@pytest.fixture(scope="module")
def services(cloud, tmp_path_factory):
    "The foundation's roles, and what Glue and SageMaker do under them for our jobs."
    cloudformation = cloud.client("cloudformation")
    template = ROOT / "infra_scripts/templates/foundation.yaml"
    made = deploy_stack(cloudformation, "least-foundation", template, {"Prefix": PREFIX}, {"Project": PREFIX})
    found = {r["LogicalResourceId"]: r["PhysicalResourceId"] for r in _resources(cloudformation, "least-foundation")}
    documents, buckets = _documents(cloud, found), [made["LakeBucket"], made["ArtifactsBucket"]]
    source = training_source(ROOT / "infra_scripts/train.py", tmp_path_factory.mktemp("source"))
    jobs = [_training_job(cloud, made, source, kind) for kind in ("ml.g4dn.xlarge", "ml.m5.large")]
    cleaning = cloud.client("glue").get_job(JobName=made["GlueJob"])["Job"]
    needs = {"GlueRole": _glue_needs(cleaning, *buckets), "EndpointRole": _endpoint_needs(jobs[0], buckets[1])}
    needs["TrainingRole"] = set().union(*(_training_needs(job) for job in jobs))
    lake, artifacts = (f"arn:aws:s3:::{name}" for name in buckets)
    roles = {name: documents[name] for name in NAMESPACES}
    yield SimpleNamespace(roles=roles, needs=needs, lake=lake, artifacts=artifacts, documents=documents, found=found)
    for bucket in buckets:
        empty_bucket(cloud.client("s3"), bucket)
    delete_stack(cloudformation, "least-foundation")


def _training_job(cloud, made: dict, source: Path, kind: str) -> dict:
    "Request a training like the notebook, and return the request to SageMaker; without reviews it ends at once."
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cloud.environment.items():
            patch.setenv(name, value)
        patch.setattr(
            "sentiment_engine.model.base_model.build_base_model", lambda folder: folder
        )  # only its location matters
        channels = job_channels(None, made["LakeBucket"], made["ArtifactsBucket"], "minilm")
        kept = f"s3://{made['ArtifactsBucket']}/training/{kind}/checkpoints/"
        machine = {"instance_type": kind, "spot": True, "checkpoints": kept, "mark": kind.split(".")[1]}
        place = {"role": made["TrainingRole"], "bucket": made["ArtifactsBucket"]}
        job = TrainingJob(source, channels, {"epochs": 1}, **machine, **place)
        name = start_training(connect("local"), Settings(prefix=PREFIX), job)
    describe = cloud.client("sagemaker").describe_training_job
    return until(lambda: (found := describe(TrainingJobName=name))["TrainingJobStatus"] in ENDED and found)


def _arn(address: str) -> str:  # of an S3 address; for a prefix, an object below it
    return f"arn:aws:s3:::{address.removeprefix('s3://')}" + ("x" if address.endswith("/") else "")


def _buckets_of(addresses: list[str]) -> set[tuple[str, str]]:
    return {("s3:ListBucket", f"arn:aws:s3:::{address.split('/')[2]}") for address in addresses}


def _container(image: str, group: str) -> set[tuple[str, str]]:
    "What SageMaker does for every container, according to the execution roles in its developer guide."
    account, repository = image.split(".")[0], image.split("/")[1].partition(":")[0]
    place = f"arn:aws:ecr:{REGION}:{account}:repository/{repository}"
    pulls = ("BatchCheckLayerAvailability", "GetDownloadUrlForLayer", "BatchGetImage")
    beside = {("ecr:GetAuthorizationToken", "*"), ("cloudwatch:PutMetricData", "*")}
    return {(f"ecr:{pull}", place) for pull in pulls} | beside | _logs(group, "DescribeLogStreams")


def _glue_needs(job: dict, lake: str, artifacts: str) -> set[tuple[str, str]]:
    "Glue downloads the script and the package; Spark uploads in parts and removes leftovers of failed tasks and runs."
    given = job["DefaultArguments"]
    read = [job["Command"]["ScriptLocation"], given["--extra-py-files"], f"s3://{lake}/raw/", given["--TempDir"]]
    written = [*(f"s3://{lake}/{place}/" for place in ("processed", "rejected", "reports")), given["--TempDir"]]
    needs = {("s3:GetObject", _arn(address)) for address in read}
    verbs = ("PutObject", "DeleteObject", "AbortMultipartUpload")
    needs |= {(f"s3:{verb}", _arn(address)) for verb in verbs for address in written}
    needs |= {("s3:GetBucketLocation", bucket) for _, bucket in _buckets_of(read)}
    needs |= {("s3:ListBucketMultipartUploads", bucket) for _, bucket in _buckets_of(written)}
    return needs | _buckets_of(read) | _logs("/aws-glue/jobs/output") | {("cloudwatch:PutMetricData", "*")}


def _training_needs(job: dict) -> set[tuple[str, str]]:
    "SageMaker downloads the channels and stores the model and the checkpoints, which a second attempt reads."
    kept = job["CheckpointConfig"]["S3Uri"]
    read = [channel["DataSource"]["S3DataSource"]["S3Uri"] for channel in job["InputDataConfig"]] + [kept]
    needs = {("s3:GetObject", _arn(address)) for address in read} | _buckets_of(read)
    needs |= {("s3:PutObject", _arn(address)) for address in (job["ModelArtifacts"]["S3ModelArtifacts"], kept)}
    return needs | _container(job["AlgorithmSpecification"]["TrainingImage"], TRAINING_LOGS)


def _endpoint_needs(job: dict, bucket: str) -> set[tuple[str, str]]:
    "SageMaker downloads the trained model and stores answers."
    artifact, group = job["ModelArtifacts"]["S3ModelArtifacts"], endpoint_name(Settings(prefix=PREFIX), "0" * 12)
    needs = {("s3:GetObject", _arn(artifact)), ("s3:PutObject", _arn(captures_address(bucket) + "/"))}
    return needs | _buckets_of([artifact]) | _container(serving_image(REGION), f"/aws/sagemaker/Endpoints/{group}")


def _logs(group: str, *more: str) -> set[tuple[str, str]]:
    arn = ARN.format("logs", f"log-group:{group}:log-stream:1")
    return {(f"logs:{action}", arn) for action in ("CreateLogGroup", "CreateLogStream", "PutLogEvents", *more)}


def test_images_for_cpu_and_gpu_machines_can_be_pulled(services):
    pulled = {on.rpartition("/")[2] for action, on in services.needs["TrainingRole"] if action == "ecr:BatchGetImage"}
    assert pulled == {"huggingface-pytorch-training", "pytorch-training"}


def test_glue_and_sagemaker_have_exactly_the_permissions_they_need(services):
    for name, statements in services.roles.items():
        denied = [need for need in services.needs[name] if not allowed(statements, *need, NAMESPACES[name])]
        assert not denied and not spare_in(statements, services.needs[name], NAMESPACES[name]), name
        assert not spare_resources(statements, services.needs[name], NAMESPACES[name]), name


def test_every_condition_of_the_foundation_is_needed(services):
    guarded = {name: d for name, d in services.documents.items() if any("Condition" in s for s in d)}
    assert set(guarded) == {"LakeBucket", "ArtifactsBucket", *NAMESPACES}
    for name, statements in guarded.items():
        cases = cases_of(name, services.found)
        assert not wrong_answers(name, statements, cases) and not spare_conditions(name, statements, cases)


OF_OTHERS = ("lambdas/a", "glue/a", "deployments/a", "templates/a", "training/a/model.json")
OF_MODELS = ("models/latest.json", "models/released/a/model.tar.gz", "models/given-a/output/model.tar.gz")
READ_BY_TRAINING = ("base-models/a", "training-code/a")


def test_glue_and_sagemaker_lack_each_others_permissions(services):
    lake, artifacts = services.lake, services.artifacts
    forbidden = {
        "GlueRole": [("s3:GetObject", f"{artifacts}/models/a"), ("s3:PutObject", f"{artifacts}/glue/a")],
        "TrainingRole": [
            ("s3:GetObject", f"{lake}/raw/a"),
            ("s3:PutObject", f"{lake}/sample/a"),
            *(("s3:GetObject", f"{artifacts}/{place}") for place in (*OF_OTHERS, "models/a", "captures/a")),
            *(("s3:PutObject", f"{artifacts}/{place}") for place in (*OF_OTHERS, *READ_BY_TRAINING, *OF_MODELS)),
        ],
        "EndpointRole": [("s3:GetObject", f"{lake}/sample/a"), ("s3:PutObject", f"{artifacts}/models/a")],
    }
    for name, needs in forbidden.items():
        assert not [need for need in needs if allowed(services.roles[name], *need, NAMESPACES[name])]
        assert not allowed(services.roles[name], "cloudwatch:PutMetricData", "*", "SentimentEngine")
