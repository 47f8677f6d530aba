"""What reading a page means: what is asked, what comes back, in which pieces a page is read.

In:    a page, the main question, the sub-question, what is known so far
Out:   Reading: pieces of new information with the numbers of their segments; bounded
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from dr_jax.agent.endpoint import EndpointSettings
from dr_jax.tokens.policy import RequestKey
from dr_jax.web.page import Page


@dataclass(frozen=True, slots=True)
class ReaderSettings:
    """How pages are read.

    Args:
        kind: `extractive` (no model: the sentences that match best), `policy` (a model that runs here), `openai` (a server
            that speaks OpenAI's chat completions).
        model: which model `policy` is: `self`, the policy itself, as it is trained; `frozen`, as it was at the start; or
            another one, named as in `model.load`. All but `self` take the memory of a second engine.
        segment_chars: characters of one segment; pages are cut at white space.
        max_segments: of one page.
        sentences: most that the extractive reader takes from a segment.
        max_new_tokens: of one reply of a reading model.
        memory_mb: of readings kept in memory, so that siblings share them.
        endpoint: the server of `openai`.
    """

    kind: Literal["extractive", "policy", "openai"] = "extractive"
    model: str = "self"
    segment_chars: int = 40960
    max_segments: int = 4
    sentences: int = 5
    max_new_tokens: int = 512
    memory_mb: int = 16
    endpoint: EndpointSettings = field(default_factory=EndpointSettings)

    def __post_init__(self) -> None:
        for name in ("segment_chars", "max_segments", "sentences", "max_new_tokens", "memory_mb"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; at least 1 is needed")
        if self.kind == "openai" and not (self.endpoint.url and self.endpoint.model):
            raise ValueError("kind = 'openai' needs endpoint.url and endpoint.model")
        if not self.model:
            raise ValueError("model is empty; `self`, `frozen` or the name of a model is needed")


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
        """Return what the page says that is new, in order; empty when it says nothing.

        Raises:
            WorldDownError: the reader is down; that is not an empty reading.
            BudgetError: reading has cost as much as it may.
        """
        ...


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
