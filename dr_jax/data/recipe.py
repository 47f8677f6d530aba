"""What a training set is made of: the settings of `dr-jax data build`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import ConfigDict

from dr_jax.data.filters.contamination import ContaminationSettings
from dr_jax.data.filters.leakage import LeakageSettings
from dr_jax.data.filters.quality import QualitySettings
from dr_jax.data.filters.wording import WordingSettings
from dr_jax.data.write import Layout


@dataclass(frozen=True, slots=True)
class Part:
    """One source of the mixture.

    Args:
        files: places of its questions: paths, patterns, `hub:owner/name/file@revision`, `tfds:name:split`.
        format: of all of them; "" recognises each by its first row.
        ratio: its share, relative to the other parts'.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    files: tuple[str, ...]
    format: str = ""
    ratio: float = 1.0

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("files is empty; at least one place is needed")
        if not (math.isfinite(self.ratio) and self.ratio > 0):
            raise ValueError(f"ratio = {self.ratio}; a number above 0 is needed")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """An evaluation set that nothing may be trained on.

    Args:
        files: places of its questions, as in `Part`.
        format: of all of them; "" recognises each by its first row.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    files: tuple[str, ...]
    format: str = ""

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("files is empty; at least one place is needed")


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training set.

    Args:
        name: its directory below `out`.
        seed: decides which questions are drawn and in which order they stand.
        size: questions to train on.
        dev: questions to watch training with, of the same mixture; none of them is near to one that is trained on.
        when_short: a part that has too few questions left stops the build, or gives fewer.
        layout: of the parquet files: `own`, or `verl`.
        mixture: parts by the name that their questions get as source.
        held_out: evaluation sets by name.
    """

    name: str = "questions"
    out: str = "datasets"
    seed: int = 0
    size: int = 80_000
    dev: int = 0
    when_short: Literal["stop", "fewer"] = "stop"
    layout: Layout = "own"
    mixture: dict[str, Part] = field(default_factory=dict)
    held_out: dict[str, HeldOut] = field(default_factory=dict)
    wording: WordingSettings = field(default_factory=WordingSettings)
    leakage: LeakageSettings = field(default_factory=LeakageSettings)
    quality: QualitySettings = field(default_factory=QualitySettings)
    contamination: ContaminationSettings = field(default_factory=ContaminationSettings)

    def __post_init__(self) -> None:
        if self.size < 1 or self.dev < 0:
            raise ValueError(f"size = {self.size}, dev = {self.dev}; at least 1 and 0 or more are needed")
        if not self.mixture:
            raise ValueError("mixture is empty; at least one [mixture.NAME] with files is needed")
        if "dev" in self.held_out:
            raise ValueError("held_out.dev: the name belongs to the dev questions that are drawn; another one is needed")


def quotas(total: int, recipe: Recipe) -> dict[str, int]:
    """Share a number of questions out by ratio; what rounding leaves goes to the largest remainders, the first first."""
    whole = sum(part.ratio for part in recipe.mixture.values())
    exact = {name: total * part.ratio / whole for name, part in recipe.mixture.items()}
    shares = {name: math.floor(share) for name, share in exact.items()}
    left = sorted(exact, key=lambda name: shares[name] - exact[name])[: total - sum(shares.values())]
    return {name: share + (name in left) for name, share in shares.items()}
