"""Profiling: the artifacts exist, are private, and what cannot work fails at the start."""

import json
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from buckethead.config import ProfilingConfig
from buckethead.errors import ConfigError
from buckethead.observability.profiling import Profiler


@dataclass(frozen=True)
class Operation:
    operations: int
    seconds: float


@dataclass(frozen=True)
class Snapshot:
    requests: int = 2
    by_operation: dict[str, Operation] = field(
        default_factory=lambda: {"put_object": Operation(2, 0.5)}
    )


class Counted:
    def snapshot(self) -> Snapshot:
        return Snapshot()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def in_thread(call: Callable[[], object]) -> BaseException | None:
    """Run ``call`` in another thread; what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_nothing_asked_nothing_written(tmp_path: Path) -> None:
    profiler = Profiler(ProfilingConfig(output_dir=tmp_path / "p"))
    profiler.start()
    assert profiler.finish(Counted()) == []
    assert not (tmp_path / "p").exists()


def test_finish_without_start(tmp_path: Path) -> None:
    assert Profiler(ProfilingConfig(io_counters=True, output_dir=tmp_path)).finish(Counted()) == []


def test_io_counters(tmp_path: Path) -> None:
    profiler = Profiler(ProfilingConfig(io_counters=True, output_dir=tmp_path))
    profiler.start()
    (path,) = profiler.finish(Counted())
    assert json.loads(path.read_text()) == {
        "requests": 2,
        "by_operation": {"put_object": {"operations": 2, "seconds": 0.5}},
    }
    assert profiler.finish(Counted()) == []


@pytest.mark.usefixtures("open_umask")
def test_all_artifacts_are_private(tmp_path: Path) -> None:
    pytest.importorskip("memray")
    pytest.importorskip("pyinstrument")
    config = ProfilingConfig(io_counters=True, memory=True, cpu=True, output_dir=tmp_path / "a/b")
    profiler = Profiler(config)
    profiler.start()
    sum(len(str(n)) for n in range(10_000))
    paths = profiler.finish(Counted())
    assert {path.name for path in paths} == {"memory.bin", "io.json", "cpu.html"}
    assert all(path.is_absolute() and path.stat().st_size for path in paths)
    assert {mode_of(path) for path in paths} == {0o600}
    assert {mode_of(path.parent) for path in paths} == {0o700}
    assert mode_of(tmp_path / "a/b") == 0o700


def test_the_memory_profile_can_be_read(tmp_path: Path) -> None:
    memray = pytest.importorskip("memray")
    profiler = Profiler(ProfilingConfig(memory=True, output_dir=tmp_path))
    profiler.start()
    kept = [bytearray(100_000) for _ in range(10)]
    (path,) = profiler.finish(Counted())
    with memray.FileReader(path) as reader:
        assert reader.metadata.peak_memory >= sum(map(len, kept))


def test_runs_do_not_share_a_directory(tmp_path: Path) -> None:
    profilers = [
        Profiler(ProfilingConfig(io_counters=True, cpu=True, output_dir=tmp_path)) for _ in "ab"
    ]
    for profiler in profilers:
        profiler.start()
    paths = [path for profiler in profilers for path in profiler.finish(Counted())]
    assert len(paths) == len(set(paths)) == 4


@pytest.mark.parametrize(("option", "module"), [("memory", "memray"), ("cpu", "pyinstrument")])
def test_a_missing_extra_fails_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    config = ProfilingConfig.model_validate({option: True, "output_dir": tmp_path / "p"})
    with pytest.raises(ConfigError, match=r"pip install 'buckethead\[profiling\]'"):
        Profiler(config).start()
    assert not (tmp_path / "p").exists()


def test_a_second_memory_profile_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("memray")
    config = ProfilingConfig(memory=True, cpu=True, output_dir=tmp_path)
    first, second = Profiler(config), Profiler(config)
    first.start()
    try:
        with pytest.raises(ConfigError, match="stop the other one first"):
            second.start()
        assert second.finish(Counted()) == []
    finally:
        paths = first.finish(Counted())
    assert [path.name for path in paths] == ["memory.bin", "cpu.html"]
    assert list(tmp_path.iterdir()) == [paths[0].parent]


def test_finished_in_another_thread(tmp_path: Path) -> None:
    pytest.importorskip("pyinstrument")
    profiler = Profiler(ProfilingConfig(io_counters=True, cpu=True, output_dir=tmp_path))
    profiler.start()
    error = in_thread(lambda: profiler.finish(Counted()))
    profiler._cpu.stop()  # else it would sample the tests after this one
    assert isinstance(error, ConfigError)
    assert "another thread" in str(error)
    assert [path.name for path in tmp_path.glob("*/*")] == ["io.json"]


def test_an_output_dir_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = ProfilingConfig(io_counters=True, output_dir=tmp_path / "file")
    with pytest.raises(ConfigError, match="set another output_dir"):
        Profiler(config).start()


def test_a_result_that_cannot_be_written(tmp_path: Path) -> None:
    profiler = Profiler(ProfilingConfig(io_counters=True, output_dir=tmp_path))
    profiler.start()
    next(tmp_path.iterdir()).rmdir()
    with pytest.raises(ConfigError, match="cannot write the profile"):
        profiler.finish(Counted())
