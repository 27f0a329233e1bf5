"""Where a database publishes a transaction before it commits it (`Database.before_commit`).

SQLite says SQLITE_FCNTL_SYNC before the commit point, whatever ``synchronous`` is; what is raised
there makes COMMIT fail, and SQLite rolls back. The rule: what was sent and not committed after all
is noted as dirty before the lock falls (native_notes/durable-commit.md).
"""

import weakref
from functools import partial
from typing import Protocol, cast

import apsw

from ..errors import PublicationError
from . import header
from .database import Database, Transaction


class Writer(Protocol):
    """A file with a write transaction: what is asked of it here."""

    overlay: dict[int, bytes] | None
    published: frozenset[int] | None  # sent ahead of a commit that has not come to pass yet
    thread: int  # that has the EXCLUSIVE lock
    connection: weakref.ref[apsw.Connection] | None  # known for main databases only
    length: int
    page_count: int
    page_size: int

    @property
    def database(self) -> Database: ...

    def page(self, number: int) -> bytes: ...

    def finish(self, overlay: dict[int, bytes]) -> None: ...


databases: "weakref.WeakSet[Database]" = weakref.WeakSet()
"""Every database that has or had a file open."""


def before_commit(file: Writer) -> None:
    """SQLite is about to commit what is in the overlay, or has just put every page back."""
    if file.published is not None:
        take_back(file)
    publish = file.database.before_commit
    overlay = file.overlay
    if publish is None or overlay is None:
        return
    _check_alone(file)
    if not _changed(file, overlay, file.length):
        return  # a rollback syncs too, after it has put every page back
    file.finish(overlay)
    page1 = overlay.get(1) or file.page(1)
    # the file may still be longer: SQLite cuts it after the commit point
    count = header.page_count(page1) or file.length
    changed = _changed(file, overlay, count)
    publish(Transaction(overlay, changed, count, file.page_size, partial(_sending, file)))


def _changed(file: Writer, overlay: dict[int, bytes], count: int) -> set[int]:
    """The pages that are not what they were before the transaction."""
    return {
        number
        for number, page in overlay.items()
        if number <= count and (number > file.page_count or file.page(number) != page)
    }


def _sending(file: Writer, numbers: frozenset[int]) -> None:
    file.published = numbers


def committed(file: Writer) -> None:
    """The commit point: what was sent is what the image has. Caller holds the image's lock."""
    assert file.published is not None
    file.database.image.dirty -= file.published
    file.published = None


def take_back(file: Writer) -> None:
    """What was sent was not committed."""
    assert file.published is not None
    numbers = file.published
    file.published = None
    file.database.unpublished(numbers)


def _check_alone(file: Writer) -> None:
    """Two histories cannot be published as one. SQLite takes every file that a transaction may
    write to EXCLUSIVE before it syncs the first; whether it will write there nobody can tell yet,
    and once the first is published it is too late."""
    for database in list(databases):
        other = cast(Writer, database.image.writer)
        if other is file or getattr(other, "overlay", None) is None:
            continue  # a mere pin has no overlay, and a file only while EXCLUSIVE
        if other.thread == file.thread and not _of_other_connections(other, file):
            raise PublicationError(
                f"COMMIT was rolled back: the transaction may write to {file.database.name!r} and "
                f"to {database.name!r}, and with durability='commit' it could reach one bucket and "
                "not the other. Write to one volume in a transaction; to read another in a "
                "transaction that began IMMEDIATE, attach it with mode=ro."
            )


def _of_other_connections(one: Writer, other: Writer) -> bool:
    """Whether two files certainly belong to two connections: only those of main are known."""
    if one.connection is None or other.connection is None:
        return False
    return one.connection() is not other.connection()
