"""One publication at a time, one writer a key, and a last flush that nothing prevents: what happens
when flushes, unmounts, forks, signals and failing threads get in each other's way."""

import asyncio
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

import buckethead
from buckethead.config import BucketConfig
from buckethead.core import registry, scheduler
from buckethead.errors import VolumeBusyError, VolumeReadOnlyError
from buckethead.flusher import LastFlushes, rescue
from buckethead.storage.bucket import BucketClient
from buckethead.storage.snapshot import flush, restore
from buckethead.uris import uri_of
from buckethead.volume import Volume
from volume_tools import (
    NEVER,
    Controlled,
    Gate,
    Listener,
    directory,
    nothing,
    nothing_left_mounted,
    query,
)

COUNT = "SELECT count(*) FROM t"


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left_mounted():
        yield


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Controlled:
    monkeypatch.chdir(tmp_path)
    controlled = Controlled(tmp_path / "bucket", part_size=65536)
    monkeypatch.setattr("buckethead.registry.open_bucket", lambda config, create: controlled)
    return controlled


@pytest.fixture
def volume(tmp_path: Path, bucket: Controlled) -> Volume:
    return buckethead.mount("app", directory(tmp_path), NEVER)


@pytest.fixture
def conn(volume: Volume) -> Iterator[apsw.Connection]:
    connection = apsw.Connection(uri_of(volume.name))
    connection.execute("CREATE TABLE t(a)")
    yield connection
    connection.close()


def add(conn: apsw.Connection) -> None:
    conn.execute("INSERT INTO t VALUES(1)")


def test_a_flush_within_a_flush_is_refused(
    volume: Volume, bucket: Controlled, conn: apsw.Connection
) -> None:
    refused: list[VolumeBusyError] = []

    def nested() -> None:
        bucket.on_chunk = nothing
        add(conn)
        with pytest.raises(VolumeBusyError, match="this very thread") as caught:
            volume.flush()
        refused.append(caught.value)

    bucket.on_chunk = nested
    volume.flush()
    assert refused
    assert volume.changed, "what was committed meanwhile is still to be published"
    volume.flush()
    assert query(bucket, volume.key, COUNT) == [(1,)]


def test_the_pure_function_waits_for_the_volume_s_own_flush(
    volume: Volume, bucket: Controlled, conn: apsw.Connection
) -> None:
    bucket.on_chunk = gate = Gate()
    first = threading.Thread(target=volume.flush)
    first.start()
    gate.wait_until_reached()
    add(conn)
    second = threading.Thread(
        target=flush, args=(conn, bucket, volume.key), kwargs={"keep_previous": True}
    )
    second.start()
    gate.open()
    first.join()
    second.join()
    assert query(bucket, volume.key, COUNT) == [(1,)]


def test_unmounting_again_does_nothing(volume: Volume, conn: apsw.Connection) -> None:
    registry.unmount(volume)
    again = buckethead.mount("app", volume.config, NEVER)
    registry.unmount(volume)
    assert registry.get("app") is again


def test_a_key_and_where_its_previous_image_goes_belong_to_one_volume(
    tmp_path: Path, volume: Volume
) -> None:
    with pytest.raises(VolumeBusyError, match="mounted as 'app'"):
        buckethead.mount("other", directory(tmp_path, "x.db.prev"), NEVER)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://h", "http://H:80/"),
        ("https://h", "https://h:443"),
        ("https://s3.amazonaws.com", None),
    ],
)
def test_spellings_of_an_endpoint_are_one_place(one: str, other: str | None) -> None:
    clients = [BucketClient(BucketConfig(bucket="b", endpoint_url=url)) for url in (one, other)]
    assert clients[0].identity == clients[1].identity
    assert clients[0].identity != BucketClient(BucketConfig(bucket="c")).identity


def test_restore_respects_who_may_not_write(volume: Volume, conn: apsw.Connection) -> None:
    volume.flush()
    add(conn)
    reader = apsw.Connection(uri_of("app") + "&mode=ro")
    with pytest.raises(VolumeReadOnlyError, match="the connection is read-only"):
        restore(reader, volume.bucket, volume.key)
    reader.close()
    volume.refusal = lambda: VolumeReadOnlyError("not here")
    with pytest.raises(VolumeReadOnlyError, match="not here"):
        restore(conn, volume.bucket, volume.key)
    volume.refusal = None
    assert conn.execute(COUNT).get == 1


def test_an_observer_that_is_cancelled_harms_nobody(volume: Volume, conn: apsw.Connection) -> None:
    class Cancelled(Listener):
        def flush_started(self, name: str) -> None:
            raise asyncio.CancelledError

    volume.observers.append(Cancelled())
    assert volume.flush().uploaded


def test_ctrl_c_in_the_last_flush_still_saves_the_data(
    volume: Volume, bucket: Controlled, conn: apsw.Connection, tmp_path: Path
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    bucket.on_chunk = interrupt
    LastFlushes([volume]).run(scheduler.hurry)
    assert len(list(tmp_path.glob("buckethead-rescue-app-*.db"))) == 1
    bucket.on_chunk = nothing


def test_a_rescue_without_a_current_folder_goes_to_the_temporary_one(
    volume: Volume,
    conn: apsw.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    rescue(volume, OSError("away"))
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1
    assert "saved to" in capsys.readouterr().err


def child(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_fork_while_a_directory_is_locked_keeps_it_locked_for_nobody(tmp_path: Path) -> None:
    code = """
import fcntl, os, signal
from buckethead import DirectoryBucket
bucket = DirectoryBucket("b")
with bucket._locked():
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        signal.pause()
with open("b/.buckethead/lock") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
print("free")
"""
    assert child(code, tmp_path) == "free\n"


def test_a_forked_worker_of_multiprocessing_flushes_what_it_mounted(tmp_path: Path) -> None:
    code = """
import multiprocessing, apsw, buckethead
buckethead.mount("parent")
def work():
    connection = apsw.Connection("file:own?vfs=buckethead")
    connection.execute("CREATE TABLE t(a); INSERT INTO t VALUES(7)")
process = multiprocessing.get_context("fork").Process(target=work)
process.start()
process.join()
print(process.exitcode, apsw.Connection("file:own?vfs=buckethead").execute("SELECT a FROM t").get)
"""
    assert child(code, tmp_path) == "0 7\n"
