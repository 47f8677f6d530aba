"""dr_jax's engine: all conversations at once, each turn resumes on its own pages."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.side import serve
from benchmarks.workload import MODELS, Model, Request, decode_work
from dr_jax.base.metrics import Metrics
from dr_jax.engine.engine import Engine
from dr_jax.engine.settings import EngineSettings
from dr_jax.model.decoder import initial
from dr_jax.model.sizes import Rope, Sizes
from dr_jax.tokens.policy import RequestKey, Sampling


def sizes_of(model: Model, context: int) -> Sizes:
    """Return the sizes as dr_jax calls them."""
    return Sizes(
        vocab=model.vocab,
        width=model.width,
        layers=model.layers,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        ff=model.ff,
        rope=Rope(model.rope_theta),
        norm_eps=model.norm_eps,
        qk_norm=True,
        max_context=context,
    )


async def converse(engine: Engine, request: Request, number: int) -> int:
    """Run one conversation; return how many ids were drawn."""
    ids: list[int] = []
    drawn = 0
    for place, turn in enumerate(request.turns):
        ids += turn.ids
        sampled = await engine.sample(ids, Sampling(turn.draw), RequestKey(0, str(request.question), number, place))
        ids += sampled.ids
        drawn += len(sampled.ids)
    return drawn


def read_rate(size: int = 1 << 28, times: int = 3) -> float:
    """Measure how fast memory is read, in bytes a second: a sum over more than a processor's caches hold."""
    many = jnp.ones(size // 4, jnp.float32)
    total = jax.jit(jnp.sum)
    total(many).block_until_ready()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        total(many).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return size / min(seconds)


def prepare(options: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Build the engine and compile."""
    model = MODELS[options["model"]]
    work = decode_work(options["work"], model.vocab)
    longest = max(request.length for request in work)
    context = -(-longest // 64) * 64
    sizes = sizes_of(model, context)
    settings = EngineSettings(max_context=context, **{"slots": len(work), **options.get("engine", {})})
    weights = jax.jit(lambda: initial(sizes, jax.random.key(1), jnp.dtype(options.get("dtype", "float32"))))()
    metrics = Metrics()
    engine = Engine(weights, sizes, settings, metrics=metrics).start()
    engine.warm_up()
    version = 0

    def once() -> dict[str, Any]:
        nonlocal version
        version += 1
        rate = read_rate()
        engine.adopt(weights, version)  # nothing is remembered of the round before
        metrics.drain()
        start = time.perf_counter()

        async def everybody() -> list[int]:
            return await asyncio.gather(*(converse(engine, request, number) for number, request in enumerate(work)))

        drawn = sum(asyncio.run(everybody()))
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": drawn, "counted": metrics.drain(), "rate": max(rate, read_rate())}

    once()
    return {"jax": jax.__version__, "context": context}, once


if __name__ == "__main__":
    serve(prepare)
