"""Brave Search (https://brave.com/search/api): an index of its own, bought by the query."""

from __future__ import annotations

from typing import Any

from dr_jax.web.search.provider import Hits, Provider, Query, Request, Verdict, as_object, hits, judged, with_parameters


def ask(query: Query) -> Request:
    """Build the request; without marks around the words that were found."""
    asked = {"q": query.text, "count": query.results, "text_decorations": False, "result_filter": "web", **query.parameters}
    headers = {"Accept": "application/json", "X-Subscription-Token": query.key}
    return Request("GET", with_parameters(query.url, asked), headers)


def read(content: Any) -> Hits:
    """Read the answer; one to a search that found nothing has no `web`.

    Raises:
        KeyError, TypeError, ValueError: it has another shape.
    """
    content = as_object(content)
    if content["type"] != "search":
        raise ValueError("not the answer to a search")
    if content.get("web") is None:
        return ()
    return hits(as_object(content["web"])["results"], title="title", url="url", snippet="description")


def judge(status: int, body: bytes) -> Verdict:
    """Return what a status means: a key that is not known, and a query that is too long, are both a 422."""
    if status == 422:
        return "key" if b"SUBSCRIPTION_TOKEN" in body else "bad_query"
    return judged(status, body)


BRAVE = Provider(
    title="Brave Search",
    url="https://api.search.brave.com/res/v1/web/search",
    ask=ask,
    read=read,
    judge=judge,
    key="BRAVE_API_KEY",
    most=20,
    cost=0.005,
    per_s=20.0,
    concurrent=32,
)
