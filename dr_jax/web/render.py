"""Show a page to Chromium, so that its scripts run, without giving Chromium a way to the network.

In:    a page's bytes, already fetched
Out:   the document as it is when its scripts have come to rest, as bytes of HTML; or WebError
Needs: `playwright` (the extra `render`) and a Chromium; neither is downloaded
Holds: Chromium resolves no name and has a proxy that does not exist; whatever a page asks for comes through our own fetcher,
       with its guard, pace and caps, or not at all. One page at a time in each browser, which is killed with all of its
       processes when the page takes too long or too much memory
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dr_jax.base.errors import UserError
from dr_jax.base.metrics import Metrics, timed
from dr_jax.base.trace import logger
from dr_jax.web.fetch import Fetcher
from dr_jax.web.guard import Guard
from dr_jax.web.page import WebError
from dr_jax.web.reply import Fetched
from dr_jax.web.visit import Visit

if TYPE_CHECKING:
    from playwright.async_api import Browser, Playwright

_LOG = logger(__name__)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_ARGUMENTS = (
    # Every way out that does not ask us first ends here: names and addresses, proxied or not, resolve to nothing.
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--proxy-server=http://nowhere.invalid:1",
    "--proxy-bypass-list=<-loopback>",
    *("--disable-quic", "--dns-prefetch-disable", "--no-pings", "--disable-background-networking", "--disable-sync"),
    *("--force-webrtc-ip-handling-policy", "--webrtc-ip-handling-policy=disable_non_proxied_udp"),
    *("--block-new-web-contents", "--disable-gpu", "--disable-dev-shm-usage", "--disable-remote-fonts", "--mute-audio"),
)
_START_S, _STOP_S = 30.0, 5.0
_WATCH_S = 0.2
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "FONTCONFIG_PATH")  # and no key


@dataclass(frozen=True, slots=True)
class RenderSettings:
    """Whether and how scripts of pages are run.

    Args:
        mode: `off`; `when_empty`, for pages that show nothing without; `always`, for every page of HTML.
        chromium: where it is; "" looks for it on the PATH.
        sandbox: Chromium's own; `auto` is on unless we are root, who cannot have it.
        browsers: how many pages at a time, each in a browser of its own.
        memory_mb: of one browser with all of its processes, what they share not counted.
        rest_s: a page has come to rest when it has asked for nothing for this long.
        patience_s: how long its rest is waited for, once it is there; then it is taken as it is.
        deadline_s: after which the browser is killed.
        requests: that a page may make.
        mb: that it may have fetched in all, and that its document may come to.
    """

    mode: Literal["off", "when_empty", "always"] = "off"
    chromium: str = ""
    sandbox: Literal["auto", "on", "off"] = "auto"
    browsers: int = 2
    memory_mb: int = 1024
    rest_s: float = 0.5
    patience_s: float = 10.0
    deadline_s: float = 20.0
    requests: int = 64
    mb: int = 8

    def __post_init__(self) -> None:
        for name in ("browsers", "memory_mb", "rest_s", "patience_s", "deadline_s", "requests", "mb"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; more than 0 is needed")
        if self.patience_s >= self.deadline_s:
            raise ValueError(f"patience_s is {self.patience_s}; less than deadline_s ({self.deadline_s}) is needed")


class Renderer:
    """A few browsers. An async context manager.

    Args:
        settings: limits of one page.
        fetcher: the only way out.
        guard: which hosts are not public.
        metrics: counts `web/render_n`, `web/render_requests`, `web/render_refused`, `web/render_failed`; observes seconds.

    Raises:
        UserError: on entering: there is no playwright or no Chromium, or it does not start.
    """

    def __init__(self, settings: RenderSettings, fetcher: Fetcher, guard: Guard, metrics: Metrics) -> None:
        self._settings, self._fetcher, self._guard, self._metrics = settings, fetcher, guard, metrics
        self._free: asyncio.LifoQueue[_Browser | None] = asyncio.LifoQueue()  # None: a place whose browser is to be started
        self._running: set[_Browser] = set()
        self._starting: set[asyncio.Task[_Browser]] = set()

    async def __aenter__(self) -> Renderer:
        self._path = _chromium(self._settings.chromium)
        try:
            from playwright.async_api import async_playwright
        except ImportError:
            raise UserError(
                f"web.render.mode is {self._settings.mode!r}, but playwright is not installed",
                needed="the extra `render`",
                fix="pip install 'dr-jax[render]', or web.render.mode=off",
            ) from None
        self._playwright = await async_playwright().start()
        try:
            first = await self._start()
        except BaseException as error:
            await self._stop()
            if not isinstance(error, OSError):
                raise
            raise UserError(
                f"{self._path} does not start: {error}",
                fix="name another one in web.render.chromium, or try web.render.sandbox=off where a container is the sandbox",
            ) from error
        for _ in range(self._settings.browsers - 1):
            self._free.put_nowait(None)
        self._free.put_nowait(first)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._starting:
            await asyncio.wait(self._starting, timeout=_START_S + _STOP_S)
        for browser in tuple(self._running):
            await self._end(browser)
        await self._stop()

    async def render(self, found: Fetched) -> Fetched | WebError:
        """Run a page's scripts; wait for a free browser for as long as the caller does.

        Args:
            found: the page, as it was fetched.

        Returns:
            The document they made of it; WebError when they did not end in time, or needed too much.
        """
        settings, browser = self._settings, None
        self._metrics.add("web/render_n")
        try:
            browser = await self._take()
            with timed(self._metrics, "web/render_s"):
                async with asyncio.timeout(settings.deadline_s):
                    return await self._visited(browser, found)
        except TimeoutError:
            why = f"its scripts took more than {settings.deadline_s:g} s"
        except _TooMuchError:
            why = f"its scripts need more than {settings.memory_mb} MB"
        except OSError as error:
            why = f"the browser failed ({error})"
        finally:
            if browser is not None:
                if not browser.clean:
                    await self._end(browser)
                self._free.put_nowait(browser if browser.clean else None)
        self._metrics.add("web/render_failed")
        return WebError("extract", f"{found.url} could not be rendered: {why}")

    async def _take(self) -> _Browser:
        """Wait for a browser.

        Raises:
            OSError: it does not start.
        """
        browser = await self._free.get()
        if browser is not None and browser.alive:
            return browser
        starting = asyncio.create_task(self._replaced(browser), name="start a browser")
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:  # what is being started cannot be stopped, so it is kept for whoever comes next
            starting.add_done_callback(self._keep)
            raise
        except OSError:
            self._free.put_nowait(None)
            raise

    def _keep(self, started: asyncio.Task[_Browser]) -> None:
        failed = started.cancelled() or started.exception() is not None
        self._free.put_nowait(None if failed else started.result())

    async def _visited(self, browser: _Browser, found: Fetched) -> Fetched | WebError:
        settings = self._settings
        visit = Visit(
            found,
            self._fetcher,
            self._guard,
            self._metrics,
            requests=settings.requests,
            max_bytes=settings.mb << 20,
            rest_s=settings.rest_s,
            patience_s=settings.patience_s,
        )
        with browser.used():
            visiting = asyncio.ensure_future(visit.run(browser.opened))
            watching = asyncio.ensure_future(browser.watch(settings.memory_mb << 20))
            try:
                done, _ = await asyncio.wait((visiting, watching), return_when=asyncio.FIRST_COMPLETED)
                if visiting not in done:
                    raise _TooMuchError
                return visiting.result()
            finally:
                for task in (visiting, watching):
                    task.cancel()
                await asyncio.wait((visiting, watching), timeout=_STOP_S)

    async def _replaced(self, browser: _Browser | None) -> _Browser:
        if browser is not None:
            await self._end(browser)
        return await self._start()

    async def _start(self) -> _Browser:
        """Start a browser.

        Raises:
            OSError: it does not start.
        """
        settings = self._settings
        sandbox = settings.sandbox == "on" or (settings.sandbox == "auto" and _may_sandbox())
        browser = await _Browser.start(self._playwright, self._path, sandbox, settings.memory_mb)
        self._running.add(browser)
        return browser

    async def _end(self, browser: _Browser) -> None:
        self._running.discard(browser)
        await browser.kill()

    async def _stop(self) -> None:
        try:
            async with asyncio.timeout(_STOP_S):
                await self._playwright.stop()
        except TimeoutError:
            _LOG.warning("playwright did not stop within %g s", _STOP_S)


class _TooMuchError(Exception):
    """A browser uses more memory than it may."""


class _Browser:
    """One Chromium and its processes."""

    def __init__(self, opened: Browser, pid: int) -> None:
        self.opened, self._pid = opened, pid
        self.clean = True  # whether nothing of an earlier page is left in it

    @classmethod
    async def start(cls, playwright: Playwright, path: str, sandbox: bool, memory_mb: int) -> _Browser:
        from playwright.async_api import Error

        try:
            opened = await playwright.chromium.launch(
                executable_path=path,
                args=[*_ARGUMENTS, f"--js-flags=--max-old-space-size={memory_mb}"],
                chromium_sandbox=sandbox,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                timeout=1000 * _START_S,
                handle_sigint=False,
                handle_sigterm=False,
                handle_sighup=False,
            )
            session = await opened.new_browser_cdp_session()
            processes = (await session.send("SystemInfo.getProcessInfo"))["processInfo"]
        except Error as error:
            raise OSError(_first_line(error)) from error
        return cls(opened, next(int(one["id"]) for one in processes if one["type"] == "browser"))

    @property
    def alive(self) -> bool:
        return self.opened.is_connected()

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Mark it as not clean, unless the block ends well."""
        self.clean = False
        yield
        self.clean = True

    async def watch(self, max_bytes: int) -> None:
        """Return when its processes together use more memory."""
        while True:
            if await asyncio.to_thread(_private_bytes, self._pid) > max_bytes:
                return
            await asyncio.sleep(_WATCH_S)

    async def kill(self) -> None:
        """End all of its processes now."""
        with contextlib.suppress(ProcessLookupError):
            if not self.alive:  # its number may be another's by now; what it had started ends with it
                pass
            elif os.getpgid(self._pid) == self._pid:  # playwright starts it as the leader of a group of its own
                os.killpg(self._pid, signal.SIGKILL)
            else:
                os.kill(self._pid, signal.SIGKILL)
        with contextlib.suppress(Exception):  # what it says about a browser that is gone is of no interest
            async with asyncio.timeout(_STOP_S):
                await self.opened.close()


def _chromium(path: str) -> str:
    found = path or next((where for name in _NAMES if (where := shutil.which(name))), "")
    if not found or not os.access(found, os.X_OK):
        raise UserError(
            f"There is no Chromium{f' at {path}' if path else ' on the PATH'}",
            needed=f"one of {', '.join(_NAMES)}",
            fix="install it (Debian: apt-get install chromium), name it in web.render.chromium, or web.render.mode=off",
        )
    return found


def _may_sandbox() -> bool:
    return not hasattr(os, "geteuid") or os.geteuid() != 0


def _private_bytes(group: int) -> int:
    """Bytes of memory that the processes of a group use and share with no file; 0 where that cannot be known."""
    pages = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[2]) == group:
                _, resident, shared, *_ = (stat.parent / "statm").read_text().split()
                pages += int(resident) - int(shared)
        except (OSError, ValueError, IndexError):  # it has just ended
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
