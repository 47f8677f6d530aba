import json
import subprocess
import sys
from pathlib import Path

import pytest

from dr_jax.base.errors import ConfigError, DataError
from dr_jax.evaluate.journal import FILE, Cell, Journal, cells, read
from dr_jax.tokens.trajectory import Outcome
from tests.evaluate.made import attempt, failed


def begun(directory: Path, **settings: object) -> Journal:
    return Journal(directory, Cell("m", "s", "agent", {"seed": 0, "web": {"results": 3}} | settings))


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    with begun(tmp_path) as journal:
        journal.attempt(attempt("q", "Paris", calls=2, seconds=1.5, spent={"searching/queries": 2}))
        journal.verdict("j", ("q", 0), ("correct", "the same"), {"judging/calls": 1})
    found = read(tmp_path)
    assert found.attempts[("q", 0)] == attempt("q", "Paris", calls=2, seconds=1.5, spent={"searching/queries": 2})
    assert found.verdicts == {"j": {("q", 0): "correct"}}
    assert found.judging["j"] == {"judging/calls": 1}
    assert (found.model, found.questions, found.way) == ("m", "s", "agent")
    with begun(tmp_path) as again:
        assert again.cell.attempts == found.attempts


def test_half_a_line_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with begun(tmp_path) as journal:
        journal.attempt(attempt("q1", "Paris"))
        journal.attempt(attempt("q2", "Rome"))
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-20])
    assert set(read(tmp_path).attempts) == {("q1", 0)}
    with begun(tmp_path) as journal:
        assert set(journal.cell.attempts) == {("q1", 0)}
        journal.attempt(attempt("q3", "Oslo"))
    assert "half a line" in caplog.text
    assert set(read(tmp_path).attempts) == {("q1", 0), ("q3", 0)}


def test_a_journal_whose_first_line_is_torn_begins_anew(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"cell": ["m"')
    with begun(tmp_path) as journal:
        journal.attempt(attempt("q", "Paris"))
    assert len(read(tmp_path).attempts) == 1


def test_other_settings_are_refused_with_what_differs(tmp_path: Path) -> None:
    begun(tmp_path).__exit__(None, None, None)
    with pytest.raises(ConfigError, match=r"seed was 0 and is 7; web\.results was 3 and is 5"):
        begun(tmp_path, seed=7, web={"results": 5})


def test_what_is_no_journal_is_named_with_its_line(tmp_path: Path) -> None:
    with begun(tmp_path) as journal:
        journal.attempt(attempt("q", "Paris"))
    with (tmp_path / FILE).open("a") as file:
        file.write('{"attempt": {"question": "q"}}\n')
    with pytest.raises(DataError, match="Line 3 of"):
        read(tmp_path)
    with pytest.raises(DataError, match="no evaluation in"):
        cells(tmp_path / "nowhere")


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from dr_jax.evaluate.journal import Cell, Journal\n"
        "try: Journal(Path(sys.argv[1]), Cell('m', 's', 'agent', {}))\n"
        "except Exception as error: print(error)"
    )
    with begun(tmp_path):
        found = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
        )
    assert "Another process is writing" in found.stdout


def test_a_later_attempt_takes_the_place_of_one_that_the_world_failed_and_of_its_verdict(tmp_path: Path) -> None:
    with begun(tmp_path) as journal:
        journal.attempt(failed("q"))
        journal.verdict("j", ("q", 0), ("incorrect", ""), {})
        journal.attempt(attempt("q", "Paris"))
    found = read(tmp_path)
    assert found.attempts[("q", 0)].outcome is Outcome.ANSWERED
    assert found.verdicts == {"j": {}}


def test_no_secret_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "s3cr3t-0123456789")
    with begun(tmp_path) as journal:
        journal.attempt(attempt("q", "the key is s3cr3t-0123456789"))
    text = (tmp_path / FILE).read_text()
    assert "s3cr3t" not in text
    assert json.loads(text.splitlines()[1])["attempt"]["answer"] == "the key is <SOME_API_KEY>"


def test_a_plain_evaluation_is_a_cell_and_a_training_run_is_none(tmp_path: Path) -> None:
    segments = [{"author": "world", "ids": [1, 2]}, {"author": "policy", "ids": [3, 4, 5]}]
    row = {
        "question_id": "q", "question": "What is q?", "answers": ["Paris"], "source": "s", "hops": 1, "outcome": "answered",
        "answer": "Paris", "tools": [{}, {}], "seconds": {"all": 1.5}, "failure": "", "trajectories": [{"segments": segments}],
    }  # fmt: skip
    (tmp_path / "mine-eval").mkdir()
    path = tmp_path / "mine-eval" / "episodes.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (found,) = cells(tmp_path / "mine-eval")
    assert found.name == "mine.questions.agent"
    (attempt,) = found.attempts.values()
    assert (attempt.answer, attempt.calls, attempt.tokens, attempt.written, attempt.seconds) == ("Paris", 2, 5, 3, 1.5)
    path.write_text(json.dumps(row | {"step": 3}) + "\n")
    with pytest.raises(DataError, match=r"training run.*--checkpoint"):
        cells(tmp_path / "mine-eval")
