"""`demo`: a process killed by SIGKILL, and what is left of its database. Always the real thing."""

import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from buckethead.cli.story import CHANGED_ORDER, FLUSHED_ORDERS, LOST_ORDERS, NEW_PRICE
from cli.tools import child, failure, on_terminal

LONGEST = 44
STEPS = ["write", "flush", "flush again", "write more", "restore"]


@pytest.fixture(autouse=True)
def temporary(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the demo's folder is made."""
    folder = empty_folder / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def test_the_demo_tells_what_was_kept_and_what_was_not(empty_folder: Path, temporary: Path) -> None:
    done = child("demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) < LONGEST
    assert f"{FLUSHED_ORDERS:,} of {FLUSHED_ORDERS:,} flushed orders are back" in done.stdout
    assert f"{LOST_ORDERS:,} later ones are gone" in done.stdout
    assert "was all that the second flush sent of" in done.stdout
    assert "the first state was restored too" in done.stdout
    assert "integrity_check: ok" in done.stdout
    assert "SIGKILL" in done.stdout
    assert "import apsw, buckethead  # makes vfs=buckethead known" in done.stdout
    assert "\x1b" not in done.stdout
    assert list(temporary.iterdir()) == []
    assert list(empty_folder.iterdir()) == [temporary]


def test_its_numbers() -> None:
    document = json.loads(child("demo", "--json").stdout)
    assert document["signal"] == signal.SIGKILL
    assert (document["kept"], document["lost"]) == (FLUSHED_ORDERS, LOST_ORDERS)
    assert document["folder"] is None
    steps = {step["step"]: step for step in document["steps"]}
    assert list(steps) == STEPS
    assert steps["write"]["requests"] == steps["write more"]["requests"] == 0
    again, database = steps["flush again"], document["size"]
    assert (again["pages"], again["requests"]) == (2, 1)
    assert again["bytes"] < document["page_size"] < database / 10
    sent = steps["flush"]["bytes"] + again["bytes"]
    assert again["bytes"] < steps["restore"]["bytes"] < sent + document["page_size"]
    assert database == steps["restore"]["pages"] * document["page_size"]
    assert (document["price"], document["first_price"]) == (NEW_PRICE, CHANGED_ORDER + 0.99)


def test_its_bucket_can_be_kept(temporary: Path) -> None:
    document = json.loads(child("demo", "--json", "--keep").stdout)
    folder = Path(document["folder"])
    assert list(temporary.iterdir()) == [folder]
    place = ["--endpoint-url", folder.as_uri(), "--key", "shop.db"]
    done = child(*place, "sql", "SELECT count(*) FROM orders")
    assert done.stdout == f"count(*)\n{FLUSHED_ORDERS}\n"
    assert str(folder) not in child("demo").stdout
    assert "is kept in" in child("demo", "--keep").stdout


def test_settings_of_the_person_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKETHEAD_BUCKET__NAME", "real")
    monkeypatch.setenv("BUCKETHEAD_BUCKET__ENDPOINT_URL", "http://127.0.0.1:1")
    assert child("demo").returncode == 0


def test_a_terminal_gets_colours() -> None:
    shown, _ = on_terminal("demo")
    assert "\x1b[" in shown
    assert "yours, in three lines" in shown


def test_a_child_that_ends_early_is_an_error(
    monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    program = shutil.which("false")
    assert program is not None
    monkeypatch.setattr(sys, "executable", program)
    assert "ended early" in failure("demo")
    assert list(temporary.iterdir()) == []
