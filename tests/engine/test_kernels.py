"""Kernels over pages in Pallas' interpreter, held against plain JAX; and which of them is taken."""

import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dr_jax.engine import choice
from dr_jax.engine.choice import Form, decoding
from dr_jax.engine.items import Items, Tiles, listed
from dr_jax.engine.kernels import Decoding
from dr_jax.engine.paged import Pools, paged_attention
from dr_jax.engine.settings import EngineSettings
from dr_jax.model import trial
from dr_jax.model.sizes import NAMED
from dr_jax.sharding.mesh import MeshSettings, make_mesh

L, P, W, X, B = 2, 9, 8, 3, 3
LENGTHS = jnp.asarray([20, 1, 16], jnp.int32)
TABLES = jnp.asarray([[5, 2, 7], [8, 0, 0], [1, 6, 3]], jnp.int32)
CHANNELS = {"tpu": 128, "gpu": 16}
TILES = Tiles(16, 4)


def drawn(heads: int, kv_heads: int, channels: int) -> tuple[jax.Array, Pools]:
    keys = jax.random.split(jax.random.key(0), 3)
    pool = (L, kv_heads, P, W, channels)
    q_B1HC = jax.random.normal(keys[0], (B, 1, heads, channels))
    # Whole numbers and halves: bfloat16 holds them as well.
    return q_B1HC, Pools(*(jnp.round(2 * jax.random.normal(key, pool)) / 2 for key in keys[1:]))


def gathered(q_B1HC: jax.Array, pools: Pools, layer: int) -> np.ndarray:
    """Each row's keys and values in one piece, and a softmax over them."""
    q, k, v = (np.asarray(x, np.float64) for x in (q_B1HC, *pools))
    out, sharing = np.zeros(q.shape), q.shape[2] // k.shape[1]
    for row, head in np.ndindex(B, q.shape[2]):
        places = np.s_[layer, head // sharing, TABLES[row]]
        keys, values = (pool[places].reshape(X * W, -1)[: LENGTHS[row]] for pool in (k, v))
        scores = keys @ q[row, 0, head] * q.shape[-1] ** -0.5
        shares = np.exp(scores - scores.max())
        out[row, 0, head] = shares @ values / shares.sum()
    return out


def agree(meet: Callable[..., jax.Array], heads: int, kv_heads: int, channels: int) -> None:
    q_B1HC, pools = drawn(heads, kv_heads, channels)
    for layer in range(L):
        found = meet(q_B1HC, pools, jnp.int32(layer), TABLES, LENGTHS[:, None])
        np.testing.assert_allclose(found, gathered(q_B1HC, pools, layer), atol=2e-5)


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), pytest.param(2, 2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kernel", ["tpu", "gpu"])
def test_kernels_agree_with_attention_over_rows_in_one_piece(kernel: str, heads: int, kv_heads: int) -> None:
    agree(jax.jit(Decoding(kernel, interpret=True)), heads, kv_heads, CHANNELS[kernel])


@pytest.mark.parametrize("kv_heads", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_each_device_meets_the_keys_of_its_own_queries(kv_heads: int) -> None:
    # Four devices: of two key heads every device has both, of four each has one.
    mesh = make_mesh(MeshSettings(data=1, fsdp=1, tensor=4), jax.devices()[:4])
    agree(jax.jit(Decoding("gpu", mesh, interpret=True)), 8, kv_heads, CHANNELS["gpu"])


def attended(tiles: Tiles, queries: int, valid_B1: jax.Array) -> tuple[jax.Array, Pools]:
    """Write and meet as an engine does, one to three tokens after what is there."""
    q_BQHC, pools = drawn(4, 2, 16)
    q_BQHC = jnp.repeat(q_BQHC, queries, axis=1)
    k_BQKC, v_BQKC = (jax.random.normal(jax.random.key(seed), (B, queries, 2, 16)) for seed in (3, 4))
    positions_BQ = LENGTHS[:, None] + jnp.arange(queries)[None]
    items = listed(np.asarray(TABLES), np.asarray(positions_BQ[:, 0] + 1), W, tiles) if queries == 1 else None

    @jax.jit
    def attend(pools: Pools, *new: jax.Array) -> tuple[jax.Array, Pools]:
        valid_BQ = jnp.broadcast_to(valid_B1, positions_BQ.shape)
        return paged_attention(pools, TABLES, positions_BQ, valid_BQ, tiles, items)(pools, jnp.int32(1), *new)

    return attend(pools, q_BQHC, k_BQKC, v_BQKC)


@pytest.mark.parametrize("queries", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_pages_are_read_alike_however_they_are_laid_out(queries: int) -> None:
    found, expected = (attended(TILES._replace(flat=flat), queries, jnp.ones((B, 1), bool))[0] for flat in (False, True))
    np.testing.assert_array_equal(found, expected)


def test_what_is_new_is_written_before_it_is_met_and_a_row_that_is_over_stays_finite() -> None:
    valid_B1 = jnp.asarray([[True], [False], [True]])
    kernel = Decoding("gpu", interpret=True)
    found, expected = (attended(TILES._replace(kernel=one), 1, valid_B1) for one in (kernel, None))
    np.testing.assert_allclose(found[0][valid_B1[:, 0]], expected[0][valid_B1[:, 0]], atol=2e-5)
    assert np.isfinite(found[0]).all()
    np.testing.assert_array_equal(found[1].k_LKPWC, expected[1].k_LKPWC)


@pytest.mark.parametrize(("platform", "lowering", "call"), [("tpu", "tpu", "tpu_custom_call"), ("gpu", "cuda", "triton")])
def test_what_is_compiled_for_an_accelerator_has_its_kernel(platform: str, lowering: str, call: str) -> None:
    settings = EngineSettings(slots=B, page_size=16, max_context=X * 16, dtype="bfloat16")
    kernel = decoding("auto", Form.of(settings, NAMED["qwen2.5-1.5b"], 1), platform, None)
    pool = jax.ShapeDtypeStruct((L, 2, P, 16, 128), jnp.bfloat16)
    q_B1HC = jax.ShapeDtypeStruct((B, 1, 12, 128), jnp.bfloat16)
    lowered = (
        jax.jit(kernel)
        .trace(q_B1HC, (pool, pool), jnp.int32(0), TABLES, LENGTHS[:, None])
        .lower(lowering_platforms=(lowering,))
    )
    assert lowered.as_text().count(call) >= 1


@pytest.mark.usefixtures("plain_log")
def test_a_kernel_that_does_not_suit_is_left_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    settings = EngineSettings(slots=256, page_size=16, max_context=4096, dtype="bfloat16")
    trial.say.cache_clear()
    decoding.cache_clear()
    cases = [
        ("kernel", "qwen2.5-1.5b", settings, 1, "metal", "there is no kernel for pages of keys and values on metal"),
        ("auto", "qwen2.5-1.5b", settings, 1, "cpu", "keys and values in bfloat16, not in float32"),
        ("auto", "qwen2.5-0.5b", settings, 1, "tpu", "heads of 64 channels, not of a multiple of 128"),
        ("auto", "qwen2.5-7b", settings, 1, "tpu", "page tables of 1,048,576 bytes, more than 786,432; larger pages"),
        ("auto", "qwen2.5-7b", EngineSettings(page_size=8, dtype="bfloat16"), 1, "tpu", "pages of 8 tokens, not of a multiple"),
        ("auto", "qwen2.5-7b", EngineSettings(), 1, "tpu", "keys and values in float32, which it rounds to bfloat16"),
        ("auto", "tiny", EngineSettings(page_size=12), 1, "gpu", "12 is not a power of two"),
    ]  # fmt: skip
    with caplog.at_level(logging.WARNING, logger="dr_jax"):
        for how, model, engine, ways, platform, told in cases:
            for _ in range(2):
                assert decoding(how, Form.of(engine, NAMED[model], ways), platform, None) is None
            assert told in caplog.records[-1].getMessage()
        assert decoding("auto", Form.of(settings, NAMED["tiny"], 1), "metal", None) is None  # nothing was asked for
        assert decoding("plain", Form.of(settings, NAMED["tiny"], 1), "tpu", None) is None
    assert len(caplog.records) == len(cases)
    a_quarter_of_the_tables = Form.of(settings, NAMED["qwen2.5-7b"], 4)
    assert decoding("auto", a_quarter_of_the_tables, "tpu", None) == Decoding("tpu")


def test_forms_count_what_one_device_has() -> None:
    settings, sizes = EngineSettings(), NAMED["qwen2.5-1.5b"]  # 12 heads, 2 key heads
    found = [Form.of(settings, sizes, ways) for ways in (1, 2, 4, 5)]
    assert [(form.heads, form.kv_heads) for form in found] == [(12, 2), (6, 1), (3, 1), (12, 2)]


def test_the_trial_holds_a_kernel_against_plain_attention() -> None:
    form = Form(slots=3, heads=4, kv_heads=2, channels=8, page_size=4, pages=5, dtype="float32")
    plain, kernels, arguments = choice._trial("gpu", form)
    pools, tables, positions, _, q, *_ = arguments
    assert (q.shape, pools[0].shape, tables.shape) == ((3, 1, 4, 8), (2, 2, 15, 4, 8), (3, 5))
    assert (positions.min() >= 5, positions.max() < 20) == (True, True)
    assert list(kernels) == ["kernel"]

    def short(pools: Pools, tables: jax.Array, positions: jax.Array, items: Items, *new: jax.Array) -> jax.Array:
        return plain(pools, tables, positions - 1, items, *new)

    assert set(trial.timed({"plain": plain, "short": short}, arguments, "it")) == {"plain"}
