"""Foreign errors become ours, by the tables in this file and nowhere else.

Every error of botocore and of the operating system that a bucket can raise has a row: which of
our exceptions it is, what it means, what to do. A message is made of the row, the error code and,
where it is safe, the store's own words: never of botocore's text, which can repeat request
parameters, that is page content, and URLs.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from buckethead.errors import (
    BucketDeniedError,
    BucketError,
    BucketHeadError,
    BucketUnavailableError,
    ConfigError,
    ObjectNotFoundError,
    PreconditionFailedError,
)

_LONGEST_QUOTE = 200


class Place(Protocol):
    """Anything with a name for messages, such as a bucket."""

    url: str


@dataclass(frozen=True, slots=True)
class Fault:
    """One row: our exception, what was found, what to do, and may the store be quoted."""

    error: type[BucketHeadError]
    found: str
    remedy: str
    quote: bool = True


_CREDENTIALS = Fault(
    BucketDeniedError,
    "the credentials were not accepted",
    "Check access_key_id, secret_access_key and session_token, and that they belong to this store.",
    quote=False,
)
_NO_CREDENTIALS = Fault(
    BucketDeniedError,
    "no usable credentials were found",
    "Set access_key_id and secret_access_key, or one of the sources boto3 looks at: AWS_* "
    "variables, ~/.aws, an instance role.",
)
_DENIED = Fault(
    BucketDeniedError,
    "access was denied",
    "Give these credentials leave to read, write, list and delete in this bucket; without leave "
    "to list, a missing object looks like a denied one.",
)
_NO_BUCKET = Fault(
    BucketDeniedError,
    "there is no such bucket",
    "Create the bucket, or correct its name, endpoint_url or region.",
)
_NO_OBJECT = Fault(ObjectNotFoundError, "there is no such object", "Check the key.")
_PRECONDITION = Fault(
    PreconditionFailedError,
    "the object is not, or no longer, the expected one",
    "Read it again before deciding: another writer was there, or an earlier reply was lost.",
)
_CLOCK = Fault(
    BucketDeniedError,
    "the clock of this machine differs too much from the store's",
    "Set the clock (NTP) and try again.",
)
_REGION = Fault(
    ConfigError,
    "the bucket lives in another region or at another endpoint",
    "Set region and endpoint_url to those of the bucket.",
)
_NO_REGION = Fault(
    ConfigError,
    "no region is configured",
    "Set region, or AWS_DEFAULT_REGION, or the endpoint_url of the store.",
)
_BUSY = Fault(
    BucketUnavailableError,
    "the store asks for fewer requests",
    "Try again later, or with a smaller concurrency.",
)
_DOWN = Fault(BucketUnavailableError, "the store has trouble of its own", "Try again later.")
_UNREACHABLE = Fault(
    BucketUnavailableError,
    "the connection was refused, or the host name is unknown",
    "Check endpoint_url and the network, and that the store is running.",
)
_TIMEOUT = Fault(
    BucketUnavailableError,
    "there was no answer in time",
    "Check the network and the store, or raise connect_timeout and read_timeout.",
)
_BROKEN = Fault(
    BucketUnavailableError,
    "the transfer broke off or arrived damaged",
    "Try again; if it stays, look at what is between this machine and the store.",
)
_TLS = Fault(
    ConfigError,
    "the TLS connection could not be made",
    "Check the scheme of endpoint_url and the store's certificate; AWS_CA_BUNDLE names a private "
    "certificate authority.",
)
_PROXY = Fault(
    BucketUnavailableError,
    "the proxy could not be reached",
    "Check HTTP_PROXY, HTTPS_PROXY and NO_PROXY.",
)
_SETTINGS = Fault(
    ConfigError,
    "boto3 refuses its configuration",
    "Check bucket, endpoint_url, region and extra_put_args, the AWS_* variables and ~/.aws.",
)
_NO_NAME = Fault(ConfigError, "this is not a name the store accepts", "Choose another name.")
_NO_ROOM = Fault(BucketDeniedError, "there is no room left", "Free some room, or raise the quota.")
_UNSUPPORTED = Fault(
    BucketError,
    "the store does not offer this operation",
    "Use a store that does; see the documentation for the stores known to work.",
)
_ARCHIVED = Fault(
    BucketError, "the object is in an archive", "Restore it from the archive storage class first."
)
_KMS = Fault(
    BucketDeniedError,
    "the encryption key cannot be used",
    "Check the key in extra_put_args, and that these credentials may use it.",
)
_REFUSED = Fault(
    BucketError,
    "the store refused the request",
    "See the store's documentation for this error code.",
)
_INTERNAL = Fault(
    BucketError,
    "boto3 could not make or understand this request",
    "Check that boto3 and botocore are of the same age, and report it.",
)

# HTTP status -> fault, for codes without a row; the fallback is by hundreds.
_STATUSES: dict[int, Fault] = {
    400: _REFUSED,
    401: _CREDENTIALS,
    403: _DENIED,
    404: _NO_OBJECT,
    405: _UNSUPPORTED,
    408: _TIMEOUT,
    409: _REFUSED,
    412: _PRECONDITION,
    429: _BUSY,
    501: _UNSUPPORTED,
    503: _BUSY,
    507: _NO_ROOM,
}
_STATUS_CLASSES: dict[int, Fault] = {3: _REGION, 4: _REFUSED, 5: _DOWN}


def _by_name(*rows: tuple[Fault, str]) -> dict[str, Fault]:
    return {name: fault for fault, names in rows for name in names.split()}


# S3 error code -> fault.
_CODES = _by_name(
    (
        _CREDENTIALS,
        (
            "InvalidAccessKeyId SignatureDoesNotMatch InvalidToken ExpiredToken InvalidSecurity "
            "TokenRefreshRequired Unauthorized UnauthorizedAccess NotSignedUp MissingSecurityHeader"
        ),
    ),
    (_DENIED, "AccessDenied AccountProblem AllAccessDisabled Forbidden InvalidPayer"),
    (_NO_BUCKET, "NoSuchBucket"),
    (_NO_OBJECT, "NoSuchKey"),
    (_PRECONDITION, "PreconditionFailed ConditionalRequestConflict"),
    (_CLOCK, "RequestTimeTooSkewed RequestExpired"),
    (
        _REGION,
        (
            "PermanentRedirect TemporaryRedirect Redirect AuthorizationHeaderMalformed "
            "IllegalLocationConstraintException"
        ),
    ),
    (
        _BUSY,
        (
            "SlowDown SlowDownRead SlowDownWrite Throttling ThrottlingException ThrottledException "
            "RequestThrottled RequestThrottledException TooManyRequests TooManyRequestsException "
            "BandwidthLimitExceeded RequestLimitExceeded OperationAborted"
        ),
    ),
    (_DOWN, "InternalError ServiceUnavailable Busy"),
    (_TIMEOUT, "RequestTimeout RequestTimeoutException"),
    (_BROKEN, "BadDigest IncompleteBody InvalidDigest XAmzContentSHA256Mismatch"),
    (_NO_NAME, "InvalidBucketName InvalidURI KeyTooLongError KeyTooLong"),
    (_NO_ROOM, "QuotaExceeded InsufficientStorage XMinioStorageFull"),
    (_UNSUPPORTED, "NotImplemented MethodNotAllowed"),
    (_ARCHIVED, "InvalidObjectState"),
    (
        _KMS,
        (
            "KMS.DisabledException KMS.InvalidKeyUsageException KMS.KMSInvalidStateException "
            "KMS.NotFoundException"
        ),
    ),
)

# botocore exception -> fault, by class name so that nobody waits for botocore's import; a class
# without a row takes that of its nearest ancestor.
_BOTOCORE = _by_name(
    (
        _NO_CREDENTIALS,
        (
            "NoCredentialsError PartialCredentialsError CredentialRetrievalError "
            "UnknownCredentialError NoAuthTokenError TokenRetrievalError UnknownTokenProviderError "
            "SSOError LoginError MetadataRetrievalError RefreshWithMFAUnsupportedError "
            "InvalidIMDSEndpointError InvalidIMDSEndpointModeError"
        ),
    ),
    (_NO_REGION, "NoRegionError"),
    (_UNREACHABLE, "ConnectionError EndpointConnectionError"),
    (_TIMEOUT, "ConnectTimeoutError ReadTimeoutError"),
    (
        _BROKEN,
        (
            "HTTPClientError ConnectionClosedError ResponseStreamingError IncompleteReadError "
            "ChecksumError FlexibleChecksumError AwsChunkedWrapperError ResponseParserError"
        ),
    ),
    (_TLS, "SSLError"),
    (_PROXY, "ProxyConnectionError"),
    (_BUSY, "CapacityNotAvailableError"),
    (
        _SETTINGS,
        (
            "ParamValidationError ValidationError ProfileNotFound ConfigParseError ConfigNotFound "
            "BaseEndpointResolverError EndpointProviderError UnknownRegionError "
            "ServiceNotInRegionError InvalidDNSNameError InvalidS3AddressingStyleError "
            "UnsupportedS3ArnError UnsupportedS3ControlArnError UnsupportedOutpostResourceError "
            "UnsupportedS3ConfigurationError UnsupportedS3AccesspointConfigurationError "
            "UnsupportedS3ControlConfigurationError InvalidHostLabelError "
            "InvalidEndpointDiscoveryConfigurationError InvalidRetryConfigurationError "
            "InvalidS3UsEast1RegionalEndpointConfigError InvalidSTSRegionalEndpointsConfigError "
            "InvalidConfigError InvalidProxiesConfigError InvalidDefaultsMode "
            "InvalidEndpointConfigurationError InvalidChecksumConfigError"
        ),
    ),
    (
        _INTERNAL,
        (
            "DataNotFoundError ApiVersionNotFoundError UnknownSignatureVersionError "
            "UnsupportedSignatureVersionError MissingParametersError UnknownServiceStyle "
            "PaginationError OperationNotPageableError UnseekableStreamError WaiterError "
            "WaiterConfigError InvalidExpressionError UnknownClientMethodError StubResponseError "
            "MD5UnavailableError MissingDependencyException UnsupportedServiceProtocolsError "
            "EndpointDiscoveryException UndefinedModelAttributeError MissingServiceIdError"
        ),
    ),
)

# urllib3 exception -> fault, by class name and nearest ancestor as well. botocore lets them through
# where it reads the body of a reply for itself: of a listing, and of an error.
_URLLIB3 = _by_name((_BROKEN, "HTTPError"), (_TIMEOUT, "TimeoutError"), (_TLS, "SSLError"))

_NO_FOLDER = Fault(
    BucketDeniedError, "a folder is missing, or was taken away", "Create it, or correct the path."
)
_NOT_A_FOLDER = Fault(
    ConfigError,
    "a file stands where a folder is needed, or a folder where a file is",
    "Choose another key, or move what is in the way.",
)
_NO_PERMISSION = Fault(
    BucketDeniedError,
    "this user may not do that there",
    "Correct owner and permissions, or choose another folder.",
)
_READ_ONLY = Fault(
    BucketDeniedError, "the file system is read-only", "Choose a folder that can be written."
)
_LONG_NAME = Fault(ConfigError, "the name is too long", "Choose a shorter key or folder.")
_LINKS = Fault(ConfigError, "symbolic links lead in a circle", "Remove the links.")
_TOO_MANY_FILES = Fault(
    BucketUnavailableError, "too many files are open", "Close some, or raise the limit (ulimit -n)."
)
_DISK = Fault(BucketUnavailableError, "the disk or its server has trouble", "Check it; try again.")
_OS = Fault(BucketError, "the operating system refused", "See the error it gave.")

# errno -> fault; any other is _OS.
_ERRNOS: dict[int, Fault] = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: _NO_ROOM,
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EROFS: _READ_ONLY,
    errno.ENOENT: _NO_FOLDER,
    errno.ENOTDIR: _NOT_A_FOLDER,
    errno.EISDIR: _NOT_A_FOLDER,
    errno.EEXIST: _NOT_A_FOLDER,
    errno.ENAMETOOLONG: _LONG_NAME,
    errno.ELOOP: _LINKS,
    errno.EMFILE: _TOO_MANY_FILES,
    errno.ENFILE: _TOO_MANY_FILES,
    errno.EIO: _DISK,
    errno.ESTALE: _DISK,
    errno.ETIMEDOUT: _TIMEOUT,
    errno.ECONNREFUSED: _UNREACHABLE,
    errno.ECONNRESET: _BROKEN,
    errno.EPIPE: _BROKEN,
}


@contextmanager
def translated(what: str, place: Place) -> Iterator[None]:
    """Turn botocore's errors and OSError raised inside into ours, with a message that helps.

    ``what`` completes "Could not ...", as in "write the image app.db". Errors of ours, and those
    of neither library, pass untouched. The foreign error stays as ``__cause__``.
    """
    try:
        yield
    except BucketHeadError:
        raise
    except Exception as error:
        fault = fault_of(error)
        if fault is None:
            raise
        raise fault.error(
            f"Could not {what} at {place.url}: {describe(error)}. {fault.remedy}"
        ) from error


def fault_of(error: BaseException) -> Fault | None:
    """The row for an error, or None for one that is neither of botocore's making nor an OSError."""
    names = _names(error, "botocore")
    if "ClientError" in names:
        return _fault_of_reply(error)
    if names:
        return next((_BOTOCORE[name] for name in names if name in _BOTOCORE), _INTERNAL)
    names = _names(error, "urllib3")
    if names:
        return next((_URLLIB3[name] for name in names if name in _URLLIB3), None)
    if isinstance(error, OSError):
        return _ERRNOS.get(error.errno or 0, _OS)
    return None


def describe(error: BaseException) -> str:
    """What was found, in few words, free of credentials, content and signed URLs."""
    fault = fault_of(error)
    if fault is None:
        return type(error).__name__
    if "ClientError" in _names(error, "botocore"):
        detail = code_of(error)
        words = _quotable(_reply(error).get("Error", {}).get("Message", ""))
        detail += f": {words}" if fault.quote and words else ""
    elif isinstance(error, OSError) and error.strerror:
        detail = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    else:
        detail = type(error).__name__
    return f"{fault.found} ({detail})"


def code_of(error: BaseException) -> str:
    """The S3 error code of a botocore ClientError; the bare HTTP status where a reply has none."""
    return str(_reply(error).get("Error", {}).get("Code", "")) or str(status_of(error))


def status_of(error: BaseException) -> int:
    """The HTTP status of a botocore ClientError; 0 where there was none."""
    return int(_reply(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _fault_of_reply(error: BaseException) -> Fault:
    code = code_of(error)
    if code in _CODES:
        return _CODES[code]
    # the reply to a HEAD has no body, so its "code" is the status
    status = status_of(error) or (int(code) if code.isdecimal() else 0)
    if status == 404 and getattr(error, "operation_name", "") == "HeadBucket":
        return _NO_BUCKET
    return _STATUSES.get(status) or _STATUS_CLASSES.get(status // 100, _REFUSED)


def _reply(error: BaseException) -> dict[str, Any]:
    # None in those of botocore's errors that say a connection failed
    response: dict[str, Any] = getattr(error, "response", None) or {}
    return response


def _names(error: BaseException, package: str) -> list[str]:
    """The classes of a package that an error is of, the nearest first."""
    classes = type(error).__mro__
    return [kind.__name__ for kind in classes if kind.__module__.startswith(f"{package}.")]


def _quotable(text: str) -> str:
    without_queries = re.sub(r"(https?://[^\s?]+)\?\S*", r"\1", text)
    return " ".join(without_queries.split())[:_LONGEST_QUOTE].rstrip(".")
