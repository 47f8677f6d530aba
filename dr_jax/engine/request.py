"""One request while the engine works on it: plain Python, changed by the engine's thread only.

In:    prompt ids, how to sample, a key; what was drawn elsewhere already, if it goes on here
Out:   `Sampled` once the last id was drawn
Holds: ids, log-probabilities and versions grow together; what was drawn is kept when the pages are taken away
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dr_jax.base.errors import DrJaxError
from dr_jax.engine.pages import Lease
from dr_jax.tokens.policy import Begun, RequestKey, Sampled, Sampling


def key_data(key: RequestKey) -> np.ndarray:
    """Turn a request's key into the two words of a JAX key: the same on every machine, in every process, for ever."""
    fields = json.dumps(dataclasses.astuple(key), separators=(",", ":"))
    return np.frombuffer(hashlib.blake2b(fields.encode(), digest_size=8).digest(), dtype=">u4").astype(np.uint32)


@dataclass(eq=False, slots=True)
class Request:
    """A request and how far it is.

    Args:
        prompt: ids that it came with.
        sampling: how its ids are drawn.
        key: its two words of randomness.
        deliver: called once, with what was drawn or with why nothing was.
        begun: drawn before it came here; the ids that follow are drawn as if it had not moved.
        told: called with what was drawn, as it is; None when nobody wants to know before the end.
        ids: prompt and what was drawn so far.
        logprobs: one per drawn id.
        versions: of the weights, one per drawn id.
        number: order of arrival.
        lease: its pages while it runs.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    key: np.ndarray
    deliver: Callable[[Sampled | DrJaxError], None]
    begun: Begun = field(default_factory=Begun)
    told: Callable[[Begun], None] | None = None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    number: int = 0
    lease: Lease | None = None

    def __post_init__(self) -> None:
        self.ids = [*self.prompt, *self.begun.ids]
        self.logprobs, self.versions = list(self.begun.logprobs), list(self.begun.versions)

    @property
    def drawn(self) -> int:
        """How many ids were drawn."""
        return len(self.logprobs)

    @property
    def left(self) -> int:
        """How many ids may still be drawn."""
        return self.sampling.max_new_tokens - self.drawn

    @property
    def cached(self) -> int:
        """How many of its ids have their keys and values in pages."""
        return self.lease.cached if self.lease is not None else 0

    @property
    def pending(self) -> int:
        """How many of its ids must be computed before the next one can be drawn; at least 1."""
        return len(self.ids) - self.cached

    @property
    def finished(self) -> bool:
        """Whether nothing more will be drawn."""
        return self.drawn > 0 and (self.left == 0 or self.ids[-1] in self.sampling.stop_ids)

    def append(self, ids: Sequence[int], logprobs: Sequence[float], version: int) -> None:
        """Add ids that weights of this version drew."""
        self.ids.extend(ids)
        self.logprobs.extend(logprobs)
        self.versions.extend([version] * len(ids))
        if self.told is not None:
            self.told(Begun(tuple(ids), tuple(logprobs), (version,) * len(ids)))

    def result(self) -> Sampled:
        """Return what was drawn."""
        ids = tuple(self.ids[len(self.prompt) :])
        finish = "stop" if ids[-1] in self.sampling.stop_ids else "length"
        return Sampled(ids, tuple(self.logprobs), tuple(self.versions), finish)  # type: ignore[arg-type]
