"The DynamoDB in memory answers as ministack's does: same writes, same conditions, same items, same refusals."

import re
import uuid

import pytest
from botocore.exceptions import ClientError
from engine_double import dynamodb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_dynamodb import ITEM_LIMIT, MemoryDynamoDB, item_bytes

KEY = {"modelId": {"S": "m"}}
numbers = st.integers(-3, 3).map(lambda n: {"N": str(n)})
texts = st.sampled_from(["a", "b"]).map(lambda s: {"S": s})
maps = st.dictionaries(st.sampled_from(["k", "l"]), numbers | texts, max_size=2).map(lambda m: {"M": m})
values = numbers | texts | maps
NAMES = {"#n": "n", "#s": "s", "#m": "m", "#k": "k", "#x": "x"}
PATHS = ["#n", "#s", "#m", "#m.#k", "#x", "#m.#x"]
GIVEN = [":a", ":b", ":one"]

paths = st.sampled_from(PATHS)
checks = st.one_of(
    st.builds("{} {} {}".format, paths, st.sampled_from(["=", "<", "<=", ">", ">="]), st.sampled_from(GIVEN)),
    st.builds("size(#m) {} {}".format, st.sampled_from(["=", "<", "<="]), st.just(":one")),
    st.builds("{} IN ({}, {})".format, paths, st.sampled_from(GIVEN), st.sampled_from(GIVEN)),
    st.builds("attribute_exists({})".format, paths),
    st.builds("attribute_not_exists({})".format, paths),
)
conditions = st.recursive(
    checks,
    lambda inner: st.builds(
        "{}{} {} {}{}".format, st.sampled_from(["(", ""]), inner, st.sampled_from(["AND", "OR"]), inner, st.just("")
    ).map(lambda text: text + ")" if text.count("(") > text.count(")") else text),
    max_leaves=4,
)
assigned = st.one_of(
    st.sampled_from(GIVEN),
    st.builds("if_not_exists({}, {})".format, paths, st.sampled_from(GIVEN)),
    st.builds("if_not_exists(#n, :one) {} :one".format, st.sampled_from("+-")),
)
clauses = st.one_of(
    st.builds("SET {} = {}".format, paths, assigned),
    st.builds("SET #n = {}, #m.#k = {}".format, assigned, assigned),
    st.builds("SET #s = {} REMOVE {}".format, assigned, st.sampled_from(["#n", "#x", "#m.#k"])),
    st.sampled_from(["REMOVE #n", "REMOVE #m.#k", "REMOVE #s, #x", "ADD #n :one", "ADD #x :one REMOVE #m.#k"]),
)


@pytest.fixture(scope="module")
def table():
    name = f"differential-{uuid.uuid4().hex[:8]}"
    dynamodb().create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "modelId", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "modelId", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    return name


def write(client, table: str, update: str, condition: str, a: dict, b: dict) -> tuple:
    "Carry out one update; return the item or the code of the refusal."
    words = set(re.findall(r"[#:]\w+", f"{update} {condition}"))
    known = {":a": a, ":b": b, ":one": {"N": "1"}}
    used = {
        "ExpressionAttributeNames": {k: v for k, v in NAMES.items() if k in words},
        "ExpressionAttributeValues": {k: v for k, v in known.items() if k in words},
    }
    try:
        done = client.update_item(
            TableName=table,
            Key=KEY,
            UpdateExpression=update,
            ConditionExpression=condition,
            ReturnValues="ALL_NEW",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
            **{k: v for k, v in used.items() if v},
        )
    except ClientError as e:
        code, found = e.response["Error"]["Code"], e.response.get("Item")
        return "refused", code if found is None else (code, found)
    return "done", done["Attributes"]


start = {"n": {"N": "1"}, "s": {"S": "a"}, "m": {"M": {"k": {"N": "2"}}}}


@given(writes=st.lists(st.tuples(clauses, conditions, values, values), min_size=1, max_size=6))
@settings(max_examples=100, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_both_do_the_same(table, writes):
    memory = MemoryDynamoDB(table=table)
    memory.items["m"] = KEY | start
    dynamodb().put_item(TableName=table, Item=KEY | start)
    for update, condition, a, b in writes:
        if "size" in condition and "M" not in memory.items["m"].get("m", {}):
            continue  # AWS's size() of nothing or of a number makes a condition false; to ministack it is 0
        ours = write(memory, table, update, condition, a, b)
        theirs = write(dynamodb(), table, update, condition, a, b)
        if ours == ("refused", "ValidationException") != theirs:
            return  # ministack lets pass some of what AWS refuses, such as "a" + 1; from here the two items differ
        assert ours == theirs, (update, condition, a, b)
    theirs = dynamodb().get_item(TableName=table, Key=KEY, ConsistentRead=True)["Item"]
    assert memory.get_item(TableName=table, Key=KEY, ConsistentRead=True)["Item"] == theirs


@pytest.mark.parametrize("over", [0, 1])
def test_both_take_an_item_of_400_kilobytes_and_no_byte_more(table, over):
    odd = {"ключ": {"S": "𝒜"}, "b": {"BOOL": True}, "l": {"L": [{"N": "-12"}, {"N": "1234567891"}, {"NULL": True}]}}
    almost = KEY | start | {"o": {"M": odd}}
    almost["s"] = {"S": "a" * (ITEM_LIMIT - 2 - item_bytes(almost) + 1 + over)}  # SET #x = :a adds two bytes
    memory = MemoryDynamoDB(table=table)
    memory.items["m"] = almost
    dynamodb().put_item(TableName=table, Item=almost)
    for client in (memory, dynamodb()):
        done, told = write(client, table, "SET #x = :a", "#n = :one", {"S": "a"}, {})
        assert (done, told) == ("refused", "ValidationException") if over else done == "done"


@pytest.mark.parametrize("text", ["contains(#n, :a)", "#n BETWEEN :a AND :b", "NOT #n = :a", "#n[0] = :a"])
def test_what_is_unknown_is_an_error(text):
    with pytest.raises(NotImplementedError):
        write(MemoryDynamoDB(), "t", "SET #s = :a", text, {"N": "1"}, {"N": "1"})


@pytest.mark.parametrize("over", [0, 1])
def test_an_expression_has_4096_bytes_and_a_number_38_digits(over):
    padded = "SET #s = :a" + " " * (4096 - 11)
    memory = MemoryDynamoDB()
    for update, a in ((padded + " " * over, {"N": "1"}), ("SET #s = :a", {"N": "1" * (38 + over)})):
        done = write(memory, "t", update, "attribute_not_exists(#n)", a, {})
        assert done == ("refused", "ValidationException") if over else done[0] == "done"
