"""When volumes are served, and by whom: one scheduler thread and a few workers for all of them.

Served means: flushed, or whatever else a `Served` object has to do from time to time. Each asks for
it; until then it is in no queue and causes no wake-up. Everything that reaches the scheduler is a
function put into one queue whose ``put`` is reentrant, so that signal handlers, commits and workers
use it alike, without a lock; all other state belongs to the scheduler thread alone.
"""

import contextlib
import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from weakref import WeakSet

from .errors import BucketHeadError, VolumeReadOnlyError
from .flusher import LastFlushes, bearable, unsaved
from .registry import Registry
from .turns import NEVER, NOW, Served, Timetable, Turns

log = logging.getLogger("buckethead")

LONGEST_BACKOFF_SECONDS = 300.0

BUSY_SECONDS = 0.1
"""Until the next try when another thread was flushing the volume."""


class Scheduler:
    """The one thread that knows who is due. ``chance`` gives numbers from 0 to 1, for the jitter of
    the backoff."""

    def __init__(self, registry: Registry, chance: Callable[[], float] = random.random) -> None:
        self._registry = registry
        self._chance = chance
        self.terminate: Callable[[], None] = lambda: None
        self.reset()

    def reset(self) -> None:
        """Begin anew, without a thread: at construction, and in a forked child."""
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._timetable = Timetable()
        self._turns = Turns()
        self._again: dict[Served, float] = {}  # being served -> when it is due after that
        self._failures: dict[Served, int] = {}  # in a row
        self._ended: WeakSet[Served] = WeakSet()
        self._threads = 0
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None

    # -- called from anywhere ---------------------------------------------------------------

    def wake(self, volume: Served) -> None:
        """A volume has something to do: serve it within its interval."""
        self._queue.put(partial(self._wake, volume))

    def schedule(self, volume: Served, delay: float) -> None:
        """Serve ``volume`` in ``delay`` seconds, or earlier if that is planned already."""
        self._queue.put(partial(self._ask, volume, time.monotonic() + delay))

    def hurry(self, volume: Served) -> None:
        """Somebody waits for it: serve ``volume`` as soon as it gets a worker, also while it is
        backing off, and again if it is being served."""
        self._queue.put(partial(self._ask, volume, NOW))

    def forget(self, volume: Served) -> None:
        """Serve ``volume`` no more and let go of it."""
        self._queue.put(partial(self._forget, volume))

    def flush_all(self) -> None:
        """Flush everything that has changed, soon."""
        self._queue.put(self._flush_all)

    def shut_down(self) -> None:
        """Save everything within the volumes' shutdown timeout, then call ``terminate``."""
        self._queue.put(self._shut_down)

    def start(self) -> None:
        """Start the thread, once; it waits for the queue and for nothing else."""
        with self._start_lock:
            if self._thread is None:
                thread = threading.Thread(
                    target=self._run, name="buckethead-scheduler", daemon=True
                )
                thread.start()
                self._thread = thread

    # -- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                self._step(NEVER)
            except Exception:  # without this thread nothing would ever be flushed again
                log.exception("the scheduler failed and goes on")

    def _step(self, until: float) -> None:
        """Sleep until something is asked or due, at the longest ``until``, and see to it."""
        until = min(until, self._timetable.next())
        timeout = None if until == NEVER else bearable(until - time.monotonic())
        with contextlib.suppress(queue.Empty):
            self._queue.get(timeout=timeout)()
        for volume in self._timetable.take_due(time.monotonic()):
            self._turns.add(volume)
        while (taken := self._turns.take()) is not None:
            self._again[taken] = NEVER
            self._hand_over(partial(self._serve, taken))

    def _hand_over(self, job: Callable[[], None]) -> None:
        """To a worker. They are daemons, so that an upload that hangs does not keep the process
        from ending: the exit hook waits for those that count, as long as it may."""
        if self._turns.running > self._threads:
            name = f"buckethead-flush-{self._threads}"
            try:
                threading.Thread(target=self._work, name=name, daemon=True).start()
            except RuntimeError:  # too many threads, or the interpreter is exiting
                job()  # here and now, for somebody may wait for it
                return
            self._threads += 1
        self._jobs.put(job)

    def _ask(self, volume: Served, due: float) -> None:
        if volume in self._again:
            self._again[volume] = min(due, self._again[volume])
        elif volume not in self._turns and volume not in self._ended:
            self._timetable.put(volume, min(due, self._timetable.due(volume)))

    def _wake(self, volume: Served) -> None:
        volume.asked = True
        # a new commit is no reason to try a failing bucket earlier than planned
        if volume in self._again or volume not in self._failures:
            self._ask(volume, time.monotonic() + volume.interval)

    def _forget(self, volume: Served) -> None:
        self._timetable.discard(volume)
        self._turns.discard(volume)
        self._again.pop(volume, None)
        self._failures.pop(volume, None)

    def _flush_all(self) -> None:
        for volume in self._registry.volumes():
            if volume.changed:
                self._ask(volume, NOW)

    def _shut_down(self) -> None:
        try:
            self._save_in_time()
        finally:
            self.terminate()

    def _save_in_time(self) -> None:
        """Everything by the workers, fairly as ever; what they have not saved then, to files."""
        flushes = LastFlushes(unsaved(self._registry))
        flushes.begin(self.hurry)
        while flushes.seconds_left:
            self._step(time.monotonic() + flushes.seconds_left)
            flushes.note(NOW)
        flushes.give_up()

    # -- the workers ------------------------------------------------------------------------

    def _work(self) -> None:
        jobs = self._jobs
        while True:
            jobs.get()()  # no variable, which would keep the last volume alive

    def _serve(self, volume: Served) -> None:
        """In a worker, which does not wait for a flush of the volume that is running elsewhere: it
        may hang. The lock is only tried, so that flushes can go on beside a long checkpoint."""
        outcome: Callable[[], None]
        flushing = volume.flushing
        if not flushing.acquire(blocking=False):
            outcome = partial(self._was_busy, volume)
        else:
            flushing.release()
            try:
                outcome = partial(self._served, volume, volume.serve())
            except VolumeReadOnlyError as error:
                outcome = partial(self._end, volume, error)
            except BaseException as error:  # whatever it was, the pages must go out some day
                outcome = partial(self._fail, volume, error)
        self._queue.put(outcome)

    # -- what became of a service: in the scheduler thread ----------------------------------

    def _served(self, volume: Served, seconds: float | None) -> None:
        self._turns.done(volume, failed=False)
        again = self._again.pop(volume, None)
        if again is not None:  # else it was forgotten
            self._failures.pop(volume, None)
            next_time = NEVER if seconds is None else time.monotonic() + seconds
            self._timetable.put(volume, min(again, next_time))

    def _was_busy(self, volume: Served) -> None:
        self._turns.done(volume, failed=None)
        if self._again.pop(volume, None) is not None:
            soon = min(BUSY_SECONDS, volume.interval)
            self._timetable.put(volume, time.monotonic() + soon)

    def _fail(self, volume: Served, error: BaseException) -> None:
        self._turns.done(volume, failed=True)
        again = self._again.pop(volume, None)
        if again is None:
            return
        self._failures[volume] = failures = self._failures.get(volume, 0) + 1
        delay = min(LONGEST_BACKOFF_SECONDS, 2.0 ** min(failures, 16))
        delay *= 0.5 + 0.5 * self._chance()  # what failed together need not come back together
        ours = isinstance(error, BucketHeadError)
        log.log(
            logging.WARNING if ours else logging.ERROR,
            "flush of %r failed, next try in %.0f s: %s",
            *(volume.name, delay, error),
            exc_info=None if ours else error,
        )
        volume.asked = True
        self._timetable.put(volume, NOW if again == NOW else time.monotonic() + delay)

    def _end(self, volume: Served, error: VolumeReadOnlyError) -> None:
        self._turns.done(volume, failed=False)
        if volume in self._again:
            log.warning("%s is not flushed any more: %s", volume.name, error)
            self._forget(volume)
            self._ended.add(volume)
