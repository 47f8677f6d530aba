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
_EMPTY = frozenset(
    _WORD.findall(
        "a an and are as at be by did do does for from had has have how in is it its many much of on or that the their this to "
        "was were what when where which who whom whose why will with"
    )
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
    lengths: list[int] = []  # of all sentences, in words
    rows: list[tuple[str, Counter[str], int]] = []  # a sentence, the words of it that were asked for, how many it has in all
    for sentence in dict.fromkeys(_sentences(segment)):
        words = _words(sentence)
        asked = [word for word in words if word in weights]
        if len(asked) < len(words) and sentence not in known:
            lengths.append(len(words))
            if asked:
                rows.append((sentence, Counter(asked), len(words)))
    mean = sum(lengths) / max(len(lengths), 1)
    frequency = Counter(word for _, asked, _ in rows for word in asked)
    rarity = {word: math.log(1 + (len(lengths) - often + 0.5) / (often + 0.5)) for word, often in frequency.items()}

    def score(asked: Counter[str], count: int) -> float:
        long = 1.2 * (0.25 + 0.75 * count / mean)
        return sum(weights[word] * rarity[word] * times * 2.2 / (times + long) for word, times in asked.items())

    scores = [score(asked, words) for _, asked, words in rows]
    best = sorted(range(len(rows)), key=lambda place: (-scores[place], place))[:count]
    return [rows[place][0] for place in sorted(best) if scores[place] > 0]


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
    return [word for word in _WORD.findall(text.lower()) if word not in _EMPTY]
