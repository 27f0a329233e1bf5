"""`status` and `inspect`: what the database at the key is. They never write to a bucket."""

import time
from typing import Any

import apsw
import click

from ..errors import HistoryError
from ..image.vfs import connected
from ..storage.contract import Bucket, ObjectInfo
from ..storage.history import Timeline, plans, utc
from ..storage.images import PAGE_CHECKSUM, PAGE_COUNT, PAGE_SIZE
from .entries import Record, image_record, record_of
from .output import json_option, note, print_facts, print_json, print_table, sized
from .target import Target, look_at, read_newest
from .writing import ago


@click.command()
@json_option
@click.pass_obj
def status(target: Target, as_json: bool) -> None:
    """Say what is at the key: its newest state and age, its image, what can be restored.

    Nothing of the database is downloaded.
    """
    config, bucket = target.bucket_to_read()
    timeline = look_at(bucket, config.key)
    facts = {"bucket": bucket.url, "key": config.key, **_facts(bucket, timeline)}
    if as_json:
        print_json(facts)
    else:
        print_facts(_words(facts))
    try:
        plans(timeline)
    except HistoryError as error:
        note(str(error))


def _facts(bucket: Bucket, timeline: Timeline) -> dict[str, Any]:
    """What the names and headers of the objects tell; None for what they do not."""
    newest = _newest(bucket, timeline)
    image_txid = _txid(timeline, timeline.image)
    since = [e for txid, e in timeline.deltas.items() if image_txid is None or txid > image_txid]
    kept = timeline.kept_since
    oldest = record_of(bucket, timeline, kept) if kept else None
    pages, page_size = newest.database_pages, newest.page_size
    return {
        "size": pages * page_size if pages and page_size else None,
        "pages": pages,
        "page_size": page_size,
        "txid": timeline.newest or None,
        "committed_at": newest.time,
        "age_seconds": newest.moment and max(0.0, time.time() - newest.moment),
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
        elif title in ("size", "image size", "previous size", "bytes since image"):
            words[title] = sized(fact)
        else:
            words[title] = ago(fact) if title == "age" else fact
    return words


@click.command()
@json_option
@click.pass_obj
def inspect(target: Target, as_json: bool) -> None:
    """Show the schema, the rows of every table, and the pages."""
    config, bucket = target.bucket_to_read()
    restored = read_newest(bucket, config.key, "none")
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
