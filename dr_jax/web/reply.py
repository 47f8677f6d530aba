"""What came back from one request, and what it means to whoever asked.

In:    the head of a response, or the error that came in its place
Out:   Fetched or Answer; WebError of the right kind; AgainError where the next attempt may end otherwise
Holds: what a header says is bounded and printable before anybody else sees it
"""

from __future__ import annotations

import email.utils
import re
import socket
import time
from dataclasses import dataclass, field

import aiohttp

from dr_jax.web.guard import RefusedAddressError
from dr_jax.web.page import Kind, WebError

_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})
_TYPE = re.compile(r"\s*([\w.+-]{1,80}/[\w.+-]{1,80})\s*(?:;|,|$)", re.ASCII)
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]{1,40})", re.ASCII | re.IGNORECASE)
_VALIDATOR = re.compile(r"[\x20-\x7e]{1,256}")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A page's bytes.

    Args:
        url: where it was found in the end.
        status: of the answer; 2xx for a page.
        content_type: lower case, without parameters; "" when none was named.
        charset: as named by the header, lower case; "" when it was not.
        body: with content encodings undone.
        truncated: whether a cap cut it.
        broken: whether the connection ended before the body did, at every attempt; what came before is kept.
        etag, modified: what the server may be asked by whether this still holds; "" when it named nothing.
    """

    url: str
    status: int
    content_type: str
    charset: str
    body: bytes = field(repr=False)
    truncated: bool = False
    broken: bool = False
    etag: str = ""
    modified: str = ""

    def conditions(self, url: str) -> dict[str, str]:
        """Return the headers that ask an address whether this still holds: none for another address, or for half a page."""
        if url != self.url or self.truncated:
            return {}
        asked = {"If-None-Match": self.etag, "If-Modified-Since": self.modified}
        return {name: value for name, value in asked.items() if value}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service said to one request.

    Args:
        status: of the answer, whatever it is.
        body: with content encodings undone; empty where the status alone says that asking again may help.
        after_s: how long the service asks us to wait.
    """

    status: int
    body: bytes = field(repr=False)
    after_s: float | None = None


class AgainError(Exception):
    """An attempt failed in a way that may be different next time."""

    def __init__(self, error: WebError, *, after_s: float | None = None, part: Fetched | None = None, status: int = 0) -> None:
        super().__init__(error.message)
        self.error, self.after_s, self.part, self.status = error, after_s, part, status


def check_again(url: str, response: aiohttp.ClientResponse) -> None:
    """Raise what a status means that passes.

    Raises:
        AgainError: it does.
    """
    status = response.status
    if status in _AGAIN:
        kind: Kind = "busy" if status == 429 else "timeout" if status == 408 else "server"
        error = WebError(kind, f"{url} answered with status {status}")
        raise AgainError(error, after_s=_retry_after(response), status=status)


def content_type(response: aiohttp.ClientResponse) -> tuple[str, str]:
    """Return content type and charset, lower case; "" for what the header does not name in due form."""
    header = response.headers.get("Content-Type", "")
    found, charset = _TYPE.match(header), _CHARSET.search(header)
    return found.group(1).lower() if found else "", charset.group(1).lower() if charset else ""


def validator(response: aiohttp.ClientResponse, name: str) -> str:
    """Return a header that a later request may repeat, or "" where it is missing or odd."""
    text = response.headers.get(name, "").strip()
    return text if _VALIDATOR.fullmatch(text) else ""


def kind_of(status: int) -> Kind:
    """Return what a status that is no success is to the asker."""
    match status:
        case 404 | 410:
            return "not_found"
        case 401 | 402 | 403 | 407 | 451:
            return "denied"
        case _ if status >= 500:
            return "server"
        case _:
            return "http"


def explained(url: str, error: aiohttp.ClientError | OSError) -> WebError:
    """Return what a failed connection means to the asker.

    Raises:
        AgainError: the next attempt may end otherwise.
    """
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else None
    match error, cause:
        case _, RefusedAddressError():
            return WebError("refused", f"{url} is not opened: its name leads to no public address")
        case _, socket.gaierror(errno=socket.EAI_NONAME):
            return WebError("unreachable", f"{url} has a host name that does not exist")
        case aiohttp.InvalidURL(), _:
            return WebError("bad_url", f"{url} is not an address")
        case aiohttp.ClientConnectorCertificateError(), _:
            return WebError("unreachable", f"{url} has a certificate that is not valid")
        case ((aiohttp.ClientResponseError() | aiohttp.ClientPayloadError()), _):
            return WebError("protocol", f"{url} did not answer in HTTP")
        case _:
            raise AgainError(WebError("unreachable", f"{url} could not be reached")) from error


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Seconds that a server asks us to wait (RFC 9110, 10.2.3), or None."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
