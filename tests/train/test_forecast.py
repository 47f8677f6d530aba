"""What is said of programs that were compiled for chips elsewhere: memory, times, and what to change."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest
from rich.console import Console

from dr_jax.base.config import read
from dr_jax.base.errors import CheckpointError, ConfigError
from dr_jax.cli import plan
from dr_jax.model.sizes import NAMED, to_hf_config
from dr_jax.sharding.mesh import MeshSettings, make_mesh
from dr_jax.train import forecast as forecasts
from dr_jax.train.ahead import Failed, Found
from dr_jax.train.chips import CHIPS, topology
from dr_jax.train.forecast import GIB, Forecast, advice, sizes_of
from dr_jax.train.hlo import Collective, Counts, Kernel
from dr_jax.train.placement import on_each_its_own
from dr_jax.train.roofline import as_tree, kernel_flops, least_time, speeds
from dr_jax.train.settings import Settings

CONFIG = Path("configs/deepresearcher_7b.toml")
SETTINGS = read(Settings, CONFIG, ["engine.slots=4", "engine.pages=101", "engine.page_size=16", "engine.max_context=160",
                                   "batch.rows=8", "batch.lengths=[1000]", "engine.tokens_per_call=2"])  # fmt: skip
PARTS = {"weights": GIB, "optimizer": 2 * GIB, "gradient": GIB, "reference": GIB, "engine_weights": GIB, "cache": 2 * GIB}


def found(name: str, temporaries: float, counts: Counts | None = None, flops: float = 0.0) -> Found:
    return Found(name, 4 * GIB, 0, int(temporaries * GIB), 4 * GIB, 0, flops, 1.0, 1.0, counts or Counts(flops=1e12), 1.0)


def made(*programs: Found | Failed, chip: str = "v5e", **other: object) -> Forecast:
    learning = {"data": 1, "fsdp": 4, "tensor": 2, "sequence": 1}
    sizes, sampling = NAMED["qwen2.5-7b"], dict(learning, fsdp=1)
    whole = Forecast(
        "a slice", CHIPS[chip], "qwen2.5-7b", sizes, SETTINGS, 8, 2, learning, sampling, PARTS, programs, 1.0
    )  # fmt: skip
    return dataclasses.replace(whole, **other)


def test_a_program_takes_what_its_slowest_part_takes() -> None:
    # v5p: 459 Tflop/s, 2,765 GB/s, 200 GB/s around a ring.
    counts = Counts(flops=4.59e12, bytes=2.765e10, collectives={"all-gather": Collective(1, 1e9)})
    time = least_time(made(chip="v5p"), found("gradient of 8 x 1000", 1, counts, flops=2.295e12))
    assert dataclasses.astuple(time) == pytest.approx((0.010, 0.010, 0.005, 0.005))
    assert (time.apart, time.together) == pytest.approx((0.015, 0.010))


def test_attention_is_counted_by_its_kernels() -> None:
    forward, keys = (
        Kernel("splash_mha_fwd_x", ((7, 1000, 128), (512, 128)), 28),
        Kernel("splash_mha_dkv_x", ((1, 1000, 128),), 28),
    )
    # Two and four products of 7 heads' queries with half of the keys and half a block; keys' gradients are those of one head.
    expected = 28 * (2 + 4) * 2 * 7 * 1000 * 128 * (1000 + 512) / 2
    assert kernel_flops(found("gradient", 1, Counts(kernels=[forward, keys])), 1000) == expected
    assert kernel_flops(found("decode", 1, Counts(kernels=[Kernel("paged", ((7, 1, 128),), 28)])), 1000) == 0


def test_speeds_are_those_of_all_chips() -> None:
    half = Counts(flops=197e12 / 2)  # half a second
    told = speeds(
        made(found("reference", 1, half, flops=197e12 / 8), found("gradient", 1, half, flops=197e12 / 4), found("decode", 1))
    )
    assert told["update"]["tokens_per_s"] == {"apart": 8000, "together": 8000}
    assert told["update"]["utilisation"]["apart"] == pytest.approx(3 / 8)
    assert told["update"]["gradient_utilisation"]["apart"] == pytest.approx(1 / 2)
    # Two hosts draw 8 tokens each, for which the cache is read twice.
    assert told["decode"]["tokens_per_s"]["apart"] == pytest.approx(2 * 8 / (2 * 2 * GIB / 819e9))


def test_what_fits_needs_no_change_and_what_does_not_is_told_how_many_pages_would() -> None:
    fits = made(found("gradient", 7.5))
    assert (fits.fits, advice(fits), fits.peak) == (True, [], int(15.5 * GIB))
    # 15.52 of 16 GiB are usable: 1.48 too many, which are 75 of 101 pages of 2 GiB.
    large = made(found("gradient", 9.0))
    assert not large.fits
    told = (
        "1.48 GiB too much; engine.pages=26 fits: 400 tokens in pages, 100 for each of 4 slots; "
        "with engine.slots=2 too, each has 160 as now"
    )
    assert advice(large) == [told]
    assert as_tree(large)["change"] == advice(large)
    # What decodes may not even compile with so many pages; that the update has no room beside them says how many would.
    failed = made(found("gradient", 9.0), Failed("decode 4 x 2", "28.00G of 15.75G", 3.0))
    assert advice(failed) == ["decode 4 x 2 does not compile: 28.00G of 15.75G", told]
    # Fewer pages are no help to a decode that fails although the update has room, nor to an update that fails.
    roomy = made(found("gradient", 1.0), Failed("decode 4 x 2", "something else", 3.0))
    assert [line.partition(":")[0] for line in advice(roomy)] == ["decode 4 x 2 does not compile", "change"]
    both = made(found("reference", 9.0), Failed("gradient", "too large", 3.0), Failed("decode", "too large", 3.0))
    assert "pages" not in advice(both)[-1]


def test_what_fits_with_no_pages_at_all_is_told_what_else_there_is() -> None:
    said = advice(made(found("gradient", 12.0)))
    assert said[0] == "4.48 GiB too much even without pages of keys and values"
    assert said[1].startswith(
        "change: batch.rows=4; or mesh.tensor=4; or loss.kl=none, which needs no reference; or shorter rows"
    )
    failed = advice(made(Failed("gradient", "18.00G of 15.75G", 3.0)))
    assert failed[0] == "gradient does not compile: 18.00G of 15.75G"
    assert failed[1].startswith("change: ")


def test_heads_are_advised_to_be_split_inside_of_a_host_only() -> None:
    # 28 heads: 4 ways are more than 2, 7 and 14 divide no host. Two hosts of four chips have room for four, four of two do not.
    assert "mesh.tensor=4" in advice(made(found("gradient", 12.0)))[1]
    assert "mesh.tensor" not in advice(made(found("gradient", 12.0), processes=4))[1]


def test_sizes_of_a_published_model_are_known_without_its_weights(tmp_path: Path) -> None:
    told, sizes = sizes_of(SETTINGS)
    assert (told, sizes) == ("models/Qwen2.5-7B-Instruct is not here: the sizes of qwen2.5-7b", NAMED["qwen2.5-7b"])
    (tmp_path / "config.json").write_text(json.dumps(to_hf_config(NAMED["qwen2.5-32b"])), "utf-8")
    assert sizes_of(loading(str(tmp_path)))[1] == NAMED["qwen2.5-32b"]
    with pytest.raises(CheckpointError, match=r"'models/other' is not here.*Fix: add model.load=NAME"):
        sizes_of(loading("models/other"))


def loading(model: str) -> Settings:
    return dataclasses.replace(SETTINGS, model=dataclasses.replace(SETTINGS.model, load=model))


def test_what_is_not_compiled_ahead_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lora.rank is set.*Fix: add lora.rank=0"):
        forecasts._refuse_others(read(Settings, CONFIG, ["lora.rank=8"]))
    with pytest.raises(ConfigError, match=r"mesh.sequence is set.*Fix: add mesh.sequence=1"):
        forecasts._refuse_others(read(Settings, CONFIG, ["mesh.sequence=2"]))
    with pytest.raises(ConfigError, match=r"batch.rows = 3 cannot.*Fix: add batch.rows=4"):
        forecasts._refuse_rows(read(Settings, CONFIG, ["batch.rows=3"]), make_mesh(MeshSettings(1, 4, 1), jax.devices()[:4]))


def test_what_a_run_would_choose_is_planned() -> None:
    tiny = ["model.load=tiny", "model.dtype=float32", "engine.slots=4", "engine.pages=17", "engine.page_size=32"]
    short = ["batch.lengths=[512]", "engine.max_context=512", "episode.tokens=512"]
    open_ = read(Settings, CONFIG, ["remat=auto", "batch.rows=0", *tiny, *short])
    place, compiled = on_each_its_own(make_mesh(MeshSettings(), jax.devices()[:2])), list[str]()
    closed, gradient = forecasts._chosen(open_, NAMED["tiny"], place, 40 * 2**20, compiled.append)
    assert (closed.remat, closed.batch.rows) == ("products", 2)
    assert isinstance(gradient, Found)
    assert (gradient.name, gradient.peak < 0.9 * 40 * 2**20) == ("gradient of 2 x 512", True)
    tried = (("none", 2), ("products", 2), ("products", 4))
    assert compiled == [f"gradient of {rows} x 512 with remat={remat}, to choose" for remat, rows in tried]


def test_the_command_prints_every_part_on_a_screen_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    kernels = [Kernel("splash_mha_fwd_segmented_residuals", ((7, 8, 128),), 28)] * 2
    counts = Counts(collectives={"collective-permute": Collective(1200, 1e9)}, kernels=kernels)
    told = made(found("gradient", 7.5, counts), Failed("step", "too [large]", 1.0))
    plan._show(told, Console(width=80), ["nothing"])
    printed = capsys.readouterr().out
    for part in (
        "8 chips, 2 processes",
        "optimizer",
        "7.50 of its own, 15.50 in all",
        "splash_mha_fwd_segmented_residuals x 56",
        "collective-permute │ 1,200 │ 1.00",
        "step: too [large]",
        "does not fit",
    ):
        assert part in printed


@pytest.mark.slow
def test_a_small_run_is_planned_for_two_hosts() -> None:
    pytest.importorskip("libtpu", reason="needs the extra tpu-aot")
    small = read(Settings, CONFIG, [
        "model.load=qwen2.5-0.5b", "model.attention=splash", "mesh.tensor=2", "batch.rows=4", "batch.lengths=[512]",
        "loss.kl=none", "engine.slots=4", "engine.pages=17", "engine.page_size=64",
        "engine.max_context=512", "episode.tokens=512",
    ])  # fmt: skip
    told = forecasts.forecast(small, "v5e:2x4")
    assert (told.chips, told.processes, told.fits) == (8, 2, True)
    gradient = told.named("gradient")
    assert gradient is not None
    assert gradient.counts.flops == pytest.approx(told.products, rel=0.02)
    assert any(kernel.name.startswith("splash_mha_dkv") for kernel in gradient.counts.kernels)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:8x8", "v5p:2x2x4", "v6e:4x4"])
def test_tensor_lies_inside_of_a_host(name: str) -> None:
    pytest.importorskip("libtpu", reason="needs the extra tpu-aot")
    mesh = make_mesh(MeshSettings(tensor=4), topology(name))
    for own in mesh.devices.reshape(-1, 4):
        assert len({device.process_index for device in own}) == 1


@pytest.mark.slow
def test_heads_over_more_chips_than_a_host_has_are_refused() -> None:
    pytest.importorskip("libtpu", reason="needs the extra tpu-aot")
    mesh = make_mesh(MeshSettings(tensor=8), topology("v5p:4x4x4"))  # no axes of 4 x 4 x 4 multiply to 8
    assert dict(mesh.shape) == {"data": 1, "fsdp": 8, "tensor": 8, "sequence": 1}
    with pytest.raises(ConfigError, match=r"tensor 8 x sequence 1 does not fit 16 processes with 4 devices each.*divide 4"):
        on_each_its_own(mesh)
