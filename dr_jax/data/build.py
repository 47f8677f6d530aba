"""Make a training set from a recipe: read, count, filter, draw, write.

In:    a Recipe; whoever judges questions and whoever answers them without tools, where the recipe asks for that
Out:   `train.parquet`, `dev.parquet`, `manifest.json`, `report.md`, `dropped.jsonl`, `leakage.jsonl` in the recipe's directory
Holds: the same recipe and inputs give the same questions in the same order; filters see no more than the draw needs; a build
       that was stopped asks nobody twice, because every decision is in `journal.sqlite`
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from dr_jax.base.errors import ConfigError, DataError
from dr_jax.data import manifest
from dr_jax.data.filters.contamination import Contamination, Sampler
from dr_jax.data.filters.decision import Decision, Filter, Verdict
from dr_jax.data.filters.journal import Journal, decided
from dr_jax.data.filters.leakage import Leakage, WordWeights
from dr_jax.data.filters.quality import Endpoint, Quality
from dr_jax.data.filters.wording import Wording
from dr_jax.data.manifest import Counts
from dr_jax.data.question import Question
from dr_jax.data.recipe import HeldOut, Part, Recipe, quotas
from dr_jax.data.sources.places import Input, inputs
from dr_jax.data.sources.registry import format_named, scan
from dr_jax.data.sources.row import Skipped
from dr_jax.data.staging import Staging
from dr_jax.data.write import ContentHash, write_parquet

Told = Callable[[str, int, int], None]
_Lost = tuple[int, Filter, Decision]
_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom a build asks about questions.

    Args:
        judge: for the quality filter.
        sampler: for the contamination filter.
        normal: the form in which answers are compared, as the rewards have it.
        judge_name: tells this judge from others in the journal; "" is the recipe's `quality.policy`.
        sampler_name: tells this model from others in the journal; "" is the recipe's `contamination.policy`.
    """

    judge: Endpoint | None = None
    sampler: Sampler | None = None
    normal: Callable[[str], str] = str.casefold
    judge_name: str = ""
    sampler_name: str = ""


async def build(recipe: Recipe, asked: Asked | None = None, *, told: Told = lambda phase, done, whole: None) -> dict[str, Any]:
    """Make the training set and return its manifest.

    Args:
        recipe: what it is made of.
        asked: whom the filters ask.
        told: called with a phase, how much of it is done, and how much there is (0 where that is not known).

    Raises:
        DataError: an input is missing or broken, an evaluation set is inside the mixture, a part has too few questions.
        ConfigError: a filter is on and nobody is there to be asked.
        DrJaxError: who is asked does not answer any more; the same command goes on from there.
    """
    asked = asked or Asked()
    refuse_nobody(recipe, asked)
    places = {name: _inputs(part) for name, part in recipe.mixture.items()}
    theirs = {name: _inputs(one) for name, one in recipe.held_out.items()}
    directory = Path(recipe.out) / recipe.name
    directory.mkdir(parents=True, exist_ok=True)
    with Staging(directory / "candidates.sqlite", recipe.seed) as staging, Journal(directory / "journal.sqlite") as journal:
        held_out, held_reports = _held_out(recipe, theirs, told)
        counts, reports = _staged(recipe, places, staging, told)
        _refuse_inside(recipe, held_out, staging, directory)
        with (directory / "dropped.jsonl").open("w", encoding="utf-8") as dropped:
            draw = _Draw(recipe, asked, staging, journal, counts, held_out, dropped, told)
            await draw.split("dev", recipe.dev)
            await draw.split("train", recipe.size)
        outputs = _written(recipe, staging, directory, told)
        found = manifest.made(recipe, counts, inputs=reports, held_out=held_reports, outputs=outputs, pairs=_pairs(directory))
    manifest.write(directory, found)
    return found


def refuse_nobody(recipe: Recipe, asked: Asked) -> None:
    """Check that there is somebody for every filter that asks."""
    for name, on, there in (
        ("quality", recipe.quality.on, asked.judge),
        ("contamination", recipe.contamination.on, asked.sampler),
    ):
        if on and there is None:
            raise ConfigError(
                f"{name}.on = true, and there is no model to ask", needed=f"{name}.policy", fix="name a config with a model"
            )


class _Draw:
    """Takes questions of every part by rank, through the filters, until there are enough."""

    def __init__(
        self,
        recipe: Recipe,
        asked: Asked,
        staging: Staging,
        journal: Journal,
        counts: dict[str, Counts],
        held_out: dict[str, list[Question]],
        dropped: TextIO,
        told: Told,
    ) -> None:
        self._recipe, self._staging, self._journal, self._counts = recipe, staging, journal, counts
        self._held_out, self._dropped, self._told = held_out, dropped, told
        self._ranks = dict.fromkeys(recipe.mixture, -1)
        told("weighing words", 0, 0)
        own = (question.text for questions in held_out.values() for question in questions)
        self._weights = WordWeights(text for texts in (staging.texts(), own) for text in texts)
        self._asking: list[Filter] = []
        if recipe.quality.on and asked.judge is not None:
            self._asking.append(Quality(asked.judge, recipe.quality, judge=asked.judge_name))
        if recipe.contamination.on and asked.sampler is not None:
            self._asking.append(Contamination(asked.sampler, asked.normal, recipe.contamination, model=asked.sampler_name))

    async def split(self, name: str, size: int) -> None:
        """Draw one split; questions that are near to one of an earlier split leak, too."""
        if not size:
            return
        told, done = self._told, 0
        leakage = Leakage(self._held_out, self._weights, self._recipe.leakage)
        filters: list[Filter] = [Wording(self._recipe.wording), leakage, *self._asking]
        chosen: list[Question] = []
        for part, quota in quotas(size, self._recipe).items():
            counts = self._counts[part]
            while counts.drawn[name] < quota:
                missing = quota - counts.drawn[name]
                ranked = self._staging.ranked(part, self._ranks[part], min(_AT_ONCE, max(64, missing)))
                if not ranked:
                    self._short(part, name, quota)
                    break
                kept, lost = await self._passed([question for _, question in ranked], filters)
                end = kept[missing - 1][0] + 1 if len(kept) >= missing else len(ranked)
                counts.considered += end
                self._ranks[part] = ranked[end - 1][0]
                self._record(part, [(ranked[at][1], one, said) for at, one, said in lost if at < end])
                taken = [(ranked[at][1], facts) for at, facts in kept[:missing]]
                self._staging.choose(name, taken)
                counts.drawn[name] += len(taken)
                done += len(taken)
                chosen += [question for question, _ in taken] if name == "dev" else []
                told(f"drawing {name}", done, size)
        if name == "dev":
            self._held_out = {**self._held_out, "dev": chosen}

    async def _passed(
        self, questions: Sequence[Question], filters: Sequence[Filter]
    ) -> tuple[list[tuple[int, dict[str, str]]], list[_Lost]]:
        """Return which questions pass all filters, with what was learnt of them; and all that was said against others."""
        left: dict[int, dict[str, str]] = {at: {} for at in range(len(questions))}
        lost: list[_Lost] = []
        leaving = {Verdict.DROPPED} if self._recipe.quality.unsure == "keep" else {Verdict.DROPPED, Verdict.UNSURE}
        for one in filters:
            ticked = self._ticker(one.name, len(left)) if one.together == 1 else None
            decisions = await decided(one, [questions[at] for at in left], self._journal, ticked)
            for at, said in zip(tuple(left), decisions, strict=True):
                if said.verdict is not Verdict.KEPT:
                    lost.append((at, one, said))
                if said.verdict in leaving:
                    del left[at]
                else:
                    left[at] |= said.facts
        return list(left.items()), lost

    def _ticker(self, name: str, count: int) -> Callable[[int], None]:
        seen = 0

        def ticked(new: int) -> None:
            nonlocal seen
            seen += new
            self._told(f"asking for {name}", seen, count)

        return ticked

    def _record(self, part: str, lost: Sequence[tuple[Question, Filter, Decision]]) -> None:
        counts = self._counts[part]
        for question, one, said in lost:
            if said.verdict is Verdict.UNSURE:
                counts.unsure[one.name] += 1
            else:
                counts.dropped.setdefault(one.name, Counter())[said.kind] += 1
            row = {
                "id": question.id,
                "source": part,
                "filter": one.name,
                "verdict": said.verdict.value,
                "reason": said.reason,
                "question": question.text,
                "facts": said.facts,
            }
            self._dropped.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _short(self, part: str, split: str, quota: int) -> None:
        counts = self._counts[part]
        if self._recipe.when_short == "fewer":
            return
        lost = ", ".join(f"{name} {sum(kinds.values())}" for name, kinds in counts.dropped.items()) or "none"
        raise DataError(
            f"mixture.{part} has {counts.drawn[split]} questions left for {split}, of {counts.candidates} candidates; "
            f"dropped: {lost}",
            needed=f"{quota} of them",
            fix="lower size, its ratio, or set when_short=fewer",
        )


def _inputs(part: Part | HeldOut) -> list[Input]:
    if part.format:
        format_named(part.format)
    return [one for where in part.files for one in inputs(where)]


def _scanned(
    name: str, places: Sequence[Input], form: str, split: str, counts: Counts, report: list[dict[str, Any]], told: Told
) -> Iterator[tuple[str, Question]]:
    """Yield the questions of a part with their places, and count its rows."""
    for one in places:
        rows, skipped = 0, Counter[str]()
        for row, found in scan(one, form, source=name, split=split):
            rows += 1
            if not rows % 2000:
                told(f"reading {name}", counts.rows + rows, 0)
            if isinstance(found, Skipped):
                skipped[found.reason] += 1
                continue
            own = found.id if found.id.startswith(f"{name}_") else f"{name}_{found.id}"
            yield row.place, replace(found, id=own)
        counts.rows += rows
        counts.skipped.update(skipped)
        report.append({"part": name, "name": one.name, "fingerprint": one.fingerprint(), "rows": rows})


def _staged(
    recipe: Recipe, places: dict[str, list[Input]], staging: Staging, told: Told
) -> tuple[dict[str, Counts], list[dict[str, Any]]]:
    counts = {name: Counts() for name in recipe.mixture}
    report: list[dict[str, Any]] = []
    for name, part in recipe.mixture.items():
        own = counts[name]
        own.candidates, own.duplicates = staging.add(
            name, _scanned(name, places[name], part.format, "train", own, report, told)
        )
        if not own.candidates:
            raise DataError(f"mixture.{name} holds no question", needed="at least one", fix=f"check mixture.{name}.files")
    return counts, report


def _held_out(
    recipe: Recipe, places: dict[str, list[Input]], told: Told
) -> tuple[dict[str, list[Question]], list[dict[str, Any]]]:
    report: list[dict[str, Any]] = []
    found = {
        name: [question for _, question in _scanned(name, places[name], one.format, "eval", Counts(), report, told)]
        for name, one in recipe.held_out.items()
    }
    empty = [name for name, questions in found.items() if not questions]
    if empty:
        raise DataError(f"held_out.{empty[0]} holds no question", needed="at least one", fix=f"check held_out.{empty[0]}.files")
    return found, report


def _refuse_inside(recipe: Recipe, held_out: dict[str, list[Question]], staging: Staging, directory: Path) -> None:
    """Stop if an evaluation set is part of what is to be trained on, and list the pairs."""
    for name, questions in held_out.items():
        both = [(own, question) for question in questions if (own := staging.spelled_like(question))]
        if len(both) <= recipe.leakage.most * len(questions):
            continue
        listed = directory / "inside.jsonl"
        with listed.open("w", encoding="utf-8") as file:
            for own, question in both:
                row = {"train": own, "set": name, "id": question.id, "question": question.text}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        shown = "; ".join(f"{own} = {question.id} ({question.text[:60]!r})" for own, question in both[:3])
        raise DataError(
            f"{len(both)} of the {len(questions)} questions of held_out.{name} are inside the mixture: {shown}; "
            f"all of them are in {listed}",
            needed=f"at most {recipe.leakage.most:.0%} (leakage.most); fewer are dropped one by one",
            fix="remove that file from the mixture, or raise leakage.most to drop them",
        )


def _written(recipe: Recipe, staging: Staging, directory: Path, told: Told) -> list[dict[str, Any]]:
    outputs: list[dict[str, Any]] = []
    for split in ("train", *(("dev",) if recipe.dev else ())):
        told(f"writing {split}", 0, 0)
        path, content = directory / f"{split}.parquet", ContentHash()
        write_parquet(path, content.passing(staging.chosen(split)), recipe.layout)
        outputs.append(
            {
                "file": path.name,
                "rows": content.count,
                "content_sha256": content.hexdigest(),
                "file_fingerprint": Input(path.name, path).fingerprint(),
            }
        )
    return outputs


def _pairs(directory: Path) -> dict[str, dict[str, int]]:
    """List the pairs that leaked in a file of their own, and count them by set and kind."""
    counted: dict[str, Counter[str]] = {}
    with (
        (directory / "dropped.jsonl").open(encoding="utf-8") as dropped,
        (directory / "leakage.jsonl").open("w", encoding="utf-8") as listed,
    ):
        for line in dropped:
            row = json.loads(line)
            if row["filter"] != Leakage.name:
                continue
            facts = row["facts"]
            counted.setdefault(facts["set"], Counter())[facts["kind"]] += 1
            pair = {"train": row["id"], "question": row["question"], **facts}
            listed.write(json.dumps(pair, ensure_ascii=False) + "\n")
    return {name: dict(sorted(kinds.items())) for name, kinds in sorted(counted.items())}
