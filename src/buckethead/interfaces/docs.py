"""Documents: JSON objects in named collections, found by filters.

They are rows of one table, ``bh_docs``, as text that any SQLite tool reads; the first write makes
the table. A document has its id as ``_id`` as well.

Rule: a method takes part in the transaction that is running, and undoes exactly its own part when
it fails. Where none is running, it is one of its own. Its first statement on the table is a write,
so that it waits for other writers instead of failing beside them.
"""

import json
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import apsw

from .filters import (
    Filter,
    Parameters,
    Sort,
    as_json,
    condition,
    extract,
    index_name,
    json_path,
    ordering,
)
from .statements import alone, as_one, run

Document = dict[str, Any]
Row = tuple[str, str, str, float, float]

# as buckethead 0.1 made it; the index keeps the order of insertion of each collection
_CREATE = """
CREATE TABLE IF NOT EXISTS main.bh_docs (
    collection TEXT NOT NULL,
    id TEXT NOT NULL,
    doc TEXT NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    PRIMARY KEY (collection, id)
);
CREATE INDEX IF NOT EXISTS main.idx_bh_docs_collection ON bh_docs(collection);
"""
_INSERT = "INSERT INTO main.bh_docs(collection, id, doc, created_at, updated_at) VALUES(?,?,?,?,?)"
_ONE = "WHERE collection = ? AND id = ?"


class Docs:
    """The documents of a database, through a connection to it."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def collection(self, name: str) -> "Collection":
        """The collection of that name; it is there as soon as it has a document.

        Raises ValueError when the name is not text."""
        return Collection(self._connection, name)


class Collection:
    """Documents under one name.

    Errors of SQLite pass as they are: a busy database, a volume that may only be read.
    """

    def __init__(self, connection: apsw.Connection, name: str) -> None:
        self.name = _text(name, "name of a collection")
        self._connection = connection

    # -- writing ----------------------------------------------------------------------------

    def insert(self, document: Document, *, id: str | None = None) -> str:
        """Store a new document and return its id: ``id``, else its ``_id``, else a random one.

        Raises ValueError when it is not JSON, and when there is a document of that id.
        """
        row = self._row(document, id)
        self._insert([row])
        return row[1]

    def insert_many(self, documents: Iterable[Document]) -> list[str]:
        """Store all of them, or none where it raises: see `insert`."""
        rows = [self._row(document, None) for document in documents]
        if rows:
            self._insert(rows)
        return [row[1] for row in rows]

    def replace(self, id: str, document: Document) -> None:
        """Put a document in the place of another, which keeps its age.

        Raises KeyError when there is none, ValueError when it is not JSON.
        """
        changed = f"UPDATE main.bh_docs SET doc = ?, updated_at = ? {_ONE} RETURNING id"
        key = (self.name, _text(id, "id"))
        if not self._written(changed, (_encode(document, id), time.time(), *key)):
            raise self._missing(id)

    def update(self, id: str, changes: Document) -> None:
        """Set the fields of the document that ``changes`` names, each as a whole.

        Raises KeyError when there is none, ValueError when they are not JSON.
        """
        as_json(changes, "changes")
        touched = f"UPDATE main.bh_docs SET updated_at = ? {_ONE} RETURNING id, doc"
        key = (self.name, _text(id, "id"))
        with as_one(self._connection):
            # a write first: nobody can change the document between reading and writing
            found = self._written(touched, (time.time(), *key))
            if not found:
                raise self._missing(id)
            merged = _encode({**self._decode(*found[0]), **changes}, id)
            run(self._connection, f"UPDATE main.bh_docs SET doc = ? {_ONE}", (merged, *key))

    def delete(self, id: str) -> bool:
        """Delete a document; False when there was none."""
        gone = f"DELETE FROM main.bh_docs {_ONE} RETURNING id"
        return bool(self._written(gone, (self.name, _text(id, "id"))))

    def drop(self) -> int:
        """Delete every document of the collection, and say how many there were."""
        gone = "DELETE FROM main.bh_docs WHERE collection = ? RETURNING 1"
        return len(self._written(gone, (self.name,)))

    def create_index(self, path: str) -> None:
        """Make filters and sorts on a path fast, in every collection; nothing where it is there.

        Raises ValueError when the path cannot be read, or a stored document is not JSON, and for
        keys with a double quote, which only filters can name.
        """
        literal = json_path(path)
        if '"' in path:
            # seen: SQLite 3.40 calls such an index damaged, and leaves out the rows it writes
            raise ValueError(
                f"Could not make an index on the path {path!r}: older versions of SQLite read a "
                "double quote in a key otherwise, and would damage the index. Filters and sorts "
                "on the path work without one"
            )
        expression = extract(apsw.format_sql_value(literal))
        with as_one(self._connection), self._explained():
            run(self._connection, _CREATE)
            run(
                self._connection,
                f"CREATE INDEX IF NOT EXISTS main.{index_name(literal)} "
                f"ON bh_docs(collection, {expression})",
            )

    def _row(self, document: Document, id: str | None) -> Row:
        given = document.get("_id") if id is None and isinstance(document, dict) else id
        key = uuid.uuid4().hex if given is None else _text(given, "id")
        now = time.time()
        return self.name, key, _encode(document, key), now, now

    def _insert(self, rows: list[Row]) -> None:
        with as_one(self._connection), self._explained():
            try:
                self._add(rows)
            except apsw.SQLError:
                if self._schema("table"):
                    raise
                run(self._connection, _CREATE)
                self._add(rows)

    def _add(self, rows: list[Row]) -> None:
        for row in rows:
            try:
                run(self._connection, _INSERT, row)
            except apsw.ConstraintError as error:
                code = error.extendedresult  # type: ignore[attr-defined]  # not in APSW's stubs
                if code != apsw.SQLITE_CONSTRAINT_PRIMARYKEY:
                    raise
                raise ValueError(
                    f"Could not insert into the collection {self.name!r}: it has a document with "
                    f"the id {row[1]!r} already. Use replace() or update(), or another id"
                ) from error

    def _written(self, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """What a statement that writes returns."""
        with alone(self._connection):
            return list(self._rows(sql, values))

    def _missing(self, id: str) -> KeyError:
        return KeyError(f"the collection {self.name!r} has no document with the id {id!r}")

    # -- reading ----------------------------------------------------------------------------

    def get(self, id: str) -> Document | None:
        """The document of that id, or None."""
        one = f"SELECT id, doc FROM main.bh_docs {_ONE}"
        found = list(self._rows(one, (self.name, _text(id, "id"))))
        return self._decode(*found[0]) if found else None

    def find(
        self,
        filter: Filter | None = None,
        *,
        limit: int | None = None,
        sort: Sort | None = None,
    ) -> list[Document]:
        """The documents that a filter matches, in the order of their insertion or of ``sort``: a
        path, or a dictionary of paths to 1 (up) or -1 (down).

        A field is compared as JSON: ``1`` equals ``1.0`` but neither ``true`` nor ``"1"``;
        ``null`` is a value, and a missing field equals nothing, so ``$ne``, ``$nin`` and ``$not``
        match it. ``$gt`` and its like compare numbers with numbers and texts with texts.
        Integers beyond 64 bits compare as floating point. A sort puts missing fields and null
        first, then numbers (false as 0, true as 1), then text.

        Raises ValueError when the filter, the limit or the sort cannot be read.
        """
        if limit is not None and (type(limit) is not int or limit < 0):
            raise ValueError(f"limit is a number of documents, or None for all; got {limit!r}")
        sql, where = self._where(filter, sort)
        query = f"SELECT id, doc {where} ORDER BY {ordering(sort, sql)}"
        if limit is not None:
            query += f" LIMIT {sql.bind(min(limit, 2**63 - 1))}"
        return [self._decode(*row) for row in self._rows(query, sql.values)]

    def find_one(
        self,
        filter: Filter | None = None,
        *,
        sort: Sort | None = None,
    ) -> Document | None:
        """The first that `find` finds, or None."""
        found = self.find(filter, limit=1, sort=sort)
        return found[0] if found else None

    def count(self, filter: Filter | None = None) -> int:
        """How many documents a filter matches. Raises ValueError as `find` does."""
        sql, where = self._where(filter)
        return sum(number for (number,) in self._rows(f"SELECT count(*) {where}", sql.values))

    def all(self) -> Iterator[Document]:
        """Every document in the order of insertion; they are read as you go on."""
        every = "SELECT id, doc FROM main.bh_docs WHERE collection = ? ORDER BY rowid"
        for row in self._rows(every, (self.name,)):
            yield self._decode(*row)

    def _where(self, filter: Filter | None, sort: Sort | None = None) -> tuple[Parameters, str]:
        sql = Parameters(self._schema("index") if filter or sort else ())
        collection = sql.bind(self.name)
        matches = condition({} if filter is None else filter, sql)
        return sql, f"FROM main.bh_docs WHERE collection = {collection} AND {matches}"

    def _rows(self, sql: str, values: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
        """The rows of a statement: none where the table was never made."""
        with self._explained():
            try:
                yield from run(self._connection, sql, tuple(values))
            except apsw.SQLError:
                if self._schema("table"):
                    raise

    def _schema(self, kind: str) -> set[str]:
        # PRAGMA index_list would answer from a schema that is out of date
        of_table = "SELECT name FROM main.sqlite_schema WHERE tbl_name = 'bh_docs' AND type = ?"
        return {name for (name,) in run(self._connection, of_table, (kind,))}

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Names the document when SQLite says no more than "malformed JSON"."""
        try:
            yield
        except apsw.SQLError as error:
            if "malformed JSON" not in str(error):
                raise
            # 6: JSON5, because 0.1 wrote NaN, or JSONB
            bad = "SELECT collection, id FROM main.bh_docs WHERE NOT json_valid(doc, 6) LIMIT 1"
            for collection, id in run(self._connection, bad):
                raise _not_a_document(collection, id) from error
            raise

    def _decode(self, id: str, text: str) -> Document:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _not_a_document(self.name, id) from error
        if not isinstance(document, dict):
            raise _not_a_document(self.name, id)
        document["_id"] = id
        return document


def _encode(document: Document, id: str) -> str:
    whole = {**document, "_id": id} if isinstance(document, dict) else document
    return as_json(whole, "document")


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the {what} must be text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the {what} is not Unicode text: it has a lone surrogate") from None
    return value


def _not_a_document(collection: str, id: str) -> ValueError:
    return ValueError(
        f"Could not read the collection {collection!r}: what is stored under the id {id!r} is not "
        "a JSON object. Something else wrote it to bh_docs: replace() or delete() it"
    )
