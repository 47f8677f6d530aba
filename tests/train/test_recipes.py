from pathlib import Path

import pytest

from dr_jax.base.config import read
from dr_jax.model.sizes import NAMED
from dr_jax.train.plan import memory
from dr_jax.train.settings import Settings

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_config_is_valid_and_opens_with_its_claim_command_and_cost(path: Path) -> None:
    read(Settings, path)
    head = "".join(line for line in path.read_text().splitlines(keepends=True)[:12] if line.startswith("#"))
    assert all(f"# {word}: " in head for word in ("Shows", "Command", "Cost"))


def test_the_paper_s_recipe_is_the_paper_s() -> None:
    settings = read(Settings, CONFIGS / "deepresearcher_7b.toml")
    rollout, loss, optimizer, episode = settings.rollout, settings.loss, settings.optimizer, settings.episode
    assert (settings.steps, rollout.groups, rollout.group_size, rollout.staleness) == (34, 256, 16, 0)
    assert (episode.turns, episode.tokens, episode.max_new_tokens, episode.temperature) == (10, 32768, 2000, 1.0)
    assert episode.malformed == "end"
    assert (loss.clip_low, loss.clip_high, loss.epochs) == (0.2, 0.2, 1)
    assert (loss.kl, loss.kl_coefficient, loss.entropy_coefficient) == ("k3", 0.001, 0.001)
    assert (optimizer.name, optimizer.learning_rate, optimizer.schedule) == ("adamw", 1e-6, "constant")
    assert (optimizer.b1, optimizer.b2, optimizer.weight_decay, optimizer.clip) == (0.9, 0.999, 0.01, 1.0)
    assert (settings.advantage, settings.batch.aggregation, settings.reward.parts) == (
        "standardized",
        "token_mean",
        {"f1": 1.0},
    )
    assert 267 < memory(settings, NAMED["qwen2.5-7b"])["all"] / 1024 < 269  # GiB, as its head says
