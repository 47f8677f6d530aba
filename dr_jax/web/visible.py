"""Read a parsed page as a person sees it: blocks as lines, table rows as `cell | cell`, without what frames the page.

In:    an lxml tree
Out:   `strip` takes out what is not seen, `trim` and `unframe` what is not the page's own text; `core` is the element that
       holds the rest; `lines` gives it from top to bottom, `tables` each table's rows
Drops: scripts, forms, navigation, footers, hidden elements, and what its class or id calls advertising or a banner
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

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
_FRAME_HEADING = re.compile(
    r"(?:trending(?: now)?|most (?:read|popular|viewed)|popular (?:now|stories|posts)|related (?:articles|stories|posts)|"
    r"recommended(?: for you)?|more (?:from|on|like) .{1,40}|(?:you )?(?:may|might) also like|read (?:more|next)|"
    r"latest (?:news|posts)|"
    r"recent (?:posts|comments)|share this|das könnte sie auch interessieren|mehr zum thema|meistgelesen|à lire aussi|"
    r"les plus lus|lo más leído|te puede interesar|читайте также|関連記事|相关阅读)\W*",
    re.IGNORECASE,
)
# What an element's own style hides. Not `opacity: 0`: many pages begin so, and scripts fade them in.
_HIDDEN = re.compile(
    r"display:none|visibility:(?:hidden|collapse)|font-size:0(?![.\d])|"
    r"(?:left|right|top|text-indent|margin-left|margin-top):-\d{3,}(?:\.\d+)?(?:px|em|rem)|clip:rect\((?:0|1px)[ ,a-z0-9]*\)|"
    r"clip-path:inset\((?:50|100)%\)"
)
_SMALL = re.compile(r"(?:^|;)(?:max-)?(?:height|width):[01](?:px)?(?:;|$|!)")
_COLOUR = re.compile(r"(?:^|;)color:([^;!]+)")
_GROUND = re.compile(r"(?:^|;)background(?:-color)?:([^;!]+)")
_BLOCKS = (
    defs.block_tags
    | {"html", "body", "br", "li", "dt", "dd", "caption", "thead", "tbody", "tfoot", "tr"}
    | {*("aside", "details", "summary", "legend", "option", "blockquote", "figure", "figcaption", "main", "section", "article")}
)
_CELLS = ("td", "th")
_CELL_CHARS = 300  # a longer cell is layout, or prose: its blocks keep their own lines
_CORE_SHARE = 0.6
_NEVER_FRAME = ("html", "body", "main", "article", "h1")
_FACTS = re.compile(r"(?:^|[\s_-])(?:infobox|wikitable|spec(?:s|ifications)?|facts?|data)(?:$|[\s_-])", re.IGNORECASE)
_NAMED = {
    "white": "#fff",
    "#ffffff": "#fff",
    "rgb(255,255,255)": "#fff",
    "black": "#000",
    "#000000": "#000",
    "rgb(0,0,0)": "#000",
}
_FRAME_SHARE = 0.5  # what holds more of the page's text than this is not its frame, whatever it is called


@dataclass(frozen=True, slots=True)
class Table:
    """A table's rows, and whether it belongs to the main text: it stands in it, or is called its facts."""

    rows: tuple[str, ...]
    belongs: bool


def strip(root: HtmlElement) -> None:
    """Take out what nobody sees, and lists under a heading such as "Most read". The tree is changed in place."""
    etree.strip_elements(root, *_NOT_TEXT, with_tail=False)
    most = _Share(root)
    for node in root.xpath("//*[@hidden or @style or @aria-hidden='true']"):
        if node.tag in ("html", "body"):  # until scripts have run
            continue
        unseen = node.get("hidden") is not None or _unseen("".join(node.get("style", "").lower().split()))
        if unseen or (node.get("aria-hidden") == "true" and most.holds(node)):  # all but an open dialogue may be
            _drop(node)
    for heading in root.xpath("//h2 | //h3 | //h4"):
        around = heading.getparent()
        if around is None or around.tag in _NEVER_FRAME or not _FRAME_HEADING.fullmatch(_text(heading)):
            continue
        if around.xpath("count(.//a)") >= 3 and most.holds(around, half=True):
            _drop(around)


def trim(root: HtmlElement) -> None:
    """Take out the elements whose very name says that they are not the page's text: navigation, footers, buttons."""
    etree.strip_elements(root, *_FRAME, with_tail=False)


def unframe(root: HtmlElement) -> None:
    """Take out what only its class, id or role calls navigation, advertising, or something else to read."""
    most, known = _Share(root), dict[str, bool]()  # classes come again and again
    for node in root.xpath("//*[@class or @id or @role]"):
        if node.tag in _NEVER_FRAME:
            continue
        named = f"{node.get('class', '')} {node.get('id', '')}"
        if (frame := known.get(named)) is None:
            frame = known[named] = _FRAME_NAME.search(named) is not None
        if (frame or node.get("role") in _FRAME_ROLES) and most.holds(node):
            _drop(node)


def core(root: HtmlElement) -> HtmlElement:
    """Return the one element that calls itself the main part and holds most of the text, or the root."""
    for path in ("//main | //*[@role='main']", "//article"):
        found = root.xpath(path)
        if len(found) == 1 and length(found[0]) >= _CORE_SHARE * length(root):
            return found[0]
    return root


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


def tables(root: HtmlElement) -> Iterator[Table]:
    """Yield every table that holds data: no further table inside, at least two cells somewhere."""
    found = [table for table in root.iter("table") if table.find(".//table") is None]
    around = _around(root) if found else root
    for table in found:
        rows = tuple(lines(table))
        if any(" | " in row for row in rows):
            named = f"{table.get('class', '')} {table.get('id', '')}"
            yield Table(rows, bool(_FACTS.search(named)) or around in table.iterancestors())


class _Share:
    """How much of a page's text its frame may hold; counted when it is first asked for, of the page as it was then."""

    def __init__(self, root: HtmlElement) -> None:
        self._root, self._most = root, -1.0

    def holds(self, node: HtmlElement, *, half: bool = False) -> bool:
        """Whether an element's text is no more than that, or than half of it."""
        if self._most < 0:
            self._most = _FRAME_SHARE * length(self._root)
        return length(node) <= (self._most / 2 if half else self._most)


def _around(root: HtmlElement) -> HtmlElement:
    """Return the smallest element that holds most of the page's text."""
    node, most = root, _CORE_SHARE * length(root)
    while (inner := next((one for one in node if isinstance(one.tag, str) and length(one) >= most), None)) is not None:
        node = inner
    return node


def _unseen(style: str) -> bool:
    """Whether an inline style, in lower case without white space, hides its element."""
    if _HIDDEN.search(style) or ("overflow:hidden" in style and _SMALL.search(style)):
        return True
    colour, ground = _COLOUR.search(style), _GROUND.search(style)
    if colour is None:
        return False
    return colour.group(1) == "transparent" or (ground is not None and _same(colour.group(1), ground.group(1)))


def _same(colour: str, ground: str) -> bool:
    return _NAMED.get(colour, colour) == _NAMED.get(ground, ground)


def _text(node: HtmlElement) -> str:
    return str(node.xpath("normalize-space(.)"))


def _line(words: list[str]) -> str:
    return " ".join("".join(words).split()).removeprefix("| ")


def _is_short(cell: HtmlElement) -> bool:
    return cell.find(".//table") is None and length(cell) <= _CELL_CHARS


def length(node: HtmlElement) -> int:
    """Count the characters of the text below an element, white space collapsed."""
    return int(node.xpath("string-length(normalize-space(.))"))


def _drop(node: HtmlElement) -> None:
    if node.getparent() is not None:
        node.drop_tree()
