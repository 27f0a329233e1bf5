"""The same statements on this VFS and on SQLite's own engines, in turns.

Every engine gets plain `apsw.Connection`s with SQLite's default cache and page size, the same
rows in the same order, and no garbage collection while the clock runs. Rounds take turns between
the engines, and begin with another engine each time; the first round is a warm-up and is dropped.
"""

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import apsw

from ..config import BucketConfig, SnapshotConfig
from ..core import registry
from ..uris import uri_of
from .ending import let_go
from .measure import Comparison, median, quiet

BASE = "memdb"
READERS = 3
PATIENCE_MS = 60_000
BESIDE = ("commit beside 3 readers", "read beside 1 writer")
NEVER_SECONDS = 86_400.0

SCHEMA = (
    """CREATE TABLE item (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT, amount REAL, created REAL, note TEXT
    )""",
    "CREATE INDEX item_name ON item (name)",
)
INSERT = "INSERT INTO item VALUES (?, ?, ?, ?, ?, ?)"
POINT_READ = "SELECT * FROM item WHERE id = ?"
SCAN = "SELECT sum(length(note)), count(*) FROM item WHERE id BETWEEN ? AND ?"

Row: TypeAlias = tuple[int, str, str, float, float, str]
Connect: TypeAlias = Callable[[], apsw.Connection]
Engine: TypeAlias = Callable[[], AbstractContextManager[Connect]]
"""Opens a fresh database for a block; within it a call gives a new connection to it."""

_numbers = itertools.count(1)


def rows(first: int, count: int) -> list[Row]:
    """Rows of about 120 bytes, the same for the same arguments."""
    return [
        (n, f"name {n * 7919 % 1_000_003:07d}", f"user{n}@example.org", n % 997 / 8, 1.7e9 + n,
         f"note {n:08d} " + "x" * 40)
        for n in range(first, first + count)
    ]  # fmt: skip


# ---- engines


def engines(folder: Path) -> dict[str, Engine]:
    """The engines by name; files go to ``folder``."""
    return {
        "buckethead": partial(_buckethead, folder),
        "memdb": _memdb,
        ":memory:": _memory,
        "disk WAL": partial(_disk, folder),
    }


@contextmanager
def _buckethead(folder: Path) -> Iterator[Connect]:
    name = f"bench-{next(_numbers)}"
    place = BucketConfig(bucket="bench", key=name, endpoint_url=(folder / "bucket").as_uri())
    never = SnapshotConfig(interval_seconds=NEVER_SECONDS, integrity_check="none")
    volume = registry.mount(name, place, never)
    try:
        yield partial(_open, uri_of(name))
    finally:
        let_go(volume)


@contextmanager
def _memdb() -> Iterator[Connect]:
    yield partial(_open, f"file:/bench-{next(_numbers)}?vfs=memdb")


@contextmanager
def _memory() -> Iterator[Connect]:
    yield partial(_open, ":memory:")


@contextmanager
def _disk(folder: Path) -> Iterator[Connect]:
    yield partial(_open_disk, str(folder / f"disk-{next(_numbers)}.db"))


def _open_disk(path: str) -> apsw.Connection:
    connection = _open(path)
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", "normal")
    return connection


def _open(name: str) -> apsw.Connection:
    connection = apsw.Connection(name)
    connection.set_busy_timeout(PATIENCE_MS)
    return connection


# ---- workloads: each does its work and returns the µs of one operation


def bulk_insert(connection: apsw.Connection, data: list[Row]) -> float:
    """One executemany in one transaction into an empty table with an index; per row."""
    for statement in SCHEMA:
        connection.execute(statement)
    with quiet():
        started = time.perf_counter()
        connection.execute("BEGIN")
        connection.executemany(INSERT, data)
        connection.execute("COMMIT")
        return _each(started, len(data))


def single_commits(connection: apsw.Connection, data: list[Row]) -> float:
    """Inserts of one row, each its own transaction."""
    execute = connection.execute
    with quiet():
        started = time.perf_counter()
        for row in data:
            execute(INSERT, row)
        return _each(started, len(data))


def point_reads(connection: apsw.Connection, ids: list[int]) -> float:
    """Whole rows by random primary keys."""
    execute = connection.execute
    with quiet():
        started = time.perf_counter()
        for number in ids:
            execute(POINT_READ, (number,)).fetchone()
        return _each(started, len(ids))


def scan(connection: apsw.Connection, count: int) -> float:
    """All rows of a range, summed up; per row."""
    with quiet():
        started = time.perf_counter()
        connection.execute(SCAN, (1, count)).fetchone()
        return _each(started, count)


def write_then_read(writer: apsw.Connection, reader: apsw.Connection, data: list[Row]) -> float:
    """A row committed on one connection and read on another; per pair."""
    with quiet():
        started = time.perf_counter()
        for row in data:
            writer.execute(INSERT, row)
            reader.execute(POINT_READ, (row[0],)).fetchone()
        return _each(started, len(data))


def beside_each_other(
    connect: Connect, new_rows: Iterator[Row], ids: list[int], seconds: float
) -> tuple[float, float]:
    """For some time one thread commits single rows and three read: µs per commit, per read."""
    end = threading.Event()
    start = threading.Barrier(READERS + 2)

    def commit(connection: apsw.Connection) -> int:
        return _repeat(end, (connection.execute(INSERT, row) for row in new_rows))

    def read(connection: apsw.Connection) -> int:
        again = itertools.cycle(ids)
        return _repeat(end, (connection.execute(POINT_READ, (n,)).fetchone() for n in again))

    def work(action: Callable[[apsw.Connection], int]) -> int:
        connection = connect()
        try:
            start.wait()
            return action(connection)
        finally:
            connection.close()

    with ThreadPoolExecutor(READERS + 1) as pool, quiet():
        try:
            commits, *reads = [pool.submit(work, action) for action in (commit, *[read] * READERS)]
            start.wait()
            started = time.perf_counter()
            end.wait(seconds)
        except BaseException:  # Ctrl-C: the pool waits for its threads, which must not for us
            start.abort()
            raise
        finally:
            end.set()
        counts = [future.result() for future in (commits, *reads)]
        return _each(started, counts[0]), _each(started, sum(counts[1:]))


def _repeat(end: threading.Event, actions: Iterator[object]) -> int:
    """Run one action after the other until the end, at least one; how many."""
    count = 0
    for _ in actions:
        count += 1
        if end.is_set():
            break
    return count


def _each(started: float, count: int) -> float:
    return (time.perf_counter() - started) * 1e6 / count


# ---- rounds


@dataclass(frozen=True, slots=True)
class Load:
    """How much is done: rows of the table, operations of a round, rounds that count, and seconds
    of a round of threads."""

    rows: int = 100_000
    operations: int = 5_000
    rounds: int = 5
    seconds: float = 0.5


class _Timings:
    """µs by workload and engine, a number for each round; None where an engine cannot do it."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._rounds: dict[str, dict[str, list[float | None]]] = {}

    def add(self, workload: str, engine: str, microseconds: float | None) -> None:
        """Note one round."""
        by_engine = self._rounds.setdefault(workload, {name: [] for name in self._names})
        by_engine[engine].append(microseconds)

    def comparisons(self) -> list[Comparison]:
        """The medians without the first round."""
        return [self._comparison(name, found) for name, found in self._rounds.items()]

    def _comparison(self, workload: str, found: dict[str, list[float | None]]) -> Comparison:
        counted = {engine: rounds[1:] for engine, rounds in found.items()}
        return Comparison(
            workload,
            {engine: _median(rounds) for engine, rounds in counted.items()},
            {
                engine: _median([a / b if a and b else None for a, b in pairs])
                for engine, pairs in (
                    (engine, zip(rounds, counted[BASE], strict=True))
                    for engine, rounds in counted.items()
                )
            },
        )


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


class _Prepared:
    """One engine's database with all rows in it, and the connections that the workloads use."""

    def __init__(self, connect: Connect, load: Load) -> None:
        self._connect = connect
        self._load = load
        self._next = load.rows + 1
        self._first = connect()
        bulk_insert(self._first, rows(1, load.rows))
        self._second = connect()
        self._shared = bool(self._second.pragma("schema_version"))

    def round(self, ids: list[int]) -> dict[str, float | None]:
        """Every workload once: µs of an operation."""
        load, first = self._load, self._first
        timings: dict[str, float | None] = {
            "single-row commit": single_commits(first, self._new_rows(load.operations)),
            "point read": point_reads(first, ids),
            "range scan, per row": scan(first, load.rows),
        }
        timings |= dict.fromkeys(("write here, read there", *BESIDE))
        if self._shared:
            data = self._new_rows(load.operations)
            timings["write here, read there"] = write_then_read(first, self._second, data)
            found = beside_each_other(self._connect, self._endless_rows(), ids, load.seconds)
            timings |= dict(zip(BESIDE, found, strict=True))
        return timings

    def close(self) -> None:
        """Let the database go."""
        self._first.close()
        self._second.close()

    def _new_rows(self, count: int) -> list[Row]:
        self._next += count
        return rows(self._next - count, count)

    def _endless_rows(self) -> Iterator[Row]:
        while True:
            yield from self._new_rows(1)


def compare(folder: Path, load: Load) -> list[Comparison]:
    """Every workload on every engine. ``folder`` is for the files of engines that have some."""
    all_engines = engines(folder)
    names = list(all_engines)
    timings = _Timings(names)
    table = rows(1, load.rows)
    for number in range(load.rounds + 1):
        for name in _rotated(names, number):
            with all_engines[name]() as connect:
                connection = connect()
                timings.add("bulk insert, per row", name, bulk_insert(connection, table))
                connection.close()
    with ExitStack() as stack:
        prepared: dict[str, _Prepared] = {}
        for name, engine in all_engines.items():
            prepared[name] = _Prepared(stack.enter_context(engine()), load)
            stack.callback(prepared[name].close)
        chance = random.Random(1)
        for number in range(load.rounds + 1):
            ids = [chance.randint(1, load.rows) for _ in range(load.operations)]
            for name in _rotated(names, number):
                for workload, microseconds in prepared[name].round(ids).items():
                    timings.add(workload, name, microseconds)
    return timings.comparisons()


def _rotated(names: list[str], by: int) -> list[str]:
    by %= len(names)
    return names[by:] + names[:by]
