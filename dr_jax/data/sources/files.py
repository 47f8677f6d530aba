"""Read rows out of the containers that question files come in, a piece at a time.

In:    .jsonl/.ndjson, .json (a list, an object with the list under `Data` or `data`, or JSON lines), .csv, .tsv, .parquet;
       all but parquet also as .gz
Out:   Row after Row; no more than one of them, or one batch of parquet, is in memory
Fails: DataError that names the file, and the line or row
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Any

from dr_jax.base.errors import DataError
from dr_jax.data.sources.row import Row

SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_LISTS = ("Data", "data")  # under which an object holds its rows; TriviaQA's and SQuAD's habit
_PAGES = frozenset({"context", "paragraphs", "document", "entity_pages", "search_results"})  # whole articles, never read
_CHUNK = 1 << 20
_LONGEST = 1 << 28  # characters of one row: beyond this the file is broken, not large


def rows(path: Path) -> Iterator[Row]:
    """Return the rows of a file, in its order.

    Raises:
        DataError: the file is missing, of another kind, or broken; rows are read as they are asked for.
    """
    if not path.is_file():
        raise DataError(f"There is no question file {path}", needed=f"a file in {', '.join(SUFFIXES)}", fix="correct its path")
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if plain.suffix not in SUFFIXES or (path.suffix == ".gz" and plain.suffix == ".parquet"):
        raise DataError(f"{path} ends in {path.suffix or 'nothing'!r}", needed=f"a file in {', '.join(SUFFIXES)}")
    if plain.suffix == ".parquet":
        return _parquet(path)
    return _told(path, _text_rows(path, plain.suffix, plain.stem))


def _text_rows(path: Path, suffix: str, stem: str) -> Iterator[Row]:
    with _opened(path) as file:
        if suffix in (".csv", ".tsv"):
            yield from _cells(path, stem, file, "\t" if suffix == ".tsv" else ",")
        elif suffix == ".json":
            stream = _Json(path, file)
            if not (yield from stream.rows(stem)):
                file.seek(0)
                yield from _lines(path, stem, file)
        else:
            yield from _lines(path, stem, file)


def _told(path: Path, found: Iterator[Row]) -> Iterator[Row]:
    try:
        yield from found
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}", needed="text in UTF-8") from error
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{path} is not gzip: {error}", needed="a whole .gz file") from error


def _opened(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _lines(path: Path, stem: str, file: IO[str]) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            fields = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{place} is not JSON: {error}", needed="one JSON object per line") from error
        yield _row(place, stem, number, fields)


def _cells(path: Path, stem: str, file: IO[str], delimiter: str) -> Iterator[Row]:
    reader = csv.DictReader(file, delimiter=delimiter, strict=True)
    line = 1
    try:
        names = reader.fieldnames
        if names is None:
            return
        for number, cells in enumerate(reader, start=1):
            line, begun = reader.line_num, line + 1
            if None in cells or None in cells.values():
                found = len(names) + len(cells.get(None) or ()) - sum(value is None for value in cells.values())
                raise DataError(f"{path}, line {begun} has {found} cells", needed=f"{len(names)}, as in the first line")
            yield Row(f"{path}, line {begun}", stem, number, cells)
    except csv.Error as error:
        raise DataError(f"{path}, line {line + 1} is not CSV: {error}", needed="cells in double quotes where needed") from error


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name not in _PAGES]
            number = 0
            for batch in file.iter_batches(batch_size=4096, columns=columns):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}, row {number}", path.stem, number, fields)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a parquet file: {error}", needed="parquet") from error


def _row(place: str, stem: str, number: int, fields: Any) -> Row:
    if not isinstance(fields, dict):
        raise DataError(f"{place} is a {type(fields).__name__}", needed="a JSON object")
    return Row(place, stem, number, fields)


class _Json:
    """The rows of one JSON value that may be larger than memory, with the line that each begins on."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self._path, self._file, self._decoder = path, file, json.JSONDecoder()
        self._text, self._at, self._line, self._ended = "", 0, 1, False

    def rows(self, stem: str) -> Generator[Row, None, bool]:
        """Yield the rows; return whether there was a list of them."""
        if self._peek() == "{":
            self._take("{")
            while self._peek() == '"':
                name = self._value()
                self._take(":")
                if name in _LISTS and self._peek() == "[":
                    break
                self._value()
                if self._peek() != ",":
                    return False
                self._take(",")
        yield from self._items(stem)
        return True

    def _items(self, stem: str) -> Iterator[Row]:
        self._take("[")
        number = 0
        while self._peek() != "]":
            number += 1
            place = f"{self._path}, line {self._line}, item {number}"
            yield _row(place, stem, number, self._value())
            if self._peek() != "]":
                self._take(",")

    def _peek(self) -> str:
        """Return the next character that is no white space; nothing at the end."""
        while True:
            for at in range(self._at, len(self._text)):
                if self._text[at] not in " \t\r\n":
                    self._move(at)
                    return self._text[at]
            self._move(len(self._text))
            if not self._more(_CHUNK):
                return ""

    def _take(self, wanted: str) -> None:
        found = self._peek()
        if found != wanted:
            what = repr(found) if found else "the end of the file"
            raise DataError(f"{self._path}, line {self._line} has {what}", needed=f"{wanted!r} there, as in JSON")
        self._move(self._at + 1)

    def _value(self) -> Any:
        self._peek()
        size = _CHUNK
        while True:
            try:
                found, end = self._decoder.raw_decode(self._text, self._at)
            except (json.JSONDecodeError, RecursionError) as error:
                cut = isinstance(error, json.JSONDecodeError) and (
                    error.msg.startswith("Unterminated") or error.pos > len(self._text) - 16
                )
                if not cut or len(self._text) > _LONGEST or not self._more(size):
                    raise DataError(f"{self._path}, line {self._line} is not JSON: {error}", needed="JSON") from error
            else:
                if end < len(self._text) or not self._more(size):  # a number at the very end may go on
                    self._move(end)
                    return found
            size *= 2

    def _move(self, to: int) -> None:
        self._line += self._text.count("\n", self._at, to)
        self._at = to

    def _more(self, size: int) -> bool:
        """Read on, and forget what was used."""
        if self._ended:
            return False
        read = self._file.read(size)
        self._ended = not read
        self._text, self._at = self._text[self._at :] + read, 0
        return bool(read)
