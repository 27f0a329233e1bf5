"""The process around the volumes, in child processes: killed, signalled, exiting and forked.

What the bucket holds afterwards is read by this process: the newest state, from the history, and
the image, as the plain SQLite file that it is.
"""

import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from buckethead.storage.directory import DirectoryBucket, open_bucket
from servers import Server, fresh_bucket
from volume_tools import query

LONGEST_CHILD_SECONDS = 90

# Every child: a limit to its life (no watchdog thread, which would hang at exit after a fork), an
# upload that can be made to hang or fail, and short names.
PRELUDE = f"""
import faulthandler, os, signal, sys, threading, time
faulthandler.register(signal.SIGALRM, chain=True)
signal.alarm({LONGEST_CHILD_SECONDS})
import buckethead
from buckethead.storage.directory import DirectoryBucket

def config(key="x.db"):
    return buckethead.BucketConfig(bucket="b", key=key, endpoint_url=sys.argv[1])

class uploads:
    put_parts = DirectoryBucket.put_parts
    started = threading.Event()
    before = staticmethod(lambda: None)
    before_image = staticmethod(lambda: None)

def put_parts(self, chunks, key, **more):
    if not key.endswith("/probe.txt"):
        uploads.started.set()
        uploads.before()
        if not is_delta(key):
            uploads.before_image()
    return uploads.put_parts(self, chunks, key, **more)

def is_delta(key):
    return key.endswith(".ltx")

DirectoryBucket.put_parts = put_parts

def full_disk():
    raise OSError(28, "No space left on device")

def say(word):
    print(word, flush=True)

def wait_for_signals():
    say("ready")
    wait_for_the_end()

def wait_for_the_end():
    while True:  # signal.pause() would not end for a signal that comes just before it
        time.sleep(0.01)

signal.signal(signal.SIGINT, signal.default_int_handler)
"""

STARTED = """
bh = buckethead.BucketSQLite(config()).start()
bh.connection.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
"""


@dataclass
class Child:
    """A child process that runs a script in a folder of its own."""

    folder: Path
    process: "subprocess.Popen[str]"
    said: str = ""
    complained: str = ""

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == "ready\n", line + self.end().complained

    def end(self, number: signal.Signals | None = None) -> "Child":
        """Send a signal, if any, and wait for the end."""
        if number is not None:
            self.process.send_signal(number)
        self.said, self.complained = self.process.communicate(timeout=LONGEST_CHILD_SECONDS)
        return self

    @property
    def code(self) -> int:
        code: int = self.process.returncode
        return code

    @property
    def image(self) -> Path:
        return self.folder / "bucket" / "x.db"

    @property
    def bucket(self) -> DirectoryBucket:
        return DirectoryBucket(self.folder / "bucket")

    def saved(self, key: str = "x.db") -> list[object]:
        """The rows of the newest state in the bucket, which must be sound."""
        assert query(self.bucket, key, "PRAGMA integrity_check") == [("ok",)]
        return [row[0] for row in query(self.bucket, key, "SELECT a FROM t ORDER BY a")]

    def rows(self, path: Path | None = None) -> list[object]:
        """The rows of the image in the bucket, or of another file, which must be sound."""
        plain = sqlite3.connect(path or self.image)
        assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = [row[0] for row in plain.execute("SELECT a FROM t ORDER BY a")]
        plain.close()
        return rows

    def rescued(self) -> list[Path]:
        return list(self.folder.glob("buckethead-rescue-*.db"))


Start = Callable[..., Child]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a script after the prelude; arguments follow the bucket's URL."""
    children: list[Child] = []

    def start(script: str, *arguments: str) -> Child:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("BUCKETHEAD_", "R2_"))}
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", PRELUDE + textwrap.dedent(script)),
                *((tmp_path / "bucket").as_uri(), *arguments),
            ],
            cwd=tmp_path,
            env={**kept, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        children.append(Child(tmp_path, process))
        return children[-1]

    yield start
    for child in children:
        with child.process as process:
            process.kill()


# ---- killed


def test_invariant_8_what_was_flushed_survives_sigkill(start: Start) -> None:
    child = start(
        STARTED
        + """
for number in range(2, 20):
    bh.connection.execute("INSERT INTO t VALUES(?)", (number,))
bh.force_flush()
bh.connection.execute("INSERT INTO t VALUES(99)")
os.kill(os.getpid(), signal.SIGKILL)
"""
    ).end()
    assert child.code == -signal.SIGKILL
    assert child.saved() == list(range(1, 20))


def test_invariant_8_what_was_waited_for_survives_sigkill(start: Start) -> None:
    """Also where threads share publications; what nobody waited for is lost, whole."""
    child = start(
        STARTED
        + """
durable = threading.Barrier(5)

def work(first):
    own = bh.connect()
    for number in range(first, first + 5):
        own.execute("INSERT INTO t VALUES(?)", (number,))
        bh.wait()
    durable.wait(60)

for first in range(10, 50, 10):
    threading.Thread(target=work, args=(first,), daemon=True).start()
durable.wait(60)
bh.connection.execute("INSERT INTO t VALUES(99)")
os.kill(os.getpid(), signal.SIGKILL)
"""
    ).end()
    assert child.code == -signal.SIGKILL, child.complained
    assert child.saved() == [1] + [ten + one for ten in range(10, 50, 10) for one in range(5)]


CUT = """
def put_parts(self, chunks, key, **more):
    def cut():
        yield next(iter(chunks))[:100]
        os.kill(os.getpid(), signal.SIGKILL)
    if is_delta(key) == (sys.argv[2] == "delta"):
        return uploads.put_parts(self, cut(), key, **more)
    return uploads.put_parts(self, chunks, key, **more)

DirectoryBucket.put_parts = put_parts
"""


@pytest.mark.parametrize(("upload", "newest"), [("delta", [1, 2]), ("image", [1, 2, 3])])
def test_a_process_killed_in_the_middle_of_an_upload_leaves_what_was_there(
    start: Start, upload: str, newest: list[int]
) -> None:
    child = start(
        STARTED
        + """
bh.checkpoint()
bh.connection.execute("INSERT INTO t VALUES(2)")
bh.force_flush()
bh.connection.execute("INSERT INTO t VALUES(3)")
"""
        + CUT
        + "bh.checkpoint()",
        upload,
    ).end()
    assert child.code == -signal.SIGKILL
    assert child.saved() == newest
    assert child.rows() == [1]


# ---- SIGTERM


def test_sigterm_flushes_and_checkpoints_and_then_ends_the_process(start: Start) -> None:
    child = start(STARTED + "wait_for_signals()")
    child.wait_until_ready()
    child.end(signal.SIGTERM)
    assert (child.code, child.complained) == (-signal.SIGTERM, "")
    assert child.saved() == child.rows() == [1]


def test_sigterm_calls_the_previous_handler_once_everything_is_flushed(start: Start) -> None:
    child = start(
        """
        def previous(number, frame):
            say(f"handled {number} {os.path.exists('bucket/x.db')}")
            assert signal.getsignal(signal.SIGTERM) is previous
            os._exit(3)

        signal.signal(signal.SIGTERM, previous)
        """
        + textwrap.indent(STARTED, " " * 8)
        + """
        wait_for_signals()
        """
    )
    child.wait_until_ready()
    child.end(signal.SIGTERM)
    assert (child.code, child.said) == (3, "handled 15 True\n")
    assert child.saved() == [1]


def test_handlers_chained_on_top_of_ours_are_not_called_in_circles(start: Start) -> None:
    child = start(
        STARTED
        + """
def chain(number):
    ours = signal.getsignal(number)
    def handler(n, frame):
        say(f"chained {n}")
        ours(n, frame)
    signal.signal(number, handler)

chain(signal.SIGTERM)
chain(signal.SIGINT)
buckethead.mount("other", config("other.db"))
try:
    wait_for_signals()
except KeyboardInterrupt:
    say("interrupted")
wait_for_signals()
"""
    )
    child.wait_until_ready()
    child.process.send_signal(signal.SIGINT)
    assert child.process.stdout is not None
    assert child.process.stdout.readline() == "chained 2\n"
    assert child.process.stdout.readline() == "interrupted\n"
    child.wait_until_ready()
    child.end(signal.SIGTERM)
    assert child.code == -signal.SIGTERM
    assert child.said.startswith("chained 15\n")
    assert child.saved() == [1]


def test_an_ignored_signal_stays_ignored(start: Start) -> None:
    child = start(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        + STARTED
        + """
os.kill(os.getpid(), signal.SIGTERM)
assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
bh.stop()
"""
    ).end()
    assert (child.code, child.complained) == (0, "")
    assert child.saved() == [1]


@pytest.mark.parametrize("trouble", ["full_disk", "threading.Event().wait"])
def test_sigterm_saves_to_a_file_what_the_bucket_does_not_take(start: Start, trouble: str) -> None:
    """Also where the upload hangs for longer than the volume allows."""
    child = start(
        f"""
        uploads.before = {trouble}
        snapshot = buckethead.SnapshotConfig(shutdown_timeout_seconds=0.5)
        bh = buckethead.BucketSQLite(config(), snapshot).start()
        bh.connection.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        wait_for_signals()
        """
    )
    child.wait_until_ready()
    child.end(signal.SIGTERM)
    assert child.code == -signal.SIGTERM
    (path,) = child.rescued()
    assert child.rows(path) == [1]
    assert str(path) in child.complained
    assert not child.image.exists()
    assert list(child.bucket.list_keys("x.db.ltx/main/")) == []


# ---- SIGINT


def test_sigint_interrupts_at_once_and_a_flush_follows(start: Start) -> None:
    child = start(
        """
        go, flushed = threading.Event(), threading.Event()
        uploads.before = go.wait
        bh = buckethead.BucketSQLite(
            config(), on_flush_complete=lambda seconds, size: flushed.set()
        ).start()
        bh.connection.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        try:
            wait_for_signals()
        except KeyboardInterrupt:
            assert uploads.started.wait(30)
            assert not flushed.is_set()
            say("interrupted")
            go.set()
        assert flushed.wait(30)
        bh.connection.execute("INSERT INTO t VALUES(2)")
        os._exit(0)
        """
    )
    child.wait_until_ready()
    child.end(signal.SIGINT)
    assert (child.code, child.said, child.complained) == (0, "interrupted\n", "")
    assert child.saved() == [1]


# ---- threads


def test_only_the_main_thread_installs_handlers(start: Start) -> None:
    child = start(
        """
        def work():
            buckethead.mount("app", config())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        wait_for_signals()
        """
    )
    child.wait_until_ready()
    child.end(signal.SIGTERM)
    assert (child.code, child.complained) == (-signal.SIGTERM, "")


def test_importing_touches_no_signal_and_starts_no_thread(start: Start) -> None:
    child = start(
        """
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert threading.enumerate() == [threading.main_thread()]
        """
    ).end()
    assert (child.code, child.complained) == (0, "")


# ---- exit


def test_exit_flushes_what_nobody_stopped(start: Start) -> None:
    child = start(
        STARTED
        + """
import apsw
buckethead.mount("other", config("other.db"))
other = apsw.Connection("file:other?vfs=buckethead")
other.execute("CREATE TABLE t(a); INSERT INTO t VALUES(7)")
"""
    ).end()
    assert (child.code, child.complained) == (0, "")
    assert child.saved() == child.rows() == [1]
    assert child.saved("other.db") == child.rows(child.folder / "bucket" / "other.db") == [7]


def test_exit_by_an_exception_flushes_too(start: Start) -> None:
    child = start(STARTED + "raise LookupError").end()
    assert child.code == 1
    assert child.saved() == [1]


def test_exit_saves_to_a_file_what_the_bucket_does_not_take(start: Start) -> None:
    child = start(
        """
        os.umask(0)
        for name in ("first", "second"):
            bh = buckethead.BucketSQLite(config(f"{name}/x.db")).start()
            bh.connection.execute("CREATE TABLE t(a)")
            bh.connection.executemany("INSERT INTO t VALUES(?)", [(n,) for n in range(5000)])
        uploads.before = full_disk
        """
    ).end()
    assert child.code == 0
    files = child.rescued()
    assert len(files) == 2
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o600
        assert child.rows(path) == list(range(5000))
        (line,) = [line for line in child.complained.splitlines() if f"saved to {path};" in line]
        command = shlex.split(line.split("put it back with: ")[1])
        assert command[0] == "buckethead"
        way_back = [sys.executable, "-m", *command]
        subprocess.run(way_back, check=True, cwd=child.folder, capture_output=True, timeout=60)
        key = command[command.index("--key") + 1]
        assert child.saved(key) == list(range(5000))
    assert "could not be flushed (Could not publish the delta 'first/x.db.ltx" in child.complained
    assert "Traceback" not in child.complained
    assert "DATA LOST" not in child.complained


def test_exit_flushes_to_a_store_of_s3_without_new_threads(
    start: Start, moto_endpoint: Server
) -> None:
    with fresh_bucket(moto_endpoint) as name:
        config = moto_endpoint.config(name, key="x.db")
        child = start(
            """
            config = buckethead.BucketConfig.model_validate(dict(
                bucket=sys.argv[2], key="x.db", endpoint_url=sys.argv[3], region="us-east-1",
                access_key_id="key", secret_access_key="secret", part_size=5 * 1024 * 1024,
            ))
            bh = buckethead.BucketSQLite(config).start()
            bh.connection.execute("CREATE TABLE t(a); INSERT INTO t VALUES(zeroblob(20000000))")
            """,
            name,
            moto_endpoint.endpoint_url,
        ).end()
        assert (child.code, child.complained) == (0, "")
        found = query(open_bucket(config), "x.db", "SELECT length(a) FROM t")
        assert found == [(20_000_000,)]


def test_exit_does_not_wait_for_ever_for_uploads_that_hang(start: Start) -> None:
    """Two volumes of one store that hangs are saved to files; that of another gets its flush."""
    child = start(
        """
        snapshot = buckethead.SnapshotConfig(
            interval_seconds=0.01, shutdown_timeout_seconds=0.5
        )

        def hang_at_first(self, chunks, key, **more):
            if not key.startswith("x.db"):
                uploads.started.set()
                threading.Event().wait()
            return uploads.put_parts(self, chunks, key, **more)

        DirectoryBucket.put_parts = hang_at_first

        def other(key):
            return config(key).model_copy(update={"endpoint_url": sys.argv[1] + "/other"})

        for settings in (other("a.db"), other("b.db"), config()):
            bh = buckethead.BucketSQLite(settings, snapshot).start()
            bh.connection.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        assert uploads.started.wait(30)
        """
    ).end()
    assert child.code == 0
    assert child.saved() == [1]
    assert [child.rows(path) for path in child.rescued()] == [[1], [1]]


NO_THREADS = """
def refused(*arguments, **more):
    raise RuntimeError("can't create new thread at interpreter shutdown")

import atexit
def no_threads_any_more():
    threading._start_new_thread = threading._start_joinable_thread = refused
atexit.register(no_threads_any_more)
"""


@pytest.mark.parametrize("threads", ["", NO_THREADS], ids=["threads", "no threads"])
def test_exit_ends_by_itself_where_a_store_does_not_answer(start: Start, threads: str) -> None:
    """Also where no thread can be started at exit, as in Python 3.12."""
    child = start(
        """
snapshot = buckethead.SnapshotConfig(shutdown_timeout_seconds=1)
uploads.before = threading.Event().wait
for key in ("x.db", "y.db"):
    bh = buckethead.BucketSQLite(config(key), snapshot).start()
    bh.connection.execute("CREATE TABLE t(a)")
    bh.connection.executemany("INSERT INTO t VALUES(?)", [(n,) for n in range(5000)])
"""
        + threads
    ).end()
    assert child.code == 0
    assert [child.rows(path) for path in child.rescued()] == [list(range(5000))] * 2
    for key in ("x.db", "y.db"):
        assert f"'{key}' could not be flushed (no flush of it ended in time)." in child.complained
    assert list(child.bucket.list_keys("x.db.ltx/main/")) == []


def test_exit_without_new_threads_flushes_all_the_same(start: Start) -> None:
    child = start(STARTED + NO_THREADS).end()
    assert (child.code, child.complained) == (0, "")
    assert child.saved() == child.rows() == [1]


@pytest.mark.parametrize("handler", ["signal.default_int_handler", "lambda number, frame: None"])
def test_ctrl_c_while_exit_waits_saves_to_a_file_at_once(start: Start, handler: str) -> None:
    """Whatever the program does with it; and a second one does not stop that."""
    child = start(
        f"""
        from buckethead import flusher
        flusher.QUIET_SECONDS = 0.0
        signal.signal(signal.SIGINT, {handler})
        snapshot = buckethead.SnapshotConfig(shutdown_timeout_seconds=1e6)
        uploads.before = threading.Event().wait
        bh = buckethead.BucketSQLite(config(), snapshot).start()
        bh.connection.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")

        def dump(pin, path, dump=flusher.dump):
            os.kill(os.getpid(), signal.SIGINT)
            dump(pin, path)

        flusher.dump = dump
        """
    )
    assert child.process.stderr is not None
    line = child.process.stderr.readline()
    where = child.bucket.url
    assert line.startswith(f"buckethead: still flushing 'x.db' to {where}: up to "), line
    assert line.endswith(" s more; Ctrl-C saves it to a file instead.\n")
    child.end(signal.SIGINT)
    assert child.code == 0
    (path,) = child.rescued()
    assert child.rows(path) == [1]
    assert (
        f"'x.db' could not be flushed (interrupted by Ctrl-C). Its database was saved to {path};"
        in child.complained
    )
    assert "Traceback" not in child.complained


def test_an_ignored_ctrl_c_does_not_end_the_wait_at_exit(start: Start) -> None:
    child = start(
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        snapshot = buckethead.SnapshotConfig(shutdown_timeout_seconds=1e6)

        def interrupted():
            os.kill(os.getpid(), signal.SIGINT)

        uploads.before = interrupted
        bh = buckethead.BucketSQLite(config(), snapshot).start()
        bh.connection.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        """
    ).end()
    assert (child.code, child.complained) == (0, "")
    assert child.saved() == [1]


def test_exit_waits_no_longer_for_an_image_than_for_a_flush(start: Start) -> None:
    child = start(
        """
        snapshot = buckethead.SnapshotConfig(shutdown_timeout_seconds=1)
        uploads.before_image = threading.Event().wait
        bh = buckethead.BucketSQLite(config(), snapshot).start()
        bh.connection.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        """
    ).end()
    assert child.code == 0
    assert "'x.db' could not be checkpointed (no flush of it ended in time)" in child.complained
    assert child.rescued() == []
    assert child.saved() == [1]


def test_exit_saves_a_fleet_by_all_workers_there_are(start: Start) -> None:
    child = start(
        """
        together = threading.Barrier(2)

        def put_parts(self, chunks, key, **more):
            if is_delta(key):
                together.wait(30)
            return uploads.put_parts(self, chunks, key, **more)

        DirectoryBucket.put_parts = put_parts
        for number in range(10):
            key = "x.db" if number == 9 else f"{number}.db"
            bh = buckethead.BucketSQLite(config(key)).start()
            bh.connection.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        """
    ).end()
    assert (child.code, child.complained) == (0, "")
    assert len(list((child.folder / "bucket").glob("*.db"))) == 10
    assert child.saved() == [1]


def test_exit_writes_the_delta_and_then_the_image(start: Start) -> None:
    child = start(
        STARTED
        + """
uploads.before = lambda: say(f"upload, image: {os.path.exists('bucket/x.db')}")
uploads.before_image = lambda: say(f"image, deltas: {os.listdir('bucket/x.db.ltx/main/0000')}")
"""
    ).end()
    first = "0000000000000001-0000000000000001.ltx"
    assert child.said.splitlines()[:3] == [
        "upload, image: False",
        "upload, image: False",
        f"image, deltas: ['{first}']",
    ]
    assert child.saved() == child.rows() == [1]


def test_an_image_that_cannot_be_written_at_exit_is_only_a_warning(start: Start) -> None:
    child = start(STARTED + "uploads.before_image = full_disk").end()
    assert child.code == 0
    assert "'x.db' could not be checkpointed (Could not write the image" in child.complained
    assert "Traceback" not in child.complained
    assert child.rescued() == []
    assert child.saved() == [1]
    assert not child.image.exists()


def test_exit_waits_for_no_image_that_hangs(start: Start) -> None:
    """And what was committed meanwhile is published all the same."""
    child = start(
        """
        hanging = threading.Event()

        def hang():
            hanging.set()
            threading.Event().wait()

        uploads.before_image = hang
        snapshot = buckethead.SnapshotConfig(
            interval_seconds=0.01, checkpoint="flush", shutdown_timeout_seconds=0.5
        )
        bh = buckethead.BucketSQLite(config(), snapshot).start()
        bh.connection.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        assert hanging.wait(30)
        bh.connection.execute("INSERT INTO t VALUES(2)")
        """
    ).end()
    assert child.code == 0
    assert "'x.db' could not be checkpointed" in child.complained
    assert child.rescued() == []
    assert child.saved() == [1, 2]


@pytest.mark.parametrize("known", ["", "known"])
def test_exit_saves_to_a_file_what_a_fenced_volume_has(start: Start, known: str) -> None:
    child = start(
        STARTED
        + """
from volume_tools import other_process
bh.force_flush()
with other_process(config()) as (theirs, conn):
    conn.execute("INSERT INTO t VALUES(9)")
    theirs.flush()
bh.connection.execute("INSERT INTO t VALUES(2)")
if sys.argv[2]:
    try:
        bh.force_flush()
    except buckethead.FencedError:
        say("fenced")
""",
        known,
    ).end()
    assert (child.code, child.said) == (0, "fenced\n" if known else "")
    (path,) = child.rescued()
    assert child.rows(path) == [1, 2]
    assert "another writer" in child.complained
    assert f"saved to {path}; compare it" in child.complained
    assert child.saved() == [1, 9]
    assert not child.image.exists()


def test_waiting_for_a_commit_at_exit_hangs_neither(start: Start) -> None:
    """One waits in a daemon thread while the exit hook is at work, one in a hook after it."""
    child = start(
        """
        import atexit
        from buckethead.core import _lifecycle, registry

        def after():
            bh.connection.execute("INSERT INTO t VALUES(3)")
            bh.wait(timeout=30)
            say("durable at the end")

        atexit.unregister(_lifecycle.at_exit)
        atexit.register(after)
        atexit.register(_lifecycle.at_exit)
        bh = buckethead.BucketSQLite(config()).start()
        bh.connection.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        exiting, durable = threading.Event(), threading.Event()

        def meanwhile():
            own = bh.connect()
            exiting.wait(30)
            own.execute("INSERT INTO t VALUES(2)")
            bh.wait(timeout=30)
            say("durable")
            durable.set()

        threading.Thread(target=meanwhile, daemon=True).start()

        def until_durable():
            uploads.before_image = lambda: None
            exiting.set()
            assert durable.wait(30)

        uploads.before_image = until_durable
        """
    ).end()
    assert (child.code, child.complained) == (0, "")
    assert child.said.splitlines() == ["durable", "durable at the end"]
    assert child.saved() == [1, 2, 3]


def test_exit_during_a_running_flush_loses_nothing(start: Start) -> None:
    """The upload goes on only once the interpreter has begun to wait for its threads."""
    child = start(
        """
        import concurrent.futures.thread as pools

        def until_exit():
            uploads.before = lambda: None
            while not pools._shutdown:
                time.sleep(0.01)

        uploads.before = until_exit
        snapshot = buckethead.SnapshotConfig(interval_seconds=0.01)
        bh = buckethead.BucketSQLite(config(), snapshot).start()
        bh.connection.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        assert uploads.started.wait(30)
        bh.connection.execute("INSERT INTO t VALUES(2)")
        """
    ).end()
    assert (child.code, child.complained) == (0, "")
    assert child.saved() == [1, 2]


def test_exit_after_stop_writes_nothing_more(start: Start) -> None:
    child = start(
        STARTED
        + """
bh.stop()
os.unlink("bucket/x.db")
"""
    ).end()
    assert (child.code, child.complained) == (0, "")
    assert not child.image.exists()


# ---- fork


def test_a_forked_child_reads_but_never_writes(start: Start) -> None:
    child = start(
        STARTED
        + """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forking a process that has threads
pid = os.fork()
if pid == 0:
    signal.alarm(60)

    def own_only(self, chunks, key, **more):
        if key.startswith("x.db"):
            os._exit(9)
        return uploads.put_parts(self, chunks, key, **more)

    DirectoryBucket.put_parts = own_only
    assert bh.connection.execute("SELECT a FROM t").fetchall() == [(1,)]
    insert = lambda: bh.connection.execute("INSERT INTO t VALUES(2)")
    for use in (insert, bh.force_flush, bh.checkpoint, bh.wait):
        try:
            use()
        except buckethead.VolumeReadOnlyError as error:
            assert "forked" in str(error) and "Write in the parent" in str(error)
        else:
            os._exit(7)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    buckethead.mount("own", config("own.db"))
    own = buckethead.Connection("file:own?vfs=buckethead")
    own.execute("CREATE TABLE t(a); INSERT INTO t VALUES(5)")
    sys.exit(5)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
assert not os.path.exists("bucket/x.db") and not os.path.exists("bucket/x.db.ltx/main")
bh.connection.execute("INSERT INTO t VALUES(3)")
bh.force_flush()
bh.connection.execute("INSERT INTO t VALUES(4)")
"""
    ).end()
    assert (child.code, child.complained) == (0, "")
    assert child.saved() == [1, 3, 4]
    assert child.saved("own.db") == [5]
    assert child.rescued() == []


def test_a_forked_child_that_leaves_the_block_lets_go(start: Start) -> None:
    child = start(
        STARTED
        + """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
bh.connection.execute("INSERT INTO t VALUES(2)")
pid = os.fork()
if pid == 0:
    bh.stop()
    sys.exit(5)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
assert not os.path.exists("bucket/x.db") and not os.path.exists("bucket/x.db.ltx/main")
"""
    ).end()
    assert (child.code, child.complained) == (0, "")
    assert child.saved() == [1, 2]


def test_a_transaction_open_at_a_fork_goes_on_in_the_parent_only(start: Start) -> None:
    child = start(
        STARTED
        + """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
bh.connection.execute("BEGIN; INSERT INTO t VALUES(2)")
pid = os.fork()
if pid == 0:
    try:
        bh.connection.commit()
    except buckethead.VolumeReadOnlyError:
        os._exit(5)
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
bh.connection.commit()
"""
    ).end()
    assert (child.code, child.complained) == (0, "")
    assert child.saved() == [1, 2]


def test_a_child_forked_while_the_parent_terminates_can_be_terminated(start: Start) -> None:
    child = start(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        go = threading.Event()
        uploads.before = go.wait
        bh = buckethead.BucketSQLite(config()).start()
        bh.connection.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        os.kill(os.getpid(), signal.SIGTERM)
        assert uploads.started.wait(30)
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            buckethead.mount("own", config("own.db"))
            os.kill(os.getpid(), signal.SIGTERM)
            wait_for_the_end()
        say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        go.set()
        wait_for_the_end()
        """
    ).end()
    assert child.code == -signal.SIGTERM
    assert child.said == f"{-signal.SIGTERM}\n"
    assert child.saved() == [1]
