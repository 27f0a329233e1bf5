"""`files`."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from buckethead.connection import Connection
from buckethead.core import mount, unmount
from buckethead.uris import uri_of
from cli.tools import DEFAULT, child, cli, cli_json, config, everything, failure, on_terminal
from files.tools import sha256

HELLO = b"hello"
FILE = sha256(HELLO)
MISSING = sha256(b"missing")


@pytest.fixture
def hello() -> Path:
    """A file in the current folder, which is stored."""
    path = Path("hello.txt")
    path.write_bytes(HELLO)
    result = cli("files", "put", "hello.txt")
    assert result.exit_code == 0, result.stderr
    return path


def blob(key: str) -> Path:
    return DEFAULT / "files" / key


def listed() -> list[Any]:
    found: list[Any] = cli_json("files", "list")
    return found


def test_put_prints_keys_and_publishes_once() -> None:
    for name in ("a.txt", "b.bin"):
        Path(name).write_bytes(name.encode())
    result = cli("files", "put", "a.txt", "b.bin")
    assert result.exit_code == 0
    keys = [sha256(b"a.txt"), sha256(b"b.bin")]
    assert result.stdout == f"key\tpath\n{keys[0]}\ta.txt\n{keys[1]}\tb.bin\n"
    assert result.stderr.count("flushed") == 1
    assert [blob(key).read_bytes() for key in keys] == [b"a.txt", b"b.bin"]
    newest, oldest = listed()
    assert (newest["key"], newest["filename"], newest["bytes"]) == (keys[1], "b.bin", 5)
    assert (oldest["key"], oldest["mime"]) == (keys[0], "text/plain")
    assert len(cli_json("log")) == 2, "a delta and its image"


def test_what_is_there_is_not_sent_again(hello: Path) -> None:
    before = blob(FILE).stat()
    result = cli("files", "put", "hello.txt", "--name", "another")
    assert "hello.txt is there already" in result.stderr
    assert "flushed" not in result.stderr
    assert FILE in result.stdout
    assert blob(FILE).stat() == before
    (known,) = cli_json("files", "put", "hello.txt")
    assert known == {"key": FILE, "path": "hello.txt", "stored": False}
    blob(FILE).unlink()
    (known,) = cli_json("files", "put", "hello.txt")
    assert known["stored"]
    assert blob(FILE).read_bytes() == HELLO
    assert listed()[0]["filename"] == "hello.txt"


def test_put_reads_stdin() -> None:
    done = child("files", "put", "-", "--name", "x.json", "--json", text="hello")
    assert json.loads(done.stdout) == [{"key": FILE, "path": "-", "stored": True}]
    (known,) = listed()
    assert (known["filename"], known["mime"]) == ("x.json", "application/json")
    child("files", "put", "-", "--mime", "a/b", text="other")
    assert (listed()[0]["filename"], listed()[0]["mime"]) == (None, "a/b")


def test_put_of_what_is_not_there_is_a_usage_error() -> None:
    Path("a").write_bytes(b"a")
    for arguments in (["missing"], ["."], [], ["a", "a", "--name", "n"]):
        assert cli("files", "put", *arguments).exit_code == 2
    assert not DEFAULT.exists()


def test_what_was_stored_before_a_failure_is_kept(hello: Path) -> None:
    Path("a").write_bytes(b"a")
    os.mkfifo("pipe")
    result = cli("files", "put", "a", "pipe", "hello.txt")
    assert result.exit_code == 1
    assert "it is no regular file" in result.stderr.splitlines()[-1]
    assert result.stdout == f"key\tpath\n{sha256(b'a')}\ta\n"
    assert [file["key"] for file in listed()] == [sha256(b"a"), FILE]


def test_get_writes_a_file(hello: Path, tmp_path: Path) -> None:
    hello.unlink()
    result = cli("files", "get", FILE)
    assert result.exit_code == 0
    assert hello.read_bytes() == HELLO
    assert (result.stdout, result.stderr) == ("", "buckethead: wrote hello.txt, 5 bytes\n")
    cli("files", "get", FILE, "copy")
    cli("files", "get", FILE, str(tmp_path))
    assert Path("copy").read_bytes() == (tmp_path / "hello.txt").read_bytes() == HELLO


def test_get_leaves_what_is_there(hello: Path) -> None:
    before = hello.stat()
    result = cli("files", "get", FILE)
    assert result.stderr == "buckethead: hello.txt has that content already\n"
    assert hello.stat() == before
    assert not cli_json("files", "get", FILE)["written"]
    hello.write_bytes(b"other")
    assert "it exists, with other content" in failure("files", "get", FILE)
    assert hello.read_bytes() == b"other"
    Path("folder").mkdir()
    Path("folder/hello.txt").mkdir()
    assert "it exists" in failure("files", "get", FILE, "folder", "--force")
    document = cli_json("files", "get", FILE, "--force")
    assert (document["path"], document["written"]) == ("hello.txt", True)
    assert hello.read_bytes() == HELLO


@pytest.mark.parametrize(
    "name", ["../up", "/tmp/absolute", "a/b", "..", ".", "", "a\nb", "\x1b[2J", "x" * 300]
)
def test_a_name_from_the_database_leads_nowhere_else(hello: Path, name: str) -> None:
    cli("sql", f"UPDATE filestore SET filename = CAST(x'{name.encode().hex()}' AS TEXT)")
    before = set(os.listdir("."))
    document = cli_json("files", "get", FILE)
    (new,) = set(os.listdir(".")) - before
    assert document["path"] == new
    assert new in (Path(name).name, FILE)
    assert "/" not in new


def test_what_cannot_be_fetched_is_said(hello: Path) -> None:
    assert f"There is no file {MISSING}" in failure("files", "get", MISSING)
    assert "`buckethead files list`" in failure("files", "get", MISSING)
    assert "'abc' is no key of a file" in failure("files", "get", "abc")
    blob(FILE).write_bytes(b"hell0")
    message = failure("files", "get", FILE, "dest")
    assert sha256(b"hell0") in message
    blob(FILE).unlink()
    assert "there is no such object" in failure("files", "get", FILE, "dest")
    assert not Path("dest").exists()
    assert "There is no database" in failure("--key", "another.db", "files", "list")


def test_delete_asks(hello: Path) -> None:
    before = everything()
    result = cli("files", "delete", FILE)
    assert result.exit_code == 1
    assert "Delete the file hello.txt, 5 bytes?" in result.stderr
    assert everything().keys() == before.keys()
    assert child("files", "delete", FILE, text="y\n").returncode == 0
    assert listed() == []
    assert blob(FILE).exists()
    assert f"There is no file {FILE}" in cli("files", "delete", FILE, "--yes").stderr


def test_delete_with_yes_tells_what_went(hello: Path) -> None:
    document = cli_json("files", "delete", FILE, "--yes")
    assert (document["key"], document["filename"], document["bytes"]) == (FILE, "hello.txt", 5)
    assert listed() == []


def test_a_missing_directory_bucket_is_made_by_put_only() -> None:
    for arguments in (["list"], ["get", FILE], ["delete", FILE, "--yes"], ["gc", "--yes"]):
        assert "there is no such folder" in failure("files", *arguments)
    assert not DEFAULT.exists()


def test_gc_asks_and_deletes_orphans(hello: Path) -> None:
    orphan = blob(MISSING)
    orphan.write_bytes(b"missing")
    document = cli_json("files", "gc", "--dry-run", "--grace-seconds", "0")
    assert document == {
        "orphans_found": 1,
        "orphans_deleted": 1,
        "orphans_skipped_grace": 0,
        "dangling_rows_found": 0,
        "dry_run": True,
    }
    assert cli_json("files", "gc", "--yes")["orphans_skipped_grace"] == 1
    result = cli("files", "gc", "--grace-seconds", "0")
    assert result.exit_code == 1
    assert "Delete 1 blob?" in result.stderr
    assert orphan.exists()
    done = child("files", "gc", "--grace-seconds", "0", text="y\n")
    assert "orphans_deleted\t1" in done.stdout
    assert not orphan.exists()
    assert blob(FILE).exists()
    assert "orphans_found\t0" in cli("files", "gc").stdout


def test_gc_of_a_key_without_a_database_deletes_nothing(hello: Path) -> None:
    blob(MISSING).write_bytes(b"missing")
    message = failure("--key", "another.db", "files", "gc", "--grace-seconds", "0", "--yes")
    assert "There is no database" in message
    assert blob(MISSING).exists()


def running_writer() -> None:
    """A program that publishes and goes on, as far as anybody knows."""
    volume = mount("running", config())
    Connection(uri_of("running")).execute("CREATE TABLE running(x)")
    volume.flush()
    unmount("running", discard=True)


def test_another_writer_is_not_taken_over_and_nothing_is_stored_before(hello: Path) -> None:
    running_writer()
    Path("a").write_bytes(b"a")
    before = everything()
    for arguments in (["put", "a"], ["delete", FILE, "--yes"]):
        result = cli("files", *arguments)
        assert result.exit_code == 1
        assert "take the database over with --take-over" in result.stderr
    assert everything() == before
    assert cli("files", "put", "a", "--take-over").exit_code == 0
    assert len(listed()) == 2


def test_a_terminal_gets_tables_and_bars(hello: Path) -> None:
    shown, _ = on_terminal("files", "list")
    assert "─" in shown
    assert "hello.txt" in shown
    Path("large").write_bytes(os.urandom(9_000_000))
    shown, aside = on_terminal("files", "put", "large")
    assert "storing large" in aside
    assert sha256(Path("large").read_bytes())[:20] in shown
    key = listed()[0]["key"]
    assert "reading copy" in on_terminal("files", "get", key, "copy")[1]


def test_rows_that_another_tool_wrote(hello: Path) -> None:
    cli("sql", """UPDATE filestore SET metadata = '{"a": NaN}', created_at = 1e300""")
    assert cli("files", "list").stdout.endswith("\t1e+300\thello.txt\n")
    assert listed()[0]["metadata"] == {"a": "NaN"}
    assert cli_json("files", "get", FILE, "copy")["metadata"] == {"a": "NaN"}
    cli("sql", "UPDATE filestore SET created_at = 9e999, filename = x'ff'")
    assert (listed()[0]["created_at"], listed()[0]["filename"]) == ("inf", "x'ff'")


def test_a_grace_time_that_is_no_number_is_refused(hello: Path) -> None:
    assert "grace_seconds must be 0 or more" in failure("files", "gc", "--grace-seconds", "nan")
