"""What a fresh host has: `python3`, with which a run's environment is made; and, in it, a small `dr-jax train`.

In:    the arguments of `python3 -m pip …`, `uv …` or `dr-jax train CONFIG … [--resume]`, by the name it is called by
Out:   the next program, written where the real one would be; a run that keeps its steps in the bucket as the real one does
Plan:  `trial` in plan.json: how many steps, at which a preemption comes (`preempt_at`), with which code it fails (`code`)
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])


def write_program(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {path.name} "$@"\n')
    path.chmod(0o755)


def train(arguments: list[str]) -> None:
    """Make steps; each is a checkpoint in the bucket and a line of metrics here. SIGTERM: saved, 130."""
    plan = json.loads((CLOUD / "plan.json").read_text())["trial"]
    settings = dict(one.split("=", 1) for one in arguments if "=" in one)
    run = Path(settings["out"]) / settings["name"]
    kept = CLOUD / "buckets" / settings["checkpoint.directory"].removeprefix("gs://")
    number = os.environ["TPU_WORKER_ID"]
    key = os.environ.get("SERPER_API_KEY", "")
    if number == "0" and "--resume" not in arguments and kept.exists():
        sys.exit(2)  # checkpoints of another run
    if "--resume" in arguments and not (run / "config.json").exists():
        sys.exit(2)  # there is no run
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps(settings))
    with (CLOUD / "starts").open("a") as file:
        file.write(json.dumps({"host": number, "resumed": "--resume" in arguments, "key": key.startswith("4c81f0a7")}) + "\n")
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    if number == "0":
        kept.mkdir(parents=True, exist_ok=True)
    step = max((int(one.name) for one in kept.glob("*")), default=0)
    while step < plan["steps"]:
        time.sleep(0.25)
        step += 1
        if number == "0":
            (kept / str(step)).touch()
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step}) + "\n")
        print(f"update {step}/{plan['steps']}", flush=True)
        if step in plan["preempt_at"]:
            while not (kept.parent / "config.json").exists():  # copied within the first seconds
                time.sleep(0.05)
            (CLOUD / "resources" / os.environ["FAKE_NODE"] / "preempt").touch()
            time.sleep(60)
        if told:
            sys.exit(130)
        if plan["code"] and step == 2:
            sys.exit(plan["code"])
    (run / "summary.json").write_text("{}")


match sys.argv[1:]:
    case ["python3", "-m", "pip", "install", *_, "uv"]:
        write_program(Path(".uv/bin/uv"))
    case ["uv", "venv", *_]:
        write_program(Path(".venv/bin/python"))
    case ["uv", "pip", "install", *_]:
        write_program(Path(".venv/bin/dr-jax"))
    case ["dr-jax", "train", *rest]:
        train(rest)
    case other:
        sys.exit(f"not on this machine: {other}")
