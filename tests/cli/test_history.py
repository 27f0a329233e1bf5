"""`log` and `gc`."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from cli.tools import (
    DEFAULT,
    IMAGE,
    another_writer,
    cli,
    cli_json,
    damage,
    delta,
    everything,
    failure,
    insert,
    make_file,
    snapshot_of,
)
from servers import Server

DAY = 86_400


@pytest.fixture(autouse=True)
def database(empty_folder: Path) -> None:
    """Two commands have written: TXIDs 1 and 3, with a claim between."""
    make_file(empty_folder / "a.db", 3)
    assert cli("import", "a.db").exit_code == 0
    insert("last")


def age(path: Path, seconds: float) -> None:
    """Make a file look as if it was written so long ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_log_lists_everything_newest_first() -> None:
    snapshot_of(3)
    found = cli_json("log")
    kinds = [(record["txid"], record["kind"]) for record in found]
    assert kinds[:3] == [(3, "snapshot"), (3, "delta"), (2, "claim")]
    assert set(kinds[3:]) == {(1, "delta"), (1, "image")}
    by_kind = {(record["txid"], record["kind"]): record for record in found}
    assert by_kind[3, "delta"]["writer"] == by_kind[2, "claim"]["writer"]
    assert by_kind[3, "delta"]["writer"] != by_kind[1, "delta"]["writer"]
    assert by_kind[2, "claim"]["pages"] == 0
    assert by_kind[3, "delta"]["pages"] == 2
    assert by_kind[3, "snapshot"]["pages"] == by_kind[1, "image"]["pages"] == 2
    assert by_kind[3, "delta"]["bytes"] == delta(3).stat().st_size
    assert by_kind[1, "image"]["bytes"] == IMAGE.stat().st_size
    times = [by_kind[txid, kind]["time"] for txid, kind in ((1, "delta"), (2, "claim"))]
    assert times == sorted(times)


def test_log_shows_as_many_as_wanted() -> None:
    assert [record["txid"] for record in cli_json("log", "-n", "1")] == [3]
    lines = cli("log", "-n", "2").stdout.splitlines()
    assert lines[0].split("\t") == ["txid", "time", "pages", "bytes", "writer", "kind"]
    assert [line.split("\t")[0] for line in lines[1:]] == ["3", "2"]
    insert(*"abcdefghijkl")
    assert len(cli_json("log")) == 20


def test_log_counts_the_pages_of_a_large_delta_by_its_ending() -> None:
    cli("sql", "INSERT INTO t (name) SELECT hex(randomblob(500)) FROM t a, t b, t c, t d, t e")
    newest = cli_json("log", "-n", "1")[0]
    pages = cli_json("status")["page_count"]
    assert newest["bytes"] > 500_000
    assert pages - 2 <= newest["pages"] <= pages


def test_log_of_a_damaged_delta_goes_on() -> None:
    damage(delta(2), at=0)
    result = cli("log")
    assert result.exit_code == 0
    assert "damaged claim" in result.stdout
    assert delta(2).name in result.stderr
    assert [record["fault"] is None for record in cli_json("log", "-n", "3")][:2] == [True, False]


def test_log_of_an_image_alone(empty_folder: Path) -> None:
    make_file(empty_folder / DEFAULT / "plain.db")
    found = cli_json("--key", "plain.db", "log")
    assert [(record["txid"], record["kind"]) for record in found] == [(None, "image")]


def test_gc_frees_nothing_of_the_last_day() -> None:
    age(snapshot_of(3), DAY / 2)
    before = everything()
    assert cli_json("gc")["deltas"] == 0
    assert everything() == before


def test_gc_frees_what_is_older_than_the_retention_time(empty_folder: Path) -> None:
    another_writer("DELETE FROM t")
    another_writer("INSERT INTO t (name) VALUES ('back')")
    newest = cli_json("status")["txid"]
    age(snapshot_of(3), 2 * DAY)
    freed = delta(3).stat().st_size
    dry = cli_json("gc", "--dry-run")
    assert (dry["deltas"], dry["bytes"], dry["uploads"]) == (1, freed, None)
    assert delta(3).exists()
    done = cli_json("gc")
    assert (done["deltas"], done["bytes"], done["uploads"]) == (1, freed, 0)
    assert not delta(3).exists()
    assert delta(2).exists(), "a claim is kept for ever"
    assert cli_json("verify")["faults"] == []
    assert cli_json("status")["txid"] == newest
    assert "deltas\t0\n" in cli("gc").stdout


def test_gc_that_frees_nothing_says_why(empty_folder: Path) -> None:
    assert "there is no snapshot yet" in cli("gc").stderr
    assert "uploads\tnot looked at\n" in cli("gc", "--dry-run").stdout
    another_writer("DELETE FROM t")
    another_writer("INSERT INTO t (name) VALUES ('back')")
    snapshot = snapshot_of(3)
    age(snapshot, DAY / 2 + 60)
    assert "12 hours old, younger than the retention time, 24 hours" in cli("gc").stderr
    age(snapshot, 2 * DAY)
    assert cli("gc").stderr == ""
    assert "the rest is needed" in cli("gc").stderr
    make_file(empty_folder / DEFAULT / "plain.db")
    assert "no history" in cli("--key", "plain.db", "gc").stderr


def test_gc_keeps_as_long_as_it_is_told() -> None:
    another_writer("INSERT INTO t (name) VALUES ('a')")
    another_writer("INSERT INTO t (name) VALUES ('b')")
    age(snapshot_of(3), 2 * DAY)
    assert cli_json("gc", "--retention-seconds", str(3 * DAY))["deltas"] == 0
    assert cli_json("gc", "--retention-seconds", str(DAY))["deltas"] == 1


def blob(content: bytes, seconds: float = 0.0) -> Path:
    """A blob in the default directory bucket, put so long ago."""
    path = DEFAULT / "files" / hashlib.sha256(content).hexdigest()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    age(path, seconds)
    return path


REPORT = ("orphans_found", "orphans_deleted", "orphans_skipped_grace", "dangling_rows_found")


def reported(*arguments: str) -> tuple[int, ...]:
    document = cli_json("gc", *arguments)
    return tuple(document[name] for name in REPORT)


def test_gc_deletes_blobs_that_nothing_names(empty_folder: Path) -> None:
    named, old, young = blob(b"named", DAY), blob(b"old", 400), blob(b"young", 200)
    sql = "CREATE TABLE filestore(bh_key, object_key, filename)"
    for statement in (sql, f"INSERT INTO filestore VALUES('', 'files/{named.name}', '')"):
        assert cli("sql", statement).exit_code == 0
    assert reported("--dry-run") == (2, 1, 1, 0)
    assert old.exists()
    assert reported() == (2, 1, 1, 0)
    assert (named.exists(), old.exists(), young.exists()) == (True, False, True)
    assert reported("--grace-seconds", "100") == (1, 1, 0, 0)
    named.unlink()
    lines = cli("gc").stdout.splitlines()
    assert [f"{name}\t{int(name == REPORT[3])}" for name in REPORT] == lines[4:8]


def test_gc_that_cannot_read_a_state_deletes_no_blob(empty_folder: Path) -> None:
    orphan = blob(b"orphan", DAY)
    damage(delta(3), at=300)
    error = failure("gc")
    assert delta(3).name in error
    assert "No blob was deleted" in error
    assert orphan.exists()


def test_gc_aborts_uploads_that_nobody_finished(
    moto_endpoint: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = moto_endpoint.client()
    client.create_bucket(Bucket="gc-uploads")
    monkeypatch.setenv("BUCKETHEAD_BUCKET__ACCESS_KEY_ID", moto_endpoint.access_key_id)
    monkeypatch.setenv("BUCKETHEAD_BUCKET__SECRET_ACCESS_KEY", moto_endpoint.secret_access_key)
    where = ["--endpoint-url", moto_endpoint.endpoint_url, "--region", "us-east-1"]
    where += ["--bucket", "gc-uploads", "--key", "k"]
    assert cli(*where, "import", "a.db").exit_code == 0
    for key in ("k", "k.ltx/main/0000/x.ltx", "k2", f"files/{'a' * 64}", "files/other"):
        client.create_multipart_upload(Bucket="gc-uploads", Key=key)
    # moto says of every upload that it was begun in 2010
    assert cli_json(*where, "gc", "--grace-seconds", "1e9")["uploads"] == 0
    assert cli_json(*where, "gc")["uploads"] == 3
    left = client.list_multipart_uploads(Bucket="gc-uploads").get("Uploads", [])
    assert sorted(upload["Key"] for upload in left) == ["files/other", "k2"]
