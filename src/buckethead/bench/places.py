"""Databases to measure with: each at a key of its own, filled, and removed again with everything
that was written there.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import apsw

from ..config import BucketConfig, SnapshotConfig
from ..core import registry
from ..storage.translate import translated
from ..uris import uri_of
from ..volume import Volume
from .ending import let_go
from .statements import NEVER_SECONDS, SCHEMA

MB = 1_000_000
BATCH = 200

WHEN_TOLD = SnapshotConfig(
    interval_seconds=NEVER_SECONDS, min_interval_seconds=0.0, checkpoint="stop"
)
"""Nothing is written to the bucket but what the benchmark asks for."""

FILL = """
WITH RECURSIVE n(i) AS (SELECT :first UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :end)
INSERT INTO item SELECT i, printf('name %07d', i * 7919 % 1000003), 'user' || i || '@example.org',
    i / 8.0, 1.7e9 + i, hex(randomblob(480)) FROM n
"""
UPDATE = "UPDATE item SET amount = amount + 1 WHERE id = ?"


def is_s3(place: BucketConfig) -> bool:
    """Whether it is a store of S3, and no directory."""
    return not (place.endpoint_url or "").startswith("file:")


@contextmanager
def mounted(
    place: BucketConfig, name: str, snapshot: SnapshotConfig = WHEN_TOLD
) -> Iterator[Volume]:
    """A new volume below the key of ``place``. Raises BucketError."""
    config = place.model_copy(update={"key": f"{place.key}/{name}"})
    volume = registry.mount(f"bench-{name}", config, snapshot)
    try:
        with translated("measure", volume.bucket):
            yield volume
    finally:
        let_go(volume)
        with translated("remove the database that was measured", volume.bucket):
            volume.bucket.delete_many(list(volume.bucket.list_keys(config.key)))


def filled(volume: Volume, size_mb: float) -> apsw.Connection:
    """A connection to the volume, which has that size now: rows of 1 KB that do not compress well,
    numbered from 1, three on a page."""
    connection = apsw.Connection(uri_of(volume.name))
    for statement in SCHEMA:
        connection.execute(statement)
    first = 1
    while volume.image.size < size_mb * MB:
        connection.execute(FILL, {"first": first, "end": first + BATCH})
        first += BATCH
    return connection


def row_count(connection: apsw.Connection) -> int:
    """How many rows `filled` has made."""
    count: int = connection.execute("SELECT max(id) FROM item").get
    return count
