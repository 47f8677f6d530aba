import asyncio
import socket

import pytest

from dr_jax.web.guard import AllowedHost, Guard, GuardedResolver, RefusedAddressError, is_public
from dr_jax.web.page import WebError
from tests.web.conftest import MakeFetcher, Site

GUARD = Guard([AllowedHost("here", "127.0.0.1", 4711)])
LOOPBACK = (
    *(
        "127.0.0.1",
        "127.1",
        "127.0.0.1.",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "017700000001",
        "0",
        "127.0.1",
    ),
    *("127。0。0。1", "127．0．0．1", "①②⑦.⓪.⓪.①", "１２７.0.0.1", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]"),
    *(
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[64:ff9b:1::7f00:1]",
        "[2002:7f00:1::]",
    ),
    *("[2001:0:7f00:1::]", "[2001:db8::1]", "[2606:4700::5efe:127.0.0.1]", "[2606:4700::200:5efe:10.0.0.1]", "[::1%25lo]"),
    *(
        "localhost",
        "LOCALHOST",
        "localhost.",
        "ｌｏｃａｌｈｏｓｔ",
        "a.localhost",
        "localhost.localdomain.local",
        "router",
        "a.internal",
    ),
)
PRIVATE = (
    *(
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "0.0.0.0",
        "255.255.255.255",
    ),
    *("224.0.0.1", "239.255.255.250", "240.0.0.1", "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1"),
    *(
        "192.88.99.1",
        "168.63.129.16",
        "[fe80::1]",
        "[fc00::1]",
        "[fd00:ec2::254]",
        "[ff02::1]",
        "[fec0::1]",
        "[3fff::1]",
        "[100::1]",
    ),
    *("metadata.google.internal", "METADATA.google.internal.", "metadata.goog", "metadata", "instance-data.ec2.internal"),
    *(
        "169.254.169.254.",
        "0xa9fea9fe",
        "0251.0376.0251.0376",
        "2852039166",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
    ),
)


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
