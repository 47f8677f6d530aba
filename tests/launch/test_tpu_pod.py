"""The preemption drill: the launch script against a `gcloud` that gives TPUs and takes them away."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
QUICK = ("--zone", "z", "--type", "v5p-16", "--bucket", "gs://b/runs", "--spot", "--poll", "0.1", "--settle", "1")
SECRET = ("--secret", "SERPER_API_KEY=serper-key")


class Cloud:
    """A cloud in a directory, and the script run against it.

    Args:
        root: the directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "buckets/b").mkdir(parents=True)
        (root / "secrets").mkdir()
        (root / "secrets/serper-key").write_text("4c81f0a7-value")
        for name, program in (("gcloud", "gcloud.py"), ("python3", "machine.py python3")):
            path = root / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {HERE}/{program} "$@"\n')
            path.chmod(0o755)
        self.plan()

    def plan(self, lives: Sequence[str] = (), denied: Sequence[str] = (), **trial: Any) -> None:
        """Say what is to happen."""
        trial = {"steps": 4, "preempt_at": [], "code": 0} | trial
        (self.root / "plan.json").write_text(json.dumps({"lives": list(lives), "denied": list(denied), "trial": trial}))

    def begin(self, *options: str) -> subprocess.Popen[str]:
        """Start the script in a session of its own."""
        env = os.environ | {
            "FAKE_CLOUD": str(self.root),
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
            "DR_JAX_MIRROR_S": "0.1",
        }
        command = [ROOT / "launch/tpu_pod.sh", *QUICK, *SECRET, *options, "configs/quickstart.toml"]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, stdin=pipe, text=True, start_new_session=True)

    def run(self, *options: str) -> tuple[int, str]:
        """Run the script to its end; its exit code, and all that it said."""
        script = self.begin(*options)
        out, err = script.communicate(timeout=120)
        return script.returncode, out + err

    def verbs(self, kind: str = "queued-resources") -> list[str]:
        """What was asked of gcloud, looks left out."""
        told = [json.loads(line) for line in (self.root / "log").read_text().splitlines()]
        return [one[3] for one in told if one[2] == kind and one[3] != "describe"]

    def starts(self) -> list[dict[str, Any]]:
        """How host 0's run was started each time."""
        told = [json.loads(line) for line in (self.root / "starts").read_text().splitlines()]
        return [one for one in told if one["host"] == "0"]

    def steps(self) -> list[int]:
        """The steps in the bucket's copy of the metrics."""
        lines = (self.root / "buckets/b/runs/quickstart/metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["step"] for line in lines]

    @property
    def paid(self) -> bool:
        """Whether anything that costs money is left."""
        return (self.root / "resources").exists() and any((self.root / "resources").iterdir())


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    for needed in ("bash", "git", "setsid", "tail"):
        if shutil.which(needed) is None:
            pytest.skip(f"{needed} is not installed")
    if subprocess.run(["git", "ls-files", "--error-unmatch", "launch"], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("this is not a git checkout, and only what is in git is installed on the hosts")
    return Cloud(tmp_path)


def test_it_creates_loses_recreates_and_resumes(cloud: Cloud) -> None:
    cloud.plan(lives=["preempt", "fail", "preempt", "stay"], preempt_at=[2, 3])
    code, said = cloud.run()
    assert code == 0, said
    assert cloud.verbs() == ["create", "delete"] * 4
    assert [one["resumed"] for one in cloud.starts()] == [False, True, True]
    assert all(one["key"] for one in cloud.starts())
    assert (cloud.root / "buckets/b/runs/quickstart/summary.json").exists()
    saved = [int(one.name) for one in (cloud.root / "buckets/b/runs/quickstart/checkpoints").iterdir()]
    assert sorted(saved) == [1, 2, 3, 4]
    told = cloud.steps()  # those of the last moments before a loss may be missing: they are copied every DR_JAX_MIRROR_S
    assert told == sorted(set(told))
    assert told[-1] == 4
    assert not cloud.paid


@pytest.mark.slow
def test_no_secret_stands_in_a_command_a_log_or_a_file(cloud: Cloud) -> None:
    code, said = cloud.run("--keep")
    assert code == 0, said
    assert "4c81f0a7-value" not in said
    holding = [path for path in cloud.root.rglob("*") if path.is_file() and b"4c81f0a7-value" in path.read_bytes()]
    assert {path.relative_to(cloud.root).as_posix() for path in holding if "dr_jax/tests" not in str(path)} == {
        "secrets/serper-key"
    }
    assert cloud.paid


@pytest.mark.slow
def test_a_run_that_fails_by_itself_ends_with_its_code(cloud: Cloud) -> None:
    cloud.plan(code=7)
    code, said = cloud.run()
    assert code == 7
    assert "failed by itself, with code 7" in said
    assert cloud.verbs() == ["create", "delete"]
    assert len(cloud.starts()) == 1
    assert not cloud.paid


@pytest.mark.slow
def test_a_zone_without_capacity_is_asked_so_many_times(cloud: Cloud) -> None:
    cloud.plan(lives=["fail"] * 9)
    code, said = cloud.run("--tries", "3")
    assert code == 3
    assert "asked for 3 times in a row" in said
    assert cloud.verbs() == ["create", "delete"] * 3
    assert not cloud.paid


@pytest.mark.slow
def test_a_missing_permission_is_shown_and_ends_it(cloud: Cloud) -> None:
    cloud.plan(denied=["create"])
    code, said = cloud.run()
    assert code == 3
    assert "tpu.queuedResources.create" in said
    assert cloud.verbs() == ["create"]


@pytest.mark.slow
def test_a_bucket_that_cannot_be_read_ends_it(cloud: Cloud) -> None:
    (cloud.root / "buckets/b").rmdir()
    code, said = cloud.run()
    assert code == 2
    assert "the bucket cannot be read" in said
    assert not cloud.paid


@pytest.mark.slow
@pytest.mark.parametrize("keep", [False, True])
def test_ctrl_c_saves_and_deletes_unless_told_to_keep(cloud: Cloud, keep: bool) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would its children
    cloud.plan(steps=400)
    script = cloud.begin(*(["--keep"] if keep else []))
    deadline = time.monotonic() + 60
    metrics = cloud.root / "buckets/b/runs/quickstart/metrics.jsonl"
    while not metrics.exists() and time.monotonic() < deadline and script.poll() is None:
        time.sleep(0.1)
    assert script.poll() is None, script.communicate()
    os.killpg(script.pid, signal.SIGINT)
    out, err = script.communicate(timeout=60)
    assert script.returncode == 130, out + err
    assert cloud.paid is keep
    if keep:
        assert "is kept, and paid for" in err
        cloud.plan(steps=1)
        subprocess.run(
            [cloud.root / "bin/gcloud", "compute", "tpus", "queued-resources", "delete", "quickstart", "--force"],
            env=os.environ | {"FAKE_CLOUD": str(cloud.root)},
            check=True,
        )
    else:
        assert "saving the run" in err
        saved = max(int(one.name) for one in (cloud.root / "buckets/b/runs/quickstart/checkpoints").iterdir())
        assert cloud.steps()[-1] == saved


def test_a_dry_run_asks_for_nothing_wherever_it_stands(cloud: Cloud) -> None:
    script = cloud.begin("--dry-run")
    out, err = script.communicate(timeout=60)
    assert script.returncode == 0, err
    assert not (cloud.root / "log").exists()
    assert "SERPER_API_KEY=<secret serper-key>" in out
    assert "4c81f0a7-value" not in out + err
    last = [ROOT / "launch/tpu_pod.sh", *QUICK, "configs/quickstart.toml", "--dry-run"]
    env = os.environ | {"FAKE_CLOUD": str(cloud.root), "PATH": f"{cloud.root / 'bin'}:{os.environ['PATH']}"}
    assert subprocess.run(last, env=env, capture_output=True, timeout=60, check=False).returncode == 0
    assert not (cloud.root / "log").exists()
