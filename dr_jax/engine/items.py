"""List what single queries have to meet: every block of pages once, also where several rows have it.

In:    the pages of each row, and how many tokens of them it may see
Out:   Items: blocks that several rows share, blocks of one row, and where each row finds what it gathered
Holds: siblings have the pages of their prompt in common, and reading pages is most of what a decoding step costs; a block has
       the same pages for two rows exactly when its last page is the same, since a page has one page before it
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from dr_jax.engine.cpu import OnCpu
from dr_jax.engine.kernels import Decoding

SHARED = 4  # rows that meet a shared block together; with half of them or fewer each meets it alone


class Tiles(NamedTuple):
    """How attention is cut up; what is gathered does not depend on it but for rounding.

    Args:
        tokens: of a block of keys, a multiple of the page size.
        at_once: blocks that single queries meet in one step.
        kernel: how single queries, or stretches of them too, meet pages; None is plain JAX.
        flat: read a page as one stretch of numbers and write all heads of a token at once, which is quicker on a CPU; a TPU
            would copy the pools, in every layer, to lay them out so.
    """

    tokens: int
    at_once: int
    kernel: Decoding | OnCpu | None = None
    flat: bool = True


class Blocks(NamedTuple):
    """Blocks of keys, each with the rows that meet it.

    Args:
        pages_NX: of each block; N is the most that there can be, rounded up to whole steps.
        starts_N: position of the block's first token.
        rows_NS: who meets it.
        used: how many blocks there are; what comes after them is met and not looked at.
    """

    pages_NX: Int[np.ndarray, "N X"]
    starts_N: Int[np.ndarray, " N"]
    rows_NS: Int[np.ndarray, "N S"]
    used: np.int32


class Items(NamedTuple):
    """Everything that is to be met.

    Args:
        shared: blocks of several rows.
        alone: blocks of one row.
        places_BI: where what a row gathered from its block I stands: shared blocks first, row after row of each.
        there_BI: whether the row has this block.
    """

    shared: Blocks
    alone: Blocks
    places_BI: Int[np.ndarray, "B I"]
    there_BI: Bool[np.ndarray, "B I"]


def listed(tables_BX: Int[np.ndarray, "B X"], lengths_B: Int[np.ndarray, " B"], page_size: int, tiles: Tiles) -> Items | None:
    """Return the blocks of every row, as far as its length goes; None where a kernel meets them, which needs no list.

    Args:
        tables_BX: pages of each row.
        lengths_B: tokens that a row may come to see; 0 is a row without any.
        page_size: tokens of a page.
        tiles: how they are cut.
    """
    if tiles.kernel is not None:
        return None
    rows, wide = len(tables_BX), tiles.tokens // page_size
    pages_BIX = np.pad(tables_BX, ((0, 0), (0, -tables_BX.shape[1] % wide))).reshape(rows, -1, wide)
    most = pages_BIX.shape[1]
    there_BI = np.arange(most)[None] * tiles.tokens < lengths_B[:, None]
    rows_N, blocks_N = np.nonzero(there_BI)
    whole_N = (blocks_N + 1) * tiles.tokens <= lengths_B[rows_N]  # the last page of another block may not be there yet
    names_N = np.where(whole_N, pages_BIX[rows_N, blocks_N, -1], -1 - np.arange(len(rows_N)))
    together, alone_N = _together(names_N)
    shared = _empty(rows * most // (SHARED // 2 + 1), SHARED, wide, tiles)
    places_BI = np.zeros((rows, most), np.int32)
    for place, members in enumerate(together):
        who, block = rows_N[members], blocks_N[members[0]]
        shared.pages_NX[place], shared.starts_N[place] = pages_BIX[who[0], block], block * tiles.tokens
        shared.rows_NS[place, : len(who)] = who
        places_BI[who, block] = place * SHARED + np.arange(len(who))
    alone, count = _empty(rows * most, 1, wide, tiles), len(alone_N)
    rows_N, blocks_N = rows_N[alone_N], blocks_N[alone_N]
    alone.pages_NX[:count], alone.starts_N[:count] = pages_BIX[rows_N, blocks_N], blocks_N * tiles.tokens
    alone.rows_NS[:count, 0] = rows_N
    places_BI[rows_N, blocks_N] = len(shared.starts_N) * SHARED + np.arange(count)
    return Items(shared._replace(used=np.int32(len(together))), alone._replace(used=np.int32(count)), places_BI, there_BI)


def _together(names_N: Int[np.ndarray, " N"]) -> tuple[list[np.ndarray], np.ndarray]:
    """Return which places of equal names meet their block together, and which do not."""
    order_N = np.argsort(names_N, kind="stable")
    firsts = np.flatnonzero(np.diff(names_N[order_N], prepend=np.iinfo(np.int64).min))
    counts = np.diff(firsts, append=len(order_N))
    together: list[np.ndarray] = []
    alone_N = np.ones(len(names_N), np.bool_)
    for first, count in zip(firsts[counts > SHARED // 2], counts[counts > SHARED // 2], strict=True):
        for start in range(first, first + count, SHARED):
            some = order_N[start : min(start + SHARED, first + count)]
            if len(some) > SHARED // 2:
                together.append(some)
                alone_N[some] = False
    return together, np.flatnonzero(alone_N)


def _empty(most: int, rows: int, wide: int, tiles: Tiles) -> Blocks:
    count = max(-(-most // tiles.at_once), 1) * tiles.at_once
    return Blocks(np.zeros((count, wide), np.int32), np.zeros(count, np.int32), np.zeros((count, rows), np.int32), np.int32(0))
