"""When volumes are flushed: one scheduler thread and a few workers for all volumes of the process,
and the last flush at a signal, at interpreter exit, and not after a fork.

A volume asks for a flush with the first commit that follows one; until then it is in no queue and
causes no wake-up. Everything that reaches the scheduler goes through one queue whose ``put`` is
reentrant, so signal handlers and commits use it alike, without a lock.
"""

import atexit
import contextlib
import heapq
import itertools
import logging
import os
import queue
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import FrameType
from typing import Any

from .errors import BucketHeadError, SnapshotError, VolumeReadOnlyError
from .image.pages import Pin
from .registry import Registry
from .storage.snapshot import dump
from .volume import Volume

log = logging.getLogger("buckethead")

WORKERS = 4
"""Volumes flushed at a time; each transfer has `BucketConfig.concurrency` threads of its own."""

LONGEST_BACKOFF_SECONDS = 300.0

NO_THREAD_SECONDS = 1.0
BUSY_SECONDS = 1.0
"""Until the next try when a worker could not be started, or the volume was being flushed."""

LONGEST_RESCUE_NAME = 150
"""Bytes of a volume's name in that of its rescue file, which may have 255."""


@dataclass(frozen=True, slots=True)
class _Ask:
    """Flush ``volume`` in ``delay`` seconds; None is its interval."""

    volume: Volume
    delay: float | None = None


class _FlushAll:
    """SIGINT: flush what has changed, and go on."""


class _ShutDown:
    """SIGTERM: flush everything in the time there is, then let the signal do its work."""


class Scheduler:
    """The one thread that knows when each volume is due. Its queue is all that others touch."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.terminate: Callable[[], None] = lambda: None
        self.reset()

    def reset(self) -> None:
        """Begin anew, without a thread: at construction, and in a forked child."""
        self._queue: queue.SimpleQueue[_Ask | _FlushAll | _ShutDown] = queue.SimpleQueue()
        self._due: list[tuple[float, int, Volume]] = []  # a heap; the scheduler thread's own
        self._due_at: dict[Volume, float] = {}  # the one entry of the heap that counts
        self._numbers = itertools.count()
        self._failures: dict[Volume, int] = {}  # written by the worker that flushes the volume
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._workers: ThreadPoolExecutor | None = None

    # -- called from anywhere ---------------------------------------------------------------

    def wake(self, volume: Volume) -> None:
        """A volume has something to publish: flush it within its interval."""
        self._queue.put(_Ask(volume))

    def schedule(self, volume: Volume, delay: float) -> None:
        """Flush ``volume`` in ``delay`` seconds, or earlier if that is planned already."""
        self._queue.put(_Ask(volume, delay))

    def flush_all(self) -> None:
        """Flush everything that has changed, soon."""
        self._queue.put(_FlushAll())

    def shut_down(self) -> None:
        """Flush everything within the volumes' shutdown timeout, then call ``terminate``."""
        self._queue.put(_ShutDown())

    def start(self) -> None:
        """Start the thread, once; it waits for the queue and for nothing else."""
        with self._start_lock:
            if self._thread is None:
                self._workers = ThreadPoolExecutor(WORKERS, "buckethead-flush")
                thread = threading.Thread(
                    target=self._run, name="buckethead-scheduler", daemon=True
                )
                thread.start()
                self._thread = thread

    # -- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            timeout = _bearable(self._due[0][0] - time.monotonic()) if self._due else None
            try:
                with contextlib.suppress(queue.Empty):  # then something is due
                    self._serve(self._queue.get(timeout=timeout))
                self._flush_due()
            except Exception:  # without this thread nothing would ever be flushed again
                log.exception("the scheduler failed and goes on")

    def _serve(self, request: _Ask | _FlushAll | _ShutDown) -> None:
        if isinstance(request, _Ask):
            self._plan(request)
        elif isinstance(request, _FlushAll):
            for volume in self._registry.volumes():
                if volume.changed:
                    self._submit(volume)
        else:
            try:
                self._flush_in_time()
            finally:
                self.terminate()

    def _plan(self, ask: _Ask) -> None:
        volume = ask.volume
        delay = ask.delay
        if delay is None:  # a new commit is no reason to try a failing bucket earlier
            delay = max(volume.snapshot.interval_seconds, self._backoff(volume))
        volume.asked = True
        due = time.monotonic() + delay
        if due < self._due_at.get(volume, float("inf")):
            self._due_at[volume] = due
            heapq.heappush(self._due, (due, next(self._numbers), volume))

    def _flush_due(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            due, _, volume = heapq.heappop(self._due)
            if self._due_at.get(volume) == due:  # else an earlier entry has been served
                del self._due_at[volume]
                self._submit(volume)

    def _submit(self, volume: Volume, *, wait: bool = False) -> Future[None] | None:
        assert self._workers is not None
        try:
            return self._workers.submit(self._flush, volume, wait=wait)
        except RuntimeError:  # no new thread: for now, or because the interpreter is exiting
            self.schedule(volume, NO_THREAD_SECONDS)
            return None

    def _flush(self, volume: Volume, *, wait: bool = False) -> None:
        """In a worker, which does not ``wait`` for a flush of the volume that is running: one
        bucket that hangs must not hold more than one worker."""
        if not volume.flushing.acquire(blocking=wait):
            self.schedule(volume, min(BUSY_SECONDS, volume.snapshot.interval_seconds))
            return
        try:
            volume.flush()
        except VolumeReadOnlyError as error:
            log.warning("%s is not flushed any more: %s", volume.name, error)
        except BaseException as error:  # whatever it was, the pages must go out some day
            self._failures[volume] = self._failures.get(volume, 0) + 1
            delay = self._backoff(volume)
            level = log.warning if isinstance(error, BucketHeadError) else log.exception
            level("flush of %r failed, next try in %.0f s: %s", volume.name, delay, error)
            self.schedule(volume, delay)
        else:
            self._failures.pop(volume, None)
        finally:
            volume.flushing.release()

    def _backoff(self, volume: Volume) -> float:
        """Seconds from the last failure to the next try; 0 when the last flush succeeded."""
        failures = self._failures.get(volume, 0)
        return min(LONGEST_BACKOFF_SECONDS, 2.0 ** min(failures, 16)) if failures else 0.0

    def _flush_in_time(self) -> None:
        """At SIGTERM: everything at once, in the longest time that any volume allows itself."""
        volumes = [volume for volume in self._registry.volumes() if volume.changed]
        timeout = max((volume.snapshot.shutdown_timeout_seconds for volume in volumes), default=0)
        deadline = time.monotonic() + _bearable(timeout)
        futures = [future for volume in volumes if (future := self._submit(volume, wait=True))]
        wait(futures, _bearable(timeout))
        for volume in self._registry.volumes():  # again: the program went on meanwhile
            if volume.changed:
                last_flush(volume, _bearable(deadline - time.monotonic()))


def _bearable(seconds: float) -> float:
    """A time to wait that the platform can express: a very long one stands for never."""
    return min(max(0.0, seconds), threading.TIMEOUT_MAX)


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
        print(report, file=sys.stderr)


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


def last_flush(volume: Volume, timeout: float) -> None:
    """Flush in this thread, the last time before the process ends; what the bucket does not take
    is saved to a file. ``timeout`` in seconds is for another flush of the volume to end."""
    error: BaseException = TimeoutError("another flush of it did not end")
    try:
        if volume.flushing.acquire(timeout=timeout):
            try:
                volume.checkpoint()
                return
            finally:
                volume.flushing.release()
    except BaseException as failure:  # Ctrl-C too: the data is saved first
        error = failure
    rescue(volume, error)


class Lifecycle:
    """The process around the volumes: signals, exit and fork."""

    def __init__(self, registry: Registry, scheduler: Scheduler) -> None:
        self._registry = registry
        self._scheduler = scheduler
        self._previous: dict[int, Any] = {}
        self._pid = os.getpid()
        self._forked = False
        self._terminating = False
        self._flushed = False

    def install(self) -> None:
        """Register with the interpreter, once; signals follow with the first volume."""
        self._scheduler.terminate = self._raise_again
        atexit.register(self.at_exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork_in_child)

    def volume_mounted(self) -> None:
        """Start the scheduler, and handle signals if this is the main thread."""
        self._scheduler.start()
        if self._forked:
            self._flush_at_the_end_of_a_forked_worker()
        if threading.current_thread() is threading.main_thread():
            self._handle(signal.SIGINT, self._on_interrupt)
            self._handle(signal.SIGTERM, self._on_terminate)

    def _handle(self, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        previous = signal.getsignal(number)
        # None: installed by C code, which could not be called; ignored signals stay ignored. One
        # put on top of ours may call ours, and ours would call it again: it is left alone
        if number not in self._previous and previous not in (None, signal.SIG_IGN):
            self._previous[number] = previous
            signal.signal(number, handler)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        self._scheduler.flush_all()
        previous = self._previous[number]
        if callable(previous):
            previous(number, frame)
        elif previous is signal.SIG_DFL:
            self._give_back(number)

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        if self._flushed:
            self._flushed = self._terminating = False
            self._give_back(number)
        elif not self._terminating:
            self._terminating = True
            self._scheduler.shut_down()

    def _give_back(self, number: int) -> None:
        signal.signal(number, self._previous.pop(number))
        signal.raise_signal(number)

    def _raise_again(self) -> None:
        """In the scheduler thread, which must not change dispositions: the handler will."""
        self._flushed = True
        os.kill(os.getpid(), signal.SIGTERM)

    def at_exit(self) -> None:
        """Flush every volume in this thread; what cannot be flushed is saved to a file."""
        if os.getpid() != self._pid:
            return  # a forked child: the parent has the data
        for volume in self._registry.volumes():
            if volume.changed:
                last_flush(volume, _bearable(volume.snapshot.shutdown_timeout_seconds))

    def _flush_at_the_end_of_a_forked_worker(self) -> None:
        """A forked child of multiprocessing leaves by os._exit(), with hooks of its own only."""
        util = sys.modules.get("multiprocessing.util")
        if util is not None:
            util.Finalize(None, self.at_exit, exitpriority=0)
            self._forked = False

    def _after_fork_in_child(self) -> None:
        self._pid = os.getpid()
        self._forked = True
        self._scheduler.reset()
        self._registry.after_fork_in_child()
        for volume in self._registry.volumes():
            volume.after_fork_in_child()
        with contextlib.suppress(ValueError):  # not the main thread
            for number, previous in self._previous.items():
                signal.signal(number, previous)
        self._previous.clear()
