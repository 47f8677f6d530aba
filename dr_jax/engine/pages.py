"""Share pages of keys and values between requests: who holds a page, what it contains, which one is given up next.

In:    ids of a request, and how many tokens it will write
Out:   Lease: the pages that it reads and writes; the moves of pages that must be made before
Holds: a page is free, or it belongs to one node of the tree; a full page is never written again; a page that is still
       being filled has one writer; what nobody holds stays in the tree, longest unused first out: to host memory, where there
       is a place for it, and from there out of the tree, longest unused first again

The tree has one node per page. The path from its root spells the ids that were computed, so the pages of a prompt, of a
sibling's prompt and of an earlier turn are found by walking down the ids, whether they lie in the pool or in host memory.
Keys and values depend on the weights: new weights start a new tree, and pages of the old one serve those who hold them
already and nobody else.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from dr_jax.engine.moves import Copy, Fetch, Move, Park

SCRATCH = 0  # the page that padding writes to; it is never handed out
_IDS = attrgetter("ids")


@dataclass(eq=False, slots=True)
class Node:
    """One page and the ids whose keys and values it holds.

    Args:
        page: its index in the pool; means nothing while it is parked.
        parent: the node of the page before; None for a root.
        ids: what was computed into it so far, at most a page of it.
        holders: how many leases it is part of.
        full: children that are complete, by their ids.
        children: all of them, in the order of their ids: thousands may begin alike, and each new request looks among them.
        place: where it is parked in host memory; None while it is in the pool. All its descendants are parked too, then.
    """

    page: int
    parent: Node | None
    ids: tuple[int, ...] = ()
    holders: int = 0
    full: dict[tuple[int, ...], Node] = field(default_factory=dict)
    children: list[Node] = field(default_factory=list)
    place: int | None = None


@dataclass(eq=False, slots=True)
class Lease:
    """What one running request holds.

    Args:
        root: of the tree that its nodes hang in.
        nodes: its pages in order; those after the first incomplete one are blank and not in the tree yet.
        cached: how many tokens have their keys and values in these pages.
        fetched: how many of them were brought back from host memory for it.
    """

    root: Node
    nodes: list[Node] = field(default_factory=list)
    cached: int = 0
    fetched: int = 0

    @property
    def pages(self) -> list[int]:
        """Indices of its pages, in order of position."""
        return [node.page for node in self.nodes]


@dataclass(frozen=True, slots=True)
class _Match:
    path: list[Node]  # complete pages
    tail: Node | None  # a page whose first `shared` tokens are wanted too
    shared: int


class PagePool:
    """Every page, on the host's side: numbers only, the arrays are the runner's.

    Args:
        count: how many pages there are, the scratch page included.
        page_size: tokens in one page.
        host_pages: how many pages host memory has places for.
    """

    def __init__(self, count: int, page_size: int, host_pages: int = 0) -> None:
        self.count, self.page_size = count, page_size
        self._free = list(range(count - 1, SCRATCH, -1))
        self._root = Node(SCRATCH, None)
        # Unheld nodes, longest unused first. A lease lets go of its deepest page first and whoever holds a page holds all
        # pages above it, so children always come before their parents: what is taken from the front has no children.
        self._unheld: dict[Node, None] = {}
        # Parked nodes, longest unused first. A page is parked after all that hang below it, so here too children come first.
        self._parked: dict[Node, None] = {}
        self._places = list(range(host_pages - 1, -1, -1))
        self._moves: list[Move] = []

    @property
    def available(self) -> int:
        """How many pages can be handed out: those never used and those that nobody holds."""
        return len(self._free) + len(self._unheld)

    @property
    def tokens(self) -> int:
        """How many tokens one request can have when it has the pool to itself."""
        return (self.count - 1) * self.page_size

    @property
    def held(self) -> int:
        """How many pages leases hold."""
        return self.count - 1 - self.available

    @property
    def parked(self) -> int:
        """How many pages lie in host memory."""
        return len(self._parked)

    def moves(self) -> tuple[Move, ...]:
        """Return, once, what must be done to pages, in order, before anything else is computed."""
        moves, self._moves = tuple(self._moves), []
        return moves

    def known(self, ids: Sequence[int]) -> int:
        """How many of the first ids need not be computed. The last one always is: its output is what is sampled from."""
        match = self._match(ids)
        return len(match.path) * self.page_size + match.shared

    def open(self, ids: Sequence[int], tokens: int) -> Lease | None:
        """Lease pages for a request, those that are known already among them.

        Args:
            ids: of the request so far.
            tokens: how many tokens there must be room for.

        Returns:
            The lease, whose `moves` are to be made before anything is computed for anybody; None when there are not enough
            pages, with nothing changed.
        """
        match = self._match(ids)
        found = self._open(match, tokens)
        if found is None and match.tail is not None:  # the page to copy from is one page too many
            found = self._open(_Match(match.path, None, 0), tokens)
        return found

    def reserve(self, lease: Lease, tokens: int) -> bool:
        """Make room for so many tokens in all; False when there are not enough pages, with nothing changed."""
        missing = -(-tokens // self.page_size) - len(lease.nodes)
        if missing > self.available:
            return False
        lease.nodes.extend(Node(self._take(), None, holders=1) for _ in range(missing))
        return True

    def filled(self, lease: Lease, ids: Sequence[int]) -> None:
        """Note that keys and values of these next ids were computed into the lease's pages."""
        self._extend(lease, tuple(ids))

    def release(self, lease: Lease) -> None:
        """Let go of every page; what they hold stays known until a page, or then a place in host memory, is needed."""
        for node in reversed(lease.nodes):
            if node.ids:
                self._let_go(node, lease.root)
            else:
                self._free.append(node.page)
        lease.nodes.clear()
        lease.cached = lease.fetched = 0

    def forget(self) -> None:
        """Start a new tree: the weights changed. Running leases keep their pages and share them with nobody new."""
        for node in (*self._parked, *self._unheld):
            self._drop(node)
        self._root = Node(SCRATCH, None)

    def current(self, lease: Lease) -> bool:
        """Whether others can share what this lease computes."""
        return lease.root is self._root

    def _open(self, match: _Match, tokens: int) -> Lease | None:
        nodes, cached, copied = list(match.path), len(match.path) * self.page_size, match.tail
        if copied is not None and match.shared == len(copied.ids) < self.page_size and not copied.holders:
            nodes.append(copied)  # nobody writes to it any more: go on where it ends
            cached, copied = cached + match.shared, None
        wanted = [*nodes, *([copied] if copied else [])]
        here, parked = [one for one in wanted if one.place is None], [one for one in wanted if one.place is not None]
        for node in here:
            self._hold(node)
        if -(-tokens // self.page_size) - sum(node.place is None for node in nodes) > self.available:
            for node in reversed(here):
                self._let_go(node, self._root)
            return None
        for node in parked:
            del self._parked[node]  # its place is not for those that are parked now
        lease = Lease(self._root, nodes, cached)
        fetched = [node for node in nodes if node.place is not None]
        pages = [self._take() for _ in fetched]  # all first: moves of a kind that follow each other are made together
        self.reserve(lease, tokens)
        for node, page in zip(fetched, pages, strict=True):
            self._fetch(node, page)
            lease.fetched += len(node.ids)
        if copied is not None:
            self._begin_with(copied, lease, match)
        return lease

    def _begin_with(self, tail: Node, lease: Lease, match: _Match) -> None:
        """Have a blank page of the lease begin with what another one begins with."""
        blank = lease.nodes[len(match.path)]
        if tail.place is None:
            self._moves.append(Copy(tail.page, blank.page))
            self._let_go(tail, lease.root)
        else:
            self._moves.append(Fetch(tail.place, blank.page))
            self._parked[tail] = None
            lease.fetched += match.shared
        self._extend(lease, tail.ids[: match.shared])

    def _match(self, ids: Sequence[int]) -> _Match:
        size, limit = self.page_size, len(ids) - 1
        node = self._root
        path: list[Node] = []
        while (len(path) + 1) * size <= limit:
            child = node.full.get(tuple(ids[len(path) * size : (len(path) + 1) * size]))
            if child is None:
                break
            path.append(child)
            node = child
        rest = tuple(ids[len(path) * size : min((len(path) + 1) * size, limit)])
        return _Match(path, *_closest(node.children, rest))

    def _extend(self, lease: Lease, ids: tuple[int, ...]) -> None:
        while ids:
            place = lease.cached // self.page_size
            node = lease.nodes[place]
            parent = lease.nodes[place - 1] if place else lease.root
            if node.ids:
                _take_out(node, parent.children)
            node.parent = parent
            new = ids[: self.page_size - len(node.ids)]
            node.ids += new
            lease.cached += len(new)
            ids = ids[len(new) :]
            if len(node.ids) == self.page_size:
                lease.nodes[place] = self._completed(node, parent)
            else:
                insort(parent.children, node, key=_IDS)

    def _completed(self, node: Node, parent: Node) -> Node:
        twin = parent.full.setdefault(node.ids, node)
        if twin is node:
            insort(parent.children, node, key=_IDS)
        else:  # somebody computed the same page meanwhile, or before: one of the two is enough
            if twin.place is None:
                self._free.append(node.page)
            else:
                del self._parked[twin]
                self._places.append(twin.place)
                twin.page, twin.place = node.page, None
            self._hold(twin)
        return twin

    def _hold(self, node: Node) -> None:
        node.holders += 1
        self._unheld.pop(node, None)

    def _let_go(self, node: Node, root: Node) -> None:
        node.holders -= 1
        if not node.holders:
            self._unheld[node] = None
            if root is not self._root:
                self._drop(node)

    def _take(self) -> int:
        if not self._free:
            self._park(next(iter(self._unheld)))
        return self._free.pop()

    def _park(self, node: Node) -> None:
        """Move a page that nobody holds to host memory, or give it up where no place can be had."""
        if not self._places and self._parked:
            self._drop(next(iter(self._parked)))
        if not self._places:
            self._drop(node)
            return
        del self._unheld[node]
        node.place = self._places.pop()
        self._parked[node] = None
        self._moves.append(Park(node.page, node.place))
        self._free.append(node.page)

    def _fetch(self, node: Node, page: int) -> None:
        assert node.place is not None
        self._moves.append(Fetch(node.place, page))
        self._places.append(node.place)
        node.page, node.place = page, None
        node.holders += 1

    def _drop(self, node: Node) -> None:
        assert node.parent is not None
        _take_out(node, node.parent.children)
        if node.parent.full.get(node.ids) is node:
            del node.parent.full[node.ids]
        if node.place is None:
            del self._unheld[node]
            self._free.append(node.page)
        else:
            del self._parked[node]
            self._places.append(node.place)


def _closest(children: Sequence[Node], ids: tuple[int, ...]) -> tuple[Node | None, int]:
    """Return the child that begins with most of the first ids, and with how many; no child when none begins with the first.

    Args:
        children: in the order of their ids, so that whoever shares most stands beside the place of these.
        ids: looked for.
    """
    place = bisect_right(children, ids, key=_IDS)
    best, shared = None, 0
    for child in children[max(place - 1, 0) : place + 1]:
        common = _common(child.ids, ids)
        if common > shared:
            best, shared = child, common
    # Between equals one that can be taken over is better than one that must be copied.
    alike = ids[:shared]
    for place in range(bisect_left(children, alike, key=_IDS), len(children)) if shared else ():
        if children[place].ids != alike:
            break
        if not children[place].holders:
            return children[place], shared
    return best, shared


def _take_out(node: Node, children: list[Node]) -> None:
    """Remove a node, by identity, from children in the order of their ids."""
    place = bisect_left(children, node.ids, key=_IDS)
    while children[place] is not node:
        place += 1
    del children[place]


def _common(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return min(len(left), len(right))
