"""`restore`: a state of the database as a plain SQLite file."""

import os
import time
from pathlib import Path

import click
from rich.filesize import decimal

from ..errors import ConfigError, HistoryError
from ..image.pages import PageImage
from ..moments import parse_moment
from ..storage.contract import Bucket
from ..storage.history import Plan, Timeline, plans, txid_at
from ..storage.images import dump, read_image
from ..storage.layout import Place
from ..storage.restoring import Target as State
from ..storage.restoring import restore as restored_state
from .entries import image_record, record_of
from .output import json_option, note, print_facts, print_json, transfer
from .target import Target, look_at, no_database

TIME_HELP = (
    "The state at this time: ISO 8601 (local time where it has no offset) or '10 minutes ago'."
)


def check_one_state(txid: int | None, at: str | None) -> None:
    """Raise click.UsageError where two states are meant."""
    if txid is not None and at is not None:
        raise click.UsageError("--txid and --at exclude each other: give one of them.")


def which_state(bucket: Bucket, txid: int | None, at: str | None) -> State | None:
    """The state that --txid or --at means; None is the newest. Raises ConfigError."""
    if txid is not None:
        return lambda timeline: txid
    if at is None:
        return None
    now = time.time()
    moment = parse_moment(at, now)
    if moment > now:
        note(f"{at} is in the future: that is the newest state")
    return lambda timeline: _txid_at(bucket, timeline, moment)


def _txid_at(bucket: Bucket, timeline: Timeline, moment: float) -> int:
    try:
        return txid_at(bucket, timeline, moment)
    except HistoryError as error:
        if timeline.kept_since:
            oldest = f"`buckethead restore --txid {timeline.kept_since} FILE`"
            error.add_note(f"The oldest state that is kept for sure: {oldest}.")
        raise


@click.command()
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--txid", type=click.IntRange(1), metavar="N", help="The state of this TXID.")
@click.option("--at", metavar="TIME", help=TIME_HELP)
@click.option("--dry-run", is_flag=True, help="Only show what would be downloaded.")
@json_option
@click.option("--force", is_flag=True, help="Replace DEST if it exists.")
@click.option("--image", "use_image", is_flag=True, help="Just the image, whatever the history is.")
@click.option("--previous", "use_previous", is_flag=True, help="Just the image before the last.")
@click.pass_obj
def restore(
    target: Target,
    dest: Path,
    txid: int | None,
    at: str | None,
    dry_run: bool,
    as_json: bool,
    force: bool,
    use_image: bool,
    use_previous: bool,
) -> None:
    """Write the database to the file DEST, checked, whole or not at all.

    It is the newest state, or any other that is still kept: `buckethead log` lists them.
    """
    check_one_state(txid, at)
    alone = use_image or use_previous
    if alone and (txid or at or dry_run or (use_image and use_previous)):
        raise click.UsageError(
            "--image and --previous exclude each other, --txid, --at and --dry-run."
        )
    config, bucket = target.bucket_to_read()
    state = which_state(bucket, txid, at)
    if dry_run:
        facts = _plan_facts(bucket, look_at(bucket, config.place), state)
    else:
        _check_destination(dest, force)
        if alone:
            place = config.place
            key = place.previous if use_previous else place.image
            image, facts = _object(bucket, place, key)
        else:
            image, facts = _state(bucket, config.place, state)
        with image.pinned() as pin:
            dump(pin, dest)
        what = f"{config.key!r}, {facts['state']}, {image.page_count:,} pages"
        note(f"restored {what}, {decimal(image.size)}, to {dest}")
    if as_json:
        print_json(facts)
    elif dry_run:
        print_facts(facts)


def _object(bucket: Bucket, place: Place, key: str) -> tuple[PageImage, dict[str, object]]:
    """The image at a key, without a look at the history."""
    with transfer(f"reading {key}") as progress:
        image = read_image(bucket, key, progress=progress)
    if image is None:
        raise no_database(bucket, place if key == place.image else Place(key))
    return image, {"bucket": bucket.url, "key": key, "state": f"the image {key!r}"}


def _state(
    bucket: Bucket, place: Place, state: State | None
) -> tuple[PageImage, dict[str, object]]:
    with transfer(f"reading {place.image}") as progress:
        restored = restored_state(bucket, place, state, progress=progress)
    if restored is None:
        _check_history(bucket, look_at(bucket, place), state)
        raise no_database(bucket, place)
    stamp = restored.stamp
    facts: dict[str, object] = {
        "bucket": bucket.url,
        "key": place.key,
        "branch": place.branch,
        "state": "its image" if stamp is None else f"TXID {stamp.txid}",
        "txid": stamp and stamp.txid,
        "warnings": list(restored.warnings),
    }
    return restored.image, facts


def _check_history(bucket: Bucket, timeline: Timeline, state: State | None) -> None:
    if state is not None and not timeline.newest:
        raise HistoryError(
            f"Could not find that state of {timeline.place.key!r} at {bucket.url}: it has no "
            "history, only an image. Restore that without --txid and --at."
        )


def _plan_facts(bucket: Bucket, timeline: Timeline, state: State | None) -> dict[str, object]:
    """What a restore would do, from the names and headers of objects."""
    _check_history(bucket, timeline, state)
    plan = plans(timeline, state(timeline) if state is not None else None)[0]
    info = timeline.image
    if plan.target:
        time_of_state = record_of(bucket, timeline, plan.target).time
    else:
        assert info is not None, "what has no history is an image"
        time_of_state = image_record(timeline, info).time
    return {
        "bucket": bucket.url,
        "key": timeline.place.key,
        "txid": plan.target or None,
        "time": time_of_state,
        "base": plan.base,
        "base_txid": plan.base_txid or None,
        "deltas": len(plan.deltas),
        "bytes": plan.size,
        "requests": _requests(plan, bucket.part_size),
    }


def _requests(plan: Plan, part_size: int) -> int:
    """GETs for the content: one for each part of the base and of a large delta."""
    sizes = [plan.base_size, *(entry.size for entry in plan.deltas)]
    return sum(-(-size // part_size) for size in sizes)


def _check_destination(dest: Path, force: bool) -> None:
    """Before anything is downloaded. SQLite would replay a journal or WAL that an older file of
    the name has left into the new one."""
    for left in (Path(f"{dest}-wal"), Path(f"{dest}-journal")):
        if os.path.lexists(left):
            raise ConfigError(
                f"Could not restore to {dest}: {left} belongs to a database that was there and "
                "would damage the new one. Close what uses it, delete both files, or name another."
            )
    if dest.is_dir() or not dest.absolute().parent.is_dir():
        raise ConfigError(
            f"Could not restore to {dest}: it is a folder, or there is no folder for it. Name a "
            "file in a folder that exists."
        )
    if os.path.lexists(dest) and not force:
        raise ConfigError(
            f"Could not restore to {dest}: the file exists. Name another, or replace it by --force."
        )
