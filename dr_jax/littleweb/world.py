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


def _relation(name: str, words: str, target: Kind | Literalish, sentences: tuple[str, ...], *asks: str) -> Relation:
    return Relation(name, words, target, sentences, f"the {words} of {{s}}", (f"What is the {words} of {{s}}?", *asks))


RELATIONS: dict[Kind, tuple[Relation, ...]] = {
    "person": (
        _relation(
            "birthplace", "birthplace", "city", ("{s} was born in {v}.", "The birthplace of {s} is {v}."), "Where was {s} born?"
        ),
        _relation(
            "employer", "employer", "company", ("{s} works for {v}.", "The employer of {s} is {v}."), "Whom does {s} work for?"
        ),
        _relation(
            "teacher", "teacher", "person", ("{s} was a pupil of {v}.", "The teacher of {s} was {v}."), "Who taught {s}?"
        ),
        _relation("occupation", "occupation", "occupation", ("{s} is a {v} by occupation.", "The occupation of {s} is {v}.")),
    ),
    "city": (
        _relation(
            "country",
            "country",
            "country",
            ("{s} lies in the country {v}.", "The country of {s} is {v}."),
            "In which country is {s}?",
        ),
        _relation("mayor", "mayor", "person", ("The mayor of {s} is {v}.", "{v} is mayor of {s}."), "Who is the mayor of {s}?"),
        _relation(
            "city_river",
            "river",
            "river",
            ("{s} stands on the river {v}.", "The river of {s} is {v}."),
            "Which river runs through {s}?",
        ),
        _relation("population", "population", "people", ("The population of {s} is {v}.", "{s} has a population of {v}.")),
    ),
    "country": (
        _relation(
            "capital",
            "capital",
            "city",
            ("The capital of {s} is {v}.", "{v} is the capital of {s}."),
            "Which city is the capital of {s}?",
        ),
        _relation(
            "president",
            "president",
            "person",
            ("The president of {s} is {v}.", "{v} is president of {s}."),
            "Who is the president of {s}?",
        ),
        _relation(
            "neighbour",
            "neighbour",
            "country",
            ("The neighbour of {s} is {v}.", "{s} has {v} as its only neighbour."),
            "Which country borders {s}?",
        ),
        _relation(
            "independence",
            "independence year",
            "year",
            ("{s} became independent in {v}.", "The independence year of {s} is {v}."),
        ),
    ),
    "company": (
        _relation(
            "founder", "founder", "person", ("{s} was founded by {v}.", "The founder of {s} is {v}."), "Who founded {s}?"
        ),
        _relation(
            "headquarters",
            "headquarters",
            "city",
            ("The headquarters of {s} are in {v}.", "{s} has its headquarters in {v}."),
            "Where is {s} based?",
        ),
        _relation(
            "director", "director", "person", ("The director of {s} is {v}.", "{v} is director of {s}."), "Who directs {s}?"
        ),
        _relation(
            "founding", "founding year", "year", ("The founding year of {s} is {v}.", "{s} names {v} as its founding year.")
        ),
    ),
    "river": (
        _relation(
            "source",
            "source",
            "city",
            ("The source of {s} is near {v}.", "{s} has its source near {v}."),
            "Near which city does {s} rise?",
        ),
        _relation(
            "mouth",
            "mouth",
            "city",
            ("The mouth of {s} is at {v}.", "{s} has its mouth at {v}."),
            "At which city does {s} end?",
        ),
        _relation("length", "length", "length", ("The length of {s} is {v}.", "{s} has a length of {v}."), "How long is {s}?"),
    ),
    "book": (
        _relation("author", "author", "person", ("The author of {s} is {v}.", "{s} has {v} as its author."), "Who wrote {s}?"),
        _relation(
            "publisher",
            "publisher",
            "company",
            ("The publisher of {s} is {v}.", "{v} is the publisher of {s}."),
            "Who published {s}?",
        ),
        _relation(
            "setting", "setting", "city", ("The setting of {s} is {v}.", "{s} takes {v} as its setting."), "Where is {s} set?"
        ),
        _relation("printing", "printing year", "year", ("The printing year of {s} is {v}.", "{s} has the printing year {v}.")),
    ),
    "museum": (
        _relation(
            "architect",
            "architect",
            "person",
            ("The architect of {s} is {v}.", "{v} was the architect of {s}."),
            "Who designed {s}?",
        ),
        _relation(
            "museum_city", "city", "city", ("The city of {s} is {v}.", "{s} stands in the city {v}."), "In which city is {s}?"
        ),
        _relation("opening", "opening year", "year", ("The opening year of {s} is {v}.", "{s} had its opening year in {v}.")),
    ),
    "university": (
        _relation(
            "rector", "rector", "person", ("The rector of {s} is {v}.", "{v} is rector of {s}."), "Who is the rector of {s}?"
        ),
        _relation(
            "campus",
            "campus",
            "city",
            ("The campus of {s} is in {v}.", "{s} has its campus in {v}."),
            "Where is the campus of {s}?",
        ),
        _relation(
            "patron",
            "patron",
            "company",
            ("The patron of {s} is {v}.", "{v} is the patron of {s}."),
            "Which company is the patron of {s}?",
        ),
    ),
    "award": (
        _relation("winner", "winner", "person", ("The winner of {s} is {v}.", "{v} is the winner of {s}."), "Who won {s}?"),
        _relation(
            "sponsor",
            "sponsor",
            "company",
            ("The sponsor of {s} is {v}.", "{v} is the sponsor of {s}."),
            "Which company sponsors {s}?",
        ),
        _relation("first_year", "first year", "year", ("The first year of {s} is {v}.", "{s} has {v} as its first year.")),
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
    facts: dict[tuple[int, str], int | str] = {}
    for entity in entities:
        for relation in RELATIONS[entity.kind]:
            members = [one for one in kinds.get(relation.target, ()) if one.name != entity.name]
            facts[entity.id, relation.name] = rng.choice(members).id if members else _literal(relation.target, rng)
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
