"""Threads: a bank whose total must stay what it was, in every scan and in every restored image.

Bounded by counts, never by time. Numbers of invariants refer to native_notes/invariants.md.
"""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import apsw
import pytest

import buckethead
from buckethead.image.vfs import connected
from buckethead.storage.layout import Place
from buckethead.storage.restoring import restore

if TYPE_CHECKING:
    from image.conftest import Volumes

ACCOUNTS = 500
TOTAL = ACCOUNTS * 100
WRITERS = 4
READERS = 4
WAIT_MS = 120_000
"""No writer may starve that long; a test that hangs ends by pytest's timeout."""


def series(count: int) -> str:
    return f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"


class Rounds:
    """Threads that run until the writers are done, and the errors they met."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.done = threading.Event()

    def start(self, work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                self.errors.append(error)
                self.done.set()

        thread = threading.Thread(target=guarded)
        thread.start()
        return thread


@contextmanager
def beside(rounds: Rounds, *works: Callable[[], None]) -> Iterator[None]:
    """Run threads during a block; raise the first error that one of them met."""
    threads = [rounds.start(work) for work in works]
    try:
        yield
    finally:
        rounds.done.set()
        for thread in threads:
            thread.join()
    if rounds.errors:
        raise rounds.errors[0]


# -- the bank -----------------------------------------------------------------------------------


class Bank:
    def __init__(self, volumes: "Volumes", transfers: int) -> None:
        self.volumes = volumes
        self.volume = volumes.mount()
        self.transfers = transfers
        self.rounds = Rounds()
        self.scans = self.states = self.commits = self.rollbacks = 0
        self.lock = threading.Lock()  # guards the four counts
        connection = volumes.open()
        connection.execute(
            "PRAGMA page_size=1024; CREATE TABLE account(id INTEGER PRIMARY KEY, balance, pad);"
            f"{series(ACCOUNTS)} INSERT INTO account SELECT i, 100, zeroblob(100) FROM n"
        )

    def connect(self) -> apsw.Connection:
        """A cache so small that transactions spill and scans read from the image."""
        connection = apsw.Connection("file:db?vfs=buckethead")
        connection.execute("PRAGMA cache_size=5")
        return connection

    def writer(self, seed: int) -> None:
        draw = random.Random(seed)
        connection = self.connect()
        connection.set_busy_timeout(WAIT_MS)
        for _ in range(self.transfers):
            if self.rounds.done.is_set():
                return
            connection.execute("BEGIN IMMEDIATE")
            for amount in draw.sample(range(50), 4):
                self.transfer(connection, amount, *draw.sample(range(1, ACCOUNTS + 1), 2))
            undo = draw.random() < 0.2
            connection.execute("ROLLBACK" if undo else "COMMIT")
            with self.lock:
                self.rollbacks += undo
                self.commits += not undo

    def transfer(self, connection: apsw.Connection, amount: int, source: int, target: int) -> None:
        move = "UPDATE account SET balance = balance + ?, pad = zeroblob(?) WHERE id = ?"
        connection.execute(move, (-amount, amount * 3, source))
        connection.execute(move, (amount, amount * 3, target))

    def reader(self) -> None:
        """Scans with no busy timeout at all: a reader never waits and is never refused."""
        connection = self.connect()
        connection.set_busy_timeout(0)
        while not self.rounds.done.is_set():
            count, total = connection.execute("SELECT count(*), sum(balance) FROM account").get
            assert (count, total) == (ACCOUNTS, TOTAL), "a scan saw half a transaction"
            with self.lock:
                self.scans += 1

    def flusher(self) -> None:
        """Flush all the time; now and then write the image; look at every state
        that the bucket gets (invariants 4, 6, 7)."""
        while not self.rounds.done.is_set():
            every_third = self.states % 3 == 2
            if (self.volume.checkpoint() if every_third else self.volume.flush()).uploaded:
                self.look_at_state()

    def look_at_state(self) -> None:
        """Restore what the bucket has, and let SQLite's integrity_check see it."""
        restored = restore(self.volume.bucket, Place(self.volume.key))
        assert restored is not None
        with connected(restored.image) as plain:
            found = plain.execute("SELECT count(*), sum(balance) FROM account").get
            assert found == (ACCOUNTS, TOTAL), "a published state holds half a transaction"
        self.states += 1

    def run(self) -> None:
        with beside(self.rounds, *[self.reader] * READERS, self.flusher):
            writers = [
                self.rounds.start(lambda seed=seed: self.writer(seed))  # type: ignore[misc]
                for seed in range(WRITERS)
            ]
            for thread in writers:
                thread.join()

    def check(self) -> None:
        assert self.commits + self.rollbacks == WRITERS * self.transfers
        assert self.rollbacks > 0
        assert self.scans > 0
        assert self.states > 0
        buckethead.unmount("db")
        self.look_at_state()
        connection = self.volumes.open()
        assert connection.execute("SELECT sum(balance) FROM account").get == TOTAL
        assert connection.pragma("integrity_check") == "ok"


def test_bank_transfers(volumes: "Volumes") -> None:
    bank = Bank(volumes, transfers=400)
    bank.run()
    bank.check()


@pytest.mark.nightly
def test_bank_transfers_for_long(volumes: "Volumes") -> None:
    bank = Bank(volumes, transfers=10_000)
    bank.run()
    bank.check()


# -- who waits for whom -------------------------------------------------------------------------


@pytest.fixture
def table(volumes: "Volumes") -> apsw.Connection:
    connection = volumes.open()
    connection.execute("PRAGMA cache_size=5; CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
    connection.execute(f"{series(1000)} INSERT INTO t SELECT i, zeroblob(300) FROM n")
    return connection


def test_a_writer_is_never_blocked_by_an_open_cursor(
    volumes: "Volumes", table: apsw.Connection
) -> None:
    """Neither of another connection nor in the middle of a read transaction; and none waits."""
    reader = volumes.open()
    cursor = reader.execute("SELECT id FROM t ORDER BY id")
    seen = [next(cursor)]
    table.set_busy_timeout(0)
    for number in range(20):
        table.execute("DELETE FROM t WHERE id % 20 = ?", (number,))
        seen.append(next(cursor))
    table.execute("VACUUM")
    assert table.execute("SELECT count(*) FROM t").get == 0
    assert [*seen, *cursor] == [(number,) for number in range(1, 1001)]
    assert reader.execute("SELECT count(*) FROM t").get == 0


def test_readers_are_never_busy_beside_any_state_of_a_writer(
    volumes: "Volumes", table: apsw.Connection
) -> None:
    reader = volumes.open()
    reader.set_busy_timeout(0)
    count = "SELECT count(*) FROM t"
    for statement in (
        "BEGIN IMMEDIATE",
        "DELETE FROM t WHERE id % 2",  # spills
        "SAVEPOINT s",
        "UPDATE t SET x = zeroblob(500)",
        "RELEASE s",
    ):
        table.execute(statement)
        assert reader.execute(count).get == 1000
        assert volumes.open().execute(count).get == 1000
    table.execute("COMMIT")
    assert reader.execute(count).get == 500


def test_one_connection_used_by_many_threads(volumes: "Volumes", table: apsw.Connection) -> None:
    """SQLite serialises the threads of one connection; the file sees one call at a time."""
    rounds = Rounds()

    def work() -> None:
        for _ in range(100):
            table.execute("UPDATE t SET x = x + 1 WHERE id = 1")

    table.execute("UPDATE t SET x = 0 WHERE id = 1")
    threads = [rounds.start(work) for _ in range(4)]
    for thread in threads:
        thread.join()
    assert [str(error) for error in rounds.errors] == []
    assert table.execute("SELECT x FROM t WHERE id = 1").get == 400


def test_swaps_beside_readers_and_writers(volumes: "Volumes", table: apsw.Connection) -> None:
    """Every scan is of one image or the other; a writer gets what it got at BEGIN IMMEDIATE."""
    volume = volumes.mount()
    table.execute("CREATE TABLE mark(which); INSERT INTO mark VALUES ('first')")
    first = (volume.image.page_size, list(volume.image.pages))
    table.execute("UPDATE mark SET which = 'second'; DELETE FROM t WHERE id > 400")
    second = (volume.image.page_size, list(volume.image.pages))
    expected = {"first": 1000, "second": 400}
    rounds = Rounds()
    scans = dict.fromkeys(expected, 0)
    swaps = 0

    def reader() -> None:
        connection = volumes.open()
        connection.execute("PRAGMA cache_size=5")
        while not rounds.done.is_set():
            found = connection.execute("SELECT (SELECT which FROM mark), count(*) FROM t").get
            assert found[1] == expected[found[0]], "a scan saw half of each image"
            scans[found[0]] += 1

    def writer() -> None:
        connection = volumes.open()
        connection.set_busy_timeout(WAIT_MS)
        while not rounds.done.is_set():
            connection.execute("BEGIN IMMEDIATE; UPDATE t SET x = zeroblob(301) WHERE id < 300")
            connection.execute("COMMIT")

    with beside(rounds, reader, reader, writer):
        while swaps < 12 and not rounds.done.is_set():
            page_size, pages = (first, second)[swaps % 2]
            seen = dict(scans)
            try:
                volume.swap(page_size, list(pages))
            except buckethead.VolumeBusyError:
                rounds.done.wait(0.001)
                continue
            swaps += 1
            while scans == seen and not rounds.done.is_set():
                rounds.done.wait(0.001)
    assert min(scans.values()) > 0
    assert table.pragma("integrity_check") == "ok"
