"""The connection that buckethead hands out: an `apsw.Connection` to a volume, set up for it.

Any plain ``apsw.Connection("file:NAME?vfs=buckethead")`` works too. This one begins its
transactions IMMEDIATE, so that writers queue instead of failing, has ``commit()`` and
``rollback()`` for programs written that way, and refuses to be turned into something else.
"""

from typing import Any, NoReturn, Self

import apsw

from .errors import BucketHeadError, VolumeError


class Connection(apsw.Connection):
    """A connection to a volume. Use one per thread; closing it never drops data."""

    def __init__(self, uri: str) -> None:
        super().__init__(
            uri,
            flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI,
        )
        self.transaction_mode = "IMMEDIATE"

    def __enter__(self) -> Self:
        try:
            super().__enter__()
        except apsw.Error as error:
            # APSW raises what SQLite says of it here, and the error itself is only its context
            if isinstance(error.__context__, BucketHeadError):
                raise error.__context__ from None
            raise
        return self

    def commit(self) -> None:
        """Commit the transaction that is running, if any: outside one every statement commits."""
        if self.in_transaction:
            self.execute("COMMIT")

    def rollback(self) -> None:
        """Roll the running transaction back, if there is one."""
        if self.in_transaction:
            self.execute("ROLLBACK")

    def deserialize(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: it would cut the connection off from the volume, silently."""
        raise VolumeError(
            "Could not deserialize into a volume: SQLite would replace it by a private copy that "
            "no bucket ever sees. Load a database file with `buckethead import FILE`, or copy it "
            "with the backup API."
        )
