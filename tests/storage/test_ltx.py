"""LTX files: what is written is read back, files of Litestream are read, and nothing else is.

The files in golden/ are never written again: new versions of the code must read them as they are.

- ``delta.ltx``, ``empty.ltx``: what `golden` gives, exactly. Their pages cannot be compressed, so
  every version of LZ4 gives these bytes.
- ``snapshot.ltx``: by this code, the database ``PRAGMA page_size=512; CREATE TABLE t(a, b);
  INSERT INTO t VALUES(1, 'x')`` as TXID 1.
- ``litestream-0.5.14.ltx`` (frame form) and ``litestream-0.5.17.ltx`` (block form): TXID 2 on top
  of it, written by the packages litestream-vfs of these versions, LITESTREAM_WRITE_ENABLED=true,
  for ``INSERT INTO t VALUES(1000, 'hello from litestream'); CREATE TABLE u(a)``.
"""

import random
import re
import sqlite3
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import lz4.block
import lz4.frame
import pytest
from fastcrc import crc64
from hypothesis import example, given
from hypothesis import strategies as st

from buckethead.storage import ltx
from buckethead.storage.ltx import Header, LTXError, Reader

GOLDEN = Path(__file__).parent / "golden"
FORMS = (ltx.FRAME, ltx.BLOCK)
SIZE = 512
DELTA = Header(SIZE, 9, 5, 6, 1_700_000_000_123, 0xFEDCBA9876543210)
SNAPSHOT = Header(SIZE, 3, 1, 1, 1_700_000_000_123, 7)


def noise(seed: int, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


def text(seed: int, size: int = SIZE) -> bytes:
    """A page that LZ4 makes smaller, with matches of more than one kind."""
    return (f"row {seed} of a table " * size).encode()[: size // 2] + bytes(size - size // 2)


def encoded(header: Header, pages: list[tuple[int, bytes]]) -> bytes:
    return b"".join(ltx.encode(header, pages))


# ---- an encoder of its own, which can break every rule


def framed(page: bytes) -> bytes:
    return bytes(lz4.frame.compress(page, content_checksum=True, store_size=False))


def blocked(page: bytes) -> bytes:
    block: bytes = lz4.block.compress(page, store_size=False)
    return struct.pack(">I", len(block)) + block


def uvarint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + uvarint(number >> 7)


def forged(
    header: bytes,
    pages: list[tuple[int, bytes]],
    form: int = ltx.FRAME,
    *,
    body: Callable[[bytes], bytes] | None = None,
    index: Callable[[bytes], bytes] = bytes,
    post_apply: int = 0,
) -> bytes:
    """A file whose checksum is right, whatever rule the rest of it breaks."""
    compress = body or (blocked if form == ltx.BLOCK else framed)
    file, crc, entries = bytearray(header), crc64.go_iso(header), b""
    for number, page in pages:
        compressed = compress(page)
        head = struct.pack(">IH", number, form)
        entry = head + compressed
        crc = crc64.go_iso(head + (compressed[:4] if form == ltx.BLOCK else b"") + page, crc)
        entries += uvarint(number) + uvarint(len(file)) + uvarint(len(entry))
        file += entry
    entries = index(entries + b"\0")
    ending = bytes(6) + entries + struct.pack(">QQ", len(entries), post_apply)
    checksum = 1 << 63 | crc64.go_iso(ending, crc)
    return bytes(file + ending + struct.pack(">Q", checksum))


def header_with(at: int, value: bytes, header: Header = DELTA) -> bytes:
    data = bytearray(header.encode())
    data[at : at + len(value)] = value
    return bytes(data)


# ---- golden files


def golden() -> dict[str, bytes]:
    return {
        "delta.ltx": encoded(DELTA, [(2, noise(2)), (7, noise(7))]),
        "empty.ltx": encoded(DELTA, []),
    }


@pytest.mark.parametrize("name", golden())
def test_the_same_input_gives_the_same_file_for_ever(name: str) -> None:
    assert golden()[name] == (GOLDEN / name).read_bytes()


def test_the_delta_of_long_ago() -> None:
    contents = ltx.decode((GOLDEN / "delta.ltx").read_bytes())
    assert contents.header == DELTA
    assert contents.pages == {2: noise(2), 7: noise(7)}
    assert contents.checksum == 0x8090CF6A25F2098F


@pytest.mark.parametrize(
    ("version", "form"), [("0.5.14", ltx.FRAME), ("0.5.17", ltx.BLOCK)], ids=["frame", "block"]
)
def test_files_that_litestream_wrote(version: str, form: int, tmp_path: Path) -> None:
    snapshot = ltx.decode((GOLDEN / "snapshot.ltx").read_bytes())
    data = (GOLDEN / f"litestream-{version}.ltx").read_bytes()
    delta = ltx.decode(data)
    assert data[104:106] == struct.pack(">H", form)
    assert (delta.header.min_txid, delta.header.max_txid, delta.header.commit) == (2, 2, 3)
    assert ltx.pages_in(data) == 3
    pages = snapshot.pages | delta.pages
    (tmp_path / "a.db").write_bytes(b"".join(pages[number] for number in sorted(pages)))
    with closing(sqlite3.connect(tmp_path / "a.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("SELECT * FROM t").fetchall() == [
            (1, "x"),
            (1000, "hello from litestream"),
        ]
        assert db.execute("SELECT * FROM u").fetchall() == []


def slow_crc64(data: bytes) -> int:
    """CRC-64/GO-ISO bit by bit, from its definition."""
    crc = (1 << 64) - 1
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xD800000000000000 if crc & 1 else 0)
    return crc ^ (1 << 64) - 1


def test_every_byte_of_an_empty_delta() -> None:
    assert slow_crc64(b"123456789") == 0xB90956C775A41001
    header = (
        b"LTX1"
        + struct.pack(">III", 2, SIZE, 9)
        + struct.pack(">QQQ", 5, 6, 1_700_000_000_123)
        + bytes(8 + 8 + 8 + 4 + 4)
        + struct.pack(">Q", 0xFEDCBA9876543210)
        + bytes(20)
    )
    before = header + bytes(6) + b"\0" + struct.pack(">Q", 1) + bytes(8)
    assert len(before) + 8 == ltx.EMPTY_SIZE
    assert len(header) == ltx.HEADER_SIZE
    assert encoded(DELTA, []) == before + struct.pack(">Q", 1 << 63 | slow_crc64(before))


def test_every_byte_of_a_delta_of_one_page() -> None:
    page, header = noise(1), DELTA.encode()
    data = encoded(DELTA, [(8, page)])
    length = len(data) - ltx.EMPTY_SIZE - len(uvarint(100)) - 3  # entry: 8, 100, length
    frame = data[106 : 100 + length]
    assert data[100:106] == struct.pack(">IH", 8, 0)
    assert lz4.frame.decompress(frame) == page
    description = lz4.frame.get_frame_info(frame)
    assert description["block_size_id"] == lz4.frame.BLOCKSIZE_MAX64KB
    assert description["content_checksum"]
    assert description["block_checksum"]
    assert not description["block_linked"]
    ending = bytes(6) + b"\x08\x64" + uvarint(length) + b"\0" + struct.pack(">QQ", 5, 0)
    assert data[100 + length : -8] == ending
    checksum = 1 << 63 | slow_crc64(header + data[100:106] + page + ending)
    assert data[-8:] == struct.pack(">Q", checksum)


# ---- round trips

page_sizes = st.sampled_from([512, 1024, 4096, 65536])
makers = st.sampled_from([noise, text, lambda seed, size: bytes(size)])


@st.composite
def files(draw: st.DrawFn) -> tuple[Header, list[tuple[int, bytes]]]:
    size = draw(page_sizes)
    first = draw(st.integers(1, 1 << 63) | st.just(1))
    commit = draw(st.integers(1, 6) if first == 1 else st.integers(1, ltx.MAX_COMMIT))
    numbers = (
        set(range(1, commit + 1))
        if first == 1
        else draw(st.sets(st.integers(1, commit), max_size=6)) - {ltx.lock_page(size)}
    )
    header = Header(
        page_size=size,
        commit=commit,
        min_txid=first,
        max_txid=draw(st.integers(first, (1 << 64) - 1)),
        timestamp=draw(st.integers(0, ltx.MAX_TIMESTAMP)),
        node_id=draw(st.integers(0, (1 << 64) - 1)),
    )
    return header, [(number, draw(makers)(number, size)) for number in sorted(numbers)]


def cut(data: bytes, length: int) -> Iterator[bytes]:
    return (data[at : at + length] for at in range(0, len(data), length))


@given(files(), st.sampled_from(FORMS), st.integers(1, 5000))
@example((DELTA, [(1, noise(1)), (9, text(9))]), ltx.FRAME, 1)
@example((DELTA, [(1, noise(1)), (9, text(9))]), ltx.BLOCK, 1)
def test_what_is_written_is_read(
    file: tuple[Header, list[tuple[int, bytes]]], form: int, chunk: int
) -> None:
    header, pages = file
    ours = encoded(header, pages)
    data = ours if form == ltx.FRAME else forged(header.encode(), pages, form)
    reader = Reader(cut(data, max(chunk, len(data) // 2000)))
    assert reader.header == header
    assert reader.checksum == 0
    assert list(reader) == pages
    assert reader.checksum == ltx.checksum_of(data) == int.from_bytes(data[-8:])
    assert ltx.decode(data) == ltx.Contents(header, dict(pages), reader.checksum)
    assert ltx.pages_in(data) == len(pages)
    assert encoded(header, pages) == ours


def test_chunks_come_while_pages_are_taken() -> None:
    taken = []

    def pages() -> Iterator[tuple[int, bytes]]:
        for number in range(1, 201):
            taken.append(number)
            yield number, noise(number, 16384)

    header = Header(16384, 200, 2, 2, 0, 0)
    chunks = ltx.encode(header, pages())
    first = next(chunks)
    assert len(taken) < 20
    rest = list(chunks)
    assert {len(chunk) // 65536 for chunk in [first, *rest[:-1]]} == {4}
    assert ltx.decode(b"".join([first, *rest])).header == header
    assert ltx.checksum_of(rest[-1]) == ltx.decode(b"".join([first, *rest])).checksum


@pytest.mark.parametrize("form", FORMS)
def test_pages_come_while_chunks_are_taken(form: int) -> None:
    taken: list[bytes] = []

    def chunks() -> Iterator[bytes]:
        for chunk in cut(forged(DELTA.encode(), pages, form), 600):
            taken.append(chunk)
            yield chunk

    pages = [(number, noise(number)) for number in range(1, 10)]
    for number, _ in Reader(chunks()):
        assert len(taken) <= number + 2


def test_an_index_larger_than_a_chunk() -> None:
    page = bytes(SIZE)
    numbers = range(2**27, 2**27 + 30_000)
    header = Header(SIZE, ltx.MAX_COMMIT, 2, 2, 0, 0)
    chunks = list(ltx.encode(header, ((number, page) for number in numbers)))
    assert max(map(len, chunks)) < 1 << 20
    assert [number for number, _ in Reader(chunks)] == list(numbers)
    assert ltx.pages_in(b"".join(chunks)) == 30_000


def test_other_frames_of_lz4_are_read() -> None:
    """Linked blocks, several blocks, a known size: what another writer may have chosen."""
    page = noise(1, 65536)
    for options in ({"block_linked": True}, {"store_size": True}, {"block_size": 7}):
        data = forged(
            Header(65536, 9, 2, 2, 0, 0).encode(),
            [(3, page)],
            body=lambda content, options=options: lz4.frame.compress(content, **options),  # type: ignore[misc]
        )
        assert ltx.decode(data).pages == {3: page}


# ---- the lock page


@pytest.mark.parametrize(("size", "number"), [(512, 2097153), (4096, 262145), (65536, 16385)])
def test_the_lock_page(size: int, number: int) -> None:
    assert ltx.lock_page(size) == number


@pytest.mark.parametrize("commit", [16385, 16386], ids=["at its end", "in it"])
def test_a_snapshot_leaves_out_the_lock_page(commit: int) -> None:
    page = bytes(65536)
    header = Header(65536, commit, 1, 1, 0, 0)
    numbers = [number for number in range(1, commit + 1) if number != 16385]
    reader = Reader(ltx.encode(header, ((number, page) for number in numbers)))
    assert [number for number, _ in reader] == numbers


# ---- every rule and its message

WRONG_HEADERS: list[tuple[dict[str, int], str]] = [
    ({"page_size": 256}, "its page size 256 is no power of two in 512..65536"),
    ({"page_size": 131072}, "its page size 131072 is no"),
    ({"page_size": 1000}, "its page size 1000 is no"),
    ({"commit": 0}, "its database has 0 pages; it must keep at least page 1"),
    ({"commit": 0xFFFFFFFF}, "its database of 4294967295 pages is beyond SQLite's limit"),
    ({"min_txid": 0}, "its first TXID is 0; TXIDs begin at 1"),
    ({"min_txid": 7}, "its first TXID 7 comes after its last, 6"),
    ({"timestamp": -1}, "its timestamp -1 is not in the years 1970 to 9999"),
    ({"timestamp": 253_402_300_800_000}, "is not in the years 1970 to 9999"),
]
UNWRITABLE_HEADERS: list[tuple[dict[str, int], str]] = [
    ({"max_txid": 1 << 64}, "its last TXID 18446744073709551616 has more than 64 bits"),
    ({"node_id": 1 << 64}, "its node id is no number of 64 bits"),
    ({"node_id": -1}, "its node id is no number of 64 bits"),
]
FIELDS = {
    "page_size": (8, ">I"),
    "commit": (12, ">I"),
    "min_txid": (16, ">Q"),
    "timestamp": (32, ">q"),
}


def changed(header: Header, values: dict[str, int]) -> Header:
    fields = {name: getattr(header, name) for name in Header.__slots__}
    return Header(**(fields | values))


@pytest.mark.parametrize(("values", "message"), WRONG_HEADERS + UNWRITABLE_HEADERS)
def test_a_wrong_header_is_not_written(values: dict[str, int], message: str) -> None:
    with pytest.raises(LTXError, match=re.escape(message)):
        changed(DELTA, values).encode()
    with pytest.raises(LTXError, match=re.escape(message)):
        encoded(changed(DELTA, values), [])


@pytest.mark.parametrize(("values", "message"), WRONG_HEADERS)
def test_a_wrong_header_is_not_read(values: dict[str, int], message: str) -> None:
    ((name, value),) = values.items()
    at, form = FIELDS[name]
    data = header_with(at, struct.pack(form, value))
    for read in (Header.decode, ltx.decode, lambda data: Reader([data])):
        with pytest.raises(LTXError, match=re.escape(message)):
            read(data)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"LTX2", "it does not begin with 'LTX1'"),
        (4, struct.pack(">I", 0), "its flags are 0x0, not 0x2"),
        (4, struct.pack(">I", 3), "its flags are 0x3, not 0x2"),
        (40, struct.pack(">Q", 1 << 63), "it has a pre-apply checksum"),
        (48, struct.pack(">qq", -1, 5), "its WAL offset -1 or size 5 is negative"),
        (48, struct.pack(">qq", 32, -5), "its WAL offset 32 or size -5 is negative"),
        (56, struct.pack(">q", 5), "it has a WAL size or salt without a WAL offset"),
        (64, struct.pack(">I", 5), "it has a WAL size or salt without a WAL offset"),
        (68, struct.pack(">I", 5), "it has a WAL size or salt without a WAL offset"),
        (80, b"\1", "its reserved header bytes are not zero"),
        (99, b"\1", "its reserved header bytes are not zero"),
    ],
)
def test_header_bytes_that_mean_nothing_good(at: int, value: bytes, message: str) -> None:
    with pytest.raises(LTXError, match=re.escape(message)):
        ltx.decode(forged(header_with(at, value), []))


def test_the_place_in_a_wal_is_accepted_and_left_out() -> None:
    header = header_with(48, struct.pack(">qqII", 32, 4120, 1, 2))
    assert ltx.decode(forged(header, [])).header == DELTA


def test_a_header_needs_its_100_bytes() -> None:
    with pytest.raises(LTXError, match="it ends after 99 bytes, inside the header of 100"):
        Header.decode(DELTA.encode()[:99])
    assert Header.decode(DELTA.encode() + b"more") == DELTA


LOCK = ltx.lock_page(65536)
HUGE = Header(65536, LOCK + 5, 2, 2, 0, 0)
WRONG_PAGES: list[tuple[Header, list[int], str]] = [
    (DELTA, [3, 3], "page 3 comes after page 3, out of order"),
    (DELTA, [3, 2], "page 2 comes after page 3, out of order"),
    (DELTA, [10], "page 10 lies beyond the 9 pages of its database"),
    (HUGE, [LOCK], "it has page 16385, the lock page, which holds no content"),
    (SNAPSHOT, [], "it is a snapshot and lacks page 1"),
    (SNAPSHOT, [2, 3], "it is a snapshot and lacks page 1"),
    (SNAPSHOT, [1, 3], "it is a snapshot and lacks page 2"),
    (SNAPSHOT, [1, 2], "it is a snapshot and lacks page 3"),
    (SNAPSHOT, [1, 2, 3, 4], "page 4 lies beyond the 3 pages"),
]


@pytest.mark.parametrize(("header", "numbers", "message"), WRONG_PAGES)
def test_wrong_page_numbers(header: Header, numbers: list[int], message: str) -> None:
    pages = [(number, noise(number, header.page_size)) for number in numbers]
    with pytest.raises(LTXError, match=re.escape(message)):
        encoded(header, pages)
    for form in FORMS:
        with pytest.raises(LTXError, match=re.escape(message)):
            ltx.decode(forged(header.encode(), pages, form))


def test_page_0() -> None:
    with pytest.raises(LTXError, match="it has a page 0; page numbers begin at 1"):
        encoded(DELTA, [(0, noise(1))])
    with pytest.raises(LTXError, match="it has a page 0; page numbers begin at 1"):
        ltx.decode(forged(DELTA.encode(), [(0, noise(1))], ltx.BLOCK))


@pytest.mark.parametrize("size", [0, 511])
def test_pages_too_short(size: int) -> None:
    message = f"page 4 has {size} bytes instead of 512"
    with pytest.raises(LTXError, match=message):
        encoded(DELTA, [(4, bytes(size))])
    for form in FORMS:
        with pytest.raises(LTXError, match=message):
            ltx.decode(forged(DELTA.encode(), [(4, bytes(size))], form))


@pytest.mark.parametrize("size", [513, 1000])
def test_pages_too_long(size: int) -> None:
    with pytest.raises(LTXError, match=f"page 4 has {size} bytes instead of 512"):
        encoded(DELTA, [(4, bytes(size))])
    with pytest.raises(LTXError, match="page 4 has more than 512 bytes"):
        ltx.decode(forged(DELTA.encode(), [(4, bytes(size))]))
    with pytest.raises(LTXError, match="page 4 is damaged: "):
        ltx.decode(forged(DELTA.encode(), [(4, bytes(size))], ltx.BLOCK))


def test_an_unknown_form_of_pages() -> None:
    with pytest.raises(LTXError, match="page 4 has the flags 0x2, neither frame nor block"):
        ltx.decode(forged(DELTA.encode(), [(4, noise(4))], 2))


@pytest.mark.parametrize(
    "index",
    [
        lambda index: b"\5" + index[1:],  # another page number
        lambda index: index[:1] + b"\x65" + index[2:],  # another offset
        lambda index: index[:-1] + b"\4\x64\x64\0",  # one more entry
        lambda index: b"\0",  # none
        lambda index: index[:-1],  # no zero at the end
        lambda index: b"",
    ],
)
def test_an_index_of_other_pages(index: Callable[[bytes], bytes]) -> None:
    with pytest.raises(LTXError, match="its page index is not that of its pages"):
        ltx.decode(forged(DELTA.encode(), [(4, noise(4))], index=index))


def test_a_database_checksum_afterwards() -> None:
    with pytest.raises(LTXError, match="it has a post-apply checksum, which its flags exclude"):
        ltx.decode(forged(DELTA.encode(), [], post_apply=1 << 63))


def test_another_checksum() -> None:
    data = bytearray(encoded(DELTA, []))
    data[-1] ^= 1
    message = (
        f"its checksum is {data[-8:].hex()}, that of its content {encoded(DELTA, [])[-8:].hex()}"
    )
    with pytest.raises(LTXError, match=message):
        ltx.decode(bytes(data))


# ---- damage

SMALL = [(2, text(2)), (3, noise(3)), (9, bytes(SIZE))]


def small(form: int) -> bytes:
    return encoded(DELTA, SMALL) if form == ltx.FRAME else forged(DELTA.encode(), SMALL, form)


def outcome(data: bytes) -> Any:
    """What a file decodes to; None where the damage is detected."""
    try:
        return ltx.decode(data)
    except LTXError:
        return None


def corruptions(data: bytes) -> Iterator[bytes]:
    for at, byte in enumerate(data):
        yield from (data[:at] + bytes([b]) + data[at + 1 :] for b in range(256) if b != byte)


def test_every_corruption_of_a_byte_is_detected() -> None:
    found = [data for data in corruptions(small(ltx.FRAME)) if outcome(data) is not None]
    assert found == []


def test_every_corruption_of_a_byte_in_block_form_is_detected_or_harmless() -> None:
    """The format has no checksum of compressed blocks, some bits of which mean nothing."""
    data = small(ltx.BLOCK)
    original, compressed, at = ltx.decode(data), set(), ltx.HEADER_SIZE
    for _, page in SMALL:
        end = at + 6 + len(blocked(page))
        compressed |= set(range(at + 10, end))
        at = end
    for corrupted in corruptions(data):
        found = outcome(corrupted)
        if found is not None:
            assert found == original
            assert {n for n in range(len(data)) if corrupted[n] != data[n]} <= compressed


@pytest.mark.parametrize("form", FORMS)
def test_truncation_at_every_length_is_detected(form: int) -> None:
    data = small(form)
    for length in range(len(data)):
        with pytest.raises(LTXError, match=r"it ends (after \d+ bytes, )?inside"):
            ltx.decode(data[:length])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("more", [b"\0", b"\xff" * 100, encoded(DELTA, [])])
def test_bytes_after_the_end_are_detected(form: int, more: bytes) -> None:
    with pytest.raises(LTXError, match="more bytes follow its end"):
        ltx.decode(small(form) + more)
    with pytest.raises(LTXError, match="more bytes follow its end"):
        list(Reader([small(form), b"", more]))


@given(st.binary(max_size=300))
def test_anything_after_a_header_is_a_file_or_an_error(data: bytes) -> None:
    assert outcome(DELTA.encode() + data) is None


# ---- files that claim too much


@pytest.mark.parametrize(
    ("form", "body", "message"),
    [
        (ltx.FRAME, lambda _: lz4.frame.compress(bytes(100_000)), "page 4 has more than 512 bytes"),
        (
            ltx.FRAME,
            lambda page: lz4.frame.LZ4FrameCompressor().begin(1 << 60) + framed(page)[7:],
            "page 4 is damaged",
        ),
        (
            ltx.BLOCK,
            lambda _: struct.pack(">I", 0xFFFFFFFF) + bytes(600),
            "page 4 claims 4294967295 compressed bytes; 530 is the most",
        ),
        (ltx.BLOCK, lambda _: blocked(bytes(100_000)), "page 4 is damaged"),
    ],
    ids=["frame", "content size", "block size", "block"],
)
def test_nothing_is_allocated_by_claim(
    form: int, body: Callable[[bytes], bytes], message: str
) -> None:
    data = forged(DELTA.encode(), [(4, noise(4))], form, body=body)
    tracemalloc.start()
    try:
        with pytest.raises(LTXError, match=message):
            ltx.decode(data)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_frame_longer_than_any_page() -> None:
    skippable = struct.pack("<II", 0x184D2A50, 10_000) + bytes(10_000)
    data = forged(DELTA.encode(), [(4, noise(4))], body=lambda page: skippable + framed(page))
    with pytest.raises(LTXError, match="inside page 4, or its frame is longer than any page"):
        ltx.decode(data)


# ---- the end of a file


def test_counting_pages_in_the_tail_of_a_file() -> None:
    data = small(ltx.FRAME)
    length = int.from_bytes(data[-24:-16])
    for size in range(len(data) + 1):
        tail = data[len(data) - size :]
        assert ltx.pages_in(tail) == (3 if size >= 24 + length else None)
    assert ltx.pages_in(encoded(DELTA, [])) == 0


@pytest.mark.parametrize("index", [b"", b"\1\2\3", b"\1\2\0", b"\x80"])
def test_an_index_that_is_none(index: bytes) -> None:
    tail = index + struct.pack(">QQQ", len(index), 0, 1 << 63)
    with pytest.raises(LTXError, match="its page index is no list of"):
        ltx.pages_in(tail)


def test_a_checksum_from_the_tail() -> None:
    data = encoded(DELTA, [])
    assert ltx.checksum_of(data) == ltx.checksum_of(data[-8:]) == ltx.decode(data).checksum
    with pytest.raises(LTXError, match="its last 7 bytes are too few for a checksum of 8"):
        ltx.checksum_of(data[-7:])
    with pytest.raises(LTXError, match="are no checksum, whose highest bit is always set"):
        ltx.checksum_of(bytes(16))
