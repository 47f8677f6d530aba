"""Building a training set: ratios, filters, splits, hashes, resuming, and what is refused."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dr_jax.base.config import read as read_settings
from dr_jax.base.errors import ConfigError, DataError, DrJaxError
from dr_jax.data import sources
from dr_jax.data.build import Asked, build
from dr_jax.data.filters.contamination import ContaminationSettings
from dr_jax.data.filters.quality import QualitySettings
from dr_jax.data.question import Question
from dr_jax.data.recipe import HeldOut, Part, Recipe, quotas
from tests.data import bulk

ROOT = Path(__file__).parents[2]
VERDICT = {"time_sensitive": False, "harmful": False, "subjective": False, "why": ""}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files for a mixture of 400."""
    directory = tmp_path_factory.mktemp("raw")
    bulk.write(directory, 400)
    return directory


def recipe(raw: Path, out: Path, **changes: Any) -> Recipe:
    ending = {"nq": "jsonl"}
    own = Recipe(
        out=str(out),
        size=400,
        dev=16,
        mixture={
            name: Part((f"{raw}/{name}_train.{ending.get(name, 'json')}",), ratio=share)
            for name, share in (("nq", 1), ("tq", 1), ("hotpotqa", 3), ("2wiki", 3))
        },
        held_out={
            name: HeldOut((f"{raw}/{name}_dev.{ending.get(name, 'json')}",)) for name in ("nq", "tq", "hotpotqa", "2wiki")
        },
    )
    return replace(own, **changes)


async def test_a_mixture_by_ratio_without_what_leaks(raw: Path, tmp_path: Path) -> None:
    made = await build(recipe(raw, tmp_path))
    train, dev = (sources.read(tmp_path / "questions" / f"{split}.parquet") for split in ("train", "dev"))
    assert Counter(question.source for question in train) == {"nq": 50, "tq": 50, "hotpotqa": 150, "2wiki": 150}
    assert Counter(question.source for question in dev) == {"nq": 2, "tq": 2, "hotpotqa": 6, "2wiki": 6}
    assert {question.split for question in train} == {"train"}
    assert not {question.id for question in train} & {question.id for question in dev}
    assert not any("leak" in question.id for question in train + dev)
    assert made["outputs"][0]["rows"] == 400
    counted = sum(count for kinds in made["leakage"].values() for count in kinds.values())
    pairs = [json.loads(line) for line in (tmp_path / "questions" / "leakage.jsonl").read_text().splitlines()]
    assert len(pairs) == counted > 0
    assert {"train", "question", "set", "id", "text", "kind", "similarity"} == set(pairs[0])
    for part in made["parts"].values():
        lost = sum(count for kinds in part["dropped"].values() for count in kinds.values())
        assert part["considered"] == part["drawn"]["train"] + part["drawn"]["dev"] + lost
        assert part["rows"] == part["candidates"] + part["duplicates"] + sum(part["skipped"].values())
    assert not (tmp_path / "questions" / "candidates.sqlite").exists()


async def test_the_same_recipe_gives_the_same_set_and_another_seed_another(raw: Path, tmp_path: Path) -> None:
    first = await build(recipe(raw, tmp_path / "a"))
    again = await build(recipe(raw, tmp_path / "b"))
    resumed = await build(recipe(raw, tmp_path / "a"))
    assert first == again == resumed
    assert (tmp_path / "a/questions/manifest.json").read_bytes() == (tmp_path / "b/questions/manifest.json").read_bytes()
    assert (tmp_path / "a/questions/report.md").read_text() == (tmp_path / "b/questions/report.md").read_text()
    other = await build(recipe(raw, tmp_path / "c", seed=1))
    assert other["outputs"][0]["content_sha256"] != first["outputs"][0]["content_sha256"]


async def test_verls_layout_is_read_back(raw: Path, tmp_path: Path) -> None:
    await build(recipe(raw, tmp_path / "own"))
    await build(recipe(raw, tmp_path / "verl", layout="verl"))
    own, verl = (sources.read(tmp_path / name / "questions" / "train.parquet") for name in ("own", "verl"))
    assert own == verl


class Picky:
    """Finds every third question subjective; gives up after so many."""

    def __init__(self, lives: int = 10_000) -> None:
        self.asked, self._lives = 0, lives

    async def ask(self, prompt: str) -> str:
        """Judge."""
        if self.asked == self._lives:
            raise DrJaxError("the endpoint is gone")
        self.asked += 1
        text = json.loads(prompt.splitlines()[-1])["question"]
        return "hm" if len(text) % 7 == 0 else json.dumps(VERDICT | {"subjective": len(text) % 3 == 0})


class Forgetful:
    """Knows no answer but one."""

    async def sample(self, question: Question, count: int) -> Sequence[str]:
        """Say nothing, or the answer if it begins with a B."""
        return [question.answers[0] if question.answers[0].startswith("B") else "?"] * count


async def test_an_endpoint_that_dies_is_not_asked_twice(raw: Path, tmp_path: Path) -> None:
    wanted = recipe(
        raw,
        tmp_path / "stopped",
        size=80,
        dev=0,
        quality=QualitySettings(on=True, policy="x", at_once=1),
        contamination=ContaminationSettings(on=True, policy="x", samples=2),
    )
    judge = Picky(lives=60)
    with pytest.raises(DrJaxError, match="gone"):
        await build(wanted, Asked(judge, Forgetful(), str.casefold))
    rest = Picky()
    resumed = await build(wanted, Asked(rest, Forgetful(), str.casefold))
    whole = Picky()
    once = await build(replace(wanted, out=str(tmp_path / "whole")), Asked(whole, Forgetful(), str.casefold))
    assert resumed == once
    assert whole.asked <= judge.asked + rest.asked <= whole.asked + 3  # the tries of the one question that it died on
    part = once["parts"]["hotpotqa"]
    assert part["dropped"]["quality"]["subjective"] > 0
    assert part["unsure"]["quality"] > 0
    assert part["dropped"]["contamination"]["known"] > 0
    kept = sources.read(tmp_path / "whole/questions/train.parquet")
    assert {question.meta["search"] for question in kept} == {"needed"}
    report = (tmp_path / "whole/questions/report.md").read_text()
    assert "they are dropped" in report
    assert "unsure, dropped" in report
    reasons = [json.loads(line) for line in (tmp_path / "whole/questions/dropped.jsonl").read_text().splitlines()]
    assert {row["verdict"] for row in reasons} == {"dropped", "unsure"}
    assert all(row["reason"] for row in reasons)


async def test_what_a_judge_is_unsure_of_may_be_kept(raw: Path, tmp_path: Path) -> None:
    wanted = recipe(raw, tmp_path, size=40, dev=0, quality=QualitySettings(on=True, policy="x", unsure="keep"))
    made = await build(wanted, Asked(Picky()))
    for part in made["parts"].values():
        lost = sum(count for kinds in part["dropped"].values() for count in kinds.values())
        assert part["considered"] == part["drawn"]["train"] + lost  # the unsure are among the drawn
    assert made["unsure_are"] == "kept"
    assert sum(part["unsure"].get("quality", 0) for part in made["parts"].values()) > 0


async def test_an_evaluation_set_inside_the_mixture_stops_and_is_listed(raw: Path, tmp_path: Path) -> None:
    mixed = recipe(raw, tmp_path)
    both = replace(mixed.mixture["nq"], files=(*mixed.mixture["nq"].files, f"{raw}/nq_dev.jsonl"))
    with pytest.raises(DataError, match=r"10 of the 10 questions of held_out\.nq are inside the mixture: nq_nq-"):
        await build(replace(mixed, mixture={**mixed.mixture, "nq": both}))
    listed = (tmp_path / "questions" / "inside.jsonl").read_text().splitlines()
    assert len(listed) == 10
    assert set(json.loads(listed[0])) == {"train", "set", "id", "question"}


async def test_one_question_in_two_parts_is_one_question(tmp_path: Path) -> None:
    for name, texts in (
        ("a", ("Who was first here?", "Who was next here?")),
        ("b", ("WHO was first, here", "Who was last here?")),
    ):
        rows = [{"question": text, "answer": "x"} for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = {name: Part((str(tmp_path / f"{name}.jsonl"),)) for name in ("a", "b")}
    made = await build(Recipe(out=str(tmp_path), size=3, when_short="fewer", mixture=parts))
    assert (made["parts"]["b"]["duplicates"], made["outputs"][0]["rows"]) == (1, 3)
    with pytest.raises(DataError, match=r"mixture\.b has 1 questions left for train, of 1 candidates"):
        await build(Recipe(out=str(tmp_path), size=4, mixture=parts))


async def test_nobody_to_ask_and_broken_inputs_are_refused_before_anything_is_written(raw: Path, tmp_path: Path) -> None:
    wanted = recipe(raw, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"quality\.on = true"):
        await build(replace(wanted, quality=QualitySettings(on=True)))
    with pytest.raises(DataError, match="no question file"):
        await build(replace(wanted, held_out={"x": HeldOut(("missing.jsonl",))}))
    with pytest.raises(DataError, match="no format 'hotpot'"):
        await build(replace(wanted, mixture={"x": Part((f"{raw}/nq_dev.jsonl",), format="hotpot")}))
    assert not (tmp_path / "out").exists()


async def test_two_questions_of_one_id_are_refused(tmp_path: Path) -> None:
    rows = [{"id": "a", "question": text, "answer": "x"} for text in ("Who was first?", "Who was last?")]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"line 2: id 'q_a' was used before, by .*line 1"):
        await build(Recipe(out=str(tmp_path), size=1, mixture={"q": Part((str(tmp_path / "q.jsonl"),))}))


def test_quotas_add_up() -> None:
    parts = {name: Part(("x",), ratio=share) for name, share in (("a", 1), ("b", 1), ("c", 3), ("d", 3))}
    assert quotas(80_000, Recipe(mixture=parts)) == {"a": 10_000, "b": 10_000, "c": 30_000, "d": 30_000}
    for total in range(1, 40):
        shares = quotas(total, Recipe(mixture=parts))
        assert sum(shares.values()) == total
        assert all(abs(shares[name] - total * part.ratio / 8) < 1 for name, part in parts.items())


def test_recipes_are_read_strictly(tmp_path: Path) -> None:
    shipped = read_settings(Recipe, ROOT / "configs/data/deepresearcher_80k.toml", ["seed=3", "mixture.nq.ratio=2.0"])
    assert (shipped.size, shipped.seed, shipped.mixture["nq"].ratio, len(shipped.held_out)) == (80_000, 3, 2.0, 7)
    for text, told in (
        ("[mixture.a]\nfile = ['x']", r"mixture\.a\.file|mixture\.a"),
        ("[mixture.a]\nfiles = []", r"mixture\.a.*files is empty"),
        ("[mixture.a]\nfiles = ['x']\nratio = 0", r"ratio = 0"),
        ("size = 0\n[mixture.a]\nfiles = ['x']", "size = 0"),
        ("size = 3", "mixture is empty"),
        ("[mixture.a]\nfiles = ['x']\n[held_out.dev]\nfiles = ['y']", "belongs to the dev questions"),
        ("[mixture.a]\nfiles = ['x']\n[wording]\nlanguage = ['en']", r"wording\.language"),
    ):
        (tmp_path / "r.toml").write_text(text)
        with pytest.raises(ConfigError, match=told):
            read_settings(Recipe, tmp_path / "r.toml")


async def test_the_reference_file_passes_whole(tmp_path: Path) -> None:
    """875 questions of seven sources in verl's layout, fictional here; the counts are the published dev file's."""
    from dr_jax.data.write import write_parquet

    names = ("tq", "popqa", "hotpotqa", "musique", "nq", "Bamboogle", "2wiki")
    questions = [
        Question(f"{name}_{number}", f"Who kept record {number} of {name}?", ("x", "y"), name)
        for name in names
        for number in range(125)
    ]
    write_parquet(tmp_path / "dev.parquet", questions, "verl")
    found = sources.read(tmp_path / "dev.parquet")
    assert len(found) == 875
    assert Counter(question.source for question in found) == dict.fromkeys(names, 125)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_eighty_thousand_twice_the_same(tmp_path: Path) -> None:
    """From files in the published formats, in less than five minutes each on 2 cores; `-s` shows how long it took."""
    bulk.write(tmp_path / "raw", 80_000)
    made, seconds = [], []
    for name in ("a", "b"):
        start = time.perf_counter()
        made.append(await build(recipe(tmp_path / "raw", tmp_path / name, size=80_000, dev=512)))
        seconds.append(time.perf_counter() - start)
    rows = sum(part["rows"] for part in made[0]["parts"].values())
    hashes = [one["outputs"][0]["content_sha256"] for one in made]
    print(f"80,000 of {rows:,} questions in {seconds[0]:.0f} and {seconds[1]:.0f} s; {hashes[0][:16]} and {hashes[1][:16]}")
    assert made[0] == made[1]
    assert [part["drawn"]["train"] for part in made[0]["parts"].values()] == [10_000, 10_000, 30_000, 30_000]
    assert max(seconds) < 300
