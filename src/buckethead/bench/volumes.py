"""Many volumes at once: threads, and memory beyond their pages.

Measured before anything else in a process, because memory that others have freed would hide it.
"""

import threading
import time
from pathlib import Path

import apsw

from ..config import BucketConfig, SnapshotConfig
from ..core import registry
from ..uris import uri_of
from .ending import let_go
from .measure import Findings, can_measure_memory, give_back_memory, resident_bytes

WARM_UP = 3
MEMORY = "many volumes: memory of each beyond its pages"
THREADS = "many volumes: threads started for all of them"
EACH = "many volumes: open, write, and close one with its image"


def open_and_close(folder: Path, count: int, findings: Findings) -> None:
    """Mount ``count`` volumes, write a row into each by a connection of its own, keep all open,
    then let them all go."""
    bucket = (folder / "volumes").as_uri()
    try:
        _measure(bucket, count, findings)
    finally:  # after Ctrl-C: nothing of them is to be saved at exit
        for volume in registry.volumes():
            if volume.config.endpoint_url == bucket:
                let_go(volume)


def _measure(bucket: str, count: int, findings: Findings) -> None:
    _close(_open(bucket, "warm-up", WARM_UP))
    threads = threading.active_count()
    if can_measure_memory():
        give_back_memory()
        before = resident_bytes()
    started = time.perf_counter()
    connections = _open(bucket, "many", count)
    if can_measure_memory():
        pages = sum(volume.image.size for volume in registry.volumes())
        beyond = (resident_bytes() - before - pages) / count
        findings.add(MEMORY, beyond / 1000, "kB")
    else:
        findings.left_out.append("memory of many volumes: only Linux tells it")
    more = threading.active_count() - threads
    findings.add(THREADS, more, "threads")
    _close(connections)
    each = (time.perf_counter() - started) / count
    findings.add(EACH, each * 1000, "ms")


def _open(bucket: str, prefix: str, count: int) -> list[apsw.Connection]:
    connections = []
    for number in range(count):
        name = f"{prefix}-{number}"
        registry.mount(
            name,
            BucketConfig(bucket="bench", key=name, endpoint_url=bucket),
            SnapshotConfig(interval_seconds=86_400.0, keep_previous=False),
        )
        connection = apsw.Connection(uri_of(name))
        connection.execute("CREATE TABLE t(x)")
        connection.execute("INSERT INTO t VALUES (1)")
        connections.append(connection)
    return connections


def _close(connections: list[apsw.Connection]) -> None:
    for connection in connections:
        volume = registry.get(connection.filename)
        assert volume is not None
        connection.close()
        registry.unmount(volume)
