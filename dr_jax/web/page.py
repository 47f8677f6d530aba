"""What the web returns: a page, a hit, or a failure that says what failed.

Out:   Page and Hit; WebError where the web refused or the asker was wrong
Holds: a failure is another type than an empty result; an empty tuple of hits means that nothing was found
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

Kind = Literal[
    "bad_url",  # not an absolute http or https address
    "bad_query",  # nothing to search for, or the provider does not take it
    "refused",  # an address that may not be reached
    "blocked",  # on the run's block list
    "robots",  # its site asks robots to leave it alone
    "not_found",  # 404, 410
    "denied",  # 401, 402, 403, 451: login or payment
    "http",  # another status that is not success
    "busy",  # 429
    "server",  # 5xx, after retries
    "timeout",  # too slow, after a retry
    "unreachable",  # no such host, connection refused or broken, bad certificate
    "redirects",  # a loop, or too many
    "protocol",  # what came is not HTTP, or its encoding is broken
    "unsupported",  # a content type that is not read
    "empty",  # nothing that a reader sees without running scripts
    "paywall",  # only its beginning is shown
    "bad_answer",  # the search provider answered in another shape than documented
    "extract",  # the page's parser failed, took too long or too much memory
]
_LASTING: tuple[Kind, ...] = (
    *("bad_url", "bad_query", "refused", "blocked", "robots", "not_found", "denied", "http", "redirects", "unsupported"),
    *("empty", "paywall"),
)
LASTING: frozenset[Kind] = frozenset(_LASTING)
FORM = 3  # of pages as they are extracted and encoded: raise it when either changes, and remembered pages are read again


HTML = ("text/html", "application/xhtml+xml", "")  # "": whatever it is, it has not said so
PDF = ("application/pdf", "application/x-pdf")


@dataclass(frozen=True, slots=True)
class WebError:
    """Why there is no result; the message is shown to the policy as it is.

    Args:
        kind: for counting and for deciding.
        message: one sentence; never holds a key or an address inside our network.
    """

    kind: Kind
    message: str

    def __post_init__(self) -> None:
        if not self.message:
            raise ValueError("a web error needs a message")

    @property
    def lasting(self) -> bool:
        """Whether asking again soon would end the same way, so that it may be remembered."""
        return self.kind in LASTING


@dataclass(frozen=True, slots=True)
class Hit:
    """One search result.

    Args:
        title: as the provider gave it; may be empty.
        url: the page's address, as the provider gave it.
        snippet: a few words of the page; may be empty.
    """

    title: str
    url: str
    snippet: str

    def __post_init__(self) -> None:
        if not self.url:
            raise ValueError("a hit needs a url")


@dataclass(frozen=True, slots=True)
class Page:
    """A page as a reader wants it.

    Args:
        url: where it was found in the end, after redirects.
        title: one line; may be empty.
        text: the main text, paragraphs parted by newlines, table rows as `cell | cell`.
        links: (text, absolute http or https url) in page order, each url once.
        content_type: without parameters, lower case.
        truncated: whether a cap, or a paywall, cut the page short.
        date: when it was published, as YYYY-MM-DD; empty when it does not say.
    """

    url: str
    title: str
    text: str
    links: tuple[tuple[str, str], ...] = ()
    content_type: str = "text/html"
    truncated: bool = False
    date: str = ""

    def __post_init__(self) -> None:
        if not self.url:
            raise ValueError("a page needs a url")


_FIELDS = tuple(field.name for field in fields(Page))


def whole(text: str) -> str:
    """Return the text with halves of surrogate pairs replaced: JSON can spell them, UTF-8 cannot."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def readable(content_type: str) -> bool:
    """Whether a content type (lower case, without parameters) can be made a page of; an empty one is looked into."""
    return (
        content_type.startswith("text/")
        or content_type in ("", "application/xhtml+xml", "application/json", "application/xml", *PDF)
        or (content_type.startswith("application/") and content_type.endswith(("+json", "+xml")))
    )


def encoded(found: Page | WebError) -> dict[str, Any]:
    """Turn a page or an error into values that JSON can hold."""
    if isinstance(found, WebError):
        return {"kind": found.kind, "message": found.message}
    return {field: getattr(found, field) for field in _FIELDS}  # without copying every link, as `asdict` does


def decoded(content: Mapping[str, Any]) -> Page | WebError:
    """Undo `encoded`.

    Raises:
        KeyError, TypeError, ValueError: the content has another shape.
    """
    if "kind" in content:
        return WebError(content["kind"], str(content["message"]))
    return Page(
        url=str(content["url"]),
        title=str(content["title"]),
        text=str(content["text"]),
        links=tuple((str(text), str(url)) for text, url in content["links"]),
        content_type=str(content["content_type"]),
        truncated=bool(content["truncated"]),
        date=str(content["date"]),
    )
