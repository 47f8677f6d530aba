"""Texts of your own: what is read, what is left out and named, what is found, and that the index follows the files."""

import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from dr_jax.base.errors import ConfigError, UserError
from dr_jax.base.metrics import Metrics
from dr_jax.web.page import Hit, Page
from dr_jax.web.search.local import Corpus, at_home
from dr_jax.web.search.settings import LocalSettings
from dr_jax.web.search.texts import Broken, Document, documents, files
from dr_jax.web.workers import Extractors, ExtractSettings

MakeCorpus = Callable[..., AbstractAsyncContextManager[Corpus]]
ROWS = [
    {"id": "7", "title": "Velmora", "text": "Velmora was founded in 1423 by Queen Ada."},
    {"_id": "8/x", "contents": '"Rivers of the north"\nThe Orm runs past Velmora.\nIt is long.'},
    {"title": "Elsewhere", "text": "A page with an address.", "url": "https://atlas.org/else?x=1"},
    {"html": "<title>Old</title><p>Velmora, in a page.<script>x()</script>", "id": 9},
]


pytestmark = pytest.mark.usefixtures("plain_log")
needs_bm25s = pytest.mark.skipif(importlib.util.find_spec("bm25s") is None, reason="needs the package bm25s")


def lines(*rows: Any) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


@pytest.fixture
async def extractors() -> AsyncIterator[Extractors]:
    async with Extractors(ExtractSettings()) as opened:
        yield opened


@pytest.fixture
def make_corpus(tmp_path: Path) -> MakeCorpus:
    """A corpus without HTML, which needs no workers."""

    def make(name: str = "corpus", metrics: Metrics | None = None, **settings: Any) -> Corpus:
        return Corpus(LocalSettings(str(tmp_path / name), **settings), Extractors(ExtractSettings()), metrics or Metrics())

    return make


def folder(tmp_path: Path, **texts: str) -> Path:
    root = tmp_path / "corpus"
    for name, text in texts.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


async def urls(corpus: Corpus, query: str, results: int = 10) -> list[str]:
    found = await corpus.search(query, results)
    assert isinstance(found, tuple)
    return [hit.url for hit in found]


def read(root: Path, name: str = "") -> list[Document | Broken]:
    return list(documents(root, name))


# What is read.


def test_which_files(tmp_path: Path) -> None:
    root = folder(tmp_path, b_txt="x", a_md="x", c_HTML="x", d_jsonl="{}", sub__e_txt="x", f_py="x", _hidden_txt="x")
    (root / "out").symlink_to("/etc")
    assert files(root) == ["a.md", "b.txt", "c.HTML", "d.jsonl", "sub/e.txt"]
    assert files(root / "d.jsonl") == [""]


def test_texts_and_their_titles(tmp_path: Path) -> None:
    root = folder(tmp_path, sub__n_md="# The *title*\n\nText\x00 of\r\nit.", a_txt="x" * 300 + "\ntext", e_txt=" \n\x00")
    (root / "latin 1.txt").write_bytes("Größe und Länge, schöne Straßen".encode("latin-1"))
    assert read(root, "sub/n.md") == [
        Document(*(["http://corpus.local/sub/n.md"] * 2), "The *title*", "# The *title*\n\nText of\nit.", "text/markdown")
    ]
    (long,) = read(root, "a.txt")
    assert isinstance(long, Document)
    assert long.title == "a"  # its first line is too long to be one
    assert read(root, "e.txt") == [Broken(0, "there is no text in it")]
    (latin,) = read(root, "latin 1.txt")
    assert isinstance(latin, Document)
    assert (latin.url, latin.text) == ("http://corpus.local/latin%201.txt", "Größe und Länge, schöne Straßen")


def test_rows(tmp_path: Path) -> None:
    root = folder(tmp_path, rows_jsonl=lines(*ROWS))
    one, two, three, four = read(root, "rows.jsonl")
    own = "http://corpus.local/rows/"
    assert one == Document(own + "7", own + "7", "Velmora", "Velmora was founded in 1423 by Queen Ada.", "text/plain")
    assert isinstance(two, Document)
    assert (two.url, two.title) == (own + "8%2Fx", "Rivers of the north")
    assert isinstance(three, Document)
    assert (three.url, three.own) == ("https://atlas.org/else?x=1", own + "3")
    assert isinstance(four, Document)
    assert (four.url, four.content_type, four.title) == (own + "9", "text/html", "")
    assert read(root / "rows.jsonl")[0] == one


@pytest.mark.parametrize(
    ("row", "why"),
    [
        *(("{", "not JSON"), ("[1]", "not an object"), ("{}", "no text"), ({"text": 3}, "no text"), ({"text": " "}, "no text")),
        *(({"text": "x", "url": url}, "no http") for url in ("ftp://a.org", "a.org", 3, "http://a b.org", "http://[", "http:")),
        *(("[" * 50_000, "not JSON"), ("x" * (8 << 20) + "y", "longer than 8 MiB"), ("\\x00", "not JSON")),
    ],
    ids=lambda value: str(value)[:20],
)
def test_broken_rows(row: Any, why: str, tmp_path: Path) -> None:
    root = folder(tmp_path, rows_jsonl=lines(ROWS[0], row, ROWS[1]))
    first, broken, last = read(root, "rows.jsonl")
    assert isinstance(first, Document)
    assert isinstance(last, Document)
    assert isinstance(broken, Broken)
    assert broken.place == 2
    assert why in broken.why


# What is found.


@pytest.mark.parametrize("ranking", ["fts5", pytest.param("bm25s", marks=needs_bm25s)])
async def test_search_and_open(ranking: str, tmp_path: Path, make_corpus: MakeCorpus) -> None:
    folder(tmp_path, rows_jsonl=lines(*ROWS[:3]), sub__orm_md="# The Orm\n\nA river in the north, far from cities.")
    async with make_corpus(ranking=ranking) as corpus:
        (best, *_) = found = await corpus.search("Who founded Velmora?", 10)
        assert best == Hit("Velmora", "http://corpus.local/rows/7", "Velmora was founded in 1423 by Queen Ada.")
        assert len(found) == 2
        assert await urls(corpus, "velmora", 1) == ["http://corpus.local/rows/7"]
        assert await urls(corpus, "zzz") == await urls(corpus, "?!") == await urls(corpus, '" OR * NEAR(') == []
        text = "# The Orm\n\nA river in the north, far from cities."
        page = await corpus.open("http://corpus.local/sub/orm.md#part")
        assert page == Page("http://corpus.local/sub/orm.md", "The Orm", text, (), "text/markdown")
        elsewhere = await corpus.open("https://atlas.org/else?x=1")
        assert isinstance(elsewhere, Page)
        assert elsewhere.text == "A page with an address."
        assert await corpus.open("https://atlas.org/other") is None


async def test_html_is_read_by_workers(tmp_path: Path, extractors: Extractors) -> None:
    folder(
        tmp_path,
        page_html="<html><head><title>Velmora</title></head><body><p>Founded in 1423.<a href='/orm'>Orm</a></body></html>",
        empty_html="<html><script>x()</script></html>",
        rows_jsonl=lines(ROWS[3]),
    )
    metrics = Metrics()
    async with Corpus(LocalSettings(str(tmp_path / "corpus")), extractors, metrics) as corpus:
        page = await corpus.open("http://corpus.local/page.html")
        assert isinstance(page, Page)
        assert (page.title, page.links) == ("Velmora", (("Orm", "http://corpus.local/orm"),))
        assert "Founded in 1423." in page.text
        row = await corpus.open("http://corpus.local/rows/9")
        assert isinstance(row, Page)
        assert (row.title, row.text) == ("Old", "Velmora, in a page.")
    counted = metrics.drain()
    assert (counted["search/local/documents"], counted["search/local/broken"]) == (2, 1)


@pytest.mark.parametrize(
    ("words", "query", "found"),
    [
        *(("english", "founding", True), ("plain", "founding", False), ("plain", "FOUNDED", True)),
        *(("trigram", "北京市", True), ("plain", "北京市", False), ("english", "who was", True)),
    ],
)
async def test_what_is_a_word(words: str, query: str, found: bool, tmp_path: Path, make_corpus: MakeCorpus) -> None:
    folder(tmp_path, rows_jsonl=lines({"text": "It was founded early."}, {"text": "我住在北京市很多年"}, {"text": "x y"}))
    async with make_corpus(words=words) as corpus:
        assert bool(await urls(corpus, query)) == found


async def test_one_address_twice(tmp_path: Path, make_corpus: MakeCorpus, caplog: pytest.LogCaptureFixture) -> None:
    """The second gets its own address; where that is taken too, it is left out and named."""
    part = {"url": "https://atlas.org/v", "text": "Velmora, part two."}
    same = {"id": "7", "text": "Velmora again."}
    folder(tmp_path, rows_jsonl=lines({"url": "https://atlas.org/v", "text": "Velmora, part one."}, part, ROWS[0], same))
    async with make_corpus() as corpus:
        found = set(await urls(corpus, "velmora"))
    assert found == {"https://atlas.org/v", "http://corpus.local/rows/2", "http://corpus.local/rows/7"}
    assert "1 left out" in caplog.text
    assert "http://corpus.local/rows/7: another document has this address" in caplog.text


# What goes wrong.


async def test_broken_lines_are_counted_and_named_every_time(
    tmp_path: Path, make_corpus: MakeCorpus, caplog: pytest.LogCaptureFixture
) -> None:
    folder(tmp_path, rows_jsonl=lines(ROWS[0], *["{"] * 6, "[]"), good_txt="Good.")
    metrics = Metrics()
    for _ in range(2):  # the second time nothing is read
        caplog.clear()
        async with make_corpus(metrics=metrics):
            pass
        counted = metrics.drain()
        assert (counted["search/local/documents"], counted["search/local/broken"]) == (2, 7)
        (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert "7 left out of" in told
        assert "rows.jsonl (line 2: not JSON; line 3: not JSON;" in told
        assert "line 6: not JSON; and 2 more)" in told


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ({}, "There is no corpus"),
        ({"a_py": "x"}, "There is nothing in the corpus"),
        ({"a_jsonl": ""}, "There is nothing in the corpus"),
        ({"a_jsonl": "{\n{\n"}, r"nothing in the corpus.*2 left out of .*a\.jsonl \(line 1: not JSON; line 2: not JSON\)"),
        ({"a_txt": "  "}, "there is no text in it"),
    ],
)
async def test_no_corpus_and_an_empty_one(texts: dict[str, str], says: str, tmp_path: Path, make_corpus: MakeCorpus) -> None:
    folder(tmp_path, **texts)
    with pytest.raises(UserError, match=says):
        async with make_corpus():
            pass


def test_a_corpus_needs_a_path() -> None:
    with pytest.raises(ConfigError, match=r"web\.local\.path"):
        Corpus(LocalSettings(), Extractors(ExtractSettings()), Metrics())


async def test_an_index_that_cannot_be_used(tmp_path: Path, make_corpus: MakeCorpus, caplog: pytest.LogCaptureFixture) -> None:
    import sqlite3

    folder(tmp_path, a_txt="Velmora")
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as base:
        base.execute("create table mine (x)")
    base.close()
    with pytest.raises(ConfigError, match="not an index of this version"):
        async with make_corpus(index=str(other)):
            pass
    with pytest.raises(ConfigError, match=r"web\.local\.index"):
        async with make_corpus(index="/proc/nowhere/index"):
            pass
    corrupt = tmp_path / "corpus.index"
    corrupt.write_bytes(os.urandom(8192))
    async with make_corpus() as corpus:
        assert await urls(corpus, "velmora")
    assert "set aside as" in caplog.text
    assert (tmp_path / "corpus.index.corrupt-1").stat().st_size == 8192


async def test_bm25s_that_is_not_installed_is_named(tmp_path: Path, make_corpus: MakeCorpus, monkeypatch) -> None:
    folder(tmp_path, a_txt="Velmora")
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ConfigError, match="pip install bm25s"):
        async with make_corpus(ranking="bm25s"):
            pass


# The index follows the files.


async def test_new_changed_and_removed_files(tmp_path: Path, make_corpus: MakeCorpus, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dr_jax")
    root = folder(tmp_path, a_txt="Velmora one", b_txt="Velmora two", c_txt="Orm")
    async with make_corpus() as corpus:
        assert len(await urls(corpus, "velmora")) == 2
    assert "indexed 3 files" in caplog.text
    caplog.clear()
    async with make_corpus():
        pass
    assert "indexed" not in caplog.text
    (root / "a.txt").write_text("Orm instead")
    (root / "b.txt").unlink()
    (root / "d.txt").write_text("Velmora four")
    async with make_corpus() as corpus:
        assert "indexed 2 files" in caplog.text
        assert await urls(corpus, "velmora") == ["http://corpus.local/d.txt"]
        assert set(await urls(corpus, "orm")) == {"http://corpus.local/a.txt", "http://corpus.local/c.txt"}
        assert await corpus.open("http://corpus.local/b.txt") is None
    async with make_corpus(words="plain") as corpus:  # made anew
        assert await urls(corpus, "velmora") == ["http://corpus.local/d.txt"]


@needs_bm25s
async def test_bm25s_follows_too_and_is_loaded_when_nothing_changed(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    root = folder(tmp_path, a_txt="Velmora one", b_txt="Orm two")
    for _ in range(2):
        async with make_corpus(ranking="bm25s") as corpus:
            assert await urls(corpus, "velmora") == ["http://corpus.local/a.txt"]
    made = (tmp_path / "corpus.index.bm25s" / "numbers.npy").stat().st_mtime_ns
    (root / "c.txt").write_text("Velmora three")
    async with make_corpus(ranking="bm25s") as corpus:
        assert len(await urls(corpus, "velmora")) == 2
    assert (tmp_path / "corpus.index.bm25s" / "numbers.npy").stat().st_mtime_ns > made


async def test_one_that_was_killed_while_indexing_is_finished(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    """Documents of a file that is not marked as done are taken out before they are added again."""
    import sqlite3

    folder(tmp_path, rows_jsonl=lines(*ROWS[:3]))
    async with make_corpus():
        pass
    with sqlite3.connect(tmp_path / "corpus.index") as base:
        base.execute("delete from files")
    base.close()
    async with make_corpus() as corpus:
        assert len(await urls(corpus, "velmora page")) == 3


def test_several_processes_share_one_index(tmp_path: Path) -> None:
    """They begin together; one indexes, the others wait for it."""
    folder(tmp_path, rows_jsonl=lines(*({"id": str(number), "text": f"Velmora {number}"} for number in range(500))))
    code = f"""
import asyncio
from dr_jax.base.metrics import Metrics
from dr_jax.web.search.local import Corpus
from dr_jax.web.search.settings import LocalSettings
async def main():
    async with Corpus(LocalSettings({str(tmp_path / "corpus")!r}), None, Metrics()) as corpus:
        print(len(await corpus.search("velmora", 1000)))
asyncio.run(main())
"""
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [one.communicate(timeout=60) for one in running]
    assert [out.strip() for out, _ in said] == ["500"] * 3


async def test_another_process_is_not_waited_for_for_ever(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    folder(tmp_path, a_txt="Velmora")
    async with make_corpus()._alone():
        with pytest.raises(UserError, match=r"web\.local\.update_s"):
            async with make_corpus(update_s=0.1):
                pass


@needs_bm25s
def test_bm25s_does_not_load_jax() -> None:
    code = "import sys; from dr_jax.web.search.bm25 import _imported; _imported(); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_addresses_at_home() -> None:
    assert at_home(" http://corpus.local/a")
    assert not at_home("http://corpus.localhost/a")
    assert not at_home("https://atlas.org/corpus.local/")
