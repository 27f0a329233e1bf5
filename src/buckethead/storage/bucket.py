"""`BucketClient`: objects in a store of S3, a thin layer over boto3.

No retry logic of its own. botocore's errors surface as they are (``translate.py`` turns them into
messages), except where the caller must decide: a missing object and a failed precondition.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from buckethead.config import BucketConfig
from buckethead.errors import BucketError
from buckethead.storage.client import shared_client, spelled_alike
from buckethead.storage.contract import (
    Bucket,
    ObjectInfo,
    Polled,
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
        MultipartUploadTypeDef,
    )

__all__ = ["Bucket", "BucketClient", "IOCounters", "ObjectInfo"]

log = logging.getLogger("buckethead")

# S3's limit of one CopyObject, and the parts a larger object is copied in.
LARGEST_COPY = 5 * 1024**3
COPY_PART = 512 * 1024**2
# S3's limits of one DeleteObjects and one ListObjectsV2.
DELETE_BATCH = 1000
LIST_PAGE = 1000
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
        self.identity = ("s3", spelled_alike(endpoint), config.bucket)
        self.counters = io_counters or IOCounters()
        self.part_size = config.part_size
        self.concurrency = config.concurrency
        self._config = config
        self._name = config.bucket
        self._extra: dict[str, Any] = dict(config.extra_put_args)
        # S3 keeps no customer's key: it is sent with every request that touches content
        self._sse_c = {n: v for n, v in self._extra.items() if n.startswith("SSECustomer")}
        self._lock = threading.RLock()  # reentrant for finalizers
        self._client: S3Client | None = None  # made under _lock, never replaced
        self._bucket_seen = False

    def __repr__(self) -> str:
        return f"BucketClient({self.url!r})"

    @property
    def _s3(self) -> "S3Client":
        with self._lock:
            if self._client is None:
                self._client = shared_client(self._config)
            return self._client

    def head(self, key: str) -> ObjectInfo | None:
        s3 = self._s3
        try:
            with self.counters.timed("head_object"):
                reply = s3.head_object(Bucket=self._name, Key=key, **self._sse_c)
        except s3.exceptions.ClientError as error:
            if status_of(error) != 404:
                raise
            self._check_bucket()
            return None
        modified = reply["LastModified"].timestamp()
        return ObjectInfo(key, reply["ContentLength"], reply["ETag"], modified, reply["Metadata"])

    def get_bytes(self, key: str) -> bytes:
        with self._existing(key):
            return self._get(key)[0]

    def poll(self, key: str) -> Polled:
        s3 = self._s3
        try:
            data, reply = self._get(key)
        except s3.exceptions.ClientError as error:
            if code_of(error) != "NoSuchKey":
                raise
            return Polled(None, self._time_of(error.response))
        return Polled(data, self._time_of(reply))

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        if length < 1:
            return b""
        condition = _conditions(False, if_match)
        return self._get_span(key, Range=f"bytes={start}-{start + length - 1}", **condition)

    def get_tail(self, key: str, length: int) -> bytes:
        return self._get_span(key, Range=f"bytes=-{length}") if length > 0 else b""

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
        always_multipart: bool = False,
    ) -> str:
        report = progress or (lambda size: None)
        parts = equal_parts(chunks, part_size_for(size or 0, self.part_size))
        first = deque(islice(parts, 2)) or deque([b""])
        if len(first) < 2 and not always_multipart:
            data = first.pop()
            etag = self.put_bytes(
                data, key, metadata=metadata, if_none_match=if_none_match, if_match=if_match
            )
            report(len(data))
            return etag
        # taken out one by one, so that nothing here keeps a part that was sent
        every_part = chain((first.popleft() for _ in range(len(first))), parts)
        send = partial(self._send_parts, key, every_part, report)
        with self._conditional(key, if_none_match):
            return self._multipart(key, metadata, send, _conditions(if_none_match, if_match))

    def copy(self, src: str, dst: str, *, seen: ObjectInfo | None = None) -> bool:
        info = seen
        if info is None or info.size > LARGEST_COPY:  # a listing shows no metadata
            info = self.head(src)
        if info is None:
            return False
        if seen is not None and info.etag != seen.etag:
            raise replaced(src, self.url)
        if info.size > LARGEST_COPY:
            self._multipart(dst, info.metadata, partial(self._copy_parts, info, dst), {})
            return True
        source: CopySourceTypeDef = {"Bucket": self._name, "Key": src}
        condition: dict[str, Any] = {} if seen is None else {"CopySourceIfMatch": seen.etag}
        s3 = self._s3
        try:
            with self.counters.timed("copy_object"):
                s3.copy_object(
                    Bucket=self._name,
                    Key=dst,
                    CopySource=source,
                    **condition,
                    **self._extra,
                    **self._source_key(),
                )
        except s3.exceptions.ClientError as error:
            if code_of(error) == "NoSuchKey":  # deleted since it was seen
                return False
            if status_of(error) == 412:
                raise replaced(src, self.url) from error
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

    def abort_uploads(
        self,
        prefix: str,
        *,
        before: float,
        wanted: Callable[[str], bool] = lambda key: True,
    ) -> list[str]:
        s3 = self._s3
        try:
            stale = [
                upload
                for upload in self._uploads(prefix)
                if upload["Initiated"].timestamp() < before and wanted(upload["Key"])
            ]
        except s3.exceptions.ClientError as error:
            if code_of(error) != "NotImplemented":
                raise
            log.info("%s does not list multipart uploads: none were aborted", self.url)
            return []
        return [upload["Key"] for upload in stale if self._abort_upload(upload)]

    def generate_presigned_get(self, key: str, *, expires_in: int) -> str:
        check_expiry(expires_in)
        target = {"Bucket": self._name, "Key": key}
        return self._s3.generate_presigned_url("get_object", Params=target, ExpiresIn=expires_in)

    def _get(self, key: str, **request: Any) -> tuple[bytes, Mapping[str, Any]]:
        with self.counters.timed("get_object") as traffic:
            reply = self._s3.get_object(Bucket=self._name, Key=key, **self._sse_c, **request)
            with closing(reply["Body"]) as body:
                data = body.read()
            traffic.down = len(data)
        return data, reply

    def _get_span(self, key: str, **request: Any) -> bytes:
        s3 = self._s3
        try:
            with self._existing(key):
                return self._get(key, **request)[0]
        except s3.exceptions.ClientError as error:
            if status_of(error) == 416:
                return b""
            raise

    def _time_of(self, reply: Mapping[str, Any]) -> float:
        date = reply["ResponseMetadata"]["HTTPHeaders"].get("date")
        if date is None:
            raise BucketError(
                f"Could not tell the time at {self.url}: its reply has no Date header. Look for "
                "a proxy that removes it."
            )
        return parsedate_to_datetime(date).timestamp()

    def _uploads(self, prefix: str) -> "Iterator[MultipartUploadTypeDef]":
        request: dict[str, Any] = {"Bucket": self._name, "Prefix": prefix, "MaxUploads": LIST_PAGE}
        while True:
            with self.counters.timed("list_multipart_uploads"):
                page = self._s3.list_multipart_uploads(**request)
            yield from page.get("Uploads", [])
            # SeaweedFS knows the second marker only
            markers = {
                "KeyMarker": page.get("NextKeyMarker", ""),
                "UploadIdMarker": page.get("NextUploadIdMarker", ""),
            }
            if not page.get("IsTruncated") or markers.items() <= request.items():
                return
            request |= markers

    def _abort_upload(self, upload: "MultipartUploadTypeDef") -> bool:
        s3 = self._s3
        try:
            with self.counters.timed("abort_multipart_upload"):
                s3.abort_multipart_upload(
                    Bucket=self._name, Key=upload["Key"], UploadId=upload["UploadId"]
                )
        except s3.exceptions.ClientError as error:
            if code_of(error) == "NoSuchUpload":  # completed or aborted since it was listed
                return False
            raise
        return True

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

    def _source_key(self) -> dict[str, Any]:
        return {f"CopySource{name}": value for name, value in self._sse_c.items()}

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
                    **place, MultipartUpload=parts, **self._sse_c, **conditions
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
            request = {"UploadId": upload_id, "PartNumber": number, "Body": data, **self._sse_c}
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
                    **self._sse_c,
                    **self._source_key(),
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
