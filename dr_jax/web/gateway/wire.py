"""What a gateway and its clients say to each other, and what either may be told.

Form:  JSON over HTTP. The status says whether a request was taken; how it ended is in the body: `hits`, `page`, `error` (what a
       policy is shown), `failed` (what ends an episode or a run), each of which arrives as the type that was raised or returned
Holds: 503 means that nothing was begun, so that anybody else may be asked; a message never holds a key
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dr_jax.base.errors import BudgetError, DrJaxError, UserError, WorldDownError
from dr_jax.web.page import Hit, Page, WebError, decoded, encoded
from dr_jax.web.tape.entry import ReplayMiss

PROTOCOL = 1
HELLO, SEARCH, OPEN, HEALTHY = "/v1/hello", "/v1/search", "/v1/open", "/v1/healthy"
KEPT, KEEP = "/v1/tape/kept", "/v1/tape/keep"
Answer = dict[str, Any]
_FAILURES: Mapping[str, type[UserError]] = {"budget": BudgetError, "replay_miss": ReplayMiss, "user": UserError}


def found_hits(found: tuple[Hit, ...] | WebError) -> Answer:
    """Say what a search found."""
    if isinstance(found, WebError):
        return {"error": encoded(found)}
    return {"hits": [asdict(hit) for hit in found]}


def found_page(found: Page | WebError) -> Answer:
    """Say what an address holds."""
    return {"error" if isinstance(found, WebError) else "page": encoded(found)}


def failed(error: DrJaxError) -> Answer:
    """Say what ends an episode, or a run."""
    if isinstance(error, UserError):
        kind = next((name for name, one in _FAILURES.items() if type(error) is one), "user")
        return {"failed": {"kind": kind, "found": error.found, "needed": error.needed, "fix": error.fix}}
    return {"failed": {"kind": "world_down", "found": str(error)}}


def read_hits(answer: Mapping[str, Any]) -> tuple[Hit, ...] | WebError:
    """Undo `found_hits`.

    Raises:
        KeyError, TypeError, ValueError: it has another shape.
    """
    if "error" in answer:
        return _error(answer)
    return tuple(Hit(str(hit["title"]), str(hit["url"]), str(hit["snippet"])) for hit in answer["hits"])


def read_page(answer: Mapping[str, Any]) -> Page | WebError:
    """Undo `found_page`.

    Raises:
        KeyError, TypeError, ValueError: it has another shape.
    """
    return _error(answer) if "error" in answer else decoded(answer["page"])


def read_failure(answer: Mapping[str, Any], gateway: str) -> DrJaxError | None:
    """Return the error that an answer carries, if it does, as the type that was raised at the gateway.

    Raises:
        KeyError, TypeError: it has another shape.
    """
    if "failed" not in answer:
        return None
    told = answer["failed"]
    found, kind = str(told["found"]).rstrip("."), _FAILURES.get(told["kind"])
    if kind is None:
        return WorldDownError(f"{found} (gateway {gateway})")
    return kind(f"{found} (gateway {gateway})", needed=str(told["needed"]), fix=str(told["fix"]))


def _error(answer: Mapping[str, Any]) -> WebError:
    return WebError(answer["error"]["kind"], str(answer["error"]["message"]))
