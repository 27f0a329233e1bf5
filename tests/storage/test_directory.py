"""What is particular to the directory bucket: files, modes, links, full disks, other programs."""

import errno
import json
import multiprocessing
import os
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buckethead.config import BucketConfig
from buckethead.errors import (
    BucketDeniedError,
    BucketError,
    ConfigError,
    PreconditionFailedError,
)
from buckethead.storage.directory import DirectoryBucket, open_bucket
from buckethead.storage.localfiles import STALE_SECONDS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "bucket"


@pytest.fixture
def bucket(root: Path) -> DirectoryBucket:
    return DirectoryBucket(root, part_size=65536)


def temporary_files(root: Path) -> list[Path]:
    folder = root / ".buckethead" / "tmp"
    return list(folder.iterdir()) if folder.exists() else []


def sidecars(root: Path) -> list[Path]:
    folder = root / ".buckethead" / "meta"
    return list(folder.rglob("*.json")) if folder.exists() else []


# ---- opening


def test_the_folder_is_made_or_asked_for(root: Path) -> None:
    with pytest.raises(BucketDeniedError, match="no such folder"):
        DirectoryBucket(root, create=False)
    assert not root.exists()
    DirectoryBucket(root)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert list(root.iterdir()) == []
    DirectoryBucket(root, create=False)


def test_a_file_is_no_bucket(root: Path) -> None:
    root.write_bytes(b"")
    with pytest.raises(ConfigError, match="a file stands where a folder is needed"):
        DirectoryBucket(root)
    with pytest.raises(BucketDeniedError, match="no such folder"):
        DirectoryBucket(root, create=False)


def test_open_bucket_reads_file_urls(tmp_path: Path) -> None:
    odd = tmp_path / "with space%"
    config = BucketConfig(bucket="x", endpoint_url=odd.as_uri(), concurrency=3)
    bucket = open_bucket(config)
    assert odd.is_dir()
    assert bucket.url == odd.as_uri()
    assert (bucket.part_size, bucket.concurrency) == (config.part_size, 3)
    assert bucket.identity == DirectoryBucket(odd).identity
    with pytest.raises(BucketDeniedError):
        open_bucket(
            BucketConfig(bucket="x", endpoint_url=(tmp_path / "none").as_uri()), create=False
        )


@pytest.mark.parametrize("url", ["file://relative/path", "file:relative", "file:"])
def test_open_bucket_refuses_relative_urls(url: str) -> None:
    config = BucketConfig.model_construct(bucket="x", endpoint_url=url)
    with pytest.raises(ConfigError, match="absolute"):
        open_bucket(config)


# ---- keys


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "../a",
        "a/../../b",
        "a/./b",
        "a\0b",
        ".buckethead",
        ".buckethead/lock",
        "x" * 256,
        "é" * 128,
        "a\ud800",
    ],
)
def test_impossible_keys_are_refused_everywhere(
    bucket: DirectoryBucket, root: Path, key: str
) -> None:
    bucket.put_bytes(b"1", "fine")
    for action in (
        lambda: bucket.put_bytes(b"", key),
        lambda: bucket.head(key),
        lambda: bucket.exists(key),
        lambda: bucket.get_bytes(key),
        lambda: bucket.get_range(key, 0, 1),
        lambda: bucket.delete(key),
        lambda: bucket.copy("fine", key),
        lambda: bucket.copy(key, "fine"),
    ):
        with pytest.raises(ConfigError, match="Could not use the key"):
            action()
    assert sorted(bucket.list_keys()) == ["fine"]
    assert list(root.parent.iterdir()) == [root]


@pytest.mark.parametrize("key", ["a\nb", "a\\b", "..a", "a..", "-", "x" * 255, "é" * 127])
def test_unusual_keys_work(bucket: DirectoryBucket, root: Path, key: str) -> None:
    bucket.put_bytes(b"1", key, metadata={"a": "b"})
    assert (root / key).read_bytes() == b"1"
    info = bucket.head(key)
    assert info is not None
    assert info.metadata == {"a": "b"}
    assert list(bucket.list_keys()) == [key]


def test_no_key_leads_out_through_a_link(
    bucket: DirectoryBucket, root: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (root / "folder").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    for key in ("folder/secret", "folder/new", "file"):
        with pytest.raises(ConfigError, match="symbolic link"):
            bucket.get_bytes(key)
        with pytest.raises(ConfigError, match="symbolic link"):
            bucket.put_bytes(b"", key)
        with pytest.raises(ConfigError, match="symbolic link"):
            bucket.delete(key)
    assert list(bucket.list_keys()) == []
    assert list(bucket.list_keys("folder/")) == []
    assert (outside / "secret").read_bytes() == b"secret"


def test_prefixes_do_not_lead_out(bucket: DirectoryBucket, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"")
    for prefix in ("../", "/", str(tmp_path), ".buckethead/"):
        assert list(bucket.list_keys(prefix)) == []


def test_an_object_and_a_folder_cannot_share_a_name(bucket: DirectoryBucket) -> None:
    bucket.put_bytes(b"1", "a")
    bucket.put_bytes(b"1", "b/c")
    with pytest.raises(ConfigError, match="is an object"):
        bucket.put_bytes(b"", "a/b")
    with pytest.raises(ConfigError, match="a folder stands there"):
        bucket.put_bytes(b"", "b")
    assert sorted(bucket.list_keys()) == ["a", "b/c"]


# ---- writing


def test_modes(bucket: DirectoryBucket, root: Path) -> None:
    bucket.put_bytes(b"1", "a/b/c", metadata={"a": "b"})
    for path in root.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_only_finished_objects_are_listed(bucket: DirectoryBucket, root: Path) -> None:
    seen: list[list[str]] = []

    def chunks() -> Iterator[bytes]:
        yield b"1"
        seen.append(list(bucket.list_keys()))
        assert len(temporary_files(root)) == 1
        yield b"2"

    bucket.put_parts(chunks(), "a")
    assert seen == [[]]
    assert list(bucket.list_keys()) == ["a"]
    assert temporary_files(root) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["fsync", "replace", "utime", "link"])
def test_a_failure_at_any_step_leaves_the_old_object(
    bucket: DirectoryBucket,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    error: BaseException,
) -> None:
    bucket.put_bytes(b"old", "a", metadata={"n": "1"})
    target = "new" if call == "link" else "a"

    def fail(*args: Any, **more: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(type(error)):
            bucket.put_bytes(b"new", target, metadata={"n": "2"}, if_none_match=target == "new")
    assert temporary_files(root) == []
    info = bucket.head("a")
    assert info is not None
    assert info.metadata == {"n": "1"}
    assert bucket.get_bytes("a") == b"old"
    assert list(bucket.list_keys()) == ["a"]


def test_a_full_disk_leaves_the_old_object(tmp_path: Path) -> None:
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(mounted)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        bucket = DirectoryBucket(mounted / "bucket")
        bucket.put_bytes(b"old" * 1000, "a", metadata={"n": "1"})
        with pytest.raises(OSError, match="No space left") as caught:
            bucket.put_parts((bytes(100_000) for _ in range(30)), "a", metadata={"n": "2"})
        assert caught.value.errno == errno.ENOSPC
        assert bucket.get_bytes("a") == b"old" * 1000
        info = bucket.head("a")
        assert info is not None
        assert info.metadata == {"n": "1"}
        assert temporary_files(mounted / "bucket") == []
        bucket.put_bytes(b"there is room again", "a")
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_where_links_do_not_work_writing_only_if_absent_is_refused(
    bucket: DirectoryBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*args: Any) -> None:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(BucketError, match="hard links"):
        bucket.put_bytes(b"1", "a", if_none_match=True)
    assert not bucket.exists("a")


def test_a_program_that_ignores_the_lock_is_not_overwritten(
    bucket: DirectoryBucket, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def late(source: Path, target: Path) -> None:
        (root / "a").write_bytes(b"theirs")
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(PreconditionFailedError):
        bucket.put_bytes(b"ours", "a", if_none_match=True, metadata={"n": "1"})
    assert bucket.get_bytes("a") == b"theirs"
    info = bucket.head("a")
    assert info is not None
    assert info.metadata == {}


def test_etags_of_quick_writes_differ(bucket: DirectoryBucket) -> None:
    etags = [bucket.put_bytes(b"same", "a") for _ in range(50)]
    assert len(set(etags)) == 50


def _count_up(root: str, times: int) -> None:
    bucket = DirectoryBucket(root)
    for _ in range(times):
        while True:
            info = bucket.head("count")
            assert info is not None
            number = int(bucket.get_range("count", 0, 100, if_match=info.etag))
            try:
                bucket.put_bytes(b"%d" % (number + 1), "count", if_match=info.etag)
            except PreconditionFailedError:
                continue
            break


def _count_up_patiently(root: str, times: int) -> None:
    done = 0
    while done < times:
        try:
            _count_up(root, 1)
        except PreconditionFailedError:  # replaced between head and read
            continue
        done += 1


def test_if_match_holds_between_threads_and_processes(bucket: DirectoryBucket, root: Path) -> None:
    bucket.put_bytes(b"0", "count")
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=_count_up_patiently, args=(str(root), 20))
    process.start()
    threads = [threading.Thread(target=_count_up_patiently, args=(str(root), 20)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    process.join()
    assert process.exitcode == 0
    assert bucket.get_bytes("count") == b"60"


def test_what_dead_writers_left_is_removed_after_a_day(root: Path) -> None:
    DirectoryBucket(root).put_bytes(b"1", "a")
    folder = root / ".buckethead" / "tmp"
    (folder / "old").write_bytes(b"")
    (folder / "young").write_bytes(b"")
    day_ago = time.time() - STALE_SECONDS - 60
    os.utime(folder / "old", (day_ago, day_ago))
    again = DirectoryBucket(root)
    assert again.get_bytes("a") == b"1"
    assert len(temporary_files(root)) == 2
    again.put_bytes(b"2", "a")
    assert [path.name for path in temporary_files(root)] == ["young"]


def test_files_nobody_has_written_to_since_are_removed_and_named(
    bucket: DirectoryBucket, root: Path
) -> None:
    assert bucket.abort_uploads("a", before=time.time()) == []
    bucket.put_bytes(b"1", "a")
    folder = root / ".buckethead" / "tmp"
    (folder / "old").write_bytes(b"")
    os.utime(folder / "old", (1000.0, 1000.0))
    (folder / "young").write_bytes(b"")
    os.utime(folder / "young", (3000.0, 3000.0))
    assert bucket.abort_uploads("a", before=2000.0) == ["old"]
    assert [path.name for path in temporary_files(root)] == ["young"]
    assert bucket.get_bytes("a") == b"1"


# ---- metadata


def test_metadata_is_believed_only_for_its_own_content(bucket: DirectoryBucket, root: Path) -> None:
    bucket.put_bytes(b"image", "a", metadata={"txid": "7"})
    (root / "a").write_bytes(b"by another program")
    info = bucket.head("a")
    assert info is not None
    assert info.metadata == {}
    bucket.copy("a", "b")
    assert len(sidecars(root)) == 1
    (root / "a").write_bytes(b"image")
    info = bucket.head("a")
    assert info is not None
    assert info.metadata == {"txid": "7"}


def test_one_sidecar_an_object_with_metadata_and_none_without(
    bucket: DirectoryBucket, root: Path
) -> None:
    for number in range(3):
        bucket.put_bytes(b"%d" % number, "a", metadata={"n": str(number)})
        assert len(sidecars(root)) == 1
    bucket.copy("a", "b")
    assert len(sidecars(root)) == 2
    bucket.put_bytes(b"plain", "a")
    assert len(sidecars(root)) == 1
    bucket.delete("b")
    assert sidecars(root) == []


def test_metadata_is_there_before_its_object(
    bucket: DirectoryBucket, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace
    order: list[str] = []

    def watched(source: Path, target: Path) -> None:
        order.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    bucket.put_bytes(b"1", "a", metadata={"n": "1"})
    assert order == [sidecars(root)[0].name, "a"]


def test_keys_with_long_or_similar_names_keep_their_own_metadata(bucket: DirectoryBucket) -> None:
    keys = ["a/b", "a%2Fb", "é" * 100, "é" * 99 + "e"]
    for number, key in enumerate(keys):
        bucket.put_bytes(b"same", key, metadata={"n": str(number)})
    for number, key in enumerate(keys):
        info = bucket.head(key)
        assert info is not None
        assert info.metadata == {"n": str(number)}


def test_a_damaged_sidecar_is_named(bucket: DirectoryBucket, root: Path) -> None:
    bucket.put_bytes(b"1", "a", metadata={"n": "1"})
    sidecars(root)[0].write_text("{")
    with pytest.raises(BucketError, match=r"damaged.*[0-9a-f]{16}\.json|[0-9a-f]{16}\.json"):
        bucket.head("a")
    assert bucket.get_bytes("a") == b"1"


def test_a_reader_beside_a_writer_always_finds_the_metadata(
    bucket: DirectoryBucket, root: Path
) -> None:
    bucket.put_bytes(b"0", "a", metadata={"n": "0"})
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            bucket.put_bytes(json.dumps(number).encode(), "a", metadata={"n": str(number)})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        reader = DirectoryBucket(root, create=False)
        for _ in range(200):
            info = reader.head("a")
            assert info is not None
            assert info.metadata.keys() == {"n"}
    finally:
        stop.set()
        writer.join()


# ---- the rest


def test_there_are_no_urls(bucket: DirectoryBucket) -> None:
    with pytest.raises(BucketError, match="S3 store"):
        bucket.generate_presigned_get("a", expires_in=60)


def test_reading_writes_nothing(bucket: DirectoryBucket, root: Path) -> None:
    (root / "a").write_bytes(b"1")
    assert bucket.get_bytes("a") == b"1"
    assert bucket.head("a") is not None
    assert list(bucket.list_keys()) == ["a"]
    bucket.delete("none")
    assert [path.name for path in root.iterdir()] == ["a"]


def test_delete_many_goes_on_after_a_failure(bucket: DirectoryBucket) -> None:
    for key in ("a", "b", "c"):
        bucket.put_bytes(b"", key)
    with pytest.raises(BucketError, match=r"2 objects .* '\.\./x'"):
        bucket.delete_many(["a", "../x", "b", "", "c"])
    assert list(bucket.list_keys()) == []


def test_an_object_whose_folder_could_not_be_synced_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be read back and believed, and be gone after a power loss."""
    bucket = DirectoryBucket(tmp_path)
    bucket.put_bytes(b"1", "folder/first")

    def sync_folder(folder: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr("buckethead.storage.directory.sync_folder", sync_folder)
        with pytest.raises(OSError, match="Input/output"):
            bucket.put_bytes(b"2", "folder/second", if_none_match=True)
    assert not bucket.exists("folder/second")
    bucket.put_bytes(b"2", "folder/second", if_none_match=True)
