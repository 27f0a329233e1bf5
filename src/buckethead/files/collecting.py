"""Delete the blobs that nobody needs any more.

The rule (invariant 11): a blob named by any state that can be restored, of any branch or image, is
never deleted, and neither is one that may be named by a row that nobody has published yet.

For that blobs are listed first, and then everything is read that names any (kept.py), so that a
blob put and published in between is seen. What is put later, or is not published yet, is told by
its age: the time is the store's, taken before all else, the age is read again just before each
deletion, and a put writes a blob without a row again. The last deletion is still safe then, however
long reading takes: native_notes/blobs.md has the argument, and its limits.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from ..crashpoints import crash_point
from ..errors import ConfigError
from ..storage.contract import Bucket
from ..storage.images import Progress
from ..storage.layout import probe
from ..storage.parallel import ordered_map
from ..storage.restoring import SMALL_AT_ONCE
from ..storage.translate import translated
from .kept import look_around
from .unpublished import condemned

log = logging.getLogger("buckethead")

GRACE_SECONDS = 300.0
"""How young a blob is that a row not published yet may name: five flushes by default."""


@dataclass(frozen=True, slots=True)
class GCReport:
    """What a collection found. ``orphans_found``: blobs that nothing names; ``orphans_deleted`` of
    them, or would be by a dry run; ``orphans_skipped_grace``: too young to go.
    ``dangling_rows_found``: object keys that the newest state of a branch names, and that are not
    there."""

    orphans_found: int
    orphans_deleted: int
    orphans_skipped_grace: int
    dangling_rows_found: int


def collect(
    bucket: Bucket,
    key: str,
    prefix: str,
    *,
    rows: Callable[[], set[str]],
    grace_seconds: float = GRACE_SECONDS,
    dry_run: bool = False,
    check_writer: Callable[[], object] = lambda: None,
    progress: Progress | None = None,
) -> GCReport:
    """Delete the blobs under ``prefix`` that nothing names and that were put more than
    ``grace_seconds`` ago. Other objects there are left alone.

    ``rows`` gives the object keys named by the live rows of this process, published or not, and by
    puts under way; it is called in this thread. ``check_writer`` is called before the first
    deletion and raises FencedError where another writer has taken over (invariant 9).

    Raises ValueError for a grace time that is none. HistoryError, SnapshotCorruptError for a state
    that cannot be read, VolumeBusyError where the bucket does not come to rest, FencedError: then
    nothing was deleted. BucketError: then no blob that is needed was.
    """
    if not grace_seconds >= 0:  # NaN is none either
        raise ValueError(f"grace_seconds must be 0 or more, not {grace_seconds}")
    with translated(f"collect blobs under {prefix!r}", bucket):
        old = bucket.poll(probe(key)).now - grace_seconds
        kept = look_around(bucket, key, prefix, old, progress)
        orphans = sorted(kept.blobs.keys() - kept.ever - rows())
        aged = [blob for blob in orphans if kept.blobs[blob] < old]
        if aged and not dry_run:
            check_writer()
        young, deleted = len(orphans) - len(aged), 0
        for few in _batches(aged, bucket.concurrency):
            gone, renewed = _delete(bucket, few, old, rows, dry_run)
            young, deleted = young + renewed, deleted + gone
        dangling = _missing(bucket, kept.now - kept.blobs.keys())
    if deleted and not dry_run:
        log.info("%s: deleted %d blobs under %r that nothing names", bucket.url, deleted, prefix)
    return GCReport(len(orphans), deleted, young, dangling)


def _batches(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))


def _delete(
    bucket: Bucket, keys: Sequence[str], old: float, rows: Callable[[], set[str]], dry_run: bool
) -> tuple[int, int]:
    """Delete those that are as old as before, and not named meanwhile: how many, and how many are
    younger now. A few at a time, so that little time passes in between, and puts wait little."""
    with condemned(bucket, keys):
        with closing(ordered_map(bucket.head, keys, len(keys))) as heads:
            there = [info for info in heads if info is not None]
        aged = [info.key for info in there if info.last_modified < old]
        named = rows()
        doomed = [key for key in aged if key not in named]
        if not dry_run:
            crash_point("gc.looked")
            with closing(ordered_map(bucket.delete, doomed, len(keys))) as deletions:
                for _ in deletions:
                    crash_point("gc.deleted-one")
    return len(doomed), len(there) - len(aged)


def _missing(bucket: Bucket, keys: frozenset[str]) -> int:
    """How many of the objects are not there, whatever a listing that changed meanwhile showed."""

    def is_missing(key: str) -> bool:
        try:
            with translated(f"look at {key!r}", bucket):
                return bucket.head(key) is None
        except ConfigError:  # no object can have such a key
            return True

    with closing(ordered_map(is_missing, keys, SMALL_AT_ONCE)) as found:
        return sum(found)
