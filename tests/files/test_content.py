"""What is to be stored: hashed first, and the same when it is read again."""

import gc
import hashlib
import io
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from buckethead.errors import SourceChangedError
from buckethead.files.content import READ_BYTES, SMALL_BYTES, Content, content_of
from files.tools import sha256

SIZES = [0, 1, SMALL_BYTES, SMALL_BYTES + 1, READ_BYTES, 3 * READ_BYTES + 7]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where temporary files go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def noise(size: int) -> bytes:
    return os.urandom(size)


def all_of(content: Content, length: int = 1000_000) -> bytes:
    return b"".join(content.chunks(length))


class Reluctant(io.RawIOBase):
    """A stream that cannot be sought in and gives a few bytes at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data = data
        self._step = step

    def read(self, size: int = -1) -> bytes:
        taken, self._data = self._data[: self._step], self._data[self._step :]
        return taken


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview", "path", "stream", "trickle"])
def test_every_source_has_its_size_and_hash_and_can_be_read_again(
    tmp_path: Path, temporary: Path, size: int, kind: str
) -> None:
    data = noise(size)
    path = tmp_path / "source"
    path.write_bytes(data)
    sources: dict[str, Any] = {
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "path": path,
        "stream": io.BytesIO(data),
        "trickle": Reluctant(data, 50_000),
    }
    content = content_of(sources[kind])
    assert (content.sha256, content.size) == (sha256(data), size)
    assert all_of(content) == all_of(content, 999) == data
    assert content.in_memory == (size if size <= SMALL_BYTES and kind != "path" else 0)
    on_disk = content.on_disk()
    assert on_disk.in_memory == 0
    assert all_of(on_disk) == data


def test_chunks_have_the_length_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(noise(1000))
    assert [len(chunk) for chunk in content_of(path).chunks(300)] == [300, 300, 300, 100]


def test_a_temporary_file_is_private_and_goes_with_its_content(temporary: Path) -> None:
    content = content_of(io.BytesIO(noise(SMALL_BYTES + 1)))
    (file,) = temporary.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert content.size == SMALL_BYTES + 1
    del content
    gc.collect()
    assert list(temporary.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_does_not_take_the_temporary_file_away(temporary: Path) -> None:
    content = content_of(noise(SMALL_BYTES + 1))
    child = os.fork()
    if not child:
        del content
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert len(all_of(content)) == SMALL_BYTES + 1


def test_a_pipe_is_read_to_its_end(temporary: Path) -> None:
    data = noise(300_000)
    reading, writing = os.pipe()

    def write() -> None:
        with open(writing, "wb") as file:
            file.write(data)

    thread = threading.Thread(target=write)
    thread.start()
    with open(reading, "rb") as stream:
        assert all_of(content_of(stream)) == data
    thread.join()


# ---- a source that changes


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def cut(path: Path) -> None:
    os.truncate(path, 10)


def put_another_in_its_place(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.replace(other, path)


def change_unseen(path: Path) -> None:
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, io.SEEK_END)
        file.write(b"!")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES = [grow, cut, put_another_in_its_place, change_unseen, Path.unlink]


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_after_it_was_hashed_is_not_read_to_the_end(
    tmp_path: Path, change: Any
) -> None:
    path = tmp_path / "source"
    path.write_bytes(b"." * 100_000)
    content = content_of(path)
    change(path)
    with pytest.raises(SourceChangedError, match=r"Could not store '.*source': it .*stored"):
        all_of(content)


@pytest.mark.parametrize("change", [grow, cut, change_unseen])
def test_a_file_that_changes_while_it_is_read_again_is_not_read_to_the_end(
    tmp_path: Path, change: Any
) -> None:
    path = tmp_path / "source"
    path.write_bytes(b"." * 100_000)
    chunks = content_of(path).chunks(30_000)
    next(chunks)
    change(path)
    with pytest.raises(SourceChangedError):
        list(chunks)


@pytest.mark.parametrize("change", [grow, cut])
def test_a_file_that_changes_while_it_is_hashed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    path = tmp_path / "source"
    path.write_bytes(b"." * 100_000)
    digest = hashlib.file_digest

    def meanwhile(file: Any, name: str) -> Any:
        result = digest(file, name)
        change(path)
        return result

    monkeypatch.setattr(hashlib, "file_digest", meanwhile)
    with pytest.raises(SourceChangedError, match="was changed"):
        content_of(path)


# ---- bad input


@pytest.mark.parametrize("source", ["name.txt", None, 5, ["a"], object()])
def test_what_is_no_source_is_refused(source: Any) -> None:
    with pytest.raises(TypeError, match="give bytes, a Path, or a file opened"):
        content_of(source)


def test_a_text_is_taken_for_a_path_by_nobody() -> None:
    source: Any = "name.txt"
    with pytest.raises(TypeError, match=r"For a file, give pathlib.Path"):
        content_of(source)


class NotReady(io.RawIOBase):
    """A stream that does not wait for its bytes."""

    def read(self, size: int = -1) -> None:
        return None


@pytest.mark.parametrize("stream", [io.StringIO("text"), NotReady()])
def test_a_stream_that_gives_no_bytes_is_refused(stream: Any) -> None:
    with pytest.raises(TypeError, match="opened in binary mode"):
        content_of(stream)


def test_what_is_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, place = tmp_path / "pipe", tmp_path / "socket"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # the name of a socket has to be short
        listener.bind("socket")
        for path in (pipe, place, Path("/dev/null")):
            with pytest.raises(ValueError, match="it is no regular file"):
                content_of(path)
    with pytest.raises(IsADirectoryError):
        content_of(tmp_path)
    with pytest.raises(FileNotFoundError):
        content_of(tmp_path / "missing")
