"""`BucketSQLite`: a volume with a beginning and an end. Wires everything, decides nothing.

Importing this file makes the VFS ``buckethead`` known to APSW.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from .branches import Branches
from .config import DEFAULT_KEY, BucketConfig, ProfilingConfig, ShareConfig, SnapshotConfig
from .connection import Connection
from .errors import ConfigError, VolumeBusyError, VolumeReadOnlyError
from .files.store import FileStore
from .follower import Follower
from .image.connections import install
from .interfaces.docs import Docs
from .interfaces.kv import KV
from .lifecycle import Lifecycle
from .observability.profiling import Profiler
from .observability.reporter import StatusReporter
from .registry import Registry
from .scheduler import Scheduler
from .share_config import share_config_of
from .sharing import Shares
from .status import FlushObserver, VolumeStatus, tell
from .storage.counters import IOCounters
from .storage.snapshot import FlushResult
from .tables import install as install_tables
from .uris import beside, config_of, uri_of
from .volume import Volume

registry = Registry()
scheduler = Scheduler(registry)
_lifecycle = Lifecycle(registry, scheduler)

registry.wake = scheduler.wake
registry.hurry = scheduler.hurry
registry.forgotten = scheduler.forget
registry.mounted_hook = _lifecycle.volume_mounted
_lifecycle.install()
install(registry.open)
install_tables(registry)


def mount(
    name: str, config: BucketConfig | None = None, snapshot_config: SnapshotConfig | None = None
) -> Volume:
    """Restore a database and make it known as ``file:NAME?vfs=buckethead`` in this process.

    Without a configuration the environment's is used, and where there is none the directory
    ``./buckethead-data``. Raises ConfigError, BucketError, SnapshotCorruptError, VolumeBusyError.
    """
    return registry.mount(name, config or config_of(name), snapshot_config)


def unmount(name: str, *, branch: str | None = None, discard: bool = False) -> None:
    """Publish what the volume still has and forget it; ``discard`` drops what was not published.
    With a ``branch`` it is the one that was opened beside the volume of that name.

    Raises ConfigError when there is none of that name, and when it cannot be published
    BucketError, or FencedError where another writer has taken over: then it stays mounted."""
    name = name if branch is None else beside(name, branch)
    volume = registry.get(name)
    if volume is None:
        raise ConfigError(f"Could not unmount {name!r}: no volume of that name is mounted.")
    registry.unmount(volume, discard=discard)


@dataclass(frozen=True, slots=True)
class _Callbacks:
    """The user's functions as an observer of the volume's flushes."""

    on_flush_start: Callable[[], object] | None
    on_flush_complete: Callable[[float, int], object] | None
    on_flush_error: Callable[[BaseException], object] | None

    def flush_started(self, name: str) -> None:
        if self.on_flush_start is not None:
            self.on_flush_start()

    def flush_finished(self, name: str, result: FlushResult) -> None:
        if self.on_flush_complete is not None:
            self.on_flush_complete(result.duration_s, result.bytes_written)

    def flush_failed(self, name: str, error: BaseException) -> None:
        if self.on_flush_error is not None:
            self.on_flush_error(error)


class BucketSQLite:
    """A database in memory that belongs to a bucket, from `start` to `stop`.

    ``on_flush_start()``, ``on_flush_complete(duration_s, bytes_uploaded)`` and
    ``on_flush_error(exc)`` are called in the thread that flushes; what they raise is logged.
    Without ``bucket_config`` the environment's is used, and else ``./buckethead-data``.

    With ``read_only`` it is what another process writes, brought up to date every ``follow``
    seconds (default: ``follow_seconds`` of the configuration; None: it stays as it was at the
    start). It never writes, nor claims anything; where this process writes the database itself,
    it is that database.

    ``share_config`` says where files are copied to when they are shared, or ``project``: the name
    of a table ``[projects.<name>]`` of the TOML file that does.

    Use before `start` raises RuntimeError. Raises ValueError when ``share_config`` and
    ``project`` are both given, and when ``follow`` is without ``read_only``.
    """

    def __init__(
        self,
        bucket_config: BucketConfig | None = None,
        snapshot_config: SnapshotConfig | None = None,
        profiling_config: ProfilingConfig | None = None,
        *,
        on_flush_start: Callable[[], object] | None = None,
        on_flush_complete: Callable[[float, int], object] | None = None,
        on_flush_error: Callable[[BaseException], object] | None = None,
        status_reporter: StatusReporter | None = None,
        share_config: ShareConfig | None = None,
        project: str | None = None,
        read_only: bool = False,
        follow: float | None = None,
    ) -> None:
        if share_config is not None and project is not None:
            raise ValueError("share_config and project exclude each other: give one of them")
        if follow is not None and not read_only:
            raise ValueError("who follows another process does not write: add read_only=True")
        self._bucket_config = bucket_config
        self._share_config = share_config if project is None else share_config_of(project)
        self._read_only = read_only
        self._snapshot_config = snapshot_config or SnapshotConfig()
        if follow is not None:
            following = {"follow_seconds": follow}
            self._snapshot_config = SnapshotConfig(**dict(self._snapshot_config) | following)
        self._profiler = Profiler(profiling_config or ProfilingConfig())
        self._observers: list[FlushObserver] = [
            _Callbacks(on_flush_start, on_flush_complete, on_flush_error)
        ]
        if status_reporter is not None:
            self._observers.append(status_reporter)
        self._volume: Volume | Follower | None = None
        self._connection: Connection | None = None
        self._kv: KV | None = None
        self._files: FileStore | None = None
        self._state = "new"

    # -- life -------------------------------------------------------------------------------

    def start(self) -> Self:
        """Restore the database and open the connection. Raises RuntimeError when started before,
        ConfigError, BucketError, SnapshotCorruptError, HistoryError, and VolumeBusyError when this
        process has the key mounted already."""
        if self._state != "new":
            raise RuntimeError(f"BucketSQLite was {self._state} already: make a new one")
        config = self._bucket_config or config_of(DEFAULT_KEY.removesuffix(".db"))
        self._profiler.start()
        try:
            self._volume = self._follow(config) if self._read_only else self._mount(config)
        except BaseException:
            self._profiler.finish(IOCounters())
            raise
        self._state = "started"
        return self

    def _follow(self, config: BucketConfig) -> Volume | Follower:
        followed = registry.follow(_name_for(config), config, self._snapshot_config)
        self._connection = Connection(self._uri(followed))
        return followed

    def _mount(self, config: BucketConfig) -> Volume:
        volume = _mount_alone(config, self._snapshot_config)
        volume.observers.extend(self._observers)
        try:
            self._connection = Connection(self._uri(volume))
        except BaseException:
            registry.unmount(volume)
            raise
        return volume

    def stop(self, *, discard: bool = False) -> None:
        """Publish everything, write the image and let the database go; ``discard`` drops what was
        not published. A second call does nothing.

        Raises BucketError when that fails, FencedError where another writer has taken over; the
        data stays in memory for another try.
        """
        if self._state == "stopped":
            return
        volume = self._started()
        mounted = volume if isinstance(volume, Volume) and not self._read_only else None
        if mounted is not None and not mounted.inherited and not discard:
            mounted.flush()  # may fail, and then the transaction of `connection` can go on
        self.connection.rollback()  # else unmounting would wait for it
        if mounted is not None:
            for branch in registry.beside(mounted):
                registry.unmount(branch, discard=discard)
            registry.unmount(mounted, discard=discard)
        self.connection.close()
        self._state = "stopped"
        self._profiler.finish(volume.bucket.counters)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _started(self) -> Volume | Follower:
        if self._state != "started" or self._volume is None:
            raise RuntimeError(
                "BucketSQLite not started: call start(), or use it in a with statement"
                if self._state == "new"
                else "BucketSQLite not started: it was stopped, make a new one"
            )
        return self._volume

    def _writer(self) -> Volume:
        volume = self._started()
        if self._read_only or not isinstance(volume, Volume):
            raise VolumeReadOnlyError(
                f"Could not publish {volume.name!r}: it was opened with read_only=True, so there "
                "is nothing of it to publish. Its writer does that."
            )
        return volume

    # -- SQL --------------------------------------------------------------------------------

    @property
    def uri(self) -> str:
        """What any ``apsw.Connection`` of this process opens the database by."""
        return self._uri(self._started())

    def _uri(self, volume: Volume | Follower) -> str:
        if not self._read_only:
            return uri_of(volume.name)
        if isinstance(volume, Volume):
            return uri_of(volume.name, mode="ro")
        times = volume.snapshot.follow_seconds, volume.snapshot.max_staleness_seconds
        given = zip(("follow", "max_staleness"), times, strict=True)
        return uri_of(volume.name, mode="ro", **{word: value for word, value in given if value})

    @property
    def connection(self) -> Connection:
        """The connection that is kept open from start to stop."""
        self._started()
        assert self._connection is not None
        return self._connection

    def connect(self) -> Connection:
        """A new connection: one per thread. Closing it never drops data."""
        return Connection(self.uri)

    @property
    def kv(self) -> KV:
        """Keys and values, over `connection` and in its transactions; ``bh_kv`` in SQL."""
        connection = self.connection
        if self._kv is None:
            self._kv = KV(connection)
        return self._kv

    @property
    def docs(self) -> Docs:
        """JSON documents in collections, over `connection` and in its transactions."""
        return Docs(self.connection)

    @property
    def files(self) -> FileStore:
        """Files in the bucket, their table over `connection` and in its transactions; ``bh_files``
        in SQL."""
        volume = self._started()
        if self._files is None:
            prefix = volume.config.files_prefix
            self._files = FileStore(self.connection, volume.bucket, prefix)
        return self._files

    @property
    def shares(self) -> Shares:
        """Files that others read by a URL. Raises RuntimeError when sharing is not configured."""
        volume = self._started()
        if self._share_config is None:
            raise RuntimeError(
                "sharing is not configured: give BucketSQLite a share_config, or a project"
            )
        return Shares(self.connection, volume.bucket, self._share_config)

    @property
    def branches(self) -> Branches:
        """The branches of the database; ``bh_branches`` in SQL."""
        return Branches(self._started(), registry)

    # -- durability -------------------------------------------------------------------------

    def flush(self) -> FlushResult:
        """Publish what has changed, unless the last flush is younger than the minimum interval:
        then one is scheduled for its end, and the result says ``debounced``. Raises BucketError;
        here and below, VolumeReadOnlyError where it was opened ``read_only``.
        """
        volume = self._writer()
        delay = volume.seconds_to_wait() if volume.changed else 0.0
        if delay > 0:
            scheduler.schedule(volume, delay)
            return FlushResult(False, 0, None, debounced=True)
        return self.force_flush()

    def force_flush(self) -> FlushResult:
        """Publish what has changed now: every commit made before the call survives the process
        when it returns. Raises BucketError, and everything stays in memory."""
        return self._told(self._writer().flush())

    def wait(self, version: int | None = None, timeout: float | None = None) -> None:
        """Return when the bucket has every commit up to ``version``, by default all made so far.
        Threads that commit and wait at the same time share one flush.

        Raises WaitTimeoutError after ``timeout`` seconds, BucketError, FencedError, and
        everything stays in memory."""
        self._writer().wait(version, timeout)

    def checkpoint(self) -> FlushResult:
        """Flush, and make the image at the key the newest state. Raises BucketError."""
        return self._told(self._writer().checkpoint())

    def _told(self, result: FlushResult) -> FlushResult:
        """The volume reports flushes that wrote something; callbacks hear of the others too."""
        if not result.uploaded:
            tell(self._observers[0], self._writer().name, "flush_finished", result)
        return result

    @property
    def stats(self) -> VolumeStatus:
        """The volume at this moment: sizes, versions, dirty pages, requests, the last flush."""
        return self._started().status()


def _mount_alone(config: BucketConfig, snapshot: SnapshotConfig) -> Volume:
    while True:
        name = _name_for(config)
        try:
            return registry.mount(name, config, snapshot, share=False)
        except VolumeBusyError:
            if name == _name_for(config):  # else another thread has just taken the name
                raise


def _name_for(config: BucketConfig) -> str:
    """The key, with more in front of it while another place's volume has that name."""
    place = (config.bucket, config.endpoint_url)
    names = (f"{config.bucket}/{number}/{config.key}" for number in itertools.count(2))
    for name in itertools.chain((config.key, f"{config.bucket}/{config.key}"), names):
        taken = registry.get(name) or registry.follower(name)
        if taken is None or (taken.config.bucket, taken.config.endpoint_url) == place:
            break
    return name
