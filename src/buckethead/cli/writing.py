"""How a command writes: who wrote last, whether that writer is still there, and one delta.

A command publishes once, at its end, and its node id says so. Any other writer says in its last
image that it has ended. Where neither is so the newest delta may be that of a process still
running: that one is not taken over for ten minutes, unless told to.
"""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial

import click
from rich.filesize import decimal

from ..config import BucketConfig, SnapshotConfig
from ..connection import Connection
from ..core import registry
from ..errors import BucketError, SnapshotError, VolumeBusyError
from ..storage import ltx
from ..storage.contract import Bucket
from ..storage.images import ENDED, Stamp
from ..storage.layout import Place
from ..storage.publisher import BRANCHES, PUBLISHES_ONCE
from ..storage.snapshot import FlushResult
from ..storage.translate import translated
from ..uris import uri_of
from ..volume import Volume
from .output import note, transfer

TAKE_OVER_SECONDS = 600.0
"""How long the newest delta keeps others from taking over: ten flushes of a writer that goes on."""

NONE_YET = "there is no database {!r} yet at {}"

ONCE = SnapshotConfig(interval_seconds=86_400.0)  # the scheduler publishes nothing in between

take_over_option = click.option(
    "--take-over", is_flag=True, help="Write even if another writer may still be there; it stops."
)


@contextmanager
def mounted(config: BucketConfig, take_over: bool) -> Iterator[Volume]:
    """The volume of a command that writes, for the length of a block. What `publish` has not
    published by its end is dropped."""
    with transfer(f"reading {config.key}") as progress:
        volume = registry.mount(config.key, config, ONCE, share=False, progress=progress)
    try:
        mark(volume, take_over)
        yield volume
    finally:
        registry.unmount(volume, discard=True)


@contextmanager
def writing(config: BucketConfig, take_over: bool) -> Iterator[tuple[Volume, Connection]]:
    """`mounted`, with a connection. What the block has committed is published at its end, also
    when it fails."""
    with mounted(config, take_over) as volume:
        note_if_new(volume)
        try:
            with closing(Connection(uri_of(volume.name))) as connection:
                yield volume, connection
        finally:
            publish(volume)


def mark(volume: Volume, take_over: bool) -> None:
    """Make a volume one that publishes once and takes nobody over who may still be there."""
    volume.publish_once()
    volume.before_claim = partial(check_claim, volume.bucket, volume.place, take_over)


def note_if_new(volume: Volume) -> None:
    """Say that there is no database at the key yet: another one may have been meant."""
    if not volume.image.page_count and not volume.status().txid:
        note(NONE_YET.format(volume.key, volume.bucket.url))


def check_claim(bucket: Bucket, place: Place, take_over: bool, newest: Stamp) -> None:
    """Say whose delta is the newest. Raises VolumeBusyError when its writer may still be there."""
    age = max(0.0, time.time() - newest.timestamp / 1000)
    whose = f"TXID {newest.txid}, {ago(age)} old, by writer {newest.writer:016x}"
    note(f"the newest delta is {whose}")
    if take_over or age >= TAKE_OVER_SECONDS or _has_ended(bucket, place, newest):
        return
    raise VolumeBusyError(
        f"Could not write to {place.image!r} at {bucket.url}: the newest delta is {whose}, "
        "and that writer may still be running. Stop it and wait until the delta is "
        f"{TAKE_OVER_SECONDS / 60:.0f} minutes old, or take the database over with --take-over: "
        "then the other writer can publish nothing any more."
    )


def _has_ended(bucket: Bucket, place: Place, newest: Stamp) -> bool:
    """Whether the writer of the newest delta said that nothing comes after it: by being one that
    publishes pages once, or none, or by an image of that very state that it wrote at its end."""
    with translated(f"look at {place.image!r}", bucket):
        if newest.writer & BRANCHES and newest.writer & PUBLISHES_ONCE:
            return True
        if newest.writer & PUBLISHES_ONCE:
            delta = bucket.head(place.delta(newest.txid))
            return delta is not None and delta.size > ltx.EMPTY_SIZE
        image = bucket.head(place.image)
    return image is not None and ENDED in image.metadata and Stamp.of(image) == newest


def publish(volume: Volume) -> FlushResult | None:
    """Publish what a command has changed, and write the image where that is due or the history
    begins; None when there is nothing. Raises BucketError, FencedError."""
    changed = volume.changed
    if not changed:
        if volume.refusal is not None or not volume.status().txid:
            return None
        # claimed and nothing changed: page 1 once more says that this writer has ended
        volume.image.taint({1})
    try:
        result = volume.flush()
    except BucketError as error:
        error.add_note(
            "As far as is known the bucket has none of this command's changes: look at "
            "`buckethead log` before you repeat it."
        )
        raise
    if not changed:
        return None
    pages = f"{result.pages:,} changed page{'' if result.pages == 1 else 's'}"
    note(
        f"flushed {pages}, {decimal(result.bytes_written)}, as TXID {result.txid} of "
        f"{volume.key!r} at {volume.bucket.url}"
    )
    write_image(volume, now=result.txid == 1)
    return result


def write_image(volume: Volume, *, now: bool) -> None:
    """Write the image ``now``, or if it is due. Nothing is lost without it, so it is no failure."""
    try:
        if now:
            with transfer(f"writing {volume.key}", volume.image.size) as progress:
                volume.checkpoint(progress)
        else:
            volume.serve()
    except (BucketError, SnapshotError) as error:
        note(f"the changes are safe, but the image was not written: {error}")


def ago(seconds: float) -> str:
    """A time that has passed, for a person: the largest unit of which there are two."""
    for length, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} second{'' if round(seconds) == 1 else 's'}"
