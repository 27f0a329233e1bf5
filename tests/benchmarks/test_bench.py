"""The benchmark runs, and reports every row it promises. Nothing here looks at how long it took."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.run import (
    BARS,
    FLUSH_REQUESTS,
    IDLE_FOLLOWER,
    IDLE_LISTS,
    IDLE_WRITER,
    bars_table,
    idle,
    results,
)
from buckethead.bench import FULL, Options, Report, costs, run
from buckethead.bench import flushes as f
from buckethead.bench import transfer as t
from buckethead.bench import volumes as v
from buckethead.bench import waiting as w
from buckethead.bench.statements import Load
from buckethead.cli.bench import bench, tables
from buckethead.storage import bucket as s3_client
from servers import Server, fresh_bucket

TINY = Options(
    size_mb=0.2,
    load=Load(rows=50, operations=5, rounds=1, seconds=0.02),
    transfer_rounds=1,
    volumes=2,
    deltas=3,
    flush_mb=(0.2, 0.3),
    flush_pages=(1, 5, 10_000),
    flush_rounds=3,
    wait_seconds=0.02,
    commits=2,
)
PATIENCE_SECONDS = 60
AMONG_VOLUMES = """
import sys
from buckethead.bench import volumes
from buckethead.cli import main

uri_of = volumes.uri_of

def told(name):
    if name == "many-20":
        print("now", flush=True)
    return uri_of(name)

volumes.uri_of = told
sys.argv = ["buckethead", "bench", "--volumes", "100000"]
main()
"""
AMONG_THREADS = """
import sys
from buckethead.bench import statements
from buckethead.cli import main

beside_each_other = statements.beside_each_other

def told(rows):
    print("now", flush=True)
    yield from rows

statements.beside_each_other = lambda connect, rows, ids, seconds: beside_each_other(
    connect, told(rows), ids, 3600.0
)
sys.argv = ["buckethead", "bench", "--volumes", "1", "--rows", "50", "--operations", "5"]
main()
"""
ENGINES = {"buckethead", "memdb", ":memory:", "disk WAL"}
STATEMENTS = [
    "bulk insert, per row",
    "single-row commit",
    "point read",
    "range scan, per row",
    "write here, read there",
    "commit beside 3 readers",
    "read beside 1 writer",
]
ONE_CONNECTION = STATEMENTS[:4]
PAUSES = {t.PAUSE, t.PAUSE + t.BYSTANDER, t.PAUSE + t.NO_CHECKPOINT}
EVERYWHERE = {
    *(t.UNCHANGED, t.UNCHANGED_REQUESTS, t.FIRST_FLUSH, t.CHECKPOINT, t.RESTORE, t.RESTORE_DELTAS),
    *(f.ENCODING, w.TOGETHER, w.ALONE, w.TIMES, w.SHARED),
    *(w.DURABLE, w.DURABLE_PUT, w.DURABLE_BEYOND, *costs.FLUSHES, costs.FOLLOWER),
    *PAUSES,
}
ON_LINUX = {t.MEMORY_IDLE, t.MEMORY_BUSY, t.MEMORY_REPLACED, v.MEMORY}


def names(report: Report) -> set[str]:
    return {measure.name for measure in report.findings.measures}


def value_of(report: Report, name: str) -> float:
    (measure,) = (one for one in report.findings.measures if one.name == name)
    return measure.value


@pytest.fixture(scope="module")
def heard() -> list[str]:
    return []


@pytest.fixture(scope="module")
def report(heard: list[str]) -> Report:
    """Of a run on a directory."""
    return run(TINY, heard.append)


def test_a_run_on_a_directory_has_every_row_of_statements(report: Report) -> None:
    assert [row.name for row in report.statements] == STATEMENTS
    for row in report.statements:
        assert row.microseconds.keys() == row.ratios.keys() == ENGINES
        known = {engine for engine, value in row.microseconds.items() if value is not None}
        assert known == (ENGINES if row.name in ONE_CONNECTION else ENGINES - {":memory:"})
        assert row.ratios["memdb"] == 1


def test_a_run_on_a_directory_says_what_it_left_out(report: Report, heard: list[str]) -> None:
    assert names(report) >= EVERYWHERE | ON_LINUX | {v.THREADS, v.EACH}
    for name in (t.UPLOAD, costs.CHECKPOINTS):
        assert name not in names(report)
        assert [line for line in report.findings.left_out if line.startswith(name)]
    assert heard == [
        "2 volumes",
        "statements",
        "flushes of 0.2, 0.3 MB",
        "waiting for commits to be safe",
        "checkpoint and restore of 0.2 MB",
    ]
    document = json.loads(json.dumps(report.document(), allow_nan=False))
    assert document["findings"]["measures"][0].keys() == {"name", "value", "unit"}
    assert document["flushes"][0].keys() >= {"size_mb", "changed", "size", "requests"}


def test_flushes_are_of_the_pages_that_were_asked_for(report: Report) -> None:
    kinds = [(one.changed, one.size_mb) for one in report.flushes]
    assert kinds == [(1, 0.2), (1, 0.3), (5, 0.2), (5, 0.3)]
    assert [line for line in report.findings.left_out if "10,000 pages of 0.3 MB" in line]
    for flush in report.flushes:
        # each row's own page and the first one, which counts the changes
        assert flush.pages == flush.changed + 1
        assert flush.requests == 1
        assert 131 < flush.size < flush.pages * 5_000


def test_the_tables_show_every_number(report: Report) -> None:
    statements, flushes, findings = tables(report)
    assert statements.row_count == len(STATEMENTS)
    assert flushes.row_count == len(report.flushes)
    assert findings.row_count == len(report.findings.measures)


@pytest.fixture(scope="module")
def s3_report(moto_endpoint: Server) -> Report:
    with fresh_bucket(moto_endpoint) as bucket:
        place = moto_endpoint.config(bucket)
        report = run(replace(TINY, size_mb=6, flush_pages=(1,), place=place))
        idle(place, seconds=0.1, period=0.01, findings=report.findings)
        left = list(moto_endpoint.client().list_objects_v2(Bucket=bucket).get("Contents", []))
        assert left == []
    return report


def test_a_run_on_s3_has_a_number_for_every_bar(s3_report: Report) -> None:
    assert s3_report.findings.left_out == []
    assert {t.PAUSE_S3, t.PAUSE_S3 + t.BYSTANDER, costs.CHECKPOINTS} <= names(s3_report)
    found = results(s3_report)
    assert [one.what for one in found] == [bar.what for bar in BARS]
    held = {one.what for one in found if one.held}
    assert held >= {t.UNCHANGED_REQUESTS, FLUSH_REQUESTS, IDLE_WRITER, IDLE_LISTS}
    assert bars_table(found).row_count == len(BARS)


def test_an_idle_follower_asks(s3_report: Report) -> None:
    assert value_of(s3_report, IDLE_FOLLOWER) > 0


@pytest.mark.parametrize(
    ("reached", "at_least", "held"),
    [(50.0, False, True), (50.1, False, False), (50.0, True, True), (49.9, True, False)],
)
def test_a_bar_is_held_up_to_its_limit(
    monkeypatch: pytest.MonkeyPatch, s3_report: Report, reached: float, at_least: bool, held: bool
) -> None:
    (bar,) = (bar for bar in BARS if bar.what == t.UNCHANGED)
    number: Callable[[Report], float] = lambda report: reached  # noqa: E731
    changed = replace(bar, reached=number, at_least=at_least)
    monkeypatch.setattr("benchmarks.run.BARS", (changed,))
    assert [one.held for one in results(s3_report)] == [held]


def test_costs_follow_from_the_requests_that_were_counted(s3_report: Report) -> None:
    once = [value_of(s3_report, name) for name in costs.FLUSHES]
    assert once == pytest.approx([0.432, 0.0432, 0.0072])
    assert value_of(s3_report, costs.FOLLOWER) == pytest.approx(0.03456)
    # a look, the image before copied, and an upload of two parts (4) with another look in it
    assert value_of(s3_report, costs.CHECKPOINT_REQUESTS) == 7


@pytest.mark.parametrize("program", [AMONG_VOLUMES, AMONG_THREADS], ids=["volumes", "threads"])
def test_ctrl_c_ends_it_and_leaves_nothing(program: str, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "now\n"
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
    assert process.returncode == 1
    assert errors.splitlines()[-1] == "Aborted!"
    assert list(tmp_path.iterdir()) == []


def test_every_request_that_is_counted_has_a_price() -> None:
    assert s3_client.__file__ is not None
    counted = re.findall(r'timed\("(\w+)"\)', Path(s3_client.__file__).read_text())
    assert len(counted) > 10
    assert costs.DOLLARS.keys() == set(counted)


def test_the_full_sizes_are_those_of_the_bars() -> None:
    assert (FULL.flush_mb, FULL.flush_pages) == ((10, 100, 1_000), (1, 100, 10_000))
    assert (FULL.size_mb, FULL.deltas) == (256, 1_000)


def test_full_changes_every_default_and_nothing_that_is_given() -> None:
    quick = bench.make_context("bench", []).params
    full = bench.make_context("bench", ["--volumes", "3", "--full"]).params
    assert full.pop("volumes") == 3
    same = {name for name, value in full.items() if value == quick[name]}
    assert same == {"as_json", "endpoint_url"}
    assert full["flush_mb"] == FULL.flush_mb


def test_the_benchmark_of_the_layers_measures_every_bar(tmp_path: Path) -> None:
    """What it finds depends on the machine: a bar that is missed is no failure here."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("layers.py"), "--megabytes", "4"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "Traceback" not in done.stderr
    for what in ("kv.get", "kv.set", "SELECT FROM bh_kv", "requests", "fork in memory", "files."):
        assert what in done.stdout
