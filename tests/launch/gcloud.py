"""A small `gcloud` with its state in a directory: queued resources, hosts that run what they are told, buckets, secrets.

In:    FAKE_CLOUD, a directory: `plan.json` (what is to happen), `secrets/NAME`, `buckets/NAME/…`, `log` (every command)
Out:   as the real one: states, messages and exit codes; `ssh` runs the command with a host's directory as its home
Plan:  `denied`: verbs that are refused; `lives`: for each resource in turn how it ends: "stay", "fail" (before it is active),
       or "preempt" (when the run on it has written the file `preempt`)
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
HOSTS = 2
STATES = ("ACCEPTED", "PROVISIONING", "ACTIVE")


def fail(message: str, code: int = 1) -> None:
    print(f"ERROR: (gcloud) {message}", file=sys.stderr)
    sys.exit(code)


def kill_all(resource: Path) -> None:
    """Take the machines away: every process of theirs dies at once, and their disks are gone."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            mine = {f"FAKE_NODE={resource.name}".encode(), f"FAKE_CLOUD={CLOUD}".encode()} <= set(environment)
            if mine and int(entry.name) != os.getpid():
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:
            continue
    shutil.rmtree(resource / "hosts", ignore_errors=True)


def state_of(resource: Path) -> str:
    """The state now; each look moves a young resource on by one."""
    state = before = (resource / "state").read_text()
    life = (resource / "life").read_text()
    if state in STATES[:-1]:
        state = "FAILED" if life == "fail" and state == "PROVISIONING" else STATES[STATES.index(state) + 1]
    elif state == "ACTIVE" and life == "preempt" and (resource / "preempt").exists():
        kill_all(resource)
        state = "SUSPENDED"
    if state != before:
        part = resource / f"state.{os.getpid()}"  # another command may be reading it
        part.write_text(state)
        part.replace(resource / "state")
    return state


def queued(verb: str, name: str, options: dict[str, str]) -> None:
    plan = json.loads((CLOUD / "plan.json").read_text())
    if verb in plan["denied"]:
        fail(f"PERMISSION_DENIED: Permission 'tpu.queuedResources.{verb}' denied on 'projects/p/locations/z'")
    resource = CLOUD / "resources" / name
    if verb == "create":
        if resource.exists():
            fail(f"ALREADY_EXISTS: {name}")
        made = len((CLOUD / "made").read_text()) if (CLOUD / "made").exists() else 0
        (CLOUD / "made").write_text("x" * (made + 1))
        resource.mkdir(parents=True)
        (resource / "state").write_text("ACCEPTED")
        (resource / "life").write_text((plan["lives"] + ["stay"] * 99)[made])
        return
    if not resource.exists():
        fail(f"NOT_FOUND: Resource 'projects/p/locations/z/queuedResources/{name}' was not found")
    if verb == "describe":
        print(state_of(resource))
    elif verb == "delete":
        if (resource / "state").read_text() == "ACTIVE" and "force" not in options:
            fail("FAILED_PRECONDITION: the resource is active")
        kill_all(resource)
        shutil.rmtree(resource)


def on_hosts(name: str, options: dict[str, str]) -> list[tuple[int, Path]]:
    resource = CLOUD / "resources" / name
    if not resource.exists() or state_of(resource) != "ACTIVE":
        fail("NOT_FOUND: there is no such node", 255)
    numbers = range(HOSTS) if options["worker"] == "all" else [int(options["worker"])]
    found = [(number, resource / "hosts" / str(number)) for number in numbers]
    for _, home in found:
        home.mkdir(parents=True, exist_ok=True)
    return found


def tpu_vm(verb: str, words: list[str], options: dict[str, str]) -> None:
    if verb == "scp":
        source, (name, _, target) = words[0], words[1].partition(":")
        for _, home in on_hosts(name, options):
            shutil.copy(source, home / target)
        return
    running = []
    for number, home in on_hosts(words[0], options):
        told = {"HOME": str(home), "FAKE_NODE": words[0], "TPU_WORKER_ID": str(number)}
        running.append(
            subprocess.Popen(["bash", "-c", options["command"]], cwd=home, env={**os.environ, **told}, stdin=subprocess.DEVNULL)
        )
    while any(one.poll() is None for one in running):
        if not (CLOUD / "resources" / words[0] / "state").exists() or state_of(CLOUD / "resources" / words[0]) != "ACTIVE":
            fail("[SSH] exited with return code [255]: the connection was closed", 255)
        time.sleep(0.1)
    sys.exit(max(abs(one.returncode) for one in running))


def local(address: str) -> Path:
    return CLOUD / "buckets" / address.removeprefix("gs://") if address.startswith("gs://") else Path(address)


def storage(verb: str, words: list[str]) -> None:
    if not (CLOUD / "buckets" / words[0].removeprefix("gs://").split("/")[0]).exists() and words[0].startswith("gs://"):
        fail(f"[{words[0]}] PERMISSION_DENIED: the caller does not have storage.objects.list access")
    if verb == "ls" and not local(words[0]).exists():
        fail("One or more URLs matched no objects.")
    if verb == "rsync":
        leave_out = shutil.ignore_patterns("checkpoints") if words[0].startswith("gs://") else None
        shutil.copytree(local(words[0]), local(words[1]), dirs_exist_ok=True, ignore=leave_out)


def main(arguments: list[str]) -> None:
    with (CLOUD / "log").open("a") as log:
        log.write(json.dumps(arguments) + "\n")
    options = {name: value for name, _, value in (one[2:].partition("=") for one in arguments if one.startswith("--"))}
    words = [one for one in arguments if not one.startswith("--")]
    match words:
        case ["compute", "tpus", "queued-resources", verb, name]:
            queued(verb, name, options)
        case ["compute", "tpus", "tpu-vm", verb, *rest]:
            tpu_vm(verb, rest, options)
        case ["storage", verb, *rest]:
            storage(verb, rest)
        case ["secrets", "versions", "access", "latest"]:
            print((CLOUD / "secrets" / options["secret"]).read_text(), end="")
        case _:
            fail(f"Invalid choice: {' '.join(words)}", 2)


main(sys.argv[1:])
