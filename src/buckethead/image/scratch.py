"""Temporary files that SQLite opens through our VFS: VACUUM's copy, large sorts, temp tables.

They have no name, are read by nobody else and vanish when closed, so the platform's own VFS
serves them from disk. A file with a name is never served here: a journal handed on to disk would
be found again later and replayed into a restored image.
"""

import apsw


def open_scratch(platform_vfs: str, flags: list[int]) -> apsw.VFSFile:
    """A nameless temporary file of the platform's VFS; ``flags`` as xOpen got them."""
    return apsw.VFSFile(platform_vfs, None, flags)
