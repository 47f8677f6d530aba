"""SearXNG (https://docs.searxng.org): a server of yours that asks other search engines; no key."""

from __future__ import annotations

from typing import Any

from dr_jax.web.search.provider import Hits, Provider, Query, Request, as_object, hits, with_parameters


def ask(query: Query) -> Request:
    """Build the request; `query.url` is the server's, with or without `/search`."""
    url = query.url.rstrip("/")
    asked = {"q": query.text, "format": "json", "pageno": 1, **query.parameters}
    return Request("GET", with_parameters(url if url.endswith("/search") else f"{url}/search", asked))


def read(content: Any) -> Hits:
    """Read the answer, which holds as many results as the engines gave.

    Raises:
        KeyError, TypeError, ValueError: it has another shape, or is empty because no engine answered.
    """
    content = as_object(content)
    found = hits(content["results"], title="title", url="url", snippet="content")
    if not found and content.get("unresponsive_engines"):
        raise ValueError("the engines behind it did not answer")
    return found


SEARXNG = Provider(
    title="SearXNG",
    url="",
    ask=ask,
    read=read,
    url_variable="SEARXNG_URL",
    per_s=2.0,
    concurrent=16,
    hint="`json` among search.formats in the server's settings.yml, and its limiter",
)
