"""Compile the device programs of a run for accelerators that are not here, and say what they would need.

In:    sizes, settings, devices of a TPU topology (or those that are here)
Out:   `Planned` programs, made of shapes with shardings alone; `Found`: memory of one chip, arithmetic, kernels, collectives
Holds: the programs are those that a run compiles, by the same rules of the mesh; nothing is run, so nothing is known of time
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dr_jax.base.errors import ConfigError
from dr_jax.engine import runner
from dr_jax.engine.device import STOPS, tiles
from dr_jax.engine.items import Tiles, listed
from dr_jax.engine.paged import Pools
from dr_jax.engine.runner import DecodeRows, PrefillRows
from dr_jax.engine.sample import Draws
from dr_jax.engine.settings import EngineSettings
from dr_jax.learn.batch import Batch
from dr_jax.learn.losses import LossSettings
from dr_jax.learn.optimizer import OptimizerSettings, make_optimizer
from dr_jax.learn.update import CHUNK, Programs, State, scoring, through
from dr_jax.model.decoder import Remat, abstract, describe
from dr_jax.model.flops import causal_pairs, forward_flops, update_flops
from dr_jax.model.packed import How
from dr_jax.model.sizes import Sizes
from dr_jax.sharding import rules
from dr_jax.sharding.mesh import MeshSettings, make_mesh
from dr_jax.sharding.place import bytes_of, row_ways
from dr_jax.train.hlo import Counts, counted


@dataclass(frozen=True, slots=True)
class Planned:
    """A program that was not compiled yet.

    Args:
        name: what it does.
        program: the jitted function.
        arguments: shapes, dtypes and places of what it is given.
        mesh: of the devices.
        flops: useful ones, over all chips.
        beside: bytes of one chip that lie there while it runs without being its arguments.
        within: whether a run calls it within the mesh.
        unbound: how often loops run whose bound is known at run time only.
    """

    name: str
    program: Any
    arguments: tuple[Any, ...]
    mesh: Mesh
    flops: int
    beside: int = 0
    within: bool = False
    unbound: int = 1

    def trace(self) -> Any:
        """Trace it for its arguments."""
        with jax.set_mesh(self.mesh) if self.within else nullcontext():
            return self.program.trace(*self.arguments)


@dataclass(frozen=True, slots=True)
class Found:
    """What the compiler says of a program, for one chip; bytes.

    Args:
        name: of the program.
        arguments: what it is given; donated buffers are in here.
        results: what it returns beyond donated buffers.
        temporaries: most that lies there besides.
        beside: what lies there and is not its own.
        code: of the program.
        flops: useful ones.
        xla_flops: XLA's count, which counts the body of a loop once.
        xla_bytes: read and written, by XLA's count; as above, and kernels are not looked into.
        counts: ours, with loops run to their end.
        seconds: to compile.
    """

    name: str
    arguments: int
    results: int
    temporaries: int
    beside: int
    code: int
    flops: float
    xla_flops: float
    xla_bytes: float
    counts: Counts
    seconds: float

    @property
    def peak(self) -> int:
        """Bytes of a chip while the program runs."""
        return self.arguments + self.results + self.temporaries + self.beside + self.code


@dataclass(frozen=True, slots=True)
class Failed:
    """A program that does not compile: most often, because it does not fit."""

    name: str
    reason: str
    seconds: float


def mesh_of(devices: Sequence[jax.Device], *, tensor: int = 1, fsdp: int = -1) -> Mesh:
    """Arrange devices as a run does."""
    return make_mesh(MeshSettings(data=1, fsdp=fsdp, tensor=tensor), devices)


def update_programs(
    sizes: Sizes,
    mesh: Mesh,
    *,
    rows: int,
    length: int,
    loss: LossSettings,
    optimizer: OptimizerSettings,
    dtype: str = "bfloat16",
    remat: Remat = "full",
    attention: How = "auto",
) -> list[Planned]:
    """Plan the update: the reference's log-probabilities of a micro-batch, its gradient, and the step that the sum becomes.

    Args:
        sizes: of the policy.
        mesh: of the devices that are compiled for.
        rows: of a micro-batch, over all devices.
        length: of a row; one trajectory fills it.
        loss: the objective.
        optimizer: how a gradient becomes a step.
        dtype: of the matrix products.
        remat: what of each layer is computed again in the backward pass.
        attention: the kernel.
    """
    axes = {name: spec.axes for name, spec in describe(sizes).items()}
    chain = make_optimizer(optimizer, axes, steps=1000)
    state = abstract_state(sizes, chain.init, mesh)
    platform = next(iter(mesh.devices.flat)).platform
    forward = through(sizes, remat=remat, compute_dtype=jnp.dtype(dtype), attention=attention, platform=platform)
    programs = Programs(forward, loss, chain, state)
    batch, gradient = abstract_batch(rows, length, mesh), state.weights
    number = _placed((), jnp.float32, NamedSharding(mesh, PartitionSpec()))
    per_token = batch.weights if loss.needs_reference else None

    flops = forward_flops(sizes, rows * length, rows * causal_pairs(length))
    add: tuple[Any, ...] = (gradient, state.weights, {}, batch, per_token, None, state.step, number)
    apply = (state.weights, state.optimizer, gradient)
    weights, moments = bytes_of(state.weights), bytes_of(state.optimizer)
    reference = weights if loss.needs_reference else 0
    chunks = -(-length // max(1, CHUNK * row_ways(mesh) // rows))  # every token is learned from
    planned = [
        Planned(
            f"gradient of {rows} x {length}",
            programs.add,
            add,
            mesh,
            update_flops(sizes, rows * length, rows * causal_pairs(length)),
            beside=moments + reference,
            within=True,
            unbound=chunks,
        ),
        Planned("step", programs.apply, apply, mesh, 0, beside=reference, within=True),
    ]
    if not loss.needs_reference:
        return planned
    score, lies = (state.weights, batch, number), weights + moments
    told = f"reference of {rows} x {length}"
    return [Planned(told, scoring(forward), score, mesh, flops, beside=lies, within=True, unbound=chunks), *planned]


# How the names of an engine's programs begin.
ENGINE = ("prefill", "decode", "park", "fetch")


def engine_programs(sizes: Sizes, mesh: Mesh, settings: EngineSettings, *, dtype: str = "bfloat16") -> list[Planned]:
    """Plan the engine: the largest prefill at the end of the longest context, beside one id of each slot, and decoding.

    Args:
        sizes: of the policy.
        mesh: of the devices that are compiled for.
        settings: capacities.
        dtype: of the weights.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    platform = next(iter(mesh.devices.flat)).platform
    cut = tiles(settings, sizes, platform, mesh)
    programs = runner.programs(
        sizes,
        tokens_per_call=settings.tokens_per_call,
        tiles=cut,
        everywhere=everywhere,
        eigen=False,
    )
    weights = abstract_weights(sizes, mesh, dtype)
    shape = (sizes.layers, sizes.kv_heads, settings.page_count, settings.page_size, sizes.head_dim)
    pools = Pools(*(_placed(shape, settings.dtype, place) for place in programs.pools))
    small: Callable[..., Any] = partial(_placed, place=everywhere)
    slots, longest = settings.slots, settings.max_context
    rows, width = settings.prefill_rows[-1], settings.prefill_width
    prefill, decode = _engine_rows(settings, cut, small)
    drawn = (slots, slots * settings.tokens_per_call)
    one_each, all_ids = (forward_flops(sizes, count, count * settings.context_of_all) for count in drawn)
    prefill_flops, blocks = forward_flops(sizes, rows * width, rows * width * longest, logits=rows), -(-longest // cut.tokens)
    return [
        Planned(
            f"prefill {rows} x {width} and {slots} ids",
            programs.mixed,
            (weights, pools, prefill, decode),
            mesh,
            prefill_flops + one_each,
            unbound=blocks,
        ),
        Planned(
            f"decode {slots} x {settings.tokens_per_call}",
            programs.decode,
            (weights, pools, decode),
            mesh,
            all_ids,
            unbound=settings.tokens_per_call,
        ),
        *(_moving(programs, pools, small, mesh, bytes_of(weights)) if settings.host_pages else ()),
    ]


def _engine_rows(settings: EngineSettings, cut: Tiles, small: Callable[..., Any]) -> tuple[PrefillRows, DecodeRows]:
    """Return what the largest call of an engine is told."""
    pages, slots, (rows, width) = (
        settings.pages_per_request,
        settings.slots,
        (settings.prefill_rows[-1], settings.prefill_width),
    )

    def draws(count: int) -> Draws:
        whole, real = small((count,), jnp.int32), small((count,), jnp.float32)
        return Draws(small((count, 2), jnp.uint32), whole, real, real, whole)

    one, many = small((rows,), jnp.int32), small((slots,), jnp.int32)
    prefill = PrefillRows(small((rows, width), jnp.int32), one, one, small((rows, pages), jnp.int32), draws(rows))
    stops, tables = small((slots, STOPS), jnp.int32), small((slots, pages), jnp.int32)
    nothing = listed(np.zeros(tables.shape, np.int32), np.zeros(slots, np.int32), settings.page_size, cut)
    items = jax.tree.map(lambda leaf: small(leaf.shape, leaf.dtype), nothing)
    return prefill, DecodeRows(many, many, many, stops, tables, items, draws(slots))


def _moving(programs: runner.Programs, pools: Pools, small: Callable[..., Any], mesh: Mesh, weights: int) -> list[Planned]:
    """Plan what brings pages to host memory and back, beside so many bytes of weights."""
    layers, heads, _, *page = pools.k_LKPWC.shape
    some = runner.Pages(*(_placed((runner.MOVES, layers, heads, *page), pools.k_LKPWC.dtype, one) for one in programs.pages))
    which = small((runner.MOVES,), jnp.int32)
    return [
        Planned(f"{name} {runner.MOVES} pages", program, arguments, mesh, 0, beside=weights)
        for name, program, arguments in (
            ("park", programs.lift, (pools, which)),
            ("fetch", programs.put_back, (pools, some, which)),
        )
    ]


def analysed(planned: Planned) -> Found | Failed:
    """Compile a program for the devices of its mesh and read off what it needs.

    Raises:
        ConfigError: the compiler and JAX are of versions that do not belong together.
    """
    start = time.perf_counter()
    platform = {"gpu": "cuda"}.get(kind := next(iter(planned.mesh.devices.flat)).platform, kind)
    try:
        compiled = planned.trace().lower(lowering_platforms=(platform,)).compile()
    except jax.errors.JaxRuntimeError as error:
        return Failed(planned.name, str(error).splitlines()[0], time.perf_counter() - start)
    seconds = time.perf_counter() - start
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:  # the compiler is another package than what reads its programs
        why = str(error)[:200].splitlines()[0]
        raise ConfigError(
            f"What {planned.name} was compiled to cannot be read by jaxlib {version('jaxlib')}: {why}",
            needed="a libtpu of the version that this JAX was made for",
            fix="pip install 'dr-jax[tpu-aot]'",
        ) from error
    return Found(
        name=planned.name,
        arguments=memory.argument_size_in_bytes,
        results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        beside=planned.beside,
        code=memory.generated_code_size_in_bytes,
        flops=planned.flops / planned.mesh.size,
        xla_flops=float(cost.get("flops", 0.0)),
        xla_bytes=float(cost.get("bytes accessed", 0.0)),
        counts=counted(text, unbound=planned.unbound),
        seconds=seconds,
    )


def abstract_weights(sizes: Sizes, mesh: Mesh, dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shape, dtype and place of every weight."""
    places = rules.shardings(describe(sizes), mesh)
    return {name: _placed(form.shape, form.dtype, places[name]) for name, form in abstract(sizes, dtype).items()}


def abstract_state(sizes: Sizes, init: Callable[[Any], Any], mesh: Mesh) -> State:
    """Return a state as `learn.update.begin` makes it: what the optimizer keeps of a weight lies where the weight lies."""
    weights, everywhere = abstract_weights(sizes, mesh, "float32"), NamedSharding(mesh, PartitionSpec())

    def placed(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name = next((key.key for key in reversed(path) if isinstance(key, jax.tree_util.DictKey)), None)
        like = weights.get(str(name))
        return _placed(leaf.shape, leaf.dtype, like.sharding if like is not None and like.shape == leaf.shape else everywhere)

    kept = jax.tree_util.tree_map_with_path(placed, jax.eval_shape(init, weights))
    return State(weights, kept, _placed((), jnp.int32, everywhere))


def abstract_batch(rows: int, length: int, mesh: Mesh) -> Batch:
    """Return a micro-batch whose rows are split as `sharding.place` splits them."""
    kinds = {"weights": jnp.float32, "sampled_logprobs": jnp.float32, "advantages": jnp.float32, "pure": jnp.bool_}
    split = NamedSharding(mesh, rules.spec(("row",)))
    return Batch(**{one.name: _placed((rows, length), kinds.get(one.name, jnp.int32), split) for one in fields(Batch)})


def _placed(shape: tuple[int, ...], dtype: Any, place: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)
