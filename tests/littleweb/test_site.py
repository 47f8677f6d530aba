import asyncio
import html
import re
from collections import Counter

import aiohttp
import pytest

from dr_jax.base.errors import UserError
from dr_jax.littleweb.faults import Faults
from dr_jax.littleweb.index import Index
from dr_jax.littleweb.names import draw as draw_name
from dr_jax.littleweb.names import split_of
from dr_jax.littleweb.pages import HOSTS, Pages, main_url
from dr_jax.littleweb.questions import draw
from dr_jax.littleweb.site import Site, serve
from dr_jax.littleweb.world import RELATIONS, LittleWorld, WorldSettings, build


@pytest.fixture(scope="module")
def world() -> LittleWorld:
    return build(WorldSettings(entities=400))


async def get(site: Site, url: str, **options: object) -> aiohttp.ClientResponse:
    """Ask the site for a littleweb URL, as a resolver of ours would."""
    host, path = re.match(r"http://([^/]+)(/.*)", url).groups()  # type: ignore[union-attr]
    async with aiohttp.ClientSession() as session:
        response = await session.get(f"{site.base_url}{path[1:]}", headers={"Host": host}, allow_redirects=False, **options)  # type: ignore[arg-type]
        await response.read()
        return response


def test_a_full_world_has_its_kinds_and_relations() -> None:
    world = build(WorldSettings())
    assert len(world.entities) >= 2000
    assert len(world.by_kind) >= 8
    assert all((entity.id, relation.name) in world.facts for entity in world.entities for relation in RELATIONS[entity.kind])


def test_a_world_is_a_function_of_its_settings(world: LittleWorld) -> None:
    again, other = build(WorldSettings(entities=400)), build(WorldSettings(entities=400, seed=1))
    assert (again.entities, again.facts) == (world.entities, world.facts)
    assert other.entities != world.entities


def test_splits_share_no_name_whatever_the_seeds() -> None:
    train = {one.name for seed in range(6) for one in build(WorldSettings(seed=seed)).entities}
    held_out = {one.name for seed in range(6) for one in build(WorldSettings(seed=seed, split="eval")).entities}
    assert not train & held_out
    assert {split_of(name) for name in train} == {"train"}
    assert draw_name.__module__ == "dr_jax.littleweb.names"


def test_namesakes_are_asked_for_with_their_kind(world: LittleWorld) -> None:
    shared = {name: [one.kind for one in bearers] for name, bearers in world.bearers.items() if len(bearers) > 1}
    assert shared
    assert all(len(set(kinds)) == len(kinds) for kinds in shared.values())
    for puzzle in draw(world, 300):
        start = puzzle.steps[0].subject
        if start in shared:
            assert re.search(rf"the ({'|'.join(shared[start])}) {start}", puzzle.question.text)


def test_questions_are_dealt_over_hops_and_have_one_answer(world: LittleWorld) -> None:
    puzzles = draw(world, 300)
    assert Counter(one.question.hops for one in puzzles) == {1: 100, 2: 100, 3: 100}
    assert len({one.question.id for one in puzzles}) == 300
    for puzzle in puzzles:
        assert puzzle.question.answers[0] == puzzle.steps[-1].value
        assert all(later.subject == earlier.value for earlier, later in zip(puzzle.steps, puzzle.steps[1:], strict=False))


def test_search_finds_the_page_of_each_step(world: LittleWorld) -> None:
    pages = Pages(world)
    index = Index(pages.get(host, path) for host, path in pages.addresses())
    steps = [step for puzzle in draw(world, 300) for step in puzzle.steps]
    links = [[one.link for one in index.search(f"{step.subject} {step.relation_words}", 3)] for step in steps]
    recall = sum(step.url in found for step, found in zip(steps, links, strict=True)) / len(steps)
    assert recall >= 0.97
    told = sum(
        any(step.value in one.snippet for one in index.search(f"{step.subject} {step.relation_words}", 3)) for step in steps
    )
    assert told / len(steps) < 0.05, "snippets give answers away"


@pytest.mark.parametrize("query", ["", '"', "a OR b NOT (", "* ^ near/3", "x" * 10_000, "é\x00\ud7ff", "title:secret"])
def test_any_query_is_safe(world: LittleWorld, query: str) -> None:
    pages = Pages(world)
    Index([pages.get("lists", "/city")]).search(query)


async def test_every_step_can_be_walked_over_http(world: LittleWorld) -> None:
    async with serve(world) as site:
        for puzzle in draw(world, 30):
            for step in puzzle.steps:
                response = await get(site, step.url)
                assert response.status == 200
                assert step.value in (await response.read()).decode(response.charset or "utf-8", "replace")


async def test_every_style_and_charset_is_served(world: LittleWorld) -> None:
    pages = Pages(world)
    seen, charsets = set(), set()
    async with serve(world) as site:
        for host, path in pages.addresses()[::3]:
            response = await get(site, f"http://{host}.littleweb{path}")
            assert response.status == 200
            seen.add(host)
            charsets.add(response.headers["Content-Type"])
            body = await response.read()
            declared = re.search(rb"charset=\W?([\w-]+)", response.headers["Content-Type"].encode() + body)
            assert declared is not None
            assert "naïve" in html.unescape(body.decode(declared.group(1).decode()))
    assert seen == set(HOSTS)
    assert len(charsets) >= 4


async def test_redirects_and_dead_links(world: LittleWorld) -> None:
    entity = world.entities[0]
    slug = main_url(entity).rpartition("/")[2]
    async with serve(world) as site:
        moved = await get(site, f"http://atlas.littleweb/old/{slug}")
        assert (moved.status, moved.headers["Location"]) == (301, main_url(entity))
        for dead in ("http://forum.littleweb/gone-1", "http://directory.littleweb/city/999", "http://nowhere.littleweb/x"):
            assert (await get(site, dead)).status == 404


async def test_search_answers_in_serpers_shape(world: LittleWorld) -> None:
    step = draw(world, 1)[0].steps[0]
    async with serve(world) as site, aiohttp.ClientSession() as session:
        asked = {"q": f"{step.subject} {step.relation_words}", "num": 3}
        response = await session.post(f"{site.base_url}search", json=asked)
        content = await response.json()
        assert content["searchParameters"]["q"] == asked["q"]
        assert len(content["organic"]) == 3
        assert set(content["organic"][0]) == {"title", "link", "snippet", "position"}
        assert (await session.post(f"{site.base_url}search", data="no json")).status == 400


async def test_a_person_can_click_through(world: LittleWorld) -> None:
    async with serve(world) as site, aiohttp.ClientSession() as session:
        home = await (await session.get(site.base_url)).text()
        link = re.search(r"href='(/directory/[^']+)'", home).group(1)  # type: ignore[union-attr]
        listing = await session.get(site.base_url + link[1:])
        assert listing.status == 200
        entity = re.search(r"href='(/(?:atlas|people)/[^']+-[^']+)'", await listing.text()).group(1)  # type: ignore[union-attr]
        assert (await session.get(site.base_url + entity[1:])).status == 200


async def test_a_port_in_use_is_named(world: LittleWorld) -> None:
    async with serve(world) as site:
        with pytest.raises(UserError, match=rf"Port {site.port}"):
            async with serve(world, port=site.port):
                pass


def test_faults_are_decided_by_seed_and_address() -> None:
    faults = Faults(seed=3, error_rate=0.2, hang_rate=0.05, cut_rate=0.05, garbage_rate=0.05, latency_median_s=1.2)
    addresses = [f"http://atlas.littleweb/{n}" for n in range(4000)]
    kinds = Counter(faults.decide(one, 0, 1.0).kind for one in addresses)
    assert kinds["error"] / 4000 == pytest.approx(0.2, abs=0.03)
    assert kinds["hang"] / 4000 == pytest.approx(0.05, abs=0.02)
    assert all(faults.decide(one, 0, 1.0) == faults.decide(one, 7, 2.0) for one in addresses[:100])
    delays = sorted(faults.decide(one, 0, 1.0).delay_s for one in addresses)
    assert delays[2000] == pytest.approx(1.2, rel=0.1)
    assert delays[3800] == pytest.approx(8.0, rel=0.2)
    again = Faults(seed=3, error_rate=0.5, per_attempt=True)
    assert len({again.decide("x", attempt, 1.0).kind for attempt in range(20)}) == 2
    assert Faults(outage_s=(5.0, 9.0)).decide("x", 0, 6.0).kind == "error"


async def test_hanging_cut_and_garbled_answers(world: LittleWorld) -> None:
    url = main_url(world.entities[0])
    async with serve(world, faults=Faults(hang_rate=1.0)) as site:
        with pytest.raises(asyncio.TimeoutError):
            await get(site, url, timeout=aiohttp.ClientTimeout(total=0.3))
    async with serve(world, faults=Faults(cut_rate=1.0)) as site:
        with pytest.raises(aiohttp.ClientPayloadError):
            await get(site, url)
    async with serve(world, faults=Faults(garbage_rate=1.0)) as site:
        first, second = await get(site, url), await get(site, url)
        assert await first.read() == await second.read()
        assert b"<html" not in await first.read()
