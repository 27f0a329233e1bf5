"""A store beside a plain model: files, transactions, publications, collections and restarts."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

import apsw
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from buckethead.core import registry
from buckethead.files.store import FileStore
from buckethead.uris import uri_of
from files.tools import PREFIX, blobs, sha256
from volume_tools import NEVER, directory, forget, nothing_left_mounted, query

CONTENTS = st.sampled_from([b"", b"a", b"b", b"c" * 70_000])
NAME = "stateful"


class Machine(RuleBasedStateMachine):
    """Does the same to a store and to dicts of what is committed and what is published. A crash
    loses what was not published, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}
        self.saved: list[dict[str, bytes]] = []
        self.published: dict[str, bytes] = {}
        self._stack = ExitStack()

    @initialize()
    def begin(self) -> None:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        self._stack.enter_context(nothing_left_mounted())
        self.config = directory(Path(folder), "x.db")
        self.mount()

    def teardown(self) -> None:
        self._stack.close()

    def mount(self) -> None:
        self.volume = registry.mount(NAME, self.config, NEVER)
        self.connection = apsw.Connection(uri_of(NAME))
        self.store = FileStore(self.connection, self.volume.bucket)

    @rule(content=CONTENTS)
    def put(self, content: bytes) -> None:
        assert self.store.put(content) == sha256(content)
        self.files[sha256(content)] = content

    @rule(content=CONTENTS)
    def delete(self, content: bytes) -> None:
        key = sha256(content)
        assert self.store.delete(key) == (self.files.pop(key, None) is not None)

    @precondition(lambda self: len(self.saved) < 2)
    @rule()
    def savepoint(self) -> None:
        self.connection.execute("SAVEPOINT test")
        self.saved.append(dict(self.files))

    @precondition(lambda self: self.saved)
    @rule(undo=st.booleans())
    def release(self, undo: bool) -> None:
        files = self.saved.pop()
        if undo:
            self.connection.execute("ROLLBACK TO test")
            self.files = files
        self.connection.execute("RELEASE test")

    @rule()
    def flush(self) -> None:
        self.volume.flush()
        self.published = dict(self.saved[0] if self.saved else self.files)

    @rule()
    def collect(self) -> None:
        self.store.gc(grace_seconds=0.0)

    @rule()
    def crash(self) -> None:
        self.connection.close()
        forget(self.volume)
        self.mount()
        self.files, self.saved = dict(self.published), []

    @rule()
    def lose_a_blob(self) -> None:
        if self.files and not self.saved:
            key = min(self.files)
            self.volume.bucket.delete(PREFIX + key)
            assert not self.store.exists(key)
            self.store.put(self.files[key])

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "store"):
            return
        assert {file.bh_key for file in self.store.list()} == self.files.keys()
        assert {key: self.store.get(key) for key in self.files} == self.files
        there = blobs(self.volume.bucket)
        assert self.published.items() <= there.items(), "invariant 11"
        if self.published:
            keys = query(self.volume.bucket, "x.db", "SELECT bh_key FROM filestore")
            assert {key for (key,) in keys} == self.published.keys()


TestStore = Machine.TestCase
TestStore.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
