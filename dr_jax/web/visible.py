"""Read a parsed page as a person sees it: blocks as lines, table rows as `cell | cell`, without what frames the page.

In:    an lxml tree
Out:   `prune` takes out what is not read; `lines` gives the rest from top to bottom; `tables` gives each table's rows
Drops: scripts, forms, navigation, footers, hidden elements, and what its class or id calls advertising or a banner
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from lxml import etree
from lxml.html import HtmlElement, defs

_NOT_TEXT = ("script", "style", "noscript", "template", "svg", "canvas", "iframe", "object", "audio", "video", "math", "head")
_FRAME = ("nav", "footer", "button", "select", "input", "textarea", "dialog")
_FRAME_ROLES = ("navigation", "banner", "contentinfo", "dialog", "alertdialog", "search")
_FRAME_NAME = re.compile(
    r"(?:^|[\s_-])(?:cookies?|consent|gdpr|ads?|adverts?|advertisement|sponsor(?:ed)?|newsletter|popup|breadcrumbs?|"
    r"navbar|navigation|(?:main|nav|side|top)-?menu|sidebar|related|footer|skip-link)(?:$|[\s_-])",
    re.IGNORECASE,
)
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_BLOCKS = (
    defs.block_tags
    | {"html", "body", "br", "li", "dt", "dd", "caption", "thead", "tbody", "tfoot", "tr"}
    | {*("aside", "details", "summary", "legend", "option", "blockquote", "figure", "figcaption", "main", "section", "article")}
)
_CELLS = ("td", "th")
_CELL_CHARS = 300  # a longer cell is layout, or prose: its blocks keep their own lines
_FRAME_SHARE = 0.5  # what holds more of the page's text than this is not its frame, whatever it is called


def prune(root: HtmlElement) -> None:
    """Take what is not the page's text out of the tree: scripts, hidden elements, its frame. The tree is changed in place."""
    etree.strip_elements(root, *_NOT_TEXT, *_FRAME, with_tail=False)
    for node in root.xpath("//*[@hidden or @style or @aria-hidden='true']"):
        if node.get("hidden") is not None or node.get("aria-hidden") == "true" or _HIDDEN.search(node.get("style", "")):
            _drop(node)
    most = _FRAME_SHARE * _length(root)
    for node in root.xpath("//*[@class or @id or @role]"):
        if node.tag in ("html", "body", "main", "article", "h1"):
            continue
        named = f"{node.get('class', '')} {node.get('id', '')}"
        if (node.get("role") in _FRAME_ROLES or _FRAME_NAME.search(named)) and _length(node) <= most:
            _drop(node)


def lines(root: HtmlElement) -> Iterator[str]:
    """Yield the text below an element, one block or table row at a time, white space collapsed."""
    words: list[str] = []
    row_cell: HtmlElement | None = None  # the cell whose blocks are kept on the row's line
    for event, node in etree.iterwalk(root, events=("start", "end")):
        starts = event == "start"
        if node.tag in _CELLS and row_cell in (None, node):
            if starts and _is_short(node):
                row_cell = node
                words.append(" | ")
            elif row_cell is node:
                row_cell = None
        elif node.tag in _BLOCKS or node.tag in _CELLS:
            if row_cell is not None:
                words.append(" ")
            else:
                if line := _line(words):
                    yield line
                words.clear()
        words.append((node.text if starts else None if node is root else node.tail) or "")
    if line := _line(words):
        yield line


def tables(root: HtmlElement) -> Iterator[list[str]]:
    """Yield the rows of every table that holds data: no further table inside, at least two cells somewhere."""
    for table in root.iter("table"):
        if table.find(".//table") is None:
            found = list(lines(table))
            if any(" | " in row for row in found):
                yield found


def _line(words: list[str]) -> str:
    return " ".join("".join(words).split()).removeprefix("| ")


def _is_short(cell: HtmlElement) -> bool:
    return cell.find(".//table") is None and _length(cell) <= _CELL_CHARS


def _length(node: HtmlElement) -> int:
    return int(node.xpath("string-length(normalize-space(.))"))


def _drop(node: HtmlElement) -> None:
    if node.getparent() is not None:
        node.drop_tree()
