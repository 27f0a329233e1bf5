"""Which objects the states kept in a bucket name in their table ``filestore``.

The rule: an answer comes from SQLite, reading the very pages of the state; no state that can be
restored is left out, and one that cannot be read is an error that says which.

A history is walked from its oldest state on, one state in memory at a time. SQLite's answer
follows from the pages that it reads, so it is asked again only after a delta that has changed one
of them.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import apsw

from ..errors import HistoryError
from ..image import header
from ..image.pages import PageImage
from ..image.vfs import connected
from ..storage.contract import Bucket, ObjectInfo
from ..storage.history import Base, Entry, Plan, Timeline, plans
from ..storage.images import Progress, corrupt, download
from ..storage.restoring import State, apply_next, fetched, follow
from ..storage.translate import translated

_HAS_KEYS = """
    SELECT 1 FROM pragma_table_xinfo('filestore') WHERE name = 'object_key' COLLATE NOCASE"""

_KEYS = """
    SELECT CAST(object_key AS TEXT) FROM main.filestore WHERE object_key IS NOT NULL"""


class UnreadableError(Exception):
    """SQLite could not read the table of a state."""


class Filestore:
    """What the table names in one state after another of the same database.

    ``keys`` is what it names in the last one, nothing where there is no such table or it is
    another program's, without object keys.
    """

    def __init__(self) -> None:
        self.keys: frozenset[str] = frozenset()
        self._read: dict[int, bytes] = {}  # index -> page: all that the answer follows from

    def look(self, page_size: int, pages: list[bytes]) -> bool:
        """Read a state; False where it names what the one before did. Raises UnreadableError."""
        if self._follows_from(pages):
            return False
        before, self.keys = self.keys, self._ask(page_size, pages)
        return before != self.keys

    def _follows_from(self, pages: list[bytes]) -> bool:
        """Whether the last answer is that of these pages too."""
        if not self._read or header.page_count(pages[0]) not in (0, len(pages)):
            return False
        if len(pages) <= max(self._read) or _content(pages[0]) != _content(self._read[0]):
            return False
        return all(pages[index] == page for index, page in self._read.items() if index)

    def _ask(self, page_size: int, pages: list[bytes]) -> frozenset[str]:
        watched = _Watched(pages)
        watched[0] = header.without_wal(pages[0])
        image = PageImage(page_size)
        image.pages = watched
        try:
            # a new connection: SQLite would trust what it has cached of another state
            with connected(image) as connection:
                found = connection.execute(_HAS_KEYS).get
                rows = connection.execute(_KEYS) if found is not None else ()
                keys = frozenset(str(key) for (key,) in rows)
        except (apsw.Error, UnicodeDecodeError) as error:
            raise UnreadableError(f"its table filestore cannot be read ({error})") from error
        self._read = {index: pages[index] for index in watched.asked}
        return keys


class _Watched(list[bytes]):
    """The pages of an image, and the indices of those that were asked for."""

    def __init__(self, pages: list[bytes]) -> None:
        super().__init__(pages)
        self.asked: set[int] = set()

    def __getitem__(self, index: Any) -> Any:
        self.asked.add(index)
        return super().__getitem__(index)


def _content(page1: bytes) -> bytes:
    """Page 1 without what every commit changes: bytes 24 to 39, the change counter, the length of
    the file and of the list of free pages, and 92 to 99, that counter again and the version of
    SQLite. The schema cookie stays in, and so does the root of the schema."""
    return page1[:24] + page1[40:92] + page1[100:]


@dataclass(frozen=True, slots=True)
class Named:
    """Object keys named by any state kept of a history, and by its newest state."""

    ever: frozenset[str]
    now: frozenset[str]


def of_image(bucket: Bucket, info: ObjectInfo, progress: Progress | None = None) -> frozenset[str]:
    """The object keys that an image names. Raises SnapshotCorruptError, PreconditionFailedError
    when it was replaced since ``info``, BucketError."""
    with translated(f"read the image {info.key!r}", bucket):
        image = download(bucket, info, progress)
    filestore = Filestore()
    try:
        filestore.look(image.page_size, image.pages)
    except UnreadableError as error:
        raise corrupt(bucket, info.key, str(error)) from error
    return filestore.keys


def of_history(bucket: Bucket, timeline: Timeline, progress: Progress | None = None) -> Named:
    """The object keys that the states of a history name: every one that can be restored from it.

    Raises HistoryError, also where the newest one cannot be restored, SnapshotCorruptError,
    BucketError.
    """
    plans(timeline, timeline.newest)  # raises where no object leads to the newest state
    ever: set[str] = set()
    now: frozenset[str] = frozenset()
    for base, deltas in _runs(timeline):
        for txid, keys in _of_run(bucket, timeline, base, deltas, progress):
            ever |= keys
            if txid == timeline.newest:
                now = keys
    return Named(frozenset(ever), now)


def _runs(timeline: Timeline) -> Iterator[tuple[Base, list[Entry]]]:
    """All states that can be restored, each once: a base, and the deltas that follow it without a
    gap. States of long ago may lie before a gap, such as the first one."""
    end = 0
    for base in sorted(timeline.bases, key=lambda base: base.txid):
        if base.txid <= end:
            continue
        end = base.txid
        while timeline.reaches(base.txid, end + 1):
            end += 1
        yield base, [timeline.deltas[txid] for txid in range(base.txid + 1, end + 1)]


def _of_run(
    bucket: Bucket,
    timeline: Timeline,
    base: Base,
    deltas: list[Entry],
    progress: Progress | None,
) -> Iterator[tuple[int, frozenset[str]]]:
    """TXID and object keys of the base, of every state that names others than the one before it,
    and of the last."""
    filestore = Filestore()
    state = follow(bucket, timeline, Plan(base.key, base.txid, base.size, (), base.txid), progress)
    _look(filestore, state, bucket, timeline, base.txid)
    yield base.txid, filestore.keys
    with (
        translated(f"read the history of {timeline.place.key!r}", bucket),
        closing(fetched(bucket, deltas)) as arriving,
    ):
        for entry, chunks in arriving:
            apply_next(state, bucket, entry, chunks)
            if progress is not None:
                progress(entry.size)
            if _look(filestore, state, bucket, timeline, entry.txid):
                yield entry.txid, filestore.keys
    yield base.txid + len(deltas), filestore.keys


def _look(
    filestore: Filestore, state: State, bucket: Bucket, timeline: Timeline, txid: int
) -> bool:
    try:
        return filestore.look(state.page_size, state.pages)
    except UnreadableError as error:
        place = timeline.place
        raise HistoryError(
            f"Could not read the state of TXID {txid} of {place.key!r}, branch {place.branch!r}, "
            f"at {bucket.url}: {error}. Look at it with `buckethead verify`.",
            txid,
        ) from error
