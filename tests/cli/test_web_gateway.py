"""`dr-jax web-gateway` as a person starts it, and commands that ask it."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dr_jax.base.errors import ConfigError, UserError
from dr_jax.cli.main import app

ROOT = Path(__file__).parents[2]
TOKEN = "t0ken-of-this-test-0123456789"
CONFIG = """
name = "a run's"
steps = 3
[web]
results = 3
gateways = ["http://127.0.0.1:9"]   # a run's own: not asked by the gateway itself
[web.extract]
workers = 1
[littleweb]
entities = 150
"""


@contextmanager
def gateway(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    code = "from dr_jax.cli.main import run; run()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DR_JAX_GATEWAY_TOKEN": TOKEN}
    process = subprocess.Popen(
        [sys.executable, "-c", code, "web-gateway", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def test_it_serves_a_config_until_it_is_told_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "run.toml"
    config.write_text(CONFIG)
    monkeypatch.setenv("DR_JAX_GATEWAY_TOKEN", TOKEN)
    with gateway(str(config), "web.tape.mode=record", f"web.tape.path={tmp_path / 'tape'}", "--port", "0") as (process, line):
        told = re.fullmatch(
            r"gateway on (http://127\.0\.0\.1:\d+)  -  littleweb \(train, seed 0, 150 entities\); littleweb \(eval, .*\)  -  "
            rf"tape {tmp_path}/tape \(record\)  -  SIGTERM or Ctrl-C stops it\n",
            line,
        )
        assert told
        through = ["--set", f'web.gateways=["{told[1]}"]', "--config", str(config), "--json"]
        found = CliRunner().invoke(app, ["search", "population", *through], catch_exceptions=False)
        assert found.exit_code == 0
        (first, *_) = json.loads(found.stdout)["hits"]
        page = CliRunner().invoke(app, ["browse", first["url"], *through], catch_exceptions=False)
        assert page.exit_code == 0
        assert json.loads(page.stdout)["url"].startswith("http://")
        monkeypatch.setenv("DR_JAX_GATEWAY_TOKEN", "another-0123456789abcdef")
        with pytest.raises(UserError, match="refuses the token in DR_JAX_GATEWAY_TOKEN"):
            CliRunner().invoke(app, ["search", "population", *through], catch_exceptions=False)
        monkeypatch.setenv("DR_JAX_GATEWAY_TOKEN", TOKEN)
        with pytest.raises(UserError, match=r"serves 'littleweb \(train, seed 0, 150 .*Needed: 'local'"):
            CliRunner().invoke(app, ["search", "x", *through, "--set", "web.search=local"], catch_exceptions=False)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert TOKEN not in out + errors
    base = CliRunner().invoke(app, ["tape", "stats", str(tmp_path / "tape"), "--json"])
    assert json.loads(base.stdout)["kinds"]["search"]["entries"] == 1


BAD = [
    (["--host", "0.0.0.0"], UserError, "--host 0.0.0.0 lets others in, and there is no token"),
    (["configs/quickstart.toml", "web.serch=local"], ConfigError, "did you mean web.search"),
    (["configs/nowhere.toml"], ConfigError, "There is no config file configs/nowhere.toml"),
    (["configs/quickstart.toml", "web.search=serper"], UserError, "SERPER_API_KEY is not set"),
    (["configs/quickstart.toml", 'web.gateways=["here"]'], ConfigError, "'here' is no gateway; http://HOST:PORT"),
]


@pytest.mark.parametrize(("arguments", "error", "words"), BAD)
def test_bad_input_is_said_before_anything_is_served(
    arguments: list[str], error: type[UserError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SERPER_API_KEY", "DR_JAX_GATEWAY_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(error, match=re.escape(words)):
        CliRunner().invoke(app, ["web-gateway", *arguments], catch_exceptions=False)


def test_a_gateway_needs_no_jax() -> None:
    code = (
        "import sys; from dr_jax.cli import web_gateway; from dr_jax.base.config import read\n"
        "read(web_gateway._Settings, 'configs/quickstart.toml', part=True)\n"
        "print([name for name in ('jax', 'transformers', 'pyarrow', 'trafilatura') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    assert found.stdout.strip() == "[]", found.stdout
