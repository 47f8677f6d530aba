import base64
import gzip
import json
import math
from pathlib import Path

import pytest

from dr_jax.base.errors import DataError
from dr_jax.report.data import BLOCK, RunData, packed, plain
from tests.report.runs import evaluation, make_run


def followed(directory: Path) -> RunData:
    run = RunData(directory)
    run.follow()
    return run


def test_a_run_says_what_it_holds(tmp_path: Path) -> None:
    head = followed(make_run(tmp_path / "r")).head()
    assert (head["name"], head["episodes"], head["config"]["steps"]) == ("r", 16, 2)
    assert head["metrics"]["step"] == [1, 2]
    assert head["metrics"]["rollout/reward"] == [0.1, 0.2]
    assert set(head["evaluations"]) == {"before", "after"}
    assert {"reward", "f1", "calls", "calls_hops", "errors", "cache", "staleness", "mismatch", "update_time"} <= set(
        head["lines"]
    )


def test_what_an_evaluation_alone_has_measured(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"eval": evaluation(0.5, 2.0)}))
    head = RunData(tmp_path).head()
    assert head["evaluations"]["measured"]["f1"] == 0.5
    assert head["lines"] == {}


def test_a_directory_without_a_run_is_refused_unless_it_may_come(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing of a run"):
        RunData(tmp_path)
    assert RunData(tmp_path, begun=False).head()["episodes"] == 0
    with pytest.raises(DataError, match="nothing of a run"):
        RunData(tmp_path / "nowhere", begun=False)


def test_a_broken_summary_is_named(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(DataError, match=r"summary\.json is no JSON"):
        RunData(tmp_path).head()


def test_groups_are_kept_whole_and_evenly(tmp_path: Path) -> None:
    run = followed(make_run(tmp_path / "r", updates=6, groups=2, siblings=4))
    chosen = run.thinned(16)  # of 48 in 12 groups: every third
    assert [one.row[9] for one in chosen] == [f"q{group}" for group in (0, 3, 6, 9) for _ in range(4)]
    assert run.thinned(48) == run.episodes


def test_blocks_hold_the_episodes_in_order(tmp_path: Path) -> None:
    run = followed(make_run(tmp_path / "r", updates=3, groups=3, siblings=4))
    blocks = [gzip.decompress(base64.b64decode(block)).decode().split("\n") for block in run.blocks(run.episodes)]
    assert [len(block) for block in blocks] == [BLOCK, 4]
    found = [json.loads(line) for block in blocks for line in block]
    assert [one["id"] for one in found] == [one.row[0] for one in run.episodes]
    assert found[0]["trajectories"][0][1]["pieces"][0] == "<think>"


def test_packing_is_the_same_every_time_and_nothing_but_base64() -> None:
    assert packed("</script>") == packed("</script>")
    assert set(packed("</script>" * 99)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")


def test_numbers_that_a_browser_cannot_read_become_null() -> None:
    assert json.loads(plain({"a": [math.nan, 1.5], "b": -math.inf, "c": (1,)})) == {"a": [None, 1.5], "b": None, "c": [1]}


def test_it_follows_a_run_that_goes_on_and_one_that_is_cut(tmp_path: Path) -> None:
    run = RunData(make_run(tmp_path / "r", updates=1))
    run.follow()
    assert (len(run.episodes), run.generation) == (8, 0)
    with (tmp_path / "r" / "episodes.jsonl").open("a") as file:
        file.write(json.dumps(json.loads((tmp_path / "r" / "episodes.jsonl").read_text().splitlines()[0])) + "\n")
    run.follow()
    assert (len(run.episodes), run.generation) == (9, 0)
    (tmp_path / "new").write_text("")
    (tmp_path / "new").replace(tmp_path / "r" / "episodes.jsonl")
    run.follow()
    assert (len(run.episodes), run.generation) == (0, 1)
