"""What one object of a history says of itself, by its header, its ending or its metadata alone.

A damaged object is no error here: its `Record` says what is wrong with it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import HistoryError, ObjectNotFoundError
from ..storage import ltx
from ..storage.contract import Bucket, ObjectInfo
from ..storage.history import Entry, Timeline, checked_header, utc
from ..storage.images import PAGE_COUNT, PAGE_SIZE, Stamp
from ..storage.parallel import ordered_map
from ..storage.translate import translated

SMALL_BYTES = 64 * 1024
"""An object up to this size is read in one request; of a larger one its header and its ending."""

TAIL_BYTES = 16 * 1024
"""Index of 2,000 pages or so, with 5 to 8 bytes for each."""


@dataclass(frozen=True, slots=True)
class Record:
    """An object of a history. ``moment`` in unix seconds; ``pages`` is how many it holds and
    ``database_pages`` how many the database has; None where the object does not say."""

    txid: int | None
    kind: str
    key: str
    size: int
    moment: float | None = None
    pages: int | None = None
    writer: str | None = None
    page_size: int | None = None
    database_pages: int | None = None
    fault: str | None = None

    @property
    def time(self) -> str | None:
        """The moment for a person."""
        return None if self.moment is None else utc(self.moment)


def records(bucket: Bucket, timeline: Timeline, count: int) -> Iterator[Record]:
    """The newest objects of a history, newest first; read in parallel."""
    entries: list[tuple[int, Entry | ObjectInfo]] = [
        (entry.txid, entry) for entry in (*timeline.snapshots.values(), *timeline.deltas.values())
    ]
    for info in (timeline.image, timeline.previous):
        if info is not None:
            stamp = timeline.stamp(info)
            entries.append((stamp.txid if stamp is not None else 0, info))
    entries.sort(key=lambda pair: -pair[0])

    def read(pair: tuple[int, Entry | ObjectInfo]) -> Record:
        entry = pair[1]
        if isinstance(entry, ObjectInfo):
            return image_record(timeline, entry)
        return entry_record(bucket, timeline, entry)

    return ordered_map(read, entries[:count], bucket.concurrency)


def record_of(bucket: Bucket, timeline: Timeline, txid: int) -> Record:
    """What is known of a state that is kept: by its delta, its snapshot or its image."""
    entry = timeline.deltas.get(txid) or timeline.snapshots.get(txid)
    if entry is not None:
        return entry_record(bucket, timeline, entry, pages_too=False)
    infos = [info for info in (timeline.image, timeline.previous) if info is not None]
    found = (image_record(timeline, info) for info in infos)
    return next(record for record in found if record.txid == txid)


def image_record(timeline: Timeline, info: ObjectInfo) -> Record:
    """What the metadata of an image says."""
    stamp = Stamp.of(info)
    if stamp is not None and timeline.stamp(info) is None:
        stamp = None  # copied here, from another history
    pages, page_size = (info.metadata.get(name) for name in (PAGE_COUNT, PAGE_SIZE))
    count = int(pages) if pages else None
    return Record(
        txid=stamp.txid if stamp is not None else None,
        kind="image" if info.key == timeline.place.image else "previous image",
        key=info.key,
        size=info.size,
        moment=info.last_modified if stamp is None else stamp.timestamp / 1000,
        pages=count,
        writer=f"{stamp.writer:016x}" if stamp is not None else None,
        page_size=int(page_size) if page_size else None,
        database_pages=count,
    )


def entry_record(
    bucket: Bucket, timeline: Timeline, entry: Entry, *, pages_too: bool = True
) -> Record:
    """What the header of a delta or snapshot says, and how many pages it holds if wanted."""
    is_snapshot = timeline.place.snapshot(entry.txid) == entry.key
    kind = "snapshot" if is_snapshot else "claim" if entry.size == ltx.EMPTY_SIZE else "delta"
    try:
        header, pages = _read(bucket, entry, pages_too)
    except (HistoryError, ObjectNotFoundError, ltx.LTXError) as error:
        return Record(entry.txid, kind, entry.key, entry.size, fault=str(error))
    return Record(
        txid=entry.txid,
        kind=kind,
        key=entry.key,
        size=entry.size,
        moment=header.timestamp / 1000,
        pages=pages,
        writer=f"{header.node_id:016x}",
        page_size=header.page_size,
        database_pages=header.commit,
    )


def _read(bucket: Bucket, entry: Entry, pages_too: bool) -> tuple[ltx.Header, int | None]:
    with translated(f"read {entry.key!r}", bucket):
        small = pages_too and entry.size <= SMALL_BYTES
        length = entry.size if small else ltx.HEADER_SIZE
        data = bucket.get_range(entry.key, 0, length)
        header = checked_header(data, entry, bucket)
        if not pages_too:
            return header, None
        if small:
            return header, ltx.pages_in(data)
        pages, length = None, TAIL_BYTES
        while pages is None and length < 2 * entry.size:
            pages = ltx.pages_in(bucket.get_tail(entry.key, length))
            length *= 16
        return header, pages
