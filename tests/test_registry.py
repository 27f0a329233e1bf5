"""Mounting: by code, by URI, by settings, by default; one key has one volume."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

import buckethead
from buckethead.config import BucketConfig, SnapshotConfig
from buckethead.core import registry
from buckethead.errors import (
    BucketDeniedError,
    ConfigError,
    ObjectNotFoundError,
    VolumeBusyError,
)
from buckethead.storage.contract import Bucket
from buckethead.storage.directory import open_bucket
from buckethead.storage.layout import Place
from buckethead.storage.restoring import Restored, restore
from buckethead.uris import uri_of
from buckethead.volume import Volume
from servers import Server, fresh_bucket
from volume_tools import (
    NEVER,
    Gate,
    Outcome,
    column,
    directory,
    nothing_left_mounted,
    plain_file,
    without_settings,
)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left_mounted():
        yield


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_settings(monkeypatch, tmp_path)


def opened(name: str, parameters: str = "") -> apsw.Connection:
    return apsw.Connection(f"file:{name}?vfs=buckethead{parameters}")


def mounted(name: str) -> Volume:
    volume = registry.get(name)
    assert volume is not None
    return volume


# ---- where a name leads


def test_a_name_alone_leads_to_the_default_directory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    conn = opened("app")
    conn.execute("CREATE TABLE t(a)")
    mounted("app").checkpoint()
    default = tmp_path / "buckethead-data"
    assert (default / "app.db").is_file()
    assert caplog.messages == [
        f"no bucket is configured: databases are kept in the new directory bucket {default}"
    ]
    other = opened("other")
    assert len(caplog.messages) == 1
    assert mounted("other").status().bucket == default.as_uri()
    conn.close()
    other.close()


def test_settings_come_before_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKETHEAD_BUCKET__NAME", "named")
    monkeypatch.setenv("BUCKETHEAD_BUCKET__ENDPOINT_URL", (tmp_path / "settings").as_uri())
    conn = opened("app")
    assert (mounted("app").config.bucket, mounted("app").key) == ("named", "app.db")
    assert mounted("app").bucket.url == (tmp_path / "settings").as_uri()
    assert not (tmp_path / "buckethead-data").exists()
    conn.close()


def test_parameters_come_before_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKETHEAD_BUCKET__NAME", "named")
    monkeypatch.setenv("BUCKETHEAD_BUCKET__ENDPOINT_URL", (tmp_path / "settings").as_uri())
    place = (tmp_path / "uri").as_uri()
    conn = opened("app", f"&bucket=uri&key=k/x.db&region=r&endpoint_url={place}")
    config = mounted("app").config
    assert (config.bucket, config.key, config.region) == ("uri", "k/x.db", "r")
    assert mounted("app").bucket.url == place
    conn.close()


def test_credentials_of_the_settings_go_with_a_uri(
    moto_endpoint: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUCKETHEAD_BUCKET__ACCESS_KEY_ID", "a-key")
    monkeypatch.setenv("BUCKETHEAD_BUCKET__SECRET_ACCESS_KEY", "a-secret")
    monkeypatch.setenv("BUCKETHEAD_BUCKET__NAME", "another")
    with fresh_bucket(moto_endpoint) as name:
        conn = opened("app", f"&bucket={name}&endpoint_url={moto_endpoint.endpoint_url}")
        conn.execute("CREATE TABLE t(a)")
        volume = mounted("app")
        assert volume.flush().uploaded
        assert volume.config.access_key_id is not None
        conn.close()
        for text in (repr(volume), repr(volume.bucket), repr(volume.config), str(volume.status())):
            assert "a-secret" not in text
            assert "a-key" not in text


def test_a_mount_in_code_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKETHEAD_BUCKET__NAME", "named")
    volume = buckethead.mount("app", directory(tmp_path), NEVER)
    conn = opened("app")
    assert mounted("app") is volume
    assert volume.key == "x.db"
    conn.close()


def test_mount_without_a_configuration_is_the_same_as_opening(tmp_path: Path) -> None:
    assert buckethead.mount("app").bucket.url == (tmp_path / "buckethead-data").as_uri()


def test_connections_by_one_name_share_a_volume_and_attach_finds_others(tmp_path: Path) -> None:
    one, two = opened("app"), opened("app")
    one.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
    assert column(two, "SELECT a FROM t") == [1]
    place = (tmp_path / "elsewhere").as_uri()
    two.execute(f"ATTACH 'file:other?vfs=buckethead&bucket=b&endpoint_url={place}' AS other")
    two.execute("CREATE TABLE other.u AS SELECT * FROM t")
    assert mounted("other").bucket.url == place
    one.close()
    two.close()
    assert [volume.name for volume in registry.volumes()] == ["app", "other"]


# ---- mode


def test_reading_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(BucketDeniedError, match="no such folder"):
        opened("app", "&mode=ro")
    assert not (tmp_path / "buckethead-data").exists()
    (tmp_path / "buckethead-data").mkdir()
    for mode in ("ro", "rw"):
        with pytest.raises(
            ObjectNotFoundError, match=r"no database 'app\.db' at file://.*mode=rwc to create"
        ):
            opened("app", f"&mode={mode}")
    assert registry.volumes() == []
    assert list((tmp_path / "buckethead-data").iterdir()) == []


def test_an_empty_volume_is_no_database_to_read() -> None:
    opened("app").close()
    with pytest.raises(ObjectNotFoundError, match="there is no database"):
        opened("app", "&mode=ro")


def test_read_only_joins_the_live_volume_and_cannot_write() -> None:
    writer = opened("app")
    writer.execute("CREATE TABLE t(a)")
    reader = opened("app", "&mode=ro")
    writer.execute("INSERT INTO t VALUES(1)")
    assert column(reader, "SELECT a FROM t") == [1]
    with pytest.raises(apsw.ReadOnlyError):
        reader.execute("INSERT INTO t VALUES(2)")
    reader.close()
    writer.close()


# ---- one key, one volume


def test_mounting_the_same_again_shares(tmp_path: Path) -> None:
    config = directory(tmp_path)
    volume = buckethead.mount("app", config, NEVER)
    assert buckethead.mount("app", config.model_copy()) is volume
    assert buckethead.mount("app", config, NEVER.model_copy()) is volume


def test_one_name_has_one_configuration(tmp_path: Path) -> None:
    buckethead.mount("app", directory(tmp_path), NEVER)
    said = r"'app': it is mounted already in this process, with another configuration \(key 'x\.db'"
    with pytest.raises(VolumeBusyError, match=said):
        buckethead.mount("app", directory(tmp_path, "y.db"))
    with pytest.raises(VolumeBusyError, match=said):
        buckethead.mount("app", directory(tmp_path), SnapshotConfig(interval_seconds=1))


def test_another_name_for_a_mounted_key_is_refused(tmp_path: Path) -> None:
    buckethead.mount("app", directory(tmp_path), NEVER)
    with pytest.raises(
        VolumeBusyError,
        match=r"'other': its key 'x\.db' is mounted as 'app'.*'file:app\?vfs=buckethead'.*unmount",
    ):
        buckethead.mount("other", directory(tmp_path))
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "bucket")
    with pytest.raises(VolumeBusyError, match="is mounted as 'app'"):
        opened("other", f"&bucket=b&key=x.db&endpoint_url={link.as_uri()}")
    assert registry.get("other") is None
    buckethead.unmount("app")
    assert buckethead.mount("other", directory(tmp_path)).name == "other"


def test_parameters_that_contradict_the_mount_are_refused(tmp_path: Path) -> None:
    buckethead.mount("app", directory(tmp_path), NEVER)
    with pytest.raises(
        ConfigError, match=r"'app' with another key: it is mounted with key 'x\.db' at file://"
    ):
        opened("app", "&key=y.db")
    opened("app", "&key=x.db&bucket=b").close()


def test_concurrent_mounts_from_threads_give_one_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    gate = Gate()

    def held(bucket: Bucket, place: Place, **more: Any) -> Restored | None:
        reads.append(place.key)
        gate()
        return restore(bucket, place, **more)

    monkeypatch.setattr("buckethead.registry.restore", held)
    config = directory(tmp_path)
    first = Outcome(lambda: buckethead.mount("app", config))
    gate.wait_until_reached()
    others = [Outcome(lambda: buckethead.mount("app", config)) for _ in range(4)]
    with pytest.raises(VolumeBusyError, match="is mounted as 'app'"):
        buckethead.mount("other", config)
    gate.open()
    assert {id(outcome.get()) for outcome in [first, *others]} == {id(mounted("app"))}
    assert reads == ["x.db"]


def test_a_slow_mount_holds_up_no_other_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()

    def held(config: BucketConfig, create: bool) -> object:
        if config.key == "slow.db":
            gate()
        return open_bucket(config, create=create)

    monkeypatch.setattr("buckethead.registry.open_bucket", held)
    slow = Outcome(lambda: buckethead.mount("slow", directory(tmp_path, "slow.db")))
    gate.wait_until_reached()
    assert registry.get("slow") is None
    assert buckethead.mount("fast", directory(tmp_path, "fast.db")).name == "fast"
    assert slow.running
    gate.open()
    slow.get()


def test_a_failed_mount_leaves_name_and_key_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("buckethead.registry.restore", interrupted)
        with pytest.raises(KeyboardInterrupt):
            buckethead.mount("app", directory(tmp_path))
    assert registry.get("app") is None
    assert buckethead.mount("other", directory(tmp_path)).name == "other"


# ---- unmounting


def test_unmounting_publishes_and_frees(tmp_path: Path) -> None:
    config = directory(tmp_path)
    buckethead.mount("app", config, NEVER)
    conn = opened("app")
    conn.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
    buckethead.unmount("app")
    assert registry.get("app") is None
    again = buckethead.mount("app", config, NEVER)
    fresh = opened("app")
    assert column(fresh, "SELECT a FROM t") == [1]
    fresh.execute("INSERT INTO t VALUES(2)")
    assert column(conn, "SELECT a FROM t") == [1], "the old connection has the old volume"
    assert again.changed
    conn.close()
    fresh.close()


def test_unmounting_what_is_not_mounted_is_refused() -> None:
    with pytest.raises(ConfigError, match="unmount 'none': no volume of that name"):
        buckethead.unmount("none")


def test_unmounting_twice_at_once_does_no_harm(tmp_path: Path) -> None:
    volume = buckethead.mount("app", directory(tmp_path), NEVER)
    registry.unmount(volume)
    again = buckethead.mount("app", directory(tmp_path), NEVER)
    registry.unmount(volume)
    assert registry.get("app") is again


# ---- by hand and by name


def test_a_file_put_there_by_hand_is_mounted_by_name(tmp_path: Path) -> None:
    (tmp_path / "buckethead-data").mkdir()
    path = tmp_path / "buckethead-data" / "app.db"
    plain_file(path, "PRAGMA journal_mode=WAL", "CREATE TABLE t(a)", "INSERT INTO t VALUES(1)")
    conn = opened("app")
    assert column(conn, "SELECT a FROM t") == [1]
    assert column(conn, "PRAGMA journal_mode") == ["memory"]
    conn.close()


@pytest.mark.parametrize("name", ["app", "a b/ü?#&%.db"])
def test_the_uri_of_a_name_leads_to_it(tmp_path: Path, name: str) -> None:
    volume = buckethead.mount(name, directory(tmp_path), NEVER)
    conn = apsw.Connection(uri_of(name))
    conn.execute("CREATE TABLE t(a)")
    assert volume.changed
    conn.close()


def test_opening_and_closing_many_leaves_neither_volumes_nor_threads(tmp_path: Path) -> None:
    threads = threading.active_count()
    for number in range(100):
        name = f"v{number}"
        buckethead.mount(name, directory(tmp_path, f"{name}.db"), NEVER)
        buckethead.unmount(name)
    assert registry.volumes() == []
    assert threading.active_count() <= threads + 1
