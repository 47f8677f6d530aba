"""A world of its own, in which every address leads to us: try all hostile rows in it, and see who was reached.

Run in fresh namespaces: `unshare --map-root-user --net --mount python -m tests.web.siege [always]`. Names are resolved by the
system, which asks a name server of ours; whatever connects to an address other than the site's reaches a canary.

Out:   one line of JSON: how each row ended, whom anybody reached, what was looked up
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from aiohttp import web as server

from dr_jax.web.fetch import FetchSettings
from dr_jax.web.pace import PaceSettings
from dr_jax.web.page import Page
from dr_jax.web.render import RenderSettings
from dr_jax.web.search.settings import BreakerSettings
from dr_jax.web.settings import WebSettings
from dr_jax.web.web import Web
from dr_jax.web.workers import ExtractSettings
from tests.web.hostile import DEAD, DNS, HEADERS, NAMES, PAGES, PORTS, REDIRECTS, SITE, URLS, Sent

_AGENT = "dr-jax siege"
ALIVE = ("127.0.0.1", "::1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "fd00::1", "8.8.8.8")
_UDP_PORTS = (80, 443, 3478, 5353, 8080)


def _build() -> None:
    """Make every address of this namespace local, and ours the only name server."""
    made = Path(tempfile.mkdtemp())
    (made / "resolv.conf").write_text("nameserver 9.9.9.9\noptions timeout:1 attempts:1\n")
    (made / "nsswitch.conf").write_text("hosts: files dns\n")
    for command in (
        "ip link set lo up",
        "ip route add local 0.0.0.0/0 dev lo",
        "ip -6 route add local ::/0 dev lo",
        f"ip route add unreachable {DEAD}",
        *(f"mount --bind {one} /etc/{one.name}" for one in made.iterdir() if Path("/etc", one.name).exists()),
    ):
        subprocess.run(command.split(), check=True, timeout=10)


class _Names(asyncio.DatagramProtocol):
    """A name server (RFC 1035): answers from NAMES, one answer after the other, each good for no time at all."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, peer: Any) -> None:
        labels, place = [], 12
        while (size := data[place]) != 0:
            labels.append(data[place + 1 : place + 1 + size].decode("latin-1").lower())
            place += 1 + size
        name, kind = ".".join(labels), int.from_bytes(data[place + 1 : place + 3], "big")
        found, owner = [], b"\xc0\x0c"  # the name that was asked for
        for one in self._answers(name, kind):
            if one.startswith("="):  # an alias; what follows is said of the name that it stands for
                alias = b"".join(bytes([len(label)]) + label.encode() for label in one[1:].split(".")) + b"\0"
                found.append(_record(owner, 5, alias))
                owner = alias
            elif kind == (28 if ":" in one else 1):
                found.append(_record(owner, kind, ipaddress.ip_address(one).packed))
        head = data[:2] + (b"\x81\x80" if name in NAMES else b"\x81\x83") + data[4:6]
        head += len(found).to_bytes(2, "big") + bytes(4)
        self._transport.sendto(head + data[12 : place + 5] + b"".join(found), peer)

    def _answers(self, name: str, kind: int) -> tuple[str, ...]:
        turns = NAMES.get(name, ((),))
        self.asked[f"{name} {kind}"] += 1
        answers = turns[min(self.asked[f"{name} {kind}"], len(turns)) - 1]
        if answers and answers[0].startswith("="):  # an alias, with what it stands for
            return (answers[0], *NAMES.get(answers[0][1:], (("127.0.0.1",),))[0])
        return answers


def _record(owner: bytes, kind: int, content: bytes) -> bytes:
    return owner + kind.to_bytes(2, "big") + b"\0\x01\0\0\0\0" + len(content).to_bytes(2, "big") + content


class _Canaries(asyncio.DatagramProtocol):
    """Remember everyone who came where nobody may go."""

    def __init__(self) -> None:
        self.touched: list[str] = []

    def datagram_received(self, data: bytes, peer: Any) -> None:
        self.touched.append(f"a datagram from {peer[:2]}: {data[:40]!r}")

    async def connected(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = writer.get_extra_info("sockname")[:2]
        self.touched.append(f"{host} port {port}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\ncanary")
        writer.close()


class _Site:
    """The one place in this world that may be reached."""

    def __init__(self) -> None:
        self.strangers: list[str] = []  # who asked without our fetcher

    async def answer(self, request: server.Request) -> server.StreamResponse:
        if request.headers["User-Agent"] != _AGENT or request.method != "GET":
            self.strangers.append(f"{request.method} {request.path} {request.headers['User-Agent']}")
        _, kind, number = (*request.path.split("/"), "", "")[:3]
        if "to" in request.query:
            left = int(number or 0)
            onward = f"/chain/{left - 1}?to={request.query['to']}" if left else request.query["to"]
            return server.Response(status=302, headers={"Location": onward})
        if kind == "redirect" and number.isdecimal():
            return _sent(Sent((("Location", REDIRECTS[int(number)]),), status=(301, 302, 303, 307, 308)[int(number) % 5]))
        table = {"headers": HEADERS, "pages": PAGES}.get(kind)
        return _sent(table[int(number)] if table and number.isdecimal() else Sent())


def _sent(row: Sent) -> server.Response:
    response = server.Response(body=row.body.encode(), status=row.status)
    response.headers["Content-Type"] = "text/html; charset=utf-8"
    response.headers["Connection"] = "close"  # so that every request looks the name up again, if it dares
    for name, value in row.headers:
        if name == "Content-Type":
            response.headers[name] = value
        else:
            response.headers.add(name, value)
    return response


def _listening(address: str, port: int, kind: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # the site's own address goes before the canaries' any
    if ":" in address:
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listening.bind((address, port))
    return listening


async def _serve(stack: AsyncExitStack) -> tuple[_Site, _Names, _Canaries]:
    loop, site, canaries, names = asyncio.get_running_loop(), _Site(), _Canaries(), _Names()
    app = server.Application()
    app.router.add_route("*", "/{path:.*}", site.answer)
    runner = server.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await server.SockSite(runner, _listening(SITE, 80, socket.SOCK_STREAM)).start()
    door = await asyncio.start_server(lambda _, writer: writer.close(), sock=_listening(SITE, 443, socket.SOCK_STREAM))
    stack.callback(door.close)
    for address in ("0.0.0.0", "::"):
        for port in PORTS:
            opened = await asyncio.start_server(canaries.connected, sock=_listening(address, port, socket.SOCK_STREAM))
            stack.callback(opened.close)
        for port in _UDP_PORTS:
            await loop.create_datagram_endpoint(lambda: canaries, sock=_listening(address, port, socket.SOCK_DGRAM))
    await loop.create_datagram_endpoint(lambda: names, sock=_listening("9.9.9.9", 53, socket.SOCK_DGRAM))
    return site, names, canaries


def rows() -> list[str]:
    """Return what is opened, row by row."""
    urls = [url.replace("{n}", str(PORTS[n % len(PORTS)])) for n, url in enumerate(URLS)]
    tables = {"redirect": REDIRECTS, "headers": HEADERS, "pages": PAGES}
    sites = [f"http://site.example/{name}/{n}" for name, table in tables.items() for n in range(len(table))]
    return [*urls, *(f"{scheme}://{name}/" for name in DNS for scheme in ("http", "https")), *sites]


async def _try(mode: Any) -> dict[str, object]:
    settings = WebSettings(
        fetch=FetchSettings(first_byte_s=3.0, total_s=5.0, deadline_s=8.0, attempts=2, wait_s=0.01, user_agent=_AGENT),
        pace=PaceSettings(per_host=32, per_host_per_s=2_000.0),
        extract=ExtractSettings(workers=1),
        breaker=BreakerSettings(failures=1_000_000),  # most of these names are meant to be dead
        render=RenderSettings(mode, rest_s=0.3, patience_s=3.0, deadline_s=15.0),
    )
    async with AsyncExitStack() as stack:
        site, names, canaries = await _serve(stack)
        web = await stack.enter_async_context(Web(settings))
        places, ends = asyncio.Semaphore(16), dict[str, str]()

        async def one(row: str) -> None:
            async with places:
                for turn in range(3 if row.partition("://")[2].rstrip("/") in DNS else 1):
                    found = await web.open(row + "?again" * turn)
                    ends[row] = "page" if isinstance(found, Page) else found.kind
                    if isinstance(found, Page) and "canary" in found.text:
                        canaries.touched.append(f"the text of {row}")

        await asyncio.gather(*map(one, rows()))
        await asyncio.sleep(1.0 if mode == "always" else 0.1)  # for what comes late
        touched, counted = tuple(canaries.touched), web._metrics.drain()
        for host in ALIVE:  # whoever had come would have been seen
            await asyncio.open_connection(host, 80)
        await asyncio.sleep(0.1)
        return {
            "ends": ends,
            "touched": touched,
            "alive": [one for one in canaries.touched if one not in touched],
            "strangers": site.strangers,
            "asked": list(names.asked),
            "counted": {name: value for name, value in counted.items() if name.startswith("web/render")},
        }


if __name__ == "__main__":
    _build()
    print(json.dumps(asyncio.run(_try((*sys.argv, "off")[1]))))
