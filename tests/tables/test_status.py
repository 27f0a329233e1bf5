"""``bh_status`` in SQL: what it tells of volumes, followers and past states, and what it costs."""

import dataclasses
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from pydantic import SecretStr

import buckethead
from buckethead import BucketSQLite, Volume
from buckethead import follower as follower_module
from buckethead.config import BucketConfig, SnapshotConfig
from buckethead.core import registry
from buckethead.errors import BucketError, FencedError, StaleReadError, VolumeError
from buckethead.facts import NAMES
from buckethead.interfaces.kv import KV
from buckethead.uris import uri_of
from kv_tools import Clock, alone, mount
from volume_tools import (
    NEVER,
    Controlled,
    Outcome,
    control,
    directory,
    forget,
    full_disk,
    nothing_left_mounted,
    other_process,
    without_settings,
)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    without_settings(monkeypatch, tmp_path)
    with nothing_left_mounted():
        yield


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return buckethead.mount("app", directory(tmp_path), NEVER)


@pytest.fixture
def connection(volume: Volume) -> apsw.Connection:
    connection = apsw.Connection(uri_of(volume.name))
    connection.execute("CREATE TABLE t(a)")
    return connection


def told(connection: apsw.Connection, schema: str = "main") -> dict[str, Any]:
    return dict(connection.execute("SELECT name, value FROM bh_status(?)", (schema,)))


# ---- what it tells


def test_it_tells_what_the_status_of_the_volume_does(
    volume: Volume, connection: apsw.Connection
) -> None:
    volume.flush()
    connection.execute("INSERT INTO t VALUES (1)")
    found = told(connection)
    assert list(found)[: len(NAMES)] == list(NAMES)
    status = volume.status()
    for field in dataclasses.fields(status):
        if field.name not in ("io", "last_flush", "pins", "oldest_pin_version"):
            assert found[field.name] == getattr(status, field.name), field.name
    assert (found["name"], found["key"], found["branch"]) == ("app", "x.db", "main")
    assert (found["version"], found["durable_version"], found["txid"]) == (2, 1, 1)
    assert (found["dirty_pages"], found["size"]) == (2, 8192)
    assert status.last_flush is not None
    assert found["last_flush_bytes"] == status.last_flush.bytes_written
    assert found["last_flush_seconds"] == status.last_flush.duration_s
    assert 0 <= time.time() - found["durable_at"] - found["age_seconds"] < 60


def test_requests_are_told_by_kind_and_in_total(
    volume: Volume, connection: apsw.Connection
) -> None:
    before = told(connection)
    volume.checkpoint()
    found = told(connection)
    io = volume.bucket.counters.snapshot()
    kinds = {name.removeprefix("requests_") for name in found if name.startswith("requests_")}
    assert kinds == io.operations.keys()
    assert all(found[f"requests_{kind}"] == io.operations[kind].operations for kind in kinds)
    assert found["requests"] == io.requests > before["requests"]
    assert (found["bytes_up"], found["bytes_down"]) == (io.bytes_up, io.bytes_down)
    assert found["bytes_up"] > before["bytes_up"]
    assert found["image_txid"] == 1


def test_a_reader_that_holds_pages_is_told(volume: Volume, connection: apsw.Connection) -> None:
    # the statement that asks reads too
    assert (told(connection)["pins"], told(connection)["pinned_bytes"]) == (1, 0)
    reader = apsw.Connection(uri_of("app"))
    reader.execute("BEGIN; SELECT * FROM t")
    began = volume.image.version
    connection.execute("INSERT INTO t VALUES (1)")
    found = told(connection)
    assert (found["pins"], found["oldest_pin_version"]) == (2, began)
    assert found["pinned_bytes"] == 2 * found["page_size"]
    reader.execute("COMMIT")


def test_an_error_is_told_until_it_is_over(
    volume: Volume, connection: apsw.Connection, tmp_path: Path
) -> None:
    bucket = Controlled(tmp_path / "bucket")
    bucket.on_chunk = full_disk
    whole = volume.bucket
    control(volume, bucket)
    with pytest.raises(BucketError) as caught:
        volume.flush()
    assert told(connection)["last_error"] == str(caught.value)
    control(volume, whole)
    volume.flush()
    assert told(connection)["last_error"] is None


def test_no_secret_is_told(connection: apsw.Connection) -> None:
    nowhere = "http://127.0.0.1:1"
    config = BucketConfig(
        bucket="b",
        endpoint_url=nowhere,
        connect_timeout=0.1,
        access_key_id=SecretStr("an-id-of-mine"),
        secret_access_key=SecretStr("sesame"),
    )
    volume = registry.get("app")
    assert volume is not None
    control(volume, buckethead.BucketClient(config))
    with pytest.raises(BucketError):
        volume.flush()
    found = told(connection)
    assert nowhere in found["last_error"]
    assert not any(secret in str(found) for secret in ("an-id-of-mine", "sesame"))


def test_swept_keys_are_counted(connection: apsw.Connection, monkeypatch: Any) -> None:
    clock = Clock()
    clock.set_up(monkeypatch)
    kv = KV(connection)
    kv.set("a", "x", ttl=1)
    kv.set("b", "x", ttl=1)
    clock.now += 2
    assert told(connection)["swept_keys"] == 0
    kv.set("c", "x")
    assert told(connection)["swept_keys"] == 2


# ---- who may write


def test_the_state_says_who_may_write(
    tmp_path: Path, volume: Volume, connection: apsw.Connection
) -> None:
    assert told(connection)["state"] == "writing"
    volume.flush()
    with other_process(directory(tmp_path)) as (_, other):
        assert told(other)["state"] == "reading", "nothing is claimed yet"
        other.execute("INSERT INTO t VALUES (1)")
        assert told(other)["state"] == "writing"
    connection.execute("INSERT INTO t VALUES (2)")
    with pytest.raises(FencedError):
        volume.flush()
    found = told(connection)
    assert found["state"] == "fenced"
    assert "another writer" in found["last_error"]


def test_a_transaction_whose_fate_is_open(volume: Volume, connection: apsw.Connection) -> None:
    volume.refuse(volume._fate_open)
    assert told(connection)["state"] == "uncertain"


def test_a_volume_that_was_unmounted(connection: apsw.Connection) -> None:
    buckethead.unmount("app")
    assert told(connection)["state"] == "stopped"


def test_a_forked_child_says_so(volume: Volume, connection: apsw.Connection) -> None:
    volume.after_fork_in_child()
    assert told(connection)["state"] == "forked"


def test_a_follower(
    tmp_path: Path, volume: Volume, connection: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume.flush()
    forget(volume)
    snapshot = SnapshotConfig(max_staleness_seconds=7200.0)
    with BucketSQLite(directory(tmp_path), snapshot, read_only=True, follow=3600.0) as follower:
        found = told(follower.connection)
        assert (found["state"], found["txid"], found["key"]) == ("following", 1, "x.db")
        assert (found["dirty_pages"], found["last_flush_at"]) == (0, None)
        assert 0 <= found["stale_seconds"] < 60
        later = follower_module.clock() + 9000
        monkeypatch.setattr(follower_module, "clock", lambda: later)
        with pytest.raises(StaleReadError):
            told(follower.connection)
        outside = apsw.Connection(":memory:")
        monkeypatch.undo()
        outside.execute(f"ATTACH '{follower.uri}' AS volume")
        monkeypatch.setattr(follower_module, "clock", lambda: later)
        # reading main begins a transaction there, and nothing else does
        assert 8900 < told(outside, "volume")["stale_seconds"] < 9100
        outside.close()


def test_who_only_reads_and_does_not_follow(tmp_path: Path, volume: Volume) -> None:
    apsw.Connection(uri_of("app")).execute("CREATE TABLE t(a)")
    volume.flush()
    forget(volume)
    with BucketSQLite(directory(tmp_path), read_only=True) as reader:
        assert told(reader.connection)["state"] == "reading"


def test_a_past_state(volume: Volume, connection: apsw.Connection) -> None:
    volume.flush()
    first = volume.status()
    connection.execute("INSERT INTO t VALUES (1)")
    volume.checkpoint()
    past = apsw.Connection(uri_of("app", txid=1))
    found = told(past)
    assert (found["state"], found["txid"], found["key"]) == ("past", 1, "x.db")
    assert (found["durable_at"], found["size"]) == (first.durable_at, first.size)
    assert (found["dirty_pages"], found["stale_seconds"]) == (0, None)
    assert list(found)[: len(NAMES)] == list(NAMES)


def test_an_image_that_no_bucket_knows() -> None:
    with alone() as connection:
        connection.execute("CREATE TABLE t(a)")
        found = told(connection)
    assert (found["page_count"], found["size"], found["version"]) == (2, 8192, 1)
    assert (found["key"], found["txid"], found["state"]) == (None, None, None)


# ---- where it is, and what it costs


def test_an_attached_volume_is_named_by_its_schema(
    tmp_path: Path, connection: apsw.Connection
) -> None:
    other = mount(tmp_path)
    connection.execute(f"ATTACH '{other}' AS other")
    assert told(connection, "other")["name"] != told(connection)["name"] == "app"
    joined = """SELECT count(*) FROM bh_status AS a JOIN bh_status AS b USING (name)
        WHERE b.schema = 'other' AND a.schema = 'main' AND a.name = 'size'"""
    assert connection.execute(joined).get == 1
    each = """SELECT l.name, s.value FROM pragma_database_list AS l, bh_status(l.name) AS s
        WHERE s.name = 'name' AND l.name <> 'temp' ORDER BY l.seq"""
    assert [name for name, _ in connection.execute(each)] == ["main", "other"]


@pytest.mark.parametrize(("schema", "fault"), [("nosuch", "no such schema"), ("temp", "no volume")])
def test_what_is_no_volume_is_refused(connection: apsw.Connection, schema: str, fault: str) -> None:
    with pytest.raises(VolumeError, match=f"^Could not use bh_status of '{schema}'.*{fault}"):
        told(connection, schema)
    with pytest.raises(VolumeError, match="bh_status of 'main', which is no volume"):
        told(apsw.Connection(":memory:"))


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO bh_status VALUES ('txid', 7)",
        "UPDATE bh_status SET value = 7",
        "DELETE FROM bh_status",
    ],
)
def test_nobody_writes_to_it(connection: apsw.Connection, sql: str) -> None:
    with pytest.raises(apsw.SQLError, match="table bh_status may not be modified"):
        connection.execute(sql)


def test_it_asks_nothing_and_holds_nobody_up(volume: Volume, connection: apsw.Connection) -> None:
    writer = apsw.Connection(uri_of("app"))
    writer.execute("BEGIN IMMEDIATE; INSERT INTO t VALUES (1)")
    requests = volume.bucket.counters.requests
    with volume.flushing:
        assert Outcome(lambda: told(connection)).get()["requests"] == requests
    assert volume.bucket.counters.requests == requests
    writer.execute("COMMIT")
    assert told(connection)["version"] == 2


def test_it_keeps_no_connection_alive(volume: Volume) -> None:
    connection = apsw.Connection(uri_of(volume.name))
    told(connection)
    gone = weakref.ref(connection)
    del connection
    assert gone() is None
