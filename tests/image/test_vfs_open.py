"""Opening: the one line that must work, every door that must be shut, and nothing left on disk.

What depends on how the process began (URI names on or off, no bucket configured) runs in child
processes, whose folder is looked at afterwards.
"""

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import pytest

import buckethead
from buckethead.connection import Connection
from buckethead.core import registry
from buckethead.uris import uri_of

if TYPE_CHECKING:
    from image.conftest import Child, Volumes

ODD_NAMES = [
    "a b",
    "100%",
    "%41",
    "what?",
    "a#b",
    "a&mode=ro",
    "käse",
    "数据",
    "it's",
    "semi;colon",
    "folder/name",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where child processes run."""
    return tmp_path / "child"


def series(count: int) -> str:
    return f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"


def files(folder: Path) -> list[str]:
    """What lies in a folder, but for the history and the insides of the default bucket."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not {".buckethead", "app.db.ltx"} & {*path.parts}
    )


# -- the one line -------------------------------------------------------------------------------


def test_the_quoted_line_with_default_flags_persists_into_the_default_bucket(
    child: "Child", folder: Path
) -> None:
    write = child(
        "import apsw, buckethead\n"
        'db = apsw.Connection("file:app?vfs=buckethead")\n'
        "db.execute('CREATE TABLE t(x)'); db.execute('INSERT INTO t VALUES (42)')\n"
    )
    assert write.returncode == 0, write.stderr
    assert str(folder / "buckethead-data") in write.stderr, "a new bucket is named once"
    assert files(folder) == ["buckethead-data/app.db"]

    read = child(
        "import apsw, buckethead\n"
        'db = apsw.Connection("file:app?vfs=buckethead")\n'
        "print(db.execute('SELECT x FROM t').get)\n"
    )
    assert (read.stdout, read.stderr) == ("42\n", "")
    assert files(folder) == ["buckethead-data/app.db"]


def test_a_volume_has_a_busy_timeout_and_its_journal_in_memory(volumes: "Volumes") -> None:
    connection = volumes.open()
    assert connection.pragma("busy_timeout") == 5000
    assert connection.pragma("journal_mode") == "memory"


# -- imported too late --------------------------------------------------------------------------

LATE = """
import apsw
early = apsw.Connection(":memory:")
import buckethead
"""


def test_too_late_for_uri_names_says_why_and_what_to_do(child: "Child", folder: Path) -> None:
    result = child(f'{LATE}apsw.Connection("file:app?vfs=buckethead")')
    *_, error = result.stderr.splitlines()
    assert error.startswith("buckethead.errors.ConfigError: Could not open 'file:app?vfs=")
    assert "connections were open when buckethead was imported" in error
    assert "Import buckethead before" in error
    assert "SQLITE_OPEN_URI" in error
    assert files(folder) == [], "the literal file is removed"


@pytest.mark.parametrize("uri", ["file:a?vfs=buckethead&mode=rw", "file:a?mode=rwc&vfs=buckethead"])
def test_too_late_is_noticed_wherever_the_parameter_stands(
    child: "Child", folder: Path, uri: str
) -> None:
    result = child(f"{LATE}apsw.Connection({uri!r})")
    assert "ConfigError" in result.stderr
    assert files(folder) == []


def test_too_late_never_removes_a_file_with_content(child: "Child", folder: Path) -> None:
    someones = folder / "file:app?vfs=buckethead"
    with closing(sqlite3.connect(someones)) as disk:
        disk.execute("CREATE TABLE t(x)")
    content = someones.read_bytes()
    result = child(f'{LATE}apsw.Connection("file:app?vfs=buckethead")')
    assert "ConfigError" in result.stderr
    assert someones.read_bytes() == content


def test_too_late_leaves_other_connections_alone(child: "Child") -> None:
    result = child(
        f"{LATE}"
        "early.execute('CREATE TABLE t(x)')\n"
        "apsw.Connection('file:other.db').execute('CREATE TABLE t(x)')\n"
        "print(early.execute('SELECT count(*) FROM t').get)\n"
    )
    assert (result.stdout, result.stderr) == ("0\n", "")


def test_too_late_can_be_cured_as_the_message_says(child: "Child", folder: Path) -> None:
    result = child(
        f"{LATE}"
        "flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI\n"
        'apsw.Connection("file:app?vfs=buckethead", flags=flags).execute("CREATE TABLE t(x)")\n'
    )
    assert result.returncode == 0, result.stderr
    assert files(folder) == ["buckethead-data/app.db"]


def test_import_keeps_a_vfs_that_was_registered_before(child: "Child") -> None:
    result = child(
        "import apsw\n"
        "class Mine(apsw.VFS):\n"
        "    def __init__(self): super().__init__('mine', '')\n"
        "mine = Mine()\n"
        "import buckethead\n"
        "print('mine' in apsw.vfs_names(), apsw.vfs_names()[0] != 'buckethead')\n"
    )
    assert (result.stdout, result.stderr) == ("True True\n", "")


# -- doors that are shut ------------------------------------------------------------------------

REFUSED = {
    "file:db?vfs=buckethead&mode=memory": "leave mode=memory out",
    "file:?vfs=buckethead": "Give a name",
    "file:db?vfs=buckethead&nolock=1": "'nolock' is not one of",
    "file:db?vfs=buckethead&immutable=1": "'immutable' is not one of",
    "file:db?vfs=buckethead&colour=red": "'colour' is not one of at, branch, bucket, endpoint_url",
    "file:db?vfs=buckethead&endpoint_url=nonsense": "endpoint_url",
}


@pytest.mark.parametrize(("uri", "remedy"), REFUSED.items())
def test_refused(volumes: "Volumes", uri: str, remedy: str) -> None:
    with pytest.raises(buckethead.ConfigError, match="Could not open") as caught:
        apsw.Connection(uri)
    assert remedy in str(caught.value)
    assert registry.get("db") is None, "a refused door mounts nothing"


# SQLite makes these private databases without asking the VFS, and ATTACH has no hook
UNSEEN_BY_ATTACH = ["file:db?vfs=buckethead&mode=memory", "file:?vfs=buckethead"]


@pytest.mark.parametrize("uri", [uri for uri in REFUSED if uri not in UNSEEN_BY_ATTACH])
def test_refused_to_attach(volumes: "Volumes", uri: str) -> None:
    connection = apsw.Connection(":memory:")
    with pytest.raises(buckethead.ConfigError):
        connection.execute("ATTACH ? AS other", (uri,))
    assert connection.db_names() == ["main", "temp"]


@pytest.mark.parametrize("uri", UNSEEN_BY_ATTACH)
def test_what_attach_cannot_refuse_does_not_reach_a_volume(volumes: "Volumes", uri: str) -> None:
    volume = volumes.mount()
    connection = apsw.Connection(":memory:")
    connection.execute("ATTACH ? AS other", (uri,))
    connection.execute("CREATE TABLE other.t(x)")
    assert volume.image.version == 0
    assert not volume.changed


@pytest.mark.parametrize(
    "parameter",
    ["access_key_id", "secret_access_key", "session_token", "Password", "X-Amz-Signature"],
)
def test_a_credential_in_a_uri_is_refused_and_not_repeated(
    volumes: "Volumes", parameter: str
) -> None:
    with pytest.raises(buckethead.ConfigError, match="carries a credential") as caught:
        apsw.Connection(f"file:db?vfs=buckethead&{parameter}=hunter2-hunter2")
    assert "hunter2" not in str(caught.value) + repr(caught.value)


def test_a_credential_in_an_endpoint_is_refused_and_not_repeated(volumes: "Volumes") -> None:
    with pytest.raises(buckethead.ConfigError) as caught:
        apsw.Connection("file:db?vfs=buckethead&bucket=b&endpoint_url=https://me:hunter2@host")
    assert "hunter2" not in str(caught.value) + repr(caught.value)


def test_refused_doors_leave_nothing_on_disk(child: "Child", folder: Path) -> None:
    result = child(
        "import sys, apsw, buckethead\n"
        "for uri in sys.argv[1:]:\n"
        "    try: apsw.Connection(uri)\n"
        "    except buckethead.ConfigError: continue\n"
        "    sys.exit(uri + ' was opened')\n",
        *REFUSED,
        "file:db?vfs=buckethead&secret_access_key=x",
    )
    assert result.returncode == 0, result.stderr
    assert files(folder) == []
    assert not (folder / "buckethead-data").exists()


def test_another_key_for_a_mounted_name_is_refused(volumes: "Volumes") -> None:
    volumes.mount()
    with pytest.raises(buckethead.ConfigError, match="another key"):
        apsw.Connection("file:db?vfs=buckethead&key=other.db")


# -- mode ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ro", "rw"])
def test_modes_that_create_nothing_need_a_database(volumes: "Volumes", mode: str) -> None:
    volumes.mount()
    with pytest.raises(buckethead.ObjectNotFoundError, match="mode=rwc to create it"):
        apsw.Connection(f"file:db?vfs=buckethead&mode={mode}")


@pytest.mark.parametrize("mode", ["ro", "rw"])
def test_modes_that_create_nothing_do_not_create_the_default_bucket(
    volumes: "Volumes", mode: str
) -> None:
    with pytest.raises(buckethead.BucketHeadError, match="buckethead-data"):
        apsw.Connection(f"file:db?vfs=buckethead&mode={mode}")
    assert registry.get("db") is None


def test_read_only_joins_the_live_volume_and_cannot_write(volumes: "Volumes") -> None:
    writer = volumes.open()
    writer.execute("CREATE TABLE t(x)")
    reader = apsw.Connection("file:db?vfs=buckethead&mode=ro")
    writer.execute("INSERT INTO t VALUES (1)")
    assert reader.execute("SELECT x FROM t").get == 1
    assert reader.readonly("main")
    with pytest.raises(apsw.ReadOnlyError):
        reader.execute("INSERT INTO t VALUES (2)")
    assert writer.execute("SELECT count(*) FROM t").get == 1


def test_read_write_opens_what_is_there(volumes: "Volumes") -> None:
    volumes.open().execute("CREATE TABLE t(x)")
    connection = apsw.Connection("file:db?vfs=buckethead&mode=rw")
    connection.execute("INSERT INTO t VALUES (1)")
    assert connection.execute("SELECT count(*) FROM t").get == 1


def test_read_write_create_creates(volumes: "Volumes") -> None:
    volumes.mount()
    connection = apsw.Connection("file:db?vfs=buckethead&mode=rwc")
    connection.execute("CREATE TABLE t(x)")
    assert connection.execute("SELECT count(*) FROM t").get == 0


def test_unknown_mode_is_refused_by_sqlite_itself(volumes: "Volumes") -> None:
    with pytest.raises(apsw.SQLError, match="no such access mode"):
        apsw.Connection("file:db?vfs=buckethead&mode=append")


def test_open_flags_count_like_the_mode(volumes: "Volumes") -> None:
    volumes.open().execute("CREATE TABLE t(x)")
    connection = apsw.Connection("file:db?vfs=buckethead", flags=apsw.SQLITE_OPEN_READONLY)
    with pytest.raises(apsw.ReadOnlyError):
        connection.execute("INSERT INTO t VALUES (1)")


# -- ATTACH and names ---------------------------------------------------------------------------


def main_database(kind: str, volumes: "Volumes", tmp_path: Path) -> apsw.Connection:
    if kind == "volume":
        return volumes.open("main")
    return apsw.Connection(":memory:" if kind == "memory" else str(tmp_path / "disk.db"))


@pytest.mark.parametrize("kind", ["memory", "disk", "volume"])
def test_attach_from_any_connection(volumes: "Volumes", tmp_path: Path, kind: str) -> None:
    volumes.mount("other")
    connection = main_database(kind, volumes, tmp_path)
    connection.execute("ATTACH 'file:other?vfs=buckethead' AS other")
    connection.execute("CREATE TABLE other.t AS SELECT 7 AS x")
    assert connection.pragma("journal_mode", schema="other") == "memory"
    assert volumes.open("other").execute("SELECT x FROM t").get == 7
    connection.execute("DETACH other")
    assert volumes.remount("other").execute("SELECT x FROM t").get == 7


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_mean_themselves(volumes: "Volumes", name: str) -> None:
    connection = volumes.open(name)
    connection.execute("CREATE TABLE t AS SELECT ? AS name", (name,))
    other = apsw.Connection(":memory:")
    other.execute("ATTACH ? AS a", (uri_of(name),))
    assert other.execute("SELECT name FROM a.t").get == name
    volume = registry.get(name)
    assert volume is not None
    connection = volumes.remount(name)
    assert connection.execute("SELECT name FROM t").get == name
    keys = sorted(volume.bucket.list_keys())
    assert keys[0] == f"{name}.db"
    assert all(key.startswith(f"{name}.db.ltx/") for key in keys[1:])


def test_names_that_differ_are_different_volumes(volumes: "Volumes") -> None:
    for name in ODD_NAMES:
        volumes.open(name).execute("CREATE TABLE t AS SELECT ? AS name", (name,))
    for name in ODD_NAMES:
        assert volumes.open(name).execute("SELECT name FROM t").get == name


# -- journals in the folder ---------------------------------------------------------------------


def hot_journal_of_another_database(folder: Path) -> None:
    """``db-journal`` as a crash in the middle of a transaction leaves it: it would be rolled
    back into any database called ``db`` that is opened here."""
    disk = apsw.Connection(str(folder / "original"))
    disk.execute(f"CREATE TABLE t(x); {series(99)} INSERT INTO t SELECT 'theirs' FROM n")
    disk.execute("PRAGMA cache_size=1; BEGIN; UPDATE t SET x = zeroblob(5000)")
    shutil.copy(folder / "original-journal", folder / "db-journal")
    disk.close()
    (folder / "original").unlink()


def test_journals_in_the_folder_are_neither_read_nor_touched(volumes: "Volumes", cwd: Path) -> None:
    hot_journal_of_another_database(cwd)
    (cwd / "db").write_bytes(b"not ours")
    (cwd / "db-wal").write_bytes(b"not ours either")
    before = {path.name: path.read_bytes() for path in cwd.iterdir()}
    connection = volumes.open()
    connection.execute("CREATE TABLE t(x); INSERT INTO t VALUES ('ours')")
    connection = volumes.remount()
    assert connection.execute("SELECT x FROM t").get == "ours"
    assert connection.pragma("integrity_check") == "ok"
    assert {path.name: path.read_bytes() for path in cwd.iterdir()} == before
    for path in cwd.iterdir():
        path.unlink()


def test_the_hot_journal_of_the_test_above_is_one(tmp_path: Path) -> None:
    """It would not show anything if plain SQLite ignored that journal too."""
    with closing(sqlite3.connect(tmp_path / "db")) as disk:
        disk.execute("CREATE TABLE mine(x)")
    hot_journal_of_another_database(tmp_path)
    with closing(sqlite3.connect(tmp_path / "db")) as disk:
        assert disk.execute("SELECT name FROM sqlite_schema").fetchall() != [("mine",)]


# -- temporary files ----------------------------------------------------------------------------


def test_temporary_files_go_to_disk_and_vanish(
    volumes: "Volumes", cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sort, a temp table and VACUUM's copy, each many times the cache."""
    monkeypatch.setenv("SQLITE_TMPDIR", str(cwd))
    connection = volumes.open()
    connection.execute("PRAGMA cache_size=5; PRAGMA temp.cache_size=5; CREATE TABLE t(x)")
    connection.execute(f"{series(4000)} INSERT INTO t SELECT randomblob(500) FROM n")
    connection.execute("CREATE TEMP TABLE copy AS SELECT * FROM t ORDER BY x DESC")
    assert connection.execute(
        "SELECT (SELECT count(*) FROM temp.copy), (SELECT min(x) FROM t) = "
        "(SELECT x FROM temp.copy ORDER BY rowid DESC LIMIT 1)"
    ).get == (4000, True)
    connection.execute("VACUUM")
    assert os.listdir(cwd) == []
    connection.execute("DELETE FROM temp.copy WHERE rowid % 2")
    assert connection.execute("SELECT count(*) FROM temp.copy").get == 2000


def test_no_file_with_a_name_is_ever_opened(
    volumes: "Volumes", monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal handed on to disk would be replayed into a restored image one day."""
    opened: list[object] = []
    from buckethead.image import vfs

    original: Callable[..., object] = vfs.BucketVFS.xOpen

    def spy(self: vfs.BucketVFS, name: object, flags: list[int]) -> object:
        opened.append(name)
        return original(self, name, flags)

    monkeypatch.setattr(vfs.BucketVFS, "xOpen", spy)
    volumes.mount("second")
    connection = volumes.open()
    connection.execute("ATTACH 'file:second?vfs=buckethead' AS second")
    connection.execute("CREATE TABLE main.t(x); CREATE TABLE second.t(x); PRAGMA cache_size=5")
    connection.execute(
        f"BEGIN; {series(500)} INSERT INTO main.t SELECT zeroblob(500) FROM n;"
        "INSERT INTO second.t VALUES (1); COMMIT; VACUUM"
    )
    named = [str(name) for name in opened if isinstance(name, str)]
    assert named == []
    assert None in opened, "VACUUM has opened its temporary file"


# -- our own class ------------------------------------------------------------------------------


def test_our_connection_begins_immediate_and_commits_by_method(volumes: "Volumes") -> None:
    volumes.mount()
    connection = Connection(uri_of("db"))
    connection.commit()
    connection.rollback()
    connection.execute("CREATE TABLE t(x)")
    connection.execute("BEGIN IMMEDIATE; INSERT INTO t VALUES (1)")
    connection.rollback()
    connection.execute("BEGIN IMMEDIATE; INSERT INTO t VALUES (2)")
    connection.commit()
    assert connection.execute("SELECT x FROM t").get == 2
    with connection:
        assert connection.txn_state("main") == apsw.SQLITE_TXN_WRITE
