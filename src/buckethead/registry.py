"""The mounted volumes of the process: from a name, a URI or a configuration to one volume.

One key has one volume, ever: a second mount of it shares the volume or is refused, so two writers
in one process cannot overwrite each other. Opening by name mounts, and mounting restores. Past
states and followers only read: they mount nothing, claim nothing and are in nobody's way.
"""

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from urllib.parse import quote
from weakref import WeakValueDictionary

import apsw
from pydantic import ValidationError

from .config import BucketConfig, SnapshotConfig, resolved_bucket
from .errors import ConfigError, ObjectNotFoundError, VolumeBusyError
from .follower import Follower
from .image.database import Database
from .past import past_state, state_at
from .storage import layout
from .storage.directory import open_bucket
from .storage.images import Progress
from .storage.layout import TXID, Place
from .storage.restoring import Restored, restore
from .volume import Volume

_CONFIGURING = ("bucket", "key", "endpoint_url", "region")
_PAST = ("txid", "at")
_FOLLOWING = {"follow": "follow_seconds", "max_staleness": "max_staleness_seconds"}
_KNOWN = (*_CONFIGURING, "branch", "mode", "vfs", *_PAST, *_FOLLOWING)
_SECRET_WORDS = ("key_id", "secret", "token", "password", "credential", "signature")


def uri_of(name: str, **parameters: object) -> str:
    """The URI that opens the volume ``name`` from any connection."""
    more = "".join(f"&{word}={quote(str(value))}" for word, value in parameters.items())
    return f"file:{quote(name)}?vfs=buckethead{more}"


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

    # -- opening by URI ---------------------------------------------------------------------

    def open(self, name: str, parameters: dict[str, str], flags: int) -> Database:
        """The database that a URI means, mounted if need be; this is how the VFS finds it.

        Raises ConfigError, BucketError, SnapshotCorruptError, HistoryError, VolumeBusyError.
        """
        _check_parameters(name, parameters)
        read_only = bool(flags & apsw.SQLITE_OPEN_READONLY)
        _check_combination(name, parameters, read_only)
        if any(parameter in parameters for parameter in _PAST):
            return self._open_past(name, parameters)
        if read_only and self.get(name) is None:
            follower = self._open_follower(name, parameters)
            if follower is not None:
                return follower
        return self._open_volume(name, parameters, bool(flags & apsw.SQLITE_OPEN_CREATE))

    def _open_volume(self, name: str, parameters: dict[str, str], create: bool) -> Volume:
        volume = self.get(name)
        if volume is None:
            config = config_of(name, parameters)
            volume = self.mount(name, config, create=create)
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
            config, snapshot = config_of(name, parameters), _following(name, parameters)
            return self.follow(name, config, snapshot)
        return follower

    def _open_past(self, name: str, parameters: dict[str, str]) -> Database:
        """A past state of the present that the name means; opened twice it is one."""
        present = self.get(name) or self.follower(name)
        if present is not None:
            _check_same_place(present, parameters)
            bucket, key, snapshot = present.bucket, present.key, present.snapshot
        else:
            config = config_of(name, parameters)
            bucket, key, snapshot = open_bucket(config, create=False), config.key, SnapshotConfig()
        place = Place(key)
        if "at" in parameters:
            txid = state_at(bucket, place, parameters["at"])
        else:
            txid = _txid(name, parameters["txid"])
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
            with self._place(name, bucket.identity, config.key):
                snapshot = snapshot or SnapshotConfig()
                how = snapshot.integrity_check

                def read(progress: Progress | None = None) -> Restored | None:
                    return restore(
                        bucket, Place(config.key), integrity_check=how, progress=progress
                    )

                restored = read(progress)
                if restored is None and not create:
                    raise ObjectNotFoundError(
                        f"Could not open {name!r}: there is no database {config.key!r} at "
                        f"{bucket.url}. Check the key, or open it with mode=rwc to create it."
                    )
                self.mounted_hook()
                volume = Volume(
                    name, config, snapshot, bucket, restored, self.wake, self.hurry, read
                )
                with self._lock:
                    self._volumes[name] = volume
            return volume

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
                for key in (volume.key, layout.previous(volume.key)):
                    del self._places[volume.bucket.identity, key]

    def _gate(self, of: Hashable) -> "threading.RLock":
        with self._lock:
            return self._gates.setdefault(of, threading.RLock())

    @contextmanager
    def _place(self, name: str, identity: tuple[str, ...], key: str) -> Iterator[None]:
        """Hold a store and key for a name: for good when the block succeeds."""
        places = [(identity, key), (identity, layout.previous(key))]
        with self._lock:
            holder = next((self._places[place] for place in places if place in self._places), name)
            if holder == name:
                self._places.update(dict.fromkeys(places, name))
        if holder != name:
            raise VolumeBusyError(
                f"Could not mount {name!r}: its key {key!r} is mounted as {holder!r} in this "
                f"process. Open it under that name, {uri_of(holder)!r}, or unmount it first."
            )
        try:
            yield
        except BaseException:
            with self._lock:
                for place in places:
                    del self._places[place]
            raise

    def after_fork_in_child(self) -> None:
        """Locks held by threads of the parent will never be released here."""
        self._lock = threading.RLock()
        self._gates = WeakValueDictionary()
        for follower in self._followers.values():
            follower.after_fork_in_child()
        for past in self._pasts.values():
            past.image.after_fork_in_child()


def _check_parameters(name: str, parameters: dict[str, str]) -> None:
    for parameter in parameters:
        if parameter in _KNOWN:
            continue
        if any(word in parameter.lower() for word in _SECRET_WORDS):
            raise ConfigError(
                f"Could not open {name!r}: the URI carries a credential ({parameter}), and URIs "
                "end up in logs. Give it by BucketConfig or the environment "
                "(BUCKETHEAD_BUCKET__ACCESS_KEY_ID, ...), and change it if it was real."
            )
        raise ConfigError(
            f"Could not open {name!r}: the URI parameter {parameter!r} is not one of "
            f"{', '.join(sorted(_KNOWN))}. Correct or remove it."
        )
    if parameters.get("branch", "main") != "main":
        raise ConfigError(
            f"Could not open {name!r}: branches are not available in this version. Leave out "
            "the URI parameter 'branch'."
        )


def _check_combination(name: str, parameters: dict[str, str], read_only: bool) -> None:
    """Refuse parameters that say different things about which state is meant."""
    past = [parameter for parameter in _PAST if parameter in parameters]
    following = [parameter for parameter in _FOLLOWING if parameter in parameters]
    if len(past) == 2:
        fault = "txid and at both say which past state is meant. Give one of them"
    elif past and following:
        fault = f"{past[0]} is a past state, which has nothing to follow. Leave out {following[0]}"
    elif following == ["max_staleness"]:
        fault = "max_staleness is about a follower. Add follow=SECONDS"
    elif past and parameters.get("mode", "ro") != "ro":
        fault = f"{past[0]} is a past state, which nobody can write to. Use mode=ro"
    elif following and not read_only:
        fault = "who follows another process does not write. Add mode=ro"
    else:
        return
    raise ConfigError(f"Could not open {name!r}: {fault}.")


def _txid(name: str, text: str) -> TXID:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text)):
        raise ConfigError(
            f"Could not open {name!r}: txid={text!r} is no number of a state. They are 1, 2, ... "
            "in the order of publication: `buckethead log` lists them."
        )
    return int(text)


def _following(name: str, parameters: dict[str, str]) -> SnapshotConfig:
    """How the parameters say that a database is to be followed. Raises ConfigError."""
    given = {field: parameters[word] for word, field in _FOLLOWING.items() if word in parameters}
    try:
        return SnapshotConfig.model_validate(given)
    except ValidationError:
        said = " and ".join(
            f"{word}={parameters[word]!r}" for word in _FOLLOWING if word in parameters
        )
        raise ConfigError(
            f"Could not open {name!r}: {said} is to be a number of seconds above 0, as in follow=1."
        ) from None


def config_of(name: str, parameters: Mapping[str, str] = MappingProxyType({})) -> BucketConfig:
    """Where a volume opened by name lives: URI parameters over the environment's settings over the
    default directory. Raises ConfigError."""
    given = {field: parameters[field] for field in _CONFIGURING if field in parameters}
    if name.startswith("/") and "key" not in given:
        raise ConfigError(
            f"Could not open {name!r}: the name of a volume is no path. Write "
            f"{uri_of(name.lstrip('/'))!r}, or give the key as a parameter."
        )
    try:
        return resolved_bucket(given, f"{name}.db")
    except ConfigError as error:
        raise ConfigError(
            f"Could not open {name!r}: {error}. Correct the URI or the settings."
        ) from None


def _check_same_times(follower: Follower, parameters: dict[str, str]) -> None:
    wanted = _following(follower.name, parameters)
    for word, field in _FOLLOWING.items():
        if word in parameters and getattr(wanted, field) != getattr(follower.snapshot, field):
            raise ConfigError(
                f"Could not open {follower.name!r} with {word}={parameters[word]}: this process "
                f"follows it already, with {getattr(follower.snapshot, field)}. Leave the "
                "parameter out, or close the connections that are open first."
            )


def _check_same_place(volume: Volume | Follower, parameters: dict[str, str]) -> None:
    for field in _CONFIGURING:
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
