import asyncio
import gzip
import socket
import time
import tracemalloc
import zlib
from email.utils import formatdate

import pytest
import zstandard
from aiohttp import web

from dr_jax.base.metrics import Metrics
from dr_jax.web.fetch import Fetcher, FetchSettings
from dr_jax.web.guard import AllowedHost, Guard
from dr_jax.web.pace import Pace, PaceSettings
from dr_jax.web.page import WebError
from dr_jax.web.reply import Answer, Fetched
from tests.web.conftest import MakeFetcher, Site


def fetched(found: Fetched | WebError) -> Fetched:
    assert isinstance(found, Fetched), found
    return found


def failed(found: Fetched | WebError) -> WebError:
    assert isinstance(found, WebError), found
    return found


async def test_a_page_and_what_is_sent_for_it(site: Site, make_fetcher: MakeFetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    site.page("/a", "<p>x", Content_Type='Text/HTML; Charset="Shift_JIS"', Set_Cookie="a=b; path=/")
    metrics = Metrics()
    fetcher = await make_fetcher(metrics=metrics, user_agent="tester/1")
    for _ in range(2):
        found = fetched(await fetcher.get("http://w.here/a?q=1#part"))
    assert found == Fetched("http://w.here/a?q=1", 200, "text/html", "shift_jis", b"<p>x")
    headers = site.requests[-1].headers
    assert "Cookie" not in headers
    assert "Authorization" not in headers
    assert (headers["Host"], headers["User-Agent"], headers["Accept-Encoding"]) == (
        "w.here",
        "tester/1",
        "gzip, deflate, br, zstd",
    )
    counted = metrics.drain()
    assert (counted["web/fetch_n"], counted["web/bytes"], counted["web/fetch_s_n"]) == (2, 8, 2)


@pytest.mark.parametrize(
    ("status", "kind", "lasting"),
    [
        *(
            (404, "not_found", True),
            (410, "not_found", True),
            (401, "denied", True),
            (403, "denied", True),
            (418, "http", True),
        ),
        *((429, "busy", False), (500, "server", False), (503, "server", False), (501, "server", False), (304, "http", True)),
    ],
)
async def test_a_status_is_an_error_of_its_kind(
    status: int, kind: str, lasting: bool, site: Site, make_fetcher: MakeFetcher
) -> None:
    site.page("/a", "" if status == 304 else "x", status)
    found = failed(await (await make_fetcher()).get("http://w.here/a"))
    assert (found.kind, found.lasting) == (kind, lasting)
    assert str(status) in found.message
    assert site.asked["/a"] == (3 if status in (429, 500, 503) else 1)


def serve_versions(site: Site, path: str, *, etag: str, modified: str = "") -> None:
    """Serve a page that is sent again only to those who know another version."""

    async def answer(request: web.Request) -> web.StreamResponse:
        headers = {"ETag": etag, "Last-Modified": modified, "Content-Type": "text/html"}
        headers = {name: value for name, value in headers.items() if value}
        same = request.headers.get("If-None-Match") == etag if etag else request.headers.get("If-Modified-Since") == modified
        return web.Response(status=304, headers=headers) if same else web.Response(text=f"version {etag}", headers=headers)

    site.pages[path] = answer


@pytest.mark.parametrize(("etag", "modified"), [('"1"', ""), ('W/"1"', "Tue, 01 Oct 2024 00:00:00 GMT"), ("", "yesterday")])
async def test_what_still_holds_is_not_sent_again(etag: str, modified: str, site: Site, make_fetcher: MakeFetcher) -> None:
    serve_versions(site, "/a", etag=etag, modified=modified)
    metrics = Metrics()
    fetcher = await make_fetcher(metrics=metrics)
    first = fetched(await fetcher.get("http://w.here/a"))
    assert (first.etag, first.modified) == (etag, modified)
    assert await fetcher.get("http://w.here/a", known=first) is first
    assert metrics.drain()["web/not_modified"] == 1
    serve_versions(site, "/a", etag='"2"')
    assert fetched(await fetcher.get("http://w.here/a", known=first)).body == b'version "2"'


async def test_conditions_are_sent_only_where_the_page_was_found(site: Site, make_fetcher: MakeFetcher) -> None:
    site.page("/moved", status=302, Location="http://other.here/a")
    serve_versions(site, "/a", etag='"1"')
    fetcher = await make_fetcher()
    first = fetched(await fetcher.get("http://w.here/moved"))
    assert await fetcher.get("http://w.here/moved", known=first) is first
    assert [(one.path, "If-None-Match" in one.headers) for one in site.requests[2:]] == [("/moved", False), ("/a", True)]
    await fetcher.get("http://third.here/a", known=first)
    assert "If-None-Match" not in site.requests[-1].headers


async def test_half_a_page_is_not_asked_about(site: Site, make_fetcher: MakeFetcher) -> None:
    site.page("/a", "x" * 1000, ETag='"1"')
    fetcher = await make_fetcher(body_bytes=100)
    half = fetched(await fetcher.get("http://w.here/a"))
    assert half.truncated
    assert fetched(await fetcher.get("http://w.here/a", known=half)) == half
    assert "If-None-Match" not in site.requests[-1].headers
    site.page("/b", "x", ETag="\udce4" * 9, Last_Modified="x" * 300)
    odd = fetched(await fetcher.get("http://w.here/b"))
    assert (odd.etag, odd.modified) == ("", "")


async def test_what_gets_better_is_asked_again(site: Site, make_fetcher: MakeFetcher) -> None:
    site.in_turn("/a", web.Response(status=503), web.Response(status=502), web.Response(text="good", content_type="text/plain"))
    metrics = Metrics()
    found = fetched(await (await make_fetcher(metrics=metrics)).get("http://w.here/a"))
    assert found.body == b"good"
    assert metrics.drain()["web/retries"] == 2


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_is_honoured(form: str, site: Site, make_fetcher: MakeFetcher) -> None:
    wait = "1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
    site.in_turn("/a", web.Response(status=429, headers={"Retry-After": wait}), web.Response(text="good"))
    start = time.monotonic()
    assert fetched(await (await make_fetcher()).get("http://w.here/a")).body == b"good"
    assert time.monotonic() - start > 0.9


async def test_a_wait_past_the_deadline_is_not_begun(site: Site, make_fetcher: MakeFetcher) -> None:
    site.page("/a", "x", 503, Retry_After="3600")
    start = time.monotonic()
    assert failed(await (await make_fetcher()).get("http://w.here/a")).kind == "server"
    assert time.monotonic() - start < 1
    assert site.asked["/a"] == 1


async def test_redirects_are_followed_to_the_end(site: Site, make_fetcher: MakeFetcher) -> None:
    site.page("/a", status=301, Location="/b")
    site.page("/b", status=302, Location="http://other.here/c#x")
    site.page("/c", "there")
    found = fetched(await (await make_fetcher()).get("http://w.here/a"))
    assert (found.url, found.body) == ("http://other.here/c", b"there")


async def test_redirects_end(site: Site, make_fetcher: MakeFetcher) -> None:
    site.page("/circle", status=302, Location="/circle2")
    site.page("/circle2", status=302, Location="/circle")
    for n in range(9):
        site.page(f"/{n}", status=307, Location=f"/{n + 1}")
    site.page("/nowhere", status=302)
    fetcher = await make_fetcher()
    kinds = [failed(await fetcher.get(f"http://w.here/{path}")).kind for path in ("circle", "0", "nowhere")]
    assert kinds == ["redirects", "redirects", "http"]
    assert site.asked["/5"] == 1
    assert site.asked["/6"] == 0


@pytest.mark.parametrize(
    "target",
    [
        *("http://127.0.0.1/", "http://169.254.169.254/latest/meta-data/", "http://metadata.google.internal/", "http://[::1]/"),
        *(
            "http://[bad",
            "//0x7f.1/",
            "http://w.here@10.0.0.1/",
            "http://example.org:8080/",
            "file:///etc/passwd",
            "gopher://w.here/",
        ),
    ],
)
async def test_every_hop_is_vetted(target: str, site: Site, make_fetcher: MakeFetcher) -> None:
    site.page("/a", status=302, Location=target)
    found = failed(await (await make_fetcher()).get("http://w.here/a"))
    assert found.kind in ("refused", "bad_url")
    assert found.message.startswith("http://w.here/a redirects")
    assert found.lasting


async def test_credentials_never_cross_an_origin(site: Site, make_fetcher: MakeFetcher) -> None:
    """A service that redirects is not followed, whatever the status; and a page's redirect carries nothing along."""
    fetcher = await make_fetcher()
    secret = {"Authorization": "Bearer secret", "X-API-KEY": "secret"}
    for status in (301, 302, 303, 307, 308):
        site.page("/service", "", status, Location="http://other.here/away")
        for once in (
            await fetcher.once("POST", "http://w.here/service", secret, {"q": "x"}),
            await fetcher.once("GET", "http://w.here/service", secret),
        ):
            assert isinstance(once, Answer)
            assert once.status == status
    assert site.asked["/away"] == 0
    assert all("Authorization" in one.headers for one in site.requests)
    site.page("/a", status=302, Location="http://other.here/b", Set_Cookie="who=me; Domain=here")
    site.page("/b", "x", WWW_Authenticate="Basic", Set_Cookie="who=me; Domain=here")
    for _ in range(2):
        fetched(await fetcher.get("http://w.here/a"))
    assert {one.headers["Host"] for one in site.requests[10:]} == {"w.here", "other.here"}
    for one in site.requests[10:]:
        assert not {"Authorization", "X-API-KEY", "Cookie", "Referer", "Proxy-Authorization"} & set(one.headers)


@pytest.mark.parametrize("kind", ["one long", "many", "endless", "status line", "continue"])
async def test_the_head_of_an_answer_is_bounded(kind: str) -> None:
    """Far more than 100 MB would come in the second that it is given."""
    heads = {
        "one long": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 65_536,
        "many": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000,
        "endless": b"HTTP/1.1 200 OK\r\n",
        "status line": b"HTTP/1.1 200 " + b"O" * 65_536,
        "continue": b"",
    }
    again = {
        "one long": b"x" * 65_536,
        "endless": b"X: " + b"y" * 8_000 + b"\r\n",
        "continue": b"HTTP/1.1 100 Continue\r\n\r\n",
    }

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(heads[kind])
            while True:
                writer.write(again.get(kind, b"\r\n"))
                await writer.drain()
                await asyncio.sleep(0)
        except ConnectionError:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    guard = Guard([AllowedHost("odd", "127.0.0.1", server.sockets[0].getsockname()[1])])
    settings = FetchSettings(wait_s=0.01, attempts=1, first_byte_s=1.0, total_s=2.0)
    tracemalloc.start()
    async with Fetcher(settings, guard, Pace(PaceSettings()), Metrics()) as fetcher:
        start = time.monotonic()
        assert failed(await fetcher.get("http://odd/")).kind in ("protocol", "unreachable", "timeout")
        assert time.monotonic() - start < 3
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0.05)


async def test_what_hangs_is_given_up(site: Site, make_fetcher: MakeFetcher) -> None:
    site.hang("/a")
    start = time.monotonic()
    found = failed(await (await make_fetcher(first_byte_s=0.2)).get("http://w.here/a"))
    assert (found.kind, found.lasting) == ("timeout", False)
    assert time.monotonic() - start < 1.5
    assert site.asked["/a"] == 2


async def test_what_drips_is_given_up(site: Site, make_fetcher: MakeFetcher) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/html"})
        await response.prepare(request)
        while True:
            await response.write(b"x")
            await asyncio.sleep(0.05)

    site.pages["/a"] = drip
    found = failed(await (await make_fetcher(total_s=0.3)).get("http://w.here/a"))
    assert found.kind == "timeout"


async def test_a_cut_body_is_asked_for_again_and_kept_when_it_stays_cut(site: Site, make_fetcher: MakeFetcher) -> None:
    site.cut("/a", b"<p>half a pa")
    found = fetched(await (await make_fetcher()).get("http://w.here/a"))
    assert (found.body, found.truncated, found.broken) == (b"<p>half a pa", True, True)
    assert site.asked["/a"] == 3
    site.cut("/none", b"")
    assert failed(await (await make_fetcher()).get("http://w.here/none")).kind == "unreachable"


async def test_a_large_body_is_cut_at_the_cap(site: Site, make_fetcher: MakeFetcher) -> None:
    site.page("/a", b"x" * 300_000)
    metrics = Metrics()
    found = fetched(await (await make_fetcher(metrics=metrics, wire_bytes=100_000)).get("http://w.here/a"))
    assert (len(found.body), found.truncated, found.broken) == (100_000, True, False)
    assert metrics.drain()["web/bytes"] <= 300_000
    assert site.asked["/a"] == 1


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@pytest.mark.parametrize("size", [2_000, 20 << 20], ids=["small", "bomb"])
async def test_content_encodings_and_bombs(codec: str, size: int, site: Site, make_fetcher: MakeFetcher) -> None:
    pack = gzip.compress if codec == "gzip" else zstandard.ZstdCompressor().compress
    site.page("/a", pack(b"y" * size), Content_Encoding=codec)
    found = fetched(await (await make_fetcher(body_bytes=1 << 20)).get("http://w.here/a"))
    assert (len(found.body), found.truncated) == (min(size, 1 << 20), size > 1 << 20)


@pytest.mark.parametrize(
    ("encoding", "body"), [("br", b"x"), ("compress", b"x"), ("gzip", b"not gzip at all"), ("gzip,gzip,gzip,gzip", b"x")]
)
async def test_an_encoding_that_is_none_is_an_error(encoding: str, body: bytes, site: Site, make_fetcher: MakeFetcher) -> None:
    site.page("/a", body, Content_Encoding=encoding)
    assert failed(await (await make_fetcher()).get("http://w.here/a")).kind == "protocol"


async def test_headers_of_bytes_that_are_no_text(site: Site, make_fetcher: MakeFetcher) -> None:
    site.page("/a", "x", Content_Type="text/\udce4\udcf6; charset=\udcfc")
    found = fetched(await (await make_fetcher()).get("http://w.here/a"))
    assert (found.content_type, found.charset) == ("", "")
    site.page("/b", status=302, Location="http://\udce4.org/")
    assert failed(await (await make_fetcher()).get("http://w.here/b")).kind in ("bad_url", "refused")


@pytest.mark.parametrize("content_type", ["application/zip", "image/png", "application/octet-stream"])
async def test_what_cannot_be_read_is_not_downloaded(content_type: str, site: Site, make_fetcher: MakeFetcher) -> None:
    site.page("/a", b"x" * 100_000, Content_Type=content_type)
    metrics = Metrics()
    found = failed(await (await make_fetcher(metrics=metrics)).get("http://w.here/a"))
    assert found.kind == "unsupported"
    assert content_type in found.message
    assert "web/bytes" not in metrics.drain()


async def test_no_such_name(make_fetcher: MakeFetcher) -> None:
    async def lookup(host: str) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    found = failed(await (await make_fetcher(lookup)).get("http://nowhere.example.org/"))
    assert found.kind == "unreachable"
    assert "does not exist" in found.message


@pytest.mark.parametrize("answer", [b"not http\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", b""])
async def test_what_is_not_http(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    guard = Guard([AllowedHost("odd", "127.0.0.1", server.sockets[0].getsockname()[1])])
    async with Fetcher(FetchSettings(wait_s=0.01), guard, Pace(PaceSettings()), Metrics()) as fetcher:
        assert failed(await fetcher.get("http://odd/")).kind in ("protocol", "unreachable")
    server.close()
    await server.wait_closed()


async def test_nobody_listens() -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    guard = Guard([AllowedHost("gone", "127.0.0.1", server.sockets[0].getsockname()[1])])
    server.close()
    await server.wait_closed()
    async with Fetcher(FetchSettings(wait_s=0.01), guard, Pace(PaceSettings()), Metrics()) as fetcher:
        found = failed(await fetcher.get("http://gone/"))
    assert found == WebError("unreachable", "http://gone/ could not be reached")


async def test_a_page_takes_a_place_in_memory_only_when_it_is_its_hosts_turn(site: Site, allowed: AllowedHost) -> None:
    site.hang("/slow")
    site.page("/a", "a")
    pace = Pace(PaceSettings(own=1, concurrent=1))
    async with Fetcher(FetchSettings(), Guard([allowed]), pace, Metrics()) as fetcher, pace.place() as one, pace.place() as two:
        slow = asyncio.create_task(fetcher.get("http://w.here/slow", place=one))
        queued = asyncio.create_task(fetcher.get("http://w.here/a", place=two))
        await asyncio.sleep(0.2)
        assert (one._held is not None, two._held) == (True, None)  # the second waits for the host, and not in memory
        assert pace._all.users == 1
        slow.cancel()
        await asyncio.wait({slow})
        await one.free()
        found = await asyncio.wait_for(queued, 5.0)
        assert isinstance(found, Fetched)
        assert two._held is not None  # until it has been read
    assert pace._all.users == 0


async def test_a_page_that_is_tried_again_holds_one_place(site: Site, allowed: AllowedHost) -> None:
    site.in_turn("/a", web.Response(status=503), web.Response(status=302, headers={"Location": "/b"}))
    site.page("/b", "b")
    pace = Pace(PaceSettings(concurrent=1))
    async with Fetcher(FetchSettings(wait_s=0.01), Guard([allowed]), pace, Metrics()) as fetcher, pace.place() as place:
        found = await asyncio.wait_for(fetcher.get("http://w.here/a", place=place), 5.0)
        assert isinstance(found, Fetched)
        assert pace._all.users == 1
    assert pace._all.users == 0


async def test_one_who_stops_waiting_leaves_nothing_open(site: Site, make_fetcher: MakeFetcher) -> None:
    site.hang("/a")
    fetcher = await make_fetcher(first_byte_s=30.0, total_s=30.0, deadline_s=30.0)
    task = asyncio.create_task(fetcher.get("http://w.here/a"))
    await asyncio.sleep(0.2)
    assert site.asked["/a"] == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    site.page("/b", "x")
    assert fetched(await fetcher.get("http://w.here/b")).body == b"x"


def test_settings_are_checked() -> None:
    for wrong in ({"attempts": 0}, {"total_s": 0.0}, {"redirects": -1}, {"wire_bytes": 0}, {"user_agent": "a\nb"}):
        with pytest.raises(ValueError, match=r"needed|negative"):
            FetchSettings(**wrong)


async def test_encodings_may_be_named_line_by_line(site: Site, make_fetcher: MakeFetcher) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        response = web.Response(body=gzip.compress(zlib.compress(b"words")), content_type="text/plain")
        for name in ("deflate", "gzip"):
            response.headers.add("Content-Encoding", name)
        return response

    site.pages["/a"] = answer
    assert fetched(await (await make_fetcher()).get("http://w.here/a")).body == b"words"
