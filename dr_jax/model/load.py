"""Find a model by what a person calls it.

In:    `smollm2`, a directory in Hugging Face format, here or in a bucket, a .gguf file, or a named size for fresh weights
Out:   `Sizes` and weights on the mesh; a directory with the tokenizer that belongs to them (that of a GGUF file or of a
       bucket is kept in the user's cache)
Fails: CheckpointError that lists what can be named
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding
from jaxtyping import DTypeLike

from dr_jax.base.cache import cache_folder
from dr_jax.base.errors import CheckpointError
from dr_jax.model import gguf, hf
from dr_jax.model.decoder import Weights, describe, initial
from dr_jax.model.sizes import NAMED, Sizes
from dr_jax.model.tensors import Place
from dr_jax.sharding import rules


def load(
    name_or_path: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: DTypeLike = jnp.float32,
    seed: int = 0,
    vocab: int | None = None,
) -> tuple[Sizes, Weights]:
    """Load a model, or draw one.

    Args:
        name_or_path: `smollm2`, a directory, `gs://bucket/path`, a .gguf file, or a named size, which is drawn afresh.
        mesh: where the weights go; None is this process's first device.
        dtype: of the weights.
        seed: of fresh weights.
        vocab: number of ids of fresh weights; None keeps the named size's own.

    Raises:
        CheckpointError: nothing has that name, or what has it cannot be used.
    """
    if (path := _gguf_file(name_or_path)) is not None:
        return gguf.read_gguf(path, mesh=mesh, dtype=dtype)
    if "://" in str(name_or_path) or Path(name_or_path).is_dir():
        return hf.read(name_or_path, mesh=mesh, dtype=dtype)
    sizes = NAMED.get(str(name_or_path))
    if sizes is None:
        raise _unknown(name_or_path)
    sizes = dataclasses.replace(sizes, vocab=vocab or sizes.vocab)
    return sizes, fresh(sizes, seed, mesh=mesh, dtype=dtype)


def fresh(sizes: Sizes, seed: int, *, mesh: Mesh | None = None, dtype: DTypeLike = jnp.float32) -> Weights:
    """Draw weights where they belong: each device makes its own part, and the values do not depend on the mesh."""
    if mesh is None:
        places: object = SingleDeviceSharding(jax.local_devices()[0])
    else:
        places = rules.shardings(describe(sizes), mesh)
    return jax.jit(lambda key: initial(sizes, key, dtype), out_shardings=places)(jax.random.key(seed))


def tokenizer_source(model: str | Path, tokenizer: str | Path = "") -> Path:
    """Return the directory with the tokenizer files of a model, or of another one.

    Args:
        model: as for `load`.
        tokenizer: whose tokenizer to take instead: again `smollm2`, a .gguf file, a directory or a bucket's; empty means the
            model's.

    Raises:
        CheckpointError: there is no tokenizer, as fresh weights have none, or a bucket's may not be read.
        UserError: a package for this kind of address is not installed.
    """
    source = tokenizer or model
    if "://" in str(source):
        source = _fetched(Place(source))
    if (path := _gguf_file(source)) is not None:
        return _unpacked(path)
    if (Path(source) / "tokenizer.json").exists():
        return Path(source)
    raise CheckpointError(
        f"{str(tokenizer or model)!r} has no tokenizer.json",
        needed="a tokenizer",
        fix="point model.tokenizer at a directory that has one",
    )


def _unpacked(path: Path) -> Path:
    """Write the tokenizer of a GGUF file once per file into the user's cache."""
    stat = path.stat()
    return _kept(f"{path.stem}-{stat.st_size:x}-{stat.st_mtime_ns:x}", lambda made: gguf.write_tokenizer(path, made))


def _fetched(place: Place) -> Path:
    """Copy the tokenizer files of a bucket once into the user's cache, again when they have changed."""
    names = [name for name in place.names() if name in hf.TOKENIZER_FILES]
    told = "\n".join([str(place), *(place.key(name) for name in names)])

    def copy(made: Path) -> None:
        made.mkdir()
        for name in names:
            (made / name).write_bytes(place.read(name))

    return _kept(hashlib.sha256(told.encode()).hexdigest()[:32], copy)


def _kept(name: str, make: Callable[[Path], None]) -> Path:
    place = cache_folder("tokenizers")
    target = place / name
    if not target.exists():
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as made:
            make(Path(made) / "files")
            with contextlib.suppress(OSError):  # another process was first
                (Path(made) / "files").rename(target)
    return target


def _gguf_file(name_or_path: str | Path) -> Path | None:
    if str(name_or_path) == "smollm2":
        return gguf.smollm2_path()
    path = Path(name_or_path)
    return path if path.suffix == ".gguf" and path.is_file() else None


def _unknown(name_or_path: str | Path) -> CheckpointError:
    near = difflib.get_close_matches(str(name_or_path), ["smollm2", *NAMED], n=2)
    return CheckpointError(
        f"There is no model {str(name_or_path)!r}",
        needed=f"a directory, a .gguf file, smollm2, or a size for fresh weights: {', '.join(NAMED)}",
        fix=f"did you mean {' or '.join(near)}?" if near else "check the path",
    )
