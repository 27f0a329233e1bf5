"""What is kept of a history, for how long, and what is deleted.

Let S be the newest snapshot that is older than the retention time. Deltas up to S and snapshots
older than S go, so that every moment within the retention time stays restorable. Never: a claim
or the first delta, the newest delta, a delta after the TXID of the image or of the one before it.
The time is the store's own: that of the newest object, so no clock of ours can jump. The rule:
first list, then make sure that we are still the writer, then delete, oldest first.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from ..crashpoints import crash_point
from ..errors import FencedError, HistoryError, ObjectNotFoundError
from ..image.pages import Pin
from . import ltx
from .contract import Bucket
from .history import Entry, Timeline, checked_header, look, read_header
from .images import Progress, Stamp
from .layout import Place, is_ours
from .publisher import largest
from .translate import translated

STALE_UPLOAD_SECONDS = 86_400.0
"""A multipart upload that was begun so long ago belongs to a process that is gone."""


@dataclass(frozen=True, slots=True)
class Freed:
    """What retention deleted, or would delete. Sizes in bytes."""

    deltas: int
    snapshots: int
    size: int

    def __add__(self, other: "Freed") -> "Freed":
        return Freed(
            self.deltas + other.deltas, self.snapshots + other.snapshots, self.size + other.size
        )


def now(timeline: Timeline) -> float:
    """The store's time as far as the objects of a history tell, in unix seconds."""
    entries = (*timeline.deltas.values(), *timeline.snapshots.values())
    times = [entry.written_at for entry in entries]
    times += [info.last_modified for info in (timeline.image, timeline.previous) if info]
    return max(times, default=0.0)


def snapshot_due(timeline: Timeline, seconds: float) -> bool:
    """Whether the newest snapshot, or the first delta, is older than the retention time."""
    full = [*timeline.snapshots.values()]
    if 1 in timeline.deltas:
        full.append(timeline.deltas[1])
    newest = max((entry.written_at for entry in full), default=0.0)
    behind = max((entry.txid for entry in full), default=0)
    return behind < timeline.newest and newest < now(timeline) - seconds


def write_snapshot(
    pin: Pin, bucket: Bucket, place: Place, stamp: Stamp, progress: Progress | None = None
) -> None:
    """Write the state that ``pin`` shows, published as ``stamp`` says, as a snapshot: the same
    bytes whenever it is done. Raises BucketError."""
    header = ltx.Header(
        page_size=pin.page_size,
        commit=pin.page_count,
        min_txid=1,
        max_txid=stamp.txid,
        timestamp=stamp.timestamp,
        node_id=stamp.writer,
    )
    lock_page = ltx.lock_page(pin.page_size)
    numbers = (number for number in range(1, pin.page_count + 1) if number != lock_page)
    chunks = ltx.encode(header, ((number, pin.page(number)) for number in numbers))
    key = place.snapshot(stamp.txid)
    with translated(f"write the snapshot {key!r}", bucket):
        size = largest(pin.page_size, pin.page_count)
        crash_point("snapshot.unsent")
        bucket.put_parts(chunks, key, size=size, progress=progress)
        crash_point("snapshot.written")


def expired(timeline: Timeline, seconds: float) -> list[Entry]:
    """What is not kept any longer, oldest first."""
    before = now(timeline) - seconds
    old = [entry.txid for entry in timeline.snapshots.values() if entry.written_at < before]
    if not old:
        return []
    base = max(old)
    last = min(base, timeline.newest - 1, *_image_txids(timeline))
    deltas = [
        entry for entry in timeline.deltas.values() if entry.txid <= last and not entry.is_claim
    ]
    snapshots = [entry for entry in timeline.snapshots.values() if entry.txid < base]
    return sorted((*deltas, *snapshots), key=lambda entry: entry.txid)


def _image_txids(timeline: Timeline) -> Iterator[int]:
    """How far the deltas may go for the sake of each image that is there."""
    for info in (timeline.image, timeline.previous):
        stamp = timeline.stamp(info)
        if stamp is not None:
            yield stamp.txid


def free(
    bucket: Bucket, place: Place, seconds: float, stamp: Stamp | None, *, dry_run: bool = False
) -> Freed:
    """Delete what is older than ``seconds``. ``stamp`` is our own newest state, or None for
    whoever is no writer. Raises FencedError when another writer has gone on, HistoryError when
    our own delta is gone, BucketError; what was not deleted yet is kept then."""
    timeline = look(bucket, place)
    entries = expired(timeline, seconds)
    if entries and not dry_run:
        if stamp is not None:
            check_still_ours(bucket, timeline, stamp)
        with translated(f"delete what is not kept of {place.key!r}", bucket):
            crash_point("retention.checked")
            bucket.delete_many(entry.key for entry in entries)
            crash_point("retention.freed")
    deltas = sum(entry.key == place.delta(entry.txid) for entry in entries)
    return Freed(deltas, len(entries) - deltas, sum(entry.size for entry in entries))


def check_still_ours(bucket: Bucket, timeline: Timeline, stamp: Stamp) -> None:
    """Re-read the newest delta, and look for its successor: both must be ours (invariant 9). They
    may be newer than ``stamp``, since our own flushes go on."""
    place, newest = timeline.place, timeline.newest
    if newest < stamp.txid:
        raise HistoryError(
            f"Could not delete what is not kept of {place.key!r}: our own delta of TXID "
            f"{stamp.txid} is gone. Nothing was deleted; look at it with `buckethead verify`.",
            stamp.txid,
        )
    writers = {read_header(bucket, timeline, newest).node_id}
    successor = Entry(newest + 1, place.delta(newest + 1), 0, 0.0)
    with suppress(ObjectNotFoundError), translated(f"read {successor.key!r}", bucket):
        data = bucket.get_range(successor.key, 0, ltx.HEADER_SIZE)
        writers.add(checked_header(data, successor, bucket).node_id)
    if writers != {stamp.writer}:
        raise FencedError(
            f"Could not delete what is not kept of {place.key!r}: another writer has gone on "
            f"after our TXID {stamp.txid}. Nothing was deleted; the writer will see to it."
        )


def abort_stale_uploads(bucket: Bucket, key: str, moment: float) -> list[str]:
    """Abort the multipart uploads of this database begun more than a day before ``moment``, in
    unix seconds; their keys. Raises BucketError."""
    with translated(f"abort stale uploads of {key!r}", bucket):
        return bucket.abort_uploads(
            key, before=moment - STALE_UPLOAD_SECONDS, wanted=lambda name: is_ours(key, name)
        )
