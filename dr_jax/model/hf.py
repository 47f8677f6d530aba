"""Read and write model directories as Hugging Face lays them out, on a disk or in a bucket.

In:    a directory with config.json and *.safetensors; bfloat16, float16 or float32
Out:   `Sizes` and weights that lie on the mesh, each device's part read straight from the files; or such a directory
Holds: the host has a few pieces of the weights at a time, neither all of them nor a whole file
Fails: CheckpointError that names the first tensor which is missing, extra or of another shape, found and needed
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, DTypeLike

from dr_jax.base.errors import CheckpointError
from dr_jax.model import layout, tensors
from dr_jax.model.decoder import Weights
from dr_jax.model.sizes import Sizes, from_hf_config, to_hf_config
from dr_jax.model.tensors import Place, Tensor
from dr_jax.sharding import hosts

_INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "generation_config.json",
)  # fmt: skip

Shard = list[tuple[str, int | None, str, tuple[int, ...]]]  # as `layout.each` lists tensors


def read(path: str | Path, *, mesh: Mesh | None = None, dtype: DTypeLike = jnp.float32) -> tuple[Sizes, Weights]:
    """Read a model directory.

    Args:
        path: the directory, or its address in a bucket.
        mesh: where the weights go; None is this process's first device.
        dtype: of the weights, whatever the files have.

    Raises:
        CheckpointError: something is missing, corrupt, or of another architecture.
        UserError: a package for this kind of address is not installed.
    """
    place = Place(path)
    names = place.names()
    sizes = from_hf_config(_json(place, "config.json", names))
    found = {name: tensor for file in _files(place, names) for name, tensor in tensors.tensors(place, file).items()}
    _check(place, found, sizes)
    return sizes, layout.assemble(sizes, lambda name, *rows: found[name].rows(*rows), mesh=mesh, dtype=dtype)


def write(
    path: str | Path,
    sizes: Sizes,
    weights: Mapping[str, Array | np.ndarray],
    *,
    tokenizer_dir: str | Path | None = None,
    max_shard_bytes: int = 4 << 30,
    dtype: DTypeLike | None = None,
) -> None:
    """Write a directory that transformers loads. With several processes each must call this; the first one writes.

    Args:
        path: a directory, made where it is missing, or an address in a bucket.
        sizes: of the model.
        weights: as `describe` lists them, on devices or on the host.
        tokenizer_dir: its tokenizer files are copied.
        max_shard_bytes: a file is closed before it would grow beyond this.
        dtype: to write: float32, float16 or bfloat16; None is the weights' own.

    Raises:
        CheckpointError: there are weights in the directory already, or it may not be written.
        UserError: a package for this kind of address is not installed.
    """
    place = Place(path)
    first, kind = hosts.index() == 0, np.dtype(dtype or weights["embed"].dtype)
    if first and any(name.endswith(".safetensors") for name in place.names()):  # the others may come when it has begun
        raise CheckpointError(f"{place} holds a model already", needed="a new or empty directory", fix="name another one")
    shards = _shards(sizes, max_shard_bytes, kind.itemsize)
    names: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        described = {theirs: layout.FORMS[ours].shape(shape) for ours, _, theirs, shape in shard}
        names |= dict.fromkeys(described, file)
        tensors.write(place if first else None, file, described, kind, _pieces(weights, shard, kind))
    if not first:
        return
    texts = dict[str, bytes]()
    if len(shards) > 1:
        total = sum(math.prod(shape) for *_, shape in layout.each(sizes)) * kind.itemsize
        texts[_INDEX] = json.dumps({"metadata": {"total_size": total}, "weight_map": names}, indent=1).encode()
    if tokenizer_dir is not None:
        words = Place(tokenizer_dir)
        texts |= {name: words.read(name) for name in words.names() if name in TOKENIZER_FILES}
    config = to_hf_config(sizes) | {"dtype": kind.name, "torch_dtype": kind.name}
    texts["config.json"] = (json.dumps(config, indent=1) + "\n").encode()  # last: its presence says it is complete
    for name, text in texts.items():
        with place.writing(name) as out:
            out.write(text)


def _json(place: Place, name: str, names: list[str]) -> dict[str, Any]:
    if name not in names:
        raise CheckpointError(f"{place} has no {name}", needed="a model directory in Hugging Face format", fix="check the path")
    try:
        return dict(json.loads(place.read(name)))
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{place}/{name} is not a JSON object: {error}") from error


def _files(place: Place, names: list[str]) -> list[str]:
    if _INDEX in names:
        wanted = sorted(set(_json(place, _INDEX, names).get("weight_map", {}).values()))
        missing = [name for name in wanted if name not in names]
        if missing:
            raise CheckpointError(
                f"{place}/{_INDEX} names {missing[0]}, which is not there",
                needed=f"{len(wanted)} files",
                fix="copy all files",
            )
        return wanted
    files = [name for name in names if name.endswith(".safetensors")]
    if not files:
        raise CheckpointError(
            f"{place} has no *.safetensors", needed="weights in safetensors", fix="convert other formats with transformers"
        )
    return files


def _check(place: Place, found: Mapping[str, Tensor], sizes: Sizes) -> None:
    needed = layout.their_shapes(sizes)
    wrong = [*_wrong(found, needed), *_extra(found, needed, sizes)]
    if wrong:
        raise CheckpointError(
            f"{place} does not hold the weights that its config.json describes. Found: {wrong[0][0]}",
            needed=wrong[0][1] + (f" ({len(wrong)} tensors do not fit; this is the first)" if len(wrong) > 1 else ""),
            fix="use the config.json that belongs to these weights",
        )


def _wrong(found: Mapping[str, Tensor], needed: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, str]]:
    for name, shape in needed.items():
        if name not in found:
            yield f"no {name}", f"{name} {list(shape)}"
        elif found[name].shape != shape:
            yield f"{name} {list(found[name].shape)}", f"{name} {list(shape)}"
        elif found[name].dtype not in tensors.DTYPES:
            yield f"{name} of type {found[name].dtype}", f"{name} of type {' or '.join(sorted(tensors.DTYPES))}"


def _extra(found: Mapping[str, Tensor], needed: Mapping[str, tuple[int, ...]], sizes: Sizes) -> Iterator[tuple[str, str]]:
    # Older files save what can be computed: a copy of a tied head, and the inverse frequencies of rope.
    computed = ("lm_head.weight",) if sizes.tied else ()
    for name in sorted(found):
        if name not in needed and name not in computed and not name.endswith("rotary_emb.inv_freq"):
            yield f"{name} {list(found[name].shape)}", f"no {name}: this architecture has no such weight"


def _shards(sizes: Sizes, limit: int, itemsize: int) -> list[Shard]:
    shards: list[Shard] = [[]]
    held = 0
    for one in layout.each(sizes):
        size = math.prod(one[-1]) * itemsize
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append(one)
        held += size
    return shards


def _pieces(weights: Mapping[str, Array | np.ndarray], shard: Shard, dtype: np.dtype[Any]) -> Iterator[np.ndarray]:
    """Bring a file's tensors to the host, some rows at a time. Several processes must draw these in step."""
    for ours, layer, _, shape in shard:
        form, weight = layout.FORMS[ours], weights[ours]
        rows = shape[form.row]
        many = max(1, layout.AT_ONCE * rows // (math.prod(shape) * dtype.itemsize))
        for start in range(0, rows, many):
            count = min(many, rows - start)
            if isinstance(weight, np.ndarray):
                cut = weight if layer is None else weight[layer]
                yield form.theirs(cut[(slice(None),) * form.row + (slice(start, start + count),)])
            else:
                yield hosts.whole(_rows(weight, np.int32(layer or 0), np.int32(start), form, count, dtype.name))


@partial(jax.jit, static_argnames=("form", "count", "dtype"))
def _rows(weight: Array, layer: Array, start: Array, form: layout.Form, count: int, dtype: str) -> Array:
    """Cut rows of theirs out of ours, on the devices."""
    if form.layered:
        weight = jax.lax.dynamic_index_in_dim(weight, layer, keepdims=False)
    return form.theirs(jax.lax.dynamic_slice_in_dim(weight, start, count, form.row)).astype(jnp.dtype(dtype))
