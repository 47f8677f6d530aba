"""Questions about a made-up world, and training questions that repeat some of them in known ways."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from dr_jax.data.question import Question

_FIRST = ("ba", "ke", "lo", "mi", "nu", "ra", "se", "ti", "vo", "wy", "dra", "fel", "gor", "hal", "jen", "quo", "tor", "zem")
_LAST = ("dan", "fir", "gel", "lith", "mar", "nok", "pol", "rin", "sk", "tav", "vik", "wen", "bury", "ford", "holm", "stad")
_TEMPLATES = (
    "Who founded the {kind} of {a} in the {place} of {b} during the long winter?",
    "In which year was the {kind} of {a} opened to the people of {b}?",
    "What is the name of the river that flows past the {kind} of {a} towards {b}?",
    "Which painter who was born in {a} taught the {kind} master of {b}?",
    "Who was the father of the director of the film about the {kind} of {a} and {b}?",
    "How many windows does the {kind} near {a} have according to the chronicle of {b}?",
    "Which of the two was finished first, the {kind} of {a} or the {kind} of {b}?",
    "What did the traveller from {a} carry home from the {place} market of {b}?",
    "Who kept the keys of the {kind} of {a} in {year} before it fell to {b}?",
)
_KINDS = ("tower", "library", "harbour", "bridge", "garden", "mill", "school", "theatre", "castle", "station")
_PLACES = ("northern", "southern", "eastern", "western", "old", "new", "upper", "lower")
_OTHER = {
    "founded": "established",
    "name": "title",
    "flows": "runs",
    "past": "by",
    "towards": "to",
    "opened": "given",
    "people": "citizens",
    "taught": "trained",
    "master": "teacher",
    "finished": "completed",
    "according": "going",
    "carry": "bring",
    "film": "movie",
    "year": "spring",
    "long": "hard",
    "near": "beside",
    "market": "fair",
}


@dataclass(frozen=True)
class Planted:
    """Training and evaluation questions, and which training question repeats which evaluation question, and how."""

    train: list[Question]
    held_out: list[Question]
    repeats: dict[str, tuple[str, str]]


def name(chance: random.Random) -> str:
    """A name that nobody has."""
    return "".join(map(chance.choice, (_FIRST, _FIRST, _FIRST, _LAST))).title()


def asked(chance: random.Random, number: int, prefix: str) -> Question:
    """A question from a template; many share all but their names."""
    text = _filled(chance.choice(_TEMPLATES), name(chance), name(chance), chance)
    return Question(f"{prefix}{number}", text, (name(chance),), prefix)


def _filled(template: str, a: str, b: str, chance: random.Random) -> str:
    kind, place, year = chance.choice(_KINDS), chance.choice(_PLACES), chance.randrange(1100, 1900)
    return template.format(kind=kind, a=a, b=b, place=place, year=year)


def planted(count: int = 10_000, each: int = 250, seed: int = 0) -> Planted:
    """Make `count` training questions: for each way of repeating, `each` of them repeat an evaluation question.

    Near means: one or two words of the wording exchanged, added or left out, or the words in another order; names and numbers
    stay. Hard cases that are no repetitions are made as well: another name in an evaluation question's place, another thing
    asked about the same name, another year.
    """
    chance = random.Random(seed)
    held_out = [asked(chance, number, "eval") for number in range(2000)]
    ways = {"exact": _exact, "cased": _cased, "punctuated": _punctuated, "near": near}
    train: list[Question] = []
    repeats: dict[str, tuple[str, str]] = {}
    chosen = chance.sample(held_out, each * len(ways) + each)
    for index, (way, change) in enumerate(ways.items()):
        for question in chosen[index * each : (index + 1) * each]:
            one = Question(f"{way}{len(train)}", change(question.text, chance), question.answers, "train")
            repeats[one.id] = (way, question.id)
            train.append(one)
    for number, question in enumerate(chosen[len(ways) * each :]):
        text = (_other_name, _other_thing, _other_year)[number % 3](question.text, chance)
        train.append(Question(f"other{len(train)}", text, (name(chance),), "train"))
    train += [asked(chance, number, "train") for number in range(count - len(train))]
    chance.shuffle(train)
    return Planted(train, held_out, repeats)


def _other_name(text: str, chance: random.Random) -> str:
    old = chance.choice(_names(text))
    return text.replace(old, name(chance))


def _other_thing(text: str, chance: random.Random) -> str:
    first, second = _names(text)
    others = [template for template in _TEMPLATES if template[:10] != text[:10]]
    return _filled(chance.choice(others), first, second, chance)


def _other_year(text: str, chance: random.Random) -> str:
    found = re.search(r"\d{4}", text)
    return text.replace(found.group(), str(int(found.group()) + 1)) if found else _other_name(text, chance)


def _names(text: str) -> list[str]:
    return [word.strip("?,") for word in text.split()[1:] if word[0].isupper()]


def _exact(text: str, chance: random.Random) -> str:
    return text


def _cased(text: str, chance: random.Random) -> str:
    return chance.choice((text.upper(), text.lower(), text.title()))


def _punctuated(text: str, chance: random.Random) -> str:
    words = text.rstrip("?").split()
    at = chance.randrange(1, len(words))
    return chance.choice(
        (" ".join(words), f"“{' '.join(words)}”…", f"{' '.join(words[:at])}, {' '.join(words[at:])} ?", "  ".join(words) + "?!")
    )


def near(text: str, chance: random.Random) -> str:
    """Change one or two words of the wording, or the order of the words, or both."""
    words = text.rstrip("?").split()
    for _ in range(chance.choice((1, 2))):
        open_ones = [index for index, word in enumerate(words) if word in _OTHER]
        move = chance.choice(("exchange", "leave", "add", "order"))
        if move == "exchange" and open_ones:
            at = chance.choice(open_ones)
            words[at] = _OTHER[words[at]]
        elif move == "leave" and (little := [index for index, word in enumerate(words) if word in ("the", "of", "that", "in")]):
            del words[chance.choice(little)]
        elif move == "add":
            words.insert(chance.randrange(1, len(words)), chance.choice(("exactly", "once", "then", "famous", "really")))
        else:
            at = chance.randrange(2, len(words) - 2)
            words = words[at:] + words[:at]
    changed = " ".join(words) + "?"
    return changed if changed != text else "Tell me: " + changed
