"""`config show`: what the settings come to, secrets masked."""

import click

from ..config import masked
from .output import json_option, print_facts, print_json
from .target import Target


@click.group()
def config() -> None:
    """The configuration."""


@config.command()
@json_option
@click.pass_obj
def show(target: Target, as_json: bool) -> None:
    """Show the configuration that every command uses, with its secrets masked."""
    fields = masked(target.config())
    if as_json:
        print_json(fields)
    else:
        print_facts({name: "not set" if v is None else v for name, v in fields.items()})
