"""Say what a run would need of TPUs that are not here.

In:    settings of a run, a topology
Out:   `Forecast`: every program that the run would compile, compiled for that topology; memory of one chip by part; what to
       change where it does not fit
Holds: memory, arithmetic, kernels and collectives are those of the compiled programs; nothing is run
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jax.sharding import AxisType, Mesh

from dr_jax.base.errors import CheckpointError, ConfigError
from dr_jax.base.trace import logger
from dr_jax.engine.settings import memory_bytes
from dr_jax.model.decoder import Remat
from dr_jax.model.flops import update_products
from dr_jax.model.sizes import NAMED, Sizes, from_hf_config
from dr_jax.sharding.mesh import make_mesh
from dr_jax.sharding.place import bytes_of, row_ways
from dr_jax.train.ahead import ENGINE, Failed, Found, Planned, analysed, engine_programs, update_programs
from dr_jax.train.chips import Chip, chip_of, topology
from dr_jax.train.memory import candidates, choose, is_open
from dr_jax.train.placement import Placement, on_each_its_own
from dr_jax.train.room import SPARE as KEPT
from dr_jax.train.settings import Settings

_log = logger(__name__)

GIB = 2**30
SPARE = 0.03  # of a chip's memory that the system keeps: libtpu gives 15.75 of 16 GiB and 31.25 of 32


@dataclass(frozen=True, slots=True)
class Forecast:
    """What was found.

    Args:
        name: of the topology.
        chip: what it is made of.
        model: whose sizes were taken.
        sizes: of the policy.
        settings: of the run.
        chips: how many.
        processes: hosts.
        learning: axes of the update's mesh.
        sampling: axes of one engine's mesh.
        parts: bytes of one chip that last: weights, optimizer, gradient, reference, engine weights, cache.
        programs: those that compile, those that do not.
        products: matrix products of one chip's gradient by the equations.
    """

    name: str
    chip: Chip
    model: str
    sizes: Sizes
    settings: Settings
    chips: int
    processes: int
    learning: dict[str, int]
    sampling: dict[str, int]
    parts: dict[str, int]
    programs: tuple[Found | Failed, ...]
    products: float

    @property
    def room(self) -> float:
        """Bytes of a chip that a run may use."""
        return self.chip.hbm_gib * GIB * (1 - SPARE)

    @property
    def compiled(self) -> list[Found]:
        """Programs that there are."""
        return [one for one in self.programs if isinstance(one, Found)]

    @property
    def peak(self) -> int:
        """Bytes of a chip while the largest program runs."""
        return max((one.peak for one in self.compiled), default=0)

    @property
    def fits(self) -> bool:
        """Whether every program compiles and fits beside what lasts."""
        return len(self.compiled) == len(self.programs) and self.peak <= self.room

    def named(self, start: str) -> Found | None:
        """Return the program whose name begins so, if it compiled."""
        return next((one for one in self.compiled if one.name.startswith(start)), None)


def forecast(settings: Settings, name: str, told: Callable[[str], None] = lambda line: None) -> Forecast:
    """Compile a run's programs for a topology and read off what they need.

    Args:
        settings: of the run.
        name: of the topology.
        told: what is being compiled.

    Raises:
        ConfigError: there is no such topology, libtpu is missing, or the mesh or the batch does not fit its chips.
        CheckpointError: the model's sizes are not known.
    """
    chip, devices = chip_of(name), topology(name)
    model, sizes = sizes_of(settings)
    _refuse_others(settings)
    place = on_each_its_own(make_mesh(settings.mesh, devices)).suited(sizes)
    if place.spread is not None:
        place = dataclasses.replace(place, sampling=_alone(place.sampling, name))
    _refuse_rows(settings, place.learning)
    known = None
    if is_open(settings):
        settings, known = _chosen(settings, sizes, place, chip.hbm_gib * GIB * (1 - SPARE), told)
    planned = _planned(settings, sizes, place)
    lasting = _parts(planned, settings, sizes, place)
    programs: list[Found | Failed] = []
    for one in planned:
        if known is not None and one.name == known.name:
            programs.append(known)
            continue
        told(f"{one.name} for {name}")
        beside = one.beside + lasting["engine_weights"] + lasting["cache"]
        if one.name.startswith(ENGINE):
            beside = one.beside + lasting["weights"] + lasting["optimizer"] + lasting["reference"]
        programs.append(analysed(dataclasses.replace(one, beside=beside)))
    tokens = settings.batch.rows * max(settings.batch.lengths)
    return Forecast(
        name,
        chip,
        model,
        sizes,
        settings,
        len(devices),
        len({device.process_index for device in devices}),
        dict(place.learning.shape),
        dict(place.sampling.shape),
        lasting,
        tuple(programs),
        update_products(sizes, tokens, remat=_remat(settings)) / len(devices),
    )


def sizes_of(settings: Settings) -> tuple[str, Sizes]:
    """Find the sizes of the policy, whose weights need not be here: a published model's are known by its name.

    Raises:
        CheckpointError: they are not known.
    """
    told = settings.model.load
    if told in NAMED:
        return told, NAMED[told]
    if (Path(told) / "config.json").is_file():
        return told, from_hf_config(json.loads((Path(told) / "config.json").read_text("utf-8")))
    known = Path(told).name.lower().removesuffix("-instruct")
    if known in NAMED:
        return f"{told} is not here: the sizes of {known}", NAMED[known]
    raise CheckpointError(
        f"model.load = {told!r} is not here",
        needed=f"a directory with config.json, or one of {', '.join(NAMED)}",
        fix="add model.load=NAME",
    )


def _refuse_others(settings: Settings) -> None:
    told = {
        "lora.rank": settings.lora.rank,
        "rollout.devices": settings.rollout.devices,
        "mesh.sequence": settings.mesh.sequence - 1,
    }
    if odd := [name for name, value in told.items() if value]:
        raise ConfigError(
            f"{odd[0]} is set: compiled ahead is an update of the whole model, its rows whole, with engines on the same chips",
            needed=f"a run without {odd[0]}",
            fix=f"add {odd[0]}={int(odd[0] == 'mesh.sequence')}",
        )


def _refuse_rows(settings: Settings, mesh: Mesh) -> None:
    ways = row_ways(mesh)
    if settings.batch.rows % ways:
        raise ConfigError(
            f"batch.rows = {settings.batch.rows} cannot be spread over data x fsdp = {ways}",
            needed=f"a multiple of {ways}",
            fix=f"add batch.rows={-(-settings.batch.rows // ways) * ways}, or a larger mesh.tensor",
        )


def _alone(sampling: Mesh, name: str) -> Mesh:
    """Return the mesh of one host's engine as a slice of its own: libtpu compiles for whole slices only."""
    host = f"{name.partition(':')[0]}:{chip_of(name).host}"
    devices = topology(host)
    if len(devices) != sampling.size:
        raise ConfigError(f"{name} has {sampling.size} chips on each host, {host} has {len(devices)}", needed="as many")
    shape = sampling.devices.shape
    return Mesh(np.array(devices).reshape(shape), sampling.axis_names, axis_types=(AxisType.Auto,) * len(shape))


def _chosen(
    settings: Settings, sizes: Sizes, place: Placement, room: float, told: Callable[[str], None]
) -> tuple[Settings, Found | Failed]:
    """Choose as a run on these chips would; return the settings, and the gradient's program, which takes minutes to compile."""
    tried: dict[tuple[Remat, int], Found | Failed] = {}

    def needed(remat: Remat, rows: int) -> float:
        closed = dataclasses.replace(settings, remat=remat, batch=dataclasses.replace(settings.batch, rows=rows))
        planned = _planned(closed, sizes, place)
        lasting = _parts(planned, closed, sizes, place)
        one = next(one for one in planned if one.name.startswith("gradient"))
        told(f"{one.name} with remat={remat}, to choose")
        beside = one.beside + lasting["engine_weights"] + lasting["cache"]
        tried[remat, rows] = found = analysed(dataclasses.replace(one, beside=beside))
        return found.peak if isinstance(found, Found) else math.inf

    usable = min(room * (1 - KEPT), settings.memory_gib * GIB or math.inf)
    choice = choose(*candidates(settings, place.learning), needed, usable)
    _log.info(
        "a run would choose remat = %s and batch.rows = %d, for which it needs %.3g of the %.3g GiB that it would count with",
        *(choice.remat, choice.rows, choice.needed / GIB, usable / GIB),
    )
    return choice.applied(settings), tried[choice.remat, choice.rows]


def _remat(settings: Settings) -> Remat:
    assert settings.remat != "auto", "it was chosen"
    return settings.remat


def _planned(settings: Settings, sizes: Sizes, place: Placement) -> list[Planned]:
    updates = update_programs(
        sizes,
        place.learning,
        rows=settings.batch.rows,
        length=max(settings.batch.lengths),
        loss=settings.loss,
        optimizer=settings.optimizer,
        dtype=settings.model.dtype,
        remat=_remat(settings),
        attention=settings.model.attention,
    )
    return [*updates, *engine_programs(sizes, place.sampling, settings.engine, dtype=settings.model.dtype)]


def _parts(planned: Sequence[Planned], settings: Settings, sizes: Sizes, place: Placement) -> dict[str, int]:
    step, decode = (next(one for one in planned if one.name.startswith(name)) for name in ("step", "decode"))
    weights, moments, gradient = map(bytes_of, step.arguments)
    lent, pools, _ = decode.arguments
    assert bytes_of(pools) <= memory_bytes(settings.engine, sizes)
    return {
        "weights": weights,
        "optimizer": moments,
        "gradient": gradient,
        "reference": weights if settings.loss.needs_reference else 0,
        "engine_weights": bytes_of(lent),
        "cache": bytes_of(pools),
    }


def advice(found: Forecast) -> list[str]:
    """Say what to change where a run does not fit, the least first."""
    if found.fits:
        return []
    failed = [one for one in found.programs if isinstance(one, Failed)]
    said = [f"{one.name} does not compile: {one.reason}" for one in failed]
    # An engine's program that does not compile has too many pages where the update, which compiles, has no room beside them.
    update = [one for one in failed if not one.name.startswith(ENGINE)]
    if not update and (fewer := _fewer_pages(found)):
        return [*said, fewer]
    over = max(0.0, found.peak - found.room)
    over_all = f"{over / GIB:.2f} GiB too much even without pages of keys and values" if not failed else ""
    return [*said, *filter(None, [over_all]), "change: " + "; or ".join(_changes(found))]


def _fewer_pages(found: Forecast) -> str:
    """Say how many pages would fit; nothing, where fewer are no help or none that an engine can work with."""
    engine, cache = found.settings.engine, found.parts["cache"]
    over = max(0.0, found.peak - found.room)
    fewer = int((cache - over) / (cache / engine.page_count))
    if not engine.pages_per_request < fewer < engine.page_count:
        return ""
    tokens = (fewer - 1) * engine.page_size
    slots = max(1, tokens // engine.context_of_all)
    return (
        f"{over / GIB:.2f} GiB too much; engine.pages={fewer} fits: {tokens:,} tokens in pages, {tokens // engine.slots:,} for "
        f"each of {engine.slots} slots; with engine.slots={slots} too, each has {engine.context_of_all:,} as now"
    )


def _changes(found: Forecast) -> list[str]:
    """List what makes the update smaller."""
    settings, sizes = found.settings, found.sizes
    rows = math.prod(found.learning[axis] for axis in ("data", "fsdp"))
    own = found.chips // found.processes  # heads are split inside of a host, where there are several
    heads = [ways for ways in range(2, own + 1) if not sizes.heads % ways and not sizes.ff % ways and not own % ways]
    larger = [ways for ways in heads if ways > found.learning["tensor"]]
    changes = [
        "remat=full" if settings.remat != "full" else "",
        f"batch.rows={rows}" if settings.batch.rows > rows else "",
        f"mesh.tensor={larger[0]}" if larger else "",
        "loss.kl=none, which needs no reference" if settings.loss.needs_reference else "",
        f"shorter rows than batch.lengths = {max(settings.batch.lengths)}",
        f"more chips than {found.chips}",
    ]
    return list(filter(None, changes))
