"""Volumes in a directory bucket of the test's own, and child processes.

The current folder of every test that asks for one is empty, and must be empty when it ends: the
VFS leaves no file beside the bucket. Everything opened during a test is closed and unmounted.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

import buckethead
from buckethead.core import registry
from buckethead.image.vfs import DatabaseFile, file_of
from buckethead.uris import uri_of


class Volumes:
    """Mounts volumes by name in one directory bucket and opens plain APSW connections to them."""

    def __init__(self, folder: Path) -> None:
        self.bucket = folder / "bucket"

    def mount(self, name: str = "db") -> buckethead.Volume:
        config = buckethead.BucketConfig(
            bucket="b", key=f"{name}.db", endpoint_url=self.bucket.as_uri()
        )
        snapshot = buckethead.SnapshotConfig(interval_seconds=3600, keep_previous=False)
        return buckethead.mount(name, config, snapshot)

    def open(self, name: str = "db") -> apsw.Connection:
        """A connection as anyone would make it, to a volume that is mounted if need be."""
        self.mount(name)
        return apsw.Connection(uri_of(name))

    def remount(self, name: str = "db") -> apsw.Connection:
        """Publish, forget, and restore from the bucket."""
        buckethead.unmount(name)
        return self.open(name)

    def image(self, name: str = "db") -> Path:
        """The file of the bucket that holds the volume's image."""
        return self.bucket / f"{name}.db"


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder: empty now, and to be left so."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert os.listdir(folder) == [], "stray files"


@pytest.fixture
def volumes(tmp_path: Path, cwd: Path) -> Iterator[Volumes]:
    others = set(registry.volumes())
    connections = set(apsw.connections())
    yield Volumes(tmp_path)
    for connection in set(apsw.connections()) - connections:
        connection.close(True)
    for volume in set(registry.volumes()) - others:
        registry.unmount(volume)


@pytest.fixture
def served() -> Callable[..., DatabaseFile]:
    """The file of ours behind a schema of a connection."""

    def find(connection: apsw.Connection, schema: str = "main") -> DatabaseFile:
        file = file_of(connection, schema)
        assert file is not None
        return file

    return find


Child = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def child(tmp_path: Path) -> Child:
    """Runs Python code in a process without any configuration, in a folder of its own."""
    folder = tmp_path / "child"
    folder.mkdir()
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("BUCKETHEAD_", "R2_", "COVERAGE_"))
    }
    environment["HOME"] = str(tmp_path)

    def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", code, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run
