"""AWS supports every boto3 call of this project: its name, its arguments and their values.

The local cloud answers most calls, and boto3 checks their arguments. This module covers all calls, including those that
are only made in an account: it compares each call in the sources with botocore's description of the service.
"""

import ast
import functools
import json
from collections.abc import Iterator

import botocore.session
import pytest
from botocore.validate import ParamValidator

from tests import ROOT
from tests.deploy.test_permissions import Watched, live

SERVICES = (
    "s3 sagemaker sagemaker-runtime dynamodb scheduler ssm sns sqs cloudformation lambda cloudfront logs glue events "
)
SERVICES += "sts service-quotas route53 iam cloudwatch apigatewayv2 resourcegroupstaggingapi"
# Names of clients where the code does not name their service.
CALLED = {"runtime": "sagemaker-runtime", "table": "", "client": ""}
CALLED |= {name: name for name in SERVICES.split()}
OF_EVERY_CLIENT = {
    "get_paginator",
    "get_waiter",
    "exceptions",
    "meta",
    "close",
    "can_paginate",
    "generate_presigned_url",
}
TRANSFERS = {"upload_file", "download_file", "upload_fileobj", "download_fileobj", "copy"}  # boto3's own
OURS = {"sentiment_engine/local/server.py", "local/sagemaker.ipynb"}  # there, sagemaker is our own service


@functools.cache
def model(service: str):
    return botocore.session.get_session().get_service_model(service)


@functools.cache
def operations(service: str) -> dict[str, str]:
    "Map the methods of a client to the operations of its service."
    return {botocore.xform_name(name): name for name in model(service).operation_names}


def sources() -> Iterator[tuple[str, str]]:
    "List the code: modules, scripts, Lambdas, and the notebook cells that run against a cloud."
    for pattern in ("sentiment_engine/**/*.py", "infra_scripts/**/*.py", "lambdas/*/*.py", "benchmarks/*.py"):
        for path in sorted(ROOT.glob(pattern)):
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for i, cell in enumerate(cells):
            if cell["cell_type"] == "code" and "#| export" not in (code := "".join(cell["source"])):
                yield f"{path.relative_to(ROOT / 'nbs')}[{i}]", code


def service_of(receiver: ast.expr) -> str | None:  # empty: a client of an unknown service; None: no client
    "Return the service of the client that a method is called on."
    if isinstance(receiver, ast.Call):
        function, arguments = receiver.func, receiver.args
        if isinstance(function, ast.Attribute) and function.attr == "get_paginator":
            return service_of(function.value)
        named = isinstance(function, ast.Attribute) and function.attr == "client" and arguments
        return arguments[0].value if named and isinstance(arguments[0], ast.Constant) else None
    name = receiver.attr if isinstance(receiver, ast.Attribute) else getattr(receiver, "id", None)
    return CALLED.get(name)


def calls(code: str) -> Iterator[tuple[int, str, str, list[str], bool]]:
    "Find calls of clients: line, service, method, names of arguments, and whether more come from a dictionary."
    for node in ast.walk(ast.parse(code)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        service, method = service_of(node.func.value), node.func.attr
        if method == "paginate" and isinstance(node.func.value, ast.Call):
            method = node.func.value.args[0].value if isinstance(node.func.value.args[0], ast.Constant) else method
        given = [k.arg for k in node.keywords if k.arg]
        if service or (not node.args and given and all(name[0].isupper() for name in given)):
            yield node.lineno, service or "", method, given, len(given) < len(node.keywords)


def complaint(service: str, method: str, given: list[str], open_ended: bool) -> str:
    "List what AWS would not accept."
    if method in OF_EVERY_CLIENT or method == "paginate" or (service == "s3" and method in TRANSFERS):
        return ""
    if method not in operations(service):
        return f"{service} has no operation {method}"
    shape = model(service).operation_model(operations(service)[method]).input_shape
    known, required = (shape.members, shape.required_members) if shape else ({}, [])
    if unknown := [name for name in given if name not in known]:
        return f"{service}.{method} takes no {', '.join(unknown)}"
    if not open_ended and (missing := [name for name in required if name not in given]):
        return f"{service}.{method} needs {', '.join(missing)}"
    return ""


FOUND = [(where, *call) for where, code in sources() for call in calls(code)]


def test_aws_supports_every_call_in_the_sources():
    wrong = []
    for where, line, service, *call in FOUND:
        if where.partition("[")[0] in OURS:
            continue
        if service:
            wrong += [f"{where}:{line} {why}"] if (why := complaint(service, *call)) else []
            continue
        fitting = [name for name in SERVICES.split() if call[0] in operations(name)]
        said = [complaint(name, *call) for name in fitting]
        wrong += [f"{where}:{line} {said[0]}"] if said and all(said) else []
    assert not wrong


def test_the_calls_cover_all_services_of_the_project():
    asked = {service for _, _, service, *_ in FOUND if service}
    assert {
        "s3",
        "sagemaker",
        "cloudformation",
        "ssm",
        "scheduler",
        "service-quotas",
        "route53",
        "lambda",
        "sts",
    } <= asked
    assert len(FOUND) > 100


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ('session.client("ssm").get_parameters(Name="x")', "takes no Name"),
        ('engine.client("scheduler").create_schedule(Name="x")', "needs"),
        ("sagemaker.delete_end_point(EndpointName='x')", "has no operation"),
    ],
)
def test_calls_unknown_to_aws_are_found(code, why):
    ((_, service, *call),) = calls(code)
    assert why in complaint(service, *call)


@pytest.mark.parametrize("provider", ["textbelt", "sns"])
def test_aws_accepts_the_values_that_functions_send(provider):
    with Watched(sms_provider=provider) as world:
        live(world)
    seen, wrong = set(), []
    for folder, made in world.made.items():
        for service, method, given in made:
            given = {name: value for name, value in given.items() if name != "after"}  # a page of the double
            operation = model(service).operation_model(operations(service)[method])
            report = ParamValidator().validate(given, operation.input_shape)
            wrong += [(folder, method, report.generate_report())] if report.has_errors() else []
            seen.add((service, method))
    assert not wrong and len(seen) >= 15
