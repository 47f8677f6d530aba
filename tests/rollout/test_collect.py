import asyncio
import itertools
import json
from contextlib import aclosing
from pathlib import Path

import pytest

from dr_jax.data.question import Question
from dr_jax.rollout.collect import finished, in_order
from dr_jax.rollout.record import EpisodeWriter, read_episodes
from dr_jax.tokens.trajectory import Author, Episode, Outcome, Segment, ToolEvent, Trajectory, world


async def test_results_come_as_they_end_and_never_more_than_the_limit_run() -> None:
    running = most = 0

    async def work(seconds: float) -> float:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(seconds)
        running -= 1
        return seconds * 2

    found = [pair async for pair in finished([0.2, 0.01, 0.05, 0.03], work, at_once=2)]
    assert found[0] == (0.01, 0.02)
    assert {item for item, _ in found} == {0.2, 0.01, 0.05, 0.03}
    assert most == 2


async def test_leaving_an_endless_collection_ends_every_task() -> None:
    before = asyncio.all_tasks()

    async def work(number: int) -> int:
        await asyncio.sleep(0.01 if number < 3 else 60)
        return number

    async with aclosing(finished(itertools.count(), work, at_once=4)) as stream:
        assert {(await anext(stream))[1] for _ in range(3)} == {0, 1, 2}
    assert asyncio.all_tasks() == before


async def test_an_error_reaches_the_loop_and_ends_the_others() -> None:
    before = asyncio.all_tasks()

    async def work(number: int) -> int:
        if number == 1:
            raise KeyError(number)
        await asyncio.sleep(60)
        return number

    with pytest.raises(KeyError):
        await in_order([0, 1, 2], work, at_once=3)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_in_order_keeps_the_order() -> None:
    async def work(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    told: list[int] = []
    assert await in_order([0.03, 0.0, 0.01], work, at_once=3, done=told.append) == [0.03, 0.0, 0.01]
    assert told == [1, 2, 3]


def test_episodes_are_written_as_lines_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPER_API_KEY", "very-secret-key")
    said = Trajectory((world([1, 2]), Segment(Author.POLICY, (3,), (-0.25,), (7,))))
    event = ToolEvent(0, "web_search", {"query": ["x"]}, "the page says very-secret-key")
    episode = Episode("q.0", "q", (said,), Outcome.ANSWERED, answer="x", tools=(event,)).rewarded({"f1": 1.0})
    path = tmp_path / "episodes.jsonl"
    with EpisodeWriter(path, lambda ids: " ".join(map(str, ids))) as writer:
        writer.write(episode, Question("q", "who?", ("x",)), step=3)
    with path.open("a") as file:
        file.write('{"id": "half')
    (row,) = read_episodes(path)
    assert (row["step"], row["reward"] if "reward" in row else row["rewards"]["f1"], row["answers"]) == (3, 1.0, ["x"])
    segment = row["trajectories"][0]["segments"][1]
    assert segment == {"author": "policy", "text": "3", "ids": [3], "logprobs": [-0.25], "versions": [7]}
    assert "very-secret-key" not in json.dumps(row)
