"""One remembered answer, and what is said about remembering: modes, ages, sizes, waiting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from dr_jax.base.errors import UserError

EntryKind = Literal[
    "search",  # the hits of a query
    "fetch",  # the bytes of an address
    "page",  # what was extracted from some bytes
    "reading",  # what a reader made of a page for a question
]
KINDS: tuple[EntryKind, ...] = get_args(EntryKind)


class ReplayMiss(UserError):
    """The tape is replayed and does not hold what was asked for."""


@dataclass(frozen=True, slots=True)
class TapeSettings:
    """What is remembered on disk.

    Args:
        mode: `live` keeps nothing; `record` reads what is fresh and writes what is new; `replay` reads, however old it is, and
            never asks the network. It repeats an outage too; what it cannot repeat is an address or a search that ended
            differently at another time of the same run: it ends as it did at last.
        path: of the file, on a local disk; needed unless `live`.
        search_s: how long a search result is fresh in `record`.
        fetch_s: how long the bytes of an address are.
        page_s: how long an extraction is; it is kept under the bytes that it was made from, so it does not age by default.
        reading_s: how long a reader's result is; it is kept under page, question and reader, and does not age either.
        error_s: how long a lasting error is, whatever its kind.
        max_mb: of the file. Beyond it, what was used longest ago is forgotten: counted, and said once, because a replay of
            this run will miss it; 0 is no limit.
        lease_s: how long another process's claim to be asking is believed after its last sign of life.
        wait_s: how long a process that lives is waited for.
        busy_s: how long a file that another process writes to is waited for.
    """

    mode: Literal["live", "record", "replay"] = "live"
    path: str = ""
    search_s: float = 604_800.0
    fetch_s: float = 86_400.0
    page_s: float | None = None
    reading_s: float | None = None
    error_s: float = 21_600.0
    max_mb: int = 16_384
    lease_s: float = 15.0
    wait_s: float = 120.0
    busy_s: float = 10.0

    def __post_init__(self) -> None:
        if self.mode != "live" and not self.path:
            raise ValueError(f"mode is {self.mode}, which needs the path of a tape")
        for name in ("search_s", "fetch_s", "page_s", "reading_s", "error_s", "max_mb", "busy_s"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ValueError(f"{name} is {value}; it cannot be negative")
        if self.lease_s <= 0 or self.wait_s <= 0:
            raise ValueError(f"lease_s and wait_s are {self.lease_s} and {self.wait_s}; more than 0 is needed")

    def fresh_s(self, kind: EntryKind) -> float | None:
        """How long an answer of a kind is fresh; None is for ever."""
        ages = {"search": self.search_s, "fetch": self.fetch_s, "page": self.page_s, "reading": self.reading_s}
        return ages[kind]


@dataclass(frozen=True, slots=True)
class Entry:
    """One remembered answer.

    Args:
        meta: what JSON can say of it.
        body: its bytes; may be empty.
        error: whether it is a failure, which is fresh for another time.
        passing: whether it is one that asking again may cure: kept for a replay, where nothing better is, and never fresh.
    """

    meta: Mapping[str, Any]
    body: bytes = field(default=b"", repr=False)
    error: bool = False
    passing: bool = False
