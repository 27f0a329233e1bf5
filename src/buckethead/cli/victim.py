"""The process that `demo` kills: ``python -m buckethead.cli.victim FOLDER``.

It prints one JSON line for every step, and after the last one waits for the end.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..config import SnapshotConfig
from ..core import BucketSQLite
from .story import CHANGED_ORDER, FLUSHED_ORDERS, LOST_ORDERS, NEW_PRICE, demo_bucket

NEVER_SECONDS = 86_400.0


@contextmanager
def _told(mounted: BucketSQLite, name: str) -> Iterator[None]:
    """Print what the block cost."""
    before, started = mounted.stats, time.perf_counter()
    yield
    seconds, after = time.perf_counter() - started, mounted.stats
    step = {
        "step": name,
        "pages": after.dirty_pages or before.dirty_pages,
        "bytes": after.io.bytes_up - before.io.bytes_up,
        "requests": after.io.requests - before.io.requests,
        "seconds": seconds,
    }
    print(json.dumps(step), flush=True)


def _add_orders(mounted: BucketSQLite, first: int, count: int) -> None:
    connection = mounted.connection
    orders = (
        (number, f"bucket no. {number % 97}", number % 250 + 0.99)
        for number in range(first, first + count)
    )
    connection.executemany("INSERT INTO orders VALUES (?, ?, ?)", orders)


def main() -> None:
    """Write, flush, write more, and wait to be killed."""
    never = SnapshotConfig(interval_seconds=NEVER_SECONDS)
    with BucketSQLite(demo_bucket(Path(sys.argv[1])), never) as mounted:
        with _told(mounted, "write"), mounted.connection:
            mounted.connection.execute(
                "CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL, price REAL)"
            )
            _add_orders(mounted, 1, FLUSHED_ORDERS)
        with _told(mounted, "flush"):
            mounted.force_flush()
        mounted.connection.execute(
            "UPDATE orders SET price = ? WHERE id = ?", (NEW_PRICE, CHANGED_ORDER)
        )
        with _told(mounted, "flush again"):
            mounted.force_flush()
        with _told(mounted, "write more"), mounted.connection:
            _add_orders(mounted, FLUSHED_ORDERS + 1, LOST_ORDERS)
        sys.stdin.read()


if __name__ == "__main__":
    main()
