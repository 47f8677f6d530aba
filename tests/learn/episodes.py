"""Small episodes to learn from, written as strings: `w` a token of the world, `p` one of the policy."""

from __future__ import annotations

from itertools import count, groupby

from dr_jax.tokens.trajectory import Author, Episode, Group, Outcome, Segment, Trajectory, Turn, world

_IDS = count(1)


def trajectory(pattern: str, *, first_id: int | None = None, vocabulary: int = 1_000_000, version: int = 0) -> Trajectory:
    """Build `wwpp|ppw`: runs of one author, a bar also ends a run. Ids count upward, log-probabilities are -id/100000."""
    ids = _IDS if first_id is None else count(first_id)
    segments = []
    for part in pattern.split("|"):
        for author, run in groupby(part):
            found = tuple(next(ids) % vocabulary for _ in run)
            if author == "w":
                segments.append(world(found))
            else:
                logprobs = tuple(-token / 100_000 for token in found)
                segments.append(Segment(Author.POLICY, found, logprobs, (version,) * len(found)))
    return Trajectory(tuple(segments))


def episode(
    *patterns: str,
    reward: float | None = 0.0,
    question: str = "q",
    sibling: int = 0,
    steps: tuple[float, ...] = (),
    first_id: int | None = None,
    vocabulary: int = 1_000_000,
    version: int = 0,
) -> Episode:
    """Build an episode with one trajectory per pattern; reward None is an episode that the world failed."""
    found = tuple(trajectory(pattern, first_id=first_id, vocabulary=vocabulary, version=version) for pattern in patterns)
    turns = tuple(Turn("") for one in found for _ in one.by(Author.POLICY))
    outcome = Outcome.WORLD_FAILED if reward is None else Outcome.OUT_OF_TURNS
    rewards = {} if reward is None else {"f1": reward}
    return Episode(f"{question}.{sibling}", question, found, outcome, turns=turns, rewards=rewards, step_rewards=steps)


def group(*episodes: Episode, question: str = "q") -> Group:
    """Build the group of a question."""
    return Group(question, tuple(episodes))
