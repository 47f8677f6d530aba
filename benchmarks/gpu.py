"""Engine and update on an NVIDIA GPU, against what the GPU can: `python -m benchmarks.gpu`.

Work:  `decode`: 64, 128 and 256 sequences of 2,048 tokens, of the shapes of Qwen2.5 1.5B and 7B. `update`: packed rows of 8,192
       tokens, four trajectories each, 0.5B and 1.5B: gradient of four micro-batches and one step of AdamW. Random bfloat16
       weights (float32 state); the programs are those of a run
Sides: what was measured; the bound of the measured copy bandwidth (decode: weights, keys and values are read once for each
       token of all sequences) or of the measured bfloat16 matrix rate (update: useful arithmetic only)
Out:   a table, and `results/gpu.json`
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.result import RESULTS, Spread, write_json
from dr_jax.base.trace import configure
from dr_jax.engine.device import tiles
from dr_jax.engine.items import Tiles, listed
from dr_jax.engine.settings import EngineSettings
from dr_jax.learn.losses import LossSettings
from dr_jax.learn.optimizer import OptimizerSettings
from dr_jax.model.decoder import abstract, initial
from dr_jax.model.flops import causal_pairs, update_flops
from dr_jax.model.sizes import NAMED, Sizes, parameter_count
from dr_jax.train.ahead import Planned, engine_programs, mesh_of, update_programs

ROUNDS, TRAJECTORIES, MICRO_BATCHES = 5, 4, 4


@dataclass(frozen=True, slots=True)
class Scale:
    """How large everything is; the tests' is tiny."""

    decode: tuple[str, ...] = ("qwen2.5-1.5b", "qwen2.5-7b")
    update: tuple[str, ...] = ("qwen2.5-0.5b", "qwen2.5-1.5b")
    slots: tuple[int, ...] = (64, 128, 256)
    context: int = 2048
    page_size: int = 64
    length: int = 8192
    copied: int = 4 << 30
    matrix: int = 8192


TINY = Scale(("tiny",), ("tiny",), (2,), 64, 8, 64, 1 << 20, 64)


@dataclass(frozen=True, slots=True)
class Measured:
    """One line of the table: what was measured, and the most that the GPU allows, in the same unit."""

    name: str
    speed: Spread
    bound: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", default=["decode", "update"], choices=["decode", "update"])
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # tests that this runs, on any device
    parser.add_argument("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    told = parser.parse_args(arguments)
    device = jax.devices()[0]
    if device.platform != "gpu" and not told.tiny:
        sys.exit(
            f"benchmarks.gpu: there is no NVIDIA GPU: JAX sees {device.device_kind!r} ({device.platform}). Needed: a GPU and "
            "`pip install 'dr-jax[cuda]'`. `python -m benchmarks.tpu` compiles the same programs for TPUs without any device."
        )
    configure()
    scale = TINY if told.tiny else Scale()
    copy, matrix = copy_bandwidth(scale.copied), matrix_rate(scale.matrix)
    print(f"{device.device_kind}: copies {copy / 1e9:,.0f} GB/s, multiplies bfloat16 at {matrix / 1e12:,.1f} Tflop/s")
    found: list[Measured] = []
    for work in told.work:
        found += decoded(scale, copy) if work == "decode" else updated(scale, matrix)
    show(found)
    content = {
        "name": "gpu",
        "device": device.device_kind,
        "copy_bytes_per_s": copy,
        "matrix_flops_per_s": matrix,
        "sides": {one.name: asdict(one.speed) for one in found},
        "bounds": {one.name: one.bound for one in found},
        "ratios": {one.name: round(one.speed.median / one.bound, 4) for one in found},
    }
    print(f"written to {write_json('gpu', content, ('jax', 'jaxlib'), told.results)}")


def decoded(scale: Scale, bandwidth: float) -> Iterator[Measured]:
    """Draw tokens for full rows; yield tokens per second of all of them."""
    for model in scale.decode:
        sizes, mesh = NAMED[model], mesh_of(jax.devices()[:1])
        for slots in scale.slots:
            settings = EngineSettings(
                slots=slots, page_size=scale.page_size, max_context=scale.context, tokens_per_call=16, dtype="bfloat16"
            )
            if too_large(f"{model} x {slots}", decode_bytes(sizes, slots, scale.context)):
                continue
            planned = engine_programs(sizes, mesh, settings)[-1]
            weights, pools, rows = planned.arguments
            weights, pools = random_weights(sizes, weights), drawn_like(pools)
            cut = tiles(settings, sizes, jax.default_backend(), mesh)
            places = jax.tree.map(lambda leaf: leaf.sharding, rows)
            rows = jax.device_put(full_rows(rows, settings, cut, sizes.vocab), places)

            def go(pools: Any, planned: Planned = planned, weights: Any = weights, rows: Any = rows) -> Any:
                return planned.program(weights, pools, rows)[0]

            seconds = repeated(go, pools)
            speed = Spread.of([slots * settings.tokens_per_call / each for each in seconds], "tokens/s")
            bound = slots * bandwidth / decode_bytes(sizes, slots, scale.context)
            yield Measured(f"decode {model} x {slots}", speed, bound)
            del weights, pools, rows, go


def updated(scale: Scale, rate: float) -> Iterator[Measured]:
    """Add up gradients and take a step; yield useful flop per second."""
    for model in scale.update:
        sizes, mesh = NAMED[model], mesh_of(jax.devices()[:1])
        if too_large(model, 16 * parameter_count(sizes)):
            continue
        loss, optimizer = LossSettings(kl="none"), OptimizerSettings()
        add, apply = update_programs(sizes, mesh, rows=1, length=scale.length, loss=loss, optimizer=optimizer)
        gradient, weights, batch, *_ = add.arguments
        moments = jax.jit(lambda kept=apply.arguments[1]: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), kept))()
        state = (
            jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), gradient),
            random_weights(sizes, weights),
            moments,
        )
        rows = jax.device_put(packed_rows(batch, sizes.vocab), batch.ids.sharding)

        def go(state: Any, add: Planned = add, apply: Planned = apply, rows: Any = rows) -> Any:
            gradient, weights, moments = state
            with jax.set_mesh(add.mesh):
                for _ in range(MICRO_BATCHES):
                    gradient, _ = add.program(gradient, weights, rows, None, None, np.int32(0), np.float32(1))
                weights, moments, _ = apply.program(weights, moments, gradient)
            return jax.tree.map(jnp.zeros_like, weights), weights, moments

        seconds = repeated(go, state)
        pairs = TRAJECTORIES * causal_pairs(scale.length // TRAJECTORIES)
        flops = MICRO_BATCHES * update_flops(sizes, scale.length, pairs)
        yield Measured(f"update {model} x {scale.length}", Spread.of([flops / each for each in seconds], "flop/s"), rate)
        del state, rows, moments, go


def decode_bytes(sizes: Sizes, slots: int, context: int) -> int:
    """Count what one token of every sequence must read: weights, of the embeddings only tied ones, keys and values."""
    looked_up = 0 if sizes.tied else sizes.vocab * sizes.width
    return 2 * (parameter_count(sizes) - looked_up) + slots * context * 4 * sizes.layers * sizes.kv_heads * sizes.head_dim


def copy_bandwidth(size: int) -> float:
    """Measure bytes read and written per second."""
    copied = jax.jit(lambda x: x + jnp.float32(1), donate_argnums=0)
    return 2 * size / min(repeated(copied, jnp.zeros(size // 4, jnp.float32)))


def matrix_rate(size: int) -> float:
    """Measure floating point operations per second of a product of bfloat16 matrices."""
    scale = jnp.bfloat16(size**-0.5)
    left, right = (jax.random.normal(jax.random.key(seed), (size, size), jnp.bfloat16) * scale for seed in (0, 1))
    times = 8
    product = jax.jit(lambda x: jax.lax.fori_loop(0, times, lambda _, x: x @ right, x))
    return times * 2 * size**3 / min(repeated(product, left))


def repeated(go: Callable[[Any], Any], state: Any) -> list[float]:
    """Run once to compile, once to warm up, and then several times, each on what the last one returned."""
    seconds = []
    for number in range(ROUNDS + 2):
        start = time.perf_counter()
        state = jax.block_until_ready(go(state))
        if number > 1:
            seconds.append(time.perf_counter() - start)
    return seconds


def random_weights(sizes: Sizes, like: dict[str, Any]) -> dict[str, jax.Array]:
    """Draw weights on the device, in the dtype and places of abstract ones."""
    assert like.keys() == abstract(sizes).keys()
    places = {name: one.sharding for name, one in like.items()}
    draw = partial(initial, sizes, dtype=like["embed"].dtype)
    return jax.jit(draw, out_shardings=places)(jax.random.key(0))


def drawn_like(like: Any) -> Any:
    """Draw numbers: products of zeros take less power, and would run faster than real ones."""
    leaves, tree = jax.tree.flatten(like)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    draw = jax.jit(jax.random.normal, static_argnums=(1, 2))
    return tree.unflatten([draw(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)])


def full_rows(like: Any, settings: EngineSettings, cut: Tiles, vocab: int) -> Any:
    """Fill the rows of a decode call: each at its longest, with pages of its own, drawing at temperature 1."""
    rng, slots = np.random.default_rng(0), settings.slots
    tables = 1 + rng.permutation(slots * settings.pages_per_request).astype(np.int32).reshape(slots, -1)
    return like._replace(
        ids_B=rng.integers(0, vocab, slots, np.int32),
        lengths_B=np.full(slots, settings.max_context - settings.tokens_per_call, np.int32),
        lefts_B=np.full(slots, settings.tokens_per_call, np.int32),
        stops_BE=np.full(like.stops_BE.shape, -1, np.int32),
        tables_BX=tables,
        items=listed(tables, np.full(slots, settings.max_context), settings.page_size, cut),
        draws=like.draws._replace(
            keys_B2=rng.integers(0, 2**32, (slots, 2), np.uint32),
            indices_B=np.zeros(slots, np.int32),
            temperatures_B=np.ones(slots, np.float32),
            top_ps_B=np.ones(slots, np.float32),
            top_ks_B=np.zeros(slots, np.int32),
        ),
    )


def packed_rows(like: Any, vocab: int) -> Any:
    """Fill a micro-batch: trajectories of equal length, of which the policy wrote the second half."""
    rng, (rows, length) = np.random.default_rng(0), like.ids.shape
    positions = np.arange(length, dtype=np.int32) % (length // TRAJECTORIES)
    written = positions >= length // TRAJECTORIES // 2
    values = {
        "ids": rng.integers(0, vocab, (rows, length), np.int32),
        "positions": positions,
        "segments": 1 + np.arange(length, dtype=np.int32) // (length // TRAJECTORIES),
        "weights": written.astype(np.float32) / written.sum(),
        "sampled_logprobs": np.where(written, -np.log(vocab), 0).astype(np.float32),
        "versions": np.where(written, 0, -1).astype(np.int32),
        "pure": written,
        "advantages": np.where(written, rng.standard_normal(length), 0).astype(np.float32),
    }
    return type(like)(**{name: np.broadcast_to(value, (rows, length)) for name, value in values.items()})


def too_large(name: str, size: int) -> bool:
    """Say so where something cannot lie on the device; a tenth of it is left for computing."""
    stats = jax.devices()[0].memory_stats() or {}
    room = 0.9 * stats.get("bytes_limit", float("inf"))
    if size > room:
        print(f"{name} is left out: it takes {size / 2**30:.1f} GiB, and there are {room / 2**30:.1f}", file=sys.stderr)
    return size > room


def show(found: Sequence[Measured]) -> None:
    """Print a table."""
    table = Table()
    for column in ("work", "median", "least", "most", "bound", "unit", "of the bound"):
        table.add_column(column, justify="left" if column == "work" else "right")
    for one in found:
        times, unit = (1e-12, "Tflop/s") if one.speed.unit == "flop/s" else (1.0, one.speed.unit)
        numbers = [f"{times * each:,.4g}" for each in (one.speed.median, one.speed.min, one.speed.max, one.bound)]
        table.add_row(one.name, *numbers, unit, f"{one.speed.median / one.bound:.0%}")
    Console().print(table)


if __name__ == "__main__":
    main()
