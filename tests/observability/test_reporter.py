"""The status reporter: one readable line a flush, no control codes, no secrets, no way to harm."""

import io
import re
import sys
import threading
from dataclasses import dataclass

import pytest
from rich.console import Console

from buckethead.errors import BucketUnavailableError
from buckethead.observability.reporter import RichStatusReporter, StatusReporter


@dataclass(frozen=True)
class Outcome:
    uploaded: bool = True
    bytes_written: int = 48_000
    pages: int = 12
    duration_s: float = 0.0312


class ClosedPipe(io.StringIO):
    attempts = 0

    def write(self, text: str) -> int:
        self.attempts += 1
        raise BrokenPipeError


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def reporter(out: io.StringIO) -> StatusReporter:
    return RichStatusReporter(Console(file=out))


def without_time(text: str) -> str:
    return re.sub(r"^\d\d:\d\d:\d\d ", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        (Outcome(), "app  saved 12 pages, 48.0 kB in 31 ms\n"),
        (Outcome(pages=1, bytes_written=4096), "app  saved 1 page, 4.1 kB in 31 ms\n"),
        (
            Outcome(pages=65_536, bytes_written=268_435_456, duration_s=2.04),
            "app  saved 65,536 pages, 268.4 MB in 2.0 s\n",
        ),
        (Outcome(uploaded=False, bytes_written=0, pages=0), ""),
    ],
)
def test_one_line_for_a_flush_that_wrote(
    reporter: StatusReporter, out: io.StringIO, outcome: Outcome, line: str
) -> None:
    reporter.flush_started("app")
    reporter.flush_finished("app", outcome)
    assert without_time(out.getvalue()) == line


def test_a_failure_says_what_to_do(reporter: StatusReporter, out: io.StringIO) -> None:
    message = "cannot reach s3://b: refused:\n" + "check the endpoint and try again " * 5
    reporter.flush_failed("app", BucketUnavailableError(message))
    (line,) = out.getvalue().splitlines()
    assert without_time(line) == (
        f"app  not saved, still in memory: BucketUnavailableError: {' '.join(message.split())}"
    )


def test_the_text_of_a_foreign_error_is_not_shown(
    reporter: StatusReporter, out: io.StringIO
) -> None:
    reporter.flush_failed("app", OSError("https://b.example/k?X-Amz-Signature=hush"))
    assert without_time(out.getvalue()) == "app  not saved, still in memory: OSError\n"


@pytest.mark.parametrize("name", ["a[red]b", "a:smile:b", "http://x", "日本"])
def test_names_mean_themselves(reporter: StatusReporter, out: io.StringIO, name: str) -> None:
    reporter.flush_finished(name, Outcome())
    assert without_time(out.getvalue()).startswith(f"{name}  saved")


def test_a_name_cannot_write_control_codes(reporter: StatusReporter, out: io.StringIO) -> None:
    reporter.flush_finished("a\x1b[2J\r\nb\x9b\ud800", Outcome())
    assert without_time(out.getvalue()).startswith("a?[2J b??  saved")


def test_colour_on_a_terminal_only() -> None:
    pipe, terminal = io.StringIO(), io.StringIO()
    RichStatusReporter(Console(file=pipe)).flush_finished("app", Outcome())
    console = Console(file=terminal, force_terminal=True, color_system="standard")
    RichStatusReporter(console).flush_finished("app", Outcome())
    assert "\x1b" not in pipe.getvalue()
    assert "\x1b[32msaved" in terminal.getvalue()


def test_stderr_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    RichStatusReporter().flush_finished("app", Outcome())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert without_time(captured.err) == "app  saved 12 pages, 48.0 kB in 31 ms\n"


def test_a_reader_who_left_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = ClosedPipe()
    monkeypatch.setattr(sys, "stderr", pipe)
    reporter = RichStatusReporter()
    reporter.flush_finished("app", Outcome())
    reporter.flush_finished("app", Outcome())
    assert pipe.attempts == 1


def test_lines_of_several_threads_stay_whole(reporter: StatusReporter, out: io.StringIO) -> None:
    def report(name: str) -> None:
        for _ in range(50):
            reporter.flush_finished(name, Outcome())

    threads = [threading.Thread(target=report, args=(f"volume-{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = without_time(out.getvalue()).splitlines()
    assert sorted(lines) == sorted(
        f"volume-{n}  saved 12 pages, 48.0 kB in 31 ms" for n in range(4) for _ in range(50)
    )
