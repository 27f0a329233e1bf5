"""What a write is told where writing is not allowed (any more): the refusals of a volume."""

from .errors import HistoryError, VolumeBusyError, VolumeError, VolumeReadOnlyError


def inherited(name: str) -> VolumeReadOnlyError:
    """In a forked child: the parent has the volume."""
    return VolumeReadOnlyError(
        f"Could not write to {name!r}: this process was forked from the one that mounted it, and "
        "two writers would overwrite each other. Write in the parent, or mount another name and "
        "key in the child."
    )


def fate_open(name: str) -> VolumeReadOnlyError:
    """After a COMMIT that nobody can tell the outcome of."""
    return VolumeReadOnlyError(
        f"Could not write to {name!r}: whether its last transaction reached the bucket is open. "
        "It is found out by the next flush, which is tried again and again; or call force_flush()."
    )


def stopped(name: str) -> VolumeError:
    """After the volume was stopped or unmounted."""
    return VolumeError(
        f"Could not write to {name!r}: it was stopped or unmounted. Start or mount it again and "
        "open a new connection."
    )


def on_the_move(name: str) -> VolumeBusyError:
    """While a volume is mounted, or is made another branch."""
    return VolumeBusyError(
        f"Could not tell which branch {name!r} is: it is just being mounted or switched, perhaps "
        "in an observer of a flush. Nothing was changed; try again when that is done."
    )


def history_gone(name: str, key: str) -> HistoryError:
    """Where there is nothing left that could be claimed."""
    return HistoryError(
        f"Could not write to {name!r}: its history at {key!r} is gone. What was read of it is "
        "still in memory: save it with VACUUM INTO."
    )


def other_page_size(name: str, found: int, expected: int) -> HistoryError:
    """For a database that cannot take the place of one with a history."""
    return HistoryError(
        f"Could not put another database in place of {name!r}: its pages have {found:,} bytes, "
        f"those of its history {expected:,}, and a history keeps its page size. Use another key, "
        "or VACUUM the other database with this page size first."
    )
