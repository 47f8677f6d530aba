"""Ask a search provider.

In:    a query in words
Out:   hits in the provider's order; an empty tuple when it found nothing; WebError when the query or the answer is no good
Fails: WorldDownError when the provider cannot be reached, or does not serve us: that is nobody's query's fault
"""

from __future__ import annotations

import json
import os
from typing import Any, Protocol

from dr_jax.base.errors import UserError, WorldDownError
from dr_jax.web.fetch import Fetched, Fetcher
from dr_jax.web.pace import Slots
from dr_jax.web.page import Hit, WebError

SERPER_URL = "https://google.serper.dev/search"
LITTLEWEB_URL = "http://search.littleweb/search"
SERPER_KEY = "SERPER_API_KEY"

_MAX_QUERY = 2_048
_MAX_FIELD = 2_000


class SearchAdapter(Protocol):
    """One provider of search results."""

    async def search(self, query: str) -> tuple[Hit, ...] | WebError:
        """Return hits, best first, or why this query (vetted by `vet_query`) cannot be answered.

        Raises:
            WorldDownError: the provider failed, whatever the query.
        """
        ...


class SerperSearch:
    """Serper (https://serper.dev), and whatever answers in its shape.

    Args:
        url: where queries are posted.
        results: how many hits are asked for.
        fetcher: the way out.
        slots: limits of the provider.
        key: sent as X-API-KEY; "" sends none.
    """

    def __init__(self, url: str, results: int, fetcher: Fetcher, slots: Slots, key: str = "") -> None:
        self._url, self._results, self._fetcher, self._slots = url, results, fetcher, slots
        self._headers = {"X-API-KEY": key} if key else {}

    async def search(self, query: str) -> tuple[Hit, ...] | WebError:
        """Return hits, best first, or why the query cannot be answered.

        Raises:
            WorldDownError: the provider failed, whatever the query.
        """
        payload = {"q": query, "num": self._results, "gl": "us", "hl": "en"}
        answer = await self._fetcher.post(self._url, payload, self._headers, self._slots)
        if isinstance(answer, WebError):
            raise WorldDownError(f"Searching failed: {answer.message}")
        return self._read(answer)

    def _read(self, answer: Fetched) -> tuple[Hit, ...] | WebError:
        # The provider's words are not repeated: they may hold the key.
        if answer.status in (401, 403):
            raise WorldDownError(f"{self._url} refuses our key (status {answer.status}): check the value of {SERPER_KEY}")
        if answer.status == 402 or (answer.status == 400 and b"credit" in answer.body.lower()):
            raise WorldDownError(f"{self._url} says that no credits are left (status {answer.status})")
        if answer.status == 400:
            return WebError("bad_query", "The search provider does not take this query")
        if answer.status != 200:
            raise WorldDownError(f"{self._url} answered with status {answer.status}")
        if answer.broken:
            raise WorldDownError(f"The connection broke off while {self._url} answered")
        try:
            return _hits(json.loads(answer.body))[: self._results]
        except (ValueError, TypeError, KeyError, RecursionError):
            return WebError("bad_answer", "The search provider's answer could not be read")


def vet_query(query: str) -> str | WebError:
    """Return the query as it is asked, white space collapsed, or why it cannot be."""
    asked = _line(query)
    if not asked or len(asked) > _MAX_QUERY:
        return WebError("bad_query", f"A query of {len(asked)} characters cannot be searched; 1 to {_MAX_QUERY} are needed")
    return asked


def serper_key() -> str:
    """Return the key of the environment.

    Raises:
        UserError: it is not set, or cannot be a key; its value is not shown.
    """
    key = os.environ.get(SERPER_KEY, "").strip()
    if not key or not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(
            f"web.search is serper, but {SERPER_KEY} is {'no key' if key else 'not set'}",
            needed="an API key of serper.dev in that environment variable",
            fix='set it, or search without a key: web.search = "littleweb"',
        )
    return key


def _hits(content: Any) -> tuple[Hit, ...]:
    """Read Serper's response.

    Raises:
        TypeError, KeyError, ValueError: it has another shape.
    """
    found = content["organic"]
    if not isinstance(found, list):
        raise TypeError("organic is not a list")
    return tuple(
        Hit(_text(one.get("title", "")), _text(one["link"]), _text(one.get("snippet", ""))) for one in map(_dict, found)
    )


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("a result is not an object")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a field is not text")
    return _line(value)[:_MAX_FIELD]


def _line(text: str) -> str:
    """Collapse white space and replace halves of surrogate pairs, which JSON can hold and nothing else can."""
    return " ".join(text.encode(errors="replace").decode().split())
