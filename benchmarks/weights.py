"""How much host memory reading and writing a model takes: `python -m benchmarks.weights`.

Work:  a checkpoint of random bfloat16 weights in Qwen2.5-1.5B's shape, 3.1 GB in files of at most 1 GB, is read onto one device
       and onto a mesh of eight, in the files' dtype and as float32 masters; then written again
Sides: `read_…`, `write`: the most resident memory of the process (the kernel's VmHWM, reset before; file pages that are mapped
       count) beyond what it had before and, on a CPU, where the device's memory is the host's, beyond the weights themselves
Out:   MB, and the most in units of the largest file, to `results/weights.json`; seconds
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.result import Spread, write

MODEL, FILE = "qwen2.5-1.5b", 10**9
READS = {"read_masters": (8, "float32"), "read_one": (1, "bfloat16"), "read_eight": (8, "bfloat16")}
MB = 1e6


def main() -> None:
    """Measure every side in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--url", default="", help="a directory that holds the checkpoint already, or will")
    given = parser.parse_args()
    if given.side:
        print(json.dumps(measured(*given.side)))
        return
    with tempfile.TemporaryDirectory(prefix="weights") as scratch:
        place = given.url or f"{scratch}/model"
        made = _side("make", place)
        found = {side: [_side(side, place) for _ in range(given.repeats)] for side in READS}
        found["write"] = []
        for _ in range(given.repeats):
            found["write"].append(_side("write", place))
            shutil.rmtree(f"{place}.again", ignore_errors=True)
    sides = {side: Spread.of([one["mb"] for one in rows], "MB") for side, rows in found.items()}
    sides["largest_file"] = Spread.of([made["largest_mb"]], "MB")
    for side, rows in found.items():
        most, seconds = sides[side].max / made["largest_mb"], Spread.of([one["s"] for one in rows], "s")
        print(f"{side:13} {sides[side].median:7.0f} MB, at most {most:.2f} of the largest file; {seconds.median:.1f} s")
    print(f"{'largest_file':13} {made['largest_mb']:7.0f} MB")
    write("weights", sides, packages=("jax", "safetensors", "fsspec"))


def _side(side: str, place: str) -> dict[str, float]:
    devices = READS.get(side, (1, ""))[0]
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-m", "benchmarks.weights", "--side", side, place]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(side: str, place: str) -> dict[str, float]:
    """Do one thing in this process, and return what it took."""
    import jax
    import jax.numpy as jnp

    from dr_jax.model import hf
    from dr_jax.model.load import fresh
    from dr_jax.model.sizes import NAMED
    from dr_jax.model.tensors import Place
    from dr_jax.sharding.mesh import MeshSettings, make_mesh

    found: dict[str, float] = {}
    if side == "make":
        if "config.json" not in Place(place).names():
            hf.write(place, NAMED[MODEL], fresh(NAMED[MODEL], 0, dtype=jnp.bfloat16), max_shard_bytes=FILE)
        sizes = [Place(place).size(name) for name in Place(place).names() if name.endswith(".safetensors")]
        return {"largest_mb": max(sizes) / MB, "files": len(sizes)}
    devices, dtype = READS.get(side, (1, "bfloat16"))
    mesh = make_mesh(MeshSettings(1, 4, 2)) if devices == 8 else None
    jax.block_until_ready(jnp.zeros(8) + 1)  # the backend is there
    if side in READS:
        with _most(found):
            _, weights = hf.read(place, mesh=mesh, dtype=jnp.dtype(dtype))
            jax.block_until_ready(weights)
        found["mb"] -= sum(shard.data.nbytes for weight in weights.values() for shard in weight.addressable_shards) / MB
    else:
        _, weights = hf.read(place, dtype=jnp.dtype(dtype))
        with _most(found):
            hf.write(f"{place}.again", NAMED[MODEL], weights, max_shard_bytes=FILE)
    return found


@contextmanager
def _most(found: dict[str, float]) -> Iterator[None]:
    """Measure how much more resident memory there was at most than now."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM is from here on
    before, start = _resident("VmRSS"), time.perf_counter()
    yield
    found["s"] = time.perf_counter() - start
    found["mb"] = (_resident("VmHWM") - before) / MB


def _resident(name: str) -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024.0


if __name__ == "__main__":
    main()
