"""Every official format's small file: what comes out of it, and that it survives being written and read again."""

import json
from pathlib import Path

import pytest

from dr_jax.base.errors import DataError
from dr_jax.data.question import Question
from dr_jax.data.sources.places import inputs
from dr_jax.data.sources.registry import FORMATS, read, scan
from dr_jax.data.sources.row import Skipped
from dr_jax.data.write import ContentHash, write_jsonl, write_parquet

OFFICIAL = Path(__file__).parent / "official"

# file, format, and of its first question: id, answers, source, hops; then what is skipped
FILES = [
    ("nq_simplified.jsonl", "nq", "-4471", ("Orla Dunmere",), "nq", 1, ["no short answer"]),
    ("nq_full.jsonl", "nq", "4480", ("early March", "March"), "nq", 1, []),
    ("nq_open.jsonl", "nq", "1", ("Ilse Brandt", "Ilse M. Brandt"), "nq", 1, []),
    ("triviaqa.json", "triviaqa", "tc_90001", ("Port Selwyn", "Selwyn Port", "Selwyn Harbour"), "tq", 1, []),
    ("hotpotqa.json", "hotpotqa", "5f00aa01", ("Orla Dunmere",), "hotpotqa", 2, []),
    ("2wiki.json", "2wiki", "aa11bb22", ("Port Selwyn",), "2wiki", 2, []),
    ("musique.jsonl", "musique", "3hop1__101_202_303", ("the Ember", "Ember", "River Ember"), "musique", 3, ["not answerable"]),
    ("bamboogle.csv", "bamboogle", "1", ("Tomas Reik",), "Bamboogle", 2, []),
    ("popqa.tsv", "popqa", "810001", ("film director", "director", "filmmaker"), "popqa", 1, []),
    ("gaia.jsonl", "gaia", "c0ffee00-0001", ("7",), "gaia", 0, ["needs a file", "answer withheld"]),
    ("frames.tsv", "frames", "0", ("1523",), "frames", 2, []),
    ("simpleqa.csv", "simpleqa", "1", ("Petra Voss",), "simpleqa", 0, []),
    ("browsecomp.csv", "browsecomp", "1", ("Ice on the Isen",), "browsecomp", 0, []),
    ("xbench.csv", "xbench", "1", ("奥拉·邓米尔",), "xbench", 0, []),
    ("own.csv", "own", "1", ("Ada Lorne", "A. Lorne"), "mine", 2, []),
    ("own.jsonl", "own", "a", ("Ada Lorne",), "own", 0, []),
]


@pytest.mark.parametrize(("name", "form", "known", "answers", "source", "hops", "skipped"), FILES)
def test_a_file_of_a_published_format(
    name: str, form: str, known: str, answers: tuple[str, ...], source: str, hops: int, skipped: list[str]
) -> None:
    found = [one for _, one in scan(inputs(str(OFFICIAL / name))[0], form, split="eval")]
    first = found[0]
    assert isinstance(first, Question)
    assert (first.id, first.answers, first.source, first.hops, first.split) == (known, answers, source, hops, "eval")
    assert [one.reason for one in found if isinstance(one, Skipped)] == skipped


@pytest.mark.parametrize("name", [row[0] for row in FILES if row[0] != "nq_open.jsonl"])
def test_a_format_is_recognised_by_its_first_row(name: str) -> None:
    form = next(row[1] for row in FILES if row[0] == name)
    assert read(OFFICIAL / name) == read(OFFICIAL / name, form=form)


@pytest.mark.parametrize("name", [row[0] for row in FILES])
def test_what_was_read_is_written_and_read_again(name: str, tmp_path: Path) -> None:
    form = next(row[1] for row in FILES if row[0] == name)
    questions = read(OFFICIAL / name, form=form, split="eval")
    write_jsonl(tmp_path / "q.jsonl", questions)
    write_parquet(tmp_path / "q.parquet", questions)
    for path in (tmp_path / "q.jsonl", tmp_path / "q.parquet"):
        again = read(path)
        assert again == questions
        assert [one.meta for one in again] == [one.meta for one in questions]
    write_parquet(tmp_path / "verl.parquet", questions, "verl")
    assert read(tmp_path / "verl.parquet", split="eval") == questions


def test_every_format_has_a_file_here() -> None:
    assert {row[1] for row in FILES} | {"verl"} == set(FORMATS)


def test_supporting_pages_kinds_and_levels_are_kept() -> None:
    meta = {question.id: question.meta for question in read(OFFICIAL / "hotpotqa.json")}["5f00aa01"]
    assert meta == {"type": "bridge", "level": "hard", "supporting": '["Finn Caul", "Tower of Vell"]'}
    assert [question.hops for question in read(OFFICIAL / "2wiki.json")] == [2, 4]
    assert read(OFFICIAL / "simpleqa.csv")[0].meta == {"topic": "Art", "type": "Person"}
    assert read(OFFICIAL / "browsecomp.csv")[1].text == "Which café closed on the day that the singer was born?"


def test_yes_and_no_of_natural_questions_are_answers() -> None:
    assert read(OFFICIAL / "nq_simplified.jsonl")[1].answers == ("no",)


def test_rows_of_the_hub_hold_columns_side_by_side(tmp_path: Path) -> None:
    rows = {
        "hotpotqa": {
            "id": "h1",
            "question": "Who?",
            "answer": "Orla",
            "type": "bridge",
            "level": "easy",
            "supporting_facts": {"title": ["Vell", "Caul", "Vell"], "sent_id": [0, 1, 2]},
        },
        "2wiki": {
            "_id": "w1",
            "question": "Where?",
            "answer": "Vell",
            "type": "inference",
            "supporting_facts": '[["Caul", 0]]',
            "evidences": '[["Caul", "born in", "Vell"]]',
        },
        "triviaqa": {
            "question": "What?",
            "question_id": "tc_1",
            "question_source": "",
            "answer": {"value": "Glass harp", "aliases": ["Glass harp", "Harp of glass"]},
        },
        "nq": {
            "id": "n1",
            "question": {"text": "when?", "tokens": ["when", "?"]},
            "annotations": {
                "id": ["1", "2"],
                "yes_no_answer": [-1, 1],
                "short_answers": [{"text": ["in March"], "start_token": [4]}, {"text": [], "start_token": []}],
            },
        },
    }
    found = {}
    for name, row in rows.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(row) + "\n")
        found[name] = read(path)[0]
    assert found["hotpotqa"].meta["supporting"] == '["Vell", "Caul"]'
    assert found["2wiki"].meta["supporting"] == '["Caul"]'
    assert found["triviaqa"].answers == ("Glass harp", "Harp of glass")
    assert found["nq"].answers == ("yes", "in March")


def test_search_r1s_parquet_keeps_its_answers_in_a_target(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {
        "data_source": "nq",
        "question": "who keeps the lighthouse",
        "prompt": [{"role": "user", "content": "Answer the given question. who keeps the lighthouse"}],
        "reward_model": {"style": "rule", "ground_truth": {"target": ["Ilse Brandt"]}},
        "extra_info": {"index": 7, "split": "train"},
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "q.parquet")
    assert read(tmp_path / "q.parquet") == [Question("nq_7", "who keeps the lighthouse", ("Ilse Brandt",), "nq")]


_SPAN = '{"question_text": "who", "annotations": [{"short_answers": [{"start_token": "a"}]}]}'
_NO_VALUE = '{"Data": [\n{"Question": "Who?", "QuestionId": "t1", "Answer": {"Aliases": []}}]}'
_NO_LIST = '{"data_source": "x", "reward_model": {"ground_truth": {"target": 3}}, "extra_info": {"index": 1}}'

BROKEN = [
    ("nq", "q.jsonl", _SPAN, "line 1, annotations"),
    ("triviaqa", "q.json", _NO_VALUE, "line 2, item 1, Answer has no field 'Value'"),
    ("hotpotqa", "q.json", '[{"_id": "1", "question": "Who?", "type": "bridge"}]', "item 1 has no field 'answer'"),
    ("hotpotqa", "q.json", '[{"_id": "1", "question": "Who?", "answer": "x", "supporting_facts": [3]}]', "supporting_facts is"),
    ("hotpotqa", "q.json", '[{"_id": "1", "question": "Who?", "answer": ""}]', "a blank answer"),
    ("hotpotqa", "q.json", '[{"_id": "1",\n"question": "Who?", "answer": "x"},\n{"_id": 2]', "line 3 is not JSON"),
    ("hotpotqa", "q.json", '[{"_id": "1", "question": "Who?", "answer": "x"} {', "needed"),
    ("hotpotqa", "q.json", '[{"_id": "1", "question": "Who?", "answer": "x"}', "the end of the file"),
    ("musique", "q.jsonl", '{"id": "m", "question": "Who?", "answer": "x"}', "no field 'question_decomposition'"),
    ("bamboogle", "q.csv", "Question,Answer\nWho?,a\nWho,really?,b\n", "line 3 has 3 cells"),
    ("bamboogle", "q.csv", "Question,Answer\nWho?\n", "line 2 has 1 cells"),
    ("bamboogle", "q.csv", "Question,Reply\nWho?,a\n", "line 2 has no field 'Answer'"),
    ("popqa", "q.tsv", "id\tquestion\tpossible_answers\n1\tWho?\tx\n", "possible_answers is not JSON"),
    ("simpleqa", "q.csv", "metadata,problem,answer\nnone,Who?,x\n", "metadata is 'none'"),
    ("browsecomp", "q.csv", "problem,answer,canary\nnot sealed,x,c\n", "problem cannot be opened"),
    ("xbench", "q.csv", "id,prompt,answer,canary\n1,AAAA,AAAA,\n", "canary is empty"),
    ("verl", "q.jsonl", _NO_LIST, "target is 3"),
    ("", "q.jsonl", '{"text": "Who?"}', "looks like no format"),
    ("nonsense", "q.jsonl", '{"question": "Who?"}', "no format 'nonsense'"),
]


@pytest.mark.parametrize(("form", "name", "content", "told"), BROKEN)
def test_a_broken_row_is_named_with_its_field(form: str, name: str, content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read(tmp_path / name, form=form)
    assert told.lower() in str(caught.value).lower()


def test_a_json_list_is_read_in_pieces_whatever_their_size(tmp_path: Path) -> None:
    long = "x" * 700_000  # two rows are larger than what is read at once
    rows = [{"id": str(n), "question": f"Who is {n}?", "answer": '{["}' + str(n), "context": long} for n in range(5)]
    path = tmp_path / "q.json"
    for text in (json.dumps(rows), json.dumps(rows, indent=1), json.dumps({"version": 12, "data": rows})):
        path.write_text(text)
        assert [one.answers for one in read(path)] == [(row["answer"],) for row in rows]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert len(read(path)) == 5


def test_gzip_patterns_and_limits(tmp_path: Path) -> None:
    import gzip

    for number in range(3):
        with gzip.open(tmp_path / f"part-{number}.jsonl.gz", "wt") as file:
            file.write(json.dumps({"question": f"Who is {number}?", "answer": "x"}) + "\n")
    assert [one.text for one in read(str(tmp_path / "part-*.jsonl.gz"))] == [f"Who is {number}?" for number in range(3)]
    with pytest.raises(DataError, match="There is no file"):
        read(str(tmp_path / "none-*.jsonl"))
    (tmp_path / "bad.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match="is not gzip"):
        read(tmp_path / "bad.jsonl.gz")


def test_places_outside_are_refused_in_words() -> None:
    with pytest.raises(DataError, match="names no file"):
        read("hub:owner/name")
    with pytest.raises(DataError, match=r"cannot be read|Hugging Face"):  # tests run offline
        read("hub:dr-jax-tests/no-such-set/q.jsonl")
    with pytest.raises(DataError, match="names no split"):
        read("tfds:natural_questions")


def test_the_content_hash_depends_on_what_questions_say_and_on_their_order() -> None:
    def hashed(*questions: Question) -> str:
        one = ContentHash()
        assert len(list(one.passing(questions))) == one.count
        return one.hexdigest()

    first, second = Question("1", "Who?", ("x",)), Question("2", "Where?", ("y",))
    assert hashed(first, second) == hashed(first, second) != hashed(second, first)
    assert hashed(first) != hashed(Question("1", "Who?", ("x",), meta={"level": "easy"}))
