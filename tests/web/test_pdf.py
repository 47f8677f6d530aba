import runpy
import struct
import zlib
from pathlib import Path

import pytest

from dr_jax.web.extract import extract
from dr_jax.web.page import Page, WebError
from dr_jax.web.workers import Extractors, ExtractSettings

MAKE = runpy.run_path(str(Path(__file__).parent / "pages" / "make.py"))["pdf"]
REPORT = MAKE([["The quay is long, and was re-", "built in 1931."], [], ["It has two cranes."]], "A report", "19320115")

ROWS = struct.pack(">BHBBHBBHB", 0, 0, 0, 2, 2, 0, 1, 9, 0)  # the catalogue is said to be inside the table itself
OF_ITSELF = (
    b"%%PDF-1.5\n2 0 obj\n<< /Type /XRef /Size 3 /Root 1 0 R /W [1 2 1] /Length %d >>\nstream\n%b\nendstream\nendobj\n"
    b"startxref\n9\n%%%%EOF\n" % (len(ROWS), ROWS)
)


def read(body: bytes, content_type: str = "application/pdf") -> Page | WebError:
    return extract(body, "http://a.org/report.pdf", content_type)


@pytest.mark.parametrize("content_type", ["application/pdf", "application/x-pdf", ""])
def test_title_date_and_pages(content_type: str) -> None:
    expected = "The quay is long, and was rebuilt in 1931.\n\nIt has two cranes."
    assert read(REPORT, content_type) == Page(
        "http://a.org/report.pdf", "A report", expected, (), "application/pdf", date="1932-01-15"
    )


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "protocol"),
        (b"%PDF-1.7", "protocol"),
        (b"%PDF-1.4\n" + bytes(range(256)) * 40, "protocol"),
        (b"<html>not found</html>", "protocol"),
        (OF_ITSELF, "protocol"),  # which pypdf asserts to be otherwise
        (MAKE([[]], "Nothing", "20200101"), "empty"),  # as a scan is
        (REPORT.replace(b"/Info", b"/Encrypt << /Filter /Standard /V 2 /R 3 /P -4 /O (x) /U (y) >> /Info"), "denied"),
    ],
)
def test_what_cannot_be_read(body: bytes, kind: str) -> None:
    found = read(body)
    assert isinstance(found, WebError), found
    assert found.kind == kind


def test_a_cut_file_gives_what_can_be_saved_or_an_error() -> None:
    for end in range(0, len(REPORT), 37):
        found = read(REPORT[:end])
        assert isinstance(found, WebError) or "quay" in found.text or "cranes" in found.text


def bomb(size: int) -> bytes:
    """A page whose drawing, put in its place by an update of the file (ISO 32000-1, 7.5.6), unpacks to so many bytes."""
    packed = zlib.compress(b"BT /F1 12 Tf (boom) Tj ET " * (size // 26), 9)
    first = MAKE([["X"]], "Bomb", "20200101")
    before = int(first.rpartition(b"startxref\n")[2].split()[0])
    drawing = b"5 0 obj\n<< /Length %d /Filter /FlateDecode >>\nstream\n%b\nendstream\nendobj\n" % (len(packed), packed)
    table = b"xref\n5 1\n%010d 00000 n \ntrailer << /Size 7 /Root 1 0 R /Prev %d >>\n" % (len(first), before)
    return first + drawing + table + b"startxref\n%d\n%%%%EOF\n" % (len(first) + len(drawing))


def test_a_small_one_is_a_page_like_any_other() -> None:
    found = read(bomb(26))
    assert isinstance(found, Page), found
    assert found.text == "boom"


async def test_a_bomb_is_stopped_and_the_worker_goes_on() -> None:
    async with Extractors(ExtractSettings(memory_mb=512, timeout_s=30.0)) as pool:
        before = pool.pids
        found = await pool.extract(bomb(200 << 20), "http://a.org/b.pdf", "application/pdf", "")
        assert isinstance(found, WebError)
        page = await pool.extract(REPORT, "http://a.org/r.pdf", "application/pdf", "")
        assert isinstance(page, Page)
        assert pool.pids == before
