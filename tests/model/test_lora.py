import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from dr_jax.model import lora
from dr_jax.model.attention import segment_attention
from dr_jax.model.decoder import Weights, head, hidden_states
from dr_jax.model.lora import LoraSettings
from dr_jax.model.sizes import Sizes
from dr_jax.sharding.mesh import MeshSettings, make_mesh

SOME = LoraSettings(rank=2, alpha=6.0)


@pytest.fixture(scope="module")
def adapters(small: tuple[Sizes, Weights]) -> Weights:
    """Adapters that were trained: none of their halves is zero."""
    rng = np.random.default_rng(1)
    described = lora.describe(small[0], SOME)
    return jax.device_put({name: np.float32(0.3 * rng.normal(size=spec.shape)) for name, spec in described.items()})


@partial(jax.jit, static_argnames="sizes")
def logits(weights: Weights, sizes: Sizes) -> jax.Array:
    ids_BT = jnp.arange(24, dtype=jnp.int32).reshape(2, 12) * 7 % 64
    positions_BT = jnp.broadcast_to(jnp.arange(12, dtype=jnp.int32), (2, 12))
    with jax.default_matmul_precision("highest"):
        hidden_BTD, _ = hidden_states(weights, sizes, ids_BT, positions_BT, segment_attention(jnp.ones_like(ids_BT)))
        return jax.nn.log_softmax(hidden_BTD @ head(weights, sizes))


def test_shapes_are_those_of_the_two_sides_of_a_matrix(small: tuple[Sizes, Weights]) -> None:
    described = lora.describe(small[0], LoraSettings(rank=2, targets=("query", "out", "down")))
    assert {name: (spec.shape, spec.axes) for name, spec in described.items()} == {
        "layers.query.lora_a": ((3, 16, 2), ("layer", "width", "rank")),
        "layers.query.lora_b": ((3, 2, 4, 8), ("layer", "rank", "heads", "channels")),
        "layers.out.lora_a": ((3, 4, 8, 2), ("layer", "heads", "channels", "rank")),
        "layers.out.lora_b": ((3, 2, 16), ("layer", "rank", "width")),
        "layers.down.lora_a": ((3, 24, 2), ("layer", "ff", "rank")),
        "layers.down.lora_b": ((3, 2, 16), ("layer", "rank", "width")),
    }


def test_fresh_adapters_change_nothing(small: tuple[Sizes, Weights]) -> None:
    sizes, weights = small
    mesh = make_mesh(MeshSettings(2, 2, 2))
    fresh = lora.fresh(sizes, SOME, 0, mesh=mesh)
    assert fresh["layers.gate.lora_a"].sharding.shard_shape((3, 16, 2)) == (3, 8, 2)
    assert all(np.any(fresh[name] != 0) == name.endswith("lora_a") for name in fresh)
    wide = lora.fresh(sizes, LoraSettings(rank=512, targets=("out",)), 0, mesh=mesh)["layers.out.lora_a"]
    assert float(jnp.std(wide)) == pytest.approx(32**-0.5, rel=0.02)
    fresh = jax.device_get(fresh)
    np.testing.assert_array_equal(logits(weights | lora.scaled(fresh, SOME), sizes), logits(weights, sizes))
    for name, weight in lora.merged(weights, fresh, SOME).items():
        np.testing.assert_array_equal(weight, weights[name])


def test_merged_weights_compute_what_adapters_do(small: tuple[Sizes, Weights], adapters: Weights) -> None:
    sizes, weights = small
    beside, without = logits(weights | lora.scaled(adapters, SOME), sizes), logits(weights, sizes)
    merged = lora.merged(weights, adapters, SOME)
    assert np.abs(logits(merged, sizes) - beside).max() < 1e-5
    assert np.abs(without - beside).max() > 0.1
    assert merged["embed"] is weights["embed"]
    expected = weights["layers.up"][1] + 3.0 * (adapters["layers.up.lora_a"][1] @ adapters["layers.up.lora_b"][1])
    np.testing.assert_allclose(merged["layers.up"][1], expected, atol=1e-5)


def test_every_target_counts(small: tuple[Sizes, Weights], adapters: Weights) -> None:
    sizes, weights = small
    without = logits(weights, sizes)
    for target in SOME.targets:
        one = {name: weight if f".{target}." in name else weight * 0 for name, weight in adapters.items()}
        assert np.abs(logits(weights | lora.scaled(one, SOME), sizes) - without).max() > 1e-3, target


def test_what_peft_reads(small: tuple[Sizes, Weights], adapters: Weights, tmp_path: Path) -> None:
    lora.write_adapter(tmp_path, small[0], SOME, adapters, base="a/model")
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (told["r"], told["lora_alpha"], told["base_model_name_or_path"]) == (2, 6.0, "a/model")
    assert told["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    written = load_file(tmp_path / "adapter_model.safetensors")
    assert len(written) == 3 * 14
    prefix = "base_model.model.model.layers.2"
    for ours, theirs in (("query", "self_attn.q_proj"), ("out", "self_attn.o_proj"), ("down", "mlp.down_proj")):
        a, b = (np.asarray(adapters[f"layers.{ours}.lora_{half}"][2]) for half in "ab")
        np.testing.assert_array_equal(written[f"{prefix}.{theirs}.lora_A.weight"], a.reshape(-1, 2).T)
        np.testing.assert_array_equal(written[f"{prefix}.{theirs}.lora_B.weight"], b.reshape(2, -1).T)


@pytest.mark.slow
def test_peft_computes_the_same(small: tuple[Sizes, Weights], adapters: Weights, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch, which dr_jax does not: see make_goldens.py")
    peft = pytest.importorskip("peft", reason="needs peft")
    from transformers import AutoModelForCausalLM

    from dr_jax.model import hf

    sizes, weights = small
    hf.write(tmp_path / "base", sizes, weights)
    lora.write_adapter(tmp_path / "adapter", sizes, SOME, adapters, base=str(tmp_path / "base"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base").float()
    model = peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter")).eval()
    ids = torch.arange(24).reshape(2, 12) * 7 % 64
    with torch.no_grad():
        theirs = torch.log_softmax(model(ids).logits, dim=-1).numpy()
    worst = np.abs(theirs - logits(lora.merged(weights, adapters, SOME), sizes)).max()
    print(f"max |Δ log-probability| {worst:.1e}")
    assert worst < 1e-4


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"rank": -1}, "rank = -1"), ({"rank": 2, "alpha": 0.0}, "alpha = 0"), ({"rank": 2, "targets": ()}, "at least one")],
)
def test_settings_that_make_no_sense(wrong: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LoraSettings(**wrong)
