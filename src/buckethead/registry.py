"""The mounted volumes of the process: from a name, a URI or a configuration to one volume.

One branch has one volume, ever: a second mount of it shares the volume or is refused, so two
writers in one process cannot overwrite each other. Opening by name mounts, and mounting restores.
The volume of a name is one branch at a time; others are opened beside it, as volumes of their own,
and share the pages that are equal. Past states and followers only read: they mount nothing, claim
nothing and are in nobody's way.
"""

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from weakref import WeakValueDictionary

import apsw

from . import refusals
from .checkpoints import PublishedState
from .config import BucketConfig, SnapshotConfig
from .errors import (
    BranchError,
    BranchNotFoundError,
    BucketHeadError,
    ConfigError,
    ObjectNotFoundError,
    VolumeBusyError,
)
from .follower import Follower
from .image.database import Database
from .past import past_state, state_at
from .storage import layout
from .storage.branches import not_there
from .storage.contract import Bucket
from .storage.directory import open_bucket
from .storage.images import Progress
from .storage.layout import Place, checked_branch
from .storage.restoring import Known, Restored, restore
from .uris import (
    BRANCH,
    CONFIGURING,
    FOLLOWING,
    PAST,
    beside,
    check_combination,
    check_parameters,
    config_of,
    following,
    txid_of,
    uri_of,
)
from .volume import Volume


class Registry:
    """Names and places of the mounted volumes. ``wake`` is how a volume asks for a flush, ``hurry``
    for one at once, and ``forgotten`` is told of one that is no longer mounted."""

    def __init__(self) -> None:
        self.wake: Callable[[Volume | Follower], None] = lambda volume: None
        self.hurry: Callable[[Volume], None] = lambda volume: None
        self.forgotten: Callable[[Volume | Follower], None] = lambda volume: None
        self.mounted_hook: Callable[[], None] = lambda: None
        # Guards the maps, never held over I/O; reentrant for finalizers that unmount
        self._lock = threading.RLock()
        self._volumes: dict[str, Volume] = {}
        self._places: dict[tuple[tuple[str, ...], str], str] = {}  # store and key -> name
        # Of each name: one mount or unmount at a time; and one opening of each past state
        self._gates: WeakValueDictionary[Hashable, threading.RLock] = WeakValueDictionary()
        # Alive as long as a file of them is open
        self._followers: WeakValueDictionary[str, Follower] = WeakValueDictionary()
        self._pasts: WeakValueDictionary[Hashable, Database] = WeakValueDictionary()

    def volumes(self) -> list[Volume]:
        """Every mounted volume, in the order of mounting."""
        with self._lock:
            return list(self._volumes.values())

    def get(self, name: str) -> Volume | None:
        """The volume mounted under ``name``."""
        with self._lock:
            return self._volumes.get(name)

    def holder(self, bucket: Bucket, place: Place) -> Volume | None:
        """The volume that is this branch now. Raises VolumeBusyError while one is about to be, or
        has just been."""
        with self._lock:
            name = self._places.get((bucket.identity, place.image))
            volume = self._volumes.get(name) if name is not None else None
        if name is not None and (volume is None or volume.place != place):
            raise refusals.on_the_move(name)
        return volume

    def beside(self, volume: Volume) -> list[Volume]:
        """The other branches of a volume that were opened beside it."""
        return [other for other in self.volumes() if other.name.startswith(volume.name + BRANCH)]

    # -- opening by URI ---------------------------------------------------------------------

    def open(self, name: str, parameters: dict[str, str], flags: int) -> Database:
        """The database that a URI means, mounted if need be; this is how the VFS finds it.

        Raises ConfigError, BucketError, SnapshotCorruptError, HistoryError, VolumeBusyError.
        """
        check_parameters(name, parameters)
        read_only = bool(flags & apsw.SQLITE_OPEN_READONLY)
        check_combination(name, parameters, read_only)
        if any(parameter in parameters for parameter in PAST):
            return self._open_past(name, parameters)
        name = self._meant(name, parameters)
        if read_only and self.get(name) is None:
            follower = self._open_follower(name, parameters)
            if follower is not None:
                return follower
        return self._open_volume(name, parameters, bool(flags & apsw.SQLITE_OPEN_CREATE))

    def _present(self, name: str) -> Volume | Follower | None:
        return self.get(name) or self.follower(name)

    def _meant(self, name: str, parameters: dict[str, str]) -> str:
        """The name of the volume that a URI means: of what is there, if that is the branch."""
        branch = parameters.get("branch")
        if branch is None:
            return name
        present = self._present(name)
        if present is None:
            others = {word: value for word, value in parameters.items() if word != "branch"}
            is_first = config_of(name, others).initial_branch == branch
        else:
            is_first = present.place.branch == branch
        return name if is_first else beside(name, branch)

    def _open_volume(self, name: str, parameters: dict[str, str], create: bool) -> Volume:
        volume = self.get(name)
        if volume is None:
            first = self.get(name.partition(BRANCH)[0])
            if first is None:
                volume = self.mount(name, config_of(name, parameters), create=create)
            else:
                _check_same_place(first, parameters)
                volume = self.mount_beside(first, parameters["branch"])
        else:
            _check_same_place(volume, parameters)
        if not create and not volume.image.page_count:
            raise ObjectNotFoundError(
                f"Could not open {name!r}: there is no database {volume.key!r} at "
                f"{volume.bucket.url}. Open it with mode=rwc to create it."
            )
        return volume

    def _open_follower(self, name: str, parameters: dict[str, str]) -> Volume | Follower | None:
        """The follower that is there, or the one that is asked for."""
        follower = self.follower(name)
        if follower is not None:
            _check_same_place(follower, parameters)
            _check_same_times(follower, parameters)
        elif "follow" in parameters:
            config, snapshot = config_of(name, parameters), following(name, parameters)
            return self.follow(name, config, snapshot)
        return follower

    def _open_past(self, name: str, parameters: dict[str, str]) -> Database:
        """A past state of the present that the name means; opened twice it is one."""
        present = self._present(name)
        if present is not None:
            _check_same_place(present, parameters)
            bucket, snapshot = present.bucket, present.snapshot
            place = Place(present.key, parameters.get("branch", present.place.branch))
        else:
            config = config_of(name, parameters)
            bucket, snapshot = open_bucket(config, create=False), SnapshotConfig()
            place = config.place
        if "at" in parameters:
            txid = state_at(bucket, place, parameters["at"])
        else:
            txid = txid_of(name, parameters["txid"])
        which = (bucket.identity, place, txid)
        with self._gate(which):
            past = self._pasts.get(which)
            if past is None:
                past = past_state(name, bucket, place, txid, snapshot.integrity_check)
                self._pasts[which] = past
            return past

    # -- following --------------------------------------------------------------------------

    def follower(self, name: str) -> Follower | None:
        """The follower of that name, while this process has a file of it open."""
        follower = self._followers.get(name)
        return None if follower is None or follower.over or follower.inherited else follower

    def follow(
        self, name: str, config: BucketConfig, snapshot: SnapshotConfig
    ) -> Volume | Follower:
        """The volume mounted under a name, which knows more than any follower; or a follower of
        the database at ``config.key``, the one that is there or a new one.

        Raises ConfigError, ObjectNotFoundError, BucketError, SnapshotCorruptError, HistoryError,
        and VolumeBusyError when what is there has another configuration.
        """
        with self._gate(name):
            volume = self.get(name)
            if volume is not None:
                _check_same_mount(volume, config, None, True)
                return volume
            follower = self.follower(name)
            if follower is not None:
                _check_same_mount(follower, config, snapshot, True)
                return follower
            bucket = open_bucket(config, create=False)
            follower = Follower(name, config, snapshot, bucket, self.wake, self.forgotten)
            self.mounted_hook()
            self._followers[name] = follower
            return follower

    # -- mounting ---------------------------------------------------------------------------

    def mount(
        self,
        name: str,
        config: BucketConfig,
        snapshot: SnapshotConfig | None = None,
        *,
        create: bool = True,
        share: bool = True,
        progress: Progress | None = None,
    ) -> Volume:
        """Mount the database at ``config.key`` as ``name`` and restore it; if it is mounted under
        that name with that configuration already, this is that volume, or with ``share=False``
        an error.

        ``create=False`` refuses a directory bucket that is not there, and a key without an image
        stays unmounted (ObjectNotFoundError). Raises ConfigError, BucketError,
        SnapshotCorruptError, and VolumeBusyError when another name has the key.
        """
        with self._gate(name):
            volume = self.get(name)
            if volume is not None:
                _check_same_mount(volume, config, snapshot, share)
                return volume
            bucket = open_bucket(config, create=create)
            place = config.place
            with self._held(name, bucket, place):
                snapshot = snapshot or SnapshotConfig()
                read = _reader(bucket, place, snapshot)
                restored = _found(read(progress=progress), bucket, place)
                if restored is None and not create:
                    raise ObjectNotFoundError(
                        f"Could not open {name!r}: there is no database {config.key!r} at "
                        f"{bucket.url}. Check the key, or open it with mode=rwc to create it."
                    )
                return self._mounted(name, config, snapshot, bucket, restored, read)

    def mount_beside(self, first: Volume, branch: str) -> Volume:
        """Mount a branch of what is mounted, with its configuration, as a volume of its own; the
        one that is there, where it was done before. Equal pages are shared.

        Raises BranchNotFoundError, VolumeBusyError where ``first`` itself is that branch, and as
        `mount` does.
        """
        name = beside(first.name.partition(BRANCH)[0], branch)
        place = Place(first.key, checked_branch(branch))
        with self._gate(name):
            volume = self.get(name)
            if volume is not None:
                return volume
            with self._held(name, first.bucket, place):
                return self._mounted(name, *_beside(first, place))

    @contextmanager
    def alone(self, first: Volume, branch: str) -> Iterator[Volume]:
        """A branch of what is mounted, for the length of a block. Whoever opens it meanwhile waits,
        so what is not published at the end is nobody's. Raises as `mount_beside` does."""
        name = beside(first.name.partition(BRANCH)[0], branch)
        place = Place(first.key, checked_branch(branch))
        with self._gate(name):
            if self.get(name) is not None:
                raise refusals.on_the_move(name)
            self._hold(name, first.bucket, place)
            try:
                config, snapshot, bucket, restored, read = _beside(first, place)
                yield Volume(name, config, snapshot, bucket, restored, _unasked, _unasked, read)
            finally:
                self._let_go(first.bucket, place)

    def _mounted(
        self,
        name: str,
        config: BucketConfig,
        snapshot: SnapshotConfig,
        bucket: Bucket,
        restored: Restored | None,
        read: "partial[Restored | None]",
    ) -> Volume:
        self.mounted_hook()
        volume = Volume(name, config, snapshot, bucket, restored, self.wake, self.hurry, read)
        with self._lock:
            self._volumes[name] = volume
        return volume

    def switch(self, volume: Volume, branch: str) -> None:
        """Make a volume another branch, under open connections: they see it at their next
        statement. The branch it leaves is flushed.

        Raises BranchNotFoundError, VolumeBusyError while a transaction is writing and where the
        branch is open beside, BucketError, FencedError; then nothing has changed.
        """
        place = Place(volume.key, checked_branch(branch))
        if BRANCH in volume.name:
            raise BranchError(
                f"Could not switch {uri_of(volume.name)!r} to {branch!r}: it is open beside, and "
                "its URI says which branch it is. Switch the volume that it was opened beside."
            )
        with self._gate(volume.name):
            if self.get(volume.name) is not volume:
                raise refusals.stopped(volume.name)
            volume.check_publishes()
            left = volume.place
            if place == left:
                return
            self._hold(volume.name, volume.bucket, place)
            try:
                self._move(volume, place)
            finally:
                self._let_go(volume.bucket, left if volume.place == place else place)

    def _move(self, volume: Volume, place: Place) -> None:
        left, read = volume.place, _reader(volume.bucket, place, volume.snapshot)
        with volume.published() as state:
            restored = _found(read(known=_known_by(state)), volume.bucket, place)
        if restored is None:
            raise BranchNotFoundError(not_there(volume.bucket, place))
        if self.get(volume.name) is not volume or volume.place != left:
            raise refusals.on_the_move(volume.name)  # an observer of that flush did it
        volume.move(place, restored, read)

    def unmount(self, volume: Volume, *, discard: bool = False) -> None:
        """Publish what a volume still has, write its image and forget it; its name and key can be
        mounted again. ``discard`` drops what was not published.

        Connections that stay open can read on; writing raises VolumeError. Raises BucketError
        when that fails, FencedError when another writer has taken over: then the volume stays
        mounted as it was.
        """
        with self._gate(volume.name):
            if self.get(volume.name) is not volume:
                return  # another thread was quicker
            if not volume.inherited and not discard:  # over a fork: the parent has the data
                volume.flush()
            volume.retire(discard=discard or volume.inherited)
            self.forgotten(volume)
            with self._lock:
                del self._volumes[volume.name]
            self._let_go(volume.bucket, volume.place)

    def _gate(self, of: Hashable) -> "threading.RLock":
        with self._lock:
            return self._gates.setdefault(of, threading.RLock())

    @contextmanager
    def _held(self, name: str, bucket: Bucket, place: Place) -> Iterator[None]:
        """Hold a branch for a name: for good when the block succeeds."""
        self._hold(name, bucket, place)
        try:
            yield
        except BaseException:
            self._let_go(bucket, place)
            raise

    def _hold(self, name: str, bucket: Bucket, place: Place) -> None:
        keys = [(bucket.identity, key) for key in (place.image, place.previous)]
        with self._lock:
            holder = next((self._places[key] for key in keys if key in self._places), name)
            if holder == name:
                self._places.update(dict.fromkeys(keys, name))
        if holder != name:
            raise VolumeBusyError(
                f"Could not mount {name!r}: its key {place.image!r} is mounted as {holder!r} in "
                f"this process. Open it under that name, {uri_of(holder)!r}, or unmount it first."
            )

    def _let_go(self, bucket: Bucket, place: Place) -> None:
        with self._lock:
            for key in (place.image, place.previous):
                del self._places[bucket.identity, key]

    def after_fork_in_child(self) -> None:
        """Locks held by threads of the parent will never be released here."""
        self._lock = threading.RLock()
        self._gates = WeakValueDictionary()
        for follower in self._followers.values():
            follower.after_fork_in_child()
        for past in self._pasts.values():
            past.image.after_fork_in_child()


def _reader(bucket: Bucket, place: Place, snapshot: SnapshotConfig) -> "partial[Restored | None]":
    """What reads the newest state of a branch."""
    return partial(restore, bucket, place, integrity_check=snapshot.integrity_check)


def _beside(
    first: Volume, place: Place
) -> "tuple[BucketConfig, SnapshotConfig, Bucket, Restored | None, partial[Restored | None]]":
    """What a volume is made of that is a branch of another one."""
    config = first.config.model_copy(update={"initial_branch": place.branch})
    read = _reader(first.bucket, place, first.snapshot)
    with _known(first) as known:
        restored = _found(read(known=known), first.bucket, place)
    return config, first.snapshot, first.bucket, restored, read


def _unasked(volume: Volume) -> None:
    """Nobody flushes it but whoever has it."""


def _found(restored: Restored | None, bucket: Bucket, place: Place) -> Restored | None:
    """What was restored; only ``main`` may begin with nothing. Raises BranchNotFoundError."""
    if restored is None and place.branch != layout.MAIN:
        raise BranchNotFoundError(not_there(bucket, place))
    return restored


@contextmanager
def _known(volume: Volume) -> Iterator[Known | None]:
    """What is in memory of a volume, for a branch to share; None where it cannot be published."""
    with ExitStack() as pinned:
        try:
            known = _known_by(pinned.enter_context(volume.published()))
        except BucketHeadError:  # noted where a flush fails; here it only costs a download
            known = None
        yield known


def _known_by(state: PublishedState) -> Known | None:
    pin = state.pin
    if state.stamp is None or not pin.page_count:
        return None
    return Known(state.stamp, pin.page_size, pin.copy)


def _check_same_times(follower: Follower, parameters: dict[str, str]) -> None:
    wanted = following(follower.name, parameters)
    for word, field in FOLLOWING.items():
        if word in parameters and getattr(wanted, field) != getattr(follower.snapshot, field):
            raise ConfigError(
                f"Could not open {follower.name!r} with {word}={parameters[word]}: this process "
                f"follows it already, with {getattr(follower.snapshot, field)}. Leave the "
                "parameter out, or close the connections that are open first."
            )


def _check_same_place(volume: Volume | Follower, parameters: dict[str, str]) -> None:
    for field in CONFIGURING:
        if field in parameters and parameters[field] != getattr(volume.config, field):
            raise ConfigError(
                f"Could not open {volume.name!r} with another {field}: it is mounted "
                f"with key {volume.key!r} at {volume.bucket.url}. Use another name for another "
                "database, or leave the parameter out."
            )


def _check_same_mount(
    volume: Volume | Follower, config: BucketConfig, snapshot: SnapshotConfig | None, share: bool
) -> None:
    same = volume.config == config and snapshot in (None, volume.snapshot)
    if not (same and share):
        how = "" if same else ", with another configuration"
        raise VolumeBusyError(
            f"Could not mount {volume.name!r}: it is mounted already in this process{how} "
            f"(key {volume.key!r} at {volume.bucket.url}). Stop or unmount that one first, or use "
            "another key."
        )
