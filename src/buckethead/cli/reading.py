"""`status` and `inspect`: what the database at the key is. They never write to a bucket."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import apsw
import click

from ..errors import HistoryError
from ..facts import facts
from ..image.vfs import connected
from ..storage.contract import Bucket, ObjectInfo
from ..storage.history import Timeline, plans, utc
from ..storage.images import PAGE_CHECKSUM, PAGE_COUNT, PAGE_SIZE
from .entries import Record, image_record, record_of
from .output import json_option, note, print_facts, print_json, print_table, sized
from .target import Target, look_at, read_newest
from .writing import ago

_SIZES = ("size", "image size", "previous size", "bytes since image", "bytes up", "bytes down")


@click.command()
@json_option
@click.pass_obj
def status(target: Target, as_json: bool) -> None:
    """Say what is at the key: its newest state and age, its image, what can be restored.

    Nothing of the database is downloaded. The names are those of bh_status in SQL, which tells
    more in the process that writes.
    """
    config, bucket = target.bucket_to_read()
    timeline = look_at(bucket, config.place)
    newest = _newest(bucket, timeline)
    known, more = _known(bucket, timeline, newest), _more(bucket, timeline, newest)
    found = facts(known | {"io": bucket.counters.snapshot()}, time.time())
    if as_json:
        print_json(found | more)
    else:
        # what only a process knows that has it mounted is left out
        shown = {name: fact for name, fact in found.items() if fact is not None or name in known}
        print_facts(_words(shown | more))
    try:
        plans(timeline)
    except HistoryError as error:
        note(str(error))


def _known(bucket: Bucket, timeline: Timeline, newest: Record) -> dict[str, Any]:
    """What the names and headers of the objects tell of the newest state, named as in a status."""
    pages, page_size = newest.database_pages, newest.page_size
    return {
        "key": timeline.place.key,
        "branch": timeline.place.branch,
        "bucket": bucket.url,
        "txid": timeline.newest,
        "image_txid": _txid(timeline, timeline.image) or 0,
        "durable_at": newest.moment,
        "page_size": page_size,
        "page_count": pages,
        "size": pages * page_size if pages and page_size else None,
    }


def _more(bucket: Bucket, timeline: Timeline, newest: Record) -> dict[str, Any]:
    """What they tell of the history."""
    image_txid = _txid(timeline, timeline.image)
    since = [e for txid, e in timeline.deltas.items() if image_txid is None or txid > image_txid]
    kept = timeline.kept_since
    oldest = record_of(bucket, timeline, kept) if kept else None
    return {
        "writer": newest.writer,
        "image": _image(timeline, timeline.image),
        "deltas_since_image": len(since),
        "bytes_since_image": sum(entry.size for entry in since),
        "kept_since": oldest and {"txid": kept, "time": oldest.time},
        "deltas": len(timeline.deltas),
        "snapshots": len(timeline.snapshots),
        "previous": _image(timeline, timeline.previous),
    }


def _newest(bucket: Bucket, timeline: Timeline) -> Record:
    if timeline.newest:
        return record_of(bucket, timeline, timeline.newest)
    assert timeline.image is not None, "else there is no database"
    return image_record(timeline, timeline.image)


def _txid(timeline: Timeline, info: ObjectInfo | None) -> int | None:
    stamp = timeline.stamp(info)
    return stamp.txid if stamp is not None else None


def _image(timeline: Timeline, info: ObjectInfo | None) -> dict[str, object] | None:
    """An image by its object alone; None where another program wrote it."""
    if info is None:
        return None
    pages, page_size = info.metadata.get(PAGE_COUNT), info.metadata.get(PAGE_SIZE)
    return {
        "key": info.key,
        "txid": _txid(timeline, info),
        "size": info.size,
        "pages": pages and int(pages),
        "page_size": page_size and int(page_size),
        "checksum": info.metadata.get(PAGE_CHECKSUM),
        "written_at": utc(info.last_modified),
    }


def _words(facts: dict[str, Any]) -> dict[str, object]:
    """The facts for a person, one in a line; what is in a fact has lines of its own."""
    words: dict[str, object] = {}
    for name, fact in facts.items():
        title = name.removesuffix("_seconds").replace("_", " ")
        if isinstance(fact, dict):
            inner = {f"{title} {part}": value for part, value in fact.items() if part != "key"}
            words |= ({title: fact["key"]} if "key" in fact else {}) | _words(inner)
        elif fact is None:
            words[title] = "none"
        elif title in _SIZES:
            words[title] = sized(fact)
        elif title == "durable at":
            words[title] = utc(fact)
        else:
            words[title] = ago(fact) if title == "age" else fact
    return words


@contextmanager
def newest_state(target: Target) -> Iterator[apsw.Connection]:
    """A connection to the newest state for the length of a block; what is written there is lost.
    Raises as `read_newest` does."""
    config, bucket = target.bucket_to_read()
    with connected(read_newest(bucket, config.place, "none").image) as connection:
        yield connection


@click.command()
@json_option
@click.pass_obj
def inspect(target: Target, as_json: bool) -> None:
    """Show the schema, the rows of every table, and the pages."""
    config, bucket = target.bucket_to_read()
    restored = read_newest(bucket, config.place, "none")
    image = restored.image
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
        "txid": restored.stamp.txid if restored.stamp is not None else 0,
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
