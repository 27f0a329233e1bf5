"""A status as names and values, for ``bh_status`` in SQL and `buckethead status` alike.

The rule: the same fact has the same name wherever it is shown, and every name is always there,
without a value where that is not known. Only the requests to the bucket have as many names as
there were kinds of them.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .status import VolumeStatus
from .storage.counters import IOSnapshot
from .storage.snapshot import FlushResult

Fact = None | int | float | str

NAMES = (
    "name",
    "key",
    "branch",
    "bucket",
    "state",
    "version",
    "durable_version",
    "txid",
    "image_txid",
    "durable_at",
    "age_seconds",
    "page_size",
    "page_count",
    "size",
    "dirty_pages",
    "pins",
    "oldest_pin_version",
    "pinned_bytes",
    "last_flush_at",
    "last_flush_seconds",
    "last_flush_bytes",
    "last_error",
    "stale_seconds",
    "swept_keys",
    "requests",
    "bytes_up",
    "bytes_down",
)
"""In the order in which they are shown; beside the fields of `VolumeStatus` ``state``, which says
who may write, ``age_seconds`` since ``durable_at``, ``stale_seconds`` since a follower has last
heard of its history, and the keys that `KV` has swept in this process."""


def known_of(status: VolumeStatus) -> dict[str, Any]:
    """The fields of a status by their names, as `facts` takes them."""
    return {field.name: getattr(status, field.name) for field in fields(status)}


def facts(known: Mapping[str, Any], now: float) -> dict[str, Fact]:
    """What is known by name, times and ``now`` in unix seconds: the fields of a status as far as
    there are any, or others of NAMES. None stands for the rest of NAMES."""
    more: dict[str, Fact] = {}
    durable_at: float | None = known.get("durable_at")
    if durable_at is not None:
        more["age_seconds"] = max(0.0, now - durable_at)
    flush: FlushResult | None = known.get("last_flush")
    if flush is not None:
        more |= {"last_flush_seconds": flush.duration_s, "last_flush_bytes": flush.bytes_written}
    io: IOSnapshot | None = known.get("io")
    if io is not None:
        more |= {"requests": io.requests, "bytes_up": io.bytes_up, "bytes_down": io.bytes_down}
    by_kind = io.operations if io is not None else {}
    kinds = {f"requests_{kind}": count.operations for kind, count in by_kind.items()}
    return {name: more.get(name, known.get(name)) for name in NAMES} | kinds
