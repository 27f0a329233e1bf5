"""`log` and `gc`: what is kept of the history, and deleting what is not kept any longer."""

import time
from dataclasses import asdict

import click

from ..config import BucketConfig
from ..files.collecting import GRACE_SECONDS, collect
from ..files.kept import blob_names
from ..storage import retention
from ..storage.branches import names
from ..storage.contract import Bucket
from ..storage.history import Timeline
from ..storage.layout import Place, is_ours
from ..storage.translate import translated
from .entries import Record, records
from .output import json_option, note, print_facts, print_json, print_table, sized, transfer
from .target import Target, look_at
from .writing import ago

DAY_SECONDS = 86_400.0


@click.command()
@json_option
@click.option(
    "-n", "count", default=20, show_default=True, type=click.IntRange(1), help="How many to show."
)
@click.pass_obj
def log(target: Target, as_json: bool, count: int) -> None:
    """List what the history is made of, newest first: who published what, and when.

    A delta holds the pages that one flush changed; with a claim a writer begins. Any TXID with a
    delta or image can be restored: buckethead restore --txid N FILE.
    """
    config, bucket = target.bucket_to_read()
    found = list(records(bucket, look_at(bucket, config.place), count))
    if as_json:
        print_json([_document(record) for record in found])
        return
    print_table(
        ("txid", "time", "pages", "bytes", "writer", "kind"), [_row(record) for record in found]
    )
    for record in found:
        if record.fault is not None:
            note(record.fault)


def _row(record: Record) -> tuple[object, ...]:
    kind = record.kind if record.fault is None else f"damaged {record.kind}"
    return record.txid, record.time, record.pages, record.size, record.writer, kind


def _document(record: Record) -> dict[str, object]:
    return {
        "txid": record.txid,
        "time": record.time,
        "pages": record.pages,
        "bytes": record.size,
        "writer": record.writer,
        "kind": record.kind,
        "key": record.key,
        "fault": record.fault,
    }


@click.command()
@json_option
@click.option("--dry-run", is_flag=True, help="Delete nothing, say what would go.")
@click.option(
    "--retention-seconds",
    default=DAY_SECONDS,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Every state of so long ago stays restorable.",
)
@click.option(
    "--grace-seconds",
    default=GRACE_SECONDS,
    show_default=True,
    type=click.FloatRange(0),
    help="Blobs put more recently stay, and uploads begun then; these for a day at least.",
)
@click.pass_obj
def gc(
    target: Target, as_json: bool, dry_run: bool, retention_seconds: float, grace_seconds: float
) -> None:
    """Delete what is not kept any longer: old deltas and snapshots, uploads never finished, and
    orphans, which are blobs of files that no state kept names. It is done for every branch, or for
    the one that --branch names.

    Writers do the first two now and then themselves. Every database of the bucket is read to tell
    what an orphan is. --dry-run does not look at uploads, and not at blobs that would be orphans
    only after the rest is deleted.
    """
    config, bucket = target.bucket_to_read()
    timeline = look_at(bucket, config.place)
    places = [config.place]
    if target.branch is None:
        places = [Place(config.key, name) for name in names(bucket, config.key)]
    freed = retention.Freed(0, 0, 0)
    for place in places:
        freed += retention.free(bucket, place, retention_seconds, None, dry_run=dry_run)
    uploads = None if dry_run else _abort_uploads(bucket, config, max(DAY_SECONDS, grace_seconds))
    with transfer("reading what is kept") as progress:
        report = collect(
            *(bucket, config.key, config.files_prefix),
            rows=set[str],  # no volume is mounted, so this process has none
            grace_seconds=grace_seconds,
            dry_run=dry_run,
            progress=progress,
        )
    facts: dict[str, object] = {
        "deltas": freed.deltas,
        "snapshots": freed.snapshots,
        "bytes": freed.size,
        "uploads": uploads,
        **asdict(report),
        "dry_run": dry_run,
    }
    if as_json:
        print_json(facts)
    else:
        words = {"bytes": sized(freed.size), "dry_run": "yes" if dry_run else "no"}
        print_facts(facts | words | ({"uploads": "not looked at"} if dry_run else {}))
    if not freed.deltas and not freed.snapshots:
        note(f"no delta and no snapshot can go: {_why_nothing(timeline, retention_seconds)}")


def _abort_uploads(bucket: Bucket, config: BucketConfig, seconds: float) -> int:
    """Abort the uploads of the database, and of blobs, that were begun so long ago: how many."""
    before = time.time() - seconds
    with translated(f"abort stale uploads of {config.key!r}", bucket):
        mine = bucket.abort_uploads(
            config.key, before=before, wanted=lambda key: is_ours(config.key, key)
        )
        prefix = config.files_prefix
        blobs = bucket.abort_uploads(prefix, before=before, wanted=blob_names(prefix))
    return len(mine) + len(blobs)


def _why_nothing(timeline: Timeline, seconds: float) -> str:
    """Why retention keeps everything of a history."""
    if not timeline.newest:
        return "there is no history, only an image"
    times = [snapshot.written_at for snapshot in timeline.snapshots.values()]
    limit = f"the retention time, {ago(seconds)}"
    if not times:
        return f"there is no snapshot yet; a writer makes one with its first image after {limit}"
    age = retention.now(timeline) - min(times)
    if age <= seconds:
        return f"the oldest snapshot is {ago(age)} old, younger than {limit}"
    return "the rest is needed: the newest state, the claims, and what comes after the images"
