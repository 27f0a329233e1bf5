"""The table of foreign errors is complete, and its messages help and keep secrets."""

import errno
import inspect
import os
from types import SimpleNamespace

import botocore.discovery
import botocore.exceptions
import botocore.parsers
import pytest
import urllib3.exceptions

from buckethead.errors import (
    BucketDeniedError,
    BucketError,
    BucketHeadError,
    BucketUnavailableError,
    ConfigError,
    ObjectNotFoundError,
    PreconditionFailedError,
)
from buckethead.storage import translate
from buckethead.storage.translate import describe, fault_of, translated

PLACE = SimpleNamespace(url="s3://bucket at http://host")


def reply(
    code: str, status: int, message: str = "", operation: str = "PutObject"
) -> botocore.exceptions.ClientError:
    response = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return botocore.exceptions.ClientError(response, operation)  # type: ignore[arg-type]


def bare(kind: type[BaseException]) -> BaseException:
    """An instance without the arguments its constructor wants; only the class matters."""
    return kind.__new__(kind)


def botocore_errors() -> list[type[BaseException]]:
    found: list[type[BaseException]] = [
        kind
        for _, kind in inspect.getmembers(botocore.exceptions, inspect.isclass)
        if issubclass(kind, Exception)
        and not issubclass(kind, (Warning, botocore.exceptions.ClientError))
        and kind is not botocore.exceptions.BotoCoreError
    ]
    found += botocore.discovery.EndpointDiscoveryException.__subclasses__()
    return [*found, botocore.parsers.ResponseParserError]


def test_every_botocore_error_has_a_row() -> None:
    missing = [
        kind.__name__
        for kind in botocore_errors()
        if not any(base.__name__ in translate._BOTOCORE for base in kind.__mro__)
    ]
    assert missing == []


def test_every_row_is_of_an_error_that_exists() -> None:
    known = {base.__name__ for kind in botocore_errors() for base in kind.__mro__}
    assert set(translate._BOTOCORE) <= known


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("NoCredentialsError", BucketDeniedError),
        ("UnauthorizedSSOTokenError", BucketDeniedError),
        ("NoRegionError", ConfigError),
        ("EndpointConnectionError", BucketUnavailableError),
        ("ConnectTimeoutError", BucketUnavailableError),
        ("ReadTimeoutError", BucketUnavailableError),
        ("ResponseStreamingError", BucketUnavailableError),
        ("SSLError", ConfigError),
        ("ParamValidationError", ConfigError),
        ("PaginationError", BucketError),
    ],
)
def test_botocore_errors(kind: str, expected: type[BucketHeadError]) -> None:
    fault = fault_of(bare(getattr(botocore.exceptions, kind)))
    assert fault is not None
    assert fault.error is expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (urllib3.exceptions.ProtocolError, BucketUnavailableError),
        (urllib3.exceptions.IncompleteRead, BucketUnavailableError),
        (urllib3.exceptions.ReadTimeoutError, BucketUnavailableError),
        (urllib3.exceptions.SSLError, ConfigError),
        (botocore.parsers.ResponseParserError, BucketUnavailableError),
    ],
)
def test_what_breaks_off_in_the_middle_of_a_reply(
    kind: type[BaseException], expected: type[BucketHeadError]
) -> None:
    """botocore lets these through where it reads a body for itself: of a listing, of an error."""
    error = bare(kind)
    with pytest.raises(expected, match=kind.__name__), translated("list x", PLACE):
        raise error


@pytest.mark.parametrize(
    ("code", "status", "expected", "words"),
    [
        ("SignatureDoesNotMatch", 403, BucketDeniedError, "secret_access_key"),
        ("InvalidAccessKeyId", 403, BucketDeniedError, "access_key_id"),
        ("AccessDenied", 403, BucketDeniedError, "leave"),
        ("NoSuchBucket", 404, BucketDeniedError, "Create the bucket"),
        ("NoSuchKey", 404, ObjectNotFoundError, "no such object"),
        ("PreconditionFailed", 412, PreconditionFailedError, "Read it again"),
        ("ConditionalRequestConflict", 409, PreconditionFailedError, "Read it again"),
        ("RequestTimeTooSkewed", 403, BucketDeniedError, "clock"),
        ("PermanentRedirect", 301, ConfigError, "region"),
        ("AuthorizationHeaderMalformed", 400, ConfigError, "region"),
        ("SlowDown", 503, BucketUnavailableError, "concurrency"),
        ("InternalError", 200, BucketUnavailableError, "later"),
        ("QuotaExceeded", 403, BucketDeniedError, "room"),
        ("NotImplemented", 501, BucketError, "does not offer"),
        ("SomethingNew", 400, BucketError, "SomethingNew"),
        ("SomethingNew", 401, BucketDeniedError, "credentials"),
        ("SomethingNew", 403, BucketDeniedError, "denied"),
        ("SomethingNew", 409, BucketError, "refused"),
        ("SomethingNew", 418, BucketError, "refused"),
        ("SomethingNew", 429, BucketUnavailableError, "fewer requests"),
        ("SomethingNew", 307, ConfigError, "endpoint"),
        ("SomethingNew", 500, BucketUnavailableError, "later"),
        ("SomethingNew", 599, BucketUnavailableError, "later"),
        ("SomethingNew", 507, BucketDeniedError, "room"),
        ("404", 404, ObjectNotFoundError, "no such object"),
        ("", 503, BucketUnavailableError, "503"),
    ],
)
def test_replies(code: str, status: int, expected: type[BucketHeadError], words: str) -> None:
    error = reply(code, status, "the store's words")
    with pytest.raises(BucketHeadError, match=words) as caught, translated("write x", PLACE):
        raise error
    assert type(caught.value) is expected
    assert caught.value.__cause__ is error
    text = str(caught.value)
    assert text.startswith("Could not write x at s3://bucket at http://host: ")
    assert (code or str(status)) in text


def test_a_head_of_a_missing_bucket_is_no_missing_object() -> None:
    with pytest.raises(BucketDeniedError, match="no such bucket"), translated("look", PLACE):
        raise reply("404", 404, operation="HeadBucket")


@pytest.mark.parametrize(
    ("number", "expected", "words"),
    [
        (errno.ENOSPC, BucketDeniedError, "room"),
        (errno.EDQUOT, BucketDeniedError, "room"),
        (errno.EACCES, BucketDeniedError, "permissions"),
        (errno.EROFS, BucketDeniedError, "read-only"),
        (errno.ENAMETOOLONG, ConfigError, "shorter"),
        (errno.ENOENT, BucketDeniedError, "folder"),
        (errno.ENOTDIR, ConfigError, "folder"),
        (errno.EMFILE, BucketUnavailableError, "ulimit"),
        (errno.ECONNREFUSED, BucketUnavailableError, "refused"),
        (errno.EXDEV, BucketError, os.strerror(errno.EXDEV)),
    ],
)
def test_errors_of_the_operating_system(
    number: int, expected: type[BucketHeadError], words: str
) -> None:
    error = OSError(number, os.strerror(number), "/some/file")
    with pytest.raises(BucketHeadError, match=words) as caught, translated("write x", PLACE):
        raise error
    assert type(caught.value) is expected
    assert "/some/file" in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [BucketUnavailableError("ours"), ValueError("nobody's"), KeyboardInterrupt()]
)
def test_what_is_not_foreign_passes_untouched(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, translated("write x", PLACE):
        raise error
    assert caught.value is error
    assert caught.value.__cause__ is None


def test_messages_quote_no_signature_no_parameter_and_no_credential() -> None:
    signed = reply("Odd", 400, "see https://host/key?X-Amz-Signature=SECRET please")
    assert "SECRET" not in describe(signed)
    assert "https://host/key please" in describe(signed)
    echoing = reply("InvalidAccessKeyId", 403, "no such key AKIASECRET")
    assert "SECRET" not in describe(echoing)
    invalid = botocore.exceptions.ParamValidationError(report="Body: b'SECRET'")
    assert "SECRET" not in describe(invalid)
    unreachable = botocore.exceptions.EndpointConnectionError(endpoint_url="http://u:SECRET@h")
    assert "SECRET" not in describe(unreachable)


def test_a_long_reply_is_cut() -> None:
    assert len(describe(reply("Odd", 400, "word " * 1000))) < 300
