"""Score answers by the definitions of the benchmarks' own scripts, so that numbers can be compared with published ones.

SQuAD v1.1, `evaluate-v1.1.py` (arXiv 1606.05250): lower case, ASCII punctuation deleted, the words a, an and the left out,
white space collapsed; exact match, and F1 over bags of words. HotpotQA, `hotpot_evaluate_v1.py` (arXiv 1809.09600): the same,
but yes, no and noanswer share no word with anything else. Cover exact match, as in `subem_check` of Search-R1 (arXiv
2503.09516): whether an accepted answer occurs in what was said, both normalised, as characters: `no` is covered by `north`.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CLOSED = frozenset({"yes", "no", "noanswer"})


def squad_normalized(text: str) -> str:
    """Return the text as SQuAD's script compares it."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def squad_em(answer: str, accepted: Sequence[str]) -> float:
    """Return 1.0 if the normalised answer is one of the normalised accepted ones."""
    return _best(lambda said, wanted: float(said == wanted), answer, accepted)


def squad_f1(answer: str, accepted: Sequence[str]) -> float:
    """Return the best F1 over bags of words; 0 where no word is left of either."""
    return _best(_word_f1, answer, accepted)


def hotpot_f1(answer: str, accepted: Sequence[str]) -> float:
    """Return the best F1 as HotpotQA's script has it: yes, no and noanswer are right or wrong."""
    return _best(_hotpot, answer, accepted)


def cover_em(answer: str, accepted: Sequence[str]) -> float:
    """Return 1.0 if a normalised accepted answer occurs in the normalised answer.

    An accepted answer of which normalising leaves nothing is covered by an answer of which it leaves nothing, and by no other;
    the published scripts let everything cover it.
    """
    return _best(lambda said, wanted: float(wanted in said if wanted else not said), answer, accepted)


def _best(compare: Callable[[str, str], float], answer: str, accepted: Sequence[str]) -> float:
    said = squad_normalized(answer)
    return max((compare(said, squad_normalized(one)) for one in accepted), default=0.0)


def _word_f1(said: str, wanted: str) -> float:
    said_words, wanted_words = said.split(), wanted.split()
    shared = sum((Counter(said_words) & Counter(wanted_words)).values())
    return 2 * shared / (len(said_words) + len(wanted_words)) if shared else 0.0


def _hotpot(said: str, wanted: str) -> float:
    return 0.0 if said != wanted and (said in _CLOSED or wanted in _CLOSED) else _word_f1(said, wanted)
