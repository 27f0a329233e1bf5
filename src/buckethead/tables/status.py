"""``bh_status``: what is known of a volume, as rows of names and values.

The rule: it tells what this process knows already. It asks the bucket for nothing and holds nobody
up, so it can be read at any time, by any connection, beside any writer.
"""

import time
import weakref
from functools import partial
from typing import Any

import apsw

from .. import refusals
from ..errors import FencedError
from ..facts import facts, known_of
from ..follower import Follower
from ..image.database import Database
from ..interfaces.kvstore import sweeper_of
from ..past import Past
from ..volume import Volume
from .schemas import RowsCursor, file_in, takes_schema

SCHEMA = 2
_DECLARATION = "CREATE TABLE bh_status(name TEXT, value, schema TEXT HIDDEN)"

_STATES = {
    refusals.inherited: "forked",
    refusals.stopped: "stopped",
    refusals.fate_open: "uncertain",
    FencedError: "fenced",
}
"""What a volume's refusal to be written to says of it."""


class StatusModule:
    """What SQLite asks for the table, when a connection first names it."""

    def Connect(self, connection: apsw.Connection, *names: str) -> tuple[str, "StatusTable"]:
        return _DECLARATION, StatusTable(connection)


class StatusTable:
    """The table on one connection."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = weakref.ref(connection)  # a strong one would keep both for ever

    def BestIndexObject(self, info: apsw.IndexInfo) -> bool:
        """SQLite itself looks for a name among so few rows."""
        info.estimatedRows = 30
        info.estimatedCost = 30.0
        return takes_schema(info, SCHEMA) is not None

    def Open(self) -> RowsCursor:
        return RowsCursor(self._rows)

    def _rows(self, schema: str) -> list[tuple[Any, ...]]:
        connection = self._connection()
        assert connection is not None, "its statement is what calls"
        database = file_in(connection, "bh_status", schema).database
        swept = sweeper_of(connection, schema).swept
        found = facts(_known(database) | {"swept_keys": swept}, time.time())
        return [(name, value, schema) for name, value in found.items()]


def _known(database: Database) -> dict[str, Any]:
    if isinstance(database, Volume):
        return known_of(database.status()) | {"state": _state(database)}
    if isinstance(database, Follower):
        follows = database.snapshot.follow_seconds is not None and not database.inherited
        state = "following" if follows else "reading"
        return known_of(database.status()) | {"state": state, "stale_seconds": database.silence}
    if isinstance(database, Past):
        return known_of(database.status()) | {"state": "past"}
    image = database.image  # one that no bucket knows
    sizes = {"page_size": image.page_size, "page_count": image.page_count, "size": image.size}
    return {"name": database.name, "version": image.version, **sizes}


def _state(volume: Volume) -> str:
    """Who writes: this process, nobody yet, or why it cannot."""
    if volume.inherited:
        return "forked"
    if volume.refusal is None:
        return "writing"
    if isinstance(volume.refusal, partial):
        return _STATES.get(volume.refusal.func, "read-only")
    return "reading"  # the first write claims the history
