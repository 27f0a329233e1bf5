"""`branches`, and `--branch` for every other command."""

import os

import pytest

from buckethead.config import BucketConfig
from buckethead.core import BucketSQLite, registry
from buckethead.storage.directory import DirectoryBucket
from buckethead.storage.layout import Place
from buckethead.storage.restoring import restore
from buckethead.storage.retention import write_snapshot
from cli.tools import DEFAULT, KEY, child, cli, cli_json, failure


@pytest.fixture(autouse=True)
def database() -> None:
    sql("CREATE TABLE t(x); INSERT INTO t VALUES ('of main')")


def sql(statements: str, branch: str = "main") -> None:
    result = cli("--branch", branch, "sql", statements)
    assert result.exit_code == 0, result.stderr


def rows(branch: str = "main") -> list[str]:
    found = cli_json("--branch", branch, "sql", "SELECT x FROM t ORDER BY rowid")
    return [row[0] for row in found["results"][0]["rows"]]


def names() -> list[str]:
    return [branch["name"] for branch in cli_json("branches", "list")]


def done(*arguments: str) -> str:
    result = cli(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stderr


def test_a_branch_is_made_written_and_compared() -> None:
    assert "made the branch 'x'" in done("branches", "create", "x")
    sql("INSERT INTO t VALUES ('of x')", "x")
    assert rows("x") == ["of main", "of x"]
    assert rows() == ["of main"]
    listed = cli_json("branches", "list")
    assert [(b["name"], b["current"], b["key"]) for b in listed] == [
        ("main", True, KEY),
        ("x", False, f"{KEY}.branch.x"),
    ]
    assert [b["current"] for b in cli_json("--branch", "x", "branches", "list")] == [False, True]
    assert "of x" not in cli("branches", "list").stdout
    assert f"{KEY}.branch.x" in cli("branches", "list").stdout


def test_from_another_branch() -> None:
    done("branches", "create", "x")
    sql("INSERT INTO t VALUES ('of x')", "x")
    done("--branch", "x", "branches", "create", "y")
    assert rows("y") == ["of main", "of x"]


def test_overwriting_asks_and_is_one_commit() -> None:
    done("branches", "create", "x")
    sql("INSERT INTO t VALUES ('better')", "x")
    before = cli_json("log")
    assert "would overwrite the branch 'main'" in done(
        "--branch", "x", "branches", "overwrite", "main", "--dry-run"
    )
    refused = cli("--branch", "x", "branches", "overwrite", "main")
    assert refused.exit_code == 1
    assert rows() == ["of main"]
    assert cli_json("log") == before
    done("--branch", "x", "branches", "overwrite", "main", "--yes")
    assert rows() == ["of main", "better"]
    done("restore", "--txid", str(before[0]["txid"]), "before.db")


def test_deleting_asks() -> None:
    done("branches", "create", "x")
    assert "would delete the branch 'x'" in done("branches", "delete", "x", "--dry-run")
    assert cli("branches", "delete", "x").exit_code == 1
    assert names() == ["main", "x"]
    done("branches", "delete", "x", "--yes")
    assert names() == ["main"]
    assert "no branch 'x'" in failure("branches", "delete", "x", "--yes")
    assert "no branch 'x'" in failure("--branch", "x", "status")


def test_a_writer_that_may_be_running_is_not_taken_over() -> None:
    done("branches", "create", "x")
    with BucketSQLite(stored_config("x")) as app:
        app.connection.execute("INSERT INTO t VALUES ('of x')")
        app.force_flush()
        assert "--take-over" in cli("branches", "delete", "x", "--yes").stderr
        assert "--take-over" in child("branches", "overwrite", "x", "--yes").stderr
        app.connection.execute("INSERT INTO t VALUES ('more')")
    assert rows("x") == ["of main", "of x", "more"]


def stored_config(branch: str) -> BucketConfig:
    return BucketConfig(
        bucket="buckethead-data",
        key=KEY,
        endpoint_url=DEFAULT.absolute().as_uri(),
        initial_branch=branch,
    )


@pytest.mark.parametrize("name", ["a/b", "..", "x" * 300, ""])
@pytest.mark.parametrize("command", ["create", "delete", "overwrite"])
def test_nasty_names(command: str, name: str) -> None:
    assert "is no name for a branch" in failure("branches", command, name)
    assert names() == ["main"]


def test_what_cannot_be_done() -> None:
    assert "there is one already" in failure("branches", "create", "main")
    assert "cannot be" in failure("branches", "delete", "main", "--yes")
    assert "with itself" in failure("branches", "overwrite", "main", "--yes")
    assert "no branch 'x'" in failure("branches", "overwrite", "x", "--yes")
    assert "no branch 'x'" in failure("--branch", "x", "branches", "create", "y")
    assert "no branch 'x'" in failure("--branch", "x", "sql", "SELECT 1")
    assert "There is no database 'none.db'" in failure("--key", "none.db", "branches", "list")


@pytest.mark.parametrize(
    "command", [["status"], ["inspect"], ["log"], ["verify"], ["gc", "--dry-run"], ["restore", "f"]]
)
def test_other_commands_are_about_the_branch(command: list[str]) -> None:
    done("branches", "create", "x")
    sql("INSERT INTO t VALUES ('of x')", "x")
    assert done("--branch", "x", *command) is not None
    if command == ["restore", "f"]:
        command = ["restore", "another"]
    assert "no branch 'y'" in failure("--branch", "y", *command)


def test_restoring_a_branch() -> None:
    done("branches", "create", "x")
    sql("INSERT INTO t VALUES ('of x')", "x")
    done("--branch", "x", "restore", "x.db")
    done("restore", "main.db")
    done("import", "--force", "x.db")
    assert rows() == ["of main", "of x"]
    done("--branch", "x", "import", "--force", "main.db")
    assert rows("x") == ["of main"]
    assert "no branch 'y'" in failure("--branch", "y", "import", "main.db")
    assert registry.volumes() == []


def test_gc_is_about_every_branch_or_one() -> None:
    done("branches", "create", "x")
    for branch in ("main", "x"):
        for number in range(3):
            with BucketSQLite(stored_config(branch)) as app:  # writes an image at its end
                app.connection.execute("INSERT INTO t VALUES (?)", (number,))
    retention = ("gc", "--dry-run", "--retention-seconds", "0.000001")
    write_snapshots()
    every = cli_json(*retention)["deltas"]
    one = cli_json("--branch", "x", *retention)["deltas"]
    assert every > one > 0


def write_snapshots() -> None:
    """What retention goes back to, in both branches."""
    bucket = DirectoryBucket(DEFAULT)
    for branch in ("main", "x"):
        restored = restore(bucket, Place(KEY, branch))
        assert restored is not None
        assert restored.stamp is not None
        with restored.image.pinned() as pin:
            write_snapshot(pin, bucket, Place(KEY, branch), restored.stamp)
        os.utime(DEFAULT / Place(KEY, branch).snapshot(restored.stamp.txid), (0, 0))
        sql("INSERT INTO t VALUES ('newest')", branch)


def test_what_changes_something_says_so_in_json() -> None:
    made = cli_json("branches", "create", "x")
    assert (made["name"], made["txid"]) == ("x", 2)
    assert cli_json("branches", "overwrite", "x", "--dry-run")["dry_run"] is True
    assert cli_json("branches", "overwrite", "x", "--yes")["name"] == "x"
    assert cli_json("branches", "delete", "x", "--dry-run")["txid"] == 4  # a claim, and one commit
    assert cli_json("branches", "delete", "x", "--yes") == {"name": "x", "deleted": True}
    assert names() == ["main"]
