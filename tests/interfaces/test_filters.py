"""Filters against the same filters evaluated in plain Python, and what is no filter."""

import operator
from collections.abc import Callable
from typing import Any

import apsw
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from buckethead.interfaces.docs import Collection, Docs
from buckethead.interfaces.filters import escape_key

NASTY = [
    *(
        "",
        "a",
        "b",
        "a.b",
        ".",
        "$",
        "$gt",
        "$and",
        '"',
        "'",
        '""',
        "\\",
        "\\\\",
        '\\"',
        "\\.",
        "]",
    ),
    *("[0]", "0", "a]b", "é", "É", "😀", "\u2028", "\n", "\x7f", "\\u0041", "*", "#-1", " a", "A"),
    *("?1", "') OR 1 --", '"."', "null", "_id"),
]
KEYS = st.sampled_from(NASTY) | st.text(st.characters(codec="utf-8", exclude_characters="\0"))
FEW = st.sampled_from(["a", "a.b", "$gt", '"', "", "é]"])  # so that paths of filters lead somewhere
SCALARS = (
    st.sampled_from(
        [None, True, False, 0, 1, -1, 1.0, 0.0, -0.0, 0.1, 2**53 + 1, 2.0**53, 2**63 - 1, -(2**63)]
    )
    | st.sampled_from([2**63, 10**30, 1e30, 1e308, 5e-324, 10**400])
    | st.sampled_from(
        ["", "1", "1.0", "true", "null", "a", "A", "a\0", "a\0b", "é", "😀", "\uffff"]
    )
    | st.sampled_from(["[]", "{}", "[1]"])
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FEW | KEYS, inner, max_size=3),
    max_leaves=5,
)
DOCUMENTS = st.dictionaries(FEW | KEYS, VALUES, max_size=4)
PATHS = st.lists(FEW | KEYS, min_size=1, max_size=3).map(
    lambda keys: ".".join(map(escape_key, keys))
)


def literal(value: Any) -> bool:
    """Whether a field may have it without $eq."""
    return not (isinstance(value, dict) and any(key.startswith("$") for key in value))


OPERATIONS = st.recursive(
    st.one_of(
        *(st.tuples(st.just(name), VALUES) for name in ("$eq", "$ne")),
        *(
            st.tuples(st.just(name), SCALARS.filter(lambda v: kind(v) in ("number", "text")))
            for name in ("$gt", "$gte", "$lt", "$lte")
        ),
        *(st.tuples(st.just(name), st.lists(VALUES, max_size=4)) for name in ("$in", "$nin")),
        st.tuples(st.just("$exists"), st.booleans()),
    ),
    lambda inner: st.tuples(st.just("$not"), st.lists(inner, min_size=1, max_size=2).map(dict)),
    max_leaves=3,
)
FIELDS = st.dictionaries(
    PATHS,
    VALUES.filter(literal) | st.lists(OPERATIONS, min_size=1, max_size=3).map(dict),
    max_size=2,
)
FILTERS = st.recursive(
    FIELDS,
    lambda inner: st.one_of(
        st.builds(lambda a, b: {**a, **b}, FIELDS, st.fixed_dictionaries({"$not": inner})),
        *(
            st.builds(
                lambda a, b: {**a, **b},
                FIELDS,
                st.fixed_dictionaries({name: st.lists(inner, max_size=3)}),
            )
            for name in ("$and", "$or")
        ),
    ),
    max_leaves=4,
)


# ---- the language in plain Python

MISSING = object()


def kind(value: Any) -> str:
    """The JSON type of a value."""
    if value is None or value is MISSING or isinstance(value, bool):
        return repr(value)
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "text"
    return "list" if isinstance(value, list) else "object"


def number(value: int | float) -> int | float:
    """As SQLite has it: integers beyond 64 bits as floating point."""
    if isinstance(value, float) or -(2**63) <= value < 2**63:
        return value
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def same(one: Any, other: Any) -> bool:
    if kind(one) != kind(other) or one is MISSING:
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(number(one) == number(other) if kind(one) == "number" else one == other)


def ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def holds(found: Any, operand: Any) -> bool:
        if kind(found) != kind(operand):
            return False
        if kind(found) == "number":
            return compare(number(found), number(operand))
        return compare(found.encode(), operand.encode())

    return holds


OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": same,
    "$ne": lambda found, operand: not same(found, operand),
    "$gt": ordered(operator.gt),
    "$gte": ordered(operator.ge),
    "$lt": ordered(operator.lt),
    "$lte": ordered(operator.le),
    "$in": lambda found, operand: any(same(found, one) for one in operand),
    "$nin": lambda found, operand: not any(same(found, one) for one in operand),
    "$exists": lambda found, operand: (found is not MISSING) is operand,
    "$not": lambda found, operand: not field_matches(found, operand),
}


def field_matches(found: Any, operand: Any) -> bool:
    if literal(operand):
        return same(found, operand)
    return all(OPERATORS[name](found, value) for name, value in operand.items())


def keys_of(path: str) -> list[str]:
    """Character by character, otherwise than the code under test."""
    keys, rest = [""], iter(path)
    for character in rest:
        if character == ".":
            keys.append("")
        else:
            keys[-1] += next(rest) if character == "\\" else character
    return keys


def at(document: Any, path: str) -> Any:
    for key in keys_of(path):
        if not isinstance(document, dict) or key not in document:
            return MISSING
        document = document[key]
    return document


def matches(filter: dict[str, Any], document: dict[str, Any]) -> bool:
    def entry(key: str, operand: Any) -> bool:
        if key == "$and":
            return all(matches(one, document) for one in operand)
        if key == "$or":
            return any(matches(one, document) for one in operand)
        if key == "$not":
            return not matches(operand, document)
        return field_matches(at(document, key), operand)

    return all(entry(key, operand) for key, operand in filter.items())


def paths_in(filter: dict[str, Any]) -> set[str]:
    """Every path that a filter names."""
    found: set[str] = set()
    for key, operand in filter.items():
        if key in ("$and", "$or"):
            found |= {path for one in operand for path in paths_in(one)}
        elif key == "$not":
            found |= paths_in(operand)
        else:
            found.add(key)
    return found


# ---- tests


def fresh(documents: list[dict[str, Any]]) -> tuple[Collection, list[dict[str, Any]]]:
    """A collection in memory, and its documents as they are found, in order."""
    collection = Docs(apsw.Connection(":memory:")).collection("c")
    ids = collection.insert_many([{**one, "_id": str(n)} for n, one in enumerate(documents)])
    return collection, [{**one, "_id": id} for id, one in zip(ids, documents, strict=True)]


@settings(max_examples=300, deadline=None)
@given(st.lists(DOCUMENTS, min_size=1, max_size=5), FILTERS)
@example([{"a": 1}, {"a": True}, {"a": "1"}, {"a": None}, {}], {"a": {"$in": [1, "1"]}})
@example([{"a": [1, {"b": 1.0}]}, {"a": [1]}], {"a": [1.0, {"b": 1}]})
@example([{"a.b": 1}, {"a": {"b": 1}}], {"a\\.b": 1})
@example([{"$gt": 1}, {"a": {"$gt": 1}}], {"\\$gt": 1, "$or": [{"a": {"$exists": False}}]})
def test_a_filter_finds_what_plain_python_finds(
    documents: list[dict[str, Any]], filter: dict[str, Any]
) -> None:
    collection, stored = fresh(documents)
    expected = [one for one in stored if matches(filter, one)]
    assert collection.find(filter) == expected
    assert collection.count(filter) == len(expected)
    assert collection.find_one(filter) == (expected[0] if expected else None)
    for path in paths_in(filter):
        if '"' not in path:
            collection.create_index(path)
    assert collection.find(filter) == expected, "an index changes nothing"
    assert collection.find({"$not": filter}) == [one for one in stored if one not in expected]


ALL_KINDS: list[Any] = [
    *(None, True, False, 0, 1, -1, 1.0, -0.0, 0.1, 0.5, 2**53 + 1, 2.0**53, 2**63 - 1, 2**63),
    *(10**30, 1e30, 10**400, 5e-324, "", "1", "1.0", "true", "null", "a", "A", "a\0", "a\0b"),
    *("\x7f", "é", "\uffff", "😀", "[]", "{}", "[1]", [], [1], [True], [1, "a"], [[]], [None], {}),
    *({"a": 1}, {"a": 1.0}, {"a": True}, {"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": {}}, {"": 0}),
]


@pytest.mark.parametrize("name", [name for name in OPERATORS if name not in ("$exists", "$not")])
def test_an_operator_compares_every_kind_of_value_with_every_other(name: str) -> None:
    collection, stored = fresh([{}, *({"v": value} for value in ALL_KINDS)])
    ordering = name in ("$gt", "$gte", "$lt", "$lte")
    for value in ALL_KINDS:
        if ordering and kind(value) not in ("number", "text"):
            continue
        operand = [value, None, "a"] if name in ("$in", "$nin") else value
        expected = [one for one in stored if OPERATORS[name](one.get("v", MISSING), operand)]
        assert collection.find({"v": {name: operand}}) == expected, value


@settings(max_examples=100, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=5))
def test_every_value_is_equal_to_itself_and_to_nothing_that_is_not(values: list[Any]) -> None:
    collection, stored = fresh([{"v": value} for value in values])
    for value in values:
        expected = [one for one in stored if same(one["v"], value)]
        assert collection.find({"v": {"$eq": value}}) == expected
        assert collection.find({"v": {"$in": [value]}}) == expected
        assert collection.count({"v": {"$ne": value}}) == len(values) - len(expected)


@pytest.mark.parametrize("key", NASTY)
def test_every_key_can_be_named(key: str) -> None:
    others = [{other: {"x": 1}} for other in NASTY if other not in (key, "_id")]
    path = f"{escape_key(key)}.x"
    collection, _ = fresh([*others, {key: {"x": 1}} if key != "_id" else {}])
    wanted = [str(len(others))] if key != "_id" else []
    for _ in range(2):
        assert [one["_id"] for one in collection.find({path: 1})] == wanted
        assert [one["_id"] for one in collection.find({path: {"$exists": True}})] == wanted
        if '"' not in path:
            collection.create_index(path)


def test_a_key_of_another_case_or_form_is_another_key() -> None:
    collection, _ = fresh([{"e\u0301": 1}, {"\u00e9": 2}, {"E\u0301": 3}])
    assert [one["_id"] for one in collection.find({"\u00e9": {"$exists": True}})] == ["1"]


def traced(collection: Collection) -> list[tuple[str, Any]]:
    """The statements that the collection executes from now on."""
    seen: list[tuple[str, Any]] = []

    def note(_: apsw.Cursor, sql: str, values: Any) -> bool:
        seen.append((sql, values))
        return True

    collection._connection.exec_trace = note
    return seen


def test_no_word_of_a_filter_is_in_the_sql() -> None:
    collection, _ = fresh([{"a": 1}])
    seen = traced(collection)
    word = "zebra'\""
    collection.find(
        {
            word: {"$eq": {word: [word, 1971]}, "$in": [word, None, 1971], "$gt": word},
            f"{word}.{word}": {"$nin": [[word]], "$lt": 1971.5, "$exists": True},
            "$or": [{word: True}, {"$not": {word: word}}],
        },
        sort={word: -1, f"{word}.x": 1},
        limit=1971,
    )
    assert len(seen) == 2
    assert all("zebra" not in sql and "1971" not in sql for sql, _ in seen)


@pytest.mark.parametrize(
    ("filter", "words"),
    [
        ({"a": {"$regex": "x"}}, r"unknown operator '\$regex'"),
        ({"a": {"$gt": 1, "b": 2}}, "unknown operator 'b'"),
        ({"$nor": []}, r"unknown operator '\$nor'"),
        ({"$gt": 1}, r"written '\\\\\$gt'"),
        ({"a": {"$or": [{"$gt": 1}]}}, r"unknown operator '\$or'"),
        ({"a": {"$gt": None}}, "compares with a number or a text, not NoneType"),
        ({"a": {"$gte": True}}, "not bool"),
        ({"a": {"$lt": [1]}}, "not list"),
        ({"a": {"$lte": {}}}, "not dict"),
        ({"a": {"$in": 1}}, r"\$in takes a list"),
        ({"a": {"$nin": "ab"}}, r"\$nin takes a list"),
        ({"a": {"$exists": 1}}, "true or false"),
        ({"a": {"$not": 5}}, r"\$not in a field takes operators"),
        ({"$not": [{"a": 1}]}, "takes a filter"),
        ({"$and": {"a": 1}}, "takes a list"),
        ({"$or": [1]}, r"each of \$or takes a filter"),
        ({"a\\b": 1}, "backslash"),
        ({"a\\": 1}, "backslash"),
        ({"a": float("nan")}, "filter"),
        ({"a": {"$gt": float("inf")}}, "filter"),
        ({"a": {"$in": [b"x"]}}, "valid JSON"),
        ({"a": (1, 2)}, "valid JSON"),
        ({1: 2}, "valid string"),
        ({"a\0": 1}, r"U\+0000"),
        ({"a": {"$eq": {"\0": 1}}}, r"U\+0000"),
        ({"a": "\ud800"}, "surrogates"),
        ([("a", 1)], "dictionary"),
        ("a", "dictionary"),
        (5, "dictionary"),
        ({"a": {"$in": [object()]}}, r"at a\.\$in\.0"),
    ],
    ids=repr,
)
def test_what_is_no_filter_is_refused_in_words(filter: Any, words: str) -> None:
    for collection in (fresh([{"a": 1}])[0], Docs(apsw.Connection(":memory:")).collection("new")):
        with pytest.raises(ValueError, match=words):
            collection.find(filter)
        with pytest.raises(ValueError, match=words):
            collection.count(filter)


def test_a_filter_within_itself_is_refused() -> None:
    collection, _ = fresh([{"a": 1}])
    filter: dict[str, Any] = {}
    filter["$not"] = filter
    with pytest.raises(ValueError, match="cyclic"):
        collection.find(filter)


def nested(levels: int, wrap: Callable[[Any], Any], inner: Any) -> Any:
    for _ in range(levels):
        inner = wrap(inner)
    return inner


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: {"$not": inner},
        lambda inner: {"$and": [inner, {"a": 1}]},
        lambda inner: {"$or": [{"b": 1}, inner]},
    ],
)
def test_deep_filters_work_or_are_refused(wrap: Callable[[Any], Any]) -> None:
    collection, stored = fresh([{"a": 1}])
    assert collection.find(nested(60, wrap, {"a": 1})) == stored
    with pytest.raises(ValueError, match=r"depth|deep"):
        collection.find(nested(400, wrap, {"a": 1}))


def test_a_filter_too_deep_for_what_is_left_of_the_stack_is_refused() -> None:
    collection, _ = fresh([{"a": 1}])
    filter = nested(100, lambda inner: {"$not": inner}, {"a": 1})

    def down() -> str:
        """Deeper and deeper, until the filter no longer fits: what is said then."""
        try:
            collection.find(filter)
        except ValueError as error:
            return str(error)
        return down()

    assert "nested too deeply" in down()


def test_wide_filters_work_up_to_the_parameters_of_sqlite() -> None:
    collection, stored = fresh([{"a": 4999}])
    assert collection.find({"$or": [{"a": number} for number in range(5000)]}) == stored
    assert collection.find({"a": {"$in": list(range(50_000))}}) == stored
    with pytest.raises(ValueError, match=r"Put many values into one \$in"):
        collection.find({"$or": [{"a": number} for number in range(20_000)]})


def test_empty_lists_and_filters_mean_all_or_nothing() -> None:
    collection, stored = fresh([{"a": 1}, {}])
    assert collection.find({}) == collection.find(None) == collection.find({"$and": []}) == stored
    assert collection.find({"$or": []}) == collection.find({"a": {"$in": []}}) == []
    assert collection.find({"a": {"$nin": []}}) == collection.find({"$not": {"$or": []}}) == stored
    assert collection.find({"$not": {}}) == []
