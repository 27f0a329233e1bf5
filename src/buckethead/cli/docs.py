"""`docs`: JSON documents of the database, found by a filter."""

import json
import sys
from typing import Any

import click

from ..interfaces.docs import Docs
from .kv import told
from .output import json_option, shown
from .reading import newest_state
from .target import Target


def _object(ctx: click.Context, param: click.Parameter, text: str) -> Any:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"this is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise click.BadParameter('this is no JSON object, such as {"age": {"$gt": 3}}')
    return found


def _path_or_object(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
    if text is None or not text.lstrip().startswith("{"):
        return text
    return _object(ctx, param, text)


@click.group()
def docs() -> None:
    """JSON documents in collections: the table bh_docs."""


@docs.command()
@click.argument("collection")
@click.argument("filter", callback=_object, default="{}")
@click.option("--limit", type=click.IntRange(0), help="The most documents to show.")
@click.option("--sort", callback=_path_or_object, help='A path, or {"PATH": 1 or -1, ...}.')
@json_option
@click.pass_obj
def find(
    target: Target, collection: str, filter: Any, limit: int | None, sort: Any, as_json: bool
) -> None:
    """Print the documents of COLLECTION that match FILTER, one in a line.

    FILTER is JSON, such as '{"age": {"$gte": 18}, "address.city": "Paris"}'. With --json they are
    one list.
    """
    with newest_state(target) as connection, told():
        found = Docs(connection).collection(collection).find(filter, limit=limit, sort=sort)
        if as_json:
            # not by print_json, which would show a document with NaN in it as another one
            click.echo(json.dumps(found, indent=2, allow_nan=False))
            return
        for document in found:
            # for a program plain ASCII, which is JSON all through
            text = json.dumps(document, ensure_ascii=not sys.stdout.isatty(), allow_nan=False)
            click.echo(shown(text))
