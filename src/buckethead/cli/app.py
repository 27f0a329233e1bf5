"""The group of all commands, its options, and what becomes of an error.

Exit codes: 0 done, 1 failed (one line on stderr that says what to do), 2 usage.
"""

import errno
import logging
import shlex
import sys
import traceback
from typing import IO, Any

import apsw
import click

from ..errors import BucketHeadError
from .bench import bench
from .branches import branches
from .config import config
from .demo import demo
from .docs import docs
from .files import files
from .history import gc, log
from .importing import import_file
from .kv import kv
from .output import GIVEN, copyable
from .reading import inspect, status
from .restoring import restore
from .shares import shares
from .shell import shell
from .sql import sql
from .target import Target
from .verifying import verify


class Failure(click.ClickException):
    """An error that the person can do something about: one line, exit code 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"buckethead: {' '.join(self.message.split())}", file=file, err=True)


class _Commands(click.Group):
    """Turns the library's errors into one line, or with --debug into a traceback and one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # here, where a broken pipe is still click's to handle
            return result
        except BucketHeadError as error:
            raise self._failure(ctx, error, str(error)) from error
        except apsw.Error as error:
            raise self._failure(ctx, error, f"SQLite: {error}") from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            raise self._failure(ctx, error, str(error)) from error

    def _failure(self, ctx: click.Context, error: Exception, message: str) -> Failure:
        if ctx.params["debug"]:
            traceback.print_exception(error)
        return Failure(copyable(" ".join([message, *getattr(error, "__notes__", [])])))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--bucket", metavar="NAME", help="The bucket that holds the database.")
@click.option("--key", metavar="KEY", help="The object that is the database.")
@click.option("--endpoint-url", metavar="URL", help="The S3 store, or file:///DIRECTORY.")
@click.option("--region", metavar="NAME", help="The region of the bucket.")
@click.option("--branch", metavar="NAME", help="The branch of the database, for main another.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="buckethead", prog_name="buckethead")
@click.pass_context
def commands(
    ctx: click.Context,
    bucket: str | None,
    key: str | None,
    endpoint_url: str | None,
    region: str | None,
    branch: str | None,
    debug: bool,
) -> None:
    """A SQLite database that lives in memory and belongs to a bucket.

    Where it is kept is said by these options, else by the environment
    (BUCKETHEAD_BUCKET__NAME and so on), else by ~/.config/buckethead/config.toml; where none
    of them says anything, it is the directory ./buckethead-data.
    """
    ctx.obj = target = Target(bucket, key, endpoint_url, region, branch)
    ctx.meta[GIVEN] = shlex.join(target.options())


for _command in (
    *(demo, status, inspect, log, restore, verify),
    *(kv, docs, files, branches, shares),
    *(sql, shell, import_file, gc, config, bench),
):
    commands.add_command(_command)


def main() -> None:
    """Run the command line of this process and exit. What the library warns of is shown too."""
    logging.basicConfig(level=logging.WARNING, format="buckethead: %(message)s")
    commands(prog_name="buckethead")
