"""What a shared copy is called, and what a browser is told of it. Pure functions.

A name is ASCII and leads nowhere else; a header has nothing in it that a file name brought along.
"""

import re
import unicodedata
from pathlib import PurePosixPath
from urllib.parse import quote

LONGEST_SLUG = 80
LONGEST_EXTENSION = 10
HASH_DIGITS = 8

_SHARE_KEY = re.compile(
    rf"[a-z0-9][a-z0-9-]{{0,{LONGEST_SLUG - 1}}}/[0-9a-f]{{{HASH_DIGITS}}}"
    rf"(\.[a-z0-9]{{1,{LONGEST_EXTENSION}}})?"
)
_EXTENSION = re.compile(rf"\.[a-z0-9]{{1,{LONGEST_EXTENSION}}}")
_MIME = re.compile(r"[\w.+-]{1,100}/[\w.+-]{1,100}(; ?[\w-]{1,40}=[\w.+-]{1,100})*", re.ASCII)
_ANY_BYTES = "application/octet-stream"


def share_key_for(bh_key: str, filename: str | None, share_name: str | None) -> str:
    """``<slug>/<first 8 hex><.ext>``, the slug from ``share_name``, the file name or the key.

    Raises ValueError for a ``share_name`` that leaves nothing of it.
    """
    base, extension = _parts(filename)
    slug = _slug(base) or bh_key
    if share_name is not None:
        if not isinstance(share_name, str):
            raise TypeError(f"share_name is a str, not {type(share_name).__name__}")
        slug = _slug(share_name.lower().removesuffix(extension))
        if not slug:
            raise ValueError(
                f"Could not share under the name {share_name[:LONGEST_SLUG]!r}: it has no letter "
                "or digit of ASCII."
            )
    return f"{slug}/{bh_key[:HASH_DIGITS]}{extension}"


def is_share_key(key: str) -> bool:
    """Can an object of this name be a copy of ours?"""
    return bool(_SHARE_KEY.fullmatch(key))


def headers_for(share_key: str, filename: str | None, mime: str | None) -> dict[str, str]:
    """What the copy is served with. It is downloaded rather than shown: a page or a picture with
    scripts in it must not run under the address that files are shared at."""
    slug, _, rest = share_key.partition("/")
    plain = slug + PurePosixPath(rest).suffix
    name = _base(filename) or plain
    return {
        "ContentType": mime if mime and _MIME.fullmatch(mime) else _ANY_BYTES,
        "ContentDisposition": (
            f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
        ),
    }


def _parts(filename: str | None) -> tuple[str, str]:
    """A file name without its extension, and that."""
    path = PurePosixPath(_base(filename))
    extension = path.suffix.lower()
    return (path.stem, extension) if _EXTENSION.fullmatch(extension) else (path.name, "")


def _base(filename: str | None) -> str:
    """The last component, without what cannot be printed or encoded."""
    name = re.split(r"[/\\]", filename or "")[-1]
    return "".join(c for c in name if c.isprintable())


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:LONGEST_SLUG].strip("-")
