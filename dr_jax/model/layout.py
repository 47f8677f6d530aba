"""How our stacked weights correspond to the tensors of one layer each in Hugging Face checkpoints.

In:    a function that returns any slice of any of their tensors
Out:   our weights, assembled device by device: no process ever holds more than what its own devices need
Holds: `theirs` and `ours` are inverse to each other, for every slice
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import ml_dtypes  # noqa: F401  # teaches numpy the name bfloat16
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding
from jaxtyping import DTypeLike

from dr_jax.model.decoder import Weights, describe
from dr_jax.model.sizes import Sizes
from dr_jax.sharding import rules

Slices = tuple[slice, ...]
Fetch = Callable[[str, Slices], np.ndarray]


@dataclass(frozen=True, slots=True)
class Form:
    """One of their tensors.

    Args:
        name: with `{}` where the number of the layer stands.
        dims: for each of their dimensions, which of our axes (the layer's not counted) it runs over, slowest first.
    """

    name: str
    dims: tuple[tuple[int, ...], ...]

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Return their shape of what has our shape."""
        return tuple(math.prod(ours[axis] for axis in dim) for dim in self.dims)

    def slices(self, index: Slices, ours: tuple[int, ...]) -> Slices:
        """Return what to read of theirs for a slice of ours; only the slowest axis of each dimension may be cut."""
        cut = []
        for first, *rest in self.dims:
            start, stop, _ = index[first].indices(ours[first])
            inner = math.prod(ours[axis] for axis in rest)
            cut.append(slice(start * inner, stop * inner))
        return tuple(cut)

    def ours(self, theirs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Turn (a slice of) theirs into ours of this shape."""
        order = [axis for dim in self.dims for axis in dim]
        return theirs.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))

    def theirs(self, ours: np.ndarray) -> np.ndarray:
        """Turn ours into theirs."""
        return ours.transpose([axis for dim in self.dims for axis in dim]).reshape(self.shape(ours.shape))


_GAIN, _MATRIX, _BIAS = ((0,),), ((1,), (0,)), ((0, 1),)  # their matrices are [out, in], ours [in, out]
_INTO_HEADS, _OUT_OF_HEADS = ((1, 2), (0,)), ((2,), (0, 1))

FORMS: dict[str, Form] = {
    "embed": Form("model.embed_tokens.weight", ((0,), (1,))),
    "layers.attention_norm": Form("model.layers.{}.input_layernorm.weight", _GAIN),
    "layers.query": Form("model.layers.{}.self_attn.q_proj.weight", _INTO_HEADS),
    "layers.key": Form("model.layers.{}.self_attn.k_proj.weight", _INTO_HEADS),
    "layers.value": Form("model.layers.{}.self_attn.v_proj.weight", _INTO_HEADS),
    "layers.out": Form("model.layers.{}.self_attn.o_proj.weight", _OUT_OF_HEADS),
    "layers.query_bias": Form("model.layers.{}.self_attn.q_proj.bias", _BIAS),
    "layers.key_bias": Form("model.layers.{}.self_attn.k_proj.bias", _BIAS),
    "layers.value_bias": Form("model.layers.{}.self_attn.v_proj.bias", _BIAS),
    "layers.query_norm": Form("model.layers.{}.self_attn.q_norm.weight", _GAIN),
    "layers.key_norm": Form("model.layers.{}.self_attn.k_norm.weight", _GAIN),
    "layers.ff_norm": Form("model.layers.{}.post_attention_layernorm.weight", _GAIN),
    "layers.gate": Form("model.layers.{}.mlp.gate_proj.weight", _MATRIX),
    "layers.up": Form("model.layers.{}.mlp.up_proj.weight", _MATRIX),
    "layers.down": Form("model.layers.{}.mlp.down_proj.weight", _MATRIX),
    "final_norm": Form("model.norm.weight", _GAIN),
    "head": Form("lm_head.weight", _MATRIX),
}


def their_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of a Hugging Face checkpoint of this model, in the order of `each`."""
    return {name: FORMS[ours].shape(shape) for ours, _, name, shape in each(sizes)}


def each(sizes: Sizes) -> list[tuple[str, int | None, str, tuple[int, ...]]]:
    """List all their tensors: our weight's name, the layer (None outside of them), their name, our shape of that layer."""
    listed: list[tuple[str, int | None, str, tuple[int, ...]]] = []
    described = describe(sizes)
    for ours in (name for name in FORMS if name in described and not name.startswith("layers.")):
        listed.append((ours, None, FORMS[ours].name, described[ours].shape))
    for layer in range(sizes.layers):
        for ours in (name for name in FORMS if name in described and name.startswith("layers.")):
            listed.append((ours, layer, FORMS[ours].name.format(layer), described[ours].shape[1:]))
    return listed


def assemble(sizes: Sizes, fetch: Fetch, *, mesh: Mesh | None, dtype: DTypeLike) -> Weights:
    """Build our weights where they belong.

    Args:
        sizes: of the model.
        fetch: returns a slice of one of their tensors, by name.
        mesh: None puts everything on this process's first device.
        dtype: of the weights.
    """
    described = describe(sizes)
    places: Mapping[str, jax.sharding.Sharding] = (
        {name: SingleDeviceSharding(jax.local_devices()[0]) for name in described}
        if mesh is None
        else rules.shardings(described, mesh)
    )
    return {
        name: jax.make_array_from_callback(
            spec.shape, places[name], lambda index, name=name, shape=spec.shape: _part(name, index, shape, fetch, dtype)
        )
        for name, spec in described.items()
    }


def _part(name: str, index: Slices, shape: tuple[int, ...], fetch: Fetch, dtype: DTypeLike) -> np.ndarray:
    form, size = FORMS[name], tuple(len(range(*cut.indices(whole))) for cut, whole in zip(index, shape, strict=True))
    if not name.startswith("layers."):
        return form.ours(fetch(form.name, form.slices(index, shape)), size).astype(np.dtype(dtype))
    part = np.empty(size, np.dtype(dtype))
    for place, layer in enumerate(range(*index[0].indices(shape[0]))):
        part[place] = form.ours(fetch(form.name.format(layer), form.slices(index[1:], shape[1:])), size[1:])
    return part
