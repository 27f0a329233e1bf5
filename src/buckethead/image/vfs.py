"""The SQLite VFS ``buckethead``: SQLite's file calls, answered from page images.

The rule: a file reads the version it pinned with its SHARED lock, writes into a private overlay,
and only `SQLITE_FCNTL_COMMIT_PHASETWO` brings the overlay into the image. So readers and the
writer never wait for each other, and a rollback is an overlay thrown away.

Lock states (SQLite's five; PENDING is never asked for). Every other edge raises::

        SHARED: pin the newest version        RESERVED: take the writer's seat
    NONE ─────────────► SHARED ─────────────► RESERVED ─────────────► EXCLUSIVE
      ▲                 │  ▲                      │      at once          │
      └──── unpin ──────┘  └──── leave the seat, drop the overlay ◄───────┘

What SQLite does when, and which test shows it, is in native_notes.
"""

import enum
import itertools
import operator
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import apsw

from ..errors import VolumeError
from . import durable, header
from .callback_errors import (
    BusySnapshotError,
    IllegalLockError,
    PlainBusySnapshotError,
    ambiguous,
    cut_short,
)
from .database import Database
from .header import counters
from .pages import PageImage, Pin, StalePinError, queue, valid_page_size
from .scratch import open_scratch

NAME = "buckethead"

MAX_GAP = 1 << 20
"""Pages a file may grow by without writing them (8 bytes each here). SQLite leaves such gaps for
pages freed again in the same transaction; a corrupt header can ask for billions."""


LONG_NAP = 100_000
"""In µs. A writer that finds another at work sleeps 1, 2, 5, 10, 15, 20, 25, 25, 25, 50 and 50 ms
before SQLite lets it try again, then 100 ms each time. The first of these end as soon as the seat
is left: 16 threads that commit and wait for durability then do twice as much. The long ones do
not, or a writer that others outrun would have used up its busy timeout in no time."""


class Lock(enum.IntEnum):
    """SQLite's lock states."""

    NONE = apsw.SQLITE_LOCK_NONE
    SHARED = apsw.SQLITE_LOCK_SHARED
    RESERVED = apsw.SQLITE_LOCK_RESERVED
    PENDING = apsw.SQLITE_LOCK_PENDING
    EXCLUSIVE = apsw.SQLITE_LOCK_EXCLUSIVE


# Plain integers where every statement passes: comparing with an enum member takes twice as long
NONE, SHARED, RESERVED, EXCLUSIVE = (
    int(state) for state in (Lock.NONE, Lock.SHARED, Lock.RESERVED, Lock.EXCLUSIVE)
)

_COMMIT_PHASETWO = apsw.SQLITE_FCNTL_COMMIT_PHASETWO
_PRAGMA = apsw.SQLITE_FCNTL_PRAGMA
_SYNC = apsw.SQLITE_FCNTL_SYNC
_WHICH_FILE = 0x62680001  # our own file control: "which of our files serves this schema?"

_which_file = threading.local()


class DatabaseFile(Pin):
    """One open main database file: a pin that can also write.

    SQLite calls the methods of one file from one thread at a time, so its fields need no lock.
    """

    __slots__ = ("_base", "_database", "_image", "_journal_off", "_lock", "_suspect", "connection",
                 "length", "meant_wal", "overlay", "published", "thread")  # fmt: skip

    overlay: dict[int, bytes] | None  # page number -> page, of the running write transaction
    length: int  # pages in the file as this file sees it
    published: frozenset[int] | None  # sent ahead of a commit that has not come to pass yet
    thread: int  # that has the EXCLUSIVE lock
    meant_wal: bool  # SQLite's own copy of page 1 says WAL, and the overlay's no longer
    _base: int  # leading pages that the transaction has not cut off
    _suspect: bool  # SQLite may hold pages in its cache that never came into the image

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database
        self._image = database.image
        self._lock = NONE
        self._journal_off = False
        self._suspect = self.meant_wal = False
        self.overlay = None
        self.published = None
        self.thread = 0
        self.length = self._base = 0
        durable.databases.add(database)
        self.connection: weakref.ref[apsw.Connection] | None = None

    @property
    def database(self) -> Database:
        return self._database

    # -- locks ------------------------------------------------------------------------------

    def xLock(self, level: int) -> None:  # noqa: PLR0912 - a call more costs 2% of a commit
        lock = self._lock
        if level == SHARED:
            if lock != NONE:  # SQLite believes that it has unlocked: Ctrl-C came at that very call
                self.xUnlock(NONE)
            # PageImage.pin spelled out, as every statement comes by here
            self.parked = False
            image = self._image
            if image.pending is not None or self.version != image.version:
                image.pin(self)
            self.length = self.page_count
            if self._suspect:
                self.overlay = {}  # sends the next reads to _read_aside
            self._lock = SHARED
        elif level == RESERVED and lock == SHARED:
            if self._database.refusal is not None:
                self._database.check_writable()
            if self._suspect and self.page_count:
                raise self._stale()
            try:
                if not self._image.reserve(self):
                    raise apsw.BusyError(f"another connection writes to {self._database.name!r}")
            except StalePinError:
                raise self._stale() from None
            self._lock = RESERVED
        elif level == EXCLUSIVE and lock == RESERVED:
            if self._database.refusal is not None:  # forked or stopped since the lock
                self._database.check_writable()
            self.thread = threading.get_ident()
            self.overlay = {}
            self._base = self.length
            if self.length == 0:
                self.page_size = 0  # an earlier attempt to create the database may have set it
            self._lock = EXCLUSIVE
        elif level > lock:
            raise IllegalLockError(f"lock {Lock(lock).name} -> {Lock(level).name}")

    def _stale(self) -> Exception:
        """In a transaction the statement fails, so say why; outside one (BEGIN IMMEDIATE) SQLite
        itself tries again on the new version, and an exception with a text would stop it."""
        connection = self.connection() if self.connection is not None else None
        if connection is None or not connection.in_transaction:
            return PlainBusySnapshotError()
        return BusySnapshotError(
            f"cannot write to {self._database.name!r}: this transaction began by reading version "
            f"{self.version}, and another connection has committed since. ROLLBACK and run it "
            "again with BEGIN IMMEDIATE"
        )

    def xUnlock(self, level: int) -> None:
        lock = self._lock
        if self.overlay is not None:
            if self.overlay:
                self._suspect = True  # thrown away: see _distrust_cache
            if self.published is not None:  # also where nothing is left of a first transaction
                durable.take_back(self)
        if level == NONE:
            if lock != NONE:
                # PageImage.park spelled out, likewise
                self.overlay = None
                self._lock = NONE
                self.parked = True
                image = self._image
                if image.seat or image.pending is not None or self.version != image.version:
                    image.park(self)
        elif level == SHARED and lock >= SHARED:
            self.overlay = None
            self.length = self.page_count
            self._lock = SHARED
            self._image.release(self)
        else:
            raise IllegalLockError(f"unlock {Lock(lock).name} -> {Lock(level).name}")

    def xCheckReservedLock(self) -> bool:
        return self._image.writer is not None

    # -- reading ----------------------------------------------------------------------------

    def xRead(self, amount: int, offset: int) -> bytes:
        size = self.page_size
        if self.overlay is not None or self._lock == NONE or size == 0:
            return self._read_aside(amount, offset)
        index = offset // size
        if index >= self.page_count:
            return b""
        try:
            page = self.pages[index]  # first the list, then the undo map: see Pin.page
        except IndexError:
            page = self.undo[index + 1]
        else:
            if self.undo:
                page = self.undo.get(index + 1, page)
        if amount == size:
            return page
        start = offset % size
        return page[start : start + amount]

    def _read_aside(self, amount: int, offset: int) -> bytes:
        """The rarer reads: within a write transaction, of an empty database, and the one of the
        header that SQLite makes at open before any lock."""
        if self.overlay is None or self.page_size == 0:
            with self._image.pinned() as pin:
                page1 = pin.page(1) if pin.page_count else b""
            return page1[offset : offset + amount]
        if offset == 24 and amount == 16:  # only how SQLite asks whether its cache is still good
            if self._suspect and self._lock == SHARED:
                return self._distrust_cache()
            if self.overlay:
                self._forget_abandoned()
        index, start = divmod(offset, self.page_size)
        return self._current(index + 1)[start : start + amount]

    def _current(self, number: int) -> bytes:
        """A page as the running transaction sees it; empty beyond the end of the file."""
        if self.overlay is not None:
            page = self.overlay.get(number)
            if page is not None:
                return page
            if self._base < number <= self.length:
                return bytes(self.page_size)
        return self.page(number) if number <= min(self.page_count, self.length) else b""

    def _distrust_cache(self) -> bytes:
        """Answer with counters that no version has, so that SQLite empties its page cache.

        After an overlay was thrown away: at worst because Ctrl-C came at the very entry of
        COMMIT_PHASETWO, where Python raises it before any ``try`` and SQLite keeps the lost
        pages as good ones; its next commit would write them over someone's update.
        """
        self._suspect = False
        self.overlay = None
        shown = self.page(1)[24:40] if self.page_count else b""
        return bytes(byte ^ 0xFF for byte in shown)

    def _forget_abandoned(self) -> None:
        """SQLite looks at the header's counters while EXCLUSIVE only when it has emptied its
        cache after a failed or unjournalled rollback under locking_mode=EXCLUSIVE: the lock
        stays, so this is the one sign that the transaction is over (native_notes/commit.md)."""
        self.overlay = {}
        self.length = self._base = self.page_count

    def xFileSize(self) -> int:
        if self._lock == NONE:
            return self._image.size
        return self.length * self.page_size

    # -- writing ----------------------------------------------------------------------------

    def xWrite(self, data: bytes, offset: int) -> None:
        size = self.page_size
        if len(data) != size or offset % size:
            return self._write_aside(data, offset)
        number = offset // size + 1
        if number > self.length:
            self._grow(number)
        self.overlay[number] = data  # type: ignore[index]  # a dict: SQLite holds EXCLUSIVE
        return None

    def _write_aside(self, data: bytes, offset: int) -> None:
        """The rarer writes: the first one to an empty database, and of a part of a page."""
        if self.page_size == 0:
            self._decide_page_size(len(data))
            return self.xWrite(data, offset)
        index, start = divmod(offset, self.page_size)
        page = bytearray(self._current(index + 1).ljust(self.page_size, b"\0"))
        page[start : start + len(data)] = data
        return self.xWrite(bytes(page), offset - start)

    def _decide_page_size(self, size: int) -> None:
        """The first write to an empty database is a whole page, of the size it will have."""
        if not valid_page_size(size):
            raise apsw.IOError(f"first write of {size} bytes is not a page")
        self.page_size = size

    def _grow(self, length: int) -> None:
        if length - self.length > MAX_GAP:
            raise apsw.FullError(
                f"{self._database.name!r} has {self.length:,} pages and was asked to grow to "
                f"{length:,} at once. The database header is damaged: restore an earlier image"
            )
        self.length = length

    def xTruncate(self, size: int) -> None:
        assert self.overlay is not None, "SQLite truncates under an EXCLUSIVE lock only"
        length = size // self.page_size if self.page_size else 0
        if length > self.length:
            self._grow(length)
        else:
            for number in [number for number in self.overlay if number > length]:
                del self.overlay[number]
            self.length = length
            self._base = min(self._base, length)
            if self.page_count == length == 0:
                self.page_size = 0
                self._suspect = True  # SQLite goes by the counters of what it has just given up

    # -- control ----------------------------------------------------------------------------

    def xFileControl(self, op: int, pointer: int) -> bool:
        if op == _COMMIT_PHASETWO:
            if self.overlay:
                self._commit(self.overlay)
            return True
        if op == _SYNC:
            if self.overlay and self._database.before_commit is not None:
                durable.before_commit(self)
            return False
        if op == _PRAGMA:
            return self._pragma(apsw.VFSFcntlPragma(pointer))
        if op == _WHICH_FILE:
            _which_file.answer = self
            return True
        return False

    def _commit(self, overlay: dict[int, bytes]) -> None:
        """Bring the overlay into the image: this is the commit point."""
        try:
            self.finish(overlay)
            with self._image.lock:  # nobody closes the database to writers in between
                if self._database.refusal is not None:
                    self._database.check_writable()
                self._image.apply(overlay, self.length, self.page_size, self)
                if self.published is not None:
                    durable.committed(self)
            self._database.committed()
        except BaseException as error:
            self._suspect = True
            self._database.committed()  # it may have come in whole
            raise cut_short(self._database.name, error) from error
        # Under locking_mode=EXCLUSIVE the next transaction begins without another lock call
        self.overlay = {}
        self._base = self.length
        self._suspect, self.meant_wal = self.meant_wal, False

    def finish(self, overlay: dict[int, bytes]) -> None:
        """Make the overlay what the commit brings in: no page missing, page 1 as it must follow."""
        if self.length > self._base:
            blank = bytes(self.page_size)
            for number in range(self._base + 1, self.length + 1):
                overlay.setdefault(number, blank)
        if not self.page_count:  # the first transaction: nobody has seen any counters
            self.meant_wal = self.meant_wal or overlay[1][18] != 1
            overlay[1] = header.without_wal(overlay[1])
            return
        shown = self._image.pages[0]
        page1 = overlay.get(1, shown)
        counter, cookie = counters(page1, 24)
        shown_counter, shown_cookie = counters(shown, 24)
        was_wal = page1[18] != 1
        if counter != shown_counter + 1 or cookie < shown_cookie or was_wal:
            overlay[1] = header.following(page1, shown)
            self.meant_wal = self.meant_wal or was_wal

    def _pragma(self, pragma: apsw.VFSFcntlPragma) -> bool:
        """journal_mode stays MEMORY or OFF, as for SQLite's own in-memory databases: under any
        other SQLite would open a named journal, or turn on WAL."""
        if pragma.name.lower() != "journal_mode" or pragma.value is None:
            return False
        wanted = pragma.value.lower()
        if wanted in ("memory", "off"):
            self._journal_off = wanted == "off"
            return False
        pragma.result = "off" if self._journal_off else "memory"
        return True

    # C functions where there is nothing to do but answer 0: the interpreter is not entered, which
    # makes a point read 3% faster. (Memory is the file, so a sync has nothing to do)
    xSync = staticmethod(int)
    xDeviceCharacteristics = staticmethod(int)

    def xSectorSize(self) -> int:
        return 4096

    def xClose(self) -> None:
        if self.published is not None:
            durable.take_back(self)
        self.overlay = None
        self._lock = NONE
        self._image.unpin(self)
        self._database.closed()
        if self._cut_off_by_deserialize():
            raise VolumeError(
                f"deserialize() has cut this connection off from {self._database.name!r}, which "
                "is unchanged: nothing written through this connection will be kept. Close it; "
                "to load a database file use `buckethead import FILE`, or the backup API"
            )

    def _cut_off_by_deserialize(self) -> bool:
        """Main is closed before its connection is by Connection.deserialize only."""
        connection = self.connection() if self.connection is not None else None
        if connection is None:
            return False
        try:
            connection.db_names()
        except apsw.ConnectionClosedError:
            return False
        return True


Find = Callable[[str, dict[str, str], int], Database]
"""Name, URI parameters and SQLite's open flags of a main database -> the database they mean."""


class BucketVFS(apsw.VFS):
    """Finds the database that a file name and its URI parameters mean; see the module's head."""

    def __init__(self, find: Find) -> None:
        self._platform = apsw.vfs_names()[0]
        self._find = find
        super().__init__(NAME, self._platform)

    def xOpen(  # type: ignore[override]  # APSW asks for the methods only
        self, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> apsw.VFSFile | DatabaseFile:
        if name is None:
            return open_scratch(self._platform, flags)
        if not isinstance(name, apsw.URIFilename):
            raise apsw.CantOpenError(
                f"Could not open {name!r}: a volume keeps its journal in memory and has no other "
                "files. Say PRAGMA <schema>.journal_mode=MEMORY for the schema that it is."
            )
        database = _private.get(name.filename())
        if database is None:
            parameters = {key: name.uri_parameter(key) or "" for key in name.parameters}
            if "vfs" not in parameters:
                raise ambiguous(name.filename(), NAME)
            database = self._find(name.filename(), parameters, flags[0])
        # As memdb does: the journal is kept in memory, WAL is impossible, no super-journal
        flags[1] = flags[0] | apsw.SQLITE_OPEN_MEMORY
        return (database.file_class or DatabaseFile)(database)

    def xFullPathname(self, name: str) -> str:
        return name  # a volume's name is no path

    # "Is there a journal, is there a WAL?" Never, whatever files lie in the folder. A C function
    # that answers False to (pathname, flags): SQLite asks twice before every statement
    xAccess = staticmethod(operator.is_)  # type: ignore[assignment]

    def xDelete(self, filename: str, syncdir: bool) -> None:
        """Nothing has a name here, so there is nothing to delete."""

    def xSleep(self, microseconds: int) -> int:
        # The inherited one keeps the GIL, so the lock that is waited for could not be released
        if microseconds < LONG_NAP:
            queue.wait(microseconds / 1e6)
        else:
            time.sleep(microseconds / 1e6)
        return microseconds


def file_of(connection: apsw.Connection, schema: str = "main") -> DatabaseFile | None:
    """The file of ours that serves a schema of the connection; None when it is not ours."""
    _which_file.answer = None
    connection.file_control(schema, _WHICH_FILE, 0)
    answer: DatabaseFile | None = _which_file.answer
    _which_file.answer = None
    return answer


_private: dict[str, Database] = {}
_private_numbers = itertools.count(1)


@contextmanager
def connected(image: PageImage) -> Iterator[apsw.Connection]:
    """A connection to an image that no name leads to, for the length of a block."""
    name = f"private/{next(_private_numbers)}"
    _private[name] = Database(name, image)
    try:
        connection = apsw.Connection(
            f"file:{name}?vfs={NAME}", apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI
        )
        try:
            yield connection
        finally:
            connection.close()
    finally:
        del _private[name]
