"""`shares`: files that others read by a URL, by way of a bucket that the settings file names.

A presigned URL is a secret: `share` prints it, once, and nothing else does.
"""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import click

from ..errors import BucketHeadError
from ..share_config import share_config_of
from ..sharing import Shares
from ..storage.history import utc
from .kv import moment, told
from .output import json_option, note, print_json, print_table, shown
from .reading import newest_state
from .target import Target
from .writing import take_over_option, writing

_project_option = click.option(
    "--project",
    required=True,
    metavar="NAME",
    help="The table [projects.NAME] of ~/.config/buckethead/config.toml, with the share bucket.",
)


@click.group()
def shares() -> None:
    """Files that others read by a URL."""


@shares.command()
@click.argument("key")
@click.option("--ttl", type=float, metavar="SECONDS", help="How long; by default that of NAME.")
@click.option("--name", metavar="TEXT", help="What the URL says; by default the file's name.")
@_project_option
@json_option
@take_over_option
@click.pass_obj
def share(
    target: Target,
    key: str,
    ttl: float | None,
    name: str | None,
    project: str,
    as_json: bool,
    take_over: bool,
) -> None:
    """Copy the file KEY to the share bucket and print its URL."""
    result = None
    try:
        with told(), _writing(target, project, take_over) as shares:
            result = shares.share(key, ttl_seconds=ttl, share_name=name)
    except BucketHeadError as error:
        if result is not None:
            error.add_note(
                "The file was copied all the same. Nobody has the URL; `buckethead shares unshare "
                f"--project {shlex.quote(project)} {result.share_key}` removes the copy."
            )
        raise
    if as_json:
        print_json(asdict(result))
    else:
        note(f"shared as {result.share_key} until {utc(result.expires_at)}")
        click.echo(result.url)


@shares.command("list")
@_project_option
@json_option
@click.pass_obj
def list_shares(target: Target, project: str, as_json: bool) -> None:
    """List the shares in the bucket of NAME, with the URLs of public ones."""
    with _reading(target, project) as shares:
        found = [share._asdict() | {"url": shares.url(share)} for share in shares.list()]
    if as_json:
        print_json(found)
        return
    print_table(
        ("share", "file", "mode", "expires_at", "url"),
        [
            (row["share_key"], row["bh_key"], row["mode"], moment(row["expires_at"]), row["url"])
            for row in found
        ],
    )


@shares.command()
@click.argument("share_key", metavar="SHARE")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_project_option
@json_option
@take_over_option
@click.pass_obj
def unshare(
    target: Target, share_key: str, yes: bool, project: str, as_json: bool, take_over: bool
) -> None:
    """End SHARE, as `list` shows it, after asking."""
    if not yes:
        question = f"End the share {shown(share_key)}? Its URL will not work any more."
        click.confirm(question, abort=True, err=True)
    with _writing(target, project, take_over) as shares:
        found = shares.unshare(share_key)
    if not found:
        raise BucketHeadError(
            f"There is no share {shown(share_key)!r}. `buckethead shares list --project "
            f"{shlex.quote(project)}` shows those that there are."
        )
    if as_json:
        print_json({"share_key": share_key, "removed": True})


@shares.command()
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@_project_option
@json_option
@take_over_option
@click.pass_obj
def sweep(target: Target, dry_run: bool, project: str, as_json: bool, take_over: bool) -> None:
    """Remove the shares that are over.

    Also shown is what can be read and is not listed: shares of other databases or branches, and
    those whose transaction was rolled back. `unshare` ends them before their time.
    """
    if dry_run:
        with _reading(target, project) as shares:
            report = shares.sweep(dry_run=True)
    else:
        with _writing(target, project, take_over) as shares:
            report = shares.sweep()
    if as_json:
        print_json(asdict(report) | {"dry_run": dry_run})
        return
    over = "over" if dry_run else "removed"
    found = [(key, over) for key in report.removed]
    print_table(("share", "state"), [*found, *((key, "not listed") for key in report.unrecorded)])


@contextmanager
def _reading(target: Target, project: str) -> Iterator[Shares]:
    config = share_config_of(project)
    _, bucket = target.bucket_to_read()
    with newest_state(target) as connection:
        yield Shares(connection, bucket, config)


@contextmanager
def _writing(target: Target, project: str, take_over: bool) -> Iterator[Shares]:
    """The shares for the length of a block; what it has changed is published at the end.

    The history is claimed first: who may not write copies nothing, and ends nothing."""
    config = share_config_of(project)
    database, _ = target.bucket_to_read()  # makes no directory for a file that cannot be there
    with writing(database, take_over) as (volume, connection):
        connection.execute("BEGIN IMMEDIATE; COMMIT")
        yield Shares(connection, volume.bucket, config)
