"""What every side of a benchmark is given: the same model sizes, the same ids, the same lengths. Numpy only.

In:    a name
Out:   Model: sizes of a Qwen3-shaped model; Request: turns of one conversation, each with ids that are new and how many to draw
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SEED = 20251126
SPECIAL = 3  # ids below are padding, beginning and end for somebody
LEARNING_RATE = 1e-6


@dataclass(frozen=True, slots=True)
class Model:
    """Sizes of a Qwen3-shaped model with tied embeddings."""

    vocab: int
    width: int
    ff: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6

    @property
    def parameters(self) -> int:
        """How many there are."""
        attention = self.width * self.head_dim * (2 * self.heads + 2 * self.kv_heads) + 2 * self.head_dim
        return self.vocab * self.width + self.layers * (attention + 3 * self.width * self.ff + 2 * self.width) + self.width


MODELS = {
    "small": Model(2048, 256, 768, 4, 8, 2, 32),  # 3.5 M, the sizes at which Tunix was measured before
    "135m": Model(49_152, 576, 1536, 30, 9, 3, 64),  # SmolLM2-135M's
    "0.5b": Model(151_936, 896, 4864, 24, 14, 2, 64),  # Qwen2.5's
    "1.5b": Model(151_936, 1536, 8960, 28, 12, 2, 128),
    "7b": Model(152_064, 3584, 18_944, 28, 28, 4, 128),
}


@dataclass(frozen=True, slots=True)
class Turn:
    """What the world says, and how many ids the policy says then."""

    ids: tuple[int, ...]
    draw: int


@dataclass(frozen=True, slots=True)
class Request:
    """One conversation; siblings have the same question."""

    question: int
    turns: tuple[Turn, ...]

    @property
    def drawn(self) -> int:
        """Ids that are drawn in all."""
        return sum(turn.draw for turn in self.turns)

    @property
    def length(self) -> int:
        """Ids in all."""
        return self.drawn + sum(len(turn.ids) for turn in self.turns)


def decode_work(name: str, vocab: int) -> list[Request]:
    """Return the requests of a decoding benchmark.

    `uniform`: 16 requests that each draw 64 ids after 64. `agent`: 4 questions of 600 ids, 4 siblings each, three turns of 16
    to 256 drawn ids with 300 ids of observation between them. `group`: the same, 8 questions and 8 siblings.
    """
    rng = np.random.default_rng(SEED)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(int(one) for one in rng.integers(SPECIAL, vocab, count))

    if name == "uniform":
        return [Request(number, (Turn(ids(64), 64),)) for number in range(16)]
    count = {"agent": 4, "group": 8}[name]
    requests = []
    for question in range(count):
        prompt = ids(600)
        for _ in range(count):
            draws = [int(one) for one in rng.integers(16, 257, 3)]
            requests.append(Request(question, (Turn(prompt, draws[0]), *(Turn(ids(300), draw) for draw in draws[1:]))))
    return requests


def decode_bytes(work: Sequence[Request], model: Model) -> float:
    """Count the bytes of float32 that must be read to draw all ids, were everything read from memory.

    The weights once for a step in which everybody who has ids left draws one, and each request's keys and values once for
    each of its ids; what is computed of known ids is not counted.
    """
    steps, place = max(request.drawn for request in work), 2 * model.layers * model.kv_heads * model.head_dim
    seen = 0
    for request in work:
        length = 0
        for turn in request.turns:
            length += len(turn.ids)
            seen += turn.draw * length + turn.draw * (turn.draw - 1) // 2
            length += turn.draw
    return 4.0 * (steps * model.parameters + seen * place)


@dataclass(frozen=True, slots=True)
class Row:
    """One trajectory to learn from: its ids, how many of the first ones are the prompt's, and what it was worth."""

    ids: tuple[int, ...]
    prompt: int
    advantage: float


def update_work(name: str, vocab: int) -> list[Row]:
    """Return the rows of an update benchmark.

    `equal`: 8 rows of 512, of which 256 are prompt. `few`: 2 of them, for large models. `ragged`: 16 rows of 64 to 1,024,
    log-uniform, of which a quarter is prompt.
    """
    rng = np.random.default_rng(SEED + 1)
    same = {"equal": 8, "few": 2}
    lengths = [512] * same[name] if name in same else [int(one) for one in np.exp(rng.uniform(np.log(64), np.log(1024), 16))]
    return [
        Row(
            tuple(int(one) for one in rng.integers(SPECIAL, vocab, length)),
            256 if name in same else length // 4,
            float(rng.normal()),
        )
        for length in lengths
    ]


def useful_flops(rows: list[Row], model: Model) -> float:
    """Count the floating-point operations that an update of these rows asks for, padding and recomputation left out.

    A product with a matrix of n numbers takes 2 n operations a token forward and 4 n backward (Kaplan et al., arXiv
    2001.08361, section 2.1), and each pair of a query and a key that it may see 4 H C a layer forward, 8 H C backward (the
    causal half of Chowdhery et al., arXiv 2204.02311, appendix B). The head is counted for the tokens that are learned from
    only, the look-up of embeddings not at all; so this is less than 6 n with all parameters.
    """
    layers = model.layers * model.width * (model.head_dim * (2 * model.heads + 2 * model.kv_heads) + 3 * model.ff)
    tokens, learned = sum(len(row.ids) for row in rows), sum(len(row.ids) - row.prompt for row in rows)
    pairs = sum(len(row.ids) * (len(row.ids) + 1) / 2 for row in rows)
    head = model.vocab * model.width
    return 6.0 * (layers * tokens + head * learned) + 12.0 * model.layers * model.heads * model.head_dim * pairs
