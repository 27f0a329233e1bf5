"""What a state names, asked of SQLite only where the answer may be another (references.py)."""

from contextlib import AbstractContextManager, suppress
from pathlib import Path

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buckethead.files import references
from buckethead.files.references import Filestore, of_history
from buckethead.image.pages import PageImage
from buckethead.image.vfs import connected
from buckethead.storage.directory import DirectoryBucket
from buckethead.storage.history import look
from files.collecting_tools import TABLE, Filer, blob_of, no_row, plain_keys, row
from history_tools import PLACE

OTHERS = "CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)"

MANY = """
    WITH RECURSIVE n(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM n WHERE v < 60)
    INSERT OR IGNORE INTO filestore(bh_key, object_key, size, created_at)
    SELECT v, 'many/' || v, 1, 1.0 FROM n"""

STATEMENTS = [
    *(row(f"file {number}") for number in range(8)),
    *(no_row(f"file {number}") for number in range(8)),
    "INSERT INTO t(b) VALUES(randomblob(300))",
    "INSERT INTO t(b) VALUES(randomblob(9000))",
    "UPDATE t SET b = randomblob(700) WHERE a % 2",
    "DELETE FROM t WHERE a % 3",
    "UPDATE filestore SET metadata = hex(randomblob(3000)) WHERE rowid % 2",
    "UPDATE filestore SET object_key = object_key || 'x' WHERE filename = 'file 3'",
    "DELETE FROM filestore",
    "CREATE INDEX IF NOT EXISTS i ON filestore(object_key)",
    "DROP INDEX IF EXISTS i",
    "CREATE TABLE IF NOT EXISTS u(a)",
    "DROP TABLE IF EXISTS u",
    "DROP TABLE IF EXISTS filestore",
    "ALTER TABLE filestore RENAME TO elsewhere",
    "ALTER TABLE elsewhere RENAME TO filestore",
    "ALTER TABLE filestore ADD COLUMN more DEFAULT 1",
    "PRAGMA schema_version = 7",
    "VACUUM",
    MANY,
]


def run(image: PageImage, *statements: str) -> None:
    """What of the statements is possible."""
    with connected(image) as connection:
        for statement in statements:
            with suppress(apsw.SQLError):
                connection.execute(statement)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([512, 4096]),
    st.sampled_from(["NONE", "FULL"]),
    st.lists(st.lists(st.sampled_from(STATEMENTS), min_size=1, max_size=3), max_size=25),
)
def test_the_answer_is_that_of_asking_each_state_anew(
    page_size: int, vacuum: str, commits: list[list[str]]
) -> None:
    image = PageImage()
    start = (f"PRAGMA page_size={page_size}", f"PRAGMA auto_vacuum={vacuum}", OTHERS, TABLE)
    run(image, *start)
    filestore = Filestore()
    before: set[str] = set()
    for commit in commits:
        run(image, *commit)
        changed = filestore.look(image.page_size, list(image.pages))
        with connected(image) as connection:
            asked = plain_keys(connection)
        assert filestore.keys == asked
        assert changed == (asked != before)
        before = asked


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[PageImage]:
    """The images that SQLite is asked about."""
    images: list[PageImage] = []

    def noted(image: PageImage) -> AbstractContextManager[apsw.Connection]:
        images.append(image)
        return connected(image)

    monkeypatch.setattr(references, "connected", noted)
    return images


def test_sqlite_is_not_asked_about_what_changes_nothing(asked: list[PageImage]) -> None:
    image = PageImage()
    run(image, OTHERS, TABLE, row("file"))
    filestore = Filestore()
    assert filestore.look(image.page_size, list(image.pages))
    assert len(asked) == 1
    for _ in range(20):
        run(image, "INSERT INTO t(b) VALUES(randomblob(3000))", "DELETE FROM t WHERE a % 3 = 0")
        assert not filestore.look(image.page_size, list(image.pages))
    assert len(asked) == 1
    for statement in (row("another"), "CREATE TABLE u(a)", "PRAGMA schema_version = 99"):
        before = len(asked)
        run(image, statement)
        filestore.look(image.page_size, list(image.pages))
        assert len(asked) == before + 1
    assert filestore.keys == {blob_of("file"), blob_of("another")}


def test_a_state_is_left_as_it_is() -> None:
    image = PageImage()
    run(image, TABLE, row("file"))
    pages = list(image.pages)
    pages[0] = pages[0][:18] + b"\2\2" + pages[0][20:]
    before = list(pages)
    filestore = Filestore()
    assert filestore.look(image.page_size, pages), "it is read as a file in WAL mode would be"
    assert filestore.keys == {blob_of("file")}
    assert pages == before
    assert all(page is same for page, same in zip(pages, before, strict=True))


def test_a_file_that_ends_before_what_was_read() -> None:
    """Only a damaged database is cut off there, and that must not go unnoticed."""
    image = PageImage()
    run(image, TABLE, *(row(f"file {number}") for number in range(60)))
    count = len(image.pages)
    run(image, *(row(f"more {number}") for number in range(60)))
    filestore = Filestore()
    filestore.look(image.page_size, list(image.pages))
    page1 = image.pages[0][:28] + count.to_bytes(4) + image.pages[0][32:]
    with pytest.raises(references.UnreadableError, match="filestore cannot be read"):
        filestore.look(image.page_size, [page1, *image.pages[1:count]])


def test_a_header_that_claims_a_shorter_file() -> None:
    image = PageImage()
    run(image, TABLE, row("file"))
    filestore = Filestore()
    filestore.look(image.page_size, list(image.pages))
    page1 = image.pages[0][:28] + (1).to_bytes(4) + image.pages[0][32:]
    with pytest.raises(references.UnreadableError, match="filestore cannot be read"):
        filestore.look(image.page_size, [page1, *image.pages[1:]])


def test_a_history_of_many_deltas_is_asked_few_times(
    tmp_path: Path, asked: list[PageImage]
) -> None:
    local = DirectoryBucket(tmp_path / "bucket")
    filer = Filer(local)
    filer.put("first").flush()
    for number in range(30):
        filer.publish()
        if number == 20:
            filer.drop("first").put("second").flush()
    asked.clear()
    named = of_history(local, look(local, PLACE))
    assert named.ever == {blob_of("first"), blob_of("second")}
    assert named.now == {blob_of("second")}
    assert len(asked) == 3, "the first state, that with a new table beside, and the changed one"
