import json
from pathlib import Path

import pytest

from dr_jax.base.errors import DataError
from dr_jax.report.episodes import COLUMNS, Tail, Tails, brief, compared, decoder, pieces, told
from dr_jax.rollout.record import EpisodeWriter, as_row
from tests.report.runs import POLICY, attempt, decode, encode


def row(number: int = 0) -> dict[str, object]:
    return {"step": 1, **as_row(*attempt(number, group=0, sibling=number, step=1), decode)}


def test_lines_are_told_once_and_half_a_line_later(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    tail = Tail(path)
    assert list(tail.new()) == []
    path.write_text('{"id": "a"}\n{"id": "b"')
    assert [line.row["id"] for line in tail.new()] == ["a"]
    with path.open("a") as file:
        file.write(', "x": 1}\n')
    assert [line.row["id"] for line in tail.new()] == ["b"]
    assert (list(tail.new()), tail.generation) == ([], 0)


def test_a_file_that_was_cut_for_a_resumed_run_is_told_anew(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    tail = Tail(path)
    with EpisodeWriter(path, decode) as writer:
        for step in (1, 2):
            writer.write(*attempt(step, group=0, sibling=step, step=step), step=step)
    assert [line.row["id"] for line in tail.new()] == ["q0.1", "q0.2"]
    with EpisodeWriter(path, decode, keep_below=2) as writer:
        writer.write(*attempt(9, group=0, sibling=9, step=2), step=2)
    assert [line.row["id"] for line in tail.new()] == ["q0.1", "q0.9"]
    assert tail.generation == 1


def test_the_files_of_several_processes_are_told_together_and_all_anew_when_one_was_cut(tmp_path: Path) -> None:
    files = ["episodes.jsonl", "episodes-1.jsonl", "episodes-10.jsonl"]
    for name in files:
        (tmp_path / name).write_text(f'{{"id": "{name} a"}}\n{{"id": "{name} b"}}\n')
    (tmp_path / "episodes-old.jsonl").write_text("{}\n")
    tails = Tails(tmp_path)
    told_ = list(tails.new())
    assert [line.row["id"] for _, line in told_] == [f"{name} {one}" for name in files for one in "ab"]
    assert [one["id"] for one in tails.whole([(name, line.start, line.length) for name, line in told_[3:1:-1]])] == [
        "episodes-1.jsonl b",
        "episodes-1.jsonl a",
    ]
    with (tmp_path / files[2]).open("a") as file:
        file.write('{"id": "c"}\n')
    assert [(name, line.row["id"]) for name, line in tails.new()] == [(files[2], "c")]
    before = tails.generation
    (tmp_path / files[1]).write_text('{"id": "d"}\n')
    found = [(tails.generation, line.row["id"]) for _, line in tails.new()]
    anew = [id_ for generation, id_ in found if generation > before]
    assert anew == ["episodes.jsonl a", "episodes.jsonl b", "d", "episodes-10.jsonl a", "episodes-10.jsonl b", "c"]


def test_places_lead_back_to_the_episodes(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_text('{"id": "å"}\n{"id": "b"}\n{"id": "c"}\n', encoding="utf-8")
    tail = Tail(path)
    places = [(line.start, line.length) for line in tail.new()]
    assert [one["id"] for one in tail.whole([places[2], places[0]])] == ["c", "å"]


@pytest.mark.parametrize("line", ["{half", "[1]"])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_text(f'{{"id": "a"}}\n{line}\n')
    with pytest.raises(DataError, match=r"Line 2 of .*episodes\.jsonl"):
        list(Tail(path).new())


def test_a_row_of_the_index() -> None:
    found = dict(zip(COLUMNS, brief(row(), Path("e")), strict=True))
    assert (found["id"], found["step"], found["outcome"]) == ("q0.0", 1, "answered")
    assert (found["reward"], found["f1"], found["calls"], found["errors"], found["seconds"]) == (1.0, 1.0, 2, 1, 4.0)
    assert "Duvon 0 rector" in found["asked"]
    json.dumps(list(found.values()))


def test_what_is_no_episode_says_what_it_lacks() -> None:
    broken = row()
    del broken["outcome"]
    with pytest.raises(DataError, match=r"'q0\.0' in e has no 'outcome'"):
        brief(broken, Path("e"))


def test_an_answer_is_compared_with_the_nearest_accepted_one() -> None:
    found = compared("Marie Curie", ["Pierre Curie", "Marie Skłodowska Curie"])
    assert found == {
        "nearest": "Marie Skłodowska Curie",
        "f1": 0.8,  # 2 of 2 words said, 2 of 3 wanted
        "em": False,
        "shared": ["curie", "marie"],
        "missing": ["skłodowska"],
        "extra": [],
    }
    assert compared(None, ["x"]) is None


def test_the_reader_gets_one_piece_of_text_per_token() -> None:
    policy = [one for one in told(row(), decode)["trajectories"][0] if one["author"] == "policy"]
    assert len(policy) == 3
    for segment in policy:
        assert len(segment["pieces"]) == len(segment["ids"]) == len(segment["logprobs"]) == len(segment["versions"])
        assert "".join(segment["pieces"]) == segment["text"]
    assert {"author", "text", "count"} == set(told(row(), decode)["trajectories"][0][0])


def test_a_character_of_several_tokens_stands_at_the_last_of_them() -> None:
    ids = encode("a🦉b")
    found = pieces(ids, decode)
    assert "".join(found) == "a🦉b"
    assert len(ids) == len(found) > 3
    assert "" in found
    assert pieces(ids[:2], decode)[-1] == decode(ids[1:2])  # cut short: what there is


def test_a_tokenizer_is_looked_for_in_order(tmp_path: Path) -> None:
    assert decoder([tmp_path]) is None
    found = decoder([tmp_path, POLICY])
    assert found is not None
    assert found(encode("Duvon")) == "Duvon"
