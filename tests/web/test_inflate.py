import gzip
import random
import tracemalloc
import zlib
from collections import deque

import brotli
import pytest
import zstandard

from dr_jax.web import inflate as module
from dr_jax.web.inflate import EncodingError

TEXT = b"The bridge was opened in 1423. " * 200


def inflate(wire: bytes, encoding: str, cap: int) -> tuple[bytes, bool]:
    """In pieces as they might come."""
    return module.inflate(deque(wire[start : start + 60_001] for start in range(0, len(wire), 60_001)), encoding, cap)


def raw_deflate(content: bytes) -> bytes:
    codec = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return codec.compress(content) + codec.flush()


CODECS = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize(
    ("wire", "encoding"),
    [
        (TEXT, ""),
        (TEXT, "identity"),
        *((code(TEXT), name) for name, code in CODECS.items()),
        (gzip.compress(TEXT), "X-GZIP"),
        (raw_deflate(TEXT), "deflate"),
        (gzip.compress(zlib.compress(TEXT)), "deflate, gzip"),
        (brotli.compress(CODECS["zstd"](TEXT)), "identity, zstd, br"),
        (TEXT, "utf-8"),
        (gzip.compress(TEXT) + b"\0" * 100_000 + gzip.compress(b""), "gzip"),
        (gzip.compress(TEXT[:100]) + gzip.compress(TEXT[100:]) + b"\0\0", "gzip"),
        (CODECS["zstd"](TEXT[:100]) + CODECS["zstd"](TEXT[100:]), "zstd"),
    ],
)
def test_what_was_packed_comes_out(wire: bytes, encoding: str) -> None:
    assert inflate(wire, encoding, 1 << 20) == (TEXT, False)


@pytest.mark.parametrize("name", CODECS)
def test_a_bomb_stops_at_the_cap(name: str) -> None:
    """64 MB of zeros, packed once, twice, and member after member."""
    once = CODECS[name](b"\0" * (16 << 20))
    bombs = [(once, name), (gzip.compress(once), f"{name}, gzip")]
    if name != "br":
        bombs.append((CODECS[name](once), f"{name}, {name}"))
    if name in ("gzip", "zstd"):  # the other two have no members
        bombs.append((once * 4, name))
    tracemalloc.start()
    for bomb, encoding in bombs:
        body, cut = inflate(bomb, encoding, 1 << 20)
        assert (len(body), cut) == (1 << 20, True)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("name", CODECS)
def test_what_breaks_off_is_kept_up_to_there(name: str) -> None:
    content = random.Random(0).randbytes(300_000).hex().encode()
    packed = CODECS[name](content)
    body, cut = inflate(packed[: len(packed) // 2], name, 1 << 20)
    assert cut
    assert body == content[: len(body)]


@pytest.mark.parametrize(
    ("wire", "encoding", "why"),
    [
        (TEXT, "compress", "compress"),
        (TEXT, "gzip", "not gzip"),
        (TEXT, "zstd", "not zstd"),
        (TEXT, "br", "not br"),
        (gzip.compress(TEXT), "zstd, gzip", "not zstd"),
        (TEXT, "gzip, br, gzip", "3 content"),
        (brotli.compress(brotli.compress(TEXT)), "br, br", "2 content"),
    ],
    ids=lambda value: value if isinstance(value, str) else "packed",
)
def test_what_cannot_be_unpacked_says_so(wire: bytes, encoding: str, why: str) -> None:
    with pytest.raises(EncodingError, match=why):
        inflate(wire, encoding, 1 << 20)


def test_an_empty_body_is_empty_in_any_encoding() -> None:
    assert [inflate(b"", name, 10) for name in ("", *CODECS)] == [(b"", False)] * 5


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_empty_members_do_not_go_on_for_ever(name: str) -> None:
    many = CODECS[name](b"") * 300_000
    content, cut = inflate(gzip.compress(CODECS[name](TEXT) + many), f"{name}, gzip", 7 << 20)
    assert (content, cut) == (TEXT, True)
