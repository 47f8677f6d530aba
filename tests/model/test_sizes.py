import dataclasses

import pytest

from dr_jax.base.errors import CheckpointError
from dr_jax.model.sizes import NAMED, Rope, Sizes, from_hf_config, parameter_count, to_hf_config

QWEN2 = {
    "model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16,
    "num_key_value_heads": 2, "intermediate_size": 11_008, "rope_theta": 1_000_000.0, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True, "max_position_embeddings": 32_768, "sliding_window": 32_768, "use_sliding_window": False,
    "hidden_act": "silu",
}  # fmt: skip
LLAMA = QWEN2 | {"model_type": "llama", "sliding_window": None}


def test_published_parameter_counts() -> None:
    assert parameter_count(NAMED["smollm2-135m"]) == 134_515_008
    assert parameter_count(NAMED["qwen2.5-3b"]) == 3_085_938_688
    assert parameter_count(NAMED["qwen2.5-7b"]) == 7_615_616_512
    assert parameter_count(NAMED["qwen3-0.6b"]) == 596_049_920
    assert parameter_count(NAMED["llama-3.2-1b"]) == 1_235_814_400


def test_the_config_of_qwen_2_5_3b_as_it_is_published() -> None:
    assert from_hf_config(QWEN2) == NAMED["qwen2.5-3b"]


@pytest.mark.parametrize("name", NAMED)
def test_a_config_comes_back_as_it_was(name: str) -> None:
    assert from_hf_config(to_hf_config(NAMED[name])) == NAMED[name]


def test_rope_in_the_old_spelling() -> None:
    scaling = {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    old = LLAMA | {"rope_theta": 5e5, "rope_scaling": scaling}
    assert from_hf_config(old).rope == Rope(5e5, "llama3", factor=32.0, original_context=8192)
    linear = QWEN2 | {"rope_scaling": {"type": "linear", "factor": 2.0}}
    assert from_hf_config(linear).rope == Rope(1e6, "linear", factor=2.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "gemma2"}, "'gemma2' model.*Needed: model_type llama"),
        ({"model_type": None}, "None model"),
        ({"use_sliding_window": True}, "sliding window of 32768"),
        ({"model_type": "llama", "attention_bias": True}, "attention biases"),
        ({"model_type": "llama", "mlp_bias": True}, "feed-forward biases"),
        ({"hidden_act": "gelu"}, "'gelu'.*Needed: silu"),
        ({"partial_rotary_factor": 0.5}, "a share of 0.5"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'.*Needed: one of default, linear"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 0.7}}, "'yarn' with mscale"),
        ({"num_key_value_heads": 3}, "heads = 16 is not a multiple of kv_heads = 3"),
    ],
)
def test_what_the_decoder_does_not_have_is_refused_by_name(change: dict, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        from_hf_config((LLAMA if "llama" in change.values() else QWEN2) | change)


def test_a_key_that_is_missing_is_named() -> None:
    with pytest.raises(CheckpointError, match="qwen2 model has no 'hidden_size'"):
        from_hf_config({name: value for name, value in QWEN2.items() if name != "hidden_size"})


def test_impossible_sizes() -> None:
    with pytest.raises(ValueError, match="head_dim = 5"):
        Sizes(8, 8, 1, 2, 1, 5, 8)
    with pytest.raises(ValueError, match="layers = 0"):
        dataclasses.replace(NAMED["tiny"], layers=0)
    with pytest.raises(ValueError, match="original_context"):
        Rope(kind="yarn", factor=2.0)
    with pytest.raises(CheckpointError, match="at most one of the two"):
        to_hf_config(dataclasses.replace(NAMED["tiny"], qkv_bias=True))
