import json
from pathlib import Path

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.numpy import load_file, save_file

from dr_jax.base.errors import CheckpointError, UserError
from dr_jax.model import hf, layout
from dr_jax.model.decoder import Weights, describe
from dr_jax.model.sizes import Sizes
from dr_jax.sharding import rules
from dr_jax.sharding.mesh import MeshSettings, make_mesh

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture
def written(small: tuple[Sizes, Weights], tmp_path: Path) -> Path:
    hf.write(tmp_path / "model", *small)
    return tmp_path / "model"


def same(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        np.testing.assert_array_equal(found[name], weight)


@pytest.mark.parametrize("shape", [None, (1, 8, 1), (2, 2, 2)])
def test_what_was_written_is_read(small: tuple[Sizes, Weights], written: Path, shape: tuple[int, int, int] | None) -> None:
    mesh = MeshSettings(*shape) if shape else None
    sizes, weights = hf.read(written, mesh=make_mesh(mesh) if mesh else None)
    assert sizes == small[0]
    same(weights, small[1])
    if shape == (2, 2, 2):
        assert weights["layers.query"].sharding.shard_shape(weights["layers.query"].shape) == (3, 8, 2, 8)


def test_many_files(small: tuple[Sizes, Weights], tmp_path: Path) -> None:
    hf.write(tmp_path, *small, max_shard_bytes=5_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in small[1].values())
    same(hf.read(tmp_path)[1], small[1])
    (tmp_path / index["weight_map"]["lm_head.weight"]).unlink()
    with pytest.raises(CheckpointError, match=r"names model-000\d+-of-000\d+.safetensors, which is not there"):
        hf.read(tmp_path)


def test_a_golden_written_again_has_the_same_tensors(tmp_path: Path) -> None:
    for name in ("qwen2_yarn", "qwen3_tied", "llama_llama3"):
        hf.write(tmp_path / name, *hf.read(GOLDENS / name))
        ours, theirs = (load_file(where / name / "model.safetensors") for where in (tmp_path, GOLDENS))
        assert ours.keys() == theirs.keys()
        for tensor in theirs:
            np.testing.assert_array_equal(ours[tensor], theirs[tensor])


def test_bfloat16_files_and_bfloat16_weights(small: tuple[Sizes, Weights], tmp_path: Path) -> None:
    sizes, weights = small
    narrow = {name: weight.astype(jnp.bfloat16) for name, weight in weights.items()}
    hf.write(tmp_path, sizes, narrow)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    same(hf.read(tmp_path, dtype=jnp.bfloat16)[1], narrow)
    same(hf.read(tmp_path)[1], {name: weight.astype(jnp.float32) for name, weight in narrow.items()})


def test_weights_on_the_host_are_written_too_and_the_tokenizer_goes_along(small: tuple[Sizes, Weights], tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokenizer.json").write_text("{}")
    hf.write(tmp_path / "model", small[0], jax.device_get(small[1]), tokenizer_dir=tmp_path / "words")
    same(hf.read(tmp_path / "model")[1], small[1])
    assert (tmp_path / "model" / "tokenizer.json").read_text() == "{}"
    with pytest.raises(CheckpointError, match="holds a model already"):
        hf.write(tmp_path / "model", *small)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda tensors: tensors.pop("model.layers.1.self_attn.k_norm.weight"),
            r"Found: no model.layers.1.self_attn.k_norm.weight. Needed: model.layers.1.self_attn.k_norm.weight \[8\]",
        ),
        (
            lambda tensors: tensors.update({"model.layers.2.mlp.up_proj.weight": np.zeros((25, 16), np.float32)}),
            r"Found: model.layers.2.mlp.up_proj.weight \[25, 16\]. Needed: model.layers.2.mlp.up_proj.weight \[24, 16\]",
        ),
        (
            lambda tensors: tensors.update({"model.layers.0.mlp.gate_proj.bias": np.zeros(24, np.float32)}),
            r"Found: model.layers.0.mlp.gate_proj.bias \[24\]. Needed: no model.layers.0.mlp.gate_proj.bias",
        ),
        (
            lambda tensors: tensors.update({"model.norm.weight": np.zeros(16, np.int32)}),
            r"model.norm.weight of type I32. Needed: model.norm.weight of type BF16 or F16 or F32",
        ),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(written: Path, change, said: str) -> None:
    tensors = load_file(written / "model.safetensors")
    change(tensors)
    save_file(tensors, written / "model.safetensors")
    with pytest.raises(CheckpointError, match=said):
        hf.read(written)


def test_a_checkpoint_of_another_architecture(written: Path) -> None:
    config = json.loads((written / "config.json").read_text())
    (written / "config.json").write_text(json.dumps(config | {"model_type": "qwen2", "head_dim": 8}))
    with pytest.raises(
        CheckpointError, match=r"no model.layers.0.self_attn.q_proj.bias. Needed: .*q_proj.bias \[32\] \(15 tensors"
    ):
        hf.read(written)
    (written / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    with pytest.raises(CheckpointError, match="This is a 'mamba' model"):
        hf.read(written)


def test_what_can_be_computed_may_be_saved_too(tmp_path: Path) -> None:
    hf.write(tmp_path, *hf.read(GOLDENS / "qwen3_tied"))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    same(hf.read(tmp_path)[1], hf.read(GOLDENS / "qwen3_tied")[1])


def test_a_model_at_an_address(small: tuple[Sizes, Weights]) -> None:
    hf.write("memory://test_hf/model", *small, max_shard_bytes=5_000, dtype=jnp.bfloat16)
    sizes, weights = hf.read("memory://test_hf/model/")
    assert sizes == small[0]
    same(weights, {name: weight.astype(jnp.bfloat16).astype(jnp.float32) for name, weight in small[1].items()})
    with pytest.raises(CheckpointError, match="memory://test_hf/model holds a model already"):
        hf.write("memory://test_hf/model", *small)
    with pytest.raises(CheckpointError, match=r"memory://test_hf/nothing has no config.json"):
        hf.read("memory://test_hf/nothing")
    with pytest.raises(UserError, match="gone://bucket/model cannot be opened here"):
        hf.read("gone://bucket/model")


def test_a_file_is_whole_or_named(written: Path) -> None:
    file = written / "model.safetensors"
    content = file.read_bytes()
    for broken, why in (
        (content[:-1], rf"has {len(content) - 1} bytes where its header tells of {len(content)}"),
        (content + b"x", rf"has {len(content) + 1} bytes"),
        (content[:8] + b"[" + content[9:], "its header is not that of a safetensors file"),
        (content[:5], "its header would be"),
        (b"version https://git-lfs.github.com/spec/v1", "its header would be"),
        (content.replace(b'"F32","shape":[16]', b'"F16","shape":[16]', 1), r"\[16\] of F16 has 64 bytes"),
    ):
        file.write_bytes(broken)
        with pytest.raises(CheckpointError, match=rf"model.safetensors cannot be read: .*{why}.*copy it again"):
            hf.read(written)


class Guarded(MemoryFileSystem):
    """A bucket that lists its files to everybody, and shows and takes none."""

    protocol = "guarded"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("guarded://").strip("/")

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **named: object) -> bytes:
        raise OSError(f"Forbidden: {path}\nAnonymous caller does not have storage.objects.get access")

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        raise PermissionError(f"no storage.objects.create for {path}")


def test_a_bucket_without_permission(small: tuple[Sizes, Weights]) -> None:
    fsspec.register_implementation("guarded", Guarded, clobber=True)
    MemoryFileSystem().pipe_file("/guarded/config.json", b"{}")
    denied = r"guarded://guarded/config.json cannot be read: Forbidden.*account that may read there.*gcloud auth"
    with pytest.raises(CheckpointError, match=denied):
        hf.read("guarded://guarded")
    denied = r"model.safetensors cannot be written: .*account that may write there.*a role on it"
    with pytest.raises(CheckpointError, match=denied):
        hf.write("guarded://guarded", *small)


def test_what_is_no_model_directory(written: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config.json"):
        hf.read(tmp_path / "nowhere")
    content = (written / "model.safetensors").read_bytes()
    (written / "model.safetensors").write_bytes(content[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        hf.read(written)
    (written / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no \*.safetensors"):
        hf.read(written)
    (written / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        hf.read(written)


@pytest.mark.parametrize("shape", [None, (2, 2, 2)])
def test_pieces_put_together_on_the_devices_are_the_same(
    small: tuple[Sizes, Weights], shape: tuple[int, int, int] | None
) -> None:
    sizes, weights = small
    mesh = make_mesh(MeshSettings(*shape), jax.devices()[: int(np.prod(shape))]) if shape else None
    theirs = {
        name: layout.FORMS[ours].theirs(np.asarray(weights[ours] if layer is None else weights[ours][layer])).astype("bfloat16")
        for ours, layer, name, _ in layout.each(sizes)
    }
    asked: list[tuple[str, int, int]] = []

    def fetch(name: str, first: int, last: int) -> np.ndarray:
        asked.append((name, first, last))
        return theirs[name][first:last]

    found = layout.assemble(sizes, fetch, mesh=mesh, dtype=np.float32, at_once=300)
    same(found, {name: weight.astype(jnp.bfloat16).astype(jnp.float32) for name, weight in weights.items()})
    assert max((last - first) * theirs[name][0].nbytes for name, first, last in asked if "self_attn" not in name) <= 300
    if mesh is not None:
        assert found["layers.up"].sharding == rules.sharding("up", describe(sizes)["layers.up"], mesh)


def test_any_slice_of_ours_is_read_from_their_slice(small: tuple[Sizes, Weights]) -> None:
    rng = np.random.default_rng(0)
    for name, spec in describe(small[0]).items():
        form, shape = layout.FORMS[name], spec.shape[1:] if name.startswith("layers.") else spec.shape
        ours = rng.normal(size=shape)
        theirs = form.theirs(ours)
        assert theirs.shape == form.shape(shape)
        np.testing.assert_array_equal(form.ours(theirs, shape), ours)
        fast = {axis for dim in form.dims for axis in dim[1:]}
        cut = tuple(slice(None) if axis in fast else slice(size // 2, size) for axis, size in enumerate(shape))
        np.testing.assert_array_equal(form.ours(theirs[form.slices(cut, shape)], ours[cut].shape), ours[cut])
