"""Which database a command is about: options over settings over the default directory.

Reading never creates anything; writing says on stderr when it makes a new directory bucket.
"""

from dataclasses import asdict, dataclass
from itertools import islice

import click
from pydantic import ValidationError
from rich.filesize import decimal

from ..config import BucketConfig, SnapshotConfig, resolved_bucket
from ..errors import BucketDeniedError, BucketError, ObjectNotFoundError
from ..image.pages import PageImage
from ..storage.contract import Bucket, ObjectInfo
from ..storage.directory import open_bucket
from ..storage.snapshot import FlushResult, IntegrityCheck, read_image
from ..storage.translate import translated
from ..volume import Volume
from .output import note, transfer

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


def head(bucket: Bucket, key: str) -> ObjectInfo | None:
    """What the store knows of an object. Raises BucketError."""
    with translated(f"look at {key!r}", bucket):
        return bucket.head(key)


def no_database(bucket: Bucket, key: str) -> ObjectNotFoundError:
    """The error for a key that holds nothing; it names some of what is there instead."""
    with translated("list the bucket", bucket):
        others = sorted(islice(bucket.list_keys(), OTHERS_NAMED))
    there = f" There are: {', '.join(others)}." if others else ""
    return ObjectNotFoundError(
        f"There is no database {key!r} at {bucket.url}.{there} Check --key and --bucket, or write "
        "one: buckethead import FILE"
    )


def download(bucket: Bucket, key: str, integrity_check: IntegrityCheck = "full") -> PageImage:
    """The image at a key, checked. Raises SnapshotCorruptError, BucketError."""
    with transfer(f"reading {key}") as progress:
        image = read_image(bucket, key, integrity_check=integrity_check, progress=progress)
    if image is None:
        raise no_database(bucket, key)
    return image


def image_or_new(config: BucketConfig) -> PageImage:
    """The image at the configured key, or an empty one where there is none yet."""
    try:
        bucket = open_bucket(config, create=False)
    except BucketDeniedError:  # no such directory: made when there is something to write
        return PageImage()
    with transfer(f"reading {config.key}") as progress:
        return read_image(bucket, config.key, progress=progress) or PageImage()


def publish(config: BucketConfig, image: PageImage) -> FlushResult:
    """Write what has changed in the image to the configured key.

    Raises BucketError: then the bucket has what it had.
    """
    bucket = open_bucket(config)
    volume = Volume(config.key, config, SnapshotConfig(), bucket, image, lambda volume: None)
    try:
        with transfer(f"writing {config.key}", image.size) as progress:
            result = volume.flush(progress)
    except BucketError as error:
        error.add_note("The changes of this command were not kept.")
        raise
    pages = f"{result.pages:,} changed page{'' if result.pages == 1 else 's'}"
    note(f"flushed {pages}, {decimal(result.bytes_written)}, to {config.key!r} at {bucket.url}")
    return result
