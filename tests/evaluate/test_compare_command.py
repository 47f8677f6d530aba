import json
import subprocess
import sys
from pathlib import Path

from dr_jax.evaluate.journal import Cell, Journal
from tests.evaluate.made import attempt

ROOT = Path(__file__).parents[2]


def written(directory: Path, model: str, right: int) -> Path:
    with Journal(directory / f"{model}.s.agent", Cell(model, "s", "agent", {})) as journal:
        for number in range(10):
            journal.attempt(attempt(f"q{number}", "Paris" if number < right else "Rome", source="nq"))
    return directory


def test_finished_evaluations_are_compared_without_loading_jax(tmp_path: Path) -> None:
    first, second = written(tmp_path / "a", "before", 2), written(tmp_path / "b", "after", 10)
    code = (
        "import sys\nfrom dr_jax.cli.main import run\ntry: run()\nfinally:\n"
        "    assert not {'jax', 'transformers'} & set(sys.modules), 'too much was imported'"
    )
    asked = [sys.executable, "-c", code, "eval", "--compare", str(first), str(second)]
    found = subprocess.run([*asked, "--json"], capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    (compared,) = json.loads(found.stdout)["compared"]
    assert (compared["f1"]["first"], compared["f1"]["second"], compared["f1"]["p"]) == (0.2, 1.0, 2 / 256)  # two are alike
    shown = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True, env={"COLUMNS": "160"})
    assert "DeepResearcher's table" in shown.stdout
    assert "ours: after, agent" in shown.stdout
