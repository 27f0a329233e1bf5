"""The types that the fields of a configuration have, and what is checked of each.

A model is frozen and refuses names it does not know. No message repeats a value, which may hold a
credential.
"""

from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

_ENDPOINT_FORMS: Final = "use http://HOST, https://HOST or file:///ABSOLUTE/DIRECTORY"


def _checked_bucket(name: str) -> str:
    if not name or any(char.isspace() or not char.isprintable() for char in name):
        raise ValueError("a bucket name is at least one character and has no spaces; set one")
    return name


def _checked_endpoint(url: str) -> str:
    if not url.isprintable():
        raise ValueError(f"the endpoint has control characters; {_ENDPOINT_FORMS}")
    if "?" in url or "#" in url:
        raise ValueError(f"the endpoint has a query or fragment; {_ENDPOINT_FORMS}")
    if url.startswith("file:///"):
        return url
    if "@" in url:
        raise ValueError(
            "the endpoint has a user name or password; give these as access_key_id and "
            f"secret_access_key, and for the endpoint {_ENDPOINT_FORMS}"
        )
    if not is_http_url(url):
        raise ValueError(f"the endpoint is not a usable URL; {_ENDPOINT_FORMS}")
    return url


def is_http_url(url: str) -> bool:
    """Can a URL be asked by HTTP? It has the scheme, a host, and no impossible port."""
    try:
        parts = urlsplit(url)
        usable = parts.port is None or parts.port > 0
    except ValueError:  # its text repeats the URL
        return False
    return usable and parts.scheme in ("http", "https") and bool(parts.hostname) and " " not in url


BucketName = Annotated[str, AfterValidator(_checked_bucket)]
EndpointUrl = Annotated[str, AfterValidator(_checked_endpoint)]
Region = Annotated[str, Field(min_length=1)]
Secret = Annotated[SecretStr, Field(min_length=1)]


class Model(BaseModel):
    """What all models of the configuration have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def check_key_pair(access_key_id: object | None, secret_access_key: object | None) -> None:
    """Raise ValueError when one half of a pair of credentials is missing."""
    if (access_key_id is None) != (secret_access_key is None):
        raise ValueError("access_key_id and secret_access_key go together: set both or neither")
