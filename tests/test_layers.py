"""The map, held against the code: every import points down, and the host stem never meets JAX."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dr_jax

ROOT = Path(dr_jax.__file__).parent
BELOW = {
    "base": set(),
    "tokens": {"base"},
    "data": {"base", "tokens"},
    "rewards": {"base", "tokens", "data"},
    "web": {"base", "tokens", "data"},
    "littleweb": {"base", "tokens", "data"},
    "agent": {"base", "tokens", "data", "rewards", "web", "littleweb"},
    "rollout": {"base", "tokens", "data", "rewards", "web", "littleweb", "agent"},
    "sharding": {"base", "tokens"},
    "model": {"base", "tokens", "sharding"},
    "engine": {"base", "tokens", "sharding", "model"},
    "learn": {"base", "tokens", "sharding", "model"},
}
BELOW["train"] = set(BELOW)
BELOW["report"] = {"base", "tokens", "rewards", "rollout", "train"}
BELOW["evaluate"] = {*BELOW["train"], "train"}
BELOW["cli"] = set(BELOW)
HOST = ("data", "rewards", "web", "littleweb", "agent", "rollout")
DEVICE = ("sharding", "model", "engine", "learn")
NETWORK = {"aiohttp", "google", "gcsfs", "requests", "httpx", "urllib3", "socket", "ssl"}
ARRAYS = {"jax", "jaxlib", "flax", "optax", "orbax"}


def imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "dr_jax"}
    return found


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def test_every_package_has_its_place() -> None:
    assert {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()} == set(BELOW)


@pytest.mark.parametrize("package", sorted(BELOW))
def test_imports_point_down(package: str) -> None:
    for file in modules(package):
        used = {name.split(".")[1] for name in imports(file) if name.startswith("dr_jax.")}
        assert used <= BELOW[package] | {package, "__version__"}, f"{file.relative_to(ROOT)} imports {used - BELOW[package]}"


@pytest.mark.parametrize("package", HOST)
def test_the_host_stem_does_not_import_jax(package: str) -> None:
    for file in modules(package):
        assert not {name.split(".")[0] for name in imports(file)} & ARRAYS, file


@pytest.mark.parametrize("package", DEVICE)
def test_the_device_stem_does_not_import_a_network_client(package: str) -> None:
    for file in modules(package):
        assert not {name.split(".")[0] for name in imports(file)} & NETWORK, file


def test_jax_is_not_loaded_behind_the_host_stem() -> None:
    names = [
        ".".join(("dr_jax", *file.relative_to(ROOT).with_suffix("").parts))
        for package in ("base", "tokens", *HOST)
        for file in modules(package)
        if file.name != "__init__.py"
    ]
    code = f"import sys\nfor name in {names!r}: __import__(name)\nassert 'jax' not in sys.modules, 'jax was imported'"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
