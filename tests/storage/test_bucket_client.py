"""What is particular to stores of S3: credentials, endpoints, multipart uploads, exit hooks."""

import logging
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import pytest
from botocore.exceptions import ClientError
from pydantic import SecretStr

from buckethead.config import BucketConfig
from buckethead.errors import (
    BucketDeniedError,
    BucketError,
    BucketUnavailableError,
    ConfigError,
    PreconditionFailedError,
)
from buckethead.storage import bucket as bucket_module
from buckethead.storage import client as client_module
from buckethead.storage.bucket import BucketClient
from buckethead.storage.counters import IOCounters
from buckethead.storage.parallel import ordered_map
from buckethead.storage.translate import translated
from servers import PART_SIZE, Server, fresh_bucket

PART = b"x" * PART_SIZE


@pytest.fixture(autouse=True)
def own_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Event handlers stay on a client, so no test here shares one with another."""
    monkeypatch.setattr(client_module, "_clients", WeakValueDictionary())


@pytest.fixture
def bucket(s3_config: BucketConfig) -> BucketClient:
    return BucketClient(s3_config)


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which boto3 finds nothing."""
    for name in ("REGION", "DEFAULT_REGION", "PROFILE", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def unfinished_uploads(server: Server, config: BucketConfig) -> list[str]:
    reply = server.client().list_multipart_uploads(Bucket=config.bucket)
    return [upload["Key"] for upload in reply.get("Uploads", [])]


def recorded(bucket: BucketClient) -> list[tuple[str, dict[str, Any]]]:
    """Every request of the client from now on: its operation and parameters."""
    requests: list[tuple[str, dict[str, Any]]] = []

    def note(params: dict[str, Any], model: Any, **_: Any) -> None:
        requests.append((model.name, dict(params)))

    bucket._s3.meta.events.register("provide-client-params.s3", note)
    return requests


def client_error(bucket: BucketClient, code: str, status: int) -> ClientError:
    """What a store's refusal becomes."""
    response: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return bucket._s3.exceptions.ClientError(response, "any")


def failing(bucket: BucketClient, operation: str, error: BaseException) -> None:
    """Every request of this operation raises from now on."""

    def fail(**_: Any) -> None:
        raise error

    bucket._s3.meta.events.register(f"provide-client-params.s3.{operation}", fail)


# ---- the client


def test_a_client_is_made_at_the_first_request(no_aws: None, tmp_path: Path) -> None:
    code = (
        "import sys, buckethead.storage.directory as d\n"
        "from buckethead.config import BucketConfig\n"
        "d.BucketClient(BucketConfig(bucket='b'))\n"
        "d.DirectoryBucket(sys.argv[1]).put_bytes(b'1', 'a')\n"
        "assert not {'boto3', 'botocore'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_the_settings_reach_boto3(no_aws: None) -> None:
    config = BucketConfig(
        bucket="b",
        endpoint_url="http://127.0.0.1:1",
        access_key_id=SecretStr("key"),
        secret_access_key=SecretStr("secret"),
        connect_timeout=3,
        read_timeout=7,
        concurrency=30,
        addressing_style="path",
    )
    meta = BucketClient(config)._s3.meta
    settings: Any = meta.config
    assert meta.region_name == "auto"
    assert settings.signature_version == "s3v4"
    assert settings.request_checksum_calculation == "when_required"
    assert settings.response_checksum_validation == "when_required"
    assert (settings.connect_timeout, settings.read_timeout) == (3, 7)
    assert settings.retries == {"mode": "standard", "total_max_attempts": 3}
    assert settings.max_pool_connections > 30
    assert settings.s3["addressing_style"] == "path"


def test_aws_keeps_its_own_checksums_and_region(
    no_aws: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    meta = BucketClient(BucketConfig(bucket="b"))._s3.meta
    settings: Any = meta.config
    assert meta.region_name == "eu-north-1"
    assert settings.request_checksum_calculation == "when_supported"
    chosen = BucketClient(BucketConfig(bucket="b", region="eu-west-1"))
    assert chosen._s3.meta.region_name == "eu-west-1"


def test_aws_without_a_region(no_aws: None) -> None:
    bucket = BucketClient(BucketConfig(bucket="b"))
    with pytest.raises(ConfigError, match="AWS_DEFAULT_REGION"):
        bucket.exists("key")
    with pytest.raises(ConfigError, match="no region"):
        bucket.put_parts([PART, PART], "key")


def test_aws_without_credentials(no_aws: None) -> None:
    bucket = BucketClient(BucketConfig(bucket="b", region="eu-west-1"))
    with pytest.raises(BucketDeniedError, match="access_key_id"), translated("look", bucket):
        bucket.exists("key")


def test_nothing_shows_the_credentials(s3_server: Server) -> None:
    bucket = BucketClient(s3_server.config("nosuch", secret_access_key="TOP-SECRET"))
    assert "TOP-SECRET" not in repr(bucket) + repr(vars(bucket)) + bucket.url


def test_one_client_for_all_threads(s3_config: BucketConfig) -> None:
    bucket = BucketClient(s3_config)
    clients: list[Any] = []
    barrier = threading.Barrier(4)

    def look() -> None:
        barrier.wait()
        clients.append(bucket._s3)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(clients) == 4
    assert len(set(map(id, clients))) == 1


# ---- trouble


def test_wrong_credentials(seaweed_endpoint: Server) -> None:
    secret = "not-the-SECRET"
    for more in ({"secret_access_key": secret}, {"access_key_id": "who"}):
        bucket = BucketClient(seaweed_endpoint.config("ready", **more))
        with (
            pytest.raises(BucketDeniedError, match=r"credentials|denied") as caught,
            translated("write", bucket),
        ):
            bucket.put_bytes(b"1", "key")
        assert "SECRET" not in str(caught.value)
        with pytest.raises(BucketDeniedError), translated("look", bucket):
            bucket.head("key")


def test_a_missing_bucket_is_no_missing_object(s3_server: Server) -> None:
    bucket = BucketClient(s3_server.config("no-such-bucket"))
    for action in (
        lambda: bucket.head("key"),
        lambda: bucket.exists("key"),
        lambda: bucket.copy("key", "other"),
        lambda: bucket.get_bytes("key"),
        lambda: bucket.get_range("key", 0, 1),
        lambda: bucket.download("key", "/nonexistent/file"),
    ):
        with pytest.raises(BucketDeniedError, match="no such bucket"), translated("x", bucket):
            action()


def test_writing_to_a_missing_bucket(moto_endpoint: Server) -> None:
    # SeaweedFS makes the bucket for an administrator
    bucket = BucketClient(moto_endpoint.config("no-such-bucket"))
    for action in (
        lambda: bucket.put_bytes(b"", "key"),
        lambda: bucket.put_parts([PART, PART], "key"),
        lambda: list(bucket.list_keys()),
    ):
        with pytest.raises(BucketDeniedError, match="no such bucket"), translated("x", bucket):
            action()


def test_an_endpoint_that_refuses(no_aws: None) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        server = Server(f"http://127.0.0.1:{closed.getsockname()[1]}", "key", "secret")
        bucket = BucketClient(server.config("b"))
        with pytest.raises(BucketUnavailableError, match="refused"), translated("look", bucket):
            bucket.head("key")


def test_an_endpoint_that_never_answers(no_aws: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = Server(f"http://127.0.0.1:{silent.getsockname()[1]}", "key", "secret")
        bucket = BucketClient(server.config("b", connect_timeout=0.5, read_timeout=0.5))
        begun = time.monotonic()
        with pytest.raises(BucketUnavailableError, match="in time"), translated("look", bucket):
            bucket.head("key")
        # three tries and boto3's pauses of at most 1 s and 2 s; without a limit it hangs for ever
        assert time.monotonic() - begun < 30


def test_trouble_is_no_answer(bucket: BucketClient) -> None:
    unavailable = client_error(bucket, "SlowDown", 503)
    failing(bucket, "GetObject", unavailable)
    failing(bucket, "ListMultipartUploads", unavailable)
    with pytest.raises(ClientError, match="SlowDown"):
        bucket.poll("key")
    with pytest.raises(ClientError, match="SlowDown"):
        bucket.abort_uploads("", before=time.time())


def test_polling_in_a_missing_bucket(s3_server: Server) -> None:
    bucket = BucketClient(s3_server.config("no-such-bucket"))
    with pytest.raises(BucketDeniedError, match="no such bucket"), translated("poll", bucket):
        bucket.poll("key")


def test_a_reply_without_a_date(bucket: BucketClient) -> None:
    def undated(response_dict: dict[str, Any], **_: Any) -> None:
        del response_dict["headers"]["Date"]

    bucket._s3.meta.events.register("before-parse.s3.GetObject", undated)
    with pytest.raises(BucketError, match="no Date header"):
        bucket.poll("key")


# ---- multipart uploads


def test_parts_are_equal_and_in_order(bucket: BucketClient) -> None:
    requests = recorded(bucket)
    bucket.put_parts((b"ab" * 500_000 for _ in range(12)), "key")
    sizes = {p["PartNumber"]: len(p["Body"]) for name, p in requests if name == "UploadPart"}
    assert sizes == {1: PART_SIZE, 2: PART_SIZE, 3: 12_000_000 - 2 * PART_SIZE}
    completed = next(p for name, p in requests if name == "CompleteMultipartUpload")
    assert [part["PartNumber"] for part in completed["MultipartUpload"]["Parts"]] == [1, 2, 3]


@pytest.mark.parametrize("chunks", [[], [b""], [b"1", b"2"], [PART]])
def test_one_part_is_one_plain_request(bucket: BucketClient, chunks: list[bytes]) -> None:
    requests = recorded(bucket)
    bucket.put_parts(iter(chunks), "key")
    assert [name for name, _ in requests] == ["PutObject"]


@pytest.mark.parametrize("chunks", [[], [b""], [b"1", b"2"]])
def test_few_bytes_by_multipart_where_that_is_wanted(
    bucket: BucketClient, chunks: list[bytes]
) -> None:
    requests = recorded(bucket)
    bucket.put_parts(iter(chunks), "key", always_multipart=True)
    assert [name for name, _ in requests] == [
        "CreateMultipartUpload",
        "UploadPart",
        "CompleteMultipartUpload",
    ]


def test_a_chunk_that_is_a_part_is_sent_as_it_is(bucket: BucketClient) -> None:
    requests = recorded(bucket)
    chunks = [b"a" * PART_SIZE, b"b" * PART_SIZE, b"rest"]
    bucket.put_parts(chunks, "key")
    bodies = {p["PartNumber"]: p["Body"] for name, p in requests if name == "UploadPart"}
    assert bodies[1] is chunks[0]
    assert bodies[2] is chunks[1]


def test_the_source_is_read_only_as_far_as_parts_are_in_flight(s3_config: BucketConfig) -> None:
    bucket = BucketClient(s3_config.model_copy(update={"concurrency": 3}))
    pulled: list[int] = []
    full, gate = threading.Event(), threading.Event()

    def block(**_: Any) -> None:
        assert gate.wait(60)

    bucket._s3.meta.events.register("provide-client-params.s3.UploadPart", block)

    def chunks() -> Iterator[bytes]:
        for number in range(6):
            pulled.append(number)
            if len(pulled) == 3:
                full.set()
            yield PART

    writer = threading.Thread(target=bucket.put_parts, args=(chunks(), "key"))
    writer.start()
    assert full.wait(60)
    writer.join(0.2)
    assert len(pulled) == 3
    gate.set()
    writer.join(60)
    info = bucket.head("key")
    assert info is not None
    assert info.size == 6 * PART_SIZE


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize(
    "error", [RuntimeError("no"), KeyboardInterrupt(), GeneratorExit(), Interrupted()]
)
@pytest.mark.parametrize("where", ["UploadPart", "CompleteMultipartUpload", "chunks", "progress"])
def test_every_error_path_aborts(
    bucket: BucketClient,
    s3_config: BucketConfig,
    s3_server: Server,
    where: str,
    error: BaseException,
) -> None:
    def fail(size: int) -> None:
        raise error

    def chunks() -> Iterator[bytes]:
        yield PART
        yield PART
        yield PART
        if where == "chunks":
            raise error

    if where in ("UploadPart", "CompleteMultipartUpload"):
        failing(bucket, where, error)
    with pytest.raises(type(error)) as caught:
        bucket.put_parts(chunks(), "key", progress=fail if where == "progress" else None)
    assert caught.value is error
    assert unfinished_uploads(s3_server, s3_config) == []
    assert not bucket.exists("key")
    assert bucket.counters.snapshot().operations["abort_multipart_upload"].operations == 1


def test_a_lost_condition_on_complete_aborts(
    bucket: BucketClient, s3_config: BucketConfig, s3_server: Server
) -> None:
    bucket.put_bytes(b"old", "key")
    with pytest.raises(PreconditionFailedError):
        bucket.put_parts([PART, PART], "key", if_none_match=True)
    assert unfinished_uploads(s3_server, s3_config) == []
    assert bucket.get_bytes("key") == b"old"


def test_parts_if_match(seaweed_endpoint: Server) -> None:
    # moto does not look at If-Match on CompleteMultipartUpload
    bucket = BucketClient(seaweed_endpoint.config("ready"))
    etag = bucket.put_bytes(b"old", "if-match")
    newer = bucket.put_parts([PART, PART], "if-match", if_match=etag)
    with pytest.raises(PreconditionFailedError):
        bucket.put_parts([PART, PART, b"x"], "if-match", if_match=etag)
    info = bucket.head("if-match")
    assert info is not None
    assert info.etag == newer


def test_an_abort_that_fails_is_noted_on_the_first_error(bucket: BucketClient) -> None:
    failing(bucket, "UploadPart", RuntimeError("first"))
    failing(bucket, "AbortMultipartUpload", OSError("second"))
    with pytest.raises(RuntimeError, match="first") as caught:
        bucket.put_parts([PART, PART], "key")
    assert "could not be aborted" in caught.value.__notes__[0]


def test_an_error_inside_a_200_surfaces(moto_endpoint: Server) -> None:
    server = moto_endpoint
    server.client().create_bucket(Bucket="two-hundred")
    bucket = BucketClient(server.config("two-hundred"))
    body = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>m</Message></Error>"

    class Reply:
        status_code = 200
        headers: dict[str, str] = {}  # noqa: RUF012
        content = body
        raw = None

    answer: Any = lambda **_: Reply()  # noqa: E731
    bucket._s3.meta.events.register("before-send.s3.CompleteMultipartUpload", answer)
    with pytest.raises(ClientError, match="InternalError"):
        bucket.put_parts([PART, PART], "key")
    assert unfinished_uploads(server, server.config("two-hundred")) == []
    assert not bucket.exists("key")


def test_too_many_parts(
    bucket: BucketClient,
    s3_config: BucketConfig,
    s3_server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bucket_module, "MAX_PARTS", 3)
    requests = recorded(bucket)
    with pytest.raises(BucketError, match="part_size"):
        bucket.put_parts((PART for _ in range(5)), "key")
    assert unfinished_uploads(s3_server, s3_config) == []
    numbers = [p["PartNumber"] for name, p in requests if name == "UploadPart"]
    assert max(numbers) == 3


def test_a_known_size_lets_parts_grow(
    bucket: BucketClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buckethead.storage.parallel.MAX_PARTS", 2)
    requests = recorded(bucket)
    bucket.put_parts((PART for _ in range(3)), "key", size=3 * PART_SIZE)
    sizes = {p["PartNumber"]: len(p["Body"]) for name, p in requests if name == "UploadPart"}
    assert sizes == {1: PART_SIZE * 3 // 2, 2: PART_SIZE * 3 // 2}


def test_extra_arguments_and_metadata_reach_every_creating_request(
    s3_config: BucketConfig,
) -> None:
    extra = {"ContentType": "application/vnd.sqlite3"}
    bucket = BucketClient(s3_config.model_copy(update={"extra_put_args": extra}))
    requests = recorded(bucket)
    bucket.put_bytes(b"1", "a")
    bucket.put_parts([PART, PART], "b")
    bucket.copy("a", "c")
    for operation in ("PutObject", "CreateMultipartUpload", "CopyObject"):
        params = next(p for name, p in requests if name == operation)
        assert params["ContentType"] == "application/vnd.sqlite3"


def test_large_objects_are_copied_in_parts(
    bucket: BucketClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_module, "LARGEST_COPY", PART_SIZE)
    monkeypatch.setattr(bucket_module, "COPY_PART", PART_SIZE)
    data = bytes(range(256)) * 50_000
    bucket.put_parts([data], "a", metadata={"txid": "7"})
    requests = recorded(bucket)
    assert bucket.copy("a", "b") is True
    assert [name for name, _ in requests].count("UploadPartCopy") == 3
    assert bucket.get_bytes("b") == data
    info = bucket.head("b")
    assert info is not None
    assert info.metadata == {"txid": "7"}


def test_a_copy_of_an_object_that_is_replaced_meanwhile(
    bucket: BucketClient,
    s3_config: BucketConfig,
    s3_server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bucket_module, "LARGEST_COPY", PART_SIZE)
    monkeypatch.setattr(bucket_module, "COPY_PART", PART_SIZE)
    bucket.put_parts([PART, PART], "a")
    other = BucketClient(s3_config)

    def replacing(*args: Any) -> Iterator[Any]:
        yield from ordered_map(*args)
        other.put_bytes(b"another", "a")

    monkeypatch.setattr(bucket_module, "ordered_map", replacing)
    with pytest.raises(PreconditionFailedError, match="taken its place"):
        bucket.copy("a", "b")
    assert unfinished_uploads(s3_server, s3_config) == []
    assert not bucket.exists("b")


# ---- uploads that nobody finished


def begun(server: Server, bucket: str, *keys: str) -> None:
    for key in keys:
        server.client().create_multipart_upload(Bucket=bucket, Key=key)


def test_stale_uploads_are_aborted_by_prefix_wish_and_age(
    bucket: BucketClient, s3_config: BucketConfig, s3_server: Server
) -> None:
    begun(s3_server, s3_config.bucket, "app", "app.ltx/1", "app.ltx/1", "app2", "other")
    soon = time.time() + 60
    # moto dates every upload to 2010
    assert bucket.abort_uploads("app", before=1_000_000_000) == []
    assert len(unfinished_uploads(s3_server, s3_config)) == 5
    aborted = bucket.abort_uploads("app", before=soon, wanted=lambda key: key != "app2")
    assert sorted(aborted) == ["app", "app.ltx/1", "app.ltx/1"]
    assert sorted(unfinished_uploads(s3_server, s3_config)) == ["app2", "other"]
    assert bucket.abort_uploads("app", before=soon) == ["app2"]


def test_young_uploads_go_on(seaweed_endpoint: Server) -> None:
    with fresh_bucket(seaweed_endpoint) as name:
        begun(seaweed_endpoint, name, "app")
        bucket = BucketClient(seaweed_endpoint.config(name))
        assert bucket.abort_uploads("app", before=time.time() - 3600) == []
        assert bucket.abort_uploads("app", before=time.time() + 60) == ["app"]


def test_uploads_are_listed_page_by_page(
    seaweed_endpoint: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_module, "LIST_PAGE", 2)
    with fresh_bucket(seaweed_endpoint) as name:
        keys = ["app/1", "app/1", "app/1", "app/2", "app/3"]
        begun(seaweed_endpoint, name, *keys)
        bucket = BucketClient(seaweed_endpoint.config(name))
        requests = recorded(bucket)
        assert sorted(bucket.abort_uploads("app", before=time.time() + 60)) == keys
        assert [name for name, _ in requests].count("ListMultipartUploads") >= 3


def test_the_markers_of_a_page_ask_for_the_next(
    bucket: BucketClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = [
        {"IsTruncated": True, "NextKeyMarker": "b", "NextUploadIdMarker": "2"},
        {"IsTruncated": True, "NextKeyMarker": "b", "NextUploadIdMarker": "3"},
        {"IsTruncated": True, "NextKeyMarker": "b", "NextUploadIdMarker": "3"},
    ]
    asked: list[tuple[Any, Any]] = []

    def page(**request: Any) -> Any:
        asked.append((request.get("KeyMarker"), request.get("UploadIdMarker")))
        return pages[len(asked) - 1]

    monkeypatch.setattr(bucket._s3, "list_multipart_uploads", page)
    # the last page says that there are more, and names the same place again
    assert bucket.abort_uploads("", before=time.time()) == []
    assert asked == [(None, None), ("b", "2"), ("b", "3")]


def test_an_upload_that_ended_after_it_was_listed(
    bucket: BucketClient, s3_config: BucketConfig, s3_server: Server
) -> None:
    begun(s3_server, s3_config.bucket, "app")
    failing(bucket, "AbortMultipartUpload", client_error(bucket, "NoSuchUpload", 404))
    assert bucket.abort_uploads("app", before=time.time() + 60) == []


def test_a_store_that_lists_no_uploads_says_so(
    bucket: BucketClient, caplog: pytest.LogCaptureFixture
) -> None:
    failing(bucket, "ListMultipartUploads", client_error(bucket, "NotImplemented", 501))
    with caplog.at_level(logging.INFO, "buckethead"):
        assert bucket.abort_uploads("app", before=time.time()) == []
    assert "does not list multipart uploads" in caplog.text


# ---- encryption with a customer's key

SSE_C = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "0123456789abcdef" * 2}


def test_a_customers_key_is_sent_with_all_that_touches_content_and_nothing_else_is(
    s3_config: BucketConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_module, "LARGEST_COPY", PART_SIZE)
    extra = {**SSE_C, "StorageClass": "STANDARD"}
    bucket = BucketClient(s3_config.model_copy(update={"extra_put_args": extra}))
    requests = recorded(bucket)
    accepted = {"HeadBucket", "DeleteObject", "ListObjectsV2"}
    answer: Any = lambda model, **_: (HTTPAnswer(), ANSWERS.get(model.name, {}))  # noqa: E731
    bucket._s3.meta.events.register("before-call.s3", answer)
    bucket.put_bytes(b"1", "a")
    bucket.put_parts([PART, b"x"], "b")
    bucket.copy("a", "c")
    monkeypatch.setattr(bucket_module, "LARGEST_COPY", 0)
    bucket.copy("a", "d")
    bucket.get_bytes("a")
    bucket.get_range("a", 0, 1)
    bucket.delete("a")
    seen = {name for name, _ in requests}
    assert seen >= {"PutObject", "CopyObject", "UploadPartCopy", "GetObject", "HeadObject"}
    for name, params in requests:
        assert (SSE_C.items() <= params.items()) == (name not in accepted), name
        creates = name in ("PutObject", "CreateMultipartUpload", "CopyObject")
        assert ("StorageClass" in params) == creates, name
        copies = name in ("CopyObject", "UploadPartCopy")
        assert ("CopySourceSSECustomerKey" in params) == copies, name


class HTTPAnswer:
    status_code = 200


class Body:
    def read(self) -> bytes:
        return b"1"

    def close(self) -> None:
        """Nothing is open."""


ANSWERS: dict[str, dict[str, Any]] = {
    "HeadObject": {
        "ContentLength": 1,
        "ETag": '"e"',
        "LastModified": datetime.fromtimestamp(0, UTC),
        "Metadata": {},
    },
    "GetObject": {"Body": Body()},
    "PutObject": {"ETag": '"e"'},
    "UploadPart": {"ETag": '"e"'},
    "UploadPartCopy": {"CopyPartResult": {"ETag": '"e"'}},
    "CreateMultipartUpload": {"UploadId": "u"},
    "CompleteMultipartUpload": {"ETag": '"e"'},
}


def test_an_object_under_a_customers_key(seaweed_endpoint: Server) -> None:
    with fresh_bucket(seaweed_endpoint) as name:
        bucket = BucketClient(seaweed_endpoint.config(name, extra_put_args=SSE_C))
        bucket.put_bytes(b"0123456789", "small", metadata={"txid": "7"})
        bucket.put_parts([PART, b"rest"], "large")
        bucket.copy("small", "copy")
        assert bucket.get_bytes("copy") == b"0123456789"
        assert bucket.get_range("large", PART_SIZE - 1, 3) == b"xre"
        info = bucket.head("small")
        assert info is not None
        assert info.metadata == {"txid": "7"}
        with pytest.raises(ClientError):
            BucketClient(seaweed_endpoint.config(name)).get_bytes("small")


# ---- the rest


def test_a_presigned_url_reads_the_object(bucket: BucketClient) -> None:
    bucket.put_bytes(b"shared", "a b")
    url = bucket.generate_presigned_get("a b", expires_in=60)
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in url
    with urllib.request.urlopen(url, timeout=30) as reply:
        assert reply.read() == b"shared"


def test_what_could_not_be_deleted_is_named(
    bucket: BucketClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [{"Key": "b", "Code": "AccessDenied"}, {"Key": "c", "Code": "AccessDenied"}]
    monkeypatch.setattr(bucket._s3, "delete_objects", lambda **_: {"Errors": errors})
    with pytest.raises(BucketError, match=r"2 objects .*'b' \(AccessDenied\)"):
        bucket.delete_many(["a", "b", "c"])


def test_a_missing_object_costs_one_look_at_the_bucket(bucket: BucketClient) -> None:
    for _ in range(3):
        assert not bucket.exists("none")
    operations = bucket.counters.snapshot().operations
    assert operations["head_object"].operations == 3
    assert operations["head_bucket"].operations == 1


def test_counters_of_a_multipart_upload(s3_config: BucketConfig) -> None:
    counters = IOCounters()
    bucket = BucketClient(s3_config, counters)
    bucket.put_parts([PART, PART, b"1"], "key")
    assert {name: count.operations for name, count in counters.snapshot().operations.items()} == {
        "create_multipart_upload": 1,
        "upload_part": 3,
        "complete_multipart_upload": 1,
    }
    assert counters.snapshot().bytes_up == 2 * PART_SIZE + 1


AT_EXIT = """
import atexit, sys
from buckethead.config import BucketConfig
from buckethead.storage.directory import open_bucket

endpoint, name, key, secret, first = sys.argv[1:]
bucket = open_bucket(BucketConfig(
    bucket=name, endpoint_url=endpoint, access_key_id=key, secret_access_key=secret,
    part_size=5 * 1024 * 1024,
))
data = bytes(range(256)) * 50_000
if first == "early":
    bucket.put_parts([data], "early")

@atexit.register
def hook():
    bucket.put_parts([data[:7_000_000], data[7_000_000:]], "late")
    assert b"".join(bucket.get_parts("late", len(data))) == data
    print("done")
"""


@pytest.mark.parametrize("first", ["early", "late"])
def test_transfers_work_in_an_exit_hook(bucket_config: BucketConfig, first: str) -> None:
    """``late``: boto3 itself is imported during the exit."""
    key, secret = bucket_config.access_key_id, bucket_config.secret_access_key
    arguments = [
        bucket_config.endpoint_url or "",
        bucket_config.bucket,
        key.get_secret_value() if key else "unused",
        secret.get_secret_value() if secret else "unused",
        first,
    ]
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", AT_EXIT, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")
