from pathlib import Path

import numpy as np
import pytest

from dr_jax.base.errors import CheckpointError
from dr_jax.model import hf, load
from dr_jax.model.decoder import Weights
from dr_jax.model.sizes import NAMED, Sizes
from dr_jax.sharding.mesh import MeshSettings, make_mesh


def test_fresh_weights_do_not_depend_on_the_mesh() -> None:
    sizes, one = load.load("tiny", seed=3, vocab=320)
    assert sizes.vocab == 320
    _, eight = load.load("tiny", seed=3, vocab=320, mesh=make_mesh(MeshSettings(2, 2, 2)))
    for name, weight in one.items():
        np.testing.assert_array_equal(eight[name], weight)
    assert eight["layers.gate"].sharding.shard_shape(eight["layers.gate"].shape) == (4, 80, 240)
    assert load.load("tiny")[0] == NAMED["tiny"]


def test_a_directory(small: tuple[Sizes, Weights], tmp_path: Path) -> None:
    hf.write(tmp_path, *small)
    assert load.load(tmp_path)[0] == small[0]
    assert load.load(str(tmp_path))[0] == small[0]


def test_a_name_that_nothing_has() -> None:
    with pytest.raises(CheckpointError, match=r"no model 'smolm2'.*Needed: a directory.*did you mean smollm2"):
        load.load("smolm2")


def test_whose_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    assert load.tokenizer_source(tmp_path) == tmp_path
    assert load.tokenizer_source("tiny", tmp_path) == tmp_path
    with pytest.raises(CheckpointError, match=r"'tiny' has no tokenizer.json.*point model.tokenizer at"):
        load.tokenizer_source("tiny")
