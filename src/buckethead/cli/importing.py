"""`import`: a plain SQLite file becomes the database at the key."""

from pathlib import Path

import apsw
import click

from ..errors import ConfigError, SnapshotError
from ..image.pages import PageImage
from ..image.vfs import connected
from ..storage.directory import open_bucket
from ..storage.layout import previous
from .output import note
from .target import Target, head, publish

BACKUP_PAGES = 10_000


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Replace the database that is at the key.")
@click.pass_obj
def import_file(target: Target, file: Path, force: bool) -> None:
    """Copy the SQLite database FILE to the bucket; FILE stays as it is.

    What is still in its write-ahead log is copied too.
    """
    config = target.config()
    image = _image_of(file)
    bucket = open_bucket(config)
    replaces = head(bucket, config.key) is not None
    if replaces and not force:
        raise ConfigError(
            f"Could not import {file}: there is a database {config.key!r} at {bucket.url}. "
            "Choose another --key, or replace it by --force."
        )
    publish(config, image)
    if replaces:
        note(f"the database that was there is kept as {previous(config.key)!r}")


def _image_of(file: Path) -> PageImage:
    """The database of a file in memory. Raises SnapshotError."""
    image = PageImage()
    try:
        with connected(image) as connection:
            _copy(file, connection)
        with connected(image) as connection:
            found = _faults(connection)
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
