"""The decoder computes what transformers computes: on tiny random models of every family, and on SmolLM2.

`make_goldens.py` made the files; nothing here needs torch, except the test that lets transformers read what we wrote.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dr_jax.model import gguf, hf, load
from dr_jax.model.attention import segment_attention
from dr_jax.model.decoder import Weights, head, hidden_states
from dr_jax.model.logprobs import token_logprobs
from dr_jax.model.sizes import NAMED, Sizes
from dr_jax.tokens.tokenizer import Tokenizer

GOLDENS = Path(__file__).parent / "goldens"
MODELS = sorted(path.name for path in GOLDENS.iterdir() if path.is_dir())
NEAR = 1e-4  # in log-probability; 1e-3 is promised


def logprobs(weights: Weights, sizes: Sizes, ids: np.ndarray) -> jax.Array:
    ids_BT = jnp.asarray(ids)
    positions_BT = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    hidden_BTD, _ = hidden_states(weights, sizes, ids_BT, positions_BT, segment_attention(jnp.ones_like(ids_BT), block=32))
    return jax.nn.log_softmax(hidden_BTD @ head(weights, sizes), axis=-1)


@pytest.mark.parametrize("name", MODELS)
def test_log_probabilities_are_those_of_transformers(name: str) -> None:
    sizes, weights = hf.read(GOLDENS / name)
    expected = np.load(GOLDENS / name / "expected.npz")
    found = logprobs(weights, sizes, expected["ids"])[:, ::5]
    assert np.abs(found - expected["logprobs"]).max() < NEAR


def test_the_goldens_cover_every_family_and_kind_of_rope() -> None:
    sizes = [hf.read(GOLDENS / name)[0] for name in MODELS]
    assert {size.rope.kind for size in sizes} == {"default", "linear", "llama3", "yarn"}
    assert {(size.qk_norm, size.qkv_bias) for size in sizes} == {(False, False), (True, False), (False, True)}
    assert {size.tied for size in sizes} == {False, True}


@pytest.mark.slow
def test_smollm2_from_its_gguf_file() -> None:
    pytest.importorskip("gguf", reason="needs the extra smollm2")
    expected = np.load(GOLDENS / "smollm2.npz")
    sizes, weights = load.load("smollm2")
    assert sizes == NAMED["smollm2-135m"]
    tokenizer = Tokenizer.load(load.tokenizer_source("smollm2"))
    for number, prompt in enumerate(expected["prompts"]):
        ids = expected[f"ids_{number}"]
        assert tokenizer.markup(str(prompt)) == ids.tolist()
        found = np.asarray(logprobs(weights, sizes, ids[None]))[0]
        chosen = np.take_along_axis(found[:-1], ids[1:, None], axis=1)[:, 0]
        top = np.take_along_axis(found, expected[f"top_ids_{number}"], axis=1)
        worst = max(np.abs(chosen - expected[f"chosen_{number}"]).max(), np.abs(top - expected[f"top_{number}"]).max())
        print(f"prompt {number}: {len(ids)} ids, max |Δ log-probability| {worst:.1e}")
        assert worst < 1e-3


@pytest.mark.slow
def test_smollm2_through_the_chunked_path_is_the_same() -> None:
    pytest.importorskip("gguf", reason="needs the extra smollm2")
    expected = np.load(GOLDENS / "smollm2.npz")
    sizes, weights = gguf.read_gguf(gguf.smollm2_path())
    ids_BT = jnp.asarray(expected["ids_1"])[None]
    positions_BT = jnp.arange(ids_BT.shape[1], dtype=jnp.int32)[None]
    hidden_BTD, _ = hidden_states(weights, sizes, ids_BT, positions_BT, segment_attention(jnp.ones_like(ids_BT)))
    found, _ = token_logprobs(hidden_BTD[:, :-1], head(weights, sizes), ids_BT[:, 1:], chunk=8)
    assert np.abs(np.asarray(found)[0] - expected["chosen_1"]).max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_what_we_wrote(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch, which dr_jax does not: see make_goldens.py")
    from transformers import AutoModelForCausalLM

    sizes, weights = hf.read(GOLDENS / name)
    hf.write(tmp_path / "model", sizes, weights, max_shard_bytes=20_000)
    expected = np.load(GOLDENS / name / "expected.npz")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").float().eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(expected["ids"]).long()).logits
    worst = np.abs(torch.log_softmax(logits, dim=-1).numpy()[:, ::5] - expected["logprobs"]).max()
    print(f"{name}: max |Δ log-probability| {worst:.1e}")
    assert worst < 1e-5
