"""Several statements as one: what Ctrl-C and other threads on the same connection leave of it."""

import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from buckethead.core import registry
from buckethead.interfaces import statements
from buckethead.interfaces.docs import Docs
from buckethead.interfaces.kv import KV
from buckethead.interfaces.statements import as_one, run
from buckethead.uris import uri_of
from volume_tools import NEVER, PATIENCE, column, directory, nothing_left_mounted


@pytest.fixture
def uri(tmp_path: Path) -> Iterator[str]:
    with nothing_left_mounted():
        yield uri_of(registry.mount("statements", directory(tmp_path), NEVER).name)


def interrupt(monkeypatch: pytest.MonkeyPatch, when: str, raised: str) -> None:
    """Have Ctrl-C come just before or just after a statement."""

    def interrupted(connection: apsw.Connection, sql: str) -> apsw.Cursor:
        if sql == when and raised == "before":
            raise KeyboardInterrupt
        done = run(connection, sql)
        if sql == when:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(statements, "run", interrupted)


@pytest.mark.parametrize("when", ["BEGIN IMMEDIATE", "COMMIT"])
@pytest.mark.parametrize("raised", ["before", "after"])
def test_ctrl_c_leaves_no_transaction_open(
    uri: str, monkeypatch: pytest.MonkeyPatch, when: str, raised: str
) -> None:
    """Python raises it between two of its instructions: also when the statement has run, and
    before anybody has noted that."""
    connection = apsw.Connection(uri)
    connection.execute("CREATE TABLE t(x)")
    interrupt(monkeypatch, when, raised)
    with pytest.raises(KeyboardInterrupt), as_one(connection):
        connection.execute("INSERT INTO t VALUES(1)")
    assert not connection.in_transaction
    whole = (when, raised) == ("COMMIT", "after")
    assert column(apsw.Connection(uri), "SELECT x FROM t") == ([1] if whole else [])


@pytest.mark.parametrize("when", ["SAVEPOINT bh", "RELEASE bh"])
@pytest.mark.parametrize("raised", ["before", "after"])
def test_ctrl_c_leaves_the_callers_transaction_as_it_was(
    uri: str, monkeypatch: pytest.MonkeyPatch, when: str, raised: str
) -> None:
    connection = apsw.Connection(uri)
    connection.execute("CREATE TABLE t(x); BEGIN; INSERT INTO t VALUES(0)")
    interrupt(monkeypatch, when, raised)
    with pytest.raises(KeyboardInterrupt), as_one(connection):
        connection.execute("INSERT INTO t VALUES(1)")
    assert connection.in_transaction
    connection.execute("COMMIT")
    whole = (when, raised) == ("RELEASE bh", "after")
    assert column(apsw.Connection(uri), "SELECT x FROM t") == ([0, 1] if whole else [0])


@pytest.mark.parametrize("layer", ["kv", "docs", "one of several"])
def test_what_another_thread_writes_is_not_undone_with_a_transaction_of_ours(
    uri: str, layer: str
) -> None:
    connection = apsw.Connection(uri)
    kv, docs = KV(connection), Docs(connection).collection("c")
    docs.insert({"n": 0}, id="there")
    kv.set("there", "0")
    begun = threading.Event()

    def write() -> None:
        begun.set()
        if layer == "kv":
            kv.set("there", "1")
        elif layer == "docs":
            docs.replace("there", {"n": 1})
        else:
            docs.insert_many([{"_id": "1"}, {"_id": "2"}])

    other = threading.Thread(target=write)

    def undo() -> None:
        with as_one(connection):
            other.start()
            assert begun.wait(PATIENCE)
            other.join(0.2)  # it does not end; if it did, what it wrote would be undone here
            raise RuntimeError("undone")

    with pytest.raises(RuntimeError, match="undone"):
        undo()
    other.join(PATIENCE)
    assert (kv["there"] == "1") is (layer == "kv")
    assert (docs.get("there") == {"n": 1, "_id": "there"}) is (layer == "docs")
    assert (docs.count() == 3) is (layer == "one of several")
