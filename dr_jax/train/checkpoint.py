"""Save a run so that it continues as if it had not stopped.

In:    device state (weights, optimizer, step) and host state (stream position, untrained groups, settings) at a step
Out:   one atomic directory per step, local or `gs://`, the newest few kept
Holds: a checkpoint that cannot be read is named in the log and passed over for the one before it
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from dr_jax.base.errors import CheckpointError
from dr_jax.base.trace import logger
from dr_jax.learn.update import State

_log = logger(__name__)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: local path or `gs://bucket/path`; made when missing.
        keep: how many of the newest to keep.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2) -> None:
        path = epath.Path(directory)
        self._path = path if "://" in str(directory) else epath.Path(Path(directory).absolute())
        self._manager = ocp.CheckpointManager(
            self._path,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True),
            item_handlers={"state": ocp.StandardCheckpointHandler(), "host": ocp.JsonCheckpointHandler()},
        )

    def save(self, step: int, state: State, host: dict[str, Any]) -> None:
        """Begin to save; arrays are copied to host memory before this returns, files are written behind it.

        A step that was saved before is left as it is.
        """
        if step in self._manager.all_steps():
            return
        self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host)))

    def restore(self, like: State) -> tuple[State, dict[str, Any]] | None:
        """Read the newest checkpoint that can be read onto the placement of `like`; None when there is none at all.

        Raises:
            CheckpointError: there are checkpoints and none can be read, or they hold another architecture.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        template = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        reasons = []
        for step in steps:
            try:
                read = self._manager.restore(
                    step, args=ocp.args.Composite(state=ocp.args.StandardRestore(template), host=ocp.args.JsonRestore())
                )
            # Orbax, tensorstore and the file system each raise their own types for a damaged file.
            except Exception as error:  # noqa: BLE001
                reasons.append(f"{step}: {' '.join(str(error).split())[:200]}")
                _log.warning("checkpoint %s cannot be read, trying the one before it (%s)", self._path / str(step), reasons[-1])
                continue
            self._refuse_other_shapes(read["state"], like)
            return read["state"], read["host"]
        if reasons:
            raise CheckpointError(
                f"None of the checkpoints in {self._path} can be read ({'; '.join(reasons)})",
                needed="at least one whole checkpoint of this architecture",
                fix="start without --resume, or under another name",
            )
        return None

    def _refuse_other_shapes(self, state: State, like: State) -> None:
        for (path, found), (_, wanted) in zip(
            jax.tree_util.tree_leaves_with_path(state), jax.tree_util.tree_leaves_with_path(like), strict=True
        ):
            if found.shape != wanted.shape:
                raise CheckpointError(
                    f"The checkpoint's {jax.tree_util.keystr(path)} has shape {found.shape}",
                    needed=f"shape {wanted.shape}, as the model in the config has",
                    fix="use the config that the run was started with",
                )

    def wait(self) -> None:
        """Return when everything that was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish writing and let go of the directory."""
        self._manager.close()
