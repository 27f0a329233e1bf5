"""What a user may configure, checked once at the edge.

The models are frozen, refuse names they do not know (an option that would silently do nothing is
an error), and never show a secret or an input value in a repr or an error message. The settings
classes read the environment and the ``[env]`` table of ``~/.config/buckethead/config.toml``, and
raise only ConfigError.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    FiniteFloat,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from buckethead.errors import ConfigError, InvalidBranchNameError
from buckethead.fields import BucketName, EndpointUrl, Model, Region, Secret, check_key_pair
from buckethead.settings_file import TOML_PATH, settings_table
from buckethead.share_config import ShareConfig
from buckethead.storage.layout import BRANCH_NAMES, MAIN, Place, checked_branch

__all__ = [
    "BucketConfig",
    "BucketHeadSettings",
    "BucketSettings",
    "ProfilingConfig",
    "ShareConfig",
    "SnapshotConfig",
]

DEFAULT_KEY: Final = "bucketsqlite/snap.db"
MASK: Final = "********"
DEFAULT_DIRECTORY: Final = "buckethead-data"

_MIB: Final = 1024 * 1024
_MAX_KEY_BYTES: Final = 900  # S3 takes 1,024; the rest is room for suffixes such as ".prev"
_ENV_PREFIX: Final = "BUCKETHEAD_"
_GROUP_REMEDY: Final = f"unset it, and set {_ENV_PREFIX}BUCKET__NAME and the like"


# ---- checks; a message never repeats the value, which may hold a credential


def _checked_key(key: str) -> str:
    size = len(key.encode())
    if not 1 <= size <= _MAX_KEY_BYTES:
        raise ValueError(f"a key is 1 to {_MAX_KEY_BYTES} bytes of UTF-8, this is {size}")
    if key.startswith("/"):
        raise ValueError("a key does not start with '/': remove the leading slash")
    return key


def _checked_account_id(account_id: str) -> str:
    # it becomes a part of a host name that credentials are sent to
    if not re.fullmatch(r"[0-9A-Za-z-]+", account_id):
        raise ValueError(
            "a Cloudflare account id is letters and digits only; copy it from the dashboard, "
            "or set the endpoint URL instead"
        )
    return account_id


def _checked_branch(name: str) -> str:
    try:
        return checked_branch(name)
    except InvalidBranchNameError:
        raise ValueError(f"no name for a branch; {BRANCH_NAMES}") from None


ObjectKey = Annotated[str, AfterValidator(_checked_key)]
AccountId = Annotated[str, AfterValidator(_checked_account_id)]
BranchName = Annotated[str, AfterValidator(_checked_branch)]


# ---- models


class BucketConfig(Model):
    """Where a database lives: a bucket, a key in it, and how to reach it.

    ``endpoint_url=None`` is AWS; ``file:///dir`` is a directory bucket. Without keys boto3 looks
    for credentials as it always does. Timeouts are in seconds, ``part_size`` in bytes: every
    upload but the last part of it has this size, and ``concurrency`` of them run at a time.
    ``initial_branch`` is the branch that is opened where none is named, and
    ``files_prefix`` is what the keys of file blobs begin with, the same for all branches.
    ``fencing="off"`` is for a store that ignores ``If-None-Match``: then nothing notices a second
    writer, and each may undo what the other has published.

    Raises pydantic.ValidationError, a ValueError, whose text holds no input value.
    """

    bucket: BucketName
    key: ObjectKey = DEFAULT_KEY
    files_prefix: ObjectKey = "files/"
    endpoint_url: EndpointUrl | None = None
    region: Region = "auto"
    access_key_id: Secret | None = None
    secret_access_key: Secret | None = None
    session_token: Secret | None = None
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    connect_timeout: FiniteFloat = Field(default=10.0, gt=0)
    read_timeout: FiniteFloat = Field(default=60.0, gt=0)
    # not in the repr: an SSE-C key is given here
    extra_put_args: dict[str, str] = Field(default={}, repr=False)
    # a multiple of the largest SQLite page, so that no page crosses a part; S3 wants 5 MiB to 5 GiB
    part_size: int = Field(default=8 * _MIB, ge=5 * _MIB, le=5 * 1024 * _MIB, multiple_of=65536)
    concurrency: int = Field(default=4, ge=1, le=64)
    initial_branch: BranchName = MAIN
    fencing: Literal["require", "off"] = "require"

    @property
    def place(self) -> Place:
        """The branch of the database that is opened where none is named."""
        return Place(self.key, self.initial_branch)

    @model_validator(mode="after")
    def _credentials_are_whole(self) -> Self:
        check_key_pair(self.access_key_id, self.secret_access_key)
        if self.session_token is not None and self.access_key_id is None:
            raise ValueError("session_token needs access_key_id and secret_access_key: set all")
        return self

    @classmethod
    def for_r2(
        cls,
        account_id: str,
        bucket: str,
        access_key_id: str | SecretStr,
        secret_access_key: str | SecretStr,
        **more: Any,
    ) -> Self:
        """The configuration of a Cloudflare R2 bucket; ``more`` are other fields of the model,
        such as the ``endpoint_url`` of a jurisdiction. Raises ValueError.
        """
        return cls.model_validate(
            {
                "endpoint_url": _r2_endpoint(account_id),
                "bucket": bucket,
                "access_key_id": access_key_id,
                "secret_access_key": secret_access_key,
                **more,
            }
        )


class SnapshotConfig(Model):
    """When a changed database is written to its bucket, what is kept of it there, and how a
    restored one is checked. Times are in seconds.

    A flush publishes what has changed, ``interval_seconds`` after the first commit;
    ``min_interval_seconds`` is the least time between two that are asked for. With
    ``durability="commit"`` every COMMIT publishes before it returns. ``checkpoint`` says when the
    whole image is written: "auto", as deltas add up and every ``checkpoint_interval_seconds`` in
    which something was published; with every "flush"; only at the "stop". ``keep_previous`` keeps
    the image before as ``<key>.prev``. Every state of the last ``retention_seconds`` can be
    restored. ``shutdown_timeout_seconds`` is what a termination signal leaves for the last flush.

    ``follow_seconds`` is how often a reader looks for what a writer in another process has
    published; after ``max_staleness_seconds`` without an answer it refuses to read.
    """

    interval_seconds: FiniteFloat = Field(default=60.0, gt=0)
    min_interval_seconds: FiniteFloat = Field(default=5.0, ge=0)
    keep_previous: bool = True
    checkpoint: Literal["auto", "flush", "stop"] = "auto"
    checkpoint_interval_seconds: FiniteFloat = Field(default=300.0, gt=0)
    retention_seconds: FiniteFloat = Field(default=86_400.0, gt=0)
    durability: Literal["flush", "commit"] = "flush"
    integrity_check: Literal["full", "quick", "none"] = "full"
    follow_seconds: FiniteFloat | None = Field(default=None, gt=0)
    max_staleness_seconds: FiniteFloat | None = Field(default=None, gt=0)
    shutdown_timeout_seconds: FiniteFloat = Field(default=30.0, gt=0)


class ProfilingConfig(Model):
    """What is measured between start and stop, and the directory the results are written to.

    ``io_counters`` counts requests and bytes, ``memory`` records allocations with memray, ``cpu``
    samples the starting thread with pyinstrument.
    """

    io_counters: bool = False
    memory: bool = False
    cpu: bool = False
    output_dir: Path = Path("./buckethead-profiles")


def masked(config: BucketConfig) -> dict[str, object]:
    """The fields of ``config`` for showing to a person: a secret that is set is ``MASK``."""
    shown: dict[str, object] = dict(config)
    for name, value in shown.items():
        if isinstance(value, SecretStr):
            shown[name] = MASK
    shown["extra_put_args"] = {
        name: MASK if "CustomerKey" in name else value
        for name, value in config.extra_put_args.items()
    }
    return shown


def _r2_endpoint(account_id: str) -> str:
    return f"https://{_checked_account_id(account_id)}.r2.cloudflarestorage.com"


# ---- settings


class _BucketGroup(Model):
    name: BucketName | None = None
    endpoint_url: EndpointUrl | None = None
    region: Region | None = None
    access_key_id: Secret | None = None
    secret_access_key: Secret | None = None


class _CloudflareGroup(Model):
    account_id: AccountId | None = None


class _SnapshotGroup(Model):
    key: ObjectKey | None = None
    branch: BranchName | None = None


class BucketHeadSettings(BaseSettings):
    """The ``BUCKETHEAD_`` variables of the environment, and below them those of the TOML file.

    An empty variable counts as not set. Raises ConfigError, which names the variable.
    """

    model_config = SettingsConfigDict(
        env_prefix=_ENV_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    bucket: _BucketGroup = _BucketGroup()
    cloudflare: _CloudflareGroup = _CloudflareGroup()
    snapshot: _SnapshotGroup = _SnapshotGroup()

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_one_line(error)) from None
        except SettingsError:  # a group's own name was set, to something that is not JSON
            raise ConfigError(
                f"{_ENV_PREFIX}BUCKET, {_ENV_PREFIX}CLOUDFLARE or {_ENV_PREFIX}SNAPSHOT is set: "
                f"{_GROUP_REMEDY}"
            ) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the TOML file."""
        return init_settings, env_settings, _TomlSource(settings_cls)

    def to_bucket_config(self) -> BucketConfig:
        """The bucket these settings name. Raises ConfigError when they do not name one."""
        values = self._values()
        if "bucket" not in values:
            found = ", ".join(sorted(values)) or "nothing"
            raise ConfigError(
                f"no bucket name is set (found: {found}): set {_ENV_PREFIX}BUCKET__NAME, or name "
                f"in [env.bucket] of {TOML_PATH}, or unset what was found"
            )
        try:
            return BucketConfig.model_validate(values)
        except ValidationError as error:
            raise ConfigError(_one_line(error)) from None

    def _values(self) -> dict[str, object]:
        """The BucketConfig fields that are set."""
        bucket, account_id = self.bucket, self.cloudflare.account_id
        return _present(
            bucket=bucket.name,
            key=self.snapshot.key,
            initial_branch=self.snapshot.branch,
            endpoint_url=bucket.endpoint_url or (account_id and _r2_endpoint(account_id)),
            region=bucket.region,
            access_key_id=bucket.access_key_id,
            secret_access_key=bucket.secret_access_key,
        )


class BucketSettings(BucketHeadSettings):
    """The same, and the names of older versions for whatever the newer ones leave unset."""

    r2_account_id: AccountId | None = Field(default=None, validation_alias="R2_ACCOUNT_ID")
    r2_endpoint_url: EndpointUrl | None = Field(default=None, validation_alias="R2_ENDPOINT_URL")
    r2_bucket: BucketName | None = Field(default=None, validation_alias="R2_BUCKET")
    r2_access_key_id: Secret | None = Field(default=None, validation_alias="R2_ACCESS_KEY_ID")
    r2_secret_access_key: Secret | None = Field(
        default=None, validation_alias="R2_SECRET_ACCESS_KEY"
    )
    older_key: ObjectKey | None = Field(default=None, validation_alias="BUCKETHEAD_KEY")
    older_branch: BranchName | None = Field(default=None, validation_alias="BUCKETHEAD_BRANCH")

    @classmethod
    def from_env(cls) -> Self:
        """Read the environment and the TOML file now. Raises ConfigError."""
        return cls()

    def _values(self) -> dict[str, object]:
        newer = super()._values()
        account_id = self.r2_account_id
        older = _present(
            bucket=self.r2_bucket,
            key=self.older_key,
            initial_branch=self.older_branch,
            endpoint_url=self.r2_endpoint_url or (account_id and _r2_endpoint(account_id)),
        )
        # the two halves of a key pair are never taken from different pairs
        if not newer.keys() & {"access_key_id", "secret_access_key"}:
            older |= _present(
                access_key_id=self.r2_access_key_id, secret_access_key=self.r2_secret_access_key
            )
        return older | newer


def resolved_bucket(given: Mapping[str, object], default_key: str = DEFAULT_KEY) -> BucketConfig:
    """The bucket that is meant: ``given`` fields over the environment over the TOML file, and where
    none of them names one, the directory ``./buckethead-data``.

    Raises ConfigError, also for a configuration that says how to reach a bucket but not which.
    """
    settings = BucketSettings.from_env()
    values = settings._values()
    given = dict(given)
    endpoint = str(given.get("endpoint_url", ""))
    if not (values.keys() | given.keys()) - {"key", "initial_branch"}:
        values |= {
            "bucket": DEFAULT_DIRECTORY,
            "endpoint_url": Path(DEFAULT_DIRECTORY).absolute().as_uri(),
        }
    elif endpoint.startswith("file:") and "bucket" not in given:
        given["bucket"] = "directory"  # a directory is its own bucket, and has no other name
    if "bucket" not in values | given:
        raise ConfigError(
            f"no bucket name is set (found: {', '.join(sorted(values | given))}): give the bucket, "
            f"or set {_ENV_PREFIX}BUCKET__NAME, or name in [env.bucket] of {TOML_PATH}, or unset "
            "what was found"
        )
    try:
        return BucketConfig.model_validate({"key": default_key} | values | given)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        raise ConfigError(
            "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'the bucket'}: "
                f"{_remedy(fault['type'], fault['msg'])}"
                for fault in faults
            )
        ) from None


class _TomlSource(PydanticBaseSettingsSource):
    """The ``[env]`` table: flat ``BUCKETHEAD_BUCKET__NAME`` keys, or ``[env.bucket]`` tables."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError("the whole table is read at once by __call__")

    def __call__(self) -> dict[str, Any]:
        fields = self.settings_cls.model_fields
        aliases = {field.validation_alias for field in fields.values()}
        found: dict[str, Any] = {}
        for name, value in settings_table("env").items():
            variable = name.upper()
            is_ours = variable.startswith(_ENV_PREFIX) or variable.lower() in fields
            if variable in _OLDER_NAMES:
                if variable in aliases:
                    _put(found, [variable], value)
            elif is_ours or isinstance(value, dict):
                _put(found, variable.removeprefix(_ENV_PREFIX).lower().split("__"), value)
        return found


_OLDER_NAMES: Final = frozenset(
    str(field.validation_alias)
    for field in BucketSettings.model_fields.values()
    if field.validation_alias
)


def _put(tree: dict[str, Any], path: list[str], value: object) -> None:
    """Set ``tree[path[0]][path[1]]…``; a table is set key by key, an empty string not at all."""
    if value == "":
        return
    if isinstance(value, dict):
        for name, inner in value.items():
            _put(tree, [*path, *name.lower().split("__")], inner)
        return
    for step in path[:-1]:
        tree = tree.setdefault(step, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{TOML_PATH}: [env] sets {step} both as a value and as a table")
    if path[-1] in tree:
        raise ConfigError(f"{TOML_PATH}: [env] sets {'.'.join(path)} twice: remove one")
    tree[path[-1]] = value


def _present(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def _one_line(error: ValidationError) -> str:
    """What is wrong with which setting; never the value, which may be a secret."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(
        f"{_variable(fault['loc'])}: {_remedy(fault['type'], fault['msg'])}" for fault in faults
    )


def _variable(loc: tuple[int | str, ...]) -> str:
    name = "__".join(str(step) for step in loc).upper()
    if name in _OLDER_NAMES:
        return name
    return f"{_ENV_PREFIX}{name}" if name else "the bucket settings"


def _remedy(kind: str, message: str) -> str:
    if kind == "model_type":
        return f"is a group of settings, not one: {_GROUP_REMEDY}"
    if kind == "extra_forbidden":
        return f"no such setting in this version: unset it, or remove it from {TOML_PATH}"
    return message.removeprefix("Value error, ")
