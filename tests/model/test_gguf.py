from pathlib import Path

import numpy as np
import pytest

from dr_jax.base.errors import CheckpointError
from dr_jax.model import hf, layout, load
from dr_jax.model.gguf import read_gguf, write_tokenizer
from dr_jax.model.sizes import Sizes
from dr_jax.tokens.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf", reason="needs the extra smollm2")

GOLDENS = Path(__file__).parent / "goldens"
BYTES = [chr(33 + n) for n in range(91)]  # stand for printable bytes in byte-level vocabularies
TOKENS = ["<|end|>", "<|im_start|>", *BYTES, "Th", "Ġ", "ĠTh"]
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Order the rows of a query or key projection as llama.cpp's converter does."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def write(path: Path, sizes: Sizes, tensors: dict[str, np.ndarray], kind: str = "llama", tokenizer: str = "smollm") -> None:
    writer = gguf.GGUFWriter(path, kind)
    writer.add_context_length(sizes.max_context)
    writer.add_embedding_length(sizes.width)
    writer.add_block_count(sizes.layers)
    writer.add_feed_forward_length(sizes.ff)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_key_length(sizes.head_dim)
    writer.add_rope_freq_base(sizes.rope.theta)
    writer.add_layer_norm_rms_eps(sizes.norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(["T h", "Ġ Th"])
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for message in messages %}<|im_start|>{{ message['content'] }}<|end|>{% endfor %}")
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sizes, dict[str, np.ndarray]]:
    sizes, weights = hf.read(GOLDENS / "llama_untied")
    tensors = {}
    for ours, layer, theirs, _ in layout.each(sizes):
        tensor = layout.FORMS[ours].theirs(np.asarray(weights[ours] if layer is None else weights[ours][layer]))
        if ours in ("layers.query", "layers.key"):
            tensor = interleaved(tensor, sizes.heads if ours == "layers.query" else sizes.kv_heads)
        for one, other in NAMES.items():
            theirs = theirs.replace(one, other)
        tensors[theirs] = np.ascontiguousarray(tensor)
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    write(path, sizes, tensors)
    return path, sizes, tensors


def test_a_model_that_went_through_gguf_is_the_same(made: tuple[Path, Sizes, dict[str, np.ndarray]]) -> None:
    expected_sizes, expected = hf.read(GOLDENS / "llama_untied")
    for sizes, weights in (read_gguf(made[0]), load.load(made[0])):
        assert sizes == expected_sizes
        for name, weight in expected.items():
            np.testing.assert_array_equal(weights[name], weight)


def test_its_tokenizer_and_template(made: tuple[Path, Sizes, dict[str, np.ndarray]], tmp_path: Path) -> None:
    write_tokenizer(made[0], tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.markup("<|im_start|>Th Th1<|end|>") == [1, TOKENS.index("Th"), TOKENS.index("ĠTh"), TOKENS.index("1"), 0]
    assert tokenizer.stop_ids == (0,)
    assert tokenizer.decode([1, TOKENS.index("ĠTh")]) == "<|im_start|> Th"
    rendered = tokenizer.fast.apply_chat_template([{"role": "user", "content": "Th"}], tokenize=False)
    assert rendered == "<|im_start|>Th<|end|>"


def test_what_cannot_be_read(made: tuple[Path, Sizes, dict[str, np.ndarray]], tmp_path: Path) -> None:
    _, sizes, tensors = made
    (tmp_path / "noise.gguf").write_bytes(b"nothing of the kind" * 10)
    with pytest.raises(CheckpointError, match="cannot be read as GGUF"):
        read_gguf(tmp_path / "noise.gguf")
    changes = {
        "no output_norm.weight. Needed: output_norm.weight": {"output_norm.weight": None},
        r"blk.1.ffn_up.weight \[40, 23\]. Needed: blk.1.ffn_up.weight \[40, 24\]": {"blk.1.ffn_up.weight": np.zeros((40, 23))},
        "rope_freqs.weight. Needed: only": {"rope_freqs.weight": np.zeros(3)},
    }
    for number, (said, change) in enumerate(changes.items()):
        changed = {name: tensor for name, tensor in (tensors | change).items() if tensor is not None}
        write(tmp_path / f"{number}.gguf", sizes, {name: tensor.astype(np.float32) for name, tensor in changed.items()})
        with pytest.raises(CheckpointError, match=said):
            read_gguf(tmp_path / f"{number}.gguf")
    write(tmp_path / "other.gguf", sizes, tensors, kind="gemma", tokenizer="gemma")
    with pytest.raises(CheckpointError, match="architecture 'gemma'"):
        read_gguf(tmp_path / "other.gguf")
    with pytest.raises(CheckpointError, match="kind 'gpt2', 'gemma'"):
        write_tokenizer(tmp_path / "other.gguf", tmp_path)
