"""The numbers that make one decoder out of many: widths, heads, rope, and which options a family uses.

In:    a name (`tiny`, `qwen2.5-3b`), or a Hugging Face `config.json`
Out:   one frozen `Sizes`; `to_hf_config` turns it back into a `config.json` that transformers reads
Fails: CheckpointError that names the family or the option which the decoder does not have
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dr_jax.base.errors import CheckpointError

RopeKind = Literal["default", "linear", "llama3", "yarn"]


@dataclass(frozen=True, slots=True)
class Rope:
    """How positions turn into angles. Fields that a kind does not use keep their defaults.

    Args:
        theta: base of the geometric series of wavelengths.
        kind: `default` (RoFormer), `linear` (positions divided by `factor`), `llama3` or `yarn` (long waves only).
        factor: how much longer the context is than the one trained first.
        original_context: that first length (`llama3`, `yarn`).
        low_freq_factor: `llama3`: wavelengths above original_context / this are stretched by `factor`.
        high_freq_factor: `llama3`: wavelengths below original_context / this stay.
        beta_fast: `yarn`: waves that turn more often than this over the original context stay.
        beta_slow: `yarn`: waves that turn less often than this are stretched by `factor`.
        attention_factor: `yarn`: cosine and sine are multiplied by this; 0 means 0.1 ln(factor) + 1.
    """

    theta: float = 10_000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 0.0

    def __post_init__(self) -> None:
        if self.theta <= 1:
            raise ValueError(f"rope theta = {self.theta}; more than 1 is needed")
        if self.factor < 1:
            raise ValueError(f"rope factor = {self.factor}; at least 1 is needed")
        if self.kind in ("llama3", "yarn") and self.original_context < 1:
            raise ValueError(f"rope kind {self.kind} needs original_context, the length trained first")


@dataclass(frozen=True, slots=True)
class Sizes:
    """One decoder.

    Args:
        vocab: number of token ids.
        width: of the residual stream.
        layers: how many blocks.
        heads: query heads.
        kv_heads: key and value heads; divides `heads`.
        head_dim: channels of one head; even.
        ff: width of the gated feed-forward layer.
        rope: rotary positions.
        norm_eps: added to the mean square in every RMS norm.
        qk_norm: queries and keys are normalised per head (Qwen3).
        qkv_bias: query, key and value projections have a bias (Qwen2).
        tied: the head is the embedding, transposed.
        max_context: longest sequence that the weights were made for.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ff: int
    rope: Rope = field(default_factory=Rope)
    norm_eps: float = 1e-6
    qk_norm: bool = False
    qkv_bias: bool = False
    tied: bool = True
    max_context: int = 32_768

    def __post_init__(self) -> None:
        for name in ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "ff", "max_context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; at least 1 is needed")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads = {self.heads} is not a multiple of kv_heads = {self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim}; rope turns pairs of channels, an even number is needed")


_QWEN2: dict[str, Any] = {"rope": Rope(1_000_000.0), "qkv_bias": True}
_QWEN3: dict[str, Any] = {"rope": Rope(1_000_000.0), "qk_norm": True, "head_dim": 128, "max_context": 40_960}

NAMED: dict[str, Sizes] = {
    "tiny": Sizes(1024, 128, 4, 4, 2, 32, 384, qk_norm=True, max_context=8192),
    "smollm2-135m": Sizes(49_152, 576, 30, 9, 3, 64, 1536, rope=Rope(100_000.0), norm_eps=1e-5, max_context=8192),
    "qwen2.5-0.5b": Sizes(151_936, 896, 24, 14, 2, 64, 4864, **_QWEN2),
    "qwen2.5-1.5b": Sizes(151_936, 1536, 28, 12, 2, 128, 8960, **_QWEN2),
    "qwen2.5-3b": Sizes(151_936, 2048, 36, 16, 2, 128, 11_008, **_QWEN2),
    "qwen2.5-7b": Sizes(152_064, 3584, 28, 28, 4, 128, 18_944, tied=False, **_QWEN2),
    "qwen2.5-14b": Sizes(152_064, 5120, 48, 40, 8, 128, 13_824, tied=False, **_QWEN2),
    "qwen2.5-32b": Sizes(152_064, 5120, 64, 40, 8, 128, 27_648, tied=False, **_QWEN2),
    "qwen3-0.6b": Sizes(151_936, 1024, 28, 16, 8, ff=3072, **_QWEN3),
    "qwen3-1.7b": Sizes(151_936, 2048, 28, 16, 8, ff=6144, **_QWEN3),
    "qwen3-4b": Sizes(151_936, 2560, 36, 32, 8, ff=9728, **_QWEN3),
    "qwen3-8b": Sizes(151_936, 4096, 36, 32, 8, ff=12_288, tied=False, **_QWEN3),
    "llama-3.2-1b": Sizes(
        128_256, 2048, 16, 32, 8, 64, 8192,
        rope=Rope(500_000.0, "llama3", factor=32.0, original_context=8192),
        norm_eps=1e-5, max_context=131_072,
    ),
}  # fmt: skip


def parameter_count(sizes: Sizes) -> int:
    """Count the numbers in the weights, a tied head once."""
    s = sizes
    attention = 2 * s.width * s.head_dim * (s.heads + s.kv_heads)
    bias = s.head_dim * (s.heads + 2 * s.kv_heads) if s.qkv_bias else 0
    norms = 2 * s.width + (2 * s.head_dim if s.qk_norm else 0)
    return s.layers * (attention + bias + norms + 3 * s.width * s.ff) + s.vocab * s.width * (1 if s.tied else 2) + s.width


def from_hf_config(config: Mapping[str, Any]) -> Sizes:
    """Read the `config.json` of a Llama, Qwen2 or Qwen3 model.

    Raises:
        CheckpointError: another family, or an option that changes the mathematics and that the decoder does not have.
    """
    family = config.get("model_type")
    if family not in ("llama", "qwen2", "qwen3"):
        raise CheckpointError(
            f"This is a {family!r} model", needed="model_type llama (SmolLM2 too), qwen2 (Qwen2.5 too) or qwen3"
        )
    _refuse_options(config, family)
    heads = int(config["num_attention_heads"])
    try:
        return Sizes(
            vocab=int(config["vocab_size"]),
            width=int(config["hidden_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or (128 if family == "qwen3" else int(config["hidden_size"]) // heads)),
            ff=int(config["intermediate_size"]),
            rope=_rope(config),
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            qk_norm=family == "qwen3",
            qkv_bias=family == "qwen2",
            tied=bool(config.get("tie_word_embeddings", False)),
            max_context=int(config.get("max_position_embeddings", 2048)),
        )
    except KeyError as error:
        raise CheckpointError(f"config.json of a {family} model has no {error.args[0]!r}", needed="a complete one") from error
    except ValueError as error:
        raise CheckpointError(f"config.json describes an impossible model: {error}") from error


def to_hf_config(sizes: Sizes) -> dict[str, Any]:
    """Return the `config.json` of the family that has these options.

    Raises:
        CheckpointError: no family has both a bias and a q/k norm.
    """
    if sizes.qk_norm and sizes.qkv_bias:
        raise CheckpointError("These sizes have q/k norm and biases", needed="at most one of the two, as Qwen2 or Qwen3 have")
    family, name = (
        ("qwen3", "Qwen3ForCausalLM")
        if sizes.qk_norm
        else ("qwen2", "Qwen2ForCausalLM")
        if sizes.qkv_bias
        else ("llama", "LlamaForCausalLM")
    )
    rope: dict[str, Any] = {"rope_type": sizes.rope.kind, "rope_theta": sizes.rope.theta}
    rope |= {theirs: getattr(sizes.rope, ours) for ours, theirs in _ROPE_KEYS[sizes.rope.kind].items()}
    if not sizes.rope.attention_factor:
        rope.pop("attention_factor", None)
    older = {key: value for key, value in rope.items() if key != "rope_theta"} if sizes.rope.kind != "default" else None
    return {
        "architectures": [name],
        "model_type": family,
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "intermediate_size": sizes.ff,
        "rope_parameters": rope,  # transformers 5
        "rope_theta": sizes.rope.theta,  # transformers 4, as are the scaling's own keys
        "rope_scaling": older,
        "rms_norm_eps": sizes.norm_eps,
        "tie_word_embeddings": sizes.tied,
        "max_position_embeddings": sizes.max_context,
        "attention_bias": False,
        "hidden_act": "silu",
    }


_ROPE_KEYS: dict[RopeKind, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original_context": "original_max_position_embeddings",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
    },
    "yarn": {
        "factor": "factor",
        "original_context": "original_max_position_embeddings",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
    },
}


def _rope(config: Mapping[str, Any]) -> Rope:
    # transformers 5 writes one `rope_parameters`; older files have `rope_theta` and, where it is scaled, `rope_scaling`.
    told: dict[str, Any] = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = told.get("rope_type", told.get("type", "default"))
    if kind not in _ROPE_KEYS:
        raise CheckpointError(f"rope of kind {kind!r}", needed=f"one of {', '.join(_ROPE_KEYS)}")
    known = {*_ROPE_KEYS[kind].values(), "rope_type", "type", "rope_theta", "partial_rotary_factor"}
    strange = sorted(key for key, value in told.items() if key not in known and value not in (None, False))
    if strange and kind != "default":
        raise CheckpointError(f"rope of kind {kind!r} with {', '.join(strange)}", needed=f"only {', '.join(sorted(known))}")
    fields = {ours: told[theirs] for ours, theirs in _ROPE_KEYS[kind].items() if told.get(theirs) is not None}
    if kind == "yarn":
        fields.setdefault("original_context", config.get("max_position_embeddings", 0))
    return Rope(theta=float(told.get("rope_theta") or config.get("rope_theta") or 10_000.0), kind=kind, **fields)


def _refuse_options(config: Mapping[str, Any], family: str) -> None:
    if config.get("use_sliding_window") or (family == "llama" and config.get("sliding_window")):
        raise CheckpointError(
            f"This {family} model attends through a sliding window of {config.get('sliding_window')}",
            needed="full attention (use_sliding_window false)",
        )
    if family != "qwen2" and config.get("attention_bias"):
        raise CheckpointError(f"This {family} model has attention biases", needed="attention_bias false")
    if config.get("mlp_bias"):
        raise CheckpointError(f"This {family} model has feed-forward biases", needed="mlp_bias false")
    if config.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"Activation {config['hidden_act']!r}", needed="silu")
    partial = {**config, **(config.get("rope_parameters") or {})}.get("partial_rotary_factor")
    if partial not in (None, 1, 1.0):
        raise CheckpointError(
            f"This {family} model turns a share of {partial} of its channels", needed="partial_rotary_factor 1"
        )
    if config.get("quantization_config"):
        raise CheckpointError("This model's weights are quantized", needed="bfloat16, float16 or float32 weights")
