"""Tunix's GRPO train step, as its learner calls it: prompts padded on the left, answers on the right, to the longest.

Its packing is of no use here: without the Pallas kernel, which needs a TPU, its attention ignores where a packed sequence
ends.
"""

from __future__ import annotations

import inspect
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

from benchmarks.side import serve
from benchmarks.sides.decode_tunix import Ids, built
from benchmarks.workload import LEARNING_RATE, MODELS, Row, update_work


def trainer(model: Any, mesh: Mesh, rows: int, micro: int, prompt: int, answer: int) -> Any:
    """Return what trains; the learner gives it its loss."""
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    siblings = 4
    training = rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(LEARNING_RATE, weight_decay=0.01)),
        eval_every_n_steps=10**9,
        max_steps=10**9,
        mini_batch_size=rows // siblings,
        train_micro_batch_size=max(1, micro // siblings),
    )
    rollout = base_rollout.RolloutConfig(
        max_tokens_to_generate=answer, max_prompt_length=prompt, kv_cache_size=prompt + answer + 2, temperature=1.0
    )
    cluster = rl_cluster.RLCluster(
        actor=model,
        tokenizer=Ids(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            rollout_engine="vanilla",
            offload_to_cpu=False,
            training_config=training,
            rollout_config=rollout,
        ),
    )
    settings = grpo_learner.GRPOConfig(
        num_generations=siblings, num_iterations=1, beta=0.0, epsilon=0.2, loss_agg_mode="token-mean"
    )
    grpo_learner.GRPOLearner(rl_cluster=cluster, algo_config=settings, reward_fns=lambda prompts, **_: [0.0] * len(prompts))
    return cluster.actor_trainer


def padded(rows: list[Row], prompt: int, answer: int) -> grpo_learner.TrainExample:
    """Lay rows into one rectangle."""
    prompts, answers = np.zeros((len(rows), prompt), np.int32), np.zeros((len(rows), answer), np.int32)
    for at, row in enumerate(rows):
        prompts[at, prompt - row.prompt :] = row.ids[: row.prompt]
        answers[at, : len(row.ids) - row.prompt] = row.ids[row.prompt :]
    return grpo_learner.TrainExample(
        prompt_ids=jnp.asarray(prompts),
        prompt_mask=jnp.asarray(prompts != 0),
        completion_ids=jnp.asarray(answers),
        completion_mask=jnp.asarray(answers != 0),
        ref_per_token_logps=None,
        old_per_token_logps=None,
        advantages=jnp.asarray([row.advantage for row in rows], jnp.float32),
    )


def prepare(options: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Build the model and compile."""
    logging.set_verbosity(logging.ERROR)
    model = MODELS[options["model"]]
    rows = update_work(options["work"], model.vocab)
    prompt, answer = max(row.prompt for row in rows), max(len(row.ids) - row.prompt for row in rows)
    micro = int(options.get("micro", 4))  # rows; the quickest of 4, 8, 16 and 32 on two cores
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    with mesh:
        training = trainer(built(model), mesh, len(rows), micro, prompt, answer)
        step, _ = training.jit_train_and_eval_step(False, True)
    more = {"is_update_step": jnp.array(True)} if "is_update_step" in inspect.signature(training._train_step).parameters else {}

    def once() -> dict[str, Any]:
        start = time.perf_counter()
        with mesh:
            for first in range(0, len(rows), micro):
                found = step(padded(rows[first : first + micro], prompt, answer), **more)
            jax.block_until_ready((found, jax.tree.leaves(training.optimizer)))
        return {"seconds": time.perf_counter() - start}

    once()
    return {"jax": jax.__version__, "prompt": prompt, "answer": answer, "micro": micro}, once


if __name__ == "__main__":
    serve(prepare)
