"""A real Chromium in front of a page, and what the page must not do: complain, ask anybody, or be slow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dr_jax.report import page as pages
from dr_jax.report.data import RunData
from tests.chromium import CHROMIUM

if TYPE_CHECKING:
    from playwright.async_api import Page

# The best of three: how long the page takes, not how long it waited for a busy machine.
QUICKEST = """async ([selector, value, event]) => {
  const control = document.querySelector(selector);
  let least = Infinity;
  for (const one of ['', value, '', value, '', value]) {
    const start = performance.now();
    control.value = one;
    control.dispatchEvent(new Event(event, { bubbles: true }));
    document.querySelector('#list').offsetHeight;
    if (one) least = Math.min(least, performance.now() - start);
    await new Promise(requestAnimationFrame);
  }
  return least;
}"""


@asynccontextmanager
async def opened(address: str, **context: Any) -> AsyncIterator[tuple[Page, list[str]]]:
    """A page, and whatever it complained of or asked anybody for."""
    from playwright.async_api import async_playwright  # an extra: without it the tests are skipped

    noticed: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = await (await browser.new_context(**context)).new_page()
            page.set_default_timeout(30_000)
            page.on("console", lambda message: noticed.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: noticed.append(f"error: {error}"))
            page.on("dialog", lambda dialog: noticed.append(f"dialog: {dialog.message}"))
            page.on("request", lambda request: noticed.append(f"request: {request.url}"))
            await page.goto(address)
            await page.wait_for_selector("#loading", state="hidden")
            assert noticed.pop(0) == f"request: {address.partition('#')[0]}"
            yield page, noticed
        finally:
            await browser.close()


def write(path: Path, *directories: Path) -> str:
    runs = [RunData(directory) for directory in directories]
    for run in runs:
        run.follow()
    pages.write(path, runs, limit=10_000)
    return path.as_uri()
