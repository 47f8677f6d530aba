"""Bring answers to a form in which only the words count.

The reference's normalisation: lower case, punctuation becomes a space, white space collapses; articles stay.
"""

from __future__ import annotations

import string

_TO_SPACE = str.maketrans(dict.fromkeys(string.punctuation, " "))


def normalized(text: str) -> str:
    """Return the text in lower case, punctuation as spaces, white space collapsed."""
    return " ".join(text.lower().translate(_TO_SPACE).split())
