"""PageImage and Pin, method by method: what each promises and each error it names.

Numbers of invariants refer to native_notes/invariants.md.
"""

import gc
import weakref
from collections.abc import Callable, Mapping

import pytest

from buckethead.image.pages import (
    PageImage,
    Pin,
    StalePinError,
    valid_page_size,
)

SIZE = 512


class Pages(list[bytes]):
    """A page list that can be watched being let go."""


def page(text: str, size: int = SIZE) -> bytes:
    return text.encode().ljust(size, b".")


def image_of(*texts: str) -> PageImage:
    """An image whose pages are all published."""
    return PageImage(SIZE, [page(text) for text in texts])


def texts(pin: Pin) -> list[str]:
    return [pin.page(number).decode().rstrip(".") for number in range(1, pin.page_count + 1)]


def newest(image: PageImage) -> list[str]:
    with image.pinned() as pin:
        return texts(pin)


def pinned(image: PageImage) -> Pin:
    pin = Pin()
    image.pin(pin)
    return pin


def commit(image: PageImage, changes: Mapping[int, str], page_count: int | None = None) -> None:
    count = image.page_count if page_count is None else page_count
    overlay = {number: page(text) for number, text in changes.items()}
    with image.pinned() as writer:
        assert image.reserve(writer)
        image.apply(overlay, count, SIZE, writer)


def swap(image: PageImage, pages: list[bytes]) -> None:
    with image.pinned() as writer:
        assert image.reserve(writer)
        image.swap(len(pages[0]), pages, writer)


def publish(image: PageImage) -> None:
    with image.publication():
        pass


def publish_in_vain(
    image: PageImage, meanwhile: Callable[[], None], error: type[BaseException] = LookupError
) -> None:
    with image.publication() as publication:
        shown = texts(publication.pin)
        meanwhile()
        assert texts(publication.pin) == shown
        raise error


# -- page sizes and the empty image -------------------------------------------------------------


@pytest.mark.parametrize("size", [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536])
def test_every_page_size_of_sqlite_is_valid(size: int) -> None:
    assert valid_page_size(size)


@pytest.mark.parametrize("size", [-512, 0, 1, 256, 511, 513, 1000, 4095, 65535, 131072])
def test_any_other_page_size_is_not(size: int) -> None:
    assert not valid_page_size(size)


def test_an_empty_image_has_nothing_and_misses_nothing() -> None:
    image = PageImage()
    assert (image.page_size, image.page_count, image.size, image.version) == (0, 0, 0, 0)
    assert not image.changed
    with image.pinned() as pin:
        assert (pin.page_size, pin.page_count, pin.size) == (0, 0, 0)
        with pytest.raises(IndexError, match="no page 1 in a version of 0 pages"):
            pin.page(1)


def test_an_image_made_of_pages_copies_the_list_and_counts_as_published() -> None:
    pages = [page("a"), page("b")]
    image = PageImage(SIZE, pages)
    pages.clear()
    assert newest(image) == ["a", "b"]
    assert (image.page_count, image.size) == (2, 2 * SIZE)
    assert not image.changed


def test_the_first_commit_decides_the_page_size() -> None:
    image = PageImage()
    with image.pinned() as writer:
        assert image.reserve(writer)
        image.apply({1: page("a", 4096), 2: page("b", 4096)}, 2, 4096, writer)
        assert texts(writer) == ["a", "b"]
    assert (image.page_size, image.page_count, image.size) == (4096, 2, 8192)
    assert image.version == 1
    assert image.dirty == {1, 2}


# -- pins ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [-1, 0, 3])
def test_a_page_that_the_version_does_not_have(number: int) -> None:
    pin = pinned(image_of("a", "b"))
    with pytest.raises(IndexError, match=f"no page {number} in a version of 2 pages"):
        pin.page(number)


@pytest.mark.parametrize(
    ("changes", "page_count", "after"),
    [
        ({2: "B"}, 3, ["a", "B", "c"]),
        ({4: "d", 5: "e"}, 5, ["a", "b", "c", "d", "e"]),
        ({}, 1, ["a"]),
        ({1: "A"}, 2, ["A", "b"]),
        ({}, 0, []),
        ({1: "A", 3: "C", 4: "D"}, 4, ["A", "b", "C", "D"]),
    ],
    ids=["replace", "grow", "truncate", "truncate and replace", "to nothing", "replace and grow"],
)
def test_invariant_1_a_commit_changes_the_image_and_no_pin(
    changes: dict[int, str], page_count: int, after: list[str]
) -> None:
    image = image_of("a", "b", "c")
    pin = pinned(image)
    commit(image, changes, page_count)
    assert newest(image) == after
    assert texts(pin) == ["a", "b", "c"]
    assert (pin.page_count, pin.size, pin.version) == (3, 3 * SIZE, 0)


def test_invariant_1_pins_of_several_versions_outlive_truncation_and_growth() -> None:
    image = image_of("a", "b", "c")
    first = pinned(image)
    commit(image, {}, 1)
    second = pinned(image)
    commit(image, {2: "B", 3: "C", 4: "D"}, 4)
    third = pinned(image)
    commit(image, {1: "x", 2: "y", 3: "z"}, 3)
    assert texts(first) == ["a", "b", "c"]
    assert texts(second) == ["a"]
    assert texts(third) == ["a", "B", "C", "D"]
    assert newest(image) == ["x", "y", "z"]
    with pytest.raises(IndexError, match="no page 2 in a version of 1 pages"):
        second.page(2)


def test_pinning_again_shows_the_newest_version() -> None:
    image = image_of("a")
    pin = pinned(image)
    commit(image, {1: "A"})
    assert texts(pin) == ["a"]
    image.pin(pin)
    assert texts(pin) == ["A"]
    assert pin.version == image.version


def test_the_writers_pin_moves_on_to_what_it_committed() -> None:
    image = image_of("a")
    writer = pinned(image)
    for text in ("b", "c"):
        assert image.reserve(writer)
        image.apply({1: page(text)}, 1, SIZE, writer)
        assert texts(writer) == [text]
    assert (writer.version, writer.undo) == (2, {})


def test_the_writers_pin_stays_still_under_the_commits_of_others() -> None:
    image = image_of("a")
    writer = pinned(image)
    assert image.reserve(writer)
    image.apply({1: page("b"), 2: page("bb")}, 2, SIZE, writer)
    image.release(writer)
    commit(image, {1: "c"}, 1)
    assert texts(writer) == ["b", "bb"]


def test_runs_are_all_pages_in_order() -> None:
    image = image_of("a", "b", "c", "d", "e")
    pin = pinned(image)
    commit(image, {2: "B"}, 3)
    runs = list(pin.runs(2))
    assert [len(run) for run in runs] == [2, 2, 1]
    assert [one for run in runs for one in run] == [page(text) for text in "abcde"]
    assert [len(run) for run in pin.runs(5)] == [5]
    assert [len(run) for run in pin.runs(99)] == [5]
    assert list(pinned(PageImage()).runs(2)) == []


def test_pins_lists_the_live_ones_oldest_first() -> None:
    image = image_of("a")
    parked, old = pinned(image), pinned(image)
    commit(image, {1: "A"})
    new = pinned(image)
    image.park(parked)
    assert image.pins() == [old, new]
    image.unpin(old)
    image.park(new)
    assert image.pins() == []


def test_an_unpinned_pin_shows_nothing_and_can_be_pinned_again() -> None:
    image = image_of("a")
    pin = pinned(image)
    commit(image, {1: "A"})
    image.unpin(pin)
    assert pin.parked
    assert (pin.undo, pin.page_count, pin.size) == ({}, 0, 0)
    with pytest.raises(IndexError):
        pin.page(1)
    image.unpin(pin)
    image.pin(pin)
    assert texts(pin) == ["A"]


def test_a_block_unpins_however_it_is_left() -> None:
    image = image_of("a")

    def fail() -> None:
        with image.pinned():
            assert len(image.pins()) == 1
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert image.pins() == []


# -- parking ------------------------------------------------------------------------------------


def test_a_parked_pin_goes_on_where_it_was_when_nothing_was_committed() -> None:
    image = image_of("a")
    pin = pinned(image)
    image.park(pin)
    assert pin.parked
    image.pin(pin)
    assert not pin.parked
    assert texts(pin) == ["a"]


def test_a_pin_parked_and_pinned_again_is_still_kept_still() -> None:
    image = image_of("a", "b")
    pin = pinned(image)
    image.park(pin)
    image.pin(pin)
    commit(image, {1: "A"}, 1)
    assert texts(pin) == ["a", "b"]


def test_a_commit_drops_parked_pins_instead_of_saving_for_them() -> None:
    image = image_of("a")
    pin = pinned(image)
    image.park(pin)
    commit(image, {1: "A"})
    assert (pin.undo, pin.page_count) == ({}, 0)
    image.pin(pin)
    assert texts(pin) == ["A"]


def test_parking_an_outdated_pin_lets_its_saved_pages_go() -> None:
    image = image_of("a")
    pin = pinned(image)
    commit(image, {1: "A"})
    assert pin.undo
    image.park(pin)
    assert (pin.undo, pin.page_count) == ({}, 0)


# -- the writer's seat --------------------------------------------------------------------------


def test_one_pin_at_a_time_sits_in_the_writersseat() -> None:
    image = image_of("a")
    first, second = pinned(image), pinned(image)
    assert image.reserve(first)
    assert image.reserve(first)
    assert not image.reserve(second)
    assert image.writer is first
    image.release(first)
    assert image.writer is None
    assert image.reserve(second)


@pytest.mark.parametrize("leave", ["release", "park", "unpin"])
def test_leaving_theseat(leave: str) -> None:
    image = image_of("a")
    first, second = pinned(image), pinned(image)
    assert image.reserve(first)
    getattr(image, leave)(first)
    assert image.reserve(second)


@pytest.mark.parametrize("leave", ["release", "park", "unpin"])
def test_nobody_else_empties_theseat(leave: str) -> None:
    image = image_of("a")
    writer, other, third = pinned(image), pinned(image), pinned(image)
    assert image.reserve(writer)
    getattr(image, leave)(other)
    assert image.writer is writer
    assert not image.reserve(third)


def test_an_outdated_pin_gets_no_seat_and_leaves_it_free() -> None:
    image = image_of("a")
    old = pinned(image)
    commit(image, {1: "A"})
    new = pinned(image)
    with pytest.raises(StalePinError):
        image.reserve(old)
    assert image.reserve(new)


def test_a_pin_from_before_a_swap_gets_noseat() -> None:
    image = image_of("a")
    old = pinned(image)
    swap(image, [page("a")])
    with pytest.raises(StalePinError):
        image.reserve(old)


@pytest.mark.parametrize("leave", ["park", "unpin"])
def test_a_pin_that_shows_nothing_gets_noseat(leave: str) -> None:
    image = image_of("a")
    pin = pinned(image)
    getattr(image, leave)(pin)
    with pytest.raises(StalePinError):
        image.reserve(pin)
    assert image.writer is None


def test_a_taken_seat_is_not_free_for_an_outdated_pin_either() -> None:
    image = image_of("a")
    old = pinned(image)
    commit(image, {1: "A"})
    writer = pinned(image)
    assert image.reserve(writer)
    assert not image.reserve(old)


def test_invariant_2_only_who_sits_in_the_seat_commits() -> None:
    image = image_of("a")
    writer, other = pinned(image), pinned(image)
    for pin in (writer, other):
        with pytest.raises(AssertionError, match="invariant 2"):
            image.apply({1: page("A")}, 1, SIZE, pin)
        assert image.reserve(writer)
    assert newest(image) == ["a"]
    assert (image.version, image.dirty) == (0, set())


def test_invariant_2_only_who_sits_in_the_seat_swaps() -> None:
    image = image_of("a")
    writer, other = pinned(image), pinned(image)
    for pin in (writer, other):
        with pytest.raises(AssertionError, match="invariant 2"):
            image.swap(SIZE, [page("A")], pin)
        assert image.reserve(writer)
    assert newest(image) == ["a"]
    assert image.version == 0


def test_invariant_2_who_swapped_commits_only_after_looking_at_the_new_image() -> None:
    image = image_of("a", "b")
    writer = pinned(image)
    assert image.reserve(writer)
    image.swap(SIZE, [page("x"), page("y")], writer)
    assert texts(writer) == ["a", "b"]
    with pytest.raises(AssertionError, match="invariant 2"):
        image.apply({1: page("A")}, 2, SIZE, writer)
    assert newest(image) == ["x", "y"]
    image.release(writer)
    image.pin(writer)
    assert image.reserve(writer)
    image.apply({1: page("X")}, 2, SIZE, writer)
    assert newest(image) == ["X", "y"]


def test_invariant_2_a_commit_that_cannot_be_whole_leaves_the_image_as_it_was() -> None:
    image = image_of("a", "b", "c")
    writer = pinned(image)
    assert image.reserve(writer)
    with pytest.raises(AssertionError):  # page 4 is missing
        image.apply({1: page("A"), 5: page("E")}, 5, SIZE, writer)
    image.unpin(writer)
    assert newest(image) == ["a", "b", "c"]
    commit(image, {2: "B"})
    assert newest(image) == ["a", "B", "c"]


# -- what is dirty ------------------------------------------------------------------------------


def test_the_same_bytes_are_not_dirty() -> None:
    image = image_of("a", "b")
    reader = pinned(image)
    commit(image, {1: "a", 2: "B"})
    assert image.dirty == {2}
    assert reader.undo.keys() == {2}
    assert image.version == 1


def test_a_commit_without_changes_is_a_version_with_nothing_to_publish() -> None:
    image = image_of("a")
    commit(image, {1: "a"})
    assert image.version == 1
    assert not image.changed


def test_a_page_cut_off_is_not_dirty_any_more_but_is_when_it_returns() -> None:
    image = image_of("a", "b", "c")
    commit(image, {3: "C"})
    commit(image, {}, 1)
    assert image.dirty == set()
    commit(image, {2: "b", 3: "c"}, 3)
    assert image.dirty == {2, 3}


# -- publications -------------------------------------------------------------------------------


def test_a_publication_holds_the_dirty_pages_of_one_version() -> None:
    image = image_of("a", "b", "c")
    commit(image, {2: "B"})
    with image.publication() as publication:
        assert publication.dirty == {2}
        assert image.changed
        commit(image, {1: "A", 2: "BB"})
        assert texts(publication.pin) == ["a", "B", "c"]
        assert publication.dirty == {2}
    assert image.dirty == {1, 2}
    assert image.pins() == []
    publish(image)
    assert not image.changed


def test_a_publication_names_no_page_that_its_version_does_not_have() -> None:
    image = image_of("a", "b", "c")
    commit(image, {1: "A", 3: "C"})
    with pytest.raises(LookupError):
        publish_in_vain(image, lambda: commit(image, {}, 2))
    with image.publication() as publication:
        assert publication.dirty == {1}


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt, GeneratorExit])
def test_a_failed_publication_makes_its_pages_dirty_again(error: type[BaseException]) -> None:
    image = image_of("a", "b", "c")
    commit(image, {2: "B"})
    with pytest.raises(error):
        publish_in_vain(image, lambda: commit(image, {3: "C"}), error)
    assert image.dirty == {2, 3}
    assert image.pins() == []


def test_a_publication_that_was_dropped_makes_its_pages_dirty_again() -> None:
    image = image_of("a", "b")
    commit(image, {2: "B"})
    dropped = image.publication()
    dropped.__enter__()
    assert image.dirty == set()
    del dropped
    gc.collect()
    assert image.dirty == {2}
    assert image.pins() == []


def test_pages_of_a_publication_whose_end_nobody_told_are_taken_again() -> None:
    image = image_of("a", "b")
    commit(image, {2: "B"})
    lost = image.publication()
    lost.__enter__()
    assert image.changed
    assert image.fork().dirty == {2}
    with image.publication() as again:
        assert again.dirty == {2}


def test_a_publication_after_a_swap_takes_nothing_of_the_old_image() -> None:
    image = image_of("a", "b")
    commit(image, {1: "A"})
    with pytest.raises(LookupError):
        publish_in_vain(image, lambda: swap(image, [page("x")]))
    assert image.dirty == {1}


# -- forks --------------------------------------------------------------------------------------


def test_a_fork_and_its_origin_do_not_see_each_others_commits() -> None:
    image = image_of("a", "b")
    commit(image, {1: "A"})
    twin = image.fork()
    assert (newest(twin), twin.page_size, twin.dirty) == (["A", "b"], SIZE, {1})
    commit(twin, {2: "twin"})
    commit(image, {3: "origin"}, 3)
    assert newest(twin) == ["A", "twin"]
    assert newest(image) == ["A", "b", "origin"]
    assert (twin.dirty, image.dirty) == ({1, 2}, {1, 3})


def test_a_fork_shares_the_pages_themselves() -> None:
    image = image_of("a", "b")
    twin = image.fork()
    assert all(mine is theirs for mine, theirs in zip(image.pages, twin.pages, strict=True))


def test_a_fork_has_a_seat_and_pins_of_its_own() -> None:
    image = image_of("a")
    writer = pinned(image)
    assert image.reserve(writer)
    twin = image.fork()
    assert twin.writer is None
    assert twin.pins() == []


def test_a_child_process_does_not_wait_for_a_lock_that_nobody_holds_there() -> None:
    image = image_of("a", "b")
    image.lock.acquire()
    image.after_fork_in_child()
    assert newest(image) == ["a", "b"]
    commit(image, {1: "A"})
    assert newest(image) == ["A", "b"]


# -- swaps --------------------------------------------------------------------------------------


def test_invariant_1_live_pins_go_on_showing_the_old_image() -> None:
    image = image_of("a", "b")
    older = pinned(image)
    commit(image, {1: "A"})
    live = pinned(image)
    swap(image, [page("x", 1024)])
    commit_big = pinned(image)
    assert image.reserve(commit_big)
    image.apply({1: page("y", 1024)}, 1, 1024, commit_big)
    assert texts(older) == ["a", "b"]
    assert texts(live) == ["A", "b"]
    assert (live.page_size, image.page_size) == (SIZE, 1024)
    image.pin(live)
    assert (texts(live), live.page_size) == (["y"], 1024)


def test_a_swapped_in_image_is_dirty_under_a_new_version() -> None:
    image = image_of("a")
    commit(image, {1: "A"})
    swap(image, [page("x"), page("y")])
    assert newest(image) == ["x", "y"]
    assert image.version == 2
    assert image.dirty == {1, 2}


def test_a_swap_lets_go_of_the_old_pages_when_the_last_live_pin_does() -> None:
    image = PageImage()
    old = Pages([page("a")])
    watch = weakref.ref(old)
    swap(image, old)
    del old
    parked, live = pinned(image), pinned(image)
    image.park(parked)
    swap(image, [page("x")])
    gc.collect()
    assert watch() is not None
    assert texts(live) == ["a"]
    image.park(live)
    gc.collect()
    assert watch() is None


def test_parked_pins_keep_no_swapped_out_pages() -> None:
    image = PageImage()
    old = Pages([page("a")])
    watch = weakref.ref(old)
    swap(image, old)
    del old
    parked = pinned(image)
    image.park(parked)
    swap(image, [page("x")])
    gc.collect()
    assert watch() is None
    image.pin(parked)
    assert texts(parked) == ["x"]


# -- memory -------------------------------------------------------------------------------------


def test_a_pin_keeps_only_the_pages_that_were_replaced_or_cut_off() -> None:
    image = image_of(*"abcdef")
    pin = pinned(image)
    commit(image, {2: "B"})
    commit(image, {2: "BB", 7: "g"}, 7)
    commit(image, {}, 5)
    assert pin.undo == {2: page("b"), 6: page("f")}


def test_saved_pages_are_the_old_ones_themselves_not_copies() -> None:
    image = image_of("a", "b")
    pin = pinned(image)
    old = image.pages[1]
    commit(image, {2: "B"})
    assert pin.undo[2] is old


def test_each_pin_keeps_only_what_its_own_version_had() -> None:
    image = image_of("a", "b", "c")
    first = pinned(image)
    commit(image, {}, 1)
    second = pinned(image)
    commit(image, {2: "B"}, 2)
    commit(image, {2: "BB"}, 2)
    assert first.undo.keys() == {2, 3}
    assert second.undo == {}


def test_a_reader_that_holds_half_an_image_is_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    image = PageImage(SIZE, [page("a")] * 4096)
    reader = pinned(image)
    for count in (2000, 2100, 2200, 2300):
        commit(image, {number: str(count) for number in range(1, count + 1)})
    assert reader.page(1) == page("a")
    assert [message.split(" pages")[0] for message in caplog.messages] == [
        "a reader that began at version 0 holds 1 MB of"
    ]
