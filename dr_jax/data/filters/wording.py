"""Drop questions that are too short or too long, or not in a language that is asked for.

Languages are told by script, then by little words (articles, pronouns, question words): a question has several of them in a
dozen words, and names from elsewhere, which mislead classifiers of short texts, have none. Where there are none, nothing is
dropped: absence of evidence is no evidence.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache

from dr_jax.data.filters.decision import KEPT, Decision, Verdict
from dr_jax.data.question import Question

_LITTLE = {
    "en": "the of is was were are in on at to by for from with and or who what which when where how why whose did does do has",
    "de": "der die das den dem des ein eine einer ist war wer was welche welcher wann wo wie und von mit auf im zu für nicht",
    "fr": "le la les des du un une est était qui que quel quelle quels quand où comment et dans pour par sur avec au aux",
    "es": "el la los las un una es fue era quién qué cuál cuándo dónde cómo y del por para con en su al como",
    "it": "il lo la gli le un una è era chi che quale quando dove come e di del della nel per con da sono",
    "pt": "o a os as um uma é foi era quem que qual quando onde como e do da dos das no na em por para com",
    "nl": "de het een is was wie wat welke wanneer waar hoe en van in op met voor door zijn niet",
}
_WORDS = {language: frozenset(words.split()) for language, words in _LITTLE.items()}
_SCRIPTS = {
    **dict.fromkeys(_LITTLE, "LATIN"),
    "ru": "CYRILLIC",
    "uk": "CYRILLIC",
    "el": "GREEK",
    "ar": "ARABIC",
    "he": "HEBREW",
    "hi": "DEVANAGARI",
    "ko": "HANGUL",
    "zh": "CJK",
    "ja": "CJK",
}


@dataclass(frozen=True, slots=True)
class WordingSettings:
    """How a question may look.

    Args:
        min_words: of a question.
        max_words: of a question.
        max_answer_words: at least one accepted answer is no longer; 0 is any length.
        languages: codes; none means any language.
    """

    min_words: int = 3
    max_words: int = 150
    max_answer_words: int = 20
    languages: tuple[str, ...] = ("en",)

    def __post_init__(self) -> None:
        if not 0 < self.min_words <= self.max_words or self.max_answer_words < 0:
            raise ValueError(
                f"min_words = {self.min_words}, max_words = {self.max_words}, max_answer_words = {self.max_answer_words}; "
                "1 or more, at least that, and 0 or more are needed"
            )
        strange = sorted(set(self.languages) - set(_SCRIPTS))
        if strange:
            raise ValueError(f"languages has {', '.join(strange)}; {', '.join(_SCRIPTS)} are known")


class Wording:
    """The filter.

    Args:
        settings: how a question may look.
    """

    name, together, at_once = "wording", 1024, 1

    def __init__(self, settings: WordingSettings | None = None) -> None:
        self._wanted = settings or WordingSettings()
        self.settings = json.dumps(asdict(self._wanted))

    async def decide(self, questions: Sequence[Question]) -> list[Decision]:
        """Decide about each question by its words."""
        return [self._one(question) for question in questions]

    def _one(self, question: Question) -> Decision:
        wanted, words = self._wanted, _split(question.text)
        if len(words) < wanted.min_words:
            return Decision(Verdict.DROPPED, f"too short: {len(words)} words")
        if len(words) > wanted.max_words:
            return Decision(Verdict.DROPPED, f"too long: {len(words)} words")
        shortest = min(len(_split(answer)) for answer in question.answers)
        if wanted.max_answer_words and shortest > wanted.max_answer_words:
            return Decision(Verdict.DROPPED, f"long answers: {shortest} words and more")
        if wanted.languages and (found := language(question.text, wanted.languages)) not in ("", *wanted.languages):
            return Decision(Verdict.DROPPED, f"another language: {found}")
        return KEPT


def language(text: str, expected: Sequence[str] = ("en",)) -> str:
    """Return the language or script of a text; "" where it does not show.

    Args:
        text: in words.
        expected: languages that win where little words are equally many.
    """
    script = _script(text)
    if script not in {_SCRIPTS[one] for one in expected} and script:
        return script.lower() if script != "LATIN" else (_by_little_words(text, expected) or "latin")
    if script != "LATIN":
        return next((one for one in expected if _SCRIPTS[one] == script), "")
    return _by_little_words(text, expected)


def _by_little_words(text: str, expected: Sequence[str]) -> str:
    words = Counter(text.casefold().replace("?", " ").replace("'", " ").replace(",", " ").split())
    hits = {one: sum(count for word, count in words.items() if word in own) for one, own in _WORDS.items()}
    best = max(hits, key=lambda one: (hits[one], one in expected))
    return best if hits[best] >= 2 or (hits[best] and best in expected) else ""


def _script(text: str) -> str:
    """The script of most letters; "" without letters."""
    if text.isascii():
        return "LATIN" if any(map(str.isalpha, text)) else ""
    found = Counter(_of_letter(char) for char in text if char.isalpha())
    return found.most_common(1)[0][0] if found else ""


@cache
def _of_letter(char: str) -> str:
    name = unicodedata.name(char, "")
    if name.startswith(("HIRAGANA", "KATAKANA", "CJK")):
        return "CJK"
    return name.split(" ")[0]


def _split(text: str) -> list[str]:
    """Words; each character of a script without spaces between words counts as one."""
    if text.isascii():
        return text.split()
    return "".join(f" {char} " if char.isalpha() and _of_letter(char) == "CJK" else char for char in text).split()
