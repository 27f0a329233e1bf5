"""Sharing files: a copy of a blob in another bucket, and the URL that others read it by.

What can still be read by its URL is never forgotten, whatever becomes of the caller's transaction
or of the process:

1. The row in ``filestore_shares`` is written before the copy and removed after it.
2. The copy itself says what it is of and when it ends, and that is what `Shares.sweep` goes by:
   also for copies that no row tells of, because a transaction was rolled back or a row was never
   published. A row without a copy is the worst that is left; the next sweep removes it.
3. A row follows its copy: where the copy says that it ends later, since it was shared again from
   another database or branch, the row takes that over and the copy stays.

A presigned URL is a secret: it is in what `Shares.share` returns and nowhere else.
"""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import apsw

from .config import BucketConfig, ShareConfig
from .errors import BlobNotFoundError, PreconditionFailedError
from .files import blobs
from .files.rows import FileMetadata, row_of
from .interfaces.backing import Backing
from .interfaces.statements import as_one
from .share_config import LONGEST_PUBLIC_DAYS
from .share_names import headers_for, is_share_key, share_key_for
from .storage.client import spelled_alike
from .storage.contract import LONGEST_PRESIGNED_SECONDS, Bucket, ObjectInfo
from .storage.directory import open_bucket
from .storage.parallel import ordered_map
from .storage.translate import translated

Mode = Literal["public", "presigned"]

DAY_SECONDS = 86_400
LONGEST_PUBLIC_SECONDS = LONGEST_PUBLIC_DAYS * DAY_SECONDS
KEY_DIGITS = 64

# Metadata of a copy: the blob it is of, and when it ends, in unix seconds.
OF_BLOB = "buckethead-blob"
ENDS_AT = "buckethead-expires"

_SHARES = Backing(
    "filestore_shares",
    {
        "share_key": "TEXT NOT NULL",
        "bucket": "TEXT NOT NULL",
        "bh_key": "TEXT NOT NULL",
        "mode": "TEXT NOT NULL",
        "created_at": "REAL NOT NULL",
        "expires_at": "REAL NOT NULL",
    },
    keys=2,
)


@dataclass(frozen=True, slots=True)
class ShareResult:
    """A share as it was just made. ``url`` reads the file until ``expires_at``, in unix seconds;
    a presigned one is a secret, so it is not in the repr."""

    bh_key: str
    share_key: str
    url: str = field(repr=False)
    mode: Mode
    expires_at: float


class Share(NamedTuple):
    """A share that is recorded, until it is swept. Times in unix seconds; ``bucket`` is where the
    copy is. Whatever a row of an older version does not say is None."""

    share_key: str
    bucket: str | None
    bh_key: str | None
    mode: str | None
    created_at: float | None
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep found, as share keys: ``removed`` were over. ``unrecorded`` can still be read
    and have no row here: they are of another database or branch, or of a transaction that was
    rolled back. They are removed when they end; `Shares.unshare` removes them at once."""

    removed: tuple[str, ...]
    unrecorded: tuple[str, ...]


class Shares:
    """The files of a database that are shared by way of one bucket.

    ``connection`` has the rows, in whatever transaction it is in; they are never committed here.
    ``files_bucket`` has the blobs. Copies and their removal are requests and happen at once, so a
    rollback does not undo them.

    Besides what is said below, everything raises BucketError, and what SQL raises: apsw.BusyError,
    VolumeReadOnlyError; VolumeError where the name ``filestore_shares`` is another table's.
    """

    def __init__(
        self, connection: apsw.Connection, files_bucket: Bucket, config: ShareConfig
    ) -> None:
        self._connection = connection
        self._files = files_bucket
        self._config = config
        self._place = _place_of(config)

    def share(
        self, bh_key: str, *, ttl_seconds: float | None = None, share_name: str | None = None
    ) -> ShareResult:
        """Copy a file to the share bucket and return the URL it can be read by.

        It is ``<slug>/<first 8 hex digits><extension>`` there, the slug from ``share_name``, else
        the file's name, else its key. The same again renews it: the last call says when it ends.

        Raises BlobNotFoundError for an unknown key or a blob that is gone, BlobAlteredError,
        PreconditionFailedError where another object has the name; ValueError for a ``share_name``
        without a letter or digit, and a ``ttl_seconds`` not above 0, or above 604,800 unless the
        bucket is public.
        """
        ttl = self._ttl(ttl_seconds)
        file = self._file(bh_key)
        share_key = share_key_for(bh_key, file.filename, share_name)
        target = self._target(headers_for(share_key, file.filename, file.mime))
        _check_free(target, share_key, bh_key)
        now = time.time()
        url = self._url(target, share_key, ttl)
        share = Share(share_key, self._place, bh_key, self._mode, now, now + ttl)
        self._record(share)
        try:
            self._copy(file, target, share)
        except BaseException as error:
            self._settle_after(error, target, share)
            raise
        return ShareResult(bh_key, share_key, url, self._mode, now + ttl)

    def unshare(self, share_key: str) -> bool:
        """End a share now; False when there is none of that key. One that no row tells of is ended
        too."""
        share = self._row(share_key)
        if share is None and not is_share_key(share_key):
            return False
        target = self._target()
        with translated(f"end the share {share_key!r}", target):
            copy = target.head(share_key)
            if share is None and (copy is None or _end_of(copy) is None):
                return False
            if copy is not None:
                target.delete(share_key)
        if share is not None:
            self._replace(share, None)
        return True

    def list(self) -> list[Share]:
        """The shares that are recorded for this bucket, oldest first; those that are over are among
        them until they are swept. Nothing is requested."""
        ours = "WHERE bucket = ? OR bucket IS NULL ORDER BY created_at, share_key"
        return [Share(*row) for row in _SHARES.rows(self._connection, ours, (self._place,))]

    def url(self, share: Share) -> str | None:
        """The URL of a public share; None for any other: a presigned one is not kept."""
        if not self._config.public or share.mode != "public" or share.bucket != self._place:
            return None
        return self._public_url(share.share_key)

    def sweep(self, *, dry_run: bool = False) -> SweepReport:
        """Remove what is over, copies and rows; ``dry_run`` only tells. It lists the bucket, and
        looks at each copy of an ended row, and each that no row tells of."""
        now = time.time()
        target = self._target()
        with translated("sweep the shares", target):
            listed = [key for key in target.list_keys() if is_share_key(key)]
            shares = [share for share in self.list() if share.bucket is not None]
            removed = [
                share.share_key
                for share in shares
                if share.expires_at is not None
                and share.expires_at <= now
                and self._settle(target, share, now, dry_run=dry_run)
            ]
            known = {share.share_key for share in shares}
            unrecorded: list[str] = []
            for copy in _looked_at(target, (key for key in listed if key not in known)):
                ends = _end_of(copy)
                if ends is None:  # not ours
                    continue
                (removed if ends <= now else unrecorded).append(copy.key)
                if ends <= now and not dry_run:
                    target.delete(copy.key)
        return SweepReport(tuple(removed), tuple(unrecorded))

    # -- copies -----------------------------------------------------------------------------

    @property
    def _mode(self) -> Mode:
        return "public" if self._config.public else "presigned"

    def _target(self, headers: dict[str, str] | None = None) -> Bucket:
        """The share bucket; what is written to it is served with ``headers``."""
        config = self._config
        return open_bucket(
            BucketConfig(
                bucket=config.bucket,
                endpoint_url=config.endpoint_url,
                region=config.region,
                access_key_id=config.access_key_id,
                secret_access_key=config.secret_access_key,
                extra_put_args=headers or {},
            )
        )

    def _ttl(self, seconds: float | None) -> float:
        if seconds is None:
            return self._config.default_ttl_days * DAY_SECONDS
        longest = LONGEST_PUBLIC_SECONDS if self._config.public else LONGEST_PRESIGNED_SECONDS
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not is_number or not 0 < seconds <= longest:
            raise ValueError(
                f"Could not share for ttl_seconds={seconds!r}: it is to be a number above 0, and "
                f"{longest} at most."
            )
        return seconds

    def _url(self, target: Bucket, share_key: str, ttl: float) -> str:
        if self._config.public:
            return self._public_url(share_key)
        with translated(f"make a URL for the share {share_key!r}", target):
            return target.generate_presigned_get(share_key, expires_in=math.ceil(ttl))

    def _public_url(self, share_key: str) -> str:
        return f"{(self._config.public_base_url or '').rstrip('/')}/{share_key}"

    def _file(self, bh_key: str) -> FileMetadata:
        row = row_of(self._connection, "main", bh_key)
        if row is None:
            raise BlobNotFoundError(
                f"Could not share {str(bh_key)[:KEY_DIGITS]!r}: there is no file of that key. See "
                "files.list() for those there are."
            )
        return FileMetadata.of_row(row)

    def _copy(self, file: FileMetadata, target: Bucket, share: Share) -> None:
        metadata = {OF_BLOB: file.bh_key, ENDS_AT: repr(share.expires_at)}
        with (
            translated(f"share the file {file.bh_key}", target),
            # raises at its end where the blob is not what its key says: before the copy is there
            closing(blobs.read(self._files, file.object_key, file.bh_key, file.size)) as content,
        ):
            target.put_parts(content, share.share_key, size=file.size, metadata=metadata)

    # -- rows -------------------------------------------------------------------------------

    def _row(self, share_key: str) -> Share | None:
        """The row of a share in this bucket, else that of an older version, which names none."""
        ours = "WHERE share_key = ? AND (bucket = ? OR bucket IS NULL) ORDER BY bucket DESC"
        for row in _SHARES.rows(self._connection, ours, (share_key, self._place)):
            return Share(*row)
        return None

    def _record(self, share: Share) -> None:
        with as_one(self._connection):
            _SHARES.drop(self._connection, (share.share_key, None))  # an older version's
            _SHARES.put(self._connection, share)

    def _replace(self, seen: Share, new: Share | None) -> None:
        """Change or remove a row, unless it is another one by now."""
        with as_one(self._connection):
            if self._row(seen.share_key) != seen:
                return
            if new is not None:
                _SHARES.put(self._connection, new)
            else:
                _SHARES.drop(self._connection, (seen.share_key, seen.bucket))

    def _settle(self, target: Bucket, share: Share, now: float, *, dry_run: bool = False) -> bool:
        """Let a row follow its copy: end both where the copy is over, or gone. Whether it is."""
        copy = target.head(share.share_key)
        ends = _end_of(copy) if copy is not None else None
        over = ends is None or ends <= now
        if dry_run:
            return over
        if ends is not None and over:
            target.delete(share.share_key)
        self._replace(share, None if over else share._replace(expires_at=ends))
        return over

    def _settle_after(self, error: BaseException, target: Bucket, share: Share) -> None:
        try:
            self._settle(target, share, time.time())
        except Exception as another:
            error.add_note(
                f"Whether there is a copy {share.share_key!r} at {target.url} could not be found "
                f"out either ({type(another).__name__}), so its row stays: sweep() removes both "
                "when it is over, unshare() at once."
            )


def _place_of(config: ShareConfig) -> str:
    """The bucket as rows name it, the same however its endpoint is spelled."""
    endpoint = (config.endpoint_url or "").rstrip("/")
    if not endpoint.startswith("file:"):
        endpoint = spelled_alike(endpoint)
    return f"{config.bucket} {endpoint}".rstrip()


def _end_of(copy: ObjectInfo) -> float | None:
    """When a copy ends; None for an object that is no copy of ours."""
    try:
        return float(copy.metadata[ENDS_AT])
    except (KeyError, ValueError):
        return None


def _looked_at(target: Bucket, keys: Iterable[str]) -> Iterator[ObjectInfo]:
    with closing(ordered_map(target.head, keys, target.concurrency)) as found:
        yield from (copy for copy in found if copy is not None)


def _check_free(target: Bucket, share_key: str, bh_key: str) -> None:
    """Raise PreconditionFailedError when another object has the name of the copy."""
    with translated(f"look at {share_key!r}", target):
        copy = target.head(share_key)
    if copy is not None and copy.metadata.get(OF_BLOB) != bh_key:
        raise PreconditionFailedError(
            f"Could not share {bh_key!r} as {share_key!r}: there is another object of that name at "
            f"{target.url}. Give a share_name of its own."
        )
