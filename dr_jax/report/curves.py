"""Turn what a run has measured into lines to draw.

In:    the rows of `metrics.jsonl`, sums over the episodes of each update, the evaluations of `summary.json`
Out:   by chart and line, points `[update, value]`, or `[update, value, low, high]` where there is an interval
Holds: a line that a run does not know is left out, never drawn as zero
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Row = Mapping[str, Any]
Lines = dict[str, list[list[float]]]


class Chart(NamedTuple):
    """One chart: `form` is `number`, `share` (drawn as per cent) or `log`."""

    id: str
    group: str
    title: str
    about: str
    form: str = "number"


_LEARNS, _SOUND, _WORLD = "What it learns", "Whether it is sound", "The web and the machine"
CHARTS = (
    Chart("reward", _LEARNS, "Reward", "mean of the episodes of an update that count"),
    Chart("f1", _LEARNS, "F1", "in training as a part of the reward; held out with its 95 % interval"),
    Chart("calls", _LEARNS, "Tool calls per episode", "and how often it spoke"),
    Chart("calls_hops", _LEARNS, "Tool calls by hops", "how many lookups a question needs; held out before and after"),
    Chart("f1_hops", _LEARNS, "F1 by hops", "held out before and after, with the 95 % intervals"),
    Chart("length", _LEARNS, "Tokens per episode", "all of its context, and what the policy wrote of it"),
    Chart("outcome", _LEARNS, "How episodes end", "share of the episodes of an update", "share"),
    Chart("mismatch", _SOUND, "Mismatch", "log-probability of a token on-policy: engine against trainer", "log"),
    Chart("staleness", _SOUND, "Staleness", "how many versions older the weights were that drew a token"),
    Chart("loss", _SOUND, "Loss", "what the update minimised"),
    Chart("entropy", _SOUND, "Entropy", "of the distribution that a token was drawn from, nats"),
    Chart("gradient", _SOUND, "Gradient norm", "before clipping"),
    Chart("clipped", _SOUND, "Clipped tokens", "share of the trained tokens", "share"),
    Chart("errors", _WORLD, "Tool errors", "share of the calls that the policy was shown an error for", "share"),
    Chart("cache", _WORLD, "Cache hits", "what was asked for and did not have to be done again", "share"),
    Chart("update_time", _WORLD, "Where an update's time goes", "share of the seconds on the clock", "share"),
    Chart("episode_time", _WORLD, "Where an episode's time goes", "share of its seconds, over all episodes", "share"),
    Chart("seconds", _WORLD, "Seconds per update", "on the clock, evaluations included"),
)


@dataclass(slots=True)
class PerUpdate:
    """Sums over the episodes of one update."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    tokens: int = 0
    age: int = 0
    oldest: int = 0
    policy_tokens: int = 0
    episodes: int = 0
    hops: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

    def add(self, row: Row) -> None:
        """Count one episode."""
        self.episodes += 1
        for name, seconds in row["seconds"].items():
            self.seconds[name] += seconds
        for trajectory in row["trajectories"]:
            for segment in trajectory["segments"]:
                for version in segment.get("versions", ()):
                    age = row["step"] - 1 - version  # update 1 is made with version 0
                    self.age, self.oldest, self.policy_tokens = self.age + age, max(self.oldest, age), self.policy_tokens + 1
        if row.get("hops"):
            self.hops[row["hops"]].append(len(row["tools"]))


def lines(rows: Sequence[Row], updates: Mapping[int, PerUpdate], evaluations: Mapping[str, Any]) -> dict[str, Lines]:
    """Return the lines of every chart that this run knows something for."""
    found: dict[str, Lines] = {
        "reward": {"reward": _line(rows, lambda row: row["rollout/reward"])},
        "f1": _parts(rows),
        "calls": {
            "tool calls": _line(rows, lambda row: row["rollout/tool_calls"]),
            "turns": _line(rows, lambda row: row["rollout/turns"]),
        },
        "length": {
            "all tokens": _line(rows, lambda row: row["rollout/tokens"]),
            "the policy's": [[step, one.policy_tokens / one.episodes] for step, one in sorted(updates.items())],
        },
        "outcome": _named(rows, "outcome/", lambda row, key: row.get(key, 0.0)),
        "mismatch": {
            "largest": _line(rows, lambda row: row["update/mismatch_max"]),
            "mean": _line(rows, lambda row: row["update/mismatch_mean"]),
        },
        "staleness": {
            "mean": [[step, one.age / one.policy_tokens] for step, one in sorted(updates.items()) if one.policy_tokens],
            "oldest token": [[step, one.oldest] for step, one in sorted(updates.items()) if one.policy_tokens],
        },
        "loss": {"loss": _line(rows, lambda row: row["update/loss"])},
        "entropy": {"entropy": _line(rows, lambda row: row["update/entropy_mean"])},
        "gradient": {"norm": _line(rows, lambda row: row["update/gradient_norm"])},
        "clipped": {
            "too likely": _line(rows, lambda row: row["update/clip_high_mean"]),
            "too unlikely": _line(rows, lambda row: row["update/clip_low_mean"]),
        },
        "errors": _tool_errors(rows),
        "cache": _cache(rows),
        **_times(rows, updates),
        "calls_hops": _calls_by_hops(updates),
    }
    _add_evaluations(found, evaluations, rows)
    kept = {chart: {name: line for name, line in one.items() if line} for chart, one in found.items()}
    return {chart: one for chart, one in kept.items() if one}


def _line(rows: Sequence[Row], value: Callable[[Row], float]) -> list[list[float]]:
    """One point per row that has what the value is made of."""
    points = []
    for row in rows:
        try:
            number = value(row)
        except (KeyError, ZeroDivisionError):
            continue
        if math.isfinite(number):
            points.append([row["step"], number])
    return points


def _named(rows: Sequence[Row], prefix: str, value: Callable[[Row, str], float]) -> Lines:
    """One line per metric with this prefix."""
    keys = sorted({key for row in rows for key in row if key.startswith(prefix)})
    return {
        key.removeprefix(prefix).replace("_", " "): _line(rows, lambda row, key=key: value(row, key))  # type: ignore[misc]
        for key in keys
    }


def _parts(rows: Sequence[Row]) -> Lines:
    """The reward's parts: whatever stands under `rollout/` and is none of the counts."""
    counts = {"episodes", "reward", "turns", "tool calls", "tokens", "lost groups", "outage groups", "stale groups"}
    return {
        f"{name} part": line for name, line in _named(rows, "rollout/", lambda row, key: row[key]).items() if name not in counts
    }


def _tool_errors(rows: Sequence[Row]) -> Lines:
    tools = sorted({key[6:-4] for row in rows for key in row if key.startswith("tools/") and key.endswith("_s_n")})
    return {
        tool.replace("_", " "): _line(rows, lambda row, t=tool: row.get(f"tools/{t}_errors", 0.0) / row[f"tools/{t}_s_n"])  # type: ignore[misc]
        for tool in tools
    }


def _cache(rows: Sequence[Row]) -> Lines:
    def prompt(row: Row) -> float:
        return row["engine/prefix_hit_tokens"] / (row["engine/prefix_hit_tokens"] + row.get("engine/prefill_tokens", 0.0))

    return {
        "tokens of prompts": _line(rows, prompt),
        "searches": _line(rows, lambda row: 1 - row.get("web/query_n", 0.0) / row["web/search_n"]),
        "pages": _line(rows, lambda row: 1 - row.get("web/fetch_n", 0.0) / row["web/open_n"]),
        "tape": _line(rows, lambda row: row["web/tape_hits"] / (row.get("web/search_n", 0.0) + row.get("web/open_n", 0.0))),
        "readings": _line(rows, lambda row: row["reader/tape_hits"] / row["reader/asked"]),
    }


def _times(rows: Sequence[Row], updates: Mapping[int, PerUpdate]) -> dict[str, Lines]:
    before = dict(zip((row["step"] for row in rows), [0.0, *(row.get("wall_s", 0.0) for row in rows)], strict=False))

    def whole(row: Row) -> float:
        return row["wall_s"] - before[row["step"]]

    def part(row: Row, name: str) -> float:
        return row.get(f"engine/{name}_s_mean", 0.0) * row.get(f"engine/{name}_s_n", 0.0) / whole(row)

    def episodes(name: str) -> list[list[float]]:
        known = [(step, one.seconds) for step, one in sorted(updates.items()) if one.seconds.get("all")]
        return [[step, seconds.get(name, 0.0) / seconds["all"]] for step, seconds in known]

    return {
        "update_time": {
            "decoding": _line(rows, lambda row: part(row, "decode")),
            "reading prompts": _line(rows, lambda row: part(row, "prefill")),
            "the update, and waiting": _line(rows, lambda row: max(0.0, 1 - part(row, "decode") - part(row, "prefill"))),
        },
        "episode_time": {"policy": episodes("policy"), "world": episodes("world")},
        "seconds": {"seconds": _line(rows, whole)},
    }


def _calls_by_hops(updates: Mapping[int, PerUpdate]) -> Lines:
    found: Lines = defaultdict(list)
    for step, one in sorted(updates.items()):
        for hops, calls in sorted(one.hops.items()):
            found[_hops(hops)].append([step, sum(calls) / len(calls)])
    return dict(sorted(found.items()))


def _hops(count: int) -> str:
    return f"{count} hop{'s' if count > 1 else ''}"


def _add_evaluations(found: dict[str, Lines], evaluations: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Stand the held-out measurements beside the training's, at the updates they were made after."""
    last = max((row["step"] for row in rows), default=0)
    at = [(step, one) for step, name in ((0, "before"), (last, "after")) if (one := evaluations.get(name))]
    if at:
        between = _line(rows, lambda row: row["eval/f1"])
        found["f1"]["held out"] = sorted([*(_f1(step, one) for step, one in at), *between])
        found["calls"]["tool calls, held out"] = [[step, one["tool_calls"]] for step, one in at]
    names = sorted({name for _, one in at for name in one.get("by_hops", {})})
    known = {name: [(step, one["by_hops"][name]) for step, one in at if name in one.get("by_hops", {})] for name in names}
    found["f1_hops"] = {name: [_f1(step, one) for step, one in points] for name, points in known.items()}
    held_out = {f"{name}, held out": [[step, one["tool_calls"]] for step, one in points] for name, points in known.items()}
    found["calls_hops"] = {**found["calls_hops"], **held_out}


def _f1(step: int, row: Mapping[str, Any]) -> list[float]:
    return [step, row["f1"], *row["ci95"]]
