"""The branches of a database as keys in its bucket: found, made, overwritten and deleted.

A branch has a history of its own, with its own fence, which begins with objects copied inside the
store. The rules: of those who make it at once an object of a name that they all would write tells
all but one so, since their claims need not meet; it begins with a claim, and is there when that can
be restored, so a branch made by halves is none. It ends with a tombstone, a delta that is kept as
claims are, so that whoever wrote to it and slept, or was slow to make it, finds out; and a branch
made again under its name goes on after it, and depends on nothing that a late request may delete.
"""

import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial

from ..crashpoints import crash_point
from ..errors import (
    BranchError,
    BranchExistsError,
    BranchNotFoundError,
    FencedError,
    PreconditionFailedError,
)
from ..image import header
from ..image.pages import PageImage
from . import ltx
from .contract import Bucket, ObjectInfo
from .history import TOMBSTONE, Timeline, is_deleted, listed, look, read_header
from .images import Stamp
from .layout import MAIN, TXID, Place, branch_of, checked_branch, probe
from .parallel import ordered_map
from .publisher import BRANCHES, PUBLISHES_ONCE, Changes, Publisher
from .restoring import SMALL_AT_ONCE, restore
from .retention import write_snapshot
from .translate import translated

ATTEMPTS_WHEN_MOVED_ON = 3
"""Another writer may publish between our look and our delta."""

MAKING_SECONDS = 60.0
"""How long a branch made by halves counts as one that somebody is making."""

LATE_SECONDS = 30.0
"""When whoever makes a branch makes sure that nobody has taken it for abandoned."""


@dataclass(frozen=True, slots=True)
class BranchInfo:
    """A branch at its newest state. ``size`` is that of the database in bytes, ``last_modified``
    in unix seconds of the store, ``key`` that of its image; ``txid`` is 0 without a history. What
    was never published was never modified."""

    name: str
    size: int
    txid: TXID
    last_modified: float | None
    key: str


@dataclass(frozen=True, slots=True)
class Source:
    """The state that a branch is made from. ``stamp`` is where it stands in the history at
    ``place``, None for an image without any; ``image`` gives the pages, and is only called where
    the objects cannot be copied, or are not that state, because it is not ``published``. ``seen``
    is the object that is the image, where its writer knows it."""

    place: Place
    stamp: Stamp | None
    page_size: int
    page_count: int
    image: Callable[[], PageImage]
    published: bool = True
    seen: ObjectInfo | None = None


# ---- finding


def names(bucket: Bucket, key: str) -> list[str]:
    """The branches that have any object, ``main`` among them, deleted ones too. Raises
    BucketError."""
    with translated(f"list the branches of {key!r}", bucket):
        prefixes = (f"{key}.ltx/", f"{key}.branch.")
        objects = (object_key for prefix in prefixes for object_key in bucket.list_keys(prefix))
        found = {branch_of(key, object_key) for object_key in objects}
    return sorted({name for name in found if name is not None} | {MAIN})


def find(bucket: Bucket, key: str) -> list[BranchInfo]:
    """The branches there are, in the order of their names. Raises BucketError, HistoryError."""
    with translated(f"list the branches of {key!r}", bucket):
        seen = _seen(bucket, key)

        def info(timeline: Timeline) -> BranchInfo | None:
            return _info(bucket, timeline)

        found = ordered_map(info, seen, min(SMALL_AT_ONCE, max(1, len(seen))))
        return sorted((branch for branch in found if branch), key=lambda branch: branch.name)


def _seen(bucket: Bucket, key: str) -> list[Timeline]:
    """What two listings and a HEAD show of every branch."""
    objects: dict[str, list[ObjectInfo]] = defaultdict(list)
    for prefix in (f"{key}.ltx/", f"{key}.branch."):
        for info in bucket.list_objects(prefix):
            name = branch_of(key, info.key)
            if name is not None:
                objects[name].append(info)
    main = bucket.head(key)
    if main is not None:
        objects[MAIN].append(main)
    return [_listed(Place(key, name), objects[name]) for name in objects]


def _listed(place: Place, objects: list[ObjectInfo]) -> Timeline:
    image = next((info for info in objects if info.key == place.image), None)
    return listed(place, objects, image)


def _info(bucket: Bucket, timeline: Timeline) -> BranchInfo | None:
    """The branch that was seen; None where there is only what is left of one."""
    place, image, newest = timeline.place, timeline.image, timeline.newest
    if not timeline.has_base:
        return None
    if not newest:
        assert image is not None, "there is nothing else to begin with"
        return BranchInfo(place.branch, image.size, 0, image.last_modified, place.image)
    last = read_header(bucket, timeline, newest)
    if last.node_id == TOMBSTONE:
        return None
    size = last.commit * last.page_size
    written_at = timeline.deltas[newest].written_at
    return BranchInfo(place.branch, size, newest, written_at, place.image)


def source(bucket: Bucket, place: Place) -> Source:
    """A branch as it is published, for one to be made from it. Raises BranchNotFoundError,
    BucketError, HistoryError."""
    timeline = look(bucket, place, previous=False)
    if not exists(bucket, timeline):
        raise BranchNotFoundError(not_there(bucket, place))
    return _end(bucket, timeline)


def not_there(bucket: Bucket, place: Place) -> str:
    """The words for a branch that is not there."""
    return (
        f"There is no branch {place.branch!r} of {place.key!r} at {bucket.url}, or its making was "
        "not finished. `buckethead branches list` shows those there are."
    )


def _end(bucket: Bucket, timeline: Timeline) -> Source:
    """The newest state of a branch."""
    place, image, newest = timeline.place, timeline.image, timeline.newest
    restored = partial(_restored, bucket, place)
    if newest:
        last = read_header(bucket, timeline, newest)
        stamp = Stamp(newest, last.timestamp, last.node_id, timeline.epoch)
        return Source(place, stamp, last.page_size, last.commit, restored)
    assert image is not None, "there is nothing else that it could be"
    page_size = header.page_size(bucket.get_range(image.key, 0, header.HEADER_SIZE))
    return Source(place, None, page_size, image.size // max(1, page_size), restored)


def _restored(bucket: Bucket, place: Place) -> PageImage:
    found = restore(bucket, place)
    if found is None:
        raise BranchNotFoundError(not_there(bucket, place))
    return found.image


# ---- making


def create(bucket: Bucket, begins_as: Source, name: str, *, fence: bool = True) -> None:
    """Make a branch of a state: one claim, and copies inside the store.

    Under the name of a deleted branch it goes on after the tombstone, and where the copies would
    lie before that, the pages are uploaded. Raises InvalidBranchNameError, BranchExistsError,
    BranchError where there is nothing to begin with, BucketError, and ConfigError when the store
    ignores conditions.
    """
    target = Place(begins_as.place.key, checked_branch(name))
    with translated(f"make the branch {name!r} of {target.key!r}", bucket):
        objects = {info.key: info for info in bucket.list_objects(f"{target.key}.ltx/")}
        image = begins_as.seen or bucket.head(begins_as.place.image)
        from_there = listed(begins_as.place, objects.values(), image)
        if begins_as.stamp is not None:
            from_there = replace(from_there, epoch=begins_as.stamp.epoch)
        if image is not None:
            objects[image.key] = image
        there = listed(target, objects.values(), bucket.head(target.image))
        tries = [info for info in objects.values() if info.key.startswith(_tries(there))]
        if name == MAIN or exists(bucket, there) or _is_being_made(bucket, there, tries):
            raise _exists_already(target, "there is one already, or it is just being made")
        if begins_as.published and begins_as.stamp is None and not (image and there.newest):
            _copy_image(bucket, image, target)
            return
        began = time.time()
        _be_the_one(bucket, there, len(tries) + 1, fence=fence)
        _remove(bucket, there)
        after, begun = _begin(bucket, begins_as, there, began, fence=fence)
        copies = _to_copy(from_there, begins_as, after)
        if copies is None or not _copied(bucket, copies, objects, begins_as.place, target):
            with begins_as.image().pinned() as pin:
                write_snapshot(pin, bucket, target, begun)
        crash_point("branch.made")
        if _is_late(began) and _is_buried(bucket, target, begun.txid):
            raise _exists_already(target, "somebody else took it for abandoned meanwhile")


def exists(bucket: Bucket, timeline: Timeline) -> bool:
    """Whether a branch is there and was not deleted. Raises HistoryError, BucketError."""
    return timeline.has_base and not is_deleted(bucket, timeline)


def _is_late(began: float) -> bool:
    """Whether others may soon take a branch for abandoned that we began to make at that time, in
    unix seconds; no other clock goes on while the machine sleeps."""
    return abs(time.time() - began) > LATE_SECONDS


def _is_buried(bucket: Bucket, target: Place, claim: TXID) -> bool:
    timeline = look(bucket, target, previous=False)
    if claim + 1 not in timeline.deltas:
        return False
    return read_header(bucket, timeline, claim + 1).node_id == TOMBSTONE


def _tries(there: Timeline) -> str:
    return there.place.making(there.newest)


def _be_the_one(bucket: Bucket, there: Timeline, number: int, *, fence: bool) -> None:
    """Of all who saw the same of a branch, let one go on: their claims need not meet, since these
    lie where the states end that they copy."""
    key, token = there.place.making(there.newest, number), secrets.token_bytes(16)
    try:
        bucket.put_bytes(token, key, if_none_match=fence)
    except PreconditionFailedError as error:
        if bucket.get_bytes(key) != token:  # else the reply to an earlier try of ours was lost
            raise _exists_already(there.place, "somebody else has just begun to make it") from error
    crash_point("branch.tried")


def _is_being_made(bucket: Bucket, timeline: Timeline, tries: Iterable[ObjectInfo] = ()) -> bool:
    """Whether somebody began to make it so lately that he may still be at it."""
    begun = [info.last_modified for info in tries]
    if timeline.newest and not timeline.has_base and not is_deleted(bucket, timeline):
        begun.append(timeline.deltas[timeline.newest].written_at)
    if not begun:
        return False
    now = bucket.poll(probe(timeline.place.key)).now  # the store's time, which is theirs too
    return now - max(begun) < MAKING_SECONDS


def _exists_already(target: Place, found: str) -> BranchExistsError:
    return BranchExistsError(
        f"Could not make the branch {target.branch!r} of {target.key!r}: {found}. Choose another "
        "name, or delete that branch first."
    )


def _copy_image(bucket: Bucket, image: ObjectInfo | None, target: Place) -> None:
    """An image without a history is all there is of its database."""
    if image is None or not bucket.copy(image.key, target.image, seen=image):
        raise BranchError(
            f"Could not make the branch {target.branch!r} of {target.key!r}: at {bucket.url} there "
            "is nothing that it could begin with. Write something and flush it first."
        )


def _begin(
    bucket: Bucket, source: Source, there: Timeline, began: float, *, fence: bool
) -> tuple[TXID, Stamp]:
    """Claim the TXID after the state that is copied, and after all that was there; the TXID at
    which that ended, and the claim."""
    target = there.place
    if _is_late(began):
        raise _exists_already(target, "others may begin to make it by now, for this took too long")
    try:
        after = _end_of(bucket, there, fence=fence)
        start = source.stamp or Stamp(0, 0, 0, 0)
        start = replace(start, txid=max(start.txid, after, 1))  # TXID 1 has all pages
        publisher = Publisher(bucket, target, start, fence=fence)
        publisher.node |= PUBLISHES_ONCE | BRANCHES
        publisher.publish(Changes(-1, source.page_size, source.page_count, (), ()))
    except FencedError as error:
        raise _exists_already(target, "somebody else has just begun to make it") from error
    assert publisher.stamp is not None, "it was just published"
    crash_point("branch.claimed")
    return after, publisher.stamp


def _end_of(bucket: Bucket, timeline: Timeline, *, fence: bool) -> TXID:
    """The TXID at which a branch that is none any more has ended, or ends now: nothing leads on
    from what is left of it, or still arrives."""
    if not timeline.newest or is_deleted(bucket, timeline):
        return timeline.newest
    return _bury(bucket, timeline, fence=fence)


# ---- copying


@dataclass(frozen=True, slots=True)
class _Copies:
    """The keys of what makes up a state; what it is restored from is copied last."""

    deltas: list[str]
    bases: list[str]


def _to_copy(timeline: Timeline, source: Source, after: TXID) -> _Copies | None:
    """The newest snapshot or first delta, from which other tools restore too, the image where that
    is newer, and the deltas since. None where they would lie before ``after``, among claims; and
    where there was a branch before, for the image alone: a late request may still delete that."""
    newest = source.stamp.txid if source.stamp is not None and source.published else 0
    usable = [
        base
        for base in timeline.bases
        if after < base.txid <= newest and timeline.reaches(base.txid, newest)
    ]
    full = [base for base in usable if base.key != timeline.place.image]
    chosen = sorted(full, key=lambda base: base.txid)[-1:]
    if after and not chosen:
        return None
    oldest = chosen[0].txid if chosen else after + 1
    chosen += [base for base in usable if base not in full and base.txid >= oldest]
    if not chosen:
        return None
    since = min(base.txid for base in chosen)
    deltas = [timeline.deltas[txid].key for txid in range(since + 1, newest + 1)]
    return _Copies(deltas, [base.key for base in chosen])


def _copied(
    bucket: Bucket,
    copies: _Copies,
    seen: Mapping[str, ObjectInfo],
    source: Place,
    target: Place,
) -> bool:
    """Copy objects, deltas many at a time; False where one has gone or changed meanwhile."""

    def copy(key: str) -> bool:
        to = target.history + key.removeprefix(source.history)
        done = bucket.copy(key, target.image if key == source.image else to, seen=seen[key])
        crash_point("branch.copied-one")
        return done

    at_once = min(max(1, len(copies.deltas)), max(bucket.concurrency, SMALL_AT_ONCE))
    try:
        with closing(ordered_map(copy, copies.deltas, at_once)) as done:
            if not all(done):
                return False
        crash_point("branch.deltas-copied")
        if not copy(copies.bases[0]):
            return False
    except PreconditionFailedError:
        return False
    for key in copies.bases[1:]:
        with suppress(PreconditionFailedError):  # replaced: it would only have saved work
            copy(key)
    return True


# ---- deleting


def delete(bucket: Bucket, key: str, name: str, *, fence: bool = True) -> None:
    """Delete a branch: a tombstone at the end of its history, and then what it is restored from.
    Its writer, if there is one, is fenced by the tombstone.

    Raises InvalidBranchNameError, BranchNotFoundError, BranchError for ``main`` and where the
    writer is too quick for us, BucketError.
    """
    place = Place(key, checked_branch(name))
    if name == MAIN:
        raise BranchError(
            f"Could not delete the branch {MAIN!r} of {key!r}: it is the one that cannot be. "
            "Overwrite it with another branch, or delete the objects of the database."
        )
    with translated(f"delete the branch {name!r} of {key!r}", bucket):
        for _ in range(ATTEMPTS_WHEN_MOVED_ON):
            timeline = look(bucket, place)
            if not timeline.newest:  # the image may be that of one made between LIST and HEAD
                timeline = look(bucket, place)
            if not exists(bucket, timeline):
                if not _is_being_made(bucket, timeline):  # what a crash has left of it
                    with suppress(FencedError):  # somebody else has just seen to it
                        _end_of(bucket, timeline, fence=fence)
                        _remove(bucket, timeline)
                raise BranchNotFoundError(not_there(bucket, place))
            if not timeline.newest:  # whoever has it mounted begins a history with all its pages
                _remove(bucket, timeline)
                return
            with suppress(FencedError):  # its writer has just gone on: look again
                end = _bury(bucket, timeline, fence=fence)
                if not bucket.exists(place.delta(end + 1)):  # made again by somebody in no time
                    _remove(bucket, timeline)
                return
    raise BranchError(
        f"Could not delete the branch {name!r} of {key!r}: another process writes to it all the "
        "time. Stop that one, and try again."
    )


def _bury(bucket: Bucket, timeline: Timeline, *, fence: bool) -> TXID:
    """Publish the tombstone; its TXID."""
    end = _end(bucket, timeline)
    publisher = Publisher(bucket, timeline.place, end.stamp, fence=fence)
    publisher.node = TOMBSTONE
    txid = publisher.publish(Changes(-1, end.page_size, end.page_count, (), ())).txid
    crash_point("branch.buried")
    return txid


def _remove(bucket: Bucket, timeline: Timeline) -> None:
    """Delete what a branch could be restored from, all but claims: nobody was ever at a state
    before its first one."""
    keys = [info.key for info in (timeline.image, timeline.previous) if info is not None]
    keys += [entry.key for entry in timeline.snapshots.values()]
    keys += [e.key for e in timeline.deltas.values() if e.size != ltx.EMPTY_SIZE]
    if keys:
        bucket.delete_many(keys)
    crash_point("branch.removed")
