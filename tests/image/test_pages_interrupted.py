"""A commit or swap cut short at every bytecode is there whole or not at all.

Each walk cuts the operation short at its first bytecode, then on a fresh image at its second, and
so on until it runs clean; after each it looks at everything the image promises. The second walk
cuts the recovery short as well; the last ones let another thread's commit, as it were, slip in
between any two bytecodes of a reader. Numbers of invariants refer to native_notes/invariants.md.

Where a cut can be: before any bytecode of the page image, with one exception. The interpreter
looks for signals only after calls, on backward jumps and when a function begins, so nothing comes
between the last call of a ``with lock:`` block and the call that unlocks. A trace function can
raise there, which would leave the lock held for ever; hence in functions that hold a ``with``,
and in the standard library's, only the points where a signal can arrive are taken.
"""

import contextlib
import dis
import functools
import itertools
import random
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

import pytest

from buckethead.image import pages as pages_module
from buckethead.image.pages import PageImage, Pin, StalePinError

SIZE = 512
FILES = frozenset({pages_module.__file__})
ERRORS = [KeyboardInterrupt, MemoryError]


# -- cutting short ------------------------------------------------------------------------------


@functools.cache
def points(code: CodeType) -> frozenset[int]:
    """The bytecode offsets at which a function may be cut short; see the head of this file."""
    instructions = list(dis.get_instructions(code))
    holds_with = any(one.opname in ("BEFORE_WITH", "LOAD_SPECIAL") for one in instructions)
    if code.co_filename in FILES and not holds_with:
        return frozenset(one.offset for one in instructions)
    following = {b.offset for a, b in itertools.pairwise(instructions) if a.opname[:4] == "CALL"}
    looping = {one.offset for one in instructions if one.opname in ("RESUME", "JUMP_BACKWARD")}
    return frozenset(following | looping)


class Walker:
    """Does something before the n-th bytecode that is executed in ``files`` within its block."""

    def __init__(self, n: int, act: Callable[[], None], files: frozenset[str] = FILES) -> None:
        self.left = n
        self.act = act
        self.files = files

    @property
    def arrived(self) -> bool:
        return self.left <= 0

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in self.files:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and self.counts(frame):
            self.left -= 1
            if self.left == 0:
                self.act()
        return self.trace

    def counts(self, frame: FrameType) -> bool:
        return True

    def __enter__(self) -> None:
        self.outer = sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # else Python 3.12 has no opcode events at first
        sys.settrace(self.trace)

    def __exit__(self, *error: object) -> bool | None:
        sys.settrace(self.outer)
        return None


class Cutter(Walker):
    """Raises ``error`` at the n-th of the `points`, and swallows it at the end of the block."""

    def __init__(self, n: int, error: type[BaseException], files: frozenset[str] = FILES) -> None:
        super().__init__(n, self.cut, files)
        self.error = error

    def counts(self, frame: FrameType) -> bool:
        return frame.f_lasti in points(frame.f_code)

    def cut(self) -> None:
        raise self.error("cut short")

    def __exit__(self, *error: object) -> bool | None:
        super().__exit__()
        return isinstance(error[1], self.error) and str(error[1]) == "cut short"


# -- the operations -----------------------------------------------------------------------------


def page(text: str, size: int = SIZE) -> bytes:
    return text.encode().ljust(size, b".")


def content(pin: Pin) -> list[bytes]:
    return [pin.page(number) for number in range(1, pin.page_count + 1)]


def newest(image: PageImage) -> list[bytes]:
    with image.pinned() as pin:
        return content(pin)


class Image(PageImage):
    """Cuts the recovery short too, when told to."""

    second: Cutter | None = None

    def _finish(self) -> None:
        if self.second is not None and self.pending is not None and sys.gettrace() is None:
            sys.settrace(self.second.trace)
            self.second = None
        super()._finish()


@dataclass
class Case:
    """An image about to be changed, and what must be seen of it before and after."""

    image: Image
    writer: Pin
    new: list[bytes]
    run: Callable[[], None]
    parked: Pin = field(default_factory=Pin)

    def __post_init__(self) -> None:
        self.old = content(self.writer)
        self.published = list(self.old)
        self.version = self.image.version
        self.live: list[tuple[Pin, list[bytes]]] = []

    def watch(self) -> "Case":
        """Make the old version dirty in part, and let readers of two versions look on."""
        image = self.image
        first, second = Pin(), Pin()
        image.pin(first)
        self.live.append((first, content(first)))
        if self.old:
            image.reserve(self.writer)
            image.apply({1: page("dirty")}, len(self.old), SIZE, self.writer)
        image.pin(second)
        image.pin(self.parked)
        image.park(self.parked)
        self.old = content(second)
        self.live.append((second, self.old))
        self.version = image.version
        return self

    def start(self) -> "Case":
        assert self.image.reserve(self.writer)
        return self


def pages_of(letters: str) -> list[bytes]:
    return [page(letter) for letter in letters]


def commit_case(old: str, changes: dict[int, str], count: int) -> Case:
    image, writer = Image(SIZE if old else 0, pages_of(old)), Pin()
    image.pin(writer)
    overlay = {number: page(letter) for number, letter in changes.items()}
    case = Case(image, writer, [], lambda: image.apply(overlay, count, SIZE, writer))
    case.watch()
    after = dict(enumerate(case.old, 1)) | overlay
    case.new = [after[number] for number in range(1, count + 1)]
    return case.start()


def lonely_case() -> Case:
    """Nobody looks on: the writer's pin is the only one."""
    image, writer = Image(SIZE, pages_of("abc")), Pin()
    image.pin(writer)
    overlay = {2: page("B")}
    case = Case(image, writer, pages_of("aB"), lambda: image.apply(overlay, 2, SIZE, writer))
    return case.start()


def swap_case() -> Case:
    image, writer = Image(SIZE, pages_of("abc")), Pin()
    image.pin(writer)
    new = [page("x", 1024), page("y", 1024)]
    return Case(image, writer, new, lambda: image.swap(1024, list(new), writer)).watch().start()


CASES: dict[str, Callable[[], Case]] = {
    "first commit": lambda: commit_case("", {1: "a", 2: "b"}, 2),
    "replace": lambda: commit_case("abc", {1: "A", 3: "C"}, 3),
    "same bytes": lambda: commit_case("abc", {2: "b", 3: "C"}, 3),
    "grow": lambda: commit_case("abc", {2: "B", 4: "d", 5: "e"}, 5),
    "truncate": lambda: commit_case("abcd", {}, 2),
    "truncate to nothing": lambda: commit_case("ab", {}, 0),
    "truncate and replace": lambda: commit_case("abcd", {1: "A", 2: "B"}, 2),
    "nobody looks on": lonely_case,
    "swap": swap_case,
}


# -- what must hold afterwards ------------------------------------------------------------------


def differing(new: list[bytes], old: list[bytes]) -> set[int]:
    return {n for n, one in enumerate(new, 1) if n > len(old) or old[n - 1] != one}


def check_pins(case: Case) -> None:
    for pin, shown in case.live:
        assert content(pin) == shown, "invariant 1: a live pin changed"


def check_whole(case: Case) -> list[bytes]:
    """The image shows the old or the new state, and its version says which."""
    image = case.image
    seen = newest(image)
    assert seen in (case.old, case.new), "invariant 2: neither the old state nor the new one"
    changed = case.old != case.new and seen == case.new
    assert image.version == case.version + changed
    assert all(len(one) == image.page_size for one in seen)
    published = seen if image.page_size == 1024 else case.published
    assert image.dirty >= differing(seen, published), "invariant 3"
    check_pins(case)
    return seen


def check_goes_on(case: Case, seen: list[bytes]) -> None:
    """Every pin, the writer's and a parked one too, shows the same; the next commit works."""
    image = case.image
    for pin in (case.writer, case.parked):
        image.pin(pin)
        assert content(pin) == seen
        assert pin.version == image.version
    assert image.reserve(case.parked), "the writer's seat was lost"
    size = image.page_size or SIZE
    count = max(len(seen), 1)
    image.apply({1: page("next", size)}, count, size, case.parked)
    assert newest(image) == [page("next", size), *seen[1:]]
    assert content(case.writer) == seen, "invariant 1: the writer's pin changed"
    check_pins(case)


def check(case: Case) -> None:
    assert not case.image.lock._is_owned()  # type: ignore[attr-defined]
    check_pins(case)
    case.image.park(case.writer)
    seen = check_whole(case)
    check_goes_on(case, seen)


# -- the walks ----------------------------------------------------------------------------------


def cut_short(case: Case, cutter: Cutter) -> bool:
    """Whether the cut came before the operation was through."""
    with cutter:
        case.run()
    return cutter.arrived


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", CASES)
def test_invariant_2_cut_short_at_every_bytecode(name: str, error: type[BaseException]) -> None:
    for n in itertools.count(1):
        case = CASES[name]()
        cut = cut_short(case, Cutter(n, error))
        check(case)
        if not cut:
            break
    assert n > 50, "the walk hardly cut anything"
    assert newest(case.image)[1:] == case.new[1:]


def test_invariant_2_every_walk_meets_both_outcomes() -> None:
    """So the walks prove that a commit is undone or finished, and not just one of the two."""
    for name, begin in CASES.items():
        outcomes = set()
        for n in range(1, 60):
            case = begin()
            cut_short(case, Cutter(n, KeyboardInterrupt))
            outcomes.add(tuple(newest(case.image)))
        assert outcomes == {tuple(case.old), tuple(case.new)}, name


def length_of(begin: Callable[[], Case]) -> int:
    case, cutter = begin(), Cutter(sys.maxsize, KeyboardInterrupt)
    with cutter:
        case.run()
    return sys.maxsize - cutter.left


def look(case: Case) -> None:
    assert newest(case.image) in (case.old, case.new)


def turn_to_writing(case: Case) -> None:
    """A reader gets the seat only if nothing was committed since it began to read."""
    image = case.image
    image.release(case.writer)
    for pin, shown in case.live[-1:]:
        with contextlib.suppress(StalePinError):
            assert image.reserve(pin)
            assert newest(image) == shown
            image.release(pin)


def fork(case: Case) -> None:
    twin = case.image.fork()
    assert newest(twin) == newest(case.image)
    assert twin.dirty == case.image.dirty


def publish_in_vain(case: Case) -> None:
    with contextlib.suppress(LookupError), case.image.publication() as publication:
        assert content(publication.pin) in (case.old, case.new)
        raise LookupError


NEXT: list[Callable[[Case], None]] = [look, turn_to_writing, fork, publish_in_vain]


@pytest.mark.parametrize("name", CASES)
def test_invariant_2_the_recovery_is_cut_short_too(name: str) -> None:
    begin = CASES[name]
    choose, length, both = random.Random(name), length_of(begin), 0
    for n in range(1, length + 1):
        for m in choose.sample(range(1, length + 1), 4):
            case = begin()
            second = case.image.second = Cutter(m, MemoryError)
            with second, contextlib.suppress(KeyboardInterrupt):
                sys.settrace(Cutter(n, KeyboardInterrupt).trace)
                case.run()
            both += second.arrived
            case.image.second = None
            if choose.random() < 0.5:
                case.image.park(case.writer)
            choose.choice(NEXT)(case)
            check(case)
    assert both > length // 2, "hardly any recovery was cut short"


# -- what else must not be lost to an interrupt -------------------------------------------------


def test_invariant_3_a_publication_cut_short_anywhere_loses_no_dirty_page() -> None:
    """At the hand-over too, when the caller never gets to know what was taken."""
    files = FILES | {contextlib.__file__}
    for n in itertools.count(1):
        image = PageImage(SIZE, pages_of("abc"))
        published = commit_one(image, 2)
        cutter = Cutter(n, KeyboardInterrupt, files)
        sent = False
        with cutter, image.publication() as publication:
            assert publication.dirty == {2}
            sent = True
        assert not image.lock._is_owned()  # type: ignore[attr-defined]
        with image.publication() as again:
            assert content(again.pin) == published
            assert again.dirty == ({2} if cutter.arrived and not sent else again.dirty)
            assert again.dirty <= {2}
        if not cutter.arrived:
            break
    assert n > 100, "the walk hardly cut anything"
    assert again.dirty == frozenset()


def commit_one(image: PageImage, number: int) -> list[bytes]:
    with image.pinned() as writer:
        assert image.reserve(writer)
        image.apply({number: page("dirty")}, image.page_count, SIZE, writer)
        return content(writer)


def test_taking_the_writers_seat_cut_short_anywhere_leaves_it_to_be_had() -> None:
    for n in itertools.count(1):
        image, pin, other = PageImage(SIZE, pages_of("a")), Pin(), Pin()
        image.pin(pin)
        cutter = Cutter(n, KeyboardInterrupt)
        with cutter:
            image.reserve(pin)
        image.park(pin)
        image.pin(other)
        assert image.reserve(other), f"the seat was lost by a cut at point {n}"
        if not cutter.arrived:
            break
    assert n > 1, "the walk cut nothing"


@pytest.mark.parametrize("operation", ["pin", "park", "unpin"])
def test_invariant_1_a_pin_cut_short_anywhere_stands_still_once_pinned(operation: str) -> None:
    for n in itertools.count(1):
        image, pin = PageImage(SIZE, pages_of("abc")), Pin()
        if operation != "pin":
            image.pin(pin)
        cutter = Cutter(n, KeyboardInterrupt)
        with cutter:
            getattr(image, operation)(pin)
        image.pin(pin)
        commit_one(image, 2)
        assert content(pin) == pages_of("abc"), f"a cut at point {n} left a pin nobody saves for"
        with pytest.raises(StalePinError):
            image.reserve(pin)
        if not cutter.arrived:
            break
    assert n > 4, "the walk hardly cut anything"


# -- a commit between any two bytecodes of a reader ---------------------------------------------

COMMITS: dict[str, tuple[dict[int, str], int]] = {
    "replace": ({1: "A", 2: "B", 3: "C"}, 3),
    "truncate": ({}, 1),
    "grow": ({3: "C", 4: "D"}, 4),
}


def commits_of_another(image: PageImage, name: str) -> Callable[[], None]:
    """A commit, and a second one that undoes a truncation, unless the lock keeps them off."""

    def commit() -> None:
        if not image.lock._is_owned():  # type: ignore[attr-defined]
            changes, count = COMMITS[name]
            replace_all(image, changes, count)
            replace_all(image, {1: "x", 2: "y", 3: "z"}, 3)

    return commit


def replace_all(image: PageImage, changes: dict[int, str], count: int) -> None:
    overlay = {number: page(letter) for number, letter in changes.items() if number <= count}
    with image.pinned() as writer:
        assert image.reserve(writer)
        image.apply(overlay, count, SIZE, writer)


READS: dict[str, Callable[[Pin], list[bytes]]] = {
    "page": content,
    "runs": lambda pin: [one for run in pin.runs(2) for one in run],
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("name", COMMITS)
def test_invariant_1_a_commit_in_the_middle_of_a_read(name: str, read: str) -> None:
    for n in itertools.count(1):
        image, pin = PageImage(SIZE, pages_of("abc")), Pin()
        image.pin(pin)
        walker = Walker(n, commits_of_another(image, name))
        with walker:
            seen = READS[read](pin)
        assert seen == pages_of("abc")
        assert content(pin) == pages_of("abc")
        if not walker.arrived:
            break
        assert newest(image) == pages_of("xyz")
    assert n > 20, "hardly any commit slipped in"


@pytest.mark.parametrize("name", COMMITS)
def test_invariant_1_a_commit_in_the_middle_of_pinning_a_parked_pin(name: str) -> None:
    for n in itertools.count(1):
        image, pin = PageImage(SIZE, pages_of("abc")), Pin()
        image.pin(pin)
        image.park(pin)
        walker = Walker(n, commits_of_another(image, name))
        with walker:
            image.pin(pin)
        seen = content(pin)
        assert seen in (pages_of("abc"), pages_of("xyz"))
        replace_all(image, {1: "later", 2: "later"}, 2)
        assert content(pin) == seen
        if not walker.arrived:
            break
    assert n > 5, "hardly any commit slipped in"


@pytest.mark.parametrize("name", COMMITS)
def test_a_commit_in_the_middle_of_parking_shows_at_the_next_pinning(name: str) -> None:
    for n in itertools.count(1):
        image, pin = PageImage(SIZE, pages_of("abc")), Pin()
        image.pin(pin)
        walker = Walker(n, commits_of_another(image, name))
        with walker:
            image.park(pin)
        assert image.pins() == []
        image.pin(pin)
        assert content(pin) == newest(image)
        if not walker.arrived:
            break
    assert n > 5, "hardly any commit slipped in"


# -- a reader between any two bytecodes of a commit ---------------------------------------------


class AnnouncingLock:
    """A lock that says when somebody has to wait for it."""

    def __init__(self, settled: threading.Event) -> None:
        self.lock = threading.Lock()
        self.settled = settled

    def __enter__(self) -> None:
        if not self.lock.acquire(blocking=False):
            self.settled.set()
            self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


class Visitor:
    """Another thread that pins, as far as it gets before it has to wait."""

    def __init__(self, image: PageImage, pin: Pin) -> None:
        self.settled = threading.Event()
        image.lock = AnnouncingLock(self.settled)  # type: ignore[assignment]
        self.image, self.pin = image, pin
        self.thread = threading.Thread(target=self.visit)

    def visit(self) -> None:
        self.image.pin(self.pin)
        self.settled.set()

    def come(self) -> None:
        self.thread.start()
        assert self.settled.wait(60)


@pytest.mark.parametrize("name", ["replace", "truncate", "grow", "swap"])
def test_invariant_1_a_parked_pin_is_pinned_in_the_middle_of_a_commit(name: str) -> None:
    for n in itertools.count(1):
        case = CASES[name]()
        visitor = Visitor(case.image, case.parked)
        walker = Walker(n, visitor.come)
        with walker:
            case.run()
        case.image.release(case.writer)
        if not walker.arrived:
            break
        visitor.thread.join()
        seen = content(case.parked)
        assert seen in (case.old, case.new)
        replace_all(case.image, {}, 1)
        assert content(case.parked) == seen, f"nothing was saved for a pin of point {n}"
        check_pins(case)
    assert n > 50, "hardly any reader came"
