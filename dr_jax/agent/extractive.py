"""Read without a model: the sentences that match the question best, in page order.

In:    a page, the main question, the sub-question, what is known so far
Out:   Reading: sentences of the page, word for word
Holds: a pure function of its arguments; the same page and task always give the same sentences
"""

from __future__ import annotations

import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

from dr_jax.agent.reading import ReaderSettings, Reading, Task, segments
from dr_jax.tokens.policy import RequestKey
from dr_jax.web.page import Page

_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"[^\n.!?]+(?:[.!?]+(?!\s)[^\n.!?]+)*[.!?]*")
# Words that match everywhere and mean nothing here; other languages do without such a list.
_EMPTY = re.compile(
    r"a|an|and|are|as|at|be|by|did|do|does|for|from|had|has|have|how|in|is|it|its|many|much|of|on|or|that|the|their|this|to|was|"
    r"were|what|when|where|which|who|whom|whose|why|will|with"
)
_SENTENCE_CHARS = 600  # a longer run without a full stop is cut: minified text, lists, other scripts


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
