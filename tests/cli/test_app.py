"""The group of commands: help, options, exit codes, and what becomes of errors and pipes."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from buckethead.cli.app import commands
from cli.tools import DEFAULT, KEY, child, cli, cli_json, failure, make_file, on_terminal
from servers import Server

EVERY_COMMAND = {
    "kv", "docs", "files", "branches", "shares",
    "demo", "status", "inspect", "log", "restore", "verify",
    "sql", "shell", "import", "gc", "config", "bench",
}  # fmt: skip


def paths_of(group: click.Group) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (name,)
        if isinstance(command, click.Group):
            yield from ((name, *rest) for rest in paths_of(command))


def test_the_commands_that_must_exist_do() -> None:
    assert set(commands.commands) == EVERY_COMMAND


@pytest.mark.parametrize("path", [(), *paths_of(commands)], ids=" ".join)
def test_every_command_has_help(path: tuple[str, ...]) -> None:
    result = cli(*path, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout
    assert len(result.stdout.splitlines()) > 4, "says something about itself"


def test_the_module_runs_as_the_command_does() -> None:
    done = child("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: buckethead ")


def test_the_version_is_the_package_s() -> None:
    result = cli("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("buckethead, version 0.")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nosuch"],
        ["status", "--nosuch"],
        ["restore"],
        ["--branch", "x/y", "status"],
        ["--endpoint-url", "ftp://x", "status"],
        ["--key", "/absolute", "status"],
        ["import", "no-such-file.db"],
        ["restore", "--txid", "1", "--at", "2026-01-01", "x.db"],
        ["restore", "--txid", "0", "x.db"],
        ["restore", "--image", "--previous", "x.db"],
        ["restore", "--image", "--dry-run", "x.db"],
        ["restore", "--previous", "--txid", "1", "x.db"],
        ["verify", "--txid", "1", "--at", "2026-01-01"],
        ["log", "-n", "0"],
        ["gc", "--retention-seconds", "0"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    result = cli(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert result.stdout == ""


def test_an_option_s_value_with_a_credential_is_not_repeated() -> None:
    result = cli("--endpoint-url", "http://me:sesame@host", "status")
    assert result.exit_code == 2
    assert "sesame" not in result.stderr


READING = (
    *(["status"], ["inspect"], ["log"], ["verify"], ["restore", "x.db"], ["gc"]),
    ["restore", "--dry-run", "x.db"],
    ["sql", "SELECT 1"],
)


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_reading_creates_nothing(arguments: list[str], empty_folder: Path) -> None:
    cli(*arguments)
    cli("config", "show")
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize("arguments", READING[:-1], ids=" ".join)
def test_reading_what_is_not_there_fails_and_says_where_it_looked(
    arguments: list[str], empty_folder: Path
) -> None:
    assert (empty_folder / DEFAULT).as_uri() in failure(*arguments)
    cli("--key", "other.db", "sql", "CREATE TABLE t(x)")
    assert KEY in failure(*arguments)


def test_what_is_there_instead_are_databases_and_not_their_objects(empty_folder: Path) -> None:
    for number in range(7):
        cli("--key", f"{number}.db", "sql", "CREATE TABLE t(x)")
    make_file(empty_folder / DEFAULT / "3.db.prev")
    (empty_folder / DEFAULT / "3.db").unlink()
    (empty_folder / DEFAULT / "files").mkdir()
    (empty_folder / DEFAULT / "files" / ("0" * 64)).write_bytes(b"a file")
    line = failure("--key", "nosuch.db", "status")
    assert ". There are: 0.db, 1.db, 2.db, 3.db, 4.db. " in line


def test_advice_can_be_copied(empty_folder: Path) -> None:
    """It names the database that the command was about."""
    make_file(empty_folder / "a.db")
    where = ["--key", "an odd.db", "--endpoint-url", (empty_folder / "there").as_uri()]
    assert cli(*where, "import", "a.db").exit_code == 0
    given = f"buckethead --key 'an odd.db' --endpoint-url {where[-1]}"
    assert f"`{given} restore --txid 1 FILE`" in cli(*where, "import", "--force", "a.db").stderr
    make_file(empty_folder / "b.db").rename(empty_folder / "there" / "an odd.db")
    line = failure(*where, "inspect")
    assert f"`{given} restore --image FILE`" in line
    assert f"`{given} import --force FILE`" in line
    assert f"`{given} import --force FILE`" in cli(*where, "verify").stdout
    cli("--key", "other.db", "sql", "CREATE TABLE t(x)")
    assert "`buckethead import FILE`" in failure("inspect")


def test_a_failure_is_one_line_and_exit_code_1() -> None:
    done = child("status")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("buckethead: ")
    assert done.stderr.count("\n") == 1


def test_debug_shows_the_traceback_too() -> None:
    done = child("--debug", "status")
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("buckethead: ")


def test_a_store_that_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKETHEAD_BUCKET__ACCESS_KEY_ID", "key")
    monkeypatch.setenv("BUCKETHEAD_BUCKET__SECRET_ACCESS_KEY", "sesame")
    monkeypatch.setenv("BUCKETHEAD_BUCKET__NAME", "b")
    line = failure("--endpoint-url", "http://127.0.0.1:1", "status")
    assert "http://127.0.0.1:1" in line
    assert "sesame" not in line


def test_bench_asks_the_store_before_it_measures_for_minutes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BUCKETHEAD_BUCKET__ACCESS_KEY_ID", "key")
    monkeypatch.setenv("BUCKETHEAD_BUCKET__SECRET_ACCESS_KEY", "secret")
    line = failure("--bucket", "b", "bench", "--endpoint-url", "http://127.0.0.1:1")
    assert "http://127.0.0.1:1" in line


def test_bench_prints_tables_and_json(empty_folder: Path) -> None:
    tiny = ["--size-mb", "0.2", "--rows", "20", "--operations", "2", "--rounds", "1"]
    tiny += ["--volumes", "2", "--deltas", "2", "--flush-mb", "0.2"]
    result = cli("bench", *tiny)
    assert result.exit_code == 0
    assert "point read" in result.stdout
    assert "unchanged flush" in result.stdout
    assert "left out:" in result.stdout
    assert "AWS, a flush every 1 s" in result.stdout
    report = cli_json("bench", *tiny)
    assert report["statements"][0]["ratios"]["memdb"] == 1
    assert {flush["size_mb"] for flush in report["flushes"]} == {0.2}
    assert list(empty_folder.iterdir()) == []


def test_settings_that_are_not_whole_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKETHEAD_BUCKET__REGION", "eu-west-1")
    assert "BUCKETHEAD_BUCKET__NAME" in failure("status")


def test_a_store_of_s3_works_with_options_and_settings(
    moto_endpoint: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    moto_endpoint.client().create_bucket(Bucket="cli")
    monkeypatch.setenv("BUCKETHEAD_BUCKET__ACCESS_KEY_ID", moto_endpoint.access_key_id)
    monkeypatch.setenv("BUCKETHEAD_BUCKET__SECRET_ACCESS_KEY", moto_endpoint.secret_access_key)
    monkeypatch.setenv("BUCKETHEAD_BUCKET__NAME", "not-this-one")
    place = ["--endpoint-url", moto_endpoint.endpoint_url, "--region", "us-east-1"]
    where = [*place, "--bucket", "cli", "--key", "a/b.db"]
    assert cli(*where, "sql", "CREATE TABLE t(x); INSERT INTO t VALUES (42)").exit_code == 0
    assert cli(*where, "sql", "SELECT x FROM t").stdout == "x\n42\n"
    assert "s3://cli" in cli(*where, "status").stdout


def test_a_reader_that_leaves_early_ends_it_quietly(empty_folder: Path) -> None:
    make_file(empty_folder / "big.db", 20_000)
    assert cli("import", "big.db").exit_code == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "buckethead", "sql", "SELECT * FROM t"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"id\tname\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() in (0, 1)


def test_a_pipe_gets_no_progress_bar_and_a_terminal_does(empty_folder: Path) -> None:
    make_file(empty_folder / "a.db", 2_000)
    cli("import", "a.db")
    done = child("sql", "SELECT count(*) FROM t")
    assert (done.stdout, done.stderr) == ("count(*)\n2000\n", "")
    shown, aside = on_terminal("sql", "SELECT count(*) FROM t")
    assert "2000" in shown
    assert "\x1b" in aside
    assert f"reading {KEY}" in aside
