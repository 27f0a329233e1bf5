"""`demo`: the story of a killed process, as something a person enjoys reading."""

import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.filesize import decimal
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from .output import console, json_option, print_json
from .story import CHANGED_ORDER, Step, Story, tell

WIDTH = 78

YOURS = """\
import apsw, buckethead  # makes vfs=buckethead known
db = apsw.Connection("file:app?vfs=buckethead")
db.execute("CREATE TABLE IF NOT EXISTS t(x)")"""

HEADINGS = {
    "write": "create, and write {flushed:,} orders",
    "flush": "flush to the bucket",
    "flush again": "change the price of one, flush",
    "write more": "write {lost:,} more, do not flush",
    "restore": "restore in another process",
}
KILLED = "   SIGKILL: no exit hook, no flush"


@click.command()
@json_option
@click.option("--keep", is_flag=True, help="Keep the demo's bucket, and say where it is.")
def demo(as_json: bool, keep: bool) -> None:
    """Write, flush, kill the process with SIGKILL, restore: see what is kept.

    Needs no configuration and no network; takes a second or two.
    """
    folder = Path(tempfile.mkdtemp(prefix="buckethead-demo-"))
    try:
        story = tell(folder)
    finally:
        if not keep:
            shutil.rmtree(folder)
    kept_at = str(folder) if keep else None
    if as_json:
        print_json(asdict(story) | {"folder": kept_at})
    else:
        _show(story, kept_at)


def _show(story: Story, kept_at: str | None) -> None:
    page = console(WIDTH)
    page.print(Panel(_steps(story), title="buckethead: a database that outlives its process"))
    page.print(Panel(_outcome(story), title="what the bucket kept"))
    _print_yours(page)
    if kept_at is not None:
        page.print(Text(f"The demo's bucket is kept in {kept_at}", style="dim"), soft_wrap=True)


def _steps(story: Story) -> Table:
    table = Table(box=SIMPLE_HEAD, expand=True, pad_edge=False)
    table.add_column("step")
    for name in ("pages", "bytes", "requests", "ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, step in enumerate(story.steps, 1):
        if step.step == "restore":
            table.add_row(Text(KILLED, style="bold red"), "", "", "", "")
        heading = HEADINGS[step.step].format(flushed=story.flushed, lost=story.lost)
        table.add_row(f"{number}. {heading}", *_costs(step))
    return table


def _costs(step: Step) -> tuple[str, str, str, str]:
    moved = decimal(step.bytes) if step.bytes else "-"
    requests = str(step.requests) if step.requests else "-"
    return f"{step.pages:,}", moved, requests, f"{step.seconds * 1000:.1f}"


def _outcome(story: Story) -> Text:
    sound = story.integrity_check == "ok" and story.kept == story.flushed
    again = next(step for step in story.steps if step.step == "flush again")
    return Text.assemble(
        (f"{story.kept:,} of {story.flushed:,} flushed orders are back", "bold green"),
        f", and order {CHANGED_ORDER} at its new price, {story.price:.2f}.\n",
        (f"{story.lost:,} later ones are gone", "bold yellow"),
        ": they were committed in memory only when the process was killed. A database here is as "
        "durable as its last flush: every 60 s unless set otherwise, when the program ends, and "
        "whenever you call force_flush().\n",
        (f"{decimal(again.bytes)} in {again.requests} request", "bold green"),
        f" was all that the second flush sent of {decimal(story.size)}: a flush costs what has "
        "changed.\n",
        (f"The price before, {story.first_price:.2f}, is still there", "bold green"),
        ": the first state was restored too. For a day any state is kept: buckethead log, "
        "buckethead restore --at '10 minutes ago' FILE\n",
        (f"integrity_check: {story.integrity_check}", "bold green" if sound else "bold red"),
    )


def _print_yours(page: Console) -> None:
    note = Text("Saved in ./buckethead-data, or in your bucket: see buckethead config show")
    code = Syntax(YOURS, "python", background_color="default")
    page.print(Panel(Group(code, note), title="yours, in three lines"))
