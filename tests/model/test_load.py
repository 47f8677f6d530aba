from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dr_jax.base.errors import CheckpointError
from dr_jax.model import hf, load
from dr_jax.model.attention import segment_attention
from dr_jax.model.decoder import Weights, describe, head, hidden_states
from dr_jax.model.sizes import NAMED, Sizes
from dr_jax.model.tensors import Place
from dr_jax.sharding.mesh import MeshSettings, make_mesh


def test_fresh_weights_do_not_depend_on_the_mesh() -> None:
    sizes, one = load.load("tiny", seed=3, vocab=320)
    assert sizes.vocab == 320
    _, eight = load.load("tiny", seed=3, vocab=320, mesh=make_mesh(MeshSettings(2, 2, 2)))
    for name, weight in one.items():
        np.testing.assert_array_equal(eight[name], weight)
    assert eight["layers.gate"].sharding.shard_shape(eight["layers.gate"].shape) == (
        sizes.layers,
        sizes.width // 2,
        sizes.ff // 2,
    )


def test_fresh_weights_start_with_even_odds() -> None:
    sizes, weights = load.load("tiny")
    assert sizes == NAMED["tiny"]
    assert {name: weight.shape for name, weight in weights.items()} == {n: spec.shape for n, spec in describe(sizes).items()}
    assert float(jnp.std(weights["layers.query"])) == pytest.approx(sizes.width**-0.5, rel=0.02)
    assert not np.allclose(weights["layers.query"][0], weights["layers.query"][1])
    ids_BT = jnp.arange(32, dtype=jnp.int32)[None]
    hidden_BTD, _ = jax.jit(lambda: hidden_states(weights, sizes, ids_BT, ids_BT, segment_attention(jnp.ones_like(ids_BT))))()
    logits_BTV = hidden_BTD @ head(weights, sizes)
    assert float(-jax.nn.log_softmax(logits_BTV)[0, :-1, 1:32].mean()) == pytest.approx(np.log(sizes.vocab), rel=0.05)


def test_a_directory(small: tuple[Sizes, Weights], tmp_path: Path) -> None:
    hf.write(tmp_path, *small)
    assert load.load(tmp_path)[0] == small[0]
    assert load.load(str(tmp_path))[0] == small[0]


def test_a_name_that_nothing_has() -> None:
    with pytest.raises(CheckpointError, match=r"no model 'smolm2'.*Needed: a directory.*did you mean smollm2"):
        load.load("smolm2")


def test_the_tokenizer_of_an_address_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = Place("memory://test_load/words")
    for words in (b"{}", b"[0]"):
        with place.writing("tokenizer.json") as out:
            out.write(words)
        found = load.tokenizer_source("memory://test_load/words")
        assert found.is_relative_to(tmp_path)
        assert (found / "tokenizer.json").read_bytes() == words
        assert load.tokenizer_source("tiny", "memory://test_load/words") == found
    with pytest.raises(CheckpointError, match=r"'memory://test_load/none' has no tokenizer.json"):
        load.tokenizer_source("memory://test_load/none")


def test_whose_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    assert load.tokenizer_source(tmp_path) == tmp_path
    assert load.tokenizer_source("tiny", tmp_path) == tmp_path
    with pytest.raises(CheckpointError, match=r"'tiny' has no tokenizer.json.*point model.tokenizer at"):
        load.tokenizer_source("tiny")
