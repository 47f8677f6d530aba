"""Turn finished groups into a few rectangles.

In:    groups, ragged, plain Python
Out:   micro-batches of NumPy arrays [B, T]: B fixed, T from a short list, so the update compiles a handful of programs
Holds: every token that the policy wrote in a trainable episode is trained exactly once, in the context it was sampled in;
       the weights of all tokens of one update are normalised here, so micro-batches only need to be added up
Drops: what the world wrote after the policy's last word of a trajectory: no trained token saw it
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from dr_jax.base.errors import CapacityError
from dr_jax.base.metrics import Metrics
from dr_jax.learn.advantage import Advantage, episode_advantages, standardized, step_advantages
from dr_jax.tokens.trajectory import Author, Episode, Group, Trajectory

Aggregation = Literal["token_mean", "sequence_mean", "constant_length"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch; every array is [B, T] and says something about the token at its own place.

    The fields hold NumPy arrays on the host, JAX arrays once placed, and tracers inside `jit`; unflattening calls the
    constructor with any of them, so shapes are checked where batches are made and not here.

    Args:
        ids: token ids; 0 in padding.
        positions: place in its trajectory, from 0.
        segments: which trajectory of its row the token belongs to, from 1; 0 is padding.
        weights: the token's share of the update's loss; 0 for every token that the policy did not write.
        sampled_logprobs: what the sampler drew the token with; 0 where nothing is trained.
        versions: of the weights that drew the token; -1 where nothing is trained.
        pure: whether those weights also computed all keys and values that the token was drawn from: false after new weights
            were adopted in the middle of a turn, and where nothing is trained.
        advantages: of the token's episode and turn; 0 where nothing is trained.
    """

    ids: Any
    positions: Any
    segments: Any
    weights: Any
    sampled_logprobs: Any
    versions: Any
    pure: Any
    advantages: Any

    @property
    def trained(self) -> Any:
        """Whether a token carries loss: exactly the policy's own."""
        return self.weights > 0


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How trajectories become rectangles.

    Args:
        rows: rows of one micro-batch (B); a multiple of the devices that rows are spread over. 0 is as many as fit, which a run
            finds out at its start: see `train.memory`.
        lengths: the lengths (T) that a row may have, ascending; each is one compiled program.
        aggregation: how tokens share the loss. `token_mean`: every trained token alike (DeepResearcher, DAPO);
            `sequence_mean`: every episode alike, its tokens share (GRPO); `constant_length`: every token counts
            1 / (episodes x constant_length), free of length bias (Dr. GRPO).
        constant_length: the constant of `constant_length`, e.g. the token budget of an episode.
    """

    rows: int = 8
    lengths: tuple[int, ...] = (512, 1024, 2048)
    aggregation: Aggregation = "token_mean"
    constant_length: int = 1024

    def __post_init__(self) -> None:
        if self.rows < 0:
            raise ValueError(f"rows = {self.rows}; at least 1 is needed, or 0 for as many as fit")
        if not self.lengths or self.lengths[0] < 2 or list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"lengths = {self.lengths}; ascending lengths of at least 2 are needed")
        if self.constant_length < 1:
            raise ValueError(f"constant_length = {self.constant_length}; at least 1 is needed")


@dataclass(frozen=True, slots=True)
class _Piece:
    """One trajectory as arrays [n], up to the policy's last word; `weights` are not yet normalised."""

    ids: Int[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]
    sampled_logprobs: Float[np.ndarray, " n"]
    versions: Int[np.ndarray, " n"]
    pure: Bool[np.ndarray, " n"]
    advantages: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def trained(self) -> Bool[np.ndarray, " n"]:
        return self.versions >= 0


def pack(
    groups: Sequence[Group],
    settings: BatchSettings,
    *,
    advantage: Advantage = standardized,
    rows_multiple: int = 1,
    metrics: Metrics | None = None,
) -> tuple[Batch, ...]:
    """Pack the trajectories of all trainable episodes for one policy update.

    Args:
        groups: groups with at least two trainable episodes each, as `informative` leaves them.
        settings: shapes and aggregation.
        advantage: rewards of siblings to advantages.
        rows_multiple: how many devices rows are spread over.
        metrics: receives `batch/occupancy` and counts.

    Returns:
        Micro-batches, longest first; none when there is nothing to train.

    Raises:
        CapacityError: a trajectory is longer than the longest row, or the rows do not fit the devices.
        ValueError: a group is not trainable, or a POLICY segment has nothing before it.
    """
    return dealt(groups, settings, advantage=advantage, rows_multiple=rows_multiple, metrics=metrics).laid()


@dataclass(frozen=True, slots=True)
class Dealt:
    """Trajectories in the rows of micro-batches, of one process or of the only one; not laid out yet.

    Args:
        rows: of a micro-batch.
        plan: length and rows of each micro-batch, longest first.
        total: what the weights of all tokens are to be divided by, as far as it is known here: trained tokens, or episodes.
    """

    rows: int
    plan: tuple[tuple[int, list[list[_Piece]]], ...]
    total: float

    @property
    def lengths(self) -> list[int]:
        """Of the micro-batches."""
        return [length for length, _ in self.plan]

    def laid(self, lengths: Sequence[int] | None = None, total: float | None = None) -> tuple[Batch, ...]:
        """Lay the rows out.

        Args:
            lengths: of the micro-batches of all processes, at least as many and as long as these; None is these.
            total: of all processes; None is this one's.
        """
        lengths, total = self.lengths if lengths is None else lengths, self.total if total is None else total
        padding = [(0, list[list[_Piece]]())] * (len(lengths) - len(self.plan))
        return tuple(
            _rectangle(rows, length, total) if rows else empty(self.rows, length)
            for length, (_, rows) in zip(lengths, [*self.plan, *padding], strict=True)
        )


def dealt(
    groups: Sequence[Group],
    settings: BatchSettings,
    *,
    advantage: Advantage = standardized,
    rows_multiple: int = 1,
    metrics: Metrics | None = None,
) -> Dealt:
    """Deal the trajectories of all trainable episodes into rows; see `pack`.

    With several processes each deals those of its own groups, which are all that its `advantage` is told.
    """
    graded: list[tuple[Episode, float, tuple[float, ...]]] = []
    for group, values in zip(groups, episode_advantages(groups, advantage), strict=True):
        steps = step_advantages(group.trainable)
        graded += zip(group.trainable, (float(value) for value in values), steps, strict=True)
    return _dealt_out(graded, settings, rows_multiple, metrics or Metrics())


def pack_supervised(
    episodes: Sequence[Episode], settings: BatchSettings, *, rows_multiple: int = 1, metrics: Metrics | None = None
) -> tuple[Batch, ...]:
    """Pack demonstrations: every POLICY token of every episode, rewarded or not, with advantage 1.

    Raises:
        CapacityError, ValueError: as `pack`.
    """
    return _dealt_out([(episode, 1.0, ()) for episode in episodes], settings, rows_multiple, metrics or Metrics()).laid()


def empty(rows: int, length: int) -> Batch:
    """Build a micro-batch of padding, e.g. to compile a program before it is needed."""
    whole, real = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.float32)
    return Batch(whole, whole, whole, real, real, whole - 1, whole > 0, real)


def _dealt_out(
    graded: Sequence[tuple[Episode, float, tuple[float, ...]]], settings: BatchSettings, rows_multiple: int, metrics: Metrics
) -> Dealt:
    if not settings.rows or settings.rows % rows_multiple:
        raise CapacityError(
            f"batch.rows = {settings.rows} cannot be spread evenly over {rows_multiple} devices",
            needed=f"a multiple of {rows_multiple}, and not 0: nobody has chosen how many fit",
            fix=f"set batch.rows to {max(1, -(-settings.rows // rows_multiple)) * rows_multiple}",
        )
    pieces: list[_Piece] = []
    episodes = 0
    for episode, value, steps in graded:
        spoken = _pieces(episode, value, steps, settings)
        pieces += spoken
        episodes += bool(spoken)
    tokens, trained = sum(map(len, pieces)), sum(int(piece.trained.sum()) for piece in pieces)
    total = trained if settings.aggregation == "token_mean" else episodes
    found = Dealt(settings.rows, tuple(_rows(pieces, settings)), total)
    metrics.add("batch/episodes", episodes)
    metrics.add("batch/trajectories", len(pieces))
    metrics.add("batch/tokens", tokens)
    metrics.add("batch/trained_tokens", trained)
    metrics.add("batch/micro_batches", len(found.plan))
    metrics.gauge("batch/occupancy", tokens / max(1, settings.rows * sum(found.lengths)))
    return found


def _pieces(episode: Episode, value: float, steps: tuple[float, ...], settings: BatchSettings) -> list[_Piece]:
    """Turn an episode into arrays, one piece per trajectory in which the policy spoke."""
    spoken = [trajectory for trajectory in episode.trajectories if trajectory.by(Author.POLICY)]
    generations = [segment for trajectory in spoken for segment in trajectory.by(Author.POLICY)]
    if steps and len(steps) != len(generations):
        raise ValueError(f"episode {episode.id} has {len(steps)} step rewards for {len(generations)} POLICY segments")
    trained = sum(len(segment.ids) for segment in generations)
    weight = {"token_mean": 1.0, "sequence_mean": 1 / max(1, trained), "constant_length": 1 / settings.constant_length}
    additions = iter(steps or (0.0,) * len(generations))
    pieces = [_piece(trajectory, value, additions, weight[settings.aggregation]) for trajectory in spoken]
    for trajectory, piece in zip(spoken, pieces, strict=True):
        if trajectory.segments[0].author is Author.POLICY:
            raise ValueError(f"episode {episode.id} has a trajectory that opens with a POLICY segment: it has no context")
        if len(piece) > settings.lengths[-1]:
            raise CapacityError(
                f"A trajectory of episode {episode.id} has {len(piece)} tokens; the longest row has {settings.lengths[-1]}",
                needed="rows that hold a whole trajectory, because a truncated one would be trained in another context",
                fix=f"add a length of at least {len(piece)} to batch.lengths, or lower the token budget of an episode",
            )
    return pieces


def _piece(trajectory: Trajectory, value: float, additions: Iterator[float], weight: float) -> _Piece:
    last = max(at for at, segment in enumerate(trajectory.segments) if segment.author is Author.POLICY)
    segments = trajectory.segments[: last + 1]
    own = [segment.author is Author.POLICY for segment in segments]
    lengths = [len(segment.ids) for segment in segments]
    policy = np.repeat(own, lengths)

    def filled(values: Iterator[Iterable[Any]], background: float, dtype: type[np.generic]) -> Any:
        found = np.full(len(policy), background, dtype)
        found[policy] = np.fromiter(chain.from_iterable(values), dtype, int(policy.sum()))
        return found

    return _Piece(
        ids=np.fromiter(chain.from_iterable(segment.ids for segment in segments), np.int32, len(policy)),
        weights=policy * weight,
        sampled_logprobs=filled((segment.logprobs for segment in segments), 0.0, np.float32),
        versions=filled((segment.versions for segment in segments), -1, np.int32),
        # The engine starts a turn with the keys and values of one version, and keeps them when it adopts another.
        pure=filled(((one == segment.versions[0] for one in segment.versions) for segment in segments), 0.0, np.bool_),
        advantages=np.repeat(np.asarray([value + next(additions) if one else 0.0 for one in own], np.float32), lengths),
    )


def _rows(pieces: Sequence[_Piece], settings: BatchSettings) -> list[tuple[int, list[list[_Piece]]]]:
    """Deal pieces into the rows of few micro-batches with little padding; return each one's length and rows, longest first.

    The lengths are chosen for the whole batch: as much room as there are tokens, then more by what found none. Pieces go best
    fit decreasing: Johnson, "Near-optimal bin packing algorithms" (1973).
    """
    waiting = sorted(pieces, key=len, reverse=True)
    room = sum(map(len, waiting))
    while waiting:
        lengths = _lengths(room, len(waiting[0]), settings)
        rows, left = _dealt(waiting, np.repeat(lengths, settings.rows))
        if not left:
            cut = [rows[start : start + settings.rows] for start in range(0, len(rows), settings.rows)]
            used = [(max(sum(map(len, row)) for row in one), one) for one in cut]
            shortest = [(next(length for length in settings.lengths if length >= most), one) for most, one in used if most]
            return sorted(shortest, key=lambda found: -found[0])
        room += left
    return []


def _lengths(room: int, longest: int, settings: BatchSettings) -> list[int]:
    """Choose lengths of micro-batches that hold so many tokens, and the longest piece: the largest first, few in number."""
    *shorter, largest = settings.lengths
    found = [largest] * (room // (settings.rows * largest))
    if not found:
        found = [next(length for length in settings.lengths if length >= longest)]
    rest = room - settings.rows * sum(found)
    for length in reversed(shorter):
        while rest >= settings.rows * length:
            found.append(length)
            rest -= settings.rows * length
    return [*found, settings.lengths[0]] if rest > 0 else found


def _dealt(pieces: Sequence[_Piece], space: Int[np.ndarray, " rows"]) -> tuple[list[list[_Piece]], int]:
    """Put each piece into the row that it fills best; return the rows, and how many tokens found no room."""
    rows: list[list[_Piece]] = [[] for _ in space]
    left = 0
    for piece in pieces:
        over = space - len(piece)
        at = int(np.where(over < 0, np.iinfo(over.dtype).max, over).argmin())
        if over[at] < 0:
            left += len(piece)
        else:
            rows[at].append(piece)
            space[at] = over[at]
    return rows, left


def _rectangle(rows: Sequence[Sequence[_Piece]], length: int, total: float) -> Batch:
    """Lay pieces side by side in their rows; divide their weights by the update's total."""
    batch = empty(len(rows), length)
    arrays = {field.name: getattr(batch, field.name).copy() for field in fields(batch)}
    for row, pieces in enumerate(rows):
        start = 0
        for number, piece in enumerate(pieces, start=1):
            span = np.s_[row, start : start + len(piece)]
            arrays["ids"][span] = piece.ids
            arrays["positions"][span] = np.arange(len(piece))
            arrays["segments"][span] = number
            arrays["weights"][span] = piece.weights / total
            arrays["sampled_logprobs"][span] = piece.sampled_logprobs
            arrays["versions"][span] = piece.versions
            arrays["pure"][span] = piece.pure
            arrays["advantages"][span] = piece.advantages
            start += len(piece)
    return Batch(**arrays)
