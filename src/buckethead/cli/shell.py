"""`shell`: APSW's SQL shell on a mounted volume, which is flushed now and then and at the end.

On a terminal it goes on after an error. Statements from a pipe end with the first one, and it is
left to the command line to say what is wrong, once.
"""

import io
import sys
from functools import partial
from typing import Any

import apsw
import apsw.shell
import click

from ..connection import Connection
from ..core import BucketSQLite, registry
from ..errors import BucketHeadError, VolumeError
from .output import note
from .target import Target
from .writing import check_claim, note_if_new, take_over_option


@click.command()
@take_over_option
@click.pass_obj
def shell(target: Target, take_over: bool) -> None:
    """Open APSW's SQL shell on the database; .help shows its commands, .exit leaves it.

    What is committed is flushed every minute and at the end. Statements from a pipe end with the
    first that fails.
    """
    config = target.config()
    with BucketSQLite(config) as database:
        volume = registry.get(database.stats.name)
        assert volume is not None, "started"
        volume.before_claim = partial(check_claim, volume.bucket, volume.place, take_over)
        note_if_new(volume)
        connection = database.connect()
        try:
            code = _run(connection)
        finally:
            left_open = connection.in_transaction
            connection.close()  # rolls back what is not committed: nobody would commit it any more
        result = database.force_flush()
    if result.uploaded:
        note(
            f"flushed {result.pages:,} changed pages as TXID {result.txid} of {config.key!r} at "
            f"{volume.bucket.url}"
        )
    if left_open:
        raise VolumeError(
            "The shell was left within a transaction, which was rolled back: end it with COMMIT."
        )
    sys.exit(code)


def _run(connection: Connection) -> int:
    """The exit code that was asked for. Raises BucketHeadError, apsw.Error, OSError."""
    prompt: Any = _Shell(db=connection)
    prompt.bail = not sys.stdin.isatty()
    try:
        prompt.cmdloop()
    except SystemExit as leaving:  # .exit
        return int(leaving.code or 0)
    except (BucketHeadError, apsw.Error, OSError) as error:
        error.add_note(prompt.place)
        raise
    except Exception as error:  # whatever a command of the shell was not made for
        raise BucketHeadError(f"{' '.join(str(error).split())} {prompt.place}") from error
    return 0


class _Shell(apsw.shell.Shell):
    """The shell that ends like sqlite3's, and that keeps to itself what the command line says."""

    _completed = False

    @property
    def place(self) -> str:
        """Where it is, for an error."""
        return f"(line {self.input_line_number} of the input)"

    def get_line(self, prompt: str = "") -> str | None:
        """A line of input. The last statement of a pipe needs no semicolon, as in sqlite3."""
        line: str | None = super().get_line(prompt)  # type: ignore[no-untyped-call]
        if line is not None or self.interactive or prompt != self.moreprompt:
            self._completed = False
            return line
        self.input_line_number -= 1  # the end was counted as a line
        if self._completed:
            raise self.Error(
                "The input ends within a statement: a closing quote, an END or a */ is missing."
            )
        self._completed = True
        return ";"

    def process_complete_line(self, command: str) -> None:
        """Run a line. Where an error ends the shell, nothing of it is printed here."""
        stderr, held_back = self.stderr, io.StringIO()
        if self.bail:
            self.stderr = held_back
        try:
            super().process_complete_line(command)  # type: ignore[no-untyped-call]
            stderr.write(held_back.getvalue())
        finally:
            self.stderr = stderr

    def handle_exception(self) -> None:
        """Print the error that is being handled and go on, or end the shell with it."""
        error = sys.exc_info()[1]
        if self.bail and error is not None:
            raise error
        super().handle_exception()  # type: ignore[no-untyped-call]
