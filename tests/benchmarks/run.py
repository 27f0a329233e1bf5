"""The whole benchmark against a real store of S3, held against what it must reach:

python tests/benchmarks/run.py [--json]

SeaweedFS runs beside it as a child process on this machine, with its data in a temporary folder.
Takes some minutes. Exits with 1 when a bar is missed. The server competes for the processors of
this machine; what that does to any process is reported beside the pause of a flush to it.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from buckethead.bench import Options, Report, run
from buckethead.bench import transfer as t
from buckethead.bench import volumes as v
from buckethead.bench.statements import BASE, Load
from buckethead.cli.bench import findings_table, statements_table

PART_SIZE = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Bar:
    """The most that something may cost, and where a report says what it did cost."""

    what: str
    most: float
    unit: str
    reached: Callable[[Report], float]


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


BARS = (
    Bar("point read", 1.8, f"x {BASE}", _ratio("point read")),
    Bar("single-row commit", 2.1, f"x {BASE}", _ratio("single-row commit")),
    Bar("bulk insert", 1.15, f"x {BASE}", _ratio("bulk insert, per row")),
    Bar("scan", 1.1, f"x {BASE}", _ratio("range scan, per row")),
    Bar(t.UNCHANGED, 50, "µs", _measure(t.UNCHANGED)),
    Bar(t.UNCHANGED_REQUESTS, 0, "requests", _measure(t.UNCHANGED_REQUESTS)),
    Bar(t.PAUSE, 10, "ms", _measure(t.PAUSE)),
    Bar(t.PAUSE_S3, 10, "ms", _measure(t.PAUSE_S3)),
    Bar(t.MEMORY_IDLE, 64, "MB", _measure(t.MEMORY_IDLE)),
    Bar(t.MEMORY_BUSY, 64, "MB", _measure(t.MEMORY_BUSY)),
    Bar(t.UPLOAD, 1.2, "x", _measure(t.UPLOAD)),
    Bar(t.RESTORE, 0.8, "x", _measure(t.RESTORE)),
    Bar(v.THREADS, 0, "threads", _measure(v.THREADS)),
    Bar(v.MEMORY, 400, "kB", _measure(v.MEMORY)),
)


@dataclass(frozen=True, slots=True)
class Result:
    """A bar and what was reached."""

    what: str
    most: float
    reached: float
    unit: str
    held: bool


def results(report: Report) -> list[Result]:
    """Every bar against the report of a run on a store of S3."""
    found = [(bar, bar.reached(report)) for bar in BARS]
    return [Result(b.what, b.most, value, b.unit, value <= b.most) for b, value in found]


def bars_table(found: list[Result]) -> Table:
    """A row for each bar."""
    table = Table(title="bar / reached")
    table.add_column("what")
    for name in ("bar", "reached", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found:
        bar, reached = f"{one.most:g} {one.unit}", f"{one.reached:,.2f}"
        table.add_row(one.what, bar, reached, "ok" if one.held else "MISSED")
    return table


@click.command()
@click.option("--size-mb", default=256.0, show_default=True)
@click.option("--rows", default=100_000, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--volumes", default=1_000, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(size_mb: float, rows: int, rounds: int, volumes: int, as_json: bool) -> None:
    """Measure everything against SeaweedFS on this machine."""
    from servers import fresh_bucket, running_seaweedfs

    with (
        tempfile.TemporaryDirectory(prefix="buckethead-bench-") as folder,
        running_seaweedfs(Path(folder)) as server,
        fresh_bucket(server) as bucket,
    ):
        options = Options(
            size_mb=size_mb,
            load=Load(rows=rows, rounds=rounds),
            volumes=volumes,
            place=server.config(bucket, part_size=PART_SIZE),
        )
        report = run(options, lambda part: click.echo(f"measuring {part}", err=True))
    found = results(report)
    if as_json:
        click.echo(json.dumps(report.document() | {"bars": [asdict(one) for one in found]}))
    else:
        console = Console(width=100)
        for table in (
            *(statements_table(report.statements), findings_table(report.findings)),
            bars_table(found),
        ):
            console.print(table)
    sys.exit(0 if all(one.held for one in found) else 1)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # where `servers` is
    main()
