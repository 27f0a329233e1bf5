"""`kv`."""

import subprocess
import sys
import time

import pytest
from click.testing import CliRunner, Result

from buckethead.cli.app import commands
from buckethead.core import registry
from cli.tools import (
    DEFAULT,
    IMAGE,
    PATIENCE_SECONDS,
    cli,
    cli_json,
    config,
    everything,
    failure,
    on_terminal,
)
from golden.make import FOLDER


def typed(text: str | bytes, *arguments: str) -> Result:
    """Run a command with something to read on stdin."""
    return CliRunner().invoke(commands, arguments, input=text)


def keys() -> list[str]:
    return [row["key"] for row in cli_json("kv", "list")]


def test_what_is_set_can_be_got() -> None:
    result = cli("kv", "set", "a key", "grün\n")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "flushed" in result.stderr
    got = cli("kv", "get", "a key")
    assert (got.stdout, got.stderr) == ("grün\n", ""), "as it is, and no line end more"
    found = cli_json("kv", "get", "a key")
    assert (found["key"], found["value"], found["expires_at"]) == ("a key", "grün\n", None)
    assert 0 <= time.time() - found["created_at"] < 600


def test_bytes_go_through_pipes_as_they_are() -> None:
    data = bytes(range(256)) + b"\r\n"
    assert typed(data, "kv", "set", "a", "-").exit_code == 0
    assert cli("kv", "get", "a").stdout_bytes == data
    assert cli_json("kv", "get", "a")["value"] == f"x'{data.hex()}'"
    assert typed("text\n", "kv", "set", "a", "-").exit_code == 0
    assert cli_json("kv", "get", "a")["value"] == "text\n"
    assert typed("", "kv", "set", "a", "-").exit_code == 0
    assert cli("kv", "get", "a").stdout_bytes == b""


def test_a_terminal_gets_one_line() -> None:
    typed("x\x1b[2J\ny", "kv", "set", "a", "-")
    typed(b"\xff", "kv", "set", "b", "-")
    assert on_terminal("kv", "get", "a")[0].rstrip() == "x\\x1b[2J\\ny"
    assert on_terminal("kv", "get", "b")[0].rstrip() == "x'ff'"


def test_keys_are_listed_with_their_size_and_times() -> None:
    cli("kv", "set", "a%", "123", "--ttl", "5000")
    cli("kv", "set", "ab", "1")
    cli("sql", "INSERT INTO bh_kv(key, value) VALUES ('b', x'ffff')")
    first, second = cli_json("kv", "list", "a")
    assert (first["key"], first["bytes"]) == ("a%", 3)
    assert 4400 < first["expires_at"] - time.time() <= 5000
    assert (second["key"], second["bytes"], second["expires_at"]) == ("ab", 1, None)
    assert [row["key"] for row in cli_json("kv", "list", "a%")] == ["a%"]
    lines = cli("kv", "list").stdout.splitlines()
    assert lines[0] == "key\tbytes\tcreated_at\tupdated_at\texpires_at"
    assert lines[1].startswith("a%\t3\t20")
    assert lines[3].endswith("\tnone")


def test_a_key_that_is_not_there() -> None:
    cli("sql", "CREATE TABLE t(x)")
    assert (cli_json("kv", "list"), keys()) == ([], [])
    for arguments in (["kv", "get", "a"], ["kv", "get", "a", "--json"]):
        assert "There is no key 'a'. `buckethead kv list`" in failure(*arguments)
    result = cli("kv", "delete", "a", "--yes")
    assert result.exit_code == 1
    assert "There is no key 'a'" in result.stderr.splitlines()[-1]


def test_an_expired_key_is_not_there() -> None:
    cli("kv", "set", "a", "x", "--ttl", "1e-6")
    assert keys() == []
    assert "There is no key" in failure("kv", "get", "a")


def test_delete_asks() -> None:
    cli("kv", "set", "a", "x")
    before = everything()
    for answer in ("n\n", ""):
        result = typed(answer, "kv", "delete", "a")
        assert result.exit_code == 1
        assert "Delete the key 'a'?" in result.stderr
    assert everything() == before
    assert typed("y\n", "kv", "delete", "a").exit_code == 0
    assert keys() == []
    cli("kv", "set", "a", "x")
    assert cli("kv", "delete", "a", "--yes").exit_code == 0
    assert keys() == []


def test_where_nothing_is_nothing_is_made() -> None:
    for arguments in (["get", "a"], ["list"], ["delete", "a", "--yes"]):
        failure("kv", *arguments)
    assert not DEFAULT.exists()


@pytest.mark.parametrize("ttl", ["0", "-1", "nan", "inf"])
def test_a_ttl_that_is_none_changes_nothing(ttl: str) -> None:
    cli("kv", "set", "a", "before")
    result = cli("kv", "set", "a", "after", "--ttl", ttl)
    assert result.exit_code == 1
    assert "is no number of seconds above 0" in result.stderr.splitlines()[-1]
    assert cli("kv", "get", "a").stdout == "before"
    assert registry.get(config().key) is None


def test_words_that_are_no_text_are_an_error_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable.encode(), b"-m", b"buckethead", b"kv", b"set", b"\xff", b"x"],
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert b"The key is no Unicode text" in done.stderr.splitlines()[-1]
    assert b"Traceback" not in done.stderr


def test_the_rest_of_a_program_s_keys_is_the_same() -> None:
    cli("kv", "set", "a", "1")
    assert cli_json("sql", "SELECT key, value FROM bh_kv")["results"][0]["rows"] == [["a", "1"]]


def test_a_database_of_an_older_version() -> None:
    image = (FOLDER / "plain.db").read_bytes()
    IMAGE.parent.mkdir(parents=True)
    IMAGE.write_bytes(image)
    assert cli("kv", "get", "greeting").stdout == "grün"
    assert cli_json("kv", "get", "greeting")["created_at"] == 1.0
    assert keys() == ["count", "greeting", "raw"]
    assert everything() == {str(IMAGE): image}
    assert cli("kv", "set", "greeting", "new").exit_code == 0
    assert cli("kv", "get", "greeting").stdout == "new"
    assert cli_json("kv", "get", "greeting")["created_at"] == 1.0


def test_a_time_that_no_calendar_has_is_shown_as_it_is() -> None:
    assert cli("kv", "set", "a", "b", "--ttl", "1e300").exit_code == 0
    assert cli("kv", "list").stdout.endswith("\t1e+300\n")


def test_what_changes_something_says_so_in_json() -> None:
    assert cli_json("kv", "set", "a", "1", "--ttl", "60") == {"key": "a", "value": "1", "ttl": 60.0}
    assert cli_json("kv", "delete", "a", "--yes") == {"key": "a", "deleted": True}
