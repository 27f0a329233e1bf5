"""Branches as keys, in every kind of store: what is made, what is left, what a reader finds."""

from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from buckethead.config import BucketConfig
from buckethead.core import registry, unmount
from buckethead.errors import (
    BranchExistsError,
    BranchNotFoundError,
    HistoryError,
    InvalidBranchNameError,
)
from buckethead.storage import branches, ltx
from buckethead.storage.branches import BranchInfo
from buckethead.storage.contract import Bucket
from buckethead.storage.history import TOMBSTONE, look, read_header
from buckethead.storage.layout import Place, branch_of, checked_branch
from buckethead.storage.restoring import restore
from buckethead.uris import uri_of
from buckethead.volume import Volume
from volume_tools import NEVER, nothing_left_mounted

KEY = "app.db"


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    with nothing_left_mounted():
        yield


@pytest.fixture
def volume(bucket_config: BucketConfig) -> Volume:
    return registry.mount("app", bucket_config.model_copy(update={"key": KEY}), NEVER)


@pytest.fixture
def write(volume: Volume) -> Callable[[str], None]:
    connection = apsw.Connection(uri_of("app"))
    connection.execute("CREATE TABLE t(x)")

    def write(value: str) -> None:
        connection.execute("INSERT INTO t VALUES (?)", (value,))
        volume.flush()

    return write


def content(bucket: Bucket, branch: str) -> list[str]:
    restored = restore(bucket, Place(KEY, branch))
    assert restored is not None
    connection = apsw.Connection(":memory:")
    connection.deserialize("main", b"".join(restored.image.pages))
    return [row[0] for row in connection.execute("SELECT x FROM t ORDER BY rowid")]


def make(bucket: Bucket, name: str, source: str = "main") -> None:
    branches.create(bucket, branches.source(bucket, Place(KEY, source)), name)


def test_a_life(volume: Volume, write: Callable[[str], None]) -> None:
    """Made with an image and without, from main and from a branch, deleted and made again."""
    bucket = volume.bucket
    write("1")
    make(bucket, "early")
    volume.checkpoint()
    write("2")
    write("3")
    make(bucket, "late")
    make(bucket, "of-early", "early")
    assert content(bucket, "early") == content(bucket, "of-early") == ["1"]
    assert content(bucket, "late") == ["1", "2", "3"]
    assert [(b.name, b.txid) for b in branches.find(bucket, KEY)] == [
        *(("early", 2), ("late", 4), ("main", 3), ("of-early", 3)),
    ]
    branches.delete(bucket, KEY, "late")
    write("4")
    make(bucket, "late")
    assert content(bucket, "late") == ["1", "2", "3", "4"]
    assert branches.names(bucket, KEY) == ["early", "late", "main", "of-early"]
    unmount("app")
    assert content(bucket, "main") == ["1", "2", "3", "4"]


def test_states_before_it_was_made_are_kept_too(
    volume: Volume, write: Callable[[str], None]
) -> None:
    bucket = volume.bucket
    for value in "123":
        write(value)
    make(bucket, "x")
    past = restore(bucket, Place(KEY, "x"), lambda timeline: 2)
    assert past is not None
    main = restore(bucket, Place(KEY), lambda timeline: 2)
    assert main is not None
    assert past.image.pages == main.image.pages


def test_what_is_left_of_a_deleted_branch(volume: Volume, write: Callable[[str], None]) -> None:
    bucket, place = volume.bucket, Place(KEY, "x")
    write("1")
    volume.checkpoint()
    make(bucket, "x")
    branches.delete(bucket, KEY, "x")
    timeline = look(bucket, place)
    assert sorted(bucket.list_keys(f"{KEY}.ltx/x/")) == [
        *(place.delta(2), place.delta(3), place.making(0, 1)),
    ]
    assert {entry.size for entry in timeline.deltas.values()} == {ltx.EMPTY_SIZE}
    assert read_header(bucket, timeline, 3).node_id == TOMBSTONE
    assert list(bucket.list_keys(f"{KEY}.branch.")) == []
    assert restore(bucket, place) is None
    assert [branch.name for branch in branches.find(bucket, KEY)] == ["main"]


def test_half_a_branch_is_none(
    volume: Volume, write: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, place = volume.bucket, Place(KEY, "x")
    for value in "123":
        write(value)
    volume.checkpoint()
    make(bucket, "x")
    for key in (place.image, place.delta(1)):
        bucket.delete(key)
    assert restore(bucket, place) is None
    assert [branch.name for branch in branches.find(bucket, KEY)] == ["main"]
    with pytest.raises(BranchExistsError, match="it is just being made"):
        make(bucket, "x")
    with pytest.raises(BranchNotFoundError, match="making was not finished"):
        branches.delete(bucket, KEY, "x")
    assert bucket.exists(place.delta(2)), "somebody may still be at it"
    monkeypatch.setattr(branches, "MAKING_SECONDS", 0.0)
    with pytest.raises(BranchNotFoundError):
        branches.delete(bucket, KEY, "x")
    assert not bucket.exists(place.delta(2))
    make(bucket, "x")
    assert content(bucket, "x") == ["1", "2", "3"]


def test_a_lost_delta_of_a_branch_is_named(volume: Volume, write: Callable[[str], None]) -> None:
    bucket = volume.bucket
    for value in "123":
        write(value)
    make(bucket, "x")
    bucket.delete(Place(KEY, "x").delta(3))
    with pytest.raises(HistoryError, match=r"ltx/x/0000/0+3-0+3\.ltx"):
        restore(bucket, Place(KEY, "x"))


def test_old_images_of_branches_are_found(volume: Volume, write: Callable[[str], None]) -> None:
    bucket = volume.bucket
    write("1")
    volume.checkpoint()
    data = bucket.get_bytes(KEY)
    bucket.put_bytes(data, f"{KEY}.branch.old")
    bucket.put_bytes(data, f"{KEY}.branch.old.prev")
    bucket.put_bytes(b"", f"{KEY}.branch.no name")
    bucket.put_bytes(b"", f"{KEY}.ltx/probe.txt")
    found = branches.find(bucket, KEY)
    assert [branch.name for branch in found] == ["main", "old"]
    assert found[1].txid == 0
    assert isinstance(found[1], BranchInfo)
    branches.delete(bucket, KEY, "old")
    assert list(bucket.list_keys(f"{KEY}.branch.old")) == []
    make(bucket, "old")
    assert content(bucket, "old") == ["1"]


@pytest.mark.parametrize(
    ("key", "branch"),
    [
        ("app.db", "main"),
        ("app.db.prev", "main"),
        ("app.db.branch.x", "x"),
        ("app.db.branch.x.prev", "x"),
        ("app.db.ltx/x/0000/1-1.ltx", "x"),
        ("app.db.ltx/main/anything", "main"),
        ("app.db.ltx/probe.txt", None),
        ("app.db.branch.", None),
        ("app.db.branch.a b", None),
        ("app.db.branch.x.prev.prev", None),
        ("app.db.ltx//x", None),
        ("app.dbx", None),
        ("files/abc", None),
        (f"app.db.branch.{'x' * 129}", None),
    ],
)
def test_to_which_branch_an_object_belongs(key: str, branch: str | None) -> None:
    assert branch_of(KEY, key) == branch


def test_the_longest_name(tmp_path: Path) -> None:
    assert checked_branch("x" * 128) == "x" * 128
    with pytest.raises(InvalidBranchNameError) as caught:
        checked_branch("secret" * 100)
    assert len(str(caught.value)) < 200
