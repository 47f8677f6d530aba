"""Decide which addresses may be reached, for the URL and again for every address that its name resolves to.

In:    a URL (`vet_url`), a host name at connect time (`GuardedResolver`)
Out:   the URL in the one spelling that is fetched, or a WebError; only vetted addresses, which aiohttp then connects to
Holds: nothing but the public internet is reached, except the hosts that the caller names one by one; what was vetted is
       what is connected to, so a name that changes its address between two look-ups gains nothing
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from dr_jax.web.blocklist import Blocklist
from dr_jax.web.page import WebError

Lookup = Callable[[str], Awaitable[list[str]]]

_MAX_URL = 8_192
_PORTS = (80, 443)
_LOOKUPS = 64  # at a time: names that hang for as long as the system lets them must leave places for others
_NOT_IN_URL = re.compile(r"[\x00-\x1f\x7f\\]")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_INNER_NAMES = ("localhost", "local", "internal", "intranet", "lan", "home.arpa", "onion", "invalid", "test")
_METADATA_NAMES = ("metadata.google.internal", "metadata.goog", "metadata.azure.com", "instance-data.ec2.internal")
_NOT_PUBLIC = tuple(  # beyond what `ipaddress` calls private, whose tables differ from release to release
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # Azure's host agent: a public address that leads inside
        *("2001::/23", "2001:db8::/32", "3fff::/20"),  # Teredo among the first
        "2002::/16",  # 6to4: whatever IPv4 address is inside
    )
)
_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_MAPPED = ipaddress.ip_network("::ffff:0:0/96")
_ISATAP = (0x00005EFE, 0x02005EFE)


@dataclass(frozen=True, slots=True)
class AllowedHost:
    """Names that lead to one address and port that the guard would otherwise refuse.

    Args:
        suffix: a name; it and everything below it is led there, whatever port the URL names.
        address: an IP address.
        port: where something listens.
    """

    suffix: str
    address: str = "127.0.0.1"
    port: int = 80

    def __post_init__(self) -> None:
        if not self.suffix or not all(_LABEL.fullmatch(label) for label in self.suffix.split(".")):
            raise ValueError(f"allowed suffix {self.suffix!r}: a host name in lower case is needed")
        ipaddress.ip_address(self.address)
        if not 0 < self.port < 65536:
            raise ValueError(f"allowed port {self.port}: 1 to 65535 is needed")


class RefusedAddressError(OSError):
    """A name has no address that may be reached; aiohttp hands it on as the cause of a failed connection."""


class Guard:
    """What may be reached.

    Args:
        allow: the only ways to an address that is not public.
        block: what is not opened although it could be.
    """

    def __init__(self, allow: Iterable[AllowedHost] = (), block: Blocklist | None = None) -> None:
        self._allow, self._block = tuple(allow), block

    def allowed(self, host: str) -> AllowedHost | None:
        """Return the permission that covers a host name, if there is one."""
        return next((one for one in self._allow if host == one.suffix or host.endswith(f".{one.suffix}")), None)

    def vet_url(self, url: str) -> str | WebError:
        """Return the URL in the spelling that may be fetched, without fragment, or why it may not."""
        parsed = _parsed(url.strip())
        if isinstance(parsed, WebError):
            return parsed
        shown, host = _short(url), str(parsed.raw_host).lower().rstrip(".")
        if "@" in parsed.raw_authority:
            return WebError("refused", f"{shown} holds a user name; addresses with credentials are not opened")
        if self.allowed(host) is None:
            if parsed.port not in _PORTS:
                return WebError("refused", f"{shown} names port {parsed.port}; only 80 and 443 are opened")
            if (why := _refused_host(host)) is not None:
                return WebError("refused", f"{shown} is not opened: {why}")
        where = f"[{host}]" if ":" in host else host
        port = "" if parsed.is_default_port() else f":{parsed.port}"
        query = f"?{parsed.raw_query_string}" if parsed.raw_query_string else ""
        vetted = f"{parsed.scheme}://{where}{port}{parsed.raw_path or '/'}{query}"
        return self.blocked(vetted) or vetted

    def blocked(self, url: str) -> WebError | None:
        """Return why an address is not opened in this run although it could be reached, or None."""
        entry = self._block.entry(url) if self._block is not None else None
        if entry is None:
            return None
        return WebError("blocked", f"{_short(url)} is not opened: {entry} is on the block list; look for another source")

    def vet_addresses(self, host: str, found: Iterable[str]) -> list[str]:
        """Return those of a name's addresses that may be reached.

        Raises:
            RefusedAddressError: there is none.
        """
        public = [address for address in found if is_public(address)]
        if not public:
            raise RefusedAddressError(f"{host} has no public address")
        return public


class GuardedResolver(AbstractResolver):
    """Resolves names for aiohttp, and returns no address that the guard refuses.

    Args:
        guard: decides.
        lookup: from a name to its addresses; the system's by default.
    """

    def __init__(self, guard: Guard, lookup: Lookup | None = None) -> None:
        self._guard = guard
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="lookup")  # started when needed
        self._lookup = lookup or (lambda host: system_lookup(host, self._threads))

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        """Return where to connect; names that the caller allowed lead to their own address and port.

        Raises:
            RefusedAddressError: the name has no address that may be reached.
            OSError: there is no such name.
        """
        name = host.lower().rstrip(".")
        allowed = self._guard.allowed(name)
        if allowed is not None:
            return [_found(host, allowed.address, allowed.port)]
        if (why := _refused_host(name)) is not None:
            raise RefusedAddressError(why)
        return [_found(host, address, port) for address in self._guard.vet_addresses(name, await self._lookup(name))]

    async def close(self) -> None:
        """Forget what is being looked up; a look-up in progress ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)


async def system_lookup(
    host: str, threads: Executor | None = None, family: socket.AddressFamily = socket.AF_UNSPEC
) -> list[str]:
    """Return a name's addresses as the system knows them.

    Args:
        host: the name.
        threads: where the system is asked; the event loop's own by default.
        family: of the addresses that are meant.

    Raises:
        OSError: there is no such name.
    """
    ask = partial(socket.getaddrinfo, host, None, family, socket.SOCK_STREAM)
    return [str(info[4][0]) for info in await asyncio.get_running_loop().run_in_executor(threads, ask)]


def host_of(url: str) -> str:
    """Return the host of an address, in lower case; "" where there is none."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def is_public(text: str) -> bool:
    """Whether an address is one of the public internet, IPv4 addresses inside IPv6 ones included."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:  # a zone index, or no address
        return False
    if isinstance(address, ipaddress.IPv6Address):
        bits = int(address)
        if address in _MAPPED or address in _NAT64:
            return is_public(str(ipaddress.IPv4Address(bits & 0xFFFFFFFF)))
        if bits >> 32 & 0xFFFFFFFF in _ISATAP and not is_public(str(ipaddress.IPv4Address(bits & 0xFFFFFFFF))):
            return False
        if address not in _GLOBAL_V6 or address.scope_id is not None:
            return False
    inside = any(address.version == network.version and address in network for network in _NOT_PUBLIC)
    return not inside and not address.is_private and not address.is_multicast and not address.is_reserved


def _parsed(text: str) -> URL | WebError:
    try:
        parsed = URL(text)
        usable = parsed.scheme in ("http", "https") and bool(parsed.raw_host) and parsed.port is not None
    except (ValueError, IndexError):  # the latter for `http://[]@`
        usable = False
    if not usable:
        return WebError("bad_url", f"{_short(text)} is not an address; an absolute one like https://example.org/page is needed")
    if len(text) > _MAX_URL:
        return WebError("bad_url", f"The address is {len(text)} characters long; at most {_MAX_URL} are taken")
    # Programs disagree on what follows such characters, so what was vetted might not be what is reached.
    if _NOT_IN_URL.search(text) or " " in re.split(r"[/?#]", text.split("://", 1)[-1], maxsplit=1)[0]:
        return WebError("bad_url", f"{_short(text)} holds characters that no address has")
    return parsed


def _short(url: str) -> str:
    text = url.strip()
    return repr(text if len(text) <= 200 else text[:200] + "…")


def _refused_host(host: str) -> str | None:
    """Return why a host may not even be looked up, or None."""
    try:
        address = str(ipaddress.ip_address(host))
    except ValueError:
        pass
    else:
        return None if is_public(address) else "its address is not on the public internet"
    labels = host.split(".")
    if not all(_LABEL.fullmatch(label) for label in labels) or len(host) > 253:
        return "it is not a host name"
    if labels[-1].isdigit() or re.fullmatch(r"0x[0-9a-f]*", labels[-1]):
        return "its host is a number; an address is written as four decimal numbers"
    if len(labels) == 1 or any(host == name or host.endswith(f".{name}") for name in (*_INNER_NAMES, *_METADATA_NAMES)):
        return "its name is not one of the public internet"
    return None


def _found(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=flags)
