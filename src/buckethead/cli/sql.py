"""`sql`: statements on a mounted volume, published once, at the end."""

from contextlib import closing
from dataclasses import dataclass, field

import apsw
import click

from ..config import BucketConfig
from ..connection import Connection
from ..errors import BucketDeniedError, VolumeError
from ..image.pages import PageImage
from ..image.vfs import connected
from ..storage.directory import open_bucket
from ..storage.snapshot import FlushResult
from ..uris import uri_of
from .output import SQLValue, json_option, note, print_json, print_table
from .target import Target
from .writing import NONE_YET, mounted, note_if_new, publish, take_over_option


@dataclass(slots=True)
class _Result:
    """The rows that one statement gave."""

    columns: list[str]
    rows: list[tuple[SQLValue, ...]] = field(default_factory=list)


@dataclass(slots=True)
class _Done:
    """What the statements of a command did."""

    results: list[_Result] = field(default_factory=list)
    changes: int = 0
    left_open: bool = False
    flushed: FlushResult | None = None


@click.command()
@click.argument("statements")
@json_option
@take_over_option
@click.pass_obj
def sql(target: Target, statements: str, as_json: bool, take_over: bool) -> None:
    """Run STATEMENTS, separated by semicolons, and show their rows.

    Rows are a table on a terminal and values between tabs in a pipe. What the statements have
    committed is flushed to the bucket before the rows are shown, also when a later one fails.
    """
    config = target.config()
    done = _Done()
    if _is_there(config):
        _on_volume(config, take_over, statements, done)
    else:
        _on_nothing(config, statements, done)
    if as_json:
        print_json(_document(done))
    else:
        for number, result in enumerate(done.results):
            if number:
                click.echo()
            print_table(result.columns, result.rows)
    if done.left_open:
        raise VolumeError(
            "The statements end within a transaction, which was rolled back: add COMMIT at the end."
        )


def _is_there(config: BucketConfig) -> bool:
    try:
        open_bucket(config, create=False)
    except BucketDeniedError:  # no such directory
        return False
    return True


def _on_volume(config: BucketConfig, take_over: bool, statements: str, done: _Done) -> None:
    with mounted(config, take_over) as volume:
        note_if_new(volume)
        try:
            with closing(Connection(uri_of(volume.name))) as connection:
                _run(connection, statements, done)
        finally:
            done.flushed = publish(volume)


def _on_nothing(config: BucketConfig, statements: str, done: _Done) -> None:
    """Make the directory bucket only when there is something to write."""
    note(NONE_YET.format(config.key, config.endpoint_url))
    image = PageImage()
    try:
        with connected(image) as connection:
            _run(connection, statements, done)
    finally:
        if image.changed:
            with mounted(config, take_over=False) as volume:
                volume.swap(image.page_size, image.pages)
                done.flushed = publish(volume)


def _run(connection: apsw.Connection, statements: str, done: _Done) -> None:
    """Run the statements one after the other; a result for each that can give rows."""

    def begin(cursor: apsw.Cursor, statement: str, bindings: object) -> bool:
        columns = [name for name, *_ in cursor.get_description()]
        if columns:
            done.results.append(_Result(columns))
        return True

    cursor = connection.cursor()
    cursor.exec_trace = begin
    try:
        for row in cursor.execute(statements):
            done.results[-1].rows.append(row)
    except UnicodeDecodeError as error:
        raise VolumeError(
            "Could not show a value: it is text that is not UTF-8. Select CAST(... AS BLOB)."
        ) from error
    done.changes = connection.total_changes()
    done.left_open = connection.in_transaction


def _document(done: _Done) -> dict[str, object]:
    flushed = done.flushed
    return {
        "results": [
            {
                "columns": result.columns,
                "rows": result.rows,
            }
            for result in done.results
        ],
        "changes": done.changes,
        "flushed": flushed
        and {
            "pages": flushed.pages,
            "bytes": flushed.bytes_written,
            "txid": flushed.txid,
            "seconds": flushed.duration_s,
        },
    }
