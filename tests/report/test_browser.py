"""The page in a real Chromium: quick with 10,000 episodes, quiet, alone, and not to be broken by what the web says."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from dr_jax.report.data import RunData
from dr_jax.report.live import watching
from dr_jax.rollout.record import EpisodeWriter
from dr_jax.train.report import Report
from tests.chromium import NEEDED
from tests.report.browser import QUICKEST, opened, write
from tests.report.runs import HOSTILE, attempt, decode, make_run, numbers

pytestmark = NEEDED


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run of 10,000 episodes, one of which met a page that wants to be a program."""
    place = tmp_path_factory.mktemp("large")
    run = make_run(place / "run", updates=25, groups=50, siblings=8, page=HOSTILE)
    return write(place / "report.html", run)


async def test_it_draws_its_curves_and_says_them(large: str) -> None:
    async with opened(large) as (page, noticed):
        for chart in (
            "reward",
            "f1",
            "calls",
            "calls_hops",
            "length",
            "mismatch",
            "staleness",
            "errors",
            "cache",
            "update_time",
        ):
            figure = page.locator(f"[data-chart={chart}]")
            assert "M" in (await figure.locator("path.course").first.get_attribute("d") or ""), chart
            assert "at update" in (await figure.locator("svg").get_attribute("aria-label") or ""), chart
        reward = page.locator("[data-chart=reward]")
        assert (await reward.locator("svg").get_attribute("aria-label") or "").endswith(
            "from 0.100 at update 1 to 2.500 at update 25."
        )
        await reward.locator("svg").focus()
        await page.keyboard.press("ArrowRight")
        assert await reward.locator(".tip").inner_text() == "update 1\nreward 0.100"
        await reward.locator("svg").hover(position={"x": 200, "y": 60})
        assert "update" in await reward.locator(".tip").inner_text()
        assert "0.150 to 0.350" in await page.locator("table.evaluations").inner_text()
        assert noticed == []


async def test_ten_thousand_episodes_are_filtered_at_once_and_opened(large: str) -> None:
    async with opened(f"{large}#episodes") as (page, noticed):
        assert await page.locator("#count").inner_text() == "10,000 of 10,000"
        assert await page.locator(".item").count() < 40
        took = {}
        for what, selector, value, event in (
            ("search", "#search", "duvon q77.", "input"),
            ("outcome", "select[aria-label=Outcome]", "malformed", "change"),
            ("reward", "input[aria-label='reward from']", "0.75", "input"),
            ("update", "input[aria-label='update from']", "25", "input"),
            ("order", "select[aria-label=Order]", "best", "change"),
        ):
            took[what] = await page.evaluate(QUICKEST, [selector, value, event])
            if what == "search":
                assert await page.locator("#count").inner_text() == "8 of 10,000"
            if what != "order":
                await page.evaluate(
                    "([s, e]) => { const c = document.querySelector(s); c.value = ''; c.dispatchEvent(new Event(e)); }",
                    [selector, event],
                )
        print({what: round(value, 1) for what, value in took.items()}, "ms to filter 10,000 episodes")
        assert max(took.values()) < 200, took
        await page.keyboard.press("j")
        await page.keyboard.press("Enter")
        await page.wait_for_selector(".episode .token")
        opened_in = await page.evaluate("view.episodes.openedIn")
        print(round(opened_in, 1), "ms to open one")
        assert opened_in < 2000
        assert noticed == []


async def test_the_keyboard_is_enough(large: str) -> None:
    async with opened(f"{large}#episodes") as (page, noticed):
        question = page.locator(".episode h2")
        await page.keyboard.press("/")
        await page.keyboard.type("q3.0")
        await page.keyboard.press("Enter")
        await page.keyboard.press("Enter")
        assert await question.inner_text() == "Who is the rector of Duvon 3?"
        await page.keyboard.press("Escape")
        await page.keyboard.press("Escape")
        assert await page.locator("#count").inner_text() == "10,000 of 10,000"
        for key in ("j", "j", "k", "Enter"):
            await page.keyboard.press(key)
        first = await page.locator(".item[aria-selected=true] b").inner_text()
        assert await question.inner_text() == first
        await page.keyboard.press("j")
        await page.wait_for_url(re.compile("#episodes/0/[0-9]+$"))
        assert await page.evaluate("location.hash === `#episodes/0/${view.episodes.selected.at}`")
        assert noticed == []


async def test_words_of_the_web_are_shown_as_words(large: str) -> None:
    async with opened(f"{large}#episodes/0/0") as (page, noticed):
        await page.wait_for_selector(".segment.policy .token")
        shown = await page.locator(".segment.world pre").all_inner_texts()
        assert any(HOSTILE in text for text in shown)
        await page.locator(".calls summary").nth(1).click()
        assert await page.locator(".calls pre").nth(1).inner_text() == HOSTILE
        assert await page.locator("img").count() == 0
        assert await page.title() == "dr_jax: run"
        assert noticed == []


async def test_an_episode_tells_authors_tokens_calls_and_why(large: str) -> None:
    async with opened(f"{large}#episodes/0/1") as (page, noticed):
        await page.wait_for_selector(".segment.policy .token")
        assert await page.locator(".segment").count() == 6
        await page.locator(".token").first.hover()
        assert "log-probability" in await page.locator(".readout").inner_text()
        assert "version 0" in await page.locator(".readout").inner_text()
        reward = await page.locator(".reward").inner_text()
        assert "+0.500" in reward
        assert "shares “tepol” with “Tepol 0”, lacks “0”, and adds “1”: F1 0.500" in reward
        # the group's rewards are 1, ½, ½, 1, ½, ½, 1, and -1 for a broken form
        assert "The 8 siblings earned 0.500 on average" in reward
        assert await page.locator(".siblings button").count() == 8
        assert noticed == []


async def test_light_dark_and_a_narrow_screen(large: str) -> None:
    narrow = {"viewport": {"width": 380, "height": 800}}
    async with opened(large, color_scheme="dark", **narrow) as (page, noticed):
        background = "getComputedStyle(document.body).backgroundColor"
        dark = await page.evaluate(background)
        await page.click("#theme")
        light = await page.evaluate(background)
        await page.click("#theme")
        assert (await page.evaluate(background), light != dark) == (dark, True)
        for view in ("overview", "episodes", "settings"):
            await page.click(f"nav a[href='#{view}']")
            assert await page.evaluate("document.documentElement.scrollWidth") <= 380
        assert noticed == []


async def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, updates=updates) for name, updates in (("one", 2), ("two", 3))]
    async with opened(write(tmp_path / "p.html", *runs)) as (page, noticed):
        reward = page.locator("[data-chart=reward]")
        assert await reward.locator("path.course").count() == 2
        label = await reward.locator("svg").get_attribute("aria-label") or ""
        assert "one: from" in label
        assert "two: from 0.100 at update 1 to 0.300 at update 3." in label
        await page.click("nav a[href='#settings']")
        await page.locator("#settings input[type=checkbox]").check()
        assert await page.locator(".settings tbody th").all_inner_texts() == ["steps"]
        assert noticed == []


async def test_a_run_is_watched_while_it_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", updates=1, done=False)
    async with watching(RunData(run, begun=False)) as address, opened(f"{address}#episodes") as (page, noticed):
        assert await page.locator("#count").inner_text() == "8 of 8"
        with EpisodeWriter(run / "episodes.jsonl", decode, keep_below=9) as writer:
            writer.write(*attempt(8, group=9, sibling=0, step=2), step=2)
        Report(run, keep_below=9).step(2, numbers(2))
        start = time.monotonic()
        await page.locator("#count", has_text="9 of 9").wait_for()
        await page.locator("#status", has_text="live · update 2").wait_for()
        assert time.monotonic() - start < 25
        await page.locator(".item").first.click()
        await page.wait_for_selector(".episode .token")
        assert await page.locator(".episode h2").inner_text() == "Who is the rector of Duvon 9?"
        assert not [one for one in noticed if not one.startswith(f"request: {address}")]
