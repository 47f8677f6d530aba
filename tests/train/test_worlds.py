"""A run's worlds, reached directly or through a gateway."""

from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from dr_jax.base.errors import UserError
from dr_jax.base.metrics import Metrics
from dr_jax.train.run import opened_stage
from dr_jax.train.settings import Settings
from dr_jax.train.worlds import LittlewebSettings, way_out, world_name
from dr_jax.web.gateway.server import serve_gateway
from dr_jax.web.page import Page
from dr_jax.web.search.settings import ProviderSettings, ProvidersSettings
from dr_jax.web.settings import WebSettings
from dr_jax.web.tape.entry import TapeSettings
from dr_jax.web.web import Web


def test_a_world_is_named_by_what_is_found_in_it() -> None:
    little = LittlewebSettings(entities=150, eval_seed=3).world("eval")
    assert world_name(WebSettings(), little) == "littleweb (eval, seed 3, 150 entities)"
    brave = ProvidersSettings(brave=ProviderSettings(parameters={"country": "de"}))
    assert world_name(WebSettings(search=("brave", "serper"), provider=brave), little) == "brave[country=de],serper"


async def test_a_stage_acts_through_gateways_as_it_does_alone(settings: Settings) -> None:
    """Both worlds of littleweb: the same questions, hits and pages; JAX's side knows nothing of it."""
    async with AsyncExitStack() as stack:
        webs = {}
        for split in ("train", "eval"):
            little = settings.littleweb.world(split)
            web = await stack.enter_async_context(way_out(settings.web, little))
            assert isinstance(web, Web)
            webs[world_name(settings.web, little)] = web
        one = await stack.enter_async_context(serve_gateway(webs, settings.web.gateway, Metrics()))
        far = replace(settings, web=replace(settings.web, gateways=(one.url,)))
        (stage, _), (alone, _) = [
            await stack.enter_async_context(opened_stage(which, Metrics(), lambda *_: None)) for which in (far, settings)
        ]
        for split in ("train", "eval"):
            here, there = await alone.place(split), await stage.place(split)
            assert here.drawn == there.drawn
            await there.web.healthy()
            query = here.drawn[0].question.text
            hits = await there.web.search(query)
            assert hits == await here.web.search(query)
            assert isinstance(hits, tuple)
            page = await there.web.open(hits[0].url)
            assert page == await here.web.open(hits[0].url)
            assert isinstance(page, Page)
        elsewhere = replace(far, littleweb=replace(far.littleweb, eval_seed=7))
        stage = await stack.enter_async_context(opened_stage(elsewhere, Metrics(), lambda *_: None))
        with pytest.raises(UserError, match=r"Needed: 'littleweb \(eval, seed 7, 150 entities\)'"):
            await stage[0].place("eval")


async def test_worlds_that_share_a_tape_are_told_apart(tmp_path: Path) -> None:
    """They have the same addresses: what one of them says there must not be remembered as what another does."""
    web = WebSettings(tape=TapeSettings("record", str(tmp_path / "tape")))
    little, address = LittlewebSettings(entities=150), "http://directory.littleweb/city/1"
    said = []
    for split in ("train", "eval", "train"):
        async with way_out(web, little.world(split)) as way:
            said.append((await way.search("the capital"), await way.open(address)))
    train, held_out, again = said
    assert train == again
    assert train[0] != held_out[0]
    assert train[1] != held_out[1]
