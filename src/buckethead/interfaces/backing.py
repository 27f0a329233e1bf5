"""A layer's backing table that an older version, or another tool, may have made in another form.

The rule: a read changes nothing, so the table exists from the first write on; a table that is
there keeps its rows and columns, and gets those it lacks at the first write. Until then a missing
column reads as NULL and a missing table as empty. Nothing here begins or ends the caller's
transaction.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import apsw

from ..errors import VolumeError
from .statements import columns_of, run


@dataclass(frozen=True, slots=True)
class Backing:
    """A table of the main database: its columns with their SQL types, those of the key first.

    ``columns`` are all that a row of ours has, in this order, ``keys`` how many make up the key.
    """

    name: str
    columns: Mapping[str, str]
    keys: int = 1

    @property
    def key(self) -> tuple[str, ...]:
        """The names of the columns that make up the key."""
        return tuple(self.columns)[: self.keys]

    def rows(
        self, connection: apsw.Connection, rest: str = "", values: tuple[Any, ...] = ()
    ) -> list[tuple[Any, ...]]:
        """The rows as far as they are known, by what follows FROM, such as WHERE and ORDER BY."""
        there = columns_of(connection, "main", self.name)
        if not there:
            return []
        shown = (name if name in there else f"NULL AS {name}" for name in self.columns)
        inner = f"SELECT {', '.join(shown)} FROM main.{self.name}"
        return run(connection, f"SELECT * FROM ({inner}) {rest}", values).fetchall()

    def put(self, connection: apsw.Connection, row: tuple[Any, ...]) -> None:
        """Write a row over the one of its key, or as a new one. Call it in `as_one`.

        Raises VolumeError where the table is another's and cannot hold it.
        """
        self._make(connection)
        changes = ", ".join(f"{name} = ?{number}" for number, name in enumerate(self.columns, 1))
        same = " AND ".join(f"{name} = ?{number}" for number, name in enumerate(self.key, 1))
        update = f"UPDATE main.{self.name} SET {changes} WHERE {same} RETURNING 1"
        if run(connection, update, row).fetchall():
            return
        marks = ", ".join("?" * len(row))
        insert = f"INSERT INTO main.{self.name}({', '.join(self.columns)}) VALUES ({marks})"
        try:
            run(connection, insert, row)
        except apsw.ConstraintError as error:
            raise self._unusable(f"it refuses a new row ({error})") from error

    def drop(self, connection: apsw.Connection, key: tuple[Any, ...]) -> bool:
        """Delete the row of a key; False when there was none."""
        there = columns_of(connection, "main", self.name)  # a column that is missing reads as NULL
        named = dict(zip(self.key, key, strict=True))
        asked = {name: value for name, value in named.items() if name in there}
        if not asked or any(named[name] is not None for name in named.keys() - asked):
            return False
        same = " AND ".join(f"{name} IS ?" for name in asked)
        gone = f"DELETE FROM main.{self.name} WHERE {same} RETURNING 1"
        return bool(run(connection, gone, tuple(asked.values())).fetchall())

    def _make(self, connection: apsw.Connection) -> None:
        there = columns_of(connection, "main", self.name)
        if not there:
            columns = ", ".join(f"{name} {form}" for name, form in self.columns.items())
            key = f"PRIMARY KEY ({', '.join(self.key)})"
            run(connection, f"CREATE TABLE main.{self.name}({columns}, {key})")
            return
        if self.key[0] not in there:
            raise self._unusable(f"it has the columns {', '.join(there)}, and no {self.key[0]}")
        for name, form in self.columns.items():
            if name not in there:
                # of the rows that are there nothing is known
                plain = form.removesuffix(" NOT NULL")
                run(connection, f"ALTER TABLE main.{self.name} ADD COLUMN {name} {plain}")

    def _unusable(self, found: str) -> VolumeError:
        return VolumeError(
            f"Could not use the table {self.name!r}: {found}. Another program has made it; rename "
            f"it: ALTER TABLE {self.name} RENAME TO ..."
        )
