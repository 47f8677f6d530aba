"""What a run has to remember to go on as if it had not stopped.

In:    the run's device state, its stream of questions, groups that are finished and not trained, or under way
Out:   checkpoints; beside them `progress.json`, the host's part alone, newer; `Progress`: where the run is, what it measured
Holds: what several processes know is in one checkpoint, and may be gone on from by another number of them
"""

from __future__ import annotations

import datetime
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from dr_jax.base.errors import CheckpointError, ConfigError
from dr_jax.base.trace import logger
from dr_jax.model import hf
from dr_jax.model.decoder import Remat, Weights
from dr_jax.model.sizes import Sizes
from dr_jax.rollout.record import EpisodeWriter, cut, episode_files, numbered
from dr_jax.rollout.underway import as_json
from dr_jax.tokens import vocabulary
from dr_jax.tokens.tokenizer import Tokenizer
from dr_jax.tokens.trajectory import Episode, Group
from dr_jax.train import tape_mirror
from dr_jax.train.mirror import Shelf, address, bring_back
from dr_jax.train.report import write_json
from dr_jax.train.settings import Settings

if TYPE_CHECKING:
    from dr_jax.train.run import Run

_log = logger(__name__)
_GROUP = TypeAdapter(Group)
_NOTED = "progress.json"


@dataclass(slots=True)
class Progress:
    """How far a run is. The loop's only mutable value besides the weights.

    Args:
        step: updates done.
        wall_s: seconds spent, earlier sessions included.
        mismatch_max: the largest difference between engine and trainer so far.
        before: the evaluation before the first update.
        after: the evaluation after the last one.
    """

    step: int = 0
    wall_s: float = 0.0
    mismatch_max: float = 0.0
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None


def save(run: Run, progress: Progress, own: dict[str, Any]) -> None:
    """Begin to write a checkpoint of this step, of what the processes have sent of themselves in the last round.

    Args:
        run: its device state.
        progress: how far it is.
        own: what `snapshot` tells of this process.
    """
    run.checkpoints.save(progress.step, run.state, {**own, "others": others} if (others := run.together.parcels()) else own)


def snapshot(run: Run, progress: Progress) -> Callable[[], dict[str, Any]]:
    """Return what puts into JSON values what this process knows now and no device does.

    Groups that wait or are under way are most of it. What they hold now does not change, so this may be called from any
    thread. Each becomes a JSON text of its own, which is quick, and keeps other threads waiting no longer than one group
    takes; so is writing those texts, where writing all their numbers at once would stop everybody.
    """
    own, waiting, left = books(run, progress), list(run.harvest.waiting), run.under_way.state()
    return lambda: {**own, "waiting": [as_json(_GROUP, group) for group in waiting], "left": left()}


def last(run: Run, progress: Progress) -> dict[str, Any]:
    """Return what `snapshot` tells at a run's end; without groups, if one has a fault: then their questions are drawn again."""
    try:
        return snapshot(run, progress)()
    # Whatever a person's own reward or tool has put into an episode: weights and books are saved all the same.
    except Exception:  # noqa: BLE001
        _log.exception("groups that wait or are under way cannot be saved, and are begun again by a resume")
        return {**books(run, progress), "waiting": [], "left": []}


def books(run: Run, progress: Progress) -> dict[str, Any]:
    """Return how far a process is, where its questions are, and what was spent; of groups nothing."""
    return {"progress": asdict(progress), "stream": run.stream.state(), **_spent(run)}


def note(run: Run, own: dict[str, Any]) -> None:
    """Write down beside the checkpoints what this process knows: what was spent since the last one must not be lost.

    Args:
        run: whose.
        own: `books`; or what `snapshot` tells, when the run ends: groups that ended since the checkpoint of the same step, and
            those under way, are kept then.
    """
    write_json(run.directory / numbered(_NOTED, run.together.index), own, indent=None)


def _spent(run: Run) -> dict[str, dict[str, Any]]:
    budget, spending = run.budget, run.spending
    return {
        "spent": {"queries": budget.queries, "money": budget.money},
        "read": {"calls": spending.calls, "tokens": spending.tokens, "money": spending.money},
    }


def restore(run: Run) -> Progress:
    """Put a run back where it was left: the weights of its newest readable checkpoint, or the first ones; and what the hosts
    noted at its end, if that is of the same step. What was spent stays spent, whatever step is gone back to.
    """
    found, path = run.checkpoints.restore(run.state), run.directory / numbered(_NOTED, run.together.index)
    noted = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    known: list[dict[str, Any]] = []
    if found is not None:
        run.state, first = found
        known = [first, *first.get("others", ())]
        run.adopt()
    else:
        _log.warning("there is no checkpoint in %s yet: starting with the first weights", run.directory)
    noteds = run.together.exchange(noted)
    if _of_one_moment(noteds, known[0]["progress"]["step"] if known else 0):
        known = noteds
    spent = [one for one in (*known, *noteds) if one is not None]
    for budget, key in ((run.budget, "spent"), (run.spending, "read")):
        for name in _spent(run)[key]:
            setattr(budget, name, max((one[key][name] for one in spent), default=0))
    run.purse.start()
    if not known:
        return Progress(before=noteds[0]["progress"]["before"] if noteds[0] else None)
    try:
        waiting = [_GROUP.validate_json(group) for one in known for group in one["waiting"]]
        left = run.under_way.read(group for one in known for group in one["left"])
    except (KeyError, ValueError) as error:  # pydantic's is a ValueError
        raise CheckpointError(
            f"The groups in the checkpoint of step {known[0]['progress']['step']} cannot be read: {error!r}"[:400],
            needed="a checkpoint that this version of dr_jax wrote",
            fix="resume with the version that wrote it, or start under another name",
        ) from error
    held = {(group.question_id, group.epoch) for group in waiting} | {(group.question_id, group.epoch) for group in left}
    own = run.stream.restore(*(one["stream"] for one in known), held=held)
    run.harvest.waiting += [group for group in waiting if (group.question_id, group.epoch) in own]
    run.under_way.restore([group for group in left if (group.question_id, group.epoch) in own], run.questions)
    return Progress(**known[0]["progress"])


def _of_one_moment(noteds: Sequence[dict[str, Any] | None], step: int) -> bool:
    """Whether notes are those that all processes of an earlier session made at its end, after the same update."""
    ends = [one for one in noteds if one is not None and one["progress"]["step"] == step and "waiting" in one]
    shares = [list(one["stream"].get("share", (0, 1))) for one in ends]
    return shares == [[index, len(noteds)] for index in range(len(noteds))]


def shelf(settings: Settings, index: int, *, resume: bool) -> Shelf | None:
    """Open the bucket that a run is copied to, if there is one; what is to be resumed and is not here is brought back first,
    what was remembered of the web, too.

    Args:
        settings: of the run.
        index: of this process, which brings back and copies what it writes itself.
        resume: whether there is something to bring back.

    Raises:
        UserError: the bucket does not exist, or refuses to be read or written.
    """
    place = address(settings.checkpoint.directory, settings.checkpoint.mirror)
    if not place:
        return None
    found = Shelf(place)
    if not index:
        found.refuse_closed()
    if resume:
        bring_back(found, Path(settings.out) / settings.name, index)
        if (tape := tape_mirror.recorded(settings)) is not None:
            tape_mirror.bring_back(found, tape)
    return found


def dated(settings: Settings, *, resume: bool) -> Settings:
    """Fix the date that the prompt tells, so that it is recorded with the run and the same when it is resumed."""
    if settings.prompt.date:
        return settings
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    config = Path(settings.out) / settings.name / "config.json"
    if resume and config.exists():
        date = json.loads(config.read_text(encoding="utf-8"))["prompt"]["date"]
    return replace(settings, prompt=replace(settings.prompt, date=date))


def chosen(settings: Settings) -> tuple[Remat, int] | None:
    """Return the `remat` and `batch.rows` that an earlier session of this run chose, or was told; None where there was none."""
    config = Path(settings.out) / settings.name / "config.json"
    if not config.exists():
        return None
    found = json.loads(config.read_text(encoding="utf-8"))
    return found["remat"], found["batch"]["rows"]


def refuse_nothing(settings: Settings, *, resume: bool) -> None:
    """Check that there is something to resume, if that is what is wanted.

    Raises:
        ConfigError: there is not.
    """
    directory = Path(settings.out) / settings.name
    if resume and not (directory / "config.json").exists():
        raise ConfigError(
            f"There is no run in {directory}", needed="a run that was started before", fix="leave out --resume, or set name"
        )


def run_directory(settings: Settings, *, resume: bool) -> Path:
    """Return the run's directory; an earlier run of the same name is moved aside, never overwritten."""
    directory = Path(settings.out) / settings.name
    if directory.exists() and not resume:
        taken = (directory.with_name(f"{directory.name}.{number}") for number in itertools.count(1))
        directory.rename(next(aside for aside in taken if not aside.exists()))
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def episode_writer(run: Run, *, keep_below: int | None) -> EpisodeWriter:
    """Open the file of this process's episodes; on resume, those of processes that are not there any more are cut as well."""
    if run.together.first and keep_below is not None:
        still = {numbered("episodes.jsonl", index) for index in range(run.together.count)}
        for name in set(episode_files(run.directory)) - still:
            cut(run.directory / name, keep_below)
    path = run.directory / numbered("episodes.jsonl", run.together.index)
    return EpisodeWriter(path, run.actor.chat.tokenizer.decode, keep_below=keep_below)


def export(directory: Path, sizes: Sizes, weights: Weights, tokenizer: Tokenizer, *, first: bool = True) -> Path:
    """Write a policy to `model/` in Hugging Face format, in place of what an earlier session of the run wrote.

    All processes must call it; the first one writes.
    """
    model, partial = directory / "model", directory / "model.partial"
    if first:
        shutil.rmtree(partial, ignore_errors=True)
    hf.write(partial, sizes, weights)
    if not first:
        return model
    vocabulary.save(tokenizer, partial)
    shutil.rmtree(model, ignore_errors=True)
    return partial.rename(model)


def brief(episode: Episode) -> dict[str, Any]:
    """Return what `summed` needs of an episode, as JSON values."""
    return {
        "outcome": episode.outcome.value,
        "rewarded": episode.trainable,
        "reward": episode.reward if episode.trainable else 0.0,
        "rewards": dict(episode.rewards),
        "turns": len(episode.turns),
        "calls": len(episode.tools),
        "tokens": sum(len(one) for one in episode.trajectories),
    }


def summed(episodes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Sum up the episodes of one step, as `brief` tells them, in numbers worth plotting."""
    rewarded = [episode for episode in episodes if episode["rewarded"]]
    outcomes = Counter(episode["outcome"] for episode in episodes)
    parts = sorted(set.intersection(*(set(episode["rewards"]) for episode in rewarded))) if rewarded else []
    return {
        "rollout/episodes": float(len(episodes)),
        "rollout/reward": _mean([episode["reward"] for episode in rewarded]),
        **{f"rollout/{part}": _mean([episode["rewards"][part] for episode in rewarded]) for part in parts},
        "rollout/turns": _mean([episode["turns"] for episode in rewarded]),
        "rollout/tool_calls": _mean([episode["calls"] for episode in rewarded]),
        "rollout/tokens": _mean([episode["tokens"] for episode in rewarded]),
        **{f"outcome/{name}": count / max(len(episodes), 1) for name, count in sorted(outcomes.items())},
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
