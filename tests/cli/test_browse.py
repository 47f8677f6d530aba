"""What `dr-jax browse` prints of each kind of page, and how it ends where there is none."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dr_jax.base.errors import UserError
from dr_jax.cli.main import app
from dr_jax.littleweb.world import WorldSettings
from dr_jax.train.worlds import way_out
from dr_jax.web.page import Page, WebError
from dr_jax.web.settings import WebSettings
from dr_jax.web.tape.entry import TapeSettings

PAGES = Path(__file__).parents[1] / "web" / "pages"
pytestmark = pytest.mark.usefixtures("plain_log")


def browse(*arguments: str) -> tuple[int, str, str]:
    found = CliRunner().invoke(app, ["browse", *arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.stdout, found.stderr


@pytest.mark.parametrize(
    ("name", "title", "date", "lines"),
    [
        (
            "report.pdf",
            "Harbour report 1931",
            "1932-01-15",
            [
                "The harbour of Velmora took in 4,210 ships in 1931,",
                "A second quay will be built beside the old lighthouse. It is to open",
            ],
        ),
        (
            "bridges.html",
            "Bridges of Velmora",
            "2023-05-17",
            ["Bridge | River | Length | Opened", "Mill Bridge | Lorn | 48 m | 1790"],
        ),
        ("shift_jis.html", "ベルモラの橋", "", ["カルスト橋は一八七四年に開通し、ベルモラ市で最も長い橋である。"]),
        ("windows-1251.html", "Мост в Вельморе", "", ["Каждый год у старой ратуши проходит праздник моста."]),
    ],
)
def test_saved_pages(name: str, title: str, date: str, lines: list[str]) -> None:
    code, out, _ = browse(str(PAGES / name))
    assert code == 0
    assert out.splitlines()[0] == (f"{title}  ({date})" if date else title)
    for line in lines:
        assert line in out
    assert "cookies" not in out
    code, out, _ = browse(str(PAGES / name), "--json")
    told = json.loads(out)
    assert (code, told["title"], told["date"], told["truncated"]) == (0, title, date, False)
    assert told["url"] == (PAGES / name).as_uri()


def test_a_paywall_shows_its_beginning_and_ends_with_1() -> None:
    code, out, err = browse(str(PAGES / "paywall.html"))
    assert (code, out) == (1, "")
    assert "only its beginning" in err
    assert "its ledgers for 1933 are missing" in err
    code, out, _ = browse(str(PAGES / "paywall.html"), "--json")
    assert (code, json.loads(out)["error"]) == (1, "paywall")


def test_a_question_is_answered_with_what_the_page_says() -> None:
    code, out, _ = browse(str(PAGES / "windows-1251.html"), "--question", "Когда открыли Карстовый мост?", "--json")
    (said,) = json.loads(out)["reading"]
    assert code == 0
    assert "1874" in said["says"]
    code, out, _ = browse(str(PAGES / "bridges.html"), "--question", "Who composed zithers?")
    assert out.splitlines()[-1] == "It says nothing about that."


def test_what_is_no_page() -> None:
    for target, needed in (("no/such/file", "neither an address nor a file"), (__file__, "not read"), ("a.org", "neither")):
        with pytest.raises(UserError, match=needed):
            browse(target)
    for target in ("ftp://a.org/x", "http://", "https://exa mple/[", "file:///etc/passwd"):
        code, out, err = browse(target)
        assert code in (1, 2), target
        assert out == ""
        assert err.startswith("dr-jax: ")
    with pytest.raises(UserError, match="NAME=ADDRESS:PORT"):
        browse("http://a.org/", "--allow", "a.org")
    with pytest.raises(UserError, match="--allow says nothing to a gateway"):
        browse("http://a.org/", "--allow", "a.org=127.0.0.1:9", "--set", 'web.gateways=["http://127.0.0.1:9"]')


class Pages(BaseHTTPRequestHandler):
    """A page, a picture, and nothing else."""

    def do_GET(self) -> None:
        kind, body = {
            "/page": ("text/html", b"<title>A page</title><p>Seen. <a href='/next'>Next</a>"),
            "/picture": ("image/png", b"\x89PNG"),
            "/scripts": ("text/html", b"<div id=app></div><script src=app.js></script>"),
        }.get(self.path, ("text/html", b"<h1>Gone</h1>"))
        self.send_response(404 if body == b"<h1>Gone</h1>" else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = json.loads(asked["messages"][1]["content"])["text"]
        said = json.dumps({"information": f"The model {asked['model']} read: {text}", "page_down": False})
        body = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep still."""


@pytest.fixture
def site() -> Iterator[str]:
    """`HOST=ADDRESS:PORT` of a server on loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"pages.here=127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_pages_over_http(site: str) -> None:
    code, out, err = browse("http://pages.here/page", "--allow", site, "--links")
    assert code == 0, err
    assert out.splitlines() == ["A page", "http://pages.here/page", "", "Seen. Next", "", "Next  http://pages.here/next"]
    for path, words in (("gone", "status 404"), ("picture", "image/png"), ("scripts", "nothing to read")):
        code, out, err = browse(f"http://pages.here/{path}", "--allow", site)
        assert (code, out) == (1, "")
        assert words in err
    port = site.rpartition(":")[2]
    for refused in (f"http://127.0.0.1:{port}/page", "http://127.0.0.1/page", "http://localhost/page"):
        code, out, err = browse(refused, "--allow", site)
        assert (code, out) == (1, ""), refused
        assert "not opened" in err or "only 80 and 443" in err


def test_a_server_reads_where_the_settings_name_one(site: str) -> None:
    port = site.rpartition(":")[2]
    asked = ["--set", "reader.kind=openai", "--set", f"reader.endpoint.url=http://127.0.0.1:{port}/v1"]
    name = str(PAGES / "windows-1251.html")
    code, out, err = browse(name, "--question", "Когда?", *asked, "--set", "reader.endpoint.model=m")
    assert code == 0, err
    assert out.splitlines()[-2].startswith("The model m read: Карстовый мост открыли")
    with pytest.raises(UserError, match=r"endpoint\.url and endpoint\.model"):
        browse(name, "--question", "Когда?", *asked)


def test_littleweb_is_served_where_it_is_asked_for(tmp_path: Path) -> None:
    config = tmp_path / "small.toml"
    config.write_text('[web]\nsearch = "serper"\n[littleweb]\nentities = 200\n')
    code, out, _ = browse("http://lists.littleweb/city", "--config", str(config), "--json", "--links")
    told = json.loads(out)
    assert code == 0
    assert told["title"] == "List: city"
    assert "name | " in told["text"]
    assert len(told["links"]) >= 20
    assert browse("http://lists.littleweb/nothing", "--config", str(config))[0] == 1


def test_what_a_run_recorded_of_a_world_is_found_there(tmp_path: Path) -> None:
    tape, url = TapeSettings("record", str(tmp_path / "tape")), "http://lists.littleweb/city"

    async def recorded() -> Page | WebError:
        async with way_out(WebSettings(tape=tape), WorldSettings(entities=200)) as web:
            return await web.open(url)

    page = asyncio.run(recorded())
    assert isinstance(page, Page)
    config = tmp_path / "small.toml"
    config.write_text(f'[web.tape]\nmode = "replay"\npath = "{tape.path}"\n[littleweb]\nentities = 200\n')
    code, out, _ = browse(url, "--config", str(config), "--json")
    assert (code, json.loads(out)["text"]) == (0, page.text)


def test_a_wrong_target_is_one_paragraph_and_exit_code_2() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "from dr_jax.cli.main import run; run()", "browse", "no-such-page.html"],
        env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert "Traceback" not in found.stderr
