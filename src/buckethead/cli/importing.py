"""`import`: a plain SQLite file becomes the newest state of the database at the key.

It needs nothing of what is there: where that cannot be restored, it is replaced as a whole.
"""

from pathlib import Path

import apsw
import click

from ..config import BucketConfig
from ..errors import (
    BranchNotFoundError,
    ConfigError,
    HistoryError,
    SnapshotCorruptError,
    SnapshotError,
    VolumeBusyError,
)
from ..image.pages import PageImage
from ..image.vfs import connected
from ..storage.branches import exists, not_there
from ..storage.contract import Bucket
from ..storage.directory import open_bucket
from ..storage.history import Plan, Timeline, look, read_header
from ..storage.images import Stamp
from ..storage.layout import MAIN
from ..storage.restoring import Restored, restore
from ..storage.translate import translated
from ..volume import Volume
from .output import note, transfer
from .target import Target
from .writing import ONCE, mark, publish, take_over_option, write_image

BACKUP_PAGES = 10_000


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Replace the database that is at the key.")
@take_over_option
@click.pass_obj
def import_file(target: Target, file: Path, force: bool, take_over: bool) -> None:
    """Copy the SQLite database FILE to the bucket; FILE stays as it is.

    What is still in its write-ahead log is copied too. Pages that the database at the key has
    already are not sent again.
    """
    config = target.config()
    image = _image_of(file)
    bucket = open_bucket(config)
    timeline = look(bucket, config.place)
    if config.initial_branch != MAIN and not exists(bucket, timeline):
        raise BranchNotFoundError(not_there(bucket, config.place))
    if (timeline.newest or timeline.image) and not force:
        raise ConfigError(
            f"Could not import {file}: there is a database {config.key!r} at {bucket.url}. "
            "Choose another --key, or replace it by --force."
        )
    _replace(config, bucket, timeline, image, take_over)


def _replace(
    config: BucketConfig, bucket: Bucket, timeline: Timeline, image: PageImage, take_over: bool
) -> None:
    """Publish an image as the newest state. Raises VolumeBusyError, HistoryError, BucketError."""
    present, fault = _present(bucket, timeline)
    volume = Volume(
        config.key,
        config,
        ONCE,
        bucket,
        present,
        wake=lambda volume: None,
        hurry=lambda volume: None,
        reload=lambda: _present(bucket, look(bucket, timeline.place))[0],
    )
    # where nobody can open the database any more, --force is enough
    mark(volume, take_over or bool(fault))
    if fault:
        note(f"the database that is there cannot be opened and is replaced as a whole: {fault}")
        _replace_as_a_whole(volume, timeline)
    volume.swap(image.page_size, image.pages)
    if volume.refusal is not None:  # the claim came too late, and nothing was published
        raise VolumeBusyError(
            f"Could not import to {config.key!r} at {bucket.url}: another writer has published "
            "meanwhile. Nothing was written; look at `buckethead log`, and try again."
        )
    if fault:
        volume.image.taint(range(1, volume.image.page_count + 1))
    publish(volume)
    write_image(volume, now=bool(fault))
    _note_what_is_kept(timeline, fault)


def _note_what_is_kept(timeline: Timeline, fault: str) -> None:
    """Say how to come by what was replaced."""
    if timeline.newest and not fault:
        note(f"the database before is kept: `buckethead restore --txid {timeline.newest} FILE`")
    elif timeline.newest:
        note(
            f"its history is kept: `buckethead restore --txid {timeline.newest} FILE` if that state"
            " is sound; `buckethead log` lists the others"
        )
    moved = timeline.image is not None and timeline.stamp(timeline.image) is None
    if moved and (fault or not timeline.newest):
        note("the image that was there is kept: `buckethead restore --previous FILE`")


def _present(bucket: Bucket, timeline: Timeline) -> tuple[Restored | None, str]:
    """The database that is there, and '' if it could be restored: else only its place in the
    history is right, and the words say why. Raises HistoryError when not even that can be read,
    BucketError."""
    key = timeline.place.key
    try:
        with transfer(f"reading {key}") as progress:
            return restore(bucket, timeline.place, integrity_check="none", progress=progress), ""
    except (HistoryError, SnapshotCorruptError) as error:
        fault = _cause(error)
    if not timeline.newest:
        return None, fault
    newest = read_header(bucket, timeline, timeline.newest)
    pages = [bytes(newest.page_size)] * newest.commit
    # the epoch is not known where the first delta is what is missing or damaged
    stamp = Stamp(timeline.newest, newest.timestamp, newest.node_id, timeline.epoch)
    plan = Plan("", 0, 0, (), timeline.newest)
    return Restored(PageImage(newest.page_size, pages), stamp, plan, 0, 0, ()), fault


def _cause(error: HistoryError | SnapshotCorruptError) -> str:
    """What is wrong, without what was tried before it and the advice after it."""
    tried, _, found = str(error).partition(". ")[0].partition(": ")
    return found or tried


def _replace_as_a_whole(volume: Volume, timeline: Timeline) -> None:
    """Have the images removed that are not the history's, as soon as it is sure that this command
    may write: the history will soon have other states under their TXIDs."""
    check = volume.before_claim

    def before_claim(newest: Stamp) -> None:
        check(newest)
        _remove_images(volume.bucket, timeline)

    volume.before_claim = before_claim
    if not timeline.newest:  # nothing is claimed
        _remove_images(volume.bucket, timeline)


def _remove_images(bucket: Bucket, timeline: Timeline) -> None:
    place = timeline.place
    with translated(f"remove the image {place.image!r}", bucket):
        for info in (timeline.image, timeline.previous):
            stamp = timeline.stamp(info)
            if info is None or (stamp is not None and stamp.txid <= timeline.newest):
                continue
            if stamp is not None:
                bucket.delete(info.key)
            elif info.key == place.image:  # another program's: kept as any image before
                bucket.copy(info.key, place.previous)
                bucket.delete(info.key)


def _image_of(file: Path) -> PageImage:
    """The database of a file in memory. Raises SnapshotError."""
    image = PageImage()
    try:
        with connected(image) as connection:
            _copy(file, connection)
        with connected(image) as connection:
            found = _faults(connection)
    except SnapshotError:
        raise
    except (apsw.NotADBError, apsw.CorruptError) as error:
        raise SnapshotError(
            f"Could not import {file}: it is no sound SQLite database ({error}). Nothing was "
            "written to the bucket."
        ) from error
    except (apsw.CantOpenError, apsw.ReadOnlyError, apsw.BusyError) as error:
        raise SnapshotError(
            f"Could not import {file}: SQLite could not read it ({error}). Check its permissions, "
            "that no program is writing it, and open it once with sqlite3 if one has crashed."
        ) from error
    if found:
        raise SnapshotError(
            f"Could not import {file}: integrity_check says: {'; '.join(found)}. Nothing was "
            "written to the bucket."
        )
    return image


def _faults(connection: apsw.Connection) -> list[str]:
    try:
        found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(3)")]
    except apsw.SQLError as error:  # a collation or function that only the application has
        note(f"integrity_check was not possible: {error}")
        return []
    return [] if found == ["ok"] else found


def _copy(file: Path, connection: apsw.Connection) -> None:
    source = apsw.Connection(
        file.absolute().as_uri(), apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    )
    try:
        if not source.pragma("page_count"):
            raise SnapshotError(f"Could not import {file}: it is empty. Name a database.")
        with connection.backup("main", source, "main") as backup:
            while not backup.done:
                backup.step(BACKUP_PAGES)
    finally:
        source.close()
