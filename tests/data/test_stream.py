import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_jax.base.errors import CheckpointError, DataError
from dr_jax.data.question import Question
from dr_jax.data.stream import Stream


def questions(count: int, prefix: str = "q") -> list[Question]:
    return [Question(f"{prefix}{number}", f"what {number}?", ("x",)) for number in range(count)]


def ids(stream: Stream, count: int) -> list[str]:
    """Draw and train so many."""
    found = []
    for _ in range(count):
        found.append(stream.next().question.id)
        stream.mark_trained(found[-1])
    return found


def test_an_epoch_is_every_question_once_in_an_order_of_its_own() -> None:
    stream = Stream(questions(10), seed=1)
    first, second = ids(stream, 10), ids(stream, 10)
    assert sorted(first) == sorted(second) == sorted(question.id for question in questions(10))
    assert first != second
    assert ids(Stream(questions(10), seed=1), 20) == first + second
    assert ids(Stream(questions(10), seed=2), 10) != first


def test_draws_say_their_epoch_and_go_on_while_some_are_in_flight() -> None:
    stream = Stream(questions(2))
    assert [stream.next().epoch for _ in range(5)] == [0, 0, 1, 1, 2]
    assert (stream.epoch, stream.in_flight) == (0, 5)
    for name in ("q0", "q1"):
        stream.mark_trained(name)
    assert (stream.epoch, stream.in_flight) == (1, 3)


def test_what_was_in_flight_at_a_crash_is_drawn_again_and_what_was_trained_is_not() -> None:
    stream = Stream(questions(6), seed=4)
    drawn = [stream.next().question.id for _ in range(4)]
    stream.mark_trained(drawn[2])
    stream.mark_trained(drawn[0])
    resumed = Stream(questions(6), seed=4)
    resumed.restore(json.loads(json.dumps(stream.state())))
    assert ids(resumed, 4)[:2] == [drawn[1], drawn[3]]
    assert resumed.epoch == 1


def test_what_is_held_with_the_checkpoint_is_not_drawn_again() -> None:
    stream = Stream(questions(3), seed=4)
    drawn = [stream.next().question.id for _ in range(3)]
    resumed = Stream(questions(3), seed=4)
    resumed.restore(stream.state(), held=[(drawn[0], 0)])
    assert [resumed.next().question.id for _ in range(2)] == drawn[1:]
    for name in drawn:
        resumed.mark_trained(name)
    assert resumed.epoch == 1


def test_a_question_that_is_held_for_two_epochs_stays_out_in_both() -> None:
    stream = Stream(questions(1))
    assert [(draw.question.id, draw.epoch) for draw in (stream.next(), stream.next())] == [("q0", 0), ("q0", 1)]
    resumed = Stream(questions(1))
    resumed.restore(stream.state(), held=[("q0", 0), ("q0", 1)])
    assert resumed.in_flight == 2
    resumed.mark_trained("q0", 1)
    assert resumed.in_flight == 1
    resumed.give_back("q0", 0, failed=False)
    assert resumed.next().epoch == 0
    resumed.mark_trained("q0", 0)
    assert resumed.next().epoch == 2
    with pytest.raises(ValueError, match="'q0' is not in flight in epoch 0"):
        resumed.mark_trained("q0", 0)


def test_a_question_that_the_world_fails_is_drawn_again_a_few_times() -> None:
    stream = Stream(questions(2), tries=3)
    bad, good = stream.next().question.id, stream.next().question.id
    stream.mark_trained(good)
    assert stream.give_back(bad)
    assert stream.next().question.id == bad
    assert stream.give_back(bad)
    assert stream.next().question.id == bad
    assert not stream.give_back(bad)
    assert stream.epoch == 1


def test_what_was_dropped_as_too_old_is_always_drawn_again() -> None:
    stream = Stream(questions(1), tries=1)
    for _ in range(5):
        assert stream.give_back(stream.next().question.id, failed=False)
    assert stream.epoch == 0


def test_fresh_worlds_bring_other_questions_every_epoch() -> None:
    stream = Stream(lambda epoch: questions(2, f"world{epoch}/"))
    assert sorted(ids(stream, 4)) == ["world0/0", "world0/1", "world1/0", "world1/1"]
    drawn = stream.next().question.id
    resumed = Stream(lambda epoch: questions(2, f"world{epoch}/"))
    resumed.restore(stream.state())
    assert resumed.next().question.id == drawn


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 7), seed=st.integers(0, 5), steps=st.integers(1, 80), chance=st.randoms(use_true_random=False))
def test_whatever_happens_the_state_says_what_was_trained(count: int, seed: int, steps: int, chance: random.Random) -> None:
    own = questions(count)
    stream = Stream(own, seed)
    trained: Counter[str] = Counter()
    flying: list[str] = []
    for _ in range(steps):
        move = chance.choice(["draw", "draw", "train", "train", "fail", "crash"])
        if move == "draw":
            flying.append(stream.next().question.id)
        elif move == "crash":
            state = json.loads(json.dumps(stream.state()))
            stream = Stream(own, seed)
            stream.restore(state)
            flying = []
        elif flying:
            name = flying.pop(chance.randrange(len(flying)))
            if move == "train":
                stream.mark_trained(name)
                trained[name] += 1
            elif not stream.give_back(name):
                trained[name] += 1  # given up for this epoch
        state = stream.state()
        over = state["latest"] + 1 - len(state["epochs"])
        done = [{*one["trained"], *state["filtered"].get(number, ())} for number, one in state["epochs"].items()]
        for question in own:
            assert trained[question.id] == over + sum(question.id in one for one in done)
        assert stream.in_flight == len(flying)


def test_marks_of_questions_that_are_not_out_are_refused() -> None:
    stream = Stream(questions(2))
    with pytest.raises(ValueError, match="not in flight"):
        stream.mark_trained("q0")
    with pytest.raises(ValueError, match="not in flight"):
        stream.give_back("nobody")


def test_nothing_to_draw_and_two_questions_of_one_name_are_errors() -> None:
    with pytest.raises(DataError, match="Epoch 0 has no question"):
        Stream([])
    with pytest.raises(DataError, match="Two questions have the id 'q0'"):
        Stream([*questions(2), *questions(1)])


def test_a_state_of_another_seed_or_shape_is_refused() -> None:
    stream = Stream(questions(2), seed=1)
    with pytest.raises(CheckpointError, match="seed 2"):
        stream.restore(Stream(questions(2), seed=2).state())
    with pytest.raises(CheckpointError, match="cannot be read"):
        stream.restore({"seed": 1})


def test_drawing_takes_no_longer_when_many_were_trained() -> None:
    stream = Stream(questions(20_000))
    assert len(set(ids(stream, 20_000))) == 20_000


def shared(count: int, streams: int, seed: int = 0) -> list[Stream]:
    return [Stream(questions(count), seed, share=(index, streams)) for index in range(streams)]


def test_streams_that_share_an_order_draw_every_question_once_and_together_what_one_would() -> None:
    whole = ids(Stream(questions(12), 3), 12)
    first, second = (ids(one, 6) for one in shared(12, 2, seed=3))
    assert [first[0], second[0], first[1], second[1]] == whole[:4]
    assert sorted(first + second) == sorted(whole)
    with pytest.raises(DataError, match="Epoch 0 has fewer questions than there are processes, 3"):
        shared(2, 3)


def test_a_state_of_one_of_them_alone_is_refused() -> None:
    one, other = shared(4, 2)
    with pytest.raises(CheckpointError, match=r"of the shares \[\(0, 2\)\]. Needed: one of each stream"):
        one.restore(one.state())
    with pytest.raises(CheckpointError, match="one of each stream"):
        one.restore(other.state(), other.state())


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 4), st.integers(1, 4), st.integers(4, 15))
def test_7_another_number_of_streams_goes_on_with_what_is_not_trained_yet(
    rng: random.Random, before: int, after: int, count: int
) -> None:
    """Each of the streams before trains a random part, and holds some finished and some not; the streams after do the rest."""
    trained = Counter[tuple[int, str]]()

    def train(stream: Stream, question_id: str, epoch: int) -> None:
        trained[epoch, question_id] += 1
        stream.mark_trained(question_id, epoch)

    streams, held = shared(count, before), list[tuple[str, int]]()
    for stream in streams:
        for _ in range(rng.randrange(2 * count // before)):
            draw = stream.next()
            fate = rng.choice(["trained", "held", "unfinished", "failed"])
            if fate == "trained":
                train(stream, draw.question.id, draw.epoch)
            elif fate == "held":
                held.append((draw.question.id, draw.epoch))
            elif fate == "failed":
                stream.give_back(draw.question.id, draw.epoch, failed=False)
    states = json.loads(json.dumps([stream.state() for stream in streams]))
    streams, own = shared(count, after), list[tuple[str, int]]()
    for stream in streams:
        mine = stream.restore(*states, held=held)
        own += mine
        for question_id, epoch in mine:
            train(stream, question_id, epoch)
        while stream.epoch < 3:
            draw = stream.next()
            train(stream, draw.question.id, draw.epoch)
    assert sorted(own) == sorted(held), "a finished group was lost"
    assert trained == Counter({(epoch, one.id): 1 for epoch in range(3) for one in questions(count)})
