"""Drop questions that the model to be trained can answer by heart, and say how hard the others are.

In:    a question; n samples of the model without tools
Out:   KEPT or DROPPED by the share of samples that contain an accepted answer (DeepResearcher, arXiv 2504.03160: any of ten
       drops it); as facts the pass rate, its band, and whether a search is needed to answer
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dr_jax.base.errors import DeadlineError, DrJaxError
from dr_jax.data.filters.decision import Decision, Verdict
from dr_jax.data.question import Question

_CLOSED = frozenset({"yes", "no"})


class Sampler(Protocol):
    """A model that answers without tools."""

    async def sample(self, question: Question, count: int) -> Sequence[str]:
        """Return so many independent answers.

        Raises:
            DrJaxError: it does not answer any more.
        """
        ...


@dataclass(frozen=True, slots=True)
class ContaminationSettings:
    """Which questions a model knows too well, or not at all.

    Args:
        on: whether it is asked at all.
        policy: a config whose model is asked (`configs/smollm2.toml`).
        samples: how often each question is put to it.
        keep: least and largest share of right samples of a question that is kept; (0, 0) keeps what was never known.
        bands: upper ends of the difficulty bands hard, medium and easy; above lies `known`.
        boundary: share of right samples from which on no search is needed.
        temperature: of the samples.
        max_new_tokens: of one sample.
        at_once: questions under way.
        seconds: deadline of one question's samples.
    """

    on: bool = False
    policy: str = ""
    samples: int = 10
    keep: tuple[float, float] = (0.0, 0.0)
    bands: tuple[float, float, float] = (0.0, 0.3, 0.7)
    boundary: float = 0.5
    temperature: float = 1.0
    max_new_tokens: int = 64
    at_once: int = 8
    seconds: float = 600.0

    def __post_init__(self) -> None:
        if self.samples < 1 or self.max_new_tokens < 1 or self.at_once < 1 or self.seconds <= 0:
            raise ValueError(f"{self}: samples, max_new_tokens and at_once of at least 1 and seconds above 0 are needed")
        if not 0 <= self.keep[0] <= self.keep[1] <= 1 or not 0 < self.boundary <= 1 or self.temperature < 0:
            raise ValueError(f"keep = {self.keep}, boundary = {self.boundary}: shares from 0 to 1 are needed, the least first")
        if not 0 <= self.bands[0] <= self.bands[1] <= self.bands[2] <= 1:
            raise ValueError(f"bands = {self.bands}: three shares from 0 to 1 are needed, in their order")


class Contamination:
    """The filter.

    Args:
        sampler: the model.
        normal: brings a text to the form in which answers are compared, as the rewards do.
        settings: what is too well known.
        model: which model that is, for the journal: another model, other decisions.
    """

    name, together = "contamination", 1

    def __init__(
        self,
        sampler: Sampler,
        normal: Callable[[str], str],
        settings: ContaminationSettings | None = None,
        *,
        model: str = "",
    ) -> None:
        self._sampler, self._normal, self._wanted = sampler, normal, settings or ContaminationSettings()
        self.at_once = self._wanted.at_once
        wanted = self._wanted
        self.settings = json.dumps(
            {
                "samples": wanted.samples,
                "keep": wanted.keep,
                "bands": wanted.bands,
                "boundary": wanted.boundary,
                "temperature": wanted.temperature,
                "max_new_tokens": wanted.max_new_tokens,
                "model": model or wanted.policy,
            }
        )

    async def decide(self, questions: Sequence[Question]) -> list[Decision]:
        """Sample answers to each question and look for the accepted ones."""
        return [await self._one(question) for question in questions]

    async def _one(self, question: Question) -> Decision:
        wanted = self._wanted
        try:
            async with asyncio.timeout(wanted.seconds):
                texts = await self._sampler.sample(question, wanted.samples)
        except TimeoutError as error:
            raise DeadlineError(f"{wanted.samples} samples of {question.id} did not come in {wanted.seconds} s") from error
        if len(texts) != wanted.samples:
            raise DrJaxError(f"The sampler returned {len(texts)} texts for {question.id}, {wanted.samples} were asked for")
        right = [text for text in texts if contains(text, question.answers, self._normal)]
        rate = len(right) / len(texts)
        facts = {
            "pass_rate": f"{rate:.4g}",
            "band": self._band(rate),
            "search": "not needed" if rate >= wanted.boundary else "needed",
        }
        if wanted.keep[0] <= rate <= wanted.keep[1]:
            return Decision(Verdict.KEPT, facts=facts)
        kind = "known" if rate > wanted.keep[1] else "too hard"
        said = f", such as {right[0][:120]!r}" if right else ""
        return Decision(Verdict.DROPPED, f"{kind}: {len(right)} of {len(texts)} samples are right{said}", facts)

    def _band(self, rate: float) -> str:
        return next(
            (name for name, end in zip(("hard", "medium", "easy"), self._wanted.bands, strict=True) if rate <= end), "known"
        )


def contains(text: str, answers: Sequence[str], normal: Callable[[str], str]) -> bool:
    """Whether a text has the words of an accepted answer, one after the other.

    Where only yes or no is accepted, the text must begin with it: a text that says "I have no idea" does not know.
    """
    said = normal(text)
    wanted = {one for answer in answers if (one := normal(answer))}
    if wanted and wanted <= _CLOSED:
        return said.partition(" ")[0] in wanted
    return any(f" {one} " in f" {said} " for one in wanted)
