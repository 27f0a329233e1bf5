"""The order in which volumes are served: when each is due, and whose turn it is.

Neither class here knows of clocks or threads: the scheduler's thread alone uses them.
"""

import heapq
import itertools
import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Protocol

WORKERS = 8
"""Volumes served at a time; each transfer has `BucketConfig.concurrency` threads of its own."""

NOW = -math.inf
NEVER = math.inf

Store = tuple[str, ...]


class Served(Protocol):
    """What wants to be served. ``flushing`` is held while it is being flushed, by whomever: workers
    do not wait for it. ``store`` is equal for objects that share a bucket's fate, ``interval`` is
    the time in seconds from the first ask to the service, and ``asked`` tells that a service is
    planned: there is no need to ask again."""

    name: str
    flushing: threading.RLock
    asked: bool

    @property
    def store(self) -> Store:
        """The identity of the bucket."""

    @property
    def interval(self) -> float:
        """Seconds."""

    def serve(self) -> float | None:
        """Do what is due. Seconds until it wants to be served again; None: when it asks."""


class Timetable:
    """When each volume is due. At most one time each; the rest of the heap is refuse."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._planned: dict[Served, tuple[float, int]] = {}
        self._volumes: dict[int, Served] = {}  # by the number of the planned entry
        self._numbers = itertools.count()

    def put(self, volume: Served, due: float) -> None:
        """Plan a volume for a time of the monotonic clock, instead of what was planned."""
        self.discard(volume)
        if due < NEVER:
            entry = (due, next(self._numbers))
            self._planned[volume] = entry
            self._volumes[entry[1]] = volume
            heapq.heappush(self._heap, entry)

    def discard(self, volume: Served) -> None:
        """Plan nothing for a volume; what the heap keeps of it does not keep it alive."""
        entry = self._planned.pop(volume, None)
        if entry is not None:
            del self._volumes[entry[1]]
            if len(self._heap) > 2 * len(self._planned) + 64:
                self._heap = sorted(self._planned.values())

    def due(self, volume: Served) -> float:
        """When a volume is due."""
        return self._planned.get(volume, (NEVER, 0))[0]

    def next(self) -> float:
        """When the next volume is due."""
        while self._heap and self._heap[0][1] not in self._volumes:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else NEVER

    def take_due(self, now: float) -> Iterator[Served]:
        """Remove and yield what is due, in the order of its times."""
        while self.next() <= now:
            volume = self._volumes[self._heap[0][1]]
            self.discard(volume)
            yield volume


class Turns:
    """Which volume a free worker takes: stores take turns, and a store's volumes come in the order
    in which they were added.

    A store gets another worker only while more are free than it has: at most half of them, and less
    when others hang as well. Stores whose last service failed have at most half together.
    """

    def __init__(self) -> None:
        self._stores: dict[Served, Store] = {}  # of all that wait or are being served
        self._waiting: OrderedDict[Store, OrderedDict[Served, None]] = OrderedDict()
        self._workers: Counter[Store] = Counter()  # that serve a volume of the store
        self._failed: set[Store] = set()

    def __contains__(self, volume: Served) -> bool:
        return volume in self._stores

    @property
    def running(self) -> int:
        """How many volumes are being served."""
        return self._workers.total()

    def add(self, volume: Served) -> None:
        """Let a volume that is not there yet wait for a worker."""
        store = self._stores[volume] = volume.store
        self._waiting.setdefault(store, OrderedDict())[volume] = None

    def discard(self, volume: Served) -> None:
        """Let a volume wait no longer; if it is being served, that goes on."""
        store = self._stores.get(volume)
        if store is not None and volume in self._waiting.get(store, ()):
            del self._stores[volume]
            self._leave(volume, store)

    def take(self) -> Served | None:
        """The volume whose turn it is; None when nobody may go, or no worker is free."""
        free = WORKERS - self.running
        of_failed = sum(count for store, count in self._workers.items() if store in self._failed)
        for store, waiting in self._waiting.items() if free else ():
            held_back = store in self._failed and of_failed >= WORKERS // 2
            if self._workers[store] < free and not held_back:
                volume = next(iter(waiting))
                self._waiting.move_to_end(store)
                self._leave(volume, store)
                self._workers[store] += 1
                return volume
        return None

    def _leave(self, volume: Served, store: Store) -> None:
        waiting = self._waiting[store]
        del waiting[volume]
        if not waiting:
            del self._waiting[store]

    def done(self, volume: Served, *, failed: bool | None) -> None:
        """A worker has come back from a volume. ``failed`` is None when it could not ask the
        store."""
        store = self._stores.pop(volume)
        self._workers -= Counter([store])  # which forgets a store without workers
        if failed:
            self._failed.add(store)
        elif failed is not None:
            self._failed.discard(store)
