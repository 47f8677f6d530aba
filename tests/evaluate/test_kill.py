"""A real `dr-jax eval`, killed half-way by the system, and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.made import still

ROOT = Path(__file__).parents[2]
QUESTIONS = 24


def begun(out: Path) -> subprocess.Popen[str]:
    arguments = ["eval", "configs/quickstart.toml", f"eval.questions={QUESTIONS}", "eval.in_flight=4", "littleweb.entities=300"]
    arguments += ["--model", "m=data/littleweb_policy", "--way", "agent", "--way", "one_shot", "--samples", "2"]
    code = "from dr_jax.cli.main import run; run()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments, "--out", str(out), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ""},
        start_new_session=True,
    )


def ended(out: Path) -> dict[str, Any]:
    process = begun(out)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr[-2000:]
    found: dict[str, Any] = json.loads(stdout)
    return found


def lines(out: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in out.glob("*/attempts.jsonl"))


@pytest.mark.slow
def test_an_evaluation_that_was_killed_ends_with_the_same_table(tmp_path: Path) -> None:
    process = begun(tmp_path / "killed")
    deadline = time.monotonic() + 120
    while lines(tmp_path / "killed") < QUESTIONS and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[1][-2000:]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = lines(tmp_path / "killed")
    assert QUESTIONS <= done < 4 * QUESTIONS  # two cells with two samples each
    kept = {path: path.read_text().splitlines() for path in (tmp_path / "killed").glob("*/attempts.jsonl")}
    resumed, whole = ended(tmp_path / "killed"), ended(tmp_path / "whole")
    assert still(resumed) == still(whole)
    assert [row["attempts"] for row in resumed["rows"]] == [2 * QUESTIONS, 2 * QUESTIONS]
    for path, before in kept.items():
        assert path.read_text().splitlines()[: len(before) - 1] == before[:-1]  # nothing was done again
    assert still(ended(tmp_path / "killed")) == still(whole)
