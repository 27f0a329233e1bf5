"""The whole benchmark against a real store of S3, held against what it must reach:

python tests/benchmarks/run.py [--json]

SeaweedFS runs beside it as a child process on this machine, with its data in a temporary folder.
Takes some minutes. Exits with 1 when a bar is missed. The server competes for the processors of
this machine; what that does to any process is reported beside a writer's pause.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import apsw
import click
from rich.console import Console
from rich.table import Table

from buckethead import BucketConfig, SnapshotConfig
from buckethead.bench import FULL, Report, run
from buckethead.bench import flushes as f
from buckethead.bench import transfer as t
from buckethead.bench import volumes as v
from buckethead.bench import waiting as w
from buckethead.bench.costs import counted
from buckethead.bench.measure import Findings, Flush
from buckethead.bench.places import filled, mounted
from buckethead.bench.statements import BASE
from buckethead.cli.bench import tables
from buckethead.core import registry
from buckethead.follower import Follower
from buckethead.uris import uri_of

PART_SIZE = 8 * 1024 * 1024

IDLE_SECONDS = 6.0
IDLE_PERIOD_SECONDS = 0.1
IDLE_PERIODS = round(IDLE_SECONDS / IDLE_PERIOD_SECONDS)
"""As many as a minute has seconds."""

IDLE_WRITER = f"requests of an idle writer in {IDLE_PERIODS} periods"
IDLE_FOLLOWER = f"requests of an idle follower in {IDLE_PERIODS} periods"
IDLE_LISTS = f"{IDLE_FOLLOWER}: other than GET"

FLUSH_BYTES = "flush of one changed row, the largest database: bytes"
FLUSH_REQUESTS = "flush of one changed row, the largest database: requests"
FLUSH_BEYOND = "flush of one changed row, the largest database: beyond one PUT"
FLUSH_SIZES = "flush of one changed row, the largest / the smallest database"


@dataclass(frozen=True, slots=True)
class Bar:
    """The most that something may cost, or the least it has to reach, and where a report says what
    it did."""

    what: str
    bar: float
    unit: str
    reached: Callable[[Report], float]
    at_least: bool = False

    def holds(self, value: float) -> bool:
        """Whether a value is good enough."""
        return value >= self.bar if self.at_least else value <= self.bar


def _ratio(statement: str) -> Callable[[Report], float]:
    def reached(report: Report) -> float:
        (row,) = (row for row in report.statements if row.name == statement)
        ratio = row.ratios["buckethead"]
        assert ratio is not None
        return ratio

    return reached


def _measure(name: str) -> Callable[[Report], float]:
    def reached(report: Report) -> float:
        (measure,) = (one for one in report.findings.measures if one.name == name)
        return measure.value

    return reached


def _one_row(report: Report) -> list[Flush]:
    """Flushes of one row, by the size of the database."""
    return sorted((one for one in report.flushes if one.changed == 1), key=lambda one: one.size_mb)


def _flush_sizes(report: Report) -> float:
    small, *_, large = (one.seconds for one in _one_row(report))
    return max(small, large) / min(small, large)


def _flush_beyond(report: Report) -> float:
    large = _one_row(report)[-1]
    return (large.seconds - large.put_seconds) * 1000


BARS = (
    Bar("point read", 1.8, f"x {BASE}", _ratio("point read")),
    Bar("single-row commit", 2.1, f"x {BASE}", _ratio("single-row commit")),
    Bar("bulk insert", 1.15, f"x {BASE}", _ratio("bulk insert, per row")),
    Bar("scan", 1.1, f"x {BASE}", _ratio("range scan, per row")),
    Bar(FLUSH_BYTES, 40_000, "bytes", lambda report: _one_row(report)[-1].size),
    Bar(FLUSH_REQUESTS, 1, "requests", lambda report: _one_row(report)[-1].requests),
    Bar(FLUSH_BEYOND, 3, "ms", _flush_beyond),
    Bar(FLUSH_SIZES, 1.2, "x", _flush_sizes),
    Bar(f.ENCODING, 60, "MB/s", _measure(f.ENCODING), at_least=True),
    Bar(w.TIMES, 8, "x", _measure(w.TIMES), at_least=True),
    Bar(w.DURABLE_BEYOND, 3, "ms", _measure(w.DURABLE_BEYOND)),
    Bar(IDLE_WRITER, 0, "requests", _measure(IDLE_WRITER)),
    Bar(IDLE_FOLLOWER, IDLE_PERIODS, "requests", _measure(IDLE_FOLLOWER)),
    Bar(IDLE_LISTS, 0, "requests", _measure(IDLE_LISTS)),
    Bar(t.UNCHANGED, 50, "µs", _measure(t.UNCHANGED)),
    Bar(t.UNCHANGED_REQUESTS, 0, "requests", _measure(t.UNCHANGED_REQUESTS)),
    Bar(t.PAUSE, 10, "ms", _measure(t.PAUSE)),
    Bar(t.PAUSE_S3, 10, "ms", _measure(t.PAUSE_S3)),
    Bar(t.MEMORY_IDLE, 64, "MB", _measure(t.MEMORY_IDLE)),
    Bar(t.MEMORY_BUSY, 64, "MB", _measure(t.MEMORY_BUSY)),
    Bar(t.UPLOAD, 1.2, "x", _measure(t.UPLOAD)),
    Bar(t.RESTORE, 0.8, "x", _measure(t.RESTORE)),
    Bar(t.RESTORE_DELTAS, 1.5, "x", _measure(t.RESTORE_DELTAS)),
    Bar(v.THREADS, 0, "threads", _measure(v.THREADS)),
    Bar(v.MEMORY, 400, "kB", _measure(v.MEMORY)),
)


@dataclass(frozen=True, slots=True)
class Result:
    """A bar and what was reached."""

    what: str
    bar: float
    at_least: bool
    reached: float
    unit: str
    held: bool


def results(report: Report) -> list[Result]:
    """Every bar against the report of a run on a store of S3, with what `idle` has found."""
    found = [(bar, bar.reached(report)) for bar in BARS]
    return [
        Result(bar.what, bar.bar, bar.at_least, value, bar.unit, bar.holds(value))
        for bar, value in found
    ]


def bars_table(found: list[Result]) -> Table:
    """A row for each bar."""
    table = Table(title="bar / reached")
    table.add_column("what")
    for name in ("bar", "reached", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found:
        limit = "at least" if one.at_least else "at most"
        bar, reached = f"{limit} {one.bar:,g} {one.unit}", f"{one.reached:,.2f}"
        table.add_row(one.what, bar, reached, "ok" if one.held else "MISSED")
    return table


def idle(place: BucketConfig, seconds: float, period: float, findings: Findings) -> None:
    """Count what a writer with nothing to write and a follower with nothing to read ask for, with a
    period instead of a second."""
    writes = SnapshotConfig(interval_seconds=period, min_interval_seconds=0.0)
    reads = SnapshotConfig(follow_seconds=period)
    with mounted(place, "idle", writes) as volume:
        writer = filled(volume, 0.1)
        volume.checkpoint()
        follower = registry.follow("bench-follower", volume.config, reads)
        assert isinstance(follower, Follower)
        reader = apsw.Connection(uri_of(follower.name), apsw.SQLITE_OPEN_READONLY)
        asked: Counter[str] = Counter()

        def watch() -> None:
            asked.update(counted(follower.bucket.counters, partial(time.sleep, seconds)))

        written = counted(volume.bucket.counters, watch)
        reader.close()
        writer.close()
    findings.add(IDLE_WRITER, written.total(), "requests")
    findings.add(IDLE_FOLLOWER, asked.total(), "requests")
    findings.add(IDLE_LISTS, asked.total() - asked["get_object"], "requests")


@click.command()
@click.option("--size-mb", default=FULL.size_mb, show_default=True)
@click.option("--flush-mb", default=FULL.flush_mb, show_default=True, multiple=True)
@click.option("--deltas", default=FULL.deltas, show_default=True)
@click.option("--rows", default=FULL.load.rows, show_default=True)
@click.option("--rounds", default=FULL.load.rounds, show_default=True)
@click.option("--volumes", default=FULL.volumes, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    size_mb: float,
    flush_mb: tuple[float, ...],
    deltas: int,
    rows: int,
    rounds: int,
    volumes: int,
    as_json: bool,
) -> None:
    """Measure everything against SeaweedFS on this machine."""
    from servers import fresh_bucket, running_seaweedfs

    options = replace(
        FULL,
        size_mb=size_mb,
        flush_mb=flush_mb,
        deltas=deltas,
        load=replace(FULL.load, rows=rows, rounds=rounds),
        volumes=volumes,
    )
    with (
        tempfile.TemporaryDirectory(prefix="buckethead-bench-") as folder,
        running_seaweedfs(Path(folder)) as server,
        fresh_bucket(server) as bucket,
    ):
        place = server.config(bucket, part_size=PART_SIZE)
        report = run(replace(options, place=place), _tell)
        _tell("an idle writer and an idle follower")
        idle(place, IDLE_SECONDS, IDLE_PERIOD_SECONDS, report.findings)
    found = results(report)
    if as_json:
        click.echo(json.dumps(report.document() | {"bars": [asdict(one) for one in found]}))
    else:
        console = Console(width=100)
        for table in (*tables(report), bars_table(found)):
            console.print(table)
    sys.exit(0 if all(one.held for one in found) else 1)


def _tell(part: str) -> None:
    click.echo(f"measuring {part}", err=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # where `servers` is
    main()
