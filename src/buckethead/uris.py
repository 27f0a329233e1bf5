"""The URIs of volumes: which database one means, and refusing what cannot be meant.

A volume opened beside another branch of its name has a name of its own, which ends with the branch
as a URI gives it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import quote

from pydantic import ValidationError

from .config import BucketConfig, SnapshotConfig, resolved_bucket
from .errors import ConfigError
from .storage.layout import TXID, checked_branch

CONFIGURING = ("bucket", "key", "endpoint_url", "region")
PAST = ("txid", "at")
FOLLOWING = {"follow": "follow_seconds", "max_staleness": "max_staleness_seconds"}
_KNOWN = (*CONFIGURING, "branch", "mode", "vfs", *PAST, *FOLLOWING)
BRANCH = "?branch="
_SECRET_WORDS = ("key_id", "secret", "token", "password", "credential", "signature")


def beside(name: str, branch: str) -> str:
    """The name of the volume that is a branch of ``name``, opened beside it."""
    return f"{name}{BRANCH}{branch}"


def uri_of(name: str, **parameters: object) -> str:
    """The URI that opens the volume ``name`` from any connection."""
    name, _, branch = name.partition(BRANCH)
    if branch:
        parameters = {"branch": branch, **parameters}
    more = "".join(f"&{word}={quote(str(value))}" for word, value in parameters.items())
    return f"file:{quote(name)}?vfs=buckethead{more}"


def check_parameters(name: str, parameters: dict[str, str]) -> None:
    """Refuse credentials, unknown parameters and what no branch can be called. Raises ConfigError,
    InvalidBranchNameError."""
    for parameter in parameters:
        if parameter in _KNOWN:
            continue
        if any(word in parameter.lower() for word in _SECRET_WORDS):
            raise ConfigError(
                f"Could not open {name!r}: the URI carries a credential ({parameter}), and URIs "
                "end up in logs. Give it by BucketConfig or the environment "
                "(BUCKETHEAD_BUCKET__ACCESS_KEY_ID, ...), and change it if it was real."
            )
        raise ConfigError(
            f"Could not open {name!r}: the URI parameter {parameter!r} is not one of "
            f"{', '.join(sorted(_KNOWN))}. Correct or remove it."
        )
    if "branch" in parameters:
        checked_branch(parameters["branch"])


def check_combination(name: str, parameters: dict[str, str], read_only: bool) -> None:
    """Refuse parameters that say different things about which state is meant."""
    past = [parameter for parameter in PAST if parameter in parameters]
    live = [parameter for parameter in FOLLOWING if parameter in parameters]
    if len(past) == 2:
        fault = "txid and at both say which past state is meant. Give one of them"
    elif past and live:
        fault = f"{past[0]} is a past state, which has nothing to follow. Leave out {live[0]}"
    elif live == ["max_staleness"]:
        fault = "max_staleness is about a follower. Add follow=SECONDS"
    elif past and parameters.get("mode", "ro") != "ro":
        fault = f"{past[0]} is a past state, which nobody can write to. Use mode=ro"
    elif live and not read_only:
        fault = "who follows another process does not write. Add mode=ro"
    else:
        return
    raise ConfigError(f"Could not open {name!r}: {fault}.")


def txid_of(name: str, text: str) -> TXID:
    """The number of a past state. Raises ConfigError."""
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text)):
        raise ConfigError(
            f"Could not open {name!r}: txid={text!r} is no number of a state. They are 1, 2, ... "
            "in the order of publication: `buckethead log` lists them."
        )
    return int(text)


def following(name: str, parameters: dict[str, str]) -> SnapshotConfig:
    """How the parameters say that a database is to be followed. Raises ConfigError."""
    given = {field: parameters[word] for word, field in FOLLOWING.items() if word in parameters}
    try:
        return SnapshotConfig.model_validate(given)
    except ValidationError:
        said = " and ".join(
            f"{word}={parameters[word]!r}" for word in FOLLOWING if word in parameters
        )
        raise ConfigError(
            f"Could not open {name!r}: {said} is to be a number of seconds above 0, as in follow=1."
        ) from None


def config_of(name: str, parameters: Mapping[str, str] = MappingProxyType({})) -> BucketConfig:
    """Where a volume opened by name lives: URI parameters over the environment's settings over the
    default directory. Raises ConfigError."""
    given = {field: parameters[field] for field in CONFIGURING if field in parameters}
    name = name.partition(BRANCH)[0]
    if "branch" in parameters:
        given["initial_branch"] = parameters["branch"]
    if name.startswith("/") and "key" not in given:
        raise ConfigError(
            f"Could not open {name!r}: the name of a volume is no path. Write "
            f"{uri_of(name.lstrip('/'))!r}, or give the key as a parameter."
        )
    try:
        return resolved_bucket(given, f"{name}.db")
    except ConfigError as error:
        raise ConfigError(
            f"Could not open {name!r}: {error}. Correct the URI or the settings."
        ) from None
