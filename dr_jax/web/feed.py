"""Read a feed, RSS or Atom: what it offers, newest as the feed has it.

In:    the XML's text
Out:   title, one block of text for each entry, links; None when it is no feed
Holds: no entity is expanded and nothing is loaded
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from lxml import etree, html

from dr_jax.web.visible import lines

_ROOTS = {"rss", "feed", "RDF"}
_ENTRIES = {"item", "entry"}
_SAYS = ("encoded", "content", "description", "summary")  # the first of them that an entry has
_REFERENCE = re.compile(r"&#(?:0*(\d{5})|[xX]0*([dD][89a-fA-F][0-9a-fA-F]{2}));")
_DATES = ("published", "pubDate", "date", "updated", "lastBuildDate")


@dataclass(frozen=True, slots=True)
class Feed:
    """What a feed says; links are as written, `date` as YYYY-MM-DD or empty."""

    title: str
    text: str
    links: tuple[tuple[str, str], ...]
    date: str


def read(markup: str) -> Feed | None:
    """Read a feed, or return None when this is none."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, recover=True, huge_tree=False, encoding="utf-8")
    try:
        root = etree.fromstring(_REFERENCE.sub(_no_half, markup.lstrip()).encode(), parser)
    except etree.XMLSyntaxError:
        return None
    if root is None or _name(root) not in _ROOTS:
        return None
    channel = next((one for one in root if _name(one) == "channel"), root)
    blocks, links = [_plain(_said(channel, ("description", "subtitle")))], list[tuple[str, str]]()
    for entry in (one for one in root.iter() if _name(one) in _ENTRIES):
        title, date = _line(_plain(_said(entry, ("title",)))), _date(entry)
        blocks.append("\n".join(filter(None, (title, date, _plain(_said(entry, _SAYS))))))
        if address := _link(entry):
            links.append((title, address))
    return Feed(_line(_said(channel, ("title",))), "\n\n".join(filter(None, blocks)), tuple(links), _date(channel))


def _no_half(reference: re.Match[str]) -> str:
    """Replace a reference to half of a surrogate pair, which libxml2 hands on and nothing can hold."""
    return "\ufffd" if reference[2] or 0xD800 <= int(reference[1]) <= 0xDFFF else reference[0]


def _name(node: etree._Element) -> str:
    return node.tag.rpartition("}")[2] if isinstance(node.tag, str) else ""  # it may be no name that XML allows


def _children(node: etree._Element, names: tuple[str, ...]) -> Iterator[etree._Element]:
    for name in names:
        yield from (one for one in node if _name(one) == name)


def _said(node: etree._Element, names: tuple[str, ...]) -> str:
    return next((text for one in _children(node, names) if (text := " ".join(one.itertext()).strip())), "")


def _plain(text: str) -> str:
    """Return the lines of what may be markup."""
    if "<" in text and ">" in text:
        with suppress(etree.ParserError, ValueError):  # nothing but a comment, or no markup at all
            return "\n".join(lines(html.fragment_fromstring(text, create_parent="div")))
    return _line(text)


def _line(text: str) -> str:
    return " ".join(text.split())


def _link(entry: etree._Element) -> str:
    for one in _children(entry, ("link",)):
        if one.get("rel", "alternate") == "alternate" and (address := (one.get("href") or one.text or "").strip()):
            return address
    return ""


def _date(node: etree._Element) -> str:
    text = " ".join(_said(node, _DATES).split())
    if len(text) >= 10 and text[4] == text[7] == "-":
        return text[:10]
    try:
        return parsedate_to_datetime(text).date().isoformat()
    except (ValueError, IndexError, TypeError):
        return ""
