"""Rank with the package `bm25s`, whose index is held in memory: faster than SQLite on large collections.

In:    documents, numbered; a query
Out:   numbers of the documents, best first
Holds: the index is saved beside the other one, and made again when that has changed
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dr_jax.base.errors import ConfigError
from dr_jax.web.search.index import Index

_NUMBERS = "numbers.npy"
_REVISION = "revision.txt"


class Ranking:
    """An index in memory. Searching is safe from several threads.

    Args:
        index: the documents.
        folder: where it is saved.

    Raises:
        ConfigError: the package is missing.
    """

    def __init__(self, index: Index, folder: Path) -> None:
        self._bm25s = _imported()
        revision = f"{index.revision()} {self._bm25s.__version__}"
        if (folder / _REVISION).is_file() and (folder / _REVISION).read_text(encoding="utf-8") == revision:
            self._numbers = np.load(folder / _NUMBERS)
            self._ranks = self._bm25s.BM25.load(str(folder), show_progress=False)
            return
        numbered = list(index.texts())
        self._numbers = np.asarray([number for number, _ in numbered], dtype=np.int64)
        self._ranks = self._bm25s.BM25()
        self._ranks.index(self._words([text for _, text in numbered]), show_progress=False)
        (folder / _REVISION).unlink(missing_ok=True)
        self._ranks.save(str(folder), show_progress=False)
        np.save(folder / _NUMBERS, self._numbers)
        (folder / _REVISION).write_text(revision, encoding="utf-8")

    def search(self, query: str, results: int) -> list[int]:
        """Return the numbers of the documents that share a word with the query, best first."""
        most = min(results, len(self._numbers))
        places, scores = self._ranks.retrieve(self._words([query]), k=most, show_progress=False, backend_selection="numpy")
        found = zip(places[0].tolist(), scores[0].tolist(), strict=True)
        return [int(self._numbers[place]) for place, score in found if score > 0]

    def _words(self, texts: list[str]) -> Any:
        return self._bm25s.tokenize(texts, stopwords="en", show_progress=False)


def _imported() -> Any:
    try:
        with _without_jax():
            return importlib.import_module("bm25s")
    except ImportError as error:
        raise ConfigError(
            'web.local.ranking is "bm25s", but the package bm25s is not installed',
            fix='`pip install bm25s`, or web.local.ranking = "fts5"',
        ) from error


@contextmanager
def _without_jax() -> Iterator[None]:
    """Keep an import from loading JAX: bm25s would run a computation with it, and so claim this machine's accelerator."""
    name = "jax.lax" if "jax" in sys.modules else "jax"
    loaded = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # what the import system takes as: there is no such module
    try:
        yield
    finally:
        if loaded is None:
            del sys.modules[name]
        else:
            sys.modules[name] = loaded
