"""Which database a command is about: options over settings over the default directory.

Reading never creates anything; writing says on stderr when it makes a new directory bucket.
"""

import re
from dataclasses import asdict, dataclass
from itertools import islice

import click
from pydantic import ValidationError

from ..config import BucketConfig, resolved_bucket
from ..errors import BranchNotFoundError, ObjectNotFoundError
from ..storage.branches import not_there
from ..storage.contract import Bucket
from ..storage.directory import open_bucket
from ..storage.history import Timeline, look
from ..storage.images import IntegrityCheck
from ..storage.layout import MAIN, Place
from ..storage.restoring import Restored, restore
from ..storage.translate import translated
from .output import transfer

OTHERS_NAMED = 5
OBJECTS_LOOKED_AT = 1_000
"""One page of a listing."""

_PART = re.compile(
    r"(?P<key>.+?)(\.branch\.[\w-]+)?"
    r"(\.prev|\.ltx/(probe\.txt|[\w-]+/(making/[\w-]+|\d{4}/[\w-]+\.ltx)))?"
)


_BLOB = re.compile(r"(^|/)[0-9a-f]{64}$")


@dataclass(frozen=True, slots=True)
class Target:
    """The options that say where the database is; None leaves it to the settings."""

    bucket: str | None = None
    key: str | None = None
    endpoint_url: str | None = None
    region: str | None = None
    branch: str | None = None

    def options(self) -> list[str]:
        """What was given, as words of a command line."""
        return [
            word
            for name, value in asdict(self).items()
            if value is not None
            for word in ("--" + name.replace("_", "-"), value)
        ]

    def config(self) -> BucketConfig:
        """The bucket and key that are meant. Raises ConfigError, click.UsageError."""
        given = {
            "initial_branch" if name == "branch" else name: value
            for name, value in asdict(self).items()
            if value is not None
        }
        try:
            BucketConfig.model_validate({"bucket": "any"} | given)
        except ValidationError as error:
            fault = error.errors(include_input=False, include_url=False)[0]
            option = "--" + str(fault["loc"][0]).removeprefix("initial_").replace("_", "-")
            message = fault["msg"].removeprefix("Value error, ")
            raise click.UsageError(f"{option}: {message}") from None
        return resolved_bucket(given)

    def bucket_to_read(self) -> tuple[BucketConfig, Bucket]:
        """The configuration and its bucket, which is not created. Raises BucketDeniedError."""
        config = self.config()
        return config, open_bucket(config, create=False)


def no_database(bucket: Bucket, place: Place) -> ObjectNotFoundError | BranchNotFoundError:
    """The error for a key that holds nothing; it names some of what is there instead."""
    key = place.key
    if place.branch != MAIN:
        return BranchNotFoundError(not_there(bucket, place))
    with translated("list the bucket", bucket):
        objects = list(islice(bucket.list_keys(), OBJECTS_LOOKED_AT))
    names = (name for name in objects if not _BLOB.search(name))
    others = sorted({_database_of(name) for name in names} - {key})[:OTHERS_NAMED]
    there = f" There are: {', '.join(others)}." if others else ""
    return ObjectNotFoundError(
        f"There is no database {key!r} at {bucket.url}.{there} Check --key and --bucket, or write "
        "one: `buckethead import FILE`"
    )


def _database_of(object_key: str) -> str:
    """The key of the database that an object belongs to: its own, where it looks like an image."""
    found = _PART.fullmatch(object_key)
    return found["key"] if found is not None else object_key


def read_newest(bucket: Bucket, place: Place, how: IntegrityCheck = "full") -> Restored:
    """The newest state of a database, checked. Raises ObjectNotFoundError or BranchNotFoundError
    when there is none, HistoryError, SnapshotCorruptError, BucketError."""
    with transfer(f"reading {place.image}") as progress:
        restored = restore(bucket, place, integrity_check=how, progress=progress)
    if restored is None:
        raise no_database(bucket, place)
    return restored


def look_at(bucket: Bucket, place: Place) -> Timeline:
    """What is kept of a database. Raises ObjectNotFoundError or BranchNotFoundError when there is
    nothing."""
    timeline = look(bucket, place)
    if not timeline.has_base and (place.branch != MAIN or not timeline.newest):
        raise no_database(bucket, place)
    return timeline
