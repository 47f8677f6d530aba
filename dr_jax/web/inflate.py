"""Undo content encodings without ever holding more than a cap.

In:    bytes as they came, the Content-Encoding header
Out:   the content, and whether it was cut: by the cap, or because the encoded bytes end early
Holds: memory grows by the cap, a window for each encoding and one step, however large the content claims to be; what comes
       out of an encoding below another one is never held at all
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterator
from io import BytesIO

import brotli  # type: ignore[import-untyped]
import zstandard

ACCEPTED = "gzip, deflate, br, zstd"

_STEP = 65_536
_WINDOW = 8 << 20  # bytes; RFC 9659: nobody has to take a larger zstd window over HTTP
_SLICE = 64  # bytes of zstd at a time: four of them can stand for 128 KiB
_MOST = 2  # encodings on top of each other
_MEMBERS = 10_000  # of gzip, or frames of zstd, in a row: an empty one costs time and counts for no content
_NONE = ("", "identity", "none", "utf-8")  # the last two are no encodings, but servers say them


class EncodingError(ValueError):
    """The content encoding is unknown, or the bytes are not in it."""


def inflate(wire: deque[bytes], encoding: str, cap: int) -> tuple[bytes, bool]:
    """Return at most `cap` bytes of content, and whether that is not all.

    Args:
        wire: as received, piece by piece; it is empty afterwards.
        encoding: the Content-Encoding header; "" for none.
        cap: in bytes, for what comes out of every layer.

    Raises:
        EncodingError: an encoding is not known, there are too many, or nothing could be decoded.
    """
    names = [name.strip().lower() for name in encoding.split(",") if name.strip().lower() not in _NONE]
    if len(names) > _MOST or names.count("br") > 1:  # each decoder of brotli may need a window of 16 MiB
        raise EncodingError(f"{len(names)} content encodings on top of each other")
    if not names or not any(wire):
        content = b"".join(wire)
        return content[:cap], len(content) > cap
    layers: list[_Layer] = []
    pieces = _drained(wire)
    for name in reversed(names):
        if name not in _CODECS:
            raise EncodingError(f"content encoding {name[:40]!r}")
        layers.append(_Layer(name, pieces, cap))
        pieces = iter(layers[-1])
    unpacked = BytesIO()
    for piece in pieces:
        unpacked.write(piece)
    for layer in layers:
        if layer.cut and not layer.size:
            raise EncodingError(f"a body that is not {layer.name}")
    return unpacked.getvalue(), any(layer.cut for layer in layers)


def _drained(wire: deque[bytes]) -> Iterator[bytes]:
    while wire:
        yield wire.popleft()


class _Layer:
    """What comes out of one encoding: `cap` bytes at most; a broken stream gives what came before the break."""

    def __init__(self, name: str, pieces: Iterator[bytes], cap: int) -> None:
        self.name, self._pieces, self._cap = name, pieces, cap
        self.size, self.cut = 0, False

    def __iter__(self) -> Iterator[bytes]:
        try:
            for piece in _CODECS[self.name](self._pieces):
                kept = piece[: self._cap - self.size]
                self.size += len(kept)
                if kept:
                    yield kept
                if len(kept) < len(piece):
                    self.cut = True
                    return
        except (zlib.error, zstandard.ZstdError, brotli.error, EOFError):
            self.cut = True


def _gzip(pieces: Iterator[bytes]) -> Iterator[bytes]:
    codec, begun, members = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS), False, 0
    for piece in pieces:
        rest = piece
        while rest:
            if not begun and members:
                rest = rest.lstrip(b"\0")  # padding is allowed between members, which may follow each other
                if not rest:
                    break
            begun = True
            yield from _zlib(codec, rest)
            rest = b""
            if codec.eof:
                rest, begun, members = codec.unused_data, False, members + 1
                if members == _MEMBERS:
                    raise EOFError
                codec = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    if begun:
        raise EOFError


def _deflate(pieces: Iterator[bytes]) -> Iterator[bytes]:
    # "deflate" means a zlib stream, but some servers send the bare one; the first two bytes tell
    start = next(pieces, b"")
    while len(start) < 2 and (more := next(pieces, b"")):
        start += more
    with_header = len(start) > 1 and start[0] & 0x0F == 8 and (start[0] << 8 | start[1]) % 31 == 0
    codec = zlib.decompressobj(wbits=zlib.MAX_WBITS if with_header else -zlib.MAX_WBITS)
    yield from _zlib(codec, start)
    for piece in pieces:
        if codec.eof:
            return
        yield from _zlib(codec, piece)
    if not codec.eof:
        raise EOFError


def _zlib(codec: zlib._Decompress, piece: bytes) -> Iterator[bytes]:
    """Yield all that can be said after this piece."""
    rest = piece
    while not codec.eof:
        out = codec.decompress(rest, _STEP)
        rest = codec.unconsumed_tail
        if out:
            yield out
        if not rest and len(out) < _STEP:
            return


def _brotli(pieces: Iterator[bytes]) -> Iterator[bytes]:
    codec = brotli.Decompressor()
    for piece in pieces:
        rest = piece
        while True:
            out = codec.process(rest, output_buffer_limit=_STEP)
            rest = b""
            if out:
                yield out
            if not out or codec.is_finished():
                break
        if codec.is_finished():
            return
    raise EOFError


def _zstd(pieces: Iterator[bytes]) -> Iterator[bytes]:
    frames = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
    codec, begun, members = frames.decompressobj(), False, 0
    for piece in pieces:
        place = 0
        while place < len(piece):
            out = codec.decompress(piece[place : place + _SLICE])
            begun, place = True, min(place + _SLICE, len(piece))
            if out:
                yield out
            if codec.eof:  # frames may follow each other
                place -= len(codec.unused_data)
                codec, begun, members = frames.decompressobj(), False, members + 1
                if members == _MEMBERS:
                    raise EOFError
    if begun:
        raise EOFError


_CODECS: dict[str, Callable[[Iterator[bytes]], Iterator[bytes]]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
}
