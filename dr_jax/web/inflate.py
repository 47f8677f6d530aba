"""Undo content encodings without ever holding more than a cap.

In:    bytes as they came, the Content-Encoding header
Out:   the content, and whether it was cut: by the cap, or because the encoded bytes end early
Holds: memory grows by the cap and one step, however large the content claims to be
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

import zstandard

ACCEPTED = "gzip, deflate, zstd"

_STEP = 65_536
_WINDOW = 8 << 20  # bytes; RFC 9659: nobody has to take a larger zstd window over HTTP
_SLICE = 64  # bytes of zstd at a time: four of them can stand for 128 KiB
_MOST = 3  # encodings on top of each other


class EncodingError(ValueError):
    """The content encoding is unknown, or the bytes are not in it."""


def inflate(wire: bytes, encoding: str, cap: int) -> tuple[bytes, bool]:
    """Return at most `cap` bytes of content, and whether that is not all.

    Args:
        wire: as received.
        encoding: the Content-Encoding header; "" for none.
        cap: in bytes, for what comes out of every layer.

    Raises:
        EncodingError: an encoding is not known, there are too many, or nothing could be decoded.
    """
    layers = [name.strip().lower() for name in encoding.split(",") if name.strip().lower() not in ("", "identity")]
    if len(layers) > _MOST:
        raise EncodingError(f"{len(layers)} content encodings on top of each other")
    content, cut = wire, False
    for name in reversed(layers if wire else []):
        if name not in _CODECS:
            raise EncodingError(f"content encoding {name[:40]!r}")
        content, more = _bounded(_CODECS[name](content), cap)
        if more and not content:
            raise EncodingError(f"a body that is not {name}")
        cut = cut or more
    return content[:cap], cut or len(content) > cap


def _bounded(pieces: Iterator[bytes], cap: int) -> tuple[bytes, bool]:
    """Join pieces until the cap; a broken stream gives what came before the break."""
    kept, size = [], 0
    try:
        for piece in pieces:
            kept.append(piece)
            size += len(piece)
            if size > cap:
                break
    except (zlib.error, zstandard.ZstdError, EOFError):
        return b"".join(kept), True
    return b"".join(kept)[:cap], size > cap


def _gzip(wire: bytes) -> Iterator[bytes]:
    rest = wire
    while rest:  # members may follow each other
        codec = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        yield from _zlib(codec, rest)
        rest = codec.unused_data.lstrip(b"\0")  # padding is allowed


def _deflate(wire: bytes) -> Iterator[bytes]:
    # "deflate" means a zlib stream, but some servers send the bare one; the first two bytes tell
    with_header = len(wire) > 1 and wire[0] & 0x0F == 8 and (wire[0] << 8 | wire[1]) % 31 == 0
    return _zlib(zlib.decompressobj(wbits=zlib.MAX_WBITS if with_header else -zlib.MAX_WBITS), wire)


def _zlib(codec: zlib._Decompress, wire: bytes) -> Iterator[bytes]:
    rest = wire
    while not codec.eof:
        piece = codec.decompress(rest, _STEP)
        rest = codec.unconsumed_tail
        if piece:
            yield piece
        elif not rest and not codec.eof:
            raise EOFError


def _zstd(wire: bytes) -> Iterator[bytes]:
    rest = memoryview(wire)
    while rest:  # frames may follow each other
        codec = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
        while rest and not codec.eof:
            piece = codec.decompress(rest[:_SLICE])
            rest = rest[_SLICE:]
            if piece:
                yield piece
        if not codec.eof:
            raise EOFError
        if codec.unused_data:
            rest = memoryview(codec.unused_data + bytes(rest))


_CODECS: dict[str, Callable[[bytes], Iterator[bytes]]] = {"gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate, "zstd": _zstd}
