"""What a command that writes says of the writer before it, and when it refuses."""

from pathlib import Path

import pytest

from buckethead.cli import writing
from buckethead.connection import Connection
from buckethead.core import BucketSQLite, mount, unmount
from buckethead.errors import BucketUnavailableError, FencedError
from buckethead.storage.contract import Bucket
from buckethead.storage.images import Stamp
from buckethead.storage.layout import Place
from buckethead.uris import uri_of
from buckethead.volume import Volume
from cli.tools import (
    child,
    cli,
    cli_json,
    config,
    delta,
    everything,
    insert,
    make_file,
)

INSERT = "INSERT INTO t (name) VALUES ('x')"
WRITING = [["sql", INSERT], ["import", "--force", "a.db"]]


@pytest.fixture(autouse=True)
def database(empty_folder: Path) -> None:
    """Three rows at TXID 1, written by a command."""
    make_file(empty_folder / "a.db", 3)
    assert cli("import", "a.db").exit_code == 0


def running_writer(statement: str) -> None:
    """A program that publishes, writes the image, and goes on, as far as anybody knows."""
    volume = mount("running", config())
    connection = Connection(uri_of("running"))
    connection.execute(statement)
    connection.close()
    volume.checkpoint()
    unmount("running", discard=True)


def count() -> int:
    found: int = cli_json("sql", "SELECT count(*) FROM t")["results"][0]["rows"][0][0]
    return found


def test_commands_in_a_row_need_not_wait_for_each_other() -> None:
    for _ in range(2):
        for arguments in WRITING:
            result = cli(*arguments)
            assert result.exit_code == 0
            assert "the newest delta is TXID" in result.stderr
    assert cli_json("verify")["sound"]


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM t WHERE 0",
        "INSERT INTO t (id) VALUES (1)",
        "BEGIN IMMEDIATE; SELECT 1",
        "BEGIN; DELETE FROM t; SELECT * FROM nosuch",
    ],
)
def test_a_command_that_claimed_and_changed_nothing_is_not_waited_for(statement: str) -> None:
    cli("sql", statement)
    assert cli_json("status")["txid"] == 3, "a claim, and a delta that says it has ended"
    insert("after")
    assert count() == 4
    assert cli_json("verify")["sound"]


@pytest.mark.parametrize("arguments", WRITING, ids=lambda arguments: arguments[0])
def test_another_writer_s_young_delta_is_in_the_way(arguments: list[str]) -> None:
    running_writer(INSERT)
    before = everything()
    result = cli(*arguments)
    assert result.exit_code == 1
    line = result.stderr.splitlines()[-1]
    writer = cli_json("log", "-n", "1")[0]["writer"]
    for part in ("TXID 3", "seconds old", writer, "--take-over", "10 minutes"):
        assert part in line
    assert everything() == before
    assert cli(*arguments, "--take-over").exit_code == 0


def test_who_has_ended_is_in_nobody_s_way() -> None:
    with BucketSQLite(config()) as mounted:
        mounted.connection.execute(INSERT)
    assert cli("sql", INSERT).exit_code == 0
    assert count() == 5


def test_a_claim_counts_as_that_writer_s_delta() -> None:
    running_writer("BEGIN IMMEDIATE; ROLLBACK")
    assert cli_json("log", "-n", "1")[0]["kind"] == "claim"
    assert "--take-over" in cli("sql", INSERT).stderr


def test_a_command_that_was_killed_after_its_claim_is_waited_for() -> None:
    insert("second")
    delta(3).unlink()
    assert "--take-over" in cli("sql", INSERT).stderr
    assert cli("sql", "--take-over", INSERT).exit_code == 0
    assert count() == 4


def test_an_old_delta_is_in_nobody_s_way(monkeypatch: pytest.MonkeyPatch) -> None:
    running_writer(INSERT)
    monkeypatch.setattr(writing, "TAKE_OVER_SECONDS", 0.0)
    assert cli("sql", INSERT).exit_code == 0


def test_who_is_taken_over_can_publish_nothing_more() -> None:
    volume = mount("theirs", config())
    connection = Connection(uri_of("theirs"))
    connection.execute(INSERT)
    volume.flush()
    command = "INSERT INTO t (name) VALUES ('command')"
    assert "--take-over" in child("sql", command).stderr
    assert child("sql", "--take-over", command).returncode == 0
    connection.execute(INSERT)
    with pytest.raises(FencedError):
        volume.flush()
    connection.close()
    unmount("theirs", discard=True)
    assert count() == 5


@pytest.fixture
def overtaken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another command publishes just before the first claim."""
    commands = ["INSERT INTO t (name) VALUES ('first')"]

    def check_claim(bucket: Bucket, place: Place, take_over: bool, newest: Stamp) -> None:
        if commands:
            assert child("sql", commands.pop()).returncode == 0

    monkeypatch.setattr(writing, "check_claim", check_claim)


@pytest.mark.usefixtures("overtaken")
def test_a_statement_that_was_overtaken_works_on_the_newer_state() -> None:
    assert cli("sql", "INSERT INTO t (name) SELECT count(*) FROM t").exit_code == 0
    rows = cli_json("sql", "SELECT name FROM t WHERE id > 3")["results"][0]["rows"]
    assert rows == [["first"], ["4"]]
    assert cli_json("verify")["sound"]


@pytest.mark.usefixtures("overtaken")
def test_a_transaction_that_was_overtaken_fails_whole() -> None:
    result = cli("sql", f"BEGIN; SELECT count(*) FROM t; {INSERT}; COMMIT")
    assert result.exit_code == 1
    assert "BEGIN IMMEDIATE" in result.stderr
    assert count() == 4


@pytest.mark.usefixtures("overtaken")
def test_an_import_that_was_overtaken_writes_nothing() -> None:
    result = cli("import", "--force", "a.db")
    assert result.exit_code == 1
    assert "another process has written to it meanwhile" in result.stderr
    assert count() == 4
    assert cli_json("verify")["sound"]


def test_reading_is_never_refused() -> None:
    running_writer(INSERT)
    assert count() == 4
    assert cli("inspect").exit_code == 0


def test_the_shell_asks_too() -> None:
    running_writer(INSERT)
    done = child("shell", text=f"{INSERT};\n")
    assert done.returncode == 1
    assert "--take-over" in done.stderr
    assert count() == 4
    assert child("shell", "--take-over", text=f"{INSERT};\n").returncode == 0
    assert count() == 5


def test_changes_that_did_not_arrive_are_said_to_be_in_doubt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def publish(self: Volume) -> None:
        raise BucketUnavailableError("Could not reach it.")

    with monkeypatch.context() as broken:
        broken.setattr("buckethead.volume.Volume.flush", publish)
        line = cli("sql", INSERT).stderr.splitlines()[-1]
    assert "Could not reach it." in line
    assert "buckethead log" in line
    assert count() == 3


def test_an_image_that_cannot_be_written_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(self: Volume) -> None:
        raise BucketUnavailableError("Could not reach it.")

    monkeypatch.setattr("buckethead.volume.Volume.serve", serve)
    result = cli("sql", INSERT)
    assert result.exit_code == 0
    assert "the changes are safe" in result.stderr
    assert count() == 4


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 seconds"),
        (1.4, "1 second"),
        (119.9, "120 seconds"),
        (120, "2 minutes"),
        (7_199, "119 minutes"),
        (7_200, "2 hours"),
        (180_000, "2 days"),
    ],
)
def test_words_for_a_time_that_has_passed(seconds: float, words: str) -> None:
    assert writing.ago(seconds) == words
