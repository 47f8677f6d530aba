"""Read a page for a question, segment by segment, and say only what is new.

In:    a page, the main question, the sub-question, what is known so far
Out:   Reading: pieces of information with their page numbers; bounded
Holds: the last segment always ends it, and a hard cap does so before; the extractive reader is a pure function
"""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from dr_jax.base.errors import CapacityError
from dr_jax.base.metrics import Metrics
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.policy import Policy, RequestKey, Sampling
from dr_jax.web.page import Page

_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"[^\n.!?]+(?:[.!?]+(?!\s)[^\n.!?]+)*[.!?]*")
_OBJECT = re.compile(r"\{.*\}", re.DOTALL)
# Words that match everywhere and mean nothing here; other languages do without such a list.
_EMPTY = re.compile(
    r"a|an|and|are|as|at|be|by|did|do|does|for|from|had|has|have|how|in|is|it|its|many|much|of|on|or|that|the|their|this|to|was|"
    r"were|what|when|where|which|who|whom|whose|why|will|with"
)
_SENTENCE_CHARS = 600  # a longer run without a full stop is cut: minified text, lists, other scripts


@dataclass(frozen=True, slots=True)
class ReaderSettings:
    """How pages are read.

    Args:
        kind: `extractive` (no model: the sentences that match best) or `policy` (a model reads).
        segment_chars: characters of one segment; pages are cut at white space.
        max_segments: of one page.
        sentences: most that the extractive reader takes from a segment.
        max_new_tokens: of one reply of a reading model.
    """

    kind: Literal["extractive", "policy"] = "extractive"
    segment_chars: int = 40960
    max_segments: int = 4
    sentences: int = 5
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        for name in ("segment_chars", "max_segments", "sentences", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; at least 1 is needed")


@dataclass(frozen=True, slots=True)
class Reading:
    """What one segment of a page said: its number from 1, and the new information."""

    page_number: int
    summary: str


@dataclass(frozen=True, slots=True)
class Task:
    """Why a page is read: the main question, the sub-question, and what is known from earlier pages."""

    question: str
    sub_question: str
    known: tuple[str, ...] = ()


class Reader(Protocol):
    """Anything that reads pages."""

    async def read(self, page: Page, task: Task, key: RequestKey) -> tuple[Reading, ...]:
        """Return what the page says that is new, in order; empty when it says nothing."""
        ...


class ExtractiveReader:
    """Picks the sentences that match question and sub-question best, in page order."""

    def __init__(self, settings: ReaderSettings) -> None:
        self._settings = settings

    async def read(self, page: Page, task: Task, key: RequestKey) -> tuple[Reading, ...]:
        """Read until a segment has told something that the sub-question asked for."""
        known = " ".join(task.known)
        readings: list[Reading] = []
        for number, segment in enumerate(segments(page.text, self._settings), start=1):
            said = best_sentences(segment, task, self._settings.sentences, known=known, title=page.title)
            if not said:
                continue
            readings.append(Reading(number, " ".join(said)))
            known = f"{known} {readings[-1].summary}"
            if _covered(task.sub_question, said):
                break
        return tuple(readings)


class PolicyReader:
    """Lets a model read: after each segment it says what is new and whether to go on.

    Args:
        policy: any policy.
        chat: its chat format.
        settings: caps.
        metrics: counts replies that could not be read; the extractive reader answers in their place.
    """

    def __init__(self, policy: Policy, chat: Chat, settings: ReaderSettings, metrics: Metrics) -> None:
        self._policy, self._chat, self._settings, self._metrics = policy, chat, settings, metrics

    async def read(self, page: Page, task: Task, key: RequestKey) -> tuple[Reading, ...]:
        """Read segment by segment until the model wants to stop, or the page or the cap ends."""
        cut = list(segments(page.text, self._settings))
        known, readings = list(task.known), list[Reading]()
        for number, segment in enumerate(cut, start=1):
            told, go_on = await self._reply(
                segment, Task(task.question, task.sub_question, tuple(known)), number, len(cut), page.url, key
            )
            if told:
                readings.append(Reading(number, told))
                known.append(told)
            if not go_on:
                break
        return tuple(readings)

    async def _reply(self, segment: str, task: Task, number: int, count: int, url: str, key: RequestKey) -> tuple[str, bool]:
        asked = {
            "question": task.question,
            "sub_question": task.sub_question,
            "known": list(task.known),
            "page": number,
            "pages": count,
            "text": segment,
        }
        prompt = self._chat.open(_READ, json.dumps(asked, ensure_ascii=False))
        sampling = Sampling(self._settings.max_new_tokens, temperature=0.0, stop_ids=self._chat.stop_ids)
        here = RequestKey(key.run, key.question, key.sibling, key.turn, f"{key.purpose}/read:{url}:{number}")
        try:
            sampled = await self._policy.sample(prompt, sampling, here)
        except CapacityError:
            self._metrics.add("reader/segments_too_long")
            return self._extracted(segment, task), False
        reply = _reply_in(self._chat.tokenizer.decode(sampled.ids))
        if reply is None:
            self._metrics.add("reader/unreadable_replies")
            return self._extracted(segment, task), False
        return reply

    def _extracted(self, segment: str, task: Task) -> str:
        return " ".join(best_sentences(segment, task, self._settings.sentences, known=" ".join(task.known)))


def _reply_in(text: str) -> tuple[str, bool] | None:
    """Read what is new and whether to go on from a model's reply; None when it is not what was asked for."""
    found = _OBJECT.search(text)
    try:
        reply: Any = json.loads(found.group()) if found else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(reply, dict) or not isinstance(reply.get("information"), str):
        return None
    return reply["information"].strip(), reply.get("page_down") in (True, "true", "True", "yes")


_READ = (
    "You read one page of a document for a researcher. Reply with one JSON object: information (what this page says about the "
    "question that is not known yet, or an empty text), page_down (whether the next page is worth reading), summary (one line)."
)


def make_reader(settings: ReaderSettings, *, chat: Chat, policy: Policy | None, metrics: Metrics) -> Reader:
    """Build the reader that the settings name; `policy` reads where they ask for one."""
    if settings.kind == "policy" and policy is not None:
        return PolicyReader(policy, chat, settings, metrics)
    return ExtractiveReader(settings)


def segments(text: str, settings: ReaderSettings) -> Iterator[str]:
    """Cut text at white space into segments of at most `segment_chars`, at most `max_segments` of them."""
    start = 0
    for _ in range(settings.max_segments):
        if start >= len(text):
            return
        end = min(start + settings.segment_chars, len(text))
        if end < len(text):
            space = max(text.rfind(" ", start, end), text.rfind("\n", start, end))
            end = space + 1 if space > start else end
        if piece := text[start:end].strip():
            yield piece
        start = end


def best_sentences(segment: str, task: Task, count: int, *, known: str = "", title: str = "") -> list[str]:
    """Return the sentences with the highest BM25 score for the sub-question and question, in page order.

    Robertson and Zaragoza, "The Probabilistic Relevance Framework" (2009), with k1 = 1.2, b = 0.75, the segment's sentences
    as documents. Words of the sub-question count twice, words of the page's title a tenth: all of the page is about them.
    What is known already is left out, and so are headings and the like that only repeat words of the questions.
    """
    wanted = Counter(_words(task.sub_question) * 2 + _words(task.question))
    weights = {word: times * (0.1 if word in _words(title) else 1.0) for word, times in wanted.items()}
    found = {one: Counter(_words(one)) for one in _sentences(segment) if one not in known}
    sentences = [one for one, bag in found.items() if bag.keys() - wanted.keys()]
    bags = [found[one] for one in sentences]
    mean = sum(map(Counter.total, bags)) / max(len(bags), 1)
    frequency = Counter(word for bag in bags for word in bag if word in wanted)

    def score(bag: Counter[str]) -> float:
        total = 0.0
        for word, weight in weights.items():
            if word in bag:
                rarity = math.log(1 + (len(bags) - frequency[word] + 0.5) / (frequency[word] + 0.5))
                total += weight * rarity * bag[word] * 2.2 / (bag[word] + 1.2 * (0.25 + 0.75 * bag.total() / mean))
        return total

    scores = [score(bag) for bag in bags]
    best = sorted(range(len(sentences)), key=lambda place: (-scores[place], place))[:count]
    return [sentences[place] for place in sorted(best) if scores[place] > 0]


def _sentences(segment: str) -> Iterator[str]:
    for match in _SENTENCE.findall(segment):
        sentence = match.strip(" |")  # a row of a table
        if len(sentence) > _SENTENCE_CHARS:
            yield from textwrap.wrap(sentence, _SENTENCE_CHARS, break_on_hyphens=False)
        elif sentence:
            yield sentence


def _covered(sub_question: str, said: Sequence[str]) -> bool:
    """Whether one sentence holds most words of the sub-question."""
    wanted = set(_words(sub_question))
    return any(len(wanted & set(_words(one))) >= 0.6 * len(wanted) for one in said)


def _words(text: str) -> list[str]:
    return [word for word in map(str.lower, _WORD.findall(text)) if not _EMPTY.fullmatch(word)]
