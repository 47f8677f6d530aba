"""A bucket on loopback that speaks Google's protocol, fails now and then, and keeps one door shut.

The emulator answers without an object's generation, and does what it is asked whatever the generation. Tensorstore, which
several writers of one file settle their turns by, then reads an object of generation 0 where it has just written another, and
gives up about half of all saves (`Malformed StorageGeneration`). Both are added here, as Google's documentation of
`ifGenerationMatch` and `ifGenerationNotMatch` has them.
"""

from __future__ import annotations

import io
import logging
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import HTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage


class Bucket(HTTPServer):
    """Serves the buckets `runs` and `closed`; the second refuses everybody.

    Args:
        share: of the requests that are answered 503. Every second of these was done all the same, and only its answer lost;
            not those of resumable uploads, whose end the emulator does not remember.
    """

    def __init__(self, share: float = 0.0) -> None:
        self.storage = Storage(use_memory_fs=True)
        for name in ("runs", "closed"):
            create_bucket(name, self.storage)
        self.share, self.seconds, self.rng = share, 0.0, random.Random(0)
        self.answered: Counter[int] = Counter()
        super().__init__(("127.0.0.1", 0), self._handler)  # type: ignore[arg-type]

    def _handler(self, *arguments: Any) -> _Handler:
        return _Handler(self.storage, *arguments)

    @property
    def environment(self) -> dict[str, str]:
        """What points tensorstore, gcsfs and google-cloud-storage here."""
        url = f"http://127.0.0.1:{self.server_port}"
        return {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
            "GOOGLE_CLOUD_PROJECT": "p",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def saving(self, since_ns: int) -> set[str]:
        """Which checkpoints have been written to since a moment (Unix time in ns) and are not whole."""
        objects = self.storage.objects.get("runs", {}).copy()
        names = [(re.search(r"/checkpoints/(\d+)/(.*)", name), int(one["generation"])) for name, one in objects.items()]
        begun = {found[1] for found, written_ns in names if found and written_ns > since_ns}
        return begun - {found[1] for found, _ in names if found and found[2] == "commit_success.txt"}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that were killed."""


class _Handler(RequestHandler):
    server: Bucket
    _generation = 0

    def _answer(self, method: str) -> None:
        time.sleep(self.server.seconds)
        refused = 0
        if re.search(r"/b/closed(/|$|\?)", self.path):
            refused = 403
        elif self.server.rng.random() < self.server.share:
            refused = 503
        else:
            refused = self._unmet(method)
        self.server.answered[refused] += 1
        if not refused:
            getattr(super(), f"do_{method}")()
        elif (
            refused == 503 and self.server.answered[503] % 2 == 0 and "upload_id=" not in self.path and not self._unmet(method)
        ):
            out, self.wfile = self.wfile, io.BytesIO()
            getattr(super(), f"do_{method}")()
            self.wfile = out
            self.send_error(503)
        else:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_error(refused)

    def _unmet(self, method: str) -> int:
        """Note the generation of the object that is asked about; return what its conditions refuse the request with, or 0."""
        url = urlsplit(self.path)
        asked = parse_qs(url.query)
        found = re.fullmatch(r"(?:/upload|/download)?(?:/storage/v1)?/b/([^/]+)/o(?:/(.+?))?(?:/compose)?", url.path)
        name = (found[2] and unquote(found[2])) or asked.get("name", [""])[0] if found else ""
        there = self.storage.objects.get(found[1], {}).get(name) if found else None
        generation = int(there["generation"]) if there else 0
        self._generation = generation if method == "GET" else 0
        if int(asked.get("ifGenerationMatch", [generation])[0]) != generation:
            return 412
        if there and int(asked.get("ifGenerationNotMatch", [-1])[0]) == generation:
            return 304 if method == "GET" else 412
        return 0

    def send_response(self, code: int, message: str | None = None) -> None:
        super().send_response(code, message)
        if self._generation and code in (200, 206):
            self.send_header("x-goog-generation", str(self._generation))

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def do_PATCH(self) -> None:
        self._answer("PATCH")


@contextmanager
def served(share: float = 0.0) -> Iterator[Bucket]:
    """Serve a bucket until the block ends."""
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    bucket = Bucket(share)
    thread = threading.Thread(target=bucket.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield bucket
    finally:
        bucket.shutdown()
        thread.join()
        bucket.server_close()
