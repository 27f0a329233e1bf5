"""Letting a volume go of which nothing is to be kept, after Ctrl-C too.

Ctrl-C asks for a flush of every volume, which workers begin while the benchmark takes its folders
away: when a volume is let go none is running, and a later one finds nothing to write.
"""

from ..core import registry
from ..volume import Volume


def let_go(volume: Volume) -> None:
    """Unmount a volume and drop what was not published."""
    registry.unmount(volume, discard=True)
    with volume.flushing, volume.image.publication():
        pass  # as if all of it had been published
    with volume.checkpointing:
        pass
