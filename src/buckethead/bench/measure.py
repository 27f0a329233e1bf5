"""The instruments: a clock without garbage collections, resident memory, medians, results."""

import ctypes
import gc
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SAMPLE_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class Comparison:
    """One statement on every engine: the median µs of one operation, and for each engine the
    median of the rounds' ratios to memdb. None where an engine cannot do it."""

    name: str
    microseconds: dict[str, float | None]
    ratios: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Measure:
    """One number."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Flush:
    """Flushes of a database of ``size_mb`` of which ``changed`` rows had changed, each on a page of
    its own: the most ``pages``, bytes (``size``) and requests that one took, the median of their
    seconds, and of those of one PUT of as many bytes in between."""

    size_mb: float
    changed: int
    pages: int
    size: int
    requests: int
    seconds: float
    put_seconds: float


@dataclass(slots=True)
class Findings:
    """Measures, and what could not be measured and why."""

    measures: list[Measure] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, name: str, value: float, unit: str) -> None:
        """Note one number."""
        self.measures.append(Measure(name, value, unit))


@contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection within the block, and none due when it begins."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def seconds_of(action: Callable[[], object]) -> float:
    """How long a call takes."""
    with quiet():
        started = time.perf_counter()
        action()
        return time.perf_counter() - started


def median(values: list[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def interleaved(rounds: int, **actions: Callable[[], object]) -> dict[str, float]:
    """The median seconds of actions that take turns; a first round of each is dropped."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            took = seconds_of(action)
            if number:
                seconds[name].append(took)
    return {name: median(values) for name, values in seconds.items()}


def resident_bytes() -> int:
    """The memory of this process that is in RAM (Linux)."""
    pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    return pages * 4096


def can_measure_memory() -> bool:
    """Whether this system tells the resident memory the way Linux does."""
    return sys.platform == "linux"


def give_back_memory() -> None:
    """Return what is free to the system, so that it is counted when it is used again."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)


class PeakMemory:
    """The highest resident memory above the beginning of a block, by sampling every 2 ms."""

    def __enter__(self) -> "PeakMemory":
        give_back_memory()
        self._before = self._peak = resident_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, resident_bytes())

    @property
    def added(self) -> int:
        """Bytes above the beginning."""
        return self._peak - self._before
