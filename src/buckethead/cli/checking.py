"""What `verify` finds out about a history: one pass over all that is kept, oldest first.

A state is carried along and every delta is applied to it. Where an image or snapshot stands at
its TXID the two must be the same pages; where no state could be carried so far, it goes on from
that object. Everything is read once, and every fault is found, not only the first.
"""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice, pairwise

from ..errors import HistoryError, SnapshotCorruptError
from ..image import header
from ..image.pages import PageImage
from ..storage import ltx
from ..storage.contract import Bucket
from ..storage.history import Base, Entry, Plan, Timeline, checked_header, damaged, plans
from ..storage.images import Progress, Stamp, check_database
from ..storage.layout import MAIN
from ..storage.restoring import State, apply_next, fetched, follow
from ..storage.translate import translated

MOST_MISSING = 100
"""Missing deltas of one gap that are named one by one."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with an object, in words; ``txid`` is None where it has none."""

    txid: int | None
    key: str
    fault: str


@dataclass(slots=True)
class Findings:
    """What was read and what is wrong. ``newest`` is the TXID asked for, by default the newest
    there is, 0 without a history; ``restorable`` the newest that is sound up to there. ``lost`` are
    the first and the last of TXIDs that should be restorable and are not; ``notes`` say what is odd
    and no fault."""

    newest: int
    restorable: int | None = None
    deltas: int = 0
    snapshots: int = 0
    images: int = 0
    lost: list[tuple[int, int]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(bucket: Bucket, timeline: Timeline, limit: int | None, progress: Progress) -> Findings:
    """Read everything up to a TXID, all of it by default. Raises BucketError; ObjectNotFoundError
    and PreconditionFailedError are among them when a writer is at work meanwhile."""
    newest = timeline.newest if limit is None else limit
    findings = Findings(newest)
    checker = _Checker(bucket, timeline, findings, progress)
    checker.check_names(newest)
    checker.check_objects(newest)
    checker.sum_up()
    return findings


class _Checker:
    """The state carried along, None where the objects so far lead to none."""

    def __init__(
        self, bucket: Bucket, timeline: Timeline, findings: Findings, progress: Progress
    ) -> None:
        self._bucket = bucket
        self._timeline = timeline
        self._findings = findings
        self._progress = progress
        self._state: State | None = None
        self._sound: set[int] = set()  # the TXIDs of states that were reached

    def _fault(self, txid: int | None, key: str, fault: str) -> None:
        self._findings.faults.append(Fault(txid, key, fault))

    # -- names ------------------------------------------------------------------------------

    def check_names(self, newest: int) -> None:
        """Gaps, and images that contradict the history."""
        timeline = self._timeline
        there = sorted(txid for txid in timeline.deltas if txid <= newest)
        for before, after in pairwise([0, *there, newest + 1]):
            self._check_gap(before + 1, after - 1)
        info = timeline.image
        if timeline.newest and info is not None and info.etag != timeline.adopted:
            stamp = timeline.stamp(info)
            if stamp is None or stamp.txid > timeline.newest:
                try:
                    plans(timeline)
                except HistoryError as error:
                    self._fault(None, info.key, str(error))

    def _check_gap(self, first: int, last: int) -> None:
        """Faults for the deltas between these that retention has not freed, all of which are
        missing; one name far away makes any number of them, so only the first have their own."""
        place, pruned = self._timeline.place, self._pruned
        must_stay = 1 if place.branch == MAIN and first == 1 else 0
        missing = chain(
            range(first, min(must_stay, last) + 1), range(max(first, pruned + 1), last + 1)
        )
        found = sorted({*islice(missing, MOST_MISSING + 1)})
        for txid in found[:MOST_MISSING]:
            self._fault(txid, place.delta(txid), "the delta is missing")
        for txid in found[MOST_MISSING:]:
            fault = f"the delta is missing, and so are all after it up to TXID {last}"
            self._fault(txid, place.delta(txid), fault)

    @property
    def _pruned(self) -> int:
        """How far retention may have left gaps: to the newest snapshot, and of ``main`` not the
        first delta. Another branch may begin with that snapshot."""
        return max(self._timeline.snapshots, default=0)

    # -- objects ----------------------------------------------------------------------------

    def check_objects(self, newest: int) -> None:
        """Every delta and base up to ``newest``, then the database that they lead to."""
        entries = [entry for txid, entry in sorted(self._timeline.deltas.items()) if txid <= newest]
        bases = sorted(self._bases(newest), key=lambda base: base.txid, reverse=True)
        with translated(f"verify {self._timeline.place.key!r}", self._bucket):
            with closing(fetched(self._bucket, entries)) as contents:
                for entry, chunks in contents:
                    while bases and bases[-1].txid < entry.txid:
                        self._check_base(bases.pop())
                    self._check_delta(entry, chunks)
                    self._progress(entry.size)
            while bases:
                self._check_base(bases.pop())
        state = self._state
        if state is not None and state.txid == newest and newest:
            self._check_database(state, self._timeline.place.key)

    def _bases(self, newest: int) -> Iterable[Base]:
        """Images and snapshots; an image that is no part of the history has
        TXID 0. The first delta is among the deltas."""
        timeline = self._timeline
        for info in (timeline.image, timeline.previous):
            if info is not None and timeline.stamp(info) is None:
                yield Base(0, info.key, info.size)
        first = timeline.deltas.get(1)
        for base in timeline.bases:
            if base.txid <= newest and (first is None or base.key != first.key):
                yield base

    def _check_delta(self, entry: Entry, chunks: Iterable[bytes]) -> None:
        self._findings.deltas += 1
        try:
            if entry.txid == 1:
                self._state = self._full(entry, chunks)
            elif self._state is not None and self._state.txid == entry.txid - 1:
                apply_next(self._state, self._bucket, entry, chunks)
            else:
                self._state = None
                self._read(entry, chunks)
                return
        except HistoryError as error:
            self._fault(entry.txid, entry.key, str(error))
            self._state = None
            return
        self._sound.add(entry.txid)

    def _full(self, entry: Entry, chunks: Iterable[bytes]) -> State:
        try:
            reader = ltx.Reader(chunks)
            state = State(reader.header.page_size, [], 0, 0, None)
            state.apply(reader.header, reader)
        except ltx.LTXError as error:
            raise damaged(entry, self._bucket, str(error)) from error
        checked_header(reader.header.encode(), entry, self._bucket)
        return state

    def _read(self, entry: Entry, chunks: Iterable[bytes]) -> None:
        """A delta alone, whose state before is not known."""
        try:
            reader = ltx.Reader(chunks)
            checked_header(reader.header.encode(), entry, self._bucket)
            for _ in reader:
                pass
        except ltx.LTXError as error:
            raise damaged(entry, self._bucket, str(error)) from error

    def _check_base(self, base: Base) -> None:
        if base.key in (self._timeline.place.image, self._timeline.place.previous):
            self._findings.images += 1
        else:
            self._findings.snapshots += 1
        plan = Plan(base.key, base.txid, base.size, (), base.txid)
        try:
            found = follow(self._bucket, self._timeline, plan, self._progress)
        except SnapshotCorruptError as error:
            self._fault(base.txid or None, base.key, error.fault or str(error))
            return
        except HistoryError as error:
            self._fault(base.txid, base.key, str(error))
            return
        carried = self._state
        if not base.txid:
            self._check_database(found, base.key)
        elif carried is None or carried.txid != base.txid:
            if self._check_database(found, base.key):
                self._state = found
                self._sound.add(base.txid)
        else:
            difference = _difference(carried, found)
            if difference:
                self._fault(base.txid, base.key, f"it is not the state of its TXID: {difference}")

    def _check_database(self, state: State, key: str) -> bool:
        try:
            image = PageImage(state.page_size, state.pages)
            check_database(image, self._bucket, key, "full")
        except SnapshotCorruptError as error:
            self._fault(state.txid or None, key, error.fault or str(error))
            return False
        return True

    # -- what follows from it ---------------------------------------------------------------

    def sum_up(self) -> None:
        """Which states can be restored and which are lost, and whether a whole history is."""
        timeline, findings = self._timeline, self._findings
        newest = min(findings.newest, timeline.newest)
        before = 0
        for txid in (known for known in timeline.known if known <= newest):
            self._lost(max(before, self._pruned) + 1, txid - 1)
            named = any(timeline.reaches(base.txid, txid) for base in timeline.bases)
            if named and txid in self._sound:
                findings.restorable = txid
            elif named or txid > self._pruned:
                self._lost(txid, txid)
            before = txid
        self._lost(max(before, self._pruned) + 1, newest)
        stamp = Stamp.of(timeline.image) if timeline.image is not None else None
        if stamp is not None and not timeline.newest:
            findings.notes.append(
                f"the image is the state of TXID {stamp.txid} of a history, and none is here: "
                "it was deleted, and every other state with it, or this is a copy of an image from "
                "elsewhere"
            )

    def _lost(self, first: int, last: int) -> None:
        """Note that these states are lost, none where the last comes before the first."""
        lost = self._findings.lost
        if first <= last:
            joined = lost and lost[-1][1] == first - 1
            lost.append((lost.pop()[0] if joined else first, last))


def _difference(carried: State, found: State) -> str:
    """What tells two states of one TXID apart, but for the counters of page 1; '' for nothing."""
    if (carried.page_size, len(carried.pages)) != (found.page_size, len(found.pages)):
        return (
            f"{len(found.pages):,} pages of {found.page_size:,} bytes, where the other objects "
            f"give {len(carried.pages):,} of {carried.page_size:,}"
        )
    pairs = enumerate(zip(carried.pages, found.pages, strict=True), 1)
    wrong = [
        number
        for number, (one, other) in pairs
        if one != other and (number > 1 or _uncounted(one) != _uncounted(other))
    ]
    if not wrong:
        return ""
    return (
        f"{len(wrong):,} pages differ from what the other objects give, the first is {wrong[0]:,}"
    )


def _uncounted(page1: bytes) -> bytes:
    """Page 1 without its counters, which differ where an image was swapped in."""
    return header.with_counters(page1, 0, 0)
