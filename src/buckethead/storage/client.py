"""boto3's client for a store of S3: made once for each way to reach it, and shared.

One client serves every bucket and volume of a store: it weighs 11 MB, a volume 170 KB.
"""

import os
import threading
from typing import TYPE_CHECKING, Literal
from weakref import WeakValueDictionary

from pydantic import SecretStr

from buckethead.config import BucketConfig
from buckethead.errors import ConfigError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# First try included. boto3's "standard" mode waits at most 1 s, then 2 s between tries, so that
# a dead endpoint costs three timeouts and no more.
_ATTEMPTS = 3
# Kept open at most.
_CONNECTIONS = 64

_clients: "WeakValueDictionary[tuple[object, ...], S3Client]" = WeakValueDictionary()
_clients_lock = threading.RLock()  # guards _clients; reentrant for finalizers


def shared_client(config: BucketConfig) -> "S3Client":
    """The client of all buckets reached in the same way, but not over a fork.

    Raises ConfigError when no region can be found.
    """
    access = config.model_dump(
        include={
            "endpoint_url",
            "region",
            "access_key_id",
            "secret_access_key",
            "session_token",
            "addressing_style",
            "connect_timeout",
            "read_timeout",
        }
    )
    with _clients_lock:
        way = (os.getpid(), *access.values())
        client = _clients.get(way)
        if client is None:
            client = _clients[way] = _make_client(config)
        return client


def _make_client(config: BucketConfig) -> "S3Client":
    # boto3 takes 0.2 s to import: a directory bucket does not pay for it
    import boto3.session  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    is_aws = config.endpoint_url is None
    session = boto3.session.Session(
        aws_access_key_id=_revealed(config.access_key_id),
        aws_secret_access_key=_revealed(config.secret_access_key),
        aws_session_token=_revealed(config.session_token),
        region_name=None if is_aws and config.region == "auto" else config.region,
    )
    if session.region_name is None:
        # boto3 would go to us-east-1 without a word
        raise ConfigError(
            f"Could not use s3://{config.bucket}: it is on AWS, and no region is configured. Set "
            "region in the configuration, or AWS_DEFAULT_REGION; for another store, endpoint_url."
        )
    # AWS's own checksums are unknown to many other stores
    checksums: Literal["when_required"] | None = None if is_aws else "when_required"
    return session.client(
        "s3",
        endpoint_url=config.endpoint_url,
        config=Config(
            signature_version="s3v4",
            connect_timeout=config.connect_timeout,
            read_timeout=config.read_timeout,
            max_pool_connections=_CONNECTIONS,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            s3={"addressing_style": config.addressing_style},
            request_checksum_calculation=checksums,
            response_checksum_validation=checksums,
        ),
    )


def spelled_alike(endpoint: str) -> str:
    """An endpoint without what makes no difference: case, and a scheme's own port."""
    endpoint = endpoint.lower()
    for scheme, port in (("http://", ":80"), ("https://", ":443")):
        if endpoint.startswith(scheme):
            endpoint = endpoint.removesuffix(port)
    return "" if endpoint == "https://s3.amazonaws.com" else endpoint


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
