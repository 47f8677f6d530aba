"""Open a page like any other and then a bomb, in a process of its own, and say how much memory the second took.

In:    the port of a site on loopback
Out:   one line of JSON: how it ended, and by how many bytes this process and its page reader grew at their peak
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from dr_jax.base.metrics import Metrics
from dr_jax.web.guard import AllowedHost
from dr_jax.web.page import Page
from dr_jax.web.settings import WebSettings
from dr_jax.web.web import Web
from dr_jax.web.workers import ExtractSettings


def _memory(pid: int | str, name: str) -> int:
    """Bytes: VmRSS, what a process uses now, or VmHWM, the most that it has used since `_forget`."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def _forget(pid: int | str) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # see proc(5)


async def _main(port: int) -> None:
    metrics = Metrics()
    settings = WebSettings(extract=ExtractSettings(workers=1))
    async with Web(settings, allow=[AllowedHost("here", "127.0.0.1", port)], metrics=metrics) as web:
        calm = await web.open("http://w.here/calm")
        assert isinstance(calm, Page), calm
        (worker,) = web._extractors.pids
        before = {pid: _memory(pid, "VmRSS") for pid in ("self", worker)}
        for pid in before:
            _forget(pid)
        metrics.drain()
        found = await web.open("http://w.here/bomb")
        told = {"ended": "page" if isinstance(found, Page) else found.kind, "wire": metrics.drain()["web/bytes"]}
        told["truncated"] = isinstance(found, Page) and found.truncated
        told["parent"] = _memory("self", "VmHWM") - before["self"]
        if worker in web._extractors.pids:  # it lives
            told["worker"] = _memory(worker, "VmHWM") - before[worker]
            told["worker_peak"] = _memory(worker, "VmHWM")
        print(json.dumps(told))


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
