"""A SQLite database that lives in memory and belongs to a bucket.

Importing this makes ``apsw.Connection("file:NAME?vfs=buckethead")`` work.
"""

from .config import (
    BucketConfig,
    BucketHeadSettings,
    BucketSettings,
    ProfilingConfig,
    SnapshotConfig,
)
from .connection import Connection
from .core import BucketSQLite, mount, unmount
from .errors import (
    BucketDeniedError,
    BucketError,
    BucketHeadError,
    BucketUnavailableError,
    CommitError,
    CommitInterrupted,
    ConfigError,
    FencedError,
    HistoryError,
    ObjectNotFoundError,
    PreconditionFailedError,
    PublicationError,
    SnapshotCorruptError,
    SnapshotError,
    StaleReadError,
    VolumeBusyError,
    VolumeError,
    VolumeReadOnlyError,
    WaitTimeoutError,
)
from .observability.reporter import RichStatusReporter, StatusReporter
from .status import VolumeStatus
from .storage.bucket import BucketClient
from .storage.contract import Bucket
from .storage.counters import IOCounters
from .storage.directory import DirectoryBucket, open_bucket
from .storage.snapshot import FlushResult
from .volume import Volume

__all__ = [
    "Bucket",
    "BucketClient",
    "BucketConfig",
    "BucketDeniedError",
    "BucketError",
    "BucketHeadError",
    "BucketHeadSettings",
    "BucketSQLite",
    "BucketSettings",
    "BucketUnavailableError",
    "CommitError",
    "CommitInterrupted",
    "ConfigError",
    "Connection",
    "DirectoryBucket",
    "FencedError",
    "FlushResult",
    "HistoryError",
    "IOCounters",
    "ObjectNotFoundError",
    "PreconditionFailedError",
    "ProfilingConfig",
    "PublicationError",
    "RichStatusReporter",
    "SnapshotConfig",
    "SnapshotCorruptError",
    "SnapshotError",
    "StaleReadError",
    "StatusReporter",
    "Volume",
    "VolumeBusyError",
    "VolumeError",
    "VolumeReadOnlyError",
    "VolumeStatus",
    "WaitTimeoutError",
    "mount",
    "open_bucket",
    "unmount",
]
