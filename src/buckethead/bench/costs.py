"""What AWS asks a day for requests: those that were counted in this run, times its prices.

Storage and traffic are not in it: within a region, traffic is free.
"""

from collections import Counter
from collections.abc import Callable, Mapping

import apsw

from ..config import SnapshotConfig
from ..core import registry
from ..storage.counters import IOCounters
from ..volume import Volume
from .measure import Findings
from .places import UPDATE, is_s3

WRITE_DOLLARS = 0.005 / 1_000
READ_DOLLARS = 0.0004 / 1_000
PRICES = "prices: AWS S3 Standard, us-east-1, from aws.amazon.com/s3/pricing, 2025"

DOLLARS = {
    **dict.fromkeys(
        (
            *("put_object", "copy_object", "list_objects", "list_multipart_uploads"),
            *("create_multipart_upload", "upload_part", "upload_part_copy"),
            "complete_multipart_upload",
        ),
        WRITE_DOLLARS,
    ),
    **dict.fromkeys(("get_object", "head_object", "head_bucket"), READ_DOLLARS),
    **dict.fromkeys(("delete_object", "delete_objects", "abort_multipart_upload"), 0.0),
}
"""The price of one request, by the name it is counted under."""

DAY_SECONDS = 86_400
FLUSH_SECONDS = (1, 10, 60)
CHECKPOINT_SECONDS = 300
POLL_SECONDS = 1

CHECKPOINT_REQUESTS = "checkpoint: requests"
FLUSHES = tuple(f"AWS, a flush every {seconds} s" for seconds in FLUSH_SECONDS)
CHECKPOINTS = f"AWS, a checkpoint every {CHECKPOINT_SECONDS} s"
FOLLOWER = f"AWS, a follower that looks every {POLL_SECONDS} s"
A_DAY = "$ a day"


def dollars_a_day(operations: Mapping[str, int], every_seconds: float) -> float:
    """What these requests cost a day, made once every so many seconds."""
    once = sum(DOLLARS[name] * count for name, count in operations.items())
    return once * DAY_SECONDS / every_seconds


def counted(counters: IOCounters, action: Callable[[], object]) -> Counter[str]:
    """The requests of an action, by operation."""
    before = _operations(counters)
    action()
    return _operations(counters) - before


def _operations(counters: IOCounters) -> Counter[str]:
    found = counters.snapshot().operations
    return Counter({name: count.operations for name, count in found.items()})


def measure(volume: Volume, connection: apsw.Connection, findings: Findings) -> None:
    """Count the requests of a flush, a checkpoint and an idle follower, and what they cost a day.
    There has to be an image already. Raises BucketError."""
    counters = volume.bucket.counters
    connection.execute(UPDATE, (1,))
    flush = counted(counters, volume.flush)
    for name, seconds in zip(FLUSHES, FLUSH_SECONDS, strict=True):
        findings.add(name, dollars_a_day(flush, seconds), A_DAY)
    if is_s3(volume.config):
        checkpoint = counted(counters, volume.checkpoint)
        findings.add(CHECKPOINT_REQUESTS, checkpoint.total(), "requests")
        findings.add(CHECKPOINTS, dollars_a_day(checkpoint, CHECKPOINT_SECONDS), A_DAY)
    else:
        findings.left_out.append(f"{CHECKPOINTS}: needs a store of S3, which takes it in parts")
    reader = SnapshotConfig(integrity_check="none")
    follower = registry.follow(f"{volume.name}-follower", volume.config, reader)
    assert not isinstance(follower, Volume), "nothing is mounted under that name"
    poll = counted(follower.bucket.counters, follower.poll)
    findings.add(FOLLOWER, dollars_a_day(poll, POLL_SECONDS), A_DAY)
