"""Bring answers to a form in which only the words count.

The reference's normalisation: lower case, punctuation becomes a space, white space collapses; articles stay. Punctuation is
ASCII's, symbols included, and all of Unicode's, so that typographic quotes and dashes count as what they stand for.
"""

from __future__ import annotations

import string
import unicodedata
from functools import cache

_PLANES = 0x20000  # no punctuation lies in the planes above


def normalized(text: str) -> str:
    """Return the text in lower case, punctuation as spaces, white space collapsed."""
    return " ".join(text.lower().translate(_to_space(ascii_only=text.isascii())).split())


@cache
def _to_space(*, ascii_only: bool) -> dict[int, str]:
    table = dict.fromkeys(map(ord, string.punctuation), " ")
    if not ascii_only:
        table |= {code: " " for code in range(128, _PLANES) if unicodedata.category(chr(code)).startswith("P")}
    return table
