"""Google Programmable Search (https://developers.google.com/custom-search/v1): bought by the query, ten hits at a time.

Google takes no new customers for it and ends it on 1 January 2027.
"""

from __future__ import annotations

from typing import Any

from dr_jax.web.search.provider import Hits, Provider, Query, Request, Verdict, as_object, hits, judged, with_parameters

_KEY = (b"API_KEY_INVALID", b"API key not valid", b"API key expired", b"keyInvalid")
_QUOTA = (b"dailyLimitExceeded", b"quotaExceeded", b"per day")
_RATE = (b"rateLimitExceeded", b"userRateLimitExceeded")


def ask(query: Query) -> Request:
    """Build the request; the engine is the parameter `cx`."""
    asked = {"q": query.text, "num": query.results, **query.parameters}
    return Request("GET", with_parameters(query.url, asked), {"X-Goog-Api-Key": query.key})


def read(content: Any) -> Hits:
    """Read the answer; one to a search that found nothing has no `items`.

    Raises:
        KeyError, TypeError, ValueError: it has another shape.
    """
    content = as_object(content)
    if content["kind"] != "customsearch#search":
        raise ValueError("not the answer to a search")
    if "items" not in content:
        as_object(content["searchInformation"])
        return ()
    return hits(content["items"], title="title", url="link", snippet="snippet")


def judge(status: int, body: bytes) -> Verdict:
    """Return what a status means: a wrong key is a 400, a used-up day a 403, too fast either that or a 429."""
    if status == 400 and any(word in body for word in _KEY):
        return "key"
    if status == 403 and any(word in body for word in _QUOTA):
        return "credits"
    if status == 403 and any(word in body for word in _RATE):
        return "again"
    return judged(status, body)


GOOGLE = Provider(
    title="Google Programmable Search",
    url="https://www.googleapis.com/customsearch/v1",
    ask=ask,
    read=read,
    judge=judge,
    key="GOOGLE_API_KEY",
    also={"cx": "GOOGLE_CSE_ID"},
    most=10,
    cost=0.005,
    per_s=1.5,
    concurrent=16,
)
