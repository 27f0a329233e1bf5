"""Stock Litestream reads our histories: what it makes of one is byte for byte what we restore.

Litestream is asked in two ways that have little in common: page by page through the index of each
file, and by hydration, which is the code of `litestream restore`. It runs in a child process, as
its extension breaks other SQLite connections of the process that loads it.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal
from urllib.parse import urlencode

import apsw
import pytest

from buckethead import Branches, checkpoints
from buckethead.config import BucketConfig, SnapshotConfig
from buckethead.core import registry
from buckethead.storage import retention
from buckethead.storage.history import Timeline, look
from buckethead.storage.layout import TXID
from buckethead.storage.restoring import restore
from buckethead.uris import uri_of
from buckethead.volume import Volume
from volume_tools import PATIENCE, directory, forget, nothing_left_mounted

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("litestream_vfs") is None,
    reason="litestream-vfs is not installed: pip install 'buckethead[interop]' (glibc 2.35 or "
    "newer, Python 3.13 or older)",
)

NAME = "interop"
PAGE_SIZE = 4096
DAY = 86_400.0
TABLE = "CREATE TABLE t (id INTEGER PRIMARY KEY, content)"

OPEN = """
import pathlib, sys, time
import apsw, litestream_vfs

loader = apsw.Connection(":memory:")
loader.enable_load_extension(True)
loader.load_extension(litestream_vfs.loadable_path())
flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
replica = apsw.Connection("file:replica?vfs=litestream", flags=flags)
log, file = map(pathlib.Path, sys.argv[1:])
"""

READ_EVERY_PAGE = f"""{OPEN}
file.write_bytes(replica.serialize("main"))
print(int(replica.execute("PRAGMA litestream_txid").get, 16))
"""

HYDRATE = f"""{OPEN}
while 'msg="hydration complete"' not in log.read_text():
    assert "level=ERROR" not in log.read_text(), log.read_text()
    time.sleep(0.01)
replica.close()
print(int(pathlib.Path(f"{{file}}.meta").read_text()))
"""


@dataclass(frozen=True, slots=True)
class Replica:
    """Where Litestream finds a history."""

    url: str
    credentials: dict[str, str] = field(default_factory=dict, repr=False)

    def paged(self) -> tuple[TXID, bytes]:
        """The newest state, each page read through the index of the file that has it."""
        return self._run(READ_EVERY_PAGE, hydrate="false")

    def hydrated(self) -> tuple[TXID, bytes]:
        """The newest state, as `litestream restore` puts it together."""
        return self._run(HYDRATE, hydrate="true")

    def _run(self, program: str, *, hydrate: str) -> tuple[TXID, bytes]:
        ours = ("AWS_", "LITESTREAM_")
        environment = {name: os.environ[name] for name in os.environ if not name.startswith(ours)}
        with TemporaryDirectory() as folder:
            log, file = Path(folder, "log"), Path(folder, "database")
            log.touch()
            settings = {
                "LITESTREAM_REPLICA_URL": self.url,
                "LITESTREAM_HYDRATION_ENABLED": hydrate,
                "LITESTREAM_HYDRATION_PATH": str(file),
                "LITESTREAM_LOG_LEVEL": "DEBUG",
                "LITESTREAM_LOG_FILE": str(log),
            }
            child = subprocess.run(
                [sys.executable, "-c", program, str(log), str(file)],
                env={**environment, **settings, **self.credentials},
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            assert child.returncode == 0, log.read_text()[-4000:] + child.stderr
            return int(child.stdout), file.read_bytes()


def replica_of(config: BucketConfig, folder: Path) -> Replica:
    """The history of a branch as a replica: on S3 as it is, else a copy in ``folder`` under the
    names that Litestream gives the levels in a directory."""
    place = config.place
    assert config.endpoint_url is not None
    if not config.endpoint_url.startswith("file:"):
        return s3_replica(config, place.history.rstrip("/"))
    history = Path(config.endpoint_url.removeprefix("file://")) / place.history
    copy = folder / "replica"
    shutil.rmtree(copy, ignore_errors=True)
    for level, name in (("0000", "0"), ("0009", "9")):
        if (history / level).exists():
            shutil.copytree(history / level, copy / "ltx" / name)
    return Replica(copy.as_uri())


def s3_replica(config: BucketConfig, path: str) -> Replica:
    """What is under ``path`` in a bucket of S3."""
    assert config.access_key_id is not None
    assert config.secret_access_key is not None
    query = {
        "endpoint": config.endpoint_url,
        "region": config.region,
        "forcePathStyle": "true",
    }
    credentials = {
        "AWS_ACCESS_KEY_ID": config.access_key_id.get_secret_value(),
        "AWS_SECRET_ACCESS_KEY": config.secret_access_key.get_secret_value(),
    }
    return Replica(f"s3://{config.bucket}/{path}?{urlencode(query)}", credentials)


def as_paged(database: bytes) -> bytes:
    """A database without what Litestream makes up when it serves page 1: the journal mode and the
    change counter, so that no connection trusts its cache."""
    return database[:18] + bytes(2) + database[20:24] + bytes(4) + database[28:]


class History:
    """A database that a test lives through, in one bucket, with one writer after the other."""

    def __init__(self, config: BucketConfig, snapshot: SnapshotConfig, folder: Path) -> None:
        self.config = config
        self.snapshot = snapshot
        self.folder = folder
        self.volume: Volume
        self.take_over()

    def take_over(self) -> None:
        """Mount it as another process would, whose writer knows nothing of the one before."""
        if registry.get(NAME) is not None:
            forget(self.volume)
        self.volume = registry.mount(NAME, self.config, self.snapshot)
        self.connection = apsw.Connection(uri_of(NAME))

    def write(self, *statements: str) -> None:
        """Execute and publish."""
        for statement in statements:
            self.connection.execute(statement).fetchall()
        self.volume.flush()

    def insert(self, rows: int) -> None:
        """Grow by some pages of every size, and publish."""
        self.write(
            "INSERT INTO t (content) SELECT randomblob(1500) FROM (WITH RECURSIVE s(i) AS "
            f"(SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < {rows}) SELECT i FROM s)"
        )

    @property
    def timeline(self) -> Timeline:
        return look(self.volume.bucket, self.config.place)

    def check(self, *, shrunk: bool = False) -> bytes:
        """Whether Litestream has the state that we restore; that state.

        Page by page it also shows the pages of before that a database has ``shrunk`` by, until a
        snapshot follows: it takes the file to be as long as any index says. No row is in them.
        """
        restored = restore(self.volume.bucket, self.config.place)
        assert restored is not None
        assert restored.stamp is not None
        ours = b"".join(restored.image.pages)
        replica = replica_of(self.config, self.folder)
        assert replica.hydrated() == (restored.stamp.txid, ours)
        txid, paged = replica.paged()
        assert (txid, as_paged(paged[: len(ours)])) == (restored.stamp.txid, as_paged(ours))
        assert (len(paged) > len(ours)) == shrunk
        return ours


class Days:
    """The time of the store, as retention sees it: objects grow old while nobody waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed = 0
        newest = retention.now
        monkeypatch.setattr(retention, "now", lambda timeline: newest(timeline) + self.passed * DAY)
        monkeypatch.setattr(checkpoints, "RETENTION_ROUNDS", 10**9)  # at every checkpoint


@pytest.fixture
def days(monkeypatch: pytest.MonkeyPatch) -> Iterator[Days]:
    """Time to pass; and nothing is left mounted."""
    with nothing_left_mounted():
        yield Days(monkeypatch)


def settings(durability: Literal["flush", "commit"] = "flush") -> SnapshotConfig:
    """Flushed and checkpointed by the test alone; kept for a day."""
    return SnapshotConfig(
        interval_seconds=3600.0,
        min_interval_seconds=0.0,
        checkpoint="stop",
        retention_seconds=DAY,
        durability=durability,
    )


# ---- a life


def live_through(history: History, days: Days, page_size: int) -> None:
    """From the first delta to a history of which retention has left islands; Litestream reads each
    state."""
    grow(history, page_size)
    claim = change_hands(history)
    shrink(history)
    days.passed = 2
    grow_old(history, claim)


def grow(history: History, page_size: int) -> None:
    history.write(f"PRAGMA page_size = {page_size}", TABLE)
    assert len(history.check()) == 2 * page_size
    for rows in (1, 40, 80):
        history.insert(rows)
    grown = history.check()
    history.volume.checkpoint()
    assert history.check() == grown
    assert not history.timeline.snapshots


def change_hands(history: History) -> TXID:
    claim = history.timeline.newest + 1
    history.take_over()
    history.insert(5)
    assert history.timeline.deltas[claim].is_claim
    history.check()
    return claim


def shrink(history: History) -> None:
    before = history.volume.image.size
    history.write("DELETE FROM t WHERE id > 10")
    history.write("VACUUM")
    assert len(history.check(shrunk=True)) < before


def grow_old(history: History, claim: TXID) -> None:
    history.volume.checkpoint()
    snapshot = history.timeline.newest
    assert history.timeline.snapshots.keys() == {snapshot}
    history.check()
    history.insert(100)
    history.check()
    history.volume.checkpoint()
    history.insert(1)
    history.volume.checkpoint()
    timeline = history.timeline
    assert [txid for txid in sorted(timeline.deltas) if txid <= snapshot] == [1, claim]
    history.check()
    history.take_over()
    history.insert(3)
    history.check()


def test_every_moment_of_a_history(bucket_config: BucketConfig, days: Days, tmp_path: Path) -> None:
    config = bucket_config.model_copy(update={"key": "folder/app.db"})
    live_through(History(config, settings(), tmp_path), days, PAGE_SIZE)


@pytest.mark.parametrize("page_size", [512, 65_536])
def test_other_page_sizes(page_size: int, days: Days, tmp_path: Path) -> None:
    live_through(History(directory(tmp_path), settings(), tmp_path), days, page_size)


def test_commits_that_publish_themselves(days: Days, tmp_path: Path) -> None:
    live_through(History(directory(tmp_path), settings("commit"), tmp_path), days, PAGE_SIZE)


def test_a_branch_is_a_replica_too(bucket_config: BucketConfig, days: Days, tmp_path: Path) -> None:
    """Made from a first delta, deleted and made again by an upload, and made from a snapshot."""
    config = bucket_config.model_copy(update={"key": "folder/app.db"})
    main = History(config, settings(), tmp_path)
    grow(main, PAGE_SIZE)
    branches = Branches(main.volume, registry)
    branches.create("x")
    branches.delete("x")
    branches.create("x")
    branches.create("early")
    days.passed = 2
    main.insert(3)
    main.volume.checkpoint()
    assert main.timeline.snapshots
    main.insert(3)
    branches.create("late")
    for name in ("early", "x", "late"):
        forget(main.volume)
        branch = History(config.model_copy(update={"initial_branch": name}), settings(), tmp_path)
        branch.check()
        branch.insert(5)
        branch.check()
        main.volume = branch.volume


@pytest.mark.usefixtures("days")
def test_pages_that_were_freed_before_they_were_written(tmp_path: Path) -> None:
    history = History(directory(tmp_path), settings(), tmp_path)
    history.write("PRAGMA auto_vacuum = INCREMENTAL", TABLE)
    history.insert(60)
    before = history.volume.image.size
    history.write("BEGIN", "CREATE TABLE u AS SELECT zeroblob(200000) AS content")
    history.write("DROP TABLE u", "COMMIT")
    grown = len(history.check())
    assert grown > before + 200_000
    history.write("PRAGMA incremental_vacuum(20)")
    flushed = history.volume.last_flush
    assert flushed is not None
    assert flushed.pages < history.volume.image.page_count, "a delta that does not have every page"
    assert len(history.check(shrunk=True)) == grown - 20 * PAGE_SIZE
