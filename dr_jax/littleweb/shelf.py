"""The documents of a world without a server: the same pages and the same search, for whoever needs thousands a minute."""

from __future__ import annotations

from functools import lru_cache

from dr_jax.littleweb.index import Found, Index
from dr_jax.littleweb.pages import Document, Pages
from dr_jax.littleweb.world import LittleWorld


class Shelf:
    """Looks things up in a world directly.

    Args:
        world: whose pages they are.
    """

    def __init__(self, world: LittleWorld) -> None:
        pages = Pages(world)
        self.index = Index(pages.get(host, path) for host, path in pages.addresses())
        self.document = lru_cache(maxsize=8192)(pages.get)

    def search(self, query: str, count: int) -> list[Found]:
        """Return the best matches."""
        return self.index.search(query, count)

    def open(self, url: str) -> Document:
        """Return the document at a littleweb URL."""
        host, _, path = url.removeprefix("http://").partition("/")
        return self.document(host.removesuffix(".littleweb"), f"/{path}")

    def close(self) -> None:
        """Free the index."""
        self.index.close()
