"""Drop training questions that an evaluation asks as well: word for word, spelled otherwise, or a few words away.

In:    the evaluation questions, and how telling each word is
Out:   decisions that name the evaluation question that was met, its set, and how alike the two are

Two questions are *near* when
- the weighted Jaccard similarity of their words is at least 0.5, they share an accepted answer (yes and no do not count), and
  neither has a telling word or a number in place of one of the other's; or
- the similarity is at least 0.7, and one of those two holds.
A word weighs 1 (in most questions) to 6 (in hardly any): what names are asked about counts more than how it is asked, and the
order of the words does not count. Two questions from one template about different people are not near.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from dr_jax.data.filters.decision import KEPT, Decision, Verdict
from dr_jax.data.filters.minhash import Index, MinHash
from dr_jax.data.holdout import identity
from dr_jax.data.question import Question

_HEAVIEST = 6
_TELLING = 4  # in fewer questions than the square root of their number, by the scale of the weights
_PARTS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")  # no spaces between Chinese words
_SAYS_NOTHING = frozenset({"", "yes", "no"})
_SLACK = 0.1  # more than two standard errors of the estimate from 126 hashes


@dataclass(frozen=True, slots=True)
class LeakageSettings:
    """How alike a training question and an evaluation question may be.

    Args:
        near: least similarity of a pair that shares an answer and has no telling word exchanged; 1 looks for none.
        nearer: least similarity of a pair of which only one of these holds.
        most: share of an evaluation set that may be found, spelled in whatever way, among what is to be trained on, before
            the build stops: then the files were mixed up, and dropping would hide it.
    """

    near: float = 0.5
    nearer: float = 0.7
    most: float = 0.5

    def __post_init__(self) -> None:
        if not 0.3 <= self.near <= self.nearer <= 1:
            raise ValueError(f"near = {self.near}, nearer = {self.nearer}; 0.3 <= near <= nearer <= 1 is needed")
        if not 0 <= self.most <= 1:
            raise ValueError(f"most = {self.most}; a share from 0 to 1 is needed")


class WordWeights:
    """How telling words are: integers from 1 to 6, by in how many questions each occurs.

    Args:
        texts: of all questions, those that are looked up included.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        seen: Counter[str] = Counter()
        count = 0
        for text in texts:
            seen.update(set(words(text)))
            count += 1
        scale = (_HEAVIEST - 1) / math.log(count + 1) if count else 0.0
        self._weights = {word: 1 + round(scale * math.log((count + 1) / times)) for word, times in seen.items()}

    def __call__(self, word: str) -> int:
        """The weight of a word; one that never occurred weighs most."""
        return self._weights.get(word, _HEAVIEST)

    def digest(self) -> str:
        """Return a hash of all weights."""
        content = json.dumps(sorted(self._weights.items()), ensure_ascii=False)
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class _Bag:
    weights: dict[str, int]
    words: frozenset[str]
    total: int
    answers: frozenset[str]


class Leakage:
    """The filter.

    Args:
        held_out: evaluation questions by the name of their set.
        weights: of words.
        settings: how alike two questions may be.
    """

    name, together, at_once = "leakage", 1024, 1

    def __init__(
        self, held_out: Mapping[str, Sequence[Question]], weights: WordWeights, settings: LeakageSettings | None = None
    ) -> None:
        self._wanted, self._weigh = settings or LeakageSettings(), weights
        self._theirs = [(name, question) for name, questions in held_out.items() for question in questions]
        self._texts = {question.text: number for number, (_, question) in reversed(list(enumerate(self._theirs)))}
        self._spelled = {identity(question.text): number for number, (_, question) in reversed(list(enumerate(self._theirs)))}
        self._hashing = MinHash()
        self._bags = [self._bag(question) for _, question in self._theirs]
        self._index = Index(self._hashing, self._signatures(self._bags))
        self.settings = json.dumps({**asdict(self._wanted), "held_out": self._digest(), "weights": weights.digest()})

    async def decide(self, questions: Sequence[Question]) -> list[Decision]:
        """Decide about each question by its nearest evaluation question."""
        decisions = [self._spelled_alike(question) for question in questions]
        if self._wanted.near < 1:
            open_ones = [number for number, decision in enumerate(decisions) if decision is KEPT]
            for number, decision in self._near([questions[one] for one in open_ones]).items():
                decisions[open_ones[number]] = decision
        return decisions

    def _spelled_alike(self, question: Question) -> Decision:
        if question.text in self._texts:
            return self._dropped("exact", self._texts[question.text], 1.0)
        if (found := self._spelled.get(identity(question.text))) is not None:
            return self._dropped("normalised", found, 1.0)
        return KEPT

    def _near(self, questions: Sequence[Question]) -> dict[int, Decision]:
        bags = [self._bag(question) for question in questions]
        best: dict[int, tuple[float, int]] = {}
        for mine, theirs in self._index.candidates(self._signatures(bags), self._wanted.near - _SLACK).tolist():
            alike = self._alike(bags[mine], self._bags[theirs])
            if alike > best.get(mine, (0.0, 0))[0]:
                best[mine] = (alike, theirs)
        return {mine: self._dropped("near", theirs, alike) for mine, (alike, theirs) in best.items()}

    def _alike(self, one: _Bag, other: _Bag) -> float:
        """The similarity of a pair that is near, else 0."""
        shared = sum(map(one.weights.__getitem__, one.words & other.words))
        alike = shared / max(one.total + other.total - shared, 1)
        if alike < self._wanted.near:
            return 0.0
        answered = bool(one.answers & other.answers)
        kept = not (_tells(one, other) and _tells(other, one))
        return alike if (answered and kept) or (alike >= self._wanted.nearer and (answered or kept)) else 0.0

    def _dropped(self, kind: str, number: int, alike: float) -> Decision:
        name, question = self._theirs[number]
        facts = {"set": name, "kind": kind, "id": question.id, "text": question.text, "similarity": f"{alike:.3f}"}
        return Decision(Verdict.DROPPED, f"{kind}: {question.id} of {name}", facts)

    def _bag(self, question: Question) -> _Bag:
        weights = {word: self._weigh(word) for word in words(question.text)}
        answers = frozenset(map(identity, question.answers)) - _SAYS_NOTHING
        return _Bag(weights, frozenset(weights), sum(weights.values()), answers)

    def _signatures(self, bags: Sequence[_Bag]) -> NDArray[np.uint32]:
        return self._hashing.signatures([_features(bag) for bag in bags])

    def _digest(self) -> str:
        content = json.dumps([[name, one.id, one.text, one.answers] for name, one in self._theirs], ensure_ascii=False)
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def words(text: str) -> list[str]:
    """Return the words of a text, without case, accents and punctuation."""
    return _PARTS.findall(identity(text))


def _tells(one: _Bag, other: _Bag) -> bool:
    """Whether one has a telling word or a number that the other has not."""
    return any(one.weights[word] >= _TELLING or any(map(str.isdigit, word)) for word in one.words - other.words)


def _features(bag: _Bag) -> NDArray[np.uint64]:
    """One number per copy of a word: the Jaccard similarity of the copies is the weighted one of the words."""
    hashed = np.array([_number(word) for word in bag.weights], dtype=np.uint64)
    copies = np.array(list(bag.weights.values()), dtype=np.int64)
    within = np.arange(copies.sum()) - np.repeat(np.cumsum(copies) - copies, copies)
    return np.repeat(hashed, copies) + within.astype(np.uint64) * np.uint64(0xD6E8FEB86659FD93)


def _number(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
