"""`status`, `inspect`, `config show`."""

import time
from pathlib import Path
from typing import Any

import pytest

from buckethead.core import BucketSQLite
from buckethead.facts import NAMES
from buckethead.storage.directory import DirectoryBucket
from buckethead.storage.history import utc
from cli.tools import (
    DEFAULT,
    IMAGE,
    KEY,
    another_writer,
    cli,
    cli_json,
    config,
    damage,
    insert,
    make_file,
)


@pytest.fixture(autouse=True)
def database(empty_folder: Path) -> None:
    """Three rows in the first state and the image, four rows now."""
    make_file(empty_folder / "a.db", 3)
    assert cli("import", "a.db").exit_code == 0
    insert("last")


def test_status_tells_what_is_at_the_key(empty_folder: Path) -> None:
    found = cli_json("status")
    assert (found["bucket"], found["key"]) == ((empty_folder / DEFAULT).as_uri(), KEY)
    assert (found["txid"], found["deltas"], found["snapshots"]) == (3, 3, 0)
    assert found["size"] == found["page_count"] * found["page_size"] == IMAGE.stat().st_size
    assert len(found["writer"]) == 16
    assert 0 <= found["age_seconds"] < 600
    assert 0 <= time.time() - found["durable_at"] - found["age_seconds"] < 60
    assert found["kept_since"]["txid"] == 1
    assert (found["image"]["key"], found["image"]["txid"]) == (KEY, 1)
    assert len(found["image"]["checksum"]) == 16
    assert found["deltas_since_image"] == 2
    assert found["previous"] is None
    text = cli("status").stdout
    for value in (
        found["bucket"],
        KEY,
        found["writer"],
        found["image"]["checksum"],
        "seconds",
        " kB)",
    ):
        assert value in text


def test_status_for_a_person_is_one_fact_in_a_line() -> None:
    lines = dict(line.split("\t") for line in cli("status").stdout.splitlines())
    found = cli_json("status")
    assert lines["age"].endswith((" second", " seconds"))
    assert lines["durable at"] == utc(found["durable_at"])
    assert lines["size"] == "8,192 bytes (8.2 kB)"
    assert lines["image"] == KEY
    assert lines["image txid"] == "1"
    assert lines["image size"] == "8,192 bytes (8.2 kB)"
    assert lines["image checksum"] == found["image"]["checksum"]
    assert lines["bytes since image"] == f"{found['bytes_since_image']} bytes"
    assert (lines["kept since txid"], lines["previous"]) == ("1", "none")


def test_status_of_the_image_before(empty_folder: Path) -> None:
    another_writer("INSERT INTO t (name) VALUES ('of a program')")
    found = cli_json("status")
    assert (found["txid"], found["image"]["txid"], found["previous"]["txid"]) == (5, 5, 1)
    assert found["previous"]["key"] == f"{KEY}.prev"
    assert (found["deltas_since_image"], found["bytes_since_image"]) == (0, 0)


def test_status_of_a_file_that_another_program_put_there(empty_folder: Path) -> None:
    make_file(empty_folder / DEFAULT / "plain.db")
    found = cli_json("--key", "plain.db", "status")
    assert (found["page_count"], found["txid"], found["previous"]) == (None, 0, None)
    assert found["image"]["checksum"] is None
    text = cli("--key", "plain.db", "status").stdout
    assert "page count\tnone\n" in text
    assert "txid\t0\n" in text


def test_status_says_that_an_image_and_the_history_contradict_each_other(
    empty_folder: Path,
) -> None:
    make_file(empty_folder / "theirs.db", 7).rename(IMAGE)
    result = cli("status", "--json")
    assert result.exit_code == 0
    assert "another program" in result.stderr
    assert '"txid": 3' in result.stdout


def test_status_has_the_names_and_values_of_bh_status() -> None:
    where = config()
    with BucketSQLite(where) as mounted:
        told = dict(mounted.connection.execute("SELECT name, value FROM bh_status"))
        found = cli_json("status")
    assert {*NAMES} <= told.keys() & found.keys()
    kept = (
        "key",
        "branch",
        "bucket",
        "txid",
        "image_txid",
        "durable_at",
        "page_size",
        "page_count",
    )
    for name in (*kept, "size"):
        assert found[name] == told[name], name
    assert found["requests"] == sum(found[name] for name in found if name.startswith("requests_"))
    only_there = ("name", "state", "version", "dirty_pages", "pins", "last_flush_at", "swept_keys")
    assert [found[name] for name in only_there] == [None] * len(only_there)
    lines = [line.split("\t")[0].replace(" ", "_") for line in cli("status").stdout.splitlines()]
    assert not {*only_there} & {*lines}


def test_status_never_downloads() -> None:
    damage(IMAGE)  # nothing in it is looked at
    assert cli_json("status")["image"]["size"] == IMAGE.stat().st_size


def test_status_asks_for_headers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    inner = DirectoryBucket.get_range

    def get_range(self: DirectoryBucket, *arguments: Any, **options: Any) -> bytes:
        data = inner(self, *arguments, **options)
        asked.append(len(data))
        return data

    monkeypatch.setattr(DirectoryBucket, "get_range", get_range)
    cli_json("status")
    assert set(asked) == {100}


def test_inspect_shows_schema_rows_and_pages() -> None:
    cli(
        "sql", 'CREATE TABLE "odd ""name" (x); CREATE VIEW v AS SELECT 1; CREATE INDEX i ON t(name)'
    )
    found = cli_json("inspect")
    assert found["tables"] == {'odd "name': 0, "t": 4}
    assert any("CREATE INDEX i" in sql for sql in found["schema"])
    assert any("CREATE VIEW v" in sql for sql in found["schema"])
    assert found["size"] == found["pages"] * found["page_size"]
    text = cli("inspect").stdout
    assert "t\t4\n" in text
    assert "CREATE INDEX i ON t(name);\n" in text


def test_config_show_masks_what_is_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKETHEAD_BUCKET__NAME", "b")
    monkeypatch.setenv("BUCKETHEAD_BUCKET__ACCESS_KEY_ID", "an-id")
    monkeypatch.setenv("BUCKETHEAD_BUCKET__SECRET_ACCESS_KEY", "sesame")
    result = cli("--key", "k", "config", "show")
    assert "key\tk\n" in result.stdout
    assert "session_token\tnot set\n" in result.stdout
    found = cli_json("--key", "k", "config", "show")
    assert (found["bucket"], found["key"]) == ("b", "k")
    assert set(found["secret_access_key"]) == {"*"}
    assert "sesame" not in result.output + str(found)


def test_config_show_without_settings_names_the_default_directory(empty_folder: Path) -> None:
    assert cli_json("config", "show")["endpoint_url"] == (empty_folder / DEFAULT).as_uri()


def test_config_show_keeps_to_a_file_of_settings(tmp_path: Path) -> None:
    file = tmp_path / "home" / ".config" / "buckethead" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text('[env.bucket]\nname = "of-the-file"\nregion = "eu-west-1"\n')
    assert cli_json("config", "show")["bucket"] == "of-the-file"
    assert cli_json("--bucket", "mine", "config", "show")["region"] == "eu-west-1"
