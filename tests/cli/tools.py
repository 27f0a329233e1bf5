"""How the tests of the command line call it: in this process, or as a child process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
from click.testing import CliRunner, Result

from buckethead.cli.app import commands
from buckethead.config import BucketConfig
from buckethead.core import BucketSQLite
from buckethead.storage.directory import open_bucket
from buckethead.storage.layout import Place
from buckethead.storage.restoring import restore
from buckethead.storage.retention import write_snapshot

KEY = "bucketsqlite/snap.db"
DEFAULT = Path("buckethead-data")
IMAGE = DEFAULT / KEY
PLACE = Place(KEY)
PATIENCE_SECONDS = 60


def cli(*arguments: str) -> Result:
    """Run a command in this process; stdout and stderr apart."""
    return CliRunner().invoke(commands, arguments)


def cli_json(*arguments: str) -> Any:
    """The document that a command that must succeed prints."""
    result = cli(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def failure(*arguments: str) -> str:
    """The one line that a command that must fail says."""
    result = cli(*arguments)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("buckethead: ")
    return lines[0]


def child(*arguments: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a command as a process of its own, its output into pipes."""
    return subprocess.run(
        [sys.executable, "-m", "buckethead", *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def on_terminal(*arguments: str) -> tuple[str, str]:
    """What a command that must succeed prints to a terminal, on stdout and on stderr."""
    ends = [os.openpty(), os.openpty()]
    process = subprocess.Popen(
        [sys.executable, "-m", "buckethead", *arguments],
        stdout=ends[0][1],
        stderr=ends[1][1],
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    for _, end in ends:
        os.close(end)
    texts = [_all_of(reading) for reading, _ in ends]
    assert process.wait(PATIENCE_SECONDS) == 0, texts
    return texts[0], texts[1]


def _all_of(terminal: int) -> str:
    parts = []
    with open(terminal, "rb", buffering=0) as file:
        while True:
            try:
                part = file.read(65536)
            except OSError:  # how Linux says that the other end was closed
                break
            if not part:
                break
            parts.append(part)
    return b"".join(parts).decode()


def make_file(path: Path, rows: int = 3, *, page_size: int = 4096, wal: bool = False) -> Path:
    """A plain SQLite file with a table ``t`` of so many rows; closed."""
    connection = apsw.Connection(str(path))
    connection.pragma("page_size", page_size)
    if wal:
        connection.pragma("journal_mode", "wal")
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT)")
    add_rows(connection, rows)
    connection.close()
    return path


def add_rows(connection: apsw.Connection, rows: int) -> None:
    """More rows for the table of `make_file`, in one transaction."""
    names = [(f"row {number}",) for number in range(rows)]
    with connection:
        connection.executemany("INSERT INTO t (name) VALUES (?)", names)


def damage(path: Path, at: int = 4096) -> None:
    """Change one byte of a file, counted from its end if negative: by default the one that says
    what kind of page the second is."""
    at %= path.stat().st_size
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0xFF]))


def delta(txid: int) -> Path:
    """The file of a delta in the default directory bucket."""
    return DEFAULT / PLACE.delta(txid)


def everything() -> dict[str, bytes]:
    """Every file of the default directory bucket."""
    return {str(path): path.read_bytes() for path in DEFAULT.rglob("*") if path.is_file()}


def config() -> BucketConfig:
    """The default directory bucket, as a program would name it."""
    url = DEFAULT.absolute().as_uri()
    return BucketConfig(bucket="buckethead-data", key=KEY, endpoint_url=url)


def insert(*names: str) -> None:
    """A row for the table of `make_file` by each of so many commands: a delta each."""
    for name in names:
        assert cli("sql", f"INSERT INTO t (name) VALUES ('{name}')").exit_code == 0


def another_writer(statement: str) -> None:
    """What a program publishes that is no command: it goes on writing, as far as anybody knows."""
    with BucketSQLite(config()) as mounted:
        mounted.connection.execute(statement)


def rows_of(path: Path) -> int:
    """The rows of the table of `make_file` in a file, which must be sound."""
    connection = apsw.Connection(str(path), apsw.SQLITE_OPEN_READONLY)
    try:
        assert connection.pragma("integrity_check") == "ok"
        return int(connection.execute("SELECT count(*) FROM t").get)
    finally:
        connection.close()


def snapshot_of(txid: int) -> Path:
    """Write the snapshot of a state, as a writer does it now and then."""
    bucket = open_bucket(config())
    restored = restore(bucket, PLACE, lambda timeline: txid)
    assert restored is not None
    assert restored.stamp is not None
    with restored.image.pinned() as pin:
        write_snapshot(pin, bucket, PLACE, restored.stamp)
    return DEFAULT / PLACE.snapshot(txid)
