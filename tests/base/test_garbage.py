"""Pauses of the garbage collector: what was alive before is not looked at, what is made since still is."""

from __future__ import annotations

import gc
import weakref

from dr_jax.base.garbage import SELDOM, short_pauses


class Cycle:
    """Something that only a collection can free."""

    def __init__(self) -> None:
        self.own = self


def test_what_was_loaded_is_left_alone_and_cycles_made_since_are_collected() -> None:
    loaded = Cycle()
    ours = weakref.ref(loaded)
    before = gc.get_threshold()
    with short_pauses():
        assert gc.get_threshold() == (*before[:2], max(before[2], SELDOM))
        del loaded
        made = weakref.ref(Cycle())
        gc.collect()
        assert made() is None
        assert ours() is not None
    assert gc.get_threshold() == before
    gc.collect()
    assert ours() is None
