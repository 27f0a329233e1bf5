"""Named places in which a test can have the process die, between one step and the next.

Whatever changes something in a bucket, or what this process knows of it, has such a place before or
after it. The rules: a name stands in the code once and in `NAMES`; nothing happens there unless a
test has set `hook` in this very process, for no setting can; and none is where pages are read or
written.
"""

from collections.abc import Callable

NAMES = frozenset(
    {
        # a delta
        "publish.unsent",
        "publish.landed",
        "publish.noted",
        "claim.landed",
        "claim.done",
        "commit.published",
        # an image
        "image.wanted",
        "image.previous-kept",
        "image.sent",
        "image.appeared",
        "image.noted",
        # what is kept
        "snapshot.unsent",
        "snapshot.written",
        "retention.checked",
        "retention.freed",
        # branches
        "branch.tried",
        "branch.claimed",
        "branch.copied-one",
        "branch.deltas-copied",
        "branch.made",
        "branch.buried",
        "branch.removed",
        # files
        "file.stored",
        "file.row-written",
        "gc.looked",
        "gc.deleted-one",
        # objects in a directory
        "directory.filled",
        "directory.metadata-written",
        "directory.in-place",
        "directory.synced",
        "directory.unlinked",
    }
)
"""Every name, with what it belongs to in front."""

hook: Callable[[str], None] | None = None
"""Called with the name of each place that is come to; set by tests only."""


def crash_point(name: str) -> None:
    """A place in which the process may die; else nothing."""
    if hook is not None:
        hook(name)
