"""What the engine must agree with: one request, one full forward pass per id, no cache, no batch, sampling in numpy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from dr_jax.engine.request import key_data
from dr_jax.model.attention import segment_attention
from dr_jax.model.decoder import Weights, head, hidden_states, initial
from dr_jax.model.sizes import Sizes
from dr_jax.tokens.policy import RequestKey, Sampled, Sampling

# Whether a machine can make the kernel for CPUs; engines meet pages in plain JAX where not.
COMPILER = any(map(shutil.which, [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]))

# Heads of 16 channels: a CPU has a kernel for pages of them.
SIZES = Sizes(vocab=61, width=32, layers=2, heads=4, kv_heads=2, head_dim=16, ff=48, qk_norm=True, max_context=96)
CONTEXT = 96


@lru_cache
def weights(seed: int) -> Weights:
    """Random weights whose distributions are neither flat nor certain."""
    drawn = initial(SIZES, jax.random.key(seed))
    return {**drawn, "embed": drawn["embed"] * 8}


@jax.jit
def _logits(weights: Weights, ids_BT: jax.Array, last: jax.Array) -> jax.Array:
    positions_BT = jnp.arange(CONTEXT, dtype=jnp.int32)[None]
    segments_BT = (positions_BT <= last).astype(jnp.int32)
    hidden_BTD, _ = hidden_states(weights, SIZES, ids_BT, positions_BT, segment_attention(segments_BT))
    return hidden_BTD[0, last] @ head(weights, SIZES)


def logits(weights: Weights, ids: Sequence[int]) -> np.ndarray:
    """Logits of what follows these ids."""
    row = np.zeros((1, CONTEXT), np.int32)
    row[0, : len(ids)] = ids
    return np.asarray(_logits(weights, row, np.int32(len(ids) - 1)), np.float64)


def kept(values: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Logits after temperature, top-k and top-p, in float64, one id after the other."""
    values = values / (sampling.temperature or 1.0)
    if sampling.temperature == 0:
        return values
    order = sorted(range(len(values)), key=lambda token: -values[token])[: sampling.top_k or len(values)]
    shares = np.exp(values[order] - values[order].max())
    shares /= shares.sum()
    chosen, mass = [], 0.0
    for token, share in zip(order, shares, strict=True):
        if mass < sampling.top_p or sampling.top_p == 1:
            chosen.append(token)
        mass += share
    out = np.full(len(values), -np.inf)
    out[chosen] = values[chosen]
    return out


def drawn(left: np.ndarray, sampling: Sampling, key: RequestKey, index: int) -> int:
    """The id that a request draws: the first whose cumulated probability passes its uniform number."""
    if sampling.temperature == 0:
        return int(np.argmax(left))
    word = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(key_data(key)), impl="threefry2x32"), index)
    shares = np.exp(left - left.max())
    until = np.cumsum(shares)
    return int(np.searchsorted(until, float(jax.random.uniform(word, (), jnp.float32)) * until[-1], side="right"))


def sample(weights: Weights, prompt: Sequence[int], sampling: Sampling, key: RequestKey) -> Sampled:
    """Draw a continuation the slow way."""
    ids, logprobs = list(prompt), []
    while len(logprobs) < sampling.max_new_tokens:
        left = kept(logits(weights, ids), sampling)
        token = drawn(left, sampling, key, len(logprobs))
        peak = left.max()
        logprobs.append(float(left[token] - peak - np.log(np.exp(left - peak).sum())))
        ids.append(token)
        if token in sampling.stop_ids:
            break
    new = tuple(ids[len(prompt) :])
    return Sampled(new, tuple(logprobs), (0,) * len(new), "stop" if new[-1] in sampling.stop_ids else "length")


def assert_same(found: Sampled, expected: Sampled, tolerance: float = 1e-4) -> None:
    """Same ids, same ending, log-probabilities within the tolerance."""
    assert found.ids == expected.ids
    assert found.finish == expected.finish
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=tolerance)
