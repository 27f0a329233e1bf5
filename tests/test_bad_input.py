"""Damaged images, places that do not work, odd names: one typed error that says what was tried,
what was found and what to do; memory and bucket stay as they were."""

import errno
import os
import resource
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest
from pydantic import SecretStr

import buckethead
from buckethead.config import BucketConfig, SnapshotConfig
from buckethead.core import registry
from buckethead.errors import (
    BucketDeniedError,
    BucketError,
    BucketHeadError,
    BucketUnavailableError,
    ConfigError,
    InvalidBranchNameError,
    SnapshotCorruptError,
)
from buckethead.image.pages import PageImage
from buckethead.image.vfs import connected
from buckethead.storage.contract import Bucket
from buckethead.storage.directory import DirectoryBucket, open_bucket
from buckethead.storage.images import read_image
from buckethead.storage.layout import Place
from buckethead.storage.snapshot import flush, restore
from buckethead.uris import uri_of
from servers import Server, fresh_bucket
from volume_tools import (
    NEVER,
    column,
    control,
    directory,
    forget,
    nothing_left_mounted,
    plain_file,
    query,
    without_settings,
)

KEY = "x.db"
PAGE = 1024

Damage = Callable[[bytearray], bytes | bytearray]


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left_mounted():
        yield


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_settings(monkeypatch, tmp_path)


@pytest.fixture
def sound(tmp_path: Path) -> bytes:
    """A sound database file of some twenty pages."""
    return plain_file(
        tmp_path / "sound.db",
        f"PRAGMA page_size={PAGE}",
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b UNIQUE)",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 500) "
        "INSERT INTO t SELECT i, hex(i) || 'xxxxxxxxxxxx' FROM n",
    )


# ---- damaged images


def put_at(offset: int, new: bytes) -> Damage:
    def damage(content: bytearray) -> bytearray:
        content[offset : offset + len(new)] = new
        return content

    return damage


def flip_in_the_root_page(content: bytearray) -> bytearray:
    """The first cell pointer of the table's b-tree, page 2, now points somewhere else."""
    content[PAGE + 8 + 5] ^= 0x40
    return content


def swapped_pages(content: bytearray) -> bytearray:
    content[2 * PAGE : 4 * PAGE] = content[3 * PAGE : 4 * PAGE] + content[2 * PAGE : 3 * PAGE]
    return content


DAMAGES: dict[str, tuple[Damage, str]] = {
    "zero length": (lambda content: b"", "it has 0 bytes, too few"),
    "only a header": (lambda content: content[:100], "not whole pages of 1,024"),
    "less than a header": (lambda content: content[:99], "it has 99 bytes, too few"),
    "truncated by a page": (lambda content: content[:-PAGE], "its header says 2. pages, the obj"),
    "a page too many": (lambda content: content + bytes(PAGE), "its header says 2. pages, the obj"),
    "not a multiple": (lambda content: content[:-1], "not whole pages of 1,024"),
    "wrong magic": (put_at(0, b"SQLite format 2"), "does not begin with 'SQLite format 3'"),
    "random": (lambda content: bytes(range(256)) * 64, "does not begin with 'SQLite format 3'"),
    "zeros": (lambda content: bytes(len(content)), "does not begin with 'SQLite format 3'"),
    "page size 0": (put_at(16, b"\0\0"), "a page size that SQLite does not have"),
    "page size 1000": (put_at(16, b"\x03\xe8"), "a page size that SQLite does not have"),
    "another page size": (put_at(16, b"\x02\x00"), "its header says 2. pages, the object has"),
    "4 billion pages": (put_at(28, b"\xff" * 4), "its header says 4,294,967,295 pages"),
    "a flipped bit in a b-tree": (flip_in_the_root_page, "integrity_check"),
    "pages in wrong order": (swapped_pages, "integrity_check"),
    "a schema that is none": (put_at(PAGE - 60, b"((((((("), "malformed database schema|integrity"),
    "a format of the future": (put_at(44, b"\0\0\0\x09"), "unsupported file format"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_image_is_named_and_changes_nothing(
    tmp_path: Path, sound: bytes, damage: str
) -> None:
    spoil, fault = DAMAGES[damage]
    bucket = DirectoryBucket(tmp_path / "bucket")
    bucket.put_bytes(bytes(spoil(bytearray(sound))), KEY)
    with connected(PageImage()) as conn:
        conn.execute("CREATE TABLE mine(a); INSERT INTO mine VALUES(1)")
        with pytest.raises(SnapshotCorruptError, match=fault) as raised:
            restore(conn, bucket, KEY)
        assert column(conn, "SELECT a FROM mine") == [1]
    said = str(raised.value)
    assert said.startswith(f"Could not restore '{KEY}' at {bucket.url}: ")
    assert "Nothing was changed" in said
    assert "buckethead verify" in said
    assert f"'{KEY}.prev'" in said


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_image_is_not_mounted(tmp_path: Path, sound: bytes, damage: str) -> None:
    spoil, fault = DAMAGES[damage]
    config = directory(tmp_path, KEY)
    bucket = open_bucket(config)
    bucket.put_bytes(bytes(spoil(bytearray(sound))), KEY)
    with pytest.raises(SnapshotCorruptError, match=fault):
        buckethead.mount("damaged", config)
    with pytest.raises(SnapshotCorruptError, match=fault):
        apsw.Connection(f"file:damaged?vfs=buckethead&bucket=b&key=x.db&endpoint_url={bucket.url}")
    assert registry.get("damaged") is None
    bucket.put_bytes(sound, KEY)
    buckethead.mount("damaged", config)
    conn = apsw.Connection("file:damaged?vfs=buckethead")
    assert column(conn, "SELECT count(*) FROM t") == [500]
    conn.close()


def test_the_sound_image_is_taken(tmp_path: Path, sound: bytes) -> None:
    bucket = DirectoryBucket(tmp_path / "bucket")
    bucket.put_bytes(sound, KEY)
    image = read_image(bucket, KEY)
    assert image is not None
    assert b"".join(image.pages) == sound


@pytest.mark.parametrize("name", ["page-size", "page-count", "page-checksum"])
def test_an_image_that_differs_from_its_metadata_is_refused(
    bucket: Bucket, sound: bytes, name: str
) -> None:
    bucket.put_bytes(sound, KEY, metadata={f"buckethead-{name}": "7"})
    with pytest.raises(SnapshotCorruptError, match=r"its .*was 7 when written and is"):
        read_image(bucket, KEY)


def test_one_flipped_bit_in_a_value_is_found_by_the_checksum(tmp_path: Path) -> None:
    root = tmp_path / "bucket"
    bucket = DirectoryBucket(root)
    with connected(PageImage()) as conn:
        conn.execute("CREATE TABLE t(a); INSERT INTO t VALUES('a value')")
        flush(conn, bucket, KEY, keep_previous=False)
    info = bucket.head(KEY)
    assert info is not None
    content = bytearray(bucket.get_bytes(KEY))
    content[content.index(b"a value")] ^= 1
    bucket.put_bytes(bytes(content), KEY, metadata=info.metadata)
    with pytest.raises(SnapshotCorruptError, match="its checksum was"):
        read_image(bucket, KEY, integrity_check="none")


@pytest.mark.parametrize(("check", "found"), [("full", True), ("quick", False), ("none", False)])
def test_how_closely_an_image_is_looked_at(
    tmp_path: Path, sound: bytes, check: str, found: bool
) -> None:
    """An index that lacks a row: only the full check compares indexes with their tables."""
    path = tmp_path / "lacking.db"
    path.write_bytes(sound)
    content = plain_file(
        path,
        "PRAGMA writable_schema=ON",
        "CREATE TABLE u(a, b)",
        "CREATE INDEX i ON u(a)",
        "UPDATE sqlite_schema SET sql='CREATE INDEX i ON u(b)' WHERE name='i'",
        "INSERT INTO u VALUES(1, 2)",
    )
    config = directory(tmp_path, KEY)
    open_bucket(config).put_bytes(content, KEY)
    settings = SnapshotConfig.model_validate({"integrity_check": check})
    if found:
        with pytest.raises(SnapshotCorruptError, match="integrity_check says"):
            buckethead.mount("checked", config, settings)
    else:
        buckethead.mount("checked", config, settings)


def test_what_a_damaged_header_claims_costs_nothing(tmp_path: Path, sound: bytes) -> None:
    """Nor does a large object that is no database: it is not read to the end."""
    bucket = DirectoryBucket(tmp_path / "bucket", part_size=1 << 20, concurrency=2)
    bucket.put_bytes(put_at(28, b"\xff" * 4)(bytearray(sound)), KEY)
    bucket.put_parts((bytes(1 << 20) for _ in range(32)), "large")
    tracemalloc.start()
    try:
        for key in (KEY, "large"):
            with pytest.raises(SnapshotCorruptError):
                read_image(bucket, key)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
    assert bucket.counters.snapshot().bytes_down < 8 << 20


# ---- places that do not work


def refused(config: BucketConfig, error: type[BucketHeadError], match: str) -> str:
    """Mounting fails with this error, by code and by URI, and leaves nothing mounted."""
    with pytest.raises(error, match=match) as raised:
        buckethead.mount("refused", config)
    assert registry.get("refused") is None
    return str(raised.value)


def fails_to_flush(config: BucketConfig, error: type[BucketHeadError], match: str) -> str:
    """A volume whose bucket has become like this keeps everything in memory, dirty."""
    sound = directory(Path.cwd(), "sound.db")
    volume = buckethead.mount("failing", sound, NEVER)
    conn = apsw.Connection("file:failing?vfs=buckethead")
    conn.execute("CREATE TABLE IF NOT EXISTS t(a); DELETE FROM t; INSERT INTO t VALUES(1)")
    good = volume.bucket
    control(volume, open_bucket(config))
    with pytest.raises(error, match=match) as raised:
        volume.flush()
    assert volume.changed
    assert column(conn, "SELECT a FROM t") == [1]
    control(volume, good)
    assert volume.flush().uploaded
    assert query(good, volume.key, "SELECT a FROM t") == [(1,)]
    conn.close()
    forget(volume)
    return str(raised.value)


MISSING = r" at s3://no-such-bucket-1 at http.*: there is no such bucket.*Create the bucket"


def test_a_missing_bucket(s3_server: Server) -> None:
    missing = s3_server.config("no-such-bucket-1")
    refused(missing, BucketDeniedError, f"Could not look at the history of '.*'{MISSING}")


def test_a_bucket_that_is_gone(moto_endpoint: Server) -> None:
    """Not SeaweedFS: it makes a bucket that is missing for whoever writes to it."""
    gone = moto_endpoint.config("no-such-bucket-1")
    fails_to_flush(gone, BucketDeniedError, f"Could not write '.*', to see .*,{MISSING}")


@pytest.mark.parametrize("check", [refused, fails_to_flush])
def test_wrong_credentials(check: Callable[..., object], seaweed_endpoint: Server) -> None:
    with fresh_bucket(seaweed_endpoint) as name:
        for wrong in (
            seaweed_endpoint.config(name, access_key_id="wrong-key-id"),
            seaweed_endpoint.config(name, secret_access_key="wrong-secret"),
        ):
            said = check(wrong, BucketDeniedError, r"(credentials were not accepted|denied).*")
            assert "wrong-" not in str(said)


@pytest.mark.parametrize("check", [refused, fails_to_flush])
def test_an_endpoint_that_refuses_connections(check: Callable[..., object]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        check(
            unanswered(port),
            BucketUnavailableError,
            rf"at http://127\.0\.0\.1:{port}: the connection was refused.*Check endpoint_url",
        )


@pytest.mark.parametrize("check", [refused, fails_to_flush])
def test_an_endpoint_that_never_answers(check: Callable[..., object]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        check(
            unanswered(silent.getsockname()[1]),
            BucketUnavailableError,
            "there was no answer in time.*raise connect_timeout and read_timeout",
        )


def unanswered(port: int) -> BucketConfig:
    return BucketConfig(
        bucket="b",
        endpoint_url=f"http://127.0.0.1:{port}",
        access_key_id=SecretStr("key"),
        secret_access_key=SecretStr("secret"),
        connect_timeout=0.3,
        read_timeout=0.3,
    )


@pytest.mark.parametrize("check", [refused, fails_to_flush])
def test_aws_without_a_region(check: Callable[..., object]) -> None:
    check(BucketConfig(bucket="b"), ConfigError, "s3://b.*no region is configured. Set region")


@pytest.mark.parametrize("key", ["../x.db", "a/../../x.db", "a//b", "./x.db", ".buckethead/lock"])
def test_a_key_that_leaves_a_directory_bucket(tmp_path: Path, key: str) -> None:
    refused(directory(tmp_path, key), ConfigError, "Could not use the key .* at file://")
    outside = f"file:../climbing?vfs=buckethead&bucket=b&endpoint_url={tmp_path.as_uri()}/bucket"
    with pytest.raises(ConfigError, match=r"Could not use the key '\.\./climbing\.db'"):
        apsw.Connection(outside)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bucket"]


def test_a_symbolic_link_out_of_a_directory_bucket(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "link").symlink_to(tmp_path)
    refused(directory(tmp_path, "link/x.db"), ConfigError, "a symbolic link is on its way")


def test_a_directory_bucket_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "bucket").write_bytes(b"")
    said = refused(directory(tmp_path), BucketHeadError, "Could not open the directory bucket")
    assert str(tmp_path / "bucket") in said


@pytest.mark.parametrize("disk", ["full", "quota"])
def test_a_full_disk_under_a_directory_bucket(tmp_path: Path, disk: str) -> None:
    volume = buckethead.mount("app", directory(tmp_path), NEVER)
    conn = apsw.Connection("file:app?vfs=buckethead")
    conn.execute("CREATE TABLE t(a); INSERT INTO t VALUES(randomblob(100000))")
    volume.flush()
    before = files_in(tmp_path / "bucket")
    conn.execute("INSERT INTO t VALUES(randomblob(200000))")
    with no_room(disk), pytest.raises(BucketDeniedError, match=r"no room.*Free some"):
        volume.flush()
    assert files_in(tmp_path / "bucket") == before
    assert Path(Place("x.db").delta(1)).name in before
    assert not list((tmp_path / "bucket").glob(".buckethead/tmp/*"))
    assert volume.changed
    assert volume.flush().uploaded
    with no_room(disk), pytest.raises(BucketDeniedError, match=r"no room.*Free some"):
        volume.checkpoint()
    assert not (tmp_path / "bucket" / "x.db").exists()
    assert query(volume.bucket, "x.db", "SELECT length(a) FROM t") == [(100000,), (200000,)]
    assert volume.checkpoint().uploaded
    conn.close()


class no_room:  # noqa: N801 - read as a with statement
    """A disk with no room: fsync says so, or a limit of the process stops files at 128 KiB."""

    def __init__(self, disk: str) -> None:
        self._disk = disk
        self._patch = pytest.MonkeyPatch()
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def __enter__(self) -> None:
        if self._disk == "quota":
            resource.setrlimit(resource.RLIMIT_FSIZE, (128 << 10, self._limits[1]))
        else:
            self._patch.setattr(os, "fsync", self._fail)

    def __exit__(self, *error: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)
        self._patch.undo()

    @staticmethod
    def _fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def files_in(root: Path) -> dict[str, bytes]:
    """Every object of a directory bucket, by the last part of its key."""
    files = (path for path in root.glob("[!.]*/**/*") if path.is_file())
    return {path.name: path.read_bytes() for path in files}


# ---- names and URIs


ODD_NAMES = [
    *("with space", "ünï 日本", "100%", "a?b=c&d", "a#b", "a+b", "semi;colon", "quo'te\"s"),
    *("..", "...", "-", "a/b/c", "x" * 200, "file:x", "%41", "a\\b", "tab\there", "journal-wal"),
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_work(tmp_path: Path, name: str) -> None:
    config = directory(tmp_path, f"{name}.db")
    volume = buckethead.mount(name, config, NEVER)
    conn = apsw.Connection(uri_of(name))
    conn.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
    assert registry.get(name) is volume
    volume.flush()
    conn.close()
    buckethead.unmount(name)
    assert (tmp_path / "bucket" / f"{name}.db").is_file()
    buckethead.mount(name, config)
    conn = apsw.Connection(uri_of(name))
    assert column(conn, "SELECT a FROM t") == [1]
    conn.close()


def open_uri(parameters: str) -> None:
    apsw.Connection(f"file:app?vfs=buckethead&{parameters}")


@pytest.mark.parametrize(
    "parameter",
    [
        *("access_key_id", "secret_access_key", "aws_secret_access_key", "session_token"),
        *("password", "X-Amz-Credential", "X-Amz-Signature", "Secret"),
    ],
)
def test_a_credential_in_a_uri_is_refused_and_not_repeated(parameter: str) -> None:
    with pytest.raises(ConfigError, match=f"the URI carries a credential.*{parameter}") as raised:
        open_uri(f"{parameter}=hunter2")
    assert "hunter2" not in str(raised.value)
    assert "BucketConfig or the environment" in str(raised.value)
    assert registry.get("app") is None


def test_a_credential_in_the_endpoint_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="the endpoint has a user name or password") as raised:
        open_uri("bucket=b&endpoint_url=http://me:hunter2@localhost:1")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("parameter", ["nolock=1", "immutable=1", "cache=shared", "buckt=b"])
def test_an_unknown_parameter_is_refused(parameter: str) -> None:
    name = parameter.split("=", maxsplit=1)[0]
    with pytest.raises(
        ConfigError, match=f"'app': the URI parameter '{name}' is not one of .*bucket.*Correct"
    ):
        open_uri(parameter)


@pytest.mark.parametrize("name", ["a/b", "..", "x" * 300, "", "ä", "a b"])
def test_no_branch_has_such_a_name(name: str) -> None:
    with pytest.raises(InvalidBranchNameError, match="is no name for a branch: use 1 to 128"):
        open_uri(f"branch={name}")


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ("bucket=", "bucket: .*at least one character"),
        ("bucket=b&endpoint_url=ftp://x", "endpoint_url: .*not a usable URL"),
        ("bucket=b&endpoint_url=file://there/x", "endpoint_url"),
        ("bucket=b&key=/absolute", "key: .*does not start with '/'"),
        (f"bucket=b&key={'k' * 901}", "key: .*1 to 900 bytes"),
        ("bucket=b&region=", "region"),
    ],
)
def test_a_parameter_that_cannot_be_is_named(parameters: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"Could not open 'app': {said}.*Correct the URI"):
        open_uri(parameters)


def test_every_error_of_a_place_is_also_sqlites_cantopen() -> None:
    with pytest.raises(apsw.CantOpenError):
        open_uri("unknown=1")
    with pytest.raises(BucketError):
        open_uri("bucket=b&endpoint_url=file:///nowhere/at/all&mode=ro")
