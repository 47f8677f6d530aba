"""Scripted researchers: a policy whose words are written, not sampled, for the supervised cold start.

In:    a puzzle (a question with the chain of lookups that solves it) and a manner
Out:   Sampled, through the same seam as any policy, so a demonstration is an ordinary episode on the ordinary web
Holds: a diligent researcher says only what it was shown: a value that it did not read ends in `not found`
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from dr_jax.littleweb.questions import Puzzle
from dr_jax.littleweb.shelf import Shelf
from dr_jax.rollout.episode import Attempt
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.policy import RequestKey, Sampled, Sampling
from dr_jax.tokens.trajectory import Episode
from dr_jax.web.extract import extract
from dr_jax.web.page import Hit, Page, WebError

MANNERS = ("diligent", "guessing", "hasty")
NOT_FOUND = "not found"


@dataclass(frozen=True, slots=True)
class Manners:
    """How often each manner of researching is demonstrated; the shares need not sum to one.

    Args:
        diligent: searches, opens the page, reads the value, for every hop.
        guessing: answers at once with a value of the right kind from elsewhere in the world.
        hasty: does some of the steps, then answers with what it happens to have seen.
    """

    diligent: float = 1.0
    guessing: float = 0.0
    hasty: float = 0.0

    def __post_init__(self) -> None:
        if min(self.diligent, self.guessing, self.hasty) < 0 or self.diligent + self.guessing + self.hasty <= 0:
            raise ValueError(f"manners {self}: shares of zero or more are needed, not all zero")

    def draw(self, rng: random.Random) -> str:
        """Draw one manner."""
        return rng.choices(MANNERS, (self.diligent, self.guessing, self.hasty))[0]


class ShelfWeb:
    """The web of a world without the wire: its search, and its pages through the same extraction.

    Demonstrations are wanted by the ten thousand; what they show is what the server would have sent.
    """

    def __init__(self, shelf: Shelf, *, results: int = 10) -> None:
        self._shelf, self._results = shelf, results
        self.read = lru_cache(maxsize=4096)(self._extracted)

    async def search(self, query: str) -> tuple[Hit, ...] | WebError:
        """Search the world."""
        return tuple(Hit(one.title, one.link, one.snippet) for one in self._shelf.search(query, self._results))

    async def open(self, url: str) -> Page | WebError:
        """Open one of its pages."""
        return self.read(url)

    def _extracted(self, url: str) -> Page | WebError:
        document = self._shelf.open(url)
        if document.status != 200:
            return WebError("not_found", f"{url} does not exist")
        content_type, _, charset = document.content_type.partition("; charset=")
        return extract(document.body, url, content_type, charset)


class Researchers:
    """Implements `Policy` for littleweb questions by following each puzzle's steps in some manner.

    Args:
        chat: encodes the script and reads the prompt.
        puzzles: by question id.
        manners: the shares of each manner.
    """

    def __init__(self, chat: Chat, puzzles: Mapping[str, Puzzle], manners: Manners) -> None:
        self._chat = chat
        self._puzzles = puzzles
        self._manners = manners
        self._guesses: dict[str, list[str]] = {}
        for puzzle in puzzles.values():
            self._guesses.setdefault(puzzle.steps[-1].relation, []).append(puzzle.steps[-1].value)

    async def sample(self, prompt_ids: Sequence[int], sampling: Sampling, key: RequestKey) -> Sampled:
        """Write the next turn of this episode's script."""
        text = self._turn(self._puzzles[key.question], key, self._chat.tokenizer.decode(prompt_ids))
        ids = (*self._chat.tokenizer.markup(text), self._chat.stop_ids[0])
        return Sampled(ids, (0.0,) * len(ids), (0,) * len(ids), "stop")

    def manner_of(self, episode: Episode, attempt: Attempt) -> str:
        """The manner in which an episode was done."""
        return self._manner(RequestKey(attempt.run, episode.question_id, attempt.sibling, 0, attempt.purpose))

    def _manner(self, key: RequestKey) -> str:
        return self._manners.draw(random.Random(f"{key.run}/{key.question}/{key.sibling}/{key.purpose}"))

    def _turn(self, puzzle: Puzzle, key: RequestKey, seen: str) -> str:
        hop, opening = divmod(key.turn, 2)
        rng = random.Random(f"{key.run}/{key.question}/{key.sibling}/{key.purpose}/stop")
        stop_after = {"diligent": 2 * len(puzzle.steps), "guessing": 0, "hasty": rng.randrange(1, 2 * len(puzzle.steps))}[
            self._manner(key)
        ]
        latest = seen[seen.rfind("<|im_start|>tool") :]
        if key.turn and not opening and hop <= len(puzzle.steps) and puzzle.steps[hop - 1].value not in latest:
            return _answer(f"no {puzzle.steps[hop - 1].relation_words}", NOT_FOUND)
        if key.turn >= stop_after:
            return self._ending(puzzle, key, rng)
        step = puzzle.steps[hop]
        if opening:
            if step.url not in latest:
                return _answer(f"no page of {step.subject}", NOT_FOUND)
            return f"<think>open {step.subject}</think>{_call('browse_webpage', 'url_list', step.url)}"
        plan = "; ".join(later.relation_words for later in puzzle.steps[hop:])
        found = f"{puzzle.steps[hop - 1].relation_words}: {step.subject}. " if hop else ""
        call = _call("web_search", "query", f"{step.subject} {step.relation_words}")
        return f"<think>{found}{step.subject}: {plan}</think>{call}"

    def _ending(self, puzzle: Puzzle, key: RequestKey, rng: random.Random) -> str:
        last = puzzle.steps[-1]
        if self._manner(key) == "diligent":
            return _answer(f"{last.relation_words}: {last.value}", last.value)
        if self._manner(key) == "hasty" and key.turn >= 2:
            reached = puzzle.steps[(key.turn - 2) // 2]
            return _answer(f"{reached.relation_words}: {reached.value}", reached.value)
        guess = rng.choice(self._guesses[last.relation])
        return _answer(f"{last.relation_words}: {guess}", guess)


def _call(tool: str, argument: str, value: str) -> str:
    body = json.dumps({"name": tool, "arguments": {argument: [value]}}, ensure_ascii=False)
    return f"<tool_call>{body}</tool_call>"


def _answer(thought: str, answer: str) -> str:
    return f"<think>{thought}</think><answer>{answer}</answer>"
