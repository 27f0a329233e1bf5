"""PageImage against a plain model: whatever is done in whatever order, invariants 1 to 4 hold.

The model keeps every version as a tuple of pages and a bucket as a dict of pages; it shares
nothing with the image. The last test does the same with threads: every page of a version carries
the version's stamp, so a reader that sees two stamps in one pin has seen half a commit.

Numbers of invariants refer to native_notes/invariants.md.
"""

import random
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeAlias

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from buckethead.image.pages import PageImage, Pin, Publication, StalePinError

SIZE = 512
MAX_PAGES = 7

State: TypeAlias = tuple[bytes, ...]

# Few different pages, so that the same bytes are often written again
letters = st.sampled_from("abcd")
states = st.lists(letters, max_size=MAX_PAGES)
changes = st.dictionaries(st.integers(1, MAX_PAGES), letters)


def page(letter: str, size: int = SIZE) -> bytes:
    return letter.encode() * size


def state(pin: Pin) -> State:
    return tuple(pin.page(number) for number in range(1, pin.page_count + 1))


def newest(image: PageImage) -> State:
    with image.pinned() as pin:
        return state(pin)


def differing(new: State, old: State) -> set[int]:
    """The numbers of the pages of ``new`` that ``old`` does not have."""
    return {
        number
        for number, content in enumerate(new, 1)
        if number > len(old) or old[number - 1] != content
    }


def overlay_for(
    old_count: int, new_count: int, changed: dict[int, str], size: int
) -> dict[int, bytes]:
    """The changes that lie within the file, and every page from the old end to the new one."""
    grown = dict.fromkeys(range(old_count + 1, new_count + 1), "z")
    return {
        number: page(letter, size)
        for number, letter in (grown | changed).items()
        if number <= new_count
    }


class ImageMachine(RuleBasedStateMachine):
    """Every public operation of a page image, in any order."""

    pins: Bundle[Pin] = Bundle("pins")

    @initialize(letters=states)
    def begin(self, letters: list[str]) -> None:
        self.current: State = tuple(page(letter) for letter in letters)
        self.published = self.current
        self.image = PageImage(SIZE if letters else 0, self.current)
        self.version = 0
        self.shown: dict[Pin, tuple[int, State]] = {}  # live pin -> version, what it must show
        self.handle: AbstractContextManager[Publication] | None = None
        self.publication: Publication | None = None
        self.taken: State = ()
        self.swapped_meanwhile = False
        self.twins: list[tuple[PageImage, State, State]] = []  # image, content, published

    # -- pins ---------------------------------------------------------------------------------

    @rule(target=pins)
    def new_pin(self) -> Pin:
        return self.show(Pin())

    @rule(pin=pins)
    def pin_again(self, pin: Pin) -> None:
        self.show(pin)

    def show(self, pin: Pin) -> Pin:
        self.image.pin(pin)
        self.shown[pin] = (self.version, self.current)
        return pin

    @rule(pin=pins)
    def park(self, pin: Pin) -> None:
        self.image.park(pin)
        self.shown.pop(pin, None)

    @rule(pin=pins)
    def unpin(self, pin: Pin) -> None:
        self.image.unpin(pin)
        self.shown.pop(pin, None)
        assert (pin.page_count, pin.undo) == (0, {})

    # -- writing ------------------------------------------------------------------------------

    def hasseat(self, pin: Pin) -> bool:
        """Try for the writer's seat, as the model says it must go."""
        if self.image.writer not in (None, pin):
            assert not self.image.reserve(pin)
            return False
        if pin not in self.shown or self.shown[pin][0] != self.version:
            with pytest.raises(StalePinError):
                self.image.reserve(pin)
            return False
        assert self.image.reserve(pin)
        return True

    @rule(pin=pins, changed=changes, count=st.integers(0, MAX_PAGES), stay=st.booleans())
    def commit(self, pin: Pin, changed: dict[int, str], count: int, stay: bool) -> None:
        if not self.hasseat(pin):
            return
        size = self.image.page_size or SIZE
        overlay = overlay_for(len(self.current), count, changed, size)
        pages = dict(enumerate(self.current, 1)) | overlay
        self.image.apply(dict(overlay), count, size, pin)
        self.version += 1
        self.current = tuple(pages[number] for number in range(1, count + 1))
        self.shown[pin] = (self.version, self.current)
        if not stay:
            self.image.release(pin)

    @rule(pin=pins, keep=st.integers(0, MAX_PAGES), changed=changes)
    def truncate_and_grow_again(self, pin: Pin, keep: int, changed: dict[int, str]) -> None:
        count = len(self.current)
        self.commit(pin, {}, min(keep, count), stay=True)
        self.commit(pin, changed, count, stay=False)

    @rule(pin=pins, letters=states.filter(bool), size=st.sampled_from([SIZE, 1024]))
    def swap(self, pin: Pin, letters: list[str], size: int) -> None:
        if not self.hasseat(pin):
            return
        self.current = self.published = tuple(page(letter, size) for letter in letters)
        self.version += 1
        self.swapped_meanwhile = True
        self.image.swap(size, list(self.current), pin)
        self.image.release(pin)

    # -- publishing ---------------------------------------------------------------------------

    @precondition(lambda self: self.publication is None)
    @rule()
    def take(self) -> None:
        self.handle = self.image.publication()
        self.publication = self.handle.__enter__()
        self.taken = self.current
        self.swapped_meanwhile = False

    @precondition(lambda self: self.publication is not None)
    @rule()
    def publish(self) -> None:
        assert self.handle is not None
        self.handle.__exit__(None, None, None)
        if not self.swapped_meanwhile:
            self.published = self.taken
        self.handle = self.publication = None

    @precondition(lambda self: self.publication is not None)
    @rule()
    def fail_to_publish(self) -> None:
        assert self.handle is not None
        error = LookupError("no bucket")
        assert not self.handle.__exit__(LookupError, error, None)
        self.handle = self.publication = None

    @precondition(lambda self: self.publication is not None)
    @rule()
    def lose_track_of_the_publication(self) -> None:
        self.handle = self.publication = None

    # -- forks --------------------------------------------------------------------------------

    @precondition(lambda self: len(self.twins) < 3)
    @rule(letter=letters)
    def fork(self, letter: str) -> None:
        twin = self.image.fork()
        assert newest(twin) == self.current
        self.twins.append((twin, self.current, self.published))

    @precondition(lambda self: self.twins)
    @rule(letter=letters, data=st.data())
    def commit_to_a_fork(self, letter: str, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.twins) - 1))
        twin, content, published = self.twins[index]
        size = twin.page_size or SIZE
        content = (page(letter, size), *content[1:])
        with twin.pinned() as writer:
            assert twin.reserve(writer)
            twin.apply({1: content[0]}, len(content), size, writer)
        self.twins[index] = (twin, content, published)

    # -- what always holds --------------------------------------------------------------------

    @invariant()
    def invariant_1_pins_stay_still(self) -> None:
        for pin, (version, content) in self.shown.items():
            assert pin.version == version
            assert state(pin) == content
            assert [one for run in pin.runs(3) for one in run] == list(content)

    @invariant()
    def invariant_2_the_image_is_the_last_whole_commit(self) -> None:
        assert self.image.version == self.version
        assert newest(self.image) == self.current

    @invariant()
    def invariant_3_what_differs_is_dirty(self) -> None:
        underway = self.publication.dirty if self.publication is not None else frozenset()
        assert self.image.dirty | underway >= differing(self.current, self.published)
        if differing(self.current, self.published):
            assert self.image.changed
        for twin, content, published in self.twins:
            assert newest(twin) == content
            assert twin.dirty >= differing(content, published)

    @invariant()
    def invariant_4_a_publication_is_one_version(self) -> None:
        if self.publication is None:
            return
        assert state(self.publication.pin) == self.taken
        if not self.swapped_meanwhile:
            bucket = dict(enumerate(self.published, 1))
            for number in self.publication.dirty:
                bucket[number] = self.publication.pin.page(number)
            assert tuple(bucket[number] for number in range(1, len(self.taken) + 1)) == self.taken


ImageMachine.TestCase.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, database=None
)
TestImageMachine = ImageMachine.TestCase


# -- threads ------------------------------------------------------------------------------------


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """The interpreter goes to another thread after nearly every bytecode."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def stamped(version: int, count: int) -> dict[int, bytes]:
    stamp = version.to_bytes(4) * (SIZE // 4)
    return dict.fromkeys(range(1, count + 1), stamp)


class Readers:
    """Readers that pin, read the whole image twice and park or unpin, until told to stop."""

    def __init__(self, image: PageImage) -> None:
        self.image = image
        self.stop = threading.Event()
        self.seen = threading.Semaphore(0)  # one for each pin read: the writer waits for them

    def read(self, seed: int) -> int:
        """Returns how many pins were read."""
        choose, pin, count = random.Random(seed), Pin(), 0
        while not self.stop.is_set():
            self.image.pin(pin)
            first = state(pin)
            assert len(set(first)) == 1, "invariant 2: two versions in one pin"
            self.seen.release()
            assert state(pin) == first, "invariant 1: a pin changed"
            assert [one for run in pin.runs(4) for one in run] == list(first)
            choose.choice((self.image.park, self.image.park, self.image.unpin))(pin)
            count += 1
        return count


@pytest.mark.usefixtures("eager_threads")
def test_invariants_1_and_2_readers_see_whole_versions_that_stay() -> None:
    image = PageImage(SIZE, stamped(0, 9).values())
    readers, counts, commits = Readers(image), random.Random(1), 400
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(readers.read, seed) for seed in range(4)]
        try:
            write_stamps(readers, counts, commits)
        finally:
            readers.stop.set()
        assert sum(reader.result() for reader in running) >= commits
    assert image.pins() == []
    assert image.version == commits


def write_stamps(readers: Readers, counts: random.Random, commits: int) -> None:
    image, writer = readers.image, Pin()
    for version in range(1, commits + 1):
        assert readers.seen.acquire(timeout=60), "no reader gets on"
        count = counts.randint(1, 24)
        image.pin(writer)
        assert image.reserve(writer)
        image.apply(stamped(version, count), count, SIZE, writer)
        image.park(writer)
    image.unpin(writer)
