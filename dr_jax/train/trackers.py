"""Copy a run's numbers to TensorBoard and to Weights & Biases while it goes on.

In:    the rows of `metrics.jsonl`, from the first on; evaluations; the summary
Out:   `tensorboard/` and `wandb/` in the run's directory
Holds: `metrics.jsonl` is the truth: whoever resumes catches up on rows that a copy lacks, and no copy has a step twice. A copy
       that fails later is given up with a warning; the run goes on
"""

from __future__ import annotations

import importlib
import json
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dr_jax.base.errors import ConfigError
from dr_jax.base.trace import logger

_log = logger(__name__)
Numbers = Mapping[str, float]
_FINISH_S = 60.0  # what was not sent by then is in `wandb/`, for `wandb sync`
_MODULES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """Where else a run's numbers go; `metrics.jsonl` and `dr-jax report` have them whatever is set here.

    Args:
        tensorboard: also write them for TensorBoard (`tensorboard --logdir runs`).
        wandb: also send them to this project of Weights & Biases, `PROJECT` or `ENTITY/PROJECT`; "" does not. The key comes
            from `wandb login` or WANDB_API_KEY; WANDB_MODE=offline keeps everything here for `wandb sync`.
    """

    tensorboard: bool = False
    wandb: str = ""

    def __post_init__(self) -> None:
        if self.wandb and (self.wandb.count("/") > 1 or not all(self.wandb.split("/"))):
            raise ValueError(f"wandb = {self.wandb!r}; PROJECT or ENTITY/PROJECT is needed")


class Tracker(Protocol):
    """Somebody who is told a run's numbers."""

    def step(self, step: int, numbers: Numbers) -> None:
        """Take the numbers of one update, or of an evaluation after it."""
        ...

    def summary(self, content: Mapping[str, Any]) -> None:
        """Take what the run came to."""
        ...

    def close(self, *, whole: bool) -> None:
        """Write everything out; `whole` tells whether the run came to its end."""
        ...


def refuse_missing(settings: ReportSettings) -> None:
    """Check that what is asked for is installed.

    Raises:
        ConfigError: it is not.
    """
    for name, module in _MODULES.items():
        if getattr(settings, name):
            _imported(name, module)


def opened(settings: ReportSettings, directory: Path, rows: Sequence[Mapping[str, Any]]) -> list[Tracker]:
    """Begin or go on to copy.

    Args:
        settings: to whom.
        directory: the run's, with its `config.json`.
        rows: of `metrics.jsonl`, all of which the copies will have.

    Raises:
        ConfigError: a package is missing, or W&B lets nobody in.
    """
    found: list[Tracker] = []
    if settings.tensorboard:
        found.append(TensorBoard(directory, rows))
    if settings.wandb:
        found.append(WeightsAndBiases(settings.wandb, directory, rows))
    return found


class TensorBoard:
    """Event files in `tensorboard/`. They are written anew when a run is resumed: TensorBoard cannot take a step back.

    Args:
        directory: the run's.
        rows: what the run has measured so far.
    """

    def __init__(self, directory: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        package = _imported("tensorboard", _MODULES["tensorboard"])
        shutil.rmtree(directory / "tensorboard", ignore_errors=True)
        # A TensorBoard that is looking on forgets what it has read, from step 0 on.
        self._writer = package.SummaryWriter(str(directory / "tensorboard"), purge_step=0)
        self._text("config", _config(directory))
        now, last = time.time(), rows[-1].get("wall_s", 0.0) if rows else 0.0
        for row in rows:
            self._scalars(row["step"], _numbers(row), at=now - last + row.get("wall_s", 0.0))
        self._writer.flush()

    def step(self, step: int, numbers: Numbers) -> None:
        """Write them; they are on disk when this returns."""
        self._scalars(step, numbers, at=time.time())
        self._writer.flush()

    def summary(self, content: Mapping[str, Any]) -> None:
        """Write it as text."""
        self._text("summary", content)

    def close(self, *, whole: bool) -> None:
        """Close the file."""
        self._writer.close()

    def _scalars(self, step: int, numbers: Numbers, *, at: float) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step, walltime=at)

    def _text(self, name: str, content: Mapping[str, Any]) -> None:
        lines = json.dumps(content, indent=2, ensure_ascii=False).splitlines()
        self._writer.add_text(name, "\n".join(f"    {line}" for line in lines))  # Markdown's code


class WeightsAndBiases:
    """One run of W&B, whose id stands in `wandb.json`; it goes on when the run is resumed.

    W&B cannot take a step back either: steps that a crash undid keep the numbers that they had first.

    Args:
        project: `PROJECT` or `ENTITY/PROJECT`.
        directory: the run's.
        rows: what the run has measured so far.
    """

    def __init__(self, project: str, directory: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        package = _imported("wandb", _MODULES["wandb"])
        entity, _, name = project.rpartition("/")
        self._path = directory / "wandb.json"
        known = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
        if known.get("project") != project:
            known = {"project": project, "id": secrets.token_hex(4), "step": -1}
        self._known, self._earlier = known, known["step"]
        try:
            self._run = package.init(
                entity=entity or None,
                project=name,
                id=known["id"],
                name=directory.name,
                resume="allow",
                dir=str(directory),
                config=_config(directory),
                allow_val_change=True,
                settings=package.Settings(console="off", quiet=True, finish_timeout=_FINISH_S),
            )
        except package.Error as error:
            raise ConfigError(
                f"Weights & Biases did not begin a run: {error}",
                needed="an account that may write to report.wandb",
                fix="wandb login, or export WANDB_MODE=offline",
            ) from error
        self._note()
        for row in rows:
            self.step(row["step"], _numbers(row))

    def step(self, step: int, numbers: Numbers) -> None:
        """Send them, unless an earlier session has, or has sent later ones."""
        if step > self._earlier and step >= self._known["step"]:
            self._run.log(dict(numbers), step=step)
            self._known["step"] = step
            self._note()

    def summary(self, content: Mapping[str, Any]) -> None:
        """Put it beside what W&B sums up itself."""
        self._run.summary.update({"run": dict(content)})

    def close(self, *, whole: bool) -> None:
        """Wait until everything was sent, for a while."""
        self._run.finish(exit_code=0 if whole else 1)

    def _note(self) -> None:
        self._path.write_text(json.dumps(self._known) + "\n", encoding="utf-8")


def _imported(name: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"report.{name} needs {module}, which cannot be imported: {error}",
            needed=f"the extra {name!r}",
            fix=f"pip install 'dr-jax[{name}]', or leave report.{name} out",
        ) from error


def _config(directory: Path) -> dict[str, Any]:
    """The settings as they were written, which is without secrets."""
    path = directory / "config.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "step"}
