"""Bring a state of a history back into memory.

The rule: what is given back is exactly the state that was published under its TXID, every byte
checked on the way in, or an error that says which object is at fault and what can be restored
instead. Damaged objects are gone around where that leads to the very same state.
"""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass

from ..errors import (
    BranchNotFoundError,
    HistoryError,
    ObjectNotFoundError,
    PreconditionFailedError,
    SnapshotCorruptError,
)
from ..image import header as page1_header
from ..image.pages import PageImage
from . import ltx
from .contract import Bucket, ObjectInfo
from .history import (
    TOMBSTONE,
    Entry,
    Plan,
    Timeline,
    best_before,
    damaged,
    is_deleted,
    look,
    plans,
    read_header,
    utc,
)
from .images import IntegrityCheck, Progress, Stamp, check_database, download
from .layout import MAIN, TXID, Place
from .parallel import ordered_map
from .translate import translated

log = logging.getLogger("buckethead")

ATTEMPTS_WHEN_MOVED_ON = 3
"""Another process may checkpoint and delete what we have just listed."""

SMALL_AT_ONCE = 16
"""Requests for deltas of a few kilobytes. Their time is latency: of 30 ms each, 1,000 take 2 s
instead of 8 s by four. Against a store on this machine it makes no difference: 1.4 s of work."""


@dataclass(slots=True)
class State:
    """A state being restored: the pages so far, and what the next delta has to follow on."""

    page_size: int
    pages: list[bytes]
    txid: TXID
    timestamp: int
    writer: int | None  # None: not known, any may follow

    def apply(self, header: ltx.Header, pages: Iterable[tuple[int, bytes]]) -> None:
        """Apply the delta that comes next. Raises LTXError; the state is spoilt then."""
        if header.page_size != self.page_size:
            raise ltx.LTXError(
                f"its pages have {header.page_size:,} bytes, those of the database "
                f"{self.page_size:,}: it is of another database"
            )
        own, lock_page = self.pages, ltx.lock_page(self.page_size)
        changed = False
        for number, page in pages:
            if number == len(own) + 2 == lock_page + 1:
                own.append(bytes(self.page_size))  # the one page that no delta carries
            if number > len(own) + 1:
                raise ltx.LTXError(f"it lacks page {len(own) + 1:,}, and so does the state before")
            own[number - 1 : number] = [page]
            changed = True
        if header.commit == len(own) + 1 == lock_page:
            own.append(bytes(self.page_size))
        if header.commit > len(own):
            raise ltx.LTXError(f"it lacks page {len(own) + 1:,}, and so does the state before")
        if not changed and header.commit != len(own):
            raise ltx.LTXError(
                f"it has no page and makes a database of {len(own):,} pages one of "
                f"{header.commit:,}: it is of another one"
            )
        del own[header.commit :]
        if changed and self.writer not in (None, header.node_id):
            raise ltx.LTXError("its writer never claimed this history: it is of another one")
        self.txid, self.timestamp = header.max_txid, header.timestamp
        self.writer = header.node_id


@dataclass(frozen=True, slots=True)
class Restored:
    """A database in memory, and where it stands. ``stamp`` is None where there is no history yet;
    ``image_txid`` is that of the image at the key, and ``delta_bytes`` what was published since
    then; ``warnings`` say which damaged objects were gone around; ``seen`` is the image that
    was at the key, ``adopted`` its ETag where there is no history yet."""

    image: PageImage
    stamp: Stamp | None
    plan: Plan
    image_txid: TXID
    delta_bytes: int
    warnings: tuple[str, ...]
    adopted: str | None = None
    seen: ObjectInfo | None = None


Target = Callable[[Timeline], TXID]
"""Which state is meant, asked when it is known what there is."""


@dataclass(frozen=True, slots=True)
class Known:
    """A published state of a related history that is in memory already. ``pages`` makes a list of
    its pages, for whoever calls to keep."""

    stamp: Stamp
    page_size: int
    pages: Callable[[], list[bytes]]


def restore(
    bucket: Bucket,
    place: Place,
    target: Target | None = None,
    *,
    integrity_check: IntegrityCheck = "full",
    progress: Progress | None = None,
    known: Known | None = None,
) -> Restored | None:
    """A state in memory, the newest when not told; None when there is no database, and for a
    branch that was deleted, or whose making was never finished.

    Where the newest state goes on from the ``known`` one, only what came after that is read; in
    any case the pages that are equal are shared. Damaged objects are gone around where that gives
    the very same state, and logged. Raises HistoryError, SnapshotCorruptError, BucketError.
    """
    timeline = look(bucket, place, previous=target is not None)
    for _ in range(ATTEMPTS_WHEN_MOVED_ON):
        try:
            if timeline.newest and not timeline.has_base and place.branch != MAIN:
                return None
            if is_deleted(bucket, timeline):
                return None
            return _restore(bucket, timeline, target, integrity_check, progress, known)
        except (
            *(ObjectNotFoundError, PreconditionFailedError, HistoryError, SnapshotCorruptError),
        ) as error:
            before, timeline = timeline, look(bucket, place)
            if timeline == before:  # nobody was at work: it is as it is
                raise
            failure = error
    raise failure


def _restore(
    bucket: Bucket,
    timeline: Timeline,
    target: Target | None,
    integrity_check: IntegrityCheck,
    progress: Progress | None,
    known: Known | None,
) -> Restored | None:
    if known is not None and target is None and _leads_on_from(bucket, timeline, known.stamp):
        with suppress(BranchNotFoundError):  # it was deleted since, and made again
            return _gone_on(bucket, timeline, known, progress)
    ways = plans(timeline, target(timeline) if target is not None else None)
    faults: list[HistoryError | SnapshotCorruptError] = []
    damaged_bases: list[str] = []
    damaged_delta: HistoryError | None = None
    for plan in ways:
        if damaged_delta is not None and plan.base_txid < (damaged_delta.txid or 0):
            continue
        try:
            state = follow(bucket, timeline, plan, progress)
            if known is not None:
                _share(state.pages, known.pages())
            image = PageImage(state.page_size, state.pages)
            check_database(image, bucket, plan.base, integrity_check)
        except (HistoryError, SnapshotCorruptError) as fault:
            faults.append(fault)
            if isinstance(fault, HistoryError) and (fault.txid or 0) > plan.base_txid:
                damaged_delta = fault
            else:
                damaged_bases.append(plan.base)
            continue
        _warn_of(faults)
        return _restored(timeline, plan, state, image, faults)
    raised = damaged_delta or next(iter(faults), None)
    _warn_of(fault for fault in faults if fault is not raised)
    if damaged_delta is not None and damaged_delta.txid is not None:
        best = best_before(timeline, damaged_delta.txid, damaged_bases)
        raise HistoryError(f"{str(damaged_delta).rstrip('.')}{best}.", damaged_delta.txid)
    if faults:
        raise faults[0]
    return None


def _leads_on_from(bucket: Bucket, timeline: Timeline, stamp: Stamp) -> bool:
    """Whether a history has gone through the state of another one and kept all that came after."""
    txid = stamp.txid
    if txid not in timeline.deltas and txid not in timeline.snapshots:
        return False
    if not all(later in timeline.deltas for later in range(txid + 1, timeline.newest + 1)):
        return False
    header = read_header(bucket, timeline, txid)
    return (header.timestamp, header.node_id) == (stamp.timestamp, stamp.writer)


def _gone_on(
    bucket: Bucket, timeline: Timeline, known: Known, progress: Progress | None
) -> Restored:
    """The newest state, from one in memory that was checked when it got there."""
    stamp, newest = known.stamp, timeline.newest
    deltas = tuple(timeline.deltas[txid] for txid in range(stamp.txid + 1, newest + 1))
    plan = Plan(timeline.entry(stamp.txid).key, stamp.txid, 0, deltas, newest)
    state = State(known.page_size, known.pages(), stamp.txid, stamp.timestamp, stamp.writer)
    with translated(f"restore {timeline.place.key!r}", bucket):
        _apply_all(state, bucket, plan, progress)
    return _restored(timeline, plan, state, PageImage(state.page_size, state.pages), [])


def _share(pages: list[bytes], others: list[bytes]) -> None:
    """Let equal pages of two states be the same in memory."""
    for at, (page, other) in enumerate(zip(pages, others, strict=False)):
        if page == other:
            pages[at] = other


def _warn_of(faults: Iterable[HistoryError | SnapshotCorruptError]) -> None:
    """Log what nobody will hear of by an exception."""
    for fault in faults:
        log.warning("%s", fault)


def _restored(
    timeline: Timeline,
    plan: Plan,
    state: State,
    image: PageImage,
    faults: list[HistoryError | SnapshotCorruptError],
) -> Restored:
    stamp = timeline.stamp(timeline.image)
    image_txid = stamp.txid if stamp is not None else 0
    since = sum(entry.size for txid, entry in timeline.deltas.items() if txid > image_txid)
    position = None
    if state.txid:
        epoch = timeline.epoch or (stamp.epoch if stamp is not None else 0)
        position = Stamp(state.txid, state.timestamp, state.writer or 0, epoch)
    adopted = timeline.image.etag if not timeline.deltas and timeline.image is not None else None
    return Restored(
        image, position, plan, image_txid, since, tuple(map(str, faults)), adopted, timeline.image
    )


def follow(
    bucket: Bucket, timeline: Timeline, plan: Plan, progress: Progress | None = None
) -> State:
    """Carry a plan out. Raises HistoryError, SnapshotCorruptError, BucketError."""
    with translated(f"restore {timeline.place.key!r}", bucket):
        state = _base(bucket, timeline, plan, progress)
        _apply_all(state, bucket, plan, progress)
    if state.pages:
        state.pages[0] = page1_header.without_wal(state.pages[0])
    return state


def _apply_all(state: State, bucket: Bucket, plan: Plan, progress: Progress | None) -> None:
    for entry, chunks in fetched(bucket, plan.deltas):
        apply_next(state, bucket, entry, chunks)
        if progress is not None:
            progress(entry.size)


def _base(bucket: Bucket, timeline: Timeline, plan: Plan, progress: Progress | None) -> State:
    for info in (timeline.image, timeline.previous):
        if info is not None and info.key == plan.base:
            stamp = timeline.stamp(info)
            image = download(bucket, info, progress)
            if stamp is None:
                return State(image.page_size, image.pages, 0, 0, None)
            return State(image.page_size, image.pages, stamp.txid, stamp.timestamp, stamp.writer)
    snapshot = timeline.snapshots.get(plan.base_txid)
    if snapshot is None or snapshot.key != plan.base:
        return _full(bucket, timeline.deltas[plan.base_txid], progress)
    state = _full(bucket, snapshot, progress)
    if snapshot.txid in timeline.deltas:
        delta = read_header(bucket, timeline, snapshot.txid)
        if (delta.timestamp, delta.node_id) != (state.timestamp, state.writer):
            raise damaged(snapshot, bucket, "it is no snapshot of this history, copied here")
    return state


def _full(bucket: Bucket, entry: Entry, progress: Progress | None) -> State:
    """The state that a snapshot, or the first delta, is."""
    chunks = bucket.get_parts(entry.key, entry.size)
    with closing(chunks):
        try:
            reader = ltx.Reader(_reported(chunks, progress))
            header = reader.header
            if (header.min_txid, header.max_txid) != (1, entry.txid):
                raise ltx.LTXError("it is not what its name says")
            state = State(header.page_size, [], 0, 0, None)
            state.apply(header, reader)
        except ltx.LTXError as error:
            raise damaged(entry, bucket, str(error)) from error
    return state


def _reported(chunks: Iterable[bytes], progress: Progress | None) -> Iterator[bytes]:
    for chunk in chunks:
        if progress is not None:
            progress(len(chunk))
        yield chunk


def apply_next(state: State, bucket: Bucket, entry: Entry, chunks: Iterable[bytes]) -> None:
    """Apply the delta of an entry. Raises HistoryError, and BranchNotFoundError for a tombstone;
    the state is spoilt then."""
    try:
        reader = ltx.Reader(chunks)
        if reader.header.node_id == TOMBSTONE:
            when = utc(reader.header.timestamp / 1000)
            raise BranchNotFoundError(
                f"Could not go on to TXID {entry.txid}: with {entry.key!r} at {bucket.url} the "
                f"branch was deleted, {when}."
            )
        if (reader.header.min_txid, reader.header.max_txid) != (state.txid + 1, entry.txid):
            raise ltx.LTXError(
                f"it is the delta of TXID {reader.header.min_txid}-{reader.header.max_txid}, under "
                "another's name"
            )
        state.apply(reader.header, reader)
    except ltx.LTXError as error:
        raise damaged(entry, bucket, str(error)) from error


def fetched(
    bucket: Bucket, entries: Sequence[Entry]
) -> Generator[tuple[Entry, Iterable[bytes]], None, None]:
    """The content of deltas, in order, fetched in parallel; a large one comes in parts when it is
    its turn."""

    def fetch(entry: Entry) -> tuple[Entry, Iterable[bytes] | None]:
        small = entry.size <= bucket.part_size
        return entry, [bucket.get_bytes(entry.key)] if small else None

    with closing(ordered_map(fetch, entries, _at_once(bucket, entries))) as small_ones:
        for entry, chunks in small_ones:
            if chunks is not None:
                yield entry, chunks
                continue
            with closing(bucket.get_parts(entry.key, entry.size)) as parts:
                yield entry, parts


def _at_once(bucket: Bucket, entries: Sequence[Entry]) -> int:
    """How many deltas to fetch at once: more small ones, in the memory that parts may take."""
    largest = max((min(entry.size, bucket.part_size) for entry in entries), default=1)
    fitting = bucket.concurrency * bucket.part_size // max(1, largest)
    return max(bucket.concurrency, min(SMALL_AT_ONCE, fitting))
