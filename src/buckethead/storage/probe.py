"""Does a store keep the condition that keeps two writers apart? Found out by doing.

The dangerous store ignores ``If-None-Match`` and answers 200. So an object is written under that
condition, and where this works, once more: the second time has to fail. The object stays for ever;
from then on the first request tells. Requests in turn are judged, not requests at one moment.
"""

from collections.abc import Callable
from functools import partial

from buckethead.errors import ConfigError, PreconditionFailedError
from buckethead.storage.contract import Bucket
from buckethead.storage.translate import code_of, translated

_CONTENT = (
    b"buckethead writes this object to see whether the store honours If-None-Match. Keep it.\n"
)

# By place and kind of write. No lock: two threads that ask at once come to the same answer, and
# no store waits for another.
_honoured: dict[tuple[tuple[str, ...], bool], bool] = {}


def check_conditions(bucket: Bucket, key: str, *, multipart: bool) -> None:
    """Raise ConfigError when the store ignores conditions of plain, or of multipart, writes.

    Asked once in a process for each place; ``key`` is the object it is asked with, which nothing
    else may use. Raises BucketError when the answer could not be had: then nothing is remembered.
    """
    asked = (bucket.identity, multipart)
    if asked not in _honoured:
        write: Callable[[], object] = partial(bucket.put_bytes, _CONTENT, key, if_none_match=True)
        if multipart:
            write = partial(
                bucket.put_parts, [_CONTENT], key, if_none_match=True, always_multipart=True
            )
        with translated(f"write {key!r}, to see whether conditions hold,", bucket):
            _honoured[asked] = _is_honoured(write)
    if not _honoured[asked]:
        operation = "CompleteMultipartUpload" if multipart else "PutObject"
        raise ConfigError(
            f"Could not trust the store at {bucket.url}: it does not honour If-None-Match on "
            f"{operation} (tried with {key!r}), so two writers could overwrite each other. Use "
            'another store, or set fencing="off" and have exactly one writer, ever.'
        )


def _is_honoured(write: Callable[[], object]) -> bool:
    try:
        write()
        # it was not there before, or the store does not care
        write()
    except PreconditionFailedError:
        return True
    except Exception as error:
        # of botocore's errors only a reply has an operation, and a code
        if hasattr(error, "operation_name") and code_of(error) == "NotImplemented":
            return False
        raise
    return False
