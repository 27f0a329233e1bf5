"""A past state of a database, open for reading beside the present.

The rule: it never changes and nothing of it is ever published, so it belongs to no history any
more, claims nothing and is nobody's to flush. It lives as long as a file of it is open.
"""

import time
from functools import partial

from .errors import HistoryError, VolumeReadOnlyError
from .image.database import Database
from .moments import parse_moment
from .status import VolumeStatus
from .storage.contract import Bucket
from .storage.history import look, txid_at, utc
from .storage.images import IntegrityCheck
from .storage.layout import TXID, Place
from .storage.restoring import Restored, restore


class Past(Database):
    """A past state. ``bucket`` is where it is kept, and the files that it names are."""

    def __init__(self, name: str, restored: Restored, bucket: Bucket, place: Place) -> None:
        super().__init__(name, restored.image)
        self.bucket = bucket
        self.place = place
        self._stamp = restored.stamp
        self._image_txid = restored.image_txid

    def status(self) -> VolumeStatus:
        """What is known of it, without asking the bucket anything."""
        return VolumeStatus.of(
            self,
            self.bucket,
            self.place,
            stamp=self._stamp,
            image_txid=self._image_txid,
            durable_version=self.image.version,
        )


def state_at(bucket: Bucket, place: Place, at: str) -> TXID:
    """The TXID of the state at a moment that a person has written. Raises ConfigError,
    HistoryError when that state is not kept, BucketError."""
    moment = parse_moment(at, time.time())
    timeline = look(bucket, place)
    if not timeline.newest:
        raise _no_history(bucket, place)
    return txid_at(bucket, timeline, moment)


def past_state(
    name: str, bucket: Bucket, place: Place, txid: TXID, integrity_check: IntegrityCheck
) -> Database:
    """The database as it was at ``txid``, read-only.

    Raises HistoryError, naming what is kept, SnapshotCorruptError, BucketError.
    """
    restored = restore(bucket, place, lambda timeline: txid, integrity_check=integrity_check)
    if restored is None or restored.stamp is None:
        raise _no_history(bucket, place)
    past = Past(name, restored, bucket, place)
    past.refusal = partial(_unchangeable, name, txid, restored.stamp.timestamp / 1000)
    return past


def _no_history(bucket: Bucket, place: Place) -> HistoryError:
    return HistoryError(
        f"Could not open a past state of {place.image!r}: at {bucket.url} there is no history of "
        "it. Check bucket, key and branch; the first flush begins one."
    )


def _unchangeable(name: str, txid: TXID, published: float) -> VolumeReadOnlyError:
    return VolumeReadOnlyError(
        f"Could not write to {name!r} at TXID {txid}: it is the state published {utc(published)}, "
        "and the past does not change. Write to the present, opened without txid or at; to make "
        f"this state the present, `buckethead restore --txid {txid} FILE` and import that file."
    )
