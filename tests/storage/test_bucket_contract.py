"""One contract for every bucket: a directory, moto and SeaweedFS pass the same tests."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from buckethead.config import BucketConfig
from buckethead.errors import BucketError, ObjectNotFoundError, PreconditionFailedError
from buckethead.storage import bucket as bucket_module
from buckethead.storage.contract import Bucket
from buckethead.storage.directory import DirectoryBucket, open_bucket
from servers import PART_SIZE

ODD_KEYS = [
    "with space",
    "ünï/日本",
    "100%",
    "a?b=c",
    "a#b",
    "a:b",
    "a*b",
    "a+b&c",
    "'\"<>",
    "~-_.()",
]


def content(size: int) -> bytes:
    """Bytes in which a part out of place shows."""
    words = b"".join(number.to_bytes(8, "big") for number in range(size // 8 + 1))
    return words[:size]


def names_of(bucket: Bucket) -> list[str]:
    return sorted(bucket.list_keys())


def part_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("buckethead-part")]


# ---- objects


def test_a_missing_object(bucket: Bucket) -> None:
    assert bucket.head("none") is None
    assert not bucket.exists("none")
    assert bucket.last_modified("none") is None
    with pytest.raises(ObjectNotFoundError, match="none"):
        bucket.get_bytes("none")
    with pytest.raises(ObjectNotFoundError, match="none"):
        bucket.get_range("none", 0, 5)
    assert bucket.copy("none", "other") is False
    bucket.delete("none")
    assert names_of(bucket) == []


@pytest.mark.parametrize("data", [b"", b"x", content(100_000)])
def test_an_object_comes_back_as_it_was_put(bucket: Bucket, data: bytes) -> None:
    before = time.time()
    etag = bucket.put_bytes(data, "folder/key", metadata={"txid": "7", "page-size": "4096"})
    info = bucket.head("folder/key")
    assert info is not None
    assert (info.key, info.size, info.etag) == ("folder/key", len(data), etag)
    assert info.metadata == {"txid": "7", "page-size": "4096"}
    assert before - 2 <= info.last_modified <= time.time() + 2
    assert bucket.last_modified("folder/key") == info.last_modified
    assert bucket.exists("folder/key")
    assert bucket.get_bytes("folder/key") == data


def test_a_new_object_takes_the_place_of_the_old_one_and_its_metadata(bucket: Bucket) -> None:
    old = bucket.put_bytes(b"old", "key", metadata={"txid": "1"})
    new = bucket.put_bytes(b"new", "key")
    info = bucket.head("key")
    assert info is not None
    assert (info.etag, info.metadata) == (new, {})
    assert old != new
    assert bucket.get_bytes("key") == b"new"


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_keys_work_verbatim(bucket: Bucket, key: str) -> None:
    bucket.put_bytes(b"1", key, metadata={"a": "b"})
    assert bucket.get_bytes(key) == b"1"
    assert bucket.copy(key, f"copy of {key}")
    info = bucket.head(f"copy of {key}")
    assert info is not None
    assert info.metadata == {"a": "b"}
    assert names_of(bucket) == sorted([key, f"copy of {key}"])
    bucket.delete_many([key, f"copy of {key}"])
    assert names_of(bucket) == []


def test_ranges(bucket: Bucket) -> None:
    etag = bucket.put_bytes(b"0123456789", "key")
    assert bucket.get_range("key", 2, 3) == b"234"
    assert bucket.get_range("key", 0, 10, if_match=etag) == b"0123456789"
    assert bucket.get_range("key", 8, 100) == b"89"
    assert bucket.get_range("key", 10, 1) == b""
    assert bucket.get_range("key", 99, 1) == b""
    assert bucket.get_range("key", 3, 0) == b""
    with pytest.raises(PreconditionFailedError, match="key"):
        bucket.get_range("key", 0, 1, if_match='"other"')


def test_range_of_an_empty_object(bucket: Bucket) -> None:
    bucket.put_bytes(b"", "key")
    assert bucket.get_range("key", 0, 10) == b""


def test_tails(bucket: Bucket) -> None:
    bucket.put_bytes(b"0123456789", "key")
    bucket.put_bytes(b"", "empty")
    before = bucket.counters.requests
    assert bucket.get_tail("key", 3) == b"789"
    assert bucket.get_tail("key", 10) == b"0123456789"
    assert bucket.get_tail("key", 100) == b"0123456789"
    assert bucket.get_tail("empty", 3) == b""
    assert bucket.counters.requests == before + 4
    assert bucket.get_tail("key", 0) == b""
    with pytest.raises(ObjectNotFoundError, match="none"):
        bucket.get_tail("none", 3)


def test_a_poll_is_one_get_with_the_time_of_the_store(bucket: Bucket) -> None:
    bucket.put_bytes(b"1", "key")
    modified = bucket.last_modified("key")
    assert modified is not None
    before = bucket.counters.requests
    found, nothing = bucket.poll("key"), bucket.poll("none")
    counted = bucket.counters.snapshot()
    assert counted.requests == before + 2
    assert counted.operations["get_object"].operations == 2
    assert counted.operations["get_object"].bytes_down == 1
    assert (found.data, nothing.data) == (b"1", None)
    # both by the store's clock; HTTP's has whole seconds
    assert modified - 1 <= found.now <= nothing.now <= time.time() + 2


# ---- conditions


def test_put_if_none_match(bucket: Bucket) -> None:
    bucket.put_bytes(b"first", "key", if_none_match=True, metadata={"n": "1"})
    with pytest.raises(PreconditionFailedError, match="key"):
        bucket.put_bytes(b"second", "key", if_none_match=True, metadata={"n": "2"})
    info = bucket.head("key")
    assert info is not None
    assert info.metadata == {"n": "1"}
    assert bucket.get_bytes("key") == b"first"


def test_put_if_match(bucket: Bucket) -> None:
    first = bucket.put_bytes(b"first", "key")
    second = bucket.put_bytes(b"second", "key", if_match=first)
    with pytest.raises(PreconditionFailedError, match="key"):
        bucket.put_bytes(b"third", "key", if_match=first)
    with pytest.raises(PreconditionFailedError, match="none"):
        bucket.put_bytes(b"third", "none", if_match=second)
    assert bucket.get_bytes("key") == b"second"
    assert not bucket.exists("none")


def test_one_of_many_conditional_writers_wins(bucket: Bucket) -> None:
    won: list[int] = []
    barrier = threading.Barrier(4)

    def write(number: int) -> None:
        barrier.wait()
        try:
            bucket.put_bytes(b"%d" % number, "key", if_none_match=True)
        except PreconditionFailedError:
            return
        won.append(number)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert bucket.get_bytes("key") == b"%d" % won[0]


def test_parts_if_none_match(bucket: Bucket) -> None:
    data = content(PART_SIZE + 1)
    bucket.put_parts([data], "key", if_none_match=True)
    with pytest.raises(PreconditionFailedError, match="key"):
        bucket.put_parts([b"x" * PART_SIZE, b"y"], "key", if_none_match=True)
    assert bucket.get_bytes("key") == data


@pytest.mark.parametrize("chunks", [[], [b"few"]])
def test_few_bytes_by_multipart(bucket: Bucket, chunks: list[bytes]) -> None:
    bucket.put_parts(chunks, "key", if_none_match=True, always_multipart=True)
    with pytest.raises(PreconditionFailedError, match="key"):
        bucket.put_parts([b"other"], "key", if_none_match=True, always_multipart=True)
    assert bucket.get_bytes("key") == b"".join(chunks)


# ---- transfers


@pytest.mark.parametrize("size", [0, 1, PART_SIZE, PART_SIZE + 1, 3 * PART_SIZE, 13_000_001])
@pytest.mark.parametrize("chunk", [PART_SIZE, 999_983])
def test_parts_become_one_object(bucket: Bucket, size: int, chunk: int) -> None:
    data = content(size)
    reported: list[int] = []
    etag = bucket.put_parts(
        (data[at : at + chunk] for at in range(0, size, chunk)),
        "key",
        size=size,
        metadata={"a": "b"},
        progress=reported.append,
    )
    info = bucket.head("key")
    assert info is not None
    assert (info.size, info.etag, info.metadata) == (size, etag, {"a": "b"})
    assert sum(reported) == size
    assert b"".join(bucket.get_parts("key", size, if_match=etag)) == data
    assert part_threads() == []


def test_parts_come_in_pieces_of_part_size(bucket: Bucket) -> None:
    data = content(2 * PART_SIZE + 5)
    bucket.put_parts([data], "key")
    pieces = list(bucket.get_parts("key", len(data)))
    assert [len(piece) for piece in pieces] == [PART_SIZE, PART_SIZE, 5]
    assert b"".join(pieces) == data
    assert list(bucket.get_parts("key", 0)) == []


def test_parts_of_an_object_that_is_shorter_or_another(bucket: Bucket) -> None:
    bucket.put_bytes(b"12345", "key")
    with pytest.raises(BucketError, match="expected"):
        list(bucket.get_parts("key", 6))
    with pytest.raises(PreconditionFailedError):
        list(bucket.get_parts("key", 5, if_match='"other"'))
    with pytest.raises(ObjectNotFoundError):
        list(bucket.get_parts("none", 5))


def test_a_download_given_up_leaves_no_thread(bucket: Bucket) -> None:
    bucket.put_parts([content(3 * PART_SIZE)], "key")
    with closing(bucket.get_parts("key", 3 * PART_SIZE)) as parts:
        assert len(next(parts)) == PART_SIZE
        assert part_threads() != []
    assert part_threads() == []


def test_files_up_and_down(bucket: Bucket, tmp_path: Path) -> None:
    data = content(2 * PART_SIZE + 77)
    source, target = tmp_path / "source", tmp_path / "out" / "target"
    source.write_bytes(data)
    target.parent.mkdir()
    target.write_bytes(b"old")
    bucket.upload(source, "key", metadata={"a": "b"})
    bucket.download("key", target)
    assert target.read_bytes() == data
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_download_that_fails_leaves_the_old_file(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "target").write_bytes(b"old")
    with pytest.raises(ObjectNotFoundError):
        bucket.download("none", folder / "target")
    bucket.put_parts([content(PART_SIZE + 1)], "key")

    def broken(key: str, size: int, *, if_match: str | None = None) -> Iterator[bytes]:
        yield b"half"
        raise ConnectionResetError("gone")

    monkeypatch.setattr(bucket, "get_parts", broken)
    with pytest.raises(ConnectionResetError):
        bucket.download("key", folder / "target")
    assert [path.name for path in folder.iterdir()] == ["target"]
    assert (folder / "target").read_bytes() == b"old"


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit, Interrupted])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_whatever_the_chunks_raise_nothing_is_visible(
    bucket: Bucket, error: type[BaseException], after: int
) -> None:
    bucket.put_bytes(b"old", "key", metadata={"n": "1"})

    def chunks() -> Iterator[bytes]:
        for _ in range(after):
            yield b"x" * PART_SIZE
        raise error

    with pytest.raises(error):
        bucket.put_parts(chunks(), "key", metadata={"n": "2"})
    info = bucket.head("key")
    assert info is not None
    assert info.metadata == {"n": "1"}
    assert bucket.get_bytes("key") == b"old"
    assert names_of(bucket) == ["key"]
    assert part_threads() == []


def test_an_error_of_the_progress_callback_aborts(bucket: Bucket) -> None:
    def stop(size: int) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        bucket.put_parts([content(2 * PART_SIZE)], "key", progress=stop)
    assert part_threads() == []


# ---- the rest


def test_a_copy_of_what_was_seen_asks_nothing_first_and_refuses_another(
    bucket: Bucket, request: pytest.FixtureRequest
) -> None:
    bucket.put_bytes(b"1", "a", metadata={"txid": "7"})
    (listed,) = bucket.list_objects("a")
    asked = bucket.counters.snapshot().operations.get("head_object")
    assert bucket.copy("a", "b", seen=listed) is True
    assert bucket.counters.snapshot().operations.get("head_object") == asked
    copied = bucket.head("b")
    assert copied is not None
    assert copied.metadata == {"txid": "7"}
    bucket.put_bytes(b"another", "a")
    if "moto" not in request.node.name:  # which ignores the condition on the source
        with pytest.raises(PreconditionFailedError, match="another object has taken its place"):
            bucket.copy("a", "b", seen=listed)
        assert bucket.get_bytes("b") == b"1"
    bucket.delete("a")
    assert bucket.copy("a", "b", seen=listed) is False


def test_copy_keeps_content_and_metadata(bucket: Bucket) -> None:
    bucket.put_bytes(b"1", "a", metadata={"txid": "7"})
    bucket.put_bytes(b"old", "b/c", metadata={"txid": "1"})
    assert bucket.copy("a", "b/c") is True
    info = bucket.head("b/c")
    assert info is not None
    assert info.metadata == {"txid": "7"}
    assert bucket.get_bytes("b/c") == b"1"
    assert bucket.get_bytes("a") == b"1"


def test_deleting_frees_the_key_for_what_is_below_it(bucket: Bucket) -> None:
    bucket.put_bytes(b"1", "a/b/c", metadata={"x": "y"})
    bucket.delete("a/b/c")
    assert names_of(bucket) == []
    bucket.put_bytes(b"2", "a")
    assert names_of(bucket) == ["a"]


def test_listing_by_prefix(bucket: Bucket) -> None:
    keys = ["a", "a.b", "ab/c", "ab/d/e", "ac", "b/a"]
    for key in keys:
        bucket.put_bytes(key.encode(), key, metadata={"k": "v"})
    assert names_of(bucket) == keys
    assert sorted(bucket.list_keys("a")) == keys[:5]
    assert sorted(bucket.list_keys("ab/")) == ["ab/c", "ab/d/e"]
    assert sorted(bucket.list_keys("ab/d/e")) == ["ab/d/e"]
    assert list(bucket.list_keys("x")) == []
    info = next(info for info in bucket.list_objects() if info.key == "ab/c")
    head = bucket.head("ab/c")
    assert head is not None
    assert (info.size, info.etag, info.metadata) == (4, head.etag, {})
    assert info.last_modified == pytest.approx(head.last_modified, abs=2)


def test_listing_and_deleting_page_by_page(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_module, "LIST_PAGE", 3)
    monkeypatch.setattr(bucket_module, "DELETE_BATCH", 4)
    # "a/x" and its folder "a/x.d" are neighbours in one order and strangers in another
    keys = [f"a/x{n}{end}" for n in range(7) for end in ("", ".d/y", "-z")]
    for key in keys:
        bucket.put_bytes(b"", key)
    assert names_of(bucket) == sorted(keys)
    bucket.delete_many(key for key in keys)
    assert names_of(bucket) == []
    bucket.delete_many([])


def test_where_nothing_was_left_unfinished(bucket: Bucket) -> None:
    bucket.put_parts([content(PART_SIZE + 1)], "key")
    assert bucket.abort_uploads("", before=time.time() + 3600) == []
    assert names_of(bucket) == ["key"]


def test_the_lifetime_of_a_presigned_url(bucket: Bucket) -> None:
    for expires_in in (0, -1, 604_801):
        with pytest.raises(ValueError, match="604800"):
            bucket.generate_presigned_get("key", expires_in=expires_in)


def test_counters(bucket: Bucket) -> None:
    assert bucket.counters.requests == 0
    bucket.put_bytes(b"12345", "key")
    bucket.get_range("key", 0, 3)
    with pytest.raises(ObjectNotFoundError):
        bucket.get_bytes("none")
    bucket.delete("key")
    counted = bucket.counters.snapshot()
    put, got = counted.operations["put_object"], counted.operations["get_object"]
    assert (put.operations, put.bytes_up, put.bytes_down) == (1, 5, 0)
    assert (got.operations, got.bytes_up, got.bytes_down) == (2, 0, 3)
    assert counted.operations["delete_object"].operations == 1
    assert (counted.requests, counted.bytes_up, counted.bytes_down) == (4, 5, 3)
    assert counted.seconds > 0


def test_identity_and_url(bucket: Bucket, bucket_config: BucketConfig) -> None:
    again = open_bucket(bucket_config)
    assert again.identity == bucket.identity
    assert again.url == bucket.url
    assert repr(bucket) == f"{type(bucket).__name__}({bucket.url!r})"
    if isinstance(bucket, DirectoryBucket):
        assert bucket.url == bucket_config.endpoint_url
    else:
        place = f"s3://{bucket_config.bucket} at {bucket_config.endpoint_url}"
        assert bucket.url == place
        other = open_bucket(bucket_config.model_copy(update={"bucket": "another"}))
        assert other.identity != bucket.identity
