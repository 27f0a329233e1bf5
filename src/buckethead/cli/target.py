"""Which database a command is about: options over settings over the default directory.

Reading never creates anything; writing says on stderr when it makes a new directory bucket.
"""

from dataclasses import asdict, dataclass
from itertools import islice

import click
from pydantic import ValidationError

from ..config import BucketConfig, resolved_bucket
from ..errors import ObjectNotFoundError
from ..storage.contract import Bucket
from ..storage.directory import open_bucket
from ..storage.history import Timeline, look
from ..storage.images import IntegrityCheck
from ..storage.layout import Place
from ..storage.restoring import Restored, restore
from ..storage.translate import translated
from .output import transfer

OTHERS_NAMED = 5


@dataclass(frozen=True, slots=True)
class Target:
    """The options that say where the database is; None leaves it to the settings."""

    bucket: str | None = None
    key: str | None = None
    endpoint_url: str | None = None
    region: str | None = None

    def config(self) -> BucketConfig:
        """The bucket and key that are meant. Raises ConfigError, click.UsageError."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        try:
            BucketConfig.model_validate({"bucket": "any"} | given)
        except ValidationError as error:
            fault = error.errors(include_input=False, include_url=False)[0]
            option = "--" + str(fault["loc"][0]).replace("_", "-")
            message = fault["msg"].removeprefix("Value error, ")
            raise click.UsageError(f"{option}: {message}") from None
        return resolved_bucket(given)

    def bucket_to_read(self) -> tuple[BucketConfig, Bucket]:
        """The configuration and its bucket, which is not created. Raises BucketDeniedError."""
        config = self.config()
        return config, open_bucket(config, create=False)


def no_database(bucket: Bucket, key: str) -> ObjectNotFoundError:
    """The error for a key that holds nothing; it names some of what is there instead."""
    with translated("list the bucket", bucket):
        others = sorted(islice(bucket.list_keys(), OTHERS_NAMED))
    there = f" There are: {', '.join(others)}." if others else ""
    return ObjectNotFoundError(
        f"There is no database {key!r} at {bucket.url}.{there} Check --key and --bucket, or write "
        "one: buckethead import FILE"
    )


def read_newest(bucket: Bucket, key: str, how: IntegrityCheck = "full") -> Restored:
    """The newest state of the database at a key, checked. Raises ObjectNotFoundError when there is
    none, HistoryError, SnapshotCorruptError, BucketError."""
    with transfer(f"reading {key}") as progress:
        restored = restore(bucket, Place(key), integrity_check=how, progress=progress)
    if restored is None:
        raise no_database(bucket, key)
    return restored


def look_at(bucket: Bucket, key: str) -> Timeline:
    """What is kept of the database at a key. Raises ObjectNotFoundError when there is nothing."""
    timeline = look(bucket, Place(key))
    if timeline.image is None and not timeline.newest:
        raise no_database(bucket, key)
    return timeline
