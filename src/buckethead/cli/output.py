"""What commands print: tables for a person, JSON for a program, notes and progress on stderr.

Text from a database never reaches a terminal with control characters in it. Commands that are
advised can be copied: they get the options of this one that say which database is meant.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import apsw
import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

SQLValue = None | int | float | str | bytes

GIVEN = "buckethead.given"
"""Where click's context keeps the options before the command, as a person types them."""

UNLIMITED = 100_000
"""Columns of a page without an edge: what goes into a pipe is never wrapped or cut."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def console(width: int | None = None) -> Console:
    """Where results go: as wide as the terminal, or as needed in a pipe."""
    return Console(width=width or (None if sys.stdout.isatty() else UNLIMITED), highlight=False)


def note(message: str) -> None:
    """Tell the person something that is not the result."""
    click.echo(f"buckethead: {copyable(message)}", err=True)


def copyable(text: str) -> str:
    """The text, with the options in use in every command that it has between backticks."""
    context = click.get_current_context(silent=True)
    given = context.meta.get(GIVEN) if context is not None else None
    return text.replace("`buckethead ", f"`buckethead {given} ") if given else text


def print_json(document: object) -> None:
    """One JSON document on stdout. What JSON does not have is text there: bytes as x'..', and
    numbers that are none."""
    click.echo(json.dumps(_as_json(document), indent=2, allow_nan=False))


def _as_json(value: object) -> object:
    if isinstance(value, dict):
        return {name: _as_json(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(inner) for inner in value]
    if isinstance(value, bytes):
        return shown(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def print_facts(facts: dict[str, object]) -> None:
    """Names and values in two columns, with a tab between them in a pipe."""
    if not sys.stdout.isatty():
        for name, value in facts.items():
            click.echo(f"{name}\t{shown(value)}")
        return
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        grid.add_row(Text(name, style="dim"), shown(value))
    console().print(grid)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on a terminal; in a pipe lines of values between tabs, the names first."""
    if not sys.stdout.isatty():
        click.echo("\t".join(map(shown, columns)))
        for row in rows:
            click.echo("\t".join(map(shown, row)))
        return
    table = Table(box=SIMPLE_HEAD)
    for name in columns:
        table.add_column(Text(shown(name)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(value), justify=_side(value)) for value in row))
    console().print(table)


def _side(value: object) -> Any:
    return "right" if isinstance(value, (int, float)) else "left"


def sized(size: int) -> str:
    """A number of bytes for a person."""
    return f"{size:,} bytes" + (f" ({decimal(size)})" if size >= 1_000 else "")


def shown(value: object) -> str:
    """A value in one line of printable text: NULL, x'..' for bytes, escapes for what would move a
    cursor."""
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return str(apsw.format_sql_value(value)).lower()
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def transfer(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr for the block, which reports bytes; nothing where stderr is no
    terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    bar = Progress(
        *(*columns, TransferSpeedColumn()),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda size: bar.advance(task, size)
