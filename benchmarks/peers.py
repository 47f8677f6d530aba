"""Environments of the peers that dr_jax is measured against: they pin other versions of JAX, or need torch.

Out:   `build/peers/NAME/bin/python`, made on first use (1 to 2 GB each)
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

HOME = Path(os.environ.get("DR_JAX_PEERS", Path(__file__).parents[1] / "build" / "peers"))
NEEDS = {
    "tunix": ["google-tunix==0.1.7"],
    "torch": ["setuptools>=77.0.3", "torch==2.13.0", f"transformers=={version('transformers')}"],
}


def python_of(peer: str) -> Path:
    """Return the interpreter of a peer's environment, and make it if it is not there.

    Raises:
        subprocess.CalledProcessError: its packages could not be installed.
    """
    home = HOME / peer
    done, interpreter = home / ".installed", home / "bin" / "python"
    wanted = "\n".join(NEEDS[peer])
    if not done.exists() or done.read_text("utf-8") != wanted:
        print(f"installing {', '.join(NEEDS[peer])} into {home}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        subprocess.run([str(interpreter), "-m", "pip", "install", "-q", *NEEDS[peer]], check=True)
        done.write_text(wanted, "utf-8")
    return interpreter
