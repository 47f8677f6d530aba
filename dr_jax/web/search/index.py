"""An index of documents in one SQLite file: FTS5, BM25, titles weighed above text.

In:    documents of a file, when it is new or has changed; a query
Out:   hits, best first; the page behind an address
Holds: any text is a safe query; a page is told as it was indexed, without the file it came from; not on the event loop
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dr_jax.base.errors import ConfigError
from dr_jax.base.trace import logger
from dr_jax.web.page import Hit, Page

_LOG = logger(__name__)
_APPLICATION = 0x64726A69  # "drji": tells an index from any other SQLite file
_VERSION = 1
_TITLE_WEIGHT = 4.0
_WORDS = 32  # of a query
_SNIPPET_WORDS = 48
_TOKENIZERS = {
    "english": "porter unicode61 remove_diacritics 2",
    "plain": "unicode61 remove_diacritics 2",
    "trigram": "trigram",
}
_COMMON = frozenset(
    """a an and are as at be been by did do does for from had has have he her his how i in is it its of on or she that the
    their they this to was we were what when where which who whom whose why will with you""".split()  # noqa: SIM905
)
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Seen:
    """A file as it was when it was indexed; `broken` says what was left out of it."""

    size: int
    changed_ns: int
    broken: tuple[tuple[int, str], ...] = ()
    broken_n: int = 0


class Index:
    """The file. Use one in each thread.

    Args:
        path: of the file; made when it does not exist.
        words: what is a word; a file that was made with another setting is made anew.
        busy_s: how long a writer is waited for.
    """

    def __init__(self, path: Path, words: str, busy_s: float = 60.0) -> None:
        self._path, self._words = path, words
        try:
            self._base = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)
            self._base.execute("pragma journal_mode = wal")
            self._base.execute("pragma synchronous = normal")
            self._begin()
        except sqlite3.OperationalError as error:
            raise ConfigError(
                f"The index {path} cannot be opened: {error}", fix="set web.local.index to a file that can be written"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._base.close()

    def seen(self) -> dict[str, Seen]:
        """Return every file that is indexed, by name."""
        rows = self._base.execute("select name, size, changed_ns, broken, broken_n from files")
        return {
            name: Seen(size, changed, tuple((place, why) for place, why in json.loads(broken)), count)
            for name, size, changed, broken, count in rows
        }

    def count(self) -> int:
        """Return how many documents there are."""
        return int(self._base.execute("select count(*) from documents").fetchone()[0])

    def revision(self) -> int:
        """Return a number that changes with the content."""
        return int(self._base.execute("select revision from state").fetchone()[0])

    def forget(self, name: str) -> None:
        """Take a file's documents out."""
        with self._transaction():
            self._base.execute(
                """insert into words(words, rowid, title, text)
                   select 'delete', id, title, text from documents where file = ?""",
                (name,),
            )
            self._base.execute("delete from documents where file = ?", (name,))
            self._base.execute("delete from files where name = ?", (name,))
            self._base.execute("update state set revision = revision + 1")

    def add(self, name: str, pages: Iterable[tuple[Page, str]]) -> list[str]:
        """Add documents of a file.

        Args:
            name: of the file.
            pages: each with the address that it gets when its own is taken.

        Returns:
            Those of these addresses that were taken too; their documents were not added.
        """
        refused = []
        with self._transaction():
            for page, own in pages:
                taken = self._base.execute("select 1 from documents where url = ?", (page.url,)).fetchone()
                found = self._base.execute(
                    "insert or ignore into documents (file, url, title, text, rest) values (?, ?, ?, ?, ?)",
                    (name, own if taken else page.url, page.title, page.text, _rest(page)),
                )
                if found.rowcount:
                    row = (found.lastrowid, page.title, page.text)
                    self._base.execute("insert into words(rowid, title, text) values (?, ?, ?)", row)
                else:
                    refused.append(own)
        return refused

    def finish(self, name: str, seen: Seen) -> None:
        """Note that a file's documents are all there."""
        with self._transaction():
            values = (name, seen.size, seen.changed_ns, json.dumps(seen.broken), seen.broken_n)
            self._base.execute("insert or replace into files values (?, ?, ?, ?, ?)", values)
            self._base.execute("update state set revision = revision + 1")

    def search(self, query: str, results: int) -> tuple[Hit, ...]:
        """Return the documents that match any word of the query, best first; ties go to the one that was added first."""
        match = self._match(query)
        if not match:
            return ()
        rows = self._base.execute(
            f"select rowid from words where words match ? order by bm25(words, {_TITLE_WEIGHT}, 1.0), rowid limit ?",  # noqa: S608
            (match, results),
        )
        return self.told(query, [number for (number,) in rows])  # a snippet in the query above would be cut from every match

    def told(self, query: str, ids: Sequence[int]) -> tuple[Hit, ...]:
        """Return hits for documents that somebody else has ranked, in that order."""
        match, found = self._match(query), []
        for number in ids:
            title, url, text = self._base.execute("select title, url, text from documents where id = ?", (number,)).fetchone()
            row = (
                match
                and self._base.execute(
                    f"select snippet(words, 1, '', '', ' … ', {_SNIPPET_WORDS}) from words where words match ? and rowid = ?",  # noqa: S608
                    (match, number),
                ).fetchone()
            )
            found.append(Hit(title, url, " ".join((row[0] if row else text[:300]).split())))
        return tuple(found)

    def texts(self) -> Iterator[tuple[int, str]]:
        """Yield every document's number, and its title and text, in the order of the numbers."""
        for number, title, text in self._base.execute("select id, title, text from documents order by id"):
            yield number, f"{title}\n{text}"

    def page(self, url: str) -> Page | None:
        """Return the page at an address."""
        row = self._base.execute("select title, text, rest from documents where url = ?", (url,)).fetchone()
        if row is None:
            return None
        title, text, rest = row
        links, content_type, truncated = json.loads(rest)
        return Page(url, title, text, tuple((words, to) for words, to in links), content_type, truncated)

    def _match(self, query: str) -> str:
        """Return the query in FTS5's language: any of its words; those that say little only where there are no others."""
        words = list(dict.fromkeys(word.lower() for word in _WORD.findall(query)))
        if self._words == "english":
            words = [word for word in words if word not in _COMMON] or words
        if self._words == "trigram":
            words = list(dict.fromkeys(word[place : place + 3] for word in words for place in range(max(1, len(word) - 2))))
        return " OR ".join(f'"{word}"' for word in words[:_WORDS])

    def _begin(self) -> None:
        base = self._base
        with self._transaction():  # several processes may begin one index at the same time
            if base.execute("select count(*) from sqlite_master").fetchone()[0] == 0:
                self._make()
        found = tuple(base.execute(f"pragma {name}").fetchone()[0] for name in ("application_id", "user_version"))
        if found != (_APPLICATION, _VERSION):
            self._base.close()
            raise ConfigError(
                f"{self._path} is an SQLite file, but not an index of this version",
                fix="remove it, or set web.local.index to another file",
            )
        if base.execute("select words from state").fetchone()[0] != self._words:
            _LOG.info("the index %s is made anew, with %s words", self._path, self._words)
            with self._transaction():
                for table in ("words", "documents", "files", "state"):
                    base.execute(f"drop table {table}")
                self._make()

    def _make(self) -> None:
        for statement in (
            """create table documents (id integer primary key, file text not null, url text not null unique,
               title text not null, text text not null, rest text not null)""",
            "create index documents_file on documents (file)",
            f"""create virtual table words using fts5(title, text, content = 'documents', content_rowid = 'id',
                tokenize = '{_TOKENIZERS[self._words]}')""",
            """create table files (name text primary key, size integer not null, changed_ns integer not null,
               broken text not null, broken_n integer not null)""",
            "create table state (words text not null, revision integer not null)",
            f"pragma application_id = {_APPLICATION}",
            f"pragma user_version = {_VERSION}",
        ):
            self._base.execute(statement)
        self._base.execute("insert into state values (?, 0)", (self._words,))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._base.execute("begin immediate")
        try:
            yield
            self._base.execute("commit")
        finally:
            if self._base.in_transaction:
                self._base.execute("rollback")


def _rest(page: Page) -> str:
    return json.dumps([page.links, page.content_type, page.truncated], ensure_ascii=False)
