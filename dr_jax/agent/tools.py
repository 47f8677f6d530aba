"""The two tools: check the arguments, ask the web, and put what came back into words.

In:    a call as the policy wrote it, what the episode has seen, the web, a reader
Out:   Observation: JSON text in DeepResearcher's shapes, bounded; what went wrong is said, never an empty list in its place
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any, Protocol

from dr_jax.agent.reader import Reader, Task
from dr_jax.tokens.chat import harmless
from dr_jax.tokens.policy import RequestKey
from dr_jax.web.page import Hit, Page, WebError


class Web(Protocol):
    """The way out, as the tools see it."""

    async def search(self, query: str) -> tuple[Hit, ...] | WebError:
        """Return hits; WebError when the asker was wrong; raise WorldDownError when the world is."""
        ...

    async def open(self, url: str) -> Page | WebError:
        """Return the page, or why it cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class ToolSettings:
    """How much a tool may be asked for, and how much it shows.

    Args:
        queries: of one search call.
        results: shown per query.
        urls: of one browse call.
        snippet_chars: of a result's summary.
        observation_chars: of a whole observation; what is over is cut and said so.
        parallel: read the pages of one call at once, each with the memory of before the call, instead of one after another.
    """

    queries: int = 3
    results: int = 10
    urls: int = 3
    snippet_chars: int = 400
    observation_chars: int = 16000
    parallel: bool = False

    def __post_init__(self) -> None:
        for name in ("queries", "results", "urls", "snippet_chars", "observation_chars"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; at least 1 is needed")


@dataclass(slots=True)
class Memory:
    """What one episode has seen; the only state that tools keep.

    Args:
        question: the main question.
        urls: every address that a search of this episode returned.
        query: the latest search, the reader's sub-question.
        known: what readers have told for that query.
    """

    question: str
    urls: set[str] = field(default_factory=set)
    query: str = ""
    known: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Observation:
    """What the policy is shown, and what was wrong with the call; "" when nothing was."""

    text: str
    error: str = ""


def mistake(message: str) -> Observation:
    """Tell the policy what was wrong with its call."""
    return Observation(json.dumps({"error": message}, ensure_ascii=False), message)


async def web_search(arguments: dict[str, Any], memory: Memory, web: Web, settings: ToolSettings) -> Observation:
    """Search for each query and list titles, addresses and summaries."""
    queries = _texts(arguments, "query", settings.queries)
    if isinstance(queries, Observation):
        return queries
    answers = await asyncio.gather(*(web.search(query) for query in queries))
    shown: list[dict[str, Any]] = []
    failed = ""
    for query, hits in zip(queries, answers, strict=True):
        if isinstance(hits, WebError):
            failed = f"search for {query!r} failed: {hits.message}"
            shown.append({"search_query": query, "error": hits.message})
            continue
        found = hits[: settings.results]
        memory.urls.update(hit.url for hit in found)
        shown.append({"search_query": query, "web_page_info_list": [_info(hit, settings) for hit in found]})
    memory.query, memory.known = "; ".join(queries), []
    return Observation(_bounded(shown, settings), failed)


async def browse_webpage(
    arguments: dict[str, Any], memory: Memory, web: Web, settings: ToolSettings, *, reader: Reader, key: RequestKey
) -> Observation:
    """Open pages that a search of this episode has found, and tell what the reader makes of them."""
    urls = _texts(arguments, "url_list", settings.urls)
    if isinstance(urls, Observation):
        return urls
    strangers = [url for url in urls if url not in memory.urls]
    if strangers:
        return mistake(f"{strangers[0][:200]} is in no search result of yours; open addresses that a search returned")
    told: list[dict[str, Any]] = []
    if settings.parallel:
        before = tuple(memory.known)
        told = list(await asyncio.gather(*(_told(url, before, memory, web, reader, key) for url in urls)))
    else:
        for url in urls:
            told.append(await _told(url, tuple(memory.known), memory, web, reader, key))
    failed = "; ".join(str(one["error"]) for one in told if "error" in one)
    return Observation(_bounded(told, settings), failed)


async def _told(url: str, known: tuple[str, ...], memory: Memory, web: Web, reader: Reader, key: RequestKey) -> dict[str, Any]:
    page = await web.open(url)
    if isinstance(page, WebError):
        return {"url": url, "error": page.message}
    readings = await reader.read(page, Task(memory.question, memory.query or memory.question, known), key)
    memory.known += [reading.summary for reading in readings]
    if not readings:
        return {"url": url, "information": [{"page_number": 1, "page_summary": "Nothing about this on the page."}]}
    pages = [{"page_number": reading.page_number, "page_summary": harmless(reading.summary)} for reading in readings]
    return {"url": url, "information": pages}


def _info(hit: Hit, settings: ToolSettings) -> dict[str, str]:
    return {"title": harmless(hit.title), "url": hit.url, "quick_summary": harmless(hit.snippet[: settings.snippet_chars])}


def _texts(arguments: dict[str, Any], name: str, most: int) -> list[str] | Observation:
    given = arguments.get(name)
    if set(arguments) != {name} or not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        return mistake(f'arguments need exactly {{"{name}": [text, …]}}')
    texts = [one.strip() for one in given if one.strip()]
    if not texts:
        return mistake(f"{name} is empty; give at least one text")
    if len(texts) > most:
        return mistake(f"{name} holds {len(texts)} entries; at most {most} are taken at once")
    return texts


def _bounded(content: list[dict[str, Any]], settings: ToolSettings) -> str:
    text = json.dumps(content, ensure_ascii=False)
    if len(text) <= settings.observation_chars:
        return text
    return f"{text[: settings.observation_chars]} … [cut: {len(text) - settings.observation_chars} more characters]"
