"""Read and write model directories as Hugging Face lays them out.

In:    a directory with config.json and *.safetensors; bfloat16, float16 or float32
Out:   `Sizes` and weights that lie on the mesh, each device's part read straight from the files; or such a directory
Fails: CheckpointError that names the first tensor which is missing, extra or of another shape, found and needed
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dr_jax.base.errors import CheckpointError
from dr_jax.model import layout
from dr_jax.model.decoder import Weights
from dr_jax.model.sizes import Sizes, from_hf_config, to_hf_config
from dr_jax.sharding import hosts

_INDEX = "model.safetensors.index.json"
_FLOATS = {"BF16", "F16", "F32"}
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "generation_config.json",
)  # fmt: skip


def read(path: str | Path, *, mesh: Mesh | None = None, dtype: DTypeLike = jnp.float32) -> tuple[Sizes, Weights]:
    """Read a model directory.

    Args:
        path: the directory.
        mesh: where the weights go; None is this process's first device.
        dtype: of the weights, whatever the files have.

    Raises:
        CheckpointError: something is missing, corrupt, or of another architecture.
    """
    directory = Path(path)
    sizes = from_hf_config(_json(directory / "config.json"))
    with ExitStack() as stack:
        try:
            files = [stack.enter_context(safe_open(file, "numpy")) for file in _files(directory)]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"A weights file in {directory} cannot be read: {error}", needed="safetensors") from error
        where = {name: file for file in files for name in file.keys()}  # noqa: SIM118  # not a dict
        _check(directory, {name: file.get_slice(name) for name, file in where.items()}, sizes)
        return sizes, layout.assemble(sizes, lambda name, cut: where[name].get_slice(name)[cut], mesh=mesh, dtype=dtype)


def write(
    path: str | Path,
    sizes: Sizes,
    weights: Mapping[str, Array | np.ndarray],
    *,
    tokenizer_dir: str | Path | None = None,
    max_shard_bytes: int = 4 << 30,
) -> None:
    """Write a directory that transformers loads. With several processes each must call this; the first one writes.

    Args:
        path: a directory; made where it is missing.
        sizes: of the model.
        weights: as `describe` lists them, on devices or on the host; written in their own dtype.
        tokenizer_dir: its tokenizer files are copied.
        max_shard_bytes: a file is closed before it would grow beyond this.

    Raises:
        CheckpointError: there are weights in the directory already.
    """
    directory = Path(path)
    first = hosts.index() == 0
    if first and sorted(directory.glob("*.safetensors")):
        raise CheckpointError(f"{directory} holds a model already", needed="a new or empty directory", fix="name another one")
    if first:
        directory.mkdir(parents=True, exist_ok=True)
    shards = _shards(sizes, weights, max_shard_bytes)
    names: dict[str, str] = {}
    for number, plan in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {theirs: _theirs(weights, ours, layer) for ours, layer, theirs in plan}
        names |= dict.fromkeys(tensors, file)
        if first:
            save_file(tensors, directory / file, metadata={"format": "pt"})
    if not first:
        return
    if len(shards) > 1:
        total = sum(weight.nbytes for weight in weights.values())
        (directory / _INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": names}, indent=1))
    for name in _TOKENIZER_FILES if tokenizer_dir is not None else ():
        if (Path(tokenizer_dir or "") / name).exists():
            shutil.copyfile(Path(tokenizer_dir or "") / name, directory / name)
    config = to_hf_config(sizes) | {"dtype": str(weights["embed"].dtype), "torch_dtype": str(weights["embed"].dtype)}
    (directory / "config.json").write_text(json.dumps(config, indent=1) + "\n")  # last: its presence says it is complete


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no {path.name}", needed="a model directory in Hugging Face format", fix="check the path"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a JSON object: {error}") from error


def _files(directory: Path) -> list[Path]:
    if (directory / _INDEX).exists():
        names = sorted(set(_json(directory / _INDEX).get("weight_map", {}).values()))
        missing = [name for name in names if not (directory / name).exists()]
        if missing:
            raise CheckpointError(
                f"{directory / _INDEX} names {missing[0]}, which is not there",
                needed=f"{len(names)} files",
                fix="copy all files",
            )
        return [directory / name for name in names]
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{directory} has no *.safetensors", needed="weights in safetensors", fix="convert other formats with transformers"
        )
    return files


def _check(directory: Path, found: Mapping[str, Any], sizes: Sizes) -> None:
    needed = layout.their_shapes(sizes)
    wrong = [*_wrong(found, needed), *_extra(found, needed, sizes)]
    if wrong:
        raise CheckpointError(
            f"{directory} does not hold the weights that its config.json describes. Found: {wrong[0][0]}",
            needed=wrong[0][1] + (f" ({len(wrong)} tensors do not fit; this is the first)" if len(wrong) > 1 else ""),
            fix="use the config.json that belongs to these weights",
        )


def _wrong(found: Mapping[str, Any], needed: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, str]]:
    for name, shape in needed.items():
        if name not in found:
            yield f"no {name}", f"{name} {list(shape)}"
        elif tuple(found[name].get_shape()) != shape:
            yield f"{name} {list(found[name].get_shape())}", f"{name} {list(shape)}"
        elif found[name].get_dtype() not in _FLOATS:
            yield f"{name} of type {found[name].get_dtype()}", f"{name} of type {' or '.join(sorted(_FLOATS))}"


def _extra(found: Mapping[str, Any], needed: Mapping[str, tuple[int, ...]], sizes: Sizes) -> Iterator[tuple[str, str]]:
    # Older files save what can be computed: a copy of a tied head, and the inverse frequencies of rope.
    computed = ("lm_head.weight",) if sizes.tied else ()
    for name in sorted(found):
        if name not in needed and name not in computed and not name.endswith("rotary_emb.inv_freq"):
            yield f"{name} {list(found[name].get_shape())}", f"no {name}: this architecture has no such weight"


def _shards(sizes: Sizes, weights: Mapping[str, Array | np.ndarray], limit: int) -> list[list[tuple[str, int | None, str]]]:
    shards: list[list[tuple[str, int | None, str]]] = [[]]
    held = 0
    for ours, layer, theirs, shape in layout.each(sizes):
        size = math.prod(shape) * weights[ours].dtype.itemsize
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append((ours, layer, theirs))
        held += size
    return shards


def _theirs(weights: Mapping[str, Array | np.ndarray], ours: str, layer: int | None) -> np.ndarray:
    weight = weights[ours] if layer is None else weights[ours][layer]
    return np.ascontiguousarray(layout.FORMS[ours].theirs(hosts.whole(weight)))
