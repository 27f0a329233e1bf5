"""Every object key, built in one place.

For the database at key ``K``; ``<branch>`` is ``main`` or a name, numbers are 16 hex digits:

| key | what |
|---|---|
| ``K`` | the image of ``main``: a plain SQLite database file |
| ``K.branch.<branch>`` | the image of another branch |
| ``<image>.prev`` | the image before it |
| ``K.ltx/<branch>/0000/<txid>-<txid>.ltx`` | a delta: the pages that one flush changed |
| ``K.ltx/<branch>/0009/<1>-<txid>.ltx`` | a snapshot: all pages, in the format of a delta |
| ``K.ltx/<branch>/making/<txid>-<n>`` | who makes the branch, of all that saw it end there |
| ``K.ltx/probe.txt`` | shows whether the store keeps to ``If-None-Match`` |
"""

import re
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import InvalidBranchNameError

TXID: TypeAlias = int
"""Number of a delta within its history, 1 for the first; the state after it has the same number."""

MAX_TXID = (1 << 63) - 1
"""The largest one that SQLite's integers hold. What claims a larger one is no part of a history."""

MAIN = "main"

LONGEST_BRANCH = 128
"""Characters of a branch's name. With key, `.branch.` and `.prev` it is a file name in a directory
bucket, and those end at 255 bytes."""

BRANCH_NAMES = f"use 1 to {LONGEST_BRANCH} letters, digits, '_' and '-'"

_BRANCH = re.compile(r"[a-zA-Z0-9_-]+")
_LTX_NAME = re.compile(r"(0000|0009)/([0-9a-f]{16})-([0-9a-f]{16})\.ltx")


def checked_branch(name: str) -> str:
    """The name of a branch. Raises InvalidBranchNameError, a ValueError, TypeError."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a branch is a str, not {type(name).__name__}")
    if not _BRANCH.fullmatch(name) or len(name) > LONGEST_BRANCH:
        shown = name if len(name) <= LONGEST_BRANCH else f"{name[:40]}..."
        raise InvalidBranchNameError(f"{shown!r} is no name for a branch: {BRANCH_NAMES}.")
    return name


def branch_of(key: str, object_key: str) -> str | None:
    """Which branch of the database at ``key`` an object belongs to; None for one of no branch."""
    if object_key in (key, previous(key)):
        return MAIN
    name = None
    if object_key.startswith(f"{key}.branch."):
        name = object_key.removeprefix(f"{key}.branch.").removesuffix(".prev")
    elif object_key.startswith(f"{key}.ltx/"):
        name, _, rest = object_key.removeprefix(f"{key}.ltx/").partition("/")
        name = name if rest else None
    valid = name is not None and _BRANCH.fullmatch(name) and len(name) <= LONGEST_BRANCH
    return name if valid else None


def previous(key: str) -> str:
    """Where the image before the one at ``key`` is kept."""
    return f"{key}.prev"


def probe(key: str) -> str:
    """The object that shows whether the store keeps to conditions."""
    return f"{key}.ltx/probe.txt"  # with a dot, as no branch has one


def is_ours(key: str, object_key: str) -> bool:
    """Whether an object belongs to the database at ``key``: its images and its histories."""
    return object_key in (key, previous(key)) or object_key.startswith(
        (f"{key}.ltx/", f"{key}.branch.")
    )


@dataclass(frozen=True, slots=True)
class Place:
    """One branch of the database at ``key``: where its image and its history are."""

    key: str
    branch: str = MAIN

    @property
    def image(self) -> str:
        """The key of the image."""
        return self.key if self.branch == MAIN else f"{self.key}.branch.{self.branch}"

    @property
    def previous(self) -> str:
        """The key of the image before it."""
        return previous(self.image)

    @property
    def history(self) -> str:
        """What the keys of deltas and snapshots begin with; a replica that Litestream reads."""
        return f"{self.key}.ltx/{self.branch}/"

    def delta(self, txid: TXID) -> str:
        """The key of a delta."""
        return f"{self.history}0000/{txid:016x}-{txid:016x}.ltx"

    def snapshot(self, txid: TXID) -> str:
        """The key of a snapshot."""
        return f"{self.history}0009/{1:016x}-{txid:016x}.ltx"

    def making(self, newest: TXID, number: int = 0) -> str:
        """The key of the n-th try to make the branch that ended with TXID ``newest``, 0 where it
        never was; for ``number`` 0 what they all begin with."""
        return f"{self.history}making/{newest:016x}-{number or ''}"

    def parsed(self, object_key: str) -> tuple[bool, TXID] | None:
        """Whether an object is a snapshot, and its TXID; None for what is neither."""
        found = _LTX_NAME.fullmatch(object_key.removeprefix(self.history))
        if found is None:
            return None
        txid = int(found[3], 16)
        if txid > MAX_TXID:
            return None
        is_snapshot = found[1] == "0009"
        known = self.snapshot(txid) if is_snapshot else self.delta(txid)
        return (is_snapshot, txid) if known == object_key else None
