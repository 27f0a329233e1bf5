"""`restore`: the newest state, past ones, and single images."""

import json
import stat
from pathlib import Path

import pytest

from cli.tools import (
    DEFAULT,
    IMAGE,
    KEY,
    another_writer,
    child,
    cli,
    cli_json,
    damage,
    delta,
    everything,
    failure,
    insert,
    make_file,
    rows_of,
    snapshot_of,
)


@pytest.fixture(autouse=True)
def database(empty_folder: Path) -> None:
    """Three rows at TXID 1, which the image is; four at 3, five at 5."""
    make_file(empty_folder / "a.db", 3)
    assert cli("import", "a.db").exit_code == 0
    insert("fourth", "fifth")


def test_restore_writes_a_plain_private_file(empty_folder: Path) -> None:
    before = everything()
    result = cli("restore", "out.db")
    assert result.exit_code == 0
    assert "TXID 5" in result.stderr
    out = empty_folder / "out.db"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert rows_of(out) == 5
    assert everything() == before


@pytest.mark.parametrize(("txid", "rows"), [(1, 3), (2, 3), (3, 4), (4, 4), (5, 5)])
def test_restore_of_a_txid(txid: int, rows: int) -> None:
    assert cli_json("restore", "--txid", str(txid), "out.db")["txid"] == txid
    assert rows_of(Path("out.db")) == rows


def test_restore_of_a_moment() -> None:
    times = {record["txid"]: record["time"] for record in cli_json("log")}
    for txid, rows in ((1, 3), (3, 4), (5, 5)):
        cli("restore", "--at", times[txid], "--force", "out.db")
        assert rows_of(Path("out.db")) == rows
    cli("restore", "--at", "0 seconds ago", "--force", "out.db")
    assert rows_of(Path("out.db")) == 5


def test_a_moment_before_the_first_names_what_is_kept() -> None:
    line = failure("restore", "--at", "2 weeks ago", "out.db")
    assert "`buckethead restore --txid 1 FILE`" in line
    assert "`buckethead restore --txid 1 FILE`" in failure("verify", "--at", "2 weeks ago")


def test_a_moment_in_the_future_is_the_newest_state_and_said() -> None:
    result = cli("restore", "--at", "2999-01-01", "out.db")
    assert "2999-01-01 is in the future" in result.stderr
    assert "TXID 5" in result.stderr
    assert rows_of(Path("out.db")) == 5
    assert "future" not in cli("restore", "--at", "0 seconds ago", "--force", "out.db").stderr


@pytest.mark.parametrize("text", ["yesterday-ish", "10 parsecs ago", "2026-13-01"])
def test_a_moment_that_is_none(text: str) -> None:
    assert text in failure("restore", "--at", text, "out.db")


def test_a_txid_that_does_not_exist_yet() -> None:
    assert "TXID 6" in failure("restore", "--txid", "6", "out.db")
    assert not Path("out.db").exists()


def test_a_dry_run_shows_the_plan_and_reads_none_of_it() -> None:
    for txid in (1, 2, 3):
        damage(delta(txid), at=100)  # the header is all that is looked at
    found = cli_json("restore", "--dry-run", "--txid", "3", "out.db")
    assert (found["txid"], found["base"], found["base_txid"]) == (3, KEY, 1)
    assert (found["deltas"], found["requests"]) == (2, 3)
    assert found["bytes"] == sum(path.stat().st_size for path in (IMAGE, delta(2), delta(3)))
    assert found["time"].endswith("+00:00")
    assert f"base\t{KEY}\n" in cli("restore", "--dry-run", "out.db").stdout
    assert not Path("out.db").exists()


def test_a_dry_run_of_an_image_alone(empty_folder: Path) -> None:
    make_file(empty_folder / DEFAULT / "plain.db")
    found = cli_json("--key", "plain.db", "restore", "--dry-run", "out.db")
    assert (found["base"], found["base_txid"], found["txid"]) == ("plain.db", None, None)
    for more in ([], ["--dry-run"]):
        line = failure("--key", "plain.db", "restore", "--txid", "1", *more, "out.db")
        assert "no history" in line


def test_single_images_are_read_without_a_look_at_the_history() -> None:
    another_writer("INSERT INTO t (name) VALUES ('sixth')")
    for path in (DEFAULT / f"{KEY}.ltx").rglob("*.ltx"):
        path.write_bytes(b"x" * 200)
    assert cli("restore", "--image", "now.db").exit_code == 0
    assert cli("restore", "--previous", "before.db").exit_code == 0
    assert (rows_of(Path("now.db")), rows_of(Path("before.db"))) == (6, 3)


def test_a_damaged_snapshot_is_gone_around_and_said(caplog: pytest.LogCaptureFixture) -> None:
    damage(snapshot_of(5), at=-1)
    result = cli("restore", "--json", "out.db")
    assert rows_of(Path("out.db")) == 5
    assert any("0009/" in warning for warning in json.loads(result.stdout)["warnings"])
    assert "0009/" in caplog.text


def test_a_damaged_delta_names_what_can_be_restored() -> None:
    damage(delta(3), at=-9)
    Path("out.db").write_text("mine")
    line = failure("restore", "--force", "out.db")
    assert delta(3).name in line
    assert "`buckethead restore --txid 2 FILE`" in line
    assert Path("out.db").read_text() == "mine"
    assert cli("restore", "--force", "--txid", "2", "out.db").exit_code == 0


def test_an_error_is_said_once() -> None:
    damage(delta(3), at=-9)
    done = child("restore", "out.db")
    assert done.returncode == 1
    assert done.stderr.count("Could not use") == 1
    assert len(done.stderr.splitlines()) == 1


def test_what_can_be_restored_is_named_where_a_txid_is_gone() -> None:
    another_writer("INSERT INTO t (name) VALUES ('sixth')")
    delta(3).unlink()
    line = failure("restore", "--txid", "3", "out.db")
    assert "what can be restored is TXID 1, 7." in line
    assert cli("restore", "--txid", "2", "out.db").exit_code == 1
    assert cli("restore", "--txid", "1", "out.db").exit_code == 0


def test_an_image_of_another_program_is_refused_and_both_choices_work() -> None:
    make_file(IMAGE.with_name("x"), 9).rename(IMAGE)
    line = failure("restore", "out.db")
    for choice in ("restore --image FILE", "restore --txid 5 FILE", "import --force FILE"):
        assert choice in line
    assert cli("restore", "--image", "image.db").exit_code == 0
    assert rows_of(Path("image.db")) == 9


def test_restore_replaces_a_file_only_when_told_to(empty_folder: Path) -> None:
    out = empty_folder / "out.db"
    out.write_text("mine")
    assert "--force" in failure("restore", "out.db")
    assert out.read_text() == "mine"
    assert cli("restore", "--force", "out.db").exit_code == 0
    assert rows_of(out) == 5


@pytest.mark.parametrize("left", ["out.db-wal", "out.db-journal"])
def test_restore_refuses_where_sqlite_would_replay_something(empty_folder: Path, left: str) -> None:
    (empty_folder / left).write_text("x")
    assert left in failure("restore", "--force", "out.db")
    assert not (empty_folder / "out.db").exists()


@pytest.mark.parametrize("destination", [".", "nowhere/out.db"])
def test_restore_to_what_cannot_be_a_file(destination: str) -> None:
    assert "Name a file" in failure("restore", "--force", destination)
