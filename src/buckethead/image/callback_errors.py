"""What leaves a SQLite callback: exceptions made so that SQLite gets the right result code, and the
caller of APSW the right type and text (native_notes/errors-in-callbacks.md).
"""

import apsw

from ..errors import CommitError, CommitInterrupted, ConfigError


class IllegalLockError(AssertionError):
    """SQLite asked for a lock transition that its own protocol does not have."""


class BusySnapshotError(apsw.BusyError, apsw.AbortError):
    """SQLITE_BUSY_SNAPSHOT with a message.

    APSW drops the text of any exception that it translates to SQLITE_BUSY. It finds the code by
    class, AbortError before BusyError, and refines it by ``extendedresult``; so that attribute is
    missing the first time it is looked at, which is APSW's look, and right ever after.
    """

    result = apsw.SQLITE_BUSY
    _asked_by_apsw = False

    @property
    def extendedresult(self) -> int:
        if not self._asked_by_apsw:
            self._asked_by_apsw = True
            raise AttributeError("extendedresult")
        return apsw.SQLITE_BUSY_SNAPSHOT


class PlainBusySnapshotError(apsw.BusyError):
    """SQLITE_BUSY_SNAPSHOT where SQLite itself tries again: no text, which would stop it."""

    result = apsw.SQLITE_BUSY
    extendedresult = apsw.SQLITE_BUSY_SNAPSHOT


def cut_short(name: str, error: BaseException) -> CommitError:
    """What leaves COMMIT_PHASETWO: always an IOERR, and still what it was to those who catch
    KeyboardInterrupt or SystemExit."""
    kind = CommitError if isinstance(error, Exception) else _interruption(type(error))
    cut = kind(
        f"COMMIT to {name!r} was cut short by {error!r}: the transaction is in the database whole "
        "or not at all. Read it to learn which"
    )
    if isinstance(cut, SystemExit) and isinstance(error, SystemExit):
        cut.code = error.code
    return cut


def _interruption(kind: type[BaseException]) -> type[CommitError]:
    if issubclass(kind, KeyboardInterrupt):
        return CommitInterrupted
    return type(f"Commit{kind.__name__}", (CommitError, kind), {})


def ambiguous(name: str, vfs: str) -> ConfigError:
    """For a plain name in ATTACH or VACUUM INTO: SQLite hands it to the VFS of main."""
    return ConfigError(
        f"Could not open {name!r}: a plain name is looked for where the main database is, and "
        f"that is a volume. Write 'file:{name}?vfs={vfs}' for a volume, or "
        f"'file:{name}?vfs={apsw.vfs_names()[0]}' for a file on disk."
    )
