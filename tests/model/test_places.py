"""Models where several processes share them, and in a bucket that is spoken to over HTTP."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from dr_jax.base.errors import CheckpointError
from dr_jax.model import hf, load
from dr_jax.model.decoder import Weights
from dr_jax.model.sizes import Sizes

# Each of two processes has four devices; pieces are small, so that leaves are put together in the devices' memory.
PROCESS = """
import sys
import jax
from dr_jax.model import hf, layout
from dr_jax.sharding import hosts
from dr_jax.sharding.mesh import MeshSettings, make_mesh
hosts.join(sys.argv[1], timeout_s=60)
layout.AT_ONCE = 500
layout.assemble.__kwdefaults__["at_once"] = 500
sizes, weights = hf.read(sys.argv[2], mesh=make_mesh(MeshSettings(data=1, fsdp=4, tensor=2)))
assert not weights["layers.up"].is_fully_addressable
hf.write(sys.argv[3], sizes, weights, max_shard_bytes=6_000)
"""


@pytest.mark.slow
def test_two_processes_read_a_model_and_write_it(small: tuple[Sizes, Weights], tmp_path: Path) -> None:
    hf.write(tmp_path / "before", *small)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"}
    given = [[f"127.0.0.1:{port}/{index}/2", str(tmp_path / "before"), str(tmp_path / "after")] for index in (0, 1)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "env": environment}
    processes = [subprocess.Popen([sys.executable, "-c", PROCESS, *arguments], **quiet) for arguments in given]
    try:
        said = [process.communicate(timeout=200)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    sizes, weights = hf.read(tmp_path / "after")
    assert sizes == small[0]
    assert len(list((tmp_path / "after").glob("*.safetensors"))) > 2
    for name, weight in small[1].items():
        np.testing.assert_array_equal(weights[name], weight)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of `gcp-storage-emulator`, spoken to over HTTP."""
    pytest.importorskip("gcsfs", reason="needs the extra gcs")
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="needs gcp-storage-emulator")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="models")
    server.start()
    try:
        yield "gs://models"
    finally:
        server.stop()


@pytest.mark.slow
def test_a_model_in_a_bucket(
    small: tuple[Sizes, Weights], bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hf.write(f"{bucket}/a/model", *small, max_shard_bytes=6_000, tokenizer_dir=tmp_path)
    sizes, weights = load.load(f"{bucket}/a/model")
    assert sizes == small[0]
    for name, weight in small[1].items():
        np.testing.assert_array_equal(weights[name], jax.device_get(weight))
    assert (load.tokenizer_source(f"{bucket}/a/model") / "tokenizer.json").read_text() == "{}"
    with pytest.raises(CheckpointError, match=r"gs://models/b has no config.json"):
        hf.read(f"{bucket}/b")
    with pytest.raises(CheckpointError, match=r"gs://nowhere/model"):
        hf.read("gs://nowhere/model")
