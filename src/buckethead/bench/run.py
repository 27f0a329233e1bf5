"""The whole benchmark, in the order that keeps its parts out of each other's way."""

import os
import platform
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import apsw

from ..config import BucketConfig
from ..storage.directory import open_bucket
from ..storage.translate import translated
from . import flushes, transfer, volumes, waiting
from .measure import Comparison, Findings, Flush
from .places import is_s3
from .statements import Load, compare


@dataclass(frozen=True, slots=True)
class Options:
    """How much is measured: by default so much that a laptop is done in some twenty seconds.

    ``place`` is where databases go: a bucket of S3, in which only objects under
    ``buckethead-bench/`` are made and removed again, or None for a directory. ``size_mb`` is that
    of the database that is checkpointed and restored, with ``deltas`` after its image;
    ``flush_mb`` are those of databases of which ``flush_pages`` pages are flushed.
    """

    size_mb: float = 32
    load: Load = field(default_factory=lambda: Load(10_000, 1_000, 3, 0.1))
    transfer_rounds: int = 3
    volumes: int = 200
    deltas: int = 200
    flush_mb: tuple[float, ...] = (10, 100)
    flush_pages: tuple[int, ...] = (1, 100, 10_000)
    flush_rounds: int = 10
    wait_seconds: float = 0.3
    commits: int = 50
    place: BucketConfig | None = None


FULL = Options(
    size_mb=256,
    load=Load(),
    volumes=1_000,
    deltas=1_000,
    flush_mb=(10, 100, 1_000),
    flush_rounds=30,
    wait_seconds=2,
    commits=200,
)
"""What the figures that this project states are measured with. It takes some minutes."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured, on what."""

    machine: dict[str, object]
    statements: list[Comparison]
    flushes: list[Flush]
    findings: Findings

    def document(self) -> dict[str, object]:
        """The report as JSON has it."""
        return asdict(self)


def run(options: Options, tell: Callable[[str], object] = lambda part: None) -> Report:
    """Measure everything; ``tell`` hears of each part that begins. Raises BucketError."""
    with tempfile.TemporaryDirectory(prefix="buckethead-bench-") as name:
        folder = Path(name)
        findings = Findings()
        place = _place(options.place, folder)
        _reach(place)
        tell(f"{options.volumes:,} volumes")
        volumes.open_and_close(folder, options.volumes, findings)
        tell("statements")
        statements = compare(folder, options.load)
        rounds = options.transfer_rounds
        tell(f"flushes of {', '.join(f'{size:g}' for size in options.flush_mb)} MB")
        found = flushes.measure(
            place, options.flush_mb, options.flush_pages, options.flush_rounds, findings
        )
        tell("waiting for commits to be safe")
        waiting.together(place, options.wait_seconds, rounds, findings)
        waiting.durable(place, options.commits, findings)
        tell(f"checkpoint and restore of {options.size_mb:g} MB")
        if is_s3(place):
            transfer.pauses_at_a_directory(folder, options.size_mb, rounds, findings)
        transfer.measure(place, folder, options.size_mb, rounds, options.deltas, findings)
    return Report(_machine(place), statements, found, findings)


def _reach(place: BucketConfig) -> None:
    """Ask the store for something now, not after minutes of other measurements."""
    bucket = open_bucket(place)
    with translated("reach the bucket to measure", bucket):
        bucket.head(place.key)


def _place(place: BucketConfig | None, folder: Path) -> BucketConfig:
    key = f"buckethead-bench/{uuid.uuid4().hex}"
    if place is None:
        return BucketConfig(bucket="bench", key=key, endpoint_url=(folder / "bucket").as_uri())
    return place.model_copy(update={"key": key})


def _machine(place: BucketConfig) -> dict[str, object]:
    return {
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "apsw": apsw.apsw_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "store": place.endpoint_url or "AWS" if is_s3(place) else "a directory",
    }
