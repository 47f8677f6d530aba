import socket
import subprocess
import sys

import pytest

from dr_jax.base.errors import ConfigError
from dr_jax.sharding import hosts

PROCESS = """
import sys
from dr_jax.sharding import hosts
hosts.join(sys.argv[1], timeout_s=60)
print(hosts.index(), hosts.count(), hosts.agree([hosts.index() + 5, 7]).tolist())
"""


def test_two_processes_come_together_and_agree() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    pipe = subprocess.PIPE
    places = [f"127.0.0.1:{port}/{index}/2" for index in (0, 1)]
    processes = [subprocess.Popen([sys.executable, "-c", PROCESS, one], stdout=pipe, stderr=pipe, text=True) for one in places]
    for index, process in enumerate(processes):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert f"{index} 2 [[5, 7], [6, 7]]" in out.splitlines()


@pytest.mark.parametrize("where", ["", "here", "10.0.0.2/0/2", "10.0.0.2:8476/2/2", "10.0.0.2:8476/0"])
def test_a_place_that_says_too_little_is_refused(where: str) -> None:
    with pytest.raises(ConfigError, match="does not say where the other processes are"):
        hosts.join(where)
