"""The image of one large database: what a checkpoint and a restore cost, and what a checkpoint does
to a writer.

The same bytes, part size and number of requests in flight for boto3 as for us; the two take turns.
"""

import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
from pydantic import SecretStr

from ..config import BucketConfig
from ..storage.contract import Bucket
from ..storage.images import dump, read_image, write_image
from ..storage.layout import Place
from ..storage.restoring import restore
from ..volume import Volume
from . import costs
from .measure import Findings, PeakMemory, can_measure_memory, interleaved, median
from .places import MB, UPDATE, filled, is_s3, mounted, row_count

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

UNCHANGED_FLUSHES = 1_000
LOOK_EVERY = 200

UNCHANGED = "unchanged flush"
UNCHANGED_REQUESTS = "unchanged flush: requests"
FIRST_FLUSH = "first flush, a delta of all pages"
CHECKPOINT = "checkpoint, the whole image"
PAUSE = "writer's longest pause, while checkpointing to a directory"
PAUSE_S3 = "writer's longest pause, while checkpointing to S3"
BYSTANDER = ": longest pause of an unrelated process meanwhile"
NO_CHECKPOINT = ": the same without a checkpoint"
MEMORY_IDLE = "memory while checkpointing, nobody writing"
MEMORY_BUSY = "memory while checkpointing beside a busy writer, without the pages replaced"
MEMORY_REPLACED = "memory of the pages that writer replaced, kept for the checkpoint"
UPLOAD = "upload of the image / boto3's upload_file"
RESTORE = "restore / download and backup into :memory:, both with integrity_check"
RESTORE_DELTAS = "restore of image and deltas / of the image alone"


def measure(
    place: BucketConfig,
    folder: Path,
    size_mb: float,
    rounds: int,
    deltas: int,
    findings: Findings,
) -> None:
    """Everything about one database of ``size_mb`` at ``place``, in the end with so many deltas
    after its image; its objects are removed again.

    ``folder`` is for files. Raises BucketError.
    """
    with mounted(place, "transfer") as volume:
        connection = filled(volume, size_mb)
        findings.add("size of the database", volume.image.size / MB, "MB")
        findings.add(FIRST_FLUSH, volume.flush().duration_s, "s")
        findings.add(CHECKPOINT, volume.checkpoint().duration_s, "s")
        _unchanged(volume, findings)
        _pauses(PAUSE_S3 if is_s3(place) else PAUSE, volume, connection, rounds, findings)
        if can_measure_memory():
            _memory(volume, connection, findings)
        else:
            findings.left_out.append("memory while checkpointing: only Linux tells it")
        boto3 = _Boto3(place) if is_s3(place) else None
        _upload(volume, folder, boto3, rounds, findings)
        _restore(volume, folder, boto3, rounds, findings)
        _restore_deltas(volume, connection, rounds, deltas, findings)
        costs.measure(volume, connection, findings)
        connection.close()


def _ours(key: str) -> str:
    return f"{key}.ours"


def _theirs(key: str) -> str:
    return f"{key}.boto3"


def _unchanged(volume: Volume, findings: Findings) -> None:
    requests = volume.bucket.counters.requests
    started = time.perf_counter()
    for _ in range(UNCHANGED_FLUSHES):
        volume.flush()
    each = (time.perf_counter() - started) / UNCHANGED_FLUSHES
    findings.add(UNCHANGED, each * 1e6, "µs")
    findings.add(UNCHANGED_REQUESTS, volume.bucket.counters.requests - requests, "requests")


# ---- a writer beside a checkpoint


class _Writer:
    """Commits single rows all over the table until told to stop, and watches itself doing so."""

    def __init__(self, volume: Volume, connection: apsw.Connection) -> None:
        self._volume = volume
        self._connection = connection
        self._rows = row_count(connection)
        self._chance = random.Random(1)
        self.replaced = 0  # bytes of pages that only the checkpoint still holds

    def write_while(self, action: Callable[[], object]) -> float:
        """Write for as long as ``action`` takes in another thread; the longest time in seconds
        from one commit to the next."""
        thread = threading.Thread(target=action, daemon=True)
        thread.start()
        try:
            return self._write_until_end(thread)
        finally:  # after Ctrl-C too: what it works on will be taken away
            thread.join()

    def _write_until_end(self, thread: threading.Thread) -> float:
        longest, count = 0.0, 0
        previous = time.perf_counter()
        while thread.is_alive():
            self._connection.execute(UPDATE, (self._chance.randint(1, self._rows),))
            now = time.perf_counter()
            longest = max(longest, now - previous)
            count += 1
            if count % LOOK_EVERY == 0:
                self.replaced = max(self.replaced, self._volume.status().pinned_bytes)
                now = time.perf_counter()
            previous = now
        return longest


def pauses_at_a_directory(folder: Path, size_mb: float, rounds: int, findings: Findings) -> None:
    """The same pauses where no server takes time from the same processors."""
    place = BucketConfig(bucket="bench", key="bench", endpoint_url=(folder / "pauses").as_uri())
    with mounted(place, "pauses") as volume:
        connection = filled(volume, size_mb)
        volume.checkpoint()
        _pauses(PAUSE, volume, connection, rounds, findings)
        connection.close()


def _pauses(
    name: str, volume: Volume, connection: apsw.Connection, rounds: int, findings: Findings
) -> None:
    """A writer's longest pause during a checkpoint, which publishes what it has written before;
    what a busy process that shares nothing with us goes through in its place; and the writer's
    with nothing beside it."""
    writer = _Writer(volume, connection)
    beside, bystander, alone = [], [], []
    for _ in range(rounds):
        connection.execute(UPDATE, (1,))
        started = time.perf_counter()
        beside.append(writer.write_while(volume.checkpoint))
        seconds = time.perf_counter() - started
        alone.append(writer.write_while(partial(time.sleep, seconds)))
        bystander.append(_pause_of_a_bystander(volume.checkpoint))
    findings.add(name, median(beside) * 1000, "ms")
    findings.add(f"{name}: worst of {rounds}", max(beside) * 1000, "ms")
    findings.add(name + BYSTANDER, median(bystander) * 1000, "ms")
    findings.add(name + NO_CHECKPOINT, median(alone) * 1000, "ms")


def _pause_of_a_bystander(action: Callable[[], object]) -> float:
    program = Path(__file__).with_name("bystander.py")
    with subprocess.Popen(
        [sys.executable, str(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for this process, which ends that one
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            action()
            longest, _ = process.communicate()
        finally:
            process.kill()
    return float(longest)


def _memory(volume: Volume, connection: apsw.Connection, findings: Findings) -> None:
    volume.checkpoint()
    connection.execute(UPDATE, (1,))
    with PeakMemory() as idle:
        volume.checkpoint()
    findings.add(MEMORY_IDLE, idle.added / MB, "MB")
    writer = _Writer(volume, connection)
    connection.execute(UPDATE, (1,))
    with PeakMemory() as busy:
        writer.write_while(volume.checkpoint)
    findings.add(MEMORY_BUSY, (busy.added - writer.replaced) / MB, "MB")
    findings.add(MEMORY_REPLACED, writer.replaced / MB, "MB")


# ---- against boto3 and SQLite's backup


class _Boto3:
    """boto3's own transfers, with our part size and as many parts in flight."""

    def __init__(self, place: BucketConfig) -> None:
        from boto3.s3.transfer import TransferConfig  # noqa: PLC0415 - slow to import

        self._bucket = place.bucket
        self._client = _client(place)
        self._transfer = TransferConfig(
            multipart_threshold=place.part_size,
            multipart_chunksize=place.part_size,
            max_concurrency=place.concurrency,
        )

    def upload(self, path: Path, key: str) -> None:
        self._client.upload_file(str(path), self._bucket, key, Config=self._transfer)

    def download(self, key: str, path: Path) -> None:
        self._client.download_file(self._bucket, key, str(path), Config=self._transfer)


def _client(place: BucketConfig) -> "S3Client":
    import boto3.session  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    def revealed(secret: SecretStr | None) -> str | None:
        return secret.get_secret_value() if secret else None

    aws = place.endpoint_url is None
    checksums: dict[str, Any] = {
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    return boto3.session.Session(
        aws_access_key_id=revealed(place.access_key_id),
        aws_secret_access_key=revealed(place.secret_access_key),
        aws_session_token=revealed(place.session_token),
        region_name=None if aws and place.region == "auto" else place.region,
    ).client(
        "s3",
        endpoint_url=place.endpoint_url,
        config=Config(signature_version="s3v4", **({} if aws else checksums)),
    )


def _upload(
    volume: Volume, folder: Path, boto3: _Boto3 | None, rounds: int, findings: Findings
) -> None:
    if boto3 is None:
        findings.left_out.append(f"{UPLOAD}: needs a store of S3; name one by --endpoint-url")
        return
    path = folder / "image.db"
    with volume.image.pinned() as pin:
        dump(pin, path)
        seconds = interleaved(
            rounds,
            ours=partial(write_image, pin, volume.bucket, _ours(volume.key), keep_previous=False),
            theirs=partial(boto3.upload, path, _theirs(volume.key)),
        )
    path.unlink()
    findings.add("upload of the image", seconds["ours"], "s")
    findings.add("boto3's upload_file", seconds["theirs"], "s")
    findings.add(UPLOAD, seconds["ours"] / seconds["theirs"], "x")


def _restore(
    volume: Volume, folder: Path, boto3: _Boto3 | None, rounds: int, findings: Findings
) -> None:
    volume.checkpoint()
    bucket, key = volume.bucket, volume.key
    download = boto3.download if boto3 else partial(_copy_out, bucket)
    seconds = interleaved(
        rounds,
        ours=partial(restore, bucket, Place(key)),
        theirs=partial(_by_backup, partial(download, key), folder / "download.db"),
    )
    findings.add("restore", seconds["ours"], "s")
    findings.add("download and backup into :memory:", seconds["theirs"], "s")
    findings.add(RESTORE, seconds["ours"] / seconds["theirs"], "x")


def _restore_deltas(
    volume: Volume, connection: apsw.Connection, rounds: int, deltas: int, findings: Findings
) -> None:
    """Restore what `_restore` did, and after it deltas of one row each."""
    bucket, key, rows = volume.bucket, volume.key, row_count(connection)
    chance = random.Random(1)
    for _ in range(deltas):
        connection.execute(UPDATE, (chance.randint(1, rows),))
        volume.flush()
    seconds = interleaved(
        rounds, all=partial(restore, bucket, Place(key)), image=partial(read_image, bucket, key)
    )
    findings.add(f"restore of image and {deltas:,} deltas", seconds["all"], "s")
    findings.add("restore of the image alone", seconds["image"], "s")
    findings.add(RESTORE_DELTAS, seconds["all"] / seconds["image"], "x")


def _copy_out(bucket: Bucket, key: str, path: Path) -> None:
    """What a download from a directory bucket is."""
    shutil.copyfile(Path(bucket.identity[1]) / key, path)


def _by_backup(download: Callable[[Path], object], path: Path) -> None:
    download(path)
    memory = apsw.Connection(":memory:")
    file = apsw.Connection(str(path), apsw.SQLITE_OPEN_READONLY)
    try:
        with memory.backup("main", file, "main") as backup:
            backup.step()
        assert memory.pragma("integrity_check") == "ok"
    finally:
        file.close()
        memory.close()
        path.unlink()
