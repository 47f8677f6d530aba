"""Take a run's directory for a model: the weights of one of its checkpoints.

In:    a run's directory (its newest checkpoint), or `RUN/checkpoints/STEP`
Out:   sizes and weights on the mesh; where the tokenizer is
Holds: nothing is written: the run may go on beside this
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from dr_jax.base.config import validated
from dr_jax.base.errors import CheckpointError
from dr_jax.model.decoder import Weights
from dr_jax.model.load import load
from dr_jax.model.lora import LoraSettings, fresh, merged
from dr_jax.model.sizes import Sizes


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint of a run.

    Args:
        path: of the step.
        base: the model that the run began with, or wrote: it has the same sizes and tokenizer.
        lora: how adapters were made, where they are saved in place of the model's own weights.
        below: the model or run that the adapters belong to.
    """

    path: Any
    base: str
    lora: LoraSettings = field(default_factory=LoraSettings)
    below: str = ""

    def read(self, *, mesh: Mesh, seed: int = 0) -> tuple[Sizes, Weights]:
        """Read the weights, as float32, onto the mesh; adapters are added to their base.

        Raises:
            CheckpointError: they cannot be read, or are of another architecture than `base`.
        """
        sizes, begun = self._begun(mesh, seed)
        first = fresh(sizes, self.lora, 0, mesh=mesh) if self.lora.rank else begun
        like = {"weights": {name: ocp.utils.to_shape_dtype_struct(weight) for name, weight in first.items()}}
        if first is begun:
            begun = {}
        del first
        args = ocp.args.PyTreeRestore(
            item=like, restore_args=ocp.checkpoint_utils.construct_restore_args(like), partial_restore=True
        )
        reader = ocp.PyTreeCheckpointer()
        try:
            host = json.loads((self.path / "host" / "metadata").read_text())  # as orbax keeps JSON
            shapes = {name: tuple(shape) for name, shape in host["model"].items()}
            self._refuse_other_model(shapes, {name: one.shape for name, one in like["weights"].items()})
            weights: Weights = reader.restore(self.path / "state", args=args)["weights"]
        except CheckpointError:
            raise
        # Orbax, tensorstore and the file system each raise their own types for a damaged file.
        except Exception as error:
            why = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"The checkpoint {self.path} cannot be read: {why}",
                needed="a whole checkpoint",
                fix="name another step of the run",
            ) from error
        return sizes, merged(begun, weights, self.lora) if self.lora.rank else weights

    def _begun(self, mesh: Mesh, seed: int) -> tuple[Sizes, Weights]:
        if not self.lora.rank:
            return load(self.base, mesh=mesh, seed=seed)
        run = saved(self.below)
        return run.read(mesh=mesh, seed=seed) if run else load(self.below, mesh=mesh, seed=seed)

    def _refuse_other_model(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        for name in sorted(found.keys() | wanted.keys()):
            if tuple(found.get(name, ())) != tuple(wanted.get(name, ())):
                raise CheckpointError(
                    f"{self.path} holds another model than {self.base}: {name} has shape {found.get(name, 'none')}",
                    needed=f"shape {wanted.get(name, 'none')}",
                    fix="put the model that the run began with back in its place",
                )


def saved(name: str) -> Saved | None:
    """Return the checkpoint that a name means; None when it names no run but a model.

    Raises:
        CheckpointError: it is a run, and has no such checkpoint, or the model that it began with is gone.
    """
    path = Path(name)
    step = path.name if path.name.isdigit() and path.parent.name == "checkpoints" else ""
    run = path.parent.parent if step else path.parent if path.name == "checkpoints" else path
    try:
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        began, kept = config["model"]["load"], config["checkpoint"]["directory"]
        lora = validated(LoraSettings, config.get("lora", {}))
    except (OSError, ValueError, KeyError, TypeError):  # the config.json of a model, or none
        return None
    directory = epath.Path(kept or (run / "checkpoints").absolute())
    steps = sorted(int(one.name) for one in directory.iterdir() if one.name.isdigit()) if directory.exists() else []
    if not steps or (step and int(step) not in steps):
        raise CheckpointError(
            f"The run {run} has no checkpoint{f' of step {step}' if step else ''} in {directory}",
            needed=f"one of {', '.join(map(str, steps))}" if steps else "a run that was saved",
            fix="name the run, or RUN/checkpoints/STEP",
        )
    written = run / "model"
    base = str(written) if (written / "config.json").exists() else began
    return Saved(directory / (step or str(steps[-1])), base, lora, began)
