"""A policy on an OpenAI-compatible server, to be measured.

In:    prompt ids and how to sample, as every policy
Out:   Sampled, whose ids are the server's text, encoded: its log-probabilities are not known, so nothing of it can be trained
Fails: WorldDownError when the server does not answer: an episode that this ends says nothing about the policy; BudgetError
Holds: what pages say cannot pose as a message of its own: ids, not texts, say where messages begin
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dr_jax.agent.endpoint import Endpoint, EndpointSettings, Reply, Spending, as_reply
from dr_jax.base.errors import ConfigError, ContextFullError
from dr_jax.base.metrics import Metrics
from dr_jax.tokens.calls import TAGS
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.policy import RequestKey, Sampled, Sampling
from dr_jax.tokens.tokenizer import Tokenizer
from dr_jax.tokens.vocabulary import CHATML, MESSAGE
from dr_jax.web.search.provider import Request, as_object

_TAG = re.compile(rf"(</?(?:{'|'.join(TAGS)})>)")
VERSION = -1  # of weights that nobody here knows
_OVERHEAD = 8  # tokens that a chat template puts around each message


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How servers are asked that `--model NAME=URL` names.

    Args:
        api: `chat` sends messages to `/chat/completions`, which every server has; `completions` sends the ids themselves to
            `/completions`, as vLLM and llama.cpp take them, and needs the tokenizer that the server's model has.
        tokenizer: a directory with tokenizer files, by which tokens are counted and, with `completions`, encoded; "" takes the
            config's own.
        seeded: send a seed that depends on question, sample and turn, so that a server that keeps to it answers alike again.
        endpoint: limits, prices, the key's variable; `url` and `model` are those of the command line if they are empty.
    """

    api: Literal["chat", "completions"] = "chat"
    tokenizer: str = ""
    seeded: bool = True
    endpoint: EndpointSettings = field(default_factory=EndpointSettings)


def chat_of(settings: ServerSettings, tokenizer: Tokenizer) -> Chat:
    """Return the chat format by which a conversation becomes ids, and can be taken apart again.

    With `completions` it is the model's own; with `chat` the server applies that, and ours only keeps messages apart.
    """
    if settings.api == "completions":
        return Chat(tokenizer)
    tokenizer.fast.add_special_tokens({"additional_special_tokens": list(MESSAGE)})
    tokenizer.fast.chat_template = CHATML
    return Chat(Tokenizer(tokenizer.fast))


class ServerPolicy:
    """A policy on a server. An async context manager.

    Args:
        settings: how it is asked.
        chat: as `chat_of` returns it.
        metrics: everything under `server/`.
        spending: of the evaluation.
    """

    def __init__(self, settings: ServerSettings, chat: Chat, *, metrics: Metrics, spending: Spending) -> None:
        self._settings, self._chat = settings, chat
        self._marks = [chat.tokenizer.markup(mark) for mark in MESSAGE] if settings.api == "chat" else []
        if any(len(mark) != 1 for mark in self._marks):
            raise ConfigError(
                "The tokenizer cannot hold the marks of messages", needed="another one", fix="set server.tokenizer"
            )
        self._endpoint = _Completions(settings, metrics=metrics, spending=spending)

    async def __aenter__(self) -> ServerPolicy:
        await self._endpoint.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._endpoint.__aexit__(*error)

    async def healthy(self) -> None:
        """Wait until the server may be asked.

        Raises:
            WorldDownError: it has been down for too long.
            BudgetError: it has cost as much as it may.
        """
        await self._endpoint.healthy()

    async def sample(self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey) -> Sampled:
        """Ask for a continuation. Deadlines are the endpoint's, and the caller's.

        Raises:
            ContextFullError: the server does not take so long a prompt, or not this one.
            WorldDownError: it did not answer.
            BudgetError: it has cost as much as it may.
        """
        wanted: dict[str, Any] = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature}
        if sampling.top_p < 1:
            wanted["top_p"] = sampling.top_p
        if self._settings.seeded:
            wanted["seed"] = key_seed(key)
        if self._settings.api == "chat":
            wanted["messages"] = self._messages(prompt_ids)
        else:
            wanted["prompt"] = list(prompt_ids)
        found = await self._endpoint.ask(json.dumps(wanted, ensure_ascii=False))
        if found is None:
            raise ContextFullError(f"The server does not take a prompt of {len(prompt_ids)} tokens", needed="a shorter one")
        return self._sampled(found)

    def _sampled(self, reply: Reply) -> Sampled:
        tokenizer = self._chat.tokenizer
        # Our control tags, which may be tokens of their own, as the model wrote them; nothing else of a text becomes one.
        ids: list[int] = []
        for part in _TAG.split(reply.text):
            ids += tokenizer.markup(part) if _TAG.fullmatch(part) else tokenizer.text(part)
        ended = reply.finish != "length" or not ids
        ids = [*ids, self._chat.stop_ids[0]] if ended else ids
        return Sampled(tuple(ids), (0.0,) * len(ids), (VERSION,) * len(ids), "stop" if ended else "length")

    def _messages(self, ids: Sequence[int]) -> list[dict[str, str]]:
        """Take the messages out of the ids; the last one, the reply's beginning, is left out."""
        (begin,), (end,) = self._marks
        messages, start = list[dict[str, str]](), None
        for place, one in enumerate(ids):
            if one == begin:
                start = place + 1
            elif one == end and start is not None:
                role, _, content = self._chat.tokenizer.decode(ids[start:place]).partition("\n")
                messages.append({"role": role, "content": content})
                start = None
        if start is not None and self._chat.tokenizer.decode(ids[start:]).partition("\n")[2]:
            raise ConfigError(
                "A chat server cannot go on from words that are put in its mouth",
                needed='episode.prefill = ""',
                fix='remove it, or set server.api = "completions"',
            )
        return messages


def key_seed(key: RequestKey) -> int:
    """Return a seed that depends on the request alone."""
    text = json.dumps([key.run, key.question, key.sibling, key.turn, key.purpose])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") >> 1


class _Completions(Endpoint):
    """An endpoint whose requests are written elsewhere: what is asked is the request, as JSON."""

    def __init__(self, settings: ServerSettings, *, metrics: Metrics, spending: Spending) -> None:
        super().__init__(settings.endpoint, "", 1, metrics=metrics, spending=spending, under="server")
        self._api = settings.api

    def _request(self, asked: str) -> Request:
        settings = self._settings
        wanted = json.loads(asked)
        if "max_completion_tokens" in settings.parameters:
            wanted.pop("max_tokens")
        path = "/chat/completions" if self._api == "chat" else "/completions"
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        return Request(
            "POST", settings.url.rstrip("/") + path, headers, {"model": settings.model, **wanted} | settings.parameters
        )

    def _most(self, asked: str) -> tuple[int, int]:
        wanted, told = json.loads(asked), self._settings.parameters
        limits = [wanted["max_tokens"], *(int(told[name]) for name in ("max_completion_tokens", "max_tokens") if name in told)]
        if "prompt" in wanted:
            return len(wanted["prompt"]), max(limits)
        texts = [one["content"] for one in wanted["messages"]]
        return sum(len(text.encode()) + _OVERHEAD for text in texts), max(limits)

    def _read(self, content: Any) -> Reply:
        (choice,) = as_object(content)["choices"][:1]
        text = as_object(as_object(choice)["message"]).get("content") if self._api == "chat" else choice["text"]
        return as_reply(content, text, choice.get("finish_reason"))
