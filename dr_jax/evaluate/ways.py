"""How a policy attempts a question: with all tools, or as a baseline that has fewer.

In:    a question, who takes part, budgets, which attempt it is
Out:   Episode, as `run_episode` makes it
Ways:  `agent` searches and browses; `search_only` cannot open pages; `one_shot` is shown what one search with the question's
       own words finds, and the first pages of it, and then answers; `no_tools` answers from what it knows
Holds: the same policy, prompt forms, budgets and random numbers in all of them; a tool that is not there is refused, not a
       failure, and the policy is told to answer
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from dr_jax.agent.prompt import PromptSettings, system_prompt
from dr_jax.agent.tools import Memory
from dr_jax.base.errors import WorldDownError
from dr_jax.data.question import Question
from dr_jax.rollout.episode import LAST_TURN, Actors, Attempt, EpisodeSettings, run_episode
from dr_jax.tokens.calls import Call
from dr_jax.tokens.policy import RequestKey
from dr_jax.tokens.trajectory import Episode, Outcome, ToolEvent

Way = Literal["agent", "no_tools", "one_shot", "search_only"]
WAYS: tuple[Way, ...] = get_args(Way)

_CLOSED = """\
Answer the question from what you know. Today is {date}.

Your message has this form and nothing else:
<think>your reasoning</think><answer>the answer</answer>

The answer holds the final words only, without explanation; a yes-or-no question is answered by yes or no."""
_CLOSED_BRIEF = "Answer from what you know."


@dataclass(frozen=True, slots=True)
class WaySettings:
    """What the baselines may use.

    Args:
        pages: that `one_shot` is shown, of those that its search finds first.
    """

    pages: int = 3

    def __post_init__(self) -> None:
        if self.pages < 0:
            raise ValueError(f"pages = {self.pages}; 0 or more is needed")


async def attempt(
    way: Way,
    question: Question,
    actors: Actors,
    settings: EpisodeSettings,
    which: Attempt,
    *,
    prompt: PromptSettings,
    ways: WaySettings | None = None,
) -> Episode:
    """Attempt a question in one of the ways.

    Args:
        way: which.
        question: what is asked.
        actors: policy, chat, and a world with all tools.
        settings: budgets.
        which: attempt this is.
        prompt: style and date.
        ways: what the baselines may use.
    """
    bare = replace(actors, world=actors.world.only())
    answering = replace(settings, turns=1)  # a call is refused, and the next message must be the answer
    match way:
        case "agent":
            return await run_episode(question, actors, settings, which)
        case "search_only":
            fewer = actors.world.only("web_search")
            searching = replace(actors, world=fewer, system=system_prompt(prompt, fewer.schemas))
            return await run_episode(question, searching, settings, which)
        case "no_tools":
            closed = _CLOSED_BRIEF if prompt.style == "brief" else _CLOSED.format(date=prompt.date)
            return await run_episode(question, replace(bare, system=closed), answering, which)
        case "one_shot":
            start = time.perf_counter()
            try:
                async with asyncio.timeout(settings.world_s):
                    found = await _retrieved(question, actors, which, (ways or WaySettings()).pages)
            except (WorldDownError, TimeoutError) as error:
                seconds = time.perf_counter() - start
                why = str(error) or f"a deadline passed after {seconds:.1f} s, waiting for what one search finds"
                name = f"{question.id}.{which.sibling}"
                return Episode(name, question.id, (), Outcome.WORLD_FAILED, seconds={"all": seconds}, failure=why)
            opened = _opened(question, actors, found, settings.prefill)
            ended = await run_episode(question, bare, answering, which, opened=opened)
            took = {**ended.seconds, "all": time.perf_counter() - start}
            return replace(ended, tools=(*found, *ended.tools), seconds=took)


async def _retrieved(question: Question, actors: Actors, which: Attempt, pages: int) -> tuple[ToolEvent, ...]:
    """Search for the question's own words, and open the first pages that are found."""
    memory = Memory(question.text, measure=lambda text: len(actors.chat.tokenizer.text(text)))
    key = RequestKey(which.run, question.id, which.sibling, 0, f"{which.purpose}/one_shot")
    events: list[ToolEvent] = []

    async def called(name: str, arguments: dict[str, Any]) -> None:
        start = time.perf_counter()
        seen = await actors.world.call(Call(name, arguments), memory, key)
        events.append(ToolEvent(0, name, arguments, seen.text, seen.error, time.perf_counter() - start))

    await called("web_search", {"query": [question.text]})
    urls = list(memory.urls.values())[: min(pages, actors.world.settings.urls)]
    if urls:
        await called("browse_webpage", {"url_list": urls})
    return tuple(events)


def _opened(question: Question, actors: Actors, events: Sequence[ToolEvent], prefill: str) -> list[int]:
    """Write the conversation as if the policy had made these calls; the world wrote it, so nothing of it is the policy's."""
    chat = actors.chat
    ids = chat.open(actors.system, question.text)
    for place, event in enumerate(events):
        last = place + 1 == len(events)
        call = json.dumps({"name": event.name, "arguments": event.arguments}, ensure_ascii=False)
        ids += chat.tokenizer.markup("<think>I look that up.</think><tool_call>")
        ids += chat.tokenizer.text(call) + chat.tokenizer.markup("</tool_call>")
        shown = f"{event.observation}\n{LAST_TURN}" if last else event.observation
        ids += chat.observe(shown, closed=False, prefill=prefill if last else "")
    return ids
