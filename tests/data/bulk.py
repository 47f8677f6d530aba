"""Write large question files in official formats about a made-up world, to measure builds with.

Command: python tests/data/bulk.py DIRECTORY [--size 80000]
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dr_jax.data.question import Question

try:
    from tests.data.planted import asked, near
except ModuleNotFoundError:  # run as a script
    from planted import asked, near  # type: ignore[import-not-found, no-redef]

_SHARES = {"nq": 1, "tq": 1, "hotpotqa": 3, "2wiki": 3}
_FILLER = "The chronicle says little of it, and what it says was written down much later by somebody who had not been there. "


def write(directory: Path, size: int = 80_000, seed: int = 0) -> None:
    """Write a fifth more than a mixture of `size` needs, and a held-out file of each; some of its questions leak."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, share in _SHARES.items():
        chance = random.Random(f"{seed}/{name}")
        questions = [asked(chance, number, name) for number in range(int(size * 1.2 * share / sum(_SHARES.values())))]
        held_out = [asked(chance, number, f"{name}-eval") for number in range(max(10, size // 80))]
        for number, one in enumerate(held_out[::10]):
            text = (one.text, one.text.upper(), near(one.text, chance))[number % 3]
            questions.append(Question(f"{name}-leak{number}", text, one.answers, name))
        chance.shuffle(questions)
        _WRITERS[name](directory, "train", questions)
        _WRITERS[name](directory, "dev", held_out)


def _nq(directory: Path, split: str, questions: list[Question]) -> None:
    def row(question: Question) -> dict[str, Any]:
        start = len(_FILLER.split(" "))
        return {
            "document_text": f"{_FILLER} {question.answers[0]} . {_FILLER}",
            "question_text": question.text.lower().rstrip("?"),
            "annotations": [{"yes_no_answer": "NONE", "short_answers": [{"start_token": start, "end_token": start + 1}]}],
            "example_id": question.id,
        }

    _lines(directory / f"nq_{split}.jsonl", map(row, questions))


def _tq(directory: Path, split: str, questions: list[Question]) -> None:
    def row(question: Question) -> dict[str, Any]:
        answer = {"Value": question.answers[0], "Aliases": [question.answers[0], f"The {question.answers[0]}"]}
        return {"Question": question.text, "QuestionId": question.id, "QuestionSource": "", "Answer": answer}

    whole = {"Data": [row(question) for question in questions], "Domain": "Unfiltered", "Version": 1.0}
    (directory / f"tq_{split}.json").write_text(json.dumps(whole, indent=2), encoding="utf-8")


def _hotpotqa(directory: Path, split: str, questions: list[Question]) -> None:
    rows = [_multi(question) | {"type": "bridge", "level": "medium"} for question in questions]
    (directory / f"hotpotqa_{split}.json").write_text(json.dumps(rows), encoding="utf-8")


def _2wiki(directory: Path, split: str, questions: list[Question]) -> None:
    rows = [_multi(question) | {"type": "compositional", "evidences": [["a", "b", "c"]]} for question in questions]
    (directory / f"2wiki_{split}.json").write_text(json.dumps(rows), encoding="utf-8")


def _multi(question: Question) -> dict[str, Any]:
    return {
        "_id": question.id,
        "question": question.text,
        "answer": question.answers[0],
        "supporting_facts": [["Here", 0], ["There", 1]],
        "context": [[f"Page {number}", [_FILLER] * 3] for number in range(10)],
    }


def _lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


_WRITERS = {"nq": _nq, "tq": _tq, "hotpotqa": _hotpotqa, "2wiki": _2wiki}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--size", type=int, default=80_000)
    arguments = parser.parse_args()
    write(arguments.directory, arguments.size)
