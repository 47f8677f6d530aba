"""Serper (https://serper.dev): Google's results, bought by the query; and littleweb, which answers in its shape."""

from __future__ import annotations

from typing import Any

from dr_jax.web.search.provider import Hits, Provider, Query, Request, Verdict, as_object, hits, judged

_CHEAP = 10  # results above which a query takes two credits


def ask(query: Query) -> Request:
    """Build the request."""
    payload = {"q": query.text, "num": query.results, "gl": "us", "hl": "en", **query.parameters}
    return Request("POST", query.url, {"X-API-KEY": query.key} if query.key else {}, payload)


def read(content: Any) -> Hits:
    """Read the answer; `organic` is there and empty when nothing was found.

    Raises:
        KeyError, TypeError, ValueError: it has another shape.
    """
    return hits(as_object(content)["organic"], title="title", url="link", snippet="snippet")


def judge(status: int, body: bytes) -> Verdict:
    """Return what a status means: an empty account is a 400 too."""
    return "credits" if status == 400 and b"credit" in body.lower() else judged(status, body)


SERPER = Provider(
    title="Serper",
    url="https://google.serper.dev/search",
    ask=ask,
    read=read,
    judge=judge,
    key="SERPER_API_KEY",
    cost=0.001,
    units=lambda results: 1 if results <= _CHEAP else 2,
    per_s=50.0,
    concurrent=64,
)
LITTLEWEB = Provider(
    title="littleweb",
    url="http://search.littleweb/search",
    ask=ask,
    read=read,
    judge=judge,
    own=True,
    hint="the server that runs it",
)
