"""``bh_branches``: the branches of a volume's database, as rows.

The rule: what a statement does here happens in the bucket, at once. A branch is made of what is
committed, and neither making nor deleting one is undone by a rollback.
"""

import weakref
from typing import Any

import apsw

from ..branches import Branches
from ..errors import BranchError, BranchExistsError, VolumeError
from ..follower import Follower
from ..past import Past
from ..registry import Registry
from ..volume import Volume
from .schemas import RowsCursor, file_in, takes_schema

COLUMNS = ("name", "current", "size", "txid", "last_modified", "key", "schema")
SCHEMA = COLUMNS.index("schema")

_DECLARATION = (
    "CREATE TABLE bh_branches(name TEXT, current INTEGER, size INTEGER, txid INTEGER,"
    " last_modified REAL, key TEXT, schema TEXT HIDDEN)"
)


class BranchesModule:
    """What SQLite asks for the table, when a connection first names it."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def Connect(self, connection: apsw.Connection, *names: str) -> tuple[str, "BranchesTable"]:
        return _DECLARATION, BranchesTable(connection, self._registry)


class BranchesTable:
    """The table on one connection. A row's number is its place among all that were ever shown."""

    def __init__(self, connection: apsw.Connection, registry: Registry) -> None:
        self._connection = weakref.ref(connection)  # a strong one would keep both for ever
        self._registry = registry
        self._shown: list[tuple[str, str]] = []  # schema and name

    def branches(self, schema: str) -> Branches:
        """Those of a schema. Raises VolumeError where it is no volume."""
        connection = self._connection()
        assert connection is not None, "its statement is what calls"
        database = file_in(connection, "bh_branches", schema).database
        if not isinstance(database, Volume | Follower | Past):
            raise VolumeError(
                f"Could not use bh_branches of {schema!r}: this database is in no bucket. Open the "
                "volume by its name."
            )
        return Branches(database, self._registry)

    def rowid(self, schema: str, name: str) -> int:
        """The number of a row."""
        if (schema, name) not in self._shown:
            self._shown.append((schema, name))
        return self._shown.index((schema, name))

    def BestIndexObject(self, info: apsw.IndexInfo) -> bool:
        """SQLite itself looks for a name among so few rows."""
        info.estimatedRows = 10
        info.estimatedCost = 1_000_000.0  # it asks the bucket: once, and not in an inner loop
        return takes_schema(info, SCHEMA) is not None

    def Open(self) -> "BranchesCursor":
        return BranchesCursor(self)

    def rows(self, schema: str) -> list[tuple[Any, ...]]:
        """What is in the bucket now."""
        branches = self.branches(schema)
        current = branches.current()
        return [
            (
                *(branch.name, branch.name == current, branch.size, branch.txid),
                *(branch.last_modified, branch.key, schema),
            )
            for branch in branches.list()
        ]

    def UpdateInsertRow(self, rowid: int | None, fields: tuple[Any, ...]) -> int:
        given = dict(zip(COLUMNS, fields, strict=True))
        schema, name = given.pop("schema") or "main", given.pop("name")
        told = [column for column, value in given.items() if value is not None]
        if rowid is not None or told:
            raise BranchError(
                f"Could not make the branch {name!r}: only its name is given, not "
                f"{', '.join(told) or 'the rowid'}. INSERT INTO bh_branches(name) VALUES (...)"
            )
        connection = self._connection()
        assert connection is not None, "its statement is what calls"
        try:
            self.branches(schema).create(name)
        except BranchExistsError:
            if connection.vtab_on_conflict() != apsw.SQLITE_IGNORE:
                raise
        return self.rowid(schema, name)

    def UpdateDeleteRow(self, rowid: int) -> None:
        schema, name = self._shown[rowid]
        self.branches(schema).delete(name)

    def UpdateChangeRow(self, rowid: int, new_rowid: int, fields: tuple[Any, ...]) -> None:
        raise BranchError(
            f"Could not change the branch {self._shown[rowid][1]!r}: a branch keeps its name. "
            "Make another one of it, and delete it."
        )


class BranchesCursor(RowsCursor):
    """A walk through the branches, whose numbers a later DELETE goes by."""

    def __init__(self, table: BranchesTable) -> None:
        super().__init__(table.rows)
        self._table = table

    def Rowid(self) -> int:
        row = self._rows[self._at]
        return self._table.rowid(row[SCHEMA], row[0])
