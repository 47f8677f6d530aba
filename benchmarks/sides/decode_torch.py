"""`transformers`' generate: a batch a turn, padded on the left, the whole conversation so far as its prompt."""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from transformers import Qwen3Config, Qwen3ForCausalLM, StoppingCriteria, StoppingCriteriaList

from benchmarks.side import serve
from benchmarks.workload import MODELS, Model, decode_work


class Enough(StoppingCriteria):
    """Ends each row when it has drawn what it is to draw, so that a batch ends with its longest."""

    def __init__(self, start: int, draws: list[int]) -> None:
        self.ends = torch.tensor([start + draw for draw in draws])

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Say who is done."""
        return input_ids.shape[1] >= self.ends


def built(model: Model) -> Qwen3ForCausalLM:
    """Make the model."""
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=model.vocab,
        hidden_size=model.width,
        intermediate_size=model.ff,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        head_dim=model.head_dim,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config).eval()


def prepare(options: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Build the model."""
    sizes = MODELS[options["model"]]
    work, model = decode_work(options["work"], sizes.vocab), built(sizes)

    def once() -> dict[str, Any]:
        start, drawn = time.perf_counter(), 0
        prompts: list[list[int]] = [[] for _ in work]
        for place in range(max(len(request.turns) for request in work)):
            for prompt, request in zip(prompts, work, strict=True):
                prompt += request.turns[place].ids
            width, draws = max(map(len, prompts)), [request.turns[place].draw for request in work]
            ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
            seen = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
            with torch.inference_mode():
                found = model.generate(
                    ids,
                    attention_mask=seen,
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    max_new_tokens=max(draws),
                    stopping_criteria=StoppingCriteriaList([Enough(width, draws)]),
                )
            for prompt, row, draw in zip(prompts, found, draws, strict=True):
                prompt += row[width : width + draw].tolist()
                drawn += draw
        return {"seconds": time.perf_counter() - start, "tokens": drawn}

    once()
    return {"torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads()}, once


if __name__ == "__main__":
    serve(prepare)
