from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dr_jax.base.config import read, to_tree, validated
from dr_jax.base.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    rate: float = 1.0
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"rate = {self.rate}; more than 0 is needed")


@dataclass(frozen=True)
class Outer:
    steps: int = 3
    inner: Inner = field(default_factory=Inner)


def test_file_then_overrides(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('steps = 5\n[inner]\nrate = 1e-6\nnames = ["a"]\n')
    settings = read(Outer, file, ["inner.names=['x', 'y']", "steps=7"])
    assert settings == Outer(7, Inner(1e-6, ("x", "y")))


def test_a_part_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("steps = 5\nother = 1\n[further]\nrate = 1e-6\n")
    assert read(Outer, file, ["inner.rate=2.0"], part=True) == Outer(5, Inner(2.0))
    for wrong in ("other=2", "inner.rat=2.0"):
        with pytest.raises(ConfigError, match="Unknown setting"):
            read(Outer, file, [wrong], part=True)
    with pytest.raises(ConfigError, match="Unknown setting other"):
        read(Outer, file)


def test_an_override_may_be_a_bare_word() -> None:
    @dataclass(frozen=True)
    class Named:
        name: str = ""

    assert read(Named, None, ["name=../some/path.parquet"]).name == "../some/path.parquet"


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"Unknown setting inner\.rat.*did you mean inner\.rate"):
        read(Outer, None, ["inner.rat=2.0"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("steps=many", "steps = 'many'"),
        ("steps=1.5", "steps = 1.5"),
        ("inner.rate=-1.0", "inner: Value error|inner: rate = -1.0"),
        ("steps", "has no '='"),
        ("steps.more=1", "steps"),
    ],
)
def test_bad_values_name_the_key(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read(Outer, None, [override])


def test_missing_file_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match="no config file"):
        read(Outer, "nowhere.toml")


def test_not_toml(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("steps: 5")
    with pytest.raises(ConfigError, match="not TOML"):
        read(Outer, tmp_path / "a.toml")


def test_saved_settings_read_back() -> None:
    settings = Outer(9, Inner(0.5, ("n",)))
    assert validated(Outer, to_tree(settings)) == settings
