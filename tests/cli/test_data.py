"""`dr-jax data` as a person runs it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dr_jax.base.errors import DataError
from dr_jax.cli.main import app
from tests.data import bulk

OFFICIAL = Path(__file__).parents[1] / "data" / "official"


def run(*arguments: object) -> tuple[int, str]:
    """Run the command in this process; what a person can correct is raised."""
    found = CliRunner().invoke(app, ["data", *map(str, arguments)])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.output


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of two parts and their files."""
    directory = tmp_path_factory.mktemp("recipe")
    bulk.write(directory, 80)
    path = directory / "small.toml"
    path.write_text(
        'name = "small"\nsize = 16\ndev = 4\n'
        f'[mixture.nq]\nfiles = ["{directory}/nq_train.jsonl"]\n[mixture.tq]\nfiles = ["{directory}/tq_train.json"]\n'
        f'[held_out.nq]\nfiles = ["{directory}/nq_dev.jsonl"]\n'
    )
    return path


def test_build_writes_a_set_and_says_where(recipe: Path, tmp_path: Path) -> None:
    code, said = run("build", recipe, "--out", tmp_path, "seed=2")
    assert code == 0
    assert "train.parquet: 16 questions" in said
    manifest = json.loads((tmp_path / "small" / "manifest.json").read_text())
    assert (manifest["seed"], manifest["outputs"][1]["rows"]) == (2, 4)
    code, said = run("build", recipe, "--out", tmp_path, "seed=2", "--json")
    assert json.loads(said) == manifest


def test_inspect_counts_shows_and_lists_leaks(recipe: Path) -> None:
    code, said = run("inspect", OFFICIAL / "hotpotqa.json")
    assert code == 0
    assert "Who raised the tower" in said
    code, said = run("inspect", recipe.parent / "nq_train.jsonl", "--against", recipe.parent / "nq_dev.jsonl", "--json")
    found = json.loads(said)
    assert code == 1
    assert {pair["train"] for pair in found["leaks"]} == {"nq-leak0"}
    assert found["questions"] == 13


def test_formats_are_listed() -> None:
    code, said = run("formats", "--json")
    assert code == 0
    assert {"nq", "browsecomp", "own"} <= set(json.loads(said))


def test_a_missing_file_is_told_before_anything_is_made(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no question file nowhere\.json"):
        run("build", recipe, "mixture.tq.files=['nowhere.json']", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_probe_prints_what_is_known(recipe: Path, tmp_path: Path) -> None:
    arguments = ["configs/quickstart.toml", f"out={tmp_path}", "name=q", "--questions", recipe.parent / "nq_dev.jsonl"]
    code, said = run("probe", *arguments, "--samples", 2, "--limit", 3, "--max-new-tokens", 8, "--json")
    found = json.loads(said)
    assert code == 0
    assert (found["questions"], found["dropped"]) == (3, [])
    rows = [json.loads(line) for line in (tmp_path / "q-probe" / "questions.jsonl").read_text().splitlines()]
    assert {row["meta"]["search"] for row in rows} == {"needed"}
