"""Which questions a run asks: of a file, or of littleweb."""

from __future__ import annotations

from collections.abc import Sequence

from dr_jax.base.errors import ConfigError
from dr_jax.data import holdout, sources
from dr_jax.data.question import Question
from dr_jax.littleweb.questions import Puzzle
from dr_jax.train.settings import Settings


def training_questions(settings: Settings, drawn: Sequence[Puzzle]) -> list[Question]:
    """Return the questions to train on.

    Raises:
        ConfigError: the web is the open one and no file is named.
    """
    if settings.data.path:
        return sources.read(settings.data.path, limit=settings.data.limit or None)
    if not drawn:
        raise ConfigError(
            "There are no questions", needed="data.path, because only littleweb brings its own", fix="set data.path"
        )
    return [puzzle.question for puzzle in drawn]


def eval_questions(settings: Settings, drawn: Sequence[Puzzle], *, alone: bool) -> list[Question]:
    """Return the held-out questions.

    Args:
        settings: of the run.
        drawn: littleweb's held-out questions.
        alone: whether nothing is trained; `data.path` is then what to measure with.

    Raises:
        ConfigError: there are none and some are wanted.
    """
    if alone and settings.data.path and not settings.data.eval_path:
        return sources.read(settings.data.path, limit=settings.data.limit or None)
    if settings.data.eval_path:
        return sources.read(settings.data.eval_path, limit=settings.eval.questions or None)
    if settings.eval.questions and not drawn:
        raise ConfigError(
            "There are no held-out questions",
            needed="data.eval_path, because only littleweb brings its own",
            fix="set data.eval_path, or eval.questions = 0 to train without measuring",
        )
    return [puzzle.question for puzzle in drawn[: settings.eval.questions]]


def refuse_overlap(train: Sequence[Question], held_out: Sequence[Question]) -> None:
    """Stop a run that would be measured with what it is trained on."""
    holdout.refuse_overlap(train, held_out)
