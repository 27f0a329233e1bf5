"""What the documentation shows is what happens: README.md and the examples are run."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PROJECT = """[projects.web]
bucket = "web"
endpoint_url = "file://{folder}/web"
public = true
public_base_url = "https://files.example.org"
"""
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


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """What the README says under a heading."""
    (text,) = re.findall(rf"^## {title}\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    return str(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the README's programs run, after the first one has made its database."""
    code, expected = blocks("python")[0], blocks("text")[0]
    assert python(code, tmp_path) == expected
    return tmp_path


def test_the_first_program_prints_what_the_readme_says(folder: Path) -> None:
    assert (folder / "buckethead-data" / "app.db").exists()


def test_the_program_of_your_bucket_prints_what_the_readme_says(tmp_path: Path) -> None:
    text = section("Your bucket")
    (code,), (expected,) = blocks("python", text), blocks("text", text)
    assert python(elsewhere(code, tmp_path), tmp_path) == expected


def test_the_layers_print_what_the_readme_says(tmp_path: Path) -> None:
    """Its blocks are one program; what a print prints is the comment after it."""
    code = "".join(blocks("python", section("Layers")))
    expected = re.findall(r"^# > (.*)\n", code, re.MULTILINE)
    assert len(expected) == code.count("print(")
    assert python(elsewhere(code, tmp_path), tmp_path).splitlines() == expected


def test_no_program_of_the_readme_is_left_out() -> None:
    sections = (README.partition("\n## ")[0], section("Layers"), section("Your bucket"))
    assert blocks("python") == [code for text in sections for code in blocks("python", text)]
    assert len(blocks("python", sections[0])) == 1


def elsewhere(code: str, folder: Path) -> str:
    """The same program, with its bucket in a folder of the test."""
    assert "/tmp/readme-bucket" in code
    return code.replace("/tmp/readme-bucket", str(folder / "bucket"))


def test_every_command_of_the_readme_works(folder: Path) -> None:
    settings = folder / ".config" / "buckethead" / "config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(PROJECT.format(folder=folder))
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


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_prints_what_its_docstring_says_the_first_and_the_second_time(
    path: Path, tmp_path: Path
) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    command, *outputs = map(dedent, re.findall(r"(?:^    .+\n)+", f"{docstring}\n", re.MULTILINE))
    assert command == f"python examples/{path.name}\n"
    assert len(outputs) == 2
    assert outputs[0] != outputs[1], "the second run goes on where the first one stopped"
    for expected in outputs:
        assert run([sys.executable, str(path)], tmp_path) == expected


def test_the_readme_names_every_example() -> None:
    assert sorted(re.findall(r"examples/(\w+\.py)", README)) == [path.name for path in EXAMPLES]
