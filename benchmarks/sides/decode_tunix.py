"""Tunix's sampler, as its learner calls it: a batch a turn, the whole conversation so far as its prompt.

Its prefill holds the scores of all prompts against the whole cache, and 64 long ones pass 24 GiB: it gets 16 at a time. It
draws as many ids for everybody as the longest needs, and its prompts are padded to a power of two.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tunix.generate import sampler
from tunix.models.qwen3 import model as qwen3

from benchmarks.side import serve
from benchmarks.workload import MODELS, Model, decode_work

_BATCH = 16  # conversations


class Ids:
    """A tokenizer whose texts are ids already."""

    def encode(self, text: str, **_: Any) -> list[int]:
        """Read them."""
        return [int(one) for one in text.split()]

    def decode(self, ids: Any, **_: Any) -> str:
        """Write them."""
        return " ".join(str(int(one)) for one in ids)

    def bos_id(self) -> int:
        """Beginning."""
        return 1

    def eos_id(self) -> int:
        """End."""
        return 2

    def pad_id(self) -> int:
        """Padding."""
        return 0


def built(model: Model) -> qwen3.Qwen3:
    """Make the model, with weights of the usual size."""
    config = qwen3.ModelConfig(
        num_layers=model.layers,
        vocab_size=model.vocab,
        embed_dim=model.width,
        hidden_dim=model.ff,
        num_heads=model.heads,
        head_dim=model.head_dim,
        num_kv_heads=model.kv_heads,
        rope_theta=int(model.rope_theta),
        norm_eps=model.norm_eps,
        use_tied_embedding=True,
    )
    made = qwen3.Qwen3(config, rngs=nnx.Rngs(0))
    keys = iter(jax.random.split(jax.random.key(1), 4096))
    state = nnx.state(made, nnx.Param)
    state = jax.tree.map(lambda x: 0.05 * jax.random.normal(next(keys), x.shape, x.dtype) if x.ndim > 1 else x, state)
    nnx.update(made, state)
    return made


def prepare(options: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Build the sampler and compile."""
    model = MODELS[options["model"]]
    work = decode_work(options["work"], model.vocab)
    rng = np.random.default_rng(7)
    longest_draws = [max(turns) for turns in zip(*([turn.draw for turn in request.turns] for request in work), strict=True)]
    longest = max(request.length for request in work)
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    prompt_most = 1 << (longest - 1).bit_length()
    with mesh:
        cache = sampler.CacheConfig(
            cache_size=prompt_most + max(longest_draws) + 2,
            num_layers=model.layers,
            num_kv_heads=model.kv_heads,
            head_dim=model.head_dim,
        )
        drawing = sampler.Sampler(built(model), Ids(), cache)

    def once() -> dict[str, Any]:
        start, drawn = time.perf_counter(), 0
        prompts: list[list[int]] = [[] for _ in work]
        with mesh:
            for place, draw in enumerate(longest_draws):
                for prompt, request in zip(prompts, work, strict=True):
                    prompt += request.turns[place].ids
                for first in range(0, len(work), _BATCH):
                    some = slice(first, first + _BATCH)
                    found = drawing(
                        [" ".join(map(str, prompt)) for prompt in prompts[some]],
                        max_generation_steps=draw,
                        max_prompt_length=max(map(len, prompts[some])),
                        temperature=1.0,
                        top_p=1.0,
                        seed=int(rng.integers(1 << 30)),
                        return_logprobs=True,
                    )
                    for prompt, ids, request in zip(prompts[some], found.tokens, work[some], strict=True):
                        said = np.asarray(ids)[: request.turns[place].draw].tolist()
                        # Whoever drew the end too early goes on with what there is: the lengths are the workload's.
                        said += [3] * (request.turns[place].draw - len(said))
                        prompt += said
                        drawn += len(said)
        return {"seconds": time.perf_counter() - start, "tokens": drawn}

    once()
    return {"jax": jax.__version__, "prompt_most": prompt_most}, once


if __name__ == "__main__":
    serve(prepare)
