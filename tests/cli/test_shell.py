"""`shell`, fed from a pipe."""

from pathlib import Path

import pytest

from cli.tools import child, cli, cli_json


def rows() -> list[list[object]]:
    found: list[list[object]] = cli_json("sql", "SELECT x FROM t")["results"][0]["rows"]
    return found


def test_the_shell_works_on_the_volume_and_flushes() -> None:
    done = child("shell", text="CREATE TABLE t(x);\nINSERT INTO t VALUES (5);\nSELECT x FROM t;\n")
    assert (done.returncode, done.stdout) == (0, "5\n")
    assert done.stderr.splitlines()[-1].startswith("buckethead: flushed 2 changed pages")
    assert rows() == [[5]]


@pytest.mark.parametrize("ending", ["", ".exit\n", ".exit 3\n"])
def test_a_transaction_left_open_is_rolled_back_and_said(ending: str) -> None:
    done = child("shell", text=f"CREATE TABLE t(x);\nBEGIN;\nINSERT INTO t VALUES (6);\n{ending}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("rolled back: end it with COMMIT.")
    assert rows() == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("SELECT 1;\n\nSELECT *\nFROM nosuch;\nSELECT 2;\n", "no such table: nosuch (line 4 "),
        ("selec 1;\n", 'near "selec": syntax error (line 1 '),
        ("selec 1", 'near "selec": syntax error (line 1 '),
        (".help nosuch\n", 'No such command "nosuch" (line 1 '),
        (".nosuch\n", 'Unknown command "nosuch"'),
        (".open 'x\n", "No closing quotation (line 1 "),
        (".read nosuch\n", "No such file or directory"),
        ("\nSELECT 'a\nb\n", "ends within a statement"),
        ("CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT 1", "ends within a statement"),
        ("SELECT CAST(x'ff41' AS TEXT);\n", "utf-8"),
    ],
)
def test_the_first_error_of_a_pipe_is_one_line(text: str, said: str) -> None:
    cli("sql", "CREATE TABLE t(x)")
    done = child("shell", text=text)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("buckethead: ")
    assert said in line
    assert done.stdout == ("1\n" if text.startswith("SELECT 1") else "")


def test_what_stands_before_an_error_is_kept_and_what_comes_after_it_is_not_run() -> None:
    child("shell", text="CREATE TABLE t(x);\nSELECT * FROM nosuch;\nINSERT INTO t VALUES (1);\n")
    assert rows() == []


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("SELECT 1", "1\n"),
        ("SELECT 1;\nSELECT\n2\n", "1\n2\n"),
        ("SELECT 3 -- the last", "3\n"),
        ("-- nothing", ""),
        (".read statements.sql\nSELECT 5", "4\n5\n"),
    ],
)
def test_the_last_statement_needs_no_semicolon(empty_folder: Path, text: str, printed: str) -> None:
    cli("sql", "CREATE TABLE t(x)")
    (empty_folder / "statements.sql").write_text("SELECT 4")
    done = child("shell", text=text)
    assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")


def test_a_pipe_can_ask_to_go_on_after_an_error() -> None:
    done = child("shell", text=".bail off\nselec;\nSELECT 2;\n")
    assert (done.returncode, done.stdout) == (0, "2\n")
    assert "^--- error here" in done.stderr


def test_the_shell_exits_with_the_code_it_is_told() -> None:
    assert child("shell", text="CREATE TABLE t(x);\n.exit 3\n").returncode == 3
    assert rows() == []


def test_a_shell_that_changes_nothing_says_nothing() -> None:
    cli("sql", "CREATE TABLE t(x)")
    done = child("shell", text="SELECT 1;\n")
    assert (done.stdout, done.stderr) == ("1\n", "")
