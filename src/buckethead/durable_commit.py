"""``durability="commit"``: COMMIT publishes the transaction before the commit point.

The place is SQLITE_FCNTL_SYNC: what is raised there makes COMMIT fail, and SQLite rolls back. The
rule: COMMIT returns only when the bucket certainly has the transaction; where nobody can tell, it
fails, says so, and nothing more is written until the bucket has been asked
(native_notes/durable-commit.md).
"""

import time
from collections.abc import Callable

from .crashpoints import crash_point
from .errors import FencedError, PublicationError, VolumeBusyError
from .image.database import Transaction
from .image.pages import PageImage
from .storage.publisher import Changes, Published, Publisher


def changes_of(transaction: Transaction, image: PageImage, *, every: bool) -> Changes:
    """What a transaction changes, and what the bucket lacks besides; ``every`` page for the first
    delta of a history."""
    count, overlay = transaction.page_count, transaction.pages
    with image.lock:
        numbers = {number for number in image.dirty_numbers if number <= count}
        wanted = range(1, count + 1) if every else sorted(numbers | transaction.changed)
        contents = [overlay.get(number) or image.pages[number - 1] for number in wanted]
    return Changes(-1, transaction.page_size, count, wanted, contents)


def dirty_if_undone(changes: Changes, image: PageImage) -> frozenset[int]:
    """What has to be sent again where a transaction was published and is not committed: its pages,
    and those that it would have cut off."""
    return frozenset((*changes.numbers, *range(changes.page_count + 1, image.page_count + 1)))


class FateOpenError(PublicationError):
    """Whether the transaction reached the bucket is not known, and may be found out later."""


def publish_for_certain(name: str, publisher: Publisher, changes: Changes) -> Published:
    """Publish, and where nobody knows whether it arrived, ask once more before COMMIT is answered.

    Raises FencedError, PublicationError, FateOpenError.
    """
    try:
        published = publisher.publish(changes)
        crash_point("commit.published")
        return published
    except FencedError:
        raise
    except Exception as error:
        if not publisher.unsettled:
            raise PublicationError(
                f"COMMIT to {name!r} was rolled back, and nothing was published: {error}"
            ) from error
    try:
        settled = publisher.settle()
    except FencedError:
        raise
    except Exception as error:
        raise FateOpenError(
            f"COMMIT to {name!r} was rolled back here, and whether it reached the bucket is open: "
            f"{error} Nothing is written until the bucket can be asked; if the transaction did "
            "arrive, the next flush undoes it there."
        ) from error
    assert settled is not None, "it was unsettled"
    return settled


def wait_for_commit(name: str, is_over: Callable[[], bool], seconds: float) -> None:
    """Return when no transaction is between its publication and its commit point. Raises
    VolumeBusyError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not is_over():
        if time.monotonic() > deadline:
            raise VolumeBusyError(
                f"Could not flush {name!r}: a COMMIT is in the middle of publishing. Try again "
                "when it has returned."
            )
        time.sleep(0.0005)
