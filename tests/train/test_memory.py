"""What is chosen by the memory that there is: first with numbers that a reader can check, then with the run's own programs."""

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from dr_jax.base.errors import CapacityError
from dr_jax.engine.engine import Engine
from dr_jax.engine.settings import memory_bytes
from dr_jax.learn.batch import empty
from dr_jax.learn.optimizer import make_optimizer
from dr_jax.learn.update import begin, make_update
from dr_jax.model.decoder import Remat, Weights, describe, merged
from dr_jax.model.load import load
from dr_jax.model.sizes import Sizes
from dr_jax.sharding.mesh import MeshSettings, make_mesh
from dr_jax.sharding.place import place_rows
from dr_jax.tokens.chat import Chat
from dr_jax.train.actor import Actor
from dr_jax.train.ahead import Found, analysed, update_programs
from dr_jax.train.compiled import keep_compiled
from dr_jax.train.loop import train
from dr_jax.train.memory import REMATS, Choice, Learner, candidates, choose, fitted
from dr_jax.train.placement import Placement
from dr_jax.train.report import read_metrics
from dr_jax.train.room import GIB, host_free, room
from dr_jax.train.settings import Settings
from dr_jax.train.together import Together
from dr_jax.train.trained import Trained, trained
from tests.engine.oracle import COMPILER
from tests.fakes import small_tokenizer
from tests.train.processes import start


def silent(phase: str, index: int, numbers: Mapping[str, Any]) -> None:
    """Say nothing."""


def changed(settings: Settings, run: Mapping[str, Any], **tables: Mapping[str, Any]) -> Settings:
    parts = {name: dataclasses.replace(getattr(settings, name), **values) for name, values in tables.items()}
    return dataclasses.replace(settings, **parts, **run)


def unsettled(settings: Settings, memory_gib: float, **run: Any) -> Settings:
    """Leave all to the memory; weights are copied to every device."""
    given = {"remat": "auto", "memory_gib": memory_gib} | run
    return changed(settings, given, batch={"rows": 0}, mesh={"fsdp": 1, "data": -1}, rollout={"groups": 8, "group_size": 8})


@pytest.mark.parametrize(
    ("usable", "remat", "rows", "asked"),
    [
        (9, "full", 1, 3),  # 10, 20 and 40 for each row, and 5 besides: nothing fits, and `full` comes nearest with 15
        (15, "full", 1, 4),
        (25, "products", 1, 3),
        (44, "products", 1, 3),
        (45, "none", 1, 2),
        (85, "none", 2, 2),
        (164, "none", 2, 2),
        (165, "none", 4, 3),
        (1e9, "none", 8, 3),  # what lies between two rows and the most is not asked for
    ],
)
def test_the_cheapest_that_fits_then_the_most_rows(usable: float, remat: str, rows: int, asked: int) -> None:
    each, calls = {"none": 40, "products": 20, "full": 10}, []

    def needed(remat: str, rows: int) -> float:
        calls.append((remat, rows))
        return 5 + each[remat] * rows

    found = choose(REMATS, [1, 2, 4, 8], needed, usable)
    assert (found.remat, found.rows, found.needed) == (remat, rows, 5 + each[remat] * rows)
    assert found.fits == (usable >= 15)
    assert len(calls) == len(set(calls)) == asked


def test_where_the_line_misleads_what_fits_is_still_found() -> None:
    steep = {1: 10, 2: 11, 4: 20, 8: 100}
    assert choose(["none"], [1, 2, 4, 8], lambda _, rows: steep[rows], 30) == Choice("none", 4, 20, 30)
    assert choose(["none"], [1, 2, 4, 8], lambda _, rows: steep[rows], 19) == Choice("none", 2, 11, 19)
    assert choose(["none"], [1, 2, 4, 8], lambda _, rows: math.inf if rows > 1 else 5, 19) == Choice("none", 1, 5, 19)


@pytest.fixture(scope="module")
def policy(policy_directory: Path) -> tuple[Sizes, Weights, Mesh]:
    """The policy of these tests on one of their devices."""
    mesh = make_mesh(devices=jax.devices()[:1])
    return *load(str(policy_directory), mesh=mesh, dtype=jnp.dtype("float32"), seed=0), mesh


@pytest.fixture
def chosen(settings: Settings, policy: tuple[Sizes, Weights, Mesh]) -> Iterator[Callable[..., Choice]]:
    """Choose for a run on one device, from so many GiB, and from what was chosen before."""
    keep_compiled()  # several of them compile the same
    sizes, weights, mesh = policy
    lent = {name: jnp.copy(weight) for name, weight in weights.items()}
    with Engine(lent, sizes, settings.engine, mesh=mesh) as engine:
        actor = Actor(sizes, weights, Chat(small_tokenizer()), engine, Placement(mesh, mesh))
        whole = trained(settings, actor)
        optimizer = make_optimizer(settings.optimizer, whole.axes, steps=3)
        state = begin(whole.first, optimizer)

        def choose(gib: float, before: tuple[Remat, int] | None = None, **tables: Mapping[str, Any]) -> Choice:
            open_ = changed(unsettled(settings, gib), {}, **tables)
            found = fitted(Learner(open_, whole, state, optimizer, mesh), actor, None, Together(open_.processes), before)
            assert found is not None
            return found

        yield choose


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """A place for compiled programs that is empty."""
    options = {"jax_compilation_cache_dir": str(tmp_path), "jax_persistent_cache_min_compile_time_secs": 0}
    before = {name: getattr(jax.config, name) for name in options}
    for values in (options, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is options:
            yield tmp_path


def test_the_run_finds_compiled_what_was_asked_about(settings: Settings, policy_directory: Path, cache: Path) -> None:
    told = changed(settings, {}, loss={"kl": "k3"}, batch={"rows": 2})
    mesh = make_mesh(MeshSettings(fsdp=2, tensor=2), jax.devices()[:4])
    sizes, weights = load(str(policy_directory), mesh=mesh, dtype=jnp.dtype("float32"), seed=0)
    whole = Trained(sizes, weights, {name: spec.axes for name, spec in describe(sizes).items()})
    optimizer = make_optimizer(told.optimizer, whole.axes, steps=3)
    state = begin(weights, optimizer)
    learner = Learner(told, whole, state, optimizer, mesh)
    assert learner.gradient_bytes("products", 2) > learner.step_bytes() > 0
    update = make_update(whole.forward(told, "products"), told.loss, optimizer, state)
    update(state, [place_rows(empty(2, 160), mesh)], reference_weights=weights)
    made = Counter(path.name.partition("-")[0] for path in cache.glob("*-cache"))
    assert (made["jit_add_gradient"], made["jit_apply"]) == (1, 1)


def test_rows_are_doubled_up_to_what_is_enough(settings: Settings) -> None:
    mesh, open_ = make_mesh(), unsettled(settings, 1.0)  # rows are spread over eight devices
    # 2,048 tokens are enough for a device of a CPU, and twelve rows of 160; 64 episodes of 160 tokens fill 64.
    assert candidates(open_, mesh) == (list(REMATS), [8, 16, 32, 64])
    assert candidates(changed(open_, {"remat": "full"}, rollout={"groups": 800}), mesh) == (["full"], [8, 16, 32, 64])
    assert candidates(changed(open_, {}, rollout={"groups": 3}), mesh)[1] == [8, 16]
    assert candidates(changed(open_, {}, batch={"lengths": (4096,)}), mesh)[1] == [8]
    assert candidates(changed(open_, {}, batch={"rows": 24}), mesh) == (list(REMATS), [24])


@pytest.mark.skipif(not COMPILER, reason="plain attention takes more memory")
def test_more_memory_is_less_recomputation_and_more_rows(chosen: Callable[..., Choice]) -> None:
    found = [chosen(gib) for gib in (0.0025, 0.0027, 0.0034, 0.005, 1.0)]
    told = [(one.remat, one.rows) for one in found]
    assert told == [("full", 1), ("products", 1), ("none", 1), ("none", 2), ("none", 8)]
    assert all(one.fits for one in found)


def test_what_is_chosen_is_counted_with_all_that_lies_there(
    chosen: Callable[..., Choice], settings: Settings, policy: tuple[Sizes, Weights, Mesh]
) -> None:
    """Counted once more as programs are that are compiled ahead of a run, and with the engine's weights and pages."""
    (sizes, weights, mesh), found = policy, chosen(0.0072)
    told, choice = unsettled(settings, 0.0072), {"rows": found.rows, "remat": found.remat, "dtype": settings.model.dtype}
    gradient, _ = update_programs(sizes, mesh, length=160, loss=told.loss, optimizer=told.optimizer, **choice)
    whole = analysed(gradient)
    assert isinstance(whole, Found)
    lent = jax.eval_shape(merged, weights)  # on a single device of a CPU
    engine = sum(one.size * one.dtype.itemsize for one in lent.values()) + memory_bytes(settings.engine, sizes)
    assert found.needed == pytest.approx(whole.peak + engine, abs=64)
    assert found.needed <= 0.0072 * GIB


@pytest.mark.skipif(not COMPILER, reason="plain attention takes more memory")
def test_what_is_told_stays_and_what_was_chosen_before_stays_while_it_fits(
    chosen: Callable[..., Choice], caplog: pytest.LogCaptureFixture
) -> None:
    assert chosen(0.0048, batch={"rows": 3}).remat == "products"
    with caplog.at_level("INFO"):
        caplog.clear()
        kept = chosen(1.0, ("products", 2))
    assert (kept.remat, kept.rows) == ("products", 2)
    assert [record.levelname for record in caplog.records if record.name.startswith("dr_jax")] == ["INFO"]
    assert re.search(r"products, batch.rows = 2: the update takes 0\.003\d+ of the 1 GiB that are what memory_gib", caplog.text)
    with caplog.at_level("WARNING"):
        again = chosen(0.0027, ("none", 2))
    assert (again.remat, again.rows) == ("products", 1)
    assert "cannot go on with remat = none and batch.rows = 2: choosing again" in caplog.text


def test_what_cannot_fit_is_told_with_what_to_change(chosen: Callable[..., Choice]) -> None:
    told = (
        r"takes 0\.002\d+ GiB of each device with remat = full and batch.rows = 1, and 0.002 GiB are what memory_gib allows. "
        r"Needed: as much; 0\.001\d+ GiB are what lasts: weights 0.000136, optimizer 0.000272, engine 0\.0001\d+, "
        r"pages 0.000763. Fix: one of: a larger memory_gib; fewer engine.pages; shorter rows than batch.lengths = 160"
    )
    with pytest.raises(CapacityError, match=told):
        chosen(0.002)


async def test_a_resumed_run_goes_on_with_its_first_choice(settings: Settings, tmp_path: Path) -> None:
    first = await train(unsettled(settings, 0.005, steps=1), told=silent)
    assert (first["memory"]["remat"], first["memory"]["rows"]) == ("none", 8)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["remat"], config["batch"]["rows"]) == ("none", 8)
    more = await train(unsettled(settings, 1.0, steps=2), resume=True, told=silent)  # of which 64 rows would be chosen
    assert (more["memory"]["remat"], more["memory"]["rows"]) == ("none", 8)
    whole = changed(unsettled(settings, 0.0, steps=2, name="whole", remat="none"), {}, batch={"rows": 8})
    assert "memory" not in await train(whole, told=silent)
    loss = [[row["update/loss"] for row in read_metrics(tmp_path / name)] for name in ("run", "whole")]
    np.testing.assert_allclose(*loss, rtol=0, atol=1e-6)


@dataclass
class Accelerator:
    """A device that tells its memory."""

    told: dict[str, int] | None

    def memory_stats(self) -> dict[str, int] | None:
        return self.told


def test_an_accelerator_says_itself_what_it_has() -> None:
    two = [Accelerator({"bytes_limit": 100, "bytes_in_use": 30}), Accelerator({"bytes_limit": 90, "bytes_in_use": 40})]
    assert (room(two, 40).usable, room(two, 40).most) == (81, 90)
    assert room(two, 25).most == 75  # 15 are somebody else's
    assert room(two, 40, memory_gib=2).usable == 2 * GIB


def test_devices_of_a_cpu_share_half_of_what_the_host_has_free() -> None:
    found, free = room(jax.devices()[:1], 1000), host_free()
    assert found.usable == pytest.approx(1000 + free / 8 / 2, rel=0.2)  # of eight; others here take and give back meanwhile
    assert found.usable < found.most


def test_a_container_may_have_less_than_its_host(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    assert host_free(tmp_path / "meminfo", tmp_path) == 5000 * 1024
    for name, text in (("max", "4000000"), ("current", "3000000"), ("stat", "anon 7\ninactive_file 500000\nfile 9")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert host_free(tmp_path / "meminfo", tmp_path) == 4000000 - (3000000 - 500000)
    (tmp_path / "memory.max").write_text("max\n")
    assert host_free(tmp_path / "meminfo", tmp_path) == 5000 * 1024


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_choose_alike(settings: Settings) -> None:
    two = start(unsettled(settings, 0.005, steps=2), 2, 4)
    assert two.ended(300) == [0, 0], two.said(0) + two.said(1)
    assert "remat = none, batch.rows = 8: the update takes" in two.said(0).replace("\n", " ")
    assert "the update takes" not in two.said(1)
    assert json.loads((two.directory / "summary.json").read_text())["memory"]["rows"] == 8
    assert len(read_metrics(two.directory)) == 2
