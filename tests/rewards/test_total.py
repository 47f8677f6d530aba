import pytest

from dr_jax.base.errors import ConfigError
from dr_jax.data.question import Question
from dr_jax.rewards.match import exact_match, f1
from dr_jax.rewards.normalize import normalized
from dr_jax.rewards.total import RewardSettings, Total
from dr_jax.tokens.trajectory import Episode, Outcome, Trajectory, Turn, world

GOLDENS = [
    ("Paris", ["Paris"], 1.0, 1.0),
    ("the city of paris paris", ["Paris France"], 0.3333, 0.2857),
    ("Rome", ["Paris", "Rome!"], 1.0, 1.0),
    ("", ["Paris"], 0.0, 0.0),
    ("London", ["Paris"], 0.0, 0.0),
]


@pytest.mark.parametrize(("said", "accepted", "by_set", "by_bag"), GOLDENS)
def test_f1_goldens(said: str, accepted: list[str], by_set: float, by_bag: float) -> None:
    assert f1(said, accepted) == pytest.approx(by_set, abs=1e-4)
    assert f1(said, accepted, "bag") == pytest.approx(by_bag, abs=1e-4)


def test_punctuation_becomes_a_space_and_articles_stay() -> None:
    assert normalized("The  U.S.-based, CO") == "the u s based co"
    assert exact_match("cair paravel.", ["Cair Paravel"]) == 1.0


def episode(text: str, answer: str | None) -> Episode:
    outcome = Outcome.MALFORMED if answer is None else Outcome.ANSWERED
    return Episode("q.0", "q", (Trajectory((world([1]),)),), outcome, (Turn(text),), answer)


QUESTION = Question("q", "where?", ("Paris", "Lutetia"))


@pytest.mark.parametrize(
    ("text", "answer", "reward"),
    [
        ("<think>x</think><answer>Paris</answer>", "Paris", 1.0),
        ("<think>x</think><answer>lutetia</answer>", "lutetia", 1.0),
        ("<think>x<answer>Paris</answer>", "Paris", -1.0),
        ("<think>x</think>", None, -1.0),
    ],
)
def test_reward_goldens(text: str, answer: str | None, reward: float) -> None:
    assert Total()(episode(text, answer), QUESTION).reward == reward


def brevity(episode: Episode, question: Question) -> float:
    return -0.01 * len(episode.turns)


def test_a_part_of_your_own_is_named_in_the_settings() -> None:
    settings = RewardSettings({"f1": 1.0, f"{__name__}:brevity": 2.0})
    found = Total(settings)(episode("<answer>Paris</answer>", "Paris"), QUESTION)
    assert found.reward == pytest.approx(0.98)


def test_a_part_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match="no reward part 'f2'"):
        Total(RewardSettings({"f2": 1.0}))


def broken(episode: Episode, question: Question) -> float:
    raise KeyError("bug")


def unmeasured(episode: Episode, question: Question) -> float:
    return float("nan")


def test_a_part_that_fails_is_named() -> None:
    with pytest.raises(KeyError) as raised:
        Total(RewardSettings({f"{__name__}:broken": 1.0}))(episode("x", None), QUESTION)
    assert "broken' on episode q.0 (malformed)" in raised.value.__notes__[0]
    with pytest.raises(ConfigError, match="unmeasured' returned nan"):
        Total(RewardSettings({f"{__name__}:unmeasured": 1.0}))(episode("x", None), QUESTION)


def test_settings_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="empty"):
        RewardSettings({})
    with pytest.raises(ValueError, match="finite"):
        RewardSettings({"f1": float("inf")})


def test_what_the_world_failed_is_returned_as_it_is() -> None:
    failed = Episode("q.0", "q", (), Outcome.WORLD_FAILED, failure="down")
    assert Total()(failed, QUESTION) is failed


def test_typographic_punctuation_counts_as_what_it_stands_for() -> None:
    assert normalized("“O’Brien”—ｔhe、x") == normalized('"O\'Brien"-ｔhe,x')
    assert exact_match("Saint‑Denis", ["saint-denis"]) == 1.0


@pytest.mark.parametrize(("name", "reward"), [("f1", 0.8), ("bag_f1", 2 / 3), ("em", 0.0)])
def test_parts_by_name(name: str, reward: float) -> None:
    question = Question("q", "?", ("oren vash",))
    found = Total(RewardSettings({name: 1.0}))(episode("<answer>x</answer>", "oren vash vash of"), question)
    assert found.rewards[name] == pytest.approx(reward)
