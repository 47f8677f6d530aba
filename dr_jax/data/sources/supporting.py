"""The titles of the pages that a multi-hop question needs, as its authors marked them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from dr_jax.base.errors import DataError
from dr_jax.data.sources.row import Row


def titles(row: Row, name: str = "supporting_facts") -> str:
    """Return the titles as a JSON list, each once; nothing where the row has none.

    Takes `[[title, sentence], …]`, `{"title": […], "sent_id": […]}`, and either of them as a JSON text.
    """
    found: Any = row.fields.get(name)
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except json.JSONDecodeError as error:
            raise DataError(f"{row.place}: {name} is not JSON: {error}", needed="a list of titles with sentences") from error
    if not found:
        return ""
    if isinstance(found, dict) and isinstance(found.get("title"), list):
        return listed(found["title"])
    if isinstance(found, list) and all(isinstance(one, list) and one and isinstance(one[0], str) for one in found):
        return listed(one[0] for one in found)
    raise DataError(f"{row.place}: {name} is {found!r}"[:300], needed="a list of titles with sentences")


def listed(found: Iterable[str]) -> str:
    """Return titles as a JSON list, each once, in their order."""
    return json.dumps(list(dict.fromkeys(found)), ensure_ascii=False)
