"""Leave alone what a site asks robots to leave alone (RFC 9309).

In:    a vetted URL, and a way to fetch a site's robots.txt
Out:   nothing, or the WebError that stands in for the page
Holds: each origin is asked once while its answer is fresh, whoever waits for it; what is remembered is bounded in bytes; a
       site that fails to say is left alone for the time being (2.3.1.4), one that says nothing is open (2.3.1.3)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from protego import Protego
from yarl import URL

from dr_jax.web.once import Once
from dr_jax.web.page import Kind, WebError
from dr_jax.web.reply import Fetched

_PRODUCT = "dr-jax"  # 2.2.1: which group is ours; the rest of what we introduce ourselves as is that of others
_MAX_FILE = 512_000  # bytes that are read of one (2.5 demands 500 KiB)
_MAX_KEPT = 32 << 20  # bytes, by the estimate below
_PER_BYTE = 40  # of memory, for a byte of the file
_FRESH_S, _FAILED_S = 86_400.0, 60.0  # 2.4 wants a day at most
_UNREACHABLE: tuple[Kind, ...] = ("server", "timeout", "unreachable", "busy", "protocol")


@dataclass(frozen=True, slots=True)
class _Rules:
    """What one origin said: rules, or why it could not say."""

    parsed: Protego | None = None
    failed: WebError | None = None
    size: int = 0


class Robots:
    """The robots.txt of every origin that is asked.

    Args:
        fetch: from the address of a robots.txt to what is there, within a deadline.
    """

    def __init__(self, fetch: Callable[[str], Awaitable[Fetched | WebError]]) -> None:
        self._fetch = fetch
        self._known = Once[_Rules](
            lambda rules: 1_000 + _PER_BYTE * rules.size, _MAX_KEPT, lambda rules: _FAILED_S if rules.failed else _FRESH_S
        )

    async def refusal(self, url: str) -> WebError | None:
        """Return why a vetted address is not to be opened, or None.

        Raises:
            WorldDownError: everything was closed meanwhile.
        """
        origin = str(URL(url, encoded=True).origin())
        rules = await self._known.get(origin, lambda: self._read(origin))
        if rules.failed is not None:
            return WebError(
                rules.failed.kind, f"{url} was not opened: its site's robots.txt could not be had. {rules.failed.message}"
            )
        if rules.parsed is None or rules.parsed.can_fetch(url, _PRODUCT):
            return None
        return WebError("robots", f"{url} is not opened: its site asks programs to leave it alone (robots.txt)")

    async def close(self) -> None:
        """Stop asking, and forget everything."""
        await self._known.close()

    async def _read(self, origin: str) -> _Rules:
        found = await self._fetch(f"{origin}/robots.txt")
        if isinstance(found, WebError):
            return _Rules(failed=found if found.kind in _UNREACHABLE else None)
        body = found.body
        if len(body) > _MAX_FILE or found.truncated:  # half a line would mean something else
            body = body[:_MAX_FILE].rpartition(b"\n")[0]
        text = body.decode("utf-8", "replace")
        return _Rules(await asyncio.to_thread(Protego.parse, text), size=len(text))
