"""Every model on every set in every way: only what is missing is done, and what is done is kept.

In:    settings, a plan
Out:   a directory for each cell of the table (its journal, its episodes, its settings, a summary in a run's shape), and
       `table.json` and `table.md` of all of them
Holds: whatever can be refused is refused before a model is loaded; stopping it at any moment loses no more than the attempts
       that were under way, and the same command goes on
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from typing import Any

from dr_jax.agent.prompt import system_prompt
from dr_jax.base.config import to_tree
from dr_jax.base.errors import ConfigError, DataError
from dr_jax.base.metrics import Metrics
from dr_jax.data import sources
from dr_jax.data.question import Question
from dr_jax.evaluate import ways
from dr_jax.evaluate.attempt import Attempt, attempted
from dr_jax.evaluate.compare import compared
from dr_jax.evaluate.journal import Cell, Journal
from dr_jax.evaluate.judged import Judge, said
from dr_jax.evaluate.models import Opened, Told, as_run, identity, judge_name, opened_judge, opened_model
from dr_jax.evaluate.settings import LITTLEWEB, EvaluationSettings, Plan
from dr_jax.evaluate.shown import markdown
from dr_jax.evaluate.table import plain, table
from dr_jax.evaluate.ways import Way
from dr_jax.rollout import episode as episodes
from dr_jax.rollout.collect import finished
from dr_jax.rollout.record import EpisodeWriter
from dr_jax.tokens.trajectory import Episode, Outcome
from dr_jax.train.places import puzzles_of
from dr_jax.train.questions import eval_questions
from dr_jax.train.report import write_json
from dr_jax.web.settings import WebSettings

_TRIES = 3  # at what the world fails
# What decides how a run learns, or where and how fast it goes, and not what an attempt finds.
_APART = frozenset(
    {"name", "out", "steps", "mismatch_gate", "advantage", "remat", "model", "data", "reward", "engine", "mesh", "rollout"}
    | {"memory_gib", "batch", "loss", "optimizer", "eval", "checkpoint", "report", "cold_start", "server", "judge"}
)
_WEB_APART = frozenset({"budget", "memory_mb", "pace", "tape", "gateways", "gateway"})
Item = tuple[Question, int]


@dataclass(frozen=True, slots=True)
class _Work:
    """One cell that is being filled."""

    journal: Journal
    questions: Sequence[Question]
    way: Way

    def missing(self, samples: int) -> list[Item]:
        """Attempts that were not made yet, or that the world failed."""
        done = {key for key, attempt in self.journal.cell.attempts.items() if attempt.counted}
        return [(one, number) for number in range(samples) for one in self.questions if (one.id, number) not in done]


async def evaluate(settings: EvaluationSettings, plan: Plan, *, told: Told) -> dict[str, Any]:
    """Fill every cell of the table, and return it.

    Args:
        settings: how.
        plan: what.
        told: called with a phase ("compiling", "evaluating", "judging"), an index, and numbers worth showing.

    Raises:
        UserError: something that a person can change; what is done is kept.
        WorldDownError: the world, a server or the judge has been down for too long; what is done is kept.
    """
    if plan.samples > 1 and not settings.eval.temperature:
        raise ConfigError(
            f"{plan.samples} samples at eval.temperature = 0 are all the same",
            needed="a temperature above 0, or one sample",
            fix="set eval.temperature=1.0",
        )
    with ExitStack() as stack:
        judge = judge_name(settings, plan.judge) if plan.judge else ""
        by_model = _opened_journals(settings, plan, stack)
        works = [work for some in by_model.values() for work in some]
        for name, some in by_model.items():
            if any(work.missing(plan.samples) for work in some):
                await _attempt(settings, plan, name, some, told)
        if judge and any(_unjudged(work, judge) for work in works):
            await _judge(settings, plan, judge, works, told)
        return _written(plan, [work.journal.cell for work in works], judge)


def _opened_journals(settings: EvaluationSettings, plan: Plan, stack: ExitStack) -> dict[str, list[_Work]]:
    sets = {name: _questions(settings, what) for name, what in plan.sets.items()}
    identities = {name: identity(settings, name, where) for name, where in plan.models.items()}
    found: dict[str, list[_Work]] = {}
    for name, where in plan.models.items():
        for set_name, questions in sets.items():
            for way in plan.ways:
                cell = Cell(name, set_name, way)
                directory = plan.out / cell.name
                dated = _dated(settings, directory)
                cell.settings = _decisive(dated, identities[name], questions)
                work = _Work(stack.enter_context(Journal(directory, cell)), questions, way)
                found.setdefault(name, []).append(work)
                write_json(directory / "config.json", {**to_tree(as_run(dated, where)), "way": way})
    return found


def _questions(settings: EvaluationSettings, what: str) -> list[Question]:
    """Return the questions of a set; "" is the config's own."""
    if what == LITTLEWEB:
        found = [one.question for one in puzzles_of(settings, "eval")[: settings.eval.questions]]
    elif what:
        found = sources.read(what, limit=settings.data.limit or None)
    else:
        found = eval_questions(settings, puzzles_of(settings, "eval"), alone=True)
    if not found:
        raise DataError(f"There are no questions in {what or 'the set'}", needed="at least one", fix="see web.search and --set")
    if len({one.id for one in found}) < len(found):
        raise DataError(
            f"Two questions of {what or 'the set'} have the same id", needed="an id for each", fix="correct the file"
        )
    return found


def _dated(settings: EvaluationSettings, directory: Any) -> EvaluationSettings:
    """Fix the date that the prompt tells: that of the first day, when an evaluation is gone on with."""
    if settings.prompt.date:
        return settings
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    path = directory / "config.json"
    if path.exists():
        date = json.loads(path.read_text(encoding="utf-8"))["prompt"]["date"]
    return replace(settings, prompt=replace(settings.prompt, date=date))


def _decisive(settings: EvaluationSettings, model: Mapping[str, Any], questions: Sequence[Question]) -> dict[str, Any]:
    """Return all that a cell's numbers depend on."""
    tree = {name: value for name, value in to_tree(settings).items() if name not in _APART}
    tree["web"] = {name: value for name, value in tree["web"].items() if name not in _WEB_APART}
    asked = tree["reader"].pop("endpoint")
    tree["reader"]["endpoint"] = {name: asked[name] for name in ("url", "model", "parameters")}
    content = json.dumps([(one.id, one.text, one.answers) for one in questions], ensure_ascii=False)
    return {
        **tree,
        "model": dict(model),
        "temperature": settings.eval.temperature,
        "questions": {"count": len(questions), "digest": hashlib.sha256(content.encode()).hexdigest()[:32]},
    }


async def _attempt(settings: EvaluationSettings, plan: Plan, name: str, works: Sequence[_Work], told: Told) -> None:
    """Make the attempts of one model that are missing."""
    metrics = Metrics()
    if all(work.way == "no_tools" for work in works):  # nobody asks the web: no key and no gateway is needed for it
        settings = replace(settings, web=WebSettings(search=LITTLEWEB))
    async with opened_model(settings, name, plan.models[name], metrics, told) as model:
        for cell in (work.journal.cell for work in works):
            model.ledger.go_on([dict(cell.rest), *(one.spent for one in cell.attempts.values())])
        for work in works:
            directory = plan.out / work.journal.cell.name
            decode = model.places.speaker.chat.tokenizer.decode
            with EpisodeWriter(directory / "episodes.jsonl", decode, keep_below=1) as writer:  # they have no step: all are kept
                try:
                    await _fill(settings, plan, model, work, writer, told)
                finally:
                    work.journal.spent(model.ledger.taken())


async def _fill(
    settings: EvaluationSettings, plan: Plan, model: Opened, work: _Work, writer: EpisodeWriter, told: Told
) -> None:
    cell, missing = work.journal.cell, work.missing(plan.samples)
    place = await model.places.place("eval")
    prompt = _dated(settings, plan.out / cell.name).prompt
    limits = replace(settings.episode, temperature=settings.eval.temperature)
    actors = replace(place.actors, system=system_prompt(prompt, place.actors.world.schemas))

    async def once(item: Item) -> Episode:
        question, sample = item
        which = episodes.Attempt(settings.seed, sample, "eval")
        for _ in range(_TRIES):  # those that an outage ends would be missing, and not by chance: they searched the longest
            await model.healthy(place)
            found = await ways.attempt(work.way, question, actors, limits, which, prompt=prompt, ways=settings.ways)
            if found.outcome is not Outcome.WORLD_FAILED:
                break
        return found

    count = len(work.questions) * plan.samples
    done = count - len(missing)
    async with aclosing(finished(missing, once, at_once=settings.eval.in_flight)) as stream:
        async for (question, sample), episode in stream:
            writer.write(episode, question, model=cell.model, way=cell.way)
            writer.flush()  # first: a journal that knows an attempt has its episode
            work.journal.attempt(attempted(question, sample, episode, model.ledger.taken()))
            done += 1
            told("evaluating", done, {"count": count, "cell": cell.name})


def _unjudged(work: _Work, judge: str) -> list[Attempt]:
    """Answers that the judge has not been asked about."""
    known = work.journal.cell.verdicts.get(judge, {})
    return [one for key, one in work.journal.cell.attempts.items() if one.answer is not None and key not in known]


async def _judge(settings: EvaluationSettings, plan: Plan, name: str, works: Sequence[_Work], told: Told) -> None:
    """Ask the judge about every answer that it was not asked about."""
    metrics = Metrics()
    async with opened_judge(settings, plan.judge, metrics, told) as (model, ledger):
        ledger.go_on(work.journal.cell.judging.get(name, {}) for work in works)
        judge = Judge(name, model, settings.judge, metrics)
        for work in works:
            missing = _unjudged(work, name)
            async with aclosing(finished(missing, judge.grade, at_once=settings.judge.in_flight)) as stream:
                done = 0
                async for attempt, verdict in stream:
                    work.journal.verdict(name, attempt.key, said(verdict), ledger.taken())
                    done += 1
                    told("judging", done, {"count": len(missing), "cell": work.journal.cell.name})


def _written(plan: Plan, cells: Sequence[Cell], judge: str) -> dict[str, Any]:
    """Write the table, and a summary beside each journal."""
    rows = [table(cell, judge) for cell in cells]
    for cell, row in zip(cells, rows, strict=True):
        write_json(plan.out / cell.name / "summary.json", {"eval": plain(row), "table": row})
    first = {(one.questions, one.way): one for one in reversed(cells) if one.model == next(iter(plan.models))}
    against = [(first[one.questions, one.way], one) for one in cells if one is not first[one.questions, one.way]]
    found = {"judge": judge, "rows": rows, "compared": [compared(one, other) for one, other in against]}
    write_json(plan.out / "table.json", found)
    (plan.out / "table.md").write_text(markdown(found), encoding="utf-8")
    return found
