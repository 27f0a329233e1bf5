"""The first 100 bytes of page 1: what the package reads there, and the few bytes it sets.

Format: "The SQLite Database File Format", section 1.3 (sqlite.org/fileformat2.html). All numbers
are big-endian. The counters exist because SQLite trusts its page cache while bytes 24..39 are
unchanged, and its parsed schema while the schema cookie is (native_notes/page1-counters.md).
"""

import struct

from .pages import valid_page_size

HEADER_SIZE = 100
MAGIC = b"SQLite format 3\x00"


counters = struct.Struct(">I12xI").unpack_from
"""``counters(page1, 24)``: the change counter (bytes 24..27, raised by every commit) and the schema
cookie (bytes 40..43, raised by every change of the schema)."""


def page_size(page1: bytes) -> int:
    """Bytes 16..17, where 1 stands for 65,536; 0 when SQLite allows no such page size."""
    size = int.from_bytes(page1[16:18])
    size = 65536 if size == 1 else size
    return size if valid_page_size(size) else 0


def page_count(page1: bytes) -> int:
    """Bytes 28..31; 0 when an old SQLite wrote the file without keeping them up to date."""
    current = page1[24:28] == page1[92:96]
    return int.from_bytes(page1[28:32]) if current else 0


def following(page1: bytes, shown: bytes) -> bytes:
    """Page 1 as it must be after ``shown`` (invariant 13), and not in WAL mode.

    SQLite raises both counters itself, except that it raises the change counter only once under
    locking_mode=EXCLUSIVE, and that PRAGMA schema_version sets any cookie. A backup of a WAL-mode
    file brings its mode along.
    """
    counter, cookie = counters(shown, 24)
    own_cookie = counters(page1, 24)[1]
    new_cookie = own_cookie if own_cookie >= cookie else after(cookie)
    return with_counters(without_wal(page1), after(counter), new_cookie)


def with_counters(page1: bytes, counter: int, cookie: int) -> bytes:
    """Page 1 with its change counter (and the copy of it in 92..95) and schema cookie set."""
    new = bytearray(page1)
    new[24:28] = new[92:96] = counter.to_bytes(4)
    new[40:44] = cookie.to_bytes(4)
    return bytes(new)


def after(number: int) -> int:
    """The next value of a 32-bit counter."""
    return (number + 1) & 0xFFFFFFFF


def without_wal(page1: bytes) -> bytes:
    """Page 1 with journal mode WAL (2 in bytes 18, 19) set back: WAL needs shared memory."""
    if page1[18:20] == b"\x01\x01":
        return page1
    return page1[:18] + b"\x01\x01" + page1[20:]


def shown_after(page1: bytes, before: bytes, shown: bytes) -> bytes:
    """A published page 1 as those who follow see it after ``shown`` (invariant 13).

    ``before`` was published before it; ``shown`` may be ahead of that, and then only what differs
    between the two published ones says whether the schema has changed.
    """
    counter, cookie = counters(page1, 24)
    shown_counter, shown_cookie = counters(shown, 24)
    new_counter = counter if counter > shown_counter else after(shown_counter)
    if cookie == counters(before, 24)[1]:
        new_cookie = shown_cookie
    else:
        new_cookie = cookie if cookie > shown_cookie else after(shown_cookie)
    return with_counters(without_wal(page1), new_counter, new_cookie)
