"""Every test of the command line runs in an empty folder of its own, with nothing configured."""

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; the home folder is empty too."""
    home, folder = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    folder.mkdir()
    for name in os.environ:
        if name.startswith(("BUCKETHEAD_", "R2_", "AWS_")):
            monkeypatch.delenv(name)
    # the child processes of a test run find the package as the test run does
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    absolute = [os.path.abspath(path) for path in paths if path]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(absolute))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(folder)
    return folder
