"""List what an engine has in an account, by name and by tag: for acceptance.py, which checks what a teardown leaves."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import boto3
import jmespath
from botocore.exceptions import BotoCoreError, ClientError


@dataclass(frozen=True)
class Look:
    "One question to AWS, and how to read names out of the answer."

    kind: str  # of the things
    service: str
    operation: str  # of the boto3 client
    names: str  # JMESPath to the names
    given: dict[str, str] = field(default_factory=dict)  # arguments
    kept: str = ""  # why it stays after a teardown; empty: it must not


BACKUP = "DynamoDB keeps the last state of what was spent for 35 days, free"
RECORDS = "SageMaker keeps the records of training jobs, free"
DEPLOYER = "it lets GitHub deploy, and no teardown deletes it"
LOOKS = (
    Look("stack", "cloudformation", "list_stacks", "StackSummaries[?StackStatus!='DELETE_COMPLETE'].StackName"),
    Look("bucket", "s3", "list_buckets", "Buckets[].Name"),
    Look("endpoint", "sagemaker", "list_endpoints", "Endpoints[].EndpointName"),
    Look("endpoint config", "sagemaker", "list_endpoint_configs", "EndpointConfigs[].EndpointConfigName"),
    Look("model", "sagemaker", "list_models", "Models[].ModelName"),
    Look("training job", "sagemaker", "list_training_jobs", "TrainingJobSummaries[].TrainingJobName", kept=RECORDS),
    Look("function", "lambda", "list_functions", "Functions[].FunctionName"),
    Look("table", "dynamodb", "list_tables", "TableNames[]"),
    Look("table backup", "dynamodb", "list_backups", "BackupSummaries[].TableName", {"BackupType": "ALL"}, BACKUP),
    Look("API", "apigatewayv2", "get_apis", "Items[].Name"),
    Look("distribution", "cloudfront", "list_distributions", "DistributionList.Items[].Comment"),
    Look("site access", "cloudfront", "list_origin_access_controls", "OriginAccessControlList.Items[].Name"),
    Look(
        "site headers",
        "cloudfront",
        "list_response_headers_policies",
        "ResponseHeadersPolicyList.Items[].ResponseHeadersPolicy.ResponseHeadersPolicyConfig.Name",
        {"Type": "custom"},
    ),
    Look("schedule group", "scheduler", "list_schedule_groups", "ScheduleGroups[].Name"),
    Look("schedule", "scheduler", "list_schedules", "Schedules[].Name"),
    Look("rule", "events", "list_rules", "Rules[].Name"),
    Look("queue", "sqs", "list_queues", "QueueUrls[]"),
    Look("topic", "sns", "list_topics", "Topics[].TopicArn"),
    Look("alarm", "cloudwatch", "describe_alarms", "MetricAlarms[].AlarmName"),
    Look("dashboard", "cloudwatch", "list_dashboards", "DashboardEntries[].DashboardName"),
    Look("log group", "logs", "describe_log_groups", "logGroups[].logGroupName"),
    Look("parameter", "ssm", "describe_parameters", "Parameters[].Name"),
    Look("Glue job", "glue", "get_jobs", "Jobs[].Name"),
    Look("role", "iam", "list_roles", "Roles[].RoleName"),
    # AWS Budgets is left out: it asks for the account's id, and the budget belongs to the monitoring stack.
)
# Kinds of what is paid for by the hour or makes it. Without these lists a teardown is not known to be complete.
ESSENTIAL = frozenset({"stack", "endpoint", "endpoint config", "training job"})


@dataclass(frozen=True)
class Thing:
    "Something that carries the engine's prefix in its name or tag."

    kind: str
    name: str
    kept: str = ""  # why it stays after a teardown; empty: it must not

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" + (f" ({self.kept})" if self.kept else "")


@dataclass(frozen=True)
class Unseen:
    "A list that AWS did not give."

    kind: str
    why: str

    @property
    def essential(self) -> bool:
        "Whether a teardown is not known to be complete without it."
        return self.kind in ESSENTIAL

    def __str__(self) -> str:
        return f"{self.kind}s: {self.why}"


def _pages(client, look: Look) -> Iterator[dict]:
    "Ask one question, page by page where AWS answers in pages."
    if client.can_paginate(look.operation):
        yield from client.get_paginator(look.operation).paginate(**look.given)
    else:
        yield getattr(client, look.operation)(**look.given)


def by_name(session: boto3.Session, prefix: str) -> tuple[list[Thing], list[Unseen]]:
    "List everything that is called `prefix`, or `prefix` and a dash, also within a path or an ARN."
    ours = re.compile(rf"(?<![A-Za-z0-9-]){re.escape(prefix)}(?![A-Za-z0-9])")
    found, unseen = [], []
    for look in LOOKS:
        try:
            names = [n for page in _pages(session.client(look.service), look) for n in _names(look, page)]
        except (ClientError, BotoCoreError) as e:
            unseen.append(Unseen(look.kind, str(e)))
            continue
        for name in filter(ours.search, dict.fromkeys(names)):
            found.append(Thing(look.kind, name, DEPLOYER if f"{prefix}-deployer" in name else look.kept))
    return found, unseen


def _names(look: Look, page: dict) -> list[str]:
    return [name for name in jmespath.search(look.names, page) or [] if name]


def by_tag(session: boto3.Session, prefix: str) -> list[str]:  # ARNs
    "List what carries the engine's tag. Raises ClientError if the caller may not ask."
    pages = session.client("resourcegroupstaggingapi").get_paginator("get_resources")
    found = pages.paginate(TagFilters=[{"Key": "Project", "Values": [prefix]}])
    return list(found.search("ResourceTagMappingList[].ResourceARN"))
