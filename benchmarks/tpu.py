"""What the update and the engine need of TPUs, compiled where there is none: `python -m benchmarks.tpu`.

Work:  Qwen2.5's 0.5B, 1.5B and 7B. Update: rows of 8,192 packed tokens, one per chip, bfloat16 products, float32 state, AdamW,
       layers computed again in the backward pass. Engine: 64 and 256 slots of 2,048 tokens, bfloat16
Needs: libtpu, `pip install 'dr-jax[tpu-aot]'`; no TPU
Out:   a table, and `results/tpu.json`. Nothing is run on a device: memory, kernels and collectives are known, speed is not
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # with libtpu installed, JAX would look for a TPU here

from rich.console import Console
from rich.table import Table

from benchmarks.result import RESULTS, write_json
from dr_jax.base.errors import ConfigError
from dr_jax.engine.settings import EngineSettings
from dr_jax.learn.losses import LossSettings
from dr_jax.learn.optimizer import OptimizerSettings
from dr_jax.model.sizes import NAMED
from dr_jax.train.ahead import Failed, Found, Planned, analysed, engine_programs, mesh_of, update_programs
from dr_jax.train.chips import CHIPS, topology

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Case:
    """A model on some chips: of a topology, the first so many, of which `tensor` share each head.

    Args:
        slots: of an engine; 0 is an update.
        quick: whether it is part of the short run.
    """

    model: str
    topology: str
    chips: int
    tensor: int = 1
    slots: int = 0
    quick: bool = False

    def __str__(self) -> str:
        return f"{self.model} {self.topology} {'engine' if self.slots else 'update'}"


CASES = (
    Case("qwen2.5-1.5b", "v5e:2x2", 1, slots=64, quick=True),
    Case("qwen2.5-7b", "v5p:2x2x1", 1, slots=256, quick=True),
    Case("qwen2.5-1.5b", "v5e:2x4", 8, quick=True),
    Case("qwen2.5-7b", "v6e:2x4", 8, quick=True),
    Case("qwen2.5-0.5b", "v5e:2x2", 1, slots=64, quick=True),
    Case("qwen2.5-0.5b", "v5e:2x2", 4, quick=True),
    Case("qwen2.5-1.5b", "v6e:2x2", 1, slots=256),
    Case("qwen2.5-1.5b", "v5e:2x2", 2, 2, slots=256),
    Case("qwen2.5-7b", "v5e:2x2", 4, 4, slots=64),
    Case("qwen2.5-7b", "v6e:2x2", 4, 4, slots=256),
    Case("qwen2.5-7b", "v5p:2x2x1", 4),
    Case("qwen2.5-7b", "v5e:4x4", 16),
    Case("qwen2.5-1.5b", "v5p:2x2x1", 4),
    Case("qwen2.5-1.5b", "v6e:2x2", 4),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every case; otherwise one for each model and work")
    parser.add_argument("--only", default="", help="cases whose model, topology or work (engine, update) contains this")
    parser.add_argument("--results", type=Path, default=RESULTS, help="a folder")
    told = parser.parse_args(arguments)
    cases = [case for case in CASES if (told.all or case.quick or told.only) and told.only in str(case)]
    if not cases:
        sys.exit(f"benchmarks.tpu: no case contains {told.only!r}; there are: {'; '.join(map(str, CASES))}")
    console = Console(stderr=True)
    rows: list[tuple[Case, Found | Failed]] = []
    for case in cases:
        try:
            for found in compiled(case):
                console.print(f"{case.model} on {case.chips} of {case.topology}: {found.name} took {found.seconds:.0f} s")
                rows.append((case, found))
        except ConfigError as error:
            sys.exit(f"benchmarks.tpu: {error}")
        written = write(rows, told.results)  # after each: all of them take long
    show(rows)
    print(f"written to {written}")


def write(rows: Sequence[tuple[Case, Found | Failed]], folder: Path) -> Path:
    """Write what was found so far."""
    programs = [asdict(case) | {"found": isinstance(found, Found)} | asdict(found) for case, found in rows]
    content = {"name": "tpu", "ran_on_a_device": False, "programs": programs}
    return write_json("tpu", content, ("jax", "jaxlib", "libtpu"), folder)


def compiled(case: Case) -> Iterator[Found | Failed]:
    """Compile the programs of a case, one after the other."""
    yield from map(analysed, planned(case))


def planned(case: Case) -> list[Planned]:
    """Plan the programs of a case."""
    sizes, devices = NAMED[case.model], topology(case.topology)[: case.chips]
    if case.slots:
        settings = EngineSettings(
            slots=case.slots, page_size=64, max_context=2048, prefill_rows=(2, 8), prefill_width=256, dtype="bfloat16"
        )
        return engine_programs(sizes, mesh_of(devices, tensor=case.tensor, fsdp=1), settings)
    loss, optimizer, mesh = LossSettings(kl="none"), OptimizerSettings(), mesh_of(devices, tensor=case.tensor)
    return update_programs(sizes, mesh, rows=len(devices), length=8192, loss=loss, optimizer=optimizer)


def show(rows: Sequence[tuple[Case, Found | Failed]]) -> None:
    """Print a table."""
    table = Table(title="one chip of each; GiB", caption="Compiled ahead of time. Nothing was run on a device.")
    told = (
        "model",
        "chips",
        "program",
        "given",
        "returned",
        "temporary",
        "beside",
        "in all",
        "of",
        "Tflop",
        "XLA's",
        "XLA's GB",
        "kernels",
        "s",
    )
    for column in told:
        table.add_column(column, justify="left" if column in ("model", "chips", "program") else "right")
    for case, found in rows:
        name, kind = case.model.removeprefix("qwen2.5-"), case.topology.partition(":")[0]
        chips = f"{case.chips} {kind}" + (f", tensor {case.tensor}" if case.tensor > 1 else "")
        if isinstance(found, Failed):
            table.add_row(name, chips, found.name, f"[red]{found.reason[:60]}", *[""] * 9, f"{found.seconds:.0f}")
            continue
        sizes = (found.arguments, found.results, found.temporaries, found.beside, found.peak)
        memory = [f"{size / _GIB:.2f}" for size in sizes]
        work = [f"{each:.2f}" for each in (found.flops / 1e12, found.xla_flops / 1e12, found.xla_bytes / 1e9)]
        table.add_row(
            name,
            chips,
            found.name,
            *memory,
            str(CHIPS[kind].hbm_gib),
            *work,
            str(len(found.counts.kernels)),
            f"{found.seconds:.0f}",
        )
    Console(width=140).print(table)
    print(f"jax {version('jax')}, libtpu {version('libtpu')}")


if __name__ == "__main__":
    main()
