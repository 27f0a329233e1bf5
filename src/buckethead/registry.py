"""The mounted volumes of the process: from a name, a URI or a configuration to one volume.

One key has one volume, ever: a second mount of it shares the volume or is refused, so two writers
in one process cannot overwrite each other. Opening by name mounts, and mounting restores.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from urllib.parse import quote

import apsw

from .config import BucketConfig, SnapshotConfig, resolved_bucket
from .errors import ConfigError, ObjectNotFoundError, VolumeBusyError
from .image.pages import PageImage
from .storage import layout
from .storage.directory import open_bucket
from .storage.snapshot import read_image
from .volume import Volume

_CONFIGURING = ("bucket", "key", "endpoint_url", "region")
_KNOWN = (*_CONFIGURING, "branch", "mode", "vfs")
_SECRET_WORDS = ("key_id", "secret", "token", "password", "credential", "signature")


def uri_of(name: str) -> str:
    """The URI that opens the volume ``name`` from any connection."""
    return f"file:{quote(name)}?vfs=buckethead"


class Registry:
    """Names and places of the mounted volumes. ``wake`` is how a volume asks for a flush."""

    def __init__(self) -> None:
        self.wake: Callable[[Volume], None] = lambda volume: None
        self.mounted_hook: Callable[[], None] = lambda: None
        # Guards the three maps, never held over I/O; reentrant for finalizers that unmount
        self._lock = threading.RLock()
        self._volumes: dict[str, Volume] = {}
        self._places: dict[tuple[tuple[str, ...], str], str] = {}  # store and key -> name
        self._gates: dict[str, threading.RLock] = {}  # one mount or unmount of a name at a time

    def volumes(self) -> list[Volume]:
        """Every mounted volume, in the order of mounting."""
        with self._lock:
            return list(self._volumes.values())

    def get(self, name: str) -> Volume | None:
        """The volume mounted under ``name``."""
        with self._lock:
            return self._volumes.get(name)

    # -- opening by URI ---------------------------------------------------------------------

    def open(self, name: str, parameters: dict[str, str], flags: int) -> Volume:
        """The volume that a URI means, mounted if need be; this is how the VFS finds a database.

        Raises ConfigError, BucketError, SnapshotCorruptError, VolumeBusyError.
        """
        _check_parameters(name, parameters)
        create = bool(flags & apsw.SQLITE_OPEN_CREATE)
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

    # -- mounting ---------------------------------------------------------------------------

    def mount(
        self,
        name: str,
        config: BucketConfig,
        snapshot: SnapshotConfig | None = None,
        *,
        create: bool = True,
        share: bool = True,
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
                image = read_image(bucket, config.key, integrity_check=snapshot.integrity_check)
                if image is None and not create:
                    raise ObjectNotFoundError(
                        f"Could not open {name!r}: there is no database {config.key!r} at "
                        f"{bucket.url}. Check the key, or open it with mode=rwc to create it."
                    )
                self.mounted_hook()
                volume = Volume(name, config, snapshot, bucket, image or PageImage(), self.wake)
                with self._lock:
                    self._volumes[name] = volume
            return volume

    def unmount(self, volume: Volume) -> None:
        """Publish what a volume still has and forget it; its name and key can be mounted again.

        Connections that stay open can read on; writing raises VolumeError. Raises BucketError
        when the last flush fails: then the volume stays mounted and writable.
        """
        with self._gate(volume.name):
            if self.get(volume.name) is not volume:
                return  # another thread was quicker
            if not volume.inherited:  # over a fork: the parent has the data
                volume.flush()
                volume.retire()
            with self._lock:
                del self._volumes[volume.name]
                for key in (volume.key, layout.previous(volume.key)):
                    del self._places[volume.bucket.identity, key]

    def _gate(self, name: str) -> "threading.RLock":
        with self._lock:
            return self._gates.setdefault(name, threading.RLock())

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
        self._gates = {}


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


def _check_same_place(volume: Volume, parameters: dict[str, str]) -> None:
    for field in _CONFIGURING:
        if field in parameters and parameters[field] != getattr(volume.config, field):
            raise ConfigError(
                f"Could not open {volume.name!r} with another {field}: it is mounted "
                f"with key {volume.key!r} at {volume.bucket.url}. Use another name for another "
                "database, or leave the parameter out."
            )


def _check_same_mount(
    volume: Volume, config: BucketConfig, snapshot: SnapshotConfig | None, share: bool
) -> None:
    same = volume.config == config and snapshot in (None, volume.snapshot)
    if not (same and share):
        how = "" if same else ", with another configuration"
        raise VolumeBusyError(
            f"Could not mount {volume.name!r}: it is mounted already in this process{how} "
            f"(key {volume.key!r} at {volume.bucket.url}). Stop or unmount that one first, or use "
            "another key."
        )
