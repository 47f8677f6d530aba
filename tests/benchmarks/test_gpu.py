"""What is measured on a GPU is laid out as it is meant to be; where there is none, the command says so."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import gpu
from dr_jax.engine.device import tiles
from dr_jax.engine.settings import EngineSettings
from dr_jax.model.sizes import Sizes
from dr_jax.train.ahead import abstract_batch, engine_programs, mesh_of

SIZES = Sizes(vocab=10, width=4, layers=3, heads=2, kv_heads=1, head_dim=2, ff=3)


def test_without_a_gpu_the_command_says_so() -> None:
    with pytest.raises(SystemExit, match=r"there is no NVIDIA GPU: JAX sees 'cpu'.*pip install 'dr-jax\[cuda\]'"):
        gpu.main([])


def test_a_token_reads_weights_keys_and_values_once() -> None:
    # Of a layer: query and out 4 x 4, key and value 4 x 2, three of 4 x 3, two norms of 4: 92; besides a norm of 4 and the
    # embedding of 40, which is the head. A key and a value of 2 in each of 3 layers: 12.
    weights = 3 * 92 + 4 + 40
    assert gpu.decode_bytes(SIZES, 5, 7) == 2 * (weights + 5 * 7 * 12)


def test_rows_are_full_and_share_no_page() -> None:
    settings = EngineSettings(slots=3, page_size=4, max_context=16, tokens_per_call=2, prefill_rows=(1,), prefill_width=4)
    mesh = mesh_of(jax.devices()[:1])
    like = engine_programs(SIZES, mesh, settings)[-1].arguments[-1]
    rows = gpu.full_rows(like, settings, tiles(settings, SIZES, "cpu", mesh), SIZES.vocab)
    assert sorted(rows.tables_BX.ravel()) == list(range(1, 13))
    assert (rows.lengths_B + rows.lefts_B).tolist() == [16, 16, 16]
    assert (rows.items.shared.used, rows.items.alone.used) == (0, 3)
    assert [(one.shape, one.dtype) for one in jax.tree.leaves(rows)] == [
        (one.shape, one.dtype) for one in jax.tree.leaves(like)
    ]


def test_packed_rows_are_four_trajectories_whose_second_halves_are_trained() -> None:
    rows = gpu.packed_rows(abstract_batch(1, 16, mesh_of(jax.devices()[:1])), 10)
    assert rows.segments.tolist() == [[1] * 4 + [2] * 4 + [3] * 4 + [4] * 4]
    assert rows.positions.tolist() == [[0, 1, 2, 3] * 4]
    np.testing.assert_allclose(rows.weights, [[0, 0, 1 / 8, 1 / 8] * 4])


@pytest.mark.slow
def test_the_whole_command_on_a_tiny_model(tmp_path: Path) -> None:
    gpu.main(["--tiny", "--results", str(tmp_path)])
    told = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    assert set(told["ratios"]) == {"decode tiny x 2", "update tiny x 64"}
    assert all(side["median"] > 0 for side in told["sides"].values())
