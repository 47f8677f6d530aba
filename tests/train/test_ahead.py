"""Programs that are planned from shapes alone, for the devices that tests have; and for TPUs where libtpu is installed."""

import dataclasses

import jax
import pytest

from dr_jax.engine.settings import EngineSettings, memory_bytes
from dr_jax.learn.losses import LossSettings
from dr_jax.learn.optimizer import OptimizerSettings
from dr_jax.model.flops import causal_pairs, update_flops
from dr_jax.model.sizes import Sizes, parameter_count
from dr_jax.sharding.place import bytes_of
from dr_jax.train.ahead import Failed, Found, analysed, engine_programs, mesh_of, update_programs
from dr_jax.train.chips import topology

SIZES = Sizes(vocab=32, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, ff=24)
ENGINE = EngineSettings(slots=2, page_size=8, max_context=32, tokens_per_call=2, prefill_rows=(2,), prefill_width=8)
WEIGHTS = 4 * parameter_count(SIZES)


def test_an_update_holds_weights_and_what_the_optimizer_keeps_on_their_devices() -> None:
    mesh = mesh_of(jax.devices()[:2])
    add, apply = update_programs(
        SIZES, mesh, rows=2, length=16, loss=LossSettings(kl="none"), optimizer=OptimizerSettings(), dtype="float32"
    )
    assert add.flops == update_flops(SIZES, 2 * 16, 2 * causal_pairs(16))
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(apply.arguments))
    assert whole == pytest.approx(4 * WEIGHTS, abs=64)  # weights, gradient, two moments; and some counters
    assert bytes_of(apply.arguments) < 0.6 * whole
    found = analysed(apply)
    assert isinstance(found, Found)
    assert found.arguments == pytest.approx(bytes_of(apply.arguments), abs=64)


def test_an_engine_holds_weights_and_pools() -> None:
    prefill, decode = engine_programs(SIZES, mesh_of(jax.devices()[:2], tensor=2), ENGINE, dtype="float32")
    for planned in (prefill, decode):
        _, pools, *_ = planned.arguments
        assert 2 * bytes_of(pools) == memory_bytes(ENGINE, SIZES)
    found = analysed(prefill)
    assert isinstance(found, Found)
    assert found.arguments == pytest.approx(bytes_of(prefill.arguments), rel=0.01)
    assert (len(found.counts.kernels), found.peak > found.arguments) == (0, True)


def test_prefill_reads_and_writes_pools_where_they_are() -> None:
    settings = dataclasses.replace(ENGINE, pages=2000)
    prefill, _ = engine_programs(SIZES, mesh_of(jax.devices()[:1]), settings, dtype="float32")
    found = analysed(prefill)
    assert isinstance(found, Found)
    assert found.temporaries < bytes_of(prefill.arguments[1]) / 8


def test_pages_go_to_host_memory_and_back_without_a_copy_of_the_pools() -> None:
    settings = dataclasses.replace(ENGINE, pages=400, host_pages=9)
    *_, park, fetch = engine_programs(SIZES, mesh_of(jax.devices()[:2], tensor=2), settings, dtype="float32")
    pages = memory_bytes(settings, SIZES) * 16 / 400 / 2  # sixteen of them, half of their heads
    parked, fetched = analysed(park), analysed(fetch)
    assert isinstance(parked, Found)
    assert isinstance(fetched, Found)
    assert (parked.results, fetched.results) == (pytest.approx(pages, abs=64), pytest.approx(0, abs=64))
    assert parked.temporaries + fetched.temporaries < 4 * pages
    assert parked.beside == bytes_of(engine_programs(SIZES, mesh_of(jax.devices()[:2], tensor=2), ENGINE)[0].arguments[0]) * 2


@pytest.mark.slow
@pytest.mark.parametrize(("chips", "kv_heads"), [(1, 2), (2, 4)])
def test_a_tpu_reads_and_writes_pools_where_they_are(chips: int, kv_heads: int) -> None:
    pytest.importorskip("libtpu", reason="needs the extra tpu-aot")
    sizes = dataclasses.replace(SIZES, head_dim=128, heads=8, kv_heads=kv_heads)
    settings = EngineSettings(
        slots=64, page_size=64, max_context=2048, tokens_per_call=2, prefill_rows=(2,), prefill_width=64, dtype="bfloat16"
    )
    for planned in engine_programs(sizes, mesh_of(topology("v5e:2x2")[:chips], tensor=chips, fsdp=1), settings):
        found = analysed(planned)
        assert not isinstance(found, Failed), found
        assert found.temporaries < bytes_of(planned.arguments[1]) / 8
    assert len(found.counts.kernels) == 1
