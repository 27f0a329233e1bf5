"""What the tests of keys and values share: a clock that stands still, volumes to open, and a
machine that does to a store what it does to a dict."""

import copy
import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import buckethead
from buckethead.image.pages import PageImage
from buckethead.image.vfs import connected
from buckethead.uris import uri_of
from volume_tools import NEVER, directory, fake_time

BEGINNING = 1_700_000_000.0

_names = itertools.count(1)


class Clock:
    """The time, as the layer sees it; it passes only when it is told to."""

    def __init__(self) -> None:
        self.now = BEGINNING

    def __call__(self) -> float:
        return self.now

    def set_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("interfaces.kv", "tables.kv"):
            monkeypatch.setattr(f"buckethead.{module}.time", fake_time(time=self))


def mount(folder: Path) -> str:
    """The URI of a new volume."""
    name = f"kv-{next(_names)}"
    buckethead.mount(name, directory(folder, f"{name}.db"), NEVER)
    return uri_of(name)


@contextmanager
def alone() -> Iterator[apsw.Connection]:
    """A connection to an image that nobody else has."""
    with connected(PageImage()) as connection:
        yield connection


def stored(connection: apsw.Connection, schema: str = "main") -> list[str]:
    """The keys in the backing table, those that have expired too."""
    return [key for (key,) in connection.execute(f"SELECT key FROM {schema}.kvstore ORDER BY key")]


def tables(connection: apsw.Connection, schema: str = "main") -> list[str]:
    """The tables of a schema."""
    sql = f"SELECT name FROM {schema}.sqlite_schema WHERE type = 'table' ORDER BY name"
    return [name for (name,) in connection.execute(sql)]


OLD = """CREATE TABLE {schema}.bh_kv(
    key TEXT PRIMARY KEY, value BLOB NOT NULL, created_at REAL NOT NULL, updated_at REAL NOT NULL);
INSERT INTO {schema}.bh_kv VALUES ('old', 'text', 1.0, 2.0), ('older', x'ff', 3.0, 4.0)"""


def make_old(connection: apsw.Connection, schema: str = "main") -> None:
    """What buckethead 0.1 to 0.4 left."""
    connection.execute(OLD.format(schema=schema)).fetchall()


Row = tuple[str, float, float | None]  # value, created_at, expires_at

KEYS = st.sampled_from(["", "a", "aa", "b", "B", "a%", "a_", "*", "ä", "\U0010ffff"])
VALUES = st.text(alphabet="x0-", max_size=3)


class Machine(RuleBasedStateMachine):
    """Does the same to a dict and to a store, time and transactions included. A subclass says how
    the store is written and read."""

    connection: apsw.Connection

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.rows: dict[str, Row] = {}
        self.saved: list[dict[str, Row]] = []
        self._stack = ExitStack()
        patch = self._stack.enter_context(pytest.MonkeyPatch.context())
        self.clock.set_up(patch)

    @initialize()
    def open(self) -> None:
        self.connection = self._stack.enter_context(alone())
        self.begin_store()

    def teardown(self) -> None:
        self._stack.close()

    def begin_store(self) -> None:
        """The connection is there."""

    def put(self, key: str, value: str, ttl: float | None) -> None:
        raise NotImplementedError

    def remove(self, key: str) -> None:
        raise NotImplementedError

    def content(self) -> dict[str, Any]:
        """Key -> value, creation and end, of what is not expired."""
        raise NotImplementedError

    def alive(self) -> dict[str, Row]:
        now = self.clock.now
        return {key: row for key, row in self.rows.items() if row[2] is None or row[2] > now}

    @rule(key=KEYS, value=VALUES, ttl=st.sampled_from([None, None, 0.25, 1.0, 5.0]))
    def set(self, key: str, value: str, ttl: float | None) -> None:
        self.put(key, value, ttl)
        now = self.clock.now
        old = self.alive().get(key)
        created = now if old is None else old[1]
        self.rows[key] = (value, created, None if ttl is None else now + ttl)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        self.remove(key)
        self.rows.pop(key, None)

    @rule(seconds=st.sampled_from([0.25, 0.75, 1.0, 4.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @precondition(lambda self: len(self.saved) < 3)
    @rule()
    def begin(self) -> None:
        self.connection.execute("SAVEPOINT test")
        self.saved.append(copy.copy(self.rows))

    @precondition(lambda self: self.saved)
    @rule(undo=st.booleans())
    def end(self, undo: bool) -> None:
        rows = self.saved.pop()
        if undo:
            self.connection.execute("ROLLBACK TO test")
            self.rows = rows
        self.connection.execute("RELEASE test")

    @invariant()
    def same(self) -> None:
        if hasattr(self, "connection"):
            assert self.content() == self.alive()
            assert self.connection.in_transaction == bool(self.saved)
