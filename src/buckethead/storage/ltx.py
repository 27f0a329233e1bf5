"""LTX, the page-delta format of Litestream: bytes to pages and back, and nothing else.

The rule: a file is right as a whole or it is an `LTXError`. Its ending (the page index and both
checksums) follows from its header and pages, so the writer appends the ending it has computed and
the reader computes the same one and compares. Nothing is allocated by what a file claims.

The layout, and what Litestream makes of it: native_notes/ltx.md. All integers are big-endian.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import lz4.block
import lz4.frame
from fastcrc import crc64

from ..image.pages import MAX_PAGE_SIZE, MIN_PAGE_SIZE, valid_page_size

HEADER_SIZE = 100
TRAILER_SIZE = 16
EMPTY_SIZE = 131
"""Bytes of a delta without pages."""

MAGIC = b"LTX1"
NO_CHECKSUM = 0x2  # the one flag: no rolling database checksums, with which Litestream restores
CHECKSUM_FLAG = 1 << 63  # set in every file checksum
PENDING_BYTE = 0x40000000  # where SQLite locks: the page there is never written
MAX_COMMIT = 0xFFFFFFFE  # SQLite's largest page count
MAX_TIMESTAMP = 253_402_300_799_999  # the last millisecond of the year 9999
FRAME, BLOCK = 0, 1  # the flags of a page: how its content is compressed

_FRAME_EXTRA = 64
"""Bytes that a frame may have beyond those of a page: LZ4 stores what it cannot compress, and its
header, checksums and marks take 35 at most."""

_PIECE = 256 * 1024
"""Bytes joined or compared in one call: under 0.1 ms, so that no other thread is kept waiting."""

_END_OF_PAGES = bytes(6)
_NO_POST_APPLY_CHECKSUM = bytes(8)

_header = struct.Struct(">4sIIIQQqQqqIIQ20s")
_page = struct.Struct(">IH")
_size = struct.Struct(">I")
_number = struct.Struct(">Q")


class LTXError(Exception):
    """The bytes are no sound LTX file, or the pages make none; the message is the broken rule."""


def lock_page(page_size: int) -> int:
    """The page number that no file may hold: SQLite keeps its locks there, and never content."""
    return PENDING_BYTE // page_size + 1


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself: it leads from the state at ``min_txid`` - 1 to ``max_txid``.

    ``page_size`` in bytes; ``commit``: pages of the database afterwards; ``timestamp`` in
    milliseconds since 1970; ``node_id``: who wrote it, 64 bits. With ``min_txid`` 1 the file is a
    snapshot and holds every page.
    """

    page_size: int
    commit: int
    min_txid: int
    max_txid: int
    timestamp: int
    node_id: int

    def encode(self) -> bytes:
        """The first 100 bytes of a file. Raises LTXError."""
        _check(self)
        return _header.pack(
            MAGIC,
            NO_CHECKSUM,
            self.page_size,
            self.commit,
            self.min_txid,
            self.max_txid,
            self.timestamp,
            *(0, 0, 0, 0, 0),  # the checksum before it and its place in a WAL
            self.node_id,
            b"",
        )

    @classmethod
    def decode(cls, data: bytes) -> "Header":
        """The header from the first 100 bytes of ``data``. Raises LTXError."""
        if len(data) < HEADER_SIZE:
            raise LTXError(f"it ends after {len(data)} bytes, inside the header of {HEADER_SIZE}")
        magic, flags, *fields = _header.unpack_from(data)
        page_size, commit, min_txid, max_txid, timestamp, before, *wal, node_id, reserved = fields
        if magic != MAGIC:
            raise LTXError("it does not begin with 'LTX1'")
        if flags != NO_CHECKSUM:
            raise LTXError(
                f"its flags are {flags:#x}, not {NO_CHECKSUM:#x} (no database checksums)"
            )
        if before:
            raise LTXError("it has a pre-apply checksum, which its flags exclude")
        if any(reserved):
            raise LTXError("its reserved header bytes are not zero")
        _check_wal(*wal)
        header = cls(page_size, commit, min_txid, max_txid, timestamp, node_id)
        _check(header)
        return header


_RULES: tuple[tuple[Callable[[Header], bool], str], ...] = (
    (
        lambda h: valid_page_size(h.page_size),
        f"its page size {{0.page_size}} is no power of two in {MIN_PAGE_SIZE}..{MAX_PAGE_SIZE}",
    ),
    (lambda h: h.commit >= 1, "its database has {0.commit} pages; it must keep at least page 1"),
    (lambda h: h.commit <= MAX_COMMIT, "its database of {0.commit} pages is beyond SQLite's limit"),
    (lambda h: h.min_txid >= 1, "its first TXID is {0.min_txid}; TXIDs begin at 1"),
    (
        lambda h: h.min_txid <= h.max_txid,
        "its first TXID {0.min_txid} comes after its last, {0.max_txid}",
    ),
    (lambda h: h.max_txid < 1 << 64, "its last TXID {0.max_txid} has more than 64 bits"),
    (
        lambda h: 0 <= h.timestamp <= MAX_TIMESTAMP,
        "its timestamp {0.timestamp} is not in the years 1970 to 9999",
    ),
    (lambda h: 0 <= h.node_id < 1 << 64, "its node id is no number of 64 bits"),
)


def _check(header: Header) -> None:
    for holds, message in _RULES:
        if not holds(header):
            raise LTXError(message.format(header))


def _check_wal(offset: int, size: int, *salts: int) -> None:
    """What the file says of the WAL it was made from: not used here, yet the rules are checked."""
    if offset < 0 or size < 0:
        raise LTXError(f"its WAL offset {offset} or size {size} is negative")
    if not offset and (size or any(salts)):
        raise LTXError("it has a WAL size or salt without a WAL offset")


def _uvarint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


class _Tally:
    """What follows from the header and the pages so far: the next legal page, and the ending."""

    def __init__(self, header: Header, encoded: bytes) -> None:
        self._commit = header.commit
        self._snapshot = header.min_txid == 1
        self._lock_page = lock_page(header.page_size)
        self._last = 0
        self._offset = HEADER_SIZE
        self._crc = crc64.go_iso(encoded)
        self._ending = bytearray(_END_OF_PAGES)

    def follow(self, number: int) -> None:
        """Take ``number`` as the next page number. Raises LTXError."""
        if number < 1:
            raise LTXError(f"it has a page {number}; page numbers begin at 1")
        if number <= self._last:
            raise LTXError(f"page {number} comes after page {self._last}, out of order")
        if number > self._commit:
            raise LTXError(f"page {number} lies beyond the {self._commit} pages of its database")
        if number == self._lock_page:
            raise LTXError(f"it has page {number}, the lock page, which holds no content")
        if self._snapshot and number != self._following():
            raise LTXError(f"it is a snapshot and lacks page {self._following()}")
        self._last = number

    def _following(self) -> int:
        return self._last + (2 if self._last + 1 == self._lock_page else 1)

    def add(self, head: bytes, page: bytes, length: int) -> None:
        """Count the page just followed: its header, content and length in the file."""
        self._crc = crc64.go_iso(page, crc64.go_iso(head, self._crc))
        self._ending += _uvarint(self._last) + _uvarint(self._offset) + _uvarint(length)
        self._offset += length

    def finish(self) -> tuple[memoryview, bytes]:
        """What comes after the pages: six zeros and the index; the trailer. Raises LTXError."""
        if self._snapshot and self._following() <= self._commit:
            raise LTXError(f"it is a snapshot and lacks page {self._following()}")
        self._ending.append(0)
        self._ending += _number.pack(len(self._ending) - len(_END_OF_PAGES))
        ending = memoryview(self._ending)
        crc = self._crc
        for piece in _pieces(ending):
            crc = crc64.go_iso(bytes(piece), crc)
        crc = crc64.go_iso(_NO_POST_APPLY_CHECKSUM, crc)
        return ending, _NO_POST_APPLY_CHECKSUM + _number.pack(CHECKSUM_FLAG | crc)


def _pieces(data: bytes | bytearray | memoryview) -> Iterator[memoryview]:
    view = memoryview(data)
    for at in range(0, len(view), _PIECE):
        yield view[at : at + _PIECE]


def encode(header: Header, pages: Iterable[tuple[int, bytes]]) -> Iterator[bytes]:
    """The file of ``header`` and ``pages`` (number, content), in chunks of 256 to 512 KiB.

    Page numbers must rise; equal input gives equal bytes under one version of LZ4. The last 8
    bytes of the last chunk are the file checksum. Raises LTXError, naming the rule that the header
    or a page breaks.
    """
    parts: list[bytes | memoryview] = []
    size = 0
    for fragment in _fragments(header, pages):
        parts.append(fragment)
        size += len(fragment)
        if size >= _PIECE:
            yield b"".join(parts)
            parts, size = [], 0
    if parts:
        yield b"".join(parts)


def _fragments(header: Header, pages: Iterable[tuple[int, bytes]]) -> Iterator[bytes | memoryview]:
    encoded = header.encode()
    yield encoded
    tally = _Tally(header, encoded)
    for number, page in pages:
        tally.follow(number)
        if len(page) != header.page_size:
            raise LTXError(f"page {number} has {len(page)} bytes instead of {header.page_size}")
        head = _page.pack(number, FRAME)
        framed = head + _frame(page)
        tally.add(head, page, len(framed))
        yield framed
    ending, trailer = tally.finish()
    yield from _pieces(ending)
    yield trailer


def _frame(page: bytes) -> bytes:
    # The checksum of the compressed block is there for `verify`: some flipped bits of compressed
    # content give the same page, so neither of the checksums over the content would see them.
    return lz4.frame.compress(  # type: ignore[no-any-return]
        page,
        block_size=lz4.frame.BLOCKSIZE_MAX64KB,
        block_linked=False,
        block_checksum=True,
        content_checksum=True,
        store_size=False,
    )


class _Stream:
    """Chunks as one run of bytes that is looked at piece by piece."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._source = (piece for chunk in chunks for piece in _pieces(chunk))
        self._view = memoryview(b"")

    def peek(self, length: int) -> memoryview:
        """The next ``length`` bytes; fewer only where the stream ends."""
        if len(self._view) < length:
            self._fill(length)
        return self._view[:length]

    def _fill(self, length: int) -> None:
        pieces = [self._view]
        missing = length - len(self._view)
        for piece in self._source:
            pieces.append(piece)
            missing -= len(piece)
            if missing <= 0:
                break
        self._view = memoryview(b"".join(pieces))

    def skip(self, length: int) -> None:
        self._view = self._view[length:]

    def take(self, length: int, part: str) -> bytes:
        """The next ``length`` bytes, which are in ``part`` of the file. Raises LTXError."""
        found = bytes(self.peek(length))
        if len(found) < length:
            raise LTXError(f"it ends inside {part}")
        self.skip(length)
        return found


class Reader:
    """Reads a file of either form from chunks of any size, holding about one chunk of it.

    Iterate once: it yields (page number, content), then compares the ending. Only when it is
    exhausted is what it yielded known to be right, and ``checksum`` the file checksum (0 before).
    """

    header: Header
    checksum: int

    def __init__(self, chunks: Iterable[bytes]) -> None:
        """Read the header from ``chunks``. Raises LTXError."""
        self._stream = _Stream(chunks)
        encoded = bytes(self._stream.peek(HEADER_SIZE))
        self.header = Header.decode(encoded)
        self.checksum = 0
        self._stream.skip(HEADER_SIZE)
        self._tally = _Tally(self.header, encoded)
        self._decompressor = lz4.frame.LZ4FrameDecompressor()

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """The pages in rising order. Raises LTXError at any violation."""
        stream, tally, page_size = self._stream, self._tally, self.header.page_size
        while (start := bytes(stream.peek(_page.size))) != _END_OF_PAGES:
            if len(start) < _page.size:
                raise LTXError("it ends inside the pages")
            number, form = _page.unpack(start)
            tally.follow(number)
            if form == FRAME:
                head, page, length = self._frame(number)
            elif form == BLOCK:
                head, page, length = self._block(number)
            else:
                raise LTXError(f"page {number} has the flags {form:#x}, neither frame nor block")
            if len(page) != page_size:
                raise LTXError(f"page {number} has {len(page)} bytes instead of {page_size}")
            tally.add(head, page, length)
            stream.skip(length)
            yield number, page
        self._end(*tally.finish())

    def _frame(self, number: int) -> tuple[bytes, bytes, int]:
        """The header, content and length in the file of a page in frame form."""
        page_size, decompressor = self.header.page_size, self._decompressor
        data = bytes(self._stream.peek(_page.size + page_size + _FRAME_EXTRA))
        try:
            page = decompressor.decompress(data[_page.size :], max_length=page_size + 1)
        except RuntimeError as error:
            raise LTXError(f"page {number} is damaged: {error}") from error
        if len(page) > page_size:
            raise LTXError(f"page {number} has more than {page_size} bytes")
        if not decompressor.eof:
            raise LTXError(f"it ends inside page {number}, or its frame is longer than any page")
        return data[: _page.size], page, len(data) - len(decompressor.unused_data or b"")

    def _block(self, number: int) -> tuple[bytes, bytes, int]:
        """The header, content and length in the file of a page in block form."""
        page_size = self.header.page_size
        start = _page.size + _size.size
        limit = page_size + page_size // 255 + 16  # no block of a page is longer (lz4.h)
        data = bytes(self._stream.peek(start + limit))
        if len(data) < start:
            raise LTXError(f"it ends inside page {number}")
        (size,) = _size.unpack_from(data, _page.size)
        if size > limit:
            raise LTXError(f"page {number} claims {size} compressed bytes; {limit} is the most")
        if len(data) < start + size:
            raise LTXError(f"it ends inside page {number}")
        block = data[start : start + size]
        try:
            page = lz4.block.decompress(block, uncompressed_size=page_size)
        except lz4.block.LZ4BlockError as error:
            raise LTXError(f"page {number} is damaged: {error}") from error
        return data[:start], page, start + size

    def _end(self, ending: memoryview, trailer: bytes) -> None:
        """Compare what follows the pages with what must."""
        stream, checksum = self._stream, trailer[8:]
        for piece in _pieces(ending):
            if stream.take(len(piece), "the page index") != piece:
                raise LTXError("its page index is not that of its pages")
        if stream.take(8, "the trailer") != _NO_POST_APPLY_CHECKSUM:
            raise LTXError("it has a post-apply checksum, which its flags exclude")
        found = stream.take(8, "the trailer")
        if found != checksum:
            raise LTXError(f"its checksum is {found.hex()}, that of its content {checksum.hex()}")
        if stream.peek(1):
            raise LTXError("more bytes follow its end")
        self.checksum = checksum_of(checksum)


@dataclass(frozen=True, slots=True)
class Contents:
    """A whole file: its pages by number, in rising order, and its file checksum."""

    header: Header
    pages: dict[int, bytes]
    checksum: int


def decode(data: bytes) -> Contents:
    """A whole file of either form, completely verified. Raises LTXError."""
    reader = Reader([data])
    pages = dict(reader)
    return Contents(reader.header, pages, reader.checksum)


def checksum_of(tail: bytes) -> int:
    """The file checksum from the last 8 or more bytes of a file. Raises LTXError."""
    if len(tail) < 8:
        raise LTXError(f"its last {len(tail)} bytes are too few for a checksum of 8")
    (checksum,) = _number.unpack_from(tail, len(tail) - 8)
    if not checksum & CHECKSUM_FLAG:
        raise LTXError("its last 8 bytes are no checksum, whose highest bit is always set")
    return int(checksum)


def pages_in(tail: bytes) -> int | None:
    """How many pages a file holds, from the index at the end of it.

    None when the last bytes ``tail`` do not reach back over the whole index: try again with more
    of them, unless this is all of the file already. Checks no more than it must to count, so a
    damaged file may give any number. Raises LTXError.
    """
    end = len(tail) - TRAILER_SIZE - _number.size
    if end < 0:
        return None
    (length,) = _number.unpack_from(tail, end)
    if length > end:
        return None
    index = tail[end - length : end]
    numbers = len(index.translate(None, _CONTINUED))
    if not index.endswith(b"\0") or numbers % 3 != 1:
        raise LTXError("its page index is no list of page numbers, offsets and lengths")
    return numbers // 3


_CONTINUED = bytes(range(0x80, 0x100))  # every byte of a varint but its last
