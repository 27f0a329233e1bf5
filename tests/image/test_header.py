"""The header of page 1: what is read there, what is set, and that nothing else changes.

The truth is SQLite's own: the bytes of a database that SQLite wrote.
"""

import apsw
import pytest

from buckethead.image import header


def database(*statements: str) -> bytes:
    """Page 1 (and the rest) as SQLite writes it."""
    connection = apsw.Connection(":memory:")
    for statement in statements:
        connection.execute(statement)
    content = connection.serialize("main")
    connection.close()
    return content


def raw(at: int, value: bytes) -> bytes:
    """A blank page with ``value`` at offset ``at``."""
    return bytes(at) + value + bytes(512 - at - len(value))


def changed_bytes(old: bytes, new: bytes) -> set[int]:
    return {index for index, (a, b) in enumerate(zip(old, new, strict=True)) if a != b}


def test_what_sqlite_wrote_begins_with_the_magic() -> None:
    page1 = database("CREATE TABLE t(x)")
    assert page1.startswith(header.MAGIC)
    assert len(header.MAGIC) == 16


@pytest.mark.parametrize("size", [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536])
def test_the_page_size_is_the_one_sqlite_was_given(size: int) -> None:
    content = database(f"PRAGMA page_size={size}", "CREATE TABLE t(x)")
    assert header.page_size(content) == size
    assert header.page_count(content) == len(content) // size == 2


def test_a_page_size_of_1_means_65536() -> None:
    assert header.page_size(raw(16, b"\x00\x01")) == 65536


@pytest.mark.parametrize("stored", [0, 2, 256, 511, 513, 1000, 4097, 65535])
def test_a_page_size_that_sqlite_does_not_allow(stored: int) -> None:
    assert header.page_size(raw(16, stored.to_bytes(2))) == 0


@pytest.mark.parametrize("length", [0, 15, 16, 17])
def test_a_file_too_short_to_have_a_page_size(length: int) -> None:
    assert header.page_size(header.MAGIC[:length].ljust(length, b"\x02")) == 0


def test_a_page_count_that_was_not_kept_up_to_date_is_not_believed() -> None:
    page1 = raw(24, b"\0\0\0\x07" + b"\0\0\0\x03")
    assert header.page_count(page1) == 0
    assert header.page_count(page1[:92] + b"\0\0\0\x07" + page1[96:]) == 3


@pytest.mark.parametrize("length", [0, 24, 28, 32, 92, 95])
def test_a_file_too_short_to_have_a_page_count(length: int) -> None:
    page1 = raw(24, b"\0\0\0\x07" + b"\0\0\0\x03")[:length]
    assert header.page_count(page1) == 0


def test_both_counters_are_read_from_where_sqlite_keeps_them() -> None:
    page1 = database("CREATE TABLE t(x)", "CREATE TABLE u(x)", "INSERT INTO t VALUES(1)")
    counter, cookie = header.counters(page1, 24)
    assert counter == int.from_bytes(page1[24:28])
    assert cookie == 2
    assert header.counters(raw(24, b"\x01\x02\x03\x04"), 24) == (0x01020304, 0)
    assert header.counters(raw(40, b"\xff\xff\xff\xff"), 24) == (0, 0xFFFFFFFF)


@pytest.mark.parametrize("counter", [0, 1, 0x01020304, 0xFFFFFFFF])
@pytest.mark.parametrize("cookie", [0, 0x0A0B0C0D, 0xFFFFFFFF])
def test_setting_the_counters_sets_them_and_the_copy_and_nothing_else(
    counter: int, cookie: int
) -> None:
    page1 = bytes(range(256)) * 2
    new = header.with_counters(page1, counter, cookie)
    assert isinstance(new, bytes)
    assert header.counters(new, 24) == (counter, cookie)
    assert new[92:96] == new[24:28]
    assert changed_bytes(page1, new) <= {*range(24, 28), *range(40, 44), *range(92, 96)}
    assert page1 == bytes(range(256)) * 2


def test_a_database_with_other_counters_is_still_sound_to_sqlite() -> None:
    content = database("CREATE TABLE t(x)", "INSERT INTO t VALUES(42)")
    connection = apsw.Connection(":memory:")
    connection.deserialize("main", header.with_counters(content, 900, 77))
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("SELECT x FROM t").fetchall() == [(42,)]
    assert connection.execute("PRAGMA schema_version").fetchall() == [(77,)]
    connection.close()


@pytest.mark.parametrize(
    ("number", "following"), [(0, 1), (41, 42), (0x7FFFFFFF, 0x80000000), (0xFFFFFFFF, 0)]
)
def test_after_goes_round_at_32_bits(number: int, following: int) -> None:
    assert header.after(number) == following


@pytest.mark.parametrize("versions", [b"\x02\x02", b"\x01\x02", b"\x02\x01"])
def test_wal_bytes_are_set_back_and_nothing_else(versions: bytes) -> None:
    page1 = database("CREATE TABLE t(x)")
    wal = page1[:18] + versions + page1[20:]
    assert header.without_wal(wal) == page1


def test_a_page_without_wal_bytes_is_handed_back_as_it_is() -> None:
    page1 = database("CREATE TABLE t(x)")
    assert header.without_wal(page1) is page1
