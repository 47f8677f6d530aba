import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dr_jax.model import decoder
from dr_jax.model.attention import segment_attention
from dr_jax.model.decoder import Weights, abstract, describe, head, hidden_states
from dr_jax.model.sizes import NAMED, Sizes, parameter_count
from dr_jax.sharding.mesh import MeshSettings, make_mesh
from dr_jax.sharding.place import place_rows, place_weights

IDS = np.random.default_rng(0).integers(0, 64, (8, 16)).astype(np.int32)
POSITIONS = np.broadcast_to(np.arange(16, dtype=np.int32), (8, 16))
SEGMENTS = np.ones((8, 16), np.int32)


def run(weights: Weights, sizes: Sizes, **options: object) -> jax.Array:
    def forward(weights: Weights) -> jax.Array:
        attend = segment_attention(jnp.asarray(SEGMENTS))
        return hidden_states(weights, sizes, jnp.asarray(IDS), jnp.asarray(POSITIONS), attend, **options)[0]

    return jax.jit(forward)(weights)


def slow_and_obvious(weights: Weights, sizes: Sizes, ids: np.ndarray) -> np.ndarray:
    """One row, one layer after another, one head after another, in float64."""
    w = {name: np.asarray(weight, np.float64) for name, weight in weights.items()}

    def norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + sizes.norm_eps) * gain

    def turn(x: np.ndarray) -> np.ndarray:
        half = sizes.head_dim // 2
        angle = np.arange(len(x))[:, None] * sizes.rope.theta ** (-np.arange(half) / half)
        return np.concatenate(
            [
                x[:, :half] * np.cos(angle) - x[:, half:] * np.sin(angle),
                x[:, half:] * np.cos(angle) + x[:, :half] * np.sin(angle),
            ],
            1,
        )

    x = w["embed"][ids]
    for layer in range(sizes.layers):
        own = {name[7:]: weight[layer] for name, weight in w.items() if name.startswith("layers.")}
        h = norm(x, own["attention_norm"])
        for one in range(sizes.heads):
            shared = one * sizes.kv_heads // sizes.heads
            q = turn(norm(h @ own["query"][:, one], own["query_norm"]))
            k = turn(norm(h @ own["key"][:, shared], own["key_norm"]))
            scores = np.where(np.tri(len(ids), dtype=bool), q @ k.T / np.sqrt(sizes.head_dim), -np.inf)
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            shares /= shares.sum(-1, keepdims=True)
            x = x + shares @ (h @ own["value"][:, shared]) @ own["out"][one]
        h = norm(x, own["ff_norm"])
        gate = h @ own["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ own["up"])) @ own["down"]
    return norm(x, w["final_norm"])


def test_the_scan_agrees_with_a_loop_over_layers_and_heads(small: tuple[Sizes, Weights]) -> None:
    sizes, weights = small
    found = run(weights, sizes)
    for row in range(2):
        np.testing.assert_allclose(found[row], slow_and_obvious(weights, sizes, IDS[row]), atol=2e-5)


def test_the_module_says_shape_and_axes_side_by_side() -> None:
    described = describe(NAMED["qwen2.5-0.5b"])
    assert described["embed"].shape == (151_936, 896)
    assert described["embed"].axes == ("vocab", "width")
    assert described["layers.query"].shape == (24, 896, 14, 64)
    assert described["layers.query"].axes == ("layer", "width", "heads", "channels")
    assert described["layers.key_bias"].axes == ("layer", "kv_heads", "channels")
    assert "head" not in described
    assert all(len(spec.shape) == len(spec.axes) for spec in described.values())


@pytest.mark.parametrize("name", NAMED)
def test_the_parameter_count_is_the_number_of_numbers(name: str) -> None:
    assert parameter_count(NAMED[name]) == sum(weight.size for weight in abstract(NAMED[name]).values())


def test_a_cache_is_carried_through_the_layers(small: tuple[Sizes, Weights]) -> None:
    sizes, weights = small

    def attend(calls_L, layer, q_BTHC, k_BTKC, v_BTKC):
        assert (q_BTHC.shape, k_BTKC.shape, v_BTKC.shape) == ((8, 16, 4, 8), (8, 16, 2, 8), (8, 16, 2, 8))
        return jnp.zeros_like(q_BTHC), calls_L.at[layer].add(10 + layer)

    _, calls_L = jax.jit(
        lambda calls_L: hidden_states(weights, sizes, jnp.asarray(IDS), jnp.asarray(POSITIONS), attend, calls_L)
    )(jnp.zeros(3, jnp.int32))
    assert calls_L.tolist() == [10, 11, 12]


def test_remat_changes_no_gradient(small: tuple[Sizes, Weights]) -> None:
    sizes, weights = small
    kept, *again = (
        jax.jit(jax.grad(lambda weights, remat=remat: jnp.square(run(weights, sizes, remat=remat)).mean()))(weights)
        for remat in ("none", "products", "full")
    )
    for one in again:
        for name in weights:
            np.testing.assert_allclose(
                one[name], kept[name], rtol=0, atol=1e-6 * float(jnp.abs(kept[name]).max()), err_msg=name
            )


def test_what_is_computed_again_is_not_kept(small: tuple[Sizes, Weights]) -> None:
    sizes, weights = small
    kept = []
    for remat in ("none", "products", "full"):
        _, back = jax.vjp(lambda weights, remat=remat: run(weights, sizes, remat=remat), weights)
        kept.append(sum(leaf.size for leaf in jax.tree.leaves(back)) - sum(weight.size for weight in weights.values()))
    # Of each of 128 tokens in 3 layers: 4 queries, 2 keys and 2 values of 8, what attention adds to 16, gate and up of 24.
    assert kept[1] - kept[2] == 128 * 3 * (8 * 8 + 16 + 2 * 24)
    assert kept[0] > kept[1]


def test_bfloat16_computes_near_float32(small: tuple[Sizes, Weights]) -> None:
    sizes, weights = small
    narrow = run(weights, sizes, compute_dtype=jnp.bfloat16)
    assert narrow.dtype == jnp.bfloat16
    wide = run(weights, sizes)
    assert float(jnp.abs(narrow.astype(jnp.float32) - wide).max()) < 0.05 * float(jnp.abs(wide).max())


def test_a_bias_that_is_zero_changes_nothing_and_one_that_is_not_does(small: tuple[Sizes, Weights]) -> None:
    sizes, weights = small
    biased = dataclasses.replace(sizes, qkv_bias=True)
    with_bias = weights | {name: jnp.zeros(w.shape) for name, w in abstract(biased).items() if name.endswith("bias")}
    assert len(with_bias) == len(weights) + 3
    without = run(weights, sizes)
    np.testing.assert_allclose(run(with_bias, biased), without, atol=1e-5)
    with_bias["layers.value_bias"] += 1.0
    assert float(jnp.abs(run(with_bias, biased) - without).max()) > 1e-2


def test_eight_devices_compute_what_one_computes(small: tuple[Sizes, Weights]) -> None:
    sizes, weights = small
    mesh = make_mesh(MeshSettings(2, 2, 2))

    def grad(weights: Weights, ids: jax.Array, positions: jax.Array, segments: jax.Array) -> tuple[jax.Array, Weights]:
        def loss(weights: Weights) -> tuple[jax.Array, jax.Array]:
            hidden_BTD, _ = hidden_states(weights, sizes, ids, positions, segment_attention(segments, block=8))
            return jnp.square(hidden_BTD @ head(weights, sizes)).mean(), hidden_BTD

        (_, hidden_BTD), gradient = jax.value_and_grad(loss, has_aux=True)(weights)
        return hidden_BTD, gradient

    one = jax.jit(grad)(weights, IDS, POSITIONS, SEGMENTS)
    with jax.set_mesh(mesh):
        placed = place_weights(weights, describe(sizes), mesh)
        many = jax.jit(grad)(placed, *place_rows((IDS, POSITIONS, SEGMENTS), mesh))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, many)


@pytest.mark.parametrize("length", [254, 256])
def test_long_rows_lie_in_parts_between_layers_and_compute_the_same(
    small: tuple[Sizes, Weights], length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "LONG", 256)
    sizes, weights = small
    ids = np.random.default_rng(1).integers(0, 64, (2, length)).astype(np.int32)
    weighed = np.random.default_rng(2).normal(size=(2, length, 16)).astype(np.float32) / length

    def loss(weights: Weights, ids: jax.Array) -> jax.Array:
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
        return jnp.sum(hidden_states(weights, sizes, ids, positions, lambda cache, layer, q, k, v: (q, cache))[0] * weighed)

    gradient = jax.value_and_grad(loss)
    mesh = make_mesh(MeshSettings(fsdp=2, tensor=2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        traced = jax.jit(gradient).trace(place_weights(weights, describe(sizes), mesh), place_rows(ids, mesh))
        value, found = traced.lower().compile()(place_weights(weights, describe(sizes), mesh), place_rows(ids, mesh))
    cut = "P(('sequence', 'data', 'fsdp'), 'tensor', None)" in str(traced.jaxpr)
    assert cut == (length >= 256)
    expected, alone = jax.jit(gradient)(weights, ids)
    assert float(value) == pytest.approx(float(expected), abs=1e-4)
    for name, other in alone.items():
        np.testing.assert_allclose(found[name], other, atol=1e-4, err_msg=name)
