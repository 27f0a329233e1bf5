"""Where a database publishes a transaction before it commits it (`Database.before_commit`).

SQLite says SQLITE_FCNTL_SYNC before the commit point, whatever ``synchronous`` is; what is raised
there makes COMMIT fail, and SQLite rolls back. The rule: what was sent and not committed after all
is noted as dirty before the lock falls (native_notes/durable-commit.md).
"""

import weakref
from collections.abc import Iterator
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

    def finish(self, overlay: dict[int, bytes]) -> bool: ...


databases: "weakref.WeakSet[Database]" = weakref.WeakSet()
"""Every database that has or had a file open."""

sent: dict[int, Writer] = {}
"""Thread -> the file whose transaction it has published and not committed yet."""


def before_commit(file: Writer) -> None:
    """SQLite is about to commit what is in the overlay, or has just put every page back."""
    if file.published is not None:
        take_back(file)
    _check_alone(file)
    publish = file.database.before_commit
    overlay = file.overlay
    if publish is None or overlay is None:
        return
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
    sent[file.thread] = file


def committed(file: Writer) -> None:
    """The commit point: what was sent is what the image has. Caller holds the image's lock."""
    assert file.published is not None
    file.database.image.dirty -= file.published
    _done(file)


def take_back(file: Writer) -> None:
    """What was sent was not committed."""
    assert file.published is not None
    numbers = file.published
    _done(file)
    file.database.unpublished(numbers)


def _done(file: Writer) -> None:
    file.published = None
    sent.pop(file.thread, None)


def _check_alone(file: Writer) -> None:
    """Two histories cannot be published as one: refuse a transaction that writes to another
    volume, whichever of the two SQLite comes to first."""
    others = [sent[file.thread]] if file.thread in sent else []
    if file.database.before_commit is not None:
        others += [
            writer
            for writer in _writers()
            if writer.thread == file.thread and not _of_other_connections(writer, file)
        ]
    for other in others:
        if other is not file:
            raise PublicationError(
                f"COMMIT was rolled back: the transaction writes to {file.database.name!r} and to "
                f"{other.database.name!r}, and with durability='commit' it could reach one bucket "
                "and not the other. Write to one volume in a transaction."
            )


def _writers() -> Iterator[Writer]:
    """The files that have written something in their transaction."""
    for database in list(databases):
        writer = database.image.writer
        if getattr(writer, "overlay", None):  # a mere pin has none
            yield cast(Writer, writer)


def _of_other_connections(one: Writer, other: Writer) -> bool:
    """Whether two files certainly belong to two connections: only those of main are known."""
    if one.connection is None or other.connection is None:
        return False
    return one.connection() is not other.connection()
