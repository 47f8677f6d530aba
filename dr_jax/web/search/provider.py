"""What a search provider is: one record that says how it is asked, how its answer is read, and what that costs.

In:    Query: what is searched for, with the settings of the provider
Out:   Request to send; hits from the JSON that came back; a Verdict on every other status
Holds: an answer in another shape than documented is an error of the provider's, never an empty result; a key travels in a
       header and occurs in no address and no message
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlencode

from dr_jax.web.page import Hit, WebError

Hits = tuple[Hit, ...]
Parameters = Mapping[str, str | int | float | bool]
# What a status means: nobody's query's fault but the asker's; our key; our money; to be tried again; nothing that we know.
Verdict = Literal["bad_query", "key", "credits", "again", "unknown"]

_MAX_QUERY = 2_048
_MAX_FIELD = 2_000
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})
_VERDICTS: Mapping[int, Verdict] = {400: "bad_query", 401: "key", 403: "key", 402: "credits"}


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of a provider.

    Args:
        text: in words, vetted.
        results: how many hits are wanted.
        url: where the provider is asked.
        key: "" when it needs none.
        parameters: of the settings; they come last, so that they prevail.
    """

    text: str
    results: int
    url: str
    key: str = field(default="", repr=False)
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request; `payload` is posted as JSON."""

    method: Literal["GET", "POST"]
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    payload: Mapping[str, Any] | None = None


def judged(status: int, body: bytes) -> Verdict:
    """Return what a status other than 200 means to most providers."""
    return "again" if status in _AGAIN else _VERDICTS.get(status, "unknown")


def _one(results: int) -> int:
    return 1


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider of search results.

    Args:
        title: what people call it.
        url: where it is asked; "" when only the user can say.
        ask: from a query to the request.
        read: from the JSON of an answer to hits; raises KeyError, TypeError or ValueError when it has another shape.
        judge: from a status other than 200, and the body, to a verdict.
        key: environment variable of the key; "" when it needs none.
        url_variable: environment variable that may hold the address.
        also: further parameters that it needs, each with the environment variable that may hold it.
        most: hits that it returns at most to one query.
        cost: of one unit, in US dollars, as listed in 2026 for small quantities.
        units: that a query for so many hits takes.
        per_s: queries in a second that its smallest paid plan allows, or that are polite.
        concurrent: queries under way.
        own: whether it is a server of ours, which needs no politeness.
        hint: what to look at when it refuses us, in place of the key.
    """

    title: str
    url: str
    ask: Callable[[Query], Request]
    read: Callable[[Any], Hits]
    judge: Callable[[int, bytes], Verdict] = judged
    key: str = ""
    url_variable: str = ""
    also: Mapping[str, str] = field(default_factory=dict)
    most: int = 100
    cost: float = 0.0
    units: Callable[[int], int] = _one
    per_s: float = 1.0
    concurrent: int = 16
    own: bool = False
    hint: str = ""


def vet_query(query: str) -> str | WebError:
    """Return the query as it is asked, white space collapsed, or why it cannot be."""
    asked = line(query)
    if not asked or len(asked) > _MAX_QUERY:
        return WebError("bad_query", f"A query of {len(asked)} characters cannot be searched; 1 to {_MAX_QUERY} are needed")
    return asked


def with_parameters(url: str, parameters: Parameters) -> str:
    """Return an address with query parameters; those that it has stay, unless they are named."""
    given = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in parameters.items()}
    return f"{url}{'&' if '?' in url else '?'}{urlencode(given)}"


def hits(found: Any, *, title: str, url: str, snippet: str) -> Hits:
    """Read a list of results.

    Args:
        found: the list.
        title, url, snippet: what the fields are called; only the address must be there.

    Raises:
        KeyError, TypeError, ValueError: it is no list of such results.
    """
    if not isinstance(found, list):
        raise TypeError("the results are not a list")
    return tuple(
        Hit(_text(one.get(title) or ""), _text(one[url]), _text(one.get(snippet) or "")) for one in map(as_object, found)
    )


def as_object(value: Any) -> dict[str, Any]:
    """Return a JSON object as it is.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def line(text: str) -> str:
    """Collapse white space and replace halves of surrogate pairs, which JSON can hold and nothing else can."""
    return " ".join(text.encode(errors="replace").decode().split())


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a field is not text")
    return "".join(one for one in line(value)[:_MAX_FIELD] if unicodedata.category(one) != "Cc")
