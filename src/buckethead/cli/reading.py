"""Commands that read: `status`, `inspect`, `restore`, `verify`. They never write to a bucket."""

import os
from datetime import UTC, datetime
from pathlib import Path

import apsw
import click
from rich.filesize import decimal

from ..errors import ConfigError, SnapshotCorruptError
from ..image.vfs import connected
from ..storage.contract import Bucket, ObjectInfo
from ..storage.layout import previous
from ..storage.snapshot import PAGE_CHECKSUM, PAGE_COUNT, PAGE_SIZE, dump, read_image
from .output import json_option, note, print_facts, print_json, print_table, transfer
from .target import Target, download, head, no_database


@click.command()
@json_option
@click.pass_obj
def status(target: Target, as_json: bool) -> None:
    """Say what is at the key: size, pages, checksum, age, and the image before it."""
    config, bucket = target.bucket_to_read()
    info = head(bucket, config.key)
    if info is None:
        raise no_database(bucket, config.key)
    before = head(bucket, previous(config.key))
    if as_json:
        document = {"bucket": bucket.url, **_facts(info)}
        print_json(document | {"previous": _facts(before) if before else None})
        return
    shown = {"bucket": bucket.url, **_facts(info), "size": _size(info)}
    shown["previous"] = f"{before.key}, {_size(before)}, {_time(before)}" if before else "none"
    print_facts({name: "unknown" if fact is None else fact for name, fact in shown.items()})


def _facts(info: ObjectInfo) -> dict[str, object]:
    """An image by its object alone; None where another program wrote it."""
    pages, page_size = info.metadata.get(PAGE_COUNT), info.metadata.get(PAGE_SIZE)
    return {
        "key": info.key,
        "size": info.size,
        "pages": pages and int(pages),
        "page_size": page_size and int(page_size),
        "checksum": info.metadata.get(PAGE_CHECKSUM),
        "last_modified": _time(info),
    }


def _size(info: ObjectInfo) -> str:
    return f"{info.size:,} bytes ({decimal(info.size)})"


def _time(info: ObjectInfo) -> str:
    return datetime.fromtimestamp(info.last_modified, UTC).isoformat(timespec="seconds")


@click.command()
@json_option
@click.pass_obj
def inspect(target: Target, as_json: bool) -> None:
    """Show the schema, the rows of every table, and the pages."""
    config, bucket = target.bucket_to_read()
    image = download(bucket, config.key, "none")
    with connected(image) as connection:
        tables = [(name, _count(connection, name)) for name in _tables(connection)]
        schema = [
            str(sql)
            for (sql,) in connection.execute(
                "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY tbl_name, type DESC"
            )
        ]
        free = connection.pragma("freelist_count")
    facts: dict[str, object] = {
        "key": config.key,
        "bucket": bucket.url,
        "size": image.size,
        "page_size": image.page_size,
        "pages": image.page_count,
        "free_pages": free,
    }
    if as_json:
        print_json(facts | {"tables": dict(tables), "schema": schema})
        return
    print_facts(facts)
    print_table(("table", "rows"), tables)
    for sql in schema:
        click.echo(f"{sql};")


def _tables(connection: apsw.Connection) -> list[str]:
    query = (
        "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'virtual')"
    )
    return sorted(
        str(name) for (name,) in connection.execute(query) if not str(name).startswith("sqlite_")
    )


def _count(connection: apsw.Connection, table: str) -> int | None:
    """The rows of a table; None for a virtual table whose module only the application has."""
    quoted = '"' + table.replace('"', '""') + '"'
    try:
        return int(connection.execute(f"SELECT count(*) FROM {quoted}").get)
    except apsw.SQLError:
        return None


@click.command()
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace DEST if it exists.")
@click.option("--previous", "use_previous", is_flag=True, help="Take the image before the last.")
@click.pass_obj
def restore(target: Target, dest: Path, force: bool, use_previous: bool) -> None:
    """Write the database to the file DEST, checked, whole or not at all."""
    _check_destination(dest, force)
    config, bucket = target.bucket_to_read()
    key = previous(config.key) if use_previous else config.key
    image = download(bucket, key)
    with image.pinned() as pin:
        dump(pin, dest)
    note(f"restored {key!r}, {image.page_count:,} pages, {decimal(image.size)}, to {dest}")


def _check_destination(dest: Path, force: bool) -> None:
    """Before anything is downloaded. SQLite would replay a journal or WAL that an older file of
    the name has left into the new one."""
    for left in (Path(f"{dest}-wal"), Path(f"{dest}-journal")):
        if os.path.lexists(left):
            raise ConfigError(
                f"Could not restore to {dest}: {left} belongs to a database that was there and "
                "would damage the new one. Close what uses it, delete both files, or name another."
            )
    if dest.is_dir() or not dest.absolute().parent.is_dir():
        raise ConfigError(
            f"Could not restore to {dest}: it is a folder, or there is no folder for it. Name a "
            "file in a folder that exists."
        )
    if os.path.lexists(dest) and not force:
        raise ConfigError(
            f"Could not restore to {dest}: the file exists. Name another, or replace it by --force."
        )


@click.command()
@json_option
@click.pass_obj
def verify(target: Target, as_json: bool) -> None:
    """Check the image and the one before it: header, checksum, integrity_check.

    Exits with 1 when one of them is damaged.
    """
    config, bucket = target.bucket_to_read()
    newest, before = (_verified(bucket, key) for key in (config.key, previous(config.key)))
    found = [check for check in (newest, before) if check is not None]
    if as_json:
        print_json(found)
    else:
        for check in found:
            print_facts(check)
    if newest is None:
        raise no_database(bucket, config.key)
    damaged = [check["key"] for check in found if not check["sound"]]
    if damaged:
        sound = [check["key"] for check in found if check["sound"]]
        raise SnapshotCorruptError(
            f"Damaged at {bucket.url}: {damaged}, sound: {sound or 'none'}. "
            + ("Take a sound one with `buckethead restore`." if sound else "Look for a backup.")
        )


def _verified(bucket: Bucket, key: str) -> dict[str, object] | None:
    """What was found out about one image; None when there is none."""
    try:
        with transfer(f"reading {key}") as progress:
            image = read_image(bucket, key, progress=progress)
    except SnapshotCorruptError as error:
        return {"key": key, "sound": False, "fault": getattr(error, "fault", "") or str(error)}
    if image is None:
        return None
    return {"key": key, "sound": True, "pages": image.page_count, "size": image.size}
