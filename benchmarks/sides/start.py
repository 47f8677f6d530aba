"""A run of one update, timed from its command on; see `benchmarks.start`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax

from dr_jax.base.config import read
from dr_jax.engine.request import Request
from dr_jax.train.loop import train
from dr_jax.train.settings import Settings

_MISS, _HIT = "/jax/compilation_cache/cache_misses", "/jax/compilation_cache/cache_hits"


def main() -> None:
    """Train; print when the first id was drawn and the first episode ended, and how many programs were compiled and loaded."""
    began, config, *overrides = sys.argv[1:]  # seconds since the epoch: of the command, before this interpreter started
    found: dict[str, float] = {}
    counted = {_MISS: 0, _HIT: 0}

    def heard(event: str, **_: Any) -> None:
        if event in counted:
            counted[event] += 1

    def noted(request: Request, ids: list[int], *rest: Any) -> None:
        found.setdefault("token_s", time.time() - float(began))
        append(request, ids, *rest)

    def told(phase: str, index: int, numbers: Mapping[str, Any]) -> None:
        if phase == "evaluating" and index:
            found.setdefault("first_s", time.time() - float(began))

    append, Request.append = Request.append, noted  # what the engine has drawn, as it reaches whoever asked
    jax.monitoring.register_event_listener(heard)
    asyncio.run(train(read(Settings, config, overrides), told=told))
    sys.stdout.write(json.dumps(found | {"compiled": counted[_MISS], "loaded": counted[_HIT]}) + "\n")


if __name__ == "__main__":
    main()
