"""`shares`."""

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from buckethead import sharing
from buckethead.cli.app import commands
from buckethead.config import BucketConfig
from buckethead.connection import Connection
from buckethead.core import BucketSQLite, mount, unmount
from buckethead.errors import BucketUnavailableError
from buckethead.storage.directory import DirectoryBucket
from buckethead.uris import uri_of
from buckethead.volume import Volume
from cli.tools import (
    DEFAULT,
    child,
    cli,
    cli_json,
    config,
    everything,
    failure,
    on_terminal,
)
from servers import Server, fresh_bucket

BASE = "https://files.example.com"
WEB = ("--project", "web")


def settings(text: str) -> None:
    folder = Path.home() / ".config" / "buckethead"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(text)


@pytest.fixture(autouse=True)
def project(empty_folder: Path) -> None:
    settings(
        f"""[projects.web]
        bucket = "s"
        endpoint_url = "{(empty_folder / "shared").as_uri()}"
        public = true
        public_base_url = "{BASE}"
        """
    )


@pytest.fixture
def shared(empty_folder: Path) -> DirectoryBucket:
    return DirectoryBucket(empty_folder / "shared")


@pytest.fixture
def key() -> str:
    """A file in the database."""
    with BucketSQLite(config()) as started:
        return started.files.put(b"content", filename="a.txt", mime="text/plain")


def listed() -> list[str]:
    return [row["share_key"] for row in cli_json("shares", "list", *WEB)]


def test_the_url_alone_is_on_stdout(key: str, shared: DirectoryBucket) -> None:
    result = cli("shares", "share", key, *WEB, "--ttl", "60")
    assert result.exit_code == 0
    share_key = f"a/{key[:8]}.txt"
    assert result.stdout == f"{BASE}/{share_key}\n"
    assert f"shared as {share_key} until 20" in result.stderr
    assert "flushed" in result.stderr
    assert shared.get_bytes(share_key) == b"content"
    (row,) = cli_json("shares", "list", *WEB)
    assert (row["share_key"], row["bh_key"], row["mode"]) == (share_key, key, "public")
    assert row["url"] == f"{BASE}/{share_key}"
    assert 0 < row["expires_at"] - time.time() <= 60


def test_a_share_as_json(key: str) -> None:
    document = cli_json("shares", "share", key, *WEB, "--name", "For Ann")
    assert document == {
        "bh_key": key,
        "share_key": f"for-ann/{key[:8]}.txt",
        "url": f"{BASE}/for-ann/{key[:8]}.txt",
        "mode": "public",
        "expires_at": pytest.approx(time.time() + 7 * 86_400, abs=600),
    }


def test_a_list_for_a_pipe_and_for_a_terminal(key: str) -> None:
    cli("shares", "share", key, *WEB)
    lines = cli("shares", "list", *WEB).stdout.splitlines()
    assert lines[0].split("\t") == ["share", "file", "mode", "expires_at", "url"]
    assert lines[1].startswith(f"a/{key[:8]}.txt\t{key}\tpublic\t20")
    assert "public" in on_terminal("shares", "list", *WEB)[0]


def test_unshare_asks(key: str, shared: DirectoryBucket) -> None:
    cli("shares", "share", key, *WEB)
    arguments = ["shares", "unshare", f"a/{key[:8]}.txt", *WEB]
    for answer in ("", "n\n"):
        asked = CliRunner().invoke(commands, arguments, input=answer)
        assert asked.exit_code == 1
        assert "End the share" in asked.stderr
        assert len(listed()) == 1
    assert CliRunner().invoke(commands, arguments, input="y\n").exit_code == 0
    assert listed() == []
    assert list(shared.list_keys()) == []


def test_unshare_does_not_ask_with_yes(key: str, shared: DirectoryBucket) -> None:
    cli("shares", "share", key, *WEB)
    assert cli("shares", "unshare", f"a/{key[:8]}.txt", *WEB, "--yes").exit_code == 0
    assert listed() == []
    assert list(shared.list_keys()) == []
    said = cli("shares", "unshare", "a/00000000", *WEB, "--yes")
    assert said.exit_code == 1
    assert "`buckethead shares list --project web`" in said.stderr
    assert cli_json("verify")["sound"]


def test_a_sweep_removes_what_is_over(
    key: str, shared: DirectoryBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("shares", "share", key, *WEB, "--ttl", "60")
    share_key = f"a/{key[:8]}.txt"
    assert cli("shares", "sweep", *WEB).stdout == "share\tstate\n"

    class Later:
        @staticmethod
        def time() -> float:
            return time.time() + 61

    monkeypatch.setattr(sharing, "time", Later)
    before = everything()
    assert cli("shares", "sweep", *WEB, "--dry-run").stdout == f"share\tstate\n{share_key}\tover\n"
    assert cli_json("shares", "sweep", *WEB, "--dry-run")["removed"] == [share_key]
    assert shared.exists(share_key)
    assert everything() == before
    report = cli_json("shares", "sweep", *WEB)
    assert report == {"removed": [share_key], "unrecorded": [], "dry_run": False}
    assert not shared.exists(share_key)
    assert listed() == []


def test_a_sweep_tells_of_shares_that_are_not_listed(key: str, shared: DirectoryBucket) -> None:
    cli("shares", "share", key, *WEB)
    cli("sql", "DELETE FROM filestore_shares")
    share_key = f"a/{key[:8]}.txt"
    assert cli("shares", "sweep", *WEB).stdout == f"share\tstate\n{share_key}\tnot listed\n"
    assert cli("shares", "unshare", share_key, *WEB, "--yes").exit_code == 0
    assert list(shared.list_keys()) == []


@pytest.mark.parametrize("arguments", [["share", "{key}"], ["unshare", "x/0", "--yes"], ["sweep"]])
def test_another_writer_is_in_the_way_before_anything_happens(
    key: str, shared: DirectoryBucket, arguments: list[str]
) -> None:
    running_writer()
    words = [argument.replace("{key}", key) for argument in arguments]
    before = everything()
    result = cli("shares", *words, *WEB)
    assert result.exit_code == 1
    assert "--take-over" in result.stderr
    assert (everything(), list(shared.list_keys())) == (before, [])


def running_writer() -> None:
    volume = mount("running", config())
    connection = Connection(uri_of("running"))
    connection.execute("CREATE TABLE theirs(x)")
    connection.close()
    volume.checkpoint()
    unmount("running", discard=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["share", "0" * 64, *WEB], "no file of that key"),
        (["share", "{key}", *WEB, "--ttl", "-1"], "ttl_seconds=-1.0"),
        (["share", "{key}", *WEB, "--ttl", "nan"], "ttl_seconds=nan"),
        (["share", "{key}", *WEB, "--name", "..."], "no letter or digit"),
        (["share", "{key}", "--project", "nope"], "no table [projects.nope]"),
        (["list", "--project", "nope"], "found: web"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_in_nobody_s_way(
    key: str, arguments: list[str], words: str
) -> None:
    result = cli("shares", *(argument.replace("{key}", key) for argument in arguments))
    assert result.exit_code == 1
    assert words in result.stderr.splitlines()[-1]
    assert cli("sql", "CREATE TABLE after(x)").exit_code == 0, "nobody has to wait"


def test_a_database_that_is_not_there_is_not_made(empty_folder: Path) -> None:
    for command in (["share", "0" * 64], ["list"], ["unshare", "x/0", "--yes"], ["sweep"]):
        assert "no such folder" in failure("shares", *command, *WEB)
    assert not (empty_folder / DEFAULT).exists()


def test_the_project_must_be_named() -> None:
    result = cli("shares", "list")
    assert result.exit_code == 2
    assert "--project" in result.stderr


def test_a_share_that_could_not_be_published_says_how_it_is_ended(
    key: str, shared: DirectoryBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flush(self: Volume) -> None:
        raise BucketUnavailableError("Could not reach it.")

    with monkeypatch.context() as broken:
        broken.setattr("buckethead.volume.Volume.flush", flush)
        result = cli("shares", "share", key, *WEB)
    assert result.exit_code == 1
    assert result.stdout == ""
    share_key = f"a/{key[:8]}.txt"
    line = result.stderr.splitlines()[-1]
    assert "Could not reach it." in line
    assert f"`buckethead shares unshare --project web {share_key}`" in line
    assert listed() == []
    assert cli("shares", "unshare", *WEB, share_key, "--yes", "--take-over").exit_code == 0
    assert list(shared.list_keys()) == []


# ---- presigned


@pytest.fixture
def private(seaweed_endpoint: Server) -> Iterator[BucketConfig]:
    """A share bucket in a store of S3: the project ``private``."""
    with fresh_bucket(seaweed_endpoint) as name:
        bucket = seaweed_endpoint.config(name)
        settings(
            f"""[projects.private]
            bucket = "{name}"
            endpoint_url = "{bucket.endpoint_url}"
            region = "{bucket.region}"
            access_key_id = "{seaweed_endpoint.access_key_id}"
            secret_access_key = "{seaweed_endpoint.secret_access_key}"
            """
        )
        yield bucket


@pytest.mark.usefixtures("private")
def test_a_presigned_url_is_printed_once(key: str) -> None:
    done = child("shares", "share", key, "--project", "private")
    url = done.stdout.strip()
    with urllib.request.urlopen(url, timeout=30) as reply:
        assert reply.read() == b"content"
    assert "Signature" not in done.stderr
    for command in (["list"], ["list", "--json"], ["sweep", "--json"]):
        found = child("shares", *command, "--project", "private")
        assert found.returncode == 0, found.stderr
        assert "Signature" not in found.stdout + found.stderr
    document = json.loads(child("shares", "list", "--json", "--project", "private").stdout)
    assert [row["url"] for row in document] == [None]
