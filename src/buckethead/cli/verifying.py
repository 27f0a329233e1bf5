"""`verify`: reads everything that is kept and reports all that is wrong with it."""

from dataclasses import asdict

import click

from ..errors import (
    BucketError,
    HistoryError,
    ObjectNotFoundError,
    PreconditionFailedError,
    SnapshotCorruptError,
)
from ..storage.contract import Bucket
from ..storage.layout import Place
from ..storage.restoring import Target as State
from .checking import Findings, check
from .output import copyable, json_option, note, print_facts, print_json, print_table, transfer
from .restoring import TIME_HELP, check_one_state, which_state
from .target import Target, look_at

ATTEMPTS_WHEN_MOVED_ON = 3
"""A writer may checkpoint and delete what has just been listed."""


@click.command()
@json_option
@click.option("--txid", type=click.IntRange(1), metavar="N", help="Only as far as this TXID.")
@click.option("--at", metavar="TIME", help=TIME_HELP)
@click.pass_obj
def verify(target: Target, as_json: bool, txid: int | None, at: str | None) -> None:
    """Check all that is kept: checksums, gaps, writers, images, and integrity_check.

    Every delta, snapshot and image is read; each image and snapshot has to be the state that the
    other objects lead to. Exits with 1 when anything is wrong. With --txid or --at only what leads
    to that state is read.
    """
    check_one_state(txid, at)
    config, bucket = target.bucket_to_read()
    findings = _checked(bucket, config.place, which_state(bucket, txid, at))
    _show(bucket, config.key, findings, as_json)
    if findings.faults:
        raise _failure(bucket, config.key, findings)


def _checked(bucket: Bucket, place: Place, state: State | None) -> Findings:
    """The findings; where the history has moved on meanwhile, those of another look."""
    timeline = look_at(bucket, place)
    for _ in range(ATTEMPTS_WHEN_MOVED_ON):
        limit = state(timeline) if state is not None else None
        gone: BucketError | None = None
        try:
            with transfer(f"reading {place.image}") as progress:
                findings = check(bucket, timeline, limit, progress)
            if not findings.faults:
                return findings
        except (ObjectNotFoundError, PreconditionFailedError) as error:
            gone = error
        before, timeline = timeline, look_at(bucket, place)
        if timeline == before:
            break
    if gone is not None:
        raise gone
    return findings


def _show(bucket: Bucket, key: str, findings: Findings, as_json: bool) -> None:
    facts: dict[str, object] = {"bucket": bucket.url, "key": key, **asdict(findings)}
    for text in findings.notes:
        note(text)
    if as_json:
        print_json(facts | {"sound": not findings.faults})
        return
    del facts["notes"]
    restorable = "none" if findings.restorable is None else findings.restorable
    lost = _txids(findings) or ("none" if findings.newest else "no history")
    print_facts(facts | {"restorable": restorable, "lost": lost, "faults": len(findings.faults)})
    if findings.faults:
        rows = [(fault.txid, fault.key, copyable(fault.fault)) for fault in findings.faults]
        print_table(("txid", "object", "fault"), rows)


def _txids(findings: Findings) -> str:
    """The states that are lost, for a person."""
    parts = (f"{first}" if first == last else f"{first}-{last}" for first, last in findings.lost)
    return ", ".join(parts)


def _failure(bucket: Bucket, key: str, findings: Findings) -> HistoryError | SnapshotCorruptError:
    count = len(findings.faults)
    found = f"{key!r} at {bucket.url} has {count} fault{'' if count == 1 else 's'}"
    if not findings.newest:
        return SnapshotCorruptError(
            f"{found}. It has no history: take the image before the last with `buckethead restore "
            "--previous FILE` if that one is sound, or look for a backup."
        )
    best = findings.restorable
    if best is None:
        return HistoryError(f"{found}, and none of its states can be restored: look for a backup.")
    if findings.lost:
        found += f"; what is lost is TXID {_txids(findings)}"
    which = "the newest state" if best == findings.newest else "the best one"
    return HistoryError(
        f"{found}. All is sound that leads to {which}, TXID {best}: `buckethead restore --txid "
        f"{best} FILE`.",
        best,
    )
