import time
from pathlib import Path

import pytest

from dr_jax.base.config import read
from dr_jax.base.errors import ConfigError
from dr_jax.web.blocklist import Blocklist, BlockSettings
from dr_jax.web.settings import WebSettings

BUILT_IN = Blocklist(BlockSettings())
OWN = Blocklist(BlockSettings(benchmarks=False, also=("Example.org", "https://www.news.net/Answers/", "github.com/Me/Set")))


@pytest.mark.parametrize(
    ("url", "entry"),
    [
        ("https://huggingface.co/datasets/hotpotqa/hotpot_qa", "huggingface.co/datasets"),
        ("https://huggingface.co/datasets", "huggingface.co/datasets"),
        ("https://huggingface.co/datasets?search=gaia", "huggingface.co/datasets"),
        ("https://huggingface.co//Datasets/x", "huggingface.co/datasets"),
        ("https://huggingface.co/%64atasets/x", "huggingface.co/datasets"),
        ("http://www.paperswithcode.com/sota/question-answering-on-hotpotqa", "paperswithcode.com"),
        ("https://hotpotqa.github.io/", "hotpotqa.github.io"),
        ("https://raw.githubusercontent.com/hotpotqa/hotpot/master/x.json", "raw.githubusercontent.com/hotpotqa/hotpot"),
        ("https://cdn.jsdelivr.net/gh/hotpotqa/hotpot@master/x.json", "cdn.jsdelivr.net/gh/hotpotqa/hotpot"),
        ("https://web.archive.org/web/2023/https://huggingface.co/datasets/x", "huggingface.co/datasets"),
        ("https://r.example.net/http:/huggingface.co/datasets/x", "huggingface.co/datasets"),
        ("https://t.example.net/?u=https%3A%2F%2Fwww.paperswithcode.com%2Fx&l=en", "paperswithcode.com"),
        ("https://t.example.net/?u=https%253A%252F%252Fpaperswithcode.com", "paperswithcode.com"),
        ("https://t.example.net/?u=https%25253A%25252F%25252Fhuggingface.co%25252Fdatasets", "huggingface.co/datasets"),
        ("https://t.example.net/?u=https://huggingface.co/datasets&l=en", "huggingface.co/datasets"),
        ("https://huggingface.co/api/datasets/hotpot_qa", "huggingface.co/api/datasets"),
        ("https://huggingface.co/api/resolve-cache/datasets/x", "huggingface.co/api/resolve-cache/datasets"),
        ("https://huggingface-co.translate.goog/datasets/x?_x_tr_sl=en", "huggingface.co/datasets"),
        ("https://gaia--benchmark-xbench-org.translate.goog/", "xbench.org"),
        ("https://r.jina.ai/huggingface.co/datasets/x", "huggingface.co/datasets"),
        ("https://r.jina.ai/http:///huggingface.co:443/datasets/x", "huggingface.co/datasets"),
        ("https://r.jina.ai/http://a.example/?u=http://b.example/&v=huggingface.co/datasets/x", "huggingface.co/datasets"),
        ("https://huggingface.co/x/..%2fdatasets/x", "huggingface.co/datasets"),
        ("https://huggingface.co/x/./../datasets;y/x", "huggingface.co/datasets"),
        ("https://github.com/hotpotqa/hotpot.git", "github.com/hotpotqa/hotpot"),
        ("https://cdn.statically.io/gh/hotpotqa/hotpot/main/x.json", "cdn.statically.io/gh/hotpotqa/hotpot"),
        ("https://raw.githack.com/hotpotqa/hotpot/main/x.json", "raw.githack.com/hotpotqa/hotpot"),
    ],
)
def test_pages_of_benchmarks_are_covered(url: str, entry: str) -> None:
    assert BUILT_IN.entry(url) == entry
    assert OWN.entry(url) is None


@pytest.mark.parametrize(
    "url",
    [
        *(
            "https://huggingface.co/",
            "https://huggingface.co/datasets-of-birds",
            "https://huggingface.co/bert",
            "not an address",
        ),
        *("https://github.com/hotpotqa", "https://github.com/hotpotqa/hotpotting", "https://notpaperswithcode.com/"),
        *("https://en.wikipedia.org/wiki/Papers_with_Code", "https://paperswithcode.com.example.net/", "http://[bad", "words"),
        "https://example.org/?q=paperswithcode.com",
        "https://example.org/paperswithcode.com",
        *("https://example.org/?q=huggingface.co", "https://example.org/?u=https://huggingface.co/&next=/datasets/x"),
        *("https://example.org/huggingface.co/datasets-explained", "https://example.org/?q=what+is+huggingface.co/datasets"),
        *(
            "https://huggingface.co/datasets/../bert",
            "https://github.com/hotpotqa/hotpot.gitter",
            "https://a-b.translate.goog/",
        ),
    ],
)
def test_other_pages_are_not(url: str) -> None:
    assert BUILT_IN.entry(url) is None


def test_addresses_inside_each_other_take_no_time() -> None:
    start = time.perf_counter()
    assert not any(
        BUILT_IN.entry("http://a.example" + part * (8_000 // len(part))) for part in ("/huggingface.co", "/http://", "=a.b")
    )
    assert time.perf_counter() - start < 2.0


def test_entries_of_ones_own() -> None:
    covered = ("http://a.example.org/x", "https://EXAMPLE.org.", "http://news.net/answers/1", "http://github.com/me/set/x")
    assert all(OWN.entry(url) for url in covered)
    assert not any(OWN.entry(url) for url in ("http://news.net/", "http://news.net/answers2", "http://example.com/"))


def test_a_file_and_what_is_wrong_with_it(tmp_path: Path) -> None:
    file = tmp_path / "list"
    file.write_text("# answers\nquiz.net  # all of it\n\nnews.net/quiz\n")
    found = Blocklist(BlockSettings(file=str(file)))
    assert (found.entry("http://www.quiz.net/1"), found.entry("http://news.net/quiz/2")) == ("quiz.net", "news.net/quiz")
    file.write_text("quiz net\n")
    for wrong, why in (
        ({"file": str(file)}, "quiz net.*host"),
        ({"file": "/no"}, "cannot be read"),
        ({"also": ("/a",)}, "'/a'"),
    ):
        with pytest.raises(ConfigError, match=why):
            Blocklist(BlockSettings(**wrong))


def test_it_is_a_setting() -> None:
    settings = read(WebSettings, None, ['block.also=["quiz.net"]', "block.benchmarks=false"])
    assert settings.block == BlockSettings(benchmarks=False, also=("quiz.net",))
