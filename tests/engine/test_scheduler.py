"""Decisions without a device: a loop that pretends every id was computed and draws from a formula."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_jax.engine.moves import Copy
from dr_jax.engine.pages import PagePool
from dr_jax.engine.request import Request
from dr_jax.engine.scheduler import Decode, Mixed, Plan, Prefill, Scheduler, Work
from dr_jax.tokens.policy import Sampling

KEY = np.zeros(2, np.uint32)


def scheduler(*, pages: int = 65, slots: int = 4, rows: tuple[int, ...] = (2, 4)) -> Scheduler:
    return Scheduler(PagePool(pages, 4), slots, tokens_per_call=4, prefill_rows=rows, prefill_width=8)


def request(ids: list[int], budget: int = 4) -> Request:
    return Request(tuple(ids), Sampling(budget), KEY, lambda found: None)


def distinct(count: int, length: int = 6) -> list[Request]:
    return [request([100 * one + place for place in range(length)]) for one in range(count)]


def step(one: Scheduler) -> Work | None:
    """Plan, and do what the device would: the next id is the number of ids before it."""
    work = one.plan().work
    match work:
        case Prefill():
            prefill(one, work)
        case Decode():
            decode(one, work, one.tokens_per_call)
        case Mixed(known, drawing):
            assert not {stretch.request for stretch in known.stretches} & set(drawing.requests)
            prefill(one, known)
            decode(one, drawing, 1)
    return work


def prefill(one: Scheduler, work: Prefill) -> None:
    assert 0 < len(work.stretches) <= work.rows
    for stretch in work.stretches:
        last = stretch.last
        assert stretch.start == stretch.request.cached
        one.computed(stretch.request, stretch.ids)
        if last:
            draw(one, stretch.request, 1)


def decode(one: Scheduler, work: Decode, most: int) -> None:
    assert 0 < len(work.requests) <= one.slots
    for drawing in work.requests:
        assert drawing.lease is not None
        count = min(most, drawing.left)
        assert len(drawing.lease.pages) * 4 >= drawing.cached + count
        new = list(range(len(drawing.ids), len(drawing.ids) + count))
        one.computed(drawing, [drawing.ids[-1], *new[:-1]])
        draw(one, drawing, count)


def draw(one: Scheduler, drawing: Request, count: int) -> None:
    new = range(len(drawing.ids), len(drawing.ids) + count)
    drawing.append(list(new), [0.0] * count, 0)
    if drawing.finished:
        one.remove(drawing)


def test_first_come_first_served() -> None:
    one = scheduler(slots=2)
    asked = distinct(4)
    for waiting in asked:
        one.add(waiting)
    step(one)
    assert one.running == asked[:2]
    assert one.waiting == asked[2:]


def test_a_call_is_nearly_full_or_the_next_smaller_one() -> None:
    for stretches, rows in ((1, 2), (2, 2), (3, 4), (4, 4), (9, 4)):
        one = scheduler(rows=(2, 4), slots=9)
        for waiting in distinct(stretches):
            one.add(waiting)
        work = one.plan().work
        assert isinstance(work, Prefill)
        assert (work.rows, len(work.stretches)) == (rows, min(stretches, rows))


def test_one_long_prompt_fills_several_rows_of_a_call() -> None:
    one = scheduler()
    one.add(request(list(range(30))))
    work = step(one)
    assert isinstance(work, Prefill)
    assert [(stretch.start, stretch.stop) for stretch in work.stretches] == [(0, 8), (8, 16), (16, 24), (24, 30)]


def test_siblings_wait_for_the_first_one_and_others_pass_them() -> None:
    one = scheduler(slots=3, rows=(1,))
    siblings = [request(list(range(14))) for _ in range(2)]
    stranger = request([500, 501, 502])
    for waiting in (*siblings, stranger):
        one.add(waiting)
    one.plan()
    assert one.running == [siblings[0], stranger]
    while siblings[0].drawn == 0:
        step(one)
    plan = one.plan()
    assert siblings[1] in one.running
    assert siblings[1].pending == 1  # it computes nothing but the prompt's last id
    assert [type(move) for move in plan.moves] == [Copy]


def test_who_draws_gets_an_id_after_every_chunk_of_a_long_prompt() -> None:
    one = scheduler(slots=2, pages=700)
    drawing, long = request([1, 2, 3], budget=200), request(list(range(100, 2200)))
    one.add(drawing)
    step(one)
    one.add(long)
    drawn = [drawing.drawn]
    while long.pending > 1:
        work = step(one)
        assert isinstance(work, Mixed)
        assert len(work.prefill.stretches) * 8 <= 32, "what a call computes is bounded"
        drawn.append(drawing.drawn)
    # 2,100 ids in chunks of 4 x 8
    assert drawn == list(range(1, 68))
    assert step(one) == Decode((drawing, long))


def test_a_long_prompt_is_computed_however_many_draw() -> None:
    one = scheduler(slots=5, pages=400)
    for waiting in distinct(4):
        waiting.sampling = Sampling(300)
        one.add(waiting)
    while one.waiting or any(waiting.pending > 1 for waiting in one.running):
        step(one)
    long = request(list(range(1000, 1400)))
    one.add(long)
    for _ in range(13):  # 400 ids in chunks of 4 x 8
        assert not long.drawn
        step(one)
    assert long.drawn == 1


def test_the_youngest_is_put_back_and_keeps_what_it_drew() -> None:
    one = scheduler(pages=7, slots=2)  # six pages of four: 24 tokens
    old, young = request(list(range(7)), budget=13), request(list(range(50, 57)), budget=13)
    one.add(old)
    one.add(young)
    while young in one.running or not young.drawn:
        step(one)
    kept = list(young.ids)
    assert one.waiting == [young]
    assert len(kept) > 7
    while one.requests:
        step(one)
    assert young.ids[: len(kept)] == kept
    assert one.metrics.drain()["engine/preempted"] >= 1
    assert one.pool.held == 0
    assert (len(old.ids), len(young.ids)) == (20, 20)


def test_new_weights_start_again_who_has_not_come_to_draw() -> None:
    one = scheduler(slots=2, rows=(1,))
    drawing, computing = request([1, 2, 3], budget=9), request(list(range(10, 30)))
    one.add(drawing)
    step(one)
    one.add(computing)
    step(one)
    assert drawing.pending == 1 < computing.pending < 20
    held = drawing.cached
    one.restart()
    assert drawing.cached == held
    assert computing.cached == 0
    twin = request(list(range(10, 30)))
    one.add(twin)
    work = step(one)
    assert isinstance(work, Mixed)
    assert [(stretch.request, stretch.start) for stretch in work.prefill.stretches] == [(computing, 0)]
    while one.requests:
        step(one)
    assert one.pool.held == 0


def test_new_weights_start_again_who_found_its_whole_prompt_and_has_drawn_nothing() -> None:
    one = scheduler(slots=2, rows=(1,))
    prompt = list(range(9))
    one.add(request(prompt, budget=1))
    step(one)
    step(one)
    assert not one.requests
    long, twin = request(list(range(100, 130))), request(prompt)
    one.add(long)
    one.add(twin)
    one.plan()  # takes in both
    assert (twin.pending, twin.drawn) == (1, 0)
    one.restart()
    assert twin.cached == 0
    assert twin in one.waiting


def test_removing_a_request_frees_its_pages_wherever_it_is() -> None:
    one = scheduler(slots=1)
    running, waiting = distinct(2)
    for asked in (running, waiting):
        one.add(asked)
    step(one)
    for asked in (waiting, running, running):
        one.remove(asked)
    assert one.requests == []
    assert one.pool.held == 0
    assert one.plan().work is None


prompts = st.lists(st.integers(0, 1), min_size=1, max_size=20)


@settings(max_examples=80, deadline=None)
@given(
    asked=st.lists(st.tuples(prompts, st.integers(1, 12), st.integers(0, 9)), min_size=1, max_size=12),
    pages=st.integers(9, 20),
    slots=st.integers(1, 5),
)
def test_everything_ends_whatever_is_asked(asked: list[tuple[list[int], int, int]], pages: int, slots: int) -> None:
    one = scheduler(pages=pages, slots=slots)
    arrivals = [(at, request(ids, budget)) for ids, budget, at in asked]
    for time in range(1000):
        for at, arriving in arrivals:
            if at == time:
                one.add(arriving)
        if step(one) is None and time > 9:
            break
    else:
        pytest.fail("somebody still waits after 1000 calls")
    assert all(arriving.left == 0 for _, arriving in arrivals)
    assert one.requests == []
    assert one.pool.held == 0


def test_a_call_can_follow_one_whose_ids_are_not_known_yet() -> None:
    one = scheduler()
    asked = [request([7, 8, 9], budget=9), request([17, 18, 19], budget=2)]
    for waiting in asked:
        one.add(waiting)
    step(one)
    work = one.plan().work
    assert work == Decode(tuple(asked))
    ahead = one.ahead(work)
    assert ahead is not None
    assert ahead.work == Decode(tuple(asked), unread=4)
    assert asked[0].lease is not None
    assert len(asked[0].lease.pages) * 4 >= 3 + 2 * 4, "there is room for both calls"


def test_no_call_follows_one_that_makes_room_for_somebody_who_waits() -> None:
    one = scheduler(slots=2)
    asked = [request([7, 8, 9], budget=9), request([17, 18, 19], budget=2), request([27, 28], budget=2)]
    for waiting in asked:
        one.add(waiting)
    step(one)
    work = one.plan().work
    assert work == Decode(tuple(asked[:2]))
    assert one.ahead(work) is None, "the second one ends in it, and the third one takes its slot"


def test_no_call_follows_the_last_one() -> None:
    one = scheduler()
    one.add(request([7, 8, 9], budget=3))
    step(one)
    work = one.plan().work
    assert isinstance(work, Decode)
    assert one.ahead(work) is None


def test_stretches_follow_stretches_before_what_those_draw_is_known() -> None:
    one = scheduler(rows=(2,))
    one.add(request(list(range(30))))
    work = one.plan().work
    assert isinstance(work, Prefill)
    for stretch in work.stretches:
        one.computed(stretch.request, stretch.ids)
    ahead = one.ahead(work)
    assert ahead is not None
    assert isinstance(ahead.work, Prefill)
    assert [stretch.start for stretch in ahead.work.stretches] == [16, 24]


def test_a_mixed_call_follows_a_mixed_one_until_somebody_else_has_come_to_draw() -> None:
    one = scheduler(slots=3, rows=(1,))
    drawing, short, long = request([1, 2, 3], budget=20), request(list(range(10, 25))), request(list(range(30, 60)))
    one.add(drawing)
    step(one)
    for waiting in (short, long):
        one.add(waiting)

    def queue(plan: Plan | None) -> Mixed:
        assert plan is not None
        assert isinstance(plan.work, Mixed)
        for stretch in plan.work.prefill.stretches:
            one.computed(stretch.request, stretch.ids)
        return plan.work

    def read(work: Mixed) -> None:
        for stretch in work.prefill.stretches:
            if stretch.last:
                draw(one, stretch.request, 1)
        decode(one, work.decode, 1)

    first = queue(one.plan())
    second = queue(one.ahead(first))
    assert (first.decode, second.decode) == (Decode((drawing,)), Decode((drawing,), unread=1))
    assert second.prefill.stretches[0].last, "the short one draws its first id, which nobody has read"
    read(first)
    third = queue(one.ahead(second))
    assert (third.prefill.stretches[0].request, third.decode.requests) == (long, (drawing,))
    read(second)
    assert one.ahead(third) is None
    read(third)
    assert queue(one.plan()).decode == Decode((drawing, short))
