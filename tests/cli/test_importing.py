"""`import`: plain SQLite files of all kinds."""

from pathlib import Path

import apsw
import pytest

from cli.tools import (
    IMAGE,
    add_rows,
    another_writer,
    child,
    cli,
    cli_json,
    damage,
    delta,
    failure,
    insert,
    make_file,
    rows_of,
)


def count() -> int:
    found: int = cli_json("sql", "SELECT count(*) FROM t")["results"][0]["rows"][0][0]
    return found


@pytest.mark.parametrize("page_size", [512, 1024, 4096, 65536])
@pytest.mark.parametrize("wal", [False, True], ids=["rollback", "wal"])
def test_files_of_every_kind(empty_folder: Path, page_size: int, wal: bool) -> None:
    make_file(empty_folder / "a.db", 100, page_size=page_size, wal=wal)
    before = (empty_folder / "a.db").read_bytes()
    assert cli("import", "a.db").exit_code == 0
    assert count() == 100
    assert cli_json("status")["page_size"] == page_size
    assert cli_json("verify")["sound"]
    assert (empty_folder / "a.db").read_bytes() == before


def test_what_is_only_in_the_write_ahead_log_is_imported(empty_folder: Path) -> None:
    path = make_file(empty_folder / "a.db", 1, wal=True)
    connection = apsw.Connection(str(path))
    connection.wal_autocheckpoint(0)
    add_rows(connection, 500)
    log = Path(f"{path}-wal")
    before = (path.read_bytes(), log.read_bytes())
    assert len(before[1]) > 4096
    # a process of its own, so that closing its files cannot drop this one's locks
    assert child("import", "a.db").returncode == 0
    assert count() == 501
    assert (path.read_bytes(), log.read_bytes()) == before
    connection.close()


def test_a_name_with_odd_characters(empty_folder: Path) -> None:
    make_file(empty_folder / "a ?#%20&ü.db", 7)
    assert cli("import", "a ?#%20&ü.db").exit_code == 0
    assert count() == 7


def test_a_database_is_replaced_only_when_told_to(empty_folder: Path) -> None:
    make_file(empty_folder / "a.db", 1)
    make_file(empty_folder / "b.db", 2)
    cli("import", "a.db")
    assert "--force" in failure("import", "b.db")
    assert count() == 1
    result = cli("import", "b.db", "--force")
    assert result.exit_code == 0
    assert "restore --txid 1 FILE" in result.stderr
    assert count() == 2
    assert cli("restore", "--txid", "1", "old.db").exit_code == 0
    assert rows_of(Path("old.db")) == 1
    assert cli_json("verify")["sound"]


def test_only_pages_that_differ_are_sent(empty_folder: Path) -> None:
    make_file(empty_folder / "a.db", 20_000)
    cli("import", "a.db")
    cli("restore", "b.db")
    connection = apsw.Connection("b.db")
    connection.execute("UPDATE t SET name = 'x' WHERE id = 77")
    connection.close()
    assert cli("import", "--force", "b.db").exit_code == 0
    newest, claim = cli_json("log", "-n", "2")
    assert (newest["pages"], claim["kind"]) == (2, "claim")
    assert cli_json("sql", "SELECT name FROM t WHERE id = 77")["results"][0]["rows"] == [["x"]]
    assert cli_json("verify")["sound"]


def test_the_image_is_there_from_the_first_import_on(empty_folder: Path) -> None:
    make_file(empty_folder / "a.db", 5)
    cli("import", "a.db")
    assert rows_of(IMAGE) == 5
    assert cli_json("status")["image"]["txid"] == 1


def test_another_page_size_is_refused_and_the_way_out_named(empty_folder: Path) -> None:
    make_file(empty_folder / "a.db", 1)
    make_file(empty_folder / "b.db", 2, page_size=512)
    cli("import", "a.db")
    line = failure("import", "--force", "b.db")
    assert "another key" in line
    assert "512" in line
    assert count() == 1
    assert cli_json("status")["txid"] == 1, "nothing was claimed"


def test_force_ends_a_contradiction_of_image_and_history(empty_folder: Path) -> None:
    """Another program has written over the image after the last delta."""
    make_file(empty_folder / "a.db", 1)
    cli("import", "a.db")
    make_file(empty_folder / "theirs.db", 9).rename(IMAGE)
    make_file(empty_folder / "b.db", 2)
    assert "another program" in failure("sql", "SELECT 1")
    result = cli("import", "--force", "b.db")
    assert result.exit_code == 0
    assert "replaced as a whole" in result.stderr
    assert "Could not" not in result.stderr
    assert "`buckethead restore --previous FILE`" in result.stderr
    assert cli("restore", "--txid", "1", "before.db").exit_code == 0
    assert rows_of(Path("before.db")) == 1
    assert count() == 2
    assert cli_json("verify")["sound"]
    cli("restore", "--previous", "theirs.db")
    assert rows_of(Path("theirs.db")) == 9


def test_force_ends_a_history_that_lost_its_newest_deltas(empty_folder: Path) -> None:
    """The image is of a TXID that will soon mean another state."""
    make_file(empty_folder / "a.db", 1)
    cli("import", "a.db")
    another_writer("INSERT INTO t (name) VALUES ('second')")
    another_writer("INSERT INTO t (name) VALUES ('third')")
    assert cli_json("status")["image"]["txid"] == 5
    for txid in (3, 4, 5):
        delta(txid).unlink()
    assert "TXID 5" in failure("sql", "SELECT 1")
    make_file(empty_folder / "b.db", 7)
    assert cli("import", "--force", "b.db").exit_code == 0
    assert count() == 7
    assert cli_json("verify")["sound"]
    insert("eighth", "ninth")
    assert count() == 9
    assert cli_json("verify")["sound"]


def test_force_replaces_what_cannot_be_restored(empty_folder: Path) -> None:
    make_file(empty_folder / "a.db", 1)
    cli("import", "a.db")
    insert("second", "third")
    damage(delta(3), at=-9)
    make_file(empty_folder / "b.db", 7)
    assert cli("sql", "SELECT 1").exit_code == 1
    result = cli("import", "--force", "b.db")
    assert result.exit_code == 0
    assert "--previous" not in result.stderr
    assert count() == 7
    assert rows_of(IMAGE) == 7
    insert("eighth")
    assert count() == 8


@pytest.mark.parametrize("content", [b"", b"no database at all", b"SQLite format 3\0" * 512])
def test_force_replaces_an_image_without_history(empty_folder: Path, content: bytes) -> None:
    make_file(empty_folder / "a.db", 4)
    IMAGE.parent.mkdir(parents=True)
    IMAGE.write_bytes(content)
    assert "--force" in failure("import", "a.db")
    assert cli("import", "--force", "a.db").exit_code == 0
    assert count() == 4
    assert rows_of(IMAGE) == 4


def test_another_key_is_another_database(empty_folder: Path) -> None:
    make_file(empty_folder / "a.db", 1)
    make_file(empty_folder / "b.db", 2)
    cli("import", "a.db")
    assert cli("--key", "other.db", "import", "b.db").exit_code == 0
    assert count() == 1


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 8192, b"SQLite format 3\0" + b"\xff" * 200])
def test_what_is_no_database_is_refused(empty_folder: Path, content: bytes) -> None:
    (empty_folder / "a.db").write_bytes(content)
    line = failure("import", "a.db")
    assert line.count("Could not import a.db") == 1
    assert "not an error" not in line
    assert [path.name for path in empty_folder.iterdir()] == ["a.db"]


def test_a_damaged_database_is_refused(empty_folder: Path) -> None:
    damage(make_file(empty_folder / "a.db", 1_000))
    assert "Could not import a.db" in failure("import", "a.db")


def test_an_index_with_a_collation_of_the_application_s(empty_folder: Path) -> None:
    connection = apsw.Connection(str(make_file(empty_folder / "a.db", 3)))
    connection.create_collation("theirs", lambda a, b: (a > b) - (a < b))
    connection.execute("CREATE INDEX i ON t (name COLLATE theirs)")
    connection.close()
    result = cli("import", "a.db")
    assert result.exit_code == 0
    assert "integrity_check was not possible" in result.stderr
