"""Tavily (https://tavily.com): results for language models, bought by the credit."""

from __future__ import annotations

from typing import Any

from dr_jax.web.search.provider import Hits, Provider, Query, Request, Verdict, as_object, hits, judged


def ask(query: Query) -> Request:
    """Build the request. `search_depth = "advanced"` takes two credits: set `cost` to match."""
    payload = {"query": query.text, "max_results": query.results, "search_depth": "basic", **query.parameters}
    return Request("POST", query.url, {"Authorization": f"Bearer {query.key}"}, payload)


def read(content: Any) -> Hits:
    """Read the answer.

    Raises:
        KeyError, TypeError, ValueError: it has another shape.
    """
    return hits(as_object(content)["results"], title="title", url="url", snippet="content")


def judge(status: int, body: bytes) -> Verdict:
    """Return what a status means: 432 is the end of the plan, 433 that of pay-as-you-go."""
    return "credits" if status in (432, 433) else judged(status, body)


TAVILY = Provider(
    title="Tavily",
    url="https://api.tavily.com/search",
    ask=ask,
    read=read,
    judge=judge,
    key="TAVILY_API_KEY",
    most=20,
    cost=0.008,
    per_s=1.5,
    concurrent=16,
)
