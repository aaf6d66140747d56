"""The list of what the local cloud sets, skips and simplifies is complete and has no stale entry."""

import ast
import importlib
import io
import json
import os
import re
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sentiment_engine.local.aws import aws_environment, make_keys
from sentiment_engine.local.glue import RUN_CALLS, spark_environment
from sentiment_engine.local.leniencies import read_leniencies, rows
from sentiment_engine.local.processes import _KEPT, ROOT
from sentiment_engine.local.sagemaker import SUPPORTED
from sentiment_engine.local.server import emulator_environment
from sentiment_engine.local.strict import NEW_ACCOUNT
from sentiment_engine.model.artifact import SEEN as SEEN_BY_ARTIFACTS
from tests.conftest import TestCloud
from tests.deploy.test_boto3_calls import FOUND, model, operations

LOCAL = ROOT / "sentiment_engine" / "local"
# Set by shells, Python, pytest, and by Jupyter in a process that has loaded it, such as this one after other tests.
OTHERS = {"PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE", "PYTEST_CURRENT_TEST", "MPLBACKEND"}
ROLE = "arn:aws:iam::000000000000:role/lab"
LIST = read_leniencies()


def trees() -> Iterator[tuple[str, ast.Module]]:
    "Parse the modules of the local cloud."
    for path in sorted(LOCAL.glob("*.py")):
        yield path.stem, ast.parse(path.read_text(encoding="utf-8"))


def pack(name: str, code: str) -> bytes:
    "Return a .tar.gz with one file."
    file, data = io.BytesIO(), code.encode()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def wait(until, seconds: float = 120):
    "Wait until `until()` is true, and return that."
    deadline = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def bucket(cloud: TestCloud) -> str:
    cloud.client("s3").create_bucket(Bucket="leniencies")
    return "leniencies"


def of_training(cloud: TestCloud, bucket: str) -> set[str]:
    "Run a training job that reports its variables."
    write = "import json, os; json.dump(sorted(os.environ), open('/opt/ml/model/names', 'w'))"
    sagemaker, name = cloud.client("sagemaker"), f"look-{time.time_ns()}"
    sagemaker.create_training_job(
        TrainingJobName=name,
        RoleArn=ROLE,
        AlgorithmSpecification={
            "TrainingImage": "image",
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python3", "-c", write],
        },
        OutputDataConfig={"S3OutputPath": f"s3://{bucket}/jobs"},
        ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        StoppingCondition={"MaxRuntimeInSeconds": 60},
    )
    wait(lambda: sagemaker.describe_training_job(TrainingJobName=name)["TrainingJobStatus"] == "Completed")
    archive = cloud.client("s3").get_object(Bucket=bucket, Key=f"jobs/{name}/output/model.tar.gz")["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return set(json.load(tar.extractfile("names")))


HANDLERS = """
import json, os
def model_fn(model_dir): return None
def input_fn(body, content_type): return body
def predict_fn(text, model): return sorted(os.environ)
def output_fn(names, accept): return json.dumps(names)
"""


def of_endpoint(cloud: TestCloud, bucket: str) -> set[str]:
    "Run an endpoint that answers with the names of its variables."
    sagemaker, name = cloud.client("sagemaker"), f"look-{time.time_ns()}"
    cloud.client("s3").put_object(Bucket=bucket, Key="look.tar.gz", Body=pack("code/inference.py", HANDLERS))
    container = {"Image": "image", "ModelDataUrl": f"s3://{bucket}/look.tar.gz"}
    variant = {"VariantName": "v", "ModelName": name, "InstanceType": "ml.t2.medium", "InitialInstanceCount": 1}
    sagemaker.create_model(ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer=container)
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    wait(lambda: sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"] == "InService")
    answer = cloud.client("sagemaker-runtime").invoke_endpoint(EndpointName=name, Body=b"{}")["Body"].read()
    sagemaker.delete_endpoint(EndpointName=name)
    return set(json.loads(answer))


def of_glue(cloud: TestCloud, bucket: str) -> set[str]:
    "Run a Glue job that writes the names of its variables."
    glue, s3 = cloud.client("glue"), cloud.client("s3")
    script = "import json, os, sys; out = sys.argv[sys.argv.index('--out') + 1]; os.makedirs(out, exist_ok=True)\n"
    script += "json.dump(sorted(os.environ), open(out + '/names', 'w'))"
    s3.put_object(Bucket=bucket, Key="look.py", Body=script.encode())
    command = {"Name": "glueetl", "ScriptLocation": f"s3://{bucket}/look.py"}
    glue.create_job(Name="look", Role=ROLE, Command=command)
    run = glue.start_job_run(JobName="look", Arguments={"--out": f"s3://{bucket}/glue/"})["JobRunId"]
    wait(lambda: glue.get_job_run(JobName="look", RunId=run)["JobRun"]["JobRunState"] == "SUCCEEDED")
    return set(json.load(s3.get_object(Bucket=bucket, Key="glue/names")["Body"]))


def of_lambda(cloud: TestCloud, bucket: str) -> set[str]:
    "Call a Lambda that answers with the names of its variables."
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("look.py", "import os\ndef handler(event, context): return sorted(os.environ)\n")
    functions, trust = cloud.client("lambda"), {"Effect": "Allow", "Action": "sts:AssumeRole"}
    trust |= {"Principal": {"Service": "lambda.amazonaws.com"}}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    role = cloud.client("iam").create_role(RoleName="look", AssumeRolePolicyDocument=policy)["Role"]["Arn"]
    functions.create_function(
        FunctionName="look", Runtime="python3.13", Role=role, Handler="look.handler", Code={"ZipFile": code.getvalue()}
    )
    return set(json.load(functions.invoke(FunctionName="look", Payload=b"{}")["Payload"]))


ENVIRONMENT = LIST["environment"]
OF_PROCESSES = [*ENVIRONMENT["everywhere"], *ENVIRONMENT["processes"]]
# The program, its required variables, and its optional ones.
SEEN = [
    (of_training, {*OF_PROCESSES, *ENVIRONMENT["training"]}, set(ENVIRONMENT["kept"])),
    (of_endpoint, {*ENVIRONMENT["processes"], *ENVIRONMENT["endpoints"]}, set(SEEN_BY_ARTIFACTS)),
    (of_glue, {*OF_PROCESSES, *ENVIRONMENT["glue"]}, set(ENVIRONMENT["kept"])),
    (
        of_lambda,
        {*ENVIRONMENT["everywhere"], *ENVIRONMENT["emulator"], *ENVIRONMENT["lambda"]},
        os.environ.keys(),
    ),  # as they are then
]


@pytest.mark.parametrize(("ask", "has", "may"), SEEN)
def test_a_process_of_the_cloud_has_exactly_the_listed_variables(ask, has, may, cloud, bucket):
    seen = ask(cloud, bucket) - OTHERS
    assert seen - may - has == set() and has - seen == set()


def test_clients_of_the_cloud_get_the_listed_variables(cloud):
    assert set(cloud.environment) == {*ENVIRONMENT["everywhere"], *ENVIRONMENT["clients"]}


def test_the_emulator_gets_the_listed_variables(tmp_path):
    keys = make_keys(tmp_path)
    assert set(aws_environment("http://127.0.0.1:1", keys)) == set(ENVIRONMENT["everywhere"])
    given = set(emulator_environment(tmp_path, 1, keys)) - set(ENVIRONMENT["everywhere"])
    assert given | {"PYTHONPATH"} == set(ENVIRONMENT["emulator"])


def value_of(node: ast.expr, module: str) -> ast.expr:
    "Return the value of a module's constant, or the node itself."
    if isinstance(node, ast.Name):
        constant = getattr(importlib.import_module(f"sentiment_engine.local.{module}"), node.id)
        return ast.parse(repr(constant), mode="eval").body
    return node


# Functions and a property whose variables other tests compare with the list.
COMPARED = {"emulator_environment", "aws_environment", "self.environment"}


def names_in(node: ast.expr, module: str) -> Iterator[str]:
    "List the variable names in an expression; an expression that the test cannot parse counts as a name."
    node = value_of(node, module)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield from (name for side in (node.left, node.right) for name in names_in(side, module))
    elif isinstance(node, ast.IfExp):
        yield from (name for side in (node.body, node.orelse) for name in names_in(side, module))
    elif isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        yield from (key.value for key in node.keys)
    elif ast.unparse(node.func if isinstance(node, ast.Call) else node) not in COMPARED:
        yield ast.unparse(node)


def is_environment(node: ast.expr) -> bool:
    return ast.unparse(node) in ("os.environ", "environ")


def set_by(node: ast.AST, module: str) -> Iterator[str]:
    "List the variables that a statement or a call sets in its own process."
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Subscript) and is_environment(target.value):
                yield ast.literal_eval(target.slice)
            elif is_environment(target):
                yield from names_in(node.value, module)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        environment, method = is_environment(node.func.value), node.func.attr
        if ast.unparse(node.func) == "os.putenv" or (environment and method == "setdefault"):
            yield ast.literal_eval(node.args[0])
        elif environment and method == "update":
            yield from (word.arg for word in node.keywords)
            yield from (name for given in node.args[:1] for name in names_in(given, module))


def set_in_code() -> set[str]:
    "Collect the variables that modules of the local cloud set in their own process."
    return {name for module, tree in trees() for node in ast.walk(tree) for name in set_by(node, module)}


WAYS = [
    'os.environ["A"] = "1"',
    'environ["A"]: str = "1"',
    'os.environ.update({"A": "1"})',
    'os.environ.update(A="1")',
    'os.environ.update(aws_environment(url) | ({"A": "1"} if strict else {}))',
    'os.environ.setdefault("A", "1")',
    'os.environ |= {"A": "1"}',
    'os.putenv("A", "1")',
]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_set_a_variable_is_detected(way):
    assert {name for node in ast.walk(ast.parse(way)) for name in set_by(node, "server")} == {"A"}


def test_every_variable_set_in_code_is_listed():
    listed = {name for names in ENVIRONMENT.values() for name in names}
    assert set_in_code() <= listed and set_in_code() >= {"PYTHONPATH", *NEW_ACCOUNT}


def test_the_emulator_of_a_strict_cloud_gets_the_listed_variables():
    assert set(NEW_ACCOUNT) == set(ENVIRONMENT["strict"])


def test_spark_has_exactly_the_listed_settings(tmp_path):
    folder = Path(spark_environment(tmp_path)["SPARK_CONF_DIR"])
    lines = (folder / "spark-defaults.conf").read_text().splitlines()
    assert {line.partition(" ")[0] for line in lines} == set(LIST["spark"])
    for name in ("spark.master", "spark.driver.memory", "spark.sql.shuffle.partitions", "spark.sql.session.timeZone"):
        assert dict(line.split(" ", 1) for line in lines)[name] in LIST["spark"][name]


def test_the_user_variables_that_are_kept_are_listed():
    assert set(_KEPT) == set(ENVIRONMENT["kept"])


def test_the_listed_operations_are_complete():
    assert sorted(SUPPORTED) == sorted(LIST["operations"]["sagemaker"]["names"])
    assert sorted(RUN_CALLS) == sorted(LIST["operations"]["glue"]["names"])


def test_the_local_cloud_supports_every_sagemaker_operation_of_the_project():
    methods = {call[0] for _, _, service, *call in FOUND if service == "sagemaker"}
    asked = {operations("sagemaker")[method] for method in methods & set(operations("sagemaker"))}
    assert asked <= set(SUPPORTED) and len(asked) >= 10


def read_in_code() -> set[str]:
    "Collect the words in the modules of our SageMaker."
    words = set()
    for name, tree in trees():
        if name in ("sagemaker", "training", "hosting", "capture", "records", "permissions"):
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    words |= {node.value, *re.findall(r"\w+", node.value)}
    return words


def ignored() -> dict[str, set[str]]:
    "Find the parameters of SageMaker's operations that no module mentions."
    words, found = read_in_code(), {}
    for service, names in (("sagemaker", SUPPORTED), ("sagemaker-runtime", ["InvokeEndpoint"])):
        for operation in names:
            members = model(service).operation_model(operation).input_shape.members.items()
            sent = {name: shape.serialization.get("name", name).lower() for name, shape in members}
            found[operation] = {name for name in sent if not words & {name, sent[name]}} - {"Body"}
    return {operation: names for operation, names in found.items() if names}


def test_the_listed_ignored_parameters_are_complete():
    assert ignored() == {operation: set(entry["names"]) for operation, entry in LIST["ignored"].items()}


def test_the_listed_corrections_are_complete():
    nodes = (node for _, tree in trees() for node in ast.walk(tree))
    made = {node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("mend_")}
    assert made == set(LIST["mends"])


def root_of(node: ast.expr) -> str | None:
    "Return the first name of a chain such as module.part.table[key]."
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return getattr(node, "id", None)


ADDS = {"update", "setdefault", "append", "extend", "insert", "add"}


def overridden_by(tree: ast.Module) -> Iterator[str]:
    "List the parts of other modules that a module replaces or extends."
    nodes = list(ast.walk(tree))
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {(alias.asname or alias.name.partition(".")[0]) for node in imports for alias in node.names}
    for node in nodes:
        targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign | ast.AugAssign) else targets
        for target in targets:
            if isinstance(target, ast.Attribute | ast.Subscript) and root_of(target) in names:
                yield ast.unparse(target.value if isinstance(target, ast.Subscript) else target)
        if not isinstance(node, ast.Call):
            continue
        if ast.unparse(node.func) in ("setattr", "delattr") and root_of(node.args[0]) in names:
            yield f"{ast.unparse(node.args[0])}.{ast.literal_eval(node.args[1])}"
        elif isinstance(node.func, ast.Attribute) and node.func.attr in ADDS and root_of(node.func.value) in names:
            yield ast.unparse(node.func.value)


@pytest.mark.parametrize(
    ("way", "part"),
    [
        ("module.name = 1", "module.name"),
        ("module.name: int = 1", "module.name"),
        ("module.name += 1", "module.name"),
        ("module.part.name = 1", "module.part.name"),
        ('module.TABLE["key"] = 1', "module.TABLE"),
        ('module.part.TABLE["key"]["other"] = 1', "module.part.TABLE['key']"),
        ('del module.TABLE["key"]', "module.TABLE"),
        ("module.TABLE.update(key=1)", "module.TABLE"),
        ('TABLE["key"] = 1', "TABLE"),
        ('TABLE.setdefault("key", 1)', "TABLE"),
        ('setattr(module, "name", 1)', "module.name"),
        ('setattr(module.part, "name", 1)', "module.part.name"),
    ],
)
def test_every_way_to_replace_a_part_is_detected(way, part):
    assert [*overridden_by(ast.parse(f"import module\nfrom module import TABLE\n{way}"))] == [part]


def test_the_listed_replaced_parts_are_complete():
    assert {part for _, tree in trees() for part in overridden_by(tree)} - {"os.environ"} == set(LIST["overrides"])


def root_calls() -> Iterator[str]:
    "List the modules of the local cloud that call services with the cloud's own key."
    for name, tree in trees():
        for node in ast.walk(tree):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "client"
            if called and node.args and isinstance(node.args[0], ast.Constant):
                yield f"{name} {node.args[0].value}"


def test_the_listed_calls_of_the_root_user_are_complete():
    assert set(root_calls()) == set(LIST["root"])


@pytest.mark.parametrize("entry", LIST["behaviour"], ids=lambda entry: entry["what"][:40])
def test_every_other_listed_object_still_exists(entry):
    assert set(entry) == {"kind", "what", "why", "code"}
    module, _, path = entry["code"].partition(".")
    thing = importlib.import_module(f"sentiment_engine.local.{module}")
    for name in path.split("."):
        thing = getattr(thing, name)


def test_every_section_of_the_list_is_compared_with_the_code():
    assert set(LIST) == {"environment", "operations", "ignored", "mends", "spark", "overrides", "root", "behaviour"}
    assert set(ENVIRONMENT) == {
        "everywhere",
        "clients",
        "emulator",
        "strict",
        "lambda",
        "processes",
        "kept",
        "training",
        "endpoints",
        "glue",
    }
    assert all(what and len(why) >= 8 for _, what, why in rows(LIST))
