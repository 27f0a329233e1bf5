"""`status`, `inspect`, `restore`, `verify`, `config show`."""

import stat
from pathlib import Path

import apsw
import pytest

from cli.tools import DEFAULT, KEY, cli, cli_json, damage, failure, make_file
from servers import Server

IMAGE = DEFAULT / KEY
PREVIOUS = DEFAULT / f"{KEY}.prev"


@pytest.fixture(autouse=True)
def database(empty_folder: Path) -> None:
    """Two images: three rows before, four rows now."""
    make_file(empty_folder / "a.db", 3)
    assert cli("import", "a.db").exit_code == 0
    assert cli("sql", "INSERT INTO t (name) VALUES ('last')").exit_code == 0


def rows_of(path: Path) -> int:
    connection = apsw.Connection(str(path), apsw.SQLITE_OPEN_READONLY)
    try:
        assert connection.pragma("integrity_check") == "ok"
        return int(connection.execute("SELECT count(*) FROM t").get)
    finally:
        connection.close()


def test_status_tells_what_is_at_the_key(empty_folder: Path) -> None:
    found = cli_json("status")
    assert found["bucket"] == (empty_folder / DEFAULT).as_uri()
    assert found["key"] == KEY
    assert found["size"] == IMAGE.stat().st_size == found["pages"] * found["page_size"]
    assert len(found["checksum"]) == 16
    assert found["last_modified"].endswith("+00:00")
    assert found["previous"]["key"] == f"{KEY}.prev"
    assert found["previous"]["checksum"] != found["checksum"]
    text = cli("status").stdout
    for value in (found["bucket"], KEY, found["checksum"], f"{KEY}.prev"):
        assert value in text


def test_status_of_a_file_that_another_program_put_there(empty_folder: Path) -> None:
    make_file(empty_folder / DEFAULT / "plain.db")
    found = cli_json("--key", "plain.db", "status")
    assert (found["pages"], found["checksum"], found["previous"]) == (None, None, None)
    assert "unknown" in cli("--key", "plain.db", "status").stdout


def test_inspect_shows_schema_rows_and_pages() -> None:
    cli(
        "sql", 'CREATE TABLE "odd ""name" (x); CREATE VIEW v AS SELECT 1; CREATE INDEX i ON t(name)'
    )
    found = cli_json("inspect")
    assert found["tables"] == {'odd "name': 0, "t": 4}
    assert any("CREATE INDEX i" in sql for sql in found["schema"])
    assert any("CREATE VIEW v" in sql for sql in found["schema"])
    assert found["size"] == found["pages"] * found["page_size"]
    text = cli("inspect").stdout
    assert "t\t4\n" in text
    assert "CREATE INDEX i ON t(name);\n" in text


def test_restore_writes_a_plain_private_file(empty_folder: Path) -> None:
    assert cli("restore", "out.db").exit_code == 0
    out = empty_folder / "out.db"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert rows_of(out) == 4


def test_restore_of_the_image_before(empty_folder: Path) -> None:
    assert cli("restore", "--previous", "out.db").exit_code == 0
    assert rows_of(empty_folder / "out.db") == 3


def test_restore_replaces_a_file_only_when_told_to(empty_folder: Path) -> None:
    out = empty_folder / "out.db"
    out.write_text("mine")
    assert "--force" in failure("restore", "out.db")
    assert out.read_text() == "mine"
    assert cli("restore", "--force", "out.db").exit_code == 0
    assert rows_of(out) == 4


@pytest.mark.parametrize("left", ["out.db-wal", "out.db-journal"])
def test_restore_refuses_where_sqlite_would_replay_something(empty_folder: Path, left: str) -> None:
    (empty_folder / left).write_text("x")
    assert left in failure("restore", "--force", "out.db")
    assert not (empty_folder / "out.db").exists()


@pytest.mark.parametrize("destination", [".", "nowhere/out.db"])
def test_restore_to_what_cannot_be_a_file(destination: str) -> None:
    assert "Name a file" in failure("restore", "--force", destination)


def test_a_damaged_image_is_not_restored(empty_folder: Path) -> None:
    damage(IMAGE)
    out = empty_folder / "out.db"
    out.write_text("mine")
    assert KEY in failure("restore", "--force", "out.db")
    assert out.read_text() == "mine"
    assert sorted(path.name for path in empty_folder.iterdir()) == [
        "a.db",
        DEFAULT.name,
        "out.db",
    ]


def test_verify_of_sound_images() -> None:
    found = cli_json("verify")
    assert [(one["key"], one["sound"]) for one in found] == [(KEY, True), (f"{KEY}.prev", True)]
    assert cli("verify").stdout.count("sound\tTrue") == 2


@pytest.mark.parametrize(("path", "key"), [(IMAGE, KEY), (PREVIOUS, f"{KEY}.prev")])
def test_verify_finds_the_damaged_one(path: Path, key: str) -> None:
    damage(path)
    result = cli("verify", "--json")
    assert result.exit_code == 1
    assert f"[{key!r}]" in result.stderr
    assert result.stdout.count('"sound": false') == 1
    assert result.stdout.count('"sound": true') == 1
    assert "buckethead restore" in result.stderr


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0", b"x" * 4096, b"\0" * 10_000])
def test_verify_of_what_is_no_database(content: bytes) -> None:
    IMAGE.write_bytes(content)
    PREVIOUS.unlink()
    line = failure("verify")
    assert "Damaged" in line
    assert "Look for a backup" in line


def test_verify_finds_what_only_integrity_check_does(empty_folder: Path) -> None:
    """Pages without a checksum: only SQLite can tell that one of them is not right."""
    plain = make_file(empty_folder / DEFAULT / "plain.db", 1_000)
    damage(plain)
    assert cli("--key", "plain.db", "verify").exit_code == 1


def test_verify_finds_what_only_the_checksum_does(
    moto_endpoint: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = moto_endpoint.client()
    client.create_bucket(Bucket="verify")
    monkeypatch.setenv("BUCKETHEAD_BUCKET__ACCESS_KEY_ID", moto_endpoint.access_key_id)
    monkeypatch.setenv("BUCKETHEAD_BUCKET__SECRET_ACCESS_KEY", moto_endpoint.secret_access_key)
    where = ["--endpoint-url", moto_endpoint.endpoint_url, "--region", "us-east-1"]
    where += ["--bucket", "verify", "--key", "k"]
    assert cli(*where, "import", "a.db").exit_code == 0
    assert cli(*where, "verify").exit_code == 0
    written = client.get_object(Bucket="verify", Key="k")
    content = bytearray(written["Body"].read())
    content[-1] ^= 1  # within a row's text: SQLite sees nothing wrong with it
    client.put_object(Bucket="verify", Key="k", Body=bytes(content), Metadata=written["Metadata"])
    assert "its checksum was" in cli(*where, "verify").stdout
    assert "its checksum was" in failure(*where, "restore", "out.db")


def test_status_never_downloads(empty_folder: Path) -> None:
    damage(IMAGE)  # nothing in it is looked at, except that its metadata is not believed any more
    assert cli_json("status")["size"] == IMAGE.stat().st_size


def test_config_show_masks_what_is_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKETHEAD_BUCKET__NAME", "b")
    monkeypatch.setenv("BUCKETHEAD_BUCKET__ACCESS_KEY_ID", "an-id")
    monkeypatch.setenv("BUCKETHEAD_BUCKET__SECRET_ACCESS_KEY", "sesame")
    result = cli("--key", "k", "config", "show")
    assert "key\tk\n" in result.stdout
    assert "session_token\tnot set\n" in result.stdout
    found = cli_json("--key", "k", "config", "show")
    assert (found["bucket"], found["key"]) == ("b", "k")
    assert set(found["secret_access_key"]) == {"*"}
    assert "sesame" not in result.output + str(found)


def test_config_show_without_settings_names_the_default_directory(empty_folder: Path) -> None:
    assert cli_json("config", "show")["endpoint_url"] == (empty_folder / DEFAULT).as_uri()


def test_config_show_keeps_to_a_file_of_settings(tmp_path: Path) -> None:
    file = tmp_path / "home" / ".config" / "buckethead" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text('[env.bucket]\nname = "of-the-file"\nregion = "eu-west-1"\n')
    assert cli_json("config", "show")["bucket"] == "of-the-file"
    assert cli_json("--bucket", "mine", "config", "show")["region"] == "eu-west-1"
