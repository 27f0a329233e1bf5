"""Profiles of one run: what was requested, allocated and computed between start and finish.

Every run writes into a new directory of its own (0700, files 0600), because an allocation or
call profile shows paths and code of the program around it. What cannot work fails at the start,
not after hours of measuring.
"""

import importlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from buckethead.config import ProfilingConfig
from buckethead.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Counters(Protocol):
    """Something that counts, such as the IOCounters of a bucket."""

    def snapshot(self) -> "DataclassInstance":
        """The counts so far, as plain data."""


class Profiler:
    """Measures what its configuration asks for, from ``start`` to ``finish``."""

    def __init__(self, config: ProfilingConfig) -> None:
        self._config = config
        self._directory: Path | None = None
        self._memory: Any = None  # a memray.Tracker; the extra may not be installed
        self._cpu: Any = None  # a pyinstrument.Profiler

    def start(self) -> None:
        """Begin to measure.

        Raises ConfigError when the extra is not installed, another memory profile is running in
        this process, or the output directory cannot be made.
        """
        config = self._config
        if not (config.io_counters or config.memory or config.cpu):
            return
        memray = _extra("memray") if config.memory else None
        pyinstrument = _extra("pyinstrument") if config.cpu else None
        directory = _run_directory(config.output_dir)
        if memray:
            self._memory = _start_memory(memray, directory)
        if pyinstrument:
            # "enabled" would refuse a second profiler in this thread
            self._cpu = pyinstrument.Profiler(async_mode="disabled")
            self._cpu.start()
        self._directory = directory

    def finish(self, counters: Counters) -> list[Path]:
        """Stop measuring and write the results; returns their paths, none if not started.

        A CPU profile covers the thread that called ``start``, and only that thread can finish it.
        Raises ConfigError when it is another one, or when a result cannot be written.
        """
        if self._directory is None:
            return []
        directory, self._directory = self._directory, None
        try:
            return self._write(directory, counters)
        except OSError as error:
            raise ConfigError(
                f"cannot write the profile in {directory}: {error}: make room, or set another "
                "output_dir"
            ) from error

    def _write(self, directory: Path, counters: Counters) -> list[Path]:
        artifacts = []
        if self._memory is not None:
            self._memory.__exit__(None, None, None)
            # memray replaces its file at the end, with the permissions of the umask
            artifacts.append(_memory_file(directory))
            artifacts[-1].chmod(0o600)
        if self._config.io_counters:
            text = json.dumps(asdict(counters.snapshot()), indent=2)
            artifacts.append(_write_private(directory / "io.json", text + "\n"))
        if self._cpu is not None:
            self._stop_cpu(directory)
            artifacts.append(_write_private(directory / "cpu.html", self._cpu.output_html()))
        return artifacts

    def _stop_cpu(self, directory: Path) -> None:
        try:
            self._cpu.stop()
        except RuntimeError as error:
            raise ConfigError(
                f"no CPU profile was written in {directory}: it was finished in another thread "
                "than it was started in; call start() and stop() in the same one"
            ) from error


def _extra(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"this profile needs {module}, which cannot be imported here: "
            "pip install 'buckethead[profiling]'"
        ) from error


def _run_directory(output_dir: Path) -> Path:
    """A new directory for this run, which only this user can enter."""
    try:
        output_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        prefix = time.strftime("%Y%m%d-%H%M%S-")
        return Path(tempfile.mkdtemp(prefix=prefix, dir=output_dir)).absolute()
    except OSError as error:
        raise ConfigError(
            f"cannot make a directory for profiles in {output_dir}: {error}: set another output_dir"
        ) from error


def _memory_file(directory: Path) -> Path:
    return directory / "memory.bin"


def _start_memory(memray: Any, directory: Path) -> Any:
    tracker = memray.Tracker(_memory_file(directory))
    try:
        tracker.__enter__()
    except RuntimeError as error:
        shutil.rmtree(directory)
        raise ConfigError(
            f"cannot start the memory profile: {error}: memray measures a whole process, so stop "
            "the other one first, or leave memory off"
        ) from error
    return tracker


def _write_private(path: Path, text: str) -> Path:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    return path
