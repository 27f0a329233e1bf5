"""The last flush before the process ends, and the file that saves what the bucket does not take.

Workers flush, for a store may never answer; whoever ends the process only waits for them, no
longer than the volumes allow, and then writes to files what is still in memory. An upload that
lands after all harms nothing. One volume's trouble never keeps the others from being saved.
"""

import contextlib
import itertools
import logging
import os
import queue
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from .errors import FencedError, SnapshotError
from .image.pages import Pin
from .registry import Registry
from .storage.images import dump
from .storage.layout import MAIN
from .turns import NEVER, Served
from .volume import Volume

log = logging.getLogger("buckethead")

LONGEST_RESCUE_NAME = 150
"""Bytes of a volume's name in that of its rescue file, which may have 255."""

QUIET_SECONDS = 2.0
"""An exit that takes longer says why."""

DEAF_SECONDS = 0.2
"""How late Ctrl-C is heard at most: one that comes just before a wait begins does not end it."""

End = tuple[Volume, BaseException | None]


def bearable(seconds: float) -> float:
    """A time to wait that the platform can express: a very long one stands for never."""
    return min(max(0.0, seconds), threading.TIMEOUT_MAX)


def unsaved(registry: Registry) -> list[Volume]:
    """The volumes of which the bucket lacks commits, or an image of their newest state."""
    return [volume for volume in registry.volumes() if _is_unsaved(volume)]


def _is_unsaved(volume: Volume) -> bool:
    return volume.changed or volume.wants_checkpoint


def _deadline_of(volumes: Iterable[Volume]) -> float:
    """When all of them should be saved, by the monotonic clock: the longest time that any of them
    allows itself, from now."""
    seconds = max((volume.snapshot.shutdown_timeout_seconds for volume in volumes), default=0.0)
    return time.monotonic() + bearable(seconds)


class LastFlush:
    """The last flush and checkpoint of a volume, as the scheduler serves it. It is served apart
    from the volume itself, whose own service may hang; how it ended is put into ``ends``."""

    interval = 0.0
    asked = True

    def __init__(self, volume: Volume, ends: "queue.SimpleQueue[End | None]") -> None:
        self.name = volume.name
        self.store = volume.store
        self.flushing = threading.RLock()  # not the volume's: a worker waits for that one
        self._volume = volume
        self._ends = ends

    def serve(self) -> None:
        """Whatever goes wrong is for the thread that waits."""
        error: BaseException | None = None
        try:
            _save(self._volume)
        except BaseException as failure:
            error = failure
        self._ends.put((self._volume, error))


def _save(volume: Volume) -> None:
    volume.publish()  # without the checkpoint that may belong to it: another one may hang
    if volume.wants_checkpoint:
        volume.checkpoint(ending=True)
        volume.publish()  # what the program has committed meanwhile


class LastFlushes:
    """The last flushes of some volumes, and the thread that waits for them. All but `interrupt`
    belongs to that thread."""

    def __init__(self, volumes: Sequence[Volume]) -> None:
        self._volumes = volumes
        self._left = dict.fromkeys(volumes)
        self._failed: dict[Volume, BaseException] = {}
        self._deadline = _deadline_of(volumes)
        self._interrupted = False
        # None wakes the thread. Its ``put`` is reentrant, for a signal handler
        self._ends: queue.SimpleQueue[End | None] = queue.SimpleQueue()

    def run(self, hurry: Callable[[Served], None]) -> None:
        """Flush by the workers that ``hurry`` asks, and save to files what they do not flush in
        time. The time begins anew with every volume that is saved: a store that works is given as
        long as its volumes take, one that does not answer their timeout."""
        self.begin(hurry)
        self._wait()
        self.give_up()

    def interrupt(self) -> None:
        """Wait no longer. For a signal handler, and of no effect while files are written."""
        self._interrupted = True
        self._ends.put(None)

    def begin(self, hurry: Callable[[Served], None]) -> None:
        """Ask for every flush."""
        for volume in self._volumes:
            hurry(LastFlush(volume, self._ends))

    @property
    def seconds_left(self) -> float:
        """How much longer to wait; 0 once all have ended."""
        return max(0.0, self._deadline - time.monotonic()) if self._left else 0.0

    def note(self, until: float) -> bool:
        """Note what became of a volume, waiting for the next one ``until`` that time at most.
        Whether it was saved."""
        try:
            end = self._ends.get(timeout=bearable(until - time.monotonic()))
        except queue.Empty:
            return False
        if end is None:
            return False
        volume, error = end
        self._left.pop(volume, None)
        if error is not None:
            self._failed[volume] = error
        return error is None

    def _wait(self) -> None:
        silent_until = time.monotonic() + QUIET_SECONDS
        while self.seconds_left and not self._interrupted:
            if time.monotonic() >= silent_until:
                silent_until = NEVER
                _say(self._explanation())
            awake = time.monotonic() + DEAF_SECONDS
            if self.note(min(self._deadline, silent_until, awake)):
                self._deadline = _deadline_of(self._left)

    def _explanation(self) -> str:
        within = f"up to {self.seconds_left:.0f} s more"
        changed = [volume for volume in self._left if volume.changed]
        names = _names(changed or list(self._left))
        if changed:
            return f"still flushing {names}: {within}; Ctrl-C saves it to a file instead."
        return (
            f"still writing the image of {names}: {within}; Ctrl-C ends it, and nothing is lost: "
            "the bucket has every commit."
        )

    def give_up(self) -> None:
        """Save to files what was not flushed, for the reason it failed or was not waited for."""
        reason = (
            KeyboardInterrupt()
            if self._interrupted
            else TimeoutError("no flush of it ended in time")
        )
        for volume in self._volumes:
            if volume in self._failed:
                _give_up(volume, self._failed[volume])
            elif volume in self._left and _is_unsaved(volume):
                _give_up(volume, reason)


def _names(volumes: Sequence[Volume]) -> str:
    more = f" and {len(volumes) - 1:,} more" if len(volumes) > 1 else ""
    return f"{volumes[0].name!r}{more} to {volumes[0].bucket.url}"


def _reason(error: BaseException) -> str:
    """What an error says; some say nothing."""
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted by Ctrl-C"
    return str(error) or repr(error)


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a closed stderr must not end the rescues
        sys.stderr.write(f"buckethead: {line}\n")  # at once: other threads log there


def _give_up(volume: Volume, error: BaseException) -> None:
    if volume.changed:
        rescue(volume, error)
        return
    log.warning(
        "%r could not be checkpointed (%s). Nothing is lost: the bucket has every commit, and the "
        "next mount restores them from the history.",
        *(volume.name, _reason(error)),
    )


_rescues = itertools.count(1)


def rescue(volume: Volume, error: BaseException) -> None:
    """Write what the bucket did not take to a new file in the current folder; name it on stderr."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = "".join(char if char.isalnum() or char in "-_." else "_" for char in volume.name)
    name = name.encode()[-LONGEST_RESCUE_NAME:].decode(errors="ignore")
    unique = f"{os.getpid()}-{next(_rescues)}"  # two names may be spelled alike here
    file = f"buckethead-rescue-{name}-{stamp}-{unique}.db"
    found = f"{volume.name!r} could not be flushed ({_reason(error)})."
    try:
        with volume.image.pinned() as pin:
            path = _dump_somewhere(pin, file)
    except BaseException as second:  # the other volumes must be saved too
        _say(f"{found} DATA LOST: nor could its database be saved ({_reason(second)}).")
    else:
        _say(f"{found} {_what_to_do(volume, path, error)}")


def _what_to_do(volume: Volume, path: str, error: BaseException) -> str:
    command = _way_back(volume, path)
    if not any(isinstance(known, FencedError) for known in (error, volume.last_error)):
        return f"Its database was saved to {path}; put it back with: {command}"
    return (
        "Another writer has gone on. The database with what was not published was saved to "
        f"{path}; compare it with the newest state before you import it, for that replaces what "
        f"the other has written: {command}"
    )


def _way_back(volume: Volume, path: str) -> str:
    config = volume.config
    command = ["buckethead", "--bucket", config.bucket, "--key", config.key]
    if config.endpoint_url is not None:
        command += ["--endpoint-url", config.endpoint_url]
    if volume.place.branch != MAIN:
        command += ["--branch", volume.place.branch]
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
