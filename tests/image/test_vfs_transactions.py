"""Transactions: locks, the commit point, what a rollback leaves, and errors on the way.

Numbers of invariants refer to native_notes/invariants.md.
"""

import contextlib
import dis
import functools
import itertools
import os
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

import apsw
import pytest

import buckethead
from buckethead import volume
from buckethead.errors import CommitError
from buckethead.image import vfs
from buckethead.image.callback_errors import BusySnapshotError, IllegalLockError
from buckethead.image.vfs import EXCLUSIVE, NONE, RESERVED, SHARED, DatabaseFile, Lock

if TYPE_CHECKING:
    from image.conftest import Child, Volumes

Served = Callable[..., DatabaseFile]

SYNCHRONOUS = ["OFF", "NORMAL", "FULL", "EXTRA"]
JOURNALS = ["MEMORY", "OFF"]
PENDING = int(Lock.PENDING)


def series(count: int) -> str:
    return f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"


def spill(connection: apsw.Connection, value: str, table: str = "t") -> None:
    """Change far more pages than the cache of 5 holds, so that they reach the VFS before COMMIT."""
    connection.execute(f"UPDATE {table} SET x = ?, pad = zeroblob(400)", (value,))


def table_of(connection: apsw.Connection, rows: int = 500) -> None:
    connection.execute("PRAGMA cache_size=5; CREATE TABLE t(id INTEGER PRIMARY KEY, x, pad)")
    connection.execute(f"{series(rows)} INSERT INTO t SELECT i, 'old', zeroblob(400) FROM n")


def values(connection: apsw.Connection) -> list[Any]:
    return [row[0] for row in connection.execute("SELECT DISTINCT x FROM t ORDER BY x")]


def code_of(error: apsw.Error) -> int:
    code: int = error.extendedresult  # type: ignore[attr-defined]  # APSW's stubs leave it out
    return code


def check(connection: apsw.Connection) -> None:
    assert connection.pragma("integrity_check") == "ok"


# -- locks --------------------------------------------------------------------------------------

LEGAL = {(NONE, SHARED), (SHARED, RESERVED), (RESERVED, EXCLUSIVE)}
STATES = [NONE, SHARED, RESERVED, EXCLUSIVE]


def at(file: DatabaseFile, state: int) -> DatabaseFile:
    for step in STATES[1:]:
        if step <= state:
            file.xLock(step)
    return file


@pytest.fixture
def file(volumes: "Volumes", served: Served) -> DatabaseFile:
    return served(volumes.open())


@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        (held, wanted)
        for held in STATES
        for wanted in (SHARED, RESERVED, PENDING, EXCLUSIVE)
        if wanted > held and (held, wanted) not in LEGAL
    ],
)
def test_locks_sqlite_never_asks_for(file: DatabaseFile, held: int, wanted: int) -> None:
    at(file, held)
    with pytest.raises(IllegalLockError, match=f"lock {Lock(held).name} -> {Lock(wanted).name}"):
        file.xLock(wanted)
    file.xUnlock(NONE)


@pytest.mark.parametrize(
    ("held", "wanted"),
    [(NONE, SHARED)]
    + [(held, wanted) for held in STATES for wanted in (RESERVED, PENDING, EXCLUSIVE)],
)
def test_unlocks_sqlite_never_asks_for(file: DatabaseFile, held: int, wanted: int) -> None:
    at(file, held)
    with pytest.raises(IllegalLockError, match=f"unlock {Lock(held).name} -> {Lock(wanted).name}"):
        file.xUnlock(wanted)
    file.xUnlock(NONE)


@pytest.mark.parametrize("held", STATES)
def test_a_lock_already_held_is_granted_and_changes_nothing(file: DatabaseFile, held: int) -> None:
    at(file, held)
    image = file.database.image
    before = (image.writer is file, file.parked, file.overlay)
    for wanted in STATES:
        if wanted <= held:
            file.xLock(wanted)
    assert (image.writer is file, file.parked, file.overlay) == before
    file.xUnlock(NONE)


@pytest.mark.parametrize("held", STATES)
def test_unlocking_leaves_the_seat_and_the_pin(file: DatabaseFile, held: int) -> None:
    image = at(file, held).database.image
    assert (image.writer is file) == (held >= RESERVED)
    if held >= SHARED:
        file.xUnlock(SHARED)
        assert (image.writer, file.parked, file.overlay) == (None, False, None)
    file.xUnlock(NONE)
    assert (image.writer, image.pins()) == (None, [])


def test_a_second_writer_is_busy_and_a_reader_is_not(volumes: "Volumes", served: Served) -> None:
    first, second = served(volumes.open()), served(volumes.open())
    at(first, EXCLUSIVE)
    second.xLock(SHARED)
    assert second.xCheckReservedLock()
    with pytest.raises(apsw.BusyError):
        second.xLock(RESERVED)
    first.xUnlock(NONE)
    second.xLock(RESERVED)
    second.xUnlock(NONE)


def test_only_writers_get_the_overlay(file: DatabaseFile) -> None:
    with pytest.raises((AssertionError, TypeError)):
        at(file, RESERVED).xWrite(bytes(512), 0)
    with pytest.raises((AssertionError, TypeError)):
        file.xTruncate(0)
    file.xUnlock(NONE)


def test_pages_cut_off_and_grown_over_are_zeroes(volumes: "Volumes", served: Served) -> None:
    """SQLite leaves such gaps; what was there before must neither be read nor committed."""
    connection = volumes.open()
    table_of(connection, 50)
    file, image = served(connection), volumes.mount().image
    size, page1, last = image.page_size, image.pages[0], b"\1" * image.page_size
    assert bytes(size) not in image.pages[1:5]
    at(file, EXCLUSIVE).xTruncate(size)
    file.xWrite(last, 4 * size)
    assert [file.xRead(size, n * size) for n in range(5)] == [page1, *[bytes(size)] * 3, last]
    assert file.xRead(size, 5 * size) == b""
    file.xFileControl(apsw.SQLITE_FCNTL_COMMIT_PHASETWO, 0)
    file.xUnlock(NONE)
    assert image.page_count == 5
    assert image.pages[1:] == [*[bytes(size)] * 3, last]


# -- commit and rollback ------------------------------------------------------------------------


@pytest.mark.parametrize("locking", ["NORMAL", "EXCLUSIVE"])
@pytest.mark.parametrize("synchronous", SYNCHRONOUS)
@pytest.mark.parametrize("journal", JOURNALS)
def test_commits_are_seen_and_rollbacks_are_not(
    volumes: "Volumes", journal: str, synchronous: str, locking: str
) -> None:
    """With a cache that spills and with one that holds everything, beside an open reader."""
    writer, reader = volumes.open(), volumes.open()
    table_of(writer)
    writer.execute(f"PRAGMA synchronous={synchronous}")
    assert writer.pragma("journal_mode", journal) == journal.lower()
    assert writer.pragma("locking_mode", locking) == locking.lower()
    for cache, text in ((5, "spilled"), (2000, "cached")):
        writer.execute(f"PRAGMA cache_size={cache}")
        before = values(reader)
        writer.execute("BEGIN")
        spill(writer, "rolled back")
        assert values(reader) == before
        writer.execute("ROLLBACK")
        assert (values(reader), values(writer)) == (before, before)
        check(writer)
        writer.execute("BEGIN")
        spill(writer, text)
        assert values(reader) == before
        writer.execute("COMMIT")
        assert (values(reader), values(writer)) == ([text], [text])
        check(reader)
    writer.pragma("locking_mode", "NORMAL")
    assert values(writer) == ["cached"]  # SQLite leaves the seat at the next statement
    reader.execute("UPDATE t SET x = 'next'")
    assert values(writer) == ["next"]


def test_a_spilled_rollback_of_this_size_does_reach_the_vfs(
    volumes: "Volumes", served: Served
) -> None:
    """Or the tests of spilling would show nothing."""
    writer = volumes.open()
    table_of(writer)
    writer.execute("BEGIN")
    spill(writer, "new")
    overlay = served(writer).overlay
    assert overlay is not None
    assert len(overlay) > 20
    writer.execute("ROLLBACK")
    assert served(writer).overlay is None


@pytest.mark.parametrize("locking", ["NORMAL", "EXCLUSIVE"])
def test_unjournalled_rollbacks_leave_nothing(volumes: "Volumes", locking: str) -> None:
    """SQLite could not undo this itself; under EXCLUSIVE it does not even unlock."""
    writer, reader = volumes.open(), volumes.open()
    table_of(writer)
    writer.pragma("journal_mode", "OFF")
    writer.pragma("locking_mode", locking)
    for repeat in range(3):
        writer.execute("BEGIN")
        spill(writer, "rolled back")
        writer.execute("DELETE FROM t WHERE id % 2; CREATE TABLE gone AS SELECT * FROM t")
        writer.execute("ROLLBACK")
        assert values(writer) == values(reader) == (["old"] if not repeat else [f"kept {repeat}"])
        assert writer.execute("SELECT count(*) FROM sqlite_schema").get == 1
        check(writer)
        writer.execute("UPDATE t SET x = ?", (f"kept {repeat + 1}",))
        assert values(reader) == [f"kept {repeat + 1}"]
    assert reader.execute("SELECT count(*) FROM t").get == 500
    check(reader)


@pytest.mark.parametrize("locking", ["NORMAL", "EXCLUSIVE"])
def test_a_failing_statement_in_a_spilled_transaction(volumes: "Volumes", locking: str) -> None:
    """The statement is undone, the transaction goes on."""
    writer = volumes.open()
    table_of(writer)
    writer.pragma("locking_mode", locking)
    writer.execute("CREATE UNIQUE INDEX once ON t(x) WHERE x GLOB 'u*'; BEGIN")
    spill(writer, "first")
    with pytest.raises(apsw.ConstraintError):
        writer.execute("UPDATE t SET x = iif(id < 450, 'second', 'unique'), pad = zeroblob(300)")
    assert values(writer) == ["first"]
    check(writer)
    writer.execute("UPDATE t SET x = 'third' WHERE id = 1; COMMIT")
    assert values(volumes.open()) == ["first", "third"]
    check(writer)


def test_savepoints_and_nested_rollbacks(volumes: "Volumes") -> None:
    writer, reader = volumes.open(), volumes.open()
    table_of(writer)
    writer.execute("BEGIN")
    spill(writer, "outer")
    writer.execute("SAVEPOINT a")
    spill(writer, "a")
    writer.execute("SAVEPOINT b; DELETE FROM t; CREATE TABLE gone(x)")
    writer.execute("ROLLBACK TO b")
    assert values(writer) == ["a"]
    writer.execute("RELEASE b; ROLLBACK TO a")
    assert values(writer) == ["outer"]
    check(writer)
    spill(writer, "a again")
    writer.execute("RELEASE a")
    assert values(reader) == ["old"]
    writer.execute("COMMIT")
    assert values(reader) == ["a again"]
    writer.execute("SAVEPOINT alone")
    spill(writer, "never")
    writer.execute("ROLLBACK TO alone; RELEASE alone")
    assert values(reader) == values(writer) == ["a again"]
    check(reader)


def test_growing_and_shrinking_within_one_transaction(volumes: "Volumes") -> None:
    writer, reader = volumes.open(), volumes.open()
    writer.execute("PRAGMA auto_vacuum=FULL")
    table_of(writer)
    pages = reader.pragma("page_count")
    writer.execute("BEGIN; CREATE TABLE big AS SELECT * FROM t; DROP TABLE big; COMMIT")
    check(reader)
    writer.execute("BEGIN; DELETE FROM t WHERE id > 10; COMMIT")
    assert reader.pragma("page_count") < pages / 5
    assert reader.execute("SELECT count(*) FROM t").get == 10
    check(reader)


def test_exclusive_mode_does_not_hide_commits_from_open_readers(volumes: "Volumes") -> None:
    """SQLite raises the change counter once only under EXCLUSIVE; readers go by it."""
    writer, reader = volumes.open(), volumes.open()
    table_of(writer, 5)
    writer.pragma("locking_mode", "EXCLUSIVE")
    for number in range(5):
        writer.execute("UPDATE t SET x = ?", (number,))
        assert values(reader) == [number]


# -- journal modes ------------------------------------------------------------------------------


@pytest.mark.parametrize("locking", ["NORMAL", "EXCLUSIVE"])
@pytest.mark.parametrize("mode", ["WAL", "DELETE", "TRUNCATE", "PERSIST"])
def test_other_journal_modes_are_answered_with_the_mode_that_stays(
    volumes: "Volumes", mode: str, locking: str
) -> None:
    connection = volumes.open()
    connection.pragma("locking_mode", locking)
    table_of(connection, 5)
    for stays in ("memory", "off"):
        assert connection.pragma("journal_mode", stays) == stays
        assert connection.pragma("journal_mode", mode) == stays
        assert connection.pragma("journal_mode") == stays
        connection.execute("UPDATE t SET x = ?", (stays,))
    assert values(volumes.open()) == ["off"]


@pytest.mark.parametrize("locking", ["NORMAL", "EXCLUSIVE"])
@pytest.mark.parametrize("mode", ["WAL", "DELETE", "TRUNCATE", "PERSIST"])
@pytest.mark.parametrize("schema", ["", "other."])
def test_journal_modes_of_an_attached_volume(
    volumes: "Volumes", mode: str, locking: str, schema: str
) -> None:
    """Unqualified, SQLite tells main's file only, and changes the mode of all. A volume still has
    no journal file and no WAL: either the write succeeds or it says what to do, and that works."""
    table_of(volumes.open("other"), 5)
    connection = apsw.Connection(":memory:")
    connection.execute("ATTACH 'file:other?vfs=buckethead' AS other")
    for pragma in (f"{schema}locking_mode={locking}", f"{schema}journal_mode={mode}"):
        try:
            connection.execute(f"PRAGMA {pragma}").get  # noqa: B018
        except apsw.CantOpenError as error:
            assert "journal_mode=MEMORY" in str(error)  # noqa: PT017
    try:
        connection.execute("UPDATE other.t SET x = 'new'")
    except apsw.CantOpenError as error:
        assert "PRAGMA <schema>.journal_mode=MEMORY" in str(error)  # noqa: PT017
        assert connection.execute("PRAGMA other.journal_mode=MEMORY").get == "memory"
        connection.execute("UPDATE other.t SET x = 'new'")
    connection.close()
    reader = volumes.open("other")
    assert values(reader) == ["new"]
    check(reader)
    volume = volumes.mount("other")
    assert volume.image.pages[0][18:20] == b"\x01\x01", "no trace of WAL"


# -- several volumes ----------------------------------------------------------------------------


@pytest.fixture
def both(volumes: "Volumes") -> apsw.Connection:
    for name in ("one", "two"):
        volumes.open(name).execute("CREATE TABLE t(x); INSERT INTO t VALUES ('old')")
    connection = volumes.open("one")
    connection.execute("ATTACH 'file:two?vfs=buckethead' AS two")
    return connection


def seen(volumes: "Volumes") -> list[Any]:
    return [volumes.open(name).execute("SELECT x FROM t").get for name in ("one", "two")]


CHANGE_BOTH = "BEGIN; UPDATE main.t SET x = 'new'; UPDATE two.t SET x = 'new'"


def test_one_transaction_over_two_volumes(volumes: "Volumes", both: apsw.Connection) -> None:
    both.execute(CHANGE_BOTH)
    assert seen(volumes) == ["old", "old"]
    both.execute("ROLLBACK")
    assert seen(volumes) == ["old", "old"]
    both.execute(CHANGE_BOTH)
    both.execute("COMMIT")
    assert seen(volumes) == ["new", "new"]
    buckethead.unmount("one")
    buckethead.unmount("two")
    assert seen(volumes) == ["new", "new"]


def test_a_failing_statement_over_two_volumes_undoes_both(
    volumes: "Volumes", both: apsw.Connection
) -> None:
    both.execute(CHANGE_BOTH)
    with pytest.raises(apsw.ConstraintError):
        both.execute(
            "CREATE TEMP TABLE guard(x NOT NULL ON CONFLICT ROLLBACK);"
            "INSERT INTO temp.guard VALUES (NULL)"
        )
    assert not both.in_transaction
    assert seen(volumes) == ["old", "old"]


def test_an_error_before_the_commit_point_undoes_both(
    volumes: "Volumes", both: apsw.Connection
) -> None:
    two = volumes.mount("two")
    refusal = buckethead.VolumeError("not any more")
    two.refusal = lambda: refusal
    both.execute("BEGIN; UPDATE main.t SET x = 'new'")
    with pytest.raises(buckethead.VolumeError) as caught:
        both.execute("UPDATE two.t SET x = 'new'")
    assert caught.value is refusal
    both.execute("ROLLBACK")
    two.refusal = None
    assert seen(volumes) == ["old", "old"]


def test_an_error_between_the_locks_undoes_both(volumes: "Volumes", both: apsw.Connection) -> None:
    """Refused when COMMIT asks for EXCLUSIVE on the second: the first has not committed yet."""
    both.execute(CHANGE_BOTH)
    two = volumes.mount("two")
    refusal = buckethead.VolumeError("not any more")
    two.refusal = lambda: refusal
    with pytest.raises(buckethead.VolumeError) as caught:
        both.execute("COMMIT")
    assert caught.value is refusal
    assert not both.in_transaction, "SQLite rolls back when COMMIT fails"
    two.refusal = None
    assert seen(volumes) == ["old", "old"]
    both.execute(CHANGE_BOTH)
    both.execute("COMMIT")
    assert seen(volumes) == ["new", "new"]


def test_an_error_at_the_second_commit_point_leaves_the_first(
    volumes: "Volumes", both: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As between any two SQLite files without a super-journal; the error reaches the caller."""
    both.execute(CHANGE_BOTH)
    with monkeypatch.context() as patch:
        patch.setattr(volumes.mount("two").image, "apply", failing(MemoryError("no room")))
        with pytest.raises(CommitError, match="COMMIT to 'two'"):
            both.execute("COMMIT")
    assert not both.in_transaction
    assert seen(volumes) == ["new", "old"]
    assert both.execute("SELECT x FROM two.t").get == "old", "nothing stale in the cache"
    both.execute(CHANGE_BOTH)
    both.execute("COMMIT")
    assert seen(volumes) == ["new", "new"]


# -- errors at the commit point -----------------------------------------------------------------


def failing(error: BaseException) -> Callable[..., None]:
    def apply(*arguments: object) -> None:
        raise error

    return apply


def failing_after(image: Any, error: BaseException) -> Callable[..., None]:
    original = image.apply

    def apply(*arguments: object) -> None:
        original(*arguments)
        raise error

    return apply


def rows(connection: apsw.Connection) -> list[Any]:
    return [row[0] for row in connection.execute("SELECT x FROM t ORDER BY id")]


@pytest.mark.parametrize("locking", ["NORMAL", "EXCLUSIVE"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError, SystemExit])
@pytest.mark.parametrize("applied", [False, True])
def test_an_exception_at_the_commit_point_empties_the_page_cache(
    volumes: "Volumes",
    monkeypatch: pytest.MonkeyPatch,
    locking: str,
    kind: type[BaseException],
    applied: bool,
) -> None:
    """If the lost page stayed as clean cache, the third commit would revert the second."""
    first, second = volumes.open(), volumes.open()
    table_of(first, 3)
    first.pragma("locking_mode", locking)
    image = volumes.mount().image
    with monkeypatch.context() as patch:
        patch.setattr(image, "apply", failing_after(image, kind()) if applied else failing(kind()))
        with pytest.raises(CommitError) as caught:
            first.execute("UPDATE t SET x = 'lost' WHERE id = 1")
    assert caught.value.extendedresult == apsw.SQLITE_IOERR
    assert isinstance(caught.value.__cause__, kind)
    assert isinstance(caught.value, KeyboardInterrupt) == (kind is KeyboardInterrupt)
    state = "lost" if applied else "old"
    assert rows(first) == [state, "old", "old"]
    first.pragma("locking_mode", "NORMAL")
    assert rows(first) == [state, "old", "old"]
    second.execute("UPDATE t SET x = 'second' WHERE id = 2")
    first.execute("UPDATE t SET x = 'third' WHERE id = 3")
    assert rows(second) == rows(first) == [state, "second", "third"]
    check(second)


@functools.cache
def signal_points(code: CodeType) -> frozenset[int]:
    """Where the interpreter looks for signals within a function: after calls and looping."""
    instructions = list(dis.get_instructions(code))
    following = {b.offset for a, b in itertools.pairwise(instructions) if a.opname[:4] == "CALL"}
    looping = {one.offset for one in instructions if one.opname == "JUMP_BACKWARD"}
    return frozenset(following | looping)


class Interrupt:
    """Ctrl-C at the n-th point at which one can arrive in some callbacks and what they call."""

    def __init__(self, n: int, callbacks: Collection[str]) -> None:
        self.left = n
        self.callbacks = callbacks
        self.where = ""

    def concerns(self, frame: FrameType | None) -> bool:
        """Whether the frame is one of the callbacks, or called by one, within our package."""
        if frame is None or frame.f_code.co_filename not in WALKED:
            return False
        if frame.f_code.co_name == "xFileControl":
            commit = frame.f_locals["op"] == apsw.SQLITE_FCNTL_COMMIT_PHASETWO
            return commit and "xFileControl" in self.callbacks
        return frame.f_code.co_name in self.callbacks or self.concerns(frame.f_back)

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not self.concerns(frame):
            return None
        code = frame.f_code
        frame.f_trace_opcodes = True
        if event == "call" or (event == "opcode" and frame.f_lasti in signal_points(code)):
            self.left -= 1
            if self.left == 0:
                self.where = f"{code.co_name}, line {frame.f_lineno - code.co_firstlineno}"
                sys.settrace(None)
                raise KeyboardInterrupt
        return self.trace

    def __enter__(self) -> "Interrupt":
        self.outer = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(self.outer)


WALKED = {vfs.__file__, volume.__file__}  # the page image has its own such tests


def test_ctrl_c_anywhere_in_a_commit_loses_nobodys_update(volumes: "Volumes") -> None:
    first, second = volumes.open(), volumes.open()
    table_of(first, 3)
    faults = []
    for n in itertools.count(1):
        first.execute("UPDATE t SET x = 'old'")
        volumes.mount().asked = False  # or only the first commit asks for a flush
        interrupt = Interrupt(n, ["xFileControl"])
        with interrupt, contextlib.suppress(KeyboardInterrupt):
            first.execute("UPDATE t SET x = 'lost' WHERE id = 1")
        if interrupt.left > 0:
            break
        state = rows(second)[0]
        second.execute("UPDATE t SET x = 'second' WHERE id = 2")
        first.execute("UPDATE t SET x = 'third' WHERE id = 3")
        if not rows(first) == rows(second) == [state, "second", "third"]:
            faults.append((interrupt.where, rows(first), rows(second)))
    assert n > 5, "the walk has passed through a whole commit"
    assert faults == []
    check(second)


@pytest.mark.parametrize(
    "statement",
    ["UPDATE t SET x = 'lost' WHERE id = 1", "SELECT x FROM t", "BEGIN IMMEDIATE"],
)
def test_ctrl_c_at_a_lock_leaves_no_stale_pin(volumes: "Volumes", statement: str) -> None:
    """SQLite believes that an unlock worked; the file must come to believe it too."""
    first, second = volumes.open(), volumes.open()
    table_of(first, 3)
    faults = []
    for n in itertools.count(1):
        first.execute("UPDATE t SET x = 'old'")
        with (
            Interrupt(n, ["xLock", "xUnlock"]) as interrupt,
            contextlib.suppress(KeyboardInterrupt),
        ):
            first.execute(statement).fetchall()
        if interrupt.left > 0:
            break
        if first.in_transaction:
            first.execute("ROLLBACK")
        rows(first)  # whatever it left behind, the next statement clears away
        second.execute("UPDATE t SET x = 'second' WHERE id = 2")
        if rows(first)[1:] != ["second", "old"]:
            faults.append((interrupt.where, rows(first)))
    if first.in_transaction:
        first.execute("ROLLBACK")
    assert n > 2, "the walk has passed through a whole statement"
    assert faults == []
    check(second)


def test_a_typed_error_reaches_the_caller_as_itself(volumes: "Volumes") -> None:
    connection = volumes.open()
    table_of(connection, 3)
    volume = volumes.mount()
    refusal = buckethead.VolumeReadOnlyError("Could not write: try elsewhere")
    volume.refusal = lambda: refusal
    for statement in ("UPDATE t SET x = 1", "BEGIN IMMEDIATE", "CREATE TABLE u(x)"):
        with pytest.raises(buckethead.VolumeReadOnlyError) as caught:
            connection.execute(statement)
        assert caught.value is refusal
        assert not connection.in_transaction
    assert values(connection) == ["old"]
    volume.refusal = None
    connection.execute("UPDATE t SET x = 1")


# -- stale readers and queueing writers ---------------------------------------------------------


def test_a_stale_reader_that_turns_to_writing_is_told_to_begin_immediate(
    volumes: "Volumes",
) -> None:
    stale, other = volumes.open(), volumes.open()
    table_of(other, 3)
    stale.execute("BEGIN")
    assert values(stale) == ["old"]
    other.execute("UPDATE t SET x = 'theirs'")
    with pytest.raises(apsw.BusyError, match="BEGIN IMMEDIATE") as caught:
        stale.execute("UPDATE t SET x = 'mine'")
    assert isinstance(caught.value, BusySnapshotError)
    assert caught.value.result == apsw.SQLITE_BUSY
    assert caught.value.extendedresult == apsw.SQLITE_BUSY_SNAPSHOT
    assert "ROLLBACK" in str(caught.value)
    assert stale.in_transaction
    assert values(stale) == ["old"], "it can go on reading what it has read"
    stale.execute("ROLLBACK; BEGIN IMMEDIATE; UPDATE t SET x = 'mine'; COMMIT")
    assert values(other) == ["mine"]


def test_a_stale_reader_of_an_attached_volume_gets_the_code(
    volumes: "Volumes", both: apsw.Connection
) -> None:
    both.execute("BEGIN; SELECT x FROM two.t").fetchall()
    volumes.open("two").execute("UPDATE t SET x = 'theirs'")
    with pytest.raises(apsw.BusyError) as caught:
        both.execute("UPDATE two.t SET x = 'mine'")
    assert code_of(caught.value) == apsw.SQLITE_BUSY_SNAPSHOT
    both.execute("ROLLBACK")
    assert seen(volumes) == ["old", "theirs"]


def test_a_statement_alone_is_never_stale(volumes: "Volumes") -> None:
    """SQLite takes SHARED and RESERVED in one step there and tries again by itself."""
    one, two = volumes.open(), volumes.open()
    table_of(one, 3)
    for number in range(20):
        (one, two)[number % 2].execute("UPDATE t SET x = ?", (number,))
    assert values(one) == [19]


def test_begin_immediate_queues_and_is_never_stale(volumes: "Volumes") -> None:
    table_of(volumes.open(), 1)
    volumes.open().execute("UPDATE t SET x = 0")
    writers, each = 4, 100
    errors: list[Exception] = []

    def work() -> None:
        connection = volumes.open()
        connection.set_busy_timeout(60_000)
        try:
            for _ in range(each):
                connection.execute("BEGIN IMMEDIATE")
                (count,) = (connection.execute("SELECT x FROM t").get,)
                connection.execute("UPDATE t SET x = ?", (count + 1,))
                connection.execute("COMMIT")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert values(volumes.open()) == [writers * each]


def test_a_writer_that_cannot_wait_is_busy_at_once(volumes: "Volumes") -> None:
    first, second = volumes.open(), volumes.open()
    table_of(first, 3)
    second.set_busy_timeout(0)
    first.execute("BEGIN IMMEDIATE")
    with pytest.raises(apsw.BusyError) as caught:
        second.execute("UPDATE t SET x = 1")
    assert code_of(caught.value) == apsw.SQLITE_BUSY
    first.execute("ROLLBACK")
    second.execute("UPDATE t SET x = 1")


# -- invariant 13 -------------------------------------------------------------------------------


def test_no_two_versions_show_equal_counters(volumes: "Volumes") -> None:
    """Invariant 13, over everything that changes page 1 or replaces it."""
    volume = volumes.mount()
    writer, reader = volumes.open(), volumes.open()
    counters: dict[bytes, int] = {}
    schemas: dict[bytes, object] = {}

    def look() -> None:
        image = volume.image
        page1 = image.pages[0]
        assert counters.setdefault(page1[24:40], image.version) == image.version
        schema = reader.execute(
            "SELECT group_concat(name || rootpage || coalesce(sql, '')) FROM sqlite_schema"
        ).get
        assert schemas.setdefault(page1[40:44], schema) == schema

    def run(*statements: str) -> None:
        for statement in statements:
            writer.execute(statement)
            look()

    run("CREATE TABLE t(x)", "INSERT INTO t VALUES (1)", "PRAGMA user_version=3")
    saved = (volume.image.page_size, list(volume.image.pages))
    writer.pragma("locking_mode", "EXCLUSIVE")
    run(*["UPDATE t SET x = x + 1"] * 5, "CREATE TABLE u(x)", "DROP TABLE u", "VACUUM")
    writer.pragma("locking_mode", "NORMAL")
    run("UPDATE t SET x = x + 1", "VACUUM", "PRAGMA application_id=7")
    run("PRAGMA schema_version=1", "CREATE TABLE u(x)", "PRAGMA schema_version=0")
    run("CREATE INDEX i ON t(x)", "PRAGMA schema_version=1000", "DROP INDEX i", "DROP TABLE u")
    for _ in range(3):
        volume.swap(saved[0], list(saved[1]))
        look()
        run("UPDATE t SET x = x + 1", "CREATE TABLE v(x)", "DROP TABLE v")
    assert len(counters) == volume.image.version


# -- fork ---------------------------------------------------------------------------------------

FORK = """
import os, sys, pathlib, apsw, buckethead
config = buckethead.BucketConfig(
    bucket="b", key="db.db", endpoint_url=pathlib.Path(sys.argv[1]).as_uri()
)
buckethead.mount("db", config)
connection = apsw.Connection("file:db?vfs=buckethead")
connection.execute("CREATE TABLE t(x); INSERT INTO t VALUES ('parent')")
pid = os.fork()
if pid == 0:
    fresh = apsw.Connection("file:db?vfs=buckethead")
    print("child reads", fresh.execute("SELECT x FROM t").get)
    try:
        fresh.execute("INSERT INTO t VALUES ('child')")
    except buckethead.VolumeReadOnlyError as error:
        print("child may not write:", error)
    try:
        buckethead.mount("db", config).flush()
    except buckethead.VolumeReadOnlyError as error:
        print("child may not flush:", error)
    sys.exit(0)
os.waitpid(pid, 0)
connection.execute("INSERT INTO t VALUES ('parent again')")
buckethead.unmount("db")
print("parent has", connection.execute("SELECT count(*) FROM t").get)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_after_a_fork_the_child_reads_and_the_parent_goes_on(
    volumes: "Volumes", child: "Child", tmp_path: Path
) -> None:
    result = child(FORK, str(volumes.bucket))
    assert result.returncode == 0, result.stderr
    assert "child reads parent\n" in result.stdout
    assert "child may not write: Could not write to 'db': this process was forked" in result.stdout
    assert "child may not flush: " in result.stdout
    assert result.stdout.endswith("parent has 2\n")
    assert os.listdir(tmp_path / "child") == [], "no rescue file"
    stored = volumes.open()
    assert [row[0] for row in stored.execute("SELECT x FROM t")] == ["parent", "parent again"]


FORK_IN_TRANSACTION = """
import os, sys, pathlib, apsw, buckethead
config = buckethead.BucketConfig(
    bucket="b", key="db.db", endpoint_url=pathlib.Path(sys.argv[1]).as_uri()
)
buckethead.mount("db", config)
connection = apsw.Connection("file:db?vfs=buckethead")
connection.execute("CREATE TABLE t(x); INSERT INTO t VALUES ('parent')")
connection.execute("BEGIN; INSERT INTO t VALUES ('parent again')")
pid = os.fork()
if pid == 0:
    try:
        connection.execute("COMMIT")
    except buckethead.VolumeReadOnlyError:
        print("child may not commit")
    connection.close()
    sys.exit(0)
os.waitpid(pid, 0)
connection.execute("COMMIT")
connection.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_transaction_that_runs_at_a_fork_is_the_parents(
    volumes: "Volumes", child: "Child", tmp_path: Path
) -> None:
    result = child(FORK_IN_TRANSACTION, str(volumes.bucket))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "child may not commit\n"
    assert os.listdir(tmp_path / "child") == [], "no rescue file"
    stored = volumes.open()
    assert [row[0] for row in stored.execute("SELECT x FROM t")] == ["parent", "parent again"]
