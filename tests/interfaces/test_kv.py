"""`KV`: values, time, transactions, threads, and what older versions left."""

import math
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from buckethead import BucketSQLite
from buckethead.connection import Connection
from buckethead.core import registry
from buckethead.errors import VolumeError
from buckethead.interfaces.kv import KV
from buckethead.interfaces.kvstore import sweeper_of
from kv_tools import KEYS, Clock, Machine, alone, make_old, mount, stored, tables
from volume_tools import directory, nothing_left_mounted


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.set_up(monkeypatch)
    return clock


@pytest.fixture
def connection() -> Iterator[apsw.Connection]:
    with alone() as connection:
        yield connection


@pytest.fixture
def kv(connection: apsw.Connection) -> KV:
    return KV(connection)


@pytest.fixture
def uri(tmp_path: Path) -> Iterator[str]:
    """A volume that several connections can open."""
    with nothing_left_mounted():
        yield mount(tmp_path)


# ---- reading and writing


def test_reading_creates_nothing(kv: KV, connection: apsw.Connection) -> None:
    assert kv.get("a") is None
    assert kv.get("a", "else") == "else"
    assert kv.get_bytes("a", b"else") == b"else"
    assert not kv.exists("a")
    assert not kv.delete("a")
    assert (kv.keys(), kv.items(), list(kv), len(kv)) == ([], [], [], 0)
    assert tables(connection) == []


def test_what_is_set_can_be_read(kv: KV) -> None:
    kv.set("a", "text")
    kv.set_bytes("b", b"\xff\0")
    kv.set_bytes("c", bytearray("grün", "utf-8"))
    kv.set_bytes("d", memoryview(b"view"))
    assert (kv.get("a"), kv.get_bytes("a")) == ("text", b"text")
    assert kv.get_bytes("b") == b"\xff\0"
    assert (kv.get("c"), kv.get("d")) == ("grün", "view")
    kv.set("a", "")
    assert (kv.get("a"), kv.get_bytes("a"), kv.exists("a")) == ("", b"", True)


@pytest.mark.parametrize("key", ["", "x" * 1_000_000, "a\0b", "%", "'", '"', "ключ", "\U0010ffff"])
def test_any_text_is_a_key(kv: KV, key: str) -> None:
    kv.set(key, "value")
    assert kv.get(key) == "value"
    assert kv.keys() == [key]
    assert kv.keys(key) == [key]
    assert not kv.exists(key + "x")
    assert kv.delete(key)
    assert not kv.exists(key)


@pytest.mark.parametrize("key", [None, 1, b"a", ("a",)])
def test_nothing_else_is_a_key(kv: KV, key: Any) -> None:
    uses: list[Callable[[], object]] = [
        *(lambda: kv.get(key), lambda: kv.get_bytes(key), lambda: kv.exists(key)),
        *(lambda: kv.set(key, "x"), lambda: kv.set_bytes(key, b"x"), lambda: kv.incr(key)),
        *(lambda: kv.delete(key), lambda: kv.keys(key), lambda: kv.items(key), lambda: kv[key]),
    ]
    for use in uses:
        with pytest.raises(TypeError, match=f"^Keys are str; this one is {type(key).__name__}"):
            use()
    assert key not in kv
    assert kv.keys() == []


@pytest.mark.parametrize("bad", ["\ud800", "secret\udfff"])
def test_half_a_character_is_neither_key_nor_value(
    kv: KV, connection: apsw.Connection, bad: str
) -> None:
    uses: list[Callable[[], object]] = [
        *(lambda: kv.get(bad), lambda: kv.exists(bad), lambda: kv.keys(bad), lambda: kv[bad]),
        *(lambda: kv.set(bad, "x"), lambda: kv.incr(bad), lambda: kv.delete(bad)),
        *(lambda: kv.set_bytes(bad, b"x"), lambda: kv.set("key", bad)),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="lone surrogate") as caught:
            use()
        assert "secret" not in str(caught.value)
        assert caught.value.__suppress_context__, "the error below has the whole text"
    assert bad not in kv
    assert tables(connection) == []


def test_values_of_other_types_are_refused(kv: KV) -> None:
    kv.set("a", "before")
    bad: Any
    for bad in (None, 1, b"x"):
        with pytest.raises(TypeError, match=r"^Could not set 'a'.*set_bytes\(\)"):
            kv.set("a", bad)
    for bad in (None, 1, "x", [1]):
        with pytest.raises(TypeError, match=r"^Could not set 'a'.*set\(\)"):
            kv.set_bytes("a", bad)
    assert kv.get("a") == "before"


def test_a_value_larger_than_sqlite_takes_changes_nothing(
    kv: KV, connection: apsw.Connection
) -> None:
    kv.set("a", "before")
    connection.limit(apsw.SQLITE_LIMIT_LENGTH, 1000)
    with pytest.raises(apsw.TooBigError):
        kv.set("a", "x" * 1001)
    assert kv.get("a") == "before"


def test_bytes_that_are_no_text_are_said_to_be(kv: KV) -> None:
    kv.set_bytes("k" * 100, b"secret\xff")
    for read in (lambda: kv.get("k" * 100), lambda: kv["k" * 100], kv.items):
        with pytest.raises(ValueError, match=r"^Could not read 'k{60}\.\.\.' as text.*get_bytes"):
            read()
    with pytest.raises(ValueError, match="no UTF-8") as caught:
        kv.get("k" * 100)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_text_that_is_no_text_reads_like_bytes(kv: KV, connection: apsw.Connection) -> None:
    kv.set("a", "text")
    connection.execute("UPDATE kvstore SET value = CAST(x'736563726574ff' AS TEXT)")
    assert kv.get_bytes("a") == b"secret\xff"
    for read in (lambda: kv.get("a"), lambda: kv["a"], kv.items):
        with pytest.raises(ValueError, match=r"^Could not read 'a' as text.*get_bytes"):
            read()


def test_numbers_that_sql_put_there_read_as_text(kv: KV, connection: apsw.Connection) -> None:
    connection.execute("INSERT INTO bh_kv(key, value) VALUES ('i', 5), ('r', 0.5)")
    assert kv.items() == [("i", "5"), ("r", "0.5")]
    assert (kv.get_bytes("i"), kv.get_bytes("r")) == (b"5", b"0.5")


def test_a_dict_of_strings(kv: KV) -> None:
    kv["b"] = "2"
    kv["a"] = "1"
    assert (kv["a"], "a" in kv, "c" in kv, len(kv), list(kv)) == ("1", True, False, 2, ["a", "b"])
    assert dict(kv) == {"a": "1", "b": "2"} == dict(kv.items())
    del kv["a"]
    for missing in (lambda: kv["a"], lambda: kv.__delitem__("a")):
        with pytest.raises(KeyError, match="a"):
            missing()


def test_what_the_connection_makes_of_rows_is_its_own_matter(
    kv: KV, connection: apsw.Connection
) -> None:
    kv.set("a", "1")
    connection.row_trace = lambda cursor, row: {"traced": row}
    assert (kv.get("a"), kv.items(), kv.incr("a"), len(kv)) == ("1", [("a", "1")], 2, 1)


# ---- prefixes

NASTY = st.text(alphabet="abÿ%_*[?\\\ud7ff\ue000\U0010fffe\U0010ffff", max_size=4)


@settings(max_examples=150, deadline=None)
@given(
    keys=st.sets(NASTY, max_size=12), prefix=NASTY, encoding=st.sampled_from(["UTF-8", "UTF-16le"])
)
def test_prefixes_are_literal(keys: set[str], prefix: str, encoding: str) -> None:
    with alone() as connection:
        connection.pragma("encoding", encoding)
        kv = KV(connection)
        for key in keys:
            kv.set(key, key.upper())
        wanted = [key for key in keys if key.startswith(prefix)]
        found = kv.keys(prefix)
        assert sorted(found) == sorted(wanted)
        assert encoding != "UTF-8" or found == sorted(wanted)
        assert dict(kv.items(prefix)) == {key: key.upper() for key in wanted}


def test_keys_can_be_changed_while_one_goes_through_them(kv: KV) -> None:
    for number in range(10):
        kv.set(f"tmp:{number}", "x")
    for key in kv.keys("tmp:"):
        del kv[key]
        kv.set(f"done:{key}", "x")
    assert len(kv.keys("done:")) == len(kv) == 10


# ---- time


def test_an_expired_key_is_absent_at_once(
    kv: KV, clock: Clock, connection: apsw.Connection
) -> None:
    kv.set("a", "1", ttl=10)
    kv.set_bytes("b", b"1", ttl=10.5)
    clock.now += 9.99
    assert (kv.get("a"), kv.exists("b"), kv.keys(), len(kv)) == ("1", True, ["a", "b"], 2)
    clock.now += 0.01
    assert (kv.get("a"), kv.get_bytes("a"), kv.exists("a"), "a" in kv) == (None, None, False, False)
    assert (kv.keys(), kv.items(), list(kv), len(kv)) == (["b"], [("b", "1")], ["b"], 1)
    assert stored(connection) == ["a", "b"]
    assert not kv.delete("a")


def test_the_next_write_sweeps(kv: KV, clock: Clock, connection: apsw.Connection) -> None:
    for number in range(5):
        kv.set(f"{number}", "x", ttl=0.1)
    clock.now += 0.2
    kv.set("a", "x")
    assert stored(connection) == ["a"]
    assert sweeper_of(connection).swept == 5


def test_a_write_sweeps_what_another_connection_has_set(uri: str, clock: Clock) -> None:
    one, other = Connection(uri), Connection(uri)
    KV(one).set("warm", "up")
    KV(other).set("a", "x", ttl=0.1)
    other.execute("INSERT INTO bh_kv(key, value, expires_at) VALUES ('b', 'x', ?)", (clock.now,))
    clock.now += 0.2
    KV(one).set("c", "x")
    assert stored(one) == ["c", "warm"]
    assert sweeper_of(other).swept == 2


def test_what_only_the_table_knows_is_swept_a_second_later(
    kv: KV, clock: Clock, connection: apsw.Connection
) -> None:
    for _ in range(2):  # the first one makes the table, the second looks for the first time
        kv.set("a", "5")
    kv.set("b", "5")
    connection.execute("UPDATE kvstore SET created_at = 1, expires_at = ?", (clock.now,))
    assert kv.keys() == []
    assert kv.incr("a") == 1
    kv.set("b", "6")
    rows = connection.execute("SELECT key, value, created_at, expires_at FROM kvstore").fetchall()
    assert rows == [("a", 1, clock.now, None), ("b", "6", clock.now, None)]
    connection.execute("UPDATE kvstore SET expires_at = ? WHERE key = 'a'", (clock.now,))
    kv.set("c", "x")
    assert stored(connection) == ["a", "b", "c"]
    clock.now += 1.0
    kv.set("c", "x")
    assert stored(connection) == ["b", "c"]


def test_to_set_again_is_to_begin_anew(kv: KV, clock: Clock, connection: apsw.Connection) -> None:
    def times() -> object:
        return connection.execute("SELECT created_at, updated_at, expires_at FROM kvstore").get

    began = clock.now
    kv.set("a", "1", ttl=10)
    clock.now += 4
    kv.set("a", "2", ttl=10)
    assert times() == (began, began + 4, began + 14)
    kv.set("a", "3")
    assert times() == (began, began + 4, None)
    kv.set("a", "4", ttl=0.5)
    clock.now += 0.6
    kv.set("a", "5")
    assert times() == (began + 4.6, began + 4.6, None)


@pytest.mark.parametrize(
    "ttl", [0, -1, -0.5, math.nan, math.inf, -math.inf, pytest.param(10**400, id="huge")]
)
def test_a_ttl_is_above_0(kv: KV, ttl: float) -> None:
    kv.set("a", "before")
    with pytest.raises(ValueError, match=r"^Could not set 'a': ttl=.* above 0"):
        kv.set("a", "after", ttl=ttl)
    assert kv.get("a") == "before"


def test_a_ttl_is_a_number(kv: KV) -> None:
    bad: Any
    for bad in ("10", True):
        with pytest.raises(TypeError, match=f"ttl is {type(bad).__name__}, not seconds"):
            kv.set("a", "x", ttl=bad)


# ---- counting


def test_incr(kv: KV) -> None:
    assert [kv.incr("n"), kv.incr("n"), kv.incr("n", 40), kv.incr("n", -50)] == [1, 2, 42, -8]
    assert (kv.get("n"), kv.get_bytes("n")) == ("-8", b"-8")
    kv.set("text", "41")
    kv.set_bytes("bytes", b"41")
    assert (kv.incr("text"), kv.incr("bytes")) == (42, 42)


@pytest.mark.parametrize("value", ["", "x", "1.0", " 1", "1 ", "+1", "01", "1e3", "9" * 19, "1\0"])
def test_what_is_no_integer_is_not_counted(kv: KV, value: str) -> None:
    kv.set("secret", value)
    with pytest.raises(ValueError, match=r"^Could not add to 'secret'.*It is as it was"):
        kv.incr("secret")
    assert kv.get("secret") == value


def test_numbers_end_at_64_bits(kv: KV) -> None:
    largest = 2**63 - 1
    assert kv.incr("n", largest) == largest
    with pytest.raises(ValueError, match="64 bits"):
        kv.incr("n")
    with pytest.raises(ValueError, match="64 bits"):
        kv.incr("n", 2**63)
    assert kv.incr("n", -largest) == 0
    assert kv.incr("n", -(2**63)) == -(2**63)
    bad: Any
    for bad in (1.0, True):
        with pytest.raises(TypeError, match=f"{type(bad).__name__}, not int"):
            kv.incr("n", bad)


def test_a_counter_keeps_its_end_and_begins_again_after_it(kv: KV, clock: Clock) -> None:
    kv.set("n", "5", ttl=10)
    clock.now += 9
    assert kv.incr("n") == 6
    clock.now += 1
    assert kv.incr("n", 3) == 3
    clock.now += 100
    assert kv.incr("n") == 4


class Counting(threading.Thread):
    """Counts up, from an agreed moment on."""

    def __init__(self, kv: KV, barrier: threading.Barrier, times: int) -> None:
        super().__init__()
        self._kv, self._barrier, self._times = kv, barrier, times
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._barrier.wait()
            for _ in range(self._times):
                self._kv.incr("n")
        except BaseException as error:
            self.error = error


@pytest.mark.parametrize("shared", [False, True], ids=["a connection each", "one connection"])
def test_threads_that_count_lose_nothing(uri: str, shared: bool) -> None:
    """From the very first write, which makes the table."""
    one = KV(Connection(uri))
    views = [one if shared else KV(Connection(uri)) for _ in range(4)]
    barrier = threading.Barrier(len(views))
    threads = [Counting(view, barrier, 200) for view in views]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [thread.error for thread in threads] == [None] * len(views)
    assert one.get("n") == "800"


def test_nobody_commits_while_the_table_is_being_made(uri: str) -> None:
    """It looks for the table first: were that a transaction that only reads, a commit of another
    connection would make the first write fail."""
    one, other = apsw.Connection(uri), apsw.Connection(uri)
    other.set_busy_timeout(0)
    tried: list[type] = []

    def commit_in_between(cursor: apsw.Cursor, sql: str, values: object) -> bool:
        if "CREATE TABLE" in sql:
            with pytest.raises(apsw.BusyError) as caught:
                other.execute("CREATE TABLE t(a)")
            tried.append(caught.type)
        return True

    one.exec_trace = commit_in_between
    KV(one).set("a", "1")
    assert tried == [apsw.BusyError]


@pytest.mark.parametrize("write", [lambda kv: kv.incr("n"), lambda kv: kv.set("n", "0")])
def test_a_stale_read_transaction_is_told_so(uri: str, write: Callable[[KV], object]) -> None:
    one, other = apsw.Connection(uri), apsw.Connection(uri)
    KV(one).incr("n")
    one.execute("BEGIN")
    assert KV(one).get("n") == "1"
    KV(other).incr("n")
    with pytest.raises(apsw.BusyError, match="BEGIN IMMEDIATE") as caught:
        write(KV(one))
    assert getattr(caught.value, "extendedresult", None) == apsw.SQLITE_BUSY_SNAPSHOT
    one.execute("ROLLBACK")
    assert KV(one).get("n") == "2"


# ---- the caller's transaction


def test_nothing_commits_the_callers_transaction(kv: KV, connection: apsw.Connection) -> None:
    connection.execute("CREATE TABLE t(a)")
    connection.execute("BEGIN; INSERT INTO t VALUES (1)").fetchall()
    kv.set("a", "1")
    kv.incr("n")
    kv.delete("a")
    assert kv.keys() == ["n"]
    assert connection.in_transaction
    connection.execute("ROLLBACK")
    assert kv.keys() == []
    assert tables(connection) == ["t"]
    assert connection.execute("SELECT count(*) FROM t").get == 0


def test_a_savepoint_undoes_its_part(kv: KV, connection: apsw.Connection) -> None:
    connection.execute("BEGIN")
    kv.set("a", "1")
    connection.execute("SAVEPOINT s")
    kv.set("a", "2")
    kv.set("b", "2")
    connection.execute("ROLLBACK TO s; RELEASE s; COMMIT").fetchall()
    assert kv.items() == [("a", "1")]


def test_the_first_write_within_a_callers_savepoint(kv: KV, connection: apsw.Connection) -> None:
    with connection:
        kv.set("a", "1")
        with pytest.raises(ZeroDivisionError), connection:
            kv.set("b", str(1 // 0))
    assert kv.items() == [("a", "1")]


def test_other_connections_see_it_after_the_commit(uri: str) -> None:
    one, other = Connection(uri), Connection(uri)
    one.execute("BEGIN IMMEDIATE")
    KV(one).set("a", "1")
    assert KV(other).get("a") is None
    one.commit()
    assert KV(other).get("a") == "1"


# ---- against a dict


class AgainstADict(Machine):
    def begin_store(self) -> None:
        self.kv = KV(self.connection)

    def put(self, key: str, value: str, ttl: float | None) -> None:
        self.kv.set(key, value, ttl=ttl)

    def remove(self, key: str) -> None:
        assert self.kv.delete(key) == (key in self.alive())

    @rule(key=KEYS)
    def count(self, key: str) -> None:
        value, created, end = self.alive().get(key, ("0", self.clock.now, None))
        if re.fullmatch(r"0|-?[1-9]\d*", value) is None:
            with pytest.raises(ValueError, match="no integer"):
                self.kv.incr(key)
        else:
            assert self.kv.incr(key) == int(value) + 1
            self.rows[key] = (str(int(value) + 1), created, end)

    def content(self) -> dict[str, Any]:
        alive = self.alive()
        assert self.kv.keys() == sorted(alive)
        assert len(self.kv) == len(alive)
        assert all(self.kv.get(key) == row[0] for key, row in alive.items())
        return {key: (value, *self._times(key)) for key, value in self.kv.items()}

    def _times(self, key: str) -> tuple[float, float | None]:
        sql = "SELECT created_at, expires_at FROM kvstore WHERE key = ?"
        ((created, end),) = self.connection.execute(sql, (key,))
        return created, end


TestAgainstADict = AgainstADict.TestCase
TestAgainstADict.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


# ---- what others left


def test_an_old_table_is_read_as_it_is(kv: KV, connection: apsw.Connection) -> None:
    make_old(connection)
    assert kv.get("old") == "text"
    assert kv.get_bytes("older") == b"\xff"
    assert kv.exists("old")
    assert (kv.keys(), kv.keys("olde"), len(kv)) == (["old", "older"], ["older"], 2)
    assert tables(connection) == ["bh_kv"]


def test_the_first_write_renames_the_old_table(kv: KV, connection: apsw.Connection) -> None:
    make_old(connection)
    connection.execute("CREATE VIEW v AS SELECT key FROM bh_kv")
    kv.set("new", "1", ttl=1000)
    assert tables(connection) == ["kvstore"]
    assert kv.keys() == ["new", "old", "older"]
    rows = connection.execute("SELECT key, created_at, expires_at IS NULL FROM bh_kv").fetchall()
    assert sorted(rows)[1:] == [("old", 1.0, 1), ("older", 3.0, 1)]
    assert connection.execute("SELECT count(*) FROM v").get == 3


def test_deleting_renames_it_too(kv: KV, connection: apsw.Connection) -> None:
    make_old(connection)
    assert kv.delete("old")
    assert stored(connection) == ["older"]


def test_a_rollback_brings_the_old_table_back(kv: KV, connection: apsw.Connection) -> None:
    make_old(connection)
    connection.execute("BEGIN")
    kv.set("new", "1")
    connection.execute("ROLLBACK")
    assert tables(connection) == ["bh_kv"]
    assert kv.keys() == ["old", "older"]
    kv.set("new", "1")
    assert stored(connection) == ["new", "old", "older"]


def test_a_table_bh_kv_of_another_kind_is_left_alone(kv: KV, connection: apsw.Connection) -> None:
    connection.execute("CREATE TABLE bh_kv(key, note)")
    assert kv.keys() == []
    kv.set("a", "1")
    assert tables(connection) == ["bh_kv", "kvstore"]
    assert connection.execute("SELECT count(*) FROM bh_kv").get == 0


def test_a_table_kvstore_of_another_kind_is_said_to_be_in_the_way(
    kv: KV, connection: apsw.Connection
) -> None:
    connection.execute("CREATE TABLE kvstore(key, note)")
    uses: list[Callable[[], object]] = [
        *(lambda: kv.get("a"), kv.keys, lambda: kv.set("a", "1"), lambda: kv.delete("a"))
    ]
    for use in uses:
        with pytest.raises(VolumeError, match=r"'kvstore' of 'main'.*has the columns key, note"):
            use()
    assert not connection.in_transaction
    assert connection.execute("SELECT count(*) FROM kvstore").get == 0


def test_a_table_made_by_hand_gets_its_index(
    kv: KV, clock: Clock, connection: apsw.Connection
) -> None:
    kv.set("a", "1")
    connection.execute("DROP INDEX kvstore_expires")
    connection.execute("UPDATE kvstore SET expires_at = 1.0")
    sweeper_of(connection).due = 0.0
    kv.set("b", "1")
    schema = connection.execute("SELECT name FROM sqlite_schema").fetchall()
    assert ("kvstore_expires",) in schema
    clock.now += 1.0
    kv.set("b", "2")
    assert stored(connection) == ["b"]


# ---- volumes


def test_it_is_still_there_after_another_start(tmp_path: Path) -> None:
    config = directory(tmp_path)
    with nothing_left_mounted():
        with BucketSQLite(config) as bh:
            bh.kv["a"] = "1"
            assert bh.kv is bh.kv
            bh.connection.execute("BEGIN")
            bh.kv["b"] = "2"
            bh.connection.rollback()
        with BucketSQLite(config) as bh:
            assert dict(bh.kv) == {"a": "1"}
        for unusable in (bh, BucketSQLite(config)):
            with pytest.raises(RuntimeError, match=r"^BucketSQLite not started"):
                _ = unusable.kv


def test_other_tools_read_the_image(tmp_path: Path) -> None:
    with nothing_left_mounted():
        with BucketSQLite(directory(tmp_path)) as bh:
            bh.kv.set("a", "1", ttl=1000)
        plain = sqlite3.connect(tmp_path / "bucket" / "x.db")
        assert plain.execute("SELECT key, value FROM kvstore").fetchall() == [("a", "1")]
        assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        plain.close()


def test_who_may_only_read_reads(tmp_path: Path) -> None:
    with nothing_left_mounted():
        with BucketSQLite(directory(tmp_path)) as bh:
            bh.kv.set("a", "1", ttl=1000)
        with BucketSQLite(directory(tmp_path), read_only=True) as reader:
            assert reader.kv.get("a") == "1"
            for write in (lambda: reader.kv.set("a", "2"), lambda: reader.kv.incr("n")):
                with pytest.raises(apsw.ReadOnlyError):
                    write()
            assert dict(reader.kv) == {"a": "1"}


def test_reading_claims_nothing_and_publishes_nothing(uri: str) -> None:
    (volume,) = [volume for volume in registry.volumes() if volume.name in uri]
    kv = KV(Connection(uri))
    assert (kv.get("a"), kv.keys(), len(kv)) == (None, [], 0)
    assert (volume.image.version, volume.image.page_count) == (0, 0)
