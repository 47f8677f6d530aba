"""Ask a judge about answers: first a rationale, then correct or incorrect, as DeepResearcher's evaluation does.

In:    a question with its accepted answers, the answer that was given; any model that replies to a message
Out:   correct, incorrect, or unreadable, with the rationale
Holds: an unreadable reply is asked for again, and never counts as wrong; a judge that is down stops the judging, and judges
       nobody; every reply has a deadline
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from dr_jax.agent.model_reader import Model
from dr_jax.base.metrics import Metrics
from dr_jax.evaluate.attempt import Attempt
from dr_jax.evaluate.settings import JudgeSettings
from dr_jax.rewards.judge import Verdict, read_verdict
from dr_jax.tokens.policy import RequestKey

_REMINDER = 'Your last reply could not be read. Reply with one JSON object only: {"rationale": …, "judgement": …}'
_CHARS_PER_TOKEN = 16  # more than any reply of so many tokens has; a server may not keep to what it was asked for


@dataclass(frozen=True, slots=True)
class Judge:
    """A model that judges.

    Args:
        name: tells its verdicts from those of others.
        model: replies.
        settings: tries and deadlines.
        metrics: counts `judge/verdicts`, `judge/unreadable`, `judge/again`, `judge/timeouts`.
    """

    name: str
    model: Model
    settings: JudgeSettings
    metrics: Metrics

    async def grade(self, attempt: Attempt) -> Verdict | None:
        """Ask for a verdict; None when no reply can be read.

        Raises:
            WorldDownError: the judge did not answer.
            BudgetError: it has cost as much as it may.
        """
        asked: dict[str, object] = {
            "question": attempt.text,
            "accepted": list(attempt.accepted),
            "answer": attempt.answer,
        }
        for number in range(self.settings.tries):
            if number:
                self.metrics.add("judge/again")
                asked["reminder"] = " ".join([_REMINDER] * number)  # another message each time, lest the same reply comes again
            key = RequestKey(0, attempt.question, attempt.sample, number, "judge")
            try:
                async with asyncio.timeout(self.settings.seconds):
                    reply = await self.model.reply(json.dumps(asked, ensure_ascii=False), key)
            except TimeoutError:
                self.metrics.add("judge/timeouts")
                continue
            verdict = read_verdict((reply or "")[: _CHARS_PER_TOKEN * self.settings.max_new_tokens])
            if verdict is not None:
                self.metrics.add("judge/verdicts")
                return verdict
            if reply is None:
                break  # too long for it, and asking again is longer
        self.metrics.add("judge/unreadable")
        return None


def said(verdict: Verdict | None) -> tuple[str, str]:
    """Return what stands in the journal: the verdict in one word, and its rationale."""
    if verdict is None:
        return "unreadable", ""
    return ("correct" if verdict.correct else "incorrect"), verdict.rationale
