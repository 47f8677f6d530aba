"""Small models that several tests share."""

import jax
import pytest

from dr_jax.model.decoder import Weights, initial
from dr_jax.model.sizes import Sizes

SIZES = Sizes(vocab=64, width=16, layers=3, heads=4, kv_heads=2, head_dim=8, ff=24, qk_norm=True, tied=False, max_context=64)


@pytest.fixture(scope="session")
def small() -> tuple[Sizes, Weights]:
    return SIZES, initial(SIZES, jax.random.key(0))
