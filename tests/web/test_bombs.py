"""Show: bombs are stopped under the cap, and the process that fetches them hardly grows."""

import asyncio
import gzip
import json
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brotli
import pytest
import zstandard

from dr_jax.web.workers import ExtractSettings
from tests.web.conftest import Site
from tests.web.test_pdf import bomb

ROOT = Path(__file__).parents[2]
CODECS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": lambda content: brotli.compress(content, quality=4, lgwin=24),
    "zstd": zstandard.ZstdCompressor().compress,
}
LARGE = b"<p>boom boom boom</p>\n" * (32_000_000 // 22)
SOME = ("gzip-members", "deflate-moved", "br-dense", "zstd-twice", "pdf-packed")
MORE = tuple(f"{name}-{form}".rstrip("-") for name in CODECS for form in ("", "twice", "dense", "moved"))
MORE += ("br-gzip", "gzip-br", "gzip-dense-twice", "deflate-dense-twice", "zstd-dense-twice", "zstd-members", "br-html", "pdf")
MEASURED = Path("/proc/self/clear_refs").exists()


def noise(size: int) -> bytes:
    """Text that packs badly, so that as many bytes travel as may."""
    return os.urandom(size * 3 // 4).hex().encode()[:size]


def built(name: str) -> tuple[bytes, dict[str, str]]:
    """Return a bomb of 32 MB (a PDF of 200 MB), and the headers it is sent with."""
    codec, _, form = name.partition("-")
    if codec == "pdf":
        content, headers = bomb(200 << 20), {"Content_Type": "application/pdf"}
        return (gzip.compress(content), headers | {"Content_Encoding": "gzip"}) if form else (content, headers)
    pack = CODECS[codec]
    match form:
        case "dense":
            content = pack(noise(12_000_000))
        case "twice":
            content = pack(pack(LARGE))
        case "dense-twice":
            content = pack(pack(noise(12_000_000)))
        case "br" | "gzip":  # on top of it
            content = CODECS[form](pack(LARGE))
        case "members":
            content = pack(LARGE[:2_200_000]) * 15
        case _:
            content = pack(LARGE)
    encoding = f"{codec}, {codec}" if form.endswith("twice") else f"{codec}, {form}" if form in CODECS else codec
    return content, {"Content_Encoding": encoding, "Content_Type": "text/html" if form == "html" else "text/plain"}


async def exploded(port: int) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.web.explode", str(port)),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 120)
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.skipif(not MEASURED, reason="the peak memory of a process is only told by Linux")
@pytest.mark.parametrize("name", [*SOME, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE if name not in SOME)])
async def test_bombs_are_stopped_and_the_process_hardly_grows(name: str, site: Site) -> None:
    """Packed once, packed twice, member after member, behind a redirect, packed badly; each in a fresh process."""
    content, headers = built(name)
    site.page("/calm", "<p>A page as any other.")
    site.page("/there", content, **headers)
    site.page("/bomb", content, 302 if name.endswith("moved") else 200, **headers, Location="/there")
    told = await exploded(site.port)
    print(name, told)
    match name:
        case "pdf" | "pdf-packed":
            assert told["ended"] == "protocol"
            assert told["worker"] < 32 << 20
        case "br-twice":  # not even begun
            assert told["ended"] == "protocol"
        case "br-html":  # which may take its reader too long
            assert told["truncated"] or told["ended"] == "extract"
        case _:
            assert (told["ended"], told["truncated"]) == ("page", True)
    assert told["parent"] < 32 << 20
    assert told["wire"] <= (4 << 20) + 65_536
    assert told.get("worker_peak", 0) < ExtractSettings().memory_mb << 20
