import base64
import gzip
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from dr_jax.cli.main import app
from dr_jax.report import page
from dr_jax.report.data import RunData
from tests.report.runs import HOSTILE, make_run


class Seen(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] in ("script", "style") and data.strip():
            self.texts.append(data)


def written(path: Path, *runs: Path, limit: int = 1000) -> str:
    found = [RunData(run) for run in runs]
    for run in found:
        run.follow()
    page.write(path, found, limit=limit)
    return path.read_text(encoding="utf-8")


def head_of(text: str) -> dict[str, Any]:
    found = re.search('id="head">([^<]*)<', text)
    assert found
    return json.loads(gzip.decompress(base64.b64decode(found.group(1))))


def test_a_page_needs_nothing_else(tmp_path: Path) -> None:
    text = written(tmp_path / "p.html", make_run(tmp_path / "r"))
    seen = Seen(text)
    assert not {tag for tag, _ in seen.elements} & {"link", "img", "iframe", "object", "embed", "base", "form"}
    addresses = [value for _, attributes in seen.elements for name, value in attributes.items() if name in ("src", "href")]
    assert addresses == ["#overview", "#episodes", "#settings"]
    assert not re.search(r"@import|url\(", text)


def test_its_policy_allows_its_own_script_and_style_and_nothing_else(tmp_path: Path) -> None:
    seen = Seen(written(tmp_path / "p.html", make_run(tmp_path / "r")))
    policy = next(attributes["content"] for _, attributes in seen.elements if attributes.get("http-equiv"))
    assert policy
    style, *_, script = seen.texts
    for text, kind in ((script, "script-src"), (style, "style-src")):
        assert f"{kind} 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert "unsafe" not in policy


def test_nothing_from_an_episode_stands_in_the_page_as_markup(tmp_path: Path) -> None:
    text = written(tmp_path / "p.html", make_run(tmp_path / "r", page=HOSTILE))
    assert "onerror" not in text
    assert [tag for tag, _ in Seen(text).elements].count("script") == 3  # head, episodes, the page's own


def test_no_string_can_become_markup_in_the_script() -> None:
    script = "".join(page._asset(name) for name in page._SCRIPTS)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|srcdoc", script)


def test_runs_of_one_name_are_told_apart_and_the_name_is_no_markup(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / place / "r<b>&", updates=1) for place in ("a", "b")]
    text = written(tmp_path / "p.html", *runs)
    assert [run["name"] for run in head_of(text)["runs"]] == ["r<b>& (1)", "r<b>& (2)"]
    assert "<title>dr_jax: r&lt;b>&amp; (1)" in text


def test_a_page_of_few_episodes_counts_all(tmp_path: Path) -> None:
    run = head_of(written(tmp_path / "p.html", make_run(tmp_path / "r"), limit=4))["runs"][0]
    assert (len(run["index"]), run["episodes"]) == (4, 16)


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    assert written(tmp_path / "a.html", run) == written(tmp_path / "b.html", run)


def test_the_live_page_may_ask_its_own_server_only() -> None:
    assert "connect-src 'self'" in page.live()
    assert head_of(page.live())["runs"] == []


def test_the_command_writes_it_into_the_run_or_where_it_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 0
    assert (run / "report.html").exists()
    found = CliRunner().invoke(app, ["report", str(run), "--out", str(tmp_path / "x.html"), "--episodes", "8"])
    assert "of 16 episodes" in found.output
    assert len(head_of((tmp_path / "x.html").read_text())["runs"][0]["index"]) == 8
    assert "no directory" in str(
        CliRunner().invoke(app, ["report", str(run), "--out", str(tmp_path / "no" / "x.html")]).exception
    )


def test_it_is_made_without_jax() -> None:
    code = "import sys\nimport dr_jax.report.page, dr_jax.report.live\nassert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
