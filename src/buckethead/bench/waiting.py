"""What it costs to know that a commit is safe: many threads that wait and share requests, and
commits that publish themselves; both beside one PUT for each commit.
"""

import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import apsw

from ..config import BucketConfig
from ..uris import uri_of
from ..volume import Volume
from .measure import Findings, median, quiet
from .places import UPDATE, WHEN_TOLD, filled, mounted, row_count
from .statements import PATIENCE_MS

THREADS = 16
SIZE_MB = 1.0
WARM_UP = 5

TOGETHER = f"{THREADS} threads that commit and wait(): commits"
ALONE = "one PUT for each commit: commits"
TIMES = f"{THREADS} threads that commit and wait() / one PUT for each commit"
SHARED = f"{THREADS} threads that commit and wait(): commits that share a request"
DURABLE = 'commit with durability="commit"'
DURABLE_PUT = f"{DURABLE}: one PUT of as many bytes"
DURABLE_BEYOND = f"{DURABLE}: beyond one PUT"


def together(place: BucketConfig, seconds: float, rounds: int, findings: Findings) -> None:
    """Threads that commit and wait for so many seconds, in turns with one that does a PUT for each
    of its commits. Raises BucketError."""
    many, one, shared = [], [], []
    with mounted(place, "wait") as volume, quiet():
        connection = filled(volume, SIZE_MB)
        alone = _Alone(volume, connection)
        for _ in range(rounds):
            one.append(alone.rate(seconds))
            volume.flush()
            requests, version = volume.bucket.counters.requests, volume.image.version
            many.append(_rate_of_many(volume, row_count(connection), seconds))
            requests = volume.bucket.counters.requests - requests
            shared.append((volume.image.version - version) / requests)
        connection.close()
    findings.add(TOGETHER, median(many), "a second")
    findings.add(ALONE, median(one), "a second")
    findings.add(TIMES, median([a / b for a, b in zip(many, one, strict=True)]), "x")
    findings.add(SHARED, median(shared), "commits")


class _Alone:
    """Commits a row, then writes as many bytes as its delta would have by a PUT."""

    def __init__(self, volume: Volume, connection: apsw.Connection) -> None:
        self._volume = volume
        self._connection = connection
        volume.flush()
        connection.execute(UPDATE, (1,))
        self._size = volume.flush().bytes_written
        self._puts = 0

    def rate(self, seconds: float) -> float:
        """Commits a second, for so many seconds."""
        return _rate(seconds, self._commit)

    def _commit(self) -> None:
        self._connection.execute(UPDATE, (1,))
        self._puts += 1
        _put(self._volume, self._puts, self._size)


def _put(volume: Volume, number: int, size: int) -> None:
    volume.bucket.put_bytes(os.urandom(size), f"{volume.key}.put/{number}", if_none_match=True)


def _rate(seconds: float, action: Callable[[], object]) -> float:
    """Repeat an action for so long, once at least; how often a second."""
    started = now = time.perf_counter()
    count = 0
    while not count or now - started < seconds:
        action()
        count += 1
        now = time.perf_counter()
    return count / (now - started)


def _rate_of_many(volume: Volume, rows: int, seconds: float) -> float:
    def work(number: int) -> float:
        connection = apsw.Connection(uri_of(volume.name))
        connection.set_busy_timeout(PATIENCE_MS)
        chance = random.Random(number)
        try:
            return _rate(seconds, partial(_commit_and_wait, volume, connection, chance, rows))
        finally:
            connection.close()

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(work, range(THREADS)))


def _commit_and_wait(
    volume: Volume, connection: apsw.Connection, chance: random.Random, rows: int
) -> None:
    connection.execute(UPDATE, (chance.randint(1, rows),))
    volume.wait()


def durable(place: BucketConfig, commits: int, findings: Findings) -> None:
    """Commits of one thread that publish themselves, in turns with one PUT of as many bytes. Raises
    BucketError."""
    snapshot = WHEN_TOLD.model_copy(update={"durability": "commit"})
    seconds: list[float] = []
    put_seconds: list[float] = []
    with mounted(place, "commit", snapshot) as volume, quiet():
        connection = filled(volume, SIZE_MB)
        counters = volume.bucket.counters
        for number in range(WARM_UP + commits):
            sent = counters.snapshot().bytes_up
            started = time.perf_counter()
            connection.execute(UPDATE, (number % row_count(connection) + 1,))
            between = time.perf_counter()
            _put(volume, number, counters.snapshot().bytes_up - sent)
            ended = time.perf_counter()
            if number >= WARM_UP:
                seconds.append(between - started)
                put_seconds.append(ended - between)
        connection.close()
    findings.add(DURABLE, median(seconds) * 1000, "ms")
    findings.add(DURABLE_PUT, median(put_seconds) * 1000, "ms")
    findings.add(DURABLE_BEYOND, (median(seconds) - median(put_seconds)) * 1000, "ms")
