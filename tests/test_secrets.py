"""Secrets stay secret, files stay private, and TLS stays on.

Canaries are planted where secrets and content go in: credentials, a customer's encryption key,
rows, documents, files. Then everything that a person or a log could see is looked through for
them. What shows content because it was asked for content (``kv get``) is looked through for
credentials only.
"""

import gc
import http.server
import io
import json
import logging
import os
import re
import ssl
import stat
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import apsw
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

import buckethead
from buckethead import (
    BucketClient,
    BucketConfig,
    BucketHeadError,
    BucketHeadSettings,
    BucketSettings,
    BucketSQLite,
    ConfigError,
    DirectoryBucket,
    LocalFileTracker,
    ProfilingConfig,
    RichStatusReporter,
    ShareConfig,
)
from buckethead.cli.app import commands
from buckethead.config import masked
from buckethead.core import registry
from buckethead.flusher import rescue
from buckethead.storage.images import dump
from buckethead.storage.translate import translated
from servers import PART_SIZE, Server, fresh_bucket
from volume_tools import (
    NEVER,
    directory,
    nothing_left_mounted,
    other_process,
    without_settings,
)

SRC = Path(buckethead.__file__).parent
PATIENCE = 60.0

# ---- the canaries

ACCESS = "AKIACANARYACCESS"
SECRET = "canary-secret-access-key"
TOKEN = "canary-session-token"
SHARE_ACCESS = "AKIACANARYSHARES"
SHARE_SECRET = "canary-share-secret"
CUSTOMER_KEY = "canary-customer-key-32-bytes-lg!"
ROW = "canary-row-content"
FILE = b"canary-file-content"

CREDENTIALS = (SECRET, TOKEN, SHARE_SECRET, CUSTOMER_KEY, ACCESS, SHARE_ACCESS)
CONTENT = (ROW, FILE.decode(), "canary-row", "canary-file")


def shown(text: str, *, content: bool = False, more: tuple[str, ...] = ()) -> list[str]:
    """The canaries that a text has; with ``content`` it may have those of the content."""
    forbidden = (*CREDENTIALS, *more, *(() if content else CONTENT))
    return [canary for canary in forbidden if canary in text]


def told(error: BaseException) -> str:
    """All that a traceback would show of an error: the chain, the notes, the message."""
    return "".join(traceback.format_exception(error)) + repr(error)


def without_sources(text: str) -> str:
    """A traceback without the lines of code in it, where a test may well name a canary."""
    return re.sub(r'(  File "[^"]*", line \d+, in .*\n)(    .*\n)+', r"\1", text)


@dataclass
class World:
    """A database with canaries in a store of S3, a share of one of its files, and the log."""

    config: BucketConfig
    share_config: ShareConfig
    bh: BucketSQLite
    bh_key: str
    url: str
    log: io.StringIO
    others: list[object] = field(default_factory=list)

    @property
    def presigned(self) -> tuple[str, ...]:
        """What of the URL must not be seen: its signature, and the URL as a whole."""
        (signature,) = re.findall(r"X-Amz-Signature=([0-9a-f]+)", self.url)
        return (self.url, signature, "X-Amz-Signature")


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the package's own loggers say, at their most talkative."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    logger = logging.getLogger("buckethead")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield text
    logger.setLevel(level)
    logger.removeHandler(handler)


@pytest.fixture
def world(
    moto_endpoint: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: io.StringIO
) -> Iterator[World]:
    without_settings(monkeypatch, tmp_path)
    server = Server(moto_endpoint.endpoint_url, ACCESS, SECRET)
    with (
        fresh_bucket(moto_endpoint) as name,
        fresh_bucket(moto_endpoint) as share_name,
        nothing_left_mounted(),
    ):
        config = server.config(
            name,
            key="canary.db",
            session_token=TOKEN,
            extra_put_args={"SSECustomerAlgorithm": "AES256", "SSECustomerKey": CUSTOMER_KEY},
        )
        share_config = ShareConfig(
            bucket=share_name,
            endpoint_url=server.endpoint_url,
            region="us-east-1",
            access_key_id=SecretStr(SHARE_ACCESS),
            secret_access_key=SecretStr(SHARE_SECRET),
        )
        bh = BucketSQLite(config, NEVER, share_config=share_config).start()
        bh.connection.execute("CREATE TABLE t(a PRIMARY KEY, b CHECK (b <> 'x'))")
        bh.connection.execute("INSERT INTO t VALUES(?, ?)", (ROW, ROW))
        bh.connection.commit()
        bh.kv.set("key", ROW)
        bh.docs.collection("people").insert({"name": ROW})
        bh_key = bh.files.put(FILE, filename="report.txt")
        url = bh.shares.share(bh_key).url
        bh.force_flush()
        yield World(config, share_config, bh, bh_key, url, log)
        with suppress(BucketHeadError):
            bh.stop(discard=True)


# ---- what is seen of a running program


def public_objects(world: World, folder: Path) -> dict[str, object]:
    """One object of every public class, by the name of the class."""
    bh = world.bh
    volume = registry.volumes()[-1]
    tracked = folder / "tracked.txt"
    tracked.write_bytes(FILE)
    tracker = LocalFileTracker(bh.connection, bh.files)
    tracker.track(tracked)
    report = tracker.sync()
    found = [
        *(world.config, world.share_config, NEVER, ProfilingConfig()),
        *(BucketHeadSettings(), BucketSettings(), RichStatusReporter()),
        *(bh, bh.connection, bh.kv, bh.docs, bh.docs.collection("people")),
        *(bh.files, bh.files.list()[0], bh.files.gc(dry_run=True)),
        *(bh.branches, bh.branches.list()[0]),
        *(bh.shares, bh.shares.list()[0], bh.shares.share(world.bh_key)),
        *(bh.shares.sweep(dry_run=True), bh.force_flush(), volume, volume.status()),
        *(volume.bucket, volume.bucket.counters, DirectoryBucket(folder / "dir")),
        *(tracker, report, tracker.current(tracked), tracker.history(tracked)[0]),
    ]
    return {type(one).__name__: one for one in found}


def test_no_public_object_shows_a_secret(world: World, tmp_path: Path) -> None:
    objects = public_objects(world, tmp_path)
    classes = {
        name
        for name in buckethead.__all__
        if isinstance(value := getattr(buckethead, name), type)
        and not issubclass(value, BaseException)
    }
    assert classes - objects.keys() <= {"Bucket", "StatusReporter"}, "protocols have no objects"
    for one in objects.values():
        text = f"{one!r}\n{one!s}"
        assert not shown(text, more=world.presigned), text


def test_no_object_at_all_shows_a_secret(world: World, tmp_path: Path) -> None:
    """Everything of the package that is alive, such as what a debugger or Sentry would show."""
    world.others += [world.bh.shares.share(world.bh_key), *public_objects(world, tmp_path).values()]
    seen = set()
    for one in gc.get_objects():
        if str(type(one).__module__).split(".", maxsplit=1)[0] == "buckethead":
            seen.add(type(one).__name__)
            text = repr(one)
            assert not shown(text, more=world.presigned), f"{type(one)}: {text[:2000]}"
    assert {"PageImage", "Volume", "Publisher", "BucketClient", "BucketConfig"} <= seen


class Broken:
    """An observer of flushes that fails whenever it is told anything, which is logged."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_the_log_at_its_most_talkative_shows_no_secret(world: World) -> None:
    bh = world.bh
    registry.volumes()[-1].observers.append(Broken())
    bh.kv.set("key", ROW + "1")
    bh.checkpoint()
    bh.branches.create("trial")
    bh.branches.switch("trial")
    bh.kv.set("key", ROW + "2")
    bh.branches.switch("main")
    bh.kv.set("key", ROW + "3")
    bh.force_flush()
    with other_process(world.config) as (volume, connection):
        connection.execute("INSERT INTO t VALUES(1, ?)", (ROW,))
        volume.flush()
    bh.kv.set("key", ROW + "4")
    with pytest.raises(BucketHeadError):
        bh.force_flush()
    said = world.log.getvalue()
    assert "an observer" in said
    assert not shown(said, more=world.presigned), said


# ---- errors


def refused_operations(world: World) -> dict[str, Callable[[], object]]:
    """Calls that fail, most of them with a canary in their hands."""
    bh, config = world.bh, world.config
    db = bh.connection

    def elsewhere(**changes: object) -> Callable[[], object]:
        bad = config.model_copy(update={"key": "other.db", **changes})
        return lambda: buckethead.mount("elsewhere", bad)

    def blob_gone() -> object:
        registry.volumes()[-1].bucket.delete(f"files/{world.bh_key}")
        return bh.files.get(world.bh_key)

    def image_damaged() -> object:
        bh.checkpoint()
        bucket = registry.volumes()[-1].bucket
        data = bytearray(bucket.get_bytes(config.key))
        data[100:108] = b"\xff" * 8
        info = bucket.head(config.key)
        assert info is not None
        bucket.put_bytes(bytes(data), "damaged.db")
        return buckethead.mount("damaged", config.model_copy(update={"key": "damaged.db"}))

    def no_text() -> object:
        bh.kv.set_bytes("raw", FILE + b"\xff")
        return bh.kv.get("raw")

    def secret_uri() -> object:
        return apsw.Connection(f"file:x?vfs=buckethead&secret_access_key={SECRET}")

    return {
        "a row that is there": lambda: db.execute("INSERT INTO t VALUES(?, 1)", (ROW,)),
        "a check": lambda: db.execute("INSERT INTO t VALUES(?, 'x')", (ROW + "!",)),
        "SQL on content": lambda: db.execute("SELECT b ->> '$' FROM t").fetchall(),
        "no number": lambda: bh.kv.incr("key"),
        "no text": no_text,
        "no value": lambda: bh.kv.set("key", FILE),  # type: ignore[arg-type]
        "no document": lambda: bh.docs.collection("people").insert({"a": {ROW}}),
        "NaN": lambda: bh.docs.collection("people").insert({"a": [ROW, float("nan")]}),
        "no filter": lambda: bh.docs.collection("people").find({"a": {"$gt": [ROW]}}),
        "no index": lambda: bh.docs.collection("people").insert_many([{"x": ROW}, ROW]),  # type: ignore[list-item]
        "no file": lambda: bh.files.put(ROW),  # type: ignore[arg-type]
        "no metadata": lambda: bh.files.put(FILE, metadata={"a": {ROW}}),
        "a file that is gone": blob_gone,
        "a share of nothing": lambda: bh.shares.share("0" * 64),
        "a damaged image": image_damaged,
        "no bucket": elsewhere(bucket="no-such-bucket-anywhere"),
        "no answer": elsewhere(endpoint_url="http://127.0.0.1:1"),
        "a bad header": elsewhere(extra_put_args={"SSECustomerKey": CUSTOMER_KEY}),
        "a secret in a URI": secret_uri,
        "another configuration": lambda: buckethead.mount(
            registry.volumes()[-1].name, config.model_copy(update={"concurrency": 9})
        ),
    }


def test_no_error_shows_a_secret(world: World) -> None:
    for name, operation in refused_operations(world).items():
        try:
            operation()
        except Exception as error:
            text = without_sources(told(error))
            assert not shown(text, more=world.presigned), f"{name}: {text}"
        else:
            # SQLite's checks are lazy: a cursor that nobody reads may not have failed yet
            assert name in ("a check", "a bad header"), f"{name} did not fail"
    assert not shown(world.log.getvalue(), more=world.presigned)


def test_wrong_credentials_are_not_repeated(seaweed_endpoint: Server) -> None:
    """A store says a lot about a signature that does not match."""
    with fresh_bucket(seaweed_endpoint) as name:
        for access in (ACCESS, seaweed_endpoint.access_key_id):
            server = Server(seaweed_endpoint.endpoint_url, access, SECRET)
            bucket = BucketClient(server.config(name))
            with pytest.raises(BucketHeadError) as failed, translated("write 'a'", bucket):
                bucket.put_bytes(ROW.encode(), "a")
            text = without_sources(told(failed.value))
            assert not shown(text), text


@given(
    st.sampled_from(list(BucketConfig.model_fields)),
    st.sampled_from(list(ShareConfig.model_fields)),
)
@settings(deadline=None, max_examples=60)
def test_a_configuration_that_is_refused_repeats_no_value(one: str, other: str) -> None:
    values: dict[str, Any] = {"bucket": "b", one: [SECRET], "access_key_id": SECRET}
    for model, fields in ((BucketConfig, values), (ShareConfig, {"bucket": "b", other: [SECRET]})):
        with pytest.raises(ValueError) as failed:
            model(**fields)
        assert not shown(str(failed.value))
        assert not shown(without_sources(told(failed.value)))


# ---- the command line

READING = [
    ("status",),
    ("config", "show"),
    ("inspect",),
    ("log",),
    ("verify",),
    ("kv", "list"),
    ("files", "list"),
    ("branches", "list"),
    ("shares", "list", "--project", "web"),
    ("shares", "sweep", "--dry-run", "--project", "web"),
    ("gc", "--dry-run"),
    ("files", "gc", "--dry-run"),
    ("docs", "find", "people", "{}"),
    ("kv", "get", "key"),
    ("sql", "SELECT * FROM bh_status"),
    ("restore", "--dry-run", "copy.db"),
]
FAILING = [
    ("--key", "none.db", "status"),
    ("--bucket", "no-such-bucket-anywhere", "status"),
    ("--endpoint-url", "http://127.0.0.1:1", "--debug", "log"),
    ("--debug", "kv", "get", "none"),
    ("--debug", "shares", "list", "--project", "none"),
    ("--debug", "restore", "--txid", "99", "copy.db"),
]


@pytest.fixture
def commanded(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """The world in the settings of the command line, which publishes it first."""
    config = world.config.model_copy(update={"extra_put_args": {}})
    world.bh.stop(discard=True)
    with BucketSQLite(config.model_copy(update={"key": "cli.db"}), NEVER) as bh:
        bh.kv.set("key", ROW)
        bh.docs.collection("people").insert({"name": ROW})
        bh.files.put(FILE, filename="report.txt")
    for name, value in {
        "BUCKET__NAME": config.bucket,
        "BUCKET__ENDPOINT_URL": config.endpoint_url or "",
        "BUCKET__REGION": config.region,
        "BUCKET__ACCESS_KEY_ID": ACCESS,
        "BUCKET__SECRET_ACCESS_KEY": SECRET,
        "SNAPSHOT__KEY": "cli.db",
    }.items():
        monkeypatch.setenv(f"BUCKETHEAD_{name}", value)
    path = tmp_path / "home" / ".config" / "buckethead" / "config.toml"
    path.parent.mkdir(parents=True)
    share = world.share_config
    path.write_text(
        f'[projects.web]\nbucket = "{share.bucket}"\nendpoint_url = "{share.endpoint_url}"\n'
        f'region = "us-east-1"\naccess_key_id = "{SHARE_ACCESS}"\n'
        f'secret_access_key = "{SHARE_SECRET}"\n'
    )
    return world


def test_no_command_shows_a_secret(commanded: World) -> None:
    for arguments in READING:
        asked_for_content = arguments[:2] in (("docs", "find"), ("kv", "get"), ("kv", "list"))
        for more in ((), ("--json",)):
            result = CliRunner().invoke(commands, [*arguments, *more])
            assert result.exit_code == 0, result.output
            text = result.stdout + result.stderr
            assert not shown(text, content=asked_for_content, more=commanded.presigned), text
            if more:
                json.loads(result.stdout)


def test_no_command_that_fails_shows_a_secret(
    commanded: World, capfd: pytest.CaptureFixture[str]
) -> None:
    for arguments in FAILING:
        result = CliRunner().invoke(commands, arguments)
        captured = capfd.readouterr()
        text = without_sources(result.stdout + result.stderr + captured.out + captured.err)
        assert result.exit_code == 1, text
        assert text.strip()
        assert not shown(text), text


def test_a_presigned_url_is_printed_once_by_the_command_that_makes_it(commanded: World) -> None:
    share = ["shares", "share", commanded.bh_key, "--project", "web", "--take-over"]
    result = CliRunner().invoke(commands, share)
    assert result.exit_code == 0, result.output
    url = result.stdout.strip()
    assert "X-Amz-Signature" in url
    (signature,) = re.findall(r"X-Amz-Signature=([0-9a-f]+)", url)
    for arguments in (("status",), ("log",), ("shares", "list", "--project", "web")):
        later = CliRunner().invoke(commands, [*arguments, "--json"])
        assert signature not in later.stdout + later.stderr
    assert SHARE_SECRET not in result.stdout + result.stderr


def test_the_demo_shows_nothing_of_the_settings(commanded: World) -> None:
    result = CliRunner().invoke(commands, ["demo"])
    assert result.exit_code == 0, result.output
    assert not shown(result.stdout + result.stderr)


def test_a_masked_configuration_says_what_is_set_and_not_to_what(world: World) -> None:
    text = json.dumps(masked(world.config))
    assert not shown(text)
    assert text.count("********") >= 3


def test_bh_status_shows_no_secret_after_a_failure_either(world: World) -> None:
    bh = world.bh
    with other_process(world.config) as (volume, connection):
        connection.execute("INSERT INTO t VALUES(1, ?)", (ROW,))
        volume.flush()
    bh.kv.set("key", ROW + "2")
    with pytest.raises(BucketHeadError):
        bh.force_flush()
    rows = bh.connection.execute("SELECT name, value FROM bh_status").fetchall()
    assert [value for name, value in rows if name == "last_error" and value]
    assert not shown(str(rows), more=world.presigned), rows


def test_a_rescue_shows_no_secret_and_makes_a_private_file(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = os.umask(0)
    try:
        rescue(registry.volumes()[-1], BucketHeadError("Could not reach it."))
    finally:
        os.umask(old)
    said = capsys.readouterr().err
    assert "buckethead-rescue-" in said
    assert not shown(said, more=world.presigned), said
    (path,) = tmp_path.glob("buckethead-rescue-*.db")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# ---- modes


@pytest.fixture
def no_umask() -> Iterator[None]:
    """Whatever is created has the mode that was asked for."""
    old = os.umask(0)
    yield
    os.umask(old)


def test_whatever_is_written_is_for_this_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_umask: None
) -> None:
    without_settings(monkeypatch, tmp_path)
    made = tmp_path / "made"
    made.mkdir(mode=0o700)
    monkeypatch.chdir(made)
    with nothing_left_mounted():
        config = directory(made)
        profiling = ProfilingConfig(io_counters=True, cpu=True, output_dir=made / "profiles")
        with BucketSQLite(config, NEVER, profiling) as bh:
            key = bh.files.put(io.BytesIO(FILE * 300_000), filename="a.txt")
            bh.kv.set("key", ROW)
            bh.force_flush()
            bh.checkpoint()
            bh.branches.create("trial")
            bh.files.get(key, made / "got.txt")
            volume = registry.volumes()[-1]
            volume.bucket.download(config.key, made / "downloaded.db")
            with volume.image.pinned() as pin:
                dump(pin, made / "dumped.db")
        options = ["--endpoint-url", config.endpoint_url or "", "--key", config.key]
        for arguments in (["restore", "restored.db"], ["files", "get", key, "got-again.txt"]):
            result = CliRunner().invoke(commands, [*options, *arguments])
            assert result.exit_code == 0, result.output
    for path in sorted(made.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), f"{path}: {mode:o}"
    names = {path.name for path in made.rglob("*")}
    expected = {"got.txt", "downloaded.db", "dumped.db", "restored.db", "got-again.txt", "io.json"}
    assert names >= expected | {"lock", "meta", "tmp", "cpu.html", "x.db.branch.trial"}


def test_files_are_private_while_they_are_written(tmp_path: Path, no_umask: None) -> None:
    """Not only once they are in their place: a slow upload is a temporary file for long."""
    bucket = DirectoryBucket(tmp_path / "bucket")
    seen: list[int] = []

    def chunks() -> Iterator[bytes]:
        for _ in range(3):
            yield FILE
            for path in (tmp_path / "bucket").rglob("*"):
                seen.append(stat.S_IMODE(path.stat().st_mode))

    bucket.put_parts(chunks(), "a")
    assert set(seen) == {0o600, 0o700}


# ---- symbolic links in a directory bucket


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the bucket, with an old file of somebody's."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "theirs").write_bytes(b"theirs")
    os.utime(folder / "theirs", (1.0, 1.0))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("link", ["object", "folder", "folder/in/folder"])
def test_no_link_is_followed_out_of_a_directory_bucket(
    tmp_path: Path, outside: Path, link: str
) -> None:
    bucket = DirectoryBucket(tmp_path / "bucket")
    bucket.put_bytes(b"ours", "ours")
    place = tmp_path / "bucket" / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(outside / "theirs" if link == "object" else outside)
    before = contents(outside)
    key = link if link == "object" else f"{link}/theirs"
    operations: list[Callable[[], object]] = [
        lambda: bucket.get_bytes(key),
        lambda: bucket.get_range(key, 0, 1),
        lambda: bucket.get_tail(key, 1),
        lambda: bucket.poll(key),
        lambda: bucket.head(key),
        lambda: bucket.put_bytes(b"x", key),
        lambda: bucket.put_bytes(b"x", key, if_none_match=True),
        lambda: bucket.copy("ours", key),
        lambda: bucket.copy(key, "copy"),
        lambda: bucket.delete(key),
    ]
    for operation in operations:
        with pytest.raises(ConfigError, match="symbolic link"):
            operation()
    with pytest.raises(BucketHeadError):
        bucket.delete_many([key])
    assert list(bucket.list_keys()) == ["ours"]
    assert list(bucket.list_keys(key)) == []
    assert contents(outside) == before


@pytest.mark.parametrize("inside", [".buckethead", ".buckethead/tmp", ".buckethead/meta", "lock"])
def test_no_link_is_followed_out_of_the_private_folder(
    tmp_path: Path, outside: Path, inside: str
) -> None:
    """A bucket that came in an archive, say: cleaning up in it would delete somebody's files."""
    root = tmp_path / "bucket"
    (root / ".buckethead").mkdir(parents=True)
    place = root / ".buckethead" / "lock" if inside == "lock" else root / inside
    if inside == ".buckethead":
        place.rmdir()
    place.symlink_to(outside / "theirs" if inside == "lock" else outside)
    bucket = DirectoryBucket(root)
    before = contents(outside)
    for operation in (
        lambda: bucket.put_bytes(b"x", "a", metadata={"a": "b"}),
        lambda: bucket.put_bytes(b"x", "a", metadata={"a": "c"}),
        lambda: bucket.abort_uploads("", before=2.0),
        lambda: bucket.delete("a"),
    ):
        with suppress(ConfigError):
            operation()
    assert contents(outside) == before
    with pytest.raises(ConfigError, match="symbolic link"):
        bucket.put_bytes(b"x", "a", metadata={"a": "b"})


def test_no_link_is_followed_to_the_metadata_of_another(tmp_path: Path, outside: Path) -> None:
    bucket = DirectoryBucket(tmp_path / "bucket")
    bucket.put_bytes(b"x", "a", metadata={"a": "b"})
    folder = tmp_path / "bucket" / ".buckethead" / "meta" / "a"
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.symlink_to(outside)
    before = contents(outside)
    for operation in (
        lambda: bucket.put_bytes(b"y", "a", metadata={"a": "c"}),
        lambda: bucket.delete("a"),
    ):
        with pytest.raises(ConfigError, match="symbolic link"):
            operation()
    assert contents(outside) == before


# ---- encryption by the store


def test_whatever_is_written_asks_for_the_encryption_that_is_configured(
    moto_endpoint: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_settings(monkeypatch, tmp_path)
    with fresh_bucket(moto_endpoint) as name, nothing_left_mounted():
        extra = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "our-key"}
        config = moto_endpoint.config(name, key="x.db", extra_put_args=extra)
        with BucketSQLite(config, NEVER) as bh:
            bh.kv.set("key", ROW)
            bh.files.put(FILE)
            bh.files.put(bytes(2 * PART_SIZE))
            bh.force_flush()
            bh.checkpoint()
            bh.kv.set("key", ROW + "2")
            bh.branches.create("trial")
            bh.checkpoint()
        client = moto_endpoint.client()
        keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=name)["Contents"]]
        assert {"x.db", "x.db.prev", "x.db.branch.trial"} < set(keys)
        assert sum(key.startswith("files/") for key in keys) == 2
        for key in keys:
            found = client.head_object(Bucket=name, Key=key)
            assert (found.get("ServerSideEncryption"), found.get("SSEKMSKeyId")) == (
                "aws:kms",
                "our-key",
            ), key


# ---- TLS


def test_nothing_in_the_code_turns_verification_off() -> None:
    for path in SRC.rglob("*.py"):
        text = path.read_text()
        for word in ("verify=", "CERT_NONE", "_create_unverified", "check_hostname", "use_ssl"):
            assert word not in text, f"{word} in {path}"


def self_signed(folder: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody has signed but itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


class Store(http.server.BaseHTTPRequestHandler):
    """Answers every GET with a few bytes, as a store would; it must never see a credential that a
    client has no reason to trust it with."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.headers.get("Authorization", ""))
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *args: object) -> None:
        """Not to stderr."""


@pytest.fixture
def https(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A store behind a certificate of its own making: its URL and the certificate."""
    certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Store.asked.clear()
    try:
        yield f"https://127.0.0.1:{server.server_port}", certificate
    finally:
        server.shutdown()
        thread.join(PATIENCE)
        server.server_close()


def test_a_certificate_that_nobody_vouches_for_is_refused(
    https: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_settings(monkeypatch, tmp_path)
    url, certificate = https
    config = Server(url, ACCESS, SECRET).config("b")
    bucket = BucketClient(config)
    with pytest.raises(ConfigError, match="TLS") as failed, translated("read 'a'", bucket):
        bucket.get_bytes("a")
    assert Store.asked == [], "nothing was sent"
    assert not shown(without_sources(told(failed.value)))
    # and it is the certificate that was the matter
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    trusted = BucketClient(config.model_copy(update={"connect_timeout": 11.0}))
    assert trusted.get_bytes("a") == b"hello"
    assert len(Store.asked) == 1
