"""Write every episode as one line of JSON that a person and a program can read.

In:    groups, the question of each, the update they went into
Out:   `episodes.jsonl`; secrets replaced by the names of their variables
Holds: a line is written whole or, after a crash, left out by the reader
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from dr_jax.base.trace import redacted
from dr_jax.data.question import Question
from dr_jax.tokens.trajectory import Episode, Segment

Decode = Callable[[Sequence[int]], str]


class EpisodeWriter:
    """Appends episodes to a file.

    Args:
        path: the file.
        decode: ids to text, for the reader's eyes.
        append: keep what is there; otherwise start anew.
    """

    def __init__(self, path: Path, decode: Decode, *, append: bool = False) -> None:
        self._decode = decode
        self._file = path.open("a" if append else "w", encoding="utf-8")

    def write(self, episode: Episode, question: Question, **facts: Any) -> None:
        """Write one episode with whatever else should stand beside it, such as `step`."""
        self._file.write(redacted(json.dumps({**facts, **as_row(episode, question, self._decode)}, ensure_ascii=False)) + "\n")

    def flush(self) -> None:
        """Hand what was written to the system."""
        self._file.flush()

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._file.close()


def as_row(episode: Episode, question: Question, decode: Decode) -> dict[str, Any]:
    """Turn an episode into JSON values: every segment with its author, text and ids, the policy's with log-probabilities."""
    return {
        "id": episode.id,
        "question_id": question.id,
        "question": question.text,
        "answers": list(question.answers),
        "source": question.source,
        "outcome": episode.outcome.value,
        "answer": episode.answer,
        "rewards": episode.rewards,
        "step_rewards": list(episode.step_rewards),
        "failure": episode.failure,
        "seconds": {name: round(value, 4) for name, value in episode.seconds.items()},
        "tools": [
            {
                "turn": event.turn,
                "name": event.name,
                "arguments": event.arguments,
                "error": event.error,
                "seconds": round(event.seconds, 4),
                "observation": event.observation,
            }
            for event in episode.tools
        ],
        "trajectories": [
            {"segments": [_segment(segment, decode) for segment in trajectory.segments]} for trajectory in episode.trajectories
        ],
    }


def _segment(segment: Segment, decode: Decode) -> dict[str, Any]:
    row: dict[str, Any] = {"author": segment.author.value, "text": decode(segment.ids), "ids": list(segment.ids)}
    if segment.logprobs:
        row |= {"logprobs": [round(value, 6) for value in segment.logprobs], "versions": list(segment.versions)}
    return row


def read_episodes(path: Path) -> Iterator[dict[str, Any]]:
    """Read a file of episodes, line by line; a half-written last line ends it.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield json.loads(line)
