"DynamoDB in memory: what the package's writes need, and all of DynamoDB's refusals; anything else is an error."

import pickle
import re
import threading
from collections.abc import Callable, Mapping
from decimal import Context, Decimal
from functools import lru_cache
from typing import Any

from botocore.exceptions import ClientError

from sentiment_engine.local.expressions import Change, Node, Path, read_expressions
from sentiment_engine.local.records import AwsError

COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
SETS = ("SS", "NS", "BS")


def clone(value: Any) -> Any:
    "Copy plain data, faster than copy.deepcopy."
    return pickle.loads(pickle.dumps(value))


def refuse(code: str, message: str = "") -> ClientError:
    "Make the error of a refusal by DynamoDB."
    return ClientError({"Error": {"Code": code, "Message": message}}, "UpdateItem")


def invalid(message: str) -> ClientError:
    "Make DynamoDB's error for an invalid call."
    return refuse("ValidationException", message)


def read(call: Mapping) -> dict[str, Any]:
    "Read the expressions of a call. Raises DynamoDB's refusal of a wrong one."
    try:
        return read_expressions(call)
    except AwsError as e:
        raise refuse(e.code, e.message) from None


def comparable(value: dict | None) -> tuple[str, Any] | None:
    "Return type and plain value of an ordered value."
    kind, plain = next(iter(value.items())) if value else ("", None)
    return (kind, Decimal(plain)) if kind == "N" else (kind, plain) if kind in ("S", "B") else None


def same(a: dict | None, b: dict | None) -> bool:
    "Compare two typed values; 1 equals 1.0, and the order of a set does not matter."
    if a is None or b is None or a.keys() != b.keys():
        return False
    ((kind, x),), (y,) = a.items(), b.values()
    if kind == "N":
        return Decimal(x) == Decimal(y)
    if kind == "M":
        return x.keys() == y.keys() and all(same(value, y[name]) for name, value in x.items())
    if kind == "L":
        return len(x) == len(y) and all(map(same, x, y))
    return sorted(members(kind, x)) == sorted(members(kind, y)) if kind in SETS else x == y


def members(kind: str, plain: list) -> list:
    "Return the members of a set in comparable form."
    return list(map(Decimal, plain)) if kind == "NS" else plain


def look(item: dict, path: Path) -> dict | None:
    "Return the typed value at `path`."
    found: dict | None = {"M": item}
    for segment in path:
        if isinstance(segment, str):
            found = found["M"].get(segment) if found and "M" in found else None
        else:
            found = dict(enumerate(found["L"])).get(segment) if found and "L" in found else None
    return found


class Seen:
    "An item as seen by expressions."

    def __init__(self, item: dict, values: dict):
        self.item, self.values = item, values

    def operand(self, node: Node) -> dict | None:
        "Return a value of the call, or the size or value of an attribute; None: missing."
        if node.kind == "value":
            return self.values[node.parts[0]]
        if node.kind == "path":
            return look(self.item, node.parts)
        if node.kind != "size":
            raise NotImplementedError(f"the function {node.kind}")
        kind, plain = next(iter((self.operand(node.parts[0]) or {"": None}).items()))
        return {"N": str(len(plain))} if kind in ("S", "B", "M", "L", *SETS) else None

    def holds(self, node: Node) -> bool:
        "Evaluate a condition."
        kind, parts = node
        if kind in ("AND", "OR", "NOT"):
            found = map(self.holds, parts)
            return not next(found) if kind == "NOT" else all(found) if kind == "AND" else any(found)
        if kind in ("attribute_exists", "attribute_not_exists"):
            return (self.operand(parts[0]) is not None) == (kind == "attribute_exists")
        first, *others = map(self.operand, parts)
        if kind in ("=", "IN"):
            return any(same(first, other) for other in others)
        if kind == "<>":
            return not same(first, others[0])
        if kind == "BETWEEN":
            return self.compare(">=", first, others[0]) and self.compare("<=", first, others[1])
        if kind not in COMPARE:
            raise NotImplementedError(f"the function {kind}")
        return self.compare(kind, first, others[0])

    def compare(self, operator: str, left: dict | None, right: dict | None) -> bool:
        "Check that two values are ordered, and in this way."
        a, b = comparable(left), comparable(right)
        return a is not None and b is not None and a[0] == b[0] and COMPARE[operator](a[1], b[1])

    def assigned(self, node: Node) -> dict:
        "Return the value that SET assigns."
        if node.kind == "if_not_exists":
            found = self.operand(node.parts[0])
            return self.assigned(node.parts[1]) if found is None else found
        if node.kind in ("+", "-"):
            return total(*map(self.assigned, node.parts), 1 if node.kind == "+" else -1)
        if (found := self.operand(node)) is None:
            raise invalid("The provided expression refers to an attribute that does not exist in the item")
        return found


def number(value: Decimal) -> dict:
    "Format a number like DynamoDB."
    text = format(EXACT.normalize(value), "f")
    return {"N": "0" if text == "-0" else text}


def canonical(value: dict) -> dict:
    "Copy a typed value, with numbers in DynamoDB's format."
    ((kind, plain),) = value.items()
    if kind == "M":
        return {"M": {name: canonical(each) for name, each in plain.items()}}
    if kind == "L":
        return {"L": list(map(canonical, plain))}
    if kind == "NS":
        return {"NS": [number(Decimal(each))["N"] for each in plain]}
    return number(Decimal(plain)) if kind == "N" else clone(value)


def total(a: dict, b: dict, sign: int = 1) -> dict:
    "Add two numbers, or subtract the second one."
    if "N" not in a or "N" not in b:
        raise invalid("An operand in the update expression has an incorrect data type")
    return number(EXACT.add(Decimal(a["N"]), sign * Decimal(b["N"])))


def change(item: dict, planned: Change, value: dict | None):
    "Apply one part of an update, with the value that was read for it."
    clause, (*above, last), _ = planned
    parent = look(item, tuple(above))
    if parent is None or ("M" if isinstance(last, str) else "L") not in parent:
        raise invalid("The document path provided in the update expression is invalid for update")
    if isinstance(last, int) or clause == "DELETE" or (clause == "ADD" and "N" not in value):
        raise NotImplementedError(f"{clause} of {last}")
    inside = parent["M"]
    if clause == "REMOVE":
        inside.pop(last, None)
    elif clause == "SET":
        inside[last] = canonical(value)
    else:
        inside[last] = total(inside.get(last, {"N": "0"}), value)


ITEM_LIMIT = 400 * 1024  # bytes
KEY_LIMIT = 2_048  # bytes
DIGITS, SMALLEST, LARGEST = 38, -130, 125  # of a number, and its exponents
DEPTH = 32  # levels of maps and lists
EXACT = Context(prec=400)  # Python's default precision would round


@lru_cache(10_000)
def check_number(text: str):
    "Refuse a number that DynamoDB cannot store."
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text, re.ASCII):
        raise invalid(f"The parameter cannot be converted to a numeric value: {text}")
    found = EXACT.normalize(Decimal(text))
    if len(found.as_tuple().digits) > DIGITS:
        raise invalid(f"Attempting to store more than {DIGITS} significant digits in a Number")
    if found and not SMALLEST <= found.adjusted() <= LARGEST:
        raise invalid("Attempting to store a number with a magnitude outside the supported range")


def check_value(value: dict, depth: int = 1):
    "Refuse a typed value that DynamoDB cannot store."
    if len(value) != 1:
        raise invalid("Supplied AttributeValue must contain exactly one of the supported datatypes")
    ((kind, plain),) = value.items()
    if depth > DEPTH:
        raise invalid("Nesting Levels have exceeded supported limits")
    for text in [plain] if kind == "N" else plain if kind == "NS" else ():
        check_number(text)
    for inner in plain.values() if kind == "M" else plain if kind == "L" else ():
        check_value(inner, depth + 1)
    if kind in SETS and not plain:
        raise invalid("An attribute value can not be an empty set")
    if kind in SETS and len(set(members(kind, plain))) < len(plain):
        raise invalid("Input collection contains duplicates")
    if kind == "NULL" and plain is not True:
        raise invalid("Null attribute value types must have the value of true")


@lru_cache(10_000)
def number_bytes(text: str) -> int:
    "Return the size of a number."
    digits = EXACT.normalize(Decimal(text)).as_tuple().digits
    return 1 + (len(digits) + 1) // 2 + (Decimal(text) < 0)


def value_bytes(value: dict) -> int:
    "Return the size of a typed value, by DynamoDB's documented rules."
    ((kind, plain),) = value.items()
    if kind == "N":
        return number_bytes(plain)
    if kind == "M":
        return 3 + sum(1 + len(name.encode()) + value_bytes(each) for name, each in plain.items())
    if kind == "L":
        return 3 + sum(1 + value_bytes(each) for each in plain)
    if kind in SETS:
        return sum(value_bytes({kind[0]: each}) for each in plain)
    return len(plain.encode()) if kind == "S" else len(plain) if kind == "B" else 1


def item_bytes(item: dict) -> int:
    "Return the size of an item, including attribute names."
    return sum(len(name.encode()) + value_bytes(value) for name, value in item.items())


def check_item(item: dict):
    "Refuse an item that DynamoDB cannot store."
    for value in item.values():
        check_value(value)
    if item_bytes(item) > ITEM_LIMIT:
        raise invalid("Item size has exceeded the maximum allowed size")


PARAMETERS = {"UpdateExpression", "ConditionExpression", "ExpressionAttributeNames", "ExpressionAttributeValues", "Key"}
PARAMETERS |= {"ReturnValuesOnConditionCheckFailure"}


class MemoryDynamoDB:
    """The calls of the package and two more, for a table and its usage table. The key is modelId.

    `items` is the content of `table`. `watch` receives the item before and after every write to it; `watch_others`, to
    the other table.
    """

    def __init__(
        self,
        watch: Callable[[dict | None, dict | None], None] = lambda before, after: None,
        table: str = "t",
        watch_others: Callable[[dict | None, dict | None], None] = lambda before, after: None,
    ):
        self.table, self.tables = table, {table: {}, f"{table}-usage": {}}
        self.watch, self.watch_others, self.lock = watch, watch_others, threading.RLock()

    @property
    def items(self) -> dict[str, dict]:
        return self.tables[self.table]

    def expire(self, now: float):
        "Delete expired items, as DynamoDB does some time later."
        for key, item in list(self.items.items()):
            if Decimal(item.get("expiresAt", {}).get("N", "Infinity")) < Decimal(now):
                del self.items[key]

    def _found(self, table: str, key: dict) -> dict | None:
        "Return the item with this key. Raises DynamoDB's refusal of a wrong table or key."
        if table not in self.tables:
            raise refuse("ResourceNotFoundException", "Requested resource not found")
        if key.keys() != {"modelId"} or key["modelId"].keys() != {"S"}:
            raise invalid("The provided key element does not match the schema")
        if not 1 <= len(key["modelId"]["S"].encode()) <= KEY_LIMIT:
            raise invalid("The value of a key attribute cannot be empty or longer than 2048 bytes")
        return self.tables[table].get(key["modelId"]["S"])

    def _store(self, table: str, key: dict, after: dict | None):
        "Replace an item; None: delete it."
        stored, name = self.tables[table], key["modelId"]["S"]
        before = stored.pop(name, None)
        if after is not None:
            stored[name] = after
        (self.watch if table == self.table else self.watch_others)(before, after)

    def _checked(self, item: dict | None, call: Mapping, values: dict) -> dict[str, Any]:
        "Read the expressions of a call, and refuse it if its condition is false."
        assert call.keys() <= PARAMETERS, f"no such parameters: {call.keys() - PARAMETERS}"
        expressions = read(call)
        for value in values.values():
            check_value(value)
        condition = expressions.get("ConditionExpression")
        if condition and not Seen(item or {}, values).holds(condition):
            refusal = refuse("ConditionalCheckFailedException", "The conditional request failed")
            if item is not None and call.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD":
                refusal.response["Item"] = clone(item)
            raise refusal
        return expressions

    def get_item(self, TableName: str, Key: dict, ConsistentRead: bool) -> dict:
        assert ConsistentRead
        found = self._found(TableName, Key)
        return {"Item": clone(found)} if found is not None else {}

    def put_item(self, TableName: str, Item: dict, ReturnValues: str = "NONE", **rest: Any) -> dict:
        check_item(Item)
        key = {name: Item[name] for name in Item if name == "modelId"}
        return self._replaced(TableName, key, {n: canonical(v) for n, v in Item.items()}, ReturnValues, rest)

    def delete_item(self, TableName: str, Key: dict, ReturnValues: str = "NONE", **rest: Any) -> dict:
        return self._replaced(TableName, Key, None, ReturnValues, rest)

    def _replaced(self, table: str, key: dict, after: dict | None, told: str, call: dict) -> dict:
        "Put or delete an item."
        if told not in ("NONE", "ALL_OLD"):
            raise invalid("ReturnValues can only be ALL_OLD or NONE")
        with self.lock:
            before = self._found(table, key)
            self._checked(before, call, call.get("ExpressionAttributeValues") or {})
            self._store(table, key, after)
        return {"Attributes": clone(before)} if before is not None and told == "ALL_OLD" else {}

    def update_item(self, TableName: str, Key: dict, ReturnValues: str = "NONE", **rest: Any) -> dict:
        values = rest.get("ExpressionAttributeValues") or {}
        if ReturnValues not in ("NONE", "ALL_NEW"):
            raise NotImplementedError(f"ReturnValues {ReturnValues}")
        with self.lock:
            before = self._found(TableName, Key)
            planned = self._checked(before, rest | {"Key": Key}, values).get("UpdateExpression", ())
            after, seen = clone(before or {}) | clone(Key), Seen(before or {}, values)
            made = [seen.assigned(each.value) if each.value else None for each in planned]
            for each, value in zip(planned, made, strict=True):
                if before is not None or each.clause != "REMOVE":  # REMOVE always succeeds on a missing item
                    change(after, each, value)
            check_item(after)
            self._store(TableName, Key, after)
        return {"Attributes": clone(after)} if ReturnValues == "ALL_NEW" else {}
