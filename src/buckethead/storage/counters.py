"""What a bucket was asked: operations, bytes and seconds, by the name of the operation."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OperationCount:
    """What one kind of operation cost so far; seconds add up over parallel requests."""

    operations: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class IOSnapshot:
    """The counts of one moment: totals, and by operation name."""

    requests: int
    bytes_up: int
    bytes_down: int
    seconds: float
    operations: Mapping[str, OperationCount]


@dataclass(slots=True)
class Traffic:
    """The bytes one running operation has moved."""

    up: int = 0
    down: int = 0


class IOCounters:
    """Operations, bytes and seconds by operation name, for any number of threads.

    A failed operation counts; the tries boto3 makes within one are one.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant for finalizers
        self._operations: dict[str, OperationCount] = {}  # guarded by _lock

    @contextmanager
    def timed(self, operation: str) -> Iterator[Traffic]:
        """Count the block as one operation, with the bytes it enters into the `Traffic`."""
        traffic = Traffic()
        begun = time.perf_counter()
        try:
            yield traffic
        finally:
            seconds = time.perf_counter() - begun
            with self._lock:
                count = self._operations.get(operation, OperationCount())
                self._operations[operation] = OperationCount(
                    count.operations + 1,
                    count.bytes_up + traffic.up,
                    count.bytes_down + traffic.down,
                    count.seconds + seconds,
                )

    @property
    def requests(self) -> int:
        """All operations so far."""
        return self.snapshot().requests

    def snapshot(self) -> IOSnapshot:
        """The counts of this moment."""
        with self._lock:
            operations = dict(sorted(self._operations.items()))
        counts = operations.values()
        return IOSnapshot(
            requests=sum(count.operations for count in counts),
            bytes_up=sum(count.bytes_up for count in counts),
            bytes_down=sum(count.bytes_down for count in counts),
            seconds=sum(count.seconds for count in counts),
            operations=operations,
        )

    def after_fork_in_child(self) -> None:
        """os.fork() copied the lock as it was; whoever held it does not exist in this process."""
        self._lock = threading.RLock()
