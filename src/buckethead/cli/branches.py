"""`branches`: the branches of the database, listed, made, overwritten and deleted.

`--branch` says which one any other command is about, and here which one is the source.
"""

import click
from rich.filesize import decimal

from ..config import BucketConfig
from ..errors import BranchError, BranchNotFoundError
from ..storage import branches as stored
from ..storage.branches import BranchInfo, not_there
from ..storage.contract import Bucket
from ..storage.history import utc
from ..storage.layout import MAIN, Place, checked_branch
from .output import json_option, note, print_json, print_table
from .target import Target, no_database, read_newest
from .writing import check_claim, mounted, publish, take_over_option


@click.group()
def branches() -> None:
    """Branches: databases that began as another one was."""


@branches.command("list")
@json_option
@click.pass_obj
def list_branches(target: Target, as_json: bool) -> None:
    """List the branches there are."""
    config, bucket = target.bucket_to_read()
    found = stored.find(bucket, config.key)
    if not found:
        raise no_database(bucket, Place(config.key))
    if as_json:
        print_json([_facts(branch, config) for branch in found])
        return
    print_table(
        ("name", "current", "size", "txid", "last modified", "key"),
        [
            (
                *(branch.name, "yes" if branch.name == config.initial_branch else ""),
                *(decimal(branch.size), branch.txid),
                *(utc(branch.last_modified) if branch.last_modified else "", branch.key),
            )
            for branch in found
        ],
    )


def _facts(branch: BranchInfo, config: BucketConfig) -> dict[str, object]:
    return {
        "name": branch.name,
        "current": branch.name == config.initial_branch,
        "size": branch.size,
        "txid": branch.txid,
        "last_modified": branch.last_modified,
        "key": branch.key,
    }


@branches.command()
@click.argument("name")
@json_option
@click.pass_obj
def create(target: Target, name: str, as_json: bool) -> None:
    """Make the branch NAME, which begins as --branch is published now.

    What a running writer has not flushed yet is not in it.
    """
    config, bucket = target.bucket_to_read()
    checked_branch(name)
    source = stored.source(bucket, config.place)
    stored.create(bucket, source, name, fence=config.fencing == "require")
    state = f"TXID {source.stamp.txid}" if source.stamp is not None else "its image"
    note(
        f"made the branch {name!r} of {config.key!r}: it begins as {config.initial_branch!r} is "
        f"at {state}"
    )
    if as_json:
        print_json(_facts(_found(bucket, Place(config.key, name)), config))


@branches.command()
@click.argument("target_branch", metavar="NAME")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only say what would be overwritten.")
@json_option
@take_over_option
@click.pass_obj
def overwrite(
    target: Target, target_branch: str, yes: bool, dry_run: bool, as_json: bool, take_over: bool
) -> None:
    """Give the branch NAME the content of --branch, as one commit in its history.

    What it was before can still be restored, as long as its history is kept.
    """
    config, bucket = target.bucket_to_read()
    place = Place(config.key, checked_branch(target_branch))
    if place == config.place:
        raise BranchError(f"Could not overwrite the branch {target_branch!r} with itself.")
    present = _found(bucket, place)
    if dry_run:
        note(f"would overwrite {_described(present)} with {config.initial_branch!r}")
        if as_json:
            print_json(_facts(present, config) | {"dry_run": True})
        return
    if not yes:
        question = f"Overwrite {_described(present)} with {config.initial_branch!r}?"
        click.confirm(question, abort=True, err=True)
    image = read_newest(bucket, config.place).image
    its_config = config.model_copy(update={"initial_branch": target_branch})
    with mounted(its_config, take_over) as volume:
        volume.swap(image.page_size, image.pages)
        publish(volume)
    if as_json:
        print_json(_facts(_found(bucket, place), config))


@branches.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@json_option
@take_over_option
@click.pass_obj
def delete(
    target: Target, name: str, yes: bool, dry_run: bool, as_json: bool, take_over: bool
) -> None:
    """Delete the branch NAME with its history. Its name can be used again."""
    config, bucket = target.bucket_to_read()
    place = Place(config.key, checked_branch(name))
    if name != MAIN:  # that one is refused below
        present = _found(bucket, place)
        if dry_run:
            note(f"would delete {_described(present)}")
            if as_json:
                print_json(_facts(present, config) | {"dry_run": True})
            return
        if not yes:
            click.confirm(f"Delete {_described(present)}?", abort=True, err=True)
        newest = stored.source(bucket, place).stamp
        if newest is not None:
            check_claim(bucket, place, take_over, newest)
    stored.delete(bucket, config.key, name, fence=config.fencing == "require")
    note(f"deleted the branch {name!r} of {config.key!r}")
    if as_json:
        print_json({"name": name, "deleted": True})


def _found(bucket: Bucket, place: Place) -> BranchInfo:
    for branch in stored.find(bucket, place.key):
        if branch.name == place.branch:
            return branch
    raise BranchNotFoundError(not_there(bucket, place))


def _described(branch: BranchInfo) -> str:
    when = f", last modified {utc(branch.last_modified)}" if branch.last_modified else ""
    return f"the branch {branch.name!r} (TXID {branch.txid}, {decimal(branch.size)}{when})"
