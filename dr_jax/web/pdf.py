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

from pypdf import PdfReader, apply_configuration, get_configuration
from pypdf.errors import DependencyError

_MAX_PAGES = 400
_MAX_CHARS = 500_000
_MAX_STREAM = 12 << 20  # bytes that one stream may unpack to
_DATE = re.compile(r"^D:(\d{4})(\d\d)?(\d\d)?")
_BROKEN = re.compile(r"(?<=[a-zà-ÿ])-\n(?=[a-zà-ÿ])")  # a word parted at the end of its line
_SPACES = re.compile(r"[ \t]+")

_LIMITS = get_configuration().with_overwrites(
    zlib_maximum_output_length=_MAX_STREAM,
    lzw_maximum_output_length=_MAX_STREAM,
    run_length_maximum_output_length=_MAX_STREAM,
    brotli_maximum_output_length=_MAX_STREAM,
    array_based_stream_maximum_output_length=_MAX_STREAM,
    stream_decoding_work_maximum_length=4 * _MAX_STREAM,
    stream_parsing_work_maximum_count=500_000,
    jbig2dec_binary=None,  # pictures are not read, and no program is started
    disable_legacy_handling=True,
)
_MAX_FAILURES = 3  # pages that may be broken before the rest is given up
logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of every irregularity that it reads over


class PdfError(ValueError):
    """Bytes that claim to be a PDF and cannot be read as one; the end of a sentence that says why."""


class LockedError(PdfError):
    """A PDF that needs a key."""


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
    with apply_configuration(_LIMITS):
        try:
            reader = PdfReader(BytesIO(body))
            if reader.is_encrypted and not reader.decrypt(""):
                raise LockedError("is locked with a password")
            text, more = _text(reader)
            title, date = _about(reader)
        except PdfError:
            raise
        except DependencyError as error:  # its cipher would need another library
            raise LockedError("is encrypted") from error
        except MemoryError:
            raise
        except Exception as error:  # pypdf meets broken files with errors of every kind, AssertionError among them
            raise PdfError("cannot be read as a PDF") from error
    return Pdf(title, text, date, more)


def _text(reader: PdfReader) -> tuple[str, bool]:
    """Return the text of all pages that can be read, and whether some were not."""
    pages, size, failures = list[str](), 0, 0
    for number in range(len(reader.pages)):
        if number == _MAX_PAGES or size > _MAX_CHARS or failures == _MAX_FAILURES:
            return "\n\n".join(pages), True
        try:
            text = _tidy(reader.pages[number].extract_text())
        except (MemoryError, DependencyError):
            raise
        except Exception:  # noqa: BLE001 - as above
            failures += 1
            continue
        if text:
            pages.append(text)
            size += len(text)
    if failures and not pages:
        raise PdfError("has no page that can be read")
    return "\n\n".join(pages), failures > 0


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
