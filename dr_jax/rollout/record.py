"""Write every episode as one line of JSON that a person and a program can read.

In:    groups, the question of each, the update they went into
Out:   `episodes.jsonl`; secrets replaced by the names of their variables
Holds: lines are written whole, a bounded number at a time; when the file is opened again, lines of steps that will be done
       again are cut off, and so is half a line that a crash left, which the reader leaves out too
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from dr_jax.base.trace import redacted
from dr_jax.data.question import Question
from dr_jax.tokens.trajectory import Episode, Segment

Decode = Callable[[Sequence[int]], str]
_BUFFER = 1 << 20  # bytes of episodes that a crash may cost


class EpisodeWriter:
    """Appends episodes to a file; a context manager.

    Args:
        path: the file.
        decode: ids to text, for the reader's eyes.
        keep_below: keep what is there of the steps below this one, which will be written again; None starts anew.
    """

    def __init__(self, path: Path, decode: Decode, *, keep_below: int | None = None) -> None:
        self._decode = decode
        if keep_below is not None and path.exists():
            cut(path, keep_below)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if keep_below is None else 0)
        self._file = os.open(path, flags, 0o644)
        self._waiting = bytearray()

    def write(self, episode: Episode, question: Question, **facts: Any) -> None:
        """Write one episode with whatever else should stand beside it, such as `step`."""
        row = json.dumps({**facts, **as_row(episode, question, self._decode)}, ensure_ascii=False)
        self._waiting += f"{redacted(row)}\n".encode("utf-8", "replace")
        if len(self._waiting) >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        """Hand what was written to the system.

        Raises:
            OSError: it does not take it, as when the disk is full; what was not taken is kept for the next time.
        """
        while self._waiting:
            del self._waiting[: os.write(self._file, self._waiting)]

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            self.flush()
        finally:
            os.close(self._file)


def cut(path: Path, below: int) -> None:
    """Leave out what was written of later steps, and half a line that a crash left."""
    partial = path.with_suffix(".partial")
    with path.open("rb") as old, partial.open("wb") as new:
        new.writelines(line for line in old if line.endswith(b"\n") and json.loads(line).get("step", 0) < below)
    partial.replace(path)


def as_row(episode: Episode, question: Question, decode: Decode) -> dict[str, Any]:
    """Turn an episode into JSON values: every segment with its author, text and ids, the policy's with log-probabilities."""
    return {
        "id": episode.id,
        "question_id": question.id,
        "question": question.text,
        "answers": list(question.answers),
        "source": question.source,
        "hops": question.hops,
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


def numbered(name: str, index: int) -> str:
    """Return the name of a process's own file: that of the first one has no number."""
    stem, _, kind = name.rpartition(".")
    return f"{stem}-{index}.{kind}" if index else name


def episode_files(directory: Path) -> list[str]:
    """Return the names of a run's files of episodes: `episodes.jsonl`, and one with a number of each further process."""
    numbers = (path.stem.removeprefix("episodes-") for path in directory.glob("episodes-*.jsonl"))
    return ["episodes.jsonl", *(f"episodes-{number}.jsonl" for number in sorted(filter(str.isdigit, numbers), key=int))]


def read_all_episodes(directory: Path) -> Iterator[dict[str, Any]]:
    """Read the episodes of all processes of a run, in the order of the updates.

    Raises:
        FileNotFoundError: there are none.
    """
    files = (read_episodes(directory / name) for name in episode_files(directory))
    return heapq.merge(*files, key=lambda row: row.get("step", 0))


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
