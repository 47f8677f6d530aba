"""Let a model read: after each segment it says what is new and whether to go on.

In:    a page, the task; a model that replies to one message
Out:   Told: what the page says that is new, in the order of its segments
Holds: segments are read in order, each with what is known from those before; the last one, or the cap, always ends it; a reply
       that cannot be read is counted, and the extractive reader answers in its place
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Protocol

from dr_jax.agent.extractive import best_sentences
from dr_jax.agent.reading import ReaderSettings, Reading, Task, segments
from dr_jax.base.errors import ContextFullError
from dr_jax.base.metrics import Metrics, timed
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.policy import Policy, RequestKey, Sampling
from dr_jax.web.page import Page, whole

READ = (
    "You read one page of a document for a researcher. Reply with one JSON object: information (what this page says about the "
    "question that is not known yet, or an empty text), page_down (whether the next page is worth reading)."
)
_OBJECT = re.compile(r"\{.*\}", re.DOTALL)
_CHARS_PER_TOKEN = 16  # more than any reply of so many tokens has; a server may not keep to what it was asked for


class Model(Protocol):
    """Anything that replies to a message."""

    async def reply(self, asked: str, key: RequestKey) -> str | None:
        """Return the reply; None when the message cannot be held."""
        ...


@dataclass(frozen=True, slots=True)
class Told:
    """What a page said.

    Args:
        readings: in order.
        sure: whether the model said all of it; False where the extractive reader answered in its place.
    """

    readings: tuple[Reading, ...]
    sure: bool = True


class PolicyModel:
    """A policy that replies, greedily.

    Args:
        policy: any.
        chat: its chat format.
        max_new_tokens: of a reply.
        system: what it is told before every message.
    """

    def __init__(self, policy: Policy, chat: Chat, max_new_tokens: int, system: str = READ) -> None:
        self._policy, self._chat, self._system = policy, chat, system
        self._sampling = Sampling(max_new_tokens, temperature=0.0, stop_ids=chat.stop_ids)

    async def reply(self, asked: str, key: RequestKey) -> str | None:
        """Return the reply; None when prompt and reply are longer than the policy's context."""
        try:
            sampled = await self._policy.sample(self._chat.open(self._system, asked), self._sampling, key)
        except ContextFullError:
            return None
        return self._chat.tokenizer.decode(sampled.ids)


class ModelReader:
    """Reads with a model.

    Args:
        model: replies.
        settings: caps.
        metrics: counts `reader/segments`, `reader/unreadable_replies` and `reader/segments_too_long`; times each in
            `reader/segment_s`.
    """

    def __init__(self, model: Model, settings: ReaderSettings, metrics: Metrics) -> None:
        self._model, self._settings, self._metrics = model, settings, metrics

    async def read(self, page: Page, task: Task, key: RequestKey) -> tuple[Reading, ...]:
        """Read until the model wants to stop, or the page or the cap ends."""
        return (await self.told(page, task, key)).readings

    async def told(self, page: Page, task: Task, key: RequestKey) -> Told:
        """Read, and say whether the model did."""
        cut = list(segments(page.text, self._settings))
        known, readings = list(task.known), list[Reading]()
        for number, segment in enumerate(cut, start=1):
            here = RequestKey(key.run, key.question, key.sibling, key.turn, f"{key.purpose}/read:{page.url}:{number}")
            so_far = Task(task.question, task.sub_question, tuple(known))
            reply = await self._reply(segment, so_far, number, len(cut), here)
            told, go_on = reply or (
                " ".join(best_sentences(segment, so_far, self._settings.sentences, known=" ".join(known))),
                False,
            )
            if told and told not in known:
                readings.append(Reading(number, told))
                known.append(told)
            if reply is None or not go_on:
                return Told(tuple(readings), sure=reply is not None)
        return Told(tuple(readings))

    async def _reply(self, segment: str, task: Task, number: int, count: int, key: RequestKey) -> tuple[str, bool] | None:
        asked = {
            "question": task.question,
            "sub_question": task.sub_question,
            "known": list(task.known),
            "page": number,
            "pages": count,
            "text": segment,
        }
        self._metrics.add("reader/segments")
        with timed(self._metrics, "reader/segment_s"):
            text = await self._model.reply(json.dumps(asked, ensure_ascii=False), key)
        if text is None:
            self._metrics.add("reader/segments_too_long")
            return None
        reply = _reply_in(text[: _CHARS_PER_TOKEN * self._settings.max_new_tokens])
        if reply is None:
            self._metrics.add("reader/unreadable_replies")
        return reply


def _reply_in(text: str) -> tuple[str, bool] | None:
    """Read what is new and whether to go on from a model's reply; None when it is not what was asked for."""
    found = _OBJECT.search(text)
    try:
        reply: Any = json.loads(found.group()) if found else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(reply, dict) or not isinstance(reply.get("information"), str):
        return None
    return whole(reply["information"]).strip(), reply.get("page_down") in (True, "true", "True", "yes")
