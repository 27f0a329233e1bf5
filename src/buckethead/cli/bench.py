"""`bench`: what SQL, flush, checkpoint and restore cost here, as tables."""

from dataclasses import replace

import click
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ..bench import FULL, Options, Report, run
from ..bench.costs import PRICES
from ..bench.measure import Comparison, Findings, Flush
from .output import console, json_option, note, print_json
from .target import Target

WIDTH = 100
QUICK = Options()


def _full_sizes(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    """Change the defaults of the other options, which still come first where they are given."""
    if value:
        context.default_map = {
            "size_mb": FULL.size_mb,
            "flush_mb": FULL.flush_mb,
            "deltas": FULL.deltas,
            "rows": FULL.load.rows,
            "operations": FULL.load.operations,
            "rounds": FULL.load.rounds,
            "volumes": FULL.volumes,
        }
    return value


@click.command()
@json_option
@click.option(
    "--full",
    is_flag=True,
    is_eager=True,
    callback=_full_sizes,
    help="The sizes that the project states its figures for; takes some minutes.",
)
@click.option(
    "--size-mb",
    default=QUICK.size_mb,
    show_default=True,
    type=click.FloatRange(0.1),
    help="Size of the database that is checkpointed and restored.",
)
@click.option(
    "--flush-mb",
    default=QUICK.flush_mb,
    show_default=True,
    multiple=True,
    type=click.FloatRange(0.1),
    help="Size of a database of which changed pages are flushed; may be given several times.",
)
@click.option(
    "--deltas",
    default=QUICK.deltas,
    show_default=True,
    type=click.IntRange(1),
    help="Flushes after the image, to restore with it.",
)
@click.option(
    "--rows",
    default=QUICK.load.rows,
    show_default=True,
    type=click.IntRange(1),
    help="Rows of the table that the statements work on.",
)
@click.option(
    "--operations",
    default=QUICK.load.operations,
    show_default=True,
    type=click.IntRange(1),
    help="Statements of each kind in a round.",
)
@click.option(
    "--rounds",
    default=QUICK.load.rounds,
    show_default=True,
    type=click.IntRange(1),
    help="Rounds of statements that count.",
)
@click.option(
    "--volumes",
    default=QUICK.volumes,
    show_default=True,
    type=click.IntRange(1),
    help="Volumes that are open at once.",
)
@click.option("--endpoint-url", metavar="URL", help="The S3 store to measure with.")
@click.pass_obj
def bench(
    target: Target,
    as_json: bool,
    full: bool,
    size_mb: float,
    flush_mb: tuple[float, ...],
    deltas: int,
    rows: int,
    operations: int,
    rounds: int,
    volumes: int,
    endpoint_url: str | None,
) -> None:
    """Measure SQL against SQLite's own engines, then flush, checkpoint and restore, and what the
    requests would cost.

    The configured bucket is used only where --endpoint-url names a store of S3, for objects under
    buckethead-bench/ that are removed again; else it is a temporary directory.
    """
    chosen = replace(target, endpoint_url=endpoint_url or target.endpoint_url)
    base = FULL if full else QUICK
    options = replace(
        base,
        size_mb=size_mb,
        flush_mb=flush_mb,
        deltas=deltas,
        load=replace(base.load, rows=rows, operations=operations, rounds=rounds),
        volumes=volumes,
        place=chosen.config() if chosen.endpoint_url else None,
    )
    try:
        report = run(options, lambda part: note(f"measuring {part}"))
    except KeyboardInterrupt as error:  # one in the middle of a COMMIT too
        raise click.Abort from error
    if as_json:
        print_json(report.document())
        return
    page = console(WIDTH)
    page.print(Text(", ".join(f"{name} {value}" for name, value in report.machine.items())))
    for table in tables(report):
        page.print(table)
    for line in report.findings.left_out:
        page.print(Text(f"left out: {line}", style="dim"))


def tables(report: Report) -> list[Table]:
    """What was measured, for reading."""
    return [
        _statements_table(report.statements),
        _flushes_table(report.flushes),
        _findings_table(report.findings),
    ]


def _statements_table(comparisons: list[Comparison]) -> Table:
    """A row for each kind of statement, a column for each engine."""
    table = Table(box=SIMPLE_HEAD, title="µs an operation (in brackets: as a multiple of memdb's)")
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


def _flushes_table(flushes: list[Flush]) -> Table:
    """A row for each size and number of changed pages."""
    table = Table(box=SIMPLE_HEAD, title="flushes, beside one PUT of as many bytes")
    for column in ("database", "rows changed", "pages", "bytes", "requests", "flush", "one PUT"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in flushes:
        counts = (row.changed, row.pages, row.size, row.requests)
        times = (row.seconds, row.put_seconds)
        table.add_row(
            f"{row.size_mb:,g} MB",
            *(f"{count:,}" for count in counts),
            *(f"{seconds * 1000:,.2f} ms" for seconds in times),
        )
    return table


def _findings_table(findings: Findings) -> Table:
    """A row for each number."""
    table = Table(box=SIMPLE_HEAD, title="safety, image, volumes, costs", caption=PRICES)
    table.add_column("what")
    table.add_column("value", justify="right", no_wrap=True)
    for measure in findings.measures:
        table.add_row(measure.name, f"{_shown(measure.value)} {measure.unit}")
    return table


def _shown(value: float) -> str:
    """Two digits at least, of a small number too."""
    return f"{value:,.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"
