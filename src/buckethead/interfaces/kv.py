"""`KV`: keys and values in the database of a connection, for as long as they are to live.

The rule: what a method does is one statement, in the caller's transaction or by itself where there
is none; so it happens whole or not at all, and is never committed or undone on its own. An expired
key is absent at once; the next write deletes it.
"""

import sys
import time
from collections.abc import Iterator
from typing import Any, TypeVar, overload

import apsw

from .kvstore import ALIVE, make, read, sweeper_of
from .statements import alone, as_one, run

Default = TypeVar("Default")

AFTER_ALL = b""
"""Sorts after every text, as bytes do in SQL."""

SHOWN = 60
"""Characters of a key in the text of an error."""

_ROW = '"main".kvstore'
_GET = f"SELECT value FROM {_ROW} WHERE key = ? AND {ALIVE}"
_GET_BYTES = f"SELECT CAST(value AS BLOB) FROM {_ROW} WHERE key = ? AND {ALIVE}"
_EXISTS = f"SELECT 1 FROM {_ROW} WHERE key = ? AND {ALIVE}"
_COUNT = f"SELECT count(*) FROM {_ROW} WHERE {ALIVE}"
_LIST = f"SELECT {{}} FROM {_ROW} WHERE key >= ? AND key < ? AND {ALIVE} ORDER BY key"

_SET = f"""INSERT INTO {_ROW}(key, value, created_at, updated_at, expires_at)
    VALUES (?1, ?2, ?3, ?3, ?4)
    ON CONFLICT(key) DO UPDATE SET value = ?2, updated_at = ?3, expires_at = ?4,
        created_at = iif(expires_at <= ?3, ?3, created_at)"""

_DELETE = f"DELETE FROM {_ROW} WHERE key = ? RETURNING {ALIVE}"

# Only what is an integer, and stays one, is counted up; else no row comes back
_INCR = f"""INSERT INTO {_ROW}(key, value, created_at, updated_at) VALUES (?1, ?2, ?3, ?3)
    ON CONFLICT(key) DO UPDATE SET
        value = iif(expires_at <= ?3, ?2, CAST(value AS INTEGER) + ?2),
        created_at = iif(expires_at <= ?3, ?3, created_at),
        expires_at = iif(expires_at <= ?3, NULL, expires_at),
        updated_at = ?3
    WHERE expires_at <= ?3 OR (
        CAST(CAST(value AS INTEGER) AS TEXT) = CAST(value AS TEXT)
        AND typeof(CAST(value AS INTEGER) + ?2) = 'integer')
    RETURNING value"""


class KV:
    """Keys and values of a database: also a dict of strings.

    It reads and writes through ``connection``, in whatever transaction that is in. Keys are any
    text. Nothing is created before the first write. The same keys are the table ``bh_kv`` in SQL.
    Threads that share one may write at the same time; to read beside that, each needs a connection
    of its own, else APSW raises ThreadingViolationError.

    Besides what is said below, reading and writing raise what SQL raises: apsw.BusyError where
    another connection writes for too long, or has written since this transaction began to read;
    VolumeReadOnlyError; VolumeError where the name ``kvstore`` is taken by another table.
    """

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._sweeper = sweeper_of(connection)
        # Threads that share the connection: no COMMIT works while another statement is writing
        self._writing = alone(connection)

    # -- reading ----------------------------------------------------------------------------

    @overload
    def get(self, key: str) -> str | None: ...

    @overload
    def get(self, key: str, default: Default) -> str | Default: ...

    def get(self, key: str, default: object = None) -> object:
        """The text of a key, or ``default``. Raises ValueError where it is bytes that are no
        UTF-8."""
        value = self._value(key)
        if type(value) is str:
            return value
        return default if value is None else _text(key, value)

    @overload
    def get_bytes(self, key: str) -> bytes | None: ...

    @overload
    def get_bytes(self, key: str, default: Default) -> bytes | Default: ...

    def get_bytes(self, key: str, default: object = None) -> object:
        """The bytes of a key, or ``default``; of a text its UTF-8."""
        value = self._value(key)
        if value is None or isinstance(value, bytes):
            return default if value is None else value
        return _text(key, value).encode()

    def exists(self, key: str) -> bool:
        """Whether there is such a key."""
        _check_key(key)
        return self._read(_EXISTS, (key, time.time())).get is not None

    def keys(self, prefix: str = "") -> list[str]:
        """The keys that begin with ``prefix``, every character of which means itself; sorted as
        SQL does. As they are at this moment: they can be changed while one goes through them."""
        return [key for (key,) in self._list("key", prefix)]

    def items(self, prefix: str = "") -> list[tuple[str, str]]:
        """Keys and their texts, otherwise as `keys`. Raises ValueError like `get`."""
        try:
            return [(key, _text(key, value)) for key, value in self._list("key, value", prefix)]
        except UnicodeDecodeError:
            for key in self.keys(prefix):
                self.get(key)  # raises, and names the key
            raise

    def _value(self, key: str) -> Any:
        if type(key) is not str or not key.isascii():
            _check_key(key)
        values = (key, time.time())
        try:
            return self._read(_GET, values).get
        except UnicodeDecodeError:  # SQL can put text there that is no UTF-8
            return self._read(_GET_BYTES, values).get

    def _list(self, columns: str, prefix: str) -> Iterator[tuple[Any, ...]]:
        _check_key(prefix)
        low, high = prefix, _after(prefix)
        if self._connection.pragma("encoding") != "UTF-8":
            low, high = "", AFTER_ALL  # the bytes of UTF-16 do not sort by character
        rows = self._read(_LIST.format(columns), (low, high, time.time()))
        return (row for row in rows if row[0].startswith(prefix))

    def _read(self, sql: str, values: tuple[Any, ...]) -> apsw.Cursor:
        return read(self._connection, "main", sql, values)

    # -- writing ----------------------------------------------------------------------------

    def set(self, key: str, value: str, *, ttl: float | None = None) -> None:
        """Give a key its value, for ``ttl`` seconds; without, for good, also where it had an end.

        Raises TypeError for anything but text, ValueError for text with a lone surrogate and for
        a ``ttl`` that is no number of seconds above 0, and apsw.TooBigError for more than SQLite
        takes (1 GB).
        """
        if not isinstance(value, str):
            raise TypeError(
                f"Could not set {_shown(key)}: the value is to be str, and is "
                f"{type(value).__name__}. For bytes there is set_bytes(); write others as text."
            )
        if not value.isascii():
            _check_text(value, "value")
        self._set(key, value, ttl)

    def set_bytes(
        self, key: str, value: bytes | bytearray | memoryview, *, ttl: float | None = None
    ) -> None:
        """`set`, for bytes."""
        if not isinstance(value, bytes | bytearray | memoryview):
            raise TypeError(
                f"Could not set {_shown(key)}: the value is to be bytes, and is "
                f"{type(value).__name__}. For text there is set()."
            )
        self._set(key, value, ttl)

    def _set(self, key: str, value: Any, ttl: float | None) -> None:
        if type(key) is not str or not key.isascii():
            _check_key(key)
        now = time.time()
        expires_at = None if ttl is None else now + _seconds(key, ttl)
        self._write(_SET, (key, value, now, expires_at), now)
        if expires_at is not None:
            self._sweeper.expect(expires_at)

    def delete(self, key: str) -> bool:
        """Delete a key. Whether there was one."""
        _check_key(key)
        now = time.time()
        return bool(self._write(_DELETE, (key, now), now, create=False))

    def incr(self, key: str, amount: int = 1) -> int:
        """Add to a number, and the number after it; a key that is not there counts as 0. When the
        key expires does not change. Threads and connections that do this at once lose nothing.

        Raises ValueError where the key has something else than an integer, or the sum would not
        fit into 64 bits; TypeError where ``amount`` is no integer.
        """
        _check_key(key)
        if not isinstance(amount, int) or isinstance(amount, bool):
            raise TypeError(
                f"Could not add to {_shown(key)}: the amount is {type(amount).__name__}, not int."
            )
        if not -(2**63) <= amount < 2**63:
            raise ValueError(f"Could not add to {_shown(key)}: the amount has more than 64 bits.")
        now = time.time()
        number = self._write(_INCR, (key, amount, now), now)
        if number is None:
            raise ValueError(
                f"Could not add to {_shown(key)}: what it has is no integer, or the sum would not "
                "fit into 64 bits. It is as it was: look at it with get(), or set() it anew."
            )
        return int(number)

    def _write(self, sql: str, values: tuple[Any, ...], now: float, *, create: bool = True) -> Any:
        """Sweep where it is time, and execute. What comes back; None where there is no table and
        none is made."""
        with self._writing:
            try:
                if now >= self._sweeper.due:
                    self._sweeper.sweep(self._connection, "main", now)
                return run(self._connection, sql, values).get
            except apsw.SQLError:
                with as_one(self._connection):
                    if not make(self._connection, "main", create=create):
                        return None
            return run(self._connection, sql, values).get

    # -- a dict of strings ------------------------------------------------------------------

    def __getitem__(self, key: str) -> str:
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: str) -> None:
        self.set(key, value)

    def __delitem__(self, key: str) -> None:
        if not self.delete(key):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        try:
            return isinstance(key, str) and self.exists(key)
        except ValueError:  # no text, so no key
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return int(self._read(_COUNT, (time.time(),)).get or 0)


def _check_key(key: object) -> None:
    if not isinstance(key, str):
        raise TypeError(f"Keys are str; this one is {type(key).__name__}.")
    _check_text(key, "key")


def _check_text(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # which would carry the whole text along
        raise ValueError(f"The {what} is no Unicode text: it has a lone surrogate.") from None


def _shown(key: str) -> str:
    return repr(key if len(key) <= SHOWN else f"{key[:SHOWN]}...")


def _text(key: str, value: Any) -> str:
    if not isinstance(value, bytes):
        return str(value)  # SQL can put numbers there
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValueError(
            f"Could not read {_shown(key)} as text: its bytes are no UTF-8. Read it with "
            "get_bytes()."
        ) from None


def _seconds(key: str, ttl: float) -> float:
    if not isinstance(ttl, int | float) or isinstance(ttl, bool):
        raise TypeError(f"Could not set {_shown(key)}: ttl is {type(ttl).__name__}, not seconds.")
    if not 0 < ttl <= sys.float_info.max:
        raise ValueError(
            f"Could not set {_shown(key)}: ttl={ttl!r} is no number of seconds above 0. Leave it "
            "out for a key that does not expire."
        )
    return ttl


def _after(prefix: str) -> str | bytes:
    """What sorts after all that begin with a prefix, and before everything else that does."""
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return AFTER_ALL
    # UTF-8 sorts by code point; the surrogates in between are no characters
    following = 0xE000 if stem[-1] == "\ud7ff" else ord(stem[-1]) + 1
    return stem[:-1] + chr(following)
