"""A SQLite database that lives in memory and belongs to a bucket.

Importing this makes ``apsw.Connection("file:NAME?vfs=buckethead")`` work.
"""

from .branches import Branches
from .config import (
    BucketConfig,
    BucketHeadSettings,
    BucketSettings,
    ProfilingConfig,
    ShareConfig,
    SnapshotConfig,
)
from .connection import Connection
from .core import BucketSQLite, mount, unmount
from .errors import (
    BlobAlteredError,
    BlobError,
    BlobNotFoundError,
    BranchError,
    BranchExistsError,
    BranchNotFoundError,
    BucketDeniedError,
    BucketError,
    BucketHeadError,
    BucketUnavailableError,
    CommitError,
    CommitInterrupted,
    ConfigError,
    FencedError,
    HistoryError,
    InvalidBranchNameError,
    ObjectNotFoundError,
    PreconditionFailedError,
    PublicationError,
    SnapshotCorruptError,
    SnapshotError,
    SourceChangedError,
    StaleReadError,
    VolumeBusyError,
    VolumeError,
    VolumeReadOnlyError,
    WaitTimeoutError,
)
from .files.collecting import GCReport
from .files.rows import FileMetadata
from .files.store import FileStore
from .files.tracker import FileVersion, LocalFileTracker, SyncReport, TrackedFile
from .interfaces.docs import Collection, Docs
from .interfaces.kv import KV
from .observability.reporter import RichStatusReporter, StatusReporter
from .sharing import Share, ShareResult, Shares, SweepReport
from .status import VolumeStatus
from .storage.branches import BranchInfo
from .storage.bucket import BucketClient
from .storage.contract import Bucket
from .storage.counters import IOCounters
from .storage.directory import DirectoryBucket, open_bucket
from .storage.snapshot import FlushResult
from .volume import Volume

__all__ = [
    "KV",
    "BlobAlteredError",
    "BlobError",
    "BlobNotFoundError",
    "BranchError",
    "BranchExistsError",
    "BranchInfo",
    "BranchNotFoundError",
    "Branches",
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
    "Collection",
    "CommitError",
    "CommitInterrupted",
    "ConfigError",
    "Connection",
    "DirectoryBucket",
    "Docs",
    "FencedError",
    "FileMetadata",
    "FileStore",
    "FileVersion",
    "FlushResult",
    "GCReport",
    "HistoryError",
    "IOCounters",
    "InvalidBranchNameError",
    "LocalFileTracker",
    "ObjectNotFoundError",
    "PreconditionFailedError",
    "ProfilingConfig",
    "PublicationError",
    "RichStatusReporter",
    "Share",
    "ShareConfig",
    "ShareResult",
    "Shares",
    "SnapshotConfig",
    "SnapshotCorruptError",
    "SnapshotError",
    "SourceChangedError",
    "StaleReadError",
    "StatusReporter",
    "SweepReport",
    "SyncReport",
    "TrackedFile",
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
