"""`sql`."""

import json
import math
from pathlib import Path

import pytest

from buckethead.core import registry
from cli.tools import (
    DEFAULT,
    IMAGE,
    KEY,
    child,
    cli,
    cli_json,
    config,
    everything,
    on_terminal,
)


def rows(statement: str = "SELECT x FROM t") -> list[list[object]]:
    found: list[list[object]] = cli_json("sql", statement)["results"][0]["rows"]
    return found


def test_a_write_makes_the_bucket_and_says_so(
    empty_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = cli("sql", "CREATE TABLE t(x); INSERT INTO t VALUES (1), (2)")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert f"new directory bucket {empty_folder / DEFAULT}" in caplog.text
    none_yet, flushed = result.stderr.splitlines()
    there = (empty_folder / DEFAULT).as_uri()
    assert none_yet == f"buckethead: there is no database '{KEY}' yet at {there}"
    assert "flushed 2 changed pages" in flushed
    assert rows() == [[1], [2]]


def test_a_key_without_a_database_is_said() -> None:
    cli("sql", "CREATE TABLE t(x)")
    said = "there is no database 'ap.db' yet"
    assert said in cli("--key", "ap.db", "sql", "SELECT 1").stderr
    assert said in child("--key", "ap.db", "shell", text="SELECT 1;").stderr
    assert said not in cli("--key", "ap.db", "status").stdout
    assert cli("sql", "SELECT 1").stderr == ""


def test_a_read_writes_nothing() -> None:
    cli("sql", "CREATE TABLE t(x)")
    before = everything()
    result = cli("sql", "SELECT count(*) FROM t")
    assert (result.stdout, result.stderr) == ("count(*)\n0\n", "")
    assert cli_json("sql", "SELECT 1")["flushed"] is None
    assert cli("sql", "CREATE TABLE IF NOT EXISTS t(y)").exit_code == 0
    assert everything() == before


def test_values_in_a_pipe_are_printable_and_apart() -> None:
    result = cli("sql", "SELECT NULL AS a, x'00fF' AS b, 'q' || char(9, 10, 27) || 'é' AS c, 1.5")
    assert result.stdout == "a\tb\tc\t1.5\nNULL\tx'00ff'\tq\\t\\n\\x1bé\t1.5\n"


def test_values_in_json() -> None:
    document = cli_json("sql", "SELECT NULL, x'00fF', 'é' || char(27), 1.5, 9e999, 7")
    assert document["results"][0]["rows"] == [[None, "x'00ff'", "é\x1b", 1.5, str(math.inf), 7]]


def test_several_statements_give_several_results() -> None:
    result = cli("sql", "SELECT 1 AS a; CREATE TABLE t(x); SELECT x AS b FROM t; SELECT 3 AS c")
    assert result.stdout == "a\n1\n\nb\n\nc\n3\n"
    document = cli_json("sql", "INSERT INTO t VALUES (5) RETURNING x; SELECT 1, 1 WHERE 0")
    assert document["results"] == [
        {"columns": ["x"], "rows": [[5]]},
        {"columns": ["1", "1"], "rows": []},
    ]
    assert document["changes"] == 1
    assert document["flushed"]["pages"] == 2
    assert document["flushed"]["txid"] == cli_json("status")["txid"]


def test_what_was_committed_before_an_error_is_flushed() -> None:
    result = cli("sql", "CREATE TABLE t(x); INSERT INTO t VALUES (1); SELECT * FROM nosuch")
    assert result.exit_code == 1
    assert "no such table: nosuch" in result.stderr.splitlines()[-1]
    assert "flushed" in result.stderr
    assert rows() == [[1]]


def test_a_transaction_left_open_is_rolled_back_and_said() -> None:
    cli("sql", "CREATE TABLE t(x)")
    result = cli("sql", "BEGIN; INSERT INTO t VALUES (1)")
    assert result.exit_code == 1
    assert "add COMMIT" in result.stderr.splitlines()[-1]
    assert rows() == []


def test_text_that_is_no_text_is_an_error_and_changes_are_kept() -> None:
    result = cli("sql", "CREATE TABLE t(x); SELECT CAST(x'ff41' AS TEXT)")
    assert result.exit_code == 1
    assert "CAST(... AS BLOB)" in result.stderr.splitlines()[-1]
    assert rows() == []


def test_every_command_that_writes_publishes_one_small_delta() -> None:
    cli("sql", "CREATE TABLE t(x); INSERT INTO t SELECT randomblob(3000) FROM json_each('[1,2,3]')")
    image = IMAGE.read_bytes()
    result = cli("sql", "UPDATE t SET x = 1 WHERE rowid = 2")
    newest, claim = cli_json("log", "-n", "2")
    assert "flushed 2 changed pages, 3.4 kB, as TXID 3 of" in result.stderr
    assert (newest["txid"], newest["kind"], claim["kind"]) == (3, "delta", "claim")
    assert newest["bytes"] < len(image) / 4
    assert IMAGE.read_bytes() == image, "the image is written when that is due, not every time"
    assert cli_json("verify")["sound"]


def test_the_image_is_written_when_the_deltas_have_grown() -> None:
    cli("sql", "CREATE TABLE t(x)")
    cli("sql", f"INSERT INTO t VALUES (randomblob({9 * 1024 * 1024}))")
    assert cli_json("status")["image"]["txid"] == 3
    cli("sql", "INSERT INTO t VALUES (1)")
    assert cli_json("status")["image"]["txid"] == 3


def test_a_command_leaves_nothing_mounted() -> None:
    cli("sql", "CREATE TABLE t(x)")
    cli("sql", "SELECT * FROM nosuch")
    assert registry.get(config().key) is None


def test_changes_that_the_bucket_does_not_take_are_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BUCKETHEAD_BUCKET__NAME", "x")
    Path("in-the-way").write_text("a file")
    there = Path("in-the-way").absolute().as_uri()
    result = cli("--endpoint-url", there, "sql", "CREATE TABLE t(x)")
    assert result.exit_code == 1
    assert "Could not" in result.stderr.splitlines()[-1]
    assert there in result.stderr.splitlines()[-1]


def test_a_terminal_gets_a_table() -> None:
    shown, aside = on_terminal("sql", "SELECT 'left' AS a, 12 AS b, 'x' || char(27) || '[2J' AS c")
    assert "─" in shown
    assert "left" in shown
    assert "\\x1b[2J" in shown
    assert "flushed" not in aside


def test_json_of_a_child_process_is_all_of_its_output() -> None:
    done = child("sql", "SELECT 'ü'", "--json")
    assert json.loads(done.stdout)["results"][0]["rows"] == [["ü"]]
