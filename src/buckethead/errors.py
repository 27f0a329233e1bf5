"""The exceptions of buckethead, one tree.

Every message says what was tried, what was found and what to do. An error that can leave a
SQLite callback also inherits the ``apsw`` exception of its SQLite result code, so that it reaches
the caller as itself and ``except apsw.CantOpenError`` works too.

::

    BucketHeadError
    ├── ConfigError                  the configuration or URI cannot work    CANTOPEN
    ├── BucketError                  the bucket did not do what was asked    CANTOPEN
    │   ├── ObjectNotFoundError      no object at the key (also KeyError)
    │   ├── PreconditionFailedError  the object is not, or no longer, the expected one
    │   ├── BucketDeniedError        missing bucket, wrong credentials, no permission, full disk
    │   └── BucketUnavailableError   refused, timed out, throttled, 5xx: worth another try
    ├── SnapshotError                an image could not be written or read   CANTOPEN
    │   └── SnapshotCorruptError     the object at the key is not a sound database image
    ├── HistoryError                 a gap, a damaged delta, a lost moment   CANTOPEN
    ├── BranchError                  a branch cannot be made, found or deleted   CANTOPEN
    │   ├── InvalidBranchNameError   no name for a branch (also ValueError)
    │   ├── BranchNotFoundError      there is no branch of that name (also KeyError)
    │   └── BranchExistsError        there is one already (also ValueError)
    ├── BlobError                    a file's content cannot be stored or had   CANTOPEN
    │   ├── BlobNotFoundError        no such file, or its object is gone (also KeyError)
    │   ├── BlobAlteredError         the object is not what its name says
    │   └── SourceChangedError       what was to be stored changed while it was read
    ├── VolumeError                  the volume cannot do this now           CANTOPEN
    │   ├── VolumeBusyError          a transaction or another mount is in the way
    │   ├── StaleReadError           a follower has heard nothing for longer than it may
    │   └── WaitTimeoutError         not durable yet (also TimeoutError)
    ├── VolumeReadOnlyError          a write where this process may only read   READONLY
    │   └── FencedError              another writer has taken the history over
    └── CommitError                  COMMIT was cut short                    IOERR
        ├── CommitInterrupted        by Ctrl-C (also KeyboardInterrupt)
        └── PublicationError         COMMIT had to reach the bucket and did not, or nobody knows
"""

import apsw


class BucketHeadError(Exception):
    """Any error of buckethead's own."""

    def __str__(self) -> str:
        # KeyError would show the repr of its message
        return Exception.__str__(self)


class _CantOpen(apsw.CantOpenError):
    result = apsw.SQLITE_CANTOPEN
    extendedresult = apsw.SQLITE_CANTOPEN


class ConfigError(BucketHeadError, _CantOpen):
    """The configuration, the environment or the URI cannot work as it is."""


class BucketError(BucketHeadError, _CantOpen):
    """The bucket did not do what was asked."""


class ObjectNotFoundError(BucketError, KeyError):
    """There is no object at the key."""


class PreconditionFailedError(BucketError):
    """The object at the key is not, or no longer, the one the request was conditional on."""


class BucketDeniedError(BucketError):
    """The bucket is missing, the credentials are wrong, or the store has no room or no leave."""


class BucketUnavailableError(BucketError):
    """The store was not reached, or did not answer in time: the same call may work later."""


class SnapshotError(BucketHeadError, _CantOpen):
    """A database image could not be written to, or read from, the bucket."""


class SnapshotCorruptError(SnapshotError):
    """The object is not a sound database image; the open database was left as it was.

    ``fault`` is what is wrong with it, without the advice.
    """

    fault = ""


class HistoryError(BucketHeadError, _CantOpen):
    """The deltas of a history do not lead to the state that was asked for.

    The message names the object, its TXID and what can be restored instead. ``txid`` is the one
    at fault, where there is one.
    """

    def __init__(self, message: str, txid: int | None = None) -> None:
        super().__init__(message)
        self.txid = txid


class BranchError(BucketHeadError, _CantOpen):
    """A branch cannot be made, found, changed or deleted."""


class InvalidBranchNameError(BranchError, ValueError):
    """A branch cannot have this name."""


class BranchNotFoundError(BranchError, KeyError):
    """There is no branch of that name, or it was deleted."""


class BranchExistsError(BranchError, ValueError):
    """There is a branch of that name already."""


class BlobError(BucketHeadError, _CantOpen):
    """The content of a file cannot be stored in the bucket, or had from there."""


class BlobNotFoundError(BlobError, KeyError):
    """There is no file of that key, or its object in the bucket is gone."""


class BlobAlteredError(BlobError):
    """The object in the bucket does not have the content that its name says."""


class SourceChangedError(BlobError):
    """What was to be stored changed, or went away, while it was read. Nothing was stored."""


class VolumeError(BucketHeadError, _CantOpen):
    """The volume cannot do this now."""


class VolumeBusyError(VolumeError):
    """A running transaction, or another mount of the same key, is in the way."""


class StaleReadError(VolumeError):
    """A follower has not reached its bucket for longer than ``max_staleness_seconds``."""


class WaitTimeoutError(VolumeError, TimeoutError):
    """The commits waited for are not durable yet; they stay in memory and will be published."""


class VolumeReadOnlyError(BucketHeadError, apsw.ReadOnlyError):
    """A write to a volume that this process may only read."""

    result = apsw.SQLITE_READONLY
    extendedresult = apsw.SQLITE_READONLY


class FencedError(VolumeReadOnlyError):
    """Another writer has taken the history over: nothing of ours is published any more.

    What was not published stays readable: save it with VACUUM INTO.
    """


class CommitError(BucketHeadError, apsw.IOError):
    """COMMIT was cut short: the transaction is in the database whole or not at all.

    The code is IOERR whatever happened, because for no other does SQLite forget the pages it has
    cached, and the next commit would write lost pages over someone's update.
    """

    result = apsw.SQLITE_IOERR
    extendedresult = apsw.SQLITE_IOERR


class CommitInterrupted(CommitError, KeyboardInterrupt):  # noqa: N818 - a KeyboardInterrupt
    """Ctrl-C arrived inside COMMIT."""


class PublicationError(CommitError):
    """With ``durability="commit"``: the transaction did not reach the bucket, so it was rolled
    back; or whether it did is open, and the message says so."""
