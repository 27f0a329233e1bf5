r"""Filters over JSON documents, written as SQL conditions on a column ``doc``.

A filter is a dictionary that is JSON itself. It names fields by dotted paths through objects
(``address.city``); in a key, ``\.`` is a dot, ``\\`` a backslash, and ``\$`` a dollar sign where a
path would else begin like an operator. Each condition is true or not: what SQL leaves NULL, such
as a comparison with a missing field, is not true, so its negation is.

Rule: the SQL never contains a word of the filter. Values and paths are bound. The one exception is
a path that has an index, because SQLite knows an indexed expression only by its text: it is
written as the SQL literal it also is in the schema.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from hashlib import sha256
from typing import Any

import apsw
from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError

Filter = dict[str, Any]
Sort = str | Mapping[str, int]

_OBJECT: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(
    dict[str, JsonValue], config=ConfigDict(hide_input_in_errors=True)
)
_TOKEN = re.compile(r"\\[.\\$]|\\|\.|[^.\\]+", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MOST_PARAMETERS = 32766  # SQLITE_MAX_VARIABLE_NUMBER


# ---- JSON


def as_json(value: object, what: str) -> str:
    """The JSON text of a dictionary. Raises ValueError, naming ``what``, where it is anything but
    text keys with JSON values: foreign types, cycles, NaN, lone surrogates, NUL in a key."""
    try:
        _OBJECT.validate_python(value, strict=True)
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
        if r"\u0000" in text:
            json.loads(text, object_pairs_hook=_refuse_nul)
    except ValidationError as error:
        fault = _first_fault(error)
    except ValueError as error:
        fault = str(error)
    else:
        return text
    raise ValueError(
        f"Could not use the {what}: {fault}. It must be a dictionary with text keys, of text, "
        "finite numbers, true, false, null, lists and dictionaries, less than 256 deep"
    )


def _first_fault(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    keys = [str(key) for key in first["loc"][::2]]  # the names of types are in between
    place = f" at {'.'.join(keys[:5])}" if keys else ""
    return f"{first['msg']}{place}"


def _refuse_nul(pairs: list[tuple[str, Any]]) -> None:
    # seen in SQLite 3.54: a path ends there, so "a" would also find the key "a\0b"
    if any("\0" in key for key, _ in pairs):
        raise ValueError("a key contains the character U+0000, which SQLite cannot look up")


# ---- paths


def escape_key(key: str) -> str:
    """One key as a path, whatever its text; join several with dots."""
    return re.sub(r"([.\\$])", r"\\\1", key)


def json_path(path: str) -> str:
    """A dotted path as SQLite writes it. Raises ValueError for a stray backslash, and for text
    that no key of a document can be."""
    if not isinstance(path, str):
        raise ValueError(f"a path is text with dots between the keys, not {path!r}")
    as_json({path: None}, "path")
    return "$" + "".join(
        f".{key}" if _PLAIN.fullmatch(key) else f'."{json.dumps(key, ensure_ascii=False)[1:-1]}"'
        for key in _keys_of(path)
    )


def _keys_of(path: str) -> list[str]:
    keys = [""]
    for token in _TOKEN.findall(path):
        if token == "\\":
            raise ValueError(
                f"Could not read the path {path!r}: a backslash goes before a dot, a dollar sign "
                "or another backslash. For the backslash itself write two"
            )
        if token == ".":
            keys.append("")
        else:
            keys[-1] += token.removeprefix("\\")
    return keys


def index_name(path: str) -> str:
    """The name of the index of a path that `json_path` made."""
    return f"bh_docs_{sha256(path.encode()).hexdigest()[:16]}"


def extract(path: str) -> str:
    """What is at a path, as SQL: the parameter or the literal given."""
    return f"json_extract(doc, {path})"


# ---- conditions


class Parameters:
    """The bound values of one statement. ``indexes`` names the indexes there are;
    ``used_index`` says whether a path of the statement has one."""

    def __init__(self, indexes: Collection[str]) -> None:
        self.values: list[str | int | float] = []
        self.used_index = False
        self._indexes = indexes

    def bind(self, value: str | float) -> str:
        """The SQL of a value: its parameter. Raises ValueError when there are too many."""
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            # its double, rounded as SQLite rounds that number inside a document
            return f"json_extract({self.bind(str(value))}, '$')"
        if len(self.values) == _MOST_PARAMETERS:
            raise ValueError(
                f"Could not run the filter: it has more than {_MOST_PARAMETERS} paths and values. "
                "Put many values into one $in"
            )
        self.values.append(value)
        return f"?{len(self.values)}"

    def path(self, path: str) -> str:
        """The SQL of a path that `json_path` made."""
        if index_name(path) not in self._indexes:
            return self.bind(path)
        self.used_index = True
        return apsw.format_sql_value(path)


def condition(filter: Filter, sql: Parameters) -> str:
    """The SQL that is TRUE for the documents a filter matches.

    Raises ValueError for anything that is no filter, and says what one is.
    """
    as_json(filter, "filter")
    try:
        return _every(filter, sql)
    except RecursionError:
        raise ValueError("Could not run the filter: it is nested too deeply") from None


def ordering(sort: Sort | None, sql: Parameters) -> str:
    """The terms of ORDER BY: the fields of ``sort``, then the order of insertion.

    Raises ValueError when a path or a direction cannot be read.
    """
    if sort is None:
        # the plus lets an index find few rows, instead of rowid order finding all
        return "+rowid" if sql.used_index else "rowid"
    if not isinstance(sort, str | Mapping):
        raise ValueError(f"sort is a path, or a dictionary of paths to 1 or -1, not {sort!r}")
    directions = {sort: 1} if isinstance(sort, str) else sort
    if any(isinstance(way, bool) or way not in (1, -1) for way in directions.values()):
        raise ValueError(f"sort goes up with 1 and down with -1; got {sort!r}")
    terms = [
        extract(sql.path(json_path(path))) + (" DESC" if way == -1 else "")
        for path, way in directions.items()
    ]
    return ", ".join([*terms, "rowid"])


def _every(filter: Filter, sql: Parameters) -> str:
    return _joined("AND", [_entry(key, operand, sql) for key, operand in filter.items()])


def _entry(key: str, operand: Any, sql: Parameters) -> str:
    if not key.startswith("$"):
        return _field(json_path(key), operand, sql)
    if key == "$not":
        return _not(_every(_expect(dict, key, operand), sql))
    if key in ("$and", "$or"):
        filters = [_expect(dict, f"each of {key}", one) for one in _expect(list, key, operand)]
        return _joined(key[1:].upper(), [_every(one, sql) for one in filters])
    raise ValueError(
        f"Could not run the filter: unknown operator {key!r}. Beside fields there are $and, $or "
        f"and $not; {', '.join(_OPERATORS)} go inside a field, as in "
        f'{{"age": {{"$gt": 3}}}}; a field of that name is written {escape_key(key)!r}'
    )


def _field(path: str, operand: Any, sql: Parameters) -> str:
    if not _has_operators(operand):
        return _equal(path, operand, sql)
    unknown = [name for name in operand if name not in _OPERATORS]
    if unknown:
        raise ValueError(
            f"Could not run the filter: unknown operator {unknown[0]!r} in a field. There are "
            f"{', '.join(_OPERATORS)}; for an object as it is, use {{'$eq': ...}}"
        )
    return _joined("AND", [_OPERATORS[name](path, value, sql) for name, value in operand.items()])


def _has_operators(operand: Any) -> bool:
    return isinstance(operand, dict) and any(name.startswith("$") for name in operand)


def _joined(word: str, conditions: list[str]) -> str:
    """In halves: SQLite takes expressions 1,000 deep, and a chain is as deep as it is long."""
    if len(conditions) < 2:
        return conditions[0] if conditions else ("TRUE" if word == "AND" else "FALSE")
    half = len(conditions) // 2
    return f"({_joined(word, conditions[:half])} {word} {_joined(word, conditions[half:])})"


def _not(sql: str) -> str:
    return f"({sql} IS NOT TRUE)"


def _expect(kind: type, name: str, operand: Any) -> Any:
    if isinstance(operand, kind):
        return operand
    wanted = {dict: "a filter (a dictionary)", list: "a list", bool: "true or false"}[kind]
    raise ValueError(
        f"Could not run the filter: {name} takes {wanted}, not {type(operand).__name__}"
    )


# ---- operators of a field


def _has_type(path: str, *types: str) -> str:
    names = ", ".join(f"'{name}'" for name in types)
    return f"json_type(doc, {path}) IN ({names})"


_NUMBER = ("integer", "real")


def _equal(path: str, operand: Any, sql: Parameters) -> str:
    """Equal as JSON: 1 is 1.0, and neither true nor "1"; objects whatever the order of keys."""
    at = sql.path(path)
    if operand is None:
        return _has_type(at, "null")
    if isinstance(operand, bool):
        kind = "true" if operand else "false"
        return f"({extract(at)} = {int(operand)} AND {_has_type(at, kind)})"
    if isinstance(operand, str | int | float):
        return _compared("=", path, operand, sql)
    if isinstance(operand, list):
        inside = [f"{path}[{number}]" for number in range(len(operand))]
        size = f"json_array_length(doc, {at}) = {sql.bind(len(operand))}"
        return _same(_has_type(at, "array"), size, inside, operand, sql)
    inside = [path + json_path(escape_key(key))[1:] for key in operand]
    size = f"(SELECT count(*) FROM json_each(doc, {at})) = {sql.bind(len(operand))}"
    return _same(_has_type(at, "object"), size, inside, operand.values(), sql)


def _same(kind: str, size: str, paths: list[str], values: Iterable[Any], sql: Parameters) -> str:
    pairs = zip(paths, values, strict=True)
    return _joined("AND", [kind, size, *(_equal(path, value, sql) for path, value in pairs)])


def _compared(operator: str, path: str, operand: str | float, sql: Parameters) -> str:
    at = sql.path(path)
    types = ("text",) if isinstance(operand, str) else _NUMBER
    return f"({extract(at)} {operator} {sql.bind(operand)} AND {_has_type(at, *types)})"


def _ordered(name: str, operator: str, path: str, operand: Any, sql: Parameters) -> str:
    if isinstance(operand, bool) or not isinstance(operand, str | int | float):
        raise ValueError(
            f"Could not run the filter: {name} compares with a number or a text, not "
            f"{type(operand).__name__}; for other values there are $eq, $ne and $in"
        )
    return _compared(operator, path, operand, sql)


def _in(path: str, operand: Any, sql: Parameters, name: str = "$in") -> str:
    """The numbers and texts go as one parameter; no affinity applies, so 1 is not "1"."""
    values = _expect(list, name, operand)
    plain = [v for v in values if isinstance(v, str | int | float) and not isinstance(v, bool)]
    others = [v for v in values if isinstance(v, bool) or not isinstance(v, str | int | float)]
    conditions = [_equal(path, value, sql) for value in others]
    if plain:
        at = sql.path(path)
        among = f"(SELECT value FROM json_each({sql.bind(json.dumps(plain))}))"
        conditions.append(f"({extract(at)} IN {among} AND {_has_type(at, 'text', *_NUMBER)})")
    return _joined("OR", conditions)


def _exists(path: str, operand: Any, sql: Parameters) -> str:
    wanted = "IS NOT NULL" if _expect(bool, "$exists", operand) else "IS NULL"
    return f"json_type(doc, {sql.path(path)}) {wanted}"


def _not_field(path: str, operand: Any, sql: Parameters) -> str:
    if not _has_operators(operand):
        raise ValueError(
            "Could not run the filter: $not in a field takes operators, as in "
            '{"$not": {"$gt": 3}}; for a value there is $ne'
        )
    return _not(_field(path, operand, sql))


_OPERATORS: dict[str, Callable[[str, Any, Parameters], str]] = {
    "$eq": _equal,
    "$ne": lambda path, operand, sql: _not(_equal(path, operand, sql)),
    "$gt": partial(_ordered, "$gt", ">"),
    "$gte": partial(_ordered, "$gte", ">="),
    "$lt": partial(_ordered, "$lt", "<"),
    "$lte": partial(_ordered, "$lte", "<="),
    "$in": _in,
    "$nin": lambda path, operand, sql: _not(_in(path, operand, sql, "$nin")),
    "$exists": _exists,
    "$not": _not_field,
}
