"""The history of a database in its bucket: what is kept of it, and which objects make up a state.

A state is the newest base at or before it (an image, a snapshot, or the first delta) and every
delta after that base. The rule: only what the names and stamps of the objects prove is believed;
where an image and a history contradict each other, both are named and nothing is chosen.
"""

import logging
from bisect import bisect_right
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial

from ..errors import HistoryError, ObjectNotFoundError
from . import ltx
from .contract import Bucket, ObjectInfo
from .images import Stamp
from .layout import MAIN, TXID, Place
from .parallel import ordered_map
from .translate import translated

log = logging.getLogger("buckethead")

TOMBSTONE = 0x8000_6465_6C65_7465
"""The node id of the delta that a deleted branch ends with. It has no pages and no writer."""

ADOPTED = "buckethead-adopted"
"""Metadata of a first delta: the ETag of the image that was at the key without any history, and
that the delta holds. Without it, a process that dies before its first image would leave two things
behind that seem to contradict each other."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A delta or snapshot as a listing shows it; ``written_at`` in unix seconds of the store."""

    txid: TXID
    key: str
    size: int
    written_at: float

    @property
    def is_claim(self) -> bool:
        """Whether a writer began with it. Such a delta is kept for ever (see publisher.py)."""
        return self.txid == 1 or self.size == ltx.EMPTY_SIZE


@dataclass(frozen=True, slots=True)
class Base:
    """An object that is a whole state."""

    txid: TXID
    key: str
    size: int


@dataclass(frozen=True)
class Timeline:
    """What a bucket keeps of one branch at one moment. ``image`` and ``previous`` are looked at
    only, not read; a delta or snapshot is known by its name. ``epoch`` is the writer of the first
    delta, which no other history has, 0 where that is gone; ``adopted`` the ETag of the image that
    the history began with, where the image at the key is not known to belong to it."""

    place: Place
    image: ObjectInfo | None
    previous: ObjectInfo | None
    deltas: dict[TXID, Entry]
    snapshots: dict[TXID, Entry]
    epoch: int = 0
    adopted: str | None = None

    @cached_property
    def newest(self) -> TXID:
        """The TXID of the newest state; 0 where there is no history."""
        return max(self.deltas, default=0)

    def stamp(self, info: ObjectInfo | None) -> Stamp | None:
        """Where an image stands in this history; None for one that is no part of it. Without any
        delta none is: it was copied here, and a new history begins with it."""
        stamp = Stamp.of(info) if info is not None and self.deltas else None
        return stamp if stamp is not None and stamp.same_history(self.epoch) else None

    @cached_property
    def bases(self) -> tuple[Base, ...]:
        """Whatever a state can be restored from."""
        found = []
        for info in (self.image, self.previous):
            stamp = self.stamp(info)
            if info is not None and stamp is not None:
                found.append(Base(stamp.txid, info.key, info.size))
        found += [Base(entry.txid, entry.key, entry.size) for entry in self.snapshots.values()]
        if 1 in self.deltas:
            found.append(Base(1, self.deltas[1].key, self.deltas[1].size))
        return tuple(found)

    @cached_property
    def _gapless_from(self) -> dict[TXID, TXID]:
        """By delta: the first of those that lead to it without a gap."""
        first: dict[TXID, TXID] = {}
        for txid in sorted(self.deltas):
            first[txid] = first.get(txid - 1, txid)
        return first

    def reaches(self, base: TXID, target: TXID) -> bool:
        """Whether a base is the state that is wanted, or every delta from it to there is kept."""
        first = self._gapless_from.get(target, target + 1)
        return base == target or (first <= base + 1 <= target and not self._in_doubt(target))

    def _in_doubt(self, txid: TXID) -> bool:
        """Whether it is a claim before missing deltas: it may have landed where another delta was
        deleted (`Publisher.claim`), and the state of that TXID was another one."""
        while txid in self.deltas and self.deltas[txid].size == ltx.EMPTY_SIZE:
            txid += 1
        return txid not in self.deltas and txid < self.newest

    @property
    def has_base(self) -> bool:
        """Whether there is anything to restore from, as far as names tell. Of a branch that is
        being made it comes last, and of one that is being deleted it goes first."""
        return self.image is not None or bool(self.snapshots) or 1 in self.deltas

    def entry(self, txid: TXID) -> Entry:
        """The delta of a state, or the snapshot left of it."""
        return self.deltas.get(txid) or self.snapshots[txid]

    @cached_property
    def known(self) -> tuple[TXID, ...]:
        """The states that anything is left of, in order. Whoever goes through these is not kept by
        the numbers in between, of which one object's name can make any amount."""
        found = {*self.deltas, *(base.txid for base in self.bases)}
        return tuple(sorted(txid for txid in found if txid <= self.newest))

    @property
    def kept_since(self) -> TXID:
        """The oldest state from which on every one can be restored; 0 where there is none."""
        newest = self.newest
        return min((base.txid for base in self.bases if self.reaches(base.txid, newest)), default=0)


def look(bucket: Bucket, place: Place, *, previous: bool = True) -> Timeline:
    """See what is kept, at the price of one round trip: one LIST per 1,000 objects, and beside it
    a HEAD for the image and, if wanted, the one before it, and a GET of 100 bytes of the first
    delta. Raises BucketError.

    It is no view of one moment: what contradicts itself may be fine at a second look.
    """
    looking = _Look(bucket, place)
    questions = [looking.at_image, looking.at_first, looking.at_list]
    if previous:
        questions.append(looking.at_previous)
    with translated(f"look at the history of {place.key!r}", bucket):
        for _ in ordered_map(lambda ask: ask(), questions, min(len(questions), bucket.concurrency)):
            pass
        seen = looking.seen()
        if seen.image is None or not seen.epoch or seen.stamp(seen.image) is not None:
            return seen
        return replace(seen, adopted=adopted_by(bucket, place))


class _Look:
    """The answers of a bucket, in any order."""

    def __init__(self, bucket: Bucket, place: Place) -> None:
        self._bucket = bucket
        self._place = place
        self._image: ObjectInfo | None = None
        self._previous: ObjectInfo | None = None
        self._epoch = 0
        self._listed: Timeline | None = None

    def at_image(self) -> None:
        self._image = self._bucket.head(self._place.image)

    def at_previous(self) -> None:
        self._previous = self._bucket.head(self._place.previous)

    def at_first(self) -> None:
        bucket, key = self._bucket, self._place.delta(1)
        try:
            self._epoch = ltx.Header.decode(bucket.get_range(key, 0, ltx.HEADER_SIZE)).node_id
        except ObjectNotFoundError:
            pass
        except ltx.LTXError as error:  # the others may be sound, and an image after it
            log.warning("the first delta %r at %s is damaged: %s", key, bucket.url, error)

    def at_list(self) -> None:
        self._listed = listed(self._place, self._bucket.list_objects(self._place.history))

    def seen(self) -> Timeline:
        assert self._listed is not None, "everything was asked for"
        return replace(self._listed, image=self._image, previous=self._previous, epoch=self._epoch)


def listed(
    place: Place, objects: Iterable[ObjectInfo], image: ObjectInfo | None = None
) -> Timeline:
    """What a listing alone shows of a history, and perhaps the image beside it."""
    deltas: dict[TXID, Entry] = {}
    snapshots: dict[TXID, Entry] = {}
    for info in objects:
        parsed = place.parsed(info.key)
        if parsed is not None:
            is_snapshot, txid = parsed
            (snapshots if is_snapshot else deltas)[txid] = Entry(
                txid, info.key, info.size, info.last_modified
            )
    return Timeline(place, image, None, deltas, snapshots)


def is_deleted(bucket: Bucket, timeline: Timeline) -> bool:
    """Whether a branch ends with a tombstone, at the price of a GET where it may. Raises
    HistoryError where its last delta is damaged, BucketError."""
    newest = timeline.newest
    if timeline.place.branch == MAIN or not newest:
        return False
    if timeline.deltas[newest].size != ltx.EMPTY_SIZE:
        return False
    return read_header(bucket, timeline, newest).node_id == TOMBSTONE


def adopted_by(bucket: Bucket, place: Place) -> str | None:
    """The ETag of the image that a history began with; None where it began with none."""
    first = bucket.head(place.delta(1))
    return first.metadata.get(ADOPTED) if first is not None else None


# ---- from what a state is restored


@dataclass(frozen=True, slots=True)
class Plan:
    """How a state is restored: the object it begins with, the state that this one is, and what is
    applied to it. ``base_txid`` is 0 for an image without a history."""

    base: str
    base_txid: TXID
    base_size: int
    deltas: tuple[Entry, ...]
    target: TXID

    @property
    def size(self) -> int:
        """Bytes to download."""
        return self.base_size + sum(entry.size for entry in self.deltas)


def plans(timeline: Timeline, target: TXID | None = None) -> list[Plan]:
    """The ways to restore a state, the newest when not told, the one with the least to do first.

    Empty when there is no database. Raises HistoryError when the objects for it are not there.
    """
    newest, image = timeline.newest, timeline.image
    if target is None:  # who names a TXID has chosen the history
        _check_image(timeline)
    if not newest:
        if image is None or target is not None:
            return []
        return [Plan(image.key, 0, image.size, (), 0)]
    wanted = newest if target is None else target
    found = [
        Plan(base.key, base.txid, base.size, _between(timeline, base.txid, wanted), wanted)
        for base in timeline.bases
        if wanted <= newest and timeline.reaches(base.txid, wanted)
    ]
    if not found:
        raise _unreachable(timeline, wanted)
    return sorted(found, key=lambda plan: -plan.base_txid)


def _between(timeline: Timeline, base: TXID, target: TXID) -> tuple[Entry, ...]:
    return tuple(timeline.deltas[txid] for txid in range(base + 1, target + 1))


def _check_image(timeline: Timeline) -> None:
    """Refuse to guess between an image and a history that do not belong together."""
    info, newest = timeline.image, timeline.newest
    if info is None or not newest or info.etag == timeline.adopted:
        return
    stamp = timeline.stamp(info)
    if stamp is None:
        fault = "is of another history"
        if Stamp.of(info) is None:
            fault = "has no mark of this history (another program wrote it, or it is damaged)"
    elif stamp.txid > newest:
        fault = f"is the state of TXID {stamp.txid}, which this history does not have"
    else:
        return
    raise HistoryError(
        f"Could not open {info.key!r}: the image there, written {utc(info.last_modified)}, {fault}"
        f", and the history beside it ends with TXID {newest}, published "
        f"{utc(timeline.deltas[newest].written_at)}. One of them has to be chosen: take the image "
        "with `buckethead restore --image FILE`, or the history with `buckethead restore --txid "
        f"{newest} FILE`, then write it back with `buckethead import --force FILE`.",
        newest,
    )


def _unreachable(timeline: Timeline, target: TXID) -> HistoryError:
    newest, since = timeline.newest, timeline.kept_since
    place = timeline.place
    if target > newest:
        fault = f"the newest one is TXID {newest}"
    else:
        base = max((base.txid for base in timeline.bases if base.txid <= target), default=0)
        between = range(base + 1, target + 1)
        missing = next((txid for txid in between if txid not in timeline.deltas), None)
        gone = "it" if missing is None else f"the delta {place.delta(missing)!r} (TXID {missing})"
        fault = f"{gone} is missing"
        if since > target:
            fault = f"{gone} is no longer kept; what can be restored is TXID {_kept(timeline)}"
        fault += best_before(timeline, missing or target)
    return HistoryError(f"Could not restore TXID {target} of {place.key!r}: {fault}.", target)


def _kept(timeline: Timeline) -> str:
    """The states that can be restored, for a person: '1-2, 8'."""
    ranges: list[tuple[TXID, TXID]] = []
    for txid in timeline.known:
        if any(timeline.reaches(base.txid, txid) for base in timeline.bases):
            joined = ranges and ranges[-1][1] == txid - 1
            ranges.append((ranges.pop()[0] if joined else txid, txid))
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in ranges)


def best_before(timeline: Timeline, txid: TXID, damaged: Collection[str] = ()) -> str:
    """Words for the newest state before one, restored without the objects known to be damaged."""
    bases = [base.txid for base in timeline.bases if base.key not in damaged]
    for best in reversed(timeline.known):
        if best < txid and any(timeline.reaches(base, best) for base in bases):
            return (
                f". The newest state before it is TXID {best}: `buckethead restore --txid {best} "
                "FILE`"
            )
    return ""


# ---- which state a moment means


def txid_at(bucket: Bucket, timeline: Timeline, moment: float) -> TXID:
    """The TXID of the state at a moment, in unix seconds. Raises HistoryError when that state is
    no longer kept, or the database did not exist yet.

    Claims kept alone from before that do not count: one may have landed among deltas that were
    deleted, and its time would be out of order.
    """
    since, newest, key = timeline.kept_since, timeline.newest, timeline.place.key
    kept = range(since, newest + 1) if since else range(0)
    times = partial(_timestamp, bucket, timeline)
    position = bisect_right(kept, moment * 1000, key=times)
    if position:
        return kept[position - 1]
    found = "none of its states can be restored; look at it with `buckethead verify`"
    if not newest:
        found = "it has no history yet"
    elif since:
        found = f"its history is kept since {utc(times(since) / 1000)} (TXID {since})"
    raise HistoryError(f"Could not find the state of {key!r} at {utc(moment)}: {found}.")


def _timestamp(bucket: Bucket, timeline: Timeline, txid: TXID) -> int:
    """When a state was published, in ms, by its writer's clock, which never went back."""
    if txid in timeline.deltas or txid in timeline.snapshots:
        return read_header(bucket, timeline, txid).timestamp
    stamps = (timeline.stamp(info) for info in (timeline.image, timeline.previous))
    return next(stamp.timestamp for stamp in stamps if stamp is not None and stamp.txid == txid)


def read_header(bucket: Bucket, timeline: Timeline, txid: TXID) -> ltx.Header:
    """The header of a delta, or of the snapshot left of that state. Raises HistoryError,
    BucketError."""
    entry = timeline.entry(txid)
    with translated(f"read {entry.key!r}", bucket):
        data = bucket.get_range(entry.key, 0, ltx.HEADER_SIZE)
    return checked_header(data, entry, bucket)


def checked_header(data: bytes, entry: Entry, bucket: Bucket) -> ltx.Header:
    """The header of a delta or snapshot, which must be the one its name says."""
    try:
        header = ltx.Header.decode(data[: ltx.HEADER_SIZE])
    except ltx.LTXError as error:
        raise damaged(entry, bucket, str(error)) from error
    if header.max_txid != entry.txid or header.min_txid not in (1, entry.txid):
        found = f"{header.min_txid}-{header.max_txid}"
        raise damaged(entry, bucket, f"it is the delta of TXID {found}, under another's name")
    return header


def damaged(entry: Entry, bucket: Bucket, fault: str) -> HistoryError:
    """The error for a delta or snapshot that is not sound."""
    return HistoryError(
        f"Could not use {entry.key!r} (TXID {entry.txid}) at {bucket.url}: {fault}.", entry.txid
    )


def utc(seconds: float) -> str:
    """A moment for a person."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
