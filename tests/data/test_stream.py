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
    resumed.restore(stream.state(), held=[drawn[0]])
    assert [resumed.next().question.id for _ in range(2)] == drawn[1:]
    for name in drawn:
        resumed.mark_trained(name)
    assert resumed.epoch == 1


def test_a_question_that_is_held_for_two_epochs_stays_out_in_both() -> None:
    stream = Stream(questions(1))
    assert [(draw.question.id, draw.epoch) for draw in (stream.next(), stream.next())] == [("q0", 0), ("q0", 1)]
    resumed = Stream(questions(1))
    resumed.restore(stream.state(), held=["q0", "q0"])
    assert resumed.in_flight == 2
    for _ in range(2):
        resumed.mark_trained("q0")
    assert resumed.next().epoch == 2


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
        for question in own:
            assert trained[question.id] == over + sum(question.id in one["trained"] for one in state["epochs"].values())
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
