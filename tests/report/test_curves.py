import pytest

from dr_jax.report.curves import CHARTS, PerUpdate, lines
from tests.report.runs import evaluation, numbers


def rows(count: int) -> list[dict[str, float]]:
    return [{"step": step, **numbers(step)} for step in range(1, count + 1)]


def spoken(step: int, versions: list[int], hops: int = 0) -> dict[str, object]:
    segments = [{"author": "world", "ids": [1]}, {"author": "policy", "ids": versions, "versions": versions}]
    seconds = {"policy": 3.0, "world": 1.0, "all": 4.0}
    return {"step": step, "seconds": seconds, "tools": [{}] * hops, "trajectories": [{"segments": segments}], "hops": hops}


def test_shares_are_of_what_they_say() -> None:
    found = lines(rows(2), {}, {})
    assert found["errors"] == {"web search": [[1, 0.0], [2, 0.0]], "browse webpage": [[1, 0.25], [2, 0.25]]}
    assert found["cache"] == {"tokens of prompts": [[1, 0.75], [2, 0.75]], "searches": [[1, 0.75], [2, 0.75]]}
    times = {name: points[1][1] for name, points in found["update_time"].items()}
    assert times == pytest.approx({"decoding": 0.5, "reading prompts": 0.1, "the update, and waiting": 0.4})
    assert found["seconds"]["seconds"] == [[1, 10.0], [2, 10.0]]


def test_what_a_run_does_not_know_is_no_line() -> None:
    assert lines([], {}, {}) == {}
    assert set(lines([{"step": 1, "rollout/reward": 0.5}], {}, {})) == {"reward"}
    assert lines([{"step": 1, "wall_s": 0.0, "rollout/reward": 1.0}], {}, {})["reward"] == {"reward": [[1, 1.0]]}


def test_parts_of_the_reward_are_lines_of_their_own() -> None:
    row = {
        "step": 1,
        "rollout/reward": 1.5,
        "rollout/f1": 1.0,
        "rollout/judge": 0.5,
        "rollout/tool_calls": 2.0,
        "rollout/lost_groups": 1.0,
    }
    assert lines([row], {}, {})["f1"] == {"f1 part": [[1, 1.0]], "judge part": [[1, 0.5]]}


def test_evaluations_stand_at_the_updates_they_were_made_after() -> None:
    found = lines(rows(3), {}, {"before": evaluation(0.25, 1.0), "after": evaluation(0.5, 2.0)})
    assert found["f1"]["held out"] == [[0, 0.25, 0.15, 0.35], [3, 0.5, 0.4, 0.6]]
    assert found["calls"]["tool calls, held out"] == [[0, 1.0], [3, 2.0]]
    assert found["f1_hops"]["2 hops"] == [[0, 0.25, 0.15, 0.35], [3, 0.5, 0.4, 0.6]]
    assert found["calls_hops"]["1 hop, held out"] == [[0, 1.0], [3, 2.0]]


def test_episodes_tell_staleness_hops_and_time() -> None:
    updates = {step: PerUpdate() for step in (1, 2)}
    updates[1].add(spoken(1, [0, 0], hops=1))
    updates[2].add(spoken(2, [1, 1, 1, 0], hops=1))  # one token in four is one version old
    updates[2].add(spoken(2, [1, 1, 1, 1], hops=3))
    found = lines(rows(2), updates, {})
    assert found["staleness"] == {"mean": [[1, 0.0], [2, 0.125]], "oldest token": [[1, 0], [2, 1]]}
    assert found["calls_hops"] == {"1 hop": [[1, 1.0], [2, 1.0]], "3 hops": [[2, 3.0]]}
    assert found["length"]["the policy's"] == [[1, 2.0], [2, 4.0]]
    assert found["episode_time"] == {"policy": [[1, 0.75], [2, 0.75]], "world": [[1, 0.25], [2, 0.25]]}


def test_every_line_belongs_to_a_chart() -> None:
    updates = {1: PerUpdate()}
    updates[1].add(spoken(1, [0], hops=2))
    found = lines(rows(1), updates, {"before": evaluation(0.25, 1.0)})
    assert set(found) <= {chart.id for chart in CHARTS}
    assert len({chart.id for chart in CHARTS}) == len(CHARTS)
