"""What the 7B recipe and a 32B shape need of TPU slices, compiled where there is none: `python -m benchmarks.plan`.

Work:  `configs/deepresearcher_7b.toml`: Qwen2.5-7B, rows of 32,768 tokens, float32 state, bfloat16 products, a reference
       policy, an engine for each host; slots and pages as many as its chips hold. The programs of `dr-jax plan`, one slice
       after another
Needs: libtpu, `pip install 'dr-jax[tpu-aot]'`; no TPU. Ten minutes a slice on two cores
Out:   a table, and `results/plan.json`, in which a slice that is compiled again takes its old place, with its commit. Nothing
       is run on a device: memory, arithmetic, kernels and collectives are known; times are what published rates allow
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # with libtpu installed, JAX would look for a TPU here

from rich.console import Console
from rich.table import Table

from benchmarks.result import RESULTS, commit, write_json
from dr_jax.base.config import read
from dr_jax.base.errors import ConfigError
from dr_jax.train.forecast import GIB, forecast
from dr_jax.train.roofline import as_tree
from dr_jax.train.settings import Settings

CONFIG = Path("configs/deepresearcher_7b.toml")
CASES: dict[str, tuple[str, ...]] = {
    "7B v5p:2x2x4": (),
    "7B v5p:4x4x4": (),
    "7B v5e:8x8": ("engine.slots=64", "engine.pages=1537"),
    "7B v6e:8x8": ("engine.pages=8193",),
    "32B v5p:4x4x8": ("model.load=qwen2.5-32b", "batch.rows=32", "engine.pages=4097"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--results", type=Path, default=RESULTS, help="a folder")
    told = parser.parse_args(arguments)
    chosen = [name for name in CASES if told.only in name]
    if not chosen:
        sys.exit(f"benchmarks.plan: no case contains {told.only!r}; there are: {'; '.join(CASES)}")
    written, console = told.results / "plan.json", Console(stderr=True)
    found: dict[str, Any] = json.loads(written.read_text("utf-8"))["cases"] if written.is_file() else {}
    for name in chosen:
        settings = read(Settings, CONFIG, list(CASES[name]))
        try:
            planned = forecast(settings, name.split()[1], lambda line: console.print(f"compiling {line}", highlight=False))
        except ConfigError as error:
            sys.exit(f"benchmarks.plan: {error}")
        found[name] = {"settings": list(CASES[name]), "commit": commit()} | as_tree(planned)
        write(found, told.results)
    show({name: found[name] for name in CASES if name in found})
    print(f"written to {written}")


def write(found: Mapping[str, Any], folder: Path) -> Path:
    """Write what was found so far."""
    ordered = {name: found[name] for name in CASES if name in found}
    return write_json("plan", {"name": "plan", "ran_on_a_device": False, "cases": ordered}, ("jax", "jaxlib", "libtpu"), folder)


def show(found: Mapping[str, Any]) -> None:
    """Print a table."""
    table = Table(title="compiled ahead of time; nothing was run on a device")
    columns = (
        "case",
        "settings",
        "GiB of a chip",
        "of",
        "attention kernels",
        "sent, GB",
        "update, tokens/s",
        "used",
        "drawn/s",
    )
    for column in columns:
        table.add_column(column)
    for name, one in found.items():
        programs = {program["name"].split()[0]: program for program in one["programs"]}
        gradient, told, memory = programs["gradient"], one["forecast"], one["memory"]
        counts = gradient.get("counts", {"kernels": [], "collectives": {}})
        sent = sum(each["bytes"] for each in counts["collectives"].values()) / 1e9
        update, drawn = told.get("update"), told.get("decode")
        span = lambda one, form: f"{one['apart']:{form}} to {one['together']:{form}}"  # noqa: E731
        table.add_row(
            name,
            " ".join(one["settings"]),
            f"{memory['peak'] / GIB:.2f}",
            f"{memory['usable'] / GIB:.2f}",
            str(len(counts["kernels"])),
            f"{sent:.1f}",
            span(update["tokens_per_s"], ",.0f") if update else "",
            span(update["utilisation"], ".0%") if update else "",
            span(drawn["tokens_per_s"], ",.0f") if drawn else "",
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
