"""The most that chips would give: the least time that their published rates allow a compiled program.

In:    `Forecast`: compiled programs and what is published of a chip
Out:   seconds, tokens a second, utilisation, and what these rest on
Holds: nothing was run: no time here was measured
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from dr_jax.model.sizes import parameter_count
from dr_jax.train.ahead import Found
from dr_jax.train.forecast import GIB, SPARE, Forecast, advice

_SPLASH_BLOCK = 512  # tokens, see `model.kernels`
_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}  # of queries and keys' size, in each kernel


@dataclass(frozen=True, slots=True)
class Time:
    """The least seconds of one call of a program.

    Args:
        compute: matrix products, those of attention kernels among them, at the peak.
        memory: bytes of main memory at its bandwidth.
        wires: bytes to other chips by two links of a ring.
        useful: compute's part that the equations need: nothing computed again, nothing hidden.
    """

    compute: float
    memory: float
    wires: float
    useful: float

    @property
    def apart(self) -> float:
        """Nothing is sent while something is computed."""
        return max(self.compute, self.memory) + self.wires

    @property
    def together(self) -> float:
        """All at once."""
        return max(self.compute, self.memory, self.wires)


def least_time(forecast: Forecast, found: Found) -> Time:
    """Return the least time of a call of a program."""
    counts, chip = found.counts, forecast.chip
    flops = counts.flops + kernel_flops(found, max(forecast.settings.batch.lengths))
    moved = counts.bytes
    if found.name.startswith(("decode", "prefill")):  # its kernel meets pages, which the program's text does not tell
        steps = forecast.settings.engine.tokens_per_call if found.name.startswith("decode") else 1
        moved += steps * forecast.parts["cache"]
        flops = max(flops, found.flops)
    return Time(flops / chip.flops, moved / chip.hbm_bandwidth, counts.sent / chip.ring_bandwidth, found.flops / chip.flops)


def kernel_flops(found: Found, length: int) -> float:
    """Count what splash attention computes, whole blocks on the diagonal included."""
    counted = [
        (kernel, products)
        for kernel in found.counts.kernels
        for name, products in _PRODUCTS.items()
        if kernel.name.startswith(name)
    ]
    # The forward kernel returns arrays of the queries' shape; keys have fewer heads, and one kernel returns only theirs.
    queries = max((math.prod(shape) for kernel, _ in counted for shape in kernel.shapes), default=0)
    return sum(kernel.calls * products for kernel, products in counted) * 2.0 * queries * (length + _SPLASH_BLOCK) / 2


def assumptions(found: Forecast) -> list[str]:
    """Say what times rest on."""
    chip, engine = found.chip, found.settings.engine
    return [
        f"published rates of a chip ({chip.source}): {chip.flops / 1e12:.0f} Tflop/s in bfloat16, {chip.hbm_gib} GiB at "
        f"{chip.hbm_bandwidth / 1e9:,.0f} GB/s, {chip.ici_bandwidth / 1e9:.0f} GB/s to {chip.links} neighbours",
        "matrix products at the peak; memory at its bandwidth; what a kernel reads twice is read once",
        f"collectives in rings that go both ways, by two links of a chip: {chip.ring_bandwidth / 1e9:.0f} GB/s",
        "between 'apart' (nothing is sent while something is computed) and 'together' (all at once) lies what is possible",
        f"rows of a batch are full: one trajectory of {max(found.settings.batch.lengths):,} tokens each, all learned from",
        f"all pages are in use while tokens are drawn: {engine.slots} slots of {engine.context_of_all:,} tokens; nothing is "
        f"shared. Prefill meets {engine.max_context:,} tokens",
        f"{SPARE:.0%} of a chip's memory is the system's",
        "an engine's programs are compiled for its host's chips as a slice of their own",
    ]


def speeds(found: Forecast) -> dict[str, Any]:
    """Return tokens a second and utilisation of update, prefill and decode; those whose programs are there."""
    told: dict[str, Any] = {}
    settings, gradient, step = found.settings, found.named("gradient"), found.named("step")
    if gradient is not None:
        times = [least_time(found, one) for one in (found.named("reference"), gradient) if one is not None]
        tokens = settings.batch.rows * max(settings.batch.lengths)
        useful, apart, together = (sum(getattr(one, name) for one in times) for name in ("useful", "apart", "together"))
        own = least_time(found, gradient)
        told["update"] = {
            "tokens_per_s": {"apart": tokens / apart, "together": tokens / together},
            "utilisation": {"apart": useful / apart, "together": useful / together},
            "gradient_utilisation": {"apart": own.useful / own.apart, "together": own.useful / own.together},
            "step_s": least_time(found, step).apart if step is not None else None,
        }
    engines = found.processes
    calls = {"prefill": settings.engine.prefill_rows[-1] * settings.engine.prefill_width}
    calls["decode"] = settings.engine.slots * settings.engine.tokens_per_call
    for name, count in calls.items():
        if (one := found.named(name)) is not None:
            time = least_time(found, one)
            told[name] = {
                "tokens_per_s": {"apart": engines * count / time.apart, "together": engines * count / time.together},
                "utilisation": {"apart": time.useful / time.apart, "together": time.useful / time.together},
            }
    return told


def as_tree(found: Forecast) -> dict[str, Any]:
    """Return everything as plain data."""
    programs = []
    for one in found.programs:
        tree = dataclasses.asdict(one)
        if isinstance(one, Found):
            time = least_time(found, one)
            tree |= {"peak": one.peak, "kernel_flops": kernel_flops(one, max(found.settings.batch.lengths))}
            tree["least_s"] = dataclasses.asdict(time) | {"apart": time.apart, "together": time.together}
        programs.append(tree)
    gradient = found.named("gradient")
    return {
        "topology": found.name,
        "chips": found.chips,
        "processes": found.processes,
        "model": found.model,
        "parameters": parameter_count(found.sizes),
        "rows": f"{found.settings.batch.rows} x {max(found.settings.batch.lengths)}",
        "remat": found.settings.remat,
        "mesh": {"learning": found.learning, "sampling": found.sampling},
        "ran_on_a_device": False,
        "fits": found.fits,
        "memory": {"parts": found.parts, "peak": found.peak, "usable": int(found.room), "published": found.chip.hbm_gib * GIB},
        "programs": programs,
        "gradient_products": {
            "equations": found.products,
            "program": gradient.counts.flops if gradient else None,
            "program_loops_once": gradient.counts.flops_once if gradient else None,
            "xla_loops_once": gradient.xla_flops if gradient else None,
        },
        "forecast": speeds(found),
        "assumptions": assumptions(found),
        "change": advice(found),
    }
