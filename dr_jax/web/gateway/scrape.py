"""Say what was counted, set and timed in the text format of Prometheus (0.0.4).

In:    Metrics that nobody drains, so that its counts are totals
Out:   text: counters, gauges, and summaries with quantiles over the latest values
"""

from __future__ import annotations

import re

import numpy as np

from dr_jax.base.metrics import Metrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NOT_IN_NAME = re.compile(r"[^a-zA-Z0-9_]")
_QUANTILES = (0.5, 0.95, 0.99)
_BOTH_WAYS = ("/queries", "/money")  # given back when a provider did not bill: no counter in Prometheus' sense


def exposition(metrics: Metrics) -> str:
    """Return everything so far."""
    counts, gauges, seen = metrics.snapshot()
    gauges |= {name: counts.pop(name) for name in list(counts) if name.endswith(_BOTH_WAYS)}
    lines: list[str] = []
    for name, value in sorted(counts.items()):
        lines += [f"# TYPE {_shown(name)}_total counter", f"{_shown(name)}_total {value:.15g}"]
    for name, value in sorted(gauges.items()):
        lines += [f"# TYPE {_shown(name)} gauge", f"{_shown(name)} {value:.15g}"]
    for name, one in sorted(seen.items()):
        lines.append(f"# TYPE {_shown(name)} summary")
        values = np.quantile(one.values, _QUANTILES)
        lines += [f'{_shown(name)}{{quantile="{q}"}} {value:.6g}' for q, value in zip(_QUANTILES, values, strict=True)]
        lines += [f"{_shown(name)}_sum {one.total:.9g}", f"{_shown(name)}_count {one.count}"]
    return "\n".join(lines) + "\n"


def _shown(name: str) -> str:
    return "dr_jax_" + _NOT_IN_NAME.sub("_", name)
