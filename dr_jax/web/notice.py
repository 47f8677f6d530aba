"""Read what a page says about itself: its date, and whether only its beginning is shown.

In:    a parsed page as it came, before anything was taken out; its visible text
Out:   a date as YYYY-MM-DD, or ""; whether a paywall, or scripts that did not run, keep the rest from us
Holds: what merely writes about paywalls or scripts is an ordinary page: short lines count, and only where little else is said
"""

from __future__ import annotations

import json
import re
from datetime import date
from html import unescape

from lxml.html import HtmlElement

from dr_jax.web.page import whole
from dr_jax.web.visible import lines

STUB = 600  # characters of text below which a page behind a paywall has shown nothing to speak of
_TEASER = 3_000  # above, a page that asks to subscribe has shown its text
_NOTICE = 240  # characters of a line that asks; a longer one is prose
_DAY = re.compile(r"(?<!\d)((?:19|20)\d\d)[-/]?(0[1-9]|1[0-2])[-/]?(0[1-9]|[12]\d|3[01])(?!\d)")
_LD_DATE = re.compile(r'"(?:datePublished|dateCreated|uploadDate)"\s*:\s*"([^"]{8,40})"')
_LOOKED_AT = 200_000
_LD_BODY = re.compile(r'"articleBody"\s*:\s*"((?:[^"\\]|\\.)*)"')
_LD_LOCKED = re.compile(r'"isAccessibleForFree"\s*:\s*"?false\b', re.IGNORECASE)
_DATED = {
    *("article:published_time", "og:article:published_time", "datepublished", "date", "pubdate", "publish-date"),
    *("dc.date", "dc.date.issued", "dcterms.date", "citation_publication_date", "parsely-pub-date"),
}
_ASKS = re.compile(
    r"\b(?:subscribe|sign (?:in|up)|log ?in|register|join|upgrade|become an? (?:\w+ )?(?:member|subscriber))\b.{0,60}?\bto "
    r"(?:continue|keep|finish|unlock|read (?:on|more|the (?:full|rest|whole)|this (?:full )?(?:article|story)))\b"
    r"|\bto (?:continue|keep|finish) reading\b.{0,80}\b(?:subscri|sign|log ?in|register|account|member)"
    r"|\bthis (?:article|story|content|post|report) is (?:only |exclusively )?(?:for|reserved for|available (?:only )?to|"
    r"exclusive to|limited to)\b.{0,30}\b(?:subscribers|members|paying)"
    r"|\balready an? (?:subscriber|member)\?"
    r"|\byou(?:'|’)?ve (?:reached|read) (?:your|all|the) .{0,40}\bfree (?:article|stor)"
    r"|réservée? aux abonnés|lire la suite .{0,40}abonn|weiterlesen mit\b|nur für abonnenten|jetzt abonnieren und weiterlesen"
    r"|suscr[ií]bete para (?:seguir|continuar) leyendo|exclusivo para (?:suscriptores|assinantes)"
    r"|contenuto riservato agli abbonati"
    r"|доступн\w+ только подписчикам|только для подписчиков|有料会員限定|会員限定記事|残り\s*[\d０-９,]+\s*文字",
    re.IGNORECASE,
)
# One of them is in whatever the expression finds, and hardly a page has one; looking for them is much faster.
_ASKING_WORDS = (
    *("to continue", "to keep", "to finish", "to unlock", "to read", "reserved for", "subscribers", "members", "paying"),
    *(
        "already a",
        "free article",
        "free stor",
        "abonn",
        "weiterlesen",
        "suscri",
        "suscrí",
        "assinantes",
        "подписчик",
        "会員",
        "残り",
    ),
)
_WALL = re.compile(
    r"(?:^|[\s_-])(?:pay-?wall|regwall|meter-?wall|subscri(?:be|ber|ption)-?(?:wall|prompt|gate))(?:$|[\s_-])", re.I
)
_WALL_WORDS = (  # in the cases that they are written in; to change those of a whole page takes longer than to look
    *("paywall", "Paywall", "PayWall", "pay-wall", "regwall", "meterwall", "meter-wall"),
    *("subscribe-", "subscriber-", "subscription-"),
)
_WALL_STEMS = ("wall", "Wall", "subscri")  # of them; most pages have none
_NEEDS_SCRIPTS = re.compile(
    r"(?:enable|turn on|activate|requires?|needs?|without) java ?script|java ?script (?:is|must be|has to be) "
    r"(?:disabled|required|enabled|turned on)|checking your browser|just a moment\b|^loading\W{0,6}$",
    re.IGNORECASE,
)


def published(root: HtmlElement, linked_data: str) -> str:
    """Return the day on which a page says that it was published."""
    for text in _LD_DATE.findall(linked_data):
        if day := _day(text):
            return day
    for node in root.iter("meta", "time"):
        if node.tag == "meta":
            named = (node.get("property") or node.get("name") or node.get("itemprop") or "").lower()
            text = node.get("content") if named in _DATED else None
        else:
            text = node.get("datetime") if _of_the_page(node) else None
        if text and (day := _day(text)):
            return day
    return ""


def linked_data(root: HtmlElement) -> str:
    """Return the page's JSON-LD, as it stands; much of the web's is no valid JSON."""
    return "\n".join(
        node.text or "" for node in root.iter("script") if (node.get("type") or "").strip() == "application/ld+json"
    )


def walled(root: HtmlElement, markup: str) -> bool:
    """Whether some element calls itself a paywall."""
    if not (any(word in markup for word in _WALL_STEMS) and any(word in markup for word in _WALL_WORDS)):
        return False
    return any(_WALL.search(f"{node.get('class', '')} {node.get('id', '')}") for node in root.xpath("//*[@class or @id]"))


def asks(root: HtmlElement) -> bool:
    """Whether some line of what is seen asks to subscribe, or to sign in, before it goes on."""
    text = root.text_content()[:_LOOKED_AT].lower()
    if not any(word in text for word in _ASKING_WORDS) or not _ASKS.search(text):
        return False
    return any(_is_asking(line) for line in lines(root))


def unasked(text: str) -> str:
    """Leave out the lines that ask."""
    return "\n".join(line for line in text.splitlines() if not _is_asking(line))


def only_begins(text: str, linked: str, *, asks: bool, wall: bool) -> bool:
    """Whether a paywall cut the main text short.

    Args:
        text: the main text.
        linked: the page's JSON-LD.
        asks: whether some line asks to subscribe.
        wall: whether an element calls itself a paywall.
    """
    if len(text) > _TEASER:
        return False
    if _LD_LOCKED.search(linked):  # the whole text may be there all the same, for search engines
        return asks or wall or len(text) < STUB
    return asks and (wall or len(text) < STUB)


def article_body(linked: str) -> str:
    """Return the text that JSON-LD carries, for pages that show theirs by scripts."""
    found = _LD_BODY.search(linked)
    try:
        text = str(json.loads(f'"{found.group(1)}"', strict=False)) if found else ""
    except ValueError:
        return ""
    return re.sub(r"<[^<>]{1,200}>", " ", unescape(whole(text)))


def _of_the_page(time: HtmlElement) -> bool:
    """Whether a time is the page's own, and not that of a comment, or of what else there is to read."""
    if time.get("pubdate") is not None or time.get("itemprop") == "datePublished":
        return True
    return any(one.tag in ("article", "header", "main") for one in time.iterancestors())


def _is_asking(line: str) -> bool:
    return len(line) <= _NOTICE and _ASKS.search(line) is not None


def needs_scripts(text: str) -> bool:
    """Whether all that is said is that scripts are needed, or that something is still to come."""
    return len(text) < _NOTICE and bool(_NEEDS_SCRIPTS.search(text))


def _day(text: str) -> str:
    found = _DAY.search(text)
    try:
        return date(*map(int, found.groups())).isoformat() if found else ""
    except ValueError:  # such as 31 February
        return ""
