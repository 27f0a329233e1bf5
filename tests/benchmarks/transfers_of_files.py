"""Files of 256 MB to and from a real store of S3, held against the bar for memory:

python tests/benchmarks/transfers_of_files.py [--megabytes N]

SeaweedFS runs beside it as a child process on this machine, and competes for its processors.
Exits with 1 when the bar is missed.
"""

import io
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import apsw
import click

from buckethead import BucketClient, BucketConfig, FileStore
from buckethead.bench.measure import PeakMemory
from servers import Server, fresh_bucket, running_seaweedfs

BAR_MB = 32.0
MEGABYTE = 1_000_000
PART_SIZE = 8 * 1024 * 1024
CHUNK = 64 * 1024


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


def run(config: BucketConfig, folder: Path, size: int) -> list[float]:
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


def config_of(server: Server, bucket: str) -> BucketConfig:
    """A bucket of the server, with the parts that are used by default."""
    return server.config(bucket, part_size=PART_SIZE)


@click.command()
@click.option("--megabytes", default=256, show_default=True, type=click.IntRange(1))
def main(megabytes: int) -> None:
    """Measure, and say whether the bar is reached."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with running_seaweedfs(folder) as server, fresh_bucket(server) as bucket:
            worst = max(run(config_of(server, bucket), folder, megabytes * MEGABYTE))
    click.echo(f"the most was {worst:.1f} MB, and the bar is {BAR_MB:.0f} MB")
    sys.exit(int(worst > BAR_MB))


if __name__ == "__main__":
    main()
