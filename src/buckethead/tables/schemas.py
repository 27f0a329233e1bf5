"""What the tables share: from the hidden column ``schema`` to the volume that it means, and a
cursor over rows that are there already.

The rule: only a volume is used. A connection can have anything attached, and the tables would
otherwise write into a stranger's file.
"""

from collections.abc import Callable
from typing import Any

import apsw

from ..errors import VolumeError
from ..image.vfs import DatabaseFile, file_of

EQUAL = (apsw.SQLITE_INDEX_CONSTRAINT_EQ, apsw.SQLITE_INDEX_CONSTRAINT_IS)


def file_in(connection: apsw.Connection, table: str, schema: object) -> DatabaseFile:
    """The file that a schema of a connection is. Raises VolumeError where it is no volume's."""
    if not isinstance(schema, str) or schema not in connection.db_names():
        raise VolumeError(
            f"Could not use {table} of {schema!r}: there is no such schema. Attached are "
            f"{', '.join(connection.db_names())}."
        )
    file = None if schema == "temp" else file_of(connection, schema)
    if file is None:
        raise VolumeError(
            f"Could not use {table} of {schema!r}, which is no volume. Name the schema that is "
            f"one: SELECT * FROM {table}('NAME'), or in an INSERT by the column schema."
        )
    return file


def takes_schema(info: apsw.IndexInfo, column: int) -> bool | None:
    """Take a condition on the schema as the first argument; whether there is one. None where it
    cannot be used: then the plan has to be refused, or rows of another schema would be shown."""
    for number in range(info.nConstraint):
        on_schema = info.get_aConstraint_iColumn(number) == column
        if on_schema and info.get_aConstraint_op(number) in EQUAL:
            if not info.get_aConstraint_usable(number):
                return None
            info.set_aConstraintUsage_argvIndex(number, 1)
            info.set_aConstraintUsage_omit(number, True)
            return True
    return False


class RowsCursor:
    """A walk through rows that were all found at one moment, by `find` of the schema meant."""

    def __init__(self, find: Callable[[str], list[tuple[Any, ...]]]) -> None:
        self._find = find
        self._rows: list[tuple[Any, ...]] = []
        self._at = 0

    def Filter(self, number: int, plan: str | None, arguments: tuple[Any, ...]) -> None:
        self._rows = self._find(arguments[0] if arguments else "main")
        self._at = 0

    def Eof(self) -> bool:
        return self._at >= len(self._rows)

    def Next(self) -> None:
        self._at += 1

    def Column(self, number: int) -> Any:
        return self.Rowid() if number < 0 else self._rows[self._at][number]

    def ColumnNoChange(self, number: int) -> Any:
        return self.Column(number)

    def Rowid(self) -> int:
        return self._at

    def Close(self) -> None:
        """Nothing is held."""
