"""What a run has to remember to go on as if it had not stopped.

In:    the run's device state, its stream of questions, its finished but untrained groups
Out:   checkpoints; beside them `progress.json`, the host's part alone, newer; `Progress`: where the run is, what it measured
"""

from __future__ import annotations

import datetime
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from dr_jax.base.errors import ConfigError
from dr_jax.base.trace import logger
from dr_jax.model import hf
from dr_jax.model.decoder import Weights
from dr_jax.model.sizes import Sizes
from dr_jax.tokens import vocabulary
from dr_jax.tokens.tokenizer import Tokenizer
from dr_jax.tokens.trajectory import Episode, Group
from dr_jax.train.mirror import Shelf, address, bring_back
from dr_jax.train.report import write_json
from dr_jax.train.settings import Settings

if TYPE_CHECKING:
    from dr_jax.train.run import Run

_log = logger(__name__)
_GROUPS = TypeAdapter(list[Group])
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


def save(run: Run, progress: Progress) -> None:
    """Begin to write a checkpoint of this step."""
    run.checkpoints.save(progress.step, run.state, _host(run, progress)())


def note(run: Run, progress: Progress) -> Callable[[], None]:
    """Return what writes down what the host knows now: what was spent and finished since the checkpoint must not be lost.

    Groups that wait are most of it and do not change: they are turned into text by whoever calls what this returns.
    """
    host = _host(run, progress)
    return lambda: write_json(run.directory / _NOTED, host(), indent=None)


def _host(run: Run, progress: Progress) -> Callable[[], dict[str, Any]]:
    waiting = list(run.harvest.waiting)
    host = {
        "progress": asdict(progress),
        "stream": run.stream.state(),
        "spent": {"queries": run.budget.queries, "money": run.budget.money},
        "read": {"calls": run.spending.calls, "tokens": run.spending.tokens, "money": run.spending.money},
    }
    return lambda: {**host, "waiting": _GROUPS.dump_python(waiting, mode="json")}


def restore(run: Run) -> Progress:
    """Put a run back where it was left: the weights of its newest readable checkpoint, or the first ones; and what the host
    noted, if that is of the same step. What was spent stays spent, whatever step is gone back to.
    """
    found, path = run.checkpoints.restore(run.state), run.directory / _NOTED
    noted = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    host = None
    if found is not None:
        run.state, host = found
        run.adopt()
    else:
        _log.warning("there is no checkpoint in %s yet: starting with the first weights", run.directory)
    if noted is not None and noted["progress"]["step"] == (host["progress"]["step"] if host else 0):
        host = noted
    spent = [one for one in (host, noted) if one is not None]
    for budget, key in ((run.budget, "spent"), (run.spending, "read")):
        for name in _host(run, Progress())()[key]:
            setattr(budget, name, max((one[key][name] for one in spent), default=0))
    if host is None:
        return Progress(before=noted["progress"]["before"] if noted else None)
    run.harvest.waiting[:] = _GROUPS.validate_python(host["waiting"])
    run.stream.restore(host["stream"], held=[group.question_id for group in run.harvest.waiting])
    return Progress(**host["progress"])


def shelf(settings: Settings, *, resume: bool) -> Shelf | None:
    """Open the bucket that a run is copied to, if there is one; what is to be resumed and is not here is brought back first.

    Raises:
        UserError: the bucket does not exist, or refuses to be read or written.
    """
    place = address(settings.checkpoint.directory, settings.checkpoint.mirror)
    if not place:
        return None
    found = Shelf(place)
    found.refuse_closed()
    if resume:
        bring_back(found, Path(settings.out) / settings.name)
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


def export(directory: Path, sizes: Sizes, weights: Weights, tokenizer: Tokenizer) -> Path:
    """Write a policy to `model/` in Hugging Face format, in place of what an earlier session of the run wrote."""
    model, partial = directory / "model", directory / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    hf.write(partial, sizes, weights)
    vocabulary.save(tokenizer, partial)
    shutil.rmtree(model, ignore_errors=True)
    return partial.rename(model)


def summed(groups: Sequence[Group]) -> dict[str, float]:
    """Sum up the groups of one step in numbers worth plotting."""
    episodes = [episode for group in groups for episode in group.episodes]
    rewarded = [episode for episode in episodes if episode.trainable]
    outcomes = Counter(episode.outcome.value for episode in episodes)
    return {
        "rollout/episodes": float(len(episodes)),
        "rollout/reward": _mean([episode.reward for episode in rewarded]),
        **{f"rollout/{part}": _mean([episode.rewards[part] for episode in rewarded]) for part in _parts(rewarded)},
        "rollout/turns": _mean([len(episode.turns) for episode in rewarded]),
        "rollout/tool_calls": _mean([len(episode.tools) for episode in rewarded]),
        "rollout/tokens": _mean([sum(len(one) for one in episode.trajectories) for episode in rewarded]),
        **{f"outcome/{name}": count / max(len(episodes), 1) for name, count in sorted(outcomes.items())},
    }


def _parts(episodes: Sequence[Episode]) -> list[str]:
    return sorted(set.intersection(*(set(episode.rewards) for episode in episodes))) if episodes else []


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
