"""Custom calls for CPUs are compiled once, where there is a compiler; what happens where they cannot be is said."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

from dr_jax.engine import cpu as pages
from dr_jax.engine.choice import Form as EngineForm
from dr_jax.engine.choice import decoding
from dr_jax.engine.cpu import OnCpu
from dr_jax.engine.settings import EngineSettings
from dr_jax.model import cpu as rows
from dr_jax.model import native, packed, trial
from dr_jax.model.native import NoKernelError
from dr_jax.model.packed import Form
from dr_jax.model.sizes import NAMED
from dr_jax.sharding.mesh import MeshSettings, make_mesh
from tests.engine.oracle import COMPILER

compiled = pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
KEPT = (native.failure, decoding, packed.chosen, trial.say)


@pytest.fixture(autouse=True)
def afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The cache is empty; nothing is loaded, chosen or said yet; what other tests use is loaded again afterwards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for kept in KEPT:
        kept.cache_clear()
    yield
    for kept in KEPT:
        kept.cache_clear()


def on_pages(slots: int = 4) -> OnCpu | None:
    found = decoding("auto", EngineForm.of(EngineSettings(slots=slots), NAMED["qwen2.5-0.5b"], 1), "cpu", None)
    assert found is None or isinstance(found, OnCpu)
    return found


def on_rows(length: int = 64) -> str:
    return packed.chosen("auto", Form((1, length, 4, 64), 2, "float32"), "cpu")


@compiled
def test_they_are_taken_on_one_cpu_and_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[object, ...]] = []  # XLA hears of a name once in a process
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *names, **_: told.append(names))
    assert on_pages() == OnCpu()
    assert on_rows() == "native"
    made = {one.name: one.stat().st_mtime_ns for one in (tmp_path / "dr_jax" / "kernels").iterdir()}
    assert sorted(name.split("-")[0] for name in made) == ["packed", "paged"]
    native.failure.cache_clear()
    pages.load()
    rows.load()
    assert {one.name: one.stat().st_mtime_ns for one in (tmp_path / "dr_jax" / "kernels").iterdir()} == made
    names = ["dr_jax_paged_attention", "dr_jax_packed_attention", "dr_jax_packed_attention_gradient"]
    assert [name for name, _ in told] == names * 2
    mesh = make_mesh(MeshSettings(data=1, fsdp=1, tensor=4), jax.devices()[:4])
    form = EngineForm.of(EngineSettings(), NAMED["qwen2.5-0.5b"], 1)
    assert decoding("auto", form, "cpu", mesh) is None
    assert decoding("plain", form, "cpu", None) is None


@pytest.mark.usefixtures("plain_log")
@pytest.mark.parametrize(("ask", "none", "source"), [(on_pages, None, "paged.cc"), (on_rows, "plain", "packed.cc")])
@pytest.mark.parametrize(
    ("compiler", "told"),
    [
        (None, "There is no C++ compiler (c++, g++ or clang++; CXX names another)"),
        ("no-such-compiler", "CXX = 'no-such-compiler' is not there"),
        ("#!/bin/sh\necho 'a.cc:1: error: what is this' >&2; exit 1", "did not compile SOURCE: a.cc:1: error: what is"),
        ('#!/bin/sh\n[ $# = 1 ] && exit; for last; do :; done; echo "no library" > "$last"', "made of SOURCE cannot be loaded"),
        ("#!/bin/sh\nwhile :; do :; done", "was not done with SOURCE after 0.5 s"),
        ("#!/no/such/shell", "cannot be run (No such file or directory)"),
    ],
)
def test_where_one_cannot_be_made_plain_attention_is_there_and_that_is_said_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ask: Callable[[int], object],
    none: str | None,
    source: str,
    compiler: str | None,
    told: str,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(native, "_PATIENCE_S", 0.5 if "was not done" in told else 60)
    if compiler is not None and compiler.startswith("#!"):
        script = tmp_path / "cc"
        script.write_text(compiler, "utf-8")
        script.chmod(0o700)
        compiler = str(script)
    if compiler is not None:
        monkeypatch.setenv("CXX", compiler)
    with caplog.at_level(logging.WARNING, logger="dr_jax"):
        assert [ask(4), ask(8)] == [none, none]
    assert native.failure.cache_info().misses == 1
    (record,) = caplog.records
    assert told.replace("SOURCE", source) in record.getMessage()
    assert "plain JAX is there instead" in record.getMessage()


def test_heads_of_other_sizes_and_numbers_of_other_types_are_refused_in_words() -> None:
    form = EngineForm(slots=1, heads=4, kv_heads=2, channels=80, page_size=16, pages=4, dtype="float32")
    assert form.refusal("cpu") == "heads of 80 channels, not of 16, 32, 64, 128"
    assert native.refusal(64, "bfloat16", "queries") == "queries in bfloat16, not in float32"
    assert packed.chosen("auto", Form((1, 64, 4, 8), 2, "float32"), "cpu") == "plain"


@compiled
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "dr_jax").write_text("a file, not a folder", "utf-8")
    with pytest.raises(NoKernelError, match=r"cannot be written .*dr_jax/kernels.*XDG_CACHE_HOME names another place"):
        pages.load()


@compiled
def test_a_user_may_have_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", str)  # what it does for a user whom the system does not know
    with pytest.raises(NoKernelError, match=r"cannot be written \(.*home.*XDG_CACHE_HOME names another place"):
        pages.load()


@compiled
def test_what_is_no_library_and_cannot_be_taken_away_is_said(tmp_path: Path) -> None:
    source = Path(pages.__file__).with_name("paged.cc")
    name = f"paged-{native._name(source, native._compiler())}.so"
    (tmp_path / "dr_jax" / "kernels" / name).mkdir(parents=True)
    with pytest.raises(NoKernelError, match=r"paged\.cc cannot be loaded"):
        pages.load()


def test_the_compiler_may_be_named_with_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "sh -c")
    assert native._compiler() == [shutil.which("sh"), "-c"]


@compiled
@pytest.mark.skipif("avx512f" not in native._processor(), reason="the processor has vectors of one length only")
def test_shorter_vectors_find_the_same(tmp_path: Path) -> None:
    compiler = " ".join([os.environ.get("CXX") or native._compiler()[0], "-mno-avx512f"])
    environment = {**os.environ, "CXX": compiler, "XDG_CACHE_HOME": str(tmp_path)}
    tests = [str(Path(__file__).with_name("test_cpu.py")), str(Path(__file__).parents[1] / "engine" / "test_cpu.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert told.returncode == 0, told.stdout[-2000:]
    assert "skipped" not in told.stdout
    assert len(list((tmp_path / "dr_jax" / "kernels").iterdir())) == 2
