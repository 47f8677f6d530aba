"""The kernel for CPUs, held against rows in one piece in float64; and what happens where it cannot be made."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dr_jax.engine import cpu
from dr_jax.engine.choice import Form, decoding
from dr_jax.engine.cpu import NoKernelError, OnCpu
from dr_jax.engine.settings import EngineSettings
from dr_jax.model import trial
from dr_jax.model.sizes import NAMED
from dr_jax.sharding.mesh import MeshSettings, make_mesh
from tests.engine.oracle import COMPILER

L, K = 2, 2
meet = jax.jit(OnCpu())
compiled = pytest.mark.skipif(not COMPILER, reason="no C++ compiler")


@pytest.fixture
def afresh() -> Iterator[None]:
    """Nothing is loaded, chosen or said yet; what the other tests use is loaded again afterwards."""
    for kept in (cpu.load, decoding, trial.say):
        kept.cache_clear()
    yield
    for kept in (cpu.load, decoding, trial.say):
        kept.cache_clear()


def gathered(q: np.ndarray, k: np.ndarray, v: np.ndarray, tables: np.ndarray, visible: np.ndarray) -> np.ndarray:
    out, sharing = np.zeros(q.shape), q.shape[2] // K
    for row, query, head in np.ndindex(q.shape[:3]):
        if there := visible[row, query]:
            keys, values = (pool[1, head // sharing, tables[row]].reshape(-1, q.shape[3])[:there] for pool in (k, v))
            scores = keys.astype(np.float64) @ q[row, query, head] * q.shape[3] ** -0.5
            shares = np.exp(scores - scores.max())
            out[row, query, head] = shares @ values / shares.sum()
    return out


def case(rows: int, queries: int, sharing: int, channels: int, page: int, pages: int) -> tuple[np.ndarray, ...]:
    """Draw rows of any length, the first of which sees nothing and of which some have their first pages in common."""
    rng = np.random.default_rng(rows * queries)
    pool = (L, K, rows * pages + 1, page, channels)
    k, v = (rng.standard_normal(pool, np.float32) for _ in range(2))
    tables = 1 + rng.permutation(rows * pages).astype(np.int32).reshape(rows, pages)
    tables[1::2, : pages // 2] = tables[0, : pages // 2]
    visible = rng.integers(0, pages * page + 1, (rows, queries), np.int32)
    visible[0], visible[-1, -1] = 0, pages * page
    return rng.standard_normal((rows, queries, K * sharing, channels), np.float32), k, v, tables, visible


@compiled
@pytest.mark.parametrize(
    ("rows", "queries", "sharing", "channels", "page", "pages"),
    [(40, 1, 4, 32, 64, 5), (9, 1, 1, 16, 8, 19), (3, 33, 3, 64, 24, 7), (2, 70, 7, 128, 16, 9), (5, 2, 6, 64, 1, 40)],
)
def test_the_kernel_agrees_with_attention_over_rows_in_one_piece(
    rows: int, queries: int, sharing: int, channels: int, page: int, pages: int
) -> None:
    q, k, v, tables, visible = case(rows, queries, sharing, channels, page, pages)
    found = meet(q, (k, v), jnp.int32(1), tables, visible)
    np.testing.assert_allclose(found, gathered(q, k, v, tables, visible), atol=5e-6)
    assert not np.asarray(found)[visible == 0].any()


@compiled
def test_scores_far_apart_neither_overflow_nor_lose_the_largest() -> None:
    q, k, v, tables, visible = case(4, 1, 2, 16, 16, 8)
    found = meet(q * 300, (k, v), jnp.int32(1), tables, visible)
    np.testing.assert_allclose(found, gathered(q * 300, k, v, tables, visible), atol=1e-4)


@compiled
def test_what_a_row_gathers_does_not_depend_on_the_others() -> None:
    q, k, v, tables, visible = case(40, 1, 4, 32, 16, 20)
    together = np.asarray(meet(q, (k, v), jnp.int32(1), tables, visible))
    for row in (1, 17, 39):
        alone = meet(q[row : row + 1], (k, v), jnp.int32(1), tables[row : row + 1], visible[row : row + 1])
        np.testing.assert_array_equal(alone[0], together[row])


@compiled
def test_places_that_nobody_sees_may_hold_anything() -> None:
    q, k, v, tables, visible = case(6, 1, 4, 32, 16, 6)
    expected = meet(q, (k, v), jnp.int32(1), tables, visible)
    for row, there in enumerate(visible[:, 0]):
        for place in range(there, tables.shape[1] * 16):
            page = tables[row, place // 16]
            if not any(page in tables[other, : -(-visible[other, 0] // 16)] for other in range(6)):
                k[:, :, page], v[:, :, page] = np.nan, np.inf
    assert np.isnan(k).any()
    np.testing.assert_array_equal(meet(q, (k, v), jnp.int32(1), tables, visible), expected)


@compiled
@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("queries", [1, 3])
def test_a_key_that_is_no_number_is_not_passed_over(broken: float, queries: int) -> None:
    q, k, v, tables, _ = case(3, queries, 2, 16, 16, 6)
    q, visible = abs(q), np.full((3, queries), 90, np.int32)
    expected = np.array(meet(q, (k, v), jnp.int32(1), tables, visible))
    k[1, 0, tables[2, 0], 3] = broken
    expected[2, :, :2] = np.nan  # those of the first key head
    np.testing.assert_array_equal(meet(q, (k, v), jnp.int32(1), tables, visible), expected)


@compiled
def test_it_is_taken_on_one_cpu_and_made_once(afresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told: list[tuple[object, ...]] = []  # XLA hears of a name once in a process
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *names, **_: told.append(names))
    form = Form.of(EngineSettings(), NAMED["qwen2.5-0.5b"], 1)
    assert decoding("auto", form, "cpu", None) == OnCpu()
    (made,) = (tmp_path / "dr_jax" / "kernels").iterdir()
    before = made.stat().st_mtime_ns
    cpu.load.cache_clear()
    cpu.load()
    assert [one.stat().st_mtime_ns for one in made.parent.iterdir()] == [before]
    assert [name for name, _ in told] == ["dr_jax_paged_attention"] * 2
    mesh = make_mesh(MeshSettings(data=1, fsdp=1, tensor=4), jax.devices()[:4])
    assert decoding("auto", form, "cpu", mesh) is None
    assert decoding("plain", form, "cpu", None) is None


@pytest.mark.usefixtures("plain_log")
@pytest.mark.parametrize(
    ("compiler", "told"),
    [
        (None, "There is no C++ compiler (c++, g++ or clang++; CXX names another)"),
        ("no-such-compiler", "CXX = 'no-such-compiler' is not there"),
        ("#!/bin/sh\necho 'paged.cc:1: error: what is this' >&2; exit 1", "did not compile paged.cc: paged.cc:1: error: what"),
        ('#!/bin/sh\n[ $# = 1 ] && exit; for last; do :; done; echo "no library" > "$last"', "cannot be loaded"),
        ("#!/bin/sh\nwhile :; do :; done", "was not done with paged.cc after 0.5 s"),
        ("#!/no/such/shell", "cannot be run (No such file or directory)"),
    ],
)
def test_where_it_cannot_be_made_plain_attention_is_there_and_that_is_said_once(
    afresh: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    compiler: str | None,
    told: str,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(cpu, "_PATIENCE_S", 0.5 if "was not done" in told else 60)
    if compiler is not None and compiler.startswith("#!"):
        script = tmp_path / "cc"
        script.write_text(compiler, "utf-8")
        script.chmod(0o700)
        compiler = str(script)
    if compiler is not None:
        monkeypatch.setenv("CXX", compiler)
    with caplog.at_level(logging.WARNING, logger="dr_jax"):
        for slots in (4, 8):
            assert decoding("auto", Form.of(EngineSettings(slots=slots), NAMED["qwen2.5-0.5b"], 1), "cpu", None) is None
    (record,) = caplog.records
    assert told in record.getMessage()
    assert "plain JAX is there instead" in record.getMessage()


def test_heads_of_other_sizes_are_refused_in_words() -> None:
    form = Form(slots=1, heads=4, kv_heads=2, channels=80, page_size=16, pages=4, dtype="float32")
    assert form.refusal("cpu") == "heads of 80 channels, not of 16, 32, 64, 128"


@compiled
def test_a_cache_that_cannot_be_written_is_named(afresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dr_jax").write_text("a file, not a folder", "utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(NoKernelError, match=r"cannot be written .*dr_jax/kernels.*XDG_CACHE_HOME names another place"):
        cpu.load()


@compiled
def test_a_user_may_have_no_home(afresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", str)  # what it does for a user whom the system does not know
    with pytest.raises(NoKernelError, match=r"cannot be written \(.*home.*XDG_CACHE_HOME names another place"):
        cpu.load()


@compiled
def test_what_is_no_library_and_cannot_be_taken_away_is_said(
    afresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "dr_jax" / "kernels" / f"{cpu._name(cpu._compiler())}.so").mkdir(parents=True)
    with pytest.raises(NoKernelError, match="cannot be loaded"):
        cpu.load()


def test_the_compiler_may_be_named_with_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "sh -c")
    assert cpu._compiler() == [shutil.which("sh"), "-c"]
