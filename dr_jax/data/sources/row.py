"""One row of a file, and what is read out of it: every complaint names the file, the line and the field.

In:    a row as plain values, and where it stands
Out:   its fields by the type that is needed; a Question; or Skipped, for rows that are no text question by design
Fails: DataError
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dr_jax.base.errors import DataError
from dr_jax.data.question import Question

_WORDS: dict[type, str] = {
    str: "text",
    dict: "an object",
    list: "a list",
    int: "a number",
    float: "a number",
    bool: "yes or no",
}


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that is well-formed and no question that words alone can ask and answer.

    Args:
        reason: in a few words, the same for all rows of its kind: they are counted by it.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file.

    Args:
        place: where it stands, as a person would look for it: `hotpot.json, line 3`.
        stem: name of the file without its ending.
        number: of the row in the file, from 1; ids are made of it where the format has none.
        fields: its values by name.
    """

    place: str
    stem: str
    number: int
    fields: Mapping[str, Any] = field(repr=False)

    def text(self, name: str) -> str:
        """Return a field that must be text."""
        found: str = self._typed(name, (str,))
        return found

    def texts(self, name: str) -> list[str]:
        """Return a field that must be a list of texts; a single text counts as a list of one."""
        found = self._typed(name, (list, str))
        values: list[str] = [found] if isinstance(found, str) else found
        for value in values:
            if not isinstance(value, str):
                raise DataError(f"{self.place}: {name} holds {value!r}"[:300], needed="a list of texts")
        return values

    def rows(self, name: str) -> list[Row]:
        """Return a field that must be a list of objects; columns side by side (a dict of lists) count as one too."""
        found = self._typed(name, (list, dict))
        if isinstance(found, dict):
            columns = {key: value for key, value in found.items() if isinstance(value, list)}
            count = max(map(len, columns.values()), default=0)
            if any(len(value) != count for value in columns.values()):
                lengths = ", ".join(f"{key} {len(value)}" for key, value in columns.items())
                raise DataError(f"{self.place}: the columns of {name} differ in length: {lengths}", needed="one length")
            found = [{key: value[index] for key, value in columns.items()} for index in range(count)]
        for value in found:
            if not isinstance(value, dict):
                raise DataError(f"{self.place}: {name} holds {value!r}"[:300], needed="a list of objects")
        return [self._within(f"{name}[{index}]", value) for index, value in enumerate(found)]

    def row(self, name: str) -> Row:
        """Return a field that must be an object."""
        return self._within(name, self._typed(name, (dict,)))

    def value(self, name: str, *kinds: type) -> Any:
        """Return a field that must be one of these kinds."""
        return self._typed(name, kinds)

    def number_or(self, name: str, default: int) -> int:
        """Return a field that is a whole number where it is given."""
        found = self.fields.get(name, default)
        if found is None or found == "":
            return default
        if isinstance(found, str) and found.strip().lstrip("-").isdecimal():
            return int(found)
        if not isinstance(found, int) or isinstance(found, bool):
            raise DataError(f"{self.place}: {name} is {found!r}"[:300], needed="a whole number")
        return found

    def text_or(self, name: str, default: str = "") -> str:
        """Return a field as text where it is given; numbers are written out."""
        found = self.fields.get(name)
        if found is None or isinstance(found, dict | list):
            return default
        return str(found)

    def question(
        self,
        id: str,  # noqa: A002
        text: str,
        answers: Iterable[str],
        *,
        source: str,
        split: str = "",
        hops: int = 0,
        meta: Mapping[str, str] | None = None,
    ) -> Question:
        """Build the question that this row holds; answers that are said twice are said once, in their order."""
        try:
            "".join((id, text, source, *answers)).encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{self.place} holds half of a surrogate pair", needed="text that UTF-8 can hold") from error
        kept = tuple(dict.fromkeys(answer.strip() for answer in answers))
        known = {key: value for key, value in (meta or {}).items() if value}
        try:
            return Question(id, text.strip(), kept, source, split, hops, known)
        except DataError as error:
            raise DataError(f"{self.place}: {error.found}", needed=error.needed, fix=error.fix) from error

    def _within(self, name: str, fields: Mapping[str, Any]) -> Row:
        return Row(f"{self.place}, {name}", self.stem, self.number, fields)

    def _typed(self, name: str, kinds: tuple[type, ...]) -> Any:
        if name not in self.fields:
            own = ", ".join(map(repr, self.fields)) or "none"
            raise DataError(f"{self.place} has no field {name!r}; it has {own}"[:500], needed=name)
        found = self.fields[name]
        if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
            wanted = " or ".join(dict.fromkeys(_WORDS[kind] for kind in kinds))
            raise DataError(f"{self.place}: {name} is {found!r}"[:300], needed=f"{wanted} in {name}")
        return found
