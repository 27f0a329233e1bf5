"""``bh_kv`` in SQL: where it is, what it plans, what it answers, and what it undoes."""

import sqlite3
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import buckethead
from buckethead import BucketSQLite, SnapshotConfig
from buckethead.errors import PublicationError, VolumeError
from buckethead.interfaces.kv import KV
from buckethead.interfaces.kvstore import sweeper_of
from buckethead.tables.kv import ROWIDS
from buckethead.uris import uri_of
from kv_tools import Clock, Machine, alone, make_old, mount, stored, tables
from volume_tools import column, directory, nothing_left_mounted


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
def uri(tmp_path: Path) -> Iterator[str]:
    with nothing_left_mounted():
        yield mount(tmp_path)


@pytest.fixture
def pair(tmp_path: Path, uri: str) -> apsw.Connection:
    """A connection with a second volume, attached as ``other``."""
    connection = apsw.Connection(uri)
    connection.execute(f"ATTACH '{mount(tmp_path)}' AS other")
    return connection


def pairs(connection: apsw.Connection, schema: str = "main") -> list[tuple[Any, Any]]:
    sql = "SELECT key, value FROM bh_kv WHERE schema = ? ORDER BY key"
    return [(key, value) for key, value in connection.execute(sql, (schema,))]


def plan_of(connection: apsw.Connection, sql: str, values: tuple[Any, ...] = ()) -> list[str]:
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]


# ---- where it is


def test_every_connection_of_a_volume_has_it(uri: str) -> None:
    apsw.Connection(uri).execute("INSERT INTO bh_kv(key, value) VALUES ('a', 1)")
    elsewhere = apsw.Connection(":memory:")
    elsewhere.execute(f"ATTACH '{uri}' AS volume")
    assert column(elsewhere, "SELECT key FROM bh_kv('volume')") == ["a"]
    read_only = apsw.Connection(f"{uri}&mode=ro")
    assert column(read_only, "SELECT key FROM bh_kv") == ["a"]


def test_it_is_in_no_schema_and_creates_nothing_to_be_read(connection: apsw.Connection) -> None:
    assert connection.execute("SELECT * FROM bh_kv").fetchall() == []
    connection.execute("DELETE FROM bh_kv; UPDATE bh_kv SET value = 1").fetchall()
    assert tables(connection) == []
    connection.execute("INSERT INTO bh_kv(key, value) VALUES ('a', 1)")
    assert tables(connection) == ["kvstore"]


def test_it_shows_what_the_view_in_python_has(connection: apsw.Connection, clock: Clock) -> None:
    kv = KV(connection)
    kv.set("a", "1", ttl=5)
    kv.set_bytes("b", b"\xff")
    now = clock.now
    assert connection.execute("SELECT * FROM bh_kv ORDER BY key").fetchall() == [
        ("a", "1", now, now, now + 5),
        ("b", b"\xff", now, now, None),
    ]
    connection.execute("UPDATE bh_kv SET value = 'new' WHERE key = 'a'")
    assert kv["a"] == "new"


def test_other_tools_open_the_image(tmp_path: Path) -> None:
    with nothing_left_mounted(), BucketSQLite(directory(tmp_path)) as bh:
        bh.connection.execute("INSERT INTO bh_kv(key, value) VALUES ('a', 1)")
    plain = sqlite3.connect(tmp_path / "bucket" / "x.db")
    assert plain.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall() == [
        ("kvstore",)
    ]
    assert plain.execute("SELECT key, value FROM kvstore").fetchall() == [("a", 1)]
    plain.close()


@pytest.mark.parametrize(
    "sql", ["SELECT * FROM bh_kv", "INSERT INTO bh_kv(key, value) VALUES ('a', 1)"]
)
def test_what_is_no_volume_is_refused(sql: str) -> None:
    connection = apsw.Connection(":memory:")
    with pytest.raises(VolumeError, match=r"bh_kv of 'main', which is no volume.*bh_kv\('NAME'\)"):
        connection.execute(sql)
    assert tables(connection) == []


@pytest.mark.parametrize("schema", ["nope", None, 5, b"main"])
def test_a_schema_that_is_not_there_is_refused(connection: apsw.Connection, schema: Any) -> None:
    with pytest.raises(VolumeError, match=r"there is no such schema. Attached are main, temp"):
        connection.execute("SELECT * FROM bh_kv(?)", (schema,))
    with pytest.raises(VolumeError, match="'temp', which is no volume"):
        connection.execute("INSERT INTO bh_kv(schema, key, value) VALUES ('temp', 'a', 1)")


def test_it_keeps_no_connection_alive(uri: str) -> None:
    connection = apsw.Connection(uri)
    connection.execute("INSERT INTO bh_kv(key, value) VALUES ('a', 1)")
    assert column(connection, "SELECT key FROM bh_kv") == ["a"]
    gone = weakref.ref(connection)
    del connection
    assert gone() is None


def test_what_the_connection_makes_of_rows_is_its_own_matter(connection: apsw.Connection) -> None:
    connection.row_trace = lambda cursor, row: {"traced": row}
    connection.execute("INSERT INTO bh_kv(key, value) VALUES ('a', 1)")
    rows: list[Any] = connection.execute("SELECT key, value FROM bh_kv").fetchall()
    assert rows == [{"traced": ("a", 1)}]


# ---- what it plans


@pytest.mark.parametrize(
    ("condition", "plan"),
    [
        ("key = 'b'", "key = ?"),
        ("key IS 'b'", "key = ?"),
        ("key > 'a' AND key <= 'c'", "key > ? AND key <= ?"),
        ("key BETWEEN 'a' AND 'c'", "key >= ? AND key <= ?"),
        ("key GLOB 'a*'", "key >= ? AND key GLOB ?"),
        ("key LIKE 'a%'", "key LIKE ?"),
        ("key IN ('a', 'b')", "key = ?"),
        ("value = 'x' AND key = 'b'", "key = ?"),
        ("true ORDER BY key", "ORDER BY key"),
        ("key < 'x' ORDER BY key DESC LIMIT 3", "key < ? ORDER BY key DESC"),
        ("true ORDER BY key, value", "ORDER BY key"),
        ("key = 'B' COLLATE NOCASE", ""),
        ("value = 'x'", ""),
    ],
)
def test_conditions_and_order_are_handed_on(
    connection: apsw.Connection, condition: str, plan: str
) -> None:
    steps = plan_of(connection, f"SELECT key, value FROM bh_kv WHERE {condition}")
    assert steps == [f"SCAN bh_kv VIRTUAL TABLE INDEX 2:{plan}"]


def test_an_order_by_something_else_is_sorted_by_sqlite(connection: apsw.Connection) -> None:
    for order in ("value", "value, key", "key COLLATE NOCASE", "-key"):
        steps = plan_of(connection, f"SELECT key FROM bh_kv ORDER BY {order}")
        assert steps[-1] == "USE TEMP B-TREE FOR ORDER BY"


def test_the_backing_table_is_searched_by_its_index(connection: apsw.Connection) -> None:
    """The statements of the cursor, as SQLite plans them."""
    connection.execute("INSERT INTO bh_kv(key, value) VALUES ('a', 1)")
    ran: list[str] = []

    def note(cursor: apsw.Cursor, sql: str, values: object) -> bool:
        ran.append(sql)
        return True

    connection.exec_trace = note
    for condition in ("key = 'b'", "key > 'a'", "key GLOB 'a*'", "true ORDER BY key DESC"):
        connection.execute(f"SELECT key FROM bh_kv WHERE {condition}").fetchall()
    connection.exec_trace = None
    inner = [sql for sql in ran if "kvstore" in sql]
    assert len(inner) == 4
    for sql in inner:
        (step,) = plan_of(connection, sql, ("x",) * sql.count("?"))
        assert "USING INDEX sqlite_autoindex_kvstore_1" in step


def test_a_look_up_among_a_million_keys_does_not_scan(connection: apsw.Connection) -> None:
    KV(connection).set("k", "v")
    connection.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000)"
        " INSERT INTO kvstore SELECT printf('k%07d', i), i, 0, 0, NULL FROM n"
    )
    thousands = []

    def note() -> bool:
        thousands.append(1)
        return False

    connection.set_progress_handler(note, 1000)
    for sql, wanted in (
        ("SELECT value FROM bh_kv WHERE key = 'k0777777'", [777777]),
        (
            "SELECT value FROM bh_kv WHERE key GLOB 'k077777?' AND key > 'k0777777'",
            [777778, 777779],
        ),
        ("SELECT value FROM bh_kv WHERE key BETWEEN 'k0500000' AND 'k0500001'", [500000, 500001]),
        ("SELECT value FROM bh_kv ORDER BY key DESC LIMIT 1", [1000000]),
        ("SELECT value FROM bh_kv WHERE key IN ('k0000001', 'k1000000')", [1, 1000000]),
    ):
        assert column(connection, sql) == wanted
    connection.execute("UPDATE bh_kv SET value = 'new' WHERE key = 'k0000005'")
    connection.execute("DELETE FROM bh_kv WHERE key = 'k0000006'")
    connection.execute("INSERT OR REPLACE INTO bh_kv(key, value) VALUES ('k0000007', 0)")
    assert thousands == []
    assert column(connection, "SELECT count(*) FROM kvstore WHERE value <> ''") == [1000000]
    assert len(thousands) > 1000, "this is what a scan looks like"


# ---- what it answers

SHORT = st.text(alphabet="aAB059.%*ÿ\U0010ffff", max_size=3)
ANY = st.one_of(SHORT, st.sampled_from([5, 5.0, 55, None, b"a", b""]))
COMPARISONS = st.sampled_from(["=", "IS", "<", "<=", ">", ">=", "<>", "LIKE", "GLOB"])


@settings(max_examples=200, deadline=None)
@given(
    keys=st.sets(SHORT, min_size=3, max_size=15),
    terms=st.lists(st.tuples(COMPARISONS, ANY, st.sampled_from(["?", "t", "i", "c"])), max_size=3),
    order=st.sampled_from(["", "ORDER BY key", "ORDER BY key DESC", "ORDER BY key COLLATE NOCASE"]),
)
def test_it_answers_as_a_real_table(
    keys: set[str], terms: list[tuple[str, Any, str]], order: str
) -> None:
    """With literals, and beside columns of every affinity."""
    with alone() as connection:
        connection.execute("CREATE TABLE given(n, t TEXT, i INTEGER, c TEXT COLLATE NOCASE)")
        connection.execute("CREATE TABLE real(key TEXT PRIMARY KEY, value)")
        connection.executemany(
            "INSERT INTO bh_kv(key, value) VALUES (?1, ?1)", [(key,) for key in keys]
        )
        connection.execute("INSERT INTO real SELECT key, value FROM bh_kv")
        conditions = ["true"]
        for number, (comparison, value, column_) in enumerate(terms):
            connection.execute("INSERT INTO given VALUES (?1, ?2, ?2, ?2)", (number, value))
            literal = apsw.format_sql_value(value)
            side = literal if column_ == "?" else f"g{number}.{column_}"
            conditions.append(f"key {comparison} {side}")
        joins = "".join(
            f" JOIN given AS g{number} ON g{number}.n = {number}" for number in range(len(terms))
        )
        answers = [
            connection.execute(
                f"SELECT key, value FROM {table}{joins} WHERE {' AND '.join(conditions)} {order}"
            ).fetchall()
            for table in ("bh_kv", "real")
        ]
        if order in ("ORDER BY key", "ORDER BY key DESC"):
            assert answers[0] == answers[1]
        assert sorted(answers[0]) == sorted(answers[1])


def test_numbers_are_compared_as_a_real_table_would(connection: apsw.Connection) -> None:
    connection.executemany(
        "INSERT INTO bh_kv(key, value) VALUES (?, 1)", [("5",), ("05",), ("5.0",), ("10",), ("x",)]
    )
    connection.execute("CREATE TABLE number(i INTEGER)")
    connection.execute("INSERT INTO number VALUES (5)")

    def keys(condition: str, *values: object) -> list[str]:
        sql = f"SELECT key FROM bh_kv JOIN number WHERE {condition} ORDER BY key"
        return [str(key) for (key,) in connection.execute(sql, values)]

    assert keys("key = 5") == keys("key = ?", 5) == ["5"]
    assert keys("key = i") == ["05", "5", "5.0"]
    assert keys("key > i") == ["10", "x"]
    assert keys("key > 5") == ["5.0", "x"]
    assert keys("key < ?", b"") == ["05", "10", "5", "5.0", "x"]
    assert keys("key = ?", None) == keys("key > ?", None) == []


@pytest.mark.parametrize("prefix", ["ÿ", "a\U0010ffff"])
@pytest.mark.parametrize("case", ["0", "1"])
def test_prefixes_after_which_comes_no_character(
    connection: apsw.Connection, prefix: str, case: str
) -> None:
    """SQLite makes ranges of them that end within a character."""
    connection.execute(f"PRAGMA case_sensitive_like = {case}")
    connection.execute("INSERT INTO bh_kv(key, value) VALUES (?, 1), (?, 2)", (prefix, "b"))
    for condition in (f"GLOB '{prefix}*'", f"LIKE '{prefix}%'"):
        found = column(connection, f"SELECT key FROM bh_kv WHERE key {condition} AND key < 'ÿz'")
        assert found == [prefix]


def test_beside_tables_of_the_user(connection: apsw.Connection) -> None:
    connection.execute(
        """CREATE TABLE user(id INTEGER PRIMARY KEY, name TEXT);
        INSERT INTO user VALUES (1, 'ann'), (2, 'ben'), (3, NULL);
        INSERT INTO bh_kv(key, value) VALUES ('seen:1', 'today'), ('ben', 'x');
        CREATE VIEW seen AS SELECT id, value FROM user
            LEFT JOIN bh_kv ON key = 'seen:' || id"""
    ).fetchall()
    assert connection.execute("SELECT * FROM seen ORDER BY id").fetchall() == [
        (1, "today"), (2, None), (3, None)
    ]  # fmt: skip
    named = "SELECT id, value FROM user LEFT JOIN bh_kv ON key = name ORDER BY id"
    assert connection.execute(named).fetchall() == [(1, None), (2, "x"), (3, None)]


def test_a_trigger_writes_to_it(connection: apsw.Connection) -> None:
    connection.execute(
        """CREATE TABLE t(a);
        CREATE TRIGGER counted AFTER INSERT ON t BEGIN
            INSERT OR REPLACE INTO bh_kv(key, value) SELECT 'rows', count(*) FROM t;
        END;
        INSERT INTO t VALUES (1), (2), (3)"""
    ).fetchall()
    assert pairs(connection) == [("rows", 3)]


# ---- writing


def test_returning(connection: apsw.Connection) -> None:
    insert = "INSERT INTO bh_kv(key, value) VALUES ('a', 1), ('b', 2) RETURNING key, value"
    assert connection.execute(insert).fetchall() == [("a", 1), ("b", 2)]
    for sql in ("DELETE FROM bh_kv RETURNING key", "UPDATE bh_kv SET value = 3 RETURNING key"):
        with pytest.raises(apsw.SQLError, match="RETURNING is not available on virtual tables"):
            connection.execute(sql)
    assert pairs(connection) == [("a", 1), ("b", 2)]


def test_times_are_now_unless_they_are_given(connection: apsw.Connection, clock: Clock) -> None:
    times = "SELECT created_at, updated_at, expires_at FROM bh_kv"
    began = clock.now
    connection.execute("INSERT INTO bh_kv(key, value) VALUES ('a', 1)")
    assert connection.execute(times).fetchall() == [(began, began, None)]
    clock.now += 1
    connection.execute("INSERT OR REPLACE INTO bh_kv(key, value) VALUES ('a', 2)")
    assert connection.execute(times).fetchall() == [(began, began + 1, None)]
    clock.now += 1
    connection.execute("UPDATE bh_kv SET expires_at = ?", (began + 50,))
    assert connection.execute(times).fetchall() == [(began, began + 2, began + 50)]
    connection.execute("UPDATE bh_kv SET created_at = 1, updated_at = 0, expires_at = NULL")
    assert connection.execute(times).fetchall() == [(1.0, 0.0, None)]
    connection.execute("REPLACE INTO bh_kv VALUES ('a', 3, 4, 5, 9e9)")
    assert connection.execute(times).fetchall() == [(4.0, 5.0, 9e9)]


CONFLICTS = [
    "INSERT INTO {} VALUES ('c', 1), ('a', 2), ('d', 3)",
    "INSERT OR IGNORE INTO {} VALUES ('c', 1), ('a', 2), ('d', 3)",
    "INSERT OR REPLACE INTO {} VALUES ('c', 1), ('a', 2), ('d', 3)",
    "INSERT OR FAIL INTO {} VALUES ('c', 1), ('a', 2), ('d', 3)",
    "INSERT OR ABORT INTO {} VALUES ('c', 1), ('a', 2), ('d', 3)",
    "INSERT OR ROLLBACK INTO {} VALUES ('c', 1), ('a', 2), ('d', 3)",
    "INSERT OR IGNORE INTO {} VALUES ('c', NULL), (NULL, 2), ('d', 3)",
    "INSERT INTO {} VALUES ('c', 1), ('d', NULL)",
    "INSERT INTO {} VALUES (5, 1), (0.5, 2)",
    "UPDATE {} SET key = 'a' WHERE key = 'b'",
    "UPDATE {} SET key = key",
    "UPDATE {} SET key = key || 'x', value = key",
    "UPDATE OR IGNORE {} SET key = 'a', value = 9",
    "UPDATE OR REPLACE {} SET key = 'a' WHERE key = 'b'",
    "UPDATE OR ROLLBACK {} SET key = 'a' WHERE key = 'b'",
    "UPDATE OR FAIL {} SET key = 'z'",
    "UPDATE {} SET key = NULL WHERE key = 'b'",
    "UPDATE {} SET value = NULL",
    "UPDATE OR IGNORE {} SET value = NULL",
    "DELETE FROM {} WHERE key > 'a'",
    "DELETE FROM {}",
    "INSERT OR REPLACE INTO {} SELECT upper(key), value FROM {}",
]


@pytest.mark.parametrize("sql", CONFLICTS)
@pytest.mark.parametrize("within", [True, False], ids=["transaction", "autocommit"])
def test_it_changes_as_a_real_table(connection: apsw.Connection, sql: str, within: bool) -> None:
    """With the same error, the same rows, and the same transaction left."""
    real = "real(key, value)"
    connection.execute("CREATE TABLE real(key TEXT NOT NULL PRIMARY KEY, value NOT NULL)")
    outcomes = []
    for table in ("real", "bh_kv"):
        if within:
            connection.execute("BEGIN")
        connection.execute(f"INSERT INTO {table}(key, value) VALUES ('a', 'A'), ('b', 'B')")
        into = sql.format(real if table == "real" else "bh_kv(key, value)", table)
        into = into.replace("(key, value) SET", " SET").replace("(key, value) WHERE", " WHERE")
        into = into.removesuffix("(key, value)") if into.startswith("DELETE") else into
        error = None
        try:
            connection.execute(into).fetchall()
        except apsw.Error as caught:
            error = type(caught)
        left = connection.in_transaction
        rows = connection.execute(f"SELECT key, value FROM {table} ORDER BY key").fetchall()
        outcomes.append((error, left, rows))
        if left:
            connection.execute("ROLLBACK")
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ((None, 1, None), "bh_kv.key is to be text"),
        ((b"a", 1, None), "bh_kv.key is to be text"),
        (("new", None, None), "NOT NULL constraint failed: bh_kv.value"),
        (("new", 1, "soon"), "bh_kv.expires_at is to be a time in unix seconds"),
        (("new", 1, b"1"), "bh_kv.expires_at is to be a time in unix seconds"),
        (("a", 1, None), "UNIQUE constraint failed: bh_kv.key"),
    ],
)
def test_what_cannot_be_written(
    connection: apsw.Connection, values: tuple[Any, ...], fault: str
) -> None:
    connection.execute("INSERT INTO bh_kv(key, value) VALUES ('a', 'before'), ('b', 'before')")
    insert = "INSERT {} INTO bh_kv(key, value, expires_at) VALUES (?, ?, ?)"
    with pytest.raises(apsw.ConstraintError, match=f"^{fault}"):
        connection.execute(insert.format(""), values)
    connection.execute(insert.format("OR IGNORE"), values)
    update = "UPDATE {} bh_kv SET key = ?, value = ?, expires_at = ? WHERE key = 'b'"
    with pytest.raises(apsw.ConstraintError, match=fault.replace("failed: bh_kv.key", "failed")):
        connection.execute(update.format(""), values)
    connection.execute(update.format("OR IGNORE"), values)
    assert pairs(connection) == [("a", "before"), ("b", "before")]


@pytest.mark.parametrize("column", ["created_at", "updated_at"])
@pytest.mark.parametrize("time", ["soon", b"1"])
def test_a_time_is_a_number(connection: apsw.Connection, column: str, time: Any) -> None:
    kv = KV(connection)
    kv.set("a", "before")
    for sql in (
        f"INSERT OR REPLACE INTO bh_kv(key, value, {column}) VALUES ('a', 'after', ?)",
        f"UPDATE bh_kv SET value = 'after', {column} = ?",
    ):
        with pytest.raises(apsw.ConstraintError, match=f"^bh_kv.{column} is to be a time in unix"):
            connection.execute(sql, (time,))
    assert kv["a"] == "before"


def test_rowids_and_schemas_are_not_the_users(pair: apsw.Connection) -> None:
    pair.execute("INSERT INTO bh_kv(key, value) VALUES ('a', 1)")
    for sql in (
        "INSERT INTO bh_kv(rowid, key, value) VALUES (5, 'b', 1)",
        "UPDATE bh_kv SET rowid = 5",
        "UPDATE bh_kv SET schema = 'other'",
    ):
        with pytest.raises(apsw.ConstraintError, match="rowid"):
            pair.execute(sql)
    pair.execute("UPDATE bh_kv SET schema = 'main', value = 2")
    assert (pairs(pair), pairs(pair, "other")) == ([("a", 2)], [])


# ---- time


def test_an_expired_key_is_not_there(connection: apsw.Connection, clock: Clock) -> None:
    def insert(key: str, seconds: float | None, how: str = "") -> None:
        end = None if seconds is None else clock.now + seconds
        sql = f"INSERT {how} INTO bh_kv(key, value, expires_at) VALUES (?, ?, ?)"
        connection.execute(sql, (key, how, end))

    insert("a", 0.5)
    insert("b", 100)
    insert("gone", 0)
    assert pairs(connection) == [("a", ""), ("b", "")]
    clock.now += 0.5
    assert pairs(connection) == [("b", "")]
    connection.execute("UPDATE bh_kv SET value = 'x' WHERE key = 'a'")
    assert column(connection, "SELECT count(*) FROM bh_kv WHERE key = 'a'") == [0]
    insert("a", 0.5)
    clock.now += 0.5
    insert("a", None, "OR IGNORE")
    assert pairs(connection) == [("a", "OR IGNORE"), ("b", "")]
    assert sweeper_of(connection).swept > 0


def test_every_kind_of_write_sweeps(connection: apsw.Connection, clock: Clock) -> None:
    for number, sql in enumerate(
        (
            "INSERT INTO bh_kv(key, value) VALUES ('b', 1)",
            "UPDATE bh_kv SET value = 2 WHERE key = 'b'",
            "DELETE FROM bh_kv WHERE key = 'b'",
        ),
        1,
    ):
        connection.execute(
            "INSERT INTO bh_kv(key, value, expires_at) VALUES ('a', 1, ?)", (clock.now + 0.1,)
        )
        clock.now += 0.2
        connection.execute(sql)
        assert "a" not in stored(connection)
        assert sweeper_of(connection).swept == number


def test_a_key_can_become_one_that_has_expired(connection: apsw.Connection, clock: Clock) -> None:
    connection.execute("INSERT INTO bh_kv(key, value) VALUES ('b', 1), ('warm', 'up')")
    connection.execute("INSERT INTO kvstore VALUES ('a', 1, 0, 0, ?)", (clock.now,))
    connection.execute("UPDATE bh_kv SET key = 'a' WHERE key = 'b'")
    assert pairs(connection) == [("a", 1), ("warm", "up")]


def test_inserting_over_a_key_that_has_expired(connection: apsw.Connection, clock: Clock) -> None:
    """One that only the backing table knows to have expired, so that it was not swept."""
    connection.execute("INSERT INTO bh_kv(key, value) VALUES ('b', 1), ('warm', 'up')")
    connection.execute("UPDATE kvstore SET created_at = 1, expires_at = ?", (clock.now,))
    connection.execute("INSERT INTO bh_kv(key, value) VALUES ('b', 2)")
    connection.execute("INSERT OR REPLACE INTO bh_kv(key, value) VALUES ('warm', 3)")
    rows = connection.execute("SELECT key, value, created_at FROM bh_kv ORDER BY key").fetchall()
    assert rows == [("b", 2, clock.now), ("warm", 3, clock.now)]


def test_an_update_that_ends_a_key_is_swept_for(connection: apsw.Connection, clock: Clock) -> None:
    connection.execute("INSERT INTO bh_kv(key, value) VALUES ('a', 1), ('b', 1)")
    connection.execute("UPDATE bh_kv SET expires_at = ? WHERE key = 'a'", (clock.now + 0.1,))
    clock.now += 0.1
    connection.execute("UPDATE bh_kv SET value = 2")
    assert stored(connection) == ["b"]


class AgainstADict(Machine):
    def put(self, key: str, value: str, ttl: float | None) -> None:
        end = None if ttl is None else self.clock.now + ttl
        if key in self.alive() and self.clock.now % 1:
            sql = "UPDATE bh_kv SET value = ?2, expires_at = ?3 WHERE key = ?1"
        else:
            how = "OR REPLACE" if key in self.alive() else ""
            sql = f"INSERT {how} INTO bh_kv(key, value, expires_at) VALUES (?1, ?2, ?3)"
        self.connection.execute(sql, (key, value, end))

    def remove(self, key: str) -> None:
        self.connection.execute("DELETE FROM bh_kv WHERE key = ?", (key,))
        assert self.connection.changes() == (key in self.alive())

    def content(self) -> dict[str, Any]:
        rows = self.connection.execute(
            "SELECT key, value, created_at, expires_at FROM bh_kv ORDER BY key"
        ).fetchall()
        assert [row[0] for row in rows] == sorted(self.alive())
        return {str(key): tuple(rest) for key, *rest in rows}


TestAgainstADict = AgainstADict.TestCase
TestAgainstADict.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


# ---- transactions


def test_nothing_commits_the_callers_transaction(connection: apsw.Connection) -> None:
    connection.execute("BEGIN")
    connection.execute("INSERT INTO bh_kv(key, value) VALUES ('a', 1)")
    connection.execute("UPDATE bh_kv SET value = 2")
    connection.execute("DELETE FROM bh_kv WHERE key = 'x'")
    assert connection.in_transaction
    connection.execute("ROLLBACK")
    assert (tables(connection), pairs(connection)) == ([], [])


FAILING = (
    "INSERT INTO bh_kv(schema, key, value) SELECT '{0}', name, 'new' FROM new",
    "UPDATE bh_kv SET key = 'x', value = 'new' WHERE schema = '{0}'",
    "UPDATE bh_kv SET value = iif(key = 'c', NULL, 'new') WHERE schema = '{0}'",
)


@pytest.mark.parametrize("schema", ["main", "other"])
@pytest.mark.parametrize("sql", FAILING)
@pytest.mark.parametrize("within", [True, False], ids=["transaction", "autocommit"])
def test_a_statement_that_fails_undoes_its_own_part(
    pair: apsw.Connection, schema: str, sql: str, within: bool
) -> None:
    pair.execute("CREATE TEMP TABLE new(name)")
    pair.execute("INSERT INTO new VALUES ('x'), ('y'), ('a')")
    insert = f"INSERT INTO bh_kv(schema, key, value) VALUES ('{schema}', ?, 'old')"
    pair.executemany(insert, [("a",), ("c",)])
    if within:
        pair.execute("BEGIN")
        pair.execute(insert, ("b",))
    before = pairs(pair, schema)
    with pytest.raises(apsw.ConstraintError):
        pair.execute(sql.format(schema))
    assert pairs(pair, schema) == before
    if within:
        pair.execute("COMMIT")
    assert pairs(pair, schema) == before
    assert pair.pragma("integrity_check") == "ok"


@pytest.mark.parametrize("schema", ["main", "other"])
def test_a_first_statement_that_fails_leaves_no_key(pair: apsw.Connection, schema: str) -> None:
    pair.execute("BEGIN")
    with pytest.raises(apsw.ConstraintError):
        pair.execute(
            "INSERT INTO bh_kv(schema, key, value) SELECT ?, column1, 1 FROM (VALUES ('x'), ('x'))",
            (schema,),
        )
    pair.execute("COMMIT")
    assert pairs(pair, schema) == []


def test_a_savepoint_undoes_its_part(pair: apsw.Connection) -> None:
    insert = "INSERT INTO bh_kv(schema, key, value) VALUES ('main', ?1, 1), ('other', ?1, 1)"
    pair.execute(insert, ("a",))
    pair.execute("SAVEPOINT s")
    pair.execute(insert, ("b",))
    pair.execute("DELETE FROM bh_kv WHERE schema IN ('main', 'other') AND key = 'a'")
    assert (pairs(pair), pairs(pair, "other")) == ([("b", 1)], [("b", 1)])
    pair.execute("ROLLBACK TO s; RELEASE s").fetchall()
    assert (pairs(pair), pairs(pair, "other")) == ([("a", 1)], [("a", 1)])


def test_a_stale_read_transaction_is_told_so(uri: str) -> None:
    one, other = apsw.Connection(uri), apsw.Connection(uri)
    one.execute("INSERT INTO bh_kv(key, value) VALUES ('n', 1)")
    one.execute("BEGIN")
    assert pairs(one) == [("n", 1)]
    other.execute("UPDATE bh_kv SET value = value + 1")
    with pytest.raises(apsw.BusyError, match="BEGIN IMMEDIATE") as caught:
        one.execute("UPDATE bh_kv SET value = value + 1")
    assert getattr(caught.value, "extendedresult", None) == apsw.SQLITE_BUSY_SNAPSHOT
    one.execute("ROLLBACK")
    assert pairs(one) == [("n", 2)]


# ---- several volumes


def test_each_schema_has_its_own_keys(pair: apsw.Connection) -> None:
    pair.execute("INSERT INTO bh_kv(key, value) VALUES ('a', 'here'), ('m', 'here')")
    pair.execute(
        "INSERT INTO bh_kv(schema, key, value) VALUES ('other', 'a', 'there'), ('other', 'o', 1)"
    )
    assert (stored(pair), stored(pair, "other")) == (["a", "m"], ["a", "o"])
    assert column(pair, "SELECT key FROM bh_kv ORDER BY key") == ["a", "m"]
    differ = "SELECT h.key, h.value, t.value FROM bh_kv AS h JOIN bh_kv('other') AS t USING (key)"
    assert pair.execute(differ).fetchall() == [("a", "here", "there")]
    everywhere = (
        "SELECT d.name, k.key FROM pragma_database_list AS d, bh_kv(d.name) AS k"
        " WHERE d.name IN ('main', 'other') ORDER BY 1, 2"
    )
    assert pair.execute(everywhere).fetchall() == [
        ("main", "a"), ("main", "m"), ("other", "a"), ("other", "o")
    ]  # fmt: skip
    pair.execute("UPDATE bh_kv SET value = 'new' WHERE schema = 'other' AND key = 'a'")
    pair.execute("DELETE FROM bh_kv WHERE schema = 'other' AND key = 'o'")
    assert pairs(pair) == [("a", "here"), ("m", "here")]
    assert pairs(pair, "other") == [("a", "new")]


def test_a_write_to_an_attached_volume_is_one_to_main_too(tmp_path: Path, uri: str) -> None:
    """SQLite takes the table for one of main. The backing table can be written to by itself."""
    insert = "INSERT INTO bh_kv(schema, key, value) VALUES ('other', 'a', 1)"
    writer = apsw.Connection(uri)
    writer.execute("CREATE TABLE t(a)")
    other = mount(tmp_path)
    read_only = apsw.Connection(f"{uri}&mode=ro")
    read_only.execute(f"ATTACH '{other}&mode=rwc' AS other")
    with pytest.raises(apsw.ReadOnlyError):
        read_only.execute(insert)
    waiting = apsw.Connection(uri)
    waiting.execute(f"ATTACH '{other}' AS other")
    waiting.set_busy_timeout(0)
    writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(apsw.BusyError):
        waiting.execute(insert)
    writer.execute("ROLLBACK")
    waiting.execute(insert)
    assert pairs(waiting, "other") == [("a", 1)]


def test_with_durable_commits_an_attached_volume_is_not_written_to(tmp_path: Path) -> None:
    with nothing_left_mounted():
        durable = SnapshotConfig(interval_seconds=3600.0, durability="commit")
        for name in ("one", "two"):
            buckethead.mount(name, directory(tmp_path, name), durable)
        connection = apsw.Connection(uri_of("one"))
        connection.execute(f"ATTACH '{uri_of('two')}' AS other")
        connection.execute("INSERT INTO bh_kv(key, value) VALUES ('a', 1)")
        with pytest.raises(PublicationError, match="Write to one volume in a transaction"):
            connection.execute("INSERT INTO bh_kv(schema, key, value) VALUES ('other', 'a', 1)")
        KV(apsw.Connection(uri_of("two"))).set("a", "2")
        assert (pairs(connection), pairs(connection, "other")) == ([("a", 1)], [("a", "2")])


def test_copying_between_volumes(pair: apsw.Connection) -> None:
    pair.execute("INSERT INTO bh_kv VALUES ('a', 1, 5, 6, 9e9), ('b', 2, 7, 8, NULL)")
    pair.execute("INSERT INTO bh_kv(schema, key, value) SELECT 'other', key, value FROM bh_kv")
    assert pairs(pair, "other") == [("a", 1), ("b", 2)]


def test_rowids_tell_the_schema(pair: apsw.Connection) -> None:
    pair.execute("INSERT INTO bh_kv(schema, key, value) VALUES ('main', 'a', 1), ('other', 'a', 1)")
    assert column(pair, "SELECT rowid FROM bh_kv") == [1]
    number = pair.db_names().index("other")
    assert column(pair, "SELECT rowid FROM bh_kv('other')") == [number * ROWIDS + 1]


# ---- what older versions left


def test_an_old_table_is_itself_until_the_layer_writes(connection: apsw.Connection) -> None:
    make_old(connection)
    rows = "SELECT key, created_at FROM bh_kv ORDER BY key"
    assert connection.execute(rows).fetchall() == [("old", 1.0), ("older", 3.0)]
    connection.execute("DELETE FROM bh_kv WHERE key = 'older'")
    assert tables(connection) == ["bh_kv"]
    KV(connection).set("new", "1")
    assert tables(connection) == ["kvstore"]
    assert column(connection, "SELECT key FROM bh_kv WHERE expires_at IS NULL ORDER BY key") == [
        "new", "old"
    ]  # fmt: skip


def test_an_attached_old_table(pair: apsw.Connection) -> None:
    """It hides the virtual table, except under the name of another schema."""
    make_old(pair, "other")
    assert column(pair, "SELECT key FROM bh_kv ORDER BY key") == ["old", "older"]
    assert column(pair, "SELECT key FROM main.bh_kv") == []
    look = "SELECT key, expires_at FROM main.bh_kv('other') WHERE key >= 'old' ORDER BY key DESC"
    assert pair.execute(look).fetchall() == [("older", None), ("old", None)]
    pair.execute("UPDATE main.bh_kv SET value = 'new' WHERE schema = 'other' AND key = 'old'")
    assert tables(pair, "other") == ["kvstore"]
    assert pairs(pair, "other") == [("old", "new"), ("older", b"\xff")]
