"""Tells a person, in one line each, how flushes went.

Reports come from the flusher's threads, so a report never ends the program, takes one write, and
shows the text of an error only where it is known to hold no secret.
"""

from datetime import datetime
from typing import Protocol

from rich.console import Console
from rich.filesize import decimal
from rich.text import Text

from buckethead.errors import BucketHeadError


class FlushOutcome(Protocol):
    """What a report says about a flush; FlushResult is one."""

    @property
    def uploaded(self) -> bool:
        """Whether anything was written."""

    @property
    def bytes_written(self) -> int:
        """Bytes sent to the bucket."""

    @property
    def pages(self) -> int:
        """Pages written."""

    @property
    def duration_s(self) -> float:
        """Seconds from the start to the last reply."""


class StatusReporter(Protocol):
    """Is told of every flush of a volume, by its name, from any thread."""

    def flush_started(self, name: str) -> None:
        """A flush of the volume begins."""

    def flush_finished(self, name: str, result: FlushOutcome) -> None:
        """The flush succeeded."""

    def flush_failed(self, name: str, error: BaseException) -> None:
        """The flush failed; its pages are still in memory."""


class RichStatusReporter:
    """A line on stderr, or ``console``, for every flush that wrote something or failed."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or _StderrConsole(stderr=True)

    def flush_started(self, name: str) -> None:
        """Prints nothing: one line per flush is enough, and the outcome is the one to read."""

    def flush_finished(self, name: str, result: FlushOutcome) -> None:
        """Prints pages, bytes and time; nothing for an unchanged database."""
        if not result.uploaded:
            return
        pages = f"{result.pages:,} page{'' if result.pages == 1 else 's'}"
        size, took = decimal(result.bytes_written), _duration(result.duration_s)
        self._say(name, Text(f"saved {pages}, {size} in {took}", style="green"))

    def flush_failed(self, name: str, error: BaseException) -> None:
        """Prints the kind of the error, and its text if it is one of buckethead's own."""
        reason = type(error).__name__
        if isinstance(error, BucketHeadError):
            reason += f": {_one_line(str(error))}"
        self._say(name, Text(f"not saved, still in memory: {reason}", style="bold red"))

    def _say(self, name: str, message: Text) -> None:
        time = Text(f"{datetime.now():%H:%M:%S} ", style="dim")
        line = Text.assemble(time, (_one_line(name), "bold"), "  ", message)
        # soft_wrap: a report in a pipe stays one line
        self._console.print(line, soft_wrap=True)


class _StderrConsole(Console):
    def on_broken_pipe(self) -> None:
        # rich would redirect stdout to nowhere and raise SystemExit in a flusher's thread
        self.quiet = True


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _one_line(text: str) -> str:
    """``text`` without line breaks and control characters, which could rewrite a terminal."""
    spaced = " ".join(text.split())
    return "".join(char if char.isprintable() else "?" for char in spaced)
