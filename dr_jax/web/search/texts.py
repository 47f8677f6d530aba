"""Read the files of a corpus, one document after another.

In:    a folder of .txt, .md, .html and .jsonl files, or one .jsonl file
Out:   Document: a text, or HTML that is still to be read; Broken: a line or file that is left out, and why
Holds: one document is in memory at a time; links out of the folder are not followed
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from dr_jax.web.charset import decode

HOST = "corpus.local"
_PLAIN = {".txt": "text/plain", ".md": "text/markdown", ".markdown": "text/markdown"}
_HTML = {".html", ".htm"}
_LINES = {".jsonl", ".ndjson"}
_MAX_BYTES = 8 << 20  # of a document
_MAX_TEXT = 500_000
_MAX_TITLE = 300
_TEXTS = ("text", "contents", "content", "body")
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]")


@dataclass(frozen=True, slots=True)
class Document:
    """One document.

    Args:
        url: its own address, or one on `corpus.local`.
        own: that address on `corpus.local`, should another document have taken `url`.
        title: "" when it has none.
        text: the text, or HTML.
        content_type: of the text.
        truncated: whether a cap cut it.
    """

    url: str
    own: str
    title: str
    text: str
    content_type: str
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Broken:
    """Something that is left out; `place` is a line number, or 0 for a whole file."""

    place: int
    why: str


def files(root: Path) -> list[str]:
    """Return the names of a corpus's files, relative to the folder, in a fixed order; "" is the corpus itself, a file."""
    if root.is_file():
        return [""]
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            (Path(folder) / name).relative_to(root).as_posix()
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in {*_PLAIN, *_HTML, *_LINES}
        ]
    return sorted(found)


def documents(root: Path, name: str) -> Iterator[Document | Broken]:
    """Read one file of a corpus."""
    path = root / name if name else root
    suffix = path.suffix.lower()
    if suffix in _LINES or (not name and suffix not in _PLAIN and suffix not in _HTML):
        yield from _of_lines(path, name or path.name)
        return
    with path.open("rb") as file:
        body = file.read(_MAX_BYTES + 1)
    own = f"http://{HOST}/{quote(name or path.name)}"
    if suffix in _HTML:
        yield Document(own, own, "", decode(body[:_MAX_BYTES], ""), "text/html", len(body) > _MAX_BYTES)
        return
    text = cleaned(decode(body[:_MAX_BYTES], ""))
    if not text:
        yield Broken(0, "there is no text in it")
        return
    yield Document(own, own, _first_line(text) or path.stem, text[:_MAX_TEXT], _PLAIN[suffix], len(text) > _MAX_TEXT)


def cleaned(text: str) -> str:
    """Return what a reader sees of a text: no control characters, no halves of surrogate pairs."""
    return _UNSEEN.sub("", text.encode(errors="replace").decode().replace("\r\n", "\n").replace("\r", "\n")).strip()


def _of_lines(path: Path, name: str) -> Iterator[Document | Broken]:
    stem = quote(str(Path(name).with_suffix("")))
    with path.open("rb") as file:
        for number, row in enumerate(iter(lambda: file.readline(_MAX_BYTES + 1), b""), start=1):
            if len(row) > _MAX_BYTES:
                while not row.endswith(b"\n") and (row := file.readline(_MAX_BYTES)):
                    pass
                yield Broken(number, f"longer than {_MAX_BYTES >> 20} MiB")
            elif row.strip():
                yield _of_row(row, number, stem)


def _of_row(row: bytes, number: int, stem: str) -> Document | Broken:
    try:
        content = json.loads(row)
    except (ValueError, RecursionError):
        return Broken(number, "not JSON")
    if not isinstance(content, dict):
        return Broken(number, "not an object")
    html = content.get("html")
    text = html if isinstance(html, str) else next((content[one] for one in _TEXTS if isinstance(content.get(one), str)), "")
    text = cleaned(text)
    if not text:
        return Broken(number, f"no text in {', '.join(_TEXTS)} or html")
    place = _named(content, ("id", "_id", "docid")) or str(number)
    own = f"http://{HOST}/{stem}/{quote(place, safe='')}"
    url = _address(content)
    if url is None:
        return Broken(number, "its url is no http or https address")
    title = " ".join(cleaned(_named(content, ("title",))).split())[:_MAX_TITLE]
    if isinstance(html, str):
        return Document(url or own, own, title, text, "text/html")
    return Document(
        url or own, own, title or _first_line(text), text[:_MAX_TEXT], "text/plain", truncated=len(text) > _MAX_TEXT
    )


def _named(content: dict[str, Any], names: tuple[str, ...]) -> str:
    found = next((content[name] for name in names if isinstance(content.get(name), str | int)), "")
    return str(found).encode(errors="replace").decode()


def _address(content: dict[str, Any]) -> str | None:
    """Return the address that a row gives itself, "" when it gives none, None when it is no address."""
    url = next((content[name] for name in ("url", "link") if content.get(name) is not None), "")
    if url == "":
        return ""
    try:
        usable = isinstance(url, str) and url.isprintable() and " " not in url.strip()
        parts = urlsplit(url.strip()) if usable else None
    except ValueError:
        return None
    return url.strip() if parts and parts.scheme in ("http", "https") and parts.netloc else None


def _first_line(text: str) -> str:
    """Return a text's first line as its title, when it is short enough to be one; without marks of Markdown and quotes."""
    first = text.partition("\n")[0].strip().lstrip("#").strip().strip('"').strip()
    return first if 0 < len(first) <= 200 else ""
