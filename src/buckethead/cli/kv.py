"""`kv`: keys and values of the database, from a shell.

What `get` writes into a pipe is the value itself, byte by byte, and `set` reads one from there.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import apsw
import click

from ..errors import BucketHeadError
from ..interfaces.kv import KV
from ..interfaces.kvstore import make
from ..storage.history import utc
from .output import json_option, print_json, print_table, shown
from .reading import newest_state
from .target import Target
from .writing import take_over_option, writing

TIMES = ("created_at", "updated_at", "expires_at")


@click.group()
def kv() -> None:
    """Keys and values: the table bh_kv."""


@kv.command()
@click.argument("key")
@json_option
@click.pass_obj
def get(target: Target, key: str, as_json: bool) -> None:
    """Print the value of KEY: on a terminal in one line, into a pipe as it is."""
    times = "SELECT created_at, updated_at, expires_at FROM bh_kv WHERE key = ?"
    with _reading(target) as connection:
        data = KV(connection).get_bytes(key)
        row = connection.execute(times, (key,)).get
    if data is None or row is None:
        raise _missing(key)
    if as_json:
        print_json({"key": key, "value": _value(data)} | _times(row))
    elif sys.stdout.isatty():
        click.echo(shown(_value(data)))
    else:
        click.echo(data, nl=False)


@kv.command("set")
@click.argument("key")
@click.argument("value")
@click.option("--ttl", type=float, metavar="SECONDS", help="Delete it after so long.")
@json_option
@take_over_option
@click.pass_obj
def set_value(
    target: Target, key: str, value: str, ttl: float | None, as_json: bool, take_over: bool
) -> None:
    """Give KEY its VALUE; with - for VALUE it is read from stdin, as it is."""
    meant = _value(sys.stdin.buffer.read()) if value == "-" else value
    with told(), writing(target.config(), take_over) as (_, connection):
        if isinstance(meant, bytes):
            KV(connection).set_bytes(key, meant, ttl=ttl)
        else:
            KV(connection).set(key, meant, ttl=ttl)
    if as_json:
        print_json({"key": key, "value": meant, "ttl": ttl})


@kv.command()
@click.argument("key")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@take_over_option
@click.pass_obj
def delete(target: Target, key: str, yes: bool, as_json: bool, take_over: bool) -> None:
    """Delete KEY, after asking."""
    target.bucket_to_read()  # makes no directory for a key that cannot be there
    with told(), writing(target.config(), take_over) as (_, connection):
        store = KV(connection)
        if not store.exists(key):
            raise _missing(key)
        if not yes:
            click.confirm(f"Delete the key {shown(key)!r}?", abort=True, err=True)
        store.delete(key)
    if as_json:
        print_json({"key": key, "deleted": True})


@kv.command("list")
@click.argument("prefix", default="")
@json_option
@click.pass_obj
def list_keys(target: Target, prefix: str, as_json: bool) -> None:
    """List the keys that begin with PREFIX, and how large their values are."""
    sql = """SELECT key, octet_length(value), created_at, updated_at, expires_at FROM bh_kv
        WHERE substr(key, 1, length(?1)) = ?1 ORDER BY key"""
    with _reading(target) as connection:
        rows = connection.execute(sql, (prefix,)).fetchall()
    if as_json:
        print_json([{"key": key, "bytes": size} | _times(row) for key, size, *row in rows])
        return
    print_table(
        ("key", "bytes", *TIMES),
        [
            (key, size, *("none" if time is None else moment(time) for time in row))
            for key, size, *row in rows
        ],
    )


@contextmanager
def _reading(target: Target) -> Iterator[apsw.Connection]:
    """A connection to the newest state, where bh_kv is ours for sure."""
    with newest_state(target) as connection, told():
        make(connection, "main", create=False)  # it is a copy, which an old table is renamed in
        yield connection


@contextmanager
def told() -> Iterator[None]:
    """What a layer says of what a person gave it is an error in one line."""
    try:
        yield
    except ValueError as error:
        raise BucketHeadError(str(error)) from error


def _missing(key: str) -> BucketHeadError:
    return BucketHeadError(
        f"There is no key {key!r}. `buckethead kv list` shows those that there are."
    )


def _value(data: bytes) -> str | bytes:
    """Text, where that is what the bytes are."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _times(row: Sequence[Any]) -> dict[str, object]:
    return dict(zip(TIMES, row, strict=True))


def moment(value: Any) -> object:
    """A time in a row for a person; one that no calendar has as it is."""
    try:
        return utc(value)
    except (TypeError, ValueError, OverflowError, OSError):
        return value
