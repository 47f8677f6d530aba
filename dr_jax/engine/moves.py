"""What is done to whole pages before anything is computed: plain numbers, in order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy a page of the pool to another one."""

    page: int
    to: int


@dataclass(frozen=True, slots=True)
class Park:
    """Copy a page of the pool to a place in host memory."""

    page: int
    place: int


@dataclass(frozen=True, slots=True)
class Fetch:
    """Copy what is at a place in host memory to a page of the pool."""

    place: int
    page: int


Move = Copy | Park | Fetch
