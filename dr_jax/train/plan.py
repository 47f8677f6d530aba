"""Say what a run would do, need and write, without doing it."""

from __future__ import annotations

from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from dr_jax.base.config import to_tree
from dr_jax.base.metrics import Metrics
from dr_jax.engine.settings import host_bytes, memory_bytes
from dr_jax.model.lora import describe
from dr_jax.model.sizes import Sizes, parameter_count
from dr_jax.train.actor import load_actor, load_reading_model
from dr_jax.train.settings import Settings
from dr_jax.train.trackers import refuse_missing

_MB = 2**20


def plan(settings: Settings) -> dict[str, Any]:
    """Load the policy, check everything that is checked before a run, and return settings, sizes, memory and steps.

    Raises:
        UserError: as the run itself would.
    """
    refuse_missing(settings.report)
    actor = load_actor(settings, Metrics())
    reading = load_reading_model(settings, actor, Metrics())
    sizes, rollout = actor.sizes, settings.rollout
    return {
        "settings": to_tree(settings),
        "parameters": parameter_count(sizes),
        "devices": [str(device) for device in actor.mesh.devices.flat],
        "mesh": dict(actor.mesh.shape),
        "engine_devices": [str(device) for device in actor.placement.sampling.devices.flat],
        "memory_mb": memory(settings, sizes, reading.engine.sizes if reading else None),
        "host_memory_mb": {"parked_pages": round(host_bytes(settings.engine, sizes) / _MB, 1)},
        "plan": {
            "updates": settings.steps,
            "episodes_per_update": rollout.groups * rollout.group_size,
            "most_tokens_per_update": rollout.groups * rollout.group_size * settings.episode.tokens,
            "rows_per_micro_batch": f"{settings.batch.rows or 'as many as fit'} x {list(settings.batch.lengths)}",
            "held_out_questions": settings.eval.questions,
            "writes": f"{settings.out}/{settings.name}/",
        },
        "jax": jax.__version__,
    }


def memory(settings: Settings, sizes: Sizes, reading: Sizes | None = None) -> dict[str, float]:
    """Return the lasting memory of a run in MiB, over all devices, by part; activations come on top.

    AdamW and Muon keep at most two float32 numbers per weight. A reading model with weights of its own has an engine too.
    """
    weights, lora = parameter_count(sizes), settings.lora
    trained = sum(prod(spec.shape) for spec in describe(sizes, lora).values()) if lora.rank else weights
    item = jnp.dtype(settings.model.dtype).itemsize
    parts = {
        "weights": item * weights + 4 * trained if lora.rank else 4 * weights,
        "optimizer": 8 * trained,
        "gradients": 4 * trained,
        "engine_weights": item * weights,
        "engine_pages": memory_bytes(settings.engine, sizes),
        "reference": 4 * weights if settings.loss.needs_reference and not lora.rank else 0,  # that of adapters is their base
        "reader_weights": item * parameter_count(reading) if reading else 0,
        "reader_pages": memory_bytes(settings.engine, reading) if reading else 0,
    }
    return {name: round(size / _MB, 1) for name, size in {**parts, "all": sum(parts.values())}.items()}
