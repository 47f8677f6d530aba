"""What the web returned, as a tape remembers it, and back; and how many bytes of memory it takes.

In:    hits, fetched bytes, a page, or the error in their place
Out:   an Entry; from an Entry the same again
"""

from __future__ import annotations

import json
from dataclasses import asdict
from sys import getsizeof

from dr_jax.base.errors import WorldDownError
from dr_jax.web.page import Hit, Page, WebError, decoded, encoded
from dr_jax.web.reply import Fetched
from dr_jax.web.tape.entry import Entry

Hits = tuple[Hit, ...]
_DOWN = "world_down"
_OURS = ("refused", "blocked", "robots")  # they follow from the settings of a run; others share its tape


def of_hits(found: Hits | WebError) -> Entry:
    """Return hits, or why there are none, as they are remembered."""
    failed = isinstance(found, WebError)
    content = encoded(found) if isinstance(found, WebError) else [asdict(hit) for hit in found]
    return Entry({}, json.dumps(content, ensure_ascii=False).encode(), error=failed)


def of_down(error: WorldDownError) -> Entry:
    """Return that nothing answered, for a replay only; whoever reads it back meets the same error."""
    return Entry({"kind": _DOWN, "message": str(error)}, error=True, passing=True)


def hits(entry: Entry) -> Hits | WebError:
    """Undo `of_hits`, or `of_down`.

    Raises:
        WorldDownError: nothing had answered.
    """
    _raise_down(entry)
    content = json.loads(entry.body)
    return WebError(**content) if isinstance(content, dict) else tuple(Hit(**hit) for hit in content)


def of_fetched(found: Fetched | WebError) -> Entry:
    """Return fetched bytes as they are remembered; for a replay only: half a page, errors that may pass, refusals of ours."""
    if isinstance(found, WebError):
        return Entry(encoded(found), error=True, passing=not found.lasting or found.kind in _OURS)
    meta = {name: value for name, value in asdict(found).items() if name != "body"}
    return Entry(meta, found.body, passing=found.broken)


def fetched(entry: Entry) -> Fetched | WebError:
    """Undo `of_fetched`, or `of_down`.

    Raises:
        WorldDownError: nothing had answered.
    """
    _raise_down(entry)
    if "kind" in entry.meta:
        return WebError(entry.meta["kind"], entry.meta["message"])
    return Fetched(**entry.meta, body=entry.body)


def of_page(page: Page | WebError) -> Entry:
    """Return a page as it is remembered; an error of extraction lasts as long as the bytes under which it is."""
    return Entry({}, json.dumps(encoded(page), ensure_ascii=False).encode())


def page(entry: Entry) -> Page | WebError:
    """Undo `of_page`."""
    return decoded(json.loads(entry.body))


def _raise_down(entry: Entry) -> None:
    if entry.meta.get("kind") == _DOWN:
        raise WorldDownError(str(entry.meta["message"]))


def size_of_hits(found: Hits | WebError) -> int | None:
    """Bytes that hits take in memory; None for an error that asking again may cure."""
    if isinstance(found, WebError):
        return 500 if found.lasting else None
    return 200 + sum(500 + getsizeof(hit.title) + getsizeof(hit.url) + getsizeof(hit.snippet) for hit in found)


def size_of_page(found: Page | WebError) -> int | None:
    """Bytes that a page takes in memory; None for an error that asking again may cure, or a page that was cut off."""
    if isinstance(found, WebError):
        return 500 if found.lasting else None
    return getsizeof(found.text) + sum(200 + getsizeof(text) + getsizeof(url) for text, url in found.links)
