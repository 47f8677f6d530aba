"""Names of a world that does not exist.

In:    a random generator and a split
Out:   names of two invented words, such as `Velin Tarro`
Holds: a stable hash of the name decides its split, so no training world, whatever its seed, shares a name with a held-out one
"""

from __future__ import annotations

import hashlib
import itertools
import random
from typing import Literal

Split = Literal["train", "eval"]

_STARTS = ("b", "br", "d", "dr", "f", "g", "gr", "h", "k", "kl", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u")
_ENDS = ("l", "n", "r", "s", "th", "nd", "rk", "m")
_WORDS = 256


def _lexicon() -> tuple[str, ...]:
    rng = random.Random("littleweb lexicon")
    first = [start + vowel for start, vowel in itertools.product(_STARTS, _VOWELS)]
    words: dict[str, None] = {}
    while len(words) < _WORDS:
        words[
            (
                rng.choice(first)
                + rng.choice(_STARTS[:1] + _STARTS[2:3] + _STARTS[10:])
                + rng.choice(_VOWELS)
                + rng.choice(_ENDS)
            ).capitalize()
        ] = None
    return tuple(words)


LEXICON = _lexicon()


def split_of(name: str) -> Split:
    """The split that a name belongs to, in every world."""
    return "eval" if hashlib.blake2b(name.encode(), digest_size=1).digest()[0] % 4 == 0 else "train"


def draw(rng: random.Random, split: Split) -> str:
    """Draw a name of this split."""
    while True:
        name = f"{rng.choice(LEXICON)} {rng.choice(LEXICON)}"
        if split_of(name) == split:
            return name
