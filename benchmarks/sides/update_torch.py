"""A GRPO step in plain torch on a `transformers` model: what a careful user writes.

Rows are sorted by length and cut into micro-batches of about as many padded tokens each; padding stands on the right, where
causal attention never sees it, so no mask is needed and the fused attention runs. Logits are computed from the first answer on
only.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers

from benchmarks.side import serve
from benchmarks.sides.decode_torch import built
from benchmarks.workload import LEARNING_RATE, MODELS, Row, update_work

_CLIP = 0.2


def micro_batches(rows: list[Row], budget: int) -> list[list[Row]]:
    """Cut the rows, longest first, into rectangles of at most `budget` tokens."""
    found: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        if found and (len(found[-1]) + 1) * len(found[-1][0].ids) <= budget:
            found[-1].append(row)
        else:
            found.append([row])
    return found


def share(model: Any, rows: list[Row], total: int, sampled: float) -> torch.Tensor:
    """Return one micro-batch's share of the loss: clipped, a mean over all answers' tokens."""
    width, start = max(len(row.ids) for row in rows), min(row.prompt for row in rows)
    ids = torch.tensor([[*row.ids, *[0] * (width - len(row.ids))] for row in rows])
    learned = torch.tensor([[row.prompt <= at < len(row.ids) for at in range(start, width)] for row in rows])
    advantages = torch.tensor([row.advantage for row in rows])[:, None]
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=width - start + 1).logits[:, :-1]
    logprobs = logits.gather(-1, ids[:, start:, None])[..., 0] - logits.logsumexp(-1)
    ratio = (logprobs - sampled).exp()
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - _CLIP, 1 + _CLIP) * advantages)
    return -(gain * learned).sum() / total


def prepare(options: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Build the model."""
    sizes = MODELS[options["model"]]
    rows, model = update_work(options["work"], sizes.vocab), built(sizes).train()
    budget = int(options.get("budget", 4096))  # padded tokens; the quickest of 1,024 to 16,384 on two cores
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    total = sum(len(row.ids) - row.prompt for row in rows)
    sampled = -float(torch.tensor(float(sizes.vocab)).log())

    def once() -> dict[str, Any]:
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        for some in micro_batches(rows, budget):
            share(model, some, total, sampled).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return {"seconds": time.perf_counter() - start}

    once()
    about = {"torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads()}
    return {**about, "budget": budget}, once


if __name__ == "__main__":
    serve(prepare)
