"""`docs`."""

import json
import math
from typing import Any

import pytest

from buckethead.core import BucketSQLite
from cli.tools import DEFAULT, cli, cli_json, config, failure, on_terminal


@pytest.fixture(autouse=True)
def people(empty_folder: object) -> None:
    with BucketSQLite(config()) as mounted:
        mounted.docs.collection("people").insert_many(
            [
                {"_id": "1", "name": "Zoë", "age": 30, "address": {"city": "Paris"}},
                {"_id": "2", "name": "Al", "age": 20},
                {"_id": "3", "name": "x\u001b\u2028y", "age": None},
            ]
        )


def ids(*arguments: str) -> list[str]:
    return [document["_id"] for document in cli_json("docs", "find", "people", *arguments)]


def test_documents_are_lines_of_json() -> None:
    result = cli("docs", "find", "people")
    assert result.exit_code == 0
    assert [json.loads(line)["_id"] for line in result.stdout.splitlines()] == ["1", "2", "3"]
    assert result.stdout.isascii()
    assert json.loads(result.stdout.splitlines()[0])["address"] == {"city": "Paris"}


def test_filters_limits_and_sorts() -> None:
    assert ids() == ["1", "2", "3"]
    assert ids('{"age": {"$gte": 20}, "address.city": {"$exists": false}}') == ["2"]
    assert ids("--limit", "2") == ["1", "2"]
    assert ids("--sort", "age") == ["3", "2", "1"]
    assert ids("--sort", '{"age": -1}', "--limit", "1") == ["1"]
    assert ids('{"name": "nobody"}') == []
    assert cli_json("docs", "find", "nobody") == []


def test_a_terminal_gets_text_that_moves_no_cursor() -> None:
    shown, _ = on_terminal("docs", "find", "people")
    assert "Zoë" in shown
    assert "x\\u001b\\u2028y" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (['{"age"'], "this is not JSON"),
        (["[" * 100_000], "this is not JSON"),
        (["[1]"], "no JSON object"),
        (["--sort", "{age}"], "this is not JSON"),
        (["--limit", "-1"], "--limit"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str) -> None:
    result = cli("docs", "find", "people", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""


def test_a_filter_that_cannot_be_run() -> None:
    assert "unknown operator '$x'" in failure("docs", "find", "people", '{"age": {"$x": 1}}')
    assert "goes up with 1" in failure("docs", "find", "people", "--sort", '{"age": 2}')


@pytest.mark.parametrize("how", [[], ["--json"]])
def test_a_document_that_is_not_json_is_an_error_in_one_line(how: list[str]) -> None:
    insert: Any = ["x", "nan", json.dumps({"a": math.nan})]
    with BucketSQLite(config()) as mounted:
        mounted.connection.execute("INSERT INTO bh_docs VALUES (?, ?, ?, 1, 1)", insert)
    assert "JSON" in failure("docs", "find", "x", *how)


def test_where_nothing_is_nothing_is_made() -> None:
    failure("--key", "nosuch.db", "docs", "find", "people")
    assert not (DEFAULT / "nosuch.db").exists()
