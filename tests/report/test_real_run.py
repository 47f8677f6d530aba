"""The page of a run that was really made, `runs/quickstart` or what DR_JAX_RUN names, in Chromium.

    DR_JAX_RUN=runs/quickstart DR_JAX_PICTURES=docs python -m pytest -m slow tests/report/test_real_run.py -s

takes the README's pictures of it: the curves in light, an episode in dark.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chromium import NEEDED
from tests.report.browser import QUICKEST, opened, write

RUN = Path(os.environ.get("DR_JAX_RUN", "runs/quickstart"))
PICTURES = os.environ.get("DR_JAX_PICTURES", "")
DONE = (RUN / "summary.json").exists()
pytestmark = [*NEEDED, pytest.mark.skipif(not DONE, reason=f"there is no finished run in {RUN}")]
SIZE = {"width": 1280, "height": 880}
CHARTS = ("reward", "f1", "calls", "calls_hops", "f1_hops", "length", "outcome", "mismatch", "staleness", "cache")


async def test_its_curves_are_drawn_and_its_episodes_filtered_and_read(tmp_path: Path) -> None:
    episodes = len((RUN / "episodes.jsonl").read_text().splitlines())
    address = write(tmp_path / "report.html", RUN)
    for scheme in ("light", "dark"):
        async with opened(address, color_scheme=scheme, viewport=SIZE) as (page, noticed):
            for chart in CHARTS:
                course = page.locator(f"[data-chart={chart}] path.course").first
                assert "L" in (await course.get_attribute("d") or ""), chart  # two points and more
            if PICTURES and scheme == "light":
                await page.screenshot(path=Path(PICTURES) / "report_light.png")
            await page.click("nav a[href='#episodes']")
            assert await page.locator("#count").inner_text() == f"{episodes:,} of {episodes:,}"
            took = await page.evaluate(QUICKEST, ["input[aria-label='reward from']", "0.9", "input"])
            print(f"{scheme}: {took:.1f} ms to filter {episodes:,} episodes of {RUN}")
            assert took < 200
            assert await page.locator("#count").inner_text() != f"{episodes:,} of {episodes:,}"
            await page.select_option("select[aria-label=Order]", "calls")
            await page.locator(".item").first.click()
            await page.wait_for_selector(".episode .segment.policy .token")
            assert await page.locator(".calls summary").count() > 0
            await page.locator(".segment.policy .token").first.hover()
            assert "log-probability" in await page.locator(".readout").inner_text()
            if PICTURES and scheme == "dark":
                await page.screenshot(path=Path(PICTURES) / "episode_dark.png")
            assert noticed == []
