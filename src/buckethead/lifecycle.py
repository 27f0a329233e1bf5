"""The process around the volumes: signals, the interpreter's exit, and forks.

A signal handler does no I/O: it leaves a note with the scheduler. The exit hook asks nothing of a
bucket itself and waits for no thread without end, and a forked child publishes nothing of its
parent's.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from .flusher import LastFlushes, unsaved
from .registry import Registry
from .scheduler import Scheduler


class Lifecycle:
    """Hooks of the interpreter and handlers of signals, and what they change back."""

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
        """Have the workers save every volume; what the bucket does not take in time, or before
        Ctrl-C, is saved to files."""
        if os.getpid() != self._pid:
            return  # a forked child: the parent has the data
        volumes = unsaved(self._registry)
        if volumes:
            flushes = LastFlushes(volumes)
            with _on_ctrl_c(flushes.interrupt):
                flushes.run(self._scheduler.hurry)

    def _flush_at_the_end_of_a_forked_worker(self) -> None:
        """A forked child of multiprocessing leaves by os._exit(), with hooks of its own only."""
        util = sys.modules.get("multiprocessing.util")
        if util is not None:
            util.Finalize(None, self.at_exit, exitpriority=0)
            self._forked = False

    def _after_fork_in_child(self) -> None:
        self._pid = os.getpid()
        self._forked = True
        self._terminating = self._flushed = False  # that is the parent's business
        self._scheduler.reset()
        self._registry.after_fork_in_child()
        for volume in self._registry.volumes():
            volume.after_fork_in_child()
        with contextlib.suppress(ValueError):  # not the main thread
            for number, previous in self._previous.items():
                signal.signal(number, previous)
        self._previous.clear()


@contextlib.contextmanager
def _on_ctrl_c(act: Callable[[], None]) -> Iterator[None]:
    """Have Ctrl-C do this, and not raise KeyboardInterrupt, which would end the exit hook. As
    ever, a signal that is ignored, or handled by C code, stays so."""
    previous = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or previous in (None, signal.SIG_IGN):
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
