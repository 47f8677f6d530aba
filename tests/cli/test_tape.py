"""`dr-jax tape`: figures, archives there and back, and forgetting."""

import asyncio
import json
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
import zstandard
from typer.testing import CliRunner

from dr_jax.base.errors import UserError
from dr_jax.base.metrics import Metrics
from dr_jax.cli.main import app
from dr_jax.web.tape.entry import Entry, EntryKind, TapeSettings
from dr_jax.web.tape.tape import Tape

HITS = json.dumps([{"title": "Velmora, čili město", "url": "http://a.org/", "snippet": ""}], ensure_ascii=False).encode()
ENTRIES: list[tuple[EntryKind, str, Entry]] = [
    ("search", "littleweb 10 who rules Velmora", Entry({}, HITS)),
    ("fetch", "http://a.org/", Entry({"url": "http://a.org/", "status": 200}, "<p>Velmora má krále.".encode())),
    ("fetch", "http://a.org/latin", Entry({"status": 200}, b"\xe9\xff\x00")),
    ("fetch", "http://a.org/gone", Entry({"kind": "not_found", "message": "no"}, error=True)),
    ("fetch", "http://b.org/", Entry({"status": 200}, "<p>Velmora má krále.".encode())),
    ("page", "0f", Entry({}, b'{"spaced":1}')),
    ("page", "number", Entry({}, b"[NaN]")),
    ("reading", "r", Entry({}, b'["Velmora has a king."]')),
]


def run(*arguments: object, code: int = 0) -> str:
    found = CliRunner().invoke(app, ["tape", *map(str, arguments)])
    assert found.exit_code == code, (found.output, found.exception)
    return found.stdout


def told(*arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*arguments, "--json"))
    return found


def refused(*arguments: object) -> str:
    found = CliRunner().invoke(app, ["tape", *map(str, arguments)])
    assert isinstance(found.exception, UserError), found.exception
    return str(found.exception)


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    path = tmp_path / "tape.sqlite"

    async def record() -> None:
        async with Tape(TapeSettings("record", str(path)), Metrics()) as recorder:
            for kind, key, entry in ENTRIES:
                await recorder.keep(kind, key, entry)
            for _ in range(3):
                await recorder.recall("search", ENTRIES[0][1])

    asyncio.run(record())
    return path


def recalled(path: Path) -> list[Entry | None]:
    async def play() -> list[Entry | None]:
        async with Tape(TapeSettings("replay", str(path)), Metrics()) as player:
            return [await player.recall(kind, key) for kind, key, _ in ENTRIES]

    return asyncio.run(play())


def lines(archive: Path) -> list[dict[str, Any]]:
    with archive.open("rb") as raw:
        content = zstandard.ZstdDecompressor().stream_reader(raw).read().decode()
    return [json.loads(line) for line in content.splitlines()]


def packed(path: Path, *lines: object) -> Path:
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    path.write_bytes(zstandard.ZstdCompressor().compress(text.encode()))
    return path


def test_stats_count_by_kind(tape: Path) -> None:
    found = told("stats", tape)
    assert (found["entries"], found["contents"], found["version"], found["hits"]) == (8, 6, 2, 3)
    assert {kind: row["entries"] for kind, row in found["kinds"].items()} == {"search": 1, "fetch": 4, "page": 2, "reading": 1}
    assert found["kinds"]["fetch"]["errors"] == 1
    assert 0 <= found["kinds"]["search"]["newest_s"] < 3600
    assert 0 < found["raw_bytes"] < found["file_bytes"]
    shown = run("stats", tape)
    assert "reading" in shown
    assert "6 different contents" in shown


def test_an_archive_is_readable_and_brings_every_byte_back(tape: Path, tmp_path: Path) -> None:
    archive, copy = tmp_path / "tape.jsonl.zst", tmp_path / "deep" / "copy.sqlite"
    assert told("export", tape, archive)["entries"] == 8
    head, *rest = lines(archive)
    assert (head["format"], head["version"], head["entries"]) == ("dr_jax tape", 1, 8)
    by_key = {line["key"]: line for line in rest}
    assert by_key[ENTRIES[0][1]]["json"][0]["title"] == "Velmora, čili město"
    assert by_key["http://a.org/"]["text"] == "<p>Velmora má krále."
    assert by_key["http://a.org/latin"]["base64"] == "6f8A"
    assert by_key["0f"]["text"] == '{"spaced":1}'  # as JSON it would come back with a space
    assert told("import", copy, archive) == {"added": 8, "replaced": 0, "older": 0}
    assert recalled(copy) == recalled(tape) == [entry for _, _, entry in ENTRIES]
    assert told("import", copy, archive) == {"added": 0, "replaced": 0, "older": 8}
    assert "exists" in refused("export", tape, archive)
    run("export", tape, archive, "--force")


def test_of_two_entries_the_younger_stays(tape: Path, tmp_path: Path) -> None:
    now = time.time()
    line = {"kind": "fetch", "meta": {}, "text": "new"}
    head = {"format": "dr_jax tape", "version": 1}
    archive = packed(
        tmp_path / "a", head, line | {"key": "http://a.org/", "at": now - 9e6}, line | {"key": "http://b.org/", "at": now + 9e6}
    )
    assert told("import", tape, archive) == {"added": 0, "replaced": 1, "older": 1}
    found = dict(zip((key for _, key, _ in ENTRIES), recalled(tape), strict=True))
    assert found["http://a.org/"] == ENTRIES[1][2]
    assert found["http://b.org/"] == Entry({}, b"new")


HEAD = {"format": "dr_jax tape", "version": 1}
GOOD = {"kind": "fetch", "key": "k", "at": 1.0, "meta": {}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"format": "dr_jax tape", "version": 9}], "archive of version 9. Needed: version 1"),
        ([{"some": "JSON"}], "no archive of a tape"),
        (["[]\n"], "no archive of a tape"),
        ([HEAD, GOOD, GOOD | {"kind": "money"}], "Line 3 of"),
        ([HEAD, GOOD | {"at": "yesterday"}], "Line 2 of"),
        ([HEAD, GOOD | {"base64": "?"}], "Line 2 of"),
        ([HEAD, GOOD | {"text": 7}], "Line 2 of"),
        ([HEAD, "[1]\n"], "Line 2 of"),
        ([HEAD, '{"kind": "fet'], "ends in the middle of a line"),
    ],
)
def test_what_is_no_archive_is_refused(content: list[object], words: str, tape: Path, tmp_path: Path) -> None:
    assert words in refused("import", tape, packed(tmp_path / "archive", *content))


def test_files_that_are_something_else(tape: Path, tmp_path: Path) -> None:
    letter = tmp_path / "letter"
    letter.write_text("hello, this is a letter" * 50)
    assert "not compressed with zstd" in refused("import", tape, letter)
    assert "corrupt" in refused("stats", letter)
    assert "corrupt" in refused("import", letter, packed(tmp_path / "a", HEAD))
    assert letter.read_text().startswith("hello")  # the command sets nothing aside
    assert sorted(one.name for one in tmp_path.glob("letter*")) == ["letter"]
    for arguments in (
        ("stats", tmp_path / "gone"),
        ("prune", tmp_path / "gone", "--errors"),
        ("import", tape, tmp_path / "gone"),
    ):
        assert "There is no" in refused(*arguments)
    assert not (tmp_path / "gone").exists()


def test_a_key_does_not_leave_with_a_page_that_shows_it(tape: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPER_API_KEY", "Velmora má")
    run("export", tape, tmp_path / "a")
    assert "<SERPER_API_KEY> krále" in json.dumps(lines(tmp_path / "a"), ensure_ascii=False)
    assert "Velmora má" not in json.dumps(lines(tmp_path / "a"), ensure_ascii=False)


def test_prune_by_age_kind_and_failure(tape: Path) -> None:
    base = sqlite3.connect(tape)
    with base:
        base.execute("update entries set at = at - 10 * 86400 where key = 'http://a.org/'")
    base.close()
    assert told("prune", tape, "--older-days", 5, "--dry-run")["forgotten"] == 1
    assert told("prune", tape, "--older-days", 5)["forgotten"] == 1
    assert told("prune", tape, "--errors")["forgotten"] == 1
    assert told("prune", tape, "--kind", "page", "--kind", "reading")["forgotten"] == 3
    found = told("stats", tape)
    assert (found["entries"], found["contents"]) == (3, 3)  # two had the same bytes
    for arguments, words in (
        ((), "Nothing says"),
        (("--kind", "money"), "money is unknown"),
        (("--max-mb", 1, "--dry-run"), "max-mb"),
    ):
        assert words in refused("prune", tape, *arguments)


def test_prune_to_a_size_gives_room_back(tape: Path) -> None:
    async def fill() -> None:
        async with Tape(TapeSettings("record", str(tape)), Metrics()) as recorder:
            for number in range(100):
                await recorder.keep("fetch", f"{number}", Entry({}, os.urandom(10_000)))

    asyncio.run(fill())
    before = tape.stat().st_size
    found = told("prune", tape, "--max-mb", 0.5)
    assert found["shrunk"]
    assert found["bytes_after"] <= 500_000 < found["bytes_before"]
    assert tape.stat().st_size < before / 2
    assert told("stats", tape)["kinds"]["fetch"]["entries"] > 20
