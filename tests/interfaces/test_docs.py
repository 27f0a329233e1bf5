"""Collections of documents: what they keep, whose transaction they take part in, which index the
planner uses, and what bad input meets."""

import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from buckethead import BucketSQLite
from buckethead.interfaces.docs import Collection, Docs
from buckethead.interfaces.filters import escape_key
from volume_tools import NEVER, directory, nothing_left_mounted, without_settings


@pytest.fixture
def connection() -> apsw.Connection:
    return apsw.Connection(":memory:")


@pytest.fixture
def people(connection: apsw.Connection) -> Collection:
    return Docs(connection).collection("people")


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BucketSQLite]:
    without_settings(monkeypatch, tmp_path)
    with nothing_left_mounted(), BucketSQLite(directory(tmp_path), NEVER) as started:
        yield started


def schema(connection: apsw.Connection) -> list[tuple[Any, ...]]:
    return connection.execute("SELECT type, name, sql FROM sqlite_schema").fetchall()


# ---- what is kept


def test_a_document_comes_back_as_it_was_with_its_id(people: Collection) -> None:
    ann = {"name": "Ann", "tags": ["x", {"y": None}], "age": 41.5, "ok": True, "é": {"": "\0😀"}}
    id = people.insert(ann)
    assert people.get(id) == {**ann, "_id": id}
    assert "_id" not in ann, "what was given is left alone"
    assert people.get("other") is None
    assert people.insert({"_id": "own"}) == "own"
    assert people.insert({"_id": "own"}, id="given") == "given"
    assert people.get("given") == {"_id": "given"}
    assert people.insert({}, id="") == ""
    assert people.get("") == {"_id": ""}


def test_collections_are_apart(connection: apsw.Connection) -> None:
    names = ["a", "b", "", "a' OR 1=1 --", 'a"', "a%"]
    docs = Docs(connection)
    for name in names:
        docs.collection(name).insert({"in": name}, id="1")
    for name in names:
        assert list(docs.collection(name).all()) == [{"in": name, "_id": "1"}]
    assert docs.collection("a").drop() == 1
    assert [docs.collection(name).count() for name in names] == [0, 1, 1, 1, 1, 1]


def test_replace_update_delete_and_drop(people: Collection) -> None:
    id = people.insert({"name": "Ann", "home": {"city": "Bonn", "zip": 1}})
    people.update(id, {"home": {"city": "Rome"}, "age": 41, "_id": "ignored"})
    assert people.get(id) == {"name": "Ann", "home": {"city": "Rome"}, "age": 41, "_id": id}
    people.replace(id, {"name": "Anne", "_id": "ignored"})
    assert people.get(id) == {"name": "Anne", "_id": id}
    assert people.delete(id)
    assert not people.delete(id)
    assert people.get(id) is None
    people.insert_many([{}, {}, {}])
    assert people.drop() == 3
    assert people.drop() == 0


def test_times_of_a_document(
    connection: apsw.Connection, people: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def times() -> Any:
        return connection.execute("SELECT created_at, updated_at FROM bh_docs").fetchone()

    clock = iter([1.5, 2.5, 3.5])
    monkeypatch.setattr("buckethead.interfaces.docs.time.time", lambda: next(clock))
    people.insert({}, id="1")
    assert times() == (1.5, 1.5)
    people.update("1", {"a": 1})
    assert times() == (1.5, 2.5)
    people.replace("1", {})
    assert times() == (1.5, 3.5)


def test_the_order_is_that_of_insertion_or_as_asked(people: Collection) -> None:
    people.insert_many(
        [{"_id": id, "n": n, "t": "x"} for id, n in zip("dbca", (2, 1, 2, 3), strict=True)]
    )
    people.replace("b", {"n": 1, "t": "x"})

    def ids(**how: Any) -> str:
        return "".join(one["_id"] for one in people.find({"t": "x"}, **how))

    for _ in range(2):
        assert ids() == "dbca" == "".join(one["_id"] for one in people.all())
        assert ids(limit=3) == "dbc"
        assert ids(limit=0) == ""
        assert ids(limit=10**30) == "dbca"
        assert ids(sort="n") == "bdca"
        assert ids(sort={"n": -1}, limit=3) == "adc"
        assert ids(sort={"n": 1, "_id": 1}) == "bcda"
        assert ids(sort={"t": 1, "n": -1, "_id": -1}) == "adcb"
        assert (people.find_one({"n": 2}) or {})["_id"] == "d"
        assert (people.find_one(sort={"n": -1}) or {})["_id"] == "a"
        people.create_index("n")
        people.create_index("t")


def test_a_sort_puts_nothing_before_numbers_before_text(people: Collection) -> None:
    people.insert_many([{"v": v} for v in ("b", 1, None, "a", 0.5, True, False, -1)])
    people.insert({})
    found = [one.get("v", "missing") for one in people.find(sort="v")]
    assert found == [None, "missing", -1, False, 0.5, 1, True, "a", "b"]


def test_a_generator_of_documents_may_change_them_as_it_goes(people: Collection) -> None:
    people.insert_many([{"n": n} for n in range(50)])
    for one in people.all():
        people.update(one["_id"], {"n": one["n"] + 1})
    assert [one["n"] for one in people.all()] == list(range(1, 51))


def test_rows_and_cursors_of_the_connections_own_do_not_matter(
    connection: apsw.Connection, people: Collection
) -> None:
    connection.row_trace = lambda _cursor, row: {"row": row}
    people.insert({"a": 1}, id="1")
    people.update("1", {"b": 2})
    assert people.find({"a": 1}) == [{"a": 1, "b": 2, "_id": "1"}] == list(people.all())
    assert people.count() == 1


# ---- the table


def test_reading_makes_no_table(connection: apsw.Connection, people: Collection) -> None:
    assert people.get("1") is None
    assert people.find() == people.find({"a": 1}, sort="a", limit=1) == list(people.all()) == []
    assert people.find_one({"a": 1}) is None
    assert people.count() == people.count({"a": 1}) == people.drop() == 0
    assert not people.delete("1")
    for change in (people.replace, people.update):
        with pytest.raises(KeyError, match="has no document with the id '1'"):
            change("1", {})
    assert schema(connection) == []
    assert not connection.in_transaction


def test_another_connections_table_is_seen_at_once(database: BucketSQLite) -> None:
    mine = Docs(database.connection).collection("c")
    assert mine.find({"a": 1}) == []
    Docs(database.connect()).collection("c").insert({"a": 1}, id="1")
    assert mine.find({"a": 1}) == [{"a": 1, "_id": "1"}]
    assert mine.delete("1")
    mine.insert({})
    database.connect().execute("DROP TABLE bh_docs")
    assert mine.count() == 0
    mine.insert({})
    assert mine.count() == 1


def test_a_temporary_table_of_that_name_is_somebody_elses(
    connection: apsw.Connection, people: Collection
) -> None:
    connection.execute("CREATE TEMP TABLE bh_docs(x)")
    people.insert({"a": 1}, id="1")
    assert people.find({"a": 1}) == [{"a": 1, "_id": "1"}]


OLD = """
CREATE TABLE IF NOT EXISTS bh_docs (
    collection  TEXT NOT NULL,
    id          TEXT NOT NULL,
    doc         TEXT NOT NULL,
    created_at  REAL NOT NULL,
    updated_at  REAL NOT NULL,
    PRIMARY KEY (collection, id)
);
CREATE INDEX IF NOT EXISTS idx_bh_docs_collection ON bh_docs(collection);
"""


def test_documents_of_older_versions_are_found_and_changed(
    connection: apsw.Connection, people: Collection
) -> None:
    connection.execute(OLD)
    before = schema(connection)
    old = {"_id": "1", "naïve 'key\"": {"😀": "é"}, "n": 1}
    row = ("people", "1", json.dumps(old), 1.0, 2.0)
    connection.execute("INSERT INTO bh_docs VALUES(?,?,?,?,?)", row)
    connection.execute("INSERT INTO bh_docs VALUES('people','2','{\"v\": NaN}',3.0,4.0)")
    assert people.find({"naïve 'key\".😀": "é"}) == [old]
    assert people.get("1") == old
    people.update("1", {"n": 2})
    people.insert({"n": 3}, id="3")
    assert [one.get("n") for one in people.all()] == [2, None, 3]
    assert schema(connection) == before


def test_json_of_other_tools_that_python_cannot_read_is_named(
    connection: apsw.Connection, people: Collection
) -> None:
    connection.execute(OLD)
    connection.execute("INSERT INTO bh_docs VALUES('people','1',?,1.0,2.0)", ("[" * 100_000,))
    for read in (lambda: people.get("1"), lambda: people.update("1", {"n": 2}), people.all):
        with pytest.raises(ValueError, match="under the id '1' is not a JSON object"):
            list(read() or ())


def test_other_tools_read_and_write_the_table(database: BucketSQLite, tmp_path: Path) -> None:
    notes = Docs(database.connection).collection("notes")
    odd = {key: n for n, key in enumerate(["", "a.b", "'", "\\", "\n", "]", "$", "é", "😀", "a b"])}
    notes.insert({"n": 1, "f": 0.1, **odd}, id="1")
    for path in ("n", "f", *map(escape_key, odd)):
        notes.create_index(path)
    database.checkpoint()
    plain = sqlite3.connect(tmp_path / "bucket" / "x.db")
    assert plain.execute("SELECT collection, id, doc FROM bh_docs").fetchall() == [
        ("notes", "1", json.dumps({"n": 1, "f": 0.1, **odd, "_id": "1"}, ensure_ascii=False))
    ]
    assert plain.execute("SELECT id FROM bh_docs WHERE json_extract(doc,'$.n')=1").fetchall()
    assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    plain.close()
    ours = database.connection
    ours.execute("INSERT INTO bh_docs VALUES('notes', '2', json_object('n', 1), 0, 0)")
    assert [one["_id"] for one in notes.find({"n": 1})] == ["1", "2"]


def test_documents_come_back_from_the_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_settings(monkeypatch, tmp_path)
    with nothing_left_mounted():
        with BucketSQLite(directory(tmp_path), NEVER) as database:
            notes = Docs(database.connection).collection("notes")
            notes.insert_many([{"n": n} for n in range(100)])
            notes.create_index("n")
        with BucketSQLite(directory(tmp_path), NEVER, read_only=True) as database:
            notes = Docs(database.connection).collection("notes")
            assert [one["n"] for one in notes.find({"n": {"$gte": 98}})] == [98, 99]
            with pytest.raises(apsw.ReadOnlyError):
                notes.insert({})
            with pytest.raises(apsw.ReadOnlyError):
                notes.update("1", {})


# ---- transactions


def test_insert_many_stores_all_or_nothing(connection: apsw.Connection, people: Collection) -> None:
    batch = [{"_id": "1"}, {"_id": "2"}, {"_id": "1"}]
    with pytest.raises(ValueError, match="has a document with the id '1' already"):
        people.insert_many(batch)
    assert schema(connection) == []
    with pytest.raises(ValueError, match="valid JSON"):
        people.insert_many([{}, {"x": object()}])
    assert people.insert_many([]) == []
    ids = people.insert_many(iter([{"n": 1}, {"n": 2}]))
    assert [one["_id"] for one in people.all()] == ids
    assert not connection.in_transaction


def test_a_failure_undoes_its_part_of_the_callers_transaction(
    connection: apsw.Connection, people: Collection
) -> None:
    connection.execute("BEGIN")
    people.insert({}, id="before")
    with pytest.raises(ValueError, match="already"):
        people.insert_many([{"_id": "new"}, {"_id": "before"}])
    with pytest.raises(ValueError, match="valid JSON"):
        people.update("before", {"x": {1}})
    people.insert({}, id="after")
    assert connection.in_transaction
    connection.execute("COMMIT")
    assert [one["_id"] for one in people.all()] == ["before", "after"]


def test_the_callers_rollback_undoes_everything(
    connection: apsw.Connection, people: Collection
) -> None:
    connection.execute("BEGIN")
    id = people.insert({"n": 1})
    people.update(id, {"n": 2})
    people.create_index("n")
    assert people.find({"n": 2})
    connection.execute("ROLLBACK")
    assert schema(connection) == []
    assert people.find({"n": 2}) == []


class _AsADictionary(RuleBasedStateMachine):
    """A collection does what a dictionary does, in and out of transactions."""

    ids = st.sampled_from("abc")
    bodies = st.dictionaries(st.sampled_from("xy"), st.integers(0, 2), max_size=2)

    def __init__(self) -> None:
        super().__init__()
        self.connection = apsw.Connection(":memory:")
        self.collection = Docs(self.connection).collection("c")
        Docs(self.connection).collection("other").insert({"x": 1}, id="a")
        self.model: dict[str, dict[str, Any]] = {}
        self.saved: dict[str, dict[str, Any]] | None = None

    @rule(id=ids, body=bodies)
    def insert(self, id: str, body: dict[str, Any]) -> None:
        if id in self.model:
            with pytest.raises(ValueError, match="already"):
                self.collection.insert(body, id=id)
        else:
            self.collection.insert(body, id=id)
            self.model[id] = {**body, "_id": id}

    @rule(new=st.lists(ids, max_size=3))
    def insert_many(self, new: list[str]) -> None:
        batch = [{"_id": id} for id in new]
        if len(set(new)) < len(new) or set(new) & set(self.model):
            with pytest.raises(ValueError, match="already"):
                self.collection.insert_many(batch)
        else:
            assert self.collection.insert_many(batch) == new
            self.model.update(zip(new, batch, strict=True))

    @rule(id=ids, body=bodies, whole=st.booleans())
    def change(self, id: str, body: dict[str, Any], whole: bool) -> None:
        method = self.collection.replace if whole else self.collection.update
        if id in self.model:
            method(id, body)
            self.model[id] = {**({} if whole else self.model[id]), **body, "_id": id}
        else:
            with pytest.raises(KeyError):
                method(id, body)

    @rule(id=ids)
    def delete(self, id: str) -> None:
        assert self.collection.delete(id) == (self.model.pop(id, None) is not None)

    @rule()
    def drop(self) -> None:
        assert self.collection.drop() == len(self.model)
        self.model = {}

    @rule(path=st.sampled_from("xy"))
    def create_index(self, path: str) -> None:
        self.collection.create_index(path)

    @precondition(lambda self: self.saved is None)
    @rule()
    def begin(self) -> None:
        self.connection.execute("BEGIN")
        self.saved = {id: dict(body) for id, body in self.model.items()}

    @precondition(lambda self: self.saved is not None)
    @rule(keep=st.booleans())
    def end(self, keep: bool) -> None:
        self.connection.execute("COMMIT" if keep else "ROLLBACK")
        if not keep and self.saved is not None:
            self.model = self.saved
        self.saved = None

    @invariant()
    def is_equal(self) -> None:
        assert self.connection.in_transaction == (self.saved is not None)
        assert list(self.collection.all()) == list(self.model.values())
        ones = [body for body in self.model.values() if body.get("x") == 1]
        assert self.collection.find({"x": 1}) == ones
        assert Docs(self.connection).collection("other").count() == 1

    def teardown(self) -> None:
        self.connection.close()


_AsADictionary.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestAsADictionary = _AsADictionary.TestCase


def test_a_write_waits_for_another_writer(database: BucketSQLite) -> None:
    """Also on a connection that begins its transactions DEFERRED, and before there is a table."""
    other, plain = database.connect(), apsw.Connection(database.uri)
    assert plain.transaction_mode == "DEFERRED"
    mine = Docs(plain).collection("c")

    def other_commits(_: int) -> bool:
        if other.in_transaction:
            Docs(other).collection("c").insert({"n": 0})
            other.execute("COMMIT")
        return True

    plain.set_busy_handler(other_commits)
    for write in (
        lambda: mine.insert({"n": 1}, id="mine"),
        lambda: mine.update("mine", {"n": 2}),
        lambda: mine.replace("mine", {"n": 3}),
        lambda: mine.create_index("n"),
        lambda: mine.delete("mine"),
    ):
        other.execute("BEGIN IMMEDIATE")
        write()
        assert not other.in_transaction, "it waited"
    assert mine.count({"n": 0}) == 5
    assert plain.transaction_mode == "DEFERRED"


def test_updates_of_threads_are_not_lost(database: BucketSQLite) -> None:
    Docs(database.connection).collection("c").insert({}, id="1")

    def work(thread: int) -> None:
        mine = Docs(database.connect()).collection("c")
        for number in range(20):
            mine.update("1", {f"{thread}.{number}": True})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = Docs(database.connection).collection("c").get("1") or {}
    assert len(found) == 4 * 20 + 1


def test_a_stale_read_transaction_of_the_caller_is_told_so(database: BucketSQLite) -> None:
    mine = Docs(database.connection).collection("c")
    mine.insert({"n": 0}, id="1")
    other = apsw.Connection(database.uri)
    other.execute("BEGIN")
    stale = Docs(other).collection("c")
    assert stale.get("1") == {"n": 0, "_id": "1"}
    mine.update("1", {"n": 1})
    for write in (lambda: stale.update("1", {"m": 1}), lambda: stale.insert({})):
        with pytest.raises(apsw.BusyError):
            write()
    assert other.in_transaction
    other.execute("ROLLBACK")
    stale.update("1", {"m": 1})
    assert stale.get("1") == {"n": 1, "m": 1, "_id": "1"}


# ---- the planner


def plan(collection: Collection, *filter: Any, **how: Any) -> str:
    """How SQLite would execute the `find`."""
    connection = collection._connection
    seen: list[tuple[str, Any]] = []

    def note(_: apsw.Cursor, sql: str, values: Any) -> bool:
        seen.append((sql, values))
        return True

    connection.exec_trace = note
    collection.find(*filter, **how)
    connection.exec_trace = None
    sql, values = seen[-1]
    return "\n".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values))


@pytest.fixture
def many(people: Collection) -> Collection:
    people.insert_many(
        [{"n": n % 500, "a.b": {"é'": f"{n}"}, "even": n % 2 == 0} for n in range(2000)]
    )
    return people


ODD = "a\\.b.é'"
FILTERS: list[tuple[dict[str, Any], str]] = [
    ({"n": 7}, "(collection=? AND <expr>=?)"),
    ({"n": {"$eq": 7}, "even": False}, "(collection=? AND <expr>=?)"),
    ({"n": {"$gt": 495}}, "(collection=? AND <expr>>?)"),
    ({"n": {"$lte": 3}}, "(collection=? AND <expr><?)"),
    ({"n": {"$gte": 3, "$lt": 5}}, "(collection=? AND <expr>>? AND <expr><?)"),
    ({"n": {"$in": [3, 4, "x"]}}, "(collection=? AND <expr>=?)"),
    ({ODD: "77"}, "(collection=? AND <expr>=?)"),
    ({"$and": [{"even": True}, {ODD: {"$in": ["78"]}}]}, "(collection=? AND <expr>=?)"),
]


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize(("filter", "search"), FILTERS, ids=repr)
def test_an_index_is_used(
    many: Collection, filter: dict[str, Any], search: str, analyzed: bool
) -> None:
    expected = many.find(filter)
    assert "<expr>" not in plan(many, filter)
    many.create_index("n")
    many.create_index(ODD)
    if analyzed:
        many._connection.execute("ANALYZE")
    assert search in plan(many, filter)
    assert many.find(filter) == expected != []


def test_an_index_gives_the_order(many: Collection) -> None:
    assert "TEMP B-TREE" in plan(many, sort="n", limit=3)
    many.create_index("n")
    assert "TEMP B-TREE" not in plan(many, sort="n", limit=3)
    assert "TEMP B-TREE" not in plan(many, {"even": True}, sort="n", limit=3)


def test_the_order_of_insertion_needs_no_sorting(many: Collection) -> None:
    assert "TEMP B-TREE" not in plan(many) + plan(many, {"even": True}, limit=1)


def test_an_index_is_made_once(connection: apsw.Connection, people: Collection) -> None:
    people.create_index("a.b")
    made = schema(connection)
    people.create_index("a.b")
    Docs(connection).collection("others").create_index("a.b")
    assert schema(connection) == made
    people.create_index("a\\.b")
    assert len(schema(connection)) == len(made) + 1


# ---- bad input


def cyclic() -> dict[str, Any]:
    document: dict[str, Any] = {}
    document["self"] = [document]
    return document


def deep(levels: int) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for _ in range(levels):
        document = {"a": document}
    return document


BAD: list[tuple[Any, str]] = [
    (None, "dictionary"),
    ("{}", "dictionary"),
    ([], "dictionary"),
    ({1: 2}, "valid string"),
    ({"a": {None: 2}}, "valid string at a.None"),
    ({"a": (1,)}, "valid JSON value at a"),
    ({"a": [{"b": b"x"}]}, r"valid JSON value at a\.0\.b"),
    ({"a": float("nan")}, "Out of range float"),
    ({"a": [float("-inf")]}, "Out of range float"),
    ({"a": "\ud800"}, "surrogates"),
    ({"\udfff": 1}, "surrogates"),
    ({"a": {"b\0": 1}}, r"U\+0000"),
    (cyclic(), "cyclic"),
    (deep(300), "depth"),
    (deep(100_000), "depth"),
]


@pytest.mark.parametrize(("document", "words"), BAD, ids=[words for _, words in BAD])
def test_what_is_no_document_is_refused(
    connection: apsw.Connection, people: Collection, document: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        people.insert(document)
    assert schema(connection) == []
    people.insert({"kept": 1}, id="1")
    for write in (people.update, people.replace):
        with pytest.raises(ValueError, match=words):
            write("1", document)
    with pytest.raises(ValueError, match=words):
        people.insert_many([{}, document])
    assert list(people.all()) == [{"kept": 1, "_id": "1"}]


def test_a_refusal_does_not_repeat_the_document(people: Collection) -> None:
    with pytest.raises(ValueError, match="valid JSON") as caught:
        people.insert({"a": b"tell nobody", "b": object()})
    whole = repr(caught.value) + repr(caught.value.__context__) + str(caught.value.__context__)
    assert "nobody" not in whole


@pytest.mark.parametrize("id", [1, b"x", True, ["x"], "\ud800"])
def test_an_id_is_text(people: Collection, id: Any) -> None:
    people.insert({}, id="1")
    for use in (
        lambda: people.insert({}, id=id),
        lambda: people.insert({"_id": id}),
        lambda: people.get(id),
        lambda: people.delete(id),
        lambda: people.replace(id, {}),
        lambda: people.update(id, {}),
    ):
        with pytest.raises(ValueError, match="the id"):
            use()
    with pytest.raises(ValueError, match="the name of a collection"):
        Docs(people._connection).collection(id)


@pytest.mark.parametrize(
    "how",
    [
        *({"limit": limit} for limit in (-1, 1.5, "3", True)),
        *(
            {"sort": sort}
            for sort in (1, ["a"], {"a": 0}, {"a": "up"}, {"a": True}, {1: 1}, "a\\b")
        ),
        {"sort": {"a": 1, "b": [1]}},
        {"sort": "a\0"},
    ],
    ids=repr,
)
def test_limits_and_sorts_are_checked(people: Collection, how: Any) -> None:
    with pytest.raises(ValueError, match=r"limit is|sort|path"):
        people.find({}, **how)


@pytest.mark.parametrize("path", ["a\\", "a\0", "\ud800", 'a.b"c', 5, None])
def test_the_path_of_an_index_is_checked(
    connection: apsw.Connection, people: Collection, path: Any
) -> None:
    with pytest.raises(ValueError, match="path"):
        people.create_index(path)
    assert schema(connection) == []


@pytest.mark.parametrize("text", ["{", "", "[1]", "5", b"\x01\x02"])
def test_a_row_that_is_no_document_is_named(
    connection: apsw.Connection, people: Collection, text: str | bytes
) -> None:
    people.insert({"a": 1}, id="good")
    connection.execute("INSERT INTO bh_docs VALUES('people', 'odd', ?, 0, 0)", (text,))
    for read in (lambda: people.get("odd"), people.find, lambda: list(people.all())):
        with pytest.raises(ValueError, match="under the id 'odd' is not a JSON object"):
            read()
    if text not in ("[1]", "5"):
        for use in (lambda: people.find({"a": 1}), lambda: people.create_index("a")):
            with pytest.raises(ValueError, match="under the id 'odd' is not a JSON object"):
                use()
    assert people.get("good") == {"a": 1, "_id": "good"}
    people.replace("odd", {"a": 2})
    assert [one["_id"] for one in people.find({"a": {"$gt": 0}})] == ["good", "odd"]


def test_a_constraint_of_the_users_own_passes_as_it_is(
    connection: apsw.Connection, people: Collection
) -> None:
    people.insert({})
    connection.execute(
        "CREATE TRIGGER no AFTER INSERT ON bh_docs BEGIN SELECT RAISE(ABORT, 'not today'); END"
    )
    with pytest.raises(apsw.ConstraintError, match="not today"):
        people.insert({})
    assert people.count() == 1
