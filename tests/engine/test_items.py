"""Blocks that several rows have are listed once, the others each for its row, and every row finds all of its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dr_jax.engine.items import SHARED, Items, Tiles, listed

TILES = Tiles(tokens=16, at_once=4)  # two pages of 8 tokens
SIBLINGS = np.array([[1, 2, 3, 4], [1, 2, 5, 6], [1, 2, 7, 0], [1, 9, 8, 0], [0, 0, 0, 0]], np.int32)


def found(items: Items, row: int, block: int) -> tuple[list[int], int]:
    """Pages and start of what a row meets as its block, wherever that is listed; the row is among those who meet it."""
    place, first = int(items.places_BI[row, block]), items.shared.rows_NS.size
    blocks, place = (items.shared, place) if place < first else (items.alone, place - first)
    item, member = divmod(place, blocks.rows_NS.shape[1])
    assert item < blocks.used
    assert blocks.rows_NS[item, member] == row
    return blocks.pages_NX[item].tolist(), int(blocks.starts_N[item])


def test_a_prompt_that_three_siblings_have_is_listed_once() -> None:
    items = listed(SIBLINGS, np.array([30, 32, 20, 20, 0]), 8, TILES)
    assert items.shared.used == 1
    assert items.shared.pages_NX[0].tolist() == [1, 2]
    assert items.shared.rows_NS[0, :3].tolist() == [0, 1, 2]
    assert items.alone.used == 5, "the fourth row's first block, and what each of the four has after it"
    assert found(items, 3, 0) == ([1, 9], 0)
    assert found(items, 1, 1) == ([5, 6], 16)
    assert not items.there_BI[4].any()


def test_two_rows_meet_what_they_share_each_for_itself() -> None:
    items = listed(SIBLINGS[:2], np.array([16, 16]), 8, TILES)
    assert (items.shared.used, items.alone.used) == (0, 2), f"less than half of {SHARED} would waste most of an item"


def test_a_block_that_is_not_full_is_nobody_elses() -> None:
    tables = np.array([[1, 0], [2, 0], [3, 0], [4, 0]], np.int32)  # the second pages are not there yet
    items = listed(tables, np.array([8, 8, 8, 8]), 8, TILES)
    assert (items.shared.used, items.alone.used) == (0, 4)


@pytest.mark.parametrize("page_size", [4, 8])
@given(st.data())
def test_every_row_finds_each_of_its_blocks(page_size: int, data: st.DataObject) -> None:
    rows, pages = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 7))
    tables = np.arange(1, rows * pages + 1, dtype=np.int32).reshape(rows, pages)
    for row in range(1, rows):  # as in a tree: who shares a page shares all before it
        other, depth = data.draw(st.integers(0, row - 1)), data.draw(st.integers(0, pages))
        tables[row, :depth] = tables[other, :depth]
    lengths = np.array([data.draw(st.integers(0, pages * page_size)) for _ in range(rows)])
    for row, length in enumerate(lengths):
        tables[row, -(-int(length) // page_size) :] = 0
    items, wide = listed(tables, lengths, page_size, TILES), TILES.tokens // page_size
    for row, length in enumerate(lengths):
        for block in range(items.there_BI.shape[1]):
            assert items.there_BI[row, block] == (block * TILES.tokens < length)
            if items.there_BI[row, block]:
                own = [*tables[row], *[0] * wide][block * wide : (block + 1) * wide]
                assert found(items, row, block) == (own, block * TILES.tokens)
