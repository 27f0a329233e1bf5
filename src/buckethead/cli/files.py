"""`files`: files in the bucket, from a shell.

What was stored or fetched before is not transferred again: it is known by the hash of its content.
So a command that broke off is simply repeated.
"""

import json
import mimetypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import click

from ..config import BucketConfig
from ..errors import BlobNotFoundError, ConfigError
from ..files.collecting import GRACE_SECONDS, GCReport, collect
from ..files.content import content_of
from ..files.rows import FileMetadata
from ..files.store import FileStore
from .kv import moment, told
from .output import (
    json_option,
    note,
    print_facts,
    print_json,
    print_table,
    shown,
    sized,
    transfer,
)
from .reading import newest_state
from .target import Target, look_at
from .writing import take_over_option, writing

STDIN = Path("-")

LONGEST_NAME = 255
"""Bytes of a file name, on nearly every file system."""

yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@click.group()
def files() -> None:
    """Files in the bucket: the table bh_files."""


@files.command("list")
@json_option
@click.pass_obj
def list_files(target: Target, as_json: bool) -> None:
    """List the files, the newest first."""
    with _reading(target) as store, told():
        found = store.list()
    if as_json:
        print_json([_facts(file) for file in found])
        return
    columns = ("key", "bytes", "type", "created_at", "name")
    print_table(
        columns,
        [(f.bh_key, f.size, f.mime, moment(f.created_at), f.filename) for f in found],
    )


@files.command()
@click.argument(
    "paths",
    nargs=-1,
    required=True,
    metavar="PATH...",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
)
@click.option("--name", help="The name to keep, instead of the file's own.")
@click.option("--mime", metavar="TYPE", help="The type, instead of what the name says.")
@take_over_option
@json_option
@click.pass_obj
def put(
    target: Target,
    paths: tuple[Path, ...],
    name: str | None,
    mime: str | None,
    take_over: bool,
    as_json: bool,
) -> None:
    """Store files, and print their keys; with - for PATH what comes from stdin.

    A file whose content is there already is not sent again, and keeps the name that it has.
    """
    if name is not None and len(paths) > 1:
        raise click.UsageError("--name is for one PATH.")
    stored: list[dict[str, object]] = []
    try:
        with told(), _writing(target.config(), take_over) as (connection, store):
            for path in paths:
                stored.append(_put(connection, store, path, name, mime))
    finally:
        _show_stored(stored, as_json)


def _put(
    connection: apsw.Connection, store: FileStore, path: Path, name: str | None, mime: str | None
) -> dict[str, object]:
    from_stdin = path == STDIN
    meant = name or (None if from_stdin else path.name)
    guess = mime or (mimetypes.guess_type(meant)[0] if meant else None)
    before = connection.total_changes()
    with transfer(f"storing {shown(meant or path)}", None if from_stdin else _size(path)) as report:
        source: Any = sys.stdin.buffer if from_stdin else path
        key = store.put(source, filename=meant, mime=guess, progress=report)
    is_new = connection.total_changes() > before
    if not is_new:
        note(f"{path} is there already")
    return {"key": key, "path": str(path), "stored": is_new}


def _size(path: Path) -> int:
    return path.stat().st_size


def _show_stored(stored: list[dict[str, object]], as_json: bool) -> None:
    if as_json:
        print_json(stored)
    elif stored:
        print_table(("key", "path"), [(file["key"], file["path"]) for file in stored])


@files.command()
@click.argument("key")
@click.argument("dest", required=False, type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace DEST if it exists with other content.")
@json_option
@click.pass_obj
def get(target: Target, key: str, dest: Path | None, force: bool, as_json: bool) -> None:
    """Write the file of KEY to DEST, checked, whole or not at all.

    DEST is a file or a folder; without it, it is the file's own name in the current folder.
    """
    with _reading(target) as store, told():
        file = _known(store, key)
        path = _destination(file, dest)
        there = _is_there(file, path, force)
        if not there:
            with transfer(f"reading {shown(path.name)}", file.size) as progress:
                store.get(key, path, progress=progress)
    note(f"{path} has that content already" if there else f"wrote {path}, {sized(file.size)}")
    if as_json:
        print_json({**_facts(file), "path": str(path), "written": not there})


def _known(store: FileStore, key: str) -> FileMetadata:
    file = store.metadata(key)
    if file is None:
        raise BlobNotFoundError(
            f"There is no file {key}. `buckethead files list` shows those that there are."
        )
    return file


def _destination(file: FileMetadata, dest: Path | None) -> Path:
    """Where to write it. The name comes from the database, and leads nowhere else."""
    if dest is not None and not dest.is_dir():
        return dest
    name = Path(file.filename or "").name
    usable = name.isprintable() and len(os.fsencode(name)) <= LONGEST_NAME
    return (dest or Path()) / (name if usable and name not in ("", "..") else file.bh_key)


def _is_there(file: FileMetadata, path: Path, force: bool) -> bool:
    """Whether the path has the content already. Raises ConfigError where it has another."""
    if not os.path.lexists(path):
        return False
    if path.is_file() and _size(path) == file.size and content_of(path).sha256 == file.bh_key:
        return True
    if force and path.is_file():
        return False
    raise ConfigError(
        f"Could not write to {path}: it exists, with other content. Name another place, or replace "
        "a file by --force."
    )


@files.command()
@click.argument("key")
@yes_option
@take_over_option
@json_option
@click.pass_obj
def delete(target: Target, key: str, yes: bool, take_over: bool, as_json: bool) -> None:
    """Drop the file of KEY from the table, after asking.

    Its content stays in the bucket for branches and past states that name it, and goes with
    `buckethead files gc` once none does.
    """
    target.bucket_to_read()  # makes no directory for a file that cannot be there
    with told(), _writing(target.config(), take_over) as (_, store):
        file = _known(store, key)
        if not yes:
            question = f"Delete the file {shown(file.filename or key)}, {sized(file.size)}?"
            click.confirm(question, abort=True, err=True)
        store.delete(key)
    if as_json:
        print_json(_facts(file))


@files.command()
@click.option("--dry-run", is_flag=True, help="Delete nothing, say what would go.")
@click.option(
    "--grace-seconds",
    default=GRACE_SECONDS,
    show_default=True,
    type=click.FloatRange(0),
    help="Content stored more recently stays.",
)
@yes_option
@json_option
@click.pass_obj
def gc(target: Target, dry_run: bool, grace_seconds: float, yes: bool, as_json: bool) -> None:
    """Delete content that no branch, and no state that can be restored, names any more.

    It asks before it deletes.
    """
    config, bucket = target.bucket_to_read()
    look_at(bucket, config.place)  # a key without a database names nothing
    place = (bucket, config.key, config.files_prefix)
    collected = partial(collect, *place, rows=set[str], grace_seconds=grace_seconds)
    with told(), transfer("reading what is kept") as progress:
        report: GCReport = collected(dry_run=dry_run or not yes, progress=progress)
    if not (dry_run or yes) and report.orphans_deleted:
        blobs = f"{report.orphans_deleted:,} blob{'' if report.orphans_deleted == 1 else 's'}"
        click.confirm(f"Delete {blobs}?", abort=True, err=True)
        with transfer("reading what is kept") as progress:
            report = collected(progress=progress)
    facts: dict[str, object] = {
        "orphans_found": report.orphans_found,
        "orphans_deleted": report.orphans_deleted,
        "orphans_skipped_grace": report.orphans_skipped_grace,
        "dangling_rows_found": report.dangling_rows_found,
        "dry_run": dry_run,
    }
    if as_json:
        print_json(facts)
    else:
        print_facts(facts | {"dry_run": "yes" if dry_run else "no"})


@contextmanager
def _reading(target: Target) -> Iterator[FileStore]:
    """The files of the newest state."""
    config, bucket = target.bucket_to_read()
    with newest_state(target) as connection:
        yield FileStore(connection, bucket, config.files_prefix)


@contextmanager
def _writing(config: BucketConfig, take_over: bool) -> Iterator[tuple[apsw.Connection, FileStore]]:
    """The files of the volume for the length of a block; those stored before it fails are kept."""
    with writing(config, take_over) as (volume, connection):
        yield connection, FileStore(connection, volume.bucket, config.files_prefix)


def _facts(file: FileMetadata) -> dict[str, object]:
    """A file as JSON has it; NaN, which older versions stored, is a text there."""
    return {
        "key": file.bh_key,
        "filename": file.filename,
        "mime": file.mime,
        "bytes": file.size,
        "created_at": file.created_at,
        "metadata": json.loads(json.dumps(file.metadata), parse_constant=str),
    }
