"""Turn the bytes of a page into what a reader wants of it. `extract` is public, pure, and needs nothing else of dr_jax.

In:    bytes of HTML, a PDF, a feed, JSON or text; where they came from, their content type and charset
Out:   Page: title, date, main text with tables as rows, links; or WebError for what cannot be read, shows nothing, or
       shows only its beginning to those who have not paid
Drops: navigation, cookie banners, advertising, scripts, hidden elements
Holds: input, tree and output are bounded, so that no page costs more than some seconds and some hundred megabytes
"""

from __future__ import annotations

import copy
import logging
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from urllib.parse import urljoin, urlsplit

from bs4 import BeautifulSoup
from lxml import etree
from lxml.html import HtmlElement, HTMLParser, document_fromstring
from trafilatura import extract as extract_main
from trafilatura.settings import Extractor

from dr_jax.web import feed, notice, pdf
from dr_jax.web.charset import decode
from dr_jax.web.page import PDF, Page, WebError, encoded, readable
from dr_jax.web.visible import core, length, lines, strip, tables, trim, unframe

_MAX_CHARS = 2_000_000  # of markup
_MAX_TEXT = 500_000
_MAX_LINKS = 1_000
_MAX_URL = 2_000
_MAX_ELEMENTS = 20_000  # above, trafilatura takes seconds; the visible text is taken as it stands
_SHORT = 1_500  # characters of visible text that leave nothing to choose from
_TABULAR = 0.5  # share of the text in tables above which there is no other main text; trafilatura may take rows apart
_TITLE_ENDS = "-–—|·•:»"
_SHOWN = 600  # characters of such a beginning that an error tells
_LITTLE = 250  # characters below which trafilatura's answer is not trusted on a longer page
_OF_HEAD = ("title", "meta", "link", "script", "style", "base", "noscript", "template", "object", "basefont", "bgsound")
_HTML = {"text/html", "application/xhtml+xml"}
# Control characters, direction marks, tags: nothing that a reader sees. The joiners of scripts and emoji stay.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_NOISE = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x9f\ufffd]")
# Comments and instructions, then the root; nothing is tried in a second way, so that many of them take no time.
_FEED = re.compile(r"(?>\s*(?:<\?[^>]{0,300}>|<!--(?>.{0,2000}?-->)))*+\s*+<(?:rss|feed|rdf:RDF)\b", re.DOTALL)
# From the root, or from a host, and nothing to be resolved in it: no dots between slashes, no brackets, no spaces.
_PLAIN = re.compile(r"(?:https?://[a-z0-9.-]+)?(?:/[^\s./\\\[\]][^\s/\\\[\]]*)+/?")
_ENOUGH = 0.5  # share of the text without frame that is not worth a second look
_FAST = Extractor(fast=True, comments=False, tables=True)
_SLOW = Extractor(comments=False, tables=True)
_RULE = re.compile(r"^\|?(?:\s*:?-+:?\s*\|)+\s*$")

logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it warns of every page that it finds nothing in


@dataclass(frozen=True, slots=True)
class _Read:
    """What was made of a body, before it is cut to size."""

    title: str
    text: str
    links: tuple[tuple[str, str], ...] = ()
    date: str = ""
    cut: bool = False
    walled: bool = False
    needs_scripts: bool = False


def extract(
    body: bytes, url: str, content_type: str = "text/html", charset: str = "", *, truncated: bool = False
) -> Page | WebError:
    """Read a page. Nothing is fetched; run it in a process of its own (`workers.Extractors`) where pages may be hostile.

    Args:
        body: without content encoding.
        url: its address; links are resolved against it.
        content_type: lower case, without parameters; "" when the server named none.
        charset: of the Content-Type header; "" when it had none.
        truncated: whether the body was already cut.

    Returns:
        The page; or WebError of kind `unsupported`, `protocol` (not what it claims to be), `empty` or `paywall`.
    """
    if not readable(content_type):
        return WebError("unsupported", f"{url} is {content_type}, which is not read; HTML, text, JSON, PDF and feeds are")
    if content_type in PDF or (not content_type and body.startswith(b"%PDF-")):
        found = _read_pdf(body, url)
        content_type = PDF[0]
    else:
        found = _read_markup(body, url, content_type, charset)
    if isinstance(found, WebError):
        return found
    text = found.text.strip()
    if not text or found.needs_scripts:
        why = "its text would need scripts to run" if found.needs_scripts else "it has no text"
        return WebError("empty", f"{url} shows nothing to read: {why}")
    if found.walled and len(text) < notice.STUB:
        begin = " ".join(text.split())[:_SHOWN]
        return WebError("paywall", f"{url} shows only its beginning to those who do not subscribe: “{begin}”")
    cut = truncated or found.cut or found.walled or len(text) > _MAX_TEXT
    return Page(url, found.title, text[:_MAX_TEXT], found.links, content_type or "text/plain", cut, found.date)


def work(request: dict[str, Any], body: bytes) -> dict[str, Any]:
    """Do one task of a worker process: `extract`, with its arguments and its result as JSON can hold them."""
    return encoded(extract(body, **request))


def _read_pdf(body: bytes, url: str) -> _Read | WebError:
    try:
        found = pdf.read(body)
    except pdf.PdfError as error:
        return WebError("denied" if isinstance(error, pdf.LockedError) else "protocol", f"{url} {error}")
    return _Read(_line(_seen(found.title)), _seen(found.text), date=found.date, cut=found.more)


def _read_markup(body: bytes, url: str, content_type: str, charset: str) -> _Read | WebError:
    markup = decode(body, charset)
    if _is_noise(markup):
        return WebError("protocol", f"{url} sent {content_type or 'no content type'}, but it is not text")
    cut, markup = len(markup) > _MAX_CHARS, markup[:_MAX_CHARS]
    if content_type in _HTML or (not content_type and _looks_like_html(markup) and not _FEED.match(markup)):
        found = _read_html(markup, url)
    elif _FEED.match(markup) and (entries := feed.read(_seen(markup))):
        links = ((text, _absolute(url, href)) for text, href in entries.links[:_MAX_LINKS])
        once = {address: text[:200] for text, address in links if address}
        found = _Read(entries.title, entries.text, tuple((text, address) for address, text in once.items()), entries.date)
    else:
        found = _Read("", _seen(markup))
    return replace(found, cut=True) if cut else found


def _read_html(markup: str, url: str) -> _Read:
    parser, seen = HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True), _seen(markup).encode()
    try:
        root = _parsed(seen, parser)
    except etree.ParserError:  # there is nothing in it
        return _Read("", "")
    title, links, told = _title(root), _links(root, url), notice.linked_data(root)
    date, wall, scripts = notice.published(root, told), notice.walled(root, markup), root.find(".//script") is not None
    if any("depth" in error.message for error in parser.error_log):  # libxml2 dropped the rest: read it as flat text
        return _Read(title, BeautifulSoup(markup, "lxml").get_text("\n", strip=True), links, date)
    strip(root)
    asks = notice.asks(root)
    text = _untitled(_main(root, seen), title) or notice.article_body(told)
    walled = notice.only_begins(text, told, asks=asks, wall=wall)
    if walled:
        text = notice.unasked(text)
    return _Read(title, text, links, date, walled=walled, needs_scripts=scripts and notice.needs_scripts(text))


def _parsed(seen: bytes, parser: HTMLParser) -> HtmlElement:
    """Parse a page.

    Raises:
        etree.ParserError: there is nothing in it.
    """
    root = document_fromstring(seen, parser=parser)
    _join(root)
    return root


def _join(root: HtmlElement) -> None:
    """Put back into the page what the parser parts from it: what follows a premature `</html>`, and HTML 5 below the head."""
    body = root.find("body")
    for extra in list(root.itersiblings()):
        for part in (extra, *extra.iter("html", "head", "body")):
            part.tag = "div"
        (root if body is None else body).append(extra)
    for head in root.findall("head"):  # libxml2 knows only elements of HTML 4 to end one that is left open
        shown = next((place for place, part in enumerate(head) if part.tag not in _OF_HEAD), len(head))
        if shown < len(head):
            moved = head.makeelement("div")
            moved.extend(head[shown:])
            if body is None:
                head.addnext(moved)
            else:
                body.insert(0, moved)


def _main(root: HtmlElement, seen: bytes) -> str:
    """Return the main text of a stripped page; the tree is used up, and parsed again where it is needed whole.

    trafilatura gets the page with its frame, by which it was tuned; what is left without the frame tells whether there is
    anything to choose from, and is the answer where trafilatura has none.
    """
    trim(root)
    trimmed = copy.deepcopy(root)
    unframe(root)
    size, elements = length(root), root.xpath("count(//*)")
    if size <= _SHORT or elements > _MAX_ELEMENTS:
        return "\n".join(lines(core(root)))
    found = list(tables(root))
    tabular = sum(len(row) for table in found for row in table.rows) > _TABULAR * size
    main = "" if tabular else _of_trafilatura(trimmed, seen, size)
    if len(main) < _LITTLE:
        return "\n".join(lines(core(root)))
    lost = [row for table in found if table.belongs and not _tells(main, table.rows) for row in table.rows]
    return "\n".join((main, *lost))


def _of_trafilatura(trimmed: HtmlElement, seen: bytes, size: int) -> str:
    """Return what trafilatura takes for the main text; `benchmarks/extraction.py` compares its modes.

    Its fast mode is its own rules. Where they give less than half of what is there, its slow mode may say better: it takes
    another algorithm's text where that is twice as long, and tries again with laxer rules where it has too little.
    """
    main = extract_main(trimmed, options=_FAST) or ""
    if len(main) < _ENOUGH * size:
        whole = _parsed(seen, HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True))
        strip(whole)
        main = extract_main(whole, options=_SLOW) or ""
    kept = (line for line in main.splitlines() if not _RULE.match(line))
    return "\n".join(line.strip("| ") if line.startswith("|") else line for line in kept)


def _untitled(text: str, title: str) -> str:
    """Leave out a first line that only says the title again, whatever the title says of the site after it."""
    first, _, rest = text.partition("\n")
    first = _line(first)
    after = title[len(first) :].lstrip()
    again = first and title.startswith(first) and (not after or after[0] in _TITLE_ENDS)
    return rest if again and rest.strip() else text


def _tells(text: str, table: tuple[str, ...]) -> bool:
    """Whether most of a table's first rows are in the text."""
    rows = table[:20]
    return 2 * sum(row in text for row in rows) > len(rows)


def _title(root: HtmlElement) -> str:
    for path in ("//title", "//meta[@property='og:title']/@content", "//h1"):
        for found in root.xpath(path):
            if title := _line(found if isinstance(found, str) else _text(found)):
                return title[:300]
    return ""


def _links(root: HtmlElement, url: str) -> tuple[tuple[str, str], ...]:
    base = next((_absolute(url, href) for href in root.xpath("//base/@href")), "") or url
    found: dict[str, str] = {}
    for anchor in root.iter("a"):
        if len(found) == _MAX_LINKS:
            break
        href = anchor.get("href")
        address = _absolute(base, href) if href else ""
        if address and address != url and not found.get(address):
            found[address] = _line("".join(anchor.itertext()) if len(anchor) else anchor.text or "")[:200]
    return tuple((text, address) for address, text in found.items())


def _absolute(base: str, href: str) -> str:
    """Return the http or https address that a link leads to, or ""."""
    href = href.strip()
    if not href or href.startswith("#"):
        return ""
    try:
        if _PLAIN.fullmatch(href):  # most links; joining an address by its parts takes longer than reading the page's text
            address = href if href[0] != "/" else _origin(base) + href
        else:
            address = urljoin(base, href)
            if urlsplit(address).scheme not in ("http", "https"):
                return ""
    except ValueError:  # an address that is none
        return ""
    address = address.partition("#")[0]
    return address if address.startswith("http") and len(address) <= _MAX_URL else ""


@lru_cache(maxsize=64)
def _origin(base: str) -> str:
    parts = urlsplit(base)
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme in ("http", "https") else ""


def _text(node: HtmlElement) -> str:
    return str(node.xpath("normalize-space(.)"))


def _line(text: str) -> str:
    return " ".join(text.split())


def _seen(text: str) -> str:
    return _UNSEEN.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def _looks_like_html(markup: str) -> bool:
    start = markup[:1024].lstrip().lower()
    return start.startswith(("<!doctype html", "<html", "<head", "<body", "<!--")) or "<title" in start


def _is_noise(text: str) -> bool:
    """Whether more than a twentieth of the beginning is control characters or could not be decoded."""
    start = text[:4096]
    return len(_NOISE.findall(start)) * 20 > len(start)
