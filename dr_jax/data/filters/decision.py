"""What a filter says of a question, and what a filter is.

Three verdicts, not two: a filter that could not find out is UNSURE, and the build's settings say what becomes of those.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from dr_jax.data.question import Question


class Verdict(Enum):
    """What becomes of a question."""

    KEPT = "kept"
    DROPPED = "dropped"
    UNSURE = "unsure"


@dataclass(frozen=True, slots=True)
class Decision:
    """What one filter says of one question.

    Args:
        verdict: what becomes of it.
        reason: why, in a few words before the first colon (they are counted), then in detail.
        facts: what was learnt on the way, kept in the question's `meta` if it is kept.
    """

    verdict: Verdict
    reason: str = ""
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The reason without its details."""
        return self.reason.partition(":")[0]


class Filter(Protocol):
    """Anything that decides about questions.

    Attributes:
        name: of its lines in the journal and in the report.
        settings: everything that its decisions depend on besides the question, as text: another text, another decision.
        together: how many questions are decided in one call; 1 for filters that ask somebody.
        at_once: how many calls may be under way.
    """

    name: str
    settings: str
    together: int
    at_once: int

    async def decide(self, questions: Sequence[Question]) -> list[Decision]:
        """Decide about each of them, in their order.

        Raises:
            DrJaxError: whoever is asked does not answer; what was decided before is in the journal.
        """
        ...


KEPT = Decision(Verdict.KEPT)


def fingerprint(question: Question) -> str:
    """Return what tells a question's content from any other: a journal survives files whose rows have moved."""
    content = json.dumps([question.id, question.text, question.answers], ensure_ascii=False)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
