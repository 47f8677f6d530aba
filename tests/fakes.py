"""Small real implementations of the seams: a policy that says what it is told to, a web that holds a few pages."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Mapping, Sequence

from dr_jax.base.errors import ContextFullError, WorldDownError
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.policy import RequestKey, Sampled, Sampling
from dr_jax.tokens.tokenizer import Tokenizer
from dr_jax.tokens.vocabulary import train
from dr_jax.web.page import Hit, Page, WebError

SEARCH = '<think>look</think><tool_call>{"name": "web_search", "arguments": {"query": ["%s"]}}</tool_call>'
BROWSE = '<think>open</think><tool_call>{"name": "browse_webpage", "arguments": {"url_list": ["%s"]}}</tool_call>'
ANSWER = "<think>so</think><answer>%s</answer>"

Script = Callable[[RequestKey, str], str]


def small_tokenizer() -> Tokenizer:
    """A tokenizer of bytes and control tags."""
    return train([SEARCH, BROWSE, ANSWER, "What is the capital of Narnia?"] * 5, 400)


def search(*queries: str, thought: str = "look") -> str:
    """What a policy writes to search."""
    return (
        f"<think>{thought}</think><tool_call>{json.dumps({'name': 'web_search', 'arguments': {'query': queries}})}</tool_call>"
    )


def browse(*urls: str, thought: str = "open") -> str:
    """What a policy writes to open pages."""
    call = {"name": "browse_webpage", "arguments": {"url_list": urls}}
    return f"<think>{thought}</think><tool_call>{json.dumps(call)}</tool_call>"


def answer(text: str, thought: str = "so") -> str:
    """What a policy writes to answer."""
    return f"<think>{thought}</think><answer>{text}</answer>"


class ScriptedPolicy:
    """Says one text per turn, as ids, and remembers every prompt that it was given.

    Args:
        chat: encodes the texts.
        script: texts by turn, the last one again and again, or a function of the request's key and the prompt's text.
        version: of the weights that it pretends to have.
        seconds: how long a generation takes.
        context: prompts and budgets that together are longer than this cannot be held.
    """

    def __init__(
        self,
        chat: Chat,
        script: Sequence[str] | Script,
        *,
        version: int = 0,
        seconds: float = 0.0,
        context: int | None = None,
    ) -> None:
        self._chat, self._version, self._seconds, self._context = chat, version, seconds, context
        self._script: Script = script if callable(script) else lambda key, seen: script[min(key.turn, len(script) - 1)]
        self.prompts: dict[RequestKey, tuple[int, ...]] = {}
        self.said: dict[RequestKey, tuple[int, ...]] = {}
        self.cancelled = 0

    async def sample(self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey) -> Sampled:
        """Say the text of this turn, cut to the budget."""
        if self._context is not None and len(prompt_ids) + sampling.max_new_tokens > self._context:
            raise ContextFullError(f"{len(prompt_ids)} + {sampling.max_new_tokens} tokens", needed=f"at most {self._context}")
        try:
            await asyncio.sleep(self._seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        text = self._script(key, self._chat.tokenizer.decode(prompt_ids))
        whole = (*self._chat.tokenizer.markup(text), self._chat.stop_ids[0])
        ids = whole[: sampling.max_new_tokens]
        self.prompts[key], self.said[key] = tuple(prompt_ids), ids
        finish = "stop" if len(ids) == len(whole) else "length"
        return Sampled(ids, (-0.5,) * len(ids), (self._version,) * len(ids), finish)


class HangingPolicy:
    """Never answers; counts how many wait."""

    def __init__(self) -> None:
        self.waiting = 0

    async def sample(self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey) -> Sampled:
        """Wait for ever."""
        self.waiting += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.waiting -= 1
        raise AssertionError("unreachable")


class ScriptedWeb:
    """Holds some pages; every search finds all of them.

    Args:
        pages: text by URL; None is a page that cannot be opened.
        down: whether the world is down.
        failures: what is returned, or raised, instead of a page or of the hits of a query.
        seconds: how long an answer takes, by URL or query; 0 where not named.
    """

    def __init__(
        self,
        pages: Mapping[str, str | None] | None = None,
        *,
        down: bool = False,
        failures: Mapping[str, WebError | WorldDownError] | None = None,
        seconds: Mapping[str, float] | None = None,
    ) -> None:
        self._pages, self._down, self._failures, self._seconds = pages or {}, down, failures or {}, seconds or {}
        self.searched: list[str] = []
        self.opened: list[str] = []

    async def search(self, query: str) -> tuple[Hit, ...] | WebError:
        """Return every page."""
        if self._down:
            raise WorldDownError("the search provider does not answer")
        self.searched.append(query)
        failure = await self._arrival(query)
        if failure is not None:
            return failure
        return tuple(Hit(url.rpartition("/")[2], url, (text or "")[:80]) for url, text in self._pages.items())

    async def open(self, url: str) -> Page | WebError:
        """Return the page."""
        self.opened.append(url)
        failure = await self._arrival(url)
        if failure is not None:
            return failure
        text = self._pages[url]
        return WebError("not_found", f"{url} does not exist") if text is None else Page(url, url, text)

    async def _arrival(self, name: str) -> WebError | None:
        await asyncio.sleep(self._seconds.get(name, 0.0))
        failure = self._failures.get(name)
        if isinstance(failure, WorldDownError):
            raise failure
        return failure


@functools.cache
def small_chat() -> Chat:
    """A chat of single bytes and our control tags."""
    return Chat(train((), 300))
