"""Small models that several tests share."""

import jax
import numpy as np
import pytest

from dr_jax.model.decoder import Weights, describe
from dr_jax.model.sizes import Sizes

SIZES = Sizes(vocab=64, width=16, layers=3, heads=4, kv_heads=2, head_dim=8, ff=24, qk_norm=True, tied=False, max_context=64)


@pytest.fixture(scope="session")
def small() -> tuple[Sizes, Weights]:
    rng = np.random.default_rng(0)
    drawn = {
        name: np.float32(
            spec.shape[1] ** -0.5 * rng.normal(size=spec.shape) if len(spec.shape) > 2 else 1 + rng.random(spec.shape)
        )
        for name, spec in describe(SIZES).items()
    }
    return SIZES, jax.device_put(drawn)
