"""The two tools: check the arguments, ask the web, and put what came back into words.

In:    a call as the policy wrote it, what the episode has seen, the web, a reader
Out:   Observation: JSON text in DeepResearcher's shapes, bounded; what went wrong is said, never an empty list in its place
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from dr_jax.agent.reading import Reader, Task
from dr_jax.agent.together import together
from dr_jax.tokens.chat import harmless
from dr_jax.tokens.policy import RequestKey
from dr_jax.web.page import Hit, Page, WebError, whole

_URL_CHARS = 2000  # of an address worth showing: longer ones are not used by people
_CUT = " … [cut]"
_NARROW = 40  # characters that are left of a text before whole entries are left out


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
        calls: of one generation; those beyond are not carried out, and the policy is told so.
        snippet_chars: of a result's summary.
        observation_tokens: of what one call shows; the longest texts of it are shortened until it fits.
        parallel: read the pages of one call at once, each with the memory of before the call, instead of one after another.
        extra: tools of your own, each `module:function`; see `agent.world.Tool`.
    """

    queries: int = 3
    results: int = 10
    urls: int = 3
    calls: int = 1
    snippet_chars: int = 400
    observation_tokens: int = 4096
    parallel: bool = False
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("queries", "results", "urls", "calls", "snippet_chars"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; at least 1 is needed")
        if self.observation_tokens < 64:
            raise ValueError(f"observation_tokens = {self.observation_tokens}; at least 64 are needed to say anything")


def _bytes(text: str) -> int:
    return len(text.encode())


@dataclass(slots=True)
class Memory:
    """What one episode has seen; the only state that tools keep.

    Args:
        question: the main question.
        measure: how many tokens a text takes; bytes, which are never fewer, when nobody knows better.
        urls: every address that a search of this episode returned, by what it is recognised with.
        query: the latest search, the reader's sub-question.
        known: what readers have told for that query.
    """

    question: str
    measure: Callable[[str], int] = _bytes
    urls: dict[str, str] = field(default_factory=dict)
    query: str = ""
    known: list[str] = field(default_factory=list)

    def saw(self, url: str) -> None:
        """Remember that a search returned this address."""
        url = whole(url)
        self.urls.setdefault(_recognised(url), url)

    def seen(self, url: str) -> str | None:
        """Return the address as a search returned it; None when none did."""
        return self.urls.get(_recognised(url))


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
    answers = await together(web.search(query) for query in queries)
    shown: list[dict[str, Any]] = []
    errors: list[str] = []
    for query, hits in zip(queries, answers, strict=True):
        if isinstance(hits, WebError):
            errors.append(f"search for {query!r} failed: {hits.message}")
            shown.append({"search_query": query, "error": hits.message})
            continue
        found = [hit for hit in hits if len(hit.url) <= _URL_CHARS][: settings.results]
        for hit in found:
            memory.saw(hit.url)
        entry: dict[str, Any] = {"search_query": query, "web_page_info_list": [_info(hit, settings) for hit in found]}
        shown.append(entry if found else entry | {"note": "Nothing was found; try other words."})
    memory.query, memory.known = "; ".join(queries), []
    return Observation(bounded(shown, settings.observation_tokens, memory.measure), "; ".join(errors))


async def browse_webpage(
    arguments: dict[str, Any], memory: Memory, web: Web, settings: ToolSettings, *, reader: Reader, key: RequestKey
) -> Observation:
    """Open pages that a search of this episode has found, and tell what the reader makes of them.

    Pages are fetched at once and read in the order given, so that each reader knows what the earlier ones told.
    """
    urls = _texts(arguments, "url_list", settings.urls)
    if isinstance(urls, Observation):
        return urls
    urls = list(dict.fromkeys(urls))
    pages = await together(_opened(url, memory, web) for url in urls)
    if settings.parallel:
        before = tuple(memory.known)
        told = await together(_told(url, page, before, memory, reader, key) for url, page in zip(urls, pages, strict=True))
    else:
        told = [await _told(url, page, tuple(memory.known), memory, reader, key) for url, page in zip(urls, pages, strict=True)]
    errors = "; ".join(f"{one['url'][:200]}: {one['error']}" for one in told if "error" in one)
    return Observation(bounded(told, settings.observation_tokens, memory.measure), errors)


async def _opened(url: str, memory: Memory, web: Web) -> Page | str:
    seen = memory.seen(url)
    if seen is None:
        return "this address is in no search result of yours; open addresses that a search returned"
    page = await web.open(seen)
    return page.message if isinstance(page, WebError) else page


async def _told(
    url: str, page: Page | str, known: tuple[str, ...], memory: Memory, reader: Reader, key: RequestKey
) -> dict[str, Any]:
    if isinstance(page, str):
        return {"url": url[:_URL_CHARS], "error": page}
    readings = await reader.read(page, Task(memory.question, memory.query or memory.question, known), key)
    memory.known += [reading.summary for reading in readings]
    if not readings:
        nothing = f"Nothing {'new ' if known else ''}about this on the page."
        return {"url": url, "information": [{"page_number": 1, "page_summary": nothing}]}
    pages = [{"page_number": reading.page_number, "page_summary": shown(reading.summary)} for reading in readings]
    return {"url": url, "information": pages}


def shown(text: str) -> str:
    """Make foreign text fit to be shown: no control tags of ours, no half characters, no zero bytes."""
    return harmless(whole(text).replace("\x00", ""))


def bounded(content: list[dict[str, Any]], limit: int, measure: Callable[[str], int]) -> str:
    """Write content as JSON of at most `limit` tokens.

    Its longest texts are shortened, addresses never; where that is not enough, the last entries of its longest list are left
    out and counted.

    Args:
        content: JSON values.
        limit: in tokens.
        measure: how many tokens a text takes.
    """
    text = json.dumps(content, ensure_ascii=False)
    used = _used(text, limit, measure)
    widest = max(map(len, _texts_in(content)), default=0)
    while used > limit and (widest > _NARROW or _leave_one_out(content)):
        widest = max(_NARROW, min(widest - 1, int(widest * 0.95 * limit / used)))
        content = _shortened(content, widest)
        text = json.dumps(content, ensure_ascii=False)
        used = _used(text, limit, measure)
    return cut(text, limit) if used > limit else text


def _leave_one_out(content: list[dict[str, Any]]) -> bool:
    """Take the last entry out of the longest list; return whether there was one to take."""
    lists = [(len(found), place) for place, entry in enumerate(content) for found in entry.values() if isinstance(found, list)]
    longest, place = max(lists, default=(0, 0))
    if longest < 2:
        return False
    entry = content[place]
    next(found for found in entry.values() if isinstance(found, list) and len(found) == longest).pop()
    entry["left_out"] = entry.get("left_out", 0) + 1
    return True


def cut(text: str, limit: int) -> str:
    """Return so much of the text as surely fits into `limit` tokens, whatever the tokenizer: a token is a byte or more."""
    return text.encode()[: limit - len(_CUT.encode())].decode("utf-8", "ignore") + _CUT


def _used(text: str, limit: int, measure: Callable[[str], int]) -> int:
    length = _bytes(text)
    return length if length <= limit else measure(text)


def _texts_in(value: Any, name: str = "") -> list[str]:
    if isinstance(value, str):
        return [] if name in ("url", "search_query") else [value]
    if isinstance(value, dict):
        return [text for key, one in value.items() for text in _texts_in(one, key)]
    return [text for one in value for text in _texts_in(one)] if isinstance(value, list) else []


def _shortened(value: Any, widest: int, name: str = "") -> Any:
    if isinstance(value, str):
        return value if len(value) <= widest or name in ("url", "search_query") else value[: widest - 1] + "…"
    if isinstance(value, dict):
        return {key: _shortened(one, widest, key) for key, one in value.items()}
    return [_shortened(one, widest) for one in value] if isinstance(value, list) else value


def _info(hit: Hit, settings: ToolSettings) -> dict[str, str]:
    return {"title": shown(hit.title), "url": hit.url, "quick_summary": shown(hit.snippet[: settings.snippet_chars])}


def _recognised(url: str) -> str:
    """What two spellings of one address share: nothing of its fragment, nor a slash at its end."""
    return url.strip().partition("#")[0].rstrip("/")  # not parsed: a policy writes what no parser takes


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
