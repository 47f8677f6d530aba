"""Log lines that never carry a secret.

In:    `logger(__name__).info("…")` anywhere
Out:   one line on stderr, with every value of a key-like environment variable replaced by its name
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from typing import TextIO

_KEY_LIKE = re.compile(r"(_KEY|_TOKEN|_SECRET|_PASSWORD)$")


def logger(name: str) -> logging.Logger:
    """Return the logger of a module; `configure` decides where it writes."""
    return logging.getLogger(name)


def configure(level: int = logging.INFO) -> None:
    """Send dr_jax's log to stderr, one line each, secrets removed. Calling it again changes only the level."""
    root = logging.getLogger("dr_jax")
    root.setLevel(level)
    if not root.handlers:
        handler = _Stderr()
        handler.setFormatter(_Redacting("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S"))
        root.addHandler(handler)
        root.propagate = False


def redacted(text: str) -> str:
    """Replace the value of every key-like environment variable that occurs in the text by `<NAME>`."""
    for name, value in os.environ.items():
        if len(value) >= 8 and _KEY_LIKE.search(name):
            text = text.replace(value, f"<{name}>").replace(json.dumps(value, ensure_ascii=False)[1:-1], f"<{name}>")
    return text


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what is stderr at that moment: whoever puts another one in its place may close that again."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))
