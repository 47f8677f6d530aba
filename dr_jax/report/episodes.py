"""Read the episodes of a run as they are written: one short row each for lists, one whole for the reader.

In:    `episodes.jsonl`, perhaps still growing, and `episodes-1.jsonl` … of a run of several processes
Out:   `Tails.new()`: their whole lines so far, each with its place; `brief`: a row of the index; `told`: what the reader shows
Holds: half a line is left for later; a file that was cut for a resumed run is read anew
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dr_jax.base.errors import DataError
from dr_jax.rewards.match import exact_match, f1
from dr_jax.rewards.normalize import normalized
from dr_jax.rollout.record import episode_files

COLUMNS = (
    *("id", "step", "outcome", "reward", "f1", "calls", "errors", "tokens", "seconds"),
    *("question_id", "question", "answers", "source", "answer", "asked"),
)
_ASKED_CHARS = 2000  # of what an episode asked for, kept for the search over all episodes
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Line:
    """One episode's place in its file, and the episode."""

    start: int
    length: int
    row: dict[str, Any]


class Tail:
    """A file of episodes that may grow and may be cut.

    Args:
        path: the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.generation = 0  # of the file: another one when what was read before no longer stands
        self._file = 0
        self._read = 0
        self._lines = 0

    def new(self) -> Iterator[Line]:
        """Read the whole lines that were added since the last call; after a cut, all of them, and `generation` has risen.

        Raises:
            DataError: a line is no JSON object.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            found = os.fstat(file.fileno())
            if self._file and (found.st_ino != self._file or found.st_size < self._read):
                self.generation += 1
                self._read = self._lines = 0
            self._file = found.st_ino
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                start, self._read, self._lines = self._read, self._read + len(line), self._lines + 1
                yield Line(start, len(line), self._parsed(line))

    def forget(self) -> None:
        """Begin at the first line again."""
        self._read = self._lines = 0

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(f"Line {self._lines} of {self.path} is no JSON object", needed="a file that a run has written")
        return row

    def whole(self, places: Sequence[tuple[int, int]]) -> Iterator[dict[str, Any]]:
        """Read episodes again by their places: start and length."""
        with self.path.open("rb") as file:
            for start, length in places:
                file.seek(start)
                yield json.loads(file.read(length))


class Tails:
    """All files of episodes in a run's directory; more may come.

    Args:
        directory: the run's.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tails: dict[str, Tail] = {}

    @property
    def generation(self) -> int:
        """Of all files: another one when what was read before no longer stands."""
        return sum(tail.generation for tail in self._tails.values())

    def new(self) -> Iterator[tuple[str, Line]]:
        """Read what was added since the last call, each line with its file's name; all anew when one of them was cut.

        Raises:
            DataError: a line is no JSON object.
        """
        for name in episode_files(self._directory):
            self._tails.setdefault(name, Tail(self._directory / name))
        known = -1
        while known != self.generation:
            if known >= 0:
                for tail in self._tails.values():
                    tail.forget()
            known = self.generation
            for name, tail in self._tails.items():
                for line in tail.new():
                    if known != self.generation:
                        break
                    yield name, line

    def whole(self, places: Sequence[tuple[str, int, int]]) -> Iterator[dict[str, Any]]:
        """Read episodes again by their places: file, start and length."""
        for name, start, length in places:
            yield from self._tails[name].whole([(start, length)])


def brief(row: dict[str, Any], where: Path) -> list[Any]:
    """Return what a list shows and searches of an episode, in the order of COLUMNS.

    Raises:
        DataError: it is no episode.
    """
    try:
        rewards, tools, answers = row["rewards"], row["tools"], row["answers"]
        segments = [segment for trajectory in row["trajectories"] for segment in trajectory["segments"]]
        asked = "\n".join(json.dumps(tool["arguments"], ensure_ascii=False) for tool in tools)
        return [
            row["id"],
            row.get("step"),
            row["outcome"],
            sum(rewards.values()) if rewards else None,
            f1(row["answer"] or "", answers),
            len(tools),
            sum(bool(tool["error"]) for tool in tools),
            sum(len(segment["ids"]) for segment in segments),
            row["seconds"].get("all"),
            row["question_id"],
            row["question"],
            answers,
            row["source"],
            row["answer"],
            asked[:_ASKED_CHARS],
        ]
    except (KeyError, TypeError, AttributeError) as error:
        name = row.get("id", "?")
        raise DataError(f"Episode {name!r} in {where} has no {error}", needed="a file that a run has written") from error


def told(row: dict[str, Any], decode: Decode | None) -> dict[str, Any]:
    """Return an episode as the reader shows it: the world's words as text, the policy's token by token."""
    kept = {key: value for key, value in row.items() if key != "trajectories"}
    trajectories = [[_segment(segment, decode) for segment in one["segments"]] for one in row["trajectories"]]
    return {**kept, "trajectories": trajectories, "compared": compared(row["answer"], row["answers"])}


def compared(answer: str | None, accepted: Sequence[str]) -> dict[str, Any] | None:
    """Say how an answer compares with the accepted one that is nearest to it, word by word."""
    if answer is None or not accepted:
        return None
    nearest = max(accepted, key=lambda one: f1(answer, [one]))
    said, wanted = set(normalized(answer).split()), set(normalized(nearest).split())
    return {
        "nearest": nearest,
        "f1": f1(answer, accepted),
        "em": bool(exact_match(answer, accepted)),
        "shared": sorted(said & wanted),
        "missing": sorted(wanted - said),
        "extra": sorted(said - wanted),
    }


def _segment(segment: dict[str, Any], decode: Decode | None) -> dict[str, Any]:
    ids = segment["ids"]
    if segment["author"] != "policy":
        return {"author": segment["author"], "text": segment["text"], "count": len(ids)}
    return {
        "author": "policy",
        "text": segment["text"],
        "ids": ids,
        "pieces": pieces(ids, decode) if decode else None,
        "logprobs": [round(value, 4) for value in segment["logprobs"]],
        "versions": segment["versions"],
    }


def pieces(ids: Sequence[int], decode: Decode) -> list[str]:
    """Split a text at its tokens; a character that several tokens spell stands at the last of them."""
    found, waiting = list[str](), list[int]()
    for token in ids:
        waiting.append(token)
        text = decode(waiting)
        whole = not text.endswith("\ufffd") or len(waiting) > 4  # longer than any character in UTF-8
        found.append(text if whole else "")
        waiting = [] if whole else waiting
    if waiting:
        found[-1] = decode(waiting)
    return found


def decoder(directories: Sequence[Path]) -> Decode | None:
    """Read the first tokenizer that one of these directories holds; None when there is none to read."""
    files = [file for directory in directories if (file := directory / "tokenizer.json").is_file()]
    if not files:
        return None
    tokenizer = Tokenizer.from_file(str(files[0]))

    @lru_cache(maxsize=1 << 17)
    def known(ids: tuple[int, ...]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False))

    return lambda ids: known(tuple(ids))
