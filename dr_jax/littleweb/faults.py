"""What goes wrong on purpose, seeded, so that a test of bad weather can be run again.

In:    Faults: rates and a seed; an address, and how often it was asked for
Out:   Fault: what to do to this answer
Holds: a decision is a hash of seed and address, so what someone asks twice is answered twice the same
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

Kind = Literal["none", "error", "hang", "cut", "garbage"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one answer: how it goes wrong, and how many seconds it takes."""

    kind: Kind
    delay_s: float


@dataclass(frozen=True, slots=True)
class Faults:
    """How often what goes wrong.

    Args:
        seed: of all decisions.
        latency_median_s: of a log-normal delay; 0 is none.
        latency_sigma: its spread; 1.15 puts the 95th percentile at 6.6 medians.
        error_rate: share of addresses that answer 503.
        hang_rate: share that never answer.
        cut_rate: share whose body breaks off.
        garbage_rate: share whose body is random bytes.
        per_attempt: whether asking again may end otherwise; by default it does not.
        outage_s: (from, to) seconds after the start during which every answer is 503; equal means never.
    """

    seed: int = 0
    latency_median_s: float = 0.0
    latency_sigma: float = 1.15
    error_rate: float = 0.0
    hang_rate: float = 0.0
    cut_rate: float = 0.0
    garbage_rate: float = 0.0
    per_attempt: bool = False
    outage_s: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        rates = (self.error_rate, self.hang_rate, self.cut_rate, self.garbage_rate)
        if min(rates) < 0 or sum(rates) > 1:
            raise ValueError(f"fault rates {rates}: none may be negative, and together they may not pass 1")
        if self.latency_median_s < 0 or self.latency_sigma < 0:
            raise ValueError(f"latency {self.latency_median_s} s, sigma {self.latency_sigma}: neither may be negative")

    def decide(self, address: str, attempt: int, clock_s: float) -> Fault:
        """Decide what happens to an answer.

        Args:
            address: URL or query.
            attempt: how often it was asked for before.
            clock_s: seconds since the site started.
        """
        start, end = self.outage_s
        if start <= clock_s < end:
            return Fault("error", 0.0)
        key = f"{self.seed}/{address}/{attempt if self.per_attempt else 0}"
        return Fault(self._kind(_uniform(key + "/kind")), self._delay(_uniform(key + "/delay")))

    def _kind(self, draw: float) -> Kind:
        kinds: tuple[tuple[Kind, float], ...] = (
            ("error", self.error_rate),
            ("hang", self.hang_rate),
            ("cut", self.cut_rate),
            ("garbage", self.garbage_rate),
        )
        for kind, rate in kinds:
            if draw < rate:
                return kind
            draw -= rate
        return "none"

    def _delay(self, draw: float) -> float:
        if not self.latency_median_s:
            return 0.0
        return self.latency_median_s * math.exp(self.latency_sigma * NormalDist().inv_cdf(min(max(draw, 1e-9), 1 - 1e-9)))


def _uniform(key: str) -> float:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
