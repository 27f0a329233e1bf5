"""What a bucket keeps that names blobs: every branch and every image, of every database in it.

Blobs are named after their content and databases share a prefix, so one database cannot tell by
itself what nobody needs. The rule: all that is kept at one moment, the end of the listing, is read,
or there is an error. What is kept later and was not then can name no blob that was not named then,
unless it was put since: branches are made of branches, deltas of the states before them.

So what has vanished since the listing without having been read, and a database that has come up
meanwhile, have everything looked at once more (native_notes/blobs.md has the argument).
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain

from ..errors import (
    HistoryError,
    ObjectNotFoundError,
    PreconditionFailedError,
    SnapshotCorruptError,
    VolumeBusyError,
)
from ..image import header
from ..storage.contract import Bucket, ObjectInfo
from ..storage.history import Timeline, is_deleted, look
from ..storage.images import Progress
from ..storage.layout import MAIN, Place, branch_of
from ..storage.parallel import ordered_map
from ..storage.restoring import ATTEMPTS_WHEN_MOVED_ON, SMALL_AT_ONCE
from .references import Named, of_history, of_image

_HISTORY = re.compile(r"(?P<key>.+)\.ltx/(?P<branch>[\w-]+)/[0-9]{4}/.+\.ltx", re.DOTALL | re.ASCII)

_SMALLEST_PAGE = 512

_Objects = dict[str, ObjectInfo]


@dataclass(frozen=True, slots=True)
class Kept:
    """``blobs``: the objects with a blob's name and when they were written, in unix seconds of the
    store, listed before anything was read; ``ever``: the object keys named by any state kept;
    ``now``: those named by the newest states of one database."""

    blobs: dict[str, float]
    ever: frozenset[str]
    now: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Listed:
    """The bucket as a listing shows it: blobs, the objects of each branch, and others that may be
    databases, by their names and sizes."""

    blobs: dict[str, float]
    branches: dict[Place, _Objects]
    others: _Objects


def look_around(
    bucket: Bucket, key: str, prefix: str, young: float, progress: Progress | None = None
) -> Kept:
    """Read everything that is kept. What was begun after ``young``, in unix seconds of the store,
    may still be under way.

    Raises HistoryError and SnapshotCorruptError for what cannot be read, VolumeBusyError where
    the bucket changes faster than it can be read, BucketError.
    """
    listed = _list(bucket, key, prefix)
    failure: Exception | None = None
    for _ in range(ATTEMPTS_WHEN_MOVED_ON):
        try:
            named = _read(bucket, key, listed, young, progress)
            failure = None
        except (
            *(ObjectNotFoundError, PreconditionFailedError, HistoryError, SnapshotCorruptError),
            VolumeBusyError,
        ) as error:
            failure = error
        again = _list(bucket, key, prefix)
        if failure is None:
            new = _come_up(bucket, listed, again)
            if new is None:
                return Kept(listed.blobs, named.ever, named.now)
            failure = _moved_on(bucket, f"{new!r} has come up")
        elif (again.branches, again.others) == (listed.branches, listed.others):
            break  # nobody was at work: it is as it is
        listed = again
    assert failure is not None, "else it has returned"
    failure.add_note("No blob was deleted, for what was not read may name any of them.")
    raise failure


def _moved_on(bucket: Bucket, what: str) -> VolumeBusyError:
    return VolumeBusyError(
        f"Could not tell which blobs at {bucket.url} are needed: {what} while everything was read. "
        "Try again when less is going on."
    )


# ---- listing


def blob_names(prefix: str) -> Callable[[str], bool]:
    """What tells whether an object's name is that of a blob."""
    pattern = re.compile(f"{re.escape(prefix)}[0-9a-f]{{64}}")
    return lambda name: pattern.fullmatch(name) is not None


def _list(bucket: Bucket, key: str, prefix: str) -> _Listed:
    is_blob = blob_names(prefix)
    blobs: dict[str, float] = {}
    branches: dict[Place, _Objects] = defaultdict(dict, {Place(key): {}})
    others: _Objects = {}
    for info in bucket.list_objects():
        place = _place_of(key, info.key)
        if place is not None:
            branches[place][info.key] = info
        elif is_blob(info.key):
            blobs[info.key] = info.last_modified
        elif info.size and info.size % _SMALLEST_PAGE == 0:
            others[info.key] = info
    for place, objects in branches.items():
        for image in (place.image, place.previous):
            blobs.pop(image, None)
            if image in others:
                objects[image] = others.pop(image)
    return _Listed(blobs, dict(branches), others)


def _place_of(key: str, object_key: str) -> Place | None:
    """The branch that an object belongs to: of the database at ``key``, or of another one that has
    a history; None for one of no branch."""
    branch = branch_of(key, object_key)
    if branch is not None:
        return Place(key, branch)
    found = _HISTORY.fullmatch(object_key)
    if found is None:
        return None
    place = Place(found["key"], found["branch"])
    return place if place.parsed(object_key) is not None else None


def _come_up(bucket: Bucket, before: _Listed, after: _Listed) -> str | None:
    """A branch or image that was not there before; None where there is none."""
    branches = (place.image for place in after.branches.keys() - before.branches.keys())
    new = [info for name, info in after.others.items() if name not in before.others]
    return next(chain(branches, (info.key for info in _databases(bucket, new))), None)


def _databases(bucket: Bucket, others: Iterable[ObjectInfo]) -> Iterator[ObjectInfo]:
    """Those that begin as a database does, with their metadata."""

    def database(info: ObjectInfo) -> ObjectInfo | None:
        try:
            if bucket.get_range(info.key, 0, len(header.MAGIC)) != header.MAGIC:
                return None
        except ObjectNotFoundError:  # gone since it was listed, and so is what it named
            return None
        return bucket.head(info.key)

    with closing(ordered_map(database, others, SMALL_AT_ONCE)) as found:
        yield from (info for info in found if info is not None)


# ---- reading


def _read(
    bucket: Bucket, key: str, listed: _Listed, young: float, progress: Progress | None
) -> Named:
    ever: set[str] = set()
    now: set[str] = set()
    for place, objects in listed.branches.items():
        named = _of_branch(bucket, place, objects, young, progress)
        ever |= named.ever
        if place.key == key:
            now |= named.now
    for info in _databases(bucket, listed.others.values()):
        ever |= of_image(bucket, info, progress)
    return Named(frozenset(ever), frozenset(now))


def _of_branch(
    bucket: Bucket, place: Place, objects: _Objects, young: float, progress: Progress | None
) -> Named:
    """What a branch names; nothing where it was deleted, or its making was never finished."""
    timeline = look(bucket, place)
    _check_nothing_vanished(bucket, timeline, objects)
    newest = timeline.newest
    if is_deleted(bucket, timeline):
        if timeline.deltas[newest].key not in objects:
            raise _moved_on(bucket, f"the branch {place.branch!r} of {place.key!r} was deleted")
        return Named(frozenset(), frozenset())
    if newest and not timeline.has_base and place.branch != MAIN:
        if timeline.deltas[newest].written_at >= young:
            raise _moved_on(bucket, f"the branch {place.branch!r} of {place.key!r} was being made")
        return Named(frozenset(), frozenset())
    # The image first: it is the one object that another takes the place of every few minutes
    images = [
        of_image(bucket, info, progress) if info is not None else frozenset[str]()
        for info in (timeline.image, timeline.previous)
    ]
    if not newest:
        return Named(images[0] | images[1], images[0])
    named = of_history(bucket, timeline, progress)
    return Named(named.ever.union(*images), named.now)


def _check_nothing_vanished(bucket: Bucket, timeline: Timeline, objects: _Objects) -> None:
    """Make sure that what was listed of a branch is there still, so that it will be read: what was
    copied from it meanwhile, to where had been read already, would be missed."""
    entries = (*timeline.deltas.values(), *timeline.snapshots.values())
    there = {entry.key for entry in entries}
    there |= {info.key for info in (timeline.image, timeline.previous) if info is not None}
    place = timeline.place
    for name in objects.keys() - there:
        if name in (place.image, place.previous) or place.parsed(name) is not None:
            raise _moved_on(bucket, f"{name!r} was deleted")
