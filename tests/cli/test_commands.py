import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dr_jax.cli.main import app, run

ROOT = Path(__file__).parents[2]
LOADED = ["dr_jax.cli.main", "dr_jax.train.loop"]


def dr_jax(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a person does; one CPU device, warnings shown as usual."""
    env = {**os.environ, "XLA_FLAGS": "", **environment}
    code = "from dr_jax.cli.main import run; run()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, env=env, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def server() -> multiprocessing.context.ForkServerContext:
    """A process that has loaded what takes seconds to load, of which each of many commands is a copy."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    return context


def _command(arguments: list[str], written: str, environment: dict[str, str]) -> None:
    os.environ.update({"XLA_FLAGS": "", **environment})
    os.chdir(ROOT)
    file = os.open(written, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["dr-jax", *arguments]
    run()


COMMANDS = ["train", "sft", "eval", "ask", "show", "report", "watch", "littleweb", "search", "web-gateway", "doctor"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    found = CliRunner().invoke(app, [command, "--help"])
    assert found.exit_code == 0
    assert len(found.output) > 200


BAD = [
    (["train", "configs/quickstart.toml", "rollout.group_siz=4"], "did you mean rollout.group_size"),
    (["train", "configs/quickstart.toml", "steps=many"], "steps = 'many'"),
    (["train", "configs/quickstart.toml", "rollout.group_size=1"], "at least 2 are needed"),
    (["train", "configs/nowhere.toml"], "no config file"),
    (["train", "configs/quickstart.toml", "--join", "here"], "does not say where the other processes are"),
    (["train", "configs/quickstart.toml", "episode.temperature=-1"], "temperature, top_p and top_k are -1"),
    (["train", "configs/quickstart.toml", "engine.pages=9"], "engine.pages = 9 hold"),
    (["sft", "configs/littleweb_cold_start.toml", "cold_start.size=nope"], "size = 'nope'; one of tiny"),
    (["train", "configs/quickstart.toml", "episode.tokens=20"], "smaller than the prompt"),
    (["train", "configs/quickstart.toml", "batch.lengths=[512]"], "longest row"),
    (["train", "configs/quickstart.toml", "mesh.data=3"], "mesh"),
    (["train", "configs/quickstart.toml", "model.load=nothing"], "There is no model|No tokenizer|has no tokenizer"),
    (["eval", "configs/quickstart.toml", "web.search=serper"], "SERPER_API_KEY"),
    (
        ["eval", "configs/quickstart.toml", 'web.gateways=["http://127.0.0.1:9"]'],
        r"No gateway can be reached: http://127\.0\.0\.1:9",
    ),
    (["eval", "configs/quickstart.toml", "data.path=tests/cli/no_answers.jsonl"], "no answers|answers"),
    (["eval", "configs/quickstart.toml", "--way", "walk"], "no way 'walk'"),
    (["eval", "configs/quickstart.toml", "--samples", "2", "eval.temperature=0.0"], "are all the same"),
    (["eval", "configs/quickstart.toml", "--model", "mine"], "no NAME=PATH"),
    (["eval", "configs/quickstart.toml", "--model", "mine=runs/nothing"], "There is no model 'runs/nothing'"),
    (["eval", "configs/quickstart.toml", "--set", "mine=tests/cli/no_answers.jsonl"], "no answers|answers"),
    (["eval", "configs/quickstart.toml", "--judge", "http://127.0.0.1:9/v1"], r"set judge\.endpoint\.model"),
    (["eval", "configs/quickstart.toml", "--way", "agent", "ways.page=1"], "did you mean ways.pages"),
    (["eval"], "a TOML file is needed"),
    (["eval", "--compare", "runs/never-started", "runs/never-started"], "no evaluation in"),
    (["train", "configs/quickstart.toml", "--resume", "name=never-started"], "no run in"),
    (["show", "runs/never-started"], "no episodes"),
    (["report", "runs/never-started"], "nothing of a run in"),
    (["watch", "runs/never-started"], "nothing of a run in"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=lambda value: value[-1] if isinstance(value, list) else "")
def test_bad_input_is_one_paragraph_and_exit_code_2(
    arguments: list[str], words: str, tmp_path: Path, server: multiprocessing.context.ForkServerContext
) -> None:
    place = (
        []
        if arguments[0] in ("show", "report", "watch") or len(arguments) == 1 or "--compare" in arguments
        else [f"out={tmp_path / 'runs'}"]
    )
    written = tmp_path / "written"
    process = server.Process(target=_command, args=([*arguments, *place], str(written), {"SERPER_API_KEY": ""}))
    process.start()
    process.join(120)
    told = written.read_text("utf-8")
    assert process.exitcode == 2, told[-2000:]
    assert re.search(words, told), told
    assert "Traceback" not in told


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = dr_jax("littleweb", "--port", str(port), "--entities", "120")
    assert found.returncode == 2
    assert f"Port {port}" in found.stderr


def test_doctor_names_keys_and_never_prints_them() -> None:
    found = dr_jax("doctor", "--json", SERPER_API_KEY="a-very-secret-value")
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout)
    assert told["keys"]["SERPER_API_KEY"] == "present"
    assert told["ok"]
    assert "a-very-secret-value" not in found.stdout + found.stderr


def test_dry_run_tells_sizes_memory_and_plan() -> None:
    found = dr_jax("train", "configs/quickstart.toml", "--dry-run")
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout)
    assert told["parameters"] > 500_000
    assert told["memory_mb"]["all"] > 0
    assert (
        told["plan"]["episodes_per_update"] == told["settings"]["rollout"]["groups"] * told["settings"]["rollout"]["group_size"]
    )
