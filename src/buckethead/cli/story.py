"""What `demo` does and measures; how it is shown is `demo.py`'s business.

A child process writes, flushes, changes a little, flushes, writes more and is killed with SIGKILL
at exactly that point: it has said over a pipe that it is there. This process then restores what
the bucket has, the newest state and the first.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import apsw

from ..config import BucketConfig
from ..core import BucketSQLite
from ..errors import BucketHeadError
from ..image.vfs import connected
from ..storage.directory import open_bucket
from ..storage.restoring import restore

FLUSHED_ORDERS = 5_000
LOST_ORDERS = 500
CHANGED_ORDER = 42
NEW_PRICE = 0.99
STEPS_OF_THE_CHILD = 4


@dataclass(frozen=True, slots=True)
class Step:
    """What one step cost. ``pages`` changed or read; bytes and requests to and from the bucket."""

    step: str
    pages: int
    bytes: int
    requests: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Story:
    """What happened. Counts are rows; ``signal`` is what ended the child; ``size`` of the database
    in bytes; the prices are those of `CHANGED_ORDER` in the newest state and in that of TXID 1."""

    steps: list[Step]
    signal: int
    flushed: int
    kept: int
    lost: int
    integrity_check: str
    page_size: int
    size: int
    price: float
    first_price: float


def demo_bucket(folder: Path) -> BucketConfig:
    """The directory bucket that both processes use, whatever is configured."""
    return BucketConfig(bucket="demo", key="shop.db", endpoint_url=folder.as_uri())


def tell(folder: Path) -> Story:
    """Run the whole story with a directory bucket in ``folder``."""
    steps, ended_by = _killed_child(folder)
    started = time.perf_counter()
    with BucketSQLite(demo_bucket(folder)) as mounted:
        seconds = time.perf_counter() - started
        status, connection = mounted.stats, mounted.connection
        io = status.io
        steps.append(Step("restore", status.page_count, io.bytes_down, io.requests, seconds))
        kept = connection.execute("SELECT count(*) FROM orders").get
        return Story(
            steps=steps,
            signal=ended_by,
            flushed=FLUSHED_ORDERS,
            kept=kept,
            lost=FLUSHED_ORDERS + LOST_ORDERS - kept,
            integrity_check=str(connection.pragma("integrity_check")),
            page_size=status.page_size,
            size=status.size,
            price=_price(connection),
            first_price=_first_price(folder),
        )


def _price(connection: apsw.Connection) -> float:
    return float(connection.execute("SELECT price FROM orders WHERE id = ?", (CHANGED_ORDER,)).get)


def _first_price(folder: Path) -> float:
    """The price in the first state of the history."""
    config = demo_bucket(folder)
    restored = restore(open_bucket(config), config.place, lambda timeline: 1)
    assert restored is not None, "the newest state was there"
    with connected(restored.image) as connection:
        return _price(connection)


def _killed_child(folder: Path) -> tuple[list[Step], int]:
    """The steps the child made before it was killed, and the signal that ended it."""
    command = [sys.executable, "-m", "buckethead.cli.victim", str(folder)]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert child.stdout is not None
    try:
        lines = [child.stdout.readline() for _ in range(STEPS_OF_THE_CHILD)]
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
    if not lines[-1]:
        raise BucketHeadError("The demo's child process ended early: see what it said above.")
    return [Step(**json.loads(line)) for line in lines], -child.returncode
