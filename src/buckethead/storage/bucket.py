"""`BucketClient`: objects in a store of S3, a thin layer over boto3.

No retry logic of its own. botocore's errors surface as they are (``translate.py`` turns them into
messages), except where the caller must decide: a missing object and a failed precondition.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakValueDictionary

from pydantic import SecretStr

from buckethead.config import BucketConfig
from buckethead.errors import (
    BucketError,
    ConfigError,
)
from buckethead.storage.contract import (
    Bucket,
    ObjectInfo,
    check_expiry,
    missing,
    refused,
    replaced,
)
from buckethead.storage.counters import IOCounters
from buckethead.storage.parallel import MAX_PARTS, equal_parts, ordered_map, part_size_for
from buckethead.storage.translate import code_of, describe, status_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import (
        CompletedMultipartUploadTypeDef,
        CompletedPartTypeDef,
        CopySourceTypeDef,
    )

__all__ = ["Bucket", "BucketClient", "IOCounters", "ObjectInfo"]

# S3's limit of one CopyObject, and the parts a larger object is copied in.
LARGEST_COPY = 5 * 1024**3
COPY_PART = 512 * 1024**2
# S3's limits of one DeleteObjects and one ListObjectsV2.
DELETE_BATCH = 1000
LIST_PAGE = 1000
# First try included. boto3's "standard" mode waits at most 1 s, then 2 s between tries, so that
# a dead endpoint costs three timeouts and no more.
_ATTEMPTS = 3
# Kept open at most. One client serves every volume of a store: it weighs 11 MB, a volume 170 KB.
_CONNECTIONS = 64
# What a store may answer instead of 412: two conditional writes at once, and If-Match where there
# is no object at all.
_LOST_CONDITIONS = ("ConditionalRequestConflict", "NoSuchKey")


class BucketClient(Bucket):
    """A bucket of an S3 store, over ``boto3.client("s3")``.

    Made without a request; the client itself is made at the first one, since boto3 takes 0.3 s to
    import and build. ConfigError when no region can be found by then.
    """

    def __init__(self, config: BucketConfig, io_counters: IOCounters | None = None) -> None:
        endpoint = (config.endpoint_url or "").rstrip("/")
        self.url = f"s3://{config.bucket}" + (f" at {endpoint}" if endpoint else "")
        self.identity = ("s3", _spelled_alike(endpoint), config.bucket)
        self.counters = io_counters or IOCounters()
        self.part_size = config.part_size
        self.concurrency = config.concurrency
        self._config = config
        self._name = config.bucket
        self._extra: dict[str, Any] = dict(config.extra_put_args)
        self._lock = threading.RLock()  # reentrant for finalizers
        self._client: S3Client | None = None  # made under _lock, never replaced
        self._bucket_seen = False

    def __repr__(self) -> str:
        return f"BucketClient({self.url!r})"

    @property
    def _s3(self) -> "S3Client":
        with self._lock:
            if self._client is None:
                self._client = _client_for(self._config)
            return self._client

    def head(self, key: str) -> ObjectInfo | None:
        s3 = self._s3
        try:
            with self.counters.timed("head_object"):
                reply = s3.head_object(Bucket=self._name, Key=key)
        except s3.exceptions.ClientError as error:
            if status_of(error) != 404:
                raise
            self._check_bucket()
            return None
        modified = reply["LastModified"].timestamp()
        return ObjectInfo(key, reply["ContentLength"], reply["ETag"], modified, reply["Metadata"])

    def get_bytes(self, key: str) -> bytes:
        with self._existing(key):
            return self._get(key)

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        if length < 1:
            return b""
        s3 = self._s3
        request = {"Range": f"bytes={start}-{start + length - 1}"} | _conditions(False, if_match)
        try:
            with self._existing(key):
                return self._get(key, **request)
        except s3.exceptions.ClientError as error:
            if status_of(error) == 416:
                return b""
            raise

    def put_bytes(
        self,
        data: bytes | bytearray,
        key: str,
        *,
        metadata: Mapping[str, str] | None = None,
        if_none_match: bool = False,
        if_match: str | None = None,
    ) -> str:
        request = self._created_with(metadata) | _conditions(if_none_match, if_match)
        request["Body"] = data
        with self._conditional(key, if_none_match), self.counters.timed("put_object") as traffic:
            reply = self._s3.put_object(Bucket=self._name, Key=key, **request)
            traffic.up = len(data)
        return reply["ETag"]

    def put_parts(
        self,
        chunks: Iterable[bytes],
        key: str,
        *,
        size: int | None = None,
        metadata: Mapping[str, str] | None = None,
        if_none_match: bool = False,
        if_match: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> str:
        report = progress or (lambda size: None)
        parts = equal_parts(chunks, part_size_for(size or 0, self.part_size))
        first = deque(islice(parts, 2))
        if len(first) < 2:
            data = first.pop() if first else b""
            etag = self.put_bytes(
                data, key, metadata=metadata, if_none_match=if_none_match, if_match=if_match
            )
            report(len(data))
            return etag
        # taken out one by one, so that nothing here keeps a part that was sent
        every_part = chain((first.popleft() for _ in range(2)), parts)
        send = partial(self._send_parts, key, every_part, report)
        with self._conditional(key, if_none_match):
            return self._multipart(key, metadata, send, _conditions(if_none_match, if_match))

    def copy(self, src: str, dst: str) -> bool:
        info = self.head(src)
        if info is None:
            return False
        if info.size > LARGEST_COPY:
            self._multipart(dst, info.metadata, partial(self._copy_parts, info, dst), {})
            return True
        source: CopySourceTypeDef = {"Bucket": self._name, "Key": src}
        s3 = self._s3
        try:
            with self.counters.timed("copy_object"):
                s3.copy_object(Bucket=self._name, Key=dst, CopySource=source, **self._extra)
        except s3.exceptions.ClientError as error:
            if code_of(error) == "NoSuchKey":  # deleted since the HEAD
                return False
            raise
        return True

    def delete(self, key: str) -> None:
        with self.counters.timed("delete_object"):
            self._s3.delete_object(Bucket=self._name, Key=key)

    def delete_many(self, keys: Iterable[str]) -> None:
        failed: list[str] = []
        rest = iter(keys)
        while batch := list(islice(rest, DELETE_BATCH)):
            with self.counters.timed("delete_objects"):
                reply = self._s3.delete_objects(
                    Bucket=self._name,
                    Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True},
                )
            failed += [
                f"{error.get('Key', '')!r} ({error.get('Code', '')})"
                for error in reply.get("Errors", [])
            ]
        if failed:
            raise BucketError(
                f"Could not delete {len(failed)} objects at {self.url}, the first of them "
                f"{failed[0]}. The others are deleted; check the permissions and try again."
            )

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        request: dict[str, Any] = {"Bucket": self._name, "Prefix": prefix, "MaxKeys": LIST_PAGE}
        while True:
            with self.counters.timed("list_objects"):
                page = self._s3.list_objects_v2(**request)
            for entry in page.get("Contents", []):
                modified = entry["LastModified"].timestamp()
                yield ObjectInfo(entry["Key"], entry["Size"], entry["ETag"], modified, {})
            if not page["IsTruncated"]:
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def generate_presigned_get(self, key: str, *, expires_in: int) -> str:
        check_expiry(expires_in)
        target = {"Bucket": self._name, "Key": key}
        return self._s3.generate_presigned_url("get_object", Params=target, ExpiresIn=expires_in)

    def _get(self, key: str, **request: Any) -> bytes:
        with self.counters.timed("get_object") as traffic:
            reply = self._s3.get_object(Bucket=self._name, Key=key, **request)
            with closing(reply["Body"]) as body:
                data = body.read()
            traffic.down = len(data)
        return data

    @contextmanager
    def _existing(self, key: str) -> Iterator[None]:
        s3 = self._s3
        try:
            yield
        except s3.exceptions.ClientError as error:
            if code_of(error) == "NoSuchKey":
                raise missing(key, self.url) from error
            if status_of(error) == 412:
                raise replaced(key, self.url) from error
            raise

    @contextmanager
    def _conditional(self, key: str, if_none_match: bool) -> Iterator[None]:
        s3 = self._s3
        try:
            yield
        except s3.exceptions.ClientError as error:
            if status_of(error) == 412 or code_of(error) in _LOST_CONDITIONS:
                raise refused(key, self.url, if_none_match=if_none_match) from error
            raise

    def _check_bucket(self) -> None:
        # A HEAD gives a bare 404 for a missing object and for a missing bucket alike.
        if self._bucket_seen:
            return
        s3 = self._s3
        try:
            with self.counters.timed("head_bucket"):
                s3.head_bucket(Bucket=self._name)
        except s3.exceptions.ClientError as error:
            if status_of(error) != 403:  # no leave to ask; there is a bucket then
                raise
        self._bucket_seen = True

    def _created_with(self, metadata: Mapping[str, str] | None) -> dict[str, Any]:
        return {**self._extra, "Metadata": dict(metadata or {})}

    def _multipart(
        self,
        key: str,
        metadata: Mapping[str, str] | None,
        carry: Callable[[str], "list[CompletedPartTypeDef]"],
        conditions: dict[str, Any],
    ) -> str:
        """Create, ``carry(upload_id)``, complete; aborted whatever is raised on the way."""
        upload_id = None
        place: dict[str, Any] = {"Bucket": self._name, "Key": key}
        try:
            with self.counters.timed("create_multipart_upload"):
                reply = self._s3.create_multipart_upload(**place, **self._created_with(metadata))
                place["UploadId"] = upload_id = reply["UploadId"]
            parts: CompletedMultipartUploadTypeDef = {"Parts": carry(upload_id)}
            with self.counters.timed("complete_multipart_upload"):
                done = self._s3.complete_multipart_upload(
                    **place, MultipartUpload=parts, **conditions
                )
        except BaseException as error:
            if upload_id is not None:
                self._abort(place, error)
            raise
        return done["ETag"]

    def _abort(self, place: dict[str, Any], first: BaseException) -> None:
        try:
            with self.counters.timed("abort_multipart_upload"):
                self._s3.abort_multipart_upload(**place)
        except Exception as error:
            first.add_note(
                f"The multipart upload of {place['Key']!r} at {self.url} could not be aborted "
                f"either: {describe(error)}. Its parts may be stored and billed until it is."
            )

    def _send_parts(
        self,
        key: str,
        parts: Iterable[bytes | bytearray],
        report: Callable[[int], None],
        upload_id: str,
    ) -> "list[CompletedPartTypeDef]":
        def send(numbered: tuple[int, bytes | bytearray]) -> tuple[int, str, int]:
            number, data = numbered
            request: dict[str, Any] = {"UploadId": upload_id, "PartNumber": number, "Body": data}
            with self.counters.timed("upload_part") as traffic:
                reply = self._s3.upload_part(Bucket=self._name, Key=key, **request)
                traffic.up = len(data)
            return number, reply["ETag"], len(data)

        completed: list[CompletedPartTypeDef] = []
        with closing(ordered_map(send, self._numbered(parts, key), self.concurrency)) as sent:
            for number, etag, length in sent:
                completed.append({"PartNumber": number, "ETag": etag})
                report(length)
        return completed

    def _numbered(
        self, parts: Iterable[bytes | bytearray], key: str
    ) -> Iterator[tuple[int, bytes | bytearray]]:
        for number, part in enumerate(parts, 1):
            if number > MAX_PARTS:
                raise BucketError(
                    f"Could not write {key!r} at {self.url}: more than {MAX_PARTS} parts of "
                    f"{self.part_size} bytes, S3's limit. Raise part_size, or state the size."
                )
            yield number, part

    def _copy_parts(
        self, info: ObjectInfo, dst: str, upload_id: str
    ) -> "list[CompletedPartTypeDef]":
        length = part_size_for(info.size, COPY_PART)
        source: CopySourceTypeDef = {"Bucket": self._name, "Key": info.key}

        def copy(numbered: tuple[int, int]) -> "CompletedPartTypeDef":
            number, start = numbered
            end = min(start + length, info.size) - 1
            with self.counters.timed("upload_part_copy"):
                reply = self._s3.upload_part_copy(
                    Bucket=self._name,
                    Key=dst,
                    UploadId=upload_id,
                    PartNumber=number,
                    CopySource=source,
                    CopySourceRange=f"bytes={start}-{end}",
                )
            return {"PartNumber": number, "ETag": reply["CopyPartResult"]["ETag"]}

        starts = enumerate(range(0, info.size, length), 1)
        parts = list(ordered_map(copy, starts, self.concurrency))
        # asked afterwards, since not every store knows the condition on a copied part
        now = self.head(info.key)
        if now is None or now.etag != info.etag:
            raise replaced(info.key, self.url)
        return parts


def _conditions(if_none_match: bool, if_match: str | None) -> dict[str, Any]:
    conditions = {"IfNoneMatch": "*"} if if_none_match else {}
    return conditions if if_match is None else {**conditions, "IfMatch": if_match}


_clients: "WeakValueDictionary[tuple[object, ...], S3Client]" = WeakValueDictionary()
_clients_lock = threading.RLock()


def _client_for(config: BucketConfig) -> "S3Client":
    """The client shared by all buckets reached in the same way, but not over a fork."""
    access = config.model_dump(
        include={
            "endpoint_url",
            "region",
            "access_key_id",
            "secret_access_key",
            "session_token",
            "addressing_style",
            "connect_timeout",
            "read_timeout",
        }
    )
    with _clients_lock:
        way = (os.getpid(), *access.values())
        client = _clients.get(way)
        if client is None:
            client = _clients[way] = _make_client(config)
        return client


def _make_client(config: BucketConfig) -> "S3Client":
    # boto3 takes 0.2 s to import: a directory bucket does not pay for it
    import boto3.session  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    session = boto3.session.Session(
        aws_access_key_id=_revealed(config.access_key_id),
        aws_secret_access_key=_revealed(config.secret_access_key),
        aws_session_token=_revealed(config.session_token),
        region_name=None if _is_aws(config) and config.region == "auto" else config.region,
    )
    if session.region_name is None:
        # boto3 would go to us-east-1 without a word
        raise ConfigError(
            f"Could not use s3://{config.bucket}: it is on AWS, and no region is configured. Set "
            "region in the configuration, or AWS_DEFAULT_REGION; for another store, endpoint_url."
        )
    # AWS's own checksums are unknown to many other stores
    checksums: Literal["when_required"] | None = None if _is_aws(config) else "when_required"
    return session.client(
        "s3",
        endpoint_url=config.endpoint_url,
        config=Config(
            signature_version="s3v4",
            connect_timeout=config.connect_timeout,
            read_timeout=config.read_timeout,
            max_pool_connections=_CONNECTIONS,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            s3={"addressing_style": config.addressing_style},
            request_checksum_calculation=checksums,
            response_checksum_validation=checksums,
        ),
    )


def _spelled_alike(endpoint: str) -> str:
    """An endpoint without what makes no difference: case, and a scheme's own port."""
    endpoint = endpoint.lower()
    for scheme, port in (("http://", ":80"), ("https://", ":443")):
        if endpoint.startswith(scheme):
            endpoint = endpoint.removesuffix(port)
    return "" if endpoint == "https://s3.amazonaws.com" else endpoint


def _is_aws(config: BucketConfig) -> bool:
    return config.endpoint_url is None


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
