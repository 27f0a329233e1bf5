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
from . import transfer, volumes
from .measure import Comparison, Findings
from .statements import Load, compare


@dataclass(frozen=True, slots=True)
class Options:
    """How much is measured. ``place`` is where flush and restore go: a bucket of S3, in which only
    objects under ``buckethead-bench/`` are made and removed again, or None for a directory."""

    size_mb: float = 256
    load: Load = field(default_factory=Load)
    transfer_rounds: int = 3
    volumes: int = 1_000
    place: BucketConfig | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured, on what."""

    machine: dict[str, object]
    statements: list[Comparison]
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
        tell(f"flush and restore of {options.size_mb:g} MB")
        if transfer.is_s3(place):
            rounds = options.transfer_rounds
            transfer.pauses_at_a_directory(folder, options.size_mb, rounds, findings)
        found = transfer.measure(place, folder, options.size_mb, options.transfer_rounds)
    findings.measures += found.measures
    findings.left_out += found.left_out
    return Report(_machine(place), statements, findings)


def _reach(place: BucketConfig) -> None:
    """Ask the store for something now, not after minutes of other measurements."""
    bucket = open_bucket(place)
    with translated("reach the bucket to measure", bucket):
        bucket.head(place.key)


def _place(place: BucketConfig | None, folder: Path) -> BucketConfig:
    key = f"buckethead-bench/{uuid.uuid4().hex}.db"
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
        "store": place.endpoint_url or "AWS" if transfer.is_s3(place) else "a directory",
    }
