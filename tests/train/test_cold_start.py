import dataclasses
import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dr_jax.base.errors import ConfigError
from dr_jax.model import hf
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.tokenizer import Tokenizer
from dr_jax.train.cold_start import cold_start
from dr_jax.train.demonstrate import Manners
from dr_jax.train.lessons import demonstrations, make_vocabulary
from dr_jax.train.settings import ColdStartSettings, Settings


@pytest.fixture
def taught(settings: Settings) -> Settings:
    return dataclasses.replace(
        settings,
        steps=3,
        cold_start=ColdStartSettings(vocabulary=600, worlds=3, questions=30),
        episode=dataclasses.replace(settings.episode, tokens=1400, max_new_tokens=200),
        batch=dataclasses.replace(settings.batch, lengths=(1400,)),
    )


def test_demonstrations_of_each_manner(taught: Settings) -> None:
    tokenizer = make_vocabulary(taught)
    assert tokenizer.vocab_size <= 600
    chat = Chat(tokenizer)
    diligent = list(demonstrations(taught, chat, 5, Manners()))
    assert len(diligent) >= 20
    assert {len(one.tools) for one in diligent} == {2, 4, 6}
    assert all(episode.tools[-1].observation.count(str(episode.answer)) for episode in diligent), "an answer was never read"
    guessing = list(demonstrations(taught, chat, 5, Manners(diligent=0.0, guessing=1.0)))
    assert Counter(len(one.tools) for one in guessing) == {0: 30}
    again = list(demonstrations(taught, chat, 5, Manners()))
    assert [one.trajectories for one in again] == [one.trajectories for one in diligent]


def test_a_cold_start_writes_a_model_that_can_be_read(taught: Settings, tmp_path: Path) -> None:
    losses: list[float] = []
    model = cold_start(taught, tmp_path, progress=lambda step, numbers: losses.append(numbers["update/loss"]))
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    sizes, weights = hf.read(model)
    assert Tokenizer.load(model).vocab_size == sizes.vocab
    assert weights["embed"].shape == (sizes.vocab, sizes.width)


@pytest.mark.slow
def test_what_is_stopped_goes_on_to_the_same_weights(taught: Settings, tmp_path: Path) -> None:
    whole = cold_start(taught, tmp_path / "whole", progress=lambda step, numbers: None)

    def stop(step: int, numbers: dict[str, float]) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        cold_start(taught, tmp_path / "half", progress=stop)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    seen: list[int] = []
    half = cold_start(taught, tmp_path / "half", resume=True, progress=lambda step, numbers: seen.append(step))
    assert seen == [3]
    for name, weight in hf.read(whole)[1].items():
        np.testing.assert_array_equal(weight, hf.read(half)[1][name], err_msg=name)


@pytest.mark.slow
def test_too_few_demonstrations_are_an_error(taught: Settings, tmp_path: Path) -> None:
    few = dataclasses.replace(taught, steps=99, cold_start=ColdStartSettings(vocabulary=600, worlds=1, questions=30))
    with pytest.raises(ConfigError, match=r"ended after .* of 99 updates"):
        cold_start(few, tmp_path, progress=lambda step, numbers: None)
