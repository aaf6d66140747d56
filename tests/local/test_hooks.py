"""One test for each private part of ministack that the local cloud relies on: an update that changes one fails here."""

import inspect
from types import SimpleNamespace

import pytest

from sentiment_engine.local.server import Emulator


@pytest.fixture(scope="module")
def ministack():
    from ministack import app

    return app


def test_ministack_has_the_version_that_was_reviewed():
    from importlib.metadata import version

    assert version("ministack") == "1.5.33"


def test_app_is_an_asgi_application(ministack):
    assert list(inspect.signature(ministack.app).parameters) == ["scope", "receive", "send"]


def test_the_registry_maps_each_service_to_a_module(ministack):
    assert ministack.SERVICE_REGISTRY["dynamodb"]["module"] == "dynamodb"
    assert ministack.SERVICE_REGISTRY["apigateway"]["sub_modules"] == ("apigateway_v1",)
    assert ministack._state_map["lambda"] == "lambda_svc"


@pytest.mark.parametrize(
    ("target", "service"),
    [("DynamoDB_20120810.PutItem", "dynamodb"), ("AmazonSSM.PutParameter", "ssm"), ("AWSEvents.PutRule", "events")],
)
def test_the_router_determines_the_service_of_a_request(target, service):
    from ministack.core.router import detect_service

    assert detect_service("POST", "/", {"x-amz-target": target, "host": "127.0.0.1"}, {}) == service


def test_the_state_of_each_service_can_be_read_and_saved(ministack, tmp_path, monkeypatch):
    from ministack.core import persistence

    monkeypatch.setattr(persistence, "PERSIST_STATE", True)
    monkeypatch.setattr(persistence, "STATE_DIR", str(tmp_path))
    ministack._get_module("ssm")
    parts = ministack._build_persistence_save_dict()
    Emulator.save(SimpleNamespace(persistence=persistence), "ssm", parts["ssm"]())
    assert persistence.load_state("ssm").keys() == parts["ssm"]().keys()


def test_objects_are_read_by_one_function_and_stored_in_one_place():
    from ministack.services import s3

    assert len(inspect.signature(s3._read_body).parameters) == 3 and "return b" in inspect.getsource(s3._read_body)
    assert "_object_disk_path(bucket, key)" in inspect.getsource(s3._persist_object)


def test_events_with_an_aws_source_can_be_put():
    from ministack.core.responses import request_scope
    from ministack.services import eventbridge

    assert "allow_aws_source" in inspect.signature(eventbridge._put_events).parameters
    with request_scope("000000000000", "us-east-1"):
        entry = {"Source": "aws.sagemaker", "DetailType": "Test", "Detail": "{}", "Resources": []}
        status, _, body = eventbridge._put_events({"Entries": [entry]}, allow_aws_source=True)
    assert status == 200 and b'"FailedEntryCount": 0' in body


def test_the_tickers_read_their_interval_at_each_tick():
    from ministack.services import eventbridge, scheduler

    for loop, name in ((scheduler._ticker_loop, "_SCHEDULE"), (eventbridge._scheduler_loop, "_SCHEDULER")):
        assert f"time.sleep({name}_TICK_INTERVAL)" in inspect.getsource(loop)


def test_schedules_and_expiry_use_time_time():
    from ministack.services import dynamodb, scheduler

    assert "time.time()" in inspect.getsource(scheduler._tick_schedules)
    assert "time.time()" in inspect.getsource(dynamodb._ttl_reaper)


def test_cloudformation_looks_up_its_handlers_in_a_dictionary():
    from ministack.services.cloudformation import provisioners

    handlers = provisioners._RESOURCE_HANDLERS
    assert {"create", "update", "delete"} <= set(handlers["AWS::ApiGatewayV2::Api"])
    assert not {"AWS::Budgets::Budget", "AWS::CloudWatch::CompositeAlarm"} & set(handlers)


def test_an_identity_provider_is_stored_under_its_arn():
    from ministack.core import responses
    from ministack.services import iam

    from sentiment_engine.local.aws import ACCOUNT, REGION
    from sentiment_engine.local.server import oidc_providers

    handler = oidc_providers(iam)
    with responses.request_scope(ACCOUNT, REGION):
        arn, attributes = handler["create"]("Provider", {"Url": "https://hook.example", "ClientIdList": ["a"]}, "stack")
        assert arn == attributes["Arn"] == f"arn:aws:iam::{ACCOUNT}:oidc-provider/hook.example"
        assert iam._oidc_providers[arn]["ClientIDList"] == ["a"]
        with pytest.raises(ValueError, match="already exists"):
            handler["create"]("Provider", {"Url": "https://hook.example"}, "stack")
        handler["delete"](arn, {})
        assert arn not in iam._oidc_providers


def test_a_composite_alarm_is_stored_by_name_and_evaluated_at_once():
    from ministack.core.responses import request_scope
    from ministack.services import cloudwatch

    with request_scope("000000000000", "us-east-1"):
        given = {"AlarmName": "hook", "AlarmRule": "TRUE", "AlarmActions": []}
        assert cloudwatch._put_composite_alarm({}, given, False, True)[0] == 200
        assert cloudwatch._composite_alarms.pop("hook")["StateValue"] == "ALARM"
        assert cloudwatch._put_composite_alarm({}, given | {"AlarmRule": "ALARM("}, False, True)[0] == 400


def test_an_http_api_from_cloudformation_is_in_the_table_of_the_gateway():
    from ministack.core.responses import request_scope
    from ministack.services import apigateway
    from ministack.services.cloudformation import provisioners

    handler = provisioners._RESOURCE_HANDLERS["AWS::ApiGatewayV2::Api"]
    with request_scope("000000000000", "us-east-1"):
        props = {"Name": "hook", "ProtocolType": "HTTP", "CorsConfiguration": {"AllowOrigins": ["*"]}}
        api_id, attributes = handler["create"]("Api", props, "hook")
        assert apigateway._apis[api_id]["apiEndpoint"] == attributes["ApiEndpoint"]
        assert apigateway._apis[api_id]["corsConfiguration"] == {"AllowOrigins": ["*"]}  # what the local cloud corrects
        handler["delete"](api_id, props)


def test_lambda_workers_inherit_the_environment_of_the_server():
    from ministack.core import lambda_runtime

    assert "{**os.environ, **env_vars}" in inspect.getsource(lambda_runtime.Worker._spawn)
    assert lambda_runtime._detect_runtime_binary("python3.13")[0].endswith(("python", "python3", "python3.11"))
    assert inspect.signature(lambda_runtime.reset).parameters == {}


def test_ministack_marks_job_runs_as_succeeded_without_running_them():
    "StartJobRun is answered by the local cloud because ministack marks a Spark job SUCCEEDED without running it."
    from ministack.services import glue

    assert 'run["JobRunState"] = "SUCCEEDED"' in inspect.getsource(glue._start_job_run)


def test_ministack_stores_table_expiry_in_a_dictionary():
    from ministack.services import dynamodb
    from ministack.services.cloudformation import provisioners

    assert {"create", "update"} <= set(provisioners._RESOURCE_HANDLERS["AWS::DynamoDB::Table"])
    assert "_ttl_settings.all_items()" in inspect.getsource(dynamodb._ttl_reaper)


def test_ministack_stores_recovery_and_concurrency_in_dictionaries():
    from ministack.services import dynamodb, lambda_svc, s3
    from ministack.services.cloudformation import provisioners

    assert "_pitr_settings.get(name, False)" in inspect.getsource(dynamodb._describe_continuous_backups)
    assert '_functions[func_name].get("concurrency")' in inspect.getsource(lambda_svc._get_function_concurrency)
    assert "_bucket_lifecycle.get(name)" in inspect.getsource(s3._get_bucket_lifecycle)
    for kind in ("AWS::Lambda::Function", "AWS::ApiGatewayV2::Stage", "AWS::S3::Bucket"):
        assert {"create", "update"} <= set(provisioners._RESOURCE_HANDLERS[kind])


def test_ministack_evaluates_permissions_as_the_local_cloud_expects():
    from ministack.core import iam_actions, iam_evaluator, router

    assert list(inspect.signature(iam_evaluator.enforce).parameters)[:4] == [
        "access_key_id",
        "iam_action",
        "service",
        "region",
    ]
    assert "extract_resource_arn" in vars(iam_actions) and callable(router.extract_access_key_id)
    arn = iam_actions.extract_resource_arn("scheduler", "POST", "/schedules/x", {}, b"{}", {}, "us-east-1", "0" * 12)
    assert "schedule/default/x" in arn  # what the local cloud corrects
