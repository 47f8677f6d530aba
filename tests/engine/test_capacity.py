"""Pools that do not fit are refused before they are made, with what would fit."""

import dataclasses
from dataclasses import dataclass

import jax
import pytest

from dr_jax.base.errors import CapacityError
from dr_jax.engine.capacity import refuse_too_large
from dr_jax.engine.engine import Engine
from dr_jax.engine.settings import EngineSettings, memory_bytes
from dr_jax.model.decoder import describe
from dr_jax.model.sizes import Sizes
from dr_jax.sharding.mesh import MeshSettings, make_mesh
from dr_jax.sharding.place import place_weights
from tests.engine.oracle import SIZES as TINY
from tests.engine.oracle import weights

SIZES = Sizes(vocab=10, width=4, layers=2, heads=8, kv_heads=8, head_dim=16, ff=4)
# A token takes 2 x 2 x 8 x 16 x 2 bytes = 1 KiB, a page of 16 takes 16 KiB, a slot of 64 pages 1 MiB.
SETTINGS = EngineSettings(slots=32, page_size=16, max_context=1024, dtype="bfloat16")
MIB = 2**20


@dataclass(frozen=True)
class Chip:
    """A device that tells of its memory, or not."""

    limit: int
    used: int

    def memory_stats(self) -> dict[str, int] | None:
        return {"bytes_limit": self.limit, "bytes_in_use": self.used} if self.limit else None


def test_what_fits_is_taken() -> None:
    assert memory_bytes(SETTINGS, SIZES) == 32 * MIB + 16 * 1024
    refuse_too_large(SETTINGS, SIZES, [Chip(100 * MIB, 60 * MIB)], 1)  # 36 MiB, a tenth being left
    refuse_too_large(SETTINGS, SIZES, [Chip(100 * MIB, 80 * MIB)], 2)
    refuse_too_large(SETTINGS, SIZES, [Chip(0, 0)], 1)
    refuse_too_large(SETTINGS, SIZES, jax.devices()[:1], 1)  # a CPU does not tell


def test_the_error_says_how_many_slots_fit() -> None:
    chips = [Chip(100 * MIB, 60 * MIB), Chip(100 * MIB, 80 * MIB)]
    with pytest.raises(CapacityError) as error:
        refuse_too_large(SETTINGS, SIZES, chips, 1)
    assert str(error.value) == (
        "engine.slots = 32 of engine.max_context = 1024 tokens take 0.03 GiB of each device for keys and values, and 0.02 GiB "
        "are free on the fullest device, a tenth being left for computing. Needed: at most 17 slots of this context. "
        "Fix: engine.slots=17 or a smaller engine.max_context."
    )
    refuse_too_large(dataclasses.replace(SETTINGS, slots=17), SIZES, chips, 1)
    with pytest.raises(CapacityError, match="at most 17 slots"):
        refuse_too_large(dataclasses.replace(SETTINGS, slots=18), SIZES, chips, 1)


def test_a_limit_of_ones_own_and_pages_of_ones_own() -> None:
    limit = dataclasses.replace(SETTINGS, memory_gib=4.5 / 1024, dtype="float32")  # 2.25 slots of twice the size
    with pytest.raises(CapacityError, match=r"engine.memory_gib allows.*at most 2 slots.*or engine.dtype=bfloat16"):
        refuse_too_large(limit, SIZES, [Chip(0, 0)], 1)
    with pytest.raises(CapacityError, match=r"engine.pages = 300 take.*at most 288 pages. Fix: engine.pages=288"):
        refuse_too_large(dataclasses.replace(SETTINGS, memory_gib=4.5 / 1024, pages=300), SIZES, [], 1)
    with pytest.raises(CapacityError, match=r"not one slot fits. Fix: a smaller"):
        refuse_too_large(dataclasses.replace(SETTINGS, memory_gib=0.5 / 1024), SIZES, [], 1)
    with pytest.raises(ValueError, match="memory_gib"):
        EngineSettings(memory_gib=-1.0)


def test_an_engine_is_refused_with_what_one_device_holds_of_it() -> None:
    settings = EngineSettings(slots=4, page_size=4, max_context=64, prefill_rows=(2,))
    mesh = make_mesh(MeshSettings(data=1, fsdp=1, tensor=TINY.kv_heads), jax.devices()[: TINY.kv_heads])
    placed = place_weights(weights(0), describe(TINY), mesh)
    whole = memory_bytes(settings, TINY) / 2**30
    for given, share in ((weights(0), 1), (placed, TINY.kv_heads)):
        with pytest.raises(CapacityError, match="at most 3 slots"):
            Engine(given, TINY, dataclasses.replace(settings, memory_gib=0.95 * whole / share))
    Engine(placed, TINY, dataclasses.replace(settings, memory_gib=1.01 * whole / TINY.kv_heads))
