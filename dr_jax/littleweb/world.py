"""A fictional world: entities of nine kinds, and what relates them.

In:    WorldSettings: seed, size, split
Out:   LittleWorld: entities and facts, a pure function of the settings
Holds: every relation of a kind is known for each of its entities; a relation has one value
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from dr_jax.littleweb.names import Split, draw

Kind = Literal["person", "city", "country", "company", "river", "book", "museum", "university", "award"]
Literalish = Literal["year", "length", "occupation", "people"]


@dataclass(frozen=True, slots=True)
class Relation:
    """How a kind of entity relates to a value.

    Args:
        name: unique among all relations.
        words: how it is asked for and searched for.
        target: the kind of entity it leads to, or the kind of literal.
        sentences: how pages say it; `{s}` is the subject, `{v}` the value.
        nested: how a question embeds it, with `{s}` for the subject's phrase.
        asks: how a question ends in it.
    """

    name: str
    words: str
    target: Kind | Literalish
    sentences: tuple[str, ...]
    nested: str
    asks: tuple[str, ...]


_SENTENCES = ("The {w} of {s} is {v}.", "Its {w} is {v}.", "{s} has as its {w} {v}.")
_LIVES = ("The {w} of {s} is {v}.", "{s} has as {w} {v}.", "{w}: {v}.")


def _relation(
    name: str, words: str, target: Kind | Literalish, *asks: str, sentences: tuple[str, ...] = _SENTENCES
) -> Relation:
    said = tuple(one.replace("{w}", words) for one in sentences)
    return Relation(name, words, target, said, f"the {words} of {{s}}", (f"What is the {words} of {{s}}?", *asks))


# The word for a relation comes before its value: who reads from left to right knows what the value is when it comes.
RELATIONS: dict[Kind, tuple[Relation, ...]] = {
    "person": (
        _relation("birthplace", "birthplace", "city", "Where was {s} born?", sentences=_LIVES),
        _relation("employer", "employer", "company", "Whom does {s} work for?", sentences=_LIVES),
        _relation("teacher", "teacher", "person", "Who taught {s}?", sentences=_LIVES),
        _relation("occupation", "occupation", "occupation", sentences=_LIVES),
    ),
    "city": (
        _relation("country", "country", "country", "In which country is {s}?"),
        _relation("mayor", "mayor", "person", "Who is the mayor of {s}?"),
        _relation("city_river", "river", "river", "Which river runs through {s}?"),
        _relation("population", "population", "people"),
    ),
    "country": (
        _relation("capital", "capital", "city", "Which city is the capital of {s}?"),
        _relation("president", "president", "person", "Who is the president of {s}?"),
        _relation("neighbour", "neighbour", "country", "Which country borders {s}?"),
        _relation("independence", "independence year", "year"),
    ),
    "company": (
        _relation("founder", "founder", "person", "Who founded {s}?"),
        _relation("headquarters", "headquarters", "city", "Where is {s} based?"),
        _relation("director", "director", "person", "Who directs {s}?"),
        _relation("founding", "founding year", "year"),
    ),
    "river": (
        _relation("source", "source", "city", "Near which city does {s} rise?"),
        _relation("mouth", "mouth", "city", "At which city does {s} end?"),
        _relation("length", "length", "length", "How long is {s}?"),
    ),
    "book": (
        _relation("author", "author", "person", "Who wrote {s}?"),
        _relation("publisher", "publisher", "company", "Who published {s}?"),
        _relation("setting", "setting", "city", "Where is {s} set?"),
        _relation("printing", "printing year", "year"),
    ),
    "museum": (
        _relation("architect", "architect", "person", "Who designed {s}?"),
        _relation("museum_city", "city", "city", "In which city is {s}?"),
        _relation("opening", "opening year", "year"),
    ),
    "university": (
        _relation("rector", "rector", "person", "Who is the rector of {s}?"),
        _relation("campus", "campus", "city", "Where is the campus of {s}?"),
        _relation("patron", "patron", "company", "Which company is the patron of {s}?"),
    ),
    "award": (
        _relation("winner", "winner", "person", "Who won {s}?"),
        _relation("sponsor", "sponsor", "company", "Which company sponsors {s}?"),
        _relation("first_year", "first year", "year"),
    ),
}

OCCUPATIONS = (
    "painter",
    "judge",
    "baker",
    "engineer",
    "singer",
    "farmer",
    "doctor",
    "sailor",
    "teacher",
    "weaver",
    "printer",
    "miner",
)
_SHARES: dict[Kind, int] = {
    "person": 34, "city": 16, "company": 14, "book": 10, "river": 6, "museum": 6, "university": 5, "award": 5, "country": 4
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class WorldSettings:
    """Which world.

    Args:
        seed: decides everything in it.
        entities: how many there are; a few per kind are needed.
        split: worlds of different splits share no name.
        namesakes: share of entities that are given the name of one of another kind; a few more meet by chance.
    """

    seed: int = 0
    entities: int = 2400
    split: Split = "train"
    namesakes: float = 0.06

    def __post_init__(self) -> None:
        if self.entities < 100:
            raise ValueError(f"entities = {self.entities}; at least 100 are needed for every kind to have a few")
        if not 0 <= self.namesakes <= 0.5:
            raise ValueError(f"namesakes = {self.namesakes}; it lies in [0, 0.5]")


@dataclass(frozen=True, slots=True)
class Entity:
    """One thing of the world.

    Args:
        id: its index.
        kind: what it is.
        name: two words.
        alias: another accepted spelling; "" for most.
    """

    id: int
    kind: Kind
    name: str
    alias: str = ""


@dataclass(frozen=True)
class LittleWorld:
    """Entities and facts.

    Args:
        settings: that it was built from.
        entities: by id.
        facts: (entity id, relation name) to an entity id or to the text of a literal.
    """

    settings: WorldSettings
    entities: tuple[Entity, ...]
    facts: dict[tuple[int, str], int | str]

    @cached_property
    def by_kind(self) -> dict[Kind, tuple[Entity, ...]]:
        """Entities of each kind."""
        found: dict[Kind, list[Entity]] = defaultdict(list)
        for entity in self.entities:
            found[entity.kind].append(entity)
        return {kind: tuple(members) for kind, members in found.items()}

    @cached_property
    def bearers(self) -> dict[str, tuple[Entity, ...]]:
        """Entities by name; more than one for namesakes."""
        found: dict[str, list[Entity]] = defaultdict(list)
        for entity in self.entities:
            found[entity.name].append(entity)
        return {name: tuple(members) for name, members in found.items()}

    def value(self, entity: Entity, relation: Relation) -> Entity | str:
        """What the relation of this entity leads to."""
        found = self.facts[entity.id, relation.name]
        return self.entities[found] if isinstance(found, int) else found

    def said(self, entity: Entity, relation: Relation) -> str:
        """That value as pages write it."""
        found = self.value(entity, relation)
        return found.name if isinstance(found, Entity) else found


def build(settings: WorldSettings) -> LittleWorld:
    """Build the world of these settings."""
    rng = random.Random(f"littleweb/{settings.split}/{settings.seed}")
    entities = _entities(settings, rng)
    kinds: dict[str, list[Entity]] = defaultdict(list)
    for entity in entities:
        kinds[entity.kind].append(entity)
    places = {(kind, one.name): place for kind, members in kinds.items() for place, one in enumerate(members)}
    facts: dict[tuple[int, str], int | str] = {}
    for entity in entities:
        for relation in RELATIONS[entity.kind]:
            members, namesake = kinds.get(relation.target, []), places.get((relation.target, entity.name))
            others = range(len(members) - (namesake is not None))  # a name stands once in a kind
            if others:
                place = rng.choice(others)
                facts[entity.id, relation.name] = members[place + (namesake is not None and place >= namesake)].id
            else:
                facts[entity.id, relation.name] = _literal(relation.target, rng)
    return LittleWorld(settings, tuple(entities), facts)


def _entities(settings: WorldSettings, rng: random.Random) -> list[Entity]:
    total = sum(_SHARES.values())
    kinds = [kind for kind, share in _SHARES.items() for _ in range(max(3, settings.entities * share // total))]
    kinds += ["person"] * (settings.entities - len(kinds))
    rng.shuffle(kinds)
    entities: list[Entity] = []
    kinds_of: dict[str, set[str]] = defaultdict(set)
    for index, kind in enumerate(kinds[: max(settings.entities, len(_SHARES) * 3)]):
        name = draw(rng, settings.split)
        if entities and rng.random() < settings.namesakes:
            name = rng.choice(entities).name
        while kind in kinds_of[name] or len(kinds_of[name]) > 1:
            name = draw(rng, settings.split)
        kinds_of[name].add(kind)
        entities.append(Entity(index, kind, name, alias=_alias(name, rng)))
    return entities


def _alias(name: str, rng: random.Random) -> str:
    first, last = name.split()
    return rng.choice((f"{first[0]}. {last}", f"{last}, {first}")) if rng.random() < 0.1 else ""


def _literal(kind: str, rng: random.Random) -> str:
    match kind:
        case "year":
            return str(rng.randrange(1400, 2000))
        case "length":
            return f"{rng.randrange(20, 990)} km"
        case "people":
            return f"{rng.randrange(1, 99)}000"
        case "occupation":
            return rng.choice(OCCUPATIONS)
    raise ValueError(f"no literal of kind {kind!r}")
