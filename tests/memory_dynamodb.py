"One DynamoDB table in memory: exactly the expressions that the package writes; whatever else it meets is an error."

import pickle
import re
import threading
from collections import defaultdict
from collections.abc import Callable
from decimal import Context, Decimal
from typing import Any

from botocore.exceptions import ClientError

TOKEN = re.compile(r"\s*(#\w+|:\w+|[A-Za-z_]\w*|<>|<=|>=|[=<>(),.+-])")
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def clone(value: Any) -> Any:
    "Copy plain data, faster than copy.deepcopy."
    return pickle.loads(pickle.dumps(value))


def refuse(code: str, message: str = "") -> ClientError:
    "Make DynamoDB's refusal."
    return ClientError({"Error": {"Code": code, "Message": message}}, "UpdateItem")


def tokens_of(text: str) -> list[str]:
    "Split an expression. Raises NotImplementedError for what is not in the grammar."
    tokens, at = [], 0
    text = text.rstrip()
    while at < len(text):
        if not (found := TOKEN.match(text, at)):
            raise NotImplementedError(f"unknown part of an expression: {text[at:]}")
        tokens.append(found[1])
        at = found.end()
    return tokens


def comparable(value: dict | None) -> tuple[str, Any] | None:
    "Return kind and plain value of something that has an order."
    kind, plain = next(iter(value.items())) if value else ("", None)
    return (kind, Decimal(plain)) if kind == "N" else (kind, plain) if kind in ("S", "B") else None


def same(a: dict | None, b: dict | None) -> bool:
    "Tell whether two typed values are equal; 1 and 1.0 are."
    if a is None or b is None:
        return False
    if "N" in a and "N" in b:
        return Decimal(a["N"]) == Decimal(b["N"])
    if "M" in a and "M" in b:
        return a["M"].keys() == b["M"].keys() and all(same(v, b["M"][k]) for k, v in a["M"].items())
    if "L" in a and "L" in b:
        return len(a["L"]) == len(b["L"]) and all(map(same, a["L"], b["L"]))
    return a == b


class Expression:
    "Reads one expression over one item by recursive descent."

    def __init__(self, text: str, item: dict, names: dict, values: dict, used: set):
        self.tokens, self.at = tokens_of(text), 0
        self.item, self.names, self.values, self.used = item, names, values, used

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, wanted: str = "") -> str:
        token = self.peek()
        if not token or (wanted and token.upper() != wanted):
            raise NotImplementedError(f"{wanted or 'something'} expected, not {token!r} in {' '.join(self.tokens)}")
        self.at += 1
        return token

    def accept(self, word: str) -> bool:
        if self.peek().upper() == word:
            self.at += 1
            return True
        return False

    def path(self) -> tuple[str, ...]:
        segments = []
        while not segments or self.accept("."):
            token = self.take()
            if token.startswith("#"):
                self.used.add(token)
                if token not in self.names:
                    raise refuse("ValidationException", f"{token} is not defined")
                token = self.names[token]
            elif not token[0].isalpha():
                raise NotImplementedError(f"a path cannot hold {token}")
            segments.append(token)
        return tuple(segments)

    def value(self, token: str) -> dict:
        self.used.add(token)
        if token not in self.values:
            raise refuse("ValidationException", f"{token} is not defined")
        return self.values[token]

    def operand(self) -> dict | None:
        "Read a value, size(path) or the value at a path."
        if self.peek().startswith(":"):
            return self.value(self.take())
        if self.peek() == "size":
            self.take(), self.take("(")
            found = look(self.item, self.path())
            self.take(")")
            if found is None or not (found.keys() & {"S", "M", "L"}):
                return None
            return {"N": str(len(next(iter(found.values()))))}
        return look(self.item, self.path())

    def condition(self) -> bool:
        result = self.conjunction()
        while self.accept("OR"):
            result = self.conjunction() or result
        return result

    def conjunction(self) -> bool:
        result = self.check()
        while self.accept("AND"):
            result = self.check() and result
        return result

    def check(self) -> bool:
        if self.accept("("):
            result = self.condition()
            self.take(")")
            return result
        if self.peek() in ("attribute_exists", "attribute_not_exists"):
            wanted = self.take() == "attribute_exists"
            self.take("(")
            found = look(self.item, self.path()) is not None
            self.take(")")
            return found == wanted
        left, comparison = self.operand(), self.take().upper()
        if comparison == "IN":
            self.take("(")
            options = [self.operand()]
            while self.accept(","):
                options.append(self.operand())
            self.take(")")
            return any(same(left, option) for option in options)
        return self.compare(left, comparison, self.operand())

    def compare(self, left: dict | None, comparison: str, right: dict | None) -> bool:
        if comparison == "=":
            return same(left, right)
        if comparison == "<>":
            return not same(left, right)
        if comparison not in COMPARE:
            raise NotImplementedError(f"unknown comparison {comparison}")
        a, b = comparable(left), comparable(right)
        return a is not None and b is not None and a[0] == b[0] and COMPARE[comparison](a[1], b[1])

    def whole_condition(self) -> bool:
        result = self.condition()
        if self.peek():
            raise NotImplementedError(f"left over: {self.tokens[self.at :]}")
        return result

    def term(self) -> dict:
        "Read what SET assigns, without arithmetic."
        if self.peek() == "if_not_exists":
            self.take(), self.take("(")
            found = look(self.item, self.path())
            self.take(",")
            other = self.term()
            self.take(")")
            return other if found is None else found
        found = self.operand()
        if found is None:
            raise refuse("ValidationException", "The provided expression refers to an attribute that does not exist")
        return found

    def assigned(self) -> dict:
        result = self.term()
        while self.peek() in ("+", "-"):
            sign, other = self.take(), self.term()
            if "N" not in result or "N" not in other:
                raise refuse("ValidationException", "An operand in the update expression has an incorrect data type")
            a, b = Decimal(result["N"]), Decimal(other["N"])
            result = number(a + b if sign == "+" else a - b)
        return result

    def changes(self) -> list[tuple[str, tuple[str, ...], dict | None]]:  # (SET, REMOVE or ADD, path, value)
        found = []
        while self.peek():
            word = self.take().upper()
            if word not in ("SET", "REMOVE", "ADD"):
                raise NotImplementedError(f"unknown clause {word}")
            while True:
                path, value = self.path(), None
                if word == "SET":
                    self.take("=")
                    value = self.assigned()
                elif word == "ADD":
                    value = self.value(self.take())
                found.append((word, path, value))
                if not self.accept(","):
                    break
        return found


def number(value: Decimal) -> dict:
    "Write a number as DynamoDB does."
    text = format(value.normalize(), "f")
    return {"N": "0" if text == "-0" else text}


def look(item: dict, path: tuple[str, ...]) -> dict | None:
    "Return the typed value at `path`."
    found: dict | None = {"M": item}
    for segment in path:
        found = found["M"].get(segment) if found and "M" in found else None
    return found


def overlap(paths: list[tuple[str, ...]]) -> bool:
    "Tell whether one of the paths is, or lies within, another."
    return any(a[: len(b)] == b or b[: len(a)] == a for i, a in enumerate(paths) for b in paths[:i])


def change(item: dict, word: str, path: tuple[str, ...], value: dict | None):
    "Carry out one part of an update."
    parent = look(item, path[:-1])
    if parent is None or "M" not in parent:
        raise refuse("ValidationException", "The document path provided in the update expression is invalid for update")
    if word == "SET":
        parent["M"][path[-1]] = clone(value)
    elif word == "REMOVE":
        parent["M"].pop(path[-1], None)
    else:
        before = parent["M"].get(path[-1], {"N": "0"})
        if "N" not in before or "N" not in value:
            raise refuse("ValidationException", "An operand in the update expression has an incorrect data type")
        parent["M"][path[-1]] = number(Decimal(before["N"]) + Decimal(value["N"]))


ITEM_LIMIT = 400 * 1024  # bytes
EXPRESSION_LIMIT = 4_096  # bytes
DIGITS = 38  # of a number


EXACT = Context(prec=400)  # Python's own precision would round


def value_bytes(value: dict) -> int:
    "Return what a typed value takes, by DynamoDB's documented rules."
    ((kind, plain),) = value.items()
    if kind == "N":
        digits = "".join(map(str, EXACT.normalize(Decimal(plain)).as_tuple().digits))
        if len(digits) > DIGITS:
            raise refuse(
                "ValidationException", f"Attempting to store more than {DIGITS} significant digits in a Number"
            )
        return 1 + (len(digits) + 1) // 2 + (Decimal(plain) < 0)
    if kind == "M":
        return 3 + sum(1 + len(name.encode()) + value_bytes(each) for name, each in plain.items())
    if kind == "L":
        return 3 + sum(1 + value_bytes(each) for each in plain)
    return len(plain.encode()) if kind == "S" else 1


def item_bytes(item: dict) -> int:
    "Return what an item takes, names of attributes included."
    return sum(len(name.encode()) + value_bytes(value) for name, value in item.items())


class MemoryDynamoDB:
    """The two calls of the package, for any number of tables.

    `items` is the table `table`. `watch` sees every write of it, `watch_others` every write of another table: the item
    before and after it.
    """

    def __init__(
        self,
        watch: Callable[[dict | None, dict], None] = lambda before, after: None,
        table: str = "t",
        watch_others: Callable[[dict | None, dict], None] = lambda before, after: None,
    ):
        self.table, self.tables = table, defaultdict(dict)
        self.watch, self.watch_others, self.lock = watch, watch_others, threading.RLock()

    @property
    def items(self) -> dict[str, dict]:
        return self.tables[self.table]

    def _key(self, key: dict) -> str:
        ((name, value),) = key.items()
        assert name == "modelId"
        return value["S"]

    def get_item(self, TableName: str, Key: dict, ConsistentRead: bool) -> dict:
        assert ConsistentRead
        found = self.tables[TableName].get(self._key(Key))
        return {"Item": clone(found)} if found is not None else {}

    def update_item(
        self,
        TableName: str,
        Key: dict,
        UpdateExpression: str,
        ConditionExpression: str,
        ExpressionAttributeNames: dict[str, str] | None = None,
        ExpressionAttributeValues: dict[str, dict] | None = None,
        ReturnValues: str = "NONE",
        ReturnValuesOnConditionCheckFailure: str = "NONE",
    ) -> dict:
        names, values = ExpressionAttributeNames or {}, ExpressionAttributeValues or {}
        with self.lock:
            try:
                after = self._updated(TableName, Key, (UpdateExpression, ConditionExpression), names, values)
            except ClientError as e:
                found = self.tables[TableName].get(self._key(Key))
                failed = e.response["Error"]["Code"] == "ConditionalCheckFailedException"
                if failed and found is not None and ReturnValuesOnConditionCheckFailure == "ALL_OLD":
                    e.response["Item"] = clone(found)
                raise
        return {"Attributes": clone(after)} if ReturnValues == "ALL_NEW" else {}

    def _updated(self, table: str, whole_key: dict, expressions: tuple[str, str], names: dict, values: dict) -> dict:
        "Carry out an update and return the item after it."
        key = self._key(whole_key)
        if max(len(text.encode()) for text in expressions) > EXPRESSION_LIMIT:
            raise refuse("ValidationException", "Expression size has exceeded the maximum allowed size")
        before, used = self.tables[table].get(key), set()
        item = before or {}
        changes = Expression(expressions[0], item, names, values, used)
        allowed = Expression(expressions[1], item, names, values, used).whole_condition()
        if not allowed:
            raise refuse("ConditionalCheckFailedException", "The conditional request failed")
        planned = changes.changes()
        if unused := (names.keys() | values.keys()) - used:
            raise refuse("ValidationException", f"unused in expressions: {sorted(unused)}")
        if overlap([path for _, path, _ in planned]):
            raise refuse("ValidationException", "Two document paths overlap with each other")
        after = clone(item) | clone(whole_key)
        for planned_change in planned:
            change(after, *planned_change)
        if item_bytes(after) > ITEM_LIMIT:
            raise refuse("ValidationException", "Item size to update has exceeded the maximum allowed size")
        self.tables[table][key] = after
        (self.watch if table == self.table else self.watch_others)(before, after)
        return after
