from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import pytest

from dr_jax.base.config import read
from dr_jax.model import hf
from dr_jax.model.decoder import initial
from dr_jax.model.sizes import NAMED
from dr_jax.tokens import vocabulary
from dr_jax.train.settings import Settings
from tests.fakes import small_tokenizer

if TYPE_CHECKING:
    from tests.train.bucket import Bucket


@pytest.fixture(scope="session")
def policy_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 2 layers with fresh weights, and its tokenizer, in Hugging Face format."""
    directory = tmp_path_factory.mktemp("policy")
    tokenizer = small_tokenizer()
    sizes = dataclasses.replace(NAMED["tiny"], vocab=tokenizer.vocab_size, width=32, layers=2, heads=2, kv_heads=1, ff=64)
    hf.write(directory, sizes, initial(sizes, jax.random.key(0)))
    vocabulary.save(tokenizer, directory)
    return directory


@pytest.fixture
def settings(policy_directory: Path, tmp_path: Path) -> Settings:
    """A run of seconds: a policy that babbles, rewarded for using few different tokens."""
    return read(
        Settings,
        None,
        [
            f"model.load='{policy_directory}'",
            f"out='{tmp_path}'",
            "name='run'",
            "steps=4",
            "data.questions=40",
            "littleweb.entities=150",
            "web.results=3",
            "prompt.style='brief'",
            "episode.tokens=160",
            "episode.max_new_tokens=12",
            "engine.slots=8",
            "engine.max_context=160",
            "engine.prefill_rows=[8]",
            "rollout.groups=2",
            "rollout.group_size=2",
            "batch.rows=8",
            "batch.lengths=[160]",
            "loss.kl='none'",
            "optimizer.learning_rate=1e-2",
            "eval.questions=3",
            "checkpoint.every=2",
            "reward.parts={'tests.train.parts:monotony' = 1.0}",
        ],
    )


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A store on loopback, to which what this process opens is pointed."""
    pytest.importorskip("gcp_storage_emulator")
    from tests.train.bucket import served

    with served() as bucket:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        yield bucket
