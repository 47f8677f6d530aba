from pathlib import Path

from dr_jax.data.question import Question
from dr_jax.rollout.record import EpisodeWriter, read_episodes
from dr_jax.tokens.trajectory import Author, Episode, Outcome, Segment, ToolEvent, Trajectory, world

QUESTION = Question("q", "who?", ("x",))


def episode(number: int, text: str = "") -> Episode:
    said = Trajectory((world([1, 2]), Segment(Author.POLICY, (3,), (-0.25,), (7,))))
    event = ToolEvent(0, "web_search", {"query": [text]}, text)
    return Episode(f"q.{number}", "q", (said,), Outcome.ANSWERED, answer="x", tools=(event,)).rewarded({"f1": 1.0})


def decode(ids: object) -> str:
    return str(ids)


def ids(path: Path) -> list[str]:
    return [row["id"] for row in read_episodes(path)]


def test_half_a_line_that_a_crash_left_is_cut_off_when_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    with EpisodeWriter(path, decode) as writer:
        writer.write(episode(0), QUESTION)
    with path.open("a") as file:
        file.write('{"id": "q.1", "half' + "x" * 3_000_000)
    assert ids(path) == ["q.0"]
    with EpisodeWriter(path, decode, keep_below=1) as writer:
        writer.write(episode(2), QUESTION)
    assert ids(path) == ["q.0", "q.2"]


def test_steps_that_are_done_again_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    with EpisodeWriter(path, decode) as writer:
        for step in (1, 2, 3):
            writer.write(episode(step), QUESTION, step=step)
    with EpisodeWriter(path, decode, keep_below=3) as writer:
        writer.write(episode(9), QUESTION, step=3)
    assert ids(path) == ["q.1", "q.2", "q.9"]


def test_a_file_of_nothing_but_half_a_line_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_text('{"id"')
    with EpisodeWriter(path, decode, keep_below=1) as writer:
        writer.write(episode(1), QUESTION)
    assert ids(path) == ["q.1"]


def test_a_new_run_starts_a_new_file_and_flush_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    for number in (1, 2):
        with EpisodeWriter(path, decode) as writer:
            writer.write(episode(number), QUESTION)
            writer.flush()
            assert ids(path) == [f"q.{number}"]


def test_what_waits_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    with EpisodeWriter(path, decode) as writer:
        for number in range(5):
            writer.write(episode(number, "y" * 400_000), QUESTION)
        assert path.stat().st_size > 3_000_000
    assert len(ids(path)) == 5


def test_half_characters_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    with EpisodeWriter(path, decode) as writer:
        writer.write(episode(0, "\ud800"), QUESTION)
    (row,) = read_episodes(path)
    assert row["tools"][0]["observation"] == "?"
