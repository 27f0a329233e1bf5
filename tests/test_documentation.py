"""What the documentation shows is what happens: README.md and the examples are run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
INTERACTIVE = ("shell", "bench")  # their own tests run them


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BUCKETHEAD")}
    return kept | {"HOME": str(home), "NO_COLOR": "1", "PYTHONWARNINGS": "error"}


def run(arguments: list[str], folder: Path) -> str:
    done = subprocess.run(
        arguments,
        check=False,
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def python(code: str, folder: Path) -> str:
    return run([sys.executable, "-c", code], folder)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the README's programs run, after the first one has made its database."""
    code, expected = blocks("python")[0], blocks("text")[0]
    assert python(code, tmp_path) == expected
    return tmp_path


def test_the_first_program_prints_what_the_readme_says(folder: Path) -> None:
    assert (folder / "buckethead-data" / "app.db").exists()


def test_the_other_programs_print_what_the_readme_says(tmp_path: Path) -> None:
    pairs = list(zip(blocks("python")[1:], blocks("text")[1:], strict=True))
    assert pairs
    for code, expected in pairs:
        assert "/tmp/readme-bucket" in code
        assert python(code.replace("/tmp/readme-bucket", str(tmp_path / "b")), tmp_path) == expected


def test_every_command_of_the_readme_works(folder: Path) -> None:
    lines = [line[2:] for block in blocks("console") for line in block.splitlines()]
    assert len(lines) > 5
    for line in lines:
        arguments = shlex.split(line)
        assert arguments[0] == "buckethead"
        if arguments[-1] in INTERACTIVE:
            arguments.append("--help")
        run([sys.executable, "-m", "buckethead", *arguments[1:]], folder)


def test_the_gate_runs_the_test_command_of_the_readme() -> None:
    (command,) = re.findall(r"^(pip install -e .*)$", README, re.MULTILINE)
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name
)
def test_an_example_runs_and_goes_on_where_it_stopped(path: Path, tmp_path: Path) -> None:
    code = path.read_text().replace("/tmp/", f"{tmp_path}/")
    first = python(code, tmp_path)
    second = python(code, tmp_path)
    assert first
    assert second
    assert first != second, "the second run builds on the first"
