"""Databases of buckethead 0.1 to 0.4: plain SQLite files at the key, with real tables.

They open as they are, every layer reads and writes what is in them, and what is written then opens
in plain SQLite, with the tables of those versions in the form they had.
"""

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from buckethead import BucketSQLite, SnapshotConfig
from buckethead.config import BucketConfig, ShareConfig
from buckethead.files.tracker import LocalFileTracker
from buckethead.storage.layout import Place
from golden.make import BH_KEY, BLOB, FOLDER, FORMS, KV, OLD_SHARE, write
from volume_tools import NEVER, column, directory, nothing_left_mounted, without_settings

KEPT = ("bh_docs", "filestore", "bh_local_files", "filestore_shares", "visit", "visits", "visit_at")
"""What those versions and the user's own programs find unchanged."""

ONCE = SnapshotConfig(interval_seconds=3600.0, min_interval_seconds=0.0, checkpoint="stop")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    without_settings(monkeypatch, tmp_path)
    with nothing_left_mounted():
        yield


class Old:
    """A bucket as one of those versions left it."""

    def __init__(self, root: Path, image: bytes, key: str = "app.db") -> None:
        self.config = directory(root, key)
        self.folder = root / "bucket"
        self.image = self.folder / key
        self.before = image
        self.image.parent.mkdir(parents=True)
        self.image.write_bytes(image)
        blob = self.folder / "files" / BH_KEY
        blob.parent.mkdir()
        blob.write_bytes(BLOB)

    def opened(self, **how: Any) -> BucketSQLite:
        return BucketSQLite(self.config, None if how else ONCE, **how)

    def objects(self) -> dict[str, bytes]:
        """Every object in the bucket."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}


@pytest.fixture(params=FORMS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Old:
    """Each of the golden files, at the key."""
    return Old(tmp_path, (FOLDER / f"{request.param}.db").read_bytes())


@pytest.fixture
def plain_old(tmp_path: Path) -> Old:
    return Old(tmp_path, (FOLDER / "plain.db").read_bytes())


def columns(connection: apsw.Connection, table: str) -> list[str]:
    return [name for name, *_ in connection.execute(f"SELECT * FROM {table}").get_description()]


def real_tables(connection: apsw.Connection) -> set[str]:
    return {*column(connection, "SELECT name FROM sqlite_schema WHERE type = 'table'")}


def forms_in(image: Path) -> dict[str, str]:
    """What `sqlite3` finds in a database file, by name; the file must be sound."""
    assert asked(image, "PRAGMA integrity_check") == [("ok",)]
    return dict(asked(image, "SELECT name, sql FROM sqlite_schema"))


def asked(image: Path, sql: str) -> list[tuple[Any, ...]]:
    """What `sqlite3` answers from a file."""
    with closing(sqlite3.connect(image)) as plain:
        return plain.execute(sql).fetchall()


# ---- reading


def test_it_opens_as_it_is_and_reading_changes_nothing(old: Old) -> None:
    before = old.objects()
    with old.opened() as db:
        assert (db.kv["greeting"], db.kv["count"]) == ("grün", "41")
        assert db.kv.get_bytes("raw") == b"\xff\x00"
        assert db.kv.keys() == sorted(key for key, _ in KV)
        assert db.kv.keys("g") == ["greeting"]
        people = db.docs.collection("people")
        assert [found["name"] for found in people.find({"age": {"$gt": 10}}, sort="age")] == [
            "Al",
            "Zoë",
        ]
        assert people.get("2") == {"name": "Al", "age": 20, "_id": "2"}
        assert db.files.get(BH_KEY) == BLOB
        assert [file.filename for file in db.files.list()] == ["file.txt"]
        assert column(db.connection, "SELECT number FROM visits ORDER BY page") == [1, 2]
        assert not db.force_flush().uploaded
        assert (db.stats.txid, db.stats.dirty_pages) == (0, 0)
        assert "bh_kv" in real_tables(db.connection)
    assert old.objects() == before


def test_who_may_only_read_reads_it(old: Old) -> None:
    before = old.objects()
    with old.opened(read_only=True) as db:
        assert db.kv.items("c") == [("count", "41")]
        assert column(db.connection, "SELECT filename FROM bh_files") == ["file.txt"]
        with pytest.raises(apsw.ReadOnlyError):
            db.kv.set("new", "x")
        assert db.kv["greeting"] == "grün"
    assert old.objects() == before


# ---- writing


def test_every_layer_writes_to_it(old: Old, tmp_path: Path) -> None:
    (tmp_path / "before.db").write_bytes(old.before)
    forms = forms_in(tmp_path / "before.db")
    with old.opened() as db:
        db.kv.set("new", "x", ttl=1000.0)
        assert db.kv.incr("count") == 42
        people = db.docs.collection("people")
        people.insert({"name": "Eve"}, id="3")
        people.update("1", {"age": 31})
        odd = db.docs.collection("odd")
        assert [math.isnan(found["value"]) for found in odd.all()] == [True]
        odd.update("nan", {"value": None})
        new_file = db.files.put(b"new", filename="new.txt")
        db.connection.execute("INSERT INTO visit(page) VALUES ('new')")
    assert old.image.read_bytes()[18:20] == b"\x01\x01", "WAL needs more than one file"
    now = forms_in(old.image)
    assert {name: now[name] for name in KEPT} == {name: forms[name] for name in KEPT}
    assert "bh_kv" not in now
    rows = "SELECT key, value, created_at, expires_at IS NULL FROM kvstore ORDER BY key"
    assert asked(old.image, rows)[:2] == [("count", 42, 1.0, 1), ("greeting", "grün", 1.0, 1)]
    docs = "SELECT id, doc ->> 'age', created_at FROM bh_docs WHERE collection = 'people'"
    assert asked(old.image, docs)[:2] == [("1", 31, 1.0), ("2", 20, 1.0)]
    names = asked(old.image, "SELECT filename FROM filestore ORDER BY filename")
    assert names == [("file.txt",), ("new.txt",)]
    assert asked(old.image, "SELECT page, at FROM visit WHERE id > 3") == [("new", 1.0)]
    with old.opened() as db:
        assert (db.kv["count"], db.kv["new"], len(db.kv)) == ("42", "x", 4)
        assert db.docs.collection("people").count() == 3
        assert (db.files.get(BH_KEY), db.files.get(new_file)) == (BLOB, b"new")


def test_the_image_that_was_there_is_kept(old: Old) -> None:
    with old.opened() as db:
        db.kv.set("new", "x")
    assert Path(f"{old.image}.prev").read_bytes() == old.before


@pytest.mark.parametrize("pragma", ["page_size", "encoding", "auto_vacuum"])
def test_its_form_stays(old: Old, pragma: str) -> None:
    before = asked(old.image, f"PRAGMA {pragma}")
    with old.opened() as db:
        db.kv.set("new", "x")
        assert [(db.connection.pragma(pragma),)] == before
    assert asked(old.image, f"PRAGMA {pragma}") == before


@pytest.mark.parametrize("page_size", [512, 8192, 65536])
@pytest.mark.parametrize("vacuum", ["none", "incremental"])
def test_other_page_sizes(tmp_path: Path, page_size: int, vacuum: str) -> None:
    pragmas = (f"page_size={page_size}", f"auto_vacuum={vacuum}")
    old = Old(tmp_path, write(tmp_path / "made.db", *pragmas))
    with old.opened() as db:
        db.kv.set("new", "x")
        db.connection.execute("DROP TABLE visit; PRAGMA incremental_vacuum; VACUUM").fetchall()
    assert "visit" not in forms_in(old.image)
    with old.opened() as db:
        assert (db.kv["new"], db.stats.page_size) == ("x", page_size)
        assert db.docs.collection("people").count() == 2


def test_a_rollback_leaves_it_as_it_was(old: Old) -> None:
    with old.opened() as db:
        db.connection.execute("BEGIN")
        db.kv.set("new", "x")
        db.docs.collection("people").insert({}, id="3")
        db.connection.rollback()
        assert "bh_kv" in real_tables(db.connection)
        assert db.kv.keys() == sorted(key for key, _ in KV)
    assert old.image.read_bytes() == old.before


# ---- what bh_kv means in SQL


def test_bh_kv_is_the_real_table_until_the_layer_writes(old: Old) -> None:
    with old.opened() as db:
        connection = db.connection
        assert columns(connection, "bh_kv") == ["key", "value", "created_at", "updated_at"]
        connection.execute("INSERT INTO bh_kv VALUES ('by SQL', 'x', 5.0, 5.0)")
        assert db.kv["by SQL"] == "x"
        assert "bh_kv" in real_tables(connection), "SQL alone renames nothing"
        db.kv.delete("raw")
        assert {"bh_kv", "kvstore"} & real_tables(connection) == {"kvstore"}
        assert columns(connection, "bh_kv")[-1] == "expires_at"
        connection.execute("INSERT INTO bh_kv(key, value) VALUES ('by SQL, too', 'y')")
        assert db.kv.items("by") == [("by SQL", "x"), ("by SQL, too", "y")]
        created = "SELECT created_at FROM bh_kv WHERE key = 'greeting'"
        assert column(connection, created) == [1.0]


def test_a_prepared_statement_goes_over_from_the_one_to_the_other(plain_old: Old) -> None:
    with plain_old.opened() as db:
        other = db.connect()
        value = "SELECT value FROM bh_kv WHERE key = 'greeting'"
        assert column(other, value) == ["grün"]
        db.kv.set("greeting", "new")
        assert column(other, value) == ["new"]
        other.close()


# ---- files that were tracked and shared


def test_tracked_files_go_on_being_tracked(old: Old, tmp_path: Path) -> None:
    with old.opened() as db:
        tracker = LocalFileTracker(db.connection, db.files)
        known = tracker.current("/data/file.txt")
        assert known is not None
        assert (known.bh_key, known.size, known.tracked_at) == (BH_KEY, len(BLOB), None)
        assert tracker.sync().missing == 1
        (tmp_path / "new.txt").write_bytes(BLOB)
        tracker.track(tmp_path / "new.txt")
    rows = asked(old.image, "SELECT path, bh_key, size FROM bh_local_files ORDER BY path")
    assert rows[0] == ("/data/file.txt", BH_KEY, len(BLOB))
    assert rows[1:] == [(str(tmp_path / "new.txt"), BH_KEY, len(BLOB))]


def test_shares_are_listed_and_made_anew(old: Old, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    where = ShareConfig(
        bucket="s",
        endpoint_url=(tmp_path / "shared").as_uri(),
        public=True,
        public_base_url="https://files.example.com",
    )
    with BucketSQLite(old.config, ONCE, share_config=where) as db:
        (known,) = db.shares.list()
        assert (known.share_key, known.bh_key, known.created_at) == (OLD_SHARE, BH_KEY, 4.0)
        made = db.shares.share(BH_KEY)
        assert db.shares.sweep().removed == ()
        assert {share.share_key for share in db.shares.list()} == {OLD_SHARE, made.share_key}
        assert db.shares.unshare(OLD_SHARE)
    assert (tmp_path / "shared" / made.share_key).read_bytes() == BLOB
    rows = asked(old.image, "SELECT share_key, bh_key FROM filestore_shares")
    assert rows == [(made.share_key, BH_KEY)]


# ---- more than one image


def test_the_images_of_branches_and_the_one_before(tmp_path: Path) -> None:
    main = (FOLDER / "plain.db").read_bytes()
    old = Old(tmp_path, main)
    branch = old.folder / Place("app.db", "x").image
    branch.write_bytes(write(tmp_path / "made.db", "page_size=1024"))
    previous = old.folder / Place("app.db").previous
    previous.write_bytes((FOLDER / "wal.db").read_bytes())
    of_branch = BucketConfig(**(dict(old.config) | {"initial_branch": "x"}))
    with BucketSQLite(of_branch, NEVER) as db:
        assert (db.kv["greeting"], db.stats.page_size) == ("grün", 1024)
        db.kv.set("greeting", "of x")
    assert old.image.read_bytes() == main
    with old.opened() as db:
        assert db.kv["greeting"] == "grün"
        beside = apsw.Connection(f"{db.uri}&branch=x")
        assert column(beside, "SELECT value FROM bh_kv WHERE key = 'greeting'") == ["of x"]
        beside.close()
        assert {found.name for found in db.branches.list()} == {"main", "x"}
    assert asked(branch, "SELECT value FROM kvstore WHERE key = 'greeting'") == [("of x",)]
    assert previous.read_bytes() == (FOLDER / "wal.db").read_bytes(), "nothing was written to main"
