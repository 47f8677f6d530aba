import json
from pathlib import Path

import pytest

from dr_jax.base.config import read
from dr_jax.base.errors import ConfigError
from dr_jax.evaluate.models import as_run, identity, is_address
from dr_jax.evaluate.settings import EvaluationSettings


@pytest.fixture
def settings() -> EvaluationSettings:
    return read(EvaluationSettings)


def model(directory: Path, weights: bytes) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(weights)
    return str(directory)


def test_a_model_is_known_by_what_its_files_hold_not_by_where_they_are(settings: EvaluationSettings, tmp_path: Path) -> None:
    here = identity(settings, "m", model(tmp_path / "a", b"1"))
    assert identity(settings, "n", model(tmp_path / "b", b"1")) == here
    assert identity(settings, "m", model(tmp_path / "a", b"2")) != here


def test_a_run_is_known_by_its_checkpoint(settings: EvaluationSettings, tmp_path: Path) -> None:
    run, base = tmp_path / "run", model(tmp_path / "base", b"1")
    told = {"model": {"load": base}, "checkpoint": {"directory": ""}}
    for step, weights in ((3, b"3"), (5, b"5")):
        (run / "checkpoints" / str(step) / "state").mkdir(parents=True)
        (run / "checkpoints" / str(step) / "state" / "d").write_bytes(weights)
    (run / "config.json").write_text(json.dumps(told))
    newest = identity(settings, "m", str(run))
    assert newest["checkpoint"] == "5"
    assert identity(settings, "m", str(run / "checkpoints" / "5")) == newest
    assert identity(settings, "m", str(run / "checkpoints" / "3"))["files"] != newest["files"]
    assert as_run(settings, str(run)).model.tokenizer == base


def test_servers_are_known_by_address_and_model(settings: EvaluationSettings) -> None:
    assert identity(settings, "big", "http://x/v1")["model"] == "big"
    assert not is_address("runs/quickstart")
    with pytest.raises(ConfigError, match="server at x holds") as told:
        is_address("https://me:s3cr3t@x/v1")
    assert "s3cr3t" not in str(told.value)
