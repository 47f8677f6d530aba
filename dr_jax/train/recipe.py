"""A recipe whose judge of questions may be a model on a server; without JAX, which only models of ours need."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field

from dr_jax.agent.endpoint import Endpoint, EndpointSettings
from dr_jax.base.metrics import Metrics
from dr_jax.data.filters.quality import QualitySettings
from dr_jax.data.recipe import Recipe

REPLY = "You follow instructions exactly and reply in the form that is asked for."
_REMINDER = "Reply with the JSON object and nothing else."


@dataclass(frozen=True, slots=True)
class QuestionJudgeSettings(QualitySettings):
    """Whether and how a model judges questions, and where it is.

    Args:
        endpoint: an OpenAI-compatible server that is asked in place of `policy`; its budget is for one command.
    """

    endpoint: EndpointSettings = field(default_factory=EndpointSettings)

    def __post_init__(self) -> None:
        QualitySettings.__post_init__(self)
        if self.endpoint.url and (self.policy or not self.endpoint.model):
            raise ValueError(f"endpoint.url = {self.endpoint.url!r}; endpoint.model, and no policy beside it, are needed")


@dataclass(frozen=True, slots=True)
class BuildSettings(Recipe):
    """One training set, as `dr-jax data build` makes it; see `Recipe` for the rest."""

    quality: QuestionJudgeSettings = field(default_factory=QuestionJudgeSettings)

    @property
    def asks_models(self) -> bool:
        """Whether a filter asks a model of ours, or one on a server."""
        return self.quality.on or self.contamination.on


class ServerJudge:
    """A model on a server that replies to prompts, in other words when the same prompt comes again. A context manager.

    Args:
        settings: of the judge.
    """

    def __init__(self, settings: QuestionJudgeSettings) -> None:
        self._endpoint = Endpoint(settings.endpoint, REPLY, settings.max_new_tokens, metrics=Metrics(), under="quality")
        self._times: Counter[str] = Counter()
        self.name = json.dumps([settings.endpoint.model, settings.endpoint.url, settings.endpoint.parameters])

    async def __aenter__(self) -> ServerJudge:
        await self._endpoint.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._endpoint.__aexit__(*error)

    async def ask(self, prompt: str) -> str:
        """Return the reply; "" to a prompt that the server does not take.

        Raises:
            WorldDownError: it did not answer.
            BudgetError: it has cost as much as it may.
        """
        again = f"\n{' '.join([_REMINDER] * self._times[prompt])}" if self._times[prompt] else ""
        self._times[prompt] += 1
        found = await self._endpoint.ask(prompt + again)
        return "" if found is None else found.text
