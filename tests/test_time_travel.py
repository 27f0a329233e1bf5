"""Past states: opened by TXID or moment, read beside the present, changed by nobody."""

import gc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import apsw
import pytest

from buckethead.config import BucketConfig
from buckethead.core import registry
from buckethead.errors import (
    BucketDeniedError,
    ConfigError,
    HistoryError,
    VolumeReadOnlyError,
)
from buckethead.moments import parse_moment
from buckethead.storage.history import look, read_header
from buckethead.storage.layout import Place
from buckethead.uris import uri_of
from buckethead.volume import Volume
from volume_tools import (
    NEVER,
    Gate,
    Outcome,
    column,
    directory,
    forget,
    nothing_left_mounted,
    without_settings,
)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    without_settings(monkeypatch, tmp_path)
    with nothing_left_mounted():
        yield


@pytest.fixture
def config(tmp_path: Path) -> BucketConfig:
    return directory(tmp_path)


@pytest.fixture
def volume(config: BucketConfig) -> Volume:
    """The database t(a) with TXIDs 1 to 5, each with one row more."""
    return filled(registry.mount("app", config, NEVER))


def filled(volume: Volume) -> Volume:
    writer = apsw.Connection(uri_of(volume.name))
    writer.execute("CREATE TABLE t(a)")
    for value in range(1, 6):
        writer.execute("INSERT INTO t VALUES(?)", (value,))
        assert volume.flush().txid == value
    writer.close()
    return volume


def opened(name: str = "app", **parameters: object) -> apsw.Connection:
    return apsw.Connection(uri_of(name, **parameters))


def kept() -> list[object]:
    """The past states in memory, but for those that only an old traceback still holds."""
    gc.collect()
    return list(registry._pasts)


def rows(connection: apsw.Connection, table: str = "t") -> list[int]:
    return column(connection, f"SELECT a FROM {table} ORDER BY a")


def place_of(config: BucketConfig) -> dict[str, Any]:
    return {"bucket": "b", "key": config.key, "endpoint_url": config.endpoint_url}


# ---- what is there


def test_every_state_can_be_opened(volume: Volume) -> None:
    for txid in range(1, 6):
        assert rows(opened(txid=txid)) == list(range(1, txid + 1))


def test_a_past_state_stays_as_it_is(volume: Volume) -> None:
    past, present = opened(txid=5), opened()
    present.execute("DELETE FROM t; VACUUM")
    volume.flush()
    assert (rows(past), rows(present)) == ([1, 2, 3, 4, 5], [])


def test_past_and_present_in_one_statement(volume: Volume) -> None:
    present = opened()
    present.execute(f"ATTACH '{uri_of('app', txid=3)}' AS old")
    present.execute(f"ATTACH '{uri_of('app', txid=1)}' AS oldest")
    added = "SELECT a FROM main.t EXCEPT SELECT a FROM old.t ORDER BY a"
    assert column(present, added) == [4, 5]
    assert rows(present, "oldest.t") == [1]
    present.execute("INSERT INTO t SELECT a + 10 FROM old.t")
    assert rows(present) == [1, 2, 3, 4, 5, 11, 12, 13]
    with pytest.raises(VolumeReadOnlyError):
        present.execute("INSERT INTO old.t VALUES(1)")
    present.execute("DETACH old; DETACH oldest")
    assert kept() == []


def test_without_a_mount_it_lives_where_its_name_does(
    config: BucketConfig, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(volume)
    before = sorted(volume.bucket.list_keys(""))
    assert rows(opened("any", txid=2, **place_of(config))) == [1, 2]
    monkeypatch.setenv("BUCKETHEAD_BUCKET__NAME", "b")
    monkeypatch.setenv("BUCKETHEAD_BUCKET__ENDPOINT_URL", str(config.endpoint_url))
    assert rows(opened("x", txid=4)) == [1, 2, 3, 4]
    assert registry.get("any") is registry.get("x") is None, "the present is not mounted"
    assert sorted(volume.bucket.list_keys("")) == before, "nothing was claimed"


def test_in_every_store(bucket_config: BucketConfig) -> None:
    volume = filled(registry.mount("app", bucket_config, NEVER))
    volume.checkpoint()
    assert rows(opened(txid=2)) == [1, 2]
    assert rows(opened(at="0 seconds ago")) == [1, 2, 3, 4, 5]


def test_a_name_that_is_followed_has_a_past_too(volume: Volume, config: BucketConfig) -> None:
    reader = opened("reader", mode="ro", follow=3600, **place_of(config))
    assert rows(opened("reader", txid=2)) == [1, 2]
    assert rows(reader) == [1, 2, 3, 4, 5]


# ---- nobody changes it


def test_writing_names_the_past_state(volume: Volume) -> None:
    past = opened(txid=3)
    with pytest.raises(VolumeReadOnlyError, match=r"'app' at TXID 3: .*published 20.*T"):
        past.execute("INSERT INTO t VALUES(9)")
    with pytest.raises(VolumeReadOnlyError):
        past.execute("BEGIN IMMEDIATE")
    with pytest.raises(apsw.ReadOnlyError):
        opened(txid=3, mode="ro").execute("DELETE FROM t")
    assert rows(past) == [1, 2, 3]
    assert not volume.changed


# ---- one image, as long as it is open


def test_one_image_for_all_who_open_the_same_state(volume: Volume) -> None:
    assert kept() == []
    first = opened(txid=3)
    image = next(iter(registry._pasts.values())).image
    requests = volume.bucket.counters.snapshot().requests
    second = opened(txid=3)
    assert volume.bucket.counters.snapshot().requests == requests
    assert [past.image for past in registry._pasts.values()] == [image]
    first.close()
    assert rows(second) == [1, 2, 3]
    second.close()
    assert kept() == []
    assert list(registry._gates) == []


def test_a_moment_and_its_txid_are_one_state(volume: Volume) -> None:
    newest, by_moment = opened(txid=5), opened(at="0 seconds ago")
    assert len(kept()) == 1
    assert rows(newest) == rows(by_moment)


def test_two_threads_that_open_one_state_restore_it_once(
    volume: Volume, config: BucketConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(volume)
    place = place_of(config)
    restored: list[int] = []
    gate = Gate()
    really = registry.open.__globals__["past_state"]

    def held(name: str, bucket: object, place: object, txid: int, how: object) -> object:
        restored.append(txid)
        gate()
        return really(name, bucket, place, txid, how)

    monkeypatch.setattr("buckethead.registry.past_state", held)
    first = Outcome(lambda: opened(txid=2, **place))
    gate.wait_until_reached()
    second = Outcome(lambda: opened(txid=2, **place))
    # meanwhile the present is mounted as if nothing were going on
    present = opened(**place)
    present.execute("INSERT INTO t VALUES(6)")
    gate.open()
    assert rows(first.get()) == rows(second.get()) == [1, 2]
    assert restored == [2]


# ---- which state a moment is


def published(volume: Volume) -> list[float]:
    """When each TXID was published, in unix seconds."""
    timeline = look(volume.bucket, Place(volume.key))
    return [read_header(volume.bucket, timeline, txid).timestamp / 1000 for txid in range(1, 6)]


def test_the_state_at_a_moment(volume: Volume) -> None:
    moments = published(volume)
    for txid, moment in enumerate(moments, 1):
        exact = datetime.fromtimestamp(moment, UTC)
        assert rows(opened(at=exact.isoformat())) == list(range(1, txid + 1))
        # TXIDs are at least 1 ms apart
        before = (exact - timedelta(microseconds=500)).isoformat()
        if txid > 1:
            assert rows(opened(at=before)) == list(range(1, txid))
    assert rows(opened(at=f"{moments[-1] + 1000:.3f}")) == [1, 2, 3, 4, 5]


def test_a_moment_before_the_database_existed(volume: Volume) -> None:
    with pytest.raises(HistoryError, match=r"state of 'x.db' at .*TXID 1"):
        opened(at="1 hour ago")


NOW = 1_772_366_400.0  # 2026-03-01T12:00:00Z


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10 minutes ago", NOW - 600),
        ("1 second ago", NOW - 1),
        ("90s ago", NOW - 90),
        ("5 sec ago", NOW - 5),
        ("2 mins ago", NOW - 120),
        ("3 m ago", NOW - 180),
        ("1.5 hours ago", NOW - 5400),
        ("1 hr ago", NOW - 3600),
        ("2 Days Ago", NOW - 172_800),
        ("  1 week ago ", NOW - 604_800),
        ("2026-03-01T12:00:00Z", NOW),
        ("2026-03-01t13:00:00+01:00", NOW),
        ("2026-03-01 12:00Z", NOW),
        ("20260301T120000Z", NOW),
        ("1772366400", NOW),
        ("1772366400.25", NOW + 0.25),
        ("2026-03-01", datetime(2026, 3, 1).timestamp()),
        ("20260301", datetime(2026, 3, 1).timestamp()),
        ("2026-03-01T12:30", datetime(2026, 3, 1, 12, 30).timestamp()),
    ],
)
def test_moments_as_people_write_them(text: str, expected: float) -> None:
    assert parse_moment(text, NOW) == expected


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "10 minutes", "ago", "5 fortnights ago", "-5 minutes ago", "1 s s ago",
     "12", "nan", "inf", "1e9", "2026-13-01", "0001-01-01", "٣ days ago x", "5 ss ago"],
)  # fmt: skip
def test_moments_that_nobody_can_tell(text: str) -> None:
    with pytest.raises(ConfigError, match="10 minutes ago"):
        parse_moment(text, NOW)


# ---- what cannot be opened


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("txid=3&at=2026-01-01", "both say which past state is meant"),
        ("txid=3&mode=rw", "txid is a past state, which nobody can write to. Use mode=ro"),
        ("at=2026-01-01&mode=rwc", "at is a past state"),
        ("txid=0", "txid='0' is no number of a state"),
        ("txid=-1", "txid='-1' is no number"),
        ("txid=x", "txid='x' is no number"),
        ("txid=", "txid='' is no number"),
        ("txid=99999999999999999999", "is no number"),
        ("at=soon", "which moment 'soon' is"),
        ("txid=3&key=other.db", "another key"),
        ("txid=3&max_staleness=3", "nothing to follow"),
    ],
)
def test_parameters_that_cannot_be_meant(volume: Volume, parameters: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apsw.Connection(f"file:app?vfs=buckethead&{parameters}")


def test_a_state_that_does_not_exist_yet(volume: Volume) -> None:
    with pytest.raises(HistoryError, match=r"TXID 6 of 'x.db'.*TXID.* 5"):
        opened(txid=6)
    assert kept() == []


def test_a_state_that_is_not_kept_any_more(volume: Volume) -> None:
    volume.checkpoint()
    volume.bucket.delete_many(Place(volume.key).delta(txid) for txid in range(1, 5))
    assert rows(opened()) == [1, 2, 3, 4, 5]
    with pytest.raises(HistoryError, match="TXID 2"):
        opened(txid=2)


def test_a_database_without_a_history(config: BucketConfig) -> None:
    registry.mount("app", config, NEVER)
    for parameters in ({"txid": 1}, {"at": "1 second ago"}):
        with pytest.raises(HistoryError, match=r"past state of 'x.db'.*no history of it"):
            opened(**parameters)


def test_a_bucket_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(BucketDeniedError):
        opened("any", txid=1, bucket="b", endpoint_url=nowhere.as_uri())
    assert not nowhere.exists()


def test_a_damaged_delta_is_named_and_what_is_before_it_opens(volume: Volume) -> None:
    volume.bucket.put_bytes(b"damaged", Place(volume.key).delta(3))
    assert rows(opened(txid=2)) == [1, 2]
    with pytest.raises(HistoryError, match="TXID 3"):
        opened(txid=4)


def test_moments_in_a_uri_are_quoted_as_any_parameter(volume: Volume) -> None:
    text = quote("0 seconds ago")
    assert rows(apsw.Connection(f"file:app?vfs=buckethead&at={text}")) == [1, 2, 3, 4, 5]
