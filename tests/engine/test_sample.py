"""Drawing on the device against numpy, one id at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dr_jax.engine.request import key_data
from dr_jax.engine.sample import Draws, draw
from dr_jax.tokens.policy import RequestKey, Sampling
from tests.engine import oracle

_draw = jax.jit(draw)


def how(samplings: list[Sampling], keys: list[RequestKey], index: int = 0) -> Draws:
    return Draws(
        jnp.asarray(np.stack([key_data(key) for key in keys])),
        jnp.full((len(keys),), index, jnp.int32),
        jnp.asarray([one.temperature for one in samplings], jnp.float32),
        jnp.asarray([one.top_p for one in samplings], jnp.float32),
        jnp.asarray([one.top_k for one in samplings], jnp.int32),
    )


def keys(count: int) -> list[RequestKey]:
    return [RequestKey(7, "q", sibling, 0) for sibling in range(count)]


def test_greedy_takes_the_largest_and_scores_it_untempered() -> None:
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]))
    ids, logprobs = _draw(logits, how([Sampling(1, temperature=0.0, top_p=0.1, top_k=1)] * 2, keys(2)))
    assert ids.tolist() == [0, 2]
    np.testing.assert_allclose(np.exp(logprobs), [0.5, 0.8], rtol=1e-6)


def test_what_is_left_is_renormalised() -> None:
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]] * 400))
    for sampling, shares in (
        (Sampling(1, top_k=2), {0: 0.625, 1: 0.375}),
        (Sampling(1, top_p=0.6), {0: 0.625, 1: 0.375}),
        (Sampling(1, top_p=0.5), {0: 1.0}),  # the smallest set that holds half of the mass is the first id
        (Sampling(1, top_k=3, top_p=0.6), {0: 0.625, 1: 0.375}),  # 0.5/0.95 < 0.6 <= 0.8/0.95
        (Sampling(1, temperature=0.5), {0: 0.25, 1: 0.09, 2: 0.0225, 3: 0.0025}),
    ):
        ids, logprobs = _draw(logits, how([sampling] * 400, keys(400)))
        total = sum(shares.values())
        for token, share in shares.items():
            drawn = np.asarray(ids) == token
            assert abs(drawn.mean() - share / total) < 4 * np.sqrt(share / total * (1 - share / total) / 400) + 1e-9
            np.testing.assert_allclose(np.exp(np.asarray(logprobs)[drawn]), share / total, rtol=1e-5)
        assert set(ids.tolist()) <= set(shares)


@pytest.mark.parametrize("index", [0, 5])
def test_mixed_rows_agree_with_numpy(index: int) -> None:
    rng = np.random.default_rng(0)
    samplings = [
        Sampling(1, temperature=t, top_p=p, top_k=k)
        for t in (0.0, 0.3, 1.0, 2.0)
        for p in (0.2, 0.9, 1.0)
        for k in (0, 1, 7, 99)
    ]
    logits = rng.normal(size=(len(samplings), oracle.SIZES.vocab)).astype(np.float32) * 3
    ids, logprobs = _draw(jnp.asarray(logits), how(samplings, keys(len(samplings)), index))
    for row, (sampling, key) in enumerate(zip(samplings, keys(len(samplings)), strict=True)):
        left = oracle.kept(logits[row].astype(np.float64), sampling)
        assert ids[row] == oracle.drawn(left, sampling, key, index), sampling
        assert logprobs[row] == pytest.approx(left[ids[row]] - np.log(np.exp(left).sum()), abs=1e-4)


@pytest.mark.parametrize("vocab", [2, 33, 1000, 49_152])
def test_every_id_is_drawn_as_often_as_it_should_be(vocab: int) -> None:
    """Whatever the width of the blocks, and the holes between ids that have any mass."""
    rng = np.random.default_rng(vocab)
    shares = np.zeros(vocab)
    places = rng.choice(vocab, min(vocab, 5), replace=False)
    shares[places] = rng.dirichlet(np.ones(len(places)))
    shares[[0, -1]] += [0.1, 0.2]  # the ends are where rounding shows
    shares /= shares.sum()
    with np.errstate(divide="ignore"):
        logits = jnp.asarray(np.tile(np.log(shares), (4000, 1)), jnp.float32)
    ids, logprobs = _draw(logits, how([Sampling(1)] * 4000, keys(4000)))
    seen = np.bincount(np.asarray(ids), minlength=vocab) / 4000
    assert seen[shares == 0].sum() == 0
    np.testing.assert_allclose(seen[shares > 0], shares[shares > 0], atol=4 * 0.5 / np.sqrt(4000))
    np.testing.assert_allclose(np.exp(logprobs), shares[np.asarray(ids)], rtol=1e-5)


def test_a_row_does_not_depend_on_the_others() -> None:
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(size=(6, 33)), jnp.float32)
    plain, cut = [Sampling(1)] * 6, [Sampling(1)] * 3 + [Sampling(1, top_p=0.5, top_k=3)] * 3
    for one, other in zip(_draw(logits, how(plain, keys(6))), _draw(logits, how(cut, keys(6))), strict=True):
        np.testing.assert_array_equal(one[:3], other[:3])


def test_keys_differ_in_every_field_and_stay_as_they_are() -> None:
    base = RequestKey(1, "q1", 0, 0)
    others = [
        RequestKey(2, "q1", 0, 0), RequestKey(1, "q2", 0, 0), RequestKey(1, "q1", 1, 0), RequestKey(1, "q1", 0, 1),
        RequestKey(1, "q1", 0, 0, "read"),
    ]  # fmt: skip
    assert len({tuple(key_data(key).tolist()) for key in (base, *others)}) == 6
    assert key_data(base).tolist() == [4179482213, 1173237791]  # a run that is resumed next year draws the same
