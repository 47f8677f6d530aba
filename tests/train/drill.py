"""Kill real `dr-jax train` processes at chosen moments, and look at what is left.

In:    a moment by name; a run's directory
Out:   processes that ended by SIGKILL in the middle of an update, a checkpoint, or whatever they were doing
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from dr_jax.learn.advantage import Values, standardized
from dr_jax.rollout.record import read_episodes

ROOT = Path(__file__).parents[2]
Moment = Literal["update", "checkpoint", "any"]
MOMENTS: tuple[Moment, ...] = ("update", "checkpoint", "any")
_START_S = 600.0  # in which a process must have come as far as its moment

SMALL = (
    "data.questions=40",
    "littleweb.entities=300",
    "rollout.groups=2",
    "rollout.group_size=4",
    "engine.slots=16",
    "eval.questions=8",
    "episode.tokens=512",
    "engine.max_context=512",
    "batch.lengths=[512]",
    "checkpoint.every=1",
    "advantage='tests.train.drill:marked'",
)


def marked(rewards_NG: Sequence[Values]) -> list[Values]:
    """Say in a file, named by the environment, that an update has begun."""
    if "DRILL_MARK" in os.environ:
        with Path(os.environ["DRILL_MARK"]).open("a") as file:
            file.write("update\n")
    return standardized(rewards_NG)


class Training:
    """A `dr-jax train` of its own process group.

    Args:
        out: where runs are.
        name: of the run; what stands there is gone on from.
        overrides: besides `SMALL`.
        environment: besides this process's.
        resume: also where nothing of the run stands.
        saving: which checkpoints were begun since a moment (Unix time in ns) and are not whole, where they are not in the
            run's directory; what a process that was killed before has left there is none of this one's.
    """

    def __init__(
        self,
        out: Path,
        name: str,
        overrides: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        *,
        resume: bool = False,
        saving: Callable[[int], set[str]] | None = None,
    ) -> None:
        self._found, self._begun_ns = saving or self._saving, time.time_ns()
        self.directory, self._mark, self._log = out / name, out / f"{name}.mark", out / f"{name}.log"
        out.mkdir(parents=True, exist_ok=True)
        self._mark.unlink(missing_ok=True)
        arguments = ["train", "configs/quickstart.toml", f"out={out}", f"name={name}", *SMALL, *overrides]
        if (self.directory / "config.json").exists() or resume:
            arguments.append("--resume")
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from dr_jax.cli.main import run; run()", *dict.fromkeys(arguments)],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "XLA_FLAGS": "", "DRILL_MARK": str(self._mark), **(environment or {})},
                start_new_session=True,
            )

    @property
    def updates(self) -> int:
        """How many updates this process has begun."""
        return self._mark.read_text().count("\n") if self._mark.exists() else 0

    @property
    def learning(self) -> bool:
        """Whether the last update that began has no row yet."""
        row = self.directory / "metrics.jsonl"
        return self._mark.exists() and (not row.exists() or self._mark.stat().st_mtime_ns > row.stat().st_mtime_ns)

    def log(self) -> str:
        """The end of what all processes of this run have said."""
        return self._log.read_text(errors="replace")[-3000:]

    def end(self, timeout_s: float = _START_S) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(timeout_s)

    def reach(self, moment: Moment, number: int) -> bool:
        """Wait until an update of this process, or a checkpoint of it, begins; return whether it still runs then.

        Args:
            moment: `any` is the time when the first sign of life in the directory is there.
            number: of the update, or of the checkpoint, from 1.
        """
        deadline, seen = time.monotonic() + _START_S, set[str]()
        while self.process.poll() is None and time.monotonic() < deadline:
            if moment == "checkpoint":
                seen |= self.saving()
                if len(seen) >= number:
                    return True
            elif self.updates >= number:
                return True
            time.sleep(0.001)
        return self.process.poll() is None

    def saving(self) -> set[str]:
        """Which checkpoints this process has begun that are not whole."""
        return self._found(self._begun_ns)

    def _saving(self, since_ns: int) -> set[str]:
        found = set[str]()
        for path in (self.directory / "checkpoints").glob("*tmp*"):
            with suppress(FileNotFoundError):  # it is whole by now, and has another name
                if path.stat().st_mtime_ns > since_ns:
                    found.add(path.name)
        return found

    def kill(self) -> None:
        """End it as the system would: without a word."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def killed(training: Training, moment: Moment, rng: random.Random) -> str:
    """Kill a training at a moment, some time into it; return what was in progress, or "" if it was over before."""
    if not training.reach(moment, rng.choice((1, 1, 2))):
        return ""
    time.sleep(rng.uniform(0, {"update": 0.3, "checkpoint": 0.1, "any": 3.0}[moment]))
    if training.process.poll() is not None:
        return ""
    training.kill()
    return "checkpoint" if training.saving() else "update" if training.learning else "between"


def trained(directory: Path) -> dict[str, list[int]]:
    """Return for every question the updates that learned from it, as its episodes tell; twice the same if it was out in two
    epochs at once and both came together.
    """
    rewarded = Counter[tuple[str, int, str]]()
    for row in read_episodes(directory / "episodes.jsonl"):
        if row["rewards"]:
            rewarded[row["question_id"], row["step"], row["id"]] += 1
    groups: dict[tuple[str, int], int] = defaultdict(int)
    for (question, step, _), count in rewarded.items():
        groups[question, step] = max(groups[question, step], count)
    found: dict[str, list[int]] = defaultdict(list)
    for (question, step), count in sorted(groups.items()):
        found[question] += [step] * count
    return dict(found)


def stream(directory: Path) -> dict[str, Any]:
    """Return where every question is."""
    state: dict[str, Any] = json.loads((directory / "progress.json").read_text())["stream"]
    return state
