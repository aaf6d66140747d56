"""Turn the resources of a stack into the API calls that CloudFormation makes for them.

CloudFormation makes its calls inside AWS, and the local cloud makes them inside the emulator, so no recording shows
them. This module derives them for the types whose calls a second emulator can judge.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sentiment_engine.deploy.plan import with_defaults
from sentiment_engine.local.server import lifecycle_rules

Made = tuple[str, str, dict]  # service, operation, parameters
_NOTHING = object()  # AWS::NoValue


@dataclass
class Stack:
    "A stack as it is deployed: its template with every expression worked out."

    name: str
    template: Mapping[str, Any]  # from `read_template`
    given: Mapping[str, object]  # parameters; the template's defaults stand for the rest
    account: str
    region: str = "us-east-1"
    names: Mapping[str, str] = field(default_factory=dict)  # logical id → name, where CloudFormation chose one

    def __post_init__(self):
        own = {"AWS::AccountId": self.account, "AWS::StackName": self.name}
        self.known = with_defaults(self.template, self.given, self.region) | own

    def resources(self) -> Iterator[tuple[str, str, dict]]:
        "List logical id, type and properties of what the conditions leave in."
        for logical, resource in self.template["Resources"].items():
            if "Condition" not in resource or self.holds(resource["Condition"]):
                yield logical, resource["Type"], self.worked_out(resource.get("Properties", {}))

    def holds(self, condition: str) -> bool:
        "Whether a condition of the template is true."
        return self.worked_out(self.template["Conditions"][condition])

    def worked_out(self, value: Any) -> Any:
        "Work out every expression in a value."
        if isinstance(value, list):
            return [item for part in value if (item := self.worked_out(part)) is not _NOTHING]
        if not isinstance(value, dict):
            return value
        if len(value) == 1 and (name := next(iter(value))) in _FUNCTIONS:
            return _FUNCTIONS[name](self, value[name])
        parts = {key: self.worked_out(part) for key, part in value.items()}
        return {key: part for key, part in parts.items() if part is not _NOTHING}

    def physical(self, logical: str) -> str:
        "Return the name of a resource: its template's, or the one that CloudFormation chose."
        resource = self.template["Resources"][logical]
        props, named = resource.get("Properties", {}), _NAMED.get(resource["Type"])
        if named in props:
            return str(self.worked_out(props[named]))
        made = f"{self.name}-{logical}"[:49] + "-0123456789abc"  # CloudFormation cuts long names, too
        return self.names.get(logical) or (made.lower() if resource["Type"] == "AWS::S3::Bucket" else made)

    def reference(self, name: str) -> Any:
        "Return what !Ref gives."
        if name == "AWS::NoValue":
            return _NOTHING
        if name in self.known:
            return self.known[name]
        kind = self.template["Resources"][name]["Type"]
        if kind == "AWS::SQS::Queue":
            return self.queue_url(self.physical(name))
        by_arn = ("AWS::SNS::Topic", "AWS::IAM::ManagedPolicy", "AWS::IAM::OIDCProvider")
        return self.attribute(name, "Arn") if kind in by_arn else self.physical(name)

    def attribute(self, logical: str, attribute: str) -> str:
        "Return what !GetAtt gives."
        kind, name = self.template["Resources"][logical]["Type"], self.physical(logical)
        if attribute != "Arn":
            return {"QueueName": name}.get(attribute, f"{logical}.{attribute}")
        service, start = _ARNS.get(kind, ("service", f"{kind.rpartition('::')[2].lower()}/"))
        place = {"s3": ":", "iam": f":{self.account}"}.get(service, f"{self.region}:{self.account}")
        return f"arn:aws:{service}:{place}:{start}{name}" + ":*" * (service == "logs")

    def queue_url(self, name: str) -> str:
        "Return the address of a queue."
        return f"https://sqs.{self.region}.amazonaws.com/{self.account}/{name}"

    def text(self, argument: Any) -> str:
        "Return what !Sub gives."
        text, own = argument if isinstance(argument, list) else (argument, {})

        def value(found: re.Match) -> str:
            name, _, attribute = found[1].partition(".")
            if name in own:
                return str(self.worked_out(own[name]))
            return str(self.attribute(name, attribute) if attribute else self.reference(name))

        return re.sub(r"\$\{([\w:.]+)\}", value, text)


_FUNCTIONS: dict[str, Callable[[Stack, Any], Any]] = {
    "Ref": Stack.reference,
    "Condition": Stack.holds,
    "Fn::Sub": Stack.text,
    "Fn::GetAtt": lambda stack, argument: stack.attribute(*argument),
    "Fn::If": lambda stack, argument: stack.worked_out(argument[1 if stack.holds(argument[0]) else 2]),
    "Fn::Join": lambda stack, argument: argument[0].join(map(str, stack.worked_out(argument[1]))),
    "Fn::Equals": lambda stack, argument: len({str(stack.worked_out(part)) for part in argument}) == 1,
    "Fn::Not": lambda stack, argument: not stack.worked_out(argument[0]),
    "Fn::And": lambda stack, argument: all(stack.worked_out(part) for part in argument),
    "Fn::Or": lambda stack, argument: any(stack.worked_out(part) for part in argument),
}
_NAMED = {  # the property that names a resource of a type
    "AWS::DynamoDB::Table": "TableName",
    "AWS::Events::Rule": "Name",
    "AWS::IAM::ManagedPolicy": "ManagedPolicyName",
    "AWS::IAM::Role": "RoleName",
    "AWS::Lambda::Function": "FunctionName",
    "AWS::Logs::LogGroup": "LogGroupName",
    "AWS::S3::Bucket": "BucketName",
    "AWS::SNS::Topic": "TopicName",
    "AWS::SQS::Queue": "QueueName",
    "AWS::Scheduler::ScheduleGroup": "Name",
}
_ARNS = {  # service, and how the last part of an ARN begins
    "AWS::DynamoDB::Table": ("dynamodb", "table/"),
    "AWS::Events::Rule": ("events", "rule/"),
    "AWS::IAM::ManagedPolicy": ("iam", "policy/"),
    "AWS::IAM::OIDCProvider": ("iam", "oidc-provider/"),
    "AWS::IAM::Role": ("iam", "role/"),
    "AWS::Lambda::Function": ("lambda", "function:"),
    "AWS::Logs::LogGroup": ("logs", "log-group:"),
    "AWS::S3::Bucket": ("s3", ""),
    "AWS::SNS::Topic": ("sns", ""),
    "AWS::SQS::Queue": ("sqs", ""),
}


def _given(props: Mapping, *names: str, **renamed: str) -> dict:  # of a property to that of a parameter
    "Pick the properties that are set."
    pairs = {name: name for name in names} | renamed
    return {to: props[name] for name, to in pairs.items() if name in props}


def _bucket(name: str, props: dict, stack: Stack) -> Iterator[Made]:
    place = {} if stack.region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": stack.region}}
    yield "s3", "CreateBucket", {"Bucket": name} | place
    if found := props.get("BucketEncryption"):
        rules = [
            {"ApplyServerSideEncryptionByDefault": rule["ServerSideEncryptionByDefault"]}
            for rule in found["ServerSideEncryptionConfiguration"]
        ]
        yield "s3", "PutBucketEncryption", {"Bucket": name, "ServerSideEncryptionConfiguration": {"Rules": rules}}
    if found := props.get("LifecycleConfiguration"):
        lifecycle = {"Rules": lifecycle_rules(found["Rules"])}
        yield "s3", "PutBucketLifecycleConfiguration", {"Bucket": name, "LifecycleConfiguration": lifecycle}
    if found := props.get("Tags"):
        yield "s3", "PutBucketTagging", {"Bucket": name, "Tagging": {"TagSet": found}}
    for given, operation in (
        ("PublicAccessBlockConfiguration", "PutPublicAccessBlock"),
        ("OwnershipControls", "PutBucketOwnershipControls"),
        ("VersioningConfiguration", "PutBucketVersioning"),
    ):
        if given in props:
            yield "s3", operation, {"Bucket": name, given: props[given]}


def _bucket_policy(_: str, props: dict, stack: Stack) -> Iterator[Made]:
    yield "s3", "PutBucketPolicy", {"Bucket": props["Bucket"], "Policy": json.dumps(props["PolicyDocument"])}


def _table(name: str, props: dict, stack: Stack) -> Iterator[Made]:
    same = ("AttributeDefinitions", "KeySchema", "BillingMode", "StreamSpecification", "SSESpecification", "Tags")
    yield "dynamodb", "CreateTable", {"TableName": name} | _given(props, *same)
    for given, operation in (
        ("TimeToLiveSpecification", "UpdateTimeToLive"),
        ("PointInTimeRecoverySpecification", "UpdateContinuousBackups"),
    ):
        if given in props:
            yield "dynamodb", operation, {"TableName": name, given: props[given]}


def _role(name: str, props: dict, stack: Stack) -> Iterator[Made]:
    document = {"AssumeRolePolicyDocument": json.dumps(props["AssumeRolePolicyDocument"])}
    same = ("Description", "MaxSessionDuration", "Path", "PermissionsBoundary", "Tags")
    yield "iam", "CreateRole", {"RoleName": name} | document | _given(props, *same)
    for policy in props.get("Policies", ()):
        yield from _inline(name, policy)
    for arn in props.get("ManagedPolicyArns", ()):
        yield "iam", "AttachRolePolicy", {"RoleName": name, "PolicyArn": arn}


def _inline(role: str, policy: Mapping) -> Iterator[Made]:
    document = {"PolicyDocument": json.dumps(policy["PolicyDocument"])}
    yield "iam", "PutRolePolicy", {"RoleName": role, "PolicyName": policy["PolicyName"]} | document


def _policy(_: str, props: dict, stack: Stack) -> Iterator[Made]:
    for role in props.get("Roles", ()):
        yield from _inline(role, props)


def _managed_policy(name: str, props: dict, stack: Stack) -> Iterator[Made]:
    document = {"PolicyDocument": json.dumps(props["PolicyDocument"])}
    yield "iam", "CreatePolicy", {"PolicyName": name} | document | _given(props, "Description", "Path")


def _provider(_: str, props: dict, stack: Stack) -> Iterator[Made]:
    given = _given(props, "Url", "Tags", ClientIdList="ClientIDList", ThumbprintList="ThumbprintList")
    yield "iam", "CreateOpenIDConnectProvider", given


def _topic(name: str, props: dict, stack: Stack) -> Iterator[Made]:
    yield "sns", "CreateTopic", {"Name": name} | _given(props, "Tags")


def _subscription(_: str, props: dict, stack: Stack) -> Iterator[Made]:
    yield "sns", "Subscribe", _given(props, "TopicArn", "Protocol", "Endpoint")


def _queue(name: str, props: dict, stack: Stack) -> Iterator[Made]:
    given = {key: value for key, value in props.items() if key not in ("QueueName", "Tags")}
    attributes = {k: json.dumps(v) if isinstance(v, dict | bool) else str(v) for k, v in given.items()}
    tags = {tag["Key"]: tag["Value"] for tag in props.get("Tags", ())}
    yield "sqs", "CreateQueue", {"QueueName": name, "Attributes": attributes, "tags": tags}


def _queue_policy(_: str, props: dict, stack: Stack) -> Iterator[Made]:
    for url in props["Queues"]:
        policy = {"Policy": json.dumps(props["PolicyDocument"])}
        yield "sqs", "SetQueueAttributes", {"QueueUrl": url, "Attributes": policy}


def _log_group(name: str, props: dict, stack: Stack) -> Iterator[Made]:
    yield "logs", "CreateLogGroup", {"logGroupName": name}
    if days := props.get("RetentionInDays"):
        yield "logs", "PutRetentionPolicy", {"logGroupName": name, "retentionInDays": int(days)}


def _rule(name: str, props: dict, stack: Stack) -> Iterator[Made]:
    pattern = {"EventPattern": json.dumps(props["EventPattern"])} if "EventPattern" in props else {}
    given = _given(props, "Description", "ScheduleExpression", "State", "Tags")
    yield "events", "PutRule", {"Name": name} | pattern | given
    yield "events", "PutTargets", {"Rule": name, "Targets": props["Targets"]}


def _schedule_group(name: str, props: dict, stack: Stack) -> Iterator[Made]:
    yield "scheduler", "CreateScheduleGroup", {"Name": name} | _given(props, "Tags")


MAKERS: dict[str, Callable[[str, dict, Stack], Iterator[Made]]] = {
    "AWS::DynamoDB::Table": _table,
    "AWS::Events::Rule": _rule,
    "AWS::IAM::ManagedPolicy": _managed_policy,
    "AWS::IAM::OIDCProvider": _provider,
    "AWS::IAM::Policy": _policy,
    "AWS::IAM::Role": _role,
    "AWS::Logs::LogGroup": _log_group,
    "AWS::S3::Bucket": _bucket,
    "AWS::S3::BucketPolicy": _bucket_policy,
    "AWS::SNS::Subscription": _subscription,
    "AWS::SNS::Topic": _topic,
    "AWS::SQS::Queue": _queue,
    "AWS::SQS::QueuePolicy": _queue_policy,
    "AWS::Scheduler::ScheduleGroup": _schedule_group,
}


def _turn(resource: tuple[str, str, dict]) -> int:
    "Say when a resource is made: a boundary before its roles, what belongs to other things after them."
    kind = resource[1]
    return 0 if kind == "AWS::IAM::ManagedPolicy" else 2 if kind.endswith(("Policy", "Subscription")) else 1


def calls_of(stack: Stack) -> list[Made]:
    "List the calls that make a stack's resources."
    found = [resource for resource in sorted(stack.resources(), key=_turn) if resource[1] in MAKERS]
    return [call for logical, kind, props in found for call in MAKERS[kind](stack.physical(logical), props, stack)]


def deletions_of(made: list[Made]) -> list[Made]:
    "List the calls that undo calls of `calls_of`, the last one first."
    undone = []
    for service, operation, params in reversed(made):
        if operation in _UNDONE:
            name, keys = _UNDONE[operation]
            undone.append((service, name, {key: params[key] for key in keys}))
    return undone


_UNDONE = {
    "AttachRolePolicy": ("DetachRolePolicy", ("RoleName", "PolicyArn")),
    "CreateBucket": ("DeleteBucket", ("Bucket",)),
    "CreateLogGroup": ("DeleteLogGroup", ("logGroupName",)),
    "CreateRole": ("DeleteRole", ("RoleName",)),
    "CreateScheduleGroup": ("DeleteScheduleGroup", ("Name",)),
    "CreateTable": ("DeleteTable", ("TableName",)),
    "PutRolePolicy": ("DeleteRolePolicy", ("RoleName", "PolicyName")),
}


def unmade(stack: Stack) -> list[str]:  # types
    "List the types of a stack's resources for which no calls are known, one entry for each resource."
    return [kind for _, kind, _ in stack.resources() if kind not in MAKERS]
