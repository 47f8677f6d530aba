"""Save a run so that it continues as if it had not stopped.

In:    device state (weights, optimizer, step) and host state (stream position, untrained groups, settings) at a step
Out:   one atomic directory per step, local or `gs://`, the newest few kept
Holds: a checkpoint that cannot be read is named in the log, passed over for the one before it, and set aside
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from dr_jax import __version__
from dr_jax.base.errors import CheckpointError, ConfigError
from dr_jax.base.trace import logger
from dr_jax.learn.update import State
from dr_jax.sharding import hosts

_log = logger(__name__)
_FAILURES = 3  # in a row; then a run that cannot be saved ends


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: local path or `gs://bucket/path`; made when missing.
        keep: how many of the newest to keep.
        resume: whether what is there may be gone on from.
        base: which model the weights that are saved belong to, where they are adapters.

    Raises:
        ConfigError: there are checkpoints and nothing is resumed: they are another run's.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2, resume: bool = True, base: str = "") -> None:
        self._base, self._failed = base, 0
        path = epath.Path(directory)
        self._path = path if "://" in str(directory) else epath.Path(Path(directory).absolute())
        self._manager = ocp.CheckpointManager(
            self._path,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True),
            item_handlers={"state": ocp.StandardCheckpointHandler(), "host": ocp.JsonCheckpointHandler()},
        )
        if not resume and self.steps():
            raise ConfigError(
                f"{self._path} holds checkpoints of another run, the newest of step {self.steps()[-1]}",
                needed="a place of this run's own",
                fix="change checkpoint.directory, or go on from them with --resume",
            )

    def steps(self) -> list[int]:
        """Steps that were saved, the oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: State, host: dict[str, Any]) -> None:
        """Begin to save; arrays are copied to host memory before this returns, files are written behind it.

        A step that was saved before is left as it is. A save that failed meanwhile, as for a bucket that did not answer, is
        told in the log; the run goes on, and this one takes its place.

        Raises:
            CheckpointError: there are later steps than this one; or the last saves have failed, one after the other.
        """
        self._settle()
        if step in self._manager.all_steps():
            return
        host = {**host, "model": _shapes(state), "base": self._base, "versions": _versions()}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host))
        saved = self._manager.save(step, args=args)
        if not saved:
            raise CheckpointError(
                f"Step {step} cannot be saved in {self._path}, which holds step {self._manager.latest_step()}",
                needed="a directory of this run alone",
                fix="set checkpoint.directory to another place",
            )

    def _settle(self, *, last: bool = False) -> None:
        try:
            self._manager.wait_until_finished()
            self._failed = 0
        # Orbax, tensorstore and the file system each raise their own types for what cannot be written.
        except Exception as error:
            self._failed += 1
            said = " ".join(str(error).split())
            said = said if len(said) < 300 else f"{said[:80]} … {said[-200:]}"  # the reason stands last
            if last or self._failed >= _FAILURES or hosts.count() > 1:  # where one of several fails, the others may not know
                row = f", {self._failed} in a row," if self._failed > 1 else ""
                raise CheckpointError(
                    f"The last checkpoint{row} could not be written to {self._path}: {said}",
                    needed="a place with room, that answers",
                    fix="make room, or set checkpoint.directory to another place; --resume goes on from the newest whole one",
                ) from error
            _log.warning("a checkpoint could not be written to %s, the next one is tried: %s", self._path, said)

    def restore(self, like: State) -> tuple[State, dict[str, Any]] | None:
        """Read the newest checkpoint that can be read onto the placement of `like`; None when there is none at all.

        Those that cannot be read are set aside as `<step>.unreadable`, so that their steps can be saved again.

        Raises:
            CheckpointError: there are checkpoints and none can be read, or they hold another architecture.
        """
        template = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        broken: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                host = self._manager.restore(step, args=ocp.args.Composite(host=ocp.args.JsonRestore()))["host"]
                self._refuse_other_model(host["model"], like)
                self._refuse_other_base(host.get("base", ""))
                args = ocp.args.Composite(state=ocp.args.StandardRestore(template))
                state = self._manager.restore(step, args=args)["state"]
            except CheckpointError:
                raise
            # Orbax, tensorstore and the file system each raise their own types for a damaged file.
            except Exception as error:  # noqa: BLE001
                broken[step] = " ".join(str(error).split())[:200]
            if not hosts.agree([step not in broken]).all():  # what one process cannot read, none goes on from
                broken.setdefault(step, "another process cannot read it")
                _log.warning(
                    "checkpoint %s cannot be read, trying the one before it (%s)", self._path / str(step), broken[step]
                )
                continue
            self._set_aside(broken)
            if (then := host.get("versions", {})) != _versions():
                _log.warning("checkpoint %s was written with %s; this is %s", self._path / str(step), then, _versions())
            return state, host
        if broken:
            raise CheckpointError(
                f"None of the checkpoints in {self._path} can be read ({'; '.join(f'{k}: {v}' for k, v in broken.items())})",
                needed="at least one whole checkpoint",
                fix="start without --resume, or under another name",
            )
        return None

    def _refuse_other_model(self, shapes: dict[str, list[int]], like: State) -> None:
        wanted = _shapes(like)
        for name in sorted(shapes.keys() | wanted.keys()):
            if shapes.get(name) != wanted.get(name):
                raise CheckpointError(
                    f"The checkpoints in {self._path} are of another model: {name} has shape {shapes.get(name, 'none')}",
                    needed=f"shape {wanted.get(name, 'none')}, as the model in the config has",
                    fix="use the config that the run was started with, or another name",
                )

    def _refuse_other_base(self, base: str) -> None:
        if base != self._base:
            raise CheckpointError(
                f"The checkpoints in {self._path} belong to {base or 'a model that is trained as a whole'}",
                needed=self._base or "a model that is trained as a whole",
                fix="set model.load and lora as the run was started with, or use another name",
            )

    def _set_aside(self, steps: Iterable[int]) -> None:
        for step in steps if hosts.index() == 0 else ():
            aside = self._path / f"{step}.unreadable"
            if aside.exists():
                aside.rmtree()
            (self._path / str(step)).rename(aside)
        if steps:
            hosts.agree([0])  # the directories have their new names
            self._manager.reload()

    def wait(self) -> None:
        """Return when everything that was saved is on disk.

        Raises:
            CheckpointError: it could not be written.
        """
        self._settle(last=True)

    def close(self) -> None:
        """Finish writing and let go of the directory.

        Raises:
            CheckpointError: the last checkpoint could not be written.
        """
        try:
            self.wait()
        finally:
            self._manager.close()


def _versions() -> dict[str, str]:
    return {"dr_jax": __version__, "jax": jax.__version__, "orbax": ocp.__version__}


def _shapes(state: State) -> dict[str, list[int]]:
    return {name: list(weight.shape) for name, weight in state.weights.items()}
