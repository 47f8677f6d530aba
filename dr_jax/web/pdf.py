"""Read the text of a PDF, page after page.

In:    bytes
Out:   title, text, date; whether there was more than is read
Drops: pictures, so that a scan gives no text; what has to be unlocked with a password
Holds: what a stream may unpack to is bounded, and so are pages and characters; time and memory are the worker's to bound
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from io import BytesIO

from pypdf import PdfReader, filters
from pypdf.errors import PyPdfError

_MAX_PAGES = 400
_MAX_CHARS = 500_000
_MAX_STREAM = 16 << 20  # bytes that one stream may unpack to
_DATE = re.compile(r"^D:(\d{4})(\d\d)?(\d\d)?")
_BROKEN = re.compile(r"(?<=[a-zà-ÿ])-\n(?=[a-zà-ÿ])")  # a word parted at the end of its line
_SPACES = re.compile(r"[ \t]+")

for _limit in ("ZLIB_MAX_OUTPUT_LENGTH", "LZW_MAX_OUTPUT_LENGTH", "RUN_LENGTH_MAX_OUTPUT_LENGTH"):
    if hasattr(filters, _limit):  # older versions have fewer of them; the worker's memory is bounded all the same
        setattr(filters, _limit, _MAX_STREAM)
logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of every irregularity that it reads over


class PdfError(ValueError):
    """Bytes that claim to be a PDF and cannot be read as one; a sentence's end that says why."""


@dataclass(frozen=True, slots=True)
class Pdf:
    """What a PDF says; `date` as YYYY-MM-DD or empty, `more` whether a cap cut it."""

    title: str
    text: str
    date: str
    more: bool


def read(body: bytes) -> Pdf:
    """Read a PDF.

    Raises:
        PdfError: it is none, is broken, or is locked.
    """
    try:
        reader = PdfReader(BytesIO(body))
        if reader.is_encrypted and not reader.decrypt(""):
            raise PdfError("is locked with a password")
        pages, size, more = list[str](), 0, False
        for number, page in enumerate(reader.pages):
            if number == _MAX_PAGES or size > _MAX_CHARS:
                more = True
                break
            pages.append(_tidy(page.extract_text()))
            size += len(pages[-1])
        title, date = _about(reader)
    except PdfError:
        raise
    except MemoryError:
        raise
    except (PyPdfError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, OSError, RecursionError) as error:
        # pypdf meets broken files with errors of every kind
        raise PdfError("cannot be read as a PDF") from error
    return Pdf(title, "\n\n".join(filter(None, pages)), date, more)


def _tidy(text: str) -> str:
    joined = _BROKEN.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return "\n".join(line for line in (_SPACES.sub(" ", one).strip() for one in joined.split("\n")) if line)


def _about(reader: PdfReader) -> tuple[str, str]:
    found = reader.metadata
    if found is None:
        return "", ""
    title, made = found.get("/Title"), _DATE.match(str(found.get("/CreationDate", "")))
    date = "-".join(part or "01" for part in made.groups()) if made else ""
    return " ".join(str(title or "").split())[:300], date
