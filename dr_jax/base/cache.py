"""Where what can be made again is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """Return the folder for things of this kind in the user's cache (XDG_CACHE_HOME, or ~/.cache); it may not be there yet.

    Raises:
        RuntimeError: the user has no home, as in a container, and XDG_CACHE_HOME names nothing.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dr_jax" / kind
