"""The Hugging Face hub, played by a server on loopback: single files, patterns, revisions, and files that are not there."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0" * 39 + "1"
FILES = {
    f"data/train-{number}.jsonl": (json.dumps({"question": f"Who kept gate {number}?", "answer": "Orla"}) + "\n").encode()
    for number in range(2)
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs."""

    def do_HEAD(self) -> None:
        """Tell a file's hash and length."""
        self._file(with_body=False)

    def do_GET(self) -> None:
        """Tell what a data set has, or send a file."""
        if self.path.startswith("/api/datasets/fiction/gates/tree/"):
            self._send(
                json.dumps([{"type": "file", "path": name, "size": len(body), "oid": "0"} for name, body in FILES.items()])
            )
        elif self.path.startswith("/api/datasets/fiction/gates"):
            known = {"id": "fiction/gates", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
            self._send(json.dumps(known))
        else:
            self._file(with_body=True)

    def _file(self, *, with_body: bool) -> None:
        parts = self.path.split("?")[0].split("/")  # /datasets/fiction/gates/resolve/REVISION/path
        body = FILES.get("/".join(parts[6:])) if parts[2:4] == ["fiction", "gates"] else None
        if body is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _send(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Stay quiet."""


@pytest.fixture
def hub() -> Iterator[str]:
    """The hub's address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def read(place: str, hub: str, home: Path) -> str:
    """Read in a process of its own: the hub's address is fixed when its package is imported."""
    code = (
        "import sys\nfrom dr_jax.base.errors import DataError\nfrom dr_jax.data import sources\n"
        "try: print(*(one.text for one in sources.read(sys.argv[1])), sep='|')\nexcept DataError as error: print(error)"
    )
    env = {
        **os.environ,
        "HF_ENDPOINT": hub,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "*",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, place], capture_output=True, text=True, env=env, timeout=120, check=False
    )
    return done.stdout.strip() or done.stderr


def test_files_of_the_hub_are_downloaded_and_read(hub: str, tmp_path: Path) -> None:
    assert read("hub:fiction/gates/data/train-1.jsonl", hub, tmp_path) == "Who kept gate 1?"
    assert read(f"hub:fiction/gates/data/*.jsonl@{COMMIT}", hub, tmp_path) == "Who kept gate 0?|Who kept gate 1?"
    assert "hub:fiction/gates/data/none.jsonl cannot be read" in read("hub:fiction/gates/data/none.jsonl", hub, tmp_path)
