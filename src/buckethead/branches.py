"""`Branches`: the branches of a database, as whoever has it mounted deals with them.

The rule: what is mounted is asked first. A branch is made of what has been committed here, so that
is flushed before; a branch that this process has open is written through its volume, never behind
its back.
"""

from contextlib import nullcontext

from . import refusals
from .errors import BranchError, VolumeBusyError, VolumeReadOnlyError
from .follower import Follower
from .image.pages import PageImage
from .past import Past
from .registry import Registry
from .storage import branches
from .storage.branches import BranchInfo, Source
from .storage.layout import Place, checked_branch
from .uris import uri_of
from .volume import Volume


class Branches:
    """The branches of one database. A branch is a database of its own, with a history and a writer
    of its own, that begins as another one is; making one costs no download and no upload.

    Everything here raises BucketError and HistoryError besides what is said.
    """

    def __init__(self, database: Volume | Follower | Past, registry: Registry) -> None:
        self._database = database
        self._registry = registry

    def current(self) -> str:
        """The branch that open connections see."""
        return self._database.place.branch

    def list(self) -> "list[BranchInfo]":
        """The branches there are, in the order of their names, and the current one even where
        nothing of it is published."""
        database, place = self._database, self._database.place
        found = branches.find(database.bucket, place.key)
        if not any(branch.name == place.branch for branch in found):
            size = database.image.size
            found.append(BranchInfo(place.branch, size, 0, None, place.image))
        return sorted(found, key=lambda branch: branch.name)

    def create(self, name: str, *, from_branch: str | None = None) -> None:
        """Make a branch that begins as ``from_branch`` is now, by default the current one.

        Of a volume that another writer has fenced it saves what that one does not have. Raises
        InvalidBranchNameError, BranchExistsError, BranchNotFoundError, VolumeBusyError while that
        branch is being switched to or from, and BranchError where nothing was written yet.
        """
        volume = self._writer()
        place = Place(volume.key, checked_branch(from_branch or volume.branch))
        fence = volume.config.fencing == "require"
        checked_branch(name)
        mounted = self._registry.holder(volume.bucket, place)
        if mounted is None:
            branches.create(volume.bucket, branches.source(volume.bucket, place), name, fence=fence)
        elif mounted.fenced:
            for prepare in mounted.before_publish:
                prepare()
            branches.create(volume.bucket, _in_memory(mounted), name, fence=fence)
        else:
            # meanwhile its retention deletes nothing that is copied
            with mounted.published() as state, mounted.checkpointing:
                if state.place != place:
                    raise refusals.on_the_move(mounted.name)
                pin = state.pin
                source = Source(
                    *(state.place, state.stamp, pin.page_size, pin.page_count),
                    image=lambda: PageImage(pin.page_size, pin.copy()),
                    seen=state.checkpoints.image,
                )
                branches.create(volume.bucket, source, name, fence=fence)

    def switch(self, name: str) -> None:
        """Make another branch the current one. Open connections see it at their next statement;
        statements still running finish on what they began with.

        Raises BranchNotFoundError, and VolumeBusyError while a transaction is writing, or where
        the branch is open beside: then nothing has changed.
        """
        self._registry.switch(self._writer(), name)

    def overwrite(self, target: str) -> None:
        """Give another branch the content of the current one, as one commit in its history. Raises
        BranchNotFoundError, VolumeBusyError while a transaction is writing to it."""
        volume = self._writer()
        place = Place(volume.key, checked_branch(target))
        if place == volume.place:
            raise BranchError(f"Could not overwrite the branch {target!r} with itself.")
        mounted = self._registry.holder(volume.bucket, place)
        alone = self._registry.alone(volume, target) if mounted is None else nullcontext(mounted)
        with alone as other, other.flushing:  # which keeps it from being switched
            if other.place != place:
                raise refusals.on_the_move(other.name)
            for prepare in volume.before_publish:  # rows come along that only this volume knows of
                prepare()
            with volume.image.pinned() as pin:
                other.swap(pin.page_size, pin.copy())
            other.flush()

    def delete(self, name: str) -> None:
        """Delete a branch; its name can be used again. Whoever still writes to it is told.

        Raises BranchNotFoundError, BranchError for ``main`` and the current branch, and
        VolumeBusyError for one that this process has open beside.
        """
        volume = self._writer()
        place = Place(volume.key, checked_branch(name))
        if place == volume.place:
            raise BranchError(
                f"Could not delete the branch {name!r}: it is the current one. Switch to another "
                "branch before."
            )
        mounted = self._registry.holder(volume.bucket, place)
        if mounted is not None:
            raise VolumeBusyError(
                f"Could not delete the branch {name!r}: this process has it open as "
                f"{uri_of(mounted.name)!r}. Close its connections and unmount it before."
            )
        fence = volume.config.fencing == "require"
        branches.delete(volume.bucket, volume.key, name, fence=fence)

    def _writer(self) -> Volume:
        if not isinstance(self._database, Volume):
            raise VolumeReadOnlyError(
                f"Could not change the branches of {self._database.name!r}: it was opened for "
                "reading only. Open it without mode=ro, follow, txid or at."
            )
        if self._database.inherited:
            raise refusals.inherited(self._database.name)
        return self._database


def _in_memory(volume: Volume) -> Source:
    """What a fenced volume has, published or not."""
    image = volume.image.fork()
    stamp = volume.stamp
    return Source(
        volume.place, stamp, image.page_size, image.page_count, lambda: image, published=False
    )
