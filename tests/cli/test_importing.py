"""`import`: plain SQLite files of all kinds."""

from pathlib import Path

import apsw
import pytest

from cli.tools import KEY, add_rows, child, cli, cli_json, damage, failure, make_file


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
    assert cli_json("verify")[0]["sound"]
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
    assert f"{KEY}.prev" in result.stderr
    assert count() == 2
    assert cli("restore", "--previous", "old.db").exit_code == 0


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
    assert "Could not import a.db" in line
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
