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
    ObjectNotFoundError,
    PreconditionFailedError,
    SnapshotCorruptError,
    SnapshotError,
    VolumeBusyError,
    VolumeError,
    VolumeReadOnlyError,
)
from .observability.reporter import RichStatusReporter, StatusReporter
from .storage.bucket import BucketClient
from .storage.contract import Bucket
from .storage.counters import IOCounters
from .storage.directory import DirectoryBucket, open_bucket
from .storage.snapshot import FlushResult
from .volume import Volume, VolumeStatus

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
    "FlushResult",
    "IOCounters",
    "ObjectNotFoundError",
    "PreconditionFailedError",
    "ProfilingConfig",
    "RichStatusReporter",
    "SnapshotConfig",
    "SnapshotCorruptError",
    "SnapshotError",
    "StatusReporter",
    "Volume",
    "VolumeBusyError",
    "VolumeError",
    "VolumeReadOnlyError",
    "VolumeStatus",
    "mount",
    "open_bucket",
    "unmount",
]
