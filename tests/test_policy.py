"""The policies of native_notes/policy.md are enough, and no action in them is too many.

moto enforces them: signature, action and resource of every request.
"""

import json
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import boto3.session
import pytest

import buckethead
from buckethead import BucketClient, BucketConfig, BucketDeniedError, BucketHeadError, BucketSQLite
from buckethead.core import registry
from buckethead.storage.translate import translated
from buckethead.uris import uri_of
from servers import PART_SIZE, REGION, Server, fresh_bucket
from volume_tools import NEVER, nothing_left_mounted, without_settings

NOTE = (Path(__file__).parent.parent / "native_notes" / "policy.md").read_text()
WRITER, READER = re.findall(r"^```json\n(.*?)^```", NOTE, re.MULTILINE | re.DOTALL)
KEY = "team/app.db"

MANY_AT_ONCE = """{"Version": "2012-10-17", "Statement": [{"Effect": "Allow",
    "Action": "s3:DeleteObject", "Resource": "arn:aws:s3:::BUCKET"}]}"""
"""What moto wants to see for a delete of many objects at once, where AWS looks at each of them."""

Allowed = Callable[[str], BucketConfig]


def actions_of(policy: str) -> list[str]:
    return [action for part in json.loads(policy)["Statement"] for action in part["Action"]]


def without(policy: str, action: str) -> str:
    """The policy, not allowing one action."""
    document = json.loads(policy)
    for part in document["Statement"]:
        part["Action"] = [one for one in part["Action"] if one != action] or ["s3:NoSuchAction"]
    return json.dumps(document)


@contextmanager
def users(server: Server, bucket: str) -> Iterator[Allowed]:
    """Gives the configuration of a new user with a policy. From the first one on, every request
    to the server is checked."""
    iam = boto3.session.Session().client(
        "iam",
        endpoint_url=server.endpoint_url,
        region_name=REGION,
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=server.secret_access_key,
    )

    def allowed(policy: str) -> BucketConfig:
        patch.undo()
        name = f"user-{uuid.uuid4().hex}"
        iam.create_user(UserName=name)
        document = policy.replace("BUCKET", bucket).replace("KEY", KEY)
        iam.put_user_policy(UserName=name, PolicyName="only", PolicyDocument=document)
        if "s3:DeleteObject" in policy:
            many = MANY_AT_ONCE.replace("BUCKET", bucket)
            iam.put_user_policy(UserName=name, PolicyName="moto", PolicyDocument=many)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        patch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
        mine = Server(server.endpoint_url, key["AccessKeyId"], key["SecretAccessKey"])
        return mine.config(bucket, key=KEY)

    with pytest.MonkeyPatch.context() as patch:
        yield allowed


@pytest.fixture
def allowed(
    moto_endpoint: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Allowed]:
    without_settings(monkeypatch, tmp_path)
    with (
        fresh_bucket(moto_endpoint) as bucket,
        nothing_left_mounted(),
        users(moto_endpoint, bucket) as give,
    ):
        yield give


def write(config: BucketConfig) -> str:
    """A database with a file in it; the file's key."""
    with BucketSQLite(config, NEVER) as bh:
        bh.kv.set("greeting", "hello")
        return bh.files.put(b"content", filename="a.txt")


def test_the_writers_policy_is_enough_for_everything(allowed: Allowed) -> None:
    config = allowed(WRITER)
    with BucketSQLite(config, NEVER) as bh:
        bh.kv.set("greeting", "hello")
        key = bh.files.put(b"content", filename="a.txt")
        large = bh.files.put(bytes(2 * PART_SIZE))
        bh.force_flush()
        bh.checkpoint()
        bh.branches.create("trial")
        bh.branches.switch("trial")
        bh.kv.set("greeting", "good bye")
        bh.branches.switch("main")
        bh.branches.delete("trial")
        assert bh.files.get(key) == b"content"
        assert len(bh.files.get(large)) == 2 * PART_SIZE
        bh.files.delete(key)
        bh.files.gc(dry_run=True)
    bucket = BucketClient(config)
    with translated("collect", bucket):
        bucket.delete_many(["files/none", f"{KEY}.none"])
        bucket.abort_uploads(KEY, before=0.0)
    with BucketSQLite(config, NEVER) as bh:
        assert bh.kv.get("greeting") == "hello"


def test_the_readers_policy_is_enough_to_read_and_for_nothing_else(allowed: Allowed) -> None:
    key = write(allowed(WRITER))
    reading = allowed(READER)
    before = {info.key: info.etag for info in BucketClient(reading).list_objects()}
    with BucketSQLite(reading, NEVER, read_only=True, follow=60.0) as bh:
        assert bh.kv.get("greeting") == "hello"
        assert bh.files.get(key) == b"content"
        assert [branch.name for branch in bh.branches.list()] == ["main"]
    volume = buckethead.mount("reader", reading, NEVER)
    past = apsw.Connection(uri_of("reader", txid=1))
    assert past.execute("SELECT value FROM kvstore").get == "hello"
    past.close()
    connection = apsw.Connection(uri_of("reader"))
    with pytest.raises(BucketDeniedError):
        connection.execute("CREATE TABLE t(a)")
    connection.close()
    registry.unmount(volume, discard=True)
    assert {info.key: info.etag for info in BucketClient(reading).list_objects()} == before


def upload_that_fails(bucket: BucketClient) -> None:
    """Its parts stay, as the error says."""

    def chunks() -> Iterator[bytes]:
        yield bytes(PART_SIZE)
        yield bytes(PART_SIZE)
        raise OSError(5, "the source is gone")

    try:
        bucket.put_parts(chunks(), f"{KEY}.x")
    except OSError as error:
        if "could not be aborted" in "".join(error.__notes__):
            raise BucketDeniedError("the upload stays") from error


USES: dict[str, Callable[[BucketClient], object]] = {
    "s3:GetObject": lambda bucket: bucket.get_bytes(KEY),
    "s3:ListBucket": lambda bucket: list(bucket.list_keys(KEY)),
    "s3:PutObject": lambda bucket: bucket.put_bytes(b"x", f"{KEY}.x"),
    "s3:DeleteObject": lambda bucket: bucket.delete(f"{KEY}.x"),
    "s3:AbortMultipartUpload": upload_that_fails,
    "s3:ListBucketMultipartUploads": lambda bucket: bucket.abort_uploads(KEY, before=0.0),
}
"""A request that needs each action."""


@pytest.mark.parametrize("action", actions_of(WRITER))
def test_no_action_of_the_writers_policy_is_too_many(allowed: Allowed, action: str) -> None:
    write(allowed(WRITER))
    bucket = BucketClient(allowed(without(WRITER, action)))
    with pytest.raises(BucketDeniedError), translated("use it", bucket):
        USES[action](bucket)


@pytest.mark.parametrize("action", actions_of(READER))
def test_no_action_of_the_readers_policy_is_too_many(allowed: Allowed, action: str) -> None:
    write(allowed(WRITER))
    config = allowed(without(READER, action))
    with pytest.raises(BucketHeadError):
        buckethead.mount("denied", config, NEVER)


def test_publishing_goes_on_where_nothing_may_be_deleted(allowed: Allowed) -> None:
    config = allowed(without(WRITER, "s3:DeleteObject"))
    with BucketSQLite(config, NEVER) as bh:
        bh.kv.set("greeting", "hello")
        assert bh.force_flush().uploaded
        bh.kv.set("greeting", "hello again")
        assert bh.force_flush().uploaded


@pytest.mark.parametrize("policy", [WRITER, READER], ids=["writer", "reader"])
def test_neither_policy_leads_to_the_objects_of_others(allowed: Allowed, policy: str) -> None:
    bucket = BucketClient(allowed(policy))
    uses: list[Callable[[], Any]] = [
        lambda: bucket.get_bytes("another.db"),
        lambda: bucket.put_bytes(b"x", "another.db"),
        lambda: bucket.delete("another.db"),
    ]
    for use in uses:
        with pytest.raises(BucketDeniedError), translated("use it", bucket):
            use()


def test_the_readme_names_the_same_actions() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    for action in actions_of(WRITER):
        assert action.removeprefix("s3:") in readme
