"""A store that ignores conditions is found out, on every kind of write, and asked only once."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from buckethead.errors import BucketUnavailableError, ConfigError
from buckethead.storage import probe
from buckethead.storage.bucket import Bucket
from buckethead.storage.directory import DirectoryBucket
from buckethead.storage.probe import check_conditions

KEY = "app.ltx/probe"
KINDS = pytest.mark.parametrize("multipart", [False, True], ids=["put", "complete"])


@pytest.fixture(autouse=True)
def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What earlier tests have found out is forgotten."""
    monkeypatch.setattr(probe, "_honoured", {})


class Careless(DirectoryBucket):
    """A store that ignores conditions of the kinds of write it is told, and counts all writes.

    ``trouble`` is raised by the next writes, one each.
    """

    def __init__(self, root: Path, *careless: str) -> None:
        super().__init__(root)
        self.careless = careless
        self.writes: list[str] = []
        self.trouble: list[Exception | None] = []

    def put_bytes(self, data: bytes | bytearray, key: str, **more: Any) -> str:
        return self._written("put", [data], key, **more)

    def put_parts(
        self,
        chunks: Iterable[bytes | bytearray],
        key: str,
        *,
        always_multipart: bool = False,
        **more: Any,
    ) -> str:
        assert always_multipart, "a few bytes go by a plain request otherwise"
        return self._written("complete", chunks, key, **more)

    def _written(
        self, kind: str, chunks: Iterable[bytes | bytearray], key: str, **more: Any
    ) -> str:
        self.writes.append(kind)
        if self.trouble and (error := self.trouble.pop(0)):
            raise error
        if kind in self.careless:
            more["if_none_match"] = False
        return super().put_parts(chunks, key, **more)


def refusal(code: str, status: int) -> ClientError:
    response: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "PutObject")


@KINDS
def test_stores_that_honour_conditions(bucket: Bucket, multipart: bool) -> None:
    check_conditions(bucket, KEY, multipart=multipart)
    assert list(bucket.list_keys()) == [KEY]
    asked = bucket.counters.requests
    check_conditions(bucket, KEY, multipart=multipart)
    assert bucket.counters.requests == asked


def test_one_request_where_the_object_is_there(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_conditions(bucket, KEY, multipart=False)
    monkeypatch.setattr(probe, "_honoured", {})
    asked = bucket.counters.requests
    check_conditions(bucket, KEY, multipart=False)
    assert bucket.counters.requests == asked + 1


def test_nothing_is_left_unfinished(bucket: Bucket) -> None:
    check_conditions(bucket, KEY, multipart=False)
    check_conditions(bucket, KEY, multipart=True)
    assert bucket.abort_uploads("", before=10_000_000_000) == []


@KINDS
@pytest.mark.parametrize("there", [False, True])
def test_a_store_that_ignores_conditions(tmp_path: Path, multipart: bool, there: bool) -> None:
    kind = "complete" if multipart else "put"
    bucket = Careless(tmp_path, kind)
    if there:
        (tmp_path / "app.ltx").mkdir()
        (tmp_path / KEY).write_bytes(b"from an earlier process")
    operation = "CompleteMultipartUpload" if multipart else "PutObject"
    for _ in range(2):
        with pytest.raises(ConfigError, match=operation) as caught:
            check_conditions(bucket, KEY, multipart=multipart)
    assert 'fencing="off"' in str(caught.value)
    assert bucket.url in str(caught.value)
    assert bucket.writes == [kind, kind]


def test_a_store_that_ignores_them_on_complete_only(tmp_path: Path) -> None:
    bucket = Careless(tmp_path, "complete")
    check_conditions(bucket, KEY, multipart=False)
    with pytest.raises(ConfigError, match="CompleteMultipartUpload"):
        check_conditions(bucket, KEY, multipart=True)
    check_conditions(bucket, KEY, multipart=False)


def test_every_place_is_asked(tmp_path: Path) -> None:
    check_conditions(Careless(tmp_path / "good"), KEY, multipart=False)
    with pytest.raises(ConfigError):
        check_conditions(Careless(tmp_path / "bad", "put"), KEY, multipart=False)


def test_a_store_that_knows_no_conditions(tmp_path: Path) -> None:
    bucket = Careless(tmp_path)
    bucket.trouble = [refusal("NotImplemented", 501)]
    with pytest.raises(ConfigError, match="does not honour If-None-Match"):
        check_conditions(bucket, KEY, multipart=False)


@KINDS
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize(
    "error",
    [refusal("InternalError", 500), refusal("SlowDown", 503), ReadTimeoutError(endpoint_url="x")],
    ids=["500", "503", "timeout"],
)
def test_trouble_is_no_answer_and_is_not_remembered(
    tmp_path: Path, multipart: bool, before: int, error: Exception
) -> None:
    bucket = Careless(tmp_path)
    bucket.trouble = [*[None] * before, error]
    with pytest.raises(BucketUnavailableError, match="whether conditions hold"):
        check_conditions(bucket, KEY, multipart=multipart)
    check_conditions(bucket, KEY, multipart=multipart)
    bucket.careless = ("put", "complete")
    check_conditions(bucket, KEY, multipart=multipart)
