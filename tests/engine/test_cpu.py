"""The kernel for CPUs, held against rows in one piece in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dr_jax.engine.cpu import OnCpu
from tests.engine.oracle import COMPILER

L, K = 2, 2
meet = jax.jit(OnCpu())
compiled = pytest.mark.skipif(not COMPILER, reason="no C++ compiler")


def gathered(q: np.ndarray, k: np.ndarray, v: np.ndarray, tables: np.ndarray, visible: np.ndarray) -> np.ndarray:
    out, sharing = np.zeros(q.shape), q.shape[2] // K
    for row, query, head in np.ndindex(q.shape[:3]):
        if there := visible[row, query]:
            keys, values = (pool[1, head // sharing, tables[row]].reshape(-1, q.shape[3])[:there] for pool in (k, v))
            scores = keys.astype(np.float64) @ q[row, query, head] * q.shape[3] ** -0.5
            shares = np.exp(scores - scores.max())
            out[row, query, head] = shares @ values / shares.sum()
    return out


def case(rows: int, queries: int, sharing: int, channels: int, page: int, pages: int) -> tuple[np.ndarray, ...]:
    """Draw rows of any length, the first of which sees nothing and of which some have their first pages in common."""
    rng = np.random.default_rng(rows * queries)
    pool = (L, K, rows * pages + 1, page, channels)
    k, v = (rng.standard_normal(pool, np.float32) for _ in range(2))
    tables = 1 + rng.permutation(rows * pages).astype(np.int32).reshape(rows, pages)
    tables[1::2, : pages // 2] = tables[0, : pages // 2]
    visible = rng.integers(0, pages * page + 1, (rows, queries), np.int32)
    visible[0], visible[-1, -1] = 0, pages * page
    return rng.standard_normal((rows, queries, K * sharing, channels), np.float32), k, v, tables, visible


@compiled
@pytest.mark.parametrize(
    ("rows", "queries", "sharing", "channels", "page", "pages"),
    [(40, 1, 4, 32, 64, 5), (9, 1, 1, 16, 8, 19), (3, 33, 3, 64, 24, 7), (2, 70, 7, 128, 16, 9), (5, 2, 6, 64, 1, 40)],
)
def test_the_kernel_agrees_with_attention_over_rows_in_one_piece(
    rows: int, queries: int, sharing: int, channels: int, page: int, pages: int
) -> None:
    q, k, v, tables, visible = case(rows, queries, sharing, channels, page, pages)
    found = meet(q, (k, v), jnp.int32(1), tables, visible)
    np.testing.assert_allclose(found, gathered(q, k, v, tables, visible), atol=5e-6)
    assert not np.asarray(found)[visible == 0].any()


@compiled
def test_scores_far_apart_neither_overflow_nor_lose_the_largest() -> None:
    q, k, v, tables, visible = case(4, 1, 2, 16, 16, 8)
    found = meet(q * 300, (k, v), jnp.int32(1), tables, visible)
    np.testing.assert_allclose(found, gathered(q * 300, k, v, tables, visible), atol=1e-4)


@compiled
def test_what_a_row_gathers_does_not_depend_on_the_others() -> None:
    q, k, v, tables, visible = case(40, 1, 4, 32, 16, 20)
    together = np.asarray(meet(q, (k, v), jnp.int32(1), tables, visible))
    for row in (1, 17, 39):
        alone = meet(q[row : row + 1], (k, v), jnp.int32(1), tables[row : row + 1], visible[row : row + 1])
        np.testing.assert_array_equal(alone[0], together[row])


@compiled
def test_places_that_nobody_sees_may_hold_anything() -> None:
    q, k, v, tables, visible = case(6, 1, 4, 32, 16, 6)
    expected = meet(q, (k, v), jnp.int32(1), tables, visible)
    for row, there in enumerate(visible[:, 0]):
        for place in range(there, tables.shape[1] * 16):
            page = tables[row, place // 16]
            if not any(page in tables[other, : -(-visible[other, 0] // 16)] for other in range(6)):
                k[:, :, page], v[:, :, page] = np.nan, np.inf
    assert np.isnan(k).any()
    np.testing.assert_array_equal(meet(q, (k, v), jnp.int32(1), tables, visible), expected)


@compiled
@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("queries", [1, 3])
def test_a_key_that_is_no_number_is_not_passed_over(broken: float, queries: int) -> None:
    q, k, v, tables, _ = case(3, queries, 2, 16, 16, 6)
    q, visible = abs(q), np.full((3, queries), 90, np.int32)
    expected = np.array(meet(q, (k, v), jnp.int32(1), tables, visible))
    k[1, 0, tables[2, 0], 3] = broken
    expected[2, :, :2] = np.nan  # those of the first key head
    np.testing.assert_array_equal(meet(q, (k, v), jnp.int32(1), tables, visible), expected)
