"""The benchmark runs, and reports every row it promises. Nothing here looks at how long it took."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.run import BARS, bars_table, results
from buckethead.bench import Options, Report, run
from buckethead.bench import transfer as t
from buckethead.bench import volumes as v
from buckethead.bench.statements import Load
from servers import Server, fresh_bucket

TINY = Load(rows=50, operations=5, rounds=1, seconds=0.02)
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
PAUSES = {t.PAUSE, t.PAUSE + t.BYSTANDER, t.PAUSE + t.NO_FLUSH}
EVERYWHERE = {t.UNCHANGED, t.UNCHANGED_REQUESTS, t.FLUSH, t.RESTORE} | PAUSES
ON_LINUX = {t.MEMORY_IDLE, t.MEMORY_BUSY, t.MEMORY_REPLACED, v.MEMORY}


def names(report: Report) -> set[str]:
    return {measure.name for measure in report.findings.measures}


def test_a_run_on_a_directory_has_every_row_of_statements() -> None:
    report = run(Options(size_mb=0.2, load=TINY, transfer_rounds=1, volumes=2))
    assert [row.name for row in report.statements] == STATEMENTS
    for row in report.statements:
        assert row.microseconds.keys() == row.ratios.keys() == ENGINES
        known = {engine for engine, value in row.microseconds.items() if value is not None}
        assert known == (ENGINES if row.name in ONE_CONNECTION else ENGINES - {":memory:"})
        assert row.ratios["memdb"] == 1


def test_a_run_on_a_directory_says_what_it_left_out(tmp_path: Path) -> None:
    heard: list[str] = []
    options = Options(size_mb=0.2, load=TINY, transfer_rounds=1, volumes=2)
    report = run(options, heard.append)
    assert names(report) >= EVERYWHERE | ON_LINUX | {v.THREADS, v.EACH}
    assert t.UPLOAD not in names(report)
    assert [line for line in report.findings.left_out if line.startswith(t.UPLOAD)]
    assert heard == ["2 volumes", "statements", "flush and restore of 0.2 MB"]
    document = json.loads(json.dumps(report.document(), allow_nan=False))
    assert document["findings"]["measures"][0].keys() == {"name", "value", "unit"}


@pytest.fixture(scope="module")
def s3_report(moto_endpoint: Server) -> Report:
    with fresh_bucket(moto_endpoint) as bucket:
        place = moto_endpoint.config(bucket)
        report = run(Options(6, load=TINY, transfer_rounds=1, volumes=2, place=place))
        left = list(moto_endpoint.client().list_objects_v2(Bucket=bucket).get("Contents", []))
        assert left == []
    return report


def test_a_run_on_s3_has_a_number_for_every_bar(s3_report: Report) -> None:
    assert s3_report.findings.left_out == []
    assert {t.PAUSE_S3, t.PAUSE_S3 + t.BYSTANDER} <= names(s3_report)
    found = results(s3_report)
    assert [one.what for one in found] == [bar.what for bar in BARS]
    (requests,) = (one for one in found if one.what == t.UNCHANGED_REQUESTS)
    assert requests.held
    assert bars_table(found).row_count == len(BARS)


@pytest.mark.parametrize(("reached", "held"), [(50.0, True), (50.1, False)])
def test_a_bar_is_held_up_to_its_limit(
    monkeypatch: pytest.MonkeyPatch, s3_report: Report, reached: float, held: bool
) -> None:
    (bar,) = (bar for bar in BARS if bar.what == t.UNCHANGED)
    number: Callable[[Report], float] = lambda report: reached  # noqa: E731
    changed = type(bar)(bar.what, bar.most, bar.unit, number)
    monkeypatch.setattr("benchmarks.run.BARS", (changed,))
    assert [one.held for one in results(s3_report)] == [held]
