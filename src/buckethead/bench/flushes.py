"""What a flush costs, by the pages that changed and by the size of the database; beside each flush
one PUT of as many bytes to the same bucket.

Databases of all sizes take turns, and so do flush and PUT; the first round is a warm-up and is
dropped.
"""

import os
import random
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass

from ..config import BucketConfig
from ..image.pages import PageImage
from ..storage import ltx
from ..volume import Volume
from .measure import Findings, Flush, median, quiet, seconds_of
from .places import MB, UPDATE, filled, mounted, row_count

ENCODING = "encoding changed pages"

APART = 4
"""Rows with numbers so far apart are never on one page."""

ENCODED_PAGES = 10_000
ENCODINGS = 5
LEAST_ROUNDS = 3
PAGES_OF_A_FULL_LOAD = 100
"""Flushes of more pages come in fewer rounds."""


@dataclass(frozen=True, slots=True)
class _Sample:
    pages: int
    size: int
    requests: int
    seconds: float
    put_seconds: float


class _Database:
    """One database, of which the same number of rows is changed again and again."""

    def __init__(self, volume: Volume, size_mb: float) -> None:
        self.size_mb = size_mb
        self.volume = volume
        self._connection = filled(volume, size_mb)
        self._places = range(row_count(self._connection) // APART)
        self._chance = random.Random(1)
        self._puts = 0
        volume.flush()

    def holds(self, changed: int) -> bool:
        """Whether so many rows can be on a page each."""
        return changed <= len(self._places)

    def sample(self, changed: int) -> _Sample:
        """Change rows, all on different pages, flush, and PUT as many bytes."""
        chosen = self._chance.sample(self._places, changed)
        with self._connection:
            self._connection.executemany(UPDATE, [(place * APART + 1,) for place in chosen])
        bucket = self.volume.bucket
        requests = bucket.counters.requests
        started = time.perf_counter()
        result = self.volume.flush()
        seconds = time.perf_counter() - started
        requests = bucket.counters.requests - requests
        return _Sample(
            result.pages, result.bytes_written, requests, seconds, self._put(result.bytes_written)
        )

    def _put(self, size: int) -> float:
        self._puts += 1
        key, data = f"{self.volume.key}.put/{self._puts}", os.urandom(size)
        started = time.perf_counter()
        self.volume.bucket.put_bytes(data, key, if_none_match=True)
        return time.perf_counter() - started

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()


def measure(
    place: BucketConfig,
    sizes_mb: tuple[float, ...],
    changes: tuple[int, ...],
    rounds: int,
    findings: Findings,
) -> list[Flush]:
    """For each number of changed rows and each size of database: the medians of some flushes, and
    the most bytes and requests that one took. Raises BucketError."""
    flushes = []
    with ExitStack() as stack:
        databases = []
        for number, size_mb in enumerate(sizes_mb):
            volume = stack.enter_context(mounted(place, f"flush-{number}"))
            databases.append(_Database(volume, size_mb))
            stack.callback(databases[-1].close)
        _encoding(databases[-1].volume.image, findings)
        for changed in changes:
            fitting = [database for database in databases if database.holds(changed)]
            findings.left_out += [
                f"flush of {changed:,} pages of {database.size_mb:g} MB: it has fewer"
                for database in databases
                if database not in fitting
            ]
            flushes += _in_turns(fitting, changed, _rounds(rounds, changed))
    return flushes


def _rounds(rounds: int, changed: int) -> int:
    return max(LEAST_ROUNDS, rounds * PAGES_OF_A_FULL_LOAD // max(PAGES_OF_A_FULL_LOAD, changed))


def _in_turns(databases: list[_Database], changed: int, rounds: int) -> list[Flush]:
    samples: list[list[_Sample]] = [[] for _ in databases]
    with quiet():
        for number in range(rounds + 1):
            for database, found in zip(databases, samples, strict=True):
                sample = database.sample(changed)
                if number:
                    found.append(sample)
    pairs = zip(databases, samples, strict=True)
    return [_flush(database.size_mb, changed, found) for database, found in pairs]


def _flush(size_mb: float, changed: int, samples: list[_Sample]) -> Flush:
    return Flush(
        size_mb=size_mb,
        changed=changed,
        pages=max(sample.pages for sample in samples),
        size=max(sample.size for sample in samples),
        requests=max(sample.requests for sample in samples),
        seconds=median([sample.seconds for sample in samples]),
        put_seconds=median([sample.put_seconds for sample in samples]),
    )


def _encoding(image: PageImage, findings: Findings) -> None:
    with image.pinned() as pin:
        count = min(pin.page_count, ENCODED_PAGES)
        pages = [(number, pin.page(number)) for number in range(1, count + 1)]
        header = ltx.Header(
            page_size=pin.page_size,
            commit=pin.page_count,
            min_txid=2,  # 1 would have to hold every page
            max_txid=2,
            timestamp=time.time_ns() // 1_000_000,
            node_id=1,
        )
    seconds = [
        seconds_of(lambda: deque(ltx.encode(header, pages), maxlen=0)) for _ in range(ENCODINGS)
    ]
    findings.add(ENCODING, count * header.page_size / MB / median(seconds), "MB/s")
