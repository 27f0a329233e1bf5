"""`bench`: what SQL, flush and restore cost here, as tables."""

from dataclasses import replace

import click
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ..bench.measure import Comparison, Findings
from ..bench.run import Options, run
from ..bench.statements import Load
from .output import console, json_option, note, print_json
from .target import Target

WIDTH = 100


@click.command()
@json_option
@click.option(
    "--size-mb",
    default=256.0,
    show_default=True,
    type=click.FloatRange(0.1),
    help="Size of the database that is flushed and restored.",
)
@click.option(
    "--rows",
    default=100_000,
    show_default=True,
    type=click.IntRange(1),
    help="Rows of the table that the statements work on.",
)
@click.option(
    "--operations",
    default=5_000,
    show_default=True,
    type=click.IntRange(1),
    help="Statements of each kind in a round.",
)
@click.option(
    "--rounds", default=5, show_default=True, type=click.IntRange(1), help="Rounds that count."
)
@click.option(
    "--volumes",
    default=1_000,
    show_default=True,
    type=click.IntRange(1),
    help="Volumes that are open at once.",
)
@click.option("--endpoint-url", metavar="URL", help="The S3 store for flush and restore.")
@click.pass_obj
def bench(
    target: Target,
    as_json: bool,
    size_mb: float,
    rows: int,
    operations: int,
    rounds: int,
    volumes: int,
    endpoint_url: str | None,
) -> None:
    """Measure SQL against SQLite's own engines, then flush and restore.

    The configured bucket is used only where --endpoint-url names a store of S3, for objects under
    buckethead-bench/ that are removed again; else it is a temporary directory.
    """
    chosen = replace(target, endpoint_url=endpoint_url or target.endpoint_url)
    options = Options(
        size_mb=size_mb,
        load=Load(rows=rows, operations=operations, rounds=rounds),
        volumes=volumes,
        place=chosen.config() if chosen.endpoint_url else None,
    )
    report = run(options, lambda part: note(f"measuring {part}"))
    if as_json:
        print_json(report.document())
        return
    page = console(WIDTH)
    page.print(Text(", ".join(f"{name} {value}" for name, value in report.machine.items())))
    page.print(statements_table(report.statements))
    page.print(findings_table(report.findings))
    for line in report.findings.left_out:
        page.print(Text(f"left out: {line}", style="dim"))


def statements_table(comparisons: list[Comparison]) -> Table:
    """A row for each kind of statement, a column for each engine."""
    table = Table(box=SIMPLE_HEAD, title="µs an operation (and times memdb's)")
    table.add_column("statement")
    for engine in comparisons[0].microseconds:
        table.add_column(engine, justify="right", no_wrap=True)
    for row in comparisons:
        cells = (_cell(row, engine) for engine in row.microseconds)
        table.add_row(row.name, *cells)
    return table


def _cell(row: Comparison, engine: str) -> str:
    microseconds, ratio = row.microseconds[engine], row.ratios[engine]
    if microseconds is None:
        return "-"
    return f"{microseconds:,.2f}" + (f" ({ratio:.2f})" if ratio is not None else "")


def findings_table(findings: Findings) -> Table:
    """A row for each number."""
    table = Table(box=SIMPLE_HEAD, title="flush, restore, many volumes")
    table.add_column("what")
    table.add_column("value", justify="right", no_wrap=True)
    for measure in findings.measures:
        table.add_row(measure.name, f"{measure.value:,.2f} {measure.unit}")
    return table
