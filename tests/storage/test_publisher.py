"""One writer's side of a history: lost, late and doubled requests, claims, and being fenced.

Numbers of invariants refer to native_notes/invariants.md.
"""

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from buckethead.errors import (
    BucketError,
    BucketUnavailableError,
    FencedError,
    HistoryError,
    PreconditionFailedError,
)
from buckethead.storage import ltx
from buckethead.storage.contract import Bucket
from buckethead.storage.directory import DirectoryBucket
from buckethead.storage.history import look
from buckethead.storage.publisher import Changes, Publisher, largest
from buckethead.storage.restoring import restore
from buckethead.storage.retention import free
from history_tools import (
    PLACE,
    UNANSWERED,
    Fault,
    Faulty,
    Turns,
    Writer,
    broken_store,
    no_answer,
    pages_at,
    rows,
)

LARGE = "INSERT INTO t(b) VALUES(randomblob(12000000))"


@pytest.fixture
def local(tmp_path: Path) -> DirectoryBucket:
    return DirectoryBucket(tmp_path / "bucket", part_size=5 << 20, concurrency=2)


@pytest.fixture
def faulty(local: DirectoryBucket) -> Faulty:
    return Faulty(local)


@pytest.fixture
def writer(faulty: Faulty) -> Writer:
    """A writer with one publication."""
    writer = Writer(faulty)
    writer.publish()
    return writer


def object_at(bucket: Bucket, txid: int) -> bytes:
    return bucket.get_bytes(PLACE.delta(txid))


# ---- what is published


def test_every_store_keeps_what_was_published(bucket: Bucket) -> None:
    writer = Writer(bucket)
    assert not writer.publisher.claimed
    for txid in (1, 2, 3):
        published = writer.publish()
        assert (published.txid, published.size) == (txid, len(object_at(bucket, txid)))
    assert writer.publisher.claimed, "the first delta of a history needs no claim"
    assert object_at(bucket, 3).startswith(b"LTX1")
    for txid, pages in writer.states.items():
        assert pages_at(bucket, txid) == pages
    assert look(bucket, PLACE).epoch == writer.publisher.node == writer.stamp.epoch


def test_a_flush_is_one_request(writer: Writer, faulty: Faulty) -> None:
    faulty.calls.clear()
    writer.publish()
    assert faulty.calls == [("put_bytes", PLACE.delta(2))]


@pytest.mark.parametrize(("page_size", "pages"), [(512, 1), (512, 300), (4096, 40), (65536, 17)])
def test_no_file_is_larger_than_its_bound(page_size: int, pages: int) -> None:
    from random import Random

    random = Random(page_size)
    header = ltx.Header(page_size, pages, 1, 1, 0, 1)
    content = [(number, random.randbytes(page_size)) for number in range(1, pages + 1)]
    size = sum(map(len, ltx.encode(header, content)))
    assert size - 100 <= largest(page_size, pages) - 100 <= size * 1.2 + 256


def test_a_history_keeps_its_page_size(writer: Writer) -> None:
    other = Changes(9, 512, 1, (1,), (bytes(512),))
    with pytest.raises(HistoryError, match=r"4,096 bytes and the database now 512.*another key"):
        writer.publisher.publish(other)
    assert not writer.publisher.unsettled


@pytest.mark.parametrize("step_ms", [-3_600_000, 0, 3_600_000])
def test_times_never_go_back(
    writer: Writer, faulty: Faulty, monkeypatch: pytest.MonkeyPatch, step_ms: int
) -> None:
    first = writer.stamp.timestamp
    clock = SimpleNamespace(time_ns=lambda: (first + step_ms) * 1_000_000)
    monkeypatch.setattr("buckethead.storage.publisher.time", clock)
    for txid in (2, 3, 4):
        writer.publish()
        assert writer.stamp.timestamp == max(first + step_ms, first) + txid - (
            2 if step_ms > 0 else 1
        )
    assert pages_at(faulty) == writer.states[4]


# ---- what goes wrong on the way


@pytest.mark.parametrize("error", [no_answer, broken_store])
def test_a_lost_reply_is_read_back(local: DirectoryBucket, error: Callable[[], Exception]) -> None:
    faulty = Faulty(local, error)
    writer = Writer(faulty)
    writer.publish()
    faulty.fail("put_bytes", Fault.REPLY_LOST)
    published = writer.publish()
    assert (published.txid, published.size) == (2, len(object_at(local, 2)))
    assert not writer.publisher.unsettled
    assert pages_at(local) == writer.states[2]


def test_while_a_fate_is_unknown_the_same_bytes_go_and_nothing_newer(
    writer: Writer, faulty: Faulty, local: DirectoryBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[str, bytes]] = []
    put = local.put_bytes

    def recorded(data: bytes, key: str, **more: bool) -> str:
        sent.append((key, bytes(data)))
        raise no_answer()

    monkeypatch.setattr(local, "put_bytes", recorded)
    for _ in range(3):
        with pytest.raises(BucketUnavailableError, match=r"publish the delta .*0002\.ltx"):
            writer.publish()
        assert writer.publisher.unsettled
        assert writer.image.changed, "invariant 12: it stays dirty"
    assert len(sent) == 3
    assert set(sent) == {sent[0]}
    monkeypatch.setattr(local, "put_bytes", put)
    assert writer.flush().txid == 3
    assert object_at(local, 2) == sent[0][1]
    assert pages_at(local) == writer.states[3] == writer.image.pages


def test_an_attempt_that_cannot_be_read_back_stays_unknown(
    writer: Writer, faulty: Faulty, local: DirectoryBucket
) -> None:
    faulty.fail("put_bytes", Fault.REPLY_LOST)
    faulty.fail("get_range", Fault.LOST)
    with pytest.raises(BucketUnavailableError) as caught:
        writer.publish()
    assert "not known yet" in caught.value.__notes__[0]
    assert writer.publisher.unsettled
    landed = object_at(local, 2)
    settled = writer.publisher.settle()  # refused with 412: by our own object
    assert settled is not None
    assert (settled.txid, settled.size) == (2, len(landed))
    assert object_at(local, 2) == landed
    assert writer.publisher.settle() is None


@pytest.mark.parametrize("operation", ["get_range", "get_tail"])
def test_what_is_read_back_only_in_part_proves_nothing(
    writer: Writer, faulty: Faulty, operation: str
) -> None:
    faulty.fail("put_bytes", Fault.REPLY_LOST)
    faulty.fail(operation, Fault.CUT)
    with pytest.raises(BucketUnavailableError) as caught:
        writer.publish()
    assert "fewer bytes came than there are" in caught.value.__notes__[0]
    settled = writer.publisher.settle()
    assert settled is not None
    assert settled.txid == 2


def test_a_doubled_request_is_no_conflict(writer: Writer, faulty: Faulty) -> None:
    faulty.fail("put_bytes", Fault.DELAYED)
    with pytest.raises(BucketUnavailableError):
        writer.publish()
    assert writer.publisher.settle() is not None
    (outcome,) = faulty.land()
    assert isinstance(outcome, PreconditionFailedError)
    assert writer.publish().txid == 3
    assert pages_at(faulty) == writer.states[3]


def test_a_late_request_that_lands_before_a_takeover_is_kept(
    writer: Writer, faulty: Faulty, local: DirectoryBucket
) -> None:
    faulty.fail("put_bytes", Fault.DELAYED)
    with pytest.raises(BucketUnavailableError):
        writer.publish()
    other = Writer(local)
    assert faulty.land() == [None]
    assert not other.claim(), "the history has moved on since it was read"
    other.take(restore(local, PLACE))
    assert rows(other.image.pages) == 2
    assert other.claim()
    assert writer.publisher.settle() is not None, "it did land"
    with pytest.raises(FencedError, match=r"TXID 3 .*another writer \([0-9a-f]{16}\).*VACUUM INTO"):
        writer.publish()
    assert pages_at(local) == other.image.pages


def test_a_late_request_that_lands_after_a_takeover_is_refused(
    writer: Writer, faulty: Faulty, local: DirectoryBucket
) -> None:
    faulty.fail("put_bytes", Fault.DELAYED)
    with pytest.raises(BucketUnavailableError):
        writer.publish()
    other = Writer(local)
    assert other.claim()
    other.publish()
    before = {info.key: info.etag for info in local.list_objects()}
    (outcome,) = faulty.land()
    assert isinstance(outcome, PreconditionFailedError)
    for attempt in (writer.publisher.settle, writer.flush, writer.publisher.settle):
        with pytest.raises(FencedError, match="since TXID 1 can still be read"):
            attempt()
    assert {info.key: info.etag for info in local.list_objects()} == before
    assert rows(writer.image.pages) == 2
    assert writer.image.changed, "what was not published is not thrown away"
    assert pages_at(local) == other.states[3]


@pytest.mark.parametrize("content", [b"", b"hello", b"LTX1" + bytes(200)])
def test_a_foreign_object_at_the_key_fences(bucket: Bucket, content: bytes) -> None:
    writer = Writer(bucket)
    writer.publish()
    bucket.put_bytes(content, PLACE.delta(2))
    with pytest.raises(FencedError, match=r"an object that is no delta of ours is there"):
        writer.publish()
    assert object_at(bucket, 2) == content


def test_large_deltas_are_fenced_at_complete(bucket: Bucket) -> None:
    writer = Writer(bucket)
    writer.publish()
    asleep = Writer(bucket)
    assert asleep.claim()
    writer.take(restore(bucket, PLACE))
    assert writer.claim()
    assert writer.publish(LARGE).size > 2 * bucket.part_size
    assert pages_at(bucket) == writer.states[4]
    with pytest.raises(FencedError):
        asleep.publish(LARGE)
    assert pages_at(bucket) == writer.states[4]


def test_a_large_delta_whose_reply_is_lost_is_read_back(
    writer: Writer, faulty: Faulty, local: DirectoryBucket
) -> None:
    writer.publish(LARGE)  # asks the probe, which is a put_parts too
    faulty.fail("put_parts", Fault.LOST)
    with pytest.raises(BucketUnavailableError):
        writer.publish(LARGE)
    faulty.fail("put_parts", Fault.REPLY_LOST)
    settled = writer.publisher.settle()
    assert settled is not None
    assert settled.size == len(object_at(local, 3)) > local.part_size
    assert pages_at(local) == writer.image.pages


# ---- claims


def test_a_claim_is_one_small_delta_and_a_look(
    writer: Writer, faulty: Faulty, local: DirectoryBucket
) -> None:
    other = Writer(faulty)
    faulty.calls.clear()
    assert other.claim()
    assert faulty.calls == [("put_bytes", PLACE.delta(2)), ("list_objects", PLACE.history)]
    assert len(object_at(local, 2)) == ltx.EMPTY_SIZE
    assert other.claim(), "once is enough"
    assert len(faulty.calls) == 2
    assert other.stamp.epoch == writer.publisher.node


def test_the_loser_of_two_claims_reads_again(local: DirectoryBucket, writer: Writer) -> None:
    first, second = Writer(local), Writer(local)
    assert first.claim()
    first.publish()
    assert not second.claim()
    assert second.publisher.fenced is None
    second.take(restore(local, PLACE))
    assert second.claim()
    assert second.publish().txid == 5
    with pytest.raises(FencedError):
        first.publish()
    assert rows(pages_at(local)) == 3


@pytest.mark.parametrize("fault", UNANSWERED)
def test_a_claim_of_unknown_fate_is_settled(
    writer: Writer, faulty: Faulty, local: DirectoryBucket, fault: Fault
) -> None:
    other = Writer(faulty)
    faulty.fail("put_bytes", fault)
    faulty.fail("get_range", Fault.LOST)
    with pytest.raises(BucketUnavailableError):
        other.claim()
    assert not other.publisher.claimed
    faulty.land()
    assert other.claim()
    other.publish()
    assert [len(object_at(local, txid)) == ltx.EMPTY_SIZE for txid in (1, 2, 3)] == [0, 1, 0]


def test_who_was_fenced_claims_no_more(writer: Writer, local: DirectoryBucket) -> None:
    assert Writer(local).claim()
    with pytest.raises(FencedError):
        writer.publish()
    with pytest.raises(FencedError):
        writer.claim()


def test_a_claim_whose_look_fails_is_no_claim(writer: Writer, faulty: Faulty) -> None:
    other = Writer(faulty)
    faulty.fail("list_objects", Fault.LOST)
    with pytest.raises(BucketUnavailableError):
        other.claim()
    assert not other.publisher.claimed
    assert other.claim()
    assert rows(pages_at(faulty)) == 1


# ---- asleep past the retention time


@pytest.fixture
def pruned(local: DirectoryBucket) -> Callable[[Writer], Writer]:
    """Has another writer take over and go on for so long that retention frees what it can."""

    def take_over(asleep: Writer) -> Writer:
        other = Writer(local)
        assert other.claim()
        for _ in range(6):
            other.publish()
        other.snapshot()
        other.publish()
        other.checkpoint(keep_previous=False)
        other.publish()
        freed = free(local, PLACE, -1.0, other.stamp)
        assert freed.deltas
        return other

    return take_over


def test_a_claimed_writer_asleep_past_retention_is_fenced(
    local: DirectoryBucket, writer: Writer, pruned: Callable[[Writer], Writer]
) -> None:
    writer.publish()
    other = pruned(writer)
    assert not local.exists(PLACE.delta(4))
    with pytest.raises(FencedError):
        writer.publish()
    assert pages_at(local) == other.image.pages


def test_a_mounted_writer_asleep_past_retention_claims_in_a_hole_and_reads_again(
    faulty: Faulty, local: DirectoryBucket, writer: Writer, pruned: Callable[[Writer], Writer]
) -> None:
    middle = Writer(local)
    assert middle.claim()
    middle.publish()
    asleep = Writer(faulty)
    assert middle.publish().txid == 4
    other = pruned(middle)
    assert not local.exists(PLACE.delta(4)), "there is the hole"
    faulty.fail("list_objects", Fault.LOST)
    with pytest.raises(BucketUnavailableError):
        asleep.claim()
    assert local.exists(PLACE.delta(4))
    assert not asleep.claim(), "the claim is no claim until the look has shown it"
    assert pages_at(local) == other.image.pages, "in the hole it harms nobody"
    asleep.take(restore(local, PLACE))
    assert asleep.claim()
    asleep.publish()
    with pytest.raises(FencedError):
        other.publish()
    assert pages_at(local) == asleep.image.pages


def test_a_claim_in_a_hole_is_no_state(
    local: DirectoryBucket, writer: Writer, pruned: Callable[[Writer], Writer]
) -> None:
    asleep = Writer(local)
    writer.publish()
    state = writer.states[2]
    pruned(writer)
    local.delete(PLACE.delta(3))  # the claim: as if all of this had gone on in one process
    assert not asleep.claim()
    assert local.exists(PLACE.delta(2))
    with pytest.raises(HistoryError, match="what can be restored is TXID 1, 9-11"):
        pages_at(local, 2)
    assert pages_at(local, 1) != state


def test_a_writer_from_before_the_history_is_fenced(
    local: DirectoryBucket, pruned: Callable[[Writer], Writer]
) -> None:
    asleep = Writer(local)
    first = Writer(local)
    first.publish()
    other = pruned(first)
    with pytest.raises(FencedError, match="Could not publish TXID 1 "):
        asleep.publish()
    assert pages_at(local) == other.image.pages


# ---- everything that can go wrong, at every step


@pytest.mark.parametrize("fault", UNANSWERED)
def test_no_failing_request_loses_a_commit(tmp_path: Path, fault: Fault) -> None:
    """Claim, two publications and an image, with the n-th request failing, for every n."""
    for number in itertools.count(1):
        faulty = Faulty(DirectoryBucket(tmp_path / str(number)))
        Writer(faulty).publish()
        writer = Writer(faulty)
        faulty.fail_nth(number, fault)
        tries = 0
        while not _succeeds(writer.claim):
            tries += 1
        for txid in (1, 2):
            writer.commit()
            while not _succeeds(writer.flush):
                tries += 1
            while not _succeeds(writer.checkpoint):
                tries += 1
            assert rows(pages_at(faulty.inner)) == txid + 1
            assert pages_at(faulty.inner) == writer.image.pages
        for outcome in faulty.land():
            assert outcome is None or isinstance(outcome, PreconditionFailedError)
        assert pages_at(faulty.inner) == writer.image.pages
        assert tries <= 1
        if len(faulty.calls) < number:
            break
    assert number > 10


def _succeeds(action: Callable[[], object]) -> bool:
    try:
        action()
    except BucketError:
        return False
    return True


def _orders(steps: int) -> list[tuple[int, ...]]:
    return sorted(set(itertools.permutations([0] * steps + [1] * steps)))


@pytest.mark.parametrize("fresh", [True, False], ids=["no history", "history"])
def test_every_order_of_two_writers_steps(tmp_path: Path, fresh: bool) -> None:
    """Two writers claim and publish one row each. Whatever the order of their requests, exactly
    what was acknowledged is restored, in one line."""
    steps = 2 if fresh else 3  # read back and look again go on in any order
    for number, order in enumerate(_orders(steps)):
        local = DirectoryBucket(tmp_path / str(number))
        if not fresh:
            Writer(local).publish()
        writers = [Writer(Faulty(local)), Writer(Faulty(local))]
        turns = Turns(order)
        acknowledged: list[int] = []

        def write(
            who: int,
            writers: list[Writer] = writers,
            turns: Turns = turns,
            acknowledged: list[int] = acknowledged,
        ) -> None:
            writer = writers[who]
            assert isinstance(writer.bucket, Faulty)
            writer.bucket.before = lambda operation, key: turns.take(who)
            try:
                if writer.publisher.txid:
                    while not writer.claim():
                        writer.bucket.before = lambda operation, key: None
                        turns.end(who)
                        writer.take(restore(writer.bucket, PLACE))
                writer.publish()
                acknowledged.append(who)
            except FencedError:
                pass
            finally:
                turns.end(who)

        threads = [threading.Thread(target=write, args=(who,)) for who in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert acknowledged, "one of them gets through"
        assert rows(pages_at(local)) == len(acknowledged) + (not fresh), order


def test_without_a_fence_no_condition_is_sent(tmp_path: Path) -> None:
    class Unconditional(DirectoryBucket):
        def put_bytes(self, data: bytes | bytearray, key: str, **more: object) -> str:
            assert not more["if_none_match"]
            return super().put_bytes(data, key)

    bucket = Unconditional(tmp_path / "bucket")
    publisher = Publisher(bucket, PLACE, None, fence=False)
    publisher.publish(Changes(1, 512, 1, (1,), (bytes(512),)))
    assert list(bucket.list_keys()) == [PLACE.delta(1)]
