"""What becomes of a run whose checkpoints cannot be written: the system refuses files beyond a size, as a full disk would."""

import gc
import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import optax
import pytest

from dr_jax.base.errors import CheckpointError
from dr_jax.learn.update import State
from dr_jax.train.checkpoint import Checkpoints

# Orbax leaves the futures of a save that failed to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    yield
    gc.collect()


@contextmanager
def full() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def state() -> State:
    weights = {"embed": jax.random.normal(jax.random.key(0), (300, 1000))}  # 1.2 MB that compress badly
    optimizer = optax.sgd(0.1)
    return State(weights, optimizer.init(weights), jax.numpy.int32(0))


def test_one_that_cannot_be_written_is_told_and_the_next_takes_its_place(
    tmp_path: Path, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(1, state, {})
    kept.wait()
    with full(), caplog.at_level(logging.WARNING):
        kept.save(2, state, {})
        kept.save(1, state, {})  # is there: nothing is written, and what became of the other is looked at
    assert [record.levelname for record in caplog.records if record.name.startswith("dr_jax")] == ["WARNING"]
    assert "File too large" in caplog.text
    assert kept.steps() == [1]
    for step in (2, 3):
        kept.save(step, state, {})
    kept.close()
    assert kept.steps() == [2, 3]


def test_three_in_a_row_end_the_run(tmp_path: Path, state: State) -> None:
    kept = Checkpoints(tmp_path)
    with full():
        for step in (1, 2, 3):
            kept.save(step, state, {})
        with pytest.raises(CheckpointError, match=r"The last checkpoint, 3 in a row, could not be written to .*File too large"):
            kept.save(4, state, {})
    kept.close()


def test_the_last_one_is_not_passed_over(tmp_path: Path, state: State) -> None:
    kept = Checkpoints(tmp_path)
    with full():
        kept.save(1, state, {})
        with pytest.raises(CheckpointError, match=r"could not be written to .*Needed: a place with room"):
            kept.close()
