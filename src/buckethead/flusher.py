"""The last flush before the process ends, and the file that saves what the bucket does not take.

Nothing here raises: one volume's trouble, Ctrl-C included, must not keep the others from being
saved.
"""

import contextlib
import itertools
import logging
import os
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Sequence

from .errors import SnapshotError
from .image.pages import Pin
from .registry import Registry
from .storage.images import dump
from .volume import Volume

log = logging.getLogger("buckethead")

LONGEST_RESCUE_NAME = 150
"""Bytes of a volume's name in that of its rescue file, which may have 255."""


def bearable(seconds: float) -> float:
    """A time to wait that the platform can express: a very long one stands for never."""
    return min(max(0.0, seconds), threading.TIMEOUT_MAX)


def unsaved(registry: Registry) -> list[Volume]:
    """The volumes of which the bucket lacks commits, or an image of their newest state."""
    return [volume for volume in registry.volumes() if _is_unsaved(volume)]


def _is_unsaved(volume: Volume) -> bool:
    return volume.changed or volume.wants_checkpoint


def deadline_of(volumes: Sequence[Volume]) -> float:
    """When all of them should be saved, by the monotonic clock: the longest time that any of them
    allows itself, from now."""
    seconds = max((volume.snapshot.shutdown_timeout_seconds for volume in volumes), default=0.0)
    return time.monotonic() + bearable(seconds)


def save(volume: Volume) -> None:
    """Flush, and checkpoint where that is wanted. Raises what the flush raises; a checkpoint that
    fails is only worth a warning, for the bucket has every commit by then."""
    volume.flush()
    if volume.wants_checkpoint:
        try:
            volume.checkpoint()
        except BaseException as error:
            _warn_without_checkpoint(volume, error)


def _warn_without_checkpoint(volume: Volume, error: BaseException) -> None:
    log.warning(
        "%r could not be checkpointed (%s). Nothing is lost: the bucket has every commit, and the "
        "next mount restores them from the history.",
        *(volume.name, error),
    )


def last_flush(volume: Volume, timeout: float) -> None:
    """Save in this thread, the last time before the process ends; what the bucket does not take
    goes to a file. ``timeout`` in seconds is for what other threads do with the volume to end."""
    deadline = time.monotonic() + timeout
    try:
        _wait_for(volume.flushing, deadline)
        volume.publish()  # without the checkpoint that may belong to it: another one may hang
        if volume.wants_checkpoint:
            _wait_for(volume.checkpointing, deadline)
            volume.checkpoint(ending=True)
    except BaseException as error:  # Ctrl-C too: the data is saved first
        _give_up(volume, error)


def _wait_for(lock: threading.RLock, deadline: float) -> None:
    """Raise TimeoutError when another thread still holds a lock at the deadline. It is not kept:
    held during the checkpoint it would make every thread wait that commits meanwhile."""
    if not lock.acquire(timeout=bearable(deadline - time.monotonic())):
        raise _out_of_time()
    lock.release()


def save_until(volume: Volume, deadline: float) -> None:
    """A last flush if there is time left, else only what can be done without the bucket."""
    left = deadline - time.monotonic()
    if left > 0:
        last_flush(volume, bearable(left))
    else:
        _give_up(volume, _out_of_time())


def save_all(volumes: Sequence[Volume], deadline: float) -> None:
    """A last flush of each. Volumes of a store that has failed come after those of the others, and
    once the time is up it is not asked again; a store that works is asked all the same."""
    failed: set[tuple[str, ...]] = set()
    later = []
    for volume in volumes:
        if volume.store in failed:
            later.append(volume)
            continue
        last_flush(volume, bearable(deadline - time.monotonic()))
        if _is_unsaved(volume):
            failed.add(volume.store)
    for volume in later:
        save_until(volume, deadline)


def _out_of_time() -> TimeoutError:
    return TimeoutError("no flush of it ended in time")


def _give_up(volume: Volume, error: BaseException) -> None:
    if volume.changed:
        rescue(volume, error)
    else:
        _warn_without_checkpoint(volume, error)


_rescues = itertools.count(1)


def rescue(volume: Volume, error: BaseException) -> None:
    """Write what the bucket did not take to a new file in the current folder; name it on stderr."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = "".join(char if char.isalnum() or char in "-_." else "_" for char in volume.name)
    name = name.encode()[-LONGEST_RESCUE_NAME:].decode(errors="ignore")
    unique = f"{os.getpid()}-{next(_rescues)}"  # two names may be spelled alike here
    file = f"buckethead-rescue-{name}-{stamp}-{unique}.db"
    found = f"buckethead: {volume.name!r} could not be flushed ({error})."
    try:
        with volume.image.pinned() as pin:
            path = _dump_somewhere(pin, file)
    except BaseException as second:  # the other volumes must be saved too
        report = f"{found} DATA LOST: nor could its database be saved ({second})."
    else:
        report = (
            f"{found} Its database was saved to {path}; put it back with: {_way_back(volume, path)}"
        )
    with contextlib.suppress(OSError, ValueError):  # a closed stderr must not end the other rescues
        sys.stderr.write(f"{report}\n")  # at once: other threads log there


def _way_back(volume: Volume, path: str) -> str:
    config = volume.config
    command = ["buckethead", "--bucket", config.bucket, "--key", config.key]
    if config.endpoint_url is not None:
        command += ["--endpoint-url", config.endpoint_url]
    return shlex.join([*command, "import", "--force", path])


def _dump_somewhere(pin: Pin, file: str) -> str:
    """In the current folder, or where that takes no file, among the temporary ones."""
    try:
        path = os.path.abspath(file)
        dump(pin, path)
    except (OSError, SnapshotError):
        path = os.path.join(tempfile.gettempdir(), file)
        dump(pin, path)
    return path
