import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from dr_jax.web.guard import AllowedHost, Guard, GuardedResolver, RefusedAddressError, is_public
from dr_jax.web.page import WebError
from tests.chromium import NEEDED
from tests.web.conftest import MakeFetcher, Site
from tests.web.hostile import DEAD, DNS, HEADERS, LOOPBACK, NAMES, PAGES, PRIVATE, REDIRECTS, SITE, URLS

GUARD = Guard([AllowedHost("here", "127.0.0.1", 4711)])


@pytest.mark.parametrize("host", LOOPBACK + PRIVATE)
@pytest.mark.parametrize("form", ["http://{}/", "https://{}:443/x?y#z"])
def test_no_spelling_of_an_inner_host_is_taken(host: str, form: str) -> None:
    found = GUARD.vet_url(form.format(host))
    assert isinstance(found, WebError), found
    assert found.kind in ("refused", "bad_url")


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        *((f"{scheme}//example.org/", "bad_url") for scheme in ("ftp:", "file:", "gopher:", "ws:", "", "data:", "htt p:")),
        *(("http:///x", "bad_url"), ("", "bad_url"), ("example.org/x", "bad_url"), ("javascript:alert(1)", "bad_url")),
        *(
            ("http://example.org:8080/", "refused"),
            ("https://example.org:22/", "refused"),
            ("http://example.org:0/", "refused"),
        ),
        *(("http://example.org:99999/", "bad_url"), ("http://[::1/", "bad_url"), ("http://exa mple.org/", "bad_url")),
        *(("http://user@example.org/", "refused"), ("http://user:word@example.org/", "refused")),
        *(("http://example.org@127.0.0.1/", "refused"), ("http://example.org%2f@127.0.0.1/", "refused")),
        *(
            ("http://example.org\\@127.0.0.1/", "bad_url"),
            ("http://example.org\n.evil/", "bad_url"),
            ("http://a\0b/", "bad_url"),
        ),
        *(("http://example.org\t/", "bad_url"), ("http://example..org/", "refused"), ("http://-a.org/", "refused")),
        *(("http://" + "a." * 200 + "org/", "refused"), ("http://example.org/" + "a" * 9000, "bad_url")),
        *(("http://here.example:4711/", "refused"), ("http://nothere:4711/", "refused"), ("http://127.0.0.1:4711/", "refused")),
    ],
)
def test_what_is_no_address_is_refused(url: str, kind: str) -> None:
    found = GUARD.vet_url(url)
    assert isinstance(found, WebError), found
    assert found.kind == kind


@pytest.mark.parametrize(
    ("url", "spelling"),
    [
        ("HTTP://Example.ORG", "http://example.org/"),
        (" https://example.org.:443/a b?q=é#part ", "https://example.org/a%20b?q=%C3%A9"),
        ("http://bücher.de/", "http://xn--bcher-kva.de/"),
        ("http://8.8.8.8/", "http://8.8.8.8/"),
        ("http://[2606:4700::1111]/", "http://[2606:4700::1111]/"),
        ("http://example.org/?who=a@b", "http://example.org/?who=a@b"),
        ("http://atlas.here:9/x", "http://atlas.here:9/x"),
    ],
)
def test_a_good_address_has_one_spelling(url: str, spelling: str) -> None:
    assert GUARD.vet_url(url) == spelling
    assert GUARD.vet_url(spelling) == spelling


def test_public_addresses_are_public() -> None:
    assert all(map(is_public, ("8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808")))
    assert not any(map(is_public, ("2002:808:808::1", "fe80::1%eth0", "2001:4860::5efe:a00:1", "nonsense", "")))


async def test_a_name_is_led_only_to_its_public_addresses() -> None:
    async def lookup(host: str) -> list[str]:
        return {"mixed.org": ["10.0.0.1", "8.8.8.8", "::1"], "inner.org": ["192.168.0.1", "fd00::1"]}[host]

    resolver = GuardedResolver(GUARD, lookup)
    found = await resolver.resolve("mixed.org", 443)
    assert [(one["host"], one["port"]) for one in found] == [("8.8.8.8", 443)]
    for host in ("inner.org", "metadata.google.internal", "localhost"):
        with pytest.raises(RefusedAddressError):
            await resolver.resolve(host, 80)
    await resolver.close()


async def test_an_allowed_name_is_led_to_its_own_port() -> None:
    resolver = GuardedResolver(GUARD)
    (found,) = await resolver.resolve("atlas.here", 80)
    assert (found["host"], found["port"], found["family"]) == ("127.0.0.1", 4711, socket.AF_INET)
    await resolver.close()


@pytest.mark.parametrize("target", ["http://inner.org/", "https://inner.org/", "http://127.0.0.1:{port}/", "http://0:{port}/"])
@pytest.mark.parametrize("way", ["straight", "by a redirect"])
async def test_nothing_reaches_a_canary_on_loopback(target: str, way: str, site: Site, make_fetcher: MakeFetcher) -> None:
    touched: list[object] = []
    canary = await asyncio.start_server(lambda _, writer: (touched.append(writer), writer.close()), "127.0.0.1", 0)
    port = canary.sockets[0].getsockname()[1]

    async def lookup(_: str) -> list[str]:
        return ["127.0.0.1", "::1", "::ffff:127.0.0.1"]

    fetcher = await make_fetcher(lookup)
    url = target.format(port=port)
    site.page("/away", status=302, Location=url)
    found = await fetcher.get(url if way == "straight" else "http://a.here/away")
    assert isinstance(found, WebError)
    assert found.kind == "refused"
    assert not touched
    canary.close()
    await canary.wait_closed()


async def test_what_was_vetted_is_what_is_connected_to() -> None:
    """A name that leads to a public address when it is vetted and inside when it is looked up again."""
    looked_up = []

    async def lookup(host: str) -> list[str]:
        looked_up.append(host)
        return ["8.8.8.8"] if len(looked_up) == 1 else ["127.0.0.1"]

    resolver = GuardedResolver(GUARD, lookup)
    (found,) = await resolver.resolve("turning.org", 80)
    assert found["host"] == "8.8.8.8"
    assert found["flags"] & socket.AI_NUMERICHOST  # so that nobody looks it up again on the way
    assert looked_up == ["turning.org"]
    await resolver.close()


def test_permission_must_name_a_host() -> None:
    for wrong in (
        {"suffix": ""},
        {"suffix": "A"},
        {"suffix": "a/b"},
        {"suffix": "a", "port": 0},
        {"suffix": "a", "address": "b"},
    ):
        with pytest.raises(ValueError, match=r"needed|does not appear"):
            AllowedHost(**wrong)


BOX = ("unshare", "--map-root-user", "--net", "--mount")


def no_box() -> str:
    """Why there can be no namespaces of our own here, or ""."""
    if not all(map(shutil.which, ("unshare", "ip", "mount"))):
        return "unshare, ip and mount are needed (Linux: util-linux, iproute2)"
    tried = subprocess.run([*BOX, "ip", "link", "set", "lo", "up"], capture_output=True, text=True, timeout=30)
    return tried.stderr.strip() and f"namespaces cannot be made here: {tried.stderr.strip()}"


NO_BOX = no_box()


def besieged(mode: str) -> dict[str, Any]:
    root = Path(__file__).parents[2]
    command = [*BOX, sys.executable, "-m", "tests.web.siege", mode]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(bool(NO_BOX), reason=NO_BOX)
@pytest.mark.timeout(1300)
@pytest.mark.parametrize(
    "mode",
    ["off", pytest.param("always", marks=NEEDED)],
)
def test_nobody_is_reached_from_within_a_world_of_canaries(mode: str) -> None:
    """Every row of `hostile.py`, with real sockets, the system's resolver and a name server that changes its mind."""
    found = besieged(mode)
    rows = len(URLS) + 2 * len(DNS) + len(REDIRECTS) + len(HEADERS) + len(PAGES)
    assert len(found["ends"]) == rows > 300
    assert found["touched"] == []
    assert found["strangers"] == []  # not even the public site, except through our fetcher
    assert not [name for name in found["asked"] if name.startswith(("leak.", "metadata", "localhost "))]
    assert len(found["alive"]) == 7  # every canary was there to be reached
    for url in URLS[: len(LOOPBACK + PRIVATE)]:
        assert found["ends"][url] in ("refused", "bad_url"), url
    inner = [name for name in DNS if NAMES[name] != ((),) and not {SITE, DEAD} & {one for turn in NAMES[name] for one in turn}]
    for url in (f"{scheme}://{name}/" for name in inner for scheme in ("http", "https")):
        assert found["ends"][url] == "refused", url
    assert sum(end == "page" for end in found["ends"].values()) > len(PAGES)  # what may be opened was
    assert (found["counted"].get("web/render_n", 0) > len(PAGES)) == (mode == "always")
    assert (found["counted"].get("web/render_refused", 0) > 100) == (mode == "always")


async def test_names_that_hang_leave_places_for_others() -> None:
    resolver, go = GuardedResolver(Guard([])), threading.Event()
    try:
        for _ in range(40):  # as getaddrinfo does where a name server does not answer
            resolver._threads.submit(go.wait, 20.0)
        assert await asyncio.wait_for(resolver._lookup("127.0.0.1"), 10.0) == ["127.0.0.1"]
    finally:
        go.set()
        await resolver.close()
