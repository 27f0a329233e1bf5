"""`sql` and `shell`: statements on the database.

`sql` works on a private image and writes it back only when a statement has changed it; `shell`
mounts the volume, which is flushed now and then and at the end.
"""

import sys
from dataclasses import dataclass, field
from typing import Any

import apsw
import apsw.shell
import click

from ..core import BucketSQLite
from ..errors import VolumeError
from ..image.vfs import connected
from ..storage.directory import open_bucket
from ..storage.snapshot import FlushResult
from .output import SQLValue, as_json_value, json_option, note, print_json, print_table
from .target import Target, image_or_new, publish


@dataclass(slots=True)
class _Result:
    """The rows that one statement gave."""

    columns: list[str]
    rows: list[tuple[SQLValue, ...]] = field(default_factory=list)


@click.command()
@click.argument("statements")
@json_option
@click.pass_obj
def sql(target: Target, statements: str, as_json: bool) -> None:
    """Run STATEMENTS, separated by semicolons, and show their rows.

    Rows are a table on a terminal and values between tabs in a pipe. What the statements have
    committed is flushed to the bucket before the rows are shown, also when a later one fails.
    """
    config = target.config()
    image = image_or_new(config)
    flushed: FlushResult | None = None
    with connected(image) as connection:
        try:
            results = _run(connection, statements)
            changes = connection.total_changes()
            left_open = connection.in_transaction
        finally:
            if image.changed:
                flushed = publish(config, image)
    if as_json:
        print_json(_document(results, changes, flushed))
    else:
        for number, result in enumerate(results):
            if number:
                click.echo()
            print_table(result.columns, result.rows)
    if left_open:
        raise VolumeError(
            "The statements end within a transaction, which was rolled back: add COMMIT at the end."
        )


def _run(connection: apsw.Connection, statements: str) -> list[_Result]:
    """Run the statements one after the other; a result for each that can give rows."""
    results: list[_Result] = []

    def begin(cursor: apsw.Cursor, statement: str, bindings: object) -> bool:
        columns = [name for name, *_ in cursor.get_description()]
        if columns:
            results.append(_Result(columns))
        return True

    cursor = connection.cursor()
    cursor.exec_trace = begin
    try:
        for row in cursor.execute(statements):
            results[-1].rows.append(row)
    except UnicodeDecodeError as error:
        raise VolumeError(
            "Could not show a value: it is text that is not UTF-8. Select CAST(... AS BLOB)."
        ) from error
    return results


def _document(
    results: list[_Result], changes: int, flushed: FlushResult | None
) -> dict[str, object]:
    return {
        "results": [
            {
                "columns": result.columns,
                "rows": [[as_json_value(value) for value in row] for row in result.rows],
            }
            for result in results
        ],
        "changes": changes,
        "flushed": flushed
        and {
            "pages": flushed.pages,
            "bytes": flushed.bytes_written,
            "checksum": flushed.snapshot_hash,
            "seconds": flushed.duration_s,
        },
    }


@click.command()
@click.pass_obj
def shell(target: Target) -> None:
    """Open APSW's SQL shell on the database; .help shows its commands, .exit leaves it.

    What is committed is flushed every minute and at the end. Statements from a pipe end with the
    first that fails.
    """
    config = target.config()
    bucket = open_bucket(config)
    with BucketSQLite(config) as mounted:
        connection = mounted.connect()
        try:
            arguments = [] if sys.stdin.isatty() else ["-bail"]
            prompt: Any = apsw.shell.Shell(db=connection, args=arguments)
            prompt.cmdloop()
        except SystemExit as leaving:  # .exit
            if leaving.code:
                raise
        finally:
            connection.close()  # rolls back what is not committed: nobody would commit it any more
        result = mounted.force_flush()
    if result.uploaded:
        note(f"flushed {result.pages:,} changed pages to {config.key!r} at {bucket.url}")
