"""What every new APSW connection gets: URI names turned on, a busy timeout, and a refusal with its
reason where a connection would silently be something else than a volume.

APSW's default flags do not read a name as a URI, so ``file:db?vfs=buckethead`` would become a
literal file on disk. URI names can be turned on for the process only while SQLite has no open
connection; so that happens at import, and where it cannot, the hook below refuses such a file.
"""

import ctypes
import os
import re
import weakref

import apsw

from ..errors import ConfigError
from .vfs import NAME, BucketVFS, Find, file_of

BUSY_TIMEOUT_MS = 5000

_LITERAL_URI = re.compile(rf"(^|/)(file:[^/]*[?&]vfs={NAME}(&.*|))$")

_registered: BucketVFS | None = None


class _SqliteVFS(ctypes.Structure):
    """The first members of struct sqlite3_vfs (sqlite.org/c3ref/vfs.html)."""

    _fields_ = (
        ("iVersion", ctypes.c_int),
        ("szOsFile", ctypes.c_int),
        ("mxPathname", ctypes.c_int),
        ("pNext", ctypes.c_void_p),
        ("zName", ctypes.c_char_p),
    )


def install(find: Find) -> None:
    """Register the VFS, turn URI names on, and look at every connection from now on."""
    global _registered  # noqa: PLW0603 - APSW forgets a VFS that nobody refers to
    if not apsw.connections():
        apsw.shutdown()
        apsw.config(apsw.SQLITE_CONFIG_URI, True)
        apsw.initialize()
    _registered = BucketVFS(find)
    apsw.connection_hooks.append(_look_at)


def _look_at(connection: apsw.Connection) -> None:
    literal = _LITERAL_URI.search(connection.filename)
    if literal is not None:
        _refuse_literal(connection, literal.group(2))
    file = file_of(connection)
    if file is not None:
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        file.connection = weakref.ref(connection)
    elif connection.filename == "" and _main_vfs(connection) == NAME:
        connection.close()
        raise ConfigError(
            f"Could not open a volume: with vfs={NAME}, an empty name or mode=memory gives a "
            "private database that no bucket ever sees. Give a name and leave mode=memory out, "
            f"as in file:app?vfs={NAME}; for a throw-away database use ':memory:'"
        )


def _refuse_literal(connection: apsw.Connection, uri: str) -> None:
    stray = connection.filename
    connection.close()
    if os.path.exists(stray) and os.path.getsize(stray) == 0:
        os.unlink(stray)
    raise ConfigError(
        f"Could not open {uri!r}: SQLite took it for the name of a disk file, because connections "
        "were open when buckethead was imported and URI names could no longer be turned on. "
        "Import buckethead before the first connection is opened, or pass "
        "flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI"
    )


def _main_vfs(connection: apsw.Connection) -> str:
    """The VFS of main, also where its file was never opened (`open_vfs` says the default's)."""
    pointer = ctypes.c_void_p()
    connection.file_control("main", apsw.SQLITE_FCNTL_VFS_POINTER, ctypes.addressof(pointer))
    if not pointer.value:
        return ""
    vfs = ctypes.cast(pointer.value, ctypes.POINTER(_SqliteVFS)).contents
    return (vfs.zName or b"").decode()
