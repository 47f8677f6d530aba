"""Directories as runs leave them, of any size, with episodes that the littleweb policy's tokenizer has spelled."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dr_jax.data.question import Question
from dr_jax.rollout.record import EpisodeWriter
from dr_jax.tokens.trajectory import Author, Episode, Outcome, Segment, ToolEvent, Trajectory, world
from dr_jax.train.report import Report, write_json

POLICY = Path(__file__).parents[2] / "data" / "littleweb_policy"
TOKENIZER = Tokenizer.from_file(str(POLICY / "tokenizer.json"))
HOSTILE = "</script><img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"


def decode(ids: Any) -> str:
    return TOKENIZER.decode(list(ids), skip_special_tokens=False)


def encode(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(text, add_special_tokens=False).ids)


def spoken(text: str, version: int, rng: random.Random) -> Segment:
    ids = encode(text)
    return Segment(Author.POLICY, ids, tuple(-(rng.random() ** 8) * 4 for _ in ids), (version,) * len(ids))


def attempt(number: int, *, group: int, sibling: int, step: int, page: str = "") -> tuple[Episode, Question]:
    """One episode of a search, a page and an answer; every third answer is right, one in eight is not well formed."""
    rng = random.Random(number)
    question = Question(
        f"q{group}", f"Who is the rector of Duvon {group}?", (f"Tepol {group}",), "littleweb", hops=1 + group % 3
    )
    right, broken = number % 3 == 0, number % 8 == 7
    address = f"http://atlas.littleweb/Duvon-{group}"
    found = page or f"Duvon {group} is a university. " * 12 + f"The rector of Duvon {group} is Tepol {group}."
    calls = (
        ToolEvent(0, "web_search", {"query": [f"Duvon {group} rector"]}, json.dumps([{"url": address}]), seconds=0.25),
        ToolEvent(
            1, "browse_webpage", {"url_list": [address]}, found, error="timeout" if number % 10 == 0 else "", seconds=0.5
        ),
    )
    said = f"Tepol {group}" if right else f"Tepol {group + 1}"
    turns = [json.dumps({"name": call.name, "arguments": call.arguments}) for call in calls]
    trajectory = Trajectory((world(encode(f"<|im_start|>user\n{question.text}<|im_end|>\n")),))
    for turn, call in zip(turns, calls, strict=True):
        trajectory = trajectory.append(spoken(f"<think>Duvon</think><tool_call>{turn}</tool_call><|im_end|>", step - 1, rng))
        trajectory = trajectory.append(world(encode(f"\n<|im_start|>tool\n{call.observation}<|im_end|>\n")))
    trajectory = trajectory.append(spoken(f"<think>so</think><answer>{said}</answer><|im_end|>", step - 1, rng))
    episode = Episode(
        f"q{group}.{sibling}",
        question.id,
        (trajectory,),
        Outcome.MALFORMED if broken else Outcome.ANSWERED,
        answer=None if broken else said,
        tools=calls,
        seconds={"policy": 3.0, "world": 1.0, "all": 4.0},
    )
    return episode.rewarded({"f1": -1.0 if broken else 1.0 if right else 0.5}), question


def evaluation(f1: float, calls: float) -> dict[str, Any]:
    row = {
        "n": 8,
        "f1": f1,
        "em": f1,
        "ci95": [f1 - 0.1, f1 + 0.1],
        "world_failed": 0,
        "tool_calls": calls,
        "outcomes": {"answered": 8},
    }
    return {**row, "by_source": {"littleweb": row}, "by_hops": {"1 hop": row, "2 hops": row}}


def numbers(step: int) -> dict[str, float]:
    """The metrics of an update that took ten seconds."""
    return {
        "rollout/reward": step / 10,
        "rollout/f1": step / 10,
        "rollout/tool_calls": 2.0,
        "rollout/turns": 3.0,
        "rollout/tokens": 300.0,
        "outcome/answered": 0.75,
        "update/mismatch_max": 1e-6,
        "update/mismatch_mean": 1e-8,
        "engine/decode_s_mean": 0.5,
        "engine/decode_s_n": 10.0,
        "engine/prefill_s_mean": 0.1,
        "engine/prefill_s_n": 10.0,
        "engine/prefix_hit_tokens": 300.0,
        "engine/prefill_tokens": 100.0,
        "tools/web_search_s_n": 20.0,
        "tools/browse_webpage_s_n": 20.0,
        "tools/browse_webpage_errors": 5.0,
        "web/search_n": 20.0,
        "web/query_n": 5.0,
        "wall_s": 10.0 * step,
    }


def make_run(
    directory: Path, *, updates: int = 2, groups: int = 2, siblings: int = 4, page: str = "", done: bool = True
) -> Path:
    """Write the directory of a run; `page` is what the first episode's page says."""
    report, number = Report(directory), 0
    write_json(
        directory / "config.json",
        {"steps": updates, "seed": 0, "model": {"load": str(POLICY)}, "reward": {"parts": {"f1": 1.0}}},
    )
    with EpisodeWriter(directory / "episodes.jsonl", decode) as writer:
        for step in range(1, updates + 1):
            for group in range((step - 1) * groups, step * groups):
                for sibling in range(siblings):
                    facts = attempt(number, group=group, sibling=sibling, step=step, page=page if number == 0 else "")
                    writer.write(*facts, step=step)
                    number += 1
            report.step(step, numbers(step))
    if done:
        evaluations = {"before": evaluation(0.25, 1.0), "after": evaluation(0.5, 2.0)}
        write_json(
            directory / "summary.json",
            {"name": directory.name, "eval": evaluations, "steps": updates, "wall_s": 10.0 * updates},
        )
    return directory
