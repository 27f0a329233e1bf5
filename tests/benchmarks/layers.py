"""What the layers cost, against a real store of S3 and held against what they must reach:

python tests/benchmarks/layers.py [--megabytes N]

SeaweedFS runs beside it as a child process on this machine, and competes for its processors.
Exits with 1 when a bar is missed.
"""

import io
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import apsw
import click
from rich.console import Console
from rich.table import Table

from buckethead import KV, Branches, BucketClient, BucketConfig, FileStore, SnapshotConfig
from buckethead.bench.measure import PeakMemory, interleaved, quiet, resident_bytes
from buckethead.core import registry
from buckethead.uris import uri_of
from buckethead.volume import Volume

MEGABYTE = 1_000_000
KEYS = 100_000
AT_ONCE = 5_000
ROUNDS = 7
DELTAS = 20
FILES_MB = 32.0
PART_SIZE = 8 * 1024 * 1024
CHUNK = 64 * 1024
LONG = SnapshotConfig(interval_seconds=3600.0, min_interval_seconds=0.0)


@dataclass(frozen=True, slots=True)
class Bar:
    """What was measured, and the most that it may be."""

    what: str
    found: float
    bar: float
    unit: str


# ---- keys and values


def keys_and_values(connection: apsw.Connection) -> list[Bar]:
    """The layer beside the same statements on its table."""
    kv = KV(connection)
    with connection:
        for number in range(KEYS):
            kv.set(f"key-{number:07}", f"value of {number}")
    some = [f"key-{number * 7919 % KEYS:07}" for number in range(AT_ONCE)]

    def plain_get() -> None:
        sql = "SELECT value FROM kvstore WHERE key = ? AND (expires_at IS NULL OR expires_at > ?)"
        for key in some:
            row = connection.execute(sql, (key, time.time())).fetchone()
            assert row is not None

    def get() -> None:
        for key in some:
            assert kv.get(key) is not None

    def plain_set() -> None:
        sql = """INSERT INTO kvstore(key, value, created_at, updated_at) VALUES (?1, ?2, ?3, ?3)
            ON CONFLICT(key) DO UPDATE SET value = ?2, updated_at = ?3, expires_at = NULL"""
        with connection:
            for key in some:
                connection.execute(sql, (key, "another value", time.time()))

    def set_() -> None:
        with connection:
            for key in some:
                kv.set(key, "another value")

    def selected(table: str) -> Callable[[], None]:
        def select() -> None:
            for key in some:
                row = connection.execute(f"SELECT value FROM {table} WHERE key = ?", (key,)).get
                assert row is not None

        return select

    with quiet():
        gets = interleaved(ROUNDS, plain=plain_get, layer=get)
        sets = interleaved(ROUNDS, plain=plain_set, layer=set_)
        selects = interleaved(ROUNDS, plain=selected("kvstore"), layer=selected("bh_kv"))
    return [
        Bar("kv.get / the same SQL", gets["layer"] / gets["plain"], 1.3, "x"),
        Bar("kv.set / the same SQL", sets["layer"] / sets["plain"], 1.3, "x"),
        Bar("SELECT FROM bh_kv / kvstore", selects["layer"] / selects["plain"], 4.0, "x"),
    ]


# ---- branches


def branches(config: BucketConfig, megabytes: int) -> list[Bar]:
    """A branch of a large database with some deltas since its image."""
    volume = registry.mount("large", config, LONG)
    connection = apsw.Connection(uri_of("large"))
    connection.execute("CREATE TABLE t(x)")
    with connection:
        rows = megabytes * MEGABYTE // 4096
        connection.executemany("INSERT INTO t VALUES (randomblob(3000))", [()] * rows)
    volume.checkpoint()
    for number in range(DELTAS):
        connection.execute("INSERT INTO t VALUES (?)", (number,))
        volume.flush()
    before = volume.bucket.counters.snapshot()
    started = time.perf_counter()
    Branches(volume, registry).create("x")
    seconds = time.perf_counter() - started
    after = volume.bucket.counters.snapshot()
    requests = sum(count.operations for count in after.operations.values())
    requests -= sum(count.operations for count in before.operations.values())
    moved = after.bytes_up + after.bytes_down - before.bytes_up - before.bytes_down
    return [
        Bar("branch: requests beside copies of deltas", requests - DELTAS, 6, ""),
        Bar("branch: bytes through the client", moved, 1000, "B"),
        Bar("branch: seconds", seconds, float("inf"), "s"),
        *forked(volume),
    ]


def forked(volume: Volume) -> list[Bar]:
    """The image of another branch that shares its pages, and the whole opening of one."""
    memory = resident_bytes()
    started = time.perf_counter()
    twin = volume.image.fork()
    fork = time.perf_counter() - started
    added = resident_bytes() - memory
    assert twin.page_count == volume.image.page_count
    memory = resident_bytes()
    started = time.perf_counter()
    opened = apsw.Connection(uri_of("large", branch="x"))
    opening = time.perf_counter() - started
    opened_added = resident_bytes() - memory
    count = "SELECT count(*) FROM t"
    assert opened.execute(count).get == apsw.Connection(uri_of("large")).execute(count).get
    return [
        Bar("fork in memory", fork * 1000, 20, "ms"),
        Bar("fork in memory: memory", added / MEGABYTE, 5, "MB"),
        Bar("a second open branch, requests included", opening * 1000, float("inf"), "ms"),
        Bar("a second open branch: memory", opened_added / MEGABYTE, 5, "MB"),
    ]


# ---- files


class Noise(io.RawIOBase):
    """A stream of random bytes that cannot be sought in and holds nothing of them."""

    def __init__(self, size: int, seed: int) -> None:
        self._left = size
        self._random = random.Random(seed)

    def read(self, size: int = -1) -> bytes:
        length = min(self._left, CHUNK)
        self._left -= length
        return self._random.randbytes(length)


def measured(name: str, size: int, action: Callable[[], object]) -> float:
    """Run an action and print what it took; the memory above before, in MB."""
    with PeakMemory() as memory:
        started = time.perf_counter()
        action()
        seconds = time.perf_counter() - started
    added = memory.added / MEGABYTE
    speed = size / MEGABYTE / seconds
    click.echo(f"{name:28} {added:6.1f} MB above before {speed:7.0f} MB/s")
    return added


def transfers(config: BucketConfig, folder: Path, size: int) -> list[float]:
    """Put and get files of so many bytes; the memory that each took."""
    files = FileStore(apsw.Connection(":memory:"), BucketClient(config))
    files.put(b"boto3 is imported, and connected")
    source, copy = folder / "source", folder / "copy"
    with source.open("wb") as file:
        noise = Noise(size, seed=1)
        while chunk := noise.read():
            file.write(chunk)
    keys: list[str] = []
    added = [
        measured("put(Path)", size, lambda: keys.append(files.put(source))),
        measured("put(stream)", size, lambda: keys.append(files.put(Noise(size, seed=2)))),
        measured("put(Path), there already", size, lambda: files.put(source)),
        measured("get(key, path)", size, lambda: files.get(keys[0], copy)),
    ]
    with files.open(keys[1]) as file:
        added.append(measured("open(key), read by 1 MB", size, lambda: _drained(file)))
    return added


def _drained(file: io.BufferedReader) -> None:
    while file.read(MEGABYTE):
        pass


# ---- the report


@click.command()
@click.option("--megabytes", default=256, show_default=True, type=click.IntRange(1))
def main(megabytes: int) -> None:
    """Measure, and say which bars are reached."""
    from servers import fresh_bucket, running_seaweedfs

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with running_seaweedfs(folder) as server, fresh_bucket(server) as bucket:
            config = server.config(bucket, part_size=PART_SIZE)
            small = config.model_copy(update={"key": "small.db"})
            registry.mount("small", small, LONG)
            found = keys_and_values(apsw.Connection(uri_of("small")))
            found += branches(config, megabytes)
            memory = max(transfers(config, folder, megabytes * MEGABYTE))
            found.append(Bar("files.put and get: memory above before", memory, FILES_MB, "MB"))
            for volume in registry.volumes():
                registry.unmount(volume, discard=True)
    table = Table("", "found", "bar", "")
    for bar in found:
        holds = "" if bar.found <= bar.bar else "missed"
        table.add_row(bar.what, f"{bar.found:,.2f} {bar.unit}", f"{bar.bar:,g}", holds)
    Console().print(table)
    sys.exit(int(any(bar.found > bar.bar for bar in found)))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # where `servers` is
    main()
