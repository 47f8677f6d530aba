"""Pages shown to a real Chromium, which reaches our site through our fetcher and nothing else by any way."""

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web as server

from dr_jax.base.errors import UserError
from dr_jax.base.metrics import Metrics
from dr_jax.web.blocklist import BlockSettings
from dr_jax.web.fetch import FetchSettings
from dr_jax.web.guard import AllowedHost
from dr_jax.web.page import Page, WebError
from dr_jax.web.render import RenderSettings, _private_bytes
from dr_jax.web.settings import WebSettings
from dr_jax.web.tape.entry import TapeSettings
from dr_jax.web.web import Web
from tests.chromium import NEEDED, WHY
from tests.web.conftest import Site

MakeWeb = Callable[..., AbstractAsyncContextManager[Web]]
ADD = "let p=document.createElement('p');p.textContent=%s;document.body.append(p);"


@pytest.fixture
def make_web(site: Site) -> MakeWeb:
    def make(metrics: Metrics | None = None, allow: tuple[AllowedHost, ...] = (), **settings: Any) -> Web:
        render = {"mode": "always", "browsers": 1, "rest_s": 0.3, "patience_s": 5.0, "deadline_s": 20.0}
        web = WebSettings(
            fetch=FetchSettings(first_byte_s=2.0, total_s=4.0, deadline_s=6.0, wait_s=0.01),
            render=RenderSettings(**render | settings.pop("render", {})),
            **settings,
        )
        return Web(web, allow=[AllowedHost("here", "127.0.0.1", site.port), *allow], metrics=metrics)

    return make


def text(found: Page | WebError) -> str:
    assert isinstance(found, Page), found
    return found.text


class TestRendered:
    pytestmark = NEEDED

    async def test_what_scripts_load_is_read(self, site: Site, make_web: MakeWeb) -> None:
        site.page("/page", "<title>T</title><p>At first.<script src=/a.js></script>")
        site.page("/a.js", "fetch('http://other.here/data').then(r=>r.json()).then(d=>{" + ADD % "d.said" + "})")
        site.page("/data", '{"said": "And then this."}', Content_Type="application/json")
        metrics = Metrics()
        async with make_web(metrics) as web:
            found = await web.open("http://w.here/page")
        assert isinstance(found, Page)
        assert (found.title, found.url) == ("T", "http://w.here/page")
        assert ("At first." in found.text, "And then this." in found.text) == (True, True)
        assert {one.headers["User-Agent"] for one in site.requests} == {FetchSettings().user_agent}
        assert not any("Cookie" in one.headers or "Referer" in one.headers for one in site.requests)
        counted = metrics.drain()
        assert (counted["web/render_n"], counted["web/render_requests"], site.asked["/page"]) == (1, 2, 1)

    async def test_only_what_is_empty_without_scripts(self, site: Site, make_web: MakeWeb) -> None:
        site.page("/full", "<p>Enough to read.<script>" + ADD % "'More.'" + "</script>")
        site.page("/empty", "<body><div id=root></div><script>" + ADD % "'All there is.'" + "</script>")
        site.page("/nothing", "<body></body>")
        site.page("/text", "plain", Content_Type="text/plain")
        metrics = Metrics()
        async with make_web(metrics, render={"mode": "when_empty"}) as web:
            assert "More" not in text(await web.open("http://w.here/full"))
            assert text(await web.open("http://w.here/text")) == "plain"
            assert "web/render_n" not in metrics.drain()
            assert text(await web.open("http://w.here/empty")) == "All there is."
            found = await web.open("http://w.here/nothing")
            assert isinstance(found, WebError)
            assert found.kind == "empty"
        assert metrics.drain()["web/render_n"] == 2

    async def test_it_is_on_the_tape(self, site: Site, make_web: MakeWeb, tmp_path: Path) -> None:
        site.page("/page", "<p>x<script>" + ADD % "'Once.'" + "</script>")
        site.page("/hangs", "<p>Still readable.<script>while(1);</script>")
        path, short = str(tmp_path / "tape"), {"deadline_s": 12.0}
        asked = ("http://w.here/page", "http://w.here/hangs")
        async with make_web(tape=TapeSettings("record", path), render=short) as web:
            recorded = [await web.open(url) for url in asked]
        assert "Once." in text(recorded[0])
        assert text(recorded[1]) == "Still readable."
        metrics = Metrics()
        async with make_web(metrics, tape=TapeSettings("replay", path), render={"chromium": "/no/such"}) as web:
            assert [await web.open(url) for url in asked] == recorded
        assert not {"web/fetch_n", "web/render_n"} & metrics.drain().keys()

    @pytest.mark.parametrize(
        "script",
        [
            *("while(1);", "let a=[];for(;;){a.push(new Uint8Array(1e8).fill(7))}", "let a=[];for(;;)a.push({a,b:[1,2,3]});"),
            "let s='x'.repeat(1e6);setInterval(()=>{for(let i=0;i<50;i++)document.body.append(s+i)},1)",
        ],
    )
    async def test_what_takes_too_much_is_killed(self, script: str, site: Site, make_web: MakeWeb) -> None:
        site.page("/bad", f"<body><p>The page itself.<script>{script}</script>")
        site.page("/good", "<p>x<script>" + ADD % "'Alive.'" + "</script>")
        metrics = Metrics()
        async with make_web(metrics, render={"deadline_s": 10.0, "memory_mb": 400}) as web:
            assert web._renderer is not None
            (before,) = web._renderer._running
            assert 0 < _private_bytes(before._pid) < 400 << 20
            assert text(await web.open("http://w.here/bad")) == "The page itself."  # as it is without scripts
            assert _private_bytes(before._pid) == 0  # every process of it is gone
            assert "Alive." in text(await web.open("http://w.here/good"))
        assert metrics.drain()["web/render_failed"] == 1

    async def test_so_many_requests_and_bytes(self, site: Site, make_web: MakeWeb) -> None:
        site.page("/many", "<p>Many.<script>for(let i=0;i<99;i++)fetch('/x'+i)</script>")
        site.page("/large", "<p>Large.<script>(async()=>{for(let i=0;i<9;i++)await fetch('/big?'+i)})()</script>")
        site.page("/big", b"x" * 400_000)
        site.page("/grown", "<p>Grown.<script>document.body.append('y '.repeat(3e6))</script>")
        async with make_web(render={"requests": 10, "mb": 1}) as web:
            assert "Many." in text(await web.open("http://w.here/many"))
            assert sum(site.asked[f"/x{n}"] for n in range(99)) == 10
            assert "Large." in text(await web.open("http://w.here/large"))
            assert site.asked["/big"] == 3
            found = await web.open("http://w.here/grown")
            assert isinstance(found, Page)
            assert found.truncated

    async def test_a_public_page_sees_nothing_of_an_inner_host(self, site: Site, make_web: MakeWeb) -> None:
        """Both may be opened; but a page of the one must not read the other and carry it away."""
        site.page(
            "/page", "<p>Mine.<script>" + "fetch('http://secret/a').then(r=>r.text()).then(t=>fetch('/gone?'+t))</script>"
        )
        site.page("/turn", "<p>Mine.<script>" + "fetch('/to').then(r=>r.text()).then(t=>fetch('/gone?'+t))</script>")
        site.page("/to", status=302, Location="http://secret/a")
        site.page("/a", "secret")
        async with make_web(allow=(AllowedHost("secret", "127.0.0.1", site.port),)) as web:
            assert text(await web.open("http://w.here/page")) == "Mine."
            assert (site.asked["/a"], site.asked["/gone"]) == (0, 0)
            assert text(await web.open("http://w.here/turn")) == "Mine."
            assert site.asked["/gone"] == 0

    async def test_the_guard_and_the_block_list_hold_within(self, site: Site, make_web: MakeWeb) -> None:
        site.page(
            "/page", "<p>Page.<script>fetch('http://quiz.here/a');fetch('http://127.0.0.1/');new Image().src='/i'</script>"
        )
        site.page("/moves", "<script>location='http://quiz.here/a'</script><p>Stays.")
        metrics = Metrics()
        async with make_web(metrics, block=BlockSettings(also=("quiz.here",))) as web:
            assert text(await web.open("http://w.here/page")) == "Page."
            await web.open("http://w.here/moves")
        assert (site.asked["/a"], site.asked["/i"]) == (0, 0)
        assert metrics.drain()["web/render_refused"] >= 3

    async def test_a_page_that_moves_on_is_read_where_it_ends(self, site: Site, make_web: MakeWeb) -> None:
        site.page("/first", "<script>location.replace('/second')</script>")
        site.page("/second", status=301, Location="http://other.here/third")
        site.page("/third", "<p>Here it ends.")
        async with make_web() as web:
            found = await web.open("http://w.here/first")
        assert isinstance(found, Page)
        assert (found.url, found.text) == ("http://other.here/third", "Here it ends.")

    async def test_downloads_files_and_inner_pages_are_refused(self, site: Site, make_web: MakeWeb) -> None:
        site.page("/zip", b"PK", Content_Type="application/zip", Content_Disposition="attachment")
        targets = ("/zip", "file:///etc/passwd", "chrome://version", "view-source:http://w.here/a", "data:text/html,<p>data")
        for n, target in enumerate(targets):
            site.page(f"/{n}", f"<p>Before.<script>try{{location={target!r}}}catch(e){{}}</script>")
            site.page(f"/frame{n}", f"<p>Before.<iframe src={target!r}></iframe>")
        async with make_web() as web:
            for n in range(len(targets)):
                for path in (f"/{n}", f"/frame{n}"):
                    assert text(await web.open(f"http://w.here{path}")) == "Before.", path

    async def test_pages_share_nothing(self, site: Site, make_web: MakeWeb) -> None:
        """No cookie and no storage of one visit is there in the next."""
        code = "document.body.append(document.cookie+'|'+localStorage.a);document.cookie='a=b';localStorage.a='kept'"
        site.page("/page", f"<p>Here: <script>{code}</script>")
        async with make_web(memory_mb=1) as web:
            for n in range(2):
                assert text(await web.open(f"http://w.here/page?{n}")).endswith("|undefined")

    async def test_leaving_leaves_no_task_and_no_process(self, site: Site, make_web: MakeWeb) -> None:
        asked = asyncio.Event()

        async def hang(_: server.Request) -> server.Response:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError

        site.pages["/hang"] = hang
        site.page("/page", "<p>x<script>fetch('/hang');new WebSocket('ws://w.here/')</script>")
        async with make_web() as web:
            assert web._renderer is not None
            (browser,) = web._renderer._running
            task = asyncio.create_task(web.open("http://w.here/page"))
            async with asyncio.timeout(20):
                await asked.wait()
            task.cancel()
            await asyncio.wait({task})
        assert _private_bytes(browser._pid) == 0
        await asyncio.sleep(0.2)
        assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task() and "server" not in repr(task)]

    async def test_one_who_does_not_wait_for_a_start_leaves_the_browser_to_the_next(
        self, site: Site, make_web: MakeWeb
    ) -> None:
        site.page("/page", "<p>x<script>" + ADD % "'Alive.'" + "</script>")
        async with make_web() as web:
            assert web._renderer is not None
            (browser,) = web._renderer._running
            await browser.kill()
            impatient = asyncio.create_task(web.open("http://w.here/page"))
            async with asyncio.timeout(20):
                while not web._renderer._starting:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            impatient.cancel()
            await asyncio.wait({impatient})
            assert "Alive." in text(await web.open("http://w.here/page"))
            assert len(web._renderer._running) == 1

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root cannot have the sandbox")
    async def test_a_sandbox_that_cannot_be_had_is_said(self, make_web: MakeWeb) -> None:
        with pytest.raises(UserError, match=r"web\.render\.sandbox"):
            async with make_web(render={"sandbox": "on"}):
                pass

    async def test_a_browser_that_dies_is_replaced(self, site: Site, make_web: MakeWeb) -> None:
        site.page("/page", "<p>x<script>" + ADD % "'Alive.'" + "</script>")
        async with make_web() as web:
            assert web._renderer is not None
            (browser,) = web._renderer._running
            os.kill(browser._pid, 9)
            await asyncio.sleep(0.5)
            assert "Alive." in text(await web.open("http://w.here/page"))


@pytest.mark.skipif("playwright" in WHY, reason=WHY)
@pytest.mark.parametrize("path", ["/no/such/chromium", sys.executable])
async def test_a_missing_chromium_is_named(path: str, make_web: MakeWeb) -> None:
    with pytest.raises(UserError, match=r"web\.render"):
        async with make_web(render={"chromium": path}):
            pass


def test_settings_are_checked() -> None:
    for wrong in ({"browsers": 0}, {"memory_mb": 0}, {"patience_s": 30.0}, {"deadline_s": 1.0}):
        with pytest.raises(ValueError, match="needed"):
            RenderSettings(**wrong)


async def test_nothing_of_it_is_loaded_when_it_is_off(site: Site) -> None:
    code = "import sys, dr_jax.web.web; print('playwright' in sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert out.strip() == b"False"
