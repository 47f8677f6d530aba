"""Everything that an evaluation can be told: what a run can, and the tables of what only an evaluation has."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from dr_jax.agent.endpoint import EndpointSettings
from dr_jax.base.errors import ConfigError
from dr_jax.evaluate.server import ServerSettings
from dr_jax.evaluate.ways import WAYS, Way, WaySettings
from dr_jax.train.settings import Settings

_NAME = re.compile(r"[\w@+-]+")  # of a directory, and no dot: dots stand between names
LITTLEWEB = "littleweb"


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """How the judge is asked that `--judge` names.

    Args:
        tries: at one answer, until the reply can be read; after that it is counted as unreadable, never as wrong.
        max_new_tokens: of one reply.
        seconds: deadline of one reply.
        in_flight: answers that are judged at once.
        endpoint: limits, prices, the key's variable, and the `model` on the server, where the judge is one; `url` is that of
            the command line.
    """

    tries: int = 3
    max_new_tokens: int = 256
    seconds: float = 300.0
    in_flight: int = 16
    endpoint: EndpointSettings = field(default_factory=EndpointSettings)

    def __post_init__(self) -> None:
        if min(self.tries, self.max_new_tokens, self.in_flight) < 1 or self.seconds <= 0:
            raise ValueError(f"{self}: tries, max_new_tokens, in_flight of at least 1 and seconds above 0 are needed")


@dataclass(frozen=True, slots=True)
class EvaluationSettings(Settings):
    """One evaluation: the settings of a run, and how servers, judges and baselines are asked."""

    server: ServerSettings = field(default_factory=ServerSettings)
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    ways: WaySettings = field(default_factory=WaySettings)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is evaluated: every model on every set in every way.

    Args:
        models: by name: a model as in `model.load`, a run's directory, or the address of a server.
        sets: by name: a question file as in `data.path`, or `littleweb`.
        ways: how questions are attempted.
        samples: attempts at each question.
        judge: a model or the address of a server; "" asks none.
        out: the directory.
    """

    models: dict[str, str]
    sets: dict[str, str]
    ways: tuple[Way, ...] = ("agent",)
    samples: int = 1
    judge: str = ""
    out: Path = Path("runs/eval")

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"--samples {self.samples}", needed="at least 1")
        strange = [way for way in self.ways if way not in WAYS]
        if strange:
            raise ConfigError(f"There is no way {strange[0]!r}", needed=f"one of {', '.join(WAYS)}", fix="correct --way")


def named(options: list[str], option: str, default: dict[str, str]) -> dict[str, str]:
    """Read `NAME=WHAT` options.

    Args:
        options: as they were given.
        option: what it is called.
        default: when there are none.

    Raises:
        ConfigError: one has another form, or two have the same name.
    """
    found: dict[str, str] = {}
    for one in options:
        name, equals, what = one.partition("=")
        if not equals or not _NAME.fullmatch(name) or not what.strip():
            raise ConfigError(
                f"{option} {one!r} is no NAME={'PATH|URL' if option == '--model' else 'FILE'}",
                needed="a name of letters, digits, _, @, + and -, an equals sign, and what it names",
                fix=f"write it as {option} mine={what or name or '…'}",
            )
        if name in found:
            raise ConfigError(f"{option} names two things {name!r}", needed="different names")
        found[name] = what.strip()
    return found or default
