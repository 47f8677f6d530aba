"""Who reads in a run: the policy as it is, as it was, or another model."""

import dataclasses
from pathlib import Path

from dr_jax.agent.reading import Task
from dr_jax.base.metrics import Metrics
from dr_jax.tokens.policy import RequestKey
from dr_jax.train.actor import load_actor, load_reading_model
from dr_jax.train.plan import memory
from dr_jax.train.run import opened_stage
from dr_jax.train.settings import Settings
from dr_jax.web.page import Page
from dr_jax.web.tape.entry import TapeSettings

PAGE = Page("http://x/p", "p", "Velin was founded by Oren Vash.")
TASK = Task("Who?", "Velin")


def reading(settings: Settings, model: str) -> Settings:
    reader = dataclasses.replace(settings.reader, kind="policy", model=model, max_new_tokens=4)
    engine = dataclasses.replace(settings.engine, max_context=512, slots=2, prefill_rows=(2,))
    return dataclasses.replace(settings, reader=reader, engine=engine)


def test_a_second_engine_is_there_only_where_it_is_needed(settings: Settings, policy_directory: Path) -> None:
    actor = load_actor(settings, Metrics())
    assert load_reading_model(settings, actor, Metrics()) is None
    assert load_reading_model(reading(settings, "self"), actor, Metrics()) is None
    frozen = load_reading_model(reading(settings, "frozen"), actor, Metrics())
    named = load_reading_model(reading(settings, str(policy_directory)), actor, Metrics())
    assert frozen is not None
    assert named is not None
    assert frozen.engine is not actor.engine
    assert frozen.name == named.name  # the same weights, from memory and from their directory
    parts = memory(reading(settings, "frozen"), actor.sizes, frozen.engine.sizes)
    assert (parts["reader_weights"], parts["reader_pages"]) == (parts["engine_weights"], parts["engine_pages"])


async def test_what_the_frozen_copy_reads_is_kept_and_what_the_policy_reads_is_not(settings: Settings, tmp_path: Path) -> None:
    """Neither can be understood, with fresh weights: what is told in its place is played back, where it was kept."""
    counted = {}
    for mode, model in (("record", "frozen"), ("replay", "frozen"), ("record", "self"), ("replay", "self")):
        tape = TapeSettings(mode, str(tmp_path / "tape.sqlite"))
        chosen, metrics = reading(settings, model), Metrics()
        chosen = dataclasses.replace(chosen, web=dataclasses.replace(chosen.web, tape=tape))
        async with opened_stage(chosen, metrics, lambda *_: None) as (stage, _):
            reader = await stage._reader((await stage.place("train")).web, stage.actor.engine)
            for sibling in range(3):
                await reader.read(PAGE, TASK, RequestKey(0, "q", sibling, 0))
        counted[mode, model] = metrics.drain()
    assert all(one["reader/asked"] == 3 for one in counted.values())
    read = {name: one.get("reader/read", 0) for name, one in counted.items()}
    assert read == {("record", "frozen"): 1, ("replay", "frozen"): 0, ("record", "self"): 1, ("replay", "self"): 1}
    assert counted["record", "frozen"]["reader/engine/decode_tokens"] > 0
    assert "engine/decode_tokens" not in counted["record", "frozen"]
    assert counted["record", "self"]["engine/decode_tokens"] > 0
