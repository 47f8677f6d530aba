import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dr_jax.base.errors import ConfigError
from dr_jax.sharding import hosts

# What was agreed goes to a file: the transport's own threads write to the same stdout, in the middle of a line.
PROCESS = """
import sys
from pathlib import Path
from dr_jax.sharding import hosts
hosts.join(sys.argv[1], timeout_s=60)
own = f"found by {hosts.index()}"
hosts.write(f"folder/{hosts.index()}", own)
agreed = hosts.agree([hosts.index() + 5, 7]).tolist()
said = [hosts.of_first("best", own), sorted(hosts.written("folder").items()), hosts.read("nothing", wait_s=0.1)]
hosts.agree([0])
hosts.erase(f"folder/{hosts.index()}")
Path(sys.argv[2]).write_text(f"{hosts.index()} {hosts.count()} {agreed} {said}")
"""


def test_two_processes_come_together_and_agree(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    answers = [tmp_path / "0", tmp_path / "1"]
    places = [[f"127.0.0.1:{port}/{index}/2", str(answer)] for index, answer in enumerate(answers)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", PROCESS, *place], **quiet) for place in places]
    try:
        said = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    told = ["found by 0", [("0", "found by 0"), ("1", "found by 1")], None]
    assert [answer.read_text() for answer in answers] == [f"{index} 2 [[5, 7], [6, 7]] {told}" for index in (0, 1)]


def test_one_process_takes_what_it_found() -> None:
    assert hosts.of_first("best", "mine") == "mine"


@pytest.mark.parametrize("where", ["", "here", "10.0.0.2/0/2", "10.0.0.2:8476/2/2", "10.0.0.2:8476/0"])
def test_a_place_that_says_too_little_is_refused(where: str) -> None:
    with pytest.raises(ConfigError, match="does not say where the other processes are"):
        hosts.join(where)
