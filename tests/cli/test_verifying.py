"""`verify`: every kind of fault is found, and what is sound is not complained about."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from buckethead.cli import checking
from buckethead.storage import ltx
from buckethead.storage.contract import Bucket
from buckethead.storage.directory import open_bucket
from buckethead.storage.history import Timeline
from cli.tools import (
    DEFAULT,
    IMAGE,
    KEY,
    another_writer,
    cli,
    cli_json,
    config,
    damage,
    delta,
    everything,
    failure,
    insert,
    make_file,
    snapshot_of,
)
from servers import Server

PREVIOUS = DEFAULT / f"{KEY}.prev"


@pytest.fixture(autouse=True)
def database(empty_folder: Path) -> None:
    """TXID 1 and the image before: three rows. TXID 3, 5 by commands, 7 by a program with its
    image."""
    make_file(empty_folder / "a.db", 3)
    assert cli("import", "a.db").exit_code == 0
    insert("fourth", "fifth")
    another_writer("INSERT INTO t (name) VALUES ('sixth')")


def faults(*arguments: str) -> Any:
    """The document of a run that must find faults."""
    result = cli("verify", "--json", *arguments)
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert not document["sound"]
    assert document["faults"]
    return document


def test_a_sound_history() -> None:
    snapshot_of(3)
    before = everything()
    found = cli_json("verify")
    assert (found["sound"], found["faults"], found["lost"], found["notes"]) == (True, [], [], [])
    assert (found["newest"], found["restorable"]) == (7, 7)
    assert (found["deltas"], found["snapshots"], found["images"]) == (7, 1, 2)
    assert "faults\t0\n" in cli("verify").stdout
    assert everything() == before


def test_a_sound_history_that_retention_has_cut() -> None:
    snapshot_of(5)
    for txid in (3, 5):
        delta(txid).unlink()
    found = cli_json("verify")
    assert (found["sound"], found["restorable"], found["lost"]) == (True, 7, [])


@pytest.mark.parametrize("txid", range(1, 8))
@pytest.mark.parametrize("at", [0, 60, 120, -1], ids=["magic", "middle", "later", "checksum"])
def test_a_damaged_delta(txid: int, at: int) -> None:
    damage(delta(txid), at)
    found = faults()
    assert (txid, KEY) in {
        (fault["txid"], fault["key"].split(".ltx")[0]) for fault in found["faults"]
    }
    assert found["restorable"] == 7, "by the image"
    assert cli("restore", "--txid", "7", "out.db").exit_code == 0


@pytest.mark.parametrize("txid", [2, 3, 5, 6])
def test_a_missing_delta(txid: int) -> None:
    delta(txid).unlink()
    found = faults()
    assert [(fault["txid"], fault["fault"]) for fault in found["faults"]] == [
        (txid, "the delta is missing")
    ]
    assert found["restorable"] == 7
    first = {3: 2, 5: 4}.get(txid, txid)  # a claim before a gap may have landed in it
    assert found["lost"] == [[first, 6]]
    lost = "6" if txid == 6 else f"{first}-6"
    result = cli("verify")
    assert f"what is lost is TXID {lost}" in result.stderr.splitlines()[-1]
    assert f"lost\t{lost}\n" in result.stdout


def test_every_state_that_is_not_lost_can_be_restored() -> None:
    snapshot_of(3)
    damage(delta(2), at=-1)
    delta(5).unlink()
    found = faults()
    assert found["lost"] == [[2, 2], [4, 6]]
    codes = [cli("restore", "--txid", str(n), "--force", "x.db").exit_code for n in range(1, 8)]
    assert codes == [0, 1, 0, 1, 1, 1, 0]
    IMAGE.unlink()
    assert faults()["restorable"] == 3, "what is named can be restored"


def test_a_history_that_is_gone_is_said() -> None:
    assert cli("verify").stderr == ""
    shutil.rmtree(DEFAULT / f"{KEY}.ltx")
    found = cli_json("verify")
    assert (found["sound"], found["newest"], found["faults"]) == (True, 0, [])
    assert "TXID 7" in found["notes"][0]
    assert found["notes"][0] in cli("verify").stderr


def test_the_best_state_is_named_when_the_newest_cannot_be_restored() -> None:
    IMAGE.unlink()
    PREVIOUS.unlink()
    damage(delta(5), at=-1)
    result = cli("verify")
    assert result.exit_code == 1
    assert "TXID 4: `buckethead restore --txid 4 FILE`" in result.stderr.splitlines()[-1]
    assert delta(5).name in result.stdout
    assert cli("restore", "--txid", "4", "out.db").exit_code == 0
    assert faults()["restorable"] == 4


@pytest.mark.parametrize("path", [IMAGE, PREVIOUS], ids=["image", "previous"])
def test_a_damaged_image(path: Path) -> None:
    damage(path)
    found = faults()
    assert {fault["key"] for fault in found["faults"]} == {str(path.relative_to(DEFAULT))}
    assert found["restorable"] == 7


def test_an_image_that_is_another_state() -> None:
    """Sound in itself, stamped for this history, and wrong."""
    bucket = open_bucket(config())
    info = bucket.head(KEY)
    assert info is not None
    metadata = {name: value for name, value in info.metadata.items() if name.endswith("history")}
    cli("restore", "--txid", "5", "other.db")
    bucket.put_bytes(Path("other.db").read_bytes(), KEY, metadata=metadata)
    found = faults()
    assert [fault["key"] for fault in found["faults"]] == [KEY]
    assert "not the state of its TXID" in found["faults"][0]["fault"]


def test_a_snapshot_that_is_another_state() -> None:
    path = snapshot_of(5)
    contents = ltx.decode(path.read_bytes())
    wrong = contents.pages | {2: contents.pages[2][:-1] + b"!"}
    path.write_bytes(b"".join(ltx.encode(contents.header, wrong.items())))
    found = faults()
    assert [(fault["txid"], "0009" in fault["key"]) for fault in found["faults"]] == [(5, True)]
    assert "page" in found["faults"][0]["fault"]


def test_a_writer_who_never_claimed() -> None:
    contents = ltx.decode(delta(5).read_bytes())
    header = ltx.Header(
        contents.header.page_size,
        contents.header.commit,
        *(5, 5, contents.header.timestamp, contents.header.node_id ^ 2),
    )
    delta(5).write_bytes(b"".join(ltx.encode(header, contents.pages.items())))
    found = faults()
    assert found["faults"][0]["txid"] == 5
    assert "claimed" in found["faults"][0]["fault"]


def test_an_image_of_another_program() -> None:
    make_file(IMAGE.with_name("theirs"), 2).rename(IMAGE)
    found = faults()
    assert [fault["key"] for fault in found["faults"]] == [KEY]
    assert "import --force" in found["faults"][0]["fault"]


def test_content_that_only_integrity_check_finds_wrong() -> None:
    """Every checksum is right: it was wrong when it was published."""
    contents = ltx.decode(delta(7).read_bytes())
    wrong = contents.pages | {2: b"\xff" + contents.pages[2][1:]}
    delta(7).write_bytes(b"".join(ltx.encode(contents.header, wrong.items())))
    IMAGE.unlink()
    assert "integrity_check" in faults()["faults"][0]["fault"]


def test_only_what_leads_to_a_state_is_looked_at() -> None:
    damage(delta(5), at=-1)
    found = cli_json("verify", "--txid", "4")
    assert (found["newest"], found["restorable"], found["deltas"]) == (4, 4, 4)
    time_of_3 = next(record["time"] for record in cli_json("log") if record["txid"] == 3)
    assert cli_json("verify", "--at", time_of_3)["newest"] == 3
    assert faults("--txid", "5")["restorable"] == 4
    assert (8, "the delta is missing") in {
        (fault["txid"], fault["fault"]) for fault in faults("--txid", "8")["faults"]
    }


def test_what_a_writer_deletes_meanwhile_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []

    def check(bucket: Bucket, timeline: Timeline, *more: Any) -> checking.Findings:
        looked.append(timeline)
        if len(looked) == 1:
            snapshot_of(5)
            for txid in (3, 5):
                delta(txid).unlink()
        return checking.check(bucket, timeline, *more)

    monkeypatch.setattr("buckethead.cli.verifying.check", check)
    assert cli_json("verify")["snapshots"] == 1
    assert len(looked) == 2


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0", b"x" * 4096, b"\0" * 10_000])
def test_an_image_without_history_that_is_no_database(empty_folder: Path, content: bytes) -> None:
    (empty_folder / DEFAULT / "plain.db").write_bytes(content)
    line = failure("--key", "plain.db", "verify")
    assert "look for a backup" in line


def test_an_image_without_history(empty_folder: Path) -> None:
    plain = make_file(empty_folder / DEFAULT / "plain.db", 1_000)
    found = cli_json("--key", "plain.db", "verify")
    assert (found["sound"], found["newest"], found["images"]) == (True, 0, 1)
    damage(plain)
    assert cli("--key", "plain.db", "verify").exit_code == 1


def test_an_image_in_s3_whose_checksum_is_wrong(
    moto_endpoint: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = moto_endpoint.client()
    client.create_bucket(Bucket="verify")
    monkeypatch.setenv("BUCKETHEAD_BUCKET__ACCESS_KEY_ID", moto_endpoint.access_key_id)
    monkeypatch.setenv("BUCKETHEAD_BUCKET__SECRET_ACCESS_KEY", moto_endpoint.secret_access_key)
    where = ["--endpoint-url", moto_endpoint.endpoint_url, "--region", "us-east-1"]
    where += ["--bucket", "verify", "--key", "k"]
    assert cli(*where, "import", "a.db").exit_code == 0
    assert cli(*where, "verify").exit_code == 0
    written = client.get_object(Bucket="verify", Key="k")
    content = bytearray(written["Body"].read())
    content[-1] ^= 1  # within a row's text: SQLite sees nothing wrong with it
    client.put_object(Bucket="verify", Key="k", Body=bytes(content), Metadata=written["Metadata"])
    assert "its checksum was" in cli(*where, "verify").stdout
    assert cli(*where, "restore", "out.db").exit_code == 0, "by the first delta"
    assert "its checksum was" in failure(*where, "restore", "--image", "image.db")
