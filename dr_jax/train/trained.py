"""What of a model an update changes: all of it, or low-rank adapters beside it.

In:    settings of a run, the policy's weights on the mesh
Out:   the weights that are trained, those that stay as they are, and the model that both make
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp

from dr_jax.learn.update import Forward, through
from dr_jax.model import lora
from dr_jax.model.decoder import Remat, Weights, describe
from dr_jax.model.fingerprint import fingerprint
from dr_jax.model.lora import LoraSettings
from dr_jax.model.sizes import Sizes
from dr_jax.train.actor import Actor
from dr_jax.train.settings import Settings


@dataclass(frozen=True, slots=True)
class Trained:
    """What is trained.

    Args:
        sizes: of the model.
        first: the weights that are trained, as they are at the start.
        axes: their logical axes.
        lora: how adapters are made; None when the whole model is trained.
        frozen: the model's own weights beside adapters; None when they are trained themselves.
        base: which model adapters belong to; "" when there are none.
        name: of that model.
    """

    sizes: Sizes
    first: Weights
    axes: Mapping[str, tuple[str, ...]]
    lora: LoraSettings | None = None
    frozen: Weights | None = None
    base: str = ""
    name: str = ""

    def whole(self, weights: Weights) -> Weights:
        """Return the model that trained weights are, or are with the frozen ones."""
        if self.lora is None or self.frozen is None:
            return weights
        return lora.merged(self.frozen, weights, self.lora)

    def forward(self, settings: Settings, remat: Remat) -> Forward:
        """Return the model as the update sees it."""
        return through(
            self.sizes,
            remat=remat,
            compute_dtype=jnp.dtype(settings.model.dtype),
            attention=settings.model.attention,
            lora=self.lora,
        )

    def write_adapter(self, path: Path, weights: Weights) -> None:
        """Write adapters as PEFT reads them; nothing where there are none. With several processes all must call this."""
        if self.lora is not None:
            lora.write_adapter(path, self.sizes, self.lora, weights, base=self.name)


def trained(settings: Settings, actor: Actor) -> Trained:
    """Decide what is trained, and draw adapters where they are."""
    sizes, chosen = actor.sizes, settings.lora
    if not chosen.rank:
        return Trained(sizes, actor.weights, {name: spec.axes for name, spec in describe(sizes).items()})
    return Trained(
        sizes,
        lora.fresh(sizes, chosen, settings.seed, mesh=actor.mesh),
        {name: spec.axes for name, spec in lora.describe(sizes, chosen).items()},
        chosen,
        actor.weights,
        f"{settings.model.load}, weights {fingerprint(actor.weights)}, alpha {chosen.alpha:g}",
        settings.model.load,
    )
