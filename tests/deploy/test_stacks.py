"Stacks in every initial state, and the error when a deployment fails."

from pathlib import Path
from types import SimpleNamespace

import jmespath
import pytest
from botocore.exceptions import ClientError

from sentiment_engine.deploy.stacks import INLINE_LIMIT, delete_stack, deploy_stack, template_argument
from sentiment_engine.s3 import empty_bucket

OURS = {"Project": "engine"}
WAY = {  # how a call changes a stack's state
    "create_stack": ("CREATE_IN_PROGRESS", "CREATE_COMPLETE"),
    "update_stack": ("UPDATE_IN_PROGRESS", "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS", "UPDATE_COMPLETE"),
    "delete_stack": ("DELETE_IN_PROGRESS", ""),
    "continue_update_rollback": (*["UPDATE_ROLLBACK_IN_PROGRESS"] * 3, "UPDATE_ROLLBACK_COMPLETE"),
}
MAY = {  # the states in which CloudFormation accepts a call; empty: there is no stack
    "create_stack": ("",),
    "update_stack": ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE"),
    "delete_stack": ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED", "CREATE_COMPLETE"),
    "continue_update_rollback": ("UPDATE_ROLLBACK_FAILED",),
}


def refusal(message: str) -> ClientError:
    return ClientError({"Error": {"Code": "ValidationError", "Message": message}}, "call")


class CloudFormation:
    "One stack that advances by one step with each description."

    def __init__(self, *statuses: str, tags: dict = OURS, events: list = ()):
        self.statuses, self.tags, self.events, self.calls = list(statuses), tags, list(events), []
        self.way, self.nothing = WAY, False

    def __getattr__(self, name: str):
        if name not in WAY:
            raise AttributeError(name)

        def call(StackName, **given):
            if self.nothing:
                raise refusal("No updates are to be performed.")
            if self.statuses[0] not in MAY[name]:
                raise refusal(f"stack is in {self.statuses[0] or 'no'} state and can not take {name}")
            self.calls.append(name)
            self.statuses = list(self.way[name])

        return call

    def describe_stacks(self, StackName):
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if not status:
            raise refusal(f"Stack with id {StackName} does not exist")
        tags = [{"Key": key, "Value": value} for key, value in self.tags.items()]
        return {"Stacks": [{"StackStatus": status, "Tags": tags, "Outputs": [{"OutputKey": "A", "OutputValue": "1"}]}]}

    def get_paginator(self, _):
        pages = [{"StackEvents": self.events}]
        search = lambda expression: (found for page in pages for found in jmespath.search(expression, page))  # noqa: E731
        return SimpleNamespace(paginate=lambda StackName: SimpleNamespace(search=search))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("sentiment_engine.polling.time", SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: None))


FOUND = {
    ("",): ["create_stack"],
    ("CREATE_COMPLETE",): ["update_stack"],
    ("UPDATE_ROLLBACK_COMPLETE",): ["update_stack"],
    ("UPDATE_IN_PROGRESS", "UPDATE_COMPLETE"): ["update_stack"],  # it waits for another deployment
    ("DELETE_IN_PROGRESS", ""): ["create_stack"],
    ("UPDATE_ROLLBACK_FAILED",): ["continue_update_rollback", "update_stack"],
    ("UPDATE_ROLLBACK_IN_PROGRESS", "UPDATE_ROLLBACK_FAILED"): ["continue_update_rollback", "update_stack"],
    **{(status,): ["delete_stack", "create_stack"] for status in MAY["delete_stack"] if status != "CREATE_COMPLETE"},
}


@pytest.mark.parametrize("statuses", FOUND, ids=" then ".join)
def test_a_stack_is_deployed_from_any_state(statuses):
    cloud = CloudFormation(*statuses)
    assert deploy_stack(cloud, "lake", "https://template", {"A": 1}, OURS) == {"A": "1"}
    assert cloud.calls == FOUND[statuses]


@pytest.mark.parametrize("status", ["CREATE_COMPLETE", "ROLLBACK_COMPLETE", "UPDATE_ROLLBACK_FAILED"])
@pytest.mark.parametrize("tags", [{}, {"Project": "shop"}])
def test_a_foreign_stack_is_left_unchanged_in_any_state(status, tags):
    cloud = CloudFormation(status, tags=tags)
    with pytest.raises(RuntimeError, match="stack lake is not ours, because it lacks the tag Project=engine"):
        deploy_stack(cloud, "lake", "https://template", {}, OURS)
    assert cloud.calls == []


def test_an_update_without_changes_succeeds():
    cloud = CloudFormation("CREATE_COMPLETE")
    cloud.nothing = True
    assert deploy_stack(cloud, "lake", "https://template", {}, OURS) == {"A": "1"}


def event(name: str, status: str, reason: str = "") -> dict:
    "Make an event of a resource; the stack's own event has its name."
    about = {"StackId": "arn:lake", "LogicalResourceId": name, "ResourceStatus": status}
    about["PhysicalResourceId"] = "arn:lake" if name == "lake" else f"id-{name}"
    return about | ({"ResourceStatusReason": reason} if reason else {})


EVENTS = [  # newest first, like CloudFormation's
    event("lake", "UPDATE_ROLLBACK_COMPLETE"),
    event("Second", "UPDATE_FAILED", "Resource update cancelled"),
    event("First", "UPDATE_FAILED", "the role is missing"),
    event("Zeroth", "UPDATE_FAILED", "the table is gone"),
    event("lake", "UPDATE_IN_PROGRESS"),
    event("Old", "UPDATE_FAILED", "a reason of last year"),
]


@pytest.mark.parametrize("end", ["UPDATE_ROLLBACK_COMPLETE", "UPDATE_ROLLBACK_FAILED", "UPDATE_FAILED"])
def test_a_failed_update_lists_its_reasons_in_order(end):
    cloud = CloudFormation("CREATE_COMPLETE", events=EVENTS)
    cloud.way = WAY | {"update_stack": ("UPDATE_IN_PROGRESS", end)}
    with pytest.raises(RuntimeError) as failed:
        deploy_stack(cloud, "lake", "https://template", {}, OURS)
    said = "Zeroth: the table is gone; First: the role is missing"
    assert str(failed.value) == f"stack lake: update ended as {end}. {said}"


def test_a_failure_with_only_cancelled_resources_reports_them():
    events = [event("Only", "DELETE_FAILED", "Resource deletion cancelled"), event("lake", "DELETE_IN_PROGRESS")]
    cloud = CloudFormation("CREATE_COMPLETE", events=events)
    cloud.way = WAY | {"delete_stack": ("DELETE_IN_PROGRESS", "DELETE_FAILED")}
    with pytest.raises(RuntimeError, match=r"delete ended as DELETE_FAILED\. Only: Resource deletion cancelled"):
        delete_stack(cloud, "lake")


def test_deleting_a_missing_stack_does_nothing():
    assert delete_stack(CloudFormation(""), "lake") is False
    assert delete_stack(CloudFormation("CREATE_IN_PROGRESS", "CREATE_COMPLETE"), "lake") is True


def test_a_template_may_be_as_large_as_cloudformation_allows(tmp_path):
    path = Path(tmp_path / "site.yaml")
    path.write_text("x" * INLINE_LIMIT)
    assert len(template_argument(path)["TemplateBody"]) == 51_200
    path.write_text("x" * (INLINE_LIMIT + 1))
    with pytest.raises(RuntimeError, match="51201 bytes, but CloudFormation accepts at most 51200"):
        template_argument(path)


def test_emptying_a_bucket_deletes_versions_and_delete_markers():
    deleted = []

    def delete_objects(Bucket, Delete):
        deleted.extend((each["Key"], each["VersionId"]) for each in Delete["Objects"])
        return {}

    pages = [
        {"Versions": [{"Key": "a", "VersionId": "1"}], "DeleteMarkers": [{"Key": "a", "VersionId": "2"}]},
        {},
        {"DeleteMarkers": [{"Key": "b", "VersionId": "3"}]},
    ]
    paginator = SimpleNamespace(paginate=lambda Bucket: pages)
    s3 = SimpleNamespace(get_paginator=lambda _: paginator, delete_objects=delete_objects)
    assert empty_bucket(s3, "lake") == 3 and deleted == [("a", "1"), ("a", "2"), ("b", "3")]
