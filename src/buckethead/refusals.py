"""What a write is told where writing is not allowed (any more): the refusals of a volume."""

from .errors import VolumeError, VolumeReadOnlyError


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
