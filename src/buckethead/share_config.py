"""Where shared files go, and how long they stay there.

A configuration given in code raises pydantic's ValidationError, one of the TOML file ConfigError.
"""

from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, FiniteFloat, ValidationError, model_validator

from buckethead.errors import ConfigError
from buckethead.fields import (
    BucketName,
    EndpointUrl,
    Model,
    Region,
    Secret,
    check_key_pair,
    is_http_url,
)
from buckethead.settings_file import TOML_PATH, settings_table

LONGEST_SIGNED_DAYS: Final = 7
"""S3's limit for the life of a presigned URL."""

LONGEST_PUBLIC_DAYS: Final = 36_500
"""So that every end is a date that can be shown."""

_BASE_FORM: Final = "use http://HOST/PATH or https://HOST/PATH"


def _checked_base(url: str) -> str:
    if "@" in url or "?" in url or "#" in url or not url.isprintable() or not is_http_url(url):
        raise ValueError(
            "this is no URL that others could be put behind: it has a user name, a query, a "
            f"fragment, or no host; {_BASE_FORM}"
        )
    return url


class ShareConfig(Model):
    """The bucket that files are copied to when they are shared, and how others read them there.

    ``public=True``: anyone reads the bucket under ``public_base_url``, and a share has a URL that
    stays the same; it ends when `sweep` runs after its time. Otherwise a share has a presigned
    URL, which ends by itself, after 7 days at most; earlier where the credentials are temporary.
    ``default_ttl_days`` is the life of a share that is given none. ``endpoint_url=None`` is AWS;
    ``file:///dir`` is a directory, for a web server that runs as the same user. Without keys boto3
    looks for credentials as it always does.

    Raises pydantic.ValidationError, a ValueError, whose text holds no input value.
    """

    bucket: BucketName
    endpoint_url: EndpointUrl | None = None
    region: Region = "auto"
    access_key_id: Secret | None = None
    secret_access_key: Secret | None = None
    public: bool = False
    public_base_url: Annotated[str, AfterValidator(_checked_base)] | None = None
    default_ttl_days: FiniteFloat = Field(default=7.0, gt=0, le=LONGEST_PUBLIC_DAYS)

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        check_key_pair(self.access_key_id, self.secret_access_key)
        if self.public != (self.public_base_url is not None):
            raise ValueError("public and public_base_url go together: set both or neither")
        if self.public:
            return self
        if (self.endpoint_url or "").startswith("file:"):
            raise ValueError(
                "a directory makes no presigned URLs: set public and public_base_url, or name a "
                "bucket of an S3 store"
            )
        if self.default_ttl_days > LONGEST_SIGNED_DAYS:
            raise ValueError(
                f"a presigned URL lives {LONGEST_SIGNED_DAYS} days at most: set default_ttl_days "
                "to that or less, or set public and public_base_url"
            )
        return self


def share_config_of(project: str) -> ShareConfig:
    """The table ``[projects.<project>]`` of the user's TOML file. Raises ConfigError."""
    projects = settings_table("projects")
    table = projects.get(project)
    if not isinstance(table, dict):
        names = ", ".join(sorted(name for name, found in projects.items() if type(found) is dict))
        raise ConfigError(
            f"there is no table [projects.{project}] in {TOML_PATH} (found: {names or 'none'}): "
            "add it, with bucket and the other fields of ShareConfig"
        )
    try:
        return ShareConfig.model_validate(table)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        said = "; ".join(
            ": ".join([*map(str, fault["loc"]), fault["msg"].removeprefix("Value error, ")])
            for fault in faults
        )
        raise ConfigError(f"[projects.{project}] of {TOML_PATH}: {said}: correct it") from None
